//! What `flotilla` itself reads of the configuration.

use std::time::Duration;

use runtime::config::{Common, ModelEntry, Pull};
use serde::Deserialize;

/// No stop lasts longer, whatever is configured.
const DRAIN_MAX: Duration = Duration::from_secs(24 * 3600);

/// What all roles share, and what a supervisor must know of its workers.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Settings {
    /// What every role reads.
    #[serde(flatten)]
    pub(crate) common: Common,
    worker: Worker,
}

/// Of `[worker]`; the rest of it is the worker's own business.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Worker {
    drain_s: u64,
    models: Vec<String>,
}

impl Default for Worker {
    fn default() -> Worker {
        Worker { drain_s: 25, models: vec![] }
    }
}

impl Settings {
    /// The models that workers of this configuration load: those that it names, else all that need not be asked for.
    pub(crate) fn wanted(&self) -> Vec<&ModelEntry> {
        let named = |model: &&ModelEntry| match self.worker.models.as_slice() {
            [] => model.pull == Pull::Always,
            names => names.contains(&model.name),
        };
        self.common.models.iter().filter(named).collect()
    }

    /// How long a stopping worker finishes what it has.
    pub(crate) fn drain(&self) -> Duration {
        Duration::from_secs(self.worker.drain_s).min(DRAIN_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drain_is_the_workers_own_and_the_rest_of_its_section_is_passed_over() {
        let load = |env: &[(&str, &str)]| {
            let env = env.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
            runtime::config::load::<Settings>(None, env).unwrap().drain().as_secs()
        };
        assert_eq!(load(&[]), 25);
        assert_eq!(load(&[("FLOTILLA_WORKER__DRAIN_S", "120"), ("FLOTILLA_WORKER__SLOTS", "4")]), 120);
        assert_eq!(load(&[("FLOTILLA_WORKER__DRAIN_S", "9000000000")]), 24 * 3600);
    }

    #[test]
    fn models_are_wanted_by_default_or_by_name() {
        let wanted = |env: &[(&str, &str)]| {
            let env = env.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
            let settings = runtime::config::load::<Settings>(None, env).unwrap();
            settings.wanted().iter().map(|model| model.name.clone()).collect::<Vec<_>>()
        };
        let default = ["smollm2-135m-instruct", "all-minilm-l6-v2", "efficientnet-lite0", "whisper-tiny.en"];
        assert_eq!(wanted(&[]), default);
        assert_eq!(wanted(&[("FLOTILLA_WORKER__MODELS", "['gemma-3-270m']")]), ["gemma-3-270m"]);
    }
}
