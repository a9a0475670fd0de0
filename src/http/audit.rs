//! The log of requests that need a token: who did what, from where, and the answer. Refused ones are logged, too, with a
//! limit: whoever sends them must not be able to fill the disk.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::extract::{Query, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use tokio::time::Instant;

use super::auth::Refusal;
use super::{Asked, Shared};

/// Refused requests that are logged in each [`WINDOW`]: enough to see what goes on.
const LINES: u32 = 10;
/// 10 lines a minute are 3 MB a day.
const WINDOW: Duration = Duration::from_secs(60);
/// Characters of a path in the log: it comes from outside.
const PATH: usize = 200;

/// Where a request comes from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) SocketAddr);

/// What the check of the credentials leaves for the log.
#[derive(Debug, Clone, Default)]
pub(super) struct Trail(Arc<TrailInner>);

#[derive(Debug, Default)]
struct TrailInner {
    who: OnceLock<String>,
    refusal: OnceLock<(Refusal, Option<String>)>,
}

impl Trail {
    /// The name of the token.
    pub(super) fn accepted(&self, who: &str) {
        // Whoever takes several credentials names the same user again.
        drop(self.0.who.set(who.to_owned()));
    }

    /// Why the request is refused, and which files of credentials cannot be read.
    pub(super) fn refused(&self, refusal: Refusal, unreadable: Option<String>) {
        drop(self.0.refusal.set((refusal, unreadable)));
    }
}

/// How many lines are left.
#[derive(Debug, Clone, Default)]
pub(super) struct Auditor(Arc<Mutex<Quota>>);

#[derive(Debug, Default)]
struct Quota {
    since: Option<Instant>,
    used: u32,
    dropped: u64,
}

impl Quota {
    /// Whether a line may be written, and if so, how many were not since the last one.
    fn take(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.duration_since(since) >= WINDOW) {
            (self.since, self.used) = (Some(now), 0);
        }
        if self.used == LINES {
            self.dropped += 1;
            return None;
        }
        self.used += 1;
        Some(std::mem::take(&mut self.dropped))
    }
}

/// Logs a request once it is answered, if it needed a token. The query is not logged but for the HAProxy's name, as a
/// client may put its token there by mistake.
pub(super) async fn audit(State(shared): State<Shared>, mut request: Request, next: Next) -> Response {
    let trail = Trail::default();
    request.extensions_mut().insert(trail.clone());
    let method = request.method().clone();
    let path: String = request.uri().path().chars().take(PATH).collect();
    let haproxy = Query::<Asked>::try_from_uri(request.uri()).ok().and_then(|Query(asked)| asked.haproxy);
    let haproxy = haproxy.map(|name| name.chars().take(PATH).collect::<String>());
    let from = request.extensions().get::<Peer>().map(|Peer(address)| address.to_string());
    let response = next.run(request).await;
    let (status, who, from) = (response.status().as_u16(), trail.0.who.get(), from.as_deref());
    let (path, haproxy) = (path.escape_debug(), haproxy.as_ref().map(|name| name.escape_debug().to_string()));
    if let Some((refusal, unreadable)) = trail.0.refusal.get() {
        let quota = shared.auditor.0.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
        if let Some(unlogged) = quota {
            tracing::warn!(
                who, from, %method, %path, haproxy, status, unreadable, unlogged, error = refusal.reason(),
                "a request to the API was refused"
            );
        }
    } else if who.is_some() && method == Method::GET {
        tracing::debug!(who, from, %method, %path, haproxy, status, "a request to the API");
    } else if who.is_some() {
        tracing::info!(who, from, %method, %path, haproxy, status, "a request to the API");
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refused_requests_is_a_few_lines_and_their_number() {
        let (mut quota, start) = (Quota::default(), Instant::now());
        let mut flood = |after| (0..1000).filter_map(|_| quota.take(start + after)).collect::<Vec<_>>();
        assert_eq!(flood(Duration::ZERO), [0; LINES as usize]);
        assert_eq!(flood(WINDOW.saturating_sub(Duration::from_millis(1))), [0; 0]);
        let next = flood(WINDOW);
        assert_eq!((next.len(), next[0], next[1]), (LINES as usize, 2000 - u64::from(LINES), 0));
    }
}
