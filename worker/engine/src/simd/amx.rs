//! The matrix unit of newer Intel processors (AMX): eight registers of 16 rows by 64 bytes, one instruction a product.
//!
//! Intel SDM volume 1, chapter 18. The unit belongs to a process only after it was asked of the kernel.

use std::arch::asm;
use std::arch::x86_64::*;

use super::avx512::Avx512;
use super::brains::{Closeness, Line, SIDE, Sums};

/// Evidence of AMX with brain floats, of AVX-512 with the same, and of the kernel's permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amx(());

/// Bits of `edx` of leaf 7: products of brain floats, and tiles themselves.
const NEEDED: u32 = 1 << 22 | 1 << 24;
/// `arch_prctl`: may this process have a part of the processor's state?
#[cfg(target_os = "linux")]
const REQUEST: libc::c_long = 0x1023;
/// That part: the numbers in tiles.
#[cfg(target_os = "linux")]
const TILES: libc::c_long = 18;

/// All eight registers as 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Shape {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    columns: [u16; 16],
    rows: [u8; 16],
}

const WHOLE: Shape = {
    let (mut columns, mut rows) = ([0; 16], [0; 16]);
    let mut tile = 0;
    while tile < 8 {
        (columns[tile], rows[tile]) = (64, 16);
        tile += 1;
    }
    Shape { palette: 1, start: 0, reserved: [0; 14], columns, rows }
};

impl Amx {
    pub(super) fn detect() -> Option<Amx> {
        let there = Avx512::detect().is_some() && is_x86_feature_detected!("avx512bf16");
        // Leaf 7 is there where AVX-512 is.
        let has_tiles = there && __cpuid_count(7, 0).edx & NEEDED == NEEDED;
        (has_tiles && permitted()).then_some(Amx(()))
    }

    /// Writes 32 numbers as brain floats, and where there is `rest` what they leave as brain floats again.
    pub(super) fn split(self, x: &[f32; SIDE], near: &mut Line, rest: Option<&mut Line>) {
        // SAFETY: the instructions are there, because `self` is.
        unsafe { split(x, near, rest) }
    }

    /// Shapes the registers of this thread until what is returned is dropped.
    pub(super) fn begin(self) -> Shaped {
        // SAFETY: the unit is there and permitted, because `self` is; the shape is one of palette 1.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &WHOLE, options(nostack, readonly)) };
        Shaped(())
    }
}

/// Evidence of shaped registers.
pub(super) struct Shaped(());

impl Drop for Shaped {
    fn drop(&mut self) {
        // SAFETY: the unit is there, since it was shaped. Registers in use would cost every switch of threads.
        unsafe { asm!("tilerelease", options(nomem, nostack)) };
    }
}

/// Two tiles of inputs by two of weights, all read: of a plane that begins so many bytes on.
macro_rules! read_both {
    ($first:literal, $second:literal) => {
        concat!(
            "tileloadd tmm4, [{x} + {line} + ",
            $first,
            "]\n",
            "tileloadd tmm6, [{w} + {line}]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tileloadd tmm7, [{w} + {line} + 1024]\n",
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            "tileloadd tmm5, [{x} + {line} + ",
            $second,
            "]\n",
            "tdpbf16ps tmm2, tmm5, tmm6\n",
            "tdpbf16ps tmm3, tmm5, tmm7",
        )
    };
}

/// One tile of inputs by two of weights, all read.
macro_rules! read_half {
    () => {
        concat!(
            "tileloadd tmm4, [{x} + {line}]\n",
            "tileloadd tmm6, [{w} + {line}]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tileloadd tmm7, [{w} + {line} + 1024]\n",
            "tdpbf16ps tmm1, tmm4, tmm7",
        )
    };
}

