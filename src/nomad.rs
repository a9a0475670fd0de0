//! Nomad's HTTP API: ACL token, TLS, unix socket, and one classifier of errors. [`lock`]: a lock on a variable.

pub mod lock;

mod lines;

use std::path::PathBuf;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use thiserror::Error;

use crate::endpoint::{self, EndpointError, Tls, TlsFault};

pub use lines::Lines;

/// For one answer to a non-blocking read. Without a leader Nomad answers after 5 s (seen).
const TIMEOUT: Duration = Duration::from_secs(15);
/// How much longer than its `wait` a blocking query may take: Nomad adds up to a sixteenth, and through a client agent
/// whose server was frozen it never ended by itself (seen: 345 s for `wait=10s`).
const BLOCKING_SLACK: Duration = Duration::from_secs(10);

/// Where the token comes from.
#[derive(Debug, Clone, Default)]
pub enum Token {
    /// There is none: ACLs are off.
    #[default]
    None,
    /// The token itself.
    Inline(SecretString),
    /// A file that is read for each request: Nomad rotates the token of a workload identity.
    File(PathBuf),
}

/// How Nomad is reached.
#[derive(Debug, Clone)]
pub struct NomadConfig {
    /// `http://…`, `https://…` or `unix:///…/api.sock`.
    pub address: String,
    /// The ACL token.
    pub token: Token,
    /// The region; by default Nomad's own.
    pub region: Option<String>,
    /// For `https://…`.
    pub tls: Tls,
    /// User and password for a proxy in front of Nomad (basic authentication).
    pub http_auth: Option<(String, SecretString)>,
}

/// Why a request has no usable answer.
#[derive(Debug, Error)]
pub enum NomadError {
    /// A client cannot be set up with these settings.
    #[error("{what}")]
    Settings {
        /// Which, and why.
        what: String,
        #[source]
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The request cannot be built: a service's name is longer than a URI may be (65 534 bytes).
    #[error("Nomad cannot be asked for {path}")]
    Request {
        /// The path, shortened.
        path: String,
        #[source]
        /// What went wrong.
        source: reqwest::Error,
    },
    /// No answer.
    #[error("Nomad at {address} does not answer")]
    Unreachable {
        /// The address that was used.
        address: String,
        #[source]
        /// What went wrong.
        source: reqwest::Error,
    },
    /// No connection, because of TLS.
    #[error("Nomad at {address} {}", tls_fault(*.fault))]
    Tls {
        /// The address that was used.
        address: String,
        /// What is wrong.
        fault: TlsFault,
        #[source]
        /// What went wrong.
        source: reqwest::Error,
    },
    /// An answer other than 200.
    #[error("Nomad answered {path} with {status}: {message}")]
    Status {
        /// The path, shortened.
        path: String,
        /// The status.
        status: StatusCode,
        /// Nomad's message, shortened.
        message: String,
    },
    /// 401: nobody is authenticated.
    #[error(
        "Nomad at {address} wants to know who asks (401): the Task API needs a token (nomad.token_file, NOMAD_TOKEN), a \
         proxy in front of Nomad nomad.http_auth (NOMAD_HTTP_AUTH); if it is neither, check nomad.address (NOMAD_ADDR)"
    )]
    Unauthenticated {
        /// The address that was used.
        address: String,
    },
    /// 403, or a 200 that Nomad gives to a token without rights.
    #[error(
        "Nomad does not let this token read {what}; it needs the capability read-job there (nomad.token, NOMAD_TOKEN)"
    )]
    Denied {
        /// What it may not read.
        what: String,
    },
    /// 200 without an index.
    #[error(
        "what answers at {address} is no Nomad: its answer has no X-Nomad-Index; check nomad.address (NOMAD_ADDR), and any \
         proxy in front of it"
    )]
    Foreign {
        /// The address that was used.
        address: String,
    },
    /// An answer that is not JSON, or not the expected JSON.
    #[error("Nomad's answer to {path} cannot be read")]
    Form {
        /// The path.
        path: String,
        #[source]
        /// Where and what.
        source: serde_json::Error,
    },
    /// An answer that may be from before the state was restored.
    #[error("Nomad has no leader at the moment, so its answer may be old")]
    NoLeader,
    /// A server that answers for itself has not heard from the leader for too long.
    #[error("Nomad's answer is too old: its server last heard from the leader {} ms ago", .age.as_millis())]
    Stale {
        /// How long ago.
        age: Duration,
    },
    /// The event stream ended, or gave nothing for too long.
    #[error("{0}")]
    Stream(&'static str),
}

impl NomadConfig {
    /// Without a token, and without anything for TLS.
    pub fn new(address: impl Into<String>) -> Self {
        Self { address: address.into(), token: Token::None, region: None, tls: Tls::default(), http_auth: None }
    }
}

