//! Stable error codes and whose fault each is. One page a code stands in `ops/runbooks/`.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a client is told, stable over versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request breaks the contract.
    InvalidRequest,
    /// The body is neither text nor media that the fleet knows.
    UnsupportedMedia,
    /// The body or one of its parts exceeds a named limit.
    TooLarge,
    /// Prompt and answer do not fit the model's context.
    ContextTooLong,
    /// No such model in the catalogue.
    ModelNotFound,
    /// The sender may not do this.
    Unauthorized,
    /// The sender exceeded its own quota.
    RateLimited,
    /// The fleet has more work than it may queue.
    Overloaded,
    /// The deadline passed before the answer.
    DeadlineExceeded,
    /// Somebody cancelled the job.
    Cancelled,
    /// The session moved on while this request was on its way.
    SessionConflict,
    /// No such job, session or record.
    NotFound,
    /// The job is accepted and has no result yet.
    Pending,
    /// A part of the fleet that this request needs is away.
    Unavailable,
    /// A fault of ours.
    Internal,
}

/// Whose fault a failure is. Retry is a total function of this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The same message would fail again.
    Sender,
    /// A defect of ours: another attempt may pass.
    Ours,
    /// It passes with time.
    Passing,
}

impl ErrorCode {
    /// Every code, in the order of the contract.
    pub const ALL: [ErrorCode; 15] = [
        ErrorCode::InvalidRequest,
        ErrorCode::UnsupportedMedia,
        ErrorCode::TooLarge,
        ErrorCode::ContextTooLong,
        ErrorCode::ModelNotFound,
        ErrorCode::Unauthorized,
        ErrorCode::RateLimited,
        ErrorCode::Overloaded,
        ErrorCode::DeadlineExceeded,
        ErrorCode::Cancelled,
        ErrorCode::SessionConflict,
        ErrorCode::NotFound,
        ErrorCode::Pending,
        ErrorCode::Unavailable,
        ErrorCode::Internal,
    ];

    /// The code as it stands on the wire, in metrics and as the name of its page.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            ErrorCode::InvalidRequest => "invalid_request",
            ErrorCode::UnsupportedMedia => "unsupported_media",
            ErrorCode::TooLarge => "too_large",
            ErrorCode::ContextTooLong => "context_too_long",
            ErrorCode::ModelNotFound => "model_not_found",
            ErrorCode::Unauthorized => "unauthorized",
            ErrorCode::RateLimited => "rate_limited",
            ErrorCode::Overloaded => "overloaded",
            ErrorCode::DeadlineExceeded => "deadline_exceeded",
            ErrorCode::Cancelled => "cancelled",
            ErrorCode::SessionConflict => "session_conflict",
            ErrorCode::NotFound => "not_found",
            ErrorCode::Pending => "pending",
            ErrorCode::Unavailable => "unavailable",
            ErrorCode::Internal => "internal",
        }
    }

    /// The HTTP-like number of `Nats-Service-Error-Code`.
    #[must_use]
    pub const fn status(self) -> u16 {
        match self {
            ErrorCode::InvalidRequest | ErrorCode::ContextTooLong => 400,
            ErrorCode::Unauthorized => 401,
            ErrorCode::ModelNotFound | ErrorCode::NotFound => 404,
            ErrorCode::SessionConflict => 409,
            ErrorCode::TooLarge => 413,
            ErrorCode::UnsupportedMedia => 415,
            ErrorCode::Pending => 425,
            ErrorCode::RateLimited => 429,
            ErrorCode::Cancelled => 499,
            ErrorCode::Internal => 500,
            ErrorCode::Overloaded | ErrorCode::Unavailable => 503,
            ErrorCode::DeadlineExceeded => 504,
        }
    }

    /// Whose fault a failure with this code is.
    #[must_use]
    pub const fn fault(self) -> Fault {
        match self {
            ErrorCode::InvalidRequest
            | ErrorCode::UnsupportedMedia
            | ErrorCode::TooLarge
            | ErrorCode::ContextTooLong
            | ErrorCode::ModelNotFound
            | ErrorCode::Unauthorized
            | ErrorCode::Cancelled
            | ErrorCode::NotFound => Fault::Sender,
            ErrorCode::Internal => Fault::Ours,
            ErrorCode::RateLimited
            | ErrorCode::Overloaded
            | ErrorCode::DeadlineExceeded
            | ErrorCode::SessionConflict
            | ErrorCode::Pending
            | ErrorCode::Unavailable => Fault::Passing,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A refusal or failure as its sender is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// The stable code.
    pub code: ErrorCode,
    /// One sentence for a person; names the field or limit, never echoes content.
    pub message: String,
    /// When another try makes sense.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl Refusal {
    /// A refusal without a time to come back.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), retry_after_ms: None }
    }

    /// The most frequent one.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidRequest, message)
    }

    /// Says when to come back.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after_ms = Some(u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
        self
    }

    /// Whether the same message may pass later.
    #[must_use]
    pub fn retryable(&self) -> bool {
        self.code.fault() != Fault::Sender
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_on_the_wire_are_the_names_in_metrics() {
        for code in ErrorCode::ALL {
            assert_eq!(serde_json::to_string(&code).unwrap(), format!("\"{}\"", code.as_str()));
        }
    }
}
