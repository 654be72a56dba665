//! What to pull, and what to serve first: pure. A lane is one priority of one model.
//!
//! Two kinds of pull. Where a lane is known to have jobs, a [`Kind::Now`] pull asks for a share of the free slots, and
//! those slots are reserved until it is answered. Where it is not, a [`Kind::Waiting`] pull of one stands for up to
//! [`EXPIRES`] and reserves nothing: what it brings when the slots are taken is held, at most one a lane, and served
//! before anything is pulled. Turns go by smooth weighted round robin, so that an urgent lane goes first and none starves.
//! A lane nobody has asked for [`PROBE`] is asked in its turn even under full load, since only an answer shows its jobs.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use protocol::request::Priority;

/// How long a waiting pull stands.
pub const EXPIRES: Duration = Duration::from_secs(1);
/// A pull without any answer for this long after its end is made anew.
pub const ANSWER: Duration = Duration::from_secs(5);
/// What was heard of a lane is news for this long.
const PROBE: Duration = Duration::from_secs(1);

/// Turns of a lane out of every twelve.
#[must_use]
pub const fn weight(priority: Priority) -> u32 {
    match priority {
        Priority::Interactive => 8,
        Priority::Standard => 3,
        Priority::Batch => 1,
    }
}

/// How a pull asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What is there now; the server answers at once.
    Now,
    /// The next one, for up to [`EXPIRES`].
    Waiting,
}

/// A pull to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// On which lane.
    pub lane: usize,
    /// Its number, to tell a late answer from a new one.
    pub number: u64,
    /// Most deliveries.
    pub batch: usize,
    /// How.
    pub kind: Kind,
}

/// What is to be done with free slots.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn<D> {
    /// Serve this held delivery.
    Serve(D),
    /// Send this pull.
    Pull(Ask),
}

/// What becomes of a delivery that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A slot is free for it.
    Slot,
    /// It waits.
    Hold,
}

struct Pull {
    number: u64,
    left: usize,
    kind: Kind,
    until: Instant,
}

struct Lane<D> {
    weight: u32,
    credit: i64,
    pull: Option<Pull>,
    /// Jobs that wait on the server, as of `heard`.
    waiting: u64,
    heard: Option<Instant>,
    rest: Option<Instant>,
    held: VecDeque<D>,
}

impl<D> Lane<D> {
    fn idle(&self, now: Instant) -> bool {
        self.pull.is_none() && self.held.is_empty() && self.rest.is_none_or(|until| until <= now)
    }

    /// Jobs that a pull is likely to bring.
    fn demand(&self, now: Instant) -> u64 {
        if !self.idle(now) {
            return 0;
        }
        let stale = self.heard.is_none_or(|heard| now.duration_since(heard) >= PROBE);
        self.waiting.max(u64::from(stale))
    }
}

/// Every lane of a worker.
pub struct Lanes<D> {
    lanes: Vec<Lane<D>>,
    number: u64,
}

impl<D> Lanes<D> {
    /// Lanes by their weights.
    pub fn new(weights: impl IntoIterator<Item = u32>) -> Self {
        let lane =
            |weight| Lane { weight, credit: 0, pull: None, waiting: 0, heard: None, rest: None, held: VecDeque::new() };
        Self { lanes: weights.into_iter().map(lane).collect(), number: 0 }
    }

    /// What to do with `free` slots. Without any: nothing.
    pub fn turns(&mut self, free: usize, now: Instant) -> Vec<Turn<D>> {
        let mut turns = Vec::new();
        let mut left = free.saturating_sub(self.reserved());
        let mut shares = vec![0_usize; self.lanes.len()];
        while left > 0 {
            let Some(index) = self.pick(&shares, now) else { break };
            match self.lanes[index].held.pop_front() {
                Some(held) => turns.push(Turn::Serve(held)),
                None => shares[index] += 1,
            }
            left -= 1;
        }
        for (index, share) in shares.into_iter().enumerate() {
            let ask = match share {
                0 if left > 0 && self.lanes[index].idle(now) => self.ask(index, 1, Kind::Waiting, now),
                0 => continue,
                share => self.ask(index, share, Kind::Now, now),
            };
            turns.push(Turn::Pull(ask));
        }
        turns
    }

