//! Thousands of random schedules against the fake model: submissions, cancels, deadlines, steps that fail or have no room,
//! tiny pools, with and without a step in flight. The seed is in every failure's message.

use super::fake::{Dice, END, Fake, Fault, VOCABULARY, alone};
use super::*;
use crate::model::{Model, Shape, Ticket};
use crate::prefix::Scope;
use crate::sampler::Sampling;
use std::time::Duration;

/// Schedules simulated for each depth.
const SCHEDULES: u64 = 3000;

/// Steps in which things happen, before the schedule drains.
const EVENTFUL_STEPS: usize = 60;

/// Steps after which a schedule that has not drained is starving.
const STEPS_MAX: usize = 20_000;

/// One sequence as the world outside sees it.
struct Expected {
    prompt: Vec<TokenId>,
    scope: Scope,
    max_tokens: usize,
    deadline: Option<Instant>,
    outputs: Vec<TokenId>,
    end: Option<End>,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Own(Ending),
    Cancelled,
    Failed,
}

struct World {
    dice: Dice,
    now: Instant,
    scheduler: Scheduler,
    model: Fake,
    depth: usize,
    plan: Plan,
    flights: VecDeque<(StepId, Ticket)>,
    /// By id.
    all: Vec<Expected>,
    cached: usize,
    retreats: usize,
}

/// What happened, to see that the schedules meet what they are meant to meet.
#[derive(Debug, Default)]
struct Seen {
    preemptions: u64,
    by_end: HashMap<String, usize>,
    /// Tokens found in the cache, at first admissions.
    cached: usize,
    /// Steps that there was no room for.
    retreats: usize,
}

impl World {
    fn new(seed: u64, depth: usize) -> Self {
        let mut dice = Dice(seed);
        let shape = Shape {
            context: dice.roll(8..150),
            vocabulary: VOCABULARY,
            blocks: dice.roll(1..10),
            step_tokens: dice.roll(1..40),
            kept: if dice.roll(0..2) == 0 { Kept::All } else { Kept::Prompts },
        };
        let limits = Limits {
            context: shape.context,
            blocks: shape.blocks,
            step_tokens: shape.step_tokens,
            sequences_max: dice.roll(1..10),
        };
        let failing = if dice.once_in(3) { 25 } else { usize::MAX };
        let mut luck = Dice(seed ^ 0xFA);
        let faults = move |_| match luck.once_in(failing) {
            true if luck.once_in(2) => Fault::Forward,
            true => Fault::Collect,
            false => Fault::None,
        };
        Self {
            dice,
            now: Instant::now(),
            scheduler: Scheduler::new(limits).keeping(shape.kept),
            model: Fake::new(shape, depth, faults),
            depth,
            plan: Plan::default(),
            flights: VecDeque::new(),
            all: Vec::new(),
            cached: 0,
            retreats: 0,
        }
    }

    fn submit(&mut self) {
        let most = self.scheduler.limits.length_max();
        let lengths = 2..most.min(90) + 1;
        let length = self.dice.roll(lengths.clone()).max(self.dice.roll(lengths));
        // Short prompts with long answers are what runs out of blocks half way.
        let prompt_max = if self.dice.once_in(2) { length } else { length.min(9) };
        let prompt_tokens = self.dice.roll(1..prompt_max);
        let penalised = Sampling { repetition_penalty: 1.5, ..Sampling::greedy() };
        let sampling = if self.dice.once_in(2) { penalised } else { Sampling::greedy() };
        let wait = Duration::from_secs(self.dice.roll(0..60) as u64);
        let scope = Scope::of(&[u8::from(self.dice.once_in(5))]);
        let expected = Expected {
            prompt: self.prompt(prompt_tokens),
            scope,
            max_tokens: length - prompt_tokens,
            deadline: self.dice.once_in(6).then(|| self.now + wait),
            outputs: Vec::new(),
            end: None,
        };
        let id = SequenceId(self.all.len() as u64);
        let sequence = Sequence::new(id, expected.prompt.clone(), expected.max_tokens, sampling);
        self.scheduler.submit(sequence.with_deadline(expected.deadline).in_scope(scope));
        self.all.push(expected);
    }

