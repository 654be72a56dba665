//! The worker's loop: everything that can wake it is one enum, and all that it decides on is its own.
//!
//! It stops in two stages. First it pulls no more, gives back what it holds and finishes what it computes; when the time
//! for that is over it takes the rest out of the engines and gives that back too.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::service::ServiceExt;
use async_nats::{Message, Subscriber};
use futures::{FutureExt, StreamExt};
use protocol::heartbeat::State;
use protocol::subject;
use runtime::clock;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Interval, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::delivery::Delivery;
use crate::error::Error;
use crate::lanes::{Ask, Lanes, Place, Turn, weight};
use crate::pull::{Inbox, Pulled, Source, sources};
use crate::worker::Worker;
use crate::{heartbeat, metrics, serve};

/// How the fleet's micro services are told apart.
pub const SERVICE: &str = "flotilla-worker";
/// How often lost pulls and new connections are looked for.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long giving back may take once the time for finishing is over.
const QUIT_TIME: Duration = Duration::from_secs(5);

/// Works until `stop`, then finishes what it has for up to `drain`.
pub async fn run(worker: Arc<Worker>, drain: Duration, stop: CancellationToken) -> Result<(), Error> {
    let bus = &worker.bus;
    let service = bus.client.service_builder().description("runs models").metadata(metadata(&worker));
    let service = service.start(SERVICE, env!("CARGO_PKG_VERSION")).await.map_err(refused)?;
    let inbox = Inbox::new(bus, worker.rank);
    let mut ears = Ears::open(&worker, &inbox).await?;
    let draining = CancellationToken::new();
    let mut heart = JoinSet::new();
    let over = CancellationToken::new();
    heart.spawn(heartbeat::beat(Arc::clone(&worker), draining.clone(), over.clone()));
    let sources = sources(&worker.models);
    let mut work = Work {
        lanes: Lanes::new(sources.iter().map(|source| weight(source.priority))),
        sources,
        inbox,
        tasks: JoinSet::new(),
        stage: Stage::Working,
        connects: 0,
        refusals: BTreeMap::new(),
        said: BTreeMap::new(),
        worker: Arc::clone(&worker),
    };
    tracing::info!(worker = %worker.name, slots = worker.slots, "ready");
    while !work.over() {
        work.turns().await;
        let mut woken = Some(ears.wake(&mut work, &mut heart, &stop).await);
        // All that is there is heard before the next turns, so that slots that came free together are one pull.
        while let Some(wake) = woken {
            match wake {
                Wake::Inbox(message) => work.inbox(message),
                Wake::Cancel(message) => work.cancel(&message),
                Wake::Served(result) => served(result),
                Wake::Look => work.look(),
                Wake::Pull => break,
                Wake::Stop => {
                    draining.cancel();
                    work.drain(drain);
                }
                Wake::TimeIsUp => work.time_is_up(),
                Wake::HeartStopped(result) => return result,
                Wake::Closed => return Err(Error::Closed),
            }
            woken = ears.wake(&mut work, &mut heart, &stop).now_or_never();
        }
    }
    over.cancel();
    if bus.connected() {
        heartbeat::announce(&worker, State::Gone, worker.slots).await;
        let _ = service.stop().await;
        let _ = tokio::time::timeout(QUIT_TIME, bus.client.flush()).await;
    } else {
        tracing::warn!("NATS is away: the fleet learns of this stop by silence");
    }
    tracing::info!("stopped");
    Ok(())
}

fn metadata(worker: &Worker) -> HashMap<String, String> {
    let models: Vec<&str> = worker.models.iter().map(|model| model.loaded.name.as_str()).collect();
    HashMap::from([
        ("worker".to_owned(), worker.name.to_string()),
        ("device".to_owned(), worker.device.clone()),
        ("models".to_owned(), models.join(",")),
        ("slots".to_owned(), worker.slots.to_string()),
    ])
}

fn refused(error: impl std::fmt::Display) -> Error {
    Error::Runtime(runtime::Error::Nats(error.to_string()))
}

