//! A client as anybody could write one: it knows the contract, not the crates behind it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, Context};
use async_nats::{HeaderMap, Message, Request, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::wait::until;

/// Longest wait for one message: generous, since two fleets and a build may share two cores.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A message to a door.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Which door.
    pub subject: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Ask {
    /// A body as it stands.
    #[must_use]
    pub fn raw(body: impl Into<Bytes>) -> Ask {
        Ask { subject: "infer".into(), headers: HeaderMap::new(), body: body.into() }
    }

    /// A JSON envelope.
    #[must_use]
    pub fn json(envelope: &Value) -> Ask {
        Ask::raw(envelope.to_string()).header("Content-Type", "application/json")
    }

    /// A MessagePack envelope.
    ///
    /// # Panics
    /// Never: every JSON value has its MessagePack.
    #[must_use]
    pub fn msgpack(envelope: &Value) -> Ask {
        let body = rmp_serde::to_vec_named(envelope).expect("a value encodes");
        Ask::raw(body).header("Content-Type", "application/msgpack")
    }

    /// A text to be answered in so many tokens, computed anew.
    #[must_use]
    pub fn text(text: &str, max_tokens: u32) -> Ask {
        Ask::json(&envelope(text, max_tokens)).header("Flotilla-Cache", "bypass")
    }

    /// Another door.
    #[must_use]
    pub fn at(mut self, subject: &str) -> Ask {
        subject.clone_into(&mut self.subject);
        self
    }

    /// One more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Ask {
        self.headers.insert(name, value);
        self
    }

    /// As a stream.
    #[must_use]
    pub fn streamed(self) -> Ask {
        self.header("Flotilla-Stream", "true")
    }
}

/// An envelope of one text.
#[must_use]
pub fn envelope(text: &str, max_tokens: u32) -> Value {
    json!({"input": [{"type": "text", "text": text}], "params": {"max_tokens": max_tokens}})
}

/// One message of an answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// When it came.
    pub at: Instant,
}

impl Reply {
    /// Reads a message.
    #[must_use]
    pub fn of(message: Message) -> Reply {
        Reply { headers: message.headers.unwrap_or_default(), body: message.payload, at: Instant::now() }
    }

