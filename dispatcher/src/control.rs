//! Questions about jobs and sessions: `infer.result`, `infer.cancel`, `infer.sessions.get`, `infer.sessions.forget`.

use std::time::Duration;

use bytes::Bytes;
use protocol::header::{self, Headers};
use protocol::record::{End, Record, SessionTurn};
use protocol::reply::{self, Frame};
use protocol::request::{Content, Format, Part};
use protocol::token::{SessionId, Token};
use protocol::{ErrorCode, Refusal, WIRE_VERSION, stream, subject};
use runtime::clock;
use runtime::records::{self, Stored};
use serde::Serialize;

use crate::admit;
use crate::answer::Manner;
use crate::state::{Dispatcher, failed};

/// A door's own id is `pending` this long without a record: no deadline is longer.
const DOOR_ID_AGE: Duration = protocol::request::DEADLINE_MAX;
/// When to ask again for a result.
const PENDING_RETRY: Duration = Duration::from_millis(500);
/// Longest body of a question.
const BODY_BYTES_MAX: usize = 1024;

/// Which question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    /// The stored result of a job.
    Result,
    /// The end of a job, now.
    Cancel,
    /// The turns of a session.
    SessionGet,
    /// The end of a session.
    SessionForget,
}

/// Answers one question of the default tenant.
pub async fn answer(
    dispatcher: &Dispatcher,
    control: Control,
    headers: &Headers,
    body: &Bytes,
) -> Result<Frame, Refusal> {
    let tenant = Token::default_tenant();
    let name = name(body)?;
    // Answers about jobs and sessions have no plain form.
    let format = match Manner::guess(headers, &Bytes::new()).format {
        Format::Msgpack => Format::Msgpack,
        Format::Raw | Format::Json => Format::Json,
    };
    match control {
        Control::Result => result(dispatcher, &tenant, &Token::parse("job id", name)?).await,
        Control::Cancel => cancel(dispatcher, &tenant, &Token::parse("job id", name)?, format).await,
        Control::SessionGet => session(dispatcher, &tenant, &SessionId::parse(name)?, format).await,
        Control::SessionForget => forget(dispatcher, &tenant, &SessionId::parse(name)?, format).await,
    }
}

/// The id in a body; the line end that shells add is not part of it.
fn name(body: &Bytes) -> Result<&str, Refusal> {
    if body.len() > BODY_BYTES_MAX {
        return Err(Refusal::invalid(format!("the body is an id of at most {BODY_BYTES_MAX} bytes")));
    }
    std::str::from_utf8(body).map(str::trim).map_err(|_| Refusal::invalid("the body is an id in UTF-8"))
}

async fn result(dispatcher: &Dispatcher, tenant: &Token, job: &Token) -> Result<Frame, Refusal> {
    match known(dispatcher, tenant, job).await? {
        Known::Settled(record) => Ok(match &record.end {
            End::Done(answer) => reply::whole(answer, record.format),
            End::Failed(refusal) => reply::failed(Some(&record.job), refusal, record.format),
        }),
        Known::Pending => {
            Err(Refusal::new(ErrorCode::Pending, format!("job {job} has no result yet")).retry_after(PENDING_RETRY))
        }
    }
}

/// What is known of a job.
enum Known {
    Settled(Box<Record>),
    Pending,
}

async fn known(dispatcher: &Dispatcher, tenant: &Token, job: &Token) -> Result<Known, Refusal> {
    let bus = &dispatcher.bus;
    if let Some(record) = records::result(bus, tenant, job).await.map_err(|error| failed(&error))? {
        return Ok(Known::Settled(Box::new(record)));
    }
    let claimed = admit::is_door_id(job, DOOR_ID_AGE)
        || records::id(bus, tenant, job).await.map_err(|error| failed(&error))?.is_some()
        || waits_at_the_door(dispatcher, tenant, job).await;
    if claimed { Ok(Known::Pending) } else { Err(Refusal::new(ErrorCode::NotFound, format!("no job {job}"))) }
}

/// Whether an id names a message of INGRESS that no dispatcher has taken yet.
async fn waits_at_the_door(dispatcher: &Dispatcher, tenant: &Token, job: &Token) -> bool {
    let Some(sequence) = job.as_str().strip_prefix('i').and_then(|rest| rest.parse().ok()) else {
        return false;
    };
    let Ok(ingress) = dispatcher.bus.js.get_stream_no_info(stream::INGRESS).await else {
        return false;
    };
    let message = ingress.get_raw_message(sequence).await;
    message.is_ok_and(|message| message.subject.as_str() == subject::submit(tenant))
}

