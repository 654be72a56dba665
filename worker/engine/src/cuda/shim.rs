//! A GPU that is this host: the kernels' text compiled for it, each thread of a block a fiber. Slow, and stricter than a
//! device: a missing barrier shows, and what a device leaves undefined is an error with its place.
//!
//! What it cannot show: the order in which blocks see one another's writes, registers, speed, and how a device rounds.

mod build;
mod functions;
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use self::functions::Functions;
use super::sources::Source;
use super::{ARGUMENTS_MAX, Address, Argument, Extent, Gpu, Graph, Kernel, Product, Properties};
use crate::Error;

/// How a shim is brought up.
pub(crate) struct Options {
    /// Where its library is kept once it is built.
    pub(crate) folder: PathBuf,
    /// In which order blocks, warps and lanes run: 0 forward, 1 backward, others by chance, differently at each launch.
    pub(crate) seed: u64,
    /// Said of it.
    pub(crate) multiprocessors: usize,
    /// Bytes of memory that it has.
    pub(crate) total: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { folder: std::env::temp_dir(), seed: 0, multiprocessors: 4, total: 8 << 30 }
    }
}

/// Launches within a shim of one seed, so that no two shims of near seeds run alike.
const LAUNCHES: u64 = 1 << 32;

/// The host as a GPU.
pub(crate) struct Shim {
    functions: Functions,
    numbers: HashMap<String, u32>,
    /// Kinds of arguments, by a kernel's number.
    kernels: Vec<functions::Declared>,
    options: Options,
    launches: AtomicU64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    allocated: HashMap<u64, usize>,
    recording: Option<Vec<Command>>,
    recorded: Vec<Vec<Command>>,
}

/// What may be recorded.
#[derive(Clone)]
enum Command {
    Launch(Kernel, Extent, Vec<Argument>),
    Copy { from: Address, to: Address, bytes: usize },
    Clear { at: Address, bytes: usize },
}

impl Shim {
    /// Whether this host has what it takes: a C++ compiler.
    fn possible() -> bool {
        build::compiler().is_some()
    }

    /// The shim for tests, or a loud word that they are skipped.
    pub(crate) fn for_tests(sources: &[Source], options: Options) -> Option<Shim> {
        if !Shim::possible() {
            eprintln!("SKIPPED: there is no C++ compiler here");
            return None;
        }
        Some(Shim::of(sources, options).expect("the kernels compile"))
    }

