//! A plan as structured edits in one transaction.

use std::collections::BTreeSet;

use reqwest::{Method, StatusCode};
use serde_json::{Map, Value};

use crate::desired::{BackendName, FrontendName};
use crate::errors::chain;
use crate::haproxy::maps;
use crate::haproxy::text::ConfigText;
use crate::observed::Observed;
use crate::plan::{Edit, Plan, RuleEdit, ServerEdit};

use super::super::{AccessError, Staged, WriteError};
use super::client::{Body, refused, unavailable};
use super::meaning::{self, Loss};
use super::{Dataplane, RAW, TRANSACTIONS, Write, json};

pub(super) const BACKENDS: &str = "/v3/services/haproxy/configuration/backends";

const FRONTENDS: &str = "/v3/services/haproxy/configuration/frontends";
const DEFAULTS: &str = "/v3/services/haproxy/configuration/defaults";

/// A plan in a transaction, or what that would lose.
type Staging = Result<Staged, Loss>;

impl Dataplane {
    /// Opens a transaction, edits, and reads back what it would write. Whatever fails, the transaction is not left
    /// open.
    pub(super) async fn stage_transaction(&self, observed: &Observed, plan: &Plan) -> Result<Staging, WriteError> {
        let transaction = self.open(observed.version).await?;
        let staged = self.fill(&transaction, observed, plan).await;
        match staged {
            Ok(Ok(text)) => Ok(Ok(Staged { text, transaction: Some(transaction) })),
            failed => {
                self.drop_after_failure(&transaction).await;
                failed.map(|loss| loss.map(|text| Staged { text, transaction: None }))
            }
        }
    }

    /// Opens a transaction and returns its ID.
    pub(super) async fn open(&self, version: u64) -> Result<String, WriteError> {
        let version = version.to_string();
        let query = [("version", version.as_str())];
        let mut answer = self.client.send(Method::POST, TRANSACTIONS, &query, Body::default()).await?;
        if answer.status == StatusCode::TOO_MANY_REQUESTS {
            self.clear_leftovers().await?;
            answer = self.client.send(Method::POST, TRANSACTIONS, &query, Body::default()).await?;
        }
        if answer.status != StatusCode::CREATED {
            return Err(refused("the opening of a transaction", &answer));
        }
        let id = answer.json()?["id"].as_str().map(str::to_owned);
        id.ok_or_else(|| unavailable("the opening of a transaction", &answer).into())
    }

    /// What a commit of this transaction would write.
    pub(super) async fn staged_text(&self, transaction: &str) -> Result<ConfigText, AccessError> {
        let answer = self.client.get(RAW, &[("transaction_id", transaction)]).await?;
        Ok(answer.config_text())
    }

    pub(super) async fn drop_transaction(&self, id: &str) -> Result<(), AccessError> {
        let path = format!("{TRANSACTIONS}/{id}");
        let answer = self.client.send(Method::DELETE, &path, &[], Body::default()).await?;
        match answer.status {
            status if status.is_success() || status == StatusCode::NOT_FOUND => Ok(()),
            _ => Err(unavailable("the end of a transaction", &answer)),
        }
    }

    /// The failure is what counts; a transaction that can't be dropped now is cleaned up by the next pass.
    pub(super) async fn drop_after_failure(&self, id: &str) {
        if let Err(error) = self.drop_transaction(id).await {
            tracing::warn!(id, error = %chain(&error), "could not drop the transaction");
        }
    }

    async fn fill(
        &self,
        transaction: &str,
        observed: &Observed,
        plan: &Plan,
    ) -> Result<Result<ConfigText, Loss>, WriteError> {
        let defaults = self.defaults(transaction, observed, plan).await?;
        for (name, edit) in &plan.edits {
            self.edit(transaction, observed, defaults.as_deref(), name, edit).await?;
        }
        for (name, edit) in &plan.routes.rules {
            self.edit_rules(transaction, name, edit).await?;
        }
        // Those that name another one first.
        let (bases, profiles): (Vec<_>, Vec<_>) =
            plan.profiles.remove.iter().partition(|section| section.from.is_none());
        for section in profiles.into_iter().chain(bases) {
            self.write(Method::DELETE, &format!("{DEFAULTS}/{}", section.name), transaction, None).await?;
        }
        let text = self.staged_text(transaction).await?;
        for loss in meaning::losses(observed, plan, &text) {
            if self.write_mode() != Write::Transaction || !loss.is_bearable() {
                return Ok(Err(loss));
            }
            tracing::warn!(%loss, "the API's structured edits lose something; `haproxy.write` = `auto` keeps it");
        }
        Ok(Ok(text))
    }

