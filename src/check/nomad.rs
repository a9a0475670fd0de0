//! Nomad: reachable, the token known, and each right that the settings need.
//!
//! All rights but those of the lock are `read-job`. They are tried out one by one, as Nomad shows nobody but a management
//! token what a workload identity may do, and answers a list that is too short without an error (seen on 1.11.3).

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use reqwest::StatusCode;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::catalog::nomad::{CONCURRENCY, STREAMS};
use crate::config::Config;
use crate::desired::encode;
use crate::nomad::lock::{LockConfig, LockError, VariableLock};
use crate::nomad::{Nomad, NomadError, Read};

use super::Finding;

/// For the first line of an event stream, which comes at once; one that is denied ends after 3 s (seen).
const FIRST_EVENT: Duration = Duration::from_secs(8);
/// Namespaces that are tried out one by one: of more, the list says enough.
const NAMESPACES: usize = 200;

/// The accessor of the token that everybody has while ACLs are off (`nomad/structs/acl.go`; seen on 1.11.3).
const ACLS_OFF: &str = "acls-disabled";

/// The part of `GET /v1/acl/token/self` that matters here.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct OwnToken {
    #[serde(rename = "AccessorID", default)]
    accessor: String,
    #[serde(default)]
    name: String,
    #[serde(rename = "Type", default)]
    kind: String,
    #[serde(default)]
    expiration_time: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Named {
    name: String,
}

/// Everything about Nomad, in the order in which one part needs the other.
pub async fn nomad(config: &Config) -> Vec<Finding> {
    let nomad = match Nomad::new(config.nomad.clone()) {
        Ok(nomad) => nomad,
        Err(error) => return vec![Finding::of("nomad", &error)],
    };
    let reached = reach(&nomad, config).await;
    let is_reached = reached.is_ok();
    let (Ok(mut findings) | Err(mut findings)) = reached;
    if !is_reached {
        findings.push(Finding::skipped("token", "not checked, nor are its rights, as Nomad does not answer"));
        return findings;
    }
    let (is_known, finding) = token(&nomad).await;
    findings.push(finding);
    if !is_known {
        findings.push(Finding::skipped("services", "not checked, as Nomad does not take the token"));
        return findings;
    }
    findings.extend(namespaces(&nomad, config).await);
    if let Some(lock) = &config.leader {
        findings.push(leader_lock(VariableLock::new(nomad, lock.clone())).await);
    }
    findings
}

/// Whether Nomad answers, has a leader, and is who it says. The error is that it is no use to go on.
async fn reach(nomad: &Nomad, config: &Config) -> Result<Vec<Finding>, Vec<Finding>> {
    const PART: &str = "nomad";
    let address = &config.nomad.address;
    let said = nomad.ask("/v1/status/leader", &[]).await;
    let (status, body) = said.map_err(|error| {
        let hint = match &error {
            NomadError::Unreachable { .. } => "check nomad.address (NOMAD_ADDR), and that a Nomad agent listens there",
            _ => return vec![Finding::of(PART, &error)],
        };
        vec![Finding::of(PART, &error).or_hint(hint)]
    })?;
    let leader: Option<String> = serde_json::from_str(&body).ok();
    let failed = |text: String, hint: &str| Err(vec![Finding::failed(PART, text).or_hint(hint)]);
    match (status, leader) {
        (StatusCode::OK, Some(leader)) if !leader.is_empty() => {
            let mut findings = vec![Finding::ok(PART, format!("{address} answers; its leader is {leader}"))];
            findings.extend(tls(config));
            Ok(findings)
        }
        (StatusCode::OK, Some(_)) | (StatusCode::INTERNAL_SERVER_ERROR, _) => failed(
            format!("{address} answers, but has no leader: {}", start(&body)),
            "until it has one nothing is changed in HAProxy: see `nomad server members`",
        ),
        (StatusCode::BAD_REQUEST, _) if body.contains("HTTPS server") => failed(
            format!("{address} speaks TLS only"),
            "start nomad.address (NOMAD_ADDR) with https://, and name its CA with nomad.ca_file (NOMAD_CACERT)",
        ),
        (status, _) => failed(
            format!("what answers at {address} is no Nomad: {status} {}", start(&body)),
            "check nomad.address (NOMAD_ADDR)",
        ),
    }
}

/// How the connection is secured, where that is worth a word.
fn tls(config: &Config) -> Option<Finding> {
    const PART: &str = "tls";
    let address = &config.nomad.address;
    if address.starts_with("https://") {
        return Some(match config.nomad.tls.skip_verify {
            true => Finding::warning(PART, "Nomad's certificate is not checked: anybody on the way can read the token")
                .or_hint(
                    "name its CA with nomad.ca_file (NOMAD_CACERT) in place of nomad.skip_verify (NOMAD_SKIP_VERIFY)",
                ),
            false => Finding::ok(PART, "Nomad's certificate is trusted, and is for this host"),
        });
    }
    let host = reqwest::Url::parse(address).ok().and_then(|url| url.host_str().map(str::to_owned));
    let is_local = host.is_none_or(|host| {
        let host = host.trim_matches(['[', ']']);
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    });
    (!is_local).then(|| {
        Finding::warning(PART, "the connection to Nomad is not encrypted: anybody on the way can read the token")
            .or_hint("turn on TLS in Nomad's agents, and start nomad.address (NOMAD_ADDR) with https://")
    })
}

