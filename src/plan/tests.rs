//! Plans of small states, by the case.

use std::collections::BTreeSet;

use super::*;
use crate::catalog::{Catalog, Registration};
use crate::desired::build::{self, build};
use crate::haproxy::text::ConfigText;

const THEIRS: &str = "\
defaults base
  mode http
backend plain
  server a 127.0.0.1:1
backend picky
  balance leastconn
backend stream
  mode tcp
listen both
  mode http
";

fn mark() -> Mark {
    "nomad".parse().expect("an owner")
}

fn built(services: &[(&str, &[&str])]) -> Built {
    let mut catalog = Catalog::default();
    for (created, (service, tags)) in services.iter().enumerate() {
        let registration = Registration {
            id: format!("{service}-{created}"),
            service_name: (*service).to_owned(),
            namespace: "default".into(),
            node_id: String::new(),
            datacenter: String::new(),
            job_id: String::new(),
            alloc_id: String::new(),
            tags: tags.iter().map(|tag| format!("haproxy.{tag}")).collect(),
            address: "10.0.0.1".into(),
            port: 80,
            create_index: created as u64,
            modify_index: 0,
        };
        catalog.services.entry(registration.service()).or_default().push(registration);
    }
    let slots = SlotPolicy { min_free: 1, max: 8 };
    build(&catalog, &build::Options { prefix: "haproxy.".into(), mark: mark(), slots, init_state: false })
}

fn observed(text: &str) -> Observed {
    Observed::new(1, ConfigText::new(text), &mark())
}

fn plan(built: &Built, observed: &Observed, strategy: Strategy) -> Result<Planned, Conflict> {
    Plan::new(built, observed, &Options { mark: mark(), strategy, now: 0 }, &BTreeSet::new())
}

/// The text that a first pass leads to.
fn after(services: &[(&str, &[&str])], text: &str) -> Observed {
    let before = observed(text);
    let planned = plan(&built(services), &before, Strategy::UseExisting).expect("no conflict");
    Observed::new(1, super::text::apply(&planned.plan, &before, &mark()), &mark())
}

fn name(text: &str) -> BackendName {
    text.parse().expect("a name")
}

#[test]
fn an_existing_backend_is_used_if_it_is_compatible() {
    let services: [(&str, &[&str]); 4] =
        [("plain", &["enable"]), ("picky", &["enable"]), ("stream", &["enable"]), ("both", &["enable"])];
    let planned = plan(&built(&services), &observed(THEIRS), Strategy::UseExisting).expect("no conflict");
    assert_eq!(planned.plan.edits.keys().map(BackendName::as_str).collect::<Vec<_>>(), ["plain"]);
    assert!(matches!(planned.plan.edits[&name("plain")], Edit::Servers(_)));
    let notes: Vec<String> = planned.notes.iter().map(ToString::to_string).collect();
    for words in ["has balance leastconn in the way", "has mode tcp (the service is http)", "is a listen section"] {
        assert!(notes.iter().any(|note| note.contains(words) && note.starts_with("error")), "{words}: {notes:?}");
    }
}

