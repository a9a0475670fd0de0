//! The OpenAPI document of the API, held against the running server: each path is there, each answer has a documented
//! status and the documented form, and there is no path that it lacks.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::support::api::{Rig, Way};
use crate::support::controller::{Controller, registration, write_catalog};
use crate::support::{root, wait_for};
use serde_json::{Value, json};

fn document() -> Value {
    serde_json::from_str(&std::fs::read_to_string(root().join("src/http/openapi.json")).unwrap()).unwrap()
}

/// Each method of each path, as `GET /api/v1/status`.
fn operations(document: &Value) -> BTreeMap<String, Value> {
    let paths = document["paths"].as_object().unwrap();
    let of = |(path, methods): (&String, &Value)| {
        let methods = methods.as_object().unwrap().clone();
        methods.into_iter().map(|(method, is)| (format!("{} {path}", method.to_uppercase()), is)).collect::<Vec<_>>()
    };
    paths.iter().flat_map(of).collect()
}

#[test]
fn every_route_is_documented_and_every_documented_one_is_a_route() {
    let sources = ["api.rs", "act.rs", "haproxy_health.rs"];
    let mut routes = BTreeSet::new();
    for source in sources {
        let text = std::fs::read_to_string(root().join("src/http").join(source)).unwrap();
        for call in text.split(".route(\"").skip(1) {
            let (path, handlers) = call.split_once('"').unwrap();
            let handlers = handlers.split_once('\n').unwrap().0;
            for method in ["get", "post", "put", "delete", "patch"] {
                if handlers.contains(&format!("{method}(")) {
                    routes.insert(format!("{} {path}", method.to_uppercase()));
                }
            }
        }
    }
    // A route elsewhere under /api would be missed here.
    for entry in std::fs::read_dir(root().join("src/http")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.extension().is_some_and(|extension| extension == "rs") && !sources.contains(&name.as_str()) {
            assert!(!std::fs::read_to_string(&path).unwrap().contains(".route(\"/api/"), "routes in {name}");
        }
    }
    let documented: BTreeSet<String> = operations(&document()).into_keys().collect();
    assert_eq!(routes, documented);
}

#[test]
fn the_document_is_good_json_schema_and_names_its_operations() {
    let document = document();
    assert_eq!(document["openapi"], "3.1.0");
    for name in document["components"]["schemas"].as_object().unwrap().keys() {
        schema(&document, &json!({"$ref": format!("#/components/schemas/{name}")}));
    }
    let operations = operations(&document);
    let ids: BTreeSet<&str> = operations.values().map(|is| is["operationId"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), operations.len());
}

/// One schema of the document, with what it refers to.
fn schema(document: &Value, schema: &Value) -> jsonschema::Validator {
    let whole = json!({"components": document["components"], "allOf": [schema]});
    jsonschema::draft202012::options().should_validate_formats(true).build(&whole).unwrap()
}

/// One request, and the status of its answer.
#[derive(Clone, Copy)]
struct Case {
    operation: &'static str,
    path: &'static str,
    has_token: bool,
    has_key: bool,
    body: Option<&'static str>,
    expected: u16,
}

const fn plain(operation: &'static str, path: &'static str, expected: u16) -> Case {
    Case { operation, path, has_token: false, has_key: false, body: None, expected }
}

const fn token(operation: &'static str, path: &'static str, expected: u16) -> Case {
    Case { has_token: true, ..plain(operation, path, expected) }
}

const fn key(operation: &'static str, path: &'static str, expected: u16) -> Case {
    Case { has_key: true, ..token(operation, path, expected) }
}

const fn body(case: Case, body: &'static str) -> Case {
    Case { body: Some(body), ..case }
}

const SYSTEM: &str = "GET /api/health/system";
const HAPROXY: &str = "GET /api/health/haproxy";
const STATS: &str = "GET /api/health/haproxy/stats";
const VALIDATE: &str = "GET /api/health/haproxy/validate";
const RECOVER: &str = "POST /api/health/haproxy/recover";
const SERVICE: &str = "GET /api/v1/services/{name}";
const SET_LOG: &str = "PUT /api/v1/log";

