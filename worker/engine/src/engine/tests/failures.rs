//! What goes wrong, and who hears of it.

use super::*;

#[test]
fn a_failed_step_ends_its_jobs_and_no_others() {
    for (depth, fault) in [(0, Fault::Forward), (0, Fault::Collect), (1, Fault::Forward), (1, Fault::Collect)] {
        let (model, gate) = gated(8, depth);
        let (engine, events) = start(model);
        for key in 0..5 {
            engine.submit(job(key, 8)).unwrap();
        }
        gate.send(fault).unwrap();
        drop(gate);
        let ended = listen(&events, 5);
        let failed = ended.values().filter(|(_, end)| matches!(end, End::Failed(_))).count();
        assert!((1..=4).contains(&failed), "those of the first step: {failed}");
        for (key, (text, end)) in &ended {
            if !matches!(end, End::Failed(_)) {
                assert_eq!((text, end), (&spoken(&job(*key, 8)), &done(Finish::Length, 8)));
            }
        }
        assert!(engine.is_alive());
    }
}

#[test]
fn a_step_without_room_costs_no_job_its_end() {
    for depth in [0, 1] {
        let (model, gate) = gated(8, depth);
        let (engine, events) = start(model);
        for key in 0..5 {
            engine.submit(job(key, 8)).unwrap();
        }
        gate.send(Fault::NoRoom).unwrap();
        drop(gate);
        for (key, (text, end)) in &listen(&events, 5) {
            assert_eq!((text, end), (&spoken(&job(*key, 8)), &done(Finish::Length, 8)));
        }
    }
}

#[test]
fn a_panic_ends_all_jobs_and_the_engine() {
    let (model, gate) = gated(8, 0);
    let (engine, events) = start(model);
    for key in 0..9 {
        engine.submit(job(key, 50)).unwrap();
    }
    gate.send(Fault::Panic).unwrap();
    let ended = listen(&events, 9);
    assert!(ended.values().all(|(_, end)| matches!(end, End::Failed(why) if why.contains("as asked"))));
    assert!(!engine.is_alive());
    assert_eq!(engine.submit(job(9, 5)), Err(SubmitError::Stopped));
    assert_eq!(engine.stats().waiting, 0);
    engine.stop();
}

/// Panics at the first chunk.
struct PanicsOnce {
    mood: Mood,
    out: Sender<Event>,
}

#[derive(PartialEq)]
enum Mood {
    Tense,
    Calm,
}

impl Listener<Event> for PanicsOnce {
    fn hear(&mut self, event: Event) {
        if matches!(event, Event::Chunk { .. }) && std::mem::replace(&mut self.mood, Mood::Calm) == Mood::Tense {
            panic!("the listener panics as asked");
        }
        self.out.hear(event);
    }
}

#[test]
fn a_listener_that_panics_takes_no_end_from_others() {
    let (sender, events) = channel();
    let listener = Box::new(PanicsOnce { mood: Mood::Tense, out: sender });
    let engine = Engine::start_with(Box::new(free(8)), Arc::new(Letters), config(), listener).unwrap();
    engine.submit(job(1, 5)).unwrap();
    assert!(matches!(listen(&events, 1)[&1].1, End::Failed(_)));
    engine.stop();
    assert!(events.recv().is_err());
}

#[test]
fn stopping_ends_all_jobs() {
    let (model, gate) = gated(8, 1);
    let (engine, events) = start(model);
    for key in 0..9 {
        engine.submit(job(key, 100)).unwrap();
    }
    let stopping = std::thread::spawn({
        let engine = engine.clone();
        move || engine.stop()
    });
    while engine.submit(job(100, 1)) != Err(SubmitError::Stopped) {
        engine.cancel(JobKey(100), Cancel::Client);
        std::thread::yield_now();
    }
    drop(gate);
    stopping.join().unwrap();
    let mut stopped = 0;
    for event in events.try_iter() {
        let is_ours = matches!(event, Event::Ended { key, end: End::Stopped } if key.0 < 9);
        stopped += usize::from(is_ours);
    }
    assert_eq!(stopped, 9);
    assert!(!engine.is_alive());
}

#[test]
fn dropping_the_last_handle_ends_the_thread() {
    let (engine, events) = start(free(8));
    let other = engine.clone();
    drop(engine);
    other.submit(job(1, 5)).unwrap();
    listen(&events, 1);
    drop(other);
    assert!(events.recv_timeout(PATIENCE).is_err(), "the listener is gone with the thread");
}
