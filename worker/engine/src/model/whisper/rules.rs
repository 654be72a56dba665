//! Which token may follow: Whisper's rules of suppressed tokens and of times, and the choice among those left.
//!
//! As CTranslate2 applies them (`ApplyTimestampRules`), after OpenAI's decoding.py.

use super::config::Config;
use super::vocabulary::Controls;
use crate::plan::TokenId;

/// A text begins within its first second.
const FIRST_TIME_MAX: TokenId = 50;
/// Less likely tokens, by the logarithm of their share beside the best, cannot be seen in a sum of f32.
const NEGLIGIBLE: f32 = -25.0;

/// The rules of a model.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    controls: Controls,
    never: Vec<TokenId>,
    never_first: Vec<TokenId>,
}

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Choice {
    pub(super) token: TokenId,
    /// Logarithm of its probability among the tokens allowed.
    pub(super) log_probability: f32,
}

/// How to choose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Choose {
    /// The likeliest.
    Best,
    /// By chance, with a number of 0 to 1 drawn.
    Drawn {
        /// Divides the logits.
        temperature: f32,
        /// The number.
        number: f32,
    },
}

impl Rules {
    pub(super) fn new(config: &Config, controls: &Controls) -> Rules {
        let (never, never_first) = (config.suppress_ids.clone(), config.suppress_ids_begin.clone());
        Rules { controls: controls.clone(), never, never_first }
    }

    /// Probability of silence, by the logits that follow the start of the transcript.
    pub(super) fn no_speech(&self, logits: &[f32]) -> f32 {
        (logits[self.controls.no_speech as usize] - log_sum(logits)).exp()
    }

    /// Bars the tokens that may not follow `said`, which begins after the prompt.
    pub(super) fn bar(&self, said: &[TokenId], logits: &mut [f32]) {
        for token in &self.never {
            logits[*token as usize] = f32::NEG_INFINITY;
        }
        if said.is_empty() {
            for token in &self.never_first {
                logits[*token as usize] = f32::NEG_INFINITY;
            }
        }
        self.bar_times(said, logits);
    }

    /// Times come in pairs, save the last before the end, and never go back.
    fn bar_times(&self, said: &[TokenId], logits: &mut [f32]) {
        let (end, times) = (self.controls.end as usize, self.controls.times as usize);
        logits[self.controls.no_times as usize] = f32::NEG_INFINITY;
        let Some((last, before)) = said.split_last() else {
            logits[..times].fill(f32::NEG_INFINITY);
            logits[times + FIRST_TIME_MAX as usize + 1..].fill(f32::NEG_INFINITY);
            return;
        };
        if self.is_time(*last) {
            if before.last().is_none_or(|token| self.is_time(*token)) {
                logits[times..].fill(f32::NEG_INFINITY);
                return;
            }
            logits[..end].fill(f32::NEG_INFINITY);
            logits[times..*last as usize].fill(f32::NEG_INFINITY);
        } else if let Some(latest) = before.iter().rev().find(|token| self.is_time(**token)) {
            logits[times..=*latest as usize].fill(f32::NEG_INFINITY);
        }
        let (text, time) = logits.split_at(times);
        if log_sum(time) > greatest(text) {
            logits[..times].fill(f32::NEG_INFINITY);
        }
    }

    /// Whether a token is a time.
    pub(super) fn is_time(&self, token: TokenId) -> bool {
        token >= self.controls.times
    }

    /// Chooses among what is not barred; the end where all is.
    pub(super) fn choose(&self, logits: &[f32], choose: Choose) -> Choice {
        let sum = log_sum(logits);
        let token = match choose {
            Choose::Best => best(logits),
            Choose::Drawn { temperature, number } => drawn(logits, temperature, number),
        };
        let token = token.unwrap_or(self.controls.end as usize);
        Choice { token: token as TokenId, log_probability: logits[token] - sum }
    }
}

/// The first of the greatest.
fn best(logits: &[f32]) -> Option<usize> {
    let top = greatest(logits);
    logits.iter().position(|logit| *logit == top).filter(|_| top > f32::NEG_INFINITY)
}

fn drawn(logits: &[f32], temperature: f32, number: f32) -> Option<usize> {
    let top = logits[best(logits)?];
    let share = |logit: f32| {
        let below = (logit - top) / temperature;
        if below > NEGLIGIBLE { below.exp() } else { 0.0 }
    };
    let total: f64 = logits.iter().map(|logit| f64::from(share(*logit))).sum();
    let mut left = f64::from(number) * total;
    let mut last = None;
    for (token, logit) in logits.iter().enumerate() {
        let share = f64::from(share(*logit));
        if share > 0.0 {
            last = Some(token);
            left -= share;
            if left < 0.0 {
                break;
            }
        }
    }
    last
}

