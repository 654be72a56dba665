//! Products of signed bytes: one scale for each row of inputs, and one for each output.
//!
//! Sums are of integers over a whole row, and so exact: a row's result depends on neither the rows beside it, nor the
//! tile, the level or the number of threads. Nothing is scaled on the way, so that this takes little over half the
//! instructions of [`integer`](super::integer), whose scales are of 32 columns; it is as much coarser.

use std::ops::Range;

use super::affine::{self, Finish};
use super::arena::{Arena, Use};
use super::lanes::Lanes;
use super::panel::byte_at;
use super::rows::load;
use super::tile::{Outputs, Tile, tile_width};
use super::{Kernel, LANES, Level};
use crate::Error;
use crate::backend::{Matrix, each_row};
use crate::pool::Strip;

/// The greatest digit.
const GREATEST: f32 = 127.0;
/// A row without larger differences counts as its middle: the inverse of its scale would be none.
const LEAST: f32 = 1e-30;
/// Bytes of a panel for each cell of a row.
const PANEL_CELL: usize = LANES * LANES;

/// Outputs that are best computed together.
pub const STRIP_UNIT: usize = 4 * LANES;

/// A packed matrix (rows, columns): (panels of 16 rows, cells of 16 columns, words of 4 columns, rows), and for each row
/// what one stands for and what all of its digits add up to.
#[derive(Debug)]
pub struct Bytes {
    rows: usize,
    columns: usize,
    digits: Arena<u8>,
    /// What each column's inputs are multiplied by, and its weights divided: the root of the greatest of these, so that a
    /// column of small weights, which goes with large inputs, does not vanish beside the others. After Nagel et al.,
    /// arXiv 1906.04721, section 4.1.
    factors: Arena<f32>,
    scales: Arena<f32>,
    sums: Arena<f32>,
}

impl Bytes {
    /// Packs matrices of equal columns, the rows of one after those of the other; `round` changes what a row holds.
    ///
    /// # Errors
    /// When rows are not whole or not equally long, or there is no memory.
    pub fn pack(parts: &[Matrix<'_>], round: impl Fn(&mut [f32])) -> Result<Bytes, Error> {
        let (columns, rows) = (parts.first().map_or(0, |part| part.columns), parts.iter().map(Matrix::rows).sum());
        let padded = usize::next_multiple_of(rows, LANES);
        let digits = Arena::zeroed(padded.saturating_mul(columns.next_multiple_of(LANES)), Use::Dense)?;
        let [scales, sums] = [Arena::zeroed(padded, Use::Dense)?, Arena::zeroed(padded, Use::Dense)?];
        let factors = Arena::zeroed(columns, Use::Dense)?;
        let mut bytes = Bytes { rows, columns, digits, factors, scales, sums };
        each_row(parts, |_, numbers| {
            round(numbers);
            bytes.factors.iter_mut().zip(numbers).for_each(|(most, number)| *most = number.abs().max(*most));
        })?;
        bytes.factors.iter_mut().for_each(|most| *most = if *most > LEAST { most.sqrt() } else { 1.0 });
        each_row(parts, |row, numbers| {
            round(numbers);
            bytes.put(row, numbers);
        })?;
        Ok(bytes)
    }

    fn put(&mut self, row: usize, numbers: &mut [f32]) {
        numbers.iter_mut().zip(self.factors.iter()).for_each(|(number, factor)| *number /= factor);
        let size = numbers.iter().fold(0.0_f32, |size, number| size.max(number.abs()));
        let inverse = if size > LEAST { GREATEST / size } else { 0.0 };
        let panel = self.columns.div_ceil(LANES) * PANEL_CELL;
        let panel = &mut self.digits[row / LANES * panel..][..panel];
        let mut sum = 0.0;
        for (column, number) in numbers.iter().enumerate() {
            let digit = (number * inverse).round_ties_even();
            panel[byte_at(column, row % LANES)] = (digit as i8).cast_unsigned();
            sum += digit;
        }
        (self.scales[row], self.sums[row]) = (size / GREATEST, sum);
    }

    /// Output rows, without padding.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Cells of a row of inputs.
    #[must_use]
    pub fn cells(&self) -> usize {
        1 + self.columns.div_ceil(LANES)
    }
}

/// Sixteen digits of a row of inputs. The first cell of a row says what they stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct Cell([i8; LANES]);

impl Cell {
    /// Zeros.
    pub const ZERO: Cell = Cell([0; LANES]);
}

/// What the digits of a row stand for: `scale * digit + middle`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Head {
    scale: f32,
    middle: f32,
    /// Of all digits.
    sum: i32,
}

const _: () = assert!(size_of::<Head>() <= size_of::<Cell>() && align_of::<Head>() <= align_of::<Cell>());

