//! The Data Plane API, version 3.
//!
//! A structural write is one transaction (or, with `write = text`, one versioned write of the whole
//! text, which the API runs as a transaction of its own) with a reload that is waited for. Before a
//! transaction is committed, the text that it would write is read back and must say what was planned
//! and leave what is not ours as it is: the API drops fields that it does not know without a word.

mod client;
mod json;
mod leftovers;
mod meaning;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use reqwest::{Method, StatusCode};
use serde_json::{Map, Value};

use crate::desired::{BackendName, Mark, State};
use crate::haproxy::text::ConfigText;
use crate::haproxy::version::Version;
use crate::observed::Observed;
use crate::plan::{self, Action, Edit, Plan, ServerEdit};

use super::{Committed, HaproxyInfo, Plane, PlaneError, Runtime, RuntimeServer, Staged};
pub use client::Settings;
use client::{Answer, Body, Client, unexpected};

const TRANSACTIONS: &str = "/v3/services/haproxy/transactions";
const RAW: &str = "/v3/services/haproxy/configuration/raw";
const BACKENDS: &str = "/v3/services/haproxy/configuration/backends";
/// Between two looks at a reload that was started and not waited for.
const RELOAD_POLL: Duration = Duration::from_millis(100);
/// Until a reload that was started must be done.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of run-time actions in one request: half of what the API, as a Go HTTP server, takes in headers by
/// default (net/http, `DefaultMaxHeaderBytes`).
const MAX_ACTIONS: usize = 512 * 1024;
/// Backends whose run-time servers are asked for at a time.
const CONCURRENCY: usize = 8;

/// How the configuration is written (`haproxy.write`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Write {
    /// `transaction`, unless the file has what the API cannot carry (`.if` blocks, a field that it drops).
    #[default]
    Auto,
    /// Structured edits, the API's own way. It renders the whole file anew; the meaning stays.
    Transaction,
    /// The same plan as an edit of the text: no foreign byte changes.
    Text,
}

/// The way through the API.
#[derive(Debug)]
pub struct Dataplane {
    client: Client,
    mark: Mark,
    write: Write,
    /// With `auto`: the structured edits were seen not to carry what we write, so the text it is.
    text_only: AtomicBool,
}

impl Dataplane {
    /// Sets up a client; nothing is sent yet.
    pub fn new(settings: Settings, mark: Mark, write: Write) -> Result<Self, PlaneError> {
        Ok(Self { client: Client::new(settings)?, mark, write, text_only: AtomicBool::new(false) })
    }

    fn stage_text(&self, observed: &Observed, plan: &Plan) -> Staged {
        Staged { text: plan::text::apply(plan, observed, &self.mark), transaction: None }
    }

    /// Opens a transaction, edits, and reads back what it would write. Whatever fails, the transaction
    /// does not stay behind.
    async fn stage_transaction(&self, observed: &Observed, plan: &Plan) -> Result<Staged, PlaneError> {
        let transaction = self.open(observed.version).await?;
        match self.fill(&transaction, observed, plan).await {
            Ok(text) => Ok(Staged { text, transaction: Some(transaction) }),
            Err(error) => {
                self.drop_after_failure(&transaction).await;
                Err(error)
            }
        }
    }

    async fn open(&self, version: u64) -> Result<String, PlaneError> {
        let version = version.to_string();
        let query = [("version", version.as_str())];
        let mut answer = self.client.send(Method::POST, TRANSACTIONS, &query, Body::default()).await?;
        if answer.status == StatusCode::TOO_MANY_REQUESTS {
            self.clear_leftovers().await?;
            answer = self.client.send(Method::POST, TRANSACTIONS, &query, Body::default()).await?;
        }
        let unexpected = || unexpected("the opening of a transaction", &answer);
        if answer.status != StatusCode::CREATED {
            return Err(unexpected());
        }
        answer.json()?["id"].as_str().map(str::to_owned).ok_or_else(unexpected)
    }

