//! Real Nomad: what wakes the controller, and how much of the catalog it then reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::api::{Rig, Way};
use crate::support::controller::{Controller, Env};
use crate::support::gate::Gate;
use crate::support::haproxy::has_backend;
use crate::support::nomad::{Nomad, job};
use crate::support::wait_for;
use reqwest::Method;
use serde_json::{Value, json};

/// More than enough time for a pass: how long to check that something does not happen.
const A_WHILE: Duration = Duration::from_secs(3);
const EVENTS: &str = "nomad_haproxy_nomad_events_up";
/// Services of the large job.
const MANY: usize = 200;

/// A job of many services; nothing listens (mock_driver), so nothing is checked.
fn many(services: usize) -> Value {
    let service = |at: usize| {
        json!({"Name": format!("many-{at}"), "Provider": "nomad", "PortLabel": format!("p{at}"),
               "Tags": ["haproxy.enable=true", "haproxy.check.disabled"]})
    };
    let mut job = job("many", 1, &[], None);
    let group = &mut job["TaskGroups"][0];
    group["Services"] = (0..services).map(service).collect();
    let ports: Vec<Value> = (0..services).map(|at| json!({"Label": format!("p{at}")})).collect();
    group["Networks"] = json!([{"Mode": "host", "DynamicPorts": ports}]);
    job
}

fn one(name: &str, count: u32) -> Value {
    job(name, count, &["enable=true", "check.disabled"], None)
}

/// Our servers that take traffic.
fn seated(rig: &Rig) -> usize {
    rig.haproxy.text().lines().filter(|line| line.contains("\"id\":") && !line.contains("disabled")).count()
}

async fn wait_for_seated(rig: &Rig, count: usize) {
    let what = format!("{count} instances in service");
    wait_for(&what, Duration::from_secs(40), async || (seated(rig) == count).then_some(())).await;
}

async fn wait_for_events(controller: &Controller, open: bool) {
    let what = format!("the event stream to be open: {open}");
    let is_open = async || ((controller.metric(EVENTS).await > 0.5) == open).then_some(());
    wait_for(&what, Duration::from_secs(60), is_open).await;
}

/// Why all of the catalog is read.
const FULL: [&str; 9] =
    ["start", "stream", "unexplained", "no-stream", "resync", "many", "unnamed", "index-went-back", "retry"];

/// How often the catalog was read for this cause.
async fn reads(controller: &Controller, cause: &str) -> u32 {
    let reads = controller.metric(&format!("nomad_haproxy_catalog_reads_total{{cause=\"{cause}\"}}")).await;
    format!("{reads:.0}").parse().unwrap()
}

/// Everything is known, and there is no request but those that wait for a change.
async fn wait_for_rest(gate: &Gate) {
    wait_for("requests to end", Duration::from_secs(30), async || {
        gate.hold(None);
        tokio::time::sleep(Duration::from_millis(700)).await;
        gate.calls().is_empty().then_some(())
    })
    .await;
}

fn env(rig: &Rig, address: &str, resync: &str) -> Env {
    rig.env_with(&[("NOMAD_ADDR", address), ("NOMAD_HAPROXY_RESYNC_INTERVAL", resync)])
}

