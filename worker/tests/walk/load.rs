//! Many jobs, several workers, and servers that go away.

use std::collections::HashMap;
use std::time::Duration;

use futures::StreamExt;
use protocol::header;
use protocol::request::Priority;
use tests::wait::until;
use worker::fake;

use crate::DRAIN;
use crate::bench::{Bench, QUICK, SLOW, SOON, header_of};

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_jobs_of_every_priority_are_answered_once() {
    let bench = Bench::start().await;
    let inbox = bench.bus.client.new_inbox();
    let mut answers = bench.bus.client.subscribe(inbox.clone()).await.unwrap();
    let (one, two) = (bench.worker(8, QUICK, DRAIN).await, bench.worker(8, QUICK, DRAIN).await);
    for number in 0..1000 {
        let mut job = fake::job(&format!("j{number}"), "hello");
        job.priority = Priority::ALL[number % 3];
        job.reply_to = Some(inbox.clone());
        bench.publish(&job).await;
    }
    let mut seen: HashMap<String, u32> = HashMap::new();
    while seen.len() < 1000 {
        let frame = tokio::time::timeout(SOON, answers.next()).await.expect("an answer").unwrap();
        assert_eq!(header_of(&frame, header::STATUS), "done");
        *seen.entry(header_of(&frame, header::JOB).to_owned()).or_default() += 1;
    }
    bench.queue_empty().await;
    assert!(seen.values().all(|&times| times == 1), "each once");
    assert_eq!(one.engine.submitted() + two.engine.submitted(), 1000);
    assert!(one.engine.submitted() > 100 && two.engine.submitted() > 100, "both worked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_nats_costs_nothing() {
    let mut bench = Bench::start().await;
    let worker = bench.worker(2, SLOW, DRAIN).await;
    let mut job = fake::job("j1", "hello");
    job.params.max_tokens = Some(20);
    bench.publish(&job).await;
    until("the job in the engine", SOON, || async { (worker.engine.submitted() == 1).then_some(()) }).await;
    bench.nats.stop();
    tokio::time::sleep(Duration::from_secs(1)).await;
    bench.nats.start_again();
    until("the connection", SOON, || async { bench.bus.connected().then_some(()) }).await;
    bench.record(&job).await;
    bench.queue_empty().await;
    let mut next = fake::job("j2", "hello");
    next.params.max_tokens = Some(1);
    assert_eq!(bench.ask(&mut next).await.next().await.payload, fake::answer(&["hello"], 1));
}
