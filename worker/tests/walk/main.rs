//! The worker's walk between a real nats-server and a real valkey-server, on an engine without a model.

mod bench;
mod crash;
mod ends;
mod load;
mod real;
mod steps;
mod tasks;

use std::time::Duration;

use futures::StreamExt;

use bench::{Bench, QUICK, header_of, text_of};
use protocol::heartbeat::{Heartbeat, State};
use protocol::request::{Format, Mode};
use protocol::{header, stream, subject};
use worker::fake;

const DRAIN: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_answer_is_recorded_said_and_acked() {
    let bench = Bench::start().await;
    let _worker = bench.worker(4, QUICK, DRAIN).await;
    let mut job = fake::job("j1", "what is NATS?");
    let mut answers = bench.ask(&mut job).await;
    let frame = answers.next().await;
    assert_eq!(frame.payload, fake::answer(&["what", "is", "NATS?"], 4));
    assert_eq!(header_of(&frame, header::STATUS), "done");
    bench.record(&job).await;
    bench.queue_empty().await;
    assert!(answers.silent(Duration::from_millis(300)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_accepted_chunks_the_whole_and_the_end_mark() {
    let bench = Bench::start().await;
    let _worker = bench.worker(4, QUICK, DRAIN).await;
    let mut job = fake::job("j1", "hello");
    (job.mode, job.format) = (Mode::Stream, Format::Json);
    let frames = bench.ask(&mut job).await.stream().await;
    let statuses: Vec<&str> = frames.iter().map(|frame| header_of(frame, header::STATUS)).collect();
    assert_eq!(statuses, ["accepted", "chunk", "chunk", "chunk", "chunk", "done", "done"]);
    let seqs: Vec<&str> = frames[1..5].iter().map(|frame| header_of(frame, header::SEQ)).collect();
    assert_eq!(seqs, ["0", "1", "2", "3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_stream_is_text_and_the_end_mark() {
    let bench = Bench::start().await;
    let _worker = bench.worker(4, QUICK, DRAIN).await;
    let mut job = fake::job("j1", "hello");
    job.mode = Mode::Stream;
    let frames = bench.ask(&mut job).await.stream().await;
    assert_eq!(text_of(&frames), fake::answer(&["hello"], 4));
    bench.queue_empty().await;
    assert_eq!(bench.messages(stream::DEADLETTER).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_worker_says_little() {
    let bench = Bench::start().await;
    let mut all = bench.bus.client.subscribe(">").await.unwrap();
    let _worker = bench.worker(4, QUICK, DRAIN).await;
    let listen = async |time| {
        let mut said = 0;
        let _ = tokio::time::timeout(time, async {
            while all.next().await.is_some() {
                said += 1
            }
        })
        .await;
        said
    };
    let mut listen = listen;
    listen(Duration::from_secs(2)).await;
    let said = listen(Duration::from_secs(3)).await;
    // Each second: a pull a lane with its answer, and a heartbeat.
    assert!(said <= 3 * 7 + 7, "{said} messages in 3 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fleet_sees_it_come_and_go() {
    let bench = Bench::start().await;
    let mut beats = bench.bus.client.subscribe(subject::HEARTBEAT_ALL).await.unwrap();
    let mut worker = bench.worker(4, QUICK, DRAIN).await;
    let mut next = async || Heartbeat::decode(&beats.next().await.unwrap().payload).unwrap();
    let first = next().await;
    assert_eq!((first.state, first.slots_free, first.models[0].name.as_str()), (State::Ready, 4, fake::MODEL));
    let info = bench.bus.client.request("$SRV.INFO.flotilla-worker", bytes::Bytes::new()).await.unwrap();
    let info: serde_json::Value = serde_json::from_slice(&info.payload).unwrap();
    assert_eq!(info["metadata"]["models"], fake::MODEL);
    worker.stop.cancel();
    (&mut worker.task).await.unwrap().unwrap();
    while next().await.state != State::Gone {}
}
