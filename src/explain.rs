//! Why a service is, or is not, routed: one sentence, and everything that it rests on.
//!
//! Pure: it reads the [`Status`] that the loops publish, and neither HAProxy nor Nomad. So it is as old as the last pass
//! of each HAProxy.

mod settings;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::apply::Outcome;
use crate::catalog::Registration;
use crate::desired::tags::{self, BackendTag, Enable};
use crate::desired::{BackendName, Code, InstanceId, NamespaceNote, Note, Occupant, Server, ServiceKey, Severity};
use crate::sample::ServerSample;
use crate::status::{Status, TargetStatus};
use settings::settings;
pub use settings::{Setting, Source};

/// Namespaces that an answer names.
const NAMED: usize = 5;

/// Everything about one service.
#[derive(Debug, Serialize)]
pub struct Explanation<'a> {
    /// Whether it is routed, and why not: first for each HAProxy where they differ.
    pub answer: String,
    /// The service.
    pub service: ServiceKey,
    /// How many registrations the catalog has; `null`: it has not been read.
    pub registrations: Option<usize>,
    /// By HAProxy.
    pub haproxys: Vec<OnTarget<'a>>,
}

impl Explanation<'_> {
    /// Whether it is routed as asked: on each HAProxy but those that its tags leave out.
    pub fn is_as_asked(&self) -> bool {
        let is_routed = |haproxy: &OnTarget| haproxy.routed == Routed::Fully;
        let is_left_out = |haproxy: &OnTarget| haproxy.reason == Some(Reason::OtherTarget);
        let mut asked = self.haproxys.iter().filter(|haproxy| !is_left_out(haproxy)).peekable();
        asked.peek().is_some() && asked.all(is_routed)
    }
}

/// A service on one HAProxy.
#[derive(Debug, Serialize)]
pub struct OnTarget<'a> {
    /// The HAProxy.
    pub name: &'a str,
    /// Whether it is routed here, and why not.
    pub answer: String,
    /// The same for programs.
    pub routed: Routed,
    /// What is in the way, if anything is.
    pub reason: Option<Reason>,
    /// The backends with its instances, or that were made for it.
    pub backends: Vec<InBackend<'a>>,
    /// Registrations of the catalog that no server stands for.
    pub unseated: Vec<Unseated<'a>>,
    /// Its routes, as the map files have them.
    pub routes: Vec<InFrontend<'a>>,
    /// How to route to it by hand: where it has a server, and no frontend sends it requests.
    pub by_hand: Option<String>,
    /// Its settings, each with where it comes from.
    pub settings: Vec<Setting<'a>>,
    /// The notes about it.
    pub notes: Vec<&'a Note>,
    /// The notes about its namespace.
    pub namespaces: Vec<&'a NamespaceNote>,
}

/// How much of a service is routed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Routed {
    /// Each of its instances that is to be routed here has a server.
    Fully,
    /// Some instance has a server, but something is in the way.
    InPart,
    /// No instance has a server.
    Not,
}

/// What is in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The catalog could not be read yet.
    CatalogUnread,
    /// Its namespace could not be read, or does not exist.
    NamespaceUnread,
    /// It could not be read from Nomad.
    ServiceUnread,
    /// Its namespace is not watched.
    Unwatched,
    /// The catalog does not have it.
    NotInCatalog,
    /// It has no instance.
    NoInstance,
    /// The guard holds its instances, which the catalog lacks.
    Held,
    /// No tag enables it.
    NotEnabled,
    /// A tag turns it off.
    Disabled,
    /// Its tags choose other HAProxys.
    OtherTarget,
    /// Its tag `backend=static` says that it is not ours.
    Static,
    /// No pass has ended yet.
    NoPass,
    /// HAProxy, or its API, gives no answer.
    NoAnswer,
    /// The last pass failed.
    PassFailed,
    /// It is refused, as its notes say.
    Refused,
    /// The change waits for the next reload.
    WaitsForReload,
    /// The next pass does it.
    NextPass,
}

