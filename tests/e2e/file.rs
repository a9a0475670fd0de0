//! The Data Plane API and the file: it renders all of it with each write, so what is not ours is checked first; and no
//! commit, file or byte of others is lost when something fails.

use std::path::Path;
use std::sync::Arc;

use crate::support::api::{Api, Rig, Way};
use crate::support::controller::{apply, registration, run, stderr, stdout, write_catalog};
use crate::support::disk::FullDisk;
use crate::support::haproxy::{Haproxy, conditional, hand_written, has_backend, matrix};
use crate::support::load::Load;
use crate::support::passes::{controller, dataplane, pass};
use crate::support::servers::Server;
use nomad_haproxy::apply::Moment;
use nomad_haproxy::haproxy::text::ConfigText;

fn api(ports: &[u16]) -> Vec<serde_json::Value> {
    ports.iter().map(|port| registration("api", &port.to_string(), 1, *port, &["enable=true"])).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_with_conditionals_is_never_written_through_the_api() {
    for series in matrix() {
        let rig = Rig::with(Way::Api, series, Haproxy::start_with(series, conditional).await).await;
        let before = rig.haproxy.bytes();
        write_catalog(&rig.catalog(), &api(&[2001]));
        let catalog = rig.catalog().display().to_string();
        for write in ["auto", "transaction", "text"] {
            let env = rig.env_with(&[("HAPROXY_WRITE", write)]);
            let planned = run(&env, &["plan", "--catalog", &catalog]).await;
            let applied = run(&env, &["apply", "--catalog", &catalog]).await;
            for said in [stdout(&planned), stderr(&applied)] {
                let line = rig.haproxy.text().lines().position(|line| line.starts_with(".if")).unwrap() + 1;
                for words in [&format!("line {line} has `.if`"), "haproxy.config_file", "${VAR}"] {
                    assert!(said.contains(words), "HAProxy {series}, {write}: {words} in:\n{said}");
                }
            }
            assert!(stdout(&planned).contains("+backend api"), "the plan is shown all the same");
            assert_eq!((planned.status.code(), applied.status.code()), (Some(1), Some(1)));
            assert_eq!(rig.haproxy.bytes(), before, "HAProxy {series}, {write}");
        }
        assert_eq!(rig.haproxy.reloads().await, 0);
    }
}

/// The API writes out which `defaults` the sections of a file inherit from; a new backend names it too, as HAProxy
/// warns about a file that mixes both, and `zero-warning` makes that an error.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_without_warnings_has_none_after_a_new_backend() {
    let config = |folder: &Path, port: u16| {
        let global =
            format!("global\n    zero-warning\n    stats socket {}/stats.sock level admin\n", folder.display());
        let rest = "defaults\n    mode http\n    timeout connect 1s\n    timeout client 30s\n    timeout server 30s\nfrontend web\n";
        format!("{global}{rest}    bind 127.0.0.1:{port}\n    default_backend shop\nbackend shop\n    server a 127.0.0.1:9\n").into_bytes()
    };
    for series in matrix() {
        for write in ["transaction", "text"] {
            let rig = Rig::with(Way::Api, series, Haproxy::start_with(series, config).await).await;
            write_catalog(&rig.catalog(), &api(&[2001]));
            let env = rig.env_with(&[("HAPROXY_WRITE", write)]);
            apply(&env, &rig.catalog()).await;
            write_catalog(
                &rig.catalog(),
                &[api(&[2001]), vec![registration("b", "b", 1, 2002, &["enable=true"])]].concat(),
            );
            apply(&env, &rig.catalog()).await;
            assert!(has_backend(&rig.haproxy.text(), "b"), "HAProxy {series}, {write}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_the_api_would_change_keeps_it_from_writing() {
    // A byte that is not UTF-8, in a word.
    let config = |folder: &Path, port: u16| -> Vec<u8> {
        let rule = "    http-request set-header X-A \"caf\u{e9}\"\n    acl is_shop";
        let text = hand_written(folder, port).replacen("    acl is_shop", rule, 1);
        text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
    };
    for series in matrix() {
        let rig = Rig::with(Way::Api, series, Haproxy::start_with(series, config).await).await;
        let before = rig.haproxy.bytes();
        write_catalog(&rig.catalog(), &api(&[2001]));
        let catalog = rig.catalog().display().to_string();
        for write in ["auto", "transaction", "text"] {
            let env = rig.env_with(&[("HAPROXY_WRITE", write)]);
            let output = run(&env, &["apply", "--catalog", &catalog]).await;
            let (said, words) = (stderr(&output), "`http-request` in `frontend web`");
            assert!(!output.status.success() && said.contains(words), "HAProxy {series}, {write}: {said}");
            assert_eq!(rig.haproxy.bytes(), before, "HAProxy {series}, {write}");
        }
    }
}

/// A raw write puts all `defaults` sections first: a section that names none would inherit from another one.
#[tokio::test(flavor = "multi_thread")]
async fn what_sections_inherit_by_their_place_stays() {
    let config = |folder: &Path, port: u16| {
        let odd = "defaults\n    mode tcp\n    timeout connect 7s\nbackend first\n    server a 127.0.0.1:1\ndefaults\n    mode http\n    timeout connect 2s\nbackend second\n    server b 127.0.0.1:2\n";
        format!("{}{odd}", hand_written(folder, port))
    };
    for (series, write) in matrix().into_iter().flat_map(|series| ["auto", "text"].map(|write| (series, write))) {
        let rig = Rig::with(Way::Api, series, Haproxy::start_with(series, config).await).await;
        let env = rig.env_with(&[("HAPROXY_WRITE", write)]);
        for ports in [&[2001][..], &[2001, 2002], &[2002]] {
            write_catalog(&rig.catalog(), &api(ports));
            apply(&env, &rig.catalog()).await;
        }
        let text = ConfigText::from_bytes(&rig.haproxy.bytes());
        let sections = text.sections();
        let timeout = |backend: &str| {
            let from = sections.iter().find(|section| section.name == backend).unwrap().from.clone().unwrap();
            let defaults = sections.iter().find(|section| section.kind == "defaults" && section.name == from).unwrap();
            let mut lines = text.directives(defaults).map(|(_, directive)| directive.words);
            lines.find(|words| words[0] == "timeout").unwrap()[2].clone()
        };
        assert_eq!((timeout("first"), timeout("second")), ("7s".into(), "2s".into()), "HAProxy {series}, {write}");
        assert!(rig.haproxy.reloads().await <= 2, "HAProxy {series}, {write}: one for this, one for the backend");
        rig.agrees().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comment_that_is_not_utf_8_goes_through_every_write() {
    let config = |folder: &Path, port: u16| -> Vec<u8> {
        let text = hand_written(folder, port).replace("# by hand", "# caf\u{e9} by hand");
        text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
    };
    for (series, write) in matrix().into_iter().flat_map(|series| ["transaction", "text"].map(|write| (series, write)))
    {
        let rig = Rig::with(Way::Api, series, Haproxy::start_with(series, config).await).await;
        for ports in [&[2001][..], &[2001, 2002], &[]] {
            write_catalog(&rig.catalog(), &api(ports));
            apply(&rig.env_with(&[("HAPROXY_WRITE", write)]), &rig.catalog()).await;
        }
        let bytes = rig.haproxy.bytes();
        assert!(
            bytes.windows(7).any(|part| part == b"caf\xe9 by"),
            "HAProxy {series}, {write}: {}",
            rig.haproxy.text()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn auto_writes_a_large_change_as_text_and_a_small_one_as_a_transaction() {
    let rig = Rig::start(Way::Api, "3.2").await;
    let (gate, env) = rig.gated().await;
    let services = |count: usize| -> Vec<serde_json::Value> {
        (0..count).map(|n| registration(&format!("svc-{n}"), "1", 1, 2001, &["enable=true"])).collect()
    };
    let edits = || gate.calls().iter().filter(|call| call.contains("/configuration/backends")).count();
    write_catalog(&rig.catalog(), &services(40));
    gate.hold(None);
    apply(&env, &rig.catalog()).await;
    assert_eq!(edits(), 0, "{:?}", gate.calls());
    assert!(gate.calls().len() < 12, "{:?}", gate.calls());
    write_catalog(&rig.catalog(), &services(42));
    gate.hold(None);
    apply(&env, &rig.catalog()).await;
    assert_eq!(edits(), 2, "{:?}", gate.calls());
}

/// Valid, but it cannot be loaded: a listener on a port that is in use.
fn taken_port() -> (std::net::TcpListener, String) {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let bind = format!("bind 127.0.0.1:{}\n    acl is_shop", taken.local_addr().unwrap().port());
    (taken, bind)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_of_another_client_after_our_failed_reload_stays() {
    for series in matrix() {
        let rig = Rig::start(Way::Api, series).await;
        let (gate, env) = rig.gated().await;
        write_catalog(&rig.catalog(), &api(&[2001]));
        apply(&env, &rig.catalog()).await;
        let (_taken, bind) = taken_port();
        rig.edit(|text| text.replacen("acl is_shop", &bind, 1)).await;
        // Between our failed reload and our handling of it, another client removes the listener and adds a line.
        let url = rig.api.as_ref().unwrap().url.clone();
        let line = bind.lines().next().unwrap().to_owned();
        let done = std::sync::atomic::AtomicBool::new(false);
        let failed = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        gate.watch_failures(failed.clone());
        gate.interfere(Some(Box::new(move |method, uri| {
            let first_look = method == "GET" && uri.path().ends_with("/raw") && uri.query().is_none();
            let after_failure = failed.load(std::sync::atomic::Ordering::SeqCst);
            if first_look && after_failure && !done.swap(true, std::sync::atomic::Ordering::SeqCst) {
                let (url, line) = (url.clone(), line.clone());
                tokio::task::block_in_place(|| {
                    tokio::runtime::Handle::current().block_on(commit_of_another_client(&url, &line));
                });
            }
            None
        })));
        let mut both = api(&[2001]);
        both.push(registration("new", "n", 1, 2009, &["enable=true"]));
        write_catalog(&rig.catalog(), &both);
        let catalog = rig.catalog().display().to_string();
        let output = run(&env, &["apply", "--catalog", &catalog]).await;
        assert!(stderr(&output).contains("could not load"), "HAProxy {series}: {}{}", stderr(&output), stdout(&output));
        let text = rig.haproxy.text();
        assert!(text.contains("maxconn 501"), "HAProxy {series}: the other client's commit is there: {text}");
        gate.interfere(None);
        apply(&env, &rig.catalog()).await;
        assert!(rig.haproxy.text().contains("maxconn 501") && has_backend(&rig.haproxy.text(), "new"));
        rig.agrees().await;
    }
}

/// Removes a line and changes another, through the API.
async fn commit_of_another_client(url: &str, line: &str) {
    let client = reqwest::Client::new();
    let raw = format!("{url}/v3/services/haproxy/configuration/raw");
    let answer = client.get(&raw).basic_auth("admin", Some("secret")).send().await.unwrap();
    let version = answer.headers()["Configuration-Version"].to_str().unwrap().to_owned();
    let text = answer.text().await.unwrap().replace(line, "").replace("maxconn 500", "maxconn 501");
    let write = client.post(format!("{raw}?force_reload=true&version={version}")).basic_auth("admin", Some("secret"));
    let answer = write.header("Content-Type", "text/plain").body(text).send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_file_under_a_restarted_api_costs_no_request_and_one_reload() {
    for series in matrix() {
        let mut rig = Rig::start(Way::Api, series).await;
        let server = Server::start("one").await;
        let tags = ["enable=true", "check.disabled"];
        write_catalog(&rig.catalog(), &[]);
        apply(&rig.env(), &rig.catalog()).await;
        let old = rig.haproxy.bytes();
        write_catalog(&rig.catalog(), &[registration("live", "1", 1, server.port(), &tags)]);
        apply(&rig.env(), &rig.catalog()).await;
        let load = Load::start(rig.haproxy.port, "live.test", 50);
        rig.api = None;
        std::fs::write(rig.haproxy.config(), old).unwrap();
        rig.api = Some(Api::start(&rig.haproxy, series).await);
        let reloads = rig.haproxy.reloads().await;
        apply(&rig.env(), &rig.catalog()).await;
        assert_eq!(rig.haproxy.reloads().await, reloads + 1, "HAProxy {series}");
        let tally = load.take();
        assert!(tally.requests > 0 && tally.failed.is_empty(), "HAProxy {series}: {:?}", tally.failed);
        rig.agrees().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_nothing_and_is_named() {
    let Some(disk) = FullDisk::mount() else {
        eprintln!("NOT TESTED: this user may not mount a tmpfs");
        return;
    };
    let mut haproxy = Haproxy::prepare(crate::support::haproxy::binary("3.2").unwrap());
    haproxy.config_file = disk.path().join("haproxy.cfg");
    haproxy.arguments = vec!["-f".into(), haproxy.config_file.display().to_string()];
    std::fs::write(&haproxy.config_file, hand_written(haproxy.folder(), haproxy.port)).unwrap();
    haproxy.launch().await;
    let rig = Rig::with(Way::Api, "3.2", haproxy).await;
    write_catalog(&rig.catalog(), &api(&[2001]));
    apply(&rig.env(), &rig.catalog()).await;
    let before = rig.haproxy.bytes();
    let (gate, env) = rig.gated().await;
    if crate::support::api::real().is_some() {
        disk.fill();
    } else {
        // The real API's answer in that case (seen on 3.0, 3.2 and 3.4); the fake one does not run out of space.
        gate.interfere(Some(Box::new(|method, uri| {
            let writes = (method == "POST" && uri.path().ends_with("/raw")) || method == "PUT";
            let answer = "{\"code\":500,\"message\":\"write .haproxy.cfg1: no space left on device\"}";
            let to_the_file = writes && !uri.path().contains("/runtime/") && !uri.path().contains("/backends");
            to_the_file.then(|| (500, answer.to_owned()))
        })));
    }
    let catalog = rig.catalog().display().to_string();
    for (write, ports) in
        [("transaction", &[2001, 2002][..]), ("text", &[2002]), ("text", &[2001, 2002, 2003, 2004, 2005, 2006])]
    {
        write_catalog(&rig.catalog(), &api(ports));
        let env = [env.clone(), vec![("HAPROXY_WRITE".to_owned(), write.to_owned())]].concat();
        let output = run(&env, &["apply", "--catalog", &catalog]).await;
        let said = stderr(&output);
        assert!(!output.status.success() && said.contains("no space left on device"), "{said}");
        assert!(!said.contains("the file is written") && !said.contains("4 attempts"), "{said}");
        assert_eq!(rig.haproxy.bytes(), before);
    }
    disk.clear();
    gate.interfere(None);
    write_catalog(&rig.catalog(), &api(&[2001, 2002]));
    apply(&rig.env(), &rig.catalog()).await;
    rig.agrees().await;
}

/// A server that redirects everything to another one, and that other one, which counts its requests.
async fn redirecting() -> (String, Server) {
    let other = Server::start("other").await;
    let target = format!("http://127.0.0.1:{}/", other.port());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = axum::Router::new().fallback(async move || axum::response::Redirect::temporary(&target));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, other)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_not_followed_with_credentials() {
    let (url, other) = redirecting().await;
    let folder = tempfile::tempdir().unwrap();
    let catalog = folder.path().join("catalog.json");
    write_catalog(&catalog, &api(&[2001]));
    let set = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let env = vec![
        set("HAPROXY_DATAPLANE_URL", &url),
        set("HAPROXY_PASSWORD", "secret"),
        set("NOMAD_ADDR", &url),
        set("NOMAD_TOKEN", "t"),
    ];
    for arguments in [&["apply", "--catalog", catalog.to_str().unwrap()][..], &["catalog"]] {
        let output = run(&env, arguments).await;
        assert!(!output.status.success() && stderr(&output).contains("307"), "{}", stderr(&output));
    }
    assert_eq!(other.requests.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_loaded_is_tried_again_at_growing_intervals() {
    for series in matrix() {
        let rig = Rig::start(Way::Api, series).await;
        write_catalog(&rig.catalog(), &api(&[2001]));
        apply(&rig.env(), &rig.catalog()).await;
        let (taken, bind) = taken_port();
        rig.edit(|text| text.replacen("acl is_shop", &bind, 1)).await;
        let mut both = api(&[2001]);
        both.push(registration("new", "n", 1, 2009, &["enable=true"]));
        write_catalog(&rig.catalog(), &both);
        let (mut controller, start) = (controller(&rig, Arc::new(dataplane(&rig))), Moment::now(true));
        // At once, after 30 s, and 60 s after that; not in between.
        let mut failed = Vec::new();
        for seconds in [0, 1, 29, 31, 60, 89, 92] {
            let status = pass(&mut controller, start, seconds).await;
            failed.push(status.failed_reloads);
            assert!(status.error.is_some() == (status.failed_reloads > 0), "{:?}", status.error);
            assert!(status.notes.iter().any(|note| note.text.contains("could not load")), "{:?}", status.notes);
        }
        assert_eq!(failed, [1, 0, 0, 1, 0, 0, 1], "HAProxy {series}");
        drop(taken);
        let status = pass(&mut controller, start, 93).await;
        assert!(status.next.is_some(), "it says when it is due");
        let status = pass(&mut controller, start, 400).await;
        assert!(status.error.is_none() && status.notes.is_empty(), "{:?} {:?}", status.error, status.notes);
        assert!(has_backend(&rig.haproxy.text(), "new"), "HAProxy {series}");
        rig.agrees().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_refused_is_not_searched_again_at_each_resync() {
    let rig = Rig::start(Way::Api, "3.2").await;
    let (gate, env) = rig.gated().await;
    let mut rig = rig;
    let url = env.iter().find(|(key, _)| key == "HAPROXY_DATAPLANE_URL").unwrap().1.clone();
    rig.api.as_mut().unwrap().url = url;
    let mut bad = registration("bad", "1", 1, 80, &["enable=true"]);
    bad["Address"] = "no..name.invalid".into();
    write_catalog(&rig.catalog(), &[bad, registration("good", "2", 2, 2001, &["enable=true"])]);
    let (mut controller, start) = (controller(&rig, Arc::new(dataplane(&rig))), Moment::now(true));
    let mut validations = Vec::new();
    for seconds in [0, 1, 29, 31, 32] {
        gate.hold(None);
        let status = pass(&mut controller, start, seconds).await;
        assert!(status.notes.iter().any(|note| note.service.name == "bad"), "{:?}", status.notes);
        validations.push(gate.calls().iter().any(|call| call.contains("only_validate")));
    }
    assert_eq!(validations, [true, false, false, true, false]);
    assert!(has_backend(&rig.haproxy.text(), "good"));
}
