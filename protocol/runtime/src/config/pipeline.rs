//! `[[pipeline]]`: requests that several models answer one after another.

use std::collections::HashSet;

use protocol::media::Modality;
use protocol::pipeline::STEPS_MAX;
use protocol::request::Task;
use protocol::token::{ModelRef, Token};
use serde::Deserialize;

use super::ModelEntry;

/// The pipeline that answers a chat with sounds or pictures in it.
pub const ASSISTANT: &str = "assistant";

/// A pipeline: each step but the last turns parts of the input into text, the last answers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipelineEntry {
    /// Its name, as requests give it for a task.
    pub name: String,
    /// Its steps, in order.
    pub steps: Vec<StepEntry>,
}

/// A step of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepEntry {
    /// What is done.
    pub task: Task,
    /// By which model of the catalogue; the task's default where it is absent.
    #[serde(default)]
    pub model: Option<ModelRef>,
    /// Of which parts: image or audio. The last step has none, since it reads texts.
    #[serde(default)]
    pub on: Option<Modality>,
}

impl StepEntry {
    /// What its model takes.
    #[must_use]
    pub fn modality(&self) -> Modality {
        self.on.unwrap_or(Modality::Text)
    }

    fn fits(&self, model: &ModelEntry) -> bool {
        let named = self.model.as_ref().is_none_or(|named| named.name == model.name);
        named && model.modality == self.modality() && model.tasks.contains(&self.task)
    }
}

/// The pipelines of a fleet whose configuration has no `[[pipeline]]`.
#[must_use]
pub fn default_pipelines() -> Vec<PipelineEntry> {
    let step = |task, on| StepEntry { task, model: None, on };
    vec![PipelineEntry {
        name: ASSISTANT.to_owned(),
        steps: vec![
            step(Task::Transcribe, Some(Modality::Audio)),
            step(Task::Classify, Some(Modality::Image)),
            step(Task::Chat, None),
        ],
    }]
}

/// What types cannot say of pipelines.
pub(super) fn faults(pipelines: &[PipelineEntry], models: &[ModelEntry]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut names = HashSet::new();
    // The default one is for whatever the catalogue has: a request that needs more is refused.
    let default = default_pipelines();
    for pipeline in pipelines {
        let name = &pipeline.name;
        let mut fault = |what: String| faults.push(format!("pipeline '{name:.64}': {what}"));
        if !names.insert(name) {
            fault("the name is used twice".to_owned());
        }
        if !matches!(Task::from(name.clone()), Task::Pipeline(_)) {
            fault("the name is that of a task".to_owned());
        }
        if let Err(refusal) = Token::parse("name", name) {
            fault(refusal.message);
        }
        if pipeline.steps.is_empty() || pipeline.steps.len() > STEPS_MAX {
            fault(format!("it must have 1 to {STEPS_MAX} steps"));
        }
        let mut read = HashSet::new();
        for (index, step) in pipeline.steps.iter().enumerate() {
            if step.on.is_some_and(|on| !read.insert(on)) {
                fault(format!("step {}: {} parts are text after the step before", index + 1, step.modality().as_str()));
            }
            let last = index + 1 == pipeline.steps.len();
            let mut fault = |what: String| fault(format!("step {}: {what}", index + 1));
            check_place(step, last, &mut fault);
            if !default.contains(pipeline) && !models.iter().any(|model| step.fits(model)) {
                let named = step.model.as_ref().map(|model| format!(" by the name '{}'", model.name));
                let (task, modality) = (step.task.as_str(), step.modality().as_str());
                fault(format!("no model{} does '{task:.64}' on {modality}", named.unwrap_or_default()));
            }
        }
    }
    faults
}

/// A step gives a text to those after it, and only the last reads texts.
fn check_place(step: &StepEntry, last: bool, fault: &mut impl FnMut(String)) {
    if let Task::Pipeline(task) = &step.task {
        fault(format!("'{task:.64}' is no task"));
    }
    match (last, step.on) {
        (true, Some(_)) => fault("the last step has no 'on': it reads what the others gave".to_owned()),
        (false, None | Some(Modality::Text)) => fault("'on' must be \"image\" or \"audio\"".to_owned()),
        (false, Some(_)) if matches!(step.task, Task::Embed | Task::Score) => {
            fault(format!("'{}' gives no text for the steps after it", step.task.as_str()));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::default_catalogue;

    fn check(text: &str) -> Vec<String> {
        #[derive(Deserialize)]
        struct File {
            pipeline: Vec<PipelineEntry>,
        }
        let file: File = toml::from_str(text).unwrap();
        let mut ears = default_catalogue().remove(0);
        (ears.name, ears.modality, ears.tasks) = ("ears".into(), Modality::Audio, vec![Task::Transcribe]);
        let mut catalogue = default_catalogue();
        catalogue.push(ears);
        faults(&file.pipeline, &catalogue)
    }

    #[test]
    fn the_default_is_for_every_catalogue_and_others_must_find_their_models() {
        assert_eq!(faults(&default_pipelines(), &default_catalogue()), Vec::<String>::new());
        let steps = "steps = [{ task = 'transcribe', model = 'ears', on = 'audio' }, { task = 'chat' }]";
        assert_eq!(check(&format!("[[pipeline]]\nname = 'voice'\n{steps}")), Vec::<String>::new());
        let steps =
            "steps = [{ task = 'classify', model = 'absent', on = 'image' }, { task = 'chat', model = 'absent' }]";
        assert_eq!(check(&format!("[[pipeline]]\nname = 'eyes'\n{steps}")).len(), 2);
    }

    #[test]
    fn every_fault_of_a_pipeline_is_named() {
        let one = |steps: &str| check(&format!("[[pipeline]]\nname = 'p'\nsteps = [{steps}]"));
        let chat = "{ task = 'chat' }";
        assert_eq!(one(chat), Vec::<String>::new());
        assert!(one("")[0].contains("1 to 8 steps"));
        assert!(one(&format!("{chat}, {chat}"))[0].contains("step 1: 'on'"));
        assert!(one("{ task = 'transcribe', on = 'audio' }")[0].contains("the last step"));
        assert!(one(&format!("{{ task = 'embed', on = 'audio' }}, {chat}"))[0].contains("gives no text"));
        assert!(one("{ task = 'other' }")[0].contains("is no task"));
        let many = "{ task = 'transcribe', on = 'audio' }, ".repeat(8);
        assert!(one(&format!("{many}{chat}"))[0].contains("1 to 8 steps"));
        assert!(check("[[pipeline]]\nname = 'chat'\nsteps = [{ task = 'chat' }]")[0].contains("that of a task"));
        let twice = "[[pipeline]]\nname = 'a.b'\nsteps = [{ task = 'chat' }]\n".repeat(2);
        assert_eq!(check(&twice).len(), 3);
    }
}
