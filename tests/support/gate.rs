//! A proxy in front of an API that counts calls, holds one up, or answers it itself.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use nomad_haproxy::haproxy::socket;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Where a call is held up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Point {
    /// It does not reach the API.
    Before(usize),
    /// The API has done it, but its answer does not arrive.
    After(usize),
    /// The first that contains this does not reach the API.
    First(&'static str),
}

impl Point {
    /// Whether it is before the call of this number.
    fn is_before(self, number: usize, call: &str) -> bool {
        match self {
            Self::Before(at) => at == number,
            Self::After(_) => false,
            Self::First(word) => call.contains(word),
        }
    }
}

type Interfere = Box<dyn Fn(&Method, &Uri) -> Option<(u16, String)> + Send + Sync>;

#[derive(Default)]
struct Inner {
    calls: Vec<String>,
    /// Of all answers, without their headers.
    bytes: usize,
    hold: Option<Point>,
    holding: bool,
    /// Lets what is held up go on.
    release: tokio_util::sync::CancellationToken,
    interfere: Option<Interfere>,
    fail_actions: bool,
    lose_load: bool,
    unknown_field: Option<&'static str>,
    failures: Option<Arc<AtomicBool>>,
    frozen: Option<Frozen>,
}

/// Which calls are not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frozen {
    All,
    Writes,
}

impl Inner {
    fn is_frozen(&self, method: &Method) -> bool {
        match self.frozen {
            Some(Frozen::All) => true,
            Some(Frozen::Writes) => *method != Method::GET,
            None => false,
        }
    }
}

pub struct Gate {
    upstream: String,
    inner: Mutex<Inner>,
    client: reqwest::Client,
    cut: tokio::sync::watch::Sender<()>,
}

