//! Sentencepiece's merging by score: of all neighbours that together are a token, the best join first.
//!
//! A text is not cut into pieces before: characters of all of it compete. Characters that end in no token are spelled in
//! bytes. As llama.cpp does it, but for tokens that steer: those are never made of text.

use std::collections::{BinaryHeap, HashMap};

use crate::plan::TokenId;

/// What a space is written as in such vocabularies.
pub(super) const SPACE: char = '\u{2581}';

/// A vocabulary with scores.
#[derive(Debug)]
pub(super) struct Spm {
    tokens: HashMap<Box<str>, (TokenId, f32)>,
    bytes: [Option<TokenId>; 256],
    /// What stands for a byte without token; without it the byte is left out.
    unknown: Option<TokenId>,
    /// Bytes of the longest token.
    longest: usize,
}

/// Memory that encoding reuses from text to text.
#[derive(Default)]
pub(super) struct Scratch {
    text: String,
    symbols: Vec<Symbol>,
    candidates: BinaryHeap<Candidate>,
}

/// Some characters of the text, linked to their neighbours.
#[derive(Clone, Copy)]
struct Symbol {
    start: u32,
    /// Where it ends; at its start once it is merged into the symbol before.
    end: u32,
    before: Option<u32>,
    after: Option<u32>,
}

/// A merge that was possible when it was found; the greatest is the best score, then the leftmost.
#[derive(Clone, Copy)]
struct Candidate {
    score: f32,
    left: u32,
    right: u32,
    /// Where the right symbol ended: it has changed if it ends elsewhere.
    end: u32,
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Candidate {}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl Spm {
    pub(super) fn new(unknown: Option<TokenId>) -> Spm {
        Spm { tokens: HashMap::new(), bytes: [None; 256], unknown, longest: 0 }
    }

    /// A token that characters may become. Of tokens that are spelled alike the last counts.
    pub(super) fn add(&mut self, text: &str, id: TokenId, score: f32) {
        self.longest = self.longest.max(text.len());
        self.tokens.insert(text.into(), (id, score));
    }

    /// The token of a byte.
    pub(super) fn add_byte(&mut self, byte: u8, id: TokenId) {
        self.bytes[usize::from(byte)] = Some(id);
    }

    /// Appends the tokens of `before` and `text` to `out`.
    pub(super) fn encode(&self, before: &str, text: &str, scratch: &mut Scratch, out: &mut Vec<TokenId>) {
        scratch.fill(before.chars().chain(text.chars()));
        for right in 1..scratch.symbols.len() {
            self.propose(scratch, place(right - 1), place(right));
        }
        while let Some(candidate) = scratch.candidates.pop() {
            self.merge(scratch, candidate);
        }
        for symbol in scratch.symbols.iter().filter(|symbol| symbol.start < symbol.end) {
            let text = &scratch.text[symbol.start as usize..symbol.end as usize];
            match self.tokens.get(text) {
                Some((id, _)) => out.push(*id),
                None => out.extend(text.bytes().filter_map(|byte| self.bytes[usize::from(byte)].or(self.unknown))),
            }
        }
    }

    /// Notes that two neighbours can merge, if they can.
    fn propose(&self, scratch: &mut Scratch, left: u32, right: u32) {
        let (start, end) = (scratch.symbols[left as usize].start, scratch.symbols[right as usize].end);
        let text = &scratch.text[start as usize..end as usize];
        // Without this bound a long text of one token after another would be looked up whole.
        if text.len() <= self.longest
            && let Some((_, score)) = self.tokens.get(text)
        {
            scratch.candidates.push(Candidate { score: *score, left, right, end });
        }
    }

    /// Performs a merge, unless one of its symbols has changed since it was proposed.
    fn merge(&self, scratch: &mut Scratch, candidate: Candidate) {
        let Candidate { left, right, end, .. } = candidate;
        let (a, b) = (scratch.symbols[left as usize], scratch.symbols[right as usize]);
        if a.start == a.end || b.start == b.end || a.end != b.start || b.end != end {
            return;
        }
        scratch.symbols[right as usize].end = b.start;
        scratch.symbols[left as usize].end = b.end;
        scratch.symbols[left as usize].after = b.after;
        if let Some(before) = a.before {
            self.propose(scratch, before, left);
        }
        if let Some(after) = b.after {
            scratch.symbols[after as usize].before = Some(left);
            self.propose(scratch, left, after);
        }
    }
}

impl Scratch {
    /// A symbol for each character, spaces as vocabularies write them.
    fn fill(&mut self, characters: impl Iterator<Item = char>) {
        self.text.clear();
        self.symbols.clear();
        self.candidates.clear();
        for character in characters {
            let (at, start) = (self.symbols.len(), self.text.len());
            self.text.push(if character == ' ' { SPACE } else { character });
            self.symbols.push(Symbol {
                start: place(start),
                end: place(self.text.len()),
                before: at.checked_sub(1).map(place),
                after: Some(place(at + 1)),
            });
        }
        if let Some(last) = self.symbols.last_mut() {
            last.after = None;
        }
    }
}

fn place(at: usize) -> u32 {
    u32::try_from(at).expect("prompts are far below 4 GiB")
}