/// All that can wake the loop.
enum Wake {
    /// A delivery, or the answer to a pull.
    Inbox(Message),
    /// Somebody cancelled a job.
    Cancel(Message),
    /// A walk is over.
    Served(Result<(), JoinError>),
    /// A pull is overdue, or a lane has rested.
    Pull,
    /// Time to look for what went missing.
    Look,
    /// First stage of the stop.
    Stop,
    /// The stage's time is over.
    TimeIsUp,
    /// The heart stopped, for a reason.
    HeartStopped(Result<(), Error>),
    /// The client was closed.
    Closed,
}

/// What the loop listens to.
struct Ears {
    inbox: Subscriber,
    cancels: Subscriber,
    look: Interval,
}

impl Ears {
    async fn open(worker: &Worker, inbox: &Inbox) -> Result<Self, Error> {
        let client = &worker.bus.client;
        let cancels = client.subscribe(subject::CANCEL_ALL).await.map_err(refused)?;
        let inbox = client.subscribe(inbox.subject()).await.map_err(refused)?;
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self { inbox, cancels, look })
    }

    async fn wake(
        &mut self,
        work: &mut Work,
        heart: &mut JoinSet<Result<(), Error>>,
        stop: &CancellationToken,
    ) -> Wake {
        let look_again = work.lanes.look_again(Instant::now());
        let limit = work.stage.limit();
        tokio::select! {
            message = self.inbox.next() => message.map_or(Wake::Closed, Wake::Inbox),
            message = self.cancels.next() => message.map_or(Wake::Closed, Wake::Cancel),
            Some(result) = work.tasks.join_next() => Wake::Served(result),
            Some(result) = heart.join_next() => Wake::HeartStopped(result.unwrap_or(Err(Error::Closed))),
            _ = self.look.tick() => Wake::Look,
            () = stop.cancelled(), if work.stage == Stage::Working => Wake::Stop,
            () = until(look_again), if look_again.is_some() => Wake::Pull,
            () = until(limit), if limit.is_some() => Wake::TimeIsUp,
        }
    }
}

fn served(result: Result<(), JoinError>) {
    if let Err(error) = result
        && error.is_panic()
    {
        tracing::error!(%error, "a walk panicked; its delivery is left to the queue");
    }
}

