//! Formats of tensors in model files, and the scalar truth of each: how its bytes become numbers.
//!
//! Nothing here is fast. Backends repack weights at load; what they compute from is checked against this module.

use half::{bf16, f16};

mod part;

pub use part::{Part, SUPER_BLOCK};

/// How a tensor's numbers are stored. Only formats that the engine computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a single.
    BF16,
    /// 32 numbers `d * (q - 8)`, q of 4 bits.
    Q4_0,
    /// 32 numbers `d * q + m`, q of 4 bits.
    Q4_1,
    /// 32 numbers `d * (q - 16)`, q of 5 bits.
    Q5_0,
    /// 32 numbers `d * q`, q a signed byte.
    Q8_0,
    /// 256 numbers `d * s * q - e * m`, q of 4 bits, s and m of 6 bits for every 32.
    Q4K,
    /// The same with q of 5 bits.
    Q5K,
    /// 256 numbers `d * s * (q - 32)`, q of 6 bits, s a signed byte for every 16.
    Q6K,
}

/// Numbers in a block of the plain quantised formats, and what the larger blocks of the others divide into.
pub const QUANT_BLOCK: usize = 32;

impl Format {
    /// The format that a GGUF file calls `id`; `None` for one that the engine does not compute with.
    #[must_use]
    pub fn from_ggml(id: u32) -> Option<Format> {
        Some(match id {
            0 => Format::F32,
            1 => Format::F16,
            2 => Format::Q4_0,
            3 => Format::Q4_1,
            6 => Format::Q5_0,
            8 => Format::Q8_0,
            12 => Format::Q4K,
            13 => Format::Q5K,
            14 => Format::Q6K,
            30 => Format::BF16,
            _ => return None,
        })
    }

    /// The number that GGUF files use for the format.
    #[must_use]
    pub const fn ggml(self) -> u32 {
        match self {
            Format::F32 => 0,
            Format::F16 => 1,
            Format::Q4_0 => 2,
            Format::Q4_1 => 3,
            Format::Q5_0 => 6,
            Format::Q8_0 => 8,
            Format::Q4K => 12,
            Format::Q5K => 13,
            Format::Q6K => 14,
            Format::BF16 => 30,
        }
    }

    /// Numbers in one block.
    #[must_use]
    pub const fn block_len(self) -> usize {
        match self {
            Format::F32 | Format::F16 | Format::BF16 => 1,
            Format::Q4_0 | Format::Q4_1 | Format::Q5_0 | Format::Q8_0 => QUANT_BLOCK,
            Format::Q4K | Format::Q5K | Format::Q6K => SUPER_BLOCK,
        }
    }

    /// Bytes of one block.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::F16 | Format::BF16 => 2,
            Format::Q4_0 => 2 + 16,
            Format::Q4_1 => 2 + 2 + 16,
            Format::Q5_0 => 2 + 4 + 16,
            Format::Q8_0 => 2 + 32,
            Format::Q4K => 2 + 2 + 12 + 128,
            Format::Q5K => 2 + 2 + 12 + 32 + 128,
            Format::Q6K => 128 + 64 + 16 + 2,
        }
    }

    /// The name that users know.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Format::F32 => "F32",
            Format::F16 => "F16",
            Format::BF16 => "BF16",
            Format::Q4_0 => "Q4_0",
            Format::Q4_1 => "Q4_1",
            Format::Q5_0 => "Q5_0",
            Format::Q8_0 => "Q8_0",
            Format::Q4K => "Q4_K",
            Format::Q5K => "Q5_K",
            Format::Q6K => "Q6_K",
        }
    }
}

