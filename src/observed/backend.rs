//! One backend of the configuration: who owns it, its settings, and the servers of ours in it.

use std::collections::{BTreeMap, BTreeSet};

use super::ByConnector;
use super::inherited::Inherited;
use crate::desired::{
    BackendName, BackendSettings, DEFAULT_WEIGHT, Described, Occupant, Owner, Place, Server, ServerName, ServiceKey,
};
use crate::haproxy::default_server::ServerDefaults;
use crate::haproxy::parse::{self, ServerLine};
use crate::haproxy::text::{Blocks, ConfigText, Directive, Section};

/// Who owns a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ownership {
    /// Ours, made for these services; the one that holds it first comes first.
    Ours(Vec<ServiceKey>),
    /// The same, but it is unclear where the section ends, so only servers of ours in it are changed.
    Unclear(Vec<ServiceKey>),
    /// A person's, or another controller's.
    Foreign,
}

impl Ownership {
    /// The services that it was made for.
    pub fn services(&self) -> &[ServiceKey] {
        match self {
            Self::Ours(services) | Self::Unclear(services) => services,
            Self::Foreign => &[],
        }
    }
}

/// `agent-check`, stated or inherited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentCheck {
    /// As the file is.
    pub now: bool,
    /// Once the backend is written again: in one of ours only what it inherits is left.
    pub once_written: bool,
}

/// One backend of the configuration.
#[allow(clippy::struct_excessive_bools, reason = "facts about a backend that do not depend on each other")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedBackend {
    /// Where it is. A `listen` section takes its name too, but can't be given servers.
    pub section: Section,
    /// Whether there are several sections of this name. The file does not show which of them counts (one may be in a
    /// conditional block), so nothing in them is treated as ours.
    pub is_repeated: bool,
    /// Its owner.
    pub ownership: Ownership,
    /// Whether it is ours by the mark of the owner that is taken over.
    pub is_adopted: bool,
    /// Its settings, if it is ours and contains only what we would write.
    pub settings: Option<BackendSettings>,
    /// Its mode, stated or inherited.
    pub mode: String,
    /// Its algorithm, stated or inherited.
    pub balance: String,
    /// The weight of a server that does not state one: from `default-server`, stated or inherited, else 1.
    pub default_weight: u16,
    /// What a server line of it inherits, as far as a server that is added at run time can be given the same. `None`:
    /// that is not known, as an option is not, or it is stated in a conditional block or in another file.
    pub server_defaults: Option<ServerDefaults>,
    /// Whether that would be known if the backend itself gave nothing, as one of ours that was just written.
    pub knows_defaults: bool,
    /// Whether the process has the CAs of its system, for a server that is added at run time and verifies.
    pub loads_system_ca: bool,
    /// Whether an agent may set the states and weights of its servers.
    pub agent_check: AgentCheck,
    /// The servers of ours.
    pub servers: Vec<Server>,
    /// Servers of ours whose line was changed or copied by a person.
    pub drifted: BTreeSet<ServerName>,
    /// Servers of ours whose comment is to be written again: it does not name their service, or has the owner that is
    /// taken over.
    pub outdated: BTreeSet<ServerName>,
    /// The names of the servers that are not ours.
    pub foreign: BTreeSet<String>,
    /// What haproxy-nomad-connector made in it.
    pub by_connector: ByConnector,
    /// The lines of the servers of ours.
    pub(super) our_lines: BTreeMap<usize, ServerName>,
    /// The line that marks it as ours.
    pub(super) description: Option<usize>,
}

impl ObservedBackend {
    pub(super) fn disown(&mut self) {
        (self.is_repeated, self.ownership, self.settings) = (true, Ownership::Foreign, None);
        self.description = None;
        let servers = self.servers.drain(..).map(|server| server.name);
        let names = servers.chain(std::mem::take(&mut self.drifted)).map(|name| name.to_string());
        self.foreign.extend(names);
        self.our_lines.clear();
        self.by_connector = ByConnector::default();
    }

