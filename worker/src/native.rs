//! The engine crate behind the worker's seam, and the loading of models: the only module that knows the engines' handles.

mod encode;
mod generate;
pub mod rounding;
mod routes;
mod samples;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::encode as encoders;
use engine::engine as native;
use engine::load as decoders;
use engine::model::contrast;
use engine::needs::{Needs, needs};
use engine::simd::Level;
use engine::tensors::Tensors;
use protocol::media::Modality;
use protocol::{ErrorCode, Refusal, heartbeat};
use runtime::config::ModelEntry;
use runtime::memory::allowed_bytes;
use sha2::{Digest, Sha256};

use crate::config::{Config, Device};
use crate::error::Error;
use crate::memory::{self, Fit, Part};
use crate::model::{Cancel, Model, Traits};
use crate::reader::MediaBudget;
use encode::{Encoder, Senses};
use generate::Decoder;

/// Loads every model that the configuration wants, with caches that fit into memory. Takes as long as reading the files.
pub fn load(config: &Config) -> Result<Vec<Model>, Error> {
    let shelf = shelf(config)?;
    let settings = settings(config);
    let part = |book: &Book<'_>| {
        let (entry, needs) = (book.entry, book.needs(&settings)?);
        Ok(Part { name: entry.name.clone(), modality: entry.modality, needs, context: entry.context as usize })
    };
    let parts = shelf.iter().map(part).collect::<Result<Vec<Part>, Error>>()?;
    let allowed = allowed_bytes();
    let kv_tokens = match memory::fit(&parts, config.worker.kv_tokens, allowed).map_err(Error::Setup)? {
        Fit::Wanted(tokens) => tokens,
        Fit::Lowered(tokens, why) => {
            tracing::warn!("{why}");
            tokens
        }
    };
    let decoders = native::EngineConfig { kv_tokens, ..settings.decoders };
    let settings = Settings { decoders, ..settings };
    shelf.iter().map(|book| book.load(settings, memory::media(allowed))).collect()
}

/// How the engines are to be.
#[derive(Clone, Copy, Debug)]
struct Settings {
    decoders: native::EngineConfig,
    encoders: encoders::Settings,
    level: Level,
}

/// What the configuration says of them, but for the size of their caches.
fn settings(config: &Config) -> Settings {
    let options = &config.worker;
    let slots = options.slots.get() as usize;
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = options.threads.map_or_else(cores, usize::from);
    Settings {
        decoders: native::EngineConfig {
            threads,
            activations: options.activations,
            kv_tokens: 0,
            step_tokens: options.step_tokens,
            sequences_max: slots,
            queue_max: slots,
        },
        encoders: encoders::Settings { threads, weights: options.weights },
        level: config.level().unwrap_or_else(Level::detect),
    }
}

/// A model whose file is there.
struct Book<'a> {
    entry: &'a ModelEntry,
    path: PathBuf,
    kind: Kind,
}

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// GGUF: a model that writes text.
    Decoder,
    /// safetensors: everything else.
    Encoder,
}

impl Kind {
    fn of(path: &Path) -> Result<Self, Error> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("gguf") => Ok(Kind::Decoder),
            Some("safetensors") => Ok(Kind::Encoder),
            _ => Err(Error::Setup(format!("{} is neither .gguf nor .safetensors", path.display()))),
        }
    }
}

/// The models to load. Those that are named must be there; where none is named, those that are there are enough.
fn shelf(config: &Config) -> Result<Vec<Book<'_>>, Error> {
    let (there, absent): (Vec<_>, Vec<_>) = config.wanted().into_iter().partition(|entry| config.file(entry).is_file());
    match absent.first() {
        Some(first) if !config.worker.models.is_empty() || there.is_empty() => return Err(missing(config, first)),
        Some(_) => {
            let absent: Vec<&str> = absent.iter().map(|entry| entry.name.as_str()).collect();
            tracing::info!(absent = absent.join(", "), "models of the catalogue that are not fetched are not served");
        }
        None => {}
    }
    let book = |entry| {
        let path = config.file(entry);
        Ok(Book { entry, kind: Kind::of(&path)?, path })
    };
    there.into_iter().map(book).collect()
}

fn missing(config: &Config, entry: &ModelEntry) -> Error {
    Error::Setup(format!(
        "the model file {} is not there: `flotilla models pull {}` fetches it; in a container, run that on the models \
         volume first and mount it at {}",
        config.file(entry).display(),
        entry.name,
        config.worker.models_dir.display()
    ))
}

/// What the worker computes on, for people.
#[must_use]
pub fn device(device: Device) -> &'static str {
    match device {
        Device::Auto | Device::Cpu | Device::Cuda => "cpu",
    }
}