/// Writes the numbers of `blocks` to `out`: the scalar truth of every format.
///
/// # Panics
/// When `blocks` does not hold exactly `out.len()` numbers; sizes are checked where a file is opened.
pub fn dequantise_row(format: Format, blocks: &[u8], out: &mut [f32]) {
    let (len, bytes) = (format.block_len(), format.block_bytes());
    assert_eq!(out.len() % len, 0, "{} rows hold whole blocks", format.name());
    assert_eq!(blocks.len(), out.len() / len * bytes, "a row of {} has its size", format.name());
    for (block, out) in blocks.chunks_exact(bytes).zip(out.chunks_exact_mut(len)) {
        match format {
            Format::F32 => out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
            Format::F16 => out[0] = half_at(block, 0),
            Format::BF16 => out[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32(),
            Format::Q4_0 | Format::Q4_1 | Format::Q5_0 | Format::Q8_0 | Format::Q4K | Format::Q5K | Format::Q6K => {
                for (index, out) in out.chunks_exact_mut(QUANT_BLOCK).enumerate() {
                    Part::of(format, block, index).numbers(out);
                }
            }
        }
    }
}

/// Rounds numbers to blocks of [`Format::Q8_0`]: the greatest of each becomes 127, or as near as a half-precision scale
/// allows.
///
/// # Panics
/// When the numbers are not whole blocks.
#[must_use]
pub fn quantise(numbers: &[f32]) -> Vec<u8> {
    let (blocks, rest) = numbers.as_chunks::<QUANT_BLOCK>();
    assert!(rest.is_empty(), "whole blocks");
    let mut bytes = Vec::with_capacity(blocks.len() * Format::Q8_0.block_bytes());
    for block in blocks {
        let size = block.iter().fold(0.0_f32, |size, x| size.max(x.abs()));
        let scale = f16::from_f32(size / 127.0);
        let inverse = if scale > f16::ZERO { 1.0 / scale.to_f32() } else { 0.0 };
        bytes.extend(scale.to_le_bytes());
        bytes.extend(block.map(|x| ((x * inverse).round_ties_even() as i8).max(-127).cast_unsigned()));
    }
    bytes
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(format: Format, blocks: &[u8]) -> Vec<f32> {
        let mut out = vec![0.0; blocks.len() / format.block_bytes() * format.block_len()];
        dequantise_row(format, blocks, &mut out);
        out
    }

    fn halves(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect()
    }

    #[test]
    fn what_is_rounded_is_near() {
        let numbers: Vec<f32> =
            (0..64).map(|i| ((i * 7919 % 997) as f32 - 498.0) * if i < 32 { 0.01 } else { 3.0 }).collect();
        let mut again = vec![0.0; 64];
        dequantise_row(Format::Q8_0, &quantise(&numbers), &mut again);
        for (block, again) in numbers.chunks(32).zip(again.chunks(32)) {
            let size = block.iter().fold(0.0_f32, |size, x| size.max(x.abs()));
            assert!(block.iter().zip(again).all(|(x, y)| (x - y).abs() <= size / 127.0 * 0.56), "{block:?} {again:?}");
        }
        // Too small for a scale of half precision, and too large for one.
        for size in [0.0, 1e-9, 1e30] {
            dequantise_row(Format::Q8_0, &quantise(&[size; 32]), &mut again[..32]);
            assert!(size > 1.0 || again[..32].iter().all(|x| *x == 0.0));
        }
    }

    #[test]
    fn plain_formats_are_numbers_one_by_one() {
        assert_eq!(row(Format::F32, &[0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0]), [1.0, -2.0]);
        assert_eq!(row(Format::F16, &halves(&[0.5, -3.0])), [0.5, -3.0]);
        assert_eq!(row(Format::BF16, &[0x80, 0x3f, 0x20, 0xc1]), [1.0, -10.0]);
    }

    #[test]
    fn q4_0_centres_on_eight() {
        let mut block = halves(&[0.5]);
        block.extend((0..16).map(|i| i | (15 - i) << 4));
        let out = row(Format::Q4_0, &block);
        assert_eq!((out[0], out[15]), (-4.0, 3.5));
        assert_eq!((out[16], out[31]), (3.5, -4.0));
    }

    #[test]
    fn q4_1_adds_its_minimum() {
        let mut block = halves(&[0.25, -1.0]);
        block.extend((0..16).map(|i| i | 3 << 4));
        let out = row(Format::Q4_1, &block);
        assert_eq!((out[0], out[8], out[15]), (-1.0, 1.0, 2.75));
        assert!(out[16..].iter().all(|v| *v == -0.25));
    }

    #[test]
    fn q5_0_takes_its_fifth_bits_from_the_mask() {
        let mut block = halves(&[2.0]);
        block.extend(0x8000_0001_u32.to_le_bytes());
        block.extend([0x21; 16]);
        let out = row(Format::Q5_0, &block);
        assert_eq!((out[0], out[1]), (2.0 * (17.0 - 16.0), 2.0 * (1.0 - 16.0)));
        assert_eq!((out[16], out[31]), (2.0 * (2.0 - 16.0), 2.0 * (18.0 - 16.0)));
    }

    #[test]
    fn q8_0_is_signed() {
        let mut block = halves(&[0.125]);
        block.extend((0..32).map(|i: u8| i.wrapping_mul(8)));
        let out = row(Format::Q8_0, &block);
        assert_eq!((out[1], out[15], out[16], out[31]), (1.0, 15.0, -16.0, -1.0));
    }

    #[test]
    fn unknown_formats_have_no_value() {
        assert_eq!(Format::from_ggml(3), Some(Format::Q4_1));
        assert_eq!(Format::from_ggml(10), None);
        for id in 0..64 {
            assert!(Format::from_ggml(id).is_none_or(|format| format.ggml() == id));
        }
    }

    /// `golden/quants.py` made the blocks and, with the Python package gguf, the numbers.
    #[test]
    fn super_blocks_are_the_references() {
        let golden = include_bytes!("../golden/quants.bin");
        let mut at = 0;
        for format in [Format::Q4K, Format::Q5K, Format::Q6K] {
            let blocks = &golden[at..][..8 * format.block_bytes()];
            at += blocks.len();
            let numbers = &golden[at..][..8 * SUPER_BLOCK * 4];
            at += numbers.len();
            let numbers: Vec<u32> = numbers.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
            let ours: Vec<u32> = row(format, blocks).iter().map(|x| (x + 0.0).to_bits()).collect();
            assert_eq!(ours, numbers, "{}", format.name());
        }
        assert_eq!(at, golden.len());
    }
}
