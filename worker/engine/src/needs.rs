//! What a model takes of memory, told before any of it is taken.

use std::path::Path;

use crate::Error;
use crate::backend::cuda::integers_bytes;
use crate::engine::EngineConfig;
use crate::gguf::{Gguf, Tensor};
use crate::model::ModelConfig;
use crate::plan::BLOCK_TOKENS;
use crate::simd::Level;
use crate::simd::brains::{Closeness, Line, SIDE, Shape};
use crate::simd::digits::{Digits, Rounding};
use crate::simd::panel::{BLOCK, packed_bytes};

/// A token in the tokenizer's tables: its text in both directions, its merges, its place in the hash tables.
const VOCABULARY_TOKEN: usize = 320;
/// A token among a sampler's candidates.
const CANDIDATE: usize = 8;
/// A number of activations.
const SINGLE: usize = size_of::<f32>();
/// A number of keys and values.
const HALF: usize = size_of::<u16>();

/// What a GPU wants whatever computes on it: its context, kernels and libraries.
pub(crate) const CARD: u64 = 1 << 30;

/// What a model takes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Its weights, packed.
    pub weights: u64,
    /// What else it takes whatever the cache holds: what a step writes to, rotations, the vocabulary.
    pub workspace: u64,
    /// A token in the key-value cache.
    pub kv_token: u64,
    /// Tokens the model was trained to look at.
    pub context: usize,
}

impl Needs {
    /// What it takes with a cache of so many tokens.
    #[must_use]
    pub fn total(&self, kv_tokens: usize) -> u64 {
        self.weights.saturating_add(self.workspace).saturating_add(self.kv_token.saturating_mul(kv_tokens as u64))
    }
}

/// Looks at the model at `path` without loading it. What `config` says of the cache does not matter.
pub fn needs(path: &Path, config: &EngineConfig) -> Result<Needs, Error> {
    let gguf = Gguf::open(path)?;
    let shape = ModelConfig::from_gguf(&gguf)?;
    let weights = gguf.tensors().map(|tensor| packed(&tensor)).fold(0, u64::saturating_add);
    let kv = 2 * shape.layers * shape.kv_heads * shape.head_width * HALF;
    let workspace = workspace(&shape, config).saturating_add(of_unit(&shape, config)) as u64;
    Ok(Needs { weights, workspace, kv_token: kv as u64, context: shape.context })
}

/// As [`needs`], of a GPU's memory: weights of two bytes a number, and the integers that products of few rows read.
pub fn needs_on_card(path: &Path, config: &EngineConfig) -> Result<Needs, Error> {
    let gguf = Gguf::open(path)?;
    let shape = ModelConfig::from_gguf(&gguf)?;
    let weights = gguf.tensors().map(|tensor| on_card(&tensor)).fold(0, u64::saturating_add);
    let needs = needs(path, config)?;
    // Parts of long attentions, inputs of products and the vendor's library want room as well.
    let workspace = (workspace(&shape, config) as u64).saturating_mul(2).saturating_add(CARD);
    Ok(Needs { weights, workspace, ..needs })
}

fn on_card(tensor: &Tensor<'_>) -> u64 {
    let integers = match *tensor.shape {
        [columns, rows] => integers_bytes(tensor.format, rows, columns),
        _ => 0,
    };
    tensor.elements().saturating_mul(HALF as u64).saturating_add(integers)
}

fn packed(tensor: &Tensor<'_>) -> u64 {
    match *tensor.shape {
        [columns, rows] => packed_bytes(tensor.format, columns as usize, rows as usize) as u64,
        _ => tensor.elements().saturating_mul(SINGLE as u64),
    }
}

/// The widths are those of the buffers that the model makes at load.
fn workspace(shape: &ModelConfig, config: &EngineConfig) -> usize {
    let ModelConfig { width, inner, vocabulary, context, .. } = *shape;
    let (queries, keys) = (shape.heads * shape.head_width, shape.kv_heads * shape.head_width);
    let outputs = config.sequences_max.min(config.step_tokens);
    let row = 2 * width + (queries + 2 * keys) + queries + 3 * inner;
    let activations =
        config.step_tokens.saturating_mul(row).saturating_add(outputs.saturating_mul(2 * width + vocabulary));
    let rotations = context.saturating_mul(shape.rope_width).saturating_mul(shape.rope_tables());
    let tables = context.div_ceil(BLOCK_TOKENS).saturating_mul(outputs);
    let digits = config.step_tokens.saturating_mul(width.max(queries).max(inner)) / BLOCK * size_of::<Digits>();
    let digits = digits * config.activations.rounding().map_or(0, Rounding::planes);
    let samplers = config.threads.saturating_mul(vocabulary * CANDIDATE);
    [activations, rotations, tables]
        .into_iter()
        .fold(0_usize, usize::saturating_add)
        .saturating_mul(SINGLE)
        .saturating_add(digits)
        .saturating_add(samplers)
        .saturating_add(vocabulary * VOCABULARY_TOKEN)
}

/// What a matrix unit takes: rows of a step as it reads them, weights of 32 outputs for each thread, and rows that it leaves
/// to vector registers with their outputs.
fn of_unit(shape: &ModelConfig, config: &EngineConfig) -> usize {
    if config.activations.prompts_by(Level::detect().unit()).is_none() {
        return 0;
    }
    let queries = (shape.heads + 2 * shape.kv_heads) * shape.head_width;
    let (inputs, outputs) = (shape.width.max(queries).max(shape.inner), shape.width.max(queries).max(2 * shape.inner));
    let square = Shape { columns: inputs, closeness: Closeness::Coarse }.group() * size_of::<Line>();
    let squares = config.step_tokens.div_ceil(SIDE).saturating_add(config.threads).saturating_mul(square);
    config.step_tokens.saturating_mul((inputs + outputs) * SINGLE).saturating_add(squares)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Activations;
    use crate::fixture;

    #[test]
    fn a_tiny_model_needs_what_its_numbers_say() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.gguf");
        fixture::tiny_llama(&path, 7);
        let config = EngineConfig {
            threads: 2,
            activations: Activations::Int8,
            kv_tokens: 0,
            step_tokens: 64,
            sequences_max: 4,
            queue_max: 4,
        };
        let tiny = needs(&path, &config).unwrap();
        // 2 layers, 2 key-value heads of 16 numbers, keys and values, two bytes each.
        assert_eq!(tiny.kv_token, 2 * 2 * 16 * 2 * 2);
        let file = std::fs::metadata(&path).unwrap().len();
        assert!((file / 2..2 * file).contains(&tiny.weights), "{tiny:?} of a file of {file} bytes");
        assert_eq!(tiny.total(100) - tiny.total(0), 100 * tiny.kv_token);
        let wider = needs(&path, &EngineConfig { step_tokens: 128, ..config }).unwrap();
        assert!(wider.workspace > tiny.workspace && wider.weights == tiny.weights);
    }
}
