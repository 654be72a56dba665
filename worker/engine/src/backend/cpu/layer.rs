//! A product and what follows it, as one thread computes it over rows of its own.

use std::ops::Range;

use super::{Buf, Cpu, Inputs, Local, Packed, Weight, tiles};
use crate::backend::dense::Activation;
use crate::pool::Strip;
use crate::simd::affine::Finish;
use crate::simd::brains::{SIDE, Unit};
use crate::simd::digits::{Digits, Planes, digitise};
use crate::simd::linear::STRIP_UNIT;
use crate::simd::tile::Begin;
use crate::simd::{Level, affine};

/// Rows that are computed at a time, at most: their numbers stay near from the one step to the next.
pub(super) const LAYER_ROWS: usize = 48;

/// The same for the matrix unit, which goes through weights faster than they come.
const UNIT_ROWS: usize = 256;

/// What parts are a multiple of, so that tiles are whole.
pub(super) const TILE_ROWS: usize = 8;

/// `activation(x * weight^T + bias)`.
#[derive(Clone, Copy)]
pub(super) struct Layer<'a> {
    level: Level,
    weight: &'a Weight,
    bias: &'a [f32],
    activation: Activation,
    /// How inputs are rounded, and digits of a row; none where they stay as they are.
    rounding: Option<(Planes, usize)>,
    unit: Option<Unit>,
}

impl Cpu {
    pub(super) fn layer<'a>(&self, (weight, bias): (&'a Weight, &'a Buf), activation: Activation) -> Layer<'a> {
        let digits = self.digits_of_row(weight.panels());
        let rounding = self.activations.planes().filter(|_| digits > 0).map(|planes| (planes, digits));
        Layer { level: self.level, weight, bias: bias.row(0), activation, rounding, unit: self.unit }
    }
}

impl Layer<'_> {
    pub(super) fn outputs(&self) -> usize {
        self.weight.outputs
    }

    /// Rows that are best made and computed together, at most, and what their number is a multiple of.
    pub(super) fn block(&self) -> (usize, usize) {
        match &self.weight.packed {
            Packed::Panels(_) => (LAYER_ROWS, TILE_ROWS),
            Packed::Tiles(_) => (UNIT_ROWS, SIDE),
        }
    }

    /// Outputs that are best computed together: whole tiles of a product, near enough to each other that reading a row of
    /// one group of them is reading ahead for the next.
    pub(super) fn strip(&self) -> usize {
        match &self.weight.packed {
            Packed::Panels(_) => STRIP_UNIT,
            Packed::Tiles(_) => 2 * SIDE,
        }
    }

    /// Computes the rows of `x`, one after the other, to those of `out`.
    pub(super) fn run(&self, x: &[f32], (begin, out): (Begin, &mut Strip<'_>), local: &mut Local) {
        self.run_some(x, (0..self.outputs(), begin), out, local);
    }

    /// Computes some outputs of the rows of `x` to a strip that has just these.
    pub(super) fn run_some(
        &self,
        x: &[f32],
        (outputs, begin): (Range<usize>, Begin),
        out: &mut Strip<'_>,
        local: &mut Local,
    ) {
        let (rows, inputs) = (out.rows(), self.weight.inputs);
        assert_eq!(x.len(), rows * inputs, "rows of inputs");
        if let Packed::Tiles(tiles) = &self.weight.packed {
            let then = Finish { begin, bias: &self.bias[outputs.clone()], activation: self.activation };
            let by = (self.unit.expect("tiles are packed for a unit"), self.level);
            return tiles::multiply_rows(by, (x, &mut local.brains), (tiles, outputs), then, out);
        }
        let size = rows.div_ceil(rows.div_ceil(LAYER_ROWS).max(1)).next_multiple_of(TILE_ROWS).max(1);
        for first in (0..rows).step_by(size) {
            let band = first..rows.min(first + size);
            let x = &x[band.start * inputs..band.end * inputs];
            let digits = self.digits(x, &mut local.digits);
            let mut out = out.band(band);
            let inputs = Inputs { x, digits, rows: out.rows() };
            self.weight.multiply(self.level, inputs, (outputs.clone(), begin), (&mut out, &mut local.scratch));
            affine::bias(self.level, &self.bias[outputs.clone()], self.activation, &mut out);
        }
    }

    fn digits<'d>(&self, x: &[f32], room: &'d mut Vec<Digits>) -> &'d [Digits] {
        let Some((planes, of_row)) = self.rounding else { return &[] };
        let all = x.len() / self.weight.inputs * of_row;
        if all > room.len() {
            room.resize(all, Digits::ZERO);
        }
        for (x, out) in x.chunks_exact(self.weight.inputs).zip(room.chunks_exact_mut(of_row)) {
            digitise(self.level, x, planes, out);
        }
        &room[..all]
    }
}
