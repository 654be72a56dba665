//! The narrow waist between models and devices: a few fused operations over ragged rows.
//!
//! A step's rows lie side by side, whatever sequences they belong to; [`Backend::step_begin`] tells which. Operations
//! write to buffers made at load and allocate nothing. Weights are opaque: each backend packs them as it likes.
//! A backend never sees a request, a text or a file.

pub mod cpu;
pub mod scalar;
mod step;
#[cfg(test)]
mod tests;

use crate::Error;
use crate::model::Ticket;
use crate::plan::{BlockId, Plan, Sampled};
use crate::quant::Format;

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

/// What a product does with its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// Replaces it.
    Store,
    /// Adds to it: a residual connection.
    Add,
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
    /// A buffer of constants: rows of `width`.
    fn upload(&self, numbers: &[f32], width: usize) -> Result<Self::Buf, Error>;
    /// Packs matrices of equal inputs as one, their outputs side by side.
    fn pack(&mut self, parts: &[Matrix<'_>]) -> Result<Self::Weight, Error>;
    /// An empty cache.
    fn kv(&self, shape: KvShape) -> Result<Self::Kv, Error>;

    /// Takes in the step's rows: tokens, positions, block tables.
    fn step_begin(&mut self, plan: &Plan) -> Result<(), Error>;
    /// `out[row] = table[token of row]`.
    fn gather_rows(&mut self, table: &Self::Weight, out: &mut Self::Buf);
    /// `out = x / rms(x) * weight`, row by row.
    fn norm(&mut self, x: &Self::Buf, weight: &Self::Buf, epsilon: f32, out: &mut Self::Buf);
    /// `out = x * weight^T`, or is added to.
    fn linear(&mut self, x: &Self::Buf, weight: &Self::Weight, epilogue: Epilogue, out: &mut Self::Buf);
    /// `out = silu(gate) * up` of rows (gate | up).
    fn glu(&mut self, x: &Self::Buf, out: &mut Self::Buf);
    /// Rotates the queries and keys of rows (queries | keys | values) by their positions, adjacent numbers as pairs,
    /// and writes keys and values to the layer's cache. `rope` is (positions, pairs * (cosine, sine)).
    fn rope_qk_write(&mut self, qkv: &mut Self::Buf, rope: &Self::Buf, kv: &mut Self::Kv, layer: usize);
    /// Causal attention of each row's queries over its sequence's cache, this step's rows included.
    fn attention(&mut self, qkv: &Self::Buf, kv: &Self::Kv, layer: usize, out: &mut Self::Buf);
    /// Keeps the rows of the plan's outputs.
    fn take_outputs(&mut self, x: &Self::Buf, out: &mut Self::Buf);
    /// Chooses a token for each of the plan's outputs; uses the logits up.
    fn sample(&mut self, logits: &mut Self::Buf, plan: &Plan) -> Ticket;
    /// Appends what [`Backend::sample`] chose.
    fn collect(&mut self, ticket: Ticket, sampled: &mut Vec<Sampled>) -> Result<(), Error>;
    /// Copies whole blocks, all layers, from the first to the second of each pair.
    fn copy_blocks(&mut self, kv: &mut Self::Kv, pairs: &[(BlockId, BlockId)]);
    /// The rows of a buffer, for evaluation and tests.
    fn download(&self, buffer: &Self::Buf, numbers: &mut Vec<f32>);
}
