//! Every modality is answered by a real model, batched or alone, and what is bad disturbs nobody.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::future::join_all;
use serde_json::{Value, json};
use tests::client::{Ask, Client, Reply, streamed_text};
use tests::fleet::{Fleet, FleetOptions, Model};
use tests::media::{example, gif, png, promising_wav, wav};
use tests::wait::until;

async fn fleet() -> (Fleet, Client) {
    Fleet::start(FleetOptions { model: Model::Every, ..FleetOptions::default() }).await
}

fn texts(task: &str, texts: &[&str]) -> Ask {
    let input: Vec<Value> = texts.iter().map(|text| json!({"type": "text", "text": text})).collect();
    Ask::json(&json!({"input": input, "task": task, "cache": "bypass"}))
}

fn vectors(reply: &Reply) -> Vec<Vec<f64>> {
    assert_eq!(reply.status(), "done", "{reply:?}");
    let numbers = |output: &Value| {
        assert_eq!(output["type"], "embedding");
        output["vector"].as_array().expect("numbers").iter().map(|number| number.as_f64().expect("a number")).collect()
    };
    reply.value()["output"].as_array().expect("outputs").iter().map(numbers).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[tokio::test]
async fn texts_become_vectors_alone_as_in_company() {
    let (_fleet, client) = fleet().await;
    let (cat, kitten, bank) = ("A cat sits on the mat.", "A kitten rests on a rug.", "The bank raised its rates.");
    let together = vectors(&client.ask(&texts("embed", &[cat, kitten, bank])).await);
    assert_eq!(together.len(), 3);
    for vector in &together {
        assert_eq!(vector.len(), 384);
        assert!((dot(vector, vector) - 1.0).abs() < 1e-5);
    }
    assert!(dot(&together[0], &together[1]) > dot(&together[0], &together[2]) + 0.2);
    // Each alone, all at once and so in a batch with others: the same numbers.
    let asks = [cat, kitten, bank].map(|text| texts("embed", &[text]));
    let alone = join_all(asks.iter().map(|ask| client.ask(ask))).await;
    for (one, all) in alone.iter().zip(&together) {
        let far = vectors(one)[0].iter().zip(all).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(far < 1e-4, "{far}");
    }
    let scores = client.ask(&texts("score", &[cat, kitten, bank])).await.value();
    let score = |index: usize| scores["output"][index]["score"].as_f64().expect("a score");
    assert!((score(0) - dot(&together[0], &together[1])).abs() < 1e-4, "{scores}");
    assert!((score(1) - dot(&together[0], &together[2])).abs() < 1e-4, "{scores}");
}

#[tokio::test]
async fn a_photograph_is_named() {
    let (_fleet, client) = fleet().await;
    let photo = example("coffee.jpg");
    let raw = client.ask(&Ask::raw(photo.clone())).await;
    assert_eq!((raw.status(), raw.header("Flotilla-Kind")), ("done", "labels"), "{raw:?}");
    let labels = raw.value()["labels"].clone();
    let label = |index: usize| labels[index]["label"].as_str().unwrap_or_default().to_owned();
    assert_eq!(label(0), "espresso");
    assert_eq!(labels.as_array().map(Vec::len), Some(5));
    let score = |index: usize| labels[index]["score"].as_f64().expect("a score");
    assert!(score(0) > score(1) && score(0) <= 1.0);
    // The same by MessagePack and by its own door, and two labels only.
    let two = client.ask(&Ask::raw(photo).at("infer.image").header("Accept", "application/msgpack")).await;
    assert_eq!(two.value()["output"][0]["labels"][0]["label"], label(0));
}

#[tokio::test]
async fn speech_is_written_down_as_it_comes() {
    let (_fleet, client) = fleet().await;
    let speech = example("sentence.flac");
    let whole = client.ask(&Ask::raw(speech.clone()).header("Flotilla-Cache", "bypass")).await;
    assert_eq!((whole.status(), whole.header("Flotilla-Kind")), ("done", "transcript"), "{whole:?}");
    assert!(whole.text().split_whitespace().count() > 5, "{}", whole.text());
    let stream = client.open(&Ask::raw(speech.clone()).streamed().header("Flotilla-Cache", "bypass")).await.all().await;
    assert!(stream.iter().any(|reply| reply.header("Flotilla-Kind") == "transcript" && reply.status() == "chunk"));
    assert_eq!(streamed_text(&stream), whole.text());
    let cues = client.ask(&Ask::raw(speech).header("Accept", "application/json")).await.value();
    let segments = cues["output"][0]["segments"].as_array().expect("segments").clone();
    assert!(segments[0]["end"].as_f64() > segments[0]["start"].as_f64(), "{cues}");
}

/// What is bad, with its code; `None` where it is odd and answered all the same.
fn bad() -> Vec<(&'static str, Ask, Option<&'static str>)> {
    let photo = example("coffee.jpg");
    let mut noise = b"\xff\xfb\x90\x00".to_vec();
    noise.extend((0..60_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8));
    let no_text: [&str; 0] = [];
    let long = "word ".repeat(200_000);
    vec![
        ("a picture cut short", Ask::raw(photo[..photo.len() / 2].to_vec()), Some("invalid_request")),
        ("a lying PNG", Ask::raw(png(3_000, 2_000)), Some("invalid_request")),
        ("a PNG of 50,000 x 50,000", Ask::raw(png(50_000, 50_000)), Some("too_large")),
        ("a GIF of 10,000 frames", Ask::raw(gif(10_000)), None),
        ("a WAV that promises 4 GB", Ask::raw(promising_wav()), None),
        ("an MP3 of noise", Ask::raw(noise).header("Content-Type", "audio/mpeg"), Some("invalid_request")),
        ("silence", Ask::raw(wav()), None),
        ("a text of 1 MB", texts("embed", &[&long]), Some("context_too_long")),
        ("a text of 1 MB, cut", with(&texts("embed", &[&long]), json!({"truncate": true})), None),
        ("no text", texts("embed", &no_text), Some("invalid_request")),
        ("one text to compare", texts("score", &["alone"]), Some("invalid_request")),
        ("too many dimensions", with(&texts("embed", &["x"]), json!({"dimensions": 385})), Some("invalid_request")),
    ]
}

fn with(ask: &Ask, params: Value) -> Ask {
    let mut envelope: Value = serde_json::from_slice(&ask.body).expect("an envelope");
    envelope["params"] = params;
    Ask::json(&envelope)
}

#[tokio::test]
async fn bad_media_have_their_codes_and_harm_nobody() {
    let (_fleet, client) = fleet().await;
    let good = [Ask::raw(example("coffee.jpg")), texts("embed", &["A cat sits on the mat."])];
    let before = join_all(good.iter().map(|ask| client.ask(ask))).await;
    for (name, ask, code) in bad() {
        let (reply, photo, text) = futures::join!(client.ask(&ask), client.ask(&good[0]), client.ask(&good[1]));
        match code {
            Some(code) => assert_eq!(reply.code(), code, "{name}: {reply:?}"),
            None => assert_eq!(reply.status(), "done", "{name}: {reply:?}"),
        }
        assert_eq!(photo.value(), before[0].value(), "beside {name}");
        assert_eq!(vectors(&text), vectors(&before[1]), "beside {name}");
    }
}

/// A photograph, a sound, and a question about both.
fn mixed(question: &str) -> Ask {
    let data = |name: &str| json!(STANDARD.encode(example(name)));
    Ask::json(&json!({
        "task": "chat",
        "cache": "bypass",
        "input": [
            {"type": "image", "data": data("coffee.jpg")},
            {"type": "audio", "data": data("sentence.flac")},
            {"type": "text", "text": question},
        ],
        "params": {"max_tokens": 24},
    }))
}

#[tokio::test]
async fn a_pipeline_is_one_request_one_stream_and_one_result() {
    let (_fleet, client) = fleet().await;
    let ask = mixed("What do you see, and what was said?");
    let frames = client.open(&ask.clone().streamed()).await.all().await;
    let mut kinds: Vec<&str> = frames.iter().map(|frame| frame.header("Flotilla-Kind")).collect();
    kinds.retain(|kind| !kind.is_empty());
    kinds.dedup();
    assert_eq!(kinds[..2], ["transcript", "labels"], "sounds are heard before pictures are looked at: {kinds:?}");
    let job = frames[0].header("Flotilla-Job");
    assert!(frames.iter().all(|frame| frame.is_end() || frame.header("Flotilla-Job") == job), "{frames:?}");
    let whole = client.ask(&ask).await;
    let steps = whole.value()["steps"].clone();
    assert_eq!(steps.as_array().map(Vec::len), Some(2), "{whole:?}");
    assert_eq!(client.result(job).await.answer(), whole.answer());
    assert_eq!(client.held("RESULTS").await, 2, "steps have no results of their own");
    assert_eq!(client.held("STEPS").await, 0);
}

#[tokio::test]
async fn pipelines_outlive_a_killed_worker_and_a_killed_dispatcher() {
    let options = FleetOptions { workers: 2, model: Model::Every, ..FleetOptions::default() };
    let (mut fleet, client) = Fleet::start(options).await;
    let questions: Vec<String> = (0..8).map(|number| format!("Question {number}: what do you see?")).collect();
    let mut answers = Vec::new();
    for question in &questions {
        answers.push(client.open(&mixed(question).streamed()).await);
    }
    let first = answers[0].next().await;
    fleet.kill_dispatcher();
    fleet.workers[0].kill9();
    fleet.start_dispatcher().await;
    let mut jobs = vec![first.header("Flotilla-Job").to_owned()];
    for (index, mut answers) in answers.into_iter().enumerate() {
        let frames = answers.all().await;
        let ends = frames.iter().filter(|frame| frame.status() == "done").count();
        assert!(ends >= 1, "question {index}: {frames:?}");
        jobs.extend(frames.iter().map(|frame| frame.header("Flotilla-Job").to_owned()));
    }
    jobs.retain(|job| !job.is_empty());
    jobs.sort();
    jobs.dedup();
    assert_eq!(jobs.len(), questions.len());
    assert_eq!(client.held("RESULTS").await, questions.len() as u64, "one record a request");
    for stream in ["STEPS", "JOBS"] {
        until(stream, Duration::from_secs(30), || async { (client.held(stream).await == 0).then_some(()) }).await;
    }
}
