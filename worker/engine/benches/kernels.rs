//! Products of one layer's matrices on one thread, at every level of this machine: elements a second are multiply-adds.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use engine::pool::Strip;
use engine::quant::Format;
use engine::simd::Level;
use engine::simd::linear::{Begin, Input, Scratch, multiply};
use engine::simd::panel::Panels;

/// The feed-forward of SmolLM2-135M, (outputs, inputs).
const SHAPE: (usize, usize) = (3072, 576);

fn products(criterion: &mut Criterion) {
    let (outputs, inputs) = SHAPE;
    for format in [Format::Q4_1, Format::Q8_0] {
        let bytes = outputs * inputs / format.block_len() * format.block_bytes();
        // Any bytes are a matrix; small ones keep the scales tame.
        let data: Vec<u8> = (0..bytes).map(|i| (i % 61) as u8).collect();
        let panels = Panels::pack(format, inputs, &data).expect("a matrix packs");
        for level in Level::all().into_iter().skip(1) {
            let mut group = criterion.benchmark_group(format!("{} {}", format.name(), level.name()));
            group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_secs(1)).sample_size(20);
            for rows in [1, 2, 3, 4, 5, 8, 16, 96, 512] {
                let (x, mut out) = (vec![0.5; rows * inputs], vec![0.0; rows * outputs]);
                let mut scratch = Scratch::default();
                group.throughput(Throughput::Elements((rows * outputs * inputs) as u64));
                group.bench_function(format!("{rows} rows"), |bencher| {
                    bencher.iter(|| {
                        let mut strip = Strip::whole(&mut out, outputs);
                        let input = Input { x: black_box(&x), rows };
                        multiply(level, input, (&panels, 0..panels.count()), (Begin::Zero, &mut strip), &mut scratch);
                    });
                });
            }
        }
    }
}

criterion_group!(benches, products);
criterion_main!(benches);
