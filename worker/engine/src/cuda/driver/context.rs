//! A device's primary context and the stream that everything is queued on.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::result::DriverError;
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};
use kernels::library;

use crate::Error;
use crate::cuda::Properties;

/// CUDA 12.4, which every function that is called is in since.
const DRIVER_LEAST: c_int = 12_040;
/// Bytes of a device's name.
const NAME_BYTES: usize = 256;

/// A device, ready for this process.
pub(super) struct Context {
    device: sys::CUdevice,
    context: sys::CUcontext,
    /// Everything is queued here.
    pub(super) stream: sys::CUstream,
    /// Tells it from others that a thread may have bound.
    number: u64,
    /// Compute capability.
    pub(super) capability: (u32, u32),
}

// SAFETY: the handles are the driver's, which takes them from any thread that has bound the context.
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks what it shares.
unsafe impl Sync for Context {}

impl Context {
    /// The device of this number.
    pub(super) fn open(ordinal: u32, libraries: &[PathBuf]) -> Result<Context, Error> {
        let found = count(libraries)?;
        if ordinal >= found {
            return Err(Error::Device(format!("there is no GPU {ordinal}: {found} are here")));
        }
        let (mut device, mut context) = (0, ptr::null_mut());
        let ordinal = c_int::try_from(ordinal).expect("below the count");
        // SAFETY: the driver is initialised, both places outlive the calls.
        unsafe {
            check("cuDeviceGet", sys::cuDeviceGet(&mut device, ordinal))?;
            check("cuDevicePrimaryCtxRetain", sys::cuDevicePrimaryCtxRetain(&mut context, device))?;
        }
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut opened = Context { device, context, stream: ptr::null_mut(), number, capability: (0, 0) };
        opened.capability = (
            opened.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            opened.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        opened.bind()?;
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the context is bound, the place outlives the call.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut opened.stream, flags) })?;
        Ok(opened)
    }

    /// Makes it the calling thread's.
    pub(super) fn bind(&self) -> Result<(), Error> {
        thread_local! {
            static BOUND: Cell<u64> = const { Cell::new(0) };
        }
        if BOUND.get() == self.number {
            return Ok(());
        }
        // SAFETY: the context is retained until this value is dropped.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.context) })?;
        BOUND.set(self.number);
        Ok(())
    }

    /// A number of the device.
    pub(super) fn attribute(&self, attribute: Attribute) -> Result<u32, Error> {
        let mut value = 0;
        // SAFETY: the device exists, the place outlives the call.
        check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, self.device) })?;
        Ok(value.unsigned_abs())
    }

    /// What the device is, and how much of its memory is free.
    pub(super) fn properties(&self) -> Result<Properties, Error> {
        let multiprocessors = self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize;
        let (free, total) = self.memory()?;
        Ok(Properties { name: self.name()?, capability: self.capability, multiprocessors, free, total })
    }

    /// Free bytes, and all.
    pub(super) fn memory(&self) -> Result<(usize, usize), Error> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the context is bound, both places outlive the call.
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok((free, total))
    }

    /// As the maker calls it.
    pub(super) fn name(&self) -> Result<String, Error> {
        let mut name: [c_char; NAME_BYTES] = [0; NAME_BYTES];
        let length = c_int::try_from(NAME_BYTES).expect("small");
        // SAFETY: the buffer is as long as is said; the driver ends the name with a zero within it.
        let name = unsafe {
            check("cuDeviceGetName", sys::cuDeviceGetName(name.as_mut_ptr(), length, self.device))?;
            CStr::from_ptr(name.as_ptr())
        };
        Ok(name.to_string_lossy().into_owned())
    }

    /// Waits until all that is queued is done.
    pub(super) fn wait(&self) -> Result<(), Error> {
        self.bind()?;
        // SAFETY: the stream is alive.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.stream) })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: what was made on the stream is gone by now, being dropped before. Failures leave nothing to do.
        unsafe {
            if !self.stream.is_null() && self.bind().is_ok() {
                let _ = sys::cuStreamDestroy_v2(self.stream);
            }
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
    }
}

/// How many GPUs the driver shows, which is initialised.
pub(super) fn count(libraries: &[PathBuf]) -> Result<u32, Error> {
    caught(|| {
        // SAFETY: looks for the library, and nothing else.
        if !library::DRIVER.provide(libraries) || !unsafe { sys::is_culib_present() } {
            return Err(Error::Device("no NVIDIA driver is here (libcuda.so.1)".into()));
        }
        // SAFETY: the first call of all.
        match unsafe { sys::cuInit(0) } {
            CUresult::CUDA_ERROR_NO_DEVICE => return Err(Error::Device("the NVIDIA driver shows no GPU".into())),
            other => check("cuInit", other)?,
        }
        let (mut version, mut found) = (0, 0);
        // SAFETY: the driver is initialised, both places outlive the calls.
        unsafe {
            check("cuDriverGetVersion", sys::cuDriverGetVersion(&mut version))?;
            check("cuDeviceGetCount", sys::cuDeviceGetCount(&mut found))?;
        }
        if version < DRIVER_LEAST {
            let [said, least] = [version, DRIVER_LEAST].map(|number| (number / 1000, number % 1000 / 10));
            return Err(Error::Device(format!(
                "the NVIDIA driver is for CUDA {}.{}, and the least is {}.{}: update the driver",
                said.0, said.1, least.0, least.1
            )));
        }
        Ok(found.unsigned_abs())
    })
}

/// The bindings panic where a library lacks a function, which must be an error of this device and no more.
pub(super) fn caught<T>(what: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(what)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        let said = said.and_then(|said| said.lines().next()).unwrap_or("it panicked");
        Err(Error::Device(format!("the NVIDIA driver cannot be used: {said}")))
    })
}

/// What the driver said of a call.
pub(super) fn check(call: &str, result: CUresult) -> Result<(), Error> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let words = DriverError(result).error_string().map(|words| words.to_string_lossy().into_owned());
    Err(Error::Device(format!("{call}: {} ({result:?})", words.unwrap_or_default())))
}
