//! What the dispatcher pulls: large messages of the durable door, and what steps gave that nobody can use.

use std::time::Duration;

use protocol::job::Turn;
use protocol::request::BODY_BYTES_MAX;
use protocol::subject;
use protocol::token::{SessionId, Token};
use serde_json::json;
use tests::client::Ask;
use tests::wait::until;

use crate::SOON;
use crate::bench::Bench;

#[tokio::test(flavor = "multi_thread")]
async fn more_bytes_than_may_be_in_hand_pass_one_after_another() {
    let bench = Bench::start(|config| config.dispatcher.in_flight_bytes_max = BODY_BYTES_MAX).await;
    let _worker = bench.worker(Duration::ZERO).await;
    let client = &bench.client;
    let mut jobs = Vec::new();
    for letter in ["a", "b", "c", "d", "e", "f"] {
        let body = letter.repeat(BODY_BYTES_MAX / 3);
        jobs.push((client.submit("default", &Ask::raw(body.clone())).await, body));
    }
    for (job, body) in jobs {
        assert!(client.settled(&job).await.answer() == body, "the answer to {job}");
    }
    until("an empty INGRESS", SOON, || async { (client.held("INGRESS").await == 0).then_some(()) }).await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_nobody_can_read_is_kept_once_and_its_sender_told() {
    let mut bench = Bench::start(|_| {}).await;
    let (tenant, job) = (Token::default_tenant(), Token::parse("id", "order").unwrap());
    let mut inbox = bench.client.listen("my.box").await;
    let turn = Turn { session: SessionId::parse("s").unwrap(), number: 1 };
    let deadline_ms = runtime::clock::now_ms() + 600_000;
    let record = json!({"version": 2, "given": "nonsense", "job": {
        "format": "json", "mode": "whole", "reply_to": "my.box", "deadline_ms": deadline_ms,
        "steps": {"ahead": {"turn": turn}},
    }});
    bench.redis.stop();
    let body = rmp_serde::to_vec_named(&record).unwrap();
    bench.bus.js.publish(subject::step(&tenant, &job, 0), body.into()).await.unwrap().await.unwrap();
    let client = &bench.client;
    until("a dead letter", SOON * 2, || async { (client.held("DEADLETTER").await > 0).then_some(()) }).await;
    // Its turn is still open, so it comes again, and its sender does not hear yet.
    assert!(inbox.within(Duration::from_secs(6)).await.is_none());
    assert_eq!(client.held("STEPS").await, 1);
    bench.redis.start_again();
    let told = inbox.within(SOON * 3).await.expect("its sender is told");
    assert_eq!((told.code().as_str(), told.header("Content-Type")), ("internal", "application/json"));
    let client = &bench.client;
    until("an empty STEPS", SOON, || async { (client.held("STEPS").await == 0).then_some(()) }).await;
    assert_eq!(client.held("DEADLETTER").await, 1);
    bench.stop().await;
}
