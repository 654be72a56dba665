//! What the workers say of themselves: which models are live, who comes and goes. Pure but for [`watch`].

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use futures::StreamExt;
use protocol::heartbeat::{EXPIRY, Heartbeat, INTERVAL, Loaded, State};
use protocol::token::Token;
use protocol::{ErrorCode, Refusal, WIRE_VERSION, subject};
use runtime::Bus;
use tokio::time::MissedTickBehavior;

use crate::Error;
use crate::ingress::Door;
use crate::metrics;
use crate::pace::Pace;

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
    models: Vec<Serving>,
    state: State,
    at: Instant,
}

/// A model of a worker.
#[derive(Debug)]
struct Serving {
    name: String,
    /// Jobs that it answered; `None` where the worker does not say.
    answered: Option<u64>,
    pace: Option<Pace>,
}

impl Serving {
    fn since(self, before: &Serving, passed: Duration, now: Instant) -> Self {
        let answers = self.answered.zip(before.answered).map(|(now, then)| now.saturating_sub(then));
        Self { pace: answers.and_then(|answers| Pace::after(before.pace, answers, passed, now)), ..self }
    }
}

impl Seen {
    fn new(heartbeat: &Heartbeat, before: Option<&Seen>, at: Instant) -> Self {
        let serving = |(number, model): (usize, &Loaded)| {
            let new =
                Serving { name: model.name.clone(), answered: heartbeat.answered.get(number).copied(), pace: None };
            match before.and_then(|seen| Some((seen.model(&new.name)?, seen.at))) {
                Some((before, then)) => new.since(before, at.saturating_duration_since(then), at),
                None => new,
            }
        };
        Self { models: heartbeat.models.iter().enumerate().map(serving).collect(), state: heartbeat.state, at }
    }

    fn model(&self, name: &str) -> Option<&Serving> {
        self.models.iter().find(|model| model.name == name)
    }

    fn live(&self, now: Instant) -> bool {
        self.state == State::Ready && now.saturating_duration_since(self.at) < EXPIRY
    }
}

/// What people want to know of a heartbeat.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// A worker is heard for the first time.
    Joined(Heartbeat),
    /// A worker said that it goes.
    Gone(Token),
}

impl Fleet {
    /// Nobody has said anything yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self { workers: HashMap::new(), listening_since: now }
    }

    /// Takes a heartbeat; what is new by it.
    pub fn observe(&mut self, heartbeat: Heartbeat, now: Instant) -> Option<News> {
        if heartbeat.state == State::Gone {
            return self.workers.remove_entry(&heartbeat.worker).map(|(worker, _)| News::Gone(worker));
        }
        let known = self.workers.contains_key(&heartbeat.worker);
        if self.workers.len() >= WORKERS_MAX && !known {
            return None;
        }
        let seen = Seen::new(&heartbeat, self.workers.get(&heartbeat.worker), now);
        self.workers.insert(heartbeat.worker.clone(), seen);
        (!known).then_some(News::Joined(heartbeat))
    }

    /// Nothing could be heard until now: silence before it proves nothing.
    pub fn deaf(&mut self, now: Instant) {
        self.listening_since = now;
    }

    /// Forgets who is silent, and names them.
    pub fn expire(&mut self, now: Instant) -> Vec<Token> {
        let silent = |seen: &mut Seen| now.saturating_duration_since(seen.at) >= EXPIRY;
        self.workers.extract_if(|_, seen| silent(seen)).map(|(worker, _)| worker).collect()
    }

    /// How many take jobs.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.workers.values().filter(|seen| seen.state == State::Ready).count()
    }

    /// Whether a model has somebody to compute it.
    #[must_use]
    pub fn workers(&self, model: &str, now: Instant) -> Workers {
        let live = |seen: &Seen| seen.live(now) && seen.model(model).is_some();
        let unproven = now.saturating_duration_since(self.listening_since) < UNPROVEN;
        if unproven || self.workers.values().any(live) { Workers::Live } else { Workers::Absent }
    }

    /// Jobs of a model that are answered a second.
    #[must_use]
    pub fn rate(&self, model: &str, now: Instant) -> f64 {
        let live = self.workers.values().filter(|seen| seen.live(now));
        let paces = live.filter_map(|seen| seen.model(model)?.pace);
        paces.filter(|pace| pace.stands(now)).map(|pace| pace.rate).sum()
    }
}

/// The fleet as [`watch`] writes and route reads it.
pub type View = Arc<RwLock<Fleet>>;

/// Keeps the view up to date.
pub async fn watch(bus: Bus, view: View) -> Result<(), Error> {
    let mut heartbeats =
        bus.client.subscribe(subject::HEARTBEAT_ALL).await.map_err(|error| Error::Nats(error.to_string()))?;
    let mut tick = tokio::time::interval(INTERVAL / 2);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    view.write().expect("no holder panics").deaf(Instant::now());
    loop {
        tokio::select! {
            message = heartbeats.next() => {
                let Some(message) = message else {
                    return Err(Error::Nats("the heartbeats' subscription ended".to_owned()));
                };
                match Heartbeat::decode(&message.payload) {
                    Ok(heartbeat) => {
                        let news = view.write().expect("no holder panics").observe(heartbeat, Instant::now());
                        news.iter().for_each(tell);
                    }
                    Err(refusal) => tracing::debug!(error = %refusal, "a heartbeat cannot be read"),
                }
            }
            _ = tick.tick() => {
                let mut fleet = view.write().expect("no holder panics");
                let connected = bus.connected();
                if !connected {
                    fleet.deaf(Instant::now());
                }
                let silent = fleet.expire(Instant::now());
                metrics::workers(fleet.ready());
                // Without a connection it is we who hear nothing.
                if connected {
                    silent.iter().for_each(|worker| tracing::warn!(%worker, "a worker is silent and counts as gone"));
                }
            }
        }
    }
}

