//! EfficientNet-Lite: pictures to probabilities of classes, after Tan and Le, arXiv 1905.11946, without squeeze and
//! excitation and with ReLU6, as timm's `efficientnet_lite0` names and computes it.
//!
//! Pictures are rows (input, y, x) of channels, so that a 1x1 convolution is a product; the others are unfolded (the
//! stem) or channel by channel. Normalisation by a batch's statistics is folded into the weights at load.

mod fold;
mod load;
#[cfg(test)]
mod tests;

pub(super) use fold::product;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::Error;
use crate::backend::dense::{Activation, Dense, InvertedResidual, Residual, Window};
use crate::backend::{Backend, Epilogue};
use crate::encode::{Budget, Cost, Encoder, Input, InputKey, Output, Picturing, Turn};

/// Pictures of a batch, at least.
const BATCH: usize = 32;
/// Pictures computed together on a processor: enough for the last layers' 49 places each to make a good product, few enough for the
/// first layers' numbers to stay near the cores.
const GROUP: usize = 4;
/// How long a batch's first picture waits: less than it computes.
const MAX_WAIT: Duration = Duration::from_millis(4);

/// A classifier of pictures on a backend.
pub struct EfficientNet<B: Dense> {
    backend: B,
    picturing: Picturing,
    classes: usize,
    network: Network<B>,
    buffers: Buffers<B>,
    progress: Arc<AtomicU64>,
}

struct Network<B: Backend> {
    /// 3x3 with stride 2, as a product of unfolded windows.
    stem: Stem<B>,
    blocks: Vec<Block<B>>,
    /// To the width that the classifier sees.
    head: Pointwise<B>,
    /// (classes, width)
    classifier: Pointwise<B>,
}

struct Stem<B: Backend> {
    window: Window,
    product: Pointwise<B>,
}

/// Widen, filter each channel, narrow; and add what came in where the shapes agree.
struct Block<B: Backend> {
    /// `None` where nothing is widened.
    expand: Option<Pointwise<B>>,
    filter: Depthwise<B>,
    project: Pointwise<B>,
    residual: Residual,
    slots: BlockSlots,
}

/// Which buffers a block uses.
#[derive(Clone, Copy, Debug)]
struct BlockSlots {
    input: usize,
    /// Not touched where nothing is widened.
    widened: usize,
    filtered: usize,
    output: usize,
}

/// A 1x1 convolution.
struct Pointwise<B: Backend> {
    weight: B::Weight,
    bias: B::Buf,
    activation: Activation,
}

/// A convolution of every channel by itself.
struct Depthwise<B: Backend> {
    /// (kernel y * kernel x, channels)
    kernel: B::Buf,
    bias: B::Buf,
    window: Window,
}

/// Activations, each used by many layers.
struct Buffers<B: Backend> {
    /// (pictures * side * side, 3)
    pixels: B::Buf,
    /// (pictures * places, 27)
    unfolded: B::Buf,
    /// Those of the blocks, by their slots.
    slots: Vec<B::Buf>,
    /// What the last block made.
    last: usize,
    /// (pictures * places, width of the head)
    headed: B::Buf,
    /// (pictures, width of the head)
    pooled: B::Buf,
    /// (pictures, classes)
    logits: B::Buf,
    /// Of one picture at the head.
    places: usize,
}

impl<B: Dense> EfficientNet<B> {
    /// How it wants its pictures.
    #[must_use]
    pub fn picturing(&self) -> &Picturing {
        &self.picturing
    }

