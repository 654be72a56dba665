//! Matrix products of digits with packed integers.
//!
//! Sums within a plane of a block are of integers, and so exact; planes are added in order, the first ones of a part of the
//! blocks before its second ones and its outliers, by fused multiply-adds. A row's result therefore depends on neither the
//! rows beside it, nor the tile, the level or the number of threads.

use super::affine::{self, Finish};
use super::cursor::Cursor;
use super::digits::{Digits, UNSIGNED};
use super::lanes::{Lanes, PARTS, fetch};
use super::linear::Scratch;
use super::panel::{BLOCK, LAYOUTS, Layout, Panels};
use super::tile::{Outputs, Tile};
use super::{Kernel, LANES, Level};
use crate::pool::Strip;

/// What is taken from the nibbles of [`Layout::CentredNibbles`].
const CENTRE: i32 = 8;
/// Words of four bytes of a lane in a block.
const WORDS: usize = BLOCK / 4;
/// Those of every lane in half a block.
const HALF: usize = WORDS / 2 * LANES;
/// Panels that share one reading of the inputs where registers suffice.
const PAIR: usize = 2;
/// Blocks of a part: so many are made ready at a time, nibbles of a pair of panels or parted bytes of one.
const READY: usize = 24;
/// Words of a block of parted bytes: what sums begin at comes after the bytes, for either half.
const PARTED: usize = 2 * PARTS + 2 * LANES;
/// Words that [`Scratch`] has room for at least.
pub(super) const ROOM: usize = READY * PARTED;
const _: () = assert!(PAIR * 2 * HALF <= PARTED, "a pair's nibbles have room");
/// Outputs that a strip of a product is best made of.
pub const STRIP_UNIT: usize = PAIR * LANES;

/// Writes the outputs of panels `panels` of `weights`, and what follows them, to the columns of `out`, the first of which
/// is the first row of the first panel. `rows` of inputs lie side by side, as [`digitise`](super::digits::digitise) wrote
/// them.
///
/// # Panics
/// When shapes disagree, or the weights are no integers.
pub fn multiply(
    level: Level,
    (inputs, rows): (&[Digits], usize),
    (weights, panels): (&Panels, std::ops::Range<usize>),
    (then, out): (Finish<'_>, &mut Strip<'_>),
    scratch: &mut Scratch,
) {
    let blocks = weights.columns() / BLOCK;
    assert!(!weights.layout().is_plain() && panels.end <= weights.count(), "panels of a matrix of integers");
    let planes = inputs.len() / (rows * blocks).max(1);
    assert_eq!(inputs.len(), rows * blocks * planes, "inputs fill their rows");
    let outputs = weights.rows().min(panels.end * LANES).saturating_sub(panels.start * LANES);
    let product = Product {
        inputs: inputs.as_ptr(),
        rows,
        blocks,
        weights: weights.bytes()[panels.start * weights.panel_bytes()..].as_ptr(),
        outputs: Outputs::of(out, rows, outputs, then),
        unpacks: level.unpacks(),
        ready: scratch.as_mut_ptr().cast(),
    };
    if outputs == 0 || rows == 0 {
        return;
    }
    // SAFETY: the assertions above: `inputs` holds rows * blocks * planes, the panels' bytes follow `weights`.
    unsafe {
        match planes {
            1 => product.run::<1>(level, weights.layout()),
            2 => product.run::<2>(level, weights.layout()),
            _ => panic!("numbers of one byte or two"),
        }
    }
    affine::follow(level, then, out);
}

/// A product as the kernels see it: pointers and sizes.
#[derive(Clone, Copy)]
struct Product {
    inputs: *const Digits,
    rows: usize,
    /// Of a row.
    blocks: usize,
    weights: *const u8,
    outputs: Outputs,
    /// Whether the nibbles that many rows meet become bytes first.
    unpacks: bool,
    /// Room for [`READY`] blocks.
    ready: *mut u32,
}

impl Product {
    unsafe fn run<const PLANES: usize>(self, level: Level, layout: Layout) {
        // SAFETY: the caller's pointers.
        unsafe {
            match layout {
                Layout::Nibbles => level.run(Of::<{ Layout::Nibbles as usize }, PLANES>(self)),
                Layout::CentredNibbles => level.run(Of::<{ Layout::CentredNibbles as usize }, PLANES>(self)),
                Layout::Bytes => level.run(Of::<{ Layout::Bytes as usize }, PLANES>(self)),
                Layout::WideNibbles => level.run(Of::<{ Layout::WideNibbles as usize }, PLANES>(self)),
                Layout::WideBytes => level.run(Of::<{ Layout::WideBytes as usize }, PLANES>(self)),
                Layout::SplitBytes => level.run(Of::<{ Layout::SplitBytes as usize }, PLANES>(self)),
                Layout::Halves | Layout::Brains | Layout::Singles => unreachable!("not integers"),
            }
        }
    }
}

