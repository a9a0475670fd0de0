//! The Data Plane API, version 3.
//!
//! A structural write is one transaction (or one versioned write of the whole text, which the API runs as its own
//! transaction) with a reload that is waited for. Either way the API renders the whole file, so the result for the part
//! that is not ours is checked first (`survey`); and before a transaction is committed, the text that it would write is
//! compared with the plan (`meaning`), as the API drops fields that it does not know without an error.

mod client;
mod json;
mod leased;
mod leftovers;
mod maps;
mod meaning;
mod runtime;
mod socket;
mod survey;
mod transaction;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use reqwest::{Method, StatusCode};
use tokio::sync::Mutex;

use crate::desired::{BackendName, Entry, Owner};
use crate::errors::chain;
use crate::haproxy::maps::MapFile;
use crate::haproxy::render::INIT_ADDR;
use crate::haproxy::stats::{Fields, Stats};
use crate::haproxy::text::ConfigText;
use crate::haproxy::version::Version;
use crate::leader::Lease;
use crate::observed::{Maps, Observed};
use crate::plan::{self, Action, Plan, Surplus};

use super::{
    AccessError, Capabilities, HaproxyInfo, Plane, Runtime, Staged, StateChange, Survey, Traffic, VALIDATION_TIMEOUT,
    Verdict, WriteError,
};
use client::{Answer, Body, Client, refused, unavailable};
pub use client::{DataplaneConfig, Password};
pub use maps::FOLDER as MAPS_FOLDER;
use socket::RuntimeSocket;
use survey::Surveyed;

const TRANSACTIONS: &str = "/v3/services/haproxy/transactions";
const STATS: &str = "/v3/services/haproxy/stats/native";
const RAW: &str = "/v3/services/haproxy/configuration/raw";
/// Between two polls of a reload that was started and not waited for.
const RELOAD_POLL: Duration = Duration::from_millis(100);
/// How long a reload that was started may take.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of run-time actions in one request: half of what the API, as a Go HTTP server, accepts in headers by default
/// (net/http, `DefaultMaxHeaderBytes`).
const MAX_ACTIONS: usize = 512 * 1024;
/// The most sections and servers that `auto` writes as structured edits. The API rewrites the whole file for each of
/// them (1 to 18 ms), so 1000 services of 5 take 22 s; as text they take 0.75 s (measured on 3.2).
const MAX_EDITS: usize = 64;

/// How the configuration is written (`haproxy.write`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Write {
    /// `transaction` for small changes, `text` for large ones and where structured edits would lose something.
    #[default]
    Auto,
    /// Structured edits in a transaction, the API's own way.
    Transaction,
    /// The same plan as an edit of the text, written in one call.
    Text,
}

/// The connection through the API.
#[derive(Debug)]
pub struct Dataplane {
    client: Client,
    owner: Owner,
    write: Write,
    validation_timeout: Duration,
    /// With `auto`: this API's structured edits dropped a field that we write, so text is used.
    text_only: AtomicBool,
    /// This API has no raw write.
    no_raw_write: AtomicBool,
    /// Inheritance was made explicit, and the file has not been read back since.
    made_explicit: AtomicBool,
    /// The last survey of the file.
    surveyed: Mutex<Option<Surveyed>>,
    /// The process itself, if `haproxy.runtime_socket` names its socket.
    socket: Option<RuntimeSocket>,
    /// The folder of map files, if it is not the API's default.
    maps_dir: Option<String>,
}

impl Dataplane {
    /// Sets up a client; nothing is sent yet.
    pub fn new(settings: DataplaneConfig, owner: Owner, write: Write) -> Result<Self, AccessError> {
        let socket = settings.runtime_socket.clone().map(RuntimeSocket::new);
        let maps_dir = settings.maps_dir.clone();
        let client = Client::new(settings)?;
        Ok(Self {
            client,
            owner,
            write,
            validation_timeout: VALIDATION_TIMEOUT,
            text_only: AtomicBool::new(false),
            no_raw_write: AtomicBool::new(false),
            made_explicit: AtomicBool::new(false),
            surveyed: Mutex::default(),
            socket,
            maps_dir,
        })
    }

