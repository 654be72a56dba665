//! Attention of one head over rows that lie in memory as they are: for encoders, and for what decodes from them.
//!
//! Many queries: lanes are queries, so that scores, their softmax and the sums of values never cross lanes; keys are
//! taken a block at a time, with one softmax step each. Few queries: lanes are numbers of the head, and nothing is
//! packed. Which way is taken depends on the number of queries and nothing else, so results do not depend on company.

mod few;
mod many;

use super::{LANES, Level};
use crate::pool::Strip;
use few::{Few, Weigh};
use many::Many;

/// Queries that are computed together at most.
pub const QUERIES: usize = GROUPS * LANES;
/// Up to so many queries, each is computed by itself.
pub const FEW: usize = 4;

/// Groups of queries that share one reading of the keys.
const GROUPS: usize = 3;
/// Rows of one head: numbers from the first row's first on.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The numbers, those of other heads between them.
    pub numbers: &'a [f32],
    /// From a row to the next.
    pub stride: usize,
    /// How many.
    pub count: usize,
}

/// One head's attention.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    /// At most [`QUERIES`].
    pub queries: Rows<'a>,
    /// What is compared.
    pub keys: Rows<'a>,
    /// What is taken; as many rows as keys.
    pub values: Rows<'a>,
    /// Numbers of the head.
    pub width: usize,
    /// Keys that the first query sees; at least one, unless there are none.
    pub seen: usize,
    /// Keys that each query sees more than the one before it.
    pub growth: Growth,
}

/// How the keys that a query sees grow with queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    /// Every query sees the same.
    None,
    /// Every query sees one more.
    One,
}

/// A thread's own memory.
#[derive(Debug, Default)]
pub struct Scratch {
    numbers: Vec<f32>,
}

impl Scratch {
    /// Room for `len` numbers, begun at a cache line, with anything in it.
    fn room(&mut self, len: usize) -> &mut [f32] {
        if self.numbers.len() < len + LANES {
            self.numbers.resize(len + LANES, 0.0);
        }
        let line = self.numbers.as_ptr().align_offset(64) % LANES;
        &mut self.numbers[line..line + len]
    }
}

impl Rows<'_> {
    fn check(&self, width: usize) {
        let end = self.count.saturating_sub(1) * self.stride + width;
        assert!(self.count == 0 || end <= self.numbers.len(), "rows inside their numbers");
    }

    /// # Safety
    /// The row is one of `count`.
    #[inline(always)]
    unsafe fn row(&self, row: usize) -> *const f32 {
        // SAFETY: checked by `check` before.
        unsafe { self.numbers.as_ptr().add(row * self.stride) }
    }
}

impl Look<'_> {
    /// Keys that a query sees.
    fn seen_by(&self, query: usize) -> usize {
        match self.growth {
            Growth::None => self.seen,
            Growth::One => self.seen + query,
        }
    }

    fn check(&self) {
        let (queries, keys) = (self.queries.count, self.keys.count);
        self.queries.check(self.width);
        self.keys.check(self.width);
        self.values.check(self.width);
        assert!(self.values.count == keys && self.width > 0, "a value for every key");
        assert!(queries == 0 || self.seen_by(queries - 1) <= keys, "keys for every query");
        assert!(self.seen > 0 || keys == 0, "a key for the first query");
    }
}

/// Writes what the queries take to `out`, one row each.
///
/// # Panics
/// When shapes disagree, or there are more queries than [`QUERIES`].
pub fn attend(level: Level, look: Look<'_>, out: &mut Strip<'_>, scratch: &mut Scratch) {
    look.check();
    let (queries, width) = (look.queries.count, look.width);
    assert!(out.rows() == queries && out.columns() == width && queries <= QUERIES, "a row for each query");
    let out = Out { at: out.as_mut_ptr(), stride: out.stride() };
    // SAFETY: rows were checked; scratch has the room that each kernel cuts it into.
    unsafe {
        if queries == 0 {
        } else if queries <= FEW || look.seen == 0 {
            let room = scratch.room(look.keys.count.next_multiple_of(LANES));
            level.run(Few { look, out, room });
        } else {
            let room = scratch.room(many::room(width));
            match queries.div_ceil(LANES) {
                1 => level.run(Many::<1> { look, out, room }),
                2 => level.run(Many::<2> { look, out, room }),
                _ => level.run(Many::<3> { look, out, room }),
            }
        }
    }
}

/// The weights of one query over the keys it sees: `weights` is as long as there are keys, zero for those unseen.
///
/// # Panics
/// When shapes disagree, or there is not one query.
pub fn weigh(level: Level, look: Look<'_>, weights: &mut [f32]) {
    look.check();
    assert!(look.queries.count == 1 && weights.len() == look.keys.count, "one query, all keys");
    let (seen, unseen) = weights.split_at_mut(look.seen);
    unseen.fill(0.0);
    // SAFETY: rows were checked.
    unsafe { level.run(Weigh { look, weights: seen }) };
}

/// Rows of outputs, a row for each query.
#[derive(Clone, Copy)]
struct Out {
    at: *mut f32,
    stride: usize,
}
