//! The processor: packed weights, vector kernels, a pool of threads.
//!
//! Cuts every operation into parts for the threads and leaves the arithmetic to [`simd`](crate::simd). However it is
//! cut, a row's result is the same to the last bit, alone or in any company.

mod blocks;
mod dense;
mod inputs;
mod layer;
mod pack;
mod residual;
mod weight;

use weight::Packed;
pub use weight::Weight;

use crate::Error;
use crate::backend::dense::Activation;
use crate::backend::step::Step;
use crate::backend::{Activations, Backend, Epilogue, Gate, KvShape, Matrix, Normed, Reach, StepLimits, Turn, Weights};
use crate::model::Ticket;
use crate::plan::{BLOCK_TOKENS, BlockId, Plan, Sampled};
use crate::pool::Pool;
use crate::prefix::Kept;
use crate::sampler::Sampler;
use crate::simd::affine::Finish;
use crate::simd::arena::{Arena, Use};
use crate::simd::attend;
use crate::simd::attention::{self, HEAD_WIDTH_MAX, Pages, Queries, page_len};
use crate::simd::brains::Unit;
use crate::simd::linear::Scratch;
use crate::simd::tile::Begin;
use crate::simd::{LANES, Level, rows};
use blocks::Blocks;
use inputs::{Form, ROWS_ALONE, Room, Together};

/// Tokens looked at, over all rows, below which attention is faster on one thread.
const TOKENS_ALONE: usize = 128;

/// The processor as a device.
#[derive(Debug)]
pub struct Cpu {
    level: Level,
    pool: Pool,
    locals: Vec<Local>,
    step: Step,
    blocks: Blocks,
    weights: Weights,
    activations: Activations,
    /// What multiplies many rows, where it is not vector registers.
    unit: Option<Unit>,
    /// What multiplies rows of prompts by integers, where it is not vector registers.
    prompts_by: Option<Unit>,
    kept: Kept,
    /// Rows of sampled tokens in a step that has others.
    apart: Apart,
    /// The inputs of the product that is computed.
    room: Room,
}

/// A thread's own memory.
#[derive(Debug, Default)]
struct Local {
    scratch: Scratch,
    looks: attend::Scratch,
    sampler: Sampler,
    /// Inputs of a layer's rows.
    room: Room,
    between: residual::Between,
}

/// Some rows of a product, side by side.
#[derive(Debug, Default)]
struct Apart {
    x: Vec<f32>,
    out: Vec<f32>,
}

impl Apart {
    /// Makes room for so many rows.
    fn reserve(&mut self, rows: usize, weight: &Weight) {
        self.x.clear();
        self.out.clear();
        self.x.reserve(rows * weight.inputs);
        self.out.reserve(rows * weight.outputs);
    }
}

/// Activations.
#[derive(Debug)]
pub struct Buf {
    numbers: Arena<f32>,
    width: usize,
    rows: usize,
}

impl From<Epilogue> for Begin {
    fn from(epilogue: Epilogue) -> Begin {
        match epilogue {
            Epilogue::Store => Begin::Zero,
            Epilogue::Add => Begin::Output,
        }
    }
}

/// Keys and values: (blocks, layers, heads, page), f16.
#[derive(Debug)]
pub struct Kv {
    numbers: Arena<u16>,
    shape: KvShape,
}

impl Cpu {
    /// A device of `threads` threads, the caller's included.
    #[must_use]
    pub fn new(level: Level, threads: usize, limits: StepLimits) -> Cpu {
        let pool = Pool::new(threads);
        let locals = (0..pool.threads()).map(|_| Local::default()).collect();
        let (step, blocks) = (Step::new(limits), Blocks::default());
        let (weights, activations) = (Weights::Stored, Activations::F32);
        Cpu {
            level,
            pool,
            locals,
            step,
            blocks,
            weights,
            activations,
            unit: None,
            prompts_by: None,
            kept: Kept::All,
            apart: Apart::default(),
            room: Room::default(),
        }
    }

    /// The same device with rows of prompts left to a matrix unit, if there is one, where they meet integers and its
    /// [`Activations`] allow.
    #[must_use]
    pub fn with_prompts_by(self, unit: Option<Unit>) -> Cpu {
        Cpu { prompts_by: unit, ..self }
    }

