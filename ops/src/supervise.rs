//! The supervisor: one loop over a closed set of happenings. It starts children, starts dead ones again, and stops all.

use std::process::ExitStatus;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::sys::signal::Signal;
use runtime::config::EXIT_FAULTY;
use tokio::sync::mpsc;

use crate::child::{Exit, Launcher, Spec, WELL_AFTER, backoff};
use crate::home::Home;
use crate::log::{self, Console, Log};
use crate::process::Identity;
use crate::state::{Child, Phase, Role, State};

/// What workers get beyond their own drain: they give back what they could not finish.
const DRAIN_ROOM: Duration = Duration::from_secs(10);
/// Everybody else ends quickly: the longest is a dispatcher with its drain of 10 s and its last frames.
const DRAIN_OTHERS: Duration = Duration::from_secs(15);

/// Lines of a dead child's log that are shown.
const LAST_WORDS: usize = 4;

/// What is told to a supervisor from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Ctrl-C or SIGTERM; a second one means at once.
    Stop,
    /// Every part of the fleet answers.
    Ready,
}

#[derive(Debug)]
enum Happening {
    Exited(Exit),
    Again(usize),
    Ordered(Order),
}

struct Running {
    spec: Spec,
    log: Arc<Mutex<Log>>,
    process: Option<Identity>,
    since: Instant,
    restarts: u32,
    deaths_in_a_row: u32,
}

/// A running fleet.
pub(crate) struct Supervisor {
    home: Home,
    console: Console,
    launcher: Launcher,
    exits: mpsc::UnboundedReceiver<Exit>,
    again: (mpsc::UnboundedSender<usize>, mpsc::UnboundedReceiver<usize>),
    orders: mpsc::Receiver<Order>,
    children: Vec<Running>,
    state: State,
}

/// What a supervisor is made with.
#[derive(Debug)]
pub(crate) struct Setup {
    /// Where things lie.
    pub(crate) home: Home,
    /// Where children's lines are shown.
    pub(crate) console: Console,
    /// How children are started.
    pub(crate) launcher: Launcher,
    /// Where their ends are told.
    pub(crate) exits: mpsc::UnboundedReceiver<Exit>,
    /// Where it is told what to do.
    pub(crate) orders: mpsc::Receiver<Order>,
    /// How it begins.
    pub(crate) state: State,
}

impl Supervisor {
    /// Of nothing yet.
    pub(crate) fn new(setup: Setup) -> Supervisor {
        let Setup { home, console, launcher, exits, orders, state } = setup;
        Supervisor { home, console, launcher, exits, again: mpsc::unbounded_channel(), orders, children: vec![], state }
    }

    /// Starts one more child.
    pub(crate) fn start(&mut self, spec: Spec) -> Result<()> {
        let index = self.children.len();
        // Servers say much that is of no interest while they live; it stands in their files.
        let console = if matches!(spec.role, Role::Nats | Role::Redis) { Console::Silent } else { self.console };
        let log = Log::open(&self.home.log(&spec.name), &spec.name, index, console)?;
        let log = Arc::new(Mutex::new(log));
        let process = self.launcher.start(index, &spec, &log)?;
        let since = Instant::now();
        self.children.push(Running { spec, log, process, since, restarts: 0, deaths_in_a_row: 0 });
        self.publish()
    }

    /// Watches until it is told to stop, then stops all. An error says why the fleet could not go on.
    pub(crate) async fn run(mut self) -> Result<()> {
        let ended = loop {
            match self.next().await {
                Happening::Exited(exit) => {
                    if let Err(error) = self.buried(&exit) {
                        break Err(error);
                    }
                }
                Happening::Again(index) => self.start_again(index),
                Happening::Ordered(Order::Ready) => {
                    self.state.phase = Phase::Ready;
                    if let Err(error) = self.publish() {
                        break Err(error);
                    }
                }
                Happening::Ordered(Order::Stop) => break Ok(()),
            }
        };
        self.stop().await;
        ended
    }

