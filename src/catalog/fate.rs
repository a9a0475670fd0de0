//! What became of instances that the catalog lacks, by their allocations: the proof that the guard needs.
//!
//! Nomad keeps a stopped allocation for a while, with its status. `job stop -purge` deletes it at once (seen on
//! 1.11.3), but leaves the evaluation that stopped the job.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use serde::Deserialize;

use crate::desired::{InstanceId, ServiceKey, encode};
use crate::errors::chain;
use crate::nomad::{Nomad, NomadError, Read};
use crate::plan::guard::{Fate, Vanished};

use super::Registration;
use super::nomad::CONCURRENCY;

/// For all queries of one pass together. Nomad answers one in 1 ms; instances with proof do not wait longer for the
/// others.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Where an instance came from, as long as that is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// Its job.
    pub job: String,
    /// Nomad's index when it was registered.
    pub created: u64,
}

impl Origin {
    /// Of a registration.
    pub fn of(registration: &Registration) -> Self {
        Self { job: registration.job_id.clone(), created: registration.create_index }
    }
}

/// An instance to query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The instance.
    pub instance: Vanished,
    /// Its origin, if known: only with it can a purged job be distinguished from one that Nomad has lost.
    pub origin: Option<Origin>,
}

/// The part of `GET /v1/allocation/ID` that shows what became of it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Allocation {
    desired_status: String,
    client_status: String,
    task_group: String,
    #[serde(default)]
    job: Option<Job>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Job {
    #[serde(default)]
    task_groups: Option<Vec<Group>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Group {
    name: String,
    #[serde(default)]
    services: Option<Vec<Service>>,
    #[serde(default)]
    tasks: Option<Vec<Task>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Task {
    #[serde(default)]
    services: Option<Vec<Service>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    name: String,
}

/// The part of `GET /v1/job/ID/evaluations` that shows why a job was evaluated.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Evaluation {
    triggered_by: String,
    create_index: u64,
}

impl Allocation {
    /// Whether an instance of this service in this allocation is gone for good.
    fn has_lost(&self, service: Option<&ServiceKey>) -> bool {
        let stopped = matches!(self.desired_status.as_str(), "stop" | "evict");
        let ended = matches!(self.client_status.as_str(), "complete" | "failed" | "lost");
        stopped || ended || service.is_some_and(|service| self.has_withdrawn(&service.name))
    }

    /// Whether its job no longer has a service of this name: services change in place while the allocation runs. An
    /// interpolated name cannot be compared.
    fn has_withdrawn(&self, name: &str) -> bool {
        let groups = self.job.iter().flat_map(|job| job.task_groups.iter().flatten());
        let Some(group) = groups.into_iter().find(|group| group.name == self.task_group) else { return false };
        let of_tasks = group.tasks.iter().flatten().flat_map(|task| task.services.iter().flatten());
        let mut services = group.services.iter().flatten().chain(of_tasks);
        services.all(|service| service.name != name && !service.name.contains("${"))
    }
}

/// Queries each allocation once, a bounded number in parallel.
pub(super) async fn ask(nomad: &Nomad, asked: Vec<Question>) -> BTreeMap<InstanceId, Fate> {
    let late = || Fate::Unreadable(format!("Nomad did not answer within {} s", TOTAL_TIMEOUT.as_secs()));
    let mut fates: BTreeMap<_, _> = asked.iter().map(|question| (question.instance.id.clone(), late())).collect();
    let mut by_alloc: BTreeMap<String, Vec<Question>> = BTreeMap::new();
    for question in asked {
        by_alloc.entry(question.instance.alloc.clone()).or_default().push(question);
    }
    let calls = by_alloc.into_iter().map(|(alloc, questions)| async move {
        let allocation = if is_uuid(&alloc) { allocation(nomad, &alloc).await } else { Ok(None) };
        (questions, allocation)
    });
    let until = tokio::time::Instant::now() + TOTAL_TIMEOUT;
    let answers = stream::iter(calls).buffer_unordered(CONCURRENCY).take_until(tokio::time::sleep_until(until));
    let mut answers = pin!(answers);
    let mut unknown = Vec::new();
    while let Some((questions, allocation)) = answers.next().await {
        for question in questions {
            let service = question.instance.service.as_ref();
            let fate = match &allocation {
                Ok(Some(allocation)) if allocation.has_lost(service) => Fate::Gone,
                Ok(Some(_)) => Fate::Running,
                Err(error) => Fate::Unreadable(chain(error)),
                Ok(None) => {
                    unknown.push(question.clone());
                    Fate::Unknown
                }
            };
            fates.insert(question.instance.id, fate);
        }
    }
    // Without an answer in time they stay unknown.
    if let Ok(purged) = tokio::time::timeout_at(until, purged(nomad, unknown)).await {
        fates.extend(purged.into_iter().map(|id| (id, Fate::Gone)));
    }
    fates
}

/// `None`: Nomad does not know it.
async fn allocation(nomad: &Nomad, alloc: &str) -> Result<Option<Allocation>, NomadError> {
    match nomad.read(&format!("/v1/allocation/{alloc}"), &[]).await {
        Ok(Read { value, .. }) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The instances whose job was stopped after they were registered. `job stop -purge` deletes the job and its
/// allocations at once, but the evaluation that it made stays for an hour (`eval_gc_threshold`).
async fn purged(nomad: &Nomad, unknown: Vec<Question>) -> Vec<InstanceId> {
    let mut by_job: BTreeMap<(String, String), Vec<(InstanceId, u64)>> = BTreeMap::new();
    for Question { instance, origin } in unknown {
        if let (Some(ServiceKey { namespace, .. }), Some(Origin { job, created })) = (instance.service, origin) {
            by_job.entry((namespace, job)).or_default().push((instance.id, created));
        }
    }
    let calls = by_job.into_iter().map(|((namespace, job), instances)| async move {
        let path = format!("/v1/job/{}/evaluations", encode(&job));
        let answer = nomad.read::<Vec<Evaluation>>(&path, &[("namespace", &namespace)]).await;
        let evaluations = answer.map(|read| read.value).unwrap_or_default();
        let stops = evaluations.into_iter().filter(|evaluation| evaluation.triggered_by == "job-deregister");
        let last = stops.map(|evaluation| evaluation.create_index).max().unwrap_or(0);
        instances.into_iter().filter(move |(_, created)| *created < last).map(|(id, _)| id)
    });
    stream::iter(calls).buffer_unordered(CONCURRENCY).flat_map(stream::iter).collect().await
}

/// An allocation's ID is a UUID; the metadata of a server may have been edited by hand.
fn is_uuid(text: &str) -> bool {
    text.len() == 36 && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(desired: &str, client: &str, services: &str, service: &str) -> bool {
        let json = format!(
            r#"{{"DesiredStatus": "{desired}", "ClientStatus": "{client}", "TaskGroup": "g", "ID": "x", "Job": {{"TaskGroups": [
                {{"Name": "other", "Services": null}},
                {{"Name": "g", "Services": [{services}], "Tasks": [{{"Services": [{{"Name": "of-task"}}]}}, {{"Services": null}}]}}]}}}}"#
        );
        let allocation: Allocation = serde_json::from_str(&json).expect("an allocation");
        allocation.has_lost(Some(&ServiceKey { namespace: "default".into(), name: service.into() }))
    }

    #[test]
    fn an_allocation_that_is_stopping_or_has_ended_is_gone() {
        let has = r#"{"Name": "api"}"#;
        for (desired, client) in
            [("stop", "running"), ("evict", "running"), ("run", "complete"), ("run", "failed"), ("run", "lost")]
        {
            assert!(lost(desired, client, has, "api"), "{desired} {client}");
        }
        for client in ["pending", "running", "unknown"] {
            assert!(!lost("run", client, has, "api"), "{client}");
        }
    }

    #[test]
    fn a_service_that_its_job_no_longer_has_is_gone_while_the_allocation_runs() {
        assert!(lost("run", "running", "", "api"));
        assert!(lost("run", "running", r#"{"Name": "api-v2"}"#, "api"));
        assert!(!lost("run", "running", "", "of-task"));
        assert!(!lost("run", "running", r#"{"Name": "${NOMAD_META_name}"}"#, "api"), "it may be this one");
        let unnamed = r#"{"DesiredStatus": "run", "ClientStatus": "running", "TaskGroup": "g"}"#;
        let unnamed: Allocation = serde_json::from_str(unnamed).expect("an allocation");
        assert!(!unnamed.has_lost(None) && !unnamed.has_withdrawn("api"), "without its job nothing is known");
    }

    #[test]
    fn only_a_uuid_is_queried() {
        assert!(is_uuid("09a88cae-5c90-839e-fbb0-382419cfd284"));
        assert!(!is_uuid("") && !is_uuid("../../v1/jobs/aaaaaaaaaaaaaaaaaaaaaaa") && !is_uuid("09a88cae"));
    }
}
