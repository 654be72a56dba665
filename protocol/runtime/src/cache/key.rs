//! The key of an answer: a hash of all that it depends on, and of nothing else.

use protocol::request::{Content, Params, Part, Task};
use protocol::token::Token;

/// Changes whenever the same parts must give another key.
const VERSION: &str = "flotilla answer key 3";

/// All that an answer depends on. The format of the reply is not part of it.
#[derive(Clone, Copy, Debug)]
pub struct KeyParts<'a> {
    /// Answers never cross tenants.
    pub tenant: &'a Token,
    /// Name of the model, since answers carry it.
    pub model: &'a str,
    /// SHA-256 of the model file, which holds tokenizer and template too.
    pub digest: &'a str,
    /// How its weights are stored.
    pub precision: &'a str,
    /// What is done.
    pub task: &'a Task,
    /// Parameters; open ones count as their defaults, but for the length of the answer.
    pub params: &'a Params,
    /// The input.
    pub input: &'a [Part],
}

/// The key of an answer, in hexadecimal.
#[must_use]
pub fn cache_key(parts: &KeyParts<'_>) -> String {
    let KeyParts { tenant, model, digest, precision, task, params, input } = *parts;
    let mut key = Fields::default();
    key.text(VERSION).text(tenant.as_str()).text(model).text(digest).text(precision).text(task.as_str());
    add_params(&mut key, params);
    key.number(input.len() as u64);
    for part in input {
        key.text(part.role.as_str());
        match &part.content {
            Content::Text(text) => key.text("text").text(text),
            Content::Media { modality, mime, data } => key.text(modality.as_str()).text(mime).bytes(&data.0),
        };
    }
    key.hash()
}

/// Every field by name, so that a new one cannot be forgotten.
fn add_params(key: &mut Fields, params: &Params) {
    let Params {
        max_tokens,
        temperature,
        top_p,
        top_k,
        min_p,
        repetition_penalty,
        stop: _,
        seed,
        dimensions,
        truncate,
        labels,
        top,
        language,
        format,
        words,
    } = params;
    let temperature = temperature.unwrap_or(0.0);
    // Greedy choice looks at none of these.
    let sampled = temperature > 0.0;
    // An open length may be cut to what the context has room for, where the same number named is refused.
    key.option(max_tokens.map(u64::from)).float(temperature);
    key.float(top_p.filter(|_| sampled).unwrap_or(1.0));
    key.number(u64::from(top_k.filter(|_| sampled).unwrap_or(0)));
    key.float(min_p.filter(|_| sampled).unwrap_or(0.0));
    key.number(seed.filter(|_| sampled).unwrap_or(0));
    key.float(repetition_penalty.unwrap_or(1.0));
    key.list(params.stops());
    key.option(dimensions.map(u64::from)).number(u64::from(truncate.unwrap_or(false)));
    key.list(labels.as_deref().unwrap_or_default()).number(u64::from(top.unwrap_or(5)));
    key.text(language.as_deref().unwrap_or_default());
    key.option(format.map(|format| format as u64)).number(u64::from(words.unwrap_or(false)));
}

/// Fields with their lengths, so that no two lists of fields give the same bytes.
#[derive(Default)]
struct Fields {
    hasher: blake3::Hasher,
    /// Not hashed yet: many fields are shorter than what a hash takes at once.
    short: Vec<u8>,
}

/// Fields that are longer are hashed where they are.
const SHORT: usize = 1024;

impl Fields {
    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.short.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        if bytes.len() <= SHORT {
            self.short.extend_from_slice(bytes);
        } else {
            self.hasher.update(&self.short).update(bytes);
            self.short.clear();
        }
        self
    }

    fn hash(mut self) -> String {
        self.hasher.update(&self.short).finalize().to_hex().to_string()
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    fn number(&mut self, number: u64) -> &mut Self {
        self.bytes(&number.to_le_bytes())
    }

    fn float(&mut self, number: f32) -> &mut Self {
        // Minus zero is zero.
        self.bytes(&(number + 0.0).to_bits().to_le_bytes())
    }

    fn option(&mut self, number: Option<u64>) -> &mut Self {
        match number {
            None => self.bytes(&[]),
            Some(number) => self.number(number),
        }
    }

    fn list(&mut self, texts: &[String]) -> &mut Self {
        self.number(texts.len() as u64);
        for text in texts {
            self.text(text);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::request::Stop;

    fn key(change: impl FnOnce(&mut Params), text: &str) -> String {
        let mut params = Params::default();
        change(&mut params);
        cache_key(&KeyParts {
            tenant: &Token::default_tenant(),
            model: "m",
            digest: "d",
            precision: "q4_1",
            task: &Task::Chat,
            params: &params,
            input: &[Part::user(text)],
        })
    }

    #[test]
    fn defaults_are_filled_in() {
        let open = key(|_| {}, "x");
        assert_eq!(open.len(), 64);
        assert_eq!(open, key(|p| p.temperature = Some(-0.0), "x"));
        assert_eq!(open, key(|p| (p.seed, p.top_p) = (Some(7), Some(0.5)), "x"), "greedy choice has no dice");
        assert_eq!(open, key(|p| p.stop = Some(Stop::Many(vec![])), "x"));
        let one = key(|p| p.stop = Some(Stop::One("a".into())), "x");
        assert_eq!(one, key(|p| p.stop = Some(Stop::Many(vec!["a".into()])), "x"));
    }

    #[test]
    fn what_changes_the_answer_changes_the_key() {
        let keys = [
            key(|_| {}, "x"),
            key(|_| {}, "y"),
            key(|p| p.max_tokens = Some(256), "x"),
            key(|p| p.max_tokens = Some(255), "x"),
            key(|p| p.repetition_penalty = Some(1.1), "x"),
            key(|p| (p.temperature, p.seed) = (Some(1.0), Some(1)), "x"),
            key(|p| (p.temperature, p.seed) = (Some(1.0), Some(2)), "x"),
            key(|p| p.stop = Some(Stop::Many(vec!["a".into(), "b".into()])), "x"),
            key(|p| p.stop = Some(Stop::Many(vec!["ab".into()])), "x"),
            key(|p| p.dimensions = Some(0), "x"),
        ];
        let distinct: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
    }
}
