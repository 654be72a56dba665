//! `flotilla kernels`: the GPU kernels, compiled on any machine for the worker's next build.

mod usage;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use kernels::compiler::{Compiled, Compiler, packed, whole};
use kernels::recipe::{Files, MADE_OF, NVRTC, TARGETS, Target, is_source, made_of};

use self::usage::{Usages, over, parse, read, shown, written};
use crate::depot::Depot;
use crate::home::Home;
use crate::index::{Choice, Source};
use crate::wheel::{Kind, Member, Wheel, sha256};

/// Where the sources lie in a clone.
const FOLDER: &str = "worker/engine/kernels";
/// Where the build looks for what they were compiled to.
const BUILT: &str = "built";
/// What each kernel may use.
const BUDGET: &str = "budget.txt";
/// Beside what was compiled: what its kernels use.
const USES: &str = "uses";
/// What makes the compiler tell what each kernel uses.
const TELL: [&str; 2] = ["-Xptxas", "-v"];

/// NVRTC's wheel, of the version that the engine names.
const WHEEL: &str = "nvidia-cuda-nvrtc";
const WHEEL_SHA256: &str = "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575";
const IN_WHEEL: &str = "nvidia/cu13/lib";
/// Its files, with their SHA-256.
const LIBRARIES: [(&str, &str); 2] = [
    ("libnvrtc.so.13", "a49e67e8e74590f1e98de55c39c6287efd3f59e3c3797464d7bbe0fe01349b11"),
    ("libnvrtc-builtins.so.13.0", "91dcd944d01da9c0f08fff5d779db136a47f6d62bdb63bae900d2f481e92c3a2"),
];

/// `flotilla kernels`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Kernels {
    /// Compile the sources of this clone for all GPUs, and put the result where `cargo build` embeds it
    ///
    /// No GPU and no toolkit is needed: the compiler, NVRTC, is fetched. Each kernel is held against its line of
    /// worker/engine/kernels/budget.txt: registers, bytes of local memory, bytes of shared memory.
    Build(Build),
}

/// `flotilla kernels build`
#[derive(Clone, Debug, Args)]
pub(crate) struct Build {
    /// Write the budget anew with what the kernels use now.
    #[arg(long, env = "FLOTILLA_UPDATE")]
    update: bool,
    /// Folder that holds libnvrtc.so.13 [default: nvrtc/ of the home, fetched when it is not there]
    #[arg(long, env = "FLOTILLA_NVRTC", value_name = "DIR")]
    nvrtc: Option<PathBuf>,
    #[command(flatten)]
    index: Choice,
}

impl Kernels {
    /// Does it; `pip` is the index that pip was set to.
    pub(crate) fn run(self, home: &Home, pip: Option<String>) -> Result<()> {
        let Kernels::Build(build) = self;
        println!("{}", build.run(home, pip)?);
        Ok(())
    }
}

impl Build {
    fn run(self, home: &Home, pip: Option<String>) -> Result<String> {
        let folder = home.root.join(FOLDER);
        if !folder.is_dir() {
            bail!("{} is not there: run this in a clone", folder.display());
        }
        let (files, update) = (sources(&folder)?, self.update);
        if !update && let Some(usages) = kept(&folder.join(BUILT), &files) {
            judge(&folder.join(BUDGET), &usages, false)?;
            return Ok(format!("{} kernels are compiled already, in {}", usages.len(), folder.join(BUILT).display()));
        }
        let compiler = self.compiler(home, pip)?;
        let start = Instant::now();
        let pieces = compile(&compiler, &files)?;
        let took = start.elapsed().as_secs_f64();
        let usages = usages(&pieces)?;
        judge(&folder.join(BUDGET), &usages, update)?;
        install(&folder, &made_of(&files), (&pieces, &usages))?;
        let bytes: usize = pieces.iter().map(|piece| packed(&piece.compiled.code).len()).sum();
        Ok(format!(
            "{}\n\n{} kernels for {}: {} in {took:.1} s, in {}",
            shown(&usages),
            usages.len(),
            TARGETS.map(|target| target.to_string()).join(" "),
            indicatif::DecimalBytes(bytes as u64),
            folder.join(BUILT).display()
        ))
    }

