//! What ends a worker, as its callers tell cases apart.

/// The worker's error.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot run as configured.
    #[error("{0}")]
    Setup(String),
    /// NATS, Redis, telemetry or health.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    /// The model or its engine.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// An engine has work and does no step any more; whoever supervises the process starts it again.
    #[error("the engine of {model} made no step for {seconds} s")]
    Stuck {
        /// Which model.
        model: String,
        /// How long.
        seconds: u64,
    },
    /// The connection to NATS is gone for good.
    #[error("the connection to NATS is closed")]
    Closed,
}
