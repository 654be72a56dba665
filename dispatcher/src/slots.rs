//! Room for messages in hand, in number and bytes.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// One message of the number, held until its walk ends or waits for another's answer.
pub(crate) type Place = OwnedSemaphorePermit;
/// The bytes of one message, held until its walk ends.
pub(crate) type Weight = OwnedSemaphorePermit;

/// Room for messages, in number and bytes.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    count: Arc<Semaphore>,
    kilobytes: Arc<Semaphore>,
    kilobytes_max: u32,
}

/// What there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Free {
    /// So many messages.
    pub(crate) count: usize,
    /// So many bytes together.
    pub(crate) bytes: usize,
}

impl Slots {
    pub(crate) fn new(count: usize, bytes: usize) -> Self {
        let kilobytes_max = u32::try_from(bytes / 1024).unwrap_or(u32::MAX);
        let kilobytes = Arc::new(Semaphore::new(kilobytes_max as usize));
        Self { count: Arc::new(Semaphore::new(count)), kilobytes, kilobytes_max }
    }

    /// A place for a message, now or not at all.
    pub(crate) fn take(&self, bytes: usize) -> Option<(Place, Weight)> {
        let weight = u32::try_from(bytes.div_ceil(1024)).ok()?;
        let weight = Arc::clone(&self.kilobytes).try_acquire_many_owned(weight).ok()?;
        Some((Arc::clone(&self.count).try_acquire_owned().ok()?, weight))
    }

    /// A place for a message, as soon as there is one.
    pub(crate) async fn wait(&self, bytes: usize) -> (Place, Weight) {
        let weight = Arc::clone(&self.kilobytes).acquire_many_owned(self.weight(bytes)).await.expect("never closed");
        (Arc::clone(&self.count).acquire_owned().await.expect("never closed"), weight)
    }

    /// The room that there is, as soon as one message of so many bytes has a place.
    pub(crate) async fn room(&self, bytes: usize) -> Free {
        let weight = self.kilobytes.acquire_many(self.weight(bytes)).await.expect("never closed");
        let place = self.count.acquire().await.expect("never closed");
        drop((place, weight));
        Free { count: self.count.available_permits().max(1), bytes: self.kilobytes.available_permits() * 1024 }
    }

    /// What is larger than all of the room takes all of it, and waits for no more.
    fn weight(&self, bytes: usize) -> u32 {
        u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX).min(self.kilobytes_max)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn slots_bound_number_and_bytes() {
        let slots = Slots::new(2, 10 * 1024);
        let first = slots.take(9 * 1024).unwrap();
        assert!(slots.take(2 * 1024).is_none(), "bytes");
        let second = slots.take(1).unwrap();
        assert!(slots.take(0).is_none(), "number");
        drop((first, second));
        assert!(slots.take(10 * 1024).is_some());
    }

    #[test]
    fn what_waits_has_room_for_one_of_any_size() {
        let slots = Slots::new(3, 10 * 1024);
        let first = slots.wait(4 * 1024).now_or_never().unwrap();
        assert_eq!(slots.room(6 * 1024).now_or_never(), Some(Free { count: 2, bytes: 6 * 1024 }));
        assert_eq!(slots.room(7 * 1024).now_or_never(), None);
        assert!(slots.wait(100 * 1024).now_or_never().is_none(), "not beside another");
        drop(first);
        let large = slots.wait(100 * 1024).now_or_never().expect("alone it may be larger than all of the room");
        assert!(slots.wait(1).now_or_never().is_none());
        drop(large);
        assert_eq!(slots.room(100 * 1024).now_or_never(), Some(Free { count: 3, bytes: 10 * 1024 }));
    }
}
