//! Many at once: everybody streams, nobody is lost, nobody is answered twice.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::future::join_all;
use futures::stream::{self, StreamExt};
use tests::client::{Ask, Client, Reply, streamed_text};
use tests::fleet::{Fleet, FleetOptions, Model};

#[tokio::test]
async fn chats_stream_at_once() {
    let options = FleetOptions { workers: 2, model: Model::SmolLm2, ..FleetOptions::default() };
    let (_fleet, client) = Fleet::start(options).await;
    let chats = join_all((0..8).map(|n| {
        let client = client.clone();
        async move {
            let ask = Ask::text(&format!("Tell a story about ship number {n}."), 40).streamed();
            client.open(&ask).await.all().await
        }
    }))
    .await;
    // Whoever has the processors, a worker computes its chats together: more are open at a time than there are workers.
    let first = |all: &[Reply]| all.iter().find(|reply| reply.status() == "chunk").expect("a chunk").at;
    let spans: Vec<_> = chats.iter().map(|all| (first(all), all.last().unwrap().at)).collect();
    let open_at = |moment| spans.iter().filter(|(begun, ended)| *begun <= moment && moment < *ended).count();
    let most = spans.iter().map(|(begun, _)| open_at(*begun)).max().unwrap();
    assert!(most > 2, "at most {most} of 8 chats were open at a time");
    for all in &chats {
        assert!(!streamed_text(all).is_empty());
        assert!(all.iter().filter(|reply| reply.status() == "chunk").count() >= 10);
    }
}

/// Every reply to many requests, by request.
struct Crowd {
    client: Client,
    prefix: String,
    replies: tests::client::Answers,
    heard: BTreeMap<usize, Vec<Reply>>,
}

impl Crowd {
    async fn new(client: &Client) -> Crowd {
        let prefix = client.nats.new_inbox();
        let replies = client.listen(&format!("{prefix}.*")).await;
        Crowd { client: client.clone(), prefix, replies, heard: BTreeMap::new() }
    }

    async fn send(&self, number: usize) {
        let ask = Ask::text(&format!("Request {number}"), 4).header("Flotilla-Id", &format!("crowd-{number}"));
        let to = format!("{}.{number}", self.prefix);
        let sent = self.client.nats.publish_with_reply_and_headers("infer", to, ask.headers, ask.body);
        sent.await.unwrap();
    }

    async fn hear(&mut self) {
        let reply = self.replies.next().await;
        self.take(reply);
    }

    fn take(&mut self, reply: Reply) {
        let number = reply.header("Flotilla-Job").strip_prefix("crowd-").and_then(|number| number.parse().ok());
        self.heard.entry(number.unwrap_or_else(|| panic!("not ours: {reply:?}"))).or_default().push(reply);
    }

    /// Sends `count` requests, `width` of them at once at most, and calls `midway` after half of the replies.
    async fn run(&mut self, count: usize, width: usize, midway: impl AsyncFnOnce()) {
        let mut midway = Some(midway);
        for number in 0..width {
            self.send(number).await;
        }
        let mut sent = width;
        while self.heard.len() < count {
            self.hear().await;
            if sent < count && sent < self.heard.len() + width {
                self.send(sent).await;
                sent += 1;
            }
            if self.heard.len() == count / 2
                && let Some(midway) = midway.take()
            {
                midway().await;
            }
        }
        // What comes twice comes late.
        while let Some(reply) = self.replies.within(Duration::from_millis(500)).await {
            self.take(reply);
        }
    }

    /// Every request has its answer, and never two that differ; how many came more than once.
    fn check(&self, count: usize) -> usize {
        assert_eq!(self.heard.len(), count);
        for (number, replies) in &self.heard {
            assert!(replies.iter().all(|reply| reply.status() == "done"), "{number}: {replies:?}");
            assert!(replies.iter().all(|reply| reply.body == replies[0].body), "{number}: {replies:?}");
        }
        self.heard.values().filter(|replies| replies.len() > 1).count()
    }
}

/// Each request of a crowd has exactly one record.
async fn one_record_each(client: &Client, count: usize) {
    let results = client.subjects("RESULTS").await;
    assert_eq!(results.len(), count);
    assert!((0..count).all(|n| results[&format!("result.default.crowd-{n}")] == 1));
    assert_eq!(client.held("DEADLETTER").await, 0);
}

