//! A lock on a Nomad variable (`/v1/var/PATH?lock-acquire`, `lock-renew`, `lock-release`; seen on Nomad 1.11).
//!
//! Nomad frees a lock 2 × TTL after the last renewal and the delay after that, and at once when it is released. Then the
//! variable's index moves, which ends a blocking query on it; a renewal does not move it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;

use super::{Nomad, NomadError, Read, shortened};

/// Nomad takes no shorter one.
pub const TTL_MIN: Duration = Duration::from_secs(10);
/// Nomad takes no longer one.
pub const TTL_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// From the end of a lock that was not renewed to the next one. The holder has stopped to write long before: it gives
/// up after one TTL, and Nomad waits for two.
pub const DELAY: Duration = Duration::from_secs(5);

/// For one answer about a lock: renewals come every few seconds, and a write may wait for one.
const TIMEOUT: Duration = Duration::from_secs(3);
/// The same for a new lock, which Nomad's servers have to agree on; without a leader they answer after 5 s (seen).
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(8);
/// The ID of no lock.
const NOBODYS: &str = "00000000-0000-0000-0000-000000000000";
/// The items that are ours.
const ITEMS: [&str; 2] = ["holder", "http"];

/// Which variable is locked, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockConfig {
    /// The variable's path.
    pub path: LockPath,
    /// Its namespace.
    pub namespace: String,
    /// Between [`TTL_MIN`] and [`TTL_MAX`].
    pub ttl: Duration,
}

/// The path of a variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockPath(String);

impl std::str::FromStr for LockPath {
    type Err = &'static str;

    /// By Nomad's own rule for paths (`nomad/structs`, `validVariablePath`, and the reserved folder `nomad`).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_~/".contains(c);
        if text.is_empty() || text.len() > 128 || !text.chars().all(is_allowed) {
            return Err("the path of a Nomad variable has 1 to 128 letters, digits, `-`, `_`, `~` and `/`");
        }
        if text.starts_with('/') || text.ends_with('/') || text.contains("//") {
            return Err("the path of a Nomad variable neither starts nor ends with `/`, and has no `//`");
        }
        if text.split('/').next() == Some("nomad") && !text.starts_with("nomad/jobs/") {
            return Err("Nomad keeps the paths below `nomad/` for itself, except for `nomad/jobs/…`");
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for LockPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who holds a lock, as the holder wrote it into the variable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// The allocation, or the host and the process.
    pub name: String,
    /// Where it serves its API, if that can be reached from elsewhere.
    pub http: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.http {
            Some(http) => write!(f, "{} at {http}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// What a look at the variable found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// The variable's index, to wait from; 0: there is no such variable.
    pub index: u64,
    /// Who wrote it last: the holder, or the one before.
    pub holder: Option<Holder>,
}

/// A lock that is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    /// Its ID, which renews and releases it.
    id: String,
    /// The variable's index when it was acquired: it grows from one holder to the next.
    pub index: u64,
}

/// Why a lock was not acquired, renewed or released.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another one has it, or had it until a moment ago.
    #[error("another one holds the lock {path}")]
    Held {
        /// The variable.
        path: String,
    },
    /// Nomad has freed it, or the variable was deleted.
    #[error("Nomad does not hold the lock {path} for this controller any more: {message}")]
    Lost {
        /// The variable.
        path: String,
        /// Nomad's message.
        message: String,
    },
    /// 403.
    #[error(
        "Nomad does not let this token lock the variable {path} in the namespace {namespace}; it needs \
         `variables {{ path \"{path}\" {{ capabilities = [\"read\", \"write\"] }} }}` in that namespace's block of its \
         policy, as in deploy/policy.hcl"
    )]
    Denied {
        /// The variable.
        path: String,
        /// Its namespace.
        namespace: String,
    },
    /// The variable is something else than a lock.
    #[error(
        "the variable {path} is not used as a lock, as it holds something else, which would be lost: {keys}; name \
         another path with `leader.lock` (NOMAD_HAPROXY_LEADER_LOCK)"
    )]
    Taken {
        /// The variable.
        path: String,
        /// The keys of its items.
        keys: String,
    },
    /// No answer, or another one than expected: the lock may be held or not.
    #[error(transparent)]
    Nomad(#[from] NomadError),
}

/// A lock on one variable.
#[derive(Debug, Clone)]
pub struct VariableLock {
    nomad: Nomad,
    config: LockConfig,
}

/// The part of `GET /v1/var/PATH` that matters here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Variable {
    #[serde(default)]
    items: Option<BTreeMap<String, String>>,
}

/// The part of an answer to `lock-acquire`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Acquired {
    modify_index: u64,
    lock: LockId,
}

#[derive(Debug, Deserialize)]
struct LockId {
    #[serde(rename = "ID")]
    id: String,
}

impl VariableLock {
    /// Nothing is sent yet.
    pub fn new(nomad: Nomad, config: LockConfig) -> Self {
        Self { nomad, config }
    }

    /// Which variable, and for how long.
    pub fn config(&self) -> &LockConfig {
        &self.config
    }

