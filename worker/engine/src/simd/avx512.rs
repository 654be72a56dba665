//! Sixteen lanes as one AVX-512 register.

use std::arch::x86_64::*;

use super::digits::UNSIGNED;
use super::lanes::{Lanes, NEAREST_BRAIN, UPPER_HALF};
use super::{Kernel, LANES};

/// Evidence of AVX-512 F, BW, DQ, VL and VNNI with FMA and F16C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512 {
    /// Whether masks and shifts have units of their own, so that they cost little beside products. Intel's processors have
    /// two for all of 512 bits.
    pub(super) spare_units: bool,
}

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        let there = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        there.then_some(Self { spare_units: vendor() == *b"AuthenticAMD" })
    }
}

/// Who made the processor: leaf 0 of `cpuid`.
fn vendor() -> [u8; 12] {
    let leaf = __cpuid(0);
    let mut name = [0; 12];
    for (part, register) in name.chunks_exact_mut(4).zip([leaf.ebx, leaf.edx, leaf.ecx]) {
        part.copy_from_slice(&register.to_le_bytes());
    }
    name
}

/// # Safety
/// The machine has the features; the kernel's own duties.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) {
    // SAFETY: the kernel is inlined here, where the features are.
    unsafe { kernel.run::<Zmm>() }
}

#[derive(Clone, Copy)]
pub(super) struct Zmm;

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

