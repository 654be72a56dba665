//! What the fleet remembers of a job.

use std::time::Duration;

use async_nats::jetstream::stream::Republish;
use bytes::Bytes;
use futures::StreamExt;
use protocol::header::Headers;
use protocol::record::IdRecord;
use protocol::{stream, subject};
use runtime::bus::apply_streams;
use runtime::records::{Done, IdClaim, Stored, claim_id, dead_letter, forgive, forgiven, id, result, store_result};
use tests::servers::NatsServer;
use tokio::time::timeout;

use crate::setup::{job, limits, record, streams, tenant};

const SOON: Duration = Duration::from_secs(10);
/// Who has the record by then was told: a waiter looks for himself after two seconds at the earliest.
const HEARD: Duration = Duration::from_millis(1900);

#[tokio::test]
async fn a_job_has_one_record() {
    let server = NatsServer::start();
    let bus = streams(&server).await;
    assert_eq!(result(&bus, &tenant(), &job("a")).await.unwrap(), None);
    let (first, second) = (record("a", "first"), record("a", "second"));
    assert_eq!(store_result(&bus, &first).await.unwrap(), Stored::Created);
    assert_eq!(store_result(&bus, &second).await.unwrap(), Stored::Existed(first.clone()));
    assert_eq!(result(&bus, &tenant(), &job("a")).await.unwrap(), Some(first));
}

#[tokio::test]
async fn of_many_writers_one_wins_and_all_know_who() {
    let server = NatsServer::start();
    let bus = streams(&server).await;
    let writes = (0..32).map(|n| {
        let bus = bus.clone();
        tokio::spawn(async move { (n, store_result(&bus, &record("a", &n.to_string())).await.unwrap()) })
    });
    let outcomes = futures::future::join_all(writes).await;
    let outcomes: Vec<_> = outcomes.into_iter().map(Result::unwrap).collect();
    let winners: Vec<_> = outcomes.iter().filter(|(_, stored)| *stored == Stored::Created).collect();
    assert_eq!(winners.len(), 1);
    let truth = result(&bus, &tenant(), &job("a")).await.unwrap().unwrap();
    for (_, stored) in &outcomes {
        assert!(matches!(stored, Stored::Created) || *stored == Stored::Existed(truth.clone()));
    }
}

#[tokio::test]
async fn a_record_outlives_a_crash_of_the_server_while_it_is_stored() {
    let mut server = NatsServer::start();
    let bus = streams(&server).await;
    server.stop();
    let (ours, restart) = (record("a", "ours"), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        server.start_again();
    });
    let (stored, ()) = tokio::join!(store_result(&bus, &ours), restart);
    assert_eq!(stored.unwrap(), Stored::Created);
    assert_eq!(result(&bus, &tenant(), &job("a")).await.unwrap(), Some(ours));
}

#[tokio::test]
async fn an_id_is_new_then_the_same_or_another() {
    let server = NatsServer::start();
    let bus = streams(&server).await;
    let claim = |body: &str| IdRecord { body: body.into(), deadline_ms: 1, ingress: None };
    assert_eq!(id(&bus, &tenant(), &job("a")).await.unwrap(), None);
    assert_eq!(claim_id(&bus, &tenant(), &job("a"), &claim("x")).await.unwrap(), IdClaim::New);
    assert_eq!(claim_id(&bus, &tenant(), &job("a"), &claim("x")).await.unwrap(), IdClaim::Same);
    assert_eq!(claim_id(&bus, &tenant(), &job("a"), &claim("y")).await.unwrap(), IdClaim::Other);
    assert_eq!(claim_id(&bus, &job("another"), &job("a"), &claim("y")).await.unwrap(), IdClaim::New);
    assert_eq!(id(&bus, &tenant(), &job("a")).await.unwrap(), Some(claim("x")));
    let at = |ingress| IdRecord { ingress: Some(ingress), ..claim("x") };
    assert_eq!(claim_id(&bus, &tenant(), &job("a"), &at(7)).await.unwrap(), IdClaim::Same);
    assert_eq!(claim_id(&bus, &tenant(), &job("b"), &at(7)).await.unwrap(), IdClaim::New);
    assert_eq!(claim_id(&bus, &tenant(), &job("b"), &at(7)).await.unwrap(), IdClaim::Again);
    assert_eq!(claim_id(&bus, &tenant(), &job("b"), &at(8)).await.unwrap(), IdClaim::Same);
}

