//! The HTTP API of a running controller: what it answers to good and bad requests, what its writing part causes, and
//! that nobody who asks disturbs the loops, HAProxy or its API.

use std::time::Duration;

use crate::support::api::{Rig, Way};
use crate::support::controller::{Controller, registration, write_catalog};
use crate::support::fleet::Fleet;
use crate::support::gate::Gate;
use crate::support::wait_for;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const TOKEN: &str = "s3cret-token";
const TOKENS: &[(&str, &str)] = &[("NOMAD_HAPROXY_HTTP_TOKEN", TOKEN)];
const WRITING: [(Method, &str); 3] =
    [(Method::POST, "/api/v1/reconcile"), (Method::POST, "/api/v1/guard/release"), (Method::PUT, "/api/v1/log")];
/// Connections at the same time, as the README says.
const PLACES: usize = 512;
const SOON: Duration = Duration::from_secs(40);

/// A HAProxy with five services, and a controller that has them routed.
struct Served {
    rig: Rig,
    controller: Controller,
    url: String,
    client: reqwest::Client,
}

impl Served {
    async fn start(way: Way, more: &[(&str, &str)]) -> Self {
        let rig = Rig::start(way, "3.2").await;
        let env = rig.env_with(more);
        Self::with(rig, env).await
    }

