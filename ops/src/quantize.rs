//! `flotilla models quantize`: a model's file with smaller weights beside it, what that costs, and how the fleet gets it.
//! The worker's program rounds and measures: it is the one that knows models.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use protocol::media::Modality;
use protocol::request::Task;
use protocol::rounding::{Loss, Report};
use runtime::config::{ModelEntry, Pull, default_catalogue};
use serde::Serialize;

use crate::shelf::Shelf;
use crate::table::table;

/// The precision, and what names of such models end with.
const INT8: &str = "int8";
/// The only files that are rounded.
const EXTENSION: &str = ".safetensors";

/// `flotilla models quantize`
#[derive(Clone, Debug, Args)]
pub(crate) struct Quantize {
    #[command(flatten)]
    precision: Precision,
    /// Name of a model of the catalogue, whose file is here.
    model: String,
}

/// Which one is wanted; there is no default.
#[derive(Clone, Copy, Debug, Args)]
#[group(required = true)]
struct Precision {
    /// A signed byte under a scale for each 32 weights of a matrix; the rest as it is stored.
    #[arg(long, env = "FLOTILLA_INT8")]
    int8: bool,
}

impl Quantize {
    /// Which model of the catalogue.
    pub(crate) fn model(&self) -> &String {
        &self.model
    }

    /// Does it; what there is to say. `program` is this one.
    pub(crate) fn run(
        self,
        (model, catalogue): (&ModelEntry, &[ModelEntry]),
        shelf: &Shelf,
        program: &Path,
    ) -> Result<String> {
        let mut rounded = derived(model)?;
        let file = shelf.pinned(model)?;
        let worker = program.with_file_name("worker");
        if !worker.is_file() {
            bail!(
                "{} is not there, and it is what rounds: install all programs of a release together, or set worker.weights = \"int8\", \
                 which rounds at each load",
                worker.display()
            );
        }
        eprintln!("  {}: rounding it, and asking both files the same", model.name);
        let report = shelf
            .add(&mut rounded, |to| round(&worker, &file, to))
            .with_context(|| format!("cannot quantise {}", model.name))?;
        let lines = [
            summary(&report, &rounded.name),
            format!("{}: written ({})", rounded.name, shelf.file(&rounded).display()),
            use_of(model, &rounded, catalogue)?,
        ];
        Ok(lines.join("\n\n"))
    }
}

/// The entry of the model that is to be, but for its SHA-256.
fn derived(model: &ModelEntry) -> Result<ModelEntry> {
    let ModelEntry { name, file, precision, .. } = model;
    if precision == INT8 {
        bail!("{name} is {INT8} already");
    }
    let Some(stem) = file.strip_suffix(EXTENSION) else {
        bail!("{name} is {precision} already: models that write text come quantised");
    };
    let stem = stem.strip_suffix(&format!(".{precision}")).unwrap_or(stem);
    Ok(ModelEntry {
        name: format!("{name}-{INT8}"),
        file: format!("{stem}.{INT8}{EXTENSION}"),
        precision: INT8.to_owned(),
        sha256: String::new(),
        source: None,
        pull: Pull::Asked,
        ..model.clone()
    })
}