    /// The pinned one.
    fn compiler(self, home: &Home, pip: Option<String>) -> Result<Compiler> {
        let library = match self.nvrtc {
            Some(library) => library,
            None => fetched(home, &Source::choose(self.index, pip))?,
        };
        let compiler = Compiler::open(&library)?;
        let (found, pinned) = (compiler.version(), (NVRTC.0, NVRTC.1));
        if found != pinned {
            bail!(
                "{} is of CUDA {}.{}, and {}.{} is needed: drivers refuse code of a later one than their own",
                library.display(),
                found.0,
                found.1,
                pinned.0,
                pinned.1
            );
        }
        Ok(compiler)
    }
}

/// What the kernels use that were compiled before, from the same sources in the same way.
fn kept(built: &Path, files: &Files) -> Option<Usages> {
    let same = fs::read_to_string(built.join(MADE_OF)).is_ok_and(|text| text == made_of(files));
    let stems = files.keys().filter_map(|name| name.strip_suffix(".cu"));
    let whole =
        same && stems.flat_map(|stem| TARGETS.map(|target| built.join(target.file(stem)))).all(|file| file.is_file());
    whole.then(|| read(&fs::read_to_string(built.join(USES)).ok()?).ok()).flatten()
}

/// The pinned compiler's folder.
fn fetched(home: &Home, source: &Source) -> Result<PathBuf> {
    let depot = Depot::of_compiler(home);
    let there = |(file, hash): (&str, &str)| sha256(&depot.dir.join(file)).is_ok_and(|found| found == hash);
    if LIBRARIES.into_iter().all(there) {
        return Ok(depot.dir);
    }
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("no NVRTC is pinned for this kind of machine: name a folder that holds libnvrtc.so.13 by --nvrtc");
    }
    let (major, minor, patch) = NVRTC;
    let wheel = Wheel { name: WHEEL.into(), version: format!("{major}.{minor}.{patch}"), sha256: WHEEL_SHA256.into() };
    eprintln!("  {wheel}: fetching it (90 MB, once)");
    let member = |(file, hash): (&str, &str)| Member {
        wheel: wheel.clone(),
        path: format!("{IN_WHEEL}/{file}"),
        sha256: Some(hash.to_owned()),
        kind: Kind::Data,
    };
    let members = LIBRARIES.map(|library| (member(library), depot.dir.join(library.0)));
    depot.open()?.fetch_all(source, &members)?;
    Ok(depot.dir)
}

fn sources(folder: &Path) -> Result<Files> {
    let mut files = Files::new();
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|name| is_source(name)) else {
            continue;
        };
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        files.insert(name.to_owned(), text);
    }
    Ok(files)
}

/// A source, compiled to one target.
struct Piece {
    stem: String,
    target: Target,
    compiled: Compiled,
}

/// All sources for all targets, on all cores.
fn compile(compiler: &Compiler, files: &Files) -> Result<Vec<Piece>> {
    let stems = files.keys().filter_map(|name| name.strip_suffix(".cu"));
    let tasks: Vec<(&str, Target)> = stems.flat_map(|stem| TARGETS.map(|target| (stem, target))).collect();
    let waiting = Mutex::new(tasks.into_iter());
    let next = || waiting.lock().expect("nobody panics with it").next();
    let work = || {
        let mut done = Vec::new();
        while let Some((stem, target)) = next() {
            let name = format!("{stem}.cu");
            let compiled = compiler.compile(&name, &whole(&name, files)?, target, &TELL)?;
            done.push(Piece { stem: stem.to_owned(), target, compiled });
        }
        Ok(done)
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let parts = workers.into_iter().map(|worker| worker.join().expect("a compilation does not panic"));
        Ok(parts.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    })
}

/// The most that each kernel uses on any GPU.
fn usages(pieces: &[Piece]) -> Result<Usages> {
    let mut usages = Usages::new();
    let mut homes = std::collections::BTreeMap::new();
    for piece in pieces.iter().filter(|piece| matches!(piece.target, Target::Machine(_))) {
        for (kernel, usage) in parse(&piece.compiled.log).with_context(|| format!("{}.cu", piece.stem))? {
            let home = homes.entry(kernel.clone()).or_insert(&piece.stem);
            if **home != piece.stem {
                bail!("kernel {kernel} is in {home}.cu and in {}.cu: names are looked up in all of them", piece.stem);
            }
            let most = usages.entry(kernel).or_insert(usage);
            *most = most.most(usage);
        }
    }
    Ok(usages)
}

