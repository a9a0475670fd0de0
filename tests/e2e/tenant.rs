//! What a tenant registers affects no other tenant: names that mean something to a parser, copies made by hand, and a
//! hostile tenant beside fifty good services under load.

#[path = "../fuzz/catalog.rs"]
#[allow(dead_code, reason = "whole catalogs are the fuzzer's")]
mod hostile;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::support::api::{Rig, WAYS, Way};
use crate::support::controller::{Controller, apply, registration, run, stderr, stdout, write_catalog};
use crate::support::haproxy::has_backend;
use crate::support::load::Load;
use crate::support::servers::Server;
use crate::support::wait_for;
use nomad_haproxy::catalog::{Catalog, Registration};
use nomad_haproxy::desired::{Desired, Grants, Present, SlotPolicy, build};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};

/// Names that HAProxy, the Data Plane API or we may not read as a name; each alone on its backend.
fn names() -> Vec<String> {
    let words = [
        "from",
        "defaults",
        "default",
        "if",
        "unless",
        "-",
        "--",
        "-f",
        "0",
        "42",
        "GLOBAL",
        "MASTER",
        "global",
        "backend",
        "frontend",
        "listen",
        "server",
        "no",
        "none",
        "null",
        "true",
        "a.",
        ".a",
        "...",
        ":",
        "a:b",
        "_",
        "web",
        "base",
        "HTTPCLIENT",
        "http-errors",
        "userlist",
        "all",
        "1.1.1.1",
    ];
    let long = [198, 199, 200].map(|length| "x".repeat(length));
    words.iter().map(|name| (*name).to_owned()).chain(long).collect()
}

everywhere!(names_that_a_parser_reads_otherwise_are_served_or_left_out, odd_names);

async fn odd_names(rig: Rig, _way: Way) {
    // Each name in the path of a URL, too.
    let env = rig.env_with(&[("HAPROXY_WRITE", "transaction")]);
    let good = registration("good", "good", 1, 2001, &["enable"]);
    let mut catalog = vec![good.clone()];
    for (at, name) in names().iter().enumerate() {
        let tags = ["enable", &format!("backend.name={name}")];
        catalog.push(registration(&format!("service-{at}"), &format!("i{at}"), 2, 2002, &tags));
    }
    // As it comes from Nomad: the name is the service's own.
    for name in ["\n", "a b", ".", "..", "a/b", "é", &"y".repeat(66_000), "%00"] {
        catalog.push(registration(name, &format!("odd-{}", name.len()), 3, 2003, &["enable"]));
    }
    write_catalog(&rig.catalog(), &catalog);
    let path = rig.catalog().display().to_string();
    let first = run(&env, &["apply", "--catalog", &path]).await;
    let said = stdout(&first) + &stderr(&first);
    assert!(has_backend(&rig.haproxy.text(), "good"), "{said}");
    for (at, name) in names().iter().enumerate() {
        let is_noted = said.contains(&format!("service service-{at}:"));
        let is_served = rig.haproxy.running().await.contains_key(&format!("{name}/{name}_1"));
        assert!(is_served != is_noted, "{name}: served {is_served}, noted {is_noted}\n{said}");
        if is_noted {
            eprintln!(
                "{} left out: {}",
                name,
                said.lines().find(|line| line.contains(&format!("service-{at}:"))).unwrap()
            );
        }
    }
    rig.agrees().await;
    let (text, reloads) = (rig.haproxy.text(), rig.haproxy.reloads().await);
    let again = run(&env, &["plan", "--catalog", &path]).await;
    let again = stdout(&again) + &stderr(&again);
    eprintln!("{}", again.lines().last().unwrap_or_default());
    for (at, name) in names().iter().enumerate() {
        let is_noted = said.contains(&format!("service service-{at}:"));
        assert!(is_noted || !again.contains(&format!("+backend {name}\n")), "{name} is written again: {again}");
    }
    assert_eq!((rig.haproxy.text(), rig.haproxy.reloads().await), (text, reloads));
    write_catalog(&rig.catalog(), &[]);
    apply(&env, &rig.catalog()).await;
    rig.has_none();
}

everywhere!(a_persons_backend_is_joined_by_its_name_if_the_settings_say_so, joined);

async fn joined(rig: Rig, way: Way) {
    let named = registration("job", "job", 1, 2001, &["enable", "backend.name=shop"]);
    let other = registration("good", "good", 1, 2002, &["enable"]);
    write_catalog(&rig.catalog(), &[named, other]);
    let catalog = rig.catalog().display().to_string();
    let settings = rig.haproxy.folder().join("settings.json");
    let apply = async |entry: Value| {
        std::fs::write(&settings, json!({"namespaces": entry}).to_string()).unwrap();
        let arguments = ["--config", settings.to_str().unwrap(), "apply", "--catalog", &catalog];
        let output = run(&rig.env(), &arguments).await;
        (stdout(&output) + &stderr(&output), rig.haproxy.text())
    };
    let (said, text) = apply(json!({})).await;
    assert!(said.contains("error: service job: not routed") && said.contains("`namespaces.default.join`"), "{said}");
    assert!(!text.contains("server shop_1") && text.contains("server good_1"), "{way:?}: {text}");
    let (said, text) = apply(json!({"def*": {"join": true}})).await;
    assert!(!said.contains("error") && text.contains("server shop_1"), "{way:?}: {said}{text}");
    // The grant is withdrawn: its server is removed, and nothing else.
    let (_, text) = apply(json!({"def*": {"join": true}, "default": {"backends": ["x"]}})).await;
    assert!(!text.contains("server shop_1") && text.contains("server good_1"), "{way:?}: {text}");
}

