//! Text to pieces that merges never cross, by the scheme that a vocabulary was trained with.
//!
//! The published schemes are one regular expression each, with a look-ahead in one branch: white space leaves its last
//! character to the word that follows. Ours have the branch without the look-ahead and give that character back by
//! hand, so that a linear-time engine can run them: text from outside must not be able to stall it.

use regex::Regex;

use crate::Error;

/// Cuts text into pieces.
#[derive(Clone, Debug)]
pub(super) struct Splitter {
    pattern: Regex,
    newlines: Newlines,
    digits: Digits,
}

/// Whether white space that ends in a newline is a piece of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Newlines {
    /// As any white space.
    Space,
    /// Apart: it gives nothing back.
    Apart,
}

/// Whether text is first cut around digits, so that what precedes one ends there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Digits {
    Inline,
    Apart,
}

const GPT2: &str = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+";
const SMOLLM: &str = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+";
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
);
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
);

impl Splitter {
    /// The scheme that model files call `name`.
    pub(super) fn by_name(name: &str) -> Result<Splitter, Error> {
        let (pattern, newlines, digits) = match name {
            "gpt-2" | "gpt2" | "default" => (GPT2, Newlines::Space, Digits::Inline),
            "smollm" => (SMOLLM, Newlines::Space, Digits::Apart),
            "llama-bpe" | "llama3" | "llama-v3" => (LLAMA3, Newlines::Apart, Digits::Inline),
            "qwen2" => (QWEN2, Newlines::Apart, Digits::Inline),
            other => return Err(Error::Unsupported(format!("pre-tokenizer `{other}`"))),
        };
        Ok(Splitter { pattern: Regex::new(pattern).expect("the patterns above are tested"), newlines, digits })
    }

    /// The pieces of `text`, which together are `text`.
    pub(super) fn pieces<'t>(&self, text: &'t str) -> impl Iterator<Item = &'t str> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let found = self.pattern.find_at(text, at)?;
            let start = std::mem::replace(&mut at, self.end(text, found.start(), found.end()));
            Some(&text[start..at])
        })
    }

    /// Where the piece matched at `start..end` ends once it has given back what is not its own.
    fn end(&self, text: &str, start: usize, end: usize) -> usize {
        let Some(last) = text[start..end].chars().next_back() else {
            return end;
        };
        let stays = !last.is_whitespace()
            || last.len_utf8() == end - start
            || (self.newlines == Newlines::Apart && matches!(last, '\r' | '\n'));
        if stays {
            return end;
        }
        match text[end..].chars().next() {
            None => end,
            Some(next) if self.digits == Digits::Apart && next.is_numeric() => end,
            Some(_) => end - last.len_utf8(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(scheme: &str, text: &str, expected: &[&str]) {
        let splitter = Splitter::by_name(scheme).unwrap();
        let pieces: Vec<&str> = splitter.pieces(text).collect();
        assert_eq!(pieces, expected, "{scheme}: {text:?}");
    }

    #[test]
    fn schemes_cut_as_published() {
        check("gpt-2", "I'll  pay 120!\n\n x", &["I", "'ll", " ", " pay", " 120", "!", "\n\n", " x"]);
        check("gpt-2", "a\n\nb", &["a", "\n", "\n", "b"]);
        check("smollm", "in  1999, 5", &["in", "  ", "1", "9", "9", "9", ",", " ", "5"]);
        check("llama-bpe", "I'LL\tpay 12345!\n \n x", &["I", "'LL", "\tpay", " ", "123", "45", "!\n", " \n", " x"]);
        check("llama-bpe", "a   b  \n", &["a", "  ", " b", "  \n"]);
        check("qwen2", "v12", &["v", "1", "2"]);
    }

    #[test]
    fn unknown_schemes_are_refused_by_name() {
        let error = Splitter::by_name("tekken").unwrap_err();
        assert!(matches!(error, Error::Unsupported(why) if why.contains("tekken")));
    }

    proptest! {
        #[test]
        fn pieces_are_the_text(text in any::<String>(), spaced in "[ \t\n\r1a!é\u{a0}]{0,40}") {
            for scheme in ["gpt-2", "smollm", "llama-bpe", "qwen2"] {
                let splitter = Splitter::by_name(scheme).unwrap();
                for text in [&text, &spaced] {
                    prop_assert_eq!(&splitter.pieces(text).collect::<String>(), text);
                }
            }
        }
    }
}