/// A product over weights of one of [`LAYOUTS`], of inputs of so many planes.
#[derive(Clone, Copy)]
struct Of<const LAYOUT: usize, const PLANES: usize>(Product);

impl<const LAYOUT: usize, const PLANES: usize> Kernel for Of<LAYOUT, PLANES> {
    const MULTIPLIES_BYTES: bool = true;

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let panels = self.0.outputs.panels();
        let mut panel = 0;
        // SAFETY: the product's pointers; panels are inside their count.
        unsafe {
            while panel + PAIR <= panels && V::ACCUMULATORS >= 24 {
                self.panels::<V, 6, PAIR>(panel);
                panel += PAIR;
            }
            while panel < panels {
                match V::INTEGER_ROWS {
                    1 => self.panels::<V, 1, 1>(panel),
                    _ => self.panels::<V, 4, 1>(panel),
                }
                panel += 1;
            }
        }
    }
}

/// Some blocks of some panels.
#[derive(Clone, Copy)]
struct Part {
    panel: usize,
    /// The first block, and where they end.
    first: usize,
    end: usize,
}

impl<const LAYOUT: usize, const PLANES: usize> Of<LAYOUT, PLANES> {
    /// Words of a block that was made ready.
    const READY_WORDS: usize = if LAYOUTS[LAYOUT].is_nibbles() { 2 * HALF } else { PARTED };

    /// `P` panels, which stay in the first-level cache while all rows pass them, at most `T` together. For many rows they
    /// may be made ready once; otherwise each tile does it for itself, beside its products. Parts are the same either way,
    /// since the order of sums is.
    #[inline(always)]
    unsafe fn panels<V: Lanes, const T: usize, const P: usize>(self, panel: usize) {
        let Product { rows, blocks, outputs, unpacks, .. } = self.0;
        let readies = if LAYOUTS[LAYOUT].is_nibbles() { unpacks } else { V::PARTS_BYTES && P == 1 } && rows > 3 * T;
        for first in (0..blocks).step_by(READY) {
            let part = Part { panel, first, end: blocks.min(first + READY) };
            let outputs = outputs.of_part(first == 0, part.end == blocks);
            // SAFETY: the product's pointers.
            unsafe {
                if readies {
                    self.ready::<V, P>(part);
                    self.rows::<V, T, P, true>(part, outputs);
                } else {
                    self.rows::<V, T, P, false>(part, outputs);
                }
            }
        }
    }

    /// Makes a part ready, (blocks, `P`): nibbles become bytes, words of four columns, and bytes are parted, each half.
    #[inline(always)]
    unsafe fn ready<V: Lanes, const P: usize>(self, part: Part) {
        let layout = LAYOUTS[LAYOUT];
        let mut to = self.0.ready;
        for block in part.first..part.end {
            // SAFETY: a part has at most as many blocks as scratch has room for.
            unsafe {
                for body in self.block_of::<P>(part.panel, block) {
                    let body: *const u32 = body.add(layout.scale_bytes()).cast();
                    if layout.is_nibbles() {
                        V::store_nibbles(to, body);
                    } else {
                        let first = V::part_bytes(to, body, V::splat_u32(0));
                        let last = if layout == Layout::SplitBytes { V::splat_u32(0) } else { first };
                        let last = V::part_bytes(to.add(PARTS), body.add(HALF), last);
                        V::store_u32(to.add(2 * PARTS), first);
                        V::store_u32(to.add(2 * PARTS + LANES), last);
                    }
                    to = to.add(Self::READY_WORDS);
                }
            }
        }
    }

    /// A block of each of `P` panels.
    #[inline(always)]
    fn block_of<const P: usize>(self, panel: usize, block: usize) -> [*const u8; P] {
        let bytes = LAYOUTS[LAYOUT].block_bytes();
        std::array::from_fn(|p| self.0.weights.wrapping_add(((panel + p) * self.0.blocks + block) * bytes))
    }

