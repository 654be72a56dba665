//! Chat templates: small Jinja programs that come with a model and turn messages into its prompt.
//!
//! They run as they do in Python: white space trimmed around blocks, Python's string methods, `raise_exception`,
//! `strftime_now`, `tojson`. And they run on a leash: so many instructions, so deep, so much output. The leash does not
//! hold the memory of a value that a template builds and never writes (a string joined to itself again and again):
//! a model's template deserves the trust that its weights do, and a chat's content cannot make it do so.

use std::io;

use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, Value, context};

use super::{Message, python};
use crate::Error;
use crate::gguf::Gguf;

/// Longest template; the longest known are about 20 KiB.
const SOURCE_BYTES_MAX: usize = 256 << 10;
/// Instructions of one rendering; a message costs some dozens, and this many take well under a second.
const FUEL: u64 = 2_000_000;
/// Depth of macros and recursive loops.
const RECURSION_MAX: usize = 64;
/// Output beyond the messages themselves...
const OUTPUT_BYTES_BASE: usize = 1 << 20;
/// ...and how often each message may appear in it.
const OUTPUT_REPEATS: usize = 4;
/// The name of the only template in its environment; without suffix, so that nothing is escaped.
const NAME: &str = "chat";

/// A model's chat template, compiled.
#[derive(Debug)]
pub struct Template {
    environment: Environment<'static>,
    source: String,
    bos: String,
    eos: String,
}

impl Template {
    /// The template of a model file, if it has one.
    ///
    /// # Errors
    /// [`Error::Template`] when it is no valid template.
    pub fn from_gguf(gguf: &Gguf) -> Result<Option<Template>, Error> {
        let key = "tokenizer.chat_template";
        if gguf.value(key).is_none() {
            return Ok(None);
        }
        let mut template = Template::new(gguf.str(key)?)?;
        if gguf.value("tokenizer.ggml.tokens").is_some() {
            let tokens = gguf.strings("tokenizer.ggml.tokens")?;
            template.bos = special(gguf, "tokenizer.ggml.bos_token_id", &tokens);
            template.eos = special(gguf, "tokenizer.ggml.eos_token_id", &tokens);
        }
        Ok(Some(template))
    }

    /// A template from its source; `bos_token` and `eos_token` are empty in it.
    ///
    /// # Errors
    /// [`Error::Template`] when it is no valid template.
    pub fn new(source: &str) -> Result<Template, Error> {
        if source.len() > SOURCE_BYTES_MAX {
            let why = format!("{} bytes exceed {SOURCE_BYTES_MAX}", source.len());
            return Err(Error::Template(why));
        }
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION_MAX);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", |format: &str| python::strftime_now(format));
        environment.add_filter("tojson", |value: &Value, options: Kwargs| python::tojson(value, options));
        environment.add_template_owned(NAME, source.to_owned()).map_err(|error| fault(&error))?;
        Ok(Template { environment, source: source.to_owned(), bos: String::new(), eos: String::new() })
    }

    /// The prompt's text for `messages`, ending where the assistant begins to speak. Contents are taken as they are:
    /// see [`super::chat_tokens`] for how they are kept from passing for control tokens.
    ///
    /// # Errors
    /// [`Error::Template`] when the template refuses the messages or exceeds its limits.
    pub fn render(&self, messages: &[Message]) -> Result<String, Error> {
        let said: usize = messages.iter().map(|message| message.content.len()).sum();
        let messages: Vec<Value> =
            messages.iter().map(|message| context!(role => message.role.name(), content => message.content)).collect();
        let values = context! {
            messages,
            add_generation_prompt => true,
            bos_token => self.bos,
            eos_token => self.eos,
        };
        let template = self.environment.get_template(NAME).map_err(|error| fault(&error))?;
        let limit = OUTPUT_BYTES_BASE.saturating_add(said.saturating_mul(OUTPUT_REPEATS));
        let mut out = Limited::new(limit);
        template.render_captured_to(values, &mut out).map_err(|error| fault(&error))?;
        String::from_utf8(out.into_bytes()).map_err(|error| Error::Template(error.to_string()))
    }

    pub(super) fn source(&self) -> &str {
        &self.source
    }
}

