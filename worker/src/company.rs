//! In whose company a job computes. A step that fails ends every job that is in it, whoever made it fail; so a job that
//! keeps failing computes alone in the end: it takes nobody with it, and nobody takes it along.
//!
//! Who is to be alone waits until those that compute are done, and whoever comes after him waits for him: neither
//! starves. One at a time: a second one is turned away rather than kept, since a process that dies takes those along too
//! that merely wait in it.

use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard, Semaphore, SemaphorePermit};

/// Attempts that a job may fail in company. The first failure is most often somebody else's, or the end of a worker with
/// all it had in hand, which are not to be computed one by one.
const TOGETHER: u32 = 2;

/// The company of a worker's jobs.
#[derive(Debug)]
pub struct Company {
    room: RwLock<()>,
    alone: Semaphore,
}

/// A place for a job while it computes.
#[derive(Debug)]
pub struct Seat<'a>(#[expect(dead_code, reason = "held for its drop")] Held<'a>);

#[derive(Debug)]
#[expect(dead_code, reason = "held for their drops")]
enum Held<'a> {
    Together(RwLockReadGuard<'a, ()>),
    Alone(RwLockWriteGuard<'a, ()>, SemaphorePermit<'a>),
}

impl Default for Company {
    fn default() -> Self {
        Self { room: RwLock::new(()), alone: Semaphore::new(1) }
    }
}

impl Company {
    /// A place for a job that was attempted so often before; `None` when another one is, or will be, alone before it.
    pub async fn seat(&self, attempts: u32) -> Option<Seat<'_>> {
        if attempts < TOGETHER {
            return Some(Seat(Held::Together(self.room.read().await)));
        }
        let permit = self.alone.try_acquire().ok()?;
        Some(Seat(Held::Alone(self.room.write().await, permit)))
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, poll};
    use std::pin::pin;

    use super::*;

    #[tokio::test]
    async fn who_failed_often_waits_to_be_alone_and_others_for_him() {
        let company = Company::default();
        let (first, second) = (company.seat(0).await, company.seat(TOGETHER - 1).await);
        let mut alone = pin!(company.seat(TOGETHER));
        assert!(poll!(alone.as_mut()).is_pending());
        assert!(company.seat(TOGETHER).await.is_none(), "one at a time");
        let mut later = pin!(company.seat(0));
        assert!(poll!(later.as_mut()).is_pending(), "or he would starve");
        drop(first);
        assert!(poll!(alone.as_mut()).is_pending());
        drop(second);
        let seat = alone.await.expect("a place");
        assert!(poll!(later.as_mut()).is_pending());
        drop(seat);
        assert!(later.await.is_some());
        assert!(company.seat(TOGETHER).now_or_never().is_some_and(|seat| seat.is_some()));
    }

    #[tokio::test]
    async fn who_waits_no_more_holds_nobody_up() {
        let company = Company::default();
        let first = company.seat(0).await;
        assert!(company.seat(TOGETHER).now_or_never().is_none());
        assert!(company.seat(0).now_or_never().is_some(), "he went away");
        drop(first);
        assert!(company.seat(TOGETHER).now_or_never().is_some());
    }
}
