//! The engine as others see it: a handle to one OS thread that owns the device.
//!
//! Jobs go in through a bounded inbox, events come out to a listener on that thread; there is no other way in or out.
//! The thread sleeps while it has no job. What [`Engine::submit`] lets in, the scheduler can finish: both read the same
//! [`Limits`].

pub(crate) mod driver;
pub(crate) mod job;
pub(crate) mod mailbox;
mod meters;
mod reader;
#[cfg(test)]
mod tests;

pub use job::{Cancel, End, Event, Finish, Job, JobKey, SubmitError};

use crate::Error;
use crate::backend::Activations;
use crate::listener::Listener;
use crate::model::Model;
use crate::scheduler::Limits;
use crate::text::Tokenizer;
use driver::Driver;
use mailbox::{Command, Mailbox};
use reader::Vocabulary;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How much the engine may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Threads that compute.
    pub threads: usize,
    /// How inputs of products with quantised weights are held.
    pub activations: Activations,
    /// Tokens that the key-value cache holds.
    pub kv_tokens: usize,
    /// Rows of a step: more give more throughput, fewer a steadier flow to those already answered.
    pub step_tokens: usize,
    /// Sequences that run at once.
    pub sequences_max: usize,
    /// Jobs that may be in beyond those that can run at once.
    pub queue_max: usize,
}

/// How the engine stands; each number by itself is exact, together they may be a step apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Jobs in the batch.
    pub running: usize,
    /// Jobs that are in and not in the batch.
    pub waiting: usize,
    /// Blocks of the key-value cache that nobody holds.
    pub blocks_free: usize,
    /// Blocks of the key-value cache.
    pub blocks_total: usize,
    /// From the plan of the last step to its tokens.
    pub last_step: Duration,
    /// Tokens of all prompts taken up.
    pub tokens_in: u64,
    /// Tokens sampled for all jobs.
    pub tokens_out: u64,
}

/// A handle to the engine. The thread ends when the last handle is dropped.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    thread: Arc<Thread>,
}

/// What handles and thread both see.
struct Shared {
    limits: Limits,
    vocabulary: usize,
    jobs_max: usize,
    mailbox: Mailbox<Job>,
    /// Jobs let in and not ended. Counted up by handles, down by the thread.
    jobs: AtomicUsize,
    // Written by the thread, read by handles.
    alive: AtomicBool,
    steps: AtomicU64,
    /// Counted up by the model too.
    progress: Arc<AtomicU64>,
    running: AtomicUsize,
    blocks_free: AtomicUsize,
    last_step_nanos: AtomicU64,
    tokens_in: AtomicU64,
    tokens_out: AtomicU64,
}

/// The thread's handle, and its end when nobody holds it any more.
struct Thread {
    shared: Arc<Shared>,
    /// Taken by whoever waits for the end.
    join: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.shared.mailbox.stop();
    }
}

impl Engine {
    /// Starts the thread. `listener` hears on it, between steps.
    ///
    /// # Errors
    /// When the configuration leaves no room for a step, or the thread cannot be started.
    pub fn start(
        model: Box<dyn Model>,
        tokenizer: Arc<Tokenizer>,
        config: EngineConfig,
        listener: Box<dyn Listener<Event>>,
    ) -> Result<Self, Error> {
        Self::start_with(model, tokenizer, config, listener)
    }

