//! A fake Data Plane API on a real HAProxy, for machines without the real one: the parts of version 3 that the
//! controller uses, compared with fixtures/dataplane by tests/e2e/contract.rs.
//!
//! It keeps the configuration in its memory, as the real one does, and writes the file from that. A reload without
//! waiting is made at once, where the real one waits for up to its `reload_delay`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::wait_for;
use render::Config;

mod json;
mod maps;
mod render;
mod runtime;

const MAX_TRANSACTIONS: usize = 20;

struct Transaction {
    config: Config,
    failed: bool,
}

struct Reload {
    id: String,
    failure: Option<String>,
}

struct Inner {
    /// What structured edits are based on. The file differs from it after a reload that failed.
    memory: Config,
    /// The file as it was when the API started, or wrote it: a different one was written by another writer.
    seen: Vec<u8>,
    /// The file that was loaded last. A write without a reload does not change it.
    last_good: Vec<u8>,
    transactions: BTreeMap<String, Transaction>,
    reloads: Vec<Reload>,
    ids: usize,
}

pub struct FakeApi {
    config: PathBuf,
    binary: PathBuf,
    master: PathBuf,
    series: String,
    inner: Mutex<Inner>,
    /// One commit at a time.
    commits: tokio::sync::Mutex<()>,
    /// One command on HAProxy's socket at a time, including reloads.
    commands: tokio::sync::Mutex<()>,
}

struct Answer {
    status: StatusCode,
    body: Body,
    reload: Option<String>,
}

enum Body {
    Nothing,
    Json(Value),
    Text(Vec<u8>),
}

struct Request<'a> {
    method: &'a Method,
    path: &'a str,
    query: BTreeMap<String, String>,
    headers: &'a HeaderMap,
    body: &'a [u8],
}

impl Request<'_> {
    fn flag(&self, name: &str) -> bool {
        self.query.get(name).is_some_and(|value| value == "true")
    }

    fn version(&self) -> Option<u64> {
        self.query.get("version")?.parse().ok()
    }

    fn transaction(&self) -> Option<&str> {
        self.query.get("transaction_id").map(String::as_str)
    }
}

fn answer(status: u16, body: Body) -> Answer {
    Answer { status: StatusCode::from_u16(status).unwrap(), body, reload: None }
}

fn ok(status: u16, body: Value) -> Answer {
    answer(status, Body::Json(body))
}

fn error(status: u16, message: impl Into<String>) -> Answer {
    ok(status, json!({"code": status, "message": message.into()}))
}

fn empty(status: u16) -> Answer {
    answer(status, Body::Nothing)
}

fn mismatch(memory: &Config, given: u64) -> Answer {
    let version = memory.version;
    error(409, format!("version mismatch: version in configuration file is {version}, given version is {given}"))
}

fn no_version() -> Answer {
    error(400, "version or transaction not specified: version or transaction not specified, specify only one")
}

impl FakeApi {
    pub fn new(config: &Path, binary: &Path, master: &Path, series: &str) -> Arc<Self> {
        let file = fs::read(config).unwrap();
        let inner = Inner {
            memory: Config::read(&file, series),
            seen: file.clone(),
            last_good: file,
            transactions: BTreeMap::new(),
            reloads: Vec::new(),
            ids: 0,
        };
        Arc::new(Self {
            config: config.into(),
            binary: binary.into(),
            master: master.into(),
            series: series.into(),
            inner: Mutex::new(inner),
            commits: tokio::sync::Mutex::default(),
            commands: tokio::sync::Mutex::default(),
        })
    }

    /// Serves on a port chosen by the kernel, and returns its address.
    pub async fn serve(self: &Arc<Self>) -> (String, tokio::task::JoinHandle<()>) {
        self.serve_at("127.0.0.1:0").await
    }

