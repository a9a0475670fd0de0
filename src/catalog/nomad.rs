//! The current catalog from Nomad: the list of services, then one call for each that is to be routed.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use serde::Deserialize;

use crate::desired::tags::{self, Enable};
use crate::desired::{InstanceId, ServiceKey};
use crate::errors::chain;
use crate::nomad::{Consistency, Lines, Nomad, NomadError, Read};
use crate::plan::guard::Fate;

use super::hints::Hints;
use super::job::Jobs;
use super::ledger::{self, Answer, Cause, Ledger, Todo, is_readable};
use super::zombies::Zombies;
use super::{Catalog, Fetched, Registration, Unread, fate};

/// Parallel calls. Nomad closes the 101st connection from one address (429); at 16, 1000 services of 5 take 0.2 s
/// (seen).
pub(crate) const CONCURRENCY: usize = 16;
/// For all services together: one slow service must not delay the others. 1000 take 0.2 s.
pub(super) const TOTAL_TIMEOUT: Duration = Duration::from_secs(20);
/// How long one blocking query waits. It ends as soon as anything changes, so this only bounds how long a dead
/// connection goes unnoticed.
const WAIT: Duration = Duration::from_secs(60);
/// Event streams at the most, each a connection for as long as the controller runs. For more namespaces than this there
/// is one stream of all.
pub(crate) const STREAMS: usize = 16;

/// Reads the catalog of the watched namespaces.
#[derive(Debug, Clone)]
pub struct NomadCatalog {
    nomad: Nomad,
    namespaces: Vec<String>,
    prefix: String,
    max_stale: Option<Duration>,
    /// Shared by its clones: one of them watches, another one reads.
    hints: Arc<Hints>,
    /// Likewise, as all of these.
    zombies: Arc<Zombies>,
    jobs: Arc<Jobs>,
}