/// With HAProxy well.
const WELL: [Case; 34] = [
    plain(SYSTEM, "/api/health/system", 200),
    plain(SYSTEM, "/api/health/system?haproxy=nope", 404),
    plain(SYSTEM, "/api/health/system?haproxy=a&haproxy=b", 400),
    plain(HAPROXY, "/api/health/haproxy", 200),
    plain(HAPROXY, "/api/health/haproxy?haproxy=nope", 404),
    plain(STATS, "/api/health/haproxy/stats", 401),
    token(STATS, "/api/health/haproxy/stats", 200),
    token(STATS, "/api/health/haproxy/stats?haproxy=nope", 404),
    plain(VALIDATE, "/api/health/haproxy/validate", 401),
    token(VALIDATE, "/api/health/haproxy/validate", 200),
    token(VALIDATE, "/api/health/haproxy/validate?haproxy=nope", 404),
    plain(RECOVER, "/api/health/haproxy/recover", 401),
    token(RECOVER, "/api/health/haproxy/recover", 403),
    key(RECOVER, "/api/health/haproxy/recover", 200),
    key(RECOVER, "/api/health/haproxy/recover?haproxy=nope", 404),
    key(RECOVER, "/api/health/haproxy/recover?action=stop", 400),
    key(RECOVER, "/api/health/haproxy/recover?action=restart", 501),
    body(key(RECOVER, "/api/health/haproxy/recover", 501), "{\"action\": \"restart\"}"),
    plain("GET /api/v1/status", "/api/v1/status", 200),
    plain("GET /api/v1/passes", "/api/v1/passes", 200),
    plain("GET /api/v1/passes", "/api/v1/passes?haproxy=nope", 404),
    plain("GET /api/v1/plan", "/api/v1/plan", 200),
    plain("GET /api/v1/plan", "/api/v1/plan?haproxy=nope", 404),
    plain(SERVICE, "/api/v1/services/api", 200),
    plain(SERVICE, "/api/v1/services/nope", 200),
    plain(SERVICE, "/api/v1/services/api?haproxy=nope", 404),
    plain("POST /api/v1/reconcile", "/api/v1/reconcile", 401),
    token("POST /api/v1/reconcile", "/api/v1/reconcile", 202),
    token("POST /api/v1/guard/release", "/api/v1/guard/release", 202),
    plain("GET /api/v1/log", "/api/v1/log", 200),
    body(token(SET_LOG, "/api/v1/log", 200), "{\"level\": \"info\"}"),
    body(token(SET_LOG, "/api/v1/log", 400), "info"),
    body(plain(SET_LOG, "/api/v1/log", 401), "{\"level\": \"info\"}"),
    plain("GET /api/openapi.json", "/api/openapi.json", 200),
];

/// With HAProxy down.
const DOWN: [Case; 8] = [
    plain(SYSTEM, "/api/health/system", 503),
    plain(HAPROXY, "/api/health/haproxy", 503),
    token(STATS, "/api/health/haproxy/stats", 503),
    token(VALIDATE, "/api/health/haproxy/validate", 503),
    key(RECOVER, "/api/health/haproxy/recover", 503),
    plain("GET /api/v1/status", "/api/v1/status", 200),
    plain("GET /api/v1/passes", "/api/v1/passes", 200),
    plain(SERVICE, "/api/v1/services/api", 200),
];

async fn check(case: &Case, document: &Value, controller: &Controller) {
    let Case { operation, path, has_token, has_key, body, expected } = *case;
    let method = operation.split_once(' ').unwrap().0.parse().unwrap();
    let mut request = reqwest::Client::new().request(method, format!("http://{}{path}", controller.listen().await));
    if has_token {
        request = request.bearer_auth("a-token");
    }
    if has_key {
        request = request.header("X-Admin-Key", "a-key");
    }
    if let Some(body) = body {
        request = request.header("Content-Type", "application/json").body(body);
    }
    let response = request.send().await.unwrap();
    let (status, kind) = (response.status().as_u16(), response.headers()["Content-Type"].to_str().unwrap().to_owned());
    let text = response.text().await.unwrap();
    assert_eq!((status, kind.as_str()), (expected, "application/json"), "{operation} {path}: {text}");
    let answer: Value = serde_json::from_str(&text).unwrap();
    let documented = &operations(document)[operation]["responses"][status.to_string()];
    assert!(documented.is_object(), "{operation} has no {status}");
    let validator = schema(document, &documented["content"]["application/json"]["schema"]);
    let errors: Vec<String> =
        validator.iter_errors(&answer).map(|error| format!("{}: {error}", error.instance_path())).collect();
    assert!(errors.is_empty(), "{operation} {path} {status}: {errors:#?}\n{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_answer_is_as_documented() {
    let document = document();
    let mut rig = Rig::start(Way::Api, "3.2").await;
    let one = |service: &str, port: u16, tags: &[&str]| registration(service, &port.to_string(), 1, port, tags);
    let tags = ["enable=true", "check.interval=100ms"];
    write_catalog(&rig.catalog(), &[one("api", 2001, &tags), one("web", 2002, &["enable=true", "nonsense=1"])]);
    let settings = [
        ("NOMAD_HAPROXY_HTTP_TOKEN", "a-token"),
        ("NOMAD_HAPROXY_HTTP_ADMIN_KEY", "a-key"),
        ("NOMAD_HAPROXY_BREAKER_FAILURE_THRESHOLD", "1"),
        ("NOMAD_HAPROXY_BREAKER_RESET_TIMEOUT", "1h"),
        ("NOMAD_HAPROXY_RESYNC_INTERVAL", "1s"),
    ];
    let controller = Controller::start(&rig.env_with(&settings), &["--catalog", rig.catalog().to_str().unwrap()]);
    controller.wait_until_ready().await;
    wait_for("a sample", Duration::from_secs(20), async || {
        let status: Value = serde_json::from_str(&controller.http("/api/v1/status").await.1).unwrap();
        status["haproxys"][0]["sampled"].is_string().then_some(())
    })
    .await;
    let tested: BTreeSet<&str> = WELL.iter().map(|case| case.operation).collect();
    let all = operations(&document);
    assert_eq!(tested, all.keys().map(String::as_str).collect(), "each is tested");
    for case in &WELL {
        check(case, &document, &controller).await;
    }
    rig.haproxy.kill();
    wait_for("the breaker to open", Duration::from_secs(20), async || {
        let health: Value = serde_json::from_str(&controller.http("/api/health/haproxy").await.1).unwrap();
        (health["health"]["circuitState"] == "OPEN").then_some(())
    })
    .await;
    for case in &DOWN {
        check(case, &document, &controller).await;
    }
}
