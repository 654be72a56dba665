//! Products with biases, and norms, as files of transformers name them: `NAME.weight`, `NAME.bias`.

use crate::Error;
use crate::backend::dense::{Activation, Dense, Window};
use crate::backend::{Epilogue, Matrix};
use crate::tensors::Tensors;

/// A product, and what is added to it.
pub(super) struct Affine<B: Dense> {
    /// (outputs, inputs)
    weight: B::Weight,
    /// (1, outputs)
    bias: B::Buf,
}

impl<B: Dense> Affine<B> {
    /// `out = activation(x * weight^T + bias)`.
    pub(super) fn replace(&self, backend: &mut B, x: &B::Buf, activation: Activation, out: &mut B::Buf) {
        backend.affine((x, &self.weight), (&self.bias, activation), Epilogue::Store, out);
    }

    /// A convolution: as [`Affine::replace`], of every window of `x`.
    pub(super) fn convolve(
        &self,
        backend: &mut B,
        of: (&B::Buf, &Window),
        activation: Activation,
        (unfolded, out): (&mut B::Buf, &mut B::Buf),
    ) {
        backend.convolve(of, (&self.weight, &self.bias, activation), unfolded, out);
    }

    /// `out += x * weight^T + bias`.
    pub(super) fn add(&self, backend: &mut B, x: &B::Buf, out: &mut B::Buf) {
        backend.affine((x, &self.weight), (&self.bias, Activation::None), Epilogue::Add, out);
    }
}

/// What a layer norm multiplies with and adds.
pub(super) struct Norm<B: Dense> {
    /// (1, width)
    weight: B::Buf,
    /// (1, width)
    bias: B::Buf,
}

impl<B: Dense> Norm<B> {
    /// `out = norm(x)`, row by row.
    pub(super) fn apply(&self, backend: &mut B, x: &B::Buf, epsilon: f32, out: &mut B::Buf) {
        backend.layer_norm(x, (&self.weight, &self.bias), epsilon, out);
    }
}

/// Reads weights for one device.
pub(super) struct Loader<'a, B> {
    /// The file.
    pub(super) tensors: &'a Tensors,
    /// The device.
    pub(super) backend: &'a mut B,
    /// How many rows the products have.
    pub(super) rows: Rows,
}

/// How many rows products mostly have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rows {
    /// One for each input or little more.
    Few,
    /// All of inputs at once.
    Many,
}

impl<B: Dense> Loader<'_, B> {
    /// Products of `columns` inputs and `rows` outputs each, their outputs side by side.
    ///
    /// # Errors
    /// When the file lacks one, or the device cannot hold them.
    pub(super) fn affine(&mut self, names: &[String], columns: usize, rows: usize) -> Result<Affine<B>, Error> {
        let (mut matrices, mut bias) = (Vec::with_capacity(names.len()), Vec::with_capacity(names.len() * rows));
        for name in names {
            matrices.push(self.tensors.matrix(&format!("{name}.weight"), rows, columns)?);
            bias.extend(self.tensors.numbers(&format!("{name}.bias"), &[rows])?);
        }
        self.pack(&matrices, &bias)
    }

    /// Products whose numbers are at hand, their outputs side by side.
    ///
    /// # Errors
    /// When the device cannot hold them.
    pub(super) fn pack(&mut self, matrices: &[Matrix<'_>], bias: &[f32]) -> Result<Affine<B>, Error> {
        let weight = match self.rows {
            Rows::Few => self.backend.pack(matrices)?,
            Rows::Many => self.backend.pack_for_many(matrices)?,
        };
        Ok(Affine { weight, bias: self.backend.upload(bias, bias.len())? })
    }

    /// A product without a bias.
    ///
    /// # Errors
    /// As [`Loader::affine`].
    pub(super) fn product(&mut self, name: &str, columns: usize, rows: usize) -> Result<B::Weight, Error> {
        self.backend.pack(&[self.tensors.matrix(&format!("{name}.weight"), rows, columns)?])
    }

    /// A layer norm.
    ///
    /// # Errors
    /// As [`Loader::affine`].
    pub(super) fn norm(&mut self, name: &str, width: usize) -> Result<Norm<B>, Error> {
        let vector = |part: &str| {
            let numbers = self.tensors.numbers(&format!("{name}.{part}"), &[width])?;
            self.backend.upload(&numbers, width)
        };
        Ok(Norm { weight: vector("weight")?, bias: vector("bias")? })
    }
}
