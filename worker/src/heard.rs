//! What this worker has heard of jobs that ended before they were computed, so that it need not ask of every one.
//!
//! Only a cancel ends a job that nobody has computed, and a cancel is said to all workers once its record stands. So a job
//! that was taken in while this worker listened, and of which it heard nothing, has no record. Should it be wrong - a
//! clock is far off, a message was lost - the job is computed for nothing, and its end is the record's all the same.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use protocol::job::Job;
use protocol::token::Token;
use runtime::clock;

/// How far the clock of a dispatcher may run ahead of ours.
const SKEW: Duration = Duration::from_secs(2);
/// Most ends that are remembered.
const ENDS_MAX: usize = 16_384;

type Key = (Token, Token);

/// Ends of jobs, as far as this worker listened.
#[derive(Debug, Default)]
pub struct Heard(Mutex<Memory>);

#[derive(Debug, Default)]
struct Memory {
    /// Whoever listens, and since when, in milliseconds since 1970.
    since: Option<Since>,
    ends: HashSet<Key>,
    /// The same, oldest first, with when each was heard.
    order: VecDeque<(u64, Key)>,
}

#[derive(Clone, Copy, Debug)]
struct Since {
    /// Which connection; what is said while there is none is not heard.
    connection: u64,
    ms: u64,
}

impl Heard {
    /// From now on every cancel is heard, over this connection.
    pub fn listen(&self, connection: u64) {
        self.lock().listen(connection, clock::now_ms());
    }

    /// A job was cancelled.
    pub fn ended(&self, tenant: Token, job: Token) {
        self.lock().ended((tenant, job), clock::now_ms());
    }

    /// Whether the job has no record for certain, as far as clocks agree: nothing was heard of it since it was taken in.
    #[must_use]
    pub fn knows_open(&self, job: &Job, connection: u64) -> bool {
        self.lock().knows_open(&(job.tenant.clone(), job.id.clone()), job.accepted_ms, connection)
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        // Nothing panics while it is held; if it did, the memory would still be whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn listen(&mut self, connection: u64, ms: u64) {
        self.since = Some(Since { connection, ms });
    }

    fn ended(&mut self, key: Key, now_ms: u64) {
        if !self.ends.insert(key.clone()) {
            return;
        }
        self.order.push_back((now_ms, key));
        if self.order.len() > ENDS_MAX
            && let Some((ms, oldest)) = self.order.pop_front()
        {
            self.ends.remove(&oldest);
            // Of what was taken in before that, nothing is known any more.
            self.since = self.since.map(|since| Since { ms: since.ms.max(ms), ..since });
        }
    }

    fn knows_open(&self, key: &Key, accepted_ms: u64, connection: u64) -> bool {
        let listened = |since: Since| {
            since.connection == connection && accepted_ms >= since.ms.saturating_add(clock::millis(SKEW))
        };
        self.since.is_some_and(listened) && !self.ends.contains(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(job: usize) -> Key {
        (Token::default_tenant(), Token::parse("job", &format!("j{job}")).unwrap())
    }

    #[test]
    fn what_was_taken_in_while_it_listens_is_open_until_it_hears_otherwise() {
        let mut memory = Memory::default();
        assert!(!memory.knows_open(&key(0), 100_000, 1), "it never listened");
        memory.listen(1, 50_000);
        assert!(!memory.knows_open(&key(0), 51_000, 1), "taken in too early");
        assert!(memory.knows_open(&key(0), 52_000, 1));
        assert!(!memory.knows_open(&key(0), 52_000, 2), "over another connection");
        memory.ended(key(0), 53_000);
        assert!(!memory.knows_open(&key(0), 52_000, 1));
        assert!(memory.knows_open(&key(1), 52_000, 1));
    }

    #[test]
    fn what_it_forgets_it_does_not_claim_to_know() {
        let mut memory = Memory::default();
        memory.listen(1, 0);
        for job in 0..ENDS_MAX {
            memory.ended(key(job), 50_000);
            memory.ended(key(job), 50_000);
        }
        assert!(memory.knows_open(&key(ENDS_MAX), 50_000, 1));
        memory.ended(key(ENDS_MAX), 60_000);
        assert!(!memory.knows_open(&key(0), 50_000, 1), "the oldest is forgotten");
        assert!(memory.knows_open(&key(0), 52_000, 1), "and was over when this came in");
        assert_eq!((memory.ends.len(), memory.order.len()), (ENDS_MAX, ENDS_MAX));
    }
}
