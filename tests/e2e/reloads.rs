//! No unneeded reload: services that come back, reloads that do not help, weights, and what the process changes by
//! itself.

use std::time::Duration;

use crate::support::api::{Rig, WAYS, Way};
use crate::support::controller::{Controller, apply, registration, write_catalog};
use crate::support::haproxy::{Haproxy, hand_written, has_backend, matrix};
use crate::support::load;
use crate::support::nomad::{Nomad, job};
use crate::support::servers::{Plain, Server};
use crate::support::wait_for;
use serde_json::Value;

everywhere!(a_service_of_one_that_comes_back_costs_no_reload, linger::comes_back);
everywhere!(a_service_that_stays_away_is_deleted_in_its_time, linger::stays_away);
everywhere!(a_static_algorithm_costs_no_reload_again_and_again, never_twice::static_algorithm);
everywhere!(what_a_reload_repairs_is_repaired_each_time, never_twice::helps_each_time);
everywhere!(our_servers_inherit_the_weight_of_a_foreign_backend, weights);
everywhere!(a_hand_s_work_is_undone_where_no_agent_is, own_business::hand);

/// An instance on a port, which is also its ID.
fn instance(service: &str, port: u16, tags: &[&str]) -> Value {
    let tags: Vec<&str> = ["enable=true", "check.disabled"].iter().chain(tags).copied().collect();
    registration(service, &port.to_string(), u64::from(port), port, &tags)
}

fn running(rig: &Rig, more: &[(&str, &str)]) -> Controller {
    let mut settings = vec![("NOMAD_HAPROXY_RESYNC_INTERVAL", "1s")];
    settings.extend(more);
    Controller::start(&rig.env_with(&settings), &["--catalog", &rig.catalog().display().to_string()])
}

/// What must not change if nothing is done: the file, and the number of reloads.
async fn state(rig: &Rig) -> (String, u64) {
    (rig.haproxy.text(), rig.haproxy.reloads().await)
}

/// A rig with an existing backend of a person.
async fn with_backend(way: Way, series: &str, lines: &[&str]) -> Rig {
    let lines = lines.join("\n    ");
    let config =
        |folder: &std::path::Path, port| format!("{}\nbackend pool\n    {lines}\n", hand_written(folder, port));
    Rig::with(way, series, Haproxy::start_with(series, config).await).await
}

fn in_pool(port: u16, tags: &[&str]) -> Value {
    let tags: Vec<&str> = ["backend=custom"].iter().chain(tags).copied().collect();
    instance("pool", port, &tags)
}

mod linger {
    use super::*;

    pub async fn comes_back(rig: Rig, _way: Way) {
        let (one, two) = (Server::start("one").await, Server::start("two").await);
        let env = rig.env_with(&[("NOMAD_HAPROXY_BACKEND_LINGER", "1h")]);
        // On a new connection: an old worker still serves connections that were kept alive.
        let answer = async || load::get(&reqwest::Client::new(), rig.haproxy.port, "api.test").await.unwrap();
        write_catalog(&rig.catalog(), &[instance("api", one.port(), &[])]);
        apply(&env, &rig.catalog()).await;
        assert_eq!(answer().await, (200, "one".to_owned()));
        let reloads = rig.haproxy.reloads().await;

        write_catalog(&rig.catalog(), &[]);
        let said = apply(&env, &rig.catalog()).await;
        assert!(said.contains("no reload"), "{said}");
        assert_eq!(rig.haproxy.state("api/api_1").await, "maint");
        assert_eq!(answer().await.0, 503);
        rig.agrees().await;
        assert!(apply(&env, &rig.catalog()).await.contains("Nothing to do"));

        write_catalog(&rig.catalog(), &[instance("api", two.port(), &[])]);
        apply(&env, &rig.catalog()).await;
        assert_eq!(answer().await, (200, "two".to_owned()));
        rig.agrees().await;
        assert_eq!(rig.haproxy.reloads().await, reloads);

        // A reload for another reason also removes the backend.
        write_catalog(&rig.catalog(), &[]);
        apply(&env, &rig.catalog()).await;
        assert!(has_backend(&rig.haproxy.text(), "api"));
        write_catalog(&rig.catalog(), &[instance("other", one.port(), &["balance=source"])]);
        apply(&env, &rig.catalog()).await;
        assert!(!has_backend(&rig.haproxy.text(), "api") && has_backend(&rig.haproxy.text(), "other"));
        assert_eq!(rig.haproxy.reloads().await, reloads + 1);
    }

