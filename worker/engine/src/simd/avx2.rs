//! Sixteen lanes as two AVX2 registers.

use std::arch::x86_64::*;
use std::hint::black_box;

use super::digits::UNSIGNED;
use super::lanes::{Lanes, NEAREST_BRAIN, UPPER_HALF};
use super::{Kernel, LANES};

/// Evidence of AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        let there =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        there.then_some(Self(()))
    }
}

/// Evidence of AVX-VNNI besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AvxVnni(());

impl AvxVnni {
    pub(super) fn detect() -> Option<Self> {
        let there = Avx2::detect().is_some() && is_x86_feature_detected!("avxvnni");
        there.then_some(Self(()))
    }
}

/// # Safety
/// The machine has the features; the kernel's own duties.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) {
    // SAFETY: the kernel is inlined here, where the features are.
    unsafe { kernel.run::<Ymm<false>>() }
}

/// # Safety
/// The machine has the features; the kernel's own duties.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
pub(super) unsafe fn run_vnni<K: Kernel>(kernel: K) {
    // SAFETY: the kernel is inlined here, where the features are.
    unsafe { kernel.run::<Ymm<true>>() }
}

/// Two registers, on a machine that multiplies and adds bytes by fours in one instruction where `VNNI` says so.
#[derive(Clone, Copy)]
pub(super) struct Ymm<const VNNI: bool>;

type Pair = (__m256, __m256);

/// One instruction on both halves. Inlined into `run`, where the features are.
macro_rules! both {
    ($name:ident($($x:ident),+) $instruction:ident) => {
        #[inline(always)]
        unsafe fn $name($($x: Pair),+) -> Pair {
            // SAFETY: inlined into `run`, where the features are.
            unsafe { ($instruction($($x.0),+), $instruction($($x.1),+)) }
        }
    };
}

// Every function below is inlined into `run`, and its pointers are its caller's duty.
impl<const VNNI: bool> Lanes for Ymm<VNNI> {
    type F = Pair;
    type U = (__m256i, __m256i);
    const ACCUMULATORS: usize = 6;
    const DIRECT_TOKENS: usize = 2;
    const INTEGER_ROWS: usize = 4;
    const BYTES_CENTRE: i32 = if VNNI { UNSIGNED } else { 0 };
    const PARTS_BYTES: bool = !VNNI;

    both!(fma(a, b, c) _mm256_fmadd_ps);
    both!(add(a, b) _mm256_add_ps);
    both!(sub(a, b) _mm256_sub_ps);
    both!(mul(a, b) _mm256_mul_ps);
    both!(div(a, b) _mm256_div_ps);
    both!(max(a, b) _mm256_max_ps);
    both!(min(a, b) _mm256_min_ps);
    both!(abs(x) size_of);
    both!(round(x) nearest);
    both!(scale(x, n) times_two_to);

