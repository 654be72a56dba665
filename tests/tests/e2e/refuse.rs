//! Bad input: each has its stable code, is counted, and disturbs nobody.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::client::{Ask, Client, envelope};
use tests::fleet::{Fleet, FleetOptions};
use tests::media::{png, wav};
use tests::wait::until;

/// A name for a person, the message, its code.
type Case = (&'static str, Ask, &'static str);

fn bodies() -> Vec<Case> {
    let json_bomb = format!("{{\"input\":{}{}}}", "[".repeat(20_000), "]".repeat(20_000));
    // Arrays of one element within arrays, a hundred thousand of them.
    let mut msgpack_bomb = b"\x81\xa5input".to_vec();
    msgpack_bomb.extend([0x91; 100_000]);
    let mut lies_about_length = b"\x81\xa5input".to_vec();
    lies_about_length.extend([0xdd, 0xff, 0xff, 0xff, 0xff]);
    let as_json = |body: String| Ask::raw(body).header("Content-Type", "application/json");
    let as_msgpack = |body: Vec<u8>| Ask::raw(body).header("Content-Type", "application/msgpack");
    vec![
        ("empty", Ask::raw(""), "invalid_request"),
        ("invalid UTF-8", Ask::raw(&b"so \xff\xfe far"[..]), "unsupported_media"),
        ("a PDF", Ask::raw(&b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"[..]), "unsupported_media"),
        ("text as image", Ask::raw("a picture of a cat").at("infer.image"), "unsupported_media"),
        ("a PNG at the text door", Ask::raw(png(1, 1)).at("infer.text"), "unsupported_media"),
        ("sound called image", Ask::raw(wav()).at("infer.image"), "unsupported_media"),
        ("a PNG of no pixels", Ask::raw(png(0, 1)), "invalid_request"),
        ("a PNG of too many pixels", Ask::raw(png(100_000, 100_000)), "too_large"),
        ("a PNG that cannot hold its pixels", Ask::raw(png(6_000, 6_000)), "invalid_request"),
        ("a PNG cut short", Ask::raw(png(1, 1)[..20].to_vec()), "invalid_request"),
        ("a picture", Ask::raw(png(1, 1)), "model_not_found"),
        ("a sound", Ask::raw(wav()), "model_not_found"),
        ("a body over our limit", Ask::raw("x".repeat(7 * 1024 * 1024 + 1)), "too_large"),
        ("a prompt over the context", Ask::raw("word ".repeat(2_000)), "context_too_long"),
        ("JSON that is none", as_json("{\"input\":".into()), "invalid_request"),
        ("JSON of another kind", as_json("[1,2]".into()), "invalid_request"),
        ("a depth bomb in JSON", as_json(json_bomb.clone()), "invalid_request"),
        ("a depth bomb that looks like JSON", Ask::raw(json_bomb), "invalid_request"),
        ("a depth bomb in MessagePack", as_msgpack(msgpack_bomb), "invalid_request"),
        ("a length bomb in MessagePack", as_msgpack(lies_about_length), "invalid_request"),
        ("MessagePack that is none", as_msgpack(vec![0xc1]), "invalid_request"),
    ]
}

/// An envelope with one field changed.
fn with(field: &str, value: Value) -> Ask {
    let mut envelope = envelope("Hello", 4);
    envelope[field] = value;
    Ask::json(&envelope)
}

fn fields() -> Vec<Case> {
    let parameter = |name: &str, value: Value| with("params", json!({ name: value }));
    let part = |part: Value| with("input", json!([part]));
    let invalid = [
        ("an unknown field", with("temprature", json!(1))),
        ("an unknown parameter", parameter("max_token", json!(1))),
        ("no input", with("input", json!([]))),
        ("input of a wrong type", with("input", json!(7))),
        ("too many parts", with("input", json!(vec![json!({"type": "text", "text": "x"}); 257]))),
        ("an unknown type", part(json!({"type": "video", "data": ""}))),
        ("an unknown role", part(json!({"type": "text", "text": "x", "role": "god"}))),
        ("text without text", part(json!({"type": "text"}))),
        ("no base64", part(json!({"type": "image", "data": "§§§"}))),
        ("stream of a wrong type", with("stream", json!("yes"))),
        ("a negative deadline", with("deadline_ms", json!(-1))),
        ("no time at all", with("deadline_ms", json!(0))),
        ("two days", with("deadline_ms", json!(172_800_000_u64))),
        ("an unknown priority", with("priority", json!("urgent"))),
        ("an id that is no token", with("id", json!("a.b"))),
        ("a reserved id", with("id", json!("i17"))),
        ("a session too long", with("session", json!("x".repeat(129)))),
        ("a model that is no name", with("model", json!("../etc/passwd*"))),
        (
            "a session of no conversation",
            Ask::raw("x").header("Flotilla-Session", "a").header("Flotilla-Task", "embed"),
        ),
        ("an unknown pipeline", with("task", json!("make-coffee"))),
        ("negative max_tokens", parameter("max_tokens", json!(-5))),
        ("no max_tokens", parameter("max_tokens", json!(0))),
        ("huge max_tokens", parameter("max_tokens", json!(1e30))),
        ("heat", parameter("temperature", json!(2.5))),
        ("cold", parameter("temperature", json!(-0.1))),
        ("top_p of nothing", parameter("top_p", json!(0))),
        ("top_k of everything", parameter("top_k", json!(1001))),
        ("a negative seed", parameter("seed", json!(-1))),
        ("a stop of nothing", parameter("stop", json!([""]))),
        ("an unknown header", Ask::raw("Hello").header("Flotilla-Sesion", "a")),
        ("a header of a wrong type", Ask::raw("Hello").header("Flotilla-Stream", "maybe")),
        ("a header that is no number", Ask::raw("Hello").header("Flotilla-Deadline-Ms", "soon")),
        ("an unknown Accept", Ask::raw("Hello").header("Accept", "image/png")),
    ];
    let mut cases: Vec<Case> = invalid.into_iter().map(|(name, ask)| (name, ask, "invalid_request")).collect();
    cases.push(("an unknown model", with("model", json!("gpt-17")), "model_not_found"));
    cases.push(("an unknown precision", with("model", json!("tiny@f64")), "model_not_found"));
    cases.push(("a prompt and answer over the context", parameter("max_tokens", json!(511)), "context_too_long"));
    cases.push(("long headers", Ask::raw("Hello").header("X-Long", &"x".repeat(9_000)), "too_large"));
    cases
}

async fn p50(client: &Client) -> Duration {
    let mut times = Vec::new();
    for _ in 0..11 {
        let start = Instant::now();
        assert_eq!(client.ask(&Ask::text("Hello", 4)).await.status(), "done");
        times.push(start.elapsed());
    }
    times.sort();
    times[times.len() / 2]
}

#[tokio::test]
async fn bad_input_gets_its_code_and_disturbs_nobody() {
    let (fleet, client) = Fleet::start(FleetOptions::default()).await;
    p50(&client).await;
    let before = p50(&client).await;
    let mut wrong = Vec::new();
    for (name, ask, code) in bodies().into_iter().chain(fields()) {
        let reply = client.ask(&ask).await;
        if reply.code() != code {
            wrong.push(format!("{name}: {} {} instead of {code}", reply.status(), reply.code()));
        }
        assert_eq!(client.ask(&Ask::text("Hello", 4)).await.status(), "done", "after {name}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let after = p50(&client).await;
    assert!(after < before * 3 + Duration::from_millis(20), "{before:?} before, {after:?} after");

    for code in ["invalid_request", "unsupported_media", "too_large", "model_not_found"] {
        let counted = fleet.dispatcher.metric("flotilla_errors_total", &format!("code=\"{code}\"")).await;
        assert!(counted >= 2.0, "{code} was counted {counted} times");
    }
    // Over the server's own limit the client library refuses.
    let huge = client.nats.publish("infer", vec![b'x'; 8 * 1024 * 1024 + 1].into()).await;
    assert!(huge.is_err());
    assert_eq!(client.ask(&Ask::text("Hello", 4)).await.status(), "done");
}

#[tokio::test]
async fn an_error_is_a_complete_reply() {
    let (_fleet, client) = Fleet::start(FleetOptions::default()).await;
    let ask = with("nonsense", json!(1));
    let reply = client.ask(&ask).await;
    assert!(reply.header("Nats-Service-Error").starts_with("invalid_request: "));
    assert_eq!((reply.header("Nats-Service-Error-Code"), reply.status()), ("400", "failed"));
    let error = &reply.value()["error"];
    assert_eq!((&error["code"], &error["retryable"]), (&json!("invalid_request"), &json!(false)));
    assert!(error["message"].as_str().is_some_and(|message| message.contains("nonsense")));

    let msgpack = client.ask(&Ask::msgpack(&json!({"input": "x", "nonsense": 1}))).await;
    assert_eq!((msgpack.header("Content-Type"), msgpack.code().as_str()), ("application/msgpack", "invalid_request"));

    // A stream that fails at the door, and one that fails at the worker: the error, then the end mark.
    for (ask, code) in [(ask, "invalid_request"), (Ask::raw("word ".repeat(2_000)), "context_too_long")] {
        let all = client.open(&ask.streamed()).await.all().await;
        let failed = &all[all.len() - 2];
        assert_eq!(failed.code(), code);
        assert!(all.last().is_some_and(|end| end.is_end() && end.status() == "failed"), "{all:?}");
    }
}

#[tokio::test]
async fn a_reply_to_stays_out_of_the_fleet() {
    let (_fleet, client) = Fleet::start(FleetOptions::default()).await;
    let bad = [
        "$JS.API.STREAM.PURGE.JOBS",
        "$SYS.REQ.SERVER.PING",
        "result.default.forged",
        "infer",
        "infer.cancel",
        "submit.default",
        "jobs.text.tiny.interactive",
        "done.default.x",
        "cancel.default.x",
        "fleet.worker.x",
        "my.*",
        "my.>",
        "my..answers",
    ];
    let submitted = client.taken("INGRESS").await;
    for reply_to in bad {
        let reply = client.ask(&Ask::text("Hello", 4).header("Flotilla-Reply-To", reply_to)).await;
        assert_eq!(reply.code(), "invalid_request", "{reply_to}");
        // As the core reply there is nobody to be told, but nothing may be sent there either.
        if !reply_to.contains(['*', '>']) && !reply_to.contains("..") {
            let ask = Ask::text("Hello", 4);
            let sent = client.nats.publish_with_reply_and_headers("infer", reply_to, ask.headers, ask.body);
            sent.await.unwrap();
        }
    }
    assert_eq!(client.ask(&Ask::text("Hello", 4)).await.status(), "done");
    let results = client.subjects("RESULTS").await;
    assert_eq!(results.len(), 1, "only the good one: {results:?}");
    assert_eq!((client.taken("JOBS").await, client.taken("INGRESS").await), (1, submitted));

    let mut answers = client.listen("my.answers").await;
    let mut inbox = client.open(&Ask::text("Hello", 4).header("Flotilla-Reply-To", "my.answers")).await;
    assert_eq!(answers.next().await.status(), "done");
    assert!(inbox.within(Duration::from_millis(200)).await.is_none());
}

#[tokio::test]
async fn bad_submissions_end_with_their_code() {
    let (_fleet, client) = Fleet::start(FleetOptions::default()).await;
    let cases = [
        (Ask::raw(""), "invalid_request"),
        (with("nonsense", json!(1)), "invalid_request"),
        (Ask::raw(&b"\xff\xfe"[..]), "unsupported_media"),
        (with("model", json!("gpt-17")), "model_not_found"),
        (Ask::raw("word ".repeat(2_000)), "context_too_long"),
        (Ask::raw(png(1, 1)), "model_not_found"),
        (Ask::raw("Hello").header("Flotilla-Reply-To", "$JS.API.STREAM.DELETE.RESULTS"), "invalid_request"),
    ];
    for (ask, code) in cases {
        let job = client.submit("default", &ask).await;
        assert_eq!(client.settled(&job).await.code(), code, "{job}");
    }
    // A tenant that is none: nobody can be answered, and nothing may get stuck.
    client.submit("ten$ant", &Ask::raw("Hello")).await;
    let good = client.submit("default", &Ask::text("Hello", 4)).await;
    assert_eq!(client.settled(&good).await.status(), "done");
    until("an empty INGRESS", Duration::from_secs(20), || async { (client.held("INGRESS").await == 0).then_some(()) })
        .await;
}
