//! An admitted request on its way to a worker. Internal: MessagePack with named fields, unknown fields tolerated.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::WIRE_VERSION;
use crate::error::{ErrorCode, Refusal};
use crate::malformed::unquoted;
use crate::media::Modality;
use crate::request::{Format, Mode, Params, Part, Priority, Task};
use crate::token::{SessionId, Token};

/// An admitted request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// [`WIRE_VERSION`] of the writer.
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
    /// As it stands in the queue.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        rmp_serde::to_vec_named(self).expect("a job always encodes").into()
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
