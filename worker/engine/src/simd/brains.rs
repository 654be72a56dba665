//! Products of many rows by a processor's matrix unit, whose numbers are brain floats.
//!
//! A number of single precision is nearly the sum of two brain floats, the nearest one and what that leaves; of the four
//! products of two such sums the least adds nothing that single precision would show. So three passes of the unit are a
//! product of single precision, to some 2^-17 of it, and one pass is one of brain floats.
//!
//! Matrices lie in squares of 32 by 32. A row's result depends on neither the rows beside it nor the number of threads;
//! but a unit adds in an order of its own, so that results are not, to the bit, those of [`linear`](super::linear).

use std::ops::Range;

use super::affine::{Finish, finish};
#[cfg(target_arch = "x86_64")]
use super::amx::{Amx, Shaped};
use super::arena::{Arena, Use};
use super::{LANES, Level};
use crate::Error;
use crate::backend::{Matrix, each_row};
use crate::pool::Strip;
use crate::quant::Format;

/// Rows, columns and outputs of a square.
pub const SIDE: usize = 32;
/// Numbers of a square.
pub(super) const SQUARE: usize = SIDE * SIDE;

/// What multiplies squares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Plain Rust, by which any machine can be checked.
    Plain,
    /// Intel's.
    #[cfg(target_arch = "x86_64")]
    Amx(Amx),
}

/// How near a product is to one of single precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Closeness {
    /// Inputs and weights are rounded to a brain float: for weights that were rounded more than that before.
    Coarse,
    /// Weights that are brain floats already; inputs are two.
    Brains,
    /// Both are two.
    Near,
}

impl Closeness {
    /// What loses nothing of numbers stored so.
    #[must_use]
    pub fn of(format: Format) -> Closeness {
        match format {
            Format::F32 | Format::F16 => Closeness::Near,
            Format::BF16 => Closeness::Brains,
            _ => Closeness::Coarse,
        }
    }

    /// Brain floats of an input and of a weight.
    pub(super) const fn planes(self) -> (usize, usize) {
        match self {
            Closeness::Coarse => (1, 1),
            Closeness::Brains => (2, 1),
            Closeness::Near => (2, 2),
        }
    }

    /// Brain floats of up to 32 rows of inputs.
    #[must_use]
    pub const fn group(self, columns: usize) -> usize {
        columns.div_ceil(SIDE) * self.planes().0 * SQUARE
    }
}

/// A packed matrix (rows, columns): (squares of rows, squares of columns, planes). In a square the numbers of two columns
/// stand side by side, those pairs of 16 rows make a line, and the lines of 16 rows lie before those of the others.
#[derive(Debug)]
pub struct Tiles {
    rows: usize,
    columns: usize,
    closeness: Closeness,
    numbers: Arena<u16>,
}

