//! How fast encoders of usual shapes are, their weights noise: from what a job brings to what it gets.

use std::time::{Duration, Instant};

use super::Measure;
use super::speed::{LIMITS, STEPS, put, timed};
use crate::Error;
use crate::backend::Backend;
use crate::backend::dense::Dense;
use crate::cuda::Card;
use crate::device;
use crate::encode::{Budget, Clip as Sound, Encoder, Input, InputKey, Pixels};
use crate::fixture::{self, BertShape, ClipShape, Noise, TowerShape, WhisperShape};
use crate::model::whisper::Whisper;
use crate::model::{Bert, Clip, EfficientNet};
use crate::tensors::Tensors;

/// Texts of a batch, and tokens of each.
const TEXTS: (usize, usize) = (256, 128);
/// Pictures of a batch, and their side.
const PICTURES: (usize, usize) = (64, 224);
/// Windows of a batch.
const WINDOWS: usize = 16;
/// Batches of sound that are timed: each takes long.
const SOUNDS: usize = 5;

type Row = fn(&Card, &mut Vec<Measure>) -> Result<(), Error>;

const ROWS: [(&str, Row); 4] =
    [("MiniLM", sentences), ("Whisper", speech), ("EfficientNet", classifier), ("CLIP", vision)];

/// Measures those whose names begin so.
pub(super) fn measure(
    card: &Card,
    shapes: &str,
    measures: &mut Vec<Measure>,
    progress: &mut dyn FnMut(&str),
) -> Result<(), Error> {
    for (name, row) in ROWS.into_iter().filter(|(name, _)| name.starts_with(shapes)) {
        progress(name);
        row(card, measures)?;
    }
    Ok(())
}

/// Seconds of a batch.
fn batch(encoder: &mut dyn Encoder, inputs: &[Input]) -> Result<f64, Error> {
    let batch: Vec<_> = inputs.iter().enumerate().map(|(at, input)| (InputKey(at as u64), input)).collect();
    let mut turns = Vec::new();
    timed(STEPS, || {
        turns.clear();
        encoder.encode(&batch, &mut turns)
    })
}

/// MiniLM's shape.
fn sentences(card: &Card, measures: &mut Vec<Measure>) -> Result<(), Error> {
    let (texts, tokens) = TEXTS;
    let shape = BertShape { width: 384, inner: 1536, layers: 6, heads: 12, vocabulary: 30_522, context: 256 };
    let budget = Budget { units: texts * tokens, inputs: texts, max_wait: Duration::ZERO };
    let tensors = Tensors::parse(fixture::bert_bytes(1, shape, &[]))?;
    let mut bert = Bert::load(&tensors, budget, device::cuda(card, LIMITS)?)?;
    let text = |text| Input::Tokens((0..tokens).map(|at| ((text * 131 + at * 7) % 30_000) as u32).collect());
    let seconds = batch(&mut bert, &(0..texts).map(text).collect::<Vec<_>>())?;
    put(measures, &format!("MiniLM, {texts} texts of {tokens} tokens"), (texts as f64 / seconds, "texts/s"), None);
    Ok(())
}

/// Whisper tiny's shape: windows heard, and 64 tokens written of each.
fn speech(card: &Card, measures: &mut Vec<Measure>) -> Result<(), Error> {
    let shape = WhisperShape { width: 384, inner: 1536, layers: 4, heads: 6, vocabulary: 51_865, context: 128 };
    let mut whisper = Whisper::load(&Tensors::parse(fixture::whisper_bytes(1, shape))?, device::cuda(card, LIMITS)?)?;
    let mut row = |name: &str, seconds: f64| {
        put(measures, &format!("Whisper, {name}"), (WINDOWS as f64 / seconds, "clips/s"), None);
    };
    let frames = Noise(1).numbers(WINDOWS * 3000 * 80);
    whisper.listen(&frames, STEPS)?;
    let start = Instant::now();
    whisper.listen(&frames, STEPS)?;
    row(&format!("{WINDOWS} windows heard"), start.elapsed().as_secs_f64() / STEPS as f64);
    let clips: Vec<Sound> = (0..WINDOWS as u64).map(|clip| fixture::sound(clip, 30)).collect();
    whisper.hear_first(&clips)?;
    let mut tokens = 0;
    let written = timed(SOUNDS, || {
        tokens = whisper.write_first(&clips)?;
        Ok(())
    })?;
    row(&format!("{} tokens written of {WINDOWS}", tokens / WINDOWS), written);
    let whole = timed(SOUNDS, || {
        whisper.hear_first(&clips)?;
        whisper.write_first(&clips).map(|_| ())
    })?;
    row(&format!("{WINDOWS} from samples to text"), whole);
    Ok(())
}

/// EfficientNet-Lite0's shape.
fn classifier(card: &Card, measures: &mut Vec<Measure>) -> Result<(), Error> {
    let (count, side) = PICTURES;
    let pictures = pictures();
    let tensors = Tensors::parse(fixture::efficientnet_bytes(1, (side, 1000), "symmetric"))?;
    let seconds = batch(&mut EfficientNet::load(&tensors, device::cuda(card, LIMITS)?)?, &pictures)?;
    put(measures, &format!("EfficientNet, {count} pictures"), (count as f64 / seconds, "pictures/s"), None);
    let mut cuda = device::cuda(card, LIMITS)?;
    let mut pixels = cuda.buffer(count * side * side, 3)?;
    let numbers: Vec<&[f32]> = pictures
        .iter()
        .filter_map(|picture| match picture {
            Input::Pixels(pixels) => Some(pixels.numbers.as_slice()),
            _ => None,
        })
        .collect();
    let seconds = timed(STEPS, || {
        cuda.write(&numbers, &mut pixels);
        cuda.step_end()
    })?;
    put(measures, &format!("EfficientNet, {count} pictures sent"), (seconds * 1e3, "ms"), None);
    Ok(())
}

/// The vision tower of CLIP ViT-B/32; its text tower is small.
fn vision(card: &Card, measures: &mut Vec<Measure>) -> Result<(), Error> {
    let (count, side) = PICTURES;
    let shape = ClipShape {
        text: TowerShape { width: 64, inner: 64, layers: 1, heads: 1 },
        vision: TowerShape { width: 768, inner: 3072, layers: 12, heads: 12 },
        side: (side, 32),
        vocabulary: 64,
        positions: 77,
        projection: 512,
    };
    let budget = Budget { units: count * ((side / 32).pow(2) + 1), inputs: count, max_wait: Duration::ZERO };
    let tensors = Tensors::parse(fixture::clip_bytes(1, shape))?;
    let seconds = batch(&mut Clip::load(&tensors, budget, device::cuda(card, LIMITS)?)?, &pictures())?;
    put(measures, &format!("CLIP, {count} pictures"), (count as f64 / seconds, "pictures/s"), None);
    Ok(())
}

fn pictures() -> Vec<Input> {
    let (count, side) = PICTURES;
    let picture = |seed| {
        Input::Pixels(Pixels { height: side, width: side, numbers: Noise(seed as u64).numbers(side * side * 3) })
    };
    (0..count).map(picture).collect()
}
