//! Publishing to a stream: the PubAck is awaited, and every way of failing has a name.

use std::error::Error as _;
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use protocol::header::Headers;

use super::{Bus, headers_out};
use crate::{Error, clock};

/// Bounds of the delay between two tries.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(1);

/// A message for a stream.
#[derive(Clone, Debug)]
pub struct Publish {
    /// Which stream must take it.
    pub stream: &'static str,
    /// Its subject.
    pub subject: String,
    /// Its body.
    pub body: Bytes,
    /// Its headers.
    pub headers: Headers,
    /// `Nats-Msg-Id`: the same on every retry.
    pub id: Option<String>,
    /// What its subject must look like.
    pub expect: Expect,
}

/// What a publish expects of its subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Any,
    /// No message yet: create-once.
    Absent,
}

/// What a stream answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acked {
    /// Sequence in the stream.
    pub sequence: u64,
    /// New, or dropped as a repeat of an id.
    pub arrival: Arrival,
}

/// Whether the stream had it already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Stored now.
    New,
    /// The same id was stored within the stream's window.
    Repeat,
}

/// Why a publish has no PubAck.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishFault {
    /// The subject is not empty (10071).
    #[error("the subject is taken")]
    Taken,
    /// A limit of the stream or the server: a lane is full, bytes are used up (10077, 10047, 10023, 10028).
    #[error("full: {0}")]
    Full(String),
    /// Larger than the server takes; never worth a retry.
    #[error("larger than the server takes")]
    TooLarge,
    /// No answer: stored or not. Retry with the same id.
    #[error("no answer")]
    Unknown,
    /// No stream takes the subject, or not now: a server that restarts says so too.
    #[error("no stream takes it")]
    NoStream,
    /// Anything else.
    #[error("{0}")]
    Refused(String),
}

impl PublishFault {
    /// As a failure of an operation on `what`.
    pub(crate) fn on(self, what: &str) -> Error {
        match self {
            PublishFault::Full(limit) => Error::Full(format!("{what}: {limit}")),
            PublishFault::Unknown => Error::Unknown(what.to_owned()),
            PublishFault::TooLarge => Error::TooLarge(what.to_owned()),
            other => Error::Nats(format!("{what}: {other}")),
        }
    }
}

/// One try, 5 s at most; the PubAck is awaited. See [`publish_until`].
pub async fn publish(bus: &Bus, message: &Publish) -> Result<Acked, PublishFault> {
    let mut publish = PublishMessage::build()
        .headers(headers_out(&message.headers))
        .payload(message.body.clone())
        .expected_stream(message.stream);
    if let Some(id) = &message.id {
        publish = publish.message_id(id);
    }
    if message.expect == Expect::Absent {
        publish = publish.expected_last_subject_sequence(0);
    }
    let acked = match bus.js.send_publish(message.subject.clone(), publish).await {
        Ok(ack) => ack.await,
        Err(error) => Err(error),
    };
    match acked {
        Ok(ack) => {
            let arrival = if ack.duplicate { Arrival::Repeat } else { Arrival::New };
            Ok(Acked { sequence: ack.sequence, arrival })
        }
        Err(error) => Err(fault(&error)),
    }
}

fn fault(error: &PublishError) -> PublishFault {
    match error.kind() {
        PublishErrorKind::WrongLastSequence => PublishFault::Taken,
        PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe => PublishFault::Unknown,
        PublishErrorKind::StreamNotFound => PublishFault::NoStream,
        PublishErrorKind::MaxPayloadExceeded => PublishFault::TooLarge,
        PublishErrorKind::MaxAckPending => PublishFault::Full("publishes without an answer yet".to_owned()),
        PublishErrorKind::WrongLastMessageId | PublishErrorKind::Other => refused(error),
    }
}

fn refused(error: &PublishError) -> PublishFault {
    let Some(server) = error.source().and_then(|source| source.downcast_ref::<async_nats::jetstream::Error>()) else {
        return PublishFault::Refused(error.to_string());
    };
    match server.error_code() {
        ErrorCode::STREAM_STORE_FAILED
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::MEMORY_RESOURCES_EXCEEDED
        | ErrorCode::INSUFFICIENT_RESOURCES => PublishFault::Full(server.to_string()),
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM => PublishFault::TooLarge,
        _ => PublishFault::Refused(server.to_string()),
    }
}

/// Retries unknown outcomes and absent streams with jitter until the deadline (milliseconds since 1970). Only for
/// messages whose repeat does no harm: with an id, or create-once.
pub async fn publish_until(bus: &Bus, message: &Publish, deadline_ms: u64) -> Result<Acked, PublishFault> {
    let mut attempt = 0;
    loop {
        let fault = match publish(bus, message).await {
            Ok(acked) => return Ok(acked),
            Err(fault) => fault,
        };
        let delay = clock::backoff(attempt, RETRY_FIRST, RETRY_MOST);
        let passes = matches!(fault, PublishFault::Unknown | PublishFault::NoStream);
        let over = clock::now_ms().saturating_add(clock::millis(delay)) >= deadline_ms;
        if !passes || over {
            return Err(fault);
        }
        tracing::debug!(subject = %message.subject, %fault, attempt, "publishing again");
        tokio::time::sleep(delay).await;
        attempt += 1;
    }
}
