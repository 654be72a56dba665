//! Starts a dispatcher, runs it, and stops it in two stages: no more messages, then no more work.

use std::sync::{Arc, OnceLock, RwLock};
use std::time::{Duration, Instant};

use runtime::cache::Responses;
use runtime::health::{self, Health};
use runtime::records::Done;
use runtime::sessions::{Rebuilt, Sessions};
use runtime::telemetry::Metrics;
use runtime::{Bus, bus};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Error;
use crate::config::Checked;
use crate::fleet::{self, Fleet};
use crate::ingress;
use crate::leases::Leases;
use crate::metrics;
use crate::room::{self, Room};
use crate::state::Dispatcher;
use crate::steps;
use crate::streams::Streams;

/// How often Redis is asked whether it still holds the sessions.
const SESSIONS_LOOK: Duration = Duration::from_secs(1);
/// How long the last frames may take to leave.
const FLUSH: Duration = Duration::from_secs(2);

/// Runs until `stop`, then drains. `Err` where the process cannot work.
pub async fn run(config: Checked, shown: Metrics, stop: CancellationToken) -> Result<(), Error> {
    metrics::describe();
    let open: Arc<OnceLock<Bus>> = Arc::default();
    // Health outlives the stop: it says that the process drains.
    let health_stop = CancellationToken::new();
    let _health = health_stop.clone().drop_guard();
    if let Some(listen) = config.common.telemetry.listen {
        let ready = readiness(Arc::clone(&open), stop.clone());
        health::serve(listen, Health { ready: Arc::new(ready), metrics: shown }, health_stop).await?;
    }
    let bus = tokio::select! {
        bus = bus::connect(&config.common.nats, ingress::service::NAME) => bus?,
        () = stop.cancelled() => return early(),
    };
    let streams = Streams::new(&config.common.streams, &config.catalogue);
    let sessions = Sessions::new(&config.common.redis)?;
    let prepared = tokio::select! {
        prepared = streams.prepare(&bus, &sessions) => prepared?,
        () = stop.cancelled() => return early(),
    };
    let dispatcher = Arc::new(assemble(bus.clone(), sessions, config).await?);
    let mut parts = start(&dispatcher, &stop);
    let kept = streams.keep(bus.clone(), dispatcher.sessions.clone(), prepared);
    parts.spawn(part("the keeper of streams", until(stop.clone(), kept)));
    let tasks = TaskTracker::new();
    let doors = ingress::infer::open(&dispatcher, &tasks, &stop).await?;
    parts.spawn(part("the interactive doors", doors));
    parts.spawn(part("the durable door", ingress::submit::pull(Arc::clone(&dispatcher), tasks.clone(), stop.clone())));
    parts.spawn(part("the stream of steps", steps::pull(Arc::clone(&dispatcher), tasks.clone(), stop.clone())));
    let _ = open.set(bus);
    tracing::info!(models = dispatcher.catalogue.iter().count(), "ready");
    // The parts end with the stop too: that is no failure of theirs.
    let ended = tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        Some(ended) = parts.join_next() => Err(ended.unwrap_or(Error::Ended("a part that panicked"))),
    };
    stop.cancel();
    drain(&dispatcher, &tasks, parts).await;
    ended
}

fn early() -> Result<(), Error> {
    tracing::info!("stopped before it was ready");
    Ok(())
}

/// Ready is: the doors are open, NATS is there, and nobody wants us to stop.
fn readiness(open: Arc<OnceLock<Bus>>, stop: CancellationToken) -> impl Fn() -> Result<(), String> {
    move || match open.get() {
        _ if stop.is_cancelled() => Err("stopping".to_owned()),
        None => Err("starting".to_owned()),
        Some(bus) if bus.connected() => Ok(()),
        Some(_) => Err("NATS is away".to_owned()),
    }
}

async fn assemble(bus: Bus, sessions: Sessions, config: Checked) -> Result<Dispatcher, Error> {
    let Checked { common, options, catalogue, pipelines, rules } = config;
    let responses = Responses::new(&common.redis)?;
    let leases = Arc::new(Leases::new(responses.clone()));
    Ok(Dispatcher {
        sessions,
        responses,
        done: Done::new(&bus),
        catalogue,
        pipelines,
        rules,
        fleet: Arc::new(RwLock::new(Fleet::new(Instant::now()))),
        room: Arc::new(Room::default()),
        waiting: Arc::new(Semaphore::new(options.waiting_max)),
        lane_jobs_max: common.streams.lane_jobs_max,
        options,
        leases,
        stopping: CancellationToken::new(),
        bus,
    })
}

/// The parts that live as long as the process: should one end, the process does. None of these has anything in hand, so
/// a stop does not wait for what they ask of servers that may be gone.
fn start(dispatcher: &Arc<Dispatcher>, stop: &CancellationToken) -> JoinSet<Error> {
    let mut parts = JoinSet::new();
    let bus = || dispatcher.bus.clone();
    let view = Arc::clone(&dispatcher.fleet);
    parts.spawn(part("the fleet view", until(stop.clone(), fleet::watch(bus(), view))));
    parts.spawn(part("the watch of results", until(stop.clone(), room::watch(bus(), Arc::clone(&dispatcher.room)))));
    let leases = Arc::clone(&dispatcher.leases).renew(bus());
    parts.spawn(part("the keeper of leases", until(stop.clone(), leases)));
    let sessions = keep_sessions(bus(), dispatcher.sessions.clone());
    parts.spawn(part("the keeper of sessions", until(stop.clone(), sessions)));
    parts
}

async fn until(stop: CancellationToken, work: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    tokio::select! {
        () = stop.cancelled() => Ok(()),
        ended = work => ended,
    }
}

async fn part(name: &'static str, work: impl Future<Output = Result<(), Error>>) -> Error {
    work.await.err().unwrap_or(Error::Ended(name))
}

/// Fills Redis from RESULTS whenever it does not hold the sessions: at start, and after it lost its memory.
async fn keep_sessions(bus: Bus, sessions: Sessions) -> Result<(), Error> {
    loop {
        match sessions.held().await {
            Ok(true) => {}
            Ok(false) => match sessions.rebuild(&bus).await {
                Ok(Rebuilt::Applied(_) | Rebuilt::Held | Rebuilt::Elsewhere) => {}
                Err(error) => tracing::warn!(%error, "sessions could not be rebuilt; trying again"),
            },
            Err(error) => tracing::debug!(%error, "Redis does not say whether it holds the sessions"),
        }
        tokio::time::sleep(SESSIONS_LOOK).await;
    }
}

/// What is in is finished; who waits for others is told to come back; then the process may go.
async fn drain(dispatcher: &Dispatcher, tasks: &TaskTracker, mut parts: JoinSet<Error>) {
    dispatcher.stopping.cancel();
    tasks.close();
    let patience = Duration::from_millis(dispatcher.options.drain_ms);
    let finished = async {
        while parts.join_next().await.is_some() {}
        tasks.wait().await;
        dispatcher.leases.finish().await;
    };
    if tokio::time::timeout(patience, finished).await.is_err() {
        tracing::warn!(left = tasks.len(), "not everything was finished in time");
    }
    let bus = &dispatcher.bus;
    if !bus.connected() || tokio::time::timeout(FLUSH, bus.client.flush()).await.is_err() {
        tracing::warn!("NATS does not answer: the last frames may not have left");
    }
    tracing::info!("stopped");
}
