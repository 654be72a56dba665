//! `flotilla models`: the catalogue, and what of it is on this machine.

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use protocol::media::Modality;
use protocol::request::Task;
use runtime::config::ModelEntry;
use serde::Serialize;

use crate::index::{Choice, Source};
use crate::shelf::{Arrival, Shelf};
use crate::table::table;

/// `flotilla models`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Models {
    /// Every model of the catalogue.
    #[command(visible_alias = "ls")]
    List(List),
    /// Get models of the catalogue that are not here yet.
    Pull(Pull),
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
    /// Names; all of the catalogue when none are given.
    names: Vec<String>,
    #[command(flatten)]
    index: Choice,
}

#[derive(Debug, Serialize)]
struct Row<'a> {
    name: &'a str,
    tasks: &'a [Task],
    modality: Modality,
    precision: &'a str,
    context: u32,
    licence: Option<&'a str>,
    sha256: &'a str,
    file: String,
    bytes: Option<u64>,
}

impl Models {
    /// Does it. `pip` is the index that pip was set to.
    pub(crate) fn run(self, catalogue: &[ModelEntry], shelf: &Shelf, pip: Option<String>) -> Result<()> {
        match self {
            Models::List(List { json }) => {
                let rows: Vec<Row<'_>> = catalogue.iter().map(|model| row(model, shelf)).collect();
                if json {
                    println!("{}", serde_json::to_string_pretty(&rows)?);
                } else {
                    let head = ["model", "tasks", "precision", "context", "size", "licence"];
                    println!("{}", table(&head, &rows.iter().map(cells).collect::<Vec<_>>()));
                }
                Ok(())
            }
            Models::Pull(Pull { names, index }) => {
                shelf.stock(&chosen(catalogue, &names)?, &Source::choose(index, pip), |model, arrival| {
                    println!("{}", arrived(model, shelf, arrival));
                })
            }
        }
    }
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
    if names.is_empty() {
        return Ok(catalogue.iter().collect());
    }
    let find = |name: &String| match catalogue.iter().find(|model| model.name == *name) {
        Some(model) => Ok(model),
        None => bail!("no model '{name}' in the catalogue: flotilla models list"),
    };
    names.iter().map(find).collect()
}

fn row<'a>(model: &'a ModelEntry, shelf: &Shelf) -> Row<'a> {
    let file = shelf.file(model);
    Row {
        name: &model.name,
        tasks: &model.tasks,
        modality: model.modality,
        precision: &model.precision,
        context: model.context,
        licence: model.licence.as_deref(),
        sha256: &model.sha256,
        bytes: file.metadata().ok().map(|meta| meta.len()),
        file: file.display().to_string(),
    }
}

fn cells(row: &Row<'_>) -> Vec<String> {
    vec![
        row.name.to_owned(),
        row.tasks.iter().map(Task::as_str).collect::<Vec<_>>().join(" "),
        row.precision.to_owned(),
        row.context.to_string(),
        row.bytes.map_or_else(|| "not here".to_owned(), |bytes| indicatif::HumanBytes(bytes).to_string()),
        row.licence.unwrap_or("unknown").to_owned(),
    ]
}