async fn cancel(dispatcher: &Dispatcher, tenant: &Token, job: &Token, format: Format) -> Result<Frame, Refusal> {
    let record = match known(dispatcher, tenant, job).await? {
        Known::Settled(record) => *record,
        Known::Pending => {
            let record = cancelled(tenant, job, format);
            match records::store_result(&dispatcher.bus, &record).await.map_err(|error| failed(&error))? {
                Stored::Existed(record) => record,
                Stored::Created => record,
            }
        }
    };
    #[derive(Serialize)]
    struct Cancelled<'a> {
        job: &'a Token,
        status: &'static str,
    }
    let status = match &record.end {
        End::Done(_) => "done",
        End::Failed(refusal) if refusal.code == ErrorCode::Cancelled => {
            // Every time: whoever stored the record may have died before the workers heard of it.
            tell_workers(dispatcher, tenant, job).await;
            "cancelled"
        }
        End::Failed(_) => "failed",
    };
    Ok(frame(&Cancelled { job, status }, Some(job), format))
}

fn cancelled(tenant: &Token, job: &Token, format: Format) -> Record {
    Record {
        version: WIRE_VERSION,
        job: job.clone(),
        tenant: tenant.clone(),
        format,
        settled_ms: clock::now_ms(),
        end: End::Failed(Refusal::new(ErrorCode::Cancelled, "the job was cancelled")),
        session: None,
        cache_key: None,
    }
}

/// Frees the slot at once. A worker that misses it finds the record at the latest when it would store its own.
pub(crate) async fn tell_workers(dispatcher: &Dispatcher, tenant: &Token, job: &Token) {
    if let Err(error) = dispatcher.bus.client.publish(subject::cancel(tenant, job), Bytes::new()).await {
        tracing::warn!(%error, "a cancellation could not be sent to the workers");
    }
}

#[derive(Serialize)]
struct Conversation<'a> {
    session: &'a SessionId,
    turns: Vec<TurnView<'a>>,
}

#[derive(Serialize)]
struct TurnView<'a> {
    number: u64,
    input: Vec<PartView<'a>>,
    answer: Option<&'a str>,
}

/// A part as envelopes have it; media by size only.
#[derive(Serialize)]
struct PartView<'a> {
    role: &'static str,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mime: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<usize>,
}

impl<'a> From<&'a Part> for PartView<'a> {
    fn from(part: &'a Part) -> Self {
        let (role, kind) = (part.role.as_str(), part.modality().as_str());
        match &part.content {
            Content::Text(text) => Self { role, kind, text: Some(text), mime: None, bytes: None },
            Content::Media { mime, data, .. } => {
                Self { role, kind, text: None, mime: Some(mime), bytes: Some(data.0.len()) }
            }
        }
    }
}

impl<'a> From<&'a SessionTurn> for TurnView<'a> {
    fn from(turn: &'a SessionTurn) -> Self {
        let input = turn.input.iter().map(PartView::from).collect();
        Self { number: turn.number, input, answer: turn.answer.as_deref() }
    }
}

async fn session(
    dispatcher: &Dispatcher,
    tenant: &Token,
    session: &SessionId,
    format: Format,
) -> Result<Frame, Refusal> {
    let turns = dispatcher.sessions.get(tenant, session).await.map_err(|error| failed(&error))?;
    let turns = turns.ok_or_else(no_session)?;
    Ok(frame(&Conversation { session, turns: turns.iter().map(TurnView::from).collect() }, None, format))
}

async fn forget(
    dispatcher: &Dispatcher,
    tenant: &Token,
    session: &SessionId,
    format: Format,
) -> Result<Frame, Refusal> {
    #[derive(Serialize)]
    struct Forgotten<'a> {
        session: &'a SessionId,
        status: &'static str,
    }
    let known = dispatcher.sessions.forget(&dispatcher.bus, tenant, session).await.map_err(|error| failed(&error))?;
    if known { Ok(frame(&Forgotten { session, status: "forgotten" }, None, format)) } else { Err(no_session()) }
}

fn no_session() -> Refusal {
    Refusal::new(ErrorCode::NotFound, "no such session")
}

fn frame<T: Serialize>(value: &T, job: Option<&Token>, format: Format) -> Frame {
    let mime = if format == Format::Msgpack { "application/msgpack" } else { "application/json" };
    let mut headers = Headers::new().with(header::CONTENT_TYPE, mime).with(header::STATUS, "done");
    if let Some(job) = job {
        headers.insert(header::JOB, job.as_str());
    }
    Frame { headers, body: reply::encode(value, format) }
}
