//! Writes clips down, and times it: `transcribe MODEL THREADS ROUNDS CLIP.wav...` prints a line of JSON a clip, with the
//! median of as many rounds after the first. Clips have one channel, 16 bits and 16 kHz; `FLOTILLA_BENCH_WEIGHTS` is
//! `stored` or `int8`.

use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use engine::encode::{Clip, End, Engine, Event, Input, Job, Output, Settings, Transcript, Words, load};
use engine::engine::JobKey;
use serde_json::json;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, threads, rounds, clips @ ..] = arguments.as_slice() else {
        panic!("transcribe MODEL THREADS ROUNDS CLIP.wav...")
    };
    let threads = threads.parse().expect("a number of threads");
    let rounds: usize = rounds.parse().expect("a number of rounds");
    let settings = match std::env::var("FLOTILLA_BENCH_WEIGHTS").as_deref() {
        Ok("int8") => Settings::int8(threads),
        _ => Settings::stored(threads),
    };
    let loaded = load(Path::new(model), settings).expect("a model of speech");
    let (sender, events) = channel();
    let engine = Engine::start(loaded.encoder, 1, Box::new(sender)).expect("a thread");
    for path in clips {
        let samples = samples(path).into();
        let clip = Clip { samples, language: None, words: Words::Untimed };
        let text = words(&transcribe(&engine, &events, &clip));
        let mut took: Vec<f64> = (0..rounds)
            .map(|_| {
                let begun = Instant::now();
                transcribe(&engine, &events, &clip);
                begun.elapsed().as_secs_f64()
            })
            .collect();
        took.sort_by(f64::total_cmp);
        println!("{}", json!({"clip": path, "seconds": took[rounds / 2], "text": text}));
    }
}

fn transcribe(engine: &Engine, events: &Receiver<Event>, clip: &Clip) -> Transcript {
    let inputs = vec![Input::Clip(clip.clone())];
    engine.submit(Job { key: JobKey(0), inputs, deadline: None }).expect("there is room");
    loop {
        match events.recv().expect("the engine lives") {
            Event::Ended { end: End::Done(outputs), .. } => match outputs.into_iter().next() {
                Some(Output::Transcript(transcript)) => return transcript,
                other => panic!("no transcript: {other:?}"),
            },
            Event::Ended { end, .. } => panic!("no transcript: {end:?}"),
            _ => {}
        }
    }
}

fn words(transcript: &Transcript) -> String {
    transcript.segments.iter().map(|segment| segment.text.as_str()).collect::<String>().trim().to_owned()
}

/// Samples of a WAV file.
fn samples(path: &str) -> Vec<f32> {
    let bytes = std::fs::read(path).expect("the clip can be read");
    let at = bytes.windows(4).position(|tag| tag == b"data").expect("a WAV file with data");
    let number = |pair: &[u8]| f32::from(i16::from_le_bytes([pair[0], pair[1]])) / 32768.0;
    bytes[at + 8..].chunks_exact(2).map(number).collect()
}
