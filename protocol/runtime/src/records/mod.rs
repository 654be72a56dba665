//! RESULTS, STEPS, IDS, FORGIVEN and DEADLETTER: what the fleet remembers of a job.

mod done;

use std::time::Duration;

use async_nats::jetstream::context::GetStreamError;
use async_nats::jetstream::stream::{DirectGetErrorKind, LastRawMessageErrorKind};
use bytes::Bytes;
use protocol::header::Headers;
use protocol::record::{IdRecord, Record, StepRecord};
use protocol::token::Token;
use protocol::{stream, subject};

use crate::bus::{Expect, Publish, PublishFault, publish, publish_until};
use crate::{Bus, Error, clock};

pub use done::{Done, Waiter};

/// How long a record is tried to be stored before its caller has to decide.
const STORE_TIMEOUT: Duration = Duration::from_secs(30);
/// Bounds of the delay between two tries.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(1);

/// What became of a record.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "looked at once and gone, never kept in numbers")]
pub enum Stored {
    /// It is the one.
    Created,
    /// There was one; this is it, and it is the truth.
    Existed(Record),
}

/// Stores the one final record of a job, create-once. Unknown outcomes are retried; our own record read back is `Created`.
pub async fn store_result(bus: &Bus, record: &Record) -> Result<Stored, Error> {
    store_encoded(bus, record, record.encode()).await
}

/// The same, where the record's bytes are known.
pub async fn store_encoded(bus: &Bus, record: &Record, body: Bytes) -> Result<Stored, Error> {
    let subject = subject::result(&record.tenant, &record.job);
    match create_once(bus, stream::RESULTS, subject, body).await? {
        Creation::Ours => Ok(Stored::Created),
        Creation::Theirs(bytes) => Ok(Stored::Existed(decode_record(&bytes)?)),
    }
}

/// The final record of a job.
pub async fn result(bus: &Bus, tenant: &Token, job: &Token) -> Result<Option<Record>, Error> {
    let bytes = newest(bus, stream::RESULTS, subject::result(tenant, job)).await?;
    bytes.map(|bytes| decode_record(&bytes)).transpose()
}

/// The same, as the leader has it: that of one whose end was told is there.
async fn result_told(bus: &Bus, tenant: &Token, job: &Token) -> Result<Option<Record>, Error> {
    let bytes = leader_newest(bus, stream::RESULTS, &subject::result(tenant, job)).await?;
    bytes.map(|bytes| decode_record(&bytes)).transpose()
}

/// Stores what a step of a pipeline gave; somebody's record that stands is as good. Returns after the PubAck.
pub async fn store_step(bus: &Bus, record: &StepRecord) -> Result<(), Error> {
    let job = &record.job;
    let number = job.steps.as_ref().map_or(0, |steps| steps.number);
    let subject = subject::step(&job.tenant, &job.id, number);
    create_once(bus, stream::STEPS, subject, record.encode()).await.map(|_| ())
}

/// What a client's id turns out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdClaim {
    /// Never seen.
    New,
    /// Used for the same body.
    Same,
    /// Claimed before by this very message of INGRESS.
    Again,
    /// Used for another body.
    Other,
}

/// Claims a client's id, create-once.
pub async fn claim_id(bus: &Bus, tenant: &Token, job: &Token, id: &IdRecord) -> Result<IdClaim, Error> {
    match create_once(bus, stream::IDS, subject::id(tenant, job), id.encode()).await? {
        Creation::Ours => Ok(IdClaim::New),
        Creation::Theirs(bytes) => {
            let first = decode_id(&bytes)?;
            let again = id.ingress.is_some() && first.ingress == id.ingress;
            Ok(match (first.body == id.body, again) {
                (true, true) => IdClaim::Again,
                (true, false) => IdClaim::Same,
                (false, _) => IdClaim::Other,
            })
        }
    }
}

/// What an id was first used for.
pub async fn id(bus: &Bus, tenant: &Token, job: &Token) -> Result<Option<IdRecord>, Error> {
    let bytes = newest(bus, stream::IDS, subject::id(tenant, job)).await?;
    bytes.map(|bytes| decode_id(&bytes)).transpose()
}

/// Deliveries of a job that do not count as attempts. Who cannot read a step knows its request's id alone, and counts
/// there.
pub async fn forgiven(bus: &Bus, tenant: &Token, job: &Token) -> Result<u32, Error> {
    let own = forgiven_as(bus, tenant, job).await?;
    match job.step_of() {
        Some(request) => Ok(own.max(forgiven_as(bus, tenant, &request).await?)),
        None => Ok(own),
    }
}

async fn forgiven_as(bus: &Bus, tenant: &Token, job: &Token) -> Result<u32, Error> {
    let Some(bytes) = newest(bus, stream::FORGIVEN, subject::forgiven(tenant, job)).await? else {
        return Ok(0);
    };
    let text = std::str::from_utf8(&bytes).ok();
    text.and_then(|text| text.parse().ok()).ok_or_else(|| Error::Corrupt(format!("forgiven deliveries of {job}")))
}

