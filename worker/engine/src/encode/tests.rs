use super::*;
use crate::engine::{Cancel, JobKey, SubmitError};
use crate::listener::Gathering;
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

/// Every test waits at most this long for an event.
const PATIENCE: Duration = Duration::from_secs(20);

// First tokens that say what becomes of an input, or of its batch.
const WRONG: TokenId = 1000;
const FAILS: TokenId = 1001;
const BREAKS: TokenId = 1002;
const PANICS: TokenId = 1003;
const SHORT: TokenId = 1004;
/// It computes until nobody wants it.
const ENDLESS: TokenId = 1005;

/// An input goes on as many times as its first token says; its output is its tokens, doubled.
struct Fake {
    budget: Budget,
    /// Waits for a word before each batch, while there is a speaker.
    gate: Option<Receiver<()>>,
    /// Turns had, of inputs not forgotten.
    turns_had: HashMap<InputKey, TokenId>,
    /// Inputs of a batch that there is memory for.
    room: Arc<AtomicUsize>,
    seen: Arc<Mutex<Seen>>,
    progress: Arc<AtomicU64>,
}

/// What the encoder saw.
#[derive(Default)]
struct Seen {
    batches: Vec<Vec<InputKey>>,
    remembered: HashSet<InputKey>,
    forgotten: u64,
}

