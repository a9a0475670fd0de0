//! The running process through the API: its servers, and their states.

use futures_util::stream::{self, StreamExt, TryStreamExt};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::desired::{BackendName, State};
use crate::observed::Observed;

use super::super::{AccessError, Runtime, RuntimeServer, StateChange};
use super::Dataplane;
use super::client::{Answer, Body, unavailable};

const RUNTIME: &str = "/v3/services/haproxy/runtime/backends";
/// Backends whose servers are read in parallel.
const CONCURRENCY: usize = 8;

impl Dataplane {
    /// The servers of the managed backends as the process has them: one call for each backend.
    pub(super) async fn runtime_servers(&self, observed: &Observed) -> Result<Runtime, AccessError> {
        let names: Vec<BackendName> = observed.managed().map(|(name, _)| name).collect();
        let asked = names.into_iter().map(|name| self.servers_of(name));
        let lists: Vec<_> = stream::iter(asked).buffered(CONCURRENCY).try_collect().await?;
        Ok(Runtime { servers: lists.into_iter().flatten().collect(), ..Runtime::default() })
    }

    async fn servers_of(&self, backend: BackendName) -> Result<Vec<((String, String), RuntimeServer)>, AccessError> {
        let path = format!("{RUNTIME}/{backend}/servers");
        let answer = self.client.send(Method::GET, &path, &[], Body::default()).await?;
        if is_missing(&answer) {
            return Ok(Vec::new());
        }
        if !answer.status.is_success() {
            return Err(unavailable("a look at the run-time servers", &answer));
        }
        let list = answer.json()?;
        let servers = list.as_array().into_iter().flatten().filter_map(|server| {
            let name = server["name"].as_str()?.to_owned();
            Some(((backend.to_string(), name), running(server)))
        });
        Ok(servers.collect())
    }

    /// Sets one state in the process. A server that the process lacks is out anyway.
    pub(super) async fn put_state(&self, change: &StateChange) -> Result<(), AccessError> {
        let StateChange { backend, server, state } = change;
        let path = format!("{RUNTIME}/{backend}/servers/{server}");
        let body = Body { json: Some(json!({"admin_state": state.as_str()})), ..Body::default() };
        let answer = self.client.send(Method::PUT, &path, &[], body).await?;
        if answer.status.is_success() || is_missing(&answer) {
            return Ok(());
        }
        Err(unavailable("a run-time state", &answer))
    }
}

/// A backend or server that the process does not have: 404, or 500 on 3.0 (recorded).
fn is_missing(answer: &Answer) -> bool {
    answer.status == StatusCode::NOT_FOUND || (!answer.status.is_success() && answer.message().contains("not found"))
}

fn running(server: &Value) -> RuntimeServer {
    RuntimeServer {
        address: server["address"].as_str().and_then(|address| address.parse().ok()),
        port: server["port"].as_u64().and_then(|port| port.try_into().ok()).unwrap_or(0),
        state: match server["admin_state"].as_str() {
            Some("ready") => State::Ready,
            Some("drain") => State::Drain,
            _ => State::Maint,
        },
        // Since 3.4.
        weight: server["uweight"].as_u64().and_then(|weight| weight.try_into().ok()),
        unchecked: false,
    }
}