impl Book<'_> {
    fn needs(&self, settings: &Settings) -> Result<Needs, Error> {
        match self.kind {
            Kind::Decoder => Ok(needs(&self.path, &settings.decoders)?),
            Kind::Encoder => Ok(encoders::needs(&self.path, settings.encoders)?),
        }
    }

    fn load(&self, settings: Settings, budget: MediaBudget) -> Result<Model, Error> {
        match self.kind {
            Kind::Decoder => self.decoder(settings),
            Kind::Encoder => self.encoder(settings, budget),
        }
    }

    /// Hashes the file beside its loading: both read the same pages.
    fn checked<T: Send>(&self, load: impl FnOnce() -> Result<T, engine::Error>) -> Result<T, Error> {
        std::thread::scope(|scope| {
            let check = scope.spawn(|| check_digest(&self.path, self.entry));
            let loaded = load()?;
            check.join().unwrap_or_else(|_| Err(Error::Setup("the digest could not be taken".to_owned())))?;
            Ok(loaded)
        })
    }

    fn decoder(&self, settings: Settings) -> Result<Model, Error> {
        let loaded = self.checked(|| decoders::load_at(&self.path, &settings.decoders, settings.level))?;
        let decoders::Loaded { model, tokenizer, template, info } = loaded;
        tracing::info!(model = %self.entry.name, family = %info.family, parameters = info.parameters, "loaded");
        let engine = Decoder::start(model, tokenizer, template, settings.decoders)?;
        let fits = engine.length_max().min(info.context);
        Ok(self.model(fits, Traits::default(), Arc::new(engine)))
    }

    fn encoder(&self, settings: Settings, budget: MediaBudget) -> Result<Model, Error> {
        let loaded = self.checked(|| encoders::load_at(&self.path, settings.encoders, settings.level))?;
        let encoders::Loaded { encoder, tokens, labels, info } = loaded;
        tracing::info!(model = %self.entry.name, family = %info.family, parameters = info.parameters, "loaded");
        let context = info.context.unwrap_or(usize::MAX);
        let reads_both = self.entry.modality == Modality::Image && tokens.is_some();
        let likeness = if reads_both { Some(contrast(Tensors::open(&self.path)?.as_ref())?) } else { None };
        let traits = Traits { width: info.width, labels: labels.into(), likeness };
        let texts = tokens.map(|tokens| (tokens, context.min(self.entry.context as usize)));
        let senses = Senses::of(&self.path, self.entry.modality, texts, budget)?;
        let engine = Encoder::start(encoder, senses, settings.decoders.sequences_max + settings.decoders.queue_max)?;
        Ok(self.model(context, traits, Arc::new(engine)))
    }

    /// `fits` is how many tokens the engine takes; the catalogue may say less.
    fn model(&self, fits: usize, traits: Traits, engine: Arc<dyn crate::model::Engine>) -> Model {
        let entry = self.entry;
        Model {
            loaded: heartbeat::Loaded {
                name: entry.name.clone(),
                digest: entry.sha256.clone(),
                precision: entry.precision.clone(),
                context: u32::try_from(fits).unwrap_or(u32::MAX).min(entry.context),
            },
            modality: entry.modality,
            tasks: entry.tasks.clone(),
            traits,
            engine,
        }
    }
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

/// Why an engine did not let a job in.
fn refusal(error: &native::SubmitError) -> Refusal {
    let code = match error {
        native::SubmitError::Full => ErrorCode::Overloaded,
        native::SubmitError::Stopped => ErrorCode::Unavailable,
        native::SubmitError::TooLong { .. } => ErrorCode::ContextTooLong,
        native::SubmitError::Invalid(_) => ErrorCode::InvalidRequest,
    };
    Refusal::new(code, error.to_string())
}

fn cancel(why: Cancel) -> native::Cancel {
    match why {
        Cancel::Client => native::Cancel::Client,
        Cancel::Stopping => native::Cancel::Stopping,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, file: &str) -> ModelEntry {
        ModelEntry { name: name.to_owned(), file: file.to_owned(), ..runtime::config::default_catalogue().remove(0) }
    }

    fn put(config: &Config, name: &str) {
        let entry = config.common.models.iter().find(|entry| entry.name == name).unwrap();
        std::fs::create_dir_all(config.file(entry).parent().unwrap()).unwrap();
        std::fs::write(config.file(entry), b"").unwrap();
    }

    #[test]
    fn without_names_what_is_on_the_shelf_is_served() {
        let folder = std::env::temp_dir().join(format!("flotilla-shelf-{}", std::process::id()));
        let mut config = Config::default();
        config.worker.models_dir = folder.clone();
        config.common.models = vec![entry("a", "a.gguf"), entry("b", "model.safetensors"), entry("c", "c.gguf")];
        let names = |config: &Config| {
            let books = shelf(config).map_err(|error| error.to_string())?;
            Ok::<_, String>(books.iter().map(|book| (book.entry.name.clone(), book.kind)).collect::<Vec<_>>())
        };
        let nothing = names(&config).unwrap_err();
        assert!(nothing.contains("models pull a"), "{nothing}");
        put(&config, "b");
        put(&config, "c");
        let found = names(&config).unwrap();
        assert_eq!(found, [("b".to_owned(), Kind::Encoder), ("c".to_owned(), Kind::Decoder)]);
        config.worker.models = vec!["c".to_owned()];
        assert_eq!(names(&config).unwrap().len(), 1);
        config.worker.models.push("a".to_owned());
        assert!(names(&config).unwrap_err().contains("models pull a"), "what is named must be there");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