    async fn drop_transaction(&self, id: &str) -> Result<(), PlaneError> {
        let path = format!("{TRANSACTIONS}/{id}");
        let answer = self.client.send(Method::DELETE, &path, &[], Body::default()).await?;
        match answer.status {
            status if status.is_success() || status == StatusCode::NOT_FOUND => Ok(()),
            _ => Err(unexpected("the end of a transaction", &answer)),
        }
    }

    /// The failure is what counts; a transaction that can't be dropped now is cleared up by the next pass.
    async fn drop_after_failure(&self, id: &str) {
        if let Err(error) = self.drop_transaction(id).await {
            tracing::warn!(id, error = %super::chain(&error), "could not drop the transaction");
        }
    }

    async fn fill(&self, transaction: &str, observed: &Observed, plan: &Plan) -> Result<ConfigText, PlaneError> {
        for (name, edit) in &plan.edits {
            self.edit(transaction, observed, name, edit).await?;
        }
        let answer = self.client.get(RAW, &[("transaction_id", transaction)]).await?;
        let text = ConfigText::new(&answer.body);
        for loss in meaning::losses(observed, plan, &text, &self.mark) {
            if self.write != Write::Transaction || !loss.is_bearable() {
                return Err(PlaneError::Distorted(loss.to_string()));
            }
            tracing::warn!(%loss, "the API's structured edits lose something; haproxy.write = auto keeps it");
        }
        Ok(text)
    }

    async fn edit(
        &self,
        transaction: &str,
        observed: &Observed,
        name: &BackendName,
        edit: &Edit,
    ) -> Result<(), PlaneError> {
        let path = format!("{BACKENDS}/{name}");
        let before = observed.backend(name);
        match edit {
            Edit::Create { settings, servers } => {
                let from = observed.defaults.as_deref();
                let body = json::backend(name, from, settings, servers, Map::new(), &self.mark);
                self.write(Method::POST, BACKENDS, transaction, Some(body)).await
            }
            Edit::Change { settings, servers, .. } => {
                let others = match before {
                    Some(before) if !before.foreign.is_empty() => {
                        self.foreign_servers(transaction, &path, &before.foreign).await?
                    }
                    _ => Map::new(),
                };
                let from = before.and_then(|before| before.section.from.as_deref());
                let body = json::backend(name, from, settings, servers, others, &self.mark);
                self.write(Method::PUT, &path, transaction, Some(body)).await
            }
            Edit::Servers(edits) => {
                for edit in edits {
                    self.edit_server(transaction, &path, edit).await?;
                }
                Ok(())
            }
            Edit::Delete => self.write(Method::DELETE, &path, transaction, None).await,
        }
    }

    async fn edit_server(&self, transaction: &str, backend: &str, edit: &ServerEdit) -> Result<(), PlaneError> {
        let all = format!("{backend}/servers");
        let one = format!("{all}/{}", edit.name());
        match edit {
            ServerEdit::Add(server) => {
                self.write(Method::POST, &all, transaction, Some(json::server(server, &self.mark))).await
            }
            ServerEdit::Set { after, .. } => {
                self.write(Method::PUT, &one, transaction, Some(json::server(after, &self.mark))).await
            }
            ServerEdit::Remove(_) => self.write(Method::DELETE, &one, transaction, None).await,
        }
    }

    async fn foreign_servers(
        &self,
        transaction: &str,
        backend: &str,
        names: &BTreeSet<String>,
    ) -> Result<Map<String, Value>, PlaneError> {
        let query = [("full_section", "true"), ("transaction_id", transaction)];
        let body = self.client.get(backend, &query).await?.json()?;
        let servers = body["servers"].as_object().cloned().unwrap_or_default();
        Ok(servers.into_iter().filter(|(name, _)| names.contains(name)).collect())
    }

    async fn write(
        &self,
        method: Method,
        path: &str,
        transaction: &str,
        json: Option<Value>,
    ) -> Result<(), PlaneError> {
        let what = format!("{method} {path}");
        let query = [("full_section", "true"), ("transaction_id", transaction)];
        let answer = self.client.send(method, path, &query, Body { json, ..Body::default() }).await?;
        if answer.status.is_success() { Ok(()) } else { Err(unexpected(&what, &answer)) }
    }

