//! Same in, same out; streams; the durable door.

use std::time::Duration;

use serde_json::{Value, json};
use tests::client::{Ask, Reply, envelope, streamed_text};
use tests::fleet::{Fleet, FleetOptions};
use tests::wait::until;

const JSON: &str = "application/json";
const MSGPACK: &str = "application/msgpack";
const PLAIN: &str = "text/plain; charset=utf-8";

#[tokio::test]
async fn what_comes_in_decides_what_goes_out() {
    let (_fleet, client) = Fleet::start(FleetOptions::default()).await;
    let envelope = envelope("What is NATS?", 16);

    let raw = client.ask(&Ask::raw("What is NATS?")).await;
    assert_eq!((raw.status(), raw.header("Content-Type"), raw.header("Flotilla-Kind")), ("done", PLAIN, "text"));
    assert_eq!(raw.header("Flotilla-Model"), "tiny");
    assert!(!raw.header("Flotilla-Job").is_empty() && !raw.text().is_empty());

    let json = client.ask(&Ask::json(&envelope)).await;
    assert_eq!((json.status(), json.header("Content-Type")), ("done", JSON));
    check_answer(&json);
    // The first sixteen tokens of the same greedy answer.
    assert!(raw.text().starts_with(&json.answer()));

    let bare = client.ask(&Ask::raw(envelope.to_string())).await;
    assert_eq!((bare.header("Content-Type"), bare.answer()), (JSON, json.answer()));

    let msgpack = client.ask(&Ask::msgpack(&envelope)).await;
    assert_eq!((msgpack.header("Content-Type"), msgpack.answer()), (MSGPACK, json.answer()));
    check_answer(&msgpack);

    for (accept, sent) in [("application/json", JSON), ("application/msgpack", MSGPACK), ("text/plain", PLAIN)] {
        for ask in [Ask::json(&envelope), Ask::msgpack(&envelope)] {
            let reply = client.ask(&ask.header("Accept", accept)).await;
            assert_eq!((reply.header("Content-Type"), reply.answer()), (sent, json.answer()));
        }
        let reply = client.ask(&Ask::raw("What is NATS?").header("Accept", accept)).await;
        assert_eq!((reply.header("Content-Type"), reply.answer()), (sent, raw.text()));
    }

    let door = client.ask(&Ask::raw("What is NATS?").at("infer.text")).await;
    assert_eq!(door.text(), raw.text());
}

fn check_answer(reply: &Reply) {
    let answer = reply.value();
    assert_eq!(answer["job"], reply.header("Flotilla-Job"));
    assert_eq!((&answer["model"], &answer["task"]), (&json!("tiny"), &json!("chat")));
    assert_eq!(answer["finish_reason"], "length");
    assert_eq!(answer["usage"]["output_tokens"], 16);
    assert!(answer["usage"]["input_tokens"].as_u64() > Some(10));
    assert_eq!(answer["output"][0]["type"], "text");
    assert_eq!(answer["cache"], reply.header("Flotilla-Cache"));
}

#[tokio::test]
async fn streams_carry_chunks_and_an_end_mark() {
    let (_fleet, client) = Fleet::start(FleetOptions::default()).await;
    let envelope = envelope("Count the waves.", 24);
    let whole = client.ask(&Ask::json(&envelope).header("Flotilla-Cache", "bypass")).await;

    let raw = Ask::json(&envelope).header("Accept", "text/plain").header("Flotilla-Cache", "bypass").streamed();
    let raw = client.open(&raw).await.all().await;
    check_stream(&raw, &whole);
    let (chunks, end) = raw.split_at(raw.len() - 1);
    assert!(chunks.len() > 1 && chunks.iter().all(|chunk| chunk.status() == "chunk"));
    assert!(chunks.iter().all(|chunk| chunk.header("Content-Type") == PLAIN && !chunk.body.is_empty()));
    assert_eq!(end[0].header("Flotilla-Finish"), "length");

    let asks = [Ask::json(&envelope), Ask::msgpack(&envelope)].map(|ask| ask.header("Flotilla-Cache", "bypass"));
    for (ask, mime) in asks.into_iter().zip([JSON, MSGPACK]) {
        let all = client.open(&ask.streamed()).await.all().await;
        check_stream(&all, &whole);
        let statuses: Vec<&str> = all.iter().map(Reply::status).collect();
        let chunks = all.len() - 3;
        assert!(chunks > 1);
        assert_eq!((statuses[0], &statuses[chunks + 1..]), ("accepted", &["done", "done"][..]));
        assert!(statuses[1..=chunks].iter().all(|&status| status == "chunk"));
        assert!(all[..all.len() - 1].iter().all(|reply| reply.header("Content-Type") == mime));
        let job = all[0].header("Flotilla-Job");
        assert_eq!(all[0].value(), json!({"job": job, "attempt": 0}));
        let first = json!({"job": job, "attempt": 0, "seq": 0, "delta": all[1].value()["delta"]});
        assert_eq!((all[1].value(), &all[1].value()["delta"]["type"]), (first, &json!("text")));
        assert_eq!(all[chunks + 1].answer(), whole.answer());
    }

    let mut inside = envelope;
    inside["stream"] = Value::Bool(true);
    inside["cache"] = json!("bypass");
    check_stream(&client.open(&Ask::json(&inside)).await.all().await, &whole);
}

