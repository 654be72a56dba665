//! Both towers against transformers' `CLIPModel` with the same random weights (`tests/golden/clip.py`).

use std::time::Duration;

use serde::Deserialize;

use super::*;
use crate::backend::StepLimits;
use crate::backend::cpu::Cpu;
use crate::backend::scalar::Scalar;
use crate::encode::Output;
use crate::fixture::tensors_file;
use crate::plan::TokenId;
use crate::simd::Level;
use crate::tensors::CONFIG;

const FILE: &[u8] = include_bytes!("../../../tests/golden/clip.safetensors");
const LIMITS: StepLimits = StepLimits { rows: 1, outputs: 1, blocks: 1 };
const BUDGET: Budget = Budget { units: 64, inputs: 8, max_wait: Duration::ZERO };

#[derive(Deserialize)]
struct Golden {
    texts: Vec<Vec<TokenId>>,
    text_vectors: Vec<Vec<f32>>,
    image_vectors: Vec<Vec<f32>>,
    contrast: f32,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../../../tests/golden/clip.json")).expect("as the script wrote it")
}

fn load<B: Dense>(backend: B) -> Clip<B> {
    Clip::load(&Tensors::parse(FILE).expect("a file"), BUDGET, backend).expect("a model")
}

fn texts() -> Vec<Input> {
    golden().texts.into_iter().map(Input::Tokens).collect()
}

/// As the script makes them.
fn pictures() -> Vec<Input> {
    let (side, len) = (13, 13 * 13 * 3);
    let numbers = |picture: usize| (picture * len..(picture + 1) * len).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0);
    (0..2)
        .map(|picture| Input::Pixels(Pixels { height: side, width: side, numbers: numbers(picture).collect() }))
        .collect()
}

fn encode<B: Dense>(clip: &mut Clip<B>, inputs: &[Input]) -> Vec<Vec<f32>> {
    let batch: Vec<_> = inputs.iter().enumerate().map(|(key, input)| (InputKey(key as u64), input)).collect();
    let mut turns = Vec::new();
    clip.encode(&batch, &mut turns).expect("the batch fits");
    turns
        .into_iter()
        .map(|turn| match turn {
            Turn::Done(Output::Vector(vector)) => vector,
            other => panic!("no vector: {other:?}"),
        })
        .collect()
}

fn check<B: Dense>(backend: B) {
    let (golden, mut clip) = (golden(), load(backend));
    // Pictures first and last: what a larger batch left behind is not seen.
    for (inputs, truth) in
        [(pictures(), &golden.image_vectors), (texts(), &golden.text_vectors), (pictures(), &golden.image_vectors)]
    {
        let got = encode(&mut clip, &inputs);
        assert_eq!(got.len(), truth.len());
        for (got, truth) in got.iter().flatten().zip(truth.iter().flatten()) {
            assert!((got - truth).abs() < 2e-6, "{got} is not {truth}");
        }
    }
}

#[test]
fn vectors_are_those_of_transformers() {
    check(Scalar::new(LIMITS));
    for level in Level::all() {
        check(Cpu::new(level, 2, LIMITS));
    }
    let tensors = Tensors::parse(FILE).expect("a file");
    assert!((contrast(&tensors).expect("a scale") - golden().contrast).abs() < 1e-4);
}

#[test]
fn batched_equals_alone() {
    let mut clip = load(Cpu::new(Level::detect(), 2, LIMITS));
    for inputs in [texts(), pictures()] {
        let together = encode(&mut clip, &inputs);
        for (input, together) in inputs.iter().zip(together) {
            let alone = encode(&mut clip, std::slice::from_ref(input)).remove(0);
            assert!(alone.iter().map(|x| x.to_bits()).eq(together.iter().map(|x| x.to_bits())));
        }
    }
}

#[test]
fn inputs_that_cannot_run_are_refused() {
    let mut clip = load(Cpu::new(Level::detect(), 1, LIMITS));
    let picture = |height, width, len| Input::Pixels(Pixels { height, width, numbers: vec![0.0; len] });
    for input in [
        Input::Tokens(vec![]),
        Input::Tokens(vec![49; 21]),
        Input::Tokens(vec![50, 49]),
        Input::Tokens(vec![48, 3]),
        picture(13, 12, 13 * 12 * 3),
        picture(13, 13, 13 * 13),
    ] {
        assert!(clip.cost(&input).is_err(), "{input:?}");
    }
    assert_eq!(clip.cost(&texts()[1]), Ok(Cost { units: 2, kind: 0 }));
    assert_eq!(clip.cost(&pictures()[0]), Ok(Cost { units: 10, kind: 1 }));
    let (text, picture) = (texts().remove(0), pictures().remove(0));
    let mixed = [(InputKey(0), &text), (InputKey(1), &picture)];
    assert!(clip.encode(&mixed, &mut Vec::new()).is_err());
    assert!(clip.encode(&[(InputKey(0), &picture); 7], &mut Vec::new()).is_err(), "more than the budget");
}

#[test]
fn pictures_are_brought_to_what_the_model_sees() {
    let text = Tensors::parse(FILE).expect("a file").text(CONFIG).expect("a configuration").to_owned();
    for (size, is_right) in [(13, true), (14, false)] {
        let config = text.replacen('{', &format!("{{\"size\": {size}, "), 1);
        let tensors = Tensors::parse(tensors_file(&[(CONFIG, &config)], &[])).expect("the form is right");
        let read = ClipConfig::read(&tensors);
        assert_eq!(read.is_ok(), is_right, "{read:?}");
        assert!(is_right || matches!(read, Err(Error::Malformed(_))));
    }
}

#[test]
fn impossible_numbers_are_refused() {
    let text = String::from_utf8_lossy(FILE);
    for (from, to) in [
        (r#"\"patch_size\": 4"#, r#"\"patch_size\": 0"#),
        (r#"\"image_size\": 13"#, r#"\"image_size\": 99"#),
        (r#"\"projection_dim\": 24"#, r#"\"projection_dim\": 23"#),
        (r#"\"hidden_act\": \"gelu\""#, r#"\"hidden_act\": \"selu\""#),
        (r#"\"num_attention_heads\": 4"#, r#"\"num_attention_heads\": 5"#),
    ] {
        assert!(text.contains(from), "{from}");
        let mut bytes = FILE.to_vec();
        let at = FILE.windows(from.len()).position(|window| window == from.as_bytes()).expect("in the header");
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        let tensors = Tensors::parse(bytes).expect("the form is right");
        assert!(Clip::load(&tensors, BUDGET, Scalar::new(LIMITS)).is_err(), "{to}");
    }
}
