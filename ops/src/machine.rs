//! What this machine has: looked at, never changed.

use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Stdio};

use serde::Serialize;

/// The port where clients expect NATS.
pub(crate) const NATS_PORT: u16 = 4222;
/// The port where Redis usually is.
pub(crate) const REDIS_PORT: u16 = 6379;

/// What this machine has.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// Name and version of the system.
    pub(crate) os: String,
    /// `x86_64`, `aarch64`, ...
    pub(crate) arch: &'static str,
    /// Cores that this process may use.
    pub(crate) cores: usize,
    /// Memory that this process may use.
    pub(crate) memory_bytes: Option<u64>,
    /// Names of its NVIDIA GPUs.
    pub(crate) gpus: Vec<String>,
    /// Those of the fleet's usual ports on which somebody listens already.
    pub(crate) ports_taken: Vec<u16>,
}

impl Machine {
    /// Looks.
    pub(crate) fn look() -> Machine {
        Machine {
            os: os_name(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
            arch: std::env::consts::ARCH,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: runtime::memory::allowed_bytes(),
            gpus: gpus(),
            ports_taken: [NATS_PORT, REDIS_PORT].into_iter().filter(|port| port_taken(*port)).collect(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}, {} cores", self.os, self.arch, self.cores)?;
        if let Some(bytes) = self.memory_bytes {
            write!(f, ", {:.1} GiB memory", gib(bytes))?;
        }
        match self.gpus.as_slice() {
            [] => f.write_str(", no NVIDIA GPU (none is needed)")?,
            gpus => write!(f, ", GPU: {}", gpus.join(", "))?,
        }
        if self.ports_taken.is_empty() {
            return write!(f, ", ports {NATS_PORT} and {REDIS_PORT} free");
        }
        let taken: Vec<String> = self.ports_taken.iter().map(u16::to_string).collect();
        write!(f, ", in use: port {}", taken.join(" and "))
    }
}

/// Bytes in GiB, for people.
#[allow(clippy::cast_precision_loss, reason = "one digit is shown")]
pub(crate) fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1u32 << 30)
}

fn os_name(release: &str) -> String {
    let pretty = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    pretty.map_or_else(|| std::env::consts::OS.to_owned(), |name| name.trim_matches('"').to_owned())
}

/// From the driver's own files, which are there without any tool; else from `nvidia-smi`.
fn gpus() -> Vec<String> {
    let cards = fs::read_dir("/proc/driver/nvidia/gpus").into_iter().flatten().flatten();
    let mut names: Vec<String> = cards
        .filter_map(|card| fs::read_to_string(card.path().join("information")).ok())
        .filter_map(|text| text.lines().find_map(|line| line.strip_prefix("Model:").map(|name| name.trim().to_owned())))
        .collect();
    if names.is_empty() {
        let query = ["--query-gpu=name", "--format=csv,noheader"];
        let said = Command::new("nvidia-smi").args(query).stderr(Stdio::null()).output();
        let said = said.ok().filter(|output| output.status.success()).map(|output| output.stdout).unwrap_or_default();
        names = String::from_utf8_lossy(&said).lines().map(str::to_owned).collect();
    }
    names.sort();
    names
}

/// Whether somebody already listens on a local port.
fn port_taken(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err()
}

/// The wanted port if it is free, else any free one.
pub(crate) fn free_port(wanted: u16) -> std::io::Result<u16> {
    let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let listener = TcpListener::bind(local(wanted)).or_else(|_| TcpListener::bind(local(0)))?;
    Ok(listener.local_addr()?.port())
}

/// Free bytes on the file system of a path, as `df` tells them.
pub(crate) fn disk_free_bytes(path: &Path) -> Option<u64> {
    let output = Command::new("df").arg("-Pk").arg(path).stderr(Stdio::null()).output().ok()?;
    df_free_bytes(&String::from_utf8_lossy(&output.stdout))
}

fn df_free_bytes(df: &str) -> Option<u64> {
    let kib: u64 = df.lines().nth(1)?.split_ascii_whitespace().nth(3)?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_files_are_read() {
        assert_eq!(
            os_name("ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
            "Debian GNU/Linux 12 (bookworm)"
        );
        assert_eq!(os_name(""), std::env::consts::OS);
        let df = "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/vda 100 40 60 40% /\n";
        assert_eq!(df_free_bytes(df), Some(60 * 1024));
    }

    #[test]
    fn a_taken_port_is_seen_and_another_one_found() {
        let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let taken = holder.local_addr().unwrap().port();
        assert!(port_taken(taken));
        assert_ne!(free_port(taken).unwrap(), taken);
    }
}
