//! Which inputs make the next batch: pure, so that it can be simulated.
//!
//! Inputs wait in the order in which they came, whichever job they are of; one that goes on comes anew, behind what came
//! meanwhile, so that a short clip does not wait for the end of long ones. The first is in every next batch, so nothing
//! starves; others of its kind join it in order, as far as the budget has room. What is left of their jobs steps behind
//! the jobs that had none in it, so that one of many inputs does not keep all others waiting.
//!
//! A batch that the device has no room for comes again in halves, and batches grow back to the budget little by little.

use std::collections::{HashSet, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use super::{Budget, Cost, InputKey};
use crate::allowance::Allowance;
use crate::engine::JobKey;

/// Why no more went into a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Close {
    /// The budget is used up, or what is left of it fits nothing that waits.
    Full,
    /// All that waits besides is of other kinds.
    Kind,
    /// More was hoped for, but the time to wait is over.
    Waited,
    /// Nothing else was in, and nothing spoke for waiting.
    Idle,
}

impl Close {
    /// All there are.
    pub const ALL: [Close; 4] = [Close::Full, Close::Kind, Close::Waited, Close::Idle];

    /// The name in metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Close::Full => "full",
            Close::Kind => "kind",
            Close::Waited => "waited",
            Close::Idle => "idle",
        }
    }
}

/// An input that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Whose it is.
    pub job: JobKey,
    /// What it costs.
    pub cost: Cost,
    /// Since when it waits.
    pub since: Instant,
    /// Whether it was in a batch before.
    pub turn: Which,
}

/// Whether an input was in a batch before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// It was in none.
    First,
    /// It goes on.
    Next,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Nothing waits.
    Empty,
    /// Company is hoped for until then.
    Wait(Instant),
    /// The batch that was chosen runs.
    Run(Close),
}

/// Inputs that wait, in the order in which batches take them.
#[derive(Debug)]
pub struct Queue {
    /// Of a batch.
    units: Allowance,
    inputs: Allowance,
    max_wait: Duration,
    waiting: VecDeque<(InputKey, Waiting)>,
    /// Jobs of the last batch: as many are hoped for again.
    last_jobs: usize,
}

impl Queue {
    /// Nothing waits.
    #[must_use]
    pub fn new(budget: Budget) -> Queue {
        let Budget { units, inputs, max_wait } = budget;
        let (units, inputs) = (Allowance::whole(units), Allowance::whole(inputs));
        Queue { units, inputs, max_wait, waiting: VecDeque::new(), last_jobs: 0 }
    }

    /// An input waits, behind all others.
    pub fn push(&mut self, key: InputKey, input: Waiting) {
        self.waiting.push_back((key, input));
    }

    /// Inputs of a job wait no more.
    pub fn remove(&mut self, keys: Range<InputKey>) {
        self.waiting.retain(|(key, _)| !keys.contains(key));
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Decides, and takes the inputs of a batch out into `batch`, which is emptied first; it stays empty unless the
    /// answer is [`Choice::Run`].
    pub fn choose(&mut self, now: Instant, batch: &mut Vec<(InputKey, Waiting)>) -> Choice {
        batch.clear();
        let Some((_, head)) = self.waiting.front() else { return Choice::Empty };
        let kind = head.cost.kind;
        let close = match self.gather(kind, batch) {
            Room::None => Close::Full,
            Room::Some if batch.len() < self.waiting.len() => Close::Kind,
            Room::Some if !self.hopes(batch) => Close::Idle,
            Room::Some => match oldest(batch).and_then(|since| since.checked_add(self.max_wait)) {
                Some(end) if now < end => {
                    batch.clear();
                    return Choice::Wait(end);
                }
                _ => Close::Waited,
            },
        };
        let served = jobs(batch);
        self.last_jobs = served.len();
        let mut chosen = batch.iter().map(|(key, _)| *key).peekable();
        self.waiting.retain(|(key, _)| chosen.next_if_eq(key).is_none());
        // Stable: within both groups the order stays.
        self.waiting.make_contiguous().sort_by_key(|(_, input)| served.contains(&input.job));
        Choice::Run(close)
    }

    /// Takes back a batch that the device had no room for, ahead of all others: the next ones are half as large at most.
    pub fn halve(&mut self, batch: &[(InputKey, Waiting)]) {
        self.units.halve(batch.iter().map(|(_, input)| input.cost.units).sum());
        self.inputs.halve(batch.len());
        batch.iter().rev().for_each(|input| self.waiting.push_front(*input));
    }

    /// There was room for a batch: the next one may be a little larger than the last.
    pub fn grow(&mut self) {
        self.units.grow();
        self.inputs.grow();
    }

    /// Copies what fits of the first input's kind to `batch`; the first fits always.
    fn gather(&self, kind: u32, batch: &mut Vec<(InputKey, Waiting)>) -> Room {
        let (mut left, inputs) = (self.units.now(), self.inputs.now());
        let mut room = Room::Some;
        for (key, input) in self.waiting.iter().filter(|(_, input)| input.cost.kind == kind) {
            if batch.is_empty() || (input.cost.units <= left && batch.len() < inputs) {
                left = left.saturating_sub(input.cost.units);
                batch.push((*key, *input));
            } else {
                room = Room::None;
            }
            if left == 0 || batch.len() >= inputs {
                return Room::None;
            }
        }
        room
    }

    /// Whether more may come soon: those who were in the last batch tend to be back shortly after it. An input that
    /// goes on has waited for a batch already.
    fn hopes(&self, batch: &[(InputKey, Waiting)]) -> bool {
        let fresh = batch.iter().all(|(_, input)| input.turn == Which::First);
        fresh && !self.max_wait.is_zero() && jobs(batch).len() < self.last_jobs
    }
}

/// What the budget has left.
enum Room {
    Some,
    None,
}

/// Whose inputs a batch has.
fn jobs(batch: &[(InputKey, Waiting)]) -> HashSet<JobKey> {
    batch.iter().map(|(_, input)| input.job).collect()
}

/// Since when the input of a batch that waits longest does.
pub(super) fn oldest(batch: &[(InputKey, Waiting)]) -> Option<Instant> {
    batch.iter().map(|(_, input)| input.since).min()
}

#[cfg(test)]
mod tests;
