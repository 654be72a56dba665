//! The engine's thread: takes commands, plans a step, gives it to the model, and tells what came of it.

use super::Shared;
use super::job::{End, Event, Finish, Job, JobKey};
use super::mailbox::{Command, Patience, State};
use super::meters::Meters;
use super::reader::{Reader, Vocabulary};
use crate::Error;
use crate::listener::Listener;
use crate::model::{Model, Ticket};
use crate::plan::{Plan, Sampled, SequenceId};
use crate::scheduler::{Ending, Notice, Scheduler};
use crate::sequence::{Sequence, StepId};
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// A job that is in.
struct Active {
    key: JobKey,
    input_tokens: usize,
    output_tokens: usize,
    reader: Reader,
}

/// A step that the model has.
struct Flight {
    step: StepId,
    ticket: Ticket,
    planned: Instant,
}

/// All that the thread owns.
pub(super) struct Driver {
    model: Box<dyn Model>,
    vocabulary: Arc<dyn Vocabulary>,
    listener: Box<dyn Listener<Event>>,
    shared: Arc<Shared>,
    scheduler: Scheduler,
    jobs: HashMap<SequenceId, Active>,
    /// Neither among the commands any more nor among the jobs yet: a panic in between must not lose it.
    entering: Option<JobKey>,
    next_sequence: u64,
    /// Oldest first.
    flights: VecDeque<Flight>,
    meters: Meters,
    // Emptied and filled again, for their memory.
    commands: VecDeque<Command<Job>>,
    plan: Plan,
    notices: Vec<Notice>,
    sampled: Vec<Sampled>,
    lost: Vec<SequenceId>,
}

