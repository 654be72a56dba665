//! The ends that are no answer.

use std::time::Duration;

use protocol::job::Job;
use protocol::record::End;
use protocol::request::Mode;
use protocol::stream::{self, ATTEMPTS_MAX};
use protocol::{ErrorCode, WIRE_VERSION, header};
use runtime::cache::{Claim, Found, LEASE, Lease};
use runtime::records;
use tests::wait::until;
use worker::fake::{self, Ends, Mood};

use crate::DRAIN;
use crate::bench::{Bench, QUICK, SLOW, SOON, header_of, text_of};

#[tokio::test(flavor = "multi_thread")]
async fn a_passed_deadline_reaches_no_engine() {
    let bench = Bench::start().await;
    let worker = bench.worker(4, QUICK, DRAIN).await;
    let mut job = fake::job("j1", "hello");
    job.deadline_ms = runtime::clock::now_ms() - 1;
    assert_eq!(header_of(&bench.ask(&mut job).await.next().await, header::SERVICE_ERROR_CODE), "504");
    assert_eq!(worker.engine.submitted(), 0);
    bench.queue_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_what_computes() {
    let bench = Bench::start().await;
    let _worker = bench.worker(4, SLOW, DRAIN).await;
    let mut job = fake::job("j1", "hello");
    job.params.max_tokens = Some(400);
    job.deadline_ms = runtime::clock::now_ms() + 700;
    assert_eq!(header_of(&bench.ask(&mut job).await.next().await, header::SERVICE_ERROR_CODE), "504");
    bench.queue_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_without_an_answer_lets_others_compute_it() {
    let bench = Bench::start().await;
    let _worker = bench.worker(4, QUICK, DRAIN).await;
    let mut job = fake::job("j1", "hello");
    job.deadline_ms = runtime::clock::now_ms() - 1;
    job.cache_key = Some("k".to_owned());
    let responses = bench.responses();
    let taken = Found::Lease(Lease::Taken { from: None });
    let claim = |job: &Job| Claim { job: job.id.clone(), priority: job.priority };
    assert_eq!(responses.enter("k", &claim(&job)).await.unwrap(), taken);
    let other = claim(&fake::job("j2", "hello"));
    assert_ne!(responses.enter("k", &other).await.unwrap(), taken);
    assert_eq!(header_of(&bench.ask(&mut job).await.next().await, header::SERVICE_ERROR_CODE), "504");
    // Left alone it would lapse after twice as long.
    until("a free lease", LEASE / 2, || async { (responses.enter("k", &other).await.unwrap() == taken).then_some(()) })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_always_fails_is_a_dead_letter() {
    let bench = Bench::start().await;
    let worker = bench.worker(4, Mood { end: Ends::Failing, ..QUICK }, DRAIN).await;
    let mut job = fake::job("j1", "hello");
    assert_eq!(header_of(&bench.ask(&mut job).await.next().await, header::SERVICE_ERROR_CODE), "500");
    assert_eq!(worker.engine.submitted(), u64::from(ATTEMPTS_MAX));
    assert_eq!(bench.messages(stream::DEADLETTER).await, 1);
    bench.queue_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_job_are_a_dead_letter_with_a_record() {
    let bench = Bench::start().await;
    let _worker = bench.worker(4, QUICK, DRAIN).await;
    let job = fake::job("j1", "hello");
    bench.publish_bytes(&job, bytes::Bytes::from_static(b"\x93no job")).await;
    bench.queue_empty().await;
    assert_eq!(bench.messages(stream::DEADLETTER).await, 1);
    assert!(matches!(bench.record(&job).await.end, End::Failed(refusal) if refusal.code == ErrorCode::Internal));
    let mut good = fake::job("j2", "hello");
    assert_eq!(bench.ask(&mut good).await.next().await.payload, fake::answer(&["hello"], 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_for_a_dead_letter_others_get_the_slot() {
    let bench = Bench::start().await;
    let mut full = bench.bus.js.get_stream(stream::DEADLETTER).await.unwrap().get_info().await.unwrap().config;
    full.max_messages = 1;
    bench.bus.js.update_stream(full).await.unwrap();
    let _worker = bench.worker(1, QUICK, DRAIN).await;
    for id in ["j1", "j2"] {
        bench.publish_bytes(&fake::job(id, "hello"), bytes::Bytes::from_static(b"\x93no job")).await;
    }
    until("a dead letter", SOON, || async { (bench.messages(stream::DEADLETTER).await == 1).then_some(()) }).await;
    let mut good = fake::job("j3", "hello");
    assert_eq!(bench.ask(&mut good).await.next().await.payload, fake::answer(&["hello"], 4));
    assert_eq!(bench.messages(stream::JOBS).await, 1, "it is kept until there is room");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_that_does_not_fit_is_refused() {
    let bench = Bench::start().await;
    let worker = bench.worker(4, QUICK, DRAIN).await;
    let mut job = fake::job("j1", &"word ".repeat(600));
    let frame = bench.ask(&mut job).await.next().await;
    assert!(header_of(&frame, header::SERVICE_ERROR).starts_with("context_too_long"));
    assert_eq!(worker.engine.submitted(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_worker_finishes_what_it_has() {
    let bench = Bench::start().await;
    let mut worker = bench.worker(4, SLOW, DRAIN).await;
    let mut job = fake::job("j1", "hello");
    job.params.max_tokens = Some(15);
    job.mode = Mode::Stream;
    let mut answers = bench.ask(&mut job).await;
    answers.next().await;
    worker.stop.cancel();
    answers.stream().await;
    (&mut worker.task).await.unwrap().unwrap();
    bench.queue_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stopping_worker_cannot_finish_is_given_back_and_no_attempt() {
    let bench = Bench::start().await;
    let mut first = bench.worker(1, SLOW, Duration::from_millis(300)).await;
    let mut job = fake::job("j1", "hello");
    job.params.max_tokens = Some(100);
    job.mode = Mode::Stream;
    let mut answers = bench.ask(&mut job).await;
    answers.next().await;
    // The one slot is taken: this one is held, or waits.
    let mut other = fake::job("j2", "hello");
    other.priority = protocol::request::Priority::Batch;
    let mut others = bench.ask(&mut other).await;
    let started = std::time::Instant::now();
    first.stop.cancel();
    (&mut first.task).await.unwrap().unwrap();
    let _second = bench.worker(4, QUICK, DRAIN).await;
    let rest = answers.stream().await;
    others.next().await;
    assert!(started.elapsed() < Duration::from_secs(6), "at once, not after the ack wait: {:?}", started.elapsed());
    assert_eq!(text_of(&rest), fake::answer(&["hello"], 100));
    assert_eq!(records::forgiven(&bench.bus, &job.tenant, &job.id).await.unwrap(), 1);
    bench.queue_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_stateless_work_goes_on_and_a_session_waits_for_it() {
    let mut bench = Bench::start().await;
    let worker = bench.worker(4, QUICK, DRAIN).await;
    let mut job = fake::job("j1", "hello");
    let session = protocol::token::SessionId::parse("s").unwrap();
    let number = bench.sessions.reserve(&job.tenant, &session, &job.id).await.unwrap();
    bench.sessions.confirm(&job.tenant, &session, &job.id).await.unwrap();
    job.session = Some(protocol::job::Turn { session, number });
    bench.redis.stop();
    let mut answers = bench.ask(&mut job).await;
    let mut stateless = fake::job("j2", "hello");
    stateless.cache_key = Some("k".to_owned());
    assert_eq!(bench.ask(&mut stateless).await.next().await.payload, fake::answer(&["hello"], 4));
    assert!(answers.silent(Duration::from_millis(500)).await);
    bench.redis.start_again();
    until("sessions", SOON, || async { bench.sessions.rebuild(&bench.bus).await.ok() }).await;
    assert_eq!(answers.next().await.payload, fake::answer(&["hello"], 4));
    assert_eq!(worker.engine.submitted(), 2);
    bench.queue_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_a_newer_version_waits_for_a_worker_that_knows_it_and_is_never_an_attempt() {
    let bench = Bench::start().await;
    let worker = bench.worker(1, QUICK, DRAIN).await;
    let newer = Job { version: WIRE_VERSION + 1, ..fake::job("newer", "hello") };
    bench.publish(&newer).await;
    // More deliveries than any job has attempts, and its one slot is free for others meanwhile.
    for round in 0..=ATTEMPTS_MAX {
        until("a delivery that is forgiven", SOON, || async {
            let forgiven = records::forgiven(&bench.bus, &newer.tenant, &newer.id).await.unwrap();
            (forgiven > round).then_some(())
        })
        .await;
        let mut job = fake::job(&format!("j{round}"), "hello");
        bench.ask(&mut job).await.next().await;
    }
    assert_eq!((bench.messages(stream::JOBS).await, bench.messages(stream::DEADLETTER).await), (1, 0));
    assert_eq!(worker.engine.submitted(), u64::from(ATTEMPTS_MAX) + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_a_newer_version_is_not_settled_by_who_cannot_read_it() {
    let bench = Bench::start().await;
    let _worker = bench.worker(1, QUICK, DRAIN).await;
    let newer = Job { version: WIRE_VERSION + 1, deadline_ms: 1, ..fake::job("newer", "hello") };
    bench.publish(&newer).await;
    until("a delivery that is forgiven", SOON, || async {
        let forgiven = records::forgiven(&bench.bus, &newer.tenant, &newer.id).await.unwrap();
        (forgiven > 1).then_some(())
    })
    .await;
    assert!(
        records::result(&bench.bus, &newer.tenant, &newer.id).await.unwrap().is_none(),
        "its client was never told"
    );
    assert_eq!((bench.messages(stream::JOBS).await, bench.messages(stream::DEADLETTER).await), (1, 0));
}
