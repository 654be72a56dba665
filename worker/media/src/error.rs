//! Why a picture or a sound was not decoded, as a sentence for its sender.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Why bytes were not decoded. The text is for whoever sent them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No decoder reads this format, or not this variant of it.
    #[error("{0}")]
    Unsupported(String),
    /// The bytes contradict themselves or end too early.
    #[error("{0}")]
    Malformed(String),
    /// Well-formed as far as was read, but beyond a limit.
    #[error("{what}; the limit is {limit}")]
    TooLarge {
        /// What is too large, with its size where that is known.
        what: String,
        /// The limit, with its unit.
        limit: String,
    },
    /// Nobody waits for it any more.
    #[error("decoding was stopped")]
    Stopped,
}

/// Runs a decoder; a panic in it is the file's fault, and must not end the process.
pub(crate) fn guarded<T>(what: &str, decode: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(decode))
        .unwrap_or_else(|_| Err(Error::Malformed(format!("the {what} cannot be decoded"))))
}