/// Holds the kernels against their budget, or writes it.
fn judge(file: &Path, usages: &Usages, update: bool) -> Result<()> {
    if update {
        return fs::write(file, written(usages)).with_context(|| format!("write {}", file.display()));
    }
    let text = fs::read_to_string(file).with_context(|| format!("read {} (--update writes it)", file.display()))?;
    let faults = over(usages, &read(&text)?);
    if !faults.is_empty() {
        bail!("over the budget of {} (--update writes it anew):\n  {}", file.display(), faults.join("\n  "));
    }
    Ok(())
}

/// Puts the code in place of what was there, whole or not at all.
fn install(folder: &Path, made_of: &str, (pieces, usages): (&[Piece], &Usages)) -> Result<()> {
    let (built, part) = (folder.join(BUILT), folder.join(format!("{BUILT}.part")));
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(&part).with_context(|| format!("create {}", part.display()))?;
    for piece in pieces {
        fs::write(part.join(piece.target.file(&piece.stem)), packed(&piece.compiled.code))?;
    }
    fs::write(part.join(USES), written(usages))?;
    fs::write(part.join(MADE_OF), made_of)?;
    if built.exists() {
        fs::remove_dir_all(&built).with_context(|| format!("remove {}", built.display()))?;
    }
    fs::rename(&part, &built).with_context(|| format!("move it to {}", built.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(stem: &str, target: Target, log: &str) -> Piece {
        Piece { stem: stem.into(), target, compiled: Compiled { code: b"code".to_vec(), log: log.into() } }
    }

    fn log(kernel: &str, registers: u32) -> String {
        format!(
            "ptxas info    : Compiling entry function '{kernel}' for 'sm_90'\nptxas info    : Used {registers} registers\n"
        )
    }

    #[test]
    fn a_kernel_uses_what_it_uses_most_and_its_name_is_its_own() {
        let pieces = [piece("a", TARGETS[0], &log("k", 24)), piece("a", TARGETS[3], &log("k", 32))];
        assert_eq!(usages(&pieces).unwrap()["k"].registers, 32);
        let pieces = [piece("a", TARGETS[0], &log("k", 24)), piece("b", TARGETS[0], &log("k", 24))];
        assert!(usages(&pieces).unwrap_err().to_string().contains("a.cu and in b.cu"));
    }

    #[test]
    fn a_budget_is_written_and_then_kept_to() {
        let folder = std::env::temp_dir().join(format!("flotilla-kernels-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join(BUDGET);
        let of = |registers| usages(&[piece("a", TARGETS[0], &log("k", registers))]).unwrap();
        assert!(judge(&file, &of(24), false).unwrap_err().to_string().contains("--update"));
        judge(&file, &of(24), true).unwrap();
        judge(&file, &of(24), false).unwrap();
        assert!(judge(&file, &of(25), false).unwrap_err().to_string().contains("25"));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_is_installed_replaces_what_was_there() {
        let folder = std::env::temp_dir().join(format!("flotilla-built-{}", std::process::id()));
        fs::create_dir_all(folder.join(BUILT)).unwrap();
        fs::write(folder.join(BUILT).join("old.ptx"), "").unwrap();
        let files = Files::from([("a.cu".to_owned(), "text".to_owned())]);
        let pieces = TARGETS.map(|target| piece("a", target, &log("k", 24)));
        let usages = usages(&pieces).unwrap();
        assert_eq!(kept(&folder.join(BUILT), &files), None);
        install(&folder, &made_of(&files), (&pieces, &usages)).unwrap();
        assert_eq!(kept(&folder.join(BUILT), &files), Some(usages));
        let other = Files::from([("a.cu".to_owned(), "other".to_owned())]);
        assert_eq!(kept(&folder.join(BUILT), &other), None);
        assert!(!folder.join(BUILT).join("old.ptx").exists() && folder.join(BUILT).join("a.sm_90.cubin").is_file());
        fs::remove_dir_all(&folder).unwrap();
    }
}
