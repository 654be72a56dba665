//! Bytes and headers to a request.

use std::time::Duration;

use bytes::Bytes;
use serde::de::{self, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::part::media_content;
use super::{
    BODY_BYTES_MAX, Blob, CachePolicy, Content, DEADLINE_MAX, DEPTH_MAX, Format, Mode, PARTS_MAX, Params, Part,
    Priority, Request, Role, Task, TranscriptFormat,
};
use crate::error::{ErrorCode, Refusal};
use crate::header::{self, Headers};
use crate::malformed::unquoted;
use crate::media::{self, Modality};
use crate::token::{ModelRef, SessionId, Token};

/// A message as a door takes it.
#[derive(Clone, Debug)]
pub struct Incoming<'a> {
    /// The body.
    pub body: &'a Bytes,
    /// The headers.
    pub headers: &'a Headers,
    /// Set where the door itself says what the body is (`infer.image`).
    pub modality: Option<Modality>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WirePart {
    #[serde(default)]
    role: Role,
    #[serde(rename = "type")]
    kind: Modality,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<Blob>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mime: Option<String>,
}

/// The envelope, field by field as in the contract.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope {
    #[serde(deserialize_with = "input")]
    input: Vec<WirePart>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    task: Option<Task>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    session: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stream: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    priority: Option<Priority>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deadline_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cache: Option<CachePolicy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(default)]
    params: Params,
}

/// A text, or a list of parts, each error naming what is wrong in the part and not in the union.
fn input<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<WirePart>, D::Error> {
    struct Input;
    impl<'de> Visitor<'de> for Input {
        type Value = Vec<WirePart>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a list of parts, or a text")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            Ok(vec![WirePart {
                role: Role::User,
                kind: Modality::Text,
                text: Some(text.to_owned()),
                data: None,
                mime: None,
            }])
        }
        fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut parts = Vec::new();
            while let Some(part) = seq.next_element()? {
                if parts.len() == PARTS_MAX {
                    return Err(de::Error::custom(format!("input has more than {PARTS_MAX} parts")));
                }
                parts.push(part);
            }
            Ok(parts)
        }
    }
    deserializer.deserialize_any(Input)
}

pub(super) fn decode(incoming: &Incoming<'_>) -> Result<Request, Refusal> {
    check_size(incoming)?;
    let (mut envelope, format) = match shape(incoming)? {
        Shape::Json => (from_json(incoming.body)?, Format::Json),
        Shape::Msgpack => (from_msgpack(incoming.body)?, Format::Msgpack),
        Shape::Raw(content) => return from_raw(content, incoming.headers),
    };
    let input = std::mem::take(&mut envelope.input);
    let input = input.into_iter().map(|part| part_of(part, incoming.modality)).collect::<Result<Vec<_>, _>>()?;
    finish(input, envelope.settings(), incoming.headers, format)
}

fn check_size(incoming: &Incoming<'_>) -> Result<(), Refusal> {
    if incoming.body.is_empty() {
        return Err(Refusal::invalid("the body is empty"));
    }
    if incoming.body.len() > BODY_BYTES_MAX {
        return Err(Refusal::new(
            ErrorCode::TooLarge,
            format!("the body has {} bytes, the limit is {BODY_BYTES_MAX}", incoming.body.len()),
        ));
    }
    let header_bytes: usize = incoming.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    if incoming.headers.len() > header::COUNT_MAX || header_bytes > header::BYTES_MAX {
        return Err(Refusal::new(
            ErrorCode::TooLarge,
            format!("headers exceed {} entries or {} bytes", header::COUNT_MAX, header::BYTES_MAX),
        ));
    }
    Ok(())
}

enum Shape {
    Json,
    Msgpack,
    Raw(Content),
}

/// What the body is: by its `Content-Type` where there is one, else by content.
fn shape(incoming: &Incoming<'_>) -> Result<Shape, Refusal> {
    let declared = incoming.headers.get(header::CONTENT_TYPE);
    match declared.map(media::essence) {
        Some("application/json") => return Ok(Shape::Json),
        Some("application/msgpack" | "application/x-msgpack" | "application/vnd.msgpack") => return Ok(Shape::Msgpack),
        None if incoming.modality.is_none_or(|modality| modality == Modality::Text) && is_envelope(incoming.body) => {
            return Ok(Shape::Json);
        }
        _ => {}
    }
    let text_claimed = declared.is_some_and(|mime| media::essence(mime).starts_with("text/"));
    if text_claimed || incoming.modality == Some(Modality::Text) {
        return text(incoming.body).map(|text| Shape::Raw(Content::Text(text)));
    }
    // Many magic numbers are words too: `BM`, `MAC`, `%PDF`.
    let unclaimed = declared.is_none() && incoming.modality.is_none();
    if unclaimed && media::is_plain_text(incoming.body) {
        return text(incoming.body).map(|text| Shape::Raw(Content::Text(text)));
    }
    let media_claimed = declared.is_some_and(|mime| media::by_mime(mime).is_some());
    let magic = media::sniff(incoming.body) != media::Sniffed::Unknown;
    if media_claimed || incoming.modality.is_some() || magic {
        return media_content(incoming.body.clone(), declared, incoming.modality).map(Shape::Raw);
    }
    text(incoming.body).map(|text| Shape::Raw(Content::Text(text)))
}

