//! Decoders, written once over any backend: what a family has and lacks is data of [`ModelConfig`].

use super::weights::{EMBEDDING, Loader, OUTPUT, Order, Source};
use super::{Model, ModelConfig, Part, Shape, Ticket};
use crate::Error;
use crate::backend::{Backend, Epilogue, HeadNorms, KvShape, Normed, Reach, Turn};
use crate::gguf::Gguf;
use crate::plan::{BLOCK_TOKENS, Plan, Sampled};
use crate::quant::Format;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Room that a model is given at load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Rows a step may have.
    pub step_tokens: usize,
    /// Outputs a step may have.
    pub outputs: usize,
    /// Blocks of the key-value cache.
    pub blocks: usize,
}

/// A decoder on a backend.
pub struct Decoder<B: Backend> {
    config: ModelConfig,
    room: Room,
    backend: B,
    weights: Weights<B>,
    scratch: Scratch<B>,
    kv: B::Kv,
    progress: Arc<AtomicU64>,
}

struct Weights<B: Backend> {
    /// (vocabulary, width)
    embedding: B::Weight,
    layers: Vec<Layer<B>>,
    norm: B::Buf,
    /// (vocabulary, width); `None` where the embedding serves.
    unembedding: Option<B::Weight>,
    /// (positions, pairs * (cosine, sine)): of most layers, and of the local ones
    ropes: Vec<B::Buf>,
}

struct Layer<B: Backend> {
    reach: Reach,
    /// Which table of rotations.
    rope: usize,
    attention_norm: B::Buf,
    /// (queries | keys | values, width)
    qkv: B::Weight,
    qkv_bias: Option<B::Buf>,
    /// Of queries and of keys, a head wide.
    head_norms: Option<(B::Buf, B::Buf)>,
    attention: Branch<B>,
    feed_norm: B::Buf,
    /// (gates | ups, width)
    gate_up: B::Weight,
    feed: Branch<B>,
}

/// How attention or feed-forward come back to the residual stream.
struct Branch<B: Backend> {
    /// (width, inputs)
    out: B::Weight,
    norm: Option<B::Buf>,
}

/// What a step writes to; nothing else is allocated.
struct Scratch<B: Backend> {
    /// (rows, width) residual stream
    x: B::Buf,
    /// (rows, width) its norm
    normed: B::Buf,
    /// (rows, queries | keys | values)
    qkv: B::Buf,
    /// (rows, heads * head_width)
    attended: B::Buf,
    /// (rows, gates | ups)
    gate_up: B::Buf,
    /// (rows, inner)
    inner: B::Buf,
    /// (outputs, width)
    last: B::Buf,
    /// (outputs, width)
    last_normed: B::Buf,
    /// (outputs, vocabulary)
    logits: B::Buf,
}

impl<B: Backend> Decoder<B> {
    /// Packs the file's weights, each checked by name and shape, and makes room for steps.
    pub fn load(gguf: &Gguf, config: ModelConfig, room: Room, backend: B) -> Result<Decoder<B>, Error> {
        Self::of(Source::File(gguf), config, room, backend)
    }

    /// A network of these numbers whose weights are noise of a format: as fast as any other, and without a file.
    pub fn noise(config: ModelConfig, format: Format, room: Room, backend: B) -> Result<Decoder<B>, Error> {
        Self::of(Source::Noise(format), config, room, backend)
    }

    fn of(source: Source<'_>, config: ModelConfig, room: Room, mut backend: B) -> Result<Decoder<B>, Error> {
        let mut loader = Loader { source, backend: &mut backend };
        let weights = Weights::load(&mut loader, &config, room)?;
        let scratch = Scratch::new(&backend, &config, room)?;
        let (layers, heads, width) = (config.layers, config.kv_heads, config.head_width);
        let kv = backend.kv(KvShape { layers, blocks: room.blocks, heads, width })?;
        Ok(Decoder { config, room, backend, weights, scratch, kv, progress: Arc::default() })
    }

