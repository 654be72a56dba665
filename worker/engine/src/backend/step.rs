//! A step's rows as the backends on the host look at them, and the tokens that it chose.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::Error;
use crate::backend::StepLimits;
use crate::model::Ticket;
use crate::plan::{BLOCK_TOKENS, BlockId, Plan, Sampled, SequenceId, TokenId};
use crate::simd::attention::ROWS;

/// One row of the step.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) token: TokenId,
    pub(super) position: u32,
    blocks: Range<usize>,
}

/// The step under way.
#[derive(Debug)]
pub(super) struct Step {
    limits: StepLimits,
    rows: Vec<Row>,
    /// Rows of following tokens of one sequence, at most [`ROWS`] together.
    runs: Vec<Range<usize>>,
    /// Rows of tokens that were sampled.
    sampled: Vec<usize>,
    blocks: Vec<BlockId>,
    /// The rows to sample from.
    outputs: Vec<usize>,
    /// The token of each output; threads write their own.
    chosen: Vec<AtomicU32>,
    /// Whose tokens these are.
    sequences: Vec<SequenceId>,
    number: u64,
}

impl Step {
    pub(super) fn new(limits: StepLimits) -> Step {
        Step {
            limits,
            rows: Vec::with_capacity(limits.rows),
            runs: Vec::with_capacity(limits.rows),
            sampled: Vec::with_capacity(limits.rows),
            blocks: Vec::with_capacity(limits.blocks),
            outputs: Vec::with_capacity(limits.outputs),
            chosen: (0..limits.outputs).map(|_| AtomicU32::new(0)).collect(),
            sequences: Vec::with_capacity(limits.outputs),
            number: 0,
        }
    }

    /// What it may hold.
    pub(super) fn limits(&self) -> StepLimits {
        self.limits
    }

    /// Takes a plan in. A plan that breaks a limit is the scheduler's mistake, and is refused before anything is computed.
    pub(super) fn begin(&mut self, plan: &Plan) -> Result<(), Error> {
        let StepLimits { rows, outputs, blocks } = self.limits;
        if plan.rows() > rows || plan.outputs.len() > outputs || plan.blocks.len() > blocks {
            return Err(Error::Device("a plan larger than the step".into()));
        }
        if !plan.placeholders.is_empty() {
            return Err(Error::Device("a plan that does not wait for its tokens".into()));
        }
        self.rows.clear();
        self.runs.clear();
        self.sampled.clear();
        for span in &plan.spans {
            let end = span.computed + span.rows.len();
            if end.div_ceil(BLOCK_TOKENS) > span.blocks.len() || span.blocks.end > plan.blocks.len() {
                return Err(Error::Device("a span without a block for every token".into()));
            }
            if span.prompt > span.rows.len() {
                return Err(Error::Device("a span of more prompt than rows".into()));
            }
            let first = self.rows.len();
            let end = first + span.rows.len();
            self.runs.extend((first..end).step_by(ROWS).map(|first| first..end.min(first + ROWS)));
            self.sampled.extend(first + span.prompt..end);
            for (row, position) in span.rows.clone().zip(span.computed as u32..) {
                self.rows.push(Row { token: plan.tokens[row], position, blocks: span.blocks.clone() });
            }
        }
        if self.rows.len() != plan.rows() || plan.outputs.iter().any(|output| output.row >= plan.rows()) {
            return Err(Error::Device("a plan whose spans or outputs are not its rows".into()));
        }
        self.blocks.clear();
        self.blocks.extend_from_slice(&plan.blocks);
        self.outputs.clear();
        self.outputs.extend(plan.outputs.iter().map(|output| output.row));
        Ok(())
    }

    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    pub(super) fn runs(&self) -> &[Range<usize>] {
        &self.runs
    }

    pub(super) fn sampled(&self) -> &[usize] {
        &self.sampled
    }

    pub(super) fn table(&self, row: &Row) -> &[BlockId] {
        &self.blocks[row.blocks.clone()]
    }

    /// Where a row's table begins in [`Step::blocks`].
    pub(super) fn table_start(&self, row: &Row) -> usize {
        row.blocks.start
    }

    /// The tables of all spans.
    pub(super) fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    pub(super) fn outputs(&self) -> &[usize] {
        &self.outputs
    }

    /// Notes the token of an output.
    pub(super) fn choose(&self, output: usize, token: TokenId) {
        self.chosen[output].store(token, Ordering::Relaxed);
    }

    /// Ends the step; its tokens wait to be collected.
    pub(super) fn end(&mut self, plan: &Plan) -> Ticket {
        self.sequences.clear();
        self.sequences.extend(plan.outputs.iter().map(|output| output.sequence));
        self.number += 1;
        Ticket(self.number)
    }

    pub(super) fn collect(&mut self, ticket: Ticket, sampled: &mut Vec<Sampled>) -> Result<(), Error> {
        if ticket != Ticket(self.number) {
            return Err(Error::Device("a ticket of another step".into()));
        }
        let tokens = self.chosen.iter().map(|token| token.load(Ordering::Relaxed));
        let pairs = self.sequences.iter().zip(tokens);
        sampled.extend(pairs.map(|(sequence, token)| Sampled { sequence: *sequence, token }));
        Ok(())
    }
}
