//! The shape of a network, read from a model file's metadata and checked before anything is allocated for it.

use crate::Error;
use crate::backend::Gate;
use crate::gguf::Gguf;
use crate::simd::attention::HEAD_WIDTH_MAX;

/// Bounds of what a file may claim: above all models in sight, below what would overflow or exhaust memory.
const LAYERS_MAX: u32 = 1 << 10;
const WIDTH_MAX: u32 = 1 << 17;
const CONTEXT_MAX: u32 = 1 << 24;
const VOCABULARY_MAX: u64 = 1 << 22;

/// Its family and its layers, by which it is told.
const GEMMA3_27B: (&str, u32) = ("gemma3", 62);

/// Which numbers of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// Neighbours.
    Adjacent,
    /// Number `i` of the rotated ones and number `i + half` of them. Weights are put in the other order at load.
    Halves,
}

/// Whether a network has a part that some networks lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// It has not.
    Absent,
    /// It has.
    Present,
}

/// Layers that look at the last tokens only, between others that look at all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Local {
    /// Tokens that such a layer looks at, its own included.
    pub window: usize,
    /// Base of the rotation's frequencies in such layers.
    pub rope_base: f32,
    /// Every layer is one of these but the last of each so many.
    pub period: usize,
}

/// What defines a decoder: its numbers, and the parts that it has. No code asks for the family's name.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Family, as the file calls it.
    pub family: String,
    /// Blocks of attention and feed-forward.
    pub layers: usize,
    /// Numbers of the residual stream.
    pub width: usize,
    /// Numbers inside the feed-forward.
    pub inner: usize,
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; divides `heads`.
    pub kv_heads: usize,
    /// Numbers in a head.
    pub head_width: usize,
    /// Numbers of a head that are rotated by position.
    pub rope_width: usize,
    /// Base of the rotation's frequencies, in layers that are not local.
    pub rope_base: f32,
    /// Which numbers are rotated together.
    pub pairs: Pairs,
    /// Layers that do not look at all tokens.
    pub local: Option<Local>,
    /// What embeddings are multiplied by.
    pub embedding_scale: f32,
    /// Biases of queries, keys and values.
    pub qkv_bias: Part,
    /// Norms of each query and each key.
    pub head_norm: Part,
    /// Norms of what attention and feed-forward add to the stream.
    pub branch_norm: Part,
    /// What gates pass through.
    pub gate: Gate,
    /// Added to the mean square in norms.
    pub epsilon: f32,
    /// Tokens the model was trained to look at.
    pub context: usize,
    /// Tokens there are.
    pub vocabulary: usize,
}

/// What a file's family says of its networks beside the file's own numbers.
struct Family {
    name: &'static str,
    pairs: Pairs,
    qkv_bias: Part,
    head_norm: Part,
    branch_norm: Part,
    gate: Gate,
    embedding: Embedding,
    locals: Locals,
}

/// How a family scales its embeddings.
enum Embedding {
    Plain,
    /// By the root of the width.
    Rooted,
}

/// How a family lays out its local layers, where the file gives a window.
enum Locals {
    Never,
    /// All but the last of each so many, rotated by another base.
    AllBut {
        period: usize,
        rope_base: f32,
    },
}

const LLAMA: Family = Family {
    name: "llama",
    pairs: Pairs::Adjacent,
    qkv_bias: Part::Absent,
    head_norm: Part::Absent,
    branch_norm: Part::Absent,
    gate: Gate::Silu,
    embedding: Embedding::Plain,
    locals: Locals::Never,
};
const FAMILIES: [Family; 4] = [
    LLAMA,
    Family { name: "qwen2", pairs: Pairs::Halves, qkv_bias: Part::Present, ..LLAMA },
    Family { name: "qwen3", pairs: Pairs::Halves, head_norm: Part::Present, ..LLAMA },
    Family {
        name: "gemma3",
        pairs: Pairs::Halves,
        head_norm: Part::Present,
        branch_norm: Part::Present,
        gate: Gate::Gelu,
        embedding: Embedding::Rooted,
        locals: Locals::AllBut { period: 6, rope_base: 10_000.0 },
        ..LLAMA
    },
];

impl ModelConfig {
    /// Reads and checks the metadata.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another architecture or a variant that this engine does not compute,
    /// [`Error::Malformed`] for missing or impossible numbers.
    pub fn from_gguf(gguf: &Gguf) -> Result<ModelConfig, Error> {
        let name = gguf.str("general.architecture")?;
        let family = FAMILIES
            .iter()
            .find(|family| family.name == name)
            .ok_or_else(|| Error::Unsupported(format!("architecture `{name:.64}`")))?;
        let keys = Keys { gguf, family: family.name };
        keys.refuse_variants()?;
        let width = keys.count("embedding_length", WIDTH_MAX)?;
        let heads = keys.count("attention.head_count", WIDTH_MAX)?;
        let kv_heads = keys.optional("attention.head_count_kv", WIDTH_MAX)?.unwrap_or(heads);
        let head_width = keys.optional("attention.key_length", WIDTH_MAX)?.unwrap_or(width / heads);
        let config = ModelConfig {
            layers: keys.count("block_count", LAYERS_MAX)?,
            inner: keys.count("feed_forward_length", WIDTH_MAX)?,
            rope_width: keys.optional("rope.dimension_count", WIDTH_MAX)?.unwrap_or(head_width),
            rope_base: keys.number("rope.freq_base", Some(10_000.0))?,
            pairs: family.pairs,
            local: keys.local(&family.locals)?,
            embedding_scale: match family.embedding {
                Embedding::Plain => 1.0,
                Embedding::Rooted => (width as f32).sqrt(),
            },
            // Some files of families without biases have them all the same.
            qkv_bias: if gguf.has("blk.0.attn_q.bias") { Part::Present } else { family.qkv_bias },
            head_norm: family.head_norm,
            branch_norm: family.branch_norm,
            gate: family.gate,
            epsilon: keys.number("attention.layer_norm_rms_epsilon", None)?,
            context: keys.count("context_length", CONTEXT_MAX)?,
            vocabulary: vocabulary(gguf)?,
            family: family.name.to_owned(),
            width,
            heads,
            kv_heads,
            head_width,
        };
        config.check()?;
        Ok(config)
    }

