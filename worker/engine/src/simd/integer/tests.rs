use super::*;
use crate::backend::Matrix;
use crate::backend::dense::Activation;
use crate::quant::Format;
#[cfg(target_arch = "x86_64")]
use crate::simd::avx512::Avx512;
use crate::simd::digits::{Rounding, digitise};
use crate::simd::tile::Begin;

const ROUNDINGS: [Rounding; 3] = [Rounding::One, Rounding::Loud, Rounding::Two];

#[test]
fn a_row_is_the_same_alone_and_among_many_over_several_parts() {
    [Format::Q4_1, Format::Q8_0, Format::Q5K, Format::Q6K].into_iter().for_each(same_alone_and_among_many);
}

fn same_alone_and_among_many(format: Format) {
    // More than two parts, and whole super-blocks.
    const BLOCKS: usize = (2 * READY + 1).next_multiple_of(8);
    const ROWS: usize = 3 * 6 + 5;
    const OUTPUTS: usize = 3 * LANES;
    // Any bytes are a matrix; small ones keep the scales tame. Here and there a number is an outlier.
    let bytes = OUTPUTS * BLOCKS * BLOCK / format.block_len() * format.block_bytes();
    let data: Vec<u8> = (0..bytes).map(|i| (i * 37 % 251) as u8 & 0xbf).collect();
    let weights = Panels::pack(&Matrix { format, columns: BLOCKS * BLOCK, data: &data }).unwrap();
    let loudness = |i: usize| if i % 223 == 3 { 9.0 } else { 1.0 };
    let x: Vec<f32> = (0..ROWS * BLOCKS * BLOCK).map(|i| ((i * 7919 % 997) as f32 - 498.0) * loudness(i)).collect();
    let then = Finish { begin: Begin::Zero, bias: &[1.0; OUTPUTS], activation: Activation::None };
    let levels = Level::all().into_iter().flat_map(either);
    for (level, rounding) in levels.flat_map(|level| ROUNDINGS.map(|rounding| (level, rounding))) {
        let of_row = BLOCKS * rounding.planes();
        let mut digits = vec![Digits::ZERO; ROWS * of_row];
        for (x, row) in x.chunks_exact(BLOCKS * BLOCK).zip(digits.chunks_exact_mut(of_row)) {
            digitise(level, x, rounding, row);
        }
        let outliers = digits.iter().filter(|block| block.has_outlier()).count();
        assert_eq!(outliers > ROWS, rounding == Rounding::Loud);
        let product = |digits: &[Digits]| {
            let rows = digits.len() / of_row;
            let mut out = vec![0.0; rows * OUTPUTS];
            let strip = &mut Strip::whole(&mut out, OUTPUTS);
            multiply(level, (digits, rows), (&weights, 0..3), (then, strip), &mut Scratch::default());
            out
        };
        let alone: Vec<f32> = digits.chunks_exact(of_row).flat_map(product).collect();
        assert_eq!(product(&digits), alone, "{format:?} {rounding:?} {}", level.name());
    }
}

/// A level that unpacks nibbles beforehand, and the same that does not.
fn either(level: Level) -> Vec<Level> {
    match level {
        #[cfg(target_arch = "x86_64")]
        Level::Avx512(_) => [true, false].map(|spare_units| Level::Avx512(Avx512 { spare_units })).to_vec(),
        level => vec![level],
    }
}

#[test]
fn outliers_of_every_format_are_multiplied_as_they_are() {
    const COLUMNS: usize = 256;
    const OUTPUTS: usize = PAIR * LANES;
    // Nothing but an outlier at each of the places of a block in turn.
    let rows: Vec<f32> =
        (0..BLOCK * COLUMNS).map(|i| if i % COLUMNS == i / COLUMNS + 64 { 1.5 } else { 0.0 }).collect();
    for format in [Format::Q4_0, Format::Q4_1, Format::Q5_0, Format::Q8_0, Format::Q4K, Format::Q5K, Format::Q6K] {
        let bytes = OUTPUTS * COLUMNS / format.block_len() * format.block_bytes();
        let data: Vec<u8> = (0..bytes).map(|i| (i * 31 % 61) as u8).collect();
        let matrix = Matrix { format, columns: COLUMNS, data: &data };
        let weights = Panels::pack(&matrix).unwrap();
        let mut expected = vec![0.0; COLUMNS];
        for level in Level::all() {
            let mut digits = vec![Digits::ZERO; rows.len() / BLOCK];
            for (x, row) in rows.chunks_exact(COLUMNS).zip(digits.chunks_exact_mut(COLUMNS / BLOCK)) {
                digitise(level, x, Rounding::Loud, row);
            }
            let mut out = vec![0.0; BLOCK * OUTPUTS];
            let then = Finish { begin: Begin::Zero, bias: &[], activation: Activation::None };
            let strip = &mut Strip::whole(&mut out, OUTPUTS);
            multiply(level, (&digits, BLOCK), (&weights, 0..PAIR), (then, strip), &mut Scratch::default());
            for (output, place) in (0..OUTPUTS).flat_map(|output| (0..BLOCK).map(move |place| (output, place))) {
                weights.read_row(output, &mut expected);
                let (found, expected) = (out[place * OUTPUTS + output], 1.5 * expected[64 + place]);
                assert!(
                    (found - expected).abs() <= 1e-5 * expected.abs(),
                    "{format:?} {}: {found} {expected}",
                    level.name()
                );
            }
        }
    }
}
