//! A delivery to work for the engine, or to how it ends. Nothing that was settled, cancelled, late or tried too often
//! reaches the engine.

use std::time::{Duration, Instant};

use engine::prefix::Scope;
use protocol::ErrorCode;
use protocol::Refusal;
use protocol::job::{Job, Origin};
use protocol::record::{Record, SessionTurn};
use protocol::stream::ATTEMPTS_MAX;
use runtime::sessions::Begin;
use runtime::{clock, records};

use protocol::answer::Usage;
use tokio::sync::OwnedSemaphorePermit;

use crate::company::Seat;
use crate::delivery::{Delivery, Phase};
use crate::model::{Ask, Generate, Model, Reading, Work};
use crate::outcome::{Case, Ending, Why, late};
use crate::output::{self, Form};
use crate::prompt;
use crate::reader::Read;
use crate::worker::Worker;

/// What is to be done with a delivery.
#[derive(Debug)]
pub enum Admission<'a> {
    /// Compute this.
    Compute(Box<Order<'a>>),
    /// The job was settled before: what is left is to say so.
    Stored(Box<Record>),
    /// It ends here.
    Ends(Ending),
}

/// What is to be computed, and what becomes of it.
#[derive(Debug)]
pub struct Order<'a> {
    /// For the engine.
    pub work: Work,
    /// How its outputs become an answer.
    pub form: Form,
    /// What its input counts as; a decoder counts itself.
    pub usage: Usage,
    /// Memory of its input, held until it is over.
    pub room: Option<OwnedSemaphorePermit>,
    /// Its place among the jobs that compute.
    pub seat: Seat<'a>,
}

/// A session that keeps giving new numbers is given back.
const MOVES_MAX: usize = 4;

/// Looks at a delivery; the case is what its verdict depends on.
pub async fn admit<'a>(worker: &'a Worker, delivery: &Delivery) -> (Admission<'a>, Case) {
    let mut case = Case {
        delivered: delivery.info.delivered,
        forgiven: 0,
        now_ms: clock::now_ms(),
        deadline_ms: delivery.job.as_ref().map_or(u64::MAX, |job| job.deadline_ms),
    };
    let admission = match look(worker, delivery, &mut case).await {
        Ok(order) => Admission::Compute(Box::new(order)),
        Err(admission) => admission,
    };
    (admission, case)
}

/// What is seldom asked of the servers is boxed: every walk would have its size.
async fn look<'a>(worker: &'a Worker, delivery: &Delivery, case: &mut Case) -> Result<Order<'a>, Admission<'a>> {
    let read = delivery.job.as_ref().map_err(|unreadable| unreadable_ending(&unreadable.refusal));
    // Who cannot read it knows neither its client nor its session, and so may not settle it, whatever the records say.
    if let Err(newer @ Ending::Refused(_)) = read {
        forgiven(worker, delivery, case).await?;
        return Err(ends(newer));
    }
    stored(worker, delivery).await?;
    forgiven(worker, delivery, case).await?;
    let job = read.map_err(ends)?;
    if case.now_ms >= case.deadline_ms {
        return Err(ends(Ending::Refused(late())));
    }
    if case.attempts() >= ATTEMPTS_MAX {
        return Err(ends(Ending::Exhausted));
    }
    let history = history(worker, delivery, job).await.map_err(ends)?;
    order(worker, delivery, job, &history, case.attempts()).await.map_err(ends)
}

/// Whether the job has its end already.
async fn stored(worker: &Worker, delivery: &Delivery) -> Result<(), Admission<'static>> {
    let Some((tenant, job)) = delivery.whose() else { return Ok(()) };
    if first_and_alone(delivery).is_some_and(|job| worker.now.heard.knows_open(job, worker.bus.connections())) {
        return Ok(());
    }
    match Box::pin(records::result(&worker.bus, tenant, job)).await {
        Ok(None) => Ok(()),
        Ok(Some(record)) => Err(Admission::Stored(Box::new(record))),
        Err(error) => Err(ends(Ending::Refused(error.refusal()))),
    }
}

/// The job, where nobody can have computed it yet: it was never delivered, and no other message became the same one.
fn first_and_alone(delivery: &Delivery) -> Option<&Job> {
    let job = delivery.job.as_ref().ok()?;
    (delivery.info.delivered == 1 && job.origin == Origin::Door && job.steps.is_none()).then_some(job)
}

/// Its deliveries that do not count.
async fn forgiven(worker: &Worker, delivery: &Delivery, case: &mut Case) -> Result<(), Admission<'static>> {
    let Some((tenant, job)) = delivery.name() else { return Ok(()) };
    if case.delivered > 1 {
        let known = Box::pin(records::forgiven(&worker.bus, tenant, &job)).await;
        case.forgiven = known.map_err(|error| ends(Ending::Refused(error.refusal())))?;
    }
    Ok(())
}

