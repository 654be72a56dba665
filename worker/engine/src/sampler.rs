//! Logits to token: repetition penalty, mask, temperature, top-k, top-p, min-p, draw, in this order.
//!
//! Weights are fixed-point integers, so that sums do not depend on the order of addition: equal logits give the equal
//! token wherever they were computed, and a device may add in parallel. How a logit becomes a weight is fixed to the
//! last rounding, so that `kernels/sample.cu` chooses the same tokens. The draw walks the kept tokens by ascending
//! token id. NaN counts as the least likely of the allowed tokens; equal logits are ranked by token id, lower first.

mod philox;
#[cfg(test)]
mod tests;

use crate::plan::{Output, TokenId};
use std::cmp::Ordering;

/// How a token is chosen from logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the smallest set of tokens whose probabilities reach this; 1 keeps all.
    pub top_p: f32,
    /// Keep this many of the likeliest tokens; `None` keeps all.
    pub top_k: Option<std::num::NonZeroU32>,
    /// Drop tokens less likely than this times the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divide positive and multiply negative logits of tokens seen before; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Key of the random numbers, together with the position.
    pub seed: u64,
}

/// Fraction bits of a weight: the likeliest token weighs 2^40, so the sum over any vocabulary fits 64 bits, and what
/// is less than 10^-12 times as likely weighs nothing.
const WEIGHT_BITS: u32 = 40;

/// 2^x for x within half of 0, by powers of x, to 2 parts in 10^7: the polynomial of the least relative error that
/// begins as the exact series does, its terms from the last.
const POWER: [f32; 6] = [0.001_330_060_5, 0.009_669_691, 0.055_505_585, 0.240_222_83, std::f32::consts::LN_2, 1.0];

/// Added to a number and taken off again, this rounds it to a whole one, which is then in the last bits of the sum.
const ROUNDER: f32 = 12_582_912.0;

/// Kept tokens sorted in one go when a cut by probability looks for its end; doubled until it is found.
const SORTED_FIRST: usize = 64;

/// A token that may be drawn.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: TokenId,
    /// Before weighing: as the model gave it, masked and penalised.
    logit: f32,
    /// Fixed point, see [`WEIGHT_BITS`].
    weight: u64,
}

/// Chooses tokens; holds the memory for it, so that a call allocates nothing once it has seen the vocabulary.
#[derive(Debug, Default)]
pub struct Sampler {
    candidates: Vec<Candidate>,
    /// One bit a token: already penalised in this call. All zero between calls.
    penalised: Vec<u64>,
}

impl Sampling {
    /// The likeliest token each time.
    #[must_use]
    pub const fn greedy() -> Self {
        Self { temperature: 0.0, top_p: 1.0, top_k: None, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }

    /// Whether the choice looks at the tokens before.
    #[must_use]
    pub fn looks_back(&self) -> bool {
        self.repetition_penalty != 1.0
    }

    /// Whether every number lies where it has a meaning.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let penalty = self.repetition_penalty;
        (0.0..f32::INFINITY).contains(&self.temperature)
            && (0.0..=1.0).contains(&self.top_p)
            && (0.0..=1.0).contains(&self.min_p)
            && (f32::MIN_POSITIVE..f32::INFINITY).contains(&penalty)
    }
}