    /// Computes the logits of the plan's outputs: (outputs, vocabulary), in scratch.
    fn compute(&mut self, plan: &Plan) -> Result<(), Error> {
        self.check(plan)?;
        let Decoder { config, backend, weights, scratch: s, kv, progress, .. } = self;
        backend.step_begin(plan)?;
        backend.gather_rows(&weights.embedding, &mut s.x);
        if config.embedding_scale != 1.0 {
            backend.scale(config.embedding_scale, &mut s.x);
        }
        for (index, layer) in weights.layers.iter().enumerate() {
            let normed = Normed { x: &s.x, weight: &layer.attention_norm, epsilon: config.epsilon };
            backend.norm_linear(normed, &layer.qkv, &mut s.normed, &mut s.qkv);
            let turn = layer.turn(&weights.ropes, config.epsilon);
            backend.turn_and_attend(&mut s.qkv, &turn, (kv, index, layer.reach), &mut s.attended);
            layer.attention.join(backend, &s.attended, config.epsilon, (&mut s.normed, &mut s.x));
            progress.fetch_add(1, Ordering::Relaxed);

            let normed = Normed { x: &s.x, weight: &layer.feed_norm, epsilon: config.epsilon };
            let gated = (&layer.gate_up, config.gate);
            backend.norm_glu(normed, gated, (&mut s.normed, &mut s.gate_up), &mut s.inner);
            layer.feed.join(backend, &s.inner, config.epsilon, (&mut s.normed, &mut s.x));
            progress.fetch_add(1, Ordering::Relaxed);
        }
        backend.take_outputs(&s.x, &mut s.last);
        let unembedding = weights.unembedding.as_ref().unwrap_or(&weights.embedding);
        let normed = Normed { x: &s.last, weight: &weights.norm, epsilon: config.epsilon };
        backend.unembed(normed, unembedding, &mut s.last_normed, &mut s.logits);
        progress.fetch_add(1, Ordering::Relaxed);
        backend.step_end()
    }

    /// A plan that names what is not there is its maker's mistake: refused, rather than a panic on the engine's thread.
    fn check(&self, plan: &Plan) -> Result<(), Error> {
        let Shape { context, vocabulary, blocks, .. } = self.shape();
        let long = plan.spans.iter().any(|span| span.computed + span.rows.len() > context);
        let tokens = plan.tokens.iter().all(|token| (*token as usize) < vocabulary);
        if long || !tokens || plan.blocks.iter().any(|block| block.0 as usize >= blocks) {
            return Err(Error::Device("a plan beyond the context, the vocabulary or the cache".into()));
        }
        Ok(())
    }

    /// The logits of the plan's outputs, (outputs, vocabulary), not sampled: for evaluation.
    pub fn logits(&mut self, plan: &Plan, logits: &mut Vec<f32>) -> Result<(), Error> {
        self.compute(plan)?;
        self.backend.download(&self.scratch.logits, logits);
        Ok(())
    }
}

impl<B: Backend> Model for Decoder<B> {
    fn shape(&self) -> Shape {
        Shape {
            context: self.config.context.min(self.room.blocks * BLOCK_TOKENS),
            vocabulary: self.config.vocabulary,
            blocks: self.room.blocks,
            step_tokens: self.room.step_tokens,
            kept: self.backend.kept(),
        }
    }

    fn count_progress(&mut self, progress: Arc<AtomicU64>) {
        self.progress = progress;
    }

    fn forward(&mut self, plan: &Plan) -> Result<Ticket, Error> {
        self.compute(plan)?;
        Ok(self.backend.sample(&mut self.scratch.logits, plan))
    }

    fn collect(&mut self, ticket: Ticket, sampled: &mut Vec<Sampled>) -> Result<(), Error> {
        self.backend.collect(ticket, sampled)
    }
}

impl<B: Backend> Weights<B> {
    fn load(loader: &mut Loader<'_, B>, config: &ModelConfig, room: Room) -> Result<Weights<B>, Error> {
        let (width, vocabulary) = (config.width, config.vocabulary);
        let mut layers = Vec::with_capacity(config.layers);
        for layer in 0..config.layers {
            layers.push(Layer::load(loader, config, layer)?);
        }
        let (embedding, unembedding) = match loader.source.has(OUTPUT) {
            true => {
                let table = loader.table(EMBEDDING, (vocabulary, width))?;
                (table, Some(loader.vocabulary(OUTPUT, (vocabulary, width))?))
            }
            false => (loader.vocabulary(EMBEDDING, (vocabulary, width))?, None),
        };
        let positions = config.context.min(room.blocks * BLOCK_TOKENS);
        let bases = [Some(config.rope_base), config.local.map(|local| local.rope_base)];
        let mut ropes = Vec::new();
        for base in bases.into_iter().flatten() {
            let angles = rope_angles(loader.source, config, (base, positions))?;
            ropes.push(loader.backend.upload(&angles, config.rope_width)?);
        }
        Ok(Weights { embedding, layers, norm: loader.vector("output_norm.weight", width)?, unembedding, ropes })
    }
}

