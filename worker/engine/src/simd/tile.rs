//! Where the sums of a product begin and end: tiles of rows by panels of outputs.

use super::LANES;
use super::affine::Finish;
use super::lanes::Lanes;
use crate::backend::dense::Activation;
use crate::pool::Strip;

/// Where a product's sums begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// At zero: the output is overwritten.
    Zero,
    /// At what the output holds: the product is added to it.
    Output,
}

/// The least and the greatest that a number becomes. What is no number stays none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    least: f32,
    most: f32,
}

impl Bounds {
    const NONE: Bounds = Bounds { least: f32::NEG_INFINITY, most: f32::INFINITY };

    /// What of an activation is bounds, which follow while sums are in registers, and what is left of it.
    pub(super) fn of(activation: Activation) -> (Bounds, Activation) {
        match activation {
            Activation::Relu6 => (Bounds { least: 0.0, most: 6.0 }, Activation::None),
            other => (Bounds::NONE, other),
        }
    }

    /// # Safety
    /// The level is there.
    #[inline(always)]
    pub(super) unsafe fn hold<V: Lanes>(self, x: V::F) -> V::F {
        // SAFETY: the caller's level. Of a number and none, `max` and `min` take the second.
        unsafe { V::min(V::splat(self.most), V::max(V::splat(self.least), x)) }
    }
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
    begin: Begin,
    /// For each column, if there are any.
    bias: *const f32,
    bounds: Bounds,
}

impl Outputs {
    /// Those whose sums begin, and end within the bounds and with the biases, as `then` says.
    ///
    /// # Panics
    /// When the strip has no room for `rows` by `columns`, or there is neither a bias for each column nor none.
    pub(super) fn of(strip: &mut Strip<'_>, rows: usize, columns: usize, then: Finish<'_>) -> Outputs {
        assert!(strip.rows() >= rows && strip.columns() >= columns, "outputs have room");
        assert!(then.bias.is_empty() || then.bias.len() == columns, "a bias for each column");
        let bias = if then.bias.is_empty() { std::ptr::null() } else { then.bias.as_ptr() };
        let bounds = Bounds::of(then.activation).0;
        Outputs { out: strip.as_mut_ptr(), stride: strip.stride(), columns, begin: then.begin, bias, bounds }
    }

    /// Those of some of the columns of weights: only the first begin anew, and something follows only the last.
    #[inline(always)]
    pub(super) fn of_part(mut self, first: bool, last: bool) -> Outputs {
        if !first {
            self.begin = Begin::Output;
        }
        if !last {
            (self.bias, self.bounds) = (std::ptr::null(), Bounds::NONE);
        }
        self
    }

    /// Panels of columns; the last may be narrower.
    #[inline(always)]
    pub(super) fn panels(&self) -> usize {
        self.columns.div_ceil(LANES)
    }

