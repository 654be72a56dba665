//! From a model file to an encoder and what stands before and after it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{Budget, Encoder, Picturing};
use crate::Error;
use crate::backend::cpu::Cpu;
use crate::backend::dense::Dense;
use crate::backend::{Activations, StepLimits, Weights};
use crate::device::{self, Device};
use crate::model::whisper::Whisper;
use crate::model::{Bert, BertConfig, Clip, ClipConfig, EfficientNet};
use crate::needs::{CARD, Needs};
use crate::quant::Format;
use crate::simd::Level;
use crate::simd::brains::{self, Closeness};
use crate::simd::panel::packed_bytes;
use crate::tensors::{FAMILY, TOKENIZER, Tensor, Tensors};
use crate::text::TextEncoder;

/// Tokens of a batch: beyond these the processor gains nothing, and whoever comes next waits longer.
const BATCH_TOKENS: usize = 1024;
/// Tokens of a batch of sentences for each thread: they share each reading of the weights, which are more than its cache
/// holds.
const THREAD_TOKENS: usize = 512;
/// The same of weights of a byte by vector registers: a quarter to read, so that it counts more what tokens compute, which
/// stays in the cache from layer to layer.
const BYTE_TOKENS: usize = 128;
/// Tokens of a batch of sentences on a GPU.
const GPU_TOKENS: usize = 32 * 1024;
/// Texts of a batch.
const BATCH_TEXTS: usize = 256;
/// How long a text waits for those that came with the last one: far less than a batch computes.
const MAX_WAIT: Duration = Duration::from_millis(1);
/// A token in a tokenizer's tables: its text in both directions, its places in hash tables.
const VOCABULARY_TOKEN: usize = 320;

/// What EfficientNet-Lite0 computes in for each place of its pictures: four at once, 96 channels at a quarter of the
/// places, and their unfolding.
const EFFICIENTNET_PLACE: u64 = 2048;
/// What the names of both towers' positions end with.
const WHISPER_POSITIONS: &str = "embed_positions.weight";
/// Whisper's tokens, one a row.
const WHISPER_EMBEDDING: &str = "model.decoder.embed_tokens.weight";

/// An encoder, and what stands before and after it.
pub struct Loaded {
    /// On its device, its weights packed.
    pub encoder: Box<dyn Encoder>,
    /// Texts to tokens; `None` for a model that reads none.
    pub tokens: Option<Arc<TextEncoder>>,
    /// Names of classes, in the order of [`super::Output::Classes`]; empty for a model that has none.
    pub labels: Vec<String>,
    /// For logs and status.
    pub info: Info,
}

/// What a model file says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Family, as the file calls it.
    pub family: String,
    /// Numbers in all tensors.
    pub parameters: u64,
    /// How its weights are stored.
    pub precision: &'static str,
    /// Tokens that it looks at, for a model that reads texts.
    pub context: Option<usize>,
    /// Numbers of a direction, for a model that finds them.
    pub width: Option<usize>,
}

/// How an encoder is to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Threads.
    pub threads: usize,
    /// How its weights are held.
    pub weights: Weights,
}

impl Settings {
    /// Weights as the file has them.
    #[must_use]
    pub fn stored(threads: usize) -> Settings {
        Settings { threads, weights: Weights::Stored }
    }

    /// Weights of a byte.
    #[must_use]
    pub fn int8(threads: usize) -> Settings {
        Settings { threads, weights: Weights::Int8 }
    }
}

/// Loads the encoder at `path` for the best instructions of this machine.
///
/// # Errors
/// When the file cannot be read, is broken, or is of a family that is not computed.
pub fn load(path: &Path, settings: Settings) -> Result<Loaded, Error> {
    load_on(path, settings, &Device::processor())
}

