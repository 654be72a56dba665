//! What decoders ask of the cache: rotations, attention over pages, outputs and their tokens, copies of blocks.

use std::num::NonZeroU32;

use super::{Case, Held, LIMITS, PAGED, case, empty, halves, matrix, put, read};
use crate::backend::dense::Dense;
use crate::backend::{HeadNorms, KvShape, Matrix, Reach, Turn};
use crate::fixture::{self, Noise};
use crate::plan::{BlockId, Plan};
use crate::quant::Format;
use crate::sampler::Sampling;

/// Key-value heads, query heads of each, their width.
const SHAPES: [(usize, usize, usize); 9] =
    [(1, 1, 16), (2, 2, 32), (3, 3, 64), (1, 4, 64), (2, 5, 16), (1, 8, 48), (2, 9, 24), (1, 4, 128), (1, 2, 256)];
/// Tokens before and rows, of each span of each step: prompts, single rows, and both at once.
const STEPS: [&[(usize, usize)]; 4] = [
    &[(0, 5), (0, 17), (0, 1)],
    &[(5, 1), (17, 70), (1, 31)],
    &[(6, 1), (87, 1), (32, 1)],
    &[(7, 1), (88, 1), (33, 16)],
];
/// Blocks of a span.
const SPAN_BLOCKS: usize = 8;
/// Tokens of the vocabulary.
const TOKENS: u32 = 50;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in SHAPES {
        for (reach, dressed) in
            [(Reach::All, false), (Reach::Last(16), false), (Reach::All, true), (Reach::Last(5), true)]
        {
            for held in [Held::Exact, Held::Inputs] {
                let attention = Attention { shape, reach, dressed, held };
                cases.push(case!(format!("paged attention {attention:?}"), PAGED, attention));
            }
        }
    }
    for width in [64, 100] {
        let gathering = Gathering { width };
        cases.push(case!(format!("rows of tables {gathering:?}"), super::SUMS, gathering));
    }
    for tokens in [1, 50, 3000, 49152] {
        let sampling = Tokens { tokens };
        cases.push(case!(format!("tokens {sampling:?}"), 0.0, sampling));
    }
    cases.push(case!("copied blocks".to_owned(), PAGED, Copies));
    cases
}

/// A plan of spans, each with blocks of its own in a scattered order.
fn plan(spans: &[(usize, usize)]) -> Plan {
    let mut plan = Plan::default();
    for (index, &(computed, rows)) in spans.iter().enumerate() {
        let tokens = (0..rows as u32).map(|row| (row * 31 + index as u32 * 7) % TOKENS);
        fixture::span(&mut plan, index, computed, tokens, |block| index * SPAN_BLOCKS + block * 3 % SPAN_BLOCKS);
    }
    plan
}

/// Rope, cache and attention of two layers over steps of spans.
#[derive(Clone, Debug)]
struct Attention {
    shape: (usize, usize, usize),
    reach: Reach,
    /// With biases and norms.
    dressed: bool,
    held: Held,
}

impl Attention {
    fn run<B: Dense>(&self, backend: &mut B) -> Vec<f32> {
        let (heads, group, width) = self.shape;
        let mut kv = backend.kv(KvShape { layers: 2, blocks: 3 * SPAN_BLOCKS, heads, width }).expect("memory");
        let row_width = (group + 2) * heads * width;
        let mut noise = Noise(17);
        // Part of a head is rotated where there is enough of it.
        let rotated = if width > 32 { width - 16 } else { width };
        let angles = |at: usize| [(at as f32 * 0.1).cos(), (at as f32 * 0.1).sin()];
        let angles: Vec<f32> = (0..SPAN_BLOCKS * 16 * rotated / 2).flat_map(angles).collect();
        let rope = put(backend, &angles, rotated, Held::Exact);
        let bias = put(backend, &noise.numbers(row_width), row_width, Held::Exact);
        let norms = [(); 2].map(|()| noise.numbers(width));
        let [queries, keys] = norms.map(|numbers| put(backend, &numbers, width, Held::Exact));
        let norms = HeadNorms { queries: &queries, keys: &keys, epsilon: 1e-6 };
        let turn = match self.dressed {
            true => Turn { bias: Some(&bias), norms: Some(norms), rope: &rope },
            false => Turn { bias: None, norms: None, rope: &rope },
        };
        let mut out = empty(backend, LIMITS.rows, group * heads * width, self.held);
        let mut all = Vec::new();
        for spans in STEPS {
            let rows: usize = spans.iter().map(|(_, rows)| rows).sum();
            let mut layers =
                [(); 2].map(|()| roomy(backend, &halves(&mut noise, rows * row_width), row_width, self.held));
            backend.step_begin(&plan(spans)).expect("the plan fits");
            for (layer, qkv) in layers.iter_mut().enumerate() {
                backend.turn_and_attend(qkv, &turn, (&mut kv, layer, self.reach), &mut out);
            }
            backend.step_end().expect("the step runs");
            all.extend(read(backend, &out));
        }
        all
    }
}

