//! A whole fleet of real servers and real binaries, killed on drop.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::client::Client;
use crate::role::Role;
use crate::servers::{NatsServer, RedisServer};
use crate::wait::until;

/// Which model a fleet has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// Random weights: fast, and never ends before `max_tokens`.
    Tiny,
    /// The real one.
    SmolLm2,
    /// One of every modality, all real.
    Every,
}

/// What a fleet is made of.
#[derive(Clone, Debug)]
pub struct FleetOptions {
    /// How many workers.
    pub workers: usize,
    /// What they have loaded.
    pub model: Model,
    /// Jobs at once, a worker.
    pub slots: u32,
    /// Jobs that may wait in one lane.
    pub lane_jobs_max: u32,
    /// Seconds for which a stopping worker finishes what it has.
    pub drain_s: u32,
    /// `relaxed`, or `strict` beside a cluster.
    pub durability: &'static str,
}

impl Default for FleetOptions {
    fn default() -> Self {
        Self { workers: 1, model: Model::Tiny, slots: 32, lane_jobs_max: 1000, drain_s: 25, durability: "relaxed" }
    }
}

/// A fleet.
pub struct Fleet {
    /// The dispatcher that tests ask.
    pub dispatcher: Role,
    /// Others beside it.
    pub dispatchers: Vec<Role>,
    /// The workers, the dead among them.
    pub workers: Vec<Role>,
    /// The bus.
    pub nats: NatsServer,
    /// Sessions and cache.
    pub redis: RedisServer,
    folder: TempDir,
    model: Model,
}

impl Fleet {
    /// Starts everything and waits until the dispatcher knows all workers.
    pub async fn start(options: FleetOptions) -> (Fleet, Client) {
        let (nats, redis) = (NatsServer::start(), RedisServer::start());
        let mut fleet = Fleet::beside(nats, redis, &options);
        for _ in 0..options.workers {
            fleet.add_worker();
        }
        fleet.ready().await;
        let client = Client::connect(&fleet.nats.url()).await;
        (fleet, client)
    }

    /// Starts a dispatcher only, beside servers that need not run.
    ///
    /// # Panics
    /// When its files cannot be written.
    #[must_use]
    pub fn beside(nats: NatsServer, redis: RedisServer, options: &FleetOptions) -> Fleet {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let text = configuration(&nats.url(), &redis, options, folder.path());
        std::fs::write(folder.path().join("flotilla.toml"), text).expect("a temporary file");
        let dispatcher = Role::start("dispatcher", "dispatcher", folder.path());
        Fleet { dispatcher, dispatchers: Vec::new(), workers: Vec::new(), nats, redis, folder, model: options.model }
    }

    /// Waits until every process is ready and the dispatcher knows all workers.
    pub async fn ready(&mut self) {
        self.dispatcher.ready().await;
        for worker in &mut self.workers {
            worker.ready().await;
        }
        self.known(self.workers.len()).await;
    }

    /// Waits until the dispatcher knows so many workers.
    pub async fn known(&self, workers: usize) {
        until(&format!("{workers} workers in the dispatcher's view"), Duration::from_secs(30), || async {
            let ready = self.dispatcher.metric("flotilla_workers_ready", "").await;
            (ready as usize == workers).then_some(())
        })
        .await;
    }

    /// Starts one more worker, without waiting for it; its number.
    pub fn add_worker(&mut self) -> usize {
        let name = format!("worker-{}", self.workers.len());
        self.workers.push(Role::start("worker", &name, self.folder.path()));
        self.workers.len() - 1
    }

    /// Starts one more dispatcher, and waits until it is ready.
    pub async fn add_dispatcher(&mut self) {
        let name = format!("dispatcher-{}", self.dispatchers.len() + 1);
        let mut dispatcher = Role::start("dispatcher", &name, self.folder.path());
        dispatcher.ready().await;
        self.dispatchers.push(dispatcher);
    }

