//! The one final record of a job, create-once in RESULTS, and the record of a client's own id.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::WIRE_VERSION;
use crate::answer::{Answer, CacheOutcome, Given};
use crate::error::{ErrorCode, Refusal};
use crate::header::{self, Headers};
use crate::job::Job;
use crate::malformed::unquoted;
use crate::request::{Format, Part};
use crate::token::{SessionId, Token};

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

/// What every dispatcher is told of a record as it is stored: who waits for it reads it then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Which job.
    pub job: Token,
    /// Whose.
    pub tenant: Token,
    /// How.
    pub how: How,
}

/// How a job ended, without what it gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// Well.
    Done {
        /// The model that answered.
        model: String,
        /// Whether it had to compute.
        cache: CacheOutcome,
    },
    /// With a code.
    Failed,
    /// Whoever stored it does not say.
    Unsaid,
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
        rmp_serde::to_vec_named(self).expect("a record always encodes").into()
    }

    /// Reads a record.
    pub fn decode(bytes: &[u8]) -> Result<Record, Refusal> {
        rmp_serde::from_slice(bytes).map_err(|error| malformed("result record", &error))
    }

    /// What its message says beside it: see [`Ended::read`].
    #[must_use]
    pub fn headers(&self) -> Headers {
        match &self.end {
            End::Done(answer) => Headers::new()
                .with(header::STATUS, header::DONE)
                .with(header::MODEL, &answer.model)
                .with(header::CACHE, answer.cache.as_str()),
            End::Failed(_) => Headers::new().with(header::STATUS, header::FAILED),
        }
    }
}

impl Ended {
    /// Reads it from the headers of a job's record, of which `said` gives one by its name.
    #[must_use]
    pub fn read<'a>((tenant, job): (Token, Token), said: impl Fn(&'static str) -> Option<&'a str>) -> Self {
        let done = || {
            let model = said(header::MODEL)?.to_owned();
            Some(How::Done { model, cache: CacheOutcome::parse(said(header::CACHE)?)? })
        };
        let how = match said(header::STATUS) {
            Some(header::DONE) => done(),
            Some(header::FAILED) => Some(How::Failed),
            _ => None,
        };
        Self { job, tenant, how: how.unwrap_or(How::Unsaid) }
    }
}

impl From<&Record> for Ended {
    fn from(record: &Record) -> Self {
        let how = match &record.end {
            End::Done(answer) => How::Done { model: answer.model.clone(), cache: answer.cache },
            End::Failed(_) => How::Failed,
        };
        Self { job: record.job.clone(), tenant: record.tenant.clone(), how }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::{Finish, Usage};

    fn record(end: End) -> Record {
        Record {
            version: WIRE_VERSION,
            job: Token::parse("job", "j").unwrap(),
            tenant: Token::default_tenant(),
            format: Format::Raw,
            settled_ms: 1,
            end,
            session: None,
            cache_key: None,
        }
    }

    #[test]
    fn headers_say_how_a_job_ended() {
        let answer = Answer {
            job: Token::parse("job", "j").unwrap(),
            model: "m".into(),
            task: "chat".into(),
            output: Vec::new(),
            finish_reason: Finish::Stop,
            usage: Usage::default(),
            cache: CacheOutcome::Hit,
            steps: Vec::new(),
        };
        let failed = End::Failed(Refusal::new(ErrorCode::Internal, ""));
        for record in [record(End::Done(answer)), record(failed)] {
            let key = (record.tenant.clone(), record.job.clone());
            let headers = record.headers();
            assert_eq!(Ended::read(key, |name| headers.get(name)), Ended::from(&record));
        }
    }

    #[test]
    fn what_headers_do_not_say_is_unsaid() {
        let key = || (Token::default_tenant(), Token::parse("job", "j").unwrap());
        let read = |headers: Headers| Ended::read(key(), |name| headers.get(name)).how;
        assert_eq!(read(Headers::new()), How::Unsaid);
        assert_eq!(read(Headers::new().with(header::STATUS, header::DONE)), How::Unsaid, "of which model?");
        assert_eq!(read(Headers::new().with(header::STATUS, header::FAILED)), How::Failed);
    }
}
