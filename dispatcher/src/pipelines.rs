//! Which requests several models answer, and by which steps. Pure: a plan is fixed at admission and travels with the job.

use std::sync::Arc;

use protocol::job::Job;
use protocol::media::Modality;
use protocol::pipeline::{self, PARTS_MAX, Step};
use protocol::request::{Part, Priority, Task};
use protocol::{ErrorCode, Refusal};
use runtime::config::{ASSISTANT, ModelEntry, PipelineEntry, StepEntry};

use crate::catalogue::Catalogue;
use crate::classify::Class;
use crate::route::Lane;
use crate::terms::Terms;

/// The pipelines of a fleet, by name.
#[derive(Clone, Debug, Default)]
pub struct Pipelines(Vec<PipelineEntry>);

/// How several models answer one request.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Name of the pipeline.
    pub pipeline: String,
    /// What the last model does: what the client asked for.
    pub task: Task,
    /// Where the last job goes.
    pub last: Lane,
    /// The jobs before it, in order; none where the input is text alone.
    pub steps: Vec<Planned>,
}

/// A step with its model.
#[derive(Clone, Debug)]
pub struct Planned {
    /// As the job carries it.
    pub step: Step,
    /// Who computes.
    pub model: Arc<ModelEntry>,
}

impl Pipelines {
    /// Those of the configuration, which is checked.
    #[must_use]
    pub fn new(pipelines: Vec<PipelineEntry>) -> Self {
        Self(pipelines)
    }

    /// Whether there is one of this name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    fn find(&self, name: &str) -> Option<&PipelineEntry> {
        self.0.iter().find(|pipeline| pipeline.name == name)
    }

    /// The plan of a request that names a pipeline, or that asks for a chat over sounds or pictures, which the
    /// [`ASSISTANT`] answers where no model takes them itself. `None` where one model does it all.
    pub fn plan(
        &self,
        input: &[Part],
        class: &Class,
        terms: &Terms,
        catalogue: &Catalogue,
    ) -> Result<Option<Plan>, Refusal> {
        let pipeline = match &terms.task {
            Task::Pipeline(name) => self.find(name).ok_or_else(|| {
                Refusal::invalid(format!("task '{name:.64}' is neither a task nor a pipeline of this fleet"))
            })?,
            Task::Chat if class.modality != Modality::Text && !reads_all(class, terms, catalogue) => {
                match self.find(ASSISTANT) {
                    Some(pipeline) => pipeline,
                    None => return Ok(None),
                }
            }
            _ => return Ok(None),
        };
        let (last, before) = pipeline.steps.split_last().expect("a checked pipeline has steps");
        let mut steps = Vec::new();
        for entry in before {
            let parts = input.iter().enumerate().filter(|(_, part)| Some(part.modality()) == entry.on);
            for (part, _) in parts {
                if steps.len() == PARTS_MAX {
                    return Err(Refusal::new(
                        ErrorCode::TooLarge,
                        format!("more than {PARTS_MAX} images and sounds in one request"),
                    ));
                }
                steps.push(planned(entry, part, catalogue)?);
            }
        }
        check_all_read(pipeline, input, before)?;
        let last = self::last(last, terms, catalogue)?;
        Ok(Some(Plan { pipeline: pipeline.name.clone(), task: last.0, last: last.1, steps }))
    }
}

/// Whether one model takes the chat as it is.
fn reads_all(class: &Class, terms: &Terms, catalogue: &Catalogue) -> bool {
    match &terms.model {
        Some(named) => catalogue.find(named, None).is_ok_and(|model| model.modality == class.modality),
        None => catalogue.default_for(&terms.task, class.modality, None).is_ok(),
    }
}

fn planned(entry: &StepEntry, part: usize, catalogue: &Catalogue) -> Result<Planned, Refusal> {
    let modality = entry.modality();
    let model = match &entry.model {
        Some(named) => catalogue.find(named, None)?,
        None => catalogue.default_for(&entry.task, modality, None)?,
    };
    let step = Step { task: entry.task.clone(), modality, model: model.name.clone(), part };
    Ok(Planned { step, model: Arc::clone(model) })
}

