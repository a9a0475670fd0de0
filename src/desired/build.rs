//! Catalog + settings → desired state, and a note for everything that was ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::catalog::{Catalog, JobCheck, Registration, Unread};

use super::checks::{self, Chosen};
use super::claims::{self, Asked};
use super::settle::{self, Candidate};
use super::tags::{self, BackendTag, CheckTags, CheckType, Enable, Intent, Routing, ServerTags};
use super::{
    Address, Backend, BackendKind, BackendName, BackendSettings, Balance, Check, Code, Desired, FrontendName, Grants,
    Held, Instance, InstanceId, Mode, NamespaceNote, Note, Owner, Present, ServerOptions, ServiceKey, Severity,
    SlotPolicy, Sni, Tls,
};

/// The settings for building.
#[derive(Debug, Clone)]
pub struct Options {
    /// The prefix of tags, `haproxy.`.
    pub prefix: String,
    /// The `owner` in our marks.
    pub owner: Owner,
    /// The slots of a service without tags for them.
    pub slots: SlotPolicy,
    /// Whether HAProxy knows `init-state` (3.1).
    pub init_state: bool,
    /// Whether a backend whose service is gone stays for a while (`backend.linger`) and keeps its name.
    pub lingers: bool,
    /// Which namespace may use which backend.
    pub grants: Grants,
    /// Which HAProxy it is for, and which others there are.
    pub targets: TargetNames,
    /// The frontend of services whose tags name none (`haproxy.frontend`).
    pub frontend: Option<FrontendName>,
}

/// The names of the HAProxys that a service may choose between (tag `target`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TargetNames {
    /// The one that the desired state is for.
    pub own: String,
    /// All of them, this one included; empty if they are not known, as for some offline plans: then tags do not choose.
    pub all: Arc<BTreeSet<String>>,
}

/// What a registration's tag `target` says about one HAProxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    /// It is to be routed here.
    Here,
    /// It is to be routed elsewhere.
    Elsewhere,
    /// It names no HAProxy that there is.
    Unknown,
}

impl TargetNames {
    fn choice(&self, intent: &Intent) -> Choice {
        let chosen = &intent.targets;
        if chosen.is_empty() || self.all.is_empty() || chosen.contains(&self.own) {
            Choice::Here
        } else if self.all.is_disjoint(chosen) {
            Choice::Unknown
        } else {
            Choice::Elsewhere
        }
    }
}

/// The longest service with its namespace, in bytes as written to the configuration. Nomad allows 63 for a name and 128
/// for a namespace, but does not validate a name that comes from an interpolation.
const MAX_SERVICE_LENGTH: usize = 400;
/// The longest ID of a registration, in bytes as written. Nomad's own contain the names of the service and the group.
const MAX_ID_LENGTH: usize = 1000;

/// The desired state, with its notes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Built {
    /// What HAProxy should have.
    pub desired: Desired,
    /// What HAProxy has of these stays.
    pub held: Held,
    /// Registered instances whose own tags turn routing off.
    pub declined: BTreeSet<InstanceId>,
    /// Backends that are kept for a service that is gone or held, while other services ask for their names or routes.
    pub awaited: BTreeSet<BackendName>,
    /// Services that are registered, and whose tags do not enable them here.
    pub withdrawn: BTreeSet<ServiceKey>,
    /// Sorted, without duplicates.
    pub notes: Vec<Note>,
    /// Notes about whole namespaces, by name.
    pub namespaces: Vec<NamespaceNote>,
}

impl Built {
    /// Whether a backend that no service asks for keeps its routes for as long as it exists: unless all of its services
    /// are there and do not want it any more.
    pub fn keeps_routes(&self, services: &[ServiceKey]) -> bool {
        services.iter().any(|service| !self.withdrawn.contains(service))
    }
}