/// Whether Nomad knows the token.
async fn token(nomad: &Nomad) -> (bool, Finding) {
    const PART: &str = "token";
    let hint = "give a token that is valid with nomad.token_file or nomad.token (NOMAD_TOKEN)";
    let (status, body) = match nomad.ask("/v1/acl/token/self", &[]).await {
        Ok(answer) => answer,
        Err(error) => return (false, Finding::of(PART, &error)),
    };
    let own: Option<OwnToken> = serde_json::from_str(&body).ok();
    match (status, own) {
        (StatusCode::OK, Some(own)) if own.accessor == "anonymous" => (
            true,
            Finding::warning(PART, "there is none, so this is the anonymous user; ACLs are on")
                .or_hint("give a token with nomad.token_file or nomad.token (NOMAD_TOKEN)"),
        ),
        (StatusCode::OK, Some(own)) if own.accessor == ACLS_OFF => {
            (true, Finding::ok(PART, "none is needed, as ACLs are off in Nomad"))
        }
        (StatusCode::OK, Some(own)) if own.kind == "management" => (
            true,
            Finding::warning(PART, format!("Nomad knows it as {:?}, and it may do everything", own.name))
                .or_hint("use a token with the policy in deploy/policy.hcl, which has just the rights that are needed"),
        ),
        (StatusCode::OK, Some(own)) => {
            let until = own.expiration_time.map(|time| format!(", valid until {time}")).unwrap_or_default();
            (true, Finding::ok(PART, format!("Nomad knows it as {:?}{until}", own.name)))
        }
        // A token of a workload identity is no ACL token; one that Nomad does not know is refused with 403 (seen).
        (StatusCode::NOT_FOUND, _) => (true, Finding::ok(PART, "it is a workload identity that Nomad accepts")),
        (status, _) => {
            (false, Finding::failed(PART, format!("Nomad does not take it: {status} {}", start(&body))).or_hint(hint))
        }
    }
}

/// The watched namespaces: each exists, and may be read, followed and asked for allocations.
async fn namespaces(nomad: &Nomad, config: &Config) -> Vec<Finding> {
    let watched: BTreeSet<String> = config.namespaces.iter().cloned().collect();
    let is_all = watched.contains("*");
    let streams = if is_all || watched.len() > STREAMS { ["*".to_owned()].into() } else { watched.clone() };
    // Nomad shortens a list without a word, so each namespace is asked for. `default` is always there.
    let mut names = match is_all {
        true => known_namespaces(nomad).await.into_iter().chain(["default".to_owned()]).collect(),
        false => watched,
    };
    names.extend(config.targets.services.iter().map(|service| service.service.namespace.clone()));
    let services = for_each(&names, async |namespace| services(nomad, namespace).await).await;
    let events = for_each(&streams, async |namespace| events(nomad, namespace).await).await;
    let allocations = for_each(&names, async |namespace| allocations(nomad, namespace).await).await;
    let all = |results: Vec<Result<(), Finding>>, part: &'static str, proved: &str| {
        let mut faults: Vec<Finding> = results.into_iter().filter_map(Result::err).collect();
        if faults.is_empty() {
            let listed: Vec<&str> = names.iter().map(String::as_str).take(NAMESPACES).collect();
            let of = if is_all { "all namespaces".to_owned() } else { listed.join(", ") };
            faults.push(Finding::ok(part, format!("{proved} of {of}")));
        }
        faults
    };
    let mut findings = all(services, "services", "the token may read the services");
    findings.extend(all(events, "events", "the token may follow the events"));
    findings.extend(all(allocations, "allocations", "the token may read the allocations"));
    findings
}

/// Asks about each, a bounded number at a time.
async fn for_each(
    names: &BTreeSet<String>,
    ask: impl AsyncFn(&str) -> Result<(), Finding>,
) -> Vec<Result<(), Finding>> {
    stream::iter(names).map(|name| ask(name)).buffered(CONCURRENCY).collect().await
}

/// The namespaces that the token may see.
async fn known_namespaces(nomad: &Nomad) -> BTreeSet<String> {
    let read = nomad.read::<Vec<Named>>("/v1/namespaces", &[]).await;
    let names = read.map(|read| read.value).unwrap_or_default();
    names.into_iter().map(|one| one.name).take(NAMESPACES).collect()
}

