//! What a worker says of itself, every [`INTERVAL`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{ErrorCode, Refusal};
use crate::malformed::unquoted;
use crate::token::Token;

/// Time between two heartbeats.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// A worker that is silent this long is taken for dead by the fleet view.
pub const EXPIRY: Duration = Duration::from_secs(4);

/// What a worker says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// [`crate::WIRE_VERSION`] of the writer.
    pub version: u32,
    /// Its name, new with every start.
    pub worker: Token,
    /// Version of its program, with the revision of its build; empty where it does not say so.
    #[serde(default)]
    pub release: String,
    /// `cpu`, or the GPU's name.
    pub device: String,
    /// What it has loaded.
    pub models: Vec<Loaded>,
    /// Whether it still pulls.
    pub state: State,
    /// Jobs it could take now.
    pub slots_free: u32,
    /// Jobs it can run at once.
    pub slots: u32,
    /// Mean duration of recent engine steps in seconds.
    pub step_seconds: f32,
    /// Jobs that each of `models` answered since the start, in the same order; empty where it does not say so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answered: Vec<u64>,
}

/// A model in a worker's memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loaded {
    /// Name in the catalogue.
    pub name: String,
    /// SHA-256 of the file in hexadecimal.
    pub digest: String,
    /// How its weights are stored: `q4_1`, `f16`, ...
    pub precision: String,
    /// Most tokens of prompt and answer.
    pub context: u32,
}

/// Whether a worker takes jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It pulls.
    Ready,
    /// It finishes what it has.
    Draining,
    /// It goes now.
    Gone,
}

impl Heartbeat {
    /// As it is published.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        rmp_serde::to_vec_named(self).expect("a heartbeat always encodes")
    }

    /// Reads a heartbeat.
    pub fn decode(bytes: &[u8]) -> Result<Heartbeat, Refusal> {
        rmp_serde::from_slice(bytes)
            .map_err(|error| Refusal::new(ErrorCode::Internal, format!("heartbeat: {}", unquoted(&error))))
    }
}
