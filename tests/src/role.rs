//! A dispatcher or a worker as a child process, with its log and its health endpoint.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::port::Port;
use crate::wait::until;

/// Lines of a log that a failed test shows.
const LOG_LINES: usize = 40;
/// Longest start of a process, on a machine that builds at the same time.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process of the fleet, killed on drop.
pub struct Role {
    name: String,
    child: Child,
    log: PathBuf,
    health: Port,
}

impl Role {
    /// Starts `binary`; its files lie in `folder`.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(binary: &str, name: &str, folder: &Path) -> Role {
        let health = Port::take();
        let log = folder.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).expect("a log file");
        let program = programs().join(binary);
        let mut command = Command::new(&program);
        // What the developer has set for his own fleet must not reach this one.
        for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("FLOTILLA_")) {
            command.env_remove(key);
        }
        let child = command
            .arg("--config")
            .arg(folder.join("flotilla.toml"))
            .env("FLOTILLA_TELEMETRY__LISTEN", health.address().to_string())
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a log file"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{}: {error}; build first: cargo build --release --workspace", program.display())
            });
        Role { name: name.to_owned(), child, log, health }
    }

    /// Waits until `/readyz` says so.
    pub async fn ready(&mut self) {
        let name = self.name.clone();
        let mut answer = String::new();
        let start = std::time::Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().expect("a child can be asked") {
                panic!("{name} ended with {status} instead of being ready:\n{}", self.tail());
            }
            match self.get("/readyz").await {
                Some((200, _)) => return,
                Some((status, body)) => answer = format!("{status} {body}"),
                None => {}
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{name} was not ready within {PATIENCE:?} ({answer}):\n{}", self.tail());
    }

    /// What a path of the health endpoint answers: status and body; `None` where nobody listens.
    pub async fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.health.address()).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: fleet\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())?;
        Some((status, body))
    }

    /// The sum of all samples of a metric whose labels contain `label`; 0 where there are none.
    pub async fn metric(&self, name: &str, label: &str) -> f64 {
        let (_, text) = self.get("/metrics").await.unwrap_or_default();
        text.lines()
            .filter_map(|line| line.strip_prefix(name))
            .filter(|rest| rest.starts_with(['{', ' ']) && rest.contains(label))
            .filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Ends it as a crash would.
    ///
    /// # Panics
    /// When it cannot be killed.
    pub fn kill9(&mut self) {
        self.child.kill().expect("a child can be killed");
        self.child.wait().expect("a killed child ends");
    }

    /// Asks it to stop.
    pub fn sigterm(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When it is gone already.
    pub fn signal(&self, signal: Signal) {
        let process = Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"));
        kill(process, signal).expect("a child can be signalled");
    }

    /// Waits for its end.
    pub async fn ended(&mut self, within: Duration) -> ExitStatus {
        let name = self.name.clone();
        let child = std::sync::Mutex::new(&mut self.child);
        until(&format!("the end of {name}"), within, || async {
            child.lock().expect("one waits").try_wait().expect("a child can be asked")
        })
        .await
    }

    /// The end of its log.
    #[must_use]
    pub fn tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// All of its log.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("---- end of the log of {} ----\n{}", self.name, self.tail());
        }
    }
}

/// Where the binaries of the running test's build lie: `target/release` for `target/release/deps/e2e-...`.
///
/// # Panics
/// Outside of a test.
#[must_use]
pub fn programs() -> PathBuf {
    let test = std::env::current_exe().expect("a running test");
    let deps = test.parent().expect("a folder of tests");
    deps.parent().expect("a folder of binaries").to_path_buf()
}
