//! Where everything of a local fleet lies. Nothing outside the home directory is written.

use std::path::{Path, PathBuf};

/// Name of the git-ignored home directory in a clone.
const NAME: &str = ".flotilla";

/// The home directory of a local fleet, and the clone that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Home {
    /// The clone, or the directory from which `flotilla` was started.
    pub(crate) root: PathBuf,
    /// The home directory itself.
    pub(crate) dir: PathBuf,
    /// The configuration that every role reads, where there is one.
    pub(crate) config: Option<PathBuf>,
    models: PathBuf,
}

impl Home {
    /// The given one; else that of the nearest directory at or above `start` that has one or is a clone of this project:
    /// one that lies further out, as in the user's own home, does not capture a fresh clone.
    pub(crate) fn find(given: Option<PathBuf>, start: &Path) -> Home {
        let is_clone = |dir: &Path| dir.join("Cargo.toml").is_file() && dir.join("ops/nats").is_dir();
        let root =
            start.ancestors().find(|dir| dir.join(NAME).is_dir() || is_clone(dir)).unwrap_or(start).to_path_buf();
        let dir = given.unwrap_or_else(|| root.join(NAME));
        let config = Some(root.join("flotilla.toml")).filter(|file| file.is_file());
        let models = dir.join("models");
        Home { root, dir, config, models }
    }

    /// With the configuration that the user names, if he names one.
    pub(crate) fn with_config(mut self, given: Option<PathBuf>) -> Home {
        self.config = given.or(self.config);
        self
    }

    /// With the models' folder that the user names, if he names one.
    pub(crate) fn with_models(mut self, given: Option<PathBuf>) -> Home {
        self.models = given.unwrap_or(self.models);
        self
    }

    /// `nats-server` and `valkey-server`.
    pub(crate) fn bin(&self) -> PathBuf {
        self.dir.join("bin")
    }

    /// NVRTC, which compiles kernels.
    pub(crate) fn compiler(&self) -> PathBuf {
        self.dir.join("nvrtc")
    }

    /// One directory a model.
    pub(crate) fn models(&self) -> &Path {
        &self.models
    }

    /// One file a process.
    pub(crate) fn logs(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// The log of one process.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    /// What the servers keep: one directory a server.
    pub(crate) fn data(&self, server: &str) -> PathBuf {
        self.dir.join("data").join(server)
    }

    /// Where a running fleet says what it is made of.
    pub(crate) fn run(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// The lock of the one fleet: held from the first look at its state until its supervisor ends.
    pub(crate) fn lock(&self) -> PathBuf {
        self.run().join("lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_above_is_found_and_a_given_one_wins() {
        let top = std::env::temp_dir().join(format!("flotilla-home-{}", std::process::id()));
        let deep = top.join("a/b");
        std::fs::create_dir_all(&deep).unwrap();
        assert_eq!(Home::find(None, &deep).root, deep, "no clone above: where we stand");
        std::fs::create_dir_all(top.join(NAME)).unwrap();
        assert_eq!(Home::find(None, &deep).bin(), top.join(".flotilla/bin"));
        let given = Home::find(Some("/elsewhere".into()), &deep);
        assert_eq!(given.log("worker-1"), Path::new("/elsewhere/log/worker-1.log"));
        assert_eq!(given.root, top);
        assert_eq!(given.models(), Path::new("/elsewhere/models"));
        assert_eq!(given.with_models(Some("/srv".into())).models(), Path::new("/srv"));
        std::fs::create_dir_all(top.join("a/ops/nats")).unwrap();
        std::fs::write(top.join("a/Cargo.toml"), "").unwrap();
        assert_eq!(Home::find(None, &deep).dir, top.join("a/.flotilla"), "the clone is nearer than the home above it");
        std::fs::remove_dir_all(&top).unwrap();
    }
}
