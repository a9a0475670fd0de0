//! Several HAProxys with one controller: they share one catalog, and nothing else.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::api::{Rig, Way};
use crate::support::controller::{Controller, registration, stderr, stdout, write_catalog};
use crate::support::disk::FullDisk;
use crate::support::fleet::{Fleet, NAMES, memory, reads, services_of_five};
use crate::support::gate::Gate;
use crate::support::haproxy::{Haproxy, hand_written, has_backend};
use crate::support::nomad::Nomad;
use crate::support::wait_for;
use serde_json::Value;

/// For HAProxy to serve what it should.
const SOON: Duration = Duration::from_secs(40);

fn api(ports: std::ops::Range<u16>, tags: &[&str]) -> Vec<Value> {
    let tags = [&["enable=true", "check.disabled"], tags].concat();
    ports.map(|port| registration("api", &port.to_string(), port.into(), port, &tags)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn three_take_as_many_reads_of_nomad_as_one() {
    let nomad = Nomad::start().await;
    nomad.submit(services_of_five(200)).await;
    nomad.wait_for_instances("wide-199", 5).await;
    let fleet = Fleet::start().await;
    let (gate, url) = Gate::start(&nomad.address).await;
    // Only the start and the first answer of the blocking query make passes.
    let env = Fleet::env(&[("NOMAD_ADDR", &url), ("NOMAD_HAPROXY_RESYNC_INTERVAL", "1h")]);
    let mut costs = Vec::new();
    for settings in [fleet.settings_of(2), fleet.settings()] {
        gate.hold(None);
        let started = Instant::now();
        let mut controller = Controller::start(&env, &["--config", &settings.display().to_string()]);
        controller.wait_until_ready().await;
        let took = started.elapsed();
        costs.push((reads(&gate), memory(controller.pid()), took));
        assert!(controller.stop().await.success());
    }
    fleet.agree().await;
    for rig in &fleet.rigs {
        assert!(has_backend(&rig.haproxy.text(), "wide_000") && has_backend(&rig.haproxy.text(), "wide_199"));
    }
    let [(reads_of_one, memory_of_one, _), (reads_of_three, memory_of_three, took)] = costs[..] else { panic!() };
    eprintln!("one: {:?}; three: {:?}", costs[0], costs[1]);
    assert_eq!((reads_of_one, reads_of_three), (201, 201), "the list, and each service once");
    assert!(memory_of_three < memory_of_one * 1.5, "{memory_of_three} kB, {memory_of_one} kB for one");
    assert!(took > Duration::ZERO);
}

#[tokio::test(flavor = "multi_thread")]
async fn services_choose_their_haproxys() {
    let fleet = Fleet::start().await;
    let on = |targets: &str, name: &str| {
        let tag = format!("target={targets}");
        let tags = ["enable=true", "check.disabled", &tag];
        registration(name, name, 1, 2001, if targets.is_empty() { &tags[..2] } else { &tags })
    };
    let all = [on("", "everywhere"), on("edge-a", "only-a"), on("edge-b,edge-c", "not-a"), on("edge-x", "nowhere")];
    write_catalog(&fleet.catalog(), &all);
    let controller = fleet.run(&[]);
    controller.wait_until_ready().await;
    for (rig, wanted) in fleet.rigs.iter().zip(["everywhere only_a", "everywhere not_a", "everywhere not_a"]) {
        let text = rig.haproxy.text();
        let found = ["everywhere", "only_a", "not_a", "nowhere"].into_iter().filter(|name| has_backend(&text, name));
        assert_eq!(found.collect::<Vec<_>>().join(" "), wanted);
    }
    // Once, not for each HAProxy.
    let notes: Vec<_> =
        controller.events().into_iter().filter(|event| event["message"] == "problem with a service").collect();
    assert_eq!(notes.len(), 2, "a warning about the name, an error as it is routed nowhere: {notes:#?}");
    assert!(notes.iter().all(|note| note["service"] == "nowhere" && note["code"] == "unknown-target"), "{notes:#?}");

    for (name, code) in [("everywhere", 0), ("only-a", 0), ("nowhere", 1)] {
        let output = fleet.command(&["explain", name]).await;
        assert_eq!(output.status.code(), Some(code), "{name}: {}", stdout(&output));
    }

    // It moves.
    write_catalog(&fleet.catalog(), &[on("", "everywhere"), on("edge-b", "only-a"), on("edge-b,edge-c", "not-a")]);
    wait_for("the service to move", Duration::from_secs(10), async || {
        let has = |rig: &Rig| has_backend(&rig.haproxy.text(), "only_a");
        (!has(&fleet.rigs[0]) && has(&fleet.rigs[1])).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_have_a_section_for_each() {
    let fleet = Fleet::start().await;
    write_catalog(&fleet.catalog(), &api(2001..2003, &[]));
    let output = fleet.command(&["plan", "--detailed-exitcode"]).await;
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(2), "{text}{}", stderr(&output));
    for name in NAMES {
        assert!(text.contains(&format!("# HAProxy {name}\n")), "{text}");
    }
    let output = fleet.command(&["plan", "--output", "json"]).await;
    let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((json["changes"].clone(), json["errors"].clone()), (true.into(), false.into()));
    assert_eq!(json["haproxys"]["edge-b"]["backends"][0]["name"], "api");

    // One is applied, reviewed with the others before.
    let file = fleet.folder.path().join("plan");
    let kept = fleet.command(&["plan", "--out", file.to_str().unwrap()]).await;
    assert!(kept.status.success(), "{}", stderr(&kept));
    let output = fleet.command(&["apply", "--haproxy", "edge-b"]).await;
    assert!(output.status.success() && stdout(&output).contains("# HAProxy edge-b"), "{}", stdout(&output));
    let has: Vec<bool> = fleet.rigs.iter().map(|rig| has_backend(&rig.haproxy.text(), "api")).collect();
    assert_eq!(has, [false, true, false]);

    // Each accepts or refuses what was reviewed by itself.
    let output = fleet.command(&["apply", "--plan", file.to_str().unwrap()]).await;
    let text = stdout(&output);
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("# HAProxy edge-b\n") && text.contains("the plan is not applied"), "{text}");
    assert!(stderr(&output).contains("not all was done on the HAProxy edge-b of 3"), "{}", stderr(&output));
    fleet.agree().await;
    let output = fleet.command(&["apply"]).await;
    assert_eq!(stdout(&output).matches("Nothing to do").count(), 3, "{}", stdout(&output));

    let output = fleet.command(&["plan", "--haproxy", "edge-d"]).await;
    let said = stderr(&output);
    assert!(said.contains("no HAProxy is called \"edge-d\"") && said.contains("edge-a, edge-b, edge-c"), "{said}");
    // One that does not answer costs its own section alone.
    fleet.gates[0].interfere(Some(Box::new(|_, _| Some((500, "out of order".to_owned())))));
    write_catalog(&fleet.catalog(), &api(2001..2004, &[]));
    let output = fleet.command(&["plan", "--detailed-exitcode"]).await;
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("# HAProxy edge-a\nerror: "), "{text}");
    assert_eq!(text.matches("+  server api_3 127.0.0.1:2003 ").count(), 2, "{text}");
    let output = fleet.command(&["plan", "--output", "json"]).await;
    let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(json["errors"] == true && json["haproxys"]["edge-a"]["error"].is_string(), "{json}");
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_and_metrics_name_each() {
    let fleet = Fleet::start().await;
    write_catalog(&fleet.catalog(), &api(2001..2003, &[]));
    fleet.gates[1].interfere(Some(Box::new(|_, _| Some((500, "out of order".to_owned())))));
    let controller = fleet.run(&[]);
    for rig in [&fleet.rigs[0], &fleet.rigs[2]] {
        rig.serves(2001..2003, SOON).await;
    }
    let (status, text) = wait_for("one that is not ready, as it failed", Duration::from_secs(10), async || {
        Some(controller.http("/readyz").await).filter(|(_, text)| text.contains("failed") && text.lines().count() == 1)
    })
    .await;
    assert!(status == 503 && text.starts_with("edge-b: not ready: "), "{status} {text}");
    assert_eq!(controller.http("/readyz?haproxy=edge-a").await, (200, "ok\n".to_owned()));
    assert_eq!(controller.http("/readyz?haproxy=edge-b").await.0, 503);
    assert_eq!(controller.http("/readyz?haproxy=nope").await.0, 404);
    assert_eq!(controller.http("/healthz").await.0, 200, "a lost edge never restarts the controller");
    for (name, up) in NAMES.iter().zip([1.0, 0.0, 1.0]) {
        let sample = format!("nomad_haproxy_haproxy_up{{haproxy=\"{name}\"}}");
        assert!((controller.metric(&sample).await - up).abs() < 0.1, "{name}");
    }
    let failed = controller.events().into_iter().find(|event| event["message"] == "the pass failed").unwrap();
    assert_eq!(failed["span"]["haproxy"], "edge-b");
}

/// How long it takes from a change of the catalog to the processes of two HAProxys: the median of several changes.
async fn latency(fleet: &Fleet, healthy: [usize; 2]) -> Duration {
    let mut times = Vec::new();
    for change in 0..7_u16 {
        let ports = 2001..2004 - change % 2;
        write_catalog(&fleet.catalog(), &api(ports.clone(), &[]));
        let changed = Instant::now();
        for at in healthy {
            fleet.rigs[at].serves(ports.clone(), SOON).await;
        }
        times.push(changed.elapsed());
    }
    times.sort();
    times[times.len() / 2]
}

/// What is wrong with one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    ApiKilled,
    ApiFrozen,
    ApiFails,
    CredentialsRefused,
    DiskFull,
    HaproxyKilled,
}

impl Fault {
    const ALL: [Self; 6] = [
        Self::ApiKilled,
        Self::ApiFrozen,
        Self::ApiFails,
        Self::CredentialsRefused,
        Self::DiskFull,
        Self::HaproxyKilled,
    ];

    /// Which of the fleet has it.
    fn at(self) -> usize {
        if self == Self::DiskFull { 2 } else { 0 }
    }

    fn begin(self, fleet: &mut Fleet, disk: &FullDisk) {
        let answer = |status: u16| {
            move |_: &axum::http::Method, _: &axum::http::Uri| {
                Some((status, "{\"message\": \"out of order\"}".to_owned()))
            }
        };
        match self {
            Self::ApiKilled => fleet.rigs[0].api.as_mut().unwrap().kill(),
            Self::ApiFrozen => fleet.gates[0].freeze(true),
            Self::ApiFails => fleet.gates[0].interfere(Some(Box::new(answer(500)))),
            Self::CredentialsRefused => fleet.gates[0].interfere(Some(Box::new(answer(401)))),
            Self::DiskFull => disk.fill(),
            Self::HaproxyKilled => fleet.rigs[0].haproxy.kill(),
        }
    }

    async fn end(self, fleet: &mut Fleet, disk: &FullDisk) {
        match self {
            Self::ApiKilled => fleet.rigs[0].api.as_mut().unwrap().launch().await,
            Self::ApiFrozen => fleet.gates[0].freeze(false),
            Self::ApiFails | Self::CredentialsRefused => fleet.gates[0].interfere(None),
            Self::DiskFull => disk.clear(),
            Self::HaproxyKilled => fleet.rigs[0].haproxy.launch().await,
        }
    }
}

fn on_disk(disk: &Path) -> Haproxy {
    let mut haproxy = Haproxy::prepare(crate::support::haproxy::binary("3.2").unwrap());
    haproxy.config_file = disk.join("haproxy.cfg");
    haproxy.arguments = vec!["-f".into(), haproxy.config_file.display().to_string()];
    std::fs::write(&haproxy.config_file, hand_written(haproxy.folder(), haproxy.port)).unwrap();
    haproxy
}

#[tokio::test(flavor = "multi_thread")]
async fn one_haproxys_trouble_is_its_own() {
    let Some(disk) = FullDisk::mount() else {
        eprintln!("NOT TESTED: this user may not mount a tmpfs");
        return;
    };
    let mut local = on_disk(disk.path());
    local.launch().await;
    let mut fleet = Fleet::with(Rig::with(Way::Local, "3.2", local).await).await;
    write_catalog(&fleet.catalog(), &api(2001..2003, &[]));
    let controller = fleet.run(&[]);
    controller.wait_until_ready().await;
    for fault in Fault::ALL {
        let troubled = fault.at();
        let healthy = [[1, 2], [0, 2], [0, 1]][troubled];
        let before = latency(&fleet, healthy).await;
        let reloads = fleet.rigs[troubled].haproxy.reloads().await;
        fault.begin(&mut fleet, &disk);
        // A target that waited for the troubled one would do so each time, and for as long as the fault lasts; a machine
        // that others use makes a factor of 2 by itself, and more now and then.
        let mut during = latency(&fleet, healthy).await;
        for _ in 0..3 {
            if during < 4 * before {
                break;
            }
            during = during.min(latency(&fleet, healthy).await);
        }
        eprintln!("{fault:?}: {during:?} after {before:?} without it");
        assert!(during < 4 * before, "{fault:?}: {during:?}, {before:?} without it");
        fault.end(&mut fleet, &disk).await;
        // After a long outage the next attempt comes within 30 s.
        wait_for("all to be ready", Duration::from_secs(60), async || {
            (controller.http("/readyz").await.0 == 200).then_some(())
        })
        .await;
        fleet.rigs[troubled].serves(2001..2004, SOON).await;
        fleet.agree().await;
        let restarted = fault == Fault::HaproxyKilled;
        let reloaded = fleet.rigs[troubled].haproxy.reloads().await - if restarted { 0 } else { reloads };
        assert!(reloaded <= 1, "{fault:?}: {reloaded} reloads");
    }
}
