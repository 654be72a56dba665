//! Tokens a second of whole steps: a prompt of 512, and 1 to 32 sequences that continue.
//! `FLOTILLA_BENCH_LEVEL`, `_THREADS` and `_ACTIVATIONS` (`f32`, `int16`, `mixed`, `int8`) choose how, `_ONLY` one row.

use std::time::{Duration, Instant};

use engine::backend::Activations;
use engine::device::Device;
use engine::engine::EngineConfig;
use engine::fixture;
use engine::load::{Loaded, load_on};
use engine::plan::Plan;
use engine::simd::Level;

/// Long enough to see past the first steps, short enough to wait for.
const MEASURE: Duration = Duration::from_secs(3);
/// Tokens of a prompt in one step, as a worker has it.
const CHUNK: usize = 128;
/// Tokens of each sequence before the decode that is measured.
const DEPTH: usize = 128;
/// Tokens that each sequence is continued by before it is as long as it was: as llama.cpp's benches do it.
const CONTINUED: usize = 64;
const BLOCKS_EACH: usize = 64;

fn span(plan: &mut Plan, sequence: usize, computed: usize, rows: usize) {
    let token = |position: u32| position * 7919 % 40_000 + 100;
    let tokens = (0..rows as u32).map(|row| token(computed as u32 + row));
    fixture::span(plan, sequence, computed, tokens, |block| sequence * BLOCKS_EACH + block);
}

/// Tokens a second of the best step and of all steps: others use this machine too.
fn measure(loaded: &mut Loaded, name: &str, mut plan_of: impl FnMut(usize, &mut Plan)) {
    let (mut plan, mut sampled) = (Plan::default(), Vec::new());
    let (mut best, mut rows, mut step) = (f64::INFINITY, 0, 0);
    let (begin, processor) = (Instant::now(), processor_seconds());
    while begin.elapsed() < MEASURE || step < 5 || step % 4 != 0 {
        plan.clear();
        plan_of(step, &mut plan);
        let start = Instant::now();
        let ticket = loaded.model.forward(&plan).expect("the plan fits");
        sampled.clear();
        loaded.model.collect(ticket, &mut sampled).expect("the ticket is the last");
        best = best.min(start.elapsed().as_secs_f64() / plan.rows() as f64);
        rows += plan.rows();
        step += 1;
    }
    let mean = rows as f64 / begin.elapsed().as_secs_f64();
    let own = rows as f64 / (processor_seconds() - processor);
    println!(
        "{name:<12} {:>7.0} tokens/s best {mean:>7.0} mean {own:>7.0} a second of the caller's thread",
        1.0 / best
    );
}

/// Seconds that this thread has had a processor: what a step costs where others compute too.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split(' ').next().and_then(|n| n.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

fn resident_mib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok()).unwrap_or(0) / 1024
}

fn main() {
    let variable = |name| std::env::var(name).ok();
    let level = variable("FLOTILLA_BENCH_LEVEL")
        .map_or_else(Level::detect, |name| Level::named(&name).expect("a level of this machine"));
    let threads = variable("FLOTILLA_BENCH_THREADS").and_then(|n| n.parse().ok()).unwrap_or(2);
    let activations = match variable("FLOTILLA_BENCH_ACTIVATIONS").as_deref() {
        Some("f32") => Activations::F32,
        Some("int16") => Activations::Int16,
        Some("int8") => Activations::Int8,
        _ => Activations::default(),
    };
    let config =
        EngineConfig { threads, activations, kv_tokens: 32 * 1024, step_tokens: 512, sequences_max: 32, queue_max: 1 };
    let start = Instant::now();
    let mut loaded = load_on(&fixture::smollm2(), &config, &Device::Processor(level)).expect("the fixture loads");
    println!(
        "{} with {threads} threads; loaded in {:.2?}, {} MiB resident",
        level.name(),
        start.elapsed(),
        resident_mib()
    );
    let only = variable("FLOTILLA_BENCH_ONLY");
    let wanted = |row: &str| only.as_deref().is_none_or(|only| only == row);
    if wanted("prefill 512") {
        measure(&mut loaded, "prefill 512", |step, plan| {
            let computed = step * CHUNK % 512;
            span(plan, 0, computed, CHUNK);
            plan.outputs.truncate((computed + CHUNK) / 512);
        });
    }
    for sequences in [1, 4, 8, 16, 32] {
        let row = format!("decode {sequences}");
        if !wanted(&row) {
            continue;
        }
        for sequence in 0..sequences {
            let mut plan = Plan::default();
            span(&mut plan, sequence, 0, DEPTH);
            loaded.model.forward(&plan).expect("the plan fits");
        }
        measure(&mut loaded, &row, |step, plan| {
            (0..sequences).for_each(|sequence| span(plan, sequence, DEPTH + step % CONTINUED, 1));
            plan.spans.iter_mut().for_each(|span| span.prompt = 0);
        });
    }
    println!("{} MiB resident", resident_mib());
}
