//! The leases of the jobs that this dispatcher queued: kept until each job's end, all of them in one round.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use protocol::record::{Ended, How};
use protocol::token::Token;
use runtime::bus::Arrival;
use runtime::cache::Responses;
use runtime::{Bus, clock, records};
use tokio_util::task::TaskTracker;

use crate::Error;

/// How often a lease of 10 s is renewed.
const RENEW: Duration = Duration::from_secs(3);
/// How often is looked which ones are due.
const ROUND: Duration = Duration::from_secs(1);
/// Renewed at once.
const AT_ONCE: usize = 64;

/// Whose job computes: a tenant's, and which.
pub type Key = (Token, Token);

/// The leases, from before their jobs are queued until these end.
pub struct Leases {
    responses: Responses,
    held: Mutex<HashMap<Key, Held>>,
    /// What is given up meanwhile.
    giving_up: TaskTracker,
}

#[derive(Clone, Debug)]
struct Held {
    /// Name of the lease.
    name: String,
    /// Nobody computes after this, in milliseconds since 1970.
    deadline_ms: u64,
    renewed: Instant,
    /// Requests of the same id that have it: the last one gives it up.
    leads: usize,
}

/// The right to compute, given up on drop until [`Lead::published`].
pub struct Lead {
    leases: Arc<Leases>,
    key: Option<Key>,
}

impl Leases {
    /// None yet.
    #[must_use]
    pub fn new(responses: Responses) -> Self {
        Self { responses, held: Mutex::default(), giving_up: TaskTracker::new() }
    }

    /// Keeps a lease that this job has just taken, until its end or its deadline, in milliseconds since 1970.
    #[must_use]
    pub fn keep(self: &Arc<Self>, name: String, key: Key, deadline_ms: u64) -> Lead {
        let new = || Held { name, deadline_ms, renewed: Instant::now(), leads: 0 };
        self.held().entry(key.clone()).or_insert_with(new).leads += 1;
        Lead { leases: Arc::clone(self), key: Some(key) }
    }

    /// A job came to its end. After an answer the lease lapses by itself: the worker writes the cache just after the
    /// record, and whoever asks in between follows this job and finds the record.
    pub fn ended(self: &Arc<Self>, ended: &Ended) {
        let key = (ended.tenant.clone(), ended.job.clone());
        let held = self.held().remove(&key);
        if let (Some(held), How::Failed) = (held, &ended.how) {
            self.give_up(held.name, key.1);
        }
    }

    /// Gives a lease up that may be another dispatcher's.
    pub async fn release(&self, name: &str, job: &Token) {
        if let Err(error) = self.responses.release(name, job).await {
            tracing::debug!(%error, "a lease could not be given up, it lapses");
        }
    }

    /// Renews what is due, over and over.
    pub async fn renew(self: Arc<Self>, bus: Bus) -> Result<(), Error> {
        loop {
            tokio::time::sleep(ROUND).await;
            let due = futures::stream::iter(self.due(Instant::now()));
            due.for_each_concurrent(AT_ONCE, |(key, held)| self.renew_one(&bus, key, held)).await;
        }
    }

    /// Waits until what is being given up is.
    pub async fn finish(&self) {
        self.giving_up.close();
        self.giving_up.wait().await;
    }

    fn due(&self, now: Instant) -> Vec<(Key, Held)> {
        let mut held = self.held();
        let due = held.iter_mut().filter(|(_, held)| now.saturating_duration_since(held.renewed) >= RENEW);
        due.map(|(key, held)| {
            held.renewed = now;
            (key.clone(), held.clone())
        })
        .collect()
    }

