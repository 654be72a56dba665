//! Matrix products straight over packed weights.
//!
//! One output is one chain of fused multiply-adds over the columns in order, begun at zero or at what the output holds.
//! Tiles only choose how many chains run side by side, so a row's result never depends on the rows beside it, on the
//! tile it fell into, on the level or on the number of threads.

use super::affine::{self, Finish};
use super::brains::{Line, Shape};
use super::cursor::Cursor;
use super::integer;
use super::lanes::Lanes;
use super::panel::{BLOCK, LAYOUTS, Layout, Panels};
use super::tile::{Outputs, Tile, tile_width};
use super::{Kernel, LANES, Level};
use crate::pool::Strip;

/// Rows that share one reading or unpacking of the weights; their inputs fit the second-level cache.
pub const BAND_ROWS: usize = 128;
/// Columns unpacked at a time: a tile's panels of them fit the first-level cache beside its tokens.
const COLUMN_BLOCK: usize = 4 * BLOCK;

/// The most panels that share one pass over the tokens.
const TILE_PANELS: usize = 3;

/// Numbers that [`Scratch`] has room for: (COLUMN_BLOCK, TILE_PANELS, LANES) unpacked weights, or integers made ready.
const SCRATCH: usize = {
    let unpacked = COLUMN_BLOCK * TILE_PANELS * LANES;
    if unpacked > integer::ROOM { unpacked } else { integer::ROOM }
};

/// A thread's own memory for products.
#[derive(Debug)]
pub struct Scratch {
    weights: Vec<f32>,
    /// Weights as a matrix unit reads them; as many as it took.
    squares: Vec<Line>,
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch { weights: vec![0.0; SCRATCH + LANES], squares: Vec::new() }
    }
}

impl Scratch {
    /// Makes room for weights of 32 outputs.
    pub fn make_squares(&mut self, shape: Shape) -> &mut [Line] {
        let lines = shape.group();
        if self.squares.len() < lines {
            self.squares.resize(lines, Line::ZERO);
        }
        &mut self.squares[..lines]
    }

    /// [`SCRATCH`] numbers of any kind, begun at a cache line.
    pub(super) fn as_mut_ptr(&mut self) -> *mut f32 {
        let line = self.weights.as_ptr().align_offset(64) % LANES;
        self.weights[line..].as_mut_ptr()
    }
}

/// Outputs that a strip of a product is best made of: whole tiles of panels, whatever the rows.
pub const STRIP_UNIT: usize = TILE_PANELS * LANES;

/// The inputs of a product: (rows, columns) without gaps.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The numbers.
    pub x: &'a [f32],
    /// Rows of tokens.
    pub rows: usize,
}

/// Writes the outputs of panels `panels` of `weights`, and what follows them, to the columns of `out`, the first of which
/// is the first row of the first panel.
///
/// # Panics
/// When shapes disagree.
pub fn multiply(
    level: Level,
    input: Input<'_>,
    (weights, panels): (&Panels, std::ops::Range<usize>),
    (then, out): (Finish<'_>, &mut Strip<'_>),
    scratch: &mut Scratch,
) {
    let columns = weights.columns();
    let outputs = weights.rows().min(panels.end * LANES).saturating_sub(panels.start * LANES);
    assert!(panels.end <= weights.count(), "panels of the matrix");
    assert_eq!(input.x.len(), input.rows * columns, "inputs fill their rows");
    if panels.is_empty() || input.rows == 0 {
        return;
    }
    let product = Product {
        x: input.x.as_ptr(),
        rows: input.rows,
        columns,
        weights: weights.bytes()[panels.start * weights.panel_bytes()..].as_ptr(),
        panel_bytes: weights.panel_bytes(),
        outputs: Outputs::of(out, input.rows, outputs, then),
        unpacked: scratch.as_mut_ptr(),
    };
    // SAFETY: the assertions above: `x` holds rows * columns, the panels' bytes follow `weights`, `out` has `outputs`
    // columns in `rows` rows of its own, scratch holds a token block and two panels of a column block.
    unsafe {
        match weights.layout() {
            Layout::Nibbles => level.run(Of::<{ Layout::Nibbles as usize }>(product)),
            Layout::CentredNibbles => level.run(Of::<{ Layout::CentredNibbles as usize }>(product)),
            Layout::Bytes => level.run(Of::<{ Layout::Bytes as usize }>(product)),
            Layout::Halves => level.run(Of::<{ Layout::Halves as usize }>(product)),
            Layout::Brains => level.run(Of::<{ Layout::Brains as usize }>(product)),
            Layout::Singles => level.run(Of::<{ Layout::Singles as usize }>(product)),
            Layout::WideNibbles => level.run(Of::<{ Layout::WideNibbles as usize }>(product)),
            Layout::WideBytes => level.run(Of::<{ Layout::WideBytes as usize }>(product)),
            Layout::SplitBytes => level.run(Of::<{ Layout::SplitBytes as usize }>(product)),
        }
    }
    affine::follow(level, then, out);
}

