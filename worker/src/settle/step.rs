//! The end of a step of a pipeline that is not the last: what it gave goes into STEPS, and the dispatchers queue the next
//! job from there. The same order as for an answer: stored (create-once, PubAck), then ack; nothing is said in between.
//!
//! | dies after                | what stands                    | the next delivery of the step                          |
//! |---------------------------|--------------------------------|--------------------------------------------------------|
//! | the engine's end          | the step's job                 | computes again: nothing was said or stored             |
//! | what it gave, PubAck lost | the job and what it gave       | computes, finds what stands, acks                      |
//! | what it gave              | the same, or the next job      | the same; the next job is queued once by its name, or  |
//! |                           |                                | a second one finds the record of the first             |
//! | ack                       | what it gave, or the next job  | there is none                                          |
//!
//! A step that does not give anything ends the whole request: its record, its session turn and the client's word are as
//! for any job, since all jobs of a request share its id. For the same reason a cancel finds the step in hand, and a
//! delivery that finds the record of the request computes nothing.

use protocol::answer::{Answer, Given};
use protocol::job::Job;
use protocol::record::{End, StepRecord};
use protocol::{ErrorCode, Refusal};
use runtime::{clock, records};

use super::{InVain, RECORD_SPARE_BYTES, ack, later, retry};
use crate::delivery::Delivery;
use crate::outcome::{Attempt, Case};
use crate::worker::Worker;

/// Stores what a step gave. `Some` where the request ends here after all.
pub(super) async fn give(worker: &Worker, delivery: &Delivery, job: &Job, answer: Answer, case: &Case) -> Option<End> {
    let record = match record(job, answer) {
        Ok(record) => record,
        Err(refusal) => return Some(End::Failed(refusal)),
    };
    let most = worker.bus.client.max_payload().saturating_sub(RECORD_SPARE_BYTES);
    if record.encode().len() > most {
        let why = format!("what a step gave, and what the next ones need, exceed {most} bytes together");
        return Some(End::Failed(Refusal::new(ErrorCode::TooLarge, why)));
    }
    match retry(worker, delivery, || records::store_step(&worker.bus, &record)).await {
        Ok(()) => {
            worker.models[delivery.model].meters.done(delivery.received.elapsed());
            ack(worker, delivery).await;
        }
        Err(InVain::Full) => later(worker, delivery, Attempt::Forgiven, case).await,
        Err(InVain::Quitting | InVain::Unwritable) => {}
    }
    None
}

/// The step's own input is used up: what comes after does not carry it.
fn record(job: &Job, answer: Answer) -> Result<StepRecord, Refusal> {
    let Answer { model, task, output, usage, .. } = answer;
    let output = output.into_iter().next().ok_or_else(|| Refusal::new(ErrorCode::Internal, "a step gave nothing"))?;
    let job = Job { input: Vec::new(), ..job.clone() };
    let given = Given { task, model, output, usage: Some(usage) };
    Ok(StepRecord { version: job.version, job, given, settled_ms: clock::now_ms() })
}