    /// Writes the whole text.
    async fn post_text(
        &self,
        version: u64,
        text: &ConfigText,
        query: (&str, &str),
        actions: Option<String>,
    ) -> Result<Answer, PlaneError> {
        let version = version.to_string();
        let body = Body { text: Some(text.to_string()), actions, json: None };
        self.client.send(Method::POST, RAW, &[("version", version.as_str()), query], body).await
    }

    /// What a write came to. A failed validation leaves the version, a failed reload has moved it.
    async fn written(&self, observed: &Observed, answer: Answer) -> Result<Committed, PlaneError> {
        let version = answer.version.unwrap_or(observed.version + 1);
        match answer.status {
            StatusCode::BAD_REQUEST if version > observed.version => {
                Err(PlaneError::ReloadFailed { message: answer.message() })
            }
            status if status.is_success() => {
                if let Some(id) = &answer.reload {
                    self.wait_for_reload(id).await?;
                }
                Ok(Committed { version, reloaded: true })
            }
            _ => Err(unexpected("the write", &answer)),
        }
    }

    /// What a write that was to be loaded came to.
    async fn loaded(&self, observed: &Observed, answer: Answer) -> Result<Committed, PlaneError> {
        let result = self.written(observed, answer).await;
        if let Err(PlaneError::ReloadFailed { .. }) = result
            && let Err(error) = self.put_back(&observed.text).await
        {
            // The failed reload is what counts; the next pass goes on from what is there.
            tracing::warn!(error = %super::chain(&error), "could not put the configuration from before back");
        }
        result
    }

    async fn wait_for_reload(&self, id: &str) -> Result<(), PlaneError> {
        let deadline = tokio::time::Instant::now() + RELOAD_TIMEOUT;
        loop {
            let body = self.client.get(&format!("/v3/services/haproxy/reloads/{id}"), &[]).await?.json()?;
            match body["status"].as_str() {
                Some("succeeded") => return Ok(()),
                Some("failed") => {
                    let message = body["response"].as_str().unwrap_or("it does not say why").trim().to_owned();
                    return Err(PlaneError::ReloadFailed { message });
                }
                _ if tokio::time::Instant::now() > deadline => {
                    return Err(PlaneError::ReloadFailed {
                        message: format!("reload {id} is not done after {RELOAD_TIMEOUT:?}"),
                    });
                }
                _ => tokio::time::sleep(RELOAD_POLL).await,
            }
        }
    }
}

