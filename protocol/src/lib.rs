//! What travels between clients, dispatchers and workers, and nothing else: no I/O, no async, no clock.
//!
//! A message meets the modules in this order: [`header`] and body become a [`request::Request`]; admitted, it is a
//! [`job::Job`] on a [`subject`] of a [`stream`]; workers answer with [`reply`] frames, and settle a [`record::Record`].
//! Whatever is refused is a [`error::Refusal`] with a stable [`error::ErrorCode`]. Workers speak of themselves by
//! [`heartbeat::Heartbeat`].
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod answer;
pub mod error;
pub mod header;
pub mod heartbeat;
pub mod job;
mod malformed;
pub mod media;
pub mod pipeline;
pub mod record;
pub mod reply;
pub mod request;
pub mod rounding;
pub mod stream;
pub mod subject;
pub mod token;

pub use error::{ErrorCode, Fault, Refusal};

/// Version of the messages between our own roles. A reader refuses a greater one and tolerates unknown fields. 2: jobs of
/// pipelines, which a reader of 1 would settle as if they were whole; jobs without steps are still written as 1.
pub const WIRE_VERSION: u32 = 2;
