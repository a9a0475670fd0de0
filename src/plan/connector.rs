//! What haproxy-nomad-connector made becomes ours (`--adopt haproxy-nomad-connector`).
//!
//! A server of it goes only in the write that leaves a server of ours with the same address in the same backend, and a
//! rule only where a route of ours takes its place. So no instance is out of service for a moment, whatever fails; a
//! reload is what makes the change, all of it at once. What has no counterpart stays, with a note.

use std::collections::BTreeSet;

use crate::desired::{
    Backend, BackendKind, BackendName, Check, Code, Desired, FrontendRoutes, HttpCheck, Note, Severity,
};
use crate::haproxy::connector::{ConnectorCheck, ConnectorServer, NAME};
use crate::observed::{Frontend, Observed, ObservedBackend};

use super::{Conflict, Edit, Plan, Planner, ServerEdit, adopt};

impl Planner<'_> {
    /// The edit of a backend, with what is taken over in it.
    pub(super) fn taking_over(&mut self, name: &BackendName, desired: &Backend) -> Result<Option<Edit>, Conflict> {
        let observed = self.observed.backend(name);
        let Some(section) = observed.filter(|_| self.options.owner.adopts_connector()) else {
            return self.backend(name, desired, observed);
        };
        // A backend that states no mode has that of `defaults`: requests must not be read in another one from now on.
        let is_same_mode = section.mode == desired.settings.mode.as_str();
        let is_whole = section.by_connector.is_whole && desired.kind == BackendKind::Dynamic && is_same_mode;
        let whole = (is_whole && serves_one(desired, section)).then(|| section.taken_over(&desired.services));
        let section = whole.as_ref().unwrap_or(section);
        let edit = self.backend(name, desired, Some(section))?;
        Ok(retiring(edit, section))
    }
}

/// Whether a server of the connector is that of an instance: without one the backend may be anything.
fn serves_one(desired: &Backend, section: &ObservedBackend) -> bool {
    let mut servers = section.by_connector.servers.values();
    servers.any(|theirs| desired.instances.iter().any(|one| (&one.address, one.port) == (&theirs.address, theirs.port)))
}

/// The edit, and the end of the servers whose addresses ours have after it.
fn retiring(edit: Option<Edit>, section: &ObservedBackend) -> Option<Edit> {
    let ours = match &edit {
        Some(Edit::Change { servers, .. }) => servers.clone(),
        Some(Edit::Servers(edits)) => adopt::after(section, edits),
        Some(Edit::Create { .. } | Edit::Delete { .. }) => return edit,
        None => section.servers.clone(),
    };
    let same = section.by_connector.same_as(&ours).filter_map(|theirs| theirs.name.parse().ok());
    let gone: Vec<ServerEdit> = same.map(|name| ServerEdit::Retire { name }).collect();
    match edit {
        Some(Edit::Change { settings, rewrite, servers, edits }) => {
            Some(Edit::Change { settings, rewrite, servers, edits: [edits, gone].concat() })
        }
        Some(Edit::Servers(edits)) => Some(Edit::Servers([edits, gone].concat())),
        other => (!gone.is_empty()).then_some(Edit::Servers(gone)).or(other),
    }
}

/// The lines of the rules whose place routes of ours take: the same host to the same backend, whatever the path.
pub(super) fn retired_rules(frontend: &Frontend, routes: &FrontendRoutes) -> BTreeSet<usize> {
    let takes_its_place = |backend: &BackendName, keys: &BTreeSet<String>| {
        routes.iter().any(|(route, ours)| ours == backend && keys.contains(&route.key()))
    };
    let rules = frontend.by_connector.iter().filter(|rule| {
        let keys = rule.patterns().iter().map(|host| format!("{}/", host.key())).collect();
        takes_its_place(&rule.backend, &keys)
    });
    rules.flat_map(|rule| rule.lines).collect()
}

