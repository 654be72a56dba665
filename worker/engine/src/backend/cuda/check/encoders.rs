//! What encoders ask beside products: attention over spans, rows that are moved, convolutions.

use super::{Case, Held, PAGED, ROUNDED, SUMS, case, empty, halves, matrix, put, read};
use crate::backend::Matrix;
use crate::backend::dense::{
    Activation, Attended, Dense, Heads, InvertedResidual, Mask, Padding, Residual, Span, View, Window,
};
use crate::fixture::Noise;
use crate::quant::Format;

/// Queries and keys of each span.
const SPANS: [(usize, usize); 7] = [(1, 1), (5, 5), (4, 9), (49, 64), (17, 130), (96, 97), (2, 200)];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (count, width) in [(12, 32), (6, 64), (1, 16), (3, 24), (2, 7), (1, 80), (2, 128)] {
        for (mask, held) in [Mask::Full, Mask::Causal].into_iter().flat_map(|m| [(m, Held::Exact), (m, Held::Inputs)]) {
            let looking = Looking { heads: Heads { count, width }, mask, held };
            let allowed = if held == Held::Exact { 20.0 * SUMS } else { PAGED };
            cases.push(case!(format!("attention {looking:?}"), allowed, looking));
        }
    }
    for held in [Held::Exact, Held::Inputs] {
        cases.push(case!(format!("moved rows {held:?}"), 0.0, Moving { held }));
    }
    for (window, channels) in windows() {
        for held in [Held::Exact, Held::Inputs] {
            let filtering = Filtering { window, channels, held };
            cases.push(case!(format!("filters {filtering:?}"), held.allowed(), filtering));
        }
    }
    for (window, channels, outputs) in [(square(17, (3, 2), 1), 3, 32), (square(5, (3, 1), 1), 24, 17)] {
        let convolving = Convolving { window, channels, outputs };
        cases.push(case!(format!("convolution {convolving:?}"), 2.0 * ROUNDED, convolving));
    }
    for (window, wide) in [(square(9, (3, 1), 1), 48), (square(14, (5, 2), 2), 40)] {
        cases.push(case!(format!("block {window:?}"), 5.0 * ROUNDED, Block { window, wide }));
    }
    cases
}

const fn square(side: usize, (kernel, stride): (usize, usize), padding: usize) -> Window {
    let padding = Padding { rows: (padding, padding), columns: (padding, padding) };
    Window { size: (side, side), kernel: (kernel, kernel), stride: (stride, stride), padding }
}

fn windows() -> [(Window, usize); 7] {
    let pad = |rows: (usize, usize), columns: (usize, usize)| Padding { rows, columns };
    let window = |size, kernel, stride, padding| Window { size, kernel, stride, padding };
    [
        (window((9, 7), (3, 3), (1, 1), pad((1, 1), (1, 1))), 5),
        (window((8, 8), (3, 3), (2, 2), pad((0, 1), (0, 1))), 32),
        (window((13, 11), (5, 5), (2, 2), pad((2, 2), (1, 2))), 100),
        (window((1, 30), (1, 3), (1, 2), pad((0, 0), (1, 1))), 80),
        (window((8, 12), (4, 4), (4, 4), Padding::default()), 3),
        (window((2, 2), (5, 5), (1, 1), pad((4, 4), (4, 4))), 17),
        (window((3, 3), (1, 1), (1, 1), Padding::default()), 16),
    ]
}

/// Attention of spans over keys of their own; then the weights of the last head of the last span.
#[derive(Clone, Debug)]
struct Looking {
    heads: Heads,
    mask: Mask,
    held: Held,
}

impl Looking {
    fn run<B: Dense>(&self, backend: &mut B) -> Vec<f32> {
        let width = self.heads.count * self.heads.width;
        // Queries begin at a column of rows that hold more; keys and values share rows. The second is not aligned.
        let margin = if self.heads.width.is_multiple_of(8) { 8 } else { 3 };
        let (query_width, key_width) = (width + 2 * margin, 2 * width + margin);
        let (mut spans, mut places) = (Vec::new(), (0, 0));
        for (queries, keys) in SPANS {
            let ends = (places.0 + queries, places.1 + keys);
            spans.push(Span { queries: places.0..ends.0, keys: places.1..ends.1 });
            places = ends;
        }
        let mut noise = Noise(9);
        let queries: Vec<f32> = halves(&mut noise, places.0 * query_width).iter().map(|x| x * 4.0).collect();
        let keys: Vec<f32> = halves(&mut noise, places.1 * key_width).iter().map(|x| x * 2.0).collect();
        let queries = put(backend, &queries, query_width, self.held);
        let keys = put(backend, &keys, key_width, self.held);
        let inputs = Attended {
            queries: View { rows: &queries, column: margin },
            keys: View { rows: &keys, column: 0 },
            values: View { rows: &keys, column: width + margin },
        };
        let mut out = empty(backend, places.0, width, self.held);
        backend.attend(inputs, &spans, self.heads, self.mask, &mut out);
        let mut weights = Vec::new();
        let last = spans.last().expect("a span");
        backend.attention_weights(inputs, last, (self.heads, self.heads.count - 1), &mut weights);
        [read(backend, &out), weights].concat()
    }
}

/// Rows that are written, gathered and scattered.
#[derive(Clone)]
struct Moving {
    held: Held,
}

