//! The models that a fleet may be asked for, by name, precision and digest.

use std::collections::HashSet;
use std::sync::Arc;

use protocol::media::Modality;
use protocol::request::Task;
use protocol::token::ModelRef;
use protocol::{ErrorCode, Refusal};
use runtime::config::ModelEntry;

/// Shortest prefix of a digest that names a model.
const DIGEST_PREFIX_MIN: usize = 8;

/// The models, in the order of the configuration: the first that fits is the default.
#[derive(Clone, Debug, Default)]
pub struct Catalogue(Vec<Arc<ModelEntry>>);

impl Catalogue {
    /// Checks that every lane has one model, hence one precision; on fault, every fault.
    pub fn new(models: Vec<ModelEntry>) -> Result<Self, Vec<String>> {
        let mut faults = Vec::new();
        let mut names = HashSet::new();
        if models.is_empty() {
            faults.push("model: the catalogue is empty".to_owned());
        }
        for model in &models {
            if !names.insert(&model.name) {
                faults.push(format!("model {}: the name is used twice", model.name));
            }
            if model.tasks.is_empty() {
                faults.push(format!("model {}: tasks is empty", model.name));
            }
            if ModelRef::parse(&model.name).is_ok_and(|parsed| parsed.variant.is_none()) {
                continue;
            }
            faults.push(format!("model '{}': the name must be of letters, digits and ._:/-", model.name));
        }
        if faults.is_empty() { Ok(Self(models.into_iter().map(Arc::new).collect())) } else { Err(faults) }
    }

    /// Every model.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<ModelEntry>> {
        self.0.iter()
    }

    /// The model of that name, if it is the precision or digest that is asked for.
    pub fn find(&self, model: &ModelRef, precision: Option<&str>) -> Result<&Arc<ModelEntry>, Refusal> {
        let entry = self.0.iter().find(|entry| entry.name == model.name);
        let entry = entry.ok_or_else(|| absent(format!("no model '{}' in the catalogue", model.name)))?;
        match model.variant.as_deref().or(precision) {
            Some(variant) if !is_variant(entry, variant) => Err(absent(format!(
                "model '{}' is there as {} with digest {:.12}, not as '{variant}'",
                entry.name, entry.precision, entry.sha256
            ))),
            _ => Ok(entry),
        }
    }

    /// The first model that does a task on a modality, of a precision where one is asked for.
    pub fn default_for(
        &self,
        task: &Task,
        modality: Modality,
        precision: Option<&str>,
    ) -> Result<&Arc<ModelEntry>, Refusal> {
        let fits = |entry: &&Arc<ModelEntry>| {
            entry.modality == modality
                && entry.tasks.contains(task)
                && precision.is_none_or(|precision| entry.precision == precision)
        };
        self.0.iter().find(fits).ok_or_else(|| {
            absent(format!("no model in the catalogue does '{}' on {}", task.as_str(), modality.as_str()))
        })
    }

    /// Whether any model is stored so.
    #[must_use]
    pub fn has_precision(&self, precision: &str) -> bool {
        self.0.iter().any(|entry| entry.precision == precision)
    }
}

fn is_variant(entry: &ModelEntry, variant: &str) -> bool {
    let digest = variant.strip_prefix("sha256:").unwrap_or(variant).to_ascii_lowercase();
    entry.precision == variant || (digest.len() >= DIGEST_PREFIX_MIN && entry.sha256.starts_with(&digest))
}

fn absent(message: String) -> Refusal {
    Refusal::new(ErrorCode::ModelNotFound, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::entry;

    #[test]
    fn a_model_is_found_by_name_precision_and_digest() {
        let catalogue = Catalogue::new(vec![entry("a"), entry("b")]).unwrap();
        let find = |name: &str| catalogue.find(&ModelRef::parse(name).unwrap(), None).map(|entry| entry.name.clone());
        assert_eq!(find("b").unwrap(), "b");
        assert_eq!(find("b@q4_1").unwrap(), "b");
        assert_eq!(find("b@0123456789").unwrap(), "b");
        assert_eq!(find("b@sha256:0123456789").unwrap(), "b");
        for absent in ["c", "b@f16", "b@0123", "b@999999999"] {
            assert_eq!(find(absent).unwrap_err().code, ErrorCode::ModelNotFound, "{absent}");
        }
        assert!(catalogue.find(&ModelRef::parse("a").unwrap(), Some("f16")).is_err());
        assert_eq!(catalogue.default_for(&Task::Chat, Modality::Text, None).unwrap().name, "a");
        assert!(catalogue.default_for(&Task::Chat, Modality::Image, None).is_err());
    }

    #[test]
    fn every_fault_of_a_catalogue_is_named() {
        let mut idle = entry("x y");
        idle.tasks.clear();
        assert_eq!(Catalogue::new(vec![entry("a"), entry("a"), idle]).unwrap_err().len(), 3);
        assert_eq!(Catalogue::new(Vec::new()).unwrap_err().len(), 1);
    }
}
