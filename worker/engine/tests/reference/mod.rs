//! What llama.cpp's F32 run says of a text, and how far a run of ours is from it.

use std::path::Path;

use engine::backend::Activations;
use engine::eval;

/// One text under the reference.
pub(crate) struct Reference {
    /// The text, one token longer than there are positions.
    pub(crate) tokens: Vec<u32>,
    /// Log-probability of the true next token, a position.
    pub(crate) next: Vec<f32>,
    /// Log-probabilities of the likeliest tokens, (positions, listed), falling.
    pub(crate) listed: Vec<f32>,
    /// Their ids.
    pub(crate) ids: Vec<u32>,
}

/// How far a run is from the reference.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Distance {
    /// Of our run.
    pub(crate) perplexity: f64,
    /// Of the reference.
    pub(crate) theirs: f64,
    /// Share of positions with the same likeliest token.
    pub(crate) same_top: f64,
    /// Mean divergence over the listed tokens and the rest together, nats.
    pub(crate) divergence: f64,
}

impl Reference {
    /// Runs the model over the text.
    pub(crate) fn distance(&self, model: &Path, activations: Activations) -> Distance {
        self.distance_after(model, activations, self.tokens.len())
    }

    /// The same where only the first `prompt` tokens are a prompt's.
    pub(crate) fn distance_after(&self, model: &Path, activations: Activations, prompt: usize) -> Distance {
        let positions = self.next.len();
        let listed = self.listed.len() / positions;
        let (mut same, mut nll, mut divergences) = (0usize, 0.0f64, 0.0f64);
        eval::logits(model, (&self.tokens[..positions], prompt), activations, |position, logits| {
            let (top, total) = read(logits);
            let at = position * listed..(position + 1) * listed;
            same += usize::from(top == self.ids[at.start]);
            nll += total - f64::from(logits[self.tokens[position + 1] as usize]);
            divergences += divergence(&self.listed[at.clone()], &self.ids[at], logits, total);
        })
        .unwrap();
        let positions = positions as f64;
        let theirs = -self.next.iter().map(|&next| f64::from(next)).sum::<f64>() / positions;
        Distance {
            perplexity: (nll / positions).exp(),
            theirs: theirs.exp(),
            same_top: same as f64 / positions,
            divergence: divergences / positions,
        }
    }
}

/// The likeliest token, the lower id of equal ones, and the logarithm of the sum of exponentials.
fn read(logits: &[f32]) -> (u32, f64) {
    let mut top = 0;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > logits[top] {
            top = id;
        }
    }
    let peak = f64::from(logits[top]);
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - peak).exp()).sum();
    (u32::try_from(top).unwrap(), peak + sum.ln())
}

/// Divergence of `logits` from the reference over the listed tokens and all others together.
fn divergence(listed: &[f32], ids: &[u32], logits: &[f32], total: f64) -> f64 {
    let (mut all, mut ours, mut sum) = (0.0, 0.0, 0.0);
    for (&p, &id) in listed.iter().zip(ids) {
        let (p, q) = (f64::from(p), f64::from(logits[id as usize]) - total);
        all += p.exp();
        ours += q.exp();
        sum += p.exp() * (p - q);
    }
    let rest = |listed: f64| (1.0 - listed).max(1e-9);
    sum + rest(all) * (rest(all) / rest(ours)).ln()
}
