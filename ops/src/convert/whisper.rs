//! Whisper out of CTranslate2's layout: its joined projections are taken apart, and get the names that transformers uses.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::Material;
use super::ctranslate2::{self, Kind, Model, Variable};
use super::safetensors::{Dtype, Tensor, write};

/// What is read of CTranslate2.
const SPEC: (&str, u32) = ("WhisperSpec", 3);
/// Vocabularies of fewer tokens know English only.
const MULTILINGUAL_VOCABULARY: usize = 51865;
/// Layers of each side: a Whisper has 32 at most.
const LAYERS_MAX: usize = 256;

/// `config.json` beside it.
#[derive(Debug, Deserialize)]
struct Settings {
    alignment_heads: Vec<[u32; 2]>,
    suppress_ids: Vec<i64>,
    suppress_ids_begin: Vec<i64>,
    #[serde(default)]
    lang_ids: Vec<u32>,
}

/// What the file says of itself.
#[derive(Debug, Serialize)]
struct Config {
    d_model: usize,
    encoder_layers: usize,
    decoder_layers: usize,
    encoder_attention_heads: u16,
    decoder_attention_heads: u16,
    encoder_ffn_dim: usize,
    decoder_ffn_dim: usize,
    vocab_size: usize,
    num_mel_bins: usize,
    max_source_positions: usize,
    max_target_positions: usize,
    multilingual: bool,
    alignment_heads: Vec<[u32; 2]>,
    suppress_ids: Vec<i64>,
    suppress_ids_begin: Vec<i64>,
    lang_ids: Vec<u32>,
}

/// Makes the model's file: tensors, `config`, `tokenizer`.
pub(crate) fn convert(material: &Material, to: &Path) -> Result<()> {
    let weights = material.weights()?;
    let mut source = Source { model: ctranslate2::read(&weights)?, made: Vec::new() };
    ensure!((source.model.spec, source.model.revision) == SPEC, "it is no Whisper of revision {}", SPEC.1);
    let config = source.config(material.json("config")?)?;
    source.take_all(config.encoder_layers, config.decoder_layers)?;
    let metadata = BTreeMap::from([
        ("family", "whisper".to_owned()),
        ("config", serde_json::to_string(&config)?),
        ("tokenizer", material.text("tokenizer")?),
    ]);
    write(to, &metadata, source.made)
}

/// A model that is taken apart.
struct Source<'a> {
    model: Model<'a>,
    made: Vec<Tensor<'a>>,
}

impl<'a> Source<'a> {
    fn config(&self, settings: Settings) -> Result<Config> {
        let layers = |side: &str| {
            let is_there = |layer: &usize| {
                self.model.variables.contains_key(format!("{side}/layer_{layer}/ffn/linear_0/weight").as_str())
            };
            (0..LAYERS_MAX).take_while(is_there).count()
        };
        let size = |name: &str, dimension: usize| -> Result<usize> {
            let shape = &self.variable(name)?.shape;
            shape.get(dimension).copied().with_context(|| format!("{name} has the shape {shape:?}"))
        };
        let heads = |side: &str| match self.variable(&format!("{side}/num_heads"))? {
            &Variable { kind: Kind::I16, data: &[low, high], .. } => Ok(u16::from_le_bytes([low, high])),
            _ => bail!("{side}/num_heads is no number of 16 bits"),
        };
        let vocab_size = size("decoder/embeddings/weight", 0)?;
        let multilingual = vocab_size >= MULTILINGUAL_VOCABULARY;
        Ok(Config {
            d_model: size("decoder/embeddings/weight", 1)?,
            encoder_layers: layers("encoder"),
            decoder_layers: layers("decoder"),
            encoder_attention_heads: heads("encoder")?,
            decoder_attention_heads: heads("decoder")?,
            encoder_ffn_dim: size("encoder/layer_0/ffn/linear_0/weight", 0)?,
            decoder_ffn_dim: size("decoder/layer_0/ffn/linear_0/weight", 0)?,
            vocab_size,
            num_mel_bins: size("encoder/conv1/weight", 1)?,
            max_source_positions: size("encoder/position_encodings/encodings", 0)?,
            max_target_positions: size("decoder/position_encodings/encodings", 0)?,
            multilingual,
            alignment_heads: settings.alignment_heads,
            suppress_ids: settings.suppress_ids,
            suppress_ids_begin: settings.suppress_ids_begin,
            lang_ids: if multilingual { settings.lang_ids } else { vec![] },
        })
    }

