//! What the worker's program says, as JSON, of a model file whose weights it rounded.

use serde::{Deserialize, Serialize};

/// What became of a model file.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Tensors whose weights are of a byte.
    pub rounded: usize,
    /// Tensors that are as they were.
    pub kept: usize,
    /// Tensors of normalisations that are in the rounded ones.
    pub folded: usize,
    /// Size of the file as it was.
    pub bytes_before: u64,
    /// Size of the new one.
    pub bytes_after: u64,
    /// Of all rounded weights: root of the mean square of what changed, over theirs.
    pub error: f64,
    /// Of the tensor where it is greatest.
    pub worst: Worst,
    /// What it costs in answers.
    pub loss: Loss,
}

/// The tensor that lost most.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Worst {
    /// Its name.
    pub tensor: String,
    /// As [`Report::error`], of its weights alone.
    pub error: f64,
}

/// How far answers are from those of the file as it was.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "of", rename_all = "snake_case")]
pub enum Loss {
    /// Cosines of both directions of an input.
    Directions {
        /// How many were asked.
        inputs: usize,
        /// The least cosine.
        least: f64,
        /// Their mean.
        mean: f64,
    },
    /// Probabilities of classes.
    Labels {
        /// How many were asked.
        inputs: usize,
        /// The greatest difference of a probability.
        difference: f64,
        /// Inputs whose likeliest class is the same.
        same: usize,
        /// How much less likely before, at most, those classes were that are the likeliest now and were not.
        margin: f64,
    },
    /// Words of a sentence.
    Words {
        /// As they were written before.
        words: usize,
        /// Whether they are the same.
        same: bool,
    },
}
