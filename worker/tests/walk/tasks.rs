//! Tasks other than text: vectors, labels, transcripts, and input that cannot be read.

use async_nats::Message;
use protocol::answer::{Answer, Output};
use protocol::job::Job;
use protocol::media::Modality;
use protocol::request::{Format, Mode, Part, Task, TranscriptFormat};
use protocol::{header, stream};
use worker::fake;

use crate::DRAIN;
use crate::bench::{Bench, header_of, text_of};

/// Servers and a worker that runs the fake of this modality.
async fn bench(modality: Modality) -> (Bench, impl Drop) {
    let bench = Bench::start().await;
    let model = fake::encoder(modality);
    bench.lanes(modality, &model.loaded.name).await;
    let (stop, _task) = bench.run(4, model, DRAIN).await;
    (bench, stop.drop_guard())
}

fn answer(frame: &Message) -> Answer {
    assert_eq!(header_of(frame, header::STATUS), "done", "{frame:?}");
    serde_json::from_slice(&frame.payload).unwrap()
}

async fn code(bench: &Bench, job: &mut Job) -> String {
    let frame = bench.ask(job).await.next().await;
    assert_eq!(header_of(&frame, header::STATUS), "failed", "{frame:?}");
    let body: serde_json::Value = serde_json::from_slice(&frame.payload).unwrap();
    body["error"]["code"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_text_has_a_vector_and_a_score_compares_them() {
    let (bench, _worker) = bench(Modality::Text).await;
    let texts = vec![Part::user("one two"), Part::user("three"), Part::user("one two")];
    let mut job = fake::job_on(Modality::Text, "j1", texts);
    let said = answer(&bench.ask(&mut job).await.next().await);
    let vectors: Vec<&Vec<f32>> = said
        .output
        .iter()
        .map(|output| match output {
            Output::Embedding { vector } => vector,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!((vectors.len(), vectors[0].len(), said.usage.input_tokens), (3, fake::WIDTH, 5));
    assert!(vectors[0] == vectors[2] && vectors[0] != vectors[1], "in order: {vectors:?}");
    let mut narrow = Job { id: fake::job("j2", "").id, ..job.clone() };
    narrow.params.dimensions = Some(2);
    let Output::Embedding { vector } = &answer(&bench.ask(&mut narrow).await.next().await).output[0] else { panic!() };
    assert!((vector.iter().map(|number| number * number).sum::<f32>() - 1.0).abs() < 1e-5 && vector.len() == 2);
    let mut score = Job { id: fake::job("j3", "").id, task: Task::Score, ..job.clone() };
    let said = answer(&bench.ask(&mut score).await.next().await);
    let [Output::Score { score: apart }, Output::Score { score: same }] = said.output[..] else { panic!("{said:?}") };
    assert!(same > 0.999 && apart < same, "{said:?}");
    let mut wide = Job { id: fake::job("j4", "").id, ..job.clone() };
    wide.params.dimensions = Some(100);
    assert_eq!(code(&bench, &mut wide).await, "invalid_request");
    let long = Part::user("word ".repeat(fake::CONTEXT as usize + 1));
    let mut long = Job { id: fake::job("j5", "").id, input: vec![long], ..job };
    assert_eq!(code(&bench, &mut long).await, "context_too_long");
    let mut cut = Job { id: fake::job("j6", "").id, ..long };
    cut.params.truncate = Some(true);
    assert_eq!(answer(&bench.ask(&mut cut).await.next().await).usage.input_tokens, u64::from(fake::CONTEXT));
    bench.queue_empty().await;
    assert_eq!(bench.messages(stream::DEADLETTER).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_have_labels_in_every_way_of_answering() {
    let (bench, _worker) = bench(Modality::Image).await;
    let pictures = vec![fake::picture(b"red"), fake::picture(b"blue")];
    let mut job = fake::job_on(Modality::Image, "j1", pictures);
    job.params.top = Some(1);
    let said = answer(&bench.ask(&mut job).await.next().await);
    let first = |output: &Output| match output {
        Output::Labels { labels } => (labels[0].label.clone(), labels.len()),
        other => panic!("{other:?}"),
    };
    assert_eq!(said.output.iter().map(first).collect::<Vec<_>>(), [("red".to_owned(), 1), ("blue".to_owned(), 1)]);
    assert_eq!(said.usage.images, 2);
    // A stream of one is accepted, the answer, and the end mark; raw, the labels and the end mark.
    let mut streamed = Job { id: fake::job("j2", "").id, mode: Mode::Stream, ..job.clone() };
    streamed.input.truncate(1);
    let statuses =
        |frames: &[Message]| frames.iter().map(|frame| header_of(frame, header::STATUS).to_owned()).collect();
    let frames: Vec<String> = statuses(&bench.ask(&mut streamed).await.stream().await);
    assert_eq!(frames, ["accepted", "done", "done"]);
    let mut raw = Job { id: fake::job("j3", "").id, format: Format::Raw, ..streamed };
    let frames = bench.ask(&mut raw).await.stream().await;
    assert_eq!(frames.len(), 2);
    assert_eq!(header_of(&frames[0], header::CONTENT_TYPE), "application/json");
    assert_eq!(header_of(&frames[0], header::KIND), "labels");
    let body: serde_json::Value = serde_json::from_slice(&frames[0].payload).unwrap();
    assert_eq!(body["labels"][0]["label"], "red");
    let mut own = Job { id: fake::job("j4", "").id, ..job.clone() };
    own.params.labels = Some(vec!["cat".to_owned()]);
    assert_eq!(code(&bench, &mut own).await, "invalid_request");
    let mut bad = Job { id: fake::job("j5", "").id, input: vec![fake::picture(b"bad")], ..job };
    assert_eq!(code(&bench, &mut bad).await, "invalid_request");
    bench.queue_empty().await;
    assert_eq!(bench.messages(stream::DEADLETTER).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn own_labels_are_weighed_by_a_model_that_reads_them() {
    let bench = Bench::start().await;
    let mut model = fake::encoder(Modality::Image);
    model.traits.likeness = Some(100.0);
    bench.lanes(Modality::Image, &model.loaded.name).await;
    let (stop, _task) = bench.run(4, model, DRAIN).await;
    let _worker = stop.drop_guard();
    let mut job = fake::job_on(Modality::Image, "j1", vec![fake::picture(b"red")]);
    job.params.labels = Some(vec!["a cat".to_owned(), "one very odd dog".to_owned()]);
    let said = answer(&bench.ask(&mut job).await.next().await);
    let [Output::Labels { labels }] = &said.output[..] else { panic!("{said:?}") };
    assert_eq!(labels.len(), 2);
    assert!((labels[0].score + labels[1].score - 1.0).abs() < 1e-5 && labels[0].score >= labels[1].score);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transcript_streams_as_it_is_heard() {
    let (bench, _worker) = bench(Modality::Audio).await;
    let mut job = fake::job_on(Modality::Audio, "j1", vec![fake::sound(b"hello big world")]);
    (job.mode, job.format) = (Mode::Stream, Format::Raw);
    let frames = bench.ask(&mut job).await.stream().await;
    assert_eq!((frames.len(), text_of(&frames).as_str()), (4, "hello big world"));
    assert_eq!(header_of(&frames[0], header::KIND), "transcript");
    let mut json = Job { id: fake::job("j2", "").id, format: Format::Json, ..job.clone() };
    let frames = bench.ask(&mut json).await.stream().await;
    let statuses: Vec<&str> = frames.iter().map(|frame| header_of(frame, header::STATUS)).collect();
    assert_eq!(statuses, ["accepted", "chunk", "chunk", "chunk", "done", "done"]);
    let chunk: serde_json::Value = serde_json::from_slice(&frames[2].payload).unwrap();
    assert_eq!((&chunk["delta"]["type"], &chunk["delta"]["text"]), (&"transcript".into(), &" big".into()));
    let said = answer(&frames[4]);
    let [Output::Transcript { text, language, segments, .. }] = &said.output[..] else { panic!("{said:?}") };
    assert_eq!((text.as_str(), language.as_str(), segments.len()), ("hello big world", "en", 3));
    assert_eq!(said.usage.audio_ms, 15);
    bench.queue_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_fits_its_record_and_not_its_format_is_refused() {
    let (bench, _worker) = bench(Modality::Audio).await;
    // JSON writes six letters for each of these, and a transcript has its text twice.
    let sound: &'static [u8] = vec![1; 800_000].leak();
    let mut job = fake::job_on(Modality::Audio, "j1", vec![fake::sound(sound)]);
    assert_eq!(code(&bench, &mut job).await, "too_large");
    let mut fits = Job { id: fake::job("j2", "").id, format: Format::Msgpack, ..job };
    assert_eq!(header_of(&bench.ask(&mut fits).await.next().await, header::STATUS), "done");
    bench.queue_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn subtitles_are_the_body_whole_or_streamed() {
    let (bench, _worker) = bench(Modality::Audio).await;
    let mut job = fake::job_on(Modality::Audio, "j1", vec![fake::sound(b"hello world")]);
    (job.format, job.params.format) = (Format::Raw, Some(TranscriptFormat::Vtt));
    let whole = bench.ask(&mut job).await.next().await;
    let expected = "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nhello\n\n00:00:01.000 --> 00:00:02.000\nworld\n\n";
    assert_eq!(whole.payload, expected);
    assert_eq!(header_of(&whole, header::CONTENT_TYPE), "text/vtt; charset=utf-8");
    let mut streamed = Job { id: fake::job("j2", "").id, mode: Mode::Stream, ..job };
    let frames = bench.ask(&mut streamed).await.stream().await;
    assert_eq!(text_of(&frames), expected);
    assert_eq!(header_of(&frames[0], header::ATTEMPT), "0", "nothing is to be discarded");
    let mut bad = Job { id: fake::job("j3", "").id, format: Format::Json, mode: Mode::Whole, ..streamed };
    bad.input = vec![fake::sound(b"bad")];
    assert_eq!(code(&bench, &mut bad).await, "invalid_request");
    bad = Job { id: fake::job("j4", "").id, ..bad };
    bad.input = vec![fake::sound(b"one"), fake::sound(b"two")];
    assert_eq!(code(&bench, &mut bad).await, "invalid_request");
}

#[tokio::test(flavor = "multi_thread")]
async fn models_of_every_modality_are_served_by_one_worker() {
    let bench = Bench::start().await;
    let models: Vec<_> = Modality::ALL.into_iter().map(fake::encoder).collect();
    for model in &models {
        bench.lanes(model.modality, &model.loaded.name).await;
    }
    let (stop, _task) = bench.run_all(4, models, DRAIN).await;
    let _worker = stop.drop_guard();
    let mut jobs = [
        fake::job_on(Modality::Text, "j1", vec![Part::user("a text")]),
        fake::job_on(Modality::Image, "j2", vec![fake::picture(b"green")]),
        fake::job_on(Modality::Audio, "j3", vec![fake::sound(b"hello")]),
    ];
    let mut kinds = Vec::new();
    for job in &mut jobs {
        kinds.push(header_of(&bench.ask(job).await.next().await, header::KIND).to_owned());
    }
    assert_eq!(kinds, ["embedding", "labels", "transcript"]);
}
