//! Pictures: JPEG, PNG, WebP, GIF and BMP to upright RGB.
//!
//! What has several forms becomes RGB as Pillow's `convert("RGB")` makes it, because that is what the reference of every
//! vision model does: alpha is dropped (not composited), grey is repeated, CMYK goes by `(255-c)(255-k)/255`. Of 16 bits
//! the upper 8 are kept. Of an animation the first frame counts. Unlike Pillow's `open`, EXIF orientation is applied.

mod jpeg;
mod resample;
mod webp;

use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageBuffer, ImageDecoder, ImageError, ImageFormat, ImageReader, RgbImage};

use crate::Error;
use crate::error::guarded;
pub use resample::Filter;

/// What decoding takes a pixel at its peak: 16 bits in four channels, three bytes of the result.
pub const DECODING_BYTES_A_PIXEL: u64 = 12;
/// What a decoder may hold beside its pixels: profiles, tables, rows.
const BESIDE_BYTES_MAX: u64 = 32 << 20;
/// Where memory is short, this part of it.
const BESIDE_PART: u64 = 20;
/// Bytes a pixel of a GIF's frame, which may be larger than its canvas.
const GIF_FRAME_BYTES_A_PIXEL: u64 = 4;
/// What some writers put before EXIF, as in JPEG.
const EXIF_PREFIX: &[u8] = b"Exif\0\0";

/// What is decoded at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Pixels of the longer side.
    pub side: u32,
    /// Pixels in all, each of [`DECODING_BYTES_A_PIXEL`].
    pub pixels: u64,
    /// Bytes that a decoder may hold beside its pixels.
    pub beside: u64,
}

impl Default for Limits {
    /// What the dispatcher lets pass.
    fn default() -> Self {
        Self { side: 16_384, pixels: 40_000_000, beside: BESIDE_BYTES_MAX }
    }
}

impl Limits {
    /// As much as can be decoded in `bytes` of memory, and no more than the default.
    #[must_use]
    pub fn for_memory(bytes: u64) -> Self {
        let default = Self::default();
        let beside = default.beside.min(bytes / BESIDE_PART);
        let pixels = (bytes - beside) / DECODING_BYTES_A_PIXEL;
        Self { pixels: pixels.min(default.pixels), beside, ..default }
    }

    /// Memory that decoding takes at most.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.pixels.saturating_mul(DECODING_BYTES_A_PIXEL).saturating_add(self.beside)
    }
}

/// Pixels, upright.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Pixels in a row, at least 1.
    pub width: u32,
    /// Rows, at least 1.
    pub height: u32,
    /// (height, width, 3): red, green, blue.
    pub rgb: Vec<u8>,
}

/// How a model wants its pictures: the shorter side resized, the middle cut out, the numbers normalised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Framing {
    /// Pixels of the shorter side after resizing.
    pub shorter: u32,
    /// Width and height of the middle that is cut out; at most `shorter`.
    pub crop: u32,
    /// What resizes.
    pub filter: Filter,
    /// Subtracted from each channel, of 0 to 1.
    pub mean: [f32; 3],
    /// Each channel is divided by it then.
    pub deviation: [f32; 3],
}

/// Decodes a picture. Its header is checked against the limits before anything is allocated for its pixels.
///
/// # Errors
/// When the format is not read, the bytes contradict themselves or end too early, or a limit is passed.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Picture, Error> {
    guarded("picture", || decode_unguarded(bytes, limits))
}

fn decode_unguarded(bytes: &[u8], limits: &Limits) -> Result<Picture, Error> {
    let format = format(bytes)?;
    let name = name(format);
    match format {
        ImageFormat::Jpeg => jpeg::check_complete(bytes)?,
        ImageFormat::WebP => webp::check(bytes, limits)?,
        _ => {}
    }
    let most = decoder_bytes(format, limits);
    let refused = |error| refused(name, most, error);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut allowed = image::Limits::default();
    allowed.max_alloc = Some(most);
    reader.limits(allowed);
    let mut decoder = reader.into_decoder().map_err(refused)?;
    let (width, height) = decoder.dimensions();
    limits.check(name, width, height)?;
    let orientation = orientation(decoder.exif_metadata().map_err(refused)?.as_deref());
    let decoded = DynamicImage::from_decoder(decoder).map_err(refused)?;
    let upright = RgbImage::from_raw(width, height, rgb(decoded)).expect("three bytes for each pixel");
    let mut upright = DynamicImage::ImageRgb8(upright);
    upright.apply_orientation(orientation);
    let (width, height) = (upright.width(), upright.height());
    Ok(Picture { width, height, rgb: upright.into_rgb8().into_raw() })
}

/// What the decoder counts itself: of a GIF its frame, of a PNG what is beside its pixels; of the others nothing.
fn decoder_bytes(format: ImageFormat, limits: &Limits) -> u64 {
    match format {
        ImageFormat::Gif => limits.pixels.saturating_mul(GIF_FRAME_BYTES_A_PIXEL),
        _ => limits.beside,
    }
}

fn orientation(exif: Option<&[u8]>) -> Orientation {
    let exif = exif.map(|exif| exif.strip_prefix(EXIF_PREFIX).unwrap_or(exif));
    exif.and_then(Orientation::from_exif_chunk).unwrap_or(Orientation::NoTransforms)
}

fn format(bytes: &[u8]) -> Result<ImageFormat, Error> {
    let format = image::guess_format(bytes).ok().filter(|format| {
        use ImageFormat::{Bmp, Gif, Jpeg, Png, WebP};
        matches!(format, Jpeg | Png | WebP | Gif | Bmp)
    });
    format.ok_or_else(|| Error::Unsupported("not a picture in JPEG, PNG, WebP, GIF or BMP".into()))
}