/// What one backend has of a service.
#[derive(Debug, Serialize)]
pub struct InBackend<'a> {
    /// The backend.
    pub name: &'a BackendName,
    /// Whether it is ours, or only servers in it are.
    pub is_ours: bool,
    /// Spare servers.
    pub free: usize,
    /// The servers with an instance of the service.
    pub servers: Vec<Seat<'a>>,
}

/// A route, or a rule of a person.
#[derive(Debug, Serialize)]
pub struct InFrontend<'a> {
    /// The frontend.
    pub frontend: &'a str,
    /// The host and the path; `null`: a rule that is not ours, or the default of the frontend.
    pub route: Option<String>,
    /// The backend.
    pub backend: &'a BackendName,
}

/// One server, and the instance in it.
#[derive(Debug, Serialize)]
pub struct Seat<'a> {
    /// The server.
    pub server: &'a str,
    /// `ready`, `drain` or `maint`.
    pub state: &'static str,
    /// What HAProxy said of it in the last sample: `UP`, `DOWN`, `no check`, …; `null`: nothing yet.
    pub status: Option<&'a str>,
    /// What its last check found: `L4CON: Connection refused`.
    pub check: Option<String>,
    /// Where it sends traffic.
    pub address: String,
    /// The same.
    pub port: u16,
    /// The allocation.
    pub allocation: &'a str,
    /// The registration's ID, as it is in the configuration.
    pub id: &'a str,
    /// As Nomad has it; `null`: the catalog lacks it.
    pub registration: Option<&'a Registration>,
}

/// A registration that no server stands for.
#[derive(Debug, Serialize)]
pub struct Unseated<'a> {
    /// Why, if its own tags say it.
    pub why: Option<String>,
    /// As Nomad has it.
    pub registration: &'a Registration,
}

/// What the tags of one registration ask of one HAProxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Asks {
    Server,
    Unclear,
    Static,
    Elsewhere,
    Disabled,
    Nothing,
}

impl Asks {
    fn new(registration: &Registration, prefix: &str, haproxy: &str, status: &Status) -> Self {
        let (intent, _) = tags::parse(prefix, registration.tags.iter().map(String::as_str));
        match intent.enable {
            Enable::No => Self::Disabled,
            Enable::Unsaid => Self::Nothing,
            Enable::Unclear => Self::Unclear,
            Enable::Yes if !intent.targets.is_empty() && !intent.targets.contains(haproxy) => {
                let is_known = intent.targets.iter().any(|name| status.targets.contains_key(name));
                if is_known { Self::Elsewhere } else { Self::Unclear }
            }
            Enable::Yes if intent.backend == BackendTag::Static => Self::Static,
            Enable::Yes => Self::Server,
        }
    }

    /// Why there is no server for it.
    fn why(self, prefix: &str) -> Option<(Reason, String)> {
        Some(match self {
            // Notes say it.
            Self::Server | Self::Unclear => return None,
            Self::Static => {
                (Reason::Static, format!("`{prefix}backend=static` says that the controller leaves it alone"))
            }
            Self::Elsewhere => (Reason::OtherTarget, format!("`{prefix}target` names other HAProxys")),
            Self::Disabled => (Reason::Disabled, format!("`{prefix}enable=false` turns it off")),
            Self::Nothing => (Reason::NotEnabled, format!("it has no tag `{prefix}enable=true`")),
        })
    }
}

/// Explains a service, on the HAProxys that are given; `prefix` is that of our tags.
pub fn explain<'a>(
    status: &'a Status,
    targets: &[(&'a str, &'a TargetStatus)],
    service: &ServiceKey,
    prefix: &str,
) -> Explanation<'a> {
    let newest = status.catalog.newest.as_deref();
    let registrations = newest.map(|catalog| catalog.services.get(service).map_or(&[][..], Vec::as_slice));
    let question = Question { status, service, prefix, registrations: registrations.unwrap_or_default() };
    let haproxys: Vec<OnTarget> = targets.iter().map(|(name, target)| question.on(name, target)).collect();
    Explanation {
        answer: together(&haproxys),
        service: service.clone(),
        registrations: registrations.map(<[_]>::len),
        haproxys,
    }
}

