//! Kernels over single rows of encoders: biases with their activations, layer norms, sums of rows.

use std::ops::Range;

use super::brains::{SIDE, SQUARE};
use super::lanes::Lanes;
use super::rows::{load, store};
use super::tile::{Begin, Bounds};
use super::{Kernel, LANES, Level};
use crate::backend::dense::Activation;
use crate::pool::Strip;

/// `x = activation(x + bias)`, row by row.
///
/// # Panics
/// When lengths differ.
pub fn bias(level: Level, bias: &[f32], activation: Activation, x: &mut Strip<'_>) {
    assert_eq!(bias.len(), x.columns(), "a row and its biases are equally long");
    biased(level, bias, activation, x);
}

/// `x = activation(x)`, row by row.
pub fn activate(level: Level, activation: Activation, x: &mut Strip<'_>) {
    if activation != Activation::None {
        biased(level, &[], activation, x);
    }
}

fn biased(level: Level, bias: &[f32], activation: Activation, x: &mut Strip<'_>) {
    // SAFETY: there are as many biases as columns, or none.
    unsafe {
        match activation {
            Activation::None => level.run(Bias::<{ Activation::None as usize }> { bias, x }),
            Activation::Gelu => level.run(Bias::<{ Activation::Gelu as usize }> { bias, x }),
            Activation::QuickGelu => level.run(Bias::<{ Activation::QuickGelu as usize }> { bias, x }),
            Activation::Relu6 => level.run(Bias::<{ Activation::Relu6 as usize }> { bias, x }),
        }
    }
}

/// Every activation, each at its own number: kernels are compiled for a number, since they cannot be for an enum.
const ACTIVATIONS: [Activation; 4] = [Activation::None, Activation::Gelu, Activation::QuickGelu, Activation::Relu6];

const _: () = {
    let mut number = 0;
    while number < ACTIVATIONS.len() {
        assert!(ACTIVATIONS[number] as usize == number, "an activation stands at its own number");
        number += 1;
    }
};

struct Bias<'a, 'b, const ACTIVATION: usize> {
    bias: &'a [f32],
    x: &'a mut Strip<'b>,
}

impl<const ACTIVATION: usize> Kernel for Bias<'_, '_, ACTIVATION> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        for row in 0..self.x.rows() {
            let x = self.x.row(row);
            for at in (0..x.len()).step_by(LANES) {
                // SAFETY: every access is inside the row, or the biases, which are as long.
                unsafe {
                    let sum = load::<V>(x, at);
                    let sum = if self.bias.is_empty() { sum } else { V::add(sum, load::<V>(self.bias, at)) };
                    store::<V>(x, at, activated::<V>(sum, ACTIVATIONS[ACTIVATION]));
                }
            }
        }
    }
}

/// What follows a square of sums.
#[derive(Clone, Copy)]
pub struct Finish<'a> {
    /// What the sums begin at.
    pub begin: Begin,
    /// What is added to each row; empty for nothing.
    pub bias: &'a [f32],
    /// What the result passes through.
    pub activation: Activation,
}

impl Finish<'_> {
    /// The same for some of the columns.
    #[must_use]
    pub fn part(self, columns: Range<usize>) -> Self {
        Finish { bias: if self.bias.is_empty() { self.bias } else { &self.bias[columns] }, ..self }
    }
}

/// What is left to follow sums that were written within their bounds, with their biases.
pub(super) fn follow(level: Level, then: Finish<'_>, x: &mut Strip<'_>) {
    activate(level, Bounds::of(then.activation).1, x);
}

/// Writes sums, rows of 32 of which `out` is the first columns, and what follows them.
///
/// # Panics
/// When there are fewer sums or biases than outputs.
pub(super) fn finish(level: Level, sums: &[f32; SQUARE], then: Finish<'_>, out: &mut Strip<'_>) {
    assert!(out.rows() <= SIDE && out.columns() <= SIDE, "outputs of a square");
    assert!(then.bias.is_empty() || then.bias.len() == out.columns(), "a bias for each column");
    // SAFETY: lengths as asserted.
    unsafe {
        match then.activation {
            Activation::None => level.run(Finished::<{ Activation::None as usize }> { sums, then, out }),
            Activation::Gelu => level.run(Finished::<{ Activation::Gelu as usize }> { sums, then, out }),
            Activation::QuickGelu => level.run(Finished::<{ Activation::QuickGelu as usize }> { sums, then, out }),
            Activation::Relu6 => level.run(Finished::<{ Activation::Relu6 as usize }> { sums, then, out }),
        }
    }
}

struct Finished<'a, 'b, 'c, const ACTIVATION: usize> {
    sums: &'a [f32; SQUARE],
    then: Finish<'a>,
    out: &'b mut Strip<'c>,
}

impl<const ACTIVATION: usize> Kernel for Finished<'_, '_, '_, ACTIVATION> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Finished { sums, then, out } = self;
        for at in (0..out.columns()).step_by(LANES) {
            // SAFETY: every access is inside the rows of the square, of the bias and of the output.
            unsafe {
                let bias = if then.bias.is_empty() { V::splat(0.0) } else { load::<V>(then.bias, at) };
                for (row, sums) in sums.chunks_exact(SIDE).take(out.rows()).enumerate() {
                    let out = out.row(row);
                    let sum = V::load(sums.as_ptr().add(at));
                    let sum = if then.begin == Begin::Output { V::add(load::<V>(out, at), sum) } else { sum };
                    store::<V>(out, at, activated::<V>(V::add(sum, bias), ACTIVATIONS[ACTIVATION]));
                }
            }
        }
    }
}

