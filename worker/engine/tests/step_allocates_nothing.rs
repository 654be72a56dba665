//! A step allocates nothing: everything it writes to was made at load.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use engine::backend::Activations;
use engine::engine::EngineConfig;
use engine::fixture;
use engine::load::load;
use engine::plan::Plan;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[allow(unsafe_code)] // reason: an allocator is the only way to count allocations
// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's duties are the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A step of prompts and continuations, which were sampled.
fn plan(spans: &[(usize, usize)]) -> Plan {
    let mut plan = Plan::default();
    for (index, &(computed, rows)) in spans.iter().enumerate() {
        let tokens = (0..rows as u32).map(|row| row * 97 + 11);
        fixture::span(&mut plan, index, computed, tokens, |block| index * 8 + block);
    }
    plan.spans.iter_mut().filter(|span| span.rows.len() == 1).for_each(|span| span.prompt = 0);
    plan
}

#[test]
fn a_step_allocates_nothing() {
    for activations in [Activations::Int16, Activations::Mixed] {
        steps_allocate_nothing(activations);
    }
}

fn steps_allocate_nothing(activations: Activations) {
    let config =
        EngineConfig { threads: 2, activations, kv_tokens: 1024, step_tokens: 128, sequences_max: 8, queue_max: 1 };
    let mut model = load(&fixture::smollm2(), &config).expect("the fixture loads").model;
    let plans = [plan(&[(0, 40), (0, 9)]), plan(&[(40, 1), (9, 30), (0, 70)]), plan(&[(41, 1), (39, 1), (70, 1)])];
    let mut sampled = Vec::with_capacity(8);
    let mut step = |plan: &Plan| {
        sampled.clear();
        let ticket = model.forward(plan).expect("the plan fits");
        model.collect(ticket, &mut sampled).expect("the ticket is the last");
    };
    // The first step may still fetch what threads and panics need.
    step(&plans[0]);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    plans.iter().for_each(&mut step);
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0, "{activations:?}");
}
