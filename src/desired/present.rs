//! What HAProxy has before a pass, as far as the desired state depends on it: who holds which backend's name.

use std::collections::{BTreeMap, BTreeSet};

use super::{BackendName, BackendSettings, ServiceKey};

/// What HAProxy has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Present {
    /// The backends and `listen` sections, but for names that are there several times.
    pub backends: BTreeMap<BackendName, Place>,
    /// Every service that HAProxy serves by us.
    pub services: BTreeSet<ServiceKey>,
}

/// One backend that is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// Whether it is a person's, or another controller's.
    pub is_theirs: bool,
    /// Its mode, stated or inherited.
    pub mode: String,
    /// The services that have it: in a backend of ours as its description lists them, whoever holds the name first;
    /// in somebody's those with servers in it, in no order.
    pub holders: Vec<ServiceKey>,
    /// Its settings, where it is ours and says only what we would write.
    pub settings: Option<BackendSettings>,
}
