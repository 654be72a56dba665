//! The kernel: query heads that share one key-value head, over pages of its keys and values.

use std::array;
use std::ops::Range;

use super::STRETCH;
use crate::plan::{BLOCK_TOKENS, BlockId};
use crate::simd::lanes::{Lanes, fetch};
use crate::simd::{Kernel, LANES};

/// Tokens whose scores meet in one step of the softmax.
const TOKENS: usize = STRETCH * BLOCK_TOKENS;

/// Rows of queries and the pages that they look at.
#[derive(Clone, Copy)]
pub(super) struct Attend<'a> {
    pub(super) q: *const f32,
    pub(super) q_stride: usize,
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
    pub(super) arena: *const u16,
    pub(super) stride: usize,
    pub(super) table: &'a [BlockId],
    pub(super) rows: usize,
    /// Of the first row.
    pub(super) position: usize,
    pub(super) window: usize,
    pub(super) width: usize,
    pub(super) scale: f32,
}

/// `G` query heads over the same pages: `R` rows at a time where registers suffice, and `S` where they do for fewer.
#[derive(Clone, Copy)]
pub(super) struct Heads<'a, const G: usize, const R: usize, const S: usize>(pub(super) Attend<'a>);

/// What the softmax of `N` rows has come to.
struct Softmax<V: Lanes, const G: usize, const N: usize> {
    /// Scores of this stretch's tokens, and then their weights.
    tokens: [[[f32; TOKENS]; G]; N],
    /// The greatest score so far.
    top: [[f32; G]; N],
    /// All weights so far.
    total: [[V::F; G]; N],
}

impl<const G: usize, const R: usize, const S: usize> Kernel for Heads<'_, G, R, S> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let mut row = 0;
        // SAFETY: as `attend` checked.
        unsafe {
            if V::ACCUMULATORS >= G * R {
                while row + R <= self.0.rows {
                    self.rows::<V, R>(row);
                    row += R;
                }
            }
            if S > 1 && V::ACCUMULATORS >= G * S {
                while row + S <= self.0.rows {
                    self.rows::<V, S>(row);
                    row += S;
                }
            }
            while row < self.0.rows {
                self.rows::<V, 1>(row);
                row += 1;
            }
        }
    }
}

