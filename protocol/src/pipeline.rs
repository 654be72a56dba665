//! A request that several models answer one after another: what its jobs carry, and how one follows from the other. Pure.
//!
//! All is fixed at admission and travels with the job: [`begin`] makes the first job of a whole one, [`advance`] makes
//! the next of what a step gave. Nothing is kept in memory between two of them.
//!
//! Every job of a request has the request's id, so that its record, cancel, session turn and cache are found under one
//! name; [`Job::name`] tells them apart where each counts alone. A step turns one part of the input, a sound or a picture,
//! into text; the last job has the texts for its input, and is an ordinary job in all else.
//!
//! **What a client hears.** Only the last job speaks: its attempts say what the steps gave, as chunks with the numbers
//! from 0 and the kind `transcript` or `labels`, then the text. So `Flotilla-Attempt` counts deliveries of one job, as
//! ever, and a new attempt, which means: discard what came before, says all of it again. A step that says nothing cannot
//! be contradicted by its next delivery. A step that fails ends the request, and says so as any job does.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::WIRE_VERSION;
use crate::answer::{Given, Label, Output};
use crate::error::{ErrorCode, Refusal};
use crate::job::{Job, Turn};
use crate::media::Modality;
use crate::request::{Content, Params, Part, Task};

/// Most steps of a pipeline, the last included.
pub const STEPS_MAX: usize = 8;
/// Most parts of one request that are turned into text: each is a job.
pub const PARTS_MAX: usize = 16;
/// Most labels that are said of a picture.
const LABELS_SAID: usize = 5;
/// Labels that are less likely are not said, but for the first.
const LABEL_LEAST: f32 = 0.01;

/// A job's place among those of its request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Steps {
    /// The pipeline's name in the configuration.
    pub pipeline: String,
    /// Number of the job, from 0.
    pub number: u32,
    /// What the jobs before gave, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub given: Vec<Given>,
    /// What comes after; `None` in the last job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead: Option<Box<Ahead>>,
}

/// What comes after a job that is not the last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ahead {
    /// Which part of the input the job turns into text.
    pub part: usize,
    /// The request's input, texts in place of the parts that were turned; the part in hand is an empty text, since the
    /// job itself has it.
    pub input: Vec<Part>,
    /// The request's parameters.
    pub params: Params,
    /// The steps after this one, without the last.
    pub steps: VecDeque<Step>,
    /// The last.
    pub last: Last,
    /// The request's place in a session: only the last job waits for its turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turn: Option<Turn>,
}

/// One part turned into text by one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// What is done.
    pub task: Task,
    /// What the lane carries.
    pub modality: Modality,
    /// Name in the catalogue.
    pub model: String,
    /// Which part of the input.
    pub part: usize,
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Last {
    /// What is done.
    pub task: Task,
    /// What the lane carries.
    pub modality: Modality,
    /// Name in the catalogue.
    pub model: String,
}

/// The first job of a whole one, which is as it would be if its model read everything; the same where there are no steps.
///
/// # Panics
/// When a step names a part that the input does not have.
#[must_use]
pub fn begin(whole: Job, pipeline: &str, mut steps: VecDeque<Step>) -> Job {
    let Some(first) = steps.pop_front() else { return whole };
    let last = Last { task: whole.task.clone(), modality: whole.modality, model: whole.model.clone() };
    let params = Params { format: None, ..whole.params.clone() };
    let (input, turn) = (whole.input.clone(), whole.session.clone());
    let ahead = Ahead { part: 0, input, params, steps, last, turn };
    let number = Steps { pipeline: pipeline.to_owned(), number: 0, given: Vec::new(), ahead: None };
    step_job(whole, number, ahead, first).expect("steps are planned on the parts of the input")
}