/// What is taken over, what could be, and what stays for a person to remove.
pub(super) fn notes(desired: &Desired, observed: &Observed, plan: &Plan) -> Vec<Note> {
    let adopts = observed.owner.adopts_connector();
    let mut notes = Vec::new();
    let mut could_be: Vec<(&BackendName, &Backend)> = Vec::new();
    for (name, backend) in &desired.backends {
        let Some(section) = observed.backend(name).filter(|section| !section.by_connector.servers.is_empty()) else {
            continue;
        };
        if adopts {
            notes.extend(taken_over(name, backend, plan));
            notes.extend(other_check(name, backend, section, plan));
        } else if serves_one(backend, section) {
            could_be.push((name, backend));
            continue;
        }
        notes.extend(left(name, backend, section));
    }
    if adopts {
        notes.extend(observed.frontends.iter().flat_map(|(name, frontend)| left_rules(name, frontend, desired, plan)));
    }
    if let [(name, first), ..] = could_be.as_slice() {
        let text = format!(
            "{} backends have instances of ours as servers of {NAME}, too ({name} first), and nobody updates these once \
             it is stopped; stop it, then take them over with `nomad-haproxy apply --adopt {NAME}`",
            could_be.len()
        );
        notes.extend(note(Severity::Warning, Code::LeftBehind, first, text));
    }
    notes
}

fn taken_over(name: &BackendName, backend: &Backend, plan: &Plan) -> Option<Note> {
    let edit = plan.edits.get(name)?;
    let servers = edit.servers().iter().filter(|edit| edit.is_retirement()).count();
    let what = match edit {
        Edit::Change { .. } => format!("the backend {name} and {servers} servers in it"),
        _ => format!("{servers} servers in the backend {name}, which stays as it is"),
    };
    let text = format!("taken over from {NAME}: {what}; ours have the same addresses");
    note(Severity::Info, Code::TakenOver, backend, text).filter(|_| servers > 0)
}

/// A check that asks for something else than before may fail where that one passed.
fn other_check(name: &BackendName, backend: &Backend, section: &ObservedBackend, plan: &Plan) -> Option<Note> {
    let before = section.by_connector.check.as_ref()?;
    let now = match &backend.settings.check {
        Check::Http(HttpCheck { method, path, host, headers: _, status: _ }, _) => {
            let host = host.clone();
            Some(ConnectorCheck { method: method.clone(), path: path.clone(), host })
        }
        Check::Tcp(_) | Check::Disabled => None,
    };
    let said = |check: &ConnectorCheck| match &check.host {
        Some(host) => format!("`{} {}` for the host `{host}`", check.method, check.path),
        None => format!("`{} {}` without a host", check.method, check.path),
    };
    let text = format!(
        "the check of the backend {name} changes: {NAME} sent {}, and from now on {}; tags such as `check.path` and \
         `check.host` keep it, and both controllers read them",
        said(before),
        now.as_ref().map_or_else(|| "there is no request".to_owned(), |now| format!("it is {}", said(now))),
    );
    let becomes_ours = matches!(plan.edits.get(name), Some(Edit::Change { .. }));
    note(Severity::Warning, Code::TakenOver, backend, text).filter(|_| becomes_ours && now.as_ref() != Some(before))
}

/// Its servers at addresses without an instance: nobody takes them out when they fail.
fn left(name: &BackendName, backend: &Backend, section: &ObservedBackend) -> Option<Note> {
    let has = |theirs: &ConnectorServer| {
        backend.instances.iter().any(|one| (&one.address, one.port) == (&theirs.address, theirs.port))
    };
    let left: Vec<&str> =
        section.by_connector.servers.values().filter(|one| !has(one)).map(|one| one.name.as_str()).collect();
    let text = format!(
        "the backend {name} has servers that {NAME} made, and no instance is registered at their addresses: {}; they \
         stay, so remove them by hand if nothing answers there",
        left.join(", ")
    );
    note(Severity::Warning, Code::LeftBehind, backend, text).filter(|_| !left.is_empty())
}