/// Builds the desired state. Pure: the same catalog over the same HAProxy gives the same result, in any order of the
/// catalog.
pub fn build(catalog: &Catalog, present: &Present, options: &Options) -> Built {
    let mut built = Built::default();
    let (mut candidates, mut asked) = (Vec::new(), Vec::new());
    for (service, registrations) in &catalog.services {
        let job = catalog.checks.get(service);
        let mut builder = Builder { service, job, present, options, held: BTreeSet::new(), notes: Vec::new() };
        match builder.service(registrations) {
            Wanted::Nothing => {}
            Wanted::Withdrawn => {
                built.withdrawn.insert(service.clone());
            }
            Wanted::Held => {
                built.held.services.insert(service.clone());
            }
            Wanted::Backend(candidate, routes) => {
                candidates.push(*candidate);
                asked.push(routes);
            }
        }
        built.held.instances.append(&mut builder.held);
        built.notes.append(&mut builder.notes);
    }
    for (service, why) in &catalog.unreadable {
        built.held.services.insert(service.clone());
        let text = format!("{why}; what HAProxy has of it stays");
        built.notes.push(Note { severity: Severity::Error, service: service.clone(), code: Code::Unreadable, text });
    }
    built.notes.extend(catalog.unwatched.iter().map(|service| unwatched(service, options)));
    built.notes.extend(catalog.zombies.iter().map(zombies));
    built.declined = declined(catalog, options);
    for (namespace, unread) in &catalog.namespaces {
        if matches!(unread, Unread::Refused(_) | Unread::Failed(_)) {
            built.held.namespaces.insert(namespace.clone());
        }
        built.namespaces.push(NamespaceNote::new(namespace, unread));
    }
    settle::names(candidates, catalog, present, options, &mut built);
    claims::settle(&asked, present, options, &mut built);
    built.notes.sort();
    built.notes.dedup();
    built
}

fn unwatched(service: &ServiceKey, options: &Options) -> Note {
    let text = format!(
        "not routed: it has `{}enable=true`, but its namespace is not watched; to route it, add {} to nomad.namespace \
         (NOMAD_NAMESPACE)",
        options.prefix,
        service.namespace.escape_debug()
    );
    Note { severity: Severity::Warning, service: service.clone(), code: Code::UnwatchedNamespace, text }
}

/// The instances whose own tags turn routing off. An instance without any tag of ours does not: the prefix may be
/// mistyped.
fn declined(catalog: &Catalog, options: &Options) -> BTreeSet<InstanceId> {
    let stated = ["enable=", "target="].map(|tag| format!("{}{tag}", options.prefix));
    let says_no = |registration: &&Registration| {
        let mut tags = registration.tags.iter().map(String::as_str);
        tags.clone().any(|tag| stated.iter().any(|stated| tag.starts_with(stated))) && {
            let (intent, _) = tags::parse(&options.prefix, &mut tags);
            intent.enable == Enable::No || options.targets.choice(&intent) == Choice::Elsewhere
        }
    };
    let registrations = catalog.services.values().flatten();
    registrations.filter(says_no).map(|registration| InstanceId::new(&registration.id)).collect()
}

fn zombies((service, count): (&ServiceKey, &usize)) -> Note {
    let (instances, are) =
        if *count == 1 { ("1 instance".to_owned(), "is") } else { (format!("{count} instances"), "are") };
    let text = format!(
        "{instances} {are} registered although the allocation has ended, and not routed: the Nomad client there has not \
         deregistered it; if it never will, `nomad service delete {} ID` does",
        service.name.escape_debug()
    );
    Note { severity: Severity::Warning, service: service.clone(), code: Code::Zombie, text }
}

enum Wanted {
    Nothing,
    /// It is registered, and is not to be routed here.
    Withdrawn,
    /// What HAProxy has of it stays.
    Held,
    Backend(Box<Candidate>, Asked),
}

struct Builder<'a> {
    service: &'a ServiceKey,
    /// What its job says of its check, or why that is not known.
    job: Option<&'a Result<JobCheck, String>>,
    present: &'a Present,
    options: &'a Options,
    held: BTreeSet<InstanceId>,
    notes: Vec<Note>,
}