    /// What a unit reads of a product's rows of prompts, where one multiplies them.
    fn form_of_prompts<'a>(&self, weight: &'a Weight) -> Option<Form<'a>> {
        self.activations.prompts_by(self.prompts_by).and_then(|unit| weight.form_by(unit))
    }

    /// The same device with products of many rows left to a matrix unit, if there is one, of what is packed from now on.
    #[must_use]
    pub fn by(self, unit: Option<Unit>) -> Cpu {
        Cpu { unit, ..self }
    }

    /// A device for an encoder, which has no steps, with weights held as `weights` says; by the level's matrix unit, where
    /// it has one.
    #[must_use]
    pub fn for_encoder(level: Level, threads: usize, weights: Weights) -> Cpu {
        let limits = StepLimits { rows: 1, outputs: 1, blocks: 1 };
        Cpu::new(level, threads, limits).holding(weights).by(level.unit())
    }

    /// The same device with its inputs of products as `activations` says.
    #[must_use]
    pub fn with(self, activations: Activations) -> Cpu {
        Cpu { activations, ..self }
    }

    /// The same device with weights held as `weights` says, of what is packed from now on.
    #[must_use]
    pub fn holding(self, weights: Weights) -> Cpu {
        Cpu { weights, ..self }
    }

    /// A product cut by its outputs, and what follows it.
    fn by_outputs(&mut self, (x, weight): (&Buf, &Weight), then: Finish<'_>, out: &mut Buf) {
        assert!(x.width == weight.inputs && out.width == weight.outputs, "widths of a product agree");
        self.cut_outputs(x.all(), (weight, weight.form(self.activations)), then, out.begin_rows(x.rows));
    }

    /// A product of rows in such a form.
    fn cut_outputs(&mut self, x: &[f32], (weight, form): (&Weight, Form<'_>), then: Finish<'_>, out: &mut [f32]) {
        let (level, rows) = (self.level, x.len() / weight.inputs);
        if rows == 0 {
            return;
        }
        let threads = &mut Together(&mut self.pool, &mut self.locals);
        let inputs = form.write(threads, level, (x, rows), &mut self.room);
        self.pool.strips((out, weight.outputs), weight.strip(inputs), &mut self.locals, |local, range, strip| {
            weight.multiply(level, inputs, (range, then), (strip, &mut local.scratch));
        });
    }

    /// A product of the step's rows: those of prompts as `form` says, those of sampled tokens as ever, in whatever step
    /// either stands. What a token leaves in the cache depends on where it is from, and on nothing beside it.
    fn by_origin(&mut self, (x, weight): (&Buf, &Weight), form: Form<'_>, then: Finish<'_>, out: &mut Buf) {
        assert!(x.width == weight.inputs && out.width == weight.outputs, "widths of a product agree");
        let (as_ever, width, all) = (weight.form(self.activations), out.width, out.begin_rows(x.rows));
        match self.step.sampled().len() {
            0 => return self.cut_outputs(x.all(), (weight, form), then, all),
            sampled if sampled == x.rows => return self.cut_outputs(x.all(), (weight, as_ever), then, all),
            _ => {}
        }
        let mut apart = std::mem::take(&mut self.apart);
        apart.x.clear();
        apart.out.clear();
        for row in self.step.sampled() {
            apart.x.extend_from_slice(x.row(*row));
            apart.out.extend_from_slice(&all[row * width..][..width]);
        }
        self.cut_outputs(&apart.x, (weight, as_ever), then, &mut apart.out);
        self.cut_outputs(x.all(), (weight, form), then, all);
        for (row, out) in self.step.sampled().iter().zip(apart.out.chunks_exact(width)) {
            all[row * width..][..width].copy_from_slice(out);
        }
        self.apart = apart;
    }
}

impl Buf {
    fn begin_rows(&mut self, rows: usize) -> &mut [f32] {
        assert!(rows * self.width <= self.numbers.len(), "a buffer has room for its rows");
        self.rows = rows;
        &mut self.numbers[..rows * self.width]
    }

    fn all(&self) -> &[f32] {
        &self.numbers[..self.rows * self.width]
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.all()[row * self.width..][..self.width]
    }
}

impl Kv {
    fn block_stride(&self) -> usize {
        self.shape.layers * self.shape.heads * page_len(self.shape.width)
    }

    fn offset(&self, layer: usize, head: usize) -> usize {
        assert!(layer < self.shape.layers && head < self.shape.heads, "a head of the cache");
        (layer * self.shape.heads + head) * page_len(self.shape.width)
    }
}

impl Backend for Cpu {
    type Buf = Buf;
    type Weight = Weight;
    type Kv = Kv;

