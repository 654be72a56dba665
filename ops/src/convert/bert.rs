//! A sentence encoder of the BERT family, as sentence-transformers lays it out.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use ::safetensors::{Dtype as Stored, SafeTensors};
use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::Material;
use super::safetensors::{Dtype, Tensor, write};

/// `config.json` of transformers, as far as it decides anything; the same names go into the file.
#[derive(Debug, Deserialize, Serialize)]
struct Network {
    model_type: String,
    hidden_size: u32,
    num_hidden_layers: u32,
    num_attention_heads: u32,
    intermediate_size: u32,
    max_position_embeddings: u32,
    type_vocab_size: u32,
    vocab_size: u32,
    hidden_act: String,
    layer_norm_eps: f64,
    #[serde(default, skip_serializing)]
    position_embedding_type: Option<String>,
}

/// `sentence_bert_config.json`
#[derive(Debug, Deserialize)]
struct Sentence {
    max_seq_length: u32,
}

/// `1_Pooling/config.json`
#[derive(Debug, Deserialize)]
struct Pooling {
    pooling_mode_cls_token: bool,
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_sqrt_len_tokens: bool,
}

impl Pooling {
    fn name(&self) -> Result<&'static str> {
        match (self.pooling_mode_cls_token, self.pooling_mode_mean_tokens) {
            _ if self.pooling_mode_max_tokens || self.pooling_mode_mean_sqrt_len_tokens => {}
            (true, false) => return Ok("cls"),
            (false, true) => return Ok("mean"),
            _ => {}
        }
        bail!("its pooling is neither that of the first token nor the mean")
    }
}

/// What the file says of itself.
#[derive(Debug, Serialize)]
struct Config {
    #[serde(flatten)]
    network: Network,
    max_seq_length: u32,
    pooling: &'static str,
}

/// A buffer of positions, not of weights.
const POSITION_IDS: &str = "embeddings.position_ids";

/// Makes the model's file: tensors as they are, `config`, `tokenizer`.
pub(crate) fn convert(material: &Material, to: &Path) -> Result<()> {
    let network: Network = material.json("config")?;
    ensure!(network.model_type == "bert", "it is of type {}, not bert", network.model_type);
    let positions = network.position_embedding_type.as_deref().unwrap_or("absolute");
    ensure!(positions == "absolute", "its positions are {positions}, not absolute");
    let Sentence { max_seq_length } = material.json("sentence")?;
    let pooling = material.json::<Pooling>("pooling")?.name()?;
    let config = serde_json::to_string(&Config { network, max_seq_length, pooling })?;
    let metadata =
        BTreeMap::from([("family", "bert".to_owned()), ("config", config), ("tokenizer", material.text("tokenizer")?)]);
    let weights = material.weights()?;
    write(to, &metadata, tensors(&weights)?)
}

fn tensors(weights: &[u8]) -> Result<Vec<Tensor<'_>>> {
    let stored = SafeTensors::deserialize(weights).context("its weights are no safetensors")?;
    let mut tensors = Vec::with_capacity(stored.len());
    for (name, view) in stored.iter().filter(|(name, _)| *name != POSITION_IDS) {
        let dtype = match view.dtype() {
            Stored::F32 => Dtype::F32,
            Stored::F16 => Dtype::F16,
            other => bail!("tensor {name} is {other:?}, not F32 or F16"),
        };
        let (shape, data) = (view.shape().to_vec(), Cow::Borrowed(view.data()));
        tensors.push(Tensor { name: name.to_owned(), dtype, shape, data });
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_encoder_becomes_one_file_without_its_buffers() {
        let dir = std::env::temp_dir().join(format!("flotilla-bert-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let numbers: Vec<u8> = [1.5f32, -2.0].iter().flat_map(|number| number.to_le_bytes()).collect();
        let header = r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"embeddings.position_ids":{"dtype":"I64","shape":[1],"data_offsets":[8,16]}}"#;
        let mut weights = (header.len() as u64).to_le_bytes().to_vec();
        weights.extend(header.bytes().chain(numbers.iter().copied()).chain([0; 8]));
        let network = r#"{"model_type":"bert","hidden_size":2,"num_hidden_layers":1,"num_attention_heads":1,"intermediate_size":4,"max_position_embeddings":8,"type_vocab_size":2,"vocab_size":9,"hidden_act":"gelu","layer_norm_eps":1e-12,"use_cache":true}"#;
        let put = |name: &str, content: &[u8]| {
            std::fs::write(dir.join(name), content).unwrap();
            dir.join(name)
        };
        let mut material = Material { weights: put("weights", &weights), files: BTreeMap::new() };
        for (what, content) in [
            ("config", network),
            ("sentence", r#"{"max_seq_length":4,"do_lower_case":false}"#),
            (
                "pooling",
                r#"{"word_embedding_dimension":2,"pooling_mode_cls_token":false,"pooling_mode_mean_tokens":true}"#,
            ),
            ("tokenizer", "{\"version\":\"1.0\"}"),
        ] {
            material.files.insert(what.to_owned(), put(what, content.as_bytes()));
        }
        let out = dir.join("out");
        convert(&material, &out).unwrap();
        let made = std::fs::read(&out).unwrap();
        let (_, read) = SafeTensors::read_metadata(&made).unwrap();
        let said = read.metadata().clone().unwrap();
        assert_eq!((said["family"].as_str(), said["tokenizer"].as_str()), ("bert", "{\"version\":\"1.0\"}"));
        let config: serde_json::Value = serde_json::from_str(&said["config"]).unwrap();
        assert_eq!((&config["hidden_size"], &config["max_seq_length"]), (&2.into(), &4.into()));
        assert_eq!((&config["pooling"], &config["layer_norm_eps"]), (&"mean".into(), &1e-12.into()));
        let tensors = SafeTensors::deserialize(&made).unwrap();
        assert_eq!((tensors.names(), tensors.tensor("w").unwrap().data()), (vec!["w"], numbers.as_slice()));
        put(
            "pooling",
            br#"{"pooling_mode_cls_token":false,"pooling_mode_mean_tokens":true,"pooling_mode_max_tokens":true}"#,
        );
        assert!(convert(&material, &out).unwrap_err().to_string().contains("pooling"));
        put("weights", b"not weights at all");
        put("pooling", br#"{"pooling_mode_cls_token":true,"pooling_mode_mean_tokens":false}"#);
        assert!(convert(&material, &out).unwrap_err().to_string().contains("safetensors"));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
