//! `flotilla status`: the fleet, its queues and, for a local one, its processes.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use protocol::heartbeat::{Heartbeat, INTERVAL};
use serde::Serialize;

use crate::fleet::{self, Dispatcher, Lane, Stream};
use crate::home::Home;
use crate::state::{Child, State};
use crate::table::table;

/// `flotilla status`
#[derive(Clone, Debug, Args)]
pub(crate) struct Status {
    /// Print JSON.
    #[arg(long, short, env = "FLOTILLA_JSON")]
    json: bool,
}

/// What there is.
#[derive(Debug, Serialize)]
struct View {
    nats: String,
    server: String,
    ready: bool,
    dispatchers: Vec<Dispatcher>,
    workers: Vec<Heartbeat>,
    streams: Vec<Stream>,
    lanes: Vec<Lane>,
    processes: Vec<Child>,
}

impl Status {
    /// Prints it. Whether the fleet can answer.
    pub(crate) async fn run(self, url: &str, home: &Home) -> Result<bool> {
        let client = fleet::connect(url).await?;
        // One heartbeat of every worker falls into this time.
        let wait = INTERVAL + Duration::from_millis(300);
        let (dispatchers, workers, queues) = tokio::join!(
            fleet::dispatchers(&client, Duration::from_millis(500)),
            fleet::workers(&client, wait),
            fleet::queues(&client)
        );
        let (dispatchers, workers) = (dispatchers?, workers?);
        let (streams, lanes) = queues?;
        let processes = State::read(home)?.filter(|state| state.supervised() && state.nats == url);
        let view = View {
            nats: url.to_owned(),
            server: client.server_info().version,
            ready: !dispatchers.is_empty() && !workers.is_empty(),
            dispatchers,
            workers,
            streams,
            lanes,
            processes: processes.map(|state| state.children).unwrap_or_default(),
        };
        if self.json {
            println!("{}", serde_json::to_string_pretty(&view)?);
        } else {
            print(&view);
        }
        Ok(view.ready)
    }
}

fn print(view: &View) {
    println!("NATS {} at {}", view.server, view.nats);
    section(
        "dispatchers",
        &["id", "version", "requests", "errors"],
        view.dispatchers.iter().map(dispatcher_row).collect(),
    );
    let head = ["worker", "version", "device", "state", "models", "slots free", "step ms"];
    section("workers", &head, view.workers.iter().map(worker_row).collect());
    let lanes = view.lanes.iter().map(|lane| {
        vec![lane.name.clone(), lane.waiting.to_string(), lane.in_hand.to_string(), lane.redelivered.to_string()]
    });
    section("lanes", &["lane", "waiting", "in hand", "redelivered"], lanes.collect());
    let streams = view.streams.iter().map(|s| vec![s.name.clone(), s.messages.to_string(), s.bytes.to_string()]);
    section("streams", &["stream", "messages", "bytes"], streams.collect());
    if !view.processes.is_empty() {
        let head = ["process", "pid", "restarts", "metrics"];
        section("processes of this machine", &head, view.processes.iter().map(process_row).collect());
    }
    if !view.ready {
        println!("\nthis fleet cannot answer now: flotilla doctor");
    }
}

fn section(title: &str, head: &[&str], rows: Vec<Vec<String>>) {
    if rows.is_empty() {
        println!("\nno {title}");
    } else {
        println!("\n{}", table(head, &rows));
    }
}

fn dispatcher_row(dispatcher: &Dispatcher) -> Vec<String> {
    let sum = |count: fn(&fleet::Endpoint) -> u64| dispatcher.endpoints.iter().map(count).sum::<u64>().to_string();
    vec![
        dispatcher.id.clone(),
        dispatcher.version.clone(),
        sum(|endpoint| endpoint.num_requests),
        sum(|endpoint| endpoint.num_errors),
    ]
}

fn worker_row(beat: &Heartbeat) -> Vec<String> {
    let models = beat.models.iter().map(|model| format!("{}@{}", model.name, model.precision));
    vec![
        beat.worker.to_string(),
        beat.release.clone(),
        beat.device.clone(),
        format!("{:?}", beat.state).to_lowercase(),
        models.collect::<Vec<_>>().join(" "),
        format!("{}/{}", beat.slots_free, beat.slots),
        format!("{:.1}", beat.step_seconds * 1000.0),
    ]
}

fn process_row(child: &Child) -> Vec<String> {
    let pid = child.process.map_or_else(|| "starts again".to_owned(), |process| process.pid.to_string());
    let metrics = child.telemetry.as_ref().map(|address| format!("{address}/metrics")).unwrap_or_default();
    vec![child.name.clone(), pid, child.restarts.to_string(), metrics]
}
