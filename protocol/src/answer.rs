//! What a job ends with when it goes well.

use serde::{Deserialize, Serialize};

use crate::token::Token;

/// A whole answer, as records hold it and clients get it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Which job.
    pub job: Token,
    /// Which model answered.
    pub model: String,
    /// Which task was done.
    pub task: String,
    /// What came out.
    pub output: Vec<Output>,
    /// Why it ended.
    pub finish_reason: Finish,
    /// What it cost.
    pub usage: Usage,
    /// Computed now, or before.
    pub cache: CacheOutcome,
}

/// One piece of output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Output {
    /// Generated text.
    Text {
        /// All of it.
        text: String,
    },
    /// What was said.
    Transcript {
        /// All of it.
        text: String,
        /// ISO 639-1.
        language: String,
        /// Its parts with times in seconds.
        segments: Vec<Segment>,
    },
    /// What it is.
    Labels {
        /// Likeliest first.
        labels: Vec<Label>,
    },
    /// A vector.
    Embedding {
        /// As wide as the model or the request says.
        vector: Vec<f32>,
    },
    /// How alike.
    Score {
        /// Cosine, or the model's own measure.
        score: f32,
    },
}

impl Output {
    /// The word in `Flotilla-Kind`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Output::Text { .. } => "text",
            Output::Transcript { .. } => "transcript",
            Output::Labels { .. } => "labels",
            Output::Embedding { .. } => "embedding",
            Output::Score { .. } => "score",
        }
    }
}

/// A part of a transcript.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// Seconds from the start.
    pub start: f32,
    /// Seconds from the start.
    pub end: f32,
    /// What was said.
    pub text: String,
    /// Its words, where asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub words: Vec<Word>,
}

/// A word of a segment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Word {
    /// Seconds from the start.
    pub start: f32,
    /// Seconds from the start.
    pub end: f32,
    /// The word.
    pub text: String,
}

/// A label with its probability.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Label {
    /// Name.
    pub label: String,
    /// Probability.
    pub score: f32,
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model or a stop string ended it.
    Stop,
    /// `max_tokens` ended it.
    Length,
}

impl Finish {
    /// The word in `Flotilla-Finish`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
        }
    }
}

/// What an answer cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the rendered prompt.
    pub input_tokens: u64,
    /// Tokens generated.
    pub output_tokens: u64,
}

/// Whether an answer came from the response cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheOutcome {
    /// It was there.
    Hit,
    /// It was computed.
    #[default]
    Miss,
}

impl CacheOutcome {
    /// The word in `Flotilla-Cache`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            CacheOutcome::Hit => "hit",
            CacheOutcome::Miss => "miss",
        }
    }
}

impl Answer {
    /// The text of the first output, for transcripts and generated text.
    #[must_use]
    pub fn text(&self) -> &str {
        match self.output.first() {
            Some(Output::Text { text } | Output::Transcript { text, .. }) => text,
            _ => "",
        }
    }

    /// The word in `Flotilla-Kind`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.output.first().map_or("text", Output::kind)
    }
}
