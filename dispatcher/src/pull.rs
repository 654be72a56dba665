//! Taking messages from a work queue that all dispatchers share, each as a task of its own, bounded in number and bytes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::{AckKind, Message};
use futures::StreamExt;
use protocol::stream::{self, Consumer};
use protocol::{ErrorCode, Refusal};
use runtime::clock::Seldom;
use runtime::{Bus, bus, clock};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Error;
use crate::slots::{Place, Slots};
use crate::state::Dispatcher;

/// A pull ends after this, which is how long a stop waits for the last one.
const PULL_EXPIRES: Duration = Duration::from_secs(1);
/// What a delivery has beside what the server takes as a payload: its subjects.
const MESSAGE_SPARE_BYTES: usize = 8 * 1024;
/// How the server says that the next message does not fit into what is left of a pull's bytes.
const BYTES_USED_UP: &str = "Message Size Exceeds MaxBytes";
/// A message in hand shows life this often; the consumer's ack wait is three times as long.
const PROGRESS: Duration = Duration::from_secs(10);
/// Bounds of the delay before a message that failed for a passing reason comes back: first soon, since a lane has room
/// again soon; then seldom enough that the server's deliveries last for the longest deadline.
pub(crate) const AGAIN_FIRST: Duration = Duration::from_secs(1);
/// See [`AGAIN_FIRST`].
pub(crate) const AGAIN_SOON: Duration = Duration::from_secs(5);
/// See [`AGAIN_FIRST`].
pub(crate) const AGAIN_SELDOM: Duration = Duration::from_secs(120);
/// Deliveries after which it is seldom.
const DELIVERIES_SOON: u64 = 100;
/// The server delivers a message [`stream::DELIVERIES_MAX`] times; this many are kept back to end it ourselves.
const DELIVERIES_LEFT: u64 = 50;
/// Bounds of the delay after a pull that failed.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// See [`RETRY_FIRST`].
const RETRY_MOST: Duration = Duration::from_secs(5);
/// How often a stop looks whether the connection is lost.
const ADRIFT_LOOK: Duration = Duration::from_millis(100);

/// How a message ends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// It is settled.
    Done,
    /// It comes back after this.
    Again(Duration),
}

/// A queue and the tasks that its messages become.
pub(crate) struct Source {
    /// Its consumer.
    pub(crate) consumer: Consumer,
    /// Its name in logs.
    pub(crate) name: &'static str,
    /// Where the tasks run.
    pub(crate) tasks: TaskTracker,
    /// When no more are taken.
    pub(crate) stop: CancellationToken,
}

/// Pulls until the stop; what is in hand runs on. At most `submit_in_flight_max` messages at once, of
/// `in_flight_bytes_max` together, or one that is larger.
pub(crate) async fn pull<F, T>(dispatcher: Arc<Dispatcher>, source: Source, handle: F) -> Result<(), Error>
where
    F: Fn(Arc<Dispatcher>, Message, Place) -> T,
    T: Future<Output = ()> + Send + 'static,
{
    let slots = Slots::new(dispatcher.options.submit_in_flight_max, dispatcher.options.in_flight_bytes_max);
    let stop = &source.stop;
    let mut failures = 0;
    let mut seldom = Seldom::default();
    while !stop.is_cancelled() {
        let pulled = tokio::select! {
            pulled = pull_some(&dispatcher, &slots, &source, &handle) => pulled,
            () = adrift(&dispatcher.bus, stop) => return Ok(()),
        };
        match pulled {
            Ok(()) => failures = 0,
            Err(error) => {
                let delay = clock::backoff(failures, RETRY_FIRST, RETRY_MOST);
                if seldom.due(Instant::now()) {
                    tracing::warn!(error, "{} cannot be read; trying on", source.name);
                }
                failures += 1;
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(delay) => {}
                }
            }
        }
    }
    Ok(())
}

/// Returns once the process stops without a connection: what a pull still asks for will not come.
async fn adrift(bus: &Bus, stop: &CancellationToken) {
    stop.cancelled().await;
    while bus.connected() {
        tokio::time::sleep(ADRIFT_LOOK).await;
    }
}

/// Pulls with one handle of the consumer, as long as that works.
async fn pull_some<F, T>(dispatcher: &Arc<Dispatcher>, slots: &Slots, source: &Source, handle: &F) -> Result<(), String>
where
    F: Fn(Arc<Dispatcher>, Message, Place) -> T,
    T: Future<Output = ()> + Send + 'static,
{
    let Source { consumer: wanted, tasks, stop, .. } = source;
    let consumer: PullConsumer =
        match dispatcher.bus.js.get_consumer_from_stream(wanted.name.as_str(), wanted.stream).await {
            Ok(consumer) => consumer,
            Err(error) => {
                // Somebody may have deleted it.
                bus::apply_consumer(&dispatcher.bus, wanted).await.map_err(|error| error.to_string())?;
                return Err(error.to_string());
            }
        };
    while !stop.is_cancelled() {
        // A pull that takes less than the next message gets none, so each takes one of any size.
        let largest = dispatcher.bus.client.max_payload() + MESSAGE_SPARE_BYTES;
        let free = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            free = slots.room(largest) => free,
        };
        let batch = consumer.batch().max_messages(free.count).max_bytes(free.bytes.max(largest)).expires(PULL_EXPIRES);
        let mut batch = batch.messages().await.map_err(|error| error.to_string())?;
        // Every message of a pull is taken, a stop or not: it would wait for the ack wait otherwise.
        let mut taken = 0;
        while let Some(message) = batch.next().await {
            let message = match message.map_err(|error| error.to_string()) {
                Ok(message) => message,
                Err(error) if taken > 0 && error.contains(BYTES_USED_UP) => break,
                Err(error) => return Err(error),
            };
            taken += 1;
            let (place, weight) = slots.wait(message.length).await;
            let work = handle(Arc::clone(dispatcher), message, place);
            tasks.spawn(async move {
                work.await;
                drop(weight);
            });
        }
    }
    Ok(())
}

/// Shows life while the work goes on.
pub(crate) async fn keep_alive<T>(message: &Message, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    loop {
        tokio::select! {
            end = &mut work => return end,
            () = tokio::time::sleep(PROGRESS) => {
                if let Err(error) = message.ack_with(AckKind::Progress).await {
                    tracing::debug!(%error, "a message in hand could not show life");
                }
            }
        }
    }
}

/// When a message that met a refusal comes back; `None` where the refusal is final. A total function of both.
pub(crate) fn again(refusal: &Refusal, delivered: u64) -> Option<Duration> {
    let passing = match refusal.code {
        ErrorCode::Overloaded | ErrorCode::Unavailable | ErrorCode::RateLimited => true,
        ErrorCode::Internal => delivered < u64::from(stream::ATTEMPTS_MAX),
        _ => false,
    };
    let last = delivered + DELIVERIES_LEFT >= u64::try_from(stream::DELIVERIES_MAX).unwrap_or(u64::MAX);
    if !passing || last {
        return None;
    }
    let most = if delivered < DELIVERIES_SOON { AGAIN_SOON } else { AGAIN_SELDOM };
    let doubled = AGAIN_FIRST.saturating_mul(1 << (delivered.clamp(1, 10) - 1));
    let asked = Duration::from_millis(refusal.retry_after_ms.unwrap_or_default());
    Some(doubled.max(asked).min(most))
}
