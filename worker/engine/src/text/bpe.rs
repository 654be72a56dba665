//! Byte-pair merging: a piece's bytes become tokens by the merges of a vocabulary, lowest rank first.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::letters;
use crate::Error;
use crate::plan::TokenId;

/// The merges of a vocabulary.
#[derive(Debug)]
pub(super) struct Bpe {
    /// Token of each byte; some vocabularies lack bytes, and a byte without token is left out of the prompt.
    bytes: [Option<TokenId>; 256],
    merges: HashMap<(TokenId, TokenId), Merge>,
    whole: Whole,
}

/// Whether a piece that is itself a token needs no merging.
#[derive(Debug)]
pub(super) enum Whole {
    /// It is merged like any other.
    Merged,
    /// It is that token, by its bytes.
    Taken(HashMap<Box<[u8]>, TokenId>),
}

#[derive(Clone, Copy, Debug)]
struct Merge {
    rank: u32,
    into: TokenId,
}

/// Memory that encoding reuses from piece to piece.
#[derive(Default)]
pub(super) struct Scratch {
    symbols: Vec<Symbol>,
    candidates: BinaryHeap<Reverse<Candidate>>,
}

/// A token of the piece so far, linked to its neighbours.
#[derive(Clone, Copy)]
struct Symbol {
    /// `None` once merged into the symbol before.
    token: Option<TokenId>,
    before: Option<u32>,
    after: Option<u32>,
}

/// A merge that was possible when it was found; ordered by rank, then from left to right.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    at: u32,
    pair: (TokenId, TokenId),
    into: TokenId,
}

impl Bpe {
    /// From the vocabulary's `ids` by text and the `merges`, two texts parted by a space, best first.
    pub(super) fn new(ids: &HashMap<&str, TokenId>, merges: &[&str], whole: Whole) -> Result<Bpe, Error> {
        let bytes = std::array::from_fn(|byte| {
            #[allow(clippy::cast_possible_truncation)] // the array has 256 places
            let letter = letters::letter(byte as u8);
            ids.get(letter.encode_utf8(&mut [0; 4]) as &str).copied()
        });
        let mut table = HashMap::with_capacity(merges.len());
        let mut joined = String::new();
        for (rank, merge) in (0..).zip(merges) {
            let parsed = merge.split_once(' ').and_then(|(left, right)| {
                joined.clear();
                joined.extend([left, right]);
                let pair = (*ids.get(left)?, *ids.get(right)?);
                Some((pair, *ids.get(joined.as_str())?))
            });
            let (pair, into) = parsed.ok_or_else(|| {
                let why = format!("merge {rank} `{}` is not two tokens", merge.escape_debug());
                Error::Tokenizer(why)
            })?;
            table.entry(pair).or_insert(Merge { rank, into });
        }
        Ok(Bpe { bytes, merges: table, whole })
    }

    /// Appends the tokens of `piece` to `out`.
    pub(super) fn encode(&self, piece: &str, scratch: &mut Scratch, out: &mut Vec<TokenId>) {
        if let Whole::Taken(tokens) = &self.whole
            && let Some(token) = tokens.get(piece.as_bytes())
        {
            out.push(*token);
            return;
        }
        scratch.fill(piece.bytes().filter_map(|b| self.bytes[usize::from(b)]));
        for at in 1..scratch.symbols.len() {
            self.propose(scratch, at - 1, at);
        }
        while let Some(Reverse(candidate)) = scratch.candidates.pop() {
            self.merge(scratch, candidate);
        }
        out.extend(scratch.symbols.iter().filter_map(|symbol| symbol.token));
    }

    /// Notes that the symbols at `left` and `right` can merge, if they can.
    fn propose(&self, scratch: &mut Scratch, left: usize, right: usize) {
        let tokens = (scratch.symbols[left].token, scratch.symbols[right].token);
        if let (Some(a), Some(b)) = tokens
            && let Some(merge) = self.merges.get(&(a, b))
        {
            scratch.candidates.push(Reverse(Candidate {
                rank: merge.rank,
                at: place(left),
                pair: (a, b),
                into: merge.into,
            }));
        }
    }

    /// Performs a merge, unless one of its symbols has changed since it was proposed.
    fn merge(&self, scratch: &mut Scratch, candidate: Candidate) {
        let at = candidate.at as usize;
        let left = scratch.symbols[at];
        let Some(right_at) = left.after.map(|next| next as usize) else {
            return;
        };
        let right = scratch.symbols[right_at];
        if (left.token, right.token) != (Some(candidate.pair.0), Some(candidate.pair.1)) {
            return;
        }
        scratch.symbols[right_at].token = None;
        scratch.symbols[at].token = Some(candidate.into);
        scratch.symbols[at].after = right.after;
        if let Some(after) = right.after {
            scratch.symbols[after as usize].before = Some(candidate.at);
            self.propose(scratch, at, after as usize);
        }
        if let Some(before) = left.before {
            self.propose(scratch, before as usize, at);
        }
    }
}

impl Scratch {
    fn fill(&mut self, tokens: impl Iterator<Item = TokenId>) {
        self.candidates.clear();
        self.symbols.clear();
        self.symbols.extend(tokens.enumerate().map(|(at, token)| Symbol {
            token: Some(token),
            before: at.checked_sub(1).map(place),
            after: Some(place(at + 1)),
        }));
        if let Some(last) = self.symbols.last_mut() {
            last.after = None;
        }
    }
}

fn place(at: usize) -> u32 {
    u32::try_from(at).expect("prompts are far below 4 GiB")
}
