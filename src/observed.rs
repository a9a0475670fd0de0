//! What HAProxy has: its configuration text at one version, read into the types of the desired state.
//!
//! Both planes read the text. It is the one form that contains everything (foreign lines, defaults, comments), it comes
//! with its version in one answer, and what one plane has written the other can read.

mod connector;
mod foreign;
mod frontends;
mod maps;
mod others;
mod profiles;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::desired::{
    BackendName, BackendSettings, DEFAULT_WEIGHT, Described, FrontendName, Occupant, Owner, Place, Present, Server,
    ServerName, ServiceKey,
};
use crate::haproxy::default_server::ServerDefaults;
use crate::haproxy::parse::{self, ServerLine};
use crate::haproxy::text::{Blocks, ConfigText, Directive, Section};

pub use connector::{ByConnector, ConnectorRule};
pub use foreign::{Foreign, harm, lost_comments};
pub use frontends::Frontend;
pub use maps::Maps;
pub use others::{Other, Others};
pub use profiles::{ProfileEdits, Profiles};

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
    our_lines: BTreeMap<usize, ServerName>,
    /// The line that marks it as ours.
    description: Option<usize>,
}

/// The observed state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The version that a write must name.
    pub version: u64,
    /// The owner of what is ours.
    pub owner: Owner,
    /// What carries another owner's mark.
    pub others: Others,
    /// The whole text.
    pub text: ConfigText,
    /// Every backend and listen section.
    pub backends: BTreeMap<String, ObservedBackend>,
    /// Every frontend and listen section.
    pub frontends: BTreeMap<String, Frontend>,
    /// The map files of ours; the plane adds them.
    pub maps: Maps,
    /// What HAProxy 3.4 makes backends from at run time.
    pub profiles: Profiles,
    /// The defaults section that a new backend names: the last one, if the other sections name theirs. HAProxy warns
    /// about each section in a file that mixes both.
    pub defaults: Option<String>,
    /// The weight of a server in a new backend that does not state one.
    pub default_weight: u16,
    /// Whether a new backend inherits `agent-check`.
    pub default_agent_check: bool,
    /// Whether it is known what the servers of a new backend inherit.
    pub knows_defaults: bool,
    /// As of a backend.
    pub loads_system_ca: bool,
}

/// What a section inherits. The default is that of a section whose `defaults` are not in this file.
#[derive(Clone, Default)]
struct Inherited {
    mode: Option<String>,
    balance: Option<String>,
    default_backend: Option<String>,
    weight: Option<u16>,
    agent_check: bool,
    servers: Option<ServerDefaults>,
}

