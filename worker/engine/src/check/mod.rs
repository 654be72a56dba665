//! What a GPU does with our kernels: each operation against the oracle, small networks end to end, and how fast, beside
//! what the same card copies and multiplies at best. `device-check` prints it.

mod ceilings;
mod chains;
mod encoders;
pub(crate) mod models;
mod operations;
mod speed;

use serde::Serialize;

use crate::Error;
use crate::cuda::{Card, Settings};

/// All that was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// As its maker calls it.
    pub card: String,
    /// Where its kernels came from.
    pub kernels: String,
    /// Operations and networks against the oracle.
    pub checks: Vec<Check>,
    /// Speeds.
    pub measures: Vec<Measure>,
}

/// Something that was compared.
#[derive(Debug, Serialize)]
pub struct Check {
    /// What.
    pub name: String,
    /// Mean square of the error over that of the truth.
    pub error: f64,
    /// What is allowed.
    pub allowed: f64,
}

impl Check {
    /// Whether it is as it should be.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.error <= self.allowed
    }
}

/// Something that was timed.
#[derive(Debug, Serialize)]
pub struct Measure {
    /// What.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// The part of a ceiling that this is, and what that ceiling is.
    pub part: Option<(f64, &'static str)>,
}

/// What to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Whether it is right.
    Checks,
    /// How fast it is, of the shapes whose names begin so.
    Speeds(String),
    /// Both.
    Everything,
}

/// Looks at the GPU of these settings; tells `progress` what it is at.
///
/// # Errors
/// When there is none, or it stops working.
pub fn run(settings: &Settings, extent: Extent, progress: &mut dyn FnMut(&str)) -> Result<Report, Error> {
    let card = Card::find(settings.clone())?;
    let mut report = Report {
        card: card.name().to_owned(),
        kernels: crate::cuda::embedded(),
        checks: Vec::new(),
        measures: Vec::new(),
    };
    // The vendor's library hides our own products of many rows.
    let alone = Card::find(Settings { products: false, ..settings.clone() })?;
    if !matches!(extent, Extent::Speeds(_)) {
        progress("operations");
        report.checks.extend(operations::compare(&card, "")?);
        report.checks.extend(operations::compare(&alone, "our own ")?);
        progress("networks");
        report.checks.extend(models::compare(&card)?);
    }
    match extent {
        Extent::Checks => {}
        Extent::Speeds(shapes) => speed::measure((&card, &alone), &shapes, &mut report.measures, progress)?,
        Extent::Everything => speed::measure((&card, &alone), "", &mut report.measures, progress)?,
    }
    Ok(report)
}