    /// A person's copy of a backend with servers of ours belongs to that person, under any name. `named` is the backend
    /// that the description names, if it names one; a backend that 0.1 wrote is ours unless its servers are named after
    /// another backend.
    fn disown_a_copy(&mut self, named: Option<&str>) {
        let own: Option<BackendName> = self.section.name.parse().ok();
        let is_slot = |name: &ServerName| own.as_ref().is_some_and(|own| own.slot_number(name).is_some());
        let is_copy = match named {
            Some(named) => named != self.section.name,
            None => !self.is_ours() || !self.our_lines.values().all(is_slot),
        };
        if !is_copy {
            return;
        }
        self.ownership = Ownership::Foreign;
        let copied = self.our_lines.values().filter(|name| !is_slot(name)).map(ServerName::to_string);
        self.foreign.extend(copied);
        self.our_lines.retain(|_, name| is_slot(name));
        self.servers.retain(|server| is_slot(&server.name));
        self.drifted.retain(is_slot);
    }

    /// The backend of another controller as one of ours, whose settings are to be written.
    #[must_use]
    pub fn taken_over(&self, services: &[ServiceKey]) -> Self {
        Self { ownership: Ownership::Ours(services.to_vec()), settings: None, ..self.clone() }
    }

    pub(super) fn is_unclear(&mut self) {
        self.by_connector = ByConnector::default();
        (self.settings, self.description) = (None, None);
        if let Ownership::Ours(services) = &mut self.ownership {
            self.ownership = Ownership::Unclear(std::mem::take(services));
        }
    }

    /// `None`: no service can hold the name.
    pub(super) fn place(&self, adopts_connector: bool) -> Option<Place> {
        if self.is_repeated {
            return None;
        }
        let is_foreign = self.ownership == Ownership::Foreign && !(adopts_connector && self.by_connector.is_whole);
        let seated: BTreeSet<_> = self.servers.iter().filter_map(|server| server.occupant.service()).collect();
        let holders = match is_foreign {
            true => seated.into_iter().cloned().collect(),
            false => self.ownership.services().to_vec(),
        };
        Some(Place { is_foreign, mode: self.mode.clone(), holders, settings: self.settings.clone() })
    }

    /// Lines of 0.1 do not name their service; in a backend of one service, as 0.1 described it, it is that one. It is
    /// added with the next change, before the description is extended.
    fn name_the_service(&mut self) {
        let Ownership::Ours(services) = &self.ownership else { return };
        let [only] = services.as_slice() else { return };
        for server in &mut self.servers {
            if let Occupant::Instance { service: service @ None, .. } = &mut server.occupant {
                *service = Some(only.clone());
                self.outdated.insert(server.name.clone());
            }
        }
    }

    /// The services that it is made for, and those with servers of ours in it.
    pub(super) fn services(&self) -> impl Iterator<Item = &ServiceKey> {
        let occupants = self.servers.iter().map(|server| &server.occupant);
        self.ownership.services().iter().chain(occupants.filter_map(Occupant::service))
    }

    /// HAProxy refuses a file with two servers of one name, so a server whose name occurs twice is rewritten.
    fn disown_copies(&mut self) {
        let mut count: BTreeMap<&ServerName, usize> = BTreeMap::new();
        for server in &self.servers {
            *count.entry(&server.name).or_default() += 1;
        }
        let copied = count.iter().filter(|(name, count)| **count > 1 || self.foreign.contains(name.as_str()));
        let copied: Vec<ServerName> = copied.map(|(name, _)| (*name).clone()).collect();
        self.drifted.extend(copied);
        self.servers.retain(|server| !self.drifted.contains(&server.name));
    }

    /// Whether the backend is ours.
    pub fn is_ours(&self) -> bool {
        matches!(self.ownership, Ownership::Ours(_))
    }

    /// Whether a server of ours is called this, changed by a person or not.
    pub fn has_server(&self, name: &ServerName) -> bool {
        self.drifted.contains(name) || self.servers.iter().any(|server| server.name == *name)
    }

    /// Whether this line (from 0) is a server of ours, changed by a person or not.
    pub fn is_our_server(&self, line: usize) -> bool {
        self.our_lines.contains_key(&line)
    }

    /// Whether its algorithm is static, so that HAProxy accepts only weights of 0 and 100 % at run time (configuration
    /// manual, `balance`). With `hash-type consistent` some are not: an unneeded reload is still correct.
    pub fn has_static_algorithm(&self) -> bool {
        is_static(&self.balance)
    }

    /// Whether servers can be added to it, and removed from it, at run time, as it is: HAProxy does so in a backend with
    /// a dynamic algorithm (management guide, 9.3, `add server`), and an agent keeps a server from being removed.
    pub fn takes_servers(&self) -> bool {
        let is_plain = self.server_defaults.is_some() && !self.agent_check.now;
        is_plain && ["http", "tcp"].contains(&self.mode.as_str()) && !self.has_static_algorithm()
    }