    /// Half of them begin as another did, as far as that one has come.
    fn prompt(&mut self, length: usize) -> Vec<TokenId> {
        let mut prompt = Vec::new();
        if !self.all.is_empty() && self.dice.once_in(2) {
            let other = &self.all[self.dice.roll(0..self.all.len())];
            let tokens = other.prompt.iter().chain(&other.outputs).copied();
            prompt.extend(tokens.take(self.dice.roll(0..length + 1).max(self.dice.roll(0..length + 1))));
        }
        prompt.extend(self.dice.prompt(length - prompt.len()));
        prompt
    }

    fn cancel(&mut self) {
        let id = SequenceId(self.dice.roll(0..self.all.len()) as u64);
        let table = self.scheduler.sequence(id).map_or(Vec::new(), |sequence| sequence.table.clone());
        let sole = table.iter().filter(|block| self.scheduler.blocks.holders(**block) == 1).count();
        let (free, lingering) = (self.scheduler.blocks.free(), self.scheduler.lingering());
        let was_there = self.scheduler.cancel(id);
        assert_eq!(was_there, self.all[id.0 as usize].end.is_none());
        let now = (self.scheduler.blocks.free() - free, self.scheduler.lingering() - lingering);
        assert!(
            now == (sole, 0) || now == (0, table.len()) && !self.flights.is_empty(),
            "blocks linger for a flight only"
        );
        if was_there {
            self.finish(id, End::Cancelled);
        }
    }

    fn finish(&mut self, id: SequenceId, end: End) {
        let before = self.all[id.0 as usize].end.replace(end);
        assert_eq!(before, None, "{id:?} ended twice");
    }

    /// Plans a step and gives it to the model.
    fn plan(&mut self) {
        let (preemptions, running) = (self.scheduler.preemptions, self.scheduler.running());
        let mut notices = Vec::new();
        let step = self.scheduler.plan(self.now, &mut self.plan, &mut notices);
        self.take(&notices);
        self.check_plan();
        if self.scheduler.preemptions > preemptions {
            assert!(self.scheduler.running() < running, "none is admitted in a step that preempted");
        }
        let Some(step) = step else {
            assert!(self.scheduler.is_empty() || !self.flights.is_empty(), "stuck");
            return self.land();
        };
        match self.model.forward(&self.plan) {
            Ok(ticket) => self.flights.push_back((step, ticket)),
            Err(_) => {
                self.fail(step);
                while !self.flights.is_empty() {
                    self.land();
                }
            }
        }
        if self.flights.len() > self.depth {
            self.land();
        }
    }

    /// Checks the plan against what the world knows; the fake checks the rest.
    fn check_plan(&self) {
        for span in &self.plan.spans {
            let expected = &self.all[span.sequence.0 as usize];
            assert_eq!(expected.end, None, "one that ended is planned");
            assert!(expected.deadline.is_none_or(|deadline| self.now < deadline));
            let chosen = expected.prompt.len() + expected.outputs.len() + self.flights.len();
            let last = expected.prompt.len() + expected.max_tokens - 1;
            assert!(span.computed + span.rows.len() <= chosen.min(last), "more rows than wanted");
        }
    }

    /// Lands the oldest step in flight, if any.
    fn land(&mut self) {
        let Some((step, ticket)) = self.flights.pop_front() else {
            return;
        };
        let mut sampled = Vec::new();
        if self.model.collect(ticket, &mut sampled).is_err() {
            return self.fail(step);
        }
        let mut notices = Vec::new();
        let all = &mut self.all;
        let judge = |id: SequenceId, token| {
            let expected = &mut all[id.0 as usize];
            assert_eq!(expected.end, None, "one that ended gets a token");
            expected.outputs.push(token);
            if token == END { Verdict::Stop } else { Verdict::Continue }
        };
        self.scheduler.advance(step, &sampled, judge, &mut notices);
        self.take(&notices);
    }

