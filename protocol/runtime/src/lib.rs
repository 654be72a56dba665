//! What dispatcher and worker both stand on: configuration, the bus, records, sessions, the response cache, telemetry
//! and health. It knows `protocol` and the servers, and neither requests nor models.
//!
//! A role starts in this order: [`config::load`], [`telemetry::init`], [`bus::connect`], [`bus::apply_streams`] and
//! [`bus::apply_consumer`], [`health::serve`]. Work then uses [`records`], [`sessions`] and [`cache`]. Every failure is
//! an [`Error`] that knows what a client is told.
#![forbid(unsafe_code)]

pub mod bus;
pub mod cache;
pub mod clock;
pub mod config;
pub mod error;
pub mod health;
pub mod memory;
mod metrics;
pub mod records;
mod release;
pub mod sessions;
mod store;
pub mod telemetry;

pub use bus::Bus;
pub use error::Error;
pub use release::RELEASE;
