//! One job inside the engine: its tokens, and how many of them the cache holds.
//!
//! There is no prefill or decode here: a sequence wants all its tokens computed, and the step that computes the last
//! one samples the next. A token that a step in flight is still choosing counts as known, though its value is not.

use crate::plan::{BLOCK_TOKENS, BlockId, SequenceId, TokenId};
use crate::prefix::{Chain, Content, Scope};
use crate::sampler::Sampling;
use std::time::Instant;

/// Number of a planned step; steps land in this order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct StepId(pub u64);

/// A sequence, from submission to its end.
#[derive(Clone, Debug)]
pub struct Sequence {
    /// Its name in plans.
    pub id: SequenceId,
    /// How its tokens are chosen.
    pub sampling: Sampling,
    /// From then on it is never planned again.
    pub deadline: Option<Instant>,
    /// With whom it shares blocks.
    scope: Scope,
    /// Prompt, then what was sampled and has landed.
    tokens: Vec<TokenId>,
    prompt_tokens: usize,
    max_tokens: usize,
    /// Outputs that steps in flight are choosing.
    pending: usize,
    /// Tokens in the cache once all steps in flight have run.
    pub(crate) computed: usize,
    /// The blocks of those tokens, and any taken ahead for the rest.
    pub(crate) table: Vec<BlockId>,
    /// (full blocks looked at so far) the chain up to the end of each.
    chains: Vec<Chain>,
    /// Blocks at the beginning of the table whose content is noted.
    pub(crate) noted: usize,
    /// The first step since it got its table: earlier ones know another.
    pub(crate) since: StepId,
    /// The newest step that names this sequence.
    pub(crate) last_step: Option<StepId>,
    /// Where the newest output is: its step, and its index there.
    pub(crate) last_output: Option<(StepId, usize)>,
    /// Whether any step has named it.
    pub(crate) phase: Phase,
}

/// Whether a sequence has been planned before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Submitted, never planned.
    Fresh,
    /// Planned at least once, though preemption may have emptied its cache since.
    Started,
}

impl Sequence {
    /// A sequence that continues `tokens` by at most `max_tokens`.
    ///
    /// # Panics
    /// When there is nothing to continue, or nothing is wanted: such a job has no step to end in.
    #[must_use]
    pub fn new(id: SequenceId, tokens: Vec<TokenId>, max_tokens: usize, sampling: Sampling) -> Self {
        assert!(!tokens.is_empty(), "a sequence needs a token to sample from");
        assert!(max_tokens > 0, "a sequence ends by its outputs, so it needs one");
        Self {
            id,
            sampling,
            deadline: None,
            scope: Scope::default(),
            prompt_tokens: tokens.len(),
            tokens,
            max_tokens,
            pending: 0,
            computed: 0,
            table: Vec::new(),
            chains: Vec::new(),
            noted: 0,
            since: StepId(0),
            last_step: None,
            last_output: None,
            phase: Phase::Fresh,
        }
    }

    /// The same sequence, to be ended at `deadline`.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Option<Instant>) -> Self {
        self.deadline = deadline;
        self
    }

    /// The same sequence, sharing blocks within `scope`.
    #[must_use]
    pub fn in_scope(self, scope: Scope) -> Self {
        Self { scope, ..self }
    }

    /// Tokens whose values are known.
    #[must_use]
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// Tokens there are, those in flight included.
    #[must_use]
    pub fn length(&self) -> usize {
        self.tokens.len() + self.pending
    }

    /// Tokens it can come to at most.
    #[must_use]
    pub fn length_max(&self) -> usize {
        self.prompt_tokens + self.max_tokens
    }

    /// Sampled tokens that have landed.
    #[must_use]
    pub fn outputs(&self) -> usize {
        self.tokens.len() - self.prompt_tokens
    }

    /// Tokens it came with.
    #[must_use]
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// Rows that still have to be computed for the next output; none once the last output is in flight.
    #[must_use]
    pub fn rows_wanted(&self) -> usize {
        if self.length() == self.length_max() { 0 } else { self.length() - self.computed }
    }

    /// Whether all outputs it may have are there.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.tokens.len() == self.length_max()
    }

    /// What the block at `index` holds once it is full; `None` while some of its tokens are not known.
    pub(crate) fn content(&mut self, index: usize) -> Option<Content> {
        let blocks = self.tokens.as_chunks::<BLOCK_TOKENS>().0;
        let tokens = *blocks.get(index)?;
        while self.chains.len() <= index {
            let before = self.chains.last().copied().unwrap_or_else(|| Chain::begin(self.scope));
            self.chains.push(before.then(&blocks[self.chains.len()]));
        }
        Some(Content { chain: self.chains[index], tokens })
    }

    /// Gives up the cache: what was computed is computed again.
    pub(crate) fn give_up(&mut self) -> Vec<BlockId> {
        (self.computed, self.noted) = (0, 0);
        std::mem::take(&mut self.table)
    }

    /// Takes note that a step will sample the next token.
    pub(crate) fn expect_output(&mut self, step: StepId, index: usize) {
        self.pending += 1;
        self.last_output = Some((step, index));
    }

    /// Takes note that steps before `step` give it nothing more.
    pub(crate) fn expect_nothing_before(&mut self, step: StepId) {
        (self.pending, self.since) = (0, step);
    }

    /// Appends the oldest output in flight, now that its value is known.
    pub(crate) fn resolve(&mut self, token: TokenId) {
        self.pending = self.pending.checked_sub(1).expect("a sampled token was expected");
        self.tokens.push(token);
    }

    /// Reserves the memory of all tokens to come, so that no later step allocates.
    pub(crate) fn start(&mut self) {
        self.phase = Phase::Started;
        self.tokens.reserve(self.length_max() - self.tokens.len());
    }
}
