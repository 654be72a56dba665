//! `flotilla-dispatcher`: reads the environment, handles signals, and runs a dispatcher.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use dispatcher::Config;
use mimalloc::MiMalloc;
use runtime::config::EXIT_FAULTY;
use runtime::health;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Takes requests from NATS, decides what they are and where they go, and queues them for the workers.
#[derive(Debug, Parser)]
#[command(
    name = "dispatcher",
    version = runtime::RELEASE.as_str(),
    after_help = "Examples:\n  dispatcher --config flotilla.toml\n  FLOTILLA_NATS__URL=nats://nats:4222 dispatcher\n\n\
                  Every setting of flotilla.toml has a variable: FLOTILLA_SECTION__KEY."
)]
struct Args {
    /// Configuration; without one, the defaults and the environment count.
    #[arg(long, short, env = "FLOTILLA_CONFIG", value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// What to do; runs the dispatcher without.
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Asks the dispatcher of this configuration whether it is ready: exit code 0 if so, else 1.
    Healthcheck,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let config = runtime::config::load::<Config>(args.config.as_deref(), std::env::vars())
        .map_err(|faults| faults.to_string())
        .and_then(|config| config.check().map_err(|error| error.to_string()));
    let config = match config {
        Ok(config) => config,
        Err(faults) => {
            eprintln!("{faults}");
            return ExitCode::from(EXIT_FAULTY);
        }
    };
    if let Some(Command::Healthcheck) = args.command {
        return health::healthcheck(&config.common.telemetry);
    }
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(config: dispatcher::config::Checked) -> anyhow::Result<()> {
    let guard = runtime::telemetry::init(&config.common.telemetry).context("telemetry")?;
    // One thread: what waits for it goes out in one write, and more dispatchers are more threads.
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().context("tokio")?;
    executor.block_on(async {
        let stop = CancellationToken::new();
        tokio::spawn(signals(stop.clone()));
        dispatcher::run(config, guard.metrics(), stop).await
    })?;
    Ok(())
}

/// The first signal stops; the second one does not wait.
async fn signals(stop: CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals cannot be handled");
        return;
    };
    for round in 0..2 {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if round == 0 {
            tracing::info!("stopping; once more to stop at once");
            stop.cancel();
        }
    }
    std::process::exit(130);
}