#[tokio::test]
async fn deliveries_are_forgiven_by_count() {
    let server = NatsServer::start();
    let bus = streams(&server).await;
    assert_eq!(forgiven(&bus, &tenant(), &job("a")).await.unwrap(), 0);
    for count in [1, 2, 7] {
        forgive(&bus, &tenant(), &job("a"), count).await.unwrap();
        assert_eq!(forgiven(&bus, &tenant(), &job("a")).await.unwrap(), count);
    }
}

#[tokio::test]
async fn a_dead_letter_holds_the_original_and_why() {
    let server = NatsServer::start();
    let bus = streams(&server).await;
    let headers = Headers::new().with(protocol::header::REASON, "poison");
    dead_letter(&bus, &tenant(), &job("a"), Bytes::from_static(b"\xff\x00"), headers).await.unwrap();
    let letters = bus.js.get_stream(stream::DEADLETTER).await.unwrap();
    let letter = letters.get_last_raw_message_by_subject(&subject::dead(&tenant(), &job("a"))).await.unwrap();
    assert_eq!(letter.payload, Bytes::from_static(b"\xff\x00"));
    assert_eq!(letter.headers.get(protocol::header::REASON).map(|value| value.as_str()), Some("poison"));
}

#[tokio::test]
async fn who_waits_hears_of_the_record_as_it_is_stored() {
    let server = NatsServer::start();
    let bus = streams(&server).await;
    let done = Done::new(&bus);
    let mut first = done.wait(&tenant(), &job("a")).await.unwrap();
    let mut second = done.wait(&tenant(), &job("a")).await.unwrap();
    let other = done.wait(&tenant(), &job("b")).await.unwrap();
    assert_eq!(done.waiting(), 2, "two jobs");
    let truth = record("a", "x");
    store_result(&bus, &truth).await.unwrap();
    assert_eq!(timeout(HEARD, first.record()).await.unwrap(), truth);
    drop(first);
    assert_eq!(timeout(HEARD, second.record()).await.unwrap(), truth);
    drop(second);
    assert_eq!(done.waiting(), 1);
    drop(other);
    assert_eq!(done.waiting(), 0);
}

#[tokio::test]
async fn only_headers_are_republished_also_by_a_stream_that_was_there() {
    let server = NatsServer::start();
    let bus = streams(&server).await;
    let mut config = bus.js.get_stream(stream::RESULTS).await.unwrap().info().await.unwrap().config.clone();
    config.republish = config.republish.map(|whole| Republish { headers_only: false, ..whole });
    bus.js.update_stream(config).await.unwrap();
    apply_streams(&bus, &limits()).await.unwrap();
    let truth = record("a", "x");
    let mut heard = bus.client.subscribe(subject::done(&truth.tenant, &truth.job)).await.unwrap();
    bus.client.flush().await.unwrap();
    store_result(&bus, &truth).await.unwrap();
    let message = timeout(SOON, heard.next()).await.unwrap().unwrap();
    assert!(message.payload.is_empty());
    assert_eq!(message.subject.as_str(), subject::done(&truth.tenant, &truth.job));
}

#[tokio::test]
async fn a_waiter_that_missed_the_moment_finds_the_record() {
    let server = NatsServer::start();
    let bus = streams(&server).await;
    let truth = record("a", "x");
    store_result(&bus, &truth).await.unwrap();
    let mut late = Done::new(&bus).wait(&tenant(), &job("a")).await.unwrap();
    assert!(timeout(Duration::from_millis(10), late.record()).await.is_err(), "dropped and called again");
    assert_eq!(timeout(SOON, late.record()).await.unwrap(), truth);
}
