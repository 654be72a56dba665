//! What a running fleet is made of, in one file, so that `down`, `status` and the next `up` find it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::home::Home;
use crate::process::Identity;

/// What a child process is there for, in the order of starting; stopping goes backwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// The NATS server.
    Nats,
    /// The Redis or Valkey server.
    Redis,
    /// A dispatcher.
    Dispatcher,
    /// A worker.
    Worker,
}

impl Role {
    /// Whoever depends on another stops before it.
    pub(crate) const STOP_ORDER: [Role; 4] = [Role::Worker, Role::Dispatcher, Role::Redis, Role::Nats];
}

/// How far a fleet has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// Not all of it answers yet.
    Starting,
    /// It answered.
    Ready,
    /// It goes.
    Stopping,
}

/// A child process as others see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Child {
    /// `nats`, `redis`, `dispatcher`, `worker-1`, ...
    pub(crate) name: String,
    /// What it is there for.
    pub(crate) role: Role,
    /// `None` while it waits to be started again.
    pub(crate) process: Option<Identity>,
    /// How often it was started again.
    pub(crate) restarts: u32,
    /// Where `/metrics`, `/livez` and `/readyz` are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) telemetry: Option<String>,
}

/// A running fleet, or what a killed one left behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// The `flotilla up` that watches over it.
    pub(crate) supervisor: Identity,
    /// How far it has come.
    pub(crate) phase: Phase,
    /// Address of its NATS server.
    pub(crate) nats: String,
    /// Address of its Redis.
    pub(crate) redis: String,
    /// How long its workers may take to stop.
    #[serde(default)]
    pub(crate) drain_s: u64,
    /// Its processes.
    pub(crate) children: Vec<Child>,
}

impl State {
    /// The state in this home, if any. One that cannot be read is an error: processes may hide behind it.
    pub(crate) fn read(home: &Home) -> Result<Option<State>> {
        let file = file(home);
        match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).with_context(|| {
                format!("{} cannot be read; look for stray processes, then remove it", file.display())
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", file.display())),
        }
    }

    /// Replaces the file in one step, so that no reader sees half of it.
    pub(crate) fn write(&self, home: &Home) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(self).expect("a state always encodes");
        write_atomically(&file(home), &bytes)
    }

    /// Forgets it.
    pub(crate) fn remove(home: &Home) {
        let _ = fs::remove_file(file(home));
    }

    /// Whether its supervisor still runs.
    pub(crate) fn supervised(&self) -> bool {
        self.supervisor.alive()
    }

    /// Living processes of one role.
    pub(crate) fn living(&self, role: Role) -> Vec<Identity> {
        let of_role = self.children.iter().filter(|child| child.role == role);
        of_role.filter_map(|child| child.process).filter(|process| process.alive()).collect()
    }

    /// Whether any of its processes still runs.
    pub(crate) fn leftovers(&self) -> bool {
        Role::STOP_ORDER.iter().any(|role| !self.living(*role).is_empty())
    }
}

fn file(home: &Home) -> PathBuf {
    home.run().join("state.json")
}

fn write_atomically(file: &Path, bytes: &[u8]) -> Result<()> {
    let dir = file.parent().expect("a state file has a directory");
    let new = file.with_extension("new");
    fs::create_dir_all(dir)
        .and_then(|()| fs::write(&new, bytes))
        .and_then(|()| fs::rename(&new, file))
        .with_context(|| format!("write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(process: Option<Identity>) -> State {
        let own = Identity::own().expect("/proc is there");
        let child = Child { name: "worker-1".into(), role: Role::Worker, process, restarts: 0, telemetry: None };
        let (nats, redis) = ("n".into(), "r".into());
        State { supervisor: own, phase: Phase::Ready, nats, redis, drain_s: 25, children: vec![child] }
    }

    #[test]
    fn a_state_reads_back_and_is_forgotten() {
        let dir = std::env::temp_dir().join(format!("flotilla-state-{}", std::process::id()));
        let home = Home::find(Some(dir.clone()), &dir);
        assert_eq!(State::read(&home).unwrap(), None);
        let written = state(None);
        written.write(&home).unwrap();
        assert_eq!(State::read(&home).unwrap(), Some(written));
        fs::write(file(&home), b"{").unwrap();
        assert!(State::read(&home).is_err(), "a torn file is not taken for no fleet");
        State::remove(&home);
        assert_eq!(State::read(&home).unwrap(), None);
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn only_the_very_same_process_is_a_leftover() {
        let own = Identity::own().unwrap();
        assert!(state(Some(own)).leftovers());
        assert!(!state(Some(Identity { started_ticks: own.started_ticks + 1, ..own })).leftovers());
        assert!(!state(None).leftovers());
    }
}
