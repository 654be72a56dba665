//! Small networks of every family, end to end, on a card and on the oracle.

use super::Check;
use crate::Error;
use crate::backend::cuda::Cuda;
use crate::backend::cuda::check::difference;
use crate::backend::dense::Dense;
use crate::backend::scalar::Scalar;
use crate::backend::{Backend, StepLimits};
use crate::cuda::Card;
use crate::device;
use crate::encode::{Budget, Encoder, Input, InputKey, Output, Pixels, Turn};
use crate::fixture::{
    self, ClipShape, FAMILIES, Noise, TowerShape, VOCABULARY, WhisperShape, small_network, tiny_llama_bytes,
};
use crate::gguf::Gguf;
use crate::model::whisper::Whisper;
use crate::model::{Bert, Clip, Decoder, EfficientNet, ModelConfig, Room};
use crate::plan::{Output as Wanted, Plan, TokenId};
use crate::tensors::Tensors;

const ROOM: Room = Room { step_tokens: 64, outputs: 64, blocks: 16 };
pub(crate) const LIMITS: StepLimits = StepLimits { rows: 64, outputs: 64, blocks: 64 };
/// Tokens of the text.
const POSITIONS: usize = 40;
/// Tokens of it that are read one by one, so that graphs are recorded and replayed.
const SINGLE: usize = 12;
/// Error of logits: bf16 all along a small network whose weights are not.
const ALLOWED: f64 = 2e-3;

/// Runs them all.
pub(super) fn compare(card: &Card) -> Result<Vec<Check>, Error> {
    let mut checks = Vec::new();
    for (family, bytes) in decoders() {
        let truth = logits(&bytes, Scalar::new(LIMITS))?;
        let got = logits(&bytes, device::cuda(card, LIMITS)?)?;
        checks.push(Check { name: format!("{family}, end to end"), error: difference(&truth, &got), allowed: ALLOWED });
    }
    for network in ENCODERS {
        checks.push(network.check(device::cuda(card, LIMITS)?)?);
    }
    Ok(checks)
}

/// A small decoder of each family, and one of quantised weights.
pub(crate) fn decoders() -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    let quantised = std::iter::once_with(|| ("llama of 4 and 8 bits", tiny_llama_bytes(7)));
    FAMILIES.into_iter().map(|family| (family, small_network(family))).chain(quantised)
}

/// A small encoder of which the oracle's answers are known.
pub(crate) struct Network {
    pub(crate) name: &'static str,
    oracle: fn(Scalar) -> Result<Vec<f32>, Error>,
    device: fn(Cuda) -> Result<Vec<f32>, Error>,
}

/// One of each family.
pub(crate) const ENCODERS: [Network; 6] = [
    Network { name: "bert", oracle: directions, device: directions },
    Network { name: "CLIP, pictures", oracle: seen, device: seen },
    Network { name: "CLIP, texts", oracle: read, device: read },
    Network { name: "EfficientNet", oracle: classes, device: classes },
    Network { name: "Whisper", oracle: said, device: said },
    Network { name: "Whisper, words", oracle: looks, device: looks },
];

impl Network {
    /// Compares what `device` answers.
    pub(crate) fn check(&self, device: Cuda) -> Result<Check, Error> {
        let (truth, got) = ((self.oracle)(Scalar::new(LIMITS))?, (self.device)(device)?);
        Ok(Check { name: format!("{}, end to end", self.name), error: difference(&truth, &got), allowed: ALLOWED })
    }
}

/// Logits of all positions: most of the text at once, the rest token by token.
pub(crate) fn logits<B: Backend>(bytes: &[u8], backend: B) -> Result<Vec<f32>, Error> {
    let gguf = Gguf::parse(bytes)?;
    let config = ModelConfig::from_gguf(&gguf)?;
    let mut model = Decoder::load(&gguf, config, ROOM, backend)?;
    let (mut all, mut some) = (Vec::new(), Vec::new());
    let mut first = 0;
    while first < POSITIONS {
        let rows = if first == 0 { POSITIONS - SINGLE } else { 1 };
        model.logits(&text(first, rows), &mut some)?;
        all.extend_from_slice(&some);
        first += rows;
    }
    Ok(all)
}

/// A step of a text, an output at each row.
fn text(first: usize, rows: usize) -> Plan {
    let mut plan = Plan::default();
    let token = |position: usize| ((37 * position + 11) % VOCABULARY as usize) as TokenId;
    fixture::span(&mut plan, 0, first, (first..first + rows).map(token), |block| block);
    let last = plan.outputs[0].clone();
    plan.outputs = (0..rows).map(|row| Wanted { row, position: (first + row + 1) as u32, ..last.clone() }).collect();
    plan
}

