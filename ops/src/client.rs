//! One request and its answer, as any client of the fleet sees them: for `ask` and `bench`.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use async_nats::{Client, HeaderMap, Message, StatusCode, Subscriber};
use futures::StreamExt;
use indicatif::DecimalBytes;
use protocol::reply::ErrorBody;
use protocol::request::{BODY_BYTES_MAX, Blob, Params, Task};
use protocol::{Refusal, header, subject};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::wheel::hex;

/// A request to the interactive door.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Question {
    /// What is asked.
    pub(crate) input: Input,
    /// What is to be done, if not what the fleet takes it for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) task: Option<Task>,
    /// Which model, if not the fleet's own choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<String>,
    /// The conversation that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) session: Option<String>,
    /// Whether the answer comes as it is made.
    pub(crate) stream: bool,
    /// When it is of no use any more.
    pub(crate) deadline_ms: u64,
    /// `use`, `bypass` or `refresh`.
    pub(crate) cache: &'static str,
    /// Parameters of the task.
    pub(crate) params: Params,
}

/// What is asked: a text, or parts.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Input {
    /// A text.
    Text(String),
    /// Texts, pictures, sounds.
    Parts(Vec<Part>),
}

/// One part.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Part {
    /// A text.
    Text {
        /// All of it.
        text: String,
    },
    /// A picture.
    Image {
        /// Its file.
        data: Blob,
    },
    /// A sound.
    Audio {
        /// Its file.
        data: Blob,
    },
}

/// Format of the answer's bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answers {
    /// Just the text.
    Text,
    /// The contract's JSON, for programs.
    Json,
}

/// What is heard of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Heard {
    /// The first of a new attempt, in JSON streams.
    Accepted {
        /// Which attempt.
        attempt: u32,
        /// As it came.
        body: String,
    },
    /// A piece of a streamed answer.
    Chunk {
        /// Which attempt; a new one means: forget what came before.
        attempt: u32,
        /// Number within the attempt.
        seq: u64,
        /// `text`, `transcript`, `labels`: steps of a pipeline come before the text.
        kind: String,
        /// As it came: text, or an object.
        body: String,
    },
    /// The whole answer.
    Whole {
        /// What it is: `text`, `transcript`, `labels`, `embedding`, `score`.
        kind: String,
        /// As it came: text, or an object.
        body: String,
    },
    /// The end mark of a stream that went well.
    End(Summary),
}

/// What the end mark says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Tokens of the prompt.
    pub(crate) input_tokens: u64,
    /// Tokens of the answer.
    pub(crate) output_tokens: u64,
    /// Hash of the whole text.
    pub(crate) sha256: String,
    /// `hit` or `miss`.
    pub(crate) cache: String,
    /// Which model answered.
    pub(crate) model: String,
}

/// An answer on its way.
pub(crate) struct Answer {
    inbox: Subscriber,
    deadline: tokio::time::Instant,
    /// When the request left.
    pub(crate) asked: Instant,
}

/// Room beyond the deadline for the fleet's own word that it passed.
const GRACE: Duration = Duration::from_secs(5);

/// Room for headers within the server's limit.
const HEADERS: usize = 4096;

/// Sends a request.
pub(crate) async fn ask(client: &Client, question: &Question, answers: Answers) -> Result<Answer> {
    let inbox = client.new_inbox();
    let subscriber = client.subscribe(inbox.clone()).await?;
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, "application/json");
    headers.insert(header::ACCEPT, if answers == Answers::Json { "application/json" } else { "text/plain" });
    let body = serde_json::to_vec(question).expect("a question always encodes");
    check_size(body.len(), client.server_info().max_payload)?;
    let asked = Instant::now();
    client.publish_with_reply_and_headers(subject::INFER, inbox, headers, body.into()).await?;
    client.flush().await?;
    let deadline = tokio::time::Instant::now() + Duration::from_millis(question.deadline_ms) + GRACE;
    Ok(Answer { inbox: subscriber, deadline, asked })
}

/// What is too large never leaves: the server would cut the connection.
fn check_size(bytes: usize, payload_max: usize) -> Result<()> {
    let most = BODY_BYTES_MAX.min(payload_max.saturating_sub(HEADERS));
    if bytes > most {
        let (bytes, most) = (DecimalBytes(bytes as u64), DecimalBytes(most as u64));
        bail!(
            "the request has {bytes}, and this fleet takes {most}: a smaller picture or a shorter or compressed sound will do \
             (files grow by a third on their way)"
        );
    }
    Ok(())
}

