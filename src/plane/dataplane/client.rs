//! The HTTP client of the Data Plane API: one request, one answer, one classifier of errors.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use crate::endpoint::{self, EndpointError, Identity, Tls, TlsFault};
use crate::haproxy::socket::SocketAddress;
use crate::haproxy::text::ConfigText;
use crate::leader::Lease;

use super::super::{AccessError, WriteError};
use super::leased::Leased;

/// For one answer without a validation or a reload.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Where the password comes from.
#[derive(Debug, Clone)]
pub enum Password {
    /// The password itself.
    Inline(SecretString),
    /// A file that is read for each request, as passwords are rotated.
    File(PathBuf),
}

/// How the API is reached.
#[derive(Debug, Clone)]
pub struct DataplaneConfig {
    /// `http://…` or `https://…`, with or without `/v3`, or `unix:///…`.
    pub address: String,
    /// Basic authentication.
    pub username: String,
    /// Never printed.
    pub password: Password,
    /// A CA to trust beside the system's.
    pub ca_file: Option<PathBuf>,
    /// A client certificate and its key.
    pub identity: Option<Identity>,
    /// A stats socket, of level admin, of the same HAProxy.
    pub runtime_socket: Option<SocketAddress>,
    /// The API's folder of map files; `None`: it is found out.
    pub maps_dir: Option<String>,
}

impl DataplaneConfig {
    /// Without TLS settings.
    pub fn new(address: impl Into<String>, username: impl Into<String>, password: SecretString) -> Self {
        let password = Password::Inline(password);
        Self {
            address: address.into(),
            username: username.into(),
            password,
            ca_file: None,
            identity: None,
            runtime_socket: None,
            maps_dir: None,
        }
    }
}

/// What the API answered, whatever the status.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// `Configuration-Version`, which every answer has.
    pub(super) version: Option<u64>,
    /// `Reload-Id`, if a reload was started and not waited for.
    pub(super) reload: Option<String>,
    /// A configuration is bytes.
    pub(super) body: Vec<u8>,
}

impl Answer {
    /// The API's own message, from `{"code", "message"}` if that is what it sent.
    pub(super) fn message(&self) -> String {
        let parsed: Option<Value> = serde_json::from_slice(&self.body).ok();
        let text = String::from_utf8_lossy(&self.body);
        let message = parsed.as_ref().and_then(|value| value["message"].as_str()).unwrap_or(&text);
        // In a validation error each of HAProxy's lines is `msg="…"`, after `line=N` if it names a line.
        let alert = |line: &str| {
            let (number, words) = line.split_once("msg=\"")?;
            let words = words.strip_suffix('"').unwrap_or(words);
            Some(match number.trim().strip_prefix("line=") {
                Some(number) => format!("line {number}: {words}"),
                None => words.to_owned(),
            })
        };
        let is_summary = |line: &String| {
            line.to_lowercase().contains("errors found in configuration") || line.contains("Error(s) found")
        };
        let lines: Vec<String> = message.lines().filter_map(alert).filter(|line| !is_summary(line)).collect();
        if lines.is_empty() { message.trim().to_owned() } else { lines.join("; ") }
    }

    /// Whether the configuration now has another version than this one.
    pub(super) fn moved(&self, version: u64) -> bool {
        self.version.is_some_and(|now| now != version)
    }

    /// The body as a configuration.
    pub(super) fn config_text(&self) -> ConfigText {
        ConfigText::from_bytes(&self.body)
    }

