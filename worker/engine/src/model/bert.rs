//! Sentence encoders of the BERT family: a text becomes a direction. Written once over any device.
//!
//! Names and arithmetic are those of transformers' `BertModel`, pooled and normalised as sentence-transformers do.

use serde::Deserialize;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Error;
use crate::backend::dense::{Activation, Attended, Dense, Heads, Mask, Span, View};
use crate::encode::{Budget, Cost, Encoder, Input, InputKey, Turn};
use crate::model::affine::{self, Affine, Loader, Norm};
use crate::model::direction::direction;
use crate::tensors::Tensors;

/// Bounds of what a file may claim: above all models in sight, below what would overflow.
const LAYERS_MAX: usize = 1 << 10;
const WIDTH_MAX: usize = 1 << 16;
const TOKENS_MAX: usize = 1 << 22;

/// The numbers of a network, by the names that model authors use.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct BertConfig {
    /// Numbers of the residual stream.
    #[serde(rename = "hidden_size")]
    pub width: usize,
    /// Blocks of attention and feed-forward.
    #[serde(rename = "num_hidden_layers")]
    pub layers: usize,
    /// Heads of attention.
    #[serde(rename = "num_attention_heads")]
    pub heads: usize,
    /// Numbers inside the feed-forward.
    #[serde(rename = "intermediate_size")]
    pub inner: usize,
    /// Positions in the table.
    #[serde(rename = "max_position_embeddings")]
    pub positions: usize,
    /// Tokens there are.
    #[serde(rename = "vocab_size")]
    pub vocabulary: usize,
    /// Kinds of segments; every text is of the first.
    #[serde(rename = "type_vocab_size")]
    pub types: usize,
    /// Added to the variance in norms.
    #[serde(rename = "layer_norm_eps")]
    pub epsilon: f32,
    /// Tokens of a text, those around it included, that the model was trained to look at.
    #[serde(rename = "max_seq_length")]
    pub context: usize,
    /// How tokens become one direction.
    pub pooling: Pooling,
    #[serde(rename = "hidden_act", default)]
    activation: Gelu,
    #[serde(rename = "position_embedding_type", default)]
    embedding: Absolute,
}

/// How tokens become one direction.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Pooling {
    /// The mean of all.
    Mean,
    /// The first.
    Cls,
}

/// The only activation that is computed.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Gelu {
    #[default]
    Gelu,
}

/// The only positions that are computed.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Absolute {
    #[default]
    Absolute,
}

impl BertConfig {
    /// Reads and checks the numbers of a file.
    ///
    /// # Errors
    /// [`Error::Malformed`] for missing or impossible numbers, and for variants that are not computed.
    pub fn read(tensors: &Tensors) -> Result<BertConfig, Error> {
        let config: BertConfig = tensors.config()?;
        let within = |number: usize, max: usize| (1..=max).contains(&number);
        let BertConfig { width, layers, heads, inner, positions, vocabulary, types, epsilon, context, .. } = config;
        let sizes = within(width, WIDTH_MAX) && within(inner, WIDTH_MAX) && within(layers, LAYERS_MAX);
        let tables = within(vocabulary, TOKENS_MAX) && within(positions, TOKENS_MAX) && within(types, TOKENS_MAX);
        let heads = within(heads, width) && width.is_multiple_of(heads);
        if !(sizes && tables && heads && within(context, positions) && epsilon > 0.0 && epsilon.is_finite()) {
            return Err(Error::Malformed(format!("impossible numbers: {config:?}")));
        }
        Ok(config)
    }

    /// Numbers that a row of a batch takes in scratch.
    #[must_use]
    pub fn row(&self) -> usize {
        6 * self.width + self.inner
    }

    fn heads(&self) -> Heads {
        Heads { count: self.heads, width: self.width / self.heads }
    }
}

/// A sentence encoder on a device.
pub struct Bert<B: Dense> {
    config: BertConfig,
    budget: Budget,
    backend: B,
    weights: Weights<B>,
    scratch: Scratch<B>,
    rows: Rows,
    pooled: Vec<f32>,
    progress: Arc<AtomicU64>,
}

