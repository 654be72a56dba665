//! Attention over paged keys and values, and how a page holds them.
//!
//! A page is one block of 16 tokens of one key-value head: the keys as (head width, 16 tokens), so that a score's lanes
//! are tokens; then the values as (16 tokens, head width), so that an output's lanes are its numbers. No sum crosses
//! lanes but the softmax's own. Pages are visited in the order of positions, one softmax step a page, so a row's result
//! depends neither on how its prompt was cut into steps, nor on where its pages lie, nor on the rows that share the
//! reading of them.

use super::lanes::{Lanes, fetch};
use super::{Kernel, LANES, Level};
use crate::plan::{BLOCK_TOKENS, BlockId};
use crate::pool::Strip;

const _: () = assert!(BLOCK_TOKENS == LANES, "a page's scores are one group of lanes");

/// The widest head that fits the kernels' own memory.
pub const HEAD_WIDTH_MAX: usize = 256;
/// Query heads that share one pass over the pages.
const GROUP: usize = 4;
/// Rows of a sequence that are looked at together: each level takes as many at a time as it has registers for.
pub const ROWS: usize = 12;

/// Queries of following tokens of one sequence: of each, the heads that share one key-value head.
#[derive(Clone, Copy, Debug)]
pub struct Queries<'a> {
    /// The first head of the first row, and what follows.
    pub numbers: &'a [f32],
    /// Numbers from a row to the next.
    pub stride: usize,
    /// The token of the first row.
    pub position: usize,
    /// Tokens that each row looks back at, its own included.
    pub window: usize,
}

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
}

/// Numbers in a page for heads of this width: keys, then values.
#[must_use]
pub const fn page_len(head_width: usize) -> usize {
    2 * head_width * BLOCK_TOKENS
}

/// Attends with each row of `queries`; writes (rows, heads * `head_width`).
///
/// # Panics
/// When a page would lie outside the arena, a row would, or widths are not multiples of 16.
pub fn attend(level: Level, queries: &Queries<'_>, pages: &Pages<'_>, head_width: usize, out: &mut Strip<'_>) {
    let (rows, heads) = (out.rows(), out.columns() / head_width);
    assert!(head_width.is_multiple_of(LANES) && head_width <= HEAD_WIDTH_MAX, "a head of whole groups of lanes");
    assert!(out.columns() == heads * head_width && queries.window > 0, "whole heads, a token to look at");
    if rows == 0 {
        return;
    }
    assert!((rows - 1) * queries.stride + out.columns() <= queries.numbers.len(), "whole heads for every row");
    let first = (queries.position + 1).saturating_sub(queries.window) / BLOCK_TOKENS;
    let table = &pages.table[..(queries.position + rows).div_ceil(BLOCK_TOKENS)];
    let end = pages.offset + page_len(head_width);
    let inside = |block: &BlockId| block.0 as usize * pages.block_stride + end <= pages.arena.len();
    assert!(table[first..].iter().all(inside), "pages inside");
    for head in (0..heads).step_by(GROUP) {
        let work = Attend {
            q: queries.numbers[head * head_width..].as_ptr(),
            q_stride: queries.stride,
            out: out.as_mut_ptr().wrapping_add(head * head_width),
            out_stride: out.stride(),
            arena: pages.arena[pages.offset..].as_ptr(),
            stride: pages.block_stride,
            table,
            rows,
            position: queries.position,
            window: queries.window,
            width: head_width,
            scale: 1.0 / (head_width as f32).sqrt(),
        };
        // SAFETY: pages lie inside the arena, queries and outputs hold as many heads as the kernel's name says.
        unsafe {
            match heads - head {
                1 => level.run(Heads::<1, 8>(work)),
                2 => level.run(Heads::<2, 6>(work)),
                3 => level.run(Heads::<3, 4>(work)),
                _ => level.run(Heads::<4, 3>(work)),
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Attend<'a> {
    q: *const f32,
    q_stride: usize,
    out: *mut f32,
    out_stride: usize,
    arena: *const u16,
    stride: usize,
    table: &'a [BlockId],
    rows: usize,
    /// Of the first row.
    position: usize,
    window: usize,
    width: usize,
    scale: f32,
}

/// `G` query heads over the same pages, `R` rows at a time where registers suffice.
#[derive(Clone, Copy)]
struct Heads<'a, const G: usize, const R: usize>(Attend<'a>);

/// What a row's softmax has come to.
#[derive(Clone, Copy)]
struct Softmax<V: Lanes, const G: usize> {
    top: [f32; G],
    total: [V::F; G],
}

impl<const G: usize, const R: usize> Kernel for Heads<'_, G, R> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let mut row = 0;
        // SAFETY: as `attend` checked.
        unsafe {
            if V::ACCUMULATORS >= 2 * G * R {
                while row + R <= self.0.rows {
                    self.rows::<V, R>(row);
                    row += R;
                }
            }
            while row < self.0.rows {
                self.rows::<V, 1>(row);
                row += 1;
            }
        }
    }
}

