//! The connection to NATS, and what is published and applied over it.

mod apply;
mod publish;

use std::borrow::Cow;
use std::str::FromStr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::header::{HeaderName, HeaderValue};
use async_nats::{ConnectOptions, Event, HeaderMap, ServerAddr};
use protocol::header::Headers;
use protocol::reply::Frame;
use tracing::{error, info, warn};

use crate::clock::Seldom;
use crate::config::Nats;
use crate::{Error, clock};

pub use apply::{apply_consumer, apply_streams, restore_consumer, restore_streams};
pub use publish::{Acked, Arrival, Expect, Publish, PublishFault, publish, publish_until};

/// A half-open connection is noticed after two of these.
const PING: Duration = Duration::from_secs(10);
/// One try at a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for an answer to a request of ours.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Bounds of the delay between two tries.
const RECONNECT_FIRST: Duration = Duration::from_millis(100);
const RECONNECT_MOST: Duration = Duration::from_secs(4);

/// A connection; cheap to clone.
#[derive(Clone, Debug)]
pub struct Bus {
    /// Core NATS.
    pub client: async_nats::Client,
    /// JetStream.
    pub js: async_nats::jetstream::Context,
}

impl Bus {
    /// Whether there is a connection, as far as is known.
    #[must_use]
    pub fn connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// How many connections there have been. With a new one the server may be another, and its store too.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.client.statistics().connects.load(Ordering::Relaxed)
    }

    /// Refuses a server older than 2.12 or without JetStream.
    pub async fn check_version(&self) -> Result<(), Error> {
        let version = self.client.server_info().version;
        if !self.client.is_server_compatible(2, 12, 0) {
            return Err(Error::Contradiction(format!("nats-server {version} is too old: 2.12 or later is required")));
        }
        let enabled = tokio::time::timeout(REQUEST_TIMEOUT, self.js.query_account()).await;
        match enabled {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) if error.to_string().contains("not enabled") => Err(Error::Contradiction(format!(
                "JetStream is off at nats-server {version}: start it with -js, or allow it to this account"
            ))),
            Ok(Err(error)) => Err(Error::Nats(error.to_string())),
            Err(_) => Err(Error::Nats("JetStream does not answer".to_owned())),
        }
    }
}

/// The servers that `nats.url` names: one, or several of a cluster with commas between.
pub fn servers(url: &str) -> Result<Vec<ServerAddr>, Error> {
    // The text itself may hold a password.
    let bad = |fault: &dyn std::fmt::Display| Error::Setup(format!("nats.url is no address of a server: {fault}"));
    let named = url.split(',').map(str::trim).filter(|one| !one.is_empty());
    let servers: Vec<ServerAddr> = named.map(str::parse).collect::<Result<_, _>>().map_err(|error| bad(&error))?;
    if servers.is_empty() { Err(bad(&"it is empty")) } else { Ok(servers) }
}

/// Hosts and ports, for people: an address may hold a password.
#[must_use]
pub fn hosts(servers: &[ServerAddr]) -> String {
    let host = |server: &ServerAddr| format!("{}:{}", server.host(), server.port());
    servers.iter().map(host).collect::<Vec<_>>().join(", ")
}

/// Connects to any of the servers, and tries for ever: says in the log what it waits for. Fails only for settings that no
/// wait can mend.
pub async fn connect(nats: &Nats, name: &str) -> Result<Bus, Error> {
    let servers = servers(&nats.url)?;
    let names = hosts(&servers);
    let mut attempt = 0;
    let mut seldom = Seldom::default();
    loop {
        match options(nats, name).await?.connect(servers.as_slice()).await {
            Ok(client) => {
                info!(servers = names, version = %client.server_info().version, "connected to NATS");
                return Ok(Bus { js: async_nats::jetstream::new(client.clone()), client });
            }
            Err(error) => {
                if seldom.due(Instant::now()) {
                    warn!(servers = names, %error, "NATS is away, waiting for it");
                }
                tokio::time::sleep(clock::backoff(attempt, RECONNECT_FIRST, RECONNECT_MOST)).await;
                attempt += 1;
            }
        }
    }
}

