//! Pixel dimensions from the header of an image.

use std::io::Cursor;

use imagesize::ImageType;
use protocol::{ErrorCode, Refusal};

/// Longest side.
pub(super) const SIDE_MAX: u64 = 16_384;
/// Most pixels: what a decoder has to hold.
pub(super) const PIXELS_MAX: u64 = 40_000_000;
/// DEFLATE cannot shrink further than this, so a PNG of few bytes cannot hold many pixels.
const DEFLATE_RATIO_MAX: u64 = 1_032;

/// Width and height of an image; the larger one has more pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dimensions {
    /// Pixels in a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl Dimensions {
    fn pixels(self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }
}

impl Ord for Dimensions {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.pixels(), self.width).cmp(&(other.pixels(), other.width))
    }
}

impl PartialOrd for Dimensions {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Reads and checks the dimensions. `mime` is what sniffing said.
pub(super) fn dimensions(mime: &str, data: &[u8]) -> Result<Dimensions, Refusal> {
    let (width, height) = match mime {
        "image/bmp" => bmp(data),
        "image/png" => png(data),
        "image/jpeg" => sized(ImageType::Jpeg, data),
        "image/gif" => sized(ImageType::Gif, data),
        "image/webp" => sized_webp(data),
        _ => None,
    }
    .ok_or_else(|| Refusal::invalid(format!("the header of the {mime} cannot be read")))?;
    if width == 0 || height == 0 {
        return Err(Refusal::invalid(format!("the header of the {mime} says {width} x {height} pixels")));
    }
    if width > SIDE_MAX || height > SIDE_MAX || width * height > PIXELS_MAX {
        return Err(Refusal::new(
            ErrorCode::TooLarge,
            format!(
                "the {mime} has {width} x {height} pixels, the limits are {SIDE_MAX} a side and {PIXELS_MAX} in all"
            ),
        ));
    }
    if data.len() as u64 * DEFLATE_RATIO_MAX < least_bytes(mime, data, width, height) {
        return Err(Refusal::invalid(format!(
            "the header of the {mime} says {width} x {height} pixels, but {} bytes cannot hold them",
            data.len()
        )));
    }
    let side = |side: u64| u32::try_from(side).expect("at most SIDE_MAX");
    Ok(Dimensions { width: side(width), height: side(height) })
}

fn sized(kind: ImageType, data: &[u8]) -> Option<(u64, u64)> {
    let size = kind.reader_size(&mut Cursor::new(data)).ok()?;
    Some((size.width as u64, size.height as u64))
}

/// The reader of WebP wants to stand at the first chunk.
fn sized_webp(data: &[u8]) -> Option<(u64, u64)> {
    let mut reader = Cursor::new(data);
    reader.set_position(12);
    let size = ImageType::Webp.reader_size(&mut reader).ok()?;
    // Lossy files keep two bits of scaling above the 14 bits of a side.
    let mask = if data.get(12..16) == Some(b"VP8 ") { 0x3fff } else { u64::MAX };
    Some((size.width as u64 & mask, size.height as u64 & mask))
}

/// The first chunk of a PNG must be IHDR.
fn png(data: &[u8]) -> Option<(u64, u64)> {
    if data.get(8..16) != Some(b"\0\0\0\x0dIHDR") {
        return None;
    }
    Some((big_u32(data, 16)?, big_u32(data, 20)?))
}

/// Two generations of headers; a negative height means top-down rows.
fn bmp(data: &[u8]) -> Option<(u64, u64)> {
    match little_u32(data, 14)? {
        12 => Some((little_u16(data, 18)?, little_u16(data, 20)?)),
        40.. => Some((side(data, 18)?, side(data, 22)?)),
        _ => None,
    }
}

fn side(data: &[u8], at: usize) -> Option<u64> {
    let bytes = data.get(at..at + 4)?.try_into().ok()?;
    Some(u64::from(i32::from_le_bytes(bytes).unsigned_abs()))
}

fn big_u32(data: &[u8], at: usize) -> Option<u64> {
    Some(u64::from(u32::from_be_bytes(data.get(at..at + 4)?.try_into().ok()?)))
}

fn little_u32(data: &[u8], at: usize) -> Option<u64> {
    Some(u64::from(u32::from_le_bytes(data.get(at..at + 4)?.try_into().ok()?)))
}

fn little_u16(data: &[u8], at: usize) -> Option<u64> {
    Some(u64::from(u16::from_le_bytes(data.get(at..at + 2)?.try_into().ok()?)))
}

/// Bytes that a PNG of these dimensions unpacks to; other formats have no such floor.
fn least_bytes(mime: &str, data: &[u8], width: u64, height: u64) -> u64 {
    let (Some(&depth), Some(&colour)) = (data.get(24), data.get(25)) else {
        return 0;
    };
    if mime != "image/png" {
        return 0;
    }
    let channels = match colour {
        2 => 3,
        4 => 2,
        6 => 4,
        _ => 1,
    };
    // Every row has one byte that names its filter.
    ((width * channels * u64::from(depth)).div_ceil(8) + 1) * height
}
