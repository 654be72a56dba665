//! A worker dies while it streams; a job is poison.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::client::{Ask, Reply, streamed_text};
use tests::fleet::{Fleet, FleetOptions, Model};
use tests::wait::until;

#[tokio::test]
async fn a_killed_workers_stream_is_completed_by_another() {
    let options = FleetOptions { workers: 2, model: Model::SmolLm2, ..FleetOptions::default() };
    let (mut fleet, client) = Fleet::start(options).await;
    let ask = Ask::text("Write a long story about the sea, with many chapters.", 100);
    let mut answers = client.open(&ask.clone().streamed()).await;
    let mut before = Vec::new();
    let victim = loop {
        before.push(answers.next().await);
        if before.len() == 4 {
            break fleet.first_taker().await;
        }
    };
    fleet.workers[victim].kill9();
    let killed = Instant::now();
    let after = answers.all().await;
    let took = killed.elapsed();
    println!("complete {took:?} after the kill");

    let all: Vec<Reply> = before.into_iter().chain(after).collect();
    assert!(all.iter().any(|reply| reply.status() == "chunk" && reply.number("Flotilla-Attempt") == 0));
    let accepted: Vec<u64> =
        all.iter().filter(|reply| reply.status() == "accepted").map(|reply| reply.number("Flotilla-Attempt")).collect();
    assert_eq!(accepted, [0, 1], "the client can tell the new attempt");
    let text = streamed_text(&all);
    assert!(took < Duration::from_secs(12), "complete {took:?} after the kill");
    assert_eq!(client.held("RESULTS").await, 1);
    // The same answer as if nothing had happened.
    assert_eq!(client.ask(&ask).await.answer(), text);
    assert_eq!(all.iter().filter(|reply| reply.status() == "done").count(), 2);
}

#[tokio::test]
async fn a_worker_that_was_stopped_for_a_while_says_only_the_stored_result() {
    let options = FleetOptions { workers: 2, model: Model::SmolLm2, ..FleetOptions::default() };
    let (fleet, client) = Fleet::start(options).await;
    let mut answers = client.open(&Ask::text("Write a long story about the sea.", 60).streamed()).await;
    let mut all = vec![answers.next().await, answers.next().await];
    let sleeper = fleet.first_taker().await;
    fleet.workers[sleeper].signal(Signal::SIGSTOP);
    all.extend(answers.all().await);
    assert!(!streamed_text(&all).is_empty());
    fleet.workers[sleeper].signal(Signal::SIGCONT);
    until("a lost race", Duration::from_secs(30), || async {
        (fleet.workers[sleeper].metric("flotilla_results_lost_races_total", "").await > 0.0).then_some(())
    })
    .await;
    // Whoever comes late says the stored result, as an attempt of its own, or nothing.
    let result = client.result(all[0].header("Flotilla-Job")).await.answer();
    while let Some(late) = answers.within(Duration::from_secs(1)).await {
        let part = matches!(late.status(), "accepted" | "chunk") || late.is_end();
        assert!(part || late.answer() == result, "{late:?}");
    }
    assert_eq!(client.held("RESULTS").await, 1);
    until("an empty queue", Duration::from_secs(20), || async { (client.held("JOBS").await == 0).then_some(()) }).await;
    assert_eq!(client.ask(&Ask::text("Hello", 4)).await.status(), "done");
}

#[tokio::test]
async fn a_stream_does_not_need_the_dispatcher_that_began_it() {
    let (mut fleet, client) = Fleet::start(FleetOptions { model: Model::SmolLm2, ..FleetOptions::default() }).await;
    let mut answers = client.open(&Ask::text("Write a long story about the sea.", 60).streamed()).await;
    let mut all = vec![answers.next().await, answers.next().await];
    fleet.kill_dispatcher();
    all.extend(answers.all().await);
    assert!(!streamed_text(&all).is_empty());
    assert_eq!(client.held("RESULTS").await, 1);
}

#[tokio::test]
async fn a_poison_job_is_a_dead_letter_and_the_fleet_goes_on() {
    let (fleet, client) = Fleet::start(FleetOptions::default()).await;
    let lane = format!("jobs.text.{}.interactive", fleet.model());
    let poisons = [&b"\xc1 no MessagePack"[..], b"", b"\x80", b"{\"version\":1}"];
    for poison in poisons {
        client.js.publish(lane.clone(), poison.into()).await.unwrap().await.unwrap();
    }
    until("every dead letter", Duration::from_secs(30), || async {
        (client.held("DEADLETTER").await == poisons.len() as u64).then_some(())
    })
    .await;
    until("an empty queue", Duration::from_secs(30), || async { (client.held("JOBS").await == 0).then_some(()) }).await;
    assert_eq!(client.ask(&Ask::text("Hello", 4)).await.status(), "done");
    assert!(fleet.workers[0].metric("flotilla_jobs_dead_letter_total", "").await >= 4.0);
    let stream = client.js.get_stream("DEADLETTER").await.unwrap();
    // Walks run side by side, so that letters come in any order.
    let mut letters = Vec::new();
    for place in 1..=poisons.len() as u64 {
        let letter = stream.get_raw_message(place).await.unwrap();
        assert!(letter.headers.get("Flotilla-Reason").is_some_and(|reason| !reason.as_str().is_empty()));
        letters.push(letter.payload);
    }
    assert!(poisons.iter().all(|poison| letters.iter().any(|letter| letter == poison)), "{letters:?}");
}
