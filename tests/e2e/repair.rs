//! What a process lacks of its file after something was cut short, or was done behind the controller's back, and no later
//! change would bring.

use std::time::Duration;

use serde_json::Value;

use crate::support::api::{Rig, Way};
use crate::support::controller::{Controller, apply, registration, write_catalog};
use crate::support::haproxy::{Haproxy, conditional, hand_written, matrix};
use crate::support::wait_for;

/// Services of the backend `api`.
fn api(ports: &[u16], tags: &[&str]) -> Vec<Value> {
    let tags = [&["enable=true", "check.disabled"], tags].concat();
    ports.iter().map(|port| registration("api", &port.to_string(), 1, *port, &tags)).collect()
}

async fn apply_these(rig: &Rig, catalog: &[Value]) {
    write_catalog(&rig.catalog(), catalog);
    apply(&rig.env(), &rig.catalog()).await;
}

/// Only 3.4 of the API says which weight a server has.
#[tokio::test(flavor = "multi_thread")]
async fn a_weight_that_did_not_arrive_is_set_again() {
    for series in matrix() {
        let rig = Rig::start(Way::Api, series).await;
        let (gate, env) = rig.gated().await;
        apply_these(&rig, &api(&[2001], &["weight=10"])).await;
        let reloads = rig.haproxy.reloads().await;
        write_catalog(&rig.catalog(), &api(&[2001], &["weight=20"]));
        gate.fail_next_actions();
        apply(&env, &rig.catalog()).await;
        rig.agrees().await;
        assert_eq!(rig.haproxy.reloads().await, reloads, "HAProxy {series}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_was_written_and_not_loaded_is_loaded() {
    for series in matrix() {
        let rig = Rig::start(Way::Api, series).await;
        let (gate, mut env) = rig.gated().await;
        env.push(("HAPROXY_WRITE".to_owned(), "text".to_owned()));
        apply_these(&rig, &api(&[2001], &[])).await;
        let catalog = rig.catalog().display().to_string();
        let controller = Controller::start(&env, &["--catalog", &catalog]);
        controller.wait_until_ready().await;
        let (reloads, worker) = (rig.haproxy.reloads().await, rig.haproxy.worker().await);
        gate.lose_next_load();
        write_catalog(&rig.catalog(), &api(&[2001], &["balance=leastconn"]));
        wait_for("the change to be loaded", Duration::from_secs(30), async || {
            (rig.haproxy.worker().await != worker).then_some(())
        })
        .await;
        controller.wait_until_ready().await;
        assert!(rig.haproxy.text().contains("balance leastconn"), "HAProxy {series}");
        assert_eq!(rig.haproxy.reloads().await, reloads + 1, "HAProxy {series}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_line_was_deleted_leaves_the_service() {
    for series in matrix() {
        let rig = Rig::start(Way::Api, series).await;
        apply_these(&rig, &api(&[2001, 2002], &[])).await;
        let is_first = |line: &&str| line.trim_start().starts_with("server api_1 ");
        rig.edit_by_hand(|text| text.split_inclusive('\n').filter(|line| !is_first(line)).collect()).await;
        let reloads = rig.haproxy.reloads().await;
        apply_these(&rig, &api(&[2001, 2002], &[])).await;
        assert_eq!(rig.haproxy.state("api/api_1").await, "maint", "HAProxy {series}: it would get a double share");
        rig.serves(2001..2003, Duration::from_secs(5)).await;
        assert_eq!(rig.haproxy.reloads().await, reloads, "HAProxy {series}");
    }
}

/// The API says `maint` of a server that started disabled and drains.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_in_a_process_that_was_looked_at() {
    for series in matrix() {
        let rig = Rig::start(Way::Api, series).await;
        let drain = ["drain=1s"];
        apply_these(&rig, &api(&[2001, 2002], &drain)).await;
        apply_these(&rig, &api(&[2001, 2002, 2003], &drain)).await;
        apply_these(&rig, &api(&[2001, 2002], &drain)).await;
        assert_eq!(rig.haproxy.state("api/api_3").await, "drain", "HAProxy {series}");
        wait_for("the end of the drain", Duration::from_secs(20), async || {
            apply_these(&rig, &api(&[2001, 2002], &drain)).await;
            (!rig.haproxy.text().contains("drain_until")).then_some(())
        })
        .await;
        rig.agrees().await;
    }
}

/// HAProxy takes the ports and the states of a file from before its configuration.
#[tokio::test(flavor = "multi_thread")]
async fn states_that_haproxy_loads_from_a_file_are_set_again() {
    for series in matrix() {
        for way in [Way::Local, Way::Api] {
            let config = |folder: &std::path::Path, port| {
                let file = format!("global\n    server-state-file {}/states", folder.display());
                let text = hand_written(folder, port).replacen("global", &file, 1);
                text.replacen("defaults base\n", "defaults base\n    load-server-state-from-file global\n", 1)
            };
            let rig = Rig::with(way, series, Haproxy::start_with(series, config).await).await;
            let one = |port, tags: &[&str]| [registration("api", "one", 1, port, &[&["enable=true"], tags].concat())];
            apply_these(&rig, &one(2001, &[])).await;
            let states = rig.haproxy.command("@1 show servers state").await;
            std::fs::write(rig.haproxy.folder().join("states"), format!("{}\n", states.trim())).unwrap();
            apply_these(&rig, &one(2002, &[])).await;
            rig.agrees().await;
            let reloads = rig.haproxy.reloads().await;
            apply_these(&rig, &one(2002, &["balance=leastconn"])).await;
            rig.agrees().await;
            assert_eq!(rig.haproxy.reloads().await, reloads + 1, "HAProxy {series}, {way:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_conditionals_is_not_rendered_for_a_reload() {
    const ACCESS: [(&str, &str); 2] =
        [("NOMAD_HAPROXY_HTTP_TOKEN", "a-token"), ("NOMAD_HAPROXY_HTTP_ADMIN_KEY", "a-key")];
    for series in matrix() {
        let rig = Rig::with(Way::Api, series, Haproxy::start_with(series, conditional).await).await;
        let before = rig.haproxy.bytes();
        write_catalog(&rig.catalog(), &[]);
        let catalog = rig.catalog().display().to_string();
        let env = rig.env_with(&ACCESS);
        let controller = Controller::start(&env, &["--catalog", &catalog]);
        controller.wait_until_ready().await;
        let url = format!("http://{}/api/health/haproxy/recover", controller.listen().await);
        let asked = reqwest::Client::new().post(url).bearer_auth("a-token").header("X-Admin-Key", "a-key");
        let answer = asked.send().await.unwrap();
        let (status, said) = (answer.status().as_u16(), answer.text().await.unwrap());
        assert!(status >= 500 && said.contains(".if"), "HAProxy {series}: {status} {said}");
        assert_eq!((rig.haproxy.bytes(), rig.haproxy.reloads().await), (before, 0), "HAProxy {series}");
    }
}
