//! Turns of a session, in order, whoever works on them.

use std::time::Duration;

use protocol::job::Turn;
use rand::seq::SliceRandom;
use redis::aio::MultiplexedConnection;
use runtime::Error;
use runtime::sessions::{Begin, Bounds, Moment, Rebuilt, Sessions};
use tests::servers::{NatsServer, RedisServer};
use tests::wait::until;

use crate::setup::{job, redis, session, streams, tenant, turn};

/// Sessions on an empty Redis that is known to hold all of them.
pub(crate) async fn held(server: &RedisServer, bounds: Bounds) -> Sessions {
    let nats = NatsServer::start();
    let bus = streams(&nats).await;
    let sessions = Sessions::with_bounds(&redis(server), bounds).unwrap();
    assert_eq!(sessions.rebuild(&bus).await.unwrap(), Rebuilt::Applied(0));
    sessions
}

pub(crate) async fn raw(server: &RedisServer) -> MultiplexedConnection {
    let client = redis::Client::open(server.url()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

fn at(name: &str, number: u64) -> Turn {
    Turn { session: session(name), number }
}

#[tokio::test]
async fn a_turn_is_bound_to_its_job() {
    let server = RedisServer::start();
    let sessions = held(&server, Bounds::default()).await;
    let (tenant, s) = (tenant(), session("s }:{ ü"));
    assert_eq!(sessions.reserve(&tenant, &s, &job("a")).await.unwrap(), 1);
    assert_eq!(sessions.reserve(&tenant, &s, &job("b")).await.unwrap(), 2);
    assert_eq!(sessions.reserve(&tenant, &s, &job("a")).await.unwrap(), 1);
    assert_eq!(sessions.reserve(&tenant, &session("other"), &job("a")).await.unwrap(), 1);
    assert_eq!(sessions.reserve(&job("another"), &s, &job("x")).await.unwrap(), 1);
}

#[tokio::test]
async fn a_later_turn_waits_for_an_earlier_and_then_knows_it() {
    let server = RedisServer::start();
    let sessions = held(&server, Bounds::default()).await;
    let (tenant, s) = (tenant(), session("s"));
    for name in ["a", "b"] {
        sessions.reserve(&tenant, &s, &job(name)).await.unwrap();
        sessions.confirm(&tenant, &s, &job(name)).await.unwrap();
    }
    assert_eq!(sessions.begin(&tenant, &at("s", 2), &job("b")).await.unwrap(), Begin::Waits);
    assert_eq!(sessions.begin(&tenant, &at("s", 1), &job("a")).await.unwrap(), Begin::Ready(vec![]));
    assert_eq!(sessions.begin(&tenant, &at("s", 2), &job("b")).await.unwrap(), Begin::Waits);
    let first = turn("s", 1, Some("answer"));
    for _ in 0..3 {
        sessions.settle(&tenant, &first, &job("a")).await.unwrap();
    }
    assert_eq!(sessions.begin(&tenant, &at("s", 2), &job("b")).await.unwrap(), Begin::Ready(vec![first.clone()]));
    // What fails leaves no trace, and the next does not wait for it.
    sessions.settle(&tenant, &turn("s", 2, None), &job("b")).await.unwrap();
    assert_eq!(sessions.get(&tenant, &s).await.unwrap(), Some(vec![first]));
    assert_eq!(sessions.reserve(&tenant, &s, &job("c")).await.unwrap(), 3);
    assert!(
        matches!(sessions.begin(&tenant, &at("s", 3), &job("c")).await.unwrap(), Begin::Ready(turns) if turns.len() == 1)
    );
    assert_eq!(sessions.get(&tenant, &session("never")).await.unwrap(), None);
}

#[tokio::test]
async fn a_reservation_without_a_job_is_void_after_its_hold() {
    let server = RedisServer::start();
    let sessions = held(&server, Bounds { hold: Duration::from_millis(50), ..Bounds::default() }).await;
    let (tenant, s) = (tenant(), session("s"));
    sessions.reserve(&tenant, &s, &job("a")).await.unwrap();
    sessions.reserve(&tenant, &s, &job("b")).await.unwrap();
    sessions.confirm(&tenant, &s, &job("b")).await.unwrap();
    assert_eq!(sessions.begin(&tenant, &at("s", 2), &job("b")).await.unwrap(), Begin::Waits);
    tokio::time::sleep(Duration::from_millis(80)).await;
    assert_eq!(sessions.begin(&tenant, &at("s", 2), &job("b")).await.unwrap(), Begin::Ready(vec![]));
    // Its job comes after all: it is the last in the line now, however often it asks.
    for _ in 0..2 {
        assert_eq!(sessions.begin(&tenant, &at("s", 1), &job("a")).await.unwrap(), Begin::Moved(3));
    }
    assert_eq!(sessions.begin(&tenant, &at("s", 3), &job("a")).await.unwrap(), Begin::Waits);
    sessions.settle(&tenant, &turn("s", 2, Some("b")), &job("b")).await.unwrap();
    assert!(
        matches!(sessions.begin(&tenant, &at("s", 3), &job("a")).await.unwrap(), Begin::Ready(turns) if turns.len() == 1)
    );
}

#[tokio::test]
async fn who_asks_again_holds_nobody_up_for_longer() {
    let server = RedisServer::start();
    let sessions = held(&server, Bounds { hold: Duration::from_millis(100), ..Bounds::default() }).await;
    let (tenant, s) = (tenant(), session("s"));
    sessions.reserve(&tenant, &s, &job("a")).await.unwrap();
    sessions.reserve(&tenant, &s, &job("b")).await.unwrap();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        sessions.reserve(&tenant, &s, &job("a")).await.unwrap();
    }
    assert_eq!(sessions.begin(&tenant, &at("s", 2), &job("b")).await.unwrap(), Begin::Ready(vec![]));
}

#[tokio::test]
async fn a_late_confirmation_holds_where_nobody_passed() {
    let server = RedisServer::start();
    let sessions = held(&server, Bounds { hold: Duration::from_millis(20), ..Bounds::default() }).await;
    let (tenant, s) = (tenant(), session("s"));
    sessions.reserve(&tenant, &s, &job("a")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(40)).await;
    sessions.confirm(&tenant, &s, &job("a")).await.unwrap();
    sessions.reserve(&tenant, &s, &job("b")).await.unwrap();
    assert_eq!(sessions.begin(&tenant, &at("s", 2), &job("b")).await.unwrap(), Begin::Waits);
}

#[tokio::test]
async fn the_oldest_turns_go_first() {
    let server = RedisServer::start();
    let sessions = held(&server, Bounds::default()).await;
    let tenant = tenant();
    for number in 1..=210 {
        sessions.settle(&tenant, &turn("s", number, Some("x")), &job(&format!("j{number}"))).await.unwrap();
    }
    let numbers = |turns: Option<Vec<protocol::record::SessionTurn>>| -> Vec<u64> {
        turns.unwrap_or_default().iter().map(|turn| turn.number).collect()
    };
    let kept = numbers(sessions.get(&tenant, &session("s")).await.unwrap());
    assert_eq!(kept, (11..=210).collect::<Vec<u64>>());

    let long = "x".repeat(300_000);
    for number in 1..=5 {
        sessions.settle(&tenant, &turn("l", number, Some(&long)), &job(&format!("j{number}"))).await.unwrap();
    }
    assert_eq!(numbers(sessions.get(&tenant, &session("l")).await.unwrap()), [3, 4, 5]);
    let huge = "x".repeat(1_100_000);
    sessions.settle(&tenant, &turn("l", 6, Some(&huge)), &job("j6")).await.unwrap();
    assert_eq!(sessions.get(&tenant, &session("l")).await.unwrap(), None, "larger than all that may be kept");
    sessions.settle(&tenant, &turn("l", 7, Some("short")), &job("j7")).await.unwrap();
    assert_eq!(numbers(sessions.get(&tenant, &session("l")).await.unwrap()), [7]);
}

#[tokio::test]
async fn every_use_keeps_all_of_a_session_alive() {
    let server = RedisServer::start();
    let sessions = held(&server, Bounds { ttl: Duration::from_millis(400), ..Bounds::default() }).await;
    let (tenant, s) = (tenant(), session("s"));
    sessions.settle(&tenant, &turn("s", 1, Some("x")), &job("a")).await.unwrap();
    for _ in 0..6 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        sessions.reserve(&tenant, &s, &job("b")).await.unwrap();
    }
    assert!(sessions.get(&tenant, &s).await.unwrap().is_some());
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(sessions.get(&tenant, &s).await.unwrap(), None);
    let keys: Vec<String> = redis::cmd("KEYS").arg("session:*").query_async(&mut raw(&server).await).await.unwrap();
    assert!(keys.is_empty(), "{keys:?}");
}

