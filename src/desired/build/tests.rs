//! What is built from small catalogs.

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
    let built = built_over(&held_by("shop", &["blue"]), vec![one("blue", 9, "mode=http"), one("green", 1, "mode=tcp")]);
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
    assert_eq!((names(&kept), kept.desired.backends.values().next().expect("one").instances.len()), (vec!["a_b"], 0));
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
    let (old, mut new) = (registration("api", "x", 1, &["enable=true"]), registration("api", "x", 1, &["enable=true"]));
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
    assert!(some.notes.iter().any(|note| note.text.contains("\"c\", and no HAProxy is called so; there are: a, b")));
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