/// One sentence, or one for each HAProxy if they differ.
fn together(haproxys: &[OnTarget]) -> String {
    let different: BTreeSet<&str> = haproxys.iter().map(|one| one.answer.as_str()).collect();
    match (different.len(), haproxys) {
        (0, _) => "It is not routed: no HAProxy is known yet.".to_owned(),
        (1, [first, ..]) => first.answer.clone(),
        _ => {
            let lines: Vec<String> = haproxys.iter().map(|one| format!("On {}: {}", one.name, one.answer)).collect();
            lines.join(" ")
        }
    }
}

struct Question<'a, 'q> {
    status: &'a Status,
    service: &'q ServiceKey,
    prefix: &'q str,
    registrations: &'a [Registration],
}

impl<'a> Question<'a, '_> {
    fn on(&self, name: &'a str, target: &'a TargetStatus) -> OnTarget<'a> {
        let by_id: BTreeMap<InstanceId, &Registration> =
            self.registrations.iter().map(|registration| (InstanceId::new(&registration.id), registration)).collect();
        let backends = self.backends(target, &by_id);
        let seated: BTreeSet<&str> = backends.iter().flat_map(|backend| &backend.servers).map(|seat| seat.id).collect();
        let asks = |registration: &Registration| Asks::new(registration, self.prefix, name, self.status);
        let wanted: Vec<&Registration> = by_id.values().filter(|one| asks(one) == Asks::Server).copied().collect();
        let (mut missing, mut unseated) = (0, Vec::new());
        for (_, registration) in by_id.iter().filter(|(id, _)| !seated.contains(id.as_str())) {
            let asks = asks(registration);
            missing += usize::from(asks == Asks::Server);
            unseated.push(Unseated { why: asks.why(self.prefix).map(|(_, why)| why), registration });
        }
        let notes: Vec<&Note> = target.notes.iter().filter(|note| note.service == *self.service).collect();
        let namespaces =
            target.namespaces.iter().filter(|note| note.namespace == self.service.namespace).collect::<Vec<_>>();
        let most = self.registrations.iter().map(asks).min();
        let facts = Facts { target, notes: &notes, namespaces: &namespaces, asks: most, missing };
        let obstacle = self.obstacle(&facts);
        let (extent, answer) = sentence(&backends, seated.len(), missing, obstacle.as_ref());
        let routes = routes(target, &backends);
        let by_hand = by_hand(target, &backends, &routes, self.prefix).filter(|_| !seated.is_empty());
        let settings = match &self.status.catalog.newest {
            Some(catalog) => settings(self.service, &wanted, catalog, self.prefix),
            None => Vec::new(),
        };
        OnTarget {
            name,
            answer,
            routed: extent,
            reason: obstacle.map(|(reason, _)| reason),
            backends,
            unseated,
            routes,
            by_hand,
            settings,
            notes,
            namespaces,
        }
    }

    /// The backends with its instances, or that were made for it.
    fn backends(&self, target: &'a TargetStatus, by_id: &BTreeMap<InstanceId, &'a Registration>) -> Vec<InBackend<'a>> {
        let mut backends = Vec::new();
        for (name, seats) in &target.seats.backends {
            let sampled = |server: &Server| target.sample.as_ref()?.server(name.as_str(), server.name.as_str());
            let seat = |server: &'a Server| self.seat(server, by_id, sampled(server));
            let servers: Vec<Seat> = seats.servers.iter().filter_map(seat).collect();
            if !servers.is_empty() || seats.services.contains(self.service) {
                backends.push(InBackend { name, is_ours: seats.is_ours, free: seats.slots().free, servers });
            }
        }
        backends
    }

    fn seat(
        &self,
        server: &'a Server,
        by_id: &BTreeMap<InstanceId, &'a Registration>,
        sample: Option<&'a ServerSample>,
    ) -> Option<Seat<'a>> {
        let Occupant::Instance { id, alloc, service, drain: _ } = &server.occupant else { return None };
        let registration = by_id.get(id).copied();
        // A line of 0.1 does not name its service.
        let is_its = service.as_ref().map_or(registration.is_some(), |service| service == self.service);
        is_its.then(|| Seat {
            server: server.name.as_str(),
            state: server.state().as_str(),
            status: sample.map(|sample| sample.status.as_str()),
            check: sample.and_then(ServerSample::checked),
            address: server.address.to_string(),
            port: server.port,
            allocation: alloc,
            id: id.as_str(),
            registration,
        })
    }

    /// What is in the way: the first thing that a person has to deal with.
    fn obstacle(&self, facts: &Facts) -> Option<(Reason, String)> {
        self.outside(facts).or_else(|| facts.refused()).or_else(|| facts.waiting())
    }

    /// Before it is a matter of HAProxy: the catalog, and the tags.
    fn outside(&self, facts: &Facts) -> Option<(Reason, String)> {
        let Self { status, service, prefix, registrations } = self;
        let Some(catalog) = status.catalog.newest.as_deref() else {
            // HAProxy is asked first.
            if let Some(failed) = facts.failed().filter(|_| status.catalog.error.is_none()) {
                return Some(failed);
            }
            let why = status.catalog.error.as_deref().unwrap_or("no pass has read it");
            return Some((Reason::CatalogUnread, format!("the catalog has not been read yet: {why}")));
        };
        if let Some(note) = facts.namespaces.first() {
            return Some((Reason::NamespaceUnread, format!("its namespace: {}", note.text)));
        }
        let coded = |code, reason| facts.coded(code).map(|text| (reason, text.to_owned()));
        let noted = coded(Code::GuardHeld, Reason::Held)
            .or_else(|| coded(Code::Unreadable, Reason::ServiceUnread))
            .or_else(|| coded(Code::UnwatchedNamespace, Reason::Unwatched));
        if noted.is_some() {
            return noted;
        }
        if !catalog.services.contains_key(*service) {
            let mut text = format!("the catalog has no service of this name with a tag that begins with `{prefix}`");
            let elsewhere = catalog.services.keys().filter(|other| other.name == service.name);
            let elsewhere: Vec<String> = elsewhere.take(NAMED).map(|other| format!("`{other}`")).collect();
            if !elsewhere.is_empty() {
                text += &format!("; there is {}", elsewhere.join(", "));
            }
            return Some((Reason::NotInCatalog, text));
        }
        if registrations.is_empty() {
            return Some((Reason::NoInstance, "its last instance has gone from the catalog".to_owned()));
        }
        let (reason, why) = facts.asks?.why(prefix)?;
        // These know more: the tag may be written in another case.
        let noted = facts.coded(Code::PrefixCase).filter(|_| reason == Reason::NotEnabled);
        Some((reason, noted.map_or(why, str::to_owned)))
    }
}

