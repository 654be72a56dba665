//! The worker's configuration: what all roles share, and its own section.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use engine::backend::{Activations, Weights};
use engine::simd::Level;
use runtime::config::{Common, Faults, ModelEntry};
use serde::Deserialize;

/// All that a worker reads.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Config {
    /// What every role reads.
    #[serde(flatten)]
    pub common: Common,
    /// `[worker]`
    pub worker: Options,
}

/// `[worker]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Names of the catalogue to load; none means every model of the catalogue whose file is there.
    pub models: Vec<String>,
    /// Where model files are: in a folder of the model's name.
    pub models_dir: PathBuf,
    /// Device to compute on.
    pub device: Device,
    /// Threads of an engine; as many as there are cores when absent.
    pub threads: Option<NonZeroUsize>,
    /// Instructions to compute with, by the name of a [`Level`]; the best of this machine when absent.
    pub level: Option<String>,
    /// How weights of encoders are held.
    pub weights: Weights,
    /// How inputs of products with quantised weights are held.
    pub activations: Activations,
    /// Jobs at once.
    pub slots: NonZeroU32,
    /// Tokens that an engine's cache holds over all its jobs; memory is taken as they are used. As many as
    /// [`crate::memory::fit`] finds room for when absent.
    pub kv_tokens: Option<usize>,
    /// Most tokens of a step: longer prompts are computed in pieces, so that others stream meanwhile. By device when
    /// absent.
    pub step_tokens: Option<usize>,
    /// Which GPUs, as the driver counts them: each has an engine of every model, and they share its jobs.
    pub gpus: Vec<u32>,
    /// The part of each GPU's free memory that this worker takes, for a card that others share.
    pub gpu_memory: f64,
    /// Folders in which libraries of the GPU's maker may lie, besides the loader's.
    pub gpu_libraries: Vec<PathBuf>,
    /// Where kernels are kept that had to be compiled for this machine's GPU.
    pub kernels_dir: PathBuf,
    /// Which workers the queue prefers, least first, 0 to 9: GPU before CPU, near before far. By device when absent.
    pub rank: Option<u8>,
    /// Seconds for which a stopping worker finishes what it has; the rest is given back.
    pub drain_s: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            models: Vec::new(),
            models_dir: PathBuf::from(".flotilla/models"),
            device: Device::Auto,
            threads: None,
            level: None,
            weights: Weights::default(),
            activations: Activations::default(),
            slots: NonZeroU32::new(32).expect("32 is not zero"),
            kv_tokens: None,
            step_tokens: None,
            gpus: vec![0],
            gpu_memory: 0.9,
            gpu_libraries: Vec::new(),
            kernels_dir: PathBuf::from(".flotilla/kernels"),
            rank: None,
            drain_s: 25,
        }
    }
}

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// The best there is.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// A GPU of NVIDIA.
    Cuda,
}

/// Greatest rank that the server takes.
const RANK_MAX: u8 = 9;
/// Rank of a worker on the processor: GPUs go first, spare machines may stand behind.
const RANK_CPU: u8 = 5;
/// Rank of a worker on a GPU.
const RANK_GPU: u8 = 1;
/// Tokens of a step on a processor, and on a GPU, which computes as many in less time.
const STEP_TOKENS: (usize, usize) = (128, 2048);

/// What a worker turned out to compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The processor.
    Processor,
    /// A GPU.
    Gpu,
}

impl Config {
    /// Refuses what cannot run, every fault at once.
    pub fn check(&self) -> Result<(), Faults> {
        let mut faults = Vec::new();
        if self.level().is_none() {
            let names: Vec<&str> = Level::all().into_iter().map(Level::name).collect();
            faults.push(format!("worker.level: this machine has {}", names.join(", ")));
        }
        if self.worker.rank.is_some_and(|rank| rank > RANK_MAX) {
            faults.push(format!("worker.rank: must be 0 to {RANK_MAX}"));
        }
        let gpus = &self.worker.gpus;
        if gpus.is_empty() || (1..gpus.len()).any(|index| gpus[..index].contains(&gpus[index])) {
            faults.push("worker.gpus: must name one at least, and each once".to_owned());
        }
        if !(0.0 < self.worker.gpu_memory && self.worker.gpu_memory <= 1.0) {
            faults.push("worker.gpu_memory: must be greater than 0 and at most 1".to_owned());
        }
        if self.worker.kv_tokens == Some(0) || self.worker.step_tokens == Some(0) {
            faults.push("worker.kv_tokens and worker.step_tokens: must be greater than 0".to_owned());
        }
        for name in &self.worker.models {
            if !self.common.models.iter().any(|entry| entry.name == *name) {
                faults.push(format!("worker.models: no [[model]] is called {name:?}"));
            }
        }
        if self.common.models.is_empty() {
            faults.push("worker.models: the catalogue is empty".to_owned());
        }
        if faults.is_empty() { Ok(()) } else { Err(Faults(faults)) }
    }

