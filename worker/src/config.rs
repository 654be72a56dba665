//! The worker's configuration: what all roles share, and its own section.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use protocol::request::Task;
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
    /// Names of the catalogue to load; none means every model of the catalogue that answers text.
    pub models: Vec<String>,
    /// Where model files are: in a folder of the model's name.
    pub models_dir: PathBuf,
    /// Device to compute on.
    pub device: Device,
    /// Threads of an engine; as many as there are cores when absent.
    pub threads: Option<NonZeroUsize>,
    /// Jobs at once.
    pub slots: NonZeroU32,
    /// Tokens that an engine's cache holds over all its jobs; memory is taken as they are used.
    pub kv_tokens: usize,
    /// Most tokens of a step: longer prompts are computed in pieces, so that others stream meanwhile.
    pub step_tokens: usize,
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
            slots: NonZeroU32::new(32).expect("32 is not zero"),
            kv_tokens: 32 * 1024,
            step_tokens: 512,
            rank: None,
            drain_s: 25,
        }
    }
}

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
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

impl Config {
    /// Refuses what cannot run, every fault at once.
    pub fn check(&self) -> Result<(), Faults> {
        let mut faults = Vec::new();
        if self.worker.device == Device::Cuda {
            faults.push("worker.device: this build computes on the processor only: set \"auto\" or \"cpu\"".to_owned());
        }
        if self.worker.rank.is_some_and(|rank| rank > RANK_MAX) {
            faults.push(format!("worker.rank: must be 0 to {RANK_MAX}"));
        }
        if self.worker.kv_tokens == 0 || self.worker.step_tokens == 0 {
            faults.push("worker.kv_tokens and worker.step_tokens: must be greater than 0".to_owned());
        }
        for name in &self.worker.models {
            if !self.common.models.iter().any(|entry| entry.name == *name) {
                faults.push(format!("worker.models: no [[model]] is called {name:?}"));
            }
        }
        if self.wanted().is_empty() {
            faults.push("worker.models: the catalogue has no model that answers text".to_owned());
        }
        if faults.is_empty() { Ok(()) } else { Err(Faults(faults)) }
    }

    /// The models to load.
    #[must_use]
    pub fn wanted(&self) -> Vec<&ModelEntry> {
        let generates =
            |entry: &&ModelEntry| entry.tasks.iter().any(|task| matches!(task, Task::Chat | Task::Complete));
        let named = |entry: &&ModelEntry| self.worker.models.is_empty() || self.worker.models.contains(&entry.name);
        self.common.models.iter().filter(generates).filter(named).collect()
    }

    /// The rank in the queue.
    #[must_use]
    pub fn rank(&self) -> u8 {
        self.worker.rank.unwrap_or(RANK_CPU)
    }

    /// How long a stopping worker finishes what it has.
    #[must_use]
    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.worker.drain_s)
    }
}