    /// Half of the steps that fail do so for want of memory.
    fn fail(&mut self, step: StepId) {
        if self.dice.once_in(2) && self.scheduler.retreat(step) {
            self.retreats += 1;
            return;
        }
        let mut lost = Vec::new();
        self.scheduler.abandon(step, &mut lost);
        for id in lost {
            self.finish(id, End::Failed);
        }
    }

    fn take(&mut self, notices: &[Notice]) {
        for notice in notices {
            match *notice {
                Notice::Started(_, cached) => self.cached += cached,
                Notice::Ended(id, ending) => self.finish(id, End::Own(ending)),
            }
        }
    }

    /// Every block is in one place.
    fn audit(&self) {
        let tables = self.scheduler.sequences.values().map(|sequence| sequence.table.len());
        let held = tables.sum::<usize>() + self.scheduler.lingering();
        let blocks = self.scheduler.blocks();
        let holders = (0..blocks.total() as u32).map(|block| blocks.holders(BlockId(block)));
        assert_eq!(holders.clone().sum::<usize>(), held, "a block leaked");
        assert_eq!(holders.filter(|holders| *holders == 0).count(), blocks.free());
        let mut scopes = HashMap::new();
        for (id, sequence) in &self.scheduler.sequences {
            let scope = self.all[id.0 as usize].scope;
            let others = sequence.table.iter().map(|block| *scopes.entry(*block).or_insert(scope));
            assert!(others.into_iter().all(|other| other == scope), "a block is shared between scopes");
        }
        let listed = self.scheduler.running() + self.scheduler.waiting();
        assert_eq!(listed, self.scheduler.sequences.len());
        assert!(self.scheduler.running() <= self.scheduler.limits.sequences_max);
    }

    fn run(&mut self) {
        for step in 0..STEPS_MAX {
            if step < EVENTFUL_STEPS {
                while self.dice.once_in(3) {
                    self.submit();
                }
                if !self.all.is_empty() && self.dice.once_in(8) {
                    self.cancel();
                    self.audit();
                }
            } else if self.scheduler.is_empty() && self.flights.is_empty() {
                return;
            }
            self.plan();
            self.audit();
            self.now += Duration::from_secs(1);
        }
        panic!("starved: {:?}", self.scheduler);
    }

    /// Everyone ended, with what it would have got alone, or the beginning of it.
    fn check_ends(&self, seen: &mut Seen) {
        assert_eq!(self.scheduler.blocks.free(), self.scheduler.blocks.total());
        for (id, expected) in self.all.iter().enumerate() {
            let end = expected.end.unwrap_or_else(|| panic!("{id} never ended"));
            *seen.by_end.entry(format!("{end:?}")).or_default() += 1;
            let alone = alone(&expected.prompt, expected.max_tokens, self.scheduler.kept);
            let ending = if alone.last() == Some(&END) { Ending::Stop } else { Ending::Length };
            match end {
                End::Own(Ending::Stop | Ending::Length) => {
                    assert_eq!(end, End::Own(ending));
                    assert_eq!(expected.outputs, alone, "sequence {id}");
                }
                _ => assert!(alone.starts_with(&expected.outputs), "sequence {id}"),
            }
        }
        seen.preemptions += self.scheduler.preemptions;
        seen.cached += self.cached;
        seen.retreats += self.retreats;
    }
}

fn simulate(depth: usize) {
    let mut seen = Seen::default();
    for seed in 0..SCHEDULES {
        let run = || {
            let mut world = World::new(seed, depth);
            world.run();
            world.check_ends(&mut seen);
        };
        if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
            eprintln!("schedule with seed {seed} at depth {depth}");
            std::panic::resume_unwind(panic);
        }
    }
    println!("depth {depth}: {seen:?}");
    assert_eq!(seen.by_end.len(), 5, "every way to end was met: {seen:?}");
    assert!(seen.cached > SCHEDULES as usize, "prefixes are found: {seen:?}");
    assert!(seen.retreats > SCHEDULES as usize / 2, "steps without room were met: {seen:?}");
    assert!(seen.preemptions > SCHEDULES, "pools are small enough to matter: {seen:?}");
}

#[test]
fn schedules_hold_step_by_step() {
    simulate(0);
}

#[test]
fn schedules_hold_with_a_step_in_flight() {
    simulate(1);
}
