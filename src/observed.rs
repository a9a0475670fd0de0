//! What HAProxy has: its configuration text at one version, read into the types of the desired state.
//!
//! Both planes read the text. It is the one form that contains everything (foreign lines, defaults, comments), it comes
//! with its version in one answer, and what one plane has written the other can read.

mod backend;
mod connector;
mod foreign;
mod frontends;
mod inherited;
mod maps;
mod others;
mod profiles;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::desired::{BackendName, BackendSettings, DEFAULT_WEIGHT, FrontendName, Occupant, Owner, Present};
use crate::haproxy::parse::{self, ServerLine};
use crate::haproxy::text::{ConfigText, Directive, Section};

use backend::observed_backend;
pub use backend::{AgentCheck, ObservedBackend, Ownership, is_static};
pub use connector::{ByConnector, ConnectorRule};
pub use foreign::{Foreign, harm, lost_comments};
pub use frontends::Frontend;
pub use inherited::Beside;
use inherited::{Inherited, has_client_tls, inherit};
pub use maps::Maps;
pub use others::{Other, Others};
pub use profiles::{ProfileEdits, Profiles};

/// The observed state.
#[allow(clippy::struct_excessive_bools, reason = "facts about a text that do not depend on each other")]
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
    /// What the other files say that HAProxy was started with.
    beside: Beside,
    /// Whether the text may depend on other files.
    pub needs_others: bool,
}

impl Observed {
    /// Reads a text without knowing other files.
    pub fn new(version: u64, text: ConfigText, owner: &Owner) -> Self {
        Self::read(Beside::default(), version, text, owner)
    }

    /// Reads another text of the same version.
    #[must_use]
    pub fn again(&self, text: ConfigText) -> Self {
        Self::read(self.beside.clone(), self.version, text, &self.owner)
    }

    /// Reads the text again, knowing the other files.
    #[must_use]
    pub fn with_beside(self, beside: Beside) -> Self {
        Self::read(beside, self.version, self.text, &self.owner)
    }

    fn read(beside: Beside, version: u64, text: ConfigText, owner: &Owner) -> Self {
        let (mut backends, mut others) = (BTreeMap::new(), Others::default());
        let mut above = beside.above.clone();
        // What a new backend inherits: from the last section that is not a profile.
        let (mut of_new, mut profiles) = (above.last().clone(), Profiles::default());
        let (mut defaults, mut explicit) = (None, false);
        let sections = text.sections();
        let needs_others = Beside::matters_to(&sections);
        // HAProxy loads the CAs of its system when it starts, although no server of the file asks for them, for its own
        // HTTP client (seen on 3.0, 3.2 and 3.4).
        let loads_system_ca = !has_client_tls(&text, &sections) && !beside.has_client_tls;
        let mut frontends: BTreeMap<String, Frontend> = BTreeMap::new();
        let mut below = sections.iter().skip(1);
        for section in sections.iter().cloned() {
            let unclear = below.next().is_some_and(|below| may_belong_above(&text, below, owner));
            let (lines, directives): (Vec<usize>, Vec<Directive>) = text.directives(&section).unzip();
            explicit |= section.from.is_some() && section.kind != "defaults";
            if ["frontend", "listen"].contains(&section.kind.as_str()) {
                let effective = inherit(above.of(&section), &directives);
                let mut frontend = Frontend::new(section.clone(), &lines[1..], &directives[1..], effective, owner);
                frontend.by_connector = ConnectorRule::all(&text, &lines[1..], &directives[1..], owner);
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
                    let given = above.pass(&section, &directives);
                    match profiles::owner_in(&section.name) {
                        // With servers it is a line that a person put into a backend.
                        Some(name) if owner.has(name) && !profiles::has_servers(&directives[1..]) => {
                            profiles.see_profile(&section, &directives[1..]);
                        }
                        Some(_) => {}
                        None => {
                            profiles.see_defaults(&text, &section, &directives[1..], owner);
                            defaults = (!section.name.is_empty()).then(|| section.name.clone());
                            of_new = given.clone();
                        }
                    }
                }
                "backend" | "listen" => {
                    let inherited = above.of(&section);
                    let knows_defaults = inherited.servers.is_some();
                    let Inherited { weight: inherited_weight, agent_check: inherits_agent_check, .. } = inherited;
                    let effective = inherit(inherited, &directives);
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
            beside,
            needs_others,
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

/// Whether what looks like a section of an unknown kind may be directives of the section above it, which is then not
/// treated as ours: rewriting or deleting it would leave them to the section above it.
fn may_belong_above(text: &ConfigText, section: &Section, owner: &Owner) -> bool {
    let is_ours = |directive: &Directive| {
        directive.keyword() == "server" && matches!(parse::server(directive, owner), ServerLine::Ours(..))
    };
    !section.certain || !section.is_known() && text.directives(section).any(|(_, directive)| is_ours(&directive))
}

#[cfg(test)]
mod tests;
