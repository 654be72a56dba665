//! A session remembers, in order, whichever worker answers, and whatever becomes of Redis.

use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};
use tests::client::{Ask, Client, PATIENCE, Reply};
use tests::fleet::{Fleet, FleetOptions, Model};
use tests::wait::until;

/// A conversation as its client remembers it, to be compared with what the fleet remembers.
struct Chat {
    session: &'static str,
    max_tokens: u32,
    history: Vec<Value>,
}

impl Chat {
    fn new(session: &'static str, max_tokens: u32) -> Chat {
        Chat { session, max_tokens, history: Vec::new() }
    }

    fn turn(&self, text: &str) -> Ask {
        Ask::json(&json!({"input": text, "session": self.session, "params": {"max_tokens": self.max_tokens}}))
    }

    /// One request that carries all that was said before.
    fn stateless(&self, text: &str) -> Ask {
        let mut input = self.history.clone();
        input.push(json!({"role": "user", "type": "text", "text": text}));
        Ask::json(&json!({"input": input, "cache": "bypass", "params": {"max_tokens": self.max_tokens}}))
    }

    fn note(&mut self, text: &str, answer: &str) {
        self.history.push(json!({"role": "user", "type": "text", "text": text}));
        self.history.push(json!({"role": "assistant", "type": "text", "text": answer}));
    }

    /// Says something in the session and, with the same history, without one: it must come to the same.
    async fn say(&mut self, client: &Client, text: &str) -> Reply {
        let reply = patient(client, &self.turn(text)).await;
        self.check(client, text, &reply).await;
        reply
    }

    async fn check(&mut self, client: &Client, text: &str, reply: &Reply) {
        let stateless = client.ask(&self.stateless(text)).await;
        assert_eq!(reply.answer(), stateless.answer(), "turn {} of {}", self.history.len() / 2 + 1, self.session);
        assert_eq!(reply.input_tokens(), stateless.input_tokens());
        self.note(text, &reply.answer());
    }
}

/// Asks again while the fleet says that it cannot yet.
async fn patient(client: &Client, ask: &Ask) -> Reply {
    until("a session that is available", PATIENCE, || async {
        let reply = client.ask(ask).await;
        (reply.code() != "unavailable").then_some(reply)
    })
    .await
}

#[tokio::test]
async fn a_session_is_its_history_whichever_worker_answers() {
    let options = FleetOptions { workers: 2, model: Model::SmolLm2, ..FleetOptions::default() };
    let (mut fleet, client) = Fleet::start(options).await;
    let mut chat = Chat::new("anna", 16);
    chat.say(&client, "My name is Anna and I sail a red boat.").await;
    chat.say(&client, "What is my name?").await;
    // The one worker goes, then the other: each must have answered in the end.
    fleet.workers[0].sigterm();
    assert!(fleet.workers[0].ended(PATIENCE).await.success());
    fleet.known(1).await;
    chat.say(&client, "What colour is my boat?").await;
    let third = fleet.add_worker();
    fleet.workers[third].ready().await;
    fleet.known(2).await;
    fleet.workers[1].sigterm();
    assert!(fleet.workers[1].ended(PATIENCE).await.success());
    fleet.known(1).await;
    chat.say(&client, "And who am I?").await;

    let kept = client.ask(&Ask::raw("anna").at("infer.sessions.get")).await;
    let text = kept.text();
    assert_eq!(kept.code(), "", "{text}");
    for said in ["My name is Anna and I sail a red boat.", "And who am I?"] {
        assert!(text.contains(said), "{text}");
    }
    assert_eq!(client.ask(&Ask::raw("anna").at("infer.sessions.forget")).await.code(), "");
    assert_eq!(client.ask(&Ask::raw("anna").at("infer.sessions.get")).await.code(), "not_found");
    Chat::new("anna", 16).say(&client, "What is my name?").await;
}

#[tokio::test]
async fn sessions_of_tenants_do_not_mix() {
    let (_fleet, client) = Fleet::start(FleetOptions { workers: 2, ..FleetOptions::default() }).await;
    let mut chats = [Chat::new("same", 12), Chat::new("same", 12)];
    for (turn, tenant) in [(1, "red"), (2, "blue"), (3, "red"), (4, "blue")] {
        let chat = &mut chats[usize::from(tenant == "blue")];
        let text = format!("I am {tenant}, turn {turn}");
        let inbox = format!("my.answers.{turn}");
        let mut answers = client.listen(&inbox).await;
        client.submit(tenant, &chat.turn(&text).header("Flotilla-Reply-To", &inbox)).await;
        let reply = answers.next().await;
        chat.check(&client, &text, &reply).await;
    }
    assert_eq!(client.ask(&Ask::raw("same").at("infer.sessions.get")).await.code(), "not_found");
}