impl Driver {
    pub(super) fn new(
        model: Box<dyn Model>,
        vocabulary: Arc<dyn Vocabulary>,
        listener: Box<dyn Listener<Event>>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            scheduler: Scheduler::new(shared.limits).keeping(model.shape().kept),
            model,
            vocabulary,
            listener,
            shared,
            jobs: HashMap::new(),
            entering: None,
            next_sequence: 0,
            flights: VecDeque::new(),
            meters: Meters::new(),
            commands: VecDeque::new(),
            plan: Plan::default(),
            notices: Vec::new(),
            sampled: Vec::new(),
            lost: Vec::new(),
        }
    }

    /// Runs until asked to stop, or until something panics; then ends every job that is left.
    pub(super) fn run(mut self) {
        let end = match catch_unwind(AssertUnwindSafe(|| self.serve())) {
            Ok(()) => End::Stopped,
            Err(panic) => {
                let why = panic_message(panic.as_ref());
                tracing::error!(why, "the engine stopped by a panic");
                End::Failed(format!("the engine stopped: {why}"))
            }
        };
        self.shared.alive.store(false, Ordering::Release);
        self.shared.mailbox.close(&mut self.commands);
        let inside = self.jobs.drain().map(|(_, job)| job.key);
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
    }

    fn serve(&mut self) {
        loop {
            let is_idle = self.scheduler.is_empty() && self.flights.is_empty();
            let patience = if is_idle { Patience::Sleep } else { Patience::Look };
            if self.shared.mailbox.take(&mut self.commands, patience) != State::Open {
                return;
            }
            while let Some(command) = self.commands.pop_front() {
                self.apply(command);
            }
            self.step();
            self.meters.stands(&self.shared, &self.scheduler);
            self.listener.pause();
        }
    }

    fn apply(&mut self, command: Command<Job>) {
        match command {
            Command::Submit(job) => self.submit(job),
            Command::Cancel(cancelled, why) => {
                let keyed = self.jobs.iter().filter(|(_, job)| job.key == cancelled);
                self.lost.extend(keyed.map(|(id, _)| *id));
                for id in &self.lost {
                    assert!(self.scheduler.cancel(*id), "a job has a sequence");
                }
                self.end_lost(&why.end());
            }
        }
    }

    fn submit(&mut self, job: Job) {
        self.entering = Some(job.key);
        let id = SequenceId(self.next_sequence);
        self.next_sequence += 1;
        let active = Active {
            key: job.key,
            input_tokens: job.tokens.len(),
            output_tokens: 0,
            reader: Reader::new(Arc::clone(&self.vocabulary), job.stop),
        };
        let sequence = Sequence::new(id, job.tokens, job.max_tokens, job.sampling);
        self.scheduler.submit(sequence.with_deadline(job.deadline).in_scope(job.scope));
        self.jobs.insert(id, active);
        self.entering = None;
    }

    /// Plans a step and launches it; lands the oldest when as many are in flight as may be, or nothing else can be done.
    fn step(&mut self) {
        let now = Instant::now();
        let step = self.scheduler.plan(now, &mut self.plan, &mut self.notices);
        self.tell();
        self.listener.pause();
        match step {
            Some(step) => {
                self.launch(step, now);
                if self.flights.len() > self.model.depth() {
                    self.land();
                }
            }
            None if self.flights.is_empty() => {
                assert!(self.scheduler.is_empty(), "sequences are there and nothing is planned");
            }
            None => self.land(),
        }
    }

    fn launch(&mut self, step: StepId, planned: Instant) {
        match self.model.forward(&self.plan) {
            Ok(ticket) => {
                self.meters.launched(&self.plan);
                self.flights.push_back(Flight { step, ticket, planned });
            }
            Err(error) => {
                self.fail(step, &error, planned);
                // The next step's placeholders can only name the step right before it, and that one never ran.
                while !self.flights.is_empty() {
                    self.land();
                }
            }
        }
    }

    /// Waits for the oldest step in flight and hands out its tokens.
    fn land(&mut self) {
        let flight = self.flights.pop_front().expect("a step is in flight");
        self.sampled.clear();
        if let Err(error) = self.model.collect(flight.ticket, &mut self.sampled) {
            return self.fail(flight.step, &error, flight.planned);
        }
        let (jobs, listener) = (&mut self.jobs, &mut self.listener);
        let mut read = 0;
        let judge = |id: SequenceId, token| {
            let job = jobs.get_mut(&id).expect("a sequence has a job");
            job.output_tokens += 1;
            read += 1;
            let verdict = job.reader.read(token);
            if let Some(text) = job.reader.take_text() {
                listener.hear(Event::Chunk { key: job.key, text });
            }
            verdict
        };
        self.scheduler.advance(flight.step, &self.sampled, judge, &mut self.notices);
        self.meters.gave_out(&self.shared, read);
        self.meters.landed(&self.shared, flight.planned.elapsed());
        self.tell();
    }

    /// A step came to nothing. Where memory was wanting, its jobs are computed again in smaller steps; otherwise they end, and
    /// the engine goes on with the others.
    fn fail(&mut self, step: StepId, error: &Error, planned: Instant) {
        self.meters.landed(&self.shared, planned.elapsed());
        if matches!(error, Error::OutOfMemory { .. }) && self.scheduler.retreat(step) {
            return tracing::warn!(%error, step = step.0, "no room for a step: smaller ones are made");
        }
        tracing::error!(%error, step = step.0, "a step failed");
        self.scheduler.abandon(step, &mut self.lost);
        self.end_lost(&End::Failed(error.to_string()));
    }

    /// Ends the jobs of sequences that the scheduler has forgotten.
    fn end_lost(&mut self, end: &End) {
        while let Some(id) = self.lost.pop() {
            self.end(id, end.clone());
        }
    }

    /// Passes on what the scheduler did of its own accord.
    fn tell(&mut self) {
        let mut notices = std::mem::take(&mut self.notices);
        for notice in notices.drain(..) {
            match notice {
                Notice::Started(id, cached_tokens) => {
                    let job = &self.jobs[&id];
                    self.meters.took_in(&self.shared, job.input_tokens, cached_tokens);
                    self.listener.hear(Event::Started { key: job.key, cached_tokens });
                }
                Notice::Ended(id, Ending::Stop) => self.done(id, Finish::Stop),
                Notice::Ended(id, Ending::Length) => self.done(id, Finish::Length),
                Notice::Ended(id, Ending::Deadline) => self.end(id, End::Deadline),
            }
        }
        self.notices = notices;
    }

    /// The rest of a job's text, and its end.
    fn done(&mut self, id: SequenceId, finish: Finish) {
        let job = self.jobs.get_mut(&id).expect("a sequence has a job");
        let end = End::Done {
            finish: job.reader.finish(finish),
            output_tokens: job.output_tokens,
            input_tokens: job.input_tokens,
        };
        if let Some(text) = job.reader.take_text() {
            self.listener.hear(Event::Chunk { key: job.key, text });
        }
        self.end(id, end);
    }

    /// Forgets the job of a sequence that the scheduler has forgotten, then says so: in this order it is said once,
    /// even by a listener that panics.
    fn end(&mut self, id: SequenceId, end: End) {
        let key = self.jobs.remove(&id).expect("a sequence has a job").key;
        self.shared.jobs.fetch_sub(1, Ordering::AcqRel);
        self.listener.hear(Event::Ended { key, end });
    }
}

/// The last pause of a listener that may have panicked before.
pub(crate) fn pause_surely<E>(listener: &mut dyn Listener<E>) {
    if catch_unwind(AssertUnwindSafe(|| listener.pause())).is_err() {
        tracing::error!("the listener panicked at the engine's end");
    }
}

/// What a panic said, where it said it in words.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let literal = panic.downcast_ref::<&str>().copied();
    literal.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without a message")
}
