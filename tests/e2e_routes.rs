//! Routes on real HAProxy: which request of a frontend goes to which service.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, clippy::similar_names, unreachable_pub, reason = "tests")]

mod support;

use std::path::Path;

use serde_json::Value;
use support::api::{Rig, Way};
use support::controller::{Env, apply, registration, run, stdout, write_catalog};
use support::haproxy::Haproxy;
use support::servers::Server;

/// A test that runs a case on every series of HAProxy, on both planes, with [`frontend`].
macro_rules! on_each {
    ($name:ident, $case:path) => {
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            for series in support::haproxy::matrix() {
                for way in support::api::WAYS {
                    eprintln!("--- {} on HAProxy {series}, {way:?}", stringify!($name));
                    $case(rig(way, series).await).await;
                }
            }
        }
    };
}

/// A frontend of a person, with rules of all kinds, and a default backend that answers `default`.
fn frontend(folder: &Path, port: u16) -> String {
    format!(
        "# by hand\nglobal\n    stats socket {sock} mode 600 level admin\n    maxconn   500\n\n\
         defaults base\n    mode http\n    timeout connect 1s\n    timeout client  30s\n    timeout server  30s\n\n\
         frontend web from base\n    bind 127.0.0.1:{port}\n    # the old shop\n    acl is_shop   path_beg /shop  # odd\n\
         \x20   acl is_shop   hdr(host) -i shop.example.com\n    acl internal src 10.0.0.0/8\n\
         \x20   http-request deny deny_status 403 if {{ path /denied }}\n\
         \x20   http-request set-header X-Seen yes unless internal\n\
         \x20   use_backend shop if is_shop !internal\n    use_backend shop unless {{ method GET }}\n\
         \x20   default_backend fallback\n    # last words\n\n\
         backend shop from base\n    http-request return status 200 content-type text/plain string shop\n\n\
         backend fallback from base\n    http-request return status 200 content-type text/plain string default\n\n# the end\n",
        sock = folder.join("stats.sock").display(),
    )
}

/// The answer to a request, or its status if it is not 200.
async fn ask(rig: &Rig, host: &str, path: &str) -> String {
    let url = format!("http://127.0.0.1:{}{path}", rig.haproxy.port);
    let request = reqwest::Client::new().get(url).header("Host", host);
    let response = request.send().await.unwrap();
    match response.status().as_u16() {
        200 => response.text().await.unwrap(),
        status => status.to_string(),
    }
}

async fn rig(way: Way, series: &str) -> Rig {
    Rig::with(way, series, Haproxy::start_with(series, frontend).await).await
}

fn env(rig: &Rig) -> Env {
    rig.env_with(&[("HAPROXY_FRONTEND", "web")])
}

/// A service with one instance.
fn service(name: &str, server: &Server, created: u64, tags: &[&str]) -> Value {
    let tags: Vec<&str> = [&["enable=true", "check.disabled"], tags].concat();
    registration(name, name, created, server.port(), &tags)
}

async fn converge(rig: &Rig, env: &Env, services: &[Value]) -> String {
    write_catalog(&rig.catalog(), services);
    apply(env, &rig.catalog()).await
}

/// What a pass that has nothing to do says.
async fn is_done(rig: &Rig, env: &Env) {
    let plan = run(env, &["plan", "--detailed-exitcode", "--catalog", rig.catalog().to_str().unwrap()]).await;
    assert_eq!(plan.status.code(), Some(0), "{}", stdout(&plan));
}

/// Where HAProxy keeps the maps.
fn maps_folder(rig: &Rig) -> std::path::PathBuf {
    match rig.api {
        None => rig.haproxy.folder().to_owned(),
        Some(_) => rig.haproxy.folder().join("maps"),
    }
}