    /// [`Self::start`] for any vocabulary.
    fn start_with(
        mut model: Box<dyn Model>,
        vocabulary: Arc<dyn Vocabulary>,
        config: EngineConfig,
        listener: Box<dyn Listener<Event>>,
    ) -> Result<Self, Error> {
        let shape = model.shape();
        let limits = Limits {
            context: shape.context,
            blocks: shape.blocks,
            step_tokens: config.step_tokens.min(shape.step_tokens),
            sequences_max: config.sequences_max,
        };
        if limits.length_max() == 0 || limits.step_tokens == 0 || limits.sequences_max == 0 {
            return Err(Error::Unsupported(format!("nothing can run within {limits:?}")));
        }
        if model.depth() > 1 {
            return Err(Error::Unsupported("more than one step in flight".into()));
        }
        let shared = Arc::new(Shared {
            limits,
            vocabulary: shape.vocabulary,
            jobs_max: config.sequences_max.saturating_add(config.queue_max),
            mailbox: Mailbox::new(),
            jobs: AtomicUsize::new(0),
            alive: AtomicBool::new(true),
            steps: AtomicU64::new(0),
            progress: Arc::default(),
            running: AtomicUsize::new(0),
            blocks_free: AtomicUsize::new(shape.blocks),
            last_step_nanos: AtomicU64::new(0),
            tokens_in: AtomicU64::new(0),
            tokens_out: AtomicU64::new(0),
        });
        model.count_progress(Arc::clone(&shared.progress));
        let driver = Driver::new(model, vocabulary, listener, Arc::clone(&shared));
        let join = std::thread::Builder::new()
            .name("engine".into())
            .spawn(move || driver.run())
            .map_err(|error| Error::Device(format!("the engine's thread: {error}")))?;
        let thread = Arc::new(Thread { shared: Arc::clone(&shared), join: Mutex::new(Some(join)) });
        Ok(Self { shared, thread })
    }

    /// Lets a job in. Its events follow, the last of them [`Event::Ended`].
    ///
    /// # Errors
    /// When the job is not let in; then there are no events.
    pub fn submit(&self, job: Job) -> Result<(), SubmitError> {
        self.check(&job)?;
        let Shared { mailbox, jobs, jobs_max, alive, .. } = &*self.shared;
        mailbox.submit(job, jobs, *jobs_max, alive)
    }

    /// Takes a job out within a step: its slot and its blocks are free for others then. Nothing happens to a job that
    /// has ended.
    pub fn cancel(&self, key: JobKey, why: Cancel) {
        self.shared.mailbox.send(Command::Cancel(key, why));
    }

    /// Steps that came back from the model.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.shared.steps.load(Ordering::Acquire)
    }

    /// What moves while the engine works: with every step, and within a long one.
    #[must_use]
    pub fn progress(&self) -> u64 {
        self.shared.progress.load(Ordering::Acquire)
    }

    /// Whether the thread runs. Once false, every job has been or is being told its end, and none is let in.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.shared.alive.load(Ordering::Acquire)
    }

    /// Tokens that prompt and answer of a job may have together.
    #[must_use]
    pub fn length_max(&self) -> usize {
        self.shared.limits.length_max()
    }

    /// How the engine stands.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let shared = &self.shared;
        let running = shared.running.load(Ordering::Relaxed);
        Stats {
            running,
            waiting: shared.jobs.load(Ordering::Acquire).saturating_sub(running),
            blocks_free: shared.blocks_free.load(Ordering::Relaxed),
            blocks_total: shared.limits.blocks,
            last_step: Duration::from_nanos(shared.last_step_nanos.load(Ordering::Relaxed)),
            tokens_in: shared.tokens_in.load(Ordering::Relaxed),
            tokens_out: shared.tokens_out.load(Ordering::Relaxed),
        }
    }

    /// Ends the thread after the step it is in, and waits for that. Every job still in ends with [`End::Stopped`].
    pub fn stop(self) {
        self.shared.mailbox.stop();
        // Not held while waiting: a listener may stop the engine too.
        let join = self.thread.join.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(join) = join {
            // From within a listener there is nothing to wait for: the thread is this one.
            if join.thread().id() != std::thread::current().id() {
                join.join().expect("the thread catches every panic");
            }
        }
    }

    /// What can be told of a job without the thread.
    fn check(&self, job: &Job) -> Result<(), SubmitError> {
        let invalid = |why| Err(SubmitError::Invalid(why));
        let limit = self.shared.limits.length_max();
        let tokens = job.tokens.len().saturating_add(job.max_tokens);
        if tokens > limit {
            return Err(SubmitError::TooLong { tokens, limit });
        }
        if job.tokens.is_empty() {
            return invalid("a prompt has at least one token");
        }
        if job.max_tokens == 0 {
            return invalid("an answer has at least one token");
        }
        if job.tokens.iter().any(|&token| token as usize >= self.shared.vocabulary) {
            return invalid("a token of the prompt is not in the vocabulary");
        }
        if !job.sampling.is_valid() {
            return invalid("a sampling parameter is out of its range");
        }
        Ok(())
    }
}
