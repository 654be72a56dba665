//! Vector kernels, and the proof that the machine can run them.
//!
//! Every kernel is written once, over groups of 16 numbers ([`Lanes`]), and compiled for each [`Level`]: one AVX-512
//! register, two AVX2 registers, or a plain array. Sixteen virtual lanes and fused multiply-adds everywhere make the
//! order of every sum the same at all levels: a level changes the speed, never a bit of the result.
//!
//! The functions here are safe: they check lengths, and a [`Level`] cannot be had on a machine that lacks it.
#![allow(unsafe_code)] // reason: instruction sets and raw tiles; callers see only checked functions
#![allow(clippy::needless_range_loop)] // reason: counted loops over arrays of registers are what unrolls

pub mod affine;
#[cfg(target_arch = "x86_64")]
mod amx;
pub mod arena;
pub mod attend;
pub mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod brains;
pub mod bytes;
mod cursor;
pub mod digits;
pub mod integer;
mod lanes;
pub mod linear;
pub mod panel;
pub mod rows;
pub mod tile;
mod unpack;
pub mod window;

use brains::Unit;
use lanes::{Lanes, Portable};

/// Numbers in a group; also output rows in a panel of weights, and tokens in a block of keys.
pub const LANES: usize = 16;

/// An instruction set that this machine has: a value is evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Plain Rust: right everywhere; slow on x86 without fused multiply-add.
    Scalar,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    /// The same and AVX-VNNI, as processors without AVX-512 have it.
    #[cfg(target_arch = "x86_64")]
    AvxVnni(avx2::AvxVnni),
    /// AVX-512 F, BW, DQ, VL and VNNI, besides all of AVX2's.
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    /// The same and AMX with brain floats, by which prompts and encoders' products are computed.
    #[cfg(target_arch = "x86_64")]
    Amx(avx512::Avx512, amx::Amx),
}

impl Level {
    /// The best level of this machine.
    #[must_use]
    pub fn detect() -> Level {
        Level::all().pop().unwrap_or(Level::Scalar)
    }

    /// Every level that this machine can run, the best last.
    #[must_use]
    pub fn all() -> Vec<Level> {
        let mut levels = vec![Level::Scalar];
        #[cfg(target_arch = "x86_64")]
        {
            levels.extend(avx2::Avx2::detect().map(Level::Avx2));
            levels.extend(avx2::AvxVnni::detect().map(Level::AvxVnni));
            let avx512 = avx512::Avx512::detect();
            levels.extend(avx512.map(Level::Avx512));
            levels.extend(avx512.zip(amx::Amx::detect()).map(|(avx512, amx)| Level::Amx(avx512, amx)));
        }
        levels
    }

    /// The level of this name, if this machine can run it.
    #[must_use]
    pub fn named(name: &str) -> Option<Level> {
        Level::all().into_iter().find(|level| level.name() == name)
    }

    /// The name that configuration and logs use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::AvxVnni(_) => "avxvnni",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Level::Amx(..) => "amx",
        }
    }

    /// Whether nibbles that many rows meet are better made bytes beforehand than masked and shifted for each tile of rows.
    fn unpacks(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(avx512) | Level::Amx(avx512, _) => !avx512.spare_units,
            _ => true,
        }
    }

    /// The matrix unit of this level.
    #[must_use]
    pub fn unit(self) -> Option<Unit> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Level::Amx(_, amx) => Some(Unit::Amx(amx)),
            _ => None,
        }
    }

    /// Runs a kernel compiled for this level.
    ///
    /// # Safety
    /// The kernel's own duties (its pointers are valid for what it reads and writes).
    #[inline]
    unsafe fn run<K: Kernel>(self, kernel: K) {
        // SAFETY: the instruction set is there, because `self` is; the kernel's duties are the caller's.
        unsafe {
            match self {
                Level::Scalar => kernel.run::<Portable>(),
                #[cfg(target_arch = "x86_64")]
                Level::AvxVnni(_) if K::MULTIPLIES_BYTES => avx2::run_vnni(kernel),
                #[cfg(target_arch = "x86_64")]
                Level::Avx2(_) | Level::AvxVnni(_) => avx2::run(kernel),
                #[cfg(target_arch = "x86_64")]
                Level::Avx512(_) | Level::Amx(..) => avx512::run(kernel),
            }
        }
    }
}

/// A computation that is compiled once per level. `run` and all that it calls must be `#[inline(always)]`, so that they
/// become part of the function that carries the level's target features.
trait Kernel {
    /// Whether it gains by AVX-VNNI, for which it is then compiled too.
    const MULTIPLIES_BYTES: bool = false;

    unsafe fn run<V: Lanes>(self);
}
