//! The engine against llama.cpp's F32 evaluation of the same file: `golden/smollm2/README.md` says how that was made.

mod reference;

use std::path::{Path, PathBuf};

use engine::backend::Activations;
use engine::fixture::smollm2;
use engine::simd::Level;
use reference::Reference;

const TEXTS: [&str; 3] = ["prose", "code", "mixed"];
/// As they are, and as sixteen bits.
const EXACT: [Activations; 2] = [Activations::F32, Activations::Int16];
/// These must choose the reference's likeliest token at least this often.
const SAME_TOP_MIN: f64 = 0.99;
/// And their perplexity may differ by this share.
const PERPLEXITY_SHARE_MAX: f64 = 0.001;
/// Rounded activations may diverge so many times as much as llama.cpp's, which are of one byte.
const DIVERGENCE_TIMES_MAX: [(Activations, f64); 2] = [(Activations::Int8, 1.2), (Activations::Mixed, 0.25)];
/// And choose the likeliest token less often by this share.
const SAME_TOP_LESS_MAX: f64 = 0.01;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/smollm2").join(name)
}

fn reference(text: &str) -> Reference {
    let bytes = std::fs::read(golden(&format!("{text}.bin"))).unwrap();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!((&bytes[..4], word(4)), (&b"FREF"[..], 1));
    let (tokens, positions, listed) = (word(8) as usize, word(12) as usize, word(16) as usize);
    assert!(positions >= 2000);
    let next_at = 24;
    let listed_at = next_at + 4 * positions;
    let ids_at = listed_at + 4 * positions * listed;
    let tokens_at = ids_at + 2 * positions * listed;
    let single = |at: usize| f32::from_bits(word(at));
    let short = |at: usize| u32::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    Reference {
        tokens: (0..tokens).map(|i| short(tokens_at + 2 * i)).collect(),
        next: (0..positions).map(|i| single(next_at + 4 * i)).collect(),
        listed: (0..positions * listed).map(|i| single(listed_at + 4 * i)).collect(),
        ids: (0..positions * listed).map(|i| short(ids_at + 2 * i)).collect(),
    }
}

#[test]
fn exact_activations_have_the_references_perplexity_and_likeliest_tokens() {
    for (text, activations) in TEXTS.iter().flat_map(|text| EXACT.map(|activations| (text, activations))) {
        let found = reference(text).distance(&smollm2(), activations);
        println!("{text}: {activations:?} {found:?}");
        assert!(found.same_top >= SAME_TOP_MIN, "{text}: {found:?}");
        assert!((found.perplexity / found.theirs - 1.0).abs() <= PERPLEXITY_SHARE_MAX, "{text}: {found:?}");
    }
}

#[test]
fn rounded_activations_are_as_near_the_reference_as_llama_cpps_or_nearer() {
    let theirs: serde_json::Value = serde_json::from_slice(&std::fs::read(golden("reference.json")).unwrap()).unwrap();
    let theirs = |name: &str| theirs["all"]["q4_1"][name].as_f64().unwrap();
    println!("llama.cpp: divergence {:.5}, same likeliest token {:.4}", theirs("mean_kl_coarse"), theirs("same_top"));
    // A matrix unit computes prompts; what is sampled is computed as it is without one.
    let prompts = if Level::detect().unit().is_some() { vec![usize::MAX, 0] } else { vec![0] };
    let runs = DIVERGENCE_TIMES_MAX.iter().flat_map(|run| prompts.iter().map(move |prompt| (run, *prompt)));
    for (&(activations, times), prompt) in runs {
        let distances = TEXTS.map(|text| reference(text).distance_after(&smollm2(), activations, prompt));
        let mean = |of: fn(&reference::Distance) -> f64| distances.iter().map(of).sum::<f64>() / TEXTS.len() as f64;
        let (divergence, same_top) = (mean(|found| found.divergence), mean(|found| found.same_top));
        println!(
            "{activations:?}, prompt of {prompt}: divergence {divergence:.5}, same likeliest token {same_top:.4}; {distances:?}"
        );
        assert!(divergence <= times * theirs("mean_kl_coarse"), "{activations:?}");
        assert!(same_top >= theirs("same_top") - SAME_TOP_LESS_MAX, "{activations:?}");
    }
}
