//! Plans of small states, by the case.

use super::review::{Permit, Review, Reviews};
use super::*;
use crate::catalog::{Catalog, Registration};
use crate::desired::build::{self, build};
use crate::desired::{Grant, Grants, Held, InstanceId, Present, ServiceKey, SlotPolicy, State};
use crate::haproxy::text::ConfigText;
use crate::plane::{Runtime, RuntimeServer};

const DELETE: Edit = Edit::Delete { is_live: false };

const FOREIGN: &str = "\
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

pub(super) fn owner() -> Owner {
    "nomad".parse().expect("an owner")
}

fn built(services: &[(&str, &[&str])]) -> Built {
    built_over(&Present::default(), services)
}

pub(super) fn built_over(present: &Present, services: &[(&str, &[&str])]) -> Built {
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
    let (prefix, owner) = ("haproxy.".into(), owner());
    // These tests are not about which service may join an existing backend.
    let anything = Grant { backends: vec!["*".to_owned()], join: true, domains: None };
    let grants = Grants::new(&[("*".to_owned(), anything)].into()).expect("globs");
    build(
        &catalog,
        present,
        &build::Options {
            prefix,
            owner,
            slots,
            init_state: false,
            lingers: true,
            grants,
            targets: build::TargetNames::default(),
            frontend: None,
        },
    )
}

fn observed(text: &str) -> Observed {
    Observed::new(1, ConfigText::new(text), &owner())
}

fn plan(built: &Built, observed: &Observed, strategy: Strategy) -> Result<Planned, Conflict> {
    plan_at(built, observed, strategy, Duration::ZERO)
}

/// With a clock, and a minute of lingering.
fn plan_at(built: &Built, observed: &Observed, strategy: Strategy, now: Duration) -> Result<Planned, Conflict> {
    let linger = if now.is_zero() { Duration::ZERO } else { Duration::from_secs(60) };
    Plan::new(built, observed, &Options { strategy, linger, now, ..Options::new(owner()) }, &LeftOut::default())
}

/// The configuration after a plan.
fn applied(plan: &Plan, before: &Observed) -> Observed {
    Observed::new(before.version, super::text::apply(plan, before, &owner()), &owner())
}

/// The run-time changes of a plan; `None` if it needs a reload.
fn run_time_changes(plan: &Plan, before: &Observed) -> Option<Vec<Action>> {
    plan.is_live()
        .then(|| Changes::new(&Runtime::of(before), before, &applied(plan, before), &Growth::default()).actions())
}

/// The text that a first pass leads to.
fn after(services: &[(&str, &[&str])], text: &str) -> Observed {
    let before = observed(text);
    let planned = plan(&built(services), &before, Strategy::UseExisting).expect("no conflict");
    Observed::new(1, super::text::apply(&planned.plan, &before, &owner()), &owner())
}

pub(super) fn name(text: &str) -> BackendName {
    text.parse().expect("a name")
}

#[test]
fn an_existing_backend_is_used_if_it_is_compatible() {
    let services: [(&str, &[&str]); 4] =
        [("plain", &["enable"]), ("picky", &["enable"]), ("stream", &["enable"]), ("both", &["enable"])];
    let planned = plan(&built(&services), &observed(FOREIGN), Strategy::UseExisting).expect("no conflict");
    assert_eq!(planned.plan.edits.keys().map(BackendName::as_str).collect::<Vec<_>>(), ["plain"]);
    assert!(matches!(planned.plan.edits[&name("plain")], Edit::Servers(_)));
    let notes: Vec<String> = planned.notes.iter().map(ToString::to_string).collect();
    for words in ["has balance leastconn in the way", "has mode tcp (the service is http)", "is a listen section"] {
        assert!(notes.iter().any(|note| note.contains(words) && note.starts_with("error")), "{words}: {notes:?}");
    }
}

/// Their order there is not written down: it is the same with servers there and without.
#[test]
fn services_that_share_a_persons_backend_stay_in_it() {
    for services in [
        [("stream", &["enable", "mode=tcp"][..]), ("api", &["enable", "backend.name=stream"])],
        [("plain", &["enable"]), ("api", &["enable", "backend.name=plain", "slots=0"])],
    ] {
        let after = after(&services, FOREIGN);
        let seated = after.backends[services[0].0].servers.iter().filter(|server| server.is_enabled()).count();
        assert_eq!(seated, 2, "{}", after.text);
        let again = plan(&built_over(&after.present(), &services), &after, Strategy::UseExisting).expect("no conflict");
        assert!(again.plan.is_empty(), "{:?}", again.plan);
    }
}

