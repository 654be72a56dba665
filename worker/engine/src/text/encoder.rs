//! Texts of encoders to tokens, by the `tokenizer.json` that a model's authors publish.
//!
//! A text is read piece by piece, and no further than the model looks: a long one costs no more than the limit asks for.
//! Pieces end before a space, where the tokenizers of encoders cut words anyway.

use crate::Error;
use crate::plan::TokenId;

/// Bytes of a text that is read at all.
pub const TEXT_BYTES_MAX: usize = 1 << 20;
/// Bytes tokenised at a time: more than most models look at, little enough to hold all that is known of each token.
const PIECE_BYTES: usize = 16 << 10;

/// A tokenizer, with the tokens that its model wants around a text.
pub struct TextEncoder {
    tokenizer: tokenizers::Tokenizer,
    before: Vec<TokenId>,
    after: Vec<TokenId>,
    /// One more than the largest token.
    vocabulary: usize,
}

/// What becomes of a text that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excess {
    /// It is refused.
    Refuse,
    /// Its end is left out; the tokens around it stay.
    Cut,
}

/// A text as tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encoded {
    /// All of it.
    Whole(Vec<TokenId>),
    /// As many tokens of it as may be.
    Cut(Vec<TokenId>),
    /// It has more tokens than may be.
    TooLong,
    /// It has more bytes than [`TEXT_BYTES_MAX`], however few tokens those may be.
    TooLarge,
}

impl TextEncoder {
    /// Reads the text of a `tokenizer.json`. What it says of truncation and padding is ignored.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when it is no tokenizer.
    pub fn parse(json: &str) -> Result<TextEncoder, Error> {
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(json).map_err(failed)?;
        tokenizer.with_truncation(None).map_err(failed)?;
        tokenizer.with_padding(None);
        let ids = |marked| tokenizer.encode_fast("a", marked).map(|encoding| encoding.get_ids().to_vec());
        let (bare, whole) = (ids(false).map_err(failed)?, ids(true).map_err(failed)?);
        let place = whole.windows(bare.len().max(1)).position(|window| window == bare);
        let place = place.ok_or_else(|| Error::Tokenizer("a text is not found in its own tokens".into()))?;
        let largest = tokenizer.get_vocab(true).into_values().max();
        Ok(TextEncoder {
            before: whole[..place].to_vec(),
            after: whole[place + bare.len()..].to_vec(),
            vocabulary: largest.map_or(0, |largest| largest as usize + 1),
            tokenizer,
        })
    }

    /// One more than the largest token.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// The tokens of `text` with those that the model wants around it, at most `limit` in all.
    ///
    /// Of a text beyond [`TEXT_BYTES_MAX`] nothing after that is read: it is too large, or cut there.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] when the tokenizer cannot read the text.
    pub fn encode(&self, text: &str, limit: usize, excess: Excess) -> Result<Encoded, Error> {
        let Some(room) = limit.checked_sub(self.before.len() + self.after.len()) else { return Ok(Encoded::TooLong) };
        let mut left = &text[..text.floor_char_boundary(TEXT_BYTES_MAX)];
        let mut is_whole = left.len() == text.len();
        if !is_whole && excess == Excess::Refuse {
            return Ok(Encoded::TooLarge);
        }
        let mut tokens = self.before.clone();
        while !left.is_empty() {
            let (piece, rest) = left.split_at(piece_len(left));
            left = rest;
            let encoding = self.tokenizer.encode_fast(piece, false).map_err(failed)?;
            tokens.extend_from_slice(encoding.get_ids());
            if tokens.len() - self.before.len() > room {
                if excess == Excess::Refuse {
                    return Ok(Encoded::TooLong);
                }
                tokens.truncate(self.before.len() + room);
                is_whole = false;
                break;
            }
        }
        tokens.extend_from_slice(&self.after);
        Ok(if is_whole { Encoded::Whole(tokens) } else { Encoded::Cut(tokens) })
    }
}

impl std::fmt::Debug for TextEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextEncoder").field("vocabulary", &self.vocabulary).finish_non_exhaustive()
    }
}

/// Where the first piece of `text` ends: before a space, or within a run that has none.
fn piece_len(text: &str) -> usize {
    if text.len() <= PIECE_BYTES {
        return text.len();
    }
    let end = text.floor_char_boundary(PIECE_BYTES);
    let space = text.as_bytes()[..end].iter().rposition(u8::is_ascii_whitespace);
    space.filter(|at| *at > 0).unwrap_or(end)
}

