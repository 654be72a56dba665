//! The truth of what encoders ask, slowly.

use std::ops::Range;

use super::{Rows, Scalar, dot};
use crate::backend::dense::{Activation, Attended, Dense, Heads, Mask, Span, View, Window};

impl View<'_, Rows> {
    fn head(&self, row: usize, heads: Heads, head: usize) -> &[f32] {
        &self.rows.row(row)[self.column + head * heads.width..][..heads.width]
    }
}

/// The weights of a span's query over its keys.
fn weights(
    inputs: &Attended<'_, Rows>,
    (span, query): (&Span, usize),
    (heads, head): (Heads, usize),
    mask: Mask,
) -> Vec<f64> {
    let seen = match mask {
        Mask::Full => span.keys.len(),
        Mask::Causal => span.keys.len() + query + 1 - span.queries.len(),
    };
    let query = inputs.queries.head(span.queries.start + query, heads, head);
    let score = |key| dot(query, inputs.keys.head(key, heads, head)) / (heads.width as f64).sqrt();
    let scores: Vec<f64> = span.keys.clone().take(seen).map(score).collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scores.iter().map(|score| (score - top).exp()).sum();
    let weights = scores.iter().map(|score| (score - top).exp() / total);
    weights.chain(std::iter::repeat_n(0.0, span.keys.len() - seen)).collect()
}

/// The error function: its series, or beyond 3 the continued fraction of what is missing to 1.
fn erf(x: f64) -> f64 {
    let size = x.abs();
    if size < 3.0 {
        let (mut term, mut sum) = (x, x);
        for n in 1..100 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return sum * std::f64::consts::FRAC_2_SQRT_PI;
    }
    let tail = (1..60).rev().fold(size, |rest, n| size + f64::from(n) / 2.0 / rest);
    (1.0 - (-size * size).exp() / tail / std::f64::consts::PI.sqrt()).copysign(x)
}

fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::None => x,
        Activation::Gelu => x * 0.5 * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        Activation::Relu6 => x.clamp(0.0, 6.0),
    }
}

/// Calls `visit` with (row of the output, tap of the kernel, row of the input) for all that lie in a picture.
fn walk(window: &Window, pictures: usize, mut visit: impl FnMut(usize, usize, usize)) {
    let (height, width) = window.output().expect("a kernel that fits");
    for picture in 0..pictures {
        for (row, column) in (0..height).flat_map(|row| (0..width).map(move |column| (row, column))) {
            for tap in 0..window.kernel.0 * window.kernel.1 {
                let y = (row * window.stride.0 + tap / window.kernel.1).checked_sub(window.padding.rows.0);
                let x = (column * window.stride.1 + tap % window.kernel.1).checked_sub(window.padding.columns.0);
                if let (Some(y), Some(x)) = (y, x)
                    && y < window.size.0
                    && x < window.size.1
                {
                    let out = (picture * height + row) * width + column;
                    visit(out, tap, (picture * window.size.0 + y) * window.size.1 + x);
                }
            }
        }
    }
}

/// How many pictures there are, and how many rows their outputs have.
fn pictures(x: &Rows, window: &Window) -> (usize, usize) {
    let (height, width) = window.output().expect("a kernel that fits");
    let pictures = x.rows().count() / (window.size.0 * window.size.1);
    (pictures, pictures * height * width)
}

impl Dense for Scalar {
    fn write(&mut self, parts: &[&[f32]], out: &mut Rows) {
        out.put(parts.iter().copied().flatten().copied());
    }

    fn gather(&mut self, table: &Rows, rows: &[u32], out: &mut Rows) {
        out.put(rows.iter().flat_map(|row| table.row(*row as usize)).copied());
    }

    fn add_rows(&mut self, x: &Rows, rows: &[u32], out: &mut Rows) {
        let x = rows.iter().flat_map(|row| x.row(*row as usize));
        out.numbers.iter_mut().zip(x).for_each(|(out, x)| *out += x);
    }

    fn add(&mut self, x: &Rows, out: &mut Rows) {
        out.numbers.iter_mut().zip(&x.numbers).for_each(|(out, x)| *out += x);
    }

