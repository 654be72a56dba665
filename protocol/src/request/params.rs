//! Parameters of a task, with their ranges. Out of range is refused, never clamped.

use serde::{Deserialize, Serialize};

use crate::error::Refusal;

/// Most stop strings.
pub const STOPS_MAX: usize = 16;
/// Longest stop string in bytes.
pub const STOP_BYTES_MAX: usize = 256;
/// Most labels of a zero-shot classification.
pub const LABELS_MAX: usize = 256;
/// Tokens of an answer when none are named.
pub const MAX_TOKENS_DEFAULT: u32 = 256;

/// One stop string or several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Stop {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// What a client may set; `None` is the default named in the contract.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Params {
    /// 1..=context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// 0..=2; 0 is greedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// (0, 1].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f32>,
    /// 0..=1000; 0 keeps all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u32>,
    /// 0..=1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f32>,
    /// (0, 10].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f32>,
    /// The answer ends before any of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
    /// Key of the random numbers; the dispatcher chooses one where it is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Embedding: width of the vector.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<u32>,
    /// Embedding: cut a too long text instead of refusing it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub truncate: Option<bool>,
    /// Classification: the caller's own labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<String>>,
    /// Classification: how many labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top: Option<u32>,
    /// Transcription: language of the speech.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    /// Transcription: `text`, `json`, `srt` or `vtt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<TranscriptFormat>,
    /// Transcription: times of words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub words: Option<bool>,
}

/// How a transcript is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TranscriptFormat {
    /// Plain text.
    #[default]
    Text,
    /// Segments with times.
    Json,
    /// SubRip.
    Srt,
    /// WebVTT.
    Vtt,
}

impl TranscriptFormat {
    /// Whether it is plain text.
    #[must_use]
    pub fn is_text(&self) -> bool {
        *self == TranscriptFormat::Text
    }

    /// The format that a MIME type names.
    #[must_use]
    pub fn by_mime(mime: &str) -> Option<TranscriptFormat> {
        match mime {
            "text/vtt" => Some(TranscriptFormat::Vtt),
            "application/x-subrip" => Some(TranscriptFormat::Srt),
            _ => None,
        }
    }
}

impl Params {
    /// Refuses what is out of range.
    pub fn check(&self) -> Result<(), Refusal> {
        range("max_tokens", self.max_tokens.map(f64::from), |v| v >= 1.0, "at least 1")?;
        range("temperature", self.temperature.map(f64::from), |v| (0.0..=2.0).contains(&v), "0 to 2")?;
        range("top_p", self.top_p.map(f64::from), |v| v > 0.0 && v <= 1.0, "above 0, at most 1")?;
        range("top_k", self.top_k.map(f64::from), |v| v <= 1000.0, "0 to 1000")?;
        range("min_p", self.min_p.map(f64::from), |v| (0.0..=1.0).contains(&v), "0 to 1")?;
        range(
            "repetition_penalty",
            self.repetition_penalty.map(f64::from),
            |v| v > 0.0 && v <= 10.0,
            "above 0, at most 10",
        )?;
        range("dimensions", self.dimensions.map(f64::from), |v| (1.0..=65_536.0).contains(&v), "1 to 65536")?;
        range("top", self.top.map(f64::from), |v| (1.0..=1000.0).contains(&v), "1 to 1000")?;
        self.check_strings()
    }

    fn check_strings(&self) -> Result<(), Refusal> {
        let stops = self.stops();
        if stops.len() > STOPS_MAX || stops.iter().any(|stop| stop.is_empty() || stop.len() > STOP_BYTES_MAX) {
            return Err(Refusal::invalid(format!(
                "params.stop must be at most {STOPS_MAX} texts of 1 to {STOP_BYTES_MAX} bytes"
            )));
        }
        let labels = self.labels.as_deref().unwrap_or_default();
        if labels.len() > LABELS_MAX || labels.iter().any(|label| label.is_empty() || label.len() > STOP_BYTES_MAX) {
            return Err(Refusal::invalid(format!(
                "params.labels must be at most {LABELS_MAX} texts of 1 to {STOP_BYTES_MAX} bytes"
            )));
        }
        if self.labels.as_ref().is_some_and(Vec::is_empty) {
            return Err(Refusal::invalid("params.labels is empty: leave it out for the model's own labels"));
        }
        let code = |language: &String| language.len() == 2 && language.bytes().all(|byte| byte.is_ascii_lowercase());
        if self.language.as_ref().is_some_and(|language| !code(language)) {
            return Err(Refusal::invalid("params.language must be an ISO 639-1 code of two small letters, such as en"));
        }
        Ok(())
    }

    /// The stop strings.
    #[must_use]
    pub fn stops(&self) -> &[String] {
        match &self.stop {
            None => &[],
            Some(Stop::One(stop)) => std::slice::from_ref(stop),
            Some(Stop::Many(stops)) => stops,
        }
    }

    /// Whether the same input always gives the same answer.
    #[must_use]
    pub fn deterministic(&self) -> bool {
        self.temperature.unwrap_or(0.0) == 0.0 || self.seed.is_some()
    }
}

fn range(name: &str, value: Option<f64>, within: impl Fn(f64) -> bool, allowed: &str) -> Result<(), Refusal> {
    match value {
        Some(value) if !within(value) => Err(Refusal::invalid(format!("params.{name} must be {allowed}"))),
        _ => Ok(()),
    }
}
