//! What encoders ask: every operation against the oracle on ragged and odd shapes, and the same bits at every level, in
//! every company, on any number of threads.

use std::ops::Range;

use super::*;
use crate::backend::dense::{
    Activation, Attended, Dense, Heads, InvertedResidual, Mask, Padding, Residual, Span, View, Window,
};
use crate::simd::brains::Unit;

/// Runs an operation on the oracle and on the processor: close to the one, the same bits on one and two threads at
/// every level of the other, with weights as they are and with whole rows of bytes; by a matrix unit close, and the same
/// bits on any threads. Returns the processor's numbers.
fn check(case: &str, run: &dyn Runs) -> Vec<f32> {
    let truth = run.oracle(&mut Scalar::new(LIMITS));
    let first = run.processor(&mut Cpu::new(Level::Scalar, 1, LIMITS));
    assert!(error(&truth, &first) < 1e-11, "{case}: {}", error(&truth, &first));
    for level in Level::all() {
        for threads in [1, 2] {
            let got = run.processor(&mut Cpu::new(level, threads, LIMITS));
            assert!(bits(&first).eq(bits(&got)), "{case} at {} on {threads}", level.name());
        }
    }
    let coarse = |level, threads| run.processor(&mut of_bytes(level, threads));
    let rows = coarse(Level::Scalar, 1);
    assert!(error(&truth, &rows) < OF_BYTES, "{case} of bytes: {}", error(&truth, &rows));
    for (level, threads) in Level::all().into_iter().flat_map(|level| [(level, 1), (level, 2)]) {
        assert!(bits(&rows).eq(bits(&coarse(level, threads))), "{case} of bytes at {} on {threads}", level.name());
    }
    for (unit, (weights, bound)) in units().into_iter().flat_map(|unit| HELD.map(|held| (unit, held))) {
        let cpu = |threads| Cpu::new(Level::detect(), threads, LIMITS).holding(weights).by(Some(unit));
        let [alone, together] = [1, 2].map(|threads| run.processor(&mut cpu(threads)));
        assert!(error(&truth, &alone) < bound, "{case} by {unit:?}: {}", error(&truth, &alone));
        assert!(bits(&alone).eq(bits(&together)), "{case} by {unit:?}");
    }
    first
}

/// How weights are held, and the error that may cost.
const HELD: [(Weights, f64); 2] = [(Weights::Stored, 1e-10), (Weights::Int8, 1e-3)];

/// The error that whole rows of bytes may cost.
const OF_BYTES: f64 = 1e-3;

/// A processor whose dense products are of such.
fn of_bytes(level: Level, threads: usize) -> Cpu {
    Cpu::new(level, threads, LIMITS).holding(Weights::Int8).with(Activations::Rows)
}

/// What multiplies many rows: the plain one everywhere, and this machine's where it has one.
fn units() -> Vec<Unit> {
    [Some(Unit::Plain), Level::detect().unit()].into_iter().flatten().collect()
}

/// An operation on either backend.
trait Runs {
    fn oracle(&self, backend: &mut Scalar) -> Vec<f32>;
    fn processor(&self, backend: &mut Cpu) -> Vec<f32>;
}

/// An operation, written once for all backends.
macro_rules! operation {
    (|$backend:ident| $body:expr) => {{
        struct Operation<F, G>(F, G);
        impl<F: Fn(&mut Scalar) -> Vec<f32>, G: Fn(&mut Cpu) -> Vec<f32>> Runs for Operation<F, G> {
            fn oracle(&self, backend: &mut Scalar) -> Vec<f32> {
                (self.0)(backend)
            }
            fn processor(&self, backend: &mut Cpu) -> Vec<f32> {
                (self.1)(backend)
            }
        }
        Operation(|$backend: &mut Scalar| $body, |$backend: &mut Cpu| $body)
    }};
}

fn put<B: Backend>(backend: &B, numbers: &[f32], width: usize) -> B::Buf {
    backend.upload(numbers, width).expect("memory")
}

fn empty<B: Backend>(backend: &B, rows: usize, width: usize) -> B::Buf {
    backend.buffer(rows, width).expect("memory")
}

