//! The truth, slowly: every operation as its definition says, summed in double precision.
//!
//! Tests compare other backends with this one. It shares no arithmetic with them but the formats' own definition.

mod dense;

use half::f16;

use crate::Error;
use crate::backend::step::Step;
use crate::backend::{Backend, Epilogue, Gate, KvShape, Matrix, Reach, StepLimits, Turn};
use crate::model::Ticket;
use crate::plan::{BLOCK_TOKENS, BlockId, Plan, Sampled};
use crate::quant::dequantise_row;
use crate::sampler::Sampler;

/// One thread, no tricks.
#[derive(Debug)]
pub struct Scalar {
    step: Step,
    sampler: Sampler,
}

/// Rows of numbers; also a matrix, its outputs as rows.
#[derive(Debug)]
pub struct Rows {
    numbers: Vec<f32>,
    width: usize,
}

/// (blocks, tokens of a block, layers, keys then values, heads, width).
#[derive(Debug)]
pub struct Kv {
    numbers: Vec<f16>,
    shape: KvShape,
}

/// Keys or values.
#[derive(Clone, Copy, Debug)]
enum Half {
    Keys,
    Values,
}

impl Scalar {
    /// An oracle for steps within these limits.
    #[must_use]
    pub fn new(limits: StepLimits) -> Scalar {
        Scalar { step: Step::new(limits), sampler: Sampler::default() }
    }
}

impl Rows {
    fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.numbers.chunks_exact(self.width)
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.numbers[row * self.width..][..self.width]
    }

    fn put(&mut self, numbers: impl IntoIterator<Item = f32>) {
        self.numbers.clear();
        self.numbers.extend(numbers);
    }
}

impl Kv {
    fn at(&self, block: BlockId, slot: usize, (layer, half, head): (usize, Half, usize)) -> std::ops::Range<usize> {
        let KvShape { layers, heads, width, .. } = self.shape;
        let token = block.0 as usize * BLOCK_TOKENS + slot;
        let first = ((token * layers + layer) * 2 + half as usize) * heads + head;
        first * width..(first + 1) * width
    }

    fn put(&mut self, at: std::ops::Range<usize>, numbers: &[f32]) {
        for (half, number) in self.numbers[at].iter_mut().zip(numbers) {
            *half = f16::from_f32(*number);
        }
    }
}

fn dot<'a>(a: &[f32], b: impl IntoIterator<Item = &'a f32>) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn norm_head(x: &mut [f32], weight: &[f32], epsilon: f32) {
    let scale = 1.0 / (dot(x, &*x) / x.len() as f64 + f64::from(epsilon)).sqrt();
    x.iter_mut().zip(weight).for_each(|(x, w)| *x = (f64::from(*x) * scale * f64::from(*w)) as f32);
}

impl Backend for Scalar {
    type Buf = Rows;
    type Weight = Rows;
    type Kv = Kv;

    fn buffer(&self, rows: usize, width: usize) -> Result<Rows, Error> {
        Ok(Rows { numbers: Vec::with_capacity(rows * width), width })
    }

    fn upload(&self, numbers: &[f32], width: usize) -> Result<Rows, Error> {
        Ok(Rows { numbers: numbers.to_vec(), width })
    }

