//! The seam to the engine: what the worker asks of it, in the worker's words. Only [`crate::native`] knows the engine's
//! own types, so that tests run the whole worker on [`crate::fake`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::plan::TokenId;
use engine::sampler::Sampling;
use protocol::Refusal;
use protocol::answer::Finish;
use protocol::heartbeat;
use protocol::media::Modality;
use protocol::request::{Role, Task};
use tokio::sync::mpsc::UnboundedSender;

/// A model in memory, with the engine that runs it.
#[derive(Clone)]
pub struct Model {
    /// As heartbeats name it.
    pub loaded: heartbeat::Loaded,
    /// What its lanes carry.
    pub modality: Modality,
    /// What it does.
    pub tasks: Vec<Task>,
    /// What runs it.
    pub engine: Arc<dyn Engine>,
}

/// What a model computes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Messages of a conversation, the assistant to speak next.
    Chat(Vec<(Role, String)>),
    /// A text to be continued.
    Text(String),
}

impl Prompt {
    /// Its length.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Prompt::Chat(messages) => messages.iter().map(|(_, text)| text.len()).sum(),
            Prompt::Text(text) => text.len(),
        }
    }
}

/// A job as an engine takes it.
#[derive(Clone, Debug)]
pub struct Work {
    /// The caller's name for it, unique among the jobs in the engine.
    pub key: u64,
    /// The prompt.
    pub tokens: Vec<TokenId>,
    /// Most tokens of the answer.
    pub max_tokens: usize,
    /// How they are chosen.
    pub sampling: Sampling,
    /// The answer ends before the first of these.
    pub stop: Vec<String>,
    /// From then on it is not computed any more.
    pub deadline: Instant,
}

/// What happens to a job in the engine. Exactly one [`Event::Ended`], and nothing after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is in a step for the first time.
    Started,
    /// More of its answer: complete characters, never empty.
    Chunk(String),
    /// It is over.
    Ended(End),
}

/// How a job ended in the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The answer is complete.
    Done {
        /// What completed it.
        finish: Finish,
        /// Tokens of the prompt.
        input_tokens: usize,
        /// Tokens sampled.
        output_tokens: usize,
    },
    /// By [`Cancel::Client`].
    Cancelled,
    /// Its deadline passed.
    Deadline,
    /// The engine stops.
    Stopped,
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

/// An engine with its model. Its calls return at once, save [`Engine::tokens`], which takes as long as the text is.
pub trait Engine: Send + Sync {
    /// A prompt as the model's tokens.
    fn tokens(&self, prompt: &Prompt) -> Result<Vec<TokenId>, Refusal>;
    /// Takes a job; its events go to `events`. A refusal that passes means: not now.
    fn submit(&self, work: Work, events: UnboundedSender<Event>) -> Result<(), Refusal>;
    /// Ends a job within a step; does nothing for one that is over.
    fn cancel(&self, key: u64, why: Cancel);
    /// What it is doing.
    fn stats(&self) -> Stats;
    /// Ends the engine; what is in gets [`End::Stopped`].
    fn stop(&self);
}
