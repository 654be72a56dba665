//! An engine without a model, for tests of everything around it: words, vectors, probabilities and transcripts that
//! follow from the input alone, in any time, and failures on demand.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use engine::encode::{Clip, Input, Output, Pixels, Segment, Transcript};
use engine::plan::TokenId;
use protocol::answer::{Finish, Usage};
use protocol::heartbeat::Loaded;
use protocol::job::{Job, Origin};
use protocol::media::Modality;
use protocol::request::{Blob, Content, Format, Mode, Params, Part, Priority, Role, Task};
use protocol::token::Token;
use protocol::{ErrorCode, Refusal, WIRE_VERSION};
use tokio::sync::mpsc::UnboundedSender;

use crate::metrics::Meters;
use crate::model::{Ask, Cancel, End, Engine, Event, Life, Long, Model, Prompt, Reading, Stats, Traits, Work};
use crate::reader::Stop;

/// Name of the fake's model.
pub const MODEL: &str = "fake";
/// Most tokens of prompt and answer.
pub const CONTEXT: u32 = 512;
/// Names of the classes of a fake that looks at pictures.
pub const LABELS: [&str; 3] = ["red", "green", "blue"];
/// Numbers of a fake's vectors.
pub const WIDTH: usize = 4;

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
    fn read(&self, prompt: &Prompt, _stop: &Stop) -> Result<Reading, Refusal> {
        let (inputs, usage) = match prompt {
            Prompt::Chat(messages) => {
                let texts: Vec<&str> = messages.iter().map(|(_, text)| text.as_str()).collect();
                return Ok(Reading::Tokens(tokens(&texts.join(" "))));
            }
            Prompt::Text(text) => return Ok(Reading::Tokens(tokens(text))),
            Prompt::Texts { texts, long } => {
                let read = texts.iter().map(|text| read_text(text, *long)).collect::<Result<Vec<_>, _>>()?;
                let input_tokens = read.iter().map(Vec::len).sum::<usize>() as u64;
                let inputs = read.into_iter().map(Input::Tokens).collect();
                (inputs, Usage { input_tokens, ..Usage::default() })
            }
            Prompt::Pictures { pictures, texts } => {
                let read = pictures.iter().map(read_picture).collect::<Result<Vec<_>, _>>()?;
                let texts = texts.iter().map(|text| Input::Tokens(tokens(text)));
                let images = read.len() as u64;
                (read.into_iter().chain(texts).collect(), Usage { images, ..Usage::default() })
            }
            Prompt::Sound { data, language, words } => {
                let samples: Arc<[f32]> = whole(data)?.iter().map(|&byte| f32::from(byte)).collect();
                let usage = Usage { audio_ms: samples.len() as u64, ..Usage::default() };
                (vec![Input::Clip(Clip { samples, language: language.clone(), words: *words })], usage)
            }
        };
        Ok(Reading::Inputs { inputs, usage })
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

fn tokens(text: &str) -> Vec<TokenId> {
    text.split_whitespace().map(|word| TokenId::try_from(word.len()).unwrap_or(TokenId::MAX)).collect()
}

fn read_text(text: &str, long: Long) -> Result<Vec<TokenId>, Refusal> {
    let (mut tokens, most) = (tokens(text), CONTEXT as usize);
    match long {
        Long::Refused if tokens.len() > most => {
            let message = format!("a text of {} tokens, the limit is {most}", tokens.len());
            Err(Refusal::new(ErrorCode::ContextTooLong, message))
        }
        Long::Refused | Long::Cut => {
            tokens.truncate(most);
            Ok(tokens)
        }
    }
}

/// A file that is not `bad`.
fn whole(data: &Bytes) -> Result<&Bytes, Refusal> {
    if data.starts_with(b"bad") { Err(Refusal::invalid("the file ends too early")) } else { Ok(data) }
}

fn read_picture(data: &Bytes) -> Result<Input, Refusal> {
    let numbers: Vec<f32> = whole(data)?.iter().map(|&byte| f32::from(byte)).collect();
    Ok(Input::Pixels(Pixels { height: 1, width: numbers.len(), numbers }))
}

/// What the fake makes of an input; of a clip, the letters whose codes its samples are, a segment a word.
fn encoded(input: &Input, modality: Modality) -> Output {
    match (input, modality) {
        (Input::Clip(clip), _) => {
            let text: String = clip.samples.iter().map(|&sample| char::from(sample as u8)).collect();
            let words = text.split_whitespace().zip(0_u8..);
            let segment = |(word, number): (&str, u8)| Segment {
                start: f32::from(number),
                end: f32::from(number) + 1.0,
                text: format!(" {word}"),
                words: Vec::new(),
            };
            let language = clip.language.clone().unwrap_or_else(|| "en".to_owned());
            Output::Transcript(Transcript { language, segments: words.map(segment).collect() })
        }
        // The first letter of a picture names its colour.
        (Input::Pixels(pixels), Modality::Image) => {
            let letter = pixels.numbers.first().map_or(' ', |&number| char::from(number as u8));
            Output::Classes(LABELS.iter().map(|label| if label.starts_with(letter) { 0.8 } else { 0.1 }).collect())
        }
        (Input::Pixels(pixels), _) => direction(&pixels.numbers),
        (Input::Tokens(tokens), _) => direction(&tokens.iter().map(|&token| token as f32).collect::<Vec<_>>()),
    }
}

fn direction(numbers: &[f32]) -> Output {
    let mut vector = [0.0; WIDTH];
    vector[0] = 1.0;
    numbers.iter().enumerate().for_each(|(index, number)| vector[index % WIDTH] += number);
    let length = vector.iter().map(|number| number * number).sum::<f32>().sqrt();
    Output::Vector(vector.map(|number| number / length).into())
}

/// What comes of a job: its chunks, a step each, and its end.
fn script(ask: &Ask) -> (Vec<String>, End) {
    match ask {
        Ask::Generate(generate) => {
            let chunks = (0..generate.max_tokens).map(|number| word(&generate.tokens, number)).collect();
            let (input_tokens, output_tokens) = (generate.tokens.len(), generate.max_tokens);
            (chunks, End::Done { finish: Finish::Length, input_tokens, output_tokens })
        }
        Ask::Encode(inputs) => {
            let pictures = inputs.iter().all(|input| matches!(input, Input::Pixels(_)));
            let modality = if pictures { Modality::Image } else { Modality::Text };
            let outputs: Vec<Output> = inputs.iter().map(|input| encoded(input, modality)).collect();
            let chunks = match &outputs[..] {
                // What the last one says comes with the end, as of a clip's last window.
                [Output::Transcript(Transcript { segments, .. })] if segments.len() > 1 => {
                    segments[..segments.len() - 1].iter().map(|segment| segment.text.clone()).collect()
                }
                // Nothing to be heard, and still a step.
                _ => vec![String::new()],
            };
            (chunks, End::Encoded(outputs))
        }
    }
}

async fn live(
    work: Work,
    mood: Mood,
    events: UnboundedSender<Event>,
    jobs: Arc<Mutex<HashMap<u64, Option<Cancel>>>>,
    steps: Arc<AtomicU64>,
) {
    let (chunks, mut end) = script(&work.ask);
    for (number, chunk) in chunks.into_iter().enumerate() {
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
                if !chunk.is_empty() {
                    let _ = events.send(Event::Chunk(chunk));
                }
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
    Model {
        loaded: loaded(MODEL),
        modality: Modality::Text,
        tasks: vec![Task::Chat, Task::Complete],
        traits: Traits::default(),
        meters: Meters::of(MODEL),
        engine,
    }
}

fn loaded(name: &str) -> Loaded {
    Loaded { name: name.to_owned(), digest: "0".repeat(64), precision: "q4_1".to_owned(), context: CONTEXT }
}

/// An encoder on a fake of its own, called `fake-` and its modality: of texts to vectors, of pictures to classes, of
/// sounds to transcripts.
#[must_use]
pub fn encoder(modality: Modality) -> Model {
    let (tasks, traits) = match modality {
        Modality::Text => (vec![Task::Embed, Task::Score], Traits { width: Some(WIDTH), ..Traits::default() }),
        Modality::Image => {
            (vec![Task::Classify], Traits { labels: LABELS.map(str::to_owned).into(), ..Traits::default() })
        }
        Modality::Audio => (vec![Task::Transcribe], Traits::default()),
    };
    let engine = Fake::new(Mood { step: Duration::ZERO, end: Ends::Well });
    let name = format!("{MODEL}-{}", modality.as_str());
    Model { loaded: loaded(&name), modality, tasks, traits, meters: Meters::of(&name), engine }
}

/// A job for [`encoder`], of its first task: as JSON, whole.
#[must_use]
pub fn job_on(modality: Modality, id: &str, input: Vec<Part>) -> Job {
    let model = encoder(modality);
    Job {
        task: model.tasks[0].clone(),
        modality,
        model: model.loaded.name,
        input,
        params: Params::default(),
        format: Format::Json,
        ..job(id, "")
    }
}

/// A picture as the fake sees it: the first letter is its colour, and one that begins with `bad` ends too early.
#[must_use]
pub fn picture(data: &'static [u8]) -> Part {
    media(Modality::Image, "image/png", data)
}

/// A sound as the fake hears it: its text.
#[must_use]
pub fn sound(data: &'static [u8]) -> Part {
    media(Modality::Audio, "audio/wav", data)
}

fn media(modality: Modality, mime: &str, data: &'static [u8]) -> Part {
    let data = Blob(Bytes::from_static(data));
    Part { role: Role::User, content: Content::Media { modality, mime: mime.to_owned(), data } }
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
        origin: Origin::Claimed,
        steps: None,
    }
}
