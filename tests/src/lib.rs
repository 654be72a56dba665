//! The harness of the tests that cross processes: real servers, real binaries, and a client of the contract.
#![forbid(unsafe_code)]

pub mod client;
pub mod fleet;
pub mod media;
pub mod port;
pub mod role;
pub mod servers;
pub mod wait;