impl Answer {
    /// The next of it.
    pub(crate) async fn next(&mut self) -> Result<Heard> {
        match tokio::time::timeout_at(self.deadline, self.inbox.next()).await {
            Ok(Some(message)) => heard(&message),
            Ok(None) => bail!("the connection closed before the answer was whole"),
            Err(_) => bail!("no answer in time: `flotilla status` shows whether workers are alive"),
        }
    }
}

fn heard(message: &Message) -> Result<Heard> {
    if message.status == Some(StatusCode::NO_RESPONDERS) {
        return Err(anyhow!(
            "no dispatcher answers at '{}': start a fleet with `flotilla up --detach`, or see `flotilla doctor`",
            subject::INFER
        ));
    }
    let empty = HeaderMap::new();
    let headers = message.headers.as_ref().unwrap_or(&empty);
    let value = |name: &str| headers.get(name).map(|value| value.as_str().to_owned()).unwrap_or_default();
    let body = || String::from_utf8_lossy(&message.payload).into_owned();
    match value(header::STATUS).as_str() {
        "failed" => Err(refusal(&value(header::SERVICE_ERROR), &message.payload).into()),
        "accepted" => Ok(Heard::Accepted { attempt: number(&value(header::ATTEMPT))?, body: body() }),
        "chunk" => {
            let (attempt, seq) = (number(&value(header::ATTEMPT))?, number(&value(header::SEQ))?);
            Ok(Heard::Chunk { attempt, seq, kind: value(header::KIND), body: body() })
        }
        "done" if message.payload.is_empty() => Ok(Heard::End(Summary {
            input_tokens: number(&value(header::INPUT_TOKENS))?,
            output_tokens: number(&value(header::OUTPUT_TOKENS))?,
            sha256: value(header::SHA256),
            cache: value(header::CACHE),
            model: value(header::MODEL),
        })),
        "done" => Ok(Heard::Whole { kind: value(header::KIND), body: body() }),
        other => bail!("an answer with {} '{other}', which this client does not know", header::STATUS),
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T> {
    text.parse().map_err(|_| anyhow!("a header should be a number, but is '{text}'"))
}

/// The refusal of an error reply; where its body cannot be read, what the header says.
pub(crate) fn refusal(service_error: &str, body: &[u8]) -> Refusal {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(ErrorBody { error }) => {
            Refusal { code: error.code, message: error.message, retry_after_ms: error.retry_after_ms }
        }
        Err(_) => {
            let (code, message) = service_error.split_once(": ").unwrap_or(("internal", service_error));
            let known = protocol::ErrorCode::ALL.into_iter().find(|known| known.as_str() == code);
            Refusal::new(known.unwrap_or(protocol::ErrorCode::Internal), message)
        }
    }
}

/// Collects a stream's text, and notices a gap, a new attempt, and a text that is not what was sent.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    /// The text so far, of what was sent last: that of a step is not that of the answer.
    pub(crate) text: String,
    kind: String,
    attempt: u32,
    next_seq: u64,
}

/// The kind of generated text.
const TEXT: &str = "text";

/// What a chunk was to the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Took {
    /// More of it.
    More,
    /// The first of another kind: a step of a pipeline is done.
    Next,
    /// The first of a new attempt: what came before is void.
    Anew,
    /// Of an attempt that is void.
    Old,
}

impl Collected {
    /// Takes a piece.
    pub(crate) fn take(&mut self, attempt: u32, seq: u64, kind: &str, text: &str) -> Result<Took> {
        if attempt < self.attempt {
            return Ok(Took::Old);
        }
        let anew = attempt > self.attempt && self.next_seq > 0;
        if attempt > self.attempt {
            *self = Collected { attempt, ..Collected::default() };
        }
        if seq != self.next_seq {
            bail!("chunk {} of the answer was lost on its way (got {seq})", self.next_seq);
        }
        let next = self.next_seq > 0 && kind != self.kind;
        if kind != self.kind {
            (self.text, self.kind) = (String::new(), kind.to_owned());
        }
        self.next_seq += 1;
        self.text.push_str(text);
        Ok(match (anew, next) {
            (true, _) => Took::Anew,
            (false, true) => Took::Next,
            (false, false) => Took::More,
        })
    }

