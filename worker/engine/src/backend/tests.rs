//! Each operation of each backend against the scalar oracle, on random numbers and at the edges of shapes; and what the
//! processor promises beyond: the same bits at every level, in every company, on any number of threads.

mod dense;

use proptest::test_runner::{Config, TestRunner};

use super::cpu::Cpu;
use super::scalar::Scalar;
use super::{Activations, Backend, Epilogue, Gate, HeadNorms, KvShape, Matrix, Reach, StepLimits, Turn, Weights};
use crate::fixture::{self, Noise};
use crate::plan::{BlockId, Plan};
use crate::prefix::Kept;
use crate::quant::Format;
use crate::simd::Level;
use crate::simd::brains::Unit;

const LIMITS: StepLimits = StepLimits { rows: 128, outputs: 16, blocks: 256 };
const FORMATS: [Format; 10] = [
    Format::F32,
    Format::F16,
    Format::BF16,
    Format::Q4_0,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q8_0,
    Format::Q4K,
    Format::Q5K,
    Format::Q6K,
];

/// A plan of spans (tokens before, rows), each with blocks of its own in a scattered order; an output at each end.
fn plan(spans: &[(usize, usize)], vocabulary: u32) -> Plan {
    let mut plan = Plan::default();
    for (index, &(computed, rows)) in spans.iter().enumerate() {
        let tokens = (0..rows as u32).map(|row| (row * 31 + index as u32 * 7) % vocabulary);
        fixture::span(&mut plan, index, computed, tokens, |block| index * 8 + block * 3 % 8);
    }
    plan
}

