//! Products by NVIDIA's library, where it is found: planned once a shape, in memory that is there from the start.
#![allow(unsafe_code)] // reason: a C interface; each call says what its handles and places rest on

use std::collections::HashMap;
use std::ffi::c_void;
use std::path::PathBuf;
use std::ptr;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{
    self, cublasComputeType_t as Compute, cublasLtMatmulDescAttributes_t as Description,
    cublasLtMatmulPreferenceAttributes_t as Preference, cublasStatus_t as Status, cudaDataType as Type,
};
use cudarc::driver::sys::{CUdeviceptr, CUresult, CUstream, cuMemAlloc_v2, cuMemFree_v2};
use kernels::library;

use super::{Address, Kind, Product};
use crate::Error;
use crate::backend::Epilogue;

/// Bytes that a product may use meanwhile: twice what the library advises for Hopper.
const WORKSPACE: usize = 64 << 20;
/// Shapes that are planned: a prompt has any length. Past this all are planned anew.
const PLANS_MAX: usize = 4096;
/// The greatest alignment that the library tells apart.
const ALIGNMENT_MAX: u64 = 256;
/// `CUBLAS_OP_T`, which the declarations lack.
const TURNED: i32 = 1;
/// Parts of a sum are added in single precision or not at all, never in the numbers of the output.
const REDUCTION: u32 = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;

/// The library, ready on a device.
pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    /// `a * b^T` of row-major matrices is, seen by columns, `b^T * a`: the same for all.
    description: sys::cublasLtMatmulDesc_t,
    workspace: CUdeviceptr,
    /// None where the library has nothing for a shape.
    plans: HashMap<Shape, Option<Plan>>,
}

// SAFETY: the handles are the library's, which takes them from any thread that has bound the context, one at a time.
unsafe impl Send for Blas {}

/// What a plan depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Shape {
    m: usize,
    n: usize,
    k: usize,
    kind: Kind,
    /// Of `a`, `b` and the output.
    alignments: [u32; 3],
}

impl Shape {
    fn of(product: &Product) -> Shape {
        let Product { m, n, k, kind, .. } = *product;
        Shape { m, n, k, kind, alignments: [product.a, product.b, product.out].map(alignment) }
    }
}

fn alignment(address: Address) -> u32 {
    let lowest = 1 << (address.0 | ALIGNMENT_MAX).trailing_zeros();
    u32::try_from(ALIGNMENT_MAX.min(lowest)).expect("small")
}

