//! A thin HTTP face of the Data Plane API on a real HAProxy's file and master socket: what the
//! controller uses of version 3, held to fixtures/dataplane by tests/contract.rs.
//!
//! It is for machines without the real one. Like that it renders the whole file anew with each structured
//! edit, and writes a raw text as it is.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use nomad_haproxy::haproxy::socket;
use nomad_haproxy::haproxy::text::ConfigText;
use serde_json::{Value, json};

mod anew;
pub mod json;

const MAX_TRANSACTIONS: usize = 20;

struct Transaction {
    version: u64,
    text: ConfigText,
    failed: bool,
}

#[derive(Default)]
struct Inner {
    /// What the API has in its memory; the file may differ after a reload that failed.
    version: u64,
    transactions: BTreeMap<String, Transaction>,
    reloads: Vec<(String, Option<String>)>,
    /// What was loaded last. A write without a reload does not change it.
    last_good: String,
    next: u64,
}

pub struct Face {
    config: PathBuf,
    binary: PathBuf,
    master: PathBuf,
    series: String,
    inner: Mutex<Inner>,
    /// One write at a time, as in the real one.
    writing: tokio::sync::Mutex<()>,
}

type Answer = (StatusCode, Option<Value>);

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
}

fn error(status: u16, message: impl Into<String>) -> Answer {
    (StatusCode::from_u16(status).unwrap(), Some(json!({"code": status, "message": message.into()})))
}

fn ok(status: u16, body: Value) -> Answer {
    (StatusCode::from_u16(status).unwrap(), Some(body))
}

impl Face {
    pub fn new(config: &Path, binary: &Path, master: &Path, series: &str) -> Arc<Self> {
        let last_good = fs::read_to_string(config).unwrap();
        let version = ConfigText::new(&last_good).version().unwrap_or(1);
        let inner = Mutex::new(Inner { version, last_good, ..Inner::default() });
        Arc::new(Self {
            config: config.into(),
            binary: binary.into(),
            master: master.into(),
            series: series.into(),
            inner,
            writing: tokio::sync::Mutex::default(),
        })
    }

