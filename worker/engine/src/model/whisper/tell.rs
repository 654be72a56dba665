//! Writes down windows: greedily, then, where that repeats itself or is unsure, by chance with rising temperature, one
//! in each turn.
//!
//! The thresholds are OpenAI's, as faster-whisper has them (`generate_with_fallback`).

use std::sync::atomic::AtomicU64;

use super::decoder::{Decoder, Passage, Want};
use super::hands::Hands;
use super::rules::{Choice, Choose, Rules};
use super::vocabulary::Vocabulary;
use crate::Error;
use crate::backend::dense::Dense;
use crate::encode::{InputKey, Wanted};
use crate::plan::TokenId;

/// Tried in turn.
const TEMPERATURES: [f32; 6] = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0];
/// Texts told by chance, of which the likeliest counts.
pub(super) const CANDIDATES: usize = 5;
/// A text that compresses better repeats itself.
const COMPRESSION_MAX: f64 = 2.4;
/// A text is unsure when its tokens are on average less likely, as a logarithm.
const LIKELIHOOD_MIN: f32 = -1.0;
/// A window is silent when this probability of silence is exceeded and its text is unsure.
const SILENCE_MIN: f32 = 0.6;
/// How hard Python's zlib tries by default.
const ZLIB_LEVEL: u8 = 6;

/// A window to be told.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub(super) key: InputKey,
    /// Where the decoder keeps it.
    pub(super) slot: usize,
    /// How often it was told before: which temperature's turn it is.
    pub(super) trial: usize,
    pub(super) prompt: Vec<TokenId>,
    /// Which token of the prompt starts the transcript.
    pub(super) start: usize,
    /// What chance begins from.
    pub(super) seed: u64,
}

/// A window told.
#[derive(Clone, Debug, Default)]
pub(super) struct Telling {
    pub(super) tokens: Vec<TokenId>,
    pub(super) temperature: f32,
    /// Mean logarithm of the tokens' probabilities.
    likelihood: f32,
    no_speech: f32,
    compression: f64,
}

/// What telling needs.
pub(super) struct Teller<'a, D: Dense> {
    pub(super) device: &'a mut D,
    pub(super) decoder: &'a mut Decoder<D>,
    pub(super) rules: &'a Rules,
    pub(super) vocabulary: &'a Vocabulary,
    /// Tokens of prompt and text together.
    pub(super) context: usize,
    /// Lanes that the decoder has.
    pub(super) lanes: usize,
    pub(super) hands: &'a mut Hands,
    pub(super) wanted: Wanted<'a>,
    pub(super) progress: &'a AtomicU64,
}

/// A text on its way.
struct Lane<'a> {
    task: &'a Task,
    temperature: f32,
    seed: u64,
    said: Vec<TokenId>,
    most: usize,
    /// Sum of the logarithms of the tokens' probabilities.
    sum: f32,
    no_speech: f32,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Goes,
    Over,
    /// Nobody wants it any more.
    Left,
}

impl Telling {
    /// Whether nobody speaks.
    pub(super) fn is_silence(&self) -> bool {
        self.no_speech > SILENCE_MIN && self.likelihood <= LIKELIHOOD_MIN
    }

    fn is_good(&self) -> bool {
        let unsure = self.likelihood < LIKELIHOOD_MIN;
        (unsure && self.no_speech > SILENCE_MIN) || (!unsure && self.compression <= COMPRESSION_MAX)
    }
}

