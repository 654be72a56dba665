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
    unsafe { level.run(RmsNorm::<STORE> { x: x.as_ptr(), weight, epsilon, out: out.as_mut_ptr() }) };
}

/// As [`rms_norm`], in place.
///
/// # Panics
/// When lengths differ.
pub fn rms_norm_in_place(level: Level, x: &mut [f32], weight: &[f32], epsilon: f32) {
    assert_eq!(x.len(), weight.len(), "a row and its weights are equally long");
    let out = x.as_mut_ptr();
    // SAFETY: equal lengths; every number is read before it is written.
    unsafe { level.run(RmsNorm::<STORE> { x: out.cast_const(), weight, epsilon, out }) };
}

/// `out += x / rms(x) * weight`, summed as [`rms_norm`] does.
///
/// # Panics
/// When lengths differ.
pub fn add_rms_norm(level: Level, x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len(), "a row, its weights and its norm are equally long");
    // SAFETY: equal lengths.
    unsafe { level.run(RmsNorm::<ADD> { x: x.as_ptr(), weight, epsilon, out: out.as_mut_ptr() }) };
}

const STORE: u8 = 0;
const ADD: u8 = 1;

/// `x` and `out` are as long as `weight`, and may be the same.
struct RmsNorm<'a, const THEN: u8> {
    x: *const f32,
    weight: &'a [f32],
    epsilon: f32,
    out: *mut f32,
}

impl<const THEN: u8> Kernel for RmsNorm<'_, THEN> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let (width, out) = (self.weight.len(), self.out);
        // SAFETY: every access is of `count` numbers inside the equally long slices.
        unsafe {
            let mut squares = V::splat(0.0);
            for at in (0..width).step_by(LANES) {
                let x = load_at::<V>(self.x, at, width);
                squares = V::fma(x, x, squares);
            }
            let mean = V::sum(squares) / width as f32;
            let scale = V::splat(1.0 / (mean + self.epsilon).sqrt());
            for at in (0..width).step_by(LANES) {
                let x = V::mul(load_at::<V>(self.x, at, width), scale);
                let normed = V::mul(x, load::<V>(self.weight, at));
                match THEN {
                    ADD => store_at::<V>(out, at, width, V::add(load_at::<V>(out, at, width), normed)),
                    _ => store_at::<V>(out, at, width, normed),
                }
            }
        }
    }
}

/// `out = gelu(gate) * up` of a row that holds the gates, then the ups; the approximation with the hyperbolic tangent,
/// `0.5 * (1 + tanh(u))` being `1 / (1 + exp(-2u))`.
///
/// # Panics
/// When `out` is not half as long as the row.
pub fn gelu_gate(level: Level, row: &[f32], out: &mut [f32]) {
    assert_eq!(row.len(), 2 * out.len(), "gates and ups");
    let (gate, up) = row.split_at(out.len());
    // SAFETY: equal lengths.
    unsafe { level.run(GeluGate { gate, up, out }) };
}

struct GeluGate<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for GeluGate<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        /// Twice the root of 2 / pi.
        const OUTER: f32 = 1.595_769_2;
        const CUBE: f32 = 0.044_715;
        for at in (0..self.out.len()).step_by(LANES) {
            // SAFETY: every access is inside the equally long slices.
            unsafe {
                let gate = load::<V>(self.gate, at);
                let inner = V::fma(V::mul(gate, gate), V::mul(gate, V::splat(CUBE)), gate);
                let decay = V::exp(V::mul(inner, V::splat(-OUTER)));
                let gelu = V::div(gate, V::add(V::splat(1.0), decay));
                store::<V>(self.out, at, V::mul(gelu, load::<V>(self.up, at)));
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
pub(super) unsafe fn load<V: Lanes>(from: &[f32], at: usize) -> V::F {
    // SAFETY: `at` is inside.
    unsafe { load_at::<V>(from.as_ptr(), at, from.len()) }
}

#[inline(always)]
pub(super) unsafe fn store<V: Lanes>(to: &mut [f32], at: usize, x: V::F) {
    // SAFETY: `at` is inside.
    unsafe { store_at::<V>(to.as_mut_ptr(), at, to.len(), x) }
}

/// From place `at` of `len`: as many numbers as are left, at most 16.
#[inline(always)]
unsafe fn load_at<V: Lanes>(from: *const f32, at: usize, len: usize) -> V::F {
    // SAFETY: the caller's pointer is valid for `len` numbers, and `at` is inside.
    unsafe {
        match len - at {
            left if left < LANES => V::load_first(from.add(at), left),
            _ => V::load(from.add(at)),
        }
    }
}

/// To place `at` of `len`: as many numbers as are left, at most 16.
#[inline(always)]
unsafe fn store_at<V: Lanes>(to: *mut f32, at: usize, len: usize, x: V::F) {
    // SAFETY: the caller's pointer is valid for `len` numbers, and `at` is inside.
    unsafe {
        match len - at {
            left if left < LANES => V::store_first(to.add(at), x, left),
            _ => V::store(to.add(at), x),
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
