//! Every message of this wire version, byte for byte. `UPDATE=1` writes the files anew; a change in them is a change of the contract.

use std::path::PathBuf;

use bytes::Bytes;
use protocol::answer::{Answer, CacheOutcome, Finish, Given, Label, Output, Segment, Streamed, Usage, Word};
use protocol::header::{self, Headers};
use protocol::heartbeat::{Heartbeat, Loaded, State};
use protocol::job::{Job, Origin, PLAIN_VERSION, Turn};
use protocol::media::Modality;
use protocol::pipeline::{self, Step};
use protocol::record::{End, IdRecord, Record, SessionTurn, StepRecord};
use protocol::reply::{self, ChunkOf, Frame};
use protocol::request::{
    self, Blob, Content, Format, Incoming, Mode, Params, Part, Priority, Request, Role, Stop, Task, TranscriptFormat,
};
use protocol::token::{ModelRef, SessionId, Token};
use protocol::{ErrorCode, Refusal, WIRE_VERSION};

const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x02\0\0\0\x90wS\xde";

fn check(name: &str, actual: &[u8]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, actual).unwrap();
    }
    let expected =
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; UPDATE=1 writes it", path.display()));
    assert_eq!(actual, expected, "{name} is not what it was: the contract changed");
}

fn token(name: &str) -> Token {
    Token::parse("name", name).unwrap()
}

fn request() -> Request {
    Request {
        input: vec![
            Part { role: Role::System, content: Content::Text("Answer in one word.".into()) },
            Part::user("Which colour has the sky? \u{1F30C}"),
            Part {
                role: Role::User,
                content: Content::Media {
                    modality: Modality::Image,
                    mime: "image/png".into(),
                    data: Blob(Bytes::from_static(PNG)),
                },
            },
        ],
        task: Some(Task::Chat),
        model: Some(ModelRef::parse("smollm2-135m-instruct@q4_1").unwrap()),
        session: Some(SessionId::parse("anna").unwrap()),
        mode: Mode::Stream,
        priority: Some(Priority::Batch),
        deadline: Some(std::time::Duration::from_millis(30_000)),
        cache: Some(request::CachePolicy::Refresh),
        id: Some(token("order-66")),
        params: Params {
            max_tokens: Some(32),
            temperature: Some(0.5),
            top_k: Some(40),
            stop: Some(Stop::Many(vec!["\n\n".into()])),
            seed: Some(7),
            ..Params::default()
        },
        format: Format::Json,
        subtitles: None,
    }
}

fn answer() -> Answer {
    Answer {
        job: token("order-66"),
        model: "smollm2-135m-instruct".into(),
        task: "chat".into(),
        output: vec![Output::Text { text: "Blue.".into() }],
        finish_reason: Finish::Stop,
        usage: Usage { input_tokens: 31, output_tokens: 2, ..Usage::default() },
        cache: CacheOutcome::Miss,
        steps: Vec::new(),
    }
}

fn refusal() -> Refusal {
    Refusal::new(ErrorCode::Overloaded, "lane text/smollm2 is full").retry_after(std::time::Duration::from_millis(1500))
}

fn lines(frames: &[Frame]) -> Vec<u8> {
    let mut out = Vec::new();
    for frame in frames {
        for (name, value) in frame.headers.iter() {
            out.extend_from_slice(format!("{name}: {value}\n").as_bytes());
        }
        out.extend_from_slice(b"\n");
        out.extend_from_slice(&frame.body);
        out.extend_from_slice(b"\n----\n");
    }
    out
}

#[test]
fn envelopes() {
    for (format, mime, name) in [
        (Format::Json, "application/json", "request.json"),
        (Format::Msgpack, "application/msgpack", "request.msgpack"),
    ] {
        let body = request::encode(&request(), format);
        check(name, &body);
        let headers = Headers::new().with(header::CONTENT_TYPE, mime);
        let decoded = Request::decode(&Incoming { body: &body, headers: &headers, modality: None }).unwrap();
        assert_eq!(decoded, Request { format, ..request() });
    }
}

