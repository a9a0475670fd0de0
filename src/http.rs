//! `/healthz`, `/readyz`, `/metrics`, and the API.

mod act;
mod api;
mod auth;
mod view;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::fleet::Faces;
use crate::health::NotReady;
use crate::metrics::Format;
use crate::{health, shutdown};

pub use auth::{Access, Secret};

/// For the header of a request, also of the next one on a kept-alive connection: longer than most intervals between
/// scrapes and probes, so that these can reuse their connections.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// From an error of `accept` (no descriptors left) to the next attempt.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

#[derive(Clone)]
struct Shared {
    faces: Faces,
    access: Arc<Access>,
    rendered: api::Rendered,
}

/// Opens the listener, so that a port in use is reported before anything else begins.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves until it is stopped, and then for at most [`shutdown::ANSWERS`]: idle connections are closed at once, the
/// others after their answer or when the time is over.
pub async fn serve(
    listener: TcpListener,
    faces: Faces,
    access: Access,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let shared = Shared { faces, access: Arc::new(access), rendered: api::Rendered::default() };
    let service = TowerToHyperService::new(router(shared));
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    // Dropping the set aborts its tasks.
    let (graceful, mut connections) = (GracefulShutdown::new(), JoinSet::new());
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let connection = http.serve_connection(TokioIo::new(stream), service.clone());
        // A connection that fails concerns only its client.
        let connection = graceful.watch(connection);
        connections.spawn(async move { drop(connection.await) });
    }
    drop(listener);
    if tokio::time::timeout(shutdown::ANSWERS, graceful.shutdown()).await.is_err() {
        tracing::debug!("clients of the HTTP listener did not take their answers in time");
    }
    Ok(())
}

fn router(shared: Shared) -> Router {
    Router::new()
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics_text))
        .merge(api::routes())
        .merge(act::routes())
        .with_state(shared)
}

async fn alive(State(shared): State<Shared>) -> (StatusCode, &'static str) {
    if shared.faces.board.read().is_live(Instant::now()) {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not alive: a pass does not end\n")
    }
}

#[derive(Deserialize)]
struct Asked {
    haproxy: Option<String>,
}

async fn ready(State(shared): State<Shared>, Query(asked): Query<Asked>) -> (StatusCode, String) {
    let status = shared.faces.board.read();
    if status.is_searching {
        let why = "not ready: the registrations of haproxy.service have not been read yet\n";
        return (StatusCode::SERVICE_UNAVAILABLE, why.to_owned());
    }
    match health::not_ready(&status, asked.haproxy.as_deref(), Instant::now()) {
        Ok(not_ready) if not_ready.is_empty() => (StatusCode::OK, "ok\n".to_owned()),
        Ok(not_ready) => {
            let is_named = status.targets.len() > 1;
            let line = |(name, why): &(String, NotReady)| match is_named {
                true => format!("{name}: {why}"),
                // A single one needs no name.
                false => why.to_string(),
            };
            let lines: Vec<String> = not_ready.iter().map(line).collect();
            (StatusCode::SERVICE_UNAVAILABLE, lines.join("\n") + "\n")
        }
        Err(unknown) => (StatusCode::NOT_FOUND, format!("{unknown}\n")),
    }
}

async fn metrics_text(State(shared): State<Shared>, headers: HeaderMap) -> impl IntoResponse {
    let accepted = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let format = Format::accepted(accepted);
    ([(header::CONTENT_TYPE, format.content_type())], shared.faces.metrics.render(format))
}
