//! Pulls on the wire: one inbox for all of them, and a request to the server for each. What to pull is decided in
//! [`crate::lanes`].

use std::time::Duration;

use async_nats::{Message, StatusCode, Subject};
use bytes::Bytes;
use protocol::request::Priority;
use protocol::stream::{JOBS, LANE_GROUP};
use protocol::subject;
use runtime::Bus;
use serde::Serialize;

use crate::lanes::{Ask, EXPIRES, Kind};
use crate::model::Model;

/// A lane that this worker pulls from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Which of the worker's models.
    pub model: usize,
    /// How urgent.
    pub priority: Priority,
    /// Its durable consumer.
    pub consumer: String,
    /// What its messages are published to.
    pub subject: String,
}

/// The lanes of every model, those of one model together, most urgent first.
#[must_use]
pub fn sources(models: &[Model]) -> Vec<Source> {
    let of = |(model, priority): (usize, Priority)| {
        let (modality, name) = (models[model].modality, &models[model].loaded.name);
        Source {
            model,
            priority,
            consumer: subject::lane_consumer(modality, name, priority),
            subject: subject::lane(modality, name, priority),
        }
    };
    (0..models.len()).flat_map(|model| Priority::ALL.map(|priority| (model, priority))).map(of).collect()
}

/// What came to the inbox.
#[derive(Debug)]
pub enum Pulled {
    /// A message of a lane.
    Delivery {
        /// Which lane.
        lane: usize,
        /// The message.
        message: Message,
    },
    /// A pull brought all there was.
    Empty {
        /// Which lane.
        lane: usize,
        /// Which pull.
        number: u64,
    },
    /// A pull was refused.
    Refused {
        /// Which lane.
        lane: usize,
        /// Which pull.
        number: u64,
        /// How long the lane is to be left alone.
        rest: Duration,
        /// What the server said.
        why: String,
    },
    /// Nothing that we asked for.
    Stray,
}

/// The inbox of all pulls.
#[derive(Clone, Debug)]
pub struct Inbox {
    prefix: String,
    rank: u8,
}

/// A pull as the server reads it.
#[derive(Serialize)]
struct Request {
    batch: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<u64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    no_wait: bool,
    group: &'static str,
    priority: u8,
}

/// The lane's consumer is not there yet, or JetStream is not.
const REST_ABSENT: Duration = Duration::from_secs(1);
/// The consumer moved, or has as many waiting pulls as it takes.
const REST_BUSY: Duration = Duration::from_millis(250);
/// The server does not understand us: nothing that a retry mends.
const REST_REFUSED: Duration = Duration::from_secs(5);

impl Inbox {
    /// An inbox of its own. `rank` orders the workers of a lane, least first.
    #[must_use]
    pub fn new(bus: &Bus, rank: u8) -> Self {
        Self { prefix: bus.client.new_inbox(), rank }
    }

    /// What to subscribe to.
    #[must_use]
    pub fn subject(&self) -> String {
        format!("{}.*", self.prefix)
    }

    /// Sends a pull.
    pub async fn pull(&self, bus: &Bus, source: &Source, ask: Ask) -> Result<(), async_nats::PublishError> {
        let to = subject::next_message(JOBS, &source.consumer);
        let reply = format!("{}.{}-{}", self.prefix, ask.lane, ask.number);
        bus.client.publish_with_reply(to, reply, self.request(ask)).await
    }

    fn request(&self, ask: Ask) -> Bytes {
        let expires = (ask.kind == Kind::Waiting).then(|| u64::try_from(EXPIRES.as_nanos()).unwrap_or(u64::MAX));
        let no_wait = ask.kind == Kind::Now;
        let request = Request { batch: ask.batch, expires, no_wait, group: LANE_GROUP, priority: self.rank };
        serde_json::to_vec(&request).expect("numbers and words always encode").into()
    }

    /// What a message in the inbox is.
    #[must_use]
    pub fn read(&self, sources: &[Source], message: Message) -> Pulled {
        let Some((lane, number)) = self.asked(&message.subject) else {
            let lane = sources.iter().position(|source| source.subject == message.subject.as_str());
            return lane.map_or(Pulled::Stray, |lane| Pulled::Delivery { lane, message });
        };
        let rest = match message.status {
            Some(StatusCode::NOT_FOUND | StatusCode::TIMEOUT) => return Pulled::Empty { lane, number },
            Some(StatusCode::NO_RESPONDERS) => {
                let why = "there is no such consumer yet".to_owned();
                return Pulled::Refused { lane, number, rest: REST_ABSENT, why };
            }
            Some(status) if status.as_u16() == 409 => REST_BUSY,
            Some(_) => REST_REFUSED,
            None => return Pulled::Stray,
        };
        let why = match (message.description.as_deref(), message.status) {
            (Some(description), _) if !description.is_empty() => description.to_owned(),
            (_, Some(status)) => format!("status {status}"),
            (_, None) => String::new(),
        };
        Pulled::Refused { lane, number, rest, why }
    }

    /// Lane and number of the pull that a status answers.
    fn asked(&self, subject: &Subject) -> Option<(usize, u64)> {
        let (lane, number) = subject.strip_prefix(self.prefix.as_str())?.strip_prefix('.')?.split_once('-')?;
        Some((lane.parse().ok()?, number.parse().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inbox() -> Inbox {
        Inbox { prefix: "_INBOX.abc".to_owned(), rank: 5 }
    }

    fn message(subject: &str, status: Option<u16>) -> Message {
        Message {
            subject: subject.into(),
            reply: None,
            payload: Bytes::new(),
            headers: None,
            status: status.map(|status| StatusCode::from_u16(status).unwrap()),
            description: None,
            length: 0,
        }
    }

    #[test]
    fn every_pull_names_the_group() {
        let now = inbox().request(Ask { lane: 0, number: 1, batch: 7, kind: Kind::Now });
        assert_eq!(&now[..], br#"{"batch":7,"no_wait":true,"group":"workers","priority":5}"#);
        let waiting = inbox().request(Ask { lane: 0, number: 1, batch: 1, kind: Kind::Waiting });
        assert_eq!(&waiting[..], br#"{"batch":1,"expires":1000000000,"group":"workers","priority":5}"#);
    }

    #[test]
    fn statuses_are_told_apart() {
        let read = |status| inbox().read(&[], message("_INBOX.abc.2-41", Some(status)));
        assert!(matches!(read(404), Pulled::Empty { lane: 2, number: 41 }));
        assert!(matches!(read(408), Pulled::Empty { lane: 2, number: 41 }));
        assert!(matches!(read(409), Pulled::Refused { rest: REST_BUSY, .. }));
        assert!(matches!(read(503), Pulled::Refused { rest: REST_ABSENT, .. }));
        assert!(matches!(read(400), Pulled::Refused { rest: REST_REFUSED, .. }));
    }

    #[test]
    fn a_delivery_is_known_by_its_lane() {
        let source = Source {
            model: 0,
            priority: Priority::Batch,
            consumer: "c".to_owned(),
            subject: "jobs.text.m.batch".to_owned(),
        };
        let read = |subject| inbox().read(std::slice::from_ref(&source), message(subject, None));
        assert!(matches!(read("jobs.text.m.batch"), Pulled::Delivery { lane: 0, .. }));
        assert!(matches!(read("jobs.text.m.standard"), Pulled::Stray));
    }
}