#[test]
fn products_of_any_width_are_the_oracle_s() {
    let mut noise = Noise(20);
    for format in [Format::F32, Format::F16, Format::BF16] {
        for (outputs, columns, rows) in
            [(16, 27, 1), (7, 1, 3), (24, 16, 9), (1000, 40, 2), (80, 24, 200), (96, 144, 5)]
        {
            let data = noise.matrix(format, outputs, columns);
            let parts = [Matrix { format, columns, data: &data }];
            let (x, before) = (noise.numbers(rows * columns), noise.numbers(rows * outputs));
            let run = operation!(|backend| linear(backend, (&x, columns), &parts, Some(&before)));
            check(&format!("{outputs} of {columns}"), &run);
            // Every row by itself: the same bits.
            let level = Level::detect();
            let all = linear(&mut Cpu::new(level, 2, LIMITS), (&x, columns), &parts, None);
            for (x, all) in x.chunks(columns).zip(all.chunks(outputs)) {
                let alone = linear(&mut Cpu::new(level, 1, LIMITS), (x, columns), &parts, None);
                assert!(bits(all).eq(bits(&alone)), "{outputs} of {columns}");
            }
        }
    }
}

#[test]
fn activations_are_close_to_their_definitions() {
    let x: Vec<f32> = (-40_000..40_000).map(|i| i as f32 / 4_000.0).collect();
    for activation in [Activation::None, Activation::Gelu, Activation::QuickGelu, Activation::Relu6] {
        let truth = biased(&mut Scalar::new(LIMITS), &x, activation);
        let first = biased(&mut Cpu::new(Level::Scalar, 1, LIMITS), &x, activation);
        let worst = truth.iter().zip(&first).map(|(truth, got)| (truth - got).abs()).fold(0.0, f32::max);
        assert!(worst < 2e-6, "{activation:?}: {worst}");
        for level in Level::all() {
            let got = biased(&mut Cpu::new(level, 2, LIMITS), &x, activation);
            assert!(bits(&first).eq(bits(&got)), "{activation:?} at {}", level.name());
        }
    }
}

fn biased<B: Dense>(backend: &mut B, x: &[f32], activation: Activation) -> Vec<f32> {
    let bias = put(backend, &vec![0.0; x.len()], x.len());
    let mut out = put(backend, x, x.len());
    backend.bias(&bias, activation, &mut out);
    read(backend, &out)
}

#[test]
fn rows_are_normed_biased_added_and_averaged_as_the_oracle_does() {
    let mut noise = Noise(21);
    for width in [1, 3, 16, 17, 31, 64, 100, 384] {
        let rows = 37;
        let x: Vec<f32> = noise.numbers(rows * width).iter().map(|x| x * 5.0 + 1.0).collect();
        let (weight, bias, before) = (noise.numbers(width), noise.numbers(width), noise.numbers(rows * width));
        let picked: Vec<u32> = (0..rows).map(|_| noise.bits() as u32 % rows as u32).collect();
        let (spans, whole) = ([0..1, 1..20, 20..20, 20..37], 0..rows);
        check(
            &format!("rows of {width}"),
            &operation!(|backend| {
                let (x, weight) = (put(backend, &x, width), put(backend, &weight, width));
                let (bias, mut sums) = (put(backend, &bias, width), put(backend, &before, width));
                let mut normed = empty(backend, rows, width);
                // The variance of a row of one number is none, so that the norm shows rounding errors only.
                backend.layer_norm(&x, (&weight, &bias), 1e-2, &mut normed);
                backend.bias(&bias, Activation::QuickGelu, &mut normed);
                backend.add(&normed, &mut sums);
                backend.add_rows(&x, &picked, &mut sums);
                let mut means = empty(backend, 4, width);
                backend.mean(&sums, &spans, &mut means);
                let mut mean = empty(backend, 1, width);
                backend.mean(&sums, std::slice::from_ref(&whole), &mut mean);
                [read(backend, &sums), read(backend, &means), read(backend, &mean)].concat()
            }),
        );
    }
}

#[test]
fn rows_are_written_gathered_and_scattered() {
    let mut noise = Noise(22);
    let (rows, width) = (23, 50);
    let table = noise.matrix(Format::F32, rows, width);
    let x = noise.numbers(6 * 70);
    let run = operation!(|backend| {
        let table = backend.pack(&[Matrix { format: Format::F32, columns: width, data: &table }]).expect("a table");
        let mut out = empty(backend, 100, width);
        assert!(read(backend, &out).is_empty(), "a new buffer has no rows");
        backend.gather(&table, &[22, 0, 7, 7], &mut out);
        let mut wide = empty(backend, 9, 70);
        backend.write(&[&x], &mut wide);
        backend.scatter(View { rows: &wide, column: 20 }, &[3, 1, 9, 0, 7, 2], &mut out);
        backend.write(&[&x[..30], &x[30..70]], &mut wide);
        backend.scatter(View { rows: &wide, column: 3 }, &[4], &mut out);
        [read(backend, &out), read(backend, &wide)].concat()
    });
    let got = check("rows", &run);
    assert_eq!(got.len(), 10 * width + 70, "as many rows as were written");
    assert_eq!(got[9 * width..10 * width], x[2 * 70 + 20..][..50]);
    assert_eq!(got[4 * width..5 * width], x[3..53]);
}

