//! The fleet shows itself by the means of NATS and Prometheus.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use tests::client::{Ask, Client};
use tests::fleet::{Fleet, FleetOptions};
use tests::wait::until;

/// What services answer to one of the standard questions, by service.
async fn services(client: &Client, subject: &str) -> BTreeMap<String, Vec<Value>> {
    let mut answers = client.open(&Ask::raw("").at(subject)).await;
    let mut services: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    while let Some(reply) = answers.within(Duration::from_millis(500)).await {
        let value = reply.value();
        services.entry(value["name"].as_str().unwrap().to_owned()).or_default().push(value);
    }
    services
}

#[tokio::test]
async fn the_fleet_is_micro_services() {
    let (_fleet, client) = Fleet::start(FleetOptions { workers: 2, ..FleetOptions::default() }).await;
    let ping = services(&client, "$SRV.PING").await;
    assert_eq!((ping["flotilla-dispatcher"].len(), ping["flotilla-worker"].len()), (1, 2));

    let info = services(&client, "$SRV.INFO.flotilla-dispatcher").await;
    let endpoints = info["flotilla-dispatcher"][0]["endpoints"].as_array().unwrap().clone();
    let subjects: Vec<&str> = endpoints.iter().filter_map(|endpoint| endpoint["subject"].as_str()).collect();
    for door in [
        "infer",
        "infer.text",
        "infer.image",
        "infer.audio",
        "infer.result",
        "infer.cancel",
        "infer.sessions.get",
        "infer.sessions.forget",
    ] {
        assert!(subjects.contains(&door), "{door} is not among {subjects:?}");
    }
    client.ask(&Ask::text("Hello", 4)).await;
    let stats = services(&client, "$SRV.STATS.flotilla-dispatcher").await;
    let endpoints = stats["flotilla-dispatcher"][0]["endpoints"].as_array().unwrap().clone();
    let infer = endpoints.iter().find(|endpoint| endpoint["subject"] == "infer").unwrap();
    assert!(infer["num_requests"].as_u64() >= Some(1), "{infer}");
}

#[tokio::test]
async fn both_roles_measure_what_they_do() {
    let (fleet, client) = Fleet::start(FleetOptions::default()).await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let secret = "zanzibar-9481";
    client.ask(&Ask::text(secret, 4).header("traceparent", trace)).await;
    client.open(&Ask::text("Hello", 8).streamed()).await.all().await;
    let seen = [
        (&fleet.dispatcher, "flotilla_requests_total"),
        (&fleet.dispatcher, "flotilla_dispatch_classified_total"),
        (&fleet.dispatcher, "flotilla_admission_seconds_count"),
        (&fleet.workers[0], "flotilla_queue_wait_seconds_count"),
        (&fleet.workers[0], "flotilla_time_to_first_token_seconds_count"),
        (&fleet.workers[0], "flotilla_inter_token_seconds_count"),
        (&fleet.workers[0], "flotilla_tokens_total"),
        (&fleet.workers[0], "flotilla_step_seconds_count"),
        (&fleet.workers[0], "flotilla_batch_sequences_count"),
    ];
    for (role, metric) in seen {
        until(metric, Duration::from_secs(5), || async { (role.metric(metric, "").await > 0.0).then_some(()) }).await;
    }
    let out = fleet.workers[0].metric("flotilla_tokens_total", "direction=\"out\"").await;
    assert!((out - 12.0).abs() < 0.5, "{out} tokens were counted, not 12");
    for role in [&fleet.dispatcher, &fleet.workers[0]] {
        assert_eq!(role.get("/livez").await.unwrap().0, 200);
        assert!(!role.log().contains(secret), "a prompt was logged");
    }
}
