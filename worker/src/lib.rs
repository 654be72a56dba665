//! From a lane to a reply: pulls as many jobs as it has free slots, runs them, answers clients, settles.
//!
//! A delivery meets the modules in this order: [`run`] decides with [`lanes`] what to [`pull`]; a message becomes a
//! [`delivery`], and its walk is [`serve`]: [`admit`] looks at what was [`heard`] or at the records, and makes a
//! [`prompt`], which [`reader`] turns into what the model reads, [`company`] gives it a place, the engine behind [`model`]
//! computes, [`reply`] streams, [`output`] makes the answer, [`outcome`] decides how it ends and [`settle`] acts on that.
//! [`heartbeat`] says meanwhile that all of it lives. Knows no HTTP, no tensor and no other worker.
#![forbid(unsafe_code)]

pub mod admit;
pub mod company;
pub mod config;
pub mod delivery;
pub mod error;
#[doc(hidden)]
pub mod fake;
pub mod heard;
pub mod heartbeat;
pub mod lanes;
pub mod memory;
pub mod metrics;
pub mod model;
pub mod native;
pub mod outcome;
pub mod output;
pub mod prompt;
pub mod pull;
pub mod queue;
pub mod reader;
pub mod reply;
pub mod run;
pub mod serve;
pub mod settle;
pub mod subtitle;
pub mod team;
pub mod worker;

pub use config::Config;
pub use error::Error;
pub use worker::Worker;
