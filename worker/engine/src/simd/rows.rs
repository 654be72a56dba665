//! Kernels over single rows: norms and gates.

use super::lanes::Lanes;
use super::{Kernel, LANES, Level};

/// `out = x / rms(x) * weight`. Sixteen partial sums of squares, then a tree: the same order at every level.
///
/// # Panics
/// When lengths differ.
pub fn rms_norm(level: Level, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len(), "a row, its weights and its norm are equally long");
    // SAFETY: equal lengths.
    unsafe { level.run(RmsNorm { x, weight, epsilon, out }) };
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let width = self.x.len();
        // SAFETY: every access is of `count` numbers inside the equally long slices.
        unsafe {
            let mut squares = V::splat(0.0);
            for at in (0..width).step_by(LANES) {
                let x = load::<V>(self.x, at);
                squares = V::fma(x, x, squares);
            }
            let mean = V::sum(squares) / width as f32;
            let scale = V::splat(1.0 / (mean + self.epsilon).sqrt());
            for at in (0..width).step_by(LANES) {
                let x = V::mul(load::<V>(self.x, at), scale);
                store::<V>(self.out, at, V::mul(x, load::<V>(self.weight, at)));
            }
        }
    }
}

/// `out = silu(gate) * up` of a row that holds the gates, then the ups.
///
/// # Panics
/// When `out` is not half as long as the row.
pub fn silu_gate(level: Level, row: &[f32], out: &mut [f32]) {
    assert_eq!(row.len(), 2 * out.len(), "gates and ups");
    let (gate, up) = row.split_at(out.len());
    // SAFETY: equal lengths.
    unsafe { level.run(SiluGate { gate, up, out }) };
}

struct SiluGate<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for SiluGate<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        for at in (0..self.out.len()).step_by(LANES) {
            // SAFETY: every access is inside the equally long slices.
            unsafe {
                let gate = load::<V>(self.gate, at);
                let decay = V::exp(V::sub(V::splat(0.0), gate));
                let silu = V::div(gate, V::add(V::splat(1.0), decay));
                store::<V>(self.out, at, V::mul(silu, load::<V>(self.up, at)));
            }
        }
    }
}

#[inline(always)]
unsafe fn load<V: Lanes>(from: &[f32], at: usize) -> V::F {
    // SAFETY: `at` is inside; as many numbers as are left, at most 16, are read.
    unsafe {
        match from.len() - at {
            left if left < LANES => V::load_first(from.as_ptr().add(at), left),
            _ => V::load(from.as_ptr().add(at)),
        }
    }
}

#[inline(always)]
unsafe fn store<V: Lanes>(to: &mut [f32], at: usize, x: V::F) {
    // SAFETY: `at` is inside; as many numbers as are left, at most 16, are written.
    unsafe {
        match to.len() - at {
            left if left < LANES => V::store_first(to.as_mut_ptr().add(at), x, left),
            _ => V::store(to.as_mut_ptr().add(at), x),
        }
    }
}

/// Turns adjacent pairs of a head by angles (cosine, sine); what `angles` does not reach stays.
pub fn rotate(head: &mut [f32], angles: &[f32]) {
    for (pair, angle) in head.chunks_exact_mut(2).zip(angles.chunks_exact(2)) {
        let (a, b) = (pair[0], pair[1]);
        pair[0] = a * angle[0] - b * angle[1];
        pair[1] = a * angle[1] + b * angle[0];
    }
}
