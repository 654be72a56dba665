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
/// Counter: tokens of prompts that were in the cache already, because another sequence began the same way.
pub const TOKENS_CACHED: &str = "flotilla_prompt_tokens_cached_total";
/// Label of [`TOKENS`].
pub const DIRECTION: &str = "direction";

/// Counter: batches of an encoder, by why no more went in ([`CLOSED`]) and what encoder it was ([`FAMILY`]).
pub const BATCHES: &str = "flotilla_batches_total";
/// Histogram: what a batch of an encoder cost: tokens, pixels or samples of sound, by [`FAMILY`].
pub const BATCH_UNITS: &str = "flotilla_batch_units";
/// Histogram: inputs of a batch of an encoder, by [`FAMILY`].
pub const BATCH_INPUTS: &str = "flotilla_batch_inputs";
/// Histogram: seconds that the oldest input of a batch had waited, by [`FAMILY`].
pub const BATCH_WAIT_SECONDS: &str = "flotilla_batch_wait_seconds";
/// Histogram: seconds that a batch computed, by [`FAMILY`].
pub const BATCH_SECONDS: &str = "flotilla_batch_seconds";
/// Label: `full`, `kind`, `waited` or `idle`.
pub const CLOSED: &str = "closed";
/// Label: what encoder it was, as a model file names it.
pub const FAMILY: &str = "family";
