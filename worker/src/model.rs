//! The seam to the engines: what the worker asks of them, in the worker's words. Only [`crate::native`] knows their own
//! handles, so that tests run the whole worker on [`crate::fake`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::encode::{Input, Output, Words};
use engine::plan::TokenId;
use engine::prefix::Scope;
use engine::sampler::Sampling;
use protocol::Refusal;
use protocol::answer::{Finish, Usage};
use protocol::heartbeat;
use protocol::media::Modality;
use protocol::request::{Role, Task};
use tokio::sync::mpsc::UnboundedSender;

use crate::metrics::Meters;
use crate::reader::Stop;

/// A model in memory, with the engine that runs it.
#[derive(Clone)]
pub struct Model {
    /// As heartbeats name it.
    pub loaded: heartbeat::Loaded,
    /// What its lanes carry.
    pub modality: Modality,
    /// What it does.
    pub tasks: Vec<Task>,
    /// What its outputs look like.
    pub traits: Traits,
    /// What is measured of its jobs.
    pub meters: Meters,
    /// What runs it.
    pub engine: Arc<dyn Engine>,
}

/// What there is to know of an encoder's outputs; nothing of a model that writes text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traits {
    /// Numbers of a vector.
    pub width: Option<usize>,
    /// Names of its classes, in the order of their probabilities.
    pub labels: Arc<[String]>,
    /// What the cosine of a picture and a text is multiplied with to tell texts apart; `None` where they share no space.
    pub likeness: Option<f32>,
}

/// What a job asks of a model.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// Messages of a conversation, the assistant to speak next.
    Chat(Vec<(Role, String)>),
    /// A text to be continued.
    Text(String),
    /// Texts that become vectors.
    Texts {
        /// At least one.
        texts: Vec<String>,
        /// What becomes of those that are too long.
        long: Long,
    },
    /// Pictures that become vectors, or probabilities of classes.
    Pictures {
        /// At least one: files as they came.
        pictures: Vec<Bytes>,
        /// Texts to compare them with; none where the model has its own classes.
        texts: Vec<String>,
    },
    /// Sound to be written down.
    Sound {
        /// A file as it came.
        data: Bytes,
        /// ISO 639-1 code of the speech; `None` finds out.
        language: Option<String>,
        /// Whether words are timed.
        words: Words,
    },
}

/// What becomes of a text that is longer than a model reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Long {
    /// It is refused.
    Refused,
    /// Its end is cut off.
    Cut,
}

impl Prompt {
    /// Its length.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let sum = |texts: &[String]| texts.iter().map(String::len).sum::<usize>();
        match self {
            Prompt::Chat(messages) => messages.iter().map(|(_, text)| text.len()).sum(),
            Prompt::Text(text) => text.len(),
            Prompt::Texts { texts, .. } => sum(texts),
            Prompt::Pictures { pictures, texts } => pictures.iter().map(Bytes::len).sum::<usize>() + sum(texts),
            Prompt::Sound { data, .. } => data.len(),
        }
    }

    /// Whether it has to be decoded, which takes far more memory than its bytes.
    #[must_use]
    pub fn has_media(&self) -> bool {
        matches!(self, Prompt::Pictures { .. } | Prompt::Sound { .. })
    }
}

/// A prompt as a model reads it.
#[derive(Clone, Debug, PartialEq)]
pub enum Reading {
    /// Tokens to be continued.
    Tokens(Vec<TokenId>),
    /// What an encoder computes from.
    Inputs {
        /// One for each text or picture, in order; of texts to compare pictures with, after those.
        inputs: Vec<Input>,
        /// What they count as.
        usage: Usage,
    },
}

/// A job as an engine takes it.
#[derive(Clone, Debug)]
pub struct Work {
    /// The caller's name for it, unique among the jobs in the engine.
    pub key: u64,
    /// What is to be computed.
    pub ask: Ask,
    /// From then on it is not computed any more.
    pub deadline: Instant,
}

/// What is to be computed.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Text that follows.
    Generate(Generate),
    /// An output for each of these, of which there is at least one.
    Encode(Vec<Input>),
}

/// Text that follows a prompt.
#[derive(Clone, Debug)]
pub struct Generate {
    /// The prompt.
    pub tokens: Vec<TokenId>,
    /// Most tokens of the answer.
    pub max_tokens: usize,
    /// How they are chosen.
    pub sampling: Sampling,
    /// The answer ends before the first of these.
    pub stop: Vec<String>,
    /// With whose jobs it may share what begins the same way: those of its tenant.
    pub scope: Scope,
}

/// What happens to a job in the engine. Exactly one [`Event::Ended`], and nothing after it.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// More of its answer: complete characters, never empty.
    Chunk(String),
    /// It is over.
    Ended(End),
}

/// How a job ended in the engine.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// The generated text is complete.
    Done {
        /// What completed it.
        finish: Finish,
        /// Tokens of the prompt.
        input_tokens: usize,
        /// Tokens sampled.
        output_tokens: usize,
    },
    /// An output for each input, in order.
    Encoded(Vec<Output>),
    /// By [`Cancel::Client`].
    Cancelled,
    /// Its deadline passed.
    Deadline,
    /// The engine stops.
    Stopped,
    /// The model cannot run it, and never will: a sentence for its sender.
    Refused(String),
    /// The model failed.
    Failed(String),
}

/// Why a job is taken out of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancel {
    /// Somebody cancelled it.
    Client,
    /// The worker stops.
    Stopping,
}

/// What an engine says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Moves while it computes, within a long step too.
    pub progress: u64,
    /// Jobs in it, running or waiting.
    pub jobs: usize,
    /// Duration of recent steps.
    pub step: Duration,
    /// Whether it runs at all.
    pub life: Life,
}

/// Whether an engine runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Life {
    /// It does.
    #[default]
    Running,
    /// Its thread has ended, and will not run again.
    Ended,
}

/// An engine with its model. Its calls return at once, save [`Engine::read`], which takes as long as its prompt is.
pub trait Engine: Send + Sync {
    /// A prompt as the model reads it: tokens of texts, pixels of pictures, samples of sound. Pictures and sounds are
    /// given up soon once `stop` is asked for.
    fn read(&self, prompt: &Prompt, stop: &Stop) -> Result<Reading, Refusal>;
    /// Takes a job; its events go to `events`. A refusal that passes means: not now.
    fn submit(&self, work: Work, events: UnboundedSender<Event>) -> Result<(), Refusal>;
    /// Ends a job within a step; does nothing for one that is over.
    fn cancel(&self, key: u64, why: Cancel);
    /// What it is doing.
    fn stats(&self) -> Stats;
    /// Ends the engine; what is in gets [`End::Stopped`].
    fn stop(&self);
}