#[test]
fn tags_of_the_section_are_ignored_where_it_is_not_ours() {
    let said = |tags: &[&str]| {
        let planned = plan(&built(&[("plain", tags)]), &observed(FOREIGN), Strategy::UseExisting).expect("no conflict");
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
    let planned = plan(&built(&services), &observed(FOREIGN), Strategy::CreateNew).expect("no conflict");
    assert_eq!(planned.plan.edits.keys().map(BackendName::as_str).collect::<Vec<_>>(), ["fresh"]);
    assert_eq!((planned.notes.len(), planned.notes[0].service.name.as_str()), (1, "plain"));
}

#[test]
fn fail_on_conflict_stops_before_any_write() {
    let services: [(&str, &[&str]); 2] = [("plain", &["enable"]), ("fresh", &["enable"])];
    let conflict = plan(&built(&services), &observed(FOREIGN), Strategy::FailOnConflict).expect_err("plain is taken");
    assert!(conflict.to_string().contains("fail_on_conflict") && conflict.to_string().contains("service plain"));
}

#[test]
fn a_custom_backend_that_is_not_there_is_an_error_and_nothing_else() {
    let planned = plan(&built(&[("api", &["enable", "backend=custom"])]), &observed(FOREIGN), Strategy::UseExisting);
    let planned = planned.expect("no conflict");
    assert!(planned.plan.is_empty());
    assert!(planned.notes[0].text.contains("HAProxy has no backend api"));
}

#[test]
fn a_service_whose_tag_is_broken_keeps_what_it_has() {
    let before = after(&[("api", &["enable=true"]), ("gone", &["enable=true"])], FOREIGN);
    let planned = plan(&built(&[("api", &["enable=tru"])]), &before, Strategy::UseExisting).expect("no conflict");
    assert_eq!(planned.plan.edits.into_iter().collect::<Vec<_>>(), [(name("gone"), DELETE)]);
}

#[test]
fn a_change_of_servers_is_live_and_a_change_of_settings_is_not() {
    let before = after(&[("api", &["enable", "weight=3"])], FOREIGN);
    let live = |tags: &[&str]| {
        run_time_changes(
            &plan(&built(&[("api", tags)]), &before, Strategy::UseExisting).expect("no conflict").plan,
            &before,
        )
    };
    assert_eq!(live(&["enable", "weight=3"]), Some(vec![]));
    assert_eq!(live(&["enable", "weight=7"]), Some(vec![Action::Weight(name("api"), name("api").slot(1), 7)]));
    assert_eq!(live(&["enable"]), Some(vec![Action::Weight(name("api"), name("api").slot(1), 1)]));
    assert_eq!(live(&["enable", "weight=3", "maxconn=9"]), None);
    assert_eq!(live(&["enable", "weight=3", "balance=first"]), None);
}

#[test]
fn an_instance_goes_out_before_its_slot_changes_and_comes_in_after() {
    let before = after(&[("api", &["enable"])], FOREIGN);
    let mut next = built(&[("api", &["enable"])]);
    let backend = next.desired.backends.get_mut(&name("api")).expect("api");
    let instance = &mut backend.instances[0];
    (instance.id, instance.port) = (crate::desired::InstanceId::new("another"), 81);
    let plan = plan(&next, &before, Strategy::UseExisting).expect("no conflict").plan;
    let (old, new) = (name("api").slot(1), name("api").slot(2));
    let ip = "10.0.0.1".parse().expect("an address");
    assert_eq!(
        run_time_changes(&plan, &before),
        Some(vec![
            Action::State(name("api"), old, State::Maint),
            Action::Address(name("api"), new.clone(), ip, 81),
            Action::State(name("api"), new, State::Ready),
        ])
    );
}

#[test]
fn what_is_live_does_not_wait_for_what_takes_a_reload() {
    let before = after(&[("api", &["enable", "slots=1"]), ("other", &["enable"])], FOREIGN);
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
    let split = |before: &Observed| {
        let plan = plan(&next, before, Strategy::UseExisting).expect("no conflict").plan;
        plan.split(Plan::gone(&next, before, Duration::ZERO))
    };
    let (live, rest) = split(&before);
    assert_eq!(live.edits.keys().map(BackendName::as_str).collect::<Vec<_>>(), ["api", "other"]);
    assert_eq!(rest.backends().map(BackendName::as_str).collect::<Vec<_>>(), ["api", "new"]);
    let actions = run_time_changes(&live, &before).expect("all of it is live");
    assert!(actions.contains(&Action::State(name("api"), name("api").slot(1), State::Maint)), "{actions:?}");

    // Once it is done, the rest is what is left.
    let (again, same) = split(&applied(&live, &before));
    assert!(again.is_empty(), "{again:?}");
    assert_eq!(same, rest);
}

#[test]
fn an_instance_that_is_gone_does_not_wait_for_a_reload() {
    let tags: [&[&str]; 3] = [&["enable"], &["enable", "slots=0"], &["enable", "slots=1"]];
    let before = after(&[("last", tags[0]), ("bare", tags[1]), ("taken", tags[2])], FOREIGN);
    let mut next = built(&[("bare", tags[1]), ("taken", &["enable", "slots=1", "maxconn=7"])]);
    for (service, more) in [("bare", 1), ("taken", 3)] {
        let backend = next.desired.backends.get_mut(&name(service)).expect("one of them");
        let other = |n: u16| {
            let id = crate::desired::InstanceId::new(&format!("other-{n}"));
            crate::desired::Instance { id, port: 90 + n, ..backend.instances[0].clone() }
        };
        backend.instances = (0..more).map(other).collect();
    }
    next.desired.backends.get_mut(&name("bare")).expect("bare").instances.clear();
    let split = |before: &Observed| {
        let plan = plan(&next, before, Strategy::UseExisting).expect("no conflict").plan;
        plan.split(Plan::gone(&next, before, Duration::ZERO))
    };
    let (live, rest) = split(&before);
    let out = |service: &str| Action::State(name(service), name(service).slot(1), State::Maint);
    assert_eq!(run_time_changes(&live, &before), Some(vec![out("bare"), out("last"), out("taken")]));
    let (again, same) = split(&applied(&live, &before));
    assert!(again.is_empty(), "{again:?}");
    assert_eq!(same, rest, "what waits is the same change as before");
}

#[test]
fn an_instance_that_is_gone_is_out_of_a_foreign_backend_despite_a_conflict() {
    let before = after(&[("plain", &["enable"])], FOREIGN);
    let text = before.text.to_string().replace("backend plain", "backend plain\n  balance leastconn");
    let before = observed(&text);
    let mut next = built(&[("plain", &["enable"])]);
    next.desired.backends.get_mut(&name("plain")).expect("plain").instances.clear();
    let gone = Some(vec![Action::State(name("plain"), name("plain").slot(1), State::Maint)]);
    for strategy in [Strategy::UseExisting, Strategy::CreateNew] {
        let planned = plan(&next, &before, strategy).expect("no conflict");
        assert_eq!(planned.notes.len(), 1);
        assert_eq!(run_time_changes(&planned.plan, &before), gone);
    }
    plan(&next, &before, Strategy::FailOnConflict).expect_err("a conflict");
    assert_eq!(run_time_changes(&Plan::gone(&next, &before, Duration::ZERO), &before), gone);
}

#[test]
fn two_owners_share_one_haproxy() {
    let foreign = "backend api\n  description nomad-haproxy:other default/api\n  mode http\n  server api_1 10.9.9.9:1 # {\"owner\":\"other\",\"id\":\"x\",\"alloc\":\"\"}\n";
    let planned = plan(&built(&[]), &observed(foreign), Strategy::UseExisting).expect("no conflict");
    assert!(planned.plan.is_empty(), "{:?}", planned.plan);
}

#[test]
fn a_backend_lingers_without_its_instances_until_its_time_or_a_reload() {
    let at = |seconds| Duration::from_secs(seconds);
    let before = after(&[("api", &["enable"])], FOREIGN);
    let plan_of = |services: &[(&str, &[&str])], observed: &Observed, now| {
        plan_at(&built(services), observed, Strategy::UseExisting, now).expect("no conflict")
    };
    let Planned { plan: gone, next, .. } = plan_of(&[], &before, at(1000));
    assert_eq!(
        run_time_changes(&gone, &before),
        Some(vec![Action::State(name("api"), name("api").slot(1), State::Maint)])
    );
    assert_eq!(next, Some(at(1060)));
    let empty = applied(&gone, &before);
    assert!(plan_of(&[], &empty, at(1059)).plan.is_empty(), "it stays");
    assert_eq!(plan_of(&[], &empty, at(1060)).plan.edits[&name("api")], DELETE, "its time is over");
    assert_eq!(plan_of(&[("new", &["enable"])], &empty, at(1001)).plan.edits[&name("api")], DELETE, "a reload");
    let back = plan_of(&[("api", &["enable"])], &empty, at(1059)).plan;
    assert!(back.is_live() && !back.is_empty(), "it comes back without a reload: {back:?}");
}

#[test]
fn a_reload_gives_nobody_the_name_of_a_backend_that_lingers() {
    let full = after(&[("web-app", &["enable"])], FOREIGN);
    let at = Duration::from_secs;
    let services: [(&str, &[&str]); 2] = [("web_app", &["enable"]), ("new", &["enable"])];
    let of = |before: &Observed, services: &[(&str, &[&str])], now: Duration| {
        plan_at(&built_over(&before.present(), services), before, Strategy::UseExisting, now).expect("no conflict")
    };
    let empty = applied(&of(&full, &services[..1], at(1000)).plan, &full);
    let joined = of(&empty, &services, at(1001));
    assert!(!joined.plan.is_live(), "`new` takes a reload");
    assert_eq!(joined.next, Some(at(1060)));
    let joined = applied(&joined.plan, &empty);
    assert_eq!(joined.present().backends[&name("web_app")].holders[0].name, "web-app");
    assert!(of(&joined, &services, at(1001)).plan.is_empty());
    let over = applied(&of(&joined, &services, at(1060)).plan, &joined);
    let free = of(&over, &services, at(1060)).plan;
    assert!(!over.backends.contains_key("web_app") && matches!(free.edits[&name("web_app")], Edit::Create { .. }));
}

#[test]
fn who_may_share_the_backend_of_a_service_that_is_gone_sets_it_up_at_once() {
    let before = after(&[("api", &["enable"])], FOREIGN);
    let services: [(&str, &[&str]); 1] = [("web", &["enable", "backend.name=api", "balance=first"])];
    let of = |before: &Observed| {
        let built = built_over(&before.present(), &services);
        assert_eq!(built.notes, []);
        plan_at(&built, before, Strategy::UseExisting, Duration::from_secs(1000)).expect("no conflict").plan
    };
    let after = applied(&of(&before), &before);
    assert_eq!(after.backends["api"].balance, "first");
    assert!(of(&after).is_empty(), "{:?}", of(&after));
}

#[test]
fn an_instance_that_is_gone_leaves_a_backend_that_is_left_out() {
    let before = after(&[("api", &["enable"])], FOREIGN);
    let mut next = built(&[("api", &["enable", "balance=first"])]);
    next.desired.backends.get_mut(&name("api")).expect("api").instances.clear();
    let options = Options::new(owner());
    let plan = Plan::new(&next, &before, &options, &LeftOut::from_iter([Part::Backend(name("api"))]))
        .expect("no conflict")
        .plan;
    assert_eq!(
        run_time_changes(&plan, &before),
        Some(vec![Action::State(name("api"), name("api").slot(1), State::Maint)])
    );
}

#[test]
fn an_instance_that_is_gone_leaves_a_backend_that_its_service_cannot_have() {
    let text =
        "backend api\n  balance leastconn\n  server api_1 10.0.0.1:80 weight 1 # {\"owner\":\"nomad\",\"id\":\"x\"}\n";
    let out = Some(vec![Action::State(name("api"), name("api").slot(1), State::Maint)]);
    for (strategy, text) in [
        (Strategy::UseExisting, text.to_owned()),
        (Strategy::CreateNew, text.to_owned()),
        (Strategy::UseExisting, text.replace("backend", "listen")),
    ] {
        let before = observed(&text);
        let planned = plan(&built(&[("api", &["enable"])]), &before, strategy).expect("no conflict");
        assert_eq!(run_time_changes(&planned.plan, &before), out, "{text}");
        assert!(planned.notes[0].text.starts_with("not routed"), "{:?}", planned.notes);
    }
}

#[test]
fn a_persons_server_of_the_same_name_is_not_touched() {
    let foreign = "  server plain_1 127.0.0.1:7 # mine\n";
    let ours = "  server plain_1 10.0.0.1:80 # {\"owner\":\"nomad\",\"id\":\"x\"}\n";
    for lines in [[foreign, ours], [ours, foreign]] {
        let before = observed(&format!("backend plain\n  mode http\n{}", lines.concat()));
        for services in [&[("plain", &["enable"][..])][..], &[]] {
            let planned = plan(&built(services), &before, Strategy::UseExisting).expect("no conflict");
            let text = applied(&planned.plan, &before).text.to_string();
            assert!(text.contains(foreign) && !text.contains(ours), "{text}");
        }
    }
}

#[test]
fn a_copied_server_line_is_written_once() {
    let before = after(&[("api", &["enable"])], FOREIGN).text.to_string();
    let line = before.lines().find(|line| line.contains("server api_1")).expect("the server");
    let copied = before.replace(line, &format!("{line}\n{line}"));
    let repaired = after(&[("api", &["enable"])], &copied);
    let lines = repaired.text.lines().iter().filter(|line| line.contains("server api_1 ")).count();
    assert!(lines <= 1 && repaired.backends["api"].drifted.is_empty(), "{}", repaired.text);
    assert!(repaired.backends["api"].servers.iter().any(Server::is_enabled));
}

#[test]
fn our_servers_are_outside_of_conditional_blocks() {
    let conditional =
        "backend plain\n  mode http\n  server a 127.0.0.1:1\n.if defined(X)\n  server b 127.0.0.1:2\n.endif\n";
    let written = after(&[("plain", &["enable"])], conditional).text.to_string();
    let (ours, block) = (written.find("plain_1").expect("ours"), written.find(".if").expect("the block"));
    assert!(ours < block, "{written}");
    assert_eq!(after(&[], &written).text.to_string(), conditional);
    // A person puts a block around one of ours, and around a setting.
    let ours = after(&[("api", &["enable"])], "").text.to_string();
    for line in ours.split_inclusive('\n').filter(|line| line.starts_with(' ')) {
        let text = ours.replace(line, &format!(".if false\n{line}.endif\n"));
        let repaired = after(&[("api", &["enable"])], &text);
        assert_eq!(after(&[("api", &["enable"])], &repaired.text.to_string()), repaired);
        assert!(repaired.text.to_string().contains(".if false\n.endif\n"), "{}", repaired.text);
    }
}

#[test]
fn a_line_of_an_empty_word_goes_with_the_next_pass() {
    let written = after(&[("api", &["enable"])], "").text.to_string();
    for line in ["  \"\"\n", "  ''\n", " \\\n"] {
        assert_eq!(after(&[("api", &["enable"])], &format!("{written}{line}")).text.to_string(), written);
    }
}

#[test]
fn a_backend_that_is_there_twice_is_left_alone() {
    let ours = after(&[("api", &["enable"])], "").text.to_string();
    for text in [format!("{ours}{ours}"), format!("{ours}listen api\n  bind :1\n")] {
        for services in [&[("api", &["enable", "balance=first"][..])][..], &[]] {
            let planned = plan(&built(services), &observed(&text), Strategy::UseExisting).expect("no conflict");
            assert!(planned.plan.is_empty(), "{:?}", planned.plan);
            assert_eq!(planned.notes.len(), services.len(), "{:?}", planned.notes);
        }
    }
}

#[test]
fn the_names_of_a_template_are_taken() {
    let before = observed("backend plain\n  mode http\n  server-template plain_ 1-3 127.0.0.1:1\n");
    let planned = plan(&built(&[("plain", &["enable"])]), &before, Strategy::UseExisting).expect("no conflict");
    let after = applied(&planned.plan, &before);
    assert_eq!(after.backends["plain"].servers[0].name, name("plain").slot(4));
}

#[test]
fn a_static_algorithm_takes_no_weight_at_run_time() {
    let before = after(&[("api", &["enable", "balance=source"])], FOREIGN);
    let heavier = plan(&built(&[("api", &["enable", "balance=source", "weight=9"])]), &before, Strategy::UseExisting);
    assert!(!heavier.expect("no conflict").plan.is_live());
}

#[test]
fn an_agent_that_somebody_put_into_our_backend_goes_and_keeps_no_spares_away() {
    let services: [(&str, &[&str]); 1] = [("api", &["enable"])];
    let with_agent = |servers: &str| {
        let header = "backend api\n  description nomad-haproxy:nomad api default/api\n  mode http\n";
        observed(&format!("{header}  default-server agent-check agent-port 1\n{servers}"))
    };
    let before = with_agent("");
    let planned = plan(&built_over(&before.present(), &services), &before, Strategy::UseExisting).expect("no conflict");
    let after = applied(&planned.plan, &before);
    assert!(!after.text.to_string().contains("agent-check"), "{}", after.text);
    assert_eq!((after.backends["api"].servers.len(), planned.notes), (2, vec![]));
    // Until the file is written, the agent may put a spare server into service.
    let spare =
        with_agent("  server api_1 127.0.0.1:1 disabled weight 1 # {\"owner\":\"nomad\",\"freed\":\"999000\"}\n");
    let planned = plan_at(&built(&[]), &spare, Strategy::UseExisting, Duration::from_secs(1000)).expect("no conflict");
    assert_eq!(planned.plan.edits[&name("api")], DELETE);
}

#[test]
fn what_the_process_does_by_itself_is_left_alone() {
    let text = "backend shop\n  default-server agent-check agent-port 1\n  server shop_1 10.0.0.1:1 weight 5 # {\"owner\":\"nomad\",\"id\":\"x\",\"alloc\":\"y\"}\n";
    let changes_by_agent = |text: &str| {
        let observed = observed(text);
        let mut process = Runtime::of(&observed);
        for server in process.servers.values_mut() {
            (server.state, server.weight) = (State::Drain, Some(1));
        }
        Changes::new(&process, &observed, &observed, &Growth::default())
    };
    assert_eq!(changes_by_agent(text), Changes::default());
    let changes = changes_by_agent(&text.replace("agent-check agent-port 1", "inter 1s"));
    assert_eq!(changes.rest.len(), 2, "an edit by hand is undone: {changes:?}");
}

#[test]
fn a_section_of_an_unknown_kind_behind_ours_stays_where_it_is() {
    let section = "future_section foo\n  server ring1 127.0.0.1:514\n  mode x\n  # the end\n";
    let written = after(&[("api", &["enable"])], FOREIGN);
    let text = format!("{}{section}", written.text);
    for services in [&[("api", &["enable", "balance=leastconn"][..])][..], &[("other", &["enable"])], &[]] {
        let after = after(services, &text).text.to_string();
        assert!(after.contains(section), "{after}");
        assert_eq!(after.contains("backend api"), services.iter().any(|(name, _)| *name == "api"));
    }
    assert_eq!(after(&[], &text).text.to_string(), format!("{FOREIGN}{section}"));
}

#[test]
fn a_weight_that_no_tag_gives_is_the_inherited_one_and_is_written() {
    let text = "backend shop\n  mode http\n  default-server weight 100\n  server hand 10.0.0.9:1\n";
    let weight = |tags: &[&str], text: &str| {
        let after = applied(
            &plan(&built(&[("shop", tags)]), &observed(text), Strategy::UseExisting).expect("no conflict").plan,
            &observed(text),
        );
        after.backends["shop"].servers[0].options.weight
    };
    assert_eq!(weight(&["enable"], text), Some(100));
    assert_eq!(weight(&["enable", "weight=7"], text), Some(7));
    assert_eq!(weight(&["enable"], "defaults\n  default-server weight 30\n"), Some(30));
    assert_eq!(weight(&["enable"], ""), Some(1));
    let drifted = "backend shop\n  description nomad-haproxy:nomad default/shop\n  default-server weight 9\n";
    assert_eq!(weight(&["enable"], drifted), Some(1), "of our own backend, which is written without it");
}

#[test]
fn only_held_instances_stay() {
    let key = |name: &str| ServiceKey { namespace: "default".into(), name: name.into() };
    // Two services share a backend of ours, and two share an existing one.
    let services: [(&str, &[&str]); 4] = [
        ("blue", &["enable", "backend.name=shop"]),
        ("green", &["enable", "backend.name=shop"]),
        ("red", &["enable", "backend=custom", "backend.name=plain"]),
        ("grey", &["enable", "backend=custom", "backend.name=plain"]),
    ];
    let before = after(&services, FOREIGN);
    let mut empty = built(&[]);
    empty.held.services.extend([key("blue"), key("red")]);
    let planned = plan(&empty, &before, Strategy::UseExisting).expect("no conflict").plan;
    let after = applied(&planned, &before);
    let seated = |name: &str| {
        let occupants = after.backends[name].servers.iter().filter_map(|server| server.occupant.service());
        occupants.map(|service| service.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!((seated("shop"), seated("plain")), (vec!["blue".to_owned()], vec!["red".to_owned()]));
    // A namespace that could not be read holds everything in it, a single instance only itself.
    empty.held = Held { namespaces: ["default".to_owned()].into(), ..Held::default() };
    assert!(plan(&empty, &before, Strategy::UseExisting).expect("no conflict").plan.is_empty());
    empty.held = Held { instances: [InstanceId::new("green-1")].into(), ..Held::default() };
    let planned = plan(&empty, &before, Strategy::UseExisting).expect("no conflict").plan;
    assert_eq!(applied(&planned, &before).backends["shop"].servers.iter().filter(|s| s.is_enabled()).count(), 1);
}

/// Lines of 0.1 do not name their service.
#[test]
fn a_line_of_0_1_is_of_the_only_service_of_its_backend_which_is_written_out_without_a_reload() {
    let services: [(&str, &[&str]); 2] =
        [("api", &["enable"]), ("red", &["enable", "backend=custom", "backend.name=plain"])];
    let new = after(&services, FOREIGN);
    let old = new.text.lines().concat().replace(",\"service\":\"default/api\"", "");
    let old = observed(&old.replace("nomad-haproxy:nomad api ", "nomad-haproxy:nomad "));
    assert_eq!(old.backends["api"].servers, new.backends["api"].servers);
    let planned = plan(&built(&services), &old, Strategy::UseExisting).expect("no conflict").plan;
    assert!(planned.is_live());
    assert_eq!(applied(&planned, &old).text, new.text);
    // In an existing backend it is added without a reload; until then it stays while anything is held.
    let old = observed(&new.text.lines().concat().replace(",\"service\":\"default/red\"", ""));
    let planned = plan(&built(&services), &old, Strategy::UseExisting).expect("no conflict").plan;
    assert!(!planned.is_empty() && planned.is_live());
    assert_eq!(old.namespaces(), ["default".to_owned()].into());
    let mut empty = built(&[]);
    empty.held.services.insert(ServiceKey { namespace: "x".into(), name: "y".into() });
    let planned = plan(&empty, &old, Strategy::UseExisting).expect("no conflict").plan;
    assert!(!planned.edits.contains_key(&name("plain")), "{planned:?}");
}

/// Of two services that shared a backend under 0.1 one is left: a line that names neither is not assigned to that one.
#[test]
fn a_line_of_0_1_in_a_shared_backend_stays_while_anything_is_held_though_one_service_is_left() {
    let before = observed(
        "backend api\n  description nomad-haproxy:nomad default/api default/shop\n  mode http\n  \
         server api_1 10.0.0.1:1000 weight 1 # {\"alloc\":\"0a-1\",\"id\":\"i0\",\"owner\":\"nomad\"}\n",
    );
    // The second has no name that a backend could have, so it is held.
    let services: [(&str, &[&str]); 2] = [("api", &["enable"]), (" /api", &["enable"])];
    let pass = |before: &Observed| {
        plan(&built_over(&before.present(), &services), before, Strategy::UseExisting).expect("no conflict").plan
    };
    let after = applied(&pass(&before), &before);
    assert!(after.text.to_string().contains("server api_1 10.0.0.1:1000 "), "{}", after.text);
    assert_eq!(after.backends["api"].ownership.services().len(), 1, "{}", after.text);
    assert!(pass(&after).is_empty(), "{:?}", pass(&after));
}

/// Whether a plan that was reviewed at one time is allowed at another.
fn permitted(reviewed: (&Planned, &Observed), now: (&Planned, &Observed)) -> Result<(), String> {
    let review = Review::new(&reviewed.0.plan, reviewed.1, &owner(), Duration::from_secs(100));
    let file = Reviews::One(Box::new(review)).to_json().expect("it is JSON");
    let Ok(Reviews::One(review)) = Reviews::read(&file) else { panic!("what was written is read: {file}") };
    Permit::new(&review, &owner()).check(&now.0.plan, now.1).map_err(|difference| difference.to_string())
}

#[test]
fn what_was_reviewed_does_not_depend_on_the_time() {
    let services: [(&str, &[&str]); 2] = [("api", &["enable", "drain=5s"]), ("web", &["enable"])];
    let before = after(&services, FOREIGN);
    let at = |built: &Built, observed: &Observed, seconds| {
        plan_at(built, observed, Strategy::UseExisting, Duration::from_secs(seconds)).expect("no conflict")
    };
    let gone = built(&[]);
    let (then, now) = (at(&gone, &before, 100), at(&gone, &before, 130));
    assert_ne!(then.plan, now.plan, "the stamps differ");
    assert_eq!(permitted((&then, &before), (&now, &before)), Ok(()));

    // A drain that is over by then.
    let draining = applied(&then.plan, &before);
    let more = built(&[("new", &["enable"])]);
    let mut held = more.clone();
    held.desired.backends.insert(name("api"), built(&services).desired.backends[&name("api")].clone());
    held.desired.backends.get_mut(&name("api")).expect("just put there").instances.clear();
    let (then, now) = (at(&held, &draining, 101), at(&held, &draining, 110));
    assert_ne!(then.plan.edits.len(), now.plan.edits.len());
    assert_eq!(permitted((&then, &draining), (&now, &draining)), Ok(()));
}

#[test]
fn what_differs_from_what_was_reviewed_is_named() {
    let planned = |services: &[(&str, &[&str])], text: &Observed| {
        plan(&built(services), text, Strategy::UseExisting).expect("no conflict")
    };
    let (api, moved) = ([("api", &["enable"][..])], [("api", &["enable", "weight=3"][..])]);
    let before = observed(&format!("# _md5hash=1\n# _version=1\n{FOREIGN}"));
    let reviewed = planned(&api, &before);
    let check = |now: &Planned, text: &Observed| permitted((&reviewed, &before), (now, text));
    assert_eq!(check(&reviewed, &before), Ok(()));
    let renumbered = observed(&format!("# _version=2\n{FOREIGN}"));
    assert_eq!(check(&planned(&api, &renumbered), &renumbered), Ok(()), "only the API's header");
    for (edited, words) in [
        (FOREIGN.replace("127.0.0.1:1", "127.0.0.1:2"), "`backend plain`"),
        (format!("# mine\n{FOREIGN}"), "the lines outside of all sections"),
        (
            FOREIGN.replace("backend picky\n  balance leastconn\n", "") + "backend picky\n  balance leastconn\n",
            "the order",
        ),
    ] {
        let edited = observed(&edited);
        let said = check(&planned(&api, &edited), &edited).expect_err(words);
        assert!(said.contains(words) && said.contains("plan --out"), "{words}: {said}");
    }
    let said = check(&planned(&moved, &before), &before).expect_err("another weight");
    assert!(said.contains("`api`"), "{said}");
    let done = applied(&reviewed.plan, &before);
    let said = check(&planned(&api, &done), &done).expect_err("it was applied");
    assert!(said.contains("applied already"), "{said}");
}

#[test]
fn an_instance_with_an_unclear_tag_stays_in_its_slot_or_out() {
    let before = after(&[("api", &["enable"]), ("api", &["enable"])], FOREIGN);
    let of = |tags: &[&str]| {
        let built = built_over(&before.present(), &[("api", &["enable"]), ("api", tags)]);
        plan(&built, &before, Strategy::UseExisting).expect("no conflict").plan
    };
    assert!(of(&["enable=flase", "weight=9"]).is_empty(), "it stays");
    assert!(!of(&["enable=false"]).is_empty());
    let new = built_over(&before.present(), &[("api", &["enable"]), ("api", &["enable"]), ("api", &["enable=yes"])]);
    assert!(plan(&new, &before, Strategy::UseExisting).expect("no conflict").plan.is_empty(), "it is not added");
}

#[test]
fn a_backend_whose_service_becomes_static_stays_as_it_is() {
    let before = after(&[("api", &["enable", "balance=first"]), ("plain", &["enable"])], FOREIGN);
    let services: [(&str, &[&str]); 2] =
        [("api", &["enable", "backend=static"]), ("plain", &["enable", "backend=static"])];
    let planned = plan(&built_over(&before.present(), &services), &before, Strategy::UseExisting).expect("no conflict");
    assert!(planned.plan.is_empty(), "{:?}", planned.plan);
}

/// The description lists the services of a backend, and since 0.2 names the backend itself.
#[test]
fn a_change_of_nothing_but_the_description_takes_no_reload() {
    let alone: (&str, &[&str]) = ("blue", &["enable", "backend.name=shop"]);
    let joined: (&str, &[&str]) = ("green", &["enable", "backend.name=shop"]);
    let before = after(&[alone], FOREIGN);
    let old = observed(&before.text.to_string().replace("nomad-haproxy:nomad shop ", "nomad-haproxy:nomad "));
    assert_ne!(old.text, before.text);
    let both = after(&[alone, joined], &before.text.to_string());
    for (services, from, described) in [
        (&[alone][..], &old, "shop default/blue\n"),
        (&[alone, joined], &before, "shop default/blue default/green\n"),
        (&[alone], &both, "shop default/blue\n"),
    ] {
        let built = built_over(&from.present(), services);
        let plan = plan(&built, from, Strategy::UseExisting).expect("no conflict").plan;
        assert!(plan.is_live() && !plan.is_empty(), "{plan:?}");
        let after = applied(&plan, from).text.to_string();
        assert!(after.contains(described), "{after}");
        let (live, waiting) = plan.split(Plan::default());
        assert!(waiting.is_empty() && applied(&live, from).text.to_string() == after);
    }
    let commented = observed(&old.text.to_string().replace("default/blue\n", "default/blue # mine\n"));
    let plan = plan(&built(&[alone]), &commented, Strategy::UseExisting).expect("no conflict").plan;
    assert!(applied(&plan, &commented).text.to_string().contains("shop default/blue # mine\n"));
    assert!(applied(&plan, &commented).backends["shop"].is_ours());
}

#[test]
fn a_copy_made_by_hand_is_not_touched_and_takes_no_instance_away() {
    let before = after(&[("api", &["enable"])], FOREIGN).text.to_string();
    let section = &before[before.find("backend api").expect("ours")..];
    let old = |text: &str| text.replace("nomad-haproxy:nomad api ", "nomad-haproxy:nomad ");
    for copy in
        [section.replacen("backend api", "backend copy", 1), old(&section.replacen("backend api", "backend copy", 1))]
    {
        let both = observed(&format!("{before}{copy}"));
        for services in [&[("api", &["enable", "balance=first"][..])][..], &[]] {
            let planned =
                plan(&built_over(&both.present(), services), &both, Strategy::UseExisting).expect("no conflict");
            let after = applied(&planned.plan, &both);
            assert!(after.text.to_string().ends_with(&copy), "{}", after.text);
            assert_eq!(after.backends.get("api").is_some_and(ObservedBackend::is_ours), !services.is_empty());
        }
    }
}

const SERVERS: Capabilities = Capabilities { servers: true, backends: false };

/// Plans on a HAProxy with a socket, and the run-time changes, if it needs no reload.
fn grown(built: &Built, before: &Observed) -> (Plan, Option<Vec<Action>>) {
    grown_beside(built, before, &[])
}

/// The same, where the process has servers that the file lacks.
fn grown_beside(built: &Built, before: &Observed, taken: &[u32]) -> (Plan, Option<Vec<Action>>) {
    let capabilities = SERVERS;
    let taken = taken.iter().map(|number| Surplus::Server(name("api"), name("api").slot(*number))).collect();
    let options = Options { capabilities, taken, ..Options::new(owner()) };
    let plan = Plan::new(built, before, &options, &LeftOut::default()).expect("no conflict").plan;
    let growth = Growth::new(capabilities, &built.desired);
    let changes = Changes::new(&Runtime::of(before), before, &applied(&plan, before), &growth);
    let actions = plan.is_live().then(|| changes.actions());
    (plan, actions)
}

#[test]
fn a_server_that_is_added_at_run_time_has_all_that_its_line_inherits() {
    let tags = ["enable", "slots=0", "check.interval=300ms", "check.port=99", "check.rise=1", "maxconn=9"];
    let before = after(
        &[("api", &tags)],
        &FOREIGN.replace("mode http\nbackend plain", "mode http\n  default-server maxqueue 3 inter 7s\nbackend plain"),
    );
    let mut next = built(&[("api", &tags), ("api", &tags)]);
    let (_, actions) = grown(&next, &before);
    let server = || (name("api"), name("api").slot(2));
    let new = |gated| NewServer {
        address: "10.0.0.1".parse().expect("an address"),
        port: 80,
        checked: true,
        gated,
        options: "check inter 300ms maxconn 9 maxqueue 3 port 99 rise 1 weight 1".to_owned(),
    };
    let all = |gated| {
        vec![
            Action::Add(server().0, server().1, new(gated)),
            Action::Check(server().0, server().1),
            Action::State(server().0, server().1, State::Ready),
        ]
    };
    assert_eq!(actions, Some(all(false)));
    // From HAProxy 3.1 it gets no traffic before its first passing check.
    next.desired.backends.get_mut(&name("api")).expect("api").gated = true;
    assert_eq!(grown(&next, &before).1, Some(all(true)));
}

#[test]
fn what_cannot_be_added_at_run_time_is_structural() {
    let service: &[&str] = &["enable", "slots=0"];
    let (one, two) = ([("api", service)], [("api", service), ("api", service)]);
    let is_live = |text: &str, next: &Built| {
        let (plan, actions) = grown(next, &after(&one, text));
        assert_eq!((plan.is_live(), plan.waiting().is_empty()), (actions.is_some(), actions.is_some()));
        actions.is_some()
    };
    assert!(is_live(FOREIGN, &built(&two)));
    let base = |line: &str| FOREIGN.replacen("  mode http\n", &format!("  mode http\n{line}"), 1);
    for line in [
        "  default-server agent-check agent-port 1\n",
        "  default-server inter \"${X}\"\n",
        ".if defined(X)\n  default-server maxqueue 3\n.endif\n",
    ] {
        assert!(!is_live(&base(line), &built(&two)), "{line}");
    }
    // Its `defaults` are in another file.
    assert!(!is_live("", &built(&two)));
    // HAProxy takes no server in a backend with a static algorithm, and resolves no host name.
    let source: &[&str] = &["enable", "slots=0", "balance=source"];
    let before = after(&[("api", source)], FOREIGN);
    assert_eq!(grown(&built(&[("api", source), ("api", source)]), &before).1, None);
    let mut named = built(&two);
    named.desired.backends.get_mut(&name("api")).expect("api").instances[1].address =
        crate::desired::Address::Host("db".to_owned());
    assert!(!is_live(FOREIGN, &named));
}

/// The names of the servers of `api` after a plan.
fn names_after(plan: &Plan, before: &Observed) -> Vec<String> {
    let after = applied(plan, before);
    after.backends["api"].servers.iter().map(|server| server.name.to_string()).collect()
}

#[test]
fn a_backend_has_no_other_servers_than_those_of_its_instances() {
    let service: &[&str] = &["enable", "slots=8"];
    let three = [("api", service), ("api", service), ("api", service)];
    // With spares, as the API alone writes it.
    let before = after(&three, FOREIGN);
    assert_eq!(before.backends["api"].servers.len(), 8);
    let mut next = built(&three);
    next.desired.backends.get_mut(&name("api")).expect("api").instances.remove(1);
    let (plan, actions) = grown(&next, &before);
    assert_eq!(names_after(&plan, &before), ["api_1", "api_3"]);
    let out = Action::State(name("api"), name("api").slot(2), State::Maint);
    assert_eq!(actions, Some(vec![out]), "who left is out");
    let after = applied(&plan, &before);
    let surplus = Changes::new(&Runtime::of(&before), &before, &after, &Growth::new(SERVERS, &next.desired)).surplus;
    assert_eq!(surplus.len(), 6, "and its server is removed with the spares: {surplus:?}");
    assert!(grown(&next, &after).0.is_empty());
}

#[test]
fn a_name_is_free_once_the_process_has_no_server_of_it() {
    let service: &[&str] = &["enable"];
    let (one, two) = ([("api", service)], [("api", service), ("api", service)]);
    let before = after(&one, FOREIGN);
    let before = applied(&grown(&built(&one), &before).0, &before);
    assert_eq!(names_after(&grown_beside(&built(&two), &before, &[2, 3]).0, &before), ["api_1", "api_4"]);
    assert_eq!(names_after(&grown(&built(&two), &before).0, &before), ["api_1", "api_2"]);
}

#[test]
fn a_new_instance_gets_a_server_of_its_own_while_the_old_one_serves() {
    let service: &[&str] = &["enable", "slots=0", "maxconn=5"];
    let before = after(&[("api", service)], FOREIGN);
    let mut next = built(&[("api", service)]);
    let instance = &mut next.desired.backends.get_mut(&name("api")).expect("api").instances[0];
    instance.id = InstanceId::new("another");
    let (plan, actions) = grown(&next, &before);
    assert_eq!((names_after(&plan, &before), actions.is_some()), (vec!["api_2".to_owned()], true));
    let after = applied(&plan, &before);
    let mut changes = Changes::new(&Runtime::of(&before), &before, &after, &Growth::new(SERVERS, &next.desired));
    let late = changes.handed_over(&Runtime::of(&before), &after);
    assert_eq!((late.len(), changes.out.len()), (1, 0), "the old one leaves when the new one is in");
}

#[test]
fn an_instance_gets_another_server_for_what_does_not_change_at_run_time() {
    let before = after(&[("api", &["enable", "slots=0", "maxconn=5"])], FOREIGN);
    for tags in [&["maxconn=7"][..], &["maxconn=5", "ssl", "sni=a.example"], &["maxconn=5", "proxy-protocol"]] {
        let next = built(&[("api", &[&["enable", "slots=0"], tags].concat())]);
        let (plan, actions) = grown(&next, &before);
        assert_eq!((names_after(&plan, &before), actions.is_some()), (vec!["api_2".to_owned()], true), "{tags:?}");
        let after = applied(&plan, &before);
        let mut changes = Changes::new(&Runtime::of(&before), &before, &after, &Growth::new(SERVERS, &next.desired));
        let late = changes.handed_over(&Runtime::of(&before), &after);
        assert_eq!((late.len(), changes.out.len()), (1, 0), "the old server serves until the new one is in");
    }
    // Where there is a reload anyway, or only a reload resolves its name, it keeps its server.
    let mut named = built(&[("api", &["enable", "slots=0", "maxconn=7"])]);
    instance_of(&mut named).address = "db.internal".parse().expect("a name");
    let settings = built(&[("api", &["enable", "slots=0", "maxconn=7", "cookie=SRV"])]);
    for next in [named, settings] {
        let (plan, actions) = grown(&next, &before);
        assert_eq!((names_after(&plan, &before), actions), (vec!["api_1".to_owned()], None));
    }
}

#[test]
fn a_server_that_verifies_comes_at_run_time_where_haproxy_has_the_cas_of_its_system() {
    for (global, server, is_live) in [("", "api_2", true), ("httpclient.ssl.verify none\n", "api_1", false)] {
        let text = format!("global\n{global}{FOREIGN}");
        let before = after(&[("api", &["enable", "slots=0"])], &text);
        let service: &[&str] = &["enable", "slots=0", "ssl"];
        let (plan, actions) = grown(&built(&[("api", service)]), &before);
        assert_eq!((names_after(&plan, &before), actions.is_some()), (vec![server.to_owned()], is_live));
    }
}

#[test]
fn spare_servers_follow_what_their_instance_needs() {
    let before = after(&[("api", &["enable", "slots=2"])], FOREIGN);
    let next = built(&[("api", &["enable", "slots=2", "ssl", "ssl.verify=none", "cookie=SRV"])]);
    let planned = plan(&next, &before, Strategy::UseExisting).expect("no conflict").plan;
    let after = applied(&planned, &before);
    let section = after.backend(&name("api")).expect("api");
    assert_eq!(section.servers.len(), 3);
    assert!(section.servers.iter().all(|server| server.cookie && server.options.tls.is_some()), "{section:?}");
    let again = plan(&next, &after, Strategy::UseExisting).expect("no conflict").plan;
    assert!(again.edits.is_empty(), "{again:?}");
}

fn instance_of(built: &mut Built) -> &mut crate::desired::Instance {
    &mut built.desired.backends.get_mut(&name("api")).expect("api").instances[0]
}

#[test]
fn a_server_that_a_person_added_to_the_process_of_their_backend_is_left_there() {
    let service: &[&str] = &["enable", "backend=custom"];
    let before = after(&[("plain", service), ("api", &["enable"])], FOREIGN);
    let mut process = Runtime::of(&before);
    let ready = process.servers.values().find(|server| server.state == State::Ready).expect("an instance").clone();
    let mut add = |backend: &str, server: &str, state| {
        process.servers.insert((backend.to_owned(), server.to_owned()), RuntimeServer { state, ..ready.clone() });
    };
    add("plain", "plain_77", State::Ready);
    add("plain", "hand", State::Maint);
    add("plain", "plain_78", State::Maint);
    add("api", "api_77", State::Ready);
    add("picky", "picky_1", State::Maint);
    let growth = Growth::new(SERVERS, &crate::desired::Desired::default());
    let changes = Changes::new(&process, &before, &before, &growth);
    let surplus: Vec<String> = changes.surplus.iter().map(Surplus::to_string).collect();
    assert_eq!(surplus, ["api/api_77", "plain/plain_78"]);
    assert_eq!(changes.out.iter().map(|out| out.server.as_str()).collect::<Vec<_>>(), ["api_77"]);
    let alone = Changes::new(&process, &before, &before, &Growth::default());
    assert!(alone.surplus.is_empty() && alone.out.is_empty(), "the API alone removes none: {alone:?}");
    assert_eq!(alone.rest, [Action::State(name("api"), name("api").slot(77), State::Maint)]);
}
