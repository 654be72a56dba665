//! A GPU through NVIDIA's driver, which is loaded where it is found: nothing of it is needed to build or to start.
#![allow(unsafe_code)] // reason: a C interface; each call says what its handles and places rest on

mod context;
mod graphs;
mod kernels;
mod staging;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use cudarc::driver::sys::{self, CUresult};

use self::context::{Context, caught, check};
use self::graphs::Graphs;
use self::kernels::Kernels;
use self::staging::Staging;
use super::blas::Blas;
use super::code::Finder;
use super::{Address, Argument, Extent, Gpu, Graph, Kernel, Product, Properties};
use crate::Error;

/// How a GPU is brought up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which one, as the driver counts them.
    pub ordinal: u32,
    /// Folders in which NVIDIA's libraries may lie, besides those of the loader and the usual ones.
    pub libraries: Vec<PathBuf>,
    /// Folder in which kernels that had to be compiled here are kept; none: nowhere.
    pub cache: Option<PathBuf>,
    /// Whether a kernel may be begun before the one ahead of it has ended, on GPUs that can.
    pub early: bool,
    /// Whether products are the vendor's library's, where it is found.
    pub products: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { ordinal: 0, libraries: Vec::new(), cache: None, early: true, products: true }
    }
}

/// How many GPUs are here.
///
/// # Errors
/// [`Error::Device`] when there is no driver, one that is too old, or none that works: in a sentence.
pub fn count(settings: &Settings) -> Result<u32, Error> {
    context::count(&settings.libraries)
}

/// A GPU, its kernels loaded. What is dropped first stands first: the context outlives what was made in it.
pub(crate) struct Driver {
    graphs: Mutex<Graphs>,
    blas: Option<Mutex<Blas>>,
    staging: Mutex<Staging>,
    kernels: RwLock<Kernels>,
    early: bool,
    recording: AtomicBool,
    context: Context,
}

impl Driver {
    /// Brings a GPU up.
    pub(crate) fn open(settings: &Settings) -> Result<Driver, Error> {
        caught(|| Driver::bring_up(settings))
    }

    fn bring_up(settings: &Settings) -> Result<Driver, Error> {
        let context = Context::open(settings.ordinal, &settings.libraries)?;
        let finder =
            Finder { capability: context.capability, libraries: &settings.libraries, cache: settings.cache.as_deref() };
        let kernels = Kernels::load(&context, &finder)?;
        let blas = if settings.products { Blas::open(&settings.libraries) } else { None };
        Ok(Driver {
            graphs: Mutex::default(),
            blas: blas.map(Mutex::new),
            staging: Mutex::new(Staging::new()?),
            kernels: RwLock::new(kernels),
            early: settings.early,
            recording: AtomicBool::new(false),
            context,
        })
    }

    /// What copies from the host and to it cannot be recorded.
    fn not_recording(&self, what: &str) -> Result<(), Error> {
        if self.recording.load(Ordering::Relaxed) {
            return Err(Error::Device(format!("{what} within a recording")));
        }
        self.context.bind()
    }
}

/// What a panic elsewhere left behind is as good as before: every change is whole before anything can fail.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu for Driver {
    fn properties(&self) -> Result<Properties, Error> {
        self.context.properties()
    }

    fn kernel(&self, name: &str) -> Result<Kernel, Error> {
        self.context.bind()?;
        self.kernels.write().unwrap_or_else(PoisonError::into_inner).find(&self.context, name)
    }

    fn allocate(&self, bytes: usize) -> Result<Address, Error> {
        self.context.bind()?;
        let mut address = 0;
        // SAFETY: the context is bound, the place outlives the call. Nothing is no size that the driver takes.
        match unsafe { sys::cuMemAlloc_v2(&mut address, bytes.max(1)) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                let free = self.context.memory().map_or(0, |(free, _)| free);
                Err(Error::OutOfMemory { bytes, free })
            }
            other => check("cuMemAlloc", other).map(|()| Address(address)),
        }
    }

    fn release(&self, address: Address) {
        // SAFETY: the address is of `allocate`, and nobody uses it any more.
        let freed = self.context.bind().and_then(|()| check("cuMemFree", unsafe { sys::cuMemFree_v2(address.0) }));
        if let Err(error) = freed {
            tracing::debug!(%error, "memory of a device is not freed");
        }
    }

    fn upload(&self, bytes: &[u8], to: Address) -> Result<(), Error> {
        self.not_recording("an upload")?;
        locked(&self.staging).upload(&self.context, bytes, to.0)
    }

    fn download(&self, from: Address, bytes: &mut [u8]) -> Result<(), Error> {
        self.not_recording("a download")?;
        locked(&self.staging).download(&self.context, from.0, bytes)
    }

    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), Error> {
        if bytes == 0 {
            return Ok(());
        }
        self.context.bind()?;
        // SAFETY: the stream is alive; both places are the caller's to vouch for.
        check("cuMemcpyDtoDAsync", unsafe { sys::cuMemcpyDtoDAsync_v2(to.0, from.0, bytes, self.context.stream) })
    }

    fn clear(&self, at: Address, bytes: usize) -> Result<(), Error> {
        if bytes == 0 {
            return Ok(());
        }
        self.context.bind()?;
        // SAFETY: the stream is alive; the place is the caller's to vouch for.
        check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(at.0, 0, bytes, self.context.stream) })
    }

    fn launch(&self, kernel: Kernel, extent: Extent, arguments: &[Argument]) -> Result<(), Error> {
        self.context.bind()?;
        let kernels = self.kernels.read().unwrap_or_else(PoisonError::into_inner);
        kernels.launch((kernel, extent), arguments, self.early, self.context.stream)
    }

    fn product(&self, product: &Product) -> Result<bool, Error> {
        let Some(blas) = &self.blas else { return Ok(false) };
        self.context.bind()?;
        locked(blas).multiply(product, self.context.stream)
    }

    fn record(&self) -> Result<(), Error> {
        self.not_recording("a recording")?;
        graphs::begin(self.context.stream)?;
        self.recording.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn recorded(&self) -> Result<Graph, Error> {
        self.context.bind()?;
        self.recording.store(false, Ordering::Relaxed);
        locked(&self.graphs).end(self.context.stream)
    }

    fn replay(&self, graph: Graph) -> Result<(), Error> {
        self.context.bind()?;
        locked(&self.graphs).launch(graph, self.context.stream)
    }

    fn wait(&self) -> Result<(), Error> {
        self.not_recording("a wait")?;
        self.context.wait()
    }
}

impl Drop for Driver {
    /// Before what was made in the context is destroyed, by this thread.
    fn drop(&mut self) {
        if let Err(error) = self.context.wait() {
            tracing::debug!(%error, "a device is left in the middle of its work");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_device_there_is_one_sentence() {
        let Err(error) = Driver::open(&Settings { ordinal: 999, ..Settings::default() }) else {
            panic!("no machine has so many");
        };
        let words = error.to_string();
        assert!(words.starts_with("device: ") && !words.contains('\n'), "{words}");
        if let Err(error) = count(&Settings::default()) {
            assert_eq!(error.to_string(), words);
        }
    }
}
