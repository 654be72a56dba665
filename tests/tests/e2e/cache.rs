//! The response cache: hits are told, cost nothing, and never lie.

use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::json;
use tests::client::{Ask, envelope, streamed_text};
use tests::fleet::{Fleet, FleetOptions, Model};

#[tokio::test]
async fn the_second_same_request_is_a_hit() {
    let (fleet, client) = Fleet::start(FleetOptions::default()).await;
    let ask = Ask::json(&envelope("What is a reef?", 48));
    let miss = client.ask(&ask).await;
    assert_eq!((miss.header("Flotilla-Cache"), &miss.value()["cache"]), ("miss", &json!("miss")));
    let jobs = client.taken("JOBS").await;

    let hit = client.ask(&ask).await;
    assert_eq!((hit.header("Flotilla-Cache"), &hit.value()["cache"]), ("hit", &json!("hit")));
    assert_eq!((hit.answer(), &hit.value()["usage"]), (miss.answer(), &miss.value()["usage"]));
    assert_ne!(hit.header("Flotilla-Job"), miss.header("Flotilla-Job"));
    assert_eq!(client.result(hit.header("Flotilla-Job")).await.answer(), miss.answer());

    // The key is the meaning, not the spelling.
    let spelt = json!({"params": {"temperature": 0.0, "max_tokens": 48}, "stream": false, "input": "What is a reef?"});
    assert_eq!(client.ask(&Ask::json(&spelt)).await.header("Flotilla-Cache"), "hit");
    assert_eq!(client.ask(&Ask::msgpack(&spelt)).await.header("Flotilla-Cache"), "hit");

    for ask in [ask.clone(), ask.clone().header("Accept", "text/plain")] {
        let replay = client.open(&ask.streamed()).await.all().await;
        assert_eq!(streamed_text(&replay), miss.answer());
        assert_eq!(replay.last().unwrap().header("Flotilla-Cache"), "hit");
    }
    let submitted = client.submit("default", &ask).await;
    assert_eq!(client.settled(&submitted).await.header("Flotilla-Cache"), "hit");
    assert_eq!(client.taken("JOBS").await, jobs, "a hit is no job");
    assert!(fleet.dispatcher.metric("flotilla_cache_requests_total", "result=\"hit\"").await >= 6.0);

    let bypass = client.ask(&ask.clone().header("Flotilla-Cache", "bypass")).await;
    assert_eq!((bypass.header("Flotilla-Cache"), bypass.answer()), ("miss", miss.answer()));
    let refresh = client.ask(&ask.clone().header("Flotilla-Cache", "refresh")).await;
    assert_eq!(refresh.header("Flotilla-Cache"), "miss");
    assert_eq!(client.ask(&ask).await.header("Flotilla-Cache"), "hit");
}

#[tokio::test]
async fn what_is_not_the_same_is_no_hit() {
    let (fleet, client) = Fleet::start(FleetOptions::default()).await;
    let base = envelope("What is a reef?", 8);
    client.ask(&Ask::json(&base)).await;
    let changed = [
        json!({"input": "What is a reef? "}),
        json!({"input": [{"type": "text", "text": "What is a reef?", "role": "system"}]}),
        json!({"params": {"max_tokens": 9}}),
        json!({"params": {"max_tokens": 8, "stop": "e"}}),
        json!({"params": {"max_tokens": 8, "repetition_penalty": 1.5}}),
        json!({"task": "complete"}),
        json!({"session": "anna"}),
    ];
    for change in changed {
        let mut envelope = base.clone();
        envelope.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        assert_eq!(client.ask(&Ask::json(&envelope)).await.header("Flotilla-Cache"), "miss", "{change}");
    }
    // What is drawn anew each time is not kept, unless the draw is fixed.
    let drawn = json!({"input": "Dice!", "params": {"max_tokens": 8, "temperature": 1.0}});
    let fixed = json!({"input": "Dice!", "params": {"max_tokens": 8, "temperature": 1.0, "seed": 6}});
    for (envelope, second) in [(drawn, "miss"), (fixed, "hit")] {
        client.ask(&Ask::json(&envelope)).await;
        assert_eq!(client.ask(&Ask::json(&envelope)).await.header("Flotilla-Cache"), second);
    }
    // Another tenant sees nothing of it.
    let red = client.submit("red", &Ask::json(&base)).await;
    let subject = format!("result.red.{red}");
    tests::wait::until("red's result", Duration::from_secs(20), || async {
        client.subjects("RESULTS").await.contains_key(&subject).then_some(())
    })
    .await;
    let hits = fleet.dispatcher.metric("flotilla_cache_requests_total", "result=\"hit\"").await;
    assert!((hits - 1.0).abs() < 0.5, "{hits} hits");
}

