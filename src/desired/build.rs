//! Catalog + settings → desired state, and a note for everything that was ignored.

use std::collections::{BTreeMap, BTreeSet};

use crate::catalog::{Catalog, Registration, Unread};

use super::tags::{self, BackendTag, CheckTags, CheckType, Enable, Intent};
use super::{
    Backend, BackendKind, BackendName, BackendSettings, Balance, Check, Code, Desired, Held, HttpCheck, Instance,
    InstanceId, Mode, NamespaceNote, Note, Owner, ServiceKey, Severity, SlotPolicy,
};

/// What the settings say about building.
#[derive(Debug, Clone)]
pub struct Options {
    /// The prefix of tags, `haproxy.`.
    pub prefix: String,
    /// Whose everything is.
    pub owner: Owner,
    /// The slots of a service that does not say otherwise.
    pub slots: SlotPolicy,
    /// Whether HAProxy knows `init-state` (3.1).
    pub init_state: bool,
}

/// The desired state with what there is to say about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Built {
    /// What HAProxy should have.
    pub desired: Desired,
    /// What HAProxy has of these stays.
    pub held: Held,
    /// Instances that are registered, and whose own tags say that they are not to be routed.
    pub declined: BTreeSet<InstanceId>,
    /// Sorted, each once.
    pub notes: Vec<Note>,
    /// What there is to say about namespaces as a whole, by name.
    pub namespaces: Vec<NamespaceNote>,
}

/// One service's part in a backend, before it is known who gets the name.
struct Candidate {
    name: BackendName,
    /// It named the backend itself, and so shares it with whoever does the same.
    explicit: bool,
    /// When its first instance was registered.
    since: u64,
    /// When the registration that its settings come from was made.
    newest: u64,
    backend: Backend,
}

/// Builds the desired state. Pure: the same catalog gives the same result, in whatever order it lists.
pub fn build(catalog: &Catalog, options: &Options) -> Built {
    let mut built = Built::default();
    let mut candidates = Vec::new();
    for (service, registrations) in &catalog.services {
        let mut builder = Builder { service, options, notes: Vec::new() };
        match builder.service(registrations) {
            Wanted::Nothing => {}
            Wanted::Unclear => {
                built.held.services.insert(service.clone());
            }
            Wanted::Backend(candidate) => candidates.push(*candidate),
        }
        built.notes.append(&mut builder.notes);
    }
    for (service, why) in &catalog.unreadable {
        built.held.services.insert(service.clone());
        let text = format!("{why}; what HAProxy has of it stays");
        built.notes.push(Note { severity: Severity::Error, service: service.clone(), code: Code::Unreadable, text });
    }
    built.declined = declined(catalog, options);
    for (namespace, unread) in &catalog.namespaces {
        if matches!(unread, Unread::Failed(_)) {
            built.held.namespaces.insert(namespace.clone());
        }
        built.namespaces.push(NamespaceNote::new(namespace, unread));
    }
    settle_names(candidates, options, &mut built);
    built.notes.sort();
    built.notes.dedup();
    built
}

/// Who says by its own tags that it is not to be routed. An instance without any tag of ours does not: the
/// prefix may be mistyped.
fn declined(catalog: &Catalog, options: &Options) -> BTreeSet<InstanceId> {
    let enable = format!("{}enable=", options.prefix);
    let says_no = |registration: &&Registration| {
        registration.tags.iter().any(|tag| tag.starts_with(&enable))
            && tags::parse(&options.prefix, registration.tags.iter().map(String::as_str)).0.enable == Enable::No
    };
    let registrations = catalog.services.values().flatten();
    registrations.filter(says_no).map(|registration| InstanceId::new(&registration.id)).collect()
}

/// Who gets a name: those that named the backend share it; else the service that was registered first.
fn settle_names(candidates: Vec<Candidate>, options: &Options, built: &mut Built) {
    let mut by_name: BTreeMap<BackendName, Vec<Candidate>> = BTreeMap::new();
    for candidate in candidates {
        by_name.entry(candidate.name.clone()).or_default().push(candidate);
    }
    for (name, mut claimants) in by_name {
        claimants.sort_by(|a, b| (a.since, &a.backend.services).cmp(&(b.since, &b.backend.services)));
        let sharing = claimants[0].explicit;
        let kind = claimants[0].backend.kind;
        let (members, losers): (Vec<_>, Vec<_>) = {
            let first = claimants[0].backend.services.clone();
            claimants.into_iter().partition(|claimant| {
                claimant.backend.services == first || (sharing && claimant.explicit && claimant.backend.kind == kind)
            })
        };
        let holder = members[0].backend.services.iter().next().cloned();
        for loser in losers {
            let Some(service) = loser.backend.services.into_iter().next() else { continue };
            let holder = holder.as_ref().map(ToString::to_string).unwrap_or_default();
            let text = format!(
                "not routed: the backend {name} belongs to service {holder}, which was registered first; \
                 give one of them another name with {}backend.name",
                options.prefix
            );
            built.notes.push(Note { severity: Severity::Error, service, code: Code::NameConflict, text });
        }
        let newest = members.iter().map(|member| member.newest).max();
        let Some(mut backend) = members.iter().find(|m| Some(m.newest) == newest).map(|m| m.backend.clone()) else {
            continue;
        };
        backend.services = members.iter().flat_map(|member| member.backend.services.clone()).collect();
        backend.instances = members.into_iter().flat_map(|member| member.backend.instances).collect();
        backend.settings.description = options.owner.describe(&backend.services);
        built.desired.backends.insert(name, backend);
    }
}