    /// The sums of a tile, as they begin.
    ///
    /// Here and in [`Outputs::store`], sums are only indexed by loops that are unrolled: any other would keep them in
    /// memory wherever they are used.
    ///
    /// # Safety
    /// The outputs and the biases are still there, and the level is.
    #[inline(always)]
    pub(super) unsafe fn sums<V: Lanes, const T: usize, const P: usize>(&self, at: Tile) -> [[V::F; P]; T] {
        // SAFETY: only outputs that are there are read; the place of an absent panel is computed and not used.
        unsafe {
            let mut sums = [[V::splat(0.0); P]; T];
            match self.begin {
                Begin::Zero => {}
                Begin::Output if self.is_whole::<T, P>(at) => {
                    for t in 0..T {
                        for p in 0..P {
                            sums[t][p] = V::load(self.place(at, t, p));
                        }
                    }
                }
                Begin::Output => {
                    let held = self.held::<V, T, P>(at);
                    for t in 0..T {
                        for p in 0..P {
                            sums[t][p] = held[t][p];
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
        // SAFETY: the caller's; a whole tile's outputs are all there.
        unsafe {
            let mut ends = [[V::splat(0.0); P]; T];
            for p in 0..P {
                let bias = self.bias_of::<V>(at.panel + p);
                for t in 0..T {
                    ends[t][p] = self.bounds.hold::<V>(V::add(sums[t][p], bias));
                }
            }
            if !self.is_whole::<T, P>(at) {
                return self.store_some::<V, T, P>(at, &ends);
            }
            for t in 0..T {
                for p in 0..P {
                    V::store(self.place(at, t, p), ends[t][p]);
                }
            }
        }
    }

    /// What the outputs of a tile hold, as far as they are there.
    ///
    /// # Safety
    /// As [`Outputs::sums`].
    #[inline(always)]
    unsafe fn held<V: Lanes, const T: usize, const P: usize>(&self, at: Tile) -> [[V::F; P]; T] {
        // SAFETY: only outputs that are there are read; the place of an absent panel is computed and not used.
        unsafe {
            let mut held = [[V::splat(0.0); P]; T];
            for t in 0..T.min(at.tokens) {
                for p in 0..P {
                    held[t][p] = some::<V>(self.place(at, t, p), self.lanes(at.panel + p));
                }
            }
            held
        }
    }

    /// Writes what is there of a tile.
    ///
    /// # Safety
    /// As [`Outputs::sums`].
    #[inline(always)]
    unsafe fn store_some<V: Lanes, const T: usize, const P: usize>(&self, at: Tile, ends: &[[V::F; P]; T]) {
        for t in 0..T.min(at.tokens) {
            for p in 0..P {
                // SAFETY: only outputs that are there are written; the place of an absent panel is computed and not used.
                unsafe { put::<V>(self.place(at, t, p), ends[t][p], self.lanes(at.panel + p)) };
            }
        }
    }

    /// The biases of a panel; zeros where there are none.
    ///
    /// # Safety
    /// As [`Outputs::sums`].
    #[inline(always)]
    unsafe fn bias_of<V: Lanes>(&self, panel: usize) -> V::F {
        let lanes = if self.bias.is_null() { 0 } else { self.lanes(panel) };
        // SAFETY: there is a bias for each column.
        unsafe { some::<V>(self.bias.wrapping_add(panel * LANES), lanes) }
    }

    /// Whether all outputs of a tile are there.
    #[inline(always)]
    fn is_whole<const T: usize, const P: usize>(&self, at: Tile) -> bool {
        at.tokens >= T && (at.panel + P) * LANES <= self.columns
    }

    /// Where the outputs of a tile's `t`th token and `p`th panel are.
    #[inline(always)]
    fn place(&self, at: Tile, t: usize, p: usize) -> *mut f32 {
        self.out.wrapping_add((at.token + t) * self.stride + (at.panel + p) * LANES)
    }

    /// Output rows of a panel, without padding.
    #[inline(always)]
    fn lanes(&self, panel: usize) -> usize {
        LANES.min(self.columns.saturating_sub(panel * LANES))
    }
}

/// So many numbers, and zeros.
///
/// # Safety
/// They are there, and the level is.
#[inline(always)]
pub(super) unsafe fn some<V: Lanes>(from: *const f32, lanes: usize) -> V::F {
    // SAFETY: the caller's.
    unsafe {
        match lanes {
            0 => V::splat(0.0),
            LANES => V::load(from),
            lanes => V::load_first(from, lanes),
        }
    }
}

/// Writes so many of the numbers.
///
/// # Safety
/// There is room for them, and the level is there.
#[inline(always)]
pub(super) unsafe fn put<V: Lanes>(to: *mut f32, x: V::F, lanes: usize) {
    // SAFETY: the caller's.
    unsafe {
        match lanes {
            0 => {}
            LANES => V::store(to, x),
            lanes => V::store_first(to, x, lanes),
        }
    }
}
