//! The vocabulary of a model file: text to tokens, and the bytes of each token.

use std::collections::{HashMap, HashSet};

use regex::Regex;

use super::bpe::{self, Bpe, Whole};
use super::guard::{Guard, any_of};
use super::letters;
use super::split::Splitter;
use super::spm::{self, Spm};
use crate::Error;
use crate::gguf::Gguf;
use crate::plan::TokenId;

/// Largest vocabulary; the largest known have a quarter of it.
const VOCABULARY_MAX: usize = 1 << 20;
/// Longest text of a control token, and of all of them together, in bytes: the guard keeps every part of each. The
/// largest known have a tenth of it.
const CONTROL_MAX: usize = 256;
const CONTROLS_MAX: usize = 256 << 10;

/// Tokens that end an answer in some family, whatever the file says of them.
const END_TEXTS: [&str; 9] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|return|>",
    "<end_of_turn>",
    "</s>",
];

/// Whether a control token spelled in a text counts as that token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// It does: the text is ours or the template's.
    Parse,
    /// It is plain text: somebody else wrote it.
    Plain,
}

/// A vocabulary, and how it spells text.
#[derive(Debug)]
pub struct Tokenizer {
    spelling: Spelling,
    /// (vocabulary) bytes that each token shows, end to end; token `t` has `bounds[t]..bounds[t + 1]`.
    shown: Vec<u8>,
    bounds: Vec<usize>,
    /// Finds control and user-defined tokens in text.
    parsed: Markers,
    /// Finds user-defined tokens only: they are plain text that happens to be one token.
    plain: Markers,
    guard: Guard,
    ends: HashSet<TokenId>,
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    begin: Begin,
}

/// Whether prompts begin with the beginning-of-sequence token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begin {
    Bare,
    Bos,
}

/// How text becomes tokens.
#[derive(Debug)]
enum Spelling {
    /// Cut into pieces, whose bytes merge by rank.
    Bytes { splitter: Splitter, bpe: Bpe },
    /// Whole, its characters merging by score.
    Scores { spm: Spm, edge: Edge },
}

/// Whether a text gets a space before it, where it begins or follows a control token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Edge {
    Bare,
    Spaced,
}

/// Tokens that are looked for in a text before it is cut into pieces.
#[derive(Debug)]
struct Markers {
    pattern: Option<Regex>,
    ids: HashMap<Box<str>, TokenId>,
}

/// What a token is, by the number that files give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Normal,
    /// Steers the model and shows nothing; the unknown and unused tokens count as such too.
    Control,
    UserDefined,
    Byte,
}

impl Type {
    fn from_id(id: i32) -> Result<Type, Error> {
        Ok(match id {
            1 => Type::Normal,
            2 | 3 | 5 => Type::Control,
            4 => Type::UserDefined,
            6 => Type::Byte,
            other => return Err(Error::Tokenizer(format!("token type {other} is unknown"))),
        })
    }
}

impl Tokenizer {
    /// Reads the vocabulary of a model file.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for other kinds than byte-level BPE and sentencepiece's with scores, else as the file is
    /// at fault.
    pub fn from_gguf(gguf: &Gguf) -> Result<Tokenizer, Error> {
        let tokens = gguf.strings("tokenizer.ggml.tokens")?;
        let types = types(gguf, tokens.len())?;
        let (alphabet, begins) = match gguf.str("tokenizer.ggml.model")? {
            "gpt2" => (Alphabet::Bytes, Begin::Bare),
            "llama" => (Alphabet::Characters, Begin::Bos),
            other => return Err(Error::Unsupported(format!("tokenizer model `{other:.64}`"))),
        };
        let (shown, bounds) = shown(alphabet, &tokens, &types);
        let (spelling, begins) = match alphabet {
            Alphabet::Bytes => merges(gguf, &tokens, (&shown, &bounds))?,
            Alphabet::Characters => (scores(gguf, &tokens, &types)?, begins),
        };
        let bos = named(gguf, "tokenizer.ggml.bos_token_id", tokens.len())?;
        let eos = named(gguf, "tokenizer.ggml.eos_token_id", tokens.len())?;
        let ends = ends(gguf, &tokens, &types)?;
        let steers = |id: TokenId| types[id as usize] == Type::Control || ends.contains(&id) || bos == Some(id);
        let (mut controls, mut users) = (Vec::new(), Vec::new());
        for (id, text) in (0..).zip(&tokens) {
            // A control token of one letter cannot be told from that letter: it is never read from a text.
            match types[id as usize] {
                _ if steers(id) && text.chars().nth(1).is_some() => controls.push((*text, id)),
                Type::UserDefined if !text.is_empty() && !steers(id) => users.push((*text, id)),
                _ => {}
            }
        }
        let begin = match optional(gguf, "tokenizer.ggml.add_bos_token", Gguf::bool)? {
            Some(true) => Begin::Bos,
            Some(false) => Begin::Bare,
            None => begins,
        };
        let guarded: Vec<&str> = controls.iter().map(|(text, _)| *text).collect();
        check_controls(&guarded)?;
        Ok(Tokenizer {
            spelling,
            shown,
            bounds,
            plain: Markers::new(&users)?,
            parsed: Markers::new(&[users, controls].concat())?,
            guard: Guard::new(&guarded)?,
            ends,
            bos,
            eos,
            begin,
        })
    }

