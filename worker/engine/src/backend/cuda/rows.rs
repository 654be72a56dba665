//! Operations that go through rows number by number.

use super::{Buf, Cuda, Weight, int, line, pointer};
use crate::backend::dense::Activation;
use crate::backend::{Epilogue, Gate, Normed};
use crate::cuda::{Address, Argument, Extent, Kernel};

/// Threads of a block.
const THREADS: u32 = 256;
/// Numbers of bf16 that a thread takes at once.
const EIGHTS: usize = 8;
/// Blocks beyond which a kernel's threads go around again.
const BLOCKS_MAX: usize = 4096;

impl Cuda {
    /// `out[i] = table[ids[i]]`.
    pub(super) fn gather_ids(&mut self, table: &Weight, ids: Address, out: &Buf) {
        let arguments = [
            pointer(table.address()),
            pointer(ids),
            int(out.padded()),
            int(table.inputs),
            Argument::Float(1.0),
            pointer(out.address()),
            kind(out),
        ];
        self.run(self.kernels.gather, line(out.padded(), THREADS), &arguments);
    }

    /// `out[i] = x[ids[i]]`.
    pub(super) fn take_ids(&mut self, x: &Buf, ids: Address, out: &Buf) {
        self.by_ids(self.kernels.take_rows, x, ids, out);
    }

    /// `out[i] += x[ids[i]]`; a null `ids` is every row.
    pub(super) fn add_ids(&mut self, x: &Buf, ids: Address, out: &Buf) {
        self.by_ids(self.kernels.add_rows, x, ids, out);
    }

    fn by_ids(&mut self, kernel: Kernel, x: &Buf, ids: Address, out: &Buf) {
        let arguments = [
            pointer(x.address()),
            kind(x),
            pointer(ids),
            int(out.padded()),
            int(x.width()),
            pointer(out.address()),
            kind(out),
        ];
        self.run(kernel, line(out.padded(), THREADS), &arguments);
    }

    pub(super) fn rms_norm(&mut self, x: Normed<'_, Buf>, epilogue: Epilogue, out: &Buf) {
        let (rows, width) = (x.x.padded(), x.x.width());
        let arguments = [
            pointer(x.x.address()),
            kind(x.x),
            pointer(x.weight.address()),
            Argument::Float(x.epsilon),
            int(rows),
            int(width),
            Argument::Int(i32::from(epilogue == Epilogue::Add)),
            pointer(out.address()),
            kind(out),
        ];
        self.run(self.kernels.rms_norm, norm_extent(rows, width), &arguments);
    }

    pub(super) fn layer_norm_rows(&mut self, x: &Buf, (weight, bias): (&Buf, &Buf), epsilon: f32, out: &Buf) {
        let (rows, width) = (x.padded(), x.width());
        let arguments = [
            pointer(x.address()),
            kind(x),
            pointer(weight.address()),
            pointer(bias.address()),
            Argument::Float(epsilon),
            int(rows),
            int(width),
            pointer(out.address()),
            kind(out),
        ];
        self.run(self.kernels.layer_norm, norm_extent(rows, width), &arguments);
    }

    pub(super) fn scale_all(&mut self, factor: f32, x: &Buf) {
        let count = x.padded() * x.width();
        let arguments = [Argument::Float(factor), int(count), pointer(x.address()), kind(x)];
        self.run(self.kernels.scale, spread(count), &arguments);
    }

    /// `x = activation(x + bias)`.
    pub(super) fn bias_rows(&mut self, bias: &Buf, activation: Activation, x: &Buf) {
        let arguments = [
            pointer(bias.address()),
            Argument::Int(activation as i32),
            int(x.padded()),
            int(x.width()),
            pointer(x.address()),
            kind(x),
        ];
        self.run(self.kernels.bias, eights(x), &arguments);
    }

    pub(super) fn gate_rows(&mut self, x: &Buf, gate: Gate, out: &Buf) {
        let arguments = [
            pointer(x.address()),
            kind(x),
            Argument::Int(gate as i32),
            int(x.padded()),
            int(out.width()),
            pointer(out.address()),
            kind(out),
        ];
        self.run(self.kernels.glu, eights(out), &arguments);
    }
}

/// How a buffer's numbers are held, as kernels are told.
pub(super) fn kind(buffer: &Buf) -> Argument {
    Argument::Int(buffer.kind() as i32)
}

/// Threads for so many numbers, four each.
pub(super) fn spread(numbers: usize) -> Extent {
    line(numbers.div_ceil(THREADS as usize * 4).min(BLOCKS_MAX), THREADS)
}

/// Threads for the numbers of rows that will be written, eight each.
fn eights(out: &Buf) -> Extent {
    line((out.padded() * out.width()).div_ceil(EIGHTS * THREADS as usize), THREADS)
}

/// A warp a row while it holds a row in registers, else a block of exactly so many.
fn norm_extent(rows: usize, width: usize) -> Extent {
    match width {
        ..=1024 => line(rows.div_ceil(THREADS as usize / 32), THREADS),
        _ => line(rows, 512),
    }
}

/// A warp a head.
pub(super) fn rope_extent(rows: usize, heads: usize) -> Extent {
    line((rows * heads).div_ceil(THREADS as usize / 32), THREADS)
}

/// Blocks of columns of each mean.
pub(super) fn mean_extent(count: usize, width: usize) -> Extent {
    Extent { grid: (count as u32, width.div_ceil(128) as u32, 1), threads: THREADS, shared: 0 }
}
