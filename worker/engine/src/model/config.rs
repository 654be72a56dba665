//! The shape of a network, read from a model file's metadata and checked before anything is allocated for it.

use crate::Error;
use crate::gguf::Gguf;
use crate::simd::attention::HEAD_WIDTH_MAX;

/// Bounds of what a file may claim: above all models in sight, below what would overflow or exhaust memory.
const LAYERS_MAX: u32 = 1 << 10;
const WIDTH_MAX: u32 = 1 << 17;
const CONTEXT_MAX: u32 = 1 << 24;
const VOCABULARY_MAX: u64 = 1 << 22;

/// The numbers that define a Llama-like decoder.
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
    /// Base of the rotation's frequencies.
    pub rope_base: f32,
    /// Added to the mean square in norms.
    pub epsilon: f32,
    /// Tokens the model was trained to look at.
    pub context: usize,
    /// Tokens there are.
    pub vocabulary: usize,
}

impl ModelConfig {
    /// Reads and checks the metadata.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another architecture or a variant that this engine does not compute,
    /// [`Error::Malformed`] for missing or impossible numbers.
    pub fn from_gguf(gguf: &Gguf) -> Result<ModelConfig, Error> {
        let family = gguf.str("general.architecture")?.to_owned();
        if family != "llama" {
            return Err(Error::Unsupported(format!("architecture `{family}`")));
        }
        refuse_variants(gguf)?;
        let width = count(gguf, "llama.embedding_length", WIDTH_MAX)?;
        let heads = count(gguf, "llama.attention.head_count", WIDTH_MAX)?;
        let kv_heads = optional(gguf, "llama.attention.head_count_kv", WIDTH_MAX)?.unwrap_or(heads);
        let head_width = optional(gguf, "llama.attention.key_length", WIDTH_MAX)?.unwrap_or(width / heads);
        let config = ModelConfig {
            layers: count(gguf, "llama.block_count", LAYERS_MAX)?,
            inner: count(gguf, "llama.feed_forward_length", WIDTH_MAX)?,
            rope_width: optional(gguf, "llama.rope.dimension_count", WIDTH_MAX)?.unwrap_or(head_width),
            rope_base: number(gguf, "llama.rope.freq_base", Some(10_000.0))?,
            epsilon: number(gguf, "llama.attention.layer_norm_rms_epsilon", None)?,
            context: count(gguf, "llama.context_length", CONTEXT_MAX)?,
            vocabulary: vocabulary(gguf)?,
            family,
            width,
            heads,
            kv_heads,
            head_width,
        };
        config.check()?;
        Ok(config)
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

/// Variants of the family that change the arithmetic.
fn refuse_variants(gguf: &Gguf) -> Result<(), Error> {
    if gguf.value("llama.expert_count").is_some() && gguf.u32("llama.expert_count")? > 0 {
        return Err(Error::Unsupported("mixtures of experts".into()));
    }
    if gguf.value("llama.rope.scaling.type").is_some() && gguf.str("llama.rope.scaling.type")? != "none" {
        return Err(Error::Unsupported(format!("rope scaling `{}`", gguf.str("llama.rope.scaling.type")?)));
    }
    if let (Ok(keys), Ok(values)) = (gguf.u32("llama.attention.key_length"), gguf.u32("llama.attention.value_length"))
        && keys != values
    {
        return Err(Error::Unsupported(format!("keys {keys} wide and values {values} wide")));
    }
    Ok(())
}

fn count(gguf: &Gguf, key: &str, max: u32) -> Result<usize, Error> {
    match gguf.u32(key)? {
        n if n == 0 || n > max => Err(Error::Malformed(format!("key `{key}` is {n}, not 1 to {max}"))),
        n => Ok(n as usize),
    }
}

fn optional(gguf: &Gguf, key: &str, max: u32) -> Result<Option<usize>, Error> {
    gguf.value(key).map(|_| count(gguf, key, max)).transpose()
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
