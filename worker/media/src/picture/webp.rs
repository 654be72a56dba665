//! What a WebP asks for beside what its header says: its decoder believes the frames and tables within it.

mod bits;
mod code;
mod tables;

use super::Limits;
use crate::Error;

/// How the format is called.
const NAME: &str = "WebP";
/// Of the file's own name and size, before its first chunk.
const RIFF_BYTES: usize = 12;
/// A chunk's name and size.
const HEAD_BYTES: usize = 8;
/// Where the body of the first chunk lies.
const FIRST: usize = RIFF_BYTES + HEAD_BYTES;
/// Of the canvas: flags, its sides.
const CANVAS_BYTES: usize = 10;
/// The canvas is animated.
const ANIMATED: u8 = 0b10;
/// The canvas has alpha.
const ALPHA: u8 = 0b1_0000;
/// What a frame begins with: its place, its sides, its time.
const FRAME_BYTES: usize = 16;
/// What all pixels take a pixel while there are tables: two buffers of four bytes, a lossy frame of one and a half.
const BESIDE_TABLES_A_PIXEL: u64 = 10;

/// Refuses frames and tables beyond the limits, and chunks that reach past the file.
///
/// It looks where the decoder does: what that refuses by itself passes here.
pub(super) fn check(bytes: &[u8], limits: &Limits) -> Result<(), Error> {
    let Some(first) = Chunk::at(bytes, RIFF_BYTES) else { return Ok(()) };
    match &first.name {
        b"VP8 " => lossy(first.whole()?, limits),
        b"VP8L" => lossless(first.whole()?, None, limits),
        b"VP8X" => extended(bytes, &first, limits),
        _ => Ok(()),
    }
}

/// Sides of a picture or a frame.
type Sides = (u32, u32);

struct Chunk<'a> {
    name: [u8; 4],
    size: usize,
    /// As much of it as there is.
    body: &'a [u8],
    /// Where the next one begins.
    next: usize,
}

impl<'a> Chunk<'a> {
    fn at(bytes: &'a [u8], at: usize) -> Option<Self> {
        let head: &[u8; HEAD_BYTES] = bytes.get(at..)?.first_chunk()?;
        let [a, b, c, d, size @ ..] = *head;
        let size = u32::from_le_bytes(size) as usize;
        let start = at + HEAD_BYTES;
        let end = start + size;
        let body = &bytes[start..end.min(bytes.len())];
        // Chunks are padded to an even length.
        Some(Self { name: [a, b, c, d], size, body, next: end + (size & 1) })
    }

    fn whole(&self) -> Result<&'a [u8], Error> {
        if self.body.len() == self.size {
            return Ok(self.body);
        }
        let [there, said] = [self.body.len(), self.size];
        Err(Error::Malformed(format!("the WebP ends too early: {there} of {said} bytes of a part of it are there")))
    }
}

/// The first chunk of each kind, which is the one that counts.
#[derive(Default)]
struct Parts<'a> {
    lossy: Option<&'a [u8]>,
    lossless: Option<&'a [u8]>,
    alpha: Option<&'a [u8]>,
    frame: Option<&'a [u8]>,
}

impl<'a> Parts<'a> {
    /// Those between the canvas and the end that the file tells, which the decoder takes for ten bytes more.
    fn of(bytes: &'a [u8], canvas: &Chunk<'a>) -> Result<Self, Error> {
        let mut parts = Self::default();
        let mut at = canvas.next;
        let end = at + little(&bytes[4..8]).saturating_sub(RIFF_BYTES as u32) as usize;
        while at < end {
            let Some(chunk) = Chunk::at(bytes, at) else { break };
            match &chunk.name {
                b"VP8 " => parts.lossy = parts.lossy.or(Some(chunk.whole()?)),
                b"VP8L" => parts.lossless = parts.lossless.or(Some(chunk.whole()?)),
                b"ALPH" => parts.alpha = parts.alpha.or(Some(chunk.whole()?)),
                b"ANMF" => parts.frame = parts.frame.or(Some(chunk.whole()?)),
                b"ICCP" | b"EXIF" | b"XMP " | b"ANIM" => drop(chunk.whole()?),
                // Nobody reads what has another name.
                _ => {}
            }
            at = chunk.next;
        }
        Ok(parts)
    }
}

