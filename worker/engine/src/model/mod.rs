//! What the engine asks of a model, and the models there are.

mod affine;
mod bert;
mod clip;
mod config;
mod decoder;
mod direction;
mod efficientnet;
#[cfg(test)]
mod families;
mod kernel;
mod rounding;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tiny;
mod weights;
pub mod whisper;

pub use bert::{Bert, BertConfig, Pooling};
pub use clip::{Clip, ClipConfig, contrast};
pub use config::{Local, ModelConfig, Pairs, Part};
pub use decoder::{Decoder, Room};
pub use efficientnet::EfficientNet;
pub use rounding::{Rounded, Rounding};

use crate::Error;
use crate::plan::{Plan, Sampled};
use crate::prefix::Kept;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// What a model can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Tokens a sequence may have.
    pub context: usize,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
    /// Blocks of the key-value cache.
    pub blocks: usize,
    /// Rows a step may have.
    pub step_tokens: usize,
    /// Which blocks sequences may share.
    pub kept: Kept,
}

/// A step given to the model and not collected yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(pub u64);

/// A model on its device.
pub trait Model: Send {
    /// What it can hold.
    fn shape(&self) -> Shape;
    /// Steps that may be in flight while the next one is planned: 0 where `forward` computes before it returns,
    /// 1 where it only queues the work and fills [`Plan::placeholders`] on the device.
    fn depth(&self) -> usize {
        0
    }
    /// Where to count up while a step computes, part by part, so that a long step and a hung one can be told apart.
    fn count_progress(&mut self, progress: Arc<AtomicU64>);
    /// Runs all rows and samples `plan.outputs`.
    fn forward(&mut self, plan: &Plan) -> Result<Ticket, Error>;
    /// Appends what the step sampled, in the order of its outputs.
    fn collect(&mut self, ticket: Ticket, sampled: &mut Vec<Sampled>) -> Result<(), Error>;
}
