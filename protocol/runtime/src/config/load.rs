//! File, then environment, then one look at the whole: all faults at once, each by the name of its key.

use std::path::Path;

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use super::Common;

/// Exit code of a process whose configuration cannot be used (`EX_USAGE` of sysexits.h): no new start mends it.
pub const EXIT_FAULTY: u8 = 64;

/// Every fault of a configuration, at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct Faults(pub Vec<String>);

/// Sections of `flotilla.toml`. One file serves every role; a role ignores the sections of others.
const SECTIONS: [&str; 10] =
    ["nats", "redis", "telemetry", "streams", "model", "pipeline", "dispatcher", "rule", "worker", "ops"];

/// Short names of the environment, and the keys that they set. Every other key is `FLOTILLA_SECTION__KEY`.
const SHORT: [(&str, &[[&str; 2]]); 7] = [
    ("FLOTILLA_NATS", &[["nats", "url"]]),
    ("FLOTILLA_NATS_CREDENTIALS", &[["nats", "credentials"]]),
    ("FLOTILLA_REDIS", &[["redis", "sessions"], ["redis", "cache"]]),
    ("FLOTILLA_LISTEN", &[["telemetry", "listen"]]),
    ("FLOTILLA_LOG", &[["telemetry", "filter"]]),
    ("FLOTILLA_LOG_FORMAT", &[["telemetry", "log"]]),
    ("FLOTILLA_DURABILITY", &[["streams", "durability"]]),
];

/// Reads a role's configuration. `env` is handed in by `main`; of it, only `FLOTILLA_*` counts, and an empty value is none.
/// Every section of `T` must have defaults.
pub fn load<T: DeserializeOwned>(
    file: Option<&Path>,
    env: impl Iterator<Item = (String, String)>,
) -> Result<T, Faults> {
    let mut table = match file {
        None => Table::new(),
        Some(path) => read(path).map_err(|fault| Faults(vec![fault]))?,
    };
    let mut faults = Vec::new();
    // Sorted, so that a long name stands over a short one whatever the order of the environment.
    let mut settings: Vec<Setting> = env.flat_map(|(name, value)| Setting::parse(name, value)).collect();
    settings.sort_by_key(|setting| setting.name.contains("__"));
    for setting in settings {
        if let Err(fault) = setting.apply::<T>(&mut table) {
            faults.push(fault);
        }
    }
    for section in table.keys().filter(|section| !SECTIONS.contains(&section.as_str())) {
        faults.push(format!("[{section}] is unknown; sections are {}", SECTIONS.join(", ")));
    }
    for (section, value) in &table {
        faults.extend(section_faults::<T>(section, value));
    }
    if faults.is_empty()
        && let Ok(common) = parse::<Common>(&table)
    {
        faults.extend(common.faults());
    }
    match parse::<T>(&table) {
        Ok(config) if faults.is_empty() => Ok(config),
        Err(fault) if faults.is_empty() => Err(Faults(vec![fault])),
        _ => Err(Faults(faults)),
    }
}

fn read(path: &Path) -> Result<Table, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    text.parse().map_err(|error| format!("{}: {error}", path.display()))
}

fn parse<T: DeserializeOwned>(table: &Table) -> Result<T, String> {
    table.clone().try_into().map_err(|error: toml::de::Error| error.message().to_owned())
}

/// A table of one section, to be looked at alone.
fn alone(section: &str, value: Value) -> Table {
    Table::from_iter([(section.to_owned(), value)])
}

/// serde stops at the first fault, so every key is looked at alone; what only shows in company is reported as a whole.
fn section_faults<T: DeserializeOwned>(section: &str, value: &Value) -> Vec<String> {
    let Err(whole) = parse::<T>(&alone(section, value.clone())) else {
        return Vec::new();
    };
    let found: Vec<String> = match value {
        Value::Table(keys) => keys
            .iter()
            .filter_map(|(key, value)| {
                let fault =
                    parse::<T>(&alone(section, Table::from_iter([(key.clone(), value.clone())]).into())).err()?;
                // A key that is missing here may stand beside.
                (!fault.starts_with("missing field")).then(|| format!("{section}.{key}: {fault}"))
            })
            .collect(),
        Value::Array(entries) => entries
            .iter()
            .enumerate()
            .filter_map(|(index, entry)| {
                let fault = parse::<T>(&alone(section, Value::Array(vec![entry.clone()]))).err()?;
                Some(format!("[[{section}]] number {}: {fault}", index + 1))
            })
            .collect(),
        _ => Vec::new(),
    };
    if found.is_empty() { vec![format!("{section}: {whole}")] } else { found }
}

/// One value of the environment for one key.
struct Setting {
    name: String,
    path: Vec<String>,
    value: String,
}

impl Setting {
    fn parse(name: String, value: String) -> Vec<Setting> {
        if value.is_empty() {
            return Vec::new();
        }
        if let Some((_, paths)) = SHORT.iter().find(|(short, _)| *short == name) {
            let setting = |path: &[&str; 2]| Setting {
                name: name.clone(),
                path: path.iter().map(|&key| key.to_owned()).collect(),
                value: value.clone(),
            };
            return paths.iter().map(setting).collect();
        }
        let path: Vec<String> = match name.strip_prefix("FLOTILLA_") {
            // Names without a section belong to the command line.
            Some(rest) if rest.contains("__") => rest.split("__").map(str::to_ascii_lowercase).collect(),
            _ => return Vec::new(),
        };
        vec![Setting { name, path, value }]
    }

