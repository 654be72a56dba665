//! An EfficientNet-Lite from a model file: names and order of timm, normalisation folded into weights.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use serde::Deserialize;

use super::fold::{Affine, Folded, fold, normalisation, rounds};
use super::{Block, BlockSlots, Buffers, Depthwise, EfficientNet, GROUP, Network, Pointwise, Stem};
use crate::Error;
use crate::backend::Matrix;
use crate::backend::dense::{Activation, Dense, Padding, Residual, Window};
use crate::encode::Picturing;
use crate::model::kernel::MATRIX;
use crate::quant::Format;
use crate::tensors::{Tensors, little_endian};

/// Channels behind the stem.
const STEM: usize = 32;
/// Channels before the classifier.
const HEAD: usize = 1_280;
/// The convolution to these.
const CONV_HEAD: &str = "conv_head";
/// Classes at most.
const CLASSES_MAX: usize = 1 << 16;
/// `efficientnet_lite0`, as timm writes it: `ds_r1_k3_s1_e1_c16`, `ir_r2_k3_s2_e6_c24`, and so on.
const LITE0: [Stage; 7] = [
    Stage { repeats: 1, kernel: 3, stride: 1, expansion: 1, channels: 16 },
    Stage { repeats: 2, kernel: 3, stride: 2, expansion: 6, channels: 24 },
    Stage { repeats: 2, kernel: 5, stride: 2, expansion: 6, channels: 40 },
    Stage { repeats: 3, kernel: 3, stride: 2, expansion: 6, channels: 80 },
    Stage { repeats: 3, kernel: 5, stride: 1, expansion: 6, channels: 112 },
    Stage { repeats: 4, kernel: 5, stride: 2, expansion: 6, channels: 192 },
    Stage { repeats: 1, kernel: 3, stride: 1, expansion: 6, channels: 320 },
];

/// Blocks of one width.
#[derive(Clone, Copy, Debug)]
struct Stage {
    repeats: usize,
    kernel: usize,
    /// Of its first block; the others have 1.
    stride: usize,
    expansion: usize,
    channels: usize,
}

/// What a block's kernels and the normalisations behind them are called.
struct Names {
    /// Where it widens.
    widening: Option<(String, String)>,
    filter: (String, String),
    narrowing: (String, String),
}

impl Stage {
    fn names(&self, block: &str) -> Names {
        let pair = |kernel: &str, norm: &str| (format!("{block}.{kernel}"), format!("{block}.{norm}"));
        match self.expansion {
            1 => Names { widening: None, filter: pair("conv_dw", "bn1"), narrowing: pair("conv_pw", "bn2") },
            _ => Names {
                widening: Some(pair("conv_pw", "bn1")),
                filter: pair("conv_dw", "bn2"),
                narrowing: pair("conv_pwl", "bn3"),
            },
        }
    }
}

/// The normalisation behind the 1x1 convolution whose kernel is called so.
pub(super) fn behind(kernel: &str) -> Option<String> {
    let stages = LITE0.iter().enumerate();
    let blocks = stages.flat_map(|(stage, shape)| {
        (0..shape.repeats).map(move |repeat| shape.names(&format!("blocks.{stage}.{repeat}")))
    });
    let pairs = blocks.flat_map(|Names { widening, narrowing, .. }| widening.into_iter().chain([narrowing]));
    let mut all = pairs.chain([(CONV_HEAD.to_owned(), "bn2".to_owned())]);
    all.find(|(name, _)| name == kernel).map(|(_, norm)| norm)
}

/// What a model file says beside [`Picturing`].
#[derive(Debug, Deserialize)]
pub(super) struct Config {
    architecture: String,
    /// timm's models of its own are padded alike on all sides, those from TensorFlow less at the top and left.
    #[serde(default)]
    padding: PaddingRule,
    /// Added to variances.
    #[serde(default = "epsilon")]
    pub(super) epsilon: f32,
}