    fn pack(&mut self, parts: &[Matrix<'_>]) -> Result<Rows, Error> {
        let width = parts.first().map_or(0, |part| part.columns);
        let mut numbers = Vec::new();
        for part in parts {
            let (len, bytes) = (part.format.block_len(), part.format.block_bytes());
            if part.columns != width || width == 0 || !width.is_multiple_of(len) {
                return Err(Error::Unsupported("matrices that cannot be packed side by side".into()));
            }
            for row in part.data.chunks_exact(width / len * bytes) {
                let first = numbers.len();
                numbers.resize(first + width, 0.0);
                dequantise_row(part.format, row, &mut numbers[first..]);
            }
        }
        Ok(Rows { numbers, width })
    }

    fn kv(&self, shape: KvShape) -> Result<Kv, Error> {
        let len = shape.blocks * BLOCK_TOKENS * shape.layers * 2 * shape.heads * shape.width;
        Ok(Kv { numbers: vec![f16::ZERO; len], shape })
    }

    fn step_begin(&mut self, plan: &Plan) -> Result<(), Error> {
        self.step.begin(plan)
    }

    fn gather_rows(&mut self, table: &Rows, out: &mut Rows) {
        out.put(self.step.rows().iter().flat_map(|row| table.row(row.token as usize)).copied());
    }

    fn norm(&mut self, x: &Rows, weight: &Rows, epsilon: f32, out: &mut Rows) {
        out.put(x.rows().flat_map(|row| {
            let mean = dot(row, row) / row.len() as f64;
            let scale = 1.0 / (mean + f64::from(epsilon)).sqrt();
            row.iter().zip(weight.row(0)).map(move |(x, w)| (f64::from(*x) * scale * f64::from(*w)) as f32)
        }));
    }

    fn add_norm(&mut self, x: &Rows, weight: &Rows, epsilon: f32, out: &mut Rows) {
        for (x, out) in x.rows().zip(out.numbers.chunks_exact_mut(x.width)) {
            let mut normed = x.to_vec();
            norm_head(&mut normed, weight.row(0), epsilon);
            out.iter_mut().zip(normed).for_each(|(out, normed)| *out += normed);
        }
    }

    fn scale(&mut self, factor: f32, x: &mut Rows) {
        x.numbers.iter_mut().for_each(|x| *x *= factor);
    }

    fn linear(&mut self, x: &Rows, weight: &Rows, epilogue: Epilogue, out: &mut Rows) {
        let before = match epilogue {
            Epilogue::Add => std::mem::take(&mut out.numbers),
            Epilogue::Store => Vec::new(),
        };
        let products = x.rows().flat_map(|x| weight.rows().map(move |w| dot(x, w)));
        let before = before.into_iter().map(f64::from).chain(std::iter::repeat(0.0));
        out.put(products.zip(before).map(|(product, before)| (before + product) as f32));
    }

    fn glu(&mut self, x: &Rows, function: Gate, out: &mut Rows) {
        out.put(x.rows().flat_map(|row| {
            let (gate, up) = row.split_at(row.len() / 2);
            gate.iter().zip(up).map(|(gate, up)| {
                let gate = f64::from(*gate);
                let gate = match function {
                    Gate::Silu => gate / (1.0 + (-gate).exp()),
                    Gate::Gelu => {
                        let inner = (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044_715 * gate.powi(3));
                        0.5 * gate * (1.0 + inner.tanh())
                    }
                };
                (gate * f64::from(*up)) as f32
            })
        }));
    }

    fn rope_qk_write(&mut self, qkv: &mut Rows, turn: &Turn<'_, Rows>, kv: &mut Kv, layer: usize) {
        let KvShape { heads, width, .. } = kv.shape;
        let row_width = qkv.width;
        let queries = row_width / width - 2 * heads;
        for (place, numbers) in self.step.rows().iter().zip(qkv.numbers.chunks_exact_mut(row_width)) {
            let position = place.position as usize;
            let (block, slot) = (self.step.table(place)[position / BLOCK_TOKENS], position % BLOCK_TOKENS);
            if let Some(bias) = turn.bias {
                numbers.iter_mut().zip(bias.row(0)).for_each(|(x, bias)| *x += bias);
            }
            for (head, numbers) in numbers.chunks_exact_mut(width).enumerate() {
                if head < queries + heads {
                    if let Some(norms) = &turn.norms {
                        let weight = if head < queries { norms.queries } else { norms.keys };
                        norm_head(numbers, weight.row(0), norms.epsilon);
                    }
                    for (pair, angle) in numbers.chunks_exact_mut(2).zip(turn.rope.row(position).chunks_exact(2)) {
                        let [a, b] = [f64::from(pair[0]), f64::from(pair[1])];
                        let [cos, sin] = [f64::from(angle[0]), f64::from(angle[1])];
                        pair[0] = (a * cos - b * sin) as f32;
                        pair[1] = (a * sin + b * cos) as f32;
                    }
                }
                let place = match head.checked_sub(queries) {
                    None => continue,
                    Some(head) if head < heads => (layer, Half::Keys, head),
                    Some(head) => (layer, Half::Values, head - heads),
                };
                kv.put(kv.at(block, slot, place), numbers);
            }
        }
    }

    fn attention(&mut self, qkv: &Rows, kv: &Kv, (layer, reach): (usize, Reach), out: &mut Rows) {
        let KvShape { heads, width, .. } = kv.shape;
        let group = out.width / width / heads;
        let cached = |table: &[BlockId], token: usize, half: Half, head: usize| -> Vec<f32> {
            let at = kv.at(table[token / BLOCK_TOKENS], token % BLOCK_TOKENS, (layer, half, head));
            kv.numbers[at].iter().map(|number| number.to_f32()).collect()
        };
        let mut numbers = Vec::new();
        for (place, row) in self.step.rows().iter().zip(qkv.rows()) {
            let table = self.step.table(place);
            for (head, q) in row.chunks_exact(width).take(group * heads).enumerate() {
                let tokens = reach.first(place.position as usize)..=place.position as usize;
                let score = |token| dot(q, &cached(table, token, Half::Keys, head / group)) / (width as f64).sqrt();
                let scores: Vec<f64> = tokens.clone().map(score).collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
                let total: f64 = weights.iter().sum();
                let mut sums = vec![0.0; width];
                for (token, weight) in tokens.zip(&weights) {
                    for (sum, value) in sums.iter_mut().zip(cached(table, token, Half::Values, head / group)) {
                        *sum += weight / total * f64::from(value);
                    }
                }
                numbers.extend(sums.into_iter().map(|sum| sum as f32));
            }
        }
        out.put(numbers);
    }

    fn take_outputs(&mut self, x: &Rows, out: &mut Rows) {
        out.put(self.step.outputs().iter().flat_map(|row| x.row(*row)).copied());
    }

    fn sample(&mut self, logits: &mut Rows, plan: &Plan) -> Ticket {
        let width = logits.width;
        for ((index, output), logits) in plan.outputs.iter().enumerate().zip(logits.numbers.chunks_exact_mut(width)) {
            let token = self.sampler.sample(logits, output, &plan.history[output.history.clone()]);
            self.step.choose(index, token);
        }
        self.step.end(plan)
    }

    fn collect(&mut self, ticket: Ticket, sampled: &mut Vec<Sampled>) -> Result<(), Error> {
        self.step.collect(ticket, sampled)
    }

    fn copy_blocks(&mut self, kv: &mut Kv, pairs: &[(BlockId, BlockId)]) {
        let KvShape { layers, heads, width, .. } = kv.shape;
        let stride = BLOCK_TOKENS * layers * 2 * heads * width;
        for (from, to) in pairs {
            let from = from.0 as usize * stride;
            kv.numbers.copy_within(from..from + stride, to.0 as usize * stride);
        }
    }

    fn download(&self, buffer: &Rows, numbers: &mut Vec<f32>) {
        numbers.clear();
        numbers.extend_from_slice(&buffer.numbers);
    }
}
