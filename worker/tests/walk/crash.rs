//! A worker may die between any two steps: every test sets up what then stands, and lets the next delivery complete it.

use std::time::Duration;

use protocol::answer::{Answer, CacheOutcome, Finish, Output, Usage};
use protocol::job::{Job, Origin, Turn};
use protocol::record::{End, Record, SessionTurn};
use protocol::request::Mode;
use protocol::token::SessionId;
use protocol::{ErrorCode, Refusal, WIRE_VERSION, header, subject};
use runtime::records;
use tests::wait::until;
use worker::fake;

use crate::DRAIN;
use crate::bench::{Bench, QUICK, SLOW, SOON, header_of, text_of};

fn stored(job: &Job, end: End) -> Record {
    let session = job.session.clone().map(|turn| SessionTurn {
        session: turn.session,
        number: turn.number,
        input: job.input.clone(),
        answer: matches!(end, End::Done(_)).then(|| "stored".to_owned()),
    });
    Record {
        version: WIRE_VERSION,
        job: job.id.clone(),
        tenant: job.tenant.clone(),
        format: job.format,
        settled_ms: 1,
        end,
        session,
        cache_key: job.cache_key.clone(),
    }
}

fn answered(job: &Job) -> End {
    End::Done(Answer {
        job: job.id.clone(),
        model: job.model.clone(),
        task: "chat".to_owned(),
        output: vec![Output::Text { text: "stored".to_owned() }],
        finish_reason: Finish::Stop,
        usage: Usage::default(),
        cache: CacheOutcome::Miss,
        steps: Vec::new(),
    })
}

