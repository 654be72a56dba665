//! A family with scores for merges, windows and k-quants, against llama.cpp: `golden/gemma3/README.md` says how its
//! answers were made.

mod reference;

use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use engine::backend::Activations;
use engine::engine::{End, Engine, EngineConfig, Event, Finish, Job, JobKey};
use engine::fixture::gemma3;
use engine::gguf::Gguf;
use engine::load::{Loaded, load};
use engine::needs::needs;
use engine::prefix::Scope;
use engine::sampler::Sampling;
use engine::text::{Special, Template, Tokenizer, complete_tokens};
use reference::Reference;
use serde_json::Value;

const TEXTS: [&str; 3] = ["prose", "code", "mixed"];
/// As in `accuracy.rs`, and its bars.
const EXACT: [Activations; 2] = [Activations::F32, Activations::Int16];
const SAME_TOP_MIN: f64 = 0.99;
const PERPLEXITY_SHARE_MAX: f64 = 0.001;
/// Mean divergence over the listed tokens and the rest, nats.
const DIVERGENCE_MAX: f64 = 1e-4;
/// The same with int8 activations: 1.2 times what llama.cpp's own have with the other model.
const DIVERGENCE_INT8_MAX: f64 = 0.0024;
const TOKENS_MAX: usize = 32;
const PATIENCE: Duration = Duration::from_secs(100);

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/gemma3").join(name)
}