    /// Writes for as long as this is good, instead of always.
    #[must_use]
    pub fn leased(self, lease: &Lease) -> Self {
        let socket = self.socket.map(|socket| socket.leased(lease.clone()));
        Self { client: self.client.leased(lease.clone()), socket, ..self }
    }

    /// Sets how long one validation may take.
    #[must_use]
    pub fn validating_within(self, validation_timeout: Duration) -> Self {
        Self { validation_timeout, ..self }
    }

    /// The time-out for an answer that needs a validation and perhaps a reload, which takes longer.
    fn load_timeout(&self) -> Duration {
        self.validation_timeout * 3
    }

    /// The API validates for as long as it takes, and then writes. So new host names, which alone take long, are
    /// validated first: a validation that times out writes nothing.
    async fn validate_names(&self, observed: &Observed, text: &ConfigText) -> Result<(), WriteError> {
        let names = |text: &ConfigText| -> BTreeSet<String> {
            let named = text.lines().iter().filter(|line| line.contains(INIT_ADDR));
            named.filter_map(|line| line.split_whitespace().nth(2).map(str::to_owned)).collect()
        };
        if names(text).is_subset(&names(&observed.text)) {
            return Ok(());
        }
        match self.validate(text).await? {
            Verdict::Valid => Ok(()),
            Verdict::Refused(message) => Err(WriteError::Invalid { message }),
            Verdict::TooLong(limit) => Err(WriteError::TooLong { limit }),
        }
    }

    /// `haproxy.write`, as far as this API offers it.
    fn write_mode(&self) -> Write {
        match self.write {
            Write::Auto if self.no_raw_write.load(Ordering::Relaxed) => Write::Transaction,
            write => write,
        }
    }

    fn stage_text(&self, observed: &Observed, plan: &Plan) -> Staged {
        Staged { text: plan::text::apply(plan, observed, &self.owner), transaction: None }
    }

    /// Before a write: makes explicit what sections inherit, if it is not. A raw write puts all `defaults` sections
    /// first, and a section that names none would then inherit from another one than before; a transaction writes
    /// `from` to the sections of the file (seen on 3.0, 3.2 and 3.4). So a transaction without edits is committed,
    /// which reloads, once per file.
    async fn make_inheritance_explicit(&self, observed: &Observed, text: &ConfigText) -> Result<(), WriteError> {
        if !text.inherits_by_position() {
            self.made_explicit.store(false, Ordering::Relaxed);
            return Ok(());
        }
        if self.made_explicit.swap(true, Ordering::Relaxed) {
            let what = "the file has several `defaults` sections, and the Data Plane API does not write out which one \
                        each section inherits from: name it with `from` in the header of each section";
            return Err(AccessError::Refused { what: what.to_owned(), source: None }.into());
        }
        tracing::info!("reloading once: the Data Plane API writes out which `defaults` each section inherits from");
        let transaction = self.open(observed.version).await?;
        self.commit_transaction(observed, &transaction).await?;
        Err(WriteError::Conflict("what its sections inherit is written out now".to_owned()))
    }

    /// Writes the whole text.
    async fn post_text(
        &self,
        version: u64,
        text: &ConfigText,
        query: (&str, &str),
        actions: Option<String>,
    ) -> Result<Answer, AccessError> {
        let version = version.to_string();
        let body = Body { text: Some(text.to_bytes()), actions, within: Some(self.load_timeout()), ..Body::default() };
        let answer = self.client.send(Method::POST, RAW, &[("version", version.as_str()), query], body).await?;
        self.no_raw_write.store(has_no_raw_write(answer.status), Ordering::Relaxed);
        Ok(answer)
    }