/// The job after one that gave this. `job` may have lost its input.
pub fn advance(mut job: Job, given: Given) -> Result<Job, Refusal> {
    let Some(mut steps) = job.steps.take() else { return Err(astray("the job has no steps")) };
    let Some(mut ahead) = steps.ahead.take() else { return Err(astray("the job is the last")) };
    let text = text(&given.output)?;
    let part = ahead.input.get_mut(ahead.part).ok_or_else(|| astray("the input has no such part"))?;
    part.content = Content::Text(text);
    steps.given.push(given);
    steps.number += 1;
    if let Some(step) = ahead.steps.pop_front() {
        return step_job(job, steps, *ahead, step);
    }
    let Ahead { input, params, last: Last { task, modality, model }, turn, .. } = *ahead;
    Ok(Job { task, modality, model, input, params, session: turn, steps: Some(steps), ..job })
}

/// The job of a step. The part in hand travels once.
fn step_job(job: Job, steps: Steps, mut ahead: Ahead, step: Step) -> Result<Job, Refusal> {
    let part = ahead.input.get_mut(step.part).ok_or_else(|| astray("the input has no such part"))?;
    let blank = Part { role: part.role, content: Content::Text(String::new()) };
    let part = std::mem::replace(part, blank);
    ahead.part = step.part;
    Ok(Job {
        version: WIRE_VERSION,
        task: step.task,
        modality: step.modality,
        model: step.model,
        input: vec![part],
        params: params_of_step(&ahead.params),
        session: None,
        steps: Some(Steps { ahead: Some(Box::new(ahead)), ..steps }),
        ..job
    })
}

/// The answer's length, temperature and stops are the last job's own.
fn params_of_step(params: &Params) -> Params {
    let Params { seed, labels, top, language, words, .. } = params.clone();
    Params { seed, labels, top, language, words, ..Params::default() }
}

/// What stands for a part once a step has turned it.
fn text(output: &Output) -> Result<String, Refusal> {
    match output {
        Output::Text { text } => Ok(text.clone()),
        Output::Transcript { text, .. } if text.trim().is_empty() => Ok("[audio: no speech]".to_owned()),
        Output::Transcript { text, .. } => Ok(text.trim().to_owned()),
        Output::Labels { labels } => Ok(labels_text(labels)),
        Output::Embedding { .. } | Output::Score { .. } => Err(astray("a step gave no text")),
    }
}

fn labels_text(labels: &[Label]) -> String {
    let likely = |(number, label): &(usize, &Label)| *number == 0 || label.score >= LABEL_LEAST;
    let said = labels.iter().take(LABELS_SAID).enumerate().filter(likely);
    let said: Vec<String> =
        said.map(|(_, Label { label, score })| format!("{label} {:.0} %", f64::from(*score) * 100.0)).collect();
    if said.is_empty() { "[image: nothing known]".to_owned() } else { format!("[image: {}]", said.join(", ")) }
}

