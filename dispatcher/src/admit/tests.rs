use bytes::Bytes;
use protocol::header::{self, Headers};
use protocol::media::Modality;
use protocol::request::{self, Priority};
use runtime::telemetry::Trace;

use super::*;
use crate::catalogue::Catalogue;
use crate::classify::{Language, classify};
use crate::fixture::entry;
use crate::route::route;

fn incoming(door: Door) -> Incoming {
    Incoming {
        door,
        tenant: Token::default_tenant(),
        body: Bytes::new(),
        headers: Headers::new(),
        modality: None,
        reply_to: Some("_INBOX.a".into()),
        received_ms: 1_000,
        trace: Trace::start(),
        slot: None,
    }
}

fn decode(headers: &Headers, body: &str) -> Request {
    let body = Bytes::from(body.to_owned());
    Request::decode(&request::Incoming { body: &body, headers, modality: None }).unwrap()
}

fn make(door: Door, body: &str) -> Job {
    made(door, decode(&Headers::new(), body))
}

fn made(door: Door, request: Request) -> Job {
    let class = classify(&request, Language::Skip).unwrap();
    let terms = Terms::decide(&request, &class, None, &door);
    let lane = route(&class, &terms, &Catalogue::new(vec![entry("m")]).unwrap()).unwrap();
    let incoming = incoming(door);
    let identity = identify(&incoming, &request);
    job(&incoming, request, &identity, &terms, &lane)
}

const SUBMIT: Door = Door::Submit(Stored { sequence: 7, delivered: 2 });

#[test]
fn a_job_knows_whether_another_message_may_become_it() {
    assert_eq!(make(Door::Infer, "hi").origin, Origin::Door);
    assert_eq!(make(Door::Infer, r#"{"input":"hi","id":"mine"}"#).origin, Origin::Claimed);
    assert_eq!(make(SUBMIT, "hi").origin, Origin::Claimed);
}

#[test]
fn nothing_of_a_job_is_open() {
    let made = make(Door::Infer, r#"{"input":"hi","params":{"temperature":0.7}}"#);
    assert!(made.params.seed.unwrap() < SEED_END);
    assert_eq!((made.task, made.modality, made.model.as_str()), (Task::Chat, Modality::Text, "m"));
    assert_eq!((made.priority, made.accepted_ms, made.deadline_ms), (Priority::Interactive, 1_000, 121_000));
    assert_eq!(made.reply_to.as_deref(), Some("_INBOX.a"));
    assert!(made.traceparent.is_some() && made.session.is_none() && made.cache_key.is_none());
    assert_eq!(make(Door::Infer, "hi").params.seed, Some(0), "greedy");
    assert_eq!(make(Door::Infer, r#"{"input":"hi","params":{"seed":5}}"#).params.seed, Some(5));
    assert_eq!(make(SUBMIT, "hi").id.as_str(), "i7");
    assert_eq!(make(SUBMIT, r#"{"input":"hi","id":"mine"}"#).id.as_str(), "mine");
}

#[test]
fn a_door_knows_its_own_ids() {
    let id = make(Door::Infer, "hi").id;
    assert!(is_door_id(&id, Duration::from_secs(1)));
    for other in ["dmine", "d0123456789abcdef0123456789abcdef", "x", "d018bcfe568ff7000a000000000000000"] {
        assert!(!is_door_id(&Token::parse("id", other).unwrap(), Duration::from_secs(60)), "{other}");
    }
}

#[test]
fn a_repeat_means_the_same_whatever_its_form() {
    let json = decode(&Headers::new(), r#"{"input":"hi","id":"a","stream":true,"priority":"batch"}"#);
    let raw = decode(&Headers::new().with(header::ID, "a"), "hi");
    let other = decode(&Headers::new().with(header::ID, "a").with(header::SESSION, "s"), "hi");
    assert_eq!(identify(&incoming(Door::Infer), &json), identify(&incoming(Door::Infer), &raw));
    assert_ne!(identify(&incoming(Door::Infer), &json), identify(&incoming(Door::Infer), &other));
    assert_eq!(identify(&incoming(Door::Infer), &decode(&Headers::new(), "hi")), Identity::Fresh);
    assert_ne!(identify(&incoming(SUBMIT), &decode(&Headers::new(), "hi")), Identity::Fresh);
}

#[test]
fn accept_is_a_parameter_of_transcriptions_alone_and_of_no_meaning() {
    let vtt = Headers::new().with(header::ID, "a").with(header::ACCEPT, "text/vtt");
    let (plain, subtitles) = (decode(&Headers::new().with(header::ID, "a"), "hi"), decode(&vtt, "hi"));
    assert_eq!(identify(&incoming(Door::Infer), &plain), identify(&incoming(Door::Infer), &subtitles));
    let chat = made(Door::Infer, subtitles);
    assert_eq!((chat.task, chat.params.format), (Task::Chat, None));
    let params = Params::default();
    assert_eq!(
        written(params.clone(), &Task::Transcribe, Some(TranscriptFormat::Vtt)).format,
        Some(TranscriptFormat::Vtt)
    );
    let own = Params { format: Some(TranscriptFormat::Srt), ..params };
    assert_eq!(written(own, &Task::Transcribe, Some(TranscriptFormat::Vtt)).format, Some(TranscriptFormat::Srt));
}

#[test]
fn a_repeat_is_answered_here_when_its_job_answers_another() {
    assert!(must_answer(&incoming(Door::Infer), Arrival::Repeat, Asker::First), "somebody else was faster");
    assert!(must_answer(&incoming(Door::Infer), Arrival::Repeat, Asker::Repeat));
    assert!(!must_answer(&incoming(Door::Infer), Arrival::New, Asker::Repeat));
    assert!(!must_answer(&incoming(SUBMIT), Arrival::Repeat, Asker::FirstAgain), "its job has its reply-to");
    assert!(must_answer(&incoming(SUBMIT), Arrival::Repeat, Asker::Repeat), "however often it is delivered");
    assert!(!must_answer(&Incoming { reply_to: None, ..incoming(SUBMIT) }, Arrival::Repeat, Asker::Repeat));
}

#[test]
fn a_repeat_has_no_right_to_end_the_job() {
    let own = |asker| Named { job: Token::default_tenant(), asker }.own().is_some();
    assert!(own(Asker::First) && own(Asker::FirstAgain) && !own(Asker::Repeat));
}

#[test]
fn every_two_parameters_mean_different_things() {
    let params = [
        r#"{}"#,
        r#"{"max_tokens":5}"#,
        r#"{"top_k":5}"#,
        r#"{"seed":5}"#,
        r#"{"dimensions":5}"#,
        r#"{"top":5}"#,
        r#"{"temperature":1}"#,
        r#"{"top_p":1}"#,
        r#"{"min_p":1}"#,
        r#"{"repetition_penalty":1}"#,
        r#"{"truncate":true}"#,
        r#"{"words":true}"#,
        r#"{"stop":"text"}"#,
        r#"{"language":"de"}"#,
        r#"{"format":"text"}"#,
        r#"{"stop":["text"]}"#,
        r#"{"labels":["text"]}"#,
    ];
    let body = |params: &&str| format!(r#"{{"input":"hi","params":{params}}}"#);
    let meanings: std::collections::HashSet<String> =
        params.iter().map(|params| meaning(&decode(&Headers::new(), &body(params)))).collect();
    assert_eq!(meanings.len(), params.len());
}
