//! The durable door: pulls INGRESS, walks each message, and settles it. The only place that acks INGRESS.
//!
//! A message is acked when its job's PubAck, its record or its answer is stored, and not before. What fails for a passing
//! reason comes back later, until its deadline.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::{AckKind, Message};
use futures::{FutureExt, StreamExt};
use protocol::record::{End, Record};
use protocol::request::DEADLINE_MAX;
use protocol::token::Token;
use protocol::{ErrorCode, Refusal, WIRE_VERSION, stream, subject};
use runtime::bus::headers_in;
use runtime::clock::Seldom;
use runtime::records::{self, Stored as Kept};
use runtime::{Bus, bus, clock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Door, Incoming, Stored, reply_to, trace};
use crate::Error;
use crate::admit::Named;
use crate::answer;
use crate::metrics;
use crate::state::Dispatcher;
use crate::walk::{self, Verdict, Walked};

/// A pull ends after this, which is how long a stop waits for the last one.
const PULL_EXPIRES: Duration = Duration::from_secs(1);
/// A message in hand shows life this often; the consumer's ack wait is three times as long.
const PROGRESS: Duration = Duration::from_secs(10);
/// Bounds of the delay before a message that failed for a passing reason comes back: first soon, since a lane has room
/// again soon; then seldom enough that the server's deliveries last for the longest deadline.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
/// See [`AGAIN_FIRST`].
const AGAIN_SOON: Duration = Duration::from_secs(5);
/// See [`AGAIN_FIRST`].
const AGAIN_SELDOM: Duration = Duration::from_secs(120);
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