/// What a span attends with: numbers of its queries, and of its keys and values.
struct Text {
    queries: usize,
    keys: usize,
    seed: u64,
}

/// Attention of texts over keys of their own; then the weights of the last head of the last text.
fn attend<B: Dense>(backend: &mut B, texts: &[Text], heads: Heads, mask: Mask) -> (Vec<f32>, Vec<f32>) {
    let width = heads.count * heads.width;
    // Queries begin at column 2 of rows that hold more; keys and values share rows.
    let (query_width, key_width) = (width + 5, 2 * width + 3);
    let (mut queries, mut keys, mut spans) = (Vec::new(), Vec::new(), Vec::new());
    let mut places = (0, 0);
    for text in texts {
        let mut noise = Noise(text.seed);
        queries.extend(noise.numbers(text.queries * query_width).iter().map(|x| x * 3.0));
        keys.extend(noise.numbers(text.keys * key_width).iter().map(|x| x * 2.0));
        let ends = (places.0 + text.queries, places.1 + text.keys);
        spans.push(Span { queries: places.0..ends.0, keys: places.1..ends.1 });
        places = ends;
    }
    let (queries, keys) = (put(backend, &queries, query_width), put(backend, &keys, key_width));
    let inputs = Attended {
        queries: View { rows: &queries, column: 2 },
        keys: View { rows: &keys, column: 0 },
        values: View { rows: &keys, column: width + 1 },
    };
    let mut out = empty(backend, places.0, width);
    backend.attend(inputs, &spans, heads, mask, &mut out);
    let mut weights = vec![0.25];
    let last = spans.last().expect("a text");
    backend.attention_weights(inputs, last, (heads, heads.count - 1), &mut weights);
    assert_eq!(weights.remove(0).to_bits(), 0.25_f32.to_bits(), "weights are appended");
    (read(backend, &out), weights)
}

#[test]
fn attention_over_spans_is_the_oracle_s() {
    let text = |queries, keys, seed| Text { queries, keys, seed };
    for (count, width) in [(12, 32), (6, 64), (1, 16), (3, 24), (2, 7), (1, 80)] {
        let heads = Heads { count, width };
        let texts = [
            text(1, 1, 1),
            text(5, 5, 2),
            text(4, 9, 3),
            text(49, 64, 4),
            text(17, 130, 5),
            text(96, 97, 6),
            text(2, 200, 7),
        ];
        for mask in [Mask::Full, Mask::Causal] {
            let run = operation!(|backend| {
                let (out, weights) = attend(backend, &texts, heads, mask);
                [out, weights].concat()
            });
            check(&format!("{count} heads of {width}, {mask:?}"), &run);
        }
    }
}

#[test]
fn attention_has_the_same_bits_in_any_company() {
    let strategy = proptest::collection::vec((1..70_usize, 0..100_usize, 0..1000_u64), 1..6);
    TestRunner::new(Config { cases: 40, ..Config::default() })
        .run(&strategy, |texts| {
            let texts: Vec<Text> =
                texts.into_iter().map(|(queries, more, seed)| Text { queries, keys: queries + more, seed }).collect();
            let heads = Heads { count: 2, width: 32 };
            for mask in [Mask::Full, Mask::Causal] {
                let together = attend(&mut Cpu::new(Level::detect(), 2, LIMITS), &texts, heads, mask).0;
                let truth = attend(&mut Scalar::new(LIMITS), &texts, heads, mask).0;
                assert!(error(&truth, &together) < 1e-11, "{}", error(&truth, &together));
                let mut rows = together.chunks(64);
                for text in texts.chunks(1) {
                    let alone = attend(&mut Cpu::new(Level::Scalar, 1, LIMITS), text, heads, mask).0;
                    for alone in alone.chunks(64) {
                        assert!(bits(alone).eq(bits(rows.next().expect("a row"))));
                    }
                }
            }
            Ok(())
        })
        .expect("any company");
}