// Every function below is inlined into `run`, and its pointers are its caller's duty.
impl Lanes for Zmm {
    type F = __m512;
    type U = __m512i;
    const ACCUMULATORS: usize = 24;
    const DIRECT_TOKENS: usize = 8;
    const INTEGER_ROWS: usize = 4;
    const BYTES_CENTRE: i32 = UNSIGNED;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: see the head of this block.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> __m512 {
        // SAFETY: see the head of this block.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: __m512) {
        // SAFETY: see the head of this block.
        unsafe { _mm512_storeu_ps(to, x) }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> __m512 {
        // SAFETY: see the head of this block; masked lanes are not touched.
        unsafe { _mm512_maskz_loadu_ps(first(count), from) }
    }
    #[inline(always)]
    unsafe fn store_first(to: *mut f32, x: __m512, count: usize) {
        // SAFETY: see the head of this block; masked lanes are not touched.
        unsafe { _mm512_mask_storeu_ps(to, first(count), x) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u16) -> __m512 {
        // SAFETY: see the head of this block.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn store_f16(to: *mut u16, x: __m512) {
        // SAFETY: see the head of this block.
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<NEAREST>(x)) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> __m512 {
        // SAFETY: see the head of this block.
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn store_brains(to: *mut u32, first: __m512, second: __m512) {
        // SAFETY: see the head of this block.
        unsafe {
            let half = Self::splat_u32(NEAREST_BRAIN);
            let first = _mm512_srli_epi32::<16>(_mm512_add_epi32(_mm512_castps_si512(first), half));
            let second = _mm512_add_epi32(_mm512_castps_si512(second), half);
            let second = _mm512_and_si512(second, Self::splat_u32(UPPER_HALF));
            Self::store_u32(to, _mm512_or_si512(first, second));
        }
    }
    #[inline(always)]
    unsafe fn store_i8(to: *mut i8, x: __m512) -> i32 {
        // SAFETY: see the head of this block.
        unsafe {
            let bytes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x));
            _mm_storeu_si128(to.cast(), bytes);
            super::avx2::sum_of_bytes(bytes)
        }
    }
    #[inline(always)]
    unsafe fn load_u32(from: *const u32) -> __m512i {
        // SAFETY: see the head of this block.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store_u32(to: *mut u32, x: __m512i) {
        // SAFETY: see the head of this block.
        unsafe { _mm512_storeu_si512(to.cast(), x) }
    }
    #[inline(always)]
    unsafe fn nibble(x: __m512i, column: usize) -> __m512 {
        // The permutation looks at the low four bits only: one instruction masks and converts.
        // SAFETY: see the head of this block.
        unsafe {
            let numbers =
                _mm512_setr_ps(0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0);
            let shift = _mm_cvtsi32_si128((column % 4 * 8 + column / 4 * 4) as i32);
            _mm512_permutexvar_ps(_mm512_srl_epi32(x, shift), numbers)
        }
    }
    #[inline(always)]
    unsafe fn byte(x: __m512i, column: usize) -> __m512 {
        // SAFETY: see the head of this block.
        unsafe {
            let top = _mm512_sll_epi32(x, _mm_cvtsi32_si128((24 - 8 * column) as i32));
            _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(top))
        }
    }
    #[inline(always)]
    unsafe fn splat_u32(x: u32) -> __m512i {
        // SAFETY: see the head of this block.
        unsafe { _mm512_set1_epi32(x.cast_signed()) }
    }
    #[inline(always)]
    unsafe fn sub_u32(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: see the head of this block.
        unsafe { _mm512_sub_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn from_i32(x: __m512i) -> __m512 {
        // SAFETY: see the head of this block.
        unsafe { _mm512_cvtepi32_ps(x) }
    }
    #[inline(always)]
    unsafe fn fetch(from: *const u8) {
        // SAFETY: see the head of this block; any address may be asked for.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) };
    }
    #[inline(always)]
    unsafe fn store_nibbles(to: *mut u32, body: *const u32) {
        for word in 0..4 {
            // SAFETY: see the head of this block.
            unsafe {
                let [low, high] = nibbles::<false>(body, word);
                Self::store_u32(to.add(2 * word * LANES), low);
                Self::store_u32(to.add((2 * word + 1) * LANES), high);
            }
        }
    }
    #[inline(always)]
    unsafe fn dot_nibbles<const T: usize, const P: usize, const BYTES: bool>(
        body: [*const u32; P],
        x: [*const i8; T],
        sums: &mut [[__m512i; P]; T],
    ) {
        for word in 0..4 {
            // SAFETY: see the head of this block.
            unsafe {
                let mut w = [[Self::splat_u32(0); 2]; P];
                for p in 0..P {
                    w[p] = nibbles::<BYTES>(body[p], word);
                }
                for t in 0..T {
                    let (first, last) = (four(x[t].add(8 * word)), four(x[t].add(8 * word + 4)));
                    for p in 0..P {
                        sums[t][p] = _mm512_dpbusd_epi32(sums[t][p], w[p][0], first);
                        sums[t][p] = _mm512_dpbusd_epi32(sums[t][p], w[p][1], last);
                    }
                }
            }
        }
    }
    /// The instruction takes unsigned weights: hence what is added to each.
    #[inline(always)]
    unsafe fn dot_bytes<const T: usize, const P: usize>(
        body: [*const u32; P],
        x: [*const i8; T],
        sums: &mut [[__m512i; P]; T],
    ) {
        for word in 0..4 {
            // SAFETY: see the head of this block.
            unsafe {
                let mut w = [Self::splat_u32(0); P];
                for p in 0..P {
                    w[p] = _mm512_xor_si512(Self::load_u32(body[p].add(word * LANES)), _mm512_set1_epi8(-128));
                }
                for t in 0..T {
                    let x = four(x[t].add(4 * word));
                    for p in 0..P {
                        sums[t][p] = _mm512_dpbusd_epi32(sums[t][p], w[p], x);
                    }
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see the head of this block.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the head of this block.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the head of this block.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the head of this block.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the head of this block.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the head of this block.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn abs(x: __m512) -> __m512 {
        // SAFETY: see the head of this block.
        unsafe { _mm512_abs_ps(x) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the head of this block.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn round(x: __m512) -> __m512 {
        // SAFETY: see the head of this block.
        unsafe { _mm512_roundscale_ps::<NEAREST>(x) }
    }
    #[inline(always)]
    unsafe fn scale(x: __m512, n: __m512) -> __m512 {
        // SAFETY: see the head of this block.
        unsafe { _mm512_scalef_ps(x, n) }
    }
    #[inline(always)]
    unsafe fn equal(a: __m512, b: __m512) -> u32 {
        // SAFETY: see the head of this block.
        unsafe { u32::from(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b)) }
    }
    #[inline(always)]
    unsafe fn unless_equal(x: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the head of this block.
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(a, b), x) }
    }
    #[inline(always)]
    unsafe fn to_array(x: __m512) -> [f32; LANES] {
        let mut all = [0.0; LANES];
        // SAFETY: the array holds 16 numbers.
        unsafe { _mm512_storeu_ps(all.as_mut_ptr(), x) };
        all
    }
    #[inline(always)]
    unsafe fn keep_first(x: __m512, count: usize, fill: f32) -> __m512 {
        // SAFETY: see the head of this block.
        unsafe { _mm512_mask_blend_ps(first(count), _mm512_set1_ps(fill), x) }
    }
    #[inline(always)]
    unsafe fn sum(x: __m512) -> f32 {
        // SAFETY: see the head of this block.
        unsafe {
            let halves = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            super::avx2::sum_of_eight(halves)
        }
    }
    #[inline(always)]
    unsafe fn greatest(x: __m512) -> f32 {
        // SAFETY: see the head of this block.
        unsafe {
            let halves = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            super::avx2::greatest_of_eight(halves)
        }
    }
}

#[inline(always)]
fn first(count: usize) -> __mmask16 {
    ((1_u32 << count.min(LANES)) - 1) as __mmask16
}

/// Eight nibbles of every lane as two words of bytes: of its word `word`, or of two words where they are `BYTES`.
#[inline(always)]
unsafe fn nibbles<const BYTES: bool>(body: *const u32, word: usize) -> [__m512i; 2] {
    // SAFETY: inlined into `run`, where the features are; the caller's block holds the words.
    unsafe {
        if BYTES {
            let first = body.add(2 * word * LANES);
            return [_mm512_loadu_si512(first.cast()), _mm512_loadu_si512(first.add(LANES).cast())];
        }
        let (both, mask) = (_mm512_loadu_si512(body.add(word * LANES).cast()), _mm512_set1_epi8(15));
        [_mm512_and_si512(both, mask), _mm512_and_si512(_mm512_srli_epi32::<4>(both), mask)]
    }
}

/// Four digits in every lane.
#[inline(always)]
unsafe fn four(x: *const i8) -> __m512i {
    // SAFETY: inlined into `run`, where the features are; the caller's pointer is valid for four digits.
    unsafe { _mm512_set1_epi32(x.cast::<i32>().read_unaligned()) }
}