impl<B: Backend> Layer<B> {
    fn load(loader: &mut Loader<'_, B>, config: &ModelConfig, layer: usize) -> Result<Layer<B>, Error> {
        let (width, inner, head) = (config.width, config.inner, config.head_width);
        let (queries, keys) = (config.heads * head, config.kv_heads * head);
        let name = |part: &str| format!("blk.{layer}.{part}");
        let (q, k, v) = (name("attn_q.weight"), name("attn_k.weight"), name("attn_v.weight"));
        let turned = Order::Heads { pairs: config.pairs, width: head, rotated: config.rope_width };
        let qkv_bias = match config.qkv_bias {
            Part::Absent => None,
            Part::Present => {
                let (q, k, v) = (name("attn_q.bias"), name("attn_k.bias"), name("attn_v.bias"));
                let parts = [(q.as_str(), queries, turned), (&k, keys, turned), (&v, keys, Order::Same)];
                Some(loader.vectors(&parts)?)
            }
        };
        let head_norms = match config.head_norm {
            Part::Absent => None,
            Part::Present => Some((
                loader.vectors(&[(&name("attn_q_norm.weight"), head, turned)])?,
                loader.vectors(&[(&name("attn_k_norm.weight"), head, turned)])?,
            )),
        };
        let mut branch = |out: &str, inputs: usize, norm: &str| -> Result<Branch<B>, Error> {
            let norm = match config.branch_norm {
                Part::Absent => None,
                Part::Present => Some(loader.vector(&name(norm), width)?),
            };
            Ok(Branch { out: loader.matrices(inputs, &[(&name(out), width)])?, norm })
        };
        let attention = branch("attn_output.weight", queries, "post_attention_norm.weight")?;
        let feed = branch("ffn_down.weight", inner, "post_ffw_norm.weight")?;
        let local = config.local(layer);
        Ok(Layer {
            reach: local.map_or(Reach::All, |local| Reach::Last(local.window)),
            rope: usize::from(local.is_some()),
            attention_norm: loader.vector(&name("attn_norm.weight"), width)?,
            qkv: loader.ordered(width, &[(&q, queries, turned), (&k, keys, turned), (&v, keys, Order::Same)])?,
            qkv_bias,
            head_norms,
            attention,
            feed_norm: loader.vector(&name("ffn_norm.weight"), width)?,
            gate_up: loader.matrices(width, &[(&name("ffn_gate.weight"), inner), (&name("ffn_up.weight"), inner)])?,
            feed,
        })
    }

    /// What becomes of queries and keys before they meet.
    fn turn<'a>(&'a self, ropes: &'a [B::Buf], epsilon: f32) -> Turn<'a, B::Buf> {
        Turn {
            bias: self.qkv_bias.as_ref(),
            norms: self.head_norms.as_ref().map(|(queries, keys)| HeadNorms { queries, keys, epsilon }),
            rope: &ropes[self.rope],
        }
    }
}

impl<B: Backend> Branch<B> {
    /// Adds what it makes of `inputs` to the stream; `spare` is as wide as that, and is used up.
    fn join(&self, backend: &mut B, inputs: &B::Buf, epsilon: f32, (spare, stream): (&mut B::Buf, &mut B::Buf)) {
        match &self.norm {
            None => backend.linear(inputs, &self.out, Epilogue::Add, stream),
            Some(norm) => {
                backend.linear(inputs, &self.out, Epilogue::Store, spare);
                backend.add_norm(spare, norm, epsilon, stream);
            }
        }
    }
}

impl<B: Backend> Scratch<B> {
    fn new(backend: &B, config: &ModelConfig, room: Room) -> Result<Scratch<B>, Error> {
        let rows = |width| backend.buffer(room.step_tokens, width);
        let inputs = |width| backend.inputs(room.step_tokens, width);
        let outputs = |width| backend.buffer(room.outputs, width);
        let queries = config.heads * config.head_width;
        Ok(Scratch {
            x: rows(config.width)?,
            normed: inputs(config.width)?,
            qkv: inputs(queries + 2 * config.kv_heads * config.head_width)?,
            attended: inputs(queries)?,
            gate_up: inputs(2 * config.inner)?,
            inner: inputs(config.inner)?,
            last: outputs(config.width)?,
            last_normed: backend.inputs(room.outputs, config.width)?,
            logits: outputs(config.vocabulary)?,
        })
    }
}

/// Cosine and sine of every position and pair. A file may divide each pair's frequency by a factor of its own.
fn rope_angles(source: Source<'_>, config: &ModelConfig, (base, positions): (f32, usize)) -> Result<Vec<f32>, Error> {
    let pairs = config.rope_width / 2;
    let factors = match source.has("rope_freqs.weight") {
        true => source.numbers("rope_freqs.weight", pairs)?,
        false => vec![1.0; pairs],
    };
    let frequency = |pair: usize| {
        let exponent = -2.0 * pair as f64 / config.rope_width as f64;
        f64::from(base).powf(exponent) / f64::from(factors[pair])
    };
    let frequencies: Vec<f64> = (0..pairs).map(frequency).collect();
    let mut angles = Vec::with_capacity(positions * config.rope_width);
    for position in 0..positions {
        for frequency in &frequencies {
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            angles.extend([cos as f32, sin as f32]);
        }
    }
    Ok(angles)
}
