//! What goes into the engine and what comes out.

use crate::plan::TokenId;
use crate::prefix::Scope;
use crate::sampler::Sampling;
use std::time::Instant;

/// The caller's name for a job. Whoever submits keeps it unique among the jobs in the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct JobKey(pub u64);

/// A prompt to continue.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its name in events.
    pub key: JobKey,
    /// The prompt.
    pub tokens: Vec<TokenId>,
    /// Outputs it may have.
    pub max_tokens: usize,
    /// How they are chosen.
    pub sampling: Sampling,
    /// The answer ends before the first of these; empty ones are ignored.
    pub stop: Vec<String>,
    /// From then on it is not computed any more.
    pub deadline: Option<Instant>,
    /// With whose jobs it may share what begins the same way.
    pub scope: Scope,
}

/// Why a job is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// As many jobs are in as may be.
    #[error("the engine has as many jobs as it takes")]
    Full,
    /// The engine does not run, and will not run again.
    #[error("the engine has stopped")]
    Stopped,
    /// It could never fit, even alone.
    #[error("prompt and answer may have {limit} tokens together, not {tokens}")]
    TooLong {
        /// Tokens of the prompt, and those wanted.
        tokens: usize,
        /// Tokens that fit.
        limit: usize,
    },
    /// Nothing can be computed for it.
    #[error("{0}")]
    Invalid(&'static str),
}

/// Why a job is cancelled: it says which [`End`] it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancel {
    /// Its client does not want it any more.
    Client,
    /// Its time is over by someone else's clock.
    Deadline,
    /// Whoever runs the engine is about to stop.
    Stopping,
}

/// What happens to a job. Of each job there is exactly one [`Event::Ended`], and nothing after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It is in a step for the first time.
    Started {
        /// Whose.
        key: JobKey,
        /// Tokens of the prompt that need not be computed.
        cached_tokens: usize,
    },
    /// More of its answer: complete characters, never empty, and never any of a stop string.
    Chunk {
        /// Whose.
        key: JobKey,
        /// What follows the chunks before.
        text: String,
    },
    /// It is over.
    Ended {
        /// Whose.
        key: JobKey,
        /// How.
        end: End,
    },
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The answer is complete.
    Done {
        /// What completed it.
        finish: Finish,
        /// Tokens sampled, one that ended the text included.
        output_tokens: usize,
        /// Tokens of the prompt.
        input_tokens: usize,
    },
    /// By [`Cancel::Client`].
    Cancelled,
    /// Its deadline passed.
    Deadline,
    /// The engine was stopped.
    Stopped,
    /// The model failed in a step that this job was part of.
    Failed(String),
}

/// What completed an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model's own end, or a stop string.
    Stop,
    /// It has all the tokens it may have.
    Length,
}

impl Cancel {
    /// What the job is told.
    pub(super) fn end(self) -> End {
        match self {
            Self::Client => End::Cancelled,
            Self::Deadline => End::Deadline,
            Self::Stopping => End::Stopped,
        }
    }
}
