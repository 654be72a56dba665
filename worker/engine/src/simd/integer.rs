//! Matrix products of digits with packed integers.
//!
//! Sums within a block are of integers, and so exact; blocks are added in order, by fused multiply-adds. A row's result
//! therefore depends on neither the rows beside it, nor the tile, the level or the number of threads.

use super::digits::Digits;
use super::lanes::Lanes;
use super::panel::{BLOCK, LAYOUTS, Layout, Panels};
use super::tile::{Begin, Outputs, Tile, tile_width};
use super::{Kernel, LANES, Level};
use crate::pool::Strip;

/// Words of four columns, of 16 rows each, in a block.
const WORDS: usize = BLOCK / 4;

/// Writes the outputs of panels `panels` of `weights` to the columns of `out`, the first of which is the first row of
/// the first panel. `rows` of inputs lie side by side, whole blocks of as many planes each.
///
/// # Panics
/// When shapes disagree, or the weights are no integers.
pub fn multiply(
    level: Level,
    (inputs, rows): (&[Digits], usize),
    (weights, panels): (&Panels, std::ops::Range<usize>),
    (begin, out): (Begin, &mut Strip<'_>),
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
        planes,
        weights: weights.bytes()[panels.start * weights.panel_bytes()..].as_ptr(),
        outputs: Outputs::of(out, rows, outputs, begin),
    };
    if outputs == 0 || rows == 0 {
        return;
    }
    // SAFETY: the assertions above: `inputs` holds rows * blocks, the panels' bytes follow `weights`.
    unsafe {
        match weights.layout() {
            Layout::Nibbles => level.run(Of::<{ Layout::Nibbles as usize }>(product)),
            Layout::CentredNibbles => level.run(Of::<{ Layout::CentredNibbles as usize }>(product)),
            Layout::Bytes => level.run(Of::<{ Layout::Bytes as usize }>(product)),
            Layout::WideNibbles => level.run(Of::<{ Layout::WideNibbles as usize }>(product)),
            Layout::WideBytes => level.run(Of::<{ Layout::WideBytes as usize }>(product)),
            Layout::SplitBytes => level.run(Of::<{ Layout::SplitBytes as usize }>(product)),
            Layout::Halves | Layout::Brains | Layout::Singles => unreachable!("asserted above"),
        }
    }
}

/// A product as the kernels see it: pointers and sizes.
#[derive(Clone, Copy)]
struct Product {
    inputs: *const Digits,
    rows: usize,
    /// Of a row.
    blocks: usize,
    /// Of a block.
    planes: usize,
    weights: *const u8,
    outputs: Outputs,
}

/// A product over weights of one of [`LAYOUTS`].
#[derive(Clone, Copy)]
struct Of<const LAYOUT: usize>(Product);

impl<const LAYOUT: usize> Kernel for Of<LAYOUT> {
    /// A panel stays in the first-level cache while all rows pass it.
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        for panel in 0..self.0.outputs.panels() {
            let mut row = 0;
            while row < self.0.rows {
                let left = self.0.rows - row;
                // SAFETY: the product's pointers; a tile is as wide as the rows that are left, or clamps them.
                unsafe {
                    if V::ACCUMULATORS >= 24 && left > 4 {
                        row += match tile_width(left, [8, 6, 4]) {
                            8 => self.tile::<V, 8>(row, panel),
                            _ => self.tile::<V, 6>(row, panel),
                        };
                    } else {
                        row += match left {
                            1 => self.tile::<V, 1>(row, panel),
                            2 => self.tile::<V, 2>(row, panel),
                            3 => self.tile::<V, 3>(row, panel),
                            _ => self.tile::<V, 4>(row, panel),
                        };
                    }
                }
            }
        }
    }
}

