//! Everything that a dispatcher measures, by name.

use std::sync::LazyLock;
use std::time::Duration;

use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use protocol::ErrorCode;
use protocol::media::Modality;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A job stands in the queue.
    Accepted,
    /// Answered from the cache.
    Hit,
    /// Answered with the record of the same job.
    Repeated,
    /// Refused.
    Refused,
    /// Nobody waits for an answer.
    NoReply,
}

impl Outcome {
    const fn as_str(self) -> &'static str {
        match self {
            Outcome::Accepted => "accepted",
            Outcome::Hit => "hit",
            Outcome::Repeated => "repeated",
            Outcome::Refused => "refused",
            Outcome::NoReply => "no_reply",
        }
    }
}

/// What the response cache gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheResult {
    /// An answer.
    Hit,
    /// Nothing.
    Miss,
    /// The answer of a job that was under way.
    Shared,
    /// It is away: counts as nothing.
    Error,
}

/// What a request is counted under; models are those of the catalogue, so that no label is a client's invention.
#[derive(Clone, Debug)]
pub struct Labels {
    /// `none` before it is known.
    pub modality: &'static str,
    /// `none` before it is known.
    pub model: String,
    /// `infer` or `submit`.
    pub door: &'static str,
}

/// Registers names, units and meanings.
pub fn describe() {
    describe_counter!("flotilla_requests_total", "Requests by what became of them at the door");
    describe_counter!("flotilla_errors_total", "Refusals by code");
    describe_counter!("flotilla_cache_requests_total", "Questions to the response cache by result");
    describe_counter!("flotilla_dispatch_classified_total", "Requests by modality");
    describe_histogram!("flotilla_admission_seconds", Unit::Seconds, "From receipt to the job's PubAck or the answer");
    describe_histogram!("flotilla_publish_seconds", Unit::Seconds, "From a job's publish to its PubAck");
    describe_gauge!("flotilla_admissions_inflight", "Requests between receipt and decision");
    describe_gauge!("flotilla_requests_waiting", "Requests that wait for the answer of another");
    describe_gauge!("flotilla_workers_ready", "Workers whose heartbeat says that they take jobs");
}

/// Counts a request.
pub fn request(labels: &Labels, outcome: Outcome, took: Duration) {
    counter!("flotilla_requests_total", "modality" => labels.modality, "model" => labels.model.clone(),
        "door" => labels.door, "outcome" => outcome.as_str())
    .increment(1);
    histogram!("flotilla_admission_seconds", "door" => labels.door, "outcome" => outcome.as_str()).record(took);
}

/// Counts a refusal.
pub fn error(code: ErrorCode) {
    counter!("flotilla_errors_total", "code" => code.as_str()).increment(1);
}

/// What nearly every request counts, looked up once: that takes longer than to count.
static MISSES: LazyLock<Counter> = LazyLock::new(|| questions("miss"));
static TEXTS: LazyLock<Counter> = LazyLock::new(|| requests_of(Modality::Text));
static PUBLISHES: LazyLock<Histogram> = LazyLock::new(|| histogram!("flotilla_publish_seconds"));
static ADMISSIONS: LazyLock<Gauge> = LazyLock::new(|| gauge!("flotilla_admissions_inflight"));
static WAITING: LazyLock<Gauge> = LazyLock::new(|| gauge!("flotilla_requests_waiting"));

/// Counts a question to the cache.
pub fn cache(result: CacheResult) {
    match result {
        CacheResult::Miss => MISSES.increment(1),
        CacheResult::Hit => questions("hit").increment(1),
        CacheResult::Shared => questions("shared").increment(1),
        CacheResult::Error => questions("error").increment(1),
    }
}

fn questions(result: &'static str) -> Counter {
    counter!("flotilla_cache_requests_total", "cache" => "response", "result" => result)
}

/// Counts a classified request.
pub fn classified(modality: Modality) {
    match modality {
        Modality::Text => TEXTS.increment(1),
        Modality::Image | Modality::Audio => requests_of(modality).increment(1),
    }
}

fn requests_of(modality: Modality) -> Counter {
    counter!("flotilla_dispatch_classified_total", "modality" => modality.as_str())
}

/// Records a publish.
pub fn published(took: Duration) {
    PUBLISHES.record(took);
}

/// Sets how many workers take jobs.
pub fn workers(ready: usize) {
    gauge!("flotilla_workers_ready").set(ready as f64);
}

/// Something that is counted while it lives.
#[derive(Debug)]
pub struct During(&'static Gauge);

impl During {
    /// A request between receipt and decision.
    #[must_use]
    pub fn admission() -> Self {
        Self::start(&ADMISSIONS)
    }

    /// A request that waits for the answer of another.
    #[must_use]
    pub fn waiting() -> Self {
        Self::start(&WAITING)
    }

    fn start(gauge: &'static Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge)
    }
}

impl Drop for During {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}