/// Bytes up to a limit.
pub(super) struct Limited {
    bytes: Vec<u8>,
    limit: usize,
}

impl Limited {
    pub(super) fn new(limit: usize) -> Limited {
        Limited { bytes: Vec::new(), limit }
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.limit - self.bytes.len() {
            let why = format!("output exceeds {} bytes", self.limit);
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The text of the token that `key` names, empty where there is none.
fn special(gguf: &Gguf, key: &str, tokens: &[&str]) -> String {
    let text = gguf.u32(key).ok().and_then(|id| tokens.get(id as usize));
    text.map_or_else(String::new, |text| (*text).to_owned())
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

fn fault(error: &minijinja::Error) -> Error {
    // The text names kind and line; the source is what stopped the output, where that is the cause.
    let mut why = error.to_string();
    if let Some(source) = std::error::Error::source(error) {
        why = format!("{why}: {source}");
    }
    Error::Template(why)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::text::Role;

    fn chat() -> [Message; 2] {
        let message = |role, content: &str| Message { role, content: content.to_owned() };
        [message(Role::User, " Hi "), message(Role::Assistant, "<b>\"ü\"</b>")]
    }

    fn check(source: &str, expected: &str) {
        let rendered = Template::new(source).unwrap().render(&chat()).unwrap();
        assert_eq!(rendered, expected, "{source}");
    }

    fn refused(source: &str, why: &str) {
        let begun = Instant::now();
        let result = Template::new(source).and_then(|template| template.render(&chat()));
        match result {
            Err(Error::Template(text)) => assert!(text.contains(why), "{text:?} lacks {why:?}"),
            other => panic!("{source}: {:?}", other.map(|text| text.len())),
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "{source}: {:?}", begun.elapsed());
    }

    #[test]
    fn templates_run_as_in_python() {
        check("{{ messages[0]['content'].strip() }}|{{ messages[0].role | upper }}", "Hi|USER");
        check("{{ messages[1].content.split('b')[-1] }}{{ eos_token }}", ">");
        check(
            "{% for m in messages %}\n  {% if loop.last %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}",
            "<b>\"ü\"</b>\n",
        );
        check("{% for m in messages %}{% break %}{% endfor %}{{ tools is defined }}", "False");
        check(
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "2",
        );
        check("{{ messages[1] | tojson }}", "{\"role\": \"assistant\", \"content\": \"<b>\\\"ü\\\"</b>\"}");
        check("{{ [1, {'a': []}] | tojson(indent=2) }}", "[\n  1,\n  {\n    \"a\": []\n  }\n]");
        check("{{ strftime_now('%Y') | length }}{{ strftime_now('%%') }}", "4%");
    }

    #[test]
    fn a_template_may_refuse_a_chat() {
        refused("{{ raise_exception('roles must alternate') }}", "roles must alternate");
    }

    #[test]
    fn broken_and_hostile_templates_end_in_an_error() {
        refused("{% for m in messages %}", "syntax");
        refused("{{ messages | nothing }}", "filter");
        refused("{% include 'other' %}", "other");
        refused(&" ".repeat(SOURCE_BYTES_MAX + 1), "bytes exceed");
        refused(&"{% if true %}".repeat(10_000), "");
        refused(&format!("{{{{ {}1{} }}}}", "(".repeat(50_000), ")".repeat(50_000)), "");
        refused("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}", "fuel");
        refused("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "");
        refused("{% for a in range(90000) %}{{ 'twenty bytes of text' }}{% endfor %}", "output exceeds");
        refused("{{ 'x' * 90000000 }}", "output exceeds");
        refused("{% set x = ['x' * 1000] %}{% for a in range(2000) %}{{ x }}{% endfor %}", "output exceeds");
    }
}
