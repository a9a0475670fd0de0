//! What jobs say of the checks of their services.
//!
//! A registration names its job and not the version of it, and a change of a check alone changes no registration. So a
//! job is read once, and again when the event stream names it; when the stream begins, as what was before is not known;
//! and at a resync. Without a stream it is read again when a registration of it is another one.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use serde::{Deserialize, Serialize};

use crate::desired::ServiceKey;
use crate::desired::tags::{self, BackendTag, Enable};
use crate::errors::chain;
use crate::nomad::Nomad;

use super::nomad::{CONCURRENCY, TOTAL_TIMEOUT};
use super::{Catalog, Registration};

/// One `check` of a service in a job, as Nomad answers it, and its port. Nothing in it can be trusted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct JobCheck {
    /// `http` or `tcp`.
    #[serde(rename = "Type")]
    pub kind: String,
    /// Of the request.
    pub path: String,
    /// Of the request; empty: GET.
    pub method: String,
    /// `http` or `https`; empty: `http`.
    pub protocol: String,
    /// Of the request; a name may have several values.
    #[serde(deserialize_with = "null_is_default")]
    pub header: BTreeMap<String, Vec<String>>,
    /// Between two checks, in nanoseconds.
    pub interval: i64,
    /// For the answer, in nanoseconds.
    pub timeout: i64,
    /// The label of another port than the service's; else empty.
    pub port_label: String,
    /// The number of that port, if it is the same for each instance.
    pub port: Option<u16>,
}

