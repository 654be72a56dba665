//! Tensors of a file as weights of a backend, checked by name and shape; or noise of the same shapes, to measure with.

use std::borrow::Cow;

use super::Pairs;
use crate::Error;
use crate::backend::{Backend, Matrix};
use crate::gguf::{Gguf, Tensor};
use crate::quant::{Format, dequantise_row};

/// Where weights come from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    /// A model file.
    File(&'a Gguf),
    /// Nowhere: matrices are noise, and all else is ones.
    Noise,
}

impl Source<'_> {
    /// Whether there is a tensor of this name.
    pub(super) fn has(self, name: &str) -> bool {
        match self {
            Source::File(gguf) => gguf.has(name),
            Source::Noise => name == OUTPUT,
        }
    }

    /// The numbers of a one-dimensional tensor.
    pub(super) fn numbers(self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        match self {
            Source::File(gguf) => numbers(gguf, name, len),
            Source::Noise => Ok(vec![1.0; len]),
        }
    }
}

/// What makes logits, where the embedding does not.
pub(super) const OUTPUT: &str = "output.weight";

/// Reads weights for one backend.
pub(super) struct Loader<'a, B> {
    pub(super) source: Source<'a>,
    pub(super) backend: &'a mut B,
}

/// In which order rows are taken from a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// As they are.
    Same,
    /// Heads of `width` rows, the first `rotated` of each put so that what is rotated together is adjacent.
    Heads { pairs: Pairs, width: usize, rotated: usize },
}

impl Order {
    /// The row of the file that becomes row `row`.
    fn source(self, row: usize) -> usize {
        match self {
            Order::Heads { pairs: Pairs::Halves, width, rotated } if row % width < rotated => {
                let at = row % width;
                row - at + at / 2 + at % 2 * (rotated / 2)
            }
            _ => row,
        }
    }

    /// `data`, of rows of `row_bytes`, in this order.
    fn put<'d, T: Copy>(self, data: &'d [T], row_len: usize) -> Cow<'d, [T]> {
        match self {
            Order::Heads { pairs: Pairs::Halves, .. } if row_len > 0 => {
                let rows = 0..data.len() / row_len;
                Cow::Owned(rows.flat_map(|row| &data[self.source(row) * row_len..][..row_len]).copied().collect())
            }
            _ => Cow::Borrowed(data),
        }
    }
}

impl<B: Backend> Loader<'_, B> {
    /// Matrices of `columns` inputs, packed as one; each with its name and outputs.
    pub(super) fn matrices(&mut self, columns: usize, parts: &[(&str, usize)]) -> Result<B::Weight, Error> {
        let parts: Vec<_> = parts.iter().map(|(name, rows)| (*name, *rows, Order::Same)).collect();
        self.ordered(columns, &parts)
    }

    /// As [`Loader::matrices`], the outputs of each in an order.
    pub(super) fn ordered(&mut self, columns: usize, parts: &[(&str, usize, Order)]) -> Result<B::Weight, Error> {
        let Source::File(gguf) = self.source else {
            return self.backend.noise(parts.iter().map(|(_, rows, _)| rows).sum(), columns);
        };
        let mut sources = Vec::with_capacity(parts.len());
        for (name, rows, order) in parts {
            let tensor = shaped(gguf, name, &[columns as u64, *rows as u64])?;
            let format = tensor.format;
            if !columns.is_multiple_of(format.block_len()) {
                return Err(Error::Malformed(format!("tensor `{name}` has rows of broken blocks")));
            }
            let row_bytes = columns / format.block_len() * format.block_bytes();
            sources.push((format, order.put(tensor.data, row_bytes)));
        }
        let matrices: Vec<Matrix<'_>> =
            sources.iter().map(|(format, data)| Matrix { format: *format, columns, data }).collect();
        self.backend.pack(&matrices)
    }

    /// One row of single-precision numbers, tensor after tensor, each with its name, length and order.
    pub(super) fn vectors(&mut self, parts: &[(&str, usize, Order)]) -> Result<B::Buf, Error> {
        let mut row = Vec::new();
        for (name, len, order) in parts {
            row.extend_from_slice(&order.put(&self.source.numbers(name, *len)?, 1));
        }
        self.backend.upload(&row, row.len())
    }

    /// One row of single-precision numbers.
    pub(super) fn vector(&mut self, name: &str, len: usize) -> Result<B::Buf, Error> {
        self.backend.upload(&self.source.numbers(name, len)?, len)
    }
}

/// The numbers of a one-dimensional tensor.
fn numbers(gguf: &Gguf, name: &str, len: usize) -> Result<Vec<f32>, Error> {
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
