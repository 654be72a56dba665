//! The response cache and its leases.

use std::time::Duration;

use protocol::request::Priority;
use protocol::token::Token;
use runtime::Error;
use runtime::cache::{Claim, Found, Lease, Responses};
use tests::servers::RedisServer;
use tests::wait::until;

use crate::setup::{answer, job, redis};

const TAKEN: Found = Found::Lease(Lease::Taken { from: None });

/// Asks for `k`.
async fn ask(cache: &Responses, name: &str) -> Result<Found, Error> {
    ask_as(cache, name, Priority::Standard).await
}

async fn ask_as(cache: &Responses, name: &str, priority: Priority) -> Result<Found, Error> {
    cache.enter("k", &Claim { job: job(name), priority }).await
}

/// Whether the lease of `k` is still this job's.
async fn renew(cache: &Responses, job: &Token) -> bool {
    cache.renew(&[("other", job), ("k", job)]).await.unwrap() == [false, true]
}

#[tokio::test]
async fn an_answer_is_kept_for_about_a_day() {
    let server = RedisServer::start();
    let cache = Responses::new(&redis(&server)).unwrap();
    assert_eq!(ask(&cache, "a").await.unwrap(), TAKEN);
    let truth = answer("a", "x");
    cache.put("k", &truth).await.unwrap();
    assert_eq!(ask(&cache, "b").await.unwrap(), Found::Answer(Box::new(truth)));
    let client = redis::Client::open(server.url()).unwrap();
    let mut raw = client.get_multiplexed_async_connection().await.unwrap();
    let ttl: i64 = redis::cmd("TTL").arg("answer:k").query_async(&mut raw).await.unwrap();
    assert!((77_000..=95_100).contains(&ttl), "{ttl}");
}

#[tokio::test]
async fn what_is_no_answer_counts_as_absent() {
    let server = RedisServer::start();
    let cache = Responses::new(&redis(&server)).unwrap();
    let client = redis::Client::open(server.url()).unwrap();
    let mut raw = client.get_multiplexed_async_connection().await.unwrap();
    let () = redis::cmd("SET").arg("answer:k").arg("garbage").query_async(&mut raw).await.unwrap();
    let () = redis::cmd("RPUSH").arg("answer:l").arg("list").query_async(&mut raw).await.unwrap();
    let claim = Claim { job: job("a"), priority: Priority::Standard };
    for key in ["k", "l"] {
        assert_eq!(cache.enter(key, &claim).await.unwrap(), TAKEN);
        let stands: String = redis::cmd("GET").arg(format!("answer:{key}")).query_async(&mut raw).await.unwrap();
        assert_eq!(stands, "lease/a/standard");
    }
}

#[tokio::test]
async fn who_is_more_urgent_waits_for_nobody_slower() {
    let server = RedisServer::start();
    let cache = Responses::new(&redis(&server)).unwrap();
    let held = |name| Found::Lease(Lease::Held { job: job(name) });
    assert_eq!(ask_as(&cache, "slow", Priority::Batch).await.unwrap(), TAKEN);
    let slow = Claim { job: job("slow"), priority: Priority::Batch };
    let taken = Found::Lease(Lease::Taken { from: Some(slow.clone()) });
    assert_eq!(ask_as(&cache, "urgent", Priority::Interactive).await.unwrap(), taken);
    assert!(!renew(&cache, &job("slow")).await, "it is another's now");
    assert_eq!(ask_as(&cache, "equal", Priority::Interactive).await.unwrap(), held("urgent"));
    assert_eq!(ask_as(&cache, "slower", Priority::Standard).await.unwrap(), held("urgent"));
    assert_eq!(ask_as(&cache, "urgent", Priority::Batch).await.unwrap(), TAKEN, "it has it already");
    assert_eq!(ask_as(&cache, "equal", Priority::Interactive).await.unwrap(), held("urgent"), "as it had it");
    cache.give_back("k", &job("urgent"), &slow).await.unwrap();
    assert!(renew(&cache, &job("slow")).await);
    assert_eq!(ask_as(&cache, "urgent", Priority::Interactive).await.unwrap(), taken);
    let truth = answer("slow", "x");
    cache.put("k", &truth).await.unwrap();
    cache.release("k", &job("urgent")).await.unwrap();
    assert!(!renew(&cache, &job("urgent")).await, "an answer stands in the place of the lease");
    assert_eq!(ask_as(&cache, "late", Priority::Batch).await.unwrap(), Found::Answer(Box::new(truth)));
}

#[tokio::test]
async fn one_holds_the_lease_until_it_gives_it_up() {
    let server = RedisServer::start();
    let cache = Responses::new(&redis(&server)).unwrap();
    let (first, second) = (job("a"), job("b"));
    let held = Found::Lease(Lease::Held { job: first.clone() });
    assert_eq!(ask(&cache, "a").await.unwrap(), TAKEN);
    let client = redis::Client::open(server.url()).unwrap();
    let mut raw = client.get_multiplexed_async_connection().await.unwrap();
    let () = redis::cmd("PEXPIRE").arg("answer:k").arg(5_000).query_async(&mut raw).await.unwrap();
    assert_eq!(ask(&cache, "a").await.unwrap(), TAKEN, "it has it already");
    let left: i64 = redis::cmd("PTTL").arg("answer:k").query_async(&mut raw).await.unwrap();
    assert!(left > 5_000, "{left}: it has it anew");
    assert_eq!(ask(&cache, "b").await.unwrap(), held);
    assert!(renew(&cache, &first).await);
    assert!(!renew(&cache, &second).await);
    cache.release("k", &second).await.unwrap();
    assert_eq!(ask(&cache, "b").await.unwrap(), held);
    cache.release("k", &first).await.unwrap();
    assert_eq!(ask(&cache, "b").await.unwrap(), TAKEN);
    assert!(!renew(&cache, &first).await);
}

#[tokio::test]
async fn redis_away_is_said_at_once_and_it_recovers() {
    let mut server = RedisServer::start();
    let cache = Responses::new(&redis(&server)).unwrap();
    assert!(ask(&cache, "a").await.is_ok());
    server.stop();
    for _ in 0..5 {
        let start = std::time::Instant::now();
        assert!(matches!(ask(&cache, "a").await, Err(Error::RedisDown(_))));
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }
    assert!(!cache.healthy());
    server.start_again();
    until("Redis to answer again", Duration::from_secs(5), || async { ask(&cache, "a").await.ok() }).await;
    assert!(cache.healthy());
}

#[tokio::test]
async fn redis_that_was_never_there_is_waited_for() {
    let mut server = RedisServer::start();
    server.stop();
    let cache = Responses::new(&redis(&server)).unwrap();
    assert!(matches!(ask(&cache, "a").await, Err(Error::RedisDown(_))));
    server.start_again();
    until("Redis to answer", Duration::from_secs(5), || async { ask(&cache, "a").await.ok() }).await;
}
