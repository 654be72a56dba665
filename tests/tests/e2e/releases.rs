//! Programs of several releases in one fleet, as while it is upgraded.

use std::time::Duration;

use async_nats::jetstream::message::PublishMessage;
use serde_json::json;
use tests::client::Ask;
use tests::fleet::{Fleet, FleetOptions};
use tests::wait::until;

/// More deliveries than any job has attempts.
const DELIVERIES: u64 = 8;

#[tokio::test]
async fn a_job_that_this_release_cannot_read_waits_and_keeps_nobody() {
    let (fleet, client) = Fleet::start(FleetOptions { slots: 1, ..FleetOptions::default() }).await;
    let far = runtime::clock::now_ms() + 3_600_000;
    // Of a version that does not exist yet: no more than what every version must say is known of it.
    let newer = json!({"version": 1000, "id": "newer", "tenant": "default", "deadline_ms": far, "payload": "?"});
    let message =
        PublishMessage::build().payload(rmp_serde::to_vec_named(&newer).unwrap().into()).message_id("default/newer");
    client.js.send_publish("jobs.text.tiny.interactive", message).await.unwrap().await.unwrap();
    let worker = &fleet.workers[0];
    until("deliveries that are given back", Duration::from_secs(60), || async {
        let back = worker.metric("flotilla_jobs_given_back_total", "forgiven").await as u64;
        (back >= DELIVERIES).then_some(())
    })
    .await;
    for _ in 0..DELIVERIES {
        assert_eq!(client.ask(&Ask::text("Hello", 4)).await.status(), "done");
    }
    // An answer comes before its ack.
    until("only the job that nobody can read", Duration::from_secs(30), || async {
        (client.subjects("JOBS").await.get("jobs.text.tiny.interactive") == Some(&1)).then_some(())
    })
    .await;
    assert_eq!(client.held("DEADLETTER").await, 0);
    assert!(worker.metric("flotilla_jobs_given_back_total", "counts").await < 0.5);
}
