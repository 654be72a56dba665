//! Products of many rows by a processor's matrix unit, whose numbers are brain floats.
//!
//! A number of single precision is nearly the sum of two brain floats, the nearest one and what that leaves; of the four
//! products of two such sums the least adds nothing that single precision would show. So three passes of the unit are a
//! product of single precision, to some 2^-17 of it, and one pass is one of brain floats.
//!
//! Encoders' matrices are packed as squares. A decoder's stay as they are in [`Panels`], a quarter as large: the squares of
//! some outputs are made anew for each product, and all rows pass them ([`unpack`](super::unpack)).
//!
//! Matrices lie in squares of 32 by 32. A row's result depends on neither the rows beside it nor the number of threads;
//! but a unit adds in an order of its own, so that results are not, to the bit, those of [`linear`](super::linear).

use std::ops::Range;

use super::affine::{Finish, finish};
#[cfg(target_arch = "x86_64")]
use super::amx::{Amx, Shaped};
use super::arena::{Arena, Use};
use super::linear::Scratch;
use super::panel::Panels;
use super::unpack::unpack;
use super::{LANES, Level};
use crate::Error;
use crate::backend::{Matrix, each_row};
use crate::pool::Strip;
use crate::quant::Format;

/// Rows, columns and outputs of a square.
pub const SIDE: usize = 32;
/// Numbers of a square.
pub(super) const SQUARE: usize = SIDE * SIDE;

/// A row of a square, and of the cache: 32 brain floats.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Line(pub(super) [u16; SIDE]);

impl Line {
    /// 32 zeros.
    pub const ZERO: Line = Line([0; SIDE]);
}

/// How rows of inputs become squares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Numbers of a row.
    pub columns: usize,
    /// How near they stay.
    pub closeness: Closeness,
}

impl Shape {
    /// Lines of up to 32 rows.
    #[must_use]
    pub const fn group(self) -> usize {
        self.columns.div_ceil(SIDE) * self.closeness.planes().0 * SIDE
    }
}

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
}

/// A packed matrix (rows, columns): (squares of rows, squares of columns, planes). In a square the numbers of two columns
/// stand side by side, those pairs of 16 rows make a line, and the lines of 16 rows lie before those of the others.
#[derive(Debug)]
pub struct Tiles {
    rows: usize,
    columns: usize,
    closeness: Closeness,
    lines: Arena<Line>,
}