enum Wanted {
    Nothing,
    Unclear,
    Backend(Box<Candidate>),
}

struct Builder<'a> {
    service: &'a ServiceKey,
    options: &'a Options,
    notes: Vec<Note>,
}

impl Builder<'_> {
    fn note(&mut self, severity: Severity, code: Code, text: String) {
        self.notes.push(Note { severity, service: self.service.clone(), code, text });
    }

    fn service(&mut self, registrations: &[Registration]) -> Wanted {
        let mut read: Vec<(&Registration, Intent)> = Vec::new();
        for registration in registrations {
            let (intent, complaints) = tags::parse(&self.options.prefix, registration.tags.iter().map(String::as_str));
            if intent.enable == Enable::No {
                continue;
            }
            for complaint in complaints {
                self.note(Severity::Warning, Code::BadTag, complaint.0);
            }
            read.push((registration, intent));
        }
        if read.is_empty() {
            return Wanted::Nothing;
        }
        if read.iter().all(|(_, intent)| intent.enable == Enable::Unclear) {
            let text =
                format!("it is unclear whether {}enable is on; nothing is added or removed", self.options.prefix);
            self.note(Severity::Error, Code::UnclearEnable, text);
            return Wanted::Unclear;
        }
        // Backend-level settings come from the newest registration: during a deployment that is the
        // version that is being rolled out.
        read.sort_by(|(a, _), (b, _)| age(a).cmp(&age(b)));
        self.drop_older_copies(&mut read);
        let Some((newest, intent)) =
            read.last().map(|(registration, intent)| (registration.create_index, intent.clone()))
        else {
            return Wanted::Nothing;
        };
        self.candidate(&read, newest, &intent)
    }

    /// An ID names one registration. Of several, which Nomad should never report, the newest counts.
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
            let id: String = id.chars().take(200).collect();
            let text = format!("instance {id:?} is registered several times; the newest counts");
            self.note(Severity::Warning, Code::DuplicateInstance, text);
        }
    }

    fn candidate(&mut self, read: &[(&Registration, Intent)], newest: u64, intent: &Intent) -> Wanted {
        let kind = match intent.backend {
            BackendTag::Static => return Wanted::Nothing,
            BackendTag::Dynamic => BackendKind::Dynamic,
            BackendTag::Custom => BackendKind::Custom,
        };
        let balance = intent.balance.clone().unwrap_or_else(Balance::roundrobin);
        // What an existing backend must have to be used is there as the tag says.
        let met = |tag: &str| tag == "mode" || (tag == "balance" && balance == Balance::roundrobin());
        let section = intent.section.iter().filter(|tag| kind == BackendKind::Custom || !met(tag));
        let tags = section.map(|tag| format!("{}{tag}", self.options.prefix)).collect();
        let name = match self.backend_name(intent) {
            Ok(name) => name,
            Err(text) => {
                self.note(Severity::Error, Code::BadName, text);
                return Wanted::Unclear;
            }
        };
        let instances = read.iter().filter_map(|(registration, intent)| self.instance(registration, intent)).collect();
        let gated = self.options.init_state && intent.check.gated.unwrap_or(true) && !intent.check.disabled;
        let settings = BackendSettings {
            description: String::new(),
            mode: intent.mode.unwrap_or(Mode::Http),
            balance,
            check: self.check(&intent.check),
        };
        let slots = match intent.slots {
            Some(min_free) => SlotPolicy { min_free, ..self.options.slots },
            None => self.options.slots,
        };
        Wanted::Backend(Box::new(Candidate {
            name,
            explicit: intent.backend_name.is_some(),
            since: read.first().map_or(0, |(registration, _)| registration.create_index),
            newest,
            backend: Backend {
                services: BTreeSet::from([self.service.clone()]),
                kind,
                settings,
                tags,
                instances,
                slots,
                gated,
            },
        }))
    }

    fn backend_name(&self, intent: &Intent) -> Result<BackendName, String> {
        let (text, hint) = match &intent.backend_name {
            Some(name) => (name.clone(), String::new()),
            None => (derived_name(self.service), format!("; name it with {}backend.name", self.options.prefix)),
        };
        text.parse().map_err(|error| format!("not routed: {error}{hint}"))
    }

    fn instance(&mut self, registration: &Registration, intent: &Intent) -> Option<Instance> {
        let id = registration.id.chars().take(200).collect::<String>();
        let address = match registration.address.parse() {
            Ok(address) => address,
            Err(error) => {
                self.note(Severity::Error, Code::BadAddress, format!("instance {id:?} is not routed: {error}"));
                return None;
            }
        };
        let Some(port) = u16::try_from(registration.port).ok().filter(|port| *port > 0) else {
            let text = format!("instance {id:?} is not routed: {} is no port, 1 to 65535 is", registration.port);
            self.note(Severity::Error, Code::BadPort, text);
            return None;
        };
        Some(Instance {
            id: InstanceId::new(&registration.id),
            alloc: super::encode(&registration.alloc_id),
            service: self.service.clone(),
            address,
            port,
            options: intent.server,
            drain: intent.drain,
            created: registration.create_index,
        })
    }

    fn check(&mut self, tags: &CheckTags) -> Check {
        let CheckTags { kind, path, method, host, status, timing, gated, disabled } = tags;
        if *disabled {
            return Check::Disabled;
        }
        let timing = timing.clone();
        if *gated == Some(true) && !self.options.init_state {
            let prefix = &self.options.prefix;
            let text = format!("{prefix}check.init=down needs HAProxy 3.1 or newer; a server that is added starts up");
            self.note(Severity::Warning, Code::UnsupportedByHaproxy, text);
        }
        let http_asked = path.is_some() || method.is_some() || host.is_some() || status.is_some();
        match kind {
            Some(CheckType::Tcp) if http_asked => {
                let text = format!(
                    "{p}check.path, method, host and status are ignored: {p}check.type is tcp",
                    p = self.options.prefix
                );
                self.note(Severity::Warning, Code::IgnoredTag, text);
                Check::Tcp(timing)
            }
            Some(CheckType::Tcp) => Check::Tcp(timing),
            None if !http_asked => Check::Tcp(timing),
            Some(CheckType::Http) | None => Check::Http(
                HttpCheck {
                    method: method.clone().unwrap_or_else(|| "GET".to_owned()),
                    path: path.clone().unwrap_or_else(|| "/".to_owned()),
                    host: host.clone(),
                    status: status.clone(),
                },
                timing,
            ),
        }
    }
}

