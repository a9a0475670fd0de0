//! Decides which service gets a backend's name.
//!
//! A service keeps the name that it holds, as recorded in the file: across its own redeployment, while it is held, and
//! while its backend lingers without it. A name that no service holds goes to the service that was registered first.
//! Services of a namespace that name the same backend share it; its settings are those of the service that holds it
//! first. Anything beyond that needs a [grant](super::Grants).
//!
//! A note is about the service that it names: the service that does not get what its tags ask for has one, the service
//! that keeps it has none.

use std::collections::{BTreeMap, BTreeSet};

use crate::catalog::Catalog;

use super::build::{Built, Options, derived_name};
use super::{
    Backend, BackendKind, BackendName, BackendSettings, Code, Held, Note, Place, Present, ServiceKey, Severity,
};

/// The longest list of services in a description, in bytes. The Data Plane API does not read a line of 64 KiB or more,
/// nor then the rest of the file (seen on 3.2).
const MAX_LIST_LENGTH: usize = 32 * 1024;

/// One service's part of a backend, before it is known which service gets the name.
pub(super) struct Candidate {
    pub(super) service: ServiceKey,
    pub(super) name: BackendName,
    /// Its tags name the backend, so it shares it with other services that name it.
    pub(super) explicit: bool,
    /// When its first instance was registered.
    pub(super) since: u64,
    /// Its tags that set up the backend's section, without their prefix.
    pub(super) stated: Vec<&'static str>,
    pub(super) backend: Backend,
}

/// The service that holds a name first.
struct First {
    service: ServiceKey,
    explicit: bool,
    kind: BackendKind,
    /// If they are known.
    settings: Option<BackendSettings>,
    /// Why it is not among the current candidates.
    absent: &'static str,
}

impl First {
    fn new(candidate: &Candidate) -> Self {
        Self {
            service: candidate.service.clone(),
            explicit: candidate.explicit,
            kind: candidate.backend.kind,
            settings: Some(candidate.backend.settings.clone()),
            absent: "",
        }
    }
}

/// Decides which service gets which name, and adds the backends to what is built.
pub(super) fn names(
    candidates: Vec<Candidate>,
    catalog: &Catalog,
    present: &Present,
    options: &Options,
    built: &mut Built,
) {
    let mut by_name: BTreeMap<BackendName, Vec<Candidate>> = BTreeMap::new();
    for candidate in candidates {
        by_name.entry(candidate.name.clone()).or_default().push(candidate);
    }
    let derived = derived_names(by_name.values().flatten(), &built.held);
    let nothing = Place::default();
    for (name, candidates) in by_name {
        let place = present.backends.get(&name).unwrap_or(&nothing);
        let (held, notes) = (&built.held, Vec::new());
        let mut claim =
            Claim { name: &name, place, catalog, options, held, derived: &derived, is_awaited: false, notes };
        let backend = claim.settle(candidates);
        built.notes.append(&mut claim.notes);
        built.awaited.extend(claim.is_awaited.then(|| name.clone()));
        built.desired.backends.extend(backend.map(|backend| (name, backend)));
    }
}

/// The names that are derived from the services that are enabled or held, and the namespaces of these.
fn derived_names<'a>(candidates: impl Iterator<Item = &'a Candidate>, held: &'a Held) -> DerivedNames {
    let mut names = DerivedNames::new();
    for service in candidates.map(|candidate| &candidate.service).chain(&held.services) {
        names.entry(derived_name(service)).or_default().insert(service.namespace.clone());
    }
    names
}

type DerivedNames = BTreeMap<String, BTreeSet<String>>;

/// One name, and the services that ask for it.
struct Claim<'a> {
    name: &'a BackendName,
    place: &'a Place,
    catalog: &'a Catalog,
    options: &'a Options,
    held: &'a Held,
    derived: &'a DerivedNames,
    /// Whether it is kept for a service that is not among the candidates, and none of them shares it with that one.
    is_awaited: bool,
    notes: Vec<Note>,
}

