//! Rows cut into what one thread computes together.

use std::ops::Range;

use crate::backend::dense::Span;
use crate::simd::attend::QUERIES;

/// Blocks of rows, in order: kept from call to call for its memory.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    pub(super) rows: Vec<Range<usize>>,
    /// The span of each, where they are of spans.
    pub(super) spans: Vec<usize>,
}

impl Blocks {
    /// Queries of spans.
    pub(super) fn cut_spans(&mut self, spans: &[Span]) {
        self.rows.clear();
        self.spans.clear();
        for (index, span) in spans.iter().enumerate() {
            for first in span.queries.clone().step_by(QUERIES) {
                self.rows.push(first..span.queries.end.min(first + QUERIES));
                self.spans.push(index);
            }
        }
    }

    /// So many strips of whole rows of every picture's `places`.
    pub(super) fn cut_pictures(&mut self, pictures: usize, (height, width): (usize, usize), strips: usize) {
        self.rows.clear();
        for first in (0..pictures).map(|picture| picture * height) {
            let strips = equal(height, strips, 1);
            self.rows.extend(strips.map(|rows| (first + rows.start) * width..(first + rows.end) * width));
        }
    }

    /// As many blocks for each thread: at most `most` rows, whole units of them.
    pub(super) fn cut_rows(&mut self, rows: usize, (most, unit): (usize, usize), threads: usize) {
        self.rows.clear();
        self.rows.extend(equal(rows, rows.div_ceil(threads * most) * threads, unit));
    }
}

/// So many parts, equally large but for a unit: whole units, and none that is empty.
pub(super) fn equal(rows: usize, parts: usize, unit: usize) -> impl Iterator<Item = Range<usize>> {
    let units = rows.div_ceil(unit);
    let first = move |part: usize| rows.min(units * part / parts * unit);
    (0..parts).map(move |part| first(part)..first(part + 1)).filter(|rows| !rows.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn parts_are_all_rows_in_order_and_equal_but_for_a_unit(
            rows in 0_usize..2000, parts in 1_usize..20, unit in 1_usize..40,
        ) {
            let cut: Vec<Range<usize>> = equal(rows, parts, unit).collect();
            let mut next = 0;
            for part in &cut {
                prop_assert!(part.start == next && !part.is_empty());
                prop_assert!(part.end == rows || part.len().is_multiple_of(unit));
                next = part.end;
            }
            prop_assert!(next == rows && cut.len() <= parts);
            let units = |part: &Range<usize>| part.len().div_ceil(unit);
            let (most, least) = (cut.iter().map(units).max(), cut.iter().map(units).min());
            prop_assert!(most <= least.map(|least| least + 1), "{cut:?}");
        }
    }
}
