//! Inputs of integer products: each block of 32 numbers as signed bytes under one scale, and what that leaves over as
//! signed bytes again.

use super::lanes::Lanes;
use super::panel::BLOCK;
use super::{Kernel, LANES, Level};

/// 32 numbers as `scale * digits`, rounded to the nearest; ties to even.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C)]
pub struct Digits {
    /// In -127 to 127.
    pub(super) digits: [i8; BLOCK],
    /// What a digit stands for.
    pub(super) scale: f32,
    /// The sum of what all digits stand for.
    pub(super) sum: f32,
    /// The sums of the first and of the last 16 digits.
    pub(super) halves: [i32; 2],
}

impl Digits {
    /// 32 zeros.
    pub const ZERO: Digits = Digits { digits: [0; BLOCK], scale: 0.0, sum: 0.0, halves: [0; 2] };
}

/// Writes a row of numbers as digits, `planes` for each block: each holds what those before it leave over.
///
/// # Panics
/// When the row is not whole blocks, or `out` does not have as many for each.
pub fn digitise(level: Level, x: &[f32], planes: usize, out: &mut [Digits]) {
    assert!(planes > 0 && x.len() * planes == out.len() * BLOCK, "digits for each block of numbers");
    // SAFETY: as many blocks as numbers fill.
    unsafe { level.run(Digitise { x: x.as_ptr(), planes, out }) };
}

/// A block without greater numbers counts as zeros: the inverse of its scale would be none.
const LEAST: f32 = 1e-30;

struct Digitise<'a> {
    x: *const f32,
    planes: usize,
    out: &'a mut [Digits],
}

impl Kernel for Digitise<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        for (index, planes) in self.out.chunks_exact_mut(self.planes).enumerate() {
            // SAFETY: `x` holds a block for every chunk of `out`.
            unsafe {
                let x = self.x.add(index * BLOCK);
                let mut left = [V::load(x), V::load(x.add(LANES))];
                for plane in planes {
                    left = write::<V>(left, plane);
                }
            }
        }
    }
}

/// Writes a block, and returns what its digits leave over.
#[inline(always)]
unsafe fn write<V: Lanes>(x: [V::F; 2], out: &mut Digits) -> [V::F; 2] {
    // SAFETY: the caller's level; a block has 32 digits.
    unsafe {
        let size = V::greatest(V::max(V::abs(x[0]), V::abs(x[1])));
        let (scale, inverse) = if size > LEAST { (size / 127.0, 127.0 / size) } else { (0.0, 0.0) };
        let digits = x.map(|x| V::round(V::mul(x, V::splat(inverse))));
        V::store_i8(out.digits.as_mut_ptr(), digits[0]);
        V::store_i8(out.digits.as_mut_ptr().add(LANES), digits[1]);
        // Sums of so few small integers are exact.
        let halves = digits.map(|digits| V::sum(digits));
        out.scale = scale;
        out.sum = scale * (halves[0] + halves[1]);
        out.halves = halves.map(|half| half as i32);
        std::array::from_fn(|half| V::fma(digits[half], V::splat(-scale), x[half]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_within_half_a_digit_at_every_level() {
        let x: Vec<f32> = (0..4 * BLOCK).map(|i| ((i * 7919 % 997) as f32 - 498.0) * (1 + i / BLOCK) as f32).collect();
        let mut first = [Digits::ZERO; 4];
        digitise(Level::Scalar, &x, 1, &mut first);
        for (x, block) in x.chunks_exact(BLOCK).zip(&first) {
            for (x, digit) in x.iter().zip(block.digits) {
                assert!((x - f32::from(digit) * block.scale).abs() <= block.scale * 0.5001);
            }
            let sum = |digits: &[i8]| digits.iter().map(|&digit| i32::from(digit)).sum::<i32>();
            assert_eq!(block.halves, [sum(&block.digits[..LANES]), sum(&block.digits[LANES..])]);
            assert_eq!(block.sum, block.scale * sum(&block.digits) as f32);
        }
        for level in Level::all() {
            let mut other = [Digits::ZERO; 4];
            digitise(level, &x, 1, &mut other);
            assert_eq!(first, other, "{}", level.name());
        }
    }

    #[test]
    fn zeros_are_zeros_and_nothing_overflows() {
        for level in Level::all() {
            let mut blocks = [Digits::ZERO; 2];
            let mut x = [0.0; 2 * BLOCK];
            x[BLOCK] = f32::MAX;
            x[BLOCK + 1] = f32::MIN;
            digitise(level, &x, 1, &mut blocks);
            assert_eq!((blocks[0].digits, blocks[0].scale), ([0; BLOCK], 0.0));
            assert_eq!(blocks[1].digits[..3], [127, -127, 0]);
        }
    }

    #[test]
    fn two_planes_are_sixteen_bits() {
        let x: Vec<f32> = (0..BLOCK).map(|i| ((i * 7919 % 997) as f32 - 498.0) / 7.0).collect();
        for level in Level::all() {
            let mut planes = [Digits::ZERO; 2];
            digitise(level, &x, 2, &mut planes);
            for (at, x) in x.iter().enumerate() {
                let number: f32 = planes.iter().map(|plane| f32::from(plane.digits[at]) * plane.scale).sum();
                assert!((x - number).abs() <= planes[0].scale / 254.0, "{x} is {number}");
            }
        }
    }
}