/// What no step reads would reach the last model as it is.
fn check_all_read(pipeline: &PipelineEntry, input: &[Part], before: &[StepEntry]) -> Result<(), Refusal> {
    let read = |part: &&Part| {
        part.modality() == Modality::Text || before.iter().any(|entry| entry.on == Some(part.modality()))
    };
    match input.iter().find(|part| !read(part)) {
        None => Ok(()),
        Some(part) => Err(Refusal::new(
            ErrorCode::UnsupportedMedia,
            format!("pipeline '{}' has no step for {}", pipeline.name, part.modality().as_str()),
        )),
    }
}

/// The request's own model, or a rule's, is that of the last step.
fn last(entry: &StepEntry, terms: &Terms, catalogue: &Catalogue) -> Result<(Task, Lane), Refusal> {
    let precision = terms.precision.as_deref();
    let model = match terms.model.as_ref().or(entry.model.as_ref()) {
        Some(named) => catalogue.find(named, precision)?,
        None => catalogue.default_for(&entry.task, Modality::Text, precision)?,
    };
    if !model.tasks.contains(&entry.task) || model.modality != Modality::Text {
        return Err(Refusal::invalid(format!("model '{}' does not do '{}' on text", model.name, entry.task.as_str())));
    }
    let lane = Lane { modality: Modality::Text, model: Arc::clone(model), priority: terms.priority };
    Ok((entry.task.clone(), lane))
}

impl Plan {
    /// Where the first job goes, and the job.
    #[must_use]
    pub fn begin(self, whole: Job) -> (Lane, Job) {
        let lane = match self.steps.first() {
            Some(Planned { step, model }) => {
                Lane { modality: step.modality, model: Arc::clone(model), priority: whole.priority }
            }
            None => self.last,
        };
        let steps = self.steps.into_iter().map(|planned| planned.step).collect();
        (lane, pipeline::begin(whole, &self.pipeline, steps))
    }

    /// Every model that takes part before the last.
    pub fn models(&self) -> impl Iterator<Item = &ModelEntry> {
        self.steps.iter().map(|planned| planned.model.as_ref())
    }
}

/// Where a job of a step goes, as long as the catalogue has its model.
pub fn lane(catalogue: &Catalogue, modality: Modality, model: &str, priority: Priority) -> Result<Lane, Refusal> {
    let entry = catalogue.iter().find(|entry| entry.name == model && entry.modality == modality);
    let model = entry.ok_or_else(|| {
        Refusal::new(ErrorCode::ModelNotFound, format!("model '{model}' of the pipeline is no longer in the catalogue"))
    })?;
    Ok(Lane { modality, model: Arc::clone(model), priority })
}

#[cfg(test)]
mod tests {
    use protocol::request::Request;
    use protocol::token::{ModelRef, SessionId};
    use runtime::config::default_pipelines;

    use super::*;
    use crate::classify::{Language, classify};
    use crate::fixture::{entry, media, request};
    use crate::ingress::Door;

    fn model(name: &str, task: Task, modality: Modality) -> ModelEntry {
        ModelEntry { tasks: vec![task], modality, ..entry(name) }
    }

    fn catalogue() -> Catalogue {
        let ears = model("ears", Task::Transcribe, Modality::Audio);
        let eyes = model("eyes", Task::Classify, Modality::Image);
        Catalogue::new(vec![entry("a"), entry("b"), ears, eyes]).unwrap()
    }

    fn sound() -> Part {
        let mut wav =
            b"RIFF\x2c\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0\x80\x3e\0\0\0\x7d\0\0\x02\0\x10\0data\x08\0\0\0".to_vec();
        wav.extend([0; 8]);
        media(Modality::Audio, "audio/wav", &wav)
    }

    fn picture() -> Part {
        let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\x01\0\0\0\x01\x08\x02\0\0\0".to_vec();
        png.resize(64, 0);
        media(Modality::Image, "image/png", &png)
    }