fn check_stream(all: &[Reply], whole: &Reply) {
    assert_eq!(streamed_text(all), whole.answer());
    let end = all.last().unwrap();
    assert_eq!(end.number("Flotilla-Input-Tokens"), whole.input_tokens());
    assert_eq!(end.number("Flotilla-Output-Tokens"), 24);
    assert!(all.iter().all(|reply| reply.header("Flotilla-Job") == end.header("Flotilla-Job")));
}

#[tokio::test]
async fn the_durable_door_keeps_one_result_in_the_submitters_format() {
    let (mut fleet, client) = Fleet::start(FleetOptions { workers: 0, ..FleetOptions::default() }).await;
    let envelope = envelope("Where is the harbour?", 16);
    let mut answers = client.listen("my.answers.1").await;
    let raw = client.submit("default", &Ask::raw("Where is the harbour?")).await;
    let json = client.submit("default", &Ask::json(&envelope)).await;
    let replied = Ask::msgpack(&envelope).header("Flotilla-Reply-To", "my.answers.1");
    let msgpack = client.submit("default", &replied).await;
    let named = Ask::json(&envelope).header("Flotilla-Id", "order-66");
    client.submit("default", &named).await;
    let jobs = [raw, json, msgpack, "order-66".to_owned()];
    for job in &jobs {
        until("the word pending", Duration::from_secs(10), || async {
            let reply = client.result(job).await;
            assert!(["pending", "not_found"].contains(&reply.code().as_str()), "{reply:?}");
            (reply.code() == "pending").then_some(())
        })
        .await;
    }
    assert_eq!(client.held("RESULTS").await, 0);

    fleet.add_worker();
    fleet.ready().await;
    for (job, mime) in jobs.iter().zip([PLAIN, JSON, MSGPACK, JSON]) {
        let reply = client.settled(job).await;
        assert_eq!((reply.status(), reply.header("Content-Type")), ("done", mime));
        assert_eq!(reply.header("Flotilla-Job"), job);
    }
    let pushed = answers.next().await;
    assert_eq!((pushed.status(), pushed.header("Flotilla-Job")), ("done", jobs[2].as_str()));
    assert_eq!(pushed.answer(), client.settled(&jobs[1]).await.answer());
    assert!(answers.within(Duration::from_millis(300)).await.is_none(), "an answer came twice");

    let results = client.subjects("RESULTS").await;
    let expected: Vec<String> = jobs.iter().map(|job| format!("result.default.{job}")).collect();
    assert!(results.len() == 4 && expected.iter().all(|subject| results[subject] == 1), "{results:?}");
    until("empty queues", Duration::from_secs(10), || async {
        (client.held("JOBS").await + client.held("INGRESS").await == 0).then_some(())
    })
    .await;
    assert_eq!(client.result("never-heard-of").await.code(), "not_found");
}

#[tokio::test]
async fn a_submitted_stream_goes_to_its_reply_to() {
    let (_fleet, client) = Fleet::start(FleetOptions::default()).await;
    let mut answers = client.listen("my.answers.2").await;
    let ask = Ask::text("Sing!", 16).header("Flotilla-Reply-To", "my.answers.2").streamed();
    let job = client.submit("red", &ask).await;
    let all = answers.all().await;
    let text = streamed_text(&all);
    assert!(all.iter().all(|reply| reply.header("Flotilla-Job") == job));
    assert_eq!(client.subjects("RESULTS").await[&format!("result.red.{job}")], 1);
    // Another tenant's job is nobody else's business.
    assert_eq!(client.result(&job).await.code(), "not_found");
    assert_eq!(client.ask(&Ask::text("Sing!", 16)).await.answer(), text);
}
