//! Sixteen lanes as one AVX-512 register.

use std::arch::x86_64::*;

use super::digits::Digits;
use super::lanes::Lanes;
use super::{Kernel, LANES};

/// Evidence of AVX-512 F, BW, DQ, VL and VNNI with FMA and F16C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Avx512(());

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
        there.then_some(Self(()))
    }
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
    unsafe fn store_i8(to: *mut i8, x: __m512) {
        // SAFETY: see the head of this block.
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x))) }
    }
    #[inline(always)]
    unsafe fn load_u32(from: *const u32) -> __m512i {
        // SAFETY: see the head of this block.
        unsafe { _mm512_loadu_si512(from.cast()) }
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
    unsafe fn low_nibbles(x: __m512i) -> __m512i {
        // SAFETY: see the head of this block.
        unsafe { _mm512_and_si512(x, _mm512_set1_epi8(15)) }
    }
    #[inline(always)]
    unsafe fn high_nibbles(x: __m512i) -> __m512i {
        // SAFETY: see the head of this block.
        unsafe { _mm512_and_si512(_mm512_srli_epi32::<4>(x), _mm512_set1_epi8(15)) }
    }
    #[inline(always)]
    unsafe fn dot_nibbles<const T: usize>(w: [__m512i; 8], x: [&Digits; T], centre: i32) -> [__m512; T] {
        // SAFETY: see the head of this block.
        unsafe {
            let mut sums = x.map(|x| _mm512_set1_epi32(-centre * (x.halves[0] + x.halves[1])));
            for (word, w) in w.into_iter().enumerate() {
                for t in 0..T {
                    sums[t] = _mm512_dpbusd_epi32(sums[t], w, four(x[t], 4 * word));
                }
            }
            sums.map(|sum| _mm512_cvtepi32_ps(sum))
        }
    }
    #[inline(always)]
    unsafe fn dot_bytes<const N: usize, const T: usize>(w: [__m512i; N], x: [&Digits; T], half: usize) -> [__m512; T] {
        // The instruction takes unsigned weights: 128 is added to each, and its products taken off again.
        // SAFETY: see the head of this block.
        unsafe {
            let mut sums = x.map(|x| {
                let digits = if N == 8 { x.halves[0] + x.halves[1] } else { x.halves[half] };
                _mm512_set1_epi32(-128 * digits)
            });
            for (word, w) in w.into_iter().enumerate() {
                let w = _mm512_xor_si512(w, _mm512_set1_epi8(-128));
                for t in 0..T {
                    sums[t] = _mm512_dpbusd_epi32(sums[t], w, four(x[t], half * LANES + 4 * word));
                }
            }
            sums.map(|sum| _mm512_cvtepi32_ps(sum))
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

/// Four digits in every lane.
#[inline(always)]
unsafe fn four(x: &Digits, first: usize) -> __m512i {
    // SAFETY: inlined into `run`, where the features are; a block has 32 digits.
    unsafe { _mm512_set1_epi32(x.digits.as_ptr().add(first).cast::<i32>().read_unaligned()) }
}