fn tell(news: &News) {
    match news {
        News::Gone(worker) => tracing::info!(%worker, "a worker goes"),
        News::Joined(beat) => {
            let Heartbeat { worker, device, release, .. } = beat;
            let models: Vec<&str> = beat.models.iter().map(|model| model.name.as_str()).collect();
            tracing::info!(%worker, device, models = models.join(", "), release, "a worker joins");
            if let Some(concern) = concern(beat) {
                tracing::warn!(%worker, release, ours = runtime::RELEASE.as_str(), "{concern}");
            }
        }
    }
}

/// What there is to say of a worker of another build.
fn concern(beat: &Heartbeat) -> Option<&'static str> {
    match beat.version.cmp(&WIRE_VERSION) {
        Ordering::Less => Some(
            "the worker reads older jobs than this dispatcher writes: it gives them back, and they wait for a worker that \
             knows them; upgrade it",
        ),
        Ordering::Greater => Some(
            "the worker is newer than this dispatcher and reads its jobs too: upgrade the dispatcher after the workers",
        ),
        Ordering::Equal if beat.release != *runtime::RELEASE => {
            Some("a worker of another release: fine while upgrading; one release everywhere is what was tested")
        }
        Ordering::Equal => None,
    }
}

/// Jobs of a model that are answered a second.
pub fn rate(view: &View, model: &str) -> f64 {
    view.read().expect("no holder panics").rate(model, Instant::now())
}

/// At `infer` somebody waits; the durable door queues.
pub fn check_workers(view: &View, door: Door, model: &str) -> Result<(), Refusal> {
    let workers = view.read().expect("no holder panics").workers(model, Instant::now());
    match (door, workers) {
        (Door::Infer, Workers::Absent) => {
            Err(Refusal::new(ErrorCode::Unavailable, format!("no worker has model '{model}' now"))
                .retry_after(WORKER_RETRY))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heartbeat(worker: &str, state: State) -> Heartbeat {
        Heartbeat {
            version: WIRE_VERSION,
            worker: Token::parse("worker", worker).unwrap(),
            release: runtime::RELEASE.clone(),
            device: "cpu".into(),
            models: vec![Loaded { name: "m".into(), digest: String::new(), precision: "q4_1".into(), context: 1 }],
            state,
            slots_free: 1,
            slots: 1,
            step_seconds: 0.01,
            answered: Vec::new(),
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

    #[test]
    fn the_rate_of_a_model_is_that_of_its_live_workers() {
        let start = Instant::now();
        let mut fleet = Fleet::new(start);
        let beat = |worker, answered| Heartbeat { answered: vec![answered], ..heartbeat(worker, State::Ready) };
        fleet.observe(beat("a", 100), start);
        fleet.observe(heartbeat("old", State::Ready), start);
        assert!(fleet.rate("m", start).abs() < 1e-9, "one heartbeat is no rate");
        let later = start + INTERVAL;
        for beat in [beat("a", 110), beat("b", 7), heartbeat("old", State::Ready)] {
            fleet.observe(beat, later);
        }
        assert!((fleet.rate("m", later) - 10.0).abs() < 1e-9);
        let latest = later + INTERVAL;
        for beat in [beat("a", 110), beat("b", 9)] {
            fleet.observe(beat, latest);
        }
        assert!((fleet.rate("m", latest) - (8.0 + 2.0)).abs() < 1e-9, "a pause is not the end");
        assert!(fleet.rate("other", latest).abs() < 1e-9);
        assert!(fleet.rate("m", latest + EXPIRY).abs() < 1e-9);
    }

    #[test]
    fn who_comes_and_goes_is_news_once() {
        let start = Instant::now();
        let mut fleet = Fleet::new(start);
        let a = heartbeat("a", State::Ready);
        assert_eq!(fleet.observe(a.clone(), start), Some(News::Joined(a.clone())));
        assert_eq!(fleet.observe(heartbeat("a", State::Draining), start), None);
        assert_eq!(fleet.expire(start), []);
        assert_eq!(fleet.observe(heartbeat("a", State::Gone), start), Some(News::Gone(a.worker.clone())));
        assert_eq!(fleet.observe(heartbeat("a", State::Gone), start), None);
        fleet.observe(a.clone(), start);
        assert_eq!(fleet.expire(start + EXPIRY), [a.worker]);
    }

    #[test]
    fn workers_of_another_build_are_a_concern() {
        let ours = heartbeat("a", State::Ready);
        assert_eq!(concern(&ours), None);
        let other = Heartbeat { release: String::new(), ..ours.clone() };
        assert!(concern(&other).unwrap().contains("fine while upgrading"));
        let older = Heartbeat { version: WIRE_VERSION - 1, ..ours.clone() };
        assert!(concern(&older).unwrap().contains("wait for a worker"));
        assert!(concern(&Heartbeat { version: WIRE_VERSION + 1, ..ours }).is_some());
    }
}
