//! Step 4 of the walk: identity, deadline, session. The cache is [`crate::flight`]'s.

use std::time::Duration;

use protocol::job::{Job, Origin, PLAIN_VERSION, Turn};
use protocol::record::{IdRecord, Record};
use protocol::request::{Params, Part, Request, Task, TranscriptFormat};
use protocol::token::{ModelRef, SessionId, Token};
use protocol::{ErrorCode, Refusal};
use rand::Rng;
use runtime::bus::Arrival;
use runtime::records::{self, IdClaim};
use runtime::{Error, clock};
use serde::Serialize;
use uuid::Uuid;

use crate::ingress::{Door, Incoming, Stored};
use crate::metrics::{During, Outcome};
use crate::route::Lane;
use crate::state::{Dispatcher, Stop, failed};
use crate::terms::Terms;

/// Seeds are kept where every language's numbers are exact.
const SEED_END: u64 = 1 << 53;
/// Pause between two tries at Redis.
const REDIS_PAUSE: Duration = Duration::from_millis(100);

/// Whether an id has to be claimed, and for what.
#[derive(Debug, PartialEq, Eq)]
pub enum Identity {
    /// The door made it now: nobody else has it.
    Fresh,
    /// A client's, or a place in INGRESS that is delivered more than once; claimed for this meaning.
    Claimed(String),
}

/// Says whether the id has to be claimed. Pure.
#[must_use]
pub fn identify(incoming: &Incoming, request: &Request) -> Identity {
    match (&request.id, &incoming.door) {
        (None, Door::Infer) => Identity::Fresh,
        _ => Identity::Claimed(meaning(request)),
    }
}

/// BLAKE3 of what a request asks for. How it is written, when it is wanted and how it is answered is not part of it, so
/// that a repeat may come in another format and through another door.
fn meaning(request: &Request) -> String {
    #[derive(Serialize)]
    struct Meaning<'a>(&'a [Part], &'a Option<Task>, &'a Option<ModelRef>, &'a Option<SessionId>, &'a Params);
    let meaning = Meaning(&request.input, &request.task, &request.model, &request.session, &request.params);
    let mut hasher = blake3::Hasher::new();
    // Fields that are open are left out, so the others need their names.
    rmp_serde::encode::write_named(&mut hasher, &meaning).expect("a request always encodes");
    hasher.finalize().to_hex().to_string()
}

impl Identity {
    const fn origin(&self) -> Origin {
        match self {
            Identity::Fresh => Origin::Door,
            Identity::Claimed(_) => Origin::Claimed,
        }
    }
}

/// The job that a request becomes.
#[must_use]
pub fn job(incoming: &Incoming, request: Request, identity: &Identity, terms: &Terms, lane: &Lane) -> Job {
    let id = request.id.unwrap_or_else(|| match &incoming.door {
        Door::Infer => door_id(),
        Door::Submit(Stored { sequence, .. }) => Token::ingress(*sequence),
    });
    let deadline_ms = u64::try_from(terms.deadline.as_millis()).unwrap_or(u64::MAX);
    Job {
        version: PLAIN_VERSION,
        id,
        tenant: incoming.tenant.clone(),
        task: terms.task.clone(),
        modality: lane.modality,
        model: lane.model.name.clone(),
        priority: lane.priority,
        input: request.input,
        params: seeded(written(request.params, &terms.task, request.subtitles)),
        mode: request.mode,
        format: request.format,
        reply_to: incoming.reply_to.clone(),
        accepted_ms: incoming.received_ms,
        deadline_ms: incoming.received_ms.saturating_add(deadline_ms),
        session: None,
        cache_key: None,
        traceparent: Some(incoming.trace.to_string()),
        steps: None,
        origin: identity.origin(),
    }
}

/// An id that sorts by time and that nobody else makes.
fn door_id() -> Token {
    Token::parse("id", &format!("d{}", Uuid::now_v7().simple())).expect("a letter and 32 digits are a token")
}

/// Whether an id is one that a door made less than `age` ago.
#[must_use]
pub fn is_door_id(id: &Token, age: Duration) -> bool {
    let uuid =
        id.as_str().strip_prefix('d').filter(|rest| rest.len() == 32).and_then(|rest| Uuid::try_parse(rest).ok());
    let Some((seconds, _)) = uuid.and_then(|uuid| uuid.get_timestamp()).map(|made| made.to_unix()) else {
        return false;
    };
    let now = clock::now_ms() / 1000;
    // Another dispatcher's clock may run ahead a little.
    (now.saturating_sub(age.as_secs())..=now + 60).contains(&seconds)
}

/// What `Accept` says of a transcript is a parameter of a transcription, and of nothing else.
fn written(params: Params, task: &Task, subtitles: Option<TranscriptFormat>) -> Params {
    let subtitles = subtitles.filter(|_| *task == Task::Transcribe);
    Params { format: params.format.or(subtitles), ..params }
}

/// Every attempt at a job draws the same numbers.
fn seeded(mut params: Params) -> Params {
    if params.seed.is_none() {
        let greedy = params.temperature.unwrap_or(0.0) == 0.0;
        params.seed = Some(if greedy { 0 } else { rand::rng().random_range(0..SEED_END) });
    }
    params
}

