//! A worker of a fleet: pulls jobs, answers clients.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock, OnceLock};

use anyhow::Context;
use clap::{Parser, Subcommand};
use mimalloc::MiMalloc;
use runtime::config::EXIT_FAULTY;
use runtime::health::Health;
use runtime::memory::allowed_bytes;
use runtime::telemetry::Metrics;
use runtime::{bus, cache, config, health, sessions, telemetry};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use worker::config::Device;
use worker::native::rounding;
use worker::reader::Reader;
use worker::{Config, Worker, memory, metrics, native, pull, queue, run, worker as parts};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Runs models for a fleet: pulls jobs from NATS, streams answers to clients, stores results.
///
/// Settings come from the configuration, then from the environment (FLOTILLA_WORKER__SLOTS=8 sets `slots` of
/// `[worker]`), then from these flags.
#[derive(Parser)]
#[command(
    version = VERSION.as_str(),
    after_help = "Examples:\n  worker --config flotilla.toml\n  \
    FLOTILLA_NATS=nats://10.0.0.1:4222 FLOTILLA_REDIS=redis://10.0.0.1:6379 worker --models /srv/models"
)]
struct Arguments {
    /// The fleet's flotilla.toml; built-in defaults without it.
    #[arg(long, env = "FLOTILLA_CONFIG", value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Folder of the model files.
    #[arg(long, env = "FLOTILLA_MODELS", value_name = "DIR")]
    models: Option<PathBuf>,
    /// What computes: a GPU where there is one (auto), the processor (cpu), or a GPU and nothing else (cuda).
    #[arg(long, env = "FLOTILLA_DEVICE", value_name = "DEVICE", value_enum)]
    device: Option<Device>,
    /// What to do; runs the worker without.
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Asks the worker of this configuration whether it is ready: exit code 0 if so, else 1.
    Healthcheck,
    /// Writes an encoder's file with the weights of its products rounded to a byte, and says as JSON what that costs:
    /// what `flotilla models quantize` runs.
    Quantize {
        /// The model's file.
        from: PathBuf,
        /// The file to write.
        to: PathBuf,
    },
}

/// Which build this is, and for which devices it computes.
static VERSION: LazyLock<String> = LazyLock::new(|| format!("{}, {}", *runtime::RELEASE, engine::cuda::embedded()));

/// Something failed.
const EXIT_FAILURE: u8 = 1;