    /// Builds the kernels where that was not done yet, and loads them.
    fn of(sources: &[Source], options: Options) -> Result<Shim, Error> {
        let functions = Functions::load(&build::library(sources, &options.folder)?)?;
        let kernels = functions.kernels();
        let numbered = kernels.iter().zip(0..).map(|(kernel, number)| (kernel.name.clone(), number));
        let numbers = numbered.collect();
        Ok(Shim { functions, numbers, kernels, options, launches: AtomicU64::new(0), state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does it, or records it.
    fn queue(&self, command: Command) -> Result<(), Error> {
        if let Command::Launch(kernel, _, arguments) = &command {
            self.check(*kernel, arguments)?;
        }
        if let Some(recording) = &mut self.state().recording {
            recording.push(command);
            return Ok(());
        }
        self.run(&command)
    }

    fn run(&self, command: &Command) -> Result<(), Error> {
        match command {
            Command::Copy { from, to, bytes } => self.functions.copy(*from, *to, *bytes),
            Command::Clear { at, bytes } => self.functions.clear(*at, *bytes),
            Command::Launch(kernel, extent, arguments) => {
                self.functions.launch(kernel.0, *extent, arguments, self.seed())
            }
        }
    }

    fn seed(&self) -> u64 {
        match self.options.seed {
            fixed @ (0 | 1) => fixed,
            chance => chance.wrapping_mul(LAUNCHES).wrapping_add(self.launches.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// A device would read what is not there.
    fn check(&self, kernel: Kernel, arguments: &[Argument]) -> Result<(), Error> {
        let unknown = || Error::Device("a kernel of another device".into());
        let kernel = self.kernels.get(kernel.0 as usize).ok_or_else(unknown)?;
        let given: String = arguments.iter().map(kind).collect();
        if given != kernel.kinds || given.len() > ARGUMENTS_MAX {
            return Err(Error::Device(format!("{} takes {}, not {given}", kernel.name, kernel.kinds)));
        }
        for (at, argument) in arguments.iter().enumerate() {
            if let Argument::Pointer(address) = argument
                && !self.functions.knows(*address)
            {
                return Err(Error::Device(format!("argument {at} of {} points at nothing", kernel.name)));
            }
        }
        Ok(())
    }

    /// What copies from the host and to it cannot be recorded.
    fn not_recording(&self, what: &str) -> Result<(), Error> {
        match self.state().recording {
            Some(_) => Err(Error::Device(format!("{what} within a recording"))),
            None => Ok(()),
        }
    }

    fn free(&self) -> usize {
        self.options.total.saturating_sub(self.state().allocated.values().sum())
    }
}

fn kind(argument: &Argument) -> char {
    match argument {
        Argument::Int(_) => 'i',
        Argument::Float(_) => 'f',
        Argument::Pointer(_) => 'p',
    }
}

impl Gpu for Shim {
    fn properties(&self) -> Result<Properties, Error> {
        Ok(Properties {
            name: "host shim".into(),
            capability: (9, 0),
            multiprocessors: self.options.multiprocessors,
            free: self.free(),
            total: self.options.total,
        })
    }

    fn kernel(&self, name: &str) -> Result<Kernel, Error> {
        let missing = || Error::Device(format!("there is no kernel {name}"));
        self.numbers.get(name).copied().map(Kernel).ok_or_else(missing)
    }

    fn allocate(&self, bytes: usize) -> Result<Address, Error> {
        let free = self.free();
        let room = || if bytes <= free { self.functions.allocate(bytes) } else { None };
        let address = room().ok_or(Error::OutOfMemory { bytes, free })?;
        self.state().allocated.insert(address.0, bytes);
        Ok(address)
    }

    fn release(&self, address: Address) {
        self.state().allocated.remove(&address.0);
        if !self.functions.release(address) {
            tracing::error!("memory is released that nobody has");
        }
    }

    fn upload(&self, bytes: &[u8], to: Address) -> Result<(), Error> {
        self.not_recording("an upload")?;
        self.functions.upload(bytes, to)
    }

    fn download(&self, from: Address, bytes: &mut [u8]) -> Result<(), Error> {
        self.not_recording("a download")?;
        self.functions.download(from, bytes)
    }

    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), Error> {
        if bytes == 0 { Ok(()) } else { self.queue(Command::Copy { from, to, bytes }) }
    }

    fn clear(&self, at: Address, bytes: usize) -> Result<(), Error> {
        if bytes == 0 { Ok(()) } else { self.queue(Command::Clear { at, bytes }) }
    }

    fn launch(&self, kernel: Kernel, extent: Extent, arguments: &[Argument]) -> Result<(), Error> {
        self.queue(Command::Launch(kernel, extent, arguments.to_vec()))
    }

    fn product(&self, _: &Product) -> Result<bool, Error> {
        Ok(false)
    }

    fn record(&self) -> Result<(), Error> {
        self.not_recording("a recording")?;
        self.state().recording = Some(Vec::new());
        Ok(())
    }

    fn recorded(&self) -> Result<Graph, Error> {
        let mut state = self.state();
        let commands = state.recording.take().ok_or_else(|| Error::Device("nothing is being recorded".into()))?;
        state.recorded.push(commands);
        Ok(Graph(u32::try_from(state.recorded.len() - 1).expect("some hundreds")))
    }

    fn replay(&self, graph: Graph) -> Result<(), Error> {
        self.not_recording("a replay")?;
        let missing = || Error::Device("a recording of another device".into());
        let commands = self.state().recorded.get(graph.0 as usize).cloned().ok_or_else(missing)?;
        commands.iter().try_for_each(|command| self.run(command))
    }

    fn wait(&self) -> Result<(), Error> {
        self.not_recording("a wait")
    }
}

impl Drop for Shim {
    /// What a driver frees with its context.
    fn drop(&mut self) {
        for address in std::mem::take(&mut self.state().allocated).into_keys() {
            self.functions.release(Address(address));
        }
    }
}
