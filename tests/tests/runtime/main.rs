//! What dispatcher and worker stand on, against real servers. A module a noun of the crate `runtime`.
#![forbid(unsafe_code)]

mod bus;
mod cache;
mod health;
mod model;
mod rebuild;
mod records;
mod sessions;
mod setup;
