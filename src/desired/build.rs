//! Catalog + settings → desired state, and a note for everything that was ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::catalog::{Catalog, JobCheck, Registration, Unread};

use super::checks::{self, Chosen};
use super::claims::{self, Asked};
use super::settle::{self, Candidate};
use super::tags::{self, BackendTag, CheckTags, CheckType, Enable, Intent, Routing, ServerTags};
use super::{
    Backend, BackendKind, BackendName, BackendSettings, Balance, Check, Code, Desired, FrontendName, Grants, Held,
    Instance, InstanceId, Mode, NamespaceNote, Note, Owner, Present, ServerOptions, ServiceKey, Severity, SlotPolicy,
    Sni, Tls,
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
        if matches!(unread, Unread::Failed(_)) {
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
mod tests {
    use super::*;
    use crate::desired::{Grant, Place, Verify};

    fn options() -> Options {
        Options {
            prefix: "haproxy.".into(),
            owner: "nomad".parse().expect("an owner"),
            slots: SlotPolicy { min_free: 2, max: 64 },
            init_state: true,
            lingers: true,
            grants: Grants::default(),
            targets: TargetNames::default(),
            frontend: Some("web".parse().expect("a name")),
        }
    }

    fn registration(service: &str, id: &str, created: u64, tags: &[&str]) -> Registration {
        Registration {
            id: id.into(),
            service_name: service.into(),
            namespace: "default".into(),
            node_id: String::new(),
            datacenter: String::new(),
            job_id: String::new(),
            alloc_id: format!("alloc-{id}"),
            tags: tags.iter().map(|tag| format!("haproxy.{tag}")).collect(),
            address: "10.0.0.1".into(),
            port: 8080,
            create_index: created,
            modify_index: created,
        }
    }

    fn built(registrations: Vec<Registration>) -> Built {
        built_over(&Present::default(), registrations)
    }

    fn built_over(present: &Present, registrations: Vec<Registration>) -> Built {
        let mut catalog = Catalog::default();
        for registration in registrations {
            catalog.services.entry(registration.service()).or_default().push(registration);
        }
        build(&catalog, present, &options())
    }

    fn names(built: &Built) -> Vec<&str> {
        built.desired.backends.keys().map(BackendName::as_str).collect()
    }

    #[test]
    fn a_service_that_seems_to_want_routing_gets_a_note() {
        let said = |tags: &[&str]| {
            let mut one = registration("api", "a", 1, &[]);
            one.tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
            let built = built(vec![one]);
            assert_eq!((names(&built), &built.held), (vec![], &Held::default()));
            built.notes.into_iter().map(|note| (note.severity, note.code)).collect::<Vec<_>>()
        };
        assert_eq!(said(&["haproxy.weight=1"]), [(Severity::Warning, Code::NotEnabled)]);
        assert_eq!(said(&["HAProxy.enable=true", "other"]), [(Severity::Warning, Code::PrefixCase)]);
        assert_eq!(said(&["haproxy.weight=1", "haproxy.enable=false"]), []);
        assert_eq!(said(&["other", "haproxy"]), []);
    }

    #[test]
    fn a_name_or_an_id_of_any_length_concerns_only_itself() {
        let long = "x\n".repeat(33_000);
        let service = registration(&long, "a", 1, &["enable", "backend.name=ok"]);
        let id = registration("api", &long, 1, &["enable"]);
        let built = built(vec![service, id, registration("api", "b", 2, &["enable"])]);
        assert_eq!((names(&built), members(&built)), (vec!["api"], vec!["api"]));
        let codes: BTreeSet<Code> = built.notes.iter().map(|note| note.code).collect();
        assert_eq!(codes, BTreeSet::from([Code::BadName, Code::BadInstance]));
        for note in &built.notes {
            assert!(note.to_string().len() < 700 && !note.to_string().contains('\n'), "{note}");
        }
    }

    #[test]
    fn a_service_without_the_tag_is_left_alone() {
        let built = built(vec![registration("api", "a", 1, &[]), registration("b", "b", 1, &["enable=false"])]);
        // Only an explicit tag counts.
        let declined = BTreeSet::from([InstanceId::new("b")]);
        let withdrawn = BTreeSet::from([key("api"), key("b")]);
        assert_eq!(built, Built { declined, withdrawn, ..Built::default() });
    }

    #[test]
    fn what_could_not_be_read_is_held_with_a_note() {
        let mut catalog = Catalog::default();
        let broken = ServiceKey { namespace: "default".into(), name: "broken".into() };
        catalog.unreadable.insert(broken.clone(), "Nomad answered with 500".into());
        catalog.namespaces.insert("team-a".into(), Unread::Failed("denied".into()));
        catalog.namespaces.insert("defualt".into(), Unread::Missing);
        let built = build(&catalog, &Present::default(), &options());
        assert!(built.held.holds(&broken) && !built.held.namespaces.contains("defualt"), "{:?}", built.held);
        assert!(built.held.holds(&ServiceKey { namespace: "team-a".into(), name: "any".into() }));
        let said: Vec<String> = built.namespaces.iter().map(ToString::to_string).collect();
        assert!(said[0].starts_with("error: namespace defualt: it does not exist"), "{said:?}");
        assert_eq!(said[1], "error: namespace team-a: denied; what HAProxy has of it stays, and the others go on");
        assert!(built.notes[0].to_string().contains("500; what HAProxy has of it stays"), "{:?}", built.notes);
    }

    #[test]
    fn a_service_of_an_unwatched_namespace_gets_a_note_and_holds_nothing() {
        let service = ServiceKey { namespace: "team-a".into(), name: "api".into() };
        let catalog = Catalog { unwatched: [service.clone()].into(), ..Catalog::default() };
        let Built { desired, held, declined, awaited, withdrawn, notes, namespaces } =
            build(&catalog, &Present::default(), &options());
        assert_eq!((desired, held, declined, awaited, withdrawn, namespaces), Default::default());
        let [Note { severity, service: about, code, text }] = &notes[..] else { panic!("{notes:?}") };
        assert_eq!((severity, about, code), (&Severity::Warning, &service, &Code::UnwatchedNamespace));
        assert!(text.contains("add team-a to nomad.namespace (NOMAD_NAMESPACE)"), "{text}");
    }

    #[test]
    fn names_are_derived_as_documented() {
        let mut other = registration("web-app", "x", 1, &["enable"]);
        other.namespace = "team-a".into();
        let built = built(vec![registration("api-service", "a", 1, &["enable=true"]), other]);
        assert_eq!(names(&built), ["api_service", "team_a.web_app"]);
        assert_eq!(built.notes, []);
    }

    #[test]
    fn backend_settings_come_from_the_newest_server_settings_from_each() {
        let built = built(vec![
            registration("api", "new", 9, &["enable=true", "balance=leastconn", "weight=7"]),
            registration("api", "old", 1, &["enable=true", "balance=first", "weight=3"]),
        ]);
        let backend = built.desired.backends.values().next().expect("one");
        assert_eq!(backend.settings.balance.to_string(), "leastconn");
        let mut weights: Vec<_> = backend.instances.iter().map(|i| i.options.weight).collect();
        weights.sort();
        assert_eq!(weights, [Some(3), Some(7)]);
    }

    #[test]
    fn two_services_on_one_name_the_first_keeps_it() {
        let built =
            built(vec![registration("a-b", "1", 9, &["enable=true"]), registration("a_b", "2", 3, &["enable=true"])]);
        assert_eq!(names(&built), ["a_b"]);
        assert_eq!(built.desired.backends.values().next().expect("one").services.first().expect("one").name, "a_b");
        assert_eq!(
            (built.notes.len(), built.notes[0].severity, built.notes[0].service.name.as_str()),
            (1, Severity::Error, "a-b")
        );
    }

    #[test]
    fn services_that_name_the_backend_share_it() {
        let built = built(vec![
            registration("blue", "1", 1, &["enable=true", "backend.name=shop", "balance=first"]),
            registration("green", "2", 2, &["enable=true", "backend.name=shop", "balance=leastconn"]),
        ]);
        let backend = &built.desired.backends.values().next().expect("one");
        assert_eq!((backend.instances.len(), backend.settings.balance.to_string().as_str()), (2, "first"));
        assert_eq!(backend.settings.description, "nomad-haproxy:nomad shop default/blue default/green");
        assert_eq!((built.notes.len(), built.notes[0].service.name.as_str()), (1, "green"));
        assert!(built.notes[0].text.contains("ignored: haproxy.balance"), "{}", built.notes[0].text);
    }

    fn key(name: &str) -> ServiceKey {
        ServiceKey { namespace: "default".into(), name: name.into() }
    }

    /// HAProxy with one backend of ours, held by these services.
    fn held_by(name: &str, holders: &[&str]) -> Present {
        let holders: Vec<_> = holders.iter().map(|name| key(name)).collect();
        let place = Place { holders: holders.clone(), ..Place::default() };
        let backends = BTreeMap::from([(name.parse().expect("a name"), place)]);
        Present { backends, services: holders.into_iter().collect(), ..Present::default() }
    }

    /// The services of the only backend.
    fn members(built: &Built) -> Vec<&str> {
        let services = built.desired.backends.values().flat_map(|backend| &backend.services);
        services.map(|service| service.name.as_str()).collect()
    }

    fn concerned(built: &Built) -> Vec<(&str, Code)> {
        built.notes.iter().map(|note| (note.service.name.as_str(), note.code)).collect()
    }

    #[test]
    fn the_holder_of_a_name_keeps_it_across_its_redeployment() {
        let (one, other) = (registration("a-b", "1", 9, &["enable"]), registration("a_b", "2", 3, &["enable"]));
        let present = held_by("a_b", &["a-b"]);
        let redeployed = built_over(&present, vec![one, other.clone()]);
        assert_eq!(members(&redeployed), ["a-b"]);
        assert_eq!(concerned(&redeployed), [("a_b", Code::NameConflict)]);
        // Between two of its instances there are none.
        let between = built_over(&present, vec![other.clone()]);
        assert_eq!((names(&between), concerned(&between)), (vec![], vec![("a_b", Code::NameConflict)]));
        assert!(between.notes[0].text.contains("backend.linger"), "{}", between.notes[0].text);
        // Without lingering there is no time in between; and a service that asks for another name gives this one up.
        let catalog = |registrations: Vec<Registration>| {
            let services = registrations.into_iter().map(|one| (one.service(), vec![one])).collect();
            Catalog { services, ..Catalog::default() }
        };
        let gone = build(&catalog(vec![other.clone()]), &present, &Options { lingers: false, ..options() });
        assert_eq!(members(&gone), ["a_b"]);
        let elsewhere = registration("a-b", "1", 9, &["enable", "backend.name=c"]);
        assert_eq!(members(&built_over(&present, vec![elsewhere, other])), ["a_b", "a-b"]);
    }

    #[test]
    fn the_holder_of_a_name_keeps_it_while_it_is_held() {
        let present = held_by("shop", &["blue", "green"]);
        let named = |service: &str, tags: &[&str]| {
            let tags: Vec<&str> = ["enable", "backend.name=shop"].iter().chain(tags).copied().collect();
            registration(service, service, 1, &tags)
        };
        let unclear = registration("blue", "b", 5, &["enable=tru", "backend.name=shop"]);
        let shared = built_over(&present, vec![unclear.clone(), named("green", &["balance=first"])]);
        assert_eq!(members(&shared), ["blue", "green"], "it stays in the description");
        let alone = held_by("blue", &["blue"]);
        let other = registration("Blue", "x", 1, &["enable", "backend.name=blue"]);
        let taken = built_over(&alone, vec![unclear, other]);
        assert_eq!((names(&taken), taken.held.services.contains(&key("blue"))), (vec![], true));
        assert!(concerned(&taken).contains(&("Blue", Code::NameConflict)), "{:?}", taken.notes);
    }

    #[test]
    fn a_held_service_keeps_the_settings_of_the_backend_that_it_holds_first() {
        let settings = |balance: &str| {
            let built = built(vec![registration("blue", "b", 1, &["enable", &format!("balance={balance}")])]);
            built.desired.backends.into_values().next().expect("one").settings
        };
        let mut present = held_by("shop", &["blue", "green"]);
        present.backends.values_mut().next().expect("one").settings = Some(settings("leastconn"));
        let unclear = registration("blue", "b", 5, &["enable=tru"]);
        let green = registration("green", "g", 1, &["enable", "backend.name=shop", "balance=first"]);
        let built = built_over(&present, vec![unclear, green]);
        let backend = built.desired.backends.values().next().expect("one");
        assert_eq!(backend.settings.balance, settings("leastconn").balance);
        assert!(concerned(&built).contains(&("green", Code::OtherSettings)), "{:?}", built.notes);
    }

    #[test]
    fn a_second_service_in_another_mode_is_the_one_that_is_not_routed() {
        let one = |service: &str, created, mode: &str| {
            registration(service, service, created, &["enable", "backend.name=shop", mode])
        };
        let built =
            built_over(&held_by("shop", &["blue"]), vec![one("blue", 9, "mode=http"), one("green", 1, "mode=tcp")]);
        assert_eq!((members(&built), concerned(&built)), (vec!["blue"], vec![("green", Code::OtherSettings)]));
        assert!(built.notes[0].text.starts_with("not routed"), "{}", built.notes[0].text);
    }

    fn of(namespace: &str, service: &str, created: u64, tags: &[&str]) -> Registration {
        let tags: Vec<&str> = ["enable"].iter().chain(tags).copied().collect();
        let one = registration(service, &format!("{namespace}-{service}"), created, &tags);
        Registration { namespace: namespace.into(), ..one }
    }

    fn foreign(name: &str) -> Present {
        let place = Place { is_foreign: true, ..Place::default() };
        Present { backends: BTreeMap::from([(name.parse().expect("a name"), place)]), ..Present::default() }
    }

    fn built_with(entries: &[(&str, &[&str], bool)], present: &Present, registrations: &[Registration]) -> Built {
        let entry = |(name, backends, join): &(&str, &[&str], bool)| {
            let backends = backends.iter().map(|glob| (*glob).to_owned()).collect();
            ((*name).to_owned(), Grant { backends, join: *join, domains: None })
        };
        let grants = Grants::new(&entries.iter().map(entry).collect()).expect("globs");
        let mut catalog = Catalog::default();
        for registration in registrations {
            catalog.services.entry(registration.service()).or_default().push(registration.clone());
        }
        build(&catalog, present, &Options { grants, ..options() })
    }

    #[test]
    fn no_service_joins_a_persons_backend_by_naming_it() {
        let (named, derived) = (of("default", "job", 1, &["backend.name=fallback"]), of("default", "fallback", 2, &[]));
        for tags in [&["backend.name=fallback"][..], &["backend.name=fallback", "backend=custom"]] {
            let built = built_with(&[], &foreign("fallback"), &[of("default", "job", 1, tags), derived.clone()]);
            assert_eq!((members(&built), concerned(&built)), (vec!["fallback"], vec![("job", Code::NotAllowed)]));
            assert!(built.notes[0].text.contains("`namespaces.default.join` = `true`"), "{}", built.notes[0].text);
        }
        let both = built_with(&[("default", &[], true)], &foreign("fallback"), &[named, derived.clone()]);
        assert_eq!((members(&both), concerned(&both)), (vec!["job", "fallback"], vec![]));
        let listed = built_with(&[("*", &["x"], false)], &foreign("fallback"), &[derived]);
        assert_eq!((members(&listed), concerned(&listed)), (vec![], vec![("fallback", Code::NotAllowed)]));
    }

    #[test]
    fn no_service_joins_a_backend_of_another_namespace_by_naming_it() {
        let (shop, web) = (of("default", "shop", 5, &["backend.name=shop"]), of("default", "web", 6, &[]));
        let thief = |backend: &str| of("team-b", "thief", 1, &[&format!("backend.name={backend}")]);
        for (backend, victim) in [("shop", &shop), ("web", &web)] {
            for present in [Present::default(), held_by(backend, &[backend])] {
                let built = built_with(&[], &present, &[victim.clone(), thief(backend)]);
                assert_eq!(members(&built), [backend]);
                assert_eq!(concerned(&built), [("thief", Code::NotAllowed)]);
                let setting = format!("`namespaces.team-b.backends` = a list with `{backend}`");
                assert!(built.notes[0].text.contains(&setting), "{}", built.notes[0].text);
                let listed = built_with(&[("team-*", &["*"], false)], &present, &[victim.clone(), thief(backend)]);
                assert_eq!((listed.desired.backends.len(), members(&listed).len()), (1, 2), "{:?}", listed.notes);
            }
        }
        // A name that no service has may be used, unless an entry lists the allowed ones.
        assert_eq!(members(&built_with(&[], &Present::default(), &[thief("new")])), ["thief"]);
        let refused = built_with(&[("team-b", &["b-*"], false)], &Present::default(), &[thief("new")]);
        assert_eq!((members(&refused), concerned(&refused)), (vec![], vec![("thief", Code::NotAllowed)]));
    }

    #[test]
    fn a_held_name_is_not_lost_to_the_service_that_it_is_derived_from() {
        // `team_a.api` is derived from `api` of team-a, and from a service of that name in the namespace default.
        let (one, other) = (of("team-a", "api", 9, &[]), of("default", "team_a.api", 1, &[]));
        let mut present = held_by("team_a.api", &[]);
        present.backends.values_mut().next().expect("one").holders = vec![one.service()];
        let built = built_with(&[], &present, &[one, other]);
        assert_eq!((members(&built), concerned(&built)), (vec!["api"], vec![("team_a.api", Code::NameConflict)]));
    }

    #[test]
    fn no_empty_backend_is_made_and_none_is_in_the_way() {
        let mut portless = of("default", "a-b", 1, &[]);
        portless.port = 0;
        let built = built_over(&Present::default(), vec![portless.clone(), of("default", "a_b", 2, &[])]);
        assert_eq!(members(&built), ["a_b"]);
        assert_eq!(concerned(&built), [("a-b", Code::BadPort)]);
        assert_eq!(names(&built_over(&Present::default(), vec![portless.clone()])), Vec::<&str>::new());
        let mut joined = held_by("a_b", &["a-b"]);
        joined.backends.values_mut().next().expect("one").is_foreign = true;
        assert_eq!(names(&built_over(&joined, vec![portless.clone()])), Vec::<&str>::new(), "spares go with the last");
        let kept = built_over(&held_by("a_b", &["a-b"]), vec![portless]);
        assert_eq!(
            (names(&kept), kept.desired.backends.values().next().expect("one").instances.len()),
            (vec!["a_b"], 0)
        );
    }

    #[test]
    fn an_instance_with_an_unclear_tag_is_left_as_it_is() {
        let built = built(vec![
            registration("api", "old", 1, &["enable=true", "balance=first"]),
            registration("api", "new", 9, &["enable=flase", "balance=leastconn"]),
        ]);
        let backend = built.desired.backends.values().next().expect("one");
        assert_eq!((backend.instances.len(), backend.settings.balance.to_string().as_str()), (1, "first"));
        assert_eq!(built.held.instances, BTreeSet::from([InstanceId::new("new")]));
        assert!(built.held.services.is_empty());
        assert!(concerned(&built).contains(&("api", Code::UnclearEnable)), "{:?}", built.notes);
    }

    #[test]
    fn a_service_that_becomes_static_is_left_as_it_is() {
        let one = || vec![registration("api", "a", 1, &["enable=true", "backend=static"])];
        assert_eq!(built(one()), Built::default(), "it never was anything else");
        let left = built_over(&held_by("api", &["api"]), one());
        assert_eq!((names(&left), left.held.services.contains(&key("api"))), (vec![], true));
        assert_eq!(concerned(&left), [("api", Code::LeftAlone)]);
    }

    #[test]
    fn of_two_registrations_with_one_id_the_newest_counts_in_any_order() {
        let (old, mut new) =
            (registration("api", "x", 1, &["enable=true"]), registration("api", "x", 1, &["enable=true"]));
        (new.modify_index, new.port) = (2, 81);
        let one = built(vec![old.clone(), new.clone()]);
        assert_eq!(one, built(vec![new, old]));
        let ports: Vec<u16> = one.desired.backends.values().flat_map(|b| &b.instances).map(|i| i.port).collect();
        assert_eq!((ports, one.notes.len()), (vec![81], 1));
    }

    #[test]
    fn a_service_that_may_or_may_not_be_enabled_is_held() {
        let built = built(vec![registration("api", "a", 1, &["enable=tru"])]);
        assert_eq!((built.desired.backends.len(), built.held.services.len()), (0, 1));
        assert!(built.notes.iter().any(|note| note.severity == Severity::Error));
    }

    #[test]
    fn a_bad_instance_harms_only_itself() {
        let mut bad = registration("api", "bad", 2, &["enable=true"]);
        bad.address = "a b\nc".into();
        let mut worse = registration("api", "worse", 3, &["enable=true"]);
        worse.port = 99_999;
        let built = built(vec![registration("api", "good", 1, &["enable=true"]), bad, worse]);
        assert_eq!(built.desired.backends.values().next().expect("one").instances.len(), 1);
        assert_eq!(built.notes.iter().filter(|note| note.severity == Severity::Error).count(), 2);
        assert!(built.notes.iter().all(|note| !note.to_string().contains('\n')));
    }

    #[test]
    fn checks_are_tcp_unless_a_tag_or_the_job_asks_for_http() {
        let check = |tags: &[&str]| {
            let tags: Vec<&str> = tags.iter().chain(&["enable=true"]).copied().collect();
            built(vec![registration("api", "a", 1, &tags)])
                .desired
                .backends
                .into_values()
                .next()
                .expect("one")
                .settings
                .check
        };
        assert!(matches!(check(&[]), Check::Tcp(_)));
        assert!(
            matches!(check(&["check.path=/health"]), Check::Http(http, _) if http.path == "/health" && http.method == "GET")
        );
        assert!(matches!(check(&["check.type=http"]), Check::Http(http, _) if http.path == "/"));
        assert!(matches!(check(&["check.type=tcp", "check.path=/x"]), Check::Tcp(_)));
        assert_eq!(check(&["check.disabled"]), Check::Disabled);
    }

    #[test]
    fn an_instance_is_routed_on_the_haproxys_that_its_own_tags_name() {
        let all = Arc::new(BTreeSet::from(["a".to_owned(), "b".to_owned()]));
        let on = |own: &str, tags: &[&[&str]]| {
            let mut catalog = Catalog::default();
            for (n, tags) in (1..).zip(tags) {
                let tags: Vec<&str> = [&["enable=true"], *tags].concat();
                let one = registration("api", &n.to_string(), n, &tags);
                catalog.services.entry(one.service()).or_default().push(one);
            }
            let targets = TargetNames { own: own.to_owned(), all: all.clone() };
            build(&catalog, &Present::default(), &Options { targets, ..options() })
        };
        let ids = |built: &Built| -> Vec<String> {
            let instances = built.desired.backends.values().flat_map(|backend| &backend.instances);
            instances.map(|instance| instance.id.as_str().to_owned()).collect()
        };
        let tags: &[&[&str]] = &[&[], &["target=a"], &["target=b, a"], &["target=b"]];
        let (a, b) = (on("a", tags), on("b", tags));
        assert_eq!(
            (ids(&a), ids(&b)),
            (vec!["1".into(), "2".into(), "3".into()], vec!["1".into(), "3".into(), "4".into()])
        );
        // Who is to go elsewhere says so itself, and needs no other proof.
        assert_eq!(a.declined.iter().map(InstanceId::as_str).collect::<Vec<_>>(), ["4"]);
        assert_eq!(a.notes, []);

        // A name that there is none of takes nothing from anybody.
        let some = on("a", &[&["target=a,c"], &["target=c"]]);
        assert_eq!((ids(&some).len(), some.held.instances.len()), (1, 1));
        assert!(
            some.notes.iter().any(|note| note.text.contains("\"c\", and no HAProxy is called so; there are: a, b"))
        );
        let none = on("a", &[&["target=c"]]);
        assert_eq!((ids(&none).len(), none.held.services.len()), (0, 1));
        assert!(none.notes.iter().any(|note| note.severity == Severity::Error && note.code == Code::UnknownTarget));
    }

    #[test]
    fn what_only_http_has_is_ignored_in_mode_tcp() {
        let tags = ["enable", "mode=tcp", "cookie=SRV", "balance=uri", "ssl", "sni=req.hdr(host)", "timeout.tunnel=1h"];
        let built = built(vec![registration("db", "a", 1, &tags)]);
        let backend = built.desired.backends.values().next().expect("db");
        let BackendSettings { balance, cookie, timeouts, .. } = &backend.settings;
        assert_eq!((balance, cookie.as_ref()), (&Balance::roundrobin(), None));
        assert!(timeouts.tunnel.is_some());
        assert_eq!(backend.instances[0].options.tls.as_ref().map(|tls| &tls.sni), Some(&None));
        let ignored: Vec<&str> = built.notes.iter().filter_map(|note| note.text.split(' ').next()).collect();
        assert_eq!(ignored, ["haproxy.balance", "haproxy.cookie", "haproxy.sni"]);
    }

    #[test]
    fn what_belongs_to_tls_is_ignored_without_it_and_certificates_are_verified_unless_asked() {
        let tls = |tags: &[&str]| {
            let built = built(vec![registration("api", "a", 1, &[&["enable"], tags].concat())]);
            let backend = built.desired.backends.into_values().next().expect("api");
            (backend.instances[0].options.tls.clone().map(|tls| tls.verify), built.notes.len())
        };
        assert_eq!(tls(&["ssl"]), (Some(Verify::Required), 0));
        assert_eq!(tls(&["ssl=true", "ssl.verify=none"]), (Some(Verify::None), 0));
        assert_eq!(tls(&["ssl.verify=none", "sni=shop.example"]), (None, 1));
        assert_eq!(tls(&["ssl=false"]), (None, 0));
    }
}