    /// A header; empty where there is none.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(async_nats::HeaderValue::as_str).unwrap_or_default()
    }

    /// A header that is a number.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn number(&self, name: &str) -> u64 {
        self.header(name).parse().unwrap_or_else(|_| panic!("{name} is no number in {self:?}"))
    }

    /// `accepted`, `chunk`, `done` or `failed`.
    #[must_use]
    pub fn status(&self) -> &str {
        self.header("Flotilla-Status")
    }

    /// The body as text.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).expect("a text")
    }

    /// The body of a JSON or MessagePack message.
    ///
    /// # Panics
    /// When it is neither.
    #[must_use]
    pub fn value(&self) -> Value {
        let read = match self.header("Content-Type") {
            "application/msgpack" => rmp_serde::from_slice(&self.body).map_err(|error| error.to_string()),
            _ => serde_json::from_slice(&self.body).map_err(|error| error.to_string()),
        };
        read.unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// The error code; empty where the message is no error.
    #[must_use]
    pub fn code(&self) -> String {
        if self.header("Nats-Service-Error-Code").is_empty() || self.body.is_empty() {
            return String::new();
        }
        self.value()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    /// Whether it is the end mark.
    #[must_use]
    pub fn is_end(&self) -> bool {
        self.body.is_empty()
    }

    /// The text of a whole answer.
    ///
    /// # Panics
    /// When it is no whole answer.
    #[must_use]
    pub fn answer(&self) -> String {
        assert_eq!(self.status(), "done", "{self:?}");
        match self.header("Content-Type") {
            "text/plain; charset=utf-8" => self.text(),
            _ => self.value()["output"][0]["text"].as_str().expect("an answer has a text").to_owned(),
        }
    }

    /// Tokens of the rendered prompt.
    ///
    /// # Panics
    /// When it is no structured answer.
    #[must_use]
    pub fn input_tokens(&self) -> u64 {
        self.value()["usage"]["input_tokens"].as_u64().unwrap_or_else(|| panic!("no usage in {self:?}"))
    }
}

/// The messages of one answer.
pub struct Answers(Subscriber);

impl Answers {
    /// The next one.
    ///
    /// # Panics
    /// When none comes.
    pub async fn next(&mut self) -> Reply {
        let message = tokio::time::timeout(PATIENCE, self.0.next()).await;
        Reply::of(message.unwrap_or_else(|_| panic!("no message within {PATIENCE:?}")).expect("an open connection"))
    }

    /// Whether one comes within this time.
    pub async fn within(&mut self, time: Duration) -> Option<Reply> {
        tokio::time::timeout(time, self.0.next()).await.ok().flatten().map(Reply::of)
    }

    /// All of them up to the end mark.
    pub async fn all(&mut self) -> Vec<Reply> {
        let mut all = Vec::new();
        loop {
            all.push(self.next().await);
            if all.last().is_some_and(Reply::is_end) {
                return all;
            }
        }
    }
}

/// The text of a stream, read as the contract says: a new attempt discards what came before, numbers have no gap, and
/// the end mark's hash is that of the text.
///
/// # Panics
/// When the stream breaks the contract.
#[must_use]
pub fn streamed_text(replies: &[Reply]) -> String {
    let (mut text, mut attempt, mut next) = (String::new(), 0, 0);
    for chunk in replies.iter().filter(|reply| reply.status() == "chunk") {
        if chunk.number("Flotilla-Attempt") != attempt {
            assert!(chunk.number("Flotilla-Attempt") > attempt, "attempts go up: {chunk:?}");
            (attempt, next) = (chunk.number("Flotilla-Attempt"), 0);
            text.clear();
        }
        assert_eq!(chunk.number("Flotilla-Seq"), next, "{chunk:?}");
        next += 1;
        match chunk.header("Content-Type") {
            "text/plain; charset=utf-8" => text.push_str(&chunk.text()),
            _ => text.push_str(chunk.value()["delta"]["text"].as_str().expect("a chunk has a text")),
        }
    }
    let end = replies.last().expect("a stream has an end");
    assert!(end.is_end() && end.status() == "done", "{end:?}");
    let hash: String = Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(end.header("Flotilla-Sha256"), hash);
    text
}

/// A connection to a fleet.
#[derive(Clone)]
pub struct Client {
    /// Core NATS.
    pub nats: async_nats::Client,
    /// JetStream.
    pub js: Context,
}

impl Client {
    /// Connects; reconnects by itself.
    ///
    /// # Panics
    /// When nobody listens.
    pub async fn connect(url: &str) -> Client {
        Client::connect_any(&[url.to_owned()]).await
    }

    /// Connects to any of these servers; reconnects by itself.
    ///
    /// # Panics
    /// When nobody listens.
    pub async fn connect_any(urls: &[String]) -> Client {
        let nats = async_nats::connect(urls).await.expect("a NATS server");
        Client { js: jetstream::new(nats.clone()), nats }
    }

    /// The first reply to a request.
    ///
    /// # Panics
    /// When none comes.
    pub async fn ask(&self, ask: &Ask) -> Reply {
        let request = Request::new().payload(ask.body.clone()).headers(ask.headers.clone()).timeout(Some(PATIENCE));
        let reply = self.nats.send_request(ask.subject.clone(), request).await;
        Reply::of(reply.unwrap_or_else(|error| panic!("{}: {error}", ask.subject)))
    }

    /// Every reply to a request.
    ///
    /// # Panics
    /// When the connection is closed.
    pub async fn open(&self, ask: &Ask) -> Answers {
        let inbox = self.nats.new_inbox();
        let answers = self.listen(&inbox).await;
        let sent =
            self.nats.publish_with_reply_and_headers(ask.subject.clone(), inbox, ask.headers.clone(), ask.body.clone());
        sent.await.expect("an open connection");
        answers
    }

    /// What is said on a subject.
    ///
    /// # Panics
    /// When the connection is closed.
    pub async fn listen(&self, subject: &str) -> Answers {
        let answers = Answers(self.nats.subscribe(subject.to_owned()).await.expect("an open connection"));
        self.nats.flush().await.expect("an open connection");
        answers
    }

    /// Puts a message into the durable door of a tenant; its job id unless it has one of its own.
    ///
    /// # Panics
    /// When it is not stored.
    pub async fn submit(&self, tenant: &str, ask: &Ask) -> String {
        let subject = format!("submit.{tenant}");
        let ack = self.js.publish_with_headers(subject, ask.headers.clone(), ask.body.clone()).await;
        let ack = ack.expect("an open connection").await.expect("the durable door stores");
        format!("i{}", ack.sequence)
    }

    /// What `infer.result` says of a job now.
    pub async fn result(&self, job: &str) -> Reply {
        self.ask(&Ask::raw(job.to_owned()).at("infer.result")).await
    }

    /// What `infer.result` says of a job in the end.
    pub async fn settled(&self, job: &str) -> Reply {
        until(&format!("the result of {job}"), PATIENCE, || async {
            let reply = self.result(job).await;
            // Just stored and not yet looked at, its id is not known.
            (!["pending", "not_found"].contains(&reply.code().as_str())).then_some(reply)
        })
        .await
    }

    /// Every subject of a stream with its number of messages.
    pub async fn subjects(&self, stream: &str) -> BTreeMap<String, u64> {
        let state = self.state(stream).await;
        let subjects = state["subjects"].as_object().cloned().unwrap_or_default();
        subjects.into_iter().map(|(subject, count)| (subject, count.as_u64().unwrap_or_default())).collect()
    }

    /// How many messages a stream holds.
    pub async fn held(&self, stream: &str) -> u64 {
        self.state(stream).await["messages"].as_u64().unwrap_or_default()
    }

    /// How many messages a stream ever took.
    pub async fn taken(&self, stream: &str) -> u64 {
        let info = self.info(stream).await;
        // A stream may be born to begin later than at 1.
        let first = info["config"]["first_seq"].as_u64().unwrap_or(1);
        info["state"]["last_seq"].as_u64().map_or(0, |last| (last + 1).saturating_sub(first))
    }

    async fn state(&self, stream: &str) -> Value {
        self.info(stream).await["state"].clone()
    }

    async fn info(&self, stream: &str) -> Value {
        let query = json!({"subjects_filter": ">"}).to_string();
        let reply = self.ask(&Ask::raw(query).at(&format!("$JS.API.STREAM.INFO.{stream}"))).await;
        reply.value()
    }
}
