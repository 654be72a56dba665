//! A delivery to work for the engine, or to how it ends. Nothing that was settled, cancelled, late or tried too often
//! reaches the engine.

use std::time::{Duration, Instant};

use protocol::ErrorCode;
use protocol::Refusal;
use protocol::job::Job;
use protocol::record::{Record, SessionTurn};
use protocol::stream::ATTEMPTS_MAX;
use runtime::sessions::Begin;
use runtime::{clock, records};

use crate::delivery::Delivery;
use crate::model::{Model, Prompt, Work};
use crate::outcome::{Case, Ending, Why, late};
use crate::prompt;
use crate::worker::Worker;

/// What is to be done with a delivery.
#[derive(Debug)]
pub enum Admission {
    /// Compute this.
    Compute(Box<Work>),
    /// The job was settled before: what is left is to say so.
    Stored(Box<Record>),
    /// It ends here.
    Ends(Ending),
}

/// Prompts longer than this are tokenised on a thread of their own, so that others stream meanwhile.
const INLINE_BYTES: usize = 16 * 1024;
/// A session that keeps giving new numbers is given back.
const MOVES_MAX: usize = 4;

/// Looks at a delivery; the case is what its verdict depends on.
pub async fn admit(worker: &Worker, delivery: &Delivery) -> (Admission, Case) {
    let mut case = Case {
        delivered: delivery.info.delivered,
        forgiven: 0,
        now_ms: clock::now_ms(),
        deadline_ms: delivery.job.as_ref().map_or(u64::MAX, |job| job.deadline_ms),
    };
    let admission = match look(worker, delivery, &mut case).await {
        Ok(work) => Admission::Compute(Box::new(work)),
        Err(admission) => admission,
    };
    (admission, case)
}

async fn look(worker: &Worker, delivery: &Delivery, case: &mut Case) -> Result<Work, Admission> {
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
    let model = &worker.models[delivery.model];
    let history = history(worker, delivery, job).await.map_err(ends)?;
    work(delivery, job, model, &history).await.map_err(|refusal| ends(Ending::Refused(refusal)))
}

/// Whether the job has its end already.
async fn stored(worker: &Worker, delivery: &Delivery) -> Result<(), Admission> {
    let Some((tenant, job)) = delivery.whose() else { return Ok(()) };
    match records::result(&worker.bus, tenant, job).await {
        Ok(None) => Ok(()),
        Ok(Some(record)) => Err(Admission::Stored(Box::new(record))),
        Err(error) => Err(ends(Ending::Refused(error.refusal()))),
    }
}

/// Its deliveries that do not count.
async fn forgiven(worker: &Worker, delivery: &Delivery, case: &mut Case) -> Result<(), Admission> {
    let Some((tenant, job)) = delivery.whose() else { return Ok(()) };
    if case.delivered > 1 {
        let known = records::forgiven(&worker.bus, tenant, job).await;
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
        let Some(turn) = delivery.turn() else { return Ok(Vec::new()) };
        match worker.sessions.begin(&job.tenant, &turn, &job.id).await {
            Ok(Begin::Ready(history)) => return Ok(history),
            Ok(Begin::Waits) => return Err(Ending::Untried(Why::Waits)),
            Ok(Begin::Moved(number)) => delivery.moved(number),
            Err(error) => return Err(Ending::Refused(error.refusal())),
        }
    }
    Err(Ending::Untried(Why::Waits))
}

async fn work(delivery: &Delivery, job: &Job, model: &Model, history: &[SessionTurn]) -> Result<Work, Refusal> {
    let tokens = tokens(model, prompt::prompt(job, model, history)?).await?;
    let left = Duration::from_millis(job.deadline_ms.saturating_sub(clock::now_ms()));
    Ok(Work {
        key: delivery.info.sequence,
        max_tokens: prompt::max_tokens(&job.params, tokens.len(), model.loaded.context)?,
        tokens,
        sampling: prompt::sampling(&job.params),
        stop: job.params.stops().to_vec(),
        deadline: Instant::now() + left,
    })
}

async fn tokens(model: &Model, prompt: Prompt) -> Result<Vec<engine::plan::TokenId>, Refusal> {
    if prompt.bytes() <= INLINE_BYTES {
        return model.engine.tokens(&prompt);
    }
    let engine = model.engine.clone();
    let tokens = tokio::task::spawn_blocking(move || engine.tokens(&prompt)).await;
    tokens.unwrap_or_else(|_| Err(Refusal::new(ErrorCode::Internal, "the tokenizer failed")))
}

fn ends(ending: Ending) -> Admission {
    Admission::Ends(ending)
}
