//! The encoders' thread: takes commands, chooses a batch, gives it to the encoder, and tells what came of it.

use super::batch::{Choice, Close, Queue, Waiting, Which, oldest};
use super::engine::Shared;
use super::meters::{Meters, Size};
use super::{Encoder, End, Event, Input, InputKey, Job, Output, Turn};
use crate::Error;
use crate::engine::JobKey;
use crate::engine::driver::{panic_message, pause_surely};
use crate::engine::job::Cancel;
use crate::engine::mailbox::{Command, Patience, State};
use crate::listener::Listener;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// A job that is in.
struct Active {
    key: JobKey,
    /// Of its inputs, in a row.
    keys: Range<InputKey>,
    /// `None` once it is done: sounds and pictures are large.
    inputs: Vec<Option<Input>>,
    outputs: Vec<Option<Output>>,
    /// Outputs that are not there yet.
    left: usize,
    deadline: Option<Instant>,
    stage: Stage,
}

/// Whether an input of a job was in a batch yet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waits,
    Started,
}

/// All that the thread owns.
pub(super) struct Driver {
    encoder: Box<dyn Encoder>,
    listener: Box<dyn Listener<Event>>,
    shared: Arc<Shared>,
    queue: Queue,
    /// By their first input.
    jobs: BTreeMap<InputKey, Active>,
    /// Neither among the commands any more nor among the jobs yet: a panic in between must not lose it.
    entering: Option<JobKey>,
    next_input: u64,
    meters: Meters,
    // Emptied and filled again, for their memory.
    commands: VecDeque<Command<Job>>,
    batch: Vec<(InputKey, Waiting)>,
    turns: Vec<Turn>,
}

impl Driver {
    pub(super) fn new(encoder: Box<dyn Encoder>, listener: Box<dyn Listener<Event>>, shared: Arc<Shared>) -> Self {
        Self {
            queue: Queue::new(encoder.budget()),
            meters: Meters::new(encoder.family()),
            encoder,
            listener,
            shared,
            jobs: BTreeMap::new(),
            entering: None,
            next_input: 0,
            commands: VecDeque::new(),
            batch: Vec::new(),
            turns: Vec::new(),
        }
    }

    /// Runs until asked to stop, or until something panics; then ends every job that is left.
    pub(super) fn run(mut self) {
        let end = match catch_unwind(AssertUnwindSafe(|| self.serve())) {
            Ok(()) => End::Stopped,
            Err(panic) => {
                let why = panic_message(panic.as_ref());
                tracing::error!(why, "the encoders' engine stopped by a panic");
                End::Failed(format!("the engine stopped: {why}"))
            }
        };
        self.shared.alive.store(false, Ordering::Release);
        self.shared.mailbox.close(&mut self.commands);
        let inside = std::mem::take(&mut self.jobs).into_values().map(|job| job.key);
        let outside = self.commands.drain(..).filter_map(|command| match command {
            Command::Submit(job) => Some(job.key),
            Command::Cancel(..) => None,
        });
        for key in inside.chain(self.entering).chain(outside) {
            self.shared.jobs.fetch_sub(1, Ordering::AcqRel);
            let end = end.clone();
            let listener = &mut self.listener;
            // The listener may be what panicked: the other jobs are to hear of their end all the same.
            let told = catch_unwind(AssertUnwindSafe(|| listener.hear(Event::Ended { key, end })));
            if told.is_err() {
                tracing::error!(key = key.0, "the listener panicked at a job's end");
            }
        }
        pause_surely(&mut *self.listener);
        self.shared.running.store(0, Ordering::Relaxed);
        self.shared.waiting.store(0, Ordering::Relaxed);
    }

    fn serve(&mut self) {
        let mut patience = Patience::Sleep;
        loop {
            if self.shared.mailbox.take(&mut self.commands, patience) != State::Open {
                return;
            }
            while let Some(command) = self.commands.pop_front() {
                self.apply(command);
            }
            let now = Instant::now();
            self.expire(now);
            let mut batch = std::mem::take(&mut self.batch);
            patience = match self.queue.choose(now, &mut batch) {
                Choice::Empty => Patience::Sleep,
                Choice::Wait(end) => Patience::Until(end),
                Choice::Run(close) => {
                    self.encode(&batch, close, now);
                    Patience::Look
                }
            };
            self.batch = batch;
            self.shared.waiting.store(self.queue.len(), Ordering::Relaxed);
            self.listener.pause();
        }
    }

    fn apply(&mut self, command: Command<Job>) {
        match command {
            Command::Submit(job) => self.submit(job),
            Command::Cancel(key, why) => {
                if let Some(first) = self.jobs.iter().find(|(_, job)| job.key == key).map(|(first, _)| *first) {
                    self.end(first, end_of(why));
                }
            }
        }
    }

    fn submit(&mut self, job: Job) {
        self.entering = Some(job.key);
        let now = Instant::now();
        let costs: Result<Vec<_>, _> = job.inputs.iter().map(|input| self.encoder.cost(input)).collect();
        let first = self.next_input;
        self.next_input += job.inputs.len() as u64;
        let active = Active {
            key: job.key,
            keys: InputKey(first)..InputKey(self.next_input),
            outputs: vec![None; job.inputs.len()],
            left: job.inputs.len(),
            inputs: job.inputs.into_iter().map(Some).collect(),
            deadline: job.deadline,
            stage: Stage::Waits,
        };
        self.jobs.insert(InputKey(first), active);
        self.entering = None;
        match costs {
            Ok(costs) => {
                for (key, cost) in (first..).zip(costs) {
                    let waiting = Waiting { job: job.key, cost, since: now, turn: Which::First };
                    self.queue.push(InputKey(key), waiting);
                }
            }
            Err(why) => self.end(InputKey(first), End::Refused(why)),
        }
    }

