//! The one place that reads the wall clock; jitter, and what is said seldom.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

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

/// How long a line that would repeat is kept back.
const SELDOM: Duration = Duration::from_secs(10);

/// When a line was last said that a failure repeats with every try.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seldom(Option<Instant>);

impl Seldom {
    /// Whether to say it now: the first time, and not again for a while.
    pub fn due(&mut self, now: Instant) -> bool {
        let due = self.0.is_none_or(|said| now.saturating_duration_since(said) >= SELDOM);
        if due {
            self.0 = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_said_at_once_and_then_seldom() {
        let start = Instant::now();
        let mut seldom = Seldom::default();
        let said = (0..25).filter(|second| seldom.due(start + Duration::from_secs(*second))).collect::<Vec<_>>();
        assert_eq!(said, [0, 10, 20]);
    }
}
