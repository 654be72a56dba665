//! One step's batch as flat arrays: what the scheduler decides and the model computes. No tensor in it.

use crate::sampler::Sampling;

/// A token of the model's vocabulary.
pub type TokenId = u32;

/// One block of the paged key-value cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// Tokens a block holds.
pub const BLOCK_TOKENS: usize = 16;

/// Which sequence of the scheduler a plan's entry belongs to; opaque to the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// The rows of one step, ragged over its sequences. Reused from step to step: `clear` keeps the capacity.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// (rows) token of each row; 0 where a [`Placeholder`] names the row.
    pub tokens: Vec<TokenId>,
    /// (rows) position of each row within its sequence, from 0.
    pub positions: Vec<u32>,
    /// (sequences) the spans of rows, in order, without gaps.
    pub spans: Vec<Span>,
    /// Block tables of all spans, concatenated; `Span::blocks` points into it.
    pub blocks: Vec<BlockId>,
    /// The rows whose logits are wanted, ascending.
    pub outputs: Vec<Output>,
    /// Tokens that repetition penalties look at, concatenated; `Output::history` points into it.
    pub history: Vec<TokenId>,
    /// Tokens that the step before this one is still choosing, by ascending row; empty when no step is in flight.
    pub placeholders: Vec<Placeholder>,
}

/// A token not known yet when the plan was made: the model takes it from what the step before this one sampled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placeholder {
    /// Index in the outputs of the step before.
    pub output: usize,
    /// Row of this step that carries the token.
    pub row: usize,
    /// Index in [`Plan::history`] of the same token, where a penalty looks at it.
    pub history: Option<usize>,
}

/// One sequence's share of a step: rows `rows` carry its tokens `computed .. computed + rows.len()`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Whose rows these are.
    pub sequence: SequenceId,
    /// Rows of the step.
    pub rows: std::ops::Range<usize>,
    /// Tokens of the sequence already in the cache before this step.
    pub computed: usize,
    /// How many of the rows, its first ones, carry tokens that the sequence came with; the others were sampled.
    pub prompt: usize,
    /// Range of `Plan::blocks`: enough blocks for `computed + rows.len()` tokens.
    pub blocks: std::ops::Range<usize>,
}

/// One row to sample from.
#[derive(Clone, Debug)]
pub struct Output {
    /// Whose next token this is.
    pub sequence: SequenceId,
    /// Row of the step whose logits are used.
    pub row: usize,
    /// Position that the sampled token will take: the key of the random number with the seed.
    pub position: u32,
    /// How to choose.
    pub sampling: Sampling,
    /// Range of `Plan::history`; empty when no penalty applies.
    pub history: std::ops::Range<usize>,
    /// One bit a token of the vocabulary, set where the token is allowed; `None` allows all.
    pub mask: Option<std::sync::Arc<[u32]>>,
}

/// What came of one [`Output`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampled {
    /// Whose token.
    pub sequence: SequenceId,
    /// The token chosen.
    pub token: TokenId,
}

impl Plan {
    /// Empties the plan and keeps its memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.spans.clear();
        self.blocks.clear();
        self.outputs.clear();
        self.history.clear();
        self.placeholders.clear();
    }

    /// Rows of the step.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }
}
