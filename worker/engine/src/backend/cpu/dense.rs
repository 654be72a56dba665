//! What encoders ask of the processor: the same cut into parts for the threads, rows of whole inputs.

use std::ops::Range;

use super::{Buf, Cpu, Inputs, Weight};
use crate::Error;
use crate::backend::dense::{Activation, Attended, Dense, Heads, Mask, Span, View, Window};
use crate::backend::{Backend, Epilogue, Matrix};
use crate::simd::affine;
use crate::simd::attend::{self, Growth, Look, QUERIES, Rows};
use crate::simd::tile::Begin;
use crate::simd::window::depthwise;

/// Numbers that one thread goes through faster alone than two together.
const NUMBERS_ALONE: usize = 8192;

/// Rows of a product that one thread computes at a time, at most: they share one unpacking of the weights.
const PRODUCT_ROWS: usize = 48;
/// What they are a multiple of, so that tiles are whole.
const TILE_ROWS: usize = 8;

/// Queries of spans, cut into what is computed together: kept from call to call for its memory.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    rows: Vec<Range<usize>>,
    /// The span of each.
    spans: Vec<usize>,
}

impl Blocks {
    fn cut(&mut self, spans: &[Span]) {
        self.rows.clear();
        self.spans.clear();
        for (index, span) in spans.iter().enumerate() {
            for first in span.queries.clone().step_by(QUERIES) {
                self.rows.push(first..span.queries.end.min(first + QUERIES));
                self.spans.push(index);
            }
        }
    }

    /// As many blocks for each thread, about equally large.
    fn cut_rows(&mut self, rows: usize, threads: usize) {
        let blocks = rows.div_ceil(threads * PRODUCT_ROWS) * threads;
        let size = rows.div_ceil(blocks).next_multiple_of(TILE_ROWS);
        self.rows.clear();
        self.rows.extend((0..rows).step_by(size).map(|first| first..rows.min(first + size)));
    }
}

impl View<'_, Buf> {
    /// Some rows of one head.
    fn head(&self, rows: Range<usize>, heads: Heads, head: usize) -> Rows<'_> {
        let stride = self.rows.width;
        assert!(rows.end <= self.rows.rows, "rows of the buffer");
        assert!(self.column + heads.count * heads.width <= stride && head < heads.count, "heads of the rows");
        let first = (rows.start * stride + self.column + head * heads.width).min(self.rows.all().len());
        Rows { numbers: &self.rows.all()[first..], stride, count: rows.len() }
    }
}

/// One head of some of a span's queries.
fn look<'a>(
    inputs: &'a Attended<'_, Buf>,
    (span, rows): (&Span, Range<usize>),
    (heads, head): (Heads, usize),
    mask: Mask,
) -> Look<'a> {
    let (seen, growth) = match mask {
        Mask::Full => (span.keys.len(), Growth::None),
        Mask::Causal => {
            assert!(span.keys.len() >= span.queries.len(), "a key for every query");
            (span.keys.len() + 1 + rows.start - span.queries.start - span.queries.len(), Growth::One)
        }
    };
    Look {
        queries: inputs.queries.head(rows, heads, head),
        keys: inputs.keys.head(span.keys.clone(), heads, head),
        values: inputs.values.head(span.keys.clone(), heads, head),
        width: heads.width,
        seen,
        growth,
    }
}

impl Dense for Cpu {
    fn table(&mut self, rows: Matrix<'_>) -> Result<Weight, Error> {
        let held = std::mem::take(&mut self.weights);
        let table = self.pack(&[rows]);
        self.weights = held;
        table
    }

    fn write(&mut self, numbers: &[f32], out: &mut Buf) {
        assert!(numbers.len().is_multiple_of(out.width), "whole rows");
        out.begin_rows(numbers.len() / out.width).copy_from_slice(numbers);
    }

