//! Sentences a second of all-MiniLM-L6-v2 through the engine, from text to direction: texts of 20 and of 128 tokens, in
//! jobs of 1, 8, 32 and 128, turn about, so that a busy machine is busy for all of them.
//! `FLOTILLA_BENCH_LEVEL`, `_THREADS` and `_WEIGHTS` (`stored`, `int8`) choose how; the arguments `TOKENS JOB SECONDS`
//! one row, of which only the number is printed: so a peer can be measured between two of ours.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use engine::device::Device;
use engine::encode::{End, Engine, Event, Input, Job, Settings, load_on};
use engine::engine::JobKey;
use engine::fixture::minilm;
use engine::simd::Level;
use engine::text::{Encoded, Excess, TextEncoder};

const LENGTHS: [usize; 2] = [20, 128];
const JOBS: [usize; 4] = [1, 8, 32, 128];
const ROUNDS: usize = 5;
const WORDS: &str =
    "The committee met on Tuesday to review the plan for repairing the old stone bridge over the river before winter";

/// An engine, and the texts it reads.
struct Bench {
    engine: Engine,
    events: Receiver<Event>,
    encoder: Arc<TextEncoder>,
    limit: usize,
}

impl Bench {
    fn start() -> Bench {
        let set = |name: &str| std::env::var(name).ok();
        let level =
            set("FLOTILLA_BENCH_LEVEL").map_or_else(Level::detect, |name| Level::named(&name).expect("a level"));
        let threads = set("FLOTILLA_BENCH_THREADS").map_or(2, |threads| threads.parse().expect("a number"));
        let settings = match set("FLOTILLA_BENCH_WEIGHTS").as_deref() {
            Some("int8") => Settings::int8(threads),
            _ => Settings::stored(threads),
        };
        let loaded = load_on(&minilm(), settings, &Device::Processor(level)).expect("the model loads");
        let (sender, events) = channel();
        let engine = Engine::start(loaded.encoder, 1, Box::new(sender));
        let encoder = loaded.tokens.expect("a model of texts");
        Bench { engine: engine.expect("a thread"), events, encoder, limit: loaded.info.context.expect("a limit") }
    }

    fn tokens(&self, text: &str) -> Vec<u32> {
        match self.encoder.encode(text, self.limit, Excess::Cut).expect("any text") {
            Encoded::Whole(tokens) | Encoded::Cut(tokens) => tokens,
            Encoded::TooLong | Encoded::TooLarge => unreachable!("it is cut"),
        }
    }

    /// Texts of at most so many tokens, as many as the largest job has.
    fn texts(&self, length: usize) -> Vec<String> {
        let text = |words: usize, n: usize| {
            let vocabulary: Vec<&str> = WORDS.split(' ').collect();
            let words = (0..words).map(|word| vocabulary[(n + word) % vocabulary.len()]);
            std::iter::once((n % 10).to_string()).chain(words.map(str::to_owned)).collect::<Vec<_>>().join(" ")
        };
        let words = (1..=length).rev().find(|words| self.tokens(&text(*words, 0)).len() <= length).expect("one fits");
        (0..JOBS[JOBS.len() - 1]).map(|n| text(words, n)).collect()
    }

    /// Sentences a second, in jobs of `count`, for some time.
    fn measure(&self, texts: &[String], count: usize, time: Duration) -> f64 {
        let (start, mut done) = (Instant::now(), 0);
        while start.elapsed() < time || done == 0 {
            let texts = (0..count).map(|n| &texts[(done + n) % texts.len()]);
            let inputs = texts.map(|text| Input::Tokens(self.tokens(text))).collect();
            self.engine.submit(Job { key: JobKey(0), inputs, deadline: None }).expect("there is room");
            while !matches!(self.events.recv().expect("the engine lives"), Event::Ended { end: End::Done(_), .. }) {}
            done += count;
        }
        done as f64 / start.elapsed().as_secs_f64()
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn main() {
    let bench = Bench::start();
    let numbers: Vec<f64> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    if let [length, count, seconds] = numbers[..] {
        let texts = bench.texts(length as usize);
        println!("{:.2}", bench.measure(&texts, count as usize, Duration::from_secs_f64(seconds)));
        return;
    }
    for length in LENGTHS {
        let texts = bench.texts(length);
        let mut rounds = vec![Vec::new(); JOBS.len()];
        for _ in 0..ROUNDS {
            for (figures, count) in rounds.iter_mut().zip(JOBS) {
                figures.push(bench.measure(&texts, count, Duration::from_millis(700)));
            }
        }
        let ratios = rounds.iter().map(|figures| median(figures.iter().zip(&rounds[0]).map(|(a, b)| a / b).collect()));
        let ratios: Vec<f64> = ratios.collect();
        for ((figures, count), ratio) in rounds.into_iter().zip(JOBS).zip(ratios) {
            let rate = median(figures);
            println!("{length:4} tokens, jobs of {count:3}: {rate:8.1} sentences/s, {ratio:5.2} times one by one");
        }
    }
}
