//! A clip on its way: which window is next, what was said so far, and how a window's tokens become segments.
//!
//! The rules of faster-whisper's `generate_segments` and `_split_segments_by_timestamps`.

use super::tell::Telling;
use super::tower::WINDOW_FRAMES;
use super::vocabulary::{Controls, Language};
use super::words::Timed;
use crate::encode::{Segment, Transcript, Word};
use crate::mel::{FRAMES_PER_SECOND, Loudest, frames};
use crate::plan::TokenId;

/// Seconds in a step of time tokens.
const TIME_STEP: f64 = 0.02;
/// Frames in a step of time tokens.
const TIME_FRAMES: usize = 2;
/// A window that leads nowhere, or one too many that leads on by less, is followed by the one so many frames later, so
/// that a clip has a bounded number of them.
const ADVANCE_MIN: usize = 50;
/// Windows in a row that may lead on by less than [`ADVANCE_MIN`]: each says something, and speech is not that dense.
const SHORT_MAX: usize = 3;
/// A text told with more chance than this is no guide for the next.
const GUIDE_TEMPERATURE_MAX: f32 = 0.5;

/// A part of a window's text.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    /// Seconds from the clip's beginning.
    pub(super) start: f64,
    pub(super) end: f64,
    /// Times included.
    pub(super) tokens: Vec<TokenId>,
    /// Tokens that are text.
    pub(super) text_tokens: usize,
    pub(super) words: Vec<Timed>,
}

/// What a window said.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Told {
    pub(super) pieces: Vec<Piece>,
    /// Where the next window begins.
    pub(super) next: usize,
    /// Whether the text ends where speech does.
    pub(super) complete: bool,
}

/// A clip on its way.
#[derive(Clone, Debug)]
pub(super) struct Journey {
    /// Of the whole clip.
    pub(super) loudest: Loudest,
    /// The frame where the next window begins.
    pub(super) seek: usize,
    /// Frames of the clip.
    frames: usize,
    pub(super) language: Option<Language>,
    /// What was said before, times included: the latest tokens.
    guide: Vec<TokenId>,
    /// What the next window was told as so far, none of it good enough.
    pub(super) tried: Vec<Telling>,
    /// When the last word ended, in seconds.
    pub(super) last_end: f64,
    /// Windows in a row, up to the latest, that led on by less than [`ADVANCE_MIN`].
    short: usize,
    segments: Vec<Segment>,
}

impl Journey {
    pub(super) fn new(samples: &[f32], loudest: Loudest, language: Option<Language>) -> Journey {
        let (guide, tried, segments) = (Vec::new(), Vec::new(), Vec::new());
        let frames = frames(samples);
        Journey { loudest, seek: 0, frames, language, guide, tried, last_end: 0.0, short: 0, segments }
    }

    /// Whether the clip is told.
    pub(super) fn is_over(&self) -> bool {
        self.seek >= self.frames
    }

    /// Frames of the next window.
    pub(super) fn window(&self) -> usize {
        WINDOW_FRAMES.min(self.frames - self.seek)
    }

    /// When the next window begins, in seconds.
    pub(super) fn offset(&self) -> f64 {
        self.seek as f64 / FRAMES_PER_SECOND as f64
    }

    /// The prompt of the next window: what was said before, at most `most` tokens, and how to tell it.
    pub(super) fn prompt(&self, controls: &Controls, most: usize) -> Vec<TokenId> {
        let mut prompt = Vec::new();
        if !self.guide.is_empty() {
            prompt.push(controls.previous);
            prompt.extend(&self.guide[self.guide.len().saturating_sub(most)..]);
        }
        prompt.extend(self.beginning(controls));
        prompt
    }

    /// The tokens that begin a transcript.
    pub(super) fn beginning(&self, controls: &Controls) -> Vec<TokenId> {
        let language = self.language.as_ref().and_then(|language| language.id);
        [Some(controls.start), language, controls.transcribe].into_iter().flatten().collect()
    }

    /// Cuts what the next window said into pieces.
    pub(super) fn cut(&self, tokens: &[TokenId], controls: &Controls) -> Told {
        let is_time = |token: &TokenId| *token >= controls.times;
        let complete = matches!(tokens, [.., text, time] if !is_time(text) && is_time(time));
        let mut ends: Vec<usize> =
            (1..tokens.len()).filter(|at| is_time(&tokens[*at]) && is_time(&tokens[at - 1])).collect();
        let seconds = |token: &TokenId| f64::from(token.saturating_sub(controls.times)) * TIME_STEP;
        let offset = self.offset();
        let piece = |tokens: &[TokenId], start: f64, end: f64| {
            let text_tokens = tokens.iter().filter(|token| **token < controls.end).count();
            let (start, end) = (offset + start, offset + end);
            Piece { start, end, tokens: tokens.to_vec(), text_tokens, words: Vec::new() }
        };
        if ends.is_empty() {
            let whole = self.window() as f64 / FRAMES_PER_SECOND as f64;
            let last = tokens.iter().rev().find(|token| is_time(token)).filter(|token| **token != controls.times);
            let pieces = vec![piece(tokens, 0.0, last.map_or(whole, seconds))];
            return Told { pieces, next: self.seek + self.window(), complete };
        }
        if complete {
            ends.push(tokens.len());
        }
        let mut first = 0;
        let mut pieces = Vec::new();
        for end in ends {
            let part = &tokens[first..end];
            pieces.push(piece(part, seconds(&part[0]), seconds(&part[part.len() - 1])));
            first = end;
        }
        let unfinished = (tokens[first - 1].saturating_sub(controls.times)) as usize * TIME_FRAMES;
        let next = self.seek + if complete { self.window() } else { unfinished };
        Told { pieces, next, complete }
    }

