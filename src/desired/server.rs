//! One server: the instance that it is for, and the slot that the instance sits in.

use std::time::Duration;

use super::owner::encode;
use super::{Address, ServerName, ServiceKey};

/// Which registration sits in a slot: its ID, in one word.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(String);

impl InstanceId {
    /// Takes a registration's ID, which may hold anything.
    pub fn new(registration: &str) -> Self {
        Self(encode(registration))
    }

    /// Takes the word back from a server's metadata.
    pub fn from_metadata(word: &str) -> Self {
        Self(word.to_owned())
    }

    /// The word.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The weight of a server whose tags give none, as in HAProxy.
pub const DEFAULT_WEIGHT: u16 = 1;

/// The settings of one server that its own tags give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ServerOptions {
    /// 0 to 256. `None` only where a line that was read does not say: such a line inherits it from
    /// `default-server`, so what we write always says.
    pub weight: Option<u16>,
    /// Connections at a time; the others queue.
    pub maxconn: Option<u32>,
    /// Used only when no other server is up.
    pub backup: bool,
}

/// One instance of a service, as HAProxy needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Which registration this is.
    pub id: InstanceId,
    /// The allocation, for people who read the file.
    pub alloc: String,
    /// The service.
    pub service: ServiceKey,
    /// Where it listens.
    pub address: Address,
    /// The port that it listens on.
    pub port: u16,
    /// From its own tags.
    pub options: ServerOptions,
    /// How long it drains when it is gone; without it, it is in maintenance at once.
    pub drain: Option<Duration>,
    /// Nomad's CreateIndex: the order in which instances take slots.
    pub created: u64,
}

/// Who sits in a server line of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tenant {
    /// An instance.
    Instance {
        /// Which registration.
        id: InstanceId,
        /// Its allocation.
        alloc: String,
        /// The service that it is an instance of. `None` only where a line that was read does not say, as
        /// lines of 0.1 did not.
        service: Option<ServiceKey>,
        /// How long it drains when it is gone.
        drain: Option<Duration>,
    },
    /// Nobody. The number orders the slots by when they were freed; 0 was never used.
    Free {
        /// Higher was freed later.
        freed: u64,
        /// Until when the process drains it, in seconds since 1970; then it is put in maintenance.
        drain_until: Option<u64>,
    },
}

/// The administrative state of a server in the process (management guide, `set server … state`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It takes traffic, as its check allows.
    Ready,
    /// No new traffic but for clients that are bound to it; connections live on.
    Drain,
    /// No new traffic and no checks; connections live on.
    Maint,
}

impl State {
    /// HAProxy's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maint => "maint",
        }
    }
}

impl Tenant {
    /// The service of who sits there, where that is known.
    pub fn service(&self) -> Option<&ServiceKey> {
        match self {
            Self::Instance { service, .. } => service.as_ref(),
            Self::Free { .. } => None,
        }
    }

    /// The registration that sits there.
    pub fn id(&self) -> Option<&InstanceId> {
        match self {
            Self::Instance { id, .. } => Some(id),
            Self::Free { .. } => None,
        }
    }
}

/// A server line of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// `<backend>_<n>`.
    pub name: ServerName,
    /// Where it listens; of a free slot, where the last instance did, unless that was a host name.
    pub address: Address,
    /// The port.
    pub port: u16,
    /// Whether the line itself turns the check on, as it must in a backend that is not ours.
    pub check: bool,
    /// Weight, connections, backup.
    pub options: ServerOptions,
    /// Of a free slot: whoever takes it gets no traffic before the first passing check (`init-state
    /// down`, HAProxy 3.1). A server that is in service never has it, for after a reload it would be
    /// down until it is checked: up to 2 s on 3.2 and 3.4 (measured).
    pub gated: bool,
    /// Who sits there.
    pub tenant: Tenant,
}

impl Server {
    /// The state that the process should have it in.
    pub fn state(&self) -> State {
        match self.tenant {
            Tenant::Instance { .. } => State::Ready,
            Tenant::Free { drain_until: Some(_), .. } => State::Drain,
            Tenant::Free { drain_until: None, .. } => State::Maint,
        }
    }

    /// Of a free slot: when it was freed, in milliseconds since 1970; 0: it was never used. Before 0.2 it was
    /// a count.
    pub fn freed(&self) -> Option<u64> {
        match self.tenant {
            Tenant::Instance { .. } => None,
            Tenant::Free { freed, .. } => Some(freed),
        }
    }

    /// Whether an instance sits there.
    pub fn is_enabled(&self) -> bool {
        matches!(self.tenant, Tenant::Instance { .. })
    }
}
