//! The dispatcher's sections of `flotilla.toml`, checked whole before anything starts.

use std::time::Duration;

use runtime::config::Common;
use serde::Deserialize;

use crate::Error;
use crate::catalogue::Catalogue;
use crate::pipelines::Pipelines;
use crate::rules::{Rule, Rules};

/// Everything a dispatcher reads.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    /// What all roles read.
    #[serde(flatten)]
    pub common: Common,
    /// `[dispatcher]`
    #[serde(default)]
    pub dispatcher: Options,
    /// `[[rule]]`
    #[serde(default, rename = "rule")]
    pub rules: Vec<Rule>,
}

/// `[dispatcher]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Requests at the `infer` doors between receipt and decision; the next is `overloaded`.
    pub in_flight_max: usize,
    /// Bytes of their bodies; as many again may be in hand of the `submit` door, and of what steps of pipelines gave.
    pub in_flight_bytes_max: usize,
    /// Messages of the `submit` door in hand.
    pub submit_in_flight_max: usize,
    /// Requests that wait for the answer of another: repeats of an id, and followers of the cache.
    pub waiting_max: usize,
    /// How long a request with a session waits for Redis before it is `unavailable`.
    pub redis_wait_ms: u64,
    /// How long the `infer` door tries to store a job before the request is `unavailable`.
    pub publish_wait_ms: u64,
    /// How long a stop waits for what is in.
    pub drain_ms: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            in_flight_max: 2048,
            in_flight_bytes_max: 256 * 1024 * 1024,
            submit_in_flight_max: 256,
            waiting_max: 4096,
            redis_wait_ms: 2_000,
            publish_wait_ms: 10_000,
            drain_ms: 10_000,
        }
    }
}

/// Most of any count: what a semaphore of tokio and a pull of NATS both take.
const COUNT_MAX: usize = 1 << 20;
/// Longest of any wait.
const WAIT_MAX: Duration = Duration::from_secs(600);

/// A valid configuration.
#[derive(Debug)]
pub struct Checked {
    /// What all roles read.
    pub common: Common,
    /// `[dispatcher]`
    pub options: Options,
    /// `[[model]]`
    pub catalogue: Catalogue,
    /// `[[pipeline]]`
    pub pipelines: Pipelines,
    /// `[[rule]]`
    pub rules: Rules,
}

impl Config {
    /// Checks it; on fault, every fault.
    pub fn check(self) -> Result<Checked, Error> {
        let mut faults = Vec::new();
        self.dispatcher.check(&mut faults);
        let catalogue = Catalogue::new(self.common.models.clone()).unwrap_or_else(|found| {
            faults.extend(found);
            Catalogue::default()
        });
        let pipelines = Pipelines::new(self.common.pipelines.clone());
        let rules = Rules::new(self.rules, &catalogue, &pipelines).unwrap_or_else(|found| {
            faults.extend(found);
            Rules::default()
        });
        if !faults.is_empty() {
            return Err(Error::Config(faults));
        }
        Ok(Checked { common: self.common, options: self.dispatcher, catalogue, pipelines, rules })
    }
}

impl Options {
    fn check(&self, faults: &mut Vec<String>) {
        let counts = [
            ("in_flight_max", self.in_flight_max),
            ("submit_in_flight_max", self.submit_in_flight_max),
            ("waiting_max", self.waiting_max),
        ];
        for (name, count) in counts {
            if count == 0 || count > COUNT_MAX {
                faults.push(format!("dispatcher.{name} must be 1 to {COUNT_MAX}"));
            }
        }
        let least = protocol::request::BODY_BYTES_MAX;
        if self.in_flight_bytes_max < least {
            faults.push(format!("dispatcher.in_flight_bytes_max must be at least {least}, one body"));
        }
        let waits = [
            ("redis_wait_ms", self.redis_wait_ms),
            ("publish_wait_ms", self.publish_wait_ms),
            ("drain_ms", self.drain_ms),
        ];
        for (name, wait) in waits {
            if Duration::from_millis(wait) > WAIT_MAX {
                faults.push(format!("dispatcher.{name} must be at most {}", WAIT_MAX.as_millis()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The file of the repository, each line changed.
    fn shipped(change: impl Fn(&str) -> String) -> Config {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../flotilla.toml");
        let text: String = std::fs::read_to_string(path).unwrap().lines().map(|line| change(line) + "\n").collect();
        let file = std::env::temp_dir().join(format!("flotilla-{}-{}.toml", std::process::id(), text.len()));
        std::fs::write(&file, text).unwrap();
        let config = runtime::config::load(Some(&file), std::iter::empty());
        std::fs::remove_file(file).unwrap();
        config.unwrap_or_else(|faults| panic!("{faults}"))
    }

    #[test]
    fn the_shipped_file_says_what_the_defaults_are() {
        let config = shipped(str::to_owned);
        assert!(config.rules.is_empty());
        // A setting stands right behind its '#', prose does not.
        let setting = |line: &str| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => rest.to_owned(),
            _ => line.to_owned(),
        };
        let config = shipped(setting);
        assert_eq!(config.dispatcher, Options::default());
        let (common, default) = (&config.common, Common::default());
        assert_eq!(common.models, default.models);
        assert_eq!(common.pipelines, default.pipelines);
        assert_eq!((&common.nats.url, &common.redis.sessions), (&default.nats.url, &default.redis.sessions));
        assert_eq!((&common.redis.cache, &common.telemetry.filter), (&default.redis.cache, &default.telemetry.filter));
        assert_eq!(common.streams.limits(), default.streams.limits());
        assert_eq!(config.rules.len(), 1);
        config.check().unwrap();
    }

    #[test]
    fn every_fault_is_named_at_once() {
        let rule = Rule {
            set: crate::rules::Set { precision: Some("f8".into()), ..Default::default() },
            ..Default::default()
        };
        let config = Config {
            common: Common {
                models: vec![crate::fixture::entry("a"), crate::fixture::entry("a")],
                ..Common::default()
            },
            dispatcher: Options { waiting_max: 0, in_flight_bytes_max: 1, drain_ms: u64::MAX, ..Options::default() },
            rules: vec![rule],
        };
        match config.check() {
            Err(Error::Config(faults)) => assert_eq!(faults.len(), 5, "{faults:?}"),
            other => panic!("{other:?}"),
        }
    }
}