    async fn with(rig: Rig, env: crate::support::controller::Env) -> Self {
        write_catalog(&rig.catalog(), &services(5));
        let controller = Controller::start(&env, &["--catalog", rig.catalog().to_str().unwrap()]);
        controller.wait_until_ready().await;
        let url = format!("http://{}", controller.listen().await);
        Self { rig, controller, url, client: reqwest::Client::new() }
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    /// A request with the token, and its answer, which must be this one.
    async fn send(&self, method: Method, path: &str, body: Option<Value>, expected: u16) -> Value {
        let request = self.request(method, path).bearer_auth(TOKEN);
        let request = if let Some(body) = body { request.json(&body) } else { request };
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        assert_eq!(status, expected, "{path}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    async fn get(&self, path: &str) -> Value {
        self.send(Method::GET, path, None, 200).await
    }

    /// The log's lines with this message.
    fn logged(&self, message: &str) -> Vec<Value> {
        self.controller.events().into_iter().filter(|event| event["message"] == message).collect()
    }

    async fn wait_for_log(&self, message: &str, count: usize) {
        wait_for(message, SOON, async || (self.logged(message).len() >= count).then_some(())).await;
    }

    /// How many passes a person asked for.
    async fn asked(&self) -> u64 {
        format!("{:.0}", self.controller.passes("reason=\"asked\"").await).parse().unwrap()
    }

    async fn raw(&self, text: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.url.trim_start_matches("http://")).await.unwrap();
        stream.write_all(text).await.unwrap();
        let mut answer = Vec::new();
        // The server closes the connection, if need be with a reset.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }
}

fn services(count: u16) -> Vec<Value> {
    let service =
        |n: u16| registration(&format!("api-{n}"), &format!("{n}"), 1, 2001 + n, &["enable=true", "check.disabled"]);
    (0..count).map(service).collect()
}

/// Every error of the API has this form, whoever makes it.
async fn is_error(response: reqwest::Response, status: u16) -> String {
    let found = response.status().as_u16();
    let headers = response.headers().clone();
    let text = response.text().await.unwrap();
    assert_eq!(found, status, "{text}");
    assert_eq!(headers["content-type"], "application/json", "{text}");
    assert_eq!(
        (&headers["cache-control"], &headers["x-content-type-options"]),
        (&"no-store".parse().unwrap(), &"nosniff".parse().unwrap())
    );
    assert_eq!(headers.contains_key("www-authenticate"), status == 401, "{text}");
    let json: Value = serde_json::from_str(&text).unwrap();
    json["error"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_token_nothing_is_done() {
    let served = Served::start(Way::Local, TOKENS).await;
    let passes = served.asked().await;
    for (method, path) in WRITING {
        let plain = || served.request(method.clone(), path).json(&json!({"level": "trace"}));
        let with = |value: &str| plain().header("Authorization", value);
        for (request, status) in [
            (plain(), 401),
            (with("Bearer wrong"), 401),
            (with("Bearer "), 401),
            (with("Bearer"), 401),
            (with(""), 401),
            (with(TOKEN), 401),
            (with(&format!("Basic {TOKEN}")), 401),
            (with(&format!("Bearer {TOKEN}")).header("Authorization", format!("Bearer {TOKEN}")), 401),
            (with(&format!("Bearer {}", "x".repeat(8000))), 401),
            (with(&format!("Bearer {}", "x".repeat(10_000))), 431),
        ] {
            is_error(request.send().await.unwrap(), status).await;
        }
        // More than all headers may have: the server itself answers.
        let huge = with(&format!("Bearer {}", "x".repeat(100_000))).send().await.unwrap();
        assert_eq!(huge.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
    let refused = served.logged("a request to the API was refused");
    assert!(!refused.is_empty() && refused.len() <= 10, "{refused:?}");
    assert_eq!((&refused[0]["level"], &refused[0]["path"]), (&"WARN".into(), &"/api/v1/reconcile".into()));
    assert!(refused[0]["from"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert_eq!(served.asked().await, passes);
    assert_eq!(served.get("/api/v1/log").await["level"], "info");
    assert!(!served.controller.log().contains("s3cret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_token_in_the_settings_the_answer_says_how_to_have_one() {
    let served = Served::start(Way::Local, &[("NOMAD_HAPROXY_HTTP_TOKEN", "")]).await;
    for (method, path) in WRITING {
        for token in ["", "x"] {
            let response = served.request(method.clone(), path).bearer_auth(token).send().await.unwrap();
            let why = is_error(response, 403).await;
            assert!(why.contains("NOMAD_HAPROXY_HTTP_TOKEN") && why.contains("http.tokens"), "{why}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_a_token_is_logged_with_the_name_of_the_token() {
    let rig = Rig::start(Way::Local, "3.2").await;
    let (settings, token) = (rig.haproxy.folder().join("settings.json"), rig.haproxy.folder().join("token"));
    let http = json!({"tokens": {"deploy": TOKEN}, "token_files": {"ops": token}});
    std::fs::write(&settings, json!({"http": http}).to_string()).unwrap();
    let env = rig.env_with(&[("NOMAD_HAPROXY_CONFIG", settings.to_str().unwrap())]);
    let served = Served::with(rig, env).await;
    let reconcile = async |token: &str| {
        served.request(Method::POST, "/api/v1/reconcile").bearer_auth(token).send().await.unwrap().status().as_u16()
    };
    assert_eq!((reconcile(TOKEN).await, reconcile("first").await), (202, 401));
    // The file is read again for each request.
    std::fs::write(&token, "first\n").unwrap();
    assert_eq!(reconcile("first").await, 202);
    std::fs::write(&token, "second").unwrap();
    assert_eq!((reconcile("first").await, reconcile("second").await), (401, 202));
    served.wait_for_log("a request to the API", 3).await;
    let logged = served.logged("a request to the API");
    let who: Vec<&str> = logged.iter().map(|event| event["who"].as_str().unwrap()).collect();
    assert_eq!(who, ["deploy", "ops", "ops"]);
    assert_eq!((&logged[0]["method"], &logged[0]["status"]), (&"POST".into(), &202.into()));
    let refused = served.logged("a request to the API was refused");
    assert!(refused[0]["unreadable"].as_str().unwrap().contains("token"), "{refused:?}");
    assert!(!served.controller.log().contains("s3cret"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_wakes_a_pass_for_all_or_for_one() {
    let served = Served::start(
        Way::Local,
        &[TOKENS, &[("NOMAD_HAPROXY_RESYNC_INTERVAL", "1h"), ("HAPROXY_NAME", "edge")]].concat(),
    )
    .await;
    for (asked, path) in ["/api/v1/reconcile", "/api/v1/reconcile?haproxy=edge"].iter().enumerate() {
        let before = served.asked().await;
        let answer = served.send(Method::POST, path, None, 202).await;
        assert_eq!(answer, json!({"haproxys": [{"name": "edge", "accepted": true, "error": null}]}));
        wait_for("a pass that was asked for", SOON, async || (served.asked().await > before).then_some(())).await;
        served.wait_for_log("a request to the API", asked + 1).await;
    }
    let unknown =
        served.request(Method::POST, "/api/v1/reconcile?haproxy=nobody").bearer_auth(TOKEN).send().await.unwrap();
    assert_eq!(is_error(unknown, 404).await, "no HAProxy is called \"nobody\"; there are: edge");
    let last = &served.get("/api/v1/status").await["haproxys"][0]["last_pass"];
    assert_eq!((&last["reason"], &last["outcome"]), (&"asked".into(), &"unchanged".into()));
}

/// A loop that is in the middle of a pass takes no more commands than may wait.
#[tokio::test(flavor = "multi_thread")]
async fn too_many_requests_for_a_busy_haproxy_are_refused() {
    let rig = Rig::start(Way::Api, "3.2").await;
    let (gate, mut env) = rig.gated().await;
    env.push(("NOMAD_HAPROXY_HTTP_TOKEN".to_owned(), TOKEN.to_owned()));
    let served = Served::with(rig, env).await;
    gate.freeze(true);
    let busy = wait_for("the queue to be full", SOON, async || {
        let response = served.request(Method::POST, "/api/v1/reconcile").bearer_auth(TOKEN).send().await.unwrap();
        (response.status() != StatusCode::ACCEPTED).then_some(response)
    })
    .await;
    assert!(is_error(busy, 429).await.contains("try again"));
    gate.freeze(false);
    served.controller.wait_for_passes(1).await;
    served.send(Method::POST, "/api/v1/reconcile", None, 202).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guard_holds_until_a_person_lets_go() {
    let served = Served::start(Way::Local, &[TOKENS, &[("NOMAD_HAPROXY_GUARD_SHARE", "30%")]].concat()).await;
    let release = "/api/v1/guard/release";
    let nothing = served.send(Method::POST, release, None, 202).await;
    assert_eq!(nothing["haproxys"][0]["held"], 0);
    write_catalog(&served.rig.catalog(), &[]);
    served.send(Method::POST, "/api/v1/reconcile", None, 202).await;
    let held = async |count: usize| {
        wait_for(&format!("{count} held instances"), SOON, async || {
            (served.get("/api/v1/status").await["haproxys"][0]["guard"]["instances"].as_u64().unwrap_or(0)
                == count as u64)
                .then_some(())
        })
        .await;
    };
    held(5).await;
    served.rig.agrees().await;
    let said = served.get("/api/v1/services/api-1").await;
    assert!(said["answer"].as_str().unwrap().contains("but the guard holds 1 instance"), "{said}");
    assert!(said["answer"].as_str().unwrap().contains("POST /api/v1/guard/release"), "{said}");

    let answer = served.send(Method::POST, release, None, 202).await;
    assert_eq!((&answer["haproxys"][0]["accepted"], &answer["haproxys"][0]["held"]), (&true.into(), &5.into()));
    held(0).await;
    let text = served.rig.haproxy.text();
    let ours: Vec<&str> = text.lines().filter(|line| line.contains("\"owner\":")).collect();
    assert!(ours.iter().all(|line| line.contains(" disabled ")), "{text}");
    served.rig.agrees().await;
    served.wait_for_log("the guard holds nothing any more", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_level_of_the_log_changes_by_the_api_and_by_a_signal() {
    let served = Served::start(Way::Local, TOKENS).await;
    let level = async |expected: &str| {
        wait_for(&format!("the level {expected}"), SOON, async || {
            (served.get("/api/v1/log").await["level"] == *expected).then_some(())
        })
        .await;
    };
    let debug_lines = || served.controller.events().iter().filter(|event| event["level"] == "DEBUG").count();
    assert_eq!(debug_lines(), 0);
    let put = async |level: &str| served.send(Method::PUT, "/api/v1/log", Some(json!({"level": level})), 200).await;
    assert_eq!(put("debug").await, json!({"level": "debug", "before": "info"}));
    // A request with a token that reads is logged with `debug`.
    let reads = async || drop(served.send(Method::POST, "/api/v1/reconcile", None, 202).await);
    write_catalog(&served.rig.catalog(), &services(6));
    reads().await;
    wait_for("lines of level debug", SOON, async || (debug_lines() > 0).then_some(())).await;
    assert_eq!(put("error").await["before"], "debug");

    let pid = Pid::from_raw(served.controller.pid());
    for expected in ["debug", "info", "debug"] {
        kill(pid, Signal::SIGUSR1).unwrap();
        level(expected).await;
    }
    let changes = served.logged("the level of the log changes");
    let said: Vec<(&str, &str)> =
        changes.iter().map(|event| (event["before"].as_str().unwrap(), event["level"].as_str().unwrap())).collect();
    assert_eq!(said.len(), 5, "{said:?}");

    for bad in [json!({"level": "debgu"}), json!({"level": 3}), json!({}), json!({"level": "debug", "x": 1})] {
        let request = served.request(Method::PUT, "/api/v1/log").bearer_auth(TOKEN).json(&bad);
        is_error(request.send().await.unwrap(), 400).await;
    }
    level("debug").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plan_and_a_service_are_explained_without_a_call() {
    let rig = Rig::start(Way::Api, "3.2").await;
    let (gate, mut env) = rig.gated().await;
    env.push(("NOMAD_HAPROXY_RESYNC_INTERVAL".to_owned(), "1h".to_owned()));
    let served = Served::with(rig, env).await;
    let before = calls(&gate);
    let plan = served.get("/api/v1/plan").await;
    assert_eq!((&plan["haproxys"][0]["changes"], &plan["haproxys"][0]["diff"]), (&false.into(), &"".into()), "{plan}");
    let backend = |said: &Value| said["haproxys"][0]["backends"][0].clone();
    for path in ["api-1", "default%2Fapi-1", "api-1?namespace=default"] {
        let said = served.get(&format!("/api/v1/services/{path}")).await;
        assert!(said["answer"].as_str().unwrap().starts_with("It is routed: 1 instance in the backend"), "{said}");
        let server = &backend(&said)["servers"][0];
        assert_eq!((&server["state"], &server["registration"]["Port"]), (&"ready".into(), &2002.into()), "{said}");
        assert_eq!(
            (&server["allocation"], &server["registration"]["Tags"][0]),
            (&"alloc-1".into(), &"haproxy.enable=true".into())
        );
    }
    for unknown in ["nobody", "team%2Fapi-1", "%2F", "%20%22%3Cscript%3E"] {
        let said = served.get(&format!("/api/v1/services/{unknown}")).await;
        assert!(said["answer"].as_str().unwrap().starts_with("It is not routed: the catalog has no service"), "{said}");
    }
    let response = served.request(Method::GET, "/api/v1/services/api-1?haproxy=nobody").send().await.unwrap();
    is_error(response, 404).await;
    assert_eq!(calls(&gate), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_paths_and_methods_have_the_answers_that_http_calls_for() {
    let served = Served::start(Way::Local, TOKENS).await;
    let status = async |method: &str, path: &str| {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        served.request(method, path).send().await.unwrap()
    };
    for path in ["/api", "/api/", "/api/v1", "/api/v1/nothing", "/api/v1/services/", "/api/v1/services/a/b", "/api/%00"]
    {
        let response = status("GET", path).await;
        if path.starts_with("/api/") {
            is_error(response, 404).await;
        } else {
            assert_eq!(response.status(), 404);
        }
    }
    for (path, allowed) in [
        ("/healthz", "GET,HEAD"),
        ("/metrics", "GET,HEAD"),
        ("/api/v1/status", "GET,HEAD"),
        ("/api/v1/reconcile", "POST"),
        ("/api/v1/log", "GET,HEAD,PUT"),
    ] {
        for method in ["DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
            let response = status(method, path).await;
            assert_eq!(
                (response.status().as_u16(), &response.headers()["allow"]),
                (405, &allowed.parse().unwrap()),
                "{method} {path}"
            );
            if path.starts_with("/api/") {
                assert!(is_error(response, 405).await.contains(allowed));
            }
        }
    }
    for path in ["/healthz", "/metrics", "/api/v1/status", "/api/v1/nothing"] {
        let (get, head) = (status("GET", path).await, status("HEAD", path).await);
        assert_eq!(get.status(), head.status());
        assert_eq!(get.headers().get("content-type"), head.headers().get("content-type"), "{path}");
        assert_eq!(head.text().await.unwrap(), "");
    }
    for (query, expected) in [("?haproxy", 404), ("?haproxy=a&haproxy=b", 400)] {
        is_error(status("GET", &format!("/api/v1/passes{query}")).await, expected).await;
    }
    for (text, expected) in [
        ("GET /healthz\r\n\r\n", "HTTP/1.1 400"),
        ("\0\0\0\0\r\n\r\n", "HTTP/1.1 400"),
        ("GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", "HTTP/1.1 400"),
        ("OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "HTTP/1.1 404"),
    ] {
        let answer = served.raw(text.as_bytes()).await;
        assert!(answer.starts_with(expected), "{text:?}: {answer:?}");
    }
    assert_eq!(served.controller.http("/healthz").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_and_half_sent_bodies_are_refused_before_anything_is_done() {
    let served = Served::start(Way::Local, TOKENS).await;
    let passes = served.asked().await;
    let head = |path: &str, more: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n{more}\r\n\r\n")
    };
    // 10 MB that are announced need not be sent.
    for path in ["/api/v1/reconcile", "/api/v1/status", "/healthz", "/nothing"] {
        let answer = served.raw(head(path, "Content-Length: 10485760").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 413"), "{path}: {answer:?}");
    }
    // 10 MB of unknown length end where the limit is.
    let mut chunked = head("/api/v1/reconcile", "Transfer-Encoding: chunked").into_bytes();
    chunked.extend(format!("{:x}\r\n{}\r\n", 20_000, "x".repeat(20_000)).into_bytes());
    let answer = served.raw(&chunked).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer:?}");
    // A client that sends all of it.
    let whole = served.request(Method::POST, "/api/v1/reconcile").bearer_auth(TOKEN).body(vec![b'x'; 10 << 20]);
    match whole.send().await {
        Ok(response) => drop(is_error(response, 413).await),
        // It writes to a connection that the server has closed.
        Err(error) => assert!(error.is_request() || error.is_body(), "{error:?}"),
    }
    let half = served.raw(head("/api/v1/reconcile", "Content-Length: 100").as_bytes()).await;
    assert!(half.starts_with("HTTP/1.1 408"), "{half:?}");
    assert_eq!(served.asked().await, passes, "nothing was done");
    let body = "x".repeat(1000);
    let good = served.request(Method::POST, "/api/v1/reconcile").bearer_auth(TOKEN).body(body).send().await.unwrap();
    assert_eq!(good.status(), StatusCode::ACCEPTED);
}

/// How long passes take that are made one after the other while `flood` goes on.
async fn pass_times(served: &Served) -> Vec<u64> {
    let mut times = Vec::new();
    for _ in 0..8 {
        let before = served.get("/api/v1/status").await["haproxys"][0]["last_pass"]["ended"].clone();
        served.send(Method::POST, "/api/v1/reconcile", None, 202).await;
        let took = wait_for("a pass", SOON, async || {
            let last = served.get("/api/v1/status").await["haproxys"][0]["last_pass"].clone();
            (last["ended"] != before).then(|| last["took_ms"].as_u64().unwrap())
        })
        .await;
        times.push(took.max(1));
    }
    times.sort_unstable();
    times
}

fn median(times: &[u64]) -> u64 {
    times[times.len() / 2]
}

/// A thousand clients at once, half of them half-sent, some of them greedy.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_requests_at_once_cause_no_call_and_leave_the_loops_alone() {
    let rig = Rig::start(Way::Api, "3.2").await;
    let (gate, mut env) = rig.gated().await;
    env.push(("NOMAD_HAPROXY_HTTP_TOKEN".to_owned(), TOKEN.to_owned()));
    env.push(("NOMAD_HAPROXY_RESYNC_INTERVAL".to_owned(), "1h".to_owned()));
    let served = Served::with(rig, env).await;
    let (reloads, calls) = (served.rig.haproxy.reloads().await, calls(&gate));
    let answered = flood(&served, 1000).await;
    assert_eq!(answered, 1000, "each of them has an answer");
    assert_eq!((self::calls(&gate), served.rig.haproxy.reloads().await), (calls, reloads), "{:?}", gate.calls());

    let quiet = pass_times(&served).await;
    let calls_of_a_pass = calls_during(&gate, async || drop(pass_times(&served).await)).await;
    let address = served.url.trim_start_matches("http://").to_owned();
    // Connections that never say what they want.
    let mut silent = Vec::new();
    for at in 0..300 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let part: &[u8] = if at % 2 == 0 { b"GET /api/v1/status HT" } else { b"" };
        stream.write_all(part).await.unwrap();
        silent.push(stream);
    }
    let busy = async {
        loop {
            flood(&served, 200).await;
        }
    };
    let calls_under_it = async { calls_during(&gate, async || drop(pass_times(&served).await)).await };
    let loud = async { (pass_times(&served).await, calls_under_it.await) };
    let (loud, calls_under_it) = tokio::select! {
        () = busy => unreachable!("it never ends"),
        loud = loud => loud,
    };
    assert_eq!(calls_under_it, calls_of_a_pass, "nobody who asks causes a call");
    eprintln!("passes: {quiet:?} ms, under the flood {loud:?} ms");
    // Two cores serve the flood's clients, too.
    assert!(median(&loud) <= 20 * median(&quiet).max(10), "{quiet:?} {loud:?}");
    assert_eq!(served.controller.http("/healthz").await.0, 200);
    assert_eq!(served.rig.haproxy.reloads().await, reloads);
}

/// How often HAProxy was asked for anything but its statistics: the loop samples these, at times of its own.
fn calls(gate: &Gate) -> usize {
    gate.calls().iter().filter(|call| !call.contains("/stats/native")).count()
}

async fn calls_during(gate: &Gate, work: impl AsyncFnOnce()) -> usize {
    let before = calls(gate);
    work().await;
    calls(gate) - before
}

/// Sends this many requests at once, each with its own connection, and returns how many had an answer.
async fn flood(served: &Served, count: usize) -> usize {
    let paths = [
        "/healthz",
        "/readyz",
        "/metrics",
        "/api/v1/status",
        "/api/v1/passes",
        "/api/v1/plan",
        "/api/v1/services/api-1",
        "/nothing",
    ];
    let requests = (0..count).map(|at| {
        let url = format!("{}{}", served.url, paths[at % paths.len()]);
        async move {
            let client = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
            let response = client.get(url).header("Authorization", "Bearer wrong").send().await.ok()?;
            response.bytes().await.ok()
        }
    });
    let answers = futures_util::future::join_all(requests).await;
    answers.iter().flatten().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn more_connections_than_there_are_places_wait_and_take_no_descriptors() {
    let served = Served::start(Way::Local, TOKENS).await;
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", served.controller.pid())).unwrap().count();
    let before = descriptors();
    let address = served.url.trim_start_matches("http://").to_owned();
    let mut silent = Vec::new();
    for _ in 0..PLACES + 300 {
        silent.push(TcpStream::connect(&address).await.unwrap());
    }
    // Its passes have a few of their own, now and then.
    let few = 20;
    wait_for("the places to be taken", SOON, async || (descriptors() + few > before + PLACES).then_some(())).await;
    let waits = reqwest::get(format!("{}/healthz", served.url));
    assert!(tokio::time::timeout(Duration::from_secs(1), waits).await.is_err(), "it has to wait");
    assert!(descriptors() < before + PLACES + few, "{} of {before} + {PLACES}", descriptors());
    drop(silent);
    assert_eq!(served.controller.http("/healthz").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_haproxys_a_request_is_for_all_or_for_one() {
    let fleet = Fleet::start().await;
    write_catalog(&fleet.catalog(), &services(1));
    let controller = fleet.run(TOKENS);
    controller.wait_until_ready().await;
    let url = format!("http://{}/api/v1", controller.listen().await);
    let client = reqwest::Client::new();
    let names = async |path: &str| {
        let response = client.post(format!("{url}/{path}")).bearer_auth(TOKEN).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::ACCEPTED);
        let answer: Value = response.json().await.unwrap();
        let haproxys = answer["haproxys"].as_array().unwrap().clone();
        assert!(haproxys.iter().all(|one| one["accepted"] == true), "{answer}");
        haproxys.iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let all = names("reconcile").await;
    assert_eq!((all.len(), names("guard/release").await), (3, all.clone()));
    let one = &all[1];
    assert_eq!(names(&format!("reconcile?haproxy={one}")).await, std::slice::from_ref(one));
    let said: Value = client.get(format!("{url}/services/api-0")).send().await.unwrap().json().await.unwrap();
    assert_eq!(said["haproxys"].as_array().unwrap().len(), 3);
    assert!(said["answer"].as_str().unwrap().starts_with("It is routed: 1 instance"), "one sentence for all: {said}");

    // One that takes no more keeps it from no other.
    fleet.gates[0].freeze(true);
    wait_for("the first to be busy and another not", SOON, async || {
        let response = client.post(format!("{url}/reconcile")).bearer_auth(TOKEN).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::ACCEPTED);
        let answer: Value = response.json().await.unwrap();
        let accepted: Vec<&Value> = (0..3).map(|at| &answer["haproxys"][at]["accepted"]).collect();
        (accepted[0] == false && accepted[2] == true).then_some(())
    })
    .await;
    fleet.gates[0].freeze(false);
}

/// As after an outage of Nomad or of a network.
#[tokio::test(flavor = "multi_thread")]
async fn readiness_names_each_of_sixty_haproxys_that_fail() {
    let folder = tempfile::tempdir().unwrap();
    let (settings, catalog) = (folder.path().join("settings.json"), folder.path().join("catalog.json"));
    write_catalog(&catalog, &services(1));
    let name = |number| format!("an-edge-whose-name-is-rather-long-{number}");
    // Nobody listens at port 1 (tcpmux).
    let address = |number| format!("http://127.0.1.{}:1", number + 1);
    let entries: Vec<Value> =
        (0..60).map(|number| json!({"name": name(number), "address": address(number), "password": "x"})).collect();
    std::fs::write(&settings, json!({"haproxy": entries}).to_string()).unwrap();
    let (settings, catalog) = (settings.display().to_string(), catalog.display().to_string());
    let controller = Controller::start(&Vec::new(), &["--config", &settings, "--catalog", &catalog]);
    let text = wait_for("all of them to have failed", SOON, async || {
        let (status, text) = controller.http("/readyz").await;
        (status == 503 && text.matches("failed").count() == 60).then_some(text)
    })
    .await;
    assert!(text.len() > 4096 && text.lines().count() == 60, "{text}");
}