    fn buffer(&self, rows: usize, width: usize) -> Result<Buf, Error> {
        Ok(Buf { numbers: Arena::zeroed(rows.saturating_mul(width), Use::Sparse)?, width, rows: 0 })
    }

    fn upload(&self, numbers: &[f32], width: usize) -> Result<Buf, Error> {
        let mut buffer = self.buffer(numbers.len() / width, width)?;
        buffer.begin_rows(numbers.len() / width).copy_from_slice(numbers);
        Ok(buffer)
    }

    fn pack(&mut self, parts: &[Matrix<'_>]) -> Result<Weight, Error> {
        self.pack_panels(parts)
    }

    fn pack_stored(&mut self, rows: Matrix<'_>) -> Result<Weight, Error> {
        let held = std::mem::take(&mut self.weights);
        let stored = self.pack_vocabulary(rows);
        self.weights = held;
        stored
    }

    /// No row of a prompt meets it.
    fn pack_vocabulary(&mut self, rows: Matrix<'_>) -> Result<Weight, Error> {
        let prompts_by = self.prompts_by.take();
        let packed = self.pack(&[rows]);
        self.prompts_by = prompts_by;
        packed
    }

    fn kv(&self, shape: KvShape) -> Result<Kv, Error> {
        if !shape.width.is_multiple_of(LANES) || shape.width > HEAD_WIDTH_MAX {
            return Err(Error::Unsupported(format!("attention heads of {} numbers", shape.width)));
        }
        let pages = shape.layers.saturating_mul(shape.heads).saturating_mul(shape.blocks);
        let numbers = Arena::zeroed(pages.saturating_mul(page_len(shape.width)), Use::Sparse)?;
        Ok(Kv { numbers, shape })
    }

    fn step_begin(&mut self, plan: &Plan) -> Result<(), Error> {
        self.step.begin(plan)
    }

    fn gather_rows(&mut self, table: &Weight, out: &mut Buf) {
        let (rows, width) = (self.step.rows().len(), out.width);
        let (panels, step) = (table.table(), &self.step);
        self.pool.items((out.begin_rows(rows), width), ROWS_ALONE, &mut self.locals, |_, row, out| {
            panels.read_row(step.rows()[row].token as usize, out);
        });
    }

    fn norm(&mut self, x: &Buf, weight: &Buf, epsilon: f32, out: &mut Buf) {
        let (level, width) = (self.level, x.width);
        self.pool.items((out.begin_rows(x.rows), width), ROWS_ALONE, &mut self.locals, |_, row, out| {
            rows::rms_norm(level, x.row(row), weight.row(0), epsilon, out);
        });
    }

    fn add_norm(&mut self, x: &Buf, weight: &Buf, epsilon: f32, out: &mut Buf) {
        let (level, width) = (self.level, x.width);
        assert!(out.rows == x.rows && out.width == width, "what is added to is there");
        self.pool.items((out.begin_rows(x.rows), width), ROWS_ALONE, &mut self.locals, |_, row, out| {
            rows::add_rms_norm(level, x.row(row), weight.row(0), epsilon, out);
        });
    }

    fn scale(&mut self, factor: f32, x: &mut Buf) {
        let (rows, width) = (x.rows, x.width);
        self.pool.items((x.begin_rows(rows), width), ROWS_ALONE, &mut self.locals, |_, _, row| {
            row.iter_mut().for_each(|x| *x *= factor);
        });
    }

    fn linear(&mut self, x: &Buf, weight: &Weight, epilogue: Epilogue, out: &mut Buf) {
        let then = Finish { begin: Begin::from(epilogue), bias: &[], activation: Activation::None };
        match &weight.packed {
            // A decoder's, more by far than its inputs: each thread reads its own.
            Packed::Panels(_) => match self.form_of_prompts(weight) {
                Some(form) => self.by_origin((x, weight), form, then, out),
                None => self.by_outputs((x, weight), then, out),
            },
            _ => self.product((x, weight), then, out),
        }
    }

    /// By vector registers, wherever the rows are from.
    fn unembed(&mut self, x: Normed<'_, Buf>, weight: &Weight, normed: &mut Buf, out: &mut Buf) {
        let then = Finish { begin: Begin::Zero, bias: &[], activation: Activation::None };
        self.norm(x.x, x.weight, x.epsilon, normed);
        self.by_outputs((normed, weight), then, out);
    }

    fn kept(&self) -> Kept {
        self.kept
    }

    fn glu(&mut self, x: &Buf, gate: Gate, out: &mut Buf) {
        let (level, width) = (self.level, out.width);
        self.pool.items((out.begin_rows(x.rows), width), ROWS_ALONE, &mut self.locals, |_, row, out| match gate {
            Gate::Silu => rows::silu_gate(level, x.row(row), out),
            Gate::Gelu => rows::gelu_gate(level, x.row(row), out),
        });
    }

    fn rope_qk_write(&mut self, qkv: &mut Buf, turn: &Turn<'_, Buf>, kv: &mut Kv, layer: usize) {
        let KvShape { heads, width, .. } = kv.shape;
        let (level, row_width, step) = (self.level, qkv.width, &self.step);
        let keys = row_width - 2 * heads * width;
        let all = &mut qkv.numbers[..qkv.rows * row_width];
        self.pool.items((all, row_width), ROWS_ALONE, &mut self.locals, |_, row, numbers| {
            if let Some(bias) = turn.bias {
                numbers.iter_mut().zip(bias.row(0)).for_each(|(x, bias)| *x += bias);
            }
            let angles = turn.rope.row(step.rows()[row].position as usize);
            for (index, head) in numbers[..keys + heads * width].chunks_exact_mut(width).enumerate() {
                if let Some(norms) = &turn.norms {
                    let weight = if index * width < keys { norms.queries } else { norms.keys };
                    rows::rms_norm_in_place(level, head, weight.row(0), norms.epsilon);
                }
                rows::rotate(head, angles);
            }
        });
        for (row, place) in self.step.rows().iter().enumerate() {
            let block = self.step.table(place)[place.position as usize / BLOCK_TOKENS];
            for head in 0..heads {
                let at = block.0 as usize * kv.block_stride() + kv.offset(layer, head);
                let page = &mut kv.numbers[at..][..page_len(width)];
                let (keys, values) = qkv.row(row)[keys..].split_at(heads * width);
                let (key, value) = (&keys[head * width..][..width], &values[head * width..][..width]);
                attention::write(self.level, key, value, page, place.position as usize % BLOCK_TOKENS);
            }
        }
    }

    fn attention(&mut self, qkv: &Buf, kv: &Kv, (layer, reach): (usize, Reach), out: &mut Buf) {
        let KvShape { heads, width, .. } = kv.shape;
        let (level, step, group) = (self.level, &self.step, out.width / heads);
        let tokens: usize = step.rows().iter().map(|row| row.position as usize + 1).sum();
        let grain = if tokens <= TOKENS_ALONE { usize::MAX } else { 1 };
        let out = (out.begin_rows(qkv.rows), heads * group);
        self.pool.tiles(out, (step.runs(), group, grain), &mut self.locals, |_, (run, head), out| {
            let first = step.runs()[run].start;
            let place = &step.rows()[first];
            let pages = Pages {
                arena: &kv.numbers,
                block_stride: kv.block_stride(),
                offset: kv.offset(layer, head),
                table: step.table(place),
            };
            let queries = Queries {
                numbers: &qkv.all()[first * qkv.width + head * group..],
                stride: qkv.width,
                position: place.position as usize,
                window: reach.window(),
            };
            attention::attend(level, &queries, &pages, width, out);
        });
    }

    fn take_outputs(&mut self, x: &Buf, out: &mut Buf) {
        let width = out.width;
        let rows = out.begin_rows(self.step.outputs().len()).chunks_exact_mut(width);
        for (out, row) in rows.zip(self.step.outputs()) {
            out.copy_from_slice(x.row(*row));
        }
    }

    fn sample(&mut self, logits: &mut Buf, plan: &Plan) -> Ticket {
        let (width, rows) = (logits.width, logits.rows);
        let step = &self.step;
        self.pool.items((logits.begin_rows(rows), width), 1, &mut self.locals, |local, index, logits| {
            let output = &plan.outputs[index];
            let history = &plan.history[output.history.clone()];
            step.choose(index, local.sampler.sample(logits, output, history));
        });
        self.step.end(plan)
    }

    fn collect(&mut self, ticket: Ticket, sampled: &mut Vec<Sampled>) -> Result<(), Error> {
        self.step.collect(ticket, sampled)
    }

    fn copy_blocks(&mut self, kv: &mut Kv, pairs: &[(BlockId, BlockId)]) {
        let stride = kv.block_stride();
        for (from, to) in pairs {
            let from = from.0 as usize * stride;
            kv.numbers.copy_within(from..from + stride, to.0 as usize * stride);
        }
    }

    fn download(&self, buffer: &Buf, numbers: &mut Vec<f32>) {
        numbers.clear();
        numbers.extend_from_slice(buffer.all());
    }
}
