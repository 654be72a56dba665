//! Room for results: what could not be stored at its end is not taken in.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use protocol::{ErrorCode, Refusal, stream};
use runtime::Bus;

use crate::Error;

/// Results above this part of their limit: what is taken in now could not be stored at its end.
const RESULTS_PART_MAX: f64 = 0.95;
/// How often the results are looked at.
const LOOK: Duration = Duration::from_secs(5);

const ROOM: u8 = 0;
const FULL: u8 = 1;

/// Whether results of new jobs could be stored. Written by [`watch`], read at admission.
#[derive(Debug, Default)]
pub struct Room(AtomicU8);

impl Room {
    /// Refuses where they could not.
    pub fn check(&self) -> Result<(), Refusal> {
        match self.0.load(Ordering::Relaxed) {
            FULL => Err(Refusal::new(ErrorCode::Overloaded, "the store of results is full").retry_after(LOOK)),
            _ => Ok(()),
        }
    }

    fn note(&self, bytes: u64, bytes_max: i64) {
        let full = bytes_max > 0 && bytes as f64 > bytes_max as f64 * RESULTS_PART_MAX;
        let now = if full { FULL } else { ROOM };
        if self.0.swap(now, Ordering::Relaxed) != now {
            tracing::warn!(bytes, bytes_max, "the store of results is {}", if full { "full" } else { "open again" });
        }
    }
}

/// Looks at the store of results, over and over.
pub async fn watch(bus: Bus, room: Arc<Room>) -> Result<(), Error> {
    loop {
        match bus.js.get_stream(stream::RESULTS).await {
            Ok(results) => {
                let info = results.cached_info();
                room.note(info.state.bytes, info.config.max_bytes);
            }
            Err(error) => tracing::debug!(%error, "the store of results could not be looked at"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_store_of_results_refuses_and_opens_again() {
        let room = Room::default();
        room.note(0, 1000);
        assert!(room.check().is_ok());
        room.note(960, 1000);
        assert_eq!(room.check().unwrap_err().code, ErrorCode::Overloaded);
        room.note(940, 1000);
        assert!(room.check().is_ok());
        room.note(940, -1);
        assert!(room.check().is_ok(), "no limit");
    }
}
