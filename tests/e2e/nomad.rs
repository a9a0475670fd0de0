//! Real Nomad, real HAProxy, the controller running: services start, scale, move and stop; Nomad fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::support::api::{Rig, WAYS, Way};
use crate::support::controller::{Controller, run, stderr, stdout};
use crate::support::gate::Gate;
use crate::support::haproxy::matrix;
use crate::support::load::{self, Load};
use crate::support::nomad::{Nomad, job};
use crate::support::wait_for;
use axum::http::Uri;
use reqwest::Method;

/// More than enough time for a pass: how long to check that something does not happen.
const A_WHILE: Duration = Duration::from_secs(3);

async fn wait_for_answer(rig: &Rig, host: &str) {
    let client = reqwest::Client::new();
    wait_for(&format!("an answer from {host}"), Duration::from_secs(15), async || {
        load::get(&client, rig.haproxy.port, host).await.ok().filter(|(status, _)| *status == 200).map(drop)
    })
    .await;
}

fn env(rig: &Rig, nomad: &Nomad) -> crate::support::controller::Env {
    rig.env_with(&[("NOMAD_ADDR", &nomad.address), ("NOMAD_HAPROXY_RESYNC_INTERVAL", "1s")])
}

/// Our servers that take traffic.
fn seated(rig: &Rig) -> usize {
    rig.haproxy.text().lines().filter(|line| line.contains("\"id\":") && !line.contains("disabled")).count()
}

