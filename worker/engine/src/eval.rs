//! A model's opinion of a given text: for perplexities and comparisons, not for serving.

use std::path::Path;

use crate::Error;
use crate::backend::Activations;
use crate::engine::EngineConfig;
use crate::gguf::Gguf;
use crate::load::on_processor;
use crate::model::ModelConfig;
use crate::plan::{BLOCK_TOKENS, BlockId, Output, Plan, SequenceId, Span, TokenId};
use crate::sampler::Sampling;
use crate::simd::Level;

/// Tokens computed at a time: the logits of so many rows stay small.
const CHUNK: usize = 64;

/// Runs `tokens` as one sequence, the first `prompt` of which it came with, and calls `see` with each position and the logits
/// of the token after it.
pub fn logits(
    path: &Path,
    (tokens, prompt): (&[TokenId], usize),
    activations: Activations,
    see: impl FnMut(usize, &[f32]),
) -> Result<(), Error> {
    let threads = std::thread::available_parallelism().map_or(1, Into::into);
    logits_at(path, (tokens, prompt), (Level::detect(), threads, activations), see)
}

/// As [`logits`], with the instructions and threads given.
pub fn logits_at(
    path: &Path,
    (tokens, prompt): (&[TokenId], usize),
    (level, threads, activations): (Level, usize, Activations),
    mut see: impl FnMut(usize, &[f32]),
) -> Result<(), Error> {
    let gguf = Gguf::open(path)?;
    let shape = ModelConfig::from_gguf(&gguf)?;
    let blocks = tokens.len().div_ceil(BLOCK_TOKENS);
    if tokens.len() > shape.context || tokens.iter().any(|token| *token as usize >= shape.vocabulary) {
        return Err(Error::Unsupported("tokens outside of the model's context or vocabulary".into()));
    }
    let config = EngineConfig {
        threads,
        activations,
        kv_tokens: (blocks * BLOCK_TOKENS).max(BLOCK_TOKENS),
        step_tokens: CHUNK,
        sequences_max: CHUNK,
        queue_max: 1,
    };
    let vocabulary = shape.vocabulary;
    let mut model = on_processor(&gguf, shape, &config, level)?;
    let mut all = Vec::new();
    for first in (0..tokens.len()).step_by(CHUNK) {
        let end = tokens.len().min(first + CHUNK);
        model.logits(&chunk((tokens, prompt), first..end, blocks), &mut all)?;
        for (position, logits) in (first..end).zip(all.chunks_exact(vocabulary)) {
            see(position, logits);
        }
    }
    Ok(())
}

/// The plan of some tokens of the only sequence, an output at each.
fn chunk((tokens, prompt): (&[TokenId], usize), range: std::ops::Range<usize>, blocks: usize) -> Plan {
    let output = |row: usize| Output {
        sequence: SequenceId(0),
        row,
        position: (range.start + row + 1) as u32,
        sampling: Sampling::greedy(),
        history: 0..0,
        mask: None,
    };
    Plan {
        tokens: tokens[range.clone()].to_vec(),
        positions: range.clone().map(|position| position as u32).collect(),
        spans: vec![Span {
            sequence: SequenceId(0),
            rows: 0..range.len(),
            computed: range.start,
            prompt: prompt.clamp(range.start, range.end) - range.start,
            blocks: 0..blocks,
        }],
        blocks: (0..blocks as u32).map(BlockId).collect(),
        outputs: (0..range.len()).map(output).collect(),
        ..Plan::default()
    }
}