    /// Serves on a port of the kernel's choice; its address.
    pub async fn serve(self: &Arc<Self>) -> (String, tokio::task::JoinHandle<()>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new().fallback(handle).with_state(self.clone());
        (url, tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }))
    }

    fn file(&self) -> ConfigText {
        ConfigText::new(&fs::read_to_string(&self.config).unwrap())
    }

    fn version(&self) -> u64 {
        self.inner.lock().unwrap().version
    }

    async fn answer(&self, request: &Request<'_>) -> (Answer, Option<String>, Option<String>) {
        let path = request.path.strip_prefix("/v3/").unwrap_or("");
        let parts: Vec<&str> = path.strip_prefix("services/haproxy/").unwrap_or(path).split('/').collect();
        let mut reload = None;
        let mut text = None;
        let answer = match (request.method.as_str(), parts.as_slice()) {
            ("GET", ["info"]) => ok(200, json!({"api": {"build_date": "", "version": self.series}, "system": {}})),
            ("GET", ["runtime", "info"]) => self.runtime_info().await,
            ("GET", ["configuration", "version"]) => ok(200, json!(self.version())),
            ("GET", ["configuration", "raw"]) => match self.staged(request) {
                Ok(config) => {
                    text = Some(config.to_string());
                    ok(200, Value::Null)
                }
                Err(answer) => answer,
            },
            ("POST", ["configuration", "raw"]) => {
                let _one = self.writing.lock().await;
                self.post_raw(request, &mut reload, &mut text).await
            }
            ("GET", ["reloads"]) => {
                let reloads: Vec<Value> = self.inner.lock().unwrap().reloads.iter().rev().map(reload_json).collect();
                ok(200, json!(reloads))
            }
            ("GET", ["reloads", id]) => {
                match self.inner.lock().unwrap().reloads.iter().find(|(known, _)| known == id) {
                    Some(reload) => ok(200, reload_json(reload)),
                    None => error(404, "no such reload"),
                }
            }
            (_, ["transactions", ..]) => {
                let _one = self.writing.lock().await;
                self.transactions(request, &parts[1..], &mut reload).await
            }
            (_, ["configuration", "backends", rest @ ..]) => self.backends(request, rest),
            (_, ["runtime", "backends", backend, "servers", rest @ ..]) => {
                self.runtime_servers(request, backend, rest).await
            }
            _ => error(404, format!("path {} was not found", request.path)),
        };
        (answer, reload, text)
    }

    async fn command(&self, command: &str) -> Result<String, String> {
        socket::command(&self.master, command, Duration::from_secs(10)).await.map_err(|e| e.to_string())
    }

    async fn runtime_info(&self) -> Answer {
        let answer = self.command("@1 show info").await;
        let field = |name: &str| {
            let text = answer.as_ref().ok()?;
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned)
        };
        match (field("Version"), field("Pid")) {
            (Some(version), Some(pid)) => {
                let info = json!({"version": version, "pid": pid.parse::<u64>().unwrap()});
                ok(200, json!({"info": info, "runtimeAPI": self.master}))
            }
            _ => ok(
                200,
                json!({"error": format!("dial unix {}: connection refused", self.master.display()), "runtimeAPI": self.master}),
            ),
        }
    }

    fn staged(&self, request: &Request<'_>) -> Result<ConfigText, Answer> {
        let Some(id) = request.query.get("transaction_id") else { return Ok(self.file()) };
        let inner = self.inner.lock().unwrap();
        match inner.transactions.get(id) {
            Some(transaction) if *request.method == Method::GET || transaction.version == inner.version => {
                Ok(transaction.text.clone())
            }
            Some(_) => Err(error(400, format!("transaction does not exist: {id}"))),
            None => Err(error(400, format!("transaction does not exist: transaction file {id} does not exist"))),
        }
    }

    fn check(&self, text: &ConfigText) -> Result<(), String> {
        let file = tempfile::Builder::new().suffix(".cfg").tempfile().unwrap();
        fs::write(file.path(), text.to_string()).unwrap();
        let output = Command::new(&self.binary).args(["-c", "-f"]).arg(file.path()).output().unwrap();
        if output.status.success() {
            return Ok(());
        }
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        let alert = |line: &str| {
            Some(format!("msg=\"{}\"", line.strip_prefix("[ALERT]")?.split_once(" : ")?.1.replace(" : ", " ")))
        };
        let alerts: Vec<String> = log.lines().filter_map(alert).collect();
        Err(format!("validation error: exit status 1: {}", alerts.join("\n")))
    }

    /// Writes at the next version and reloads as it was asked for.
    async fn write(&self, request: &Request<'_>, text: &ConfigText, reload: &mut Option<String>) -> Result<(), Answer> {
        let version = {
            let mut inner = self.inner.lock().unwrap();
            inner.version += 1;
            inner.version
        };
        fs::write(&self.config, anew::stamped(text.clone(), version).to_string()).unwrap();
        if request.flag("skip_reload") {
            return Ok(());
        }
        let answer = self.command("reload").await.unwrap_or_else(|error| error);
        let failure = (!answer.starts_with("Success=1")).then_some(answer);
        if let (true, Some(why)) = (request.flag("force_reload"), &failure) {
            // The memory goes on from the failed text (seen). What becomes of the disk and the process was not
            // recorded for all versions: here both are left alone, or go back to what was loaded last.
            if self.series != "3.0" {
                fs::write(&self.config, self.inner.lock().unwrap().last_good.clone()).unwrap();
                let _ = self.command("reload").await;
            }
            return Err(error(400, format!("Reload failed: {why}")));
        }
        let mut inner = self.inner.lock().unwrap();
        if failure.is_none() {
            inner.last_good = self.file().to_string();
        }
        if request.flag("force_reload") {
            return Ok(());
        }
        inner.next += 1;
        let id = format!("2026-11-21-{}", inner.next);
        inner.reloads.push((id.clone(), failure));
        *reload = Some(id);
        Ok(())
    }

    async fn post_raw(&self, request: &Request<'_>, reload: &mut Option<String>, out: &mut Option<String>) -> Answer {
        let text = ConfigText::new(&String::from_utf8_lossy(request.body));
        if !request.flag("only_validate")
            && let Some(given) = request.version()
            && given != self.version()
        {
            return error(
                409,
                format!(
                    "version mismatch: version in configuration file is {}, given version is {given}",
                    self.version()
                ),
            );
        }
        if let Err(message) = self.check(&text) {
            return error(400, message);
        }
        if request.flag("only_validate") {
            *out = Some(text.to_string());
            return ok(202, Value::Null);
        }
        if let Err(answer) = self.write(request, &text, reload).await {
            return answer;
        }
        let actions = request.headers.get("X-Runtime-Actions").and_then(|value| value.to_str().ok());
        for action in actions.into_iter().flat_map(|actions| actions.split(';')) {
            if let Err(why) = self.act(action).await {
                return error(500, why);
            }
        }
        *out = Some(self.file().to_string());
        ok(if request.flag("skip_reload") { 201 } else { 202 }, Value::Null)
    }

    async fn act(&self, action: &str) -> Result<(), String> {
        let words: Vec<&str> = action.split(' ').collect();
        let command = match words.as_slice() {
            ["SetServerAddr", b, s, ip, port] => format!("set server {b}/{s} addr {ip} port {port}"),
            ["SetServerState", b, s, state] => format!("set server {b}/{s} state {state}"),
            ["SetServerWeight", b, s, weight] => format!("set server {b}/{s} weight {weight}"),
            _ => return Err(format!("cannot read the action {action}")),
        };
        let answer = self.command(&format!("@1 {command}")).await?;
        match answer.starts_with("No such")
            || answer.starts_with("Invalid")
            || answer.contains("'get weight' and 'set weight'")
        {
            true => Err(format!("cannot execute {}: {answer} [{command}]", words[0])),
            false => Ok(()),
        }
    }

    async fn transactions(&self, request: &Request<'_>, path: &[&str], reload: &mut Option<String>) -> Answer {
        let show = |id: &str, transaction: &Transaction| match transaction.failed {
            true => json!({"id": id, "status": "failed"}),
            false => json!({"_version": transaction.version, "id": id, "status": "in_progress"}),
        };
        match (request.method.as_str(), path) {
            ("POST", []) => {
                let text = self.file();
                let mut inner = self.inner.lock().unwrap();
                let given = request.version().unwrap_or(0);
                if given != inner.version {
                    let message = format!(
                        "version mismatch: version in configuration file is {}, given version is {given}",
                        inner.version
                    );
                    return error(409, message);
                }
                if inner.transactions.len() >= MAX_TRANSACTIONS {
                    let message = "cannot start a new transaction, reached the maximum amount of 20 active transactions available";
                    return error(429, message);
                }
                inner.next += 1;
                let id = format!("{:08x}-0000-4000-8000-{:012x}", std::process::id(), inner.next);
                let transaction = Transaction { version: inner.version, text, failed: false };
                let body = show(&id, &transaction);
                inner.transactions.insert(id, transaction);
                ok(201, body)
            }
            ("GET", []) => {
                let inner = self.inner.lock().unwrap();
                ok(200, inner.transactions.iter().map(|(id, transaction)| show(id, transaction)).collect())
            }
            ("GET", [id]) => match self.inner.lock().unwrap().transactions.get(*id) {
                Some(transaction) => ok(200, show(id, transaction)),
                None => error(404, format!("transaction does not exist: transaction {id} does not exist")),
            },
            ("DELETE", [id]) => match self.inner.lock().unwrap().transactions.remove(*id) {
                Some(_) => (StatusCode::NO_CONTENT, None),
                None => error(404, format!("transaction does not exist: transaction file {id} does not exist")),
            },
            ("PUT", [id]) => self.commit(request, id, reload).await,
            _ => error(405, "method not allowed"),
        }
    }

    async fn commit(&self, request: &Request<'_>, id: &str, reload: &mut Option<String>) -> Answer {
        let text = {
            let inner = self.inner.lock().unwrap();
            let Some(transaction) = inner.transactions.get(id) else {
                return error(404, format!("transaction does not exist: transaction {id} does not exist"));
            };
            if transaction.failed {
                return error(406, format!("transaction {id} is failed and cannot be committed"));
            }
            if transaction.version != inner.version {
                return error(406, format!("transaction {id} is outdated and cannot be committed"));
            }
            transaction.text.clone()
        };
        if let Err(message) = self.check(&text) {
            self.inner.lock().unwrap().transactions.get_mut(id).unwrap().failed = true;
            return error(400, message);
        }
        let version = self.inner.lock().unwrap().transactions.remove(id).unwrap().version;
        if let Err(answer) = self.write(request, &anew::anew(&text), reload).await {
            return answer;
        }
        let status = if request.flag("force_reload") { 200 } else { 202 };
        ok(status, json!({"_version": version, "id": id, "status": "success"}))
    }

    /// Reads and structured edits of backends and their servers.
    fn backends(&self, request: &Request<'_>, path: &[&str]) -> Answer {
        let text = match self.staged(request) {
            Ok(text) => text,
            Err(answer) => return answer,
        };
        if *request.method == Method::GET {
            return json::read(&text, path);
        }
        let body: Value = match request.body {
            [] => Value::Null,
            bytes => match serde_json::from_slice(bytes) {
                Ok(body) => body,
                Err(_) => return error(400, "parsing data body from \"\" failed"),
            },
        };
        let mut text = text;
        let answer = json::edit(&mut text, request.method.as_str(), path, body, self.series != "3.0");
        if let (Some(id), true) = (request.query.get("transaction_id"), answer.0.is_success()) {
            self.inner.lock().unwrap().transactions.get_mut(id).unwrap().text = anew::anew(&text);
        }
        answer
    }

    async fn runtime_servers(&self, request: &Request<'_>, backend: &str, path: &[&str]) -> Answer {
        let missing = |name: String| {
            error(if self.series == "3.0" { 500 } else { 404 }, format!("no data for {name}: not found"))
        };
        if let ("PUT", [server]) = (request.method.as_str(), path) {
            let body: Value = serde_json::from_slice(request.body).unwrap_or_default();
            if let Some(state) = body["admin_state"].as_str() {
                let _ = self.command(&format!("@1 set server {backend}/{server} state {state}")).await;
            }
        }
        let state = self.command(&format!("@1 show servers state {backend}")).await.unwrap_or_default();
        let rows =
            state.lines().map(|line| line.split(' ').collect::<Vec<_>>()).filter(|f| f.len() > 18 && f[0] != "#");
        let servers: Vec<Value> = rows.map(|f| self.runtime_server(&f)).collect();
        match path {
            [] if servers.is_empty() => missing(backend.to_owned()),
            [] => ok(200, json!(servers)),
            [name, ..] => match servers.into_iter().find(|server| server["name"] == **name) {
                Some(server) => ok(200, server),
                None => missing(format!("{backend}/{name}")),
            },
        }
    }

    fn runtime_server(&self, fields: &[&str]) -> Value {
        let admin: u16 = fields[6].parse().unwrap();
        let state = match admin {
            a if a & 0x23 != 0 => "maint",
            a if a & 0x18 != 0 => "drain",
            _ => "ready",
        };
        let up = if fields[5] == "0" { "down" } else { "up" };
        let mut server = json!({
            "address": fields[4], "admin_state": state, "id": fields[2], "name": fields[3], "operational_state": up,
            "port": fields[18].parse::<u16>().unwrap(),
        });
        if self.series == "3.4" {
            for (key, at) in [("uweight", 7), ("iweight", 8), ("check_state", 13), ("backend_id", 0)] {
                server[key] = json!(fields[at].parse::<u64>().unwrap());
            }
        }
        server
    }
}

