//! What a client hears. Frames are built here and nowhere else, so that dispatcher and worker sound the same.
//!
//! An empty body is the end mark of a stream (ADR-47's sentinel), so no other frame has one.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::answer::{Answer, CacheOutcome, Given, Output, Streamed};
use crate::error::Refusal;
use crate::header::{self, Headers};
use crate::request::{Format, TranscriptFormat};
use crate::token::Token;

/// One message to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Headers, `Content-Type` always among them.
    pub headers: Headers,
    /// Body; empty only in the end mark.
    pub body: Bytes,
}

/// Body of the first frame of an attempt, in JSON and MessagePack streams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Which job.
    pub job: Token,
    /// Which attempt; a new one means: discard what came before.
    pub attempt: u32,
}

/// Body of a chunk, in JSON and MessagePack streams.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Chunk {
    /// Which job.
    pub job: Token,
    /// Which attempt.
    pub attempt: u32,
    /// Number within the attempt, from 0.
    pub seq: u64,
    /// What is new.
    pub delta: Output,
}

/// Body of an error, in every format; MessagePack clients get it in MessagePack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorDetail {
    /// The stable code.
    pub code: crate::error::ErrorCode,
    /// One sentence for a person.
    pub message: String,
    /// Whether the same message may pass later.
    pub retryable: bool,
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

/// The whole answer in one message.
#[must_use]
pub fn whole(answer: &Answer, format: Format) -> Frame {
    let headers = base(&answer.job, header::DONE, content_type(answer, format))
        .with(header::MODEL, &answer.model)
        .with(header::CACHE, answer.cache.as_str())
        .with(header::KIND, answer.kind());
    Frame { headers, body: body_of(answer, format) }
}

/// The first frame of an attempt; raw streams have none.
#[must_use]
pub fn accepted(job: &Token, attempt: u32, format: Format) -> Option<Frame> {
    let body = match format {
        Format::Raw => return None,
        _ => encode(&Accepted { job: job.clone(), attempt }, format),
    };
    let headers = base(job, "accepted", mime(format)).with(header::ATTEMPT, attempt);
    Some(Frame { headers, body })
}

/// What a chunk belongs to.
#[derive(Clone, Debug)]
pub struct ChunkOf<'a> {
    /// Which job.
    pub job: &'a Token,
    /// Which model.
    pub model: &'a str,
    /// What streams.
    pub kind: Streamed,
    /// Which attempt.
    pub attempt: u32,
    /// Number within the attempt.
    pub seq: u64,
    /// Whether it is replayed from the cache.
    pub cache: CacheOutcome,
}

/// A piece of a streamed text. `text` is not empty.
#[must_use]
pub fn chunk(of: &ChunkOf<'_>, text: String, format: Format) -> Frame {
    debug_assert!(!text.is_empty(), "an empty body is the end mark");
    let headers = base(of.job, "chunk", if format == Format::Raw { TEXT } else { mime(format) })
        .with(header::MODEL, of.model)
        .with(header::KIND, of.kind.as_str())
        .with(header::CACHE, of.cache.as_str())
        .with(header::ATTEMPT, of.attempt)
        .with(header::SEQ, of.seq);
    let body = match format {
        Format::Raw => Bytes::from(text),
        _ => {
            let delta = of.kind.piece(text);
            encode(&Chunk { job: of.job.clone(), attempt: of.attempt, seq: of.seq, delta }, format)
        }
    };
    Frame { headers, body }
}

/// What a step of a pipeline gave, as the chunk of this number. Its kind tells it from the answer's text.
#[must_use]
pub fn given(of: &ChunkOf<'_>, given: &Given, format: Format) -> Frame {
    let text = match &given.output {
        Output::Text { text } | Output::Transcript { text, .. } => Some(text),
        Output::Labels { .. } | Output::Embedding { .. } | Output::Score { .. } => None,
    };
    let (content_type, body) = match (format, text) {
        (Format::Raw, Some(text)) if text.is_empty() => (TEXT, Bytes::from_static(b"\n")),
        (Format::Raw, Some(text)) => (TEXT, Bytes::from(text.clone())),
        (Format::Raw, None) => (mime(format), encode(&given.output, Format::Json)),
        _ => {
            let delta = given.output.clone();
            (mime(format), encode(&Chunk { job: of.job.clone(), attempt: of.attempt, seq: of.seq, delta }, format))
        }
    };
    let headers = base(of.job, "chunk", content_type)
        .with(header::MODEL, &given.model)
        .with(header::KIND, given.output.kind())
        .with(header::CACHE, of.cache.as_str())
        .with(header::ATTEMPT, of.attempt)
        .with(header::SEQ, of.seq);
    Frame { headers, body }
}

/// The end mark of a stream that went well.
#[must_use]
pub fn end_done(answer: &Answer) -> Frame {
    let headers = base(&answer.job, header::DONE, TEXT)
        .with(header::MODEL, &answer.model)
        .with(header::CACHE, answer.cache.as_str())
        .with(header::FINISH, answer.finish_reason.as_str())
        .with(header::INPUT_TOKENS, answer.usage.input_tokens)
        .with(header::OUTPUT_TOKENS, answer.usage.output_tokens)
        .with(header::SHA256, hex(&Sha256::digest(answer.text())));
    Frame { headers, body: Bytes::new() }
}

