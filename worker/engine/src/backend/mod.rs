//! The narrow waist between models and devices: a few fused operations over ragged rows.
//!
//! A step's rows lie side by side, whatever sequences they belong to; [`Backend::step_begin`] tells which. Operations
//! write to buffers made at load and allocate nothing. Weights are opaque: each backend packs them as it likes.
//! A backend never sees a request, a text or a file.

pub mod cpu;
pub mod cuda;
pub mod dense;
pub mod scalar;
mod step;
#[cfg(test)]
mod tests;

use serde::Deserialize;

use crate::Error;
use crate::model::Ticket;
use crate::plan::{BlockId, Plan, Sampled};
use crate::prefix::Kept;
use crate::quant::{Format, dequantise_row};
use crate::simd::brains::Unit;
use crate::simd::digits::Rounding;

/// A matrix as a model file holds it: rows of `columns` numbers.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// How its numbers are stored.
    pub format: Format,
    /// Numbers in a row: the width of inputs.
    pub columns: usize,
    /// The rows, one after the other.
    pub data: &'a [u8],
}

impl Matrix<'_> {
    /// Bytes of a row, as far as it is whole blocks.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.columns / self.format.block_len() * self.format.block_bytes()
    }

    /// Whole rows: the width of outputs.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.data.len().checked_div(self.row_bytes()).unwrap_or(0)
    }

    /// Whether its rows are whole, and whole blocks.
    fn is_whole(&self) -> bool {
        let row = self.row_bytes();
        self.columns.is_multiple_of(self.format.block_len()) && row > 0 && self.data.len().is_multiple_of(row)
    }
}

/// A row as its file has it.
pub(crate) type StoredRow<'a> = (Format, &'a [u8]);

/// The rows of matrices, which are whole, one after the other.
pub(crate) fn stored_rows<'a>(parts: &[Matrix<'a>]) -> impl Iterator<Item = StoredRow<'a>> {
    parts.iter().flat_map(|part| part.data.chunks_exact(part.row_bytes()).map(|data| (part.format, data)))
}

/// Gives `take` the rows of matrices of equal columns as numbers, one after the other, which it may change.
///
/// # Errors
/// When rows are not whole or not equally long.
pub(crate) fn each_row(parts: &[Matrix<'_>], mut take: impl FnMut(usize, &mut [f32])) -> Result<(), Error> {
    let columns = parts.first().map_or(0, |part| part.columns);
    if !parts.iter().all(|part| part.columns == columns && part.is_whole()) {
        return Err(Error::Unsupported("matrices that cannot be packed side by side".into()));
    }
    let mut numbers = vec![0.0; columns];
    for (row, (format, data)) in stored_rows(parts).enumerate() {
        dequantise_row(format, data, &mut numbers);
        take(row, &mut numbers);
    }
    Ok(())
}

/// The paged key-value cache of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Layers that have keys and values.
    pub layers: usize,
    /// Blocks of [`crate::plan::BLOCK_TOKENS`] tokens.
    pub blocks: usize,
    /// Key-value heads of a layer.
    pub heads: usize,
    /// Numbers in a head.
    pub width: usize,
}

/// What a step of a backend may hold; its memory is made for this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepLimits {
    /// Rows.
    pub rows: usize,
    /// Rows to sample from.
    pub outputs: usize,
    /// Entries of all block tables.
    pub blocks: usize,
}

/// How weights are held that a file has in floating point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weights {
    /// As the file has them.
    #[default]
    Stored,
    /// Rounded to a signed byte under a scale for each 32, where a row is whole such blocks.
    Int8,
}

/// How the inputs of products with quantised weights are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activations {
    /// As they are: exact, and several times as slow.
    F32,
    /// Rounded to two signed bytes under a scale for each 32: as near the model as [`Activations::F32`] for most uses.
    Int16,
    /// One signed byte, but for the greatest number of each block that is about as loud as the row's mean block or louder,
    /// which stays as it is: five times as near the model as a byte alone, at five sixths of its speed.
    #[default]
    Mixed,
    /// The same where a block is far louder than the rest: for models of which the rounding of weights costs more.
    Sparse,
    /// Rounded to a signed byte under a scale for each 32, as llama.cpp does.
    Int8,
    /// Rounded to a signed byte between the least and the greatest of a row, by weights of a byte under a scale for each
    /// output: for encoders of pictures, whose rows are places, of few numbers of like size.
    #[serde(skip)]
    Rows,
}

impl Activations {
    /// What multiplies rows of prompts in place of vector registers, where a machine has such a unit: it rounds less than
    /// these do, but more than those who want numbers as they are would have.
    pub(crate) fn prompts_by(self, unit: Option<Unit>) -> Option<Unit> {
        unit.filter(|_| self == Activations::Mixed)
    }