impl Builder<'_> {
    fn note(&mut self, severity: Severity, code: Code, text: String) {
        self.notes.push(Note { severity, service: self.service.clone(), code, text });
    }

    fn service(&mut self, registrations: &[Registration]) -> Wanted {
        let mut read: Vec<(&Registration, Intent)> = Vec::new();
        let (mut is_silent, mut other_case) = (false, None);
        for registration in registrations {
            let tags = || registration.tags.iter().map(String::as_str);
            let (intent, complaints) = tags::parse(&self.options.prefix, tags());
            if let Enable::No | Enable::Unsaid = intent.enable {
                is_silent |= intent.enable == Enable::Unsaid && tags().any(|tag| tag.starts_with(&self.options.prefix));
                other_case = other_case.or_else(|| tags::in_another_case(&self.options.prefix, tags()));
                continue;
            }
            if self.options.targets.choice(&intent) == Choice::Elsewhere {
                continue;
            }
            for complaint in complaints {
                self.note(Severity::Warning, Code::BadTag, complaint.0);
            }
            self.note_unknown_targets(&intent);
            read.push((registration, intent));
        }
        self.note_not_enabled(is_silent, other_case);
        // Backend-level settings come from the newest registration: during a deployment that is the version that is
        // being rolled out.
        read.sort_by(|(a, _), (b, _)| age(a).cmp(&age(b)));
        self.drop_older_copies(&mut read);
        let mut unclear = Vec::new();
        read.retain(|(registration, intent)| {
            let why = self.unclear(intent);
            let is_clear = why.is_none();
            unclear.extend(why.map(|why| (*registration, why)));
            is_clear
        });
        match (read.last(), unclear.last()) {
            (None, None) if registrations.is_empty() => Wanted::Nothing,
            (None, None) => Wanted::Withdrawn,
            (None, Some((_, (code, why)))) => {
                self.note(Severity::Error, *code, format!("{why}; nothing is added or removed"));
                Wanted::Held
            }
            (Some((_, newest)), _) => {
                self.hold(unclear);
                self.candidate(&read, newest)
            }
        }
    }

    /// Why it is unclear whether an instance is to be routed here.
    fn unclear(&self, intent: &Intent) -> Option<(Code, String)> {
        let prefix = &self.options.prefix;
        if intent.enable == Enable::Unclear {
            return Some((Code::UnclearEnable, format!("it is unclear whether {prefix}enable is on")));
        }
        (self.options.targets.choice(intent) == Choice::Unknown)
            .then(|| (Code::UnknownTarget, format!("no HAProxy has a name that {prefix}target gives")))
    }

    /// Names of HAProxys that there are none of.
    fn note_unknown_targets(&mut self, intent: &Intent) {
        let all = &self.options.targets.all;
        let unknown: Vec<String> = intent.targets.difference(all).map(|name| format!("{:?}", shown(name))).collect();
        if unknown.is_empty() || all.is_empty() {
            return;
        }
        let known: Vec<&str> = all.iter().map(String::as_str).collect();
        let (prefix, unknown, known) = (&self.options.prefix, unknown.join(", "), known.join(", "));
        let text = format!("{prefix}target names {unknown}, and no HAProxy is called so; there are: {known}");
        self.note(Severity::Warning, Code::UnknownTarget, text);
    }

    /// Notes instances that are not enabled but have tags as if they were.
    fn note_not_enabled(&mut self, is_silent: bool, other_case: Option<&str>) {
        let prefix = &self.options.prefix;
        if let Some(tag) = other_case {
            let text = format!("tag {:?} is ignored: the prefix of tags is written `{prefix}`", shown(tag));
            self.note(Severity::Warning, Code::PrefixCase, text);
        } else if is_silent {
            let text = format!("it has tags of {prefix} and is not routed: `{prefix}enable=true` is missing");
            self.note(Severity::Warning, Code::NotEnabled, text);
        }
    }

    /// Instances for which it is unclear whether they are to be routed here stay as they are: in their slots if they
    /// have any.
    fn hold(&mut self, unclear: Vec<(&Registration, (Code, String))>) {
        for (registration, (code, why)) in unclear {
            let id = shown(&registration.id);
            self.note(Severity::Error, code, format!("instance {id:?} is left as it is: {why}"));
            self.held.insert(InstanceId::new(&registration.id));
        }
    }

    /// An ID identifies one registration. Of several, which Nomad should never report, the newest counts.
    fn drop_older_copies(&mut self, read: &mut Vec<(&Registration, Intent)>) {
        let mut seen = BTreeSet::new();
        let mut copies = Vec::new();
        read.reverse();
        read.retain(|(registration, _)| {
            let is_first = seen.insert(&registration.id);
            copies.extend((!is_first).then_some(&registration.id));
            is_first
        });
        read.reverse();
        for id in copies {
            let id = shown(id);
            let text = format!("instance {id:?} is registered several times; the newest counts");
            self.note(Severity::Warning, Code::DuplicateInstance, text);
        }
    }

    /// `backend=static`: nothing is added, changed or removed.
    fn left_alone(&mut self) -> Wanted {
        if !self.present.services.contains(self.service) {
            return Wanted::Nothing;
        }
        let text = format!(
            "what HAProxy has of it stays as it is, servers of instances that are gone included, as {p}backend is \
             static now; to have it removed, stop the job or set `{p}enable=false`",
            p = self.options.prefix
        );
        self.note(Severity::Warning, Code::LeftAlone, text);
        Wanted::Held
    }

    fn candidate(&mut self, read: &[(&Registration, Intent)], intent: &Intent) -> Wanted {
        let kind = match intent.backend {
            BackendTag::Static => return self.left_alone(),
            BackendTag::Dynamic => BackendKind::Dynamic,
            BackendTag::Custom => BackendKind::Custom,
        };
        let mode = intent.mode.unwrap_or(Mode::Http);
        let (mut balance, mut cookie) =
            (intent.balance.clone().unwrap_or_else(Balance::roundrobin), intent.cookie.clone());
        // Of a backend that is not ours they have no effect in any mode.
        if mode == Mode::Tcp && kind == BackendKind::Dynamic {
            if balance.needs_http() {
                self.note_without_http("balance", &format!("{balance} looks at requests"));
                balance = Balance::roundrobin();
            }
            if cookie.take().is_some() {
                self.note_without_http("cookie", "a cookie is part of a request");
            }
        }
        // For an existing backend, its mode and algorithm have to match the tags.
        let met = |tag: &str| tag == "mode" || (tag == "balance" && balance == Balance::roundrobin());
        let section = intent.section.iter().filter(|tag| kind == BackendKind::Custom || !met(tag));
        let tags: Vec<_> = section.map(|tag| format!("{}{tag}", self.options.prefix)).collect();
        let name = match self.backend_name(intent) {
            Ok(name) => name,
            Err(text) => {
                self.note(Severity::Error, Code::BadName, text);
                return Wanted::Held;
            }
        };
        let instances =
            read.iter().filter_map(|(registration, intent)| self.instance(registration, intent, mode)).collect();
        let gated = self.options.init_state && intent.check.gated.unwrap_or(true) && !intent.check.disabled;
        let is_tls = intent.server.ssl;
        let check = match self.job {
            Some(Err(why)) if !intent.check.disabled && kind == BackendKind::Dynamic => {
                self.present_check(&name, why).unwrap_or_else(|| self.check(&intent.check, is_tls))
            }
            _ => self.check(&intent.check, is_tls),
        };
        let settings = BackendSettings {
            description: String::new(),
            mode,
            balance,
            check,
            cookie,
            timeouts: intent.timeouts.clone(),
        };
        let slots = match intent.slots {
            Some(min_free) => SlotPolicy { min_free, ..self.options.slots },
            None => self.options.slots,
        };
        let since = read.first().map_or(0, |(registration, _)| registration.create_index);
        let asked = self.asked(read, since, &name);
        let candidate = Box::new(Candidate {
            service: self.service.clone(),
            name,
            explicit: intent.backend_name.is_some(),
            since,
            stated: intent.section.clone(),
            backend: Backend {
                services: vec![self.service.clone()],
                kind,
                settings,
                tags: BTreeMap::from([(self.service.clone(), tags)]),
                instances,
                slots,
                gated,
            },
        });
        Wanted::Backend(candidate, asked)
    }

    /// The routes that any of its registrations asks for.
    fn asked(&self, read: &[(&Registration, Intent)], since: u64, backend: &BackendName) -> Asked {
        let (service, backend) = (self.service.clone(), backend.clone());
        let (routes, whole) = (BTreeSet::new(), BTreeSet::new());
        let mut asked = Asked { service, since, backend, routes, whole, lacks_domain: false };
        for Routing { frontend, routes, .. } in read.iter().map(|(_, intent)| &intent.routing) {
            let named = frontend.as_ref().or(self.options.frontend.as_ref());
            asked.routes.extend(routes.iter().map(|route| (named.cloned(), route.clone())));
        }
        for routing in read.iter().map(|(_, intent)| &intent.routing).filter(|routing| routing.routes.is_empty()) {
            asked.lacks_domain |= routing.lacks_domain();
            asked.whole.extend(routing.frontend.clone().filter(|_| routing.has_no_domain()));
        }
        asked
    }

    fn backend_name(&self, intent: &Intent) -> Result<BackendName, String> {
        if self.service.to_word().len() > MAX_SERVICE_LENGTH {
            return Err(format!("not routed: the service's name is too long; {MAX_SERVICE_LENGTH} bytes are taken"));
        }
        let (text, hint) = match &intent.backend_name {
            Some(name) => (name.clone(), String::new()),
            None => (derived_name(self.service), format!("; name it with {}backend.name", self.options.prefix)),
        };
        text.parse().map_err(|error| format!("not routed: {error}{hint}"))
    }

    fn instance(&mut self, registration: &Registration, intent: &Intent, mode: Mode) -> Option<Instance> {
        let id = shown(&registration.id);
        let address = match registration.address.parse() {
            // HAProxy would connect to the address that the client has connected to (HAProxy's manual, `server`).
            Ok(Address::Ip(ip)) if ip.to_canonical().is_unspecified() => {
                let text = format!("instance {id:?} is not routed: {ip} is no address that anybody can connect to");
                self.note(Severity::Error, Code::BadAddress, text);
                return None;
            }
            Ok(address) => address,
            Err(error) => {
                self.note(Severity::Error, Code::BadAddress, format!("instance {id:?} is not routed: {error}"));
                return None;
            }
        };
        let Some(port) = u16::try_from(registration.port).ok().filter(|port| *port > 0) else {
            let text = match registration.port {
                0 => format!(
                    "instance {id:?} is not routed: it has no port; name the label of one in the service stanza \
                     (`port = \"http\"`)"
                ),
                port => format!("instance {id:?} is not routed: invalid port {port}, use 1 to 65535"),
            };
            self.note(Severity::Error, Code::BadPort, text);
            return None;
        };
        let instance = InstanceId::new(&registration.id);
        if instance.as_str().len() > MAX_ID_LENGTH {
            let text = format!("instance {id:?} is not routed: its ID is longer than {MAX_ID_LENGTH} bytes");
            self.note(Severity::Error, Code::BadInstance, text);
            return None;
        }
        Some(Instance {
            id: instance,
            alloc: super::encode(&shown(&registration.alloc_id)),
            service: self.service.clone(),
            address,
            port,
            options: self.server_options(&intent.server, mode),
            drain: intent.drain,
            created: registration.create_index,
        })
    }

    fn note_without_http(&mut self, tag: &str, why: &str) {
        let text = format!("{}{tag} is ignored in mode tcp: {why}", self.options.prefix);
        self.note(Severity::Warning, Code::IgnoredTag, text);
    }

    fn server_options(&mut self, tags: &ServerTags, mode: Mode) -> ServerOptions {
        let ServerTags { weight, maxconn, backup, proxy, ssl, verify, sni } = tags.clone();
        if !ssl && (verify.is_some() || sni.is_some()) {
            let text = format!("{p}ssl.verify and {p}sni are ignored: {p}ssl is not on", p = self.options.prefix);
            self.note(Severity::Warning, Code::IgnoredTag, text);
        }
        let without_http = ssl && mode == Mode::Tcp && sni.as_ref().is_some_and(Sni::needs_http);
        if without_http {
            self.note_without_http("sni", "there is no header to take it from");
        }
        let sni = sni.filter(|_| !without_http);
        let tls = ssl.then(|| Box::new(Tls { verify: verify.unwrap_or_default(), sni }));
        ServerOptions { weight, maxconn, backup, proxy, tls }
    }

    /// The check, from the tags and the job's.
    fn check(&mut self, tags: &CheckTags, is_tls: bool) -> Check {
        let prefix = &self.options.prefix;
        if tags.gated == Some(true) && !self.options.init_state && !tags.disabled {
            let text = format!("{prefix}check.init=down needs HAProxy 3.1 or newer; a server that is added starts up");
            self.note(Severity::Warning, Code::UnsupportedByHaproxy, text);
        } else if tags.kind == Some(CheckType::Tcp) && checks::asks_for_request(tags) && !tags.disabled {
            let text = format!("{prefix}check.path, method, host and status are ignored: {prefix}check.type is tcp");
            self.note(Severity::Warning, Code::IgnoredTag, text);
        }
        let job = match self.job {
            Some(Ok(check)) => Some(check),
            Some(Err(_)) | None => None,
        };
        let Chosen { check, ignored } = checks::choose(tags, job, is_tls);
        for text in ignored {
            self.note(Severity::Info, Code::JobCheck, text);
        }
        check
    }

    /// The check where the job could not be read: the one that HAProxy has.
    fn present_check(&mut self, name: &BackendName, why: &str) -> Option<Check> {
        let text = format!("the check of its job cannot be read: {why}; the check that HAProxy has stays");
        self.note(Severity::Info, Code::JobCheck, text);
        let place = self.present.backends.get(name)?;
        place.settings.as_ref().filter(|_| place.holders.contains(self.service)).map(|settings| settings.check.clone())
    }
}

/// A total order of registrations, by age: the same catalog gives the same result, in any order.
pub fn age(registration: &Registration) -> impl Ord {
    let Registration { id, create_index, modify_index, address, port, alloc_id, tags, .. } = registration;
    (*create_index, id, *modify_index, address, *port, alloc_id, tags)
}

/// The start of a registration's ID, which may contain anything.
fn shown(id: &str) -> String {
    id.chars().take(200).collect()
}

/// `api-service` → `api_service`; outside of `default`, `<namespace>.<service>`.
pub fn derived_name(service: &ServiceKey) -> String {
    let name = service.name.replace('-', "_");
    match service.namespace.as_str() {
        "default" => name,
        namespace => format!("{}.{name}", namespace.replace('-', "_")),
    }
}

#[cfg(test)]
mod tests;
