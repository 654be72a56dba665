//! Inputs of integer products: each block of 32 numbers as signed integers under one scale, of one byte or of two, but for
//! an outlier that stays as it is.
//!
//! One number that is far greater than its neighbours makes their common scale as coarse as it is great. What is held in
//! eight bits without its few outliers loses little: "LLM.int8()" (Dettmers et al., 2022).

use super::lanes::Lanes;
use super::panel::BLOCK;
use super::{Kernel, LANES, Level};

/// A plane of 32 numbers: signed bytes under a scale. Of numbers of two bytes the first plane holds the upper ones, and the
/// second, which is a product's addend of its own, the lower. A line of the cache.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub struct Digits {
    /// In -127 to 127; zero in the place of an outlier.
    pub(super) digits: [i8; BLOCK],
    /// What one stands for.
    pub(super) scale: f32,
    /// The sum of what all stand for, and of the outlier.
    pub(super) sum: f32,
    /// The sums of the first and of the last 16.
    pub(super) halves: [i32; 2],
    /// What sums begin at whose weights were made unsigned by [`UNSIGNED`] more.
    pub(super) begin: i32,
    /// How many blocks further the next one with an outlier is; itself, where this is none.
    pub(super) ahead: u32,
    /// The number that no digit stands for, if the block has one, and its place.
    pub(super) outlier: f32,
    pub(super) place: u32,
}

/// Farther than any block is.
const NONE: u32 = u32::MAX;

/// What makes signed bytes unsigned.
pub(super) const UNSIGNED: i32 = 128;

/// How a row of numbers becomes digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// A byte each.
    One,
    /// The same, but for the greatest number of each block that is about as loud as the row's mean block or louder.
    Loud,
    /// The same, but for the greatest number of each block that is far louder.
    Loudest,
    /// Two bytes each.
    Two,
}

impl Rounding {
    /// Planes of each block.
    #[must_use]
    pub const fn planes(self) -> usize {
        match self {
            Rounding::One | Rounding::Loud | Rounding::Loudest => 1,
            Rounding::Two => 2,
        }
    }
}

impl Digits {
    /// 32 zeros.
    pub const ZERO: Digits = Digits {
        digits: [0; BLOCK],
        scale: 0.0,
        sum: 0.0,
        halves: [0; 2],
        begin: 0,
        ahead: NONE,
        outlier: 0.0,
        place: 0,
    };

    /// Whether a number of the block stays as it is.
    #[inline(always)]
    pub(super) fn has_outlier(&self) -> bool {
        self.ahead == 0
    }
}

/// Writes a row of numbers as digits: the first planes of all blocks, and then their second ones, if there are two. Those
/// who read the first ones alone find them side by side.
///
/// # Panics
/// When the row is not whole blocks, or `out` does not have the planes of each.
pub fn digitise(level: Level, x: &[f32], rounding: Rounding, out: &mut [Digits]) {
    assert!(x.len() * rounding.planes() == out.len() * BLOCK, "digits for each block of numbers");
    // SAFETY: as many blocks as numbers fill.
    unsafe { level.run(Digitise { x: x.as_ptr(), rounding, out }) };
}

/// What is loud, in means of the greatest numbers of a row's blocks: of SmolLM2-135M one block in three has an outlier then,
/// and probabilities are five times as near the model's as without any.
const LOUD: f32 = 0.8;
/// What is loudest. Of 816 texts of all-MiniLM-L6-v2 with weights of a byte the least cosine is
/// 0.99904, the median 0.99980.
const LOUDEST: f32 = 2.0;
/// The part of a block's greatest number from which on the next one makes its scale as coarse.
const NEARLY: f32 = 0.9;
/// A block without greater numbers counts as zeros: the inverse of its scale would be none.
const LEAST: f32 = 1e-30;
/// The greatest number of one byte, and of two of which neither is beyond it.
const GREATEST: [f32; 2] = [127.0, 127.0 * 257.0];
/// What an upper byte counts.
const UPPER: f32 = 256.0;

struct Digitise<'a> {
    x: *const f32,
    rounding: Rounding,
    out: &'a mut [Digits],
}