    /// Puts the value in its place. What reads as TOML is tried first, so that numbers and lists work; then as text.
    fn apply<T: DeserializeOwned>(&self, table: &mut Table) -> Result<(), String> {
        let text = Value::String(self.value.clone());
        let value = match format!("v = {}", self.value).parse::<Table>() {
            Ok(mut parsed) if parsed.len() == 1 => parsed.remove("v").unwrap_or_else(|| text.clone()),
            _ => text.clone(),
        };
        let fits = |value: &Value| {
            let mut single = Table::new();
            place(&mut single, &self.path, value.clone()).is_ok() && parse::<T>(&single).is_ok()
        };
        let value = if !fits(&value) && fits(&text) { text } else { value };
        place(table, &self.path, value).map_err(|fault| format!("{}: {fault}", self.name))
    }
}

fn place(table: &mut Table, path: &[String], value: Value) -> Result<(), String> {
    let Some((key, rest)) = path.split_first() else {
        return Err("names no key".to_owned());
    };
    if rest.is_empty() {
        table.insert(key.clone(), value);
        return Ok(());
    }
    match table.entry(key.clone()).or_insert_with(|| Value::Table(Table::new())) {
        Value::Table(inner) => place(inner, rest, value),
        _ => Err(format!("'{key}' is a list or a value, which the environment cannot reach into")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Durability, LogFormat};
    use serde::Deserialize;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Worker {
        slots: u32,
        rank: Option<String>,
        models: Vec<String>,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Role {
        #[serde(flatten)]
        common: Common,
        worker: Worker,
    }

    fn check(text: &str, env: &[(&str, &str)]) -> Result<Role, Faults> {
        let folder = std::env::temp_dir().join(format!("flotilla-config-{}", rand::random::<u64>()));
        std::fs::write(&folder, text).unwrap();
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let loaded = load(Some(&folder), env);
        std::fs::remove_file(&folder).unwrap();
        loaded
    }

    #[test]
    fn nothing_given_is_the_default() {
        let role: Role = load(None, std::iter::empty()).unwrap();
        assert_eq!(role.common.nats.url, "nats://127.0.0.1:4222");
        assert_eq!(role.common.models, crate::config::default_catalogue());
    }

    #[test]
    fn the_environment_stands_over_the_file_and_long_names_over_short() {
        let text = "[nats]\nurl = 'nats://file:1'\n[redis]\ncache = 'redis://file:2'\n[worker]\nslots = 3\n[rule]\n";
        let env = [
            ("FLOTILLA_REDIS__CACHE", "redis://long:4"),
            ("FLOTILLA_REDIS", "redis://short:3"),
            ("FLOTILLA_NATS", ""),
            ("FLOTILLA_WORKER__SLOTS", "7"),
            ("FLOTILLA_WORKER__RANK", "12"),
            ("FLOTILLA_WORKER__MODELS", "['a', 'b']"),
            ("FLOTILLA_LISTEN", "127.0.0.1:0"),
            ("FLOTILLA_LOG_FORMAT", "json"),
            ("FLOTILLA_DURABILITY", "strict"),
            ("FLOTILLA_MODELS", "/elsewhere"),
            ("HOME", "/root"),
        ];
        let role = check(text, &env).unwrap();
        assert_eq!(role.common.nats.url, "nats://file:1");
        assert_eq!(role.common.redis.sessions, "redis://short:3");
        assert_eq!(role.common.redis.cache, "redis://long:4");
        assert_eq!((role.worker.slots, role.worker.rank.as_deref()), (7, Some("12")));
        assert_eq!(role.worker.models, ["a", "b"]);
        assert_eq!(role.common.telemetry.log, LogFormat::Json);
        assert_eq!(role.common.streams.durability, Durability::Strict);
        assert_eq!(role.common.streams.limits().replicas, 3);
    }

    #[test]
    fn all_faults_are_listed_at_once() {
        let text = "typo = 1\n[nats]\nurl = 3\nurll = 'x'\n[telemetry]\nlog = 'loud'\n[[model]]\nname = 'm'\n";
        let faults = check(text, &[("FLOTILLA_WORKER__SLOTS", "-1"), ("FLOTILLA_MODEL__NAME", "x")]).unwrap_err().0;
        let names = ["[typo]", "nats.url:", "nats.urll:", "telemetry.log:", "[[model]] number 1:", "worker.slots:"];
        for name in names {
            assert!(faults.iter().any(|fault| fault.starts_with(name)), "{name} in {faults:#?}");
        }
        assert!(faults.iter().any(|fault| fault.starts_with("FLOTILLA_MODEL__NAME:")), "{faults:#?}");
        assert_eq!(faults.len(), names.len() + 1, "{faults:#?}");
    }

    #[test]
    fn what_types_cannot_say_is_checked_too() {
        let model = "[[model]]\nname = 'm'\ntasks = ['chat']\nmodality = 'text'\nfile = '../m'\nsha256 = 'x'\n\
                     precision = 'f16'\ncontext = 0\n";
        let faults = check(&format!("[streams]\nlane_jobs_max = 0\n{model}{model}"), &[]).unwrap_err().0;
        assert_eq!(faults.len(), 1 + 3 + 4, "{faults:#?}");
    }

    #[test]
    fn a_file_that_is_absent_or_no_toml_is_named() {
        let absent = load::<Role>(Some(Path::new("/nowhere/flotilla.toml")), std::iter::empty()).unwrap_err();
        assert!(absent.to_string().contains("/nowhere/flotilla.toml"));
        assert!(check("[nats", &[]).is_err());
    }
}