    fn variable(&self, name: &str) -> Result<&Variable<'a>> {
        self.model.variables.get(name).with_context(|| format!("it has no {name}"))
    }

    /// Every weight under its new name; one that is left over is a fault.
    fn take_all(&mut self, encoder_layers: usize, decoder_layers: usize) -> Result<()> {
        for (side, layers) in [("encoder", encoder_layers), ("decoder", decoder_layers)] {
            self.take(&format!("{side}.embed_positions.weight"), &format!("{side}/position_encodings/encodings"))?;
            self.norm(&format!("{side}.layer_norm"), side)?;
            for layer in 0..layers {
                self.layer(side, layer)?;
            }
        }
        self.linear("encoder.conv1", "encoder/conv1")?;
        self.linear("encoder.conv2", "encoder/conv2")?;
        self.take("decoder.embed_tokens.weight", "decoder/embeddings/weight")?;
        let scalar =
            |variable: &Variable<'_>| variable.shape.iter().product::<usize>() <= 1 || variable.kind == Kind::I32;
        match self.model.variables.iter().find(|(_, variable)| !scalar(variable)) {
            Some((name, _)) => bail!("{name} is no part of a Whisper that is known here"),
            None => Ok(()),
        }
    }

    fn layer(&mut self, side: &str, layer: usize) -> Result<()> {
        let (ours, theirs) = (format!("{side}.layers.{layer}"), format!("{side}/layer_{layer}"));
        self.norm(&format!("{ours}.self_attn_layer_norm"), &format!("{theirs}/self_attention"))?;
        let projections = ["q_proj", "k_proj", "v_proj"];
        self.split(&format!("{ours}.self_attn"), &projections, &format!("{theirs}/self_attention/linear_0"))?;
        self.linear(&format!("{ours}.self_attn.out_proj"), &format!("{theirs}/self_attention/linear_1"))?;
        if side == "decoder" {
            let (ours, theirs) = (format!("{ours}.encoder_attn"), format!("{theirs}/attention"));
            self.norm(&format!("{ours}_layer_norm"), &theirs)?;
            self.linear(&format!("{ours}.q_proj"), &format!("{theirs}/linear_0"))?;
            self.split(&ours, &projections[1..], &format!("{theirs}/linear_1"))?;
            self.linear(&format!("{ours}.out_proj"), &format!("{theirs}/linear_2"))?;
        }
        self.norm(&format!("{ours}.final_layer_norm"), &format!("{theirs}/ffn"))?;
        self.linear(&format!("{ours}.fc1"), &format!("{theirs}/ffn/linear_0"))?;
        self.linear(&format!("{ours}.fc2"), &format!("{theirs}/ffn/linear_1"))
    }

    fn norm(&mut self, ours: &str, theirs: &str) -> Result<()> {
        self.take(&format!("{ours}.weight"), &format!("{theirs}/layer_norm/gamma"))?;
        self.take(&format!("{ours}.bias"), &format!("{theirs}/layer_norm/beta"))
    }

    fn linear(&mut self, ours: &str, theirs: &str) -> Result<()> {
        self.take(&format!("{ours}.weight"), &format!("{theirs}/weight"))?;
        self.take(&format!("{ours}.bias"), &format!("{theirs}/bias"))
    }

    /// Equal parts of the rows. Whisper's keys have no bias, for which CTranslate2 stores zeros.
    fn split(&mut self, ours: &str, names: &[&str], theirs: &str) -> Result<()> {
        for what in ["weight", "bias"] {
            let theirs = format!("{theirs}/{what}");
            let (variable, dtype) = self.weight(&theirs)?;
            let (rows, parts) = (variable.shape.first().copied().unwrap_or(0), names.len());
            ensure!(!variable.data.is_empty(), "{theirs} is empty");
            ensure!(rows > 0 && rows % parts == 0, "{theirs} has {rows} rows, not {parts} equal parts");
            let shape = [&[rows / parts], &variable.shape[1..]].concat();
            for (name, data) in names.iter().zip(variable.data.chunks_exact(variable.data.len() / parts)) {
                if (*name, what) == ("k_proj", "bias") {
                    ensure!(data.iter().all(|byte| *byte == 0), "{theirs} has a bias for keys, which Whisper has not");
                    continue;
                }
                let name = format!("model.{ours}.{name}.{what}");
                self.made.push(Tensor { name, dtype, shape: shape.clone(), data: Cow::Borrowed(data) });
            }
        }
        Ok(())
    }

    fn take(&mut self, ours: &str, theirs: &str) -> Result<()> {
        let (Variable { shape, data, .. }, dtype) = self.weight(theirs)?;
        self.made.push(Tensor { name: format!("model.{ours}"), dtype, shape, data: Cow::Borrowed(data) });
        Ok(())
    }

    fn weight(&mut self, name: &str) -> Result<(Variable<'a>, Dtype)> {
        let variable = self.model.variables.remove(name).with_context(|| format!("it has no {name}"))?;
        let dtype = match variable.kind {
            Kind::F16 => Dtype::F16,
            Kind::F32 => Dtype::F32,
            other => bail!("{name} is {other:?}: only weights that were not quantised are converted"),
        };
        Ok((variable, dtype))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::ctranslate2::tests::file;

    const CONFIG: &str = r#"{"alignment_heads":[[0,0]],"suppress_ids":[-1,2],"suppress_ids_begin":[1],"lang_ids":[7]}"#;

    /// A Whisper of one layer a side and width 2, as variables: name, shape, code of the type, bytes.
    fn variables() -> Vec<(String, Vec<u32>, u8, Vec<u8>)> {
        let mut told = Vec::new();
        let mut put = |name: String, shape: &[u32]| {
            let data: Vec<u8> = (0..shape.iter().product::<u32>() * 2).map(|byte| byte as u8).collect();
            told.push((name, shape.to_vec(), 4, data));
        };
        for side in ["encoder", "decoder"] {
            put(format!("{side}/position_encodings/encodings"), &[4, 2]);
            for norm in ["", "/layer_0/self_attention", "/layer_0/ffn"] {
                put(format!("{side}{norm}/layer_norm/gamma"), &[2]);
                put(format!("{side}{norm}/layer_norm/beta"), &[2]);
            }
            for (name, rows) in [
                ("self_attention/linear_0", 6),
                ("self_attention/linear_1", 2),
                ("ffn/linear_0", 8),
                ("ffn/linear_1", 2),
            ] {
                put(format!("{side}/layer_0/{name}/weight"), &[rows, 2]);
                put(format!("{side}/layer_0/{name}/bias"), &[rows]);
            }
        }
        for (name, rows) in [("linear_0", 2), ("linear_1", 4), ("linear_2", 2)] {
            put(format!("decoder/layer_0/attention/{name}/weight"), &[rows, 2]);
            put(format!("decoder/layer_0/attention/{name}/bias"), &[rows]);
        }
        put("decoder/layer_0/attention/layer_norm/gamma".into(), &[2]);
        put("decoder/layer_0/attention/layer_norm/beta".into(), &[2]);
        for conv in ["conv1", "conv2"] {
            put(format!("encoder/{conv}/weight"), &[2, 5, 3]);
            put(format!("encoder/{conv}/bias"), &[2]);
        }
        put("decoder/embeddings/weight".into(), &[9, 2]);
        for (name, _, _, data) in &mut told {
            match name.as_str() {
                "encoder/layer_0/self_attention/linear_0/bias" | "decoder/layer_0/self_attention/linear_0/bias" => {
                    data[4..8].fill(0)
                }
                "decoder/layer_0/attention/linear_1/bias" => data[..4].fill(0),
                _ => {}
            }
        }
        told.push(("encoder/num_heads".into(), vec![], 2, vec![1, 0]));
        told.push(("decoder/num_heads".into(), vec![], 2, vec![1, 0]));
        told.push(("decoder/pre_norm".into(), vec![], 1, vec![1]));
        told
    }

    fn converted(name: &str, told: &[(String, Vec<u32>, u8, Vec<u8>)]) -> Result<Vec<u8>> {
        let dir = std::env::temp_dir().join(format!("flotilla-whisper-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        let told: Vec<_> = told
            .iter()
            .map(|(name, shape, code, data)| (name.as_str(), shape.as_slice(), *code, data.as_slice()))
            .collect();
        std::fs::write(dir.join("weights"), file("WhisperSpec", &told))?;
        std::fs::write(dir.join("config"), CONFIG)?;
        std::fs::write(dir.join("tokenizer"), "{}")?;
        let files = ["config", "tokenizer"].map(|what| (what.to_owned(), dir.join(what)));
        let done = convert(&Material { weights: dir.join("weights"), files: files.into() }, &dir.join("out"));
        let made = done.and_then(|()| Ok(std::fs::read(dir.join("out"))?));
        std::fs::remove_dir_all(&dir)?;
        made
    }

    #[test]
    fn projections_are_taken_apart_and_everything_renamed() {
        let made = converted("well", &variables()).unwrap();
        let tensors = ::safetensors::SafeTensors::deserialize(&made).unwrap();
        let shape = |name: &str| tensors.tensor(name).unwrap().shape().to_vec();
        assert_eq!(shape("model.encoder.layers.0.self_attn.k_proj.weight"), [2, 2]);
        assert_eq!(
            tensors.tensor("model.encoder.layers.0.self_attn.v_proj.weight").unwrap().data(),
            [16, 17, 18, 19, 20, 21, 22, 23]
        );
        assert_eq!(tensors.tensor("model.decoder.layers.0.encoder_attn.v_proj.bias").unwrap().data(), [4, 5, 6, 7]);
        assert_eq!(shape("model.decoder.embed_tokens.weight"), [9, 2]);
        assert!(tensors.tensor("model.encoder.layers.0.self_attn.k_proj.bias").is_err());
        assert_eq!(tensors.len(), 50);
        let (_, read) = ::safetensors::SafeTensors::read_metadata(&made).unwrap();
        let config: serde_json::Value = serde_json::from_str(&read.metadata().as_ref().unwrap()["config"]).unwrap();
        let wanted =
            [("d_model", 2), ("decoder_layers", 1), ("encoder_ffn_dim", 8), ("num_mel_bins", 5), ("vocab_size", 9)];
        assert!(wanted.iter().all(|(key, value)| config[key] == *value), "{config}");
        assert_eq!((&config["multilingual"], &config["lang_ids"]), (&false.into(), &serde_json::json!([])));
    }

    #[test]
    fn what_is_missing_left_over_or_quantised_is_named() {
        let refused = |name: &str, told: &[(String, Vec<u32>, u8, Vec<u8>)], words: &str| {
            let error = format!("{:#}", converted(name, told).unwrap_err());
            assert!(error.contains(words), "{error}");
        };
        let all = variables();
        refused("missing", &all[1..], "encoder/position_encodings");
        let mut more = all.clone();
        more.push(("decoder/adapter/weight".into(), vec![2], 4, vec![0; 4]));
        refused("more", &more, "decoder/adapter/weight");
        let mut eight = all.clone();
        eight[1] = (eight[1].0.clone(), vec![2], 1, vec![0; 2]);
        refused("eight", &eight, "quantised");
        let mut keys = all;
        keys.iter_mut().filter(|told| told.0.ends_with("attention/linear_1/bias")).for_each(|told| told.3.fill(1));
        refused("keys", &keys, "bias for keys");
    }
}
