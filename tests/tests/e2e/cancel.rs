//! A cancel frees the slot; a deadline that has passed is never computed.

use std::time::{Duration, Instant};

use serde_json::json;
use tests::client::{Ask, Client, PATIENCE, Reply};
use tests::fleet::{Fleet, FleetOptions, Model};
use tests::wait::until;

/// One worker that takes one job at a time, of a model that is slow enough to be caught.
async fn narrow() -> (Fleet, Client) {
    Fleet::start(FleetOptions { model: Model::SmolLm2, slots: 1, ..FleetOptions::default() }).await
}

/// A job of many seconds: greedy, this story goes in circles and never ends.
fn long() -> Ask {
    let envelope = json!({
        "input": "Write a very long story about the sea, with many chapters.",
        "cache": "bypass",
        "params": {"max_tokens": 4000},
    });
    Ask::json(&envelope).streamed()
}

async fn cancel(client: &Client, job: &str) -> Reply {
    client.ask(&Ask::raw(job.to_owned()).at("infer.cancel")).await
}

#[tokio::test]
async fn a_cancel_ends_queued_and_running_jobs() {
    let (_fleet, client) = narrow().await;
    let mut running = client.open(&long()).await;
    let accepted = running.next().await;
    let job = accepted.header("Flotilla-Job").to_owned();
    assert_eq!((accepted.status(), running.next().await.status()), ("accepted", "chunk"));

    let mut queued = client.open(&Ask::text("Hello", 4).header("Flotilla-Id", "queued")).await;
    until("the word pending", PATIENCE, || async { (client.result("queued").await.code() == "pending").then_some(()) })
        .await;
    assert_eq!(client.result(&job).await.code(), "pending");
    let answer = cancel(&client, "queued").await;
    assert_eq!((&answer.value()["job"], &answer.value()["status"]), (&json!("queued"), &json!("cancelled")));
    assert_eq!(client.result("queued").await.code(), "cancelled");

    let start = Instant::now();
    assert_eq!(cancel(&client, &job).await.value()["status"], "cancelled");
    let rest = running.all().await;
    let told = start.elapsed();
    assert_eq!(rest[rest.len() - 2].code(), "cancelled");
    assert!(rest.last().is_some_and(|end| end.is_end() && end.status() == "failed"));
    assert!(told < Duration::from_secs(5), "the stream went on for {told:?}");
    assert_eq!(client.result(&job).await.code(), "cancelled");

    // The slot is free, and the queued one never got it.
    assert_eq!(queued.next().await.code(), "cancelled");
    assert_eq!(client.ask(&Ask::text("Hello", 4)).await.status(), "done");
    assert!(start.elapsed() < Duration::from_secs(10), "the slot was free after {:?}", start.elapsed());
    assert_eq!(cancel(&client, &job).await.value()["status"], "cancelled");
    until("an empty queue", PATIENCE, || async { (client.held("JOBS").await == 0).then_some(()) }).await;
}

#[tokio::test]
async fn what_has_ended_cannot_be_cancelled() {
    let (_fleet, client) = Fleet::start(FleetOptions::default()).await;
    let done = client.ask(&Ask::text("Hello", 4)).await;
    let job = done.header("Flotilla-Job");
    assert_eq!(cancel(&client, job).await.value()["status"], "done");
    assert_eq!(client.result(job).await.answer(), done.answer());
    let failed = client.ask(&Ask::raw("word ".repeat(2_000))).await;
    assert_eq!(cancel(&client, failed.header("Flotilla-Job")).await.value()["status"], "failed");
    assert_eq!(cancel(&client, "never-heard-of").await.code(), "not_found");
    assert_eq!(cancel(&client, "no.token").await.code(), "invalid_request");
}

#[tokio::test]
async fn a_deadline_ends_queued_and_running_jobs() {
    let (_fleet, client) = narrow().await;
    let mut running = client.open(&long().header("Flotilla-Deadline-Ms", "1500")).await;
    let start = Instant::now();
    assert_eq!(running.next().await.status(), "accepted");
    assert_eq!(running.next().await.status(), "chunk");
    // It would be computed at once, were it not late when its turn comes.
    let mut queued = client.open(&Ask::text("Hello", 4).header("Flotilla-Deadline-Ms", "300")).await;

    let rest = running.all().await;
    let took = start.elapsed();
    assert_eq!(rest[rest.len() - 2].code(), "deadline_exceeded");
    assert!(took > Duration::from_millis(1_200) && took < Duration::from_secs(5), "ended after {took:?}");
    let late = queued.next().await;
    assert_eq!(late.code(), "deadline_exceeded");
    assert_eq!(client.settled(late.header("Flotilla-Job")).await.code(), "deadline_exceeded");
    assert_eq!(client.ask(&Ask::text("Hello", 4)).await.status(), "done");
}
