//! Whisper's tokens: text below the end of text, then controls and languages, then times in steps of 20 ms.

use tokenizers::Tokenizer;

use super::config::{Config, SOURCE_POSITIONS};
use crate::Error;
use crate::plan::TokenId;

/// Characters that make a word of their own.
const PUNCTUATION: &str = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";
/// Languages written without spaces: words end where characters do.
const SPACELESS: [&str; 6] = ["zh", "ja", "th", "lo", "my", "yue"];

/// The ids of controls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Controls {
    /// Ends the text; every text token is below.
    pub(super) end: TokenId,
    pub(super) start: TokenId,
    pub(super) transcribe: Option<TokenId>,
    pub(super) previous: TokenId,
    pub(super) no_speech: TokenId,
    pub(super) no_times: TokenId,
    /// 0.00 seconds; every id from here on is a time.
    pub(super) times: TokenId,
    /// Ids there are, times included.
    pub(super) count: TokenId,
}

/// A language that the model hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Language {
    /// ISO 639-1 where there is one.
    pub(super) code: String,
    /// `None` where the model hears nothing else.
    pub(super) id: Option<TokenId>,
}

/// Tokens and what they stand for.
pub(super) struct Vocabulary {
    tokenizer: Tokenizer,
    pub(super) controls: Controls,
    languages: Vec<Language>,
}

/// A word and its tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Spelled {
    pub(super) text: String,
    pub(super) tokens: Vec<TokenId>,
}

impl Vocabulary {
    pub(super) fn new(json: &str, config: &Config) -> Result<Vocabulary, Error> {
        let tokenizer =
            Tokenizer::from_bytes(json).map_err(|error| Error::Tokenizer(format!("tokenizer of Whisper: {error}")))?;
        let find = |name: &str| tokenizer.token_to_id(&format!("<|{name}|>"));
        let need = |name: &str| find(name).ok_or_else(|| Error::Tokenizer(format!("no token <|{name}|>")));
        let no_times = need("notimestamps")?;
        let controls = Controls {
            end: need("endoftext")?,
            start: need("startoftranscript")?,
            transcribe: if config.multilingual { Some(need("transcribe")?) } else { None },
            previous: need("startofprev")?,
            no_speech: find("nospeech").map_or_else(|| need("nocaptions"), Ok)?,
            no_times,
            times: no_times.saturating_add(1),
            count: config.vocab_size as TokenId,
        };
        let inside = [controls.start, controls.previous, controls.no_speech].into_iter().chain(controls.transcribe);
        let in_order = inside.into_iter().all(|token| controls.end < token && token < no_times);
        if !in_order || controls.count.saturating_sub(controls.times) <= SOURCE_POSITIONS as TokenId {
            return Err(Error::Tokenizer("Whisper's control tokens are not where its rules need them".into()));
        }
        let languages = languages(&tokenizer, config)?;
        Ok(Vocabulary { tokenizer, controls, languages })
    }

    /// The language of an ISO code, if the model hears it.
    pub(super) fn language(&self, code: &str) -> Option<&Language> {
        self.languages.iter().find(|language| language.code == code)
    }

    /// Those that the model hears.
    pub(super) fn languages(&self) -> &[Language] {
        &self.languages
    }

    /// What is taken for the language of silence, as the reference does.
    pub(super) fn usual_language(&self) -> &Language {
        self.language("en").or(self.languages.first()).expect("checked at load: a model hears one at least")
    }

    /// The text of the tokens that are text.
    pub(super) fn decode(&self, tokens: &[TokenId]) -> Result<String, Error> {
        let text: Vec<TokenId> = tokens.iter().copied().filter(|token| *token < self.controls.end).collect();
        self.tokenizer.decode(&text, true).map_err(|error| Error::Tokenizer(error.to_string()))
    }

    /// Cuts text tokens into words, each with its leading space.
    pub(super) fn words(&self, tokens: &[TokenId], language: &str) -> Result<Vec<Spelled>, Error> {
        let characters = self.whole_characters(tokens)?;
        if SPACELESS.contains(&language) {
            return Ok(characters);
        }
        let mut words: Vec<Spelled> = Vec::new();
        for part in characters {
            let begins = part.text.starts_with(' ') || PUNCTUATION.contains(part.text.trim());
            match words.last_mut() {
                Some(word) if !begins => {
                    word.text.push_str(&part.text);
                    word.tokens.extend(part.tokens);
                }
                _ => words.push(part),
            }
        }
        Ok(words)
    }

    /// Cuts tokens where characters end: a character may take several tokens.
    fn whole_characters(&self, tokens: &[TokenId]) -> Result<Vec<Spelled>, Error> {
        let whole: Vec<char> = self.decode(tokens)?.chars().collect();
        let mut parts = Vec::new();
        let (mut part, mut characters) = (Vec::new(), 0);
        for token in tokens {
            part.push(*token);
            let text = self.decode(&part)?;
            let broken = text.chars().position(|character| character == char::REPLACEMENT_CHARACTER);
            // A replacement that the whole text has too is what the model wrote.
            let written = |at: usize| whole.get(characters + at) == Some(&char::REPLACEMENT_CHARACTER);
            if broken.is_none_or(written) {
                characters += text.chars().count();
                parts.push(Spelled { text, tokens: std::mem::take(&mut part) });
            }
        }
        Ok(parts)
    }
}

fn languages(tokenizer: &Tokenizer, config: &Config) -> Result<Vec<Language>, Error> {
    if !config.multilingual {
        return Ok(vec![Language { code: "en".into(), id: None }]);
    }
    let language = |id: &TokenId| {
        let token = tokenizer.id_to_token(*id);
        let code = token.as_deref().and_then(|token| token.strip_prefix("<|")?.strip_suffix("|>"));
        let code = code.ok_or_else(|| Error::Tokenizer(format!("token {id} is no language")))?;
        Ok(Language { code: code.to_owned(), id: Some(*id) })
    };
    config.lang_ids.iter().map(language).collect()
}

#[cfg(test)]
pub(super) fn controls() -> Controls {
    Controls {
        end: 50256,
        start: 50257,
        transcribe: None,
        previous: 50360,
        no_speech: 50361,
        no_times: 50362,
        times: 50363,
        count: 51864,
    }
}

#[cfg(test)]
mod tests {
    use super::super::config;
    use super::*;

    /// The vocabulary of a tokenizer that has the controls of `tiny.en`, `name` being `id`.
    fn with(name: &str, id: TokenId) -> Result<Vocabulary, Error> {
        let names = ["endoftext", "startoftranscript", "startofprev", "nocaptions", "notimestamps"];
        let ids = [50256, 50257, 50360, 50361, 50362].into_iter().zip(names);
        let entry = |(known, other)| format!(r#""<|{other}|>": {}"#, if other == name { id } else { known });
        let tokens: Vec<String> = ids.map(entry).collect();
        let model = format!(r#"{{"type": "WordLevel", "unk_token": "", "vocab": {{{}}}}}"#, tokens.join(","));
        Vocabulary::new(&format!(r#"{{"version": "1.0", "added_tokens": [], "model": {model}}}"#), &config::tiny())
    }

    #[test]
    fn controls_out_of_place_are_refused() {
        with("endoftext", 50256).expect("as it is");
        for (name, id) in [
            ("notimestamps", u32::MAX),
            ("notimestamps", 51864 - 1500),
            ("endoftext", u32::MAX),
            ("endoftext", 50257),
            ("startofprev", 50363),
        ] {
            assert!(matches!(with(name, id), Err(Error::Tokenizer(_))), "{name} {id}");
        }
    }
}