    /// Commits a transaction, which reloads. Whatever fails, it is not left open.
    async fn commit_transaction(&self, observed: &Observed, id: &str) -> Result<(), WriteError> {
        let path = format!("{TRANSACTIONS}/{id}");
        let body = Body { within: Some(self.load_timeout()), ..Body::default() };
        let answer = self.client.send(Method::PUT, &path, &[("force_reload", "true")], body).await;
        let result = match answer {
            Ok(answer) => self.loaded(observed, &answer).await,
            Err(error) => Err(error.into()),
        };
        if result.is_err() {
            self.drop_after_failure(id).await;
        }
        result
    }

    /// Interprets the result of a write. A failed validation leaves the version, a failed reload has changed it.
    async fn written(&self, observed: &Observed, answer: &Answer) -> Result<(), WriteError> {
        match answer.status {
            StatusCode::BAD_REQUEST if answer.moved(observed.version) => {
                Err(WriteError::ReloadFailed { message: answer.message() })
            }
            status if status.is_success() => match &answer.reload {
                Some(id) => self.wait_for_reload(id).await,
                None => Ok(()),
            },
            _ => Err(refused("the write", answer)),
        }
    }

    /// Interprets the result of a write that was to be loaded.
    async fn loaded(&self, observed: &Observed, answer: &Answer) -> Result<(), WriteError> {
        let result = self.written(observed, answer).await;
        if let Err(WriteError::ReloadFailed { .. }) = result
            && let Err(error) = self.put_back(&observed.text, answer.version).await
        {
            // The failed reload is what counts; the next round starts from what is there.
            tracing::warn!(error = %chain(&error), "could not put the configuration from before back");
        }
        result
    }

    async fn wait_for_reload(&self, id: &str) -> Result<(), WriteError> {
        let deadline = tokio::time::Instant::now() + RELOAD_TIMEOUT;
        loop {
            let body = self.client.get(&format!("/v3/services/haproxy/reloads/{id}"), &[]).await?.json()?;
            let message = match body["status"].as_str() {
                Some("succeeded") => return Ok(()),
                Some("failed") => body["response"].as_str().unwrap_or("it does not say why").trim().to_owned(),
                _ if tokio::time::Instant::now() > deadline => {
                    format!("reload {id} is not done after {RELOAD_TIMEOUT:?}")
                }
                _ => {
                    tokio::time::sleep(RELOAD_POLL).await;
                    continue;
                }
            };
            return Err(WriteError::ReloadFailed { message });
        }
    }

    /// After a reload that failed, the disk has the text of the last reload, which lacks every live change since, and
    /// the API's memory has the text that could not be loaded, on which its structured edits would be based (seen on
    /// 3.0, 3.2 and 3.4). Writing the text from before makes them agree. Nothing is loaded: the next round checks
    /// whether the process agrees.
    ///
    /// Only if the disk is what such a failure leaves, older than the API's memory, and the memory is as our failure
    /// left it: another client may have committed since, and its commit must not be overwritten.
    async fn put_back(&self, before: &ConfigText, failed: Option<u64>) -> Result<(), WriteError> {
        let answer = self.client.get(RAW, &[]).await?;
        let (memory, disk) = (answer.version, answer.config_text().version());
        if memory != failed || disk == memory {
            tracing::info!("another client wrote after the reload that failed; its configuration is kept");
            return Ok(());
        }
        tracing::warn!("writing the configuration from before the reload that failed");
        self.write_unloaded(memory, disk, before).await
    }

    /// Writes a text without loading it. Which of the two versions the API expects, if memory and disk differ, is not
    /// documented; the wrong one is answered with 409.
    async fn write_unloaded(
        &self,
        memory: Option<u64>,
        disk: Option<u64>,
        text: &ConfigText,
    ) -> Result<(), WriteError> {
        for version in [memory, disk].into_iter().flatten() {
            let answer = self.post_text(version, text, ("skip_reload", "true"), None).await?;
            match answer.status {
                status if status.is_success() => return Ok(()),
                StatusCode::CONFLICT => {}
                _ => return Err(refused("the write", &answer)),
            }
        }
        Err(WriteError::Conflict(
            "the Data Plane API takes neither the version of its memory nor that of its file".to_owned(),
        ))
    }