    fn plan(request: &Request, catalogue: &Catalogue) -> Result<Option<Plan>, Refusal> {
        let class = classify(request, Language::Skip).unwrap();
        let terms = Terms::decide(request, &class, None, &Door::Infer);
        Pipelines::new(default_pipelines()).plan(&request.input, &class, &terms, catalogue)
    }

    /// The models of a request in the order of its jobs.
    fn models(request: &Request) -> Vec<String> {
        let plan = plan(request, &catalogue()).unwrap().unwrap_or_else(|| panic!("one model: {request:?}"));
        plan.models().map(|model| model.name.clone()).chain([plan.last.model.name.clone()]).collect()
    }

    #[test]
    fn a_voice_message_of_a_session_is_heard_then_answered() {
        let voice = request(vec![sound()]);
        assert!(plan(&voice, &catalogue()).unwrap().is_none(), "without a session it is a transcription");
        let session = Some(SessionId::parse("s").unwrap());
        assert_eq!(models(&Request { session, ..voice.clone() }), ["ears", "a"]);
        assert_eq!(models(&Request { task: Some(Task::Chat), ..voice.clone() }), ["ears", "a"]);
        let named = Request { task: Some(Task::Pipeline("assistant".into())), ..voice };
        assert_eq!(models(&named), ["ears", "a"]);
        assert_eq!(models(&Request { model: Some(ModelRef::parse("b").unwrap()), ..named }), ["ears", "b"]);
    }

    #[test]
    fn a_picture_with_a_question_is_looked_at_then_talked_of() {
        let asked = request(vec![picture(), Part::user("What is it?")]);
        assert_eq!(models(&asked), ["eyes", "a"]);
        assert!(plan(&request(vec![picture()]), &catalogue()).unwrap().is_none(), "alone it is a classification");
        let parts: Vec<Step> = {
            let all = request(vec![picture(), sound(), Part::user("?"), picture()]);
            plan(&all, &catalogue()).unwrap().unwrap().steps.into_iter().map(|planned| planned.step).collect()
        };
        let order: Vec<(&str, usize)> = parts.iter().map(|step| (step.model.as_str(), step.part)).collect();
        assert_eq!(order, [("ears", 1), ("eyes", 0), ("eyes", 3)]);
    }

    #[test]
    fn a_step_without_its_parts_is_left_out() {
        let text = Request { task: Some(Task::Pipeline("assistant".into())), ..request(vec![Part::user("hi")]) };
        assert_eq!(models(&text), ["a"]);
        assert!(plan(&request(vec![Part::user("hi")]), &catalogue()).unwrap().is_none());
    }

    #[test]
    fn who_reads_everything_needs_no_steps() {
        let chat = Request { task: Some(Task::Chat), ..request(vec![picture()]) };
        let sees = Catalogue::new(vec![entry("a"), model("sees", Task::Chat, Modality::Image)]).unwrap();
        assert!(plan(&chat, &sees).unwrap().is_none());
        let named = Request { model: Some(ModelRef::parse("a").unwrap()), ..chat };
        assert_eq!(plan(&named, &sees).unwrap_err().code, ErrorCode::ModelNotFound, "no model classifies there");
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name() {
        let code = |request: &Request| plan(request, &catalogue()).unwrap_err().code;
        let other = Request { task: Some(Task::Pipeline("other".into())), ..request(vec![sound()]) };
        assert_eq!(code(&other), ErrorCode::InvalidRequest);
        let chat = |input| Request { task: Some(Task::Chat), ..request(input) };
        let ears = Request { model: Some(ModelRef::parse("eyes").unwrap()), ..chat(vec![sound()]) };
        assert_eq!(code(&ears), ErrorCode::InvalidRequest, "it cannot answer");
        assert_eq!(code(&chat(vec![picture(); PARTS_MAX + 1])), ErrorCode::TooLarge);
        let bare = Catalogue::new(vec![entry("a")]).unwrap();
        assert_eq!(plan(&chat(vec![sound()]), &bare).unwrap_err().code, ErrorCode::ModelNotFound);
    }
}