    /// Compares with the end mark. An answer of no text after steps that had some is one too.
    pub(crate) fn check(&self, summary: &Summary) -> Result<()> {
        let is = |text: &str| hex(&Sha256::digest(text)) == summary.sha256;
        if !summary.sha256.is_empty() && !is(&self.text) && (self.kind == TEXT || !is("")) {
            bail!("the text that arrived is not the one that was sent");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::ErrorCode;

    #[test]
    fn a_new_attempt_voids_the_old_one_and_a_gap_is_noticed() {
        let mut collected = Collected::default();
        assert_eq!(collected.take(0, 0, TEXT, "He").unwrap(), Took::More);
        assert_eq!(collected.take(0, 1, TEXT, "l").unwrap(), Took::More);
        assert_eq!(collected.take(1, 0, TEXT, "Hello").unwrap(), Took::Anew);
        assert_eq!(collected.take(0, 2, TEXT, "lo").unwrap(), Took::Old);
        assert!(collected.take(1, 2, TEXT, "!").is_err());
        let sha256 = hex(&Sha256::digest("Hello"));
        collected.check(&Summary { sha256, ..Summary::default() }).unwrap();
        assert!(collected.check(&Summary { sha256: "00".into(), ..Summary::default() }).is_err());
    }

    #[test]
    fn the_steps_of_a_pipeline_are_not_its_text() {
        let sha256 = |text: &str| Summary { sha256: hex(&Sha256::digest(text)), ..Summary::default() };
        let mut collected = Collected::default();
        assert_eq!(collected.take(0, 0, "transcript", "Who?").unwrap(), Took::More);
        collected.check(&sha256("")).unwrap();
        assert_eq!(collected.take(0, 1, TEXT, "A").unwrap(), Took::Next);
        assert_eq!(collected.take(0, 2, TEXT, "da").unwrap(), Took::More);
        collected.check(&sha256("Ada")).unwrap();
        assert!(collected.check(&sha256("Who?Ada")).is_err());
        assert!(collected.check(&sha256("")).is_err());
        assert_eq!(collected.take(1, 0, "transcript", "Who?").unwrap(), Took::Anew);
    }

    #[test]
    fn what_is_too_large_is_told_before_it_leaves() {
        check_size(1000, 8_000_000).unwrap();
        assert!(check_size(7_900_000, 8_000_000).unwrap_err().to_string().contains("7.34 MB"));
        assert!(check_size(1_100_000, 1 << 20).unwrap_err().to_string().contains("1.04 MB"));
    }

    #[test]
    fn a_question_with_media_is_one_that_the_fleet_takes() {
        let picture = Blob(b"\x89PNG\r\n\x1a\n and more".as_slice().into());
        let parts = vec![Part::Image { data: picture.clone() }, Part::Text { text: "what?".into() }];
        let question = Question { input: Input::Parts(parts), ..question() };
        let body = serde_json::to_vec(&question).unwrap().into();
        let headers = header::Headers::new();
        let incoming = protocol::request::Incoming { body: &body, headers: &headers, modality: None };
        let request = protocol::request::Request::decode(&incoming).unwrap();
        assert_eq!(request.input.len(), 2);
        assert!(
            matches!(&request.input[0].content, protocol::request::Content::Media { data, .. } if *data == picture)
        );
        let texts = ["a", "b"].map(|text| Part::Text { text: text.into() }).to_vec();
        let question = Question { input: Input::Parts(texts), task: Some(Task::Embed), ..question };
        assert!(serde_json::to_string(&question).unwrap().contains(r#""task":"embed""#));
    }

    fn question() -> Question {
        Question {
            input: Input::Text("hi".into()),
            task: None,
            model: None,
            session: None,
            stream: true,
            deadline_ms: 1000,
            cache: "use",
            params: Params::default(),
        }
    }

    #[test]
    fn errors_are_read_from_the_body_or_else_the_header() {
        let body = br#"{"error":{"code":"overloaded","message":"full","retryable":true,"retry_after_ms":250}}"#;
        let read = refusal("overloaded: full", body);
        assert_eq!((read.code, read.retry_after_ms), (ErrorCode::Overloaded, Some(250)));
        assert_eq!(refusal("not_found: no such job", b""), Refusal::new(ErrorCode::NotFound, "no such job"));
        assert_eq!(refusal("what", b"").code, ErrorCode::Internal);
    }

    #[test]
    fn a_question_holds_only_what_was_given() {
        let question = question();
        let sent = serde_json::to_string(&question).unwrap();
        assert_eq!(sent, r#"{"input":"hi","stream":true,"deadline_ms":1000,"cache":"use","params":{}}"#);
        let body = sent.into();
        let headers = header::Headers::new();
        let incoming = protocol::request::Incoming { body: &body, headers: &headers, modality: None };
        protocol::request::Request::decode(&incoming).expect("the fleet takes it");
    }
}
