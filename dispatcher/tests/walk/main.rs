//! The dispatcher against real servers, with a stand-in for the worker: what only it decides.

mod bench;
mod queues;

use std::time::{Duration, Instant};

use bench::Bench;
use futures::future::join_all;
use serde_json::json;
use tests::client::Ask;
use tests::wait::until;

const SOON: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn every_door_has_its_answer() {
    let bench = Bench::start(|_| {}).await;
    let _worker = bench.worker(Duration::ZERO).await;
    let client = &bench.client;
    let raw = client.ask(&Ask::raw("abc")).await;
    assert_eq!((raw.answer().as_str(), raw.header("Flotilla-Cache")), ("cba", "miss"));
    let streamed =
        client.open(&Ask::json(&json!({"input": "abc", "cache": "bypass", "stream": true}))).await.all().await;
    assert_eq!(tests::client::streamed_text(&streamed), "cba");
    // A hit: no job, its own id and record, as a stream too.
    let jobs = client.taken("JOBS").await;
    let hit = client.ask(&Ask::json(&json!({"input": "abc"}))).await;
    assert_eq!((hit.answer().as_str(), hit.header("Flotilla-Cache")), ("cba", "hit"));
    assert_eq!(client.result(hit.header("Flotilla-Job")).await.answer(), "cba");
    assert_eq!(tests::client::streamed_text(&client.open(&Ask::raw("abc").streamed()).await.all().await), "cba");
    assert_eq!(client.taken("JOBS").await, jobs);
    // The durable door, answered and refused.
    let job = client.submit("default", &Ask::raw("submitted")).await;
    assert_eq!(client.settled(&job).await.answer(), "dettimbus");
    let bad = client.submit("default", &Ask::json(&json!({"input": "x", "nonsense": 1}))).await;
    assert_eq!(client.settled(&bad).await.code(), "invalid_request");
    client.submit("ten$ant", &Ask::raw("x")).await;
    until("an empty INGRESS", SOON, || async { (client.held("INGRESS").await == 0).then_some(()) }).await;
    // Refusals leave by the same way, in the sender's format, and a stream has its end.
    let refused = client.open(&Ask::json(&json!({"input": "x", "nonsense": 1, "stream": true}))).await.all().await;
    assert_eq!((refused[0].code().as_str(), refused[1].status()), ("invalid_request", "failed"));
    assert_eq!(client.ask(&Ask::raw("x").header("Flotilla-Reply-To", "jobs.x")).await.code(), "invalid_request");
    assert_eq!(client.ask(&Ask::raw("x").header("Flotilla-Body", "a/b")).await.code(), "invalid_request");
    assert_eq!(client.ask(&Ask::raw("no-such-session").at("infer.sessions.get")).await.code(), "not_found");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_computes_and_a_leaders_end_is_its_own() {
    let bench = Bench::start(|_| {}).await;
    let worker = bench.worker(Duration::from_millis(1500)).await;
    let client = &bench.client;
    let (led, _) = tokio::join!(join_all((0..20).map(|_| async { client.ask(&Ask::raw("together")).await })), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let durable = Ask::raw("together").header("Flotilla-Id", "durable").header("Flotilla-Priority", "interactive");
        client.submit("default", &durable).await
    });
    assert!(led.iter().all(|reply| reply.answer() == "rehtegot"));
    assert_eq!(
        (led.iter().filter(|reply| reply.header("Flotilla-Cache") == "hit").count(), worker.computed()),
        (19, 1)
    );
    assert_eq!(client.settled("durable").await.header("Flotilla-Cache"), "hit");
    // The leader is cancelled: its follower leads, and is answered.
    let mut leader = client.open(&Ask::raw("alone").header("Flotilla-Id", "leader")).await;
    until("the leader's job", SOON, || async { (client.held("JOBS").await == 1).then_some(()) }).await;
    let alone = Ask::raw("alone");
    let follower = client.ask(&alone);
    let cancel = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        client.ask(&Ask::raw("leader\n").at("infer.cancel")).await
    };
    let (follower, cancel) = tokio::join!(follower, cancel);
    assert_eq!((cancel.value()["status"].as_str(), follower.answer().as_str()), (Some("cancelled"), "enola"));
    assert_eq!((leader.next().await.code().as_str(), follower.header("Flotilla-Cache")), ("cancelled", "miss"));
    assert_eq!(client.result("leader").await.code(), "cancelled");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_is_one_job_at_whichever_door() {
    let bench = Bench::start(|_| {}).await;
    let worker = bench.worker(Duration::from_millis(500)).await;
    let client = &bench.client;
    let ask = Ask::raw("once").header("Flotilla-Id", "order").header("Flotilla-Cache", "bypass");
    let mut pushed = client.listen("my.box").await;
    let repeat = ask.clone().header("Flotilla-Reply-To", "my.box");
    let (replies, _) = tokio::join!(
        join_all((0..8).map(|_| client.ask(&ask))),
        join_all((0..4).map(|_| client.submit("default", &repeat)))
    );
    assert!(replies.iter().all(|reply| reply.answer() == "ecno" && reply.header("Flotilla-Job") == "order"));
    for _ in 0..4 {
        assert_eq!(pushed.next().await.answer(), "ecno");
    }
    assert!(pushed.within(Duration::from_millis(300)).await.is_none());
    assert_eq!(client.ask(&ask.header("Accept", "application/json")).await.value()["output"][0]["text"], "ecno");
    let other = Ask::raw("twice").header("Flotilla-Id", "order");
    assert_eq!(client.ask(&other).await.code(), "invalid_request");
    let job = client.submit("default", &other).await;
    assert_eq!(client.settled(&job).await.code(), "invalid_request");
    assert_eq!((worker.computed(), client.taken("JOBS").await), (1, 1));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_repeat_ends_nobodys_job_and_hears_what_is_stored() {
    let bench = Bench::start(|_| {}).await;
    let _worker = bench.worker(Duration::from_millis(1500)).await;
    let client = &bench.client;
    let ask = Ask::raw("once").header("Flotilla-Id", "order").header("Flotilla-Cache", "bypass");
    let late =
        |deadline: &str| ask.clone().header("Flotilla-Reply-To", "my.box").header("Flotilla-Deadline-Ms", deadline);
    let mut pushed = client.listen("my.box").await;
    let repeat = async {
        until("the job", SOON, || async { (client.held("JOBS").await == 1).then_some(()) }).await;
        client.submit("default", &late("300")).await;
        pushed.next().await.code()
    };
    let (first, repeat) = tokio::join!(client.ask(&ask), repeat);
    assert_eq!((first.answer().as_str(), repeat.as_str()), ("ecno", "deadline_exceeded"));
    assert_eq!(client.result("order").await.answer(), "ecno");
    client.submit("default", &late("1")).await;
    assert_eq!(pushed.next().await.answer(), "ecno");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_of_what_was_refused_is_answered_though_its_pipeline_has_no_steps() {
    let bench = Bench::start(|_| {}).await;
    let client = &bench.client;
    until("the word unavailable", SOON, || async {
        let mut answers = client.open(&Ask::text("x", 4)).await;
        answers.within(Duration::from_millis(200)).await.filter(|reply| reply.code() == "unavailable")
    })
    .await;
    let ask = Ask::raw("once").header("Flotilla-Id", "order").header("Flotilla-Task", "assistant");
    assert_eq!(client.ask(&ask).await.code(), "unavailable", "the id is claimed all the same");
    let _worker = bench.worker(Duration::ZERO).await;
    until("a fleet", SOON, || async { (client.ask(&Ask::raw("other")).await.status() == "done").then_some(()) }).await;
    let repeat = client.open(&ask).await.within(SOON).await;
    assert_eq!(repeat.expect("an answer").answer(), "ecno");
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_now_is_said_at_once() {
    let bench = Bench::start(|config| config.common.streams.lane_jobs_max = 3).await;
    let client = &bench.client;
    let absent = until("the word unavailable", SOON, || async {
        let mut answers = client.open(&Ask::text("x", 4)).await;
        answers.within(Duration::from_millis(200)).await
    });
    // While nobody can know, jobs are queued; there is room for three.
    let first = absent.await;
    assert!(["unavailable", "overloaded"].contains(&first.code().as_str()), "{first:?}");
    for n in 0..6 {
        client.submit("default", &Ask::text(&format!("{n}"), 4).header("Flotilla-Priority", "batch")).await;
    }
    until("a full lane", SOON, || async {
        let lanes = client.subjects("JOBS").await;
        (lanes.get(&format!("jobs.text.{}.batch", bench::MODEL)) == Some(&3)).then_some(())
    })
    .await;
    let start = Instant::now();
    let _worker = bench.worker(Duration::from_millis(50)).await;
    until("an empty INGRESS", SOON * 2, || async {
        (client.held("INGRESS").await + client.held("JOBS").await == 0).then_some(())
    })
    .await;
    assert_eq!(client.ask(&Ask::text("later", 4)).await.answer(), "retal");
    println!("the durable door was through after {:?}", start.elapsed());
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_redis_costs_the_cache_and_the_sessions_only() {
    let mut bench = Bench::start(|_| {}).await;
    let _worker = bench.worker(Duration::ZERO).await;
    bench.redis.stop();
    let client = &bench.client;
    assert_eq!(client.ask(&Ask::raw("stateless")).await.answer(), "sseletats");
    let start = Instant::now();
    assert_eq!(client.ask(&Ask::raw("x").header("Flotilla-Session", "s")).await.code(), "unavailable");
    assert!((1.0..5.0).contains(&start.elapsed().as_secs_f64()), "{:?}", start.elapsed());
    bench.redis.start_again();
    let client = &bench.client;
    until("sessions again", SOON, || async {
        (client.ask(&Ask::raw("x").header("Flotilla-Session", "s")).await.status() == "done").then_some(())
    })
    .await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_of_requests_loses_none() {
    let bench = Bench::start(|config| config.common.streams.lane_jobs_max = 10_000).await;
    let worker = bench.worker(Duration::ZERO).await;
    let client = &bench.client;
    let start = Instant::now();
    let asks: Vec<Ask> = (0..2000).map(|n| Ask::text(&format!("n{n}"), 4)).collect();
    let replies = join_all(asks.iter().map(|ask| client.ask(ask))).await;
    println!("2000 requests, {:.0} a second", 2000.0 / start.elapsed().as_secs_f64());
    assert!(replies.iter().all(|reply| reply.status() == "done"));
    assert_eq!(worker.computed(), 2000);
    let start = Instant::now();
    let mut times = Vec::new();
    for _ in 0..100 {
        let start = Instant::now();
        assert_eq!(client.ask(&Ask::raw("cached")).await.status(), "done");
        times.push(start.elapsed());
    }
    times.sort();
    println!("100 hits: p50 {:?} in {:?}", times[50], start.elapsed());
    bench.stop().await;
}