/// The end mark of a stream that failed; the error reply goes before it.
#[must_use]
pub fn end_failed(job: Option<&Token>, refusal: &Refusal) -> Frame {
    Frame { headers: error_headers(job, refusal, TEXT), body: Bytes::new() }
}

/// A complete error reply.
#[must_use]
pub fn failed(job: Option<&Token>, refusal: &Refusal, format: Format) -> Frame {
    let error = ErrorDetail {
        code: refusal.code,
        message: refusal.message.clone(),
        retryable: refusal.retryable(),
        retry_after_ms: refusal.retry_after_ms,
    };
    let format = if format == Format::Raw { Format::Json } else { format };
    Frame { headers: error_headers(job, refusal, mime(format)), body: encode(&ErrorBody { error }, format) }
}

/// The final frames of a stream: `done` with the whole answer where the chunks do not say all of it, then the end mark.
#[must_use]
pub fn stream_done(answer: &Answer, format: Format) -> Vec<Frame> {
    match (format, raw_text(answer)) {
        (Format::Raw, Some(_)) => vec![end_done(answer)],
        _ => vec![whole(answer, format), end_done(answer)],
    }
}

/// The final frames of a stream that failed.
#[must_use]
pub fn stream_failed(job: Option<&Token>, refusal: &Refusal, format: Format) -> Vec<Frame> {
    vec![failed(job, refusal, format), end_failed(job, refusal)]
}

/// Longest piece of a replayed stream in bytes.
const REPLAY_CHUNK_BYTES: usize = 1024;

/// A stored answer as a stream: the frames a client would have got.
#[must_use]
pub fn replay(answer: &Answer, attempt: u32, format: Format) -> Vec<Frame> {
    let mut frames: Vec<Frame> = accepted(&answer.job, attempt, format).into_iter().collect();
    let kind = answer.streamed().unwrap_or(Streamed::Text);
    let of = |seq| ChunkOf { job: &answer.job, model: &answer.model, kind, attempt, seq, cache: answer.cache };
    frames.extend((0..).zip(&answer.steps).map(|(seq, step)| given(&of(seq), step, format)));
    let mut rest = answer.text();
    let mut seq = answer.steps.len() as u64;
    while !rest.is_empty() {
        let cut = rest.floor_char_boundary(REPLAY_CHUNK_BYTES.min(rest.len()));
        let (piece, tail) = rest.split_at(cut);
        frames.push(chunk(&of(seq), piece.to_owned(), format));
        seq += 1;
        rest = tail;
    }
    frames.extend(stream_done(answer, format));
    frames
}

const TEXT: &str = "text/plain; charset=utf-8";

fn mime(format: Format) -> &'static str {
    match format {
        Format::Msgpack => "application/msgpack",
        Format::Raw | Format::Json => "application/json",
    }
}

/// The answer where its raw body is text; JSON is the natural one of the others.
fn raw_text(answer: &Answer) -> Option<&str> {
    match answer.output.first() {
        Some(Output::Transcript { format: TranscriptFormat::Json, .. }) => None,
        _ => answer.streamed().map(|_| answer.text()),
    }
}

fn content_type(answer: &Answer, format: Format) -> &'static str {
    let written = match answer.output.first() {
        Some(Output::Transcript { format, .. }) => *format,
        _ => TranscriptFormat::Text,
    };
    match (format, raw_text(answer), written) {
        (Format::Raw, Some(_), TranscriptFormat::Srt) => "application/x-subrip; charset=utf-8",
        (Format::Raw, Some(_), TranscriptFormat::Vtt) => "text/vtt; charset=utf-8",
        (Format::Raw, Some(_), _) => TEXT,
        _ => mime(format),
    }
}

fn body_of(answer: &Answer, format: Format) -> Bytes {
    match (format, raw_text(answer), &answer.output[..]) {
        // An answer of no characters must not look like the end mark: it is one line feed.
        (Format::Raw, Some(""), _) => Bytes::from_static(b"\n"),
        (Format::Raw, Some(text), _) => Bytes::from(text.to_owned()),
        (Format::Raw, None, [output]) => encode(output, Format::Json),
        (Format::Raw, None, outputs) => encode(&outputs, Format::Json),
        _ => encode(answer, format),
    }
}

fn base(job: &Token, status: &str, content_type: &str) -> Headers {
    Headers::new().with(header::CONTENT_TYPE, content_type).with(header::JOB, job).with(header::STATUS, status)
}

fn error_headers(job: Option<&Token>, refusal: &Refusal, content_type: &str) -> Headers {
    // A header is one line: a message never holds a line break on the wire.
    let line = format!("{}: {}", refusal.code, refusal.message).replace(['\r', '\n'], " ");
    let mut headers = Headers::new().with(header::CONTENT_TYPE, content_type).with(header::STATUS, header::FAILED);
    if let Some(job) = job {
        headers.insert(header::JOB, job.as_str());
    }
    headers.with(header::SERVICE_ERROR, line).with(header::SERVICE_ERROR_CODE, refusal.code.status())
}

/// A value in one of the two structured formats.
pub fn encode<T: Serialize>(value: &T, format: Format) -> Bytes {
    match format {
        Format::Msgpack => rmp_serde::to_vec_named(value).expect("our own types always encode").into(),
        Format::Raw | Format::Json => serde_json::to_vec(value).expect("our own types always encode").into(),
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