impl Moving {
    fn run<B: Dense>(&self, backend: &mut B) -> Vec<f32> {
        let (rows, width) = (23, 50);
        let mut noise = Noise(22);
        let (table, x) = (matrix(&halves(&mut noise, rows * width)), halves(&mut noise, 6 * 70));
        let table = backend.pack(&[Matrix { format: Format::F32, columns: width, data: &table }]).expect("a table");
        let mut out = empty(backend, 100, width, self.held);
        backend.gather(&table, &[22, 0, 7, 7], &mut out);
        let mut wide = empty(backend, 9, 70, self.held);
        backend.write(&[&x], &mut wide);
        // Rows that nobody wrote hold anything.
        backend.scatter(View { rows: &wide, column: 20 }, &[3, 1, 0, 2, 4, 5], &mut out);
        backend.write(&[&x[..30], &x[30..70]], &mut wide);
        backend.scatter(View { rows: &wide, column: 3 }, &[4], &mut out);
        let bias = put(backend, &halves(&mut noise, 48), 48, Held::Exact);
        let mut biased = put(backend, &vec![0.0; 5 * 48], 48, self.held);
        backend.bias(&bias, Activation::Relu6, &mut biased);
        [read(backend, &out), read(backend, &wide), read(backend, &biased)].concat()
    }
}

/// Windows, as rows and filtered channel by channel.
#[derive(Clone, Debug)]
struct Filtering {
    window: Window,
    channels: usize,
    held: Held,
}

impl Filtering {
    fn run<B: Dense>(&self, backend: &mut B) -> Vec<f32> {
        let Filtering { window, channels, held } = self;
        let (height, width) = window.output().expect("a kernel that fits");
        let (taps, rows) = (window.kernel.0 * window.kernel.1, 3 * height * width);
        let mut noise = Noise(23);
        let x = put(backend, &halves(&mut noise, 3 * window.size.0 * window.size.1 * channels), *channels, *held);
        let kernel = put(backend, &noise.numbers(taps * channels), *channels, Held::Exact);
        let bias = put(backend, &noise.numbers(*channels), *channels, Held::Exact);
        let mut unfolded = empty(backend, rows, taps * channels, *held);
        backend.unfold(&x, window, &mut unfolded);
        let mut out = empty(backend, rows, *channels, *held);
        backend.depthwise((&x, &kernel), (&bias, Activation::Relu6), window, &mut out);
        [read(backend, &out), read(backend, &unfolded)].concat()
    }
}

/// A convolution of all channels.
#[derive(Clone, Debug)]
struct Convolving {
    window: Window,
    channels: usize,
    outputs: usize,
}

impl Convolving {
    fn run<B: Dense>(&self, backend: &mut B) -> Vec<f32> {
        let Convolving { window, channels, outputs } = self;
        let (height, width) = window.output().expect("a kernel that fits");
        let (inputs, rows) = (window.kernel.0 * window.kernel.1 * channels, 3 * height * width);
        let mut noise = Noise(26);
        let data = matrix(&halves(&mut noise, outputs * inputs));
        let weight = backend.pack(&[Matrix { format: Format::F32, columns: inputs, data: &data }]).expect("a matrix");
        let pixels = halves(&mut noise, 3 * window.size.0 * window.size.1 * channels);
        let x = put(backend, &pixels, *channels, Held::Exact);
        let bias = put(backend, &noise.numbers(*outputs), *outputs, Held::Exact);
        let mut unfolded = empty(backend, rows, inputs, Held::Inputs);
        let mut out = empty(backend, rows, *outputs, Held::Inputs);
        backend.convolve((&x, window), (&weight, &bias, Activation::Gelu), &mut unfolded, &mut out);
        read(backend, &out)
    }
}

/// A block that widens, filters and narrows.
#[derive(Clone)]
struct Block {
    window: Window,
    wide: usize,
}

impl Block {
    fn run<B: Dense>(&self, backend: &mut B) -> Vec<f32> {
        let (window, wide, narrow) = (&self.window, self.wide, 16);
        let (height, width) = window.output().expect("a kernel that fits");
        let (places, rows) = (3 * window.size.0 * window.size.1, 3 * height * width);
        let mut noise = Noise(25);
        let [expand, project] = [0; 2].map(|_| matrix(&halves(&mut noise, wide * narrow)));
        let pack = |backend: &mut B, columns, data: &[u8]| {
            backend.pack(&[Matrix { format: Format::F32, columns, data }]).expect("a matrix")
        };
        let (expand, project) = (pack(backend, narrow, &expand), pack(backend, wide, &project));
        let x = put(backend, &halves(&mut noise, places * narrow), narrow, Held::Inputs);
        let taps = noise.numbers(window.kernel.0 * window.kernel.1 * wide);
        let taps = put(backend, &taps, wide, Held::Exact);
        let [bias, last] = [wide, narrow].map(|len| put(backend, &noise.numbers(len), len, Held::Exact));
        let mut widened = empty(backend, places, wide, Held::Inputs);
        let mut filtered = empty(backend, rows, wide, Held::Inputs);
        let mut out = empty(backend, rows, narrow, Held::Inputs);
        let residual = if window.stride == (1, 1) { Residual::Added } else { Residual::None };
        let block = InvertedResidual {
            expand: Some((&expand, &bias)),
            filter: (&taps, &bias),
            window,
            activation: Activation::Relu6,
            project: (&project, &last),
            residual,
        };
        backend.inverted_residual(&x, &block, (&mut widened, &mut filtered), &mut out);
        read(backend, &out)
    }
}
