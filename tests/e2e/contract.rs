//! The substitutes for real parts are compared with recordings: the fake API with the Data Plane API's exchanges, the
//! Nomad client with Nomad's answers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::support::fake_api::FakeApi;
use crate::support::haproxy::{Haproxy, matrix};
use crate::support::{free_port, root};
use nomad_haproxy::catalog::nomad::NomadCatalog;
use nomad_haproxy::catalog::{Catalog, Unread};
use nomad_haproxy::nomad::{Nomad, NomadConfig, NomadError};
use serde_json::Value;

/// Requests that the controller does not make, so the fake API does not support them: counted, never skipped silently.
fn is_unused(path: &str) -> bool {
    // Statistics have a recording of their own, at a time when the checks have run.
    let unused = ["/global", "/defaults", "/frontends", "/maps", "stats/native"];
    unused.iter().any(|part| path.contains(part))
}

/// A text without the lines that hold its hash and its version.
fn unstamped(text: &str) -> Vec<&str> {
    text.split_inclusive('\n').filter(|line| !line.starts_with("# _")).collect()
}

/// A list in the order of its names: the API lists what it has in memory in an order that is not the file's.
fn by_name(list: &[Value]) -> Vec<Value> {
    let mut list = list.to_vec();
    list.sort_by_key(|one| one["name"].to_string());
    list
}

/// Compares two JSON values: the same types everywhere, and the same keys if `exact`.
fn same_shape(ours: &Value, recorded: &Value, exact: bool, at: &str) {
    match (ours, recorded) {
        (Value::Object(ours), Value::Object(recorded)) => {
            let (a, b): (BTreeSet<_>, BTreeSet<_>) = (ours.keys().collect(), recorded.keys().collect());
            assert!(a.is_subset(&b), "{at}: {a:?} has more than {b:?}");
            assert!(!exact || a == b, "{at}: {a:?} is not {b:?}");
            for (key, value) in ours {
                same_shape(value, &recorded[key], exact, &format!("{at}.{key}"));
            }
        }
        (Value::Array(ours), Value::Array(recorded)) => {
            assert_eq!(ours.len(), recorded.len(), "{at}: {ours:?} is not as long as {recorded:?}");
            for (one, other) in by_name(ours).iter().zip(&by_name(recorded)) {
                same_shape(one, other, exact, &format!("{at}[]"));
            }
        }
        _ => assert_eq!(
            std::mem::discriminant(ours),
            std::mem::discriminant(recorded),
            "{at}: {ours} is of another type than {recorded}"
        ),
    }
}

fn renamed(text: &str, names: &[(String, String)]) -> String {
    names.iter().fold(text.to_owned(), |text, (recorded, ours)| text.replace(recorded, ours))
}

struct Replay {
    haproxy: Haproxy,
    url: String,
    /// Recorded → replayed: transactions, reloads, ports.
    names: Vec<(String, String)>,
    /// How many versions the exchanges that were left out account for.
    skipped_versions: u64,
}

impl Replay {
    fn here(&self, text: &str) -> String {
        renamed(text, &self.names)
    }

    async fn exchange(&mut self, exchange: &Value) {
        let (request, response) = (&exchange["request"], &exchange["response"]);
        let (method, recorded_path) = (request["method"].as_str().unwrap(), request["path"].as_str().unwrap());
        let at = format!("{} {method} {recorded_path}", exchange["scenario"]);
        let mut path = self.here(recorded_path);
        // Versions in a query are those of the recording.
        if let Some((before, version)) = path.clone().split_once("version=")
            && let Ok(version) = version.parse::<u64>()
        {
            path = format!("{before}version={}", version - self.skipped_versions);
        }
        let mut call = reqwest::Client::new().request(method.parse().unwrap(), format!("{}{path}", self.url));
        call = match (exchange["note"].as_str(), request.get("auth")) {
            (_, Some(Value::Null)) => call,
            (Some("wrong password"), _) => call.basic_auth("admin", Some("wrong")),
            _ => call.basic_auth("admin", Some("secret")),
        };
        if let Some(actions) = request["headers"]["X-Runtime-Actions"].as_str() {
            call = call.header("X-Runtime-Actions", actions);
        }
        call = match &request["body"] {
            Value::Null => call,
            Value::String(text) => call.body(self.here(text)),
            json => call.json(&serde_json::from_str::<Value>(&self.here(&json.to_string())).unwrap()),
        };
        let answer = call.send().await.unwrap();
        assert_eq!(u64::from(answer.status().as_u16()), response["status"].as_u64().unwrap(), "{at}");
        self.headers(answer.headers(), &response["headers"], &at);
        let body = answer.text().await.unwrap();
        self.body(&body, &response["body"], &at);
    }

