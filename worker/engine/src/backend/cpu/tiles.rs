//! Products of many rows by the matrix unit, cut for the threads.

use std::ops::Range;

use super::{Buf, Cpu, Packed, Weight};
use crate::Error;
use crate::backend::{Backend, Matrix, Weights};
use crate::pool::Strip;
use crate::quant::{Format, dequantise_row, quantise};
use crate::simd::Level;
use crate::simd::affine::Finish;
use crate::simd::brains::{Closeness, SIDE, Tiles, Unit, multiply, split};
use crate::simd::panel::BLOCK;

/// Brain floats of inputs that stay in the second-level cache while all weights pass them.
const BAND: usize = 512 << 10;

/// Rows for each thread up to which its share of them, whole squares, would be too unequal.
const FEW: usize = 4 * SIDE;

/// Inputs or outputs of a narrow matrix. With all of them on the unit EfficientNet-Lite0 was a tenth slower in f32.
const NARROW: usize = 128;

impl Cpu {
    /// Packs matrices for the unit; as ever where there is none.
    pub(super) fn pack_tiles(&mut self, parts: &[Matrix<'_>]) -> Result<Weight, Error> {
        if self.unit.is_none() {
            return self.pack(parts);
        }
        let inputs = parts.first().map_or(0, |part| part.columns);
        let plain = parts.iter().all(|part| part.format.block_len() == 1);
        let rounds = self.weights == Weights::Int8 && plain && inputs.is_multiple_of(BLOCK);
        let closeness = match rounds {
            true => Closeness::Coarse,
            false => parts.iter().map(|part| Closeness::of(part.format)).max().unwrap_or(Closeness::Near),
        };
        let outputs = parts.iter().map(outputs).sum();
        if !worthwhile((outputs, inputs), closeness) {
            return self.pack(parts);
        }
        let tiles = Tiles::pack(parts, closeness, |row| {
            if rounds {
                let rounded = quantise(row);
                dequantise_row(Format::Q8_0, &rounded, row);
            }
        })?;
        Ok(Weight { outputs: tiles.rows(), inputs, packed: Packed::Tiles(tiles) })
    }

    /// `out` becomes what follows the product. Many rows are cut into blocks, each of which one thread computes whole; of
    /// few, the outputs are cut.
    pub(super) fn by_tiles(&mut self, (x, tiles): (&Buf, &Tiles), then: Finish<'_>, out: &mut Buf) {
        let by = (self.unit.expect("tiles are packed for a unit"), self.level);
        let (rows, width, threads) = (x.rows, out.width, self.pool.threads());
        let numbers = out.begin_rows(rows);
        if rows == 0 {
            return;
        }
        if rows <= FEW * threads && threads > 1 {
            return self.by_outputs(by, (x, tiles), then, (numbers, width));
        }
        let most = (BAND / tiles.group()).max(1) * SIDE;
        self.blocks.cut_rows(rows, (most, SIDE), threads);
        let blocks = &self.blocks.rows;
        self.pool.tiles((numbers, width), (blocks, width, 1), &mut self.locals, |local, (block, _), strip| {
            let Range { start, end } = blocks[block];
            let x = &x.all()[start * x.width..end * x.width];
            multiply_rows(by, (x, &mut local.brains), (tiles, 0..tiles.rows()), then, strip);
        });
    }

    fn by_outputs(
        &mut self,
        by: (Unit, Level),
        (x, tiles): (&Buf, &Tiles),
        then: Finish<'_>,
        out: (&mut [f32], usize),
    ) {
        let (group, width) = (tiles.group(), tiles.columns());
        let all = x.rows.div_ceil(SIDE) * group;
        if self.brains.len() < all {
            self.brains.resize(all, 0);
        }
        let inputs = &mut self.brains[..all];
        self.pool.items((&mut *inputs, group), 1, &mut self.locals, |_, index, out| {
            let rows = index * SIDE..x.rows.min((index + 1) * SIDE);
            split(by.0, &x.all()[rows.start * width..rows.end * width], tiles, out);
        });
        self.pool.strips(out, SIDE, &mut self.locals, |_, range, strip| {
            multiply(by, inputs, (tiles, range.clone()), then.part(range), strip);
        });
    }
}

/// Output rows of a matrix.
fn outputs(part: &Matrix<'_>) -> usize {
    let row = part.columns / part.format.block_len() * part.format.block_bytes();
    part.data.len().checked_div(row).unwrap_or(0)
}

/// Whether the unit wins, even where other programs on its core leave it a quarter of its speed. More than one pass over a
/// narrow matrix does not: splitting its inputs takes as long.
fn worthwhile((outputs, inputs): (usize, usize), closeness: Closeness) -> bool {
    closeness == Closeness::Coarse || outputs.min(inputs) >= NARROW
}

/// Computes some outputs of the rows of `x`, as one thread does, whose own `room` is.
pub(super) fn multiply_rows(
    by: (Unit, Level),
    (x, room): (&[f32], &mut Vec<u16>),
    (tiles, outputs): (&Tiles, Range<usize>),
    then: Finish<'_>,
    out: &mut Strip<'_>,
) {
    let (group, all) = (tiles.group(), out.rows().div_ceil(SIDE) * tiles.group());
    if room.len() < all {
        room.resize(all, 0);
    }
    for (x, squares) in x.chunks(SIDE * tiles.columns()).zip(room.chunks_exact_mut(group)) {
        split(by.0, x, tiles, squares);
    }
    multiply(by, &room[..all], (tiles, outputs), then, out);
}