#[tokio::test]
async fn a_thousand_requests_are_answered_once() {
    let (_fleet, client) = Fleet::start(FleetOptions { workers: 2, ..FleetOptions::default() }).await;
    let mut crowd = Crowd::new(&client).await;
    let start = Instant::now();
    crowd.run(1_000, 1_000, async || {}).await;
    println!("1,000 requests took {:?}", start.elapsed());
    assert_eq!(crowd.check(1_000), 0, "answers came twice");
    one_record_each(&client, 1_000).await;
}

#[tokio::test]
async fn a_thousand_requests_survive_a_killed_worker() {
    let (mut fleet, client) = Fleet::start(FleetOptions { workers: 2, ..FleetOptions::default() }).await;
    let mut crowd = Crowd::new(&client).await;
    crowd.run(1_000, 900, async || fleet.workers[0].kill9()).await;
    // A worker may die between an answer and its ack: then the same stored answer is said again.
    let twice = crowd.check(1_000);
    println!("{twice} answers were said twice");
    assert!(twice <= 32, "more than the dead worker had in hand: {twice}");
    one_record_each(&client, 1_000).await;
}

#[tokio::test]
async fn a_drain_loses_nothing() {
    let (mut fleet, client) = Fleet::start(FleetOptions { workers: 2, ..FleetOptions::default() }).await;
    let mut crowd = Crowd::new(&client).await;
    let start = Instant::now();
    crowd.run(400, 64, async || fleet.workers[0].sigterm()).await;
    let took = start.elapsed();
    assert_eq!(crowd.check(400), 0, "answers came twice");
    assert!(fleet.workers[0].ended(Duration::from_secs(30)).await.success());
    // Nobody had to wait for a silence to be noticed.
    assert!(took < Duration::from_secs(8), "{took:?}");
    assert_eq!(client.held("RESULTS").await, 400);
}

#[tokio::test]
async fn a_drained_worker_gives_back_what_it_cannot_finish() {
    let options = FleetOptions { model: Model::SmolLm2, drain_s: 1, ..FleetOptions::default() };
    let (mut fleet, client) = Fleet::start(options).await;
    let ask = Ask::text("Write a long story about the sea, with many chapters.", 400).streamed();
    let mut answers = client.open(&ask).await;
    let mut all = vec![answers.next().await, answers.next().await];
    assert_eq!((all[0].status(), all[1].status()), ("accepted", "chunk"));
    fleet.workers[0].sigterm();
    assert!(fleet.workers[0].ended(Duration::from_secs(15)).await.success());
    fleet.add_worker();
    all.extend(answers.all().await);
    assert!(!streamed_text(&all).is_empty());
    assert!(all.last().is_some_and(|end| end.number("Flotilla-Output-Tokens") > 20));
    assert_eq!(all.iter().filter(|reply| reply.status() == "accepted").count(), 2);
    assert_eq!(client.held("RESULTS").await, 1);
}

#[tokio::test]
async fn a_flood_of_batch_work_does_not_keep_anybody_waiting() {
    let (_fleet, client) = Fleet::start(FleetOptions { slots: 2, ..FleetOptions::default() }).await;
    let jobs = join_all((0..150).map(|n| {
        let ask = Ask::text(&format!("Cargo {n}"), 256).header("Flotilla-Priority", "batch");
        let client = client.clone();
        async move { client.submit("default", &ask).await }
    }))
    .await;
    let first = client.settled(&jobs[0]).await;
    assert_eq!(first.status(), "done");
    assert_eq!(client.ask(&Ask::text("Is anybody there?", 4)).await.status(), "done");
    let settled = client.held("RESULTS").await;
    assert!(settled < 100, "the answer came after {settled} jobs of the flood");
    for job in &jobs {
        assert_eq!(client.settled(job).await.status(), "done", "{job}");
    }
}

#[tokio::test]
async fn submissions_by_the_hundred_are_all_settled() {
    let (_fleet, client) = Fleet::start(FleetOptions { workers: 2, ..FleetOptions::default() }).await;
    let jobs: Vec<String> = stream::iter(0..300)
        .map(|n| {
            let client = client.clone();
            let priority = ["interactive", "standard", "batch"][n % 3];
            let ask = Ask::text(&format!("Parcel {n}"), 4).header("Flotilla-Priority", priority);
            async move { client.submit("default", &ask).await }
        })
        .buffer_unordered(32)
        .collect()
        .await;
    for job in &jobs {
        assert_eq!(client.settled(job).await.status(), "done", "{job}");
    }
    assert_eq!((client.held("RESULTS").await, client.held("DEADLETTER").await), (300, 0));
}