impl Encoder for Fake {
    fn family(&self) -> &'static str {
        "fake"
    }

    fn budget(&self) -> Budget {
        self.budget
    }

    fn cost(&self, input: &Input) -> Result<Cost, String> {
        match input {
            Input::Tokens(tokens) if tokens.first() == Some(&WRONG) => Err("as asked".into()),
            Input::Tokens(tokens) => Ok(Cost { units: tokens.len(), kind: tokens.last().map_or(0, |last| last % 2) }),
            _ => Err("not a text".into()),
        }
    }

    fn count_progress(&mut self, progress: Arc<AtomicU64>) {
        self.progress = progress;
    }

    fn encode(&mut self, batch: &[(InputKey, &Input)], turns: &mut Vec<Turn>) -> Result<(), Error> {
        if let Some(gate) = &self.gate
            && gate.recv().is_err()
        {
            self.gate = None;
        }
        let room = self.room.load(Ordering::Relaxed);
        if batch.len() > room {
            return Err(Error::OutOfMemory { bytes: batch.len(), free: room });
        }
        self.progress.fetch_add(1, Ordering::Relaxed);
        let mut seen = self.seen.lock().unwrap();
        seen.batches.push(batch.iter().map(|(key, _)| *key).collect());
        seen.remembered.extend(batch.iter().map(|(key, _)| *key));
        drop(seen);
        for (key, input) in batch {
            let Input::Tokens(tokens) = input else { panic!("refused before") };
            let had = self.turns_had.entry(*key).or_default();
            *had += 1;
            turns.push(match tokens[0] {
                FAILS => Turn::Failed("as asked".into()),
                BREAKS => return Err(Error::Device("as asked".into())),
                PANICS => panic!("the encoder panics as asked"),
                SHORT => continue,
                ENDLESS => Turn::More(String::new()),
                goes_on if *had <= goes_on => Turn::More(format!("{had},")),
                _ => Turn::Done(Output::Vector(tokens.iter().map(|token| 2.0 * *token as f32).collect())),
            });
        }
        Ok(())
    }

    fn encode_while(
        &mut self,
        wanted: Wanted<'_>,
        batch: &[(InputKey, &Input)],
        turns: &mut Vec<Turn>,
    ) -> Result<(), Error> {
        self.encode(batch, turns)?;
        let endless = |input: &Input| matches!(input, Input::Tokens(tokens) if tokens[0] == ENDLESS);
        for (key, _) in batch.iter().filter(|(_, input)| endless(input)) {
            while wanted(*key) {
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    fn forget(&mut self, key: InputKey) {
        self.turns_had.remove(&key);
        let mut seen = self.seen.lock().unwrap();
        seen.remembered.remove(&key);
        seen.forgotten += 1;
    }
}

const BUDGET: Budget = Budget { units: 12, inputs: 4, max_wait: Duration::ZERO };

/// An engine over a fake, with what it tells and what the fake saw.
struct Bench {
    engine: Engine,
    events: Receiver<Event>,
    room: Arc<AtomicUsize>,
    seen: Arc<Mutex<Seen>>,
}

fn start_with(budget: Budget, gate: Option<Receiver<()>>) -> Bench {
    let seen = Arc::<Mutex<Seen>>::default();
    let room = Arc::new(AtomicUsize::new(usize::MAX));
    let (turns_had, progress) = (HashMap::new(), Arc::default());
    let fake = Fake { budget, gate, turns_had, room: Arc::clone(&room), seen: Arc::clone(&seen), progress };
    let (sender, events) = channel();
    let engine = Engine::start(Box::new(fake), 64, Box::new(Gathering::new(sender))).unwrap();
    Bench { engine, events, room, seen }
}

fn start() -> Bench {
    start_with(BUDGET, None)
}

/// Batches wait for a word each, until the speaker is dropped.
fn gated() -> (Bench, Sender<()>) {
    let (sender, receiver) = channel();
    (start_with(BUDGET, Some(receiver)), sender)
}

fn job(key: u64, inputs: &[&[TokenId]]) -> Job {
    let inputs = inputs.iter().map(|tokens| Input::Tokens(tokens.to_vec())).collect();
    Job { key: JobKey(key), inputs, deadline: None }
}

fn done(inputs: &[&[TokenId]]) -> End {
    let vector = |tokens: &&[TokenId]| Output::Vector(tokens.iter().map(|token| 2.0 * *token as f32).collect());
    End::Done(inputs.iter().map(vector).collect())
}

impl Bench {
    /// Chunks and end of each job, until so many have ended.
    fn listen(&self, count: usize) -> HashMap<u64, (String, End)> {
        let (mut texts, mut ended) = (HashMap::<u64, String>::new(), HashMap::new());
        while ended.len() < count {
            match self.events.recv_timeout(PATIENCE).expect("an event") {
                Event::Started { key } => {
                    assert!(!ended.contains_key(&key.0), "nothing follows the end");
                    assert_eq!(texts.insert(key.0, String::new()), None, "started once");
                }
                Event::Chunk { key, text } => {
                    assert!(!text.is_empty() && !ended.contains_key(&key.0));
                    texts.get_mut(&key.0).expect("started before").push_str(&text);
                }
                Event::Ended { key, end } => {
                    let text = texts.get(&key.0).cloned().unwrap_or_default();
                    assert_eq!(ended.insert(key.0, (text, end)), None, "ended once");
                }
            }
        }
        ended
    }

    fn end(&self) -> End {
        self.listen(1).into_values().next().expect("one ended").1
    }

    /// Ends the engine; the encoder remembers nothing by then, unless it failed as a whole.
    fn finish(self) {
        let seen = Arc::clone(&self.seen);
        self.engine.stop();
        assert!(self.events.recv().is_err(), "nothing follows");
        assert!(seen.lock().unwrap().remembered.is_empty());
    }
}

#[test]
fn a_job_is_answered_in_the_order_of_its_inputs() {
    let bench = start();
    let inputs: [&[TokenId]; 5] = [&[0, 4], &[2, 2], &[0, 3], &[0; 40], &[1, 9, 8]];
    bench.engine.submit(job(7, &inputs)).unwrap();
    let (text, end) = bench.listen(1).remove(&7).unwrap();
    assert_eq!(end, done(&inputs));
    assert_eq!(text.matches(',').count(), 3, "inputs that go on say what they found");
    let stats = bench.engine.stats();
    assert_eq!((stats.jobs, stats.waiting), (0, 0));
    assert!(stats.inputs == 8 && bench.engine.progress() >= 2 * stats.batches.saturating_sub(1));
    bench.finish();
}

#[test]
fn what_can_never_run_is_refused() {
    let bench = start();
    assert!(matches!(bench.engine.submit(job(1, &[])), Err(SubmitError::Invalid(_))));
    bench.engine.submit(job(2, &[&[0, 2], &[WRONG]])).unwrap();
    assert_eq!(bench.end(), End::Refused("as asked".into()));
    let clip = Clip { samples: [].into(), language: None, words: Words::Untimed };
    bench.engine.submit(Job { inputs: vec![Input::Clip(clip)], ..job(3, &[]) }).unwrap();
    assert_eq!(bench.end(), End::Refused("not a text".into()));
    assert!(bench.seen.lock().unwrap().batches.is_empty());
    bench.finish();
}

#[test]
fn a_batch_without_room_comes_again_in_halves() {
    let bench = start();
    bench.room.store(1, Ordering::Relaxed);
    let inputs: [&[TokenId]; 4] = [&[0, 2], &[2, 2], &[0, 4], &[1, 6]];
    bench.engine.submit(job(1, &inputs)).unwrap();
    let (text, end) = bench.listen(1).remove(&1).unwrap();
    assert_eq!(end, done(&inputs));
    assert_eq!(text.matches(',').count(), 3, "nothing is said twice");
    assert!(bench.seen.lock().unwrap().batches.iter().all(|batch| batch.len() == 1));
    bench.finish();
}

#[test]
fn what_has_no_room_alone_fails_and_the_engine_goes_on() {
    let bench = start();
    bench.room.store(0, Ordering::Relaxed);
    bench.engine.submit(job(1, &[&[0, 2], &[0, 4]])).unwrap();
    assert_eq!(bench.end(), End::Failed("device: no room for 1 bytes, 0 are free".into()));
    bench.room.store(usize::MAX, Ordering::Relaxed);
    bench.engine.submit(job(2, &[&[0, 2]])).unwrap();
    assert_eq!(bench.end(), done(&[&[0, 2]]));
    bench.finish();
}

#[test]
fn a_failed_input_ends_its_job_and_no_other() {
    let (bench, gate) = gated();
    bench.engine.submit(job(1, &[&[0, 2]])).unwrap();
    bench.engine.submit(job(2, &[&[0, 2], &[FAILS, 2], &[0, 4], &[0, 6], &[0, 8]])).unwrap();
    bench.engine.submit(job(3, &[&[0, 2]])).unwrap();
    drop(gate);
    let ended = bench.listen(3);
    assert_eq!(ended[&2].1, End::Refused("as asked".into()), "it would fail again");
    assert_eq!((&ended[&1].1, &ended[&3].1), (&done(&[&[0, 2]]), &done(&[&[0, 2]])));
    bench.finish();
}

#[test]
fn a_failed_batch_ends_its_jobs_and_no_others() {
    for fault in [BREAKS, SHORT] {
        let (bench, gate) = gated();
        bench.engine.submit(job(0, &[&[0, 2]])).unwrap();
        // The first batch is in the encoder, or this one is in it too: both are fine.
        gate.send(()).unwrap();
        bench.listen(1);
        for key in 1..4 {
            let first = if key == 2 { fault } else { 0 };
            bench.engine.submit(job(key, &[&[first, 2]])).unwrap();
        }
        bench.engine.submit(job(4, &[&[0, 3]])).unwrap();
        drop(gate);
        let ended = bench.listen(4);
        assert!(matches!(&ended[&2].1, End::Failed(_)));
        assert_eq!(ended[&4].1, done(&[&[0, 3]]), "of another kind, so in another batch");
        assert!(bench.engine.is_alive());
        bench.finish();
    }
}

#[test]
fn a_panic_ends_all_jobs_and_the_engine() {
    let (bench, gate) = gated();
    for key in 0..9 {
        let first = if key == 3 { PANICS } else { 0 };
        bench.engine.submit(job(key, &[&[first, 2], &[0, 1]])).unwrap();
    }
    drop(gate);
    let ended = bench.listen(9);
    let failed = ended.values().filter(|(_, end)| matches!(end, End::Failed(why) if why.contains("as asked")));
    assert!(failed.count() >= 1 && ended.len() == 9);
    assert!(!bench.engine.is_alive());
    assert_eq!(bench.engine.submit(job(9, &[&[0]])), Err(SubmitError::Stopped));
    assert_eq!(bench.engine.stats().jobs, 0);
    bench.engine.stop();
}

#[test]
fn a_cancel_and_a_deadline_take_waiting_inputs_out() {
    let (bench, gate) = gated();
    let inputs = [&[0, 2][..]; 9];
    bench.engine.submit(job(1, &inputs)).unwrap();
    let deadline = Some(Instant::now() + Duration::from_millis(10));
    bench.engine.submit(Job { deadline, ..job(2, &inputs) }).unwrap();
    bench.engine.submit(job(3, &[&[0, 2]])).unwrap();
    bench.engine.cancel(JobKey(1), Cancel::Client);
    bench.engine.cancel(JobKey(99), Cancel::Client);
    std::thread::sleep(Duration::from_millis(20));
    drop(gate);
    let ended = bench.listen(3);
    assert_eq!((&ended[&1].1, &ended[&2].1), (&End::Cancelled, &End::Deadline));
    assert_eq!(ended[&3].1, done(&[&[0, 2]]));
    assert!(bench.engine.stats().inputs <= 4 + 1, "the first batch at most had theirs");
    bench.finish();
}

#[test]
fn a_batch_is_left_by_those_whom_nobody_wants() {
    let (bench, gate) = gated();
    bench.engine.submit(job(0, &[&[0, 2]])).unwrap();
    bench.engine.submit(job(1, &[&[ENDLESS, 2]])).unwrap();
    let deadline = Some(Instant::now() + Duration::from_millis(100));
    bench.engine.submit(Job { deadline, ..job(2, &[&[ENDLESS, 2]]) }).unwrap();
    drop(gate);
    let mut ended = HashMap::new();
    while ended.len() < 3 {
        match bench.events.recv_timeout(PATIENCE).expect("an event") {
            Event::Started { key: JobKey(1) } => bench.engine.cancel(JobKey(1), Cancel::Client),
            Event::Started { .. } => (),
            Event::Chunk { .. } => panic!("nobody said anything"),
            Event::Ended { key, end } => assert_eq!(ended.insert(key.0, end), None),
        }
    }
    assert_eq!([&ended[&0], &ended[&1], &ended[&2]], [&done(&[&[0, 2]]), &End::Cancelled, &End::Deadline]);
    bench.engine.submit(job(3, &[&[ENDLESS, 2]])).unwrap();
    assert!(matches!(bench.events.recv_timeout(PATIENCE), Ok(Event::Started { key: JobKey(3) })));
    bench.engine.clone().stop();
    assert!(matches!(bench.events.recv_timeout(PATIENCE), Ok(Event::Ended { key: JobKey(3), end: End::Stopped })));
    assert!(bench.events.recv().is_err(), "nothing follows");
}

#[test]
fn a_full_engine_says_so_and_stops_with_a_word_to_everybody() {
    let (bench, gate) = gated();
    for key in 0..64 {
        bench.engine.submit(job(key, &[&[0, 2]])).unwrap();
    }
    assert_eq!(bench.engine.submit(job(64, &[&[0, 2]])), Err(SubmitError::Full));
    let engine = bench.engine.clone();
    let stopper = std::thread::spawn(move || engine.stop());
    while bench.engine.submit(job(65, &[&[0, 2]])) != Err(SubmitError::Stopped) {
        std::thread::yield_now();
    }
    drop(gate);
    let ended = bench.listen(64);
    assert!(ended.values().filter(|(_, end)| *end == End::Stopped).count() >= 60);
    stopper.join().unwrap();
    bench.finish();
}

#[test]
fn company_that_is_hoped_for_is_waited_for_until_the_time_is_over() {
    let max_wait = Duration::from_millis(30);
    let (sender, receiver) = channel();
    let bench = start_with(Budget { max_wait, ..BUDGET }, Some(receiver));
    for key in 0..3 {
        bench.engine.submit(job(key, &[&[0, 2]])).unwrap();
    }
    drop(sender);
    bench.listen(3);
    let began = Instant::now();
    bench.engine.submit(job(3, &[&[0, 2]])).unwrap();
    bench.listen(1);
    assert!(began.elapsed() >= max_wait);
    bench.finish();
}

/// A job of the storm: inputs of (first token, length), what is done to it after submission.
#[derive(Clone, Debug)]
struct Plan {
    inputs: Vec<(TokenId, usize)>,
    cancel: bool,
}

fn plans() -> impl Strategy<Value = Vec<Plan>> {
    let first = prop_oneof![8 => 0_u32..3, 1 => Just(FAILS), 1 => Just(WRONG)];
    let inputs = prop::collection::vec((first, 1_usize..15), 1..9);
    prop::collection::vec((inputs, prop::bool::weighted(0.2)), 1..40)
        .prop_map(|jobs| jobs.into_iter().map(|(inputs, cancel)| Plan { inputs, cancel }).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every job ends once, as it has to, with its own outputs; no batch breaks the budget.
    #[test]
    fn storms_lose_nothing(plans in plans(), max_wait in 0_u64..2) {
        let bench = start_with(Budget { max_wait: Duration::from_millis(max_wait), ..BUDGET }, None);
        let tokens = |(first, len): &(TokenId, usize)| [&[*first][..], &vec![*len as TokenId; *len]].concat();
        for (key, plan) in (0..).zip(&plans) {
            let inputs: Vec<Vec<TokenId>> = plan.inputs.iter().map(tokens).collect();
            bench.engine.submit(job(key, &inputs.iter().map(Vec::as_slice).collect::<Vec<_>>())).unwrap();
            if plan.cancel {
                bench.engine.cancel(JobKey(key), Cancel::Client);
            }
        }
        let ended = bench.listen(plans.len());
        for (key, plan) in (0..).zip(&plans) {
            let has = |token| plan.inputs.iter().any(|(first, _)| *first == token);
            let inputs: Vec<Vec<TokenId>> = plan.inputs.iter().map(tokens).collect();
            let whole = done(&inputs.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let end = &ended[&key].1;
            let right = if has(WRONG) || has(FAILS) { matches!(end, End::Refused(_)) } else { *end == whole };
            prop_assert!(right || (plan.cancel && *end == End::Cancelled), "{plan:?} {end:?}");
        }
        for batch in &bench.seen.lock().unwrap().batches {
            prop_assert!(!batch.is_empty() && batch.len() <= BUDGET.inputs);
        }
        bench.finish();
    }
}
