//! A client's wish. [`Request::decode`] is the one door: what it returns is valid, what it refuses names the field.

mod decode;
mod params;
mod part;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::Refusal;
use crate::token::{ModelRef, SessionId, Token};

pub use decode::Incoming;
pub use params::{LABELS_MAX, MAX_TOKENS_DEFAULT, Params, STOP_BYTES_MAX, STOPS_MAX, Stop, TranscriptFormat};
pub use part::{Blob, Content, Part, Role};

/// Most parts of an input.
pub const PARTS_MAX: usize = 256;
/// Longest body that a door takes; the shipped servers' `max_payload` is 8 MB and headers need room.
pub const BODY_BYTES_MAX: usize = 7 * 1024 * 1024;
/// Deepest nesting of a MessagePack body.
pub const DEPTH_MAX: usize = 16;
/// Greatest deadline.
pub const DEADLINE_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Deadline at `infer` when none is given.
pub const DEADLINE_INFER: Duration = Duration::from_secs(120);

/// What is to be done with the input.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Task {
    /// Answer a conversation.
    Chat,
    /// Continue a text.
    Complete,
    /// Turn into a vector.
    Embed,
    /// Compare two texts.
    Score,
    /// Name what it is.
    Classify,
    /// Write down what is said.
    Transcribe,
    /// A pipeline of the configuration, by name.
    Pipeline(String),
}

impl Task {
    /// The word in envelopes, headers and metrics.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Task::Chat => "chat",
            Task::Complete => "complete",
            Task::Embed => "embed",
            Task::Score => "score",
            Task::Classify => "classify",
            Task::Transcribe => "transcribe",
            Task::Pipeline(name) => name,
        }
    }
}

impl From<String> for Task {
    fn from(name: String) -> Self {
        match name.as_str() {
            "chat" => Task::Chat,
            "complete" => Task::Complete,
            "embed" => Task::Embed,
            "score" => Task::Score,
            "classify" => Task::Classify,
            "transcribe" => Task::Transcribe,
            _ => Task::Pipeline(name),
        }
    }
}

impl From<Task> for String {
    fn from(task: Task) -> String {
        task.as_str().to_owned()
    }
}

/// Which lane of a model a job waits in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Somebody waits.
    Interactive,
    /// The default of the durable door.
    Standard,
    /// Whenever there is room.
    Batch,
}

impl Priority {
    /// All of them, most urgent first.
    pub const ALL: [Priority; 3] = [Priority::Interactive, Priority::Standard, Priority::Batch];

    /// The word in subjects, envelopes and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Priority::Interactive => "interactive",
            Priority::Standard => "standard",
            Priority::Batch => "batch",
        }
    }
}

/// What the response cache may do for a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CachePolicy {
    /// Read and write.
    #[default]
    Use,
    /// Neither.
    Bypass,
    /// Write only.
    Refresh,
}

/// How the answer arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// One message.
    #[default]
    Whole,
    /// Chunks as they come, then the end mark.
    Stream,
}

/// How bodies are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// The natural plain body: text is text, media is media.
    Raw,
    /// JSON.
    Json,
    /// MessagePack with named fields.
    Msgpack,
}

impl Format {
    /// The word in metrics and records.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Json => "json",
            Format::Msgpack => "msgpack",
        }
    }
}

/// A valid request. What a client left open is `None` and decided by rules and defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// At least one part.
    pub input: Vec<Part>,
    /// What to do.
    pub task: Option<Task>,
    /// By which model.
    pub model: Option<ModelRef>,
    /// Within which session.
    pub session: Option<SessionId>,
    /// Whole or streamed.
    pub mode: Mode,
    /// How urgent.
    pub priority: Option<Priority>,
    /// From the door's receipt; at most [`DEADLINE_MAX`].
    pub deadline: Option<Duration>,
    /// What the cache may do; `None` leaves it to rules.
    pub cache: Option<CachePolicy>,
    /// Idempotency key, which becomes the job's id.
    pub id: Option<Token>,
    /// Parameters of the task.
    pub params: Params,
    /// Format of the answer.
    pub format: Format,
    /// How a transcript is written where `params` do not say, as `Accept` has it: a wish for the answer's form, which
    /// does not make another request of the same body.
    pub subtitles: Option<TranscriptFormat>,
}

impl Request {
    /// Decodes a message. Pure, bounded by [`BODY_BYTES_MAX`], [`PARTS_MAX`] and [`DEPTH_MAX`].
    pub fn decode(incoming: &Incoming<'_>) -> Result<Request, Refusal> {
        decode::decode(incoming)
    }
}

/// Writes a request as an envelope of `format`: what a client does. Raw is written as JSON.
pub fn encode(request: &Request, format: Format) -> bytes::Bytes {
    decode::encode(request, format)
}
