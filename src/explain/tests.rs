use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::*;
use crate::apply::{BackendSeats, PassError, PassStatus, Seats, Stage};
use crate::catalog::{Catalog, Unread};
use crate::desired::ServerOptions;
use crate::plan::display::Summary;
use crate::reconcile::Wake;
use crate::status::Board;

fn key(text: &str) -> ServiceKey {
    ServiceKey::from_word(text).expect("namespace/name")
}

fn registration(id: &str, tags: &[&str]) -> Registration {
    let tags: Vec<String> = tags.iter().map(|tag| format!("haproxy.{tag}")).collect();
    serde_json::from_value(serde_json::json!({
        "ID": id, "ServiceName": "api", "Namespace": "default", "Tags": tags, "Address": "10.0.0.1", "Port": 80,
    }))
    .expect("a registration")
}

fn catalog(registrations: &[Registration]) -> Catalog {
    let services = BTreeMap::from([(key("default/api"), registrations.to_vec())]);
    Catalog { index: 1, services, ..Catalog::default() }
}

fn note(severity: Severity, code: Code, text: &str) -> Note {
    Note { severity, service: key("default/api"), code, text: text.to_owned() }
}

/// The backend of the service, with these instances.
fn seats(instances: &[&str]) -> Arc<Seats> {
    let server = |(at, id): (usize, &&str)| Server {
        name: format!("nomad_api_{at}").parse().expect("a name"),
        address: "10.0.0.1".parse().expect("an address"),
        port: 80,
        check: false,
        cookie: false,
        options: ServerOptions::default(),
        gated: false,
        occupant: Occupant::Instance {
            id: InstanceId::new(id),
            alloc: format!("alloc-{id}"),
            service: Some(key("default/api")),
            drain: None,
        },
    };
    let servers = instances.iter().enumerate().map(server).collect();
    let api = BackendSeats { is_ours: true, services: vec![key("default/api")], mode: "http".to_owned(), servers };
    Arc::new(Seats { backends: BTreeMap::from([("nomad_api".parse().expect("a name"), api)]), ..Seats::default() })
}

/// A pass over this catalog that had no trouble.
fn pass(catalog: Catalog, instances: &[&str]) -> PassStatus {
    PassStatus {
        index: 1,
        version: 1,
        catalog_read: Some(SystemTime::now()),
        catalog: Some(Arc::new(catalog)),
        seats: seats(instances),
        ..PassStatus::default()
    }
}

/// The answer after these passes on `edge`.
fn explained(passes: &[PassStatus], service: &str) -> (Routed, Option<Reason>, String) {
    let board = Board::default();
    for name in ["edge", "other"] {
        board.add(name);
    }
    for pass in passes {
        board.passed("edge", pass, Duration::ZERO, Wake::Catalog);
    }
    let status = board.read();
    let chosen = status.chosen(Some("edge")).expect("it is there");
    let explanation = explain(&status, &chosen, &key(service), "haproxy.");
    let on = &explanation.haproxys[0];
    assert_eq!(explanation.answer, on.answer);
    (on.routed, on.reason, on.answer.clone())
}

#[test]
fn a_service_that_is_routed_is_said_to_be() {
    let enabled = catalog(&[registration("a", &["enable=true"]), registration("b", &["enable=true"])]);
    let said = explained(&[pass(enabled, &["a", "b"])], "default/api");
    assert_eq!(said, (Routed::Fully, None, "It is routed: 2 instances in the backend `nomad_api`.".to_owned()));
}

#[test]
fn the_tags_or_the_catalog_say_why_it_is_not() {
    let one = |tags: &[&str]| catalog(&[registration("a", tags)]);
    for (catalog, service, reason, words) in [
        (one(&[]), "default/api", Reason::NotEnabled, "it has no tag `haproxy.enable=true`"),
        (one(&["enable=false"]), "default/api", Reason::Disabled, "`haproxy.enable=false` turns it off"),
        (one(&["enable=true", "backend=static"]), "default/api", Reason::Static, "leaves it alone"),
        (one(&["enable=true", "target=other"]), "default/api", Reason::OtherTarget, "names other HAProxys"),
        (catalog(&[]), "default/api", Reason::NoInstance, "its last instance has gone"),
        (one(&["enable=true"]), "default/web", Reason::NotInCatalog, "has no service of this name"),
        (one(&["enable=true"]), "team/api", Reason::NotInCatalog, "there is `api`"),
    ] {
        let (routed, found, answer) = explained(&[pass(catalog, &[])], service);
        assert_eq!((routed, found), (Routed::Not, Some(reason)), "{answer}");
        assert!(answer.starts_with("It is not routed: ") && answer.contains(words), "{answer}");
    }
}

#[test]
fn a_note_says_why_it_is_not() {
    let enabled = || catalog(&[registration("a", &["enable=true"])]);
    for (severity, code, text, reason) in [
        (Severity::Error, Code::NameConflict, "another service has the name", Reason::Refused),
        (Severity::Error, Code::Refused, "HAProxy refuses it", Reason::Refused),
        (Severity::Error, Code::Unreadable, "Nomad answers 500", Reason::ServiceUnread),
        (Severity::Warning, Code::UnwatchedNamespace, "not routed: its namespace is not watched", Reason::Unwatched),
    ] {
        let pass = PassStatus { notes: vec![note(severity, code, text)], ..pass(enabled(), &[]) };
        let (routed, found, answer) = explained(&[pass], "default/api");
        assert_eq!((routed, found), (Routed::Not, Some(reason)), "{answer}");
        assert_eq!(answer, format!("It is not routed: {}.", text.trim_start_matches("not routed: ")));
    }
    // A tag that is ignored keeps nothing out.
    let warned = vec![note(Severity::Warning, Code::BadTag, "ignored")];
    let pass = PassStatus { notes: warned, ..pass(enabled(), &["a"]) };
    assert_eq!(explained(&[pass], "default/api").0, Routed::Fully);
}