#[test]
fn tags_of_the_section_are_in_vain_where_it_is_not_ours() {
    let said = |tags: &[&str]| {
        let planned = plan(&built(&[("plain", tags)]), &observed(THEIRS), Strategy::UseExisting).expect("no conflict");
        assert_eq!(planned.plan.edits.len(), 1, "it is given its server all the same");
        planned.notes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(said(&["enable", "mode=http", "balance=roundrobin", "weight=2", "slots=0", "check.disabled"]), "");
    let existing = said(&["enable", "balance=leastconn", "check.path=/health"]);
    assert!(existing.contains("ignored") && existing.contains("haproxy.balance, haproxy.check.path"), "{existing}");
    let custom = said(&["enable", "backend=custom", "mode=http", "check.rise=2", "weight=2", "slots=0"]);
    assert!(custom.contains("haproxy.check.rise, haproxy.mode") && !custom.contains("slots"), "{custom}");
}

#[test]
fn create_new_leaves_a_taken_name_alone_and_the_others_go_on() {
    let services: [(&str, &[&str]); 2] = [("plain", &["enable"]), ("fresh", &["enable"])];
    let planned = plan(&built(&services), &observed(THEIRS), Strategy::CreateNew).expect("no conflict");
    assert_eq!(planned.plan.edits.keys().map(BackendName::as_str).collect::<Vec<_>>(), ["fresh"]);
    assert_eq!((planned.notes.len(), planned.notes[0].service.name.as_str()), (1, "plain"));
}

#[test]
fn fail_on_conflict_stops_before_any_write() {
    let services: [(&str, &[&str]); 2] = [("plain", &["enable"]), ("fresh", &["enable"])];
    let conflict = plan(&built(&services), &observed(THEIRS), Strategy::FailOnConflict).expect_err("plain is taken");
    assert!(conflict.to_string().contains("fail_on_conflict") && conflict.to_string().contains("service plain"));
}

#[test]
fn a_custom_backend_that_is_not_there_is_an_error_and_nothing_else() {
    let planned = plan(&built(&[("api", &["enable", "backend=custom"])]), &observed(THEIRS), Strategy::UseExisting);
    let planned = planned.expect("no conflict");
    assert!(planned.plan.is_empty());
    assert!(planned.notes[0].text.contains("HAProxy has no backend api"));
}

#[test]
fn a_service_whose_tag_is_broken_keeps_what_it_has() {
    let before = after(&[("api", &["enable=true"]), ("gone", &["enable=true"])], THEIRS);
    let planned = plan(&built(&[("api", &["enable=tru"])]), &before, Strategy::UseExisting).expect("no conflict");
    assert_eq!(planned.plan.edits.into_iter().collect::<Vec<_>>(), [(name("gone"), Edit::Delete)]);
}

#[test]
fn a_change_of_servers_is_live_and_a_change_of_settings_is_not() {
    let before = after(&[("api", &["enable", "weight=3"])], THEIRS);
    let live = |tags: &[&str]| {
        plan(&built(&[("api", tags)]), &before, Strategy::UseExisting).expect("no conflict").plan.live()
    };
    assert_eq!(live(&["enable", "weight=3"]), Some(vec![]));
    assert_eq!(live(&["enable", "weight=7"]), Some(vec![Action::Weight(name("api"), name("api").slot(1), 7)]));
    assert_eq!(live(&["enable"]), Some(vec![Action::Weight(name("api"), name("api").slot(1), 1)]));
    assert_eq!(live(&["enable", "weight=3", "maxconn=9"]), None);
    assert_eq!(live(&["enable", "weight=3", "balance=first"]), None);
}

#[test]
fn an_instance_goes_out_before_its_slot_changes_and_comes_in_after() {
    let before = after(&[("api", &["enable"])], THEIRS);
    let mut next = built(&[("api", &["enable"])]);
    let backend = next.desired.backends.get_mut(&name("api")).expect("api");
    let instance = &mut backend.instances[0];
    (instance.id, instance.port) = (crate::desired::InstanceId::new("another"), 81);
    let plan = plan(&next, &before, Strategy::UseExisting).expect("no conflict").plan;
    let (old, new) = (name("api").slot(1), name("api").slot(2));
    let ip = "10.0.0.1".parse().expect("an address");
    assert_eq!(
        plan.live(),
        Some(vec![
            Action::State(name("api"), old, State::Maint),
            Action::Address(name("api"), new.clone(), ip, 81),
            Action::State(name("api"), new, State::Ready),
        ])
    );
}

#[test]
fn what_is_live_does_not_wait_for_what_takes_a_reload() {
    let before = after(&[("api", &["enable", "slots=1"]), ("other", &["enable"])], THEIRS);
    let mut next = built(&[
        ("api", &["enable", "slots=1", "balance=first"]),
        ("other", &["enable", "weight=2"]),
        ("new", &["enable"]),
    ]);
    let instances = &mut next.desired.backends.get_mut(&name("api")).expect("api").instances;
    let gone = instances.remove(0);
    instances.extend((0..4).map(|n| {
        let id = crate::desired::InstanceId::new(&format!("more-{n}"));
        crate::desired::Instance { id, ..gone.clone() }
    }));
    let split = |before: &Observed| plan(&next, before, Strategy::UseExisting).expect("no conflict").plan.split();
    let (live, rest) = split(&before);
    let names = |plan: &Plan| plan.edits.keys().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(
        (names(&live), names(&rest)),
        (vec!["api".to_owned(), "other".to_owned()], vec!["api".to_owned(), "new".to_owned()])
    );
    let actions = live.live().expect("all of it is live");
    assert!(actions.contains(&Action::State(name("api"), name("api").slot(1), State::Maint)), "{actions:?}");

    // Once it is done, the rest is what is left.
    let text = super::text::apply(&live, &before, &mark());
    let (again, same) = split(&Observed::new(2, text, &mark()));
    assert!(again.is_empty(), "{again:?}");
    assert_eq!(same, rest);
}

#[test]
fn two_owners_share_one_haproxy() {
    let theirs = "backend api\n  description nomad-haproxy:other default/api\n  mode http\n  server api_1 10.9.9.9:1 # {\"owner\":\"other\",\"id\":\"x\",\"alloc\":\"\"}\n";
    let planned = plan(&built(&[]), &observed(theirs), Strategy::UseExisting).expect("no conflict");
    assert!(planned.plan.is_empty(), "{:?}", planned.plan);
}
