//! Where the kernels' machine code comes from: embedded in this build, kept on disk, compiled here, or translated by the
//! driver from PTX.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use kernels::compiler::{Compiler, unpacked, whole};
use kernels::recipe::{Files, OPTIONS, TARGETS, Target};

use super::sources::{HEADERS, SOURCES};
use crate::Error;

/// The least compute capability that the kernels are written for.
pub(super) const LEAST: (u32, u32) = (8, 0);
/// Kernels of this capability and later ones wait for what ran before them, so that they may be begun early.
const WAITING: (u32, u32) = (9, 0);
/// Compilations at once: each takes some hundred megabytes.
const COMPILATIONS_MAX: usize = 8;

/// A source compiled by the build.
struct Built {
    stem: &'static str,
    target: Target,
    code: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/built.rs"));

/// What this build holds: `kernels: sm_80 sm_86 sm_89 sm_90 ptx`, or `kernels: none`.
#[must_use]
pub fn embedded() -> String {
    let there = TARGETS.into_iter().filter(|target| BUILT.iter().any(|built| built.target == *target));
    let names = there.map(|target| match target {
        Target::Machine(_) => target.to_string(),
        Target::Portable(_) => "ptx".to_owned(),
    });
    let names: Vec<String> = names.collect();
    format!("kernels: {}", if names.is_empty() { "none".to_owned() } else { names.join(" ") })
}

/// What the driver loads, of one source.
pub(super) struct Code {
    /// Name of the source.
    pub(super) stem: &'static str,
    /// Machine code, or PTX with a zero at its end.
    pub(super) bytes: Vec<u8>,
    /// Whether its kernels wait for what ran before them.
    pub(super) waits: bool,
}

/// Where code may come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Machine code in this build.
    Embedded,
    /// NVRTC, or the disk where it was asked before.
    Compiled,
    /// PTX in this build.
    Portable,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Embedded => "embedded code",
            Origin::Compiled => "code compiled here",
            Origin::Portable => "embedded PTX",
        })
    }
}

impl Origin {
    /// In the order in which they are asked.
    pub(super) const ALL: [Origin; 3] = [Origin::Embedded, Origin::Compiled, Origin::Portable];
}

/// Looks for code that runs on a device.
pub(super) struct Finder<'a> {
    /// Its compute capability.
    pub(super) capability: (u32, u32),
    /// Where libraries may lie.
    pub(super) libraries: &'a [PathBuf],
    /// Where compiled code is kept.
    pub(super) cache: Option<&'a Path>,
}

impl Finder<'_> {
    /// The code of all sources, from one origin.
    pub(super) fn all(&self, origin: Origin) -> Result<Vec<Code>, Error> {
        match origin {
            Origin::Embedded => self.built(runs_on(self.capability, BUILT.iter().map(|built| built.target))),
            Origin::Portable => {
                let portable = |target: &Target| matches!(target, Target::Portable(least) if *least <= self.capability);
                self.built(BUILT.iter().map(|built| built.target).find(portable))
            }
            Origin::Compiled => self.compiled(),
        }
    }

    fn built(&self, target: Option<Target>) -> Result<Vec<Code>, Error> {
        let none = || Error::Device("none for it in this build, see `flotilla kernels build`".into());
        let target = target.ok_or_else(none)?;
        SOURCES.iter().map(|source| code(source.name, target)).collect::<Option<_>>().ok_or_else(none)
    }

    fn compiled(&self) -> Result<Vec<Code>, Error> {
        let compiler = Compiler::find(self.libraries)?;
        let (compiler, target) = (&compiler, Target::Machine(self.capability));
        let files = files();
        let waiting = Mutex::new(SOURCES.iter());
        let next = || waiting.lock().expect("nobody panics with it").next();
        let work = || {
            let mut done = Vec::new();
            while let Some(source) = next() {
                let bytes = self.kept_or_compiled(compiler, (source.name, &files), target)?;
                done.push(Code { stem: stem(source.name), bytes, waits: waits(target) });
            }
            Ok(done)
        };
        let threads = thread::available_parallelism().map_or(1, usize::from).min(COMPILATIONS_MAX);
        thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let parts = workers.into_iter().map(|worker| worker.join().expect("a compilation does not panic"));
            Ok(parts.collect::<Result<Vec<_>, Error>>()?.into_iter().flatten().collect())
        })
    }

    fn kept_or_compiled(
        &self,
        compiler: &Compiler,
        (name, files): (&str, &Files),
        target: Target,
    ) -> Result<Vec<u8>, Error> {
        let text = whole(name, files)?;
        let file = self.cache.map(|folder| folder.join(format!("{}.cubin", key(compiler.version(), &text, target))));
        if let Some(kept) = file.as_deref().and_then(|file| fs::read(file).ok()) {
            return Ok(kept);
        }
        tracing::info!(source = name, %target, "compiling kernels, which is done once");
        let code = compiler.compile(name, &text, target, &[])?.code;
        if let Some(file) = file
            && let Err(error) = keep(&file, &code)
        {
            tracing::warn!(file = %file.display(), %error, "compiled kernels are not kept");
        }
        Ok(code)
    }
}