impl Kernel for Digitise<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Digitise { x, rounding, out } = self;
        // SAFETY: `x` holds a block for every first plane.
        unsafe {
            match rounding {
                Rounding::One => bytes::<V>(x, out),
                Rounding::Loud => bytes_and_outliers::<V>(x, LOUD, out),
                Rounding::Loudest => bytes_and_outliers::<V>(x, LOUDEST, out),
                Rounding::Two => {
                    let (uppers, lowers) = out.split_at_mut(out.len() / 2);
                    for (block, both) in uppers.iter_mut().zip(lowers).enumerate() {
                        pair::<V>(load::<V>(x, block), both);
                    }
                }
            }
        }
    }
}

/// Writes numbers of one byte.
#[inline(always)]
unsafe fn bytes<V: Lanes>(x: *const f32, out: &mut [Digits]) {
    for (block, out) in out.iter_mut().enumerate() {
        // SAFETY: the caller's level and row.
        unsafe {
            let x = load::<V>(x, block);
            out.write::<V>(numbers::<V>(x, greatest::<V>(x), GREATEST[0]));
        }
    }
}

/// Writes numbers of one byte, but for the greatest of each block where it is above so many means of the row's.
#[inline(always)]
unsafe fn bytes_and_outliers<V: Lanes>(x: *const f32, means: f32, out: &mut [Digits]) {
    let mut bound = 0.0;
    // SAFETY: the caller's level and row.
    unsafe {
        for (block, out) in out.iter_mut().enumerate() {
            out.scale = greatest::<V>(load::<V>(x, block));
            bound += out.scale;
        }
        bound *= means / out.len() as f32;
        for (block, out) in out.iter_mut().enumerate() {
            let (all, size) = (load::<V>(x, block), out.scale);
            let outlier = if size > bound { outlier::<V>(all, size) } else { None };
            match outlier {
                Some(Outlier { place, rest, rest_size }) => {
                    out.write::<V>(numbers::<V>(rest, rest_size, GREATEST[0]));
                    out.leave(place, *x.add(block * BLOCK + place as usize));
                }
                None => out.write::<V>(numbers::<V>(all, size, GREATEST[0])),
            }
        }
    }
    link(out);
}

/// A block's greatest number, and the others with a zero in its place.
struct Outlier<V: Lanes> {
    place: u32,
    rest: [V::F; 2],
    rest_size: f32,
}

/// What to leave out of a block whose greatest number is `size`; nothing where the others are nearly as great.
#[inline(always)]
unsafe fn outlier<V: Lanes>(x: [V::F; 2], size: f32) -> Option<Outlier<V>> {
    // SAFETY: the caller's level.
    unsafe {
        let (first, last, most) = (V::abs(x[0]), V::abs(x[1]), V::splat(size));
        let rest = [V::unless_equal(x[0], first, most), V::unless_equal(x[1], last, most)];
        let rest_size = greatest::<V>(rest);
        let places = V::equal(first, most) | V::equal(last, most) << LANES;
        if places.is_power_of_two() && rest_size < NEARLY * size {
            return Some(Outlier { place: places.trailing_zeros(), rest, rest_size });
        }
        None
    }
}