/// Bytes that are no job never become one; a job of a newer version is one for somebody else.
fn unreadable_ending(refusal: &Refusal) -> Ending {
    match refusal.code {
        ErrorCode::Unavailable => Ending::Refused(refusal.clone()),
        _ => Ending::Exhausted,
    }
}

/// The conversation so far, once it is this job's turn.
async fn history(worker: &Worker, delivery: &Delivery, job: &Job) -> Result<Vec<SessionTurn>, Ending> {
    for _ in 0..MOVES_MAX {
        let Some(turn) = delivery.turn() else {
            stand(worker, job).await;
            return Ok(Vec::new());
        };
        match Box::pin(worker.sessions.begin(&job.tenant, &turn, &job.id)).await {
            Ok(Begin::Ready(history)) => return Ok(history),
            Ok(Begin::Waits) => return Err(Ending::Untried(Why::Waits)),
            Ok(Begin::Moved(number)) => delivery.moved(number),
            Err(error) => return Err(Ending::Refused(error.refusal())),
        }
    }
    Err(Ending::Untried(Why::Waits))
}

/// A step's turn is for the last job, and stands from now on, whatever became of the dispatcher that reserved it.
async fn stand(worker: &Worker, job: &Job) {
    if let Some(turn) = job.turn()
        && let Err(error) = worker.sessions.confirm(&job.tenant, &turn.session, &job.id).await
    {
        tracing::warn!(job = %job.id, %error, "the turn of a step could not be confirmed");
    }
}

/// Everything that can be refused without decoding is refused before.
async fn order<'a>(
    worker: &'a Worker,
    delivery: &Delivery,
    job: &Job,
    history: &[SessionTurn],
    attempts: u32,
) -> Result<Order<'a>, Ending> {
    let model = &worker.models[delivery.model];
    let prompt = prompt::prompt(job, model, history).map_err(Ending::Refused)?;
    let form = output::form(job, model).map_err(Ending::Refused)?;
    let left = Duration::from_millis(job.deadline_ms.saturating_sub(clock::now_ms()));
    let deadline = Instant::now() + left;
    // A file that ends the process as it is decoded must not take the same neighbours along at every attempt.
    let seat = seat(worker, delivery, attempts, deadline).await?;
    delivery.enter(Phase::Admitting);
    let read = tokio::select! {
        biased;
        () = worker.now.quit.cancelled() => return Err(Ending::Untried(Why::Stopping)),
        () = delivery.cancelled.cancelled() => return Err(Ending::Refused(cancelled())),
        read = worker.reader.read(model, prompt) => read.map_err(Ending::Refused)?,
        () = tokio::time::sleep_until(deadline.into()) => return Err(Ending::Refused(late())),
    };
    let Read { reading, room } = read;
    let (ask, usage) = match reading {
        Reading::Tokens(tokens) => (generate(job, model, tokens).map_err(Ending::Refused)?, Usage::default()),
        Reading::Inputs { inputs, usage } => (Ask::Encode(inputs), usage),
    };
    Ok(Order { work: Work { key: delivery.info.sequence, ask, deadline }, form, usage, room, seat })
}

fn generate(job: &Job, model: &Model, tokens: Vec<engine::plan::TokenId>) -> Result<Ask, Refusal> {
    Ok(Ask::Generate(Generate {
        max_tokens: prompt::max_tokens(&job.params, tokens.len(), model.loaded.context)?,
        tokens,
        sampling: prompt::sampling(&job.params),
        stop: job.params.stops().to_vec(),
        scope: Scope::of(job.tenant.as_str().as_bytes()),
    }))
}

/// A place to compute in, unless the job is over before there is one.
async fn seat<'a>(
    worker: &'a Worker,
    delivery: &Delivery,
    attempts: u32,
    deadline: Instant,
) -> Result<Seat<'a>, Ending> {
    // Who waits for a place waits for those in the engine, and shows progress as they do.
    delivery.enter(Phase::Computing);
    tokio::select! {
        biased;
        () = worker.now.quit.cancelled() => Err(Ending::Untried(Why::Stopping)),
        () = delivery.cancelled.cancelled() => Err(Ending::Refused(cancelled())),
        seat = worker.now.company.seat(attempts) => seat.ok_or(Ending::Untried(Why::Waits)),
        () = tokio::time::sleep_until(deadline.into()) => Err(Ending::Refused(late())),
    }
}

/// What a client is told whose job somebody cancelled.
pub(crate) fn cancelled() -> Refusal {
    Refusal::new(ErrorCode::Cancelled, "the job was cancelled")
}

fn ends(ending: Ending) -> Admission<'static> {
    Admission::Ends(ending)
}
