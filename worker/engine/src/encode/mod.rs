//! The engine of encoders: inputs of many jobs in, vectors, labels and transcripts out, on one OS thread of its own.
//!
//! A job is a list of inputs. Inputs of all jobs are batched by what they cost, similar shapes together; an encoder
//! takes a batch and says of each input what became of it: an output, or another turn (the next window of a long clip).

pub mod batch;
mod driver;
mod engine;
mod load;
mod meters;
mod picturing;
#[cfg(test)]
mod tests;

pub use engine::{Engine, Stats};
pub use load::{Info, Loaded, Settings, load, load_on, needs, needs_on_card, processor};

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use crate::Error;
use crate::plan::TokenId;
pub use picturing::{Picturing, Resizing};

/// What an encoder computes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A text, with the tokens that the model wants around it.
    Tokens(Vec<TokenId>),
    /// A picture as the model was trained to see it.
    Pixels(Pixels),
    /// Recorded sound.
    Clip(Clip),
}

/// A picture: (height, width, channels), normalised.
#[derive(Clone, Debug, PartialEq)]
pub struct Pixels {
    /// Rows of the picture.
    pub height: usize,
    /// Columns of the picture.
    pub width: usize,
    /// The numbers.
    pub numbers: Vec<f32>,
}

/// Sound, and how it is to be written down.
#[derive(Clone, Debug, PartialEq)]
pub struct Clip {
    /// One channel, 16,000 samples a second, -1 to 1.
    pub samples: Arc<[f32]>,
    /// ISO 639-1 code of the speech; `None` finds out.
    pub language: Option<String>,
    /// Whether words are timed.
    pub words: Words,
}

/// Whether words are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Words {
    /// Only segments are.
    Untimed,
    /// They are.
    Timed,
}

/// What an encoder makes of an input.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// A direction in the model's space, of length 1.
    Vector(Vec<f32>),
    /// A probability for each of the model's classes.
    Classes(Vec<f32>),
    /// What was said.
    Transcript(Transcript),
}

/// What was said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transcript {
    /// ISO 639-1 code.
    pub language: String,
    /// In order; their texts in a row are the whole text.
    pub segments: Vec<Segment>,
}

/// A part of a transcript.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// Seconds from the clip's beginning.
    pub start: f32,
    /// Seconds from the clip's beginning.
    pub end: f32,
    /// As the model wrote it, leading space included.
    pub text: String,
    /// Timed words, where asked for.
    pub words: Vec<Word>,
}

/// A word of a segment.
#[derive(Clone, Debug, PartialEq)]
pub struct Word {
    /// Seconds from the clip's beginning.
    pub start: f32,
    /// Seconds from the clip's beginning.
    pub end: f32,
    /// As the model wrote it, leading space included.
    pub text: String,
}

/// What an input costs a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Of the batch's budget: tokens, pixels or samples of sound.
    pub units: usize,
    /// Inputs of one kind may share a batch; others may not.
    pub kind: u32,
}

/// What became of an input in a batch.
#[derive(Clone, Debug, PartialEq)]
pub enum Turn {
    /// It is done.
    Done(Output),
    /// It is not done: what was found since the turn before, and it waits for another batch.
    More(String),
    /// It alone has no answer, and would have none in another batch.
    Failed(String),
}

/// What a batch of an encoder may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Units of all inputs together; an input that costs more runs alone.
    pub units: usize,
    /// Inputs.
    pub inputs: usize,
    /// How long the first input of a batch waits for company.
    pub max_wait: Duration,
}

/// Whether an input of a batch that computes is still wanted. Once one is not, it never is again: it is taken out when
/// the batch is back.
pub type Wanted<'a> = &'a dyn Fn(InputKey) -> bool;

/// An encoder on its device.
pub trait Encoder: Send {
    /// What it is, as a model file names it: a label of metrics.
    fn family(&self) -> &'static str;
    /// What a batch may hold.
    fn budget(&self) -> Budget;
    /// What an input costs, or why it can never run: a sentence for its sender.
    ///
    /// # Errors
    /// When the input is of another kind, or beyond the model's limits.
    fn cost(&self, input: &Input) -> Result<Cost, String>;
    /// Where to count up while a batch computes, part by part.
    fn count_progress(&mut self, progress: Arc<AtomicU64>);
    /// Computes a batch and pushes one turn for each input, in order. An input that goes on is given again, with what
    /// the encoder remembers of it under `key`, until [`Encoder::forget`].
    ///
    /// # Errors
    /// When the device failed: the batch's jobs end, and others go on. When it had no room ([`Error::OutOfMemory`]): the
    /// encoder remembers then what it did before the batch, which comes again in halves, down to single inputs.
    fn encode(&mut self, batch: &[(InputKey, &Input)], turns: &mut Vec<Turn>) -> Result<(), Error>;
    /// As [`Encoder::encode`], and an input that is not `wanted` any more may be left as it is, with an empty
    /// [`Turn::More`]: for encoders whose batches take long.
    ///
    /// # Errors
    /// As [`Encoder::encode`].
    fn encode_while(
        &mut self,
        wanted: Wanted<'_>,
        batch: &[(InputKey, &Input)],
        turns: &mut Vec<Turn>,
    ) -> Result<(), Error> {
        let _ = wanted;
        self.encode(batch, turns)
    }
    /// The input is over, whatever became of it.
    fn forget(&mut self, _key: InputKey) {}
}

/// An input in the engine, unique while it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InputKey(pub u64);

/// A job.
#[derive(Clone, Debug)]
pub struct Job {
    /// The caller's name for it, unique among the jobs in the engine.
    pub key: crate::engine::JobKey,
    /// At least one.
    pub inputs: Vec<Input>,
    /// From then on it is not computed any more.
    pub deadline: Option<Instant>,
}

/// What happens to a job.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Its first input is in a batch.
    Started {
        /// Which job.
        key: crate::engine::JobKey,
    },
    /// More of a transcript.
    Chunk {
        /// Which job.
        key: crate::engine::JobKey,
        /// Never empty.
        text: String,
    },
    /// It is over; nothing follows.
    Ended {
        /// Which job.
        key: crate::engine::JobKey,
        /// How.
        end: End,
    },
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// An output for each input, in order.
    Done(Vec<Output>),
    /// Somebody cancelled it.
    Cancelled,
    /// Its deadline passed.
    Deadline,
    /// The engine stops.
    Stopped,
    /// It can never be answered, and why: a sentence for its sender.
    Refused(String),
    /// The model failed.
    Failed(String),
}
