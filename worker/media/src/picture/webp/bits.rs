//! Bits of a lossless WebP, the lowest of each byte first.

use crate::Error;

/// Reads bits one after another.
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    /// Bits that were read.
    at: usize,
}

impl<'a> Bits<'a> {
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The next `count` bits, at most 32; behind the end there are zeros.
    pub(super) fn peek(&self, count: u32) -> u32 {
        let rest = &self.bytes[(self.at / 8).min(self.bytes.len())..];
        let window = rest.first_chunk().map_or_else(|| short(rest), |bytes| u64::from_le_bytes(*bytes));
        (window >> (self.at % 8) & ((1 << count) - 1)) as u32
    }

    /// Passes over `count` bits.
    pub(super) fn skip(&mut self, count: u32) -> Result<(), Error> {
        self.at += count as usize;
        if self.at <= self.bytes.len() * 8 { Ok(()) } else { Err(super::broken()) }
    }

    pub(super) fn read(&mut self, count: u32) -> Result<u32, Error> {
        let bits = self.peek(count);
        self.skip(count)?;
        Ok(bits)
    }
}

/// Fewer than eight bytes.
fn short(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |window, byte| window << 8 | u64::from(*byte))
}
