//! Routes in tests: a frontend of a person, requests, and the maps of ours.

use std::path::{Path, PathBuf};

use nomad_haproxy::apply::{Controller, Moment, PassStatus};
use nomad_haproxy::catalog::Source;
use nomad_haproxy::catalog::shared::SharedCatalog;
use nomad_haproxy::config::{Config, Settings};
use nomad_haproxy::leader::Lease;
use nomad_haproxy::target;
use serde_json::{Value, json};

use super::api::{Rig, Way};
use super::controller::{Env, apply, registration, run, stdout, write_catalog};
use super::haproxy::Haproxy;
use super::servers::Server;

/// A frontend of a person, with rules of all kinds, and a default backend that answers `default`.
pub fn frontend(folder: &Path, port: u16) -> String {
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
pub async fn ask(rig: &Rig, host: &str, path: &str) -> String {
    let url = format!("http://127.0.0.1:{}{path}", rig.haproxy.port);
    let request = reqwest::Client::new().get(url).header("Host", host);
    let response = request.send().await.unwrap();
    match response.status().as_u16() {
        200 => response.text().await.unwrap(),
        status => status.to_string(),
    }
}

pub async fn rig(way: Way, series: &str) -> Rig {
    Rig::with(way, series, Haproxy::start_with(series, frontend).await).await
}

pub fn env(rig: &Rig) -> Env {
    rig.env_with(&[("HAPROXY_FRONTEND", "web")])
}

/// A service with one instance.
pub fn service(name: &str, server: &Server, created: u64, tags: &[&str]) -> Value {
    let tags: Vec<&str> = [&["enable=true", "check.disabled"], tags].concat();
    registration(name, name, created, server.port(), &tags)
}

pub async fn converge(rig: &Rig, env: &Env, services: &[Value]) -> String {
    write_catalog(&rig.catalog(), services);
    apply(env, &rig.catalog()).await
}

/// What a pass that has nothing to do says.
pub async fn is_done(rig: &Rig, env: &Env) {
    let plan = run(env, &["plan", "--detailed-exitcode", "--catalog", rig.catalog().to_str().unwrap()]).await;
    assert_eq!(plan.status.code(), Some(0), "{}", stdout(&plan));
}

/// Where HAProxy keeps the maps.
pub fn maps_folder(rig: &Rig) -> PathBuf {
    match rig.api {
        None => rig.haproxy.folder().to_owned(),
        Some(_) => rig.haproxy.folder().join("maps"),
    }
}

/// The map files of ours, by name, with their lines.
pub fn maps_on_disk(rig: &Rig) -> Vec<(String, Vec<String>)> {
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
pub async fn maps_agree(rig: &Rig) {
    for (path, mut disk) in maps_on_disk(rig) {
        let answer = rig.haproxy.try_command(&format!("@1 show map {path}")).await.unwrap();
        let mut process: Vec<String> =
            answer.lines().filter_map(|line| line.split_once(' ')).map(|(_, entry)| entry.to_owned()).collect();
        if !path.contains("__suffix") && !path.contains("__regex") {
            disk.sort();
            process.sort();
        }
        assert_eq!(process, disk, "{path}");
    }
}

/// A controller in this process, with these settings beside those of HAProxy.
pub fn controller(rig: &Rig, more: &Value) -> Controller {
    let mut haproxy = match &rig.api {
        Some(api) => json!({"address": api.url, "password": "secret"}),
        None => json!({
            "config_file": rig.haproxy.config(), "master_socket": rig.haproxy.master(), "binary": rig.haproxy.binary,
        }),
    };
    haproxy["frontend"] = json!("web");
    let mut settings = json!({"haproxy": haproxy, "backend": {"linger": "0s"}, "guard": {"share": "100%"}, "reload": {"min_interval": "0s"}});
    for (key, value) in more.as_object().unwrap() {
        settings[key] = value.clone();
    }
    let settings: Settings = serde_json::from_value(settings).unwrap();
    let config = Config::try_from(settings).unwrap();
    let catalog = SharedCatalog::new(Source::File(rig.catalog()));
    let names = tokio::sync::watch::Sender::default().subscribe();
    target::controller(&config, &config.targets.fixed[0], &catalog, names, &Lease::ALWAYS).unwrap()
}

pub async fn pass(rig: &Rig, controller: &mut Controller, services: &[Value]) -> PassStatus {
    write_catalog(&rig.catalog(), services);
    let status = controller.pass(Moment::now(false), None).await;
    assert!(status.error.is_none(), "{:?}", status.error);
    status
}

/// The notes of a pass.
pub fn notes(status: &PassStatus) -> String {
    status.notes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