struct Weights<B: Dense> {
    /// (vocabulary, width)
    words: B::Weight,
    /// (positions, width), the first segment's kind added
    positions: B::Buf,
    norm: Norm<B>,
    layers: Vec<Layer<B>>,
}

struct Layer<B: Dense> {
    /// (queries | keys | values, width)
    qkv: Affine<B>,
    /// (width, width)
    attention_out: Affine<B>,
    attention_norm: Norm<B>,
    /// (inner, width)
    up: Affine<B>,
    /// (width, inner)
    down: Affine<B>,
    norm: Norm<B>,
}

/// What a batch writes to.
struct Scratch<B: Dense> {
    /// (rows, width) residual stream
    x: B::Buf,
    /// (rows, width) the same after attention
    y: B::Buf,
    /// (rows, queries | keys | values)
    qkv: B::Buf,
    /// (rows, width)
    attended: B::Buf,
    /// (rows, inner)
    inner: B::Buf,
    /// (inputs, width)
    pooled: B::Buf,
}

/// What the rows of a batch are.
#[derive(Default)]
struct Rows {
    tokens: Vec<u32>,
    positions: Vec<u32>,
    spans: Vec<Span>,
    pooled: Vec<Range<usize>>,
}

impl Rows {
    fn fill(&mut self, batch: &[(InputKey, &Input)], pooling: Pooling) -> Result<(), Error> {
        self.tokens.clear();
        self.positions.clear();
        self.spans.clear();
        self.pooled.clear();
        for (_, input) in batch {
            let Input::Tokens(tokens) = input else { return Err(Error::Device("an input that is no text".into())) };
            let rows = self.tokens.len()..self.tokens.len() + tokens.len();
            self.tokens.extend_from_slice(tokens);
            self.positions.extend(0..tokens.len() as u32);
            self.pooled.push(match pooling {
                Pooling::Mean => rows.clone(),
                Pooling::Cls => rows.start..rows.start + 1,
            });
            self.spans.push(Span { queries: rows.clone(), keys: rows });
        }
        Ok(())
    }
}

impl<B: Dense> Bert<B> {
    /// Packs the file's weights, each checked by name and shape, and makes room for batches of `budget`, or of the
    /// longest text if that is more.
    ///
    /// # Errors
    /// When the file lacks a tensor, or the device cannot hold them.
    pub fn load(tensors: &Tensors, budget: Budget, mut backend: B) -> Result<Bert<B>, Error> {
        let config = BertConfig::read(tensors)?;
        let budget = Budget { units: budget.units.max(config.context), ..budget };
        let mut loader = Loader { tensors, backend: &mut backend, rows: affine::Rows::Many };
        let weights = Weights::load(&mut loader, &config)?;
        let rows = |width| backend.inputs(budget.units, width);
        let scratch = Scratch {
            x: rows(config.width)?,
            y: rows(config.width)?,
            qkv: rows(3 * config.width)?,
            attended: rows(config.width)?,
            inner: rows(config.inner)?,
            pooled: backend.buffer(budget.inputs, config.width)?,
        };
        let (rows, pooled) = (Rows::default(), Vec::new());
        Ok(Bert { config, budget, backend, weights, scratch, rows, pooled, progress: Arc::default() })
    }

    /// Its numbers.
    #[must_use]
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    /// Computes the pooled rows of the batch in `rows`.
    fn compute(&mut self) {
        let Bert { config, backend, weights, scratch: s, rows, progress, .. } = self;
        let heads = config.heads();
        backend.gather(&weights.words, &rows.tokens, &mut s.y);
        backend.add_rows(&weights.positions, &rows.positions, &mut s.y);
        weights.norm.apply(backend, &s.y, config.epsilon, &mut s.x);
        for layer in &weights.layers {
            layer.qkv.replace(backend, &s.x, Activation::None, &mut s.qkv);
            let part = |place: usize| View { rows: &s.qkv, column: place * config.width };
            let inputs = Attended { queries: part(0), keys: part(1), values: part(2) };
            backend.attend(inputs, &rows.spans, heads, Mask::Full, &mut s.attended);
            layer.attention_out.add(backend, &s.attended, &mut s.x);
            layer.attention_norm.apply(backend, &s.x, config.epsilon, &mut s.y);
            progress.fetch_add(1, Ordering::Relaxed);

            layer.up.replace(backend, &s.y, Activation::Gelu, &mut s.inner);
            layer.down.add(backend, &s.inner, &mut s.y);
            layer.norm.apply(backend, &s.y, config.epsilon, &mut s.x);
            progress.fetch_add(1, Ordering::Relaxed);
        }
        backend.mean(&s.x, &rows.pooled, &mut s.pooled);
        backend.download(&s.pooled, &mut self.pooled);
    }
}

