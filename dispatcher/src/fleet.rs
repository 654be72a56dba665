//! What the workers say of themselves: which models are live. Pure but for [`watch`].

use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use futures::StreamExt;
use protocol::heartbeat::{EXPIRY, Heartbeat, INTERVAL, State};
use protocol::job::Job;
use protocol::token::Token;
use protocol::{ErrorCode, Refusal, subject};
use runtime::Bus;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::ingress::Door;
use crate::metrics;

/// When a client without a worker should ask again.
const WORKER_RETRY: Duration = Duration::from_secs(2);
/// Most workers that are remembered.
const WORKERS_MAX: usize = 16_384;
/// Silence proves nothing until a heartbeat of everybody must have come.
const UNPROVEN: Duration = INTERVAL.saturating_mul(2);

/// Whether a model has somebody to compute it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workers {
    /// At least one, or it is too early to tell.
    Live,
    /// None.
    Absent,
}

/// The fleet as its heartbeats show it.
#[derive(Debug)]
pub struct Fleet {
    workers: HashMap<Token, Seen>,
    listening_since: Instant,
}

#[derive(Debug)]
struct Seen {
    models: Vec<String>,
    state: State,
    at: Instant,
}

impl Fleet {
    /// Nobody has said anything yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { workers: HashMap::new(), listening_since: now }
    }

    /// Takes a heartbeat.
    pub fn observe(&mut self, heartbeat: Heartbeat, now: Instant) {
        if heartbeat.state == State::Gone {
            self.workers.remove(&heartbeat.worker);
            return;
        }
        if self.workers.len() >= WORKERS_MAX && !self.workers.contains_key(&heartbeat.worker) {
            return;
        }
        let models = heartbeat.models.into_iter().map(|model| model.name).collect();
        self.workers.insert(heartbeat.worker, Seen { models, state: heartbeat.state, at: now });
    }

    /// Nothing could be heard until now: silence before it proves nothing.
    pub fn deaf(&mut self, now: Instant) {
        self.listening_since = now;
    }

    /// Forgets who is silent.
    pub fn expire(&mut self, now: Instant) {
        self.workers.retain(|_, seen| now.saturating_duration_since(seen.at) < EXPIRY);
    }

    /// How many take jobs.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.workers.values().filter(|seen| seen.state == State::Ready).count()
    }

    /// Whether a model has somebody to compute it.
    #[must_use]
    pub fn workers(&self, model: &str, now: Instant) -> Workers {
        let live = |seen: &Seen| {
            seen.state == State::Ready
                && now.saturating_duration_since(seen.at) < EXPIRY
                && seen.models.iter().any(|name| name == model)
        };
        let unproven = now.saturating_duration_since(self.listening_since) < UNPROVEN;
        if unproven || self.workers.values().any(live) { Workers::Live } else { Workers::Absent }
    }
}

/// The fleet as [`watch`] writes and route reads it.
pub type View = Arc<RwLock<Fleet>>;

/// Keeps the view up to date until `stop`.
pub async fn watch(bus: Bus, view: View, stop: CancellationToken) -> Result<(), Error> {
    let mut heartbeats =
        bus.client.subscribe(subject::HEARTBEAT_ALL).await.map_err(|error| Error::Nats(error.to_string()))?;
    let mut tick = tokio::time::interval(INTERVAL / 2);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    view.write().expect("no holder panics").deaf(Instant::now());
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            message = heartbeats.next() => {
                let Some(message) = message else {
                    return Err(Error::Nats("the heartbeats' subscription ended".to_owned()));
                };
                match Heartbeat::decode(&message.payload) {
                    Ok(heartbeat) => view.write().expect("no holder panics").observe(heartbeat, Instant::now()),
                    Err(refusal) => tracing::debug!(error = %refusal, "a heartbeat cannot be read"),
                }
            }
            _ = tick.tick() => {
                let mut fleet = view.write().expect("no holder panics");
                if !bus.connected() {
                    fleet.deaf(Instant::now());
                }
                fleet.expire(Instant::now());
                metrics::workers(fleet.ready());
            }
        }
    }
}

/// At `infer` somebody waits; the durable door queues.
pub fn check_workers(view: &View, door: Door, job: &Job) -> Result<(), Refusal> {
    let workers = view.read().expect("no holder panics").workers(&job.model, Instant::now());
    match (door, workers) {
        (Door::Infer, Workers::Absent) => {
            Err(Refusal::new(ErrorCode::Unavailable, format!("no worker has model '{}' now", job.model))
                .retry_after(WORKER_RETRY))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use protocol::heartbeat::Loaded;

    use super::*;

    fn heartbeat(worker: &str, state: State) -> Heartbeat {
        Heartbeat {
            version: 1,
            worker: Token::parse("worker", worker).unwrap(),
            device: "cpu".into(),
            models: vec![Loaded { name: "m".into(), digest: String::new(), precision: "q4_1".into(), context: 1 }],
            state,
            slots_free: 1,
            slots: 1,
            step_seconds: 0.01,
        }
    }

    #[test]
    fn a_silent_or_draining_worker_is_not_live() {
        let start = Instant::now();
        let mut fleet = Fleet::new(start);
        assert_eq!(fleet.workers("m", start), Workers::Live, "too early to tell");
        let later = start + UNPROVEN;
        assert_eq!(fleet.workers("m", later), Workers::Absent);
        fleet.observe(heartbeat("a", State::Ready), later);
        assert_eq!(fleet.workers("m", later), Workers::Live);
        assert_eq!(fleet.workers("other", later), Workers::Absent);
        assert_eq!(fleet.workers("m", later + EXPIRY), Workers::Absent);
        fleet.observe(heartbeat("a", State::Draining), later);
        assert_eq!(fleet.workers("m", later), Workers::Absent);
        fleet.observe(heartbeat("b", State::Ready), later);
        assert_eq!(fleet.ready(), 1);
        fleet.observe(heartbeat("b", State::Gone), later);
        assert_eq!(fleet.workers("m", later), Workers::Absent);
        fleet.deaf(later);
        assert_eq!(fleet.workers("m", later), Workers::Live, "nothing could be heard");
        fleet.expire(later + EXPIRY);
        assert_eq!(fleet.ready(), 0);
    }
}
