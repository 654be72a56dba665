//! Connection, streams, consumers, publishing.

use async_nats::jetstream::stream::Config;
use bytes::Bytes;
use futures::StreamExt;
use protocol::header::Headers;
use protocol::media::Modality;
use protocol::request::Priority;
use protocol::stream::{self, Limits, ingress_consumer, lane_consumer};
use protocol::subject;
use runtime::Error;
use runtime::bus::{
    Acked, Arrival, Expect, Publish, PublishFault, apply_consumer, apply_streams, connect, headers_in, headers_out,
    publish, publish_until,
};
use runtime::clock::now_ms;
use runtime::config::Nats;
use tests::servers::{NatsCluster, NatsServer};

use crate::setup::{bus, limits, streams, tenant};

fn lane_job(id: &str) -> Publish {
    Publish {
        stream: stream::JOBS,
        subject: subject::lane(Modality::Text, "m", Priority::Standard),
        body: Bytes::from_static(b"job"),
        headers: Headers::new(),
        id: Some(id.to_owned()),
        expect: Expect::Any,
    }
}

#[tokio::test]
async fn streams_and_consumers_are_applied_again_and_again() {
    let server = NatsServer::start();
    let bus = bus(&server).await;
    bus.check_version().await.unwrap();
    let (lane, ingress) = (lane_consumer(Modality::Text, "m", Priority::Batch), ingress_consumer());
    for lane_jobs_max in [10, 10, 20] {
        apply_streams(&bus, &Limits { lane_jobs_max, ..limits() }).await.unwrap();
        apply_consumer(&bus, &lane).await.unwrap();
        apply_consumer(&bus, &ingress).await.unwrap();
    }
    let jobs = bus.js.get_stream(stream::JOBS).await.unwrap();
    assert_eq!(jobs.cached_info().config.max_messages_per_subject, 20);
    for wanted in stream::streams(&limits()) {
        let found = bus.js.get_stream(wanted.name).await.unwrap().cached_info().config.clone();
        assert_eq!(found.subjects, [wanted.subject]);
        assert!(!found.allow_rollup, "{}: one header must not purge it", wanted.name);
        assert_eq!(found.duplicate_window, wanted.duplicate_window);
    }

    let wider = stream::Consumer { ack_pending_max: 7, ..lane.clone() };
    apply_consumer(&bus, &wider).await.unwrap();
    let info = jobs.consumer_info(&lane.name).await.unwrap();
    assert_eq!((info.config.max_ack_pending, info.config.max_waiting), (7, stream::MAX_WAITING));
}

#[tokio::test]
async fn two_dispatchers_may_start_at_once() {
    let server = NatsServer::start();
    let (first, second) = (bus(&server).await, bus(&server).await);
    let limits = limits();
    let (one, two) = tokio::join!(apply_streams(&first, &limits), apply_streams(&second, &limits));
    one.unwrap();
    two.unwrap();
}

#[tokio::test]
async fn streams_of_one_replica_become_three_in_a_cluster() {
    let cluster = NatsCluster::start();
    let nats = Nats { url: cluster.url(), ..Nats::default() };
    let bus = connect(&nats, "test").await.unwrap();
    // Before there is a leader nothing contradicts: it passes.
    let applied = async |limits: Limits| {
        tests::wait::until("streams", std::time::Duration::from_secs(30), || async {
            match apply_streams(&bus, &limits).await {
                Ok(_) => Some(()),
                Err(Error::Nats(_)) => None,
                Err(error) => panic!("{error}"),
            }
        })
        .await;
    };
    applied(limits()).await;
    let lane = lane_consumer(Modality::Text, "m", Priority::Batch);
    apply_consumer(&bus, &lane).await.unwrap();
    publish(&bus, &lane_job("default/1")).await.unwrap();
    applied(Limits { replicas: 3, ..limits() }).await;
    apply_consumer(&bus, &lane).await.unwrap();
    let jobs = bus.js.get_stream(stream::JOBS).await.unwrap();
    let info = jobs.cached_info();
    assert_eq!((info.config.num_replicas, info.state.messages), (3, 1));
    applied(limits()).await;
    assert_eq!(bus.js.get_stream(stream::JOBS).await.unwrap().cached_info().config.num_replicas, 1);
}

#[tokio::test]
async fn what_contradicts_is_refused_by_name() {
    let server = NatsServer::start();
    let bus = bus(&server).await;
    // The default discard policy drops accepted jobs.
    let wrong = Config {
        name: stream::JOBS.into(),
        subjects: vec![subject::JOBS_ALL.into()],
        retention: async_nats::jetstream::stream::RetentionPolicy::WorkQueue,
        ..Config::default()
    };
    bus.js.create_stream(wrong).await.unwrap();
    let refused = apply_streams(&bus, &limits()).await.unwrap_err();
    assert!(
        matches!(&refused, Error::Contradiction(what) if what.contains("JOBS") && what.contains("discard")),
        "{refused}"
    );

    bus.js.delete_stream(stream::JOBS).await.unwrap();
    let greedy = Config { name: "OTHER".into(), subjects: vec!["jobs.>".into()], ..Config::default() };
    bus.js.create_stream(greedy).await.unwrap();
    let refused = apply_streams(&bus, &limits()).await.unwrap_err();
    assert!(matches!(&refused, Error::Contradiction(what) if what.contains("JOBS")), "{refused}");
}