    /// What makes a layer local, if it is.
    #[must_use]
    pub fn local(&self, layer: usize) -> Option<&Local> {
        self.local.as_ref().filter(|local| layer % local.period + 1 < local.period)
    }

    /// Tables of rotations: one for all layers, or one more for the local ones.
    #[must_use]
    pub fn rope_tables(&self) -> usize {
        1 + usize::from(self.local.is_some())
    }

    fn check(&self) -> Result<(), Error> {
        let even = self.rope_width.is_multiple_of(2) && self.rope_width <= self.head_width;
        if self.head_width == 0 || !self.heads.is_multiple_of(self.kv_heads) || !even {
            let &ModelConfig { heads, kv_heads, head_width, rope_width, .. } = self;
            let shape = format!("{heads} heads over {kv_heads}, {head_width} wide, {rope_width} rotated");
            return Err(Error::Malformed(format!("impossible attention: {shape}")));
        }
        // Here, since the table of rotations is as wide, whatever the tensors are.
        if self.head_width > HEAD_WIDTH_MAX {
            return Err(Error::Unsupported(format!("attention heads of {} numbers", self.head_width)));
        }
        Ok(())
    }
}

/// The metadata of one family.
struct Keys<'a> {
    gguf: &'a Gguf,
    family: &'static str,
}

impl Keys<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.family)
    }

    fn count(&self, name: &str, max: u32) -> Result<usize, Error> {
        count(self.gguf, &self.key(name), max)
    }

    fn optional(&self, name: &str, max: u32) -> Result<Option<usize>, Error> {
        let key = self.key(name);
        self.gguf.value(&key).map(|_| count(self.gguf, &key, max)).transpose()
    }

    fn number(&self, name: &str, default: Option<f32>) -> Result<f32, Error> {
        number(self.gguf, &self.key(name), default)
    }

    /// Variants of the families that change the arithmetic.
    fn refuse_variants(&self) -> Result<(), Error> {
        let (experts, scaling) = (self.key("expert_count"), self.key("rope.scaling.type"));
        if self.gguf.value(&experts).is_some() && self.gguf.u32(&experts)? > 0 {
            return Err(Error::Unsupported("mixtures of experts".into()));
        }
        if self.gguf.value(&scaling).is_some() && self.gguf.str(&scaling)? != "none" {
            return Err(Error::Unsupported(format!("rope scaling `{:.64}`", self.gguf.str(&scaling)?)));
        }
        for name in ["attn_logit_softcapping", "final_logit_softcapping"] {
            let key = self.key(name);
            if self.gguf.value(&key).is_some() && self.gguf.f32(&key)? != 0.0 {
                return Err(Error::Unsupported(format!("`{key}`")));
            }
        }
        let (keys, values) = (self.key("attention.key_length"), self.key("attention.value_length"));
        if let (Ok(keys), Ok(values)) = (self.gguf.u32(&keys), self.gguf.u32(&values))
            && keys != values
        {
            return Err(Error::Unsupported(format!("keys {keys} wide and values {values} wide")));
        }
        // The one network of its family that scales its scores by something else than the root of a head's width.
        if self.family == GEMMA3_27B.0 && self.gguf.u32(&self.key("block_count"))? == GEMMA3_27B.1 {
            return Err(Error::Unsupported("the attention of Gemma 3 27B".into()));
        }
        Ok(())
    }

    fn local(&self, locals: &Locals) -> Result<Option<Local>, Error> {
        let Locals::AllBut { period, rope_base } = *locals else { return Ok(None) };
        let Some(window) = self.optional("attention.sliding_window", CONTEXT_MAX)? else { return Ok(None) };
        let period = self.optional("attention.sliding_window_pattern", LAYERS_MAX)?.unwrap_or(period);
        let rope_base = self.number("rope.freq_base_swa", Some(rope_base))?;
        Ok(Some(Local { window, rope_base, period }))
    }
}

fn count(gguf: &Gguf, key: &str, max: u32) -> Result<usize, Error> {
    match gguf.u32(key)? {
        n if n == 0 || n > max => Err(Error::Malformed(format!("key `{key}` is {n}, not 1 to {max}"))),
        n => Ok(n as usize),
    }
}

fn number(gguf: &Gguf, key: &str, default: Option<f32>) -> Result<f32, Error> {
    let number = match (gguf.value(key), default) {
        (None, Some(default)) => default,
        _ => gguf.f32(key)?,
    };
    if !number.is_finite() || number <= 0.0 {
        return Err(Error::Malformed(format!("key `{key}` is {number}, not a positive number")));
    }
    Ok(number)
}

/// The embedding table is the truth; metadata may be absent.
fn vocabulary(gguf: &Gguf) -> Result<usize, Error> {
    match gguf.tensor("token_embd.weight")?.shape {
        [_, tokens] if *tokens <= VOCABULARY_MAX => Ok(*tokens as usize),
        shape => Err(Error::Malformed(format!("tensor `token_embd.weight` has shape {shape:?}"))),
    }
}