    /// How many classes it knows.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Probabilities of `pictures`, one group, pushed one after the other.
    fn classify(&mut self, pictures: &[&[f32]], probabilities: &mut Vec<Vec<f32>>) {
        let (backend, buffers) = (&mut self.backend, &mut self.buffers);
        backend.write(pictures, &mut buffers.pixels);
        let stem = &self.network.stem;
        let Pointwise { weight, bias, activation } = &stem.product;
        let first = &mut buffers.slots[self.network.blocks[0].slots.input];
        let of = (&buffers.pixels, &stem.window);
        backend.convolve(of, (weight, bias, *activation), &mut buffers.unfolded, first);
        for block in &self.network.blocks {
            block.run(backend, &mut buffers.slots);
            self.progress.fetch_add(1, Ordering::Relaxed);
        }
        self.network.head.run(backend, &buffers.slots[buffers.last], &mut buffers.headed);
        let places = buffers.places;
        let spans: Vec<Range<usize>> = (0..pictures.len()).map(|at| at * places..(at + 1) * places).collect();
        backend.mean(&buffers.headed, &spans, &mut buffers.pooled);
        self.network.classifier.run(backend, &buffers.pooled, &mut buffers.logits);
        let mut logits = Vec::new();
        backend.download(&buffers.logits, &mut logits);
        probabilities.extend(logits.chunks_exact(self.classes).take(pictures.len()).map(softmax));
    }
}

impl<B: Dense> Pointwise<B> {
    fn run(&self, backend: &mut B, x: &B::Buf, out: &mut B::Buf) {
        backend.affine((x, &self.weight), (&self.bias, self.activation), Epilogue::Store, out);
    }
}

impl<B: Dense> Block<B> {
    fn run(&self, backend: &mut B, slots: &mut [B::Buf]) {
        const DISTINCT: &str = "slots are assigned apart at load";
        let BlockSlots { input, widened, filtered, output } = self.slots;
        let [x, widened, filtered, out] = slots.get_disjoint_mut([input, widened, filtered, output]).expect(DISTINCT);
        let block = InvertedResidual {
            expand: self.expand.as_ref().map(|expand| (&expand.weight, &expand.bias)),
            filter: (&self.filter.kernel, &self.filter.bias),
            window: &self.filter.window,
            activation: Activation::Relu6,
            project: (&self.project.weight, &self.project.bias),
            residual: self.residual,
        };
        backend.inverted_residual(x, &block, (widened, filtered), out);
    }
}

impl<B: Dense> Encoder for EfficientNet<B> {
    fn family(&self) -> &'static str {
        "efficientnet"
    }

    fn budget(&self) -> Budget {
        let side = self.picturing.size as usize;
        let inputs = BATCH.max(GROUP * self.backend.appetite());
        Budget { units: inputs * side * side, inputs, max_wait: MAX_WAIT }
    }

    fn cost(&self, input: &Input) -> Result<Cost, String> {
        let Input::Pixels(pixels) = input else {
            return Err("this model takes pictures".into());
        };
        let side = self.picturing.size as usize;
        let fits = (pixels.height, pixels.width) == (side, side) && pixels.numbers.len() == side * side * 3;
        match fits {
            true => Ok(Cost { units: side * side, kind: 0 }),
            false => Err(format!(
                "this model takes pictures of {side} x {side} pixels, not of {} x {}",
                pixels.width, pixels.height
            )),
        }
    }

    fn count_progress(&mut self, progress: Arc<AtomicU64>) {
        self.progress = progress;
    }

    fn encode(&mut self, batch: &[(InputKey, &Input)], turns: &mut Vec<Turn>) -> Result<(), Error> {
        let mut probabilities = Vec::with_capacity(batch.len());
        let refusals: Vec<Option<String>> = batch.iter().map(|(_, input)| self.cost(input).err()).collect();
        let pictures: Vec<&[f32]> = batch
            .iter()
            .zip(&refusals)
            .filter_map(|((_, input), refusal)| match input {
                Input::Pixels(pixels) if refusal.is_none() => Some(pixels.numbers.as_slice()),
                _ => None,
            })
            .collect();
        for group in pictures.chunks(GROUP * self.backend.appetite()) {
            self.classify(group, &mut probabilities);
        }
        // What the device could not do is known only now.
        self.backend.step_end()?;
        let mut probabilities = probabilities.into_iter();
        turns.extend(refusals.into_iter().map(|refusal| match refusal {
            Some(why) => Turn::Failed(why),
            None => match probabilities.next().expect("one for each picture") {
                // Numbers of a broken file or of a hostile picture; a probability is never one.
                unsure if unsure.iter().any(|p| !p.is_finite()) => Turn::Failed("the model finds no answer".into()),
                classes => Turn::Done(Output::Classes(classes)),
            },
        }));
        Ok(())
    }
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = logits.iter().map(|logit| (logit - most).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}