#[tokio::test]
async fn turns_of_a_session_are_answered_in_the_order_of_admission() {
    let (_fleet, client) = Fleet::start(FleetOptions { workers: 2, ..FleetOptions::default() }).await;
    let chat = Chat::new("crowd", 4);
    let texts: Vec<String> = (0..8).map(|n| format!("turn {n}")).collect();
    let replies = join_all(texts.iter().map(|text| {
        let ask = chat.turn(text);
        let client = client.clone();
        async move { patient(&client, &ask).await }
    }))
    .await;
    assert!(replies.iter().all(|reply| reply.status() == "done"), "{replies:?}");
    // Each turn saw all before it: no two prompts have the same length.
    let mut order: Vec<usize> = (0..8).collect();
    order.sort_by_key(|&n| replies[n].input_tokens());
    let mut chat = Chat::new("crowd", 4);
    for n in order {
        chat.check(&client, &texts[n], &replies[n]).await;
    }
}

#[tokio::test]
async fn a_killed_worker_tears_no_session() {
    let options = FleetOptions { workers: 2, model: Model::SmolLm2, ..FleetOptions::default() };
    let (mut fleet, client) = Fleet::start(options).await;
    let mut chat = Chat::new("torn", 48);
    let first = "Tell me a story about a red boat.";
    let mut answers = client.open(&chat.turn(first).streamed()).await;
    assert_eq!(answers.next().await.status(), "accepted");
    assert_eq!(answers.next().await.status(), "chunk");
    let victim = fleet.first_taker().await;
    // The next turn is in before the first has an answer.
    let second = "What colour was it?";
    let mut next = client.open(&chat.turn(second)).await;
    fleet.workers[victim].kill9();
    let all = answers.all().await;
    let done = all.iter().find(|reply| reply.status() == "done" && !reply.is_end()).expect("the whole answer");
    chat.check(&client, first, done).await;
    chat.check(&client, second, &next.next().await).await;
    chat.say(&client, "And where did it go?").await;
}

#[tokio::test]
async fn sessions_outlive_their_redis() {
    let (mut fleet, client) = Fleet::start(FleetOptions { workers: 2, ..FleetOptions::default() }).await;
    let mut chat = Chat::new("long", 12);
    chat.say(&client, "One.").await;
    fleet.flush_redis().await;
    chat.say(&client, "Two.").await;
    fleet.flush_redis().await;
    chat.say(&client, "Three.").await;

    fleet.redis.stop();
    let stateless = Ask::json(&json!({"input": "No session", "params": {"max_tokens": 4}}));
    let start = std::time::Instant::now();
    assert_eq!(client.ask(&stateless).await.status(), "done");
    assert!(start.elapsed() < Duration::from_secs(5), "stateless work took {:?}", start.elapsed());
    let start = std::time::Instant::now();
    let refused = client.ask(&chat.turn("Four.")).await;
    assert_eq!(refused.code(), "unavailable");
    assert!(refused.value()["error"]["retry_after_ms"].as_u64() > Some(0));
    assert!(start.elapsed() < Duration::from_secs(6), "the refusal took {:?}", start.elapsed());

    // It comes back empty.
    fleet.redis.start_again();
    fleet.flush_redis().await;
    chat.say(&client, "Four.").await;
    assert_eq!(client.ask(&stateless).await.status(), "done");
}

#[tokio::test]
async fn a_forgotten_session_stays_forgotten() {
    let (fleet, client) = Fleet::start(FleetOptions::default()).await;
    Chat::new("brief", 8).say(&client, "Remember me.").await;
    assert_eq!(client.ask(&Ask::raw("brief").at("infer.sessions.forget")).await.code(), "");
    fleet.flush_redis().await;
    Chat::new("brief", 8).say(&client, "Who am I?").await;
}

#[tokio::test]
async fn a_turn_that_fails_leaves_no_trace() {
    let (_fleet, client) = Fleet::start(FleetOptions::default()).await;
    let mut chat = Chat::new("torn", 8);
    chat.say(&client, "One.").await;
    let long = chat.turn(&"word ".repeat(1_000));
    assert_eq!(client.ask(&long).await.code(), "context_too_long");
    chat.say(&client, "Two.").await;
}
