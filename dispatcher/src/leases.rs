//! The leases of the jobs that this dispatcher queued, kept until each job's end. Nobody tells of that end: its answer takes
//! the place of the lease, and a worker gives up the lease of a job that it could not answer. So most are found gone when
//! they are first due; one that stands then though its job has a record is given up here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use protocol::token::Token;
use runtime::bus::Arrival;
use runtime::cache::{Claim, Responses};
use runtime::{Bus, clock, records};
use tokio_util::task::TaskTracker;

use crate::Error;

/// How often a lease of 10 s is renewed.
const RENEW: Duration = Duration::from_secs(3);
/// How often is looked which ones are due.
const ROUND: Duration = Duration::from_secs(1);
/// Renewed by one command.
const TOGETHER: usize = 256;
/// Records looked for at once.
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
    /// Of the answer that it stands for.
    answer: String,
    /// Who had it before, and gets it back unless the job is queued.
    from: Option<Claim>,
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
    pub fn keep(self: &Arc<Self>, answer: String, from: Option<Claim>, key: Key, deadline_ms: u64) -> Lead {
        let new = || Held { answer, from, deadline_ms, renewed: Instant::now(), leads: 0 };
        self.held().entry(key.clone()).or_insert_with(new).leads += 1;
        Lead { leases: Arc::clone(self), key: Some(key) }
    }

    /// Gives a lease up that may be another dispatcher's.
    pub async fn release(&self, answer: &str, job: &Token) {
        if let Err(error) = self.responses.release(answer, job).await {
            tracing::debug!(%error, "a lease could not be given up, it lapses");
        }
    }

    /// Renews what is due, over and over.
    pub async fn renew(self: Arc<Self>, bus: Bus) -> Result<(), Error> {
        loop {
            tokio::time::sleep(ROUND).await;
            for due in self.due(Instant::now()).chunks(TOGETHER) {
                let left = futures::stream::iter(self.renewed(due).await);
                left.for_each_concurrent(AT_ONCE, |lease| self.look(&bus, lease)).await;
            }
        }
    }

    /// Renews some; those that stand yet.
    async fn renewed<'a>(&self, due: &'a [(Key, Held)]) -> Vec<&'a (Key, Held)> {
        let leases: Vec<_> = due.iter().map(|((_, job), held)| (held.answer.as_str(), job)).collect();
        match self.responses.renew(&leases).await {
            Ok(kept) => {
                let (stand, over): (Vec<_>, Vec<_>) = due.iter().zip(kept).partition(|(_, kept)| *kept);
                over.iter().for_each(|((key, _), _)| self.forget(key));
                stand.into_iter().map(|(lease, _)| lease).collect()
            }
            Err(error) => {
                tracing::debug!(%error, "leases could not be renewed");
                due.iter().collect()
            }
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

    /// Gives a lease up that stands though its job is over: an answer may be too long to keep, a worker may have gone
    /// between a record and what follows it.
    async fn look(&self, bus: &Bus, (key, held): &(Key, Held)) {
        let ended = matches!(records::result(bus, &key.0, &key.1).await, Ok(Some(_)));
        if ended || clock::now_ms() >= held.deadline_ms {
            self.forget(key);
            self.release(&held.answer, &key.1).await;
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

    fn give_up(self: &Arc<Self>, Held { answer, from, .. }: Held, job: Token) {
        let leases = Arc::clone(self);
        self.giving_up.spawn(async move {
            let Some(from) = from else { return leases.release(&answer, &job).await };
            if let Err(error) = leases.responses.give_back(&answer, &job, &from).await {
                tracing::debug!(%error, "a lease could not be given back, it lapses");
            }
        });
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
            self.leases.give_up(held, key.1);
        }
    }
}

#[cfg(test)]
mod tests {
    use ::tests::servers::{NatsServer, RedisServer};
    use protocol::WIRE_VERSION;
    use protocol::answer::{Answer, CacheOutcome, Finish, Usage};
    use protocol::record::{End, Record};
    use protocol::request::{Format, Priority};
    use runtime::bus;
    use runtime::cache::{Found, Lease};
    use runtime::config::{Nats, Redis, Streams};

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

    fn claim(job: &str) -> Claim {
        Claim { job: key(job).1, priority: Priority::Standard }
    }

    /// Who has the lease of this place when this job asks for it.
    async fn holder(responses: &Responses, place: &str, job: &str) -> Token {
        match responses.enter(place, &claim(job)).await.unwrap() {
            Found::Lease(Lease::Held { job }) => job,
            Found::Lease(Lease::Taken { .. }) => key(job).1,
            Found::Answer(_) => panic!("there is none"),
        }
    }

    #[tokio::test]
    async fn the_last_request_of_an_id_gives_its_lease_up() {
        let (_server, responses, leases) = start();
        assert_eq!(holder(&responses, "k", "a").await, key("a").1);
        let lead = || leases.keep("k".to_owned(), None, key("a"), u64::MAX);
        let (first, second, third) = (lead(), lead(), lead());
        second.published(Arrival::Repeat);
        drop(third);
        leases.finish().await;
        assert_eq!(holder(&responses, "k", "b").await, key("a").1, "the first may be queued yet");
        drop(first);
        leases.finish().await;
        assert_eq!(holder(&responses, "k", "b").await, key("b").1);
    }

    #[tokio::test]
    async fn a_lease_goes_back_to_whom_it_was_taken_from_unless_the_job_is_queued() {
        let (_server, responses, leases) = start();
        assert_eq!(holder(&responses, "k", "slow").await, key("slow").1);
        let urgent = Claim { priority: Priority::Interactive, ..claim("urgent") };
        let Found::Lease(Lease::Taken { from }) = responses.enter("k", &urgent).await.unwrap() else {
            panic!("nobody waits for a slower lane")
        };
        assert_eq!(from, Some(claim("slow")));
        drop(leases.keep("k".to_owned(), from, key("urgent"), u64::MAX));
        leases.finish().await;
        assert_eq!(holder(&responses, "k", "other").await, key("slow").1);
    }

    #[tokio::test]
    async fn a_lease_whose_place_has_an_answer_is_forgotten_when_it_is_due() {
        let (_server, responses, leases) = start();
        let start = Instant::now();
        for (place, job) in [("k", "a"), ("l", "b")] {
            assert_eq!(holder(&responses, place, job).await, key(job).1);
            leases.keep(place.to_owned(), None, key(job), u64::MAX).published(Arrival::New);
        }
        assert_eq!(leases.due(start + RENEW / 2).len(), 0, "it is kept for a while");
        responses.put("k", &answer()).await.unwrap();
        let due = leases.due(start + RENEW * 2);
        assert_eq!(due.len(), 2);
        let left = leases.renewed(&due).await;
        assert_eq!(left.iter().map(|(key, _)| key.clone()).collect::<Vec<_>>(), [key("b")]);
        assert_eq!(leases.due(start + RENEW * 4).len(), 1);
    }

    #[tokio::test]
    async fn a_lease_is_kept_neither_beyond_the_deadline_nor_beyond_a_record() {
        let (_server, responses, leases) = start();
        let nats = NatsServer::start();
        let bus = bus::connect(&Nats { url: nats.url(), ..Nats::default() }, "leases").await.unwrap();
        bus::apply_streams(&bus, &Streams::default().limits()).await.unwrap();
        for (place, job, deadline_ms) in [("k", "late", 0), ("l", "ended", u64::MAX), ("m", "open", u64::MAX)] {
            assert_eq!(holder(&responses, place, job).await, key(job).1);
            leases.keep(place.to_owned(), None, key(job), deadline_ms).published(Arrival::New);
        }
        let record = Record {
            version: WIRE_VERSION,
            job: key("ended").1,
            tenant: key("ended").0,
            format: Format::Raw,
            settled_ms: 1,
            end: End::Done(answer()),
            session: None,
            cache_key: None,
        };
        records::store_result(&bus, &record).await.unwrap();
        for lease in leases.due(Instant::now() + RENEW * 2) {
            leases.look(&bus, &lease).await;
        }
        assert_eq!(leases.due(Instant::now() + RENEW * 4).len(), 1);
        for (place, has) in [("k", "b"), ("l", "b"), ("m", "open")] {
            assert_eq!(holder(&responses, place, "b").await, key(has).1, "{place}");
        }
    }

    fn answer() -> Answer {
        Answer {
            job: key("a").1,
            model: "m".into(),
            task: "chat".into(),
            output: Vec::new(),
            finish_reason: Finish::Stop,
            usage: Usage::default(),
            cache: CacheOutcome::Miss,
            steps: Vec::new(),
        }
    }
}