    /// The `defaults` section that a new backend names. If the sections of the file name none, the API adds it to each
    /// of them in its first transaction (seen on 3.0, 3.2 and 3.4), and HAProxy warns about a file that mixes both,
    /// which is an error with `zero-warning`.
    async fn defaults(
        &self,
        transaction: &str,
        observed: &Observed,
        plan: &Plan,
    ) -> Result<Option<String>, AccessError> {
        let creates = plan.edits.values().any(|edit| matches!(edit, Edit::Create { .. }));
        if observed.defaults.is_some() || !creates {
            return Ok(observed.defaults.clone());
        }
        let rendered = self.staged_text(transaction).await?;
        Ok(observed.again(rendered).defaults)
    }

    async fn edit(
        &self,
        transaction: &str,
        observed: &Observed,
        defaults: Option<&str>,
        name: &BackendName,
        edit: &Edit,
    ) -> Result<(), WriteError> {
        let path = format!("{BACKENDS}/{name}");
        let before = observed.backend(name);
        match edit {
            Edit::Create { settings, servers, is_live: _ } => {
                let body = json::backend(name, defaults, settings, servers, Map::new(), &self.owner);
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
                let body = json::backend(name, from, settings, servers, others, &self.owner);
                self.write(Method::PUT, &path, transaction, Some(body)).await
            }
            Edit::Servers(edits) => {
                for edit in edits {
                    self.edit_server(transaction, &path, edit).await?;
                }
                Ok(())
            }
            Edit::Delete { .. } => self.write(Method::DELETE, &path, transaction, None).await,
        }
    }

    async fn edit_server(&self, transaction: &str, backend: &str, edit: &ServerEdit) -> Result<(), WriteError> {
        let all = format!("{backend}/servers");
        let one = format!("{all}/{}", edit.name());
        match edit {
            ServerEdit::Add { server, is_live: _ } => {
                self.write(Method::POST, &all, transaction, Some(json::server(server, &self.owner))).await
            }
            ServerEdit::Set { after, .. } => {
                self.write(Method::PUT, &one, transaction, Some(json::server(after, &self.owner))).await
            }
            ServerEdit::Remove { .. } | ServerEdit::Retire { .. } => {
                self.write(Method::DELETE, &one, transaction, None).await
            }
        }
    }

    /// Removes the rules of ours from a frontend, from the last one on, and adds new ones behind the others, which are not
    /// sent again.
    async fn edit_rules(&self, transaction: &str, frontend: &FrontendName, edit: &RuleEdit) -> Result<(), WriteError> {
        let path = format!("{FRONTENDS}/{frontend}/backend_switching_rules");
        let known = self.client.get(&path, &[("transaction_id", transaction)]).await?.json()?;
        let known: Vec<&Value> = known.as_array().into_iter().flatten().collect();
        let is_ours = |rule: &Value| {
            let words = ["name", "cond_test"].into_iter().filter_map(|key| rule[key].as_str().map(str::to_owned));
            maps::owner_of(&words.collect::<Vec<_>>()).is_some_and(|owner| self.owner.has(&owner))
        };
        let ours: Vec<usize> = (0..known.len()).filter(|at| is_ours(known[*at])).collect();
        for at in ours.iter().rev() {
            self.write(Method::DELETE, &format!("{path}/{at}"), transaction, None).await?;
        }
        for (at, line) in (known.len() - ours.len()..).zip(&edit.lines) {
            let body = json::rule(line);
            self.write(Method::POST, &format!("{path}/{at}"), transaction, Some(body)).await?;
        }
        Ok(())
    }

    async fn foreign_servers(
        &self,
        transaction: &str,
        backend: &str,
        names: &BTreeSet<String>,
    ) -> Result<Map<String, Value>, AccessError> {
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
    ) -> Result<(), WriteError> {
        let what = format!("{method} {path}");
        let query = [("full_section", "true"), ("transaction_id", transaction)];
        let answer = self.client.send(method, path, &query, Body { json, ..Body::default() }).await?;
        if answer.status.is_success() { Ok(()) } else { Err(refused(&what, &answer)) }
    }
}
