//! Products: few rows read the weights once, many go through tiles, of the vendor's library where it is faster.

use super::integers::{Integers, Width};
use super::kernels::Kernels;
use super::rows::kind;
use super::{Buf, Cuda, Mode, Weight, int, pointer};
use crate::backend::dense::Activation;
use crate::backend::{Epilogue, Gate, Normed};
use crate::cuda::{Address, Argument, Extent, Kernel, Kind, Product};

/// Rows that products read weights for once.
const FEW: usize = 8;
/// Bytes of weights that a thread of such a product has under way, and of rows that it has room for.
const UNDER_WAY: usize = 256;
const HELD: usize = 128;
/// Its threads; more where rows are long and shared memory is large.
const FEW_THREADS: usize = 256;
const MORE_THREADS: usize = 512;
/// Bytes of rows from which on more threads are worth it, and of shared memory that they take.
const LONG: usize = 32 << 10;
const MORE_SHARED: usize = (192 << 10) + 2080;
/// Outputs of a block are a multiple of this.
const OUTPUTS: usize = 8;
/// Rows from which on what follows a product may be a kernel of its own.
const APART: usize = 256;
/// What products of many rows want their inputs to be a multiple of.
const ALIGNED: usize = 8;

/// What follows a product.
pub(super) struct Finish<'a> {
    pub(super) bias: Option<&'a Buf>,
    pub(super) activation: Activation,
    pub(super) epilogue: Epilogue,
}

impl Finish<'_> {
    /// Nothing but that it is stored or added.
    pub(super) fn plain(epilogue: Epilogue) -> Finish<'static> {
        Finish { bias: None, activation: Activation::None, epilogue }
    }

    /// Whether nothing follows; an activation comes with a bias.
    fn is_plain(&self) -> bool {
        self.bias.is_none()
    }

    fn arguments(&self, out: &Buf) -> [Argument; 5] {
        [
            pointer(self.bias.map_or(Address::default(), Buf::address)),
            Argument::Int(self.activation as i32),
            Argument::Int(i32::from(self.epilogue == Epilogue::Add)),
            pointer(out.address()),
            kind(out),
        ]
    }
}

/// Whether a product of so many rows norms them itself.
pub(super) fn takes_norms(rows: usize, weight: &Weight) -> bool {
    (1..=FEW).contains(&rows) && weight.inputs.is_multiple_of(ALIGNED)
}

