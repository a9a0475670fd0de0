//! Compares the two writers of the Data Plane API over generated plans: the structured edits and the edit of the text
//! must have the same meaning, and leave what is not ours as it is.

use crate::support::api::{Rig, Way};
use crate::support::controller::{apply, registration, run, stderr, write_catalog};
use crate::support::haproxy::{Haproxy, conditional, foreign_bytes, has_backend, matrix};
use nomad_haproxy::catalog::{Catalog, Registration};
use nomad_haproxy::desired::build::{self, build};
use nomad_haproxy::desired::{Owner, Server, SlotPolicy};
use nomad_haproxy::haproxy::text::ConfigText;
use nomad_haproxy::observed::Observed;
use nomad_haproxy::plan::{self, LeftOut, Plan};
use nomad_haproxy::plane::Plane;
use nomad_haproxy::plane::dataplane::{Dataplane, DataplaneConfig, Write};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

fn owner() -> Owner {
    "nomad".parse().unwrap()
}

fn tags() -> impl proptest::strategy::Strategy<Value = Vec<String>> {
    let optional = |pattern: &'static str| prop::option::of(pattern);
    (
        optional("balance=(leastconn|first|source|uri|hdr\\(X-User\\)|url_param id|random\\(3\\))"),
        optional("mode=(http|tcp)"),
        optional("check\\.(path=/[a-z]{1,5}|type=http|type=tcp|disabled)"),
        optional("check\\.host=[a-z]{1,8}\\.test"),
        optional("check\\.(status=200-299|interval=[1-9]00ms|timeout=2s|rise=3|fall=4|port=81)"),
        optional("(weight=[1-9]|maxconn=[1-9]0|backup|slots=[0-3])"),
        optional("backend=custom|backend.name=shop"),
        optional(
            "(cookie=[a-z]{1,9}|timeout\\.(connect|server|queue|tunnel)=[1-9]00ms|proxy-protocol|proxy-protocol=v1)",
        ),
        optional("ssl"),
        optional("(ssl\\.verify=none|sni=[a-z]{1,8}\\.test|sni=req\\.hdr\\(host\\),field\\(1,:\\))"),
    )
        .prop_map(|(a, b, c, d, e, f, g, h, i, j)| {
            [Some("enable=true".to_owned()), a, b, c, d, e, f, g, h, i, j].into_iter().flatten().collect()
        })
}

fn catalogs() -> impl proptest::strategy::Strategy<Value = Catalog> {
    let one = ("(api|web-app|shop|db)", 0u16..4, tags(), any::<bool>());
    prop::collection::vec(one, 0..9).prop_map(|list| {
        let mut catalog = Catalog::default();
        for (created, (service, id, tags, v6)) in list.into_iter().enumerate() {
            let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
            let mut value = registration(&service, &format!("{service}-{id}"), created as u64, 1000 + id, &tags);
            if v6 {
                value["Address"] = "2001:db8::7".into();
            }
            let one: Registration = serde_json::from_value(value).unwrap();
            let list = catalog.services.entry(one.service()).or_default();
            if list.iter().all(|other| other.id != one.id) {
                list.push(one);
            }
        }
        catalog
    })
}

fn build_options() -> build::Options {
    build::Options {
        prefix: "haproxy.".into(),
        owner: owner(),
        slots: SlotPolicy { min_free: 2, max: 16 },
        init_state: false,
        lingers: false,
        grants: nomad_haproxy::desired::Grants::default(),
        targets: nomad_haproxy::desired::build::TargetNames::default(),
        frontend: None,
    }
}

fn plan(catalog: &Catalog, observed: &Observed) -> Plan {
    let options = plan::Options::new(owner());
    let built = build(catalog, &observed.present(), &build_options());
    Plan::new(&built, observed, &options, &LeftOut::default()).unwrap().plan
}

