//! A worker of the fleet whose model computes nothing: it says what it is told, so that only the way is timed.
//!
//! usage: noop --config noop.toml; further settings in the environment, as any worker has them

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use mimalloc::MiMalloc;
use protocol::Refusal;
use protocol::answer::Finish;
use protocol::heartbeat::Loaded;
use protocol::media::Modality;
use protocol::request::Task;
use runtime::cache::Responses;
use runtime::sessions::Sessions;
use runtime::{bus, config, telemetry};
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;
use worker::metrics::{self, Meters};
use worker::model::{Ask, Cancel, End, Engine, Event, Model, Prompt, Reading, Stats, Traits, Work};
use worker::reader::{Reader, Stop};
use worker::worker::{Now, fresh_name};
use worker::{Config, Worker, memory, pull, queue, run};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Ends every job at once. Its tokens are the bytes of the last message.
struct Noop;

impl Engine for Noop {
    fn read(&self, prompt: &Prompt, _stop: &Stop) -> Result<Reading, Refusal> {
        match prompt {
            Prompt::Chat(messages) => {
                let (_, text) = messages.last().ok_or_else(|| Refusal::invalid("nothing is said"))?;
                Ok(Reading::Tokens(text.bytes().map(u32::from).collect()))
            }
            _ => Err(Refusal::invalid("this model only chats")),
        }
    }

    fn submit(&self, work: Work, events: UnboundedSender<Event>) -> Result<(), Refusal> {
        let Ask::Generate(generate) = work.ask else { return Err(Refusal::invalid("this model only chats")) };
        let bytes: Vec<u8> = generate.tokens.iter().filter_map(|&token| u8::try_from(token).ok()).collect();
        let (input_tokens, output_tokens) = (bytes.len(), 1);
        let chunk = Event::Chunk(String::from_utf8_lossy(&bytes).into_owned());
        let end = Event::Ended(End::Done { finish: Finish::Stop, input_tokens, output_tokens });
        // Nobody hears a job whose walk is over.
        let _ = [chunk, end].into_iter().try_for_each(|event| events.send(event));
        Ok(())
    }

    fn cancel(&self, _key: u64, _why: Cancel) {}

    fn stats(&self) -> Stats {
        Stats::default()
    }

    fn stop(&self) {}
}

/// The one model of the catalogue, on an engine that has none.
fn model(config: &Config) -> Result<Model> {
    let entry = config.common.models.first().context("an empty catalogue")?;
    Ok(Model {
        loaded: Loaded {
            name: entry.name.clone(),
            digest: entry.sha256.clone(),
            precision: entry.precision.clone(),
            context: entry.context,
        },
        modality: Modality::Text,
        tasks: vec![Task::Chat],
        traits: Traits::default(),
        meters: Meters::of(&entry.name),
        engine: Arc::new(Noop),
    })
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let file = std::env::args().skip_while(|argument| argument != "--config").nth(1);
    let config: Config = config::load(file.as_deref().map(Path::new), std::env::vars())?;
    let _telemetry = telemetry::init(&config.common.telemetry)?;
    metrics::describe();
    let name = fresh_name();
    let worker = Worker {
        bus: bus::connect(&config.common.nats, name.as_str()).await?,
        name,
        sessions: Sessions::new(&config.common.redis)?,
        responses: Responses::new(&config.common.redis)?,
        device: "cpu".to_owned(),
        models: vec![model(&config)?],
        reader: Reader::new(memory::media(None)),
        slots: config.worker.slots.get() as usize,
        rank: config.rank(worker::config::Kind::Processor),
        now: Now::default(),
    };
    queue::lanes(&worker.bus, &pull::sources(&worker.models)).await?;
    Ok(run::run(Arc::new(worker), Duration::ZERO, CancellationToken::new()).await?)
}
