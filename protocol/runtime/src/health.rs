//! `/livez`, `/readyz` and `/metrics`, and the question that a container's health check puts to them.

mod check;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::Error;
use crate::telemetry::Metrics;

pub use check::{Unready, check, healthcheck};

/// Why a process should get no work; `Ok` where it should.
pub type Ready = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What is served.
#[derive(Clone)]
pub struct Health {
    /// Asked at every `/readyz`. NATS lost = not ready, still live.
    pub ready: Ready,
    /// For `/metrics`.
    pub metrics: Metrics,
}

/// Serves until `stop`; returns the address as soon as it listens. That `/livez` answers is that the event loop lives.
pub async fn serve(listen: SocketAddr, health: Health, stop: CancellationToken) -> Result<SocketAddr, Error> {
    let setup = |error: std::io::Error| Error::Setup(format!("telemetry.listen {listen}: {error}"));
    let listener = tokio::net::TcpListener::bind(listen).await.map_err(setup)?;
    let address = listener.local_addr().map_err(setup)?;
    let router = Router::new()
        .route("/livez", get(|| async { "live\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(health);
    tokio::spawn(async move {
        tokio::select! {
            ended = axum::serve(listener, router).into_future() => warn!(?ended, "health server ended"),
            () = stop.cancelled() => {}
        }
    });
    info!(%address, "serving /livez, /readyz and /metrics");
    Ok(address)
}

async fn readyz(State(health): State<Health>) -> impl IntoResponse {
    match (health.ready)() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn metrics(State(health): State<Health>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], health.metrics.render())
}
