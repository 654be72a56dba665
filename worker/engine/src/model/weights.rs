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
    /// Nowhere: matrices are noise of a format, and all else is ones.
    Noise(Format),
}

impl Source<'_> {
    /// Whether there is a tensor of this name.
    pub(super) fn has(self, name: &str) -> bool {
        match self {
            Source::File(gguf) => gguf.has(name),
            Source::Noise(_) => name == OUTPUT,
        }
    }

    /// The numbers of a one-dimensional tensor.
    pub(super) fn numbers(self, name: &str, len: usize) -> Result<Vec<f32>, Error> {
        match self {
            Source::File(gguf) => numbers(gguf, name, len),
            Source::Noise(_) => Ok(vec![1.0; len]),
        }
    }
}

/// What tokens become.
pub(super) const EMBEDDING: &str = "token_embd.weight";
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
        let gguf = match self.source {
            Source::File(gguf) => gguf,
            Source::Noise(format) => {
                return self.backend.noise(parts.iter().map(|(_, rows, _)| rows).sum(), columns, format);
            }
        };
        let mut sources = Vec::with_capacity(parts.len());
        for (name, rows, order) in parts {
            let matrix = matrix(gguf, name, (*rows, columns))?;
            sources.push((matrix.format, order.put(matrix.data, matrix.row_bytes())));
        }
        let matrices: Vec<Matrix<'_>> =
            sources.iter().map(|(format, data)| Matrix { format: *format, columns, data }).collect();
        self.backend.pack(&matrices)
    }

    /// A matrix of which only rows are taken.
    pub(super) fn table(&mut self, name: &str, (rows, columns): (usize, usize)) -> Result<B::Weight, Error> {
        match self.source {
            Source::File(gguf) => self.backend.pack_stored(matrix(gguf, name, (rows, columns))?),
            Source::Noise(_) => self.backend.noise(rows, columns, Format::BF16),
        }
    }

    /// The matrix that gives logits.
    pub(super) fn vocabulary(&mut self, name: &str, (rows, columns): (usize, usize)) -> Result<B::Weight, Error> {
        match self.source {
            Source::File(gguf) => self.backend.pack_vocabulary(matrix(gguf, name, (rows, columns))?),
            Source::Noise(format) => self.backend.noise(rows, columns, format),
        }
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

/// A matrix of whole blocks.
fn matrix<'a>(gguf: &'a Gguf, name: &str, (rows, columns): (usize, usize)) -> Result<Matrix<'a>, Error> {
    let Tensor { format, data, .. } = shaped(gguf, name, &[columns as u64, rows as u64])?;
    if !columns.is_multiple_of(format.block_len()) {
        return Err(Error::Malformed(format!("tensor `{name}` has rows of broken blocks")));
    }
    Ok(Matrix { format, columns, data })
}

fn shaped<'a>(gguf: &'a Gguf, name: &str, shape: &[u64]) -> Result<Tensor<'a>, Error> {
    let tensor = gguf.tensor(name)?;
    if tensor.shape != shape {
        return Err(Error::Malformed(format!("tensor `{name}` has shape {:?}, not {shape:?}", tensor.shape)));
    }
    Ok(tensor)
}
