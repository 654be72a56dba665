//! Tensors of a file as weights of a backend, checked by name and shape.

use crate::Error;
use crate::backend::{Backend, Matrix};
use crate::gguf::{Gguf, Tensor};
use crate::quant::{Format, dequantise_row};

/// Reads weights for one backend.
pub(super) struct Loader<'a, B> {
    pub(super) gguf: &'a Gguf,
    pub(super) backend: &'a mut B,
}

impl<B: Backend> Loader<'_, B> {
    /// Matrices of `columns` inputs, packed as one; each with its name and outputs.
    pub(super) fn matrices(&mut self, columns: usize, parts: &[(&str, usize)]) -> Result<B::Weight, Error> {
        let mut matrices = Vec::with_capacity(parts.len());
        for (name, rows) in parts {
            let tensor = shaped(self.gguf, name, &[columns as u64, *rows as u64])?;
            if !columns.is_multiple_of(tensor.format.block_len()) {
                return Err(Error::Malformed(format!("tensor `{name}` has rows of broken blocks")));
            }
            matrices.push(Matrix { format: tensor.format, columns, data: tensor.data });
        }
        self.backend.pack(&matrices)
    }

    /// One row of single-precision numbers.
    pub(super) fn vector(&mut self, name: &str, len: usize) -> Result<B::Buf, Error> {
        self.backend.upload(&numbers(self.gguf, name, len)?, len)
    }
}

/// The numbers of a one-dimensional tensor.
pub(super) fn numbers(gguf: &Gguf, name: &str, len: usize) -> Result<Vec<f32>, Error> {
    let tensor = shaped(gguf, name, &[len as u64])?;
    match tensor.format {
        Format::F32 | Format::F16 | Format::BF16 => {
            let mut numbers = vec![0.0; len];
            dequantise_row(tensor.format, tensor.data, &mut numbers);
            Ok(numbers)
        }
        other => Err(Error::Unsupported(format!("tensor `{name}` as {}", other.name()))),
    }
}

fn shaped<'a>(gguf: &'a Gguf, name: &str, shape: &[u64]) -> Result<Tensor<'a>, Error> {
    let tensor = gguf.tensor(name)?;
    if tensor.shape != shape {
        return Err(Error::Malformed(format!("tensor `{name}` has shape {:?}, not {shape:?}", tensor.shape)));
    }
    Ok(tensor)
}
