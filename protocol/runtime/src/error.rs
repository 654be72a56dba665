//! What goes wrong between a role and its servers, and what a client is told of it.

use std::time::Duration;

use protocol::{ErrorCode, Refusal};

/// A failure of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// NATS is away or refused an operation; what was asked did not happen, or can be asked again.
    #[error("nats: {0}")]
    Nats(String),
    /// A publish got no answer: it may be stored or not. Ask again with the same id.
    #[error("no answer to a publish to {0}")]
    Unknown(String),
    /// A limit of a stream, a session or a table of ours refuses more.
    #[error("{0}")]
    Full(String),
    /// A stream or consumer on the server contradicts what this role needs.
    #[error("{0}")]
    Contradiction(String),
    /// A message is larger than the server takes; never worth a retry.
    #[error("{0} is larger than the server takes")]
    TooLarge(String),
    /// Stored bytes are not what they should be.
    #[error("{0}")]
    Corrupt(String),
    /// Redis does not answer in time.
    #[error("redis: {0}")]
    RedisDown(String),
    /// Redis is there and does not yet hold the sessions again.
    #[error("sessions are being rebuilt")]
    Rebuilding,
    /// The process cannot work as configured.
    #[error("{0}")]
    Setup(String),
}

impl Error {
    /// What a client is told. Details stay in our log.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        match self {
            Error::Nats(_) | Error::Unknown(_) => away("the queue does not answer", Duration::from_secs(2)),
            Error::Full(_) => {
                Refusal::new(ErrorCode::Overloaded, "the fleet is full").retry_after(Duration::from_secs(1))
            }
            Error::RedisDown(_) => away("sessions are away", Duration::from_secs(2)),
            Error::Rebuilding => away("sessions are being rebuilt", Duration::from_secs(1)),
            Error::TooLarge(_) => Refusal::new(ErrorCode::TooLarge, "too large for the queue"),
            Error::Contradiction(_) | Error::Corrupt(_) | Error::Setup(_) => {
                Refusal::new(ErrorCode::Internal, "a fault of the fleet")
            }
        }
    }
}

fn away(what: &str, after: Duration) -> Refusal {
    Refusal::new(ErrorCode::Unavailable, what).retry_after(after)
}