everywhere!(a_change_of_just_the_description_costs_no_reload, descriptions);

async fn descriptions(rig: Rig, way: Way) {
    let one = |service: &str| registration(service, service, 1, 2001, &["enable", "backend.name=shared"]);
    let catalog = rig.catalog();
    write_catalog(&catalog, &[one("blue")]);
    apply(&rig.env(), &catalog).await;
    let reloads = rig.haproxy.reloads().await;
    // As 0.1 wrote it, and a copy by hand.
    let new = "nomad-haproxy:nomad shared default/blue";
    rig.edit(|text| text.replace(new, "nomad-haproxy:nomad default/blue")).await;
    let copy = "backend copied\n  description nomad-haproxy:nomad shared default/blue\n  mode http\n  \
                server shared_1 127.0.0.1:2001 weight 1 # {\"alloc\":\"a\",\"id\":\"blue\",\"owner\":\"nomad\"}\n";
    rig.edit(|text| format!("{text}\n{copy}")).await;
    let copied = |text: &str| {
        let at = text.find("backend copied").unwrap();
        text[at..]
            .split("\n\n")
            .next()
            .unwrap()
            .lines()
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect::<BTreeSet<_>>()
    };
    let before = copied(&rig.haproxy.text());
    // The process lacks the copy, which is not ours.
    apply(&rig.env(), &catalog).await;
    let described = |services: &str| {
        let text = rig.haproxy.text();
        assert!(text.contains(&format!("description nomad-haproxy:nomad shared {services}\n")), "{way:?}: {text}");
    };
    described("default/blue");
    write_catalog(&catalog, &[one("blue"), one("green")]);
    apply(&rig.env(), &catalog).await;
    described("default/blue default/green");
    write_catalog(&catalog, &[one("green")]);
    apply(&rig.env(), &catalog).await;
    described("default/green");
    assert_eq!(rig.haproxy.reloads().await, reloads, "{way:?}");
    assert_eq!(copied(&rig.haproxy.text()), before, "{way:?}");
    let nothing = apply(&rig.env(), &catalog).await;
    assert!(nothing.contains("Nothing to do"), "{nothing}");
}

everywhere!(any_number_of_services_shares_a_backend_up_to_what_a_line_takes, crowd);

async fn crowd(rig: Rig, _way: Way) {
    let crowd = |count: usize| -> Vec<Value> {
        let one = |n: usize| {
            let service = format!("{}-{n}", "s".repeat(55));
            registration(&service, &format!("i{n}"), n as u64, 2001, &["enable", "backend.name=crowd"])
        };
        (0..count).map(one).collect()
    };
    let path = rig.catalog().display().to_string();
    let mut before = 0;
    for count in [70, 1500] {
        write_catalog(&rig.catalog(), &crowd(count));
        let output = run(&rig.env(), &["apply", "--catalog", &path]).await;
        let (said, text) = (stdout(&output) + &stderr(&output), rig.haproxy.text());
        let (seated, noted) = (text.matches("\"id\":").count(), said.matches("not routed: the backend crowd").count());
        assert_eq!(seated + noted, count, "{said}");
        assert!(seated >= 70 && seated > before, "{seated} of {count} are served: {said}");
        before = seated;
    }
    rig.agrees().await;
}

/// The namespace of the hostile tenant, who can register anything there.
const EVIL: &str = "evil";
/// How long it runs, in seconds; `TENANT_SECONDS` overrides it.
const SECONDS: u64 = 10;

/// Registrations of the tenant: `count` at once, of any kind.
fn hostile_registrations(runner: &mut TestRunner, count: usize) -> Vec<Registration> {
    let one = hostile::registration().prop_map(|one| Registration { namespace: EVIL.into(), ..one });
    prop::collection::vec(one, count).new_tree(runner).unwrap().current()
}

/// What the tenant may get for these.
fn desired_of(registrations: &[Registration]) -> Desired {
    let mut catalog = Catalog::default();
    for one in registrations {
        catalog.services.entry(one.service()).or_default().push(one.clone());
    }
    let options = build::Options {
        prefix: "haproxy.".into(),
        owner: "nomad".parse().unwrap(),
        slots: SlotPolicy { min_free: 4, max: 256 },
        init_state: true,
        lingers: true,
        grants: Grants::default(),
        targets: nomad_haproxy::desired::build::TargetNames::default(),
        frontend: None,
    };
    build::build(&catalog, &Present::default(), &options).desired
}

