//! Directions of all-MiniLM-L6-v2 against sentence-transformers: `golden/minilm/README.md` says how those were made.

use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

use engine::backend::Weights;
use engine::encode::{End, Engine, Event, Input, InputKey, Job, Loaded, Output, Settings, Turn, load};
use engine::engine::JobKey;
use engine::fixture::minilm;
use engine::text::{Encoded, Excess, TextEncoder};
use half::f16;
use serde::Deserialize;

const WIDTH: usize = 384;
/// Of weights as they are, and of a byte.
const COSINE_MIN: [(Weights, f64); 2] = [(Weights::Stored, 0.9999), (Weights::Int8, 0.999)];
/// Places of a ranking that weights of a byte keep, but for passages whose cosines differ by no more than [`CLOSE`].
const NEAREST: usize = 3;
const CLOSE: f64 = 0.002;
/// Batched and alone may differ by this much in a number.
const COMPANY_MAX: f32 = 1e-4;
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Deserialize)]
struct Golden {
    texts: Vec<Text>,
    retrieval: Retrieval,
}

#[derive(Deserialize)]
struct Text {
    text: String,
    tokens: usize,
}

#[derive(Deserialize)]
struct Retrieval {
    queries: Vec<String>,
    passages: Vec<String>,
    /// Of each query: places of passages, nearest first.
    ranking: Vec<Vec<usize>>,
}

fn file(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/minilm").join(name)).unwrap()
}

fn golden() -> Golden {
    serde_json::from_slice(&file("texts.json")).unwrap()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn tokens(encoder: &TextEncoder, limit: usize, text: &str) -> Vec<u32> {
    match encoder.encode(text, limit, Excess::Cut).unwrap() {
        Encoded::Whole(tokens) | Encoded::Cut(tokens) => tokens,
        Encoded::TooLong | Encoded::TooLarge => panic!("a text can be cut"),
    }
}

/// One job of all texts.
fn together(loaded: Loaded, inputs: Vec<Input>) -> Vec<Vec<f32>> {
    let (sender, events) = channel();
    let engine = Engine::start(loaded.encoder, 1, Box::new(sender)).unwrap();
    engine.submit(Job { key: JobKey(1), inputs, deadline: None }).unwrap();
    assert!(matches!(events.recv_timeout(PATIENCE).unwrap(), Event::Started { .. }));
    let Event::Ended { end: End::Done(outputs), .. } = events.recv_timeout(PATIENCE).unwrap() else {
        panic!("the job is done")
    };
    outputs.into_iter().map(vector).collect()
}

fn vector(output: Output) -> Vec<f32> {
    match output {
        Output::Vector(vector) => vector,
        other => panic!("{other:?}"),
    }
}

#[test]
fn directions_are_the_references_in_company_and_alone() {
    let golden = golden();
    let path = minilm();
    for (weights, least) in COSINE_MIN {
        directions_are_the_references(&golden, &path, Settings { threads: 2, weights }, least);
    }
}

fn directions_are_the_references(golden: &Golden, path: &Path, settings: Settings, cosine_min: f64) {
    let mut alone = load(path, settings).unwrap();
    let (encoder, limit) = (alone.tokens.clone().unwrap(), alone.info.context.unwrap());
    let tokens: Vec<Vec<u32>> = golden.texts.iter().map(|text| tokens(&encoder, limit, &text.text)).collect();
    for (text, tokens) in golden.texts.iter().zip(&tokens) {
        assert_eq!(tokens.len(), text.tokens, "{:?}", text.text);
    }
    let numbers: Vec<f32> =
        file("vectors.f16").chunks_exact(2).map(|x| f16::from_le_bytes([x[0], x[1]]).to_f32()).collect();
    let truths = numbers.chunks_exact(WIDTH);
    assert_eq!(truths.len(), 200);
    let inputs: Vec<Input> = tokens.into_iter().map(Input::Tokens).collect();
    let found = together(load(path, settings).unwrap(), inputs.clone());
    let mut least = 1.0_f64;
    for ((text, truth), found) in golden.texts.iter().zip(truths).zip(&found) {
        let cosine = cosine(truth, found);
        assert!(cosine >= cosine_min, "{cosine} of {:?}", text.text);
        least = least.min(cosine);
    }
    println!("{settings:?}: least cosine {least:.9}");
    // Every fifth alone: the rest would say the same.
    for (input, together) in inputs.iter().zip(&found).step_by(5) {
        let mut turns = Vec::new();
        alone.encoder.encode(&[(InputKey(0), input)], &mut turns).unwrap();
        let Some(Turn::Done(output)) = turns.pop() else { panic!("it is done") };
        assert!(vector(output).iter().zip(together).all(|(a, b)| (a - b).abs() <= COMPANY_MAX));
    }
}

#[test]
fn a_retrieval_ranks_as_the_reference_does() {
    let retrieval = golden().retrieval;
    let exact = likenesses(&retrieval, Weights::Stored);
    let rounded = likenesses(&retrieval, Weights::Int8);
    for ((exact, rounded), ranking) in exact.iter().zip(&rounded).zip(&retrieval.ranking) {
        assert_eq!(places(exact), *ranking);
        for (found, place) in places(rounded).iter().zip(ranking).take(NEAREST) {
            assert!((exact[*found] - exact[*place]).abs() <= CLOSE, "{found} for {place} of {ranking:?}");
        }
    }
}

/// Places of passages, nearest first.
fn places(likenesses: &[f64]) -> Vec<usize> {
    let mut places: Vec<usize> = (0..likenesses.len()).collect();
    places.sort_by(|a, b| likenesses[*b].total_cmp(&likenesses[*a]));
    places
}

/// Of each query: its cosine with each passage.
fn likenesses(Retrieval { queries, passages, .. }: &Retrieval, weights: Weights) -> Vec<Vec<f64>> {
    let loaded = load(&minilm(), Settings { threads: 2, weights }).unwrap();
    let (encoder, limit) = (loaded.tokens.clone().unwrap(), loaded.info.context.unwrap());
    let texts = queries.iter().chain(passages);
    let found = together(loaded, texts.map(|text| Input::Tokens(tokens(&encoder, limit, text))).collect());
    let (queries, passages) = found.split_at(queries.len());
    queries.iter().map(|query| passages.iter().map(|passage| cosine(query, passage)).collect()).collect()
}