    fn expire(&mut self, now: Instant) {
        let late = |job: &Active| job.deadline.is_some_and(|deadline| deadline <= now);
        let late: Vec<InputKey> = self.jobs.iter().filter(|(_, job)| late(job)).map(|(first, _)| *first).collect();
        for first in late {
            self.end(first, End::Deadline);
        }
    }

    fn encode(&mut self, batch: &[(InputKey, Waiting)], close: Close, now: Instant) {
        for (key, _) in batch {
            let job = self.job(*key);
            if std::mem::replace(&mut job.stage, Stage::Started) == Stage::Waits {
                let key = job.key;
                self.listener.hear(Event::Started { key });
            }
        }
        let size = Size {
            units: batch.iter().map(|(_, input)| input.cost.units).sum(),
            inputs: batch.len(),
            waited: oldest(batch).map_or_else(Default::default, |since| now.saturating_duration_since(since)),
        };
        self.meters.begins(&self.shared, close, size);
        self.shared.waiting.store(self.queue.len(), Ordering::Relaxed);
        let mut turns = std::mem::take(&mut self.turns);
        turns.clear();
        self.listener.pause();
        let began = Instant::now();
        let computed = self.compute(batch, &mut turns);
        self.meters.ends(&self.shared, began.elapsed());
        match computed {
            Ok(()) => {
                self.queue.grow();
                for ((key, waiting), turn) in batch.iter().zip(turns.drain(..)) {
                    self.turn(*key, *waiting, turn);
                }
            }
            Err(Error::OutOfMemory { bytes, free }) if batch.len() > 1 => {
                tracing::warn!(bytes, free, inputs = batch.len(), "no room for a batch: it comes in halves");
                self.queue.halve(batch);
            }
            Err(error) => {
                tracing::error!(%error, inputs = batch.len(), "a batch failed");
                for (key, _) in batch {
                    if let Some(first) = self.first(*key) {
                        self.end(first, End::Failed(error.to_string()));
                    }
                }
            }
        }
        self.turns = turns;
    }

    fn compute(&mut self, batch: &[(InputKey, Waiting)], turns: &mut Vec<Turn>) -> Result<(), Error> {
        let (jobs, mailbox) = (&self.jobs, &self.shared.mailbox);
        let job = |key: InputKey| jobs.range(..=key).next_back().expect("an input has a job");
        let input = |key: InputKey| {
            let (first, job) = job(key);
            job.inputs[(key.0 - first.0) as usize].as_ref().expect("what is chosen is not done")
        };
        let wanted = |key: InputKey| {
            let (_, job) = job(key);
            job.deadline.is_none_or(|deadline| Instant::now() < deadline) && !mailbox.ends(job.key)
        };
        let inputs: Vec<(InputKey, &Input)> = batch.iter().map(|(key, _)| (*key, input(*key))).collect();
        self.encoder.encode_while(&wanted, &inputs, turns)?;
        match turns.len() == batch.len() {
            true => Ok(()),
            false => Err(Error::Device(format!("{} turns for {} inputs", turns.len(), batch.len()))),
        }
    }

    /// What became of an input, unless its job ended with one before it in the batch.
    fn turn(&mut self, key: InputKey, waiting: Waiting, turn: Turn) {
        let Some(first) = self.first(key) else { return };
        match turn {
            Turn::Failed(why) => self.end(first, End::Refused(why)),
            Turn::More(text) => {
                self.queue.push(key, Waiting { turn: Which::Next, since: Instant::now(), ..waiting });
                if !text.is_empty() {
                    self.listener.hear(Event::Chunk { key: waiting.job, text });
                }
            }
            Turn::Done(output) => {
                self.encoder.forget(key);
                let job = self.job(key);
                let place = (key.0 - first.0) as usize;
                job.inputs[place] = None;
                job.outputs[place] = Some(output);
                job.left -= 1;
                if job.left == 0 {
                    let outputs = job.outputs.drain(..).flatten().collect();
                    self.end(first, End::Done(outputs));
                }
            }
        }
    }

    /// The first input of the job that this one is of; `None` once it ended.
    fn first(&self, key: InputKey) -> Option<InputKey> {
        let (first, job) = self.jobs.range(..=key).next_back()?;
        job.keys.contains(&key).then_some(*first)
    }

    fn job(&mut self, key: InputKey) -> &mut Active {
        self.jobs.range_mut(..=key).next_back().expect("an input has a job").1
    }

    /// Forgets a job everywhere, then says so: in this order it is said once, even by a listener that panics.
    fn end(&mut self, first: InputKey, end: End) {
        let job = self.jobs.remove(&first).expect("a job ends once");
        if job.left > 0 {
            self.queue.remove(job.keys.clone());
        }
        for (key, input) in (first.0..).zip(&job.inputs) {
            if input.is_some() {
                self.encoder.forget(InputKey(key));
            }
        }
        self.shared.jobs.fetch_sub(1, Ordering::AcqRel);
        self.listener.hear(Event::Ended { key: job.key, end });
    }
}

/// What a cancelled job is told.
fn end_of(why: Cancel) -> End {
    match why {
        Cancel::Client => End::Cancelled,
        Cancel::Deadline => End::Deadline,
        Cancel::Stopping => End::Stopped,
    }
}
