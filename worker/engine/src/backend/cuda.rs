//! A GPU: bf16 weights and inputs, single-precision sums, one stream, graphs for steps of single tokens.
//!
//! The stream of residuals stays in single precision; what only products and attention read is bf16. Operations queue
//! kernels and return; what goes wrong is told at the step's end. Logits agree with the oracle within a tolerance, and
//! a row's may differ in the last bits with the number of rows beside it; of quantised weights by what bf16 rounds of
//! them, since up to eight rows read the integers that they were made of.

mod attention;
mod buffer;
pub mod check;
mod dense;
mod graphs;
mod indices;
mod integers;
mod kernels;
mod products;
mod rows;
mod sampling;
mod scratch;
mod step;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::Error;
use crate::backend::{Backend, Epilogue, Gate, KvShape, Matrix, Normed, Reach, StepLimits, Turn};
use crate::cuda::{Address, Argument, Extent, Gpu, Kernel, Kind, Properties};
use crate::model::Ticket;
use crate::plan::{BlockId, Plan, Sampled};
use crate::quant::Format;
use crate::tensors::little_endian;
pub use buffer::{Buf, Kv, Weight};
use graphs::{Graphs, Mode};
use indices::Indices;
use integers::Integers;
pub(crate) use integers::integers_bytes;
use kernels::Kernels;
use sampling::Choice;
use scratch::Scratch;
use step::Step;

/// A GPU as a device for models.
pub struct Cuda {
    gpu: Arc<dyn Gpu>,
    kernels: Kernels,
    multiprocessors: usize,
    /// Bytes of shared memory that a block may have.
    shared_most: u32,
    step: Step,
    choice: Choice,
    graphs: Graphs,
    indices: Indices,
    scratch: Scratch,
    /// The first thing that went wrong since it was last told.
    fault: Option<Error>,
}

impl Cuda {
    /// A device for steps within these limits.
    ///
    /// # Errors
    /// When the GPU lacks a kernel or has no memory.
    pub(crate) fn new(gpu: Arc<dyn Gpu>, limits: StepLimits) -> Result<Cuda, Error> {
        let Properties { multiprocessors, capability, .. } = gpu.properties()?;
        Ok(Cuda {
            kernels: Kernels::find(gpu.as_ref())?,
            multiprocessors,
            shared_most: shared_most(capability),
            step: Step::new(&gpu, limits)?,
            choice: Choice::new(&gpu, limits)?,
            graphs: Graphs::default(),
            indices: Indices::default(),
            scratch: Scratch::default(),
            fault: None,
            gpu,
        })
    }

    /// Rows of noise, to measure with.
    pub(crate) fn filled(&mut self, rows: usize, width: usize) -> Result<Buf, Error> {
        let mut buffer = self.inputs(rows, width)?;
        let weight = self.noise(rows, width, Format::BF16)?;
        buffer.set_rows(rows);
        self.gpu.copy(weight.address(), buffer.address(), rows * width * Kind::Bf16.bytes())?;
        self.gpu.wait()?;
        Ok(buffer)
    }

    /// Copies rows, to measure with.
    pub(crate) fn take_all(&mut self, x: &Buf, out: &mut Buf) {
        out.set(x.rows(), x.padded());
        self.cast((x.address(), x.kind()), (out.address(), out.kind()), x.rows() * x.width());
    }

    /// Queues a kernel, unless a recording of it will be replayed.
    fn run(&mut self, kernel: Kernel, extent: Extent, arguments: &[Argument]) {
        if self.graphs.mode() == Mode::Replay || extent.grid.0 == 0 || extent.grid.1 == 0 || extent.grid.2 == 0 {
            return;
        }
        let launched = self.gpu.launch(kernel, extent, arguments);
        self.note(launched);
    }

    /// Keeps the first thing that goes wrong.
    fn note<T>(&mut self, result: Result<T, Error>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.fault.get_or_insert(error);
                None
            }
        }
    }

    /// What went wrong, once.
    fn verdict(&mut self) -> Result<(), Error> {
        self.fault.take().map_or(Ok(()), Err)
    }

    fn held(&self, rows: usize, width: usize, kind: Kind) -> Result<Buf, Error> {
        Buf::new(&self.gpu, rows, width, kind)
    }
}

