//! Every operation of the GPU against the oracle: the same cases on the host shim, in tests, and on a real GPU, by
//! `device-check`.
//!
//! Inputs and weights are numbers that bf16 holds, so that what is left is what kernels do: sums in another order, and
//! outputs rounded where a buffer holds bf16.

mod encoders;
mod paged;
mod products;

use std::sync::Arc;

use half::bf16;

use super::Cuda;
use crate::Error;
use crate::backend::scalar::Scalar;
use crate::backend::{Backend, StepLimits};
use crate::cuda::Gpu;
use crate::fixture::Noise;

/// Room of the devices that cases run on.
pub const LIMITS: StepLimits = StepLimits { rows: 256, outputs: 64, blocks: 1024 };
/// Error of sums in another order, as a part of the truth's square.
const SUMS: f64 = 1e-11;
/// Error of outputs rounded to bf16.
const ROUNDED: f64 = 6e-6;
/// Error of what passes through bf16 more than once: caches, weights of attention, outputs.
const PAGED: f64 = 2e-5;

/// What makes numbers on a device.
type Runs<B> = Box<dyn Fn(&mut B) -> Vec<f32>>;

/// An operation on some numbers.
pub struct Case {
    /// What it is, for people.
    pub name: String,
    /// Error that is allowed, as a part of the truth's square.
    pub allowed: f64,
    oracle: Runs<Scalar>,
    device: Runs<Cuda>,
}

impl Case {
    /// The error on a GPU, as a part of the truth's square; infinite where numbers are missing or are none.
    pub(crate) fn error(&self, gpu: &Arc<dyn Gpu>) -> Result<f64, Error> {
        // Of its own: what one model recorded is no other's.
        let mut device = Cuda::new(Arc::clone(gpu), LIMITS)?;
        let (truth, got) = ((self.oracle)(&mut Scalar::new(LIMITS)), (self.device)(&mut device));
        device.verdict()?;
        Ok(difference(&truth, &got))
    }
}

/// Mean square of the error over that of the truth.
pub(crate) fn difference(truth: &[f32], got: &[f32]) -> f64 {
    if truth.len() != got.len() || got.iter().any(|number| !number.is_finite()) {
        return f64::INFINITY;
    }
    let square = |x: f32| f64::from(x) * f64::from(x);
    let wrong: f64 = truth.iter().zip(got).map(|(truth, got)| square(truth - got)).sum();
    wrong / truth.iter().map(|truth| square(*truth)).sum::<f64>().max(f64::MIN_POSITIVE)
}

/// All cases; small ones, so that the shim runs them in minutes.
#[must_use]
pub fn cases() -> Vec<Case> {
    [products::cases(), paged::cases(), encoders::cases()].into_iter().flatten().collect()
}

/// A case of an operation whose `run` is written once for both.
macro_rules! case {
    ($name:expr, $allowed:expr, $operation:expr) => {{
        let (name, allowed): (String, f64) = ($name, $allowed);
        let operation = $operation;
        let again = operation.clone();
        $crate::backend::cuda::check::Case {
            name,
            allowed,
            oracle: Box::new(move |backend: &mut $crate::backend::scalar::Scalar| operation.run(backend)),
            device: Box::new(move |backend: &mut $crate::backend::cuda::Cuda| again.run(backend)),
        }
    }};
}
use case;

/// How a buffer of a case holds its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Exact,
    Inputs,
}

impl Held {
    /// The error that this adds to an output's.
    fn allowed(self) -> f64 {
        match self {
            Held::Exact => SUMS,
            Held::Inputs => ROUNDED,
        }
    }
}

fn put<B: crate::backend::dense::Dense>(backend: &mut B, numbers: &[f32], width: usize, held: Held) -> B::Buf {
    match held {
        Held::Exact => backend.upload(numbers, width).expect("memory"),
        Held::Inputs => {
            let mut buffer = backend.inputs(numbers.len() / width, width).expect("memory");
            backend.write(&[numbers], &mut buffer);
            buffer
        }
    }
}

fn empty<B: Backend>(backend: &B, rows: usize, width: usize, held: Held) -> B::Buf {
    match held {
        Held::Exact => backend.buffer(rows, width).expect("memory"),
        Held::Inputs => backend.inputs(rows, width).expect("memory"),
    }
}

fn read<B: Backend>(backend: &B, buffer: &B::Buf) -> Vec<f32> {
    let mut numbers = Vec::new();
    backend.download(buffer, &mut numbers);
    numbers
}

/// Numbers that bf16 holds.
fn halves(noise: &mut Noise, len: usize) -> Vec<f32> {
    noise.numbers(len).into_iter().map(|number| bf16::from_f32(number).to_f32()).collect()
}

/// The same as bytes of a matrix in single precision.
fn matrix(numbers: &[f32]) -> Vec<u8> {
    crate::tensors::little_endian(numbers)
}