impl Tiles {
    /// Packs matrices of equal columns, the rows of one after those of the other; `round` changes what a row holds.
    ///
    /// # Errors
    /// When rows are not whole or not equally long, or there is no memory.
    pub fn pack(parts: &[Matrix<'_>], closeness: Closeness, round: impl Fn(&mut [f32])) -> Result<Tiles, Error> {
        let (columns, rows) = (parts.first().map_or(0, |part| part.columns), parts.iter().map(Matrix::rows).sum());
        let numbers = Arena::zeroed(packed_numbers(rows, columns, closeness), Use::Dense)?;
        let mut tiles = Tiles { rows, columns, closeness, numbers };
        each_row(parts, |row, numbers| {
            round(numbers);
            tiles.put(row, numbers);
        })?;
        Ok(tiles)
    }

    fn put(&mut self, row: usize, numbers: &[f32]) {
        let planes = self.closeness.planes().1;
        let squares = self.squares() * planes * SQUARE;
        let group = &mut self.numbers[row / SIDE * squares..][..squares];
        for (column, number) in numbers.iter().enumerate() {
            let place = place(row % SIDE, column % SIDE);
            let mut rest = *number;
            for plane in 0..planes {
                let near = half::bf16::from_f32(rest);
                group[(column / SIDE * planes + plane) * SQUARE + place] = near.to_bits();
                rest -= near.to_f32();
            }
        }
    }

    /// Squares of columns.
    fn squares(&self) -> usize {
        self.columns.div_ceil(SIDE)
    }

    /// Output rows, without padding.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input columns.
    #[must_use]
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Brain floats of up to 32 rows of inputs.
    #[must_use]
    pub fn group(&self) -> usize {
        self.closeness.group(self.columns)
    }
}

/// Where a square has the weight of an output for a column.
fn place(output: usize, column: usize) -> usize {
    output / LANES * SQUARE / 2 + (column / 2 * LANES + output % LANES) * 2 + column % 2
}

/// Brain floats of a packed matrix.
fn packed_numbers(rows: usize, columns: usize, closeness: Closeness) -> usize {
    let squares = rows.div_ceil(SIDE).saturating_mul(columns.div_ceil(SIDE));
    squares.saturating_mul(closeness.planes().1 * SQUARE)
}

/// Bytes of a packed matrix.
#[must_use]
pub fn packed_bytes(rows: usize, columns: usize, closeness: Closeness) -> usize {
    packed_numbers(rows, columns, closeness).saturating_mul(size_of::<u16>())
}

/// Writes up to 32 rows of inputs as squares; what rows are not there keep what they held.
///
/// # Panics
/// When shapes disagree.
pub fn split(unit: Unit, x: &[f32], weights: &Tiles, out: &mut [u16]) {
    let (columns, planes) = (weights.columns, weights.closeness.planes().0);
    assert!(x.len().is_multiple_of(columns) && x.len() <= SIDE * columns, "up to 32 rows");
    assert_eq!(out.len(), weights.group(), "squares of a group");
    for (block, square) in out.chunks_exact_mut(planes * SQUARE).enumerate() {
        let (near, rest) = square.split_at_mut(SQUARE);
        let (near, rest) = (near.as_chunks_mut::<SIDE>().0, rest.as_chunks_mut::<SIDE>().0);
        for (row, x) in x.chunks_exact(columns).enumerate() {
            let x = &x[block * SIDE..columns.min((block + 1) * SIDE)];
            let mut padded = [0.0; SIDE];
            let x = x.as_array().unwrap_or_else(|| {
                padded[..x.len()].copy_from_slice(x);
                &padded
            });
            unit.split(x, &mut near[row], rest.get_mut(row));
        }
    }
}

/// Writes the outputs `outputs` of rows of inputs, which [`split`] wrote group after group, and what follows them.
///
/// # Panics
/// When shapes disagree, or the outputs do not begin with a square.
pub fn multiply(
    (unit, level): (Unit, Level),
    inputs: &[u16],
    (weights, outputs): (&Tiles, Range<usize>),
    then: Finish<'_>,
    out: &mut Strip<'_>,
) {
    let (rows, group) = (out.rows(), weights.group());
    assert!(outputs.start.is_multiple_of(SIDE) && outputs.end <= weights.rows, "outputs of the matrix");
    assert!(out.columns() == outputs.len() && inputs.len() >= rows.div_ceil(SIDE) * group, "rows of inputs");
    let (squares, mut sums, work) =
        (weights.squares() * weights.closeness.planes().1 * SQUARE, Sums([0.0; SQUARE]), unit.begin());
    for first in outputs.clone().step_by(SIDE) {
        let columns = first - outputs.start..outputs.end.min(first + SIDE) - outputs.start;
        let w = &weights.numbers[first / SIDE * squares..][..squares];
        for (index, x) in inputs.chunks_exact(group).take(rows.div_ceil(SIDE)).enumerate() {
            let band = index * SIDE..rows.min((index + 1) * SIDE);
            work.multiply(x, w, weights.closeness, &mut sums);
            finish(level, &sums.0, then.part(columns.clone()), &mut out.band(band).part(columns.clone()));
        }
    }
}

/// The sums of a square, row by row.
#[repr(C, align(64))]
pub(super) struct Sums(pub(super) [f32; SQUARE]);

/// A unit that is ready to multiply.
enum Work {
    Plain,
    #[cfg(target_arch = "x86_64")]
    Amx(Shaped),
}

impl Unit {
    fn split(self, x: &[f32; SIDE], near: &mut [u16; SIDE], rest: Option<&mut [u16; SIDE]>) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Unit::Amx(amx) => amx.split(x, near, rest),
            Unit::Plain => {
                *near = x.map(|x| half::bf16::from_f32(x).to_bits());
                if let Some(rest) = rest {
                    *rest = std::array::from_fn(|i| half::bf16::from_f32(x[i] - number(near[i])).to_bits());
                }
            }
        }
    }

    fn begin(self) -> Work {
        match self {
            Unit::Plain => Work::Plain,
            #[cfg(target_arch = "x86_64")]
            Unit::Amx(amx) => Work::Amx(amx.begin()),
        }
    }
}

impl Work {
    /// The products of a row of squares of inputs and one of weights, added up.
    fn multiply(&self, x: &[u16], w: &[u16], closeness: Closeness, sums: &mut Sums) {
        let (inputs, weights) = closeness.planes();
        let blocks = x.len() / (inputs * SQUARE);
        assert!(x.len() == blocks * inputs * SQUARE && w.len() == blocks * weights * SQUARE, "as many squares");
        match self {
            // SAFETY: as many squares as closeness asks for, counted above.
            #[cfg(target_arch = "x86_64")]
            Work::Amx(shaped) => unsafe { shaped.multiply((x.as_ptr(), w.as_ptr()), (blocks, closeness), sums) },
            Work::Plain => {
                sums.0.fill(0.0);
                for (x, w) in x.chunks_exact(inputs * SQUARE).zip(w.chunks_exact(weights * SQUARE)) {
                    let pairs: &[(usize, usize)] = match closeness {
                        Closeness::Coarse => &[(0, 0)],
                        Closeness::Brains => &[(1, 0), (0, 0)],
                        Closeness::Near => &[(1, 0), (0, 0), (0, 1)],
                    };
                    for (input, weight) in pairs {
                        add(&x[input * SQUARE..][..SQUARE], &w[weight * SQUARE..][..SQUARE], sums);
                    }
                }
            }
        }
    }
}

/// Adds the products of two squares.
fn add(x: &[u16], w: &[u16], sums: &mut Sums) {
    for (row, x) in x.chunks_exact(SIDE).enumerate() {
        for output in 0..SIDE {
            let w = |column: usize| number(w[place(output, column)]);
            let sum = &mut sums.0[row * SIDE + output];
            *sum = x.iter().enumerate().fold(*sum, |sum, (column, x)| number(*x).mul_add(w(column), sum));
        }
    }
}

fn number(bits: u16) -> f32 {
    half::bf16::from_bits(bits).to_f32()
}