/// Of a namespace. One that takes too long would hold up each attempt, so that it has to wait for the next resync.
fn unread(error: &NomadError) -> Unread {
    let kind = if error.may_pass() && !error.is_timeout() { Unread::Failed } else { Unread::Refused };
    kind(chain(error))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NamespaceList {
    namespace: String,
    services: Vec<Listed>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    service_name: String,
    #[serde(default)]
    tags: Option<Vec<String>>,
}

impl NomadCatalog {
    /// Watches these namespaces (`*`: all) for services with tags of this prefix.
    pub fn new(nomad: Nomad, namespaces: Vec<String>, prefix: String) -> Self {
        let hints = Arc::new(Hints::new(namespaces.clone()));
        let (zombies, jobs) = (Arc::default(), Arc::default());
        Self { nomad, namespaces, prefix, max_stale: None, hints, zombies, jobs }
    }

    /// Takes answers of any server that has heard from the leader within this time; of the leader alone, by default.
    /// Such an answer may add and change instances. One that lacks something that was known, or is older than what was
    /// known or heard of, is replaced by the leader's.
    #[must_use]
    pub fn with_max_stale(self, max_stale: Option<Duration>) -> Self {
        Self { max_stale, ..self }
    }

    /// What is known, and what is to be read.
    pub(super) fn hints(&self) -> &Hints {
        &self.hints
    }

    /// What jobs say of checks.
    pub(super) fn jobs(&self) -> &Jobs {
        &self.jobs
    }

    /// The namespaces of the event streams.
    pub(super) fn streams(&self) -> Vec<String> {
        let all = || vec!["*".to_owned()];
        if self.watches("*") || self.namespaces.len() > STREAMS { all() } else { self.namespaces.clone() }
    }

    /// Reads what is to be read: everything, or the services and the jobs that events named. Registrations whose
    /// allocation is known to have ended are left out.
    pub async fn read_next(&self, served: &BTreeSet<String>, is_resync: bool) -> Result<Fetched, NomadError> {
        let Fetched { mut catalog, is_full } = self.read_services_next(served, is_resync).await?;
        if is_full {
            self.zombies.look(&self.nomad, &catalog).await;
        }
        let has_streams = self.hints.ask(Ledger::has_streams);
        let (checks, are_current) = self.jobs.checks(&self.nomad, &catalog, &self.prefix, has_streams).await;
        if catalog.checks != checks {
            // Otherwise it would be copied, as somebody else has it, too.
            drop(catalog);
            catalog = self.hints.change(|ledger| ledger.has_checks(checks));
        }
        self.hints.has_tried(are_current);
        Ok(Fetched { catalog: self.zombies.without(catalog), is_full })
    }

    async fn read_services_next(&self, served: &BTreeSet<String>, is_resync: bool) -> Result<Fetched, NomadError> {
        let (ticket, todo) = self.hints.ask(|ledger| ledger.todo(is_resync));
        let cause = match todo {
            Todo::Nothing(catalog) => return Ok(Fetched { catalog, is_full: false }),
            Todo::Services(services) => {
                tracing::debug!(services = services.len(), "reading the services that events name");
                let answers = self.details(services.into_iter().collect()).await?;
                let is_ours = |all: &[Registration]| self.is_ours(all.iter().flat_map(|one| &one.tags));
                let read = self.hints.change(|ledger| ledger.read_some(answers, is_ours));
                match read {
                    Ok(catalog) => {
                        self.hints.has_read(Cause::Event);
                        return Ok(Fetched { catalog, is_full: false });
                    }
                    Err(_) => Cause::IndexWentBack,
                }
            }
            Todo::Everything(cause) => cause,
        };
        tracing::debug!(cause = cause.as_str(), "reading the whole catalog");
        if matches!(cause, Cause::Resync | Cause::Stream | Cause::IndexWentBack) {
            self.jobs.forget();
        }
        let catalog = Arc::new(self.read(served).await?);
        self.hints.change(|ledger| ledger.read_all(ticket, catalog.clone()));
        self.hints.has_read(cause);
        Ok(Fetched { catalog, is_full: true })
    }

    /// Reads the whole catalog. What could not be read is listed in it, so that it is held while the rest continues; it
    /// is an error only if nothing could be read. `served` are the namespaces that HAProxy serves: one that the list
    /// lacks is read separately, because Nomad shortens the list for a token that has lost a namespace without saying
    /// so.
    pub async fn read(&self, served: &BTreeSet<String>) -> Result<Catalog, NomadError> {
        let mut catalog = Catalog::default();
        let mut wanted = Vec::new();
        let mut listed = BTreeSet::new();
        let mut failed = None;
        for (namespace, list) in self.lists(self.namespaces.iter().collect()).await {
            match list {
                Ok(Read { index, value }) => {
                    // Of several lists the lowest index is the one that the catalog certainly includes.
                    catalog.index = if catalog.index == 0 { index } else { catalog.index.min(index) };
                    if value.is_empty() && namespace != "*" && self.is_missing(namespace).await? {
                        catalog.namespaces.insert(namespace.clone(), Unread::Missing);
                    }
                    listed.insert(namespace.clone());
                    for NamespaceList { namespace, services } in value {
                        listed.insert(namespace.clone());
                        wanted.extend(
                            services
                                .into_iter()
                                .filter(|service| self.is_ours(service.tags.iter().flatten()))
                                .map(|service| ServiceKey { namespace: namespace.clone(), name: service.service_name }),
                        );
                    }
                }
                // There is no single namespace of `*` to hold.
                Err(error) if error.is_outage() || namespace == "*" => return Err(error),
                Err(error) => {
                    catalog.namespaces.insert(namespace.clone(), unread(&error));
                    failed = Some(error);
                }
            }
        }
        if let Some(error) = failed.filter(|_| listed.is_empty()) {
            return Err(error);
        }
        let is_left_out = |namespace: &&String| {
            self.watches(namespace) && !listed.contains(*namespace) && !catalog.namespaces.contains_key(*namespace)
        };
        let left_out: Vec<&String> = served.iter().filter(is_left_out).collect();
        for (namespace, list) in self.lists(left_out).await {
            match list {
                Ok(_) => {}
                Err(error) if error.is_outage() => return Err(error),
                Err(error) => {
                    catalog.namespaces.insert(namespace.clone(), unread(&error));
                }
            }
        }
        self.read_services(wanted, &mut catalog).await?;
        Ok(catalog)
    }

    /// The services with an enabling tag whose namespaces are not watched, as far as the token may see them: one call, or
    /// none if all namespaces are watched.
    pub async fn unwatched(&self) -> Result<BTreeSet<ServiceKey>, NomadError> {
        if self.watches("*") {
            return Ok(BTreeSet::new());
        }
        let lists = match self.list("*").await {
            Ok(Read { value, .. }) => value,
            Err(NomadError::Denied { .. }) => return Ok(BTreeSet::new()),
            Err(error) => return Err(error),
        };
        let outside = lists.into_iter().filter(|list| !self.watches(&list.namespace));
        let services = outside.flat_map(|NamespaceList { namespace, services }| {
            let enabled = services.into_iter().filter(|service| self.is_enabled(service));
            enabled.map(move |service| ServiceKey { namespace: namespace.clone(), name: service.service_name })
        });
        Ok(services.collect())
    }

    /// Reads each service; one that cannot be read is held, and the others continue.
    async fn read_services(&self, wanted: Vec<ServiceKey>, catalog: &mut Catalog) -> Result<(), NomadError> {
        let (readable, unreadable): (Vec<_>, Vec<_>) = wanted.into_iter().partition(is_readable);
        let no_name = || "Nomad cannot be asked for a service of this name".to_owned();
        catalog.unreadable = unreadable.into_iter().map(|service| (service, no_name())).collect();
        for (service, answer) in self.details(readable).await? {
            match answer {
                Ok((index, registrations)) => {
                    // Of another server than the leader it may be older than the list.
                    catalog.index = catalog.index.min(index);
                    catalog.services.insert(service, registrations);
                }
                Err(why) => {
                    catalog.unreadable.insert(service, why);
                }
            }
        }
        Ok(())
    }

    /// Reads services one by one.
    async fn details(&self, wanted: Vec<ServiceKey>) -> Result<Vec<Answer>, NomadError> {
        let mut unread: BTreeSet<ServiceKey> = wanted.iter().cloned().collect();
        let asked = wanted.into_iter().map(async |service| (self.service(&service).await, service));
        let answers = stream::iter(asked).buffer_unordered(CONCURRENCY).take_until(tokio::time::sleep(TOTAL_TIMEOUT));
        let (mut answers, mut read) = (pin!(answers), Vec::new());
        while let Some((answer, service)) = answers.next().await {
            unread.remove(&service);
            match answer {
                Ok(Read { index, value }) => read.push((service, Ok((index, value)))),
                Err(error) if error.is_outage() => return Err(error),
                Err(error) => read.push((service, Err(chain(&error)))),
            }
        }
        let late = || format!("Nomad did not answer for all services within {} s", TOTAL_TIMEOUT.as_secs());
        read.extend(unread.into_iter().map(|service| (service, Err(late()))));
        Ok(read)
    }

    /// Whether there is no namespace of this name. Nomad's list for one that does not exist is empty and not an error;
    /// a token without rights there cannot query it, nor read the list.
    async fn is_missing(&self, namespace: &str) -> Result<bool, NomadError> {
        let path = format!("/v1/namespace/{}", crate::desired::encode(namespace));
        match self.nomad.read::<serde::de::IgnoredAny>(&path, &[]).await {
            Err(error) if error.is_outage() => Err(error),
            answer => Ok(answer.is_err_and(|error| error.is_not_found())),
        }
    }

    /// Returns the new index once the list has changed since `index`, or when the wait is over.
    pub async fn changed(&self, index: u64) -> Result<u64, NomadError> {
        // There is one index for the whole table: watching one namespace is watching all of them, so it may be any that
        // the token may read.
        let mut namespaces = self.namespaces.iter().map(String::as_str);
        let mut namespace = namespaces.next().unwrap_or("*");
        loop {
            let query = [("namespace", namespace)];
            let read = self.nomad.wait::<serde::de::IgnoredAny>("/v1/services", &query, index, WAIT).await;
            match (read, namespaces.next()) {
                (Ok(Read { index, value: _ }), _) => return Ok(index),
                (Err(NomadError::Denied { .. }), Some(next)) => namespace = next,
                (Err(error), _) => return Err(error),
            }
        }
    }

    /// The stream of what happens to services and jobs in a namespace, from this index on.
    pub(super) async fn events(&self, namespace: &str, index: u64) -> Result<Lines, NomadError> {
        let index = index.to_string();
        let query = [("topic", "Service"), ("topic", "Job"), ("namespace", namespace), ("index", index.as_str())];
        self.nomad.lines("/v1/event/stream", &query).await
    }

    /// The lists of namespaces: in parallel, as Nomad may take its time for each one before it refuses it.
    async fn lists<'a>(
        &self,
        namespaces: Vec<&'a String>,
    ) -> Vec<(&'a String, Result<Read<Vec<NamespaceList>>, NomadError>)> {
        let asked: Vec<_> = namespaces.into_iter().map(async |name| (name, self.list(name).await)).collect();
        stream::iter(asked).buffered(CONCURRENCY).collect().await
    }

    async fn list(&self, namespace: &str) -> Result<Read<Vec<NamespaceList>>, NomadError> {
        let has_all = |lists: &Vec<NamespaceList>, known: &Catalog| {
            let listed: BTreeSet<(&str, &str)> = lists
                .iter()
                .flat_map(|list| list.services.iter().map(move |service| (list.namespace.as_str(), service)))
                .filter(|(_, service)| self.is_ours(service.tags.iter().flatten()))
                .map(|(namespace, service)| (namespace, service.service_name.as_str()))
                .collect();
            let mut registered = known.services.iter().filter(|(service, registrations)| {
                !registrations.is_empty() && (namespace == "*" || service.namespace == namespace)
            });
            registered.all(|(service, _)| listed.contains(&(service.namespace.as_str(), service.name.as_str())))
        };
        self.read_any("/v1/services", namespace, has_all).await
    }

    async fn service(&self, service: &ServiceKey) -> Result<Read<Vec<Registration>>, NomadError> {
        let has_all = |registrations: &Vec<Registration>, known: &Catalog| {
            let versions: BTreeMap<_, _> = registrations.iter().map(|one| (&one.id, one.modify_index)).collect();
            let mut known = known.services.get(service).into_iter().flatten();
            known.all(|one| versions.get(&one.id).is_some_and(|version| *version >= one.modify_index))
        };
        let path = format!("/v1/service/{}", crate::desired::encode(&service.name));
        self.read_any(&path, &service.namespace, has_all).await
    }

    /// The answer of any server, if that is allowed and it takes nothing away from what is known; else the leader's.
    async fn read_any<T: serde::de::DeserializeOwned>(
        &self,
        path: &str,
        namespace: &str,
        has_all: impl Fn(&T, &Catalog) -> bool,
    ) -> Result<Read<T>, NomadError> {
        let query = [("namespace", namespace)];
        let known = self.hints.ask(|ledger| Some((ledger.floor()?, ledger.catalog()?)));
        if let (Some(bound), Some((floor, known))) = (self.max_stale, known) {
            match self.nomad.read_from(Consistency::Any(bound), path, &query).await {
                Ok(read) if read.index >= floor && has_all(&read.value, &known) => return Ok(read),
                Ok(_) => tracing::debug!(path, "asking the leader, as another server's answer lacks something"),
                Err(error) => tracing::debug!(path, error = %chain(&error), "asking the leader"),
            }
        }
        self.nomad.read(path, &query).await
    }

    /// What became of the allocations of instances that vanished.
    pub async fn fates(&self, asked: Vec<fate::Question>) -> BTreeMap<InstanceId, Fate> {
        fate::ask(&self.nomad, asked).await
    }

    /// Whether a service with these tags, of all its instances, has one of ours, even if its prefix is in another case:
    /// that is worth a note.
    fn is_ours<'a>(&self, tags: impl Iterator<Item = &'a String> + Clone) -> bool {
        let mut tags = tags.map(String::as_str);
        tags.clone().any(|tag| tag.starts_with(&self.prefix))
            || tags::in_another_case(&self.prefix, &mut tags).is_some()
    }

    /// Whether a tag enables an instance of a service. The list has the tags of all instances together, so each tag
    /// counts on its own.
    fn is_enabled(&self, service: &Listed) -> bool {
        let mut tags = service.tags.iter().flatten().map(String::as_str);
        tags.any(|tag| tags::parse(&self.prefix, [tag]).0.enable == Enable::Yes)
    }

    fn watches(&self, namespace: &str) -> bool {
        ledger::watches(&self.namespaces, namespace)
    }
}