impl Observed {
    /// Reads a text.
    pub fn new(version: u64, text: ConfigText, owner: &Owner) -> Self {
        let (mut backends, mut others) = (BTreeMap::new(), Others::default());
        let mut named: BTreeMap<String, Inherited> = BTreeMap::new();
        let mut last = Inherited::default();
        // What a new backend inherits: from the last section that is not a profile.
        let (mut of_new, mut profiles) = (Inherited::default(), Profiles::default());
        let (mut defaults, mut explicit) = (None, false);
        let sections = text.sections();
        let loads_system_ca = loads_system_ca(&text, &sections);
        let mut frontends: BTreeMap<String, Frontend> = BTreeMap::new();
        let mut below = sections.iter().skip(1);
        for section in sections.iter().cloned() {
            let unclear = below.next().is_some_and(|below| may_belong_above(&text, below, owner));
            let (lines, directives): (Vec<usize>, Vec<Directive>) = text.directives(&section).unzip();
            explicit |= section.from.is_some() && section.kind != "defaults";
            let above = section.from.as_ref().and_then(|from| named.get(from).cloned());
            if ["frontend", "listen"].contains(&section.kind.as_str()) {
                let effective = inherit(above.clone().unwrap_or_else(|| last.clone()), &directives);
                let mode = effective.mode.as_deref();
                let mut frontend = Frontend::new(section.clone(), &lines[1..], &directives[1..], mode, owner);
                frontend.by_connector = ConnectorRule::all(&text, &lines[1..], &directives[1..], owner);
                frontend.by_hand.extend(effective.default_backend);
                if section.kind == "listen" {
                    frontend.by_hand.insert(section.name.clone());
                }
                if unclear {
                    frontend.door.trouble = Some("it is unclear whether what follows it is part of it");
                }
                let name = section.name.clone();
                if frontends.insert(name.clone(), frontend).is_some()
                    && let Some(again) = frontends.get_mut(&name)
                {
                    again.door.trouble = Some("there are several sections of this name");
                }
            }
            match section.kind.as_str() {
                "defaults" => {
                    // A defaults section starts from HAProxy's own defaults, or from the one it names.
                    let servers = section.from.is_none().then(ServerDefaults::default);
                    last = inherit(above.unwrap_or(Inherited { servers, ..Inherited::default() }), &directives);
                    named.insert(section.name.clone(), last.clone());
                    match profiles::owner_in(&section.name) {
                        // With servers it is a line that a person put into a backend.
                        Some(name) if owner.has(name) && !profiles::has_servers(&directives[1..]) => {
                            profiles.see_profile(&section, &directives[1..]);
                        }
                        Some(_) => {}
                        None => {
                            profiles.see_defaults(&text, &section, &directives[1..], owner);
                            defaults = (!section.name.is_empty()).then(|| section.name.clone());
                            of_new = last.clone();
                        }
                    }
                }
                "backend" | "listen" => {
                    let elsewhere = section.from.is_some() && above.is_none();
                    let mut above = above.unwrap_or_else(|| last.clone());
                    above.servers.take_if(|_| elsewhere);
                    let knows_defaults = above.servers.is_some();
                    let Inherited { weight: inherited_weight, agent_check: inherits_agent_check, .. } = above;
                    let effective = inherit(above, &directives);
                    let mut backend = observed_backend(&text, section, &lines[1..], &directives[1..], effective, owner);
                    (backend.knows_defaults, backend.loads_system_ca) = (knows_defaults, loads_system_ca);
                    if unclear {
                        backend.is_unclear();
                    }
                    if backends.contains_key(&backend.section.name) {
                        backend.disown();
                    }
                    let not_ours = |(line, _): &(&usize, &Directive)| !backend.is_our_server(**line);
                    for (_, directive) in lines[1..].iter().zip(&directives[1..]).filter(not_ours) {
                        others.read(&backend.section.name, directive, owner);
                    }
                    if backend.is_ours() {
                        // A `default-server` with a weight or an agent is not ours, and is removed by the next write.
                        backend.default_weight = inherited_weight.unwrap_or(DEFAULT_WEIGHT);
                        backend.agent_check.once_written = inherits_agent_check;
                    }
                    backends.insert(backend.section.name.clone(), backend);
                }
                _ => {}
            }
        }
        if text.conditional().is_some() {
            profiles.without_base();
        }
        let default_weight = of_new.weight.unwrap_or(DEFAULT_WEIGHT);
        let defaults = defaults.filter(|_| explicit);
        let (default_agent_check, knows_defaults) = (of_new.agent_check, of_new.servers.is_some());
        Self {
            version,
            owner: owner.clone(),
            others,
            text,
            backends,
            frontends,
            maps: Maps::default(),
            profiles,
            defaults,
            default_weight,
            default_agent_check,
            knows_defaults,
            loads_system_ca,
        }
    }

    /// The same with the map files of ours.
    #[must_use]
    pub fn with_maps(self, maps: Maps) -> Self {
        Self { maps, ..self }
    }

    /// Whether a line (from 0) is a rule of ours in a frontend.
    pub fn is_our_rule(&self, line: usize) -> bool {
        self.frontends.values().any(|frontend| frontend.rules.contains_key(&line))
    }

    /// What rules of a person send requests to, each with the frontends.
    pub fn by_hand(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (frontend, Frontend { by_hand, .. }) in &self.frontends {
            for backend in by_hand {
                all.entry(backend.clone()).or_default().insert(frontend.clone());
            }
        }
        all
    }

    /// A frontend by its name.
    pub fn frontend(&self, name: &FrontendName) -> Option<&Frontend> {
        self.frontends.get(name.as_str())
    }

    /// The namespaces of the services that HAProxy serves through us: a list from Nomad that lacks one may have been
    /// shortened because of missing rights.
    pub fn namespaces(&self) -> BTreeSet<String> {
        let services = self.backends.values().flat_map(ObservedBackend::services);
        services.map(|service| service.namespace.clone()).collect()
    }

    /// What the desired state depends on: which service holds which backend's name.
    pub fn present(&self) -> Present {
        let place = |(name, backend): (&String, &ObservedBackend)| {
            Some((name.parse().ok()?, backend.place(self.owner.adopts_connector())?))
        };
        let services = self.backends.values().flat_map(ObservedBackend::services).cloned().collect();
        let door = |(name, frontend): (&String, &Frontend)| Some((name.parse().ok()?, frontend.door.clone()));
        Present {
            backends: self.backends.iter().filter_map(place).collect(),
            services,
            doors: self.frontends.iter().filter_map(door).collect(),
            routes: Arc::new(self.maps.routes()),
        }
    }

    /// When the first of the drains ends, in seconds since 1970.
    pub fn next_drain(&self) -> Option<u64> {
        let servers = self.backends.values().flat_map(|backend| &backend.servers);
        servers
            .filter_map(|server| match server.occupant {
                Occupant::Free { drain_until, .. } => drain_until,
                Occupant::Instance { .. } => None,
            })
            .min()
    }

