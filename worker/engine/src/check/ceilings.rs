//! What a card copies and multiplies at best.

use std::sync::Arc;
use std::time::Instant;

use crate::Error;
use crate::backend::cuda::Cuda;
use crate::backend::{Backend, Epilogue};
use crate::cuda::{Gpu, Kind, Memory, Product};
use crate::quant::Format;

/// Bytes that are copied: far more than a cache holds.
const COPIED: usize = 2 << 30;
/// Rows and columns of the matrices that are multiplied.
const SIDE: usize = 8192;
/// Times that something is done.
const REPEATS: usize = 10;

/// What other measures are parts of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ceilings {
    /// Bytes read and written a second.
    pub(super) copy: f64,
    /// Operations a second, two a multiply-add; none where there is no library of the vendor's.
    pub(super) products: Option<f64>,
}

/// Measures them.
pub(super) fn measure(gpu: &Arc<dyn Gpu>, noise: &mut Cuda) -> Result<Ceilings, Error> {
    Ok(Ceilings { copy: copy(gpu)?, products: products(gpu, noise)? })
}

fn copy(gpu: &Arc<dyn Gpu>) -> Result<f64, Error> {
    let (from, to) = (Memory::new(gpu, COPIED)?, Memory::new(gpu, COPIED)?);
    let seconds = seconds(gpu, || gpu.copy(from.address(), to.address(), COPIED))?;
    Ok(2.0 * COPIED as f64 / seconds)
}

/// Of the vendor's library, on noise: zeros would be faster than any weights are.
fn products(gpu: &Arc<dyn Gpu>, noise: &mut Cuda) -> Result<Option<f64>, Error> {
    let [a, b] = [noise.noise(SIDE, SIDE, Format::BF16)?, noise.noise(SIDE, SIDE, Format::BF16)?];
    let out = Memory::new(gpu, SIDE * SIDE * Kind::Bf16.bytes())?;
    let product = Product {
        m: SIDE,
        n: SIDE,
        k: SIDE,
        a: a.address(),
        b: b.address(),
        out: out.address(),
        kind: Kind::Bf16,
        epilogue: Epilogue::Store,
    };
    if !gpu.product(&product)? {
        return Ok(None);
    }
    let seconds = seconds(gpu, || gpu.product(&product).map(|_| ()))?;
    Ok(Some(2.0 * (SIDE as f64).powi(3) / seconds))
}

/// Seconds that `work` takes, queued again and again.
pub(super) fn seconds(gpu: &Arc<dyn Gpu>, mut work: impl FnMut() -> Result<(), Error>) -> Result<f64, Error> {
    work()?;
    gpu.wait()?;
    let start = Instant::now();
    for _ in 0..REPEATS {
        work()?;
    }
    gpu.wait()?;
    Ok(start.elapsed().as_secs_f64() / REPEATS as f64)
}
