//! Who gets rows in a step: those running, then those waiting, as far as budget and blocks go.

use super::draft::Draft;
use super::{Ending, Notice, Scheduler};
use crate::blocks::Blocks;
use crate::plan::{BLOCK_TOKENS, SequenceId};
use crate::sequence::Phase;
use std::time::Instant;

/// Whether a running sequence has the blocks for its next rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    /// It has.
    Ready,
    /// It will, when the steps in flight have landed.
    Later,
    /// It was the youngest itself, and gave up its cache.
    Lost,
}

/// Whether everyone who ran got the blocks that were wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Supply {
    /// All did.
    Ample,
    /// Someone gave up a cache, or waits for blocks that linger: this is no time to admit others.
    Short,
}

impl Scheduler {
    /// Ends every sequence whose deadline has passed.
    pub(super) fn expire(&mut self, now: Instant, notices: &mut Vec<Notice>) {
        if self.first_deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        let everyone = self.running.iter().chain(&self.waiting);
        let is_late = |id: &&SequenceId| self.sequences[id].deadline.is_some_and(|deadline| deadline <= now);
        let late: Vec<SequenceId> = everyone.filter(is_late).copied().collect();
        for id in late {
            self.end(id, Ending::Deadline, notices);
        }
        let rest = self.sequences.values();
        self.first_deadline = rest.filter_map(|sequence| sequence.deadline).min();
    }

    /// Gives rows to those running, oldest first.
    pub(super) fn continue_running(&mut self, draft: &mut Draft<'_>) -> Supply {
        let mut supply = Supply::Ample;
        let mut index = 0;
        while index < self.running.len() && draft.budget > 0 {
            let id = self.running[index];
            index += 1;
            let sequence = &self.sequences[&id];
            let rows = sequence.rows_wanted().min(draft.budget);
            if rows == 0 {
                continue;
            }
            match self.make_room(id, sequence.computed + rows, &mut supply) {
                Room::Ready => draft.lay(self.sequences.get_mut(&id).expect("it runs")),
                Room::Later => {}
                Room::Lost => break,
            }
        }
        supply
    }

    /// Gets a running sequence the blocks for `length` tokens, if need be from the youngest. It lacks one at most: it
    /// was admitted with those of all tokens it had, and has grown by a token at a time since.
    fn make_room(&mut self, id: SequenceId, length: usize, supply: &mut Supply) -> Room {
        loop {
            let table = &mut self.sequences.get_mut(&id).expect("it runs").table;
            let missing = Blocks::missing(table, length);
            if self.blocks.grow(table, length).is_ok() {
                return Room::Ready;
            }
            *supply = Supply::Short;
            if self.blocks.free() + self.lingering() >= missing {
                return Room::Later;
            }
            if self.preempt(self.running.len() - 1) == id {
                return Room::Lost;
            }
        }
    }

    /// The running sequence at `index` gives up its cache, and is the first to be admitted again.
    pub(super) fn preempt(&mut self, index: usize) -> SequenceId {
        let id = self.running.remove(index);
        let sequence = self.sequences.get_mut(&id).expect("it runs");
        let blocks = sequence.give_up();
        let last_step = sequence.last_step;
        self.release(blocks, last_step);
        self.waiting.push_front(id);
        self.preemptions += 1;
        id
    }

    /// Finds the blocks that a waiting sequence's first tokens are in already, but for the last token: its output is
    /// still to come. Returns how many of them are not free.
    fn find_prefix(&mut self, id: SequenceId) -> usize {
        self.found.clear();
        let sequence = self.sequences.get_mut(&id).expect("it waits");
        let most = self.kept.of(sequence.length() - 1, sequence.prompt_tokens()) / BLOCK_TOKENS;
        for index in 0..most {
            let Some(block) = sequence.content(index).and_then(|content| self.blocks.find(&content)) else {
                break;
            };
            self.found.push(block);
        }
        self.found.iter().filter(|block| !self.blocks.is_free(**block)).count()
    }

    /// Gives what is left of the budget to those waiting, strictly in order: a small one never overtakes a large one,
    /// or the large one might wait for ever.
    pub(super) fn admit(&mut self, draft: &mut Draft<'_>, notices: &mut Vec<Notice>) {
        while draft.budget > 0 && self.running.len() < self.limits.sequences_max {
            let Some(&id) = self.waiting.front() else {
                return;
            };
            let held_by_others = self.find_prefix(id);
            let sequence = self.sequences.get_mut(&id).expect("it waits");
            let length = sequence.length();
            // A block of growth is left to each that runs: admitting into the last blocks would preempt at once.
            let needed = Blocks::count_for(length) - held_by_others + self.running.len();
            if sequence.rows_wanted() == 0 || needed > self.blocks.free() {
                return;
            }
            for block in self.found.drain(..) {
                self.blocks.share(block);
                sequence.table.push(block);
            }
            (sequence.noted, sequence.computed) = (sequence.table.len(), sequence.table.len() * BLOCK_TOKENS);
            sequence.since = draft.flight.step;
            // All blocks of the tokens it has, so that chunks of a prompt never wait for each other half done.
            self.blocks.grow(&mut sequence.table, length).expect("counted above");
            self.waiting.pop_front();
            self.running.push(id);
            if sequence.phase == Phase::Fresh {
                sequence.start();
                notices.push(Notice::Started(id, sequence.computed));
            }
            draft.lay(sequence);
        }
    }
}