/// Writes a row of inputs of a matrix as cells: the least of them becomes -127, the greatest 127.
///
/// # Panics
/// When it is not as wide as the matrix, or `out` has not its cells.
pub fn code(level: Level, x: &[f32], weights: &Bytes, out: &mut [Cell]) {
    assert!(x.len() == weights.columns && out.len() == weights.cells(), "cells of a row");
    // SAFETY: the cells that the numbers fill, and the head.
    unsafe { level.run(Code { x, factors: &weights.factors, out }) };
}

struct Code<'a> {
    x: &'a [f32],
    factors: &'a [f32],
    out: &'a mut [Cell],
}

impl Kernel for Code<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Code { x, factors, out } = self;
        // SAFETY: every access is inside the row or its cells; the head fits its cell.
        unsafe {
            let (least, greatest) = range::<V>(x, factors);
            // Halves, so that no difference overflows.
            let (half, middle) = (greatest * 0.5 - least * 0.5, greatest * 0.5 + least * 0.5);
            let (scale, inverse) = if half > LEAST { (half / GREATEST, GREATEST / half) } else { (0.0, 0.0) };
            let mut sums = V::splat(0.0);
            for (cell, at) in (0..x.len()).step_by(LANES).enumerate() {
                let away = V::sub(V::mul(load::<V>(x, at), load::<V>(factors, at)), V::splat(middle));
                let mut digits = V::round(V::mul(away, V::splat(inverse)));
                if x.len() - at < LANES {
                    digits = V::keep_first(digits, x.len() - at, 0.0);
                }
                sums = V::add(sums, digits);
                V::store_i8(out[1 + cell].0.as_mut_ptr(), digits);
            }
            // So small integers are exact in any order.
            let head = Head { scale, middle, sum: V::sum(sums) as i32 };
            out.as_mut_ptr().cast::<Head>().write(head);
        }
    }
}

/// The least and the greatest of a row.
#[inline(always)]
unsafe fn range<V: Lanes>(x: &[f32], factors: &[f32]) -> (f32, f32) {
    // SAFETY: every access is inside the row.
    unsafe {
        let none = f32::MIN;
        let (mut most, mut least) = (V::splat(none), V::splat(none));
        for at in (0..x.len()).step_by(LANES) {
            let (mut x, left) = (V::mul(load::<V>(x, at), load::<V>(factors, at)), x.len() - at);
            let mut minus = V::sub(V::splat(0.0), x);
            if left < LANES {
                (x, minus) = (V::keep_first(x, left, none), V::keep_first(minus, left, none));
            }
            (most, least) = (V::max(x, most), V::max(minus, least));
        }
        (-V::greatest(least), V::greatest(most))
    }
}

/// Writes the outputs `outputs` of rows of inputs, each as [`code`] wrote it, and what follows them.
///
/// # Panics
/// When shapes disagree, or the outputs do not begin with a panel.
pub fn multiply(
    level: Level,
    inputs: &[Cell],
    (weights, outputs): (&Bytes, Range<usize>),
    then: Finish<'_>,
    out: &mut Strip<'_>,
) {
    let (rows, first, cells) = (out.rows(), outputs.start / LANES, weights.cells());
    assert!(outputs.start.is_multiple_of(LANES) && outputs.end <= weights.rows, "outputs of the matrix");
    assert!(out.columns() == outputs.len() && inputs.len() == rows * cells, "rows of inputs");
    if rows == 0 || outputs.is_empty() {
        return;
    }
    let product = Product {
        inputs: inputs.as_ptr(),
        rows,
        cells,
        digits: weights.digits[first * (cells - 1) * PANEL_CELL..].as_ptr(),
        scales: &weights.scales[outputs.start..],
        sums: &weights.sums[outputs.start..],
        outputs: Outputs::of(out, rows, outputs.len(), then),
    };
    // SAFETY: the assertions above: `inputs` holds rows * cells, and the panels' bytes follow `digits`.
    unsafe { level.run(product) };
    affine::follow(level, then, out);
}

/// A product as the kernels see it, from its first output on.
#[derive(Clone, Copy)]
struct Product<'a> {
    inputs: *const Cell,
    rows: usize,
    /// Of a row.
    cells: usize,
    digits: *const u8,
    /// Of whole panels.
    scales: &'a [f32],
    sums: &'a [f32],
    outputs: Outputs,
}

impl Kernel for Product<'_> {
    const MULTIPLIES_BYTES: bool = true;

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let panels = self.outputs.panels();
        let mut panel = 0;
        // SAFETY: the product's pointers; panels are inside their count.
        unsafe {
            while panel < panels {
                panel += match (V::ACCUMULATORS >= 24, panels - panel) {
                    (true, 4..) => self.panels::<V, 6, 4, 4>(panel),
                    (true, 2..) => self.panels::<V, 12, 4, 2>(panel),
                    (true, _) => self.panels::<V, 16, 8, 1>(panel),
                    (false, _) => self.panels::<V, 4, 2, 1>(panel),
                };
            }
        }
    }
}

