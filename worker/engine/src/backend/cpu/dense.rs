//! What encoders ask of the processor: the same cut into parts for the threads, rows of whole inputs.

use std::ops::Range;

use super::{Buf, Cpu, Weight};
use crate::Error;
use crate::backend::dense::{
    Activation, Attended, Dense, Heads, InvertedResidual, Mask, Span, View, Window, layer_by_layer,
};
use crate::backend::{Epilogue, Matrix};
use crate::pool::Strip;
use crate::simd::affine::Finish;
use crate::simd::attend::{self, Growth, Look, Rows};
use crate::simd::tile::Begin;
use crate::simd::window::{Filter, Ring, depthwise, unfold};
use crate::simd::{Level, affine};

/// Numbers that one thread goes through faster alone than two together.
const NUMBERS_ALONE: usize = 8192;

/// Rows of a filter's output that one thread computes at a time: they share most of what they look at.
const FILTER_ROWS: usize = 8;

/// Windows that one thread unfolds at a time, at most.
const UNFOLDED: usize = 256;

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

impl Cpu {
    /// A product and what follows it. Many rows are cut into blocks, each of which one thread computes whole: outputs may
    /// be too few to share, and what follows a product finds it in the cache.
    pub(super) fn product(&mut self, (x, weight): (&Buf, &Weight), then: Finish<'_>, out: &mut Buf) {
        if !weight.cuts_rows(x.rows, self.pool.threads()) {
            return self.by_outputs((x, weight), then, out);
        }
        assert!(x.width == weight.inputs && out.width == weight.outputs, "widths of a product agree");
        let (layer, width) = (self.layer(weight, then), out.width);
        self.blocks.cut_rows(x.rows, weight.block(), self.pool.threads());
        let (out, blocks) = ((out.begin_rows(x.rows), width), &self.blocks.rows);
        self.pool.tiles(out, (blocks, width, 1), &mut self.locals, |local, (block, _), strip| {
            let Range { start, end } = blocks[block];
            layer.run(&x.all()[start * x.width..end * x.width], strip, local);
        });
    }
}

impl Dense for Cpu {
    fn pack_for_many(&mut self, parts: &[Matrix<'_>]) -> Result<Weight, Error> {
        self.pack_dense(parts)
    }

    fn write(&mut self, parts: &[&[f32]], out: &mut Buf) {
        let len = parts.iter().map(|part| part.len()).sum::<usize>();
        assert!(len.is_multiple_of(out.width), "whole rows");
        let mut room = out.begin_rows(len / out.width);
        for part in parts {
            let (to, rest) = room.split_at_mut(part.len());
            to.copy_from_slice(part);
            room = rest;
        }
    }

    fn gather(&mut self, table: &Weight, rows: &[u32], out: &mut Buf) {
        let (panels, width) = (table.table(), out.width);
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
            affine::bias(level, bias.row(0), activation, &mut Strip::whole(x, width));
        });
    }

    fn affine(
        &mut self,
        (x, weight): (&Buf, &Weight),
        (bias, activation): (&Buf, Activation),
        epilogue: Epilogue,
        out: &mut Buf,
    ) {
        let then = Finish { begin: Begin::from(epilogue), bias: bias.row(0), activation };
        self.product((x, weight), then, out);
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
        self.blocks.cut_spans(spans);
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
        let (level, width) = (self.level, out.width);
        let out = (out.begin_rows(pictures * places.0 * places.1), width);
        self.pool.items(out, grain(width), &mut self.locals, |_, place, out| {
            unfold_place(level, (x, window), (places, place), out);
        });
    }

    /// Many windows are unfolded as they are needed.
    fn convolve(
        &mut self,
        (x, window): (&Buf, &Window),
        (weight, bias, activation): (&Weight, &Buf, Activation),
        unfolded: &mut Buf,
        out: &mut Buf,
    ) {
        let (pictures, places) = pictures(x, window);
        let (rows, width, inputs) = (pictures * places.0 * places.1, out.width, weight.inputs);
        if !weight.cuts_rows(rows, self.pool.threads()) {
            self.unfold(x, window, unfolded);
            return self.affine((unfolded, weight), (bias, activation), Epilogue::Store, out);
        }
        let then = Finish { begin: Begin::Zero, bias: bias.row(0), activation };
        let (level, layer, (most, unit)) = (self.level, self.layer(weight, then), weight.block());
        self.blocks.cut_rows(rows, (most.min(UNFOLDED), unit), self.pool.threads());
        let (out, blocks) = ((out.begin_rows(rows), width), &self.blocks.rows);
        self.pool.tiles(out, (blocks, width, 1), &mut self.locals, |local, (block, _), strip| {
            let mut unfolded = std::mem::take(&mut local.between.unfolded);
            unfolded.resize(strip.rows() * inputs, 0.0);
            for (place, out) in blocks[block].clone().zip(unfolded.chunks_exact_mut(inputs)) {
                unfold_place(level, (x, window), (places, place), out);
            }
            layer.run(&unfolded, strip, local);
            local.between.unfolded = unfolded;
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
        let strips = self.pool.threads().div_ceil(pictures.max(1)).max(places.0.div_ceil(FILTER_ROWS)).min(places.0);
        self.blocks.cut_pictures(pictures, places, strips);
        let (out, blocks) = ((out.begin_rows(pictures * places.0 * places.1), channels), &self.blocks.rows);
        self.pool.tiles(out, (blocks, channels, 1), &mut self.locals, |_, (block, _), out| {
            let Range { start, end } = blocks[block];
            let (picture, first) = (start / (places.0 * places.1), start / places.1 % places.0);
            let rows = first..first + (end - start) / places.1;
            let picture =
                Ring { numbers: &x.all()[picture * len..][..len], rows: window.size.0, channels: 0..channels };
            let filter = Filter { kernel: kernel.all(), bias: bias.row(0), activation };
            depthwise(level, picture, filter, (window, rows), out.all());
        });
    }

    fn inverted_residual(
        &mut self,
        x: &Buf,
        block: &InvertedResidual<'_, Cpu>,
        between: (&mut Buf, &mut Buf),
        out: &mut Buf,
    ) {
        match self.strips(x, block) {
            Some(strips) => self.by_strips(x, block, strips, out),
            None => layer_by_layer(self, x, block, between, out),
        }
    }
}

/// The window of one place of all pictures', whose outputs have `height` rows of `width` places.
fn unfold_place(
    level: Level,
    (x, window): (&Buf, &Window),
    ((height, width), place): ((usize, usize), usize),
    out: &mut [f32],
) {
    let picture = window.size.0 * window.size.1 * x.width;
    let picture = &x.all()[place / (height * width) * picture..][..picture];
    unfold(level, picture, (window, (place / width % height, place % width)), out);
}

/// How many pictures there are, and the height and width of each output.
pub(super) fn pictures(x: &Buf, window: &Window) -> (usize, (usize, usize)) {
    let size = window.size.0 * window.size.1;
    assert!(size > 0 && x.rows.is_multiple_of(size), "whole pictures");
    (x.rows / size, window.output().expect("models check their windows at load"))
}

/// Rows that one thread takes at a time.
fn grain(width: usize) -> usize {
    NUMBERS_ALONE.div_ceil(width)
}
