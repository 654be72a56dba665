//! The engine crate behind the worker's seam, and the loading of models: the only module that knows the engine's types.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use engine::engine as native;
use engine::load::Loaded;
use engine::needs::needs;
use engine::plan::TokenId;
use engine::text::{self, Message, Template, Tokenizer};
use protocol::answer::Finish;
use protocol::request::Role;
use protocol::{ErrorCode, Refusal, heartbeat};
use runtime::config::ModelEntry;
use runtime::memory::allowed_bytes;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::UnboundedSender;

use crate::config::{Config, Device};
use crate::error::Error;
use crate::memory::{self, Fit, Part};
use crate::model::{Cancel, End, Engine, Event, Life, Model, Prompt, Stats, Work};

/// Where an engine's events go, by job. Written by whoever submits, emptied by the engine's thread.
type Routes = Arc<Mutex<HashMap<u64, UnboundedSender<Event>>>>;

/// Loads every model that the configuration wants, with caches that fit into memory. Takes as long as reading the files.
pub fn load(config: &Config) -> Result<Vec<Model>, Error> {
    let wanted = config.wanted();
    let files = wanted.iter().map(|entry| file(config, entry)).collect::<Result<Vec<PathBuf>, Error>>()?;
    let settings = settings(config);
    let part = |(entry, path): (&&ModelEntry, &PathBuf)| {
        let needs = needs(path, &settings)?;
        Ok(Part { name: entry.name.clone(), needs, context: entry.context as usize })
    };
    let parts = wanted.iter().zip(&files).map(part).collect::<Result<Vec<Part>, Error>>()?;
    let kv_tokens = match memory::fit(&parts, config.worker.kv_tokens, allowed_bytes()).map_err(Error::Setup)? {
        Fit::Wanted(tokens) => tokens,
        Fit::Lowered(tokens, why) => {
            tracing::warn!("{why}");
            tokens
        }
    };
    let settings = native::EngineConfig { kv_tokens, ..settings };
    wanted.iter().zip(&files).map(|(entry, path)| load_one(entry, path, settings)).collect()
}

/// How the engines are to be, but for the size of their caches.
fn settings(config: &Config) -> native::EngineConfig {
    let options = &config.worker;
    let slots = options.slots.get() as usize;
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    native::EngineConfig {
        threads: options.threads.map_or_else(cores, usize::from),
        kv_tokens: 0,
        step_tokens: options.step_tokens,
        sequences_max: slots,
        queue_max: slots,
    }
}

fn file(config: &Config, entry: &ModelEntry) -> Result<PathBuf, Error> {
    let path = config.worker.models_dir.join(&entry.name).join(&entry.file);
    if path.is_file() {
        return Ok(path);
    }
    Err(Error::Setup(format!(
        "the model file {} is not there: `flotilla models pull {}` fetches it; in a container, run that on the models \
         volume first and mount it at {}",
        path.display(),
        entry.name,
        config.worker.models_dir.display()
    )))
}

/// What the worker computes on, for people.
#[must_use]
pub fn device(device: Device) -> &'static str {
    match device {
        Device::Auto | Device::Cpu | Device::Cuda => "cpu",
    }
}

fn load_one(entry: &ModelEntry, path: &Path, settings: native::EngineConfig) -> Result<Model, Error> {
    // Hashed beside the loading: both read the same pages.
    let loaded = std::thread::scope(|scope| {
        let check = scope.spawn(|| check_digest(path, entry));
        let loaded = engine::load::load(path, &settings)?;
        check.join().unwrap_or_else(|_| Err(Error::Setup("the digest could not be taken".to_owned())))?;
        Ok::<Loaded, Error>(loaded)
    })?;
    let Loaded { model, tokenizer, template, info } = loaded;
    tracing::info!(model = %entry.name, family = %info.family, parameters = info.parameters, "loaded");
    let engine = Native::start(model, tokenizer, template, settings)?;
    let fits = engine.engine.length_max().min(info.context).min(entry.context as usize);
    Ok(Model {
        loaded: heartbeat::Loaded {
            name: entry.name.clone(),
            digest: entry.sha256.clone(),
            precision: entry.precision.clone(),
            context: u32::try_from(fits).unwrap_or(u32::MAX),
        },
        modality: entry.modality,
        tasks: entry.tasks.clone(),
        engine: Arc::new(engine),
    })
}

/// Answers are cached under the catalogue's digest, so the file must be the one that it names.
fn check_digest(path: &Path, entry: &ModelEntry) -> Result<(), Error> {
    let failed = |error: std::io::Error| Error::Setup(format!("{}: {error}", path.display()));
    let mut hash = Sha256::new();
    std::io::copy(&mut std::fs::File::open(path).map_err(failed)?, &mut hash).map_err(failed)?;
    let found = format!("{:x}", hash.finalize());
    if found == entry.sha256 {
        return Ok(());
    }
    Err(Error::Setup(format!(
        "{} has the SHA-256 {found}, the catalogue names {}: `flotilla models pull {}` fetches it anew",
        path.display(),
        entry.sha256,
        entry.name
    )))
}