impl Plane for Dataplane {
    async fn info(&self) -> Result<HaproxyInfo, PlaneError> {
        let path = "/v3/services/haproxy/runtime/info";
        let answer = self.client.send(Method::GET, path, &[], Body::default()).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Err(self.no_version_3().await);
        }
        if !answer.status.is_success() {
            return Err(unexpected("a look at HAProxy", &answer));
        }
        let mut body = answer.json()?;
        // One version of the API answers with one object, another with a list of them.
        let first = body.as_array().and_then(|list| list.first().cloned());
        let body = first.unwrap_or_else(|| body.take());
        let info = &body["info"];
        let Some(version) = info["version"].as_str() else {
            let said = body["error"].as_str().map_or_else(|| answer.message(), str::to_owned);
            return Err(PlaneError::Unavailable {
                what: "the Data Plane API answers, but HAProxy behind it does not".to_owned(),
                source: said.into(),
            });
        };
        Ok(HaproxyInfo { version: Version::gate(version)?, pid: info["pid"].as_u64().unwrap_or(0) })
    }

    async fn recover(&self) -> Result<(), PlaneError> {
        self.clear_leftovers().await?;
        let observed = self.observe().await?;
        match observed.text.version() {
            Some(version) if version != observed.version => self.put_back(&observed.text).await,
            _ => Ok(()),
        }
    }

    async fn observe(&self) -> Result<Observed, PlaneError> {
        let answer = self.client.get(RAW, &[]).await?;
        let text = ConfigText::new(&answer.body);
        let version = answer.version.or(text.version()).ok_or_else(|| PlaneError::Unavailable {
            what: "the Data Plane API does not say which version the configuration has".to_owned(),
            source: "no Configuration-Version header".into(),
        })?;
        Ok(Observed::new(version, text, &self.mark))
    }

    async fn stage(&self, observed: &Observed, plan: &Plan) -> Result<Staged, PlaneError> {
        match self.write {
            Write::Text => Ok(self.stage_text(observed, plan)),
            Write::Transaction => self.stage_transaction(observed, plan).await,
            Write::Auto if self.text_only.load(Ordering::Relaxed) || observed.text.is_conditional() => {
                Ok(self.stage_text(observed, plan))
            }
            Write::Auto => match self.stage_transaction(observed, plan).await {
                Err(PlaneError::Distorted(what)) => {
                    tracing::info!(what, "the API's structured edits cannot carry this; writing the text from now on");
                    self.text_only.store(true, Ordering::Relaxed);
                    Ok(self.stage_text(observed, plan))
                }
                other => other,
            },
        }
    }

    async fn commit(&self, observed: &Observed, staged: Staged) -> Result<Committed, PlaneError> {
        let answer = match &staged.transaction {
            None => self.post_text(observed.version, &staged.text, ("force_reload", "true"), None).await,
            Some(id) => {
                let path = format!("{TRANSACTIONS}/{id}");
                self.client.send(Method::PUT, &path, &[("force_reload", "true")], Body::default()).await
            }
        };
        let result = match answer {
            Ok(answer) => self.loaded(observed, answer).await,
            Err(error) => Err(error),
        };
        if let (Err(_), Some(id)) = (&result, &staged.transaction) {
            self.drop_after_failure(id).await;
        }
        result
    }

    async fn abort(&self, staged: Staged) -> Result<(), PlaneError> {
        match staged.transaction {
            Some(id) => self.drop_transaction(&id).await,
            None => Ok(()),
        }
    }

    async fn commit_live(
        &self,
        observed: &Observed,
        text: &ConfigText,
        actions: &[Action],
    ) -> Result<Committed, PlaneError> {
        let actions = Some(header(actions)?).filter(|actions| !actions.is_empty());
        let answer = self.post_text(observed.version, text, ("skip_reload", "true"), actions).await?;
        match answer.status {
            status if has_no_raw_write(status) => Err(PlaneError::NotLive("this API has no raw write")),
            // Seen on 3.0, 3.2 and 3.4: the file is written all the same.
            StatusCode::INTERNAL_SERVER_ERROR => Err(PlaneError::HalfLive { message: answer.message() }),
            _ => self.written(observed, answer).await.map(|committed| Committed { reloaded: false, ..committed }),
        }
    }

    async fn validate(&self, text: &ConfigText) -> Result<(), PlaneError> {
        let body = Body { text: Some(text.to_string()), ..Body::default() };
        let answer = self.client.send(Method::POST, RAW, &[("only_validate", "true")], body).await?;
        if answer.status.is_success() { Ok(()) } else { Err(unexpected("a validation", &answer)) }
    }

    async fn runtime(&self, observed: &Observed) -> Result<Runtime, PlaneError> {
        let names: Vec<BackendName> = observed.managed().map(|(name, _)| name).collect();
        let asked: Vec<_> = names.into_iter().map(|name| self.runtime_servers(name)).collect();
        let lists: Vec<Runtime> = stream::iter(asked).buffered(CONCURRENCY).try_collect().await?;
        Ok(lists.into_iter().flatten().collect())
    }

    async fn reload(&self, observed: &Observed) -> Result<Committed, PlaneError> {
        let answer = self.post_text(observed.version, &observed.text, ("force_reload", "true"), None).await?;
        if has_no_raw_write(answer.status) {
            // The commit of a transaction always reloads, an empty one's too.
            let transaction = Some(self.open(observed.version).await?);
            return self.commit(observed, Staged { text: observed.text.clone(), transaction }).await;
        }
        self.loaded(observed, answer).await
    }
}

