//! Decides which backend gets a route that services ask for.
//!
//! A route stays with the backend that has it, as the map says: across a redeployment of its service, while that is
//! held, and while its backend lingers without it. One that no backend has goes to the service that was registered
//! first. A host belongs to the namespace that has a route of it: another one gets a route of it, with a longer path or
//! a shorter one, only if the settings list that host for it (`namespaces.NAME.domains`).

use std::collections::{BTreeMap, BTreeSet};

use super::build::{Built, Options};
use super::{
    BackendName, Code, Door, FrontendName, HostPattern, Mode, Note, Present, Route, RoutePath, ServiceKey, Severity,
};

/// How many routes a note lists.
const MAX_LISTED: usize = 5;

/// The routes that one service asks for.
pub(super) struct Asked {
    pub(super) service: ServiceKey,
    /// When its first instance was registered.
    pub(super) since: u64,
    /// The backend that it asks for.
    pub(super) backend: BackendName,
    /// Each with the frontend; `None`: no tag and no setting names one.
    pub(super) routes: BTreeSet<(Option<FrontendName>, Route)>,
    /// The frontends that its tags name without a domain.
    pub(super) whole: BTreeSet<FrontendName>,
    /// It has paths without a domain.
    pub(super) lacks_domain: bool,
}

/// One service that asks for a route, and may have it as far as it alone is concerned.
struct Claim<'a> {
    asked: &'a Asked,
    route: Route,
}

/// Decides, and adds the routes to what is built.
pub(super) fn settle(asked: &[Asked], present: &Present, options: &Options, built: &mut Built) {
    let mut settling = Settling { present, options, built, notes: Notes::default() };
    let mut claims: BTreeMap<FrontendName, Vec<Claim>> = BTreeMap::new();
    for one in asked.iter().filter(|one| !one.routes.is_empty() || !one.whole.is_empty() || one.lacks_domain) {
        let backend = settling.built.desired.backends.get(&one.backend);
        // A service that has no backend has a note about that.
        if backend.is_some_and(|backend| backend.services.contains(&one.service)) {
            for (frontend, route) in settling.admitted(one) {
                claims.entry(frontend).or_default().push(Claim { asked: one, route });
            }
        }
    }
    for (frontend, claims) in claims {
        settling.frontend(&frontend, claims);
    }
    let Settling { notes, built, .. } = settling;
    built.notes.extend(notes.into_notes());
}

struct Settling<'a> {
    present: &'a Present,
    options: &'a Options,
    built: &'a mut Built,
    notes: Notes,
}