/// Loads the encoder at `path` onto `device`.
///
/// # Errors
/// As [`load`].
pub fn load_on(path: &Path, settings: Settings, device: &Device) -> Result<Loaded, Error> {
    let tensors = Tensors::open(path)?;
    match device {
        Device::Processor(level) => {
            let cpu = processor(&tensors, settings, *level)?;
            load_family(&tensors, sentence_tokens(settings.threads, held(&tensors, settings), *level), cpu)
        }
        Device::Cuda(card) => {
            // Encoders have no steps.
            let limits = StepLimits { rows: 1, outputs: 1, blocks: 1 };
            load_family(&tensors, GPU_TOKENS, device::cuda(card, limits)?)
        }
    }
}

/// The processor as a device for the encoder of a file, whose weights of a byte, if it has such, say that all are.
///
/// # Errors
/// When the file does not say its family.
pub fn processor(tensors: &Tensors, settings: Settings, level: Level) -> Result<Cpu, Error> {
    let activations = match tensors.text(FAMILY)? {
        "bert" => Activations::Sparse,
        "efficientnet" => Activations::Rows,
        _ => Activations::default(),
    };
    Ok(Cpu::for_encoder(level, settings.threads, held(tensors, settings)).with(activations))
}

/// How weights are held.
fn held(tensors: &Tensors, settings: Settings) -> Weights {
    if tensors.holds(Format::Q8_0) { Weights::Int8 } else { settings.weights }
}

fn load_family<B: Dense + 'static>(tensors: &Tensors, tokens: usize, backend: B) -> Result<Loaded, Error> {
    match tensors.text(FAMILY)? {
        "bert" => bert(tensors, tokens, backend),
        "efficientnet" => efficientnet(tensors, backend),
        "whisper" => whisper(tensors, backend),
        "clip" => clip(tensors, backend),
        other => Err(unknown(other)),
    }
}

/// Looks at the encoder at `path` without loading it.
///
/// # Errors
/// As [`load`].
pub fn needs(path: &Path, settings: Settings) -> Result<Needs, Error> {
    let tensors = Tensors::open(path)?;
    let needs = match tensors.text(FAMILY)? {
        "bert" => bert_needs(&tensors, settings),
        "efficientnet" => efficientnet_needs(&tensors),
        "whisper" => whisper_needs(&tensors),
        "clip" => clip_needs(&tensors),
        other => Err(unknown(other)),
    }?;
    match held(&tensors, settings) {
        Weights::Stored => Ok(needs),
        // Rounded inputs take less than the inputs themselves; rounded weights never more than the file's.
        Weights::Int8 => Ok(Needs { workspace: needs.workspace.saturating_mul(2), ..needs }),
    }
}

/// As [`needs`], of a GPU's memory.
///
/// # Errors
/// As [`load`].
pub fn needs_on_card(path: &Path) -> Result<Needs, Error> {
    let needs = needs(path, Settings::stored(1))?;
    let tensors = Tensors::open(path)?;
    let parameters = tensors.parameters();
    // Whisper's decoder keeps the integers of a quantised file beside.
    let integers = if tensors.holds(Format::Q8_0) { parameters.saturating_mul(9) / 8 } else { 0 };
    // Batches are as much larger as a GPU takes, their numbers half as wide.
    let workspace = needs.workspace.saturating_mul(GPU_TOKENS as u64 / BATCH_TOKENS as u64).saturating_add(CARD);
    Ok(Needs { weights: parameters.saturating_mul(2).saturating_add(integers), workspace, ..needs })
}

/// That of products, where they are rounded; else that of the tensor which stands for all.
fn precision(tensors: &Tensors, format: Format) -> &'static str {
    if tensors.holds(Format::Q8_0) { Format::Q8_0.name() } else { format.name() }
}

fn unknown(family: &str) -> Error {
    Error::Unsupported(format!("encoders of family `{family}`"))
}

/// Tokens of a batch of sentences.
fn sentence_tokens(threads: usize, weights: Weights, level: Level) -> usize {
    let each = if weights == Weights::Int8 && level.unit().is_none() { BYTE_TOKENS } else { THREAD_TOKENS };
    threads.saturating_mul(each).min(BATCH_TOKENS)
}

