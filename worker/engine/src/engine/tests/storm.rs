//! Many jobs from many threads.

use super::*;

/// Random jobs from several threads, some cancelled: each ends once, and the finished ones say what they say alone.
fn storm(depth: usize) {
    const THREADS: u64 = 4;
    const JOBS: u64 = 200;
    let (engine, events) = start(Fake::new(shape(14), depth, |_| Fault::None));
    let mut submitters = Vec::new();
    for thread in 0..THREADS {
        let engine = engine.clone();
        submitters.push(std::thread::spawn(move || {
            let mut dice = Dice(thread);
            let mut jobs = Vec::new();
            for number in 0..JOBS {
                let length = dice.roll(1..90);
                let mut job = job(thread * JOBS + number, 1);
                job.tokens = dice.prompt(length);
                job.max_tokens = dice.roll(1..100);
                while engine.submit(job.clone()) == Err(SubmitError::Full) {
                    std::thread::yield_now();
                }
                if dice.once_in(4) {
                    engine.cancel(job.key, Cancel::Client);
                }
                jobs.push(job);
            }
            jobs
        }));
    }
    let ended = listen(&events, (THREADS * JOBS) as usize);
    let mut answered = 0;
    for job in submitters.into_iter().flat_map(|thread| thread.join().unwrap()) {
        let (text, end) = &ended[&job.key.0];
        match end {
            End::Done { .. } => {
                answered += 1;
                assert_eq!(*text, spoken(&job), "{job:?}");
            }
            end => assert_eq!((end, spoken(&job).starts_with(text)), (&End::Cancelled, true)),
        }
    }
    assert!(answered > THREADS * JOBS / 2);
    let shared = Arc::clone(&engine.shared);
    engine.stop();
    assert!(events.recv().is_err());
    assert_eq!(shared.jobs.load(Ordering::Acquire), 0);
}

#[test]
fn many_at_once_step_by_step() {
    storm(0);
}

#[test]
fn many_at_once_with_a_step_in_flight() {
    storm(1);
}
