//! Answers by what they depend on, and the lease by which only one job of the fleet computes each.

mod key;

use std::sync::Arc;
use std::time::Duration;

use protocol::answer::Answer;
use protocol::token::Token;
use redis::Script;

use crate::config::Redis;
use crate::store::Store;
use crate::{Error, clock};

pub use key::{KeyParts, cache_key};

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
    Taken,
    /// That one.
    Held {
        /// Its id.
        job: Token,
    },
}

/// The response cache; cheap to clone.
#[derive(Clone)]
pub struct Responses {
    store: Store,
    scripts: Arc<Scripts>,
}

struct Scripts {
    lease: Script,
    renew: Script,
    release: Script,
}

impl Responses {
    /// Does not wait for Redis.
    pub fn new(redis: &Redis) -> Result<Self, Error> {
        let scripts = Scripts {
            lease: Script::new(include_str!("lease.lua")),
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

    /// A stored answer. Bytes that are none count as absent and are dropped.
    pub async fn get(&self, key: &str) -> Result<Option<Answer>, Error> {
        let name = answer_key(key);
        let bytes: Option<Vec<u8>> = match self.store.query(redis::cmd("GET").arg(&name)).await {
            Err(Error::Corrupt(_)) => Some(Vec::new()),
            other => other?,
        };
        let Some(bytes) = bytes else { return Ok(None) };
        match rmp_serde::from_slice(&bytes) {
            Ok(answer) => Ok(Some(answer)),
            Err(error) => {
                tracing::warn!(key, %error, "a cached answer that cannot be read is dropped");
                let () = self.store.query(redis::cmd("DEL").arg(&name)).await?;
                Ok(None)
            }
        }
    }

    /// Stores an answer for about a day.
    pub async fn put(&self, key: &str, answer: &Answer) -> Result<(), Error> {
        let bytes = rmp_serde::to_vec_named(answer).map_err(|error| Error::Corrupt(error.to_string()))?;
        if bytes.len() > ANSWER_BYTES_MAX {
            return Ok(());
        }
        let ttl = TTL_LEAST + clock::jitter(TTL_SPREAD);
        self.store.query(redis::cmd("SET").arg(answer_key(key)).arg(bytes).arg("PX").arg(clock::millis(ttl))).await
    }

    /// Asks to be the one who computes, for [`LEASE`]. The holder that asks again has it.
    pub async fn lease(&self, key: &str, job: &Token) -> Result<Lease, Error> {
        let script = &self.scripts.lease;
        let holder: String =
            self.store.run(script.key(lease_key(key)).arg(job.as_str()).arg(clock::millis(LEASE))).await?;
        if holder == job.as_str() {
            return Ok(Lease::Taken);
        }
        let job = Token::parse("job", &holder).map_err(|refusal| Error::Corrupt(refusal.message))?;
        Ok(Lease::Held { job })
    }

    /// Keeps the lease for another [`LEASE`]; false where it is lost.
    pub async fn renew(&self, key: &str, job: &Token) -> Result<bool, Error> {
        let script = &self.scripts.renew;
        self.store.run(script.key(lease_key(key)).arg(job.as_str()).arg(clock::millis(LEASE))).await
    }

    /// Gives the lease up, where it is still this job's.
    pub async fn release(&self, key: &str, job: &Token) -> Result<(), Error> {
        self.store.run(self.scripts.release.key(lease_key(key)).arg(job.as_str())).await
    }
}

fn answer_key(key: &str) -> String {
    format!("answer:{key}")
}

fn lease_key(key: &str) -> String {
    format!("lease:{key}")
}
