//! For tests and benches: where the real model is, a tiny one made from a seed, and steps to run on either.

mod clip;
mod families;
mod noise;
mod pictures;
mod whisper;

use std::path::{Path, PathBuf};

use half::f16;
use safetensors::tensor::{Dtype, TensorView};

use crate::gguf::GgufBuilder;
use crate::plan::{BLOCK_TOKENS, BlockId, Output, Plan, SequenceId, Span, TokenId};
use crate::quant::Format;
use crate::sampler::Sampling;
use crate::tensors::{CONFIG, FAMILY, TOKENIZER, little_endian};

pub use clip::{ClipShape, TowerShape, clip_bytes};
pub use families::{FAMILIES, VOCABULARY, small_network};
pub use noise::Noise;
pub use pictures::efficientnet_bytes;
pub use whisper::{WhisperShape, sound, whisper_bytes};

const SMOLLM2: &str = "smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf";
const GEMMA3: &str = "gemma-3-270m/gemma-3-270m-q4_k_m.gguf";
const MINILM: &str = "all-minilm-l6-v2/all-minilm-l6-v2.f32.safetensors";
const EFFICIENTNET: &str = "efficientnet-lite0/efficientnet-lite0.f32.safetensors";
const WHISPER_TINY_EN: &str = "whisper-tiny.en/whisper-tiny.en.f16.safetensors";

/// The real chat model that tests use.
///
/// # Panics
/// When it has not been fetched.
#[must_use]
pub fn smollm2() -> PathBuf {
    shelf(SMOLLM2)
}

/// The real model of another family; it is no chat model.
///
/// # Panics
/// When it has not been fetched.
#[must_use]
pub fn gemma3() -> PathBuf {
    shelf(GEMMA3)
}

/// The real sentence encoder that tests use.
///
/// # Panics
/// When it has not been fetched.
#[must_use]
pub fn minilm() -> PathBuf {
    shelf(MINILM)
}

/// The real classifier of pictures that tests use.
///
/// # Panics
/// When it has not been fetched.
#[must_use]
pub fn efficientnet() -> PathBuf {
    shelf(EFFICIENTNET)
}

/// The real model that hears in tests.
///
/// # Panics
/// When it has not been fetched.
#[must_use]
pub fn whisper_tiny_en() -> PathBuf {
    shelf(WHISPER_TINY_EN)
}

/// A file of the shelf of models.
///
/// # Panics
/// When it has not been fetched.
#[must_use]
pub fn shelf(file: &str) -> PathBuf {
    let models = std::env::var_os("FLOTILLA_MODELS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.flotilla/models"), PathBuf::from);
    let path = models.join(file);
    assert!(path.is_file(), "./ops/quickstart or ./ops/test fetch the models first: {} is absent", path.display());
    path
}

/// The bytes of a safetensors file of single-precision tensors: (name, shape slowest first, numbers).
///
/// # Panics
/// When a shape does not fit its numbers.
#[must_use]
pub fn tensors_file(metadata: &[(&str, &str)], tensors: &[(&str, &[usize], Vec<f32>)]) -> Vec<u8> {
    let metadata = metadata.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect();
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|(.., numbers)| little_endian(numbers)).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).expect("a shape of its numbers"))
    });
    safetensors::serialize(views, Some(metadata)).expect("a header of sane size")
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
    plan.spans.push(Span { sequence, rows: row..row + rows, computed, prompt: rows, blocks: table..plan.blocks.len() });
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

const BERT_WIDTH: usize = 64;
const BERT_INNER: usize = 128;
const BERT_LAYERS: usize = 2;
const BERT_CONTEXT: usize = 48;

