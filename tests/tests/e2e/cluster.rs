//! Three NATS servers that keep every stream three times: one of them, any of them, may go.

use std::time::Duration;

use serde_json::Value;
use tests::client::{Ask, Client, PATIENCE, Reply};
use tests::fleet::{FleetOptions, configuration};
use tests::role::Role;
use tests::servers::{NatsCluster, RedisServer};
use tests::wait::until;

/// Longest time for a new leader, and for a client to find another server.
const ELECTION: Duration = Duration::from_secs(30);

async fn connect(cluster: &NatsCluster) -> Client {
    let servers: Vec<String> = cluster.url().split(',').map(str::to_owned).collect();
    Client::connect_any(&servers).await
}

/// What is known of a stream that has a leader. While leaders change, a question may get no answer.
async fn led(client: &Client, stream: &str) -> Value {
    until("a leader", ELECTION, || async {
        let query = Ask::raw("").at(&format!("$JS.API.STREAM.INFO.{stream}"));
        let reply = client.open(&query).await.within(Duration::from_secs(2)).await?;
        let info: Value = serde_json::from_slice(&reply.body).ok()?;
        info["cluster"]["leader"].is_string().then_some(info)
    })
    .await
}

async fn answered(client: &Client) {
    until("an answer", ELECTION, || async {
        let reply = client.open(&Ask::text("Hello", 4)).await.within(Duration::from_secs(5)).await?;
        (reply.status() == "done").then_some(())
    })
    .await;
}

/// A job of the durable door, stored: while leaders change, a publish may get no answer. One id, so one job.
async fn submitted(client: &Client, id: &str) {
    let ask = Ask::text("By the other door", 200).at("submit.default").header("Flotilla-Id", id);
    until("a PubAck", ELECTION, || async {
        let ack = client.open(&ask).await.within(Duration::from_secs(5)).await?;
        let ack: Value = serde_json::from_slice(&ack.body).ok()?;
        ack["seq"].is_u64().then_some(())
    })
    .await;
}

/// Its record: while leaders change, one that is there may be out of reach, which the door says as `unavailable`.
async fn settled(client: &Client, id: &str) -> Reply {
    let ask = Ask::raw(id.to_owned()).at("infer.result");
    until("a record", PATIENCE, || async {
        let reply = client.open(&ask).await.within(Duration::from_secs(5)).await?;
        (!["pending", "not_found", "unavailable"].contains(&reply.code().as_str())).then_some(reply)
    })
    .await
}

#[tokio::test]
async fn a_fleet_outlives_the_loss_of_any_server() {
    // The roles come at the same time as the servers, before there is a leader.
    let (mut cluster, redis) = (NatsCluster::start(), RedisServer::start());
    let folder = tempfile::tempdir().unwrap();
    let options = FleetOptions { durability: "strict", ..FleetOptions::default() };
    let text = configuration(&cluster.url(), &redis, &options, folder.path());
    std::fs::write(folder.path().join("flotilla.toml"), text).unwrap();
    let mut worker = Role::start("worker", "worker", folder.path());
    let mut dispatcher = Role::start("dispatcher", "dispatcher", folder.path());
    dispatcher.ready().await;
    worker.ready().await;
    let client = connect(&cluster).await;
    answered(&client).await;

    // First the server that leads the queue, then, with that one back, the server that leads the results.
    for (round, stream) in ["JOBS", "RESULTS"].into_iter().enumerate() {
        let job = format!("round-{round}");
        submitted(&client, &job).await;
        let leader = led(&client, stream).await["cluster"]["leader"].as_str().unwrap_or_default().to_owned();
        let gone = cluster.stop(&leader);
        answered(&client).await;
        assert_eq!(settled(&client, &job).await.status(), "done", "round {round}");
        cluster.start_again(gone);
    }
    answered(&client).await;
    assert_eq!(led(&client, "DEADLETTER").await["state"]["messages"], 0);
}
