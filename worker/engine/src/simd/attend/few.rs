//! Few queries: lanes are numbers of the head, and keys and values are read where they lie.

use super::{Look, Out};
use crate::simd::lanes::Lanes;
use crate::simd::rows::{load, store};
use crate::simd::{Kernel, LANES};

/// The weights of one query.
pub(super) struct Weigh<'a> {
    pub(super) look: Look<'a>,
    pub(super) weights: &'a mut [f32],
}

impl Kernel for Weigh<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        // SAFETY: as `weigh` checked.
        unsafe {
            let total = self.look.weights_of::<V>(0, self.weights);
            for weight in self.weights {
                *weight /= total;
            }
        }
    }
}

/// Each query by itself.
pub(super) struct Few<'a> {
    pub(super) look: Look<'a>,
    pub(super) out: Out,
    pub(super) room: &'a mut [f32],
}

impl Kernel for Few<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        for query in 0..self.look.queries.count {
            let weights = &mut self.room[..self.look.seen_by(query)];
            // SAFETY: as `attend` checked.
            unsafe {
                let out = std::slice::from_raw_parts_mut(self.out.at.add(query * self.out.stride), self.look.width);
                if weights.is_empty() {
                    out.fill(0.0);
                    continue;
                }
                let total = self.look.weights_of::<V>(query, weights);
                let mut at = 0;
                while at + 4 * LANES <= out.len() {
                    self.look.take::<V, 4>(weights, (at, total), out);
                    at += 4 * LANES;
                }
                while at < out.len() {
                    self.look.take::<V, 1>(weights, (at, total), out);
                    at += LANES;
                }
            }
        }
    }
}

impl Look<'_> {
    /// The exponentials of a query's scores over its first keys, less the greatest; returns their sum.
    #[inline(always)]
    unsafe fn weights_of<V: Lanes>(&self, query: usize, weights: &mut [f32]) -> f32 {
        // SAFETY: the query and the keys are there.
        unsafe {
            let scale = 1.0 / (self.width as f32).sqrt();
            let query = std::slice::from_raw_parts(self.queries.row(query), self.width);
            for (key, weight) in weights.iter_mut().enumerate() {
                let key = std::slice::from_raw_parts(self.keys.row(key), self.width);
                let mut sum = V::splat(0.0);
                for at in (0..self.width).step_by(LANES) {
                    sum = V::fma(load::<V>(query, at), load::<V>(key, at), sum);
                }
                *weight = V::sum(sum) * scale;
            }
            let top = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut total = V::splat(0.0);
            for at in (0..weights.len()).step_by(LANES) {
                let mut p = V::exp(V::sub(load::<V>(weights, at), V::splat(top)));
                if weights.len() - at < LANES {
                    p = V::keep_first(p, weights.len() - at, 0.0);
                }
                store::<V>(weights, at, p);
                total = V::add(total, p);
            }
            V::sum(total)
        }
    }

    /// The weighted values, from a number of the head on.
    #[inline(always)]
    unsafe fn take<V: Lanes, const G: usize>(&self, weights: &[f32], (at, total): (usize, f32), out: &mut [f32]) {
        // SAFETY: the values are there; a single group may be narrower, which `load` and `store` see to.
        unsafe {
            let mut sums = [V::splat(0.0); G];
            for (row, weight) in weights.iter().enumerate() {
                let value = std::slice::from_raw_parts(self.values.row(row), self.width);
                for g in 0..G {
                    sums[g] = V::fma(V::splat(*weight), load::<V>(value, at + g * LANES), sums[g]);
                }
            }
            for g in 0..G {
                store::<V>(out, at + g * LANES, V::mul(sums[g], V::splat(1.0 / total)));
            }
        }
    }
}