    /// How a row is rounded; none where it stays as it is.
    pub(crate) const fn rounding(self) -> Option<Rounding> {
        match self {
            Activations::F32 | Activations::Rows => None,
            Activations::Int16 => Some(Rounding::Two),
            Activations::Mixed => Some(Rounding::Loud),
            Activations::Sparse => Some(Rounding::Loudest),
            Activations::Int8 => Some(Rounding::One),
        }
    }
}

/// What a product does with its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// Replaces it.
    Store,
    /// Adds to it: a residual connection.
    Add,
}

/// What gates pass through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * Φ(x)` by the approximation with the hyperbolic tangent.
    Gelu,
}

/// Which tokens a row's attention sees, of those up to its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// All.
    All,
    /// The last so many, its own included; not zero.
    Last(usize),
}

impl Reach {
    /// Tokens that a row sees at most.
    #[must_use]
    pub fn window(self) -> usize {
        match self {
            Reach::All => usize::MAX,
            Reach::Last(window) => window,
        }
    }

    /// The first token that a row at `position` sees.
    #[must_use]
    pub fn first(self, position: usize) -> usize {
        (position + 1).saturating_sub(self.window())
    }
}

/// Rows about to be normed: `x / rms(x) * weight`.
#[derive(Debug)]
pub struct Normed<'a, B> {
    /// The rows.
    pub x: &'a B,
    /// As wide as they are.
    pub weight: &'a B,
    /// Added to the mean square.
    pub epsilon: f32,
}

/// What becomes of rows (queries | keys | values) before queries and keys meet: in this order.
#[derive(Clone, Copy, Debug)]
pub struct Turn<'a, B> {
    /// Added to the whole row.
    pub bias: Option<&'a B>,
    /// Norms of each query and each key.
    pub norms: Option<HeadNorms<'a, B>>,
    /// (positions, pairs * (cosine, sine)): queries and keys are rotated, adjacent numbers as pairs.
    pub rope: &'a B,
}

/// `x / rms(x) * weight` of single heads.
#[derive(Clone, Copy, Debug)]
pub struct HeadNorms<'a, B> {
    /// Of queries, a head wide.
    pub queries: &'a B,
    /// Of keys, a head wide.
    pub keys: &'a B,
    /// Added to the mean square.
    pub epsilon: f32,
}

/// A device that computes. `rows` are those of the current step, until [`Backend::take_outputs`] leaves only the
/// plan's outputs; a buffer knows how many it holds.
pub trait Backend: Send {
    /// Activations: (rows, width).
    type Buf: Send;
    /// A packed matrix: (outputs, inputs).
    type Weight: Send;
    /// Keys and values of all layers.
    type Kv: Send;

