//! The end of a delivery: what was decided is written down, then said, then acked. Only here is JOBS acked.
//!
//! The order is the promise: result record (create-once, PubAck), session turn, cache, final frames, double ack. A
//! process may die between any two steps; what it leaves, the next delivery completes:
//!
//! | dies after          | what stands                         | the next delivery                                         |
//! |---------------------|-------------------------------------|-----------------------------------------------------------|
//! | pull                | the job                             | computes; one more attempt                                |
//! | some chunks         | the job; a client with half a text  | computes; its `attempt` tells the client to start afresh  |
//! | the engine's end    | the job                             | computes again: not yet reported, so not reported twice   |
//! | record, PubAck lost | job and record                      | finds the record: settles the turn, cache, frames, ack    |
//! | record              | job and record                      | the same                                                  |
//! | session turn        | job, record, turn                   | the same; the turn is settled once, by job id             |
//! | cache               | job, record, turn, answer in cache  | the same; the same answer under the same key              |
//! | final frames        | all but the ack                     | says the stored end again, word for word; acks            |
//! | ack, answer lost    | nothing                             | there is none: the ack may only be repeated               |
//! | a failed job's ack  | its lease                           | there is none: its dispatcher gives it up                 |
//! | dead letter         | the job and a dead letter           | another dead letter of the same job, then its record      |
//! | forgiving           | the job, one delivery forgiven      | that delivery was no attempt, as decided                  |
//! | giving back         | the job                             | when the delay is over                                    |
//!
//! Where a stream is full, nothing is waited for in a slot: the delivery comes again later. A dead letter for which there
//! is no place by the job's deadline is not kept; its sender is told all the same.
//!
//! Two that compute the same job meet at the record: who comes second takes the stored end for his own. A process that
//! was stopped for longer than the queue waits gives nothing back: the job may be in other hands.
//!
//! Of a pipeline this is the end of the last job, and of a step that failed; what a step gave goes to [`step`].

mod acks;
mod step;

use std::time::{Duration, Instant};

use async_nats::jetstream::AckKind;
use bytes::Bytes;
use protocol::answer::{Answer, Usage};
use protocol::header::{self, Headers};
use protocol::job::{Job, Turn};
use protocol::record::{End, Record, SessionTurn};
use protocol::request::Format;
use protocol::token::Token;
use protocol::{ErrorCode, Refusal, WIRE_VERSION, reply};
use runtime::records::Stored;
use runtime::{clock, records};

pub use acks::Acks;
use acks::Heard;

use crate::delivery::{Delivery, Phase};
use crate::metrics;
use crate::outcome::{self, Attempt, Case, Outcome};
use crate::reply::Reply;
use crate::worker::Worker;

/// First and greatest delay between two tries to write something down.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// A delivery whose session could not be written comes again after this, or later.
const SESSION_DELAY: Duration = Duration::from_secs(1);
/// How often a full stream is tried, and when a delivery that found it full comes again at the earliest.
const FULL_TRIES: u32 = 5;
const FULL_DELAY: Duration = Duration::from_secs(10);
/// How often an ack is told.
const ACK_TRIES: u32 = 3;
/// How long final frames may take to leave.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// Header of a dead letter: who gave up.
const WORKER: &str = "Flotilla-Worker";
/// What headers and subject of a record need, of what the server takes.
const RECORD_SPARE_BYTES: usize = 16 * 1024;
/// An answer is at most this many times as long in another format than in its record: a control character has six letters
/// in JSON, a number at most three times its bytes.
const FORMAT_GROWTH_MAX: usize = 8;

/// Acts on a verdict.
pub async fn settle(worker: &Worker, delivery: &Delivery, outcome: Outcome, case: &Case, reply: Option<Reply<'_>>) {
    delivery.enter(Phase::Settling);
    match outcome {
        Outcome::Settled(end) => over(worker, delivery, end, case, reply).await,
        // What is seldom is boxed: every walk would have its size.
        Outcome::GiveBack { delay, attempt } => {
            Box::pin(give_back(worker, delivery, spread(delay, attempt, case), attempt, case)).await
        }
        Outcome::DeadLetter { reason } => Box::pin(dead(worker, delivery, &reason, case, reply)).await,
    }
}

