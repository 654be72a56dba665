//! Small files made for the test: what a model file may claim, and what becomes of one that lies.

use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Decoder, Model, ModelConfig, Room};
use crate::Error;
use crate::backend::StepLimits;
use crate::backend::cpu::Cpu;
use crate::gguf::{Gguf, GgufBuilder};
use crate::plan::{BlockId, Plan, SequenceId, Span};
use crate::quant::Format;
use crate::simd::Level;

const ROOM: Room = Room { step_tokens: 8, outputs: 2, blocks: 4 };
const LIMITS: StepLimits = StepLimits { rows: 8, outputs: 2, blocks: 8 };
const WIDTH: u64 = 32;
const KEYS: u64 = 16;

/// One layer of 2 heads over 1, 16 wide; 8 tokens.
fn metadata(overrides: &[(&str, u32)]) -> GgufBuilder {
    let numbers = [
        ("llama.block_count", 1),
        ("llama.embedding_length", WIDTH as u32),
        ("llama.feed_forward_length", 64),
        ("llama.attention.head_count", 2),
        ("llama.attention.head_count_kv", 1),
        ("llama.context_length", 64),
    ];
    let mut file = GgufBuilder::new();
    for (key, number) in numbers {
        let number = overrides.iter().find(|other| other.0 == key).map_or(number, |other| other.1);
        file.u32(key, number);
    }
    file.f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    file
}

fn tensors(file: &mut GgufBuilder) {
    let shapes: [(&str, &[u64]); 11] = [
        ("token_embd.weight", &[WIDTH, 8]),
        ("output_norm.weight", &[WIDTH]),
        ("blk.0.attn_norm.weight", &[WIDTH]),
        ("blk.0.attn_q.weight", &[WIDTH, WIDTH]),
        ("blk.0.attn_k.weight", &[WIDTH, KEYS]),
        ("blk.0.attn_v.weight", &[WIDTH, KEYS]),
        ("blk.0.attn_output.weight", &[WIDTH, WIDTH]),
        ("blk.0.ffn_norm.weight", &[WIDTH]),
        ("blk.0.ffn_gate.weight", &[WIDTH, 64]),
        ("blk.0.ffn_up.weight", &[WIDTH, 64]),
        ("blk.0.ffn_down.weight", &[64, WIDTH]),
    ];
    for (name, shape) in shapes {
        let len = shape.iter().product::<u64>();
        let data: Vec<u8> = (0..len).flat_map(|i| ((i * 37 % 19) as f32 / 19.0 - 0.5).to_le_bytes()).collect();
        file.tensor(name, shape, Format::F32, &data);
    }
}

fn file(family: &str, overrides: &[(&str, u32)]) -> Vec<u8> {
    let mut file = metadata(overrides);
    file.str("general.architecture", family);
    tensors(&mut file);
    file.bytes()
}

fn load(bytes: Vec<u8>) -> Result<Decoder<Cpu>, Error> {
    let gguf = Gguf::parse(bytes)?;
    let config = ModelConfig::from_gguf(&gguf)?;
    Decoder::load(&gguf, config, ROOM, Cpu::new(Level::detect(), 1, LIMITS))
}

fn plan(tokens: &[u32], computed: usize, block: u32) -> Plan {
    Plan {
        tokens: tokens.to_vec(),
        positions: (computed..computed + tokens.len()).map(|position| position as u32).collect(),
        spans: vec![Span {
            sequence: SequenceId(0),
            rows: 0..tokens.len(),
            computed,
            prompt: tokens.len(),
            blocks: 0..5,
        }],
        blocks: vec![BlockId(block); 5],
        ..Plan::default()
    }
}

#[test]
fn a_small_file_loads_and_refuses_plans_beyond_it() {
    let mut model = load(file("llama", &[])).expect("a good file loads");
    assert_eq!((model.shape().vocabulary, model.shape().context), (8, 64));
    let progress = Arc::new(AtomicU64::new(0));
    model.count_progress(Arc::clone(&progress));
    assert!(model.forward(&plan(&[1, 7], 0, 0)).is_ok());
    assert!(progress.load(Ordering::Relaxed) > 1, "a step counts by its parts");
    for bad in [plan(&[8], 0, 0), plan(&[1], 64, 0), plan(&[1], 0, 4)] {
        assert!(matches!(model.forward(&bad), Err(Error::Device(_))));
    }
}

#[test]
fn other_families_are_unsupported() {
    assert!(matches!(load(file("mamba", &[])), Err(Error::Unsupported(_))));
}

#[test]
fn impossible_numbers_are_malformed() {
    for (key, number) in [
        ("llama.block_count", 0),
        ("llama.block_count", 2),
        ("llama.block_count", u32::MAX),
        ("llama.embedding_length", 64),
        ("llama.feed_forward_length", 32),
        ("llama.attention.head_count", 0),
        ("llama.attention.head_count", 64),
        ("llama.attention.head_count_kv", 3),
        ("llama.context_length", 0),
    ] {
        let error = load(file("llama", &[(key, number)])).err();
        assert!(matches!(error, Some(Error::Malformed(_))), "{key} = {number}: {error:?}");
    }
}

#[test]
fn heads_too_wide_are_refused_by_the_metadata_alone() {
    let bytes = file("llama", &[("llama.embedding_length", 1 << 14)]);
    let error = ModelConfig::from_gguf(&Gguf::parse(bytes).unwrap()).err();
    assert!(matches!(error, Some(Error::Unsupported(_))), "{error:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn spoilt_files_are_refused_or_run(at in 0_usize..2_000, byte: u8, cut in 0_usize..40_000) {
        let mut bytes = file("llama", &[]);
        bytes.truncate(bytes.len().max(1) - cut * usize::from(byte % 4 == 0) % bytes.len());
        if let Some(spoilt) = bytes.get_mut(at) {
            *spoilt = byte;
        }
        if let Ok(mut model) = load(bytes) {
            // Whatever numbers it holds, a step is an answer or an error.
            let _ = model.forward(&plan(&[1, 2, 3], 0, 0));
        }
    }
}
