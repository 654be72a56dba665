//! Who waits for a request whose steps are under way, as far as it can be told.

use std::time::Duration;

use protocol::job::{Job, Turn};
use protocol::record::{End, Record, SessionTurn};
use protocol::request::{Format, Mode};
use protocol::token::Token;
use protocol::{Refusal, WIRE_VERSION, subject};
use runtime::clock;
use serde::Deserialize;

use crate::pull::Settled;

/// Who waits for a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Sender {
    pub(super) job: Token,
    pub(super) tenant: Token,
    pub(super) format: Format,
    pub(super) mode: Mode,
    pub(super) reply_to: Option<String>,
    pub(super) turn: Option<Turn>,
    /// `None` where nobody can tell.
    pub(super) deadline_ms: Option<u64>,
}

/// What even a reader of an older version finds in what a step gave.
#[derive(Deserialize)]
struct Label {
    job: JobLabel,
}

#[derive(Deserialize)]
struct JobLabel {
    format: Format,
    mode: Mode,
    deadline_ms: u64,
    #[serde(default)]
    reply_to: Option<String>,
    #[serde(default)]
    steps: Option<StepsLabel>,
}

#[derive(Deserialize)]
struct StepsLabel {
    #[serde(default)]
    ahead: Option<AheadLabel>,
}

#[derive(Deserialize)]
struct AheadLabel {
    #[serde(default)]
    turn: Option<Turn>,
}

impl Sender {
    pub(super) fn of(job: &Job) -> Self {
        Self {
            job: job.id.clone(),
            tenant: job.tenant.clone(),
            format: job.format,
            mode: job.mode,
            reply_to: checked(job.reply_to.clone()),
            turn: job.turn().cloned(),
            deadline_ms: Some(job.deadline_ms),
        }
    }

    /// Of a record that may be none; the subject says whose it is.
    pub(super) fn peek(tenant: Token, job: Token, record: &[u8]) -> Self {
        match rmp_serde::from_slice(record) {
            Ok(Label { job: JobLabel { format, mode, deadline_ms, reply_to, steps } }) => {
                let turn = steps.and_then(|steps| steps.ahead).and_then(|ahead| ahead.turn);
                Self { job, tenant, format, mode, reply_to: checked(reply_to), turn, deadline_ms: Some(deadline_ms) }
            }
            Err(_) => {
                let (format, mode) = (Format::Raw, Mode::Whole);
                Self { job, tenant, format, mode, reply_to: None, turn: None, deadline_ms: None }
            }
        }
    }

    pub(super) fn late(&self) -> bool {
        self.deadline_ms.is_some_and(|deadline_ms| clock::now_ms() >= deadline_ms)
    }

    /// When a step comes again: apart from others, and by the deadline, at which the sender hears; after it, when it would.
    pub(super) fn again(&self, delay: Duration) -> Settled {
        let delay = delay / 2 + clock::jitter(delay / 2);
        let left = self.deadline_ms.map(|deadline_ms| deadline_ms.saturating_sub(clock::now_ms()));
        match left {
            None | Some(0) => Settled::Again(delay),
            Some(left) => Settled::Again(delay.min(Duration::from_millis(left))),
        }
    }

    /// The record of a request that ends without an answer.
    pub(super) fn record(&self, refusal: Refusal) -> Record {
        Record {
            version: WIRE_VERSION,
            job: self.job.clone(),
            tenant: self.tenant.clone(),
            format: self.format,
            settled_ms: clock::now_ms(),
            end: End::Failed(refusal),
            session: self.unanswered(),
            cache_key: None,
        }
    }

    /// The request's turn of a session, which leaves no trace in the conversation.
    pub(super) fn unanswered(&self) -> Option<SessionTurn> {
        let Turn { session, number } = self.turn.clone()?;
        Some(SessionTurn { session, number, input: Vec::new(), answer: None })
    }
}

/// Checked at the door, and here again: it is this process that would publish there.
fn checked(reply_to: Option<String>) -> Option<String> {
    reply_to.filter(|to| subject::check_reply_to(to).is_ok())
}

#[cfg(test)]
mod tests {
    use protocol::token::SessionId;
    use serde_json::json;

    use super::*;

    fn peek(record: &serde_json::Value) -> Sender {
        let name = |name| Token::parse("name", name).unwrap();
        Sender::peek(name("t"), name("j"), &rmp_serde::to_vec_named(record).unwrap())
    }

    #[test]
    fn whoever_waits_is_known_of_a_record_that_cannot_be_read() {
        let turn = json!({"session": "s", "number": 3});
        let job = |reply_to: &str| {
            let steps = json!({"pipeline": 7, "ahead": {"turn": turn, "input": "no list"}});
            json!({"reply_to": reply_to, "format": "json", "mode": "stream", "deadline_ms": 5, "steps": steps})
        };
        let sender = peek(&json!({"version": 99, "job": job("_INBOX.a"), "given": "other"}));
        assert_eq!((sender.format, sender.mode, sender.deadline_ms), (Format::Json, Mode::Stream, Some(5)));
        assert_eq!(sender.turn, Some(Turn { session: SessionId::parse("s").unwrap(), number: 3 }));
        assert_eq!(sender.reply_to.as_deref(), Some("_INBOX.a"));
        assert_eq!(peek(&json!({"job": job("jobs.x")})).reply_to, None, "nobody publishes there");
        let unknown = peek(&json!(["no", "record"]));
        assert_eq!((unknown.reply_to.as_deref(), unknown.deadline_ms, unknown.late()), (None, None, false));
    }

    #[test]
    fn a_step_comes_again_by_the_deadline() {
        let mut sender = peek(&json!(0));
        let delay = Duration::from_secs(100);
        let again = |sender: &Sender| match sender.again(delay) {
            Settled::Again(delay) => delay,
            Settled::Done => panic!("it is not done"),
        };
        assert!((delay / 2..=delay).contains(&again(&sender)));
        sender.deadline_ms = Some(clock::now_ms() + 3000);
        assert!(again(&sender) <= Duration::from_secs(3) && !sender.late());
        sender.deadline_ms = Some(1);
        assert!(again(&sender) >= delay / 2 && sender.late());
    }
}