fn text(body: &Bytes) -> Result<String, Refusal> {
    match std::str::from_utf8(body) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => Err(Refusal::new(
            ErrorCode::UnsupportedMedia,
            format!("neither known media nor UTF-8 text (byte {} of {})", error.valid_up_to(), body.len()),
        )),
    }
}

/// Whether a body is a JSON object with a top-level `input`. Reads keys only; values are skipped without recursion.
fn is_envelope(body: &[u8]) -> bool {
    struct Keys;
    impl<'de> Visitor<'de> for Keys {
        type Value = bool;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
            let mut found = false;
            while let Some(key) = map.next_key::<String>()? {
                found |= key == "input";
                map.next_value::<IgnoredAny>()?;
            }
            Ok(found)
        }
    }
    if body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return false;
    }
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let found = deserializer.deserialize_map(Keys).unwrap_or(false);
    found && deserializer.end().is_ok()
}

fn from_json(body: &[u8]) -> Result<Envelope, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::invalid(format!("JSON envelope: {}", unquoted(&error))))
}

fn from_msgpack(body: &[u8]) -> Result<Envelope, Refusal> {
    let mut rest = body;
    let mut deserializer = rmp_serde::Deserializer::new(&mut rest);
    deserializer.set_max_depth(DEPTH_MAX);
    let envelope = Envelope::deserialize(&mut deserializer)
        .map_err(|error| Refusal::invalid(format!("MessagePack envelope: {}", unquoted(&error))))?;
    if !rest.is_empty() {
        return Err(Refusal::invalid("MessagePack envelope: bytes after the end"));
    }
    Ok(envelope)
}

fn from_raw(content: Content, headers: &Headers) -> Result<Request, Refusal> {
    let input = vec![Part { role: Role::User, content }];
    finish(input, Settings::default(), headers, Format::Raw)
}

fn part_of(part: WirePart, door: Option<Modality>) -> Result<Part, Refusal> {
    let content = match (part.kind, part.text, part.data) {
        (Modality::Text, Some(text), None) => Content::Text(text),
        (Modality::Text, None, _) => return Err(Refusal::invalid("a part of type text needs text")),
        (Modality::Image | Modality::Audio, None, Some(data)) => {
            media_content(data.0, part.mime.as_deref(), Some(part.kind))?
        }
        (Modality::Image | Modality::Audio, None, None) => {
            return Err(Refusal::invalid(format!("a part of type {} needs data", part.kind.as_str())));
        }
        (_, Some(_), _) => return Err(Refusal::invalid("a part has either text or data, as its type says")),
    };
    match door {
        Some(door) if door != part.kind && door != Modality::Text => {
            Err(Refusal::invalid(format!("this door takes {}, not {}", door.as_str(), part.kind.as_str())))
        }
        _ => Ok(Part { role: part.role, content }),
    }
}

/// All of an envelope but its input.
#[derive(Default)]
struct Settings {
    task: Option<Task>,
    model: Option<String>,
    session: Option<String>,
    stream: Option<bool>,
    priority: Option<Priority>,
    deadline_ms: Option<u64>,
    cache: Option<CachePolicy>,
    id: Option<String>,
    params: Params,
}

impl Envelope {
    fn settings(self) -> Settings {
        Settings {
            task: self.task,
            model: self.model,
            session: self.session,
            stream: self.stream,
            priority: self.priority,
            deadline_ms: self.deadline_ms,
            cache: self.cache,
            id: self.id,
            params: self.params,
        }
    }
}

