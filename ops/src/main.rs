//! `flotilla`: the fleet on one machine, and a hand on any fleet. Only this file reads the environment.
#![forbid(unsafe_code)]

mod ask;
mod bench;
mod child;
mod client;
mod convert;
mod depot;
mod doctor;
mod down;
mod fleet;
mod home;
mod index;
mod kernels;
mod leash;
mod lock;
mod log;
mod machine;
mod models;
mod plan;
mod process;
mod progress;
mod provision;
mod quantize;
mod settings;
mod shelf;
mod show;
#[cfg(test)]
mod stage;
mod state;
mod status;
mod supervise;
mod table;
mod transfer;
mod up;
mod web;
mod wheel;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow};
use clap::{CommandFactory, Parser, Subcommand};
use protocol::Refusal;
use runtime::config::Faults;

use crate::home::Home;
use crate::index::{Choice, Source};
use crate::log::Console;
use crate::settings::Settings;
use crate::shelf::Shelf;
use crate::state::State;
use crate::up::{Ended, Surroundings};

/// `up` found the fleet up already.
const EXIT_WAS_UP: u8 = 3;

/// Runs a fleet of model workers behind NATS on this machine, and asks, watches and measures any fleet.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 110, after_help = EXAMPLES)]
struct Cli {
    /// Address of the NATS server [default: the local fleet's, else that of flotilla.toml]
    #[arg(long, global = true, env = "FLOTILLA_NATS", value_name = "URL", hide_env_values = true)]
    nats: Option<String>,
    /// Directory of the local fleet [default: .flotilla of this clone]
    #[arg(long, global = true, env = "FLOTILLA_HOME", value_name = "DIR")]
    home: Option<PathBuf>,
    /// Configuration of all roles [default: flotilla.toml of this clone, where there is one]
    #[arg(long, global = true, env = "FLOTILLA_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of the model files, a folder a model [default: models/ of the home]
    #[arg(long, global = true, env = "FLOTILLA_MODELS", value_name = "DIR")]
    models: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "Examples:
  flotilla up --workers 2 --detach       start a fleet, and return when it answers
  flotilla ask 'What is NATS?' --stream  ask it, and read along
  flotilla ask --image cat.jpg           show it a picture, play it a sound (--audio)
  flotilla status                        who is there, what waits
  flotilla doctor                        what is wrong, and what mends it
  flotilla down                          stop it; work in hand is finished first

Every flag can be given as the variable named beside it.
Exit codes: 0 well, 1 failed, 2 wrong use, 3 `up` found the fleet up already.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Start NATS, Redis, a dispatcher and workers; ctrl-C drains and stops them
    #[command(
        after_help = "Examples:\n  flotilla up\n  flotilla up --workers 4 --detach\n  FLOTILLA_WORKERS=2 flotilla up"
    )]
    Up(up::Up),
    /// Stop the local fleet, and whatever a killed one left behind
    Down,
    /// Ask one question, with pictures or sounds, or turn texts into vectors
    #[command(
        after_help = "Examples:\n  flotilla ask 'What is NATS?' --stream\n  flotilla ask --session tea 'My name is Ada.'\n  flotilla ask --session tea 'What is my name?'\n  cat essay.txt | flotilla ask - --max-tokens 64 --json\n  flotilla ask --image cat.jpg\n  flotilla ask --audio memo.ogg --format srt > memo.srt\n  flotilla ask --audio question.wav 'Answer in one sentence.'\n  flotilla ask --embed 'a cat' 'a kitten' 'a tractor'"
    )]
    Ask(ask::Ask),
    /// Show dispatchers, workers, lanes and streams; exit 1 if the fleet cannot answer
    #[command(after_help = "Examples:\n  flotilla status\n  flotilla status -j | jq '.lanes[].waiting'")]
    Status(status::Status),
    /// Show, get and quantise models
    #[command(
        subcommand,
        after_help = "Examples:\n  flotilla models list\n  flotilla models pull whisper-base\n  flotilla models quantize --int8 all-minilm-l6-v2\n  FLOTILLA_INDEX=https://user:password@mirror/simple flotilla models pull --models /srv/models"
    )]
    Models(models::Models),
    /// Check this machine and the fleet; exit 1 if a check fails
    #[command(
        after_help = "Examples:\n  flotilla doctor\n  flotilla doctor -j | jq '.[] | select(.verdict != \"ok\")'"
    )]
    Doctor(doctor::Doctor),
    /// Measure: closed-loop clients, streamed answers, no cache
    #[command(
        after_help = "Examples:\n  flotilla bench\n  flotilla bench --clients 1,8,32 --seconds 30 --json bench.json"
    )]
    Bench(bench::Bench),
    /// Get what `up` needs and is not here yet, without starting anything
    Provision(Choice),
    /// Compile the GPU kernels of this clone; no GPU is needed
    #[command(
        subcommand,
        after_help = "Examples:\n  flotilla kernels build && cargo build --release\n  flotilla kernels build --update\n  flotilla kernels build --nvrtc /usr/local/cuda/lib64"
    )]
    Kernels(kernels::Kernels),
    /// Print completions for a shell
    #[command(
        after_help = "Example:\n  flotilla completions bash > ~/.local/share/bash-completion/completions/flotilla"
    )]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    #[command(hide = true)]
    Leash(leash::Leash),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            if let Some(refusal) = error.downcast_ref::<Refusal>() {
                eprintln!("  what to do: ops/runbooks/{}.md", refusal.code);
            }
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    let here = std::env::current_dir().context("the current directory is gone")?;
    let home = Home::find(cli.home.map(|home| here.join(home)), &here);
    let home = home.with_config(cli.config.map(|config| here.join(config)));
    let home = home.with_models(cli.models.map(|models| here.join(models)));
    match cli.command {
        Command::Leash(leash) => leash.run()?,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "flotilla", &mut std::io::stdout());
        }
        Command::Up(options) => {
            if up::up(&options, surroundings(home, options.index.clone())?)? == Ended::WasUp {
                return Ok(EXIT_WAS_UP.into());
            }
        }
        Command::Down => {
            eprintln!("{}", if down::down(&home)? { "the fleet is down" } else { "no fleet is up here" });
        }
        Command::Provision(index) => up::get_missing(&surroundings(home, index)?)?,
        Command::Kernels(kernels) => kernels.run(&home, pip_index())?,
        Command::Models(models) => {
            let (pip, nats, program) = (pip_index(), address(cli.nats, &home), program()?);
            models.run(&config(&home)?, &Shelf::of(&home), models::Surroundings { pip, nats, program })?;
        }
        command => return speak(command, &address(cli.nats, &home), &home),
    }
    Ok(ExitCode::SUCCESS)
}