    /// All rows through a part, made ready where `READY` says so.
    #[inline(always)]
    unsafe fn rows<V: Lanes, const T: usize, const P: usize, const READY: bool>(self, part: Part, outputs: Outputs) {
        let mut row = 0;
        while row < self.0.rows {
            // SAFETY: the product's pointers; a tile is as wide as the rows that are left, or repeats the last of them.
            unsafe {
                row += match (T, self.0.rows - row) {
                    (1, _) | (_, 1) => self.tile::<V, 1, P, READY>(row, part, outputs),
                    (_, 2) => self.tile::<V, 2, P, READY>(row, part, outputs),
                    (_, 3) => self.tile::<V, 3, P, READY>(row, part, outputs),
                    (_, 4) => self.tile::<V, 4, P, READY>(row, part, outputs),
                    _ => self.tile::<V, T, P, READY>(row, part, outputs),
                };
            }
        }
    }

    /// The first planes of all rows of a tile, their second ones, if there are two, and then outliers row by row. Returns
    /// how many rows it did.
    #[inline(always)]
    unsafe fn tile<V: Lanes, const T: usize, const P: usize, const READY: bool>(
        self,
        row: usize,
        part: Part,
        outputs: Outputs,
    ) -> usize {
        let product = self.0;
        let at = Tile { token: row, tokens: T.min(product.rows - row), panel: part.panel };
        // The last rows leave the panels: the next ones are on their way meanwhile.
        let leaving = row + T >= product.rows;
        // SAFETY: the product's pointers; the tile is inside.
        unsafe {
            let mut sums = outputs.sums::<V, T, P>(at);
            let inputs: [*const Digits; T] = std::array::from_fn(|t| self.input(at.row(t), 0));
            for plane in 0..PLANES {
                for block in part.first..part.end {
                    if leaving && plane == 0 {
                        for next in self.block_of::<P>(part.panel + P, block) {
                            fetch::<V>(next, LAYOUTS[LAYOUT].block_bytes());
                        }
                    }
                    let x = inputs.map(|row| row.wrapping_add(plane * product.blocks + block));
                    Self::plane::<V, T, P, READY>(self.weights::<P, READY>(part, block), x, &mut sums);
                }
            }
            const { assert!(T <= 6, "every row's turn comes below") };
            self.outliers::<V, T, P, 0>(at, part, &mut sums);
            self.outliers::<V, T, P, 1>(at, part, &mut sums);
            self.outliers::<V, T, P, 2>(at, part, &mut sums);
            self.outliers::<V, T, P, 3>(at, part, &mut sums);
            self.outliers::<V, T, P, 4>(at, part, &mut sums);
            self.outliers::<V, T, P, 5>(at, part, &mut sums);
            outputs.store::<V, T, P>(at, sums);
        }
        T
    }

    /// Adds the products of the outliers of row `ROW` of a tile; minima were added with the sums of their blocks. The row is
    /// a constant: sums that are indexed by a loop of so much would leave their registers.
    #[inline(always)]
    unsafe fn outliers<V: Lanes, const T: usize, const P: usize, const ROW: usize>(
        self,
        at: Tile,
        part: Part,
        sums: &mut [[V::F; P]; T],
    ) {
        if PLANES == 2 || ROW >= T || ROW >= at.tokens {
            return;
        }
        let row = at.row(ROW);
        // SAFETY: the product's pointers; a place is inside of its block.
        unsafe {
            let mut own = sums[ROW];
            let mut block = self.next_outlier(row, part.first);
            while block < part.end {
                let x = &*self.input(row, block);
                let (number, place) = (V::splat(x.outlier), x.place as usize);
                let weights = self.block_of::<P>(part.panel, block);
                for p in 0..P {
                    let mut weights = Cursor::<V, LAYOUT>::open(weights[p]);
                    weights.group(place / 8);
                    own[p] = V::fma(V::mul(number, weights.integers(place)), weights.scales(), own[p]);
                }
                block = self.next_outlier(row, block + 1);
            }
            sums[ROW] = own;
        }
    }

    /// The first block of a row from `block` on that has an outlier; past the row where there is none.
    #[inline(always)]
    unsafe fn next_outlier(self, row: usize, block: usize) -> usize {
        if block == self.0.blocks {
            return usize::MAX;
        }
        // SAFETY: the product's inputs hold the block.
        let ahead = unsafe { (*self.input(row, block)).ahead };
        block.saturating_add(ahead as usize)
    }

    /// The first plane of a block of a row; the second one as many further as a row has blocks.
    #[inline(always)]
    fn input(self, row: usize, block: usize) -> *const Digits {
        self.0.inputs.wrapping_add(row * self.0.blocks * PLANES + block)
    }