impl<const G: usize, const R: usize, const S: usize> Heads<'_, G, R, S> {
    /// `N` rows from `row` on, stretch by stretch.
    #[inline(always)]
    unsafe fn rows<V: Lanes, const N: usize>(self, row: usize) {
        let Heads(work) = self;
        // SAFETY: as `attend` checked.
        unsafe {
            let mut softmax = Softmax::<V, G, N> {
                tokens: [[[0.0; TOKENS]; G]; N],
                top: [[f32::NEG_INFINITY; G]; N],
                total: [[V::splat(0.0); G]; N],
            };
            for r in 0..N {
                for at in (0..G * work.width).step_by(LANES) {
                    V::store(work.out(row + r).add(at), V::splat(0.0));
                }
            }
            let (mut page, end) = (work.first(row) / BLOCK_TOKENS, work.last(row + N - 1) / BLOCK_TOKENS + 1);
            while page < end {
                let pages = page..end.min((page / STRETCH + 1) * STRETCH);
                page = pages.end;
                self.score((row, pages.clone()), &mut softmax);
                for r in 0..N {
                    for g in 0..G {
                        self.weigh((row + r, pages.clone()), &mut softmax, (r, g));
                    }
                }
                self.add_values::<V, N>((row, pages), &softmax.tokens);
            }
            for r in 0..N {
                for g in 0..G {
                    work.scale_outputs::<V>((row + r, g), V::splat(1.0 / V::sum(softmax.total[r][g])));
                }
            }
        }
    }

    /// The scaled scores of all tokens of the pages, seen or not: for one row of several pages side by side, since one
    /// chain of sums alone would wait for each addition.
    #[inline(always)]
    unsafe fn score<V: Lanes, const N: usize>(
        self,
        (row, pages): (usize, Range<usize>),
        softmax: &mut Softmax<V, G, N>,
    ) {
        let Heads(work) = self;
        let mut page = pages.start;
        // SAFETY: the pages are the sequence's; any address may be asked for.
        unsafe {
            // Pages lie anywhere, and one row is soon through one: the processor does not find the next by itself.
            if N == 1 {
                for page in pages.clone() {
                    fetch::<V>(work.values(page).cast(), work.half());
                }
            }
            while N == 1 && V::ACCUMULATORS >= 8 * G && page + 4 <= pages.end {
                self.dots::<V, N, 4>((row, page), softmax);
                page += 4;
            }
            while N == 1 && V::ACCUMULATORS > 2 * G && page + 2 <= pages.end {
                self.dots::<V, N, 2>((row, page), softmax);
                page += 2;
            }
            while page < pages.end {
                self.dots::<V, N, 1>((row, page), softmax);
                page += 1;
            }
        }
    }

    /// The scores of `P` pages, of which even and odd numbers are added up by themselves.
    #[inline(always)]
    unsafe fn dots<V: Lanes, const N: usize, const P: usize>(
        self,
        (row, page): (usize, usize),
        softmax: &mut Softmax<V, G, N>,
    ) {
        let Heads(work) = self;
        let keys: [*const u16; P] = array::from_fn(|p| work.keys(page + p));
        let queries: [*const f32; N] = array::from_fn(|r| work.q.wrapping_add((row + r) * work.q_stride));
        // SAFETY: a page holds `width` groups of keys; every head of `q` is `width` wide.
        unsafe {
            let even = chain::<V, G, N, P>((keys, queries), work.width, 0);
            let odd = chain::<V, G, N, P>((keys, queries), work.width, 1);
            for r in 0..N {
                for g in 0..G {
                    for p in 0..P {
                        let at = place(page + p);
                        let score = V::mul(V::add(even[r][g][p], odd[r][g][p]), V::splat(work.scale));
                        V::store(softmax.tokens[r][g][at..].as_mut_ptr(), score);
                    }
                }
            }
        }
    }

    /// Makes the scores of a stretch's tokens for one head of a row weights, relative to the greatest score so far; zero
    /// where the row does not see the token. What was summed before shrinks where that score has grown.
    #[inline(always)]
    unsafe fn weigh<V: Lanes, const N: usize>(
        self,
        (row, pages): (usize, Range<usize>),
        softmax: &mut Softmax<V, G, N>,
        (r, g): (usize, usize),
    ) {
        let Heads(work) = self;
        let Softmax { tokens, top, total } = softmax;
        let (tokens, top, total) = (&mut tokens[r][g], &mut top[r][g], &mut total[r][g]);
        // SAFETY: there are scores of the stretch's tokens; every head of `out` is `width` wide.
        unsafe {
            let mut greatest = V::splat(f32::NEG_INFINITY);
            for page in pages.clone() {
                let score = tokens[place(page)..].as_mut_ptr();
                let seen = keep::<V>(V::load(score), work.seen(row, page), f32::NEG_INFINITY);
                V::store(score, seen);
                greatest = V::max(greatest, seen);
            }
            let (before, greatest) = (*top, V::greatest(greatest));
            if greatest > before {
                let shrink = V::exp(V::splat(before - greatest));
                *top = greatest;
                *total = V::mul(*total, shrink);
                work.scale_outputs::<V>((row, g), shrink);
            }
            for page in pages {
                let score = tokens[place(page)..].as_mut_ptr();
                let weight = V::exp(V::sub(V::load(score), V::splat(*top)));
                let weight = keep::<V>(weight, work.seen(row, page), 0.0);
                V::store(score, weight);
                *total = V::add(*total, weight);
            }
        }
    }

    /// Adds a stretch's weighted values: of pages that all rows see whole to all rows together.
    #[inline(always)]
    unsafe fn add_values<V: Lanes, const N: usize>(
        self,
        (row, pages): (usize, Range<usize>),
        weights: &[[[f32; TOKENS]; G]; N],
    ) {
        let Heads(work) = self;
        let last = work.last(work.rows - 1) / BLOCK_TOKENS;
        // SAFETY: any address may be asked for.
        unsafe {
            if N == 1 {
                for page in pages.end..=last.min(pages.end + STRETCH - 1) {
                    fetch::<V>(work.keys(page).cast(), work.half());
                }
                return self.add::<V, N>((row, pages), weights);
            }
            let whole = work.seen_whole((row, N), pages.clone());
            for r in 0..N {
                self.add::<V, 1>((row + r, pages.start..whole.start), array::from_ref(&weights[r]));
            }
            self.add::<V, N>((row, whole.clone()), weights);
            for r in 0..N {
                self.add::<V, 1>((row + r, whole.end..pages.end), array::from_ref(&weights[r]));
            }
        }
    }

    /// Adds the weighted values of some pages to rows that see them whole, or to one row: to several groups of lanes side
    /// by side, as with scores.
    #[inline(always)]
    unsafe fn add<V: Lanes, const N: usize>(
        self,
        (row, pages): (usize, Range<usize>),
        weights: &[[[f32; TOKENS]; G]; N],
    ) {
        let mut at = 0;
        if pages.is_empty() {
            return;
        }
        // SAFETY: groups are inside the width.
        unsafe {
            while N == 1 && V::ACCUMULATORS >= 4 * G && at + 4 * LANES <= self.0.width {
                self.add_groups::<V, N, 4>((row, at), pages.clone(), weights);
                at += 4 * LANES;
            }
            while at < self.0.width {
                self.add_groups::<V, N, 1>((row, at), pages.clone(), weights);
                at += LANES;
            }
        }
    }

    /// The same for `D` groups of lanes from `at` on.
    #[inline(always)]
    unsafe fn add_groups<V: Lanes, const N: usize, const D: usize>(
        self,
        (row, at): (usize, usize),
        pages: Range<usize>,
        weights: &[[[f32; TOKENS]; G]; N],
    ) {
        let Heads(work) = self;
        // SAFETY: the pages hold 16 rows of `width` values; outputs are `width` wide.
        unsafe {
            let mut sums = [[[V::splat(0.0); D]; G]; N];
            for r in 0..N {
                for g in 0..G {
                    for d in 0..D {
                        sums[r][g][d] = V::load(work.out(row + r).add(g * work.width + at + d * LANES));
                    }
                }
            }
            for page in pages {
                let values = work.values(page).add(at);
                let seen = if N == 1 { work.seen(row, page) } else { 0..BLOCK_TOKENS };
                for token in seen {
                    let place = place(page) + token;
                    for d in 0..D {
                        let value = V::load_f16(values.add(token * work.width + d * LANES));
                        for r in 0..N {
                            for g in 0..G {
                                let weight = V::splat(*weights[r][g].as_ptr().add(place));
                                sums[r][g][d] = V::fma(weight, value, sums[r][g][d]);
                            }
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

/// The products of every second number of queries and keys, from `first` on, added up.
#[inline(always)]
unsafe fn chain<V: Lanes, const G: usize, const N: usize, const P: usize>(
    (keys, queries): ([*const u16; P], [*const f32; N]),
    width: usize,
    first: usize,
) -> [[[V::F; P]; G]; N] {
    // SAFETY: the caller's pages and heads.
    unsafe {
        let mut sums = [[[V::splat(0.0); P]; G]; N];
        for i in (first..width).step_by(2) {
            for p in 0..P {
                let key = V::load_f16(keys[p].add(i * BLOCK_TOKENS));
                for r in 0..N {
                    for g in 0..G {
                        let query = V::splat(*queries[r].add(g * width + i));
                        sums[r][g][p] = V::fma(query, key, sums[r][g][p]);
                    }
                }
            }
        }
        sums
    }
}

impl Attend<'_> {
    /// The first token that a row looks at.
    #[inline(always)]
    fn first(&self, row: usize) -> usize {
        (self.last(row) + 1).saturating_sub(self.window)
    }

    /// The last one: its own.
    #[inline(always)]
    fn last(&self, row: usize) -> usize {
        self.position + row
    }

    /// Which of a page's tokens a row looks at.
    #[inline(always)]
    fn seen(&self, row: usize, page: usize) -> Range<usize> {
        let within = |token: usize| token.saturating_sub(page * BLOCK_TOKENS).min(BLOCK_TOKENS);
        within(self.first(row))..within(self.last(row) + 1)
    }

    /// Which of some pages each of some rows sees whole: they are side by side.
    #[inline(always)]
    fn seen_whole(&self, (row, count): (usize, usize), pages: Range<usize>) -> Range<usize> {
        let end = ((self.last(row) + 1) / BLOCK_TOKENS).clamp(pages.start, pages.end);
        self.first(row + count - 1).div_ceil(BLOCK_TOKENS).clamp(pages.start, end)..end
    }

    /// Multiplies what a head of a row has summed.
    #[inline(always)]
    unsafe fn scale_outputs<V: Lanes>(&self, (row, head): (usize, usize), factor: V::F) {
        for at in (head * self.width..(head + 1) * self.width).step_by(LANES) {
            // SAFETY: every head of `out` is `width` wide.
            unsafe {
                let out = self.out(row).add(at);
                V::store(out, V::mul(V::load(out), factor));
            }
        }
    }

    /// Bytes of a page's keys, and of its values.
    #[inline(always)]
    fn half(&self) -> usize {
        self.width * BLOCK_TOKENS * size_of::<u16>()
    }

    /// The keys of a page.
    #[inline(always)]
    fn keys(&self, page: usize) -> *const u16 {
        self.arena.wrapping_add(self.table[page].0 as usize * self.stride)
    }

    /// The values of a page.
    #[inline(always)]
    fn values(&self, page: usize) -> *const u16 {
        self.keys(page).wrapping_add(self.width * BLOCK_TOKENS)
    }

    /// A row's outputs.
    #[inline(always)]
    fn out(&self, row: usize) -> *mut f32 {
        self.out.wrapping_add(row * self.out_stride)
    }
}

/// Where a page's first token lies in its stretch.
#[inline(always)]
fn place(page: usize) -> usize {
    page % STRETCH * BLOCK_TOKENS
}

/// The lanes `some` of `x`, and `fill` in all others.
#[inline(always)]
unsafe fn keep<V: Lanes>(x: V::F, some: Range<usize>, fill: f32) -> V::F {
    // SAFETY: the caller's level; the array holds 16 numbers.
    unsafe {
        let mut kept = x;
        if some.end < LANES {
            kept = V::keep_first(kept, some.end, fill);
        }
        if some.start > 0 {
            let mut all = V::to_array(kept);
            all[..some.start].fill(fill);
            kept = V::load(all.as_ptr());
        }
        kept
    }
}
