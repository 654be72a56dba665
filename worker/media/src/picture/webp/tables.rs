//! What the tables of a lossless WebP take, before its decoder makes them: a pixel of a few bytes can ask for 65,536
//! groups of codes, a gigabyte.
//!
//! Only what stands before the pixels is read, and only what tells the number and the size of tables; of the small
//! images in between no pixel is kept.

use super::bits::Bits;
use super::code::{Code, Form};
use crate::Error;

/// Symbols of the five codes of a group: green with lengths (without those of the cache), red, blue, alpha, distances.
const SYMBOLS: [usize; 5] = [280, 256, 256, 256, 40];
/// Greens above are lengths of copies.
const GREENS: u16 = 256;
/// Greens from here on are places in the cache.
const CACHED_FROM: u16 = 280;
/// Bits of a number of places in the cache.
const CACHE_BITS_MAX: u32 = 11;
/// Bytes of a pixel of an image in between.
const PIXEL_BYTES: u64 = 4;
/// Bytes of a block's group: the pixel that it is read from, and what is kept of it.
const BLOCK_BYTES: u64 = 6;
/// Bytes of a group beside its tables, three times: it lies in a vector that doubles while it is copied.
const GROUP_BYTES: u64 = 3 * 5 * 56;

/// Refuses tables that take more than `limit` bytes. `data` begins with the transforms.
pub(super) fn check(data: &[u8], (width, height): (u32, u32), limit: u64) -> Result<(), Error> {
    let mut reader = Reader { bits: Bits::of(data), bytes: 0, limit };
    let width = reader.transforms(width, height)?;
    let cache = reader.cache()?;
    let groups = if reader.bits.read(1)? == 1 { reader.groups(width, height)? } else { 1 };
    for _ in 0..groups {
        reader.take(GROUP_BYTES)?;
        for number in 0..SYMBOLS.len() {
            let bytes = reader.form(number, cache)?.table_bytes();
            reader.take(bytes)?;
        }
    }
    Ok(())
}

struct Reader<'a> {
    bits: Bits<'a>,
    /// What the decoder would hold so far.
    bytes: u64,
    limit: u64,
}

impl Reader<'_> {
    fn take(&mut self, bytes: u64) -> Result<(), Error> {
        self.bytes += bytes;
        if self.bytes <= self.limit {
            return Ok(());
        }
        let limit = format!("{} bytes for a picture of this size", self.limit);
        Err(Error::TooLarge { what: "the tables of the lossless WebP are too large".into(), limit })
    }

    /// Width of the image that is left when all transforms are read.
    fn transforms(&mut self, width: u32, height: u32) -> Result<u32, Error> {
        let mut width = width;
        let mut seen = [false; 4];
        while self.bits.read(1)? == 1 {
            let kind = self.bits.read(2)?;
            if std::mem::replace(&mut seen[kind as usize], true) {
                return Err(Error::Malformed("the lossless WebP has a transform twice".into()));
            }
            match kind {
                // Predictors and colours, a pixel for each block.
                0 | 1 => {
                    let size = self.bits.read(3)? + 2;
                    let (across, down) = (blocks(width, size), blocks(height, size));
                    self.take(u64::from(across) * u64::from(down) * PIXEL_BYTES)?;
                    self.image(across, down)?;
                }
                // The subtracted green has no data.
                2 => {}
                _ => {
                    let colours = self.bits.read(8)? + 1;
                    self.image(colours, 1)?;
                    width = blocks(width, packed(colours));
                }
            }
        }
        Ok(width)
    }

    /// How many groups of codes the blocks name.
    fn groups(&mut self, width: u32, height: u32) -> Result<u32, Error> {
        let size = self.bits.read(3)? + 2;
        let (across, down) = (blocks(width, size), blocks(height, size));
        self.take(u64::from(across) * u64::from(down) * BLOCK_BYTES)?;
        Ok(u32::from(self.image(across, down)?) + 1)
    }

    /// Reads over an image in between; the greatest group that its pixels name, of red and green.
    fn image(&mut self, width: u32, height: u32) -> Result<u16, Error> {
        let cache = self.cache()?;
        let mut code = |number| Code::of(&self.form(number, cache)?);
        let [green, red, blue, alpha, distance] = [code(0)?, code(1)?, code(2)?, code(3)?, code(4)?];
        let mut left = u64::from(width) * u64::from(height);
        let mut greatest = 0;
        while left > 0 {
            let symbol = green.read(&mut self.bits)?;
            let pixels = match symbol {
                ..GREENS => {
                    let group = red.read(&mut self.bits)? << 8 | symbol;
                    // What is copied, or comes from the cache, was such a pixel before.
                    greatest = greatest.max(group);
                    blue.read(&mut self.bits)?;
                    alpha.read(&mut self.bits)?;
                    1
                }
                GREENS..CACHED_FROM => {
                    let length = self.number(symbol - GREENS)?;
                    let symbol = distance.read(&mut self.bits)?;
                    self.number(symbol)?;
                    length
                }
                CACHED_FROM.. => 1,
            };
            left = left.checked_sub(pixels).ok_or_else(super::broken)?;
        }
        Ok(greatest)
    }

    /// A length or a distance, whose lower bits stand behind its symbol.
    fn number(&mut self, symbol: u16) -> Result<u64, Error> {
        if symbol < 4 {
            return Ok(u64::from(symbol) + 1);
        }
        let extra = u32::from(symbol - 2) >> 1;
        let bits = self.bits.read(extra)?;
        Ok((u64::from(2 + (symbol & 1)) << extra) + u64::from(bits) + 1)
    }

    /// Places in the cache of colours.
    fn cache(&mut self) -> Result<usize, Error> {
        if self.bits.read(1)? == 0 {
            return Ok(0);
        }
        match self.bits.read(4)? {
            bits @ 1..=CACHE_BITS_MAX => Ok(1 << bits),
            _ => Err(super::broken()),
        }
    }

    /// A code of a group.
    fn form(&mut self, number: usize, cache: usize) -> Result<Form, Error> {
        let cached = if number == 0 { cache } else { 0 };
        Form::read(&mut self.bits, SYMBOLS[number] + cached)
    }
}

/// Blocks of `1 << bits` pixels beside each other.
fn blocks(pixels: u32, bits: u32) -> u32 {
    pixels.div_ceil(1 << bits)
}

/// How many pixels share a byte, as a power of two, where there are so few colours.
fn packed(colours: u32) -> u32 {
    match colours {
        ..=2 => 3,
        3..=4 => 2,
        5..=16 => 1,
        _ => 0,
    }
}