impl<const LAYOUT: usize> Of<LAYOUT> {
    /// Returns how many rows it did.
    #[inline(always)]
    unsafe fn tile<V: Lanes, const T: usize>(self, row: usize, panel: usize) -> usize {
        let product = self.0;
        let bytes = LAYOUTS[LAYOUT].block_bytes();
        let at = Tile { token: row, tokens: T.min(product.rows - row), panel };
        // SAFETY: the product's pointers; the tile is inside.
        unsafe {
            let mut sums = product.outputs.sums::<V, T, 1>(at, product.outputs.begin);
            let inputs: [*const Digits; T] =
                std::array::from_fn(|t| product.inputs.wrapping_add(at.row(t) * product.blocks * product.planes));
            let weights = product.weights.add(panel * product.blocks * bytes);
            for block in 0..product.blocks {
                for plane in 0..product.planes {
                    let x: [&Digits; T] =
                        std::array::from_fn(|t| &*inputs[t].wrapping_add(block * product.planes + plane));
                    Self::block::<V, T>(weights.add(block * bytes), x, &mut sums);
                }
            }
            product.outputs.store::<V, T, 1>(at, sums);
        }
        T
    }

    /// Adds the products of one plane of a block.
    #[inline(always)]
    unsafe fn block<V: Lanes, const T: usize>(weights: *const u8, x: [&Digits; T], sums: &mut [[V::F; 1]; T]) {
        let layout = LAYOUTS[LAYOUT];
        // SAFETY: `weights` is a whole block of the layout.
        unsafe {
            let body = weights.add(layout.scale_bytes()).cast::<u32>();
            let (half, single) = (weights.cast::<u16>(), weights.cast::<f32>());
            let add = |sums: &mut [[V::F; 1]; T], products: [V::F; T], scale: V::F| {
                for t in 0..T {
                    sums[t][0] = V::fma(V::mul(products[t], V::splat(x[t].scale)), scale, sums[t][0]);
                }
            };
            let add_minimum = |sums: &mut [[V::F; 1]; T], minimum: V::F| {
                for t in 0..T {
                    sums[t][0] = V::fma(V::splat(x[t].sum), minimum, sums[t][0]);
                }
            };
            match layout {
                Layout::Nibbles | Layout::WideNibbles => {
                    let (scale, minimum) = match layout {
                        Layout::Nibbles => (V::load_f16(half), V::load_f16(half.add(LANES))),
                        _ => (V::load(single), V::load(single.add(LANES))),
                    };
                    add(sums, V::dot_nibbles(nibbles::<V>(body), x, 0), scale);
                    add_minimum(sums, minimum);
                }
                Layout::CentredNibbles => add(sums, V::dot_nibbles(nibbles::<V>(body), x, 8), V::load_f16(half)),
                Layout::Bytes => add(sums, V::dot_bytes(words::<V, WORDS>(body), x, 0), V::load_f16(half)),
                Layout::WideBytes => {
                    add(sums, V::dot_bytes(words::<V, WORDS>(body), x, 0), V::load(single));
                    add_minimum(sums, V::load(single.add(LANES)));
                }
                _ => {
                    let (first, last) = (words::<V, { WORDS / 2 }>(body), body.add(WORDS / 2 * LANES));
                    add(sums, V::dot_bytes(first, x, 0), V::load(single));
                    add(sums, V::dot_bytes(words::<V, { WORDS / 2 }>(last), x, 1), V::load(single.add(LANES)));
                }
            }
        }
    }
}

/// Words of four bytes: four columns of each row.
#[inline(always)]
unsafe fn words<V: Lanes, const N: usize>(body: *const u32) -> [V::U; N] {
    // SAFETY: the caller's body holds as many.
    std::array::from_fn(|word| unsafe { V::load_u32(body.add(word * LANES)) })
}

/// The same of words of eight nibbles: the lower of each byte are its first four columns.
#[inline(always)]
unsafe fn nibbles<V: Lanes>(body: *const u32) -> [V::U; WORDS] {
    // SAFETY: the caller's body holds half as many words.
    std::array::from_fn(|word| unsafe {
        let both = V::load_u32(body.add(word / 2 * LANES));
        if word % 2 == 0 { V::low_nibbles(both) } else { V::high_nibbles(both) }
    })
}