    fn gather(&mut self, table: &Weight, rows: &[u32], out: &mut Buf) {
        let [panels] = table.parts.as_slice() else { panic!("a table is one matrix") };
        let width = out.width;
        self.pool.items((out.begin_rows(rows.len()), width), grain(width), &mut self.locals, |_, row, out| {
            panels.read_row(rows[row] as usize, out);
        });
    }

    fn add_rows(&mut self, x: &Buf, rows: &[u32], out: &mut Buf) {
        assert!(rows.len() == out.rows && x.width == out.width, "a row for each, as wide");
        let (level, width) = (self.level, out.width);
        self.pool.items((out.begin_rows(rows.len()), width), grain(width), &mut self.locals, |_, row, out| {
            affine::add(level, x.row(rows[row] as usize), out);
        });
    }

    fn add(&mut self, x: &Buf, out: &mut Buf) {
        assert!(x.rows == out.rows && x.width == out.width, "equal shapes");
        let (level, width) = (self.level, out.width);
        self.pool.items((out.begin_rows(x.rows), width), grain(width), &mut self.locals, |_, row, out| {
            affine::add(level, x.row(row), out);
        });
    }

    fn bias(&mut self, bias: &Buf, activation: Activation, x: &mut Buf) {
        let (level, rows, width) = (self.level, x.rows, x.width);
        self.pool.items((x.begin_rows(rows), width), grain(width), &mut self.locals, |_, _, x| {
            affine::bias(level, bias.row(0), activation, x);
        });
    }

    /// Many rows are cut into blocks, each of which one thread computes whole: outputs may be too few to share, and what
    /// follows a product finds it in the cache.
    fn affine(
        &mut self,
        (x, weight): (&Buf, &Weight),
        (bias, activation): (&Buf, Activation),
        epilogue: Epilogue,
        out: &mut Buf,
    ) {
        if x.rows < 2 * PRODUCT_ROWS {
            self.linear(x, weight, epilogue, out);
            return self.bias(bias, activation, out);
        }
        assert!(x.width == weight.inputs && out.width == weight.outputs, "widths of a product agree");
        let digits = self.digitise(x, weight);
        let inputs = Inputs { x: x.all(), digits: &self.digits[..digits], rows: x.rows };
        let (level, begin, width) = (self.level, Begin::from(epilogue), out.width);
        self.blocks.cut_rows(x.rows, self.pool.threads());
        let (out, blocks) = ((out.begin_rows(x.rows), width), &self.blocks.rows);
        self.pool.tiles(out, (blocks, width, 1), &mut self.locals, |local, (block, _), strip| {
            let inputs = inputs.rows(blocks[block].clone());
            weight.multiply(level, inputs, (0..width, begin), (strip, &mut local.scratch));
            for row in 0..inputs.rows {
                affine::bias(level, bias.row(0), activation, strip.row(row));
            }
        });
    }

    fn layer_norm(&mut self, x: &Buf, affine: (&Buf, &Buf), epsilon: f32, out: &mut Buf) {
        let (level, width) = (self.level, x.width);
        let affine = (affine.0.row(0), affine.1.row(0));
        assert_eq!(width, out.width, "norms as wide as their rows");
        self.pool.items((out.begin_rows(x.rows), width), grain(width), &mut self.locals, |_, row, out| {
            affine::layer_norm(level, x.row(row), affine, epsilon, out);
        });
    }

    fn attend(&mut self, inputs: Attended<'_, Buf>, spans: &[Span], heads: Heads, mask: Mask, out: &mut Buf) {
        assert_eq!(out.width, heads.count * heads.width, "all heads side by side");
        self.blocks.cut(spans);
        let (level, blocks, width) = (self.level, &self.blocks, out.width);
        let out = (out.begin_rows(inputs.queries.rows.rows), width);
        self.pool.tiles(out, (&blocks.rows, heads.width, 1), &mut self.locals, |local, (block, head), out| {
            let part = (&spans[blocks.spans[block]], blocks.rows[block].clone());
            attend::attend(level, look(&inputs, part, (heads, head), mask), out, &mut local.looks);
        });
    }

