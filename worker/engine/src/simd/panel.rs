//! Weights as the kernels read them: panels of 16 output rows, blocks of 32 columns, the rows of a column side by side.
//!
//! Lanes are output rows, so no kernel ever adds across lanes. A block keeps the file's own integers and scales, so a
//! packed tensor is about as large as in its file, and every weight is exactly the file's.
//!
//! The formats of super-blocks multiply a half by a small integer to get the scale of 32 or 16 numbers. That product is
//! exact in single precision and in nothing shorter, so it is what a block here holds: 6 bits a number for Q4_K (4.5 in
//! the file), 10 for Q5_K (5.5) and Q6_K (6.6), whose integers take a byte so that no kernel puts bits together.

use half::{bf16, f16};

use super::LANES;
use super::arena::{Arena, Use};
use crate::Error;
use crate::backend::Matrix;
use crate::quant::{Format, Part, QUANT_BLOCK, SUPER_BLOCK};

/// Columns of a block, whatever the format.
pub const BLOCK: usize = QUANT_BLOCK;

/// How a packed block holds its numbers. Sizes are those of 16 rows by 32 columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// f16 `d` and `m` by row, then 4 groups of 16 words, each 8 columns of a row in 4 bits: `d * q + m`. The lower
    /// nibbles of a word's bytes are its first four columns, the upper ones the others.
    Nibbles,
    /// f16 `d` by row, then nibbles as above: `d * (q - 8)`.
    CentredNibbles,
    /// f16 `d` by row, then 8 groups of 16 words, each 4 columns of a row as signed bytes: `d * q`.
    Bytes,
    /// f32 `d` and `m` by row, then nibbles as above: `d * q + m`.
    WideNibbles,
    /// f32 `d` and `m` by row, then bytes as above: `d * q + m`.
    WideBytes,
    /// f32 `d` of the first and of the last 16 columns by row, then bytes as above: `d * q`.
    SplitBytes,
    /// 32 columns of 16 halves.
    Halves,
    /// 32 columns of 16 brain floats.
    Brains,
    /// 32 columns of 16 singles.
    Singles,
}

/// Every layout, each at its own number: kernels are compiled for a number, since they cannot be for an enum.
pub(super) const LAYOUTS: [Layout; 9] = [
    Layout::Nibbles,
    Layout::CentredNibbles,
    Layout::Bytes,
    Layout::WideNibbles,
    Layout::WideBytes,
    Layout::SplitBytes,
    Layout::Halves,
    Layout::Brains,
    Layout::Singles,
];

const _: () = {
    let mut number = 0;
    while number < LAYOUTS.len() {
        assert!(LAYOUTS[number] as usize == number, "a layout stands at its own number");
        number += 1;
    }
};

impl Layout {
    fn of(format: Format) -> Layout {
        match format {
            Format::Q4_1 => Layout::Nibbles,
            Format::Q4_0 => Layout::CentredNibbles,
            Format::Q5_0 | Format::Q8_0 => Layout::Bytes,
            Format::Q4K => Layout::WideNibbles,
            Format::Q5K => Layout::WideBytes,
            Format::Q6K => Layout::SplitBytes,
            Format::F16 => Layout::Halves,
            Format::BF16 => Layout::Brains,
            Format::F32 => Layout::Singles,
        }
    }

    /// Bytes before the integers.
    #[must_use]
    pub const fn scale_bytes(self) -> usize {
        match self {
            Layout::Nibbles => 4 * LANES,
            Layout::WideNibbles | Layout::WideBytes | Layout::SplitBytes => 8 * LANES,
            Layout::CentredNibbles | Layout::Bytes => 2 * LANES,
            Layout::Halves | Layout::Brains | Layout::Singles => 0,
        }
    }

    /// Whether every number stands for itself, so that a row may end inside a block.
    #[must_use]
    pub const fn is_plain(self) -> bool {
        matches!(self, Layout::Halves | Layout::Brains | Layout::Singles)
    }

    /// Whether integers are of four bits.
    #[must_use]
    pub const fn is_nibbles(self) -> bool {
        matches!(self, Layout::Nibbles | Layout::CentredNibbles | Layout::WideNibbles)
    }