/// Tells each block how far the next one with an outlier is.
fn link(blocks: &mut [Digits]) {
    let mut ahead = NONE;
    for block in blocks.iter_mut().rev() {
        ahead = if block.has_outlier() { 0 } else { ahead.saturating_add(1) };
        block.ahead = ahead;
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

/// Writes numbers of two bytes.
#[inline(always)]
unsafe fn pair<V: Lanes>(x: [V::F; 2], (upper, lower): (&mut Digits, &mut Digits)) {
    // SAFETY: the caller's level.
    unsafe {
        let (numbers, scale) = numbers::<V>(x, greatest::<V>(x), GREATEST[1]);
        let uppers = rounded::<V>(numbers, 1.0 / UPPER);
        upper.write::<V>((uppers, scale * UPPER));
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
        (self.scale, self.sum, self.begin) = (scale, scale * sum as f32, -UNSIGNED * sum);
        (self.ahead, self.outlier, self.place) = (NONE, 0.0, 0);
    }

    /// Says which number was left out.
    #[inline(always)]
    fn leave(&mut self, place: u32, outlier: f32) {
        self.sum += outlier;
        (self.ahead, self.outlier, self.place) = (0, outlier, place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_within_half_a_digit_at_every_level() {
        let x: Vec<f32> = (0..4 * BLOCK).map(|i| ((i * 7919 % 997) as f32 - 498.0) * (1 + i / BLOCK) as f32).collect();
        let mut first = [Digits::ZERO; 4];
        digitise(Level::Scalar, &x, Rounding::One, &mut first);
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
            digitise(level, &x, Rounding::One, &mut other);
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
            digitise(level, &x, Rounding::One, &mut blocks);
            assert_eq!((blocks[0].digits, blocks[0].scale), ([0; BLOCK], 0.0));
            assert_eq!(blocks[1].digits[..3], [127, -127, 0]);
        }
    }

    #[test]
    fn two_planes_are_sixteen_bits() {
        let x: Vec<f32> = (0..BLOCK).map(|i| ((i * 7919 % 997) as f32 - 498.0) / 7.0).collect();
        for level in Level::all() {
            let mut planes = [Digits::ZERO; 2];
            digitise(level, &x, Rounding::Two, &mut planes);
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

    /// Rows of blocks, whose numbers are below 1 but for those that are given.
    fn blocks<const N: usize>(others: [(usize, f32); N]) -> Vec<f32> {
        let mut x: Vec<f32> = (0..4 * BLOCK).map(|i| ((i * 7919 % 997) as f32 - 498.0) / 500.0).collect();
        others.into_iter().for_each(|(at, number)| x[at] = number);
        x
    }

    /// Digits of a row, in memory that an earlier one has used.
    fn digits<const N: usize>(level: Level, x: &[f32], rounding: Rounding) -> [Digits; N] {
        let left = Digits {
            digits: [7; BLOCK],
            scale: 1.0,
            sum: 1.0,
            halves: [1; 2],
            begin: 1,
            ahead: 0,
            outlier: 9.0,
            place: 5,
        };
        let mut digits = [left; N];
        digitise(level, x, rounding, &mut digits);
        digits
    }

    #[test]
    fn outliers_stay_as_they_are_and_their_neighbours_are_as_fine_as_without_them() {
        let with = blocks([(BLOCK + 3, -9.5), (4 * BLOCK - 1, 7.25)]);
        let without = blocks([(BLOCK + 3, 0.0), (4 * BLOCK - 1, 0.0)]);
        let plain: [Digits; 4] = digits(Level::Scalar, &without, Rounding::One);
        for level in Level::all() {
            let found: [Digits; 4] = digits(level, &with, Rounding::Loud);
            assert_eq!(found.map(|block| (block.outlier, block.place)), [(0.0, 0), (-9.5, 3), (0.0, 0), (7.25, 31)]);
            assert_eq!(found.map(|block| block.ahead), [1, 0, 1, 0]);
            for (found, plain) in found.into_iter().zip(plain) {
                let Digits { ahead, outlier, place, .. } = found;
                let sum = plain.sum + outlier;
                assert_eq!(found, Digits { sum, ahead, outlier, place, ..plain }, "{}", level.name());
            }
        }
    }

    #[test]
    fn blocks_without_outliers_are_those_of_a_byte_each() {
        // All equally loud, and what is no number.
        for x in [[3.0; 2 * BLOCK], [f32::NAN; 2 * BLOCK], [0.0; 2 * BLOCK]] {
            for level in Level::all() {
                let found: [Digits; 2] = digits(level, &x, Rounding::Loud);
                assert_eq!(found.map(|block| (block.ahead, block.place)), [(NONE, 0); 2], "{}", level.name());
            }
        }
    }

    #[test]
    fn far_outliers_are_fewer() {
        // The mean of 3, 9 and about 1 twice is 3.5.
        let x = blocks([(0, 3.0), (BLOCK, 9.0)]);
        let outliers = |rounding| digits::<4>(Level::Scalar, &x, rounding).map(|block| block.outlier);
        assert_eq!(outliers(Rounding::Loud), [3.0, 9.0, 0.0, 0.0]);
        assert_eq!(outliers(Rounding::Loudest), [0.0, 9.0, 0.0, 0.0]);
        assert_eq!(outliers(Rounding::One), [0.0; 4]);
    }
}
