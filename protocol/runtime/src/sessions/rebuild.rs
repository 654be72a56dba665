//! Bringing sessions back from RESULTS. Settling is idempotent, so what Redis still has does no harm.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::jetstream::consumer::{DeliverPolicy, ReplayPolicy};
use bytes::Bytes;
use futures::StreamExt;
use protocol::header::Headers;
use protocol::record::{Record, SessionTurn};
use protocol::token::{SessionId, Token};
use protocol::{stream, subject};
use redis::Script;
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::{Sessions, script};
use crate::{Bus, Error, clock, records};

/// Held by the one who rebuilds.
const LOCK: &str = "sessions:rebuild";
/// A rebuild that says nothing for this long is dead.
const LOCK_TTL: Duration = Duration::from_secs(15);
/// The lock is renewed after this many messages or sessions.
const RENEW_EVERY: u64 = 256;
/// A stream that is silent for this long while it should have more is away.
const SILENCE: Duration = Duration::from_secs(10);

/// What a rebuild did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rebuilt {
    /// Redis held the sessions already.
    Held,
    /// This many records were applied.
    Applied(u64),
    /// Another process rebuilds.
    Elsewhere,
}

/// Which turns of a session were forgotten, and when.
#[derive(Clone, Serialize, Deserialize)]
struct Forgotten {
    tenant: Token,
    session: SessionId,
    number: u64,
    at_ms: u64,
}

type Key = (Token, SessionId);

/// Stores for good that turns up to `number` are forgotten.
pub(super) async fn remember_forgotten(
    bus: &Bus,
    tenant: &Token,
    session: &SessionId,
    number: u64,
) -> Result<(), Error> {
    let forgotten = Forgotten { tenant: tenant.clone(), session: session.clone(), number, at_ms: clock::now_ms() };
    let body = rmp_serde::to_vec_named(&forgotten).map_err(|error| Error::Corrupt(error.to_string()))?;
    records::store(bus, stream::FORGOTTEN, subject::forgotten(tenant, session), body.into(), Headers::new()).await
}

pub(super) async fn rebuild(sessions: &Sessions, bus: &Bus) -> Result<Rebuilt, Error> {
    if sessions.held().await? {
        return Ok(Rebuilt::Held);
    }
    let Some(lock) = Lock::take(sessions).await? else { return Ok(Rebuilt::Elsewhere) };
    // Somebody may have finished between the two.
    if sessions.held().await? {
        lock.release().await?;
        return Ok(Rebuilt::Held);
    }
    info!("sessions are being rebuilt from {}", stream::RESULTS);
    let rebuilt = settled(sessions, &lock, bus).await;
    lock.release().await?;
    let applied = rebuilt?;
    info!(records = applied, "sessions are rebuilt");
    Ok(Rebuilt::Applied(applied))
}

/// Applies everything, and marks Redis as whole where the lock held until then.
async fn settled(sessions: &Sessions, lock: &Lock<'_>, bus: &Bus) -> Result<u64, Error> {
    let applied = Rebuild::new(sessions, lock).run(bus).await?;
    lock.renew().await?;
    let () = sessions.store.run(&sessions.scripts.held("set")).await?;
    Ok(applied)
}

struct Rebuild<'a> {
    sessions: &'a Sessions,
    lock: &'a Lock<'a>,
    forgotten: HashMap<Key, Forgotten>,
    /// When a session's latest record was written.
    latest: HashMap<Key, u64>,
    applied: u64,
}

impl<'a> Rebuild<'a> {
    fn new(sessions: &'a Sessions, lock: &'a Lock<'a>) -> Self {
        Self { sessions, lock, forgotten: HashMap::new(), latest: HashMap::new(), applied: 0 }
    }

    async fn run(mut self, bus: &Bus) -> Result<u64, Error> {
        let mut reader = Reader::open(bus, stream::FORGOTTEN, subject::FORGOTTEN_ALL).await?;
        while let Some(bytes) = reader.next(self.lock).await? {
            match rmp_serde::from_slice::<Forgotten>(&bytes) {
                Ok(forgotten) => {
                    self.forgotten.insert((forgotten.tenant.clone(), forgotten.session.clone()), forgotten);
                }
                Err(error) => warn!(%error, "a forgotten session that cannot be read"),
            }
        }
        let mut reader = Reader::open(bus, stream::RESULTS, subject::RESULTS_ALL).await?;
        while let Some(bytes) = reader.next(self.lock).await? {
            match Record::decode(&bytes) {
                Ok(record) => self.record(record).await?,
                Err(refusal) => warn!(%refusal, "a result that cannot be read"),
            }
        }
        self.finish().await?;
        Ok(self.applied)
    }

    async fn record(&mut self, record: Record) -> Result<(), Error> {
        let Some(mut turn) = record.session else { return Ok(()) };
        let key = (record.tenant, turn.session.clone());
        if let Some(latest) = self.latest.get(&key) {
            // The session had ended between the two: this is another one of the same name.
            if record.settled_ms > latest.saturating_add(self.ttl_ms()) {
                self.clear(&key).await?;
            }
        }
        if self.is_forgotten(&key, &turn, record.settled_ms) {
            turn.answer = None;
        }
        self.sessions.apply(&key.0, &turn, &record.job).await?;
        let latest = self.latest.entry(key).or_default();
        *latest = record.settled_ms.max(*latest);
        self.applied += 1;
        Ok(())
    }

