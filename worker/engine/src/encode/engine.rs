//! The encoders' engine as others see it: a handle to one OS thread that owns the device.
//!
//! As [`crate::engine`], for jobs that are lists of inputs: a bounded inbox in, events to a listener on the thread out.
//! It sleeps while it has no job.

use super::driver::Driver;
use super::{Encoder, Event, Job};
use crate::Error;
use crate::engine::mailbox::{Command, Mailbox};
use crate::engine::{Cancel, JobKey, SubmitError};
use crate::listener::Listener;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How the engine stands; each number by itself is exact, together they may be a batch apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Jobs that are in.
    pub jobs: usize,
    /// Inputs of the batch that computes.
    pub running: usize,
    /// Inputs that wait for a batch.
    pub waiting: usize,
    /// Batches that came back.
    pub batches: u64,
    /// Inputs of all batches.
    pub inputs: u64,
    /// What they cost: tokens, pixels or samples of sound.
    pub units: u64,
    /// How long the last batch took.
    pub last_batch: Duration,
}

/// A handle to the engine. The thread ends when the last handle is dropped.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    thread: Arc<Thread>,
}

/// What handles and thread both see.
pub(super) struct Shared {
    jobs_max: usize,
    pub(super) mailbox: Mailbox<Job>,
    /// Jobs let in and not ended. Counted up by handles, down by the thread.
    pub(super) jobs: AtomicUsize,
    // Written by the thread, read by handles.
    pub(super) alive: AtomicBool,
    pub(super) batches: AtomicU64,
    /// Counted up by the encoder too.
    pub(super) progress: Arc<AtomicU64>,
    pub(super) running: AtomicUsize,
    pub(super) waiting: AtomicUsize,
    pub(super) inputs: AtomicU64,
    pub(super) units: AtomicU64,
    pub(super) last_batch_nanos: AtomicU64,
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
    /// Starts the thread, which takes up to `jobs_max` jobs. `listener` hears on it, between batches.
    ///
    /// # Errors
    /// When a batch could hold no input, or the thread cannot be started.
    pub fn start(
        mut encoder: Box<dyn Encoder>,
        jobs_max: usize,
        listener: Box<dyn Listener<Event>>,
    ) -> Result<Self, Error> {
        let budget = encoder.budget();
        if budget.inputs == 0 || jobs_max == 0 {
            return Err(Error::Unsupported(format!("nothing can run within {budget:?} and {jobs_max} jobs")));
        }
        let shared = Arc::new(Shared {
            jobs_max,
            mailbox: Mailbox::new(),
            jobs: AtomicUsize::new(0),
            alive: AtomicBool::new(true),
            batches: AtomicU64::new(0),
            progress: Arc::default(),
            running: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            inputs: AtomicU64::new(0),
            units: AtomicU64::new(0),
            last_batch_nanos: AtomicU64::new(0),
        });
        encoder.count_progress(Arc::clone(&shared.progress));
        let driver = Driver::new(encoder, listener, Arc::clone(&shared));
        let join = std::thread::Builder::new()
            .name("encoder".into())
            .spawn(move || driver.run())
            .map_err(|error| Error::Device(format!("the engine's thread: {error}")))?;
        let thread = Arc::new(Thread { shared: Arc::clone(&shared), join: Mutex::new(Some(join)) });
        Ok(Self { shared, thread })
    }

    /// Lets a job in. Its events follow, the last of them [`super::Event::Ended`].
    ///
    /// # Errors
    /// When the job is not let in; then there are no events.
    pub fn submit(&self, job: Job) -> Result<(), SubmitError> {
        if job.inputs.is_empty() {
            return Err(SubmitError::Invalid("a job has at least one input"));
        }
        let Shared { mailbox, jobs, jobs_max, alive, .. } = &*self.shared;
        mailbox.submit(job, jobs, *jobs_max, alive)
    }

    /// Takes a job out after the batch that computes, whose encoder may leave it at once. Nothing happens to a job that
    /// has ended.
    pub fn cancel(&self, key: JobKey, why: Cancel) {
        self.shared.mailbox.send(Command::Cancel(key, why));
    }

    /// What moves while the engine works: with every batch, and within a long one.
    #[must_use]
    pub fn progress(&self) -> u64 {
        self.shared.progress.load(Ordering::Acquire)
    }

    /// Whether the thread runs. Once false, every job has been or is being told its end, and none is let in.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.shared.alive.load(Ordering::Acquire)
    }

    /// How the engine stands.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let shared = &self.shared;
        Stats {
            jobs: shared.jobs.load(Ordering::Acquire),
            running: shared.running.load(Ordering::Relaxed),
            waiting: shared.waiting.load(Ordering::Relaxed),
            batches: shared.batches.load(Ordering::Acquire),
            inputs: shared.inputs.load(Ordering::Relaxed),
            units: shared.units.load(Ordering::Relaxed),
            last_batch: Duration::from_nanos(shared.last_batch_nanos.load(Ordering::Relaxed)),
        }
    }

    /// Ends the thread after the batch it is in, which its encoder may leave at once, and waits for that. Every job
    /// still in ends with [`super::End::Stopped`].
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
}
