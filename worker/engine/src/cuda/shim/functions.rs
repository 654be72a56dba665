//! The library's C interface.
#![allow(unsafe_code)] // reason: a C interface; each call says what it rests on

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;
use std::ptr;

use libloading::os::unix::Library;

use crate::Error;
use crate::cuda::{ARGUMENTS_MAX, Address, Argument, Extent};

/// Room for what a launch says.
const WORDS: usize = 1024;

type Launch = unsafe extern "C" fn(c_int, *const u32, u32, u32, *mut *mut c_void, u64, *mut c_char, usize) -> c_int;

/// What the library exports. It stays loaded: its fibers' stacks are worth keeping, and nothing is lost.
pub(super) struct Functions {
    count: unsafe extern "C" fn() -> c_int,
    name: unsafe extern "C" fn(c_int) -> *const c_char,
    kinds: unsafe extern "C" fn(c_int) -> *const c_char,
    launch: Launch,
    allocate: unsafe extern "C" fn(usize) -> *mut c_void,
    release: unsafe extern "C" fn(*mut c_void) -> c_int,
    holds: unsafe extern "C" fn(*const c_void, usize) -> c_int,
}

/// A kernel as the library declares it.
pub(super) struct Declared {
    /// As in the sources.
    pub(super) name: String,
    /// A letter an argument: `i`, `f` or `p`.
    pub(super) kinds: String,
}

/// The function of this name.
///
/// # Safety
/// `T` is its type.
unsafe fn function<T: Copy>(library: &Library, name: &CStr) -> Result<T, Error> {
    // SAFETY: the caller's.
    let found = unsafe { library.get::<T>(name) };
    found.map(|symbol| *symbol).map_err(|error| Error::Device(format!("the shim's library: {error}")))
}

impl Functions {
    /// Loads a library that [`super::build`] made.
    pub(super) fn load(file: &Path) -> Result<Functions, Error> {
        // SAFETY: it is our own library: its initialisers put kernels into a list.
        let library = unsafe { Library::new(file) };
        let library = library.map_err(|error| Error::Device(format!("the shim's library: {error}")))?;
        // SAFETY: the types are those of shim.cpp.
        let functions = unsafe {
            Functions {
                count: function(&library, c"shim_kernels")?,
                name: function(&library, c"shim_kernel_name")?,
                kinds: function(&library, c"shim_kernel_kinds")?,
                launch: function(&library, c"shim_launch")?,
                allocate: function(&library, c"shim_allocate")?,
                release: function(&library, c"shim_release")?,
                holds: function(&library, c"shim_holds")?,
            }
        };
        let _ = library.into_raw();
        Ok(functions)
    }

    /// All kernels, in the order of their numbers.
    pub(super) fn kernels(&self) -> Vec<Declared> {
        // SAFETY: the library stays loaded.
        let count = unsafe { (self.count)() };
        let word = |words: unsafe extern "C" fn(c_int) -> *const c_char, index| {
            // SAFETY: the index is below the count; the words are constants of the library.
            unsafe { CStr::from_ptr(words(index)) }.to_string_lossy().into_owned()
        };
        (0..count).map(|index| Declared { name: word(self.name, index), kinds: word(self.kinds, index) }).collect()
    }

    /// Runs a kernel, whose number and whose arguments' kinds the caller has checked.
    pub(super) fn launch(&self, kernel: u32, extent: Extent, arguments: &[Argument], seed: u64) -> Result<(), Error> {
        let mut values = [0_u64; ARGUMENTS_MAX];
        let mut places = [ptr::null_mut::<c_void>(); ARGUMENTS_MAX];
        for (at, argument) in arguments.iter().enumerate() {
            values[at] = bits(*argument);
            places[at] = (&raw mut values[at]).cast();
        }
        let grid = [extent.grid.0, extent.grid.1, extent.grid.2];
        let mut words = [0_u8; WORDS];
        let (said, room) = (words.as_mut_ptr().cast(), words.len());
        let index = c_int::try_from(kernel).expect("some dozens");
        // SAFETY: the kernel reads as many arguments as were checked, each of at most 8 bytes; what else it touches lies
        // between pages that nobody may touch, and a fault there comes back as an error.
        let failed = unsafe {
            (self.launch)(index, grid.as_ptr(), extent.threads, extent.shared, places.as_mut_ptr(), seed, said, room)
        };
        if failed == 0 {
            return Ok(());
        }
        let words = CStr::from_bytes_until_nul(&words).unwrap_or_default();
        Err(Error::Device(words.to_string_lossy().into_owned()))
    }

    /// Memory full of NaN.
    pub(super) fn allocate(&self, bytes: usize) -> Option<Address> {
        // SAFETY: any size may be asked for.
        let place = unsafe { (self.allocate)(bytes) };
        (!place.is_null()).then(|| Address(place.expose_provenance() as u64))
    }

    /// `false` where nothing was allocated.
    pub(super) fn release(&self, address: Address) -> bool {
        // SAFETY: the library looks the address up; who releases it does not use it any more.
        unsafe { (self.release)(pointer(address)) != 0 }
    }

    /// The bytes of an allocation from a place on, if there are so many.
    fn place(&self, at: Address, bytes: usize) -> Result<*mut u8, Error> {
        // SAFETY: the library looks the address up.
        let held = unsafe { (self.holds)(pointer(at), bytes) } != 0;
        let outside = || Error::Device(format!("{bytes} bytes at {:#x} are in no allocation", at.0));
        held.then(|| pointer(at).cast()).ok_or_else(outside)
    }

    /// Whether a kernel may be given this address.
    pub(super) fn knows(&self, address: Address) -> bool {
        address == Address::default() || self.place(address, 0).is_ok()
    }

    /// Copies to an allocation.
    pub(super) fn upload(&self, bytes: &[u8], to: Address) -> Result<(), Error> {
        let to = self.place(to, bytes.len())?;
        // SAFETY: there is room; memory of the host is no allocation of the library's.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    /// Copies from an allocation.
    pub(super) fn download(&self, from: Address, bytes: &mut [u8]) -> Result<(), Error> {
        let from = self.place(from, bytes.len())?;
        // SAFETY: so many bytes are there; memory of the host is no allocation of the library's.
        unsafe { ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// Copies between allocations.
    pub(super) fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), Error> {
        let (from, to) = (self.place(from, bytes)?, self.place(to, bytes)?);
        if from.addr().abs_diff(to.addr()) < bytes {
            return Err(Error::Device("a copy between places that overlap".into()));
        }
        // SAFETY: both are there, and do not overlap.
        unsafe { ptr::copy_nonoverlapping(from, to, bytes) };
        Ok(())
    }

    /// Writes zeros.
    pub(super) fn clear(&self, at: Address, bytes: usize) -> Result<(), Error> {
        let at = self.place(at, bytes)?;
        // SAFETY: so many bytes are there.
        unsafe { ptr::write_bytes(at, 0, bytes) };
        Ok(())
    }
}

fn pointer(address: Address) -> *mut c_void {
    ptr::with_exposed_provenance_mut(usize::try_from(address.0).expect("an address of this host"))
}

/// An argument as a kernel reads it: in the first bytes, as many as its kind has.
fn bits(argument: Argument) -> u64 {
    let mut bytes = [0; 8];
    match argument {
        Argument::Int(number) => bytes[..4].copy_from_slice(&number.to_ne_bytes()),
        Argument::Float(number) => bytes[..4].copy_from_slice(&number.to_ne_bytes()),
        Argument::Pointer(address) => bytes = address.0.to_ne_bytes(),
    }
    u64::from_ne_bytes(bytes)
}
