//! Where the sums of a product begin and end: tiles of rows by panels of outputs.

use super::LANES;
use super::lanes::Lanes;
use crate::pool::Strip;

/// Where a product's sums begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// At zero: the output is overwritten.
    Zero,
    /// At what the output holds: the product is added to it.
    Output,
}

/// Where a tile's outputs lie.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub(super) token: usize,
    /// Tokens that are there; a tile may be wider.
    pub(super) tokens: usize,
    pub(super) panel: usize,
}

impl Tile {
    /// The row of inputs that its `t`th token has. A tile wider than its tokens computes the last one again.
    #[inline(always)]
    pub(super) fn row(self, t: usize) -> usize {
        self.token + t.min(self.tokens - 1)
    }
}

/// The width of the tile that takes the first of `left` tokens: the widest, or the smallest that holds the rest.
#[inline(always)]
pub(super) fn tile_width(left: usize, [wide, middle, small]: [usize; 3]) -> usize {
    if left > middle {
        wide
    } else if left > small {
        middle
    } else {
        small
    }
}

/// The outputs of a product, (tokens, columns) of a strip.
#[derive(Clone, Copy)]
pub(super) struct Outputs {
    out: *mut f32,
    stride: usize,
    columns: usize,
    pub(super) begin: Begin,
}

impl Outputs {
    /// # Panics
    /// When the strip has no room for `rows` by `columns`.
    pub(super) fn of(strip: &mut Strip<'_>, rows: usize, columns: usize, begin: Begin) -> Outputs {
        assert!(strip.rows() >= rows && strip.columns() >= columns, "outputs have room");
        Outputs { out: strip.as_mut_ptr(), stride: strip.stride(), columns, begin }
    }

    /// Panels of columns; the last may be narrower.
    #[inline(always)]
    pub(super) fn panels(&self) -> usize {
        self.columns.div_ceil(LANES)
    }

    /// The sums of a tile, as they begin.
    ///
    /// # Safety
    /// The outputs are still there, and the level is.
    #[inline(always)]
    pub(super) unsafe fn sums<V: Lanes, const T: usize, const P: usize>(
        &self,
        at: Tile,
        begin: Begin,
    ) -> [[V::F; P]; T] {
        // SAFETY: only outputs that are there are read; the place of an absent panel is computed and not used.
        unsafe {
            let mut sums = [[V::splat(0.0); P]; T];
            if begin == Begin::Output {
                for t in 0..T.min(at.tokens) {
                    for p in 0..P {
                        let from = self.out.wrapping_add((at.token + t) * self.stride + (at.panel + p) * LANES);
                        match self.lanes(at.panel + p) {
                            0 => {}
                            LANES => sums[t][p] = V::load(from),
                            lanes => sums[t][p] = V::load_first(from, lanes),
                        }
                    }
                }
            }
            sums
        }
    }

    /// Writes the sums of a tile.
    ///
    /// # Safety
    /// As [`Outputs::sums`].
    #[inline(always)]
    pub(super) unsafe fn store<V: Lanes, const T: usize, const P: usize>(&self, at: Tile, sums: [[V::F; P]; T]) {
        for t in 0..T.min(at.tokens) {
            for p in 0..P {
                // SAFETY: only outputs that are there are written; the place of an absent panel is computed and not used.
                unsafe {
                    let to = self.out.wrapping_add((at.token + t) * self.stride + (at.panel + p) * LANES);
                    match self.lanes(at.panel + p) {
                        0 => {}
                        LANES => V::store(to, sums[t][p]),
                        lanes => V::store_first(to, sums[t][p], lanes),
                    }
                }
            }
        }
    }

    /// Output rows of a panel, without padding.
    #[inline(always)]
    fn lanes(&self, panel: usize) -> usize {
        LANES.min(self.columns.saturating_sub(panel * LANES))
    }
}