impl<D: Dense> Teller<'_, D> {
    /// Tells every window once, in order; `None` is for those that nobody wants any more.
    pub(super) fn tell(&mut self, tasks: &[Task]) -> Result<Vec<Option<Telling>>, Error> {
        let mut told = vec![None; tasks.len()];
        for (trial, temperature) in TEMPERATURES.into_iter().enumerate() {
            let due: Vec<usize> = (0..tasks.len()).filter(|task| tasks[*task].trial == trial).collect();
            let candidates = if temperature > 0.0 { CANDIDATES } else { 1 };
            for group in due.chunks((self.lanes / candidates).max(1)) {
                let group_tasks: Vec<&Task> = group.iter().map(|task| &tasks[*task]).collect();
                let tellings = self.attempt(&group_tasks, temperature, candidates)?;
                group.iter().zip(tellings).for_each(|(task, telling)| told[*task] = telling);
            }
        }
        Ok(told)
    }

    /// The likeliest of some texts for each window.
    fn attempt(&mut self, tasks: &[&Task], temperature: f32, candidates: usize) -> Result<Vec<Option<Telling>>, Error> {
        let context = self.context;
        let lane = |task, candidate| Lane::new(task, temperature, candidate, context);
        let mut lanes: Vec<Lane<'_>> =
            tasks.iter().flat_map(|task| (0..candidates).map(move |candidate| lane(*task, candidate))).collect();
        self.run(&mut lanes);
        lanes
            .chunks(candidates)
            .map(|lanes| {
                let mean = |lane: &Lane<'_>| lane.sum / lane.said.len().max(1) as f32;
                let likeliest = lanes.iter().max_by(|a, b| mean(a).total_cmp(&mean(b)));
                let whole = likeliest.filter(|_| lanes.iter().all(|lane| lane.stage == Stage::Over));
                whole.map(|lane| self.telling(lane)).transpose()
            })
            .collect()
    }

    fn telling(&self, lane: &Lane<'_>) -> Result<Telling, Error> {
        let text = self.vocabulary.decode(&lane.said)?;
        Ok(Telling {
            tokens: lane.said.clone(),
            temperature: lane.temperature,
            likelihood: lane.sum / (lane.said.len() + 1) as f32,
            no_speech: lane.no_speech,
            compression: compression(text.trim()),
        })
    }

    /// Goes on with all lanes, a token of each at a time, until every text is over.
    fn run(&mut self, lanes: &mut [Lane<'_>]) {
        let (mut logits, width) = (Vec::new(), self.vocabulary.controls.count as usize);
        let mut first = true;
        loop {
            let live = self.live(lanes);
            if live.is_empty() {
                return;
            }
            let passages: Vec<Passage<'_>> = live.iter().map(|lane| lanes[*lane].passage(*lane)).collect();
            let mut after = Vec::new();
            let mut row = 0;
            for (lane, passage) in live.iter().zip(&passages) {
                if first {
                    after.push(row + lanes[*lane].task.start);
                }
                row += passage.tokens.len();
                after.push(row - 1);
            }
            self.decoder.read(self.device, &passages, Want::Logits(&after, &mut logits), self.progress);
            let rows = logits.chunks_exact_mut(after.len() / live.len() * width);
            let mut turns: Vec<_> = lanes.iter_mut().filter(|lane| lane.stage == Stage::Goes).zip(rows).collect();
            assert_eq!(turns.len(), live.len(), "logits of each lane");
            let (rules, end) = (self.rules, self.vocabulary.controls.end);
            self.hands.each(&mut turns, |_, (lane, rows)| {
                let (start, logits) = rows.split_at_mut(rows.len() - width);
                if !start.is_empty() {
                    lane.no_speech = rules.no_speech(start);
                }
                rules.bar(&lane.said, logits);
                lane.take(rules.choose(logits, lane.choose()), end);
            });
            first = false;
        }
    }

    /// Those that go on.
    fn live(&self, lanes: &mut [Lane<'_>]) -> Vec<usize> {
        for lane in lanes.iter_mut().filter(|lane| lane.stage == Stage::Goes) {
            if !(self.wanted)(lane.task.key) {
                lane.stage = Stage::Left;
            }
        }
        (0..lanes.len()).filter(|lane| lanes[*lane].stage == Stage::Goes).collect()
    }
}

impl<'a> Lane<'a> {
    fn new(task: &'a Task, temperature: f32, candidate: usize, context: usize) -> Lane<'a> {
        let trial = (f64::from(temperature) * 10.0).round() as u64 * CANDIDATES as u64 + candidate as u64;
        let most = (context / 2).min(context + 1 - task.prompt.len());
        let seed = mixed(task.seed ^ mixed(trial));
        let stage = if most == 0 { Stage::Over } else { Stage::Goes };
        Lane { task, temperature, seed, said: Vec::new(), most, sum: 0.0, no_speech: 0.0, stage }
    }

    /// What was not read yet.
    fn passage(&self, lane: usize) -> Passage<'_> {
        let (slot, prompt) = (self.task.slot, &self.task.prompt);
        match self.said.len() {
            0 => Passage { lane, slot, position: 0, tokens: prompt },
            said => Passage { lane, slot, position: prompt.len() + said - 1, tokens: &self.said[said - 1..] },
        }
    }

    fn choose(&self) -> Choose {
        if self.temperature == 0.0 {
            return Choose::Best;
        }
        let bits = mixed(self.seed.wrapping_add(self.said.len() as u64)) >> 40;
        Choose::Drawn { temperature: self.temperature, number: bits as f32 / (1u64 << 24) as f32 }
    }

    fn take(&mut self, choice: Choice, end: TokenId) {
        self.sum += choice.log_probability;
        if choice.token != end {
            self.said.push(choice.token);
        }
        if choice.token == end || self.said.len() >= self.most {
            self.stage = Stage::Over;
        }
    }
}

/// What a window says, once that is known by what was `tried`; until then it is to be told again.
pub(super) fn decide(tried: &mut Vec<Telling>) -> Option<Telling> {
    let known = tried.last().is_some_and(Telling::is_good) || tried.len() >= TEMPERATURES.len();
    known.then(|| settle(std::mem::take(tried)))
}

/// The first good telling, or the likeliest of those that do not repeat themselves, or of all.
fn settle(mut tried: Vec<Telling>) -> Telling {
    let last = tried.pop().unwrap_or_default();
    if last.is_good() {
        return last;
    }
    let temperature = last.temperature;
    tried.push(last);
    let plain = tried.iter().any(|telling| telling.compression <= COMPRESSION_MAX);
    let fit = tried.into_iter().filter(|telling| !plain || telling.compression <= COMPRESSION_MAX);
    // The last temperature stands, so that a guess is no guide for what follows.
    let likeliest = fit.reduce(|best, next| if next.likelihood > best.likelihood { next } else { best });
    Telling { temperature, ..likeliest.unwrap_or_default() }
}

/// Bytes of a text beside those of its compressed form.
fn compression(text: &str) -> f64 {
    let packed = miniz_oxide::deflate::compress_to_vec_zlib(text.as_bytes(), ZLIB_LEVEL);
    text.len() as f64 / packed.len() as f64
}

/// The finaliser of SplitMix64: every bit of the input moves every bit of the output.
fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn telling(temperature: f32, likelihood: f32, compression: f64) -> Telling {
        Telling { tokens: vec![1], temperature, likelihood, no_speech: 0.0, compression }
    }

    #[test]
    fn texts_that_repeat_themselves_compress() {
        assert!(compression(&" and then".repeat(30)) > COMPRESSION_MAX);
        assert!(compression("He was not an ill-disposed young man.") < 1.0);
        assert_eq!(compression(""), 0.0);
    }

    #[test]
    fn the_first_good_telling_counts_else_the_likeliest_plain_one() {
        let good = settle(vec![telling(0.0, -0.5, 3.0), telling(0.2, -0.9, 1.0)]);
        assert_eq!((good.temperature, good.likelihood), (0.2, -0.9));
        let guess = settle(vec![telling(0.0, -0.1, 3.0), telling(0.2, -1.5, 1.0), telling(1.0, -2.0, 1.0)]);
        assert_eq!((guess.temperature, guess.likelihood), (1.0, -1.5));
        let loops = settle(vec![telling(0.0, -0.1, 3.0), telling(1.0, -0.3, 9.0)]);
        assert_eq!((loops.temperature, loops.likelihood), (1.0, -0.1));
    }

    #[test]
    fn a_window_is_told_until_it_is_good_or_nothing_is_left_to_try() {
        let mut tried = Vec::new();
        assert!(decide(&mut tried).is_none());
        tried.push(telling(0.0, -0.5, 3.0));
        assert!(decide(&mut tried).is_none() && tried.len() == 1);
        tried.push(telling(0.2, -0.9, 1.0));
        assert_eq!(decide(&mut tried).map(|telling| telling.temperature), Some(0.2));
        assert!(tried.is_empty());
        for temperature in TEMPERATURES {
            assert!(decide(&mut tried).is_none());
            tried.push(telling(temperature, -0.5, 3.0));
        }
        assert_eq!(decide(&mut tried).map(|telling| telling.temperature), Some(1.0));
    }

    #[test]
    fn silence_is_no_reason_to_guess() {
        let silent = Telling { no_speech: 0.9, ..telling(0.0, -1.5, 5.0) };
        assert!(silent.is_good() && silent.is_silence());
        let sure = Telling { no_speech: 0.9, ..telling(0.0, -0.5, 1.0) };
        assert!(sure.is_good() && !sure.is_silence());
    }
}