/// Stores the end; whichever end stands then is the one that is said.
async fn over(worker: &Worker, delivery: &Delivery, end: End, case: &Case, reply: Option<Reply<'_>>) {
    let end = match (&delivery.job, end) {
        (Ok(job), End::Done(answer)) if job.is_step() => {
            match Box::pin(step::give(worker, delivery, job, answer, case)).await {
                Some(end) => end,
                None => return,
            }
        }
        (Ok(job), End::Done(answer)) => End::Done(whole(job, answer)),
        (_, end) => end,
    };
    let Some(record) = record(worker, delivery, end) else { return ack(worker, delivery).await };
    match store(worker, delivery, record).await {
        Ok(record) => finish(worker, delivery, &record, reply).await,
        Err(InVain::Full) => Box::pin(later(worker, delivery, Attempt::Forgiven, case)).await,
        Err(InVain::Quitting | InVain::Unwritable) => {}
    }
}

/// The answer to the whole request: what the steps before gave and cost is part of it.
fn whole(job: &Job, answer: Answer) -> Answer {
    let steps = job.given().to_vec();
    let usage = steps.iter().filter_map(|given| given.usage).fold(answer.usage, Usage::plus);
    Answer { steps, usage, ..answer }
}

/// Frees the slot until there may be room to write.
async fn later(worker: &Worker, delivery: &Delivery, attempt: Attempt, case: &Case) {
    let delay = outcome::patience(case.delivered).max(FULL_DELAY);
    let delay = by_deadline(delay / 2 + clock::jitter(delay), case);
    give_back(worker, delivery, delay, attempt, case).await;
}

/// Jobs that failed together come back apart, so that one that always fails takes the others with it but once.
fn spread(delay: Duration, attempt: Attempt, case: &Case) -> Duration {
    match attempt {
        Attempt::Counts => by_deadline(delay / 2 + clock::jitter(delay * 2), case),
        Attempt::Forgiven => delay,
    }
}

/// The sender hears at the deadline, so the delivery comes again by then; after it, when it would.
fn by_deadline(delay: Duration, case: &Case) -> Duration {
    match case.deadline_ms.saturating_sub(clock::now_ms()) {
        0 => delay,
        left => delay.min(Duration::from_millis(left)),
    }
}

/// A record, and its bytes.
#[derive(Clone, Debug)]
struct Written {
    record: Record,
    bytes: Bytes,
}

impl Written {
    fn new(record: Record) -> Self {
        Self { bytes: record.encode(), record }
    }
}

/// The record that stands: this one, or the one that stood before.
async fn store(worker: &Worker, delivery: &Delivery, Written { record, bytes }: Written) -> Result<Record, InVain> {
    match retry(worker, delivery, || records::store_encoded(&worker.bus, &record, bytes.clone())).await? {
        Stored::Created => {
            let (meters, took) = (&worker.models[delivery.model].meters, delivery.received.elapsed());
            match &record.end {
                End::Done(_) => meters.done(took),
                End::Failed(refusal) => meters.failed(refusal.code.as_str(), took),
            }
            Ok(record)
        }
        Stored::Existed(other) => {
            metrics::lost_race();
            delivery.lost();
            Ok(other)
        }
    }
}

/// The rest of the walk of a job whose record stands. Every step may be done before, and is done again.
pub async fn finish(worker: &Worker, delivery: &Delivery, record: &Record, reply: Option<Reply<'_>>) {
    delivery.enter(Phase::Settling);
    // A step that came again after the request was answered: whoever answered said so.
    if matches!((&delivery.job, &record.end), (Ok(job), End::Done(_)) if job.is_step()) {
        return ack(worker, delivery).await;
    }
    if let Some(turn) = session_turn(delivery, record)
        && let Err(error) = Box::pin(worker.sessions.settle(&record.tenant, &turn, &record.job)).await
    {
        use runtime::Error::{Rebuilding, RedisDown};
        if matches!(error, RedisDown(_) | Rebuilding) && !outcome::last_delivery(delivery.info.delivered) {
            let delay = outcome::patience(delivery.info.delivered).max(SESSION_DELAY);
            tracing::warn!(job = %record.job, %error, ?delay, "the session is not written; the delivery comes again");
            return nak(worker, delivery, delay).await;
        }
        // No other delivery would do better, and a rebuild from the records may.
        tracing::error!(job = %record.job, %error, "the session cannot be written");
    }
    if let (End::Done(answer), Some(key)) = (&record.end, &record.cache_key)
        && let Err(error) = worker.responses.put(key, answer).await
    {
        tracing::debug!(job = %record.job, %error, "the answer could not be cached");
    }
    match reply {
        Some(reply) => say_and_ack(worker, delivery, record, reply).await,
        None => ack(worker, delivery).await,
    }
    if let (End::Failed(_), Some(key)) = (&record.end, delivery.cache_key())
        && let Err(error) = worker.responses.release(key, &record.job).await
    {
        tracing::debug!(job = %record.job, %error, "the lease could not be given up; its dispatcher does");
    }
}

