//! What the unit tests of this crate share.

use bytes::Bytes;
use protocol::media::Modality;
use protocol::request::{Blob, Content, Format, Mode, Params, Part, Request, Role, Task};
use runtime::config::ModelEntry;

/// A model for texts.
pub(crate) fn entry(name: &str) -> ModelEntry {
    ModelEntry {
        name: name.to_owned(),
        tasks: vec![Task::Chat, Task::Complete],
        modality: Modality::Text,
        family: None,
        file: "model.gguf".to_owned(),
        sha256: "0123456789abcdef".repeat(4),
        precision: "q4_1".to_owned(),
        context: 2048,
        source: None,
        pull: runtime::config::Pull::Always,
        licence: None,
    }
}

/// A request of nothing but its input.
pub(crate) fn request(input: Vec<Part>) -> Request {
    Request {
        input,
        task: None,
        model: None,
        session: None,
        mode: Mode::Whole,
        priority: None,
        deadline: None,
        cache: None,
        id: None,
        params: Params::default(),
        format: Format::Raw,
        subtitles: None,
    }
}

/// A picture or sound of the person.
pub(crate) fn media(modality: Modality, mime: &str, data: &[u8]) -> Part {
    let data = Blob(Bytes::copy_from_slice(data));
    Part { role: Role::User, content: Content::Media { modality, mime: mime.to_owned(), data } }
}