/// The order of registrations, in full: the same catalog gives the same result, in whatever order it lists.
fn age(registration: &Registration) -> impl Ord {
    let Registration { id, create_index, modify_index, address, port, alloc_id, tags, .. } = registration;
    (*create_index, id, *modify_index, address, *port, alloc_id, tags)
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

    fn options() -> Options {
        Options {
            prefix: "haproxy.".into(),
            owner: "nomad".parse().expect("an owner"),
            slots: SlotPolicy { min_free: 2, max: 64 },
            init_state: true,
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
        let mut catalog = Catalog::default();
        for registration in registrations {
            catalog.services.entry(registration.service()).or_default().push(registration);
        }
        build(&catalog, &options())
    }

    fn names(built: &Built) -> Vec<&str> {
        built.desired.backends.keys().map(BackendName::as_str).collect()
    }

    #[test]
    fn a_service_without_the_tag_is_left_alone() {
        let built = built(vec![registration("api", "a", 1, &[]), registration("b", "b", 1, &["enable=false"])]);
        // Only who says so is known to want it.
        let declined = BTreeSet::from([InstanceId::new("b")]);
        assert_eq!(built, Built { declined, ..Built::default() });
    }

    #[test]
    fn what_could_not_be_read_is_held_and_said() {
        let mut catalog = Catalog::default();
        let broken = ServiceKey { namespace: "default".into(), name: "broken".into() };
        catalog.unreadable.insert(broken.clone(), "Nomad answered with 500".into());
        catalog.namespaces.insert("team-a".into(), Unread::Failed("denied".into()));
        catalog.namespaces.insert("defualt".into(), Unread::Missing);
        let built = build(&catalog, &options());
        assert!(built.held.holds(&broken) && !built.held.namespaces.contains("defualt"), "{:?}", built.held);
        assert!(built.held.holds(&ServiceKey { namespace: "team-a".into(), name: "any".into() }));
        let said: Vec<String> = built.namespaces.iter().map(ToString::to_string).collect();
        assert!(said[0].starts_with("error: namespace defualt: it does not exist"), "{said:?}");
        assert_eq!(said[1], "error: namespace team-a: denied; what HAProxy has of it stays, and the others go on");
        assert!(built.notes[0].to_string().contains("500; what HAProxy has of it stays"), "{:?}", built.notes);
    }

    #[test]
    fn names_are_the_seeds() {
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
        assert_eq!(
            built.desired.backends.values().next().expect("one").services.iter().next().expect("one").name,
            "a_b"
        );
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
        assert_eq!((backend.instances.len(), backend.settings.balance.to_string().as_str()), (2, "leastconn"));
        assert_eq!(backend.settings.description, "nomad-haproxy:nomad default/blue default/green");
        assert_eq!(built.notes, []);
    }

    #[test]
    fn of_two_registrations_with_one_id_the_newest_counts_in_whatever_order() {
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
    fn checks_are_tcp_unless_something_of_http_is_asked() {
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
}
