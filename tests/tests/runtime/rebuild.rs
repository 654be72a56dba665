//! Sessions come back from RESULTS when Redis loses them, and what was forgotten does not.

use std::time::Duration;

use protocol::job::Turn;
use protocol::record::{Record, SessionTurn};
use runtime::clock::now_ms;
use runtime::records::store_result;
use runtime::sessions::{Begin, Bounds, Rebuilt, Sessions};
use runtime::{Bus, Error};
use tests::servers::{NatsServer, RedisServer};
use tests::wait::until;

use crate::setup::{job, record, redis, session, streams, tenant, turn};

const HOUR_MS: u64 = 60 * 60 * 1000;

fn settled(of: &str, turn: SessionTurn) -> Record {
    Record { session: Some(turn), ..record(of, "x") }
}

async fn rebuilt(sessions: &Sessions, bus: &Bus) -> Rebuilt {
    until("a rebuild", Duration::from_secs(10), || async {
        match sessions.rebuild(bus).await {
            Ok(Rebuilt::Elsewhere) | Err(Error::RedisDown(_)) => None,
            other => Some(other.unwrap()),
        }
    })
    .await
}

/// A fleet's servers, and a session of three turns of which the second failed.
async fn conversation(bus: &Bus, sessions: &Sessions) {
    let tenant = tenant();
    for (name, number, answer) in [("a", 1, Some("one")), ("b", 2, None), ("c", 3, Some("three"))] {
        assert_eq!(sessions.reserve(&tenant, &session("s"), &job(name)).await.unwrap(), number);
        let turn = turn("s", number, answer);
        store_result(bus, &settled(name, turn.clone())).await.unwrap();
        sessions.settle(&tenant, &turn, &job(name)).await.unwrap();
    }
    store_result(bus, &record("without", "session")).await.unwrap();
}

#[tokio::test]
async fn a_new_redis_gets_the_sessions_back() {
    let (nats, mut server) = (NatsServer::start(), RedisServer::start());
    let bus = streams(&nats).await;
    let sessions = Sessions::new(&redis(&server)).unwrap();
    assert!(matches!(sessions.get(&tenant(), &session("s")).await, Err(Error::Rebuilding)));
    assert_eq!(rebuilt(&sessions, &bus).await, Rebuilt::Applied(0));
    assert_eq!(rebuilt(&sessions, &bus).await, Rebuilt::Held);
    conversation(&bus, &sessions).await;
    let before = sessions.get(&tenant(), &session("s")).await.unwrap();
    assert_eq!(before.as_ref().map(Vec::len), Some(2));

    server.stop();
    server.start_again();
    until("the loss to be seen", Duration::from_secs(5), || async { (!sessions.held().await.ok()?).then_some(()) })
        .await;
    assert!(matches!(sessions.reserve(&tenant(), &session("s"), &job("d")).await, Err(Error::Rebuilding)));
    assert_eq!(rebuilt(&sessions, &bus).await, Rebuilt::Applied(3));
    assert_eq!(sessions.get(&tenant(), &session("s")).await.unwrap(), before);
    assert_eq!(sessions.reserve(&tenant(), &session("s"), &job("d")).await.unwrap(), 4);
    assert_eq!(sessions.reserve(&tenant(), &session("s"), &job("a")).await.unwrap(), 1, "still bound to its job");
}

#[tokio::test]
async fn turns_in_flight_over_a_loss_keep_their_order() {
    let (nats, mut server) = (NatsServer::start(), RedisServer::start());
    let bus = streams(&nats).await;
    let sessions = Sessions::new(&redis(&server)).unwrap();
    rebuilt(&sessions, &bus).await;
    conversation(&bus, &sessions).await;
    for name in ["d", "e"] {
        sessions.reserve(&tenant(), &session("s"), &job(name)).await.unwrap();
        sessions.confirm(&tenant(), &session("s"), &job(name)).await.unwrap();
    }
    server.stop();
    server.start_again();
    assert_eq!(rebuilt(&sessions, &bus).await, Rebuilt::Applied(3));
    let begin = |number, name| {
        let (sessions, turn) = (sessions.clone(), Turn { session: session("s"), number });
        async move { sessions.begin(&tenant(), &turn, &job(name)).await.unwrap() }
    };
    assert_eq!(begin(5, "e").await, Begin::Waits, "its predecessor may be on its way");
    assert!(matches!(begin(4, "d").await, Begin::Ready(turns) if turns.len() == 2));
    assert_eq!(begin(5, "e").await, Begin::Waits);
    sessions.settle(&tenant(), &turn("s", 4, Some("four")), &job("d")).await.unwrap();
    assert!(matches!(begin(5, "e").await, Begin::Ready(turns) if turns.len() == 3));
}

