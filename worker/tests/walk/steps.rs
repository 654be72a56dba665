//! Steps of pipelines: what one gives goes into STEPS, the last one speaks, and whichever fails ends the request. The
//! fake engine reads texts alone, so these steps do too.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use futures::StreamExt;
use protocol::answer::Output;
use protocol::job::{Job, Turn};
use protocol::media::Modality;
use protocol::pipeline::{self, Step};
use protocol::record::{End, Record, StepRecord};
use protocol::request::{Format, Mode, Part, Task};
use protocol::token::SessionId;
use protocol::{ErrorCode, Refusal, WIRE_VERSION, header, stream, subject};
use runtime::records;
use tests::wait::until;
use worker::fake::{self, Ends, Mood};

use crate::DRAIN;
use crate::bench::{Bench, QUICK, SLOW, SOON, header_of, text_of};

/// The first job of a request whose first part is turned into text before all of it is answered.
fn first(id: &str) -> Job {
    let mut whole = fake::job(id, "hello");
    whole.input.push(Part::user("and this?"));
    begin(whole)
}

fn begin(whole: Job) -> Job {
    let step = Step { task: Task::Complete, modality: Modality::Text, model: fake::MODEL.to_owned(), part: 0 };
    let mut job = pipeline::begin(whole, "p", [step].into());
    // The step's own default is longer.
    job.params.max_tokens = Some(4);
    job
}

/// What stands in STEPS, without taking it.
async fn given(bench: &Bench, job: &Job) -> Option<StepRecord> {
    let stream = bench.bus.js.get_stream(stream::STEPS).await.unwrap();
    let message = stream.get_last_raw_message_by_subject(&subject::step(&job.tenant, &job.id, 0)).await.ok()?;
    Some(StepRecord::decode(&message.payload).unwrap())
}

/// Takes what a step gave, as a dispatcher does, and queues the next job.
async fn next(bench: &Bench, job: &Job) -> Job {
    let record = until("what the step gave", SOON, || given(bench, job)).await;
    let config =
        pull::Config { ack_policy: AckPolicy::Explicit, durable_name: Some("test".into()), ..pull::Config::default() };
    let steps = bench.bus.js.get_stream(stream::STEPS).await.unwrap();
    let consumer: PullConsumer = steps.get_or_create_consumer("test", config).await.unwrap();
    let next = pipeline::advance(record.job, record.given).unwrap();
    bench.publish(&next).await;
    let mut batch = consumer.fetch().max_messages(1).messages().await.unwrap();
    batch.next().await.unwrap().unwrap().double_ack().await.unwrap();
    next
}

fn heard() -> String {
    fake::answer(&["hello"], 4)
}