    fn headers(&mut self, ours: &reqwest::header::HeaderMap, recorded: &Value, at: &str) {
        let recorded = recorded.as_object().unwrap();
        let ours = |name: &str| ours.get(name).map(|value| value.to_str().unwrap().to_owned());
        for (name, value) in recorded {
            let (ours, recorded) = (ours(name), value.as_str().unwrap());
            match name.as_str() {
                "Configuration-Version" => {
                    let recorded: u64 = recorded.parse().unwrap();
                    let expected = if recorded == 0 { 0 } else { recorded - self.skipped_versions };
                    assert_eq!(ours, Some(expected.to_string()), "{at}: {name}");
                }
                "Reload-Id" => {
                    self.names.push((recorded.to_owned(), ours.unwrap_or_else(|| panic!("{at}: no Reload-Id"))));
                }
                "Content-Type" => assert!(ours.as_deref().unwrap_or("").starts_with(recorded), "{at}: {ours:?}"),
                // A hash of the API's own, which the controller does not use.
                "Configuration-Checksum" => {}
                _ => assert_eq!(ours.as_deref(), Some(recorded), "{at}: {name}"),
            }
        }
    }

    fn body(&mut self, ours: &str, recorded: &Value, at: &str) {
        if let Value::String(text) = recorded {
            match serde_json::from_str::<Value>(text) {
                // An error of the raw endpoint: JSON in plain text.
                Ok(recorded) if recorded.is_object() => {
                    let ours: Value = serde_json::from_str(ours).unwrap_or_else(|_| panic!("{at}: {ours}"));
                    same_shape(&ours, &recorded, true, at);
                }
                _ => assert_eq!(unstamped(ours), unstamped(&self.here(text)), "{at}"),
            }
            return;
        }
        let ours: Value = serde_json::from_str(ours).unwrap_or_else(|_| panic!("{at}: {ours}"));
        let recorded: Value = serde_json::from_str(&self.here(&recorded.to_string())).unwrap();
        if let (Some(ours), Some(recorded)) = (ours["id"].as_str(), recorded["id"].as_str())
            && at.contains("/transactions?")
        {
            self.names.push((recorded.to_owned(), ours.to_owned()));
        }
        // A reload may be done before it is polled.
        let in_progress = recorded["status"] == "in_progress" && at.contains("/reloads/");
        if !in_progress {
            same_shape(
                &ours,
                &recorded,
                !at.contains("/runtime/info") && !at.contains("/v3/info") && !at.contains("/reloads"),
                at,
            );
        }
        let is_state = at.contains("/configuration/backends") && ours.get("code").is_none();
        if is_state && !at.contains("GET /v3/services/haproxy/configuration/backends?") {
            assert_eq!(ours, recorded, "{at}");
        }
    }
}

async fn replay(series: &str) -> (usize, usize) {
    let file = root().join(format!("fixtures/dataplane/dataplane-{series}.json"));
    let exchanges: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let initial = exchanges.iter().find(|e| e["request"]["path"].as_str().unwrap().ends_with("/raw")).unwrap();
    let initial = initial["response"]["body"].as_str().unwrap().to_owned();
    // The local values of the recorded ports and folder. Nothing listens at 9008 and 9009, as nothing connects to them.
    let ports = [("127.0.0.1:8080", free_port()), ("127.0.0.1:9008", free_port()), ("127.0.0.1:9009", free_port())];
    let mut names: Vec<(String, String)> =
        ports.iter().map(|(recorded, ours)| ((*recorded).to_owned(), format!("127.0.0.1:{ours}"))).collect();
    names.push(("9008".to_owned(), ports[1].1.to_string()));
    names.push((":8080".to_owned(), format!(":{}", ports[0].1)));
    names.push(("\"port\":8080".to_owned(), format!("\"port\":{}", ports[0].1)));
    let renamed = names.clone();
    let config = move |folder: &Path, _port| {
        let text = renamed.iter().fold(initial.clone(), |text, (recorded, ours)| text.replace(recorded, ours));
        text.replace("/etc/haproxy", &folder.display().to_string())
    };
    let haproxy = Haproxy::start_with(series, config).await;
    let fake = FakeApi::new(&haproxy.config(), &haproxy.binary, &haproxy.master(), series);
    let (url, server) = fake.serve().await;
    names.push(("/etc/haproxy".to_owned(), haproxy.folder().display().to_string()));
    let mut replay = Replay { haproxy, url, names, skipped_versions: 0 };
    let (mut held, mut skipped) = (0, 0);
    let mut left_out = false;
    for (at, exchange) in exchanges.iter().enumerate() {
        let path = exchange["request"]["path"].as_str().unwrap();
        let scenario = exchange["scenario"].as_str().unwrap();
        // These are based on edits of frontends, and 3 of 20 transactions were recorded.
        left_out |= ["frontend-rules", "too-many-transactions"].contains(&scenario);
        if scenario == "haproxy-down" && exchanges[at - 1]["scenario"] != "haproxy-down" {
            left_out = false;
            let version =
                |e: &Value| e["response"]["headers"]["Configuration-Version"].as_str().unwrap().parse::<u64>().unwrap();
            replay.skipped_versions = version(exchange) - fake_version(&replay.url).await;
            replay.haproxy.kill();
        }
        if left_out || is_unused(path) {
            skipped += 1;
            continue;
        }
        replay.exchange(exchange).await;
        held += 1;
    }
    server.abort();
    (held, skipped)
}

