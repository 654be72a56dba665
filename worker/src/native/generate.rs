//! The engine of decoders behind the worker's seam.

use std::sync::Arc;

use engine::engine as native;
use engine::model as models;
use engine::text::{self, Message, Template, Tokenizer};
use protocol::answer::Finish;
use protocol::request::Role;
use protocol::{ErrorCode, Refusal};
use tokio::sync::mpsc::UnboundedSender;

use super::routes::Routes;
use super::{cancel, refusal};
use crate::error::Error;
use crate::model::{Ask, Cancel, End, Engine, Event, Life, Prompt, Reading, Stats, Work};
use crate::reader::Stop;

/// A decoder in its engine.
pub(super) struct Decoder {
    engine: native::Engine,
    tokenizer: Arc<Tokenizer>,
    template: Option<Template>,
    routes: Routes,
}

impl Decoder {
    pub(super) fn start(
        model: Box<dyn models::Model>,
        tokenizer: Arc<Tokenizer>,
        template: Option<Template>,
        settings: native::EngineConfig,
    ) -> Result<Self, Error> {
        let routes = Routes::default();
        let engine = native::Engine::start(model, Arc::clone(&tokenizer), settings, Box::new(routes.outbox(told)))?;
        Ok(Self { engine, tokenizer, template, routes })
    }

    /// Most tokens of a prompt with its answer.
    pub(super) fn length_max(&self) -> usize {
        self.engine.length_max()
    }
}

impl Engine for Decoder {
    fn read(&self, prompt: &Prompt, _stop: &Stop) -> Result<Reading, Refusal> {
        let tokens = match (prompt, &self.template) {
            (Prompt::Chat(messages), Some(template)) => {
                let messages: Vec<Message> = messages.iter().map(message).collect();
                text::chat_tokens(template, &self.tokenizer, &messages)
            }
            (Prompt::Chat(_), None) => return Err(Refusal::invalid("the model is no chat model: ask for complete")),
            (Prompt::Text(text), _) => text::complete_tokens(&self.tokenizer, text),
            _ => return Err(Refusal::invalid("the model writes text, and does nothing else")),
        };
        // A template refuses what its authors did not mean, such as roles in another order.
        tokens.map(Reading::Tokens).map_err(|error| match error {
            engine::Error::Template(why) => Refusal::invalid(format!("the model's template refuses: {why:.200}")),
            error => Refusal::new(ErrorCode::Internal, format!("tokenizer: {:.200}", error.to_string())),
        })
    }

    fn submit(&self, work: Work, events: UnboundedSender<Event>) -> Result<(), Refusal> {
        let Ask::Generate(generate) = work.ask else {
            return Err(Refusal::new(ErrorCode::Internal, "the inputs of an encoder for a decoder"));
        };
        self.routes.open(work.key, events);
        let job = native::Job {
            key: native::JobKey(work.key),
            tokens: generate.tokens,
            max_tokens: generate.max_tokens,
            sampling: generate.sampling,
            stop: generate.stop,
            deadline: Some(work.deadline),
            scope: generate.scope,
        };
        self.engine.submit(job).map_err(|error| {
            self.routes.close(work.key);
            refusal(&error)
        })
    }

    fn cancel(&self, key: u64, why: Cancel) {
        self.engine.cancel(native::JobKey(key), cancel(why));
    }

    fn stats(&self) -> Stats {
        let stats = self.engine.stats();
        Stats {
            progress: self.engine.progress(),
            jobs: stats.running + stats.waiting,
            step: stats.last_step,
            life: if self.engine.is_alive() { Life::Running } else { Life::Ended },
        }
    }

    fn stop(&self) {
        self.engine.clone().stop();
    }
}

fn message((role, text): &(Role, String)) -> Message {
    let role = match role {
        Role::System => text::Role::System,
        Role::User => text::Role::User,
        Role::Assistant => text::Role::Assistant,
    };
    Message { role, content: text.clone() }
}

/// What a walk hears of it.
fn told(event: native::Event) -> Option<(native::JobKey, Event)> {
    match event {
        native::Event::Started { .. } => None,
        native::Event::Chunk { key, text } => Some((key, Event::Chunk(text))),
        native::Event::Ended { key, end } => Some((key, Event::Ended(ended(end)))),
    }
}

fn ended(end: native::End) -> End {
    match end {
        native::End::Done { finish, output_tokens, input_tokens } => {
            let finish = match finish {
                native::Finish::Stop => Finish::Stop,
                native::Finish::Length => Finish::Length,
            };
            End::Done { finish, input_tokens, output_tokens }
        }
        native::End::Cancelled => End::Cancelled,
        native::End::Deadline => End::Deadline,
        native::End::Stopped => End::Stopped,
        native::End::Failed(why) => End::Failed(why),
    }
}