/// # Safety
/// The level is there.
#[inline(always)]
unsafe fn activated<V: Lanes>(x: V::F, activation: Activation) -> V::F {
    // SAFETY: the caller's level.
    unsafe {
        match activation {
            Activation::None => x,
            Activation::Gelu => gelu::<V>(x),
            Activation::QuickGelu => V::div(x, V::add(V::splat(1.0), V::exp(V::mul(x, V::splat(-1.702))))),
            Activation::Relu6 => V::min(V::splat(6.0), V::max(V::splat(0.0), x)),
        }
    }
}

/// Where `x Φ(-x)` is below half a unit in the last place of one.
const TAIL_END: f32 = 5.5;
/// `-Φ(-x)` for `x` of 0 to [`TAIL_END`], as powers of `2x / TAIL_END - 1`, least first: the polynomial whose greatest
/// error, times `x`, is least (3.3e-8; 1.7e-7 as computed here), by Lawson's method of weighted least squares.
const TAIL: [f32; 17] = [
    -2.979_769_1e-3,
    2.500_749_2e-2,
    -9.455_805e-2,
    2.068_359e-1,
    -2.719_026_8e-1,
    1.767_834_9e-1,
    5.165_712e-2,
    -2.161_794_5e-1,
    1.612_882_9e-1,
    2.822_223_7e-2,
    -1.275_409_5e-1,
    5.956_74e-2,
    3.424_078_6e-2,
    -3.837_737_8e-2,
    2.169_649_8e-3,
    8.141_601e-3,
    -2.375_729e-3,
];

/// `x Φ(x)`, as `max(x, 0) - |x| Φ(-|x|)`, which asks for no sign.
#[inline(always)]
unsafe fn gelu<V: Lanes>(x: V::F) -> V::F {
    // SAFETY: the caller's level. Of what is no number, `min` and `max` take the second.
    unsafe {
        let size = V::min(V::splat(TAIL_END), V::abs(x));
        let u = V::fma(size, V::splat(2.0 / TAIL_END), V::splat(-1.0));
        let mut p = V::splat(TAIL[TAIL.len() - 1]);
        for c in TAIL[..TAIL.len() - 1].iter().rev() {
            p = V::fma(p, u, V::splat(*c));
        }
        V::fma(size, p, V::max(V::splat(0.0), x))
    }
}

/// `out = (x - mean) / deviation * weight + bias`. Sixteen partial sums, then a tree: the same order at every level.
///
/// # Panics
/// When lengths differ.
pub fn layer_norm(level: Level, x: &[f32], (weight, bias): (&[f32], &[f32]), epsilon: f32, out: &mut [f32]) {
    let len = x.len();
    assert!(weight.len() == len && bias.len() == len && out.len() == len, "a row, its affine and its norm");
    // SAFETY: equal lengths.
    unsafe { level.run(LayerNorm { x, weight, bias, epsilon, out }) };
}

struct LayerNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
}

impl Kernel for LayerNorm<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let width = self.x.len();
        // SAFETY: every access is inside the equally long slices.
        unsafe {
            let mut sum = V::splat(0.0);
            for at in (0..width).step_by(LANES) {
                sum = V::add(sum, load::<V>(self.x, at));
            }
            let mean = V::splat(V::sum(sum) / width as f32);
            let mut squares = V::splat(0.0);
            for at in (0..width).step_by(LANES) {
                let mut x = V::sub(load::<V>(self.x, at), mean);
                if width - at < LANES {
                    x = V::keep_first(x, width - at, 0.0);
                }
                squares = V::fma(x, x, squares);
            }
            let scale = V::splat(1.0 / (V::sum(squares) / width as f32 + self.epsilon).sqrt());
            for at in (0..width).step_by(LANES) {
                let x = V::mul(V::sub(load::<V>(self.x, at), mean), scale);
                store::<V>(self.out, at, V::fma(x, load::<V>(self.weight, at), load::<V>(self.bias, at)));
            }
        }
    }
}

/// `out += x`.
///
/// # Panics
/// When lengths differ.
pub fn add(level: Level, x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len(), "equally long rows");
    // SAFETY: equal lengths.
    unsafe { level.run(Add { x, out }) };
}

struct Add<'a> {
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Add<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        for at in (0..self.out.len()).step_by(LANES) {
            // SAFETY: every access is inside the equally long slices.
            unsafe { store::<V>(self.out, at, V::add(load::<V>(self.out, at), load::<V>(self.x, at))) };
        }
    }
}

/// The mean of the rows of `x`, one after the other; zeros if there is none.
///
/// # Panics
/// When `x` is not whole rows as wide as `out`.
pub fn mean(level: Level, x: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    assert!(x.len().is_multiple_of(out.len()), "whole rows");
    for row in x.chunks_exact(out.len()) {
        add(level, row, out);
    }
    let count = (x.len() / out.len()).max(1) as f32;
    for out in out {
        *out /= count;
    }
}
