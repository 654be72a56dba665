//! For tests and benches: where the real model is, a tiny one made from a seed, and steps to run on either.

use std::path::{Path, PathBuf};

use half::f16;

use crate::gguf::GgufBuilder;
use crate::plan::{BLOCK_TOKENS, BlockId, Output, Plan, SequenceId, Span, TokenId};
use crate::quant::Format;
use crate::sampler::Sampling;

const SMOLLM2: &str = "smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf";

/// The real model that tests use.
///
/// # Panics
/// When it has not been fetched.
#[must_use]
pub fn smollm2() -> PathBuf {
    let models = std::env::var_os("FLOTILLA_MODELS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.flotilla/models"), PathBuf::from);
    let path = models.join(SMOLLM2);
    assert!(
        path.is_file(),
        "run ./ops/quickstart or ./ops/test first: it fetches the model ({} is absent)",
        path.display()
    );
    path
}

/// Adds a sequence's next tokens to a step, `computed` of them being in the cache, and a greedy output at the last.
/// `block` names the blocks of the sequence in order.
pub fn span(
    plan: &mut Plan,
    sequence: usize,
    computed: usize,
    tokens: impl ExactSizeIterator<Item = TokenId>,
    block: impl Fn(usize) -> usize,
) {
    let (rows, row, table) = (tokens.len(), plan.rows(), plan.blocks.len());
    let sequence = SequenceId(sequence as u64);
    plan.tokens.extend(tokens);
    plan.positions.extend((computed..computed + rows).map(|position| position as u32));
    plan.blocks.extend((0..(computed + rows).div_ceil(BLOCK_TOKENS)).map(|index| BlockId(block(index) as u32)));
    plan.spans.push(Span { sequence, rows: row..row + rows, computed, blocks: table..plan.blocks.len() });
    plan.outputs.push(Output {
        sequence,
        row: plan.rows() - 1,
        position: (computed + rows) as u32,
        sampling: Sampling::greedy(),
        history: 0..0,
        mask: None,
    });
}