    /// The body as JSON.
    pub(super) fn json(&self) -> Result<Value, AccessError> {
        serde_json::from_slice(&self.body).map_err(|source| AccessError::Unavailable {
            what: "the Data Plane API did not answer with JSON".to_owned(),
            source: source.into(),
        })
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{status}: {message}")]
struct Unexpected {
    status: StatusCode,
    message: String,
}

/// A client with its credentials.
#[derive(Debug)]
pub(super) struct Client {
    settings: DataplaneConfig,
    http: reqwest::Client,
    base: String,
    lease: Lease,
}

/// The parts of a request that vary.
#[derive(Debug, Default)]
pub(super) struct Body {
    pub(super) json: Option<Value>,
    pub(super) text: Option<Vec<u8>>,
    pub(super) actions: Option<String>,
    /// A file that is uploaded: its name and its content.
    pub(super) upload: Option<(String, String)>,
    /// How long the answer may take, if HAProxy validates or reloads for it.
    pub(super) within: Option<Duration>,
}

impl Client {
    pub(super) fn new(settings: DataplaneConfig) -> Result<Self, AccessError> {
        let DataplaneConfig { address, ca_file, identity, .. } = &settings;
        let tls = Tls { ca_file: ca_file.clone(), identity: identity.clone(), ..Tls::default() };
        let (builder, base) = endpoint::client(address, &tls)
            .map_err(|EndpointError { what, source }| AccessError::Refused { what, source: Some(source) })?;
        // A header of run-time actions is larger than HTTP/2 accepts by default.
        let http = builder.timeout(TIMEOUT).http1_only().build().map_err(|source| AccessError::Refused {
            what: "cannot set up an HTTP client for the Data Plane API".to_owned(),
            source: Some(source.into()),
        })?;
        let base = base.strip_suffix("/v3").unwrap_or(&base).to_owned();
        Ok(Self { settings, http, base, lease: Lease::ALWAYS })
    }

    /// Writes for as long as this is good.
    pub(super) fn leased(self, lease: Lease) -> Self {
        Self { lease, ..self }
    }

    fn password(&self) -> Result<SecretString, AccessError> {
        match &self.settings.password {
            Password::Inline(password) => Ok(password.clone()),
            Password::File(path) => endpoint::read_secret(path).map_err(|source| AccessError::Refused {
                what: format!("cannot read the password file {} (`haproxy.password_file`)", path.display()),
                source: Some(source.into()),
            }),
        }
    }

    /// Classifies why there is no answer.
    fn unanswered(&self, what: &str, source: reqwest::Error) -> AccessError {
        let address = &self.settings.address;
        let source = source.without_url();
        let setting = match TlsFault::of(&source) {
            Some(TlsFault::Untrusted) => {
                "shows a certificate that is not trusted: check `haproxy.ca_file` (HAPROXY_CA_FILE), and that the \
                 certificate is for this host"
            }
            Some(TlsFault::Refused) => {
                "refuses the TLS connection: check `haproxy.cert_file` (HAPROXY_CERT_FILE) and `haproxy.key_file`, as \
                 it may ask for a client certificate"
            }
            Some(TlsFault::NoTls) | None => {
                let what = format!("the Data Plane API at {address} does not answer {what}");
                return AccessError::Unavailable { what, source: source.into() };
            }
        };
        AccessError::Refused { what: format!("the Data Plane API at {address} {setting}"), source: Some(source.into()) }
    }

    /// Sends a request and returns the answer, including errors of the API. [`AccessError::NotLeading`] if it changes
    /// anything.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Body,
    ) -> Result<Answer, AccessError> {
        let is_harmless = is_harmless(&method, path, query);
        // Of a write of the file the API asks for its version.
        let is_unversioned = !is_harmless && path.contains("/runtime/");
        if !is_harmless {
            self.lease.check().await?;
        }
        let base = &self.base;
        let what = format!("{method} {path}");
        let mut request = self
            .http
            .request(method, format!("{base}{path}"))
            .basic_auth(&self.settings.username, Some(self.password()?.expose_secret()))
            .query(query);
        if let Some(json) = &body.json {
            request = request.json(json);
        }
        if let Some(text) = body.text {
            request = request.header("Content-Type", "text/plain").body(text);
        }
        if let Some((name, content)) = body.upload {
            let (form, kind) = form(&name, &content);
            request = request.header("Content-Type", kind).body(form);
        }
        if let Some(within) = body.within {
            request = request.timeout(within);
        }
        if let Some(actions) = body.actions {
            request = request.header("X-Runtime-Actions", actions);
        }
        let unanswered = |source| self.unanswered(&what, source);
        let mut request = request.build().map_err(unanswered)?;
        let response = if is_unversioned {
            Leased::put_before(&mut request, &self.lease);
            self.lease.run(self.http.execute(request)).await?
        } else {
            self.http.execute(request).await
        };
        let response = response.map_err(unanswered)?;
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (status, version, reload) =
            (response.status(), header("Configuration-Version").and_then(|v| v.parse().ok()), header("Reload-Id"));
        let body = response.bytes().await.map_err(unanswered)?.to_vec();
        let answer = Answer { status, version, reload, body };
        tracing::debug!(request = %what, status = status.as_u16(), "data plane API");
        match status {
            // Without the answer's own message: version 3.0 repeats the password in it.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(AccessError::Refused {
                what: format!(
                    "the Data Plane API refuses the credentials ({status}): check haproxy.username and haproxy.password"
                ),
                source: None,
            }),
            _ => Ok(answer),
        }
    }

    /// A GET of something that must exist.
    pub(super) async fn get(&self, path: &str, query: &[(&str, &str)]) -> Result<Answer, AccessError> {
        let answer = self.send(Method::GET, path, query, Body::default()).await?;
        if answer.status.is_success() { Ok(answer) } else { Err(unavailable(&format!("GET {path}"), &answer)) }
    }
}

/// A file in a form (RFC 7578), and the content type. Neither name nor content may hold the boundary: both are ours.
fn form(name: &str, content: &str) -> (String, String) {
    const BOUNDARY: &str = "nomad-haproxy-end-of-file";
    let head = format!("Content-Disposition: form-data; name=\"file_upload\"; filename=\"{name}\"");
    let kind = "Content-Type: application/octet-stream";
    let form = format!("--{BOUNDARY}\r\n{head}\r\n{kind}\r\n\r\n{content}\r\n--{BOUNDARY}--\r\n");
    (form, format!("multipart/form-data; boundary={BOUNDARY}"))
}

/// Whether a request changes neither HAProxy nor its file: a read, a validation, or the end of a transaction that is not
/// committed. Of any other the lease is asked.
fn is_harmless(method: &Method, path: &str, query: &[(&str, &str)]) -> bool {
    *method == Method::GET
        || query.contains(&("only_validate", "true"))
        || (*method == Method::DELETE && path.starts_with(super::TRANSACTIONS))
}

/// An unexpected status of a read.
pub(super) fn unavailable(what: &str, answer: &Answer) -> AccessError {
    AccessError::Unavailable {
        what: format!("the Data Plane API answered {what} with an error"),
        source: Unexpected { status: answer.status, message: answer.message() }.into(),
    }
}

/// Interprets the status of a write. Only the HTTP status counts: the `code` in the body changed between versions.
pub(super) fn refused(what: &str, answer: &Answer) -> WriteError {
    let message = answer.message();
    match answer.status {
        StatusCode::CONFLICT | StatusCode::NOT_ACCEPTABLE => WriteError::Conflict(message),
        StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => WriteError::Invalid { message },
        _ => unavailable(what, answer).into(),
    }
}
