//! Step 1 of the walk: messages as the doors take them. [`infer`] has the interactive doors,
//! [`submit`] the durable one; [`service`] shows them as a NATS micro service.
//!
//! Nothing else acks INGRESS. Every message is a task of its own, bounded in number and bytes.

pub mod infer;
pub mod service;
pub mod submit;

use bytes::Bytes;
use protocol::Refusal;
use protocol::header::{self, Headers};
use protocol::media::Modality;
use protocol::subject;
use protocol::token::Token;
use runtime::telemetry::Trace;

use crate::slots::Place;

/// How a message came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// A core request: somebody waits.
    Infer,
    /// A message of INGRESS: stored, somebody will come for the result.
    Submit(Stored),
}

/// A message's place in INGRESS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its sequence.
    pub sequence: u64,
    /// How often it was delivered, this time included.
    pub delivered: u64,
}

impl Door {
    /// The word in metrics and logs.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Door::Infer => "infer",
            Door::Submit(_) => "submit",
        }
    }
}

/// A message at a door.
#[derive(Debug)]
pub struct Incoming {
    /// Which door.
    pub door: Door,
    /// Whose, by the subject.
    pub tenant: Token,
    /// The body.
    pub body: Bytes,
    /// The headers, without the server's own.
    pub headers: Headers,
    /// Where the door itself says what the body is.
    pub modality: Option<Modality>,
    /// Where the answer goes; checked.
    pub reply_to: Option<String>,
    /// When the door took it, in milliseconds since 1970.
    pub received_ms: u64,
    /// Trace context of what follows.
    pub trace: Trace,
    /// Its place among the messages in hand; given back by whoever waits for another's answer.
    pub slot: Option<Place>,
}

/// The sender's trace with a span of our own, or a new trace.
fn trace(headers: &Headers) -> Trace {
    headers.get(header::TRACEPARENT).and_then(Trace::parse).map_or_else(Trace::start, |trace| trace.child())
}

/// Where an answer goes: the header's word, else the message's own reply subject. A bad header is refused, to the
/// latter; a bad reply subject is as good as none.
fn reply_to(headers: &Headers, reply: Option<&str>) -> Result<Option<String>, Refusal> {
    match headers.get(header::REPLY_TO) {
        Some(named) => subject::check_reply_to(named).map(|()| Some(named.to_owned())),
        None => Ok(inbox(reply).map(str::to_owned)),
    }
}

/// A message's own reply subject, where an answer may go there.
fn inbox(reply: Option<&str>) -> Option<&str> {
    reply.filter(|reply| subject::check_reply_to(reply).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_go_where_the_header_says_or_to_the_inbox() {
        let named = |name: &str| Headers::new().with(header::REPLY_TO, name);
        assert_eq!(reply_to(&Headers::new(), Some("_INBOX.a")).unwrap().as_deref(), Some("_INBOX.a"));
        assert_eq!(reply_to(&named("my.box"), Some("_INBOX.a")).unwrap().as_deref(), Some("my.box"));
        assert_eq!(reply_to(&named("my.box"), Some("$JS.API.x")).unwrap().as_deref(), Some("my.box"));
        assert!(reply_to(&named("jobs.x"), Some("_INBOX.a")).is_err());
        assert_eq!(reply_to(&Headers::new(), Some("$JS.API.x")).unwrap(), None);
        assert_eq!(reply_to(&Headers::new(), None).unwrap(), None);
    }
}
