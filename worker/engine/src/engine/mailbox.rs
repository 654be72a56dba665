//! The bounded inbox of an engine's thread. The number of jobs is bounded by whoever submits ([`super::Shared`] counts
//! them), so a cancel always has a place. Commands keep their order: a cancel never meets a job submitted after it.

use super::job::{Cancel, JobKey, SubmitError};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What the handle asks of the thread.
#[derive(Debug)]
pub(crate) enum Command<J> {
    Submit(J),
    Cancel(JobKey, Cancel),
}

/// Whether the thread takes commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Open,
    /// Asked to stop.
    Stopping,
    /// The thread has left.
    Closed,
}

/// What the thread does about an empty inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// Sleeps until there is a command.
    Sleep,
    /// Sleeps until then at the latest.
    Until(Instant),
    /// Goes on with its work.
    Look,
}

#[derive(Debug)]
struct Inner<J> {
    commands: VecDeque<Command<J>>,
    state: State,
}

#[derive(Debug)]
pub(crate) struct Mailbox<J> {
    inner: Mutex<Inner<J>>,
    changed: Condvar,
}

impl<J> Mailbox<J> {
    pub(crate) fn new() -> Self {
        let inner = Inner { commands: VecDeque::new(), state: State::Open };
        Self { inner: Mutex::new(inner), changed: Condvar::new() }
    }

    /// Puts a command in, unless nobody will read it. A cancel that is in already is not put in twice.
    pub(crate) fn send(&self, command: Command<J>) -> State {
        let mut inner = self.lock();
        if inner.state == State::Open {
            if !inner.has_cancel(&command) {
                inner.commands.push_back(command);
            }
            self.changed.notify_one();
        }
        inner.state
    }

    /// Lets a job in, one more of the `jobs`, of whom there may be `most`, unless nobody will read it.
    pub(crate) fn submit(
        &self,
        job: J,
        jobs: &AtomicUsize,
        most: usize,
        alive: &AtomicBool,
    ) -> Result<(), SubmitError> {
        let one_more = |count| (count < most).then_some(count + 1);
        let counted = jobs.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more);
        let open = || alive.load(Ordering::Acquire) && self.state() == State::Open;
        counted.map_err(|_| if open() { SubmitError::Full } else { SubmitError::Stopped })?;
        match self.send(Command::Submit(job)) {
            State::Open => Ok(()),
            State::Stopping | State::Closed => {
                jobs.fetch_sub(1, Ordering::AcqRel);
                Err(SubmitError::Stopped)
            }
        }
    }

    /// Whether commands are taken.
    pub(crate) fn state(&self) -> State {
        self.lock().state
    }

    /// Whether the thread will end this job as soon as it looks here.
    pub(crate) fn ends(&self, key: JobKey) -> bool {
        let inner = self.lock();
        let cancels = |command: &Command<J>| matches!(command, Command::Cancel(other, _) if *other == key);
        inner.state != State::Open || inner.commands.iter().any(cancels)
    }

    /// Asks the thread to stop.
    pub(crate) fn stop(&self) {
        let mut inner = self.lock();
        if inner.state == State::Open {
            inner.state = State::Stopping;
            self.changed.notify_one();
        }
    }

    /// Moves all commands to `into`, which is empty.
    pub(crate) fn take(&self, into: &mut VecDeque<Command<J>>, patience: Patience) -> State {
        let mut inner = self.lock();
        while inner.commands.is_empty() && inner.state == State::Open {
            inner = match patience {
                Patience::Look => break,
                Patience::Sleep => self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner),
                Patience::Until(end) => match end.saturating_duration_since(Instant::now()) {
                    Duration::ZERO => break,
                    left => self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0,
                },
            };
        }
        std::mem::swap(&mut inner.commands, into);
        inner.state
    }

    /// The thread leaves: nothing is put in after this. Moves what is left to `into`.
    pub(crate) fn close(&self, into: &mut VecDeque<Command<J>>) {
        let mut inner = self.lock();
        inner.state = State::Closed;
        into.append(&mut inner.commands);
    }

    /// No code that may panic runs under the lock, so a poisoned one is as good as any.
    fn lock(&self) -> MutexGuard<'_, Inner<J>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<J> Inner<J> {
    /// Whether `command` cancels what the newest command cancels: so one who repeats himself takes no memory.
    fn has_cancel(&self, command: &Command<J>) -> bool {
        match (self.commands.back(), command) {
            (Some(Command::Cancel(last, _)), Command::Cancel(key, _)) => last == key,
            _ => false,
        }
    }
}