impl Sampler {
    /// Chooses the token of one output. `logits` has one entry a token of the vocabulary and is used up as scratch;
    /// `history` is the output's range of the plan's history.
    ///
    /// # Panics
    /// When the vocabulary is empty, or a token of the history lies outside of it.
    pub fn sample(&mut self, logits: &mut [f32], output: &Output, history: &[TokenId]) -> TokenId {
        let sampling = &output.sampling;
        for logit in logits.iter_mut() {
            *logit = finite(*logit);
        }
        if sampling.looks_back() {
            self.penalise(logits, sampling.repetition_penalty, history);
        }
        if let Some(mask) = output.mask.as_deref() {
            forbid(logits, mask);
        }
        let best = likeliest(logits);
        let greatest = logits[best as usize];
        let is_random = sampling.temperature > 0.0;
        // A mask that forbids everything is the caller's mistake, and a choice is due all the same.
        if !is_random || greatest == f32::NEG_INFINITY {
            return best;
        }
        let factor = octaves_per_logit(sampling.temperature);
        let weigh = |logit: f32| weight((logit - greatest) * factor);
        let random = philox::bits(sampling.seed, output.position);
        match sampling.top_k {
            Some(k) => self.keep_top(logits, k.get() as usize, weigh),
            None if sampling.top_p < 1.0 || sampling.min_p > 0.0 => self.keep_weighty(logits, weigh),
            None => return draw_from_all(logits, random, weigh),
        }
        self.cut_top_p(sampling.top_p);
        self.cut_min_p(sampling.min_p);
        self.draw(random)
    }

    /// Penalises each token of the history once, however often it occurs.
    fn penalise(&mut self, logits: &mut [f32], penalty: f32, history: &[TokenId]) {
        self.penalised.resize(logits.len().div_ceil(64), 0);
        for &token in history {
            let (word, bit) = (token as usize / 64, 1 << (token % 64));
            if self.penalised[word] & bit == 0 {
                self.penalised[word] |= bit;
                let logit = &mut logits[token as usize];
                *logit = finite(if *logit > 0.0 { *logit / penalty } else { *logit * penalty });
            }
        }
        for &token in history {
            self.penalised[token as usize / 64] = 0;
        }
    }

    /// Keeps the `k` likeliest tokens. The buffer holds at most twice as many: each time it is full, the lower half is
    /// dropped and the bar raised, so nearly all of a vocabulary costs one comparison.
    fn keep_top(&mut self, logits: &[f32], k: usize, weigh: impl Fn(f32) -> u64) {
        let kept = &mut self.candidates;
        kept.clear();
        let full = k.saturating_mul(2).min(logits.len());
        let mut bar = f32::NEG_INFINITY;
        for (token, &logit) in (0..).zip(logits) {
            // At the bar itself a later token loses to those kept: they have lower ids.
            if logit > bar {
                kept.push(Candidate { token, logit, weight: 0 });
                if kept.len() == full && full > k {
                    kept.select_nth_unstable_by(k - 1, by_rank);
                    kept.truncate(k);
                    bar = kept[k - 1].logit;
                }
            }
        }
        if kept.len() > k {
            kept.select_nth_unstable_by(k - 1, by_rank);
            kept.truncate(k);
        }
        for candidate in kept {
            candidate.weight = weigh(candidate.logit);
        }
    }

    /// Keeps every token that weighs anything.
    fn keep_weighty(&mut self, logits: &[f32], weigh: impl Fn(f32) -> u64) {
        self.candidates.clear();
        let weighed = (0..).zip(logits).map(|(token, &logit)| Candidate { token, logit, weight: weigh(logit) });
        self.candidates.extend(weighed.filter(|candidate| candidate.weight > 0));
    }

    /// Keeps the shortest run of the likeliest tokens that together weigh at least `top_p` of all kept; at least one.
    fn cut_top_p(&mut self, top_p: f32) {
        if top_p >= 1.0 {
            return;
        }
        let kept = &mut self.candidates;
        let total: u64 = kept.iter().map(|candidate| candidate.weight).sum();
        let wanted = (total as f64 * f64::from(top_p)) as u64;
        let (mut sorted, mut sum) = (0, 0);
        while sorted < kept.len() {
            let rest = &mut kept[sorted..];
            let run = sorted.max(SORTED_FIRST).min(rest.len());
            if run < rest.len() {
                rest.select_nth_unstable_by(run - 1, by_rank);
            }
            rest[..run].sort_unstable_by(by_rank);
            for candidate in &rest[..run] {
                sorted += 1;
                sum += candidate.weight;
                if sum >= wanted {
                    kept.truncate(sorted);
                    return;
                }
            }
        }
    }

