//! Who gets which route, routes of TCP frontends, and what an interruption leaves.

use std::path::Path;
use std::time::Duration;

use crate::support::api::{Rig, WAYS, Way};
use crate::support::controller::{command, run, stdout, write_catalog};
use crate::support::haproxy::{Haproxy, deaf_master, matrix};
use crate::support::process::Group;
use crate::support::routes::{
    ask, controller, converge, env, is_done, maps_agree, maps_on_disk, notes, pass, rig, service,
};
use crate::support::servers::{Plain, Server};
use crate::support::wait_for;
use nomad_haproxy::apply::Moment;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The same service in another namespace.
fn in_namespace(namespace: &str, mut service: Value) -> Value {
    service["Namespace"] = namespace.into();
    service
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_stays_with_the_one_who_has_it_whatever_others_claim() {
    for way in WAYS {
        let rig = rig(way, "3.2").await;
        let (mine, theirs) = tokio::join!(Server::start("mine"), Server::start("theirs"));
        let mut controller = controller(&rig, &json!({}));
        let owner = in_namespace("team-a", service("mine", &mine, 5, &["domain=app.example.com"]));
        pass(&rig, &mut controller, std::slice::from_ref(&owner)).await;
        // Older, and of another namespace: the host, a longer path, a wildcard, a prefix, a regular expression.
        for tags in [
            &["domain=app.example.com"][..],
            &["domain=APP.example.com", "path=/admin"],
            &["domain=*.example.com", "path=/admin"],
            &["domain=app", "domain.type=prefix"],
            &["domain=.*", "domain.type=regex"],
        ] {
            let thief = in_namespace("team-b", service("theirs", &theirs, 1, tags));
            let status = pass(&rig, &mut controller, &[owner.clone(), thief]).await;
            for path in ["/", "/admin", "/admin/x"] {
                assert_eq!(ask(&rig, "app.example.com", path).await, "mine", "{tags:?} {path}\n{}", notes(&status));
            }
        }
        let status = pass(
            &rig,
            &mut controller,
            &[
                owner.clone(),
                in_namespace("team-b", service("theirs", &theirs, 1, &["domain=app.example.com", "path=/admin"])),
            ],
        )
        .await;
        assert!(
            notes(&status).contains("error: service team-b/theirs: no route for app.example.com/admin"),
            "{}",
            notes(&status)
        );
        // Within a namespace a longer path is fine, and the same one is not.
        let same = |tags: &[&str]| in_namespace("team-a", service("theirs", &theirs, 1, tags));
        pass(&rig, &mut controller, &[owner.clone(), same(&["domain=app.example.com", "path=/admin"])]).await;
        assert_eq!(ask(&rig, "app.example.com", "/admin").await, "theirs");
        let status = pass(&rig, &mut controller, &[owner.clone(), same(&["domain=app.example.com"])]).await;
        assert_eq!(ask(&rig, "app.example.com", "/admin").await, "mine");
        assert!(notes(&status).contains("it belongs to service team-a/mine"), "{}", notes(&status));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_claims_only_the_hosts_that_the_settings_list() {
    let rig = rig(Way::Local, "3.2").await;
    let (a, b) = tokio::join!(Server::start("a"), Server::start("b"));
    let namespaces =
        json!({"namespaces": {"team-a": {"domains": ["*.a.example.com", "shared.com"]}, "ops": {"domains": ["*"]}}});
    let mut controller = controller(&rig, &namespaces);
    let hosts = ["x.a.example.com", "shared.com", "free.com"];
    for (namespace, domains, expected, complaint) in [
        ("team-a", "domain=x.a.example.com,free.com", ["b", "default", "default"], "may claim"),
        ("ops", "domain=x.a.example.com,free.com", ["b", "default", "b"], ""),
        ("team-b", "domain=x.a.example.com,free.com", ["default", "default", "b"], "for another namespace"),
        ("team-b", "domain=*.example.com", ["default"; 3], "for another namespace"),
        ("team-b", "domain=*.com", ["default"; 3], "for another namespace"),
        ("team-a", "domain=*.a.example.com", ["b", "default", "default"], ""),
        ("team-a", "domain=*.example.com", ["default"; 3], "may claim"),
    ] {
        let claims = in_namespace(namespace, service("claims", &b, 1, &[domains]));
        let other = in_namespace("team-a", service("other", &a, 2, &["domain=other.a.example.com"]));
        let status = pass(&rig, &mut controller, &[claims, other]).await;
        for (host, answer) in hosts.iter().zip(expected) {
            assert_eq!(ask(&rig, host, "/").await, answer, "{namespace} {domains} {host}\n{}", notes(&status));
        }
        assert!(
            notes(&status).contains(complaint) && notes(&status).is_empty() == complaint.is_empty(),
            "{}",
            notes(&status)
        );
        assert_eq!(ask(&rig, "other.a.example.com", "/").await, "a");
    }
}

/// A person's frontend in TCP mode that waits for a TLS handshake, and two that do not.
fn tcp(folder: &Path, port: u16) -> String {
    let plain = |name: &str, more: &str| {
        format!("frontend {name} from base\n    bind unix@{}\n{more}\n", folder.join(name).display())
    };
    format!(
        "global\n    stats socket {} mode 600 level admin\n\ndefaults base\n    mode tcp\n    timeout connect 1s\n    \
         timeout client 30s\n    timeout server 30s\n\nfrontend web from base\n    bind 127.0.0.1:{port}\n    \
         tcp-request inspect-delay 5s\n    tcp-request content accept if {{ req.ssl_hello_type 1 }}\n    \
         default_backend fallback\n\n{}{}backend fallback from base\n    balance roundrobin\n",
        folder.join("stats.sock").display(),
        plain("pg", ""),
        plain("mine", "    default_backend fallback\n"),
    )
}

/// The beginning of a TLS connection to a host (RFC 8446, 4.1.2; RFC 6066, 3).
fn client_hello(host: &str) -> Vec<u8> {
    let sized = |bytes: &[u8]| [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat();
    let name = [&[0][..], &sized(host.as_bytes())].concat();
    let extension = [&[0, 0][..], &sized(&sized(&name))].concat();
    let hello = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 0x01, 1, 0], &sized(&extension)].concat();
    let length = u32::try_from(hello.len()).unwrap().to_be_bytes();
    let handshake = [&[1][..], &length[1..], &hello].concat();
    [&[22, 3, 1][..], &sized(&handshake)].concat()
}

async fn says(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin), hello: &[u8]) -> String {
    let mut said = String::new();
    stream.write_all(hello).await.unwrap();
    let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_string(&mut said)).await.expect("an end");
    said.trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tcp_frontend_routes_by_the_name_in_the_handshake() {
    for series in matrix() {
        for way in WAYS {
            let rig = Rig::with(way, series, Haproxy::start_with(series, tcp).await).await;
            let (one, wild, all) = tokio::join!(Plain::saying("one"), Plain::saying("wild"), Plain::saying("all"));
            let tcp = |name: &str, server: &Plain, tags: &[&str]| {
                let tags: Vec<&str> = [&["enable=true", "mode=tcp", "check.disabled"], tags].concat();
                crate::support::controller::registration(name, name, 1, server.port(), &tags)
            };
            let services = [
                tcp("one", &one, &["domain=One.example.com"]),
                tcp("wild", &wild, &["domain=*.example.com"]),
                tcp("all", &all, &["frontend=pg"]),
                tcp("late", &all, &["frontend=mine"]),
                tcp("path", &all, &["domain=path.com", "path=/x"]),
            ];
            let said = converge(&rig, &env(&rig), &services).await;
            for (host, answer) in [("ONE.example.com", "one"), ("two.example.com", "wild"), ("other.org", "")] {
                let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", rig.haproxy.port)).await.unwrap();
                assert_eq!(says(&mut stream, &client_hello(host)).await, answer, "{host}\n{said}");
            }
            let mut stream = tokio::net::UnixStream::connect(rig.haproxy.folder().join("pg")).await.unwrap();
            assert_eq!(says(&mut stream, b"").await, "all", "{said}");
            assert!(
                said.contains(
                    "service late: no route for *: the frontend mine has a `default_backend`, or servers, of"
                ),
                "{said}"
            );
            assert!(said.contains("service path: no route for path.com/x: the frontend web is in TCP mode"), "{said}");
            maps_agree(&rig).await;
            is_done(&rig, &env(&rig)).await;
        }
    }
}

/// Runs a pass with a master that never answers commands with this word, and kills it when `is_there`.
async fn cut_short(rig: &Rig, services: &[Value], word: &'static str, is_there: impl Fn() -> bool) {
    let silent = rig.haproxy.folder().join("silent.sock");
    let deaf = deaf_master(&silent, &rig.haproxy.master(), word);
    write_catalog(&rig.catalog(), services);
    let mut env = env(rig);
    env.push(("HAPROXY_MASTER_SOCKET".into(), silent.display().to_string()));
    let mut group = Group::spawn(&mut command(&env, &["apply", "--catalog", rig.catalog().to_str().unwrap()]));
    wait_for(&format!("the step before {word}"), Duration::from_secs(20), async || is_there().then_some(())).await;
    group.kill();
    deaf.abort();
    std::fs::remove_file(silent).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_interruption_leaves_is_repaired_by_the_next_pass() {
    for series in matrix() {
        let rig = rig(Way::Local, series).await;
        let (api, other) = tokio::join!(Server::start("api"), Server::start("other"));
        let a = service("api", &api, 1, &["domain=a.com"]);
        let with_b = service("api", &api, 1, &["domain=a.com,b.com"]);
        let o = service("other", &other, 2, &["domain=o.com", "balance=source"]);
        let has = |line: &str| maps_on_disk(&rig).iter().any(|(_, lines)| lines.iter().any(|known| known == line));
        // The file of the map, and no rule yet.
        cut_short(&rig, std::slice::from_ref(&a), "show map", || !maps_on_disk(&rig).is_empty()).await;
        assert_eq!(ask(&rig, "a.com", "/").await, "default");
        converge(&rig, &env(&rig), std::slice::from_ref(&a)).await;
        assert_eq!(ask(&rig, "a.com", "/").await, "api");
        // A new host on disk, and not in the process.
        cut_short(&rig, std::slice::from_ref(&with_b), "add map", || has("b.com/ api")).await;
        assert_eq!(ask(&rig, "b.com", "/").await, "default");
        converge(&rig, &env(&rig), std::slice::from_ref(&with_b)).await;
        assert_eq!(ask(&rig, "b.com", "/").await, "api");
        // A new backend on disk, not loaded: its host is nowhere yet.
        let text = rig.haproxy.bytes();
        cut_short(&rig, &[with_b.clone(), o.clone()], "reload", || rig.haproxy.bytes() != text).await;
        assert!(!has("o.com/ other"));
        assert_eq!((ask(&rig, "o.com", "/").await, ask(&rig, "b.com", "/").await), ("default".into(), "api".into()));
        converge(&rig, &env(&rig), &[with_b.clone(), o.clone()]).await;
        assert_eq!(ask(&rig, "o.com", "/").await, "other");
        // The other way round: its host leaves the process before its backend does.
        cut_short(&rig, std::slice::from_ref(&with_b), "del map", || !has("o.com/ other")).await;
        assert_eq!(ask(&rig, "o.com", "/").await, "503", "its instance is out already");
        converge(&rig, &env(&rig), std::slice::from_ref(&with_b)).await;
        assert_eq!((ask(&rig, "o.com", "/").await, ask(&rig, "a.com", "/").await), ("default".into(), "api".into()));
        maps_agree(&rig).await;
        is_done(&rig, &env(&rig)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_shows_routes_and_an_edit_of_a_map_by_hand_is_undone() {
    for way in WAYS {
        let rig = rig(way, "3.4").await;
        let server = Server::start("api").await;
        let services = [service("api", &server, 1, &["domain=a.com", "path=/x"])];
        write_catalog(&rig.catalog(), &services);
        let (catalog, file) = (rig.catalog(), rig.haproxy.config());
        let (catalog, file) = (catalog.to_str().unwrap(), file.to_str().unwrap());
        let arguments = ["plan", "--output", "json", "--catalog", catalog];
        for arguments in [&arguments[..], &[&arguments[..], &["--haproxy-config", file]].concat()] {
            let output = run(&env(&rig), arguments).await;
            let plan: Value = serde_json::from_str(&stdout(&output)).unwrap();
            let route = json!({"frontend": "web", "host": "a.com", "path": "/x", "backend": "api", "action": "add"});
            assert_eq!((&plan["routes"], &plan["frontends"]), (&json!([route]), &json!(["web"])), "{plan}");
            let diff = plan["diff"].as_str().unwrap();
            assert!(
                diff.contains("+a.com/x/ api\n") && diff.contains("+    use_backend %[") || rig.api.is_some(),
                "{diff}"
            );
        }
        assert!(maps_on_disk(&rig).is_empty(), "a plan writes nothing");
        converge(&rig, &env(&rig), &services).await;
        is_done(&rig, &env(&rig)).await;
        let offline =
            run(&env(&rig), &["plan", "--detailed-exitcode", "--catalog", catalog, "--haproxy-config", file]).await;
        assert_eq!(offline.status.code(), Some(0), "{}", stdout(&offline));
        let reloads = rig.haproxy.reloads().await;
        let (path, _) = maps_on_disk(&rig).remove(0);
        std::fs::write(&path, "evil.com/ shop\n").unwrap();
        rig.haproxy.try_command(&format!("@1 add map {path} evil.com/ shop")).await;
        let mut controller = controller(&rig, &json!({}));
        let status = controller.pass(Moment::now(true), None).await;
        assert!(status.error.is_none() && status.reloads == 0, "{:?}", status.error);
        maps_agree(&rig).await;
        assert_eq!(
            (maps_on_disk(&rig)[0].1.clone(), rig.haproxy.reloads().await),
            (vec!["a.com/x/ api".to_owned()], reloads)
        );
    }
}

/// The structured edits of the Data Plane API, and its text.
#[tokio::test(flavor = "multi_thread")]
async fn both_writers_write_the_same_routes() {
    let server = Server::start("api").await;
    let mut rules = Vec::new();
    for write in ["transaction", "text"] {
        let rig = rig(Way::Api, "3.2").await;
        let mut env = env(&rig);
        env.push(("HAPROXY_WRITE".into(), write.into()));
        let foreign = rig.foreign();
        for tags in [&["domain=a.com"][..], &["domain=a.com,*.b.com"], &["domain=a.com"]] {
            converge(&rig, &env, &[service("api", &server, 1, tags)]).await;
            assert_eq!((ask(&rig, "a.com", "/").await, rig.foreign()), ("api".into(), foreign.clone()));
            let text = rig.haproxy.text().replace(rig.haproxy.folder().to_str().unwrap(), "");
            let ours = text.lines().filter(|line| line.contains("nomad-haproxy__")).map(|line| line.trim().to_owned());
            rules.push(ours.collect::<Vec<_>>());
        }
        converge(&rig, &env, &[]).await;
        assert_eq!((maps_on_disk(&rig), rig.foreign()), (vec![], foreign));
    }
    assert_eq!(rules[..3], rules[3..]);
    assert_eq!(rules.iter().map(Vec::len).collect::<Vec<_>>(), [1, 2, 2, 1, 2, 2]);
}
