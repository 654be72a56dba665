//! Makes a library of kernels' sources, with the host's compiler.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use crate::Error;
use crate::cuda::sources::{HEADERS, Source, source};

/// What the kernels' words mean on a host.
const INCLUDED: &[Source] = &[
    source!("shim/shim.h"),
    source!("shim/builtins.h"),
    source!("shim/ptx.h"),
    source!("shim/inside.h"),
    source!("shim/fiber.h"),
];

/// What runs them.
const PARTS: &[Source] = &[
    source!("shim/shim.cpp"),
    source!("shim/block.cpp"),
    source!("shim/fiber.cpp"),
    source!("shim/memory.cpp"),
    source!("shim/matrix.cpp"),
    source!("shim/faults.cpp"),
];

/// By these names, the first that is there.
const COMPILERS: [&str; 2] = ["c++", "g++"];
/// For every file. No warnings: the kernels are NVRTC's to judge.
const FLAGS: [&str; 9] =
    ["-xc++", "-std=c++17", "-g", "-w", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-pthread", "-DSHIM"];
/// For kernels: what is undefined calls the shim. Not the types of objects, which kernels do not ask for.
const KERNEL_FLAGS: [&str; 3] = ["-O1", "-fsanitize=undefined", "-fno-sanitize=vptr"];
const PART_FLAGS: [&str; 1] = ["-O2"];
/// Words of a compiler that are passed on: its first errors.
const WORDS_MAX: usize = 4000;

/// The library of these kernels, made unless it lies in the folder already.
pub(super) fn library(kernels: &[Source], folder: &Path) -> Result<PathBuf, Error> {
    let compiler = compiler().ok_or_else(|| failed("there is no C++ compiler"))?;
    let name = format!("flotilla-shim-{}", &digest(kernels, compiler)[..16]);
    let file = folder.join(&name).with_extension("so");
    if file.exists() {
        return Ok(file);
    }
    fs::create_dir_all(folder).map_err(|error| unwritten(folder, &error))?;
    // Tests are processes of their own, and many begin at once.
    let lock = File::create(file.with_extension("lock")).map_err(|error| unwritten(folder, &error))?;
    lock.lock().map_err(|error| unwritten(folder, &error))?;
    if !file.exists() {
        let work = folder.join(format!("{name}.{}", std::process::id()));
        let made = make(kernels, compiler, (&work, &file));
        let _ = fs::remove_dir_all(&work);
        made?;
    }
    Ok(file)
}

/// The compiler that there is.
pub(super) fn compiler() -> Option<&'static str> {
    let answers = |name: &&str| Command::new(name).arg("--version").output().is_ok_and(|out| out.status.success());
    COMPILERS.into_iter().find(answers)
}

/// The library appears whole or not at all.
fn make(kernels: &[Source], compiler: &str, (work, file): (&Path, &Path)) -> Result<(), Error> {
    write(kernels, work).map_err(|error| unwritten(work, &error))?;
    let part = compile(kernels, compiler, work)?;
    fs::rename(part, file).map_err(|error| unwritten(file, &error))
}

/// Of all that decides what comes out.
fn digest(kernels: &[Source], compiler: &'static str) -> String {
    let mut hasher = blake3::Hasher::new();
    for word in [compiler].into_iter().chain(FLAGS).chain(KERNEL_FLAGS).chain(PART_FLAGS).chain(processor()) {
        hasher.update(word.as_bytes()).update(b"\n");
    }
    for source in kernels.iter().chain(HEADERS).chain(INCLUDED).chain(PARTS) {
        hasher.update(source.name.as_bytes()).update(b"\n").update(source.text.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

/// Flags for fused products and sums, which GPUs have: much faster than a library's.
fn processor() -> impl Iterator<Item = &'static str> {
    #[cfg(target_arch = "x86_64")]
    let fused = is_x86_feature_detected!("fma") && is_x86_feature_detected!("avx2");
    #[cfg(not(target_arch = "x86_64"))]
    let fused = false;
    ["-mavx2", "-mfma"].into_iter().filter(move |_| fused)
}

fn write(kernels: &[Source], work: &Path) -> io::Result<()> {
    fs::create_dir_all(work.join("shim"))?;
    for source in kernels.iter().chain(HEADERS).chain(INCLUDED).chain(PARTS) {
        fs::write(work.join(source.name), source.text)?;
    }
    kernels.iter().try_for_each(|source| fs::write(work.join(wrapped(source.name)), wrapper(source.name)))
}

/// Kernels share a library with those of other files, and may call different things by the same name.
fn wrapper(name: &str) -> String {
    format!("#include \"device.cuh\"\nnamespace {{\n#include \"{name}\"\n}}\n")
}

fn wrapped(name: &str) -> String {
    format!("{name}.cpp")
}

/// Compiles as many files at once as there are processors, and links them.
fn compile(kernels: &[Source], compiler: &str, work: &Path) -> Result<PathBuf, Error> {
    let kernels = kernels.iter().map(|source| (wrapped(source.name), &KERNEL_FLAGS[..]));
    let parts = PARTS.iter().map(|source| (source.name.to_owned(), &PART_FLAGS[..]));
    let files: Vec<(String, &[&str])> = kernels.chain(parts).collect();
    let waiting = Mutex::new(files.iter());
    let next = || waiting.lock().expect("nobody panics with it").next();
    let work_off = || -> Result<(), Error> {
        while let Some((name, flags)) = next() {
            let mut command = Command::new(compiler);
            command.args(FLAGS).args(*flags).args(processor()).arg("-I").arg(work);
            run(command.arg("-c").arg(work.join(name)).arg("-o").arg(work.join(object(name))))?;
        }
        Ok(())
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work_off)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a compilation does not panic"))
    })?;
    let library = work.join("library.so");
    let mut command = Command::new(compiler);
    command.args(["-shared", "-pthread", "-o"]).arg(&library);
    run(command.args(files.iter().map(|(name, _)| work.join(object(name)))).arg("-ldl"))?;
    Ok(library)
}

fn object(name: &str) -> String {
    format!("{name}.o")
}

fn run(command: &mut Command) -> Result<(), Error> {
    let done = command.output().map_err(|error| failed(&format!("{}: {error}", command.get_program().display())))?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr);
    let end = said.floor_char_boundary(WORDS_MAX);
    Err(failed(&said[..end]))
}

fn failed(why: &str) -> Error {
    Error::Device(format!("the shim cannot be built: {why}"))
}

fn unwritten(path: &Path, error: &io::Error) -> Error {
    failed(&format!("{}: {error}", path.display()))
}
