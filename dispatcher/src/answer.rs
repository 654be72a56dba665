//! How a client that is answered here hears it: refusals, stored records, and the format for those who sent nonsense.

use bytes::Bytes;
use protocol::header::{self, Headers};
use protocol::record::{End, Record};
use protocol::reply::{self, Frame};
use protocol::request::{DEPTH_MAX, Format, Mode, Request};
use protocol::token::Token;
use protocol::{Refusal, media};
use runtime::{Bus, bus};
use serde::Deserialize;

/// How an answer arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manner {
    /// How bodies are written.
    pub format: Format,
    /// Whole or streamed.
    pub mode: Mode,
}

impl Manner {
    /// As the request asks.
    #[must_use]
    pub fn of(request: &Request) -> Self {
        Self { format: request.format, mode: request.mode }
    }

    /// As a message seems to ask that is no valid request.
    #[must_use]
    pub fn guess(headers: &Headers, body: &Bytes) -> Self {
        let format = guess_format(headers);
        let streamed = headers.get(header::STREAM) == Some("true") || envelope_streams(body, format);
        Self { format, mode: if streamed { Mode::Stream } else { Mode::Whole } }
    }
}

fn guess_format(headers: &Headers) -> Format {
    let named = |name| headers.get(name).map(media::essence);
    match named(header::ACCEPT).filter(|&mime| mime != "*/*").or(named(header::CONTENT_TYPE)) {
        Some("application/msgpack" | "application/x-msgpack" | "application/vnd.msgpack") => Format::Msgpack,
        Some("application/json") => Format::Json,
        _ => Format::Raw,
    }
}

/// Whoever asks for a stream waits for its end mark, even where the rest of the envelope is nonsense.
fn envelope_streams(body: &Bytes, format: Format) -> bool {
    #[derive(Deserialize)]
    struct Peek {
        #[serde(default)]
        stream: bool,
    }
    let peek: Option<Peek> = match format {
        Format::Msgpack => {
            let mut deserializer = rmp_serde::Deserializer::from_read_ref(body);
            deserializer.set_max_depth(DEPTH_MAX);
            Peek::deserialize(&mut deserializer).ok()
        }
        Format::Raw | Format::Json if body.trim_ascii_start().starts_with(b"{") => serde_json::from_slice(body).ok(),
        Format::Raw | Format::Json => None,
    };
    peek.is_some_and(|peek| peek.stream)
}

/// A stored record as its client would have got it.
#[must_use]
pub fn record_frames(record: &Record, manner: Manner) -> Vec<Frame> {
    match (&record.end, manner.mode) {
        (End::Done(answer), Mode::Whole) => vec![reply::whole(answer, manner.format)],
        (End::Done(answer), Mode::Stream) => reply::replay(answer, 0, manner.format),
        (End::Failed(refusal), _) => refusal_frames(Some(&record.job), refusal, manner),
    }
}

/// A refusal: a stream has its end mark all the same.
#[must_use]
pub fn refusal_frames(job: Option<&Token>, refusal: &Refusal, manner: Manner) -> Vec<Frame> {
    match manner.mode {
        Mode::Whole => vec![reply::failed(job, refusal, manner.format)],
        Mode::Stream => reply::stream_failed(job, refusal, manner.format),
    }
}

/// Sends frames in order. A client that cannot be reached is not our failure.
pub async fn send(bus: &Bus, to: &str, frames: Vec<Frame>) {
    for frame in frames {
        if let Err(error) = bus::send(bus, to, frame).await {
            tracing::debug!(%error, "an answer could not be sent");
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_answered_in_its_own_format() {
        let guess = |mime: &str, body: &'static [u8]| {
            let headers = Headers::new().with(header::CONTENT_TYPE, mime);
            let manner = Manner::guess(&headers, &Bytes::from_static(body));
            (manner.format, manner.mode)
        };
        assert_eq!(guess("application/json; charset=utf-8", b"{"), (Format::Json, Mode::Whole));
        assert_eq!(guess("application/json", br#"{"stream":true,"x":1}"#), (Format::Json, Mode::Stream));
        assert_eq!(guess("application/msgpack", b"\x81\xa6stream\xc3"), (Format::Msgpack, Mode::Stream));
        assert_eq!(guess("application/msgpack", b"\x91\x91\x91\x91"), (Format::Msgpack, Mode::Whole));
        assert_eq!(guess("image/png", b"\xff"), (Format::Raw, Mode::Whole));
        let headers = Headers::new().with(header::STREAM, "true");
        assert_eq!(Manner::guess(&headers, &Bytes::new()).mode, Mode::Stream);
        let deep = Bytes::from("{\"a\":".to_owned() + &"[".repeat(100_000));
        assert_eq!(Manner::guess(&Headers::new(), &deep).mode, Mode::Whole);
    }
}
