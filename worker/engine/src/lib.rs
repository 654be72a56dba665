//! The engine: tokens in, tokens out, on one OS thread that owns the device.
//!
//! Data meets the modules in this order: [`gguf`] bytes become a [`model`] over a [`backend`]; [`text`] turns a chat
//! into tokens and back; the [`scheduler`] decides a [`plan`] a step; the model computes it; the [`sampler`] chooses;
//! [`engine`] runs the loop and hands out events. Nothing here knows NATS, tokio or a request's envelope.

pub mod backend;
pub mod blocks;
pub mod engine;
pub mod error;
pub mod eval;
#[doc(hidden)]
pub mod fixture;
pub mod gguf;
pub mod load;
pub mod map;
pub mod metrics;
pub mod model;
pub mod needs;
pub mod plan;
pub mod pool;
pub mod quant;
pub mod sampler;
pub mod scheduler;
pub mod sequence;
pub mod simd;
pub mod stop;
pub mod text;

pub use error::Error;
