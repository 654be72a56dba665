//! What the worker says of itself while it lives: heartbeats to the fleet, and to the queue that its deliveries make
//! progress. It says so only while the engine computes, so that a hung engine loses its jobs to others.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use protocol::heartbeat::{self, Heartbeat, State};
use protocol::stream::PROGRESS_INTERVAL;
use protocol::{WIRE_VERSION, subject};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::delivery::{Delivery, Phase};
use crate::error::Error;
use crate::metrics;
use crate::model::{Life, Stats};
use crate::worker::Worker;

/// A part of a step may take this long before its jobs show no progress any more.
const STEP_PATIENCE: Duration = PROGRESS_INTERVAL.saturating_mul(3);
/// A part of a step that takes this long will never end: the process does.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// When an engine last got on, or had nothing to do.
struct Pulse {
    progress: u64,
    moved: Instant,
}

impl Pulse {
    fn feel(&mut self, stats: &Stats, now: Instant) {
        if stats.progress != self.progress || stats.jobs == 0 {
            self.progress = stats.progress;
            self.moved = now;
        }
    }

    fn silent(&self, now: Instant) -> Duration {
        now.duration_since(self.moved)
    }
}

/// Beats until the worker is told to quit, or an engine is past help. `draining` says that no new work is taken.
pub async fn beat(worker: Arc<Worker>, draining: CancellationToken, over: CancellationToken) -> Result<(), Error> {
    let now = Instant::now();
    let mut pulses: Vec<Pulse> = worker.models.iter().map(|_| Pulse { progress: 0, moved: now }).collect();
    let mut tick = tokio::time::interval(heartbeat::INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut progressed = now;
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = over.cancelled() => return Ok(()),
        }
        let now = Instant::now();
        check(&worker, &mut pulses, now)?;
        let deliveries = worker.now.hand.all();
        let held = deliveries.iter().filter(|delivery| delivery.phase() == Phase::Held).count();
        metrics::slots(worker.slots, deliveries.len() - held, held);
        if !worker.bus.connected() {
            continue;
        }
        let state = if draining.is_cancelled() { State::Draining } else { State::Ready };
        announce(&worker, state, deliveries.len() - held).await;
        if now.duration_since(progressed) >= PROGRESS_INTERVAL {
            progressed = now;
            progress(&worker, &deliveries, &pulses, now).await;
        }
    }
}

fn check(worker: &Worker, pulses: &mut [Pulse], now: Instant) -> Result<(), Error> {
    let mut stalled = false;
    for (model, pulse) in worker.models.iter().zip(pulses) {
        let stats = model.engine.stats();
        pulse.feel(&stats, now);
        metrics::engine(&model.loaded.name, stats.jobs);
        if pulse.silent(now) >= STUCK_AFTER || stats.life == Life::Ended {
            return Err(Error::Stuck { model: model.loaded.name.clone(), seconds: pulse.silent(now).as_secs() });
        }
        stalled |= pulse.silent(now) >= STEP_PATIENCE;
    }
    if worker.now.stalled.swap(stalled, Ordering::Relaxed) != stalled {
        tracing::warn!(stalled, "an engine that has work makes no progress, or makes it again");
    }
    Ok(())
}

/// Says how the worker stands.
pub async fn announce(worker: &Worker, state: State, busy: usize) {
    let steps = worker.models.iter().map(|model| model.engine.stats().step.as_secs_f32());
    let beat = Heartbeat {
        version: WIRE_VERSION,
        worker: worker.name.clone(),
        release: runtime::RELEASE.clone(),
        device: worker.device.clone(),
        models: worker.models.iter().map(|model| model.loaded.clone()).collect(),
        state,
        slots_free: count(worker.slots.saturating_sub(busy)),
        slots: count(worker.slots),
        step_seconds: steps.fold(0.0, f32::max),
        answered: worker.models.iter().map(|model| model.meters.answered()).collect(),
    };
    let _ = worker.bus.client.publish(subject::heartbeat(&worker.name), beat.encode().into()).await;
}

async fn progress(worker: &Worker, deliveries: &[Arc<Delivery>], pulses: &[Pulse], now: Instant) {
    for delivery in deliveries {
        let waits_for_engine = match delivery.phase() {
            Phase::Held | Phase::Computing => true,
            // Their own timeouts bound these; reading the input, the limits of media and the deadline.
            Phase::Admitting | Phase::Settling => false,
        };
        if !waits_for_engine || pulses[delivery.model].silent(now) < STEP_PATIENCE {
            delivery.progress(&worker.bus).await;
        }
    }
}

fn count(jobs: usize) -> u32 {
    u32::try_from(jobs).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_without_work_makes_progress_and_a_hung_one_does_not() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let stats = |progress, jobs| Stats { progress, jobs, ..Stats::default() };
        let mut pulse = Pulse { progress: 0, moved: start };
        pulse.feel(&stats(0, 0), at(100));
        assert!(pulse.silent(at(100)) < STEP_PATIENCE, "idle");
        pulse.feel(&stats(7, 2), at(101));
        pulse.feel(&stats(7, 2), at(103));
        assert!(pulse.silent(at(103)) < STEP_PATIENCE, "a long layer");
        pulse.feel(&stats(7, 2), at(107));
        assert!(pulse.silent(at(107)) >= STEP_PATIENCE, "hung");
        pulse.feel(&stats(8, 2), at(108));
        assert!(pulse.silent(at(108)) < STEP_PATIENCE, "it was only long");
    }
}
