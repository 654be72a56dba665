//! Servers, and names.

use protocol::answer::{Answer, Finish, Output, Usage};
use protocol::record::{End, Record, SessionTurn};
use protocol::request::{Format, Part};
use protocol::stream::Limits;
use protocol::token::{SessionId, Token};
use runtime::Bus;
use runtime::bus::{apply_streams, connect};
use runtime::config::{Nats, Redis, Streams};
use tests::servers::{NatsServer, RedisServer};

pub(crate) async fn bus(server: &NatsServer) -> Bus {
    let nats = Nats { url: server.url(), ..Nats::default() };
    connect(&nats, "test").await.expect("a connection")
}

/// A bus with its streams.
pub(crate) async fn streams(server: &NatsServer) -> Bus {
    let bus = bus(server).await;
    apply_streams(&bus, &limits()).await.expect("streams");
    bus
}

pub(crate) fn limits() -> Limits {
    Streams::default().limits()
}

pub(crate) fn redis(server: &RedisServer) -> Redis {
    Redis { sessions: server.url(), cache: server.url() }
}

pub(crate) fn tenant() -> Token {
    Token::default_tenant()
}

pub(crate) fn job(name: &str) -> Token {
    Token::parse("job", name).expect("a token")
}

pub(crate) fn session(name: &str) -> SessionId {
    SessionId::parse(name).expect("a session")
}

pub(crate) fn answer(of: &str, text: &str) -> Answer {
    Answer {
        job: job(of),
        model: "m".into(),
        task: "chat".into(),
        output: vec![Output::Text { text: text.into() }],
        finish_reason: Finish::Stop,
        usage: Usage { input_tokens: 1, output_tokens: 2, ..Usage::default() },
        cache: protocol::answer::CacheOutcome::Miss,
        steps: Vec::new(),
    }
}

pub(crate) fn record(of: &str, text: &str) -> Record {
    Record {
        version: protocol::WIRE_VERSION,
        job: job(of),
        tenant: tenant(),
        format: Format::Raw,
        settled_ms: runtime::clock::now_ms(),
        end: End::Done(answer(of, text)),
        session: None,
        cache_key: None,
    }
}

pub(crate) fn turn(of: &str, number: u64, answer: Option<&str>) -> SessionTurn {
    SessionTurn {
        session: session(of),
        number,
        input: vec![Part::user(format!("question {number}"))],
        answer: answer.map(str::to_owned),
    }
}
