//! The dispatcher: takes messages at the doors, decides, and puts jobs into lanes. It knows no model, token or tensor.
//!
//! The walk of one message, a module a step: [`ingress`] takes it, [`classify`] says what it is, [`rules`] and
//! [`terms`] what is wanted, [`route`] which lane, [`admit`] whether (identity, [`flight`] for the cache, session),
//! [`forward`] stores the job. Where several models answer one request, [`pipelines`] plans the steps, and [`steps`]
//! queues each job when the one before is done. [`walk`] is the thread through them. The reply does not come back this way: workers
//! answer clients themselves. What is answered here is refusals, repeats and cache hits ([`answer`]), and [`control`].
//! [`fleet`] holds what is known of the workers, [`pace`] says when to come back; [`run`] starts and stops it all.
#![forbid(unsafe_code)]

pub mod admit;
pub mod answer;
pub mod catalogue;
pub mod classify;
pub mod config;
pub mod control;
mod error;
#[cfg(test)]
mod fixture;
pub mod fleet;
pub mod flight;
pub mod forward;
pub mod ingress;
pub mod leases;
pub mod metrics;
pub mod pace;
pub mod pipelines;
mod pull;
pub mod room;
pub mod route;
pub mod rules;
mod run;
mod slots;
pub mod state;
pub mod steps;
pub mod streams;
pub mod terms;
pub mod walk;

pub use config::Config;
pub use error::Error;
pub use run::run;