    pub async fn stays_away(rig: Rig, way: Way) {
        write_catalog(&rig.catalog(), &[instance("api", 2001, &[])]);
        // No resync in between: the controller's own timer wakes it.
        let more = [("NOMAD_HAPROXY_BACKEND_LINGER", "2s"), ("NOMAD_HAPROXY_RESYNC_INTERVAL", "1h")];
        let controller = running(&rig, &more);
        controller.wait_until_ready().await;
        let reloads = rig.haproxy.reloads().await;
        write_catalog(&rig.catalog(), &[]);
        rig.haproxy.wait_for_state("api/api_1", way.gone()).await;
        wait_for("the backend to go", Duration::from_secs(15), async || {
            (!has_backend(&rig.haproxy.text(), "api")).then_some(())
        })
        .await;
        rig.haproxy.wait_for_state("api/api_1", "missing").await;
        assert_eq!(rig.haproxy.reloads().await, reloads + u64::from(!rig.makes_backends()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_one_instance_is_rolled_without_a_reload() {
    let nomad = Nomad::start().await;
    for way in WAYS {
        let rig = Rig::start(way, "3.2").await;
        let more = [("NOMAD_ADDR", nomad.address.as_str()), ("NOMAD_HAPROXY_BACKEND_LINGER", "10m")];
        let controller = Controller::start(&rig.env_with(&more), &[]);
        let says = async |version: &str| {
            let client = reqwest::Client::new();
            wait_for(&format!("version {version}"), Duration::from_secs(60), async || {
                let (status, body) = load::get(&client, rig.haproxy.port, "solo.test").await.ok()?;
                (status == 200 && body.ends_with(&format!("version {version}"))).then_some(())
            })
            .await;
        };
        nomad.submit(job("solo", 1, &["enable=true", "check.disabled"], Some("1"))).await;
        says("1").await;
        let reloads = rig.haproxy.reloads().await;
        for version in ["2", "3"] {
            nomad.submit(job("solo", 1, &["enable=true", "check.disabled"], Some(version))).await;
            says(version).await;
        }
        nomad.wait_for_instances("solo", 1).await;
        assert_eq!(rig.haproxy.reloads().await, reloads, "{way:?}");
        drop(controller);
        nomad.stop_job("solo").await;
        nomad.wait_for_instances("solo", 0).await;
    }
}

mod never_twice {
    use super::*;

    pub async fn static_algorithm(rig: Rig, way: Way) {
        let rig = with_backend(way, &rig.series, &["balance source", "default-server weight 100"]).await;
        write_catalog(&rig.catalog(), &[in_pool(2001, &[]), in_pool(2002, &["weight=7"])]);
        let controller = running(&rig, &[]);
        controller.wait_until_ready().await;
        rig.agrees().await;
        let before = state(&rig).await;
        controller.wait_for_resyncs(4).await;
        assert_eq!(state(&rig).await, before);
        // Another instance gets a slot live, and nothing else changes.
        write_catalog(&rig.catalog(), &[in_pool(2002, &["weight=7"]), in_pool(2003, &[])]);
        rig.haproxy.wait_for_state("pool/pool_1", "maint").await;
        controller.wait_for_resyncs(1).await;
        rig.agrees().await;
        let before = state(&rig).await;
        controller.wait_for_resyncs(4).await;
        assert_eq!((state(&rig).await, before.1), (before.clone(), 1));
    }

    /// Every HAProxy refuses such a file, so it is left as it is, with a note. The API does not keep it: it writes what
    /// it reads, with one backend.
    pub async fn declared_twice(rig: Rig) {
        let both = [instance("api", 2001, &[]), instance("api", 2002, &[])];
        write_catalog(&rig.catalog(), &both);
        apply(&rig.env(), &rig.catalog()).await;
        rig.edit_by_hand(|text| {
            let again = text[text.find("backend api").unwrap()..].split("\n\n").next().unwrap().to_owned();
            format!("{text}\n{again}\n")
        })
        .await;
        let controller = running(&rig, &[]);
        wait_for("a note", Duration::from_secs(15), async || {
            controller.log().contains("there are several backends called api").then_some(())
        })
        .await;
        let before = state(&rig).await;
        controller.wait_for_passes(8).await;
        assert_eq!(state(&rig).await, before);
    }

    /// A server that somebody deletes in the process is back: by a reload, or by adding it where that can be done.
    pub async fn helps_each_time(rig: Rig, way: Way) {
        write_catalog(&rig.catalog(), &[instance("api", 2001, &[])]);
        let controller = running(&rig, &[]);
        controller.wait_until_ready().await;
        let reloads = rig.haproxy.reloads().await;
        let (server, back, each) =
            if way == Way::Local { ("api/api_1", "ready", 0) } else { ("api/api_2", "maint", 1) };
        for time in 1..=2 {
            rig.haproxy.command(&format!("@1 set server {server} state maint")).await;
            rig.haproxy.command(&format!("@1 del server {server}")).await;
            wait_for("the server to be back", Duration::from_secs(15), async || {
                (rig.haproxy.state(server).await == back).then_some(())
            })
            .await;
            controller.wait_for_resyncs(1).await;
            assert_eq!(rig.haproxy.reloads().await, reloads + time * each);
        }
        assert!(!controller.log().contains("does not help"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_declared_twice_costs_no_reload_again_and_again() {
    for series in matrix() {
        never_twice::declared_twice(Rig::start(Way::Local, series).await).await;
    }
}

/// What is in a branch that is not taken is in the file and not in the process, whatever is loaded.
#[tokio::test(flavor = "multi_thread")]
async fn a_backend_in_a_branch_that_is_not_taken_costs_no_reload_again_and_again() {
    for series in matrix() {
        let rig = Rig::start(Way::Local, series).await;
        let other = |port| instance("other", port, &["balance=source"]);
        write_catalog(&rig.catalog(), &[instance("api", 2001, &[]), other(2002)]);
        apply(&rig.env(), &rig.catalog()).await;
        rig.edit_by_hand(|text| {
            let at = text.find("backend api").unwrap();
            let end = at + text[at..].find("\n\n").unwrap();
            format!("{}.if defined(NEVER)\n{}\n.endif{}", &text[..at], &text[at..end], &text[end..])
        })
        .await;
        let answer = rig.haproxy.command("reload").await;
        assert!(answer.starts_with("Success=1"), "{answer}");
        let reloads = rig.haproxy.reloads().await;
        let controller = running(&rig, &[]);
        wait_for("a note", Duration::from_secs(15), async || {
            controller.log().contains("a reload does not help").then_some(())
        })
        .await;
        let note = controller.events().into_iter().find(|event| event["note"].as_str().is_some()).unwrap();
        assert_eq!((&note["level"], &note["service"]), (&"ERROR".into(), &"api".into()), "{note}");
        assert!(rig.haproxy.reloads().await <= reloads + 1);
        let before = state(&rig).await;
        controller.wait_for_resyncs(4).await;
        assert_eq!(state(&rig).await, before, "HAProxy {series}");
        // Nor do the others need one.
        for port in [2003, 2004] {
            write_catalog(&rig.catalog(), &[instance("api", 2001, &[]), other(port)]);
            wait_for(&format!("{port} in service"), Duration::from_secs(15), async || {
                let running = rig.haproxy.running().await;
                let seat = running.values().find(|server| server.address.ends_with(&format!(":{port}")))?;
                (seat.state() == "ready").then_some(())
            })
            .await;
            controller.wait_for_resyncs(2).await;
        }
        assert_eq!(rig.haproxy.reloads().await, before.1, "HAProxy {series}");
        let notes = controller.log().matches("a reload does not help").count();
        controller.wait_for_resyncs(2).await;
        assert_eq!(controller.log().matches("a reload does not help").count(), notes, "said once");
    }
}

async fn weights(rig: Rig, way: Way) {
    let lines = ["balance roundrobin", "default-server weight 100", "server hand 127.0.0.1:9"];
    let rig = with_backend(way, &rig.series, &lines).await;
    let written = || {
        let text = rig.haproxy.text();
        let line = text.lines().find(|line| line.contains("server pool_1 ")).unwrap();
        line.split_whitespace().skip_while(|word| *word != "weight").nth(1).map(str::to_owned)
    };
    for (tags, weight) in [(&[][..], 100), (&["weight=7"], 7), (&[], 100)] {
        write_catalog(&rig.catalog(), &[in_pool(2001, tags)]);
        apply(&rig.env(), &rig.catalog()).await;
        assert_eq!(written(), Some(weight.to_string()));
        assert_eq!(rig.haproxy.running().await["pool/pool_1"].weight, weight);
        rig.agrees().await;
        assert!(apply(&rig.env(), &rig.catalog()).await.contains("Nothing to do"));
        assert_eq!(rig.haproxy.reloads().await, u64::from(way == Way::Api), "the first one, which adds the server");
    }
    assert_eq!(rig.haproxy.running().await["pool/hand"].weight, 100);
}

mod own_business {
    use super::*;

    pub async fn hand(rig: Rig, _way: Way) {
        write_catalog(&rig.catalog(), &[instance("api", 2001, &[])]);
        let controller = running(&rig, &[]);
        controller.wait_until_ready().await;
        let before = state(&rig).await;
        for by_hand in ["maint", "drain"] {
            rig.haproxy.command(&format!("@1 set server api/api_1 state {by_hand}")).await;
            rig.haproxy.wait_for_state("api/api_1", "ready").await;
        }
        rig.agrees().await;
        assert_eq!(state(&rig).await, before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_sets_is_left_alone() {
    for (series, way) in matrix().into_iter().flat_map(|series| WAYS.map(|way| (series, way))) {
        eprintln!("--- HAProxy {series}, {way:?}");
        let agent = Plain::saying("drain").await;
        let check = format!("default-server agent-check agent-port {} agent-inter 200ms", agent.port());
        let rig = with_backend(way, series, &["balance roundrobin", &check]).await;
        write_catalog(&rig.catalog(), &[in_pool(2001, &[]), in_pool(2002, &[])]);
        let controller = running(&rig, &[]);
        for server in ["pool/pool_1", "pool/pool_2"] {
            rig.haproxy.wait_for_state(server, "drain").await;
        }
        controller.wait_for_resyncs(1).await;
        let before = state(&rig).await;
        controller.wait_for_resyncs(4).await;
        assert_eq!(rig.haproxy.state("pool/pool_1").await, "drain");
        assert_eq!(state(&rig).await, before);
        agent.says("up ready");
        for server in ["pool/pool_1", "pool/pool_2"] {
            rig.haproxy.wait_for_state(server, "ready").await;
        }
        controller.wait_for_resyncs(2).await;
        assert_eq!(state(&rig).await, before);
        rig.agrees().await;
        // An instance that is gone is out for good, whatever its agent reports: there is no server that the agent could
        // enable.
        write_catalog(&rig.catalog(), &[in_pool(2002, &[])]);
        rig.haproxy.wait_for_state("pool/pool_1", "missing").await;
        assert_eq!(rig.haproxy.running().await.keys().filter(|name| name.starts_with("pool/")).count(), 1);
        assert!(controller.log().contains("every change of its instances takes a reload"));
        assert_eq!(rig.haproxy.reloads().await, before.1 + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_plain_tcp_is_up_whatever_the_defaults_check() {
    let (one, two) = (Plain::start().await, Plain::start().await);
    for (series, way) in matrix().into_iter().flat_map(|series| WAYS.map(|way| (series, way))) {
        for inherited in ["option httpchk", "option httpchk\n    default-server check"] {
            let config = |folder: &std::path::Path, port| {
                let text = hand_written(folder, port);
                text.replace("    mode http\n", &format!("    mode http\n    {inherited}\n"))
            };
            let rig = Rig::with(way, series, Haproxy::start_with(series, config).await).await;
            let tags = ["enable=true", "check.interval=100ms"];
            let stream = [tags[0], tags[1], "mode=tcp"];
            let services =
                [registration("page", "1", 1, one.port(), &tags), registration("stream", "2", 2, two.port(), &stream)];
            write_catalog(&rig.catalog(), &services);
            apply(&rig.env(), &rig.catalog()).await;
            // A server counts as up before its first check, so wait until a check has reported.
            for server in ["page/page_1", "stream/stream_1"] {
                wait_for(&format!("{server} to be checked"), Duration::from_secs(15), async || {
                    let csv = rig.haproxy.command("@1 show stat -1 4 -1").await;
                    let row = csv.lines().find(|line| line.starts_with(&server.replace('/', ",")))?;
                    row.contains("L4OK").then_some(())
                })
                .await;
                assert_eq!(rig.haproxy.statuses().await[server], "UP", "HAProxy {series}, {way:?}, {inherited}");
            }
        }
    }
}
