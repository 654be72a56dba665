//! Keeps what users write from turning into control tokens while a template renders it.
//!
//! The guard parts a content with a mark wherever it could become part of a control token's text:
//! - within each half of such a text, so that neither the whole, nor what remains of it when a template cuts something
//!   out of the middle, is found again;
//! - at the ends, before or after white space that a template may trim, where the content could complete what the
//!   template writes next to it.

use std::collections::HashSet;

use regex::Regex;

use crate::Error;

/// Control texts shorter than this are guarded whole: their halves are too common in plain text.
const HALVED_CHARS_MIN: usize = 6;
/// Characters without meaning, from which the mark is chosen: first the noncharacters, then a private plane.
const MARKS: [std::ops::RangeInclusive<char>; 2] = ['\u{fdd0}'..='\u{fdef}', '\u{f0000}'..='\u{ffffd}'];

/// What the control tokens of a vocabulary look like in parts.
#[derive(Debug)]
pub(super) struct Guard {
    /// Finds what must be parted after its first character; `None` without control tokens.
    parted: Option<Regex>,
    /// All proper beginnings of control texts, and all proper ends.
    beginnings: HashSet<Box<str>>,
    ends: HashSet<Box<str>>,
    /// Characters of control texts.
    letters: HashSet<char>,
    /// Bytes of the longest control text.
    reach: usize,
}

impl Guard {
    pub(super) fn new(controls: &[&str]) -> Result<Guard, Error> {
        let mut beginnings = HashSet::new();
        let mut ends = HashSet::new();
        let mut parts = Vec::new();
        for control in controls {
            for (at, _) in control.char_indices().skip(1) {
                beginnings.insert(control[..at].into());
                ends.insert(control[at..].into());
            }
            let chars = control.chars().count();
            match control.char_indices().nth(chars / 2) {
                Some((middle, _)) if chars >= HALVED_CHARS_MIN => {
                    parts.extend([&control[..middle], &control[middle..]]);
                }
                _ => parts.push(control),
            }
        }
        Ok(Guard {
            parted: any_of(parts)?,
            beginnings,
            ends,
            letters: controls.iter().flat_map(|control| control.chars()).collect(),
            reach: controls.iter().map(|control| control.len()).max().unwrap_or(0),
        })
    }

    /// A character that neither a control text nor any of `texts` has.
    pub(super) fn mark<'t>(&self, texts: impl Iterator<Item = &'t str>) -> Option<char> {
        // One pass, however many marks a content uses up.
        let used: HashSet<char> =
            texts.flat_map(str::chars).filter(|c| MARKS.iter().any(|marks| marks.contains(c))).collect();
        MARKS.into_iter().flatten().find(|c| !self.letters.contains(c) && !used.contains(c))
    }

    /// The `content` with `mark` wherever it must be parted.
    pub(super) fn part(&self, content: &str, mark: char) -> String {
        let mut cuts = self.inner_cuts(content);
        for end in [content.len(), content.trim_end().len()] {
            if self.begins_control(&content[..end]) {
                cuts.push(end);
            }
        }
        for start in [0, content.len() - content.trim_start().len()] {
            if self.ends_control(&content[start..]) {
                cuts.push(start);
            }
        }
        cuts.sort_unstable();
        cuts.dedup();
        let mut out = String::with_capacity(content.len() + cuts.len() * mark.len_utf8());
        let mut from = 0;
        for cut in cuts {
            out.push_str(&content[from..cut]);
            out.push(mark);
            from = cut;
        }
        out.push_str(&content[from..]);
        out
    }

    fn inner_cuts(&self, content: &str) -> Vec<usize> {
        let mut cuts = Vec::new();
        let Some(parted) = &self.parted else {
            return cuts;
        };
        let mut at = 0;
        // Matches may overlap, hence the search resumes one character on.
        while let Some(found) = parted.find_at(content, at) {
            let first = found.as_str().chars().next().map_or(1, char::len_utf8);
            at = found.start() + first;
            cuts.push(at);
        }
        cuts
    }

    /// Whether a control text could begin at the end of `text`.
    fn begins_control(&self, text: &str) -> bool {
        (1..=self.reach)
            .filter_map(|len| text.get(text.len().checked_sub(len)?..))
            .any(|end| self.beginnings.contains(end))
    }

    /// Whether a control text could end at the beginning of `text`.
    fn ends_control(&self, text: &str) -> bool {
        (1..=self.reach).filter_map(|len| text.get(..len)).any(|beginning| self.ends.contains(beginning))
    }
}

/// A pattern that finds any of `texts`, the longest that begins at a place; `None` for no texts.
pub(super) fn any_of(mut texts: Vec<&str>) -> Result<Option<Regex>, Error> {
    if texts.is_empty() {
        return Ok(None);
    }
    texts.sort_unstable_by(|a, b| b.len().cmp(&a.len()).then(a.cmp(b)));
    texts.dedup();
    let escaped: Vec<String> = texts.into_iter().map(regex::escape).collect();
    Regex::new(&escaped.join("|")).map(Some).map_err(|_| Error::Unsupported("too many special tokens".to_owned()))
}
