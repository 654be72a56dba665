use super::*;
use crate::plan::SequenceId;
use proptest::prelude::*;
use std::num::NonZeroU32;
use std::sync::Arc;

/// Temperature 1, nothing cut.
fn warm() -> Sampling {
    Sampling { temperature: 1.0, ..Sampling::greedy() }
}

fn output(sampling: Sampling, position: u32) -> Output {
    Output { sequence: SequenceId(0), row: 0, position, sampling, history: 0..0, mask: None }
}

fn mask(vocabulary: usize, allowed: &[TokenId]) -> Option<Arc<[u32]>> {
    let mut words = vec![0u32; vocabulary.div_ceil(32)];
    for token in allowed {
        words[*token as usize / 32] |= 1 << (token % 32);
    }
    Some(words.into())
}

/// How often each token is drawn over `draws` positions.
fn counts(sampling: Sampling, logits: &[f32], draws: u32) -> Vec<u32> {
    let mut sampler = Sampler::default();
    let mut counts = vec![0; logits.len()];
    for position in 0..draws {
        let token = sampler.sample(&mut logits.to_vec(), &output(sampling, position), &[]);
        counts[token as usize] += 1;
    }
    counts
}

/// Logits of these probabilities.
fn logits(probabilities: &[f32]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln()).collect()
}

/// Asserts that the draws follow the probabilities, to five standard deviations.
fn check_distribution(sampling: Sampling, logits: &[f32], expected: &[f64]) {
    let draws = 20_000;
    for seed in [1, 2, u64::MAX] {
        let counts = counts(Sampling { seed, ..sampling }, logits, draws);
        for (token, (&count, &p)) in counts.iter().zip(expected).enumerate() {
            let mean = f64::from(draws) * p;
            let slack = 5.0 * (mean * (1.0 - p)).sqrt();
            let far = (f64::from(count) - mean).abs();
            assert!(far <= slack, "seed {seed}, token {token}: {count} draws, expected {mean} +- {slack}");
        }
    }
}

#[test]
fn greedy_takes_the_greatest_and_of_equals_the_first() {
    let mut sampler = Sampler::default();
    let greedy = output(Sampling::greedy(), 0);
    assert_eq!(sampler.sample(&mut [0.0, 3.0, 1.0, 3.0], &greedy, &[]), 1);
    assert_eq!(sampler.sample(&mut [-0.0, 0.0], &greedy, &[]), 0);
    assert_eq!(sampler.sample(&mut [-5.0], &greedy, &[]), 0);
}

#[test]
fn draws_follow_the_probabilities() {
    check_distribution(warm(), &logits(&[0.5, 0.3, 0.15, 0.05]), &[0.5, 0.3, 0.15, 0.05]);
}

#[test]
fn temperature_flattens_and_sharpens() {
    let p = [0.8, 0.2];
    let hot = Sampling { temperature: 2.0, ..warm() };
    let cold = Sampling { temperature: 0.5, ..warm() };
    // The probabilities to the power of 1/temperature, normalised.
    check_distribution(hot, &logits(&p), &[2.0 / 3.0, 1.0 / 3.0]);
    check_distribution(cold, &logits(&p), &[16.0 / 17.0, 1.0 / 17.0]);
}