fn failed(error: tokenizers::Error) -> Error {
    Error::Tokenizer(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::wordpiece;
    use proptest::prelude::*;
    use std::time::{Duration, Instant};

    fn encoder() -> TextEncoder {
        TextEncoder::parse(&wordpiece()).unwrap()
    }

    fn whole(text: &str) -> Vec<TokenId> {
        match encoder().encode(text, 1 << 20, Excess::Refuse).unwrap() {
            Encoded::Whole(tokens) => tokens,
            other => panic!("{other:?}"),
        }
    }

    /// What the tokenizer says of the whole text at once.
    fn reference(text: &str) -> Vec<TokenId> {
        encoder().tokenizer.encode(text, true).unwrap().get_ids().to_vec()
    }

    #[test]
    fn a_text_stands_between_its_marks() {
        let encoder = encoder();
        let [cls, sep] = ["[CLS]", "[SEP]"].map(|token| encoder.tokenizer.token_to_id(token).unwrap());
        assert_eq!(whole(""), [cls, sep]);
        let tokens = whole("Cafe, ÇA!");
        assert_eq!((tokens[0], *tokens.last().unwrap()), (cls, sep));
        assert_eq!(tokens, reference("Cafe, ÇA!"));
        assert!(tokens.iter().all(|token| (*token as usize) < encoder.vocabulary()));
    }

    #[test]
    fn a_text_that_is_too_long_is_refused_or_cut_before_its_last_mark() {
        let (encoder, text) = (encoder(), "a b c d");
        let all = whole(text);
        assert_eq!(all.len(), 6);
        assert_eq!(encoder.encode(text, 6, Excess::Refuse).unwrap(), Encoded::Whole(all.clone()));
        assert_eq!(encoder.encode(text, 5, Excess::Refuse).unwrap(), Encoded::TooLong);
        let cut = [&all[..4], &all[5..]].concat();
        assert_eq!(encoder.encode(text, 5, Excess::Cut).unwrap(), Encoded::Cut(cut));
        assert_eq!(encoder.encode(text, 2, Excess::Cut).unwrap(), Encoded::Cut(vec![all[0], all[5]]));
        assert_eq!(encoder.encode(text, 1, Excess::Cut).unwrap(), Encoded::TooLong);
        assert_eq!(encoder.encode("", 2, Excess::Refuse).unwrap(), Encoded::Whole(vec![all[0], all[5]]));
    }

    #[test]
    fn pieces_make_the_tokens_of_the_whole() {
        let text: String = (0..9_000).map(|n| ["word ", "ab,c ", "\n\n", "é", "naive "][n * n % 5]).collect();
        assert!(text.len() > 2 * PIECE_BYTES);
        assert_eq!(whole(&text), reference(&text));
    }

    #[test]
    fn a_megabyte_of_anything_is_soon_told() {
        let encoder = encoder();
        let began = Instant::now();
        for unit in ["a", " ", "a ", "é", "漢", "\u{301}", "🙂", "\0", "."] {
            let text = unit.repeat(TEXT_BYTES_MAX / unit.len());
            let longer = text.clone() + "a b c";
            for excess in [Excess::Refuse, Excess::Cut] {
                let encoded = encoder.encode(&text, 256, excess).unwrap();
                assert!(
                    matches!(&encoded, Encoded::Whole(tokens) | Encoded::Cut(tokens) if tokens.len() <= 256)
                        || encoded == Encoded::TooLong && excess == Excess::Refuse
                );
            }
            assert_eq!(encoder.encode(&longer, 256, Excess::Refuse).unwrap(), Encoded::TooLarge);
        }
        assert!(began.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn what_is_no_tokenizer_is_refused() {
        for json in ["", "{}", "[1, 2]", r#"{"version":"1.0","model":{"type":"WordPiece"}}"#] {
            assert!(matches!(TextEncoder::parse(json), Err(Error::Tokenizer(_))));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_text_is_within_its_limit(text in "\\PC{0,300}|[ a-cé漢🙂\u{301}\t\n]{0,300}", limit in 2_usize..40) {
            let encoder = encoder();
            let all = reference(&text);
            let cut = encoder.encode(&text, limit, Excess::Cut).unwrap();
            match encoder.encode(&text, limit, Excess::Refuse).unwrap() {
                Encoded::Whole(tokens) => {
                    prop_assert_eq!(&tokens, &all);
                    prop_assert_eq!(cut, Encoded::Whole(tokens));
                }
                Encoded::TooLong => {
                    prop_assert!(all.len() > limit);
                    let expected = [&all[..limit - 1], &all[all.len() - 1..]].concat();
                    prop_assert_eq!(cut, Encoded::Cut(expected));
                }
                Encoded::Cut(_) => return Err(TestCaseError::fail("cut unasked")),
                Encoded::TooLarge => return Err(TestCaseError::fail("of a few bytes")),
            }
        }
    }
}
