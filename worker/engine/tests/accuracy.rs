//! The engine against llama.cpp's F32 evaluation of the same file: `golden/smollm2/README.md` says how that was made.

use std::path::{Path, PathBuf};

use engine::eval;
use engine::fixture::smollm2;

const TEXTS: [&str; 3] = ["prose", "code", "mixed"];
/// The f32-activation path must choose the reference's likeliest token at least this often.
const SAME_TOP_MIN: f64 = 0.99;
/// And its perplexity may differ by this share.
const PERPLEXITY_SHARE_MAX: f64 = 0.001;

/// What `golden/smollm2/*.bin` holds.
struct Reference {
    tokens: Vec<u32>,
    /// Log-probability of the true next token, a position.
    next: Vec<f32>,
    /// Likeliest token, a position.
    top: Vec<u32>,
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/smollm2").join(name)
}

fn reference(text: &str) -> Reference {
    let bytes = std::fs::read(golden(&format!("{text}.bin"))).unwrap();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!((&bytes[..4], word(4)), (&b"FREF"[..], 1));
    let (tokens, positions, listed) = (word(8) as usize, word(12) as usize, word(16) as usize);
    let next_at = 24;
    let ids_at = next_at + 4 * positions + 4 * positions * listed;
    let tokens_at = ids_at + 2 * positions * listed;
    let short = |at: usize| u32::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    Reference {
        tokens: (0..tokens).map(|i| short(tokens_at + 2 * i)).collect(),
        next: (0..positions).map(|i| f32::from_bits(word(next_at + 4 * i))).collect(),
        top: (0..positions).map(|i| short(ids_at + 2 * i * listed)).collect(),
    }
}

/// The likeliest token, the lower id of equal ones, and the log-probability of `token`.
fn read(logits: &[f32], token: u32) -> (u32, f64) {
    let mut top = 0;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > logits[top] {
            top = id;
        }
    }
    let peak = f64::from(logits[top]);
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - peak).exp()).sum();
    (u32::try_from(top).unwrap(), f64::from(logits[token as usize]) - peak - sum.ln())
}

#[test]
fn perplexity_and_likeliest_tokens_are_the_references() {
    for text in TEXTS {
        let reference = reference(text);
        let positions = reference.next.len();
        assert!(positions >= 2000);
        let (mut same, mut nll) = (0usize, 0.0f64);
        eval::logits(&smollm2(), &reference.tokens[..positions], |position, logits| {
            let (top, next) = read(logits, reference.tokens[position + 1]);
            same += usize::from(top == reference.top[position]);
            nll -= next;
        })
        .unwrap();
        let perplexity = (nll / positions as f64).exp();
        let theirs = (-reference.next.iter().map(|&next| f64::from(next)).sum::<f64>() / positions as f64).exp();
        let same = same as f64 / positions as f64;
        println!("{text}: perplexity {perplexity:.4} against {theirs:.4}, same likeliest token {:.2} %", same * 100.0);
        assert!(same >= SAME_TOP_MIN, "{text}: same likeliest token at {same:.4} of the positions");
        assert!(
            (perplexity / theirs - 1.0).abs() <= PERPLEXITY_SHARE_MAX,
            "{text}: perplexity {perplexity} against {theirs}"
        );
    }
}