#[test]
fn pictures_are_unfolded_and_convolved_as_the_oracle_does() {
    let mut noise = Noise(23);
    let pad = |rows: (usize, usize), columns: (usize, usize)| Padding { rows, columns };
    for (size, kernel, stride, padding, channels) in [
        ((9, 7), (3, 3), (1, 1), pad((1, 1), (1, 1)), 5),
        ((8, 8), (3, 3), (2, 2), pad((0, 1), (0, 1)), 32),
        ((13, 11), (5, 5), (2, 2), pad((2, 2), (1, 2)), 100),
        ((6, 6), (5, 5), (1, 1), pad((2, 2), (2, 2)), 64),
        ((1, 30), (1, 3), (1, 2), pad((0, 0), (1, 1)), 80),
        ((8, 12), (4, 4), (4, 4), Padding::default(), 3),
        ((2, 2), (5, 5), (1, 1), pad((4, 4), (4, 4)), 17),
        ((3, 3), (1, 1), (1, 1), Padding::default(), 16),
    ] {
        let window = Window { size, kernel, stride, padding };
        let (height, width) = window.output().expect("a kernel that fits");
        let x = noise.numbers(3 * size.0 * size.1 * channels);
        let (taps, bias) = (noise.numbers(kernel.0 * kernel.1 * channels), noise.numbers(channels));
        let convolve = |range: Range<usize>| {
            let x = &x[range.start * size.0 * size.1 * channels..range.end * size.0 * size.1 * channels];
            let (taps, bias, window, rows) = (&taps, &bias, &window, range.len() * height * width);
            check(
                &format!("{window:?}"),
                &operation!(|backend| {
                    let (x, taps) = (put(backend, x, channels), put(backend, taps, channels));
                    let bias = put(backend, bias, channels);
                    let mut unfolded = empty(backend, rows, kernel.0 * kernel.1 * channels);
                    backend.unfold(&x, window, &mut unfolded);
                    let mut out = empty(backend, rows, channels);
                    backend.depthwise((&x, &taps), (&bias, Activation::Relu6), window, &mut out);
                    [read(backend, &out), read(backend, &unfolded)].concat()
                }),
            )
        };
        let (together, alone) = (convolve(0..3), convolve(1..2));
        let len = height * width * channels;
        assert!(bits(&together[len..2 * len]).eq(bits(&alone[..len])), "{window:?}");
    }
}

/// Shapes of blocks, and how many pictures: as layers, one strip a picture, and several.
const BLOCKS: [(Window, usize, usize); 5] = [
    (square(9, (3, 1), 1), 5, 3),
    (square(14, (5, 1), 2), 500, 4),
    (square(56, (3, 1), 1), 64, 1),
    (square(57, (5, 2), 2), 100, 3),
    (square(80, (3, 2), 1), 40, 2),
];

const fn square(side: usize, (kernel, stride): (usize, usize), padding: usize) -> Window {
    let padding = Padding { rows: (padding, padding), columns: (padding, padding) };
    Window { size: (side, side), kernel: (kernel, kernel), stride: (stride, stride), padding }
}

#[test]
fn blocks_are_the_oracle_s_however_they_are_cut() {
    let mut noise = Noise(25);
    for (window, wide, pictures) in BLOCKS {
        let (height, width) = window.output().expect("a kernel that fits");
        let places = window.size.0 * window.size.1;
        for (widens, narrow) in [(true, 32), (false, 24)] {
            let channels = if widens { 32 } else { wide };
            let residual = if window.stride == (1, 1) && channels == narrow { Residual::Added } else { Residual::None };
            let x = noise.numbers(pictures * places * channels);
            let [expand, project] = [wide * channels, narrow * wide].map(|len| noise.matrix(Format::F32, 1, len));
            let taps = noise.numbers(window.kernel.0 * window.kernel.1 * wide);
            let biases = noise.numbers(wide.max(narrow));
            let run = operation!(|backend| {
                let matrix = |columns, data| Matrix { format: Format::F32, columns, data };
                let weights = [matrix(channels, &expand), matrix(wide, &project)];
                let [expand, project] = weights.map(|weight| backend.pack_for_many(&[weight]).expect("a matrix"));
                let (x, taps) = (put(backend, &x, channels), put(backend, &taps, wide));
                let [bias, last] = [wide, narrow].map(|len| put(backend, &biases[..len], len));
                let rows = pictures * height * width;
                let (mut widened, mut filtered) = (empty(backend, pictures * places, wide), empty(backend, rows, wide));
                let mut out = empty(backend, rows, narrow);
                let block = InvertedResidual {
                    expand: widens.then_some((&expand, &bias)),
                    filter: (&taps, &bias),
                    window: &window,
                    activation: Activation::Relu6,
                    project: (&project, &last),
                    residual,
                };
                backend.inverted_residual(&x, &block, (&mut widened, &mut filtered), &mut out);
                read(backend, &out)
            });
            check(&format!("{window:?}, {wide} channels, {residual:?}"), &run);
        }
    }
}

