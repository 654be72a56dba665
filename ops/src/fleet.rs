//! The fleet as NATS itself shows it: who answers as a dispatcher, which workers' hearts beat, what waits in the queues.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use async_nats::Client;
use futures::StreamExt;
use protocol::heartbeat::{EXPIRY, Heartbeat, State};
use protocol::subject;
use runtime::bus;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

/// Name of the dispatchers' micro service.
const DISPATCHER: &str = "flotilla-dispatcher";
/// How long a server may take to answer at all.
const CONNECT: Duration = Duration::from_secs(3);

/// Connects once to any server of `url`, which names one or several with commas between; no endless tries, since a person waits.
pub(crate) async fn connect(url: &str) -> Result<Client> {
    let options = async_nats::ConnectOptions::new()
        .name("flotilla")
        .connection_timeout(CONNECT)
        .ping_interval(Duration::from_secs(10));
    let servers = bus::servers(url)?;
    options.connect(servers.as_slice()).await.with_context(|| {
        let hosts = bus::hosts(&servers);
        format!("no NATS server answers at {hosts}: start a fleet with `flotilla up --detach`, or name another server with --nats")
    })
}

/// What a dispatcher's micro service says of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Dispatcher {
    /// Its instance.
    pub(crate) id: String,
    /// Its version.
    pub(crate) version: String,
    /// Its doors.
    #[serde(default)]
    pub(crate) endpoints: Vec<Endpoint>,
}

/// A door of a dispatcher.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Endpoint {
    /// Subject.
    pub(crate) subject: String,
    /// Requests so far.
    #[serde(default)]
    pub(crate) num_requests: u64,
    /// Refused ones.
    #[serde(default)]
    pub(crate) num_errors: u64,
}

/// Every dispatcher that answers within `wait`.
pub(crate) async fn dispatchers(client: &Client, wait: Duration) -> Result<Vec<Dispatcher>> {
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await?;
    client.publish_with_reply(format!("$SRV.STATS.{DISPATCHER}"), inbox, "".into()).await?;
    client.flush().await?;
    let deadline = Instant::now() + wait;
    let mut found = Vec::new();
    while let Ok(Some(answer)) = timeout_at(deadline, answers.next()).await {
        if answer.status == Some(async_nats::StatusCode::NO_RESPONDERS) {
            break;
        }
        if let Ok(dispatcher) = serde_json::from_slice(&answer.payload) {
            found.push(dispatcher);
        }
    }
    found.sort_by(|a: &Dispatcher, b| a.id.cmp(&b.id));
    Ok(found)
}

/// Every worker whose heart beats within `wait`, by name; a newer heartbeat replaces an older one.
pub(crate) async fn workers(client: &Client, wait: Duration) -> Result<Vec<Heartbeat>> {
    let mut beats = client.subscribe(subject::HEARTBEAT_ALL).await?;
    let deadline = Instant::now() + wait;
    let mut found = BTreeMap::new();
    while let Ok(Some(message)) = timeout_at(deadline, beats.next()).await {
        if let Ok(beat) = Heartbeat::decode(&message.payload) {
            found.insert(beat.worker.to_string(), beat);
        }
    }
    Ok(found.into_values().filter(|beat| beat.state != State::Gone).collect())
}

/// Returns when a dispatcher answers and so many workers are ready.
pub(crate) async fn answers(url: &str, workers: usize) {
    loop {
        if let Ok(client) = connect(url).await
            && watch(&client, workers).await.is_ok()
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn watch(client: &Client, workers: usize) -> Result<()> {
    let mut beats = client.subscribe(subject::HEARTBEAT_ALL).await?;
    let mut seen: BTreeMap<String, Instant> = BTreeMap::new();
    let mut look = tokio::time::interval(Duration::from_millis(250));
    loop {
        tokio::select! {
            beat = beats.next() => {
                let beat = Heartbeat::decode(&beat.context("the connection closed")?.payload)?;
                if beat.state == State::Ready && !beat.models.is_empty() {
                    seen.insert(beat.worker.to_string(), Instant::now());
                }
            }
            _ = look.tick() => {
                seen.retain(|_, at| at.elapsed() < EXPIRY);
                if seen.len() >= workers && !dispatchers(client, Duration::from_millis(200)).await?.is_empty() {
                    return Ok(());
                }
            }
        }
    }
}

/// One lane: what waits in it and what is being done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Lane {
    /// Name of its consumer.
    pub(crate) name: String,
    /// Jobs that wait.
    pub(crate) waiting: u64,
    /// Jobs in workers' hands.
    pub(crate) in_hand: usize,
    /// Of those, delivered more than once.
    pub(crate) redelivered: usize,
}

/// One stream: how much it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Stream {
    /// Name.
    pub(crate) name: String,
    /// Messages in it.
    pub(crate) messages: u64,
    /// Bytes in it.
    pub(crate) bytes: u64,
}

/// Every stream of a fleet, as far as it is there, and the lanes of JOBS.
pub(crate) async fn queues(client: &Client) -> Result<(Vec<Stream>, Vec<Lane>)> {
    use protocol::stream::{DEADLETTER, INGRESS, JOBS, RESULTS};
    let mut js = async_nats::jetstream::new(client.clone());
    js.set_timeout(CONNECT);
    let (mut streams, mut lanes) = (Vec::new(), Vec::new());
    for name in [INGRESS, JOBS, RESULTS, DEADLETTER] {
        let Ok(stream) = js.get_stream(name).await else { continue };
        let state = &stream.cached_info().state;
        streams.push(Stream { name: name.to_owned(), messages: state.messages, bytes: state.bytes });
        if name == JOBS {
            let mut consumers = stream.consumers();
            while let Some(consumer) = consumers.next().await {
                let consumer = consumer.context("list the lanes of JOBS")?;
                lanes.push(Lane {
                    name: consumer.name,
                    waiting: consumer.num_pending,
                    in_hand: consumer.num_ack_pending,
                    redelivered: consumer.num_redelivered,
                });
            }
        }
    }
    lanes.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((streams, lanes))
}
