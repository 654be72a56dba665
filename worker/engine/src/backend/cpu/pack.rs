//! Which way a matrix is packed.

use super::inputs::Form;
use super::weight::{Packed, Weight};
use super::{Cpu, LANES};
use crate::Error;
use crate::backend::{Activations, Matrix, Weights};
use crate::prefix::Kept;
use crate::quant::{Format, dequantise_row, quantise};
use crate::simd::brains::{Closeness, Tiles};
use crate::simd::bytes::Bytes;
use crate::simd::digits::Digits;
use crate::simd::panel::{BLOCK, Panels};

/// Inputs or outputs of a narrow matrix. With all of them on the unit EfficientNet-Lite0 was a tenth slower in f32.
const NARROW: usize = 128;

impl Cpu {
    /// Packs matrices for vector registers, each by itself.
    pub(super) fn pack_panels(&mut self, parts: &[Matrix<'_>]) -> Result<Weight, Error> {
        let inputs = parts.first().map_or(0, |part| part.columns);
        let parts: Vec<Panels> = parts.iter().map(|part| self.panels(part)).collect::<Result<_, _>>()?;
        let whole = parts.iter().rev().skip(1).all(|part| part.rows().is_multiple_of(LANES));
        if !whole || parts.iter().any(|part| part.columns() != inputs) {
            return Err(Error::Unsupported("matrices that cannot be packed side by side".into()));
        }
        let weight = Weight { outputs: parts.iter().map(Panels::rows).sum(), inputs, packed: Packed::Panels(parts) };
        let rows = self.step.limits().rows;
        if let Some(Form::Brains(_, shape)) = self.form_of_prompts(&weight) {
            self.kept = Kept::Prompts;
            self.apart.reserve(rows, &weight);
            self.room.make_squares(rows, shape);
            for local in &mut self.locals {
                local.scratch.make_squares(shape);
            }
        }
        let digits = rows * weight.digits_of_row(self.activations);
        if digits > self.room.digits.len() {
            self.room.digits.resize(digits, Digits::ZERO);
        }
        Ok(weight)
    }

    fn panels(&self, part: &Matrix<'_>) -> Result<Panels, Error> {
        if !self.rounds(part) || part.columns == 0 {
            return Panels::pack(part);
        }
        let mut numbers = vec![0.0; part.data.len() / part.format.block_bytes()];
        dequantise_row(part.format, part.data, &mut numbers);
        Panels::pack(&Matrix { format: Format::Q8_0, data: &quantise(&numbers), ..*part })
    }

    /// Packs matrices for products of many rows: whole rows of bytes where inputs are such, for the unit where there is
    /// one, else as ever.
    pub(super) fn pack_dense(&mut self, parts: &[Matrix<'_>]) -> Result<Weight, Error> {
        let inputs = parts.first().map_or(0, |part| part.columns);
        let rounds = parts.iter().any(|part| self.rounds(part));
        let round = |row: &mut [f32]| {
            if rounds {
                let rounded = quantise(row);
                dequantise_row(Format::Q8_0, &rounded, row);
            }
        };
        if self.activations == Activations::Rows && self.weights == Weights::Int8 {
            let bytes = Bytes::pack(parts, round)?;
            return Ok(Weight { outputs: bytes.rows(), inputs, packed: Packed::Bytes(bytes) });
        }
        let Some(unit) = self.unit else { return self.pack_panels(parts) };
        let closeness = match rounds {
            true => Closeness::Coarse,
            false => parts.iter().map(|part| Closeness::of(part.format)).max().unwrap_or(Closeness::Near),
        };
        if !worthwhile((parts.iter().map(Matrix::rows).sum(), inputs), closeness) {
            return self.pack_panels(parts);
        }
        let tiles = Tiles::pack(parts, closeness, round)?;
        Ok(Weight { outputs: tiles.rows(), inputs, packed: Packed::Tiles(unit, tiles) })
    }

    /// Whether a matrix is rounded to bytes, 32 at a time, as a file of such holds it.
    fn rounds(&self, part: &Matrix<'_>) -> bool {
        self.weights == Weights::Int8 && part.format.block_len() == 1 && part.columns.is_multiple_of(BLOCK)
    }
}

/// Whether the unit wins, even where other programs on its core leave it a quarter of its speed. More than one pass over a
/// narrow matrix does not: splitting its inputs takes as long.
fn worthwhile((outputs, inputs): (usize, usize), closeness: Closeness) -> bool {
    closeness == Closeness::Coarse || outputs.min(inputs) >= NARROW
}
