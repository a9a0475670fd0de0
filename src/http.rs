//! `/healthz`, `/readyz`, `/metrics`, the API, and the page.

mod act;
mod api;
mod audit;
mod auth;
mod haproxy_health;
mod limits;
mod page;
mod view;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;

use crate::fleet::Faces;
use crate::health::NotReady;
use crate::leader::Leadership;
use crate::metrics::Format;
use crate::telemetry::LogLevel;
use crate::{health, shutdown};

pub use auth::{Access, Secret};

/// For the header of a request, also of the next one on a kept-alive connection: longer than most intervals between
/// scrapes and probes, so that these can reuse their connections.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The head of a request, in bytes: twice what common servers take for one header.
const HEAD_LIMIT: usize = 16 * 1024;
/// For a client to take something of its answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections at the same time. A process may have 1024 descriptors by default: half of them are left for HAProxy,
/// Nomad and files. Those beyond wait until others end; when few places are left, each ends with its answer.
const CONNECTIONS: usize = 512;
/// Connections that wait for a place. Beyond the 128 of the standard library Linux drops those that arrive together, and
/// their clients try again after a second (seen).
const QUEUE: u32 = 1024;
/// From an error of `accept` (no descriptors left) to the next attempt.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);

#[derive(Clone)]
struct Shared {
    faces: Faces,
    access: Arc<Access>,
    /// Of our tags.
    prefix: Arc<str>,
    level: LogLevel,
    auditor: audit::Auditor,
    rendered: api::Rendered,
}

/// What the API needs to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// Who may use its protected part.
    pub access: Access,
    /// The prefix of our tags.
    pub prefix: String,
    /// The level of the log.
    pub level: LogLevel,
}

/// Opens the listener, so that a port in use is reported before anything else begins.
pub fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Another controller that has just ended leaves its port in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(QUEUE)
}

/// Serves until it is stopped, and then for at most [`shutdown::ANSWERS`]: idle connections are closed at once, the
/// others after their answer or when the time is over.
pub async fn serve(
    listener: TcpListener,
    faces: Faces,
    options: Options,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let Options { access, prefix, level } = options;
    let (access, prefix) = (Arc::new(access), prefix.into());
    let (auditor, rendered) = (audit::Auditor::default(), api::Rendered::default());
    let router = TowerToHyperService::new(router(Shared { faces, access, prefix, level, auditor, rendered }));
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_LIMIT);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    // Dropping the set aborts its tasks.
    let (graceful, mut connections) = (GracefulShutdown::new(), JoinSet::new());
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept(&listener, &places) => accepted,
        };
        let Ok((stream, peer, place)) = accepted else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let service = service_fn({
            let (router, places) = (router.clone(), places.clone());
            move |mut request: hyper::Request<Incoming>| {
                request.extensions_mut().insert(audit::Peer(peer));
                let (answer, places) = (router.call(request), places.clone());
                async move {
                    let mut response = answer.await?;
                    if places.available_permits() < CONNECTIONS / 4 {
                        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                    }
                    Ok::<_, Infallible>(response)
                }
            }
        });
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(WRITE_TIMEOUT));
        let connection = http.serve_connection(TokioIo::new(Box::pin(stream)), service);
        let connection = graceful.watch(connection);
        connections.spawn(async move {
            // A connection that fails concerns only its client.
            drop(connection.await);
            drop(place);
        });
    }
    drop(listener);
    if tokio::time::timeout(shutdown::ANSWERS, graceful.shutdown()).await.is_err() {
        tracing::debug!("clients of the HTTP listener did not take their answers in time");
    }
    Ok(())
}

/// The next connection, as soon as there is a place for it.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    Ok((stream, peer, place))
}

fn router(shared: Shared) -> Router {
    let router = Router::new()
        .route("/healthz", get(alive))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics_text))
        .merge(api::routes())
        .merge(act::routes())
        .merge(page::routes())
        .merge(haproxy_health::routes())
        .layer(from_fn(limits::body))
        .layer(DefaultBodyLimit::max(limits::BODY_LIMIT))
        .layer(from_fn_with_state(shared.clone(), audit::audit))
        .with_state(shared);
    // Around the router: it adds `Allow` to an answer outside of its own layers.
    Router::new().fallback_service(router).layer(from_fn(limits::tidy))
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
    let now = Instant::now();
    if let Some(why) = status.leadership.as_ref().and_then(|leadership| health::unelected(leadership, now)) {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"));
    }
    match health::not_ready(&status, asked.haproxy.as_deref(), now) {
        Ok(not_ready) if not_ready.is_empty() => {
            let stands_by = matches!(status.leadership, Some(Leadership::StandsBy { .. }));
            (StatusCode::OK, if stands_by { "standby\n" } else { "ok\n" }.to_owned())
        }
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
