//! Greedy answers against llama.cpp's F32 run, token for token: `golden/smollm2/README.md` says how that was made.

use std::collections::HashMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use engine::backend::Activations;
use engine::engine::{End, Engine, EngineConfig, Event, Finish, Job, JobKey};
use engine::fixture::smollm2;
use engine::load::{Loaded, load};
use engine::prefix::Scope;
use engine::sampler::Sampling;
use engine::text::{Message, Role, Special, Template, Tokenizer, chat_tokens};
use serde_json::Value;

const TOKENS_MAX: usize = 48;
const BATCH: usize = 32;
const PATIENCE: Duration = Duration::from_secs(100);

/// One of `golden/smollm2/greedy.json`.
struct Golden {
    messages: Vec<Message>,
    rendered: String,
    prompt: Vec<u32>,
    output: Vec<u32>,
    finish: Finish,
    text: String,
}

fn goldens() -> Vec<Golden> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/smollm2/greedy.json");
    let values: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    values.iter().map(golden).collect()
}

fn golden(value: &Value) -> Golden {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let ids = |value: &Value| -> Vec<u32> {
        value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
    };
    let message = |value: &Value| Message {
        role: match value["role"].as_str().unwrap() {
            "system" => Role::System,
            "user" => Role::User,
            _ => Role::Assistant,
        },
        content: text(&value["content"]),
    };
    Golden {
        messages: value["messages"].as_array().unwrap().iter().map(message).collect(),
        rendered: text(&value["prompt"]),
        prompt: ids(&value["prompt_ids"]),
        output: ids(&value["output_ids"]),
        finish: if value["finish"] == "stop" { Finish::Stop } else { Finish::Length },
        text: text(&value["text"]),
    }
}

/// What came of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    text: String,
    finish: Finish,
    output_tokens: usize,
    input_tokens: usize,
}

/// The real model, running.
struct Running {
    engine: Engine,
    events: Receiver<Event>,
    template: Template,
    tokenizer: std::sync::Arc<Tokenizer>,
}

fn start(activations: Activations) -> Running {
    let threads = std::thread::available_parallelism().map_or(1, Into::into);
    let config = EngineConfig {
        threads,
        activations,
        kv_tokens: 8192,
        step_tokens: 256,
        sequences_max: BATCH,
        queue_max: BATCH,
    };
    let Loaded { model, tokenizer, template, .. } = load(&smollm2(), &config).unwrap();
    let (send, events) = channel();
    let engine = Engine::start(model, tokenizer.clone(), config, Box::new(send)).unwrap();
    Running { engine, events, template: template.expect("a chat model"), tokenizer }
}

impl Running {
    /// Answers of these prompts, all in at once.
    fn answers(&self, prompts: &[Vec<u32>]) -> Vec<Answer> {
        for (key, tokens) in prompts.iter().enumerate() {
            let job = Job {
                key: JobKey(key as u64),
                tokens: tokens.clone(),
                max_tokens: TOKENS_MAX,
                sampling: Sampling::greedy(),
                stop: Vec::new(),
                deadline: None,
                scope: Scope::default(),
            };
            self.engine.submit(job).unwrap();
        }
        let mut texts: HashMap<JobKey, String> = HashMap::new();
        let mut ended: HashMap<JobKey, Answer> = HashMap::new();
        while ended.len() < prompts.len() {
            match self.events.recv_timeout(PATIENCE).expect("the engine goes on") {
                Event::Started { .. } => {}
                Event::Chunk { key, text } => texts.entry(key).or_default().push_str(&text),
                Event::Ended { key, end: End::Done { finish, output_tokens, input_tokens } } => {
                    let text = texts.remove(&key).unwrap_or_default();
                    ended.insert(key, Answer { text, finish, output_tokens, input_tokens });
                }
                Event::Ended { key, end } => panic!("{key:?} ended with {end:?}"),
            }
        }
        (0..prompts.len()).map(|key| ended.remove(&JobKey(key as u64)).unwrap()).collect()
    }
}

#[test]
fn prompts_have_the_references_tokens() {
    let running = start(Activations::F32);
    for golden in goldens() {
        assert_eq!(running.template.render(&golden.messages).unwrap(), golden.rendered);
        let tokens = chat_tokens(&running.template, &running.tokenizer, &golden.messages).unwrap();
        assert_eq!(tokens, golden.prompt);
        assert_eq!(running.tokenizer.encode(&golden.rendered, Special::Parse).unwrap(), golden.prompt);
    }
    running.engine.stop();
}

#[test]
fn answers_are_the_references() {
    for activations in [Activations::F32, Activations::Int16] {
        let running = start(activations);
        answers_of(&running);
        running.engine.stop();
    }
}

fn answers_of(running: &Running) {
    for golden in &goldens() {
        let bytes: Vec<u8> = golden.output.iter().flat_map(|&id| running.tokenizer.bytes_of(id).to_vec()).collect();
        let expected = Answer {
            text: String::from_utf8_lossy(&bytes).into_owned(),
            finish: golden.finish,
            // The token that ended the text was sampled too.
            output_tokens: golden.output.len() + usize::from(golden.finish == Finish::Stop),
            input_tokens: golden.prompt.len(),
        };
        assert_eq!(expected.text, golden.text);
        assert_eq!(running.answers(std::slice::from_ref(&golden.prompt)), [expected]);
    }
}

#[test]
fn answers_are_the_same_alone_and_in_a_batch() {
    for activations in [Activations::F32, Activations::Int16, Activations::Mixed, Activations::Int8] {
        let running = start(activations);
        let prompts: Vec<Vec<u32>> = goldens().into_iter().map(|golden| golden.prompt).collect();
        let alone: Vec<Answer> =
            prompts.iter().flat_map(|prompt| running.answers(std::slice::from_ref(prompt))).collect();
        let batch: Vec<Vec<u32>> = prompts.iter().cycle().take(BATCH).cloned().collect();
        for (at, answer) in running.answers(&batch).into_iter().enumerate() {
            assert_eq!(answer, alone[at % alone.len()], "{at} of {BATCH}, {activations:?}");
        }
        running.engine.stop();
    }
}