    /// The tokens of `text`, without a beginning-of-sequence token.
    ///
    /// # Errors
    /// None today; vocabularies that cannot spell every text will need it.
    pub fn encode(&self, text: &str, special: Special) -> Result<Vec<TokenId>, Error> {
        let mut writer = Writer::new(self, text);
        self.markers(special).cut(text, |part| match part {
            Part::Token(token) => writer.token(token),
            Part::Text(text) => writer.text(text),
        });
        Ok(writer.out)
    }

    /// The tokens of a rendered text in which `mark` parts what must not be read as control tokens.
    pub(super) fn encode_marked(&self, text: &str, mark: char) -> Vec<TokenId> {
        let mut writer = Writer::new(self, text);
        self.parsed.cut(text, |part| match part {
            Part::Token(token) => writer.token(token),
            Part::Text(marked) => {
                let text = marked.replace(mark, "");
                self.plain.cut(&text, |part| match part {
                    Part::Token(token) => writer.token(token),
                    Part::Text(text) => writer.text(text),
                });
            }
        });
        writer.out
    }

    fn markers(&self, special: Special) -> &Markers {
        match special {
            Special::Parse => &self.parsed,
            Special::Plain => &self.plain,
        }
    }

    /// `tokens` as a prompt: with the beginning-of-sequence token, where the model wants it and it is not there.
    pub(super) fn with_bos(&self, mut tokens: Vec<TokenId>) -> Vec<TokenId> {
        match (self.begin, self.bos) {
            (Begin::Bos, Some(bos)) if tokens.first() != Some(&bos) => tokens.insert(0, bos),
            _ => {}
        }
        tokens
    }

    pub(super) fn guard(&self) -> &Guard {
        &self.guard
    }

    /// The bytes that `token` shows: none for control tokens and for numbers beyond the vocabulary.
    #[must_use]
    pub fn bytes_of(&self, token: TokenId) -> &[u8] {
        let at = token as usize;
        match (self.bounds.get(at), self.bounds.get(at + 1)) {
            (Some(start), Some(end)) => &self.shown[*start..*end],
            _ => &[],
        }
    }

    /// How many tokens there are.
    #[must_use]
    pub fn vocabulary(&self) -> usize {
        self.bounds.len() - 1
    }

    /// Whether `token` ends an answer: end of sequence, of turn or of message.
    #[must_use]
    pub fn is_end(&self, token: TokenId) -> bool {
        self.ends.contains(&token)
    }

    /// The beginning-of-sequence token.
    #[must_use]
    pub fn bos(&self) -> Option<TokenId> {
        self.bos
    }

    /// The end-of-sequence token.
    #[must_use]
    pub fn eos(&self) -> Option<TokenId> {
        self.eos
    }
}

/// The tokens of a text, part by part.
struct Writer<'t> {
    spelling: &'t Spelling,
    /// What the next text gets before it.
    edge: Edge,
    bpe: bpe::Scratch,
    spm: spm::Scratch,
    out: Vec<TokenId>,
}

