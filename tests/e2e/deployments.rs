//! Real Nomad deploys, restarts and loses what HAProxy routes to.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::api::{Rig, WAYS, Way};
use crate::support::controller::{Controller, Env};
use crate::support::load::{self, Load};
use crate::support::nomad::{Nomad, job};
use crate::support::wait_for;
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

fn env(rig: &Rig, nomad: &Nomad) -> Env {
    rig.env_with(&[("NOMAD_ADDR", &nomad.address), ("NOMAD_HAPROXY_RESYNC_INTERVAL", "1s")])
}

/// The weights of the servers of `web` that are in service.
async fn weights(rig: &Rig) -> Vec<u16> {
    let running = rig.haproxy.running_in("web").await;
    let ready = running.values().filter(|server| server.state() == "ready" && !server.address.ends_with(":0"));
    let mut weights: Vec<u16> = ready.map(|server| server.weight).collect();
    weights.sort_unstable();
    weights
}

async fn wait_for_weights(rig: &Rig, wanted: &[u16]) {
    let what = format!("the weights {wanted:?}");
    wait_for(&what, Duration::from_secs(60), async || (weights(rig).await == wanted).then_some(())).await;
}

/// The directives of the backend, without its servers.
fn settings(rig: &Rig) -> Vec<String> {
    let text = rig.haproxy.text();
    let backend = text.split("\nbackend web").nth(1).unwrap_or_else(|| panic!("no backend in {text}"));
    let lines = backend.lines().skip(1).take_while(|line| line.starts_with(' '));
    lines.map(|line| line.trim().to_owned()).filter(|line| !line.starts_with("server ")).collect()
}

/// How many of so many requests each version answers.
async fn shares(rig: &Rig, requests: usize) -> BTreeMap<String, usize> {
    let client = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
    let mut shares = BTreeMap::new();
    for _ in 0..requests {
        let (status, body) = load::get(&client, rig.haproxy.port, "web.test").await.unwrap();
        assert_eq!(status, 200, "{body}");
        *shares.entry(body.split_once(' ').unwrap().1.to_owned()).or_default() += 1;
    }
    shares
}

/// Three instances of a weight, rolled out by a canary of a lower one.
fn canary_job(version: &str) -> Value {
    let mut job = job("web", 3, &["enable=true", "check.interval=200ms", "weight=30"], Some(version));
    job["Update"]["Canary"] = json!(1);
    let service = &mut job["TaskGroups"][0]["Services"][0];
    service["CanaryTags"] = json!(["haproxy.enable=true", "haproxy.check.interval=200ms", "haproxy.weight=10"]);
    job
}

