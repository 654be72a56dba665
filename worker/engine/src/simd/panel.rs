//! Weights as the kernels read them: panels of 16 output rows, blocks of 32 columns, the rows of a column side by side.
//!
//! Lanes are output rows, so no kernel ever adds across lanes. A block keeps the file's own integers and scales, so a
//! packed tensor is about as large as in its file, and every weight is exactly the file's.

use half::f16;

use super::LANES;
use super::arena::{Arena, Use};
use crate::Error;
use crate::quant::{Format, QUANT_BLOCK, dequantise_row, q5_integers};

/// Columns of a block, whatever the format.
pub const BLOCK: usize = QUANT_BLOCK;

/// How a packed block holds its numbers. Sizes are those of 16 rows by 32 columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// f16 `d` and `m` by row, then 4 groups of 16 words, each 8 columns of a row in 4 bits: `d * q + m`.
    Nibbles,
    /// f16 `d` by row, then nibbles as above: `d * (q - 8)`.
    CentredNibbles,
    /// f16 `d` by row, then 32 columns of 16 signed bytes: `d * q`.
    Bytes,
    /// 32 columns of 16 halves.
    Halves,
    /// 32 columns of 16 brain floats.
    Brains,
    /// 32 columns of 16 singles.
    Singles,
}

impl Layout {
    fn of(format: Format) -> Layout {
        match format {
            Format::Q4_1 => Layout::Nibbles,
            Format::Q4_0 => Layout::CentredNibbles,
            Format::Q5_0 | Format::Q8_0 => Layout::Bytes,
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
            Layout::CentredNibbles | Layout::Bytes => 2 * LANES,
            Layout::Halves | Layout::Brains | Layout::Singles => 0,
        }
    }

    /// Bytes of a block.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        let body = match self {
            Layout::Nibbles | Layout::CentredNibbles => LANES * BLOCK / 2,
            Layout::Bytes => LANES * BLOCK,
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
    /// Packs a matrix of `columns`-wide rows as a model file holds it.
    pub fn pack(format: Format, columns: usize, data: &[u8]) -> Result<Panels, Error> {
        if columns == 0 || !columns.is_multiple_of(BLOCK) {
            return Err(Error::Unsupported(format!("a matrix of {columns} columns, not a multiple of {BLOCK}")));
        }
        let row_bytes = columns / format.block_len() * format.block_bytes();
        if !data.len().is_multiple_of(row_bytes) {
            return Err(Error::Malformed(format!("a matrix of {} bytes in rows of {row_bytes}", data.len())));
        }
        let rows = data.len() / row_bytes;
        let layout = Layout::of(format);
        let panel_bytes = columns / BLOCK * layout.block_bytes();
        let mut bytes = Arena::zeroed(packed_bytes(format, columns, rows), Use::Dense)?;
        let source_bytes = BLOCK / format.block_len() * format.block_bytes();
        for (row, data) in data.chunks_exact(row_bytes).enumerate() {
            let panel = &mut bytes[row / LANES * panel_bytes..][..panel_bytes];
            let blocks = panel.chunks_exact_mut(layout.block_bytes());
            for (block, source) in blocks.zip(data.chunks_exact(source_bytes)) {
                pack_block(format, source, row % LANES, block);
            }
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
        self.columns / BLOCK * self.layout.block_bytes()
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
        for (block, out) in blocks.zip(out.chunks_exact_mut(BLOCK)) {
            read_block(self.layout, block, row % LANES, out);
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
            let integers: [i8; BLOCK] = match format {
                Format::Q5_0 => q5_integers(source),
                _ => std::array::from_fn(|i| source[2 + i].cast_signed()),
            };
            for (column, q) in integers.into_iter().enumerate() {
                block[2 * LANES + column * LANES + lane] = q.cast_unsigned();
            }
        }
        Format::F32 | Format::F16 | Format::BF16 => {
            let size = format.block_bytes();
            for (column, number) in source.chunks_exact(size).enumerate() {
                block[(column * LANES + lane) * size..][..size].copy_from_slice(number);
            }
        }
    }
}

/// Eight columns to a little-endian word; the words of 16 rows side by side.
fn pack_nibbles(source: &[u8], lane: usize, body: &mut [u8]) {
    for group in 0..4 {
        let from = &source[group % 2 * 8..][..8];
        let shift = group / 2 * 4;
        let word = &mut body[(group * LANES + lane) * 4..][..4];
        for (byte, pair) in word.iter_mut().zip(from.chunks_exact(2)) {
            *byte = (pair[0] >> shift & 15) | (pair[1] >> shift & 15) << 4;
        }
    }
}

fn read_block(layout: Layout, block: &[u8], lane: usize, out: &mut [f32]) {
    let half = |at: usize| f16::from_le_bytes([block[2 * at], block[2 * at + 1]]).to_f32();
    let body = &block[layout.scale_bytes()..];
    let nibble = |column: usize| {
        let byte = body[(column / 8 * LANES + lane) * 4 + column % 8 / 2];
        f32::from(byte >> (column % 2 * 4) & 15)
    };
    for (column, out) in out.iter_mut().enumerate() {
        let at = column * LANES + lane;
        *out = match layout {
            Layout::Nibbles => half(lane) * nibble(column) + half(LANES + lane),
            Layout::CentredNibbles => half(lane) * (nibble(column) - 8.0),
            Layout::Bytes => half(lane) * f32::from(body[at].cast_signed()),
            Layout::Halves => half(at),
            Layout::Brains => read_plain(Format::BF16, &body[2 * at..][..2]),
            Layout::Singles => read_plain(Format::F32, &body[4 * at..][..4]),
        };
    }
}

fn read_plain(format: Format, bytes: &[u8]) -> f32 {
    let mut out = [0.0];
    dequantise_row(format, bytes, &mut out);
    out[0]
}
