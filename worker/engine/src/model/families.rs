//! Small networks of every family against the reference's, and what holds for the real models holds for them.

use proptest::prelude::*;

use super::{Decoder, Model, ModelConfig, Part, Room};
use crate::Error;
use crate::backend::cpu::Cpu;
use crate::backend::scalar::Scalar;
use crate::backend::{Backend, StepLimits};
use crate::fixture::{self, FAMILIES, VOCABULARY, small_network};
use crate::gguf::{Gguf, GgufBuilder};
use crate::plan::{Plan, TokenId};
use crate::quant::Format;
use crate::simd::Level;

const ROOM: Room = Room { step_tokens: 64, outputs: 64, blocks: 16 };
const LIMITS: StepLimits = StepLimits { rows: 64, outputs: 64, blocks: 64 };
const POSITIONS: usize = 40;

fn load<B: Backend>(bytes: &[u8], backend: B) -> Result<Decoder<B>, Error> {
    let gguf = Gguf::parse(bytes)?;
    let config = ModelConfig::from_gguf(&gguf)?;
    Decoder::load(&gguf, config, ROOM, backend)
}

fn cpu(level: Level) -> Cpu {
    Cpu::new(level, 2, LIMITS)
}

fn token(position: usize) -> TokenId {
    ((37 * position + 11) % VOCABULARY as usize) as TokenId
}

/// Logits of all positions, the text fed `chunk` tokens a step.
fn logits<B: Backend>(model: &mut Decoder<B>, chunk: usize) -> Vec<f32> {
    let (mut all, mut some) = (Vec::new(), Vec::new());
    for first in (0..POSITIONS).step_by(chunk) {
        let mut plan = Plan::default();
        let end = POSITIONS.min(first + chunk);
        fixture::span(&mut plan, 0, first, (first as u32..end as u32).map(|at| token(at as usize)), |block| block);
        let last = plan.outputs[0].clone();
        plan.outputs = (0..end - first)
            .map(|row| crate::plan::Output { row, position: (first + row + 1) as u32, ..last.clone() })
            .collect();
        model.logits(&plan, &mut some).expect("the plan fits");
        all.extend_from_slice(&some);
    }
    all
}

fn golden(family: &str) -> Vec<f32> {
    let bytes: &[u8] = match family {
        "qwen2" => include_bytes!("../../golden/families/qwen2.bin"),
        "qwen3" => include_bytes!("../../golden/families/qwen3.bin"),
        _ => include_bytes!("../../golden/families/gemma3.bin"),
    };
    bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
}

/// Mean square of the error over that of the truth.
fn error(truth: &[f32], got: &[f32]) -> f64 {
    assert_eq!(truth.len(), got.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let wrong: f64 = truth.iter().zip(got).map(|(truth, got)| square(truth - got)).sum();
    wrong / truth.iter().map(|x| square(*x)).sum::<f64>()
}

fn top(logits: &[f32]) -> usize {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).expect("a vocabulary")
}

#[test]
fn logits_are_the_references() {
    for family in FAMILIES {
        let (bytes, truth) = (small_network(family), golden(family));
        let oracle = logits(&mut load(&bytes, Scalar::new(LIMITS)).unwrap(), POSITIONS);
        let got = logits(&mut load(&bytes, cpu(Level::detect())).unwrap(), 13);
        // Keys and values are halves: that, not the arithmetic, is the difference.
        println!("{family}: {:.2e} and {:.2e} from the reference", error(&truth, &oracle), error(&truth, &got));
        for logits in [&oracle, &got] {
            assert!(error(&truth, logits) < 1e-6, "{family}: {}", error(&truth, logits));
        }
        let rows = |logits: &[f32]| logits.chunks(VOCABULARY as usize).map(top).collect::<Vec<_>>();
        assert_eq!(rows(&truth), rows(&got), "{family}");
    }
}

#[test]
fn logits_have_the_same_bits_at_every_level_and_chunking() {
    for family in FAMILIES {
        let bytes = small_network(family);
        let whole = logits(&mut load(&bytes, cpu(Level::Scalar)).unwrap(), POSITIONS);
        for (level, chunk) in Level::all().into_iter().flat_map(|level| [1, 7, 16, 40].map(|chunk| (level, chunk))) {
            let got = logits(&mut load(&bytes, cpu(level)).unwrap(), chunk);
            let same = whole.iter().zip(&got).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{family} in chunks of {chunk} at {}", level.name());
        }
    }
}

#[test]
fn a_sequence_says_the_same_in_company() {
    for family in FAMILIES {
        let bytes = small_network(family);
        let alone = logits(&mut load(&bytes, cpu(Level::detect())).unwrap(), POSITIONS);
        let mut model = load(&bytes, cpu(Level::detect())).unwrap();
        let (mut plan, mut some) = (Plan::default(), Vec::new());
        fixture::span(&mut plan, 0, 0, (0..17).map(|at| at % 5), |block| block);
        fixture::span(&mut plan, 1, 0, (0..POSITIONS as u32).map(|at| token(at as usize)), |block| 12 - block);
        fixture::span(&mut plan, 2, 0, [3].into_iter(), |_| 14);
        model.logits(&plan, &mut some).expect("the plan fits");
        let vocabulary = VOCABULARY as usize;
        let (alone, together) = (&alone[(POSITIONS - 1) * vocabulary..], &some[vocabulary..2 * vocabulary]);
        assert!(alone.iter().zip(together).all(|(a, b)| a.to_bits() == b.to_bits()), "{family}");
    }
}