impl Gate {
    pub async fn start(upstream: &str) -> (Arc<Self>, String) {
        let gate = Arc::new(Self {
            upstream: upstream.into(),
            inner: Mutex::default(),
            client: reqwest::Client::new(),
            cut: tokio::sync::watch::Sender::default(),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new().fallback(forward).with_state(gate.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (gate, url)
    }

    /// Forgets the calls so far and holds up this one.
    pub fn hold(&self, point: Option<Point>) {
        let mut inner = self.inner.lock().unwrap();
        inner.calls.clear();
        (inner.hold, inner.holding, inner.bytes) = (point, false, 0);
    }

    /// From now on no call is answered, until this is taken back: as an API that is stopped by a signal.
    pub fn freeze(&self, frozen: bool) {
        self.inner.lock().unwrap().frozen = frozen.then_some(Frozen::All);
    }

    /// The same for calls that are more than reads.
    pub fn freeze_writes(&self, frozen: bool) {
        self.inner.lock().unwrap().frozen = frozen.then_some(Frozen::Writes);
    }

    /// Ends the event streams of Nomad that are open.
    pub fn cut_streams(&self) {
        self.cut.send_replace(());
    }

    /// Answers in place of the API where this returns an answer.
    pub fn interfere(&self, answer: Option<Interfere>) {
        self.inner.lock().unwrap().interfere = answer;
    }

    /// The next run-time actions are not carried out: the file is written, the answer is 500, as the real API does it
    /// (recorded).
    pub fn fail_next_actions(&self) {
        self.inner.lock().unwrap().fail_actions = true;
    }

    /// The next text that is to be loaded is written and not loaded, and the answer is 502: as if the API had died
    /// between the two.
    pub fn lose_next_load(&self) {
        self.inner.lock().unwrap().lose_load = true;
    }

    /// The API silently drops this field of what it receives, as it does with fields that it does not know.
    pub fn drop_field(&self, name: &'static str) {
        self.inner.lock().unwrap().unknown_field = Some(name);
    }

    /// Sets this once the API has answered a write with an error.
    pub fn watch_failures(&self, failed: Arc<AtomicBool>) {
        self.inner.lock().unwrap().failures = Some(failed);
    }

    pub fn calls(&self) -> Vec<String> {
        self.inner.lock().unwrap().calls.clone()
    }

    /// How many bytes the answers to them have, without their headers.
    pub fn bytes(&self) -> usize {
        self.inner.lock().unwrap().bytes
    }

    /// Whether a call is held up now.
    pub fn is_holding(&self) -> bool {
        self.inner.lock().unwrap().holding
    }

    /// Lets the call that is held up go on.
    pub fn release(&self) {
        release(&self.inner);
    }
}

/// Holds up a call until it is released.
async fn hold_up(inner: &Mutex<Inner>) {
    let release = {
        let mut inner = inner.lock().unwrap();
        inner.holding = true;
        inner.release = tokio_util::sync::CancellationToken::new();
        inner.release.clone()
    };
    release.cancelled().await;
}

fn release(inner: &Mutex<Inner>) {
    let mut inner = inner.lock().unwrap();
    (inner.hold, inner.holding) = (None, false);
    inner.release.cancel();
}

fn without(json: Value, field: &str) -> Value {
    match json {
        Value::Object(map) => {
            map.into_iter().filter(|(key, _)| key != field).map(|(key, value)| (key, without(value, field))).collect()
        }
        other => other,
    }
}

async fn forward(State(gate): State<Arc<Gate>>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    let (number, hold, answer) = {
        let mut inner = gate.inner.lock().unwrap();
        inner.calls.push(format!("{method} {uri}"));
        let answer = inner.interfere.as_ref().and_then(|interfere| interfere(&method, &uri));
        (inner.calls.len(), inner.hold, answer)
    };
    while gate.inner.lock().unwrap().is_frozen(&method) {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let fail =
        headers.contains_key("X-Runtime-Actions") && std::mem::take(&mut gate.inner.lock().unwrap().fail_actions);
    if let Some((status, body)) = answer {
        return (StatusCode::from_u16(status).unwrap(), body).into_response();
    }
    if hold.is_some_and(|point| point.is_before(number, &uri.to_string())) {
        hold_up(&gate.inner).await;
    }
    let field = gate.inner.lock().unwrap().unknown_field;
    let body = match (field, serde_json::from_slice(&body)) {
        (Some(field), Ok(json)) => without(json, field).to_string().into(),
        _ => body,
    };
    let writes = method != Method::GET;
    let (mut path, mut lost) = (uri.to_string(), false);
    if path.contains("/raw?") && path.contains("force_reload=true") {
        lost = std::mem::take(&mut gate.inner.lock().unwrap().lose_load);
    }
    if lost {
        path = path.replace("force_reload", "skip_reload");
    }
    let mut request = gate.client.request(method, format!("{}{path}", gate.upstream)).body(body);
    for (name, value) in headers.iter().filter(|(name, _)| *name != "host" && *name != "content-length") {
        if fail && name == "X-Runtime-Actions" {
            continue;
        }
        request = request.header(name, value);
    }
    let Ok(answer) = request.send().await else { return StatusCode::BAD_GATEWAY.into_response() };
    if lost {
        return StatusCode::BAD_GATEWAY.into_response();
    }
    let (status, mut headers) = (answer.status(), answer.headers().clone());
    headers.remove("content-length");
    headers.remove("transfer-encoding");
    if uri.path() == "/v1/event/stream" {
        let chunks = futures_util::stream::try_unfold((answer, gate.cut.subscribe()), async |(mut answer, mut cut)| {
            tokio::select! {
                chunk = answer.chunk() => Ok::<_, reqwest::Error>(chunk?.map(|chunk| (chunk, (answer, cut)))),
                Ok(()) = cut.changed() => Ok(None),
            }
        });
        return (status, headers, axum::body::Body::from_stream(chunks)).into_response();
    }
    let body = answer.bytes().await.unwrap_or_default();
    gate.inner.lock().unwrap().bytes += body.len();
    if let Some(failed) = gate.inner.lock().unwrap().failures.as_ref().filter(|_| writes && !status.is_success()) {
        failed.store(true, Ordering::SeqCst);
    }
    if fail {
        let body = "{\"code\":500,\"message\":\"cannot execute SetServerState: No such server.\"}";
        return (StatusCode::INTERNAL_SERVER_ERROR, headers, body).into_response();
    }
    if hold == Some(Point::After(number)) {
        hold_up(&gate.inner).await;
    }
    (status, headers, body).into_response()
}

/// The same in front of a socket of HAProxy: it counts commands, and holds one up.
pub struct SocketGate {
    inner: Mutex<Inner>,
    pub path: PathBuf,
}

impl SocketGate {
    /// Listens beside the real socket.
    pub fn start(real: &Path) -> Arc<Self> {
        let path = real.with_extension("gate");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let gate = Arc::new(Self { inner: Mutex::default(), path });
        let (accepting, real) = (gate.clone(), real.to_owned());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(accepting.clone().forward(stream, real.clone()));
            }
        });
        gate
    }

    async fn forward(self: Arc<Self>, mut stream: tokio::net::UnixStream, real: PathBuf) {
        let mut command = String::new();
        if stream.read_to_string(&mut command).await.is_err() {
            return;
        }
        let command = command.trim();
        let (number, hold) = {
            let mut inner = self.inner.lock().unwrap();
            inner.calls.push(command.to_owned());
            (inner.calls.len(), inner.hold)
        };
        if hold.is_some_and(|point| point.is_before(number, command)) {
            hold_up(&self.inner).await;
        }
        let Ok(answer) = socket::command(&real, command, Duration::from_secs(60)).await else { return };
        if hold == Some(Point::After(number)) {
            hold_up(&self.inner).await;
        }
        let _ = stream.write_all(format!("{answer}\n").as_bytes()).await;
    }

    /// Forgets the commands so far and holds up this one.
    pub fn hold(&self, point: Option<Point>) {
        let mut inner = self.inner.lock().unwrap();
        inner.calls.clear();
        (inner.hold, inner.holding) = (point, false);
    }

    /// Whether a command is held up now.
    pub fn is_holding(&self) -> bool {
        self.inner.lock().unwrap().holding
    }

    pub fn calls(&self) -> Vec<String> {
        self.inner.lock().unwrap().calls.clone()
    }

    /// Lets the command that is held up go on.
    pub fn release(&self) {
        release(&self.inner);
    }
}
