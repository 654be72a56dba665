//! The kernels, loaded, and how one is launched.

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::ptr;

use cudarc::driver::sys::{self, CUdevice_attribute, CUfunction_attribute as Attribute, CUjit_option as Wish};

use super::context::{Context, check};
use crate::Error;
use crate::cuda::code::{Code, Finder, LEAST, Origin};
use crate::cuda::{ARGUMENTS_MAX, Argument, Extent, Kernel};

/// Bytes of what the driver says of code that it refuses.
const WORDS_BYTES: usize = 4096;

/// Every kernel of a device.
#[derive(Default)]
pub(super) struct Kernels {
    modules: Vec<Module>,
    found: Vec<Loaded>,
    numbers: HashMap<String, Kernel>,
}

struct Module {
    module: sys::CUmodule,
    waits: bool,
}

/// A kernel, found.
struct Loaded {
    name: String,
    function: sys::CUfunction,
    /// Bytes of each parameter; empty where the driver does not tell.
    parameters: Vec<usize>,
    /// Whether it waits for what ran before it, and may be begun early.
    waits: bool,
}

// SAFETY: the handles are the driver's, which takes them from any thread that has bound the context.
unsafe impl Send for Kernels {}
// SAFETY: as above; nothing is changed through a shared reference.
unsafe impl Sync for Kernels {}

impl Kernels {
    /// Loads all code from the first origin whose code runs here. The context is bound.
    pub(super) fn load(context: &Context, finder: &Finder<'_>) -> Result<Kernels, Error> {
        let (major, minor) = finder.capability;
        let name = context.name()?;
        if finder.capability < LEAST {
            return Err(Error::Device(format!(
                "{name} has compute capability {major}.{minor}, and the least is {}.{}",
                LEAST.0, LEAST.1
            )));
        }
        let mut refusals = Vec::new();
        for origin in Origin::ALL {
            match finder.all(origin).and_then(|codes| Kernels::of(&codes)) {
                Ok(kernels) => {
                    tracing::info!(device = name, %origin, "kernels are loaded");
                    return Ok(kernels);
                }
                Err(error) => refusals.push(format!("{origin}: {}", told(&error))),
            }
        }
        let refusals = refusals.join("; ");
        Err(Error::Device(format!("no kernels for {name} (compute capability {major}.{minor}): {refusals}")))
    }

    fn of(codes: &[Code]) -> Result<Kernels, Error> {
        let mut kernels = Kernels::default();
        for code in codes {
            let module = load(code)?;
            kernels.modules.push(Module { module, waits: code.waits });
        }
        Ok(kernels)
    }

    /// The kernel of this name. The context is bound.
    pub(super) fn find(&mut self, context: &Context, name: &str) -> Result<Kernel, Error> {
        if let Some(kernel) = self.numbers.get(name) {
            return Ok(*kernel);
        }
        let symbol = CString::new(name).map_err(|_| Error::Device("a kernel's name with a zero in it".into()))?;
        let within = |module: &Module| {
            let mut function = ptr::null_mut();
            // SAFETY: the module is loaded, the name ends with a zero, the place outlives the call.
            let result = unsafe { sys::cuModuleGetFunction(&mut function, module.module, symbol.as_ptr()) };
            (result == sys::CUresult::CUDA_SUCCESS).then_some((function, module.waits))
        };
        let found = self.modules.iter().find_map(within);
        let (function, waits) = found.ok_or_else(|| Error::Device(format!("there is no kernel {name}")))?;
        allow_shared(context, function)?;
        let kernel = Kernel(u32::try_from(self.found.len()).expect("a few hundred"));
        self.found.push(Loaded { name: name.to_owned(), function, parameters: parameters(function), waits });
        self.numbers.insert(name.to_owned(), kernel);
        Ok(kernel)
    }

    /// Queues a kernel; `early` allows that it begins before what is queued ahead has ended. The context is bound.
    pub(super) fn launch(
        &self,
        (kernel, extent): (Kernel, Extent),
        arguments: &[Argument],
        early: bool,
        stream: sys::CUstream,
    ) -> Result<(), Error> {
        let missing = || Error::Device("a kernel of another device".into());
        let loaded = self.found.get(kernel.0 as usize).ok_or_else(missing)?;
        loaded.fits(arguments)?;
        let mut values = [0_u64; ARGUMENTS_MAX];
        let mut places = [ptr::null_mut::<c_void>(); ARGUMENTS_MAX];
        for (value, argument) in values.iter_mut().zip(arguments) {
            *value = bits(*argument);
        }
        // All of them, so that a driver which does not tell the parameters finds a place for each.
        for (place, value) in places.iter_mut().zip(&mut values) {
            *place = ptr::from_mut(value).cast();
        }
        let mut attribute = begun_early();
        let mut config = config(extent, stream);
        if early && loaded.waits {
            config.attrs = &mut attribute;
            config.numAttrs = 1;
        }
        // SAFETY: the function is loaded, its parameters were compared with the arguments, and what is pointed to outlives
        // the call, which copies it.
        let result = unsafe { sys::cuLaunchKernelEx(&config, loaded.function, places.as_mut_ptr(), ptr::null_mut()) };
        check("cuLaunchKernelEx", result)
            .map_err(|error| Error::Device(format!("{} with {extent:?}: {}", loaded.name, told(&error))))
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        for module in &self.modules {
            // SAFETY: loaded once and unloaded once; who drops it has waited and bound the context.
            let _ = unsafe { sys::cuModuleUnload(module.module) };
        }
    }
}

