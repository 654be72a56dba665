//! An admitted request on its way to a worker. Internal: MessagePack with named fields, unknown fields tolerated.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::WIRE_VERSION;
use crate::answer::Given;
use crate::error::{ErrorCode, Refusal};
use crate::malformed::unquoted;
use crate::media::Modality;
use crate::pipeline::Steps;
use crate::request::{Format, Mode, Params, Part, Priority, Task};
use crate::token::{SessionId, Token};

/// Most jobs have room in this beside their input.
const ROOM: usize = 1024;

/// The version of a job without steps: every release reads it.
pub const PLAIN_VERSION: u32 = 1;

/// An admitted request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// What a reader must know: [`PLAIN_VERSION`], or [`WIRE_VERSION`] where the job has steps.
    pub version: u32,
    /// Its id, unique within the tenant.
    pub id: Token,
    /// Whose it is.
    pub tenant: Token,
    /// What to do; never open any more.
    pub task: Task,
    /// What the lane carries.
    pub modality: Modality,
    /// Name in the catalogue.
    pub model: String,
    /// How urgent.
    pub priority: Priority,
    /// The input.
    pub input: Vec<Part>,
    /// Parameters; the seed is fixed.
    pub params: Params,
    /// Whole or streamed.
    pub mode: Mode,
    /// Format of the answer.
    pub format: Format,
    /// Where the answer goes; `None` where only the record is wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
    /// When the door took it, in milliseconds since 1970.
    pub accepted_ms: u64,
    /// After this nothing is computed, in milliseconds since 1970.
    pub deadline_ms: u64,
    /// Its place in a session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Turn>,
    /// Key under which the answer is cached, in hexadecimal; `None` where it may not be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_key: Option<String>,
    /// W3C trace context of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// Its place among the jobs of a pipeline; `None` where it is alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<Steps>,
    /// Where its id comes from.
    #[serde(default, skip_serializing_if = "Origin::is_claimed")]
    pub origin: Origin,
}

/// Where a job's id comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// A client gave it, or a place in INGRESS: another message may have become the same job.
    #[default]
    Claimed,
    /// A door made it for one message alone.
    Door,
}

impl Origin {
    fn is_claimed(&self) -> bool {
        *self == Origin::Claimed
    }
}

/// A job's place in a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// Which session.
    pub session: SessionId,
    /// Number of the turn, from 1, in the order of admission.
    pub number: u64,
}

impl Job {
    /// Whether another job of the same request follows: what it gives is no answer.
    #[must_use]
    pub fn is_step(&self) -> bool {
        self.steps.as_ref().is_some_and(|steps| steps.ahead.is_some())
    }

    /// Its name among all jobs, a step's other than its request's id.
    #[must_use]
    pub fn name(&self) -> Token {
        match &self.steps {
            Some(steps) if self.is_step() => Token::step(&self.id, steps.number),
            _ => self.id.clone(),
        }
    }

    /// The request's place in a session.
    #[must_use]
    pub fn turn(&self) -> Option<&Turn> {
        let ahead = self.steps.as_ref().and_then(|steps| steps.ahead.as_ref());
        self.session.as_ref().or(ahead.and_then(|ahead| ahead.turn.as_ref()))
    }

    /// What the jobs before it gave.
    #[must_use]
    pub fn given(&self) -> &[Given] {
        self.steps.as_ref().map_or(&[], |steps| &steps.given)
    }

    /// As it stands in the queue.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(self.input.iter().map(Part::bytes).sum::<usize>() + ROOM);
        rmp_serde::encode::write_named(&mut bytes, self).expect("a job always encodes");
        bytes.into()
    }

    /// Reads a job; one of a newer major version is refused.
    pub fn decode(bytes: &[u8]) -> Result<Job, Refusal> {
        let job: Job = rmp_serde::from_slice(bytes)
            .map_err(|error| Refusal::new(ErrorCode::Internal, format!("job record: {}", unquoted(&error))))?;
        if job.version > WIRE_VERSION {
            return Err(Refusal::new(
                ErrorCode::Internal,
                format!("job of wire version {}, this worker reads up to {WIRE_VERSION}", job.version),
            ));
        }
        Ok(job)
    }
}