    /// Bytes of a block.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        let body = match self {
            Layout::Nibbles | Layout::CentredNibbles | Layout::WideNibbles => LANES * BLOCK / 2,
            Layout::Bytes | Layout::WideBytes | Layout::SplitBytes => LANES * BLOCK,
            Layout::Halves | Layout::Brains => 2 * LANES * BLOCK,
            Layout::Singles => 4 * LANES * BLOCK,
        };
        self.scale_bytes() + body
    }
}

/// A packed matrix (rows, columns).
#[derive(Debug)]
pub struct Panels {
    layout: Layout,
    rows: usize,
    columns: usize,
    bytes: Arena<u8>,
}

/// Bytes that a matrix takes once it is packed: a little more than in its file, since the last panel is padded.
#[must_use]
pub fn packed_bytes(format: Format, columns: usize, rows: usize) -> usize {
    rows.div_ceil(LANES).saturating_mul(columns.div_ceil(BLOCK)).saturating_mul(Layout::of(format).block_bytes())
}

impl Panels {
    /// Packs a matrix as a model file holds it. Zeros fill the last block of plain formats.
    pub fn pack(matrix: &Matrix<'_>) -> Result<Panels, Error> {
        let Matrix { format, columns, data } = *matrix;
        let len = format.block_len();
        if columns == 0 || !columns.is_multiple_of(len) {
            return Err(Error::Unsupported(format!("a matrix of {columns} columns, not of whole blocks of {len}")));
        }
        let row_bytes = matrix.row_bytes();
        if !data.len().is_multiple_of(row_bytes) {
            return Err(Error::Malformed(format!("a matrix of {} bytes in rows of {row_bytes}", data.len())));
        }
        let rows = matrix.rows();
        let layout = Layout::of(format);
        let panel_bytes = columns.div_ceil(BLOCK) * layout.block_bytes();
        let mut bytes = Arena::zeroed(packed_bytes(format, columns, rows), Use::Dense)?;
        for (row, data) in data.chunks_exact(row_bytes).enumerate() {
            let panel = &mut bytes[row / LANES * panel_bytes..][..panel_bytes];
            pack_row(format, data, row % LANES, panel.chunks_exact_mut(layout.block_bytes()));
        }
        Ok(Panels { layout, rows, columns, bytes })
    }

    /// How blocks hold their numbers.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Output rows, without padding.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input columns.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Panels of 16 rows; the last may be padded with zeros.
    #[must_use]
    pub fn count(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// Bytes of one panel.
    #[must_use]
    pub fn panel_bytes(&self) -> usize {
        self.columns.div_ceil(BLOCK) * self.layout.block_bytes()
    }

    /// All panels, one after the other.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Writes the numbers of one row.
    ///
    /// # Panics
    /// When there is no such row, or `out` is not as wide as the matrix.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows && out.len() == self.columns, "a row of the matrix");
        let panel = &self.bytes[row / LANES * self.panel_bytes()..][..self.panel_bytes()];
        let blocks = panel.chunks_exact(self.layout.block_bytes());
        for (block, out) in blocks.zip(out.chunks_mut(BLOCK)) {
            read_block(self.layout, block, row % LANES, out);
        }
    }
}

fn pack_row<'a>(format: Format, data: &[u8], lane: usize, blocks: impl Iterator<Item = &'a mut [u8]>) {
    const PARTS: usize = SUPER_BLOCK / BLOCK;
    if format.block_len() == SUPER_BLOCK {
        for (index, block) in blocks.enumerate() {
            let source = &data[index / PARTS * format.block_bytes()..][..format.block_bytes()];
            pack_part(Layout::of(format), &Part::of(format, source, index % PARTS), lane, block);
        }
    } else {
        let source_bytes = BLOCK / format.block_len() * format.block_bytes();
        for (block, source) in blocks.zip(data.chunks(source_bytes)) {
            pack_block(format, source, lane, block);
        }
    }
}

