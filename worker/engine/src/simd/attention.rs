//! Attention over paged keys and values, and how a page holds them.
//!
//! A page is one block of 16 tokens of one key-value head: the keys as (head width, 16 tokens), so that a score's lanes
//! are tokens; then the values as (16 tokens, head width), so that an output's lanes are its numbers. No sum crosses
//! lanes but the softmax's own. Pages are visited in the order of positions, one softmax step for each stretch of them, so
//! a row's result depends neither on how its prompt was cut into steps, nor on where its pages lie, nor on the rows that
//! share the reading of them.

mod heads;

use heads::{Attend, Heads};

use super::lanes::Lanes;
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
/// Pages whose scores meet in one step of the softmax: those of 64 tokens, from a multiple of as many on.
const STRETCH: usize = 4;

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
                1 => level.run(Heads::<1, 8, 4>(work)),
                2 => level.run(Heads::<2, 6, 3>(work)),
                3 => level.run(Heads::<3, 4, 2>(work)),
                _ => level.run(Heads::<4, 3, 1>(work)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    const WIDTH: usize = 32;
    const HEADS: usize = 3;
    /// Every level has the last row in the company of others.
    const TOKENS: usize = 76;
    const ROW: usize = HEADS * WIDTH;

    /// Each token's answer, where pages held `left` before and the last token's values are `last`.
    fn answers(level: Level, (left, last): (f32, f32), window: usize) -> Vec<f32> {
        let number = |at: usize| (at * 7919 % 997) as f32 / 500.0 - 1.0;
        let numbers: Vec<f32> = (0..TOKENS * ROW).map(number).collect();
        let table: Vec<BlockId> = (0..TOKENS.div_ceil(BLOCK_TOKENS) as u32).rev().map(BlockId).collect();
        let mut arena = vec![f16::from_f32(left).to_bits(); table.len() * page_len(WIDTH)];
        for (token, key) in numbers.chunks_exact(ROW).enumerate() {
            let page = table[token / BLOCK_TOKENS].0 as usize * page_len(WIDTH);
            let page = &mut arena[page..][..page_len(WIDTH)];
            let value = if token + 1 == TOKENS { &[last; WIDTH] } else { &key[WIDTH..][..WIDTH] };
            write(level, &key[..WIDTH], value, page, token % BLOCK_TOKENS);
        }
        let pages = Pages { arena: &arena, block_stride: page_len(WIDTH), offset: 0, table: &table };
        let queries = Queries { numbers: &numbers, stride: ROW, position: 0, window };
        let mut out = vec![0.0; TOKENS * ROW];
        attend(level, &queries, &pages, WIDTH, &mut Strip::whole(&mut out, ROW));
        out
    }

    #[test]
    fn what_a_row_does_not_see_changes_none_of_its_bits() {
        let others = ..(TOKENS - 1) * ROW;
        for (level, window) in Level::all().into_iter().flat_map(|level| [5, 66, 100].map(|window| (level, window))) {
            let plain = answers(level, (0.0, 0.5), window);
            assert!(plain.iter().all(|number| number.is_finite()));
            assert_eq!(plain, answers(level, (f32::NAN, 0.5), window), "{}", level.name());
            assert_eq!(plain[others], answers(level, (0.0, f32::INFINITY), window)[others], "{}", level.name());
        }
    }
}