    fn attention_weights(
        &mut self,
        inputs: Attended<'_, Buf>,
        span: &Span,
        head: (Heads, usize),
        weights: &mut Vec<f32>,
    ) {
        let (level, first, keys) = (self.level, weights.len(), span.keys.len());
        if keys == 0 {
            return;
        }
        weights.resize(first + span.queries.len() * keys, 0.0);
        self.pool.items((&mut weights[first..], keys), 1, &mut self.locals, |_, query, weights| {
            let row = span.queries.start + query;
            attend::weigh(level, look(&inputs, (span, row..row + 1), head, Mask::Full), weights);
        });
    }

    fn scatter(&mut self, x: View<'_, Buf>, rows: &[u32], out: &mut Buf) {
        let width = out.width;
        assert!(rows.len() == x.rows.rows && x.column + width <= x.rows.width, "a place for each row, inside columns");
        let end = rows.iter().map(|row| *row as usize + 1).max().unwrap_or(0);
        let out = out.begin_rows(out.rows.max(end));
        for (index, row) in rows.iter().enumerate() {
            let from = &x.rows.row(index)[x.column..][..width];
            out[*row as usize * width..][..width].copy_from_slice(from);
        }
    }

    fn mean(&mut self, x: &Buf, spans: &[Range<usize>], out: &mut Buf) {
        let (level, width) = (self.level, x.width);
        assert_eq!(width, out.width, "means as wide as their rows");
        self.pool.items((out.begin_rows(spans.len()), width), 1, &mut self.locals, |_, index, out| {
            let rows = &spans[index];
            affine::mean(level, &x.all()[rows.start * width..rows.end * width], out);
        });
    }

    fn unfold(&mut self, x: &Buf, window: &Window, out: &mut Buf) {
        let (pictures, places) = pictures(x, window);
        let (channels, width) = (x.width, out.width);
        assert_eq!(width, window.kernel.0 * window.kernel.1 * channels, "a row holds a window");
        let out = (out.begin_rows(pictures * places.0 * places.1), width);
        self.pool.items(out, grain(width), &mut self.locals, |_, index, out| {
            let picture = index / (places.0 * places.1);
            let picture = &x.all()[picture * window.size.0 * window.size.1 * channels..];
            let (rows, columns) = window.taps(index / places.1 % places.0, index % places.1);
            out.fill(0.0);
            for y in 0..rows.count {
                let to = ((rows.kernel + y) * window.kernel.1 + columns.kernel) * channels;
                let from = ((rows.picture + y) * window.size.1 + columns.picture) * channels;
                let len = columns.count * channels;
                out[to..to + len].copy_from_slice(&picture[from..from + len]);
            }
        });
    }

    fn depthwise(
        &mut self,
        (x, kernel): (&Buf, &Buf),
        (bias, activation): (&Buf, Activation),
        window: &Window,
        out: &mut Buf,
    ) {
        let (pictures, places) = pictures(x, window);
        let (level, channels) = (self.level, x.width);
        assert!(out.width == channels && kernel.width == channels, "as many channels out as in");
        let len = window.size.0 * window.size.1 * channels;
        let out = (out.begin_rows(pictures * places.0 * places.1), places.1 * channels);
        self.pool.items(out, 1, &mut self.locals, |_, index, out| {
            let (picture, row) = (index / places.0, index % places.0);
            depthwise(level, &x.all()[picture * len..][..len], kernel.all(), (window, row), out);
            for out in out.chunks_exact_mut(channels) {
                affine::bias(level, bias.row(0), activation, out);
            }
        });
    }
}

/// How many pictures there are, and the height and width of each output.
fn pictures(x: &Buf, window: &Window) -> (usize, (usize, usize)) {
    let size = window.size.0 * window.size.1;
    assert!(size > 0 && x.rows.is_multiple_of(size), "whole pictures");
    (x.rows / size, window.output().expect("models check their windows at load"))
}

/// Rows that one thread takes at a time.
fn grain(width: usize) -> usize {
    NUMBERS_ALONE.div_ceil(width)
}
