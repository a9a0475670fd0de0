//! The part of `/api/v1` that makes the loops do something. Each of these needs a token.

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};

use crate::command::{Command, NotTaken};
use crate::leader::NotLeading;
use crate::plan::guard::Holding;
use crate::status::TargetStatus;

use super::api::{Problem, json, problem, text};
use super::auth::Authorized;
use super::{Asked, Shared};

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/api/v1/reconcile", post(reconcile))
        .route("/api/v1/guard/release", post(release))
        .route("/api/v1/log", get(log).put(set_log))
}

/// What became of a command, for one HAProxy.
#[derive(Debug, Serialize)]
struct Taken<'a> {
    name: &'a str,
    accepted: bool,
    /// Why it was not accepted.
    error: Option<String>,
    /// The instances that the guard holds: it lets go of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    held: Option<usize>,
}

/// A pass now.
async fn reconcile(
    _: Authorized,
    State(shared): State<Shared>,
    Query(asked): Query<Asked>,
) -> Result<Response, Problem> {
    send(&shared, &asked, || Command::Reconcile, |_| None)
}

/// The guard lets go of what it holds, and a pass runs.
async fn release(_: Authorized, State(shared): State<Shared>, Query(asked): Query<Asked>) -> Result<Response, Problem> {
    let held = |target: &TargetStatus| Some(target.guard.as_ref().map_or(0, Holding::instances));
    send(&shared, &asked, || Command::Release, held)
}

/// The status of an answer about this: another controller should be asked, or the same later.
pub(super) fn not_leading(error: &NotLeading) -> StatusCode {
    match error {
        NotLeading::Other(_) | NotLeading::Nameless => StatusCode::CONFLICT,
        NotLeading::Unknown(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// Leaves a command for each of the chosen loops, which act on it after this answer: 202. It is an error only if none
/// of them accepts it, or if this controller does not lead.
fn send(
    shared: &Shared,
    asked: &Asked,
    command: impl Fn() -> Command,
    held: impl Fn(&TargetStatus) -> Option<usize>,
) -> Result<Response, Problem> {
    let status = shared.faces.board.read();
    let chosen = status.chosen(asked.haproxy.as_deref())?;
    if chosen.is_empty() {
        return Err(Problem::no_haproxy());
    }
    if let Some(error) = status.not_leading() {
        return Err(Problem(not_leading(&error), format!("{error}; send this to the leader")));
    }
    let mut refused = None;
    let mut haproxys = Vec::new();
    for (name, target) in chosen {
        let taken = shared.faces.handles.get(name).ok_or(NotTaken::Ended).and_then(|handle| handle.send(command()));
        let error = taken.err();
        refused = refused.or(error);
        let error_text = error.map(|error| error.to_string());
        haproxys.push(Taken { name, accepted: error.is_none(), error: error_text, held: held(target) });
    }
    match refused {
        Some(error) if haproxys.iter().all(|taken| !taken.accepted) => {
            let status = match error {
                NotTaken::Busy => StatusCode::TOO_MANY_REQUESTS,
                NotTaken::Ended => StatusCode::SERVICE_UNAVAILABLE,
            };
            Err(Problem(status, error.to_string()))
        }
        _ => Ok(json(StatusCode::ACCEPTED, text(&serde_json::json!({ "haproxys": haproxys })))),
    }
}

/// `log.level` while the controller runs.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Level {
    level: String,
}

/// The level of the log.
async fn log(State(shared): State<Shared>) -> Response {
    json(StatusCode::OK, text(&serde_json::json!({ "level": shared.level.get() })))
}

/// Another level, until the controller ends or it is set again.
async fn set_log(_: Authorized, State(shared): State<Shared>, body: Bytes) -> Response {
    let Ok(Level { level }) = serde_json::from_slice(&body) else {
        return problem(StatusCode::BAD_REQUEST, "the body should be JSON such as {\"level\": \"debug\"}");
    };
    match shared.level.set(&level) {
        Ok(before) => json(StatusCode::OK, text(&serde_json::json!({ "level": level, "before": before }))),
        Err(bad) => problem(StatusCode::BAD_REQUEST, &bad.to_string()),
    }
}