/// What becomes of inputs: their vectors, or the logarithms of their classes' probabilities.
fn answers(encoder: &mut dyn Encoder, inputs: &[Input]) -> Result<Vec<f32>, Error> {
    let batch: Vec<(InputKey, &Input)> =
        inputs.iter().enumerate().map(|(at, input)| (InputKey(at as u64), input)).collect();
    let mut turns = Vec::new();
    encoder.encode(&batch, &mut turns)?;
    let answer = |turn| match turn {
        Turn::Done(Output::Vector(vector)) => vector,
        Turn::Done(Output::Classes(classes)) => logarithms(&classes),
        _ => Vec::new(),
    };
    Ok(turns.into_iter().flat_map(answer).collect())
}

/// As logits are where their mean is 0.
fn logarithms(probabilities: &[f32]) -> Vec<f32> {
    let logarithms = probabilities.iter().map(|probability| probability.ln());
    let mean = logarithms.clone().sum::<f32>() / probabilities.len() as f32;
    logarithms.map(|logarithm| logarithm - mean).collect()
}

const BUDGET: Budget = Budget { units: 128, inputs: 8, max_wait: std::time::Duration::ZERO };

/// Directions of some texts of a small sentence encoder.
fn directions<B: Dense>(backend: B) -> Result<Vec<f32>, Error> {
    let tensors = Tensors::parse(fixture::tiny_bert_bytes(3, &[]))?;
    let texts: Vec<Input> =
        [1, 7, 40, 19].iter().map(|len| Input::Tokens((0..*len).map(|at| 5 + at % 60).collect())).collect();
    answers(&mut Bert::load(&tensors, BUDGET, backend)?, &texts)
}

/// A small CLIP, whose pictures do not come out even.
fn clip<B: Dense>(backend: B) -> Result<Clip<B>, Error> {
    let shape = ClipShape {
        text: TowerShape { width: 64, inner: 96, layers: 2, heads: 2 },
        vision: TowerShape { width: 96, inner: 160, layers: 2, heads: 4 },
        side: (34, 8),
        vocabulary: 50,
        positions: 40,
        projection: 24,
    };
    Clip::load(&Tensors::parse(fixture::clip_bytes(5, shape))?, BUDGET, backend)
}

/// Directions of pictures.
fn seen<B: Dense>(backend: B) -> Result<Vec<f32>, Error> {
    answers(&mut clip(backend)?, &pictures(3, 34))
}

/// Directions of texts.
fn read<B: Dense>(backend: B) -> Result<Vec<f32>, Error> {
    let text = |len: &u32| Input::Tokens((0..*len).map(|at| at * 7 % 48).chain([49]).collect());
    answers(&mut clip(backend)?, &[1, 39, 18, 7].iter().map(text).collect::<Vec<_>>())
}

fn pictures(count: u64, side: usize) -> Vec<Input> {
    let picture = |seed| {
        let numbers = Noise(seed).numbers(side * side * 3).into_iter().map(|number| 2.0 * number).collect();
        Input::Pixels(Pixels { height: side, width: side, numbers })
    };
    (0..count).map(picture).collect()
}

/// Logits of pictures of a classifier, odd at two of its halvings.
fn classes<B: Dense>(backend: B) -> Result<Vec<f32>, Error> {
    let tensors = Tensors::parse(fixture::efficientnet_bytes(5, (40, 12), "same"))?;
    answers(&mut EfficientNet::load(&tensors, backend)?, &pictures(2, 40))
}

/// Logits of tokens of a small model that hears, and how they look at what it hears.
fn heard<B: Dense>(backend: B) -> Result<(Vec<f32>, Vec<f32>), Error> {
    let shape = WhisperShape { width: 32, inner: 64, layers: 1, heads: 2, vocabulary: 1600, context: 32 };
    let mut whisper = Whisper::load(&Tensors::parse(fixture::whisper_bytes(5, shape))?, backend)?;
    // The second is shorter than a window.
    let clips = [29, 9].map(|seconds| fixture::sound(seconds as u64, seconds));
    whisper.read(&clips, &[95, 3, 17, 100, 41, 41, 8])
}

fn said<B: Dense>(backend: B) -> Result<Vec<f32>, Error> {
    Ok(heard(backend)?.0)
}

fn looks<B: Dense>(backend: B) -> Result<Vec<f32>, Error> {
    Ok(heard(backend)?.1)
}
