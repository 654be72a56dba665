//! The integers of quantised files, laid out for products of few rows, which are as fast as their weights are read.
//!
//! They lie as `kernels/stream.cuh` says: in units of 8 rows and 64 columns, lane by lane.

use std::sync::Arc;

use half::f16;

use super::buffer::CHUNK;
use crate::Error;
use crate::backend::{Matrix, StoredRow, stored_rows};
use crate::cuda::{Address, Gpu, Memory};
use crate::fixture::Noise;
use crate::quant::{Format, Part, QUANT_BLOCK};

/// Rows and columns of a unit, and its blocks of each row.
const ROWS: usize = 8;
const COLUMNS: usize = 64;
const BLOCKS: usize = COLUMNS / QUANT_BLOCK;
/// Bytes of a row's scales and minima in a unit.
const SCALES: usize = BLOCKS * 2 * size_of::<u16>();
/// Rows of noise that are not the same.
const NOISE: usize = 1024;
/// Columns of a block that a lane multiplies.
const PIECE: usize = 8;

/// How many bits an integer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    /// 0 to 15.
    Nibbles,
    /// A signed byte.
    Bytes,
}

/// A matrix as integers, each block of a row with its scale and minimum.
pub(super) struct Integers {
    memory: Memory,
    pub(super) width: Width,
}

impl Integers {
    /// The same numbers as `parts`, side by side; none where integers would not be as near to them as bf16 is.
    pub(super) fn pack(gpu: &Arc<dyn Gpu>, parts: &[Matrix<'_>]) -> Result<Option<Integers>, Error> {
        let (Some(width), Some(columns)) = (common_width(parts), parts.first().map(|part| part.columns)) else {
            return Ok(None);
        };
        let rows: Vec<_> = stored_rows(parts).collect();
        let group = columns.div_ceil(COLUMNS) * width.unit_bytes();
        let memory = Memory::new(gpu, rows.len().div_ceil(ROWS) * group)?;
        let mut to = memory.address();
        for rows in rows.chunks((CHUNK / group).max(1) * ROWS) {
            let Some(bytes) = units(width, rows, columns) else { return Ok(None) };
            gpu.upload(&bytes, to)?;
            to = to.plus(bytes.len());
        }
        Ok(Some(Integers { memory, width }))
    }

    /// Noise of a format, the same units over and over; none of a format whose integers are not kept.
    pub(super) fn noise(gpu: &Arc<dyn Gpu>, format: Format, shape: (usize, usize)) -> Result<Option<Integers>, Error> {
        let (Some(width), (rows, columns)) = (width_of(format), shape) else { return Ok(None) };
        let columns_each = COLUMNS.max(format.block_len());
        let data = Noise(rows as u64).matrix(format, NOISE, columns_each);
        let matrix = Matrix { format, columns: columns_each, data: &data };
        let Some(some) = units(width, &stored_rows(&[matrix]).collect::<Vec<_>>(), columns_each) else {
            return Ok(None);
        };
        let memory = Memory::new(gpu, rows.div_ceil(ROWS) * columns.div_ceil(COLUMNS) * width.unit_bytes())?;
        let (first, all) = (memory.address(), memory.bytes());
        let mut filled = some.len().min(all);
        gpu.upload(&some[..filled], first)?;
        while filled < all {
            let more = filled.min(all - filled);
            gpu.copy(first, first.plus(filled), more)?;
            filled += more;
        }
        Ok(Some(Integers { memory, width }))
    }

    pub(super) fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    pub(super) fn address(&self) -> Address {
        self.memory.address()
    }
}

/// What the integers of a matrix take, if they are kept.
pub(crate) fn integers_bytes(format: Format, rows: u64, columns: u64) -> u64 {
    let units = rows.div_ceil(ROWS as u64).saturating_mul(columns.div_ceil(COLUMNS as u64));
    width_of(format).map_or(0, |width| units.saturating_mul(width.unit_bytes() as u64))
}

impl Width {
    const fn row_bytes(self) -> usize {
        match self {
            Width::Nibbles => COLUMNS / 2,
            Width::Bytes => COLUMNS,
        }
    }

