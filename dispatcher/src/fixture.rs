//! What the unit tests of this crate share.

use protocol::media::Modality;
use protocol::request::Task;
use runtime::config::ModelEntry;

/// A model for texts.
pub(crate) fn entry(name: &str) -> ModelEntry {
    ModelEntry {
        name: name.to_owned(),
        tasks: vec![Task::Chat, Task::Complete],
        modality: Modality::Text,
        file: "model.gguf".to_owned(),
        sha256: "0123456789abcdef".repeat(4),
        precision: "q4_1".to_owned(),
        context: 2048,
        source: None,
        licence: None,
    }
}