#[test]
fn frames() {
    let transcript = Answer {
        output: vec![Output::Transcript {
            text: "Hello.".into(),
            language: "en".into(),
            segments: vec![Segment {
                start: 0.0,
                end: 0.5,
                text: "Hello.".into(),
                words: vec![Word { start: 0.0, end: 0.5, text: "Hello.".into() }],
            }],
            format: TranscriptFormat::Text,
        }],
        ..answer()
    };
    let embedding = Answer { output: vec![Output::Embedding { vector: vec![0.5, -0.25] }], ..answer() };
    for format in [Format::Raw, Format::Json, Format::Msgpack] {
        let job = token("order-66");
        let of = ChunkOf {
            job: &job,
            model: "smollm2-135m-instruct",
            kind: Streamed::Text,
            attempt: 1,
            seq: 3,
            cache: CacheOutcome::Miss,
        };
        let mut frames =
            vec![reply::whole(&answer(), format), reply::whole(&transcript, format), reply::whole(&embedding, format)];
        frames.extend(reply::accepted(&job, 1, format));
        frames.push(reply::chunk(&of, "Blu".into(), format));
        frames.extend(reply::stream_done(&answer(), format));
        frames.extend(reply::stream_failed(Some(&job), &refusal(), format));
        frames.extend(reply::replay(&answer(), 0, format));
        let heard = Given {
            task: "transcribe".into(),
            model: "whisper-base".into(),
            output: transcript.output[0].clone(),
            usage: None,
        };
        let labels = Output::Labels { labels: vec![Label { label: "sky".into(), score: 0.75 }] };
        let usage = Some(Usage { images: 1, ..Usage::default() });
        let seen = Given { task: "classify".into(), model: "efficientnet-lite0".into(), output: labels, usage };
        frames.extend(reply::replay(&Answer { steps: vec![heard, seen], ..answer() }, 2, format));
        check(&format!("frames.{}", format.as_str()), &lines(&frames));
    }
}

#[test]
fn frames_of_other_tasks() {
    let written = |format, text: &str| Answer {
        task: "transcribe".into(),
        output: vec![Output::Transcript { text: text.into(), language: "en".into(), segments: Vec::new(), format }],
        usage: Usage { audio_ms: 500, ..Usage::default() },
        ..answer()
    };
    let labels = Answer {
        task: "classify".into(),
        output: vec![Output::Labels { labels: vec![Label { label: "tabby".into(), score: 0.75 }] }],
        usage: Usage { images: 1, ..Usage::default() },
        ..answer()
    };
    let score = |score| Output::Score { score };
    let scores = Answer { task: "score".into(), output: vec![score(0.5), score(-0.25)], ..answer() };
    for format in [Format::Raw, Format::Json, Format::Msgpack] {
        let mut frames = Vec::new();
        for transcript in [
            written(TranscriptFormat::Text, "Hello."),
            written(TranscriptFormat::Json, "Hello."),
            written(TranscriptFormat::Srt, "1\n00:00:00,000 --> 00:00:00,500\nHello.\n\n"),
            written(TranscriptFormat::Vtt, "WEBVTT\n\n00:00:00.000 --> 00:00:00.500\nHello.\n\n"),
        ] {
            frames.push(reply::whole(&transcript, format));
            frames.extend(reply::replay(&transcript, 0, format));
        }
        frames.extend(reply::replay(&labels, 0, format));
        frames.extend(reply::replay(&scores, 0, format));
        check(&format!("tasks.{}", format.as_str()), &lines(&frames));
    }
}

fn job() -> Job {
    Job {
        version: PLAIN_VERSION,
        id: token("order-66"),
        tenant: Token::default_tenant(),
        task: Task::Chat,
        modality: Modality::Text,
        model: "smollm2-135m-instruct".into(),
        priority: Priority::Interactive,
        input: request().input,
        params: request().params,
        mode: Mode::Stream,
        format: Format::Msgpack,
        reply_to: Some("_INBOX.abc".into()),
        accepted_ms: 1_700_000_000_000,
        deadline_ms: 1_700_000_120_000,
        session: Some(Turn { session: SessionId::parse("anna").unwrap(), number: 2 }),
        cache_key: None,
        origin: Origin::Claimed,
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
        steps: None,
    }
}

#[test]
fn jobs() {
    let job = job();
    check("job.msgpack", &job.encode());
    assert_eq!(Job::decode(&job.encode()).unwrap(), job);
    let of = |version| Job { version, ..job.clone() };
    assert_eq!(Job::decode(&of(WIRE_VERSION - 1).encode()).unwrap(), of(WIRE_VERSION - 1), "older jobs are read");
    assert!(Job::decode(&of(WIRE_VERSION + 1).encode()).is_err(), "newer ones are for somebody else");
}