impl<'t> Writer<'t> {
    fn new(tokenizer: &'t Tokenizer, text: &str) -> Writer<'t> {
        let mut writer = Writer {
            spelling: &tokenizer.spelling,
            edge: Edge::Bare,
            bpe: bpe::Scratch::default(),
            spm: spm::Scratch::default(),
            out: Vec::with_capacity(text.len() / 3),
        };
        writer.turn();
        writer
    }

    /// The next text stands at an edge.
    fn turn(&mut self) {
        if let Spelling::Scores { edge, .. } = self.spelling {
            self.edge = *edge;
        }
    }

    fn token(&mut self, token: TokenId) {
        self.out.push(token);
        self.turn();
    }

    fn text(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        match self.spelling {
            Spelling::Bytes { splitter, bpe } => {
                for piece in splitter.pieces(text) {
                    bpe.encode(piece, &mut self.bpe, &mut self.out);
                }
            }
            Spelling::Scores { spm, .. } => {
                let before = if self.edge == Edge::Spaced { " " } else { "" };
                spm.encode(before, text, &mut self.spm, &mut self.out);
            }
        }
        self.edge = Edge::Bare;
    }
}

/// A stretch of text between markers, or a marker's token.
enum Part<'t> {
    Text(&'t str),
    Token(TokenId),
}

impl Markers {
    fn new(tokens: &[(&str, TokenId)]) -> Result<Markers, Error> {
        Ok(Markers {
            pattern: any_of(tokens.iter().map(|(text, _)| *text).collect())?,
            ids: tokens.iter().map(|(text, id)| ((*text).into(), *id)).collect(),
        })
    }

    /// Hands the parts of `text` to `take`, in order.
    fn cut<'t>(&self, text: &'t str, mut take: impl FnMut(Part<'t>)) {
        let mut at = 0;
        for found in self.pattern.iter().flat_map(|pattern| pattern.find_iter(text)) {
            take(Part::Text(&text[at..found.start()]));
            if let Some(token) = self.ids.get(found.as_str()) {
                take(Part::Token(*token));
            }
            at = found.end();
        }
        take(Part::Text(&text[at..]));
    }
}

fn types(gguf: &Gguf, vocabulary: usize) -> Result<Vec<Type>, Error> {
    if vocabulary > VOCABULARY_MAX {
        let why = format!("{vocabulary} tokens exceed {VOCABULARY_MAX}");
        return Err(Error::Tokenizer(why));
    }
    let Some(numbers) = optional(gguf, "tokenizer.ggml.token_type", Gguf::i32s)? else {
        return Ok(vec![Type::Normal; vocabulary]);
    };
    if numbers.len() != vocabulary {
        let why = format!("{} token types for {vocabulary} tokens", numbers.len());
        return Err(Error::Tokenizer(why));
    }
    numbers.into_iter().map(Type::from_id).collect()
}

fn check_controls(texts: &[&str]) -> Result<(), Error> {
    let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
    let all: usize = texts.iter().map(|text| text.len()).sum();
    if longest > CONTROL_MAX || all > CONTROLS_MAX {
        return Err(Error::Malformed(format!("control tokens of up to {longest} bytes, {all} together")));
    }
    Ok(())
}

/// What the texts of ordinary tokens are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alphabet {
    /// A letter for each byte.
    Bytes,
    /// Themselves, with a mark for the space.
    Characters,
}

/// The spelling of a byte-level vocabulary, and whether its prompts begin with a token where the file leaves it open.
fn merges(gguf: &Gguf, tokens: &[&str], shown: (&[u8], &[usize])) -> Result<(Spelling, Begin), Error> {
    let scheme = optional(gguf, "tokenizer.ggml.pre", Gguf::str)?.unwrap_or("default");
    let splitter = Splitter::by_name(scheme)?;
    let llama3 = matches!(scheme, "llama-bpe" | "llama3" | "llama-v3");
    let mut ids = HashMap::with_capacity(tokens.len());
    for (id, text) in (0..).zip(tokens) {
        ids.entry(*text).or_insert(id);
    }
    let whole = if llama3 { Whole::Taken(by_bytes(shown.0, shown.1)) } else { Whole::Merged };
    let bpe = Bpe::new(&ids, &gguf.strings("tokenizer.ggml.merges")?, whole)?;
    Ok((Spelling::Bytes { splitter, bpe }, if llama3 { Begin::Bos } else { Begin::Bare }))
}

