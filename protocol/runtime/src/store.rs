//! A connection to one Redis that never keeps its caller waiting, and knows whether Redis answers.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, ScriptInvocation};
use tracing::{info, warn};

use crate::Error;

/// Longest wait for one command. Every command of ours may be repeated, so an unknown outcome does no harm.
const TIMEOUT: Duration = Duration::from_millis(250);
/// How often an idle connection is tried, so that health is known and a lost connection is made anew.
const PING: Duration = Duration::from_secs(1);
/// Bounds of the delay before a connection is tried again.
const RECONNECT_FIRST: Duration = Duration::from_millis(50);
const RECONNECT_MOST: Duration = Duration::from_secs(1);

/// One Redis; cheap to clone.
#[derive(Clone)]
pub(crate) struct Store {
    manager: ConnectionManager,
    health: Arc<Health>,
}

/// Written after every command, read by anybody.
struct Health {
    what: &'static str,
    answers: AtomicBool,
}

impl Store {
    /// Does not wait for Redis. `what` names it in the log.
    pub(crate) fn new(url: &str, what: &'static str) -> Result<Self, Error> {
        // The address may hold a password: it stays out of the message.
        let setup = |error: RedisError| Error::Setup(format!("redis.{what}: {error}"));
        let client = redis::Client::open(url).map_err(setup)?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(1)))
            .set_response_timeout(Some(TIMEOUT))
            .set_number_of_retries(1)
            .set_min_delay(RECONNECT_FIRST)
            .set_max_delay(RECONNECT_MOST)
            .set_pipeline_buffer_size(1024);
        let manager = ConnectionManager::new_lazy_with_config(client, config).map_err(setup)?;
        let health = Arc::new(Health { what, answers: AtomicBool::new(true) });
        let store = Self { manager, health };
        store.watch();
        Ok(store)
    }

    /// Pings until the last clone is gone.
    fn watch(&self) {
        let (mut manager, health) = (self.manager.clone(), Arc::downgrade(&self.health));
        tokio::spawn(async move {
            while let Some(health) = health.upgrade() {
                let ping = redis::cmd("PING");
                let _: Result<String, Error> = health.bounded(ping.query_async(&mut manager)).await;
                drop(health);
                tokio::time::sleep(PING).await;
            }
        });
    }

    pub(crate) fn healthy(&self) -> bool {
        self.health.answers.load(Ordering::Relaxed)
    }

    pub(crate) async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Error> {
        self.health.bounded(command.query_async(&mut self.manager.clone())).await
    }

    pub(crate) async fn run<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T, Error> {
        self.health.bounded(script.invoke_async(&mut self.manager.clone())).await
    }
}

impl Health {
    async fn bounded<T>(&self, command: impl Future<Output = RedisResult<T>>) -> Result<T, Error> {
        let result = match tokio::time::timeout(TIMEOUT, command).await {
            Ok(result) => result.map_err(failure),
            Err(_) => Err(Error::RedisDown(format!("no answer within {} ms", TIMEOUT.as_millis()))),
        };
        let answers = !matches!(result, Err(Error::RedisDown(_)));
        match (self.answers.swap(answers, Ordering::Relaxed), &result) {
            (true, Err(error @ Error::RedisDown(_))) => warn!(redis = self.what, %error, "Redis is away"),
            (false, Ok(_)) => info!(redis = self.what, "Redis answers again"),
            _ => {}
        }
        result
    }
}

fn failure(error: RedisError) -> Error {
    match (error.kind(), error.code()) {
        // Ours say CORRUPT, the server's own WRONGTYPE: a key that is not what it should be.
        (_, Some("WRONGTYPE" | "CORRUPT")) => Error::Corrupt(error.to_string()),
        (_, Some("OOM")) => Error::Full(error.to_string()),
        (ErrorKind::Parse | ErrorKind::UnexpectedReturnType, _) => Error::Corrupt(error.to_string()),
        _ => Error::RedisDown(error.to_string()),
    }
}
