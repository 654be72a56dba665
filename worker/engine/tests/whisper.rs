//! Whisper against faster-whisper on real speech: `golden/whisper/README.md` says how its results were made.

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use engine::backend::Weights;
use engine::backend::cpu::Cpu;
use engine::encode::{Clip, Encoder, Input, InputKey, Output, Segment, Transcript, Turn, Words};
use engine::fixture::whisper_tiny_en;
use engine::model::whisper::Whisper;
use engine::simd::Level;
use engine::tensors::Tensors;
use serde::Deserialize;

/// Seconds that a segment's and a word's ends may differ.
const SEGMENT_SLACK: f32 = 0.2;
const WORD_SLACK: f32 = 0.3;

#[derive(Deserialize)]
struct Golden {
    samples: usize,
    segments: Vec<Told>,
    timed: Vec<Told>,
}

#[derive(Deserialize)]
struct Told {
    start: f32,
    end: f32,
    text: String,
    #[serde(default)]
    words: Vec<Told>,
}

#[test]
fn speech_is_written_as_faster_whisper_writes_it() {
    let (golden, samples) = (golden(), speech());
    assert_eq!(samples.len(), golden.samples);
    let found = &transcribe(&mut whisper(), &[clip(&samples, Words::Untimed)])[0];
    assert_eq!(found.language, "en");
    compare(&found.segments, &golden.segments);
}

#[test]
fn words_are_timed_as_faster_whisper_times_them() {
    let (golden, samples) = (golden(), speech());
    let found = &transcribe(&mut whisper(), &[clip(&samples, Words::Timed)])[0];
    compare(&found.segments, &golden.timed);
    for (ours, theirs) in found.segments.iter().zip(&golden.timed) {
        assert_eq!(ours.words.len(), theirs.words.len(), "{}", ours.text);
        for (ours, theirs) in ours.words.iter().zip(&theirs.words) {
            assert_eq!(ours.text, theirs.text);
            close((ours.start, theirs.start), WORD_SLACK, &ours.text);
            close((ours.end, theirs.end), WORD_SLACK, &ours.text);
        }
    }
}

#[test]
fn clips_of_a_batch_are_written_as_alone_and_silence_is_not() {
    let samples = speech();
    let (whole, part) = (clip(&samples, Words::Untimed), clip(&samples[..9 * 16_000], Words::Timed));
    let silence = clip(&[0.0; 70 * 16_000], Words::Untimed);
    let nothing = clip(&[], Words::Timed);
    let mut whisper = whisper();
    let alone = [&whole, &part].map(|clip| transcribe(&mut whisper, std::slice::from_ref(clip)).remove(0));
    let together = transcribe(&mut whisper, &[whole, silence, part, nothing]);
    assert_eq!(together[0], alone[0]);
    assert_eq!(together[2], alone[1]);
    assert!(together[1].segments.is_empty() && together[3].segments.is_empty());
}

#[test]
fn a_clear_clip_does_not_wait_until_its_neighbour_is_sure() {
    let samples = speech();
    let hasty: Vec<f32> = samples.iter().step_by(3).copied().collect();
    let clips = [clip(&hasty, Words::Untimed), clip(&samples[..9 * 16_000], Words::Untimed)];
    let batch = [(InputKey(0), &clips[0]), (InputKey(1), &clips[1])];
    let mut turns = Vec::new();
    whisper().encode(&batch, &mut turns).expect("the processor does not fail");
    assert_eq!(turns[0], Turn::More(String::new()), "nobody speaks at three times the speed");
    assert!(matches!(turns[1], Turn::Done(_)));
}

#[test]
fn what_nobody_wants_any_more_is_left_within_a_step_and_can_go_on() {
    let samples = speech();
    let clips = [clip(&samples, Words::Untimed), clip(&samples[..9 * 16_000], Words::Timed)];
    let (mut whisper, progress) = (whisper(), Arc::new(AtomicU64::new(0)));
    whisper.count_progress(Arc::clone(&progress));
    let alone = transcribe(&mut whisper, &clips);
    let batch = [(InputKey(0), &clips[0]), (InputKey(1), &clips[1])];
    let (mut turns, looks) = (Vec::new(), Cell::new(0));
    let wanted = |key| {
        looks.set(looks.get() + usize::from(key == InputKey(0)));
        key != InputKey(0) || looks.get() < 12
    };
    whisper.encode_while(&wanted, &batch, &mut turns).expect("the processor does not fail");
    assert_eq!(turns[0], Turn::More(String::new()));
    assert_eq!(turns[1], Turn::Done(Output::Transcript(alone[1].clone())), "its neighbour goes on");
    assert_eq!(looks.get(), 12, "asked at each step, and not once it was unwanted");
    let before = progress.load(Ordering::Relaxed);
    whisper.encode_while(&|_| false, &batch[..1], &mut turns).expect("the processor does not fail");
    assert_eq!((&turns[2], progress.load(Ordering::Relaxed)), (&Turn::More(String::new()), before));
    assert_eq!(transcribe(&mut whisper, &clips[..1]), alone[..1]);
}

