use super::*;
use crate::backend::StepLimits;
use crate::backend::cpu::Cpu;
use crate::backend::scalar::Scalar;
use crate::encode::{self, Engine, Event, Job, Output};
use crate::engine::JobKey;
use crate::fixture::{tiny_bert, tiny_bert_bytes};
use crate::simd::Level;
use crate::simd::brains::Unit;
use crate::text::{Encoded, Excess};
use proptest::prelude::*;
use serde_json::json;
use std::sync::mpsc::channel;
use std::time::Duration;

const LIMITS: StepLimits = StepLimits { rows: 0, outputs: 0, blocks: 0 };
const BUDGET: Budget = Budget { units: 128, inputs: 8, max_wait: Duration::ZERO };
const WIDTH: usize = 64;

fn tensors(overrides: &[(&str, serde_json::Value)]) -> Tensors {
    Tensors::parse(tiny_bert_bytes(5, overrides)).unwrap()
}

fn on_cpu(level: Level, threads: usize) -> Bert<Cpu> {
    Bert::load(&tensors(&[]), BUDGET, Cpu::new(level, threads, LIMITS)).unwrap()
}

/// Texts of these lengths.
fn texts(lengths: &[usize]) -> Vec<Input> {
    let token = |text: usize, place: usize| ((text * 31 + place * 17) % 90 + 2) as u32;
    (0..).zip(lengths).map(|(text, len)| Input::Tokens((0..*len).map(|place| token(text, place)).collect())).collect()
}

fn directions(encoder: &mut dyn Encoder, texts: &[Input]) -> Vec<Vec<f32>> {
    let (batch, mut turns) = ((0..).map(InputKey).zip(texts).collect::<Vec<_>>(), Vec::new());
    encoder.encode(&batch, &mut turns).unwrap();
    let vector = |turn| match turn {
        Turn::Done(Output::Vector(vector)) => vector,
        other => panic!("{other:?}"),
    };
    turns.into_iter().map(vector).collect()
}

#[test]
fn the_processor_finds_the_oracles_directions() {
    let texts = texts(&[1, 7, 48, 2, 30]);
    let truth = directions(&mut Bert::load(&tensors(&[]), BUDGET, Scalar::new(LIMITS)).unwrap(), &texts);
    for level in Level::all() {
        let found = directions(&mut on_cpu(level, 2), &texts);
        for (truth, found) in truth.iter().zip(&found) {
            assert_eq!(found.len(), WIDTH);
            let length: f32 = found.iter().map(|x| x * x).sum();
            assert!((length - 1.0).abs() < 1e-6, "{length}");
            assert!(truth.iter().zip(found).all(|(a, b)| (a - b).abs() < 1e-5), "{} {truth:?} {found:?}", level.name());
        }
    }
}

#[test]
fn a_text_in_a_batch_has_the_bits_it_has_alone() {
    let texts = texts(&[48, 1, 5, 33, 17, 2, 8, 14]);
    let mut encoder = on_cpu(Level::detect(), 2);
    let together = directions(&mut encoder, &texts);
    for (text, together) in texts.iter().zip(&together) {
        let alone = directions(&mut encoder, std::slice::from_ref(text)).remove(0);
        assert!(alone.iter().zip(together).all(|(a, b)| a.to_bits() == b.to_bits()));
        let single = directions(&mut on_cpu(Level::detect(), 1), std::slice::from_ref(text)).remove(0);
        assert_eq!(alone, single);
    }
}

#[test]
fn a_matrix_unit_finds_the_same_directions_in_any_company() {
    let texts = texts(&[48, 1, 5, 33, 17]);
    let truth = directions(&mut on_cpu(Level::detect(), 1), &texts);
    for unit in [Some(Unit::Plain), Level::detect().unit()].into_iter().flatten() {
        let cpu = Cpu::new(Level::detect(), 2, LIMITS).by(Some(unit));
        let mut encoder = Bert::load(&tensors(&[]), BUDGET, cpu).unwrap();
        let together = directions(&mut encoder, &texts);
        for ((text, truth), together) in texts.iter().zip(&truth).zip(&together) {
            assert!(truth.iter().zip(together).all(|(a, b)| (a - b).abs() < 1e-4), "{unit:?} {truth:?} {together:?}");
            assert_eq!(&directions(&mut encoder, std::slice::from_ref(text))[0], together, "{unit:?}");
        }
    }
}

#[test]
fn pooling_is_what_the_file_says() {
    let text = texts(&[9]);
    let cls = tensors(&[("pooling", json!("cls"))]);
    let mut first = Bert::load(&cls, BUDGET, Cpu::new(Level::detect(), 1, LIMITS)).unwrap();
    assert_ne!(directions(&mut first, &text), directions(&mut on_cpu(Level::detect(), 1), &text));
}

