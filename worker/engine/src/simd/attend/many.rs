//! Many queries: lanes are queries, so that scores, their softmax and the sums of values never cross lanes.

use super::{Look, Out, QUERIES};
use crate::simd::lanes::Lanes;
use crate::simd::{Kernel, LANES};

/// Keys of a softmax step: their scores and values stay in the first-level cache.
const KEYS: usize = 64;

/// Numbers of scratch for heads of this width.
pub(super) const fn room(width: usize) -> usize {
    2 * width * QUERIES + KEYS * (QUERIES + width)
}

/// `P` groups of queries together.
pub(super) struct Many<'a, const P: usize> {
    pub(super) look: Look<'a>,
    pub(super) out: Out,
    pub(super) room: &'a mut [f32],
}

/// Scratch, cut up. Rows are `P * LANES` queries.
struct Room {
    /// (width, queries), scaled.
    queries: *mut f32,
    /// (width, queries), not yet divided by their totals.
    out: *mut f32,
    /// (KEYS, queries): scores, then weights.
    weights: *mut f32,
    /// (KEYS, width).
    values: *mut f32,
}

/// Some keys of a look.
#[derive(Clone, Copy)]
struct Block {
    first: usize,
    count: usize,
}

impl<const P: usize> Kernel for Many<'_, P> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(mut self) {
        let (width, keys) = (self.look.width, self.look.seen_by(self.look.queries.count - 1));
        // SAFETY: `attend` made room for all parts.
        unsafe {
            let room = self.cut();
            self.turn_queries(&room);
            for at in 0..width * P {
                V::store(room.out.add(at * LANES), V::splat(0.0));
            }
            let mut top = [V::splat(f32::NEG_INFINITY); P];
            let mut total = [V::splat(0.0); P];
            for first in (0..keys).step_by(KEYS) {
                let block = Block { first, count: KEYS.min(keys - first) };
                if V::ACCUMULATORS >= 24 {
                    self.scores::<V, 8, P>(&room, block);
                } else {
                    self.scores::<V, 6, 1>(&room, block);
                }
                let shrink = self.soften::<V>(&room, block, (&mut top, &mut total));
                for key in 0..block.count {
                    let from = self.look.values.row(first + key);
                    std::ptr::copy_nonoverlapping(from, room.values.add(key * width), width);
                }
                if V::ACCUMULATORS >= 24 {
                    self.take::<V, 8, P>(&room, block, &shrink);
                } else {
                    self.take::<V, 4, 1>(&room, block, &shrink);
                }
            }
            self.finish::<V>(&room, total);
        }
    }
}

