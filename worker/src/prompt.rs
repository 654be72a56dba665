//! A job and its conversation to what it asks of a model: pure.

use std::num::NonZeroU32;

use engine::encode::Words;
use engine::sampler::Sampling;
use protocol::job::Job;
use protocol::media::Modality;
use protocol::record::SessionTurn;
use protocol::request::{Content, MAX_TOKENS_DEFAULT, Params, Part, Role, Task};
use protocol::{ErrorCode, Refusal};

use crate::model::{Long, Model, Prompt};

/// Most pictures of a job: their pixels are in memory all at once.
pub const PICTURES_MAX: usize = 64;

/// What a job asks: the turns of the conversation so far, then the job's own input. A request that carries the same
/// history as parts gives the same prompt. Encoders look at the job's own input only.
pub fn prompt(job: &Job, model: &Model, history: &[SessionTurn]) -> Result<Prompt, Refusal> {
    if !model.tasks.contains(&job.task) {
        return Err(Refusal::invalid(format!("{} does not do the task {:.64}", job.model, job.task.as_str())));
    }
    match (&job.task, model.modality) {
        (Task::Chat, _) => {
            let mut messages = Vec::new();
            for turn in history {
                messages.extend(texts(&turn.input, model)?);
                messages.extend(turn.answer.iter().map(|answer| (Role::Assistant, answer.clone())));
            }
            messages.extend(texts(&job.input, model)?);
            Ok(Prompt::Chat(messages))
        }
        (Task::Complete, _) => {
            let mut text = String::new();
            for turn in history {
                texts(&turn.input, model)?.iter().for_each(|(_, part)| text.push_str(part));
                text.push_str(turn.answer.as_deref().unwrap_or_default());
            }
            texts(&job.input, model)?.iter().for_each(|(_, part)| text.push_str(part));
            Ok(Prompt::Text(text))
        }
        (Task::Embed, Modality::Text) => vectors(job, model, 1),
        (Task::Score, Modality::Text) => vectors(job, model, 2),
        (Task::Embed, Modality::Image) => pictures(job, model, Vec::new()),
        (Task::Classify, Modality::Image) => pictures(job, model, job.params.labels.clone().unwrap_or_default()),
        (Task::Transcribe, Modality::Audio) => sound(job, model),
        _ => Err(Refusal::invalid(format!(
            "this worker cannot do the task {:.64} on {}",
            job.task.as_str(),
            model.modality.as_str()
        ))),
    }
}

fn texts(parts: &[Part], model: &Model) -> Result<Vec<(Role, String)>, Refusal> {
    let text = |part: &Part| part.text().map(|text| (part.role, text.to_owned()));
    parts.iter().map(text).collect::<Option<_>>().ok_or_else(|| only(model, "text"))
}

fn only(model: &Model, what: &str) -> Refusal {
    Refusal::new(ErrorCode::UnsupportedMedia, format!("{} reads {what}, and nothing else", model.loaded.name))
}

/// Texts of which each becomes a vector: at least so many.
fn vectors(job: &Job, model: &Model, least: usize) -> Result<Prompt, Refusal> {
    let texts: Vec<String> = texts(&job.input, model)?.into_iter().map(|(_, text)| text).collect();
    if texts.len() < least {
        return Err(Refusal::invalid(format!(
            "{} needs at least {least} texts in input, not {}",
            job.task.as_str(),
            texts.len()
        )));
    }
    if let Some(empty) = texts.iter().position(String::is_empty) {
        return Err(Refusal::invalid(format!("text {} of input is empty", empty + 1)));
    }
    Ok(Prompt::Texts { texts, long: if job.params.truncate == Some(true) { Long::Cut } else { Long::Refused } })
}

fn media(parts: &[Part], model: &Model, what: &str) -> Result<Vec<bytes::Bytes>, Refusal> {
    let data = |part: &Part| match &part.content {
        Content::Media { modality, data, .. } if *modality == model.modality => Some(data.0.clone()),
        Content::Media { .. } | Content::Text(_) => None,
    };
    parts.iter().map(data).collect::<Option<_>>().ok_or_else(|| only(model, what))
}

fn pictures(job: &Job, model: &Model, texts: Vec<String>) -> Result<Prompt, Refusal> {
    let pictures = media(&job.input, model, "pictures")?;
    match pictures.len() {
        0 => Err(Refusal::invalid("input is empty")),
        1..=PICTURES_MAX => Ok(Prompt::Pictures { pictures, texts }),
        more => {
            Err(Refusal::new(ErrorCode::TooLarge, format!("{more} pictures in one job, the limit is {PICTURES_MAX}")))
        }
    }
}

fn sound(job: &Job, model: &Model) -> Result<Prompt, Refusal> {
    let words = if job.params.words == Some(true) { Words::Timed } else { Words::Untimed };
    match <[bytes::Bytes; 1]>::try_from(media(&job.input, model, "sound")?) {
        Ok([data]) => Ok(Prompt::Sound { data, language: job.params.language.clone(), words }),
        Err(sounds) => Err(Refusal::invalid(format!("transcribe takes one sound, not {}", sounds.len()))),
    }
}