fn files() -> Files {
    SOURCES.iter().chain(HEADERS).map(|source| (source.name.to_owned(), source.text.to_owned())).collect()
}

/// `rows` of `rows.cu`
fn stem(name: &'static str) -> &'static str {
    name.strip_suffix(".cu").unwrap_or(name)
}

fn code(name: &'static str, target: Target) -> Option<Code> {
    let built = BUILT.iter().find(|built| built.stem == stem(name) && built.target == target)?;
    Some(Code { stem: built.stem, bytes: unpacked(built.code), waits: waits(target) })
}

/// The latest of the targets whose machine code runs on a device: of its major number, and not after it.
fn runs_on(capability: (u32, u32), targets: impl Iterator<Item = Target>) -> Option<Target> {
    let fitting = targets.filter_map(|target| match target {
        Target::Machine(of) if of.0 == capability.0 && of.1 <= capability.1 => Some(of),
        _ => None,
    });
    fitting.max().map(Target::Machine)
}

fn waits(target: Target) -> bool {
    let (Target::Machine(capability) | Target::Portable(capability)) = target;
    capability >= WAITING
}

fn key(version: (u32, u32), text: &str, target: Target) -> String {
    let said = format!("{}.{} {target} {}\n", version.0, version.1, OPTIONS.join(" "));
    blake3::hash((said + text).as_bytes()).to_hex().to_string()
}

/// Appears whole or not at all: workers share the folder.
fn keep(file: &Path, code: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let part = file.with_extension(format!("{}.part", std::process::id()));
    fs::write(&part, code).and_then(|()| fs::rename(&part, file)).inspect_err(|_| {
        let _ = fs::remove_file(&part);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_code_of_the_same_major_number_is_chosen() {
        let chosen = |capability| runs_on(capability, TARGETS.into_iter());
        assert_eq!(chosen((9, 0)), Some(Target::Machine((9, 0))));
        assert_eq!(chosen((8, 7)), Some(Target::Machine((8, 6))));
        assert_eq!(chosen((8, 0)), Some(Target::Machine((8, 0))));
        assert_eq!(chosen((10, 0)), None);
        assert_eq!(chosen((7, 5)), None);
    }

    #[test]
    fn kernels_are_begun_early_only_where_they_wait() {
        assert!(waits(Target::Machine((9, 0))) && waits(Target::Machine((12, 0))));
        assert!(!waits(Target::Machine((8, 9))) && !waits(Target::Portable((8, 0))));
    }

    #[test]
    fn what_is_kept_depends_on_all_that_made_it() {
        let base = key((13, 0), "text", TARGETS[0]);
        assert_ne!(base, key((13, 1), "text", TARGETS[0]));
        assert_ne!(base, key((13, 0), "other", TARGETS[0]));
        assert_ne!(base, key((13, 0), "text", TARGETS[1]));
    }

    #[test]
    fn kept_code_is_read_again_and_leaves_nothing_half_done() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deeper/a.cubin");
        keep(&file, b"code").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"code");
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_build_says_what_it_holds() {
        assert!(
            embedded() == "kernels: none" || embedded() == "kernels: sm_80 sm_86 sm_89 sm_90 ptx",
            "{}",
            embedded()
        );
    }
}