/// The map files of ours, by name, with their lines.
fn maps_on_disk(rig: &Rig) -> Vec<(String, Vec<String>)> {
    let names = std::fs::read_dir(maps_folder(rig)).unwrap().map(|entry| entry.unwrap());
    let ours = names.filter(|entry| entry.file_name().to_str().unwrap().starts_with("nomad-haproxy__"));
    let read = |entry: std::fs::DirEntry| {
        let text = std::fs::read_to_string(entry.path()).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned);
        (entry.path().to_str().unwrap().to_owned(), lines.collect())
    };
    let mut all: Vec<_> = ours.map(read).collect();
    all.sort();
    all
}

/// Every map file is in the process as it is on disk.
async fn maps_agree(rig: &Rig) {
    for (path, mut disk) in maps_on_disk(rig) {
        let answer = rig.haproxy.command(&format!("@1 show map {path}")).await;
        let mut process: Vec<String> =
            answer.lines().filter_map(|line| line.split_once(' ')).map(|(_, entry)| entry.to_owned()).collect();
        if !path.contains("__suffix") && !path.contains("__regex") {
            disk.sort();
            process.sort();
        }
        assert_eq!(process, disk, "{path}");
    }
}

async fn each_kind(rig: Rig) {
    let (exact, wild, wilder, prefix, regex, api, deep) = tokio::join!(
        Server::start("exact"),
        Server::start("wild"),
        Server::start("wilder"),
        Server::start("prefix"),
        Server::start("regex"),
        Server::start("api"),
        Server::start("deep")
    );
    let env = env(&rig);
    let foreign = rig.foreign();
    let services = [
        service("exact", &exact, 1, &["domain=App.example.com"]),
        service("api", &api, 2, &["domain=app.example.com", "path=/api,/v2/"]),
        service("wild", &wild, 3, &["domain=*.example.com", "path=/", "path=/api/deep/er"]),
        service("wilder", &wilder, 4, &["domain=*.b.example.com", "path=/only"]),
        service("prefix", &prefix, 5, &["domain.type=prefix", "domain=blue-"]),
        service("regex", &regex, 6, &["domain.type=regex", "domain=^r[0-9]+\\.example\\.org$"]),
        service("deep", &deep, 7, &["domain=app.example.com", "path=/api/deep"]),
    ];
    let said = converge(&rig, &env, &services).await;
    for (host, path, answer) in [
        ("app.example.com", "/", "exact"),
        ("APP.Example.Com:8080", "/index.html", "exact"),
        ("app.example.com", "/api", "api"),
        ("app.example.com", "/api/", "api"),
        ("app.example.com", "/api/x?y=/api/deep", "api"),
        ("app.example.com", "/apix", "exact"),
        ("app.example.com", "/API", "exact"),
        ("app.example.com", "/v2/x", "api"),
        ("app.example.com", "/api/deep/er", "deep"),
        ("x.example.com", "/", "wild"),
        ("a.b.example.com", "/only/x", "wilder"),
        ("a.b.example.com", "/other", "wild"),
        ("a.b.example.com", "/api/deep/er", "wild"),
        ("example.com", "/", "default"),
        ("badexample.com", "/", "default"),
        ("blue-1.net", "/x", "prefix"),
        ("ablue-1.net", "/x", "default"),
        ("r12.example.org", "/", "regex"),
        ("r12.example.org.evil", "/", "default"),
        ("unknown.org", "/", "default"),
        // The person's own rules go first.
        ("shop.example.com", "/", "shop"),
        ("app.example.com", "/shop/x", "shop"),
        ("app.example.com", "/denied", "403"),
    ] {
        assert_eq!(ask(&rig, host, path).await, answer, "{host}{path}\n{said}");
    }
    maps_agree(&rig).await;
    is_done(&rig, &env).await;
    rig.haproxy.is_valid();
    assert_eq!(rig.foreign(), foreign, "what is not ours changed");
    let output = run(&env, &["uninstall", "--yes"]).await;
    assert!(output.status.success(), "{}", stdout(&output));
    assert_eq!(rig.foreign(), foreign);
    assert_eq!((ask(&rig, "app.example.com", "/").await, maps_on_disk(&rig)), ("default".into(), vec![]));
}
on_each!(a_request_goes_by_its_host_and_then_by_the_longest_path, each_kind);
