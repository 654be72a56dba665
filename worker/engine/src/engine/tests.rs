mod failures;
mod storm;

use super::reader::Decode;
use super::*;
use crate::backend::Activations;
use crate::listener::{Gathering, Listener};
use crate::model::Shape;
use crate::plan::{BLOCK_TOKENS, TokenId};
use crate::prefix::{Kept, Scope};
use crate::sampler::Sampling;
use crate::scheduler::fake::{Dice, END, Fake, Fault, VOCABULARY, alone};
use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

/// Every test waits at most this long for an event.
const PATIENCE: Duration = Duration::from_secs(20);

/// Each token is a character of two bytes.
struct Letters;

struct Letter;

impl Vocabulary for Letters {
    fn decoder(self: Arc<Self>) -> Box<dyn Decode> {
        Box::new(Letter)
    }

    fn is_end(&self, token: TokenId) -> bool {
        token == END
    }
}

impl Decode for Letter {
    fn push(&mut self, token: TokenId) -> String {
        letter(token).into()
    }

    fn finish(&mut self) -> String {
        String::new()
    }
}

fn letter(token: TokenId) -> char {
    char::from_u32(0x400 + token).expect("a Cyrillic letter")
}

/// What a job says when it is alone and not stopped.
fn spoken(job: &Job) -> String {
    let tokens = alone(&job.tokens, job.max_tokens, Kept::All);
    tokens.into_iter().filter(|&token| token != END).map(letter).collect()
}

fn shape(blocks: usize) -> Shape {
    Shape { context: 200, vocabulary: VOCABULARY, blocks, step_tokens: 64, kept: Kept::All }
}

fn config() -> EngineConfig {
    EngineConfig {
        threads: 1,
        activations: Activations::Int8,
        kv_tokens: 0,
        step_tokens: 32,
        sequences_max: 4,
        queue_max: 60,
    }
}

fn start(model: Fake) -> (Engine, Receiver<Event>) {
    let (sender, receiver) = channel();
    let listener = Box::new(Gathering::new(sender));
    let engine = Engine::start_with(Box::new(model), Arc::new(Letters), config(), listener);
    (engine.expect("the configuration is good"), receiver)
}

/// A model that waits for a word before each step: what it hears is what it does. Without a speaker it just works.
fn gated(blocks: usize, depth: usize) -> (Fake, Sender<Fault>) {
    let (sender, receiver) = channel();
    let model = Fake::new(shape(blocks), depth, move |_| receiver.recv().unwrap_or(Fault::None));
    (model, sender)
}

fn free(blocks: usize) -> Fake {
    Fake::new(shape(blocks), 0, |_| Fault::None)
}

/// A job whose answer does not end before `max_tokens`.
fn job(key: u64, max_tokens: usize) -> Job {
    let prompts = (1..VOCABULARY as TokenId).map(|token| vec![token, 1 + key as TokenId % 7, 3]);
    let mut long = prompts.filter(|prompt| !alone(prompt, max_tokens, Kept::All).contains(&END));
    Job {
        key: JobKey(key),
        tokens: long.next().expect("some prompt goes on that long"),
        max_tokens,
        sampling: Sampling::greedy(),
        stop: Vec::new(),
        deadline: None,
        scope: Scope::default(),
    }
}

/// Events up to the end of the job, and those of others before it: text and end by key.
fn listen(events: &Receiver<Event>, count: usize) -> HashMap<u64, (String, End)> {
    let mut texts: HashMap<u64, String> = HashMap::new();
    let mut ended = HashMap::new();
    while ended.len() < count {
        match events.recv_timeout(PATIENCE).expect("an event") {
            Event::Started { key, cached_tokens } => {
                assert_eq!(cached_tokens % BLOCK_TOKENS, 0);
                assert_eq!(texts.insert(key.0, String::new()), None, "started once");
            }
            Event::Chunk { key, text } => {
                assert!(!text.is_empty());
                assert!(!ended.contains_key(&key.0), "nothing follows the end");
                texts.get_mut(&key.0).expect("started before the first chunk").push_str(&text);
            }
            Event::Ended { key, end } => {
                let text = texts.get(&key.0).cloned().unwrap_or_default();
                assert_eq!(ended.insert(key.0, (text, end)), None, "ended once");
            }
        }
    }
    ended
}

fn done(finish: Finish, output_tokens: usize) -> End {
    End::Done { finish, output_tokens, input_tokens: 3 }
}

#[test]
fn a_job_is_answered() {
    let (engine, events) = start(free(8));
    let job = job(1, 20);
    engine.submit(job.clone()).unwrap();
    assert_eq!(listen(&events, 1)[&1], (spoken(&job), done(Finish::Length, 20)));
    engine.stop();
    assert!(events.recv().is_err(), "nothing follows");
}

#[test]
fn the_models_end_is_not_text() {
    let (engine, events) = start(free(8));
    let mut prompts = (1..VOCABULARY as TokenId).map(|token| vec![token, 2, 2]);
    let tokens = prompts.find(|prompt| alone(prompt, 30, Kept::All).contains(&END)).unwrap();
    let job = Job { tokens, ..job(1, 30) };
    engine.submit(job.clone()).unwrap();
    let count = alone(&job.tokens, 30, Kept::All).len();
    assert_eq!(listen(&events, 1)[&1], (spoken(&job), done(Finish::Stop, count)));
}