impl Dataplane {
    async fn no_version_3(&self) -> PlaneError {
        let v2 = self.client.send(Method::GET, "/v2/info", &[], Body::default()).await;
        let what = if v2.is_ok_and(|answer| answer.status.is_success()) {
            "this Data Plane API speaks version 2 only: install Data Plane API 3.0 or newer, which comes with HAProxy 3.0"
        } else {
            "there is no Data Plane API at this address: check haproxy.address (HAPROXY_DATAPLANE_URL)"
        };
        PlaneError::Refused { what: what.to_owned(), source: None }
    }

    async fn runtime_servers(&self, backend: BackendName) -> Result<Runtime, PlaneError> {
        let path = format!("/v3/services/haproxy/runtime/backends/{backend}/servers");
        let answer = self.client.send(Method::GET, &path, &[], Body::default()).await?;
        // A backend that the process does not have: 404, or 500 on 3.0 (recorded).
        if answer.status == StatusCode::NOT_FOUND
            || (!answer.status.is_success() && answer.message().contains("not found"))
        {
            return Ok(Runtime::new());
        }
        if !answer.status.is_success() {
            return Err(unexpected("a look at the run-time servers", &answer));
        }
        let list = answer.json()?;
        let servers = list.as_array().into_iter().flatten().filter_map(|server| {
            let name = server["name"].as_str()?.to_owned();
            let state = RuntimeServer {
                address: server["address"].as_str().and_then(|address| address.parse().ok()),
                port: server["port"].as_u64().and_then(|port| port.try_into().ok()).unwrap_or(0),
                state: match server["admin_state"].as_str() {
                    Some("ready") => State::Ready,
                    Some("drain") => State::Drain,
                    _ => State::Maint,
                },
                weight: server["uweight"].as_u64().and_then(|weight| weight.try_into().ok()),
            };
            Some(((backend.to_string(), name), state))
        });
        Ok(servers.collect())
    }

    /// After a reload that failed, the disk may have the failed text, or an older good one that lacks what was
    /// changed live since (which of them was not recorded, so it counts on neither). In its memory the API
    /// may go on from the failed one, which its structured edits would then bring back. Writing the good
    /// text makes them one. Nothing is loaded: whether the process agrees is for the audit to say.
    async fn put_back(&self, good: &ConfigText) -> Result<(), PlaneError> {
        tracing::warn!("writing the configuration from before the failed reload");
        let observed = self.observe().await?;
        // Which of the two versions it goes by is not documented; the wrong one is answered with 409.
        for version in [Some(observed.version), observed.text.version()].into_iter().flatten() {
            let answer = self.post_text(version, good, ("skip_reload", "true"), None).await?;
            match self.written(&observed, answer).await {
                Err(PlaneError::Conflict(_)) => {}
                other => return other.map(drop),
            }
        }
        Err(PlaneError::Conflict(
            "the Data Plane API takes neither the version of its memory nor that of its file".to_owned(),
        ))
    }
}

fn has_no_raw_write(status: StatusCode) -> bool {
    [StatusCode::METHOD_NOT_ALLOWED, StatusCode::NOT_FOUND, StatusCode::NOT_IMPLEMENTED].contains(&status)
}

/// The `X-Runtime-Actions` header.
fn header(actions: &[Action]) -> Result<String, PlaneError> {
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
        };
    }
    if header.len() > MAX_ACTIONS {
        return Err(PlaneError::NotLive("more changes at once than one request can carry"));
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_that_no_request_can_carry_take_a_reload() {
        let name: BackendName = "api".parse().expect("a name");
        let action = Action::State(name.clone(), name.slot(1), State::Drain);
        assert_eq!(header(std::slice::from_ref(&action)).expect("one"), "SetServerState api api_1 drain");
        assert!(matches!(header(&vec![action; 20_000]), Err(PlaneError::NotLive(_))));
    }
}