#[tokio::test]
async fn identical_requests_at_once_are_one_job() {
    let (mut fleet, client) = Fleet::start(FleetOptions { workers: 2, ..FleetOptions::default() }).await;
    fleet.add_dispatcher().await;
    for round in 1..=5 {
        let ask = Ask::json(&envelope(&format!("Wave number {round}"), 256));
        let replies = join_all((0..16).map(|_| client.ask(&ask))).await;
        let first = replies[0].answer();
        assert!(replies.iter().all(|reply| reply.answer() == first));
        assert_eq!(client.taken("JOBS").await, round);
        // Each has an id of its own, under which its result is kept.
        let mut jobs: Vec<&str> = replies.iter().map(|reply| reply.header("Flotilla-Job")).collect();
        jobs.sort_unstable();
        jobs.dedup();
        assert_eq!(jobs.len(), 16);
        for job in jobs {
            assert_eq!(client.result(job).await.answer(), first);
        }
    }
}

#[tokio::test]
async fn a_cancelled_leader_does_not_take_its_followers_along() {
    let options = FleetOptions { model: Model::SmolLm2, ..FleetOptions::default() };
    let (_fleet, client) = Fleet::start(options).await;
    let ask = Ask::json(&envelope("Tell a long story about the sea, with many chapters.", 120));
    let mut leader = client.open(&ask.clone().streamed()).await;
    let job = leader.next().await.header("Flotilla-Job").to_owned();
    let mut followers = Vec::new();
    for _ in 0..3 {
        followers.push(client.open(&ask).await);
    }
    assert_eq!(leader.next().await.status(), "chunk");
    assert_eq!(client.ask(&Ask::raw(job).at("infer.cancel")).await.value()["status"], "cancelled");
    let end = leader.all().await;
    assert_eq!(end[end.len() - 2].code(), "cancelled");
    for mut follower in followers {
        let reply = follower.next().await;
        assert_eq!(reply.value()["usage"]["output_tokens"], 120, "{reply:?}");
    }
    assert_eq!(client.taken("JOBS").await, 2, "one of the followers took the lead");
}

#[tokio::test]
async fn a_hit_costs_a_twentieth_of_a_miss_at_most() {
    let (_fleet, client) = Fleet::start(FleetOptions { model: Model::SmolLm2, ..FleetOptions::default() }).await;
    let mut misses = Vec::new();
    let mut hits = Vec::new();
    let asks: Vec<Ask> = (0..5).map(|n| Ask::json(&envelope(&format!("Tell me about the number {n}."), 48))).collect();
    for ask in &asks {
        let start = Instant::now();
        assert_eq!(client.ask(ask).await.header("Flotilla-Cache"), "miss");
        misses.push(start.elapsed());
    }
    for n in 0..50 {
        let start = Instant::now();
        assert_eq!(client.ask(&asks[n % asks.len()]).await.header("Flotilla-Cache"), "hit");
        hits.push(start.elapsed());
    }
    misses.sort();
    hits.sort();
    let (miss, hit) = (misses[misses.len() / 2], hits[hits.len() / 2]);
    println!("p50 of misses {miss:?}, of hits {hit:?}");
    assert!(hit * 20 <= miss, "p50 of misses {miss:?}, of hits {hit:?}");
    assert_eq!(client.taken("JOBS").await, asks.len() as u64);
}