async fn options(nats: &Nats, name: &str) -> Result<ConnectOptions, Error> {
    let options = match &nats.credentials {
        None => ConnectOptions::new(),
        Some(path) => ConnectOptions::with_credentials_file(path)
            .await
            .map_err(|error| Error::Setup(format!("nats.credentials '{}': {error}", path.display())))?,
    };
    let delay = |attempts: usize| {
        let attempt = u32::try_from(attempts).unwrap_or(u32::MAX).saturating_sub(1);
        clock::backoff(attempt, RECONNECT_FIRST, RECONNECT_MOST)
    };
    let seldom = Arc::<Mutex<Seldom>>::default();
    Ok(options
        .name(name)
        .ping_interval(PING)
        .connection_timeout(CONNECT_TIMEOUT)
        .request_timeout(Some(REQUEST_TIMEOUT))
        .reconnect_delay_callback(delay)
        .event_callback(move |event| {
            report(&event, &seldom);
            std::future::ready(())
        }))
}

/// The library reconnects by itself; people want to know. It tries often, and says so every time.
fn report(event: &Event, seldom: &Mutex<Seldom>) {
    match event {
        Event::Connected => info!("connection to NATS is up"),
        Event::Disconnected => warn!("connection to NATS is lost, reconnecting"),
        Event::SlowConsumer(subscription) => {
            crate::metrics::slow_consumer();
            error!(subscription, "messages dropped: a subscription is not read fast enough");
        }
        Event::ServerError(problem) => warn!(%problem, "NATS reports an error"),
        Event::ClientError(problem) => {
            if seldom.lock().unwrap_or_else(PoisonError::into_inner).due(Instant::now()) {
                warn!(%problem, "connection to NATS fails, trying on");
            }
        }
        Event::LameDuckMode => info!("the NATS server goes away soon"),
        Event::Draining | Event::Closed => info!("connection to NATS is closed"),
    }
}

/// A client's headers, without its `Nats-*`: those are the server's and ours.
#[must_use]
pub fn headers_in(headers: &HeaderMap) -> Headers {
    let ours = |name: &str| name.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("nats-"));
    let mut pairs: Vec<(String, String)> = headers
        .iter()
        .filter(|(name, _)| !ours(name.as_ref()))
        .flat_map(|(name, values)| values.iter().map(|value| (name.to_string(), value.as_str().to_owned())))
        .collect();
    // The map has no order of its own. The sort is stable, so equal names stay as they came.
    pairs.sort_by(|left, right| left.0.cmp(&right.0));
    pairs.into_iter().collect()
}

/// Our headers for the wire. One that no header can hold is left out.
#[must_use]
pub fn headers_out(headers: &Headers) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers.iter() {
        let name = match name {
            // A constant is not copied, and so not looked at by the library.
            Cow::Borrowed(ours) if is_header_name(ours) => Some(HeaderName::from_static(ours)),
            Cow::Borrowed(_) => None,
            Cow::Owned(name) => HeaderName::from_str(name).ok(),
        };
        if let (Some(name), Ok(value)) = (name, HeaderValue::from_str(value)) {
            map.append(name, value);
        }
    }
    map
}

fn is_header_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':')
}

/// Sends a frame to a client: a core publish, no wait beyond the connection's own backpressure.
pub async fn send(bus: &Bus, to: &str, frame: Frame) -> Result<(), Error> {
    let headers = headers_out(&frame.headers);
    bus.client
        .publish_with_headers(to.to_owned(), headers, frame.body)
        .await
        .map_err(|error| Error::Nats(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_servers_stand_with_commas_between() {
        let named = |url| hosts(&servers(url).unwrap());
        assert_eq!(named("nats://user:secret@a:4222"), "a:4222");
        assert_eq!(named("nats://a:4222, nats://b:4223,nats://c"), "a:4222, b:4223, c:4222");
        for bad in ["", " , ", "nats://[bad", "nats://a,http://b"] {
            assert!(matches!(servers(bad), Err(Error::Setup(_))), "{bad}");
        }
    }
}
