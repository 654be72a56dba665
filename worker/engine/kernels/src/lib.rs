//! How GPU kernels become machine code: from what and for which GPUs ([`recipe`]), and by whom ([`compiler`]). The kernels
//! themselves lie beside `src`.
//!
//! The engine compiles them for a GPU that it finds; `flotilla kernels build` compiles them before the engine is built, and
//! so stands on this crate alone.

pub mod compiler;
pub mod library;
pub mod recipe;

/// A library that is not here, or what it said.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub String);