    /// Writes a text without a reload, and has the API make the changes in the process.
    async fn write_live(&self, observed: &Observed, text: &ConfigText, actions: &[Action]) -> Result<(), WriteError> {
        self.validate_names(observed, text).await?;
        self.make_inheritance_explicit(observed, text).await?;
        let actions = Some(header(actions)?).filter(|actions| !actions.is_empty());
        let answer = self.post_text(observed.version, text, ("skip_reload", "true"), actions).await?;
        match answer.status {
            status if has_no_raw_write(status) => Err(WriteError::NotLive("this API has no raw write")),
            // An action failed after the file was written, and those after it were not tried (seen on 3.0, 3.2 and
            // 3.4). If the version did not change, the file could not be written at all: a full disk.
            StatusCode::INTERNAL_SERVER_ERROR if answer.moved(observed.version) => {
                Err(WriteError::HalfLive { message: answer.message() })
            }
            status if status.is_success() => Ok(()),
            _ => Err(refused("the write", &answer)),
        }
    }

    async fn no_version_3(&self) -> AccessError {
        let v2 = self.client.send(Method::GET, "/v2/info", &[], Body::default()).await;
        let what = if v2.is_ok_and(|answer| answer.status.is_success()) {
            "this Data Plane API speaks version 2 only: install Data Plane API 3.0 or newer, which comes with HAProxy 3.0"
        } else {
            "there is no Data Plane API at this address: check haproxy.address (HAPROXY_DATAPLANE_URL)"
        };
        AccessError::Refused { what: what.to_owned(), source: None }
    }
}