#[test]
fn what_the_model_cannot_read_is_refused() {
    let mut encoder = on_cpu(Level::detect(), 1);
    assert_eq!(encoder.cost(&texts(&[48])[0]), Ok(Cost { units: 48, kind: 0 }));
    let unknown = Input::Tokens(vec![encoder.config().vocabulary as u32]);
    for input in [&texts(&[49])[0], &texts(&[0])[0], &unknown] {
        assert!(encoder.cost(input).is_err());
    }
    let many = texts(&[48; 3]);
    let batch: Vec<_> = many.iter().map(|text| (InputKey(0), text)).collect();
    assert!(encoder.encode(&batch, &mut Vec::new()).is_err(), "beyond the budget");
}

#[test]
fn impossible_numbers_and_variants_are_malformed() {
    for (key, value) in [
        ("hidden_size", json!(0)),
        ("hidden_size", json!(65)),
        ("hidden_size", json!(1_u64 << 40)),
        ("num_attention_heads", json!(0)),
        ("num_attention_heads", json!(7)),
        ("num_hidden_layers", json!(3)),
        ("num_hidden_layers", json!(1_u64 << 60)),
        ("intermediate_size", json!(-1)),
        ("vocab_size", json!(12)),
        ("max_seq_length", json!(1000)),
        ("max_seq_length", json!(0)),
        ("layer_norm_eps", json!(0.0)),
        ("layer_norm_eps", json!("tiny")),
        ("hidden_act", json!("relu")),
        ("position_embedding_type", json!("relative_key")),
        ("pooling", json!("max")),
    ] {
        let loaded = Bert::load(&tensors(&[(key, value.clone())]), BUDGET, Scalar::new(LIMITS));
        assert!(matches!(loaded, Err(Error::Malformed(_))), "{key} = {value}");
    }
}

#[test]
fn a_file_becomes_an_engine_that_answers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.safetensors");
    tiny_bert(&path, 5);
    let loaded = encode::load(&path, encode::Settings::stored(2)).unwrap();
    assert_eq!((loaded.info.family.as_str(), loaded.info.precision), ("bert", "F32"));
    assert_eq!((loaded.info.context, loaded.info.width), (Some(48), Some(WIDTH)));
    let needs = encode::needs(&path, encode::Settings::stored(1)).unwrap();
    let file = std::fs::metadata(&path).unwrap().len();
    assert!((file / 2..=file).contains(&needs.weights) && needs.workspace > 0, "{needs:?} of {file} bytes");
    let (tokens, limit) = (loaded.tokens.unwrap(), loaded.info.context.unwrap());
    let (sender, events) = channel();
    let engine = Engine::start(loaded.encoder, 4, Box::new(sender)).unwrap();
    let input = |text: &str| match tokens.encode(text, limit, Excess::Refuse).unwrap() {
        Encoded::Whole(tokens) => Input::Tokens(tokens),
        other => panic!("{other:?}"),
    };
    let inputs = ["a small boat", "a small boat.", "zzz 123"].map(input).to_vec();
    engine.submit(Job { key: JobKey(1), inputs, deadline: None }).unwrap();
    assert_eq!(events.recv().unwrap(), Event::Started { key: JobKey(1) });
    let Event::Ended { end: encode::End::Done(outputs), .. } = events.recv().unwrap() else { panic!("it is done") };
    let [Output::Vector(a), Output::Vector(b), Output::Vector(c)] = &outputs[..] else { panic!("three directions") };
    let cosine = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    assert!(cosine(a, b) > cosine(a, c));
    assert!(engine.progress() >= 4, "a batch counts by its parts");
}

#[test]
fn other_families_and_tokenizers_too_large_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.safetensors");
    std::fs::write(&path, crate::fixture::tensors_file(&[("family", "t5")], &[])).unwrap();
    assert!(matches!(encode::load(&path, encode::Settings::stored(1)), Err(Error::Unsupported(_))));
    assert!(matches!(encode::needs(&path, encode::Settings::stored(1)), Err(Error::Unsupported(_))));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn spoilt_files_are_refused_or_run(at in 0_usize..20_000, byte: u8, cut in 0_usize..400_000) {
        let mut bytes = tiny_bert_bytes(5, &[]);
        bytes.truncate(bytes.len() - cut * usize::from(byte % 4 == 0) % bytes.len());
        if let Some(spoilt) = bytes.get_mut(at) {
            *spoilt = byte;
        }
        let Ok(tensors) = Tensors::parse(bytes) else { return Ok(()) };
        if let Ok(mut encoder) = Bert::load(&tensors, BUDGET, Cpu::new(Level::detect(), 1, LIMITS)) {
            // Whatever numbers it holds, a batch is an answer or an error.
            let text = Input::Tokens(vec![1, 2, 3]);
            let _ = encoder.encode(&[(InputKey(0), &text)], &mut Vec::new());
        }
    }
}