impl Settling<'_> {
    /// The routes that a service may ask for, whatever others do.
    fn admitted(&mut self, one: &Asked) -> Vec<(FrontendName, Route)> {
        let prefix = &self.options.prefix;
        if one.lacks_domain {
            let text = format!("{prefix}path is ignored: it belongs to a host, and there is no {prefix}domain");
            self.notes.one(one, Severity::Warning, Code::IgnoredTag, text);
        }
        let whole = one
            .whole
            .iter()
            .map(|frontend| (Some(frontend.clone()), Route { host: HostPattern::Any, path: RoutePath::default() }));
        let mut admitted = Vec::new();
        for (frontend, route) in one.routes.iter().cloned().chain(whole) {
            match self.refusal(one, frontend.as_ref(), &route) {
                Some((severity, code, why)) => self.notes.add(one, severity, code, why, &route),
                None => admitted.extend(frontend.map(|frontend| (frontend, route))),
            }
        }
        admitted
    }

    fn refusal(
        &mut self,
        one: &Asked,
        frontend: Option<&FrontendName>,
        route: &Route,
    ) -> Option<(Severity, Code, String)> {
        let prefix = &self.options.prefix;
        let Some(frontend) = frontend else {
            let why = format!(
                "no frontend is named: set {prefix}frontend or haproxy.frontend (HAPROXY_FRONTEND), or route to the \
                 backend {} by a line of your own",
                one.backend
            );
            return Some((Severity::Warning, Code::NoFrontend, why));
        };
        let Some(door) = self.present.doors.get(frontend) else {
            let why = format!("HAProxy has no frontend {frontend}");
            return Some((Severity::Error, Code::FrontendInTheWay, why));
        };
        if let Some(why) = self.unfit(one, frontend, door, route) {
            return Some((Severity::Error, Code::FrontendInTheWay, why));
        }
        if let Err(why) = self.options.grants.may_claim(&one.service, &route.host) {
            let namespace = one.service.namespace.escape_debug();
            let why = format!("{why}; `namespaces.{namespace}.domains` with a glob for it would allow it");
            return Some((Severity::Error, Code::NotAllowed, why));
        }
        self.note_door(one, frontend, door);
        None
    }

    /// Why this frontend cannot have the route.
    fn unfit(&self, one: &Asked, frontend: &FrontendName, door: &Door, route: &Route) -> Option<String> {
        if let Some(trouble) = door.trouble {
            return Some(format!("no rule is written into the frontend {frontend}: {trouble}"));
        }
        let mode = self.mode(&one.backend);
        match door.mode {
            Some(door) if Some(door) == mode => {}
            Some(door) => {
                return Some(format!(
                    "the frontend {frontend} has `mode {}`, and the backend {} another one: see {}mode",
                    door.as_str(),
                    one.backend,
                    self.options.prefix
                ));
            }
            None => return Some(format!("the frontend {frontend} is in a mode that routes nothing")),
        }
        match (mode, &route.host) {
            (Some(Mode::Tcp), HostPattern::Any) if door.has_default => Some(format!(
                "the frontend {frontend} has a `default_backend`, or servers, of yours, which stay as they are: remove \
                 them, or name a domain, which is compared with the name in the TLS handshake (SNI)"
            )),
            (Some(Mode::Tcp), _) if !route.path.is_root() => {
                Some(format!("the frontend {frontend} is in TCP mode, where there are no paths"))
            }
            (Some(Mode::Http), HostPattern::Any) => {
                Some(format!("the frontend {frontend} routes by host: name one with {}domain", self.options.prefix))
            }
            _ => None,
        }
    }

    /// What a person should know of a frontend that has the route.
    fn note_door(&mut self, one: &Asked, frontend: &FrontendName, door: &Door) {
        if let Some(line) = door.always {
            let text = format!(
                "its routes of the frontend {frontend} have no effect: `use_backend` in line {line} matches every \
                 request before they are asked; give it a condition, or make it the `default_backend`"
            );
            self.notes.one(one, Severity::Error, Code::FrontendInTheWay, text);
        }
        if door.mode == Some(Mode::Tcp) && !door.inspects && one.whole.is_empty() {
            let text = format!(
                "its routes of the frontend {frontend} need `tcp-request inspect-delay 5s` and `tcp-request content \
                 accept if {{ req.ssl_hello_type 1 }}` there: without them HAProxy does not wait for the name in the \
                 TLS handshake"
            );
            self.notes.one(one, Severity::Warning, Code::FrontendInTheWay, text);
        }
    }

    /// The mode of a backend: as it is where it is a person's, else as it is to be.
    fn mode(&self, backend: &BackendName) -> Option<Mode> {
        match self.present.backends.get(backend) {
            Some(place) if place.is_foreign => place.mode.parse().ok(),
            _ => self.built.desired.backends.get(backend).map(|backend| backend.settings.mode),
        }
    }

    /// All claims of one frontend.
    fn frontend(&mut self, frontend: &FrontendName, claims: Vec<Claim>) {
        let mut by_host: BTreeMap<HostPattern, Vec<Claim>> = BTreeMap::new();
        for claim in claims {
            by_host.entry(claim.route.host.clone()).or_default().push(claim);
        }
        for (host, mut claims) in by_host {
            claims.sort_by_cached_key(|claim| self.priority(frontend, claim));
            let absent = self.absent_owner(frontend, &host);
            let owner = match &absent {
                Some((namespace, _)) => Some(namespace.clone()),
                None => claims.first().map(|first| first.asked.service.namespace.clone()),
            };
            let mut taken: BTreeMap<Route, (BackendName, Option<ServiceKey>)> = BTreeMap::new();
            for claim in claims {
                let Claim { asked, route } = claim;
                let service = &asked.service;
                let is_of_owner = owner.as_ref().is_none_or(|owner| *owner == service.namespace);
                if !is_of_owner && !self.options.grants.lists_domain(service, &host) {
                    let namespace = service.namespace.escape_debug();
                    let why = format!(
                        "the host belongs to a service of another namespace; `namespaces.{namespace}.domains` with a \
                         glob for it would allow it"
                    );
                    self.notes.add(asked, Severity::Error, Code::NotAllowed, why, &route);
                    self.built.awaited.extend(absent.as_ref().map(|(_, backend)| backend.clone()));
                    continue;
                }
                let holder = taken.get(&route).cloned().or_else(|| self.absent_holder(frontend, &route));
                match holder {
                    Some((backend, _)) if backend == asked.backend => {}
                    Some((backend, Some(service))) => {
                        let why = format!("it belongs to service {service} (backend {backend})");
                        self.notes.add(asked, Severity::Error, Code::RouteConflict, why, &route);
                    }
                    Some((backend, None)) => {
                        let why = format!(
                            "it belongs to the backend {backend}, whose service is gone or held, until \
                             `backend.linger` is over"
                        );
                        self.notes.add(asked, Severity::Error, Code::RouteConflict, why, &route);
                        self.built.awaited.insert(backend);
                    }
                    None => {
                        taken.insert(route, (asked.backend.clone(), Some(service.clone())));
                    }
                }
            }
            let routes = self.built.desired.routes.entry(frontend.clone()).or_default();
            let won = taken.into_iter().map(|(route, (backend, _))| (route, backend));
            routes.extend(won);
        }
    }

    /// The order of the services that ask for a host: those that have it, then by age.
    fn priority(&self, frontend: &FrontendName, claim: &Claim) -> (bool, bool, u64, ServiceKey, Route) {
        let Claim { asked, route } = claim;
        let routes = self.present.routes.get(frontend);
        let has_route = routes.and_then(|routes| routes.get(route)) == Some(&asked.backend);
        let has_host = self.backends_of(frontend, &route.host).any(|backend| *backend == asked.backend);
        (!has_route, !has_host, asked.since, asked.service.clone(), route.clone())
    }

    /// The backend that has a route and keeps it, although no service asks for it.
    fn absent_holder(&self, frontend: &FrontendName, route: &Route) -> Option<(BackendName, Option<ServiceKey>)> {
        let backend = self.present.routes.get(frontend)?.get(route)?;
        self.is_kept(backend).then(|| (backend.clone(), None))
    }

    /// Such a backend that has a route of the host, and its namespace.
    fn absent_owner(&self, frontend: &FrontendName, host: &HostPattern) -> Option<(String, BackendName)> {
        let backend = self.backends_of(frontend, host).find(|backend| self.is_kept(backend))?;
        let place = self.present.backends.get(backend)?;
        place.holders.first().map(|service| (service.namespace.clone(), backend.clone()))
    }

    /// The backends that have routes of a host.
    fn backends_of<'a>(
        &'a self,
        frontend: &FrontendName,
        host: &'a HostPattern,
    ) -> impl Iterator<Item = &'a BackendName> {
        let first = Route { host: host.clone(), path: RoutePath::default() };
        let routes = self.present.routes.get(frontend).into_iter();
        let from = routes.flat_map(move |routes| routes.range(first.clone()..));
        from.take_while(move |(route, _)| route.host == *host).map(|(_, backend)| backend)
    }

    fn is_kept(&self, backend: &BackendName) -> bool {
        let Some(place) = self.present.backends.get(backend).filter(|place| !place.is_foreign) else { return false };
        let is_held = || place.holders.iter().any(|service| self.built.held.holds(service));
        !self.built.desired.backends.contains_key(backend)
            && self.built.keeps_routes(&place.holders)
            && (self.options.lingers || is_held())
    }
}

/// Notes about routes, those of one service with the same reason as one.
#[derive(Default)]
struct Notes {
    one: BTreeSet<Note>,
    routes: BTreeMap<(Severity, ServiceKey, Code, String), Vec<String>>,
}

impl Notes {
    fn one(&mut self, asked: &Asked, severity: Severity, code: Code, text: String) {
        self.one.insert(Note { severity, service: asked.service.clone(), code, text });
    }

    fn add(&mut self, asked: &Asked, severity: Severity, code: Code, why: String, route: &Route) {
        let routes = self.routes.entry((severity, asked.service.clone(), code, why)).or_default();
        routes.push(route.to_string());
    }

    fn into_notes(self) -> impl Iterator<Item = Note> {
        let note = |((severity, service, code, why), routes): ((Severity, ServiceKey, Code, String), Vec<String>)| {
            let mut listed = routes.iter().take(MAX_LISTED).cloned().collect::<Vec<_>>().join(", ");
            if routes.len() > MAX_LISTED {
                listed += &format!(" and {} more", routes.len() - MAX_LISTED);
            }
            Note { severity, service, code, text: format!("no route for {listed}: {why}") }
        };
        self.one.into_iter().chain(self.routes.into_iter().map(note))
    }
}