impl Tiles {
    /// Packs matrices of equal columns, the rows of one after those of the other; `round` changes what a row holds.
    ///
    /// # Errors
    /// When rows are not whole or not equally long, or there is no memory.
    pub fn pack(parts: &[Matrix<'_>], closeness: Closeness, round: impl Fn(&mut [f32])) -> Result<Tiles, Error> {
        let (columns, rows) = (parts.first().map_or(0, |part| part.columns), parts.iter().map(Matrix::rows).sum());
        let lines = Arena::zeroed(packed_lines(rows, columns, closeness), Use::Dense)?;
        let mut tiles = Tiles { rows, columns, closeness, lines };
        each_row(parts, |row, numbers| {
            round(numbers);
            tiles.put(row, numbers);
        })?;
        Ok(tiles)
    }

    fn put(&mut self, row: usize, numbers: &[f32]) {
        let (planes, lines) = (self.closeness.planes().1, self.group_lines());
        let group = &mut self.lines[row / SIDE * lines..][..lines];
        for (column, number) in numbers.iter().enumerate() {
            let place = place(row % SIDE, column % SIDE);
            let mut rest = *number;
            for plane in 0..planes {
                let near = half::bf16::from_f32(rest);
                group[(column / SIDE * planes + plane) * SIDE + place / SIDE].0[place % SIDE] = near.to_bits();
                rest -= near.to_f32();
            }
        }
    }

    /// Lines of 32 outputs.
    fn group_lines(&self) -> usize {
        self.columns.div_ceil(SIDE) * self.closeness.planes().1 * SIDE
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

    /// How rows of inputs are to lie.
    #[must_use]
    pub fn shape(&self) -> Shape {
        Shape { columns: self.columns, closeness: self.closeness }
    }
}

/// Where a square has the weight of an output for a column.
pub(super) fn place(output: usize, column: usize) -> usize {
    output / LANES * SQUARE / 2 + (column / 2 * LANES + output % LANES) * 2 + column % 2
}

/// Lines of a packed matrix.
fn packed_lines(rows: usize, columns: usize, closeness: Closeness) -> usize {
    let squares = rows.div_ceil(SIDE).saturating_mul(columns.div_ceil(SIDE));
    squares.saturating_mul(closeness.planes().1 * SIDE)
}

/// Bytes of a packed matrix.
#[must_use]
pub fn packed_bytes(rows: usize, columns: usize, closeness: Closeness) -> usize {
    packed_lines(rows, columns, closeness).saturating_mul(size_of::<Line>())
}

/// Writes up to 32 rows of inputs as squares; what rows are not there keep what they held.
///
/// # Panics
/// When shapes disagree.
pub fn split(unit: Unit, x: &[f32], shape: Shape, out: &mut [Line]) {
    let (columns, planes) = (shape.columns, shape.closeness.planes().0);
    assert!(x.len().is_multiple_of(columns) && x.len() <= SIDE * columns, "up to 32 rows");
    assert_eq!(out.len(), shape.group(), "squares of a group");
    for (block, square) in out.chunks_exact_mut(planes * SIDE).enumerate() {
        let (near, rest) = square.split_at_mut(SIDE);
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
    inputs: &[Line],
    (weights, outputs): (&Tiles, Range<usize>),
    then: Finish<'_>,
    out: &mut Strip<'_>,
) {
    assert!(outputs.start.is_multiple_of(SIDE) && outputs.end <= weights.rows, "outputs of the matrix");
    assert_eq!(out.columns(), outputs.len(), "a column for each output");
    let (lines, mut work) = (weights.group_lines(), Work::begin(unit, level, weights.shape()));
    for first in outputs.clone().step_by(SIDE) {
        let columns = first - outputs.start..outputs.end.min(first + SIDE) - outputs.start;
        let w = &weights.lines[first / SIDE * lines..][..lines];
        work.outputs(inputs, w, then.part(columns.clone()), &mut out.part(columns));
    }
}

/// The same of panels `panels` of a matrix of integers, whose first row is the first column of `out`.
///
/// # Panics
/// When shapes disagree, or the weights are no integers.
pub fn multiply_panels(
    (unit, level): (Unit, Level),
    inputs: &[Line],
    (weights, panels): (&Panels, Range<usize>),
    (then, out): (Finish<'_>, &mut Strip<'_>),
    scratch: &mut Scratch,
) {
    let shape = Shape { columns: weights.columns(), closeness: Closeness::Coarse };
    let (w, mut work) = (scratch.make_squares(shape), Work::begin(unit, level, shape));
    for first in panels.clone().step_by(SIDE / LANES) {
        let some = first..panels.end.min(first + SIDE / LANES);
        unpack(level, weights, some.clone(), w);
        let columns = (first - panels.start) * LANES..out.columns().min((some.end - panels.start) * LANES);
        work.outputs(inputs, w, then.part(columns.clone()), &mut out.part(columns));
    }
}

/// The sums of a square, row by row.
#[repr(C, align(64))]
pub(super) struct Sums(pub(super) [f32; SQUARE]);

/// A unit that is ready to multiply.
enum Ready {
    Plain,
    #[cfg(target_arch = "x86_64")]
    Amx(Shaped),
}

impl Unit {
    fn split(self, x: &[f32; SIDE], near: &mut Line, rest: Option<&mut Line>) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Unit::Amx(amx) => amx.split(x, near, rest),
            Unit::Plain => {
                near.0 = x.map(|x| half::bf16::from_f32(x).to_bits());
                if let Some(rest) = rest {
                    rest.0 = std::array::from_fn(|i| half::bf16::from_f32(x[i] - number(near.0[i])).to_bits());
                }
            }
        }
    }

    fn begin(self) -> Ready {
        match self {
            Unit::Plain => Ready::Plain,
            #[cfg(target_arch = "x86_64")]
            Unit::Amx(amx) => Ready::Amx(amx.begin()),
        }
    }
}

impl Ready {
    /// The products of a row of squares of inputs and one of weights, added up: of the first `rows` of them at least.
    fn multiply(&self, (x, w): (&[Line], &[Line]), closeness: Closeness, rows: usize, sums: &mut Sums) {
        let (inputs, weights) = closeness.planes();
        let blocks = x.len() / (inputs * SIDE);
        assert!(x.len() == blocks * inputs * SIDE && w.len() == blocks * weights * SIDE, "as many squares");
        match self {
            // SAFETY: as many squares as closeness asks for, counted above.
            #[cfg(target_arch = "x86_64")]
            Ready::Amx(shaped) => unsafe { shaped.multiply((x.as_ptr(), w.as_ptr()), (blocks, closeness), rows, sums) },
            Ready::Plain => {
                sums.0.fill(0.0);
                for (x, w) in x.chunks_exact(inputs * SIDE).zip(w.chunks_exact(weights * SIDE)) {
                    let pairs: &[(usize, usize)] = match closeness {
                        Closeness::Coarse => &[(0, 0)],
                        Closeness::Brains => &[(1, 0), (0, 0)],
                        Closeness::Near => &[(1, 0), (0, 0), (0, 1)],
                    };
                    for (input, weight) in pairs {
                        add(&x[input * SIDE..][..rows], &w[weight * SIDE..][..SIDE], sums);
                    }
                }
            }
        }
    }
}

/// Products of rows of inputs in such a shape.
struct Work {
    ready: Ready,
    level: Level,
    shape: Shape,
    sums: Sums,
}

impl Work {
    fn begin(unit: Unit, level: Level, shape: Shape) -> Work {
        Work { ready: unit.begin(), level, shape, sums: Sums([0.0; SQUARE]) }
    }

    /// Writes up to 32 outputs of all rows, and what follows them.
    fn outputs(&mut self, inputs: &[Line], w: &[Line], then: Finish<'_>, out: &mut Strip<'_>) {
        let (rows, group) = (out.rows(), self.shape.group());
        assert!(inputs.len() >= rows.div_ceil(SIDE) * group, "rows of inputs");
        for (index, x) in inputs.chunks_exact(group).take(rows.div_ceil(SIDE)).enumerate() {
            let band = index * SIDE..rows.min((index + 1) * SIDE);
            self.ready.multiply((x, w), self.shape.closeness, band.len(), &mut self.sums);
            finish(self.level, &self.sums.0, then, &mut out.band(band));
        }
    }
}

/// Adds the products of rows of inputs and a square of weights.
fn add(x: &[Line], w: &[Line], sums: &mut Sums) {
    for (row, x) in x.iter().enumerate() {
        for output in 0..SIDE {
            let w = |column: usize| {
                let place = place(output, column);
                number(w[place / SIDE].0[place % SIDE])
            };
            let sum = &mut sums.0[row * SIDE + output];
            *sum = x.0.iter().enumerate().fold(*sum, |sum, (column, x)| number(*x).mul_add(w(column), sum));
        }
    }
}

fn number(bits: u16) -> f32 {
    half::bf16::from_bits(bits).to_f32()
}
