//! Text to tokens and back: a chat becomes a prompt by the model's own template, a prompt becomes tokens by its
//! vocabulary, and sampled tokens become characters again. Pure and synchronous; knows no tensor and no sequence.
//!
//! What users write can never turn into the tokens that steer a chat: see [`chat_tokens`].

mod bpe;
mod detokenizer;
mod encoder;
mod guard;
mod letters;
mod python;
mod split;
mod spm;
mod template;
mod tokenizer;

pub use detokenizer::Detokenizer;
pub use encoder::{Encoded, Excess, TEXT_BYTES_MAX, TextEncoder};
pub(crate) use letters::letter;
pub use template::Template;
pub use tokenizer::{Special, Tokenizer};

use crate::Error;
use crate::plan::TokenId;

/// Who says a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Whoever set up the chat.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The name that templates know.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What they say: any text, trusted in nothing.
    pub content: String,
}

/// The prompt of a chat: rendered by `template`, with the assistant to speak next.
///
/// Control tokens come from the template alone. A content that spells one, wholly or as a part that the template would
/// complete, is parted by a mark before rendering: a character that occurs nowhere else, taken out again once the
/// template's control tokens are found. So a chat without such spellings has the tokens of its rendered text, and in
/// one with them they are plain text.
///
/// # Errors
/// [`Error::Template`] when the template refuses the chat or exceeds its limits.
pub fn chat_tokens(template: &Template, tokenizer: &Tokenizer, messages: &[Message]) -> Result<Vec<TokenId>, Error> {
    let guard = tokenizer.guard();
    let contents = messages.iter().map(|message| message.content.as_str());
    let mark = guard
        .mark(contents.chain([template.source()]))
        .ok_or_else(|| Error::Template("the chat uses every private character of Unicode".to_owned()))?;
    let guarded: Vec<Message> = messages
        .iter()
        .map(|message| Message { role: message.role, content: guard.part(&message.content, mark) })
        .collect();
    let rendered = template.render(&guarded)?;
    let tokens = tokenizer.encode_marked(&rendered, mark);
    Ok(tokenizer.with_bos(tokens))
}

/// The prompt of a text to be continued. Control tokens spelled in it are plain text.
///
/// # Errors
/// [`Error::Tokenizer`] when the text cannot be encoded.
pub fn complete_tokens(tokenizer: &Tokenizer, text: &str) -> Result<Vec<TokenId>, Error> {
    Ok(tokenizer.with_bos(tokenizer.encode(text, Special::Plain)?))
}

#[cfg(test)]
mod tests;
