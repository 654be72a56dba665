//! Inputs of integer products: each block of 32 numbers as signed integers under one scale, of one byte or of two.

use super::lanes::Lanes;
use super::panel::BLOCK;
use super::{Kernel, LANES, Level};

/// A plane of 32 numbers: signed bytes under a scale. Of numbers of two bytes the first plane holds the upper ones, and the
/// second, which is a product's addend of its own, the lower. A line of the cache, so that lower ones that are not there
/// are not read either.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub struct Digits {
    /// In -127 to 127.
    pub(super) digits: [i8; BLOCK],
    /// What one stands for.
    pub(super) scale: f32,
    /// The sum of what all stand for.
    pub(super) sum: f32,
    /// The sums of the first and of the last 16.
    pub(super) halves: [i32; 2],
    /// What sums begin at whose weights were made unsigned by [`UNSIGNED`] more.
    pub(super) begin: i32,
    /// How many blocks further the next one is whose second plane adds anything; itself, where this is none. Of other
    /// blocks' second planes nothing is said.
    pub(super) ahead: u32,
}

/// Farther than any block is.
const NONE: u32 = u32::MAX;

/// What makes signed bytes unsigned.
pub(super) const UNSIGNED: i32 = 128;

/// Which blocks of a row have lower bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planes {
    /// None: one plane.
    One,
    /// Those whose greatest number is above the row's mean of such, by squares: what rounding costs lies in them.
    Loud,
    /// Only those far above it.
    Loudest,
    /// All.
    Two,
}

impl Planes {
    /// Planes of each block.
    #[must_use]
    pub const fn count(self) -> usize {
        match self {
            Planes::One => 1,
            Planes::Loud | Planes::Loudest | Planes::Two => 2,
        }
    }

    /// From how many means of its row on a block has lower bytes.
    const fn bound(self) -> f32 {
        match self {
            Planes::One => f32::INFINITY,
            Planes::Loud => 1.0,
            Planes::Loudest => LOUDEST,
            Planes::Two => 0.0,
        }
    }
}

impl Digits {
    /// 32 zeros.
    pub const ZERO: Digits = Digits { digits: [0; BLOCK], scale: 0.0, sum: 0.0, halves: [0; 2], begin: 0, ahead: NONE };

    /// Whether the next plane adds anything.
    #[inline(always)]
    pub(super) fn more(&self) -> bool {
        self.ahead == 0
    }
}

/// Writes a row of numbers as digits: the first planes of all blocks, and then their second ones, if there are two. Those
/// who read the first ones alone find them side by side.
///
/// # Panics
/// When the row is not whole blocks, or `out` does not have the planes of each.
pub fn digitise(level: Level, x: &[f32], planes: Planes, out: &mut [Digits]) {
    assert!(x.len() * planes.count() == out.len() * BLOCK, "digits for each block of numbers");
    // SAFETY: as many blocks as numbers fill.
    unsafe { level.run(Digitise { x: x.as_ptr(), planes, out }) };
}

/// What is loudest, in means of a row. Of 1149 texts of all-MiniLM-L6-v2 with weights of a byte the least cosine is
/// 0.99917 with it, the median 0.99978, one block in forty loud; with 3 it is 0.99904, 0.99979 and one in twenty.
const LOUDEST: f32 = 4.0;
/// A block without greater numbers counts as zeros: the inverse of its scale would be none.
const LEAST: f32 = 1e-30;
/// The greatest number of one byte, and of two of which neither is beyond it.
const GREATEST: [f32; 2] = [127.0, 127.0 * 257.0];
/// What an upper byte counts.
const UPPER: f32 = 256.0;

struct Digitise<'a> {
    x: *const f32,
    planes: Planes,
    out: &'a mut [Digits],
}

