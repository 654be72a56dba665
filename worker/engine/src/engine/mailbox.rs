//! The engine thread's bounded inbox. The number of jobs is bounded by whoever submits ([`super::Shared`] counts them),
//! so a cancel always has a place. Commands keep their order: a cancel never meets a job submitted after it.

use super::job::{Cancel, Job, JobKey};
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What the handle asks of the thread.
#[derive(Debug)]
pub(super) enum Command {
    Submit(Job),
    Cancel(JobKey, Cancel),
}

/// Whether the thread takes commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Open,
    /// Asked to stop.
    Stopping,
    /// The thread has left.
    Closed,
}

/// What the thread does about an empty inbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// Sleeps until there is a command.
    Sleep,
    /// Goes on with its work.
    Look,
}

#[derive(Debug)]
struct Inner {
    commands: VecDeque<Command>,
    state: State,
}

#[derive(Debug)]
pub(super) struct Mailbox {
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl Mailbox {
    pub(super) fn new() -> Self {
        let inner = Inner { commands: VecDeque::new(), state: State::Open };
        Self { inner: Mutex::new(inner), changed: Condvar::new() }
    }

    /// Puts a command in, unless nobody will read it. A cancel that is in already is not put in twice.
    pub(super) fn send(&self, command: Command) -> State {
        let mut inner = self.lock();
        if inner.state == State::Open {
            if !inner.has_cancel(&command) {
                inner.commands.push_back(command);
            }
            self.changed.notify_one();
        }
        inner.state
    }

    /// Whether commands are taken.
    pub(super) fn state(&self) -> State {
        self.lock().state
    }

    /// Asks the thread to stop.
    pub(super) fn stop(&self) {
        let mut inner = self.lock();
        if inner.state == State::Open {
            inner.state = State::Stopping;
            self.changed.notify_one();
        }
    }

    /// Moves all commands to `into`, which is empty.
    pub(super) fn take(&self, into: &mut VecDeque<Command>, patience: Patience) -> State {
        let mut inner = self.lock();
        while patience == Patience::Sleep && inner.commands.is_empty() && inner.state == State::Open {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::swap(&mut inner.commands, into);
        inner.state
    }

    /// The thread leaves: nothing is put in after this. Moves what is left to `into`.
    pub(super) fn close(&self, into: &mut VecDeque<Command>) {
        let mut inner = self.lock();
        inner.state = State::Closed;
        into.append(&mut inner.commands);
    }

    /// No code that may panic runs under the lock, so a poisoned one is as good as any.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Whether `command` cancels what the newest command cancels: so one who repeats himself takes no memory.
    fn has_cancel(&self, command: &Command) -> bool {
        match (self.commands.back(), command) {
            (Some(Command::Cancel(last, _)), Command::Cancel(key, _)) => last == key,
            _ => false,
        }
    }
}