/// Rows with room for those that fill a bucket.
fn roomy<B: Dense>(backend: &mut B, numbers: &[f32], width: usize, held: Held) -> B::Buf {
    let mut buffer = empty(backend, LIMITS.rows, width, held);
    backend.write(&[numbers], &mut buffer);
    buffer
}

/// Rows of a table, and those of the outputs.
#[derive(Clone, Debug)]
struct Gathering {
    width: usize,
}

impl Gathering {
    fn run<B: Dense>(&self, backend: &mut B) -> Vec<f32> {
        let data = matrix(&halves(&mut Noise(4), TOKENS as usize * self.width));
        let table = backend.pack(&[Matrix { format: Format::F32, columns: self.width, data: &data }]).expect("a table");
        let mut x = empty(backend, LIMITS.rows, self.width, Held::Exact);
        let mut last = empty(backend, LIMITS.outputs, self.width, Held::Exact);
        backend.step_begin(&plan(&[(0, 7), (3, 1), (20, 12)])).expect("the plan fits");
        backend.gather_rows(&table, &mut x);
        backend.take_outputs(&x, &mut last);
        backend.step_end().expect("the step runs");
        [read(backend, &x), read(backend, &last)].concat()
    }
}

/// Tokens chosen in every way from the same logits.
#[derive(Clone, Debug)]
struct Tokens {
    tokens: usize,
}

impl Tokens {
    fn run<B: Dense>(&self, backend: &mut B) -> Vec<f32> {
        let mut plan = plan(&[(0, 1); 24]);
        let mut noise = Noise(8);
        let mut logits: Vec<f32> =
            noise.numbers(24 * self.tokens).iter().map(|x| (x * 12.0 * 8.0).round() / 8.0).collect();
        for (index, output) in plan.outputs.iter_mut().enumerate() {
            output.sampling = sampling(index);
            if output.sampling.looks_back() {
                let first = plan.history.len();
                plan.history.extend((0..9).map(|at| (at * at * 7 % self.tokens) as u32));
                output.history = first..plan.history.len();
            }
            if index % 5 == 4 {
                let words = (0..self.tokens.div_ceil(32)).map(|word| 0x5555_5555_u32.rotate_left(word as u32) | 1);
                output.mask = Some(words.collect::<Vec<_>>().into());
            }
        }
        // What hostile weights may come to.
        if let [first, second, ..] = &mut logits[..] {
            (*first, *second) = (f32::NAN, f32::INFINITY);
        }
        let mut buffer = put(backend, &logits, self.tokens, Held::Exact);
        backend.step_begin(&plan).expect("the plan fits");
        backend.step_end().expect("the step runs");
        let ticket = backend.sample(&mut buffer, &plan);
        let mut sampled = Vec::new();
        backend.collect(ticket, &mut sampled).expect("the ticket is the last");
        sampled.iter().map(|sampled| sampled.token as f32).collect()
    }
}

fn sampling(index: usize) -> Sampling {
    let greedy = Sampling::greedy();
    let warm = Sampling { temperature: 0.8, seed: index as u64 * 77, ..greedy };
    match index % 8 {
        0 => greedy,
        1 => warm,
        2 => Sampling { top_k: NonZeroU32::new(1 + index as u32 * 3), ..warm },
        3 => Sampling { top_p: 0.7, ..warm },
        4 => Sampling { min_p: 0.1, ..warm },
        5 => Sampling { repetition_penalty: 1.3, ..greedy },
        6 => Sampling { repetition_penalty: 1.3, top_p: 0.9, top_k: NonZeroU32::new(40), min_p: 0.01, ..warm },
        _ => Sampling { temperature: 1.7, top_p: 0.95, ..warm },
    }
}

/// Copied blocks answer like their originals.
#[derive(Clone, Debug)]
struct Copies;

impl Copies {
    fn run<B: Dense>(&self, backend: &mut B) -> Vec<f32> {
        let mut kv = backend.kv(KvShape { layers: 1, blocks: 8, heads: 1, width: 16 }).expect("memory");
        let rope = put(backend, &[1.0, 0.0].repeat(8 * 32), 16, Held::Exact);
        let mut plan = plan(&[(0, 20)]);
        backend.step_begin(&plan).expect("the plan fits");
        let mut qkv = put(backend, &halves(&mut Noise(5), 20 * 48), 48, Held::Inputs);
        backend.rope_qk_write(&mut qkv, &Turn { bias: None, norms: None, rope: &rope }, &mut kv, 0);
        let mut out = empty(backend, 20, 16, Held::Exact);
        backend.attention(&qkv, &kv, (0, Reach::All), &mut out);
        let before = read(backend, &out);
        backend.copy_blocks(&mut kv, &[(plan.blocks[0], BlockId(6)), (plan.blocks[1], BlockId(7))]);
        plan.blocks = vec![BlockId(6), BlockId(7)];
        backend.step_begin(&plan).expect("the plan fits");
        backend.attention(&qkv, &kv, (0, Reach::All), &mut out);
        [before, read(backend, &out)].concat()
    }
}