fn null_is_default<'de, D: serde::Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// The part of `GET /v1/job/ID` that is read. Names and labels in it are not interpolated (recorded).
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Job {
    #[serde(deserialize_with = "null_is_default")]
    task_groups: Vec<Group>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Group {
    name: String,
    #[serde(deserialize_with = "null_is_default")]
    networks: Vec<Network>,
    #[serde(deserialize_with = "null_is_default")]
    services: Vec<Service>,
    #[serde(deserialize_with = "null_is_default")]
    tasks: Vec<Task>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Network {
    #[serde(deserialize_with = "null_is_default")]
    reserved_ports: Vec<Port>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Port {
    label: String,
    value: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Task {
    name: String,
    #[serde(deserialize_with = "null_is_default")]
    services: Vec<Service>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Service {
    name: String,
    port_label: String,
    #[serde(deserialize_with = "null_is_default")]
    checks: Vec<JobCheck>,
}

impl Job {
    /// Every service with its group, and with what stands for its group or its task in the ID of a registration.
    fn services(&self) -> Vec<(&Group, String, &Service)> {
        let mut all = Vec::new();
        for group in &self.task_groups {
            all.extend(group.services.iter().map(|service| (group, format!("group-{}", group.name), service)));
            for task in &group.tasks {
                all.extend(task.services.iter().map(|service| (group, task.name.clone(), service)));
            }
        }
        all
    }

    /// The check for the service of a registration: the first request, else the first connection.
    fn check(&self, registration: &Registration) -> Option<JobCheck> {
        let Registration { id, alloc_id, service_name, .. } = registration;
        let mut named = self.services();
        named.retain(|(_, _, service)| is_named(&service.name, service_name));
        // The name alone may stand for several: one for each port, or one in each group.
        let is_its_own = |(_, owner, service): &&(&Group, String, &Service)| {
            *id == format!("_nomad-task-{alloc_id}-{owner}-{service_name}-{}", service.port_label)
        };
        let (group, _, service) = named.iter().find(is_its_own).or(named.first())?;
        let of_kind = |kind: &str| service.checks.iter().find(|check| check.kind == kind);
        let mut check = of_kind("http").or_else(|| of_kind("tcp"))?.clone();
        if check.port_label == service.port_label {
            check.port_label.clear();
        }
        check.port = group.port(&check.port_label);
        Some(check)
    }
}

impl Group {
    /// The number of a port that is the same for each instance.
    fn port(&self, label: &str) -> Option<u16> {
        let mut reserved = self.networks.iter().flat_map(|network| &network.reserved_ports);
        let reserved = || reserved.find(|port| port.label == label).and_then(|port| u16::try_from(port.value).ok());
        label.parse().ok().or_else(reserved).filter(|port| *port > 0)
    }
}

/// Whether a name in a job, perhaps with `${…}` in it, is this one.
fn is_named(template: &str, name: &str) -> bool {
    let Some((start, rest)) = template.split_once("${") else { return template == name };
    let Some((_, rest)) = rest.split_once('}') else { return template == name };
    let Some(name) = name.strip_prefix(start) else { return false };
    (0..=name.len()).filter(|at| name.is_char_boundary(*at)).any(|at| is_named(rest, &name[at..]))
}

/// For Nomad to commit what it has sent an event of.
const COMMIT: Duration = Duration::from_secs(1);

/// A job: its namespace and its ID.
pub(super) type JobKey = (String, String);

/// The jobs that were read.
#[derive(Debug, Default)]
pub(super) struct Jobs(Mutex<State>);

impl Default for State {
    fn default() -> Self {
        Self { hints: 1, all: 1, known: BTreeMap::new() }
    }
}

#[derive(Debug)]
struct State {
    /// How many hints there have been, from 1: a job that was never read is of before the first one.
    hints: u64,
    /// The hint since which every job is to be read.
    all: u64,
    known: BTreeMap<JobKey, Known>,
}

#[derive(Debug)]
struct Known {
    /// The last hint that named it.
    named: u64,
    /// Nomad's index of that hint. Nomad sends an event right before it commits what the event is about (`Commit` in
    /// nomad/state/state_changes.go), so a read may be too early.
    index: u64,
    /// How many hints there were when it was read.
    read: u64,
    /// The highest index of its registrations then.
    registered: u64,
    /// Its last read had no answer.
    has_failed: bool,
    job: Result<Job, String>,
}

impl Jobs {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Events at this index name these jobs. Returns whether any of them is to be read again.
    pub(super) fn changed(&self, jobs: &[JobKey], index: u64) -> bool {
        let mut state = self.state();
        state.hints += 1;
        let hints = state.hints;
        let mut is_known = false;
        for job in jobs {
            if let Some(known) = state.known.get_mut(job) {
                (known.named, known.index, is_known) = (hints, index, true);
            }
        }
        is_known
    }

    /// All of them are to be read again.
    pub(super) fn forget(&self) {
        let mut state = self.state();
        state.hints += 1;
        state.all = state.hints;
    }

    /// Brings them up to date, and returns what they say of the services of a catalog, and whether all could be read.
    pub(super) async fn checks(
        &self,
        nomad: &Nomad,
        catalog: &Catalog,
        prefix: &str,
        has_streams: bool,
    ) -> (BTreeMap<ServiceKey, Result<JobCheck, String>>, bool) {
        let wanted: Vec<(&ServiceKey, &Registration)> =
            catalog.services.iter().filter_map(|(service, all)| Some((service, asks(all, prefix)?))).collect();
        let mut jobs: BTreeMap<JobKey, u64> = BTreeMap::new();
        for (service, registration) in &wanted {
            let index = jobs.entry((service.namespace.clone(), registration.job_id.clone())).or_default();
            *index = registration.modify_index.max(*index);
        }
        let (hints, outdated) = {
            let mut state = self.state();
            state.known.retain(|job, _| jobs.contains_key(job));
            let is_current = |job: &JobKey, registered: u64| {
                state.known.get(job).is_some_and(|known| {
                    let is_same = has_streams || known.registered == registered;
                    known.read >= known.named.max(state.all) && is_same
                })
            };
            let outdated: Vec<_> = jobs.iter().filter(|(job, index)| !is_current(job, **index)).collect();
            (state.hints, outdated.into_iter().map(|(job, index)| (job.clone(), *index)).collect::<Vec<_>>())
        };
        if !outdated.is_empty() {
            tracing::debug!(jobs = outdated.len(), "reading the checks of jobs");
            self.read(nomad, outdated, hints).await;
        }
        let state = self.state();
        let are_current = !state.known.values().any(|known| known.has_failed);
        let check = |(service, registration): (&ServiceKey, &Registration)| {
            let key = (service.namespace.clone(), registration.job_id.clone());
            let check = match &state.known.get(&key)?.job {
                Ok(job) => Ok(job.check(registration)?),
                Err(why) => Err(why.clone()),
            };
            Some((service.clone(), check))
        };
        (wanted.into_iter().filter_map(check).collect(), are_current)
    }

    /// Those that are not known yet: an event may name one while it is read for the first time.
    fn expect<'a>(&self, jobs: impl Iterator<Item = &'a JobKey>) {
        let mut state = self.state();
        for job in jobs {
            let why = || Err("it was not read yet".to_owned());
            let unread = || Known { named: 1, index: 0, read: 0, registered: 0, has_failed: false, job: why() };
            state.known.entry(job.clone()).or_insert_with(unread);
        }
    }

    /// The index of the event that names a job and that its last read does not know.
    fn hinted(&self, job: &JobKey) -> Option<u64> {
        let state = self.state();
        state.known.get(job).filter(|known| known.named > known.read && known.index > 0).map(|known| known.index)
    }

    async fn read(&self, nomad: &Nomad, outdated: Vec<(JobKey, u64)>, hints: u64) {
        self.expect(outdated.iter().map(|(job, _)| job));
        let mut unread: BTreeMap<JobKey, u64> = outdated.iter().cloned().collect();
        let asked = outdated.into_iter().map(async |(key, registered)| {
            let path = format!("/v1/job/{}", crate::desired::encode(&key.1));
            let query = [("namespace", key.0.as_str())];
            let job = match self.hinted(&key) {
                Some(index) => nomad.wait::<Job>(&path, &query, index - 1, COMMIT).await,
                None => nomad.read::<Job>(&path, &query).await,
            };
            (key, registered, job.map(|read| read.value))
        });
        let answers = stream::iter(asked).buffer_unordered(CONCURRENCY).take_until(tokio::time::sleep(TOTAL_TIMEOUT));
        let mut answers = pin!(answers);
        while let Some((key, registered, job)) = answers.next().await {
            unread.remove(&key);
            let job = match job {
                Ok(job) => Ok(job),
                Err(error) if error.may_pass() => {
                    self.failed(&key, hints, registered, chain(&error));
                    continue;
                }
                Err(error) => Err(chain(&error)),
            };
            let mut state = self.state();
            let (named, index) = state.known.get(&key).map_or((1, 0), |known| (known.named, known.index));
            state.known.insert(key, Known { named, index, read: hints, registered, has_failed: false, job });
        }
        let late = || format!("Nomad did not answer for all jobs within {} s", TOTAL_TIMEOUT.as_secs());
        for (key, registered) in &unread {
            self.failed(key, hints, *registered, late());
        }
    }

    /// A job had no answer: what was known of it stands until it is read again.
    fn failed(&self, key: &JobKey, hints: u64, registered: u64, why: String) {
        if let Some(known) = self.state().known.get_mut(key) {
            (known.read, known.registered, known.has_failed) = (hints, registered, true);
            if let Err(unknown) = &mut known.job {
                *unknown = why;
            }
        }
    }

    /// It is time to read those again that had no answer. Not before: each may take as long again, and a pass waits for
    /// it.
    pub(super) fn retry(&self) {
        for known in self.state().known.values_mut().filter(|known| known.has_failed) {
            known.read = 0;
        }
    }
}

/// The registration whose job says what the check is: the newest one that is to be routed; `None` if its tags leave
/// nothing to the job.
fn asks<'a>(registrations: &'a [Registration], prefix: &str) -> Option<&'a Registration> {
    let intents = registrations.iter().map(|one| (one, tags::parse(prefix, one.tags.iter().map(String::as_str)).0));
    let routed = intents.filter(|(one, intent)| intent.enable == Enable::Yes && !one.job_id.is_empty());
    let (newest, intent) = routed.max_by_key(|(one, _)| (one.create_index, &one.id))?;
    (intent.backend == BackendTag::Dynamic && !intent.check.disabled).then_some(newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Job {
        let text = r#"{"TaskGroups": [
          {"Name": "g", "Networks": [{"ReservedPorts": [{"Label": "admin", "Value": 9000}], "DynamicPorts": [{"Label": "http"}]}],
           "Services": [{"Name": "api-${NOMAD_ALLOC_INDEX}", "PortLabel": "http", "Checks": [
             {"Type": "tcp", "PortLabel": "http", "Interval": 2000000000},
             {"Type": "http", "PortLabel": "admin", "Path": "/health?x=1", "Header": {"X-Foo": ["bar"]}, "Timeout": 1500000000}]}],
           "Tasks": [{"Name": "t", "Services": [{"Name": "db", "PortLabel": "db", "Checks": [{"Type": "tcp", "PortLabel": "db", "Header": null}]}]}]},
          {"Name": "other", "Networks": null, "Services": [{"Name": "db", "PortLabel": "db", "Checks": [{"Type": "http", "PortLabel": "gone"}]}], "Tasks": null}]}"#;
        serde_json::from_str(text).expect("a job")
    }

    fn registration(name: &str, owner: &str, label: &str) -> Registration {
        let id = format!("_nomad-task-a1-{owner}-{name}-{label}");
        let value = serde_json::json!({"ID": id, "ServiceName": name, "Namespace": "default", "AllocID": "a1", "Address": "", "Port": 1});
        serde_json::from_value(value).expect("a registration")
    }

    #[test]
    fn a_registration_has_the_check_of_its_own_service_and_the_number_of_its_port() {
        let check = |name, owner, label| job().check(&registration(name, owner, label));
        let api = check("api-0", "group-g", "http").expect("a check");
        assert_eq!((api.kind.as_str(), api.path.as_str(), api.port), ("http", "/health?x=1", Some(9000)));
        let db = check("db", "t", "db").expect("a check");
        assert_eq!((db.kind.as_str(), db.port_label.as_str(), db.port), ("tcp", "", None));
        let other = check("db", "group-other", "db").expect("a check");
        assert_eq!((other.kind.as_str(), other.port_label.as_str(), other.port), ("http", "gone", None));
        assert_eq!(check("web", "group-g", "http"), None);
    }

    #[test]
    fn a_name_with_interpolations_stands_for_several() {
        for (template, name, is_it) in [
            ("api", "api", true),
            ("api", "api2", false),
            ("a-${X}-b", "a-1-2-b", true),
            ("a-${X}-b", "a-1-2", false),
            ("${X}", "", true),
            ("${X", "${X", true),
            ("${X}${Y}é", "1é", true),
        ] {
            assert_eq!(is_named(template, name), is_it, "{template} {name}");
        }
    }

    #[test]
    fn a_job_is_read_again_when_an_event_names_it() {
        let jobs = Jobs::default();
        let key = ("default".to_owned(), "j".to_owned());
        assert!(!jobs.changed(std::slice::from_ref(&key), 7), "nobody needs it");
        let known = Known { named: 1, index: 0, read: 2, registered: 1, has_failed: false, job: Ok(Job::default()) };
        jobs.state().known.insert(key.clone(), known);
        assert!(jobs.changed(std::slice::from_ref(&key), 8) && !jobs.changed(&[("default".into(), "k".into())], 9));
        assert_eq!(jobs.hinted(&key), Some(8), "a read has to know of it");
        let state = jobs.state();
        assert!(state.known[&key].named > state.known[&key].read);
    }
}
