//! The kernels that the backend launches, each found once by its name.

use crate::Error;
use crate::cuda::{Gpu, Kernel};

/// Greatest widths of heads over the cache.
pub(super) const PAGED_WIDTHS: [usize; 3] = [64, 128, 256];
/// Greatest widths of heads of encoders.
pub(super) const ENCODE_WIDTHS: [usize; 3] = [32, 64, 128];

/// Declares the kernels of one name each.
macro_rules! kernels {
    ($($name:ident)*) => {
        /// See the sources in `kernels/` for what each does.
        pub(super) struct Kernels {
            $(pub(super) $name: Kernel,)*
            pub(super) decode: [Kernel; 3],
            pub(super) turn_decode: [Kernel; 3],
            pub(super) prefill: [Kernel; 3],
            pub(super) encode: [Kernel; 3],
        }

        impl Kernels {
            /// Finds them all.
            pub(super) fn find(gpu: &dyn Gpu) -> Result<Kernels, Error> {
                Ok(Kernels {
                    $($name: gpu.kernel(stringify!($name))?,)*
                    decode: each("decode", PAGED_WIDTHS, gpu)?,
                    turn_decode: each("turn_decode", PAGED_WIDTHS, gpu)?,
                    prefill: each("prefill", PAGED_WIDTHS, gpu)?,
                    encode: each("encode", ENCODE_WIDTHS, gpu)?,
                })
            }
        }
    };
}

kernels! {
    gather take_rows add_rows scatter bias scale glu mean cast
    rms_norm layer_norm
    rope_write
    attend_plain attention_weights
    gemm_any gemm_256_192 gemm_128_256 gemm_128_128 gemm_64_256 gemm_64_128 gemm_64_64
    gemm_32_128 gemm_16_128 gemm_16_64
    gemv gemv_nibbles gemv_bytes gemv_glu gemv_glu_nibbles gemv_glu_bytes
    unfold depthwise
    argmax sample
    noise
}

fn each<const N: usize>(name: &str, sizes: [usize; N], gpu: &dyn Gpu) -> Result<[Kernel; N], Error> {
    let mut found = [Kernel(0); N];
    for (kernel, size) in found.iter_mut().zip(sizes) {
        *kernel = gpu.kernel(&format!("{name}_{size}"))?;
    }
    Ok(found)
}

/// The first of `sizes` that holds `size`.
pub(super) fn fitting(sizes: &[usize], size: usize) -> Option<usize> {
    sizes.iter().position(|most| *most >= size)
}