fn bert<B: Dense + 'static>(tensors: &Tensors, tokens: usize, backend: B) -> Result<Loaded, Error> {
    let budget = Budget { units: tokens, inputs: BATCH_TEXTS, max_wait: MAX_WAIT };
    let encoder = Bert::load(tensors, budget, backend)?;
    let config = encoder.config();
    let tokens = TextEncoder::parse(tensors.text(TOKENIZER)?)?;
    if tokens.vocabulary() > config.vocabulary {
        let (has, knows) = (tokens.vocabulary(), config.vocabulary);
        return Err(Error::Malformed(format!("a tokenizer of {has} tokens for a model of {knows}")));
    }
    let info = Info {
        family: "bert".into(),
        parameters: tensors.parameters(),
        precision: precision(tensors, tensors.tensor("embeddings.word_embeddings.weight")?.format),
        context: Some(config.context),
        width: Some(config.width),
    };
    Ok(Loaded { encoder: Box::new(encoder), tokens: Some(Arc::new(tokens)), labels: Vec::new(), info })
}

fn bert_needs(tensors: &Tensors, settings: Settings) -> Result<Needs, Error> {
    let config = BertConfig::read(tensors)?;
    let tokens = sentence_tokens(settings.threads, held(tensors, settings), Level::detect()).max(config.context);
    let activations = tokens.saturating_mul(config.row()).saturating_add(BATCH_TEXTS * config.width);
    let tokenizer = config.vocabulary.saturating_mul(VOCABULARY_TOKEN);
    let workspace = activations.saturating_mul(size_of::<f32>()).saturating_add(tokenizer);
    Ok(Needs { weights: packed(tensors), workspace: workspace as u64, kv_token: 0, context: config.context })
}

/// Weights once they are packed: as large as in their file, or two brain floats a number where a matrix unit has them.
fn packed(tensors: &Tensors) -> u64 {
    let singles = tensors.parameters().saturating_mul(size_of::<f32>() as u64);
    if Level::detect().unit().is_some() { tensors.bytes().max(singles) } else { tensors.bytes() }
}

fn efficientnet<B: Dense + 'static>(tensors: &Tensors, backend: B) -> Result<Loaded, Error> {
    let bias = tensors.tensor("classifier.bias")?;
    let (labels, classes) = (tensors.labels()?, bias.shape.first().copied().unwrap_or(0));
    if labels.len() != classes {
        return Err(Error::Malformed(format!("{} labels for {classes} classes", labels.len())));
    }
    let info = Info {
        family: "efficientnet".into(),
        parameters: tensors.parameters(),
        precision: precision(tensors, bias.format),
        context: None,
        width: None,
    };
    Ok(Loaded { encoder: Box::new(EfficientNet::load(tensors, backend)?), tokens: None, labels, info })
}

fn efficientnet_needs(tensors: &Tensors) -> Result<Needs, Error> {
    let side = u64::from(Picturing::read(tensors)?.size);
    Ok(plain_needs(tensors, side * side * EFFICIENTNET_PLACE))
}

fn whisper_needs(tensors: &Tensors) -> Result<Needs, Error> {
    let [tokens, _] = *tensors.tensor(WHISPER_EMBEDDING)?.shape else {
        return Err(Error::Malformed(format!("tensor `{WHISPER_EMBEDDING}` is no matrix")));
    };
    let scratch = (Whisper::<Cpu>::scratch(tensors)? * size_of::<f32>()) as u64;
    let weights = tensors.floats().map(|(name, tensor)| whisper_bytes(&name, &tensor)).fold(0, u64::saturating_add);
    let workspace = scratch.saturating_add(tokens.saturating_mul(VOCABULARY_TOKEN) as u64);
    Ok(Needs { weights, workspace, kv_token: 0, context: 0 })
}

