//! The few steps between a supervisor's fork and a child's own program: the child dies with its supervisor, however
//! that dies. Every child is started as `flotilla leash ... PROGRAM`, which becomes PROGRAM.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use nix::sys::signal::Signal;

/// What a child gets when its supervisor is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Farewell {
    /// It may store what it has: servers.
    Term,
    /// Nothing is left that it could finish: roles, whose servers go at the same time.
    Kill,
}

/// `flotilla leash`
#[derive(Debug, Args)]
pub(crate) struct Leash {
    /// What the child gets when its supervisor is gone.
    #[arg(long)]
    farewell: Farewell,
    /// Process number of the supervisor.
    #[arg(long)]
    supervisor: i32,
    /// What to become.
    #[arg(last = true, required = true)]
    program: Vec<OsString>,
}

impl Leash {
    /// Ties this process to its supervisor and becomes the program. Only returns when that fails.
    pub(crate) fn run(self) -> Result<()> {
        let signal = match self.farewell {
            Farewell::Term => Signal::SIGTERM,
            Farewell::Kill => Signal::SIGKILL,
        };
        tie(signal)?;
        // It may have died before the tie was made; nobody would tell us any more.
        if nix::unistd::getppid().as_raw() != self.supervisor {
            bail!("the supervisor is gone already");
        }
        let (program, arguments) = self.program.split_first().expect("clap requires one");
        Err(Command::new(program).args(arguments).exec()).with_context(|| format!("start {}", program.display()))
    }
}

#[cfg(target_os = "linux")]
fn tie(signal: Signal) -> Result<()> {
    nix::sys::prctl::set_pdeathsig(signal).context("tie the child to its supervisor")
}

/// Elsewhere what a killed supervisor leaves behind is ended by the next `up` or `down`.
#[cfg(not(target_os = "linux"))]
fn tie(_: Signal) -> Result<()> {
    Ok(())
}
