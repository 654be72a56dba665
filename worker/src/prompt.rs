//! A job and its conversation to what a model computes from: pure.

use std::num::NonZeroU32;

use engine::sampler::Sampling;
use protocol::job::Job;
use protocol::record::SessionTurn;
use protocol::request::{MAX_TOKENS_DEFAULT, Params, Part, Role, Task};
use protocol::{ErrorCode, Refusal};

use crate::model::{Model, Prompt};

/// What the model is to compute from: the turns of the conversation so far, then the job's own input. A request that
/// carries the same history as parts gives the same prompt.
pub fn prompt(job: &Job, model: &Model, history: &[SessionTurn]) -> Result<Prompt, Refusal> {
    if !model.tasks.contains(&job.task) {
        return Err(Refusal::invalid(format!("{} does not do the task {:.64}", job.model, job.task.as_str())));
    }
    match job.task {
        Task::Chat => {
            let mut messages = Vec::new();
            for turn in history {
                messages.extend(texts(&turn.input, model)?);
                messages.extend(turn.answer.iter().map(|answer| (Role::Assistant, answer.clone())));
            }
            messages.extend(texts(&job.input, model)?);
            Ok(Prompt::Chat(messages))
        }
        Task::Complete => {
            let mut text = String::new();
            for turn in history {
                texts(&turn.input, model)?.iter().for_each(|(_, part)| text.push_str(part));
                text.push_str(turn.answer.as_deref().unwrap_or_default());
            }
            texts(&job.input, model)?.iter().for_each(|(_, part)| text.push_str(part));
            Ok(Prompt::Text(text))
        }
        _ => Err(Refusal::invalid(format!("this worker cannot do the task {:.64}", job.task.as_str()))),
    }
}

fn texts(parts: &[Part], model: &Model) -> Result<Vec<(Role, String)>, Refusal> {
    let text = |part: &Part| part.text().map(|text| (part.role, text.to_owned()));
    parts.iter().map(text).collect::<Option<_>>().ok_or_else(|| {
        Refusal::new(ErrorCode::UnsupportedMedia, format!("{} reads text, and nothing else", model.loaded.name))
    })
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
    use protocol::request::Content;
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

    #[test]
    fn other_tasks_are_refused() {
        let mut job = fake::job("j1", "x");
        job.task = Task::Embed;
        assert_eq!(prompt(&job, &fake::model(), &[]).unwrap_err().code, ErrorCode::InvalidRequest);
    }
}
