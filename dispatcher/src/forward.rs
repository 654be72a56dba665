//! Step 6 of the walk: the job into its lane. It stands there when the PubAck has come, and not before.

use std::time::{Duration, Instant};

use bytes::Bytes;
use protocol::header::Headers;
use protocol::job::Job;
use protocol::record::{End, Record};
use protocol::request::Part;
use protocol::{ErrorCode, Refusal, WIRE_VERSION, stream};
use runtime::bus::{Arrival, Expect, Publish, PublishFault, publish_until};
use runtime::clock;
use runtime::records::{self, Stored};

use crate::admit::Identity;
use crate::control;
use crate::fleet;
use crate::metrics::{self, Outcome};
use crate::pace;
use crate::route::Lane;
use crate::state::{Dispatcher, Stop};
use crate::walk::BLOCKING_BYTES;

/// How long a sender waits to hear what stands, where the queue did not answer.
const END_WAIT: Duration = Duration::from_secs(2);

/// Publishes a job. Unknown outcomes are tried again with the same `Nats-Msg-Id`, so that it is stored once.
#[tracing::instrument(level = "debug", name = "forward", skip_all)]
pub async fn publish(dispatcher: &Dispatcher, lane: &Lane, job: &Job) -> Result<Arrival, PublishFault> {
    let message = Publish {
        stream: stream::JOBS,
        subject: lane.subject(),
        body: encode(job).await,
        headers: Headers::new(),
        id: Some(format!("{}/{}", job.tenant, job.name())),
        expect: Expect::Any,
    };
    let give_up = clock::now_ms().saturating_add(dispatcher.options.publish_wait_ms).min(job.deadline_ms);
    let begun = Instant::now();
    let acked = publish_until(&dispatcher.bus, &message, give_up).await;
    metrics::published(begun.elapsed());
    acked.map(|acked| acked.arrival)
}

/// The job's bytes; many of them are written on a thread that may block.
async fn encode(job: &Job) -> Bytes {
    let ahead = job.steps.iter().filter_map(|steps| steps.ahead.as_ref()).flat_map(|ahead| &ahead.input);
    let bytes: usize = job.input.iter().chain(ahead).map(Part::bytes).sum();
    if bytes <= BLOCKING_BYTES {
        return job.encode();
    }
    // A picture or sound is not copied by this.
    let job = job.clone();
    tokio::task::spawn_blocking(move || job.encode()).await.expect("a job always encodes")
}

/// A job that was not stored, as far as is known.
pub struct Unsent<'a> {
    /// The job.
    pub job: &'a Job,
    /// Where its id comes from.
    pub identity: Identity,
    /// Why.
    pub fault: PublishFault,
}

/// What is told of a job that was not stored. One that may stand in the queue all the same is ended first, so that its
/// sender does not hear of both an end and an answer. A client's own id stays open: whoever repeats it gets the answer.
pub async fn given_up(dispatcher: &Dispatcher, lane: &Lane, unsent: Unsent<'_>) -> Stop {
    let refusal = refusal(dispatcher, lane, &unsent.fault);
    if unsent.fault != PublishFault::Unknown || unsent.identity != Identity::Fresh {
        return refusal.into();
    }
    let record = Record {
        version: WIRE_VERSION,
        job: unsent.job.id.clone(),
        tenant: unsent.job.tenant.clone(),
        format: unsent.job.format,
        settled_ms: clock::now_ms(),
        end: End::Failed(refusal.clone()),
        session: None,
        cache_key: None,
    };
    match tokio::time::timeout(END_WAIT, records::store_result(&dispatcher.bus, &record)).await {
        Ok(Ok(Stored::Existed(record))) => Stop::Settled(Box::new(record), Outcome::Repeated),
        Ok(Ok(Stored::Created)) => {
            control::tell_workers(dispatcher, &record.tenant, &record.job).await;
            refusal.into()
        }
        Ok(Err(_)) | Err(_) => refusal.into(),
    }
}

/// What a publish that failed means for the sender.
pub fn refusal(dispatcher: &Dispatcher, lane: &Lane, fault: &PublishFault) -> Refusal {
    match fault {
        PublishFault::Full(limit) => {
            tracing::info!(lane = lane.subject(), %limit, "a lane is full");
            let rate = fleet::rate(&dispatcher.fleet, &lane.model.name);
            let after = pace::retry_after(dispatcher.lane_jobs_max, rate);
            Refusal::new(ErrorCode::Overloaded, format!("the queue of model '{}' is full", lane.model.name))
                .retry_after(after)
        }
        PublishFault::TooLarge => {
            Refusal::new(ErrorCode::TooLarge, "the job is larger than the server takes (max_payload)")
        }
        PublishFault::Unknown | PublishFault::NoStream => {
            tracing::warn!(lane = lane.subject(), %fault, "a job could not be stored");
            Refusal::new(ErrorCode::Unavailable, "the queue does not answer").retry_after(Duration::from_secs(2))
        }
        PublishFault::Taken | PublishFault::Refused(_) => {
            tracing::error!(lane = lane.subject(), %fault, "a job could not be stored");
            Refusal::new(ErrorCode::Internal, "the queue refuses the job")
        }
    }
}