struct Native {
    engine: native::Engine,
    tokenizer: Arc<Tokenizer>,
    template: Option<Template>,
    routes: Routes,
}

impl Native {
    fn start(
        model: Box<dyn engine::model::Model>,
        tokenizer: Arc<Tokenizer>,
        template: Option<Template>,
        settings: native::EngineConfig,
    ) -> Result<Self, Error> {
        let routes = Routes::default();
        let out = Arc::clone(&routes);
        let events = Box::new(move |event| route(&out, event));
        let engine = native::Engine::start(model, Arc::clone(&tokenizer), settings, events)?;
        Ok(Self { engine, tokenizer, template, routes })
    }
}

impl Engine for Native {
    fn tokens(&self, prompt: &Prompt) -> Result<Vec<TokenId>, Refusal> {
        let tokens = match (prompt, &self.template) {
            (Prompt::Chat(messages), Some(template)) => {
                let messages: Vec<Message> = messages.iter().map(message).collect();
                text::chat_tokens(template, &self.tokenizer, &messages)
            }
            (Prompt::Chat(_), None) => return Err(Refusal::invalid("the model is no chat model: ask for complete")),
            (Prompt::Text(text), _) => text::complete_tokens(&self.tokenizer, text),
        };
        // A template refuses what its authors did not mean, such as roles in another order.
        tokens.map_err(|error| match error {
            engine::Error::Template(why) => Refusal::invalid(format!("the model's template refuses: {why:.200}")),
            error => Refusal::new(ErrorCode::Internal, format!("tokenizer: {:.200}", error.to_string())),
        })
    }

    fn submit(&self, work: Work, events: UnboundedSender<Event>) -> Result<(), Refusal> {
        let key = work.key;
        lock(&self.routes).insert(key, events);
        let job = native::Job {
            key: native::JobKey(key),
            tokens: work.tokens,
            max_tokens: work.max_tokens,
            sampling: work.sampling,
            stop: work.stop,
            deadline: Some(work.deadline),
        };
        self.engine.submit(job).map_err(|error| {
            lock(&self.routes).remove(&key);
            refusal(&error)
        })
    }

    fn cancel(&self, key: u64, why: Cancel) {
        let why = match why {
            Cancel::Client => native::Cancel::Client,
            Cancel::Stopping => native::Cancel::Stopping,
        };
        self.engine.cancel(native::JobKey(key), why);
    }

    fn stats(&self) -> Stats {
        let stats = self.engine.stats();
        Stats {
            progress: self.engine.progress(),
            jobs: stats.running + stats.waiting,
            step: stats.last_step,
            life: if self.engine.is_alive() { Life::Running } else { Life::Ended },
        }
    }

    fn stop(&self) {
        self.engine.clone().stop();
    }
}

fn message((role, text): &(Role, String)) -> Message {
    let role = match role {
        Role::System => text::Role::System,
        Role::User => text::Role::User,
        Role::Assistant => text::Role::Assistant,
    };
    Message { role, content: text.clone() }
}

fn refusal(error: &native::SubmitError) -> Refusal {
    let code = match error {
        native::SubmitError::Full => ErrorCode::Overloaded,
        native::SubmitError::Stopped => ErrorCode::Unavailable,
        native::SubmitError::TooLong { .. } => ErrorCode::ContextTooLong,
        native::SubmitError::Invalid(_) => ErrorCode::InvalidRequest,
    };
    Refusal::new(code, error.to_string())
}

/// Called on the engine's thread, between steps. A receiver that is gone has ended its walk.
fn route(routes: &Routes, event: native::Event) {
    let (key, event) = match event {
        native::Event::Started { key, .. } => (key, Event::Started),
        native::Event::Chunk { key, text } => (key, Event::Chunk(text)),
        native::Event::Ended { key, end } => {
            let sender = lock(routes).remove(&key.0);
            sender.map(|sender| sender.send(Event::Ended(ended(end))));
            return;
        }
    };
    if let Some(sender) = lock(routes).get(&key.0) {
        let _ = sender.send(event);
    }
}

fn ended(end: native::End) -> End {
    match end {
        native::End::Done { finish, output_tokens, input_tokens } => {
            let finish = match finish {
                native::Finish::Stop => Finish::Stop,
                native::Finish::Length => Finish::Length,
            };
            End::Done { finish, input_tokens, output_tokens }
        }
        native::End::Cancelled => End::Cancelled,
        native::End::Deadline => End::Deadline,
        native::End::Stopped => End::Stopped,
        native::End::Failed(why) => End::Failed(why),
    }
}

fn lock(routes: &Routes) -> MutexGuard<'_, HashMap<u64, UnboundedSender<Event>>> {
    routes.lock().unwrap_or_else(PoisonError::into_inner)
}
