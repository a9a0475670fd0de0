//! What HAProxy has before a pass, as far as the desired state depends on it: which service holds which backend's name.

use std::collections::{BTreeMap, BTreeSet};

use super::{BackendName, BackendSettings, ServiceKey};

/// What HAProxy has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Present {
    /// The backends and `listen` sections, except for names that occur several times.
    pub backends: BTreeMap<BackendName, Place>,
    /// Every service that HAProxy serves through us.
    pub services: BTreeSet<ServiceKey>,
}

/// One existing backend.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// Whether it belongs to a person, or to another controller.
    pub is_foreign: bool,
    /// Its mode, stated or inherited.
    pub mode: String,
    /// The services that have it, the one that holds the name first at the front: in a backend of ours as its
    /// description lists them, in any other those with servers in it.
    pub holders: Vec<ServiceKey>,
    /// Its settings, if it is ours and contains only what we would write.
    pub settings: Option<BackendSettings>,
}