/// The greatest number: some side by side, since one after the other is slow.
fn greatest(numbers: &[f32]) -> f32 {
    const BESIDE: usize = 16;
    let greater = |a: f32, b: f32| if b > a { b } else { a };
    let (whole, rest) = numbers.as_chunks::<BESIDE>();
    let mut found = [f32::NEG_INFINITY; BESIDE];
    for numbers in whole {
        found.iter_mut().zip(numbers).for_each(|(found, number)| *found = greater(*found, *number));
    }
    found.iter().chain(rest).copied().fold(f32::NEG_INFINITY, greater)
}

/// Logarithm of the sum of exponentials.
pub(super) fn log_sum(logits: &[f32]) -> f32 {
    let top = greatest(logits);
    if !top.is_finite() {
        return top;
    }
    let share = |logit: &f32| if logit - top > NEGLIGIBLE { (logit - top).exp() } else { 0.0 };
    top + logits.iter().map(share).sum::<f32>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::whisper::{config, vocabulary};

    const TIMES: TokenId = 50363;

    fn rules() -> Rules {
        Rules::new(&config::tiny(), &vocabulary::controls())
    }

    /// What is allowed after `said`, text being likelier than times.
    fn allowed(said: &[TokenId]) -> Vec<bool> {
        let mut logits = vec![0.0; 51864];
        logits[..TIMES as usize].fill(20.0);
        rules().bar(said, &mut logits);
        logits.iter().map(|logit| logit.is_finite()).collect()
    }

    #[test]
    fn a_text_begins_with_a_time_of_its_first_second() {
        let allowed = allowed(&[]);
        assert!(!allowed[..TIMES as usize].contains(&true));
        assert!(allowed[TIMES as usize..=TIMES as usize + 50].iter().all(|allowed| *allowed));
        assert!(!allowed[TIMES as usize + 51..].contains(&true));
    }

    #[test]
    fn two_times_are_followed_by_text() {
        for said in [&[TIMES + 3][..], &[TIMES, 11, TIMES + 9, TIMES + 9]] {
            let allowed = allowed(said);
            assert!(allowed[11] && allowed[50256]);
            assert!(!allowed[TIMES as usize..].contains(&true));
        }
    }

    #[test]
    fn a_single_time_is_followed_by_a_time_or_the_end() {
        let allowed = allowed(&[TIMES, 11, TIMES + 9]);
        assert!(!allowed[..50256].contains(&true));
        assert!(allowed[50256] && !allowed[TIMES as usize + 8] && allowed[TIMES as usize + 9]);
    }

    #[test]
    fn times_grow_and_suppressed_tokens_never_come() {
        let allowed = allowed(&[TIMES + 7, 11, 12]);
        assert!(allowed[12] && !allowed[TIMES as usize + 7] && allowed[TIMES as usize + 8]);
        assert!(!allowed[1] && !allowed[50257] && !allowed[50362]);
        assert!(allowed[220]);
    }

    #[test]
    fn times_that_are_likelier_together_than_any_text_win() {
        let mut logits = vec![0.0; 51864];
        logits[11] = 5.0;
        rules().bar(&[TIMES, 11], &mut logits);
        assert!(logits[11] == f32::NEG_INFINITY && logits[51863] == 0.0, "e^5 is less than 1,500");
        let mut logits = vec![0.0; 51864];
        logits[11] = 8.0;
        rules().bar(&[TIMES, 11], &mut logits);
        assert!(logits[11] == 8.0);
    }

    #[test]
    fn draws_follow_the_shares() {
        let logits = [f32::NEG_INFINITY, 1.0f32.ln(), 3.0f32.ln(), f32::NEG_INFINITY];
        let drawn = |number| drawn(&logits, 1.0, number);
        assert_eq!([drawn(0.0), drawn(0.24), drawn(0.26), drawn(0.999_999)], [Some(1), Some(1), Some(2), Some(2)]);
        let choice = rules().choose(&logits, Choose::Best);
        assert_eq!(choice.token, 2);
        assert!((choice.log_probability - 0.75f32.ln()).abs() < 1e-6);
        assert_eq!(super::drawn(&[f32::NEG_INFINITY; 3], 1.0, 0.5), None);
    }
}