/// How many tokens the answer may have after a prompt of `input` tokens. What the client named is kept or refused;
/// what it left open takes what fits.
pub fn max_tokens(params: &Params, input: usize, context: u32) -> Result<usize, Refusal> {
    let context = context as usize;
    let wanted = params.max_tokens.map(|tokens| tokens as usize);
    if let Some(wanted) = wanted.filter(|&wanted| wanted > context) {
        return Err(Refusal::invalid(format!("params.max_tokens must be at most {context}, not {wanted}")));
    }
    let room = context.saturating_sub(input);
    if room == 0 || wanted.is_some_and(|wanted| wanted > room) {
        let wanted = wanted.map(|wanted| format!(" and max_tokens {wanted}")).unwrap_or_default();
        return Err(Refusal::new(
            ErrorCode::ContextTooLong,
            format!("a prompt of {input} tokens{wanted} do not fit a context of {context}"),
        ));
    }
    Ok(wanted.unwrap_or(room.min(MAX_TOKENS_DEFAULT as usize)))
}

/// How tokens are chosen, with the contract's defaults.
#[must_use]
pub fn sampling(params: &Params) -> Sampling {
    Sampling {
        temperature: params.temperature.unwrap_or(0.0),
        top_p: params.top_p.unwrap_or(1.0),
        top_k: params.top_k.and_then(NonZeroU32::new),
        min_p: params.min_p.unwrap_or(0.0),
        repetition_penalty: params.repetition_penalty.unwrap_or(1.0),
        seed: params.seed.unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use protocol::token::SessionId;

    use super::*;
    use crate::fake;

    fn turn(number: u64, input: &str, answer: Option<&str>) -> SessionTurn {
        let session = SessionId::parse("s").unwrap();
        SessionTurn { session, number, input: vec![Part::user(input)], answer: answer.map(str::to_owned) }
    }

    #[test]
    fn a_session_reads_like_a_request_that_carries_its_history() {
        let model = fake::model();
        let mut job = fake::job("j1", "and now?");
        let history = [turn(1, "one", Some("1")), turn(2, "two", Some("2"))];
        let by_session = prompt(&job, &model, &history).unwrap();
        let say = |role, text: &str| Part { role, content: Content::Text(text.to_owned()) };
        job.input = vec![
            say(Role::User, "one"),
            say(Role::Assistant, "1"),
            say(Role::User, "two"),
            say(Role::Assistant, "2"),
            say(Role::User, "and now?"),
        ];
        assert_eq!(by_session, prompt(&job, &model, &[]).unwrap());
    }

    #[test]
    fn what_a_client_named_is_never_changed() {
        let named = |max_tokens| Params { max_tokens: Some(max_tokens), ..Params::default() };
        let code = |result: Result<usize, Refusal>| result.unwrap_err().code;
        assert_eq!(max_tokens(&named(90), 10, 100), Ok(90));
        assert_eq!(code(max_tokens(&named(91), 10, 100)), ErrorCode::ContextTooLong);
        assert_eq!(code(max_tokens(&named(101), 10, 100)), ErrorCode::InvalidRequest);
        assert_eq!(max_tokens(&Params::default(), 10, 100), Ok(90));
        assert_eq!(max_tokens(&Params::default(), 10, 4096), Ok(256));
        assert_eq!(code(max_tokens(&Params::default(), 100, 100)), ErrorCode::ContextTooLong);
    }

    fn code(job: &Job, model: &Model) -> ErrorCode {
        prompt(job, model, &[]).unwrap_err().code
    }

    #[test]
    fn other_tasks_are_refused() {
        let mut job = fake::job("j1", "x");
        job.task = Task::Embed;
        assert_eq!(code(&job, &fake::model()), ErrorCode::InvalidRequest);
    }

    #[test]
    fn every_text_becomes_a_vector_and_an_empty_one_is_refused() {
        let model = fake::encoder(Modality::Text);
        let mut job = fake::job_on(Modality::Text, "j1", vec![Part::user("one"), Part::user("two")]);
        let texts = vec!["one".to_owned(), "two".to_owned()];
        assert_eq!(prompt(&job, &model, &[]), Ok(Prompt::Texts { texts: texts.clone(), long: Long::Refused }));
        job.params.truncate = Some(true);
        assert_eq!(prompt(&job, &model, &[]), Ok(Prompt::Texts { texts, long: Long::Cut }));
        job.input[1] = Part::user("");
        assert!(prompt(&job, &model, &[]).unwrap_err().message.contains("text 2"));
        job.input.truncate(1);
        job.task = Task::Score;
        assert_eq!(code(&job, &model), ErrorCode::InvalidRequest, "nothing to compare with");
        job.input.push(fake::picture(b"red"));
        assert_eq!(code(&job, &model), ErrorCode::UnsupportedMedia);
    }

    #[test]
    fn pictures_and_sounds_have_their_bounds() {
        let (eye, ear) = (fake::encoder(Modality::Image), fake::encoder(Modality::Audio));
        let mut job = fake::job_on(Modality::Image, "j1", vec![fake::picture(b"red"); PICTURES_MAX]);
        assert!(prompt(&job, &eye, &[]).is_ok());
        job.input.push(fake::picture(b"red"));
        assert_eq!(code(&job, &eye), ErrorCode::TooLarge);
        job.input = vec![fake::picture(b"red"), Part::user("what is it?")];
        assert_eq!(code(&job, &eye), ErrorCode::UnsupportedMedia);
        let mut job = fake::job_on(Modality::Audio, "j2", vec![fake::sound(b"hello"); 2]);
        assert_eq!(code(&job, &ear), ErrorCode::InvalidRequest);
        job.input.pop();
        job.params.words = Some(true);
        assert!(matches!(prompt(&job, &ear, &[]), Ok(Prompt::Sound { words: Words::Timed, .. })));
    }
}
