//! What HAProxy takes without a reload. All sorting into live and structural is here; it depends on what the target can
//! do at run time.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::desired::build::Built;
use crate::desired::{
    Address, Backend, BackendKind, BackendName, Desired, ProxyProtocol, Server, ServerName, ServerOptions, State,
};
use crate::haproxy::render;
use crate::observed::{Observed, ObservedBackend, ProfileEdits, is_static};
use crate::plane::Capabilities;

use super::{Edit, Options, Plan, Rewrite, ServerEdit, Surplus};

/// A server as `add server` makes it: it inherits nothing, so its options are all that its line and the backend's
/// `default-server` give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewServer {
    /// Where it listens.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
    /// Whether it has a health check, which has to be turned on separately.
    pub checked: bool,
    /// Whether it gets no traffic before its first passing check.
    pub gated: bool,
    /// Its other options, as they follow the address.
    pub options: String,
}

/// How servers come into a running process.
#[derive(Debug, Clone, Default)]
pub struct Growth {
    capabilities: Capabilities,
    /// The backends in which a new server gets no traffic before its first passing check.
    gated: BTreeSet<BackendName>,
}

impl Growth {
    /// For a target and the desired state of a pass.
    pub fn new(capabilities: Capabilities, desired: &Desired) -> Self {
        let gated = desired.backends.iter().filter(|(_, backend)| backend.gated).map(|(name, _)| name.clone());
        Self { capabilities, gated: gated.collect() }
    }

    /// Whether servers leave the process at run time.
    pub(super) fn removes(&self) -> bool {
        self.capabilities.servers
    }

    /// Whether backends come and go in the process at run time.
    pub(super) fn makes_backends(&self) -> bool {
        self.capabilities.backends
    }

    /// The server as it is added to the process; `None`: only a reload brings it in.
    pub(super) fn of(&self, name: &BackendName, section: &ObservedBackend, server: &Server) -> Option<NewServer> {
        let is_gated = self.gated.contains(name);
        self.capabilities.servers.then(|| NewServer::new(section, server, is_gated)).flatten()
    }
}

/// Whether a backend needs no spare servers, as it is given servers at run time once it is written.
pub(super) fn grows(
    capabilities: Capabilities,
    desired: &Backend,
    section: Option<&ObservedBackend>,
    observed: &Observed,
) -> bool {
    let is_balanced = || !is_static(desired.settings.balance.algorithm());
    capabilities.servers
        && match (section, desired.kind) {
            (Some(section), BackendKind::Dynamic) if section.is_ours() => {
                section.knows_defaults && !section.agent_check.once_written && is_balanced()
            }
            (Some(section), _) => section.takes_servers(),
            (None, _) => observed.knows_defaults && !observed.default_agent_check && is_balanced(),
        }
}

/// Whether HAProxy makes a new backend at run time, with its servers: from a profile that the file has, and no name is
/// taken by one that is still to be removed.
pub(super) fn makes(
    options: &Options,
    name: &BackendName,
    desired: &Backend,
    servers: &[Server],
    observed: &Observed,
) -> bool {
    let Options { capabilities, taken, .. } = options;
    capabilities.backends
        && !taken.contains(&Surplus::Backend(name.clone()))
        && grows(*capabilities, desired, None, observed)
        && servers.iter().all(|server| matches!(server.address, Address::Ip(_)))
        && (observed.loads_system_ca || !servers.iter().any(Server::verifies))
        && observed.profile(&desired.settings).is_some()
}

/// Whether HAProxy removes a backend of ours at run time. Its servers have to go first.
pub(super) fn deletes(capabilities: Capabilities, section: &ObservedBackend) -> bool {
    capabilities.backends && (section.servers.is_empty() && section.drifted.is_empty() || section.takes_servers())
}

/// The profiles after a plan that takes a reload: one for each of the settings that are in use, where backends are made
/// at run time.
pub(super) fn profiles(plan: &Plan, built: &Built, observed: &Observed, options: &Options) -> ProfileEdits {
    let makes = options.capabilities.backends;
    let desired = built.desired.backends.iter().filter(|(_, backend)| makes && backend.kind == BackendKind::Dynamic);
    let is_ours = |name: &BackendName| match observed.backend(name) {
        Some(section) => section.is_ours(),
        None => plan.edits.contains_key(name),
    };
    let in_use = desired.filter(|(name, backend)| is_ours(name) && !is_static(backend.settings.balance.algorithm()));
    observed.profiles.edits(in_use.map(|(_, backend)| &backend.settings), &options.owner)
}

