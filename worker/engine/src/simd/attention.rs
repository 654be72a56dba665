//! Attention over paged keys and values, and how a page holds them.
//!
//! A page is one block of 16 tokens of one key-value head: the keys as (head width, 16 tokens), so that a score's lanes
//! are tokens; then the values as (16 tokens, head width), so that an output's lanes are its numbers. No sum crosses
//! lanes but the softmax's own. Pages are visited in the order of positions, one softmax step a page, so a row's result
//! depends neither on how its prompt was cut into steps nor on where its pages lie.

use super::lanes::Lanes;
use super::{Kernel, LANES, Level};
use crate::plan::{BLOCK_TOKENS, BlockId};

const _: () = assert!(BLOCK_TOKENS == LANES, "a page's scores are one group of lanes");

/// The widest head that fits the kernels' own memory.
pub const HEAD_WIDTH_MAX: usize = 256;
/// Query heads that share one pass over the pages.
const GROUP: usize = 4;

/// Where the pages of one key-value head of one layer lie in the arena.
#[derive(Clone, Copy, Debug)]
pub struct Pages<'a> {
    /// The whole arena, f16.
    pub arena: &'a [u16],
    /// Numbers from a block to the next.
    pub block_stride: usize,
    /// Where this layer's and head's page begins within a block.
    pub offset: usize,
    /// The sequence's blocks, in order.
    pub table: &'a [BlockId],
    /// The first token to look at.
    pub first: usize,
    /// Where the tokens to look at end.
    pub tokens: usize,
}

/// Numbers in a page for heads of this width: keys, then values.
#[must_use]
pub const fn page_len(head_width: usize) -> usize {
    2 * head_width * BLOCK_TOKENS
}

/// Attends with the query heads `q` (heads, width) that share one key-value head; writes `out` (heads, width).
///
/// # Panics
/// When a page would lie outside the arena, or widths are not multiples of 16.
pub fn attend(level: Level, q: &[f32], pages: &Pages<'_>, head_width: usize, out: &mut [f32]) {
    assert!(head_width.is_multiple_of(LANES) && head_width <= HEAD_WIDTH_MAX, "a head of whole groups of lanes");
    assert!(q.len() == out.len() && q.len().is_multiple_of(head_width), "whole heads in, whole heads out");
    let blocks = pages.tokens.div_ceil(BLOCK_TOKENS);
    assert!(pages.first < pages.tokens && blocks <= pages.table.len(), "a block for every token");
    let unseen = pages.first / BLOCK_TOKENS;
    let table = &pages.table[unseen..blocks];
    let end = pages.offset + page_len(head_width);
    assert!(table.iter().all(|block| block.0 as usize * pages.block_stride + end <= pages.arena.len()), "pages inside");
    let parts = q.chunks(GROUP * head_width).zip(out.chunks_mut(GROUP * head_width));
    for (q, out) in parts {
        let work = Attend {
            q: q.as_ptr(),
            out: out.as_mut_ptr(),
            arena: pages.arena[pages.offset..].as_ptr(),
            stride: pages.block_stride,
            table,
            first: pages.first - unseen * BLOCK_TOKENS,
            tokens: pages.tokens - unseen * BLOCK_TOKENS,
            width: head_width,
            scale: 1.0 / (head_width as f32).sqrt(),
        };
        // SAFETY: pages lie inside the arena, queries and outputs hold as many heads as the kernel's name says.
        unsafe {
            match q.len() / head_width {
                1 => level.run(Heads::<1>(work)),
                2 => level.run(Heads::<2>(work)),
                3 => level.run(Heads::<3>(work)),
                _ => level.run(Heads::<4>(work)),
            }
        }
    }
}

struct Attend<'a> {
    q: *const f32,
    out: *mut f32,
    arena: *const u16,
    stride: usize,
    table: &'a [BlockId],
    /// Tokens of the first page that are not looked at.
    first: usize,
    tokens: usize,
    width: usize,
    scale: f32,
}

/// `G` query heads over the same pages.
struct Heads<'a, const G: usize>(Attend<'a>);

impl<const G: usize> Kernel for Heads<'_, G> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Heads(work) = self;
        let groups = work.width / LANES;
        // SAFETY: as `attend` checked.
        unsafe {
            for at in 0..G * groups {
                V::store(work.out.add(at * LANES), V::splat(0.0));
            }
            let mut top = [f32::NEG_INFINITY; G];
            let mut total = [V::splat(0.0); G];
            for (index, block) in work.table.iter().enumerate() {
                let tokens = LANES.min(work.tokens - index * LANES);
                let keys = work.arena.add(block.0 as usize * work.stride);
                let skipped = if index == 0 { work.first } else { 0 };
                let mut scores = scores::<V, G>(&work, keys, tokens);
                if skipped > 0 {
                    for score in &mut scores {
                        *score = drop_first::<V>(*score, skipped, f32::NEG_INFINITY);
                    }
                }
                let mut weights = [[0.0; LANES]; G];
                let mut shrink = [1.0; G];
                for g in 0..G {
                    let new = top[g].max(V::greatest(scores[g]));
                    if new > top[g] {
                        shrink[g] = V::to_array(V::exp(V::splat(top[g] - new)))[0];
                        top[g] = new;
                    }
                    let mut p = V::exp(V::sub(scores[g], V::splat(new)));
                    if tokens < LANES {
                        p = V::keep_first(p, tokens, 0.0);
                    }
                    if skipped > 0 {
                        p = drop_first::<V>(p, skipped, 0.0);
                    }
                    total[g] = V::fma(total[g], V::splat(shrink[g]), p);
                    weights[g] = V::to_array(p);
                }
                add_values::<V, G>(&work, keys.add(work.width * LANES), (&weights, &shrink), tokens);
            }
            for (g, total) in total.into_iter().enumerate() {
                let share = V::splat(1.0 / V::sum(total));
                for group in 0..groups {
                    let out = work.out.add(g * work.width + group * LANES);
                    V::store(out, V::mul(V::load(out), share));
                }
            }
        }
    }
}