#[tokio::test]
async fn a_key_of_another_type_is_an_error_and_stays_as_it_is() {
    let server = RedisServer::start();
    let sessions = held(&server, Bounds::default()).await;
    let mut redis = raw(&server).await;
    for part in ["meta", "open", "settled", "turns"] {
        let name = format!("bad{part}");
        let key = format!("session:{{default:{name}}}:{part}");
        let () = redis::cmd("SET").arg(&key).arg("x").query_async(&mut redis).await.unwrap();
        let (tenant, s) = (tenant(), session(&name));
        assert!(matches!(sessions.reserve(&tenant, &s, &job("a")).await, Err(Error::Corrupt(_))));
        assert!(matches!(
            sessions.settle(&tenant, &turn(&name, 1, Some("x")), &job("a")).await,
            Err(Error::Corrupt(_))
        ));
        assert!(matches!(sessions.get(&tenant, &s).await, Err(Error::Corrupt(_))));
        let keys: Vec<String> = redis::cmd("KEYS").arg("*bad*").query_async(&mut redis).await.unwrap();
        assert_eq!(keys, std::slice::from_ref(&key));
        let () = redis::cmd("DEL").arg(&key).query_async(&mut redis).await.unwrap();
    }
    assert!(sessions.healthy(), "a bad key is not an absent Redis");
    let () = redis::cmd("ZADD").arg("session:{default:g}:turns").arg(1).arg("x").query_async(&mut redis).await.unwrap();
    assert!(matches!(sessions.get(&tenant(), &session("g")).await, Err(Error::Corrupt(_))));
}