/// What a tensor takes once it is loaded: products and embeddings stay as the file has them; positions, which are
/// added to rows, and all else are single precision.
fn whisper_bytes(name: &str, tensor: &Tensor<'_>) -> u64 {
    let singles = (tensor.shape.iter().product::<usize>() as u64).saturating_mul(size_of::<f32>() as u64);
    match *tensor.shape {
        [_, _] if name.ends_with(WHISPER_POSITIONS) => singles,
        [rows, columns] if Level::detect().unit().is_some() && of_windows(name) => {
            brains::packed_bytes(rows, columns, Closeness::of(tensor.format)) as u64
        }
        [rows, columns] => packed_bytes(tensor.format, columns, rows) as u64,
        _ => singles,
    }
}

/// Whether a product of Whisper is one of all that was heard.
fn of_windows(name: &str) -> bool {
    name.starts_with("model.encoder.") || name.contains(".encoder_attn.k_proj") || name.contains(".encoder_attn.v_proj")
}

fn whisper<B: Dense + 'static>(tensors: &Tensors, backend: B) -> Result<Loaded, Error> {
    let info = Info {
        family: "whisper".into(),
        parameters: tensors.parameters(),
        precision: precision(tensors, tensors.tensor(WHISPER_EMBEDDING)?.format),
        context: None,
        width: None,
    };
    Ok(Loaded { encoder: Box::new(Whisper::load(tensors, backend)?), tokens: None, labels: Vec::new(), info })
}

/// Weights in single precision at most, whatever the file has, and what the model computes in.
fn plain_needs(tensors: &Tensors, workspace: u64) -> Needs {
    let weights = tensors.parameters().saturating_mul(size_of::<f32>() as u64);
    Needs { weights, workspace, kv_token: 0, context: 0 }
}

fn clip<B: Dense + 'static>(tensors: &Tensors, backend: B) -> Result<Loaded, Error> {
    let units = BATCH_TOKENS * backend.appetite();
    let budget = Budget { units, inputs: BATCH_TEXTS, max_wait: MAX_WAIT };
    let encoder = Clip::load(tensors, budget, backend)?;
    let config = encoder.config();
    let tokens = TextEncoder::parse(tensors.text(TOKENIZER)?)?;
    if tokens.vocabulary() > config.text.vocabulary {
        let (has, knows) = (tokens.vocabulary(), config.text.vocabulary);
        return Err(Error::Malformed(format!("a tokenizer of {has} tokens for a model of {knows}")));
    }
    let info = Info {
        family: "clip".into(),
        parameters: tensors.parameters(),
        precision: precision(tensors, tensors.tensor("text_model.embeddings.token_embedding.weight")?.format),
        context: Some(config.text.positions),
        width: Some(config.projection),
    };
    Ok(Loaded { encoder: Box::new(encoder), tokens: Some(Arc::new(tokens)), labels: Vec::new(), info })
}

fn clip_needs(tensors: &Tensors) -> Result<Needs, Error> {
    let config = ClipConfig::read(tensors)?;
    let activations = config.scratch(BATCH_TOKENS, BATCH_TEXTS);
    let tokenizer = config.text.vocabulary.saturating_mul(VOCABULARY_TOKEN);
    let workspace = activations.saturating_mul(size_of::<f32>()).saturating_add(tokenizer);
    let context = config.text.positions;
    Ok(Needs { weights: packed(tensors), workspace: workspace as u64, kv_token: 0, context })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::tensors_file;

    #[test]
    fn whisper_stays_in_the_precision_of_its_file() {
        let model = Tensors::open(&crate::fixture::whisper_tiny_en()).unwrap();
        let needs = whisper_needs(&model).unwrap();
        let file = model.bytes();
        // A matrix unit has two brain floats for a number of the encoder.
        let most = if Level::detect().unit().is_some() { file / 2 } else { file / 10 };
        assert!((file..file + most).contains(&needs.weights), "{needs:?} of a file of {file} bytes");
    }

    #[test]
    fn an_embedding_without_dimensions_is_malformed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("whisper.safetensors");
        let metadata = [(FAMILY, "whisper")];
        std::fs::write(&path, tensors_file(&metadata, &[(WHISPER_EMBEDDING, &[], vec![1.0])])).unwrap();
        assert!(matches!(needs(&path, Settings::stored(1)), Err(Error::Malformed(_))));
    }
}