impl Loaded {
    /// The driver reads as many bytes as the kernel has parameters, whatever it is given.
    fn fits(&self, arguments: &[Argument]) -> Result<(), Error> {
        let sizes = arguments.iter().map(|argument| match argument {
            Argument::Int(_) | Argument::Float(_) => 4,
            Argument::Pointer(_) => 8,
        });
        if arguments.len() <= ARGUMENTS_MAX && (self.parameters.is_empty() || sizes.eq(self.parameters.iter().copied()))
        {
            return Ok(());
        }
        Err(Error::Device(format!("{} has parameters of {:?} bytes, not {arguments:?}", self.name, self.parameters)))
    }
}

/// As the machine holds it, in the lower bytes.
fn bits(argument: Argument) -> u64 {
    match argument {
        Argument::Int(number) => u64::from(number.cast_unsigned()),
        Argument::Float(number) => u64::from(number.to_bits()),
        Argument::Pointer(address) => address.0,
    }
}

fn config(extent: Extent, stream: sys::CUstream) -> sys::CUlaunchConfig {
    sys::CUlaunchConfig {
        gridDimX: extent.grid.0,
        gridDimY: extent.grid.1,
        gridDimZ: extent.grid.2,
        blockDimX: extent.threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: extent.shared,
        hStream: stream,
        attrs: ptr::null_mut(),
        numAttrs: 0,
    }
}

/// The kernel may be begun while the one before it still runs: it waits by itself before it touches what that one writes.
fn begun_early() -> sys::CUlaunchAttribute {
    let id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    let value = sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 };
    sys::CUlaunchAttribute { id, pad: [0; 4], value }
}

/// As much dynamic shared memory as the device has, less what the kernel itself declares: what is not asked for is not taken.
fn allow_shared(context: &Context, function: sys::CUfunction) -> Result<(), Error> {
    let most = context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
    let mut own: c_int = 0;
    // SAFETY: the function is loaded, the place outlives the call.
    unsafe {
        let attribute = Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        check("cuFuncGetAttribute", sys::cuFuncGetAttribute(&mut own, attribute, function))?;
        let rest = c_int::try_from(most).unwrap_or(c_int::MAX) - own;
        let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        check("cuFuncSetAttribute", sys::cuFuncSetAttribute(function, attribute, rest))
    }
}

/// Bytes of each parameter, as far as the driver tells.
fn parameters(function: sys::CUfunction) -> Vec<usize> {
    let size = |index| {
        let (mut offset, mut bytes) = (0, 0);
        // SAFETY: the function is loaded, both places outlive the call, which fails past the last parameter.
        let result = unsafe { sys::cuFuncGetParamInfo(function, index, &mut offset, &mut bytes) };
        (result == sys::CUresult::CUDA_SUCCESS).then_some(bytes)
    };
    (0..ARGUMENTS_MAX + 1).map_while(size).collect()
}

fn load(code: &Code) -> Result<sys::CUmodule, Error> {
    let mut module = ptr::null_mut();
    let mut words: [c_char; WORDS_BYTES] = [0; WORDS_BYTES];
    let mut options = [Wish::CU_JIT_ERROR_LOG_BUFFER, Wish::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    // The length is handed over in the place of the pointer.
    let mut values: [*mut c_void; 2] = [words.as_mut_ptr().cast(), ptr::without_provenance_mut(WORDS_BYTES - 1)];
    let count = c_uint::try_from(options.len()).expect("two");
    // SAFETY: the code is that of a compiler, PTX with a zero at its end; the buffer is as long as is said, and longer by
    // the zero that ends it; all outlive the call.
    let result = unsafe {
        let image = code.bytes.as_ptr().cast();
        sys::cuModuleLoadDataEx(&mut module, image, count, options.as_mut_ptr(), values.as_mut_ptr())
    };
    check("cuModuleLoadDataEx", result).map_err(|error| {
        let words: Vec<u8> = words.iter().map(|&word| word.cast_unsigned()).take_while(|&word| word != 0).collect();
        let words = String::from_utf8_lossy(&words);
        let words = words.lines().next().unwrap_or_default();
        Error::Device(format!("{}: {} {words}", code.stem, told(&error)).trim_end().to_owned())
    })?;
    Ok(module)
}

/// Without saying again that it is a device's.
fn told(error: &Error) -> String {
    match error {
        Error::Device(words) => words.clone(),
        other => other.to_string(),
    }
}