/// The ack goes the same way as the final frames, after them: who has the answer to it knows that they left. Unless the
/// connection is another one by then, and they may have gone with the old one.
async fn say_and_ack(worker: &Worker, delivery: &Delivery, record: &Record, mut reply: Reply<'_>) {
    let connection = worker.bus.connections();
    reply.finish(record, delivery.above()).await;
    ack(worker, delivery).await;
    if worker.bus.connections() != connection {
        reply.finish(record, delivery.above()).await;
        let _ = tokio::time::timeout(FLUSH_TIMEOUT, worker.bus.client.flush()).await;
    }
}

/// The turn that the record settles; a record written elsewhere may not know of it, as a cancel does not.
fn session_turn(delivery: &Delivery, record: &Record) -> Option<SessionTurn> {
    let unanswered = || {
        turn(delivery).map(|turn| SessionTurn {
            session: turn.session,
            number: turn.number,
            input: Vec::new(),
            answer: None,
        })
    };
    record.session.clone().or_else(unanswered)
}

/// The place in a session that the end settles: a step does not wait for its turn, and settles it where it fails.
fn turn(delivery: &Delivery) -> Option<Turn> {
    delivery.turn().or_else(|| delivery.job.as_ref().ok().and_then(|job| job.turn().cloned()))
}

/// The record of an end. `None` where nobody knows whose job it is.
fn record(worker: &Worker, delivery: &Delivery, end: End) -> Option<Written> {
    let (tenant, job) = delivery.whose()?;
    let record = |end, session, cache_key| Record {
        version: WIRE_VERSION,
        job: job.clone(),
        tenant: tenant.clone(),
        format: delivery.job.as_ref().map_or(Format::Raw, |job| job.format),
        settled_ms: clock::now_ms(),
        end,
        session,
        cache_key,
    };
    let (session, cache_key) = match &delivery.job {
        Ok(job) => (spoken(delivery, job, &end), job.cache_key.clone()),
        Err(_) => (None, None),
    };
    let whole = Written::new(record(end, session, cache_key));
    let most = worker.bus.client.max_payload().saturating_sub(RECORD_SPARE_BYTES);
    let Some(excess) = excess(&whole, most) else { return Some(whole) };
    let refusal = Refusal::new(ErrorCode::TooLarge, excess);
    let session = whole.record.session.map(|turn| SessionTurn { input: Vec::new(), answer: None, ..turn });
    Some(Written::new(record(End::Failed(refusal), session, None)))
}

/// Why an end cannot be stored, or not be said in the format that was asked for; `None` where it can be both.
fn excess(Written { record, bytes }: &Written, most: usize) -> Option<String> {
    let stored = bytes.len();
    if stored > most {
        return Some(format!("input and answer together exceed {most} bytes"));
    }
    let End::Done(answer) = &record.end else { return None };
    let format = record.format;
    let said = |answer| reply::whole(answer, format).body.len();
    let unsaid = stored > most / FORMAT_GROWTH_MAX && said(answer) > most;
    unsaid.then(|| format!("the answer exceeds {most} bytes in the format '{}'", format.as_str()))
}

/// What was said in this turn of the session.
fn spoken(delivery: &Delivery, job: &Job, end: &End) -> Option<SessionTurn> {
    let turn = turn(delivery)?;
    let (input, answer) = match end {
        End::Done(answer) => (job.input.clone(), Some(answer.text().to_owned())),
        End::Failed(_) => (Vec::new(), None),
    };
    Some(SessionTurn { session: turn.session, number: turn.number, input, answer })
}

/// Keeps the original where an operator finds it, then tells the sender.
async fn dead(worker: &Worker, delivery: &Delivery, reason: &str, case: &Case, reply: Option<Reply<'_>>) {
    let (tenant, job) = match delivery.whose() {
        Some((tenant, job)) => (tenant.clone(), job.clone()),
        None => (Token::default_tenant(), unreadable(delivery.info.sequence)),
    };
    tracing::error!(%tenant, %job, delivered = delivery.info.delivered, reason, "dead letter");
    let headers = Headers::new()
        .with(header::REASON, reason.replace(['\r', '\n'], " "))
        .with(header::JOB, &job)
        .with(header::ATTEMPT, delivery.info.delivered - 1)
        .with(WORKER, &worker.name);
    let put = || records::dead_letter(&worker.bus, &tenant, &job, delivery.body.clone(), headers.clone());
    let told = match retry(worker, delivery, put).await {
        Ok(()) => "the job could not be done; it is kept for an operator",
        Err(InVain::Full) if clock::now_ms() < case.deadline_ms && !outcome::last_delivery(case.delivered) => {
            // It counts, so that the next delivery computes nothing.
            return later(worker, delivery, Attempt::Counts, case).await;
        }
        Err(InVain::Full) => {
            tracing::error!(%tenant, %job, "no room for a dead letter: only its sender is told");
            "the job could not be done, and there is no room to keep it"
        }
        Err(InVain::Quitting | InVain::Unwritable) => return,
    };
    metrics::dead_letter(if delivery.job.is_ok() { "attempts" } else { "unreadable" });
    let refusal = Refusal::new(ErrorCode::Internal, told);
    let Some(record) = record(worker, delivery, End::Failed(refusal)) else { return ack(worker, delivery).await };
    match store(worker, delivery, record.clone()).await {
        Ok(record) => finish(worker, delivery, &record, reply).await,
        // Somebody's record stands and cannot be read: with the dead letter stored, the sender may be told.
        Err(InVain::Unwritable) => finish(worker, delivery, &record.record, reply).await,
        Err(InVain::Full) => later(worker, delivery, Attempt::Counts, case).await,
        Err(InVain::Quitting) => {}
    }
}

