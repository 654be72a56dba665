//! Where an engine's events go, by job. Written by whoever submits, emptied by the engine's thread.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc::UnboundedSender;

use crate::model::{End, Event};

type Senders = HashMap<u64, UnboundedSender<Event>>;

/// The routes of one engine.
#[derive(Clone, Debug, Default)]
pub(super) struct Routes(Arc<Mutex<Senders>>);

impl Routes {
    /// A job's events go there from now on.
    pub(super) fn open(&self, key: u64, events: UnboundedSender<Event>) {
        self.lock().insert(key, events);
    }

    /// The job was not let in.
    pub(super) fn close(&self, key: u64) {
        self.lock().remove(&key);
    }

    /// Called on the engine's thread, between steps. A receiver that is gone has ended its walk.
    pub(super) fn send(&self, key: u64, event: Event) {
        if let Some(sender) = self.lock().get(&key) {
            let _ = sender.send(event);
        }
    }

    /// The last event of a job.
    pub(super) fn end(&self, key: u64, end: End) {
        let sender = self.lock().remove(&key);
        if let Some(sender) = sender {
            let _ = sender.send(Event::Ended(end));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Senders> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