impl NewServer {
    /// `None`: HAProxy does not take it at run time, or the result would not be what a reload makes of the line. It
    /// takes no server in a backend with a static algorithm, and resolves no host name (seen on 3.0, 3.2 and 3.4).
    fn new(section: &ObservedBackend, server: &Server, is_gated: bool) -> Option<Self> {
        let Server { name, address: Address::Ip(address), port, check, cookie, options, gated, occupant: _ } = server
        else {
            return None;
        };
        if server.verifies() && !section.loads_system_ca {
            return None;
        }
        let mut stated = section.server_defaults.clone().filter(|_| section.takes_servers())?;
        let ServerOptions { weight, maxconn, backup, proxy, tls } = options;
        let flags = [("check", *check), ("backup", *backup)].into_iter().filter(|(_, is_on)| *is_on);
        for flag in flags.map(|(flag, _)| flag).chain(proxy.map(ProxyProtocol::as_str)) {
            stated.set(flag, None);
        }
        if *cookie {
            stated.set("cookie", Some(name.as_str()));
        }
        if let Some(maxconn) = maxconn {
            stated.set("maxconn", Some(&maxconn.to_string()));
        }
        if let Some(weight) = weight {
            stated.set("weight", Some(&weight.to_string()));
        }
        for (option, value) in tls.iter().flat_map(|tls| render::tls(tls)) {
            stated.set(option, value.as_deref());
        }
        let checked = stated.has("check");
        // A line in service is not gated, as a reload would then take it down; a server that comes in is.
        let gated = checked && (is_gated || *gated);
        Some(Self { address: *address, port: *port, checked, gated, options: stated.to_words() })
    }
}

impl Plan {
    /// Whether HAProxy takes all of it without a reload.
    pub fn is_live(&self) -> bool {
        let Self { edits, profiles, routes } = self;
        edits.values().all(Edit::is_live) && profiles.is_empty() && routes.rules.is_empty()
    }
}

impl Edit {
    /// Whether HAProxy takes it without a reload.
    pub(super) fn is_live(&self) -> bool {
        match self {
            Self::Change { rewrite: Rewrite::Nothing | Rewrite::Description, edits, .. } | Self::Servers(edits) => {
                edits.iter().all(ServerEdit::is_live)
            }
            Self::Create { is_live, .. } | Self::Delete { is_live } => *is_live,
            Self::Change { .. } => false,
        }
    }
}

impl ServerEdit {
    /// A new line in a backend that exists.
    pub(super) fn add(server: Server, section: &ObservedBackend, capabilities: Capabilities) -> Self {
        let is_live = capabilities.servers && NewServer::new(section, &server, false).is_some();
        Self::Add { server, is_live }
    }

    /// A line that is removed. A server of a person has its name where one was copied; that one stays.
    pub(super) fn remove(name: ServerName, section: &ObservedBackend, capabilities: Capabilities) -> Self {
        let is_live = capabilities.servers && section.takes_servers() && !section.foreign.contains(name.as_str());
        Self::Remove { name, is_live }
    }

    /// Whether HAProxy takes it without a reload. Address, state and weight change at run time; the rest of a line does
    /// not. A static algorithm refuses a new weight (management guide, `set server … weight`).
    pub(super) fn is_live(&self) -> bool {
        let (before, after, fixed_weight) = match self {
            Self::Add { server: _, is_live } | Self::Remove { name: _, is_live } => return *is_live,
            Self::Set { before: Some(before), after, fixed_weight } => (before, after, fixed_weight),
            Self::Set { before: None, .. } | Self::Retire { .. } => return false,
        };
        let (weight, fixed) = (after.options.weight, after.fixed() == before.fixed());
        // The process accepts no host name, and no address for a server whose name did not resolve. A server in
        // maintenance needs none.
        let address = (&before.address, before.port) == (&after.address, after.port)
            || after.state() == State::Maint
            || matches!((&before.address, &after.address), (Address::Ip(_), Address::Ip(_)));
        fixed && address && (!fixed_weight || weight.unwrap_or(1) == before.options.weight.unwrap_or(1))
    }
}