impl Product<'_> {
    /// `P` panels, which stay in the cache while all rows pass them, `T`, `M` or one at a time. Returns `P`.
    #[inline(always)]
    unsafe fn panels<V: Lanes, const T: usize, const M: usize, const P: usize>(self, panel: usize) -> usize {
        let mut row = 0;
        while row < self.rows {
            // SAFETY: the product's pointers; a tile is as wide as the rows that are left, or repeats the last of them.
            unsafe {
                row += match tile_width(self.rows - row, [T, M, 1]) {
                    width if width == T => self.tile::<V, T, P>(row, panel),
                    width if width == M => self.tile::<V, M, P>(row, panel),
                    _ => self.tile::<V, 1, P>(row, panel),
                };
            }
        }
        P
    }

    /// Returns how many rows it did.
    #[inline(always)]
    unsafe fn tile<V: Lanes, const T: usize, const P: usize>(self, row: usize, panel: usize) -> usize {
        let at = Tile { token: row, tokens: T.min(self.rows - row), panel };
        let inputs: [*const Cell; T] = std::array::from_fn(|t| self.inputs.wrapping_add(at.row(t) * self.cells));
        let panel_bytes = (self.cells - 1) * PANEL_CELL;
        let digits: [*const u8; P] = std::array::from_fn(|p| self.digits.wrapping_add((panel + p) * panel_bytes));
        // SAFETY: the product's pointers; the tile is inside.
        unsafe {
            let mut dots = [[V::splat_u32(0); P]; T];
            for cell in 0..self.cells - 1 {
                let body = digits.map(|panel| panel.wrapping_add(cell * PANEL_CELL).cast());
                V::dot_bytes(body, inputs.map(|x| x.wrapping_add(1 + cell).cast()), &mut dots);
            }
            let mut sums = self.outputs.sums::<V, T, P>(at);
            for p in 0..P {
                let first = (panel + p) * LANES;
                let (scales, of_digits) = (load::<V>(self.scales, first), load::<V>(self.sums, first));
                for t in 0..T {
                    let head = *inputs[t].cast::<Head>();
                    let centre = V::splat_u32((V::BYTES_CENTRE * head.sum).cast_unsigned());
                    let dot = V::from_i32(V::sub_u32(dots[t][p], centre));
                    let product = V::fma(dot, V::splat(head.scale), V::mul(of_digits, V::splat(head.middle)));
                    sums[t][p] = V::fma(product, scales, sums[t][p]);
                }
            }
            self.outputs.store::<V, T, P>(at, sums);
        }
        T
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Format;

    /// A matrix of one row of ones.
    fn ones(columns: usize) -> Bytes {
        let data = 1.0_f32.to_le_bytes().repeat(columns);
        Bytes::pack(&[Matrix { format: Format::F32, columns, data: &data }], |_| {}).expect("a matrix")
    }

    /// The numbers that cells stand for.
    fn read(cells: &[Cell]) -> Vec<f32> {
        // SAFETY: `code` wrote the head.
        let head = unsafe { *cells.as_ptr().cast::<Head>() };
        let digits = || cells[1..].iter().flat_map(|cell| cell.0);
        assert_eq!(head.sum, digits().map(i32::from).sum::<i32>());
        digits().map(|digit| f32::from(digit) * head.scale + head.middle).collect()
    }

    #[test]
    fn a_row_is_within_half_a_digit_at_every_level() {
        for len in [1_usize, 3, 16, 27, 64, 1000] {
            let x: Vec<f32> = (0..len).map(|i| (i * 7919 % 997) as f32 - 98.0).collect();
            let mut first = vec![Cell::ZERO; 1 + len.div_ceil(LANES)];
            code(Level::Scalar, &x, &ones(len), &mut first);
            let (least, most) =
                (x.iter().copied().fold(f32::MAX, f32::min), x.iter().copied().fold(f32::MIN, f32::max));
            for (x, got) in x.iter().zip(read(&first)) {
                assert!((x - got).abs() <= (most - least) / 254.0 * 0.5001, "{x} is {got}");
            }
            for level in Level::all() {
                let mut other = vec![Cell::ZERO; first.len()];
                code(level, &x, &ones(len), &mut other);
                assert_eq!(first, other, "{}", level.name());
            }
        }
    }

    #[test]
    fn equal_numbers_are_their_middle_and_nothing_overflows() {
        for level in Level::all() {
            let mut cells = [Cell::ZERO; 2];
            code(level, &[3.25; 5], &ones(5), &mut cells);
            assert_eq!(read(&cells)[..5], [3.25; 5]);
            code(level, &[f32::MIN, 0.0, f32::MAX], &ones(3), &mut cells);
            assert_eq!(cells[1].0[..3], [-127, 0, 127]);
        }
    }
}
