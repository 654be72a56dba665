//! Packed integers as brain floats, in the squares of which a matrix unit multiplies.

use std::ops::Range;

use super::brains::{Line, SIDE};
use super::cursor::Cursor;
use super::lanes::{Lanes, fetch};
use super::panel::{BLOCK, LAYOUTS, Layout, Panels};
use super::{Kernel, LANES, Level};

/// Lines that 16 rows of a square take: pairs of columns.
const HALF: usize = SIDE / 2;
const _: () = assert!(BLOCK == SIDE && 2 * LANES == SIDE, "a square is a block of two panels");

/// Writes up to two panels as squares, block by block; what the other one of a square held it keeps. Each number is the
/// nearest brain float, of two that are as near the greater in size.
///
/// # Panics
/// When shapes disagree, or the weights are no integers.
pub(super) fn unpack(level: Level, weights: &Panels, panels: Range<usize>, squares: &mut [Line]) {
    let blocks = weights.columns() / BLOCK;
    assert!(panels.len() <= SIDE / LANES && panels.end <= weights.count(), "panels of a square");
    assert!(squares.len() == blocks * SIDE && !weights.layout().is_plain(), "a square for each block of integers");
    for (index, panel) in panels.enumerate() {
        let panel = &weights.bytes()[panel * weights.panel_bytes()..][..weights.panel_bytes()];
        let (ahead, to) = (weights.panel_bytes() * SIDE / LANES, squares[index * HALF..].as_mut_ptr());
        let half = Half { panel: panel.as_ptr(), blocks, ahead, to };
        // SAFETY: the panel has its blocks; each has half a square, of which the first begins at `to`.
        unsafe { half.run(level, weights.layout()) };
    }
}

/// A panel, and where its half of the first square is.
#[derive(Clone, Copy)]
struct Half {
    panel: *const u8,
    blocks: usize,
    /// Bytes to the panel that comes next to this place, which is on its way meanwhile.
    ahead: usize,
    to: *mut Line,
}

impl Half {
    unsafe fn run(self, level: Level, layout: Layout) {
        // SAFETY: the caller's pointers.
        unsafe {
            match layout {
                Layout::Nibbles => level.run(Of::<{ Layout::Nibbles as usize }>(self)),
                Layout::CentredNibbles => level.run(Of::<{ Layout::CentredNibbles as usize }>(self)),
                Layout::Bytes => level.run(Of::<{ Layout::Bytes as usize }>(self)),
                Layout::WideNibbles => level.run(Of::<{ Layout::WideNibbles as usize }>(self)),
                Layout::WideBytes => level.run(Of::<{ Layout::WideBytes as usize }>(self)),
                Layout::SplitBytes => level.run(Of::<{ Layout::SplitBytes as usize }>(self)),
                Layout::Halves | Layout::Brains | Layout::Singles => unreachable!("not integers"),
            }
        }
    }
}

/// A panel of one of [`LAYOUTS`].
struct Of<const LAYOUT: usize>(Half);

impl<const LAYOUT: usize> Kernel for Of<LAYOUT> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Half { panel, blocks, ahead, to } = self.0;
        let bytes = LAYOUTS[LAYOUT].block_bytes();
        for block in 0..blocks {
            // SAFETY: the caller's pointers; a block has four groups of eight columns, and half a square a line for two.
            unsafe {
                let block_of_panel = panel.add(block * bytes);
                fetch::<V>(block_of_panel.wrapping_add(ahead), bytes);
                let mut weights = Cursor::<V, LAYOUT>::open(block_of_panel);
                let lines = to.add(block * SIDE);
                for group in 0..BLOCK / 8 {
                    weights.group(group);
                    for pair in 0..4 {
                        let column = 8 * group + 2 * pair;
                        let (even, odd) = (weights.column(column), weights.column(column + 1));
                        V::store_brains(lines.add(column / 2).cast(), even, odd);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Matrix;
    use crate::quant::Format;
    use crate::simd::brains::place;

    #[test]
    fn every_format_is_rounded_to_its_places_at_every_level() {
        const COLUMNS: usize = 256;
        const ROWS: usize = 3 * LANES - 5;
        for format in [Format::Q4_0, Format::Q4_1, Format::Q5_0, Format::Q8_0, Format::Q4K, Format::Q5K, Format::Q6K] {
            let bytes = ROWS * COLUMNS / format.block_len() * format.block_bytes();
            let data: Vec<u8> = (0..bytes).map(|i| (i * 37 % 251) as u8 & 0xbf).collect();
            let weights = Panels::pack(&Matrix { format, columns: COLUMNS, data: &data }).unwrap();
            let mut row = vec![0.0; COLUMNS];
            for (level, first) in Level::all().into_iter().flat_map(|level| [(level, 0), (level, 2)]) {
                let mut squares = vec![Line([7; SIDE]); COLUMNS];
                unpack(level, &weights, first..weights.count().min(first + 2), &mut squares);
                for output in 0..SIDE.min(ROWS - first * LANES) {
                    weights.read_row(first * LANES + output, &mut row);
                    for (column, number) in row.iter().enumerate() {
                        let place = place(output, column % SIDE);
                        let found = squares[column / SIDE * SIDE + place / SIDE].0[place % SIDE];
                        let (found, nearest) = (half::bf16::from_bits(found), (number.to_bits() + 0x8000) >> 16 << 16);
                        let case = format!("{format:?} {} {output} {column}", level.name());
                        assert_eq!(found.to_f32(), f32::from_bits(nearest), "{case}");
                    }
                }
                let other = squares[HALF].0[0];
                assert_eq!(other == 7, first == 2, "only a panel that is there is written");
            }
        }
    }
}