impl<const G: usize, const R: usize> Heads<'_, G, R> {
    /// `N` rows from `row` on, page by page.
    #[inline(always)]
    unsafe fn rows<V: Lanes, const N: usize>(self, row: usize) {
        let Heads(work) = self;
        // SAFETY: as `attend` checked.
        unsafe {
            let mut state = [Softmax::<V, G> { top: [f32::NEG_INFINITY; G], total: [V::splat(0.0); G] }; N];
            for r in 0..N {
                for at in (0..G * work.width).step_by(LANES) {
                    V::store(work.out(row + r).add(at), V::splat(0.0));
                }
            }
            let last = work.position + row + N - 1;
            for page in work.first(row) / BLOCK_TOKENS..=last / BLOCK_TOKENS {
                let begin = page * BLOCK_TOKENS;
                let all = work.position + row + 1 >= begin + BLOCK_TOKENS && work.first(row + N - 1) <= begin;
                if N == 1 || all {
                    self.page::<V, N>((row, page), &mut state);
                } else {
                    // At an edge of what the rows see, each has its own.
                    for r in 0..N {
                        if work.position + row + r >= begin && work.first(row + r) < begin + BLOCK_TOKENS {
                            self.page::<V, 1>((row + r, page), std::array::from_mut(&mut state[r]));
                        }
                    }
                }
            }
            for r in 0..N {
                for g in 0..G {
                    let share = V::splat(1.0 / V::sum(state[r].total[g]));
                    for at in (g * work.width..(g + 1) * work.width).step_by(LANES) {
                        let out = work.out(row + r).add(at);
                        V::store(out, V::mul(V::load(out), share));
                    }
                }
            }
        }
    }

    /// One page for `N` rows that see it: all of its tokens, unless there is one row.
    #[inline(always)]
    unsafe fn page<V: Lanes, const N: usize>(self, (row, page): (usize, usize), state: &mut [Softmax<V, G>; N]) {
        let Heads(work) = self;
        let begin = page * BLOCK_TOKENS;
        let tokens = LANES.min(work.position + row + 1 - begin);
        let skipped = if N == 1 { work.first(row).saturating_sub(begin) } else { 0 };
        // SAFETY: as `attend` checked.
        unsafe {
            let keys = work.page(page);
            // Pages lie anywhere, and one row is soon through one: the processor does not find the next by itself.
            if N == 1 && page < (work.position + row) / BLOCK_TOKENS {
                fetch::<V>(work.page(page + 1).cast(), size_of::<u16>() * page_len(work.width));
            }
            let mut scores = self.scores::<V, N>(row, keys, tokens);
            let mut weights = [[[0.0; LANES]; G]; N];
            let mut shrink = [[1.0; G]; N];
            for r in 0..N {
                for g in 0..G {
                    let (state, score) = (&mut state[r], &mut scores[r][g]);
                    if skipped > 0 {
                        *score = drop_first::<V>(*score, skipped, f32::NEG_INFINITY);
                    }
                    let new = state.top[g].max(V::greatest(*score));
                    if new > state.top[g] {
                        shrink[r][g] = V::to_array(V::exp(V::splat(state.top[g] - new)))[0];
                        state.top[g] = new;
                    }
                    let mut p = V::exp(V::sub(*score, V::splat(new)));
                    if tokens < LANES {
                        p = V::keep_first(p, tokens, 0.0);
                    }
                    if skipped > 0 {
                        p = drop_first::<V>(p, skipped, 0.0);
                    }
                    state.total[g] = V::fma(state.total[g], V::splat(shrink[r][g]), p);
                    weights[r][g] = V::to_array(p);
                }
            }
            self.add_values::<V, N>((row, keys.add(work.width * LANES)), (&weights, &shrink), tokens);
        }
    }

    /// The scaled scores of a page's tokens; minus infinity where there is none. Two chains a head: even and odd
    /// numbers.
    #[inline(always)]
    unsafe fn scores<V: Lanes, const N: usize>(self, row: usize, keys: *const u16, tokens: usize) -> [[V::F; G]; N] {
        let Heads(work) = self;
        // SAFETY: the page holds `width` groups of keys; every head of `q` is `width` wide, an even number.
        unsafe {
            let q: [*const f32; N] = std::array::from_fn(|r| work.q.wrapping_add((row + r) * work.q_stride));
            let mut even = [[V::splat(0.0); G]; N];
            let mut odd = [[V::splat(0.0); G]; N];
            for i in (0..work.width).step_by(2) {
                let (a, b) = (V::load_f16(keys.add(i * LANES)), V::load_f16(keys.add((i + 1) * LANES)));
                for r in 0..N {
                    for g in 0..G {
                        let q = q[r].add(g * work.width + i);
                        even[r][g] = V::fma(V::splat(*q), a, even[r][g]);
                        odd[r][g] = V::fma(V::splat(*q.add(1)), b, odd[r][g]);
                    }
                }
            }
            for r in 0..N {
                for g in 0..G {
                    even[r][g] = V::mul(V::add(even[r][g], odd[r][g]), V::splat(work.scale));
                    if tokens < LANES {
                        even[r][g] = V::keep_first(even[r][g], tokens, f32::NEG_INFINITY);
                    }
                }
            }
            even
        }
    }

    /// Shrinks what the outputs hold and adds a page's weighted values: for one row several groups of lanes side by
    /// side, since one chain of sums alone would wait for each addition.
    #[inline(always)]
    unsafe fn add_values<V: Lanes, const N: usize>(
        self,
        (row, values): (usize, *const u16),
        weights: (&[[[f32; LANES]; G]; N], &[[f32; G]; N]),
        tokens: usize,
    ) {
        let mut at = 0;
        // SAFETY: groups are inside the width.
        unsafe {
            while N == 1 && V::ACCUMULATORS >= 4 * G && at + 4 * LANES <= self.0.width {
                self.add_groups::<V, N, 4>((row, at), values, weights, tokens);
                at += 4 * LANES;
            }
            while at < self.0.width {
                self.add_groups::<V, N, 1>((row, at), values, weights, tokens);
                at += LANES;
            }
        }
    }

    /// The same for `D` groups of lanes from `at` on.
    #[inline(always)]
    unsafe fn add_groups<V: Lanes, const N: usize, const D: usize>(
        self,
        (row, at): (usize, usize),
        values: *const u16,
        (weights, shrink): (&[[[f32; LANES]; G]; N], &[[f32; G]; N]),
        tokens: usize,
    ) {
        let Heads(work) = self;
        // SAFETY: the page holds 16 rows of `width` values; outputs are `width` wide.
        unsafe {
            let mut sums = [[[V::splat(0.0); D]; G]; N];
            for r in 0..N {
                for g in 0..G {
                    for d in 0..D {
                        let out = V::load(work.out(row + r).add(g * work.width + at + d * LANES));
                        sums[r][g][d] = V::mul(out, V::splat(shrink[r][g]));
                    }
                }
            }
            for token in 0..tokens {
                for d in 0..D {
                    let value = V::load_f16(values.add(token * work.width + at + d * LANES));
                    for r in 0..N {
                        for g in 0..G {
                            sums[r][g][d] = V::fma(V::splat(weights[r][g][token]), value, sums[r][g][d]);
                        }
                    }
                }
            }
            for r in 0..N {
                for g in 0..G {
                    for d in 0..D {
                        V::store(work.out(row + r).add(g * work.width + at + d * LANES), sums[r][g][d]);
                    }
                }
            }
        }
    }
}

impl Attend<'_> {
    /// The first token that a row looks at.
    #[inline(always)]
    fn first(&self, row: usize) -> usize {
        (self.position + row + 1).saturating_sub(self.window)
    }

    /// A page that rows see.
    #[inline(always)]
    fn page(&self, page: usize) -> *const u16 {
        self.arena.wrapping_add(self.table[page].0 as usize * self.stride)
    }

    /// A row's outputs.
    #[inline(always)]
    fn out(&self, row: usize) -> *mut f32 {
        self.out.wrapping_add(row * self.out_stride)
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
