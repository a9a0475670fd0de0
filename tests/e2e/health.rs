//! The health API of a running controller, key by key against the examples of its users' document
//! (fixtures/health): with HAProxy well and down, with its API down, with and without each credential.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::api::{Rig, Way};
use crate::support::controller::{Controller, Env, registration, write_catalog};
use crate::support::fleet::Fleet;
use crate::support::haproxy::deaf_master;
use crate::support::{root, wait_for};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

const TOKEN: &str = "Bearer a-token";
const KEY: &str = "a-key";
const ACCESS: [(&str, &str); 2] = [("NOMAD_HAPROXY_HTTP_TOKEN", "a-token"), ("NOMAD_HAPROXY_HTTP_ADMIN_KEY", KEY)];
/// The breaker opens soon, and a probe comes soon.
const QUICK: [(&str, &str); 3] = [
    ("NOMAD_HAPROXY_BREAKER_FAILURE_THRESHOLD", "2"),
    ("NOMAD_HAPROXY_BREAKER_RESET_TIMEOUT", "1s"),
    ("NOMAD_HAPROXY_RESYNC_INTERVAL", "1s"),
];
const SYSTEM: &str = "/api/health/system";
const HAPROXY: &str = "/api/health/haproxy";
const STATS: &str = "/api/health/haproxy/stats";
const VALIDATE: &str = "/api/health/haproxy/validate";
const RECOVER: &str = "/api/health/haproxy/recover";