#[test]
fn convolutions_of_all_channels_are_the_oracle_s() {
    let mut noise = Noise(26);
    for (window, channels, outputs) in
        [(square(17, (3, 2), 1), 3, 32), (square(17, (3, 2), 1), 32, 40), (square(5, (3, 1), 1), 20, 17)]
    {
        let (height, width) = window.output().expect("a kernel that fits");
        let (inputs, rows) = (window.kernel.0 * window.kernel.1 * channels, 3 * height * width);
        let x = noise.numbers(3 * window.size.0 * window.size.1 * channels);
        let (weight, bias) = (noise.matrix(Format::F32, outputs, inputs), noise.numbers(outputs));
        let run = operation!(|backend| {
            let weight = Matrix { format: Format::F32, columns: inputs, data: &weight };
            let weight = backend.pack_for_many(&[weight]).expect("fits");
            let (x, bias) = (put(backend, &x, channels), put(backend, &bias, outputs));
            let (mut unfolded, mut out) = (empty(backend, rows, inputs), empty(backend, rows, outputs));
            backend.convolve((&x, &window), (&weight, &bias, Activation::Gelu), &mut unfolded, &mut out);
            read(backend, &out)
        });
        check(&format!("{window:?}"), &run);
    }
}

#[test]
fn what_follows_a_product_does_not_depend_on_how_its_rows_were_cut() {
    let mut noise = Noise(23);
    for (rows, inputs, outputs) in [(5, 64, 40), (200, 96, 24), (131, 160, 130), (97, 27, 33)] {
        let numbers = noise.numbers(outputs * inputs);
        let data: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let (x, bias, before) = (noise.numbers(rows * inputs), noise.numbers(outputs), noise.numbers(rows * outputs));
        let devices = Level::all().into_iter().flat_map(|level| {
            [Weights::Stored, Weights::Int8]
                .map(|weights| (level, weights, Cpu::new(level, 3, LIMITS).holding(weights)))
        });
        for (level, weights, device) in devices {
            let mut device = device.with(Activations::Mixed);
            let weight = device.pack(&[Matrix { format: Format::F32, columns: inputs, data: &data }]).unwrap();
            let (x, bias) = (put(&device, &x, inputs), put(&device, &bias, outputs));
            let [mut apart, mut together] = [0; 2].map(|_| put(&device, &before, outputs));
            device.linear(&x, &weight, Epilogue::Add, &mut apart);
            device.bias(&bias, Activation::Gelu, &mut apart);
            device.affine((&x, &weight), (&bias, Activation::Gelu), Epilogue::Add, &mut together);
            let (apart, together) = (read(&device, &apart), read(&device, &together));
            assert!(bits(&apart).eq(bits(&together)), "{rows} {inputs} {outputs} {weights:?} {}", level.name());
        }
    }
}

/// Formats of weights, how they are held, and the error that may cost.
const UNIT_CASES: [(Format, Weights, f64); 6] = [
    (Format::F32, Weights::Stored, 1e-10),
    (Format::F16, Weights::Stored, 1e-10),
    (Format::BF16, Weights::Stored, 1e-10),
    (Format::Q8_0, Weights::Stored, 1e-5),
    (Format::F32, Weights::Int8, 1e-4),
    (Format::Q8_0, Weights::Int8, 1e-5),
];

