//! `/healthz`, `/readyz` and `/metrics`.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::desired::Note;
use crate::metrics::Metrics;

/// A pass may take this long before the loop counts as stuck: its slowest step, a reload, has a minute,
/// and there are several.
const STUCK_AFTER: Duration = Duration::from_secs(300);

/// What the loop tells of itself.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    /// Milliseconds since the start.
    last_turn: AtomicU64,
    converged: AtomicBool,
    notes: Mutex<Vec<Note>>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            last_turn: AtomicU64::new(0),
            converged: AtomicBool::new(false),
            notes: Mutex::default(),
        }
    }
}

impl Health {
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The loop turns.
    pub fn turned(&self) {
        self.last_turn.store(self.now(), Ordering::Relaxed);
    }

    /// A pass ended with HAProxy in line with the catalog.
    pub fn converged(&self) {
        self.converged.store(true, Ordering::Relaxed);
    }

    /// Takes the notes of a pass; whether they differ from the ones before.
    pub fn notes_changed(&self, notes: &[Note]) -> bool {
        let mut known = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = *known != notes;
        *known = notes.to_vec();
        changed
    }

    /// Whether the loop turns.
    pub fn is_live(&self) -> bool {
        Duration::from_millis(self.now().saturating_sub(self.last_turn.load(Ordering::Relaxed))) < STUCK_AFTER
    }

    /// Whether one pass has converged.
    pub fn is_ready(&self) -> bool {
        self.converged.load(Ordering::Relaxed)
    }
}

#[derive(Clone)]
struct Shared {
    metrics: Arc<Metrics>,
    health: Arc<Health>,
}

/// Opens the listener, so that a port that is taken is known before anything else begins.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Serves until it is told to stop.
pub async fn serve(
    listener: TcpListener,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let router = Router::new()
        .route(
            "/healthz",
            get(async |State(shared): State<Shared>| answer(shared.health.is_live(), "the loop has stopped")),
        )
        .route(
            "/readyz",
            get(async |State(shared): State<Shared>| answer(shared.health.is_ready(), "no pass has converged yet")),
        )
        .route("/metrics", get(metrics_text))
        .with_state(Shared { metrics, health });
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

fn answer(good: bool, otherwise: &'static str) -> (StatusCode, &'static str) {
    if good { (StatusCode::OK, "ok\n") } else { (StatusCode::SERVICE_UNAVAILABLE, otherwise) }
}

async fn metrics_text(State(shared): State<Shared>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], shared.metrics.render())
}