fn main() -> ExitCode {
    let mut arguments = Arguments::parse();
    let command = arguments.command.take();
    if let Some(Command::Quantize { from, to }) = &command {
        return quantize(from, to);
    }
    let config = match configure(arguments) {
        Ok(config) => config,
        Err(faults) => {
            eprintln!("the configuration cannot be used:\n{faults}");
            return ExitCode::from(EXIT_FAULTY);
        }
    };
    if let Some(Command::Healthcheck) = command {
        return health::healthcheck(&config.common.telemetry);
    }
    match start(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            match tracing::dispatcher::has_been_set() {
                true => tracing::error!("{error:#}"),
                false => eprintln!("worker: {error:#}"),
            }
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

/// Needs no configuration: whoever calls it knows the files.
fn quantize(from: &Path, to: &Path) -> ExitCode {
    let report = rounding::round(from, to).map_err(anyhow::Error::from);
    match report.and_then(|report| Ok(serde_json::to_string(&report)?)) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

fn configure(arguments: Arguments) -> Result<Config, config::Faults> {
    let mut config: Config = config::load(arguments.config.as_deref(), std::env::vars())?;
    if let Some(models) = arguments.models {
        config.worker.models_dir = models;
    }
    if let Some(device) = arguments.device {
        config.worker.device = device;
    }
    config.check()?;
    Ok(config)
}

fn start(config: Config) -> anyhow::Result<()> {
    let guard = telemetry::init(&config.common.telemetry)?;
    metrics::describe();
    // One thread: what waits for it goes out in one write. Engines and decoding have threads of their own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio")?;
    let result = runtime.block_on(work(config, guard.metrics()));
    // A walk that hangs on a dead server must not keep the process.
    runtime.shutdown_background();
    result
}

async fn work(config: Config, measured: Metrics) -> anyhow::Result<()> {
    let stop = stop_on_signals()?;
    let started = Started::default();
    let over = CancellationToken::new();
    let _over = over.clone().drop_guard();
    if let Some(listen) = config.common.telemetry.listen {
        let (stopping, started) = (stop.clone(), started.clone());
        let ready = Arc::new(move || started.ready(&stopping));
        health::serve(listen, Health { ready, metrics: measured }, over).await?;
    }
    let Some(worker) = assemble(&config, &stop).await? else { return early() };
    let worker = Arc::new(worker);
    let _ = started.equipped.set(());
    let sources = pull::sources(&worker.models);
    tokio::select! {
        lanes = queue::lanes(&worker.bus, &sources) => lanes?,
        () = stop.cancelled() => return early(),
    }
    let _ = started.worker.set(Arc::clone(&worker));
    let result = run::run(Arc::clone(&worker), config.drain(), stop).await;
    if result.is_ok() {
        worker.models.iter().for_each(|model| model.engine.stop());
    }
    Ok(result?)
}

fn early() -> anyhow::Result<()> {
    tracing::info!("stopped before it was ready");
    Ok(())
}

/// Loads the models while the connection is made; `None` when told to stop before both are there.
async fn assemble(config: &Config, stop: &CancellationToken) -> anyhow::Result<Option<Worker>> {
    let loading = config.clone();
    let equipment = tokio::task::spawn_blocking(move || native::load(&loading));
    let name = parts::fresh_name();
    let connected = async { anyhow::Ok(bus::connect(&config.common.nats, name.as_str()).await?) };
    // A model that cannot be loaded is said at once, whether or not NATS is there.
    let both = async { tokio::try_join!(async { anyhow::Ok(equipment.await.context("loading")??) }, connected) };
    let (equipment, bus) = tokio::select! {
        both = both => both?,
        () = stop.cancelled() => return Ok(None),
    };
    Ok(Some(Worker {
        name,
        bus,
        sessions: sessions::Sessions::new(&config.common.redis)?,
        responses: cache::Responses::new(&config.common.redis)?,
        rank: config.rank(equipment.kind),
        device: equipment.device,
        models: equipment.models,
        reader: Reader::new(memory::media(allowed_bytes())),
        slots: config.worker.slots.get() as usize,
        now: parts::Now::default(),
    }))
}

/// What `/readyz` asks.
#[derive(Clone, Default)]
struct Started {
    /// Models and NATS are there.
    equipped: Arc<OnceLock<()>>,
    worker: Arc<OnceLock<Arc<Worker>>>,
}

impl Started {
    fn ready(&self, stopping: &CancellationToken) -> Result<(), String> {
        if stopping.is_cancelled() {
            return Err("stopping".to_owned());
        }
        match self.worker.get() {
            None if self.equipped.get().is_some() => Err("waiting for a dispatcher to make the lanes".to_owned()),
            None => Err("starting".to_owned()),
            Some(worker) if !worker.bus.connected() => Err("no connection to NATS".to_owned()),
            Some(worker) if worker.now.stalled.load(Ordering::Relaxed) => Err("an engine makes no steps".to_owned()),
            Some(worker) if worker.now.astray.load(Ordering::Relaxed) => Err("every lane refuses pulls".to_owned()),
            Some(_) => Ok(()),
        }
    }
}

/// The first signal asks for a kind stop, the second ends the process.
fn stop_on_signals() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let asked = stop.clone();
    tokio::spawn(async move {
        let mut signalled = async || tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} };
        signalled().await;
        asked.cancel();
        signalled().await;
        eprintln!("worker: stopped at once; what was in hand goes to others");
        std::process::exit(i32::from(EXIT_FAILURE));
    });
    Ok(stop)
}