fn values(name: &str) -> Vec<Value> {
    serde_json::from_slice(&std::fs::read(golden(name)).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

fn reference(text: &str) -> Reference {
    let bytes = std::fs::read(golden(&format!("{text}.bin"))).unwrap();
    assert_eq!(&bytes[..4], b"FREG");
    let words: Vec<u32> = bytes[4..].as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
    let [1, tokens, positions, listed, 262_144] = words[..5] else { panic!("another header") };
    let (tokens, positions, listed) = (tokens as usize, positions as usize, listed as usize);
    let (next, rest) = words[5..].split_at(positions);
    let (likely, rest) = rest.split_at(positions * listed);
    let (ids, rest) = rest.split_at(positions * listed);
    assert_eq!(rest.len(), tokens);
    // Past the window of 512.
    assert!(positions >= 1024);
    let floats = |words: &[u32]| words.iter().map(|word| f32::from_bits(*word)).collect();
    Reference { tokens: rest.to_vec(), next: floats(next), listed: floats(likely), ids: ids.to_vec() }
}

#[test]
fn exact_activations_have_the_references_perplexity_and_likeliest_tokens() {
    for (text, activations) in TEXTS.iter().flat_map(|text| EXACT.map(|activations| (text, activations))) {
        let found = reference(text).distance(&gemma3(), activations);
        println!("{text}: {activations:?} {found:?}");
        assert!(found.same_top >= SAME_TOP_MIN, "{text}: {found:?}");
        assert!((found.perplexity / found.theirs - 1.0).abs() <= PERPLEXITY_SHARE_MAX, "{text}: {found:?}");
        assert!(found.divergence <= DIVERGENCE_MAX, "{text}: {found:?}");
    }
}

#[test]
fn int8_activations_stay_near_the_reference() {
    for text in TEXTS {
        let found = reference(text).distance(&gemma3(), Activations::Int8);
        println!("{text}: {found:?}");
        assert!(found.divergence <= DIVERGENCE_INT8_MAX, "{text}: {found:?}");
    }
}

#[test]
fn texts_have_the_references_tokens() {
    let begun = Instant::now();
    let gguf = Gguf::open(&gemma3()).unwrap();
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    println!("vocabulary after {:?}", begun.elapsed());
    assert!(Template::from_gguf(&gguf).unwrap().is_none(), "it is no chat model");
    assert_eq!((tokenizer.vocabulary(), tokenizer.bos(), tokenizer.eos()), (262_144, Some(2), Some(1)));
    // End of sequence and of turn; the tag </s> of HTML is none.
    assert!(tokenizer.is_end(1) && tokenizer.is_end(106) && !tokenizer.is_end(212));
    for case in values("tokens.json") {
        let text = case["text"].as_str().unwrap();
        let tokens = tokenizer.encode(text, Special::Plain).unwrap();
        assert_eq!(tokens, ids(&case["plain"]), "{text:?}");
        let shown: Vec<u8> = tokens.iter().flat_map(|token| tokenizer.bytes_of(*token).to_vec()).collect();
        assert_eq!(String::from_utf8(shown).unwrap(), text.replace('\u{2581}', " "));
    }
    let steering = tokenizer.encode("<start_of_turn><bos><unused7>", Special::Plain).unwrap();
    assert!(steering.iter().all(|token| *token > 106 && !tokenizer.is_end(*token)), "{steering:?}");
    assert_eq!(tokenizer.encode("a<end_of_turn>", Special::Parse).unwrap(), [236_746, 106]);
}

#[test]
fn long_texts_take_linear_time() {
    let tokenizer = Tokenizer::from_gguf(&Gguf::open(&gemma3()).unwrap()).unwrap();
    for unit in ["a", " ", "\n", " a", "<unused", "<", "\u{301}", "the end. ", "漢字"] {
        let text = unit.repeat(400_000 / unit.len());
        let begun = Instant::now();
        let tokens = tokenizer.encode(&text, Special::Plain).unwrap();
        let took = begun.elapsed();
        println!("{unit:?}: {} tokens in {took:?}", tokens.len());
        assert!(took < Duration::from_secs(8), "{unit:?}: {took:?}");
    }
}

#[test]
fn continuations_are_the_references_together() {
    let threads = std::thread::available_parallelism().map_or(1, Into::into);
    let config = EngineConfig {
        activations: Activations::Int16,
        kv_tokens: 2048,
        step_tokens: 64,
        sequences_max: 8,
        queue_max: 8,
        threads,
    };
    let Loaded { model, tokenizer, template, info } = load(&gemma3(), &config).unwrap();
    assert!(template.is_none());
    assert_eq!((info.family.as_str(), info.layers, info.width, info.vocabulary), ("gemma3", 18, 640, 262_144));
    let (send, events) = channel();
    let engine = Engine::start(model, tokenizer.clone(), config, Box::new(send)).unwrap();
    let goldens = values("greedy.json");
    for (key, golden) in goldens.iter().enumerate() {
        let tokens = complete_tokens(&tokenizer, golden["prompt"].as_str().unwrap()).unwrap();
        assert_eq!(tokens, ids(&golden["prompt_ids"]));
        let job = Job {
            key: JobKey(key as u64),
            tokens,
            max_tokens: TOKENS_MAX,
            sampling: Sampling::greedy(),
            stop: Vec::new(),
            deadline: None,
            scope: Scope::default(),
        };
        engine.submit(job).unwrap();
    }
    let (mut texts, mut left) = (vec![String::new(); goldens.len()], goldens.len());
    while left > 0 {
        match events.recv_timeout(PATIENCE).expect("the engine goes on") {
            Event::Started { .. } => {}
            Event::Chunk { key, text } => texts[key.0 as usize].push_str(&text),
            Event::Ended { end: End::Done { finish, output_tokens, .. }, .. } => {
                assert_eq!((finish, output_tokens), (Finish::Length, TOKENS_MAX));
                left -= 1;
            }
            Event::Ended { key, end } => panic!("{key:?} ended with {end:?}"),
        }
    }
    engine.stop();
    for (golden, text) in goldens.iter().zip(&texts) {
        let shown: Vec<u8> =
            ids(&golden["output_ids"]).iter().flat_map(|token| tokenizer.bytes_of(*token).to_vec()).collect();
        assert_eq!(*text, String::from_utf8_lossy(&shown), "after {}", golden["prompt"]);
    }
}

#[test]
fn its_needs_are_told_before() {
    let config = EngineConfig {
        threads: 2,
        activations: Activations::Int8,
        kv_tokens: 0,
        step_tokens: 512,
        sequences_max: 32,
        queue_max: 1,
    };
    let needs = needs(&gemma3(), &config).unwrap();
    let file = std::fs::metadata(gemma3()).unwrap().len();
    println!("{needs:?} of a file of {file} bytes");
    // 18 layers, one head of 256, keys and values, two bytes each.
    assert_eq!((needs.kv_token, needs.context), (18 * 256 * 2 * 2, 32_768));
    assert!((file * 9 / 10..file * 3 / 2).contains(&needs.weights));
}
