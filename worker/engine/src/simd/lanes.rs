//! Sixteen numbers at a time: the only vocabulary of the kernels.

use half::f16;

use super::LANES;
use super::digits::Digits;

/// Sixteen `f32` in the registers of one level.
///
/// # Safety
/// Every function may be called only where the level's instructions exist; pointers are valid for 16 numbers (or for
/// the count given) and need no alignment.
pub(super) trait Lanes: Copy {
    /// Sixteen `f32`.
    type F: Copy;
    /// Sixteen `u32`.
    type U: Copy;
    /// Groups of accumulators that stay in registers, beside two of weights and one of tokens.
    const ACCUMULATORS: usize;
    /// Up to so many tokens weights are unpacked in registers; beyond, to memory, for several tiles.
    const DIRECT_TOKENS: usize;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(from: *const f32) -> Self::F;
    unsafe fn store(to: *mut f32, x: Self::F);
    unsafe fn load_first(from: *const f32, count: usize) -> Self::F;
    unsafe fn store_first(to: *mut f32, x: Self::F, count: usize);
    unsafe fn load_f16(from: *const u16) -> Self::F;
    unsafe fn store_f16(to: *mut u16, x: Self::F);
    unsafe fn load_bf16(from: *const u16) -> Self::F;
    /// Integral numbers of -128 to 127; others become the nearest of those.
    unsafe fn store_i8(to: *mut i8, x: Self::F);
    unsafe fn load_u32(from: *const u32) -> Self::U;
    /// A word of eight nibbles in each lane: the lower nibbles of its bytes are columns 0 to 3, the upper 4 to 7.
    unsafe fn nibble(x: Self::U, column: usize) -> Self::F;
    /// A word of four signed bytes in each lane, a column each.
    unsafe fn byte(x: Self::U, column: usize) -> Self::F;
    /// The lower nibble of each byte, as bytes.
    unsafe fn low_nibbles(x: Self::U) -> Self::U;
    /// The upper nibble of each byte, as bytes.
    unsafe fn high_nibbles(x: Self::U) -> Self::U;
    /// Each lane's 32 unsigned nibbles, less `centre`, times the digits of each of `x`.
    unsafe fn dot_nibbles<const T: usize>(w: [Self::U; 8], x: [&Digits; T], centre: i32) -> [Self::F; T];
    /// Each lane's signed bytes times as many digits of each of `x`: of all 32 from `half` 0 on, or of one half.
    unsafe fn dot_bytes<const N: usize, const T: usize>(w: [Self::U; N], x: [&Digits; T], half: usize) -> [Self::F; T];
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// The greater; `b` where `a` is not a number.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn abs(x: Self::F) -> Self::F;
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// To the nearest integer, ties to even.
    unsafe fn round(x: Self::F) -> Self::F;
    /// `x * 2^n` for integral `n` of -126 to 127.
    unsafe fn scale(x: Self::F, n: Self::F) -> Self::F;
    unsafe fn to_array(x: Self::F) -> [f32; LANES];

    /// The first `count` lanes of `x`, then `fill`.
    #[inline(always)]
    unsafe fn keep_first(x: Self::F, count: usize, fill: f32) -> Self::F {
        // SAFETY: both arrays hold 16 numbers.
        unsafe {
            let mut all = Self::to_array(x);
            for lane in all.iter_mut().skip(count) {
                *lane = fill;
            }
            Self::load(all.as_ptr())
        }
    }

    /// The sum, as a balanced tree of neighbours at distance 8, 4, 2, 1.
    #[inline(always)]
    unsafe fn sum(x: Self::F) -> f32 {
        // SAFETY: the caller's level.
        let a = unsafe { Self::to_array(x) };
        let b: [f32; 8] = std::array::from_fn(|i| a[i] + a[i + 8]);
        let c: [f32; 4] = std::array::from_fn(|i| b[i] + b[i + 4]);
        (c[0] + c[2]) + (c[1] + c[3])
    }

    #[inline(always)]
    unsafe fn greatest(x: Self::F) -> f32 {
        // SAFETY: the caller's level.
        let a = unsafe { Self::to_array(x) };
        let b: [f32; 8] = std::array::from_fn(|i| a[i].max(a[i + 8]));
        let c: [f32; 4] = std::array::from_fn(|i| b[i].max(b[i + 4]));
        c[0].max(c[2]).max(c[1].max(c[3]))
    }

    /// The exponential, to about one unit in the last place; flushes to zero's neighbourhood below -87.
    #[inline(always)]
    unsafe fn exp(x: Self::F) -> Self::F {
        // SAFETY: the caller's level.
        unsafe {
            let x = Self::max(Self::min(x, Self::splat(88.0)), Self::splat(-87.0));
            let n = Self::round(Self::mul(x, Self::splat(std::f32::consts::LOG2_E)));
            // ln 2 in two parts, so that the rest keeps its low bits.
            let r = Self::fma(n, Self::splat(-0.693_359_4), x);
            let r = Self::fma(n, Self::splat(2.121_944_4e-4), r);
            let mut p = Self::splat(1.987_569_1e-4);
            for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5, 1.0, 1.0] {
                p = Self::fma(p, r, Self::splat(c));
            }
            Self::scale(p, n)
        }
    }
}

