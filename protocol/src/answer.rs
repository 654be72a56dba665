//! What a job ends with when it goes well.

use serde::{Deserialize, Serialize};

use crate::request::TranscriptFormat;
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
    /// What it cost, with the steps before.
    pub usage: Usage,
    /// Computed now, or before.
    pub cache: CacheOutcome,
    /// What the steps of a pipeline gave before, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Given>,
}

/// What one step of a pipeline gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Given {
    /// Which task was done.
    pub task: String,
    /// By which model.
    pub model: String,
    /// What came out.
    pub output: Output,
    /// What it cost; `None` where the worker that computed it does not say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// What streams: generated text, or what was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streamed {
    /// Generated text.
    Text,
    /// What was said.
    Transcript,
}

impl Streamed {
    /// The word in `Flotilla-Kind`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Streamed::Text => "text",
            Streamed::Transcript => "transcript",
        }
    }

    /// A piece of it as an output.
    #[must_use]
    pub const fn piece(self, text: String) -> Output {
        match self {
            Streamed::Text => Output::Text { text },
            Streamed::Transcript => Output::Transcript {
                text,
                language: String::new(),
                segments: Vec::new(),
                format: TranscriptFormat::Text,
            },
        }
    }
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
        /// All of it, as `format` says: a SubRip or WebVTT document where one was asked for.
        text: String,
        /// ISO 639-1; left out where nothing was said that would tell.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        language: String,
        /// Its parts with times in seconds.
        segments: Vec<Segment>,
        /// How it is written; left out where it is plain text.
        #[serde(default, skip_serializing_if = "TranscriptFormat::is_text")]
        format: TranscriptFormat,
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
    /// Tokens of the rendered prompt, or of all texts that became vectors.
    pub input_tokens: u64,
    /// Tokens generated.
    pub output_tokens: u64,
    /// Pictures looked at.
    #[serde(default, skip_serializing_if = "none")]
    pub images: u64,
    /// Milliseconds of sound heard.
    #[serde(default, skip_serializing_if = "none")]
    pub audio_ms: u64,
}

impl Usage {
    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Usage) -> Usage {
        Usage {
            input_tokens: self.input_tokens.saturating_add(other.input_tokens),
            output_tokens: self.output_tokens.saturating_add(other.output_tokens),
            images: self.images.saturating_add(other.images),
            audio_ms: self.audio_ms.saturating_add(other.audio_ms),
        }
    }
}

fn none(number: &u64) -> bool {
    *number == 0
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

    /// What of it streams; `None` for labels, vectors and scores, which come as a whole.
    #[must_use]
    pub fn streamed(&self) -> Option<Streamed> {
        match self.output.first() {
            Some(Output::Text { .. }) | None => Some(Streamed::Text),
            Some(Output::Transcript { .. }) => Some(Streamed::Transcript),
            Some(Output::Labels { .. } | Output::Embedding { .. } | Output::Score { .. }) => None,
        }
    }

    /// The word in `Flotilla-Kind`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.output.first().map_or("text", Output::kind)
    }
}
