//! What stays as it is although the catalog lacks it.

use std::collections::BTreeSet;

use super::{InstanceId, Occupant, ServiceKey};

/// What must not be removed, because it is not known to be gone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    /// Services that could not be read, or whose tags are unclear.
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

    /// Whether the occupant of a server stays although the catalog lacks it.
    pub fn keeps(&self, occupant: &Occupant) -> bool {
        let Occupant::Instance { id, service, .. } = occupant else { return false };
        let unread = !self.services.is_empty() || !self.namespaces.is_empty();
        // A server line in an existing backend from before 0.2 does not name its service.
        self.instances.contains(id) || service.as_ref().map_or(unread, |service| self.holds(service))
    }
}
