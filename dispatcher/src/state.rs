//! What the steps of a walk share: the parts they may use, and how they end it early.

use std::sync::Arc;

use protocol::Refusal;
use protocol::record::Record;
use runtime::Bus;
use runtime::cache::Responses;
use runtime::records::Done;
use runtime::sessions::Sessions;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::catalogue::Catalogue;
use crate::config::Options;
use crate::fleet::View;
use crate::leases::Leases;
use crate::metrics::Outcome;
use crate::pipelines::Pipelines;
use crate::room::Room;
use crate::rules::Rules;

/// What every step may use.
pub struct Dispatcher {
    /// NATS.
    pub bus: Bus,
    /// Conversations.
    pub sessions: Sessions,
    /// The response cache.
    pub responses: Responses,
    /// Records as they are stored.
    pub done: Done,
    /// The models.
    pub catalogue: Catalogue,
    /// Which requests several models answer.
    pub pipelines: Pipelines,
    /// The rules.
    pub rules: Rules,
    /// Written by [`crate::fleet::watch`].
    pub fleet: View,
    /// Written by [`crate::room::watch`].
    pub room: Arc<Room>,
    /// Requests that may wait for the answer of another.
    pub waiting: Arc<Semaphore>,
    /// Jobs that one lane holds.
    pub lane_jobs_max: i64,
    /// `[dispatcher]`
    pub options: Options,
    /// Who computes what only one may. Told of ends by the watch of finished jobs.
    pub leases: Arc<Leases>,
    /// Nobody waits for others any more.
    pub stopping: CancellationToken,
}

/// How a walk ends before the queue.
#[derive(Debug)]
pub enum Stop {
    /// With a refusal.
    Refused(Refusal),
    /// With the record of this job, and why there is one.
    Settled(Box<Record>, Outcome),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Stop::Refused(refusal)
    }
}

/// A failure of the servers on the way: logged here, told to the client without its details.
pub fn failed(error: &runtime::Error) -> Refusal {
    tracing::warn!(%error, "a request failed");
    error.refusal()
}