    /// Numbers begin anew once a session ended, which is not before a time to live after it was forgotten.
    fn is_forgotten(&self, key: &Key, turn: &SessionTurn, settled_ms: u64) -> bool {
        self.forgotten.get(key).is_some_and(|forgotten| {
            turn.number <= forgotten.number && settled_ms <= forgotten.at_ms.saturating_add(self.ttl_ms())
        })
    }

    /// Sessions that ended are gone, the others live on for what is left, and what is forgotten stays so.
    async fn finish(&self) -> Result<(), Error> {
        let now = clock::now_ms();
        let mut visited = 0;
        for (key, latest) in &self.latest {
            self.lock.visited(&mut visited).await?;
            let left = latest.saturating_add(self.ttl_ms()).saturating_sub(now);
            if left == 0 {
                self.clear(key).await?;
                continue;
            }
            for name in script::keys(&key.0, &key.1) {
                let () = self.sessions.store.query(redis::cmd("PEXPIRE").arg(name).arg(left)).await?;
            }
        }
        for (key, forgotten) in &self.forgotten {
            self.lock.visited(&mut visited).await?;
            if now <= forgotten.at_ms.saturating_add(self.ttl_ms()) {
                self.sessions.forget_upto(&key.0, &key.1, forgotten.number).await?;
            }
        }
        Ok(())
    }

    async fn clear(&self, key: &Key) -> Result<(), Error> {
        self.sessions.store.query(redis::cmd("DEL").arg(&script::keys(&key.0, &key.1)[..])).await
    }

    fn ttl_ms(&self) -> u64 {
        clock::millis(self.sessions.bounds.ttl)
    }
}

/// Reads a stream from its beginning to its present end.
struct Reader {
    messages: Option<async_nats::jetstream::consumer::pull::Ordered>,
    name: &'static str,
    read: u64,
}

impl Reader {
    async fn open(bus: &Bus, name: &'static str, filter: &str) -> Result<Self, Error> {
        let nats = |error: &dyn std::fmt::Display| Error::Nats(format!("reading {name}: {error}"));
        let stream = bus.js.get_stream(name).await.map_err(|error| nats(&error))?;
        if stream.cached_info().state.messages == 0 {
            return Ok(Self { messages: None, name, read: 0 });
        }
        let config = OrderedConfig {
            deliver_policy: DeliverPolicy::All,
            replay_policy: ReplayPolicy::Instant,
            filter_subject: filter.to_owned(),
            ..OrderedConfig::default()
        };
        let consumer = stream.create_consumer(config).await.map_err(|error| nats(&error))?;
        let messages = consumer.messages().await.map_err(|error| nats(&error))?;
        Ok(Self { messages: Some(messages), name, read: 0 })
    }

    async fn next(&mut self, lock: &Lock<'_>) -> Result<Option<Bytes>, Error> {
        let Some(messages) = &mut self.messages else { return Ok(None) };
        let nats = |error: &dyn std::fmt::Display| Error::Nats(format!("reading {}: {error}", self.name));
        let message = match tokio::time::timeout(SILENCE, messages.next()).await {
            Err(_) => return Err(nats(&"silence")),
            Ok(None) => return Err(nats(&"it ended")),
            Ok(Some(message)) => message.map_err(|error| nats(&error))?,
        };
        let last = message.info().map_err(|error| nats(&error))?.pending == 0;
        lock.visited(&mut self.read).await?;
        if last {
            self.messages = None;
        }
        Ok(Some(message.message.payload))
    }
}

/// Only one process rebuilds.
struct Lock<'a> {
    sessions: &'a Sessions,
    token: String,
    renew: Script,
    release: Script,
}

impl<'a> Lock<'a> {
    async fn take(sessions: &'a Sessions) -> Result<Option<Self>, Error> {
        let token = format!("{:032x}", rand::random::<u128>());
        let ttl = clock::millis(LOCK_TTL);
        let set: Option<String> =
            sessions.store.query(redis::cmd("SET").arg(LOCK).arg(&token).arg("NX").arg("PX").arg(ttl)).await?;
        let renew = Script::new(include_str!("renew.lua"));
        let release = Script::new(include_str!("release.lua"));
        Ok(set.map(|_| Self { sessions, token, renew, release }))
    }

    /// Counts a step, and renews in time. An error where the lock is lost: somebody else rebuilds.
    async fn visited(&self, steps: &mut u64) -> Result<(), Error> {
        *steps += 1;
        if steps.is_multiple_of(RENEW_EVERY) { self.renew().await } else { Ok(()) }
    }

    async fn renew(&self) -> Result<(), Error> {
        let mut call = self.renew.prepare_invoke();
        let kept: bool = self.sessions.store.run(call.key(LOCK).arg(&self.token).arg(clock::millis(LOCK_TTL))).await?;
        if kept { Ok(()) } else { Err(Error::Rebuilding) }
    }

    async fn release(&self) -> Result<(), Error> {
        let mut call = self.release.prepare_invoke();
        self.sessions.store.run(call.key(LOCK).arg(&self.token)).await
    }
}