#[test]
fn jobs_of_a_pipeline() {
    let step = |task, modality| Step { task, modality, model: "efficientnet-lite0".into(), part: 2 };
    let first = pipeline::begin(job(), "assistant", [step(Task::Classify, Modality::Image)].into());
    check("job.step.msgpack", &first.encode());
    assert_eq!(Job::decode(&first.encode()).unwrap(), first);
    let labels = Output::Labels { labels: vec![Label { label: "sky".into(), score: 0.75 }] };
    let usage = Some(Usage { images: 1, ..Usage::default() });
    let given = Given { task: "classify".into(), model: "efficientnet-lite0".into(), output: labels, usage };
    let done = Job { input: Vec::new(), ..first };
    let record = StepRecord { version: WIRE_VERSION, job: done, given, settled_ms: 1_700_000_001_000 };
    check("step.msgpack", &record.encode());
    assert_eq!(StepRecord::decode(&record.encode()).unwrap(), record);
    let unpriced = StepRecord { given: Given { usage: None, ..record.given.clone() }, ..record.clone() };
    assert!(!unpriced.encode().windows(5).any(|word| word == b"usage"), "as a worker writes it that does not count");
    assert_eq!(StepRecord::decode(&unpriced.encode()).unwrap(), unpriced);
    let newer = StepRecord { version: WIRE_VERSION + 1, ..record.clone() };
    assert_eq!(StepRecord::decode(&newer.encode()).unwrap_err().code, ErrorCode::Unavailable);
    let last = pipeline::advance(record.job, record.given).unwrap();
    check("job.last.msgpack", &last.encode());
    assert_eq!(Job::decode(&last.encode()).unwrap(), last);
}

#[test]
fn records_and_heartbeats() {
    let turn = SessionTurn {
        session: SessionId::parse("anna").unwrap(),
        number: 2,
        input: vec![Part::user("And at night?")],
        answer: Some("Black.".into()),
    };
    let record = Record {
        version: WIRE_VERSION,
        job: token("order-66"),
        tenant: Token::default_tenant(),
        format: Format::Json,
        settled_ms: 1_700_000_001_000,
        end: End::Done(answer()),
        session: Some(turn),
        cache_key: Some("00ff".into()),
    };
    check("record.done.msgpack", &record.encode());
    assert_eq!(Record::decode(&record.encode()).unwrap(), record);
    let failed = Record { end: End::Failed(refusal()), session: None, cache_key: None, ..record };
    check("record.failed.msgpack", &failed.encode());
    assert_eq!(Record::decode(&failed.encode()).unwrap(), failed);

    let id = IdRecord { body: "00ff".into(), deadline_ms: 1_700_000_120_000, ingress: Some(7) };
    check("id.msgpack", &id.encode());
    assert_eq!(IdRecord::decode(&id.encode()).unwrap(), id);

    let unplaced = IdRecord { ingress: None, ..id };
    assert_eq!(IdRecord::decode(&unplaced.encode()).unwrap(), unplaced);

    let heartbeat = Heartbeat {
        version: WIRE_VERSION,
        worker: token("w1"),
        release: "0.1.0 (1a2b3c4)".into(),
        device: "cpu".into(),
        models: vec![Loaded {
            name: "smollm2-135m-instruct".into(),
            digest: "00ff".into(),
            precision: "q4_1".into(),
            context: 8192,
        }],
        state: State::Ready,
        slots_free: 3,
        slots: 4,
        step_seconds: 0.125,
        answered: Vec::new(),
    };
    check("heartbeat.msgpack", &heartbeat.encode());
    assert_eq!(Heartbeat::decode(&heartbeat.encode()).unwrap(), heartbeat);

    let counting = Heartbeat { answered: vec![7], ..heartbeat };
    check("heartbeat.answered.msgpack", &counting.encode());
    assert_eq!(Heartbeat::decode(&counting.encode()).unwrap(), counting);
}

#[test]
fn a_heartbeat_of_a_worker_without_a_release_is_read() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/heartbeat.msgpack");
    let mut beat: serde_json::Value = rmp_serde::from_slice(&std::fs::read(path).unwrap()).unwrap();
    beat.as_object_mut().unwrap().remove("release").unwrap();
    assert_eq!(Heartbeat::decode(&rmp_serde::to_vec_named(&beat).unwrap()).unwrap().release, "");
}

#[test]
fn a_job_with_fields_of_a_later_version_is_read() {
    #[derive(serde::Serialize)]
    struct Later<'a> {
        #[serde(flatten)]
        job: &'a serde_json::Value,
        invented_later: &'a str,
    }
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/id.msgpack");
    let id: serde_json::Value = rmp_serde::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let later = rmp_serde::to_vec_named(&Later { job: &id, invented_later: "x" }).unwrap();
    assert_eq!(IdRecord::decode(&later).unwrap().body, "00ff");
}
