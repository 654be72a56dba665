//! An engine without a model, for tests of everything around it: words that follow from the prompt alone, in any time,
//! and failures on demand.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use engine::plan::TokenId;
use protocol::answer::Finish;
use protocol::heartbeat::Loaded;
use protocol::job::Job;
use protocol::media::Modality;
use protocol::request::{Format, Mode, Params, Part, Priority, Task};
use protocol::token::Token;
use protocol::{Refusal, WIRE_VERSION};
use tokio::sync::mpsc::UnboundedSender;

use crate::model::{Cancel, End, Engine, Event, Life, Model, Prompt, Stats, Work};

/// Name of the fake's model.
pub const MODEL: &str = "fake";
/// Most tokens of prompt and answer.
pub const CONTEXT: u32 = 512;

/// How the fake behaves; changed at any time.
#[derive(Clone, Copy, Debug)]
pub struct Mood {
    /// Time of a token.
    pub step: Duration,
    /// How jobs end.
    pub end: Ends,
}

/// How jobs end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// Well.
    Well,
    /// In a failure, after the first token.
    Failing,
    /// Never: no step is made either.
    Hanging,
}

/// An engine without a model. Must be used within a tokio runtime.
pub struct Fake {
    mood: Mutex<Mood>,
    jobs: Arc<Mutex<HashMap<u64, Option<Cancel>>>>,
    steps: Arc<AtomicU64>,
    submitted: AtomicU64,
}

impl Fake {
    /// One of this mood.
    #[must_use]
    pub fn new(mood: Mood) -> Arc<Self> {
        let (jobs, steps) = (Arc::default(), Arc::default());
        Arc::new(Self { mood: Mutex::new(mood), jobs, steps, submitted: AtomicU64::new(0) })
    }

    /// Changes its mood for jobs to come.
    pub fn feel(&self, mood: Mood) {
        *self.mood.lock().unwrap_or_else(PoisonError::into_inner) = mood;
    }

    /// Jobs that it was ever given.
    #[must_use]
    pub fn submitted(&self) -> u64 {
        self.submitted.load(Ordering::SeqCst)
    }
}

impl Engine for Fake {
    fn tokens(&self, prompt: &Prompt) -> Result<Vec<TokenId>, Refusal> {
        let text = match prompt {
            Prompt::Chat(messages) => messages.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join(" "),
            Prompt::Text(text) => text.clone(),
        };
        Ok(text.split_whitespace().map(|word| TokenId::try_from(word.len()).unwrap_or(TokenId::MAX)).collect())
    }

    fn submit(&self, work: Work, events: UnboundedSender<Event>) -> Result<(), Refusal> {
        let mood = *self.mood.lock().unwrap_or_else(PoisonError::into_inner);
        self.submitted.fetch_add(1, Ordering::SeqCst);
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).insert(work.key, None);
        tokio::spawn(live(work, mood, events, Arc::clone(&self.jobs), Arc::clone(&self.steps)));
        Ok(())
    }

    fn cancel(&self, key: u64, why: Cancel) {
        if let Some(cancelled) = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&key) {
            cancelled.get_or_insert(why);
        }
    }

    fn stats(&self) -> Stats {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).len();
        Stats { progress: self.steps.load(Ordering::SeqCst), jobs, step: Duration::from_millis(1), life: Life::Running }
    }

    fn stop(&self) {}
}

async fn live(
    work: Work,
    mood: Mood,
    events: UnboundedSender<Event>,
    jobs: Arc<Mutex<HashMap<u64, Option<Cancel>>>>,
    steps: Arc<AtomicU64>,
) {
    let _ = events.send(Event::Started);
    let mut end = End::Done { finish: Finish::Length, input_tokens: work.tokens.len(), output_tokens: work.max_tokens };
    for number in 0..work.max_tokens {
        tokio::time::sleep(mood.step).await;
        let cancelled = jobs.lock().unwrap_or_else(PoisonError::into_inner).get(&work.key).copied().flatten();
        let late = std::time::Instant::now() >= work.deadline;
        end = match (cancelled, mood.end) {
            (Some(Cancel::Client), _) => End::Cancelled,
            (Some(Cancel::Stopping), _) => End::Stopped,
            (None, _) if late => End::Deadline,
            (None, Ends::Failing) if number == 1 => End::Failed("as it was told".to_owned()),
            (None, Ends::Hanging) => std::future::pending().await,
            (None, _) => {
                steps.fetch_add(1, Ordering::SeqCst);
                let _ = events.send(Event::Chunk(word(&work.tokens, number)));
                continue;
            }
        };
        break;
    }
    jobs.lock().unwrap_or_else(PoisonError::into_inner).remove(&work.key);
    let _ = events.send(Event::Ended(end));
}

fn word(prompt: &[TokenId], number: usize) -> String {
    let sum: u64 = prompt.iter().map(|&token| u64::from(token)).sum();
    format!("w{}-{number} ", sum + prompt.len() as u64)
}

/// The whole answer to a prompt of these words.
#[must_use]
pub fn answer(words: &[&str], max_tokens: usize) -> String {
    let tokens: Vec<TokenId> = words.iter().map(|word| u32::try_from(word.len()).unwrap_or(u32::MAX)).collect();
    (0..max_tokens).map(|number| word(&tokens, number)).collect()
}

/// A model that runs on `engine`.
#[must_use]
pub fn model_on(engine: Arc<Fake>) -> Model {
    let loaded =
        Loaded { name: MODEL.to_owned(), digest: "0".repeat(64), precision: "q4_1".to_owned(), context: CONTEXT };
    Model { loaded, modality: Modality::Text, tasks: vec![Task::Chat, Task::Complete], engine }
}

/// A model on a fake of its own, as fast as can be.
#[must_use]
pub fn model() -> Model {
    model_on(Fake::new(Mood { step: Duration::ZERO, end: Ends::Well }))
}

/// A job for the fake: a raw, whole chat of one text, with an hour's time and four tokens.
///
/// # Panics
/// When `id` is no token.
#[must_use]
pub fn job(id: &str, text: &str) -> Job {
    let now = runtime::clock::now_ms();
    Job {
        version: WIRE_VERSION,
        id: Token::parse("job", id).expect("an id"),
        tenant: Token::default_tenant(),
        task: Task::Chat,
        modality: Modality::Text,
        model: MODEL.to_owned(),
        priority: Priority::Interactive,
        input: vec![Part::user(text)],
        params: Params { max_tokens: Some(4), seed: Some(0), ..Params::default() },
        mode: Mode::Whole,
        format: Format::Raw,
        reply_to: None,
        accepted_ms: now,
        deadline_ms: now + 3_600_000,
        session: None,
        cache_key: None,
        traceparent: None,
    }
}
