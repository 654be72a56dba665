//! `flotilla models`: the catalogue, what of it is on this machine, and what a fleet has loaded.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use protocol::heartbeat::{Heartbeat, INTERVAL};
use protocol::media::Modality;
use protocol::request::Task;
use runtime::config::{ModelEntry, Pull as When};
use serde::Serialize;

use crate::fleet;
use crate::index::{Choice, Source};
use crate::quantize::Quantize;
use crate::settings::Settings;
use crate::shelf::{Arrival, Shelf};
use crate::table::table;

/// How long a fleet may take to let itself be asked: most lists are of a machine without one.
const REACH: Duration = Duration::from_secs(1);
/// Digits of a digest that are shown; as many as name a model in a request.
const DIGEST_DIGITS: usize = 12;

/// `flotilla models`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Models {
    /// Every model of the catalogue, and where it is loaded.
    #[command(visible_alias = "ls")]
    List(List),
    /// Get models of the catalogue that are not here yet.
    Pull(Pull),
    /// Write a model anew with smaller weights, and tell what that costs.
    ///
    /// For models that embed, label or transcribe. The new one, MODEL-int8, becomes one of the fleet by an entry in
    /// flotilla.toml, which is printed. It computes what MODEL does under `worker.weights = "int8"`.
    Quantize(Quantize),
}

/// `flotilla models list`
#[derive(Clone, Debug, Args)]
pub(crate) struct List {
    /// Print JSON.
    #[arg(long, short, env = "FLOTILLA_JSON")]
    json: bool,
}

/// `flotilla models pull`
#[derive(Clone, Debug, Args)]
pub(crate) struct Pull {
    /// Names; without any, all but those that are pulled only when asked for.
    names: Vec<String>,
    #[command(flatten)]
    index: Choice,
}

/// What only `main` knows.
#[derive(Clone, Debug)]
pub(crate) struct Surroundings {
    /// The index that pip was set to.
    pub(crate) pip: Option<String>,
    /// The fleet that is asked.
    pub(crate) nats: String,
    /// This program.
    pub(crate) program: PathBuf,
}

#[derive(Debug, Serialize)]
struct Row<'a> {
    name: &'a str,
    family: Option<&'a str>,
    tasks: &'a [Task],
    modality: Modality,
    precision: &'a str,
    context: u32,
    licence: Option<&'a str>,
    sha256: &'a str,
    file: String,
    /// Size of the file, where it is here.
    bytes: Option<u64>,
    /// Whether a pull fetches it without its name.
    pulled: &'static str,
    /// Workers that have it; `None` where no fleet answers.
    loaded: Option<Vec<Place>>,
}

/// A worker that has a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Place {
    worker: String,
    device: String,
}

impl Models {
    /// Does it.
    pub(crate) fn run(self, settings: &Settings, shelf: &Shelf, around: Surroundings) -> Result<()> {
        let catalogue = &settings.common.models;
        match self {
            Models::List(List { json }) => {
                let workers = workers(&around.nats)?;
                let rows: Vec<Row<'_>> = catalogue.iter().map(|model| row(model, shelf, workers.as_deref())).collect();
                if json {
                    println!("{}", serde_json::to_string_pretty(&rows)?);
                } else {
                    let head = ["model", "family", "size", "precision", "digest", "licence", "tasks", "loaded"];
                    println!("{}", table(&head, &rows.iter().map(cells).collect::<Vec<_>>()));
                }
                Ok(())
            }
            Models::Pull(Pull { names, index }) => {
                let models = if names.is_empty() { settings.wanted() } else { chosen(catalogue, &names)? };
                shelf.stock(&models, &Source::choose(index, around.pip), |model, arrival| {
                    println!("{}", arrived(model, shelf, arrival));
                })
            }
            Models::Quantize(quantize) => {
                let model = chosen(catalogue, std::slice::from_ref(quantize.model()))?[0];
                println!("{}", quantize.run((model, catalogue), shelf, &around.program)?);
                Ok(())
            }
        }
    }
}

/// Every worker of the fleet at `url`, if one can be reached.
fn workers(url: &str) -> Result<Option<Vec<Heartbeat>>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(async {
        let client = tokio::time::timeout(REACH, fleet::connect(url)).await.ok()?.ok()?;
        // One heartbeat of every worker falls into this time.
        fleet::workers(&client, INTERVAL + Duration::from_millis(200)).await.ok()
    }))
}

fn arrived(model: &ModelEntry, shelf: &Shelf, arrival: Arrival) -> String {
    let file = shelf.file(model);
    match arrival {
        Arrival::There => format!("{}: there already ({})", model.name, file.display()),
        Arrival::Fetched => {
            let licence = model.licence.as_deref().unwrap_or("unknown");
            format!("{}: fetched ({}), licence: {licence}", model.name, file.display())
        }
    }
}

