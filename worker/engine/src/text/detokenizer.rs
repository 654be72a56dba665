//! Tokens back to characters as they come: a character is handed out when its last byte is there.

use std::sync::Arc;

use super::Tokenizer;
use crate::plan::TokenId;

/// The text of one answer, token by token.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    /// The beginning of a character, at most three bytes between calls.
    pending: Vec<u8>,
    /// What the last push completed.
    ready: String,
}

impl Detokenizer {
    /// Nothing pushed yet.
    #[must_use]
    pub fn new(tokenizer: Arc<Tokenizer>) -> Detokenizer {
        Detokenizer { tokenizer, pending: Vec::new(), ready: String::new() }
    }

    /// The characters that `token` completes. Bytes that cannot be UTF-8, whatever follows, come as U+FFFD.
    pub fn push(&mut self, token: TokenId) -> &str {
        self.pending.extend_from_slice(self.tokenizer.bytes_of(token));
        self.ready.clear();
        let decided = decode(&self.pending, &mut self.ready);
        self.pending.drain(..decided);
        &self.ready
    }

    /// The rest: U+FFFD if the answer ends within a character. The detokenizer is then as new.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        rest
    }
}

/// Appends the characters of `bytes` to `out` and returns how many bytes are decided: all but the beginning of a
/// character at the end.
fn decode(bytes: &[u8], out: &mut String) -> usize {
    let mut decided = 0;
    for chunk in bytes.utf8_chunks() {
        out.push_str(chunk.valid());
        decided += chunk.valid().len();
        let invalid = chunk.invalid();
        if decided + invalid.len() == bytes.len() && is_beginning(invalid) {
            break;
        }
        if !invalid.is_empty() {
            out.push(char::REPLACEMENT_CHARACTER);
            decided += invalid.len();
        }
    }
    decided
}

/// Whether more bytes could make a character of these.
fn is_beginning(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}