    /// What is not ours, by meaning: see [`Foreign`].
    pub fn foreign(&self) -> Foreign {
        Foreign::new(self)
    }

    /// The lines (from 0) of ours that change without a reload: servers, and the descriptions of backends.
    pub fn live_lines(&self) -> impl Iterator<Item = usize> + '_ {
        self.backends.values().flat_map(|backend| backend.our_lines.keys().copied().chain(backend.description))
    }

    /// The profile from which HAProxy makes a backend of these settings at run time, if the file has it.
    pub fn profile(&self, settings: &BackendSettings) -> Option<String> {
        self.profiles.of(settings, &self.owner)
    }

    /// A backend by its name.
    pub fn backend(&self, name: &BackendName) -> Option<&ObservedBackend> {
        self.backends.get(name.as_str())
    }

    /// The backends that are ours or hold servers of ours, with their names.
    pub fn managed(&self) -> impl Iterator<Item = (BackendName, &ObservedBackend)> {
        self.backends.iter().filter(|(_, backend)| backend.is_managed()).filter_map(|(name, backend)| {
            // HAProxy accepts names that our own rule does not; none of those is ours.
            Some((name.parse().ok()?, backend))
        })
    }

    /// The same, and backends of ours whose end is unclear.
    pub fn marked(&self) -> impl Iterator<Item = (BackendName, &ObservedBackend)> {
        let is_marked = |backend: &ObservedBackend| backend.is_managed() || backend.ownership != Ownership::Foreign;
        let marked = self.backends.iter().filter(move |(_, backend)| is_marked(backend));
        marked.filter_map(|(name, backend)| Some((name.parse().ok()?, backend)))
    }
}

impl ObservedBackend {
    fn disown(&mut self) {
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

    fn is_unclear(&mut self) {
        self.by_connector = ByConnector::default();
        (self.settings, self.description) = (None, None);
        if let Ownership::Ours(services) = &mut self.ownership {
            self.ownership = Ownership::Unclear(std::mem::take(services));
        }
    }

    /// `None`: no service can hold the name.
    fn place(&self, adopts_connector: bool) -> Option<Place> {
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
    fn services(&self) -> impl Iterator<Item = &ServiceKey> {
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

/// Whether HAProxy loads the CAs of its system when it starts, although no server of the file asks for them: its own HTTP
/// client does, unless the file says something of that client's TLS (seen on 3.0, 3.2 and 3.4).
fn loads_system_ca(text: &ConfigText, sections: &[Section]) -> bool {
    let of_client = |directive: &Directive| directive.keyword().starts_with("httpclient.ssl.");
    let mut global = sections.iter().filter(|section| section.kind == "global");
    !global.any(|section| text.directives(section).any(|(_, directive)| of_client(&directive)))
}

/// Whether `balance` names a static algorithm.
pub fn is_static(balance: &str) -> bool {
    const STATIC: &[&str] = &["static-rr", "source", "uri", "url_param", "hdr", "rdp-cookie", "hash"];
    let end = balance.find(['(', ' ']).unwrap_or(balance.len());
    STATIC.contains(&&balance[..end])
}

/// Whether what looks like a section of an unknown kind may be directives of the section above it, which is then not
/// treated as ours: rewriting or deleting it would leave them to the section above it.
fn may_belong_above(text: &ConfigText, section: &Section, owner: &Owner) -> bool {
    let is_ours = |directive: &Directive| {
        directive.keyword() == "server" && matches!(parse::server(directive, owner), ServerLine::Ours(..))
    };
    !section.certain || !section.is_known() && text.directives(section).any(|(_, directive)| is_ours(&directive))
}

fn inherit(above: Inherited, directives: &[Directive]) -> Inherited {
    directives.iter().fold(above, |mut inherited, directive| {
        match directive.keyword() {
            "mode" => inherited.mode = directive.words.get(1).cloned(),
            "default_backend" => inherited.default_backend = directive.words.get(1).cloned(),
            "balance" => inherited.balance = Some(directive.words[1..].join(" ")),
            // What is in a conditional block may or may not be in effect.
            keyword if keyword.starts_with('.') => inherited.servers = None,
            "default-server" => {
                inherited.servers = inherited.servers.and_then(|servers| servers.with(&directive.words[1..]));
                let mut words = directive.words.iter().map(String::as_str);
                while let Some(word) = words.next() {
                    match word {
                        "agent-check" => inherited.agent_check = true,
                        "no-agent-check" => inherited.agent_check = false,
                        "weight" => inherited.weight = words.next().and_then(|weight| weight.parse().ok()),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        inherited
    })
}

fn observed_backend(
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

#[cfg(test)]
mod tests;