/// For a while nothing of ours in HAProxy changes, and it stays in service.
async fn stays(rig: &Rig, what: &str) {
    let (text, reloads) = (rig.haproxy.text(), rig.haproxy.reloads().await);
    let until = Instant::now() + A_WHILE;
    while Instant::now() < until {
        assert_eq!((rig.haproxy.text(), rig.haproxy.reloads().await), (text.clone(), reloads), "{what}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_routed_scaled_and_stopped() {
    let nomad = Nomad::start().await;
    for series in matrix() {
        for way in WAYS {
            eprintln!("--- on HAProxy {series}, {way:?}");
            let rig = Rig::start(way, series).await;
            let foreign = rig.foreign();
            let mut controller = Controller::start(&env(&rig, &nomad), &[]);
            controller.wait_until_ready().await;
            nomad.submit(job("web-app", 1, &["enable=true", "check.interval=200ms"], Some("1"))).await;
            nomad.wait_for_instances("web-app", 1).await;
            wait_for_answer(&rig, "web_app.test").await;

            let load = Load::start(rig.haproxy.port, "web_app.test", 50);
            nomad.scale("web-app", 4).await;
            wait_for("four instances to answer", Duration::from_secs(30), async || {
                (load.tally().by_answer.len() >= 4).then_some(())
            })
            .await;
            nomad.scale("web-app", 2).await;
            nomad.wait_for_instances("web-app", 2).await;
            wait_for("two seats", Duration::from_secs(10), async || (seated(&rig) == 2).then_some(())).await;
            tokio::time::sleep(A_WHILE).await;
            let tally = load.tally();
            assert_eq!(tally.failed, Vec::<String>::new(), "of {} requests", tally.requests);
            drop(load);

            nomad.stop_job("web-app").await;
            wait_for("the backend to be gone", Duration::from_secs(10), async || {
                (!rig.haproxy.text().contains("web_app")).then_some(())
            })
            .await;
            assert_eq!(rig.foreign(), foreign);
            assert!(controller.metric("nomad_haproxy_live_changes_total").await >= 2.0);
            assert!(controller.metric("nomad_haproxy_reloads_total{result=\"succeeded\"}").await >= 1.0);
            assert_eq!(controller.http("/healthz").await.0, 200);
            assert_eq!(controller.stop().await.code(), Some(0));
            nomad.wait_for_instances("web-app", 0).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_nomad_removes_nothing() {
    let nomad = Nomad::start().await;
    let (gate, url) = Gate::start(&nomad.address).await;
    let rig = Rig::start(Way::Local, "3.2").await;
    let env = rig.env_with(&[("NOMAD_ADDR", &url), ("NOMAD_HAPROXY_RESYNC_INTERVAL", "1s")]);
    nomad.submit(job("steady", 2, &["enable=true"], None)).await;
    nomad.wait_for_instances("steady", 2).await;
    let controller = Controller::start(&env, &[]);
    controller.wait_until_ready().await;
    assert_eq!(seated(&rig), 2);

    for (what, status, body) in [
        ("500", 500, "No cluster leader"),
        ("403", 403, "Permission denied"),
        ("an empty list without an index", 200, "[]"),
        ("half a list", 200, "[{\"Namespace\": \"default\", \"Serv"),
    ] {
        gate.interfere(Some(Box::new(move |_, _| Some((status, body.to_owned())))));
        stays(&rig, what).await;
    }
    // The list can be read, one of its services cannot.
    gate.interfere(Some(Box::new(|_, uri| {
        uri.path().starts_with("/v1/service/").then(|| (500, "rpc error".to_owned()))
    })));
    stays(&rig, "a service that cannot be read").await;
    gate.interfere(None);
    nomad.freeze();
    stays(&rig, "a frozen server").await;
    nomad.thaw();
    nomad.kill();
    stays(&rig, "Nomad is gone").await;
    assert!(controller.metric("nomad_haproxy_pass_failures_total{stage=\"catalog\"}").await >= 5.0);
    assert_eq!(controller.http("/healthz").await.0, 200, "it lives through an outage");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_loses_its_rights_removes_nothing() {
    let nomad = Nomad::start_with_acl().await;
    nomad.call(Method::POST, "/v1/namespace/team-a", Some(serde_json::json!({"Name": "team-a"}))).await;
    let mut there = job("there", 1, &["enable=true"], None);
    there["Namespace"] = "team-a".into();
    nomad.submit(there).await;
    nomad.submit(job("here", 1, &["enable=true"], None)).await;
    let token = nomad.token_with("namespace \"*\" {\n capabilities = [\"read-job\"]\n}").await;
    let rig = Rig::start(Way::Local, "3.0").await;
    let env = rig.env_with(&[
        ("NOMAD_ADDR", &nomad.address),
        ("NOMAD_TOKEN", &token),
        ("NOMAD_HAPROXY_RESYNC_INTERVAL", "1s"),
    ]);
    let controller = Controller::start(&env, &[]);
    wait_for("both services", Duration::from_secs(20), async || (seated(&rig) == 2).then_some(())).await;
    assert!(crate::support::haproxy::has_backend(&rig.haproxy.text(), "team_a.there"), "{}", rig.haproxy.text());

    // The list is shortened without an error, with a normal index.
    nomad.token_with("namespace \"default\" {\n capabilities = [\"read-job\"]\n}").await;
    wait_for("a pass that is denied", Duration::from_secs(10), async || {
        controller.log().contains("the namespace team-a").then_some(())
    })
    .await;
    stays(&rig, "a token that may no longer read one namespace").await;
    // Nothing is left: 200, an empty list, index 0.
    nomad.token_with("node {\n policy = \"read\"\n}").await;
    wait_for("a pass that is denied", Duration::from_secs(10), async || {
        controller.log().contains("services in any namespace").then_some(())
    })
    .await;
    stays(&rig, "a token that may read nothing").await;
    // With its rights restored it continues.
    nomad.token_with("namespace \"*\" {\n capabilities = [\"read-job\"]\n}").await;
    nomad.stop_job("here").await;
    wait_for("the stopped service to go", Duration::from_secs(20), async || (seated(&rig) == 1).then_some(())).await;
    let logged = controller.log();
    assert!(!logged.contains(&token), "the token is in the log");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_outside_of_the_watched_namespaces_gets_a_note() {
    const READS_ALL: &str = "namespace \"*\" {\n capabilities = [\"read-job\"]\n}";
    const READS_DEFAULT: &str = "namespace \"default\" {\n capabilities = [\"read-job\"]\n}";
    const NOTED: &str = "nomad_haproxy_notes{severity=\"warning\"}";
    let nomad = Nomad::start_with_acl().await;
    nomad.call(Method::POST, "/v1/namespace/team-a", Some(serde_json::json!({"Name": "team-a"}))).await;
    for (name, tags) in [("there", ["enable=true"]), ("off", ["enable=false"])] {
        let mut job = job(name, 1, &tags, None);
        job["Namespace"] = "team-a".into();
        nomad.submit(job).await;
    }
    nomad.submit(job("here", 1, &["enable=true"], None)).await;
    nomad.wait_for_instances("here", 1).await;
    wait_for("the services of team-a", Duration::from_secs(60), async || {
        let services = nomad.call(Method::GET, "/v1/services?namespace=team-a", None).await.to_string();
        (services.contains("there") && services.contains("off")).then_some(())
    })
    .await;
    let (gate, url) = Gate::start(&nomad.address).await;
    let lists = Arc::new(AtomicU32::new(0));
    let counted = lists.clone();
    let lists_all = |uri: &Uri| uri.query().is_some_and(|query| query.contains("namespace=*"));
    gate.interfere(Some(Box::new(move |_, uri| {
        counted.fetch_add(u32::from(lists_all(uri)), Ordering::SeqCst);
        None
    })));
    let token = nomad.token_with(READS_ALL).await;
    let rig = Rig::start(Way::Local, "3.2").await;
    let with = |resync: &str| {
        let settings = [("NOMAD_ADDR", url.as_str()), ("NOMAD_TOKEN", &token), ("NOMAD_NAMESPACE", "default")];
        rig.env_with(&[&settings[..], &[("NOMAD_HAPROXY_RESYNC_INTERVAL", resync)]].concat())
    };

    let planned = stdout(&run(&with("1h"), &["plan", "--output", "json"]).await);
    let planned: serde_json::Value = serde_json::from_str(&planned).unwrap();
    assert_eq!(
        planned["notes"],
        serde_json::json!([{
            "severity": "warning",
            "service": {"namespace": "team-a", "name": "there"},
            "code": "unwatched-namespace",
            "text": "not routed: it has `haproxy.enable=true`, but its namespace is not watched; to route it, add \
                     team-a to nomad.namespace (NOMAD_NAMESPACE)",
        }])
    );
    let applied = run(&with("1h"), &["apply", "--strict"]).await;
    assert!(applied.status.success(), "{}", stderr(&applied));
    assert!(stdout(&applied).contains("warning: service team-a/there: not routed"), "{}", stdout(&applied));
    assert_eq!(seated(&rig), 1);

    // It is read at the start, and not when an event wakes the controller; the note stays all the same.
    lists.store(0, Ordering::SeqCst);
    let mut controller = Controller::start(&with("1h"), &[]);
    controller.wait_until_ready().await;
    nomad.submit(job("new", 1, &["enable=true"], None)).await;
    wait_for("the new service", Duration::from_secs(20), async || (seated(&rig) == 2).then_some(())).await;
    assert_eq!(lists.load(Ordering::SeqCst), 1);
    assert!(controller.metric(NOTED).await >= 1.0);
    let logged = controller.log();
    assert_eq!(logged.matches("unwatched-namespace").count(), 1, "{logged}");
    controller.stop().await;

    // Each resync reads it: the note stays while it cannot be read, and goes when the token may no longer see the
    // service. Neither is a failure.
    let controller = Controller::start(&with("1s"), &[]);
    controller.wait_until_ready().await;
    gate.interfere(Some(Box::new(move |_, uri| lists_all(uri).then(|| (500, "rpc error".to_owned())))));
    controller.wait_for_resyncs(1).await;
    assert!(controller.metric(NOTED).await >= 1.0);
    gate.interfere(None);
    nomad.token_with(READS_DEFAULT).await;
    wait_for("the note to go", Duration::from_secs(20), async || (controller.metric(NOTED).await == 0.0).then_some(()))
        .await;
    gate.interfere(Some(Box::new(move |_, uri| lists_all(uri).then(|| (403, "Permission denied".to_owned())))));
    controller.wait_for_resyncs(1).await;
    let logged = controller.log();
    assert!(!logged.contains("Permission denied") && !logged.contains("rpc error"), "{logged}");
    assert_eq!(logged.matches("unwatched-namespace").count(), 2, "once new, once resolved: {logged}");
    assert_eq!(controller.http("/readyz").await.0, 200);
    assert_eq!(seated(&rig), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_live_catalog_is_the_file_that_an_offline_plan_takes() {
    let nomad = Nomad::start().await;
    nomad.submit(job("api-service", 2, &["enable=true", "balance=leastconn"], None)).await;
    nomad.wait_for_instances("api-service", 2).await;
    let folder = tempfile::tempdir().unwrap();
    let env = vec![("NOMAD_ADDR".to_owned(), nomad.address.clone())];
    let printed = stdout(&run(&env, &["catalog"]).await);
    let (catalog, config) = (folder.path().join("catalog.json"), folder.path().join("haproxy.cfg"));
    std::fs::write(&catalog, &printed).unwrap();
    std::fs::write(&config, "defaults base\n  mode http\n").unwrap();
    let (catalog, config) = (catalog.display().to_string(), config.display().to_string());
    let offline =
        run(&vec![], &["plan", "--catalog", &catalog, "--haproxy-config", &config, "--detailed-exitcode"]).await;
    assert_eq!(offline.status.code(), Some(2));
    let diff = stdout(&offline);
    assert!(diff.contains("+backend api_service\n") && diff.contains("+  balance leastconn"), "{diff}");
}