    /// A block of each of `P` panels, and where its integers are.
    #[inline(always)]
    fn weights<const P: usize, const READY: bool>(self, part: Part, block: usize) -> ([*const u8; P], [*const u32; P]) {
        let weights = self.block_of(part.panel, block);
        let body = match READY {
            true => std::array::from_fn(|p| {
                self.0.ready.wrapping_add(((block - part.first) * P + p) * Self::READY_WORDS).cast_const()
            }),
            false => weights.map(|block| block.wrapping_add(LAYOUTS[LAYOUT].scale_bytes()).cast()),
        };
        (weights, body)
    }

    /// Adds the products of a plane of each row.
    #[inline(always)]
    unsafe fn plane<V: Lanes, const T: usize, const P: usize, const READY: bool>(
        (weights, body): ([*const u8; P], [*const u32; P]),
        x: [*const Digits; T],
        sums: &mut [[V::F; P]; T],
    ) {
        let layout = LAYOUTS[LAYOUT];
        // SAFETY: each of `weights` is a whole block of the layout.
        unsafe {
            let signed = V::BYTES_CENTRE == 0;
            let whole = |x: &Digits| if signed { 0 } else { x.begin };
            let half = |x: &Digits, half: usize| -V::BYTES_CENTRE * x.halves[half];
            match layout {
                Layout::Nibbles => {
                    let dots = Self::nibbles::<V, T, P, READY>(body, x, |_| 0);
                    add::<V, T, P>(dots, x, halves::<V, P>(weights, 0), sums);
                    add_minima::<V, T, P>(halves::<V, P>(weights, LANES), x, sums);
                }
                Layout::WideNibbles => {
                    let dots = Self::nibbles::<V, T, P, READY>(body, x, |_| 0);
                    add::<V, T, P>(dots, x, singles::<V, P>(weights, 0), sums);
                    add_minima::<V, T, P>(singles::<V, P>(weights, LANES), x, sums);
                }
                Layout::CentredNibbles => {
                    let dots = Self::nibbles::<V, T, P, READY>(body, x, |x| x.begin / (UNSIGNED / CENTRE));
                    add::<V, T, P>(dots, x, halves::<V, P>(weights, 0), sums);
                }
                Layout::Bytes => {
                    let dots = Self::bytes::<V, T, P, READY>(body, x, whole);
                    add::<V, T, P>(dots, x, halves::<V, P>(weights, 0), sums);
                }
                Layout::WideBytes => {
                    let dots = Self::bytes::<V, T, P, READY>(body, x, whole);
                    add::<V, T, P>(dots, x, singles::<V, P>(weights, 0), sums);
                    add_minima::<V, T, P>(singles::<V, P>(weights, LANES), x, sums);
                }
                _ => {
                    let mut first = Self::begin::<V, T, P, READY, 0>(body, x, |x| half(x, 0));
                    Self::half::<V, T, P, READY, 0>(body, x, &mut first);
                    add::<V, T, P>(first, x, singles::<V, P>(weights, 0), sums);
                    let mut last = Self::begin::<V, T, P, READY, 1>(body, x, |x| half(x, 1));
                    Self::half::<V, T, P, READY, 1>(body, x, &mut last);
                    add::<V, T, P>(last, x, singles::<V, P>(weights, LANES), sums);
                }
            }
        }
    }

    /// Each lane's 32 nibbles times the digits of each row, and what that is added to.
    #[inline(always)]
    unsafe fn nibbles<V: Lanes, const T: usize, const P: usize, const READY: bool>(
        body: [*const u32; P],
        x: [*const Digits; T],
        from: impl Fn(&Digits) -> i32,
    ) -> [[V::U; P]; T] {
        // SAFETY: the caller's block.
        unsafe {
            let mut dots = begin::<V, T, P>(x, from);
            V::dot_nibbles::<T, P, READY>(body, x.map(|x| digits(x)), &mut dots);
            dots
        }
    }

    /// Each lane's 32 signed bytes times the digits of each row, and what that is added to.
    #[inline(always)]
    unsafe fn bytes<V: Lanes, const T: usize, const P: usize, const READY: bool>(
        body: [*const u32; P],
        x: [*const Digits; T],
        from: impl Fn(&Digits) -> i32,
    ) -> [[V::U; P]; T] {
        // SAFETY: the caller's block.
        unsafe {
            let mut dots = Self::begin::<V, T, P, READY, 1>(body, x, from);
            if READY {
                V::dot_parts(body, x.map(|x| digits(x)), WORDS, &mut dots);
            } else {
                Self::half::<V, T, P, READY, 0>(body, x, &mut dots);
                Self::half::<V, T, P, READY, 1>(body, x, &mut dots);
            }
            dots
        }
    }

