//! How fast models answer, and when a client that is refused for overload should come back.

use std::time::{Duration, Instant};

use protocol::heartbeat::INTERVAL;

/// Over how long answers are counted, and how long the last of them says something of the next.
const WINDOW: Duration = Duration::from_secs(5);
/// See [`WINDOW`].
const SILENCE: Duration = WINDOW.saturating_mul(2);
/// When nothing is known.
const FALLBACK: Duration = Duration::from_secs(1);
/// The least and the most that a client is told.
const LEAST: Duration = Duration::from_millis(200);
/// See [`LEAST`].
const MOST: Duration = Duration::from_secs(60);
/// A client comes back when this part of a full lane is through, not when all of it is: an empty lane helps nobody.
const PART: f64 = 0.1;

/// How fast a model answers of late.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Answers a second.
    pub rate: f64,
    /// When there last were any.
    last: Instant,
}

impl Pace {
    /// `answers` more within `passed`, up to `now`; `None` once there was none for long.
    #[must_use]
    pub fn after(before: Option<Self>, answers: u64, passed: Duration, now: Instant) -> Option<Self> {
        // Heartbeats may come bunched.
        let seconds = passed.max(INTERVAL / 2).as_secs_f64();
        let newest = answers as f64 / seconds;
        let known = before.filter(|pace| pace.stands(now));
        let rate =
            known.map_or(newest, |pace| pace.rate + (newest - pace.rate) * (seconds / WINDOW.as_secs_f64()).min(1.0));
        let last = if answers > 0 { Some(now) } else { known.map(|pace| pace.last) };
        last.map(|last| Self { rate, last })
    }

    /// Whether it says anything of what comes.
    #[must_use]
    pub fn stands(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) < SILENCE
    }
}

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

    #[test]
    fn what_was_answered_long_ago_says_nothing_of_the_next() {
        let start = Instant::now();
        let pace = Pace::after(None, 10, INTERVAL, start).unwrap();
        assert!((pace.rate - 10.0).abs() < 1e-9);
        assert!(Pace::after(None, 0, INTERVAL, start).is_none(), "nobody asked yet");
        let idle = Pace::after(Some(pace), 0, INTERVAL, start + INTERVAL).unwrap();
        assert!((idle.rate - 8.0).abs() < 1e-9);
        assert!(!idle.stands(start + SILENCE));
        assert!(Pace::after(Some(idle), 0, INTERVAL, start + SILENCE).is_none());
        let again = Pace::after(Some(idle), 3, INTERVAL, start + SILENCE).unwrap();
        assert!((again.rate - 3.0).abs() < 1e-9);
        let bunched = Pace::after(None, 5, Duration::ZERO, start).unwrap();
        assert!((bunched.rate - 10.0).abs() < 1e-9);
    }
}