    /// Stops all in order; what does not go in time, or at a second order to stop, is killed.
    pub(crate) async fn stop(mut self) {
        self.state.phase = Phase::Stopping;
        let _ = self.publish();
        say("stopping: workers finish what they have (ctrl-C again: at once)");
        for role in Role::STOP_ORDER {
            let drain = Duration::from_secs(self.state.drain_s) + DRAIN_ROOM;
            let limit = if role == Role::Worker { drain } else { DRAIN_OTHERS };
            self.signal(role, Signal::SIGTERM);
            let deadline = tokio::time::Instant::now() + limit;
            while self.children.iter().any(|child| child.spec.role == role && child.process.is_some()) {
                tokio::select! {
                    Some(exit) = self.exits.recv() => self.children[exit.index].process = None,
                    order = self.orders.recv() => match order {
                        Some(Order::Ready) => {}
                        Some(Order::Stop) | None => return self.kill_all(),
                    },
                    () = tokio::time::sleep_until(deadline) => {
                        self.signal(role, Signal::SIGKILL);
                        break;
                    }
                }
            }
        }
        State::remove(&self.home);
        say("stopped");
    }

    async fn next(&mut self) -> Happening {
        tokio::select! {
            Some(exit) = self.exits.recv() => Happening::Exited(exit),
            Some(index) = self.again.1.recv() => Happening::Again(index),
            order = self.orders.recv() => Happening::Ordered(order.unwrap_or(Order::Stop)),
        }
    }

    fn buried(&mut self, exit: &Exit) -> Result<()> {
        let child = &mut self.children[exit.index];
        child.process = None;
        child.deaths_in_a_row = if child.since.elapsed() >= WELL_AFTER { 1 } else { child.deaths_in_a_row + 1 };
        let name = child.spec.name.clone();
        let last_words = log::tail(&self.home.log(&name), LAST_WORDS);
        if exit.status.and_then(|status| status.code()) == Some(EXIT_FAULTY.into()) {
            bail!("{name} refuses its configuration:\n{last_words}");
        }
        let pause = backoff(child.deaths_in_a_row);
        say(&format!("{name} ended ({}), starts again in {:.1} s", how(exit.status), pause.as_secs_f32()));
        if matches!(child.spec.role, Role::Nats | Role::Redis) {
            say(&format!("its last words:\n{last_words}"));
        }
        let (again, index) = (self.again.0.clone(), exit.index);
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let _ = again.send(index);
        });
        self.publish()
    }

    fn start_again(&mut self, index: usize) {
        let child = &mut self.children[index];
        child.restarts += 1;
        child.since = Instant::now();
        match self.launcher.start(index, &child.spec, &child.log) {
            Ok(process) => child.process = process,
            // The same path as a death, so that the pause grows.
            Err(error) => {
                say(&format!("{} could not be started: {error:#}", child.spec.name));
                let _ = self.launcher.exits.send(Exit { index, status: None });
            }
        }
        if let Err(error) = self.publish() {
            say(&format!("{error:#}"));
        }
    }

    fn signal(&self, role: Role, signal: Signal) {
        for child in self.children.iter().filter(|child| child.spec.role == role) {
            if let Some(process) = child.process {
                process.signal_group(signal);
            }
        }
    }

    fn kill_all(&self) {
        for role in Role::STOP_ORDER {
            self.signal(role, Signal::SIGKILL);
        }
        State::remove(&self.home);
        say("killed");
    }

    fn publish(&mut self) -> Result<()> {
        let seen = |child: &Running| Child {
            name: child.spec.name.clone(),
            role: child.spec.role,
            process: child.process,
            restarts: child.restarts,
            telemetry: child.spec.telemetry.clone(),
        };
        self.state.children = self.children.iter().map(seen).collect();
        self.state.write(&self.home)
    }
}

/// A line of the supervisor's own.
pub(crate) fn say(line: &str) {
    use std::io::Write;
    // The terminal may be gone; the fleet stays.
    let _ = writeln!(std::io::stdout(), "flotilla   | {line}");
}

fn how(status: Option<ExitStatus>) -> String {
    use std::os::unix::process::ExitStatusExt;
    let Some(status) = status else { return "it could not be started".to_owned() };
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit {code}"),
        (None, Some(signal)) => {
            Signal::try_from(signal).map_or(format!("signal {signal}"), |name| name.as_str().to_owned())
        }
        (None, None) => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn ends_are_told_in_words() {
        assert_eq!(how(Some(ExitStatus::from_raw(9))), "SIGKILL");
        assert_eq!(how(Some(ExitStatus::from_raw(3 << 8))), "exit 3");
        assert_eq!(how(None), "it could not be started");
    }
}
