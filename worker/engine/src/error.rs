//! What can go wrong in the engine, as its callers tell cases apart.

/// The engine's error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A model file breaks its format, or exceeds one of our caps.
    #[error("malformed model file: {0}")]
    Malformed(String),
    /// A model file is well-formed, but of a kind that this engine does not run.
    #[error("unsupported model: {0}")]
    Unsupported(String),
    /// A chat cannot be rendered by the model's template.
    #[error("chat template: {0}")]
    Template(String),
    /// A text cannot be tokenised.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The device failed.
    #[error("device: {0}")]
    Device(String),
    /// The device's memory has no room for what was asked; all that it held it still holds.
    #[error("device: no room for {bytes} bytes, {free} are free")]
    OutOfMemory {
        /// What was asked for.
        bytes: usize,
        /// What was free then.
        free: usize,
    },
}

impl From<kernels::Error> for Error {
    fn from(error: kernels::Error) -> Error {
        Error::Device(error.0)
    }
}
