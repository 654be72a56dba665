//! The whole backend on the host shim: every case and every family, under schedules that a GPU is free to choose.

use std::sync::Arc;

use super::Cuda;
use super::check::{cases, difference};
use crate::backend::StepLimits;
use crate::backend::scalar::Scalar;
use crate::check::models::{ENCODERS, LIMITS, decoders, logits};
use crate::cuda::Gpu;
use crate::cuda::shim::{Options, Shim};
use crate::cuda::sources::SOURCES;

/// Orders in which blocks, warps and lanes run: forward, backward, and by chance.
const SEEDS: [u64; 3] = [0, 1, 7];

fn gpu(seed: u64) -> Option<Arc<dyn Gpu>> {
    let shim = Shim::for_tests(SOURCES, Options { seed, ..Options::default() })?;
    Some(Arc::new(shim))
}

fn shim(seed: u64, limits: StepLimits) -> Option<Cuda> {
    gpu(seed).map(|gpu| Cuda::new(gpu, limits).expect("every kernel is there"))
}

/// Runs the cases of which the name has `part`, and lists all that are wrong.
fn hold(part: &str) {
    let cases: Vec<_> = cases().into_iter().filter(|case| case.name.contains(part)).collect();
    assert!(!cases.is_empty(), "no case is called {part:?}");
    let mut wrong = Vec::new();
    for seed in SEEDS {
        let Some(gpu) = gpu(seed) else { return };
        for case in &cases {
            match case.error(&gpu) {
                Ok(error) if error <= case.allowed => {}
                Ok(error) => wrong.push(format!("{} under {seed}: {error:.1e} of {:.1e}", case.name, case.allowed)),
                Err(fault) => wrong.push(format!("{} under {seed}: {fault}", case.name)),
            }
        }
    }
    wrong.sort();
    let first = wrong.iter().take(12).map(String::as_str).collect::<Vec<_>>().join("\n");
    assert!(wrong.is_empty(), "{} wrong, the first of them:\n{first}", wrong.len());
}

#[test]
fn products_are_the_oracle_s() {
    hold("product");
}

#[test]
fn affine_products_are_the_oracle_s() {
    hold("affine");
}

#[test]
fn normed_products_are_the_oracle_s() {
    hold("normed");
}

#[test]
fn rows_are_the_oracle_s() {
    hold("rows");
}

#[test]
fn paged_attention_is_the_oracle_s() {
    hold("paged");
}

#[test]
fn copied_blocks_are_the_oracle_s() {
    hold("copied");
}

#[test]
fn tokens_are_the_oracle_s() {
    hold("tokens");
}

#[test]
fn attention_over_spans_is_the_oracle_s() {
    hold("attention Looking");
}

#[test]
fn filters_are_the_oracle_s() {
    hold("filters");
}

#[test]
fn convolutions_are_the_oracle_s() {
    hold("convolution");
    hold("block");
}

#[test]
fn small_networks_say_what_the_oracle_says() {
    for ((family, bytes), seed) in decoders().zip(SEEDS.into_iter().cycle()) {
        let truth = logits(&bytes, Scalar::new(LIMITS)).expect("it loads");
        let Some(device) = shim(seed, LIMITS) else { return };
        let got = logits(&bytes, device).expect("it loads");
        assert!(difference(&truth, &got) < 2e-3, "{family}: {}", difference(&truth, &got));
    }
}

/// Compares the small encoders whose names begin with `name`, under some schedules.
fn hold_encoders(name: &str, seeds: &[u64]) {
    let networks: Vec<_> = ENCODERS.into_iter().filter(|network| network.name.starts_with(name)).collect();
    assert!(!networks.is_empty(), "no encoder is called {name:?}");
    for network in networks {
        for seed in seeds {
            let Some(device) = shim(*seed, LIMITS) else { return };
            let check = network.check(device).expect("it loads");
            assert!(check.holds(), "{check:?} under {seed}");
        }
    }
}

#[test]
fn a_small_sentence_encoder_says_what_the_oracle_says() {
    hold_encoders("bert", &SEEDS);
}

#[test]
fn a_small_clip_says_what_the_oracle_says() {
    hold_encoders("CLIP", &SEEDS);
}

#[test]
fn a_small_classifier_says_what_the_oracle_says() {
    hold_encoders("EfficientNet", &SEEDS[2..]);
}

#[test]
fn a_small_whisper_says_what_the_oracle_says() {
    hold_encoders("Whisper", &SEEDS[2..]);
}