#[tokio::test]
async fn too_many_turns_under_way_are_refused() {
    let server = RedisServer::start();
    let bounds = Bounds { open_max: 3, hold: Duration::from_millis(50), ..Bounds::default() };
    let sessions = held(&server, bounds).await;
    let (tenant, s) = (tenant(), session("s"));
    for name in ["a", "b", "c"] {
        sessions.reserve(&tenant, &s, &job(name)).await.unwrap();
    }
    sessions.confirm(&tenant, &s, &job("a")).await.unwrap();
    let refused = sessions.reserve(&tenant, &s, &job("d")).await.unwrap_err();
    assert!(matches!(refused, Error::Full(_)));
    tokio::time::sleep(Duration::from_millis(80)).await;
    assert_eq!(sessions.reserve(&tenant, &s, &job("d")).await.unwrap(), 4, "void ones make room");
}

async fn confirmed(sessions: &Sessions, name: &str, jobs: &[&str]) {
    for of in jobs {
        sessions.reserve(&tenant(), &session(name), &job(of)).await.unwrap();
        sessions.confirm(&tenant(), &session(name), &job(of)).await.unwrap();
    }
}

/// A moment after everything that was bound so far; the clock of Redis has to move on for that.
async fn moment_after(sessions: &Sessions) -> Moment {
    let bound = sessions.moment().await.unwrap();
    until("the next millisecond", Duration::from_secs(5), || async {
        let moment = sessions.moment().await.unwrap();
        (moment > bound).then_some(moment)
    })
    .await
}

