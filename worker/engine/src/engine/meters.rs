//! Where a step's numbers go: the process's metrics recorder, and the counters behind [`super::Engine::stats`].

use super::Shared;
use crate::metrics::{
    BATCH_SEQUENCES, BATCH_TOKENS, DIRECTION, KV_BLOCKS_USED, PREEMPTIONS, STEP_SECONDS, TOKENS, TOKENS_CACHED,
};
use crate::plan::Plan;
use crate::scheduler::Scheduler;
use ::metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Handles got once, of the recorder that is installed when the engine starts.
pub(super) struct Meters {
    step_seconds: Histogram,
    batch_tokens: Histogram,
    batch_sequences: Histogram,
    kv_blocks_used: Gauge,
    preemptions: Counter,
    tokens_in: Counter,
    tokens_cached: Counter,
    tokens_out: Counter,
}

impl Meters {
    pub(super) fn new() -> Self {
        Self {
            step_seconds: histogram!(STEP_SECONDS),
            batch_tokens: histogram!(BATCH_TOKENS),
            batch_sequences: histogram!(BATCH_SEQUENCES),
            kv_blocks_used: gauge!(KV_BLOCKS_USED),
            preemptions: counter!(PREEMPTIONS),
            tokens_in: counter!(TOKENS, DIRECTION => "in"),
            tokens_cached: counter!(TOKENS_CACHED),
            tokens_out: counter!(TOKENS, DIRECTION => "out"),
        }
    }

    /// A step was given to the model.
    pub(super) fn launched(&self, plan: &Plan) {
        self.batch_tokens.record(plan.rows() as f64);
        self.batch_sequences.record(plan.spans.len() as f64);
    }

    /// A step landed, or failed.
    pub(super) fn landed(&self, shared: &Shared, took: Duration) {
        self.step_seconds.record(took);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        shared.last_step_nanos.store(nanos, Ordering::Relaxed);
        shared.steps.fetch_add(1, Ordering::Release);
        shared.progress.fetch_add(1, Ordering::Release);
    }

    /// A job's prompt was taken up, so much of it in the cache.
    pub(super) fn took_in(&self, shared: &Shared, tokens: usize, cached: usize) {
        self.tokens_cached.increment(cached as u64);
        self.tokens_in.increment(tokens as u64);
        shared.tokens_in.fetch_add(tokens as u64, Ordering::Relaxed);
    }

    /// Tokens were sampled for jobs that are still there.
    pub(super) fn gave_out(&self, shared: &Shared, tokens: usize) {
        self.tokens_out.increment(tokens as u64);
        shared.tokens_out.fetch_add(tokens as u64, Ordering::Relaxed);
    }

    /// How the scheduler stands between steps.
    pub(super) fn stands(&self, shared: &Shared, scheduler: &Scheduler) {
        let (free, total) = (scheduler.blocks().free(), scheduler.blocks().total());
        self.kv_blocks_used.set((total - free) as f64);
        self.preemptions.absolute(scheduler.preemptions());
        shared.blocks_free.store(free, Ordering::Relaxed);
        shared.running.store(scheduler.running(), Ordering::Relaxed);
    }
}
