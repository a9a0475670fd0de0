//! The newest catalog from Nomad: the list of services, then one call for each that asks to be routed.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde::Deserialize;

use crate::desired::ServiceKey;
use crate::nomad::{Nomad, NomadError, Read};

use super::{Catalog, Registration};

/// Calls at a time. Nomad closes the 101st connection from one address (429); at 16, 1000 services of 5
/// take 0.2 s (seen).
const CONCURRENCY: usize = 16;
/// How long one blocking query waits. It ends the moment that anything changes, so this only bounds how
/// long a dead connection goes unnoticed.
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

    /// Reads the whole catalog. It stands only if every call is answered. `served` are the namespaces
    /// that HAProxy serves: one that the list leaves out must be readable, for Nomad shortens the list
    /// of a token that lost a namespace without a word.
    pub async fn read(&self, served: &BTreeSet<String>) -> Result<Catalog, NomadError> {
        let mut catalog = Catalog::default();
        let mut wanted = Vec::new();
        let mut listed = BTreeSet::new();
        for namespace in &self.namespaces {
            let Read { index, value } = self.list(namespace).await?;
            // Of several lists the lowest index is the one that the catalog is certain to hold.
            catalog.index = if catalog.index == 0 { index } else { catalog.index.min(index) };
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
        for namespace in served.iter().filter(|namespace| self.watches(namespace) && !listed.contains(*namespace)) {
            self.list(namespace).await?;
        }
        let (readable, unreadable): (Vec<_>, Vec<_>) = wanted.into_iter().partition(is_readable);
        catalog.unreadable = unreadable.into_iter().collect();
        let asked: Vec<_> = readable.into_iter().map(|service| self.service(service)).collect();
        let read: Vec<(ServiceKey, Vec<Registration>)> =
            stream::iter(asked).buffer_unordered(CONCURRENCY).try_collect().await?;
        catalog.services = read.into_iter().collect();
        Ok(catalog)
    }

    /// Returns the new index once the list has changed since `index`, or after a while all the same.
    pub async fn changed(&self, index: u64) -> Result<u64, NomadError> {
        // One index for the whole table: watching one namespace is watching them all.
        let namespace = self.namespaces.first().map_or("*", String::as_str);
        let read: Read<serde_json::Value> =
            self.nomad.wait("/v1/services", &[("namespace", namespace)], index, WAIT).await?;
        Ok(read.index)
    }

    async fn list(&self, namespace: &str) -> Result<Read<Vec<NamespaceList>>, NomadError> {
        self.nomad.read("/v1/services", &[("namespace", namespace)]).await
    }

    async fn service(&self, service: ServiceKey) -> Result<(ServiceKey, Vec<Registration>), NomadError> {
        let path = format!("/v1/service/{}", crate::desired::encode(&service.name));
        let Read { value, .. } = self.nomad.read(&path, &[("namespace", &service.namespace)]).await?;
        Ok((service, value))
    }

    fn is_ours(&self, service: &Listed) -> bool {
        service.tags.iter().flatten().any(|tag| tag.starts_with(&self.prefix))
    }

    fn watches(&self, namespace: &str) -> bool {
        self.namespaces.iter().any(|watched| watched == "*" || watched == namespace)
    }
}

/// Whether a service can be asked for by its name: `a/b` is answered with 405 (recorded), and `.` and
/// `..` do not survive in a URL.
fn is_readable(service: &ServiceKey) -> bool {
    !service.name.contains('/') && !matches!(service.name.as_str(), "" | "." | "..")
}