/// Mean square of the error over that of the truth.
fn error(truth: &[f32], got: &[f32]) -> f64 {
    assert_eq!(truth.len(), got.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let wrong: f64 = truth.iter().zip(got).map(|(truth, got)| square(truth - got)).sum();
    wrong / truth.iter().map(|truth| square(*truth)).sum::<f64>().max(f64::MIN_POSITIVE)
}

fn linear<B: Backend>(backend: &mut B, x: (&[f32], usize), parts: &[Matrix<'_>], before: Option<&[f32]>) -> Vec<f32> {
    let weight = backend.pack(parts).expect("matrices pack");
    let outputs = parts.iter().map(Matrix::rows).sum();
    let rows = x.0.len() / x.1;
    let x = backend.upload(x.0, x.1).expect("memory");
    let (epilogue, mut out) = match before {
        Some(before) => (Epilogue::Add, backend.upload(before, outputs).expect("memory")),
        None => (Epilogue::Store, backend.buffer(rows, outputs).expect("memory")),
    };
    backend.linear(&x, &weight, epilogue, &mut out);
    read(backend, &out)
}

fn read<B: Backend>(backend: &B, buffer: &B::Buf) -> Vec<f32> {
    let mut numbers = Vec::new();
    backend.download(buffer, &mut numbers);
    numbers
}

/// Numbers that are digits already: products of integers are exact, and so the oracle's.
fn digits(noise: &mut Noise, len: usize) -> Vec<f32> {
    let mut numbers: Vec<f32> = (0..len).map(|_| (noise.number() * 127.0).round() / 64.0).collect();
    numbers.iter_mut().step_by(32).for_each(|number| *number = 127.0 / 64.0);
    numbers
}

#[test]
fn products_of_integers_are_the_oracle_s_in_every_format_and_shape() {
    let mut noise = Noise(11);
    for format in FORMATS.into_iter().filter(|format| format.block_len() > 1) {
        for (rows, columns, tokens) in
            [(1, 32_usize, 1), (16, 64, 2), (17, 96, 3), (63, 288, 5), (33, 32, 15), (50, 160, 41)]
        {
            let columns = columns.next_multiple_of(format.block_len());
            let data = noise.matrix(format, rows, columns);
            let parts = [Matrix { format, columns, data: &data }];
            let (x, before) = (digits(&mut noise, tokens * columns), noise.numbers(tokens * rows));
            let truth = linear(&mut Scalar::new(LIMITS), (&x, columns), &parts, Some(&before));
            for level in Level::all() {
                for activations in [Activations::Int8, Activations::Int16] {
                    let mut cpu = Cpu::new(level, 2, LIMITS).with(activations);
                    let error = error(&truth, &linear(&mut cpu, (&x, columns), &parts, Some(&before)));
                    let case = (format.name(), rows, columns, tokens, level.name(), activations);
                    assert!(error < 1e-12, "{case:?}: {error}");
                }
            }
        }
    }
}

#[test]
fn products_of_integers_have_the_same_bits_at_every_level_and_in_any_company() {
    let mut noise = Noise(12);
    let (rows, tokens) = (77, 19);
    for format in FORMATS.into_iter().filter(|format| format.block_len() > 1) {
        let columns = 96_usize.next_multiple_of(format.block_len());
        let data = noise.matrix(format, rows, columns);
        let parts = [Matrix { format, columns, data: &data }];
        let x = noise.numbers(tokens * columns);
        for activations in [Activations::Int8, Activations::Sparse, Activations::Mixed, Activations::Int16] {
            let of = |level, threads, x: &[f32]| {
                linear(&mut Cpu::new(level, threads, LIMITS).with(activations), (x, columns), &parts, None)
            };
            let first = of(Level::Scalar, 1, &x);
            for level in Level::all() {
                assert_eq!(first, of(level, 3, &x), "{} {}", format.name(), level.name());
                let alone: Vec<f32> = x.chunks_exact(columns).flat_map(|x| of(level, 2, x)).collect();
                assert_eq!(first, alone, "{} {} alone", format.name(), level.name());
            }
        }
    }
}

/// The error that brain floats may cost: a byte costs three times as much.
const NEAR_BY_UNIT: f64 = 8e-6;

/// A step of one row for each sequence; those at `sampled` carry tokens that were sampled.
fn plan_of_origins(rows: usize, sampled: impl Fn(usize) -> bool) -> Plan {
    let mut plan = plan(&vec![(0, 1); rows], 50);
    plan.outputs.clear();
    plan.spans.iter_mut().enumerate().for_each(|(row, span)| span.prompt = usize::from(!sampled(row)));
    plan
}

#[test]
fn rows_of_prompts_are_left_to_a_unit_and_have_the_same_bits_in_any_company() {
    let mut noise = Noise(13);
    let (outputs, rows) = (77, 45);
    for format in FORMATS.into_iter().filter(|format| format.block_len() > 1) {
        let columns = 96_usize.next_multiple_of(format.block_len());
        let (first, second) = (noise.matrix(format, 48, columns), noise.matrix(format, outputs - 48, columns));
        let parts = [&first, &second].map(|data| Matrix { format, columns, data });
        let (x, before) = (noise.numbers(rows * columns), noise.numbers(rows * outputs));
        let truth = linear(&mut Scalar::new(LIMITS), (&x, columns), &parts, Some(&before));
        for unit in [Some(Unit::Plain), Level::detect().unit()].into_iter().flatten() {
            let mixed = || Cpu::new(Level::detect(), 2, LIMITS).with(Activations::Mixed);
            let of = |rows: std::ops::Range<usize>, sampled: &dyn Fn(usize) -> bool| {
                let mut cpu = mixed().with_prompts_by(Some(unit));
                cpu.step_begin(&plan_of_origins(rows.len(), |row| sampled(rows.start + row))).expect("the plan fits");
                let (x, before) =
                    (&x[rows.start * columns..rows.end * columns], &before[rows.start * outputs..rows.end * outputs]);
                let out = linear(&mut cpu, (x, columns), &parts, Some(before));
                assert_eq!(cpu.kept(), Kept::Prompts);
                out
            };
            let case = format!("{} by {unit:?}", format.name());
            let prompts = of(0..rows, &|_| false);
            assert!(error(&truth, &prompts) < NEAR_BY_UNIT, "{case}: {}", error(&truth, &prompts));
            let sampled = linear(&mut mixed(), (&x, columns), &parts, Some(&before));
            assert_eq!(sampled, of(0..rows, &|_| true), "{case}");
            assert_ne!(sampled, prompts, "{case}");
            let odd = |row: usize| row % 3 == 1;
            let apart = |row: usize| if odd(row) { &sampled } else { &prompts };
            let expected: Vec<f32> =
                (0..rows).flat_map(|row| &apart(row)[row * outputs..][..outputs]).copied().collect();
            assert_eq!(expected, of(0..rows, &odd), "{case}");
            let alone: Vec<f32> = (0..rows).flat_map(|row| of(row..row + 1, &odd)).collect();
            assert_eq!(expected, alone, "{case} alone");
        }
    }
}

#[test]
fn a_span_may_hold_the_end_of_a_prompt_and_what_was_sampled_after_it() {
    let mut noise = Noise(15);
    let (columns, outputs, rows, prompt) = (64, 40, 23, 9);
    let data = noise.matrix(Format::Q4_1, outputs, columns);
    let parts = [Matrix { format: Format::Q4_1, columns, data: &data }];
    let x = noise.numbers(rows * columns);
    let of = |prompt| {
        let mut cpu = Cpu::new(Level::detect(), 2, LIMITS).with_prompts_by(Some(Unit::Plain)).with(Activations::Mixed);
        let mut plan = plan(&[(5, rows)], 50);
        plan.spans[0].prompt = prompt;
        cpu.step_begin(&plan).expect("the plan fits");
        linear(&mut cpu, (&x, columns), &parts, None)
    };
    let (prompts, sampled, both) = (of(rows), of(0), of(prompt));
    assert_eq!(both[..prompt * outputs], prompts[..prompt * outputs]);
    assert_eq!(both[prompt * outputs..], sampled[prompt * outputs..]);
    assert_ne!(both, prompts);
}

#[test]
fn numbers_that_stand_for_themselves_are_not_left_to_a_unit() {
    let mut noise = Noise(14);
    for format in [Format::F32, Format::F16, Format::BF16] {
        let (data, x) = (noise.matrix(format, 40, 64), noise.numbers(3 * 64));
        let parts = [Matrix { format, columns: 64, data: &data }];
        let mixed = || Cpu::new(Level::detect(), 1, LIMITS).with(Activations::Mixed);
        let mut by_unit = mixed().with_prompts_by(Some(Unit::Plain));
        assert_eq!(linear(&mut by_unit, (&x, 64), &parts, None), linear(&mut mixed(), (&x, 64), &parts, None));
        assert_eq!(by_unit.kept(), Kept::All);
    }
}

#[test]
fn products_are_the_oracle_s_in_every_format_and_shape() {
    let mut noise = Noise(1);
    for format in FORMATS {
        for (rows, columns, tokens) in [
            (1, 32_usize, 1),
            (16, 32, 2),
            (17, 64, 3),
            (40, 96, 4),
            (63, 288, 5),
            (96, 160, 7),
            (130, 64, 33),
            (33, 32, 101),
        ] {
            let columns = columns.next_multiple_of(format.block_len());
            let data = noise.matrix(format, rows, columns);
            let parts = [Matrix { format, columns, data: &data }];
            let x = noise.numbers(tokens * columns);
            let before = noise.numbers(tokens * rows);
            let truth = linear(&mut Scalar::new(LIMITS), (&x, columns), &parts, Some(&before));
            for level in Level::all() {
                let got = linear(&mut Cpu::new(level, 2, LIMITS), (&x, columns), &parts, Some(&before));
                let error = error(&truth, &got);
                let case = (format.name(), rows, columns, tokens, level.name());
                assert!(error < 1e-12, "{case:?}: {error}");
            }
        }
    }
}

#[test]
fn a_product_has_the_same_bits_in_any_company_at_any_level_on_any_threads() {
    same_bits(160, [(Format::Q4_1, 112), (Format::Q8_0, 48), (Format::F16, 21)]);
    same_bits(512, [(Format::Q4K, 112), (Format::Q6K, 48), (Format::Q5K, 21)]);
}

fn same_bits(columns: usize, formats: [(Format, usize); 3]) {
    let mut noise = Noise(2);
    let data = formats.map(|(format, rows)| noise.matrix(format, rows, columns));
    let part = |index: usize| Matrix { format: formats[index].0, columns, data: &data[index] };
    let parts = [part(0), part(1), part(2)];
    let x = noise.numbers(120 * columns);
    let alone: Vec<Vec<f32>> = x
        .chunks(columns)
        .map(|row| linear(&mut Cpu::new(Level::Scalar, 1, LIMITS), (row, columns), &parts, None))
        .collect();
    for level in Level::all() {
        for rows in (1..=40).chain([96, 97, 120]) {
            let mut cpu = Cpu::new(level, 1 + rows % 4, LIMITS);
            let together = linear(&mut cpu, (&x[..rows * columns], columns), &parts, None);
            for (row, together) in together.chunks(181).enumerate() {
                assert!(bits(together).eq(bits(&alone[row])), "row {row} of {rows} at {}", level.name());
            }
        }
    }
}

fn bits(numbers: &[f32]) -> impl Iterator<Item = u32> {
    numbers.iter().map(|number| number.to_bits())
}

#[test]
fn norms_and_gates_are_the_oracle_s_and_the_same_bits_at_every_level() {
    let mut noise = Noise(3);
    for width in [1, 15, 16, 17, 64, 100, 576] {
        let (x, weight) = (noise.numbers(9 * 2 * width), noise.numbers(2 * width));
        let x: Vec<f32> = x.iter().map(|x| x * 20.0).collect();
        let truth = norms_and_gates(&mut Scalar::new(LIMITS), &x, &weight);
        let first = norms_and_gates(&mut Cpu::new(Level::Scalar, 1, LIMITS), &x, &weight);
        for level in Level::all() {
            let got = norms_and_gates(&mut Cpu::new(level, 3, LIMITS), &x, &weight);
            for (part, ((truth, first), got)) in truth.iter().zip(&first).zip(&got).enumerate() {
                let error = error(truth, got);
                assert!(error < 1e-12, "part {part}, width {width}: {error}");
                assert!(bits(first).eq(bits(got)), "part {part} at {}", level.name());
            }
        }
    }
}

/// A norm, a norm added to what is there and scaled, and both gates.
fn norms_and_gates<B: Backend>(backend: &mut B, x: &[f32], weight: &[f32]) -> [Vec<f32>; 4] {
    let (rows, width) = (x.len() / weight.len(), weight.len());
    let x = backend.upload(x, width).expect("memory");
    let weight = backend.upload(weight, width).expect("memory");
    let mut normed = backend.buffer(rows, width).expect("memory");
    backend.norm(&x, &weight, 1e-5, &mut normed);
    let mut added = backend.upload(&read(backend, &x), width).expect("memory");
    backend.add_norm(&normed, &weight, 1e-5, &mut added);
    backend.scale(25.298_22, &mut added);
    let [silu, gelu] = [Gate::Silu, Gate::Gelu].map(|gate| {
        let mut gated = backend.buffer(rows, width / 2).expect("memory");
        backend.glu(&x, gate, &mut gated);
        read(backend, &gated)
    });
    [read(backend, &normed), read(backend, &added), silu, gelu]
}

/// What attention has beside rotations.
#[derive(Clone, Copy)]
struct Variant {
    reach: Reach,
    parts: Parts,
}

#[derive(Clone, Copy, PartialEq)]
enum Parts {
    Rotations,
    BiasesAndNorms,
}

const PLAIN: Variant = Variant { reach: Reach::All, parts: Parts::Rotations };
const VARIANTS: [Variant; 5] = [
    PLAIN,
    Variant { reach: Reach::Last(70), parts: Parts::Rotations },
    Variant { reach: Reach::Last(16), parts: Parts::Rotations },
    Variant { reach: Reach::All, parts: Parts::BiasesAndNorms },
    Variant { reach: Reach::Last(5), parts: Parts::BiasesAndNorms },
];

/// Runs rope, cache and attention of two layers over steps of spans; returns the last step's rows.
fn attend<B: Backend>(
    backend: &mut B,
    (shape, group): (KvShape, usize),
    variant: Variant,
    steps: &[Vec<(usize, usize)>],
) -> Vec<f32> {
    let KvShape { layers, heads, width, .. } = shape;
    let mut kv = backend.kv(shape).expect("memory");
    let angles: Vec<f32> =
        (0..128 * width / 2).flat_map(|i| [(i as f32 * 0.1).cos(), (i as f32 * 0.1).sin()]).collect();
    let rope = backend.upload(&angles, width).expect("memory");
    let row_width = (group + 2) * heads * width;
    let mut noise = Noise(17);
    let bias = backend.upload(&noise.numbers(row_width), row_width).expect("memory");
    let [queries, keys] = [(); 2].map(|()| backend.upload(&noise.numbers(width), width).expect("memory"));
    let turn = match variant.parts {
        Parts::Rotations => Turn { bias: None, norms: None, rope: &rope },
        Parts::BiasesAndNorms => Turn {
            bias: Some(&bias),
            norms: Some(HeadNorms { queries: &queries, keys: &keys, epsilon: 1e-6 }),
            rope: &rope,
        },
    };
    let mut out = backend.buffer(LIMITS.rows, group * heads * width).expect("memory");
    for spans in steps {
        backend.step_begin(&plan(spans, 50)).expect("the plan fits");
        for layer in 0..layers {
            // A row's numbers depend on its sequence and position only, so that chunks are comparable.
            let numbers: Vec<f32> = spans
                .iter()
                .enumerate()
                .flat_map(|(index, &(computed, rows))| {
                    (computed..computed + rows).map(move |position| (index * 1000 + position) as u64)
                })
                .flat_map(|seed| Noise(seed + layer as u64 * 77_777).numbers(row_width))
                .collect();
            let mut qkv = backend.upload(&numbers, row_width).expect("memory");
            backend.rope_qk_write(&mut qkv, &turn, &mut kv, layer);
            backend.attention(&qkv, &kv, (layer, variant.reach), &mut out);
        }
    }
    read(backend, &out)
}

#[test]
fn attention_is_the_oracle_s_for_every_grouping() {
    let shapes = [(1, 1, 16), (2, 2, 32), (3, 3, 64), (1, 4, 64), (2, 5, 16), (1, 8, 48), (1, 4, 256)];
    for ((heads, group, width), variant) in shapes.into_iter().flat_map(|shape| VARIANTS.map(|v| (shape, v))) {
        let shape = KvShape { layers: 2, blocks: 64, heads, width };
        let steps = [
            vec![(0, 5), (0, 17), (0, 1)],
            vec![(5, 1), (17, 20), (1, 31)],
            vec![(6, 1), (37, 70), (32, 50)],
            vec![(7, 1), (107, 1), (82, 45)],
        ];
        let truth = attend(&mut Scalar::new(LIMITS), (shape, group), variant, &steps);
        let first = attend(&mut Cpu::new(Level::Scalar, 1, LIMITS), (shape, group), variant, &steps);
        for level in Level::all() {
            let got = attend(&mut Cpu::new(level, 2, LIMITS), (shape, group), variant, &steps);
            // Norms are rounded a little differently before keys become halves.
            let allowed = if variant.parts == Parts::Rotations { 1e-9 } else { 1e-7 };
            let error = error(&truth, &got);
            assert!(error < allowed, "{heads} heads of {group}, {width} wide, at {}: {error}", level.name());
            assert!(bits(&first).eq(bits(&got)), "{heads} heads of {group} at {}", level.name());
        }
    }
}

#[test]
fn attention_has_the_same_bits_however_a_prompt_is_cut() {
    let shape = KvShape { layers: 1, blocks: 64, heads: 2, width: 32 };
    for variant in VARIANTS {
        same_however_cut(shape, variant);
    }
}

fn same_however_cut(shape: KvShape, variant: Variant) {
    const TOKENS: usize = 120;
    let run =
        |steps: &[Vec<(usize, usize)>]| attend(&mut Cpu::new(Level::detect(), 2, LIMITS), (shape, 3), variant, steps);
    let whole = run(&[vec![(0, TOKENS)]]);
    TestRunner::new(Config { cases: 24, ..Config::default() })
        .run(&proptest::collection::vec(1..60_usize, 1..6), |cuts| {
            let (mut steps, mut computed) = (Vec::new(), 0);
            for rows in cuts.into_iter().chain([TOKENS]) {
                let rows = rows.min(TOKENS - computed);
                if rows > 0 {
                    steps.push(vec![(computed, rows)]);
                    computed += rows;
                }
            }
            let last = run(&steps);
            assert!(bits(&whole[whole.len() - last.len()..]).eq(bits(&last)));
            Ok(())
        })
        .expect("any cut");
}

#[test]
fn rows_are_gathered_taken_and_sampled() {
    let mut noise = Noise(4);
    for format in FORMATS {
        let columns = 64_usize.next_multiple_of(format.block_len());
        let table = noise.matrix(format, 50, columns);
        let table = Matrix { format, columns, data: &table };
        let plan = plan(&[(0, 7), (3, 1), (20, 12)], 50);
        let truth = gather(&mut Scalar::new(LIMITS), &plan, table);
        for level in Level::all() {
            let got = gather(&mut Cpu::new(level, 2, LIMITS), &plan, table);
            assert_eq!(truth, got, "{}", format.name());
        }
    }
}

fn gather<B: Backend>(backend: &mut B, plan: &Plan, table: Matrix<'_>) -> (Vec<f32>, Vec<u32>) {
    let columns = table.columns;
    let table = backend.pack(&[table]).expect("a table packs");
    let mut x = backend.buffer(LIMITS.rows, columns).expect("memory");
    let mut last = backend.buffer(LIMITS.outputs, columns).expect("memory");
    backend.step_begin(plan).expect("the plan fits");
    backend.gather_rows(&table, &mut x);
    backend.take_outputs(&x, &mut last);
    let numbers = read(backend, &last);
    let ticket = backend.sample(&mut last, plan);
    let mut sampled = Vec::new();
    backend.collect(ticket, &mut sampled).expect("the ticket is the last");
    assert!(sampled.iter().zip(&plan.outputs).all(|(sampled, output)| sampled.sequence == output.sequence));
    (numbers, sampled.iter().map(|sampled| sampled.token).collect())
}

#[test]
fn copied_blocks_answer_like_their_originals() {
    fn run<B: Backend>(backend: &mut B) -> (Vec<f32>, Vec<f32>) {
        let shape = KvShape { layers: 1, blocks: 8, heads: 1, width: 16 };
        let mut kv = backend.kv(shape).expect("memory");
        let rope = backend.upload(&[1.0, 0.0].repeat(8 * 32), 16).expect("memory");
        let mut noise = Noise(5);
        let mut plan = plan(&[(0, 20)], 9);
        backend.step_begin(&plan).expect("the plan fits");
        let mut qkv = backend.upload(&noise.numbers(20 * 48), 48).expect("memory");
        backend.rope_qk_write(&mut qkv, &Turn { bias: None, norms: None, rope: &rope }, &mut kv, 0);
        let mut out = backend.buffer(20, 16).expect("memory");
        backend.attention(&qkv, &kv, (0, Reach::All), &mut out);
        let before = read(backend, &out);
        backend.copy_blocks(&mut kv, &[(plan.blocks[0], BlockId(6)), (plan.blocks[1], BlockId(3))]);
        plan.blocks = vec![BlockId(6), BlockId(3)];
        backend.step_begin(&plan).expect("the plan fits");
        backend.attention(&qkv, &kv, (0, Reach::All), &mut out);
        (before, read(backend, &out))
    }
    for (before, after) in [run(&mut Scalar::new(LIMITS)), run(&mut Cpu::new(Level::detect(), 2, LIMITS))] {
        assert_eq!(before, after);
    }
}

#[test]
fn plans_that_break_their_limits_are_refused() {
    let mut cpu = Cpu::new(Level::detect(), 1, LIMITS);
    let good = plan(&[(0, 20)], 9);
    let bad: [fn(&mut Plan); 4] = [
        |plan| plan.spans[0].blocks = 0..1,
        |plan| plan.outputs[0].row = 20,
        |plan| plan.spans[0].rows = 0..19,
        |plan| plan.outputs = vec![plan.outputs[0].clone(); 17],
    ];
    assert!(cpu.step_begin(&good).is_ok());
    for spoil in bad {
        let mut plan = good.clone();
        spoil(&mut plan);
        assert!(cpu.step_begin(&plan).is_err());
    }
}

#[test]
fn matrices_that_break_the_layout_are_refused() {
    let mut cpu = Cpu::new(Level::detect(), 1, LIMITS);
    for (format, columns, bytes) in [(Format::F32, 0, 0), (Format::Q8_0, 31, 34), (Format::F32, 32, 32 * 4 + 1)] {
        let data = vec![0; bytes];
        assert!(cpu.pack(&[Matrix { format, columns, data: &data }]).is_err());
    }
    let data = vec![0; 210];
    for (columns, bytes) in [(32, 0), (128, 210), (256, 209), (288, 210)] {
        assert!(cpu.pack(&[Matrix { format: Format::Q6K, columns, data: &data[..bytes] }]).is_err());
    }
    let data = vec![0; 17 * 32 * 4];
    let part = Matrix { format: Format::F32, columns: 32, data: &data };
    assert!(cpu.pack(&[part, part]).is_err(), "a strip would begin inside a panel");
    assert!(cpu.pack(&[part]).is_ok());
}
