//! What ends a dispatcher. What a client is told is a [`protocol::Refusal`].

/// A failure that the process does not survive.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is at fault; every fault is named.
    #[error("{}", .0.join("\n"))]
    Config(Vec<String>),
    /// NATS refuses what a dispatcher cannot do without.
    #[error("nats: {0}")]
    Nats(String),
    /// A stream captures a subject of the doors: clients would get its PubAck for an answer.
    #[error("stream {stream} captures '{subject}': clients would get its PubAck instead of an answer")]
    Captured {
        /// Which stream.
        stream: String,
        /// Which subject.
        subject: &'static str,
    },
    /// What all roles stand on.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    /// A part of the process ended by itself.
    #[error("{0} ended")]
    Ended(&'static str),
}