/// The answer to what the step heard and the rest of the input.
fn answered() -> String {
    let heard = heard();
    let words: Vec<&str> = heard.split_whitespace().chain(["and", "this?"]).collect();
    fake::answer(&words, 4)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_step_gives_is_stored_and_the_last_speaks() {
    let bench = Bench::start().await;
    let _worker = bench.worker(4, QUICK, DRAIN).await;
    let mut job = first("j1");
    (job.mode, job.format) = (Mode::Stream, Format::Json);
    let mut answers = bench.ask(&mut job).await;
    let record = until("what the step gave", SOON, || given(&bench, &job)).await;
    assert_eq!((record.version, record.given.output.clone()), (WIRE_VERSION, Output::Text { text: heard() }));
    assert!(record.job.input.is_empty(), "what is used up is gone");
    bench.queue_empty().await;
    assert!(answers.silent(Duration::from_millis(300)).await, "a step says nothing");
    assert!(records::result(&bench.bus, &job.tenant, &job.id).await.unwrap().is_none(), "it is no answer");
    next(&bench, &job).await;
    let frames = answers.stream().await;
    let seqs: Vec<&str> = frames[1..6].iter().map(|frame| header_of(frame, header::SEQ)).collect();
    assert_eq!(seqs, ["0", "1", "2", "3", "4"]);
    assert!(frames[1..6].iter().all(|frame| header_of(frame, header::JOB) == "j1"));
    let Record { end: End::Done(answer), .. } = bench.record(&job).await else { panic!("it was answered") };
    assert_eq!(
        (answer.text().to_owned(), answer.steps[0].output.clone()),
        (answered(), Output::Text { text: heard() })
    );
    let step = answer.steps[0].usage.expect("a step says what it cost");
    assert_eq!((step.output_tokens, answer.usage.output_tokens), (4, 8), "the request costs both");
    bench.queue_empty().await;
    assert_eq!(bench.messages(stream::STEPS).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_comes_again_computes_and_stores_once() {
    let bench = Bench::start().await;
    let first_worker = bench.worker(4, QUICK, DRAIN).await;
    let mut job = first("j1");
    let mut answers = bench.ask(&mut job).await;
    until("what the step gave", SOON, || given(&bench, &job)).await;
    bench.queue_empty().await;
    // The worker died before its ack: the same job under another place in the queue.
    let again = async || {
        let to = subject::lane(job.modality, &job.model, job.priority);
        bench.bus.js.publish(to, job.encode()).await.unwrap().await.unwrap();
        bench.queue_empty().await;
    };
    again().await;
    assert_eq!((bench.messages(stream::STEPS).await, first_worker.engine.submitted()), (1, 2));
    next(&bench, &job).await;
    assert_eq!(answers.next().await.payload, answered());
    bench.queue_empty().await;
    // After the end it is not even computed, and nothing is said twice.
    again().await;
    assert_eq!((bench.messages(stream::STEPS).await, first_worker.engine.submitted()), (0, 3));
    assert!(answers.silent(Duration::from_millis(300)).await, "said once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_leaves_a_step_and_an_answer_to_others() {
    let bench = Bench::start().await;
    let dies = bench.worker(4, SLOW, DRAIN).await;
    let mut job = first("j1");
    job.mode = Mode::Stream;
    let mut answers = bench.ask(&mut job).await;
    until("a step in the engine", SOON, || async { (dies.engine.submitted() == 1).then_some(()) }).await;
    drop(dies);
    let dies = bench.worker(4, SLOW, DRAIN).await;
    next(&bench, &job).await;
    answers.next().await;
    answers.next().await;
    drop(dies);
    let _lives = bench.worker(4, QUICK, DRAIN).await;
    let rest = answers.stream().await;
    let text = text_of(&rest);
    assert_eq!(text, heard() + &answered(), "the new attempt says all of it again");
    bench.queue_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_fails_ends_the_request_and_its_turn() {
    let bench = Bench::start().await;
    let worker = bench.worker(4, Mood { end: Ends::Failing, ..QUICK }, DRAIN).await;
    let session = SessionId::parse("s").unwrap();
    let mut whole = fake::job("j1", "hello");
    let number = bench.sessions.reserve(&whole.tenant, &session, &whole.id).await.unwrap();
    bench.sessions.confirm(&whole.tenant, &session, &whole.id).await.unwrap();
    whole.session = Some(Turn { session: session.clone(), number });
    whole.mode = Mode::Stream;
    let mut job = begin(whole);
    let frames = bench.ask(&mut job).await.stream().await;
    assert_eq!(header_of(&frames[0], header::SERVICE_ERROR_CODE), "500");
    assert_eq!(bench.messages(stream::DEADLETTER).await, 1);
    bench.queue_empty().await;
    assert_eq!(bench.messages(stream::STEPS).await, 0);
    // Whoever comes next in the session does not wait for it.
    worker.engine.feel(QUICK);
    let mut other = fake::job("j2", "again");
    let number = bench.sessions.reserve(&other.tenant, &session, &other.id).await.unwrap();
    other.session = Some(Turn { session, number });
    assert_eq!(bench.ask(&mut other).await.next().await.payload, fake::answer(&["again"], 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_of_the_request_ends_the_step_in_hand_and_those_to_come() {
    let bench = Bench::start().await;
    let worker = bench.worker(4, SLOW, DRAIN).await;
    let cancel = async |job: &Job| {
        let refusal = Refusal::new(ErrorCode::Cancelled, "cancelled");
        let record = Record {
            version: WIRE_VERSION,
            job: job.id.clone(),
            tenant: job.tenant.clone(),
            format: job.format,
            settled_ms: 1,
            end: End::Failed(refusal),
            session: None,
            cache_key: None,
        };
        records::store_result(&bench.bus, &record).await.unwrap();
        bench.bus.client.publish(subject::cancel(&job.tenant, &job.id), bytes::Bytes::new()).await.unwrap();
    };
    let mut job = first("j1");
    job.params.max_tokens = Some(400);
    let mut answers = bench.ask(&mut job).await;
    until("a step in the engine", SOON, || async { (worker.engine.submitted() == 1).then_some(()) }).await;
    cancel(&job).await;
    assert_eq!(header_of(&answers.next().await, header::SERVICE_ERROR_CODE), "499");
    bench.queue_empty().await;
    assert_eq!(bench.messages(stream::STEPS).await, 0);
    // Between two steps: the next job finds the record.
    let mut job = first("j2");
    let mut answers = bench.ask(&mut job).await;
    until("what the step gave", SOON, || given(&bench, &job)).await;
    cancel(&job).await;
    next(&bench, &job).await;
    assert_eq!(header_of(&answers.next().await, header::SERVICE_ERROR_CODE), "499");
    bench.queue_empty().await;
    assert_eq!(worker.engine.submitted(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_holds_for_all_steps_together() {
    let bench = Bench::start().await;
    let worker = bench.worker(4, QUICK, DRAIN).await;
    let mut job = first("j1");
    job.deadline_ms = runtime::clock::now_ms() + 1500;
    let mut answers = bench.ask(&mut job).await;
    until("what the step gave", SOON, || given(&bench, &job)).await;
    tokio::time::sleep(Duration::from_millis(1600)).await;
    next(&bench, &job).await;
    assert_eq!(header_of(&answers.next().await, header::SERVICE_ERROR_CODE), "504");
    assert_eq!(worker.engine.submitted(), 1);
    bench.queue_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_are_counted_by_step() {
    let bench = Bench::start().await;
    let job = first("j1");
    records::forgive(&bench.bus, &job.tenant, &job.name(), 3).await.unwrap();
    assert_eq!(records::forgiven(&bench.bus, &job.tenant, &job.name()).await.unwrap(), 3);
    assert_eq!(records::forgiven(&bench.bus, &job.tenant, &job.id).await.unwrap(), 0, "the last job's own");
    // An older worker knows only whose the job is.
    records::forgive(&bench.bus, &job.tenant, &job.id, 5).await.unwrap();
    assert_eq!(records::forgiven(&bench.bus, &job.tenant, &job.name()).await.unwrap(), 5);
}