async fn services(nomad: &Nomad, namespace: &str) -> Result<(), Finding> {
    const PART: &str = "services";
    match nomad.read::<Vec<IgnoredAny>>("/v1/services", &[("namespace", namespace)]).await {
        // The list of a namespace that does not exist is empty, and no error (seen).
        Ok(Read { value, .. }) if value.is_empty() => exists(nomad, namespace).await,
        Ok(_) => Ok(()),
        Err(error) => Err(denied(PART, error, namespace, "read the services")),
    }
}

async fn exists(nomad: &Nomad, namespace: &str) -> Result<(), Finding> {
    let path = format!("/v1/namespace/{}", encode(namespace));
    match nomad.read::<IgnoredAny>(&path, &[]).await {
        Err(error) if error.is_not_found() => {
            Err(Finding::failed("namespaces", format!("there is no namespace {namespace:?}")).or_hint(format!(
                "correct nomad.namespace (NOMAD_NAMESPACE), or make it: `nomad namespace apply {namespace}`"
            )))
        }
        _ => Ok(()),
    }
}

async fn events(nomad: &Nomad, namespace: &str) -> Result<(), Finding> {
    const PART: &str = "events";
    let query = [("topic", "Service"), ("namespace", namespace)];
    // 200 comes before Nomad has looked at the token; a stream that is denied ends without a line (seen).
    let first = match nomad.lines("/v1/event/stream", &query).await {
        Ok(mut lines) => lines.next(FIRST_EVENT).await.map(drop),
        Err(error) => Err(error),
    };
    match first {
        Ok(()) => Ok(()),
        Err(NomadError::Stream(_) | NomadError::Denied { .. }) if namespace == "*" => Err(Finding::failed(
            PART,
            "the token may not follow the events of all namespaces, so each change is a full read",
        )
        .or_hint(format!("{}; or name the namespaces that it may read with nomad.namespace", line(namespace)))),
        Err(NomadError::Stream(_)) => {
            let denied = NomadError::Denied { what: String::new() };
            Err(self::denied(PART, denied, namespace, "follow the events"))
        }
        Err(error) => Err(denied(PART, error, namespace, "follow the events")),
    }
}

async fn allocations(nomad: &Nomad, namespace: &str) -> Result<(), Finding> {
    const PART: &str = "allocations";
    const WHAT: &str = "read the allocations, which prove that an instance is gone,";
    // Before the first allocation the index is 0, so that says nothing about the token.
    let query = [("namespace", namespace), ("per_page", "1")];
    match nomad.ask("/v1/allocations", &query).await {
        Ok((StatusCode::OK, _)) => Ok(()),
        Ok((StatusCode::FORBIDDEN, _)) => {
            Err(denied(PART, NomadError::Denied { what: String::new() }, namespace, WHAT))
        }
        Ok((status, body)) => Err(Finding::failed(PART, format!("Nomad answers {status}: {}", start(&body)))),
        Err(error) => Err(denied(PART, error, namespace, WHAT)),
    }
}

/// The sentence about a right that is missing.
fn denied(part: &'static str, error: NomadError, namespace: &str, what: &str) -> Finding {
    match error {
        NomadError::Denied { .. } => {
            Finding::failed(part, format!("the token may not {what} of the namespace {namespace:?}"))
                .or_hint(line(namespace))
        }
        error => Finding::of(part, &error),
    }
}

/// The line of a policy that gives the right.
fn line(namespace: &str) -> String {
    format!("add to its policy: `namespace \"{namespace}\" {{ capabilities = [\"read-job\"] }}`")
}

/// The variable of the leader: it may be read and written, and is used for nothing else.
async fn leader_lock(lock: VariableLock) -> Finding {
    const PART: &str = "lock";
    let LockConfig { path, namespace, ttl: _ } = lock.config().clone();
    let missing = |right: &str| {
        Finding::failed(PART, format!("the token may not {right} the variable {path} of the namespace {namespace:?}"))
            .or_hint(format!(
                "add to its policy, in the block of the namespace {namespace:?}: `variables {{ path \"{path}\" {{ \
                 capabilities = [\"read\", \"write\"] }} }}`; \"{right}\" is missing"
            ))
    };
    let seen = match lock.look(0, Duration::ZERO).await {
        Ok(seen) => seen,
        Err(LockError::Denied { .. }) => return missing("read"),
        Err(error) => return Finding::of(PART, &error),
    };
    match lock.may_write().await {
        Ok(()) => {}
        Err(LockError::Denied { .. }) => return missing("write"),
        Err(error) => return Finding::of(PART, &error),
    }
    let holder = seen.holder.map(|holder| format!(", which {holder} has or had last")).unwrap_or_default();
    Finding::ok(PART, format!("the token may lock the variable {path} of the namespace {namespace:?}{holder}"))
}

/// The beginning of an answer.
fn start(body: &str) -> String {
    body.trim().chars().take(200).collect()
}