    const fn unit_bytes(self) -> usize {
        ROWS * (self.row_bytes() + SCALES)
    }
}

/// The fewest bits that hold a format's integers; none where a block has not one scale.
fn width_of(format: Format) -> Option<Width> {
    match format {
        Format::Q4_0 | Format::Q4_1 | Format::Q4K => Some(Width::Nibbles),
        Format::Q5_0 | Format::Q8_0 | Format::Q5K => Some(Width::Bytes),
        Format::F32 | Format::F16 | Format::BF16 | Format::Q6K => None,
    }
}

fn common_width(parts: &[Matrix<'_>]) -> Option<Width> {
    let widths = parts.iter().map(|part| width_of(part.format));
    widths.reduce(|all, part| if all? == part? { all } else { Some(Width::Bytes) }).flatten()
}

/// The units of rows, the first of which begins a group; none where a block has no place in them.
fn units(width: Width, rows: &[StoredRow<'_>], columns: usize) -> Option<Vec<u8>> {
    let of_group = columns.div_ceil(COLUMNS);
    let mut bytes = vec![0; rows.len().div_ceil(ROWS) * of_group * width.unit_bytes()];
    for (row, (format, data)) in rows.iter().enumerate() {
        let parts = data.chunks_exact(format.block_bytes()).flat_map(|block| parts_of(*format, block));
        for (at, part) in parts.enumerate() {
            let unit = row / ROWS * of_group + at / BLOCKS;
            let unit = &mut bytes[unit * width.unit_bytes()..][..width.unit_bytes()];
            put(&part, width, unit, (row % ROWS, at % BLOCKS))?;
        }
    }
    Some(bytes)
}

/// The parts that a format's block consists of.
fn parts_of(format: Format, block: &[u8]) -> impl Iterator<Item = Part> + '_ {
    (0..format.block_len() / QUANT_BLOCK).map(move |index| Part::of(format, block, index))
}

/// Writes a part of one scale to its unit; none where half precision is too far from its scale or minimum.
fn put(part: &Part, width: Width, unit: &mut [u8], (row, half): (usize, usize)) -> Option<()> {
    let (integers, scales) = unit.split_at_mut(ROWS * width.row_bytes());
    let lane = width.row_bytes() / (QUANT_BLOCK / PIECE);
    for (piece, numbers) in part.integers.as_chunks::<PIECE>().0.iter().enumerate() {
        let at = (row * (QUANT_BLOCK / PIECE) + piece) * lane + half * lane / BLOCKS;
        match width {
            Width::Nibbles => integers[at..][..4].copy_from_slice(&word_of_nibbles(numbers).to_le_bytes()),
            Width::Bytes => integers[at..][..8].copy_from_slice(&words_of_bytes(numbers)),
        }
    }
    let at = row * SCALES + half * 2 * size_of::<u16>();
    scales[at..][..2].copy_from_slice(&near(part.scales[0])?.to_le_bytes());
    scales[at + 2..][..2].copy_from_slice(&near(part.minimum)?.to_le_bytes());
    Some(())
}

/// Numbers 2i and 2i + 1 at bits 4i and 16 + 4i.
fn word_of_nibbles(numbers: &[i8; PIECE]) -> u32 {
    let nibble = |(i, number): (usize, &i8)| u32::from(number.cast_unsigned()) << (i / 2 * 4 + i % 2 * 16);
    numbers.iter().enumerate().map(nibble).fold(0, |word, nibble| word | nibble)
}

/// Of each four the second and the third change places.
fn words_of_bytes(numbers: &[i8; PIECE]) -> [u8; PIECE] {
    [0, 2, 1, 3, 4, 6, 5, 7].map(|i: usize| numbers[i].cast_unsigned())
}

/// In half precision, where that is as near as bf16 would be.
fn near(x: f32) -> Option<f16> {
    let half = f16::from_f32(x);
    ((half.to_f32() - x).abs() <= x.abs() / 256.0).then_some(half)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::dequantise_row;

    /// Reads a unit as lanes do.
    fn number(width: Width, unit: &[u8], row: usize, column: usize) -> f32 {
        let (half, piece, i) = (column / QUANT_BLOCK, column % QUANT_BLOCK / PIECE, column % PIECE);
        let lane = row * 4 + piece;
        let integer = match width {
            Width::Nibbles => unit[lane * 8 + half * 4 + i % 2 * 2 + i / 4] >> (i / 2 % 2 * 4) & 15,
            Width::Bytes => unit[lane * 16 + half * 8 + i / 4 * 4 + i / 2 % 2 + i % 2 * 2],
        };
        let at = ROWS * width.row_bytes() + row * SCALES + half * 4;
        let half = |at: usize| f16::from_le_bytes([unit[at], unit[at + 1]]).to_f32();
        f32::from(integer.cast_signed()) * half(at) + half(at + 2)
    }

    #[test]
    fn units_hold_the_numbers_of_their_formats() {
        let mut noise = Noise(5);
        for (format, width) in [
            (Format::Q4_0, Width::Nibbles),
            (Format::Q4_1, Width::Nibbles),
            (Format::Q4K, Width::Nibbles),
            (Format::Q5_0, Width::Bytes),
            (Format::Q8_0, Width::Bytes),
            (Format::Q5K, Width::Bytes),
        ] {
            let (rows, columns) = (11, 3 * format.block_len());
            let data = noise.matrix(format, rows, columns);
            let matrix = Matrix { format, columns, data: &data };
            assert_eq!(common_width(&[matrix]), Some(width));
            let bytes =
                units(width, &stored_rows(&[matrix]).collect::<Vec<_>>(), columns).expect("scales of half precision");
            assert_eq!(bytes.len() as u64, integers_bytes(format, rows as u64, columns as u64));
            let mut truth = vec![0.0; rows * columns];
            dequantise_row(format, &data, &mut truth);
            for (at, truth) in truth.iter().enumerate() {
                let (row, column) = (at / columns, at % columns);
                let unit = row / ROWS * columns.div_ceil(COLUMNS) + column / COLUMNS;
                let unit = &bytes[unit * width.unit_bytes()..][..width.unit_bytes()];
                let got = number(width, unit, row % ROWS, column % COLUMNS);
                // Scales of super-blocks are rounded to half precision.
                let allowed = if format.block_len() > QUANT_BLOCK { 7e-3 } else { 1e-6 };
                assert!((got - truth).abs() <= allowed, "{format:?} ({row}, {column}): {got} for {truth}");
            }
        }
    }

    #[test]
    fn what_has_no_scale_that_is_near_stays_as_it_is() {
        let matrix = |format, data| Matrix { format, columns: 32, data };
        let singles = [0; 128];
        assert_eq!(common_width(&[matrix(Format::F32, &singles)]), None);
        let mut block = [0_u8; 18];
        block[..2].copy_from_slice(&f16::from_f32(9000.0).to_le_bytes());
        let large = matrix(Format::Q4_0, &block);
        assert!(
            units(Width::Nibbles, &stored_rows(&[large]).collect::<Vec<_>>(), 32).is_none(),
            "eight times its scale is beyond half precision"
        );
        let bytes = [0; 34];
        assert_eq!(common_width(&[large, matrix(Format::Q8_0, &bytes)]), Some(Width::Bytes));
        assert_eq!(common_width(&[large, matrix(Format::F32, &singles)]), None);
    }
}