/// A deadline that has passed reaches no queue.
pub fn check_deadline(job: &Job) -> Result<(), Refusal> {
    if job.deadline_ms <= clock::now_ms() { Err(late()) } else { Ok(()) }
}

/// The refusal of what is too late.
#[must_use]
pub fn late() -> Refusal {
    Refusal::new(ErrorCode::DeadlineExceeded, "the deadline passed before an answer")
}

/// Who asks for a job, in regard of its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// The message that gave the job its id.
    First,
    /// The same message, delivered again.
    FirstAgain,
    /// Another message with the same id: the job is not its own, so it may not end it.
    Repeat,
}

/// An id that a message may speak of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The id.
    pub job: Token,
    /// Who speaks.
    pub asker: Asker,
}

impl Named {
    /// The id, where this message may end its job.
    #[must_use]
    pub fn own(self) -> Option<Token> {
        (self.asker != Asker::Repeat).then_some(self.job)
    }
}

/// Claims the id for what the request means. Ends here where the job has ended.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn claim(dispatcher: &Dispatcher, door: Door, job: &Job, meaning: &str) -> Result<Asker, Stop> {
    let (bus, tenant) = (&dispatcher.bus, &job.tenant);
    let ingress = match door {
        Door::Infer => None,
        Door::Submit(stored) => Some(stored.sequence),
    };
    let id = IdRecord { body: meaning.to_owned(), deadline_ms: job.deadline_ms, ingress };
    let asker = match records::claim_id(bus, tenant, &job.id, &id).await.map_err(|error| failed(&error))? {
        IdClaim::New => return Ok(Asker::First),
        IdClaim::Other => return Err(Refusal::invalid("this id was used before, for another request").into()),
        IdClaim::Again => Asker::FirstAgain,
        IdClaim::Same => Asker::Repeat,
    };
    match records::result(bus, tenant, &job.id).await.map_err(|error| failed(&error))? {
        Some(record) => Err(Stop::Settled(Box::new(record), Outcome::Repeated)),
        None => Ok(asker),
    }
}

/// Whether this message is answered here. A job that was stored now answers by itself; one that was there answers the first
/// who asked, also where its message comes again.
#[must_use]
pub fn must_answer(incoming: &Incoming, arrival: Arrival, asker: Asker) -> bool {
    arrival == Arrival::Repeat && incoming.reply_to.is_some() && asker != Asker::FirstAgain
}

/// Waits for a job's record until the request's deadline, without a slot of the door.
pub async fn wait(dispatcher: &Dispatcher, incoming: &mut Incoming, job: &Job) -> Result<Record, Refusal> {
    let _place = dispatcher.waiting.try_acquire().map_err(|_| full_of_waiting())?;
    let _during = During::waiting();
    drop(incoming.slot.take());
    tokio::select! {
        record = dispatcher.done.record(&job.tenant, &job.id) => record.map_err(|error| failed(&error)),
        () = tokio::time::sleep(left(job)) => Err(late()),
        () = dispatcher.stopping.cancelled() => Err(stopping()),
    }
}

/// Too many wait for answers of others.
#[must_use]
pub fn full_of_waiting() -> Refusal {
    Refusal::new(ErrorCode::Overloaded, "too many requests wait for the same answers")
        .retry_after(Duration::from_secs(1))
}

/// This dispatcher goes; another one, or the next try, has the answer.
#[must_use]
pub fn stopping() -> Refusal {
    Refusal::new(ErrorCode::Unavailable, "this dispatcher stops").retry_after(REDIS_PAUSE)
}

/// Time until a job's deadline.
#[must_use]
pub fn left(job: &Job) -> Duration {
    Duration::from_millis(job.deadline_ms.saturating_sub(clock::now_ms()))
}

/// The job's turn in its session. Redis may be away for a moment: that is waited for.
#[tracing::instrument(level = "debug", skip_all)]
pub async fn reserve(dispatcher: &Dispatcher, job: &Job, session: SessionId) -> Result<Turn, Refusal> {
    let patience = Duration::from_millis(dispatcher.options.redis_wait_ms).min(left(job));
    let give_up = tokio::time::Instant::now() + patience;
    loop {
        match dispatcher.sessions.reserve(&job.tenant, &session, &job.id).await {
            Ok(number) => return Ok(Turn { session, number }),
            Err(error @ (Error::RedisDown(_) | Error::Rebuilding)) => {
                if tokio::time::Instant::now() + REDIS_PAUSE >= give_up {
                    return Err(failed(&error));
                }
                tokio::time::sleep(clock::jitter(REDIS_PAUSE)).await;
            }
            Err(error) => return Err(failed(&error)),
        }
    }
}

/// The job stands in the queue, so its turn stands too. Where this fails, the worker's `begin` makes up for it.
pub async fn confirm(dispatcher: &Dispatcher, job: &Job, turn: &Turn) {
    if let Err(error) = dispatcher.sessions.confirm(&job.tenant, &turn.session, &job.id).await {
        tracing::warn!(%error, "a turn could not be confirmed");
    }
}

#[cfg(test)]
mod tests;
