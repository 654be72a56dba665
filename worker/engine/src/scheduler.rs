//! Decides what each step computes. Pure and synchronous: no clock, no device, no text.
//!
//! There are no phases. A sequence wants all its tokens computed; a step gives it as many rows as the budget leaves,
//! those running first, in order of admission, then those waiting. The step that reaches its last token samples the
//! next. When blocks run out, the youngest running sequence gives up its cache and computes it again later; so the
//! oldest always goes on, and every sequence ends.
//!
//! What a step has filled is noted when it lands: a sequence that begins as another did gets those blocks at admission
//! and computes the rest, at least its last token. Shared blocks are full, so nobody writes to them.
//!
//! Steps may overlap: [`Scheduler::plan`] may run while the step before is in flight. A token still being chosen is a
//! placeholder in the plan; blocks named by a step in flight linger until it lands; and what a step samples for a
//! sequence that has ended meanwhile is dropped.

mod choose;
mod draft;
#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use crate::allowance::Allowance;
use crate::blocks::Blocks;
use crate::plan::{BLOCK_TOKENS, BlockId, Plan, Sampled, SequenceId, TokenId};
use crate::prefix::Kept;
use crate::sequence::{Sequence, StepId};
use choose::Supply;
use draft::Draft;
use std::collections::{HashMap, VecDeque};
use std::time::Instant;

/// What bounds the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens a sequence may have.
    pub context: usize,
    /// Blocks of the key-value cache.
    pub blocks: usize,
    /// Rows a step may have.
    pub step_tokens: usize,
    /// Sequences that may run at once.
    pub sequences_max: usize,
}

impl Limits {
    /// Tokens, prompt and outputs together, of the longest sequence that can run: with all blocks to itself, so what
    /// is let in can always be finished.
    #[must_use]
    pub fn length_max(&self) -> usize {
        self.context.min(self.blocks.saturating_mul(BLOCK_TOKENS))
    }
}

/// What the scheduler did with a sequence of its own accord.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It was planned for the first time; so many of its tokens were in the cache.
    Started(SequenceId, usize),
    /// It ended, and is forgotten.
    Ended(SequenceId, Ending),
}

/// Why a sequence ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Its reader said so.
    Stop,
    /// It has all the outputs it may have.
    Length,
    /// Its deadline passed.
    Deadline,
}

/// What a reader says to a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// More, please.
    Continue,
    /// This was the last.
    Stop,
}

/// A planned step that has not landed.
#[derive(Debug, Default)]
struct Flight {
    step: StepId,
    /// Tokens that it computes.
    rows: usize,
    /// All whose rows it computes, and how many of their tokens are in the cache then.
    sequences: Vec<(SequenceId, usize)>,
    /// Those that it samples for, in the order of the plan.
    outputs: Vec<SequenceId>,
    /// Blocks of sequences that left while this step named them: free once it lands.
    lingering: Vec<BlockId>,
}

/// All sequences, and who has which block.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    /// Of a step.
    step_tokens: Allowance,
    blocks: Blocks,
    sequences: HashMap<SequenceId, Sequence>,
    /// By age: the first is served first and preempted last.
    running: Vec<SequenceId>,
    /// Those preempted, oldest first, then those never run.
    waiting: VecDeque<SequenceId>,
    /// Oldest first.
    flights: VecDeque<Flight>,
    /// Landed flights, kept for their memory.
    spare: Vec<Flight>,
    next_step: StepId,
    /// No sequence has an earlier one: until then nobody has to look.
    first_deadline: Option<Instant>,
    preemptions: u64,
    /// Emptied and filled again, for its memory.
    found: Vec<BlockId>,
    kept: Kept,
}

