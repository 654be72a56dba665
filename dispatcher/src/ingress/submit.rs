//! The durable door: pulls INGRESS, walks each message, and settles it. The only place that acks INGRESS.
//!
//! A message is acked when its job's PubAck, its record or its answer is stored, and not before. What fails for a passing
//! reason comes back later, until its deadline.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::{AckKind, Message};
use futures::FutureExt;
use protocol::record::{End, Record};
use protocol::request::DEADLINE_MAX;
use protocol::token::Token;
use protocol::{ErrorCode, Refusal, WIRE_VERSION, stream, subject};
use runtime::bus::headers_in;
use runtime::clock;
use runtime::records::{self, Stored as Kept};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Door, Incoming, Stored, reply_to, trace};
use crate::Error;
use crate::admit::Named;
use crate::answer;
use crate::metrics;
use crate::pull::{self, AGAIN_FIRST, Settled, keep_alive};
use crate::slots::Place;
use crate::state::Dispatcher;
use crate::walk::{self, Verdict, Walked};

/// Pulls until `stop`; what is in hand runs on as tasks of `tasks`.
pub async fn pull(dispatcher: Arc<Dispatcher>, tasks: TaskTracker, stop: CancellationToken) -> Result<(), Error> {
    let source = pull::Source { consumer: stream::ingress_consumer(), name: "the durable door", tasks, stop };
    pull::pull(
        dispatcher,
        source,
        |dispatcher, message, place| async move { handle(&dispatcher, message, place).await },
    )
    .await
}

async fn handle(dispatcher: &Arc<Dispatcher>, message: Message, place: Place) {
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
fn incoming(message: &Message, place: Place) -> Result<Incoming, async_nats::Error> {
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
    let Some(delay) = pull::again(&refusal, delivered) else { return (refusal, None) };
    let too_late = incoming.received_ms + u64::try_from(DEADLINE_MAX.as_millis()).unwrap_or(u64::MAX);
    if clock::now_ms() >= too_late {
        return (crate::admit::late(), None);
    }
    (refusal, Some(delay))
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
    use crate::pull::{AGAIN_SELDOM, AGAIN_SOON};

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