fn hand_written() -> ConfigText {
    ConfigText::new(&crate::support::haproxy::hand_written(std::path::Path::new("/tmp"), 80))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// From any state to any other in one step, and then there is nothing left to do.
    #[test]
    fn a_plan_leads_where_it_says_and_changes_no_foreign_byte(steps in prop::collection::vec(catalogs(), 1..6)) {
        let mut observed = Observed::new(1, hand_written(), &owner());
        let foreign = foreign_bytes(&observed.text.to_string());
        for catalog in steps {
            let first = plan(&catalog, &observed);
            let text = plan::text::apply(&first, &observed, &owner());
            prop_assert_eq!(foreign_bytes(&text.to_string()), foreign.clone());
            observed = Observed::new(1, text, &owner());
            let second = plan(&catalog, &observed);
            prop_assert!(second.is_empty(), "{:?}\nafter\n{}", second, observed.text);
        }
        let text = plan::text::apply(&plan(&Catalog::default(), &observed), &observed, &owner());
        prop_assert_eq!(text.to_string(), hand_written().to_string(), "everything of ours goes again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn structured_edits_say_the_same_as_the_text() {
    let mut runner = TestRunner::deterministic();
    for series in matrix() {
        let rig = Rig::start(Way::Api, series).await;
        let url = &rig.api.as_ref().unwrap().url;
        let settings = || DataplaneConfig::new(url, "admin", "secret".to_owned().into());
        let plane = |write| Dataplane::new(settings(), owner(), write).unwrap();
        let (structured, text) = (plane(Write::Transaction), plane(Write::Text));
        let mut compared = 0;
        for round in 0..40 {
            let catalog = catalogs().new_tree(&mut runner).unwrap().current();
            let observed = structured.observe().await.unwrap();
            let plan = plan(&catalog, &observed);
            if plan.is_empty() {
                continue;
            }
            // Staging itself fails if what would be written is not what was planned.
            let one = structured.stage(&observed, &plan).await.unwrap();
            let other = text.stage(&observed, &plan).await.unwrap();
            let ours = |text: &ConfigText| {
                // Version 3.0 writes the servers of a new backend in any order.
                let by_name = |mut servers: Vec<Server>| {
                    servers.sort_by(|a, b| a.name.cmp(&b.name));
                    servers
                };
                Observed::new(1, text.clone(), &owner())
                    .managed()
                    .map(|(name, b)| (name, b.settings.clone(), by_name(b.servers.clone())))
                    .collect::<Vec<_>>()
            };
            assert_eq!(ours(&one.text), ours(&other.text), "{plan:?}");
            compared += 1;
            let (plane, staged, dropped) = if round % 2 == 0 { (&structured, one, other) } else { (&text, other, one) };
            structured.abort(dropped).await.unwrap();
            plane.commit(&observed, staged).await.unwrap();
        }
        assert!(compared > 20, "{compared}");
    }
}

/// An API that is older than its HAProxy: it drops `init-state`.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_api_drops_is_seen_before_it_is_committed() {
    let rig = Rig::start(Way::Api, "3.2").await;
    let (gate, env) = rig.gated().await;
    let write = |how: &str| [env.clone(), vec![("HAPROXY_WRITE".to_owned(), how.to_owned())]].concat();
    let service = |name: &str| registration(name, "1", 1, 2001, &["enable=true"]);
    let gates = || rig.haproxy.text().matches("init-state down").count();

    gate.drop_field("init-state");
    write_catalog(&rig.catalog(), &[service("one")]);
    apply(&write("transaction"), &rig.catalog()).await;
    assert_eq!(gates(), 0, "spares start up");
    assert!(apply(&write("transaction"), &rig.catalog()).await.contains("Nothing to do"));
    // Version 3.0 of the API drops it from the text, too, whatever HAProxy it has.
    rig.edit(|text| text + "\nbackend probe from base\n  server probe 127.0.0.1:1 init-state down\n").await;
    let knows = gates() == 1;
    rig.edit(|text| text.split_inclusive('\n').filter(|line| !line.contains("probe")).collect()).await;
    write_catalog(&rig.catalog(), &[service("one"), service("two")]);
    apply(&write("auto"), &rig.catalog()).await;
    assert_eq!(gates(), if knows { 4 } else { 0 }, "the new backend is written as text");

    gate.drop_field("metadata");
    write_catalog(&rig.catalog(), &[service("one"), service("two"), service("three")]);
    let before = rig.haproxy.text();
    let catalog = rig.catalog().display().to_string();
    let output = run(&write("transaction"), &["apply", "--catalog", &catalog]).await;
    assert!(!output.status.success() && stderr(&output).contains("haproxy.write"), "{}", stderr(&output));
    assert_eq!(rig.haproxy.text(), before);
    apply(&write("auto"), &rig.catalog()).await;
    assert!(has_backend(&rig.haproxy.text(), "three"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_conditional_blocks_goes_through_fifty_changes() {
    // On the local plane; through the API it is never written, see file.rs.
    for series in matrix() {
        let rig = Rig::with(Way::Local, series, Haproxy::start_with(series, conditional).await).await;
        let foreign = foreign_bytes(&rig.haproxy.text());
        for change in 0..50_u16 {
            let balance = ["balance=leastconn", "balance=first"][usize::from(change % 2)];
            let list: Vec<_> = (0..=change % 5)
                .map(|n| registration("api", &n.to_string(), n.into(), 1000 + n, &["enable=true", balance]))
                .collect();
            write_catalog(&rig.catalog(), &list);
            apply(&rig.env(), &rig.catalog()).await;
        }
        let now = foreign_bytes(&rig.haproxy.text());
        assert_eq!(now, foreign, "HAProxy {series}");
    }
}