    /// Looks at the variable: at once if `index` is 0, else when its index has moved past that, or after `wait`.
    pub async fn look(&self, index: u64, wait: Duration) -> Result<Seen, LockError> {
        let LockConfig { path, namespace, ttl: _ } = &self.config;
        let (api, query) = (format!("/v1/var/{path}"), [("namespace", namespace.as_str())]);
        let read = match index {
            0 => self.nomad.read::<Variable>(&api, &query).await,
            _ => self.nomad.wait::<Variable>(&api, &query, index, wait).await,
        };
        let Read { index, value: Variable { items } } = match read {
            Ok(read) => read,
            Err(error) if error.is_not_found() => return Ok(Seen::default()),
            Err(NomadError::Denied { .. }) => return Err(self.denied()),
            Err(error) => return Err(error.into()),
        };
        let mut items = items.unwrap_or_default();
        let others: BTreeSet<&str> = items.keys().map(String::as_str).filter(|key| !ITEMS.contains(key)).collect();
        if !others.is_empty() {
            let keys = others.into_iter().collect::<Vec<_>>().join(", ");
            return Err(LockError::Taken { path: path.to_string(), keys });
        }
        let [name, http] = ITEMS.map(|key| items.remove(key).filter(|value| !value.is_empty()));
        Ok(Seen { index, holder: name.map(|name| Holder { name, http }) })
    }

    /// Acquires it, if it is free. Never with the ID of a lock from before: during the delay Nomad answers that with
    /// 200, and drops the lock at the end of the delay all the same (seen).
    pub async fn acquire(&self, me: &Holder) -> Result<Granted, LockError> {
        let Holder { name, http } = me;
        let span = |time: Duration| format!("{}ms", time.as_millis());
        let body = json!({
            "Lock": {"TTL": span(self.config.ttl), "LockDelay": span(DELAY)},
            "Items": {ITEMS[0]: name, ITEMS[1]: http.as_deref().unwrap_or_default()},
        });
        let (status, answer) = self.put("lock-acquire", &body, ACQUIRE_TIMEOUT).await?;
        match status {
            StatusCode::OK => {
                let Acquired { modify_index: index, lock: LockId { id } } = serde_json::from_slice(&answer)
                    .map_err(|source| NomadError::Form { path: self.config.path.to_string(), source })?;
                Ok(Granted { id, index })
            }
            StatusCode::CONFLICT => Err(LockError::Held { path: self.config.path.to_string() }),
            status => Err(self.unexpected(status, &answer)),
        }
    }

    /// Renews it.
    pub async fn renew(&self, granted: &Granted) -> Result<(), LockError> {
        self.keep("lock-renew", granted).await
    }

    /// Releases it: the next one may have it at once.
    pub async fn release(&self, granted: &Granted) -> Result<(), LockError> {
        self.keep("lock-release", granted).await
    }

    /// Whether the token may acquire it, without acquiring it: Nomad looks at the rights before it looks at the lock, so a
    /// renewal of a lock that nobody has is refused for one or the other (`nomad/variables_endpoint.go`, `RenewLock`; seen
    /// on 1.11.3).
    pub async fn may_write(&self) -> Result<(), LockError> {
        match self.keep("lock-renew", &Granted { id: NOBODYS.to_owned(), index: 0 }).await {
            Err(LockError::Lost { .. }) => Ok(()),
            other => other,
        }
    }

    async fn keep(&self, operation: &str, granted: &Granted) -> Result<(), LockError> {
        let (status, answer) = self.put(operation, &json!({"Lock": {"ID": granted.id}}), TIMEOUT).await?;
        match status {
            StatusCode::OK => Ok(()),
            StatusCode::CONFLICT | StatusCode::NOT_FOUND => {
                Err(LockError::Lost { path: self.config.path.to_string(), message: said(&answer) })
            }
            status => Err(self.unexpected(status, &answer)),
        }
    }

    async fn put(&self, operation: &str, body: &Value, timeout: Duration) -> Result<(StatusCode, Vec<u8>), NomadError> {
        let LockConfig { path, namespace, ttl: _ } = &self.config;
        let path = format!("/v1/var/{path}?{operation}");
        let request = self.nomad.request(Method::PUT, &path, &[("namespace", namespace)])?.json(body).timeout(timeout);
        let unreachable = |source| self.nomad.unreachable(&path, source);
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        Ok((status, response.bytes().await.map_err(unreachable)?.to_vec()))
    }

    fn denied(&self) -> LockError {
        let LockConfig { path, namespace, ttl: _ } = &self.config;
        LockError::Denied { path: path.to_string(), namespace: namespace.clone() }
    }

    fn unexpected(&self, status: StatusCode, answer: &[u8]) -> LockError {
        match status {
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => self.denied(),
            status => {
                let path = shortened(&format!("/v1/var/{}", self.config.path));
                NomadError::Status { path, status, message: said(answer) }.into()
            }
        }
    }
}

/// The beginning of Nomad's message.
fn said(answer: &[u8]) -> String {
    String::from_utf8_lossy(answer).trim().chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_that_nomad_takes() {
        for good in ["nomad/jobs/nomad-haproxy/lock", "locks/edge~1", "nomads/x", "a"] {
            assert_eq!(good.parse::<LockPath>().map(|path| path.to_string()), Ok(good.to_owned()));
        }
        let long = "a".repeat(129);
        for bad in ["", "/a", "a/", "a//b", "a b", "a.b", "nomad/x", "nomad", "ü", &long] {
            assert!(bad.parse::<LockPath>().is_err(), "{bad:?}");
        }
    }
}