    /// A buffer for up to `rows` rows.
    fn buffer(&self, rows: usize, width: usize) -> Result<Self::Buf, Error>;
    /// A buffer that only products and attention read: a device may round its numbers as it rounds their inputs.
    fn inputs(&self, rows: usize, width: usize) -> Result<Self::Buf, Error> {
        self.buffer(rows, width)
    }
    /// A buffer of constants: rows of `width`.
    fn upload(&self, numbers: &[f32], width: usize) -> Result<Self::Buf, Error>;
    /// Packs matrices of equal inputs as one, their outputs side by side.
    fn pack(&mut self, parts: &[Matrix<'_>]) -> Result<Self::Weight, Error>;
    /// Packs a matrix as it is, however the weights of products are held: one whose rows are gathered, or that rounding
    /// would harm.
    ///
    /// # Errors
    /// As [`Backend::pack`].
    fn pack_stored(&mut self, rows: Matrix<'_>) -> Result<Self::Weight, Error> {
        self.pack(&[rows])
    }
    /// Packs the matrix of [`Backend::unembed`].
    ///
    /// # Errors
    /// As [`Backend::pack`].
    fn pack_vocabulary(&mut self, rows: Matrix<'_>) -> Result<Self::Weight, Error> {
        self.pack(&[rows])
    }
    /// A matrix of noise, as a file of this format would give it, to measure with.
    fn noise(&mut self, outputs: usize, inputs: usize, format: Format) -> Result<Self::Weight, Error> {
        let mut noise = crate::fixture::Noise(outputs as u64);
        let data = noise.matrix(format, outputs, inputs);
        self.pack(&[Matrix { format, columns: inputs, data: &data }])
    }
    /// An empty cache.
    fn kv(&self, shape: KvShape) -> Result<Self::Kv, Error>;

    /// Takes in the step's rows: tokens, positions, block tables.
    fn step_begin(&mut self, plan: &Plan) -> Result<(), Error>;
    /// `out[row] = table[token of row]`.
    fn gather_rows(&mut self, table: &Self::Weight, out: &mut Self::Buf);
    /// `out = x / rms(x) * weight`, row by row.
    fn norm(&mut self, x: &Self::Buf, weight: &Self::Buf, epsilon: f32, out: &mut Self::Buf);
    /// `out += x / rms(x) * weight`, row by row.
    fn add_norm(&mut self, x: &Self::Buf, weight: &Self::Buf, epsilon: f32, out: &mut Self::Buf);
    /// `x = factor * x`.
    fn scale(&mut self, factor: f32, x: &mut Self::Buf);
    /// `out = x * weight^T`, or is added to.
    fn linear(&mut self, x: &Self::Buf, weight: &Self::Weight, epilogue: Epilogue, out: &mut Self::Buf);
    /// `out = gate(x) * up` of rows (x | up).
    fn glu(&mut self, x: &Self::Buf, gate: Gate, out: &mut Self::Buf);
    /// `out = norm(x) * weight^T`. `normed` is anybody's afterwards.
    fn norm_linear(
        &mut self,
        x: Normed<'_, Self::Buf>,
        weight: &Self::Weight,
        normed: &mut Self::Buf,
        out: &mut Self::Buf,
    ) {
        self.norm(x.x, x.weight, x.epsilon, normed);
        self.linear(normed, weight, Epilogue::Store, out);
    }
    /// The same of the step's outputs, by the matrix of the vocabulary.
    fn unembed(
        &mut self,
        x: Normed<'_, Self::Buf>,
        weight: &Self::Weight,
        normed: &mut Self::Buf,
        out: &mut Self::Buf,
    ) {
        self.norm_linear(x, weight, normed, out);
    }
    /// Which blocks of the cache others may share, by how it computes with the matrices that it has packed.
    fn kept(&self) -> Kept {
        Kept::All
    }
    /// `out = gate(g) * up` of (g | up) `= norm(x) * weight^T`. `between`, rows of `x` and of (g | up), is anybody's
    /// afterwards.
    fn norm_glu(
        &mut self,
        x: Normed<'_, Self::Buf>,
        (weight, gate): (&Self::Weight, Gate),
        between: (&mut Self::Buf, &mut Self::Buf),
        out: &mut Self::Buf,
    ) {
        self.norm_linear(x, weight, between.0, between.1);
        self.glu(between.1, gate, out);
    }
    /// Turns the queries and keys of rows (queries | keys | values), and writes keys and values to the layer's cache.
    fn rope_qk_write(&mut self, qkv: &mut Self::Buf, turn: &Turn<'_, Self::Buf>, kv: &mut Self::Kv, layer: usize);
    /// Causal attention of each row's queries over its sequence's cache of a layer, this step's rows included, as far
    /// back as the layer reaches.
    fn attention(&mut self, qkv: &Self::Buf, kv: &Self::Kv, layer: (usize, Reach), out: &mut Self::Buf);
    /// [`Backend::rope_qk_write`] and the [`Backend::attention`] of its rows. `qkv` is anybody's afterwards.
    fn turn_and_attend(
        &mut self,
        qkv: &mut Self::Buf,
        turn: &Turn<'_, Self::Buf>,
        (kv, layer, reach): (&mut Self::Kv, usize, Reach),
        out: &mut Self::Buf,
    ) {
        self.rope_qk_write(qkv, turn, kv, layer);
        self.attention(qkv, kv, (layer, reach), out);
    }
    /// Keeps the rows of the plan's outputs.
    fn take_outputs(&mut self, x: &Self::Buf, out: &mut Self::Buf);
    /// Nothing more of the step comes but its sampling: what was only recorded until now runs.
    fn step_end(&mut self) -> Result<(), Error> {
        Ok(())
    }
    /// Chooses a token for each of the plan's outputs; uses the logits up.
    fn sample(&mut self, logits: &mut Self::Buf, plan: &Plan) -> Ticket;
    /// Appends what [`Backend::sample`] chose.
    fn collect(&mut self, ticket: Ticket, sampled: &mut Vec<Sampled>) -> Result<(), Error>;
    /// Copies whole blocks, all layers, from the first to the second of each pair.
    fn copy_blocks(&mut self, kv: &mut Self::Kv, pairs: &[(BlockId, BlockId)]);
    /// The rows of a buffer, for evaluation and tests.
    fn download(&self, buffer: &Self::Buf, numbers: &mut Vec<f32>);
}