#[tokio::test]
async fn a_consumer_that_contradicts_is_refused_by_name() {
    let server = NatsServer::start();
    let bus = streams(&server).await;
    let lane = lane_consumer(Modality::Text, "m", Priority::Batch);
    let small = stream::Consumer { waiting_max: 512, ..lane.clone() };
    apply_consumer(&bus, &small).await.unwrap();
    let refused = apply_consumer(&bus, &lane).await.unwrap_err();
    assert!(matches!(&refused, Error::Contradiction(what) if what.contains("max_waiting")), "{refused}");

    let overlapping = stream::Consumer { name: "other".into(), filter: "jobs.text.*.*".into(), ..lane };
    let refused = apply_consumer(&bus, &overlapping).await.unwrap_err();
    assert!(matches!(&refused, Error::Contradiction(what) if what.contains("other")), "{refused}");
}

#[tokio::test]
async fn every_way_of_failing_to_publish_has_a_name() {
    let server = NatsServer::start();
    let bus = bus(&server).await;
    let job = lane_job("default/1");
    assert_eq!(publish(&bus, &job).await, Err(PublishFault::NoStream));
    assert_eq!(publish_until(&bus, &job, now_ms() + 300).await, Err(PublishFault::NoStream));

    apply_streams(&bus, &Limits { lane_jobs_max: 2, ..limits() }).await.unwrap();
    let first = publish(&bus, &job).await.unwrap();
    assert_eq!(first.arrival, Arrival::New);
    assert_eq!(publish(&bus, &job).await, Ok(Acked { arrival: Arrival::Repeat, ..first }));
    publish(&bus, &lane_job("default/2")).await.unwrap();
    assert!(matches!(publish(&bus, &lane_job("default/3")).await, Err(PublishFault::Full(_))));

    let result = |expect| Publish {
        stream: stream::RESULTS,
        subject: subject::result(&tenant(), &tenant()),
        expect,
        id: None,
        ..job.clone()
    };
    publish(&bus, &result(Expect::Absent)).await.unwrap();
    assert_eq!(publish(&bus, &result(Expect::Absent)).await, Err(PublishFault::Taken));
    assert!(
        matches!(publish(&bus, &result(Expect::Any)).await, Err(PublishFault::Full(_))),
        "the limit a subject holds too"
    );

    let wrong_stream = Publish { stream: stream::IDS, ..lane_job("default/4") };
    assert!(matches!(publish(&bus, &wrong_stream).await, Err(PublishFault::Refused(_))));
    let huge = Publish { body: vec![0; 9 << 20].into(), ..lane_job("default/5") };
    assert_eq!(publish(&bus, &huge).await, Err(PublishFault::TooLarge));
}

#[tokio::test]
async fn a_publish_outlives_a_restart() {
    let mut server = NatsServer::start();
    let bus = streams(&server).await;
    server.stop();
    let restart = async {
        tests::wait::until("the loss to be seen", std::time::Duration::from_secs(5), || async {
            (!bus.connected()).then_some(())
        })
        .await;
        server.start_again();
    };
    let job = lane_job("default/1");
    let (published, ()) = tokio::join!(publish_until(&bus, &job, now_ms() + 20_000), restart);
    published.unwrap();
    assert!(bus.connected());
    let jobs = bus.js.get_stream(stream::JOBS).await.unwrap();
    assert_eq!(jobs.cached_info().state.messages, 1);
}

#[tokio::test]
async fn headers_travel_and_the_servers_own_do_not() {
    let server = NatsServer::start();
    let bus = bus(&server).await;
    let mut inbox = bus.client.subscribe("here").await.unwrap();
    let headers = Headers::new()
        .with("Flotilla-Task", "chat")
        .with("Nats-Msg-Id", "x")
        .with("nats-rollup", "all")
        .with("bad name", "x")
        .with("Flotilla-Model", "two\r\nlines");
    bus.client.publish_with_headers("here", headers_out(&headers), Bytes::new()).await.unwrap();
    let got = headers_in(&inbox.next().await.unwrap().headers.unwrap());
    assert_eq!(got.get("flotilla-task"), Some("chat"));
    assert_eq!(got.iter().filter(|(name, _)| name.to_lowercase().starts_with("nats-")).count(), 0);
    assert!(got.iter().all(|(_, value)| !value.contains('\n')));
}