/// What one HAProxy has to do with the service.
struct Facts<'f> {
    target: &'f TargetStatus,
    notes: &'f [&'f Note],
    namespaces: &'f [&'f NamespaceNote],
    /// What the registration that asks for most asks for.
    asks: Option<Asks>,
    /// Registrations that ask for a server and have none.
    missing: usize,
}

impl Facts<'_> {
    fn coded(&self, code: Code) -> Option<&str> {
        self.notes.iter().find(|note| note.code == code).map(|note| note.text.as_str())
    }

    /// Why the last pass failed, if it did.
    fn failed(&self) -> Option<(Reason, String)> {
        let last = self.target.last.as_ref()?;
        let error = last.error.as_ref()?;
        let (reason, what) = match self.target.answers {
            Some(false) => (Reason::NoAnswer, "HAProxy gives no answer"),
            _ => (Reason::PassFailed, "the last pass failed"),
        };
        Some((reason, format!("{what}: {}: {error}", last.stage)))
    }

    /// The first note that says what is not done.
    fn refused(&self) -> Option<(Reason, String)> {
        let mut errors = self.notes.iter().filter(|note| note.severity == Severity::Error);
        errors.next().map(|note| (Reason::Refused, note.text.clone()))
    }

    /// Nothing is wrong with it, but HAProxy does not have it yet.
    fn waiting(&self) -> Option<(Reason, String)> {
        let Self { target, missing, .. } = self;
        let Some(last) = &target.last else {
            return Some((Reason::NoPass, "no pass over this HAProxy has ended yet".to_owned()));
        };
        if last.error.is_some() || *missing == 0 {
            return self.failed();
        }
        if let Some(blocked) = target.pending.as_ref().and_then(|pending| pending.blocked.as_ref()) {
            return Some((Reason::PassFailed, format!("the configuration is not written: {blocked}")));
        }
        match &target.pending {
            pending if last.outcome == Outcome::Standby => {
                let with = if pending.as_ref().is_some_and(|pending| !pending.live) { ", with a reload" } else { "" };
                Some((
                    Reason::NextPass,
                    format!("HAProxy does not have it yet, and the next pass that writes adds it{with}"),
                ))
            }
            Some(pending) if !pending.live => Some((
                Reason::WaitsForReload,
                "the change needs a reload, which waits until `reload.min_interval` after the last one".to_owned(),
            )),
            _ => Some((Reason::NextPass, "it was registered after the last pass, and the next one adds it".to_owned())),
        }
    }
}

