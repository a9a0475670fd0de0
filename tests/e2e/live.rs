//! Changes without a reload, on a running controller; and how file and process are made to agree after one of them
//! changed alone.

use std::time::{Duration, Instant};

use crate::support::api::{Rig, WAYS, Way};
use crate::support::controller::{Controller, apply, registration, run, stderr, stdout, write_catalog};
use crate::support::haproxy::{has_backend, matrix, seats};
use crate::support::load::Load;
use crate::support::nomad::{Nomad, job};
use crate::support::servers::Server;
use crate::support::wait_for;

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_scale_changes_cost_no_reload_and_move_no_instance() {
    let nomad = Nomad::start().await;
    for series in matrix() {
        for way in WAYS {
            let rig = Rig::start(way, series).await;
            let env = rig.env_with(&[("NOMAD_ADDR", &nomad.address)]);
            for n in 0..19 {
                nomad.submit(job(&format!("other-{n}"), 1, &["enable=true", "check.disabled"], None)).await;
            }
            nomad.submit(job("churn", 4, &["enable=true", "check.disabled"], None)).await;
            nomad.wait_for_instances("churn", 4).await;
            wait_for("all of them", Duration::from_secs(60), async || {
                (nomad.service("other-18").await.len() == 1).then_some(())
            })
            .await;
            let controller = Controller::start(&env, &[]);
            controller.wait_until_ready().await;
            wait_for("all backends", Duration::from_secs(30), async || {
                (seats(&rig.haproxy.text()).len() == 23).then_some(())
            })
            .await;
            let (reloads, worker) = (rig.haproxy.reloads().await, rig.haproxy.worker().await);
            let (mut known, mut took) = (seats(&rig.haproxy.text()), Vec::new());
            for change in 0..100_u32 {
                let count = [6, 2, 7, 3, 8, 1, 5, 4][change as usize % 8];
                nomad.scale("churn", count).await;
                nomad.wait_for_instances("churn", count as usize).await;
                let registered = Instant::now();
                wait_for("as many out of maintenance", Duration::from_secs(10), async || {
                    let servers = rig.haproxy.servers().await;
                    let ready = servers.iter().filter(|(name, (_, admin, _))| {
                        name.starts_with("churn/") && admin.parse::<u16>().unwrap() & 1 == 0
                    });
                    (ready.count() == count as usize).then_some(())
                })
                .await;
                took.push(registered.elapsed());
                let now = seats(&rig.haproxy.text());
                for (id, slot) in &known {
                    assert!(now.get(id).is_none_or(|now| now == slot), "{id} moved from {slot}");
                }
                known = now;
            }
            assert_eq!(
                (rig.haproxy.reloads().await, rig.haproxy.worker().await),
                (reloads, worker),
                "HAProxy {series}, {way:?}"
            );
            took.sort();
            eprintln!(
                "HAProxy {series}, {way:?}: 100 changes, 0 reloads; out of maintenance after {:?} (median), {:?} (worst)",
                took[50], took[99]
            );
            nomad.stop_job("churn").await;
            nomad.wait_for_instances("churn", 0).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_update_under_load_loses_no_request() {
    let nomad = Nomad::start().await;
    for series in matrix() {
        for way in WAYS {
            let rig = Rig::start(way, series).await;
            let controller = Controller::start(&rig.env_with(&[("NOMAD_ADDR", &nomad.address)]), &[]);
            let tags = ["enable=true", "check.interval=200ms"];
            nomad.submit(job("roll", 3, &tags, Some("1"))).await;
            wait_for("three seats", Duration::from_secs(30), async || {
                (seats(&rig.haproxy.text()).len() == 3).then_some(())
            })
            .await;
            wait_for("all up", Duration::from_secs(30), async || {
                let up = rig
                    .haproxy
                    .statuses()
                    .await
                    .iter()
                    .filter(|(name, status)| name.starts_with("roll/roll") && *status == "UP")
                    .count();
                (up == 3).then_some(())
            })
            .await;
            let reloads = rig.haproxy.reloads().await;
            let load = Load::start(rig.haproxy.port, "roll.test", 200);
            nomad.submit(job("roll", 3, &tags, Some("2"))).await;
            wait_for("three instances of version 2", Duration::from_secs(90), async || {
                let answers = load.take();
                assert_eq!(answers.failed, Vec::<String>::new(), "of {}", answers.requests);
                tokio::time::sleep(Duration::from_millis(500)).await;
                let now = load.tally().by_answer;
                (now.len() == 3 && now.keys().all(|answer| answer.ends_with("version 2"))).then_some(())
            })
            .await;
            let tally = load.take();
            assert_eq!(tally.failed, Vec::<String>::new(), "of {}", tally.requests);
            assert_eq!(rig.haproxy.reloads().await, reloads, "HAProxy {series}, {way:?}");
            drop((load, controller));
            nomad.stop_job("roll").await;
            nomad.wait_for_instances("roll", 0).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_filled_waits_for_its_first_check() {
    for series in matrix().into_iter().filter(|series| *series != "3.0") {
        for way in WAYS {
            let rig = Rig::start(way, series).await;
            let (good, late) = (Server::start("good").await, Server::start("late").await);
            late.healthy.store(false, std::sync::atomic::Ordering::Relaxed);
            let tags = ["enable=true", "check.path=/health", "check.interval=300ms"];
            let one = registration("api", "1", 1, good.port(), &tags);
            write_catalog(&rig.catalog(), std::slice::from_ref(&one));
            apply(&rig.env(), &rig.catalog()).await;
            // Where a server is added for it, the line of the instance does not have it.
            if way == Way::Api && !rig.haproxy.text().contains("init-state down") {
                // Version 3.0 of the API drops it, whatever HAProxy it has: a real one, and no other.
                assert!(crate::support::api::real().is_some(), "HAProxy {series}: no init-state");
                eprintln!("HAProxy {series}: not looked at, as this API does not know init-state");
                continue;
            }
            let load = Load::start(rig.haproxy.port, "api.test", 100);
            write_catalog(&rig.catalog(), &[one, registration("api", "2", 2, late.port(), &tags)]);
            let said = apply(&rig.env(), &rig.catalog()).await;
            assert!(said.contains("no reload"), "{said}");
            wait_for("a failed check", Duration::from_secs(10), async || {
                rig.haproxy.statuses().await["api/api_2"].starts_with("DOWN").then_some(())
            })
            .await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(
                late.requests.load(std::sync::atomic::Ordering::Relaxed),
                0,
                "HAProxy {series}, {way:?}: no traffic before a check passed"
            );
            late.healthy.store(true, std::sync::atomic::Ordering::Relaxed);
            wait_for("traffic", Duration::from_secs(10), async || {
                (late.requests.load(std::sync::atomic::Ordering::Relaxed) > 0).then_some(())
            })
            .await;
            assert_eq!(load.tally().failed, Vec::<String>::new());
        }
    }
}

fn api(ports: &[u16]) -> Vec<serde_json::Value> {
    ports.iter().map(|port| registration("api", &port.to_string(), 1, *port, &["enable=true"])).collect()
}

/// A port that is in use, and a listener on it in place of `acl is_shop`: valid, but it cannot be loaded.
fn taken_port() -> (std::net::TcpListener, String) {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let bind = format!("bind 127.0.0.1:{}\n    acl is_shop", taken.local_addr().unwrap().port());
    (taken, bind)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_action_is_repaired_in_the_same_pass() {
    for series in matrix() {
        let rig = Rig::start(Way::Api, series).await;
        let (gate, env) = rig.gated().await;
        write_catalog(&rig.catalog(), &api(&[2001, 2002]));
        apply(&env, &rig.catalog()).await;
        let reloads = rig.haproxy.reloads().await;
        write_catalog(&rig.catalog(), &api(&[2002, 2003]));
        gate.fail_next_actions();
        apply(&env, &rig.catalog()).await;
        rig.agrees().await;
        assert_eq!(rig.haproxy.reloads().await, reloads, "repaired at run time");
        // An API without a raw write: the transaction is committed, and reloads.
        write_catalog(&rig.catalog(), &api(&[2003, 2004]));
        gate.interfere(Some(Box::new(|method, uri| {
            (method == "POST" && uri.path().ends_with("/raw")).then(|| (405, "method not allowed".to_owned()))
        })));
        apply(&env, &rig.catalog()).await;
        rig.agrees().await;
        assert_eq!(rig.haproxy.reloads().await, reloads + 1);
        // A repair of states needs no write.
        rig.haproxy.command("@1 set server api/api_3 state maint").await;
        apply(&env, &rig.catalog()).await;
        rig.agrees().await;
        assert_eq!(rig.haproxy.reloads().await, reloads + 1);
        // A repair of an address does: it reloads.
        rig.haproxy.command("@1 set server api/api_3 addr 127.0.0.9").await;
        apply(&env, &rig.catalog()).await;
        rig.agrees().await;
        assert_eq!(rig.haproxy.reloads().await, reloads + 2);
        // Something else answers in place of the API.
        gate.interfere(Some(Box::new(|_, _| Some((502, "<html>no upstream</html>".to_owned())))));
        let catalog = rig.catalog().display().to_string();
        let said = stderr(&run(&env, &["apply", "--catalog", &catalog]).await);
        assert!(said.contains("502") && said.contains("no upstream"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_haproxy_that_is_killed_and_started_again_is_in_line_within_a_pass() {
    for (series, way) in matrix().into_iter().flat_map(|series| WAYS.map(|way| (series, way))) {
        let mut rig = Rig::start(way, series).await;
        write_catalog(&rig.catalog(), &api(&[2001]));
        let catalog = rig.catalog().display().to_string();
        let mut env = rig.env();
        env.push(("NOMAD_HAPROXY_RESYNC_INTERVAL".into(), "1s".into()));
        let controller = Controller::start(&env, &["--catalog", &catalog]);
        controller.wait_until_ready().await;
        rig.haproxy.kill();
        write_catalog(&rig.catalog(), &api(&[2001, 2002]));
        wait_for("a pass that fails", Duration::from_secs(20), async || {
            controller.log().contains("the pass failed").then_some(())
        })
        .await;
        rig.haproxy.launch().await;
        wait_for("the new instance", Duration::from_secs(20), async || {
            let ready = rig
                .haproxy
                .servers()
                .await
                .into_iter()
                .filter(|(name, (_, admin, _))| name.starts_with("api/") && admin.parse::<u16>().unwrap() & 1 == 0);
            (ready.count() == 2).then_some(())
        })
        .await;
        rig.agrees().await;
        // A manual run-time change is undone with the next resync, even if the catalog keeps changing.
        let changes = tokio::spawn({
            let file = rig.catalog();
            async move {
                loop {
                    write_catalog(&file, &api(&[2001, 2002]));
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
            }
        });
        rig.haproxy.command("@1 set server api/api_1 state maint").await;
        wait_for("the hand's work to be undone", Duration::from_secs(10), async || {
            (!rig.haproxy.statuses().await["api/api_1"].contains("MAINT")).then_some(())
        })
        .await;
        changes.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_that_fails_leaves_the_good_configuration_everywhere() {
    for (series, way) in matrix().into_iter().flat_map(|series| WAYS.map(|way| (series, way))) {
        let rig = Rig::start(way, series).await;
        write_catalog(&rig.catalog(), &api(&[2001]));
        apply(&rig.env(), &rig.catalog()).await;
        // What was changed without a reload is newer than the API's last good text.
        write_catalog(&rig.catalog(), &api(&[2002, 2003]));
        apply(&rig.env(), &rig.catalog()).await;
        // A person adds a listener on a port that is in use: valid, but it cannot be loaded.
        let (taken, bind) = taken_port();
        let good = rig.haproxy.text();
        std::fs::write(rig.haproxy.config(), good.replacen("acl is_shop", &bind, 1)).unwrap();
        let before = rig.foreign();
        let worker = rig.haproxy.worker().await;

        let mut both = api(&[2002, 2003]);
        both.push(registration("new", "n", 1, 2009, &["enable=true", "balance=source"]));
        write_catalog(&rig.catalog(), &both);
        let catalog = rig.catalog().display().to_string();
        let output = run(&rig.env(), &["apply", "--catalog", &catalog]).await;
        let said = stderr(&output);
        assert!(!output.status.success() && said.contains("could not load"), "{said}{}", stdout(&output));
        assert_eq!(rig.foreign(), before, "HAProxy {series}, {way:?}");
        assert!(!has_backend(&rig.haproxy.text(), "new"), "the change is not on the disk");
        assert_eq!(rig.haproxy.worker().await, worker, "the old worker goes on");
        for port in [2002, 2003] {
            let seats = rig.haproxy.text().lines().filter(|line| line.contains(&format!("\"id\":\"{port}\""))).count();
            assert_eq!(seats, 1, "{port} keeps its seat on the disk");
        }
        rig.agrees().await;

        // The port is free again, and the next change succeeds.
        drop(taken);
        apply(&rig.env(), &rig.catalog()).await;
        assert!(has_backend(&rig.haproxy.text(), "new"));
        assert!(rig.haproxy.servers().await.contains_key("new/new_1"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_change_is_made_once_its_cause_is_gone() {
    for way in WAYS {
        let rig = Rig::start(way, "3.2").await;
        write_catalog(&rig.catalog(), &api(&[2001]));
        let catalog = rig.catalog().display().to_string();
        let controller = Controller::start(&rig.env(), &["--catalog", &catalog]);
        controller.wait_until_ready().await;
        rig.edit(|text| text.replacen("use_backend shop if", "use_backend api if is_shop\n    use_backend shop if", 1))
            .await;
        write_catalog(&rig.catalog(), &[]);
        wait_for("a note", Duration::from_secs(20), async || {
            controller.log().contains("backend api stays").then_some(())
        })
        .await;
        assert!(has_backend(&rig.haproxy.text(), "api"));
        rig.edit(|text| text.replacen("use_backend api if is_shop\n", "\n", 1)).await;
        // A change of another service, to avoid waiting for the next resync.
        write_catalog(&rig.catalog(), &[registration("other", "1", 1, 2009, &["enable=true"])]);
        wait_for("the backend to be gone", Duration::from_secs(10), async || {
            (!has_backend(&rig.haproxy.text(), "api")).then_some(())
        })
        .await;
    }
}

/// The state after a crash right after a failed reload: the file has a server that the process lacks, and cannot be
/// loaded. Where servers are added at run time it need not be.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_loaded_holds_up_no_live_change() {
    for way in WAYS {
        let rig = Rig::start(way, "3.2").await;
        write_catalog(&rig.catalog(), &api(&[2001]));
        apply(&rig.env(), &rig.catalog()).await;
        let (taken, bind) = taken_port();
        let spare = "server api_9 127.0.0.1:1 disabled # {\"freed\":\"0\",\"owner\":\"nomad\"}\n  server api_1 ";
        rig.edit(|text| text.replacen("acl is_shop", &bind, 1).replacen("server api_1 ", spare, 1)).await;
        let foreign = rig.foreign();
        write_catalog(&rig.catalog(), &api(&[2002]));
        let catalog = rig.catalog().display().to_string();
        let output = run(&rig.env(), &["apply", "--catalog", &catalog]).await;
        let could_load = !stderr(&output).contains("could not load");
        assert_eq!(
            (output.status.success(), could_load),
            (way == Way::Local, way == Way::Local),
            "{}",
            stderr(&output)
        );
        let servers = rig.haproxy.servers().await;
        let ready = |(_, admin, _): &&(String, String, String)| admin.parse::<u16>().unwrap() & 1 == 0;
        let mut seats = servers.iter().filter(|(name, _)| name.starts_with("api/")).map(|(_, server)| server);
        assert!(seats.clone().filter(ready).all(|(_, _, address)| address == "127.0.0.1:2002"), "{servers:?}");
        assert!(seats.any(|server| ready(&server)), "{servers:?}");
        assert_eq!(rig.foreign(), foreign);

        drop(taken);
        apply(&rig.env(), &rig.catalog()).await;
        rig.agrees().await;
    }
}

/// A change that cannot be loaded is not tried again and again, and what needs no reload does not wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_failed_to_load_waits_for_another_haproxy() {
    for way in WAYS {
        let mut rig = Rig::start(way, "3.2").await;
        write_catalog(&rig.catalog(), &api(&[2001]));
        let catalog = rig.catalog().display().to_string();
        let controller =
            Controller::start(&rig.env_with(&[("NOMAD_HAPROXY_RESYNC_INTERVAL", "1s")]), &["--catalog", &catalog]);
        controller.wait_until_ready().await;
        let (taken, bind) = taken_port();
        rig.edit(|text| text.replacen("acl is_shop", &bind, 1)).await;
        let change = |ports: &[u16]| {
            let mut all = api(ports);
            all.push(registration("new", "n", 1, 2009, &["enable=true", "balance=source"]));
            write_catalog(&rig.catalog(), &all);
        };
        change(&[2001]);
        let failed = || controller.log().matches("the pass failed").count();
        let changed = Instant::now();
        wait_for("the reload to fail", Duration::from_secs(20), async || (failed() > 0).then_some(())).await;
        wait_for("a note", Duration::from_secs(20), async || {
            controller.log().contains("\"service\":\"new\",\"code\":\"not-loaded\"").then_some(())
        })
        .await;
        let reloads = rig.haproxy.reloads().await;
        for ports in [&[2001, 2002][..], &[2002], &[2002, 2003]] {
            change(ports);
            let want: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
            wait_for(&format!("{ports:?} in service"), Duration::from_secs(10), async || {
                let servers = rig.haproxy.servers().await;
                let mut seats: Vec<_> = servers
                    .iter()
                    .filter(|(name, (_, admin, _))| name.starts_with("api/") && admin.parse::<u16>().unwrap() & 1 == 0)
                    .map(|(_, (_, _, address))| address.clone())
                    .collect();
                seats.sort();
                (seats == want).then_some(())
            })
            .await;
        }
        controller.wait_for_resyncs(3).await;
        let seen = (rig.haproxy.reloads().await, failed());
        // On a busy machine the first retry, after 30 s, may be due by now.
        if changed.elapsed() < Duration::from_secs(30) {
            assert_eq!(seen, (reloads, 1), "{way:?}: not tried again");
        }
        assert!(!has_backend(&rig.haproxy.text(), "new"));

        drop(taken);
        rig.haproxy.kill();
        rig.haproxy.launch().await;
        wait_for("the change", Duration::from_secs(20), async || {
            rig.haproxy.servers().await.contains_key("new/new_1").then_some(())
        })
        .await;
        rig.agrees().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn structural_changes_that_come_together_make_one_reload() {
    let rig = Rig::start(Way::Local, "3.2").await;
    write_catalog(&rig.catalog(), &[]);
    let catalog = rig.catalog().display().to_string();
    let env = rig.env_with(&[("NOMAD_HAPROXY_RELOAD_MIN_INTERVAL", "8s")]);
    let controller = Controller::start(&env, &["--catalog", &catalog]);
    controller.wait_until_ready().await;
    let with = |names: &[&str], ports: &[u16]| {
        let mut all: Vec<_> = names.iter().map(|name| registration(name, name, 1, 2009, &["enable=true"])).collect();
        all.extend(api(ports));
        write_catalog(&rig.catalog(), &all);
    };
    let backend = async |name: &str| {
        wait_for(name, Duration::from_secs(20), async || has_backend(&rig.haproxy.text(), name).then_some(())).await;
    };
    with(&["a"], &[2001]);
    backend("api").await;
    let first = Instant::now();
    // New services within the interval wait; what needs no reload does not.
    with(&["a", "b"], &[2001, 2002]);
    wait_for("the second instance", Duration::from_secs(3), async || {
        rig.haproxy.text().contains(":2002").then_some(())
    })
    .await;
    assert!(!has_backend(&rig.haproxy.text(), "b"), "{:?} after the last reload", first.elapsed());
    // Nor does an instance that is gone, even if its backend has to grow.
    let more: Vec<u16> = (2002..2012).collect();
    with(&["a", "b", "c"], &more);
    wait_for("the first instance to be out", Duration::from_secs(3), async || {
        rig.haproxy.servers().await.values().all(|server| server.2 != "127.0.0.1:2001").then_some(())
    })
    .await;
    assert_eq!(rig.haproxy.reloads().await, 1);
    backend("c").await;
    assert!(rig.haproxy.text().contains(":2011"), "{}", rig.haproxy.text());
    assert!(has_backend(&rig.haproxy.text(), "b"));
    // The file changes before the process.
    rig.haproxy.wait_for_state("c/c_1", "ready").await;
    assert_eq!(rig.haproxy.reloads().await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_asks_for_it_is_drained_first() {
    for (series, way) in matrix().into_iter().flat_map(|series| WAYS.map(|way| (series, way))) {
        let rig = Rig::start(way, series).await;
        let one =
            |port: u16| registration("api", &port.to_string(), 1, port, &["enable=true", "drain=2s", "check.disabled"]);
        write_catalog(&rig.catalog(), &[one(2001), one(2002)]);
        let catalog = rig.catalog().display().to_string();
        let controller = Controller::start(&rig.env(), &["--catalog", &catalog]);
        controller.wait_until_ready().await;
        let reloads = rig.haproxy.reloads().await;
        let state = async |wanted: &str| {
            let what = format!("api_2 in {wanted}, HAProxy {series}, {way:?}");
            wait_for(&what, Duration::from_secs(10), async || {
                rig.haproxy.statuses().await.get("api/api_2").filter(|status| status.starts_with(wanted)).map(drop)
            })
            .await;
        };
        write_catalog(&rig.catalog(), &[one(2001)]);
        let gone = Instant::now();
        state("DRAIN").await;
        rig.haproxy.wait_for_state("api/api_2", way.gone()).await;
        assert!(gone.elapsed() >= Duration::from_secs(2), "{:?}", gone.elapsed());
        assert_eq!(rig.haproxy.reloads().await, reloads);
        // The last one, too: the backend is removed when it has drained.
        write_catalog(&rig.catalog(), &[]);
        wait_for("the drain", Duration::from_secs(5), async || {
            rig.haproxy.statuses().await.get("api/api_1").filter(|status| status.starts_with("DRAIN")).map(drop)
        })
        .await;
        wait_for("the backend to go", Duration::from_secs(10), async || {
            (!has_backend(&rig.haproxy.text(), "api")).then_some(())
        })
        .await;
    }
}

/// 1000 services of 5, in one job without processes.
fn thousand() -> serde_json::Value {
    let mut wide = job("wide", 5, &[], None);
    let service = |n: u32| {
        serde_json::json!({
            "Name": format!("wide-{n:04}"), "Provider": "nomad", "PortLabel": (8000 + n).to_string(),
            "Address": format!("127.{}.${{NOMAD_ALLOC_INDEX}}.{}", 1 + n / 250, 1 + n % 250),
            "Tags": ["haproxy.enable=true", "haproxy.check.disabled"],
        })
    };
    wide["TaskGroups"][0]["Services"] = (0..1000).map(service).collect();
    wide["TaskGroups"][0]["Networks"] = serde_json::json!([]);
    wide
}

#[tokio::test(flavor = "multi_thread")]
async fn one_service_beside_a_thousand_of_five_is_scaled_without_a_reload() {
    let nomad = Nomad::start().await;
    nomad.submit(thousand()).await;
    nomad.submit(job("churn", 4, &["enable=true", "check.disabled"], None)).await;
    nomad.wait_for_instances("wide-0999", 5).await;
    nomad.wait_for_instances("churn", 4).await;
    for way in WAYS {
        let rig = Rig::start(way, "3.2").await;
        let env = rig.env_with(&[("NOMAD_ADDR", &nomad.address), ("HAPROXY_WRITE", "text")]);
        let controller = Controller::start(&env, &[]);
        wait_for("all of them", Duration::from_secs(120), async || {
            (seats(&rig.haproxy.text()).len() == 5004).then_some(())
        })
        .await;
        wait_for("the first pass", Duration::from_secs(60), async || {
            controller.log().contains("applied").then_some(())
        })
        .await;
        let (reloads, mut took) = (rig.haproxy.reloads().await, Vec::new());
        for change in 0..20_usize {
            let count = [6, 2, 7, 4][change % 4];
            nomad.scale("churn", count).await;
            nomad.wait_for_instances("churn", count as usize).await;
            let registered = Instant::now();
            wait_for("as many out of maintenance", Duration::from_secs(20), async || {
                let state = rig.haproxy.command("@1 show servers state churn").await;
                let rows = state
                    .lines()
                    .map(|line| line.split(' ').collect::<Vec<_>>())
                    .filter(|f| f.len() > 18 && f[0] != "#");
                (rows.filter(|f| f[6].parse::<u16>().unwrap() & 1 == 0).count() == count as usize).then_some(())
            })
            .await;
            took.push(registered.elapsed());
        }
        took.sort();
        eprintln!("{way:?}: out of maintenance after {:?} (median), {:?} (worst)", took[10], took[19]);
        assert_eq!(rig.haproxy.reloads().await, reloads);
    }
}