/// Pulls until `stop`; what is in hand runs on as tasks of `tasks`.
pub async fn pull(dispatcher: Arc<Dispatcher>, tasks: TaskTracker, stop: CancellationToken) -> Result<(), Error> {
    let places = Arc::new(Semaphore::new(dispatcher.options.submit_in_flight_max));
    let mut failures = 0;
    let mut seldom = Seldom::default();
    while !stop.is_cancelled() {
        let pulled = tokio::select! {
            pulled = pull_some(&dispatcher, &places, &tasks, &stop) => pulled,
            () = adrift(&dispatcher.bus, &stop) => return Ok(()),
        };
        match pulled {
            Ok(()) => failures = 0,
            Err(error) => {
                let delay = clock::backoff(failures, RETRY_FIRST, RETRY_MOST);
                if seldom.due(Instant::now()) {
                    tracing::warn!(error, "the durable door cannot be read; trying on");
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
async fn pull_some(
    dispatcher: &Arc<Dispatcher>,
    places: &Arc<Semaphore>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<(), String> {
    let consumer: PullConsumer =
        match dispatcher.bus.js.get_consumer_from_stream(stream::INGRESS_CONSUMER, stream::INGRESS).await {
            Ok(consumer) => consumer,
            Err(error) => {
                // Somebody may have deleted it.
                bus::apply_consumer(&dispatcher.bus, &stream::ingress_consumer())
                    .await
                    .map_err(|error| error.to_string())?;
                return Err(error.to_string());
            }
        };
    while !stop.is_cancelled() {
        let place = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            place = Arc::clone(places).acquire_owned() => place.expect("never closed"),
        };
        let wanted = places.available_permits() + 1;
        let batch = consumer.batch().max_messages(wanted).expires(PULL_EXPIRES).messages().await;
        let mut batch = batch.map_err(|error| error.to_string())?;
        // Every message of a pull is taken, a stop or not: it would wait for the ack wait otherwise.
        let mut place = Some(place);
        while let Some(message) = batch.next().await {
            let message = message.map_err(|error| error.to_string())?;
            let place = match place.take() {
                Some(place) => place,
                None => Arc::clone(places).acquire_owned().await.expect("never closed"),
            };
            let dispatcher = Arc::clone(dispatcher);
            tasks.spawn(async move { handle(&dispatcher, message, place).await });
        }
    }
    Ok(())
}

async fn handle(dispatcher: &Arc<Dispatcher>, message: Message, place: OwnedSemaphorePermit) {
    let Ok(mut incoming) = incoming(&message, place) else {
        return;
    };
    let settling = async {
        let walked = match refused_at_the_door(&message, &mut incoming) {
            Some(walked) => walked,
            None => walk(dispatcher, &mut incoming).await,
        };
        settle(dispatcher, &incoming, walked).await
    };
    let end = keep_alive(&message, settling).await;
    let acked = match end {
        Settled::Done => message.ack().await,
        Settled::Again(delay) => message.ack_with(AckKind::Nak(Some(delay))).await,
    };
    if let Err(error) = acked {
        tracing::warn!(%error, "a message of the durable door could not be settled; it comes again");
    }
}

/// A defect of ours is a refusal like any other: it comes again, and not for ever.
async fn walk(dispatcher: &Arc<Dispatcher>, incoming: &mut Incoming) -> Walked {
    match AssertUnwindSafe(walk::message(dispatcher, incoming)).catch_unwind().await {
        Ok(walked) => walked,
        Err(_) => refused(incoming, Refusal::new(ErrorCode::Internal, "a fault of the fleet")),
    }
}

/// A refusal of what was not decoded.
fn refused(incoming: &Incoming, refusal: Refusal) -> Walked {
    metrics::error(refusal.code);
    let manner = answer::Manner::guess(&incoming.headers, &incoming.body);
    Walked { verdict: Verdict::Refused(refusal), manner, job: None }
}

/// A message of INGRESS as the walk takes it; `Err` where it is none.
fn incoming(message: &Message, place: OwnedSemaphorePermit) -> Result<Incoming, async_nats::Error> {
    let info = message.info()?;
    let headers = message.headers.as_ref().map(headers_in).unwrap_or_default();
    let published = info.published.unix_timestamp_nanos() / 1_000_000;
    Ok(Incoming {
        door: Door::Submit(Stored {
            sequence: info.stream_sequence,
            delivered: u64::try_from(info.delivered).unwrap_or(1),
        }),
        tenant: subject::submit_tenant(&message.subject).unwrap_or_else(|_| Token::default_tenant()),
        body: message.payload.clone(),
        trace: trace(&headers),
        headers,
        modality: None,
        reply_to: None,
        received_ms: u64::try_from(published).unwrap_or_default(),
        slot: Some(place),
    })
}

/// What cannot even be answered as asked. Sets the reply-to of all others; a message of a stream has no inbox.
fn refused_at_the_door(message: &Message, incoming: &mut Incoming) -> Option<Walked> {
    let checked = subject::submit_tenant(&message.subject).and_then(|_| reply_to(&incoming.headers, None));
    match checked {
        Ok(reply_to) => {
            incoming.reply_to = reply_to;
            None
        }
        Err(refusal) => Some(refused(incoming, refusal)),
    }
}

/// Shows life while the work goes on: followers of the cache may wait for long.
async fn keep_alive<T>(message: &Message, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    loop {
        tokio::select! {
            end = &mut work => return end,
            () = tokio::time::sleep(PROGRESS) => {
                if let Err(error) = message.ack_with(AckKind::Progress).await {
                    tracing::debug!(%error, "a message of the durable door could not show life");
                }
            }
        }
    }
}

/// How a message of INGRESS ends.
#[derive(Debug, PartialEq, Eq)]
enum Settled {
    /// It is settled.
    Done,
    /// It comes back after this.
    Again(Duration),
}

async fn settle(dispatcher: &Dispatcher, incoming: &Incoming, walked: Walked) -> Settled {
    let manner = walked.manner;
    let record = match walked.verdict {
        Verdict::Forwarded => return Settled::Done,
        Verdict::Answered(record) => *record,
        Verdict::Refused(refusal) => {
            let (refusal, delay) = judge(incoming, refusal);
            if let Some(delay) = delay {
                let stopping = dispatcher.stopping.is_cancelled();
                return Settled::Again(if stopping { Duration::ZERO } else { clock::jitter(delay / 2) + delay / 2 });
            }
            match store(dispatcher, incoming, walked.job.and_then(Named::own), refusal, manner).await {
                Ok(record) => record,
                Err(delay) => return Settled::Again(delay),
            }
        }
    };
    if let Some(reply_to) = &incoming.reply_to {
        answer::send(&dispatcher.bus, reply_to, answer::record_frames(&record, manner)).await;
    }
    Settled::Done
}

/// Whether a refusal is final, or the message comes back after a while. A total function of code, deliveries and time.
fn judge(incoming: &Incoming, refusal: Refusal) -> (Refusal, Option<Duration>) {
    let Door::Submit(Stored { delivered, .. }) = incoming.door else {
        return (refusal, None);
    };
    let passing = match refusal.code {
        ErrorCode::Overloaded | ErrorCode::Unavailable | ErrorCode::RateLimited => true,
        ErrorCode::Internal => delivered < u64::from(stream::ATTEMPTS_MAX),
        _ => false,
    };
    let last = delivered + DELIVERIES_LEFT >= u64::try_from(stream::DELIVERIES_MAX).unwrap_or(u64::MAX);
    if !passing || last {
        return (refusal, None);
    }
    let too_late = incoming.received_ms + u64::try_from(DEADLINE_MAX.as_millis()).unwrap_or(u64::MAX);
    if clock::now_ms() >= too_late {
        return (crate::admit::late(), None);
    }
    let most = if delivered < DELIVERIES_SOON { AGAIN_SOON } else { AGAIN_SELDOM };
    let doubled = AGAIN_FIRST.saturating_mul(1 << (delivered.clamp(1, 10) - 1));
    let asked = Duration::from_millis(refusal.retry_after_ms.unwrap_or_default());
    (refusal, Some(doubled.max(asked).min(most)))
}

/// The record of a message that is refused: whoever published it can read why. Without a right to end the job of its id it
/// stands under its place in INGRESS, which the publisher knows from the PubAck.
async fn store(
    dispatcher: &Dispatcher,
    incoming: &Incoming,
    job: Option<Token>,
    refusal: Refusal,
    manner: answer::Manner,
) -> Result<Record, Duration> {
    let Door::Submit(Stored { sequence, .. }) = incoming.door else {
        unreachable!("only messages of INGRESS are settled here");
    };
    let record = Record {
        version: WIRE_VERSION,
        job: job.unwrap_or_else(|| Token::ingress(sequence)),
        tenant: incoming.tenant.clone(),
        format: manner.format,
        settled_ms: clock::now_ms(),
        end: End::Failed(refusal),
        session: None,
        cache_key: None,
    };
    match records::store_result(&dispatcher.bus, &record).await {
        Ok(Kept::Created) => Ok(record),
        Ok(Kept::Existed(record)) => Ok(record),
        Err(error) => {
            tracing::warn!(%error, "a refusal could not be stored; the message comes again");
            Err(AGAIN_FIRST)
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use protocol::header::Headers;
    use runtime::telemetry::Trace;

    use super::*;

    fn delivered(delivered: u64, received_ms: u64) -> Incoming {
        Incoming {
            door: Door::Submit(Stored { sequence: 1, delivered }),
            tenant: Token::default_tenant(),
            body: Bytes::new(),
            headers: Headers::new(),
            modality: None,
            reply_to: None,
            received_ms,
            trace: Trace::start(),
            slot: None,
        }
    }

    #[test]
    fn passing_refusals_come_back_until_the_deadline() {
        let code = |code| Refusal::new(code, "");
        let now = clock::now_ms();
        assert_eq!(judge(&delivered(1, now), code(ErrorCode::InvalidRequest)).1, None);
        assert_eq!(judge(&delivered(1, now), code(ErrorCode::DeadlineExceeded)).1, None);
        assert_eq!(judge(&delivered(1, now), code(ErrorCode::Overloaded)).1, Some(AGAIN_FIRST));
        assert_eq!(judge(&delivered(3, now), code(ErrorCode::Unavailable)).1, Some(AGAIN_FIRST * 4));
        assert_eq!(judge(&delivered(500, now), code(ErrorCode::Overloaded)).1, Some(AGAIN_SELDOM));
        assert_eq!(judge(&delivered(980, now), code(ErrorCode::Overloaded)).1, None);
        assert_eq!(judge(&delivered(1, now), code(ErrorCode::Internal)).1, Some(AGAIN_FIRST));
        assert_eq!(judge(&delivered(4, now), code(ErrorCode::Internal)).1, None);
        let asked = code(ErrorCode::Overloaded).retry_after(Duration::from_secs(9));
        assert_eq!(judge(&delivered(1, now), asked).1, Some(AGAIN_SOON));
        let (refusal, delay) = judge(&delivered(2, 0), code(ErrorCode::Unavailable));
        assert_eq!((refusal.code, delay), (ErrorCode::DeadlineExceeded, None));
    }
}