    async fn renew_one(self: &Arc<Self>, bus: &Bus, key: Key, held: Held) {
        // Ends are not heard while the connection is away.
        if let Ok(Some(record)) = records::result(bus, &key.0, &key.1).await {
            return self.ended(&Ended::from(&record));
        }
        if clock::now_ms() >= held.deadline_ms {
            self.forget(&key);
            return self.release(&held.name, &key.1).await;
        }
        match self.responses.renew(&held.name, &key.1).await {
            Ok(true) => {}
            Ok(false) => self.forget(&key),
            Err(error) => tracing::debug!(%error, "a lease could not be renewed"),
        }
    }

    fn forget(&self, key: &Key) {
        self.held().remove(key);
    }

    /// One request less has the lease; the lease, where it was the last.
    fn part(&self, key: &Key) -> Option<Held> {
        let mut held = self.held();
        let left = held.get_mut(key)?;
        left.leads -= 1;
        if left.leads > 0 { None } else { held.remove(key) }
    }

    fn give_up(self: &Arc<Self>, name: String, job: Token) {
        let leases = Arc::clone(self);
        self.giving_up.spawn(async move { leases.release(&name, &job).await });
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Key, Held>> {
        // Nothing panics while it is locked; if it did, the map would still be whole.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lead {
    /// The job stands in the queue: its lease is kept until its end. One that stood there before has its lease from
    /// whoever published it, or it lapses.
    pub fn published(mut self, arrival: Arrival) {
        if let Some(key) = self.key.take()
            && arrival == Arrival::Repeat
        {
            self.leases.part(&key);
        }
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        let Some(key) = self.key.take() else { return };
        if let Some(held) = self.leases.part(&key) {
            self.leases.give_up(held.name, key.1);
        }
    }
}

#[cfg(test)]
mod tests {
    use ::tests::servers::RedisServer;
    use runtime::cache::{Found, Lease};
    use runtime::config::Redis;

    use super::*;

    /// Leases over a Redis of their own.
    fn start() -> (RedisServer, Responses, Arc<Leases>) {
        let server = RedisServer::start();
        let redis = Redis { cache: server.url(), sessions: server.url() };
        let responses = Responses::new(&redis).unwrap();
        (server, responses.clone(), Arc::new(Leases::new(responses)))
    }

    fn key(job: &str) -> Key {
        (Token::default_tenant(), Token::parse("job", job).unwrap())
    }

    /// Who has the lease `k` when this job asks for it.
    async fn holder(responses: &Responses, job: &str) -> Token {
        match responses.enter("k", "k", &key(job).1).await.unwrap() {
            Found::Lease(Lease::Held { job }) => job,
            Found::Lease(Lease::Taken) => key(job).1,
            Found::Answer(_) => panic!("there is none"),
        }
    }

    #[tokio::test]
    async fn the_last_request_of_an_id_gives_its_lease_up() {
        let (_server, responses, leases) = start();
        assert_eq!(holder(&responses, "a").await, key("a").1);
        let lead = || leases.keep("k".to_owned(), key("a"), u64::MAX);
        let (first, second, third) = (lead(), lead(), lead());
        second.published(Arrival::Repeat);
        drop(third);
        leases.finish().await;
        assert_eq!(holder(&responses, "b").await, key("a").1, "the first may be queued yet");
        drop(first);
        leases.finish().await;
        assert_eq!(holder(&responses, "b").await, key("b").1);
    }

    #[tokio::test]
    async fn a_failure_gives_the_lease_up_and_nobody_keeps_it_then() {
        let (_server, responses, leases) = start();
        assert_eq!(holder(&responses, "a").await, key("a").1);
        leases.keep("k".to_owned(), key("a"), u64::MAX).published(Arrival::New);
        assert_eq!(leases.due(Instant::now() + RENEW).len(), 1);
        assert_eq!(leases.due(Instant::now() + RENEW / 2).len(), 0, "it is kept for a while");
        let (tenant, job) = key("a");
        leases.ended(&Ended { job, tenant, how: How::Failed });
        leases.finish().await;
        assert_eq!(holder(&responses, "b").await, key("b").1);
        assert!(leases.due(Instant::now() + RENEW).is_empty());
    }
}