fn extended(bytes: &[u8], canvas: &Chunk<'_>, limits: &Limits) -> Result<(), Error> {
    let Some(head) = bytes.get(FIRST..FIRST + CANVAS_BYTES) else { return Ok(()) };
    let (flags, sides) = (head[0], (little(&head[4..7]) + 1, little(&head[7..10]) + 1));
    limits.check(NAME, sides.0, sides.1)?;
    let parts = Parts::of(bytes, canvas)?;
    if flags & ANIMATED != 0 {
        return parts.frame.map_or(Ok(()), |body| frame(body, sides, limits));
    }
    if parts.frame.is_some() {
        return Err(Error::Malformed("the WebP has the frames of an animation and says that it is none".into()));
    }
    parts.lossy.map_or(Ok(()), |body| lossy(body, limits))?;
    parts.lossless.map_or(Ok(()), |body| lossless(body, Some(sides), limits))?;
    let alphas = parts.alpha.filter(|_| flags & ALPHA != 0);
    alphas.map_or(Ok(()), |body| alpha(body, sides, sides, limits))
}

/// The frame of an animation, whose picture is its first chunk, or the second behind alpha, whatever its name.
fn frame(body: &[u8], canvas: Sides, limits: &Limits) -> Result<(), Error> {
    let Some(head) = body.get(..FRAME_BYTES) else { return Ok(()) };
    let sides = (little(&head[6..9]) + 1, little(&head[9..12]) + 1);
    limits.check(NAME, sides.0, sides.1)?;
    let Some(first) = Chunk::at(body, FRAME_BYTES) else { return Ok(()) };
    match &first.name {
        b"VP8 " => lossy(first.whole()?, limits),
        b"VP8L" => lossless(first.whole()?, Some(canvas), limits),
        b"ALPH" => {
            alpha(first.whole()?, sides, canvas, limits)?;
            let Some(second) = Chunk::at(body, first.next) else { return Ok(()) };
            lossy(second.whole()?, limits)
        }
        _ => Ok(()),
    }
}

fn lossy(body: &[u8], limits: &Limits) -> Result<(), Error> {
    // A tag and a mark of three bytes each, the sides in the lower 14 bits of two.
    let Some(sides) = body.get(6..10) else { return Ok(()) };
    limits.check(NAME, little(&sides[..2]) & 0x3fff, little(&sides[2..]) & 0x3fff)
}

/// Without a canvas the picture itself is one.
fn lossless(body: &[u8], canvas: Option<Sides>, limits: &Limits) -> Result<(), Error> {
    // A mark, the sides less one in 14 bits each, four bits more.
    let Some((head, data)) = body.split_at_checked(5) else { return Ok(()) };
    let sides = little(&head[1..]);
    let sides = ((sides & 0x3fff) + 1, (sides >> 14 & 0x3fff) + 1);
    limits.check(NAME, sides.0, sides.1)?;
    tables::check(data, sides, allowance(canvas.unwrap_or(sides), limits))
}

/// Alpha of a picture or a frame, which is lossless where its first byte says so.
fn alpha(body: &[u8], sides: Sides, canvas: Sides, limits: &Limits) -> Result<(), Error> {
    match body.split_first() {
        Some((head, data)) if head & 0b11 == 1 => tables::check(data, sides, allowance(canvas, limits)),
        _ => Ok(()),
    }
}

/// What tables may take: what the limits leave beside the pixels.
fn allowance((width, height): Sides, limits: &Limits) -> u64 {
    limits.bytes().saturating_sub(u64::from(width) * u64::from(height) * BESIDE_TABLES_A_PIXEL)
}

/// A number of up to four bytes, the lowest first.
fn little(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

fn broken() -> Error {
    Error::Malformed("the lossless WebP contradicts itself or ends too early".into())
}