#[test]
fn top_k_keeps_the_likeliest() {
    let top = |k| Sampling { top_k: NonZeroU32::new(k), ..warm() };
    let logits = logits(&[0.1, 0.4, 0.2, 0.3]);
    check_distribution(top(2), &logits, &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
    check_distribution(top(1), &logits, &[0.0, 1.0, 0.0, 0.0]);
    check_distribution(top(9), &logits, &[0.1, 0.4, 0.2, 0.3]);
}

#[test]
fn top_k_prefers_the_lower_id_of_equals() {
    let sampling = Sampling { top_k: NonZeroU32::new(3), ..warm() };
    let counts = counts(sampling, &[1.0; 50], 500);
    assert!(counts[..3].iter().all(|&count| count > 0));
    assert_eq!(counts[..3].iter().sum::<u32>(), 500);
}

#[test]
fn top_p_keeps_the_shortest_run_that_reaches_it() {
    let top = |top_p| Sampling { top_p, ..warm() };
    let logits = logits(&[0.1, 0.4, 0.2, 0.3]);
    check_distribution(top(0.65), &logits, &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
    check_distribution(top(0.75), &logits, &[0.0, 4.0 / 9.0, 2.0 / 9.0, 3.0 / 9.0]);
    check_distribution(top(0.0), &logits, &[0.0, 1.0, 0.0, 0.0]);
}

#[test]
fn top_p_counts_what_top_k_left() {
    // Of 0.4 and 0.3 alone the first has 0.57, which reaches a half; of all four it would not.
    let sampling = Sampling { top_k: NonZeroU32::new(2), top_p: 0.5, ..warm() };
    check_distribution(sampling, &logits(&[0.1, 0.4, 0.2, 0.3]), &[0.0, 1.0, 0.0, 0.0]);
}

#[test]
fn min_p_is_measured_by_the_likeliest() {
    let min = |min_p| Sampling { min_p, ..warm() };
    let logits = logits(&[0.1, 0.4, 0.2, 0.3]);
    check_distribution(min(0.6), &logits, &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
    check_distribution(min(0.4), &logits, &[0.0, 4.0 / 9.0, 2.0 / 9.0, 3.0 / 9.0]);
    check_distribution(min(1.0), &logits, &[0.0, 1.0, 0.0, 0.0]);
}

#[test]
fn repetition_is_penalised_once_a_token() {
    let mut sampler = Sampler::default();
    let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::greedy() };
    let output = output(sampling, 0);
    // 3/2 is still greater than 1, 3/4 would not be.
    assert_eq!(sampler.sample(&mut [1.0, 3.0], &output, &[1, 1, 1]), 1);
    assert_eq!(sampler.sample(&mut [2.0, 3.0], &output, &[1]), 0);
    assert_eq!(sampler.sample(&mut [-1.5, -1.0], &output, &[1]), 0);
    assert_eq!(sampler.sample(&mut [2.0, 3.0], &output, &[]), 1, "nothing is left over from calls before");
}

#[test]
fn the_mask_holds_against_every_logit() {
    let mut sampler = Sampler::default();
    for sampling in [Sampling::greedy(), warm(), Sampling { top_k: NonZeroU32::new(5), ..warm() }] {
        for fill in [9.0, f32::INFINITY, f32::NAN, f32::NEG_INFINITY] {
            let mut logits = vec![fill; 70];
            logits[66] = f32::NAN;
            let output = Output { mask: mask(70, &[66]), ..output(sampling, 0) };
            assert_eq!(sampler.sample(&mut logits, &output, &[66]), 66);
        }
    }
    let output = Output { mask: mask(70, &[]), ..output(warm(), 0) };
    assert_eq!(sampler.sample(&mut [1.0; 70], &output, &[]), 0, "nothing allowed is no panic");
}

#[test]
fn numbers_without_meaning_do_not_panic() {
    let mut sampler = Sampler::default();
    let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -1.0, 0.0, f32::MIN_POSITIVE / 2.0, 1.0];
    for (a, b) in odd.iter().flat_map(|a| odd.iter().map(move |b| (*a, *b))) {
        for top_k in [None, NonZeroU32::new(2)] {
            let sampling = Sampling { temperature: a, top_p: b, top_k, min_p: a, repetition_penalty: b, seed: 3 };
            for logits in [[a, b, 0.0], [f32::NAN; 3], [f32::MIN, f32::MAX, b]] {
                let token = sampler.sample(&mut logits.to_vec(), &output(sampling, 1), &[0, 1, 2]);
                assert!(token < 3);
            }
        }
    }
    let nan = sampler.sample(&mut [f32::NAN, -7.0, f32::NAN], &output(Sampling::greedy(), 0), &[]);
    assert_eq!(nan, 1, "NaN is the least likely");
}

#[test]
fn seed_and_position_alone_decide() {
    let sampling = Sampling { seed: 7, ..warm() };
    let flat = [0.0; 1000];
    let draw = |sampler: &mut Sampler, seed, position| {
        sampler.sample(&mut flat.to_vec(), &output(Sampling { seed, ..sampling }, position), &[])
    };
    let mut used = Sampler::default();
    let first: Vec<_> = (0..50).map(|position| draw(&mut used, 7, position)).collect();
    let again: Vec<_> = (0..50).rev().map(|position| draw(&mut Sampler::default(), 7, position)).collect();
    assert!(first.iter().eq(again.iter().rev()));
    let other: Vec<_> = (0..50).map(|position| draw(&mut used, 8, position)).collect();
    assert_ne!(first, other);
}

#[test]
fn weights_are_powers_of_two() {
    assert_eq!(weight(0.0), 1 << 40);
    assert_eq!(weight(-1.0), 1 << 39);
    assert_eq!(weight(-40.0), 1);
    assert_eq!(weight(-40.1), 0);
    assert_eq!(weight(f32::NEG_INFINITY), 0);
    assert_eq!(weight(f32::NAN), 0, "a forbidden token at an infinite temperature");
    let mut before = 1 << 40;
    for step in 0..400_000u32 {
        let octaves = -(step as f32) / 10_000.0;
        let (exact, weight) = (f64::from(octaves).exp2() * (1u64 << 40) as f64, weight(octaves));
        assert!((weight as f64 - exact).abs() <= 1.0 + exact * 2e-7, "2^{octaves}: {weight}, expected {exact}");
        assert!(weight <= before, "2^{octaves} weighs more than what is likelier");
        before = weight;
    }
}

/// The kernel's own words of the constants: equal or the choices are not.
#[test]
fn the_kernel_has_the_same_polynomial() {
    let kernel = include_str!("../../kernels/sample.cu");
    for term in POWER.iter().filter(|&&term| term != 1.0) {
        assert!(kernel.contains(&format!("{term}f")), "{term} is not in sample.cu");
    }
}

/// What the knobs mean, by a full sort.
fn naive_kept(logits: &[f32], sampling: &Sampling) -> Vec<TokenId> {
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let factor = octaves_per_logit(sampling.temperature);
    let mut ranked: Vec<(TokenId, f32, u64)> =
        (0..).zip(logits).map(|(token, &logit)| (token, logit, weight((logit - greatest) * factor))).collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if let Some(k) = sampling.top_k {
        ranked.truncate(k.get() as usize);
    }
    let total: u64 = ranked.iter().map(|entry| entry.2).sum();
    let wanted = (total as f64 * f64::from(sampling.top_p)) as u64;
    let mut sum = 0;
    let run = ranked.iter().position(|entry| {
        sum += entry.2;
        sum >= wanted
    });
    ranked.truncate(run.map_or(ranked.len(), |last| last + 1));
    let least = (sampling.min_p * (1u64 << WEIGHT_BITS) as f32) as u64;
    let mut kept: Vec<TokenId> = ranked.iter().filter(|e| e.2 > 0 && e.2 >= least).map(|e| e.0).collect();
    kept.sort_unstable();
    kept
}

proptest! {
    #[test]
    fn selection_equals_a_full_sort(
        // Few distinct values, so that ties are common.
        logits in prop::collection::vec((-40i8..40).prop_map(|n| f32::from(n) / 4.0), 1..600),
        k in 0u32..80, top_p in 0.5f32..1.0, min_p in 0.0f32..0.2, seed: u64,
    ) {
        let sampling = Sampling { top_k: NonZeroU32::new(k), top_p, min_p, seed, ..warm() };
        let mut sampler = Sampler::default();
        let token = sampler.sample(&mut logits.clone(), &output(sampling, 5), &[]);
        let kept: Vec<TokenId> = sampler.candidates.iter().filter(|c| c.weight > 0).map(|c| c.token).collect();
        prop_assert_eq!(&kept, &naive_kept(&logits, &sampling));
        prop_assert!(kept.contains(&token));
    }
}