/// Fifty good services of two instances each; the first one has the number that it is scaled to.
fn good_services(servers: &[Server], scale: usize) -> Vec<Value> {
    let instances = |service: usize| if service == 0 { scale } else { 2 };
    let all = (0..50).flat_map(|service| (0..instances(service)).map(move |instance| (service, instance)));
    all.map(|(service, instance)| {
        let port = servers[(service + instance) % servers.len()].port();
        let (name, id) = (format!("good-{service}"), format!("good-{service}-{instance}"));
        let mut one = registration(&name, &id, 1, port, &["enable", "check.disabled"]);
        one["Tags"].as_array_mut().unwrap().push(json!(format!("haproxy.backend.name=good-{service}")));
        one
    })
    .collect()
}

/// Writes a catalog, waits until the first good service has this many instances in service, and returns how long it
/// took.
async fn scaled(rig: &Rig, servers: &[Server], scale: usize, tenant: &[Registration]) -> Duration {
    let mut all = good_services(servers, scale);
    all.extend(tenant.iter().map(|one| serde_json::to_value(one).unwrap()));
    write_catalog(&rig.catalog(), &all);
    let written = Instant::now();
    wait_for("the good service to be scaled", Duration::from_secs(60), async || {
        let running = rig.haproxy.running_in("good-0").await;
        let ready = running.values().filter(|server| server.state() == "ready");
        (ready.count() == scale).then_some(())
    })
    .await;
    written.elapsed()
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_tenant_beside_fifty_good_services() {
    let seconds = std::env::var("TENANT_SECONDS").map_or(SECONDS, |text| text.parse().unwrap());
    let mut runner = TestRunner::deterministic();
    for way in WAYS {
        let rig = Rig::start(way, "3.2").await;
        let servers = [Server::start("one").await, Server::start("two").await, Server::start("three").await];
        write_catalog(&rig.catalog(), &good_services(&servers, 2));
        let controller = Controller::start(&rig.env(), &["--catalog", &rig.catalog().display().to_string()]);
        controller.wait_until_ready().await;
        let reloads = rig.haproxy.reloads().await;
        let load: Vec<Load> =
            (0..10).map(|n| Load::start(rig.haproxy.port, &format!("good-{}.test", n * 5), 20)).collect();
        let mut alone = Vec::new();
        for round in 0..10 {
            alone.push(scaled(&rig, &servers, 1 + round % 4, &[]).await);
        }
        assert_eq!(rig.haproxy.reloads().await, reloads, "{way:?}");

        // A service that makes no backend costs no reload.
        let mut nothing = hostile_registrations(&mut runner, 400);
        nothing.retain(|one| desired_of(std::slice::from_ref(one)).backends.is_empty());
        // Without the service that has a name, another one may get it.
        loop {
            let desired = desired_of(&nothing).backends;
            let routed: BTreeSet<_> = desired.values().flat_map(|backend| &backend.services).collect();
            if routed.is_empty() {
                break;
            }
            nothing.retain(|one| !routed.contains(&one.service()));
        }
        assert!(nothing.len() > 20, "{}", nothing.len());
        let mut beside = Vec::new();
        for round in 0..5 {
            beside.push(scaled(&rig, &servers, 1 + round % 4, &nothing).await);
        }
        assert_eq!(rig.haproxy.reloads().await, reloads, "{way:?}");

        // Anything, 200 at once.
        let beside_nothing = median(std::mem::take(&mut beside));
        let (started, mut sets) = (Instant::now(), vec![Desired::default()]);
        while started.elapsed() < Duration::from_secs(seconds) {
            let tenant = hostile_registrations(&mut runner, 200);
            beside.push(scaled(&rig, &servers, 1 + sets.len() % 4, &tenant).await);
            sets.push(desired_of(&tenant));
        }
        let changes = sets.windows(2).filter(|pair| pair[0] != pair[1]).count();
        controller.wait_for_passes(1).await;
        let reloaded = rig.haproxy.reloads().await - reloads;
        // What was refused is tried again after a while, which may take a reload of its own.
        let is_retry = |event: &Value| event["message"] == "applied" && event["span"]["reason"] != "catalog";
        let retries = controller.events().iter().filter(|event| is_retry(event)).count();
        let changes = changes + retries;
        assert!(
            reloaded <= changes as u64,
            "{way:?}: {reloaded} reloads for {changes} changes of the tenant's backends"
        );
        for one in &load {
            let tally = one.tally();
            assert_eq!(tally.failed, Vec::<String>::new(), "{way:?}, of {}", tally.requests);
            assert!(tally.requests > 0);
        }
        let (alone, beside) = (median(alone), median(beside));
        eprintln!(
            "{way:?}: {} rounds of 200 registrations, {reloaded} reloads for {changes} changes of the tenant's backends; \
             a good service's change takes {:.2} times as long as without it, {:.2} times beside what makes no backend",
            sets.len() - 1,
            beside / alone,
            beside_nothing / alone
        );
        let text = rig.haproxy.text();
        let joined = text.lines().filter(|line| line.contains("\"owner\":\"nomad\"") && line.contains("server shop_"));
        assert_eq!(joined.count(), 0, "no service joins a person's backend by naming it");
    }
}