    /// Goes on to the next window without a word.
    pub(super) fn skip(&mut self) {
        self.seek += self.window();
    }

    /// Takes in the pieces of a window, with their texts, and goes on: the new text.
    pub(super) fn take(&mut self, told: Told, texts: Vec<String>, temperature: f32) -> String {
        let mut new = String::new();
        for (piece, text) in told.pieces.into_iter().zip(texts) {
            if piece.start == piece.end || text.trim().is_empty() {
                continue;
            }
            new.push_str(&text);
            self.guide.extend(piece.tokens);
            let words = piece.words.into_iter();
            let words = words.map(|word| Word { start: word.start as f32, end: word.end as f32, text: word.text });
            let (start, end) = (piece.start as f32, piece.end as f32);
            self.segments.push(Segment { start, end, text, words: words.collect() });
        }
        if temperature > GUIDE_TEMPERATURE_MAX {
            self.guide.clear();
        }
        self.advance(told.next, &new);
        new
    }

    /// Goes on at `next`, unless the window said nothing `new` or there is no end to it.
    fn advance(&mut self, next: usize, new: &str) {
        let least = self.seek + ADVANCE_MIN;
        self.short = if next < least { self.short + 1 } else { 0 };
        let leads_on = next > self.seek && !new.is_empty() && self.short <= SHORT_MAX;
        if next < least && !leads_on {
            (self.seek, self.short) = (least, 0);
        } else {
            self.seek = next;
        }
    }

    /// Forgets all but the latest `most` tokens of what was said.
    pub(super) fn shorten_guide(&mut self, most: usize) {
        let surplus = self.guide.len().saturating_sub(most);
        self.guide.drain(..surplus);
    }

    /// All that was said.
    ///
    /// Its language is `silent` where nothing was heard that could tell.
    pub(super) fn transcript(self, silent: &Language) -> Transcript {
        let language = self.language.as_ref().unwrap_or(silent).code.clone();
        Transcript { language, segments: self.segments }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::mel::Mel;
    use crate::model::whisper::vocabulary::controls;

    const T: TokenId = 50363;

    fn journey(seconds: usize) -> Journey {
        let samples = vec![0.0; seconds * 16_000];
        Journey::new(&samples, Mel::new(80).loudest(&samples[..1600], &AtomicU64::new(0)), None)
    }

    fn cut(journey: &Journey, tokens: &[TokenId]) -> (Vec<(f64, f64)>, usize, bool) {
        let told = journey.cut(tokens, &controls());
        (told.pieces.iter().map(|piece| (piece.start, piece.end)).collect(), told.next, told.complete)
    }

    fn language(code: &str) -> Language {
        Language { code: code.into(), id: None }
    }

    #[test]
    fn a_silent_clip_has_a_language() {
        let mut journey = journey(20);
        assert_eq!(journey.clone().transcript(&language("en")).language, "en");
        journey.language = Some(language("fr"));
        assert_eq!(journey.transcript(&language("en")).language, "fr");
    }

    #[test]
    fn pairs_of_times_cut_a_window() {
        let mut journey = journey(60);
        journey.seek = 100;
        let tokens = [T, 11, 12, T + 50, T + 60, 13, T + 100];
        assert_eq!(cut(&journey, &tokens), (vec![(1.0, 2.0), (2.2, 3.0)], 3100, true));
        let unfinished = [T, 11, 12, T + 50, T + 60, 13];
        assert_eq!(cut(&journey, &unfinished), (vec![(1.0, 2.0)], 100 + 100, false), "goes on at the last end");
    }

    #[test]
    fn a_window_without_pairs_is_one_piece() {
        let journey = journey(20);
        assert_eq!(cut(&journey, &[T, 11, 12]), (vec![(0.0, 20.0)], 2000, false));
        assert_eq!(cut(&journey, &[T, 11, T + 400]), (vec![(0.0, 8.0)], 2000, true));
    }

    #[test]
    fn every_window_leads_on() {
        let mut journey = journey(60);
        let told = journey.cut(&[T, T, 11], &controls());
        assert_eq!(told.next, 0);
        journey.take(told, vec![String::new()], 0.0);
        assert_eq!(journey.seek, ADVANCE_MIN);
        journey.seek = 4000;
        assert_eq!(journey.window(), 2000);
        journey.skip();
        assert!(journey.is_over());
    }

    #[test]
    fn a_window_that_says_a_little_leads_on_to_where_it_ends() {
        let mut journey = journey(60);
        // 0.3 s of speech, then more that is cut off by the window's end.
        let tokens = [T, 11, T + 15, T + 15, 12];
        for seek in [30, 60, 90, 140, 170] {
            let told = journey.cut(&tokens, &controls());
            journey.take(told, vec![" Yes.".into()], 0.0);
            assert_eq!(journey.seek, seek);
        }
        let told = journey.cut(&tokens, &controls());
        journey.take(told, vec!["  ".into()], 0.0);
        assert_eq!(journey.seek, 220, "nothing was said");
    }

    #[test]
    fn what_was_said_guides_what_follows_unless_it_was_a_guess() {
        let mut journey = journey(60);
        let told = journey.cut(&[T, 11, T + 50, T + 50, 12, T + 90], &controls());
        assert_eq!(journey.take(told.clone(), vec![" Yes.".into(), " No.".into()], 0.4), " Yes. No.");
        assert_eq!(journey.prompt(&controls(), 2), [50360, 12, T + 90, 50257]);
        assert_eq!(journey.prompt(&controls(), 400).len(), 8);
        journey.take(told, vec![" Yes.".into(), "  ".into()], 0.6);
        assert_eq!(journey.prompt(&controls(), 400), [50257]);
        assert_eq!(journey.transcript(&language("en")).segments.len(), 3);
    }
}
