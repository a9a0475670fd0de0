//! The current catalog from Nomad: the list of services, then one call for each that is to be routed.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use serde::Deserialize;

use crate::desired::tags::{self, Enable};
use crate::desired::{InstanceId, ServiceKey};
use crate::errors::chain;
use crate::nomad::{Nomad, NomadError, Read};
use crate::plan::guard::Fate;

use super::{Catalog, Registration, Unread, fate};

/// Parallel calls. Nomad closes the 101st connection from one address (429); at 16, 1000 services of 5 take 0.2 s
/// (seen).
pub(super) const CONCURRENCY: usize = 16;
/// For all services together: one slow service must not delay the others. 1000 take 0.2 s.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(20);
/// How long one blocking query waits. It ends as soon as anything changes, so this only bounds how long a dead
/// connection goes unnoticed.
const WAIT: Duration = Duration::from_secs(60);

/// Reads the catalog of the watched namespaces.
#[derive(Debug, Clone)]
pub struct NomadCatalog {
    nomad: Nomad,
    namespaces: Vec<String>,
    prefix: String,
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
        Self { nomad, namespaces, prefix }
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
        for namespace in &self.namespaces {
            match self.list(namespace).await {
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
                                .filter(|service| self.is_ours(service))
                                .map(|service| ServiceKey { namespace: namespace.clone(), name: service.service_name }),
                        );
                    }
                }
                // There is no single namespace of `*` to hold.
                Err(error) if error.is_outage() || namespace == "*" => return Err(error),
                Err(error) => {
                    catalog.namespaces.insert(namespace.clone(), Unread::Failed(chain(&error)));
                    failed = Some(error);
                }
            }
        }
        if let Some(error) = failed.filter(|_| listed.is_empty()) {
            return Err(error);
        }
        for namespace in served.iter().filter(|namespace| self.watches(namespace) && !listed.contains(*namespace)) {
            if catalog.namespaces.contains_key(namespace) {
                continue;
            }
            match self.list(namespace).await {
                Ok(_) => {}
                Err(error) if error.is_outage() => return Err(error),
                Err(error) => {
                    catalog.namespaces.insert(namespace.clone(), Unread::Failed(chain(&error)));
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
        let mut unread: BTreeSet<ServiceKey> = readable.iter().cloned().collect();
        let asked = readable.into_iter().map(|service| self.service(service));
        let answers = stream::iter(asked).buffer_unordered(CONCURRENCY).take_until(tokio::time::sleep(TOTAL_TIMEOUT));
        let mut answers = pin!(answers);
        while let Some((service, answer)) = answers.next().await {
            unread.remove(&service);
            match answer {
                Ok(registrations) => {
                    catalog.services.insert(service, registrations);
                }
                Err(error) if error.is_outage() => return Err(error),
                Err(error) => {
                    catalog.unreadable.insert(service, chain(&error));
                }
            }
        }
        let late = || format!("Nomad did not answer for all services within {} s", TOTAL_TIMEOUT.as_secs());
        catalog.unreadable.extend(unread.into_iter().map(|service| (service, late())));
        Ok(())
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

    async fn list(&self, namespace: &str) -> Result<Read<Vec<NamespaceList>>, NomadError> {
        self.nomad.read("/v1/services", &[("namespace", namespace)]).await
    }

    async fn service(&self, service: ServiceKey) -> (ServiceKey, Result<Vec<Registration>, NomadError>) {
        let path = format!("/v1/service/{}", crate::desired::encode(&service.name));
        let answer = self.nomad.read(&path, &[("namespace", &service.namespace)]).await;
        (service, answer.map(|Read { value, .. }| value))
    }

    /// What became of the allocations of instances that vanished.
    pub async fn fates(&self, asked: Vec<fate::Question>) -> BTreeMap<InstanceId, Fate> {
        fate::ask(&self.nomad, asked).await
    }

    /// Whether a service has a tag of ours, even if its prefix is in another case: that is worth a note.
    fn is_ours(&self, service: &Listed) -> bool {
        let mut tags = service.tags.iter().flatten().map(String::as_str);
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
        self.namespaces.iter().any(|watched| watched == "*" || watched == namespace)
    }
}

/// Whether a service can be requested by its name: `a/b` is answered with 405 (recorded), and `.` and `..` do not
/// survive in a URL.
fn is_readable(service: &ServiceKey) -> bool {
    !service.name.contains('/') && !matches!(service.name.as_str(), "" | "." | "..")
}