#[test]
fn a_family_s_parts_are_read_from_its_name_and_file() {
    let config = |family: &str| ModelConfig::from_gguf(&Gguf::parse(small_network(family)).unwrap()).unwrap();
    let (qwen2, qwen3, gemma3) = (config("qwen2"), config("qwen3"), config("gemma3"));
    assert_eq!((qwen2.qkv_bias, qwen2.head_norm, qwen2.branch_norm), (Part::Present, Part::Absent, Part::Absent));
    assert_eq!((qwen3.qkv_bias, qwen3.head_norm, qwen3.branch_norm), (Part::Absent, Part::Present, Part::Absent));
    assert_eq!((gemma3.head_norm, gemma3.branch_norm, gemma3.embedding_scale), (Part::Present, Part::Present, 8.0));
    assert!(qwen3.local(0).is_none() && qwen3.rope_tables() == 1);
    let local: Vec<bool> = (0..7).map(|layer| gemma3.local(layer).is_some()).collect();
    assert_eq!((local.as_slice(), gemma3.rope_tables()), (&[true, true, true, true, true, false, true][..], 2));
    // A file that lacks what its family has is refused, whatever else it has.
    let mut spoilt = small_network("gemma3");
    let name = b"post_ffw_norm";
    let at = spoilt.windows(name.len()).position(|window| window == name).unwrap();
    spoilt[at] = b'P';
    assert!(matches!(load(&spoilt, cpu(Level::detect())), Err(Error::Malformed(_))));
}

#[test]
fn variants_of_families_are_unsupported() {
    let refused = |add: fn(&mut GgufBuilder) -> &mut GgufBuilder| {
        let mut file = GgufBuilder::new();
        file.str("general.architecture", "gemma3").u32("gemma3.block_count", 26);
        add(&mut file);
        matches!(ModelConfig::from_gguf(&Gguf::parse(file.bytes()).unwrap()), Err(Error::Unsupported(_)))
    };
    assert!(!refused(|file| file));
    assert!(refused(|file| file.str("gemma3.rope.scaling.type", "linear")));
    assert!(refused(|file| file.f32("gemma3.final_logit_softcapping", 30.0)));
    assert!(refused(|file| file.u32("gemma3.expert_count", 8)));
}

/// One Llama layer of width 256 whose matrices are all `format`, of bytes as they come.
fn quantised(format: Format, byte: &mut dyn FnMut() -> u8) -> Vec<u8> {
    let mut file = GgufBuilder::new();
    file.str("general.architecture", "llama").f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    for (key, number) in [
        ("block_count", 1),
        ("embedding_length", 256),
        ("feed_forward_length", 256),
        ("attention.head_count", 8),
        ("context_length", 64),
    ] {
        file.u32(&format!("llama.{key}"), number);
    }
    let norm = 1.0_f32.to_le_bytes().repeat(256);
    for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"] {
        file.tensor(&format!("{name}.weight"), &[256], Format::F32, &norm);
    }
    for (name, rows) in [
        ("token_embd", VOCABULARY),
        ("blk.0.attn_q", 256),
        ("blk.0.attn_k", 256),
        ("blk.0.attn_v", 256),
        ("blk.0.attn_output", 256),
        ("blk.0.ffn_gate", 256),
        ("blk.0.ffn_up", 256),
        ("blk.0.ffn_down", 256),
    ] {
        let bytes = 256 * rows as usize / format.block_len() * format.block_bytes();
        let data: Vec<u8> = (0..bytes).map(|_| byte()).collect();
        file.tensor(&format!("{name}.weight"), &[256, rows], format, &data);
    }
    file.bytes()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_weights_that_run(seed: u64, format in 0_usize..3) {
        let mut state = seed;
        let mut byte = || {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (state >> 56) as u8
        };
        let format = [Format::Q4K, Format::Q5K, Format::Q6K][format];
        let mut model = load(&quantised(format, &mut byte), cpu(Level::detect())).expect("sizes are right");
        let mut plan = Plan::default();
        fixture::span(&mut plan, 0, 0, (0..9).map(|at| token(at) as TokenId), |block| block);
        // Infinite scales and all: an answer, of the vocabulary.
        let (ticket, mut sampled) = (model.forward(&plan).expect("a plan that fits"), Vec::new());
        model.collect(ticket, &mut sampled).expect("the last ticket");
        prop_assert!(sampled.iter().all(|sampled| u64::from(sampled.token) < VOCABULARY));
    }

    #[test]
    fn spoilt_files_are_refused_or_run(family in 0_usize..3, at in 0_usize..3_000, byte: u8, cut in 0_usize..200_000) {
        let mut bytes = small_network(FAMILIES[family]);
        if byte % 4 == 0 {
            bytes.truncate(bytes.len() - cut % bytes.len());
        }
        if let Some(spoilt) = bytes.get_mut(at) {
            *spoilt = byte;
        }
        if let Ok(mut model) = load(&bytes, cpu(Level::detect())) {
            let mut plan = Plan::default();
            fixture::span(&mut plan, 0, 0, [1, 2, 3].into_iter(), |block| block);
            let _ = model.forward(&plan);
        }
    }
}
