//! The walk on the real engine with the real model.

use std::time::{Duration, Instant};

use protocol::header;
use protocol::job::Job;
use protocol::request::Mode;
use worker::{Config, fake, native};

use crate::DRAIN;
use crate::bench::{Answers, Bench, header_of, text_of};

fn ask(id: &str, model: &str) -> Job {
    let mut job = fake::job(id, "What is the capital of France?");
    model.clone_into(&mut job.model);
    (job.mode, job.params.max_tokens) = (Mode::Stream, Some(24));
    job
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_chats_stream_at_once_and_say_the_same() {
    let mut config = Config::default();
    let file = engine::fixture::smollm2();
    config.worker.models_dir = file.ancestors().nth(2).unwrap().to_path_buf();
    let started = Instant::now();
    let model = tokio::task::spawn_blocking(move || native::load(&config)).await.unwrap().unwrap().models.remove(0);
    println!("loaded in {:?}", started.elapsed());
    let bench = Bench::start().await;
    bench.lanes(model.modality, &model.loaded.name).await;
    let name = model.loaded.name.clone();
    let (stop, task) = bench.run(8, model, DRAIN).await;
    let mut inboxes: Vec<Answers> = Vec::new();
    for number in 0..8 {
        inboxes.push(bench.ask(&mut ask(&format!("j{number}"), &name)).await);
    }
    let mut texts = Vec::new();
    for inbox in &mut inboxes {
        let frames = inbox.stream().await;
        let text = text_of(&frames);
        let end = frames.last().unwrap();
        assert_eq!(header_of(end, header::STATUS), "done");
        texts.push(text);
    }
    println!("{}", texts[0]);
    assert!(texts[0].contains("Paris"), "{}", texts[0]);
    assert!(texts.iter().all(|text| *text == texts[0]), "batched or alone, the same");
    bench.queue_empty().await;
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(10), task).await.unwrap().unwrap().unwrap();
}