#[test]
fn what_the_guard_holds_is_routed_and_said_to_be_held() {
    let held = vec![note(Severity::Error, Code::GuardHeld, "the guard holds 1 instance")];
    let pass = PassStatus { notes: held, ..pass(Catalog { index: 1, ..Catalog::default() }, &["a"]) };
    let (routed, reason, answer) = explained(&[pass], "default/api");
    assert_eq!((routed, reason), (Routed::InPart, Some(Reason::Held)));
    assert_eq!(answer, "It is routed: 1 instance in the backend `nomad_api`; but the guard holds 1 instance.");
}

#[test]
fn a_namespace_that_cannot_be_read_is_named() {
    let unread = Unread::Failed("Permission denied".to_owned());
    let namespaces = vec![NamespaceNote::new("default", &unread)];
    let pass = PassStatus { namespaces, ..pass(Catalog::default(), &["a"]) };
    let (routed, reason, answer) = explained(&[pass], "default/api");
    assert_eq!((routed, reason), (Routed::InPart, Some(Reason::NamespaceUnread)));
    assert!(answer.contains("Permission denied"), "{answer}");
}

#[test]
fn before_the_first_pass_and_after_a_failed_one_the_pass_is_the_reason() {
    let (_, reason, answer) = explained(&[], "default/api");
    assert_eq!(
        (reason, answer.as_str()),
        (Some(Reason::CatalogUnread), "It is not routed: the catalog has not been read yet: no pass has read it.")
    );

    let enabled = || catalog(&[registration("a", &["enable=true"]), registration("b", &["enable=true"])]);
    let broken = || PassStatus {
        stage: Stage::Apply,
        error: Some(PassError::Broken("parsing".into())),
        ..pass(enabled(), &["a"])
    };
    let (routed, reason, answer) = explained(&[broken()], "default/api");
    assert_eq!((routed, reason), (Routed::InPart, Some(Reason::PassFailed)));
    assert!(
        answer.starts_with("It is routed in part: 1 instance in the backend `nomad_api`, and 1 instance"),
        "{answer}"
    );

    // On a HAProxy whose first pass has not ended yet.
    let board = Board::default();
    for name in ["edge", "other"] {
        board.add(name);
    }
    board.passed("edge", &pass(enabled(), &["a", "b"]), Duration::ZERO, Wake::Started);
    let status = board.read();
    let both = explain(&status, &status.chosen(None).expect("all"), &key("default/api"), "haproxy.");
    assert_eq!(both.haproxys[1].reason, Some(Reason::NoPass));
    assert!(both.answer.starts_with("On edge: It is routed") && both.answer.contains("On other: It is not routed"));
}

#[test]
fn a_change_that_waits_is_said_to_wait() {
    let enabled = || catalog(&[registration("a", &["enable=true"]), registration("b", &["enable=true"])]);
    let summary = Summary {
        routes: Vec::new(),
        frontends: Vec::new(),
        changes: true,
        live: false,
        backends: Vec::new(),
        notes: Vec::new(),
        namespaces: Vec::new(),
        guard: None,
        surplus: 0,
        reload: Vec::new(),
        rerendered_lines: 0,
        blocked: None,
        diff: String::new(),
    };
    let waits = PassStatus { pending: Some(summary.clone()), ..pass(enabled(), &["a"]) };
    assert_eq!(explained(&[waits], "default/api").1, Some(Reason::WaitsForReload));
    let pending = Some(Summary { blocked: Some("line 7 has `.if`".to_owned()), ..summary });
    let (_, reason, answer) = explained(&[PassStatus { pending, ..pass(enabled(), &["a"]) }], "default/api");
    assert!(reason == Some(Reason::PassFailed) && answer.contains("line 7 has `.if`"), "{answer}");
    assert_eq!(explained(&[pass(enabled(), &["a"])], "default/api").1, Some(Reason::NextPass));
}

#[test]
fn each_instance_has_its_registration_and_each_registration_without_a_server_its_reason() {
    let mixed = catalog(&[
        registration("a", &["enable=true", "weight=7"]),
        registration("b", &["enable=false"]),
        registration("c", &["enable=true", "target=nobody"]),
    ]);
    let board = Board::default();
    board.add("edge");
    board.passed("edge", &pass(mixed, &["a", "gone"]), Duration::ZERO, Wake::Started);
    let status = board.read();
    let explanation = explain(&status, &status.chosen(None).expect("all"), &key("default/api"), "haproxy.");
    let json = serde_json::to_value(&explanation).expect("JSON");
    let on = &json["haproxys"][0];
    let servers = &on["backends"][0]["servers"];
    assert_eq!(servers[0]["registration"]["Tags"][1], "haproxy.weight=7");
    assert_eq!((&servers[1]["id"], &servers[1]["registration"]), (&"gone".into(), &serde_json::Value::Null));
    assert_eq!(on["unseated"][0]["why"], "`haproxy.enable=false` turns it off");
    // A note says that nobody is called so.
    assert_eq!(
        (&on["unseated"][1]["registration"]["ID"], &on["unseated"][1]["why"]),
        (&"c".into(), &serde_json::Value::Null)
    );
    assert_eq!((&json["registrations"], &on["routed"]), (&3.into(), &"fully".into()));
}
