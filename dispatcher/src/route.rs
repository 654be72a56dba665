//! Step 5 of the walk: which lane. Pure.
//!
//! The lane fixes model, digest and precision before the cache is read; a lane never mixes precisions.

use std::sync::Arc;

use protocol::media::Modality;
use protocol::request::{Params, Priority, Task};
use protocol::{ErrorCode, Refusal, subject};
use runtime::config::ModelEntry;

use crate::catalogue::Catalogue;
use crate::classify::Class;
use crate::terms::Terms;

/// The queue that a job travels on.
#[derive(Clone, Debug)]
pub struct Lane {
    /// What it carries.
    pub modality: Modality,
    /// Who computes.
    pub model: Arc<ModelEntry>,
    /// How urgent.
    pub priority: Priority,
}

impl Lane {
    /// Where its jobs are published.
    #[must_use]
    pub fn subject(&self) -> String {
        subject::lane(self.modality, &self.model.name, self.priority)
    }
}

/// Chooses the lane, or says why there is none.
pub fn route(class: &Class, terms: &Terms, catalogue: &Catalogue) -> Result<Lane, Refusal> {
    if let Task::Pipeline(name) = &terms.task {
        return Err(Refusal::invalid(format!("task '{name:.64}' is neither a task nor a pipeline of this fleet")));
    }
    let precision = terms.precision.as_deref();
    let model = match &terms.model {
        Some(model) => catalogue.find(model, precision)?,
        None => catalogue.default_for(&terms.task, class.modality, precision)?,
    };
    if !model.tasks.contains(&terms.task) {
        return Err(Refusal::invalid(format!("model '{}' does not do '{}'", model.name, terms.task.as_str())));
    }
    if model.modality != class.modality {
        return Err(Refusal::new(
            ErrorCode::UnsupportedMedia,
            format!("model '{}' takes {}, not {}", model.name, model.modality.as_str(), class.mime),
        ));
    }
    Ok(Lane { modality: class.modality, model: Arc::clone(model), priority: terms.priority })
}

/// What only the model's own size can tell.
pub fn check_params(params: &Params, model: &ModelEntry) -> Result<(), Refusal> {
    match params.max_tokens {
        Some(tokens) if tokens > model.context => {
            Err(Refusal::invalid(format!("params.max_tokens must be 1 to {}, the model's context", model.context)))
        }
        _ => Ok(()),
    }
}
