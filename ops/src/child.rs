//! One child process: how it is started, and what it says.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Command;
use tokio::sync::mpsc;

use crate::log::Log;
use crate::process::Identity;
use crate::state::Role;

/// First pause before a dead child is started again; doubles with every death in a row.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
/// Longest such pause.
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// A child that lived this long was well: its next death is the first in a row.
pub(crate) const WELL_AFTER: Duration = Duration::from_secs(30);

/// How to start a child.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    /// `nats`, `redis`, `dispatcher`, `worker-1`, ...
    pub(crate) name: String,
    /// What it is there for.
    pub(crate) role: Role,
    /// The program and its arguments.
    pub(crate) program: PathBuf,
    /// Its arguments.
    pub(crate) arguments: Vec<String>,
    /// What stands in its environment over ours.
    pub(crate) environment: Vec<(String, String)>,
    /// Where it serves `/metrics`.
    pub(crate) telemetry: Option<String>,
}

/// The end of a child.
#[derive(Debug)]
pub(crate) struct Exit {
    /// Its place in the fleet.
    pub(crate) index: usize,
    /// How it ended.
    pub(crate) status: Option<ExitStatus>,
}

/// What all children are started with.
#[derive(Clone, Debug)]
pub(crate) struct Launcher {
    /// This program, which becomes the child's.
    pub(crate) leash: PathBuf,
    /// Names of our own flags' variables: no business of the children.
    pub(crate) hidden: Vec<String>,
    /// Where ends are told.
    pub(crate) exits: mpsc::UnboundedSender<Exit>,
}

impl Launcher {
    /// Starts a child in a process group of its own, so that ctrl-C on the terminal reaches only the supervisor.
    /// Must run on the main thread: the leash holds to the thread that forks.
    pub(crate) fn start(&self, index: usize, spec: &Spec, log: &Arc<Mutex<Log>>) -> Result<Option<Identity>> {
        let farewell = if matches!(spec.role, Role::Nats | Role::Redis) { "term" } else { "kill" };
        let mut command = Command::new(&self.leash);
        command.args(["leash", "--farewell", farewell, "--supervisor", &std::process::id().to_string(), "--"]);
        command.arg(&spec.program).args(&spec.arguments);
        for name in &self.hidden {
            command.env_remove(name);
        }
        command.envs(spec.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().with_context(|| format!("start {}", spec.name))?;
        // None if it has ended already: the news of that is on its way like any other's.
        let process = child.id().and_then(Identity::of);
        let pumps = (child.stdout.take().map(|out| pump(out, log)), child.stderr.take().map(|err| pump(err, log)));
        let exits = self.exits.clone();
        tokio::spawn(async move {
            let status = child.wait().await.ok();
            // Its last words come before the news of its end.
            for pump in [pumps.0, pumps.1].into_iter().flatten() {
                let _ = tokio::time::timeout(Duration::from_secs(1), pump).await;
            }
            let _ = exits.send(Exit { index, status });
        });
        Ok(process)
    }
}

fn pump(from: impl AsyncRead + Unpin + Send + 'static, log: &Arc<Mutex<Log>>) -> tokio::task::JoinHandle<()> {
    let log = Arc::clone(log);
    tokio::spawn(async move {
        let mut reader = BufReader::new(from);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).await.is_ok_and(|read| read > 0) {
            let end = line.iter().rposition(|byte| !b"\r\n".contains(byte)).map_or(0, |last| last + 1);
            log.lock().expect("no holder panics").line(&line[..end]);
            line.clear();
        }
    })
}

/// How long to wait after so many deaths in a row.
pub(crate) fn backoff(deaths_in_a_row: u32) -> Duration {
    let doublings = deaths_in_a_row.saturating_sub(1).min(16);
    BACKOFF_FIRST.saturating_mul(1 << doublings).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit() {
        let pauses: Vec<u128> = (1..=7).map(|deaths| backoff(deaths).as_millis()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 15_000, 15_000]);
        assert_eq!(backoff(u32::MAX), BACKOFF_MAX);
    }
}