    /// Drops tokens that weigh less than `min_p` of the likeliest.
    fn cut_min_p(&mut self, min_p: f32) {
        let least = (min_p.min(1.0) * (1u64 << WEIGHT_BITS) as f32) as u64;
        self.candidates.retain(|candidate| candidate.weight >= least);
    }

    /// Draws one of the kept tokens by weight.
    fn draw(&mut self, random: u64) -> TokenId {
        self.candidates.sort_unstable_by_key(|candidate| candidate.token);
        let total = self.candidates.iter().map(|candidate| candidate.weight).sum();
        let mut left = below(total, random);
        for candidate in &self.candidates {
            match left.checked_sub(candidate.weight) {
                Some(rest) => left = rest,
                None => return candidate.token,
            }
        }
        unreachable!("the likeliest token is always kept, so a number below the total falls on a token")
    }
}

/// Likelier first; of equals the lower id.
fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.token.cmp(&b.token))
}

/// The logit as a number that can be compared: NaN becomes the lowest, and there is one zero.
fn finite(logit: f32) -> f32 {
    if logit.is_nan() { f32::MIN } else { logit.clamp(f32::MIN, f32::MAX) + 0.0 }
}

/// Puts the tokens that the mask does not allow below every finite logit.
fn forbid(logits: &mut [f32], mask: &[u32]) {
    for (word, chunk) in logits.chunks_mut(32).enumerate() {
        let allowed = mask.get(word).copied().unwrap_or(0);
        if allowed == u32::MAX {
            continue;
        }
        for (bit, logit) in chunk.iter_mut().enumerate() {
            if allowed >> bit & 1 == 0 {
                *logit = f32::NEG_INFINITY;
            }
        }
    }
}

/// The greatest logit's token, of equals the lowest. All logits are comparable here.
fn likeliest(logits: &[f32]) -> TokenId {
    assert!(!logits.is_empty(), "a vocabulary has tokens");
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let token = logits.iter().position(|&logit| logit == greatest);
    token.expect("the greatest is one of them") as TokenId
}

/// Doublings of the probability for each 1 of a logit; finite, so that nothing times it is nothing.
fn octaves_per_logit(temperature: f32) -> f32 {
    (std::f32::consts::LOG2_E / temperature).min(f32::MAX)
}

/// Weight of a token that is `2^octaves` times as likely as the likeliest, which is at 0. No step may be fused with
/// another: a device rounds where this rounds.
fn weight(octaves: f32) -> u64 {
    if octaves.is_nan() || octaves < -(WEIGHT_BITS as f32) {
        return 0;
    }
    let rounded = octaves + ROUNDER;
    let rest = octaves - (rounded - ROUNDER);
    let power = POWER.iter().fold(0.0, |sum, term| sum * rest + term);
    // The power times 2^whole as the bits of a float, then shifted to fixed point.
    let bits = power.to_bits().wrapping_add(rounded.to_bits() << 23);
    let mantissa = u64::from(bits & 0x7f_ffff | 0x80_0000);
    (mantissa << (WEIGHT_BITS - 23)) >> (127 - (bits >> 23))
}

/// A number in `0..total`, uniform up to 2^-64 times the total.
fn below(total: u64, random: u64) -> u64 {
    ((u128::from(random) * u128::from(total)) >> 64) as u64
}

/// Draws from the whole vocabulary, its weights left nowhere but in `logits`.
fn draw_from_all(logits: &mut [f32], random: u64, weigh: impl Fn(f32) -> u64) -> TokenId {
    let mut total = 0;
    for logit in logits.iter_mut() {
        let weight = weigh(*logit);
        total += weight;
        // A weight has at most 24 significant bits, as it was made from an f32: this is exact.
        *logit = weight as f32;
    }
    let mut left = below(total, random);
    for (token, &weight) in (0..).zip(logits.iter()) {
        match left.checked_sub(weight as u64) {
            Some(rest) => left = rest,
            None => return token,
        }
    }
    unreachable!("the weights add up to the total, so a number below it falls on a token")
}