#[test]
fn dense_products_are_near_the_oracle_s_and_alike_in_any_company() {
    let mut noise = Noise(27);
    for (format, weights, bound) in UNIT_CASES {
        for (rows, inputs, outputs) in [(1, 160, 136), (33, 128, 140), (700, 200, 128), (97, 27, 32), (64, 96, 16)] {
            let inputs = if format == Format::Q8_0 { inputs / 32 * 32 + 32 } else { inputs };
            let (first, second) = (noise.matrix(format, outputs, inputs), noise.matrix(format, 8, inputs));
            let parts = [&first, &second].map(|data| Matrix { format, columns: inputs, data });
            let outputs = outputs + 8;
            let (x, bias) = (noise.numbers(rows * inputs), noise.numbers(outputs));
            let before = noise.numbers(rows * outputs);
            let truth = finished(&mut Scalar::new(LIMITS), &parts, (&x, &bias), &before).1;
            let by = |unit: &Unit| Cpu::new(Level::detect(), 3, LIMITS).holding(weights).by(Some(*unit));
            let devices = units()
                .iter()
                .map(|unit| (format!("{unit:?}"), by(unit), bound))
                .chain([("bytes".into(), of_bytes(Level::detect(), 3), OF_BYTES)])
                .collect::<Vec<_>>();
            for (device, mut cpu, bound) in devices {
                let (apart, together) = finished(&mut cpu, &parts, (&x, &bias), &before);
                let case = format!("{format:?} {weights:?} {rows} {inputs} {outputs} {device}");
                assert!(error(&truth, &together) < bound, "{case}: {}", error(&truth, &together));
                assert!(bits(&apart).eq(bits(&together)), "{case}");
                let last = (rows - 1) * inputs..;
                let (x, before) = (&x[last], &before[(rows - 1) * outputs..]);
                let alone = finished(&mut cpu, &parts, (x, &bias), before).1;
                assert!(bits(&alone).eq(bits(&together[(rows - 1) * outputs..])), "{case} alone");
            }
        }
    }
}

/// What follows a product, by itself and with it.
fn finished<B: Dense>(
    backend: &mut B,
    parts: &[Matrix<'_>],
    (x, bias): (&[f32], &[f32]),
    before: &[f32],
) -> (Vec<f32>, Vec<f32>) {
    let weight = backend.pack_for_many(parts).expect("matrices of equal inputs");
    let (x, bias) = (put(backend, x, parts[0].columns), put(backend, bias, bias.len()));
    let outputs = parts.iter().map(Matrix::rows).sum();
    let [mut apart, mut together] = [0; 2].map(|_| put(backend, before, outputs));
    backend.linear(&x, &weight, Epilogue::Add, &mut apart);
    backend.bias(&bias, Activation::Gelu, &mut apart);
    backend.affine((&x, &weight), (&bias, Activation::Gelu), Epilogue::Add, &mut together);
    (read(backend, &apart), read(backend, &together))
}

#[test]
fn dense_products_are_packed_of_whole_rows_of_one_length() {
    let matrix = |columns, bytes: &'static [u8]| Matrix { format: Format::F32, columns, data: bytes };
    for mut cpu in [Cpu::new(Level::detect(), 1, LIMITS).by(Some(Unit::Plain)), of_bytes(Level::detect(), 1)] {
        assert!(cpu.pack_for_many(&[matrix(2, &[0; 16]), matrix(3, &[0; 12])]).is_err());
        assert!(cpu.pack_for_many(&[matrix(2, &[0; 12])]).is_err());
        assert!(cpu.pack_for_many(&[matrix(0, &[])]).is_err());
    }
}

#[test]
fn places_outside_a_buffer_are_refused() {
    let refused = |run: fn(&mut Cpu)| {
        let mut cpu = Cpu::new(Level::detect(), 1, LIMITS);
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&mut cpu))).is_err()
    };
    assert!(refused(|cpu| {
        let (x, mut out) = (put(cpu, &[0.0; 32], 16), empty(cpu, 3, 16));
        cpu.scatter(View { rows: &x, column: 0 }, &[0, 3], &mut out);
    }));
    assert!(refused(|cpu| {
        let (x, mut out) = (put(cpu, &[0.0; 32], 16), empty(cpu, 2, 16));
        let view = View { rows: &x, column: 0 };
        let inputs = Attended { queries: view, keys: view, values: view };
        let spans = [Span { queries: 0..2, keys: 0..3 }];
        cpu.attend(inputs, &spans, Heads { count: 1, width: 16 }, Mask::Full, &mut out);
    }));
    assert!(refused(|cpu| {
        let mut out = empty(cpu, 2, 16);
        cpu.write(&[&[0.0; 48]], &mut out);
    }));
}
