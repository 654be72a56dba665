//! Quantised formats taken apart into 32 integers at a time, with what scales them.
//!
//! The formats of 256 numbers, Q4_K, Q5_K and Q6_K, scale their scales. Such a scale is a half times a small integer, so it
//! is exact in single precision, and so is its product with a quantised number: what is left is one rounding where a
//! minimum is added, as in ggml's own definition.

use super::{Format, QUANT_BLOCK, half_at};

/// Numbers in a super-block.
pub const SUPER_BLOCK: usize = 256;

/// Thirty-two numbers in a row of a quantised block: number `i` is `scales[i / 16] * integers[i] + minimum`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    /// Quantised numbers: 0 to 15 of four bits, 0 to 31 of Q5_K, -16 to 15 of Q5_0, -32 to 31 of Q6_K, else any.
    pub integers: [i8; QUANT_BLOCK],
    /// Of the first and of the last 16 numbers.
    pub scales: [f32; 2],
    /// Added to each.
    pub minimum: f32,
}

impl Part {
    /// Part `index` of a block: 0 of a plain one, 0 to 7 of a super-block.
    ///
    /// # Panics
    /// For formats that are not quantised, and when `block` is not one of the format.
    #[must_use]
    pub fn of(format: Format, block: &[u8], index: usize) -> Part {
        assert!(block.len() == format.block_bytes() && index < format.block_len() / QUANT_BLOCK, "a part of a block");
        match format {
            Format::Q4_0 => plain(nibbles(&block[2..]), half_at(block, 0), -8.0 * half_at(block, 0)),
            Format::Q4_1 => plain(nibbles(&block[4..]), half_at(block, 0), half_at(block, 2)),
            Format::Q5_0 => plain(q5(block), half_at(block, 0), 0.0),
            Format::Q8_0 => plain(std::array::from_fn(|i| block[2 + i].cast_signed()), half_at(block, 0), 0.0),
            Format::Q4K => with_minimum(block, index, |_| 0, &block[16..]),
            Format::Q5K => with_minimum(block, index, |i| block[16 + i] >> index & 1, &block[48..]),
            Format::Q6K => q6(block, index),
            Format::F32 | Format::F16 | Format::BF16 => panic!("{} is not quantised", format.name()),
        }
    }

    /// Writes the numbers.
    pub(super) fn numbers(&self, out: &mut [f32]) {
        for (i, (out, q)) in out.iter_mut().zip(self.integers).enumerate() {
            *out = self.scales[i / 16] * f32::from(q) + self.minimum;
        }
    }
}

fn plain(integers: [i8; QUANT_BLOCK], scale: f32, minimum: f32) -> Part {
    Part { integers, scales: [scale, scale], minimum }
}

/// Low nibbles are the first half of a block, high nibbles the second.
fn nibbles(bytes: &[u8]) -> [i8; QUANT_BLOCK] {
    std::array::from_fn(|i| (bytes[i % 16] >> (i / 16 * 4) & 15).cast_signed())
}

/// The integers of a Q5_0 block, -16 to 15; the fifth bits lie together behind the scale.
fn q5(block: &[u8]) -> [i8; QUANT_BLOCK] {
    let fifth = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    let low = nibbles(&block[6..]);
    std::array::from_fn(|i| low[i] + if fifth >> i & 1 == 1 { 0 } else { -16 })
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
