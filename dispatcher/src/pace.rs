//! When a client that is refused for overload should come back.

use std::time::Duration;

/// When nothing is known.
const FALLBACK: Duration = Duration::from_secs(1);
/// The least and the most that a client is told.
const LEAST: Duration = Duration::from_millis(200);
/// See [`LEAST`].
const MOST: Duration = Duration::from_secs(60);
/// A client comes back when this part of a full lane is through, not when all of it is: an empty lane helps nobody.
const PART: f64 = 0.1;

/// When a job may find room in a lane that holds `depth` jobs, of which `rate` a second are answered.
#[must_use]
pub fn retry_after(depth: i64, rate: f64) -> Duration {
    if rate <= 0.0 {
        return FALLBACK;
    }
    Duration::try_from_secs_f64(depth as f64 * PART / rate).unwrap_or(MOST).clamp(LEAST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_model_has_its_clients_back_sooner() {
        assert_eq!(retry_after(1000, 0.0), FALLBACK);
        assert_eq!(retry_after(1000, 20.0), Duration::from_secs(5));
        assert_eq!(retry_after(1, 20.0), LEAST);
        assert_eq!(retry_after(i64::MAX, 20.0), MOST);
    }
}