/// Its rules that no route of ours replaces: they go on to count.
fn left_rules<'a>(
    frontend: &'a str,
    section: &'a Frontend,
    desired: &'a Desired,
    plan: &'a Plan,
) -> impl Iterator<Item = Note> + 'a {
    let goes = move |line: usize| {
        let mut edits = plan.routes.rules.iter().filter(|(name, _)| name.as_str() == frontend);
        edits.any(|(_, edit)| edit.retired.contains(&line))
    };
    section.by_connector.iter().filter(move |rule| !goes(rule.lines[1])).filter_map(move |rule| {
        let backend = desired.backends.get(&rule.backend)?;
        let text = format!(
            "the frontend {frontend} keeps the rule that {NAME} made for {}, as no route of ours takes its place: name \
             the frontend in `haproxy.frontend`, or remove the rule by hand",
            rule.host
        );
        note(Severity::Warning, Code::LeftBehind, backend, text)
    })
}

fn note(severity: Severity, code: Code, backend: &Backend, text: String) -> Option<Note> {
    Some(Note { severity, service: backend.services.first()?.clone(), code, text })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{built_over, name, owner};
    use super::super::{LeftOut, Options, Part, Planned};
    use super::*;
    use crate::desired::{InstanceId, Owner};
    use crate::haproxy::text::ConfigText;
    use crate::observed::harm;

    const TEXT: &str = "\
defaults base
  mode http
frontend web from base
  acl is_api_d0c43d38 hdr(host) api.example.com
  use_backend api if is_api_d0c43d38
backend api
  balance roundrobin
  default-server check
  server api_10_0_0_1_80 10.0.0.1:80 check
backend shop from base
  timeout server 7s # slow
  server shop_10_0_0_1_80 10.0.0.1:80 check
  server old 127.0.0.1:9 weight 0
";
    const SERVICES: &[(&str, &[&str])] =
        &[("api", &["enable", "domain=api.example.com", "frontend=web"]), ("shop", &["enable", "backend=custom"])];

    fn adopting() -> Owner {
        owner().adopting(&NAME.parse().expect("an owner's name"))
    }

    fn read(text: &str, owner: &Owner) -> Observed {
        Observed::new(1, ConfigText::new(text), owner)
    }

    fn planned(services: &[(&str, &[&str])], text: &str, owner: &Owner, left_out: &LeftOut) -> (Planned, String) {
        let observed = read(text, owner);
        let planned =
            Plan::new(&built_over(&observed.present(), services), &observed, &Options::new(owner.clone()), left_out)
                .expect("a plan");
        let after = super::super::text::apply(&planned.plan, &observed, owner).to_string();
        (planned, after)
    }

    fn adopted(services: &[(&str, &[&str])], text: &str) -> (Planned, String) {
        planned(services, text, &adopting(), &LeftOut::default())
    }

    fn notes(planned: &Planned) -> String {
        planned.notes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn what_the_connector_made_becomes_ours_in_one_write_and_nothing_else_changes() {
        let (planned, after) = adopted(SERVICES, TEXT);
        assert!(!planned.plan.is_live() && planned.plan.retires());
        assert!(after.contains("description nomad-haproxy:nomad api default/api"), "{after}");
        assert!(after.contains("server api_1 10.0.0.1:80") && after.contains("server shop_1 10.0.0.1:80"), "{after}");
        assert!(!after.contains("_10_0_0_1_80") && !after.contains("is_api"), "{after}");
        assert!(
            after.contains("  timeout server 7s # slow\n") && after.contains("  server old 127.0.0.1:9 weight 0\n")
        );
        let notes = notes(&planned);
        assert!(notes.contains("the backend api and 1 servers in it"), "{notes}");
        assert!(notes.contains("1 servers in the backend shop, which stays as it is"), "{notes}");
        // From then on there is nothing to take over, and nothing to do.
        let again = |owner: &Owner| super::tests::planned(SERVICES, &after, owner, &LeftOut::default()).0.plan;
        assert!(again(&owner()).edits.is_empty() && again(&adopting()).edits.is_empty());
    }

    #[test]
    fn a_check_that_asks_for_something_else_is_noted() {
        let send = "  option httpchk GET /up HTTP/1.1\n  http-check send meth GET uri /up hdr Host api.example.com\n";
        let text = TEXT.replace("  default-server check\n", &format!("{send}  default-server check\n"));
        let note = |tags: &[&str]| notes(&adopted(&[("api", &[&["enable"], tags].concat())], &text).0);
        let other = note(&["check.path=/up"]);
        assert!(
            other.contains("sent `GET /up` for the host `api.example.com`, and from now on it is `GET /up` without")
        );
        assert!(note(&[]).contains("from now on there is no request"));
        assert!(!note(&["check.path=/up", "check.host=api.example.com"]).contains("the check"));
    }

    #[test]
    fn nothing_is_taken_over_unasked_and_one_note_says_how() {
        let (planned, after) = planned(SERVICES, TEXT, &owner(), &LeftOut::default());
        assert!(!planned.plan.retires());
        assert!(TEXT.lines().all(|line| after.contains(line)), "{after}");
        let notes = notes(&planned);
        assert!(notes.contains("2 backends have instances of ours as servers of haproxy-nomad-connector"), "{notes}");
        assert_eq!(notes.matches("--adopt").count(), 1, "{notes}");
    }

    #[test]
    fn a_server_goes_only_where_ours_has_its_address() {
        let services: &[(&str, &[&str])] = &[("api", &["enable"]), ("shop", &["enable", "backend=custom"])];
        let other = TEXT.replace("10_0_0_1_80 10.0.0.1:80", "10_0_0_2_80 10.0.0.2:80");
        let (planned, after) = adopted(services, &other);
        assert!(!planned.plan.retires() && other.lines().all(|line| after.contains(line)), "{after}");
        let notes = notes(&planned);
        assert!(notes.contains("no instance is registered at their addresses: api_10_0_0_2_80"), "{notes}");
        // One of two.
        let line = "  server api_10_0_0_1_80 10.0.0.1:80 check\n";
        let two = TEXT.replace(line, &format!("{line}  server api_10_0_0_2_80 10.0.0.2:80 check\n"));
        let (_, after) = adopted(services, &two);
        assert!(after.contains("api_10_0_0_2_80") && !after.contains("api_10_0_0_1_80"), "{after}");
    }

    #[test]
    fn the_server_of_an_instance_that_haproxy_refuses_stays() {
        let left_out = [Part::Instance(name("shop"), InstanceId::new("shop-1"))].into_iter().collect();
        let (_, after) = planned(SERVICES, TEXT, &adopting(), &left_out);
        assert!(after.contains("shop_10_0_0_1_80") && !after.contains("shop_1 10.0.0.1"), "{after}");
        assert!(!after.contains("api_10_0_0_1_80"), "the others go on: {after}");
    }

    #[test]
    fn a_backend_that_a_person_changed_keeps_its_settings() {
        let own = TEXT.replace("  default-server check\n", "  default-server check\n  timeout queue 3s\n");
        let (_, after) = adopted(SERVICES, &own);
        assert!(!after.contains("description") && after.contains("  timeout queue 3s\n"), "{after}");
        assert!(after.contains("server api_1 10.0.0.1:80 check") && !after.contains("api_10_0_0_1_80"), "{after}");
        // Nor may the mode change in which it reads requests.
        let tcp = TEXT.replace("mode http", "mode tcp");
        let (planned, after) = adopted(SERVICES, &tcp);
        assert!(after.contains("api_10_0_0_1_80"), "{after}");
        assert!(notes(&planned).contains("has mode tcp (the service is http) in the way"));
    }

    #[test]
    fn a_rule_goes_only_where_a_route_of_ours_takes_its_place() {
        for tags in [&["enable"][..], &["enable", "domain=other.example.com", "frontend=web"]] {
            let (planned, after) = adopted(&[("api", tags)], TEXT);
            assert!(after.contains("  use_backend api if is_api_d0c43d38\n"), "{after}");
            let notes = notes(&planned);
            assert!(notes.contains("keeps the rule that haproxy-nomad-connector made for api.example.com"), "{notes}");
        }
    }

    #[test]
    fn what_is_not_taken_over_is_still_guarded() {
        let (_, after) = adopted(SERVICES, TEXT);
        let lost = |after: &str| harm(&read(TEXT, &adopting()), &read(after, &adopting()));
        assert_eq!(lost(&after), Vec::<String>::new());
        assert_eq!(lost(&after.replace("  server old 127.0.0.1:9 weight 0\n", "")).len(), 1);
        assert!(!harm(&read(TEXT, &owner()), &read(&after, &owner())).is_empty(), "only if it was asked for");
    }
}
