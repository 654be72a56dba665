//! What the CUDA backend asks of a GPU, and the two that answer: the driver's, through `cudarc`, and a shim that runs the
//! same kernels on the host.
//!
//! Everything is queued on one stream and happens in order. Addresses are the device's; who allocated one frees it, which
//! [`Memory`] sees to. The unsafe parts are here and end here: callers pass values.

mod blas;
mod card;
mod code;
mod driver;
#[cfg(test)]
pub(crate) mod shim;
pub(crate) mod sources;

use std::sync::Arc;

use crate::Error;
pub use card::Card;
pub use code::embedded;
pub use driver::{Settings, count};

/// Arguments that a kernel may have.
pub(crate) const ARGUMENTS_MAX: usize = 32;

/// A place in the device's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Address(pub(crate) u64);

impl Address {
    /// `bytes` further on.
    pub(crate) fn plus(self, bytes: usize) -> Address {
        Address(self.0 + bytes as u64)
    }
}

/// A kernel of a [`Gpu`], found by its name at load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kernel(pub(crate) u32);

/// A recorded sequence of launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Graph(pub(crate) u32);

/// An argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Argument {
    /// `int`
    Int(i32),
    /// `float`
    Float(f32),
    /// A pointer; [`Address::default`] is null.
    Pointer(Address),
}

/// How many run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Blocks in x, y and z; none of them zero.
    pub(crate) grid: (u32, u32, u32),
    /// Threads of a block, a multiple of 32 within the kernel's bound.
    pub(crate) threads: u32,
    /// Bytes of dynamic shared memory.
    pub(crate) shared: u32,
}

/// How a buffer holds its numbers: `Kind` of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// Single precision.
    F32 = 0,
    /// The upper half of single precision.
    Bf16 = 1,
}

impl Kind {
    /// Bytes of a number.
    pub(crate) const fn bytes(self) -> usize {
        match self {
            Kind::F32 => 4,
            Kind::Bf16 => 2,
        }
    }
}

/// `out = a * b^T`, or is added to: all row-major, `a` and `b` of bf16, sums of single precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Product {
    /// Rows of `a` and of the output.
    pub(crate) m: usize,
    /// Rows of `b`, columns of the output.
    pub(crate) n: usize,
    /// Columns of both inputs.
    pub(crate) k: usize,
    /// (m, k)
    pub(crate) a: Address,
    /// (n, k)
    pub(crate) b: Address,
    /// (m, n)
    pub(crate) out: Address,
    /// How `out` holds its numbers.
    pub(crate) kind: Kind,
    /// Whether `out` is added to.
    pub(crate) epilogue: crate::backend::Epilogue,
}

/// What is there to compute with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Properties {
    /// As the maker calls it.
    pub(crate) name: String,
    /// Compute capability.
    pub(crate) capability: (u32, u32),
    /// Blocks run on so many at once.
    pub(crate) multiprocessors: usize,
    /// Bytes of memory that nobody has.
    pub(crate) free: usize,
    /// Bytes of memory.
    pub(crate) total: usize,
}

/// A GPU, its kernels loaded.
pub(crate) trait Gpu: Send + Sync {
    /// What it is, now.
    fn properties(&self) -> Result<Properties, Error>;
    /// The kernel of this name.
    fn kernel(&self, name: &str) -> Result<Kernel, Error>;
    /// Memory, 256-byte aligned, of no particular contents.
    fn allocate(&self, bytes: usize) -> Result<Address, Error>;
    /// Gives memory back; no launch that is queued may use it.
    fn release(&self, address: Address);
    /// Queues a copy to the device; `bytes` are the caller's again on return.
    fn upload(&self, bytes: &[u8], to: Address) -> Result<(), Error>;
    /// Copies to the host once all that is queued is done.
    fn download(&self, from: Address, bytes: &mut [u8]) -> Result<(), Error>;
    /// Queues a copy between places that do not overlap.
    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), Error>;
    /// Queues zeros.
    fn clear(&self, at: Address, bytes: usize) -> Result<(), Error>;
    /// Queues a kernel.
    fn launch(&self, kernel: Kernel, extent: Extent, arguments: &[Argument]) -> Result<(), Error>;
    /// Queues a product of the vendor's library; `false` where there is none, or none for this shape.
    fn product(&self, product: &Product) -> Result<bool, Error>;
    /// From here on launches and products are recorded instead of queued.
    fn record(&self) -> Result<(), Error>;
    /// Ends the recording.
    fn recorded(&self) -> Result<Graph, Error>;
    /// Queues what was recorded, from the same places in memory.
    fn replay(&self, graph: Graph) -> Result<(), Error>;
    /// Waits until all that is queued is done.
    fn wait(&self) -> Result<(), Error>;
}

/// Memory of a GPU, given back when dropped.
pub(crate) struct Memory {
    gpu: Arc<dyn Gpu>,
    address: Address,
    bytes: usize,
}

impl Memory {
    /// Room for `bytes`, of no particular contents.
    pub(crate) fn new(gpu: &Arc<dyn Gpu>, bytes: usize) -> Result<Memory, Error> {
        Ok(Memory { gpu: Arc::clone(gpu), address: gpu.allocate(bytes)?, bytes })
    }

    /// Where it begins.
    pub(crate) fn address(&self) -> Address {
        self.address
    }

    /// How much it is.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.gpu.release(self.address);
    }
}
