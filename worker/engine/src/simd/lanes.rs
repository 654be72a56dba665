//! Sixteen numbers at a time: the only vocabulary of the kernels.

use half::f16;

use super::LANES;

/// What makes cutting a number to its upper half rounding it to the nearest brain float.
pub(super) const NEAREST_BRAIN: u32 = 0x8000;
/// The upper half of a word.
pub(super) const UPPER_HALF: u32 = 0xffff_0000;
/// Words of every lane's 16 bytes, parted.
pub(super) const PARTS: usize = 8 * LANES;

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
    /// Rows that a panel of integers multiplies together.
    const INTEGER_ROWS: usize;
    /// What [`Lanes::dot_bytes`] adds to each byte.
    const BYTES_CENTRE: i32;
    /// Whether signed bytes that many rows meet are better parted into sizes and signs beforehand.
    const PARTS_BYTES: bool = false;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(from: *const f32) -> Self::F;
    unsafe fn store(to: *mut f32, x: Self::F);
    unsafe fn load_first(from: *const f32, count: usize) -> Self::F;
    unsafe fn store_first(to: *mut f32, x: Self::F, count: usize);
    unsafe fn load_f16(from: *const u16) -> Self::F;
    unsafe fn store_f16(to: *mut u16, x: Self::F);
    unsafe fn load_bf16(from: *const u16) -> Self::F;
    /// Writes the nearest brain floats of two numbers of each lane side by side; of two that are as near the greater in size.
    unsafe fn store_brains(to: *mut u32, first: Self::F, second: Self::F);
    /// Integral numbers of -128 to 127, others become the nearest of those; returns their sum.
    unsafe fn store_i8(to: *mut i8, x: Self::F) -> i32;
    unsafe fn load_u32(from: *const u32) -> Self::U;
    unsafe fn store_u32(to: *mut u32, x: Self::U);
    /// A word of eight nibbles in each lane: the lower nibbles of its bytes are columns 0 to 3, the upper 4 to 7.
    unsafe fn nibble(x: Self::U, column: usize) -> Self::F;
    /// A word of four signed bytes in each lane, a column each.
    unsafe fn byte(x: Self::U, column: usize) -> Self::F;
    unsafe fn splat_u32(x: u32) -> Self::U;
    unsafe fn sub_u32(a: Self::U, b: Self::U) -> Self::U;
    /// The nearest numbers to signed integers.
    unsafe fn from_i32(x: Self::U) -> Self::F;
    /// Asks for a cache line that will be read, into the second-level cache: the first waits for few lines at a time.
    unsafe fn fetch(from: *const u8);
    /// Writes each lane's 32 nibbles as bytes: eight words of four columns.
    unsafe fn store_nibbles(to: *mut u32, body: *const u32);
    /// Adds each lane's 32 nibbles of each of `body`, as bytes where `BYTES`, times the 32 digits of each of `x`.
    unsafe fn dot_nibbles<const T: usize, const P: usize, const BYTES: bool>(
        body: [*const u32; P],
        x: [*const i8; T],
        sums: &mut [[Self::U; P]; T],
    );
    /// Adds each lane's 16 signed bytes of each of `body`, plus [`Lanes::BYTES_CENTRE`], times 16 digits of each of `x`.
    unsafe fn dot_bytes<const T: usize, const P: usize>(
        body: [*const u32; P],
        x: [*const i8; T],
        sums: &mut [[Self::U; P]; T],
    );
    /// Writes each lane's 16 signed bytes as [`PARTS`] words: of every four a word of their sizes, and one whose bits turn
    /// the digit of each negative byte. A turned digit is one less than its negative: returns what that takes off a sum of
    /// products, and `begin`.
    unsafe fn part_bytes(_to: *mut u32, _body: *const u32, _begin: Self::U) -> Self::U {
        unreachable!("bytes are multiplied as they are")
    }
    /// Adds each lane's `4 * words` parted bytes of each of `body` times as many digits of each of `x`.
    unsafe fn dot_parts<const T: usize, const P: usize>(
        _body: [*const u32; P],
        _x: [*const i8; T],
        _words: usize,
        _sums: &mut [[Self::U; P]; T],
    ) {
        unreachable!("bytes are multiplied as they are")
    }
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
    /// Which lanes are equal, the first one in the lowest bit.
    unsafe fn equal(a: Self::F, b: Self::F) -> u32;
    /// `x`, but zero where `a` and `b` are equal.
    unsafe fn unless_equal(x: Self::F, a: Self::F, b: Self::F) -> Self::F;
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

