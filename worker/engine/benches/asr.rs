//! Speech recognition beside its length, and what was heard: one JSON line a clip, for `peers/asr.py`.
//!
//! `cargo bench --bench asr -- MODEL.safetensors CLIP.wav... [--threads 2] [--words] [--language en] [--together]`;
//! without a model it says so and does nothing.

use std::path::Path;
use std::time::Instant;

use engine::backend::Weights;
use engine::backend::cpu::Cpu;
use engine::encode::{Clip, Encoder, Input, InputKey, Output, Transcript, Turn, Words};
use engine::model::whisper::Whisper;
use engine::simd::Level;
use engine::tensors::Tensors;
use serde_json::json;

fn main() {
    let (mut files, mut threads, mut words, mut language, mut together) = (Vec::new(), 2, Words::Untimed, None, false);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--threads" => threads = args.next().and_then(|n| n.parse().ok()).expect("a number of threads"),
            "--words" => words = Words::Timed,
            "--language" => language = args.next(),
            "--together" => together = true,
            "--bench" => (),
            _ => files.push(arg),
        }
    }
    let Some((model, clips)) = files.split_first() else {
        println!("asr: no model given, nothing measured");
        return;
    };
    let tensors = Tensors::open(Path::new(model)).expect("the model opens");
    let mut whisper =
        Whisper::load(&tensors, Cpu::for_encoder(Level::detect(), threads, Weights::Stored)).expect("the model loads");
    let clip = |path: &String| Clip { samples: samples(path).into(), language: language.clone(), words };
    let inputs: Vec<Input> = clips.iter().map(|path| Input::Clip(clip(path))).collect();
    let size = if together { inputs.len() } else { 1 };
    let mut heard = 0;
    for (paths, inputs) in clips.chunks(size).zip(inputs.chunks(size)) {
        let begun = Instant::now();
        let (transcripts, windows) = transcribe(&mut whisper, inputs, heard);
        heard += inputs.len() as u64;
        let took = begun.elapsed().as_secs_f64();
        for ((path, input), transcript) in paths.iter().zip(inputs).zip(transcripts) {
            println!("{}", told(path, input, &transcript, (took, windows)));
        }
    }
}

/// All clips at once, window by window.
fn transcribe(whisper: &mut Whisper<Cpu>, inputs: &[Input], first: u64) -> (Vec<Transcript>, usize) {
    let mut transcripts = vec![None; inputs.len()];
    let mut windows = 0;
    while transcripts.iter().any(Option::is_none) {
        let open: Vec<usize> = (0..inputs.len()).filter(|clip| transcripts[*clip].is_none()).take(8).collect();
        let batch: Vec<_> = open.iter().map(|clip| (InputKey(first + *clip as u64), &inputs[*clip])).collect();
        let mut turns = Vec::new();
        whisper.encode(&batch, &mut turns).expect("the processor does not fail");
        windows += turns.len();
        for (clip, turn) in open.into_iter().zip(turns) {
            match turn {
                Turn::Done(Output::Transcript(transcript)) => transcripts[clip] = Some(transcript),
                Turn::More(_) => (),
                other => panic!("no transcript: {other:?}"),
            }
        }
    }
    (transcripts.into_iter().flatten().collect(), windows)
}

fn told(path: &str, input: &Input, transcript: &Transcript, (took, windows): (f64, usize)) -> serde_json::Value {
    let Input::Clip(clip) = input else { unreachable!("clips only") };
    let segments: Vec<_> = transcript
        .segments
        .iter()
        .map(|segment| {
            let words = segment.words.iter().map(|w| json!({"start": w.start, "end": w.end, "text": w.text}));
            let words: Vec<_> = words.collect();
            json!({"start": segment.start, "end": segment.end, "text": segment.text, "words": words})
        })
        .collect();
    let seconds = clip.samples.len() as f64 / 16_000.0;
    json!({"clip": path, "seconds": seconds, "took": took, "windows": windows, "language": transcript.language, "segments": segments})
}

/// Samples of a WAV file of one channel, 16 bits and 16 kHz.
fn samples(path: &str) -> Vec<f32> {
    let bytes = std::fs::read(path).expect("the clip can be read");
    let at = bytes.windows(4).position(|tag| tag == b"data").expect("a WAV file with data");
    let number = |pair: &[u8]| f32::from(i16::from_le_bytes([pair[0], pair[1]])) / 32768.0;
    bytes[at + 8..].chunks_exact(2).map(number).collect()
}