async fn until(instant: Option<Instant>) {
    if let Some(instant) = instant {
        tokio::time::sleep_until(instant.into()).await;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Working,
    /// Pulls no more, finishes what it has.
    Draining(Instant),
    /// Gives back what is left.
    Quitting(Instant),
}

impl Stage {
    const fn limit(self) -> Option<Instant> {
        match self {
            Stage::Working => None,
            Stage::Draining(limit) | Stage::Quitting(limit) => Some(limit),
        }
    }
}

/// What the loop owns.
struct Work {
    worker: Arc<Worker>,
    sources: Vec<Source>,
    inbox: Inbox,
    lanes: Lanes<Arc<Delivery>>,
    tasks: JoinSet<()>,
    stage: Stage,
    connects: u64,
    /// What the server says of lanes that it refuses.
    refusals: BTreeMap<usize, String>,
    /// What of that stands in the log.
    said: BTreeMap<usize, String>,
}

impl Work {
    fn free(&self) -> usize {
        self.worker.slots.saturating_sub(self.tasks.len())
    }

    /// Fills free slots, or asks for what may fill them.
    async fn turns(&mut self) {
        let stalled = self.worker.now.stalled.load(Ordering::Relaxed);
        if self.stage != Stage::Working || stalled || !self.worker.bus.connected() {
            return;
        }
        for turn in self.lanes.turns(self.free(), Instant::now()) {
            match turn {
                Turn::Serve(delivery) => self.serve(delivery),
                Turn::Pull(ask) => self.pull(ask).await,
            }
        }
    }

    fn serve(&mut self, delivery: Arc<Delivery>) {
        // In a box, since a task is moved some eight times before it runs, and a walk is large.
        self.tasks.spawn(Box::pin(serve::serve(Arc::clone(&self.worker), delivery)));
    }

    fn decline(&mut self, delivery: Arc<Delivery>) {
        self.tasks.spawn(serve::decline(Arc::clone(&self.worker), delivery));
    }

    async fn pull(&mut self, ask: Ask) {
        if let Err(error) = self.inbox.pull(&self.worker.bus, &self.sources[ask.lane], ask).await {
            tracing::warn!(%error, "a pull could not be sent");
            self.lanes.refused(ask.lane, ask.number, Instant::now() + clock::jitter(LOOK_INTERVAL));
        }
    }

    fn inbox(&mut self, message: Message) {
        let now = Instant::now();
        match self.inbox.read(&self.sources, message) {
            Pulled::Delivery { lane, message } => self.delivery(lane, message, now),
            Pulled::Empty { lane, number } => {
                self.refusals.remove(&lane);
                self.lanes.empty(lane, number, now);
            }
            Pulled::Refused { lane, number, rest, why } => {
                self.lanes.refused(lane, number, now + rest / 2 + clock::jitter(rest));
                self.refusals.insert(lane, why);
            }
            Pulled::Stray => tracing::debug!("a stray message in the inbox"),
        }
    }

    /// All lanes in one line, and not at every try.
    fn say_refusals(&mut self) {
        self.worker.now.astray.store(self.refusals.len() == self.sources.len(), Ordering::Relaxed);
        if self.refusals == self.said {
            return;
        }
        match self.refusals.values().next() {
            None => tracing::info!("the queue answers every pull again"),
            Some(why) => {
                let lanes: Vec<&str> = self.refusals.keys().map(|&lane| self.sources[lane].consumer.as_str()).collect();
                tracing::warn!(lanes = lanes.join(", "), why, "the queue refuses pulls; trying on");
            }
        }
        self.said.clone_from(&self.refusals);
    }

    fn delivery(&mut self, lane: usize, message: Message, now: Instant) {
        let Some(delivery) = Delivery::read(&self.worker.bus, message, (lane, self.sources[lane].model)) else {
            return tracing::warn!("a message without an ack subject");
        };
        self.refusals.remove(&lane);
        let place = self.lanes.arrived(lane, delivery.info.waiting, self.free(), now);
        let Some(delivery) = self.worker.now.hand.take(delivery) else {
            return tracing::debug!("a job came again that is in hand");
        };
        match (self.stage, place) {
            (Stage::Working, Place::Slot) => self.serve(delivery),
            (Stage::Working, Place::Hold) => self.lanes.hold(lane, delivery),
            (Stage::Draining(_) | Stage::Quitting(_), _) => self.decline(delivery),
        }
    }

    fn cancel(&self, message: &Message) {
        if let Some((tenant, job)) = subject::cancel_job(&message.subject) {
            let found = self.worker.now.hand.cancel(&tenant, &job);
            tracing::debug!(%tenant, %job, found, "cancel");
            self.worker.now.heard.ended(tenant, job);
        }
    }

    /// Pulls do not survive a connection, and not every pull is answered.
    fn look(&mut self) {
        self.say_refusals();
        let connects = self.worker.bus.connections();
        if connects != self.connects {
            self.connects = connects;
            self.lanes.reconnected();
            self.worker.now.heard.listen(connects);
        }
        let overdue = self.lanes.overdue(Instant::now());
        // Without a connection no pull is answered, which is no news.
        if overdue > 0 && self.worker.bus.connected() {
            metrics::overdue(overdue);
            tracing::warn!(overdue, "pulls without an answer are made anew");
        }
    }

    fn drain(&mut self, drain: Duration) {
        tracing::info!(in_hand = self.worker.now.hand.all().len(), seconds = drain.as_secs(), "draining");
        self.stage = Stage::Draining(Instant::now() + drain);
        for delivery in self.lanes.drain() {
            self.decline(delivery);
        }
    }

    fn time_is_up(&mut self) {
        let left = self.tasks.len();
        match self.stage {
            Stage::Draining(_) if self.worker.bus.connected() => {
                tracing::info!(left, "what is left is given back");
                self.worker.now.quit.cancel();
                self.stage = Stage::Quitting(Instant::now() + QUIT_TIME);
            }
            _ => {
                tracing::warn!(left, "stopped without giving everything back; the queue hands it to others by itself");
                self.worker.now.quit.cancel();
                self.tasks.abort_all();
                self.lanes.reconnected();
                self.stage = Stage::Quitting(Instant::now() + QUIT_TIME);
            }
        }
    }

    /// Whether it is stopped: nothing in hand, and no pull that may still bring something.
    fn over(&self) -> bool {
        let pulling = self.lanes.pulling() && self.worker.bus.connected();
        self.stage != Stage::Working && self.tasks.is_empty() && !pulling
    }
}
