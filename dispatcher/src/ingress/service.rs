//! What the doors say of themselves: `nats micro ls|info|stats`, by NATS' convention for micro services.
//!
//! The client library counts a request when it is answered through it, and its error reply has an empty body. Here most
//! requests are answered by workers and errors have bodies, so the counting is done here, with the library's messages.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::datetime::{self, DateTime};
use async_nats::service::{Info, PingResponse, Stats, endpoint, error};
use async_nats::{Client, Message};
use futures::StreamExt;
use futures::stream::select_all;
use protocol::{Refusal, subject};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::inbox;
use crate::Error;

/// Name of the service.
pub const NAME: &str = "flotilla-dispatcher";
/// All dispatchers share the doors.
pub(super) const QUEUE_GROUP: &str = "dispatchers";

/// Requests of one endpoint.
#[derive(Debug)]
pub(super) struct Counts {
    name: String,
    subject: String,
    requests: AtomicU64,
    errors: AtomicU64,
    /// From receipt to decision, over all requests.
    nanoseconds: AtomicU64,
    last_error: Mutex<Option<error::Error>>,
}

impl Counts {
    pub(super) fn new(name: String, subject: String) -> Arc<Self> {
        let zero = AtomicU64::default;
        Arc::new(Self {
            name,
            subject,
            requests: zero(),
            errors: zero(),
            nanoseconds: zero(),
            last_error: Mutex::default(),
        })
    }

    /// A request is decided.
    pub(super) fn decided(&self, took: Duration) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// It is refused.
    pub(super) fn refused(&self, refusal: &Refusal) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        let last = error::Error { status: refusal.to_string(), code: refusal.code.status().into() };
        *self.last_error.lock().expect("no holder panics") = Some(last);
    }

    fn stats(&self) -> endpoint::Stats {
        let requests = self.requests.load(Ordering::Relaxed);
        let nanoseconds = self.nanoseconds.load(Ordering::Relaxed);
        let number = |count: u64| usize::try_from(count).unwrap_or(usize::MAX);
        endpoint::Stats {
            name: self.name.clone(),
            subject: self.subject.clone(),
            requests: number(requests),
            errors: number(self.errors.load(Ordering::Relaxed)),
            processing_time: Duration::from_nanos(nanoseconds),
            average_processing_time: Duration::from_nanos(nanoseconds.checked_div(requests).unwrap_or_default()),
            last_error: self.last_error.lock().expect("no holder panics").clone(),
            data: None,
            queue_group: QUEUE_GROUP.to_owned(),
        }
    }

    fn info(&self) -> endpoint::Info {
        endpoint::Info {
            name: self.name.clone(),
            subject: self.subject.clone(),
            queue_group: QUEUE_GROUP.to_owned(),
            metadata: HashMap::new(),
        }
    }
}

/// One instance of the service.
struct Board {
    id: String,
    started: DateTime,
    endpoints: Vec<Arc<Counts>>,
}

/// What may be asked.
const VERBS: [&str; 3] = ["PING", "INFO", "STATS"];

/// Answers questions about the service until `stop`.
pub(super) async fn serve(client: Client, endpoints: Vec<Arc<Counts>>, stop: CancellationToken) -> Result<(), Error> {
    let board = Board { id: Uuid::now_v7().simple().to_string(), started: datetime::now(), endpoints };
    let mut questions = Vec::new();
    for verb in VERBS {
        for subject in subject::service(verb, NAME, &board.id) {
            let asked = client.subscribe(subject).await.map_err(|error| Error::Nats(error.to_string()))?;
            questions.push(asked.map(move |message| (verb, message)));
        }
    }
    let mut questions = select_all(questions);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            question = questions.next() => match question {
                Some((verb, message)) => board.answer(&client, verb, &message).await,
                None => return Err(Error::Ended("the service's subscriptions")),
            }
        }
    }
}

impl Board {
    async fn answer(&self, client: &Client, verb: &str, message: &Message) {
        let Some(reply) = inbox(message.reply.as_deref()) else { return };
        let body = match verb {
            "PING" => serde_json::to_vec(&self.ping()),
            "INFO" => serde_json::to_vec(&self.info()),
            _ => serde_json::to_vec(&self.stats()),
        };
        let body = body.expect("our own types always encode").into();
        if let Err(error) = client.publish(reply.to_owned(), body).await {
            tracing::debug!(%error, "a question about the service could not be answered");
        }
    }

    fn ping(&self) -> PingResponse {
        PingResponse {
            kind: "io.nats.micro.v1.ping_response".to_owned(),
            name: NAME.to_owned(),
            id: self.id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            metadata: HashMap::new(),
        }
    }

    fn info(&self) -> Info {
        Info {
            kind: "io.nats.micro.v1.info_response".to_owned(),
            name: NAME.to_owned(),
            id: self.id.clone(),
            description: "takes requests, decides, and queues them".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            metadata: HashMap::new(),
            endpoints: self.endpoints.iter().map(|counts| counts.info()).collect(),
        }
    }

    fn stats(&self) -> Stats {
        Stats {
            kind: "io.nats.micro.v1.stats_response".to_owned(),
            name: NAME.to_owned(),
            id: self.id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: self.started,
            endpoints: self.endpoints.iter().map(|counts| counts.stats()).collect(),
        }
    }
}
