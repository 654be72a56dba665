//! Starts a whole local fleet: gets what is missing, chooses ports, and watches over the processes.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use nix::unistd::{Pid, getppid};
use runtime::config::ModelEntry;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::child::Launcher;
use crate::depot::Depot;
use crate::home::Home;
use crate::index::{Choice, Source};
use crate::lock::{Lock, Wait};
use crate::log::{self, Console};
use crate::machine::Machine;
use crate::plan::Plan;
use crate::process::Identity;
use crate::provision;
use crate::shelf::{Arrival, Shelf};
use crate::state::{Phase, Role, State};
use crate::supervise::{Order, Setup, Supervisor, say};
use crate::{down, fleet};

/// How long `--detach` waits for the fleet's first answer.
const ANSWER: Duration = Duration::from_secs(90);
/// How long roles are held back for the servers; they would wait by themselves, only less promptly.
const SERVERS: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);
/// Name of the log of a detached supervisor.
const OWN_LOG: &str = "flotilla";

/// `flotilla up`
#[derive(Clone, Debug, Args)]
pub(crate) struct Up {
    /// Workers to start; the cores are shared out among them.
    #[arg(long, short = 'w', env = "FLOTILLA_WORKERS", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) workers: u16,
    /// Return as soon as the fleet answers, and leave it running.
    #[arg(long, short = 'd', env = "FLOTILLA_DETACH")]
    pub(crate) detach: bool,
    #[command(flatten)]
    pub(crate) index: Choice,
    /// Be the supervisor of a detached fleet.
    #[arg(long, hide = true)]
    pub(crate) background: bool,
}

/// What only `main` knows.
#[derive(Debug)]
pub(crate) struct Surroundings {
    /// Where things lie.
    pub(crate) home: Home,
    /// Directories of PATH.
    pub(crate) path: Vec<PathBuf>,
    /// This program.
    pub(crate) program: PathBuf,
    /// What its workers load.
    pub(crate) models: Vec<ModelEntry>,
    /// Where what is missing comes from.
    pub(crate) source: Source,
    /// How long a worker may take to stop.
    pub(crate) drain: Duration,
    /// Where lines of children are shown.
    pub(crate) console: Console,
    /// Names of our own flags' variables.
    pub(crate) hidden: Vec<String>,
}

/// How `up` ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// As it was asked to.
    Well,
    /// The fleet was up before.
    WasUp,
}

/// Starts the fleet, and watches over it unless it is to be detached.
pub(crate) fn up(up: &Up, around: Surroundings) -> Result<Ended> {
    if up.background {
        // A session of its own: no terminal that closes can reach it.
        nix::unistd::setsid().context("leave the terminal")?;
        supervise(up, around)?;
        return Ok(Ended::Well);
    }
    let lock = match claim(&around.home)? {
        Claim::Mine(lock) => lock,
        Claim::Up(state) => {
            eprintln!("the fleet is up already at {} (`flotilla status`, `flotilla down`)", state.nats);
            return Ok(Ended::WasUp);
        }
    };
    if let Some(state) = State::read(&around.home)? {
        if state.leftovers() {
            eprintln!("ending what a killed fleet left behind");
            down::end_leftovers(&state)?;
        }
        State::remove(&around.home);
    }
    eprintln!("machine: {}", Machine::look());
    get_missing(&around)?;
    if up.detach {
        detach(up, &around, lock)?;
    } else {
        supervise(up, around)?;
        drop(lock);
    }
    Ok(Ended::Well)
}

enum Claim {
    /// No fleet is here, and none can come while we hold this.
    Mine(Lock),
    /// A fleet is here and answers.
    Up(State),
}

/// Waits until the fleet of this home is either ours to start or ready: another `up` may be starting it, or it stops.
fn claim(home: &Home) -> Result<Claim> {
    let mut wait = Wait::default();
    let mut starting: Option<(Identity, Instant)> = None;
    loop {
        let lock = Lock::try_take(&home.lock())?;
        let state = State::read(home)?.filter(State::supervised);
        let waits_for = match (lock, state) {
            (Some(lock), None) => return Ok(Claim::Mine(lock)),
            (None, None) => "another `flotilla up` gets what it needs".to_owned(),
            (_, Some(state)) => match state.phase {
                Phase::Ready => return Ok(Claim::Up(state)),
                Phase::Stopping => format!("the fleet at {} stops", state.nats),
                Phase::Starting => {
                    let since = starting.filter(|(supervisor, _)| *supervisor == state.supervisor);
                    let (_, since) = *starting.insert(since.unwrap_or((state.supervisor, Instant::now())));
                    if since.elapsed() > ANSWER {
                        let logs = home.logs();
                        bail!(
                            "the fleet at {} does not become ready: see {}, `flotilla down`",
                            state.nats,
                            logs.display()
                        );
                    }
                    format!("the fleet at {} starts", state.nats)
                }
            },
        };
        wait.again(&waits_for);
    }
}

/// Gets servers, models and our own programs, as far as they are missing.
pub(crate) fn get_missing(around: &Surroundings) -> Result<()> {
    let depot = Depot::of_servers(&around.home);
    // One process at a time, the others wait: it may have to build.
    let filling = depot.open()?;
    for server in [provision::NATS, provision::REDIS] {
        server.ensure(&depot.dir, &around.path, |member, to| filling.fetch(&around.source, member, to))?;
    }
    let models: Vec<&ModelEntry> = around.models.iter().collect();
    Shelf::of(&around.home).stock(&models, &around.source, |model, arrival| {
        if arrival == Arrival::Fetched {
            eprintln!("  {}: fetched (licence: {})", model.name, model.licence.as_deref().unwrap_or("unknown"));
        }
    })?;
    provision::ensure_roles(&around.home, beside(&around.program))?;
    Ok(())
}

