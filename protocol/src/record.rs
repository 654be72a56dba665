//! The one final record of a job, create-once in RESULTS, and the record of a client's own id.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::WIRE_VERSION;
use crate::answer::{Answer, Given};
use crate::error::{ErrorCode, Refusal};
use crate::job::Job;
use crate::malformed::unquoted;
use crate::request::{Format, Part};
use crate::token::{SessionId, Token};

/// Most records have room in this.
const ROOM: usize = 1024;

/// How a job ended. Sessions and caches can be rebuilt from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`crate::WIRE_VERSION`] of the writer.
    pub version: u32,
    /// Which job.
    pub job: Token,
    /// Whose.
    pub tenant: Token,
    /// The submitter's format.
    pub format: Format,
    /// When it was written, in milliseconds since 1970.
    pub settled_ms: u64,
    /// How it ended.
    pub end: End,
    /// Its place in a session, with both turns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionTurn>,
    /// Key under which the answer is cached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_key: Option<String>,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Well.
    Done(Answer),
    /// With a code.
    Failed(Refusal),
}

/// A turn of a session: what was asked and, where it went well, what was answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionTurn {
    /// Which session.
    pub session: SessionId,
    /// Number of the turn.
    pub number: u64,
    /// The request's input.
    pub input: Vec<Part>,
    /// The answer's text; `None` where there is none, and the turn leaves no trace in the conversation.
    pub answer: Option<String>,
}

/// What a step of a pipeline gave, in STEPS until the next job stands in the queue. It holds all that the next job needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// [`WIRE_VERSION`] of the writer.
    pub version: u32,
    /// The job that is done, without its input, which is used up.
    pub job: Job,
    /// What it gave.
    pub given: Given,
    /// When it was written, in milliseconds since 1970.
    pub settled_ms: u64,
}

/// What a client's id was first used for: the same id with another body is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRecord {
    /// BLAKE3 of the body and of the headers that change its meaning, in hexadecimal.
    pub body: String,
    /// Until when its job may run, in milliseconds since 1970.
    pub deadline_ms: u64,
    /// Sequence in INGRESS of the message that claimed it; `None` where it came through another door.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<u64>,
}

impl Record {
    /// As it stands in RESULTS.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(ROOM);
        rmp_serde::encode::write_named(&mut bytes, self).expect("a record always encodes");
        bytes.into()
    }

    /// Reads a record.
    pub fn decode(bytes: &[u8]) -> Result<Record, Refusal> {
        rmp_serde::from_slice(bytes).map_err(|error| malformed("result record", &error))
    }
}

impl StepRecord {
    /// As it stands in STEPS.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        rmp_serde::to_vec_named(self).expect("a step record always encodes").into()
    }

    /// Reads a record; one of a newer version is `unavailable`, since a newer reader knows it.
    pub fn decode(bytes: &[u8]) -> Result<StepRecord, Refusal> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let peek: Version = rmp_serde::from_slice(bytes).map_err(|error| malformed("step record", &error))?;
        if peek.version > WIRE_VERSION {
            return Err(Refusal::new(ErrorCode::Unavailable, "the step record is of a newer wire version"));
        }
        rmp_serde::from_slice(bytes).map_err(|error| malformed("step record", &error))
    }
}

impl IdRecord {
    /// As it stands in IDS.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        rmp_serde::to_vec_named(self).expect("an id record always encodes").into()
    }

    /// Reads a record.
    pub fn decode(bytes: &[u8]) -> Result<IdRecord, Refusal> {
        rmp_serde::from_slice(bytes).map_err(|error| malformed("id record", &error))
    }
}

fn malformed(what: &str, error: &rmp_serde::decode::Error) -> Refusal {
    Refusal::new(ErrorCode::Internal, format!("{what}: {}", unquoted(error)))
}
