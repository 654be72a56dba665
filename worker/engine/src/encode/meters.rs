//! Where a batch's numbers go: the process's metrics recorder, and the counters behind [`super::Engine::stats`].

use super::batch::Close;
use super::engine::Shared;
use crate::metrics::{BATCH_INPUTS, BATCH_SECONDS, BATCH_UNITS, BATCH_WAIT_SECONDS, BATCHES, CLOSED, FAMILY};
use ::metrics::{Counter, Histogram, counter, histogram};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Handles got once, of the recorder that is installed when the engine starts.
pub(super) struct Meters {
    /// In the order of [`Close::ALL`].
    batches: [Counter; Close::ALL.len()],
    units: Histogram,
    inputs: Histogram,
    wait: Histogram,
    seconds: Histogram,
}

/// A batch about to run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) units: usize,
    pub(super) inputs: usize,
    /// Of its oldest input.
    pub(super) waited: Duration,
}

impl Meters {
    pub(super) fn new(family: &'static str) -> Self {
        Self {
            batches: Close::ALL.map(|close| counter!(BATCHES, FAMILY => family, CLOSED => close.label())),
            units: histogram!(BATCH_UNITS, FAMILY => family),
            inputs: histogram!(BATCH_INPUTS, FAMILY => family),
            wait: histogram!(BATCH_WAIT_SECONDS, FAMILY => family),
            seconds: histogram!(BATCH_SECONDS, FAMILY => family),
        }
    }

    /// A batch goes to the encoder.
    pub(super) fn begins(&self, shared: &Shared, close: Close, size: Size) {
        let place = Close::ALL.iter().position(|other| *other == close).expect("all are there");
        self.batches[place].increment(1);
        self.units.record(size.units as f64);
        self.inputs.record(size.inputs as f64);
        self.wait.record(size.waited);
        shared.running.store(size.inputs, Ordering::Relaxed);
        shared.inputs.fetch_add(size.inputs as u64, Ordering::Relaxed);
        shared.units.fetch_add(size.units as u64, Ordering::Relaxed);
    }

    /// It is back, or failed.
    pub(super) fn ends(&self, shared: &Shared, took: Duration) {
        self.seconds.record(took);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        shared.last_batch_nanos.store(nanos, Ordering::Relaxed);
        shared.running.store(0, Ordering::Relaxed);
        shared.batches.fetch_add(1, Ordering::Release);
        shared.progress.fetch_add(1, Ordering::Release);
    }
}