    /// The lane whose turn it is, of those that have or are likely to have a job beyond their `shares`.
    fn pick(&mut self, shares: &[usize], now: Instant) -> Option<usize> {
        let mut total = 0;
        let mut best: Option<(usize, i64)> = None;
        for (index, (lane, &share)) in self.lanes.iter_mut().zip(shares).enumerate() {
            if lane.held.is_empty() && lane.demand(now) <= share as u64 {
                continue;
            }
            let weight = i64::from(lane.weight);
            lane.credit += weight;
            total += weight;
            if best.is_none_or(|(_, credit)| lane.credit > credit) {
                best = Some((index, lane.credit));
            }
        }
        let (index, _) = best?;
        self.lanes[index].credit -= total;
        Some(index)
    }

    fn ask(&mut self, index: usize, batch: usize, kind: Kind, now: Instant) -> Ask {
        self.number += 1;
        let stands = if kind == Kind::Waiting { EXPIRES } else { Duration::ZERO };
        self.lanes[index].pull = Some(Pull { number: self.number, left: batch, kind, until: now + stands + ANSWER });
        Ask { lane: index, number: self.number, batch, kind }
    }

    /// Slots that pulls under way are going to fill.
    fn reserved(&self) -> usize {
        self.pulls().filter(|pull| pull.kind == Kind::Now).map(|pull| pull.left).sum()
    }

    fn pulls(&self) -> impl Iterator<Item = &Pull> {
        self.lanes.iter().filter_map(|lane| lane.pull.as_ref())
    }

    /// A delivery came on a lane behind which `waiting` more wait. `free` counts the slots without it.
    pub fn arrived(&mut self, lane: usize, waiting: u64, free: usize, now: Instant) -> Place {
        let reserved = self.reserved();
        let lane = &mut self.lanes[lane];
        lane.waiting = waiting;
        lane.heard = Some(now);
        let mut mine = 0;
        if let Some(pull) = &mut lane.pull {
            mine = usize::from(pull.kind == Kind::Now);
            pull.left = pull.left.saturating_sub(1);
            if pull.left == 0 {
                lane.pull = None;
            }
        }
        if free + mine > reserved { Place::Slot } else { Place::Hold }
    }

    /// Keeps a delivery for which there is no slot.
    pub fn hold(&mut self, lane: usize, delivery: D) {
        self.lanes[lane].held.push_back(delivery);
    }

    /// Every held delivery, none of which will be served here.
    pub fn drain(&mut self) -> Vec<D> {
        self.lanes.iter_mut().flat_map(|lane| lane.held.drain(..)).collect()
    }

    /// The server ended a pull: there is nothing more now.
    pub fn empty(&mut self, lane: usize, number: u64, now: Instant) {
        if self.end(lane, number) {
            self.lanes[lane].waiting = 0;
            self.lanes[lane].heard = Some(now);
        }
    }

    /// The server refused a pull: the lane is left alone for a while.
    pub fn refused(&mut self, lane: usize, number: u64, rest_until: Instant) {
        if self.end(lane, number) {
            self.lanes[lane].waiting = 0;
            self.lanes[lane].rest = Some(rest_until);
        }
    }

    fn end(&mut self, lane: usize, number: u64) -> bool {
        let Some(lane) = self.lanes.get_mut(lane) else { return false };
        let mine = lane.pull.as_ref().is_some_and(|pull| pull.number == number);
        if mine {
            lane.pull = None;
        }
        mine
    }

    /// Drops pulls that should have been answered; how many.
    pub fn overdue(&mut self, now: Instant) -> usize {
        let mut dropped = 0;
        for lane in &mut self.lanes {
            if lane.pull.as_ref().is_some_and(|pull| pull.until <= now) {
                lane.pull = None;
                dropped += 1;
            }
        }
        dropped
    }

    /// The connection is a new one, on which no pull was made.
    pub fn reconnected(&mut self) {
        for lane in &mut self.lanes {
            lane.pull = None;
            lane.rest = None;
        }
    }

    /// Whether a pull may still bring something.
    #[must_use]
    pub fn pulling(&self) -> bool {
        self.pulls().next().is_some()
    }

    /// When to look again if nothing happens: a pull is overdue, or a rest is over.
    #[must_use]
    pub fn look_again(&self, now: Instant) -> Option<Instant> {
        let rests = self.lanes.iter().filter_map(|lane| lane.rest).filter(|&until| until > now);
        self.pulls().map(|pull| pull.until).chain(rests).min()
    }
}

#[cfg(test)]
mod tests;
