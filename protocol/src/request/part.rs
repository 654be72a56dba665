//! The parts of an input.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::error::Refusal;
use crate::media::{self, Modality, Sniffed};

/// Who speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Instructions.
    System,
    /// The person.
    #[default]
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The word in envelopes.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// Bytes that are base64 where the format is for people, and bytes where it is not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Blob(pub Bytes);

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str(&STANDARD.encode(&self.0))
        } else {
            serializer.serialize_bytes(&self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BlobVisitor;
        impl Visitor<'_> for BlobVisitor {
            type Value = Blob;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("base64 in JSON, bytes in MessagePack")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Blob, E> {
                STANDARD.decode(text).map(|bytes| Blob(bytes.into())).map_err(|_| E::custom("data is not base64"))
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(Bytes::copy_from_slice(bytes)))
            }
            fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Blob, E> {
                Ok(Blob(bytes.into()))
            }
        }
        if deserializer.is_human_readable() {
            deserializer.deserialize_str(BlobVisitor)
        } else {
            deserializer.deserialize_byte_buf(BlobVisitor)
        }
    }
}

/// What a part holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// Text.
    Text(String),
    /// An image or a sound of a known MIME type.
    Media {
        /// Image or audio.
        modality: Modality,
        /// As sniffed; a client's own claim counts only where the bytes do not contradict it.
        mime: String,
        /// The file.
        data: Blob,
    },
}

/// One part of an input.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Part {
    /// Who speaks.
    pub role: Role,
    /// What.
    pub content: Content,
}

impl Part {
    /// A text of the person.
    pub fn user(text: impl Into<String>) -> Self {
        Self { role: Role::User, content: Content::Text(text.into()) }
    }

    /// What the part is.
    #[must_use]
    pub fn modality(&self) -> Modality {
        match &self.content {
            Content::Text(_) => Modality::Text,
            Content::Media { modality, .. } => *modality,
        }
    }

    /// The text, if it is one.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Text(text) => Some(text),
            Content::Media { .. } => None,
        }
    }

    /// Bytes of the text or the file.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match &self.content {
            Content::Text(text) => text.len(),
            Content::Media { data, .. } => data.0.len(),
        }
    }
}

/// Media of some bytes: what they are decides, and a contradicting claim is refused.
pub(super) fn media_content(data: Bytes, claimed: Option<&str>, wanted: Option<Modality>) -> Result<Content, Refusal> {
    use crate::error::ErrorCode::UnsupportedMedia;
    let media = match media::sniff(&data) {
        Sniffed::Media(media) => media,
        Sniffed::Other(mime) => return Err(Refusal::new(UnsupportedMedia, format!("{mime} is not supported"))),
        Sniffed::Unknown => {
            let claim =
                claimed.map(|mime| format!(", though it is called {:.64}", media::essence(mime))).unwrap_or_default();
            return Err(Refusal::new(
                UnsupportedMedia,
                format!("the data is no image or audio that the fleet knows{claim}"),
            ));
        }
    };
    if let Some(wanted) = wanted.filter(|&wanted| wanted != media.modality) {
        return Err(Refusal::new(UnsupportedMedia, format!("expected {}, got {}", wanted.as_str(), media.mime)));
    }
    if let Some(claim) = claimed.and_then(media::by_mime).filter(|claim| claim.modality != media.modality) {
        return Err(Refusal::new(UnsupportedMedia, format!("called {}, but it is {}", claim.mime, media.mime)));
    }
    Ok(Content::Media { modality: media.modality, mime: media.mime.to_owned(), data: Blob(data) })
}
