//! The kernels' text: compiled by NVRTC for a device, and by the host's compiler for the shim.

/// A file of kernels, or one that they include.
pub(crate) struct Source {
    /// As an `#include` names it.
    pub(crate) name: &'static str,
    /// What is in it.
    pub(crate) text: &'static str,
}

/// The file of this name.
macro_rules! source {
    ($name:literal) => {
        $crate::cuda::sources::Source {
            name: $name,
            text: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/kernels/", $name)),
        }
    };
}

#[cfg(test)]
pub(super) use source;

/// What every file of kernels includes, in the order in which they may be put in front of one.
pub(crate) const HEADERS: &[Source] = &[source!("ptx.cuh"), source!("device.cuh"), source!("stream.cuh")];

/// The files of kernels; each compiles alone.
pub(crate) const SOURCES: &[Source] = &[
    source!("rows.cu"),
    source!("norm.cu"),
    source!("rope.cu"),
    source!("decode.cu"),
    source!("attend.cu"),
    source!("gemm.cu"),
    source!("linear.cu"),
    source!("window.cu"),
    source!("sample.cu"),
];
