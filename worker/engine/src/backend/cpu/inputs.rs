//! Rows of inputs as products read them.

use std::ops::Range;

use super::Local;
use crate::pool::Pool;
use crate::simd::Level;
use crate::simd::brains::{Line, SIDE, Shape, Unit, split};
use crate::simd::bytes::{Bytes, Cell, code};
use crate::simd::digits::{Digits, Rounding, digitise};

/// Rows of inputs, norms and gates that one thread does faster alone than two together.
pub(super) const ROWS_ALONE: usize = 4;

/// What rows of inputs become before a product reads them.
#[derive(Clone, Copy)]
pub(super) enum Form<'a> {
    /// They stay as they are.
    Numbers,
    /// So many digits a row.
    Digits(Rounding, usize),
    /// Cells for a matrix.
    Cells(&'a Bytes),
    /// Squares of 32 rows.
    Brains(Unit, Shape),
}

/// Rows of inputs in such a form.
#[derive(Clone, Copy, Debug)]
pub(super) enum Coded<'a> {
    Numbers,
    Digits(&'a [Digits]),
    Cells(&'a [Cell]),
    Brains(Unit, &'a [Line]),
}

/// Rows of inputs of a product.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) x: &'a [f32],
    pub(super) rows: usize,
    pub(super) coded: Coded<'a>,
}

/// Memory for them, kept from product to product.
#[derive(Debug, Default)]
pub(super) struct Room {
    pub(super) digits: Vec<Digits>,
    cells: Vec<Cell>,
    brains: Vec<Line>,
}

impl Room {
    /// Makes room for so many rows of such squares.
    pub(super) fn make_squares(&mut self, rows: usize, shape: Shape) -> &mut [Line] {
        grown(&mut self.brains, rows.div_ceil(SIDE) * shape.group(), Line::ZERO)
    }
}

/// Who writes the parts of what is as long as they are together: so many of them are no work for a second thread.
pub(super) trait Writers {
    fn each<T: Send>(&mut self, out: (&mut [T], usize), few: usize, write: impl Fn(usize, &mut [T]) + Sync);
}

/// The caller.
pub(super) struct Alone;

/// All threads.
pub(super) struct Together<'a>(pub(super) &'a mut Pool, pub(super) &'a mut [Local]);

impl Writers for Alone {
    fn each<T: Send>(&mut self, (out, len): (&mut [T], usize), _few: usize, write: impl Fn(usize, &mut [T]) + Sync) {
        for (index, out) in out.chunks_exact_mut(len).enumerate() {
            write(index, out);
        }
    }
}

impl Writers for Together<'_> {
    fn each<T: Send>(&mut self, (out, len): (&mut [T], usize), few: usize, write: impl Fn(usize, &mut [T]) + Sync) {
        self.0.items((out, len), few, self.1, |_, index, out| write(index, out));
    }
}

impl Form<'_> {
    /// Writes `rows` of inputs.
    pub(super) fn write<'a>(
        self,
        by: &mut impl Writers,
        level: Level,
        (x, rows): (&'a [f32], usize),
        room: &'a mut Room,
    ) -> Inputs<'a> {
        let width = x.len() / rows.max(1);
        let row = |row: usize| &x[row * width..][..width];
        let coded = match self {
            Form::Numbers => Coded::Numbers,
            Form::Digits(rounding, len) => {
                let out = grown(&mut room.digits, rows * len, Digits::ZERO);
                by.each((&mut *out, len), ROWS_ALONE, |index, out| digitise(level, row(index), rounding, out));
                Coded::Digits(out)
            }
            Form::Cells(bytes) => {
                let out = grown(&mut room.cells, rows * bytes.cells(), Cell::ZERO);
                by.each((&mut *out, bytes.cells()), ROWS_ALONE, |index, out| code(level, row(index), bytes, out));
                Coded::Cells(out)
            }
            Form::Brains(unit, shape) => {
                let out = room.make_squares(rows, shape);
                by.each((&mut *out, shape.group()), 1, |index, out| {
                    let rows = index * SIDE..rows.min((index + 1) * SIDE);
                    split(unit, &x[rows.start * width..rows.end * width], shape, out);
                });
                Coded::Brains(unit, out)
            }
        };
        Inputs { x, rows, coded }
    }
}

impl Inputs<'_> {
    /// Some of the rows, whole squares of them where they lie in such.
    pub(super) fn band(&self, rows: Range<usize>) -> Self {
        let coded = match self.coded {
            Coded::Numbers => Coded::Numbers,
            Coded::Digits(digits) => Coded::Digits(of_rows(digits, self.rows, &rows)),
            Coded::Cells(cells) => Coded::Cells(of_rows(cells, self.rows, &rows)),
            Coded::Brains(unit, squares) => {
                let some = rows.start / SIDE..rows.end.div_ceil(SIDE);
                Coded::Brains(unit, of_rows(squares, self.rows.div_ceil(SIDE), &some))
            }
        };
        Inputs { x: of_rows(self.x, self.rows, &rows), rows: rows.len(), coded }
    }
}

fn of_rows<'a, T>(all: &'a [T], rows: usize, some: &Range<usize>) -> &'a [T] {
    let len = all.len() / rows.max(1);
    &all[some.start * len..some.end * len]
}

/// The first `len` of what grows to the largest that is asked for.
fn grown<T: Clone>(room: &mut Vec<T>, len: usize, fill: T) -> &mut [T] {
    if len > room.len() {
        room.resize(len, fill);
    }
    &mut room[..len]
}
