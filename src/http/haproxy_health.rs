//! `/api/health`: the health of HAProxy, in the keys, the nesting and the capitals that its users know. A figure that is
//! not known is `null`.
//!
//! With several HAProxys an answer is about the worst of them, the first by name of those that are equally bad, and
//! `?haproxy=NAME` about one; the header `X-Haproxy-Name` says which.

mod ask;
mod view;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use axum::routing::{get, post};
use serde::Serialize;
use tokio::time::Instant;

use crate::health::Condition;
use crate::status::{Status, TargetStatus};

use super::api::{Problem, json, text};
use super::{Asked, Shared};
use view::{HaproxyView, SystemView};

/// Which HAProxy an answer is about.
const NAME: &str = "x-haproxy-name";

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/api/health/system", get(system))
        .route("/api/health/haproxy", get(haproxy))
        .route("/api/health/haproxy/stats", get(ask::stats))
        .route("/api/health/haproxy/validate", get(ask::validate))
        .route("/api/health/haproxy/recover", post(ask::recover))
}

/// The HAProxy of this name, or the worst one.
fn chosen<'a>(status: &'a Status, asked: &Asked, now: Instant) -> Result<(&'a str, &'a TargetStatus), Problem> {
    worst(status.chosen(asked.haproxy.as_deref())?, now).ok_or_else(Problem::no_haproxy)
}

/// The first of the worst.
fn worst<'a>(all: Vec<(&'a str, &'a TargetStatus)>, now: Instant) -> Option<(&'a str, &'a TargetStatus)> {
    // The last of equal ones is the greatest.
    all.into_iter().rev().max_by_key(|(_, target)| Condition::of(target, now))
}

/// A monitor that only looks at the status has the answer, too.
fn status_of(condition: Condition) -> StatusCode {
    match condition {
        Condition::Healthy | Condition::Degraded => StatusCode::OK,
        Condition::Unhealthy => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// An answer about this HAProxy.
fn about(name: &str, status: StatusCode, body: &impl Serialize) -> Response {
    let mut response = json(status, text(body));
    // A name that no header can carry is in no header.
    if let Ok(name) = HeaderValue::from_str(name) {
        response.headers_mut().insert(NAME, name);
    }
    response
}

async fn system(State(shared): State<Shared>, Query(asked): Query<Asked>) -> Result<Response, Problem> {
    let (status, now) = (shared.faces.board.read(), Instant::now());
    let condition = match &asked.haproxy {
        // Asked for one, the others do not count.
        Some(_) => None,
        None => Some(Condition::of_all(&status, now)),
    };
    let worst = worst(status.chosen(asked.haproxy.as_deref())?, now);
    let condition = condition.or(worst.map(|(_, target)| Condition::of(target, now))).unwrap_or(Condition::Degraded);
    let view = SystemView::new(condition, worst.map(|(_, target)| target), now);
    Ok(about(worst.map_or("", |(name, _)| name), status_of(condition), &view))
}

async fn haproxy(State(shared): State<Shared>, Query(asked): Query<Asked>) -> Result<Response, Problem> {
    let (status, now) = (shared.faces.board.read(), Instant::now());
    let (name, target) = chosen(&status, &asked, now)?;
    Ok(about(name, status_of(Condition::of(target, now)), &HaproxyView::new(target, now)))
}
