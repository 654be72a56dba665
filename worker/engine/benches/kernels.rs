//! Products of one layer's matrices on one thread, at every level of this machine: elements a second are multiply-adds.

use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use engine::backend::Matrix;
use engine::backend::dense::Activation;
use engine::pool::Strip;
use engine::quant::Format;
use engine::simd::affine::Finish;
use engine::simd::bytes::{Bytes, Cell, code, multiply};
use engine::simd::digits::{Digits, Rounding, digitise};
use engine::simd::linear::{self, Input, Scratch};
use engine::simd::panel::{BLOCK, Panels};
use engine::simd::tile::Begin;
use engine::simd::{Level, integer};

/// The feed-forward of SmolLM2-135M, (outputs, inputs).
const SHAPE: (usize, usize) = (3072, 576);
/// Nothing follows the products.
const PLAIN: Finish<'static> = Finish { begin: Begin::Zero, bias: &[], activation: Activation::None };
const ROWS: [usize; 9] = [1, 2, 3, 4, 5, 8, 16, 96, 512];

fn group<'a>(criterion: &'a mut Criterion, name: String) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1)).sample_size(20);
    group
}

fn products(criterion: &mut Criterion) {
    let (outputs, inputs) = SHAPE;
    for format in [Format::Q4_1, Format::Q8_0] {
        let bytes = outputs * inputs / format.block_len() * format.block_bytes();
        // Any bytes are a matrix; small ones keep the scales tame.
        let data: Vec<u8> = (0..bytes).map(|i| (i % 61) as u8).collect();
        let panels = Panels::pack(&Matrix { format, columns: inputs, data: &data }).expect("a matrix packs");
        for level in Level::all().into_iter().skip(1) {
            let mut singles = group(criterion, format!("{} f32 {}", format.name(), level.name()));
            for rows in ROWS {
                let (x, mut out) = (vec![0.5; rows * inputs], vec![0.0; rows * outputs]);
                let mut scratch = Scratch::default();
                singles.throughput(Throughput::Elements((rows * outputs * inputs) as u64));
                singles.bench_function(format!("{rows} rows"), |bencher| {
                    bencher.iter(|| {
                        let strip = &mut Strip::whole(&mut out, outputs);
                        let input = Input { x: black_box(&x), rows };
                        linear::multiply(level, input, (&panels, 0..panels.count()), (PLAIN, strip), &mut scratch);
                    });
                });
            }
            singles.finish();
            for (rounding, rows) in
                [Rounding::One, Rounding::Two].into_iter().flat_map(|rounding| ROWS.map(|rows| (rounding, rows)))
            {
                let mut integers =
                    group(criterion, format!("{} int{} {}", format.name(), 8 * rounding.planes(), level.name()));
                let (x, mut out) = (vec![0.5; rows * inputs], vec![0.0; rows * outputs]);
                let mut scratch = Scratch::default();
                let mut digits = vec![Digits::ZERO; x.len() / BLOCK * rounding.planes()];
                integers.throughput(Throughput::Elements((rows * outputs * inputs) as u64));
                integers.bench_function(format!("{rows} rows"), |bencher| {
                    bencher.iter(|| {
                        digitise(level, black_box(&x), rounding, &mut digits);
                        let strip = &mut Strip::whole(&mut out, outputs);
                        let panels = (&panels, 0..panels.count());
                        integer::multiply(level, (&digits, rows), panels, (PLAIN, strip), &mut scratch);
                    });
                });
                integers.finish();
            }
        }
    }
}

/// Whole rows of bytes, the inputs' rounding included.
fn products_of_bytes(criterion: &mut Criterion) {
    let (outputs, inputs) = SHAPE;
    let data: Vec<u8> = (0..outputs * inputs).flat_map(|i| ((i % 61) as f32).to_le_bytes()).collect();
    let matrix = Matrix { format: Format::F32, columns: inputs, data: &data };
    let weights = Bytes::pack(&[matrix], |_| {}).expect("a matrix packs");
    for level in Level::all().into_iter().skip(1) {
        let mut bytes = group(criterion, format!("bytes {}", level.name()));
        for rows in ROWS {
            let (x, mut out) = (vec![0.5; rows * inputs], vec![0.0; rows * outputs]);
            let mut cells = vec![Cell::ZERO; rows * weights.cells()];
            bytes.throughput(Throughput::Elements((rows * outputs * inputs) as u64));
            bytes.bench_function(format!("{rows} rows"), |bencher| {
                bencher.iter(|| {
                    for (x, out) in black_box(&x).chunks_exact(inputs).zip(cells.chunks_exact_mut(weights.cells())) {
                        code(level, x, &weights, out);
                    }
                    multiply(level, &cells, (&weights, 0..outputs), PLAIN, &mut Strip::whole(&mut out, outputs));
                });
            });
        }
        bytes.finish();
    }
}

criterion_group!(benches, products, products_of_bytes);
criterion_main!(benches);
