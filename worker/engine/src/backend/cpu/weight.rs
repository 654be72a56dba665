//! Packed matrices: what their products read, and the products.

use std::ops::Range;

use super::LANES;
use super::inputs::{Coded, Form, Inputs};
use crate::backend::Activations;
use crate::pool::Strip;
use crate::simd::affine::Finish;
use crate::simd::brains::{Closeness, SIDE, Shape, Tiles, Unit};
use crate::simd::bytes::Bytes;
use crate::simd::digits::Rounding;
use crate::simd::linear::{BAND_ROWS, Input, Scratch};
use crate::simd::panel::{BLOCK, Panels};
use crate::simd::{Level, brains, bytes, integer, linear};

/// Lines of inputs that stay in the second-level cache while all weights pass them.
const BAND: usize = 16 << 10;
/// What bands are a multiple of, so that tiles are whole.
const TILE_ROWS: usize = 8;
/// Rows from which on each thread has enough for good tiles.
const MANY_ROWS: usize = 96;
/// Rows for each thread up to which its share of them, whole squares, would be too unequal.
const FEW_SQUARES: usize = 4 * SIDE;

/// Matrices of equal inputs, packed.
#[derive(Debug)]
pub struct Weight {
    pub(super) packed: Packed,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
}

/// How weights lie.
#[derive(Debug)]
pub(super) enum Packed {
    /// For vector registers, each matrix by itself.
    Panels(Vec<Panels>),
    /// For vector registers, whole rows of bytes.
    Bytes(Bytes),
    /// For the matrix unit.
    Tiles(Unit, Tiles),
}

impl Weight {
    /// Its only matrix, whose rows are gathered.
    pub(super) fn table(&self) -> &Panels {
        let Packed::Panels(panels) = &self.packed else { panic!("a table lies in panels") };
        let [panels] = panels.as_slice() else { panic!("a table is one matrix") };
        panels
    }

    /// What its products read where inputs of integers are held as `activations` says.
    pub(super) fn form(&self, activations: Activations) -> Form<'_> {
        match &self.packed {
            Packed::Panels(_) => match (activations.rounding(), self.digits_of_row(activations)) {
                (Some(rounding), of_row @ 1..) => Form::Digits(rounding, of_row),
                _ => Form::Numbers,
            },
            Packed::Bytes(bytes) => Form::Cells(bytes),
            Packed::Tiles(unit, tiles) => Form::Brains(*unit, tiles.shape()),
        }
    }

    /// What a unit reads of rows of prompts; none where the weights are numbers that it would round.
    pub(super) fn form_by(&self, unit: Unit) -> Option<Form<'_>> {
        let Packed::Panels(parts) = &self.packed else { return None };
        let integers = parts.iter().all(|part| !part.layout().is_plain());
        integers.then_some(Form::Brains(unit, Shape { columns: self.inputs, closeness: Closeness::Coarse }))
    }

    /// Digits of a row as wide as its inputs; none where no part of it is of integers, or inputs stay as they are.
    pub(super) fn digits_of_row(&self, activations: Activations) -> usize {
        let Packed::Panels(parts) = &self.packed else { return 0 };
        let integers = parts.iter().any(|part| !part.layout().is_plain());
        if integers { self.inputs / BLOCK * activations.rounding().map_or(0, Rounding::planes) } else { 0 }
    }

    /// Whether a product of so many rows is better cut by rows than by outputs.
    pub(super) fn cuts_rows(&self, rows: usize, threads: usize) -> bool {
        match &self.packed {
            Packed::Panels(_) | Packed::Bytes(_) => rows >= MANY_ROWS,
            Packed::Tiles(..) => rows > FEW_SQUARES * threads || threads == 1,
        }
    }

    /// Rows that are best computed together, at most, and what their number is a multiple of.
    pub(super) fn block(&self) -> (usize, usize) {
        match &self.packed {
            Packed::Panels(_) | Packed::Bytes(_) => (BAND_ROWS, TILE_ROWS),
            Packed::Tiles(_, tiles) => ((BAND / tiles.shape().group()).max(1) * SIDE, SIDE),
        }
    }

    /// Outputs that are best computed together: whole tiles of a product.
    pub(super) fn strip(&self, inputs: Inputs<'_>) -> usize {
        match (&self.packed, inputs.coded) {
            (Packed::Panels(_), Coded::Digits(_)) => integer::STRIP_UNIT,
            (Packed::Panels(_) | Packed::Tiles(..), Coded::Brains(..)) => SIDE,
            (Packed::Panels(_), _) => linear::STRIP_UNIT,
            (Packed::Bytes(_), _) => bytes::STRIP_UNIT,
            (Packed::Tiles(..), coded) => unreachable!("inputs are made for the weight: {coded:?}"),
        }
    }

    /// Writes the outputs `range` of a product, and what follows it, to a strip that has just these.
    pub(super) fn multiply(
        &self,
        level: Level,
        inputs: Inputs<'_>,
        (range, then): (Range<usize>, Finish<'_>),
        (strip, scratch): (&mut Strip<'_>, &mut Scratch),
    ) {
        let then = then.part(range.clone());
        match (&self.packed, inputs.coded) {
            (Packed::Panels(parts), _) => panels(level, inputs, (parts, range, then), (strip, scratch)),
            (Packed::Bytes(weights), Coded::Cells(cells)) => {
                bytes::multiply(level, cells, (weights, range), then, strip)
            }
            (Packed::Tiles(_, tiles), Coded::Brains(unit, squares)) => {
                brains::multiply((unit, level), squares, (tiles, range), then, strip);
            }
            (_, coded) => unreachable!("inputs are made for the weight: {coded:?}"),
        }
    }
}

/// Some outputs of matrices side by side, and what follows them.
fn panels(
    level: Level,
    inputs: Inputs<'_>,
    (parts, range, then): (&[Panels], Range<usize>, Finish<'_>),
    (strip, scratch): (&mut Strip<'_>, &mut Scratch),
) {
    let mut first = 0;
    for part in parts {
        let (from, to) = (range.start.max(first), range.end.min(first + part.rows()));
        if from < to {
            let panels = (from - first) / LANES..(to - first).div_ceil(LANES);
            let columns = from - range.start..to - range.start;
            let (then, mut out) = (then.part(columns.clone()), strip.part(columns));
            match inputs.coded {
                Coded::Brains(unit, squares) => {
                    brains::multiply_panels((unit, level), squares, (part, panels), (then, &mut out), scratch);
                }
                Coded::Digits(digits) if !part.layout().is_plain() => {
                    let digits = (digits, inputs.rows);
                    integer::multiply(level, digits, (part, panels), (then, &mut out), scratch);
                }
                _ => {
                    let input = Input { x: inputs.x, rows: inputs.rows };
                    linear::multiply(level, input, (part, panels), (then, &mut out), scratch);
                }
            }
        }
        first += part.rows();
    }
}
