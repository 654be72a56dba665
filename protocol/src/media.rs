//! What kind of thing a body is, by its first bytes and never by its name.

use serde::{Deserialize, Serialize};

/// What a lane carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Modality {
    /// Unicode text.
    Text,
    /// A still picture.
    Image,
    /// Recorded sound.
    Audio,
}

impl Modality {
    /// All of them.
    pub const ALL: [Modality; 3] = [Modality::Text, Modality::Image, Modality::Audio];

    /// The word in subjects, envelopes and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Modality::Text => "text",
            Modality::Image => "image",
            Modality::Audio => "audio",
        }
    }
}

/// Media that the fleet knows, by modality and MIME type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Media {
    /// Image or audio.
    pub modality: Modality,
    /// MIME type.
    pub mime: &'static str,
}

/// MIME types of images and audio that the fleet takes, as sniffing names them, and the names that others use for the same.
const KNOWN: [(Modality, &str, &[&str]); 10] = [
    (Modality::Image, "image/png", &[]),
    (Modality::Image, "image/jpeg", &["image/jpg"]),
    (Modality::Image, "image/webp", &[]),
    (Modality::Image, "image/gif", &[]),
    (Modality::Image, "image/bmp", &["image/x-ms-bmp"]),
    (Modality::Audio, "audio/wav", &["audio/x-wav", "audio/wave", "audio/vnd.wave"]),
    (Modality::Audio, "audio/flac", &["audio/x-flac"]),
    (Modality::Audio, "audio/mpeg", &["audio/mp3"]),
    (Modality::Audio, "audio/ogg", &["application/ogg", "audio/opus", "audio/vorbis"]),
    (Modality::Audio, "audio/m4a", &["audio/mp4", "audio/x-m4a", "video/mp4", "audio/aac"]),
];

/// What the first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sniffed {
    /// Media that the fleet takes.
    Media(Media),
    /// A format that is known by name and not taken.
    Other(&'static str),
    /// No magic number: text, or nothing we know.
    Unknown,
}

/// Reads the magic number.
#[must_use]
pub fn sniff(body: &[u8]) -> Sniffed {
    let Some(kind) = infer::get(body) else {
        return Sniffed::Unknown;
    };
    match by_mime(kind.mime_type()) {
        Some(media) => Sniffed::Media(media),
        None if kind.matcher_type() == infer::MatcherType::Text => Sniffed::Unknown,
        None => Sniffed::Other(kind.mime_type()),
    }
}

/// The media of a MIME type, parameters ignored.
#[must_use]
pub fn by_mime(mime: &str) -> Option<Media> {
    let mime = essence(mime);
    KNOWN
        .iter()
        .find(|(_, name, others)| {
            name.eq_ignore_ascii_case(mime) || others.iter().any(|other| other.eq_ignore_ascii_case(mime))
        })
        .map(|&(modality, mime, _)| Media { modality, mime })
}

/// A MIME type without its parameters.
#[must_use]
pub fn essence(mime: &str) -> &str {
    mime.split(';').next().unwrap_or_default().trim()
}

/// Whether bytes can only be text: UTF-8 without control characters, other than white space. A file of any known media
/// has zeros or bytes that are no UTF-8.
#[must_use]
pub fn is_plain_text(body: &[u8]) -> bool {
    let control = |byte: &u8| byte.is_ascii_control() && !matches!(byte, b'\t' | b'\n' | b'\r' | b'\x0c');
    !body.iter().any(control) && std::str::from_utf8(body).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magic_numbers_tell_media_from_text() {
        let media = |body: &[u8]| match sniff(body) {
            Sniffed::Media(media) => media.mime,
            other => panic!("{other:?}"),
        };
        assert_eq!(media(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"), "image/png");
        assert_eq!(media(b"\xff\xd8\xff\xe0\0\x10JFIF"), "image/jpeg");
        assert_eq!(media(b"RIFF\x24\0\0\0WEBPVP8 "), "image/webp");
        assert_eq!(media(b"GIF89a\x01\0\x01\0"), "image/gif");
        assert_eq!(media(b"BM\x46\0\0\0\0\0\0\0\x36\0\0\0"), "image/bmp");
        assert_eq!(media(b"RIFF\x24\0\0\0WAVEfmt "), "audio/wav");
        assert_eq!(media(b"fLaC\0\0\0\x22"), "audio/flac");
        assert_eq!(media(b"ID3\x04\0\0\0\0\0\0"), "audio/mpeg");
        assert_eq!(media(b"OggS\0\x02\0\0\0\0\0\0\0\0"), "audio/ogg");
        assert_eq!(media(b"\0\0\0\x20ftypM4A \0\0\0\0"), "audio/m4a");
        assert_eq!(sniff(b"hello"), Sniffed::Unknown);
        assert_eq!(sniff(b"<html><body>"), Sniffed::Unknown);
        assert_eq!(sniff(b"%PDF-1.7"), Sniffed::Other("application/pdf"));
    }
}