impl Scheduler {
    /// A scheduler without sequences.
    ///
    /// # Panics
    /// When a limit is zero: nothing could ever run.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        assert!(limits.length_max() > 0 && limits.step_tokens > 0 && limits.sequences_max > 0);
        Self {
            limits,
            step_tokens: Allowance::whole(limits.step_tokens),
            blocks: Blocks::new(limits.blocks),
            sequences: HashMap::new(),
            running: Vec::new(),
            waiting: VecDeque::new(),
            flights: VecDeque::new(),
            spare: Vec::new(),
            next_step: StepId(0),
            first_deadline: None,
            preemptions: 0,
            found: Vec::new(),
            kept: Kept::All,
        }
    }

    /// The same scheduler, with other blocks kept for who begins the same way.
    #[must_use]
    pub fn keeping(self, kept: Kept) -> Self {
        Self { kept, ..self }
    }

    /// Lets a sequence in; it waits behind those already there.
    ///
    /// # Panics
    /// When it is longer than [`Limits::length_max`], or its id is taken.
    pub fn submit(&mut self, sequence: Sequence) {
        assert!(sequence.length_max() <= self.limits.length_max(), "refused at the door");
        let id = sequence.id;
        self.first_deadline = earliest(self.first_deadline, sequence.deadline);
        self.waiting.push_back(id);
        let before = self.sequences.insert(id, sequence);
        assert!(before.is_none(), "{id:?} is in already");
    }

    /// Forgets a sequence at once. False when it is not there.
    pub fn cancel(&mut self, id: SequenceId) -> bool {
        let Some(sequence) = self.sequences.remove(&id) else {
            return false;
        };
        self.running.retain(|running| *running != id);
        self.waiting.retain(|waiting| *waiting != id);
        self.release(sequence.table, sequence.last_step);
        true
    }

    /// Plans the next step into `plan`. `None`, and an empty plan, when nothing can be computed before a step in
    /// flight has landed, or nothing is there to compute.
    ///
    /// # Panics
    /// When more than one step is in flight.
    pub fn plan(&mut self, now: Instant, plan: &mut Plan, notices: &mut Vec<Notice>) -> Option<StepId> {
        assert!(self.flights.len() <= 1, "a placeholder can name the step before only");
        plan.clear();
        self.expire(now, notices);
        let mut flight = self.spare.pop().unwrap_or_default();
        flight.step = self.next_step;
        let mut draft = Draft::new(plan, flight, self.step_tokens.now());
        if self.continue_running(&mut draft) == Supply::Ample {
            self.admit(&mut draft, notices);
        }
        let Draft { mut flight, budget, .. } = draft;
        flight.rows = self.step_tokens.now() - budget;
        if flight.sequences.is_empty() {
            self.spare.push(flight);
            return None;
        }
        let step = flight.step;
        self.next_step = StepId(step.0 + 1);
        self.flights.push_back(flight);
        Some(step)
    }

    /// Records what the oldest step in flight sampled, in the order of its plan. `judge` reads each token of a
    /// sequence that is still there.
    ///
    /// # Panics
    /// When `step` is not the oldest in flight, or `sampled` does not answer its plan.
    pub fn advance(
        &mut self,
        step: StepId,
        sampled: &[Sampled],
        mut judge: impl FnMut(SequenceId, TokenId) -> Verdict,
        notices: &mut Vec<Notice>,
    ) {
        let flight = self.flights.pop_front().expect("a step is in flight");
        assert_eq!(flight.step, step, "steps land in order");
        assert!(
            flight.outputs.iter().eq(sampled.iter().map(|one| &one.sequence)),
            "a step samples for those that its plan names"
        );
        self.note(&flight);
        self.step_tokens.grow();
        for &Sampled { sequence: id, token } in sampled {
            let Some(sequence) = self.sequences.get_mut(&id).filter(|sequence| flight.step >= sequence.since) else {
                continue;
            };
            sequence.resolve(token);
            let is_full = sequence.is_full();
            let ending = match judge(id, token) {
                Verdict::Stop => Ending::Stop,
                Verdict::Continue if is_full => Ending::Length,
                Verdict::Continue => continue,
            };
            self.end(id, ending, notices);
        }
        self.land(flight);
    }

    /// A step in flight failed: all that it names are forgotten, and appended to `lost`.
    ///
    /// # Panics
    /// When the step is not in flight.
    pub fn abandon(&mut self, step: StepId, lost: &mut Vec<SequenceId>) {
        let at = self.flights.iter().position(|flight| flight.step == step);
        let at = at.expect("the step is in flight");
        // Still among the flights while its sequences leave: their blocks are to linger with it.
        for (id, _) in std::mem::take(&mut self.flights[at].sequences) {
            if self.cancel(id) {
                lost.push(id);
            }
        }
        let flight = self.flights.remove(at).expect("it was just found");
        self.land(flight);
    }

    /// A step in flight came to nothing, for want of memory: all that it names give up their caches and wait to be computed
    /// again, in steps of half as many tokens. False, and nothing done, where it had but one token: it can be no smaller.
    ///
    /// # Panics
    /// When the step is not in flight.
    pub fn retreat(&mut self, step: StepId) -> bool {
        let at = self.flights.iter().position(|flight| flight.step == step);
        let at = at.expect("the step is in flight");
        let rows = self.flights[at].rows;
        if rows <= 1 {
            return false;
        }
        self.step_tokens.halve(rows);
        let named = std::mem::take(&mut self.flights[at].sequences);
        for (id, _) in &named {
            if let Some(sequence) = self.sequences.get_mut(id) {
                sequence.expect_nothing_before(self.next_step);
            }
        }
        // The youngest first: they are to be admitted again in the order of their ages.
        for index in (0..self.running.len()).rev() {
            if named.iter().any(|(id, _)| *id == self.running[index]) {
                self.preempt(index);
            }
        }
        let flight = self.flights.remove(at).expect("it was just found");
        self.land(flight);
        true
    }

    /// Sequences in the batch.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences not in the batch.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whether no sequence is there. Steps may still be in flight.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// The sequence, while it is there.
    #[must_use]
    pub fn sequence(&self, id: SequenceId) -> Option<&Sequence> {
        self.sequences.get(&id)
    }

    /// The cache's blocks.
    #[must_use]
    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// How often a sequence gave up its cache.
    #[must_use]
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// Takes note of the blocks that a step has filled.
    fn note(&mut self, flight: &Flight) {
        for &(id, computed) in &flight.sequences {
            let Some(sequence) = self.sequences.get_mut(&id) else {
                continue;
            };
            let full = self.kept.of(computed, sequence.prompt_tokens()) / BLOCK_TOKENS;
            if flight.step < sequence.since || sequence.table.len() < full {
                continue;
            }
            for index in sequence.noted..full {
                let content = sequence.content(index).expect("what a step computed is known when it lands");
                self.blocks.note(sequence.table[index], content);
                sequence.noted = index + 1;
            }
        }
    }

    /// Ends a sequence and says so.
    fn end(&mut self, id: SequenceId, ending: Ending, notices: &mut Vec<Notice>) {
        assert!(self.cancel(id), "{id:?} ends once");
        notices.push(Notice::Ended(id, ending));
    }

    /// Frees a sequence's blocks, or leaves them with the newest step in flight that names it.
    fn release(&mut self, blocks: Vec<BlockId>, last_step: Option<StepId>) {
        let mut flights = self.flights.iter_mut();
        match flights.find(|flight| Some(flight.step) == last_step) {
            Some(flight) => flight.lingering.extend(blocks),
            None => self.blocks.release(blocks.into_iter()),
        }
    }

    /// A step is out of flight: frees what lingered for it, once no step before it may name the same blocks.
    fn land(&mut self, mut flight: Flight) {
        match self.flights.iter_mut().rfind(|other| other.step < flight.step) {
            Some(before) => before.lingering.append(&mut flight.lingering),
            None => self.blocks.release(flight.lingering.drain(..)),
        }
        flight.sequences.clear();
        flight.outputs.clear();
        self.spare.push(flight);
    }

    /// Blocks that the steps in flight will free.
    fn lingering(&self) -> usize {
        self.flights.iter().map(|flight| flight.lingering.len()).sum()
    }
}

/// The earlier of two deadlines, where no deadline is the latest.
fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    a.into_iter().chain(b).min()
}
