//! What HAProxy has before a pass, as far as the desired state depends on it: which service holds which backend's name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{BackendName, BackendSettings, FrontendName, Mode, Routes, ServiceKey};

/// What HAProxy has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Present {
    /// The backends and `listen` sections, except for names that occur several times.
    pub backends: BTreeMap<BackendName, Place>,
    /// Every service that HAProxy serves through us.
    pub services: BTreeSet<ServiceKey>,
    /// The frontends and `listen` sections.
    pub doors: BTreeMap<FrontendName, Door>,
    /// The routes of ours.
    pub routes: Arc<Routes>,
}

/// One frontend, as far as routes depend on it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Door {
    /// Its mode, stated or inherited; `None`: one that routes nothing.
    pub mode: Option<Mode>,
    /// The line (from 1) of a rule of a person that matches every request, so that no rule below it is asked.
    pub always: Option<usize>,
    /// Whether it has a `default_backend` of its own.
    pub has_default: bool,
    /// Whether it waits for the first bytes of a connection (`tcp-request inspect-delay`), which the name in a TLS
    /// handshake is read from.
    pub inspects: bool,
    /// Why no rule is written into it, if it is so.
    pub trouble: Option<&'static str>,
}

impl Door {
    /// One of this mode.
    pub fn new(mode: Option<Mode>) -> Self {
        Self { mode, ..Self::default() }
    }
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