    /// Whether anything in it is ours.
    pub fn is_managed(&self) -> bool {
        self.is_ours() || !self.servers.is_empty() || !self.drifted.is_empty()
    }
}

/// Whether `balance` names a static algorithm.
pub fn is_static(balance: &str) -> bool {
    const STATIC: &[&str] = &["static-rr", "source", "uri", "url_param", "hdr", "rdp-cookie", "hash"];
    let end = balance.find(['(', ' ']).unwrap_or(balance.len());
    STATIC.contains(&&balance[..end])
}

pub(super) fn observed_backend(
    text: &ConfigText,
    section: Section,
    lines: &[usize],
    directives: &[Directive],
    effective: Inherited,
    owner: &Owner,
) -> ObservedBackend {
    let description = directives.iter().position(|directive| directive.keyword() == "description");
    let described = description.and_then(|at| owner.described(&directives[at].words[1..].join(" ")));
    let (ownership, named) = match described {
        Some(Described { backend, services }) if section.kind == "backend" => (Ownership::Ours(services), backend),
        _ => (Ownership::Foreign, None),
    };
    let by_connector = ByConnector::new(text, &section, lines, directives, owner);
    let mut backend = ObservedBackend {
        section,
        is_repeated: false,
        ownership,
        is_adopted: false,
        settings: None,
        mode: effective.mode.unwrap_or_else(|| "tcp".to_owned()),
        balance: effective.balance.unwrap_or_else(|| "roundrobin".to_owned()),
        default_weight: effective.weight.unwrap_or(DEFAULT_WEIGHT),
        server_defaults: effective.servers,
        knows_defaults: false,
        loads_system_ca: false,
        agent_check: AgentCheck { now: effective.agent_check, once_written: effective.agent_check },
        servers: Vec::new(),
        drifted: BTreeSet::new(),
        outdated: BTreeSet::new(),
        foreign: BTreeSet::new(),
        by_connector,
        our_lines: BTreeMap::new(),
        description: None,
    };
    // What is in a conditional block may or may not be in effect: what is ours there is drift.
    let (mut blocks, mut unconditional, mut all_unconditional) = (Blocks::default(), Vec::new(), true);
    for (line, directive) in lines.iter().zip(directives) {
        match directive.keyword() {
            keyword if keyword.starts_with('.') => blocks.pass(keyword),
            "server" => match parse::server(directive, owner) {
                ServerLine::Ours(name, server) => {
                    backend.our_lines.insert(*line, name.clone());
                    match server.filter(|_| !blocks.is_inside()) {
                        Some(server) => {
                            if owner.is_adopting()
                                && parse::mark(directive).is_some_and(|mark| owner.adopts(&mark.owner))
                            {
                                backend.outdated.insert(name);
                            }
                            backend.servers.push(server);
                        }
                        None => drop(backend.drifted.insert(name)),
                    }
                }
                ServerLine::Foreign(name) => {
                    backend.foreign.insert(name);
                }
            },
            keyword => {
                if keyword == "server-template" {
                    backend.foreign.extend(template_names(directive));
                }
                unconditional.push(directive);
                all_unconditional &= !blocks.is_inside();
            }
        }
    }
    backend.disown_a_copy(named.as_deref());
    if backend.is_ours() {
        backend.description = description.map(|at| lines[at]);
        let mark = description.and_then(|at| Owner::read(&directives[at].words[1..].join(" ")));
        backend.is_adopted = mark.is_some_and(|(name, _)| owner.adopts(&name));
    }
    if backend.is_ours() && all_unconditional {
        backend.settings = parse::settings(unconditional);
    }
    if named.is_none() {
        backend.name_the_service();
    }
    backend.disown_copies();
    backend
}

/// The most servers of a `server-template` that are enumerated.
const MAX_TEMPLATE_SERVERS: u32 = 10_000;

/// The names of the servers that `server-template PREFIX COUNT` or `PREFIX FIRST-LAST` makes.
fn template_names(directive: &Directive) -> Vec<String> {
    let [_, prefix, range, ..] = &directive.words[..] else { return Vec::new() };
    let (first, last) = range.split_once('-').unwrap_or(("1", range));
    let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) else { return Vec::new() };
    (first..=last.min(first.saturating_add(MAX_TEMPLATE_SERVERS))).map(|number| format!("{prefix}{number}")).collect()
}
