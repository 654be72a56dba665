//! How fast networks of usual shapes are, their weights noise: speed needs no download.

use std::sync::Arc;
use std::time::Instant;

use super::Measure;
use super::ceilings::{self, Ceilings, seconds};
use crate::Error;
use crate::backend::cuda::Cuda;
use crate::backend::{Backend, Epilogue, Gate, Normed, StepLimits};
use crate::cuda::{Card, Gpu};
use crate::device;
use crate::fixture;
use crate::model::{Decoder, Model, ModelConfig, Pairs, Part, Room};
use crate::plan::{BLOCK_TOKENS, Plan};
use crate::quant::Format;

/// Steps that are timed, after as many that are not.
pub(super) const STEPS: usize = 20;
/// Tokens of a prompt.
const PROMPT: usize = 2048;

/// A decoder's numbers.
pub(super) struct Shape {
    pub(super) name: &'static str,
    layers: usize,
    pub(super) width: usize,
    pub(super) inner: usize,
    pub(super) heads: (usize, usize),
    pub(super) head_width: usize,
    vocabulary: usize,
    /// What a file would have its weights in.
    pub(super) format: Format,
    /// Tokens before the step, and sequences of it.
    steps: &'static [(usize, usize)],
}

impl Shape {
    fn is_quantised(&self) -> bool {
        self.format != Format::BF16
    }

    /// Of a weight, as few rows read it.
    fn bytes_of_number(&self) -> f64 {
        self.format.block_bytes() as f64 / self.format.block_len() as f64
    }
}

const SMALL: Shape = Shape {
    name: "135M",
    layers: 30,
    width: 576,
    inner: 1536,
    heads: (9, 3),
    head_width: 64,
    vocabulary: 49_152,
    format: Format::BF16,
    steps: &[(128, 1), (128, 16), (128, 64)],
};
const LARGE: Shape = Shape {
    name: "8B",
    layers: 32,
    width: 4096,
    inner: 14_336,
    heads: (32, 8),
    head_width: 128,
    vocabulary: 128_256,
    format: Format::BF16,
    steps: &[(1024, 1), (1024, 8), (1024, 64)],
};
/// Of quantised weights few rows are of interest: many read them as bf16.
const SHAPES: [Shape; 4] = [
    SMALL,
    Shape { name: "135M Q4_1", format: Format::Q4_1, steps: &[(128, 1)], ..SMALL },
    LARGE,
    Shape { name: "8B Q4_1", format: Format::Q4_1, steps: &[(1024, 1), (1024, 8)], ..LARGE },
];

/// Measures everything.
pub(super) fn measure(
    (card, alone): (&Card, &Card),
    shapes: &str,
    measures: &mut Vec<Measure>,
    progress: &mut dyn FnMut(&str),
) -> Result<(), Error> {
    progress("ceilings");
    let gpu = card.open()?;
    let ceilings = ceilings::measure(&gpu, &mut Cuda::new(Arc::clone(&gpu), LIMITS)?)?;
    put(measures, "copy", (ceilings.copy / 1e9, "GB/s"), None);
    if let Some(products) = ceilings.products {
        put(measures, "bf16 products, the vendor's", (products / 1e12, "TFLOP/s"), None);
    }
    if "products".starts_with(shapes) {
        progress("products");
        kernels((card, alone), ceilings, measures)?;
    }
    for shape in SHAPES.iter().filter(|shape| shape.name.starts_with(shapes)) {
        progress(shape.name);
        let (context, _) = shape.steps[0];
        let chains = [(1, context, 1), (64, context, 1), (1, 0, PROMPT)];
        for rows in chains.into_iter().take(if shape.is_quantised() { 1 } else { chains.len() }) {
            super::chains::measure(card, shape, rows, (ceilings, measures))?;
        }
        decoder(card, shape, ceilings, measures)?;
    }
    super::encoders::measure(card, shapes, measures, progress)
}

pub(super) const LIMITS: StepLimits = StepLimits { rows: PROMPT, outputs: 64, blocks: 64 * 80 };

pub(super) fn put(
    measures: &mut Vec<Measure>,
    name: &str,
    (value, unit): (f64, &'static str),
    part: Option<(f64, &'static str)>,
) {
    measures.push(Measure { name: name.to_owned(), value, unit, part });
}

/// Products of the 8B shape, ours and the vendor's, by rows.
fn kernels((card, alone): (&Card, &Card), ceilings: Ceilings, measures: &mut Vec<Measure>) -> Result<(), Error> {
    for (whose, card) in [("the vendor's", card), ("ours", alone)] {
        let gpu = card.open()?;
        let mut cuda = Cuda::new(Arc::clone(&gpu), LIMITS)?;
        for (outputs, inputs) in [(6144, 4096), (28_672, 4096), (4096, 14_336)] {
            // Several, so that none stays in the cache.
            let weights: Vec<_> =
                (0..4).map(|_| cuda.noise(outputs, inputs, Format::BF16)).collect::<Result<_, _>>()?;
            for rows in [1, 2, 4, 8, 16, 64, 256, PROMPT] {
                let product = Timed { gpu: &gpu, weights: &weights, shape: (rows, outputs, inputs) };
                let seconds = product.seconds(&mut cuda)?;
                let name = format!("{rows} x {inputs} x {outputs}, {whose}");
                let (bytes, work) = (2.0 * (outputs * inputs) as f64, 2.0 * (rows * outputs * inputs) as f64);
                let part = match ceilings.products {
                    Some(products) if rows > 256 => Some((work / seconds / products, "products")),
                    _ => Some((bytes / seconds / ceilings.copy, "copy")),
                };
                put(measures, &name, (seconds * 1e6, "us"), part);
            }
        }
    }
    Ok(())
}

/// A product over and over, of one weight after the other.
struct Timed<'a> {
    gpu: &'a Arc<dyn Gpu>,
    weights: &'a [<Cuda as Backend>::Weight],
    shape: (usize, usize, usize),
}

impl Timed<'_> {
    fn seconds(&self, cuda: &mut Cuda) -> Result<f64, Error> {
        let (rows, outputs, inputs) = self.shape;
        let x = cuda.filled(rows, inputs)?;
        let norm = cuda.upload(&vec![1.0; inputs], inputs)?;
        let mut out = cuda.inputs(rows, outputs)?;
        let mut gated = cuda.inputs(rows, outputs / 2)?;
        let mut normed = cuda.inputs(rows, inputs)?;
        let few = rows <= 8;
        let all = seconds(self.gpu, || {
            for weight in self.weights {
                if few {
                    // As decoders ask for it.
                    let x = Normed { x: &x, weight: &norm, epsilon: 1e-5 };
                    cuda.norm_glu(x, (weight, Gate::Silu), (&mut normed, &mut out), &mut gated);
                } else {
                    cuda.linear(&x, weight, Epilogue::Store, &mut out);
                }
            }
            Ok(())
        })?;
        Ok(all / self.weights.len() as f64)
    }
}