impl Cuda {
    /// `out = activation(norm(x) * weight^T + bias [+ out])`; only few rows may be normed.
    pub(super) fn product(
        &mut self,
        (x, norm): (&Buf, Option<Normed<'_, Buf>>),
        weight: &Weight,
        finish: &Finish<'_>,
        out: &Buf,
    ) {
        let (rows, aligned) = (x.padded(), weight.inputs.is_multiple_of(ALIGNED));
        if rows == 0 {
            return;
        }
        match (aligned, rows <= FEW) {
            (true, true) => self.few_rows((x, norm), weight, finish, out),
            (true, false) => self.many_rows(x, weight, finish, out),
            (false, _) => self.any_rows(x, weight, finish, out),
        }
    }

    fn few_rows(
        &mut self,
        (x, norm): (&Buf, Option<Normed<'_, Buf>>),
        weight: &Weight,
        finish: &Finish<'_>,
        out: &Buf,
    ) {
        let held = Held::of(weight);
        let kernels = &self.kernels;
        let kernel = held.kernel([kernels.gemv, kernels.gemv_nibbles, kernels.gemv_bytes]);
        let inputs = few_inputs(x, norm.as_ref(), (held.address, weight.outputs, weight.inputs));
        let few = Few::of(self, x, norm.is_some(), weight.inputs);
        let outputs = few.outputs(weight.outputs, few.threads / 2);
        let arguments = [inputs, finish.arguments(out).to_vec(), vec![int(outputs)]].concat();
        self.run(kernel, few.extent(weight.outputs, outputs), &arguments);
    }

    /// `out = gate(g) * up` of few normed rows.
    pub(super) fn gated_product(&mut self, x: Normed<'_, Buf>, (weight, gate): (&Weight, Gate), out: &Buf) {
        let outputs = weight.outputs / 2;
        // Groups of gates and groups of ups have integers of their own.
        let held = if outputs.is_multiple_of(OUTPUTS) { Held::of(weight) } else { Held::plain(weight) };
        let kernels = &self.kernels;
        let kernel = held.kernel([kernels.gemv_glu, kernels.gemv_glu_nibbles, kernels.gemv_glu_bytes]);
        let few = Few::of(self, x.x, true, weight.inputs);
        let of_block = few.outputs(outputs, few.threads / 4);
        let rest = vec![Argument::Int(gate as i32), pointer(out.address()), kind(out), int(of_block)];
        let arguments = [few_inputs(x.x, Some(&x), (held.address, outputs, weight.inputs)), rest].concat();
        self.run(kernel, few.extent(outputs, of_block), &arguments);
    }

    fn many_rows(&mut self, x: &Buf, weight: &Weight, finish: &Finish<'_>, out: &Buf) {
        let Some(a) = self.as_inputs(x) else { return };
        let (m, n, k) = (x.padded(), weight.outputs, weight.inputs);
        let (b, place, kind) = (weight.address(), out.address(), out.kind());
        // What follows fewer rows costs less in our own kernel than in one more.
        let apart = finish.is_plain() || m >= APART;
        if apart && self.vendor(&Product { m, n, k, a, b, out: place, kind, epilogue: finish.epilogue }) {
            return self.finish(finish, out);
        }
        let tiles = Tiles::choose((m, n, k), self.multiprocessors, self.shared_most);
        let Some((parts, counters)) = self.room_for_tiles(&tiles) else { return };
        let inputs = [pointer(a), pointer(weight.address()), int(m), int(n), int(k)];
        let arguments = [inputs.to_vec(), finish.arguments(out).to_vec(), vec![pointer(parts), pointer(counters)]];
        self.run(tiles.form.kernel(&self.kernels), tiles.extent(), &arguments.concat());
    }

    /// What follows a product that is done.
    fn finish(&mut self, finish: &Finish<'_>, out: &Buf) {
        if let Some(bias) = finish.bias {
            self.bias_rows(bias, finish.activation, out);
        }
    }

    fn any_rows(&mut self, x: &Buf, weight: &Weight, finish: &Finish<'_>, out: &Buf) {
        let (m, n, k) = (x.padded(), weight.outputs, weight.inputs);
        let inputs = [pointer(x.address()), kind(x), pointer(weight.address()), int(m), int(n), int(k)];
        let extent = any_extent(m, n);
        self.run(self.kernels.gemm_any, extent, &[inputs.to_vec(), finish.arguments(out).to_vec()].concat());
    }

    /// Whether the vendor's library has computed it, or will when what is recorded is replayed.
    fn vendor(&mut self, product: &Product) -> bool {
        if self.graphs.mode() == Mode::Replay {
            return true;
        }
        let done = self.gpu.product(product);
        // What failed is told at the step's end; to compute it again would hide that.
        self.note(done).unwrap_or(true)
    }

    /// Rows as products of many of them read them.
    fn as_inputs(&mut self, x: &Buf) -> Option<Address> {
        if x.kind() == Kind::Bf16 {
            return Some(x.address());
        }
        let numbers = x.padded() * x.width();
        let room = self.scratch.inputs(&self.gpu, numbers * Kind::Bf16.bytes());
        let room = self.note(room)?;
        self.cast((x.address(), x.kind()), (room, Kind::Bf16), numbers);
        Some(room)
    }

    /// Where parts of sums over inputs are put until they are added, and the counters of those that are done.
    fn room_for_tiles(&mut self, tiles: &Tiles) -> Option<(Address, Address)> {
        if tiles.splits == 1 {
            return Some((Address::default(), Address::default()));
        }
        let room = self.scratch.counted_parts(&self.gpu, tiles.part_bytes(), tiles.count());
        self.note(room)
    }
}

/// A kernel of products of many rows.
struct Form {
    rows: usize,
    outputs: usize,
    threads: u32,
    shared: u32,
    /// Blocks that a multiprocessor has room for.
    resident: usize,
    /// Multiply-adds of a multiprocessor that is full of it, a clock.
    rate: f64,
}

const fn form((rows, outputs): (usize, usize), threads: u32, shared: u32, (resident, rate): (usize, f64)) -> Form {
    Form { rows, outputs, threads, shared, resident, rate }
}

/// See `gemm.cu`; the largest first.
const FORMS: [Form; 9] = [
    form((256, 192), 256, 229_376, (1, 1250.0)),
    form((128, 256), 256, 196_608, (1, 1150.0)),
    form((128, 128), 512, 196_608, (1, 1000.0)),
    form((64, 256), 256, 204_800, (1, 1000.0)),
    form((64, 128), 256, 98_304, (2, 900.0)),
    form((64, 64), 128, 65_536, (3, 800.0)),
    form((32, 128), 256, 102_400, (2, 700.0)),
    form((16, 128), 128, 73_728, (3, 200.0)),
    form((16, 64), 128, 71_680, (3, 450.0)),
];
/// Shared memory of each beside what it is launched with.
const STATIC: u32 = 16;
/// Parts that inputs may be cut into.
const SPLITS: [usize; 9] = [1, 2, 3, 4, 5, 6, 8, 10, 12];
/// Inputs of a stage of a tile, and stages that are worth a part of their own.
const STAGE: usize = 64;
const STAGES_EACH: usize = 4;
/// Numbers of a tile beyond which merging parts costs more than it gains.
const MERGED_MOST: usize = 32_768;
/// The part of its rate that a block reaches which has a multiprocessor to itself.
const ALONE: f64 = 0.5;
/// Bytes that the second cache gives a multiprocessor, that memory gives all, and that a merge moves, a clock.
const CACHE: f64 = 22.0;
const MEMORY: f64 = 2250.0;
const MERGE: f64 = 40.0;
/// Clocks that beginning and ending a block cost, and merging its part.
const BEGIN: f64 = 1500.0;
const MERGING: f64 = 2500.0;

impl Form {
    fn kernel(&self, kernels: &Kernels) -> Kernel {
        match (self.rows, self.outputs) {
            (256, _) => kernels.gemm_256_192,
            (128, 256) => kernels.gemm_128_256,
            (128, _) => kernels.gemm_128_128,
            (64, 256) => kernels.gemm_64_256,
            (64, 128) => kernels.gemm_64_128,
            (64, _) => kernels.gemm_64_64,
            (32, _) => kernels.gemm_32_128,
            (_, 128) => kernels.gemm_16_128,
            _ => kernels.gemm_16_64,
        }
    }

    /// Clocks that a product takes, by reasoning.
    fn clocks(&self, (m, n, k): (usize, usize, usize), splits: usize, multiprocessors: usize) -> f64 {
        let turns = (m.div_ceil(self.rows) * n.div_ceil(self.outputs) * splits).div_ceil(multiprocessors);
        let tile = (self.rows * self.outputs) as f64;
        let rate = if turns == 1 && self.resident > 1 { self.rate * ALONE } else { self.rate };
        let column = (tile / rate).max(((self.rows + self.outputs) * 2) as f64 / CACHE);
        let work = (turns * k) as f64 / splits as f64 * column;
        let begin = BEGIN * turns.div_ceil(self.resident) as f64;
        let merge = if splits > 1 { MERGING + splits as f64 * tile * 4.0 / MERGE } else { 0.0 };
        work.max((n * k * 2) as f64 / MEMORY) + begin + merge
    }
}

/// How a product is cut.
struct Tiles {
    form: &'static Form,
    grid: (usize, usize),
    /// Parts that the inputs are cut into, for products of few tiles.
    splits: usize,
}

impl Tiles {
    /// The cut that takes the fewest clocks; of equal ones the largest tiles.
    fn choose(shape: (usize, usize, usize), multiprocessors: usize, shared_most: u32) -> Tiles {
        let (m, n, k) = shape;
        let grid = |form: &Form| (n.div_ceil(form.outputs), m.div_ceil(form.rows));
        let suits = |form: &&Form| form.shared + STATIC <= shared_most && (form.rows <= 64 || form.rows < 2 * m);
        let may_split = |form: &Form, splits: usize| {
            let fits = grid(form).0 * grid(form).1 * splits <= form.resident * multiprocessors;
            let small = form.rows * form.outputs <= MERGED_MOST;
            splits == 1 || (small && fits && splits * STAGES_EACH <= k.div_ceil(STAGE))
        };
        let cuts = FORMS.iter().filter(suits).flat_map(|form| SPLITS.map(|splits| (form, splits)));
        let clocks = |form: &Form, splits| form.clocks(shape, splits, multiprocessors);
        let best = cuts
            .filter(|(form, splits)| may_split(form, *splits))
            .min_by(|a, b| clocks(a.0, a.1).total_cmp(&clocks(b.0, b.1)));
        let (form, splits) = best.unwrap_or((&FORMS[FORMS.len() - 1], 1));
        Tiles { form, grid: grid(form), splits }
    }

    fn count(&self) -> usize {
        self.grid.0 * self.grid.1
    }

    fn part_bytes(&self) -> usize {
        self.count() * self.splits * self.form.rows * self.form.outputs * Kind::F32.bytes()
    }

    fn extent(&self) -> Extent {
        let grid = (self.grid.0 as u32, self.grid.1 as u32, self.splits as u32);
        Extent { grid, threads: self.form.threads, shared: self.form.shared }
    }
}

/// How a product of few rows is launched: see `linear.cu`.
struct Few {
    threads: usize,
    shared: usize,
    /// Blocks that run at once.
    resident: usize,
}

impl Few {
    fn of(cuda: &Cuda, x: &Buf, normed: bool, inputs: usize) -> Few {
        let rows = x.padded();
        // One or two rows that are not bf16 already are held as two of them each.
        let lines = if rows <= 2 && (normed || x.kind() == Kind::F32) { 2 * rows } else { rows };
        let held = lines * inputs.next_multiple_of(STAGE) * Kind::Bf16.bytes();
        let few = held <= LONG || (cuda.shared_most as usize) < MORE_SHARED;
        let (threads, blocks) = if few { (FEW_THREADS, 2) } else { (MORE_THREADS, 1) };
        let shared = threads * UNDER_WAY + held.min(threads * HELD);
        Few { threads, shared, resident: blocks * cuda.multiprocessors }
    }

    /// Outputs of a block: the fewest with which all blocks run at once, `most` at most.
    fn outputs(&self, outputs: usize, most: usize) -> usize {
        outputs.div_ceil(self.resident).next_multiple_of(OUTPUTS).min(most)
    }

    fn extent(&self, outputs: usize, of_block: usize) -> Extent {
        let grid = (outputs.div_ceil(of_block) as u32, 1, 1);
        Extent { grid, threads: self.threads as u32, shared: self.shared as u32 }
    }
}

fn any_extent(rows: usize, outputs: usize) -> Extent {
    Extent { grid: (outputs.div_ceil(16) as u32, rows.div_ceil(16) as u32, 1), threads: 256, shared: 0 }
}

impl Weight {
    /// What a product of so many rows reads of it, in bytes.
    pub(crate) fn bytes_read(&self, rows: usize) -> usize {
        self.integers.as_ref().filter(|_| rows <= FEW).map_or(self.bytes(), Integers::bytes)
    }
}

/// What few rows read of a weight.
struct Held {
    address: Address,
    width: Option<Width>,
}

impl Held {
    /// The fewest bytes.
    fn of(weight: &Weight) -> Held {
        weight
            .integers
            .as_ref()
            .map_or(Held::plain(weight), |integers| Held { address: integers.address(), width: Some(integers.width) })
    }

    /// Its numbers in bf16.
    fn plain(weight: &Weight) -> Held {
        Held { address: weight.address(), width: None }
    }

    /// Of the kernels for numbers in bf16, for nibbles and for bytes the one.
    fn kernel(&self, [plain, nibbles, bytes]: [Kernel; 3]) -> Kernel {
        match self.width {
            None => plain,
            Some(Width::Nibbles) => nibbles,
            Some(Width::Bytes) => bytes,
        }
    }
}

/// The weights with their outputs and inputs come last.
fn few_inputs(
    x: &Buf,
    norm: Option<&Normed<'_, Buf>>,
    (weights, outputs, inputs): (Address, usize, usize),
) -> Vec<Argument> {
    vec![
        pointer(x.address()),
        kind(x),
        int(x.padded()),
        pointer(norm.map_or(Address::default(), |norm| norm.weight.address())),
        Argument::Float(norm.map_or(0.0, |norm| norm.epsilon)),
        pointer(weights),
        int(outputs),
        int(inputs),
    ]
}
