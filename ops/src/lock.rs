//! Locks between `flotilla` commands of one home. The system releases them when their holder ends, however it ends.

use std::fs::{self, File, TryLockError};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

const LOOK: Duration = Duration::from_millis(50);
/// How often a wait is told.
const SAY: Duration = Duration::from_secs(5);

/// A lock that is held.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
}

impl Lock {
    /// Takes it, unless another process holds it.
    pub(crate) fn try_take(path: &Path) -> Result<Option<Lock>> {
        let dir = path.parent().expect("a lock lies in a directory");
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let file = File::options().create(true).truncate(false).write(true).open(path);
        let file = file.with_context(|| format!("open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock { file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("lock {}", path.display())),
        }
    }

    /// Takes it as soon as no other process holds it.
    pub(crate) fn take(path: &Path, waits_for: &str) -> Result<Lock> {
        let mut wait = Wait::default();
        loop {
            if let Some(lock) = Lock::try_take(path)? {
                return Ok(lock);
            }
            wait.again(waits_for);
        }
    }

    /// Takes it if it becomes free within the limit.
    pub(crate) fn take_within(path: &Path, limit: Duration) -> Result<Option<Lock>> {
        let start = Instant::now();
        loop {
            let lock = Lock::try_take(path)?;
            if lock.is_some() || start.elapsed() > limit {
                return Ok(lock);
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Hands it to a child, which then holds it for its whole life: a lock belongs to an open file, and a child's
    /// standard input is one that neither side can lose by accident.
    pub(crate) fn into_stdin(self) -> Stdio {
        self.file.into()
    }
}

/// A wait for others that is told: at once, at every change of its reason, and now and then.
#[derive(Debug, Default)]
pub(crate) struct Wait {
    said: Option<(String, Instant)>,
}

impl Wait {
    /// One more short pause.
    pub(crate) fn again(&mut self, waits_for: &str) {
        if !self.said.as_ref().is_some_and(|(reason, at)| reason == waits_for && at.elapsed() < SAY) {
            eprintln!("  waiting: {waits_for}");
            self.said = Some((waits_for.to_owned(), Instant::now()));
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn one_holder_at_a_time_and_a_child_keeps_what_it_is_handed() {
        let dir = std::env::temp_dir().join(format!("flotilla-lock-{}", std::process::id()));
        let (path, other) = (dir.join("run/lock"), dir.join("run/other"));
        let held = |path| Lock::try_take(path).unwrap().is_none();
        let lock = Lock::try_take(&path).unwrap().unwrap();
        assert!(held(&path));
        assert!(!held(&other), "the two have nothing to do with each other");
        let mut child = Command::new("sleep").arg("60").stdin(lock.into_stdin()).spawn().unwrap();
        assert!(held(&path), "the child holds it now");
        child.kill().unwrap();
        child.wait().unwrap();
        Lock::take(&path, "nobody").unwrap();
        fs::remove_dir_all(&dir).unwrap();
    }
}
