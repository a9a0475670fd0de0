//! What HTTP itself calls for, on every path: bodies and times that are bounded, errors in one form, headers that belong
//! to every answer.

use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::api::problem;

/// The largest body of a request, in bytes. The largest that means anything is a filter for the log.
pub(super) const BODY_LIMIT: usize = 16 * 1024;
/// For a body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest text of an error that is kept.
const ERROR_LIMIT: usize = 4 * 1024;

/// Reads the body before anything is done. One that is too large is refused by its length, without reading it.
pub(super) async fn body(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    if request.body().size_hint().lower() > BODY_LIMIT as u64 {
        return closing(StatusCode::PAYLOAD_TOO_LARGE, format!("a body has {BODY_LIMIT} bytes at most"));
    }
    let (parts, body) = request.into_parts();
    let read = Bytes::from_request(Request::from_parts(parts.clone(), body), &());
    match tokio::time::timeout(BODY_TIMEOUT, read).await {
        Ok(Ok(bytes)) => next.run(Request::from_parts(parts, Body::from(bytes))).await,
        Ok(Err(refused)) => closing(refused.status(), refused.body_text()),
        Err(_) => closing(StatusCode::REQUEST_TIMEOUT, "the body of the request did not arrive in time".to_owned()),
    }
}

/// The rest of the body would be taken for the next request.
fn closing(status: StatusCode, why: String) -> Response {
    (status, [(header::CONNECTION, "close")], why).into_response()
}

/// Completes every answer: errors of the API are JSON whoever made them, none is without a text, and nothing of the API
/// is kept by a cache.
pub(super) async fn tidy(request: Request, next: Next) -> Response {
    let is_api = request.uri().path().starts_with("/api/");
    let method = request.method().clone();
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.entry(header::X_CONTENT_TYPE_OPTIONS).or_insert(HeaderValue::from_static("nosniff"));
    if is_api {
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    }
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    // Another text has its own form, and may be a long one: a line for each HAProxy.
    let is_complete = if is_api { is_json(response.headers()) } else { response.body().size_hint().lower() > 0 };
    if !is_error || is_complete {
        return response;
    }
    let (parts, body) = response.into_parts();
    let text = to_bytes(body, ERROR_LIMIT).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let why = match text.trim() {
        "" => default_text(status, &method, &parts.headers),
        text => text.to_owned(),
    };
    let mut response = if is_api { problem(status, &why) } else { (status, why + "\n").into_response() };
    for (name, value) in &parts.headers {
        if *name != header::CONTENT_TYPE && *name != header::CONTENT_LENGTH {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}

/// For an error that came without a text.
fn default_text(status: StatusCode, method: &Method, headers: &HeaderMap) -> String {
    match status {
        StatusCode::NOT_FOUND => "there is nothing at this path".to_owned(),
        StatusCode::METHOD_NOT_ALLOWED => {
            let allowed = headers.get(header::ALLOW).and_then(|value| value.to_str().ok()).unwrap_or("another one");
            format!("this path does not take {method}; use {allowed}")
        }
        other => other.canonical_reason().unwrap_or("error").to_lowercase(),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/json"))
}