fn document(name: &str) -> Value {
    let path = root().join(format!("fixtures/health/{name}.json"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Every key of the document is there, no other, in the same place, and its value is of the same type or unknown.
fn as_documented(ours: &Value, document: &Value, at: &str) {
    match (ours, document) {
        (Value::Object(ours), Value::Object(document)) if at.ends_with(".serverStates") => {
            for (backend, state) in ours {
                as_documented(state, &document["backend1"], &format!("{at}.{backend}"));
            }
        }
        (Value::Object(ours), Value::Object(document)) => {
            let keys = |map: &serde_json::Map<String, Value>| map.keys().cloned().collect::<BTreeSet<_>>();
            assert_eq!(keys(ours), keys(document), "{at}");
            for (key, value) in ours {
                as_documented(value, &document[key], &format!("{at}.{key}"));
            }
        }
        // Unknown, or a time that the example does not have.
        (Value::Null, _) | (Value::String(_), Value::Null) => {}
        _ => assert_eq!(std::mem::discriminant(ours), std::mem::discriminant(document), "{at}: {ours} for {document}"),
    }
    if let (Some(ours), Some(document)) = (ours.as_str(), document.as_str()) {
        let is_time = |text: &str| text.len() == "2023-05-01T12:00:00.000Z".len() && text.ends_with('Z');
        assert_eq!(is_time(ours), is_time(document), "{at}: {ours} for {document}");
        let is_upper = |text: &str| !text.chars().any(char::is_lowercase);
        assert!(at.ends_with(".version") || is_upper(ours) == is_upper(document), "{at}: {ours} for {document}");
    }
}

/// A request with these credentials.
async fn ask(controller: &Controller, method: Method, path: &str, headers: &[(&str, &str)]) -> reqwest::Response {
    let url = format!("http://{}{path}", controller.listen().await);
    let mut request = reqwest::Client::new().request(method, url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.unwrap()
}

async fn answer(controller: &Controller, method: Method, path: &str, headers: &[(&str, &str)]) -> (u16, Value) {
    let response = ask(controller, method, path, headers).await;
    (response.status().as_u16(), response.json().await.unwrap())
}

async fn get(controller: &Controller, path: &str) -> (u16, Value) {
    answer(controller, Method::GET, path, &[]).await
}

async fn get_authorized(controller: &Controller, path: &str) -> (u16, Value) {
    answer(controller, Method::GET, path, &[("Authorization", TOKEN)]).await
}

async fn recover(controller: &Controller, query: &str) -> (u16, Value) {
    let path = format!("{RECOVER}{query}");
    answer(controller, Method::POST, &path, &[("Authorization", TOKEN), ("X-Admin-Key", KEY)]).await
}

/// The health of the only HAProxy, as soon as it is as wanted; the answer always is as documented.
async fn health(controller: &Controller, what: &str, wanted: impl Fn(&Value) -> bool) -> (u16, Value) {
    let document = document("haproxy");
    wait_for(what, Duration::from_secs(40), async || {
        let (status, answer) = get(controller, HAPROXY).await;
        as_documented(&answer, &document, "");
        assert_eq!(status == 503, answer["health"]["status"] == "UNHEALTHY", "{status} {answer}");
        wanted(&answer["health"]).then_some((status, answer["health"].clone()))
    })
    .await
}

fn circuit(state: &str) -> impl Fn(&Value) -> bool {
    move |health| health["circuitState"] == state
}

fn two_instances(rig: &Rig) {
    let one = |port: u16| registration("api", &port.to_string(), 1, port, &["enable=true", "check.disabled"]);
    write_catalog(&rig.catalog(), &[one(2001), one(2002)]);
}

fn run(rig: &Rig, env: &Env, more: &[(&str, &str)]) -> Controller {
    two_instances(rig);
    let mut env = env.clone();
    env.extend(ACCESS.iter().chain(more).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    Controller::start(&env, &["--catalog", rig.catalog().to_str().unwrap()])
}

async fn case_health(mut rig: Rig, way: Way) {
    let controller = run(&rig, &rig.env(), &QUICK);
    controller.wait_until_ready().await;
    // The first sample comes after the first pass, the requests' rate with the second one that is a second later.
    let (status, well) = health(&controller, "a sample and a rate", |health| {
        let metrics = &health["metrics"];
        metrics["serverStates"]["api"]["status"] == "UP" && metrics["requests"]["rate"].is_number()
    })
    .await;
    assert_eq!((status, &well["status"], &well["circuitState"]), (200, &json!("HEALTHY"), &json!("CLOSED")));
    assert_eq!(
        (&well["routeCount"], &well["failureCount"], &well["recoveryAttempts"]),
        (&json!(1), &json!(0), &json!(0))
    );
    assert_eq!(well["circuitDetails"]["failureThreshold"], 2);
    assert_eq!(well["circuitDetails"]["lastFailure"], Value::Null);
    let details = &well["lastCheck"]["details"];
    assert_eq!(well["lastCheck"]["status"], "HEALTHY");
    assert_eq!(details["containerRunning"], Value::Null, "there is none that it knows of");
    assert_eq!((&details["processRunning"], &details["apiConnected"]), (&json!(true), &json!(true)));
    assert_eq!(details["configValid"], true, "HAProxy validated what the first pass wrote");
    assert!(details["responseTime"].is_u64(), "{details}");
    let metrics = &well["metrics"];
    assert!(metrics["version"].as_str().unwrap().starts_with(&rig.series), "{metrics}");
    for figure in [
        "/connections/current",
        "/connections/total",
        "/connections/rate",
        "/connections/limit",
        "/requests/total",
        "/errors/total",
        "/uptime",
    ] {
        assert!(metrics.pointer(figure).unwrap().is_u64(), "{figure}: {metrics}");
    }
    assert_eq!(metrics["serverStates"], json!({"api": {"status": "UP", "errors": 0, "connections": 0}}));
    let (status, system) = get(&controller, SYSTEM).await;
    as_documented(&system, &document("system"), "");
    assert_eq!((status, &system["status"]), (200, &json!("healthy")));
    assert_eq!(system["services"]["haproxy"]["metrics"]["routeCount"], 1);
    let (_, all) = get(&controller, "/api/v1/status").await;
    let haproxy = &all["haproxys"][0];
    assert!(haproxy["sampled"].is_string(), "{haproxy}");
    let checks: Vec<_> =
        haproxy["backends"][0]["servers"].as_array().unwrap().iter().map(|s| &s["check"]["status"]).collect();
    assert_eq!(checks.iter().filter(|status| **status == "no check").count(), 2, "{checks:?}");
    assert!(checks.iter().all(|status| *status == "no check" || *status == "MAINT"), "{checks:?}");

    asked(&controller, &rig).await;

    rig.haproxy.kill();
    let (_, down) = health(&controller, "the breaker to open", circuit("OPEN")).await;
    let details = &down["lastCheck"]["details"];
    assert_eq!((&down["status"], &down["lastCheck"]["status"]), (&json!("UNHEALTHY"), &json!("UNHEALTHY")));
    assert_eq!((&details["processRunning"], &details["apiConnected"]), (&json!(false), &json!(way == Way::Api)));
    assert_eq!(details["responseTime"], Value::Null);
    assert!(down["failureCount"].as_u64().unwrap() >= 2, "{down}");
    assert_eq!(down["failureCount"], down["circuitDetails"]["failureCount"]);
    assert!(down["circuitDetails"]["lastFailure"].is_string());
    let nothing = json!({"status": null, "errors": null, "connections": null});
    assert_eq!(down["metrics"]["serverStates"], json!({ "api": nothing }), "nothing is known of it now");
    assert_eq!(down["metrics"]["connections"], json!({"current": null, "total": null, "rate": null, "limit": null}));
    assert_eq!((&down["metrics"]["version"], &down["metrics"]["uptime"]), (&Value::Null, &Value::Null));
    let (status, system) = get(&controller, SYSTEM).await;
    as_documented(&system, &document("system"), "");
    assert_eq!((status, &system["status"]), (503, &json!("unhealthy")));
    let (status, failed) = recover(&controller, "").await;
    as_documented(&failed, &document("recover"), "");
    assert_eq!((status, &failed["success"], &failed["action"]), (503, &json!(false), &json!("reload")), "{failed}");
    assert!(failed["message"].as_str().unwrap().contains("no answer"), "{failed}");

    rig.haproxy.launch().await;
    let (_, again) = health(&controller, "HAProxy to be well again", |health| health["status"] == "HEALTHY").await;
    assert_eq!((&again["circuitState"], &again["failureCount"]), (&json!("CLOSED"), &json!(0)));
    assert!(again["circuitDetails"]["lastFailure"].is_string());
    assert!(
        again["recoveryAttempts"].as_u64().unwrap() >= 4,
        "two recoveries, their probes, and the breaker's: {again}"
    );
    rig.agrees().await;
}

/// The three that make HAProxy work, with each credential missing.
async fn asked(controller: &Controller, rig: &Rig) {
    for path in [STATS, VALIDATE] {
        for (headers, wanted) in
            [(vec![], 401), (vec![("Authorization", "Bearer wrong")], 401), (vec![("X-Admin-Key", KEY)], 401)]
        {
            let (status, answer) = answer(controller, Method::GET, path, &headers).await;
            assert_eq!(status, wanted, "{path} {headers:?}");
            assert!(answer["error"].is_string(), "{answer}");
        }
    }
    let wrong = [("Authorization", TOKEN), ("X-Admin-Key", "wrong")];
    for (headers, wanted) in [(&[][..], 401), (&wrong[..1], 403), (&wrong[..], 403), (&[("X-Admin-Key", KEY)][..], 401)]
    {
        assert_eq!(answer(controller, Method::POST, RECOVER, headers).await.0, wanted, "{headers:?}");
    }
    let (status, stats) = get_authorized(controller, STATS).await;
    assert_eq!((status, &stats["success"]), (200, &json!(true)));
    let named = |kind: &str, name: &str| {
        let rows = stats[kind].as_array().unwrap();
        rows.iter().find(|row| row["name"] == name).cloned().unwrap_or_else(|| panic!("no {name} in {rows:?}"))
    };
    assert_eq!(named("frontends", "web")["stats"]["status"], "OPEN");
    assert_eq!(named("backends", "api")["stats"]["mode"], "http");
    let server = named("servers", "api_1");
    assert_eq!((&server["backend_name"], &server["stats"]["status"]), (&json!("api"), &json!("no check")));
    assert_eq!(server["stats"]["scur"], 0);
    assert_eq!(get_authorized(controller, VALIDATE).await, (200, document("validate")));

    let worker = rig.haproxy.worker().await;
    let restart = recover(controller, "?action=restart").await;
    as_documented(&restart.1, &document("recover"), "");
    assert_eq!((restart.0, &restart.1["success"]), (501, &json!(false)));
    assert!(restart.1["message"].as_str().unwrap().contains("`systemctl restart haproxy`"), "{restart:?}");
    assert_eq!(recover(controller, "?action=explode").await.0, 400);
    assert_eq!(rig.haproxy.worker().await, worker, "nothing was done");
    let (status, recovered) = recover(controller, "").await;
    let mut expected = document("recover");
    expected["action"] = json!("reload");
    assert_eq!((status, recovered), (200, expected));
    assert_ne!(rig.haproxy.worker().await, worker, "it was reloaded");
}

everywhere!(health_is_as_documented_with_haproxy_well_and_down, case_health);

#[tokio::test(flavor = "multi_thread")]
async fn without_credentials_in_the_settings_the_three_are_closed() {
    let rig = Rig::start(Way::Local, "3.2").await;
    two_instances(&rig);
    let controller = Controller::start(&rig.env(), &["--catalog", rig.catalog().to_str().unwrap()]);
    controller.wait_until_ready().await;
    for (method, path) in [(Method::GET, STATS), (Method::GET, VALIDATE), (Method::POST, RECOVER)] {
        let (status, answer) =
            answer(&controller, method, path, &[("Authorization", TOKEN), ("X-Admin-Key", KEY)]).await;
        assert_eq!(status, 403, "{path}");
        assert!(answer["error"].as_str().unwrap().contains("NOMAD_HAPROXY_HTTP_TOKEN"), "{answer}");
    }
    assert_eq!(get(&controller, HAPROXY).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn past_an_open_breaker_goes_nothing_but_the_probe() {
    let rig = Rig::start(Way::Api, "3.2").await;
    let (gate, env) = rig.gated().await;
    let controller = run(&rig, &env, &QUICK);
    controller.wait_until_ready().await;
    gate.interfere(Some(Box::new(|_, _| Some((500, "{\"message\": \"out of order\"}".to_owned())))));
    let (_, down) = health(&controller, "the breaker to open", circuit("OPEN")).await;
    let details = &down["lastCheck"]["details"];
    assert_eq!((&details["apiConnected"], &details["processRunning"]), (&json!(false), &Value::Null));
    gate.hold(None);
    for path in [STATS, VALIDATE] {
        let (status, answer) = get_authorized(&controller, path).await;
        assert_eq!((status, &answer["success"]), (503, &json!(false)), "{answer}");
        assert!(answer["message"].as_str().unwrap().starts_with("the circuit breaker is open"), "{answer}");
    }
    let (status, failed) = recover(&controller, "").await;
    assert_eq!((status, &failed["success"]), (503, &json!(false)), "{failed}");
    for _ in 0..20 {
        get(&controller, HAPROXY).await;
        get(&controller, SYSTEM).await;
    }
    let calls = gate.calls();
    assert!(!calls.is_empty() && calls.iter().all(|call| call.ends_with("/runtime/info")), "{calls:?}");
    gate.interfere(None);
    // Whatever the state of the breaker, a recovery that HAProxy answers closes it.
    let (status, recovered) = recover(&controller, "").await;
    assert_eq!((status, &recovered["success"]), (200, &json!(true)), "{recovered}");
    let (_, well) = health(&controller, "the breaker to close", circuit("CLOSED")).await;
    assert_eq!(well["status"], "HEALTHY");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_haproxy_work_comes_one_at_a_time() {
    let rig = Rig::start(Way::Api, "3.2").await;
    let (gate, env) = rig.gated().await;
    let controller = run(&rig, &env, &[("NOMAD_HAPROXY_RESYNC_INTERVAL", "1h")]);
    controller.wait_until_ready().await;
    health(&controller, "a sample", |health| health["metrics"]["errors"]["total"].is_u64()).await;
    gate.hold(None);
    gate.freeze(true);
    let headers = [("Authorization", TOKEN)];
    let first = ask(&controller, Method::GET, STATS, &headers);
    let others = async {
        wait_for("the first request to arrive", Duration::from_secs(10), async || {
            (gate.calls().len() == 1).then_some(())
        })
        .await;
        let (stats, validate) = tokio::join!(
            ask(&controller, Method::GET, STATS, &headers),
            ask(&controller, Method::GET, VALIDATE, &headers)
        );
        for refused in [stats, validate] {
            assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert!(refused.headers().contains_key("Retry-After"));
        }
        assert_eq!(gate.calls().len(), 1, "{:?}", gate.calls());
        gate.freeze(false);
    };
    let (first, ()) = tokio::join!(first, others);
    assert_eq!(first.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_that_is_never_answered_delays_no_pass() {
    let rig = Rig::start(Way::Local, "3.2").await;
    let deaf = rig.haproxy.folder().join("deaf.sock");
    let forwarding = deaf_master(&deaf, &rig.haproxy.master(), "show stat\n");
    let mut env = rig.env();
    env.iter_mut().find(|(key, _)| key == "HAPROXY_MASTER_SOCKET").unwrap().1 = deaf.display().to_string();
    let controller = run(&rig, &env, &QUICK);
    controller.wait_until_ready().await;
    controller.wait_for_resyncs(3).await;
    write_catalog(&rig.catalog(), &[registration("api", "2001", 1, 2001, &["enable=true", "check.disabled"])]);
    rig.haproxy.wait_for_state("api/api_2", "maint").await;
    let (status, well) = health(&controller, "its health", |_| true).await;
    assert_eq!((status, &well["status"], &well["failureCount"]), (200, &json!("HEALTHY"), &json!(0)));
    assert_eq!(well["metrics"]["errors"], json!({"total": null, "rate": null}), "there is no sample");
    assert!(well["metrics"]["requests"]["total"].is_u64(), "a pass knows this");
    forwarding.abort();
}

async fn case_unloadable(rig: Rig, _way: Way) {
    // A port that another process has: HAProxy validates it, and cannot load it.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let controller = run(&rig, &rig.env(), &[]);
    controller.wait_until_ready().await;
    rig.edit(|text| format!("{text}\nfrontend taken\n    bind {}\n", taken.local_addr().unwrap())).await;
    let worker = rig.haproxy.worker().await;
    let (status, failed) = recover(&controller, "").await;
    as_documented(&failed, &document("recover"), "");
    assert_eq!((status, &failed["success"]), (502, &json!(false)), "{failed}");
    assert!(failed["message"].as_str().unwrap().contains("could not load"), "{failed}");
    assert_eq!(rig.haproxy.worker().await, worker, "the old one goes on");
}

everywhere!(a_recovery_that_fails_says_why, case_unloadable);

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_haproxy_refuses_is_degraded_and_only_a_token_shows_why() {
    let rig = Rig::start(Way::Local, "3.2").await;
    let controller = run(&rig, &rig.env(), &QUICK);
    controller.wait_until_ready().await;
    rig.edit_by_hand(|text| format!("{text}\nbackend mine\n    s3cret nonsense\n")).await;
    let (_, unknown) =
        health(&controller, "the file to be read", |health| health["lastCheck"]["details"]["configValid"].is_null())
            .await;
    assert_eq!(unknown["status"], "HEALTHY", "nobody has asked HAProxy yet");
    let (status, refused) = get_authorized(&controller, VALIDATE).await;
    as_documented(&refused, &document("validate"), "");
    assert_eq!((status, &refused["success"], &refused["valid"]), (200, &json!(true), &json!(false)));
    assert!(refused["message"].as_str().unwrap().contains("s3cret"), "{refused}");
    let (status, health) = health(&controller, "the verdict", |health| health["status"] == "DEGRADED").await;
    assert_eq!((status, &health["lastCheck"]["details"]["configValid"]), (200, &json!(false)));
    assert!(!health.to_string().contains("s3cret"), "{health}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_it_speaks_of_the_worst_or_of_the_one_that_is_named() {
    let fleet = Fleet::start().await;
    let one = registration("api", "1", 1, 2001, &["enable=true", "check.disabled"]);
    write_catalog(&fleet.catalog(), &[one]);
    let more: Vec<_> = ACCESS.iter().chain(&QUICK).copied().collect();
    let controller = fleet.run(&more);
    controller.wait_until_ready().await;
    let about = async |path: &str| {
        let response = ask(&controller, Method::GET, path, &[]).await;
        let name = response.headers().get("X-Haproxy-Name").map(|name| name.to_str().unwrap().to_owned());
        (response.status().as_u16(), name.unwrap_or_default(), response.json::<Value>().await.unwrap())
    };
    let (status, name, _) = about(HAPROXY).await;
    assert_eq!((status, name.as_str()), (200, "edge-a"), "of equal ones the first");
    let (status, refused) = recover(&controller, "").await;
    assert_eq!((status, &refused["success"]), (409, &json!(false)), "{refused}");
    assert_eq!(get(&controller, "/api/health/haproxy?haproxy=nope").await.0, 404);
    assert_eq!(get(&controller, "/api/health/system?haproxy=nope").await.0, 404);

    fleet.gates[1].interfere(Some(Box::new(|_, _| Some((500, "out of order".to_owned())))));
    let (status, name, answer) = wait_for("the worst", Duration::from_secs(20), async || {
        Some(about(HAPROXY).await).filter(|(_, _, answer)| answer["health"]["circuitState"] == "OPEN")
    })
    .await;
    as_documented(&answer, &document("haproxy"), "");
    assert_eq!((status, name.as_str()), (503, "edge-b"));
    let (status, name, system) = about(SYSTEM).await;
    assert_eq!((status, name.as_str(), &system["status"]), (503, "edge-b", &json!("unhealthy")));
    for (named, wanted) in [("edge-a", 200), ("edge-b", 503), ("edge-c", 200)] {
        let (status, name, _) = about(&format!("{HAPROXY}?haproxy={named}")).await;
        assert_eq!((status, name.as_str()), (wanted, named));
        assert_eq!(about(&format!("{SYSTEM}?haproxy={named}")).await.0, wanted);
    }
    let worker = fleet.rigs[2].haproxy.worker().await;
    let (status, recovered) = recover(&controller, "?haproxy=edge-c").await;
    assert_eq!((status, &recovered["success"]), (200, &json!(true)), "{recovered}");
    assert_ne!(fleet.rigs[2].haproxy.worker().await, worker);
}