    fn bias(&mut self, bias: &Rows, activation: Activation, x: &mut Rows) {
        for row in x.numbers.chunks_exact_mut(x.width) {
            for (x, bias) in row.iter_mut().zip(bias.row(0)) {
                *x = activate(activation, f64::from(*x) + f64::from(*bias)) as f32;
            }
        }
    }

    fn layer_norm(&mut self, x: &Rows, affine: (&Rows, &Rows), epsilon: f32, out: &mut Rows) {
        out.put(x.rows().flat_map(|row| {
            let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / row.len() as f64;
            let square = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / row.len() as f64;
            let scale = 1.0 / (square + f64::from(epsilon)).sqrt();
            let affine = affine.0.row(0).iter().zip(affine.1.row(0));
            row.iter().zip(affine).map(move |(x, (weight, bias))| {
                ((f64::from(*x) - mean) * scale * f64::from(*weight) + f64::from(*bias)) as f32
            })
        }));
    }

    fn attend(&mut self, inputs: Attended<'_, Rows>, spans: &[Span], heads: Heads, mask: Mask, out: &mut Rows) {
        out.numbers.resize(inputs.queries.rows.rows().count() * out.width, 0.0);
        for span in spans {
            for (query, head) in (0..span.queries.len()).flat_map(|query| (0..heads.count).map(move |h| (query, h))) {
                let weights = weights(&inputs, (span, query), (heads, head), mask);
                for i in 0..heads.width {
                    let values = span.keys.clone().map(|key| f64::from(inputs.values.head(key, heads, head)[i]));
                    let sum: f64 = weights.iter().zip(values).map(|(weight, value)| weight * value).sum();
                    out.numbers[(span.queries.start + query) * out.width + head * heads.width + i] = sum as f32;
                }
            }
        }
    }

    fn attention_weights(&mut self, inputs: Attended<'_, Rows>, span: &Span, head: (Heads, usize), out: &mut Vec<f32>) {
        for query in 0..span.queries.len() {
            out.extend(weights(&inputs, (span, query), head, Mask::Full).into_iter().map(|weight| weight as f32));
        }
    }

    fn scatter(&mut self, x: View<'_, Rows>, rows: &[u32], out: &mut Rows) {
        let end = rows.iter().map(|row| *row as usize + 1).max().unwrap_or(0);
        out.numbers.resize(out.numbers.len().max(end * out.width), 0.0);
        for (x_row, row) in x.rows.rows().zip(rows) {
            let to = &mut out.numbers[*row as usize * out.width..][..out.width];
            to.copy_from_slice(&x_row[x.column..][..out.width]);
        }
    }

    fn mean(&mut self, x: &Rows, spans: &[Range<usize>], out: &mut Rows) {
        out.put(spans.iter().flat_map(|span| {
            (0..x.width).map(|i| {
                let sum: f64 = span.clone().map(|row| f64::from(x.row(row)[i])).sum();
                (sum / span.len().max(1) as f64) as f32
            })
        }));
    }

    fn unfold(&mut self, x: &Rows, window: &Window, out: &mut Rows) {
        let (pictures, rows) = pictures(x, window);
        let (channels, width) = (x.width, out.width);
        out.put(std::iter::repeat_n(0.0, rows * width));
        walk(window, pictures, |row, tap, from| {
            out.numbers[row * width + tap * channels..][..channels].copy_from_slice(x.row(from));
        });
    }

    fn depthwise(
        &mut self,
        (x, kernel): (&Rows, &Rows),
        (bias, activation): (&Rows, Activation),
        window: &Window,
        out: &mut Rows,
    ) {
        let (pictures, rows) = pictures(x, window);
        let mut sums = vec![0.0; rows * x.width];
        walk(window, pictures, |row, tap, from| {
            let products = x.row(from).iter().zip(&kernel.numbers[tap * x.width..][..x.width]);
            let sums = &mut sums[row * x.width..][..x.width];
            sums.iter_mut().zip(products).for_each(|(sum, (x, k))| *sum += f64::from(*x) * f64::from(*k));
        });
        out.put(sums.into_iter().map(|sum| sum as f32));
        self.bias(bias, activation, out);
    }
}