    /// The dispatcher dies.
    pub fn kill_dispatcher(&mut self) {
        self.dispatcher.kill9();
    }

    /// Another dispatcher starts.
    pub async fn start_dispatcher(&mut self) {
        self.dispatcher = Role::start("dispatcher", "dispatcher-again", self.folder.path());
        self.dispatcher.ready().await;
    }

    /// The worker that took the fleet's first job.
    pub async fn first_taker(&self) -> usize {
        until("a worker that takes a job", Duration::from_secs(30), || async {
            for (number, worker) in self.workers.iter().enumerate() {
                if worker.metric("flotilla_tokens_total", "direction=\"in\"").await > 0.0 {
                    return Some(number);
                }
            }
            None
        })
        .await
    }

    /// Name of the model in requests.
    #[must_use]
    pub fn model(&self) -> &'static str {
        match self.model {
            Model::Tiny => "tiny",
            Model::SmolLm2 | Model::Every => "smollm2-135m-instruct",
        }
    }

    /// Empties Redis, as an eviction or a new server would.
    ///
    /// # Panics
    /// When Redis is away.
    pub async fn flush_redis(&self) {
        let client = redis::Client::open(self.redis.url()).expect("an address");
        let mut connection = client.get_multiplexed_async_connection().await.expect("a Redis");
        redis::cmd("FLUSHALL").exec_async(&mut connection).await.expect("a flushed Redis");
    }
}

/// The configuration of a fleet at this NATS; the files of a tiny model go into `folder`.
///
/// # Panics
/// When they cannot be written.
#[must_use]
pub fn configuration(nats: &str, redis: &RedisServer, options: &FleetOptions, folder: &Path) -> String {
    let redis = redis.url();
    let mut text = String::new();
    let _ = write!(
        text,
        r#"
[nats]
url = "{nats}"
[redis]
sessions = "{redis}"
cache = "{redis}"
[telemetry]
log = "json"
filter = "info"
[streams]
durability = "{durability}"
lane_jobs_max = {lane}
[worker]
slots = {slots}
drain_s = {drain}
threads = {threads}
models_dir = "{models}"
"#,
        durability = options.durability,
        lane = options.lane_jobs_max,
        slots = options.slots,
        drain = options.drain_s,
        threads = (std::thread::available_parallelism().map_or(1, usize::from) / options.workers.max(1)).max(1),
        models = models(options.model, folder).display(),
    );
    if let Some(loaded) = loaded(options.model) {
        let _ = writeln!(text, "models = {loaded}");
    }
    if options.model == Model::Tiny {
        let file = folder.join("models/tiny/tiny.gguf");
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("a temporary folder");
        engine::fixture::tiny_llama(&file, 7);
        let hash = Sha256::digest(std::fs::read(&file).expect("a temporary file"));
        let _ = write!(
            text,
            r#"
[[model]]
name = "tiny"
tasks = ["chat", "complete"]
modality = "text"
file = "tiny.gguf"
sha256 = "{hash}"
precision = "q4_1"
context = 512
"#,
            hash = hash.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}")),
        );
    }
    text
}

/// Which models of the catalogue a worker loads; all of them where it is not said.
fn loaded(model: Model) -> Option<&'static str> {
    match model {
        Model::Tiny => None,
        Model::SmolLm2 => Some(r#"["smollm2-135m-instruct"]"#),
        Model::Every => {
            Some(r#"["smollm2-135m-instruct", "all-minilm-l6-v2", "efficientnet-lite0", "whisper-tiny.en"]"#)
        }
    }
}

fn models(model: Model, folder: &Path) -> PathBuf {
    match model {
        Model::Tiny => folder.join("models"),
        Model::SmolLm2 | Model::Every => {
            let file = engine::fixture::smollm2();
            file.ancestors().nth(2).expect("a folder of models").to_path_buf()
        }
    }
}
