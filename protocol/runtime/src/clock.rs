//! The one place that reads the wall clock, and jitter.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::Rng;

/// Milliseconds since 1970.
#[must_use]
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    millis(since)
}

/// A duration in whole milliseconds.
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Full jitter: anything between nothing and `most`, so that a fleet does not come back in step.
#[must_use]
pub fn jitter(most: Duration) -> Duration {
    most.mul_f64(rand::rng().random::<f64>())
}

/// Delay before try number `attempt` (from 0): full jitter over a doubling bound.
#[must_use]
pub fn backoff(attempt: u32, first: Duration, most: Duration) -> Duration {
    jitter(first.saturating_mul(1 << attempt.min(16)).min(most))
}
