//! How fast each model's jobs come to an end, so that a refusal for overload can say when to come back.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use protocol::answer::CacheOutcome;
use protocol::record::{Ended, How};

/// Ends are counted over windows of this length.
const WINDOW: Duration = Duration::from_secs(5);
/// When nothing is known.
const FALLBACK: Duration = Duration::from_secs(1);
/// The least and the most that a client is told.
const LEAST: Duration = Duration::from_millis(200);
/// See [`LEAST`].
const MOST: Duration = Duration::from_secs(60);
/// A client comes back when this part of a full lane is through, not when all of it is: an empty lane helps nobody.
const PART: f64 = 0.1;
/// Models are the catalogue's; this only bounds what foreign records could add.
const MODELS_MAX: usize = 1024;

#[derive(Debug)]
struct Window {
    begun: Instant,
    ends: u32,
    /// Ends a second in the window before.
    rate: f64,
}

/// Written by the watch of finished jobs, read by refusals.
#[derive(Debug, Default)]
pub struct Pace(Mutex<HashMap<String, Window>>);

impl Pace {
    /// A job came to an end.
    pub fn observe(&self, ended: &Ended) {
        if let How::Done { model, cache: CacheOutcome::Miss } = &ended.how {
            self.count(model, Instant::now());
        }
    }

    fn count(&self, model: &str, now: Instant) {
        let mut models = self.0.lock().expect("no holder panics");
        if let Some(window) = models.get_mut(model) {
            window.turn(now);
            window.ends += 1;
        } else if models.len() < MODELS_MAX {
            models.insert(model.to_owned(), Window { begun: now, ends: 1, rate: 0.0 });
        }
    }

    /// When a job of this model may find room in a lane that holds `depth` jobs.
    #[must_use]
    pub fn retry_after(&self, model: &str, depth: i64) -> Duration {
        self.estimate(model, depth, Instant::now())
    }

    fn estimate(&self, model: &str, depth: i64, now: Instant) -> Duration {
        let mut models = self.0.lock().expect("no holder panics");
        let Some(window) = models.get_mut(model) else {
            return FALLBACK;
        };
        window.turn(now);
        let elapsed = now.saturating_duration_since(window.begun).as_secs_f64();
        // The window before, and this one once it says more.
        let rate = window.rate.max(f64::from(window.ends) / elapsed.max(1.0));
        if rate <= 0.0 {
            return FALLBACK;
        }
        Duration::try_from_secs_f64(depth as f64 * PART / rate).unwrap_or(MOST).clamp(LEAST, MOST)
    }
}

impl Window {
    fn turn(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.begun);
        if elapsed >= WINDOW {
            // What lies two windows back says nothing any more.
            self.rate = if elapsed < WINDOW * 2 { f64::from(self.ends) / elapsed.as_secs_f64() } else { 0.0 };
            (self.begun, self.ends) = (now, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_model_has_its_clients_back_sooner() {
        let (pace, start) = (Pace::default(), Instant::now());
        assert_eq!(pace.estimate("m", 1000, start), FALLBACK);
        for n in 0..100 {
            pace.count("m", start + WINDOW / 100 * n);
        }
        let after = pace.estimate("m", 1000, start + WINDOW);
        assert!((4.9..5.1).contains(&after.as_secs_f64()), "{after:?}: 100 of 1000 at 20 a second");
        assert_eq!(pace.estimate("m", 1, start + WINDOW), LEAST);
        assert_eq!(pace.estimate("m", i64::MAX, start + WINDOW), MOST);
        assert_eq!(pace.estimate("m", 1000, start + WINDOW * 4), FALLBACK);
    }
}