/// As timm: 1e-5 in its own models, 1e-3 in those from TensorFlow.
fn epsilon() -> f32 {
    1e-5
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PaddingRule {
    #[default]
    Symmetric,
    Same,
}

impl PaddingRule {
    /// Zeros before and behind `size` places.
    fn around(self, size: usize, kernel: usize, stride: usize) -> (usize, usize) {
        match self {
            Self::Symmetric => (kernel / 2, kernel / 2),
            Self::Same => {
                let all = ((size.div_ceil(stride) - 1) * stride + kernel).saturating_sub(size);
                (all / 2, all - all / 2)
            }
        }
    }

    fn window(self, side: usize, kernel: usize, stride: usize) -> Window {
        let around = self.around(side, kernel, stride);
        Window {
            size: (side, side),
            kernel: (kernel, kernel),
            stride: (stride, stride),
            padding: Padding { rows: around, columns: around },
        }
    }
}

impl<B: Dense> EfficientNet<B> {
    /// Reads a model file onto `backend`.
    ///
    /// # Errors
    /// [`Error::Malformed`] when the file lacks something, [`Error::Unsupported`] for another architecture,
    /// [`Error::Device`] when the backend has no room.
    pub fn load(tensors: &Tensors, backend: B) -> Result<Self, Error> {
        let config: Config = tensors.config()?;
        if config.architecture != "efficientnet_lite0" {
            return Err(Error::Unsupported(format!("architecture `{}`", config.architecture)));
        }
        if !(config.epsilon.is_finite() && config.epsilon > 0.0) {
            return Err(Error::Malformed(format!("an epsilon of {}", config.epsilon)));
        }
        let picturing = Picturing::read(tensors)?;
        let classes = tensors.tensor("classifier.bias")?.shape.first().copied().unwrap_or(0);
        if classes == 0 || classes > CLASSES_MAX {
            return Err(Error::Malformed(format!("{classes} classes, not 1 to {CLASSES_MAX}")));
        }
        let mut loader = Loader { tensors, backend, config };
        let (network, plan) = loader.network(picturing.size as usize, classes)?;
        let Loader { backend, .. } = loader;
        let buffers = plan.buffers(&backend, &network, (picturing.size as usize, classes))?;
        Ok(Self { backend, picturing, classes, network, buffers, progress: Arc::new(AtomicU64::new(0)) })
    }
}

struct Loader<'a, B: Dense> {
    tensors: &'a Tensors,
    backend: B,
    config: Config,
}

impl<B: Dense> Loader<'_, B> {
    fn network(&mut self, side: usize, classes: usize) -> Result<(Network<B>, Slots), Error> {
        let (stem, mut side) = self.stem(side)?;
        let mut slots = Slots::default();
        let (mut input, mut channels) = (slots.take(STEM, side * side), STEM);
        let mut blocks = Vec::new();
        for (stage, shape) in LITE0.iter().enumerate() {
            for repeat in 0..shape.repeats {
                let stride = if repeat == 0 { shape.stride } else { 1 };
                let name = format!("blocks.{stage}.{repeat}");
                let place = Place { side, channels, stride, input };
                let block = self.block(&name, shape, &place, &mut slots)?;
                (side, channels, input) = (block.filter.window.output()?.0, shape.channels, block.slots.output);
                blocks.push(block);
            }
        }
        (slots.last, slots.places) = (input, side * side);
        let head = self.pointwise(CONV_HEAD, "bn2", (channels, HEAD), Activation::Relu6)?;
        let classifier = self.product("classifier", (HEAD, classes), Activation::None)?;
        Ok((Network { stem, blocks, head, classifier }, slots))
    }

    /// The stem and the side of what it makes. Its kernel (outputs, colours, y, x) becomes (outputs, (y, x, colours)).
    fn stem(&mut self, side: usize) -> Result<(Stem<B>, usize), Error> {
        const SIDE: usize = 3;
        let window = self.config.padding.window(side, SIDE, 2);
        let kernel = self.tensors.numbers("conv_stem.weight", &[STEM, 3, SIDE, SIDE])?;
        let Affine { scale, shift } = self.normalisation("bn1", STEM)?;
        let places = SIDE * SIDE;
        let rows: Vec<f32> = (0..STEM * places * 3)
            .map(|index| {
                let (output, place, colour) = (index / (places * 3), index / 3 % places, index % 3);
                kernel[(output * 3 + colour) * places + place] * scale[output]
            })
            .collect();
        let product = Pointwise {
            weight: self.pack_rows(&rows, places * 3)?,
            bias: self.backend.upload(&shift, STEM)?,
            activation: Activation::Relu6,
        };
        let (output, _) = window.output()?;
        Ok((Stem { window, product }, output))
    }

    fn block(&mut self, name: &str, stage: &Stage, place: &Place, slots: &mut Slots) -> Result<Block<B>, Error> {
        let Place { side, channels, stride, input } = *place;
        let wide = channels * stage.expansion;
        let window = self.config.padding.window(side, stage.kernel, stride);
        let after = window.output()?.0;
        let Names { widening, filter, narrowing } = stage.names(name);
        let expand = widening
            .map(|(kernel, norm)| self.pointwise(&kernel, &norm, (channels, wide), Activation::Relu6))
            .transpose()?;
        let widened = slots.take(wide, side * side);
        let filtered = slots.take(wide, after * after);
        let output = slots.take(stage.channels, after * after);
        // What came in is free for the next block, and so is what is between.
        slots.free([input, widened, filtered]);
        Ok(Block {
            expand,
            filter: self.depthwise(&filter.0, &filter.1, wide, window)?,
            project: self.pointwise(&narrowing.0, &narrowing.1, (wide, stage.channels), Activation::None)?,
            residual: if stride == 1 && channels == stage.channels { Residual::Added } else { Residual::None },
            slots: BlockSlots { input, widened, filtered, output },
        })
    }

    fn pointwise(
        &mut self,
        kernel: &str,
        norm: &str,
        (inputs, outputs): (usize, usize),
        activation: Activation,
    ) -> Result<Pointwise<B>, Error> {
        if self.tensors.tensor(&format!("{kernel}.weight"))?.shape.len() == MATRIX {
            return self.product(kernel, (inputs, outputs), activation);
        }
        let Folded { rows, shift } = fold(self.tensors, (kernel, norm), (inputs, outputs), self.config.epsilon)?;
        Ok(Pointwise {
            weight: self.pack_rows(&rows, inputs)?,
            bias: self.backend.upload(&shift, outputs)?,
            activation,
        })
    }

    /// A matrix with a bias of its own.
    fn product(
        &mut self,
        name: &str,
        (inputs, outputs): (usize, usize),
        activation: Activation,
    ) -> Result<Pointwise<B>, Error> {
        let weight = self.tensors.matrix(&format!("{name}.weight"), outputs, inputs)?;
        let bias = self.tensors.numbers(&format!("{name}.bias"), &[outputs])?;
        Ok(Pointwise { weight: self.pack(weight)?, bias: self.backend.upload(&bias, outputs)?, activation })
    }

    /// The kernel (channels, 1, y, x) becomes (y * x, channels).
    fn depthwise(&mut self, kernel: &str, norm: &str, channels: usize, window: Window) -> Result<Depthwise<B>, Error> {
        let (height, width) = window.kernel;
        let numbers = self.tensors.numbers(&format!("{kernel}.weight"), &[channels, 1, height, width])?;
        let Affine { scale, shift } = self.normalisation(norm, channels)?;
        let places = height * width;
        let turned: Vec<f32> = (0..places * channels)
            .map(|index| {
                let (place, channel) = (index / channels, index % channels);
                numbers[channel * places + place] * scale[channel]
            })
            .collect();
        Ok(Depthwise {
            kernel: self.backend.upload(&turned, channels)?,
            bias: self.backend.upload(&shift, channels)?,
            window,
        })
    }

    fn normalisation(&self, name: &str, channels: usize) -> Result<Affine, Error> {
        normalisation(self.tensors, name, channels, self.config.epsilon)
    }

    fn pack_rows(&mut self, rows: &[f32], columns: usize) -> Result<B::Weight, Error> {
        self.pack(Matrix { format: Format::F32, columns, data: &little_endian(rows) })
    }

    fn pack(&mut self, matrix: Matrix<'_>) -> Result<B::Weight, Error> {
        match rounds((matrix.rows(), matrix.columns)) {
            true => self.backend.pack_for_many(&[matrix]),
            false => self.backend.pack_stored(matrix),
        }
    }
}

