//! Stops a local fleet, and ends what a killed supervisor left behind.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::sys::signal::Signal;

use crate::home::Home;
use crate::lock::Lock;
use crate::state::{Role, State};

/// What a supervisor takes beyond its workers' drain, with room.
const SUPERVISOR: Duration = Duration::from_secs(60);
/// Time for the system to release the lock of a process that is gone.
const RELEASE: Duration = Duration::from_secs(1);
/// Time for what has no supervisor any more.
const LEFTOVER: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);
/// How often a wait is told.
const SAY: Duration = Duration::from_secs(5);

/// Stops the fleet of this home. Whether there was one.
pub(crate) fn down(home: &Home) -> Result<bool> {
    let Some(state) = State::read(home)? else { return Ok(false) };
    if state.supervised() {
        eprintln!("stopping the fleet at {}: workers finish what they have", state.nats);
        state.supervisor.signal(Signal::SIGTERM);
        if !gone(|| !state.supervised(), Duration::from_secs(state.drain_s) + SUPERVISOR) {
            eprintln!("the supervisor does not end, killing it");
            state.supervisor.signal(Signal::SIGKILL);
            gone(|| !state.supervised(), LEFTOVER);
        }
    }
    // Whoever has the lock now begins a new fleet: what lies here is his, and he ends leftovers himself.
    let Some(_lock) = Lock::take_within(&home.lock(), RELEASE)? else { return Ok(true) };
    // Read anew: it may have started children again since.
    let state = State::read(home)?.unwrap_or(state);
    end_leftovers(&state)?;
    State::remove(home);
    Ok(true)
}

/// Ends children whose supervisor is gone.
pub(crate) fn end_leftovers(state: &State) -> Result<()> {
    for role in Role::STOP_ORDER {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            state.living(role).iter().for_each(|process| process.signal_group(signal));
            if gone(|| state.living(role).is_empty(), LEFTOVER) {
                break;
            }
        }
        if let Some(process) = state.living(role).first() {
            bail!("process {} does not end, even when killed", process.pid);
        }
    }
    Ok(())
}

fn gone(is_gone: impl Fn() -> bool, limit: Duration) -> bool {
    let start = Instant::now();
    let mut said = start;
    while !is_gone() {
        if start.elapsed() > limit {
            return false;
        }
        if said.elapsed() > SAY {
            eprintln!("  waiting ({} s)", start.elapsed().as_secs());
            said = Instant::now();
        }
        std::thread::sleep(LOOK);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Identity;
    use crate::state::{Child, Phase};
    use std::io::Read;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    #[test]
    fn a_leftover_that_ignores_the_first_signal_is_killed_in_the_end() {
        let mut shell = Command::new("sh");
        shell.args(["-c", "trap '' TERM; echo; sleep 60"]).process_group(0).stdout(Stdio::piped());
        let mut stubborn = shell.spawn().unwrap();
        // It says so when it ignores the signal.
        stubborn.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let process = Identity::of(stubborn.id());
        let reaper = std::thread::spawn(move || stubborn.wait());
        let own = Identity::own().unwrap();
        let child = Child { name: "nats".into(), role: Role::Nats, process, restarts: 0, telemetry: None };
        let (nats, redis) = (String::new(), String::new());
        let state = State { supervisor: own, phase: Phase::Ready, nats, redis, drain_s: 25, children: vec![child] };
        assert!(state.leftovers());
        state.living(Role::Nats).iter().for_each(|process| process.signal_group(Signal::SIGTERM));
        assert!(state.leftovers(), "it ignores the first signal");
        state.living(Role::Nats).iter().for_each(|process| process.signal_group(Signal::SIGKILL));
        reaper.join().unwrap().unwrap();
        end_leftovers(&state).unwrap();
        assert!(!state.leftovers());
    }
}
