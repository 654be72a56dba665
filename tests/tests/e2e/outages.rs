//! Parts of the fleet go away and come back; what was accepted is answered.

use std::ops::Range;
use std::time::Duration;

use futures::future::join_all;
use serde_json::json;
use tests::client::{Ask, Client};
use tests::fleet::{Fleet, FleetOptions, Model};
use tests::servers::{NatsServer, RedisServer};
use tests::wait::until;

async fn submit(client: &Client, names: Range<usize>, tokens: u32) {
    let submit = |n| {
        let ask = Ask::text(&format!("Parcel {n}"), tokens).header("Flotilla-Id", &format!("parcel-{n}"));
        async move { client.submit("default", &ask).await }
    };
    join_all(names.map(submit)).await;
}

/// Waits until so many parcels have their result.
async fn at_least(client: &Client, count: u64) {
    until("results", Duration::from_secs(60), || async { (client.held("RESULTS").await >= count).then_some(()) }).await;
}

/// Every parcel has exactly one result.
async fn settled(client: &Client, count: usize) {
    until("all results", Duration::from_secs(90), || async {
        (client.subjects("RESULTS").await.len() >= count).then_some(())
    })
    .await;
    for n in 0..count {
        assert_eq!(client.settled(&format!("parcel-{n}")).await.status(), "done", "parcel-{n}");
    }
    let results = client.subjects("RESULTS").await;
    assert!(results.len() == count && results.values().all(|&records| records == 1), "{results:?}");
    until("empty queues", Duration::from_secs(30), || async {
        (client.held("JOBS").await + client.held("INGRESS").await == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn accepted_jobs_survive_a_restart_of_nats() {
    let (mut fleet, client) = Fleet::start(FleetOptions { workers: 2, ..FleetOptions::default() }).await;
    submit(&client, 0..200, 64).await;
    until("the first results", Duration::from_secs(30), || async { (client.held("RESULTS").await >= 5).then_some(()) })
        .await;
    fleet.nats.stop();
    fleet.nats.start_again();
    let client = Client::connect(&fleet.nats.url()).await;
    settled(&client, 200).await;
    // And the doors work as before.
    fleet.ready().await;
    assert_eq!(client.ask(&Ask::text("Hello", 4)).await.status(), "done");
}

#[tokio::test]
async fn submitted_jobs_survive_a_dead_dispatcher() {
    let (mut fleet, client) = Fleet::start(FleetOptions::default()).await;
    submit(&client, 0..100, 64).await;
    fleet.kill_dispatcher();
    submit(&client, 100..150, 64).await;
    fleet.start_dispatcher().await;
    settled(&client, 150).await;
}

#[tokio::test]
async fn one_misfortune_after_another_loses_nothing() {
    let (mut fleet, client) = Fleet::start(FleetOptions { workers: 2, slots: 2, ..FleetOptions::default() }).await;
    submit(&client, 0..400, 350).await;
    at_least(&client, 20).await;
    fleet.workers[0].kill9();
    fleet.add_worker();
    at_least(&client, 60).await;
    fleet.kill_dispatcher();
    fleet.flush_redis().await;
    at_least(&client, 100).await;
    fleet.start_dispatcher().await;
    fleet.nats.stop();
    fleet.nats.start_again();
    let client = Client::connect(&fleet.nats.url()).await;
    at_least(&client, 180).await;
    fleet.workers[1].sigterm();
    fleet.add_worker();
    fleet.redis.stop();
    settled(&client, 400).await;
    assert_eq!(client.held("DEADLETTER").await, 0);
}

#[tokio::test]
async fn roles_wait_for_their_servers() {
    let (mut nats, mut redis) = (NatsServer::start(), RedisServer::start());
    nats.stop();
    redis.stop();
    let mut fleet = Fleet::beside(nats, redis, &FleetOptions::default());
    fleet.add_worker();
    for role in [&fleet.dispatcher, &fleet.workers[0]] {
        until("a live role that is not ready", Duration::from_secs(30), || async {
            let (live, ready) = (role.get("/livez").await?, role.get("/readyz").await?);
            assert_ne!(ready.0, 200, "ready without NATS");
            (live.0 == 200).then_some(())
        })
        .await;
        until("a word in the log", Duration::from_secs(10), || async {
            role.log().to_lowercase().contains("nats").then_some(())
        })
        .await;
    }
    fleet.nats.start_again();
    fleet.ready().await;
    let client = Client::connect(&fleet.nats.url()).await;
    assert_eq!(client.ask(&Ask::text("Without Redis", 4)).await.status(), "done");

    fleet.redis.start_again();
    let turn = Ask::json(&json!({"input": "With Redis", "session": "late", "params": {"max_tokens": 4}}));
    until("sessions", Duration::from_secs(30), || async { (client.ask(&turn).await.status() == "done").then_some(()) })
        .await;

    // The same once more, while they run.
    fleet.nats.stop();
    for role in [&fleet.dispatcher, &fleet.workers[0]] {
        until("a role that is not ready", Duration::from_secs(30), || async {
            (role.get("/readyz").await?.0 != 200).then_some(())
        })
        .await;
        assert_eq!(role.get("/livez").await.map(|(status, _)| status), Some(200));
    }
    fleet.nats.start_again();
    fleet.ready().await;
    let client = Client::connect(&fleet.nats.url()).await;
    assert_eq!(client.ask(&Ask::text("Again", 4)).await.status(), "done");
}

#[tokio::test]
async fn a_lost_store_of_nats_is_made_anew_while_the_fleet_runs() {
    let (mut fleet, client) = Fleet::start(FleetOptions::default()).await;
    assert_eq!(client.ask(&Ask::text("Hello", 4)).await.status(), "done");
    // Something is in hand as the store goes.
    submit(&client, 0..4, 400).await;
    let in_session = |text| Ask::text(text, 4).header("Flotilla-Session", "kept");
    fleet.workers.remove(0).kill9();
    client.submit("default", &in_session("Nobody will settle this turn")).await;
    until("the turn is queued", Duration::from_secs(30), || async {
        (client.held("INGRESS").await == 0).then_some(())
    })
    .await;
    fleet.nats.start_empty();
    fleet.add_worker();
    fleet.ready().await;
    let client = Client::connect(&fleet.nats.url()).await;
    let answer = until("an answer", Duration::from_secs(30), || async {
        let reply = client.open(&Ask::text("Hello again", 4)).await.within(Duration::from_secs(5)).await?;
        (reply.status() == "done").then_some(reply)
    })
    .await;
    assert!(!answer.answer().is_empty());
    assert_eq!(client.ask(&in_session("And the session goes on")).await.status(), "done");
    let job = client.submit("default", &Ask::text("By the other door", 4)).await;
    assert_eq!(client.settled(&job).await.status(), "done");
    assert!(fleet.dispatcher.log().contains("came back without its store"));
}

#[tokio::test]
async fn roles_stop_in_time_when_nats_is_gone() {
    let options = FleetOptions { drain_s: 2, model: Model::SmolLm2, ..FleetOptions::default() };
    let (mut fleet, client) = Fleet::start(options).await;
    let mut answers = client.open(&Ask::text("Write a long story about the sea.", 4000).streamed()).await;
    while answers.next().await.status() != "chunk" {}
    fleet.nats.stop();
    fleet.dispatcher.sigterm();
    fleet.workers[0].sigterm();
    // The worker has something in hand and uses the time that it has; the dispatcher has nothing to wait for.
    let stopped = fleet.dispatcher.ended(Duration::from_secs(10)).await;
    assert!(stopped.success(), "{stopped}");
    let stopped = fleet.workers[0].ended(Duration::from_secs(10)).await;
    assert!(stopped.success(), "{stopped}");
    assert!(fleet.workers[0].log().contains("the queue hands it to others by itself"));
}

#[tokio::test]
async fn without_workers_the_one_door_refuses_and_the_other_waits() {
    let (mut fleet, client) = Fleet::start(FleetOptions { workers: 0, ..FleetOptions::default() }).await;
    // A dispatcher that has just started gives workers the time of a heartbeat before it takes silence for absence.
    let refused = until("a refusal", Duration::from_secs(30), || async {
        client.open(&Ask::text("Hello", 4)).await.within(Duration::from_millis(500)).await
    })
    .await;
    assert_eq!(refused.code(), "unavailable");
    assert!(refused.value()["error"]["retry_after_ms"].as_u64() > Some(0));
    assert_eq!(refused.value()["error"]["retryable"], true);
    let job = client.submit("default", &Ask::text("Hello", 4)).await;
    fleet.add_worker();
    assert_eq!(client.settled(&job).await.status(), "done");
    fleet.ready().await;
    assert_eq!(client.ask(&Ask::text("Hello", 4)).await.status(), "done");
    // A dead worker is noticed.
    fleet.workers[0].kill9();
    fleet.known(0).await;
    assert_eq!(client.ask(&Ask::text("Hello", 4)).await.code(), "unavailable");
}
