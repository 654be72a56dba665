//! What steps of pipelines gave: pulls STEPS, and queues the job that follows. The only place that acks STEPS.
//!
//! A message is acked when the next job's PubAck, or the request's record, is stored, and not before. A process may die
//! between any two steps; what it leaves, the next delivery completes:
//!
//! | dies after            | what stands                    | the next delivery                                           |
//! |-----------------------|--------------------------------|-------------------------------------------------------------|
//! | the worker's record   | the step's job, what it gave   | of the job: computes, finds the record, acks                |
//! | the worker's ack      | what the step gave             | of STEPS: queues the next job                               |
//! | the next job's PubAck | what the step gave, that job   | queues it under the same message id: dropped, or done twice |
//! | the ack of STEPS      | the next job                   | there is none                                               |
//!
//! A job that is queued twice is computed twice at most and has one record: the second finds it, as any redelivery does.
//! A request that was cancelled, or whose deadline passed, is queued all the same: the worker that gets its job finds the
//! record or the time, tells the client and settles the turn of its session, as for any job. Only where a job cannot be
//! queued at all is the request ended here.

mod sender;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::{AckKind, Message};
use bytes::Bytes;
use futures::FutureExt;
use protocol::header::{self, Headers};
use protocol::record::{End, Record, StepRecord};
use protocol::{ErrorCode, Refusal, pipeline, stream, subject};
use runtime::records::{self, Stored};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Error;
use crate::admit;
use crate::answer::{self, Manner};
use crate::forward;
use crate::metrics;
use crate::pipelines;
use crate::pull::{self, AGAIN_SELDOM, Settled, keep_alive};
use crate::state::Dispatcher;
use crate::walk::BLOCKING_BYTES;
use sender::Sender;

/// Pulls until `stop`; what is in hand runs on as tasks of `tasks`.
pub async fn pull(dispatcher: Arc<Dispatcher>, tasks: TaskTracker, stop: CancellationToken) -> Result<(), Error> {
    let source = pull::Source { consumer: stream::steps_consumer(), name: "the stream of steps", tasks, stop };
    pull::pull(dispatcher, source, |dispatcher, message, place| async move {
        handle(&dispatcher, message).await;
        drop(place);
    })
    .await
}

async fn handle(dispatcher: &Dispatcher, message: Message) {
    let delivered = message.info().map_or(1, |info| u64::try_from(info.delivered).unwrap_or(1));
    // A defect of ours comes again, and not for ever: the request is ended then.
    let work = AssertUnwindSafe(settle(dispatcher, &message, delivered)).catch_unwind();
    let settled = match keep_alive(&message, work).await {
        Ok(settled) => settled,
        Err(_) => {
            let refusal = Refusal::new(ErrorCode::Internal, "a fault of the fleet");
            unsettled(dispatcher, &message, refusal, delivered).await
        }
    };
    let acked = match settled {
        Settled::Done => message.ack().await,
        Settled::Again(_) if dispatcher.stopping.is_cancelled() => message.ack_with(AckKind::Nak(None)).await,
        Settled::Again(delay) => message.ack_with(AckKind::Nak(Some(delay))).await,
    };
    if let Err(error) = acked {
        tracing::warn!(%error, "what a step gave could not be settled; it comes again");
    }
}

/// Queues the next job.
async fn settle(dispatcher: &Dispatcher, message: &Message, delivered: u64) -> Settled {
    let record = match read(&message.payload).await {
        Ok(record) => record,
        Err(refusal) => return unsettled(dispatcher, message, refusal, delivered).await,
    };
    let sender = Sender::of(&record.job);
    match records::result(&dispatcher.bus, &sender.tenant, &sender.job).await {
        // A step that was delivered once more, after the end.
        Ok(Some(Record { end: End::Done(_), .. })) => return Settled::Done,
        Ok(_) => {}
        Err(error) => {
            tracing::warn!(job = %sender.job, %error, "the record of a request cannot be looked for");
            let refusal = Refusal::new(ErrorCode::Unavailable, "results cannot be read");
            return unsettled(dispatcher, message, refusal, delivered).await;
        }
    }
    let refusal = match next(dispatcher, record).await {
        Ok(()) => return Settled::Done,
        Err(refusal) => refusal,
    };
    match pull::again(&refusal, delivered) {
        Some(delay) if !sender.late() => sender.again(delay),
        Some(_) => end(dispatcher, &sender, admit::late(), delivered).await,
        None => end(dispatcher, &sender, refusal, delivered).await,
    }
}

/// Reads a record; a large one on a thread that may block.
async fn read(bytes: &Bytes) -> Result<StepRecord, Refusal> {
    if bytes.len() <= BLOCKING_BYTES {
        return StepRecord::decode(bytes);
    }
    let bytes = bytes.clone();
    let read = tokio::task::spawn_blocking(move || StepRecord::decode(&bytes)).await;
    read.unwrap_or_else(|_| Err(Refusal::new(ErrorCode::Internal, "a fault of the fleet")))
}

