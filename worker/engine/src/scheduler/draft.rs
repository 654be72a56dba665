//! A plan while it is being filled.

use super::Flight;
use crate::blocks::Blocks;
use crate::plan::{Output, Placeholder, Plan, Span};
use crate::sequence::{Sequence, StepId};

/// The plan, the record of its flight, and the rows it may still take.
pub(super) struct Draft<'a> {
    plan: &'a mut Plan,
    pub(super) flight: Flight,
    pub(super) budget: usize,
}

impl<'a> Draft<'a> {
    /// An empty draft.
    pub(super) fn new(plan: &'a mut Plan, flight: Flight, budget: usize) -> Self {
        Self { plan, flight, budget }
    }

    /// Lays down the next rows of a sequence that has the blocks for them, as many as the budget leaves; and its
    /// output, when they reach its last token.
    pub(super) fn lay(&mut self, sequence: &mut Sequence) {
        let start = sequence.computed;
        let end = start + sequence.rows_wanted().min(self.budget);
        self.budget -= end - start;
        let placeholder = self.lay_rows(sequence, start, end);
        sequence.computed = end;
        sequence.last_step = Some(self.flight.step);
        self.flight.sequences.push((sequence.id, end));
        if end == sequence.length() {
            self.lay_output(sequence, placeholder);
        }
    }

    /// The rows of the tokens `start .. end`, their span and blocks. Returns where the newest token is being chosen,
    /// when that one is among them and not known yet.
    fn lay_rows(&mut self, sequence: &Sequence, start: usize, end: usize) -> Option<Placeholder> {
        let plan = &mut *self.plan;
        let known = sequence.tokens().len();
        let first_row = plan.rows();
        let first_block = plan.blocks.len();
        plan.tokens.extend(&sequence.tokens()[start..end.min(known)]);
        plan.tokens.resize(first_row + end - start, 0);
        plan.positions.extend((start..end).map(position));
        plan.blocks.extend(&sequence.table[..Blocks::count_for(end)]);
        plan.spans.push(Span {
            sequence: sequence.id,
            rows: first_row..plan.rows(),
            computed: start,
            prompt: sequence.prompt_tokens().clamp(start, end) - start,
            blocks: first_block..plan.blocks.len(),
        });
        (end > known).then(|| {
            assert_eq!(end, known + 1, "the last token only may be unknown");
            Placeholder { output: before(sequence, self.flight.step), row: plan.rows() - 1, history: None }
        })
    }

    /// The output behind the last row.
    fn lay_output(&mut self, sequence: &mut Sequence, placeholder: Option<Placeholder>) {
        let plan = &mut *self.plan;
        let first = plan.history.len();
        if sequence.sampling.looks_back() {
            plan.history.extend(sequence.tokens());
            plan.history.extend(placeholder.map(|_| 0));
        }
        let history = first..plan.history.len();
        plan.placeholders
            .extend(placeholder.map(|placeholder| Placeholder { history: history.clone().next_back(), ..placeholder }));
        plan.outputs.push(Output {
            sequence: sequence.id,
            row: plan.rows() - 1,
            position: position(sequence.length()),
            sampling: sequence.sampling,
            history,
            mask: None,
        });
        sequence.expect_output(self.flight.step, self.flight.outputs.len());
        self.flight.outputs.push(sequence.id);
    }
}

/// Index of the sequence's newest output among those of the step before `step`.
fn before(sequence: &Sequence, step: StepId) -> usize {
    let (of, index) = sequence.last_output.expect("an unknown token is some step's output");
    assert_eq!(of.0 + 1, step.0, "an unknown token is the output of the step before");
    index
}

/// A position as plans carry it.
fn position(index: usize) -> u32 {
    u32::try_from(index).expect("a context has fewer than 2^32 tokens")
}