/// A product as the kernels see it: pointers and sizes.
#[derive(Clone, Copy)]
struct Product {
    x: *const f32,
    rows: usize,
    columns: usize,
    weights: *const u8,
    panel_bytes: usize,
    outputs: Outputs,
    unpacked: *mut f32,
}

/// A product over weights of one of [`LAYOUTS`].
#[derive(Clone, Copy)]
struct Of<const LAYOUT: usize>(Product);

impl<const LAYOUT: usize> Kernel for Of<LAYOUT> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        // SAFETY: the product's pointers, as `multiply` made them.
        unsafe { if self.0.rows > V::DIRECT_TOKENS { self.unpacked::<V>() } else { self.direct::<V>() } }
    }
}

impl<const LAYOUT: usize> Of<LAYOUT> {
    /// Few tokens: unpack in registers. As many panels side by side as there are registers for, since one chain of
    /// sums alone would wait for each addition.
    #[inline(always)]
    unsafe fn direct<V: Lanes>(self) {
        let rows = self.0.rows;
        // SAFETY: the product's pointers; tiles are as wide as the rows, or clamp them.
        unsafe {
            if V::ACCUMULATORS >= 24 {
                match rows {
                    1 => self.direct_tiles::<V, 1, 4>(),
                    2 => self.direct_tiles::<V, 2, 4>(),
                    3 => self.direct_tiles::<V, 3, 2>(),
                    4 => self.direct_tiles::<V, 4, 2>(),
                    5 | 6 => self.direct_tiles::<V, 6, 2>(),
                    _ => self.direct_tiles::<V, 8, 2>(),
                }
            } else {
                match rows {
                    1 => self.direct_tiles::<V, 1, 2>(),
                    _ => self.direct_tiles::<V, 2, 1>(),
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn direct_tiles<V: Lanes, const T: usize, const P: usize>(self) {
        let panels = self.0.outputs.panels();
        let mut panel = 0;
        // SAFETY: every tile is inside.
        unsafe {
            while panel + P <= panels {
                self.direct_tile::<V, T, P>(panel);
                panel += P;
            }
            while panel < panels {
                self.direct_tile::<V, T, 1>(panel);
                panel += 1;
            }
        }
    }

    #[inline(always)]
    unsafe fn direct_tile<V: Lanes, const T: usize, const P: usize>(self, panel: usize) {
        let product = self.0;
        let at = Tile { token: 0, tokens: product.rows, panel };
        // SAFETY: the product's pointers; the tile is inside.
        unsafe {
            let mut sums = product.outputs.sums::<V, T, P>(at);
            let x = product.tokens::<T>(at, 0);
            let weights = product.weights.add(panel * product.panel_bytes);
            for block in 0..product.columns / BLOCK {
                let bytes = LAYOUTS[LAYOUT].block_bytes();
                let weights = weights.add(block * bytes);
                let mut cursors = [Cursor::<V, LAYOUT>::open(weights); P];
                for p in 1..P {
                    cursors[p] = Cursor::open(weights.add(p * product.panel_bytes));
                }
                for group in 0..BLOCK / 8 {
                    for p in 0..P {
                        cursors[p].group(group);
                    }
                    for column in group * 8..group * 8 + 8 {
                        let mut w = [V::splat(0.0); P];
                        for p in 0..P {
                            w[p] = cursors[p].column(column);
                        }
                        for t in 0..T {
                            let x = V::splat(*x[t].add(block * BLOCK + column));
                            for p in 0..P {
                                sums[t][p] = V::fma(x, w[p], sums[t][p]);
                            }
                        }
                    }
                }
            }
            self.direct_rest::<V, T, P>(weights, x, &mut sums);
            product.outputs.store::<V, T, P>(at, sums);
        }
    }

    /// The columns after the last whole block; only plain layouts have any.
    #[inline(always)]
    unsafe fn direct_rest<V: Lanes, const T: usize, const P: usize>(
        self,
        weights: *const u8,
        x: [*const f32; T],
        sums: &mut [[V::F; P]; T],
    ) {
        let (product, layout) = (self.0, LAYOUTS[LAYOUT]);
        let first = product.columns / BLOCK * BLOCK;
        if !layout.is_plain() || first == product.columns {
            return;
        }
        for p in 0..P {
            // SAFETY: the last block is packed whole; the inputs' columns are counted.
            unsafe {
                let block = weights.add(p * product.panel_bytes + first / BLOCK * layout.block_bytes());
                let cursor = Cursor::<V, LAYOUT>::open(block);
                for column in 0..product.columns - first {
                    let w = cursor.column(column);
                    for t in 0..T {
                        sums[t][p] = V::fma(V::splat(*x[t].add(first + column)), w, sums[t][p]);
                    }
                }
            }
        }
    }

    /// Many tokens: unpack a strip of weights once, then run every tile of a token block over it. Panels that are left
    /// over by tiles of three are computed as so few.
    #[inline(always)]
    unsafe fn unpacked<V: Lanes>(self) {
        let panels = self.0.outputs.panels();
        let mut panel = 0;
        // SAFETY: the product's pointers; panels are inside their count.
        unsafe {
            while panel < panels {
                panel += match (V::ACCUMULATORS >= 24, panels - panel) {
                    (true, 1) => self.blocks::<V, 16, 8, 4, 1>(panel),
                    (true, 2) => self.blocks::<V, 12, 8, 4, 2>(panel),
                    (true, _) => self.blocks::<V, 8, 6, 4, TILE_PANELS>(panel),
                    (false, _) => self.blocks::<V, 6, 4, 2, 1>(panel),
                };
            }
        }
    }

    /// `P` panels in tiles of `T` tokens; a rest of tokens takes the smallest of `T`, `M` and `S` that holds it. Returns
    /// how many panels it did.
    #[inline(always)]
    unsafe fn blocks<V: Lanes, const T: usize, const M: usize, const S: usize, const P: usize>(
        self,
        panel: usize,
    ) -> usize {
        let product = self.0;
        for first in (0..product.rows).step_by(BAND_ROWS) {
            let rows = BAND_ROWS.min(product.rows - first);
            for column in (0..product.columns).step_by(COLUMN_BLOCK) {
                let columns = COLUMN_BLOCK.min(product.columns - column);
                let outputs = product.outputs.of_part(column == 0, column + columns == product.columns);
                // SAFETY: the product's pointers; every block is inside its counts.
                unsafe {
                    let weights = match LAYOUTS[LAYOUT] {
                        Layout::Singles => Columns::of_panels(&product, panel, column),
                        _ => self.unpack::<V, P>(panel, column, columns),
                    };
                    let strip = StripOf { first, rows, panel, column, columns, outputs };
                    product.strip::<V, T, M, S, P>(strip, weights);
                }
            }
        }
        P
    }

    /// Writes (columns, P, LANES) weights to scratch.
    #[inline(always)]
    unsafe fn unpack<V: Lanes, const P: usize>(self, panel: usize, column: usize, columns: usize) -> Columns<P> {
        let product = self.0;
        let bytes = LAYOUTS[LAYOUT].block_bytes();
        for (p, panel) in (panel..panel + P).enumerate() {
            for block in 0..columns.div_ceil(BLOCK) {
                // SAFETY: the product's pointers; `columns` is at most COLUMN_BLOCK, and the last block is packed whole.
                unsafe {
                    let weights = product.weights.add(panel * product.panel_bytes);
                    let mut cursor = Cursor::<V, LAYOUT>::open(weights.add((column / BLOCK + block) * bytes));
                    for group in 0..BLOCK / 8 {
                        cursor.group(group);
                        for k in group * 8..group * 8 + 8 {
                            let w = cursor.column(k);
                            V::store(product.unpacked.add(((block * BLOCK + k) * P + p) * LANES), w);
                        }
                    }
                }
            }
        }
        Columns { of: std::array::from_fn(|p| product.unpacked.wrapping_add(p * LANES).cast_const()), step: P * LANES }
    }
}

/// Unpacked weights of `P` panels, column after column: the first of each, and how far the next is.
#[derive(Clone, Copy)]
struct Columns<const P: usize> {
    of: [*const f32; P],
    step: usize,
}

impl<const P: usize> Columns<P> {
    /// Panels of singles are unpacked as they are.
    #[inline(always)]
    fn of_panels(product: &Product, panel: usize, column: usize) -> Self {
        let of = |p: usize| product.weights.wrapping_add((panel + p) * product.panel_bytes).cast::<f32>();
        Columns { of: std::array::from_fn(|p| of(p).wrapping_add(column * LANES)), step: LANES }
    }
}

/// One strip of unpacked weights against one block of tokens.
#[derive(Clone, Copy)]
struct StripOf {
    first: usize,
    rows: usize,
    panel: usize,
    column: usize,
    columns: usize,
    outputs: Outputs,
}

impl Product {
    #[inline(always)]
    unsafe fn strip<V: Lanes, const T: usize, const M: usize, const S: usize, const P: usize>(
        &self,
        strip: StripOf,
        weights: Columns<P>,
    ) {
        let mut token = 0;
        while token < strip.rows {
            // SAFETY: the strip's weights are in scratch, its tokens in the input.
            unsafe {
                token += match tile_width(strip.rows - token, [T, M, S]) {
                    width if width == T => self.tile::<V, T, P>(strip, token, weights),
                    width if width == M => self.tile::<V, M, P>(strip, token, weights),
                    _ => self.tile::<V, S, P>(strip, token, weights),
                };
            }
        }
    }

    /// Returns how many tokens it did.
    #[inline(always)]
    unsafe fn tile<V: Lanes, const T: usize, const P: usize>(
        &self,
        strip: StripOf,
        token: usize,
        weights: Columns<P>,
    ) -> usize {
        let at = Tile { token: strip.first + token, tokens: T.min(strip.rows - token), panel: strip.panel };
        // SAFETY: scratch holds the strip's weights, the input the tile's tokens; outputs are checked by `sums` and
        // `store`.
        unsafe {
            let mut sums = strip.outputs.sums::<V, T, P>(at);
            let x = self.tokens::<T>(at, strip.column);
            for column in 0..strip.columns {
                let mut w = [V::splat(0.0); P];
                for (p, w) in w.iter_mut().enumerate() {
                    *w = V::load(weights.of[p].add(column * weights.step));
                }
                for t in 0..T {
                    let x = V::splat(*x[t].add(column));
                    for p in 0..P {
                        sums[t][p] = V::fma(x, w[p], sums[t][p]);
                    }
                }
            }
            strip.outputs.store::<V, T, P>(at, sums);
        }
        T
    }

    /// The inputs of a tile from a column on. A tile wider than its tokens computes the last one again.
    #[inline(always)]
    unsafe fn tokens<const T: usize>(&self, at: Tile, column: usize) -> [*const f32; T] {
        let mut x = [self.x; T];
        for (t, x) in x.iter_mut().enumerate() {
            let token = at.row(t);
            // SAFETY: the token and the column are inside of the input.
            *x = unsafe { self.x.add(token * self.columns + column) };
        }
        x
    }
}
