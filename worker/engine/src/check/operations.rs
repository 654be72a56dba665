//! Each operation's cases on a card.

use super::Check;
use crate::Error;
use crate::backend::cuda::check::{Case, cases};
use crate::cuda::Card;

/// Runs every case; names begin with `of`.
pub(super) fn compare(card: &Card, of: &str) -> Result<Vec<Check>, Error> {
    let gpu = card.open()?;
    let check = |case: &Case| {
        let (error, fault) = match case.error(&gpu) {
            Ok(error) => (error, String::new()),
            // A device that stops working says so at every case from there on; the first tells why.
            Err(fault) => (f64::INFINITY, format!(": {fault}")),
        };
        Check { name: format!("{of}{}{fault}", case.name), error, allowed: case.allowed }
    };
    Ok(cases().iter().map(check).collect())
}