impl<B: Dense> Encoder for Bert<B> {
    fn family(&self) -> &'static str {
        "bert"
    }

    fn budget(&self) -> Budget {
        self.budget
    }

    fn cost(&self, input: &Input) -> Result<Cost, String> {
        let Input::Tokens(tokens) = input else { return Err("the model reads texts only".into()) };
        let limit = self.config.context;
        if tokens.is_empty() || tokens.len() > limit {
            return Err(format!("a text of {} tokens, where the model reads 1 to {limit}", tokens.len()));
        }
        if tokens.iter().any(|token| *token as usize >= self.config.vocabulary) {
            return Err("a token that is not in the model's vocabulary".into());
        }
        Ok(Cost { units: tokens.len(), kind: 0 })
    }

    fn count_progress(&mut self, progress: Arc<AtomicU64>) {
        self.progress = progress;
    }

    fn encode(&mut self, batch: &[(InputKey, &Input)], turns: &mut Vec<Turn>) -> Result<(), Error> {
        self.rows.fill(batch, self.config.pooling)?;
        if self.rows.tokens.len() > self.budget.units || batch.len() > self.budget.inputs {
            return Err(Error::Device(format!("a batch beyond {:?}", self.budget)));
        }
        self.compute();
        // What the device could not do is known only now.
        self.backend.step_end()?;
        turns.extend(self.pooled.chunks_exact(self.config.width).map(direction));
        Ok(())
    }
}

impl<B: Dense> Weights<B> {
    fn load(loader: &mut Loader<'_, B>, config: &BertConfig) -> Result<Weights<B>, Error> {
        let (tensors, width) = (loader.tensors, config.width);
        let words = tensors.matrix("embeddings.word_embeddings.weight", config.vocabulary, width)?;
        let mut positions = tensors.numbers("embeddings.position_embeddings.weight", &[config.positions, width])?;
        let types = tensors.numbers("embeddings.token_type_embeddings.weight", &[config.types, width])?;
        for row in positions.chunks_exact_mut(width) {
            row.iter_mut().zip(&types).for_each(|(position, first)| *position += first);
        }
        let layers = (0..config.layers).map(|layer| Layer::load(loader, config, layer)).collect::<Result<_, _>>()?;
        Ok(Weights {
            words: loader.backend.pack_stored(words)?,
            positions: loader.backend.upload(&positions, width)?,
            norm: loader.norm("embeddings.LayerNorm", width)?,
            layers,
        })
    }
}

impl<B: Dense> Layer<B> {
    fn load(loader: &mut Loader<'_, B>, config: &BertConfig, layer: usize) -> Result<Layer<B>, Error> {
        let (width, inner) = (config.width, config.inner);
        let name = |part: &str| format!("encoder.layer.{layer}.{part}");
        let qkv = ["query", "key", "value"].map(|part| name(&format!("attention.self.{part}")));
        Ok(Layer {
            qkv: loader.affine(&qkv, width, width)?,
            attention_out: loader.affine(&[name("attention.output.dense")], width, width)?,
            attention_norm: loader.norm(&name("attention.output.LayerNorm"), width)?,
            up: loader.affine(&[name("intermediate.dense")], width, inner)?,
            down: loader.affine(&[name("output.dense")], inner, width)?,
            norm: loader.norm(&name("output.LayerNorm"), width)?,
        })
    }
}

#[cfg(test)]
mod tests;