fn astray(what: &str) -> Refusal {
    Refusal::new(ErrorCode::Internal, format!("pipeline: {what}"))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::job::{Origin, PLAIN_VERSION};
    use crate::request::{Blob, Format, Mode, Priority};
    use crate::token::{SessionId, Token};

    fn media(modality: Modality, bytes: &'static [u8]) -> Part {
        let content = Content::Media { modality, mime: "x/y".into(), data: Blob(Bytes::from_static(bytes)) };
        Part { role: Default::default(), content }
    }

    fn whole() -> Job {
        Job {
            version: PLAIN_VERSION,
            id: Token::parse("id", "j").unwrap(),
            tenant: Token::default_tenant(),
            task: Task::Chat,
            modality: Modality::Text,
            model: "m".into(),
            priority: Priority::Interactive,
            input: vec![media(Modality::Image, b"cat"), Part::user("and?"), media(Modality::Audio, b"wav")],
            params: Params { max_tokens: Some(3), seed: Some(7), top: Some(2), ..Params::default() },
            mode: Mode::Stream,
            format: Format::Json,
            reply_to: Some("_INBOX.a".into()),
            accepted_ms: 1,
            deadline_ms: 2,
            session: Some(Turn { session: SessionId::parse("s").unwrap(), number: 4 }),
            cache_key: Some("k".into()),
            traceparent: None,
            origin: Origin::Claimed,
            steps: None,
        }
    }

    fn steps() -> VecDeque<Step> {
        let step = |task, modality, model: &str, part| Step { task, modality, model: model.into(), part };
        [step(Task::Transcribe, Modality::Audio, "w", 2), step(Task::Classify, Modality::Image, "e", 0)].into()
    }

    fn given(output: Output) -> Given {
        Given { task: "t".into(), model: "x".into(), output, usage: None }
    }

    fn heard(text: &str) -> Given {
        given(Output::Transcript {
            text: text.into(),
            language: "en".into(),
            format: crate::request::TranscriptFormat::Text,
            segments: Vec::new(),
        })
    }

    fn seen(scores: &[f32]) -> Given {
        let label = |(number, &score): (usize, &f32)| Label { label: format!("l{number}"), score };
        given(Output::Labels { labels: scores.iter().enumerate().map(label).collect() })
    }

    #[test]
    fn a_request_goes_from_step_to_step_to_its_last_job() {
        let first = begin(whole(), "assistant", steps());
        assert_eq!((first.model.as_str(), &first.task, first.modality), ("w", &Task::Transcribe, Modality::Audio));
        assert_eq!((first.input.clone(), first.version), (vec![media(Modality::Audio, b"wav")], WIRE_VERSION));
        assert_eq!(first.params, Params { seed: Some(7), top: Some(2), ..Params::default() });
        assert_eq!((first.session.clone(), first.turn()), (None, whole().session.as_ref()), "a step waits for no turn");
        assert_eq!((first.id.as_str(), first.name().as_str()), ("j", "j~0"));
        assert_eq!(Job::decode(&first.encode()).unwrap(), first);
        // What was used is gone, what is wanted later is there.
        let encoded = Job { input: Vec::new(), ..first.clone() }.encode();
        let holds = |what: &[u8]| encoded.windows(what.len()).any(|window| window == what);
        assert!(holds(b"cat") && !holds(b"wav"));

        let second = advance(Job { input: Vec::new(), ..first }, heard(" Hello. ")).unwrap();
        assert_eq!((second.model.as_str(), second.name().as_str()), ("e", "j~1"));
        assert_eq!(second.input, [media(Modality::Image, b"cat")]);

        let last = advance(second, seen(&[0.934, 0.04, 0.001])).unwrap();
        let texts: Vec<_> = last.input.iter().map(|part| part.text().unwrap()).collect();
        assert_eq!(texts, ["[image: l0 93 %, l1 4 %]", "and?", "Hello."]);
        assert_eq!((last.name(), last.is_step()), (last.id.clone(), false));
        let steps = last.steps.clone().unwrap();
        assert_eq!((steps.number, steps.given.len(), last.given().len()), (2, 2, 2));
        let plain = Job { input: last.input.clone(), steps: Some(steps), version: WIRE_VERSION, ..whole() };
        assert_eq!(last, plain, "the last job is an ordinary one");
        assert_eq!(advance(last, heard("x")).unwrap_err().code, ErrorCode::Internal);
    }

    #[test]
    fn without_steps_a_job_is_a_plain_one() {
        assert_eq!(begin(whole(), "assistant", VecDeque::new()), whole());
    }

    #[test]
    fn what_says_nothing_is_said_so() {
        let said = |given: Given| text(&given.output).unwrap();
        assert_eq!(said(heard(" \n")), "[audio: no speech]");
        assert_eq!(said(seen(&[])), "[image: nothing known]");
        assert_eq!(said(seen(&[0.004, 0.003])), "[image: l0 0 %]");
        assert!(text(&Output::Score { score: 0.0 }).is_err());
    }

    #[test]
    fn a_record_whose_part_is_not_there_is_refused() {
        let mut job = begin(whole(), "assistant", steps());
        let ahead = job.steps.as_mut().unwrap().ahead.as_mut().unwrap();
        ahead.steps[0].part = 9;
        assert!(advance(job.clone(), heard("x")).is_err());
        job.steps.as_mut().unwrap().ahead.as_mut().unwrap().part = 9;
        assert!(advance(job, heard("x")).is_err());
    }
}