/// Where a block is.
struct Place {
    /// Of the picture that comes in.
    side: usize,
    /// That come in.
    channels: usize,
    stride: usize,
    /// Slot of what comes in.
    input: usize,
}

/// Buffers by width and the most places they have to hold for one picture, shared by layers that do not meet.
#[derive(Debug, Default)]
struct Slots {
    slots: Vec<Slot>,
    /// What the last block makes.
    last: usize,
    /// Of one picture behind the last block.
    places: usize,
}

#[derive(Debug)]
struct Slot {
    width: usize,
    places: usize,
    state: SlotState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotState {
    Free,
    Taken,
}

impl Slots {
    fn take(&mut self, width: usize, places: usize) -> usize {
        let fitting = |slot: &Slot| slot.state == SlotState::Free && slot.width == width;
        let index = self.slots.iter().position(fitting).unwrap_or_else(|| {
            self.slots.push(Slot { width, places, state: SlotState::Free });
            self.slots.len() - 1
        });
        let slot = &mut self.slots[index];
        slot.places = slot.places.max(places);
        slot.state = SlotState::Taken;
        index
    }

    fn free(&mut self, slots: impl IntoIterator<Item = usize>) {
        for slot in slots {
            self.slots[slot].state = SlotState::Free;
        }
    }

    fn buffers<B: Dense>(
        &self,
        backend: &B,
        network: &Network<B>,
        (side, classes): (usize, usize),
    ) -> Result<Buffers<B>, Error> {
        let (height, width) = network.stem.window.output()?;
        let group = GROUP * backend.appetite();
        let slot = |slot: &Slot| backend.inputs(group * slot.places, slot.width);
        Ok(Buffers {
            pixels: backend.buffer(group * side * side, 3)?,
            unfolded: backend.inputs(group * height * width, 27)?,
            slots: self.slots.iter().map(slot).collect::<Result<_, _>>()?,
            last: self.last,
            headed: backend.inputs(group * self.places, HEAD)?,
            pooled: backend.inputs(group, HEAD)?,
            logits: backend.buffer(group, classes)?,
            places: self.places,
        })
    }
}