/// Which server's answer counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// The leader's.
    Leader,
    /// Any server's that has heard from the leader within this time. Even so it may be from before the leader's last
    /// change, or from before a restore (seen).
    Any(Duration),
}

/// An answer with its index.
#[derive(Debug)]
pub struct Read<T> {
    /// `X-Nomad-Index`, 1 or above.
    pub index: u64,
    /// The body.
    pub value: T,
}

/// A client of one Nomad.
#[derive(Debug, Clone)]
pub struct Nomad {
    http: reqwest::Client,
    base: String,
    settings: NomadConfig,
}

impl NomadError {
    /// Whether Nomad answered that there is no such thing.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Status { status: StatusCode::NOT_FOUND, .. })
    }

    /// Whether Nomad took too long for this request.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Unreachable { source, .. } if source.is_timeout())
    }

    /// Whether the same request may have an answer a moment later.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Status { status, .. } => status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS,
            Self::Unreachable { .. } | Self::NoLeader | Self::Stale { .. } => true,
            _ => false,
        }
    }

    /// Whether Nomad cannot be reached for any request. A time-out may be caused by one request alone.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Unreachable { source, .. } => source.is_connect(),
            Self::Tls { .. } | Self::Unauthenticated { .. } => true,
            _ => false,
        }
    }
}

impl Nomad {
    /// Sets up a client; nothing is sent yet.
    pub fn new(settings: NomadConfig) -> Result<Self, NomadError> {
        let (builder, base) = endpoint::client(&settings.address, &settings.tls)
            .map_err(|EndpointError { what, source }| NomadError::Settings { what, source })?;
        let http = builder.build().map_err(|source| NomadError::Settings {
            what: "cannot set up an HTTP client for Nomad".to_owned(),
            source: source.into(),
        })?;
        Ok(Self { http, base, settings })
    }

    /// A read that must be consistent, complete and allowed: anything else is an error, and an error is never an empty
    /// answer.
    pub async fn read<T: DeserializeOwned>(&self, path: &str, query: &[(&str, &str)]) -> Result<Read<T>, NomadError> {
        self.get(path, query, TIMEOUT, Consistency::Leader).await
    }

    /// The same, from whichever server's answer counts.
    pub async fn read_from<T: DeserializeOwned>(
        &self,
        consistency: Consistency,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<Read<T>, NomadError> {
        self.get(path, query, TIMEOUT, consistency).await
    }

    /// The same, once the index has moved past `index`, or after `wait`.
    pub async fn wait<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
        index: u64,
        wait: Duration,
    ) -> Result<Read<T>, NomadError> {
        let (index, seconds) = (index.to_string(), format!("{}s", wait.as_secs()));
        let query: Vec<_> =
            query.iter().copied().chain([("index", index.as_str()), ("wait", seconds.as_str())]).collect();
        self.get(path, &query, wait + wait / 16 + BLOCKING_SLACK, Consistency::Leader).await
    }

    /// Any answer to a read, whatever its status and index: its status and its text. For `check`.
    pub async fn ask(&self, path: &str, query: &[(&str, &str)]) -> Result<(StatusCode, String), NomadError> {
        let request = self.request(Method::GET, path, query)?.timeout(TIMEOUT);
        let unreachable = |source| self.unreachable(path, source);
        let response = request.send().await.map_err(unreachable)?;
        match response.status() {
            status @ StatusCode::UNAUTHORIZED => Err(self.refused(status, &[], path, query)),
            status => Ok((status, response.text().await.map_err(unreachable)?)),
        }
    }

    /// Begins an answer that has no end, in lines. 200 is no permission yet: Nomad sends it before it looks at the
    /// token (seen).
    pub async fn lines(&self, path: &str, query: &[(&str, &str)]) -> Result<Lines, NomadError> {
        let request = self.request(Method::GET, path, query)?;
        let response = match tokio::time::timeout(TIMEOUT, request.send()).await {
            Ok(response) => response.map_err(|source| self.unreachable(path, source))?,
            Err(_) => return Err(NomadError::Stream("Nomad did not answer the request for the event stream")),
        };
        match response.status() {
            StatusCode::OK => Ok(Lines::new(response, self.settings.address.clone())),
            status => {
                let body = tokio::time::timeout(TIMEOUT, response.bytes()).await;
                Err(self.refused(status, &body.ok().and_then(Result::ok).unwrap_or_default(), path, query))
            }
        }
    }