#[tracing::instrument(level = "debug", name = "step", skip_all, fields(job = %record.job.id))]
async fn next(dispatcher: &Dispatcher, record: StepRecord) -> Result<(), Refusal> {
    let job = pipeline::advance(record.job, record.given)?;
    let lane = pipelines::lane(&dispatcher.catalogue, job.modality, &job.model, job.priority)?;
    match forward::publish(dispatcher, &lane, &job).await {
        Ok(arrival) => {
            tracing::debug!(?arrival, lane = lane.subject(), "the next step is queued");
            Ok(())
        }
        Err(fault) => Err(forward::refusal(dispatcher, &lane, &fault)),
    }
}

/// Ends a request whose next job cannot be queued: record, session turn, the client's word, in this order. What cannot be
/// written is tried again as long as that can help; the client is told all the same.
async fn end(dispatcher: &Dispatcher, sender: &Sender, refusal: Refusal, delivered: u64) -> Settled {
    metrics::error(refusal.code);
    let record = sender.record(refusal);
    let record = match records::store_result(&dispatcher.bus, &record).await {
        Ok(Stored::Created) => record,
        Ok(Stored::Existed(Record { end: End::Done(_), .. })) => return Settled::Done,
        Ok(Stored::Existed(other)) => other,
        Err(error) => {
            if let Some(delay) = pull::again(&error.refusal(), delivered) {
                tracing::warn!(job = %record.job, %error, "the end of a request could not be stored; the step comes again");
                return sender.again(delay);
            }
            tracing::error!(job = %record.job, %error, "the end of a request cannot be stored");
            record
        }
    };
    if let Some(turn) = sender.unanswered()
        && let Err(error) = dispatcher.sessions.settle(&record.tenant, &turn, &record.job).await
    {
        if let Some(delay) = session_again(&error, delivered) {
            tracing::warn!(job = %record.job, %error, "the session is not written; the step comes again");
            return sender.again(delay);
        }
        // No other delivery would do better, and a rebuild from the records may.
        tracing::error!(job = %record.job, %error, "the session cannot be written");
    }
    if let Some(reply_to) = &sender.reply_to {
        let manner = Manner { format: sender.format, mode: sender.mode };
        answer::send(&dispatcher.bus, reply_to, answer::record_frames(&record, manner)).await;
    }
    Settled::Done
}

/// When a session that was not written may be; `None` where no delivery would do better.
fn session_again(error: &runtime::Error, delivered: u64) -> Option<Duration> {
    use runtime::Error::{Rebuilding, RedisDown};
    matches!(error, RedisDown(_) | Rebuilding).then(|| pull::again(&error.refusal(), delivered)).flatten()
}

/// Comes again as long as that can help, by the deadline where it can be told.
async fn unsettled(dispatcher: &Dispatcher, message: &Message, refusal: Refusal, delivered: u64) -> Settled {
    let Some((tenant, job)) = subject::step_job(&message.subject) else { return Settled::Done };
    let sender = Sender::peek(tenant, job, &message.payload);
    match pull::again(&refusal, delivered) {
        Some(delay) if !sender.late() => sender.again(delay),
        Some(_) => end(dispatcher, &sender, admit::late(), delivered).await,
        None => hopeless(dispatcher, message, (&sender, &refusal), delivered).await,
    }
}

/// What cannot be read, or fails us each time: kept for an operator, and the request is ended.
async fn hopeless(
    dispatcher: &Dispatcher,
    message: &Message,
    (sender, refusal): (&Sender, &Refusal),
    delivered: u64,
) -> Settled {
    let Sender { tenant, job, .. } = sender;
    tracing::error!(%tenant, %job, %refusal, "what a step gave cannot be used: dead letter");
    let headers = Headers::new().with(header::REASON, &refusal.message).with(header::JOB, job);
    let kept = records::dead_letter_once(&dispatcher.bus, tenant, job, message.payload.clone(), headers).await;
    let told = match kept {
        Ok(()) => "the job could not be done; it is kept for an operator",
        Err(error) if pull::again(&error.refusal(), delivered).is_some() => {
            tracing::warn!(%error, "a dead letter could not be stored");
            return sender.again(AGAIN_SELDOM);
        }
        Err(error) => {
            tracing::error!(%tenant, %job, %error, "a dead letter cannot be stored: only its sender is told");
            "the job could not be done, and could not be kept"
        }
    };
    end(dispatcher, sender, Refusal::new(ErrorCode::Internal, told), delivered).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_written_later_only_where_later_can_be_better() {
        let down = runtime::Error::RedisDown(String::new());
        let delays: Vec<_> = [1, 3, 50, 500].map(|delivered| session_again(&down, delivered)).into();
        assert!(delays.is_sorted() && delays[0].is_some() && delays[0] < delays[3], "{delays:?}");
        let last = u64::try_from(stream::DELIVERIES_MAX).unwrap() - 1;
        assert_eq!(session_again(&down, last), None);
        for lasting in [runtime::Error::Corrupt(String::new()), runtime::Error::Full(String::new())] {
            assert_eq!(session_again(&lasting, 1), None);
        }
    }
}
