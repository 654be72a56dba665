//! The engine crate behind the worker's seam, and the loading of models: the only module that knows the engines' handles.

mod encode;
mod generate;
pub mod rounding;
mod routes;
mod samples;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::cuda::{self, Card};
use engine::encode as encoders;
use engine::engine as native;
use engine::load as decoders;
use engine::model::contrast;
use engine::needs::{Needs, needs, needs_on_card};
use engine::simd::Level;
use engine::tensors::Tensors;
use protocol::media::Modality;
use protocol::{ErrorCode, Refusal, heartbeat};
use runtime::config::ModelEntry;
use runtime::memory::allowed_bytes;
use sha2::{Digest, Sha256};

use crate::config::{self, Config, Device};
use crate::error::Error;
use crate::memory::{self, Fit, Part, Store};
use crate::metrics::Meters;
use crate::model::{Cancel, Engine, Model, Traits};
use crate::reader::MediaBudget;
use crate::team::Team;
use encode::{Encoder, Senses};
use generate::Decoder;

/// Models, and what they compute on.
pub struct Equipment {
    /// Every model that the configuration wants.
    pub models: Vec<Model>,
    /// Its name, for people.
    pub device: String,
    /// For its rank in the queue.
    pub kind: config::Kind,
}

/// Loads every model that the configuration wants, with caches that fit into memory. Takes as long as reading the files.
pub fn load(config: &Config) -> Result<Equipment, Error> {
    let place = Place::find(config)?;
    Ok(Equipment { models: models(config, &place)?, device: place.name(), kind: place.kind() })
}

fn models(config: &Config, place: &Place) -> Result<Vec<Model>, Error> {
    let shelf = shelf(config)?;
    let settings = settings(config, place.kind());
    let part = |book: &Book<'_>| {
        let (entry, needs) = (book.entry, book.needs(&settings, place.kind())?);
        Ok(Part { name: entry.name.clone(), modality: entry.modality, needs, context: entry.context as usize })
    };
    let parts = shelf.iter().map(part).collect::<Result<Vec<Part>, Error>>()?;
    let allowed = allowed_bytes();
    let store = place.store(config, allowed);
    let kv_tokens = match memory::fit(&parts, config.worker.kv_tokens, store).map_err(Error::Setup)? {
        Fit::Wanted(tokens) => tokens,
        Fit::Lowered(tokens, why) => {
            tracing::warn!("{why}");
            tokens
        }
    };
    let decoders = native::EngineConfig { kv_tokens, ..settings.decoders };
    let settings = Settings { decoders, ..settings };
    shelf.iter().map(|book| book.load((settings, place), memory::media(allowed))).collect()
}

/// How the engines are to be.
#[derive(Clone, Copy, Debug)]
struct Settings {
    decoders: native::EngineConfig,
    encoders: encoders::Settings,
}

/// What the engines compute on: the processor, or GPUs, of which each has an engine of every model.
struct Place(Vec<engine::device::Device>);

impl Place {
    /// What the configuration asks for; that there is no GPU is told, and is an error where nothing else is wanted.
    fn find(config: &Config) -> Result<Self, Error> {
        let processor = || Place(vec![engine::device::Device::Processor(config.level().unwrap_or_else(Level::detect))]);
        let options = &config.worker;
        let card = |ordinal: &u32| {
            Card::find(cuda::Settings {
                ordinal: *ordinal,
                libraries: options.gpu_libraries.clone(),
                cache: Some(options.kernels_dir.clone()),
                ..cuda::Settings::default()
            })
        };
        if options.device == Device::Cpu {
            return Ok(processor());
        }
        let found: Vec<_> = options.gpus.iter().map(card).collect();
        let none = found.iter().all(Result::is_err);
        match found.into_iter().collect::<Result<Vec<Card>, _>>() {
            Ok(cards) => Ok(Place(cards.into_iter().map(Arc::new).map(engine::device::Device::Cuda).collect())),
            Err(why) if none && options.device == Device::Auto => {
                tracing::info!(%why, "no GPU computes: the processor does");
                Ok(processor())
            }
            Err(error) if none => Err(Error::Setup(format!("worker.device is \"cuda\", and {error}"))),
            Err(error) => Err(Error::Setup(format!("worker.gpus are {:?}, and {error}", options.gpus))),
        }
    }

    fn cards(&self) -> impl Iterator<Item = &Arc<Card>> {
        self.0.iter().filter_map(|device| match device {
            engine::device::Device::Processor(_) => None,
            engine::device::Device::Cuda(card) => Some(card),
        })
    }

    fn name(&self) -> String {
        let names: Vec<&str> = self.cards().map(|card| card.name()).collect();
        if names.is_empty() { "cpu".to_owned() } else { names.join(", ") }
    }