async fn deployment(nomad: &Nomad, status: &str) -> String {
    wait_for(&format!("a deployment that is {status}"), Duration::from_secs(60), async || {
        let newest = nomad.try_call(Method::GET, "/v1/job/web/deployment", None).await?;
        let is_healthy = newest["TaskGroups"]["g"]["HealthyAllocs"].as_u64() >= Some(1);
        (newest["Status"] == status && is_healthy).then(|| newest["ID"].as_str().unwrap().to_owned())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_gets_its_share_and_its_promotion_leaves_no_trace() {
    let nomad = Nomad::start().await;
    for way in WAYS {
        let rig = Rig::start(way, "3.2").await;
        let controller = Controller::start(&env(&rig, &nomad), &[]);
        controller.wait_until_ready().await;
        nomad.submit(canary_job("1")).await;
        wait_for_weights(&rig, &[30, 30, 30]).await;
        wait_for("the first version to answer", Duration::from_secs(30), async || {
            let client = reqwest::Client::new();
            load::get(&client, rig.haproxy.port, "web.test").await.ok().filter(|(status, _)| *status == 200).map(drop)
        })
        .await;
        deployment(&nomad, "successful").await;
        let (before, reloads) = (settings(&rig), rig.haproxy.reloads().await);
        let load = Load::start(rig.haproxy.port, "web.test", 50);

        nomad.submit(canary_job("2")).await;
        wait_for_weights(&rig, &[10, 30, 30, 30]).await;
        wait_for("the canary to answer", Duration::from_secs(30), async || {
            shares(&rig, 20).await.contains_key("version 2").then_some(())
        })
        .await;
        let share = shares(&rig, 400).await["version 2"];
        assert!((32..=48).contains(&share), "{way:?}: {share} of 400 in place of a tenth");

        let id = deployment(&nomad, "running").await;
        let promotion = json!({"DeploymentID": id, "All": true});
        nomad.call(Method::PUT, &format!("/v1/deployment/promote/{id}"), Some(promotion)).await;
        deployment(&nomad, "successful").await;
        wait_for("the last one of the first version to go", Duration::from_secs(60), async || {
            (shares(&rig, 30).await.keys().eq(["version 2"])).then_some(())
        })
        .await;
        wait_for_weights(&rig, &[30, 30, 30]).await;
        assert_eq!(settings(&rig), before, "{way:?}");
        assert_eq!(rig.haproxy.reloads().await, reloads, "{way:?}");
        rig.agrees().await;
        let tally = load.tally();
        assert_eq!(tally.failed, Vec::<String>::new(), "{way:?}: of {} requests", tally.requests);
        nomad.stop_job("web").await;
        nomad.wait_for_instances("web", 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_restarts_where_it_was_costs_nothing() {
    let nomad = Nomad::start().await;
    let rig = Rig::start(Way::Api, "3.2").await;
    let mut controller = Controller::start(&env(&rig, &nomad), &[]);
    controller.wait_until_ready().await;
    nomad.submit(job("web", 2, &["enable=true", "weight=30"], Some("1"))).await;
    wait_for_weights(&rig, &[30, 30]).await;
    controller.wait_for_resyncs(1).await;
    let (text, reloads) = (rig.haproxy.text(), rig.haproxy.reloads().await);
    let registered = async || {
        let mut all: Vec<String> = nomad.service("web").await.iter().map(|one| one["ID"].to_string()).collect();
        all.sort();
        all
    };
    let before = registered().await;
    let allocations: Vec<String> =
        nomad.service("web").await.iter().map(|one| one["AllocID"].as_str().unwrap().to_owned()).collect();
    let restarts = async |id: &str| {
        let allocation = nomad.call(Method::GET, &format!("/v1/allocation/{id}"), None).await;
        let task = &allocation["TaskStates"]["t"];
        (task["State"] == "running").then(|| task["Restarts"].as_u64().unwrap())
    };
    // A crash: Nomad starts the task again, and it is registered all the while.
    nomad
        .call(
            Method::PUT,
            &format!("/v1/client/allocation/{}/signal", allocations[0]),
            Some(json!({"Signal": "SIGKILL"})),
        )
        .await;
    wait_for("the task to run again", Duration::from_secs(30), async || {
        restarts(&allocations[0]).await.filter(|restarts| *restarts >= 1)
    })
    .await;
    controller.wait_for_resyncs(1).await;
    assert_eq!((rig.haproxy.text(), rig.haproxy.reloads().await), (text, reloads));

    // A restart that a person asks for: out of service first, as it is stopped; then it is back under the same ID.
    nomad
        .call(
            Method::PUT,
            &format!("/v1/client/allocation/{}/restart", allocations[1]),
            Some(json!({"AllTasks": true})),
        )
        .await;
    wait_for("it to be out", Duration::from_secs(30), async || (weights(&rig).await == [30]).then_some(())).await;
    wait_for_weights(&rig, &[30, 30]).await;
    assert_eq!((registered().await, rig.haproxy.reloads().await), (before, reloads));
    controller.wait_for_passes(1).await;
    rig.agrees().await;
    controller.stop().await;
}

/// A job that only this client runs; its registrations count, not what it does.
fn job_on(node: &str, name: &str, count: u32) -> Value {
    let mut job = job(name, count, &["enable=true", "check.disabled"], None);
    job["Constraints"] = json!([{"LTarget": "${node.unique.name}", "RTarget": node, "Operand": "="}]);
    job
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_still_registered_although_it_has_ended_is_taken_out() {
    let nomad = Nomad::start_patient_server().await;
    let _good = nomad.join("good").await;
    let hangs = nomad.join("hangs").await;
    let rig = Rig::start(Way::Local, "3.2").await;
    nomad.submit(job_on("good", "stays", 3)).await;
    nomad.submit(job_on("hangs", "ends", 5)).await;
    nomad.submit(job_on("hangs", "runs", 1)).await;
    let controller = Controller::start(&env(&rig, &nomad), &[]);
    let seated = |service: &str| {
        let text = rig.haproxy.text();
        let is_it = |line: &&str| line.contains(&format!("server {service}_")) && line.contains("\"id\":");
        text.lines().filter(is_it).filter(|line| !line.contains("disabled")).count()
    };
    let all = || ["stays", "ends", "runs"].map(&seated);
    wait_for("all to be routed", Duration::from_secs(40), async || (all() == [3, 5, 1]).then_some(())).await;

    // Its client cannot deregister it, and Nomad does not miss the client yet. They are more than the guard lets go of
    // without proof.
    hangs.signal(Signal::SIGSTOP);
    nomad.call(Method::DELETE, "/v1/job/ends", None).await;
    wait_for("what has ended to go", Duration::from_secs(30), async || (all() == [3, 0, 1]).then_some(())).await;
    assert_eq!(nomad.service("ends").await.len(), 5, "it is still registered");
    let noted = "5 instances are registered although the allocation has ended";
    wait_for("the note", Duration::from_secs(20), async || controller.log().contains(noted).then_some(())).await;
    assert!(controller.metric("nomad_haproxy_guard_held_instances").await < 1.0);
    controller.wait_for_resyncs(2).await;
    assert_eq!(all(), [3, 0, 1]);

    // Its client is back: the registration goes, and the note with it.
    hangs.signal(Signal::SIGCONT);
    nomad.wait_for_instances("ends", 0).await;
    wait_for("the note to go", Duration::from_secs(30), async || {
        (controller.metric("nomad_haproxy_notes{severity=\"warning\"}").await == 0.0).then_some(())
    })
    .await;
    assert_eq!(all(), [3, 0, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_lost_and_comes_back_takes_only_its_own_along() {
    let nomad = Nomad::start_server().await;
    let _good = nomad.join("good").await;
    let lost = nomad.join("lost").await;
    let rig = Rig::start(Way::Local, "3.2").await;
    nomad.submit(job_on("good", "stays", 3)).await;
    nomad.submit(job_on("lost", "goes", 2)).await;
    let controller = Controller::start(&env(&rig, &nomad), &[]);
    let seated =
        || rig.haproxy.text().lines().filter(|line| line.contains("\"id\":") && !line.contains("disabled")).count();
    wait_for("all to be routed", Duration::from_secs(40), async || (seated() == 5).then_some(())).await;
    let stays = async || rig.haproxy.running_in("stays").await.values().filter(|one| one.state() == "ready").count();
    wait_for("the process to serve it", Duration::from_secs(20), async || (stays().await == 3).then_some(())).await;
    lost.signal(Signal::SIGSTOP);
    wait_for("its own to go", Duration::from_secs(40), async || {
        assert_eq!(stays().await, 3);
        (seated() == 3).then_some(())
    })
    .await;
    lost.signal(Signal::SIGCONT);
    wait_for("its own to come back", Duration::from_secs(60), async || {
        assert_eq!(stays().await, 3);
        (seated() == 5).then_some(())
    })
    .await;
    controller.wait_for_passes(1).await;
    rig.agrees().await;
    assert!(controller.metric("nomad_haproxy_guard_held_instances").await < 1.0);
}