/// `fill` in the first `count` lanes, then those of `x`.
#[inline(always)]
unsafe fn drop_first<V: Lanes>(x: V::F, count: usize, fill: f32) -> V::F {
    // SAFETY: the array holds 16 numbers.
    unsafe {
        let mut all = V::to_array(x);
        all[..count.min(LANES)].fill(fill);
        V::load(all.as_ptr())
    }
}

/// The scaled scores of a page's tokens; minus infinity where there is none. Two chains a head: even and odd numbers.
#[inline(always)]
unsafe fn scores<V: Lanes, const G: usize>(work: &Attend<'_>, keys: *const u16, tokens: usize) -> [V::F; G] {
    // SAFETY: the page holds `width` groups of keys; every head of `q` is `width` wide, an even number.
    unsafe {
        let mut even = [V::splat(0.0); G];
        let mut odd = [V::splat(0.0); G];
        for i in (0..work.width).step_by(2) {
            let (a, b) = (V::load_f16(keys.add(i * LANES)), V::load_f16(keys.add((i + 1) * LANES)));
            for g in 0..G {
                let q = work.q.add(g * work.width + i);
                even[g] = V::fma(V::splat(*q), a, even[g]);
                odd[g] = V::fma(V::splat(*q.add(1)), b, odd[g]);
            }
        }
        for g in 0..G {
            even[g] = V::mul(V::add(even[g], odd[g]), V::splat(work.scale));
            if tokens < LANES {
                even[g] = V::keep_first(even[g], tokens, f32::NEG_INFINITY);
            }
        }
        even
    }
}

/// Shrinks what the outputs hold and adds a page's weighted values.
#[inline(always)]
unsafe fn add_values<V: Lanes, const G: usize>(
    work: &Attend<'_>,
    values: *const u16,
    (weights, shrink): (&[[f32; LANES]; G], &[f32; G]),
    tokens: usize,
) {
    for group in 0..work.width / LANES {
        // SAFETY: the page holds 16 rows of `width` values; outputs are `width` wide.
        unsafe {
            let mut sums = [V::splat(0.0); G];
            for g in 0..G {
                let out = work.out.add(g * work.width + group * LANES);
                sums[g] = V::mul(V::load(out), V::splat(shrink[g]));
            }
            for token in 0..tokens {
                let value = V::load_f16(values.add(token * work.width + group * LANES));
                for g in 0..G {
                    sums[g] = V::fma(V::splat(weights[g][token]), value, sums[g]);
                }
            }
            for g in 0..G {
                V::store(work.out.add(g * work.width + group * LANES), sums[g]);
            }
        }
    }
}

/// Writes one token's key and value to its slot of a page.
///
/// # Panics
/// When the page is not one for heads of this width, or has no such slot.
pub fn write(level: Level, key: &[f32], value: &[f32], page: &mut [u16], slot: usize) {
    let width = key.len();
    assert!(value.len() == width && page.len() == page_len(width) && slot < BLOCK_TOKENS, "a slot of the page");
    assert!(width.is_multiple_of(LANES), "a head of whole groups of lanes");
    let (keys, values) = page.split_at_mut(width * BLOCK_TOKENS);
    // SAFETY: both parts of the page were checked to have the slot.
    unsafe {
        level.run(Write { key: key.as_ptr(), value: value.as_ptr(), width, keys, values, slot });
    }
}

struct Write<'a> {
    key: *const f32,
    value: *const f32,
    width: usize,
    keys: &'a mut [u16],
    values: &'a mut [u16],
    slot: usize,
}

impl Kernel for Write<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        for at in (0..self.width).step_by(LANES) {
            // SAFETY: as `write` checked.
            unsafe {
                let mut halves = [0; LANES];
                V::store_f16(halves.as_mut_ptr(), V::load(self.key.add(at)));
                for (i, half) in halves.into_iter().enumerate() {
                    self.keys[(at + i) * BLOCK_TOKENS + self.slot] = half;
                }
                let to = self.values[self.slot * self.width + at..].as_mut_ptr();
                V::store_f16(to, V::load(self.value.add(at)));
            }
        }
    }
}
