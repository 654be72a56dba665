//! Live, ready, and what is measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use runtime::bus::{Bus, connect};
use runtime::config::{LogFormat, Nats, Telemetry};
use runtime::health::{Health, Unready, check, serve};
use runtime::telemetry;
use tests::servers::NatsServer;
use tests::wait::until;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use std::net::SocketAddr;
use std::time::Duration;

async fn get(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
}

async fn ready(address: SocketAddr, status: u16) {
    until("readiness to change", Duration::from_secs(10), || async {
        get(address, "/readyz").await.filter(|answer| answer.0 == status)
    })
    .await;
}

#[tokio::test]
async fn without_nats_a_process_is_live_and_not_ready() {
    let mut server = NatsServer::start();
    let bus: Bus = connect(&Nats { url: server.url(), ..Nats::default() }, "test").await.unwrap();
    let guard = telemetry::init(&Telemetry { log: LogFormat::Json, filter: "warn".into(), listen: None }).unwrap();
    let connected = Arc::new(move || if bus.connected() { Ok(()) } else { Err("NATS is away".to_owned()) });
    let stop = CancellationToken::new();
    let health = Health { ready: connected, metrics: guard.metrics() };
    let address = serve("127.0.0.1:0".parse().unwrap(), health, stop.clone()).await.unwrap();

    ready(address, 200).await;
    server.stop();
    ready(address, 503).await;
    assert_eq!(get(address, "/livez").await, Some((200, "live\n".to_owned())));
    assert!(get(address, "/readyz").await.unwrap().1.contains("NATS"));
    server.start_again();
    ready(address, 200).await;
    assert!(get(address, "/metrics").await.unwrap().1.contains("flotilla_build_info{version="));
    stop.cancel();
    until("the server to end", Duration::from_secs(5), || async {
        get(address, "/livez").await.is_none().then_some(())
    })
    .await;
}

#[tokio::test]
async fn nats_that_is_not_there_yet_is_waited_for() {
    let mut server = NatsServer::start();
    let nats = Nats { url: server.url(), ..Nats::default() };
    server.stop();
    let early = tokio::spawn(async move { connect(&nats, "early").await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!early.is_finished());
    server.start_again();
    let bus = tokio::time::timeout(Duration::from_secs(10), early).await.unwrap().unwrap().unwrap();
    assert!(bus.connected());
    let bad = connect(&Nats { url: "nats://[bad".into(), ..Nats::default() }, "bad").await;
    assert!(matches!(bad, Err(runtime::Error::Setup(_))), "no wait mends a bad address");
}

/// The question of a container's health check, as `worker healthcheck` asks it.
async fn checked(listen: Option<SocketAddr>) -> Result<String, Unready> {
    let telemetry = Telemetry { listen, ..Telemetry::default() };
    tokio::task::spawn_blocking(move || check(&telemetry)).await.unwrap()
}

#[tokio::test]
async fn a_health_check_says_what_the_process_says() {
    let ready = Arc::new(AtomicBool::new(true));
    let asked = Arc::clone(&ready);
    let answer = Arc::new(move || if asked.load(Ordering::Relaxed) { Ok(()) } else { Err("starting".to_owned()) });
    let stop = CancellationToken::new();
    let guard = telemetry::init(&Telemetry { log: LogFormat::Json, filter: "warn".into(), listen: None }).unwrap();
    let health = Health { ready: answer, metrics: guard.metrics() };
    let address = serve("0.0.0.0:0".parse().unwrap(), health, stop.clone()).await.unwrap();
    assert_eq!(checked(Some(address)).await.unwrap(), "ready", "every interface is asked at home");
    ready.store(false, Ordering::Relaxed);
    assert!(matches!(checked(Some(address)).await, Err(Unready::Says(said)) if said == "starting (503)"));
    stop.cancel();
    until("nobody to answer", Duration::from_secs(5), || async {
        matches!(checked(Some(address)).await, Err(Unready::Says(said)) if said.contains("refused")).then_some(())
    })
    .await;
    assert!(matches!(checked(None).await, Err(Unready::Unserved)));
    assert!(matches!(checked(Some("127.0.0.1:0".parse().unwrap())).await, Err(Unready::Unserved)));
}

#[tokio::test]
async fn a_process_that_hangs_is_not_waited_for() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let said = checked(Some(listener.local_addr().unwrap())).await.unwrap_err().to_string();
    assert!(said.contains("does not answer within"), "{said}");
}