    pub async fn serve_at(self: &Arc<Self>, address: &str) -> (String, tokio::task::JoinHandle<()>) {
        // One that was killed may take a moment to let go of its port.
        let bind = async || tokio::net::TcpListener::bind(address).await.ok();
        let listener = wait_for(address, Duration::from_secs(10), bind).await;
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new().fallback(handle).with_state(self.clone());
        (url, tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// The file changes in one step, so that it is never read half-written.
    fn write_file(&self, text: &[u8]) {
        let file = tempfile::NamedTempFile::new_in(self.config.parent().unwrap()).unwrap();
        fs::write(file.path(), text).unwrap();
        file.persist(&self.config).unwrap();
    }

    /// The real API watches its file. A file from another writer is read, and written again as the API renders it, with
    /// the next version; it is neither checked nor loaded.
    fn watch(&self) {
        let mut inner = self.inner();
        let file = fs::read(&self.config).unwrap();
        if file == inner.seen || render::is_own(&file) {
            return;
        }
        inner.memory = Config::read(&file, &self.series);
        inner.memory.version += 1;
        inner.seen = inner.memory.render();
        self.write_file(&inner.seen);
    }

    async fn answer(&self, request: &Request<'_>) -> Answer {
        self.watch();
        let path = request.path.strip_prefix("/v3/").unwrap_or("");
        let parts = path.strip_prefix("services/haproxy/").unwrap_or(path).split('/');
        let parts: Vec<_> = parts.map(|part| percent_decode_str(part).decode_utf8_lossy()).collect();
        let parts: Vec<&str> = parts.iter().map(AsRef::as_ref).collect();
        match (request.method.as_str(), parts.as_slice()) {
            ("GET", ["info"]) => ok(200, json!({"api": {"build_date": "", "version": self.series}, "system": {}})),
            ("GET", ["configuration", "version"]) => ok(200, json!(self.inner().memory.version)),
            ("GET", ["configuration", "raw"]) => match request.transaction() {
                Some(_) => match self.staged(request) {
                    Ok(config) => answer(200, Body::Text(config.render())),
                    Err(answer) => answer,
                },
                None => answer(200, Body::Text(fs::read(&self.config).unwrap())),
            },
            ("POST", ["configuration", "raw"]) => self.post_raw(request).await.unwrap_or_else(|refusal| refusal),
            (_, ["configuration", section @ ("backends" | "frontends"), rest @ ..]) => {
                self.structured(request, section, rest).unwrap_or_else(|refusal| refusal)
            }
            ("GET", ["reloads"]) => self.reloads(),
            ("GET", ["reloads", id]) => self.reload_of(id),
            (_, ["transactions", rest @ ..]) => self.transactions(request, rest).await,
            ("GET", ["runtime", "info"]) => self.info().await,
            ("GET", ["stats", "native"]) => self.stats(request).await,
            (method, ["storage", "maps", rest @ ..]) => self.map_files(request, method, rest),
            (method, ["runtime", "maps", name, rest @ ..]) => self.map_entries(request, method, name, rest).await,
            (_, ["runtime", "backends", backend, "servers", rest @ ..]) => self.servers(request, backend, rest).await,
            _ => error(404, format!("path {} was not found", request.path)),
        }
    }

    /// The configuration that a request reads or edits.
    fn staged(&self, request: &Request<'_>) -> Result<Config, Answer> {
        let inner = self.inner();
        let reads = *request.method == Method::GET;
        match request.transaction().map(|id| (id, inner.transactions.get(id))) {
            None if reads => Ok(inner.memory.clone()),
            None => Err(no_version()),
            Some((_, Some(transaction))) if reads || transaction.config.version == inner.memory.version => {
                Ok(transaction.config.clone())
            }
            Some((id, Some(_))) => Err(error(400, format!("transaction does not exist: {id}"))),
            Some((id, None)) => {
                Err(error(400, format!("transaction does not exist: transaction file {id} does not exist")))
            }
        }
    }

    /// Reads and structured edits.
    fn structured(&self, request: &Request<'_>, section: &str, path: &[&str]) -> Result<Answer, Answer> {
        let mut config = self.staged(request)?;
        if *request.method == Method::GET {
            return Ok(json::read(&config, section, path));
        }
        let body = match request.body {
            [] => Value::Null,
            bytes => serde_json::from_slice(bytes).map_err(|_| error(400, "parsing data body from \"\" failed"))?,
        };
        let answer = json::edit(&mut config, request.method.as_str(), section, path, body);
        if let (Some(id), true) = (request.transaction(), answer.status.is_success()) {
            self.inner().transactions.get_mut(id).unwrap().config = config;
        }
        Ok(answer)
    }

    /// HAProxy's own check.
    fn check(&self, text: &[u8]) -> Result<(), Answer> {
        let file = tempfile::Builder::new().suffix(".cfg").tempfile().unwrap();
        fs::write(file.path(), text).unwrap();
        let mut command = Command::new(&self.binary);
        command.args(["-W", "-c", "-f"]).arg(file.path());
        let output = tokio::task::block_in_place(|| command.output().unwrap());
        if output.status.success() {
            return Ok(());
        }
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        let alert = |line: &str| {
            Some(format!("msg=\"{}\"", line.strip_prefix("[ALERT]")?.split_once(" : ")?.1.replace(" : ", " ")))
        };
        let alerts: Vec<String> = log.lines().filter_map(alert).collect();
        Err(error(400, format!("validation error: exit status 1: {}", alerts.join("\n"))))
    }

    /// Writes the file with the next version, if HAProxy accepts it.
    fn save(&self, mut config: Config) -> Result<(), Answer> {
        config.version += 1;
        let text = config.render();
        self.check(&text)?;
        let mut inner = self.inner();
        self.write_file(&text);
        inner.seen = text;
        inner.memory = config;
        Ok(())
    }

    /// Reloads, and waits for it if requested. After a failure the file is the one that was loaded last; the memory and
    /// its version keep the new state, and the process is the old one.
    async fn reload(&self, request: &Request<'_>) -> Result<Option<String>, Answer> {
        let output = self.command("reload").await.unwrap_or_else(|error| error);
        let failure = (!output.starts_with("Success=1")).then_some(output);
        let mut inner = self.inner();
        match &failure {
            None => inner.last_good = fs::read(&self.config).unwrap(),
            Some(_) => self.write_file(&inner.last_good),
        }
        match (request.flag("force_reload"), failure) {
            (true, None) => Ok(None),
            (true, Some(log)) => Err(error(400, format!("Reload failed: failed to reload configuration, {log}"))),
            (false, failure) => {
                inner.ids += 1;
                let id = format!("2026-11-21-{}", inner.ids);
                inner.reloads.push(Reload { id: id.clone(), failure });
                Ok(Some(id))
            }
        }
    }

    /// Every failed reload, and the last one that succeeded.
    fn reloads(&self) -> Answer {
        let inner = self.inner();
        let last = inner.reloads.iter().rfind(|reload| reload.failure.is_none());
        let failed = inner.reloads.iter().filter(|reload| reload.failure.is_some());
        ok(200, failed.chain(last).map(Reload::json).collect())
    }

    fn reload_of(&self, id: &str) -> Answer {
        let inner = self.inner();
        match inner.reloads.iter().find(|reload| reload.id == id) {
            Some(reload) => ok(200, reload.json()),
            None => error(404, "no such reload"),
        }
    }

    async fn post_raw(&self, request: &Request<'_>) -> Result<Answer, Answer> {
        let actions = request.headers.get("X-Runtime-Actions").and_then(|value| value.to_str().ok());
        if actions == Some("") && self.series == "3.4" {
            return Err(error(
                400,
                "parameter \"X-Runtime-Actions\" in header has an error: empty value is not allowed",
            ));
        }
        if !request.body.contains(&b'\n') {
            return Err(error(400, "invalid configuration: no newline character found"));
        }
        if request.flag("only_validate") {
            self.check(request.body)?;
            // Not the text that was sent.
            // The client may be gone by now, and the file with it.
            return Ok(answer(202, Body::Text(fs::read(&self.config).unwrap_or_default())));
        }
        let one = self.commits.lock().await;
        let given = request.version().ok_or_else(no_version)?;
        {
            let inner = self.inner();
            if given != inner.memory.version {
                return Err(mismatch(&inner.memory, given));
            }
        }
        let config = Config::sent(request.body, given, &self.series);
        if let Err(refusal) = self.save(config.clone()) {
            let mut inner = self.inner();
            let id = inner.id();
            inner.transactions.insert(id, Transaction { config, failed: true });
            return Err(refusal);
        }
        drop(one);
        let text = fs::read(&self.config).unwrap();
        if request.flag("skip_reload") {
            // The file is written by now, whatever happens to the actions.
            self.act(actions.unwrap_or_default()).await.map_err(|why| error(500, why))?;
            return Ok(answer(201, Body::Text(text)));
        }
        let reload = self.reload(request).await?;
        let status = if reload.is_some() { 202 } else { 201 };
        Ok(Answer { reload, ..answer(status, Body::Text(text)) })
    }

    async fn transactions(&self, request: &Request<'_>, path: &[&str]) -> Answer {
        let missing = |id: &str| error(404, format!("transaction does not exist: transaction {id} does not exist"));
        match (request.method.as_str(), path) {
            ("POST", []) => {
                let mut inner = self.inner();
                let given = request.version().unwrap_or(0);
                if given != inner.memory.version {
                    return mismatch(&inner.memory, given);
                }
                if inner.transactions.values().filter(|transaction| !transaction.failed).count() >= MAX_TRANSACTIONS {
                    let message = "cannot start a new transaction, reached the maximum amount of 20 active transactions available";
                    return error(429, message);
                }
                let id = inner.id();
                let transaction = Transaction { config: inner.memory.clone(), failed: false };
                let body = transaction.json(&id);
                inner.transactions.insert(id, transaction);
                ok(201, body)
            }
            ("GET", []) => {
                let inner = self.inner();
                ok(200, inner.transactions.iter().map(|(id, transaction)| transaction.json(id)).collect())
            }
            ("GET", [id]) => match self.inner().transactions.get(*id) {
                Some(transaction) => ok(200, transaction.json(id)),
                None => missing(id),
            },
            ("DELETE", [id]) => match self.inner().transactions.remove(*id) {
                Some(_) => empty(204),
                None => error(404, format!("transaction does not exist: transaction file {id} does not exist")),
            },
            ("PUT", [id]) => self.commit(request, id).await.unwrap_or_else(|refusal| refusal),
            _ => error(405, "method not allowed"),
        }
    }

    async fn commit(&self, request: &Request<'_>, id: &str) -> Result<Answer, Answer> {
        let one = self.commits.lock().await;
        let config = {
            let inner = self.inner();
            let Some(transaction) = inner.transactions.get(id) else {
                return Err(error(404, format!("transaction does not exist: transaction {id} does not exist")));
            };
            if transaction.failed {
                return Err(error(406, format!("transaction {id} is failed and cannot be committed")));
            }
            if transaction.config.version != inner.memory.version {
                return Err(error(406, format!("transaction {id} is outdated and cannot be committed")));
            }
            transaction.config.clone()
        };
        let version = config.version;
        if let Err(refusal) = self.save(config) {
            self.inner().transactions.get_mut(id).unwrap().failed = true;
            return Err(refusal);
        }
        self.inner().transactions.remove(id);
        drop(one);
        let reload = self.reload(request).await?;
        let status = if reload.is_some() { 202 } else { 200 };
        Ok(Answer { reload, ..ok(status, json!({"_version": version, "id": id, "status": "success"})) })
    }
}

impl Inner {
    fn id(&mut self) -> String {
        self.ids += 1;
        format!("{:08x}-0000-4000-8000-{:012x}", std::process::id(), self.ids)
    }
}

impl Transaction {
    fn json(&self, id: &str) -> Value {
        match self.failed {
            true => json!({"id": id, "status": "failed"}),
            false => json!({"_version": self.config.version, "id": id, "status": "in_progress"}),
        }
    }
}

impl Reload {
    fn json(&self) -> Value {
        match &self.failure {
            None => json!({"id": self.id, "reload_timestamp": 1, "status": "succeeded"}),
            Some(log) => json!({"id": self.id, "reload_timestamp": 1, "response": log, "status": "failed"}),
        }
    }
}

/// The password of a basic authentication.
fn password(credentials: &str) -> Option<String> {
    let decoded = BASE64_STANDARD.decode(credentials.strip_prefix("Basic ")?).ok()?;
    String::from_utf8(decoded).ok()?.split_once(':').map(|(_, password)| password.to_owned())
}

async fn handle(
    State(fake): State<Arc<FakeApi>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let credentials = headers.get("Authorization").and_then(|value| value.to_str().ok());
    // admin:secret
    let authorized = credentials == Some("Basic YWRtaW46c2VjcmV0");
    let refusal = || match (fake.series.as_str(), credentials.and_then(password)) {
        ("3.0", Some(password)) => error(401, format!("invalid password: {password}")),
        _ => error(401, "unauthorized"),
    };
    let query = uri.query().unwrap_or("").split('&').filter_map(|pair| pair.split_once('='));
    let query = query.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let request = Request { method: &method, path: uri.path(), query, headers: &headers, body: &body };
    let Answer { status, body, reload } = if authorized { fake.answer(&request).await } else { refusal() };
    let mut headers = HeaderMap::new();
    let message = if let Body::Json(body) = &body { body["message"].as_str().unwrap_or("") } else { "" };
    // An unknown or outdated transaction is answered with version 0 (recorded).
    let unknown = status == StatusCode::BAD_REQUEST && message.starts_with("transaction does not exist");
    headers.insert("Configuration-Version", if unknown { 0 } else { fake.inner().memory.version }.into());
    if !authorized {
        headers.insert("Www-Authenticate", "Basic realm=\"API\"".parse().unwrap());
    }
    if let Some(id) = reload {
        headers.insert("Reload-Id", id.parse().unwrap());
    }
    // Errors of the raw endpoint came as plain text until 3.2, and as JSON since (recorded).
    let plain = uri.path().ends_with("/raw") && fake.series != "3.4";
    match body {
        Body::Nothing => (status, headers).into_response(),
        Body::Json(body) if plain => {
            (status, headers, [("Content-Type", "text/plain")], body.to_string()).into_response()
        }
        Body::Json(body) => (status, headers, axum::Json(body)).into_response(),
        Body::Text(text) => (status, headers, [("Content-Type", "text/plain")], text).into_response(),
    }
}