#[test]
fn a_stop_string_ends_the_answer_and_frees_its_blocks() {
    let (engine, events) = start(free(8));
    let job = job(1, 40);
    let letters: Vec<char> = spoken(&job).chars().collect();
    let stop: String = letters[10..13].iter().collect();
    engine.submit(Job { stop: vec![stop.clone()], ..job.clone() }).unwrap();
    let (before, _) = spoken(&job).split_once(&stop).map(|(a, b)| (a.to_string(), b.to_string())).unwrap();
    let tokens = before.chars().count() + 3;
    assert_eq!(listen(&events, 1)[&1], (before, done(Finish::Stop, tokens)));
    engine.submit(self::job(2, 5)).unwrap();
    listen(&events, 1);
    assert_eq!(engine.stats().tokens_out, tokens as u64 + 5);
}

#[test]
fn held_back_text_is_given_out_at_the_end() {
    let (engine, events) = start(free(8));
    let job = job(1, 12);
    let last = spoken(&job).chars().last().unwrap();
    let stop = vec![format!("{last}never")];
    engine.submit(Job { stop, ..job.clone() }).unwrap();
    assert_eq!(listen(&events, 1)[&1].0, spoken(&job));
}

#[test]
fn a_step_that_does_not_land_makes_progress_all_the_same() {
    let (engine, events) = start(free(8));
    assert_eq!(engine.progress(), 0);
    engine.submit(job(1, 5)).unwrap();
    listen(&events, 1);
    assert!(engine.progress() > engine.steps(), "the model counts within a step");
}

/// Steps the model once, and waits until the engine has seen it.
fn let_step(engine: &Engine, gate: &Sender<Fault>, fault: Fault) {
    let before = engine.steps();
    gate.send(fault).unwrap();
    let began = Instant::now();
    while engine.steps() == before {
        assert!(began.elapsed() < PATIENCE, "the step did not land");
        std::thread::yield_now();
    }
}

#[test]
fn a_cancel_frees_within_a_step() {
    let (model, gate) = gated(8, 0);
    let (engine, events) = start(model);
    engine.submit(job(1, 100)).unwrap();
    let_step(&engine, &gate, Fault::None);
    // The engine is in its second step, or about to be: the cancel is read after it at the latest.
    engine.cancel(JobKey(1), Cancel::Client);
    engine.cancel(JobKey(99), Cancel::Client);
    gate.send(Fault::None).unwrap();
    drop(gate);
    let (text, end) = listen(&events, 1).remove(&1).unwrap();
    assert_eq!(end, End::Cancelled);
    assert!(text.chars().count() <= 2);
    assert!(engine.steps() <= 2);
    engine.submit(job(2, 1)).unwrap();
    listen(&events, 1);
    let shared = Arc::clone(&engine.shared);
    engine.stop();
    assert_eq!(shared.jobs.load(Ordering::Acquire), 0);
}

#[test]
fn what_can_never_run_is_refused() {
    let (engine, events) = start(free(4));
    let limit = 4 * BLOCK_TOKENS;
    assert_eq!(engine.length_max(), limit);
    let too_long = job(1, limit - 2);
    let tokens = limit + 1;
    assert_eq!(engine.submit(too_long), Err(SubmitError::TooLong { tokens, limit }));
    let overflowing = Job { max_tokens: usize::MAX, ..job(1, 1) };
    let tokens = usize::MAX;
    assert_eq!(engine.submit(overflowing), Err(SubmitError::TooLong { tokens, limit }));
    let is_invalid = |job| matches!(engine.submit(job), Err(SubmitError::Invalid(_)));
    assert!(is_invalid(Job { tokens: Vec::new(), ..job(1, 1) }));
    assert!(is_invalid(Job { max_tokens: 0, ..job(1, 1) }));
    assert!(is_invalid(Job { tokens: vec![VOCABULARY as TokenId], ..job(1, 1) }));
    let sampling = Sampling { temperature: f32::NAN, ..Sampling::greedy() };
    assert!(is_invalid(Job { sampling, ..job(1, 1) }));
    let longest = job(2, limit - 3);
    engine.submit(longest.clone()).unwrap();
    assert_eq!(listen(&events, 1)[&2], (spoken(&longest), done(Finish::Length, limit - 3)));
}

#[test]
fn a_full_engine_says_so_and_has_room_again() {
    let (model, gate) = gated(8, 0);
    let (engine, events) = start(model);
    for key in 0..64 {
        engine.submit(job(key, 2)).unwrap();
    }
    assert_eq!(engine.submit(job(64, 2)), Err(SubmitError::Full));
    assert_eq!(engine.stats().running + engine.stats().waiting, 64);
    drop(gate);
    assert_eq!(listen(&events, 64).len(), 64);
    engine.submit(job(64, 2)).unwrap();
    listen(&events, 1);
}

#[test]
fn a_deadline_ends_a_job_that_waits_and_one_that_runs() {
    let (model, gate) = gated(8, 0);
    let (engine, events) = start(model);
    let past = Job { deadline: Some(Instant::now()), ..job(1, 5) };
    engine.submit(past).unwrap();
    assert_eq!(listen(&events, 1)[&1], (String::new(), End::Deadline));
    let deadline = Instant::now() + Duration::from_millis(20);
    engine.submit(Job { deadline: Some(deadline), ..job(2, 100) }).unwrap();
    std::thread::sleep(deadline.saturating_duration_since(Instant::now()));
    drop(gate);
    assert_eq!(listen(&events, 1)[&2].1, End::Deadline);
}
