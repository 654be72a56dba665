//! The formats of 256 numbers that scale their scales: Q4_K, Q5_K and Q6_K, taken apart into blocks of 32.
//!
//! A scale is a half times a small integer, so it is exact in single precision, and so is its product with a quantised
//! number: what is left is one rounding where a minimum is added, as in ggml's own definition.

use super::{Format, QUANT_BLOCK, half_at};

/// Numbers in a block of the formats here.
pub const SUPER_BLOCK: usize = 256;

/// Thirty-two numbers in a row of a super-block: number `i` is `scales[i / 16] * integers[i] + minimum`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    /// Quantised numbers: 0 to 15, 0 to 31, or -32 to 31.
    pub integers: [i8; QUANT_BLOCK],
    /// Of the first and of the last 16 numbers.
    pub scales: [f32; 2],
    /// Added to each.
    pub minimum: f32,
}

impl Part {
    /// Part `index`, 0 to 7, of a super-block.
    ///
    /// # Panics
    /// For other formats than Q4_K, Q5_K and Q6_K, and when `block` is not one of the format.
    #[must_use]
    pub fn of(format: Format, block: &[u8], index: usize) -> Part {
        assert!(block.len() == format.block_bytes() && index < SUPER_BLOCK / QUANT_BLOCK, "a part of a block");
        match format {
            Format::Q4K => with_minimum(block, index, |_| 0, &block[16..]),
            Format::Q5K => with_minimum(block, index, |i| block[16 + i] >> index & 1, &block[48..]),
            Format::Q6K => q6(block, index),
            other => panic!("{} has no super-blocks", other.name()),
        }
    }

    /// Writes the numbers.
    pub(super) fn numbers(&self, out: &mut [f32]) {
        for (i, (out, q)) in out.iter_mut().zip(self.integers).enumerate() {
            *out = self.scales[i / 16] * f32::from(q) + self.minimum;
        }
    }
}

/// Q4_K and Q5_K: two halves, twelve bytes of scales and minimums, then four bits a number; `fifth` has the fifth bit.
fn with_minimum(block: &[u8], index: usize, fifth: impl Fn(usize) -> u8, nibbles: &[u8]) -> Part {
    let (scale, minimum) = six_bits(&block[4..16], index);
    let integers = std::array::from_fn(|i| {
        let low = nibbles[index / 2 * 32 + i] >> (index % 2 * 4) & 15;
        (low | fifth(i) << 4).cast_signed()
    });
    let d = half_at(block, 0) * f32::from(scale);
    Part { integers, scales: [d, d], minimum: -(half_at(block, 2) * f32::from(minimum)) }
}

/// The scale and the minimum of part `index`, six bits each: the last four parts keep their high bits with the first.
fn six_bits(packed: &[u8], index: usize) -> (u8, u8) {
    if index < 4 {
        (packed[index] & 63, packed[index + 4] & 63)
    } else {
        let low = packed[index + 4];
        (low & 15 | packed[index - 4] >> 6 << 4, low >> 4 | packed[index] >> 6 << 4)
    }
}

/// Four bits a number, two more, a signed scale for every 16, and a half at the end.
fn q6(block: &[u8], index: usize) -> Part {
    let (half, quarter) = (index / 4, index % 4);
    let low = &block[half * 64 + quarter % 2 * 32..][..32];
    let high = &block[128 + half * 32..][..32];
    let integers = std::array::from_fn(|i| {
        let q = low[i] >> (quarter / 2 * 4) & 15 | (high[i] >> (2 * quarter) & 3) << 4;
        q.cast_signed() - 32
    });
    let d = half_at(block, 208);
    let scale = |i: usize| d * f32::from(block[192 + 2 * index + i].cast_signed());
    Part { integers, scales: [scale(0), scale(1)], minimum: 0.0 }
}