/// Joins envelope and headers; the envelope's word counts where both speak.
fn finish(input: Vec<Part>, mut settings: Settings, headers: &Headers, format: Format) -> Result<Request, Refusal> {
    if input.is_empty() {
        return Err(Refusal::invalid("input is empty"));
    }
    check_names(headers)?;
    let given = |name: &str| headers.get(name).map(str::to_owned);
    settings.task = settings.task.or_else(|| given(header::TASK).map(Task::from));
    settings.model = settings.model.or_else(|| given(header::MODEL));
    settings.session = settings.session.or_else(|| given(header::SESSION));
    settings.id = settings.id.or_else(|| given(header::ID));
    settings.stream = settings.stream.or(word(headers, header::STREAM, "true or false")?);
    settings.priority = settings.priority.or(word(headers, header::PRIORITY, "interactive, standard or batch")?);
    settings.deadline_ms = settings.deadline_ms.or(word(headers, header::DEADLINE_MS, "a whole number above 0")?);
    settings.cache = settings.cache.or(word(headers, header::CACHE, "use, bypass or refresh")?);
    settings.params.check()?;
    Ok(Request {
        input,
        task: settings.task.map(check_task).transpose()?,
        model: settings.model.as_deref().map(ModelRef::parse).transpose()?,
        session: settings.session.as_deref().map(SessionId::parse).transpose()?,
        mode: if settings.stream == Some(true) { Mode::Stream } else { Mode::Whole },
        priority: settings.priority,
        deadline: settings.deadline_ms.map(deadline).transpose()?,
        cache: settings.cache,
        id: settings.id.as_deref().map(Token::parse_client_id).transpose()?,
        params: settings.params,
        format: accepted_format(headers, format)?,
        subtitles: headers.get(header::ACCEPT).map(media::essence).and_then(TranscriptFormat::by_mime),
    })
}

/// Headers that a client may give; a misspelt one is refused as an unknown field is.
const CLIENT_HEADERS: [&str; 10] = [
    header::TASK,
    header::MODEL,
    header::SESSION,
    header::STREAM,
    header::PRIORITY,
    header::DEADLINE_MS,
    header::CACHE,
    header::ID,
    header::REPLY_TO,
    header::BODY,
];

fn check_names(headers: &Headers) -> Result<(), Refusal> {
    let ours =
        |name: &str| name.get(..header::PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(header::PREFIX));
    for (name, _) in headers.iter().filter(|(name, _)| ours(name)) {
        if !CLIENT_HEADERS.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            return Err(Refusal::invalid(format!("unknown header {name:.64}")));
        }
    }
    Ok(())
}

fn check_task(task: Task) -> Result<Task, Refusal> {
    if let Task::Pipeline(name) = &task {
        Token::parse("task", name)?;
    }
    Ok(task)
}

fn deadline(milliseconds: u64) -> Result<Duration, Refusal> {
    let deadline = Duration::from_millis(milliseconds);
    if milliseconds == 0 || deadline > DEADLINE_MAX {
        return Err(Refusal::invalid(format!("deadline_ms must be 1 to {}", DEADLINE_MAX.as_millis())));
    }
    Ok(deadline)
}

/// A header whose value is one JSON word or number.
fn word<T: de::DeserializeOwned>(headers: &Headers, name: &str, allowed: &str) -> Result<Option<T>, Refusal> {
    let Some(value) = headers.get(name) else {
        return Ok(None);
    };
    let quoted = || serde_json::from_value(serde_json::Value::String(value.to_owned()));
    serde_json::from_str(value)
        .or_else(|_| quoted())
        .map(Some)
        .map_err(|_| Refusal::invalid(format!("{name} must be {allowed}")))
}

fn accepted_format(headers: &Headers, format: Format) -> Result<Format, Refusal> {
    match headers.get(header::ACCEPT).map(media::essence) {
        None | Some("*/*") => Ok(format),
        Some("application/json") => Ok(Format::Json),
        Some("application/msgpack" | "application/x-msgpack" | "application/vnd.msgpack") => Ok(Format::Msgpack),
        Some("text/plain" | "text/*") => Ok(Format::Raw),
        Some(mime) if TranscriptFormat::by_mime(mime).is_some() => Ok(Format::Raw),
        Some(_) => Err(Refusal::invalid(
            "Accept must be text/plain, application/json or application/msgpack; text/vtt or application/x-subrip for \
             subtitles",
        )),
    }
}

pub(super) fn encode(request: &Request, format: Format) -> Bytes {
    let part = |part: &Part| match &part.content {
        Content::Text(text) => {
            WirePart { role: part.role, kind: Modality::Text, text: Some(text.clone()), data: None, mime: None }
        }
        Content::Media { modality, mime, data } => WirePart {
            role: part.role,
            kind: *modality,
            text: None,
            data: Some(data.clone()),
            mime: Some(mime.clone()),
        },
    };
    let envelope = Envelope {
        input: request.input.iter().map(part).collect(),
        task: request.task.clone(),
        model: request.model.as_ref().map(ToString::to_string),
        session: request.session.as_ref().map(|session| session.as_str().to_owned()),
        stream: (request.mode == Mode::Stream).then_some(true),
        priority: request.priority,
        deadline_ms: request.deadline.map(|deadline| u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX)),
        cache: request.cache,
        id: request.id.as_ref().map(|id| id.as_str().to_owned()),
        params: request.params.clone(),
    };
    match format {
        Format::Msgpack => rmp_serde::to_vec_named(&envelope).expect("an envelope always encodes").into(),
        Format::Raw | Format::Json => serde_json::to_vec(&envelope).expect("an envelope always encodes").into(),
    }
}
