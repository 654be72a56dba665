//! More than the fleet may queue is refused at the door, quickly, with a time to come back.

use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::json;
use tests::client::{Answers, Ask, PATIENCE, Reply};
use tests::fleet::{Fleet, FleetOptions, Model};
use tests::wait::until;

#[tokio::test]
async fn a_full_lane_refuses_quickly() {
    let options = FleetOptions { model: Model::SmolLm2, slots: 1, lane_jobs_max: 4, ..FleetOptions::default() };
    let (_fleet, client) = Fleet::start(options).await;
    let long = Ask::json(&json!({"input": "Tell a long story about the sea.", "params": {"max_tokens": 150}}));
    let mut busy = client.open(&long.streamed()).await;
    assert_eq!(busy.next().await.status(), "accepted");

    let start = Instant::now();
    let mut waiting = Vec::new();
    for n in 0..12 {
        waiting.push(client.open(&Ask::text(&format!("Short {n}"), 4)).await);
    }
    let first = join_all(waiting.iter_mut().map(Answers::next)).await;
    let (refused, accepted): (Vec<&Reply>, Vec<&Reply>) = first.iter().partition(|reply| reply.code() == "overloaded");
    // The lane holds four: the one that runs and three that wait.
    assert_eq!((accepted.len(), refused.len()), (3, 9), "{first:?}");
    for reply in refused {
        let error = &reply.value()["error"];
        assert!(error["retry_after_ms"].as_u64() > Some(0) && error["retryable"] == true);
        assert!(reply.at - start < Duration::from_secs(1), "refused after {:?}", reply.at - start);
    }
    assert!(accepted.iter().all(|reply| reply.status() == "done"));
    busy.all().await;
    // Other lanes have room of their own, and this one has it again.
    until("room", PATIENCE, || async { (client.ask(&Ask::text("Later", 4)).await.status() == "done").then_some(()) })
        .await;
}

#[tokio::test]
async fn what_the_durable_door_took_waits_for_room() {
    let (mut fleet, client) =
        Fleet::start(FleetOptions { workers: 0, lane_jobs_max: 4, ..FleetOptions::default() }).await;
    let mut jobs = Vec::new();
    for n in 0..20 {
        jobs.push(client.submit("default", &Ask::text(&format!("Parcel {n}"), 4)).await);
    }
    until("a full lane", PATIENCE, || async { (client.held("JOBS").await == 4).then_some(()) }).await;
    fleet.add_worker();
    for job in jobs {
        assert_eq!(client.settled(&job).await.status(), "done", "{job}");
    }
}