#[async_trait]
impl Plane for Dataplane {
    async fn info(&self) -> Result<HaproxyInfo, AccessError> {
        let path = "/v3/services/haproxy/runtime/info";
        let answer = self.client.send(Method::GET, path, &[], Body::default()).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Err(self.no_version_3().await);
        }
        if !answer.status.is_success() {
            return Err(unavailable("a look at HAProxy", &answer));
        }
        let mut body = answer.json()?;
        // One version of the API answers with one object, another with a list.
        let first = body.as_array().and_then(|list| list.first().cloned());
        let body = first.unwrap_or_else(|| body.take());
        let info = &body["info"];
        let Some(version) = info["version"].as_str() else {
            let said = body["error"].as_str().map_or_else(|| answer.message(), str::to_owned);
            return Err(AccessError::NotRunning {
                what: "the Data Plane API answers, but HAProxy behind it does not".to_owned(),
                is_connected: true,
                source: said.into(),
            });
        };
        let figure = |name: &str| info[name].as_u64();
        Ok(HaproxyInfo {
            version: Version::gate(version)?,
            release: version.to_owned(),
            pid: figure("pid").unwrap_or(0),
            uptime: figure("uptime").map(Duration::from_secs),
            traffic: Traffic {
                connections: figure("curr_conns"),
                connections_total: figure("cum_conns"),
                connection_rate: figure("conn_rate"),
                connection_limit: figure("max_conn"),
                requests_total: figure("cum_req"),
            },
        })
    }

    async fn stats(&self, fields: Fields) -> Result<Stats, AccessError> {
        let answer = self.client.get(STATS, &[]).await?;
        Stats::from_native(&answer.body, fields).map_err(|source| AccessError::Unavailable {
            what: "the Data Plane API does not say what HAProxy counts".to_owned(),
            source: source.into(),
        })
    }

    async fn capabilities(&self, info: &HaproxyInfo) -> Result<Capabilities, AccessError> {
        let Some(socket) = &self.socket else { return Ok(Capabilities::default()) };
        socket.check(info.pid).await?;
        let found = Capabilities::of_socket(info.version);
        // Structured edits cannot write a profile as it has to be.
        Ok(Capabilities { backends: found.backends && self.write_mode() != Write::Transaction, ..found })
    }

    async fn recover(&self) -> Result<(), WriteError> {
        self.clear_leftovers().await?;
        let answer = self.client.get(RAW, &[]).await?;
        let text = answer.config_text();
        match text.version() {
            // A reload failed, and the client that made the change did not clean it up.
            Some(disk) if answer.version.is_some_and(|memory| memory > disk) => {
                // Any write would break it (see `survey`).
                if text.conditional().is_some() {
                    return Ok(());
                }
                tracing::warn!("an earlier write could not be loaded; going on from the file");
                self.write_unloaded(answer.version, Some(disk), &text).await
            }
            _ => Ok(()),
        }
    }

    async fn observe(&self) -> Result<Observed, AccessError> {
        let answer = self.client.get(RAW, &[]).await?;
        let text = answer.config_text();
        let version = answer.version.or(text.version()).ok_or_else(|| AccessError::Unavailable {
            what: "the Data Plane API does not say which version the configuration has".to_owned(),
            source: "no Configuration-Version header".into(),
        })?;
        Ok(Observed::new(version, text, &self.owner))
    }

    async fn maps(&self, observed: &Observed, process: bool) -> Result<Maps, AccessError> {
        self.read_maps(observed, process).await
    }

    async fn put_map(&self, folder: &str, file: &MapFile, entries: &[Entry]) -> Result<(), WriteError> {
        self.write_map(folder, file, entries).await
    }

    async fn delete_map(&self, file: &MapFile) -> Result<(), WriteError> {
        self.remove_map(file).await
    }

    async fn survey(&self, observed: &Observed) -> Result<Survey, WriteError> {
        self.surveyed(observed).await
    }

    async fn stage(&self, observed: &Observed, plan: &Plan) -> Result<Staged, WriteError> {
        let write = self.write_mode();
        // Structured edits know neither profiles nor, as a frontend, a `listen` section.
        let is_frontend = |name| observed.frontend(name).is_some_and(|known| known.section.kind == "frontend");
        let has_others = !plan.profiles.add.is_empty() || !plan.routes.rules.keys().all(is_frontend);
        let text_only = self.text_only.load(Ordering::Relaxed) || plan.size() > MAX_EDITS || has_others;
        // Lines of another controller are replaced in one step, and only as lines are they certain to be its own.
        if write == Write::Text || plan.retires() || (write == Write::Auto && text_only) {
            return Ok(self.stage_text(observed, plan));
        }
        match self.stage_transaction(observed, plan).await? {
            Ok(staged) => Ok(staged),
            Err(loss) if write == Write::Auto => {
                tracing::info!(%loss, "the API's structured edits cannot carry this; writing the text");
                self.text_only.store(loss.is_of_ours(), Ordering::Relaxed);
                Ok(self.stage_text(observed, plan))
            }
            Err(loss) => Err(WriteError::Distorted(loss.to_string())),
        }
    }

    async fn commit(&self, observed: &Observed, staged: Staged) -> Result<(), WriteError> {
        let ready = match self.validate_names(observed, &staged.text).await {
            Ok(()) => self.make_inheritance_explicit(observed, &staged.text).await,
            invalid => invalid,
        };
        if let Err(error) = ready {
            if let Some(id) = &staged.transaction {
                self.drop_after_failure(id).await;
            }
            return Err(error);
        }
        match &staged.transaction {
            Some(id) => self.commit_transaction(observed, id).await,
            None => {
                let answer = self.post_text(observed.version, &staged.text, ("force_reload", "true"), None).await?;
                self.loaded(observed, &answer).await
            }
        }
    }

    async fn abort(&self, staged: Staged) -> Result<(), AccessError> {
        match staged.transaction {
            Some(id) => self.drop_transaction(&id).await,
            None => Ok(()),
        }
    }

    async fn commit_live(&self, observed: &Observed, text: &ConfigText, actions: &[Action]) -> Result<(), WriteError> {
        if let Some(worker) = self.socket.as_ref().and_then(RuntimeSocket::worker) {
            if *text != observed.text {
                self.write_live(observed, text, &[]).await?;
            }
            return worker.act(actions).await;
        }
        self.write_live(observed, text, actions).await
    }

    async fn validate(&self, text: &ConfigText) -> Result<Verdict, AccessError> {
        let body =
            Body { text: Some(text.without_maps().to_bytes()), within: Some(self.load_timeout()), ..Body::default() };
        let sent = self.client.send(Method::POST, RAW, &[("only_validate", "true")], body);
        let Ok(answer) = tokio::time::timeout(self.validation_timeout, sent).await else {
            return Ok(Verdict::TooLong(self.validation_timeout));
        };
        let answer = answer?;
        match refused("a validation", &answer) {
            _ if answer.status.is_success() => Ok(Verdict::Valid),
            WriteError::Invalid { message } => Ok(Verdict::Refused(message)),
            _ => Err(unavailable("a validation", &answer)),
        }
    }

    async fn runtime(&self, observed: &Observed) -> Result<Runtime, AccessError> {
        match self.socket.as_ref().and_then(RuntimeSocket::worker) {
            Some(worker) => worker.runtime(observed).await,
            None => self.runtime_servers(observed).await,
        }
    }

    async fn set_state(&self, change: &StateChange) -> Result<(), AccessError> {
        self.put_state(change).await
    }

    async fn unpublish(&self, backend: &BackendName) -> Result<(), AccessError> {
        match self.socket.as_ref().and_then(RuntimeSocket::worker) {
            Some(worker) => worker.unpublish(backend).await,
            None => Ok(()),
        }
    }

    async fn remove(&self, surplus: &Surplus) -> Result<bool, AccessError> {
        match self.socket.as_ref().and_then(RuntimeSocket::worker) {
            Some(worker) => worker.remove(surplus).await,
            None => Ok(false),
        }
    }

    async fn reload(&self, observed: &Observed) -> Result<(), WriteError> {
        self.make_inheritance_explicit(observed, &observed.text).await?;
        let answer = self.post_text(observed.version, &observed.text, ("force_reload", "true"), None).await?;
        if has_no_raw_write(answer.status) {
            // The commit of a transaction always reloads, even if it is empty.
            let transaction = self.open(observed.version).await?;
            return self.commit_transaction(observed, &transaction).await;
        }
        self.loaded(observed, &answer).await
    }
}