#[test]
fn what_the_model_cannot_hear_is_refused() {
    let whisper = whisper();
    let french = Clip { language: Some("fr".into()), samples: Arc::new([0.0; 16]), words: Words::Untimed };
    assert!(whisper.cost(&Input::Clip(french)).unwrap_err().contains("`fr`"));
    assert!(whisper.cost(&Input::Tokens(vec![1])).is_err());
    let long = clip(&vec![0.0; 4 * 3600 * 16_000 + 1], Words::Untimed);
    assert!(whisper.cost(&long).unwrap_err().contains("240 minutes"));
}

fn whisper() -> Whisper<Cpu> {
    let tensors = Tensors::open(&whisper_tiny_en()).expect("the fixture opens");
    Whisper::load(&tensors, Cpu::for_encoder(Level::detect(), 2, Weights::Stored)).expect("the fixture loads")
}

fn clip(samples: &[f32], words: Words) -> Input {
    Input::Clip(Clip { samples: samples.into(), language: None, words })
}

/// All clips side by side, window by window.
fn transcribe(whisper: &mut Whisper<Cpu>, inputs: &[Input]) -> Vec<Transcript> {
    let mut found: Vec<Option<Transcript>> = vec![None; inputs.len()];
    for _ in 0..100 {
        let open: Vec<usize> = (0..inputs.len()).filter(|index| found[*index].is_none()).collect();
        if open.is_empty() {
            break;
        }
        let batch: Vec<_> = open.iter().map(|index| (InputKey(*index as u64), &inputs[*index])).collect();
        let mut turns = Vec::new();
        whisper.encode(&batch, &mut turns).expect("the processor does not fail");
        assert_eq!(turns.len(), batch.len());
        for (index, turn) in open.into_iter().zip(turns) {
            match turn {
                Turn::Done(Output::Transcript(transcript)) => found[index] = Some(transcript),
                Turn::More(_) => (),
                other => panic!("no transcript: {other:?}"),
            }
        }
    }
    found.into_iter().map(|transcript| transcript.expect("a hundred windows are enough")).collect()
}

fn compare(ours: &[Segment], theirs: &[Told]) {
    let texts = |segments: &[Segment]| segments.iter().map(|segment| segment.text.clone()).collect::<Vec<_>>();
    assert_eq!(texts(ours), theirs.iter().map(|segment| segment.text.clone()).collect::<Vec<_>>());
    for (ours, theirs) in ours.iter().zip(theirs) {
        close((ours.start, theirs.start), SEGMENT_SLACK, &ours.text);
        close((ours.end, theirs.end), SEGMENT_SLACK, &ours.text);
    }
}

fn close((ours, theirs): (f32, f32), slack: f32, text: &str) {
    assert!((ours - theirs).abs() <= slack + 1e-3, "{ours} s beside {theirs} s: {text}");
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/whisper/libri.json")).expect("the golden file is ours")
}

/// The samples of `libri.wav`.
fn speech() -> Vec<f32> {
    let bytes = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/whisper/libri.wav")).unwrap();
    let find = |tag: &[u8]| bytes.windows(4).position(|four| four == tag).expect("a chunk of the file") + 4;
    let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let (count, data) = (number(find(b"fact") + 4), find(b"data"));
    let block = usize::from(bytes[find(b"fmt ") + 16]) | usize::from(bytes[find(b"fmt ") + 17]) << 8;
    let mut samples: Vec<f32> = bytes[data + 4..data + 4 + number(data)].chunks(block).flat_map(adpcm).collect();
    samples.truncate(count);
    samples
}

/// The samples of a block of IMA ADPCM: the first as it is, then four bits a step.
fn adpcm(block: &[u8]) -> Vec<f32> {
    const MOVES: [i32; 8] = [-1, -1, -1, -1, 2, 4, 6, 8];
    const STEPS: [i32; 89] = [
        7, 8, 9, 10, 11, 12, 13, 14, 16, 17, 19, 21, 23, 25, 28, 31, 34, 37, 41, 45, 50, 55, 60, 66, 73, 80, 88, 97,
        107, 118, 130, 143, 157, 173, 190, 209, 230, 253, 279, 307, 337, 371, 408, 449, 494, 544, 598, 658, 724, 796,
        876, 963, 1060, 1166, 1282, 1411, 1552, 1707, 1878, 2066, 2272, 2499, 2749, 3024, 3327, 3660, 4026, 4428, 4871,
        5358, 5894, 6484, 7132, 7845, 8630, 9493, 10442, 11487, 12635, 13899, 15289, 16818, 18500, 20350, 22385, 24623,
        27086, 29794, 32767,
    ];
    let (mut level, mut index) = (i32::from(i16::from_le_bytes([block[0], block[1]])), i32::from(block[2]));
    let mut samples = vec![level];
    for nibble in block[4..].iter().flat_map(|byte| [byte & 15, byte >> 4]).map(i32::from) {
        let step = STEPS[index as usize];
        let size = (step >> 3)
            + [step >> 2, step >> 1, step]
                .iter()
                .zip([1, 2, 4])
                .map(|(part, bit)| if nibble & bit > 0 { *part } else { 0 })
                .sum::<i32>();
        level = (if nibble & 8 > 0 { level - size } else { level + size }).clamp(-32768, 32767);
        index = (index + MOVES[(nibble & 7) as usize]).clamp(0, 88);
        samples.push(level);
    }
    samples.into_iter().map(|sample| sample as f32 / 32768.0).collect()
}