impl Kernel for Digitise<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let (firsts, seconds) = self.out.split_at_mut(self.out.len() / self.planes.count());
        // SAFETY: `x` holds a block for every first plane.
        unsafe {
            if seconds.is_empty() {
                for (block, only) in firsts.iter_mut().enumerate() {
                    let x = load::<V>(self.x, block);
                    only.write::<V>(numbers::<V>(x, greatest::<V>(x), GREATEST[0]));
                }
                return;
            }
            let mut loud = 0.0;
            for (block, upper) in firsts.iter_mut().enumerate() {
                let size = greatest::<V>(load::<V>(self.x, block));
                upper.scale = size;
                loud += size * size;
            }
            loud *= self.planes.bound() / firsts.len() as f32;
            for (block, (upper, lower)) in firsts.iter_mut().zip(seconds).enumerate() {
                let size = upper.scale;
                pair::<V>((load::<V>(self.x, block), size), size * size >= loud, (upper, lower));
            }
        }
        link(firsts);
    }
}

/// Tells each block of two planes how far the next one with lower bytes is.
fn link(uppers: &mut [Digits]) {
    let mut ahead = NONE;
    for upper in uppers.iter_mut().rev() {
        ahead = if upper.more() { 0 } else { ahead.saturating_add(1) };
        upper.ahead = ahead;
    }
}

#[inline(always)]
unsafe fn load<V: Lanes>(x: *const f32, block: usize) -> [V::F; 2] {
    // SAFETY: the caller's row has the block.
    unsafe { [V::load(x.add(block * BLOCK)), V::load(x.add(block * BLOCK + LANES))] }
}

#[inline(always)]
unsafe fn greatest<V: Lanes>(x: [V::F; 2]) -> f32 {
    // SAFETY: the caller's level.
    unsafe { V::greatest(V::max(V::abs(x[0]), V::abs(x[1]))) }
}

/// The integers nearest to numbers of which the greatest becomes `greatest`, and what one stands for.
#[inline(always)]
unsafe fn numbers<V: Lanes>(x: [V::F; 2], size: f32, greatest: f32) -> ([V::F; 2], f32) {
    let (scale, inverse) = if size > LEAST { (size / greatest, greatest / size) } else { (0.0, 0.0) };
    // SAFETY: the caller's level.
    unsafe { (rounded::<V>(x, inverse), scale) }
}

/// The integers nearest to numbers times a factor.
#[inline(always)]
unsafe fn rounded<V: Lanes>(x: [V::F; 2], factor: f32) -> [V::F; 2] {
    // SAFETY: the caller's level.
    unsafe {
        let factor = V::splat(factor);
        [V::round(V::mul(x[0], factor)), V::round(V::mul(x[1], factor))]
    }
}

/// Writes numbers of two bytes, or the upper alone.
#[inline(always)]
unsafe fn pair<V: Lanes>((x, size): ([V::F; 2], f32), both: bool, (upper, lower): (&mut Digits, &mut Digits)) {
    // SAFETY: the caller's level.
    unsafe {
        let (numbers, scale) = numbers::<V>(x, size, GREATEST[1]);
        let uppers = rounded::<V>(numbers, 1.0 / UPPER);
        upper.write::<V>((uppers, scale * UPPER));
        upper.ahead = if both { 0 } else { NONE };
        if both {
            // A half that was rounded to the even upper byte leaves 128: one too many for a byte.
            let (least, most) = (V::splat(-127.0), V::splat(127.0));
            let mut lowers = numbers;
            for half in 0..2 {
                let rest = V::fma(uppers[half], V::splat(-UPPER), numbers[half]);
                lowers[half] = V::max(V::min(rest, most), least);
            }
            lower.write::<V>((lowers, scale));
        }
    }
}