/// What the calls ask for, without those that wait for a change.
fn asked(calls: &[String]) -> Vec<&str> {
    let waits = |call: &&str| call.contains("wait=") || call.contains("/event/stream");
    calls.iter().map(String::as_str).filter(|call| !waits(call)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_beside_200_services_costs_one_read_of_one_service() {
    let nomad = Nomad::start().await;
    let (gate, url) = Gate::start(&nomad.address).await;
    let rig = Rig::start(Way::Local, "3.2").await;
    nomad.submit(many(MANY)).await;
    nomad.submit(one("api", 1)).await;
    let controller = Controller::start(&env(&rig, &url, "1h"), &[]);
    wait_for_seated(&rig, MANY + 1).await;
    wait_for_events(&controller, true).await;
    wait_for_rest(&gate).await;
    let read = async || futures_util::future::join_all(FULL.map(async |cause| reads(&controller, cause).await)).await;
    let full = read().await;

    // An instance comes, one goes, tags change in place, and the last one goes.
    nomad.scale("api", 2).await;
    wait_for_seated(&rig, MANY + 2).await;
    nomad.scale("api", 1).await;
    wait_for_seated(&rig, MANY + 1).await;
    nomad.submit(job("api", 1, &["enable=false"], None)).await;
    wait_for_seated(&rig, MANY).await;
    nomad.submit(one("api", 1)).await;
    wait_for_seated(&rig, MANY + 1).await;
    nomad.stop_job("api").await;
    wait_for_seated(&rig, MANY).await;
    wait_for_rest(&gate).await;
    assert!(reads(&controller, "event").await >= 5, "{}", controller.http("/metrics").await.1);
    assert_eq!(read().await, full, "{}", controller.log());

    // And one alone, counted.
    gate.hold(None);
    nomad.submit(one("api", 1)).await;
    wait_for_seated(&rig, MANY + 1).await;
    tokio::time::sleep(A_WHILE).await;
    let calls = gate.calls();
    assert_eq!(asked(&calls), ["GET /v1/service/api?namespace=default"], "{calls:?}");
    let waits = calls.iter().filter(|call| call.contains("wait=")).count();
    assert!((1..=2).contains(&waits), "{calls:?}");

    // Nothing changes, so nothing is asked.
    gate.hold(None);
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(gate.calls(), Vec::<String>::new());
}

/// Whatever becomes of the stream, changes arrive, and Nomad is not asked without end.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_good_stream_changes_arrive_by_full_reads() {
    let nomad = Nomad::start().await;
    let (gate, url) = Gate::start(&nomad.address).await;
    let rig = Rig::start(Way::Local, "3.2").await;
    nomad.submit(one("api", 1)).await;
    nomad.submit(one("web", 1)).await;
    let controller = Controller::start(&env(&rig, &url, "1h"), &[]);
    wait_for_seated(&rig, 2).await;
    let service = "{\"Topic\": \"Service\"}";
    let back = format!("{{\"Index\": 9, \"Events\": [{service}]}}\n{{\"Index\": 8, \"Events\": [{service}]}}\n");
    let mut count = 1;
    for (what, status, body) in [
        ("too many connections", 429, String::new()),
        ("denied", 200, String::new()),
        ("it ends with half a line", 200, "{}\n{\"Index\": 7, \"Ev\n".to_owned()),
        ("an index that goes back", 200, back),
    ] {
        gate.interfere(Some(Box::new(move |_, uri| {
            (uri.path() == "/v1/event/stream").then(|| (status, body.clone()))
        })));
        gate.cut_streams();
        wait_for_events(&controller, false).await;
        gate.hold(None);
        count = 5 - count;
        nomad.scale("api", count).await;
        wait_for_seated(&rig, 1 + count as usize).await;
        tokio::time::sleep(A_WHILE).await;
        let calls = gate.calls();
        let streams = calls.iter().filter(|call| call.contains("/event/stream")).count();
        assert!(streams <= 4, "{what}: {streams} streams");
        assert!(calls.len() <= 60, "{what}: {} calls", calls.len());
    }
    gate.interfere(None);
    wait_for_events(&controller, true).await;
    wait_for_rest(&gate).await;
    let full = reads(&controller, "unexplained").await + reads(&controller, "no-stream").await;
    nomad.scale("api", 2).await;
    wait_for_seated(&rig, 3).await;
    assert_eq!(reads(&controller, "unexplained").await + reads(&controller, "no-stream").await, full);
    let log = controller.log();
    assert!(log.contains("no event stream of Nomad") && log.contains("following Nomad's events again"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_may_not_follow_events_still_brings_changes() {
    let nomad = Nomad::start_with_acl().await;
    // A stream of all namespaces is only for those who may read each of them.
    nomad.call(Method::POST, "/v1/namespace/team-a", Some(json!({"Name": "team-a"}))).await;
    nomad.submit(one("api", 1)).await;
    nomad.wait_for_instances("api", 1).await;
    let token = nomad.token_with("namespace \"default\" {\n capabilities = [\"read-job\"]\n}").await;
    let (gate, url) = Gate::start(&nomad.address).await;
    let rig = Rig::start(Way::Local, "3.2").await;
    let mut env = env(&rig, &url, "1h");
    env.push(("NOMAD_TOKEN".into(), token));
    let controller = Controller::start(&env, &[]);
    wait_for_seated(&rig, 1).await;
    // Nomad answers 200, and no line.
    wait_for("a stream that gives nothing", Duration::from_secs(30), async || {
        controller.log().contains("no event stream of Nomad").then_some(())
    })
    .await;
    gate.hold(None);
    nomad.scale("api", 2).await;
    wait_for_seated(&rig, 2).await;
    tokio::time::sleep(A_WHILE).await;
    let calls = gate.calls();
    assert!(calls.iter().filter(|call| call.contains("/event/stream")).count() <= 3, "{calls:?}");
    assert!(reads(&controller, "no-stream").await + reads(&controller, "unexplained").await >= 1);
    assert_eq!(reads(&controller, "event").await, 0);
    // With the right for all namespaces it has the stream.
    nomad.token_with("namespace \"*\" {\n capabilities = [\"read-job\"]\n}").await;
    wait_for_events(&controller, true).await;
    nomad.scale("api", 1).await;
    wait_for_seated(&rig, 1).await;
    wait_for("a read by event", Duration::from_secs(20), async || {
        (reads(&controller, "event").await > 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_revoked_takes_nothing_out_and_its_successor_goes_on() {
    let nomad = Nomad::start_with_acl().await;
    nomad.submit(one("api", 2)).await;
    nomad.wait_for_instances("api", 2).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let rules = "namespace \"*\" {\n capabilities = [\"read-job\"]\n}";
    std::fs::write(&file, nomad.token_with(rules).await).unwrap();
    let rig = Rig::start(Way::Local, "3.2").await;
    let mut env = env(&rig, &nomad.address, "1s");
    env.push(("NOMAD_TOKEN_FILE".into(), file.display().to_string()));
    let controller = Controller::start(&env, &[]);
    wait_for_seated(&rig, 2).await;
    wait_for_events(&controller, true).await;

    let tokens = nomad.call(Method::GET, "/v1/acl/tokens", None).await;
    let revoked = tokens.as_array().unwrap().iter().find(|token| token["Name"] == "test").unwrap();
    let accessor = revoked["AccessorID"].as_str().unwrap().to_owned();
    nomad.call(Method::DELETE, &format!("/v1/acl/token/{accessor}"), None).await;
    wait_for("a read that is denied", Duration::from_secs(30), async || {
        controller.log().contains("does not let this token read").then_some(())
    })
    .await;
    nomad.scale("api", 3).await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(seated(&rig), 2, "nothing is known of Nomad");

    std::fs::write(&file, nomad.token_with(rules).await).unwrap();
    wait_for_seated(&rig, 3).await;
    wait_for_events(&controller, true).await;
    nomad.scale("api", 1).await;
    wait_for_seated(&rig, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_is_made_later_is_followed_too() {
    let nomad = Nomad::start().await;
    nomad.submit(one("api", 1)).await;
    let rig = Rig::start(Way::Local, "3.2").await;
    let controller = Controller::start(&env(&rig, &nomad.address, "1h"), &[]);
    wait_for_seated(&rig, 1).await;
    wait_for_events(&controller, true).await;
    nomad.call(Method::POST, "/v1/namespace/team-a", Some(json!({"Name": "team-a"}))).await;
    let there = |count| {
        let mut job = one("api", count);
        job["Namespace"] = "team-a".into();
        job
    };
    nomad.submit(there(1)).await;
    wait_for_seated(&rig, 2).await;
    let text = rig.haproxy.text();
    assert!(has_backend(&text, "api") && has_backend(&text, "team_a.api"), "{text}");
    assert!(reads(&controller, "unexplained").await > 0);
    wait_for("a stream that has the namespace", Duration::from_secs(30), async || {
        (reads(&controller, "stream").await > 0).then_some(())
    })
    .await;
    wait_for_events(&controller, true).await;
    let unexplained = reads(&controller, "unexplained").await;
    nomad.submit(there(3)).await;
    wait_for_seated(&rig, 4).await;
    nomad.submit(there(0)).await;
    wait_for_seated(&rig, 1).await;
    assert_eq!(reads(&controller, "unexplained").await, unexplained);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_several_namespaces_is_followed_and_a_missing_one_stops_none() {
    let nomad = Nomad::start_with_acl().await;
    for namespace in ["team-a", "team-b", "secret"] {
        nomad.call(Method::POST, &format!("/v1/namespace/{namespace}"), Some(json!({"Name": namespace}))).await;
    }
    let at = |namespace: &str, count| {
        let mut job = one("api", count);
        job["Namespace"] = namespace.into();
        job
    };
    for namespace in ["default", "team-a", "team-b", "secret"] {
        nomad.submit(at(namespace, 1)).await;
    }
    let reads_job = |name: &str| format!("namespace \"{name}\" {{\n capabilities = [\"read-job\"]\n}}\n");
    let token = nomad.token_with(&(reads_job("default") + &reads_job("team-a") + &reads_job("nope"))).await;
    let rig = Rig::start(Way::Local, "3.2").await;
    let mut env = env(&rig, &nomad.address, "1h");
    env.extend([("NOMAD_TOKEN".into(), token), ("NOMAD_NAMESPACE".into(), "default,team-a,secret,nope".into())]);
    let controller = Controller::start(&env, &[]);
    wait_for_seated(&rig, 2).await;
    wait_for_events(&controller, true).await;
    wait_for("what cannot be read to be logged", Duration::from_secs(20), async || {
        let unread = |event: &Value, name: &str| {
            event["message"] == "nothing is read of a namespace" && event["namespace"] == name
        };
        let events = controller.events();
        ["nope", "secret"].iter().all(|name| events.iter().any(|event| unread(event, name))).then_some(())
    })
    .await;
    let before = reads(&controller, "event").await;
    nomad.submit(at("team-a", 3)).await;
    wait_for_seated(&rig, 4).await;
    nomad.submit(at("default", 2)).await;
    wait_for_seated(&rig, 5).await;
    assert!(reads(&controller, "event").await > before, "{}", controller.http("/metrics").await.1);
    // Those that are not watched, or may not be read, change nothing.
    nomad.submit(at("team-b", 2)).await;
    nomad.submit(at("secret", 2)).await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(seated(&rig), 5);
    // One is made later, another one may be read later.
    nomad.call(Method::POST, "/v1/namespace/nope", Some(json!({"Name": "nope"}))).await;
    nomad.submit(at("nope", 1)).await;
    wait_for_seated(&rig, 6).await;
    nomad.token_with(&(reads_job("default") + &reads_job("team-a") + &reads_job("nope") + &reads_job("secret"))).await;
    nomad.submit(at("secret", 1)).await;
    wait_for_seated(&rig, 7).await;
}

/// The server is killed and started at several moments of a rollout. Its clients and their tasks go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_under_churn_takes_nothing_out_and_all_converges() {
    const STEADY: usize = 3;
    let nomad = Nomad::start_server().await;
    let _client = nomad.join("node").await;
    nomad.submit(one("steady", 3)).await;
    nomad.submit(one("api", 1)).await;
    let rig = Rig::start(Way::Local, "3.2").await;
    // No resync: what the restarts hide is found by the streams that begin.
    let controller = Controller::start(&env(&rig, &nomad.address, "1h"), &[]);
    wait_for_seated(&rig, STEADY + 1).await;
    wait_for_events(&controller, true).await;
    let is_steady = async || {
        let running = rig.haproxy.running().await;
        let ready = running.iter().filter(|(name, server)| name.starts_with("steady/") && server.state() == "ready");
        ready.count() == STEADY
    };
    wait_for("the process to serve it", Duration::from_secs(20), async || is_steady().await.then_some(())).await;
    let (stop, has_lost) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let watching = async {
        while !stop.load(Ordering::SeqCst) {
            if !is_steady().await {
                has_lost.store(true, Ordering::SeqCst);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let churning = async {
        for moment in 0..20_u32 {
            let count = 1 + (moment % 4);
            nomad.scale("api", count).await;
            tokio::time::sleep(Duration::from_millis(u64::from(moment) * 13)).await;
            nomad.crash();
            nomad.launch().await;
            if moment % 5 == 4 {
                // The last word may have been lost with the server.
                nomad.scale("api", count).await;
                nomad.wait_for_instances("api", count as usize).await;
                wait_for_seated(&rig, STEADY + count as usize).await;
            }
        }
        stop.store(true, Ordering::SeqCst);
    };
    tokio::join!(watching, churning);
    assert!(!has_lost.load(Ordering::SeqCst), "an instance that was alive was out of service");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_state_with_a_lower_index_is_read_within_one_resync() {
    let nomad = Nomad::start_server().await;
    let _client = nomad.join("node").await;
    nomad.submit(one("api", 2)).await;
    nomad.wait_for_instances("api", 2).await;
    let rig = Rig::start(Way::Local, "3.2").await;
    let controller = Controller::start(&env(&rig, &nomad.address, "4s"), &[]);
    wait_for_seated(&rig, 2).await;
    wait_for_events(&controller, true).await;
    let snapshot = nomad.snapshot().await;
    let index = controller.metric("nomad_haproxy_catalog_index").await;
    for round in 0..10_u32 {
        nomad.submit(job("api", 2, &["enable=true", "check.disabled", &format!("weight={}", 10 + round)], None)).await;
    }
    nomad.submit(one("later", 1)).await;
    wait_for_seated(&rig, 3).await;
    // The file has it before the status of the pass is out.
    let index = wait_for("its index", Duration::from_secs(20), async || {
        Some(controller.metric("nomad_haproxy_catalog_index").await).filter(|now| *now > index)
    })
    .await;
    let streams = reads(&controller, "stream").await;

    nomad.restore(snapshot).await;
    wait_for("the lower index", Duration::from_secs(30), async || {
        (controller.metric("nomad_haproxy_catalog_index").await < index).then_some(())
    })
    .await;
    assert!(seated(&rig) >= 2, "{}", rig.haproxy.text());
    // It follows the events of the restored state: the old stream has none.
    wait_for("a new stream", Duration::from_secs(30), async || {
        (reads(&controller, "stream").await > streams).then_some(())
    })
    .await;
    let before = reads(&controller, "event").await;
    nomad.submit(one("new", 1)).await;
    wait_for("the new service", Duration::from_secs(20), async || {
        has_backend(&rig.haproxy.text(), "new").then_some(())
    })
    .await;
    // On a busy machine an event may come too late to explain its wake; a later change has its own.
    let round = std::cell::Cell::new(20);
    wait_for("a read by event", Duration::from_secs(40), async || {
        let weight = format!("weight={}", round.replace(round.get() + 1));
        nomad.submit(job("new", 1, &["enable=true", "check.disabled", &weight], None)).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        (reads(&controller, "event").await > before).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_is_asked_before_anything_is_removed() {
    let nomad = Nomad::start().await;
    let (gate, url) = Gate::start(&nomad.address).await;
    let rig = Rig::start(Way::Local, "3.2").await;
    nomad.submit(one("api", 1)).await;
    let mut env = env(&rig, &url, "1h");
    env.push(("NOMAD_HAPROXY_MAX_STALE".into(), "5s".into()));
    let controller = Controller::start(&env, &[]);
    wait_for_seated(&rig, 1).await;
    wait_for_events(&controller, true).await;
    wait_for_rest(&gate).await;
    let of_api = |calls: Vec<String>| -> Vec<bool> {
        let of_api = calls.into_iter().filter(|call| call.contains("/v1/service/api"));
        of_api.map(|call| call.contains("stale=true")).collect()
    };
    nomad.scale("api", 2).await;
    wait_for_seated(&rig, 2).await;
    wait_for_rest_of(&gate).await;
    let added = of_api(gate.calls());
    assert!(!added.is_empty() && added.iter().all(|stale| *stale), "{added:?}");
    gate.hold(None);
    nomad.scale("api", 1).await;
    wait_for_seated(&rig, 1).await;
    wait_for_rest_of(&gate).await;
    let removed = of_api(gate.calls());
    assert!(removed.contains(&true) && removed.contains(&false), "{removed:?}");
}

/// The number of calls stays as it is.
async fn wait_for_rest_of(gate: &Gate) {
    wait_for("requests to end", Duration::from_secs(30), async || {
        let before = gate.calls().len();
        tokio::time::sleep(Duration::from_millis(500)).await;
        (gate.calls().len() == before).then_some(())
    })
    .await;
}
