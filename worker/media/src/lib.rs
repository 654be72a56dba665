//! Foreign pictures and sounds to pixels and samples, bounded in time and memory whatever a header says.
//!
//! `picture` decodes and resizes as Pillow does, because models were trained on what Pillow made; `sound` decodes to one
//! channel at 16 kHz. Neither knows of models or messages.
#![forbid(unsafe_code)]

mod error;
pub mod picture;
pub mod sound;

pub use error::Error;