/// Asks for bytes that will be read, as [`Lanes::fetch`] does.
///
/// # Safety
/// The level is there.
#[inline(always)]
pub(super) unsafe fn fetch<V: Lanes>(from: *const u8, bytes: usize) {
    for line in (0..bytes).step_by(64) {
        // SAFETY: the caller's level; any address may be asked for.
        unsafe { V::fetch(from.wrapping_add(line)) };
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
    // Sums of several rows would be in memory, and their unrolled loops are two megabytes of the program.
    const INTEGER_ROWS: usize = 1;
    const BYTES_CENTRE: i32 = 0;

    lanewise!(fma(a, b, c) a.mul_add(b, c));
    lanewise!(add(a, b) a + b);
    lanewise!(sub(a, b) a - b);
    lanewise!(mul(a, b) a * b);
    lanewise!(div(a, b) a / b);
    lanewise!(max(a, b) if a > b { a } else { b });
    lanewise!(min(a, b) if a < b { a } else { b });
    lanewise!(abs(x) x.abs());
    lanewise!(unless_equal(x, a, b) if a == b { 0.0 } else { x });
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
    unsafe fn store_brains(to: *mut u32, first: Self::F, second: Self::F) {
        let near = |x: f32| x.to_bits().wrapping_add(NEAREST_BRAIN);
        let both: Self::U = std::array::from_fn(|i| near(first[i]) >> 16 | near(second[i]) & UPPER_HALF);
        // SAFETY: the caller's pointer is valid for 16 words.
        unsafe { Self::store_u32(to, both) };
    }
    #[inline(always)]
    unsafe fn store_i8(to: *mut i8, x: Self::F) -> i32 {
        let bytes = x.map(|x| x as i8);
        // SAFETY: the caller's pointer is valid for 16 numbers.
        unsafe { to.cast::<[i8; LANES]>().write_unaligned(bytes) };
        bytes.into_iter().map(i32::from).sum()
    }
    #[inline(always)]
    unsafe fn load_u32(from: *const u32) -> Self::U {
        // SAFETY: the caller's pointer is valid for 16 numbers.
        unsafe { from.cast::<Self::U>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_u32(to: *mut u32, x: Self::U) {
        // SAFETY: the caller's pointer is valid for 16 numbers.
        unsafe { to.cast::<Self::U>().write_unaligned(x) }
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
    unsafe fn splat_u32(x: u32) -> Self::U {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn sub_u32(a: Self::U, b: Self::U) -> Self::U {
        std::array::from_fn(|lane| a[lane].wrapping_sub(b[lane]))
    }
    #[inline(always)]
    unsafe fn from_i32(x: Self::U) -> Self::F {
        x.map(|x| x.cast_signed() as f32)
    }
    #[inline(always)]
    unsafe fn fetch(_from: *const u8) {}
    #[inline(always)]
    unsafe fn store_nibbles(to: *mut u32, body: *const u32) {
        for word in 0..8 {
            // SAFETY: the caller's block holds four words of each lane, its room eight.
            unsafe { Self::store_u32(to.add(word * LANES), nibbles::<false>(body, word)) };
        }
    }
    #[inline(always)]
    unsafe fn dot_nibbles<const T: usize, const P: usize, const BYTES: bool>(
        body: [*const u32; P],
        x: [*const i8; T],
        sums: &mut [[Self::U; P]; T],
    ) {
        for (word, p) in (0..8).flat_map(|word| (0..P).map(move |p| (word, p))) {
            // SAFETY: the caller's block holds the words, and `x` 32 digits.
            unsafe {
                let w = nibbles::<BYTES>(body[p], word);
                for t in 0..T {
                    sums[t][p] = add_dots(sums[t][p], w, x[t].add(4 * word));
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn dot_bytes<const T: usize, const P: usize>(
        body: [*const u32; P],
        x: [*const i8; T],
        sums: &mut [[Self::U; P]; T],
    ) {
        for (word, p) in (0..4).flat_map(|word| (0..P).map(move |p| (word, p))) {
            // SAFETY: the caller's half block holds four words of each lane, and `x` 16 digits.
            unsafe {
                let w = Self::load_u32(body[p].add(word * LANES));
                for t in 0..T {
                    sums[t][p] = add_dots(sums[t][p], w, x[t].add(4 * word));
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn equal(a: Self::F, b: Self::F) -> u32 {
        a.iter().zip(&b).rev().fold(0, |bits, (a, b)| bits << 1 | u32::from(a == b))
    }
    #[inline(always)]
    unsafe fn to_array(x: Self::F) -> [f32; LANES] {
        x
    }
}

/// Four nibbles of each lane as bytes: word `word` of eight.
///
/// # Safety
/// `body` holds four words of each lane, or eight where they are `BYTES` already.
#[inline(always)]
unsafe fn nibbles<const BYTES: bool>(body: *const u32, word: usize) -> [u32; LANES] {
    // SAFETY: the caller's pointer.
    unsafe {
        match BYTES {
            true => Portable::load_u32(body.add(word * LANES)),
            false => Portable::load_u32(body.add(word / 2 * LANES)).map(|x| x >> (word % 2 * 4) & 0x0f0f_0f0f),
        }
    }
}

/// Adds each lane's four signed bytes times four digits.
///
/// # Safety
/// `x` points to four digits.
#[inline(always)]
unsafe fn add_dots(sums: [u32; LANES], w: [u32; LANES], x: *const i8) -> [u32; LANES] {
    // SAFETY: the caller's pointer.
    let x = unsafe { x.cast::<[i8; 4]>().read() }.map(i32::from);
    std::array::from_fn(|lane| {
        let bytes = w[lane].to_le_bytes().map(|byte| i32::from(byte.cast_signed()));
        let dot: i32 = bytes.iter().zip(x).map(|(byte, x)| byte * x).sum();
        sums[lane].wrapping_add(dot.cast_unsigned())
    })
}