fn round(worker: &Path, from: &Path, to: &Path) -> Result<Report> {
    let output = Command::new(worker).arg("quantize").args([from, to]).output();
    let output = output.with_context(|| format!("start {}", worker.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        match said.trim() {
            "" => bail!("{} ended with {}", worker.display(), output.status),
            said => bail!("{said}"),
        }
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("{} is of another release", worker.display()))
}

/// What became of a model that is called so now.
fn summary(report: &Report, name: &str) -> String {
    let size = |bytes| indicatif::DecimalBytes(bytes).to_string();
    let percent = |part: f64| format!("{:.2} %", part * 100.0);
    let row = |what: &str, number: String, remark: &str| vec![what.to_owned(), number, remark.to_owned()];
    let mut rows = vec![
        row("tensors rounded", report.rounded.to_string(), "matrices of products"),
        row("tensors kept", report.kept.to_string(), "as they are stored"),
    ];
    if report.folded > 0 {
        rows.push(row("tensors folded", report.folded.to_string(), "normalisations, now in the rounded ones"));
    }
    let shrunk = format!("{:.0} % of that", report.bytes_after as f64 / report.bytes_before as f64 * 100.0);
    rows.extend([
        row("size before", size(report.bytes_before), ""),
        row("size after", size(report.bytes_after), &shrunk),
        row("error of weights", percent(report.error), "root mean square, of all that are rounded"),
        row("greatest error", percent(report.worst.error), &report.worst.tensor),
    ]);
    rows.extend(cost(&report.loss).map(|(what, number, remark)| row(what, number, &remark)));
    table(&[name, INT8, ""], &rows)
}

/// What is lost, with its number and a remark.
fn cost(loss: &Loss) -> [(&'static str, String, String); 2] {
    match loss {
        Loss::Directions { inputs, least, mean } => [
            ("least cosine", format!("{least:.5}"), format!("to the stored model's, of {inputs} inputs")),
            ("mean cosine", format!("{mean:.5}"), String::new()),
        ],
        Loss::Labels { inputs, difference, same, margin } => {
            let mut remark = format!("of {inputs} pictures");
            // A label that changes says little where two were about as likely.
            if same < inputs {
                remark += &format!("; one that changed was likelier by {margin:.4} at most");
            }
            [
                ("greatest change", format!("{difference:.4}"), "of a probability".to_owned()),
                ("same label", same.to_string(), remark),
            ]
        }
        Loss::Words { words, same } => [
            ("words of a sentence", words.to_string(), String::new()),
            ("words are", if *same { "the same" } else { "not the same" }.to_owned(), String::new()),
        ],
    }
}

/// `[[model]]` as it is written.
#[derive(Serialize)]
struct Written<'a> {
    name: &'a str,
    tasks: &'a [Task],
    modality: Modality,
    #[serde(skip_serializing_if = "Option::is_none")]
    family: Option<&'a str>,
    file: &'a str,
    sha256: &'a str,
    precision: &'a str,
    context: u32,
    pull: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    licence: Option<&'a str>,
}

/// How the fleet gets a model that was made of another.
fn use_of(model: &ModelEntry, rounded: &ModelEntry, catalogue: &[ModelEntry]) -> Result<String> {
    let (name, before) = (&rounded.name, &model.name);
    let mut text = String::new();
    if let Some(there) = catalogue.iter().find(|entry| entry.name == *name) {
        if there.sha256 == rounded.sha256 {
            return Ok(format!("{name} is in the catalogue already: restart the workers that are to load it"));
        }
        writeln!(text, "Its entry in flotilla.toml pins another file: put this in its place, and restart the fleet.")?;
    } else {
        writeln!(
            text,
            "To use it, put this into flotilla.toml and restart the fleet; requests name {name}, and those"
        )?;
        writeln!(text, "that name no model get it where it stands before {before}, or instead of it.")?;
    }
    if catalogue == default_catalogue() {
        writeln!(text, "With any [[model]] there only those there count: take the '#' from those that you keep.")?;
    }
    let ModelEntry { tasks, modality, family, file, sha256, precision, context, licence, .. } = rounded;
    let (family, licence) = (family.as_deref(), licence.as_deref());
    let (modality, context) = (*modality, *context);
    let entry = Written { name, tasks, modality, family, file, sha256, precision, context, pull: "asked", licence };
    write!(text, "\n[[model]]\n{}", toml::to_string(&entry)?)?;
    Ok(text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minilm() -> ModelEntry {
        default_catalogue().remove(1)
    }

    fn report(loss: &str) -> Report {
        let text = format!(
            r#"{{"rounded":3,"kept":4,"folded":0,"bytes_before":2000000,"bytes_after":1000000,"error":0.0042,
            "worst":{{"tensor":"a.weight","error":0.01}},"loss":{loss}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_model_gets_a_name_and_a_file_of_its_own() {
        let rounded = derived(&minilm()).unwrap();
        assert_eq!((rounded.name.as_str(), rounded.precision.as_str()), ("all-minilm-l6-v2-int8", "int8"));
        assert_eq!(rounded.file, "all-minilm-l6-v2.int8.safetensors");
        let plain = ModelEntry { file: "weights.safetensors".into(), ..minilm() };
        assert_eq!(derived(&plain).unwrap().file, "weights.int8.safetensors");
        let again = derived(&rounded).unwrap_err().to_string();
        assert!(again.contains("already"), "{again}");
        let decoder = derived(&default_catalogue()[0]).unwrap_err().to_string();
        assert!(decoder.contains("q4_1 already"), "{decoder}");
    }

    #[test]
    fn what_it_costs_is_one_table() {
        let shown = summary(&report(r#"{"of":"directions","inputs":12,"least":0.99951,"mean":0.9998}"#), "m-int8");
        for line in ["tensors rounded", "1.00 MB", "50 % of that", "0.42 %", "1.00 %", "a.weight", "0.99951", "0.99980"]
        {
            assert!(shown.contains(line), "{line}: {shown}");
        }
        assert!(!shown.contains("folded"), "{shown}");
        let shown =
            summary(&report(r#"{"of":"labels","inputs":10,"difference":0.02,"same":9,"margin":0.0031}"#), "m-int8");
        assert!(
            shown.contains("0.0200") && shown.contains("of 10 pictures; one that changed was likelier by 0.0031"),
            "{shown}"
        );
        let shown = summary(&report(r#"{"of":"words","words":13,"same":false}"#), "m-int8");
        assert!(shown.contains("not the same"), "{shown}");
    }

    #[test]
    fn the_entry_that_is_printed_is_the_model() {
        let (model, mut catalogue) = (minilm(), default_catalogue());
        let rounded = ModelEntry { sha256: "0a".repeat(32), ..derived(&model).unwrap() };
        let text = use_of(&model, &rounded, &catalogue).unwrap();
        assert!(text.contains("take the '#'"), "{text}");
        let (_, entry) = text.split_once("[[model]]\n").unwrap();
        assert_eq!(toml::from_str::<ModelEntry>(entry).unwrap(), rounded);
        catalogue.push(ModelEntry { sha256: "0b".repeat(32), ..rounded.clone() });
        let text = use_of(&model, &rounded, &catalogue).unwrap();
        assert!(text.contains("in its place") && !text.contains("take the '#'"), "{text}");
        *catalogue.last_mut().unwrap() = rounded.clone();
        assert!(!use_of(&model, &rounded, &catalogue).unwrap().contains("[[model]]"));
    }

    #[test]
    fn a_precision_must_be_named() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            quantize: Quantize,
        }
        let parse = |line: &[&str]| <Line as clap::Parser>::try_parse_from(line);
        assert_eq!(parse(&["", "--int8", "m"]).unwrap().quantize.model(), "m");
        assert!(parse(&["", "m"]).is_err() && parse(&["", "--int8"]).is_err());
    }

    #[test]
    fn what_the_worker_says_of_a_failure_is_passed_on() {
        let said = round(Path::new("/bin/ls"), Path::new("/nowhere/a"), Path::new("/nowhere/b")).unwrap_err();
        assert!(said.to_string().contains("/nowhere"), "{said}");
        assert!(
            round(Path::new("/bin/echo"), Path::new("a"), Path::new("b")).unwrap_err().to_string().contains("release")
        );
    }
}
