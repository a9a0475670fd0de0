//! What stays as it is, whatever is missing from the catalog.

use std::collections::BTreeSet;

use super::{InstanceId, ServiceKey, Tenant};

/// What may not be taken away, as it is not known to be gone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// Services that could not be read, or of which it is unclear what they ask for.
    pub services: BTreeSet<ServiceKey>,
    /// Namespaces that could not be read.
    pub namespaces: BTreeSet<String>,
    /// Single instances.
    pub instances: BTreeSet<InstanceId>,
}

impl Held {
    /// Whether a service is held as a whole.
    pub fn holds(&self, service: &ServiceKey) -> bool {
        self.services.contains(service) || self.namespaces.contains(&service.namespace)
    }

    /// Whether whoever sits in a server stays there, though the catalog does not have it.
    pub fn keeps(&self, tenant: &Tenant) -> bool {
        let Tenant::Instance { id, service, .. } = tenant else { return false };
        let unread = !self.services.is_empty() || !self.namespaces.is_empty();
        // A line that was written before 0.2 into somebody's backend does not say which service it is of.
        self.instances.contains(id) || service.as_ref().map_or(unread, |service| self.holds(service))
    }
}
