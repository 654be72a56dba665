//! The engine: tokens in, tokens out, on one OS thread that owns the device.
//!
//! Data meets the modules in this order: [`gguf`] bytes become a [`model`] over a [`backend`]; [`text`] turns a chat
//! into tokens and back; the [`scheduler`] decides a [`plan`] a step; the model computes it; the [`sampler`] chooses;
//! [`engine`] runs the loop and hands out events. Encoders have a loop of their own, [`encode`]: the bytes of [`tensors`],
//! whole inputs in batches, directions, classes and transcripts out. Nothing here knows NATS, tokio or a request's envelope.

mod allowance;
pub mod backend;
pub mod blocks;
pub mod check;
pub mod cuda;
pub mod device;
pub mod encode;
pub mod engine;
pub mod error;
pub mod eval;
#[doc(hidden)]
pub mod fixture;
pub mod gguf;
pub mod listener;
pub mod load;
pub mod map;
pub mod mel;
pub mod metrics;
pub mod model;
pub mod needs;
pub mod plan;
pub mod pool;
pub mod prefix;
pub mod quant;
pub mod sampler;
pub mod scheduler;
pub mod sequence;
pub mod simd;
pub mod stop;
pub mod tensors;
pub mod text;

pub use error::Error;