fn pack_part(layout: Layout, part: &Part, lane: usize, block: &mut [u8]) {
    let second = if layout == Layout::SplitBytes { part.scales[1] } else { part.minimum };
    block[4 * lane..][..4].copy_from_slice(&part.scales[0].to_le_bytes());
    block[4 * (LANES + lane)..][..4].copy_from_slice(&second.to_le_bytes());
    let body = &mut block[layout.scale_bytes()..];
    let q = part.integers.map(i8::cast_unsigned);
    if layout == Layout::WideNibbles {
        let nibbles: [u8; BLOCK / 2] = std::array::from_fn(|i| q[i] | q[i + BLOCK / 2] << 4);
        pack_nibbles(&nibbles, lane, body);
    } else {
        for (column, q) in q.into_iter().enumerate() {
            body[byte_at(column, lane)] = q;
        }
    }
}

fn pack_block(format: Format, source: &[u8], lane: usize, block: &mut [u8]) {
    match format {
        Format::Q4_0 => {
            block[2 * lane..][..2].copy_from_slice(&source[..2]);
            pack_nibbles(&source[2..], lane, &mut block[2 * LANES..]);
        }
        Format::Q4_1 => {
            block[2 * lane..][..2].copy_from_slice(&source[..2]);
            block[2 * (LANES + lane)..][..2].copy_from_slice(&source[2..4]);
            pack_nibbles(&source[4..], lane, &mut block[4 * LANES..]);
        }
        Format::Q5_0 | Format::Q8_0 => {
            block[2 * lane..][..2].copy_from_slice(&source[..2]);
            for (column, q) in Part::of(format, source, 0).integers.into_iter().enumerate() {
                block[2 * LANES + byte_at(column, lane)] = q.cast_unsigned();
            }
        }
        Format::F32 | Format::F16 | Format::BF16 => {
            let size = format.block_bytes();
            for (column, number) in source.chunks_exact(size).enumerate() {
                block[(column * LANES + lane) * size..][..size].copy_from_slice(number);
            }
        }
        Format::Q4K | Format::Q5K | Format::Q6K => unreachable!("packed by parts"),
    }
}

/// Where a block's byte of a row stands: four columns to a little-endian word, the words of 16 rows side by side.
pub(super) fn byte_at(column: usize, lane: usize) -> usize {
    (column / 4 * LANES + lane) * 4 + column % 4
}

/// Eight columns to a little-endian word; the words of 16 rows side by side.
fn pack_nibbles(source: &[u8], lane: usize, body: &mut [u8]) {
    for group in 0..4 {
        let (first, others) = source[group % 2 * 8..][..8].split_at(4);
        let shift = group / 2 * 4;
        let word = &mut body[(group * LANES + lane) * 4..][..4];
        for (byte, (first, other)) in word.iter_mut().zip(first.iter().zip(others)) {
            *byte = (first >> shift & 15) | (other >> shift & 15) << 4;
        }
    }
}

fn read_block(layout: Layout, block: &[u8], lane: usize, out: &mut [f32]) {
    let half = |at: usize| f16::from_le_bytes([block[2 * at], block[2 * at + 1]]).to_f32();
    let single = |at: usize| f32::from_le_bytes(block[4 * at..][..4].try_into().expect("four bytes"));
    let body = &block[layout.scale_bytes()..];
    let byte = |column: usize| f32::from(body[byte_at(column, lane)].cast_signed());
    let nibble = |column: usize| {
        let byte = body[(column / 8 * LANES + lane) * 4 + column % 4];
        f32::from(byte >> (column % 8 / 4 * 4) & 15)
    };
    for (column, out) in out.iter_mut().enumerate() {
        let at = column * LANES + lane;
        *out = match layout {
            Layout::Nibbles => half(lane) * nibble(column) + half(LANES + lane),
            Layout::CentredNibbles => half(lane) * (nibble(column) - 8.0),
            Layout::Bytes => half(lane) * byte(column),
            Layout::WideNibbles => single(lane) * nibble(column) + single(LANES + lane),
            Layout::WideBytes => single(lane) * byte(column) + single(LANES + lane),
            Layout::SplitBytes => single(column / (BLOCK / 2) * LANES + lane) * byte(column),
            Layout::Halves => half(at),
            Layout::Brains => bf16::from_le_bytes([body[2 * at], body[2 * at + 1]]).to_f32(),
            Layout::Singles => f32::from_le_bytes(body[4 * at..][..4].try_into().expect("four bytes")),
        };
    }
}