/// The `tokenizer.json` of [`tiny_bert`]: letters, digits and signs of ASCII, each alone and within a word.
#[must_use]
pub fn wordpiece() -> String {
    let marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(str::to_owned);
    let signs = (b'!'..=b'~').filter(|byte| !byte.is_ascii_uppercase()).map(char::from);
    let inner = ('a'..='z').chain('0'..='9').map(|letter| format!("##{letter}"));
    let tokens = marks.iter().cloned().chain(signs.map(String::from)).chain(inner);
    let vocabulary: serde_json::Map<_, _> = tokens.zip((0..).map(serde_json::Value::from)).collect();
    let mark = |id: usize| {
        serde_json::json!({"id": id, "special": true, "content": marks[id], "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false})
    };
    let special = |id: usize| serde_json::json!({"id": marks[id], "ids": [id], "tokens": [marks[id]]});
    let whole = serde_json::json!([{"SpecialToken": {"id": "[CLS]", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "[SEP]", "type_id": 0}}]);
    serde_json::json!({
        "version": "1.0",
        "truncation": {"max_length": 8, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": (0..marks.len()).map(mark).collect::<Vec<_>>(),
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "single": whole, "pair": whole,
            "special_tokens": {"[CLS]": special(2), "[SEP]": special(3)}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary},
    })
    .to_string()
}

/// Writes a complete sentence encoder of the BERT family to `path`: 2 layers of width 64, 4 heads, context 48, its
/// numbers drawn from `seed`. Its directions mean nothing, but texts that share letters are nearer.
///
/// # Panics
/// When the file cannot be written.
pub fn tiny_bert(path: &Path, seed: u64) {
    std::fs::write(path, tiny_bert_bytes(seed, &[])).expect("a test's directory can be written");
}

/// The bytes of [`tiny_bert`], with other numbers in its `config`.
#[must_use]
pub fn tiny_bert_bytes(seed: u64, overrides: &[(&str, serde_json::Value)]) -> Vec<u8> {
    let vocabulary = crate::text::TextEncoder::parse(&wordpiece()).expect("it is a tokenizer").vocabulary();
    let shape = BertShape {
        width: BERT_WIDTH,
        inner: BERT_INNER,
        layers: BERT_LAYERS,
        heads: 4,
        vocabulary,
        context: BERT_CONTEXT,
    };
    bert_bytes(seed, shape, overrides)
}

/// The numbers of a sentence encoder.
#[derive(Clone, Copy, Debug)]
pub struct BertShape {
    /// Of a row.
    pub width: usize,
    /// Inside the feed-forward.
    pub inner: usize,
    /// Blocks of attention and feed-forward.
    pub layers: usize,
    /// Of attention.
    pub heads: usize,
    /// Tokens there are.
    pub vocabulary: usize,
    /// Tokens that it looks at.
    pub context: usize,
}

/// A sentence encoder of this shape, its numbers drawn from `seed`, with other numbers in its `config`.
#[must_use]
pub fn bert_bytes(seed: u64, shape: BertShape, overrides: &[(&str, serde_json::Value)]) -> Vec<u8> {
    let BertShape { width, inner, layers, heads, vocabulary, context } = shape;
    let mut config = serde_json::json!({
        "model_type": "bert", "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "intermediate_size": inner, "max_position_embeddings": context + 16, "type_vocab_size": 2,
        "vocab_size": vocabulary, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "max_seq_length": context,
        "pooling": "mean",
    });
    for (key, value) in overrides {
        config[*key] = value.clone();
    }
    let mut shapes: Vec<(String, Vec<usize>)> = vec![
        ("embeddings.word_embeddings.weight".into(), vec![vocabulary, width]),
        ("embeddings.position_embeddings.weight".into(), vec![context + 16, width]),
        ("embeddings.token_type_embeddings.weight".into(), vec![2, width]),
        ("embeddings.LayerNorm.weight".into(), vec![width]),
        ("embeddings.LayerNorm.bias".into(), vec![width]),
    ];
    for layer in 0..layers {
        for (part, rows, columns) in [
            ("attention.self.query", width, width),
            ("attention.self.key", width, width),
            ("attention.self.value", width, width),
            ("attention.output.dense", width, width),
            ("intermediate.dense", inner, width),
            ("output.dense", width, inner),
        ] {
            shapes.push((format!("encoder.layer.{layer}.{part}.weight"), vec![rows, columns]));
            shapes.push((format!("encoder.layer.{layer}.{part}.bias"), vec![rows]));
        }
        for part in ["attention.output.LayerNorm", "output.LayerNorm"] {
            shapes.push((format!("encoder.layer.{layer}.{part}.weight"), vec![width]));
            shapes.push((format!("encoder.layer.{layer}.{part}.bias"), vec![width]));
        }
    }
    random_file(seed, &[(FAMILY, "bert"), (CONFIG, &config.to_string()), (TOKENIZER, &wordpiece())], &shapes)
}

/// A safetensors file of tensors of these names and shapes, their numbers drawn from `seed`.
fn random_file(seed: u64, metadata: &[(&str, &str)], shapes: &[(String, Vec<usize>)]) -> Vec<u8> {
    let mut random = Random(seed);
    let tensors: Vec<(&str, &[usize], Vec<f32>)> =
        shapes.iter().map(|(name, shape)| (name.as_str(), shape.as_slice(), random.tensor(name, shape))).collect();
    tensors_file(metadata, &tensors)
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

    /// Numbers of a tensor in single precision: a norm's around 1, a bias small, a matrix's such that they keep the
    /// variance of their input.
    fn tensor(&mut self, name: &str, shape: &[usize]) -> Vec<f32> {
        let (centre, spread) = match shape {
            [_] if name.to_ascii_lowercase().contains("norm") && name.ends_with(".weight") => (1.0, 0.2),
            [_] => (0.0, 0.1),
            [_, inputs @ ..] => (0.0, spread(inputs.iter().product::<usize>() as u64)),
            [] => (0.0, 1.0),
        };
        (0..shape.iter().product()).map(|_| centre + spread * (2.0 * self.unit() - 1.0)).collect()
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
