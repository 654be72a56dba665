//! A product and what follows it, as one thread computes it over rows of its own.

use std::ops::Range;

use super::blocks::equal;
use super::inputs::{Alone, Form, Inputs, Room};
use super::weight::{Packed, Weight};
use super::{Cpu, Local};
use crate::pool::Strip;
use crate::simd::Level;
use crate::simd::affine::Finish;
use crate::simd::brains::SIDE;
use crate::simd::bytes;
use crate::simd::linear::{STRIP_UNIT, Scratch};

/// `activation(x * weight^T + bias)`.
#[derive(Clone, Copy)]
pub(super) struct Layer<'a> {
    level: Level,
    weight: &'a Weight,
    form: Form<'a>,
    then: Finish<'a>,
}

impl Cpu {
    pub(super) fn layer<'a>(&self, weight: &'a Weight, then: Finish<'a>) -> Layer<'a> {
        Layer { level: self.level, weight, form: weight.form(self.activations), then }
    }
}

impl Layer<'_> {
    pub(super) fn outputs(&self) -> usize {
        self.weight.outputs
    }

    /// Outputs that are best computed together: whole tiles of a product, near enough to each other that reading a row of
    /// one group of them is reading ahead for the next.
    pub(super) fn strip(&self) -> usize {
        match &self.weight.packed {
            Packed::Panels(_) => STRIP_UNIT,
            Packed::Bytes(_) => bytes::STRIP_UNIT,
            Packed::Tiles(..) => 2 * SIDE,
        }
    }

    /// Computes the rows of `x`, one after the other, to those of `out`.
    pub(super) fn run(&self, x: &[f32], out: &mut Strip<'_>, local: &mut Local) {
        for band in self.bands(out.rows()) {
            let x = &x[band.start * self.weight.inputs..band.end * self.weight.inputs];
            let inputs = self.inputs((x, band.len()), &mut local.room);
            self.multiply(inputs, 0..self.outputs(), &mut out.band(band), &mut local.scratch);
        }
    }

    /// Rows of inputs as the product reads them.
    pub(super) fn inputs<'a>(&self, (x, rows): (&'a [f32], usize), room: &'a mut Room) -> Inputs<'a> {
        assert_eq!(x.len(), rows * self.weight.inputs, "rows of inputs");
        self.form.write(&mut Alone, self.level, (x, rows), room)
    }

    /// Computes some outputs of rows to a strip that has just these.
    pub(super) fn run_some(
        &self,
        inputs: Inputs<'_>,
        outputs: Range<usize>,
        out: &mut Strip<'_>,
        scratch: &mut Scratch,
    ) {
        for band in self.bands(inputs.rows) {
            self.multiply(inputs.band(band.clone()), outputs.clone(), &mut out.band(band), scratch);
        }
    }

    fn multiply(&self, inputs: Inputs<'_>, outputs: Range<usize>, out: &mut Strip<'_>, scratch: &mut Scratch) {
        self.weight.multiply(self.level, inputs, (outputs, self.then), (out, scratch));
    }

    /// Rows cut into as few bands as may be.
    fn bands(&self, rows: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let (most, unit) = self.weight.block();
        equal(rows, rows.div_ceil(most), unit)
    }
}
