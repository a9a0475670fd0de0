//! The three requests that make HAProxy work: its statistics, a validation, a recovery. They need a token, take turns on
//! each HAProxy, end within a time, and send nothing past an open circuit breaker but its probe.

use std::time::{Duration, SystemTime};

use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedMutexGuard, oneshot};
use tokio::time::{Instant, timeout};

use crate::apply::Outcome;
use crate::breaker;
use crate::command::{Command, Handle, NotRecovered, NotTaken};
use crate::errors::{chain, one_line};
use crate::haproxy::stats::{Fields, Kind, Row, Stats};
use crate::health::Condition;
use crate::plane::{AccessError, Verdict};
use crate::status::{FileVerdict, TargetStatus};

use super::super::act::not_leading;
use super::super::api::Problem;
use super::super::auth::{Admin, Authorized};
use super::super::view::Time;
use super::super::{Asked, Shared};
use super::{about, chosen};

/// How long a request waits for the ones before it.
const WAIT: Duration = Duration::from_secs(5);
/// When it may be repeated, in seconds.
const RETRY_AFTER: &str = "5";
/// For the statistics: the Data Plane API takes 5 s for 10,000 servers.
const STATS_TIMEOUT: Duration = Duration::from_secs(30);
/// For a validation; HAProxy's own time-out is `haproxy.validation_timeout`, a minute by default.
const VALIDATE_TIMEOUT: Duration = Duration::from_secs(90);
/// For a recovery: the end of the pass that runs, a reload, and a pass.
const RECOVER_TIMEOUT: Duration = Duration::from_secs(180);