/// The commands that speak with a fleet.
fn speak(command: Command, url: &str, home: &Home) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let good = runtime.block_on(async {
        match command {
            Command::Ask(ask) => ask.run(url).await.map(|()| true),
            Command::Bench(bench) => bench.run(url).await.map(|()| true),
            Command::Status(status) => status.run(url, home).await,
            Command::Doctor(doctor) => Ok(doctor
                .run(doctor::Patient { home, nats: url, config: load(home).map(|settings| settings.common) })
                .await),
            _ => unreachable!("`run` keeps the others"),
        }
    })?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The given address, else that of the fleet which is up here, else the configured one.
fn address(given: Option<String>, home: &Home) -> String {
    let local = || State::read(home).ok().flatten().filter(State::supervised).map(|state| state.nats);
    let configured =
        || load(home).map_or_else(|_| runtime::config::Nats::default().url, |settings| settings.common.nats.url);
    given.or_else(local).unwrap_or_else(configured)
}

fn surroundings(home: Home, index: Choice) -> Result<Surroundings> {
    let settings = config(&home)?;
    let drain = settings.drain();
    let models = settings.wanted().into_iter().cloned().collect();
    let path = std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    let program = program()?;
    let console = Console::of_stdout(std::env::var("NO_COLOR").ok().as_deref());
    let hidden = own_variables().into_iter().collect();
    let source = Source::choose(index, pip_index());
    Ok(Surroundings { home, path, program, models, source, drain, console, hidden })
}

fn program() -> Result<PathBuf> {
    std::env::current_exe().context("find this program")
}

/// The package index that this machine's Python is set to.
fn pip_index() -> Option<String> {
    std::env::var("PIP_INDEX_URL").ok()
}

fn config(home: &Home) -> Result<Settings> {
    load(home).map_err(|faults| anyhow!("configuration:\n  {}", faults.0.join("\n  ")))
}

fn load(home: &Home) -> Result<Settings, Faults> {
    let own = own_variables();
    runtime::config::load(home.config.as_deref(), std::env::vars().filter(|(name, _)| !own.contains(name)))
}

/// Variables of this program's own flags: the roles would refuse them as unknown settings.
fn own_variables() -> BTreeSet<String> {
    fn collect(command: &clap::Command, names: &mut BTreeSet<String>) {
        let of_flags = command.get_arguments().filter_map(|flag| flag.get_env());
        names.extend(of_flags.map(|name| name.to_string_lossy().into_owned()));
        command.get_subcommands().for_each(|command| collect(command, names));
    }
    let mut names = BTreeSet::from(["FLOTILLA_BIN".to_owned()]);
    collect(&Cli::command(), &mut names);
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_flag_has_its_variable() {
        fn check(command: &clap::Command) {
            for flag in command.get_arguments().filter(|flag| flag.get_long().is_some() && !flag.is_hide_set()) {
                let variable = flag.get_env().map(|name| name.to_string_lossy().into_owned());
                assert!(variable.is_some_and(|name| name.starts_with("FLOTILLA_")), "{flag} of {}", command.get_name());
            }
            command.get_subcommands().filter(|command| !command.is_hide_set()).for_each(check);
        }
        Cli::command().debug_assert();
        check(&Cli::command());
    }

    #[test]
    fn our_own_variables_stay_with_us() {
        let own = own_variables();
        for name in ["FLOTILLA_WORKERS", "FLOTILLA_HOME", "FLOTILLA_MODELS", "FLOTILLA_INDEX", "FLOTILLA_MAX_TOKENS"] {
            assert!(own.contains(name), "{name}");
        }
    }

    #[test]
    fn every_error_code_has_its_page() {
        let pages = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("runbooks");
        for code in protocol::ErrorCode::ALL {
            assert!(pages.join(format!("{code}.md")).is_file(), "ops/runbooks/{code}.md");
        }
    }
}
