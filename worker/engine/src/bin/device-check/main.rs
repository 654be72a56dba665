//! Looks at this machine's GPU: whether our kernels are right on it, and how fast.
//!
//! `device-check [checks | 135M | 8B | MiniLM | Whisper | EfficientNet | CLIP | products] [serial] [JSON]` prints a table,
//! and writes the same to a file; exit 1 if anything is wrong. `checks` leaves out speeds, the others look at the speed of one shape only; `serial` begins no kernel before the one ahead of it has ended.

use std::process::ExitCode;

use engine::check::{Check, Extent, Measure, Report, run};
use engine::cuda::Settings;

/// What speed may be asked of alone.
const SHAPES: [&str; 7] = ["135M", "8B", "MiniLM", "Whisper", "EfficientNet", "CLIP", "products"];

fn main() -> ExitCode {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut asked = |word: &str| {
        let place = arguments.iter().position(|argument| argument == word);
        place.map(|place| arguments.remove(place)).is_some()
    };
    let speeds = SHAPES.into_iter().find(|shape| asked(shape));
    let extent = match (asked("checks"), speeds) {
        (true, _) => Extent::Checks,
        (false, Some(shape)) => Extent::Speeds(shape.to_owned()),
        (false, None) => Extent::Everything,
    };
    let early = !asked("serial");
    let libraries = std::env::var_os("FLOTILLA_WORKER__GPU_LIBRARIES");
    let libraries = libraries.map(|folders| std::env::split_paths(&folders).collect()).unwrap_or_default();
    let settings = Settings { libraries, early, ..Settings::default() };
    let report = match run(&settings, extent, &mut |what| eprintln!("{what} ...")) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("device-check: {error}");
            return ExitCode::FAILURE;
        }
    };
    show(&report);
    if let Some(path) = arguments.first() {
        let written = serde_json::to_vec_pretty(&report).map_err(std::io::Error::from);
        if let Err(error) = written.and_then(|json| std::fs::write(path, json)) {
            eprintln!("device-check: {path}: {error}");
            return ExitCode::FAILURE;
        }
    }
    if report.checks.iter().all(Check::holds) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn show(report: &Report) {
    println!("{}; {}", report.card, report.kernels);
    let wrong: Vec<&Check> = report.checks.iter().filter(|check| !check.holds()).collect();
    println!("{} of {} cases as the oracle has them", report.checks.len() - wrong.len(), report.checks.len());
    for Check { name, error, allowed } in wrong {
        println!("  WRONG {name}: {error:.1e} of {allowed:.1e}");
    }
    for Measure { name, value, unit, part } in &report.measures {
        let part = part.map_or(String::new(), |(part, of)| format!("{:5.1} % of {of}", part * 100.0));
        println!("{name:<44} {value:>12.2} {unit:<10} {part}");
    }
}