impl<const P: usize> Many<'_, P> {
    const ROW: usize = P * LANES;

    fn cut(&mut self) -> Room {
        let (queries, rest) = self.room.split_at_mut(self.look.width * QUERIES);
        let (out, rest) = rest.split_at_mut(self.look.width * QUERIES);
        let (weights, values) = rest.split_at_mut(KEYS * QUERIES);
        Room {
            queries: queries.as_mut_ptr(),
            out: out.as_mut_ptr(),
            weights: weights.as_mut_ptr(),
            values: values.as_mut_ptr(),
        }
    }

    /// Queries become columns; absent ones are zeros.
    #[inline(always)]
    unsafe fn turn_queries(&self, room: &Room) {
        let scale = 1.0 / (self.look.width as f32).sqrt();
        for query in 0..Self::ROW {
            let there = query < self.look.queries.count;
            for i in 0..self.look.width {
                // SAFETY: the query is there; the room holds (width, ROW).
                unsafe {
                    let number = if there { *self.look.queries.row(query).add(i) * scale } else { 0.0 };
                    *room.queries.add(i * Self::ROW + query) = number;
                }
            }
        }
    }

    /// Scores of a block of keys, in tiles of `T` keys by `G` groups of queries.
    #[inline(always)]
    unsafe fn scores<V: Lanes, const T: usize, const G: usize>(&self, room: &Room, block: Block) {
        for first in (0..block.count).step_by(T) {
            let left = T.min(block.count - first);
            for group in (0..P).step_by(G) {
                // SAFETY: keys are there, or the last is computed again and not stored.
                unsafe {
                    let mut keys = [self.look.keys.numbers.as_ptr(); T];
                    for (t, key) in keys.iter_mut().enumerate() {
                        *key = self.look.keys.row(block.first + first + t.min(left - 1));
                    }
                    let mut sums = [[V::splat(0.0); G]; T];
                    for i in 0..self.look.width {
                        let mut q = [V::splat(0.0); G];
                        for g in 0..G {
                            q[g] = V::load(room.queries.add(i * Self::ROW + (group + g) * LANES));
                        }
                        for t in 0..T {
                            let key = V::splat(*keys[t].add(i));
                            for g in 0..G {
                                sums[t][g] = V::fma(key, q[g], sums[t][g]);
                            }
                        }
                    }
                    for t in 0..T {
                        for g in 0..G {
                            if t < left {
                                let to = room.weights.add((first + t) * Self::ROW + (group + g) * LANES);
                                V::store(to, sums[t][g]);
                            }
                        }
                    }
                }
            }
        }
    }

    /// A softmax step: scores become weights; returns what earlier sums shrink by.
    #[inline(always)]
    unsafe fn soften<V: Lanes>(
        &self,
        room: &Room,
        block: Block,
        (top, total): (&mut [V::F; P], &mut [V::F; P]),
    ) -> [V::F; P] {
        // SAFETY: the room holds the block's scores.
        unsafe {
            let mut shrink = [V::splat(1.0); P];
            self.hide(room, block, f32::NEG_INFINITY);
            for g in 0..P {
                let scores = room.weights.add(g * LANES);
                let mut new = top[g];
                for key in 0..block.count {
                    new = V::max(V::load(scores.add(key * Self::ROW)), new);
                }
                shrink[g] = V::exp(V::sub(top[g], new));
                top[g] = new;
                let mut sum = V::mul(total[g], shrink[g]);
                for key in 0..block.count {
                    let at = scores.add(key * Self::ROW);
                    let weight = V::exp(V::sub(V::load(at), new));
                    V::store(at, weight);
                    sum = V::add(sum, weight);
                }
                total[g] = sum;
            }
            self.hide(room, block, 0.0);
            shrink
        }
    }

    /// Overwrites what queries do not see.
    #[inline(always)]
    unsafe fn hide(&self, room: &Room, block: Block, number: f32) {
        for key in self.look.seen.max(block.first)..block.first + block.count {
            // The key after what the first query sees is hidden from the first alone.
            let hidden = (key - self.look.seen + 1).min(Self::ROW);
            for query in 0..hidden {
                // SAFETY: the key is in the block.
                unsafe { *room.weights.add((key - block.first) * Self::ROW + query) = number };
            }
        }
    }

    /// Adds a block's weighted values, in tiles of `T` numbers of the head by `G` groups of queries.
    #[inline(always)]
    unsafe fn take<V: Lanes, const T: usize, const G: usize>(&self, room: &Room, block: Block, shrink: &[V::F; P]) {
        let width = self.look.width;
        for first in (0..width).step_by(T) {
            let left = T.min(width - first);
            for group in (0..P).step_by(G) {
                // SAFETY: numbers are there, or the last is computed again and not stored.
                unsafe {
                    let place = |t: usize, g: usize| room.out.add((first + t) * Self::ROW + (group + g) * LANES);
                    let mut sums = [[V::splat(0.0); G]; T];
                    for t in 0..T {
                        for g in 0..G {
                            sums[t][g] = V::mul(V::load(place(t.min(left - 1), g)), shrink[group + g]);
                        }
                    }
                    let value: [*const f32; T] =
                        std::array::from_fn(|t| room.values.add(first + t.min(left - 1)).cast_const());
                    for key in 0..block.count {
                        let mut w = [V::splat(0.0); G];
                        for g in 0..G {
                            w[g] = V::load(room.weights.add(key * Self::ROW + (group + g) * LANES));
                        }
                        for t in 0..T {
                            let value = V::splat(*value[t].add(key * width));
                            for g in 0..G {
                                sums[t][g] = V::fma(value, w[g], sums[t][g]);
                            }
                        }
                    }
                    for t in 0..T {
                        for g in 0..G {
                            if t < left {
                                V::store(place(t, g), sums[t][g]);
                            }
                        }
                    }
                }
            }
        }
    }

    /// Divides by the totals, and turns columns back to rows.
    #[inline(always)]
    unsafe fn finish<V: Lanes>(&self, room: &Room, total: [V::F; P]) {
        // SAFETY: the room holds (width, ROW); outputs of all queries are there.
        unsafe {
            for (g, total) in total.into_iter().enumerate() {
                let share = V::div(V::splat(1.0), total);
                let queries = LANES.min(self.look.queries.count.saturating_sub(g * LANES));
                for i in 0..self.look.width {
                    let sums = V::to_array(V::mul(V::load(room.out.add(i * Self::ROW + g * LANES)), share));
                    for (query, sum) in sums.into_iter().enumerate().take(queries) {
                        *self.out.at.add((g * LANES + query) * self.out.stride + i) = sum;
                    }
                }
            }
        }
    }
}