/// How a shape is multiplied.
struct Plan {
    a: Layout,
    b: Layout,
    out: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Blas {
    /// None, with a line in the log, where it is not here or does not start. The context is bound.
    pub(super) fn open(libraries: &[PathBuf]) -> Option<Blas> {
        // SAFETY: looks for the library, and nothing else.
        if !library::BLAS.provide(libraries) || !unsafe { sys::is_culib_present() } {
            tracing::info!("cuBLASLt is not here: products are our own");
            return None;
        }
        let started = Blas::start();
        if let Err(error) = &started {
            tracing::warn!(%error, "cuBLASLt does not start: products are our own");
        }
        started.ok()
    }

    fn start() -> Result<Blas, Error> {
        let handle = told("cublasLtCreate", result::create_handle())?;
        let mut blas = Blas { handle, description: ptr::null_mut(), workspace: 0, plans: HashMap::new() };
        let made = result::create_matmul_desc(Compute::CUBLAS_COMPUTE_32F, Type::CUDA_R_32F);
        blas.description = told("cublasLtMatmulDescCreate", made)?;
        // SAFETY: the description is alive, the value is of the attribute's type and is copied.
        let set = unsafe {
            let value = ptr::from_ref(&TURNED).cast();
            let attribute = Description::CUBLASLT_MATMUL_DESC_TRANSA;
            result::set_matmul_desc_attribute(blas.description, attribute, value, size_of_val(&TURNED))
        };
        told("cublasLtMatmulDescSetAttribute", set)?;
        // SAFETY: the context is bound, the place outlives the call.
        let allocated = unsafe { cuMemAlloc_v2(&mut blas.workspace, WORKSPACE) };
        if allocated != CUresult::CUDA_SUCCESS {
            return Err(Error::OutOfMemory { bytes: WORKSPACE, free: 0 });
        }
        Ok(blas)
    }

    /// Queues a product; false where the library has none of this shape. The context is bound.
    pub(super) fn multiply(&mut self, product: &Product, stream: CUstream) -> Result<bool, Error> {
        if product.m == 0 || product.n == 0 {
            return Ok(true);
        }
        let shape = Shape::of(product);
        if self.plans.len() >= PLANS_MAX && !self.plans.contains_key(&shape) {
            self.plans.clear();
        }
        if !self.plans.contains_key(&shape) {
            let plan = self.plan(&shape)?;
            self.plans.insert(shape, plan);
        }
        let Some(Some(plan)) = self.plans.get(&shape) else { return Ok(false) };
        match self.queue(plan, product, stream) {
            Ok(()) => Ok(true),
            Err(CublasError(Status::CUBLAS_STATUS_NOT_SUPPORTED | Status::CUBLAS_STATUS_ARCH_MISMATCH)) => {
                self.plans.insert(shape, None);
                Ok(false)
            }
            Err(error) => Err(Error::Device(format!("cublasLtMatmul of {product:?}: {:?}", error.0))),
        }
    }

    fn queue(&self, plan: &Plan, product: &Product, stream: CUstream) -> Result<(), CublasError> {
        let one = 1.0_f32;
        let before = if product.epilogue == Epilogue::Add { 1.0_f32 } else { 0.0 };
        let [a, b, out] = [product.a, product.b, product.out].map(|address| address.0 as *mut c_void);
        // SAFETY: all handles are alive; the factors are copied; workspace and algorithm belong together; the matrices are
        // the caller's to vouch for. The output is read and written in the same layout, which may be in place.
        unsafe {
            result::matmul(
                self.handle,
                self.description,
                ptr::from_ref(&one).cast(),
                ptr::from_ref(&before).cast(),
                b,
                plan.b.0,
                a,
                plan.a.0,
                out,
                plan.out.0,
                out,
                plan.out.0,
                &plan.algorithm,
                self.workspace as *mut c_void,
                WORKSPACE,
                stream.cast(),
            )
        }
    }

    /// Asks the library how it would multiply; nothing is queued.
    fn plan(&self, shape: &Shape) -> Result<Option<Plan>, Error> {
        let Shape { m, n, k, kind, .. } = *shape;
        let number = match kind {
            Kind::F32 => Type::CUDA_R_32F,
            Kind::Bf16 => Type::CUDA_R_16BF,
        };
        // Rows are columns to the library.
        let (a, b) = (Layout::new(Type::CUDA_R_16BF, k, m)?, Layout::new(Type::CUDA_R_16BF, k, n)?);
        let out = Layout::new(number, n, m)?;
        let wishes = Wishes::new(shape)?;
        // SAFETY: all handles are alive.
        let found = unsafe {
            let description = self.description;
            result::get_matmul_algo_heuristic(self.handle, description, b.0, a.0, out.0, out.0, wishes.0)
        };
        match found {
            Ok(found) => Ok(Some(Plan { a, b, out, algorithm: found.algo })),
            Err(CublasError(Status::CUBLAS_STATUS_NOT_SUPPORTED | Status::CUBLAS_STATUS_INVALID_VALUE)) => Ok(None),
            Err(error) => told("cublasLtMatmulAlgoGetHeuristic", Err(error)),
        }
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: each was made once and is destroyed once, and nothing is queued any more. Failures leave nothing to do.
        unsafe {
            if self.workspace != 0 {
                let _ = cuMemFree_v2(self.workspace);
            }
            if !self.description.is_null() {
                let _ = result::destroy_matmul_desc(self.description);
            }
            let _ = result::destroy_handle(self.handle);
        }
    }
}

/// How a matrix lies, by columns without gaps.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(number: Type, rows: usize, columns: usize) -> Result<Layout, Error> {
        let leading = i64::try_from(rows).map_err(|_| Error::Device("a matrix beyond all memory".into()))?;
        let made = result::create_matrix_layout(number, rows as u64, columns as u64, leading);
        told("cublasLtMatrixLayoutCreate", made).map(Layout)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made once and destroyed once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// What an algorithm must keep to.
struct Wishes(sys::cublasLtMatmulPreference_t);

impl Wishes {
    fn new(shape: &Shape) -> Result<Wishes, Error> {
        let wishes = Wishes(told("cublasLtMatmulPreferenceCreate", result::create_matmul_pref())?);
        let [a, b, out] = shape.alignments;
        wishes.set(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &(WORKSPACE as u64))?;
        wishes.set(Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &REDUCTION)?;
        // The library's first matrix is our second.
        wishes.set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &b)?;
        wishes.set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &a)?;
        wishes.set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &out)?;
        wishes.set(Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &out)?;
        Ok(wishes)
    }

    fn set<T>(&self, attribute: Preference, value: &T) -> Result<(), Error> {
        // SAFETY: the handle is alive, the value is of the attribute's size and is copied.
        let set = unsafe {
            result::set_matmul_pref_attribute(self.0, attribute, ptr::from_ref(value).cast(), size_of::<T>())
        };
        told("cublasLtMatmulPreferenceSetAttribute", set)
    }
}

impl Drop for Wishes {
    fn drop(&mut self) {
        // SAFETY: made once and destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

fn told<T>(call: &str, result: Result<T, CublasError>) -> Result<T, Error> {
    result.map_err(|error| Error::Device(format!("{call}: {:?}", error.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_depends_on_how_addresses_are_aligned_and_not_on_them() {
        let aligned = [0, 256, 512, 16, 48, 2, 7].map(|address| alignment(Address(address)));
        assert_eq!(aligned, [256, 256, 256, 16, 16, 2, 1]);
    }
}