/// The spelling of a vocabulary with scores.
fn scores(gguf: &Gguf, tokens: &[&str], types: &[Type]) -> Result<Spelling, Error> {
    let scores = gguf.f32s("tokenizer.ggml.scores")?;
    if scores.len() != tokens.len() {
        return Err(Error::Tokenizer(format!("{} scores for {} tokens", scores.len(), tokens.len())));
    }
    let unknown = named(gguf, "tokenizer.ggml.unknown_token_id", tokens.len())?;
    let mut spm = Spm::new(unknown);
    for (id, ((text, kind), score)) in (0..).zip(tokens.iter().zip(types).zip(scores)) {
        match kind {
            Type::Normal | Type::UserDefined => spm.add(text, id, score),
            Type::Byte => byte_token(text).into_iter().for_each(|byte| spm.add_byte(byte, id)),
            // Never made of text: a user could write it.
            Type::Control => {}
        }
    }
    let spaced = optional(gguf, "tokenizer.ggml.add_space_prefix", Gguf::bool)?.unwrap_or(true);
    Ok(Spelling::Scores { spm, edge: if spaced { Edge::Spaced } else { Edge::Bare } })
}

/// The bytes of all tokens end to end, and where each begins and ends.
fn shown(alphabet: Alphabet, tokens: &[&str], types: &[Type]) -> (Vec<u8>, Vec<usize>) {
    let mut bytes = Vec::new();
    let mut bounds = vec![0];
    for (text, kind) in tokens.iter().zip(types) {
        let start = bytes.len();
        match kind {
            Type::Control => {}
            Type::UserDefined => bytes.extend_from_slice(text.as_bytes()),
            Type::Byte => bytes.extend(byte_token(text)),
            Type::Normal if alphabet == Alphabet::Characters => {
                bytes.extend_from_slice(text.replace(spm::SPACE, " ").as_bytes());
            }
            Type::Normal => {
                bytes.extend(text.chars().map_while(letters::byte));
                if bytes.len() - start != text.chars().count() {
                    // Not in the byte alphabet: a text added as it is.
                    bytes.truncate(start);
                    bytes.extend_from_slice(text.as_bytes());
                }
            }
        }
        bounds.push(bytes.len());
    }
    (bytes, bounds)
}

/// The byte of a token like `<0x0A>`.
fn byte_token(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok()
}

fn by_bytes(shown: &[u8], bounds: &[usize]) -> HashMap<Box<[u8]>, TokenId> {
    let mut ids = HashMap::with_capacity(bounds.len());
    for (id, range) in (0..).zip(bounds.windows(2)) {
        if range[0] < range[1] {
            ids.entry(shown[range[0]..range[1]].into()).or_insert(id);
        }
    }
    ids
}

fn ends(gguf: &Gguf, tokens: &[&str], types: &[Type]) -> Result<HashSet<TokenId>, Error> {
    let mut ends = HashSet::new();
    for key in ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        ends.extend(named(gguf, key, tokens.len())?);
    }
    let known = (0..).zip(tokens.iter().zip(types)).filter(|(_, (text, kind))| match kind {
        Type::Control => END_TEXTS.contains(text),
        // As a tag of HTML it ends nothing.
        Type::UserDefined => END_TEXTS.contains(text) && **text != "</s>",
        Type::Normal | Type::Byte => false,
    });
    ends.extend(known.map(|(id, _)| id));
    Ok(ends)
}

/// The token that `key` names, if the file has the key.
fn named(gguf: &Gguf, key: &str, vocabulary: usize) -> Result<Option<TokenId>, Error> {
    match optional(gguf, key, Gguf::u32)? {
        Some(id) if id as usize >= vocabulary => {
            Err(Error::Tokenizer(format!("`{key}` is {id}, the vocabulary has {vocabulary} tokens")))
        }
        id => Ok(id),
    }
}

/// Reads `key` where the file has it.
fn optional<'a, T>(
    gguf: &'a Gguf,
    key: &str,
    read: impl FnOnce(&'a Gguf, &str) -> Result<T, Error>,
) -> Result<Option<T>, Error> {
    gguf.value(key).map(|_| read(gguf, key)).transpose()
}
