//! Tokens of one job to text that may be shown: complete characters, and nothing of a stop string.

use super::job::Finish;
use crate::plan::TokenId;
use crate::scheduler::Verdict;
use crate::stop::{Met, StopStrings};
use crate::text::{Detokenizer, Tokenizer};
use std::sync::Arc;

/// What the engine needs of a tokenizer.
pub(super) trait Vocabulary: Send + Sync {
    /// A decoder at the start of a text.
    fn decoder(self: Arc<Self>) -> Box<dyn Decode>;
    /// Whether the token ends a text.
    fn is_end(&self, token: TokenId) -> bool;
}

/// Tokens of one text to characters.
pub(super) trait Decode: Send {
    /// The characters that the token completes.
    fn push(&mut self, token: TokenId) -> String;
    /// What is left when the text ends within a character.
    fn finish(&mut self) -> String;
}

impl Vocabulary for Tokenizer {
    fn decoder(self: Arc<Self>) -> Box<dyn Decode> {
        Box::new(Detokenizer::new(self))
    }

    fn is_end(&self, token: TokenId) -> bool {
        Self::is_end(self, token)
    }
}

impl Decode for Detokenizer {
    fn push(&mut self, token: TokenId) -> String {
        Self::push(self, token).to_owned()
    }

    fn finish(&mut self) -> String {
        Self::finish(self)
    }
}

/// Reads one job's tokens.
pub(super) struct Reader {
    vocabulary: Arc<dyn Vocabulary>,
    decoder: Box<dyn Decode>,
    stops: StopStrings,
    /// Whether a stop string has ended the text.
    met: Met,
    /// Ready to be shown.
    text: String,
}

impl Reader {
    pub(super) fn new(vocabulary: Arc<dyn Vocabulary>, stops: Vec<String>) -> Self {
        Self {
            decoder: Arc::clone(&vocabulary).decoder(),
            vocabulary,
            stops: StopStrings::new(stops),
            met: Met::No,
            text: String::new(),
        }
    }

    /// Reads the next token.
    pub(super) fn read(&mut self, token: TokenId) -> Verdict {
        if self.vocabulary.is_end(token) {
            return Verdict::Stop;
        }
        let piece = self.decoder.push(token);
        self.met = self.stops.push(&piece, &mut self.text);
        match self.met {
            Met::Yes => Verdict::Stop,
            Met::No => Verdict::Continue,
        }
    }

    /// There are no more tokens: what was held back is text after all, unless a stop string had ended it, or what
    /// was left in the decoder completes one.
    pub(super) fn finish(&mut self, finish: Finish) -> Finish {
        if self.met == Met::No {
            let rest = self.decoder.finish();
            self.met = self.stops.push(&rest, &mut self.text);
        }
        if self.met == Met::Yes {
            return Finish::Stop;
        }
        self.stops.finish(&mut self.text);
        finish
    }

    /// The text that became ready since the last call.
    pub(super) fn take_text(&mut self) -> Option<String> {
        (!self.text.is_empty()).then(|| std::mem::take(&mut self.text))
    }
}