/// A name for a job that has none.
fn unreadable(sequence: u64) -> Token {
    Token::parse("job", &format!("unreadable-{sequence}")).expect("letters and digits are a token")
}

/// Gives the delivery back, so that another may do it; not if it may be in other hands already.
async fn give_back(worker: &Worker, delivery: &Delivery, delay: Duration, attempt: Attempt, case: &Case) {
    if attempt == Attempt::Forgiven
        && let Some((tenant, job)) = delivery.name()
    {
        let count = case.forgiven.saturating_add(1);
        let forgive = || async {
            if delivery.ours() { records::forgive(&worker.bus, tenant, &job, count).await } else { Ok(()) }
        };
        match retry(worker, delivery, forgive).await {
            // Without room to forgive it, it costs an attempt.
            Ok(()) | Err(InVain::Full) => {}
            Err(InVain::Quitting | InVain::Unwritable) => return,
        }
    }
    metrics::given_back(if attempt == Attempt::Forgiven { "forgiven" } else { "counts" });
    nak(worker, delivery, delay).await;
}

async fn nak(worker: &Worker, delivery: &Delivery, delay: Duration) {
    if delivery.ours() {
        let kind = AckKind::Nak((!delay.is_zero()).then_some(delay));
        if let Err(error) = worker.bus.client.publish(delivery.ack_subject(), kind.into()).await {
            tracing::warn!(%error, "a delivery could not be given back; it comes again by itself");
        }
    }
}

/// Acks and waits for the server's word, with others of the lane at first. Without it the job comes again, and ends as it
/// did.
async fn ack(worker: &Worker, delivery: &Delivery) {
    for attempt in 0..ACK_TRIES {
        let to = delivery.ack_subject();
        let heard = match attempt {
            0 => worker.now.acks.tell(&worker.bus, delivery.lane, to).await,
            _ => acks::tell_alone(&worker.bus, to).await,
        };
        if heard == Heard::Surely {
            return;
        }
        tokio::time::sleep(clock::backoff(attempt, RETRY.0, RETRY.1)).await;
    }
    tracing::warn!(sequence = delivery.info.sequence, "an ack got no answer; the job comes again and ends as it did");
}

/// Why something is not written down. The delivery is left to the queue then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InVain {
    /// The worker quits.
    Quitting,
    /// What is stored there is none of ours: no retry mends that.
    Unwritable,
    /// There is no room, and may be none for long.
    Full,
}

/// Tries until it works: what is computed is worth waiting for, and its slot meanwhile asks for no more. A full stream
/// may stay so: that is not waited for in a slot.
async fn retry<T, F>(worker: &Worker, delivery: &Delivery, attempt: impl Fn() -> F) -> Result<T, InVain>
where
    F: Future<Output = Result<T, runtime::Error>>,
{
    let started = Instant::now();
    for number in 0.. {
        let error = match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let (sequence, seconds) = (delivery.info.sequence, started.elapsed().as_secs());
        if matches!(error, runtime::Error::Corrupt(_) | runtime::Error::TooLarge(_)) {
            tracing::error!(%error, sequence, "cannot be written");
            return Err(InVain::Unwritable);
        }
        tracing::warn!(%error, sequence, seconds, "cannot be written yet");
        if matches!(error, runtime::Error::Full(_)) && number + 1 >= FULL_TRIES {
            return Err(InVain::Full);
        }
        tokio::select! {
            () = tokio::time::sleep(clock::backoff(number, RETRY.0, RETRY.1)) => {}
            () = worker.now.quit.cancelled() => break,
        }
    }
    Err(InVain::Quitting)
}