fn chosen<'a>(catalogue: &'a [ModelEntry], names: &[String]) -> Result<Vec<&'a ModelEntry>> {
    let find = |name: &String| match catalogue.iter().find(|model| model.name == *name) {
        Some(model) => Ok(model),
        None => bail!("no model '{name}' in the catalogue: flotilla models list"),
    };
    names.iter().map(find).collect()
}

fn row<'a>(model: &'a ModelEntry, shelf: &Shelf, workers: Option<&[Heartbeat]>) -> Row<'a> {
    let file = shelf.file(model);
    Row {
        name: &model.name,
        family: model.family.as_deref(),
        tasks: &model.tasks,
        modality: model.modality,
        precision: &model.precision,
        context: model.context,
        licence: model.licence.as_deref(),
        sha256: &model.sha256,
        bytes: file.metadata().ok().map(|meta| meta.len()),
        file: file.display().to_string(),
        pulled: if model.pull == When::Always { "always" } else { "asked" },
        loaded: workers.map(|workers| places(model, workers)),
    }
}

fn places(model: &ModelEntry, workers: &[Heartbeat]) -> Vec<Place> {
    let has = |worker: &&Heartbeat| {
        worker.models.iter().any(|loaded| loaded.name == model.name && loaded.digest == model.sha256)
    };
    let place = |worker: &Heartbeat| Place { worker: worker.worker.to_string(), device: worker.device.clone() };
    workers.iter().filter(has).map(place).collect()
}

/// `2 x cpu, 1 x NVIDIA H200`
fn loaded(places: Option<&[Place]>) -> String {
    let Some(places) = places else { return "-".to_owned() };
    let mut devices: BTreeMap<&str, usize> = BTreeMap::new();
    places.iter().for_each(|place| *devices.entry(&place.device).or_default() += 1);
    let devices: Vec<String> = devices.iter().map(|(device, count)| format!("{count} x {device}")).collect();
    if devices.is_empty() { "nowhere".to_owned() } else { devices.join(", ") }
}

fn cells(row: &Row<'_>) -> Vec<String> {
    let absent = if row.pulled == "asked" { "when asked" } else { "not here" };
    vec![
        row.name.to_owned(),
        row.family.unwrap_or("-").to_owned(),
        row.bytes.map_or_else(|| absent.to_owned(), |bytes| indicatif::DecimalBytes(bytes).to_string()),
        row.precision.to_owned(),
        row.sha256.get(..DIGEST_DIGITS).unwrap_or(row.sha256).to_owned(),
        row.licence.unwrap_or("unknown").to_owned(),
        row.tasks.iter().map(Task::as_str).collect::<Vec<_>>().join(" "),
        loaded(row.loaded.as_deref()),
    ]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use protocol::heartbeat::{Loaded, State};
    use protocol::token::Token;

    use super::*;
    use crate::home::Home;

    fn worker(name: &str, device: &str, digest: &str) -> Heartbeat {
        let model = runtime::config::default_catalogue().remove(0);
        let loaded = Loaded { name: model.name, digest: digest.to_owned(), precision: model.precision, context: 8192 };
        Heartbeat {
            version: 1,
            worker: Token::parse("worker", name).unwrap(),
            release: String::new(),
            device: device.to_owned(),
            models: vec![loaded],
            state: State::Ready,
            slots_free: 1,
            slots: 1,
            step_seconds: 0.0,
            answered: Vec::new(),
        }
    }

    #[test]
    fn a_model_is_loaded_where_a_worker_has_the_very_file() {
        let model = runtime::config::default_catalogue().remove(0);
        let workers =
            [worker("a", "cpu", &model.sha256), worker("b", "cpu", &model.sha256), worker("c", "cpu", "other")];
        let places = places(&model, &workers);
        assert_eq!(places.iter().map(|place| place.worker.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(
            (loaded(Some(&places)), loaded(Some(&[])), loaded(None)),
            ("2 x cpu".into(), "nowhere".into(), "-".into())
        );
    }

    #[test]
    fn a_row_says_what_is_known_of_a_model_that_is_not_here() {
        let shelf = Shelf::of(&Home::find(Some("/nowhere".into()), Path::new("/nowhere")));
        let catalogue = runtime::config::default_catalogue();
        let found = cells(&row(&catalogue[5], &shelf, None));
        let wanted = ["gemma-3-270m", "gemma3", "when asked", "q4_k_m", "a5fd3b62230a", "Gemma terms", "complete", "-"];
        assert_eq!(found, wanted);
        assert_eq!(cells(&row(&catalogue[0], &shelf, Some(&[])))[2], "not here");
        let names = ["whisper-base".to_owned()];
        assert_eq!(chosen(&catalogue, &names).unwrap()[0].name, names[0]);
        assert!(chosen(&catalogue, &["no".to_owned()]).is_err());
    }
}