/// Bytes of shared memory that a block may have: CUDA C++ Programming Guide, table of compute capabilities.
fn shared_most(capability: (u32, u32)) -> u32 {
    const KIB: u32 = 1 << 10;
    match capability {
        (8, 0 | 7) => 163 * KIB,
        (9 | 10, _) => 227 * KIB,
        _ => 99 * KIB,
    }
}

impl Backend for Cuda {
    type Buf = Buf;
    type Weight = Weight;
    type Kv = Kv;

    fn buffer(&self, rows: usize, width: usize) -> Result<Buf, Error> {
        self.held(rows, width, Kind::F32)
    }

    fn inputs(&self, rows: usize, width: usize) -> Result<Buf, Error> {
        self.held(rows, width, Kind::Bf16)
    }

    fn upload(&self, numbers: &[f32], width: usize) -> Result<Buf, Error> {
        let rows = numbers.len().checked_div(width).unwrap_or(0);
        let mut buffer = self.held(rows, width, Kind::F32)?;
        self.gpu.upload(&little_endian(numbers), buffer.address())?;
        buffer.set_rows(rows);
        Ok(buffer)
    }

    fn pack(&mut self, parts: &[Matrix<'_>]) -> Result<Weight, Error> {
        Ok(Weight::pack(&self.gpu, parts)?.with_integers(Integers::pack(&self.gpu, parts)?))
    }

    fn pack_stored(&mut self, rows: Matrix<'_>) -> Result<Weight, Error> {
        Weight::pack(&self.gpu, &[rows])
    }

    fn noise(&mut self, outputs: usize, inputs: usize, format: Format) -> Result<Weight, Error> {
        let integers = Integers::noise(&self.gpu, format, (outputs, inputs))?;
        let weight = Weight::empty(&self.gpu, outputs, inputs)?.with_integers(integers);
        let numbers = outputs * inputs;
        // So that rows keep their size from layer to layer.
        let spread = (3.0 / inputs as f32).sqrt();
        let arguments = [pointer(weight.address()), int(numbers), int(outputs), Argument::Float(spread)];
        self.gpu.launch(self.kernels.noise, rows::spread(numbers), &arguments)?;
        // Products read weights before they wait for what is queued ahead of them.
        self.gpu.wait()?;
        Ok(weight)
    }

    fn kv(&self, shape: KvShape) -> Result<Kv, Error> {
        Kv::new(&self.gpu, shape)
    }

    fn step_begin(&mut self, plan: &Plan) -> Result<(), Error> {
        self.verdict()?;
        self.step.begin(&self.gpu, plan)?;
        self.graphs.begin(&self.gpu, self.step.bucket())
    }

    fn step_end(&mut self) -> Result<(), Error> {
        let verdict = self.verdict();
        self.graphs.end(&self.gpu, verdict)
    }

    fn gather_rows(&mut self, table: &Weight, out: &mut Buf) {
        let (rows, padded) = self.step.rows();
        out.set(rows, padded);
        self.gather_ids(table, self.step.tokens(), out);
    }

    fn norm(&mut self, x: &Buf, weight: &Buf, epsilon: f32, out: &mut Buf) {
        out.set(x.rows(), x.padded());
        self.rms_norm(Normed { x, weight, epsilon }, Epilogue::Store, out);
    }

    fn add_norm(&mut self, x: &Buf, weight: &Buf, epsilon: f32, out: &mut Buf) {
        self.rms_norm(Normed { x, weight, epsilon }, Epilogue::Add, out);
    }

    fn scale(&mut self, factor: f32, x: &mut Buf) {
        self.scale_all(factor, x);
    }

    fn linear(&mut self, x: &Buf, weight: &Weight, epilogue: Epilogue, out: &mut Buf) {
        if epilogue == Epilogue::Store {
            out.set(x.rows(), x.padded());
        }
        self.product((x, None), weight, &products::Finish::plain(epilogue), out);
    }

    fn glu(&mut self, x: &Buf, gate: Gate, out: &mut Buf) {
        out.set(x.rows(), x.padded());
        self.gate_rows(x, gate, out);
    }

    fn norm_linear(&mut self, x: Normed<'_, Buf>, weight: &Weight, normed: &mut Buf, out: &mut Buf) {
        if products::takes_norms(x.x.padded(), weight) {
            out.set(x.x.rows(), x.x.padded());
            let rows = x.x;
            self.product((rows, Some(x)), weight, &products::Finish::plain(Epilogue::Store), out);
        } else {
            self.norm(x.x, x.weight, x.epsilon, normed);
            self.linear(normed, weight, Epilogue::Store, out);
        }
    }

    fn norm_glu(
        &mut self,
        x: Normed<'_, Buf>,
        (weight, gate): (&Weight, Gate),
        (normed, gates): (&mut Buf, &mut Buf),
        out: &mut Buf,
    ) {
        if products::takes_norms(x.x.padded(), weight) {
            out.set(x.x.rows(), x.x.padded());
            self.gated_product(x, (weight, gate), out);
        } else {
            self.norm_linear(x, weight, normed, gates);
            self.glu(gates, gate, out);
        }
    }

    fn rope_qk_write(&mut self, qkv: &mut Buf, turn: &Turn<'_, Buf>, kv: &mut Kv, layer: usize) {
        self.turn_and_write(qkv, turn, (kv, layer));
    }

    fn attention(&mut self, qkv: &Buf, kv: &Kv, (layer, reach): (usize, Reach), out: &mut Buf) {
        out.set(qkv.rows(), qkv.padded());
        self.look_at_single_rows(qkv, (kv, layer, reach), out);
        self.look_at_prompts(qkv, (kv, layer, reach), out);
    }

    fn turn_and_attend(
        &mut self,
        qkv: &mut Buf,
        turn: &Turn<'_, Buf>,
        (kv, layer, reach): (&mut Kv, usize, Reach),
        out: &mut Buf,
    ) {
        if self.step.has_prompts() {
            self.rope_qk_write(qkv, turn, kv, layer);
            self.attention(qkv, kv, (layer, reach), out);
        } else {
            out.set(qkv.rows(), qkv.padded());
            self.turn_and_look((qkv, out), turn, (kv, layer, reach));
        }
    }

    fn take_outputs(&mut self, x: &Buf, out: &mut Buf) {
        let (outputs, padded) = self.step.outputs();
        out.set(outputs, padded);
        self.take_ids(x, self.step.output_rows(), out);
    }

    fn sample(&mut self, logits: &mut Buf, plan: &Plan) -> Ticket {
        let chosen = self.choice.choose(&self.gpu, &self.kernels, (logits, plan));
        self.note(chosen);
        self.step.end(plan)
    }

    fn collect(&mut self, ticket: Ticket, sampled: &mut Vec<Sampled>) -> Result<(), Error> {
        self.verdict()?;
        let outputs = self.step.outputs().0;
        let tokens = self.choice.tokens(&self.gpu, outputs)?;
        self.step.collect(ticket, tokens, sampled)
    }

    fn copy_blocks(&mut self, kv: &mut Kv, pairs: &[(BlockId, BlockId)]) {
        for (from, to) in pairs {
            let copied = self.gpu.copy(kv.block(*from), kv.block(*to), kv.block_bytes());
            self.note(copied);
        }
    }

    fn download(&self, buffer: &Buf, numbers: &mut Vec<f32>) {
        numbers.clear();
        match buffer.read(self.gpu.as_ref(), numbers) {
            Ok(()) => {}
            // The step's own verdict has told of whatever failed before; rows of a device that is gone are no numbers.
            Err(error) => {
                tracing::error!(%error, "rows of the device cannot be read");
                numbers.resize(buffer.rows() * buffer.width(), f32::NAN);
            }
        }
    }
}

/// Words as the device holds them.
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A count as kernels take it.
fn int(count: usize) -> Argument {
    Argument::Int(i32::try_from(count).expect("checked when buffers were made"))
}

fn pointer(address: Address) -> Argument {
    Argument::Pointer(address)
}

/// Blocks in x only.
fn line(blocks: usize, threads: u32) -> Extent {
    Extent { grid: (blocks as u32, 1, 1), threads, shared: 0 }
}