    fn kind(&self) -> config::Kind {
        match self.cards().next() {
            None => config::Kind::Processor,
            Some(_) => config::Kind::Gpu,
        }
    }

    /// Where weights and caches go: the process's own memory, or the part of each card that is the worker's.
    fn store(&self, config: &Config, allowed: Option<u64>) -> Store {
        let free = self.cards().map(|card| card.free()).min();
        free.map_or(Store::host(allowed), |free| {
            Store::card((free as f64 * config.worker.gpu_memory) as u64, config.worker.slots.get() as usize)
        })
    }
}

/// What the configuration says of them, but for the size of their caches.
fn settings(config: &Config, kind: config::Kind) -> Settings {
    let options = &config.worker;
    let slots = options.slots.get() as usize;
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = options.threads.map_or_else(cores, usize::from);
    Settings {
        decoders: native::EngineConfig {
            threads,
            activations: options.activations,
            kv_tokens: 0,
            step_tokens: config.step_tokens(kind),
            sequences_max: slots,
            queue_max: slots,
        },
        encoders: encoders::Settings { threads, weights: options.weights },
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

impl Book<'_> {
    fn needs(&self, settings: &Settings, kind: config::Kind) -> Result<Needs, Error> {
        match (self.kind, kind) {
            (Kind::Decoder, config::Kind::Processor) => Ok(needs(&self.path, &settings.decoders)?),
            (Kind::Decoder, config::Kind::Gpu) => Ok(needs_on_card(&self.path, &settings.decoders)?),
            (Kind::Encoder, config::Kind::Processor) => Ok(encoders::needs(&self.path, settings.encoders)?),
            (Kind::Encoder, config::Kind::Gpu) => Ok(encoders::needs_on_card(&self.path)?),
        }
    }

    fn load(&self, settings: (Settings, &Place), budget: MediaBudget) -> Result<Model, Error> {
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

    fn decoder(&self, (settings, place): (Settings, &Place)) -> Result<Model, Error> {
        let on = |device: &engine::device::Device| decoders::load_on(&self.path, &settings.decoders, device);
        let mut fits = usize::MAX;
        let engine = self.on_each(place, on, |loaded| {
            let decoders::Loaded { model, tokenizer, template, info } = loaded;
            tracing::info!(model = %self.entry.name, family = %info.family, parameters = info.parameters, "loaded");
            let engine = Decoder::start(model, tokenizer, template, settings.decoders)?;
            fits = fits.min(engine.length_max()).min(info.context);
            Ok(Arc::new(engine))
        })?;
        Ok(self.model(fits, Traits::default(), engine))
    }

    /// Loads the model onto every device, and starts an engine for each.
    fn on_each<T: Send>(
        &self,
        place: &Place,
        load: impl Fn(&engine::device::Device) -> Result<T, engine::Error>,
        mut start: impl FnMut(T) -> Result<Arc<dyn Engine>, Error>,
    ) -> Result<Arc<dyn Engine>, Error> {
        let [first, others @ ..] = place.0.as_slice() else {
            return Err(Error::Setup("nothing to compute on".to_owned()));
        };
        let first = start(self.checked(|| load(first))?)?;
        let others = others.iter().map(|device| start(load(device)?)).collect::<Result<_, _>>()?;
        Ok(Team::of(first, others))
    }

    fn encoder(&self, (settings, place): (Settings, &Place), budget: MediaBudget) -> Result<Model, Error> {
        let on = |device: &engine::device::Device| encoders::load_on(&self.path, settings.encoders, device);
        let (mut fits, mut traits) = (usize::MAX, Traits::default());
        let engine = self.on_each(place, on, |loaded| {
            let encoders::Loaded { encoder, tokens, labels, info } = loaded;
            tracing::info!(model = %self.entry.name, family = %info.family, parameters = info.parameters, "loaded");
            fits = info.context.unwrap_or(usize::MAX);
            let reads_both = self.entry.modality == Modality::Image && tokens.is_some();
            let likeness = if reads_both { Some(contrast(Tensors::open(&self.path)?.as_ref())?) } else { None };
            traits = Traits { width: info.width, labels: labels.into(), likeness };
            let texts = tokens.map(|tokens| (tokens, fits.min(self.entry.context as usize)));
            let senses = Senses::of(&self.path, self.entry.modality, texts, budget)?;
            let jobs_max = settings.decoders.sequences_max + settings.decoders.queue_max;
            Ok(Arc::new(Encoder::start(encoder, senses, jobs_max)?))
        })?;
        Ok(self.model(fits, traits, engine))
    }

    /// `fits` is how many tokens the engine takes; the catalogue may say less.
    fn model(&self, fits: usize, traits: Traits, engine: Arc<dyn Engine>) -> Model {
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
            meters: Meters::of(&entry.name),
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