/// Sets how many deliveries of a job do not count.
pub async fn forgive(bus: &Bus, tenant: &Token, job: &Token, count: u32) -> Result<(), Error> {
    let subject = subject::forgiven(tenant, job);
    store(bus, stream::FORGIVEN, subject, count.to_string().into(), Headers::new()).await
}

/// Stores a job that could not be done, with its original bytes; `headers` say why. Returns after the PubAck. A repeat
/// after a crash leaves a second copy, which is better than none.
pub async fn dead_letter(bus: &Bus, tenant: &Token, job: &Token, body: Bytes, headers: Headers) -> Result<(), Error> {
    store(bus, stream::DEADLETTER, subject::dead(tenant, job), body, headers).await
}

/// The same, unless the newest dead letter of the job is this one: for who comes back to a job that he could not end.
pub async fn dead_letter_once(
    bus: &Bus,
    tenant: &Token,
    job: &Token,
    body: Bytes,
    headers: Headers,
) -> Result<(), Error> {
    match newest(bus, stream::DEADLETTER, subject::dead(tenant, job)).await? {
        Some(kept) if kept == body => Ok(()),
        _ => dead_letter(bus, tenant, job, body, headers).await,
    }
}

/// Stores a message whose repeat does no harm.
pub(crate) async fn store(
    bus: &Bus,
    stream: &'static str,
    subject: String,
    body: Bytes,
    headers: Headers,
) -> Result<(), Error> {
    let message = Publish { stream, subject, body, headers, id: None, expect: Expect::Any };
    let deadline = clock::now_ms() + clock::millis(STORE_TIMEOUT);
    publish_until(bus, &message, deadline).await.map(|_| ()).map_err(|fault| fault.on(stream))
}

enum Creation {
    Ours,
    Theirs(Bytes),
}

/// Creates a message on an empty subject. Both refusals - the expected sequence and the limit a subject - mean that there
/// is one, and the stored one is read. Where an earlier try had no answer, the same bytes read back are our own.
async fn create_once(bus: &Bus, stream: &'static str, subject: String, body: Bytes) -> Result<Creation, Error> {
    let message = Publish { stream, subject, body, headers: Headers::new(), id: None, expect: Expect::Absent };
    let deadline = clock::now_ms() + clock::millis(STORE_TIMEOUT);
    let mut answered = Answered::Always;
    let mut attempt = 0;
    loop {
        let fault = match publish(bus, &message).await {
            Ok(_) => return Ok(Creation::Ours),
            Err(fault) => fault,
        };
        match &fault {
            PublishFault::Taken | PublishFault::Full(_) => {
                if let Some(found) = Box::pin(leader_newest(bus, stream, &message.subject)).await? {
                    let ours = answered == Answered::NotAlways && found == message.body;
                    return Ok(if ours { Creation::Ours } else { Creation::Theirs(found) });
                }
                // Full for another reason, or the message went by age between the two.
                if fault != PublishFault::Taken {
                    return Err(fault.on(stream));
                }
            }
            PublishFault::Unknown => answered = Answered::NotAlways,
            PublishFault::NoStream => {}
            PublishFault::TooLarge | PublishFault::Refused(_) => return Err(fault.on(stream)),
        }
        if clock::now_ms() >= deadline {
            return Err(fault.on(stream));
        }
        tokio::time::sleep(clock::backoff(attempt, RETRY_FIRST, RETRY_MOST)).await;
        attempt += 1;
    }
}

#[derive(PartialEq, Eq)]
enum Answered {
    Always,
    NotAlways,
}

/// The newest message of a subject, from any replica.
pub(crate) async fn newest(bus: &Bus, stream: &'static str, subject: String) -> Result<Option<Bytes>, Error> {
    let handle = bus.js.get_stream_no_info(stream).await.map_err(|error| unread(stream, error))?;
    match handle.direct_get_last_for_subject(subject).await {
        Ok(message) => Ok(Some(message.payload)),
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
        Err(error) => Err(unread(stream, error)),
    }
}

/// The newest message of a subject, from the leader: what a refused publish saw must be seen.
async fn leader_newest(bus: &Bus, stream: &'static str, subject: &str) -> Result<Option<Bytes>, Error> {
    let handle = bus.js.get_stream_no_info(stream).await.map_err(|error: GetStreamError| unread(stream, error))?;
    match handle.get_last_raw_message_by_subject(subject).await {
        Ok(message) => Ok(Some(message.payload)),
        Err(error) if matches!(error.kind(), LastRawMessageErrorKind::NoMessageFound) => Ok(None),
        Err(error) => Err(unread(stream, error)),
    }
}

fn unread(stream: &str, error: impl std::fmt::Display) -> Error {
    Error::Nats(format!("reading {stream}: {error}"))
}

fn decode_record(bytes: &[u8]) -> Result<Record, Error> {
    Record::decode(bytes).map_err(|refusal| Error::Corrupt(refusal.message))
}

fn decode_id(bytes: &[u8]) -> Result<IdRecord, Error> {
    IdRecord::decode(bytes).map_err(|refusal| Error::Corrupt(refusal.message))
}