fn name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::Png => "PNG",
        ImageFormat::WebP => "WebP",
        ImageFormat::Gif => "GIF",
        _ => "BMP",
    }
}

fn refused(name: &str, most: u64, error: ImageError) -> Error {
    match error {
        ImageError::Unsupported(error) => Error::Unsupported(format!("this kind of {name} is not read: {error}")),
        ImageError::Limits(_) => Error::TooLarge {
            what: format!("decoding the {name} takes too much memory"),
            limit: format!("{most} bytes beside its pixels, or for one frame"),
        },
        error => Error::Malformed(format!("the {name} cannot be decoded: {error}")),
    }
}

/// As Pillow's `convert("RGB")`; see the module's head.
fn rgb(decoded: DynamicImage) -> Vec<u8> {
    let high = |number: u16| (number >> 8) as u8;
    match decoded {
        DynamicImage::ImageRgb8(pixels) => pixels.into_raw(),
        DynamicImage::ImageRgba8(pixels) => narrowed(&pixels, |p| [p.0[0], p.0[1], p.0[2]]),
        DynamicImage::ImageLuma8(pixels) => narrowed(&pixels, |p| [p.0[0]; 3]),
        DynamicImage::ImageLumaA8(pixels) => narrowed(&pixels, |p| [p.0[0]; 3]),
        DynamicImage::ImageRgb16(pixels) => narrowed(&pixels, |p| [high(p.0[0]), high(p.0[1]), high(p.0[2])]),
        DynamicImage::ImageRgba16(pixels) => narrowed(&pixels, |p| [high(p.0[0]), high(p.0[1]), high(p.0[2])]),
        DynamicImage::ImageLuma16(pixels) => narrowed(&pixels, |p| [high(p.0[0]); 3]),
        DynamicImage::ImageLumaA16(pixels) => narrowed(&pixels, |p| [high(p.0[0]); 3]),
        other => other.into_rgb8().into_raw(),
    }
}

fn narrowed<P: image::Pixel>(pixels: &ImageBuffer<P, Vec<P::Subpixel>>, colour: impl Fn(&P) -> [u8; 3]) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(pixels.width() as usize * pixels.height() as usize * 3);
    for pixel in pixels.pixels() {
        rgb.extend_from_slice(&colour(pixel));
    }
    rgb
}

impl Limits {
    fn check(&self, name: &str, width: u32, height: u32) -> Result<(), Error> {
        if width == 0 || height == 0 {
            return Err(Error::Malformed(format!("the {name} says {width} x {height} pixels")));
        }
        if width.max(height) > self.side {
            return Err(Error::TooLarge {
                what: format!("the {name} has {width} x {height} pixels"),
                limit: format!("{} a side", self.side),
            });
        }
        if u64::from(width) * u64::from(height) > self.pixels {
            return Err(Error::TooLarge {
                what: format!("the {name} has {width} x {height} pixels"),
                limit: format!("{} in all", self.pixels),
            });
        }
        Ok(())
    }
}

impl Picture {
    /// Resizes as Pillow's `Image.resize((width, height), filter)` does, byte for byte.
    ///
    /// # Panics
    /// When `width` or `height` is 0.
    #[must_use]
    pub fn resize(&self, width: u32, height: u32, filter: Filter) -> Self {
        let whole = resample::Region { size: (width, height), left: 0, top: 0, width, height };
        resample::resample(self, &whole, filter)
    }

    /// Resizes the shorter side and cuts out the middle, as torchvision's `Resize` and `CenterCrop` of Pillow images do,
    /// which is timm's transform for evaluation. Only the pixels that stay are computed.
    ///
    /// # Panics
    /// When `crop` is 0 or larger than `shorter`.
    #[must_use]
    pub fn resize_and_crop(&self, shorter: u32, crop: u32, filter: Filter) -> Self {
        assert!(crop > 0 && crop <= shorter, "a crop of {crop} pixels out of {shorter}");
        let (short, long) = (self.width.min(self.height), self.width.max(self.height));
        let longer = (f64::from(shorter) * f64::from(long) / f64::from(short)) as u32;
        let size = if self.width <= self.height { (shorter, longer) } else { (longer, shorter) };
        // torchvision's int(round((side - crop) / 2)), which rounds halves to even
        let offset = |side: u32| (f64::from(side - crop) / 2.0).round_ties_even() as u32;
        let region = resample::Region { size, left: offset(size.0), top: offset(size.1), width: crop, height: crop };
        resample::resample(self, &region, filter)
    }

    /// The numbers that a model sees, (height, width, 3): `(byte / 255 - mean) / deviation`.
    #[must_use]
    pub fn normalise(&self, mean: [f32; 3], deviation: [f32; 3]) -> Vec<f32> {
        let number = |(index, &byte): (usize, &u8)| (f32::from(byte) / 255.0 - mean[index % 3]) / deviation[index % 3];
        self.rgb.iter().enumerate().map(number).collect()
    }

    /// What a model sees of the picture, (`crop`, `crop`, 3).
    ///
    /// # Panics
    /// When the framing's crop is 0 or larger than its shorter side.
    #[must_use]
    pub fn framed(&self, framing: &Framing) -> Vec<f32> {
        let middle = self.resize_and_crop(framing.shorter, framing.crop, framing.filter);
        middle.normalise(framing.mean, framing.deviation)
    }
}