async fn fake_version(url: &str) -> u64 {
    let request = reqwest::Client::new().get(format!("{url}/v3/services/haproxy/configuration/version"));
    request.basic_auth("admin", Some("secret")).send().await.unwrap().json().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fake_api_answers_as_the_real_one_was_recorded() {
    for series in matrix() {
        let (held, skipped) = replay(series).await;
        eprintln!(
            "Data Plane API {series}: {held} exchanges held, {skipped} left out as the controller has no use for them"
        );
        assert!(held > 90, "{held}");
    }
}

/// The statistics, once the checks have run: the same rows, fields and types, and the same words.
async fn replay_stats(series: &str) {
    let file = root().join(format!("fixtures/dataplane/stats-{series}.json"));
    let recorded: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let closed = free_port().to_string();
    let config = |folder: &Path, port: u16| {
        let names = [("/DIR", folder.display().to_string()), ("<p0>", port.to_string()), ("<p1>", closed.clone())];
        names
            .iter()
            .fold(recorded["config"].as_str().unwrap().to_owned(), |text, (name, here)| text.replace(name, here))
    };
    let mut haproxy = Haproxy::start_with(series, config).await;
    haproxy.wait_for_status("api_service/api_service_1", "DOWN").await;
    let fake = FakeApi::new(&haproxy.config(), &haproxy.binary, &haproxy.master(), series);
    let (url, server) = fake.serve().await;
    for exchange in recorded["exchanges"].as_array().unwrap() {
        let (path, response) = (exchange["request"]["path"].as_str().unwrap(), &exchange["response"]);
        if response["status"] == 500 {
            haproxy.kill();
        }
        let request = reqwest::Client::new().get(format!("{url}{path}")).basic_auth("admin", Some("secret"));
        let answer = request.send().await.unwrap();
        let at = format!("{series} GET {path}: {}", exchange["note"]);
        assert_eq!(u64::from(answer.status().as_u16()), response["status"].as_u64().unwrap(), "{at}");
        let body: Value = answer.json().await.unwrap();
        same_shape(&body, &response["body"], true, &at);
        let words = |body: &Value| -> Vec<Value> {
            let rows = body["stats"].as_array().cloned().unwrap_or_default();
            let one = |row: &Value| {
                let stats = &row["stats"];
                let words = ["status", "check_status", "check_desc", "last_chk"].map(|name| stats[name].clone());
                serde_json::json!([row["type"], row["backend_name"], row["name"], words])
            };
            rows.iter().map(one).collect()
        };
        assert_eq!(words(&body), words(&response["body"]), "{at}");
    }
    server.abort();
}

/// Maps: their files, and their entries in the process.
async fn replay_maps(series: &str) {
    let file = root().join(format!("fixtures/dataplane/maps-{series}.json"));
    let recorded: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let config = |folder: &Path, port: u16| {
        std::fs::create_dir(folder.join("maps")).unwrap();
        std::fs::write(folder.join("maps/used.map"), recorded["map"].as_str().unwrap()).unwrap();
        let text = recorded["config"].as_str().unwrap().replace("/DIR", &folder.display().to_string());
        text.replace("<p0>", &port.to_string())
    };
    let haproxy = Haproxy::start_with(series, config).await;
    let fake = FakeApi::new(&haproxy.config(), &haproxy.binary, &haproxy.master(), series);
    let (url, server) = fake.serve().await;
    let here = |text: &str| text.replace("/DIR", &haproxy.folder().display().to_string());
    for exchange in recorded["exchanges"].as_array().unwrap() {
        let (request, response) = (&exchange["request"], &exchange["response"]);
        let (method, path) = (request["method"].as_str().unwrap(), request["path"].as_str().unwrap());
        let at = format!("{series} {method} {path}: {}", exchange["note"]);
        let mut call = reqwest::Client::new().request(method.parse().unwrap(), format!("{url}{path}"));
        if let Some(kind) = request["content_type"].as_str() {
            call = call.header("Content-Type", kind);
        }
        call = match &request["body"] {
            Value::Null => call,
            Value::String(text) => call.body(text.clone()),
            json => call.body(json.to_string()),
        };
        let answer = call.basic_auth("admin", Some("secret")).send().await.unwrap();
        assert_eq!(u64::from(answer.status().as_u16()), response["status"].as_u64().unwrap(), "{at}");
        let body = answer.text().await.unwrap();
        match &response["body"] {
            Value::Null => assert_eq!(body, "", "{at}"),
            Value::String(file) if response["status"] == 200 => assert_eq!(body, *file, "{at}"),
            // An error of a file's content: JSON in plain text.
            Value::String(error) => assert!(error.starts_with('{') && body.starts_with('{'), "{at}: {body}"),
            recorded => {
                let ours: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{at}: {body}"));
                let recorded: Value = serde_json::from_str(&here(&recorded.to_string())).unwrap();
                same_shape(&ours, &recorded, true, &at);
                let plain = |one: &Value| ["key", "value", "file", "storage_name"].map(|key| one[key].clone());
                let all = |body: &Value| body.as_array().map(|list| list.iter().map(plain).collect::<Vec<_>>());
                assert_eq!(all(&ours), all(&recorded), "{at}");
            }
        }
    }
    server.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fake_api_has_maps_as_the_real_one_was_recorded_with() {
    for series in matrix() {
        replay_maps(series).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fake_api_has_the_statistics_that_the_real_one_was_recorded_with() {
    for series in matrix() {
        replay_stats(series).await;
    }
}

/// Compares two texts, except for the line with the hash.
fn same_text(ours: &str, recorded: &str, at: &str) {
    let unhashed =
        |text: &str| -> String { text.split_inclusive('\n').filter(|line| !line.starts_with("# _md5hash=")).collect() };
    let (ours, recorded) = (unhashed(ours), unhashed(recorded));
    let diff = similar::TextDiff::from_lines(&recorded, &ours);
    assert!(ours == recorded, "{at}: recorded and replayed differ\n{}", diff.unified_diff());
}

/// Recorded steps of one scenario: after each the file, the memory and the process must be as they were on the real
/// API.
struct Steps {
    haproxy: Haproxy,
    url: String,
    /// Recorded → replayed: the folder, ports, transactions.
    names: Vec<(String, String)>,
}

impl Steps {
    async fn step(&mut self, step: &Value, at: &str) {
        let renamed = |text: &str| renamed(text, &self.names);
        if let Some(file) = step["write_file"].as_str() {
            std::fs::write(self.haproxy.config(), renamed(file)).unwrap();
            return;
        }
        let (method, path) = (step["method"].as_str().unwrap(), step["path"].as_str().unwrap());
        let url = format!("{}/v3/services/haproxy{}", self.url, renamed(path));
        let request = reqwest::Client::new().request(method.parse().unwrap(), url);
        let mut request = request.basic_auth("admin", Some("secret"));
        if let Some(actions) = step["headers"]["X-Runtime-Actions"].as_str() {
            request = request.header("X-Runtime-Actions", actions);
        }
        request = match &step["request_body"] {
            Value::Null => request,
            Value::String(text) => request.body(renamed(text)),
            json => request.body(renamed(&json.to_string())),
        };
        let answer = request.send().await.unwrap();
        let version = answer.headers()["Configuration-Version"].to_str().unwrap().to_owned();
        assert_eq!(u64::from(answer.status().as_u16()), step["status"].as_u64().unwrap(), "{at}");
        assert_eq!(version, step["response_headers"]["Configuration-Version"].as_str().unwrap(), "{at}");
        let body = answer.text().await.unwrap();
        let recorded = renamed(step["response_body"].as_str().unwrap());
        let mut transaction = None;
        match serde_json::from_str::<Value>(&recorded) {
            Ok(recorded) => {
                let body: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{at}: {body}"));
                same_shape(&body, &recorded, true, at);
                match (&body, &recorded) {
                    (Value::Array(ours), Value::Array(recorded)) => {
                        assert_eq!(by_name(ours), by_name(recorded), "{at}");
                    }
                    (ours, recorded) if ours["name"].is_string() => assert_eq!(ours, recorded, "{at}"),
                    _ => transaction = body["id"].as_str().map(str::to_owned),
                }
            }
            Err(_) => same_text(&body, &recorded, at),
        }
        // Neither was recorded at a time when the real API was reading its file again.
        if let Some(file) = step["file_after"].as_str() {
            same_text(&self.haproxy.text(), &renamed(file), at);
            assert_eq!(fake_version(&self.url).await, step["memory_version_after"].as_u64().unwrap(), "{at}");
        }
        assert_eq!(self.haproxy.reloads().await, step["worker_reloads_after"].as_u64().unwrap(), "{at}");
        let servers: Value = serde_json::from_str(&renamed(&step["servers_after"].to_string())).unwrap();
        let servers: BTreeMap<String, (String, u16, bool)> = serde_json::from_value(servers).unwrap();
        let in_process = self.haproxy.servers().await.into_iter().map(|(name, (_, admin, address))| {
            let (address, port) = address.rsplit_once(':').unwrap();
            (name, (address.to_owned(), port.parse().unwrap(), admin == "0"))
        });
        assert_eq!(in_process.collect::<BTreeMap<_, _>>(), servers, "{at}");
        if let Some(id) = transaction {
            self.names.retain(|(recorded, _)| recorded != "TID");
            self.names.push(("TID".to_owned(), id));
        }
    }
}

async fn replay_steps(series: &str, scenario: &Value, taken: &(String, String)) -> usize {
    let (start, steps) = scenario["steps"].as_array().unwrap().split_first().unwrap();
    let none = free_port().to_string();
    let mut names = vec![taken.clone(), ("<p9>".to_owned(), none.clone())];
    let none_recorded = steps.iter().find_map(|step| step["servers_after"]["fallback/none"][1].as_u64());
    names.extend(none_recorded.map(|recorded| (recorded.to_string(), none)));
    let config = |folder: &Path, port: u16| {
        let file = start["file"].as_str().unwrap();
        let file = file.replace("/DIR", &folder.display().to_string()).replace("<p0>", &port.to_string());
        renamed(&file, &names)
    };
    let haproxy = Haproxy::start_with(series, config).await;
    names.push(("/DIR".to_owned(), haproxy.folder().display().to_string()));
    names.push(("<p0>".to_owned(), haproxy.port.to_string()));
    let fake = FakeApi::new(&haproxy.config(), &haproxy.binary, &haproxy.master(), series);
    let (url, server) = fake.serve().await;
    let mut replay = Steps { haproxy, url, names };
    for step in steps {
        let at = format!("{series}, {}: {} {} ({})", scenario["name"], step["method"], step["path"], step["note"]);
        replay.step(step, &at).await;
    }
    server.abort();
    steps.len()
}

/// The port that another listener had in a recording: a listener of the name `taken` needs it.
fn taken_port(scenarios: &[Value]) -> String {
    let steps = scenarios.iter().flat_map(|scenario| scenario["steps"].as_array().unwrap());
    let mut bodies = steps.map(|step| &step["request_body"]);
    bodies.find(|body| body["name"] == "taken").unwrap()["port"].to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fake_api_writes_and_reloads_as_the_real_one_was_recorded() {
    for series in matrix() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port().to_string();
        let mut held = 0;
        for recording in ["raw-and-reload", "rendering"] {
            let file = root().join(format!("fixtures/dataplane/{recording}-{series}.json"));
            let scenarios: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
            let taken = (taken_port(&scenarios), port.clone());
            let replays = scenarios.iter().map(|scenario| replay_steps(series, scenario, &taken));
            held += futures_util::future::join_all(replays).await.iter().sum::<usize>();
        }
        eprintln!("Data Plane API {series}: {held} steps held");
        assert!(held >= 50, "{held}");
    }
}

/// Seen on 3.0, 3.2 and 3.4; a recording, which is JSON, cannot hold it.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_utf_8_and_lines_that_are_too_long_are_lost_as_in_the_real_api() {
    let haproxy = Haproxy::start("3.2").await;
    let fake = FakeApi::new(&haproxy.config(), &haproxy.binary, &haproxy.master(), "3.2");
    let (url, server) = fake.serve().await;
    let mut text = haproxy.text().into_bytes();
    text.extend(
        b"backend odd\n  # caf\xe9\n  http-request set-header A \"caf\xe9\" # t\xe9\nlisten l\n  description \xe9\n",
    );
    text.extend(format!("# {}\nbackend lost\n", "x".repeat(70_000)).into_bytes());
    let request = reqwest::Client::new().post(format!("{url}/v3/services/haproxy/configuration/raw?version=1"));
    let answer = request.basic_auth("admin", Some("secret")).query(&[("skip_reload", "true")]).body(text).send().await;
    assert_eq!(answer.unwrap().status(), 201);
    let file = std::fs::read(haproxy.config()).unwrap();
    let has = |part: &[u8]| file.windows(part.len()).any(|window| window == part);
    assert!(has(b"  # caf\xe9\n  http-request set-header A \"caf\xef\xbf\xbd\" # t\xe9\n"));
    assert!(has(b"  description \xe9\n"), "the API does not look into `listen`");
    assert!(!has(b"xxx") && !has(b"backend lost"));
    server.abort();
}

#[tokio::test]
async fn the_21st_transaction_is_one_too_many() {
    let haproxy = Haproxy::start("3.0").await;
    let fake = FakeApi::new(&haproxy.config(), &haproxy.binary, &haproxy.master(), "3.0");
    let (url, server) = fake.serve().await;
    let open = async || {
        let request = reqwest::Client::new().post(format!("{url}/v3/services/haproxy/transactions?version=1"));
        request.basic_auth("admin", Some("secret")).send().await.unwrap().status().as_u16()
    };
    for _ in 0..20 {
        assert_eq!(open().await, 201);
    }
    assert_eq!(open().await, 429);
    server.abort();
}

/// A Nomad that answers as recorded.
async fn recorded(answers: BTreeMap<&'static str, &'static str>) -> (Nomad, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let router = axum::Router::new().fallback(async move |uri: axum::http::Uri| {
        let file = answers.get(uri.to_string().as_str()).unwrap_or_else(|| panic!("{uri} was not recorded"));
        let text = std::fs::read_to_string(root().join(format!("fixtures/nomad/{file}.json"))).unwrap();
        let response = serde_json::from_str::<Value>(&text).unwrap()["response"].clone();
        let mut headers = axum::http::HeaderMap::new();
        for name in ["X-Nomad-Index", "X-Nomad-Knownleader"] {
            if let Some(value) = response["headers"][name].as_str() {
                headers.insert(name, value.parse().unwrap());
            }
        }
        let status =
            axum::http::StatusCode::from_u16(response["status"].as_u64().unwrap().try_into().unwrap()).unwrap();
        let body = response["body"].as_str().map_or_else(|| response["body"].to_string(), str::to_owned);
        (status, headers, body)
    });
    let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let settings = NomadConfig::new(address);
    (Nomad::new(settings).unwrap(), server)
}

async fn read(answers: &[(&'static str, &'static str)], served: &[&str]) -> Result<usize, NomadError> {
    read_catalog(answers, served).await.map(|catalog| catalog.len())
}

async fn read_catalog(answers: &[(&'static str, &'static str)], served: &[&str]) -> Result<Catalog, NomadError> {
    let (nomad, server) = recorded(answers.iter().copied().collect()).await;
    let served = served.iter().map(|namespace| (*namespace).to_owned()).collect();
    let result = NomadCatalog::new(nomad, vec!["*".into()], "gw.".into()).read(&served).await;
    server.abort();
    result
}

const LIST: &str = "/v1/services?namespace=*";

#[tokio::test]
async fn a_catalog_stands_only_if_every_answer_is_whole() {
    let service = ("/v1/service/na-web?namespace=default", "service-by-name");
    assert_eq!(read(&[(LIST, "services-all-ns"), service], &["default"]).await.unwrap(), 2);
    // A consistent, empty list is valid: it has an index.
    assert_eq!(read(&[(LIST, "services-empty")], &[]).await.unwrap(), 0);

    assert!(
        matches!(read(&[(LIST, "acl-none-services-all")], &[]).await, Err(NomadError::Denied { .. })),
        "200 [] with index 0"
    );
    assert!(matches!(read(&[(LIST, "acl-bad-uuid-services-all")], &[]).await, Err(NomadError::Denied { .. })), "403");
    assert!(matches!(read(&[(LIST, "no-cluster-leader")], &[]).await, Err(NomadError::Status { .. })), "500");
    assert!(
        matches!(read(&[(LIST, "no-cluster-leader-stale")], &[]).await, Err(NomadError::NoLeader)),
        "no known leader"
    );
    // A list that is shortened to one namespace, when HAProxy serves another.
    let short = [
        (LIST, "acl-readjob-default-services-all"),
        service,
        ("/v1/services?namespace=team-a", "acl-readjob-default-services-team-a"),
    ];
    assert_eq!(read(&short, &["default"]).await.unwrap(), 2);
    let catalog = read_catalog(&short, &["default", "team-a"]).await.unwrap();
    assert_eq!(catalog.len(), 2, "the others go on");
    assert!(matches!(&catalog.namespaces["team-a"], Unread::Refused(why) if why.contains("read-job")), "{catalog:?}");
    // A service that cannot be read is held on its own.
    let broken = [(LIST, "services-all-ns"), ("/v1/service/na-web?namespace=default", "no-cluster-leader")];
    let catalog = read_catalog(&broken, &["default"]).await.unwrap();
    assert_eq!((catalog.services.len(), catalog.unreadable.len()), (0, 1), "{catalog:?}");
}

/// The answers about a lock that decide who writes.
#[tokio::test]
async fn a_lock_is_held_only_if_nomad_says_so() {
    use nomad_haproxy::nomad::lock::{Granted, Holder, LockConfig, LockError, TTL_MIN, VariableLock};
    let lock = async |operation: &'static str, file: &'static str| {
        let uri: &'static str = format!("/v1/var/na/lock?{operation}namespace=default").leak();
        let (nomad, server) = recorded([(uri, file)].into()).await;
        let (path, namespace) = ("na/lock".parse().unwrap(), "default".to_owned());
        (VariableLock::new(nomad, LockConfig { path, namespace, ttl: TTL_MIN }), server)
    };
    let me = Holder { name: "node-1".to_owned(), http: None };
    let acquire = async |file| lock("lock-acquire&", file).await.0.acquire(&me).await;
    let granted: Granted = acquire("varlock-acquire").await.unwrap();
    assert_eq!(granted.index, 104);
    assert!(matches!(acquire("varlock-acquire-conflict").await, Err(LockError::Held { .. })));
    assert!(matches!(acquire("acl-varlock-other-path").await, Err(LockError::Denied { .. })));
    for unknown in ["varlock-acquire-ttl-too-small", "no-cluster-leader-put-lock"] {
        let error = acquire(unknown).await.unwrap_err();
        assert!(matches!(error, LockError::Nomad(NomadError::Status { .. })), "{unknown}: {error}");
    }

    let renew = async |file| lock("lock-renew&", file).await.0.renew(&granted).await;
    assert!(renew("varlock-renew").await.is_ok());
    for lost in ["varlock-renew-wrong-id", "varlock-renew-absent", "varlock-renew-after-release"] {
        assert!(matches!(renew(lost).await, Err(LockError::Lost { .. })), "{lost}");
    }
    // It may still be held.
    assert!(matches!(renew("no-cluster-leader-put-lock").await, Err(LockError::Nomad(_))));

    let release = async |file| lock("lock-release&", file).await.0.release(&granted).await;
    assert!(release("varlock-release").await.is_ok());
    assert!(matches!(release("varlock-release-again").await, Err(LockError::Nomad(_))));

    let look = async |file| lock("", file).await.0.look(0, TTL_MIN).await;
    // Another program's lock has other items.
    let taken = look("varlock-read-locked").await.unwrap_err();
    assert!(matches!(&taken, LockError::Taken { keys, .. } if keys == "epoch"), "{taken}");
    assert_eq!(look("varlock-renew-absent").await.unwrap().index, 0, "there is no such variable");
    assert!(matches!(look("acl-varlock-other-path").await, Err(LockError::Denied { .. })));
}

/// A Nomad that answers by path and query: an index, the last contact in ms, and a body. It notes what it was asked.
async fn scripted(
    answer: impl Fn(&str) -> (u64, u64, String) + Send + Sync + 'static,
) -> (Nomad, Arc<std::sync::Mutex<Vec<String>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (calls, answer) = (asked.clone(), Arc::new(answer));
    let router = axum::Router::new().fallback(async move |uri: axum::http::Uri| {
        calls.lock().unwrap().push(uri.to_string());
        let (index, contact, body) = answer(&uri.to_string());
        ([("X-Nomad-Index", index.to_string()), ("X-Nomad-Lastcontact", contact.to_string())], body)
    });
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let settings = NomadConfig::new(address);
    (Nomad::new(settings).unwrap(), asked)
}

/// An index, the last contact in ms, the services of the list, and the instances of each with their versions.
type OfAnother = (u64, u64, Vec<&'static str>, Vec<(&'static str, u64)>);

#[tokio::test]
async fn an_answer_of_another_server_counts_if_it_is_recent_and_takes_nothing_away() {
    const TAGS: &str = r#""Tags": ["gw.enable=true"]"#;
    let list = |names: &[&str]| {
        let services: Vec<String> =
            names.iter().map(|name| format!(r#"{{"ServiceName": "{name}", {TAGS}}}"#)).collect();
        format!(r#"[{{"Namespace": "default", "Services": [{}]}}]"#, services.join(","))
    };
    let instances = |name: &str, ids: &[(&str, u64)]| {
        let one = |(id, version): &(&str, u64)| {
            format!(
                r#"{{"ID": "{id}", "ServiceName": "{name}", "Namespace": "default", "Address": "10.0.0.1", "Port": 1,
                "ModifyIndex": {version}, {TAGS}}}"#
            )
        };
        format!("[{}]", ids.iter().map(one).collect::<Vec<_>>().join(","))
    };
    // What the other server says; the leader always says the same.
    for (what, (index, contact, names, ids), counts) in [
        ("more of all", (12, 100, vec!["api", "new"], vec![("1", 5), ("2", 11)]), true),
        ("a change", (12, 100, vec!["api"], vec![("1", 11)]), true),
        ("an instance is gone", (12, 100, vec!["api"], vec![]), false),
        ("an older version of it", (12, 100, vec!["api"], vec![("1", 4)]), false),
        ("the service is gone", (12, 100, vec![], vec![("1", 5)]), false),
        ("too long ago", (12, 5001, vec!["api", "new"], vec![("1", 5), ("2", 11)]), false),
        ("an older index", (9, 100, vec!["api", "new"], vec![("1", 5), ("2", 11)]), false),
    ] as [(&str, OfAnother, bool); 7]
    {
        let (nomad, asked) = scripted(move |uri| {
            let is_list = uri.starts_with("/v1/services");
            let name = uri.trim_start_matches("/v1/service/").split('?').next().unwrap().to_owned();
            match uri.contains("stale=true") {
                true if is_list => (index, contact, list(&names)),
                true => (index, contact, instances(&name, &ids)),
                false if is_list => (10, 0, list(&["api"])),
                false => (10, 0, instances(&name, &[("1", 5)])),
            }
        })
        .await;
        let catalog =
            NomadCatalog::new(nomad, vec!["*".into()], "gw.".into()).with_max_stale(Some(Duration::from_secs(5)));
        let served = ["default".to_owned()].into();
        let first = catalog.read_next(&served, false).await.unwrap();
        assert_eq!((first.catalog.index, first.catalog.len()), (10, 1));
        assert!(!asked.lock().unwrap().iter().any(|uri| uri.contains("stale")), "{what}: nothing is known yet");
        let next = catalog.read_next(&served, true).await.unwrap();
        let asked = asked.lock().unwrap().clone();
        let leader = asked[2..].iter().filter(|uri| !uri.contains("stale")).count();
        assert_eq!(leader == 0, counts, "{what}: {asked:?}");
        assert!(next.catalog.services.values().flatten().any(|one| one.id == "1" && one.modify_index >= 5), "{what}");
        assert_eq!(next.catalog.index, if counts { 12 } else { 10 }, "{what}");
    }
}

#[test]
fn every_address_that_was_seen_in_a_registration_is_taken_or_refused() {
    use nomad_haproxy::desired::Address;
    let text = std::fs::read_to_string(root().join("fixtures/nomad/address-name-tag-forms.json")).unwrap();
    let recorded: Value = serde_json::from_str(&text).unwrap();
    let (mut taken, mut refused) = (0, 0);
    for case in recorded["cases"].as_array().unwrap() {
        for registration in case["registrations"].as_array().into_iter().flatten() {
            let address = registration["Address"].as_str().unwrap();
            match address.parse::<Address>() {
                Ok(address) => {
                    assert!(!address.to_string().contains(char::is_whitespace));
                    taken += 1;
                }
                Err(error) => {
                    assert!(!error.to_string().contains('\n'), "{error}");
                    refused += 1;
                }
            }
        }
    }
    assert!(taken > 10 && refused > 3, "{taken} taken, {refused} refused");
}