#[tokio::test]
async fn what_is_forgotten_stays_forgotten() {
    let (nats, mut server) = (NatsServer::start(), RedisServer::start());
    let bus = streams(&nats).await;
    let sessions = Sessions::new(&redis(&server)).unwrap();
    rebuilt(&sessions, &bus).await;
    let (tenant, s) = (tenant(), session("s"));
    assert!(!sessions.forget(&bus, &tenant, &s).await.unwrap());
    conversation(&bus, &sessions).await;
    assert_eq!(sessions.reserve(&tenant, &s, &job("d")).await.unwrap(), 4);
    assert!(sessions.forget(&bus, &tenant, &s).await.unwrap());
    assert!(!sessions.forget(&bus, &tenant, &s).await.unwrap());
    // The turn in flight leaves no trace, the next one does.
    for (name, number, answer) in [("d", 4, "four"), ("e", 5, "five")] {
        assert_eq!(sessions.reserve(&tenant, &s, &job(name)).await.unwrap(), number);
        let turn = turn("s", number, Some(answer));
        store_result(&bus, &settled(name, turn.clone())).await.unwrap();
        sessions.settle(&tenant, &turn, &job(name)).await.unwrap();
    }
    let numbers = || async {
        let turns = sessions.get(&tenant, &s).await.unwrap().unwrap_or_default();
        turns.iter().map(|turn| turn.number).collect::<Vec<_>>()
    };
    assert_eq!(numbers().await, [5]);
    server.stop();
    server.start_again();
    assert_eq!(rebuilt(&sessions, &bus).await, Rebuilt::Applied(5));
    assert_eq!(numbers().await, [5]);

    sessions.forget(&bus, &tenant, &s).await.unwrap();
    server.stop();
    server.start_again();
    rebuilt(&sessions, &bus).await;
    assert!(numbers().await.is_empty());
    assert_eq!(sessions.reserve(&tenant, &s, &job("f")).await.unwrap(), 6, "numbers never come twice");
}

#[tokio::test]
async fn a_session_that_ended_does_not_come_back() {
    let (nats, server) = (NatsServer::start(), RedisServer::start());
    let bus = streams(&nats).await;
    let sessions = Sessions::new(&redis(&server)).unwrap();
    let old = |of: &str, name: &str, number, hours| Record {
        settled_ms: now_ms() - hours * HOUR_MS,
        ..settled(of, turn(name, number, Some("x")))
    };
    // One lived on from record to record, one ended and began anew, one ended for good.
    let records = [
        old("a1", "lives", 1, 40),
        old("a2", "lives", 2, 20),
        old("b1", "anew", 1, 50),
        old("b2", "anew", 2, 49),
        old("b3", "anew", 1, 1),
        old("c1", "ended", 1, 25),
    ];
    for record in &records {
        store_result(&bus, record).await.unwrap();
    }
    assert_eq!(rebuilt(&sessions, &bus).await, Rebuilt::Applied(6));
    for (name, turns) in [("lives", 2), ("anew", 1), ("ended", 0)] {
        let found = sessions.get(&tenant(), &session(name)).await.unwrap().unwrap_or_default();
        assert_eq!(found.len(), turns, "{name}");
    }
    let mut redis = crate::sessions::raw(&server).await;
    let ttl: u64 = redis::cmd("PTTL").arg("session:{default:lives}:turns").query_async(&mut redis).await.unwrap();
    assert!((3 * HOUR_MS..=4 * HOUR_MS).contains(&ttl), "{ttl}");
}

#[tokio::test]
async fn only_one_rebuilds() {
    let (nats, server) = (NatsServer::start(), RedisServer::start());
    let bus = streams(&nats).await;
    for number in 1..=300 {
        store_result(&bus, &settled(&format!("j{number}"), turn("s", number, Some("x")))).await.unwrap();
    }
    let all = (0..4).map(|_| {
        let (sessions, bus) = (Sessions::with_bounds(&redis(&server), Bounds::default()).unwrap(), bus.clone());
        tokio::spawn(async move { sessions.rebuild(&bus).await.unwrap() })
    });
    let outcomes: Vec<Rebuilt> =
        futures::future::join_all(all.collect::<Vec<_>>()).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Rebuilt::Applied(300)).count(), 1, "{outcomes:?}");
    assert!(
        outcomes.iter().all(|outcome| matches!(outcome, Rebuilt::Applied(300) | Rebuilt::Elsewhere | Rebuilt::Held))
    );
}