/// The nearest of inputs by the weights that were read.
macro_rules! read_inputs {
    () => {
        concat!(
            "tileloadd tmm4, [{x} + {line}]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            "tileloadd tmm5, [{x} + {line} + 1024]\n",
            "tdpbf16ps tmm2, tmm5, tmm6\n",
            "tdpbf16ps tmm3, tmm5, tmm7",
        )
    };
}

/// The inputs that were read by what is left of weights.
macro_rules! read_weights {
    () => {
        concat!(
            "tileloadd tmm6, [{w} + {line} + 2048]\n",
            "tdpbf16ps tmm0, tmm4, tmm6\n",
            "tdpbf16ps tmm2, tmm5, tmm6\n",
            "tileloadd tmm7, [{w} + {line} + 3072]\n",
            "tdpbf16ps tmm1, tmm4, tmm7\n",
            "tdpbf16ps tmm3, tmm5, tmm7",
        )
    };
}

impl Shaped {
    /// The products of a row of `blocks` squares of inputs and as many of weights, added up: of the first `rows` of them at
    /// least.
    ///
    /// # Safety
    /// As many squares of as many planes as `closeness` has lie at `x` and at `w`.
    pub(super) unsafe fn multiply(
        &self,
        (x, w): (*const Line, *const Line),
        (blocks, closeness): (usize, Closeness),
        rows: usize,
        sums: &mut Sums,
    ) {
        // One block of code, since no register may be counted on between two.
        macro_rules! products {
            ($($passes:expr),+) => {
                asm!(
                    "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                    "2:",
                    $($passes,)+
                    "add {x}, {x_step}",
                    "add {w}, {w_step}",
                    "dec {blocks}",
                    "jnz 2b",
                    "tilestored [{sums} + {wide}], tmm0",
                    "tilestored [{sums} + {wide} + 64], tmm1",
                    "tilestored [{sums} + {wide} + 2048], tmm2",
                    "tilestored [{sums} + {wide} + 2112], tmm3",
                    x = inout(reg) x => _,
                    w = inout(reg) w => _,
                    blocks = inout(reg) blocks => _,
                    x_step = in(reg) SIDE * size_of::<Line>() * closeness.planes().0,
                    w_step = in(reg) SIDE * size_of::<Line>() * closeness.planes().1,
                    sums = in(reg) sums,
                    line = in(reg) 64_usize,
                    wide = in(reg) 128_usize,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                )
            };
        }
        if blocks == 0 {
            sums.0.fill(0.0);
            return;
        }
        // SAFETY: the registers are shaped, because `self` is; squares lie where the caller says.
        unsafe {
            match closeness {
                Closeness::Coarse if rows <= SIDE / 2 => products!(read_half!()),
                Closeness::Coarse => products!(read_both!("0", "1024")),
                Closeness::Brains => products!(read_both!("2048", "3072"), read_inputs!()),
                Closeness::Near => products!(read_both!("2048", "3072"), read_inputs!(), read_weights!()),
            }
        }
    }
}

/// The kernel is asked once: its answer never changes.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    static PERMITTED: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
        // SAFETY: a question without pointers.
        unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILES) == 0 }
    });
    *PERMITTED
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// # Safety
/// The machine has the features.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn split(x: &[f32; SIDE], near: &mut Line, rest: Option<&mut Line>) {
    // SAFETY: arrays hold what is read and written; a vector of brain floats is 64 bytes.
    unsafe {
        let halves = [_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(SIDE / 2))];
        let nearest = _mm512_cvtne2ps_pbh(halves[1], halves[0]);
        std::ptr::write_unaligned(near.0.as_mut_ptr().cast(), nearest);
        let Some(rest) = rest else { return };
        let left = |half: usize| {
            let near = _mm256_loadu_si256(near.0.as_ptr().add(half * SIDE / 2).cast());
            let near = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(near));
            _mm512_sub_ps(halves[half], _mm512_castsi512_ps(near))
        };
        std::ptr::write_unaligned(rest.0.as_mut_ptr().cast(), _mm512_cvtne2ps_pbh(left(1), left(0)));
    }
}
