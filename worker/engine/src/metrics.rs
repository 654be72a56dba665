//! Names of what the engine measures: the only place where they are written.

/// Histogram: seconds from a step's plan to its tokens.
pub const STEP_SECONDS: &str = "flotilla_step_seconds";
/// Histogram: rows of a step.
pub const BATCH_TOKENS: &str = "flotilla_batch_tokens";
/// Histogram: sequences of a step.
pub const BATCH_SEQUENCES: &str = "flotilla_batch_sequences";
/// Gauge: blocks of the key-value cache that are not free.
pub const KV_BLOCKS_USED: &str = "flotilla_kv_blocks_used";
/// Counter: sequences whose cache was given up for an older one, to be computed again.
pub const PREEMPTIONS: &str = "flotilla_preemptions_total";
/// Counter: tokens of prompts taken up (`direction="in"`) and tokens given out (`direction="out"`).
pub const TOKENS: &str = "flotilla_tokens_total";
/// Label of [`TOKENS`].
pub const DIRECTION: &str = "direction";