fn beside(program: &std::path::Path) -> &std::path::Path {
    program.parent().expect("a program lies in a directory")
}

/// Starts this program once more as the supervisor. It holds the lock from now on, and nobody else.
fn in_background(up: &Up, around: &Surroundings, lock: Lock) -> Result<Child> {
    let path = around.home.log(OWN_LOG);
    fs::create_dir_all(around.home.logs())?;
    let file = fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
    let workers: OsString = up.workers.to_string().into();
    let mut supervisor = Command::new(&around.program);
    supervisor.arg("--home").arg(&around.home.dir).arg("--models").arg(around.home.models());
    if let Some(config) = &around.home.config {
        supervisor.arg("--config").arg(config);
    }
    supervisor.args(["up".into(), "--background".into(), "--workers".into(), workers]);
    supervisor.current_dir(&around.home.root).stdin(lock.into_stdin()).stdout(file.try_clone()?).stderr(file);
    supervisor.spawn().context("start the supervisor")
}

fn detach(up: &Up, around: &Surroundings, lock: Lock) -> Result<()> {
    let mut supervisor = in_background(up, around, lock)?;
    let pid = supervisor.id();
    let is_ours = |state: &State| u32::try_from(state.supervisor.pid) == Ok(pid);
    let path = around.home.log(OWN_LOG);
    let start = Instant::now();
    let mut said = 0;
    loop {
        if let Some(status) = supervisor.try_wait()? {
            bail!("the fleet ended at once ({status}):\n{}", log::tail(&path, 12));
        }
        if let Some(state) = State::read(&around.home)?.filter(|state| state.phase == Phase::Ready && is_ours(state)) {
            eprintln!("the fleet answers at {} after {:.1} s", state.nats, start.elapsed().as_secs_f32());
            return Ok(());
        }
        if start.elapsed() > ANSWER {
            let last = log::tail(&path, 12);
            down::down(&around.home)?;
            bail!("no answer within {} s, stopped; see {}:\n{last}", ANSWER.as_secs(), around.home.logs().display());
        }
        if start.elapsed().as_secs() >= said + 2 {
            said = start.elapsed().as_secs();
            eprintln!("  starting ({said} s)");
        }
        std::thread::sleep(LOOK);
    }
}

fn supervise(up: &Up, around: Surroundings) -> Result<()> {
    // One thread: children are tied to the thread that starts them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(watch_over(up, around))
}

async fn watch_over(up: &Up, around: Surroundings) -> Result<()> {
    let starter = getppid();
    let plan = Plan::make(usize::from(up.workers), &around.home, beside(&around.program))?;
    for remark in &plan.remarks {
        say(remark);
    }
    let (orders, received) = mpsc::channel(4);
    obey_signals(orders.clone())?;
    let state = State {
        supervisor: Identity::own().context("/proc is needed to watch over processes")?,
        phase: Phase::Starting,
        nats: plan.nats.clone(),
        redis: plan.redis.clone(),
        drain_s: around.drain.as_secs(),
        children: vec![],
    };
    let (exits, ended) = mpsc::unbounded_channel();
    let launcher = Launcher { leash: around.program, hidden: around.hidden, exits };
    let console = if up.background { Console::Silent } else { around.console };
    let home = around.home;
    fs::create_dir_all(home.logs())?;
    let setup = Setup { home, console, launcher, exits: ended, orders: received, state };
    let mut supervisor = Supervisor::new(setup);
    if let Err(error) = start_all(&mut supervisor, plan.clone()).await {
        supervisor.stop().await;
        return Err(error);
    }
    let workers = usize::from(up.workers);
    let starter = up.background.then_some(starter);
    tokio::spawn(async move {
        tokio::select! {
            () = fleet::answers(&plan.nats, workers) => {}
            () = orphaned(starter) => {
                say("whoever started this is gone before it was ready");
                let _ = orders.send(Order::Stop).await;
                return;
            }
        }
        say(&format!("ready: NATS {}, {workers} worker(s); try: flotilla ask 'What is NATS?'", plan.nats));
        let _ = orders.send(Order::Ready).await;
    });
    supervisor.run().await
}

/// Ends when the process that waits for a detached fleet is gone: nobody would know of that fleet.
async fn orphaned(starter: Option<Pid>) {
    let Some(starter) = starter else { return std::future::pending().await };
    while getppid() == starter {
        tokio::time::sleep(LOOK).await;
    }
}

async fn start_all(supervisor: &mut Supervisor, plan: Plan) -> Result<()> {
    let (servers, roles): (Vec<_>, Vec<_>) =
        plan.specs.into_iter().partition(|spec| matches!(spec.role, Role::Nats | Role::Redis));
    for spec in servers {
        supervisor.start(spec)?;
    }
    let ready = async {
        for port in plan.ports {
            while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                tokio::time::sleep(LOOK).await;
            }
        }
    };
    if tokio::time::timeout(SERVERS, ready).await.is_err() {
        say("the servers are slow to start; dispatcher and workers wait for them by themselves");
    }
    for spec in roles {
        supervisor.start(spec)?;
    }
    Ok(())
}

fn obey_signals(orders: mpsc::Sender<Order>) -> Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            if orders.send(Order::Stop).await.is_err() {
                return;
            }
        }
    });
    Ok(())
}
