//! What a container's health check does: one question to the process beside it, without a client library.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::config::{EXIT_FAULTY, Telemetry};

/// How long an answer is waited for.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Longest answer that is read.
const BYTES_MAX: u64 = 4096;

/// Why a process does not pass for ready.
#[derive(Debug, thiserror::Error)]
pub enum Unready {
    /// It serves no `/readyz`.
    #[error(
        "telemetry.listen names no port, so there is no /readyz to ask: set it, or FLOTILLA_LISTEN, for example to \
         0.0.0.0:9100"
    )]
    Unserved,
    /// It does not answer, or says that it is not ready.
    #[error("{0}")]
    Says(String),
}

/// The whole of a role's `healthcheck`: prints what [`check`] found, and the exit code that says it.
#[must_use]
pub fn healthcheck(telemetry: &Telemetry) -> ExitCode {
    match check(telemetry) {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(unready) => {
            println!("{unready}");
            match unready {
                Unready::Unserved => ExitCode::from(EXIT_FAULTY),
                Unready::Says(_) => ExitCode::FAILURE,
            }
        }
    }
}

/// Asks the process of this configuration whether it is ready; what it said.
pub fn check(telemetry: &Telemetry) -> Result<String, Unready> {
    let listen = telemetry.listen.filter(|listen| listen.port() != 0).ok_or(Unready::Unserved)?;
    let address = reachable(listen);
    let answer = get(address, "/readyz").map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            Unready::Says(format!("{address} does not answer within {TIMEOUT:?}"))
        }
        _ => Unready::Says(format!("{address}: {error}")),
    })?;
    match answer {
        (200, said) => Ok(said),
        (status, said) => Err(Unready::Says(format!("{said} ({status})"))),
    }
}

/// Where a listener on every interface is asked.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// Status and body of a path, within [`TIMEOUT`].
fn get(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let end = Instant::now() + TIMEOUT;
    // Nothing left would mean no limit at all.
    let left = || Some(end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)));
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_write_timeout(left())?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    stream.set_read_timeout(left())?;
    let mut answer = Vec::new();
    stream.take(BYTES_MAX).read_to_end(&mut answer)?;
    parse(&String::from_utf8_lossy(&answer)).ok_or_else(|| io::Error::other("the answer is no HTTP"))
}

fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok()?;
    Some((status, body.trim_end().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_every_interface_is_asked_at_home() {
        let at = |listen: &str| reachable(listen.parse().unwrap()).to_string();
        assert_eq!(at("0.0.0.0:9100"), "127.0.0.1:9100");
        assert_eq!(at("[::]:9100"), "[::1]:9100");
        assert_eq!(at("10.0.0.7:9100"), "10.0.0.7:9100");
    }

    #[test]
    fn only_http_is_an_answer() {
        let ready = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 9\r\n\r\nstarting\n";
        assert_eq!(parse(ready), Some((503, "starting".to_owned())));
        assert_eq!(parse("INFO {}\r\n"), None);
    }
}