/// Sixteen numbers in an array; the compiler makes of it what the target has.
#[derive(Clone, Copy)]
pub(super) struct Portable;

macro_rules! lanewise {
    ($name:ident($($x:ident),+) $body:expr) => {
        #[inline(always)]
        unsafe fn $name($($x: Self::F),+) -> Self::F {
            std::array::from_fn(|i| {
                $(let $x = $x[i];)+
                $body
            })
        }
    };
}

impl Lanes for Portable {
    type F = [f32; LANES];
    type U = [u32; LANES];
    const ACCUMULATORS: usize = 6;
    const DIRECT_TOKENS: usize = 2;

    lanewise!(fma(a, b, c) a.mul_add(b, c));
    lanewise!(add(a, b) a + b);
    lanewise!(sub(a, b) a - b);
    lanewise!(mul(a, b) a * b);
    lanewise!(div(a, b) a / b);
    lanewise!(max(a, b) if a > b { a } else { b });
    lanewise!(min(a, b) if a < b { a } else { b });
    lanewise!(abs(x) x.abs());
    lanewise!(round(x) x.round_ties_even());
    lanewise!(scale(x, n) x * f32::from_bits(((n as i32 + 127) as u32) << 23));

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F {
        // SAFETY: the caller's pointer is valid for 16 numbers.
        unsafe { from.cast::<Self::F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Self::F) {
        // SAFETY: the caller's pointer is valid for 16 numbers.
        unsafe { to.cast::<Self::F>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self::F {
        let mut all = [0.0; LANES];
        for (i, lane) in all.iter_mut().enumerate().take(count) {
            // SAFETY: the caller's pointer is valid for `count` numbers.
            *lane = unsafe { *from.add(i) };
        }
        all
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, x: Self::F, count: usize) {
        for (i, x) in x.into_iter().take(count).enumerate() {
            // SAFETY: the caller's pointer is valid for `count` numbers.
            unsafe { *to.add(i) = x };
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Self::F {
        // SAFETY: the caller's pointer is valid for 16 numbers.
        std::array::from_fn(|i| f16::from_bits(unsafe { *from.add(i) }).to_f32_const())
    }
    #[inline(always)]
    unsafe fn store_f16(to: *mut u16, x: Self::F) {
        for (i, x) in x.into_iter().enumerate() {
            // SAFETY: the caller's pointer is valid for 16 numbers.
            unsafe { *to.add(i) = f16::from_f32_const(x).to_bits() };
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::F {
        // SAFETY: the caller's pointer is valid for 16 numbers.
        std::array::from_fn(|i| f32::from_bits(u32::from(unsafe { *from.add(i) }) << 16))
    }
    #[inline(always)]
    unsafe fn store_i8(to: *mut i8, x: Self::F) {
        // SAFETY: the caller's pointer is valid for 16 numbers.
        unsafe { to.cast::<[i8; LANES]>().write_unaligned(x.map(|x| x as i8)) }
    }
    #[inline(always)]
    unsafe fn load_u32(from: *const u32) -> Self::U {
        // SAFETY: the caller's pointer is valid for 16 numbers.
        unsafe { from.cast::<Self::U>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn nibble(x: Self::U, column: usize) -> Self::F {
        x.map(|x| (x >> (column % 4 * 8 + column / 4 * 4) & 15) as f32)
    }
    #[inline(always)]
    unsafe fn byte(x: Self::U, column: usize) -> Self::F {
        x.map(|x| f32::from(x.to_le_bytes()[column].cast_signed()))
    }
    #[inline(always)]
    unsafe fn low_nibbles(x: Self::U) -> Self::U {
        x.map(|x| x & 0x0f0f_0f0f)
    }
    #[inline(always)]
    unsafe fn high_nibbles(x: Self::U) -> Self::U {
        x.map(|x| x >> 4 & 0x0f0f_0f0f)
    }
    #[inline(always)]
    unsafe fn dot_nibbles<const T: usize>(w: [Self::U; 8], x: [&Digits; T], centre: i32) -> [Self::F; T] {
        x.map(|x| std::array::from_fn(|lane| (dot(&w, x, 0, lane) - centre * (x.halves[0] + x.halves[1])) as f32))
    }
    #[inline(always)]
    unsafe fn dot_bytes<const N: usize, const T: usize>(w: [Self::U; N], x: [&Digits; T], half: usize) -> [Self::F; T] {
        x.map(|x| std::array::from_fn(|lane| dot(&w, x, half * LANES, lane) as f32))
    }
    #[inline(always)]
    unsafe fn to_array(x: Self::F) -> [f32; LANES] {
        x
    }
}

/// A lane's signed bytes times the digits from `first` on.
#[inline(always)]
fn dot(w: &[[u32; LANES]], x: &Digits, first: usize, lane: usize) -> i32 {
    let products = |(word, digits): (&[u32; LANES], &[i8])| -> i32 {
        let bytes = word[lane].to_le_bytes().map(|byte| i32::from(byte.cast_signed()));
        bytes.iter().zip(digits).map(|(byte, digit)| byte * i32::from(*digit)).sum()
    };
    w.iter().zip(x.digits[first..].chunks_exact(4)).map(products).sum()
}
