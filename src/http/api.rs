//! `/api/v1`: what the controller knows, as JSON. Views of its status: none of them reads
//! HAProxy or Nomad.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::time::Instant;

use crate::desired::ServiceKey;
use crate::explain::explain;
use crate::plan::display::Summary;
use crate::status::{Status, TargetStatus, UnknownName};

use super::view::{PassView, StatusView, Time};
use super::{Asked, Shared};

/// For this long one text of the status serves all who ask, unless something changes: readiness depends on the time.
const SERVED_FOR: Duration = Duration::from_secs(1);

/// The last text of the status: a thousand requests take one serialisation.
#[derive(Debug, Clone, Default)]
pub(super) struct Rendered(Arc<Mutex<Option<(u64, Instant, Bytes)>>>);

impl Rendered {
    fn of(&self, status: &Status) -> Bytes {
        let now = Instant::now();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((revision, at, text)) = &*known
            && *revision == status.revision
            && now.duration_since(*at) < SERVED_FOR
        {
            return text.clone();
        }
        let text = Bytes::from(text(&StatusView::new(status, now)));
        known.insert((status.revision, now, text)).2.clone()
    }
}

pub(super) fn routes() -> Router<Shared> {
    Router::new()
        .route("/api/v1/status", get(status))
        .route("/api/v1/passes", get(passes))
        .route("/api/v1/plan", get(plan))
        .route("/api/v1/services/{name}", get(service))
        .route("/api/openapi.json", get(openapi))
}

/// The description of the API for programs. `tests/e2e/openapi.rs` holds the running server to it.
async fn openapi() -> Response {
    json(StatusCode::OK, include_str!("openapi.json"))
}

/// The whole state.
async fn status(State(shared): State<Shared>) -> Response {
    json(StatusCode::OK, shared.rendered.of(&shared.faces.board.read()))
}

#[derive(Serialize)]
struct Passes<'a> {
    name: &'a str,
    passes: Vec<PassView<'a>>,
}

/// The last passes that did something or failed, the newest first, with their diffs.
async fn passes(State(shared): State<Shared>, Query(asked): Query<Asked>) -> Result<Response, Problem> {
    of_each(&shared, &asked, |name, target| {
        let passes = target.history.iter().map(|pass| PassView::new(pass)).collect();
        serde_json::to_value(Passes { name, passes }).unwrap_or_default()
    })
}

/// What is left to do on one HAProxy.
#[derive(Serialize)]
struct Plan<'a> {
    name: &'a str,
    /// When the pass ended that this is from.
    planned: Option<Time>,
    /// Why that pass failed, if it did.
    error: Option<&'a str>,
    #[serde(flatten)]
    summary: Cow<'a, Summary>,
}

/// What the next pass would do, as far as the last one knew.
async fn plan(State(shared): State<Shared>, Query(asked): Query<Asked>) -> Result<Response, Problem> {
    of_each(&shared, &asked, |name, target| {
        let summary = match target.pending.as_deref() {
            Some(pending) => Cow::Borrowed(pending),
            None => Cow::Owned(nothing_left(target)),
        };
        let last = target.last.as_deref();
        let (planned, error) = (last.map(|pass| Time(pass.ended)), last.and_then(|pass| pass.error.as_deref()));
        serde_json::to_value(Plan { name, planned, error, summary }).unwrap_or_default()
    })
}

/// The same of all HAProxys, or of the one that is asked for.
fn of_each(shared: &Shared, asked: &Asked, of: impl Fn(&str, &TargetStatus) -> Value) -> Result<Response, Problem> {
    let status = shared.faces.board.read();
    let chosen = status.chosen(asked.haproxy.as_deref())?;
    let haproxys: Vec<_> = chosen.into_iter().map(|(name, target)| of(name, target)).collect();
    Ok(json(StatusCode::OK, text(&serde_json::json!({ "haproxys": haproxys }))))
}

fn nothing_left(target: &TargetStatus) -> Summary {
    Summary {
        changes: false,
        live: true,
        backends: Vec::new(),
        routes: Vec::new(),
        frontends: Vec::new(),
        notes: target.notes.to_vec(),
        namespaces: target.namespaces.to_vec(),
        guard: target.guard.clone(),
        surplus: 0,
        reload: Vec::new(),
        rerendered_lines: 0,
        blocked: None,
        diff: String::new(),
    }
}

#[derive(Deserialize)]
struct AskedService {
    haproxy: Option<String>,
    namespace: Option<String>,
}

/// Why a service is, or is not, routed. Also a service that nobody knows has an answer.
async fn service(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    Query(AskedService { haproxy, namespace }): Query<AskedService>,
) -> Result<Response, Problem> {
    let service = match namespace {
        Some(namespace) => ServiceKey { namespace, name },
        None => name.as_str().into(),
    };
    let status = shared.faces.board.read();
    let chosen = status.chosen(haproxy.as_deref())?;
    Ok(json(StatusCode::OK, text(&explain(&status, &chosen, &service, &shared.prefix))))
}

/// An error of a request.
pub(super) struct Problem(pub(super) StatusCode, pub(super) String);

impl Problem {
    /// No HAProxy is registered, or the registrations have not been read yet.
    pub(super) fn no_haproxy() -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, "no HAProxy is known yet; try again".to_owned())
    }
}

impl From<UnknownName> for Problem {
    fn from(unknown: UnknownName) -> Self {
        Self(StatusCode::NOT_FOUND, unknown.to_string())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        problem(self.0, &self.1)
    }
}

/// Every error: `{"error": WHY}`.
pub(super) fn problem(status: StatusCode, why: &str) -> Response {
    json(status, text(&serde_json::json!({ "error": why })))
}

pub(super) fn json(status: StatusCode, text: impl Into<axum::body::Body>) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], text.into()).into_response()
}

pub(super) fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("our types have string keys, and their serialisation does not fail")
}