impl Claim<'_> {
    fn settle(&mut self, candidates: Vec<Candidate>) -> Option<Backend> {
        // An empty backend of ours is kept, but not made. In an existing one nothing is kept for a service
        // without instances: the next pass could not find out which service held it.
        let keeps = |service: &ServiceKey| !self.place.is_foreign && self.holds(service);
        let asks = |candidate: &Candidate| !candidate.backend.instances.is_empty() || keeps(&candidate.service);
        let asking: Vec<_> = candidates.into_iter().filter(asks).collect();
        let mut candidates = Vec::new();
        for candidate in asking {
            match self.refusal(&candidate) {
                Some(text) => self.note(Severity::Error, &candidate.service, Code::NotAllowed, text),
                None => candidates.push(candidate),
            }
        }
        candidates.sort_by(|a, b| {
            let order = |candidate: &Candidate| {
                // Only a backend that exists can be given servers.
                let adds_to_nothing = candidate.backend.kind == BackendKind::Custom && !self.place.is_foreign;
                (self.priority(candidate), adds_to_nothing, candidate.since)
            };
            (order(a), &a.service).cmp(&(order(b), &b.service))
        });
        let first = self.first(&candidates)?;
        let mut members = Vec::new();
        for candidate in candidates {
            match self.conflict(&candidate, &first) {
                Some((code, text)) => self.note(Severity::Error, &candidate.service, code, text),
                None => members.push(candidate),
            }
        }
        self.is_awaited = members.is_empty();
        // A service that is gone is not in the description any more: the services that share its backend have it from now on.
        let is_gone = !first.absent.is_empty() && !self.held.holds(&first.service);
        let first = members.first().filter(|_| is_gone).map_or(first, First::new);
        self.merged(members, &first)
    }

    /// Why a candidate may not ask for the name, whatever the others do.
    fn refusal(&self, candidate: &Candidate) -> Option<String> {
        let Self { name, options: Options { grants, .. }, .. } = self;
        let service = &candidate.service;
        if self.place.is_foreign {
            let may = grants.may_join(service, name);
            return (!may).then(|| self.not_allowed(service, "is not one that this program made", "join"));
        }
        if !grants.may_make(service, name) {
            return Some(self.not_allowed(service, "is not among those that its namespace may use", "backends"));
        }
        // A name that no service holds yet is reserved for the service that it is derived from.
        let others = |namespaces: &BTreeSet<String>| namespaces.iter().any(|other| *other != service.namespace);
        let is_anothers = derived_name(service) != name.as_str()
            && !self.holds(service)
            && !grants.lists(service, name)
            && self.derived.get(name.as_str()).is_some_and(others);
        is_anothers.then(|| self.not_allowed(service, "has the name of a service of another namespace", "backends"))
    }

    /// `setting`: the one that would allow it.
    fn not_allowed(&self, service: &ServiceKey, why: &str, setting: &str) -> String {
        let (name, namespace) = (self.name, service.namespace.escape_debug());
        let value = if setting == "join" { "`true`".to_owned() } else { format!("a list with `{name}`") };
        format!("not routed: the backend {name} {why}; `namespaces.{namespace}.{setting}` = {value} would allow it")
    }

    /// Whether a candidate shares the backend with the service that holds it first.
    fn shares(&self, candidate: &Candidate, first: &First) -> bool {
        let grants = &self.options.grants;
        let is_allowed = |service: &ServiceKey| match self.place.is_foreign {
            true => grants.allows_join(service),
            false => grants.lists(service, self.name),
        };
        let is_of_its_namespace = candidate.service.namespace == first.service.namespace;
        let has_it = (candidate.explicit && first.explicit) || self.holds(&candidate.service);
        // A service that the settings let in does not keep out the service that the backend is named after.
        let is_its_own = derived_name(&candidate.service) == self.name.as_str();
        let is_joined_first = is_its_own && first.explicit && is_allowed(&first.service);
        (is_of_its_namespace && has_it) || (candidate.explicit && is_allowed(&candidate.service)) || is_joined_first
    }

    /// The position of a service among those that hold the name, and after them.
    fn rank(&self, service: &ServiceKey) -> usize {
        self.place.holders.iter().position(|holder| holder == service).unwrap_or(usize::MAX)
    }

    /// The order of the candidates. An existing backend does not record which service came first: those with servers in
    /// it go before the others, and among these those of its mode.
    fn priority(&self, candidate: &Candidate) -> (usize, bool) {
        if !self.place.is_foreign {
            return (self.rank(&candidate.service), false);
        }
        let is_dynamic = candidate.backend.kind == BackendKind::Dynamic;
        let speaks_another = is_dynamic && candidate.backend.settings.mode.as_str() != self.place.mode;
        (usize::from(!self.holds(&candidate.service)), speaks_another)
    }

    fn holds(&self, service: &ServiceKey) -> bool {
        self.place.holders.contains(service)
    }

    /// Which service holds the name first: the first holder that is present or held; else, while the backend lingers
    /// without its service, that service; else the first candidate.
    fn first(&self, candidates: &[Candidate]) -> Option<First> {
        let candidate = candidates.first()?;
        // A service that only has servers in an existing backend does not hold its name.
        if self.place.is_foreign {
            return Some(First::new(candidate));
        }
        let absent = |service: &ServiceKey, absent| First {
            service: service.clone(),
            explicit: derived_name(service) != self.name.as_str(),
            kind: BackendKind::Dynamic,
            settings: self.place.settings.clone(),
            absent,
        };
        let rank = self.rank(&candidate.service);
        let earlier = self.place.holders.iter().take(rank);
        if let Some(holder) = earlier.clone().find(|holder| self.held.holds(holder)) {
            return Some(absent(holder, ", which is held as it is"));
        }
        let lingers = |holder: &&ServiceKey| {
            self.options.lingers && self.is_gone(holder) && derived_name(holder) == self.name.as_str()
        };
        match earlier.clone().find(lingers) {
            Some(holder) if rank == usize::MAX => {
                Some(absent(holder, ", which is gone, and keeps it until `backend.linger` is over"))
            }
            _ => Some(First::new(candidate)),
        }
    }

    fn is_gone(&self, service: &ServiceKey) -> bool {
        self.catalog.services.get(service).is_none_or(Vec::is_empty)
    }

    /// Why a candidate does not get the name.
    fn conflict(&self, candidate: &Candidate, first: &First) -> Option<(Code, String)> {
        if candidate.service == first.service {
            return None;
        }
        let Self { name, options: Options { prefix, .. }, .. } = self;
        if !self.shares(candidate, first) || candidate.backend.kind != first.kind {
            let First { service, absent, .. } = first;
            if candidate.explicit && service.namespace != candidate.service.namespace {
                let why = format!("belongs to service {service}, which is of another namespace");
                return Some((Code::NotAllowed, self.not_allowed(&candidate.service, &why, "backends")));
            }
            let text = format!(
                "not routed: the backend {name} belongs to service {service}{absent}; \
                 give one of them another name with {prefix}backend.name"
            );
            return Some((Code::NameConflict, text));
        }
        // With another protocol it would answer part of the others' requests.
        let mode = candidate.backend.settings.mode;
        let other = first.settings.as_ref().map(|settings| settings.mode).filter(|other| *other != mode)?;
        (candidate.backend.kind == BackendKind::Dynamic && candidate.stated.contains(&"mode")).then(|| {
            let (mode, other, service) = (mode.as_str(), other.as_str(), &first.service);
            let text = format!(
                "not routed: {prefix}mode is {mode}, and the backend {name} is {other} as service {service} asks \
                 for, which holds it first"
            );
            (Code::OtherSettings, text)
        })
    }

    /// The backend of all services that share it. Those that are held stay in its description.
    fn merged(&mut self, members: Vec<Candidate>, first: &First) -> Option<Backend> {
        let mut backend = members.first()?.backend.clone();
        if let (false, Some(settings)) = (first.absent.is_empty(), &first.settings) {
            backend.settings = settings.clone();
        }
        (backend.services, backend.instances, backend.tags) = (Vec::new(), Vec::new(), BTreeMap::new());
        let mut length = 0;
        for member in members {
            length += member.service.to_word().len() + 1;
            if length > MAX_LIST_LENGTH {
                let text =
                    format!("not routed: the backend {} is shared by more services than one line can list", self.name);
                self.note(Severity::Error, &member.service, Code::TooManyServices, text);
                continue;
            }
            self.note_ignored_tags(&member, &backend.settings, first);
            backend.services.push(member.service);
            backend.instances.extend(member.backend.instances);
            backend.tags.extend(member.backend.tags);
        }
        if !self.place.is_foreign {
            let here: BTreeSet<&ServiceKey> = backend.services.iter().collect();
            let held = self.place.holders.iter().filter(|holder| self.held.holds(holder) && !here.contains(holder));
            let held: Vec<ServiceKey> = held.cloned().collect();
            backend.services.extend(held);
            backend.services.sort_by_key(|service| self.rank(service));
        }
        backend.settings.description = self.options.owner.describe(self.name, &backend.services);
        Some(backend)
    }

    fn note_ignored_tags(&mut self, member: &Candidate, settings: &BackendSettings, first: &First) {
        if member.service == first.service || member.backend.kind == BackendKind::Custom {
            return;
        }
        let own = &member.backend.settings;
        let differs = |tag: &&&str| match **tag {
            "mode" => own.mode != settings.mode,
            "balance" => own.balance != settings.balance,
            "cookie" => own.cookie != settings.cookie,
            tag if tag.starts_with("timeout.") => own.timeouts != settings.timeouts,
            _ => own.check != settings.check,
        };
        let prefix = &self.options.prefix;
        let ignored: Vec<String> = member.stated.iter().filter(differs).map(|tag| format!("{prefix}{tag}")).collect();
        if !ignored.is_empty() {
            let (name, service) = (self.name, &first.service);
            let text = format!(
                "ignored: {}; the backend {name} is set up as service {service} asks for, which holds it first",
                ignored.join(", ")
            );
            self.note(Severity::Warning, &member.service, Code::OtherSettings, text);
        }
    }

    fn note(&mut self, severity: Severity, service: &ServiceKey, code: Code, text: String) {
        self.notes.push(Note { severity, service: service.clone(), code, text });
    }
}