    /// What sums of bytes begin at: what parting a half says, or what is said of each row.
    #[inline(always)]
    unsafe fn begin<V: Lanes, const T: usize, const P: usize, const READY: bool, const WHICH: usize>(
        body: [*const u32; P],
        x: [*const Digits; T],
        from: impl Fn(&Digits) -> i32,
    ) -> [[V::U; P]; T] {
        // SAFETY: the caller's block.
        unsafe {
            if !READY {
                return begin::<V, T, P>(x, from);
            }
            let mut dots = [[V::splat_u32(0); P]; T];
            for p in 0..P {
                let first = V::load_u32(body[p].add(2 * PARTS + WHICH * LANES));
                for t in 0..T {
                    dots[t][p] = first;
                }
            }
            dots
        }
    }

    /// Adds each lane's 16 signed bytes of a half of the block times the digits of each row. The half is a constant: a
    /// loop over both would not be unrolled.
    #[inline(always)]
    unsafe fn half<V: Lanes, const T: usize, const P: usize, const READY: bool, const WHICH: usize>(
        body: [*const u32; P],
        x: [*const Digits; T],
        dots: &mut [[V::U; P]; T],
    ) {
        // SAFETY: the caller's block, which has two halves.
        unsafe {
            let x = x.map(|x| digits(x).wrapping_add(WHICH * LANES));
            match READY {
                true => V::dot_parts(body.map(|body| body.wrapping_add(WHICH * PARTS)), x, WORDS / 2, dots),
                false => V::dot_bytes(body.map(|body| body.wrapping_add(WHICH * HALF)), x, dots),
            }
        }
    }
}

/// Sixteen numbers of half precision of each of some blocks, from the `place`th on.
#[inline(always)]
unsafe fn halves<V: Lanes, const P: usize>(blocks: [*const u8; P], place: usize) -> [V::F; P] {
    // SAFETY: the caller's blocks hold them.
    unsafe {
        let mut numbers = [V::splat(0.0); P];
        for p in 0..P {
            numbers[p] = V::load_f16(blocks[p].cast::<u16>().add(place));
        }
        numbers
    }
}

/// Sixteen numbers of single precision of each of some blocks, from the `place`th on.
#[inline(always)]
unsafe fn singles<V: Lanes, const P: usize>(blocks: [*const u8; P], place: usize) -> [V::F; P] {
    // SAFETY: the caller's blocks hold them.
    unsafe {
        let mut numbers = [V::splat(0.0); P];
        for p in 0..P {
            numbers[p] = V::load(blocks[p].cast::<f32>().add(place));
        }
        numbers
    }
}

/// Sums that begin at what is said of each row.
#[inline(always)]
unsafe fn begin<V: Lanes, const T: usize, const P: usize>(
    x: [*const Digits; T],
    from: impl Fn(&Digits) -> i32,
) -> [[V::U; P]; T] {
    // SAFETY: the caller's inputs.
    unsafe {
        let mut dots = [[V::splat_u32(0); P]; T];
        for t in 0..T {
            let first = V::splat_u32(from(&*x[t]).cast_unsigned());
            for p in 0..P {
                dots[t][p] = first;
            }
        }
        dots
    }
}

/// Adds sums of a block under its scales and those of the rows.
#[inline(always)]
unsafe fn add<V: Lanes, const T: usize, const P: usize>(
    dots: [[V::U; P]; T],
    x: [*const Digits; T],
    scales: [V::F; P],
    sums: &mut [[V::F; P]; T],
) {
    for t in 0..T {
        for p in 0..P {
            // SAFETY: the caller's inputs.
            unsafe {
                let dot = V::mul(V::from_i32(dots[t][p]), V::splat((*x[t]).scale));
                sums[t][p] = V::fma(dot, scales[p], sums[t][p]);
            }
        }
    }
}

/// Adds what all weights of a block have in common, times the sums of the rows.
#[inline(always)]
unsafe fn add_minima<V: Lanes, const T: usize, const P: usize>(
    minima: [V::F; P],
    x: [*const Digits; T],
    sums: &mut [[V::F; P]; T],
) {
    for t in 0..T {
        for p in 0..P {
            // SAFETY: the caller's inputs.
            unsafe { sums[t][p] = V::fma(V::splat((*x[t]).sum), minima[p], sums[t][p]) };
        }
    }
}

/// The first of a plane's digits.
#[inline(always)]
unsafe fn digits(x: *const Digits) -> *const i8 {
    // SAFETY: the caller's plane; no reference is made.
    unsafe { (&raw const (*x).digits).cast() }
}

#[cfg(test)]
mod tests;
