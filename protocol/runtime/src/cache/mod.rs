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
    renew: Script,
    release: Script,
}

impl Responses {
    /// Does not wait for Redis.
    pub fn new(redis: &Redis) -> Result<Self, Error> {
        let scripts = Scripts {
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

    /// The answer where there is one; else asks to be the job that computes it, for [`LEASE`]. The holder that asks
    /// again has it. Bytes that are no answer are dropped and count as absent.
    pub async fn enter(&self, key: &str, lease: &str, job: &Token) -> Result<Found, Error> {
        let (answer, holder) = match self.ask(key, lease, job).await {
            Err(Error::Corrupt(_)) => (Some(Vec::new()), None),
            other => other?,
        };
        let Some(bytes) = answer else { return self.held(holder, lease, job).await };
        match rmp_serde::from_slice(&bytes) {
            Ok(answer) => Ok(Found::Answer(Box::new(answer))),
            Err(error) => {
                tracing::warn!(key, %error, "a cached answer that cannot be read is dropped");
                let () = self.store.query(redis::cmd("DEL").arg(answer_key(key))).await?;
                let (_, holder) = self.ask(key, lease, job).await?;
                self.held(holder, lease, job).await
            }
        }
    }

    /// The answer, and who held the lease; nobody, where it is the asker's now. In this order: whoever finds the lease free
    /// finds the answer of the last one who had it. A lease that was taken beside an answer lapses, as that of a job that
    /// gave one does: whoever follows either finds its record.
    async fn ask(&self, key: &str, lease: &str, job: &Token) -> Result<(Option<Vec<u8>>, Option<String>), Error> {
        let mut both = redis::pipe();
        both.cmd("SET")
            .arg(lease_key(lease))
            .arg(job.as_str())
            .arg("NX")
            .arg("GET")
            .arg("PX")
            .arg(clock::millis(LEASE));
        both.cmd("GET").arg(answer_key(key));
        let (holder, answer) = self.store.pipe(&both).await?;
        Ok((answer, holder))
    }

    /// Who has the lease: the asker, where nobody held it.
    async fn held(&self, holder: Option<String>, lease: &str, job: &Token) -> Result<Found, Error> {
        match holder {
            None => Ok(Found::Lease(Lease::Taken)),
            Some(own) if own == job.as_str() => {
                self.renew(lease, job).await?;
                Ok(Found::Lease(Lease::Taken))
            }
            Some(other) => {
                let job = Token::parse("job", &other).map_err(|refusal| Error::Corrupt(refusal.message))?;
                Ok(Found::Lease(Lease::Held { job }))
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
