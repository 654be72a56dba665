//! Products of one layer's matrices on one thread, at every level of this machine: elements a second are multiply-adds.

use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use engine::pool::Strip;
use engine::quant::Format;
use engine::simd::digits::{Digits, Planes, digitise};
use engine::simd::linear::{self, Input, Scratch};
use engine::simd::panel::{BLOCK, Panels};
use engine::simd::tile::Begin;
use engine::simd::{Level, integer};

/// The feed-forward of SmolLM2-135M, (outputs, inputs).
const SHAPE: (usize, usize) = (3072, 576);
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
        let panels = Panels::pack(format, inputs, &data).expect("a matrix packs");
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
                        linear::multiply(
                            level,
                            input,
                            (&panels, 0..panels.count()),
                            (Begin::Zero, strip),
                            &mut scratch,
                        );
                    });
                });
            }
            singles.finish();
            for (planes, rows) in
                [Planes::One, Planes::Two].into_iter().flat_map(|planes| ROWS.map(|rows| (planes, rows)))
            {
                let mut integers =
                    group(criterion, format!("{} int{} {}", format.name(), 8 * planes.count(), level.name()));
                let (x, mut out) = (vec![0.5; rows * inputs], vec![0.0; rows * outputs]);
                let mut scratch = Scratch::default();
                let mut digits = vec![Digits::ZERO; x.len() / BLOCK * planes.count()];
                integers.throughput(Throughput::Elements((rows * outputs * inputs) as u64));
                integers.bench_function(format!("{rows} rows"), |bencher| {
                    bencher.iter(|| {
                        digitise(level, black_box(&x), planes, &mut digits);
                        let strip = &mut Strip::whole(&mut out, outputs);
                        let panels = (&panels, 0..panels.count());
                        integer::multiply(level, (&digits, rows), panels, (Begin::Zero, strip), &mut scratch);
                    });
                });
                integers.finish();
            }
        }
    }
}

criterion_group!(benches, products);
criterion_main!(benches);