    async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        query: &[(&str, &str)],
        timeout: Duration,
        consistency: Consistency,
    ) -> Result<Read<T>, NomadError> {
        let mut request = self.request(Method::GET, path, query)?.timeout(timeout);
        if let Consistency::Any(_) = consistency {
            request = request.query(&[("stale", "true")]);
        }
        let response = request.send().await.map_err(|source| self.unreachable(path, source))?;
        let status = response.status();
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let index = header("X-Nomad-Index").and_then(|index| index.parse::<u64>().ok());
        let known_leader = header("X-Nomad-KnownLeader");
        let last_contact = header("X-Nomad-LastContact").and_then(|time| time.parse().ok()).map(Duration::from_millis);
        let body = response.bytes().await.map_err(|source| self.unreachable(path, source))?;
        if status != StatusCode::OK {
            return Err(self.refused(status, &body, path, query));
        }
        let index = match index {
            None => return Err(NomadError::Foreign { address: self.settings.address.clone() }),
            // A valid token without rights gets `200 []` and index 0 for namespace=* (seen).
            Some(0) => return Err(NomadError::Denied { what: describe(path, query) }),
            Some(index) => index,
        };
        if known_leader.as_deref() == Some("false") {
            return Err(NomadError::NoLeader);
        }
        if let Consistency::Any(bound) = consistency {
            let age = last_contact.unwrap_or(Duration::MAX);
            if age > bound {
                return Err(NomadError::Stale { age });
            }
        }
        let value =
            serde_json::from_slice(&body).map_err(|source| NomadError::Form { path: shortened(path), source })?;
        Ok(Read { index, value })
    }

    /// With the region and the token of the settings.
    fn request(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<reqwest::RequestBuilder, NomadError> {
        let mut request = self.http.request(method, format!("{}{path}", self.base)).query(query);
        if let Some(region) = &self.settings.region {
            request = request.query(&[("region", region)]);
        }
        if let Some((user, password)) = &self.settings.http_auth {
            request = request.basic_auth(user, Some(password.expose_secret()));
        }
        if let Some(token) = self.token()? {
            request = request.header("X-Nomad-Token", token.expose_secret());
        }
        Ok(request)
    }

    fn unreachable(&self, path: &str, source: reqwest::Error) -> NomadError {
        match source.without_url() {
            source if source.is_builder() => NomadError::Request { path: shortened(path), source },
            source => {
                let address = self.settings.address.clone();
                match TlsFault::of(&source) {
                    Some(fault) => NomadError::Tls { address, fault, source },
                    None => NomadError::Unreachable { address, source },
                }
            }
        }
    }

    /// What an answer other than 200 means.
    fn refused(&self, status: StatusCode, body: &[u8], path: &str, query: &[(&str, &str)]) -> NomadError {
        match status {
            StatusCode::UNAUTHORIZED => NomadError::Unauthenticated { address: self.settings.address.clone() },
            StatusCode::FORBIDDEN => NomadError::Denied { what: describe(path, query) },
            _ => {
                let message: String = String::from_utf8_lossy(body).trim().chars().take(200).collect();
                NomadError::Status { path: shortened(path), status, message }
            }
        }
    }

    fn token(&self) -> Result<Option<SecretString>, NomadError> {
        match &self.settings.token {
            Token::None => Ok(None),
            Token::Inline(token) => Ok(Some(token.clone())),
            Token::File(path) => match endpoint::read_secret(path) {
                Ok(token) => Ok(Some(token)),
                Err(source) => Err(NomadError::Settings {
                    what: format!("cannot read the token file {}", path.display()),
                    source: source.into(),
                }),
            },
        }
    }
}

/// What to do about it.
fn tls_fault(fault: TlsFault) -> &'static str {
    match fault {
        TlsFault::Untrusted => {
            "shows a certificate that is not trusted: check nomad.ca_file (NOMAD_CACERT), and that the certificate is \
             for this host; for another name, such as server.global.nomad, set nomad.tls_server_name \
             (NOMAD_TLS_SERVER_NAME)"
        }
        TlsFault::Refused => {
            "refuses the TLS connection: check nomad.cert_file (NOMAD_CLIENT_CERT) and nomad.key_file \
             (NOMAD_CLIENT_KEY), as it may ask for a client certificate"
        }
        TlsFault::NoTls => "does not speak TLS: its address in nomad.address (NOMAD_ADDR) may be http://…",
    }
}

/// A path for people: the name of a service in it may have 60 kB.
fn shortened(path: &str) -> String {
    match path.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", &path[..end]),
        None => path.to_owned(),
    }
}

fn describe(path: &str, query: &[(&str, &str)]) -> String {
    match query.iter().find(|(key, _)| *key == "namespace") {
        Some((_, "*")) => "services in any namespace".to_owned(),
        Some((_, namespace)) => format!("services in the namespace {namespace}"),
        None => shortened(path),
    }
}