const LAYERS: u32 = 2;
const WIDTH: u32 = 64;
const HEADS: u32 = 4;
const HEADS_KV: u32 = 2;
const FEED_FORWARD: u32 = 128;
const CONTEXT: u32 = 512;
/// Deviation of the logits: so far from 0 that the rows left zero are next to never sampled either.
const OUTPUT_GAIN: f32 = 6.0;
const CONTROLS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
const MERGES: [(&str, &str); 5] = [("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "a"), ("e", "r")];
const TEMPLATE: &str = concat!(
    "{% for message in messages %}",
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}",
    "{% endfor %}",
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
);

/// Writes a complete model of the Llama family to `path`: 2 layers of width 64, 4 heads over 2, a vocabulary of 264
/// (3 control tokens, 256 bytes, 5 merges), context 512, F32, Q8_0 and Q4_1 tensors with numbers drawn from `seed`.
///
/// It speaks printable ASCII, fluently and without meaning: the rows of all other tokens in the output matrix are
/// zero, so greedy sampling never chooses an end of its own.
///
/// # Panics
/// When the file cannot be written.
pub fn tiny_llama(path: &Path, seed: u64) {
    let bytes = tiny_llama_bytes(seed);
    std::fs::write(path, bytes).expect("a test's directory can be written");
}

/// The bytes of [`tiny_llama`].
#[must_use]
pub fn tiny_llama_bytes(seed: u64) -> Vec<u8> {
    let mut file = GgufBuilder::new();
    shape(&mut file);
    let tokens = vocabulary(&mut file);
    let mut random = Random(seed);
    let rows = tokens.len() as u64;
    let (width, inner) = (u64::from(WIDTH), u64::from(FEED_FORWARD));
    let key_width = width * u64::from(HEADS_KV) / u64::from(HEADS);
    let embedding = random.q8_0(width, rows, 1.0);
    file.tensor("token_embd.weight", &[width, rows], Format::Q8_0, &embedding);
    for layer in 0..LAYERS {
        for name in ["attn_norm", "ffn_norm"] {
            let data = random.norm(width);
            file.tensor(&format!("blk.{layer}.{name}.weight"), &[width], Format::F32, &data);
        }
        for (name, cols, rows) in [
            ("attn_q", width, width),
            ("attn_k", width, key_width),
            ("attn_v", width, key_width),
            ("attn_output", width, width),
            ("ffn_gate", width, inner),
            ("ffn_up", width, inner),
            ("ffn_down", inner, width),
        ] {
            let data = random.q4_1(cols, rows);
            let name = format!("blk.{layer}.{name}.weight");
            file.tensor(&name, &[cols, rows], Format::Q4_1, &data);
        }
    }
    let norm = random.norm(width);
    file.tensor("output_norm.weight", &[width], Format::F32, &norm);
    let output = output(&mut random, &tokens);
    file.tensor("output.weight", &[width, rows], Format::Q8_0, &output);
    file.bytes()
}

fn shape(file: &mut GgufBuilder) {
    file.str("general.architecture", "llama")
        .str("general.name", "tiny")
        .u32("llama.block_count", LAYERS)
        .u32("llama.context_length", CONTEXT)
        .u32("llama.embedding_length", WIDTH)
        .u32("llama.feed_forward_length", FEED_FORWARD)
        .u32("llama.attention.head_count", HEADS)
        .u32("llama.attention.head_count_kv", HEADS_KV)
        .u32("llama.rope.dimension_count", WIDTH / HEADS)
        .f32("llama.rope.freq_base", 10_000.0)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
}

/// Adds the vocabulary and returns its texts.
fn vocabulary(file: &mut GgufBuilder) -> Vec<String> {
    let mut tokens: Vec<String> = CONTROLS.iter().map(ToString::to_string).collect();
    tokens.extend((0..=255).map(|byte| crate::text::letter(byte).to_string()));
    tokens.extend(MERGES.iter().map(|(left, right)| format!("{left}{right}")));
    let types: Vec<i32> = (0..tokens.len()).map(|id| if id < CONTROLS.len() { 3 } else { 1 }).collect();
    let merges: Vec<String> = MERGES.iter().map(|(left, right)| format!("{left} {right}")).collect();
    let rows = u32::try_from(tokens.len()).expect("264 tokens");
    file.u32("llama.vocab_size", rows)
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", "smollm")
        .strings("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &types)
        .strings("tokenizer.ggml.merges", &merges)
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2)
        .bool("tokenizer.ggml.add_bos_token", false)
        .str("tokenizer.chat_template", TEMPLATE);
    tokens
}

/// (rows, cols) Q8_0 blocks, zero in the rows of tokens that are not printable ASCII.
fn output(random: &mut Random, tokens: &[String]) -> Vec<u8> {
    let mut data = random.q8_0(u64::from(WIDTH), tokens.len() as u64, OUTPUT_GAIN);
    let row_bytes = data.len() / tokens.len();
    for (id, (text, row)) in tokens.iter().zip(data.chunks_mut(row_bytes)).enumerate() {
        let printable = text.chars().all(|c| c == 'Ġ' || c.is_ascii_graphic());
        if id < CONTROLS.len() || !printable {
            row.fill(0);
        }
    }
    data
}

/// SplitMix64: short, seedable and good enough for weights.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0..1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Weights of a norm, around 1.
    fn norm(&mut self, width: u64) -> Vec<u8> {
        (0..width).flat_map(|_| (0.8 + 0.4 * self.unit()).to_le_bytes()).collect()
    }

    /// (rows, cols) blocks of a scale and 32 signed bytes, which scale the deviation of their input by `gain`.
    fn q8_0(&mut self, cols: u64, rows: u64, gain: f32) -> Vec<u8> {
        let mut data = Vec::new();
        for _ in 0..cols * rows / 32 {
            let scale = gain * spread(cols) * (0.75 + 0.5 * self.unit()) / 127.0;
            data.extend_from_slice(&f16::from_f32(scale).to_le_bytes());
            data.extend((0..32).map(|_| (self.next() % 255).wrapping_sub(127) as u8));
        }
        data
    }

    /// (rows, cols) blocks of a scale, a minimum and 32 four-bit numbers, centred on 0.
    fn q4_1(&mut self, cols: u64, rows: u64) -> Vec<u8> {
        let mut data = Vec::new();
        for _ in 0..cols * rows / 32 {
            let scale = f16::from_f32(spread(cols) * (0.75 + 0.5 * self.unit()) / 7.5);
            data.extend_from_slice(&scale.to_le_bytes());
            data.extend_from_slice(&f16::from_f32(scale.to_f32() * -7.5).to_le_bytes());
            data.extend((0..16).map(|_| (self.next() >> 32) as u8));
        }
        data
    }
}

/// Half the range of uniform weights that keep the variance of their input.
fn spread(cols: u64) -> f32 {
    (3.0 / cols as f32).sqrt()
}
