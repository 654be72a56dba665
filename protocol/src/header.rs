//! Names of headers, and a small map of them that knows no client library.

use std::borrow::Cow;

/// `text/plain`, `application/json`, `application/msgpack`, or the type of raw media.
pub const CONTENT_TYPE: &str = "Content-Type";
/// Format of the answer, where it should differ from the request's.
pub const ACCEPT: &str = "Accept";
/// Task of a request: see [`crate::request::Task`].
pub const TASK: &str = "Flotilla-Task";
/// Model of a request; the model that answered in a reply.
pub const MODEL: &str = "Flotilla-Model";
/// Session of a request.
pub const SESSION: &str = "Flotilla-Session";
/// `true` or `false`.
pub const STREAM: &str = "Flotilla-Stream";
/// `interactive`, `standard` or `batch`.
pub const PRIORITY: &str = "Flotilla-Priority";
/// Milliseconds from the door's receipt.
pub const DEADLINE_MS: &str = "Flotilla-Deadline-Ms";
/// `use`, `bypass` or `refresh` in a request; `hit` or `miss` in a reply.
pub const CACHE: &str = "Flotilla-Cache";
/// Idempotency key of a request.
pub const ID: &str = "Flotilla-Id";
/// Where answers go, when not to the request's own inbox.
pub const REPLY_TO: &str = "Flotilla-Reply-To";
/// `<bucket>/<object>` of a body that was put into the intake object store.
pub const BODY: &str = "Flotilla-Body";
/// Job id, on every reply.
pub const JOB: &str = "Flotilla-Job";
/// `accepted`, `chunk`, `done` or `failed`.
pub const STATUS: &str = "Flotilla-Status";
/// [`STATUS`] of an answer.
pub const DONE: &str = "done";
/// [`STATUS`] of a failure.
pub const FAILED: &str = "failed";
/// `text`, `transcript` or `labels`: what a chunk carries.
pub const KIND: &str = "Flotilla-Kind";
/// Which attempt a frame belongs to, from 0.
pub const ATTEMPT: &str = "Flotilla-Attempt";
/// Number of a chunk within its attempt, from 0.
pub const SEQ: &str = "Flotilla-Seq";
/// Why generation ended, on the end mark.
pub const FINISH: &str = "Flotilla-Finish";
/// Tokens of the rendered prompt, on the end mark.
pub const INPUT_TOKENS: &str = "Flotilla-Input-Tokens";
/// Tokens generated, on the end mark.
pub const OUTPUT_TOKENS: &str = "Flotilla-Output-Tokens";
/// SHA-256 of the whole streamed text in hexadecimal, on the end mark.
pub const SHA256: &str = "Flotilla-Sha256";
/// Why a job stands in the dead-letter stream.
pub const REASON: &str = "Flotilla-Reason";
/// `CODE: message`, as NATS micro services report errors.
pub const SERVICE_ERROR: &str = "Nats-Service-Error";
/// The HTTP-like number of an error.
pub const SERVICE_ERROR_CODE: &str = "Nats-Service-Error-Code";
/// W3C trace context, lower case as that standard has it.
pub const TRACEPARENT: &str = "traceparent";
/// Every header that a client may give starts with this, or is named above.
pub const PREFIX: &str = "Flotilla-";

/// Most headers that a request may have.
pub const COUNT_MAX: usize = 64;
/// Most bytes of all header names and values of a request.
pub const BYTES_MAX: usize = 8 * 1024;

/// Headers in order. Lookup ignores case; the first of equal names counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(Name, String)>);

/// A name of our own is the constant itself.
type Name = Cow<'static, str>;

impl Headers {
    /// No headers.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds one.
    pub fn insert(&mut self, name: impl Into<Name>, value: impl Into<String>) {
        self.0.push((name.into(), value.into()));
    }

    /// The same, for building in one expression.
    #[must_use]
    pub fn with(mut self, name: impl Into<Name>, value: impl ToString) -> Self {
        self.insert(name, value.to_string());
        self
    }

    /// The first value of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, &str)> {
        self.0.iter().map(|(name, value)| (name, value.as_str()))
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(String, String)> for Headers {
    fn from_iter<T: IntoIterator<Item = (String, String)>>(pairs: T) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value)).collect())
    }
}