    #[inline(always)]
    unsafe fn splat(x: f32) -> Pair {
        // SAFETY: see the head of this block.
        unsafe { (_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Pair {
        // SAFETY: see the head of this block.
        unsafe { (_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: Pair) {
        // SAFETY: see the head of this block.
        unsafe {
            _mm256_storeu_ps(to, x.0);
            _mm256_storeu_ps(to.add(8), x.1);
        }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Pair {
        let mut all = [0.0; LANES];
        // SAFETY: the caller's pointer is valid for `count` numbers, the array for 16.
        unsafe {
            std::ptr::copy_nonoverlapping(from, all.as_mut_ptr(), count.min(LANES));
            Self::load(all.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, x: Pair, count: usize) {
        // SAFETY: the caller's pointer is valid for `count` numbers, the array for 16.
        unsafe {
            let all = Self::to_array(x);
            std::ptr::copy_nonoverlapping(all.as_ptr(), to, count.min(LANES));
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> Pair {
        // SAFETY: see the head of this block.
        unsafe { (_mm256_cvtph_ps(_mm_loadu_si128(from.cast())), _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast()))) }
    }
    #[inline(always)]
    unsafe fn store_f16(to: *mut u16, x: Pair) {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;
        // SAFETY: see the head of this block.
        unsafe {
            _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<NEAREST>(x.0));
            _mm_storeu_si128(to.add(8).cast(), _mm256_cvtps_ph::<NEAREST>(x.1));
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Pair {
        // SAFETY: see the head of this block.
        unsafe { (brain(from), brain(from.add(8))) }
    }
    #[inline(always)]
    unsafe fn store_brains(to: *mut u32, first: Pair, second: Pair) {
        // SAFETY: see the head of this block.
        unsafe { Self::store_u32(to, (brains(first.0, second.0), brains(first.1, second.1))) };
    }
    #[inline(always)]
    unsafe fn store_i8(to: *mut i8, x: Pair) -> i32 {
        // SAFETY: see the head of this block; the caller's pointer is valid for 16 numbers.
        unsafe {
            let quarters = _mm256_packs_epi32(_mm256_cvtps_epi32(x.0), _mm256_cvtps_epi32(x.1));
            let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(quarters);
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256::<1>(ordered));
            _mm_storeu_si128(to.cast(), bytes);
            sum_of_bytes(bytes)
        }
    }
    #[inline(always)]
    unsafe fn load_u32(from: *const u32) -> Self::U {
        // SAFETY: see the head of this block.
        unsafe { (_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(8).cast())) }
    }
    #[inline(always)]
    unsafe fn store_u32(to: *mut u32, x: Self::U) {
        // SAFETY: see the head of this block.
        unsafe {
            _mm256_storeu_si256(to.cast(), x.0);
            _mm256_storeu_si256(to.add(8).cast(), x.1);
        }
    }
    #[inline(always)]
    unsafe fn nibble(x: Self::U, column: usize) -> Pair {
        // SAFETY: see the head of this block.
        unsafe {
            let shift = _mm_cvtsi32_si128((column % 4 * 8 + column / 4 * 4) as i32);
            let mask = _mm256_set1_epi32(15);
            let low = _mm256_and_si256(_mm256_srl_epi32(x.0, shift), mask);
            let high = _mm256_and_si256(_mm256_srl_epi32(x.1, shift), mask);
            (_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        }
    }
    #[inline(always)]
    unsafe fn byte(x: Self::U, column: usize) -> Pair {
        // SAFETY: see the head of this block.
        unsafe {
            let shift = _mm_cvtsi32_si128((24 - 8 * column) as i32);
            let low = _mm256_srai_epi32::<24>(_mm256_sll_epi32(x.0, shift));
            let high = _mm256_srai_epi32::<24>(_mm256_sll_epi32(x.1, shift));
            (_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        }
    }
    #[inline(always)]
    unsafe fn splat_u32(x: u32) -> Self::U {
        // SAFETY: see the head of this block.
        unsafe { (_mm256_set1_epi32(x.cast_signed()), _mm256_set1_epi32(x.cast_signed())) }
    }
    #[inline(always)]
    unsafe fn sub_u32(a: Self::U, b: Self::U) -> Self::U {
        // SAFETY: see the head of this block.
        unsafe { (_mm256_sub_epi32(a.0, b.0), _mm256_sub_epi32(a.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn from_i32(x: Self::U) -> Pair {
        // SAFETY: see the head of this block.
        unsafe { (_mm256_cvtepi32_ps(x.0), _mm256_cvtepi32_ps(x.1)) }
    }
    #[inline(always)]
    unsafe fn fetch(from: *const u8) {
        // SAFETY: see the head of this block; any address may be asked for.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) };
    }
    #[inline(always)]
    unsafe fn store_nibbles(to: *mut u32, body: *const u32) {
        for word in (0..8).step_by(2) {
            // SAFETY: see the head of this block.
            unsafe {
                Self::store_u32(to.add(word * LANES), nibbles::<false, 0>(body, word));
                Self::store_u32(to.add((word + 1) * LANES), nibbles::<false, 1>(body, word));
            }
        }
    }
    /// Two products of 15 * 127 are added in 16 bits; eight such sums fit there too.
    #[inline(always)]
    unsafe fn dot_nibbles<const T: usize, const P: usize, const BYTES: bool>(
        body: [*const u32; P],
        x: [*const i8; T],
        sums: &mut [[Self::U; P]; T],
    ) {
        // SAFETY: see the head of this block.
        unsafe {
            if VNNI {
                return nibbles_by_fours::<T, P, BYTES>(body, x, sums);
            }
            let mut shorts = [[Self::splat_u32(0); P]; T];
            // Were their number known, all words would be unrolled, their products added pairwise, and registers run out.
            for word in (0..black_box(8)).step_by(2) {
                add_nibbles::<T, P, BYTES, 0>(body, x, word, &mut shorts);
                add_nibbles::<T, P, BYTES, 1>(body, x, word, &mut shorts);
            }
            for t in 0..T {
                for p in 0..P {
                    sums[t][p].0 = _mm256_add_epi32(sums[t][p].0, pairs(shorts[t][p].0));
                    sums[t][p].1 = _mm256_add_epi32(sums[t][p].1, pairs(shorts[t][p].1));
                }
            }
        }
    }
    /// The instruction takes unsigned weights: their signs go to the digits, or the weights are made unsigned. Two
    /// products of 128 * 127 fit 16 bits.
    #[inline(always)]
    unsafe fn dot_bytes<const T: usize, const P: usize>(
        body: [*const u32; P],
        x: [*const i8; T],
        sums: &mut [[Self::U; P]; T],
    ) {
        if VNNI {
            // SAFETY: see the head of this block.
            return unsafe { bytes_by_fours(body, x, sums) };
        }
        for word in 0..4 {
            for p in 0..P {
                // SAFETY: see the head of this block.
                unsafe {
                    let w = Self::load_u32(body[p].add(word * LANES));
                    let size = (_mm256_abs_epi8(w.0), _mm256_abs_epi8(w.1));
                    for t in 0..T {
                        let (sum, x) = (&mut sums[t][p], four(x[t].add(4 * word)));
                        let low = _mm256_maddubs_epi16(size.0, _mm256_sign_epi8(x, w.0));
                        let high = _mm256_maddubs_epi16(size.1, _mm256_sign_epi8(x, w.1));
                        sum.0 = _mm256_add_epi32(sum.0, pairs(low));
                        sum.1 = _mm256_add_epi32(sum.1, pairs(high));
                    }
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn part_bytes(to: *mut u32, body: *const u32, mut begin: Self::U) -> Self::U {
        for word in 0..4 {
            // SAFETY: see the head of this block.
            unsafe {
                let (w, zero) = (Self::load_u32(body.add(word * LANES)), _mm256_setzero_si256());
                let sizes = (_mm256_abs_epi8(w.0), _mm256_abs_epi8(w.1));
                let turns = (_mm256_cmpgt_epi8(zero, w.0), _mm256_cmpgt_epi8(zero, w.1));
                Self::store_u32(to.add(2 * word * LANES), sizes);
                Self::store_u32(to.add((2 * word + 1) * LANES), turns);
                begin.0 = _mm256_add_epi32(begin.0, fours(_mm256_and_si256(sizes.0, turns.0)));
                begin.1 = _mm256_add_epi32(begin.1, fours(_mm256_and_si256(sizes.1, turns.1)));
            }
        }
        begin
    }
    /// Parting saves an instruction that only half of the units have. Two products of 128 * 128 fit 16 bits, as they are
    /// negative.
    #[inline(always)]
    unsafe fn dot_parts<const T: usize, const P: usize>(
        body: [*const u32; P],
        x: [*const i8; T],
        words: usize,
        sums: &mut [[Self::U; P]; T],
    ) {
        // Their number is hidden for the reason that `dot_nibbles` gives.
        for word in 0..black_box(words) {
            for p in 0..P {
                // SAFETY: see the head of this block.
                unsafe {
                    let sizes = Self::load_u32(body[p].add(2 * word * LANES));
                    let turns = Self::load_u32(body[p].add((2 * word + 1) * LANES));
                    for t in 0..T {
                        let (sum, x) = (&mut sums[t][p], four(x[t].add(4 * word)));
                        let low = _mm256_maddubs_epi16(sizes.0, _mm256_xor_si256(x, turns.0));
                        let high = _mm256_maddubs_epi16(sizes.1, _mm256_xor_si256(x, turns.1));
                        sum.0 = _mm256_add_epi32(sum.0, pairs(low));
                        sum.1 = _mm256_add_epi32(sum.1, pairs(high));
                    }
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn equal(a: Pair, b: Pair) -> u32 {
        // SAFETY: see the head of this block.
        unsafe {
            let low = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_EQ_OQ>(a.0, b.0));
            let high = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_EQ_OQ>(a.1, b.1));
            (low | high << 8).cast_unsigned()
        }
    }
    #[inline(always)]
    unsafe fn unless_equal(x: Pair, a: Pair, b: Pair) -> Pair {
        // SAFETY: see the head of this block.
        unsafe {
            let low = _mm256_cmp_ps::<_CMP_EQ_OQ>(a.0, b.0);
            let high = _mm256_cmp_ps::<_CMP_EQ_OQ>(a.1, b.1);
            (_mm256_andnot_ps(low, x.0), _mm256_andnot_ps(high, x.1))
        }
    }
    #[inline(always)]
    unsafe fn to_array(x: Pair) -> [f32; LANES] {
        let mut all = [0.0; LANES];
        // SAFETY: the array holds 16 numbers.
        unsafe { Self::store(all.as_mut_ptr(), x) };
        all
    }
    #[inline(always)]
    unsafe fn sum(x: Pair) -> f32 {
        // SAFETY: see the head of this block.
        unsafe { sum_of_eight(_mm256_add_ps(x.0, x.1)) }
    }
    #[inline(always)]
    unsafe fn greatest(x: Pair) -> f32 {
        // SAFETY: see the head of this block.
        unsafe { greatest_of_eight(_mm256_max_ps(x.0, x.1)) }
    }
}

/// # Safety
/// AVX2 is there.
#[inline(always)]
pub(super) unsafe fn sum_of_eight(x: __m256) -> f32 {
    // SAFETY: the caller's duty.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
}

/// # Safety
/// AVX2 is there.
#[inline(always)]
pub(super) unsafe fn greatest_of_eight(x: __m256) -> f32 {
    // SAFETY: the caller's duty.
    unsafe {
        let four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
    }
}

#[inline(always)]
unsafe fn nearest(x: __m256) -> __m256 {
    // SAFETY: inlined into `run`, where the features are.
    unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x) }
}

#[inline(always)]
unsafe fn times_two_to(x: __m256, n: __m256) -> __m256 {
    // SAFETY: inlined into `run`, where the features are.
    unsafe {
        let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
    }
}

/// The nearest brain floats of two numbers of each lane, side by side.
#[inline(always)]
unsafe fn brains(first: __m256, second: __m256) -> __m256i {
    // SAFETY: inlined into `run`, where the features are.
    unsafe {
        let half = _mm256_set1_epi32(NEAREST_BRAIN.cast_signed());
        let first = _mm256_srli_epi32::<16>(_mm256_add_epi32(_mm256_castps_si256(first), half));
        let second = _mm256_add_epi32(_mm256_castps_si256(second), half);
        _mm256_or_si256(first, _mm256_and_si256(second, _mm256_set1_epi32(UPPER_HALF.cast_signed())))
    }
}

#[inline(always)]
unsafe fn brain(from: *const u16) -> __m256 {
    // SAFETY: inlined into `run`, where the features are; the pointer is the caller's duty.
    unsafe {
        let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
    }
}

/// Four digits in every lane.
#[inline(always)]
unsafe fn four(x: *const i8) -> __m256i {
    // SAFETY: inlined into `run`, where the features are; the caller's pointer is valid for four digits.
    unsafe { _mm256_set1_epi32(x.cast::<i32>().read_unaligned()) }
}

/// Adds word `word + ODD` of eight, of four nibbles of every lane each, times four digits, in 16 bits.
#[inline(always)]
unsafe fn add_nibbles<const T: usize, const P: usize, const BYTES: bool, const ODD: usize>(
    body: [*const u32; P],
    x: [*const i8; T],
    word: usize,
    sums: &mut [[(__m256i, __m256i); P]; T],
) {
    // SAFETY: inlined into `run`, where the features are; the caller's blocks hold the words and the digits.
    unsafe {
        for p in 0..P {
            let w = nibbles::<BYTES, ODD>(body[p], word);
            for t in 0..T {
                let (sum, x) = (&mut sums[t][p], four(x[t].add(4 * (word + ODD))));
                sum.0 = _mm256_add_epi16(sum.0, _mm256_maddubs_epi16(w.0, x));
                sum.1 = _mm256_add_epi16(sum.1, _mm256_maddubs_epi16(w.1, x));
            }
        }
    }
}

/// Four nibbles of every lane as bytes: word `word + ODD` of eight, of which two lie in one where they are not `BYTES`.
#[inline(always)]
unsafe fn nibbles<const BYTES: bool, const ODD: usize>(body: *const u32, word: usize) -> (__m256i, __m256i) {
    // SAFETY: inlined into `run`, where the features are; the caller's block holds the words.
    unsafe {
        if BYTES {
            return Ymm::<false>::load_u32(body.add((word + ODD) * LANES));
        }
        let (mut w, mask) = (Ymm::<false>::load_u32(body.add(word / 2 * LANES)), _mm256_set1_epi8(15));
        if ODD == 1 {
            w = (_mm256_srli_epi32::<4>(w.0), _mm256_srli_epi32::<4>(w.1));
        }
        (_mm256_and_si256(w.0, mask), _mm256_and_si256(w.1, mask))
    }
}

/// Adds each lane's 32 nibbles times 32 digits, four at once.
#[inline(always)]
unsafe fn nibbles_by_fours<const T: usize, const P: usize, const BYTES: bool>(
    body: [*const u32; P],
    x: [*const i8; T],
    sums: &mut [[(__m256i, __m256i); P]; T],
) {
    for word in (0..8).step_by(2) {
        for p in 0..P {
            // SAFETY: inlined into `run_vnni`, where the features are; the caller's blocks hold the words and the digits.
            unsafe {
                let (first, last) = (nibbles::<BYTES, 0>(body[p], word), nibbles::<BYTES, 1>(body[p], word));
                for t in 0..T {
                    add_fours(&mut sums[t][p], first, four(x[t].add(4 * word)));
                    add_fours(&mut sums[t][p], last, four(x[t].add(4 * word + 4)));
                }
            }
        }
    }
}

/// Adds each lane's 16 bytes, made unsigned, times 16 digits, four at once.
#[inline(always)]
unsafe fn bytes_by_fours<const T: usize, const P: usize>(
    body: [*const u32; P],
    x: [*const i8; T],
    sums: &mut [[(__m256i, __m256i); P]; T],
) {
    for word in 0..4 {
        for p in 0..P {
            // SAFETY: inlined into `run_vnni`, where the features are; the caller's blocks hold the words and the digits.
            unsafe {
                let (signed, most) = (Ymm::<true>::load_u32(body[p].add(word * LANES)), _mm256_set1_epi8(-128));
                let w = (_mm256_xor_si256(signed.0, most), _mm256_xor_si256(signed.1, most));
                for t in 0..T {
                    add_fours(&mut sums[t][p], w, four(x[t].add(4 * word)));
                }
            }
        }
    }
}

/// Adds the products of four unsigned bytes of every lane and four digits.
#[inline(always)]
unsafe fn add_fours(sum: &mut (__m256i, __m256i), w: (__m256i, __m256i), x: __m256i) {
    // SAFETY: inlined into `run_vnni`, where the features are.
    unsafe {
        sum.0 = _mm256_dpbusd_avx_epi32(sum.0, w.0, x);
        sum.1 = _mm256_dpbusd_avx_epi32(sum.1, w.1, x);
    }
}

/// The sum of 16 signed bytes.
///
/// # Safety
/// AVX2 is there.
#[inline(always)]
pub(super) unsafe fn sum_of_bytes(bytes: __m128i) -> i32 {
    // SAFETY: the caller's duty.
    unsafe {
        // Sums of absolute differences are of unsigned bytes: 128 is added to each, and taken off again.
        let eights = _mm_sad_epu8(_mm_xor_si128(bytes, _mm_set1_epi8(-128)), _mm_setzero_si128());
        _mm_cvtsi128_si32(_mm_add_epi32(eights, _mm_unpackhi_epi64(eights, eights))) - 128 * LANES as i32
    }
}

/// Sums of four neighbours, unsigned bytes.
#[inline(always)]
unsafe fn fours(x: __m256i) -> __m256i {
    // SAFETY: inlined into `run`, where the features are.
    unsafe { pairs(_mm256_maddubs_epi16(x, _mm256_set1_epi8(1))) }
}

/// Sums of neighbours of 16 bits.
#[inline(always)]
unsafe fn pairs(x: __m256i) -> __m256i {
    // SAFETY: inlined into `run`, where the features are.
    unsafe { _mm256_madd_epi16(x, _mm256_set1_epi16(1)) }
}

#[inline(always)]
unsafe fn size_of(x: __m256) -> __m256 {
    // SAFETY: inlined into `run`, where the features are.
    unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), x) }
}