/// The routes to these backends, and the rules of a person.
fn routes<'a>(target: &'a TargetStatus, backends: &[InBackend<'a>]) -> Vec<InFrontend<'a>> {
    let mut all = Vec::new();
    for backend in backends {
        for (frontend, routes) in &*target.routes {
            let its = routes.iter().filter(|(_, name)| *name == backend.name);
            all.extend(its.map(|(route, name)| InFrontend {
                frontend: frontend.as_str(),
                route: Some(route.to_string()),
                backend: name,
            }));
        }
        let frontends = target.seats.by_hand.get(backend.name.as_str()).into_iter().flatten();
        all.extend(frontends.map(|frontend| InFrontend { frontend, route: None, backend: backend.name }));
    }
    all
}

/// What to write into a frontend, if none is known to send requests to any of these backends. A rule with an expression
/// may.
fn by_hand(target: &TargetStatus, backends: &[InBackend], routes: &[InFrontend], prefix: &str) -> Option<String> {
    let may = |name: &String| name.contains("%[");
    if !routes.is_empty() || target.seats.by_hand.keys().any(may) {
        return None;
    }
    let backend = backends.iter().find(|backend| !backend.servers.is_empty())?.name;
    let is_http = target.seats.backends.get(backend).is_none_or(|seats| seats.mode == "http");
    Some(match is_http {
        true => format!(
            "no frontend sends requests to `{backend}`: give the service the tags `{prefix}domain` and `{prefix}frontend`, or write \
             `use_backend {backend} if {{ req.hdr(host) -i app.example.com }}` into a frontend of yours"
        ),
        false => format!(
            "no frontend sends connections to `{backend}`: give the service the tag `{prefix}frontend`, or write \
             `default_backend {backend}` into a frontend of yours"
        ),
    })
}

fn sentence(
    backends: &[InBackend],
    seated: usize,
    missing: usize,
    obstacle: Option<&(Reason, String)>,
) -> (Routed, String) {
    // Some notes begin with it themselves.
    let why = obstacle.map(|(_, why)| why.strip_prefix("not routed: ").unwrap_or(why));
    if seated == 0 {
        let why = why.unwrap_or("no instance of it has a server");
        return (Routed::Not, format!("It is not routed: {why}."));
    }
    let names: Vec<String> = backends
        .iter()
        .filter(|backend| !backend.servers.is_empty())
        .map(|backend| format!("`{}`", backend.name.as_str()))
        .collect();
    let (instances, backends) = (counted(seated, "instance"), if names.len() == 1 { "backend" } else { "backends" });
    let place = format!("{instances} in the {backends} {}", names.join(", "));
    match why {
        None => (Routed::Fully, format!("It is routed: {place}.")),
        Some(why) if missing == 0 => (Routed::InPart, format!("It is routed: {place}; but {why}.")),
        Some(why) => {
            let missing = counted(missing, "instance");
            (Routed::InPart, format!("It is routed in part: {place}, and {missing} without a server, as {why}."))
        }
    }
}

fn counted(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

#[cfg(test)]
mod tests;