fn decoder(card: &Card, shape: &Shape, ceilings: Ceilings, measures: &mut Vec<Measure>) -> Result<(), Error> {
    let room = Room { step_tokens: PROMPT, outputs: 64, blocks: 64 * 80 };
    let mut model = Decoder::noise(config(shape), shape.format, room, device::cuda(card, LIMITS)?)?;
    for &(context, sequences) in shape.steps {
        let plan = step(sequences, context, 1);
        let seconds = step_seconds(&mut model, &plan)?;
        let name = format!("{}, {sequences} at {context} tokens", shape.name);
        put(
            measures,
            &name,
            (seconds * 1e3, "ms a step"),
            Some((bytes(shape, context * sequences) / seconds / ceilings.copy, "copy")),
        );
        put(measures, &name, (sequences as f64 / seconds, "tokens/s"), None);
    }
    if shape.is_quantised() {
        return Ok(());
    }
    let seconds = step_seconds(&mut model, &step(1, 0, PROMPT))?;
    let part = ceilings.products.map(|products| (work(shape) / seconds / products, "products"));
    put(measures, &format!("{}, a prompt of {PROMPT}", shape.name), (seconds * 1e3, "ms"), part);
    Ok(())
}

fn config(shape: &Shape) -> ModelConfig {
    ModelConfig {
        family: "llama".to_owned(),
        layers: shape.layers,
        width: shape.width,
        inner: shape.inner,
        heads: shape.heads.0,
        kv_heads: shape.heads.1,
        head_width: shape.head_width,
        rope_width: shape.head_width,
        rope_base: 500_000.0,
        pairs: Pairs::Adjacent,
        local: None,
        embedding_scale: 1.0,
        qkv_bias: Part::Absent,
        head_norm: Part::Absent,
        branch_norm: Part::Absent,
        gate: Gate::Silu,
        epsilon: 1e-5,
        context: PROMPT + BLOCK_TOKENS,
        vocabulary: shape.vocabulary,
    }
}

/// Numbers that a token is multiplied with.
fn parameters(shape: &Shape) -> f64 {
    let (heads, keys) = (shape.heads.0 * shape.head_width, shape.heads.1 * shape.head_width);
    let layer = shape.width * (2 * heads + 2 * keys) + 3 * shape.width * shape.inner;
    (layer * shape.layers) as f64
}

/// Bytes that a step reads: weights, the output's among them, and the keys and values of so many tokens.
fn bytes(shape: &Shape, tokens: usize) -> f64 {
    let kv = 2 * shape.layers * shape.heads.1 * shape.head_width * tokens;
    let weights = parameters(shape) + (shape.vocabulary * shape.width) as f64;
    weights * shape.bytes_of_number() + 2.0 * kv as f64
}

/// Operations of a prompt: its products, and its attention to what stands before.
fn work(shape: &Shape) -> f64 {
    let attention = 2.0 * (shape.layers * shape.heads.0 * shape.head_width * PROMPT * PROMPT) as f64;
    2.0 * parameters(shape) * PROMPT as f64 + attention
}

/// A step of some sequences with so many tokens before it.
pub(super) fn step(sequences: usize, context: usize, rows: usize) -> Plan {
    let mut plan = Plan::default();
    let blocks = (context + rows).div_ceil(BLOCK_TOKENS);
    for sequence in 0..sequences {
        let tokens = (0..rows).map(|row| (row * 7 + sequence) as u32 % 1000);
        fixture::span(&mut plan, sequence, context, tokens, |block| sequence * blocks + block);
    }
    plan
}

/// The median of steps, from plan to tokens.
fn step_seconds(model: &mut dyn Model, plan: &Plan) -> Result<f64, Error> {
    let mut sampled = Vec::new();
    timed(STEPS, || {
        let ticket = model.forward(plan)?;
        sampled.clear();
        model.collect(ticket, &mut sampled)
    })
}

/// The median of some seconds, after as many that are not counted.
pub(super) fn timed(times: usize, mut work: impl FnMut() -> Result<(), Error>) -> Result<f64, Error> {
    let mut seconds = Vec::new();
    for _ in 0..2 * times {
        let start = Instant::now();
        work()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    let counted = &mut seconds[times..];
    counted.sort_by(f64::total_cmp);
    Ok(counted[counted.len() / 2])
}
