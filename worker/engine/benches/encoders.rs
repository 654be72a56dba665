//! What encoders ask of the processor, at the shapes of MiniLM, Whisper-tiny and a small picture model, on one thread
//! and on all: elements a second are multiply-adds.

use std::hint::black_box;
use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use engine::backend::cpu::Cpu;
use engine::backend::dense::{Activation, Attended, Dense, Heads, Mask, Padding, Span, View, Window};
use engine::backend::{Backend, Epilogue, Matrix, StepLimits};
use engine::quant::Format;
use engine::simd::Level;

const LIMITS: StepLimits = StepLimits { rows: 1, outputs: 1, blocks: 1 };

fn numbers(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 7919 % 1999) as f32 / 1000.0 - 1.0).collect()
}

/// A group for every level but the slowest, on one thread and on all.
fn devices(criterion: &mut Criterion, name: &str, mut run: impl FnMut(&mut Cpu, &mut BenchmarkGroup<'_, WallTime>)) {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    for level in Level::all().into_iter().skip(1) {
        for threads in [1, all] {
            let mut group = criterion.benchmark_group(format!("{name} {} {threads}", level.name()));
            group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1)).sample_size(10);
            run(&mut Cpu::new(level, threads, LIMITS), &mut group);
        }
    }
}

fn products(criterion: &mut Criterion) {
    devices(criterion, "linear", |cpu, group| {
        for (rows, inputs, outputs) in [(4096, 384, 1536), (4096, 1536, 384), (16, 384, 1536), (1, 384, 51_864)] {
            let x = cpu.upload(&numbers(rows * inputs), inputs).expect("memory");
            let mut out = cpu.buffer(rows, outputs).expect("memory");
            for format in [Format::F32, Format::F16] {
                let data = vec![0_u8; inputs * outputs * format.block_bytes()];
                let weight = cpu.pack(&[Matrix { format, columns: inputs, data: &data }]).expect("a matrix packs");
                group.throughput(Throughput::Elements((rows * inputs * outputs) as u64));
                group.bench_function(format!("{rows}x{inputs}x{outputs} {}", format.name()), |bencher| {
                    bencher.iter(|| cpu.linear(black_box(&x), &weight, Epilogue::Store, &mut out));
                });
            }
        }
    });
}

fn attention(criterion: &mut Criterion) {
    devices(criterion, "attend", |cpu, group| {
        for (name, spans, queries, keys, heads) in [
            ("whisper encoder", 1, 1500, 1500, Heads { count: 6, width: 64 }),
            ("whisper step", 1, 1, 1500, Heads { count: 6, width: 64 }),
            ("whisper five beams", 1, 5, 1500, Heads { count: 6, width: 64 }),
            ("minilm 128", 32, 128, 128, Heads { count: 12, width: 32 }),
            ("minilm 20", 200, 20, 20, Heads { count: 12, width: 32 }),
            ("vit", 4, 197, 197, Heads { count: 3, width: 64 }),
        ] {
            let width = heads.count * heads.width;
            let q = cpu.upload(&numbers(spans * queries * 3 * width), 3 * width).expect("memory");
            let kv = cpu.upload(&numbers(spans * keys * 3 * width), 3 * width).expect("memory");
            let mut out = cpu.buffer(spans * queries, width).expect("memory");
            let inputs = Attended {
                queries: View { rows: &q, column: 0 },
                keys: View { rows: &kv, column: width },
                values: View { rows: &kv, column: 2 * width },
            };
            let span = |index| Span {
                queries: index * queries..(index + 1) * queries,
                keys: index * keys..(index + 1) * keys,
            };
            let all: Vec<Span> = (0..spans).map(span).collect();
            group.throughput(Throughput::Elements((spans * queries * keys * width * 2) as u64));
            group.bench_function(name, |bencher| {
                bencher.iter(|| cpu.attend(black_box(inputs), &all, heads, Mask::Full, &mut out));
            });
        }
    });
}

fn rows(criterion: &mut Criterion) {
    devices(criterion, "rows", |cpu, group| {
        let (rows, width) = (4096, 1536);
        let mut x = cpu.upload(&numbers(rows * width), width).expect("memory");
        let mut out = cpu.buffer(rows, width).expect("memory");
        let ones = cpu.upload(&vec![1e-3; width], width).expect("memory");
        group.throughput(Throughput::Elements((rows * width) as u64));
        for activation in [Activation::None, Activation::Gelu, Activation::QuickGelu, Activation::Relu6] {
            group.bench_function(format!("{activation:?}"), |bencher| {
                bencher.iter(|| cpu.bias(&ones, activation, &mut x));
            });
        }
        group.bench_function("layer norm", |bencher| {
            bencher.iter(|| cpu.layer_norm(&x, (&ones, &ones), 1e-5, &mut out));
        });
    });
}

fn pictures(criterion: &mut Criterion) {
    devices(criterion, "pictures", |cpu, group| {
        for (side, channels, kernel, stride) in [(112, 96, 3, 2), (56, 144, 3, 1), (28, 240, 5, 1), (14, 672, 5, 1)] {
            let pad = (kernel / 2, kernel / 2);
            let padding = Padding { rows: pad, columns: pad };
            let window = Window { size: (side, side), kernel: (kernel, kernel), stride: (stride, stride), padding };
            let (height, width) = window.output().expect("a kernel that fits");
            let x = cpu.upload(&numbers(4 * side * side * channels), channels).expect("memory");
            let taps = cpu.upload(&numbers(kernel * kernel * channels), channels).expect("memory");
            let bias = cpu.upload(&numbers(channels), channels).expect("memory");
            let mut out = cpu.buffer(4 * height * width, channels).expect("memory");
            group.throughput(Throughput::Elements((4 * height * width * kernel * kernel * channels) as u64));
            group.bench_function(format!("depthwise {side} {channels} {kernel} {stride}"), |bencher| {
                bencher.iter(|| cpu.depthwise((&x, &taps), (&bias, Activation::Relu6), &window, &mut out));
            });
        }
    });
}

criterion_group!(benches, products, attention, rows, pictures);
criterion_main!(benches);
