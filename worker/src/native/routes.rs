//! Where an engine's events go, by job. Written by whoever submits, emptied on the worker's thread.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::engine::JobKey;
use engine::listener::Listener;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::model::Event;

type Senders = HashMap<u64, UnboundedSender<Event>>;
/// What a step of the engine told, in order.
type Told = Vec<(JobKey, Event)>;

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

    /// What the engine's thread puts its events in, as `told` says them. They are handed out by a task of the runtime in
    /// which this is called: the worker's thread wakes once for a whole step, and what its walks then say leaves in one
    /// write.
    pub(super) fn outbox<E>(&self, told: fn(E) -> Option<(JobKey, Event)>) -> Outbox<E> {
        let (out, mut steps) = unbounded_channel();
        let routes = self.clone();
        tokio::spawn(async move {
            while let Some(told) = steps.recv().await {
                routes.hand_out(told);
            }
        });
        Outbox { told, step: Told::new(), out }
    }

    /// To each job its own; an end is its last. A receiver that is gone has ended its walk.
    fn hand_out(&self, told: Told) {
        let mut senders = self.lock();
        for (JobKey(key), event) in told {
            let Some(sender) = senders.get(&key) else { continue };
            let is_last = matches!(event, Event::Ended(_));
            let _ = sender.send(event);
            if is_last {
                senders.remove(&key);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Senders> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The events of a step, until the engine pauses.
pub(super) struct Outbox<E> {
    told: fn(E) -> Option<(JobKey, Event)>,
    step: Told,
    out: UnboundedSender<Told>,
}

impl<E> Listener<E> for Outbox<E> {
    fn hear(&mut self, event: E) {
        self.step.extend((self.told)(event));
    }

    /// All at once. Where nobody hands out any more, nobody waits either.
    fn pause(&mut self) {
        if !self.step.is_empty() {
            let _ = self.out.send(std::mem::take(&mut self.step));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::End;

    #[tokio::test]
    async fn a_step_is_told_as_a_whole_and_an_end_closes_its_route() {
        let routes = Routes::default();
        let mut outbox = routes.outbox(Some);
        let (sender, mut first) = unbounded_channel();
        routes.open(1, sender);
        let (sender, mut second) = unbounded_channel();
        routes.open(2, sender);
        outbox.hear((JobKey(1), Event::Chunk("a".to_owned())));
        outbox.hear((JobKey(2), Event::Chunk("b".to_owned())));
        outbox.hear((JobKey(1), Event::Ended(End::Cancelled)));
        outbox.hear((JobKey(3), Event::Ended(End::Cancelled)));
        tokio::task::yield_now().await;
        assert!(first.is_empty(), "the engine has not paused");
        outbox.pause();
        assert_eq!(first.recv().await, Some(Event::Chunk("a".to_owned())));
        // All of the step is there by now, and the job's route is gone.
        assert_eq!(first.try_recv(), Ok(Event::Ended(End::Cancelled)));
        assert_eq!(first.recv().await, None);
        assert_eq!(second.try_recv(), Ok(Event::Chunk("b".to_owned())));
        outbox.hear((JobKey(2), Event::Chunk("c".to_owned())));
        outbox.pause();
        // What the engine's thread said before it ended is handed out too.
        drop(outbox);
        assert_eq!(second.recv().await, Some(Event::Chunk("c".to_owned())));
    }
}
