//! One server: the instance that it is for, and the slot that the instance sits in.

use std::time::Duration;

use super::owner::encode;
use super::{Address, ProxyProtocol, ServerName, ServiceKey, Tls, Verify};

/// Which registration is in a slot: its ID, as one word.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceId(String);

impl InstanceId {
    /// From a registration's ID, which may contain anything.
    pub fn new(registration: &str) -> Self {
        Self(encode(registration))
    }

    /// From the word in a server's metadata.
    pub fn from_metadata(word: &str) -> Self {
        Self(word.to_owned())
    }

    /// The word.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The weight of a server without a tag for it, as in HAProxy.
pub const DEFAULT_WEIGHT: u16 = 1;

/// The settings of one server that its own tags give.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerOptions {
    /// 0 to 256. `None` only if a line that was read does not state it: such a line inherits it from `default-server`,
    /// so what we write always states it.
    pub weight: Option<u16>,
    /// Connections at the same time; the others queue.
    pub maxconn: Option<u32>,
    /// Used only when no other server is up.
    pub backup: bool,
    /// Whether connections start with the client's address.
    pub proxy: Option<ProxyProtocol>,
    /// TLS; `None`: as `default-server` says. In a box, as most servers have none.
    pub tls: Option<Box<Tls>>,
}

impl ServerOptions {
    /// What does not change at run time: all but the weight.
    #[must_use]
    pub fn fixed(&self) -> Self {
        Self { weight: None, ..self.clone() }
    }
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
    /// How long it drains after it is gone; without it, it is in maintenance at once.
    pub drain: Option<Duration>,
    /// Nomad's CreateIndex: the order in which instances take slots.
    pub created: u64,
}

/// What a server line of ours is used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Occupant {
    /// An instance.
    Instance {
        /// Which registration.
        id: InstanceId,
        /// Its allocation.
        alloc: String,
        /// The service that it is an instance of. `None` only if a line that was read does not name it, as lines of 0.1
        /// did not.
        service: Option<ServiceKey>,
        /// How long it drains when it is gone.
        drain: Option<Duration>,
    },
    /// A free slot. The number orders the slots by when they were freed; 0 was never used.
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
    /// No new traffic except from clients that are bound to it; connections stay open.
    Drain,
    /// No new traffic and no checks; connections stay open.
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

impl Occupant {
    /// The service of its instance, if known.
    pub fn service(&self) -> Option<&ServiceKey> {
        match self {
            Self::Instance { service, .. } => service.as_ref(),
            Self::Free { .. } => None,
        }
    }

    /// The registration in it.
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
    /// Where it listens; for a free slot, where its last instance did, unless that was a host name.
    pub address: Address,
    /// The port.
    pub port: u16,
    /// Whether the line itself turns the check on, as it must in a backend that is not ours.
    pub check: bool,
    /// Whether a client stays with it by a cookie, whose value is then the server's name.
    pub cookie: bool,
    /// From the tags of its instance.
    pub options: ServerOptions,
    /// For a free slot: the next instance in it gets no traffic before its first passing check (`init-state down`,
    /// HAProxy 3.1). A server in service never has it, because after a reload it would be down until it is checked: up
    /// to 2 s on 3.2 and 3.4 (measured).
    pub gated: bool,
    /// What it is used for.
    pub occupant: Occupant,
}

impl Server {
    /// The state that the process should have it in.
    pub fn state(&self) -> State {
        match self.occupant {
            Occupant::Instance { .. } => State::Ready,
            Occupant::Free { drain_until: Some(_), .. } => State::Drain,
            Occupant::Free { drain_until: None, .. } => State::Maint,
        }
    }

    /// What does not change at run time: its options, whether its line turns the check on, and its cookie.
    pub fn fixed(&self) -> (ServerOptions, bool, bool) {
        (self.options.fixed(), self.check, self.cookie)
    }

    /// Whether it needs the CAs of HAProxy's system.
    pub fn verifies(&self) -> bool {
        self.options.tls.as_ref().is_some_and(|tls| tls.verify == Verify::Required)
    }

    /// For a free slot: when it was freed, in milliseconds since 1970; 0: it was never used. Before 0.2 it was a count.
    pub fn freed(&self) -> Option<u64> {
        match self.occupant {
            Occupant::Instance { .. } => None,
            Occupant::Free { freed, .. } => Some(freed),
        }
    }

    /// Whether it has an instance.
    pub fn is_enabled(&self) -> bool {
        matches!(self.occupant, Occupant::Instance { .. })
    }
}