async fn with_session(bench: &Bench, id: &str, text: &str) -> Job {
    let mut job = fake::job(id, text);
    let session = SessionId::parse("s").unwrap();
    let number = bench.sessions.reserve(&job.tenant, &session, &job.id).await.unwrap();
    bench.sessions.confirm(&job.tenant, &session, &job.id).await.unwrap();
    job.session = Some(Turn { session, number });
    job
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_record_the_rest_is_done_and_nothing_is_computed() {
    let bench = Bench::start().await;
    let mut job = with_session(&bench, "j1", "hello").await;
    job.cache_key = Some("k".to_owned());
    records::store_result(&bench.bus, &stored(&job, answered(&job))).await.unwrap();
    let mut answers = bench.ask(&mut job).await;
    let worker = bench.worker(4, QUICK, DRAIN).await;
    assert_eq!(answers.next().await.payload, "stored");
    bench.queue_empty().await;
    assert_eq!(worker.engine.submitted(), 0);
    let session = &job.session.as_ref().unwrap().session;
    let turns = bench.sessions.get(&job.tenant, session).await.unwrap().unwrap();
    assert_eq!(turns[0].answer.as_deref(), Some("stored"));
    assert!(answers.silent(Duration::from_millis(300)).await, "said once");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_the_session_turn_it_is_not_settled_twice() {
    let bench = Bench::start().await;
    let mut job = with_session(&bench, "j1", "hello").await;
    let record = stored(&job, answered(&job));
    records::store_result(&bench.bus, &record).await.unwrap();
    bench.sessions.settle(&job.tenant, record.session.as_ref().unwrap(), &job.id).await.unwrap();
    let mut answers = bench.ask(&mut job).await;
    let _worker = bench.worker(4, QUICK, DRAIN).await;
    assert_eq!(answers.next().await.payload, "stored");
    let turns = bench.sessions.get(&job.tenant, &record.session.unwrap().session).await.unwrap().unwrap();
    assert_eq!(turns.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_stream_is_replayed() {
    let bench = Bench::start().await;
    let mut job = fake::job("j1", "hello");
    job.mode = Mode::Stream;
    records::store_result(&bench.bus, &stored(&job, answered(&job))).await.unwrap();
    let mut answers = bench.ask(&mut job).await;
    let _worker = bench.worker(4, QUICK, DRAIN).await;
    assert_eq!(text_of(&answers.stream().await), "stored");
    bench.queue_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_loses_the_race_says_the_stored_end() {
    let bench = Bench::start().await;
    let worker = bench.worker(4, SLOW, DRAIN).await;
    let mut job = fake::job("j1", "hello");
    job.mode = Mode::Stream;
    let mut answers = bench.ask(&mut job).await;
    answers.next().await;
    records::store_result(&bench.bus, &stored(&job, answered(&job))).await.unwrap();
    let rest = answers.stream().await;
    assert_eq!(text_of(&rest), "stored", "an attempt of its own: discard what came before");
    assert_eq!(worker.engine.submitted(), 1);
    bench.queue_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_loses_the_race_to_the_same_answer_says_all_of_it_again() {
    let bench = Bench::start().await;
    let _worker = bench.worker(4, SLOW, DRAIN).await;
    let mut job = fake::job("j1", "hello");
    job.mode = Mode::Stream;
    let mut answers = bench.ask(&mut job).await;
    answers.next().await;
    let said = fake::answer(&["hello"], 4);
    let mut end = answered(&job);
    if let End::Done(answer) = &mut end {
        answer.output = vec![Output::Text { text: said.clone() }];
    }
    records::store_result(&bench.bus, &stored(&job, end)).await.unwrap();
    let rest = answers.stream().await;
    assert_eq!(header_of(&rest[rest.len() - 2], header::ATTEMPT), "2", "above what the winner can have said");
    assert_eq!(text_of(&rest), said);
    bench.queue_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_before_the_first_delivery_reaches_no_engine() {
    let bench = Bench::start().await;
    let mut job = with_session(&bench, "j1", "hello").await;
    let mut record = stored(&job, End::Failed(Refusal::new(ErrorCode::Cancelled, "cancelled")));
    record.session = None;
    records::store_result(&bench.bus, &record).await.unwrap();
    let mut answers = bench.ask(&mut job).await;
    let worker = bench.worker(4, QUICK, DRAIN).await;
    assert_eq!(header_of(&answers.next().await, header::SERVICE_ERROR_CODE), "499");
    bench.queue_empty().await;
    assert_eq!(worker.engine.submitted(), 0);
    // The turn is settled without a trace, so the next one does not wait for it.
    let mut next = with_session(&bench, "j2", "again").await;
    assert_eq!(bench.ask(&mut next).await.next().await.payload, fake::answer(&["again"], 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_would_have_heard_it_does_not_ask() {
    let bench = Bench::start().await;
    let worker = bench.worker(4, QUICK, DRAIN).await;
    let door = |id| {
        let job = fake::job(id, "hello");
        Job { origin: Origin::Door, accepted_ms: job.accepted_ms + 10_000, ..job }
    };
    bench.ask(&mut door("j0")).await.next().await;
    let mut heard = door("j1");
    let end = End::Failed(Refusal::new(ErrorCode::Cancelled, "cancelled"));
    records::store_result(&bench.bus, &stored(&heard, end)).await.unwrap();
    bench.bus.client.publish(subject::cancel(&heard.tenant, &heard.id), bytes::Bytes::new()).await.unwrap();
    bench.ask(&mut door("j2")).await.next().await;
    assert_eq!(header_of(&bench.ask(&mut heard).await.next().await, header::SERVICE_ERROR_CODE), "499");
    assert_eq!(worker.engine.submitted(), 2, "a cancel that was heard is looked at");
    let mut unheard = door("j3");
    records::store_result(&bench.bus, &stored(&unheard, answered(&unheard))).await.unwrap();
    assert_eq!(bench.ask(&mut unheard).await.next().await.payload, "stored");
    assert_eq!(worker.engine.submitted(), 3, "computed for nothing, and its end is the record's all the same");
    bench.queue_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_workers_stream_is_completed_by_another() {
    let bench = Bench::start().await;
    let first = bench.worker(4, SLOW, DRAIN).await;
    let mut job = fake::job("j1", "hello");
    job.mode = Mode::Stream;
    job.params.max_tokens = Some(30);
    let mut answers = bench.ask(&mut job).await;
    answers.next().await;
    drop(first);
    let started = std::time::Instant::now();
    let _second = bench.worker(4, QUICK, DRAIN).await;
    let rest = answers.stream().await;
    assert!(started.elapsed() < Duration::from_secs(12), "{:?}", started.elapsed());
    assert_eq!(text_of(&rest), fake::answer(&["hello"], 30));
    assert_eq!(header_of(&rest[rest.len() - 2], header::ATTEMPT), "1", "the client can tell the new attempt");
    bench.queue_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_engine_loses_its_job_to_another() {
    let bench = Bench::start().await;
    let hung = fake::Mood { end: fake::Ends::Hanging, ..QUICK };
    let first = bench.worker(4, hung, DRAIN).await;
    let mut job = fake::job("j1", "hello");
    let mut answers = bench.ask(&mut job).await;
    until("the job in the engine", SOON, || async { (first.engine.submitted() == 1).then_some(()) }).await;
    let _second = bench.worker(4, QUICK, DRAIN).await;
    assert_eq!(answers.next().await.payload, fake::answer(&["hello"], 4));
    bench.queue_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_waits_for_the_one_before_and_knows_it() {
    let bench = Bench::start().await;
    let mut first = with_session(&bench, "j1", "one").await;
    let mut second = with_session(&bench, "j2", "two").await;
    let mut answers = bench.ask(&mut second).await;
    let _worker = bench.worker(4, QUICK, DRAIN).await;
    assert!(answers.silent(Duration::from_millis(700)).await, "out of turn");
    let said = fake::answer(&["one"], 4);
    assert_eq!(bench.ask(&mut first).await.next().await.payload, said);
    let words: Vec<&str> = std::iter::once("one").chain(said.split_whitespace()).chain(["two"]).collect();
    assert_eq!(answers.next().await.payload, fake::answer(&words, 4));
    bench.queue_empty().await;
    let forgiven = records::forgiven(&bench.bus, &second.tenant, &second.id).await.unwrap();
    assert!(forgiven >= 1, "waiting is no attempt");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_ends_what_computes() {
    let bench = Bench::start().await;
    let _worker = bench.worker(4, SLOW, DRAIN).await;
    let mut job = fake::job("j1", "hello");
    (job.mode, job.params.max_tokens) = (Mode::Stream, Some(400));
    let mut answers = bench.ask(&mut job).await;
    answers.next().await;
    let end = End::Failed(Refusal::new(ErrorCode::Cancelled, "cancelled"));
    records::store_result(&bench.bus, &stored(&job, end)).await.unwrap();
    bench.bus.client.publish(subject::cancel(&job.tenant, &job.id), bytes::Bytes::new()).await.unwrap();
    let rest = answers.stream().await;
    assert_eq!(header_of(rest.last().unwrap(), header::SERVICE_ERROR_CODE), "499");
    assert!(rest.len() < 20, "{} frames", rest.len());
    bench.queue_empty().await;
}