impl Digits {
    /// Writes a plane of integral numbers.
    #[inline(always)]
    unsafe fn write<V: Lanes>(&mut self, (digits, scale): ([V::F; 2], f32)) {
        // SAFETY: the caller's level; a block has 32 digits.
        unsafe {
            let first = V::store_i8(self.digits.as_mut_ptr(), digits[0]);
            let last = V::store_i8(self.digits.as_mut_ptr().add(LANES), digits[1]);
            self.halves = [first, last];
        }
        let sum = self.halves[0] + self.halves[1];
        // So small an integer is exact.
        (self.scale, self.sum, self.begin, self.ahead) = (scale, scale * sum as f32, -UNSIGNED * sum, NONE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_within_half_a_digit_at_every_level() {
        let x: Vec<f32> = (0..4 * BLOCK).map(|i| ((i * 7919 % 997) as f32 - 498.0) * (1 + i / BLOCK) as f32).collect();
        let mut first = [Digits::ZERO; 4];
        digitise(Level::Scalar, &x, Planes::One, &mut first);
        for (x, block) in x.chunks_exact(BLOCK).zip(&first) {
            for (x, digit) in x.iter().zip(block.digits) {
                assert!((x - f32::from(digit) * block.scale).abs() <= block.scale * 0.5001);
            }
            let sum = |digits: &[i8]| digits.iter().map(|&digit| i32::from(digit)).sum::<i32>();
            assert_eq!(block.halves, [sum(&block.digits[..LANES]), sum(&block.digits[LANES..])]);
            assert_eq!((block.sum, block.begin), (block.scale * sum(&block.digits) as f32, -128 * sum(&block.digits)));
        }
        for level in Level::all() {
            let mut other = [Digits::ZERO; 4];
            digitise(level, &x, Planes::One, &mut other);
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
            digitise(level, &x, Planes::One, &mut blocks);
            assert_eq!((blocks[0].digits, blocks[0].scale), ([0; BLOCK], 0.0));
            assert_eq!(blocks[1].digits[..3], [127, -127, 0]);
        }
    }

    #[test]
    fn two_planes_are_sixteen_bits() {
        let x: Vec<f32> = (0..BLOCK).map(|i| ((i * 7919 % 997) as f32 - 498.0) / 7.0).collect();
        for level in Level::all() {
            let mut planes = [Digits::ZERO; 2];
            digitise(level, &x, Planes::Two, &mut planes);
            assert_eq!(planes[0].scale, UPPER * planes[1].scale);
            for plane in &planes {
                let sum = |digits: &[i8]| digits.iter().map(|&digit| i32::from(digit)).sum::<i32>();
                assert_eq!(plane.halves, [sum(&plane.digits[..LANES]), sum(&plane.digits[LANES..])]);
                assert_eq!(plane.begin, -128 * sum(&plane.digits));
                assert_eq!(plane.sum, plane.scale * sum(&plane.digits) as f32);
            }
            for (at, x) in x.iter().enumerate() {
                let number: f32 = planes.iter().map(|plane| f32::from(plane.digits[at]) * plane.scale).sum();
                assert!((x - number).abs() <= planes[1].scale * 1.001, "{x} is {number}");
            }
        }
    }

    #[test]
    fn loud_blocks_have_lower_bytes_and_quiet_ones_none() {
        let x: Vec<f32> =
            (0..3 * BLOCK).map(|i| ((i * 7919 % 997) as f32 - 498.0) * [1.0, 9.0, 0.1][i / BLOCK]).collect();
        let mut first = [Digits::ZERO; 6];
        digitise(Level::Scalar, &x, Planes::Loud, &mut first);
        assert_eq!([first[0].more(), first[1].more(), first[2].more()], [false, true, false]);
        assert_ne!(first[4].digits, [0; BLOCK]);
        for level in Level::all() {
            let mut other = [Digits::ZERO; 6];
            digitise(level, &x, Planes::Loud, &mut other);
            assert_eq!(first, other, "{}", level.name());
        }
    }

    #[test]
    fn the_loudest_blocks_are_fewer() {
        // Squares 1, 25, 1, 100 and four more of 1: the mean is 16.
        let sizes = [1.0, 5.0, 1.0, 10.0, 1.0, 1.0, 1.0, 1.0];
        let x: Vec<f32> = sizes.iter().flat_map(|size| [*size; BLOCK]).collect();
        let loud = |planes| {
            let mut digits = [Digits::ZERO; 16];
            digitise(Level::Scalar, &x, planes, &mut digits);
            (0..8).filter(|&block| digits[block].more()).collect::<Vec<_>>()
        };
        assert_eq!((loud(Planes::Loud), loud(Planes::Loudest)), (vec![1, 3], vec![3]));
    }
}
