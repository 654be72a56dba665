//! Names that enter subjects and keys, checked once and valid ever after.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::Refusal;

/// Longest job id, tenant or worker name.
pub const TOKEN_LENGTH_MAX: usize = 64;
/// Longest session id.
pub const SESSION_LENGTH_MAX: usize = 128;
/// Longest model reference.
pub const MODEL_LENGTH_MAX: usize = 128;

/// One subject token: letters, digits, `_` and `-`, 1 to 64 of them. Job ids, tenants and worker names are tokens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Token(String);

impl Token {
    /// Checks a name; the refusal names `what`.
    pub fn parse(what: &str, name: &str) -> Result<Self, Refusal> {
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if name.is_empty() || name.len() > TOKEN_LENGTH_MAX || !name.bytes().all(valid) {
            return Err(Refusal::invalid(format!(
                "{what} must be 1 to {TOKEN_LENGTH_MAX} letters, digits, '_' or '-'"
            )));
        }
        Ok(Self(name.to_owned()))
    }

    /// A client's idempotency key. The ids that INGRESS gives (`i` and a number) are reserved.
    pub fn parse_client_id(name: &str) -> Result<Self, Refusal> {
        let token = Self::parse("id", name)?;
        match name.strip_prefix('i') {
            Some(rest) if !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()) => {
                Err(Refusal::invalid("id of the form i<number> is reserved for the submit door"))
            }
            _ => Ok(token),
        }
    }

    /// The id of the message at this place of INGRESS.
    #[must_use]
    pub fn ingress(sequence: u64) -> Self {
        Self(format!("i{sequence}"))
    }

    /// The name of one job of a pipeline; no client can give it, since `~` is in none of theirs.
    #[must_use]
    pub fn step(id: &Token, number: u32) -> Self {
        Self(format!("{id}~{number}"))
    }

    /// The request whose job has this name, where it is a step's.
    #[must_use]
    pub fn step_of(&self) -> Option<Self> {
        self.0.split_once('~').map(|(request, _)| Self(request.to_owned()))
    }

    /// The tenant of a fleet without tenants.
    #[must_use]
    pub fn default_tenant() -> Self {
        Self("default".to_owned())
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Token {
    type Error = Refusal;
    fn try_from(name: String) -> Result<Self, Refusal> {
        Self::parse("name", &name)
    }
}

impl From<Token> for String {
    fn from(token: Token) -> String {
        token.0
    }
}

/// A session as its client names it: 1 to 128 characters, none of them a control character.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SessionId(String);

impl SessionId {
    /// Checks a session id.
    pub fn parse(name: &str) -> Result<Self, Refusal> {
        let length = name.chars().count();
        if length == 0 || length > SESSION_LENGTH_MAX || name.chars().any(char::is_control) {
            return Err(Refusal::invalid(format!(
                "session must be 1 to {SESSION_LENGTH_MAX} characters without control characters"
            )));
        }
        Ok(Self(name.to_owned()))
    }

    /// The id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for SessionId {
    type Error = Refusal;
    fn try_from(name: String) -> Result<Self, Refusal> {
        Self::parse(&name)
    }
}

impl From<SessionId> for String {
    fn from(session: SessionId) -> String {
        session.0
    }
}

/// A model as a client asks for it: `name`, `name@precision` or `name@digest`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelRef {
    /// Name in the catalogue.
    pub name: String,
    /// What follows `@`: a precision, or a prefix of a digest.
    pub variant: Option<String>,
}

impl ModelRef {
    /// Checks a reference.
    pub fn parse(reference: &str) -> Result<Self, Refusal> {
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"._:/-".contains(&byte);
        let (name, variant) = match reference.split_once('@') {
            Some((name, variant)) => (name, Some(variant)),
            None => (reference, None),
        };
        let well_formed = |part: &str| !part.is_empty() && part.bytes().all(valid);
        if reference.len() > MODEL_LENGTH_MAX || !well_formed(name) || !variant.is_none_or(well_formed) {
            return Err(Refusal::invalid(format!(
                "model must be name, name@precision or name@digest, of letters, digits and ._:/-, at most {MODEL_LENGTH_MAX}"
            )));
        }
        Ok(Self { name: name.to_owned(), variant: variant.map(str::to_owned) })
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.variant {
            Some(variant) => write!(f, "{}@{variant}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl TryFrom<String> for ModelRef {
    type Error = Refusal;
    fn try_from(reference: String) -> Result<Self, Refusal> {
        Self::parse(&reference)
    }
}

impl From<ModelRef> for String {
    fn from(model: ModelRef) -> String {
        model.to_string()
    }
}
