//! Processes by identity: a process number alone is given away again, so its start time stands beside it.

use std::fs;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// One process, and no later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    /// Process number.
    pub(crate) pid: i32,
    /// Clock ticks between the machine's start and the process's.
    pub(crate) started_ticks: u64,
}

impl Identity {
    /// The living process with this number.
    pub(crate) fn of(pid: u32) -> Option<Identity> {
        let pid = i32::try_from(pid).ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Identity { pid, started_ticks: started_ticks(&stat)? })
    }

    /// This process.
    pub(crate) fn own() -> Option<Identity> {
        Identity::of(std::process::id())
    }

    /// Whether it still runs.
    pub(crate) fn alive(self) -> bool {
        u32::try_from(self.pid).ok().and_then(Identity::of) == Some(self)
    }

    /// Signals it, if it still runs.
    pub(crate) fn signal(self, signal: Signal) {
        if self.alive() {
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Signals its whole group, which it leads, if it still runs.
    pub(crate) fn signal_group(self, signal: Signal) {
        if self.alive() {
            let _ = killpg(Pid::from_raw(self.pid), signal);
        }
    }
}

/// Field 22 of `/proc/PID/stat`. The name before it may hold spaces and brackets; a zombie does not run.
fn started_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_read_behind_any_name() {
        let stat = "42 (a) b) S 1 42 42 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 100 1 18446744073709551615";
        assert_eq!(started_ticks(stat), Some(987_654));
        assert_eq!(started_ticks(&stat.replace(") S", ") Z")), None, "a zombie does not run");
        assert_eq!(started_ticks("nonsense"), None);
    }

    #[test]
    fn a_number_used_again_is_not_the_same_process() {
        let own = Identity::own().expect("/proc is there");
        assert!(own.alive());
        assert!(!Identity { started_ticks: own.started_ticks + 1, ..own }.alive());
    }
}
