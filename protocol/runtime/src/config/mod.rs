//! One `flotilla.toml` for every role: each reads its own sections, and `FLOTILLA_*` stands over the file.

mod catalogue;
mod load;
mod pipeline;
mod shipped;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

pub use catalogue::{Convert, ModelEntry, ModelPart, ModelSource, Pull};
pub use load::{EXIT_FAULTY, Faults, load};
pub use pipeline::{ASSISTANT, PipelineEntry, StepEntry, default_pipelines};
pub use shipped::default_catalogue;

/// `[nats]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Nats {
    /// One address, or several with commas between.
    pub url: String,
    /// A `.creds` file.
    pub credentials: Option<PathBuf>,
}

impl Default for Nats {
    fn default() -> Self {
        Self { url: "nats://127.0.0.1:4222".into(), credentials: None }
    }
}

/// `[redis]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Redis {
    /// Server of the sessions; must not evict.
    pub sessions: String,
    /// Server of the response cache; may evict.
    pub cache: String,
}

impl Default for Redis {
    fn default() -> Self {
        Self { sessions: "redis://127.0.0.1:6379".into(), cache: "redis://127.0.0.1:6379".into() }
    }
}

/// How a log line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Pretty on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// For people.
    Pretty,
    /// One object a line.
    Json,
}

/// `[telemetry]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// Where `/livez`, `/readyz` and `/metrics` are served; nowhere when absent. Port 0 takes a free one.
    pub listen: Option<SocketAddr>,
    /// Format of the log.
    pub log: LogFormat,
    /// What is logged, in the notation of `RUST_LOG`.
    pub filter: String,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { listen: None, log: LogFormat::Auto, filter: "info".into() }
    }
}

/// What the fleet survives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// One replica, the server's own sync interval: a process crash.
    #[default]
    Relaxed,
    /// Three replicas: the loss of a server or zone. The servers' `sync_interval: always` belongs to it.
    Strict,
}

/// `[streams]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Streams {
    /// Decides the replicas.
    pub durability: Durability,
    /// Jobs that may wait in one lane.
    pub lane_jobs_max: i64,
    /// Bytes of all waiting jobs.
    pub jobs_bytes_max: i64,
    /// Bytes of all kept results.
    pub results_bytes_max: i64,
    /// Seconds for which a result is kept.
    pub results_age_s: u64,
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            durability: Durability::Relaxed,
            lane_jobs_max: 1000,
            jobs_bytes_max: 1 << 30,
            results_bytes_max: 1 << 30,
            results_age_s: 24 * 60 * 60,
        }
    }
}

impl Streams {
    /// As the protocol wants it.
    #[must_use]
    pub fn limits(&self) -> protocol::stream::Limits {
        protocol::stream::Limits {
            replicas: match self.durability {
                Durability::Relaxed => 1,
                Durability::Strict => 3,
            },
            lane_jobs_max: self.lane_jobs_max,
            jobs_bytes_max: self.jobs_bytes_max,
            results_bytes_max: self.results_bytes_max,
            results_age: Duration::from_secs(self.results_age_s),
        }
    }
}

/// What every role reads. Roles flatten it into their own `Config`; other roles' sections are accepted and ignored.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Common {
    /// The bus.
    pub nats: Nats,
    /// Sessions and cache.
    pub redis: Redis,
    /// Logs, metrics and health.
    pub telemetry: Telemetry,
    /// Limits of the streams.
    pub streams: Streams,
    /// The catalogue.
    #[serde(rename = "model")]
    pub models: Vec<ModelEntry>,
    /// `[[pipeline]]`
    #[serde(rename = "pipeline")]
    pub pipelines: Vec<PipelineEntry>,
}

impl Default for Common {
    fn default() -> Self {
        Self {
            nats: Nats::default(),
            redis: Redis::default(),
            telemetry: Telemetry::default(),
            streams: Streams::default(),
            models: default_catalogue(),
            pipelines: default_pipelines(),
        }
    }
}

impl Common {
    /// What types cannot say.
    fn faults(&self) -> Vec<String> {
        let mut faults = catalogue::faults(&self.models);
        faults.extend(pipeline::faults(&self.pipelines, &self.models));
        let streams = &self.streams;
        let positive = [
            ("streams.lane_jobs_max", streams.lane_jobs_max),
            ("streams.jobs_bytes_max", streams.jobs_bytes_max),
            ("streams.results_bytes_max", streams.results_bytes_max),
        ];
        faults.extend(
            positive.iter().filter(|(_, value)| *value < 1).map(|(name, _)| format!("{name} must be at least 1")),
        );
        if !(RESULTS_AGE_MIN_S..=RESULTS_AGE_MAX_S).contains(&streams.results_age_s) {
            faults.push(format!("streams.results_age_s must be {RESULTS_AGE_MIN_S} to {RESULTS_AGE_MAX_S}"));
        }
        faults
    }
}

/// A result must outlive its client's next question, and sessions are rebuilt from results.
const RESULTS_AGE_MIN_S: u64 = 60;
/// A year.
const RESULTS_AGE_MAX_S: u64 = 366 * 24 * 60 * 60;