fn has_no_raw_write(status: StatusCode) -> bool {
    [StatusCode::METHOD_NOT_ALLOWED, StatusCode::NOT_FOUND, StatusCode::NOT_IMPLEMENTED].contains(&status)
}

/// The `X-Runtime-Actions` header.
fn header(actions: &[Action]) -> Result<String, WriteError> {
    let mut header = String::new();
    for action in actions {
        if !header.is_empty() {
            header.push(';');
        }
        let _ = match action {
            Action::Address(backend, server, ip, port) => {
                write!(header, "SetServerAddr {backend} {server} {ip} {port}")
            }
            Action::State(backend, server, state) => {
                write!(header, "SetServerState {backend} {server} {}", state.as_str())
            }
            Action::Weight(backend, server, weight) => write!(header, "SetServerWeight {backend} {server} {weight}"),
            // The API adds a server, but cannot turn on its health check.
            Action::Add(..) | Action::Check(..) | Action::Make(..) | Action::Publish(_) => {
                return Err(WriteError::NotLive("a server is added, and there is no `haproxy.runtime_socket`"));
            }
        };
    }
    if header.len() > MAX_ACTIONS {
        return Err(WriteError::NotLive("more changes at once than one request can carry"));
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::{BackendName, State};

    #[test]
    fn actions_that_no_request_can_carry_take_a_reload() {
        let name: BackendName = "api".parse().expect("a name");
        let action = Action::State(name.clone(), name.slot(1), State::Drain);
        assert_eq!(header(std::slice::from_ref(&action)).expect("one"), "SetServerState api api_1 drain");
        assert!(matches!(header(&vec![action; 20_000]), Err(WriteError::NotLive(_))));
    }
}