fn reload_json((id, failure): &(String, Option<String>)) -> Value {
    match failure {
        None => json!({"id": id, "reload_timestamp": 1, "status": "succeeded"}),
        Some(why) => json!({"id": id, "reload_timestamp": 1, "response": why, "status": "failed"}),
    }
}

async fn handle(State(face): State<Arc<Face>>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let credentials = headers.get("Authorization").and_then(|value| value.to_str().ok());
    // admin:secret
    let authorized = credentials == Some("Basic YWRtaW46c2VjcmV0");
    let query = uri.query().unwrap_or("").split('&').filter_map(|pair| pair.split_once('='));
    let query = query.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let request = Request { method: &method, path: uri.path(), query, headers: &headers, body: &body };
    let ((status, body), reload, text) =
        if authorized { face.answer(&request).await } else { (error(401, "unauthorized"), None, None) };
    let mut headers = HeaderMap::new();
    // An unknown or outdated transaction is answered with version 0 (recorded).
    let message = body.as_ref().and_then(|body| body["message"].as_str()).unwrap_or("");
    let unknown = status == StatusCode::BAD_REQUEST && message.starts_with("transaction does not exist");
    headers.insert("Configuration-Version", if unknown { 0 } else { face.version() }.into());
    if !authorized {
        headers.insert("Www-Authenticate", "Basic realm=\"API\"".parse().unwrap());
    }
    if let Some(id) = reload {
        headers.insert("Reload-Id", id.parse().unwrap());
    }
    // Errors of the raw endpoint came as plain text until 3.2, and as JSON since (recorded).
    let raw = uri.path().ends_with("/raw") && face.series != "3.4";
    match (text, body) {
        (Some(text), _) => (status, headers, text).into_response(),
        (None, Some(body)) if raw => {
            (status, headers, [("Content-Type", "text/plain")], body.to_string()).into_response()
        }
        (None, Some(body)) => (status, headers, axum::Json(body)).into_response(),
        (None, None) => (status, headers).into_response(),
    }
}
