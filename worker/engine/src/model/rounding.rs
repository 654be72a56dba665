//! A model file whose products have weights of a byte: what [`Weights::Int8`](crate::backend::Weights::Int8) does at each
//! load, written down once. Loaded, it computes the same bits.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use safetensors::tensor::Dtype;

use super::efficientnet;
use super::kernel::channels_last;
use crate::Error;
use crate::quant::{Format, QUANT_BLOCK, dequantise_row, quantise};
use crate::tensors::{Entry, FAMILY, Tensor, Tensors, little_endian, write};

/// Tables, whose rows are looked up. Whisper's tokens are none of these: they are a product too.
const TABLES: [&str; 6] = [
    "word_embeddings",
    "position_embeddings",
    "token_type_embeddings",
    "token_embedding",
    "position_embedding",
    "embed_positions",
];

/// What BERT was trained with, and no direction is made by.
const UNUSED: &str = "pooler.";

/// A matrix as a product reads it, made of tensors of a file.
pub(super) struct Product {
    pub(super) columns: usize,
    /// One after the other, each in the order of its inputs.
    pub(super) rows: Vec<f32>,
    /// A normalisation that is in it.
    pub(super) fold: Option<Fold>,
}

/// What becomes of a normalisation.
pub(super) struct Fold {
    /// Name and numbers of a tensor that comes.
    pub(super) bias: (String, Vec<f32>),
    /// Names of tensors that go.
    pub(super) gone: Vec<String>,
}

/// What rounding one matrix cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Rounding {
    /// Name of its tensor.
    pub name: String,
    squares: f64,
    wrong: f64,
}

/// A model file with its products rounded, in memory: nothing is written yet.
#[derive(Debug)]
pub struct Rounded<'a> {
    entries: Vec<Entry<'a>>,
    metadata: BTreeMap<&'a str, &'a str>,
    roundings: Vec<Rounding>,
    kept: usize,
    folded: usize,
}

impl<'a> Rounded<'a> {
    /// Rounds every matrix whose rows are whole blocks of 32.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a family that is not computed, and for a file in which nothing is left to round;
    /// [`Error::Malformed`] where the file lacks something.
    pub fn of(tensors: &'a Tensors) -> Result<Rounded<'a>, Error> {
        let family = tensors.text(FAMILY)?;
        if !["bert", "clip", "efficientnet", "whisper"].contains(&family) {
            return Err(Error::Unsupported(format!("encoders of family `{family}`")));
        }
        if tensors.holds(Format::Q8_0) {
            return Err(Error::Unsupported("its weights are rounded to a byte already".into()));
        }
        let (stored, metadata) = tensors.stored();
        let mut rounded =
            Rounded { entries: Vec::with_capacity(stored.len()), metadata, roundings: Vec::new(), kept: 0, folded: 0 };
        let mut gone = BTreeSet::new();
        for entry in stored {
            match product(tensors, family, &entry.name)? {
                Some(product) => gone.extend(rounded.round(entry.name, product)),
                None => rounded.entries.push(entry),
            }
        }
        if rounded.roundings.is_empty() {
            return Err(Error::Unsupported("it has no matrix whose rows are whole blocks of 32".into()));
        }
        rounded.entries.retain(|entry| !gone.contains(&entry.name));
        rounded.folded = gone.len();
        rounded.kept = tensors.stored().0.len() - rounded.folded - rounded.roundings.len();
        Ok(rounded)
    }

    /// Takes a matrix in; names of the tensors that are in it now.
    fn round(&mut self, name: String, product: Product) -> Vec<String> {
        let Product { columns, rows, fold } = product;
        let data = quantise(&rows);
        let mut again = vec![0.0; rows.len()];
        dequantise_row(Format::Q8_0, &data, &mut again);
        let sum = |numbers: &mut dyn Iterator<Item = f64>| numbers.map(|number| number * number).sum();
        let squares = sum(&mut rows.iter().map(|number| f64::from(*number)));
        let wrong = sum(&mut rows.iter().zip(&again).map(|(number, again)| f64::from(*number) - f64::from(*again)));
        let shape = vec![rows.len() / columns, columns / QUANT_BLOCK, Format::Q8_0.block_bytes()];
        self.entries.push(Entry { name: name.clone(), dtype: Dtype::U8, shape, data: Cow::Owned(data) });
        self.roundings.push(Rounding { name, squares, wrong });
        let Some(Fold { bias: (name, numbers), gone }) = fold else { return Vec::new() };
        let data = Cow::Owned(little_endian(&numbers));
        self.entries.push(Entry { name, dtype: Dtype::F32, shape: vec![numbers.len()], data });
        gone
    }

    /// Writes the file: the same bytes for the same model, wherever.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be written.
    pub fn write(self, to: &Path) -> Result<(), Error> {
        write(to, &self.metadata, self.entries)
    }

    /// The matrices that are rounded, by name.
    #[must_use]
    pub fn roundings(&self) -> &[Rounding] {
        &self.roundings
    }

    /// Of these the one that lost most.
    ///
    /// # Panics
    /// Never: a file without any is refused.
    #[must_use]
    pub fn worst(&self) -> &Rounding {
        let worst = self.roundings.iter().max_by(|a, b| a.error().total_cmp(&b.error()));
        worst.expect("something is rounded")
    }

    /// How many tensors stay as they are.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.kept
    }

    /// How many tensors of normalisations are in matrices now.
    #[must_use]
    pub fn folded(&self) -> usize {
        self.folded
    }

    /// Root of the mean square of what rounding changed, over that of all numbers of the matrices.
    #[must_use]
    pub fn error(&self) -> f64 {
        let sum = |part: fn(&Rounding) -> f64| self.roundings.iter().map(part).sum();
        relative(sum(|rounding| rounding.wrong), sum(|rounding| rounding.squares))
    }
}

impl Rounding {
    /// As [`Rounded::error`], of this matrix.
    #[must_use]
    pub fn error(&self) -> f64 {
        relative(self.wrong, self.squares)
    }
}

fn relative(wrong: f64, squares: f64) -> f64 {
    if squares > 0.0 { (wrong / squares).sqrt() } else { 0.0 }
}

/// The product that a tensor becomes, where its rows are whole blocks.
fn product(tensors: &Tensors, family: &str, name: &str) -> Result<Option<Product>, Error> {
    // Of integers: positions that nothing reads.
    let Ok(tensor) = tensors.tensor(name) else { return Ok(None) };
    let [_, columns @ ..] = tensor.shape else { return Ok(None) };
    let columns: usize = columns.iter().product();
    if columns == 0 || !columns.is_multiple_of(QUANT_BLOCK) {
        return Ok(None);
    }
    match family {
        "efficientnet" => efficientnet::product(tensors, (name, &tensor)),
        _ => Ok(transformers(name, &tensor)),
    }
}

/// As files of transformers name products.
fn transformers(name: &str, tensor: &Tensor<'_>) -> Option<Product> {
    let layer = name.strip_suffix(".weight")?.rsplit('.').next()?;
    let [_, _, ..] = tensor.shape else { return None };
    if TABLES.contains(&layer) || name.starts_with(UNUSED) {
        return None;
    }
    let rows = channels_last(&tensor.numbers(), tensor.shape);
    Some(Product { columns: tensor.shape[1..].iter().product(), rows, fold: None })
}

#[cfg(test)]
mod tests;