    /// The models to load, where their files are.
    #[must_use]
    pub fn wanted(&self) -> Vec<&ModelEntry> {
        let named = |entry: &&ModelEntry| self.worker.models.is_empty() || self.worker.models.contains(&entry.name);
        self.common.models.iter().filter(named).collect()
    }

    /// Where a model's file is, or should be.
    #[must_use]
    pub fn file(&self, entry: &ModelEntry) -> PathBuf {
        self.worker.models_dir.join(&entry.name).join(&entry.file)
    }

    /// What instructions to compute with; `None` where this machine lacks them.
    #[must_use]
    pub fn level(&self) -> Option<Level> {
        self.worker.level.as_deref().map_or_else(|| Some(Level::detect()), Level::named)
    }

    /// The rank in the queue.
    #[must_use]
    pub fn rank(&self, kind: Kind) -> u8 {
        self.worker.rank.unwrap_or(match kind {
            Kind::Processor => RANK_CPU,
            Kind::Gpu => RANK_GPU,
        })
    }

    /// Most tokens of a step.
    #[must_use]
    pub fn step_tokens(&self, kind: Kind) -> usize {
        self.worker.step_tokens.unwrap_or(match kind {
            Kind::Processor => STEP_TOKENS.0,
            Kind::Gpu => STEP_TOKENS.1,
        })
    }

    /// How long a stopping worker finishes what it has.
    #[must_use]
    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.worker.drain_s)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// `flotilla.toml` of the repository, every setting that stands behind a '#' taken out of it.
    fn shipped() -> Config {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../flotilla.toml");
        let setting = |line: &str| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => rest.to_owned(),
            _ => line.to_owned(),
        };
        let text: String = std::fs::read_to_string(path).unwrap().lines().map(|line| setting(line) + "\n").collect();
        let file = std::env::temp_dir().join(format!("flotilla-worker-{}.toml", std::process::id()));
        std::fs::write(&file, text).unwrap();
        let config = runtime::config::load(Some(&file), std::iter::empty());
        std::fs::remove_file(file).unwrap();
        config.unwrap_or_else(|faults| panic!("{faults}"))
    }

    #[test]
    fn a_level_is_one_that_the_machine_has() {
        let of = |level: Option<&str>| {
            let worker = Options { level: level.map(str::to_owned), ..Options::default() };
            Config { worker, ..Config::default() }
        };
        let best = Level::all().pop().map(Level::name);
        assert_eq!(of(None).level().map(Level::name), best);
        for level in Level::all() {
            assert_eq!(of(Some(level.name())).level().map(Level::name), Some(level.name()));
        }
        let faults = of(Some("mmx")).check().unwrap_err().to_string();
        assert!(faults.contains("worker.level: this machine has scalar"), "{faults}");
    }

    #[test]
    fn gpus_are_named_and_each_once() {
        let check = |gpus: &[u32]| {
            let worker = Options { gpus: gpus.to_vec(), ..Options::default() };
            Config { worker, ..Config::default() }.check().map_err(|faults| faults.to_string())
        };
        assert_eq!(check(&[1, 0]), Ok(()));
        for gpus in [&[][..], &[0, 1, 0]] {
            assert!(check(gpus).unwrap_err().contains("worker.gpus: "), "{gpus:?}");
        }
    }

    #[test]
    fn the_shipped_file_says_what_the_defaults_are() {
        let (found, default) = (shipped().worker, Options::default());
        assert_eq!((&found.models_dir, found.device), (&default.models_dir, default.device));
        assert_eq!((found.slots, found.drain_s), (default.slots, default.drain_s));
        assert_eq!((&found.gpus, found.gpu_memory), (&default.gpus, default.gpu_memory));
        assert_eq!(found.kernels_dir, default.kernels_dir);
        assert_eq!(found.step_tokens, Some(STEP_TOKENS.0));
        assert_eq!((found.weights, found.activations), (default.weights, default.activations));
        assert_eq!(found.kv_tokens, Some(crate::memory::KV_TOKENS), "absent means as many, or what fits");
        assert_eq!(found.rank, Some(RANK_CPU));
        // Examples: their defaults are what the machine has, and what the catalogue has.
        assert!(found.threads.is_some() && found.level.is_some() && !found.models.is_empty());
    }
}