/// Why there is no answer of HAProxy.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the circuit breaker is open: HAProxy, or its Data Plane API, did not answer; the next probe is {0}")]
    Open(String),
    #[error("other requests wait for this HAProxy; try again in {RETRY_AFTER} s")]
    Busy,
    #[error(transparent)]
    NotTaken(#[from] NotTaken),
    #[error("HAProxy did not answer within {0:?}")]
    TooLong(Duration),
    #[error("HAProxy, or its Data Plane API, gives no answer: {0}")]
    Access(String),
    #[error(transparent)]
    NotRecovered(#[from] NotRecovered),
    #[error("HAProxy loaded its configuration again, but is not in line with the catalog: {0}")]
    OutOfLine(String),
}

impl From<AccessError> for Failure {
    fn from(error: AccessError) -> Self {
        Self::Access(one_line(&chain(&error)))
    }
}

impl Failure {
    fn status(&self) -> StatusCode {
        match self {
            Self::Open(_)
            | Self::Busy
            | Self::NotTaken(_)
            | Self::Access(_)
            | Self::NotRecovered(NotRecovered::Unreachable(_)) => StatusCode::SERVICE_UNAVAILABLE,
            Self::NotRecovered(NotRecovered::NotLeading(error)) => not_leading(error),
            Self::NotRecovered(NotRecovered::NotLoaded(_)) | Self::OutOfLine(_) => StatusCode::BAD_GATEWAY,
            Self::TooLong(_) => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    fn response(&self, name: &str, body: &impl Serialize) -> Response {
        let mut response = about(name, self.status(), body);
        if let Self::Busy | Self::NotTaken(NotTaken::Busy) = self {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(RETRY_AFTER));
        }
        response
    }
}

/// The HAProxy that a request is about.
struct Target {
    name: String,
    status: TargetStatus,
    handle: Handle,
}

/// Which one it is.
fn target(shared: &Shared, asked: &Asked) -> Result<Target, Problem> {
    let status = shared.faces.board.read();
    let (name, target) = chosen(&status, asked, Instant::now())?;
    let gone = || Problem(StatusCode::SERVICE_UNAVAILABLE, NotTaken::Ended.to_string());
    let handle = shared.faces.handles.get(name).ok_or_else(gone)?;
    Ok(Target { name: name.to_owned(), status: target.clone(), handle })
}

impl Target {
    /// Waits for its turn, unless the breaker is open.
    async fn turn(&self) -> Result<OwnedMutexGuard<()>, Failure> {
        if let Some(breaker) = self.status.breaker.filter(|breaker| breaker.state != breaker::State::Closed) {
            let next = breaker.next_probe.map(|at| format!("due at {}", humantime::format_rfc3339_seconds(at)));
            return Err(Failure::Open(next.unwrap_or_else(|| "answered, and a pass runs".to_owned())));
        }
        timeout(WAIT, self.handle.turn()).await.map_err(|_| Failure::Busy)
    }
}

/// An answer without a result.
#[derive(Serialize)]
struct Failed {
    success: bool,
    message: String,
}

#[derive(Serialize)]
struct StatsView<'a> {
    success: bool,
    timestamp: Time,
    frontends: Vec<&'a Row>,
    backends: Vec<&'a Row>,
    servers: Vec<&'a Row>,
}

/// What HAProxy counts, of everything that it has.
pub(super) async fn stats(_: Authorized, State(shared): State<Shared>, Query(asked): Query<Asked>) -> Response {
    let target = match target(&shared, &asked) {
        Ok(target) => target,
        Err(problem) => return problem.into_response(),
    };
    let work = async {
        let _turn = target.turn().await?;
        let asked = timeout(STATS_TIMEOUT, target.handle.plane.stats(Fields::All)).await;
        Ok::<Stats, Failure>(asked.map_err(|_| Failure::TooLong(STATS_TIMEOUT))??)
    };
    match work.await {
        Ok(stats) => {
            let of = |kind| stats.of(kind).collect();
            let (frontends, backends, servers) = (of(Kind::Frontend), of(Kind::Backend), of(Kind::Server));
            let timestamp = Time(SystemTime::now());
            let view = StatsView { success: true, timestamp, frontends, backends, servers };
            about(&target.name, StatusCode::OK, &view)
        }
        Err(failure) => failure.response(&target.name, &Failed { success: false, message: failure.to_string() }),
    }
}

#[derive(Serialize)]
struct ValidView {
    success: bool,
    /// `null`: HAProxy did not say.
    valid: Option<bool>,
    message: String,
}

/// Has HAProxy validate its configuration file as it is now.
pub(super) async fn validate(_: Authorized, State(shared): State<Shared>, Query(asked): Query<Asked>) -> Response {
    let target = match target(&shared, &asked) {
        Ok(target) => target,
        Err(problem) => return problem.into_response(),
    };
    let plane = &target.handle.plane;
    let work = async {
        let _turn = target.turn().await?;
        let validated = timeout(VALIDATE_TIMEOUT, async {
            let text = plane.observe().await?.text;
            Ok::<_, AccessError>((text.fingerprint(), plane.validate(&text).await?))
        });
        Ok::<_, Failure>(validated.await.map_err(|_| Failure::TooLong(VALIDATE_TIMEOUT))??)
    };
    let (file, is_valid, message) = match work.await {
        Ok((file, Verdict::Valid)) => (file, true, "HAProxy configuration is valid".to_owned()),
        // HAProxy's message may quote the file: only who has the token gets it.
        Ok((file, Verdict::Refused(message))) => {
            (file, false, format!("HAProxy configuration is not valid: {message}"))
        }
        Ok((_, Verdict::TooLong(limit))) => {
            let view = ValidView { success: false, valid: None, message: Verdict::TooLong(limit).to_string() };
            return about(&target.name, StatusCode::GATEWAY_TIMEOUT, &view);
        }
        Err(failure) => {
            let view = ValidView { success: false, valid: None, message: failure.to_string() };
            return failure.response(&target.name, &view);
        }
    };
    shared.faces.board.update_target(&target.name, |target| {
        (target.file, target.verdict) = (Some(file), Some(FileVerdict { file, is_valid }));
    });
    about(&target.name, StatusCode::OK, &ValidView { success: true, valid: Some(is_valid), message })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    Reload,
    Restart,
}

#[derive(Debug, Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Wanted {
    #[serde(default)]
    action: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct AskedToRecover {
    haproxy: Option<String>,
    action: Option<String>,
}

#[derive(Serialize)]
struct RecoverView {
    success: bool,
    message: String,
    action: Action,
}

/// Why neither plane does it.
const NO_RESTART: &str = "HAProxy is not restarted: the Data Plane API has no call for it, and HAProxy's master can \
    only reload; ask its supervisor (`systemctl restart haproxy`, `nomad alloc restart ALLOC`), or send this request \
    with the action `reload`";
/// Several, all of them healthy, and none is named.
const WHICH: &str = "all HAProxys are healthy: say which one to reload with `?haproxy=NAME`";

/// Has HAProxy load its configuration again, and brings it in line with the catalog.
pub(super) async fn recover(
    _: Admin,
    State(shared): State<Shared>,
    Query(asked): Query<AskedToRecover>,
    body: Bytes,
) -> Response {
    let AskedToRecover { haproxy, action } = asked;
    let action = match wanted(action, &body) {
        Ok(action) => action,
        Err(why) => return Problem(StatusCode::BAD_REQUEST, why).into_response(),
    };
    let asked = Asked { haproxy };
    let target = match target(&shared, &asked) {
        Ok(target) => target,
        Err(problem) => return problem.into_response(),
    };
    let answer =
        |status, success, message: String| about(&target.name, status, &RecoverView { success, message, action });
    if action == Action::Restart {
        return answer(StatusCode::NOT_IMPLEMENTED, false, NO_RESTART.to_owned());
    }
    let is_one_of_several = asked.haproxy.is_none() && shared.faces.board.read().targets.len() > 1;
    if is_one_of_several && Condition::of(&target.status, Instant::now()) == Condition::Healthy {
        return answer(StatusCode::CONFLICT, false, WHICH.to_owned());
    }
    match recovered(&shared, &target).await {
        Ok(()) => answer(StatusCode::OK, true, "HAProxy service recovered successfully".to_owned()),
        Err(failure) => {
            failure.response(&target.name, &RecoverView { success: false, message: failure.to_string(), action })
        }
    }
}

/// The action that the query or the body asks for; both may be without one.
fn wanted(in_query: Option<String>, body: &[u8]) -> Result<Action, String> {
    let in_body = match body.trim_ascii() {
        [] => Wanted::default(),
        body => serde_json::from_slice(body)
            .map_err(|error| format!("the body is neither empty nor `{{\"action\": \"reload\"}}`: {error}"))?,
    };
    match in_query.or(in_body.action).as_deref() {
        None | Some("reload") => Ok(Action::Reload),
        Some("restart") => Ok(Action::Restart),
        Some(other) => Err(format!("there is no action {other:?}: leave it out, or send `reload`")),
    }
}

/// The loop sends a probe first, whatever the state of the breaker, and nothing else if that is not answered.
async fn recovered(shared: &Shared, target: &Target) -> Result<(), Failure> {
    let _turn = timeout(WAIT, target.handle.turn()).await.map_err(|_| Failure::Busy)?;
    let (sender, answer) = oneshot::channel();
    target.handle.send(Command::Recover(sender))?;
    let answer = timeout(RECOVER_TIMEOUT, answer).await.map_err(|_| Failure::TooLong(RECOVER_TIMEOUT))?;
    // The loop ended before it got to this.
    match answer.map_err(|_| NotTaken::Ended)?? {
        Outcome::Failed => {
            let status = shared.faces.board.read();
            let last = status.targets.get(&target.name).and_then(|target| target.last.clone());
            Err(Failure::OutOfLine(last.and_then(|pass| pass.error.clone()).unwrap_or_default()))
        }
        Outcome::Unchanged | Outcome::Applied | Outcome::Repaired | Outcome::Standby => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_action_is_in_the_query_or_in_the_body() {
        let action = |query: Option<&str>, body: &str| wanted(query.map(str::to_owned), body.as_bytes());
        for (query, body, expected) in [
            (None, "", Action::Reload),
            (None, " \n", Action::Reload),
            (None, "{}", Action::Reload),
            (Some("reload"), "", Action::Reload),
            (Some("restart"), "", Action::Restart),
            (None, "{\"action\": \"restart\"}", Action::Restart),
            (None, "{\"action\": null}", Action::Reload),
        ] {
            assert_eq!(action(query, body), Ok(expected), "{query:?} {body}");
        }
        for (query, body) in
            [(Some("stop"), ""), (None, "{\"action\": \"stop\"}"), (None, "restart"), (None, "{\"act\": \"restart\"}")]
        {
            let why = action(query, body).expect_err(body);
            assert!(why.contains("reload"), "{why}");
        }
    }
}
