//! Answers by what they depend on, and the lease by which only one job of the fleet computes each. Both stand in one place:
//! a lease until there is an answer, so that one command finds either and takes the place where it is free.

mod key;
mod lease;

use std::sync::Arc;
use std::time::Duration;

use protocol::answer::Answer;
use protocol::token::Token;
use redis::Script;

use crate::config::Redis;
use crate::store::Store;
use crate::{Error, clock};

pub use key::{KeyParts, cache_key};
pub use lease::Claim;

/// How long an answer is kept, plus up to [`TTL_SPREAD`].
const TTL_LEAST: Duration = Duration::from_secs(24 * 60 * 60 * 9 / 10);
/// Answers of one moment do not leave in one moment.
const TTL_SPREAD: Duration = Duration::from_secs(24 * 60 * 60 * 2 / 10);
/// How long a lease lives unless renewed.
pub const LEASE: Duration = Duration::from_secs(10);
/// Answers larger than this are computed again rather than kept.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// Who computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lease {
    /// This job.
    Taken {
        /// Who had it, and is less urgent.
        from: Option<Claim>,
    },
    /// That one.
    Held {
        /// Its id.
        job: Token,
    },
}

/// What the cache has.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// The answer.
    Answer(Box<Answer>),
    /// None, and who computes it.
    Lease(Lease),
}

/// The response cache; cheap to clone.
#[derive(Clone)]
pub struct Responses {
    store: Store,
    scripts: Arc<Scripts>,
}

struct Scripts {
    take_over: Script,
    renew: Script,
    release: Script,
}

impl Responses {
    /// Does not wait for Redis.
    pub fn new(redis: &Redis) -> Result<Self, Error> {
        let scripts = Scripts {
            take_over: Script::new(include_str!("take_over.lua")),
            renew: Script::new(include_str!("renew.lua")),
            release: Script::new(include_str!("release.lua")),
        };
        Ok(Self { store: Store::new(&redis.cache, "cache")?, scripts: Arc::new(scripts) })
    }

    /// Whether Redis answered last.
    #[must_use]
    pub fn healthy(&self) -> bool {
        self.store.healthy()
    }

    /// The answer where there is one; else asks to be the job that computes it, for [`LEASE`]. The holder that asks again
    /// has it as it is, since its job is queued only once. Who is more urgent than the holder takes it from him: nobody
    /// waits for a slower lane. Bytes that are neither an answer nor a lease are dropped and count as absent.
    pub async fn enter(&self, key: &str, claim: &Claim) -> Result<Found, Error> {
        loop {
            let stands = match self.take(key, claim).await {
                Ok(None) => return Ok(Found::Lease(Lease::Taken { from: None })),
                Ok(Some(stands)) => stands,
                Err(Error::Corrupt(_)) => Vec::new(),
                Err(error) => return Err(error),
            };
            match Claim::read(&stands) {
                Some(holder) if claim.waits_for(&holder) => return Ok(Found::Lease(Lease::Held { job: holder.job })),
                Some(own) if own.job == claim.job => {
                    if self.take_over(key, &own, &own).await? {
                        return Ok(Found::Lease(Lease::Taken { from: None }));
                    }
                }
                Some(slower) => {
                    if self.take_over(key, &slower, claim).await? {
                        return Ok(Found::Lease(Lease::Taken { from: Some(slower) }));
                    }
                }
                None => match rmp_serde::from_slice(&stands) {
                    Ok(answer) => return Ok(Found::Answer(Box::new(answer))),
                    Err(error) => {
                        tracing::warn!(key, %error, "a cached answer that cannot be read is dropped");
                        let () = self.store.query(redis::cmd("DEL").arg(place(key))).await?;
                    }
                },
            }
        }
    }

    /// Takes the place where it is free; else what stands there.
    async fn take(&self, key: &str, claim: &Claim) -> Result<Option<Vec<u8>>, Error> {
        let mut take = redis::cmd("SET");
        take.arg(place(key)).arg(claim.written()).arg("NX").arg("GET").arg("PX").arg(clock::millis(LEASE));
        self.store.query(&take).await
    }

    /// Takes the place of a lease that stands there; false where it does no more.
    async fn take_over(&self, key: &str, from: &Claim, claim: &Claim) -> Result<bool, Error> {
        let mut script = self.scripts.take_over.key(place(key));
        self.store.run(script.arg(from.written()).arg(claim.written()).arg(clock::millis(LEASE))).await
    }

    /// Stores an answer for about a day, whoever has the lease.
    pub async fn put(&self, key: &str, answer: &Answer) -> Result<(), Error> {
        let bytes = rmp_serde::to_vec_named(answer).map_err(|error| Error::Corrupt(error.to_string()))?;
        if bytes.len() > ANSWER_BYTES_MAX {
            return Ok(());
        }
        let ttl = TTL_LEAST + clock::jitter(TTL_SPREAD);
        self.store.query(redis::cmd("SET").arg(place(key)).arg(bytes).arg("PX").arg(clock::millis(ttl))).await
    }

    /// Keeps leases, each of a key and a job, for another [`LEASE`]; false for each that is lost, or has its answer.
    pub async fn renew(&self, leases: &[(&str, &Token)]) -> Result<Vec<bool>, Error> {
        let mut renew = self.scripts.renew.arg(clock::millis(LEASE));
        for (key, job) in leases {
            renew.key(place(key)).arg(job.as_str());
        }
        self.store.run(&renew).await
    }

    /// Gives the lease back to whom it was taken from, where it is still this job's.
    pub async fn give_back(&self, key: &str, job: &Token, from: &Claim) -> Result<(), Error> {
        let mut script = self.scripts.release.key(place(key));
        self.store.run(script.arg(job.as_str()).arg(from.written()).arg(clock::millis(LEASE))).await
    }

    /// Gives the lease up, where it is still this job's.
    pub async fn release(&self, key: &str, job: &Token) -> Result<(), Error> {
        self.store.run(self.scripts.release.key(place(key)).arg(job.as_str())).await
    }
}

fn place(key: &str) -> String {
    format!("answer:{key}")
}