#[tokio::test]
async fn turns_of_jobs_that_are_gone_keep_nobody_waiting() {
    let server = RedisServer::start();
    let sessions = held(&server, Bounds { hold: Duration::from_secs(60), ..Bounds::default() }).await;
    let tenant = tenant();
    assert_eq!(sessions.void_before(moment_after(&sessions).await).await.unwrap(), 0, "no sessions at all");
    let odd = "s *}:{ ü:open";
    confirmed(&sessions, odd, &["a"]).await;
    sessions.reserve(&tenant, &session("reserved"), &job("r")).await.unwrap();
    let moment = moment_after(&sessions).await;
    confirmed(&sessions, odd, &["b"]).await;
    confirmed(&sessions, "reserved", &["s"]).await;
    confirmed(&sessions, "later", &["c", "d"]).await;
    assert_eq!(sessions.begin(&tenant, &at(odd, 2), &job("b")).await.unwrap(), Begin::Waits);

    assert_eq!(sessions.void_before(moment).await.unwrap(), 1);
    assert_eq!(sessions.begin(&tenant, &at(odd, 2), &job("b")).await.unwrap(), Begin::Ready(vec![]));
    assert_eq!(sessions.begin(&tenant, &at("later", 2), &job("d")).await.unwrap(), Begin::Waits);
    assert_eq!(sessions.begin(&tenant, &at("reserved", 2), &job("s")).await.unwrap(), Begin::Waits);
    assert_eq!(sessions.void_before(moment).await.unwrap(), 0, "nothing is left of before");

    // A worker had the job in hand all along: it goes on behind those that passed it.
    assert_eq!(sessions.begin(&tenant, &at(odd, 1), &job("a")).await.unwrap(), Begin::Moved(3));
    assert_eq!(sessions.begin(&tenant, &at(odd, 3), &job("a")).await.unwrap(), Begin::Waits);
}

#[tokio::test]
async fn two_make_the_turns_of_many_sessions_void() {
    let server = RedisServer::start();
    let sessions = held(&server, Bounds::default()).await;
    let count: u64 = 1200;
    for number in 0..count {
        confirmed(&sessions, &format!("s{number}"), &["a"]).await;
    }
    let mut redis = raw(&server).await;
    confirmed(&sessions, "bad", &["a"]).await;
    let () = redis::cmd("SET").arg("session:{default:bad}:turns").arg("x").query_async(&mut redis).await.unwrap();
    let () = redis::cmd("SET").arg("session:{default:text}:open").arg("x").query_async(&mut redis).await.unwrap();
    let foreign: &[u8] = b"session:{\xff}:open";
    let () = redis::cmd("HSET").arg(foreign).arg("x").arg("y").query_async(&mut redis).await.unwrap();
    let other = sessions.clone();
    let moment = moment_after(&sessions).await;
    let (one, two) = tokio::join!(sessions.void_before(moment), other.void_before(moment));
    assert_eq!(one.unwrap() + two.unwrap(), count, "every turn once, whoever came first");
    let kept: Vec<Vec<u8>> = redis::cmd("KEYS").arg("session:*:open").query_async(&mut redis).await.unwrap();
    assert_eq!(kept.len(), 3, "what cannot be read stays as it is");
}

#[tokio::test]
async fn turns_are_void_only_where_redis_answers() {
    let mut server = RedisServer::start();
    let sessions = held(&server, Bounds::default()).await;
    let moment = sessions.moment().await.unwrap();
    server.stop();
    assert!(matches!(sessions.moment().await, Err(Error::RedisDown(_))));
    assert!(matches!(sessions.void_before(moment).await, Err(Error::RedisDown(_))));
}

#[tokio::test]
async fn many_workers_answer_a_conversation_in_order() {
    let server = RedisServer::start();
    let sessions = held(&server, Bounds::default()).await;
    let (tenant, s) = (tenant(), session("s"));
    let mut jobs = Vec::new();
    for number in 1..=40 {
        let name = job(&format!("j{number}"));
        assert_eq!(sessions.reserve(&tenant, &s, &name).await.unwrap(), number);
        sessions.confirm(&tenant, &s, &name).await.unwrap();
        jobs.push((name, number));
    }
    jobs.shuffle(&mut rand::rng());
    let workers = jobs.into_iter().map(|(name, number)| {
        let (sessions, tenant) = (sessions.clone(), tenant.clone());
        tokio::spawn(async move {
            loop {
                match sessions.begin(&tenant, &at("s", number), &name).await.unwrap() {
                    Begin::Waits => tokio::time::sleep(Duration::from_millis(5)).await,
                    Begin::Moved(to) => panic!("{number} moved to {to}"),
                    Begin::Ready(history) => {
                        let expected: Vec<u64> = (1..number).filter(|n| n % 5 != 0).collect();
                        assert_eq!(history.iter().map(|turn| turn.number).collect::<Vec<_>>(), expected);
                        let answer = (!number.is_multiple_of(5)).then_some("x");
                        sessions.settle(&tenant, &turn("s", number, answer), &name).await.unwrap();
                        break;
                    }
                }
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
}
