//! Routes on real HAProxy: which request of a frontend goes to which service.

use std::os::unix::fs::PermissionsExt;

use crate::support::api::{Rig, Way};
use crate::support::controller::{apply_failing, run, stdout, write_catalog};
use crate::support::haproxy::has_backend;
use crate::support::routes::{
    ask, controller, converge, env, is_done, maps_agree, maps_on_disk, notes, pass, rig, service,
};
use crate::support::servers::Server;
use nomad_haproxy::apply::Moment;
use serde_json::json;

/// A test that runs a case on every series of HAProxy, on both planes, with [`frontend`].
macro_rules! on_each {
    ($name:ident, $case:path) => {
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            for series in crate::support::haproxy::matrix() {
                for way in crate::support::api::WAYS {
                    eprintln!("--- {} on HAProxy {series}, {way:?}", stringify!($name));
                    $case(rig(way, series).await).await;
                }
            }
        }
    };
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

/// A thousand where it is quickest, or as many as `ROUTES_HOSTS` says.
fn many(rig: &Rig) -> usize {
    let is_quick = rig.api.is_none() && rig.series == "3.2";
    let asked = std::env::var("ROUTES_HOSTS").ok().map(|hosts| hosts.parse().unwrap());
    asked.unwrap_or(if is_quick { 1000 } else { 40 })
}

async fn one_by_one(rig: Rig) {
    let server = Server::start("api").await;
    let mut controller = controller(&rig, &json!({}));
    let hosts = |hosts: std::ops::Range<usize>| {
        let hosts: Vec<String> = hosts.map(|n| format!("h{n}.example.com")).collect();
        let domains: Vec<String> = hosts.chunks(50).map(|chunk| format!("domain={}", chunk.join(","))).collect();
        let tags: Vec<&str> =
            ["domain=first.example.com"].into_iter().chain(domains.iter().map(String::as_str)).collect();
        [service("api", &server, 1, &tags)]
    };
    pass(&rig, &mut controller, &hosts(0..0)).await;
    let (reloads, text, many) = (rig.haproxy.reloads().await, rig.haproxy.text(), many(&rig));
    for (low, high) in (1..=many).map(|n| (0, n)).chain((1..=many).map(|n| (n, many))) {
        // HAProxy is reloaded by a person while this goes on.
        let is_reloaded = high % 333 == 17 || low % 333 == 17;
        let reload = async {
            if is_reloaded {
                let _ = rig.haproxy.try_command("reload").await;
            }
        };
        let services = hosts(low..high);
        write_catalog(&rig.catalog(), &services);
        // The master does not answer while it replaces itself.
        let (status, ()) = tokio::join!(controller.pass(Moment::now(false), None), reload);
        assert_eq!((status.reloads, is_reloaded || status.error.is_none()), (0, true), "{:?}", status.error);
        if is_reloaded {
            // Another process may have loaded the file as it was.
            rig.haproxy.worker().await;
            pass(&rig, &mut controller, &services).await;
        }
        if is_reloaded || high % 100 == 1 || low % 100 == 1 || rig.api.is_some() {
            maps_agree(&rig).await;
            let lines = maps_on_disk(&rig).iter().map(|(_, lines)| lines.len()).sum::<usize>();
            assert_eq!(lines, 1 + high - low);
        }
    }
    assert_eq!(rig.haproxy.text(), text, "a host is an entry of a map, and nothing else");
    let by_hand = (1..=many).filter(|n| n % 333 == 17).count();
    assert!(rig.haproxy.reloads().await <= reloads + 2 * by_hand as u64 + 1);
    assert_eq!(ask(&rig, "first.example.com", "/").await, "api");
}
on_each!(hosts_come_and_go_one_by_one_without_a_reload, one_by_one);

async fn withdrawn(rig: Rig) {
    let (api, other) = tokio::join!(Server::start("api"), Server::start("other"));
    let mut controller = controller(&rig, &json!({}));
    let keep = service("other", &other, 2, &["domain=other.com"]);
    let with = |tags: &[&str]| [service("api", &api, 1, tags), keep.clone()];
    let hosts = ["a.com", "b.com", "x.c.com", "pre-1.net", "r1.org"];
    for (tags, expected) in [
        (&["domain=a.com"][..], ["api", "default", "default", "default", "default"]),
        (&["domain=b.com"], ["default", "api", "default", "default", "default"]),
        (&["domain=a.com,b.com,*.c.com"], ["api", "api", "api", "default", "default"]),
        (&["domain=pre-", "domain.type=prefix"], ["default", "default", "default", "api", "default"]),
        (&["domain=^r[0-9]", "domain.type=regex"], ["default", "default", "default", "default", "api"]),
        (&["domain=a.com", "path=/only"], ["default"; 5]),
        (&["domain=a.com", "mode=tcp"], ["default"; 5]),
        (&["domain=a.com", "frontend=nosuch"], ["default"; 5]),
        (&["domain=a.com"], ["api", "default", "default", "default", "default"]),
        (&[], ["default"; 5]),
    ] {
        let status = pass(&rig, &mut controller, &with(tags)).await;
        for (host, answer) in hosts.iter().zip(expected) {
            assert_eq!(ask(&rig, host, "/").await, answer, "{host} {tags:?}\n{}", notes(&status));
        }
        maps_agree(&rig).await;
        is_done(&rig, &env(&rig)).await;
        assert_eq!(ask(&rig, "other.com", "/").await, "other");
    }
    // A request for a path that is routed is not one for the rest of the host.
    pass(&rig, &mut controller, &with(&["domain=a.com", "path=/only"])).await;
    assert_eq!((ask(&rig, "a.com", "/only/x").await, ask(&rig, "a.com", "/").await), ("api".into(), "default".into()));
    // Not enabled any more: nothing of it is left.
    let mut off = service("api", &api, 1, &["domain=a.com"]);
    off["Tags"] = json!(["haproxy.enable=false", "haproxy.domain=a.com"]);
    pass(&rig, &mut controller, &[off, keep]).await;
    assert_eq!((ask(&rig, "a.com", "/").await, has_backend(&rig.haproxy.text(), "api")), ("default".into(), false));
    pass(&rig, &mut controller, &[]).await;
    assert_eq!((maps_on_disk(&rig), rig.haproxy.text().contains("nomad-haproxy__")), (vec![], false));
    rig.has_none();
}
on_each!(a_change_of_tags_leaves_nothing_of_the_old_routes, withdrawn);

async fn lingering(rig: Rig) {
    let (api, other) = tokio::join!(Server::start("api"), Server::start("other"));
    let mut controller = controller(&rig, &json!({"backend": {"linger": "10m"}}));
    let (a, b) = (service("api", &api, 1, &["domain=a.com"]), service("other", &other, 2, &["domain=b.com,a.com"]));
    let status = pass(&rig, &mut controller, &[a.clone(), b.clone()]).await;
    assert!(
        notes(&status).contains("error: service other: no route for a.com: it belongs to service api"),
        "{}",
        notes(&status)
    );
    let reloads = rig.haproxy.reloads().await;
    // Gone, as while it is restarted: its host answers for itself, and nobody takes it.
    let status = pass(&rig, &mut controller, std::slice::from_ref(&b)).await;
    assert_eq!((ask(&rig, "a.com", "/").await, ask(&rig, "b.com", "/").await), ("503".into(), "other".into()));
    assert!(notes(&status).contains("until `backend.linger` is over"), "{}", notes(&status));
    pass(&rig, &mut controller, &[a, b.clone()]).await;
    assert_eq!(ask(&rig, "a.com", "/").await, "api");
    assert_eq!(rig.haproxy.reloads().await, reloads);
    // Still registered, and not enabled: it does not want its host any more.
    let mut off = service("api", &api, 1, &[]);
    off["Tags"] = json!(["haproxy.enable=false"]);
    pass(&rig, &mut controller, &[off, b]).await;
    let status = controller.pass(Moment::now(false), None).await;
    assert_eq!(ask(&rig, "a.com", "/").await, "other", "{}", notes(&status));
    maps_agree(&rig).await;
}
on_each!(a_service_that_is_gone_keeps_its_hosts_for_a_while, lingering);

async fn without_a_frontend(rig: Rig) {
    let server = Server::start("api").await;
    let before = rig.haproxy.text();
    let rules = |text: &str| text.split("backend shop").next().unwrap().matches("use_backend").count();
    let said = converge(&rig, &rig.env(), &[service("api", &server, 1, &["domain=a.com"])]).await;
    assert!(said.contains("warning: service api: no route for a.com: no frontend is named"), "{said}");
    assert_eq!((maps_on_disk(&rig), rules(&rig.haproxy.text())), (vec![], rules(&before)));
    // A tag names it.
    converge(&rig, &rig.env(), &[service("api", &server, 1, &["domain=a.com", "frontend=web"])]).await;
    assert_eq!(ask(&rig, "a.com", "/").await, "api");
}
on_each!(nothing_is_written_into_a_frontend_that_nobody_names, without_a_frontend);

/// Rules that HAProxy refuses stay as they are, with what they route; everything else goes on.
#[tokio::test(flavor = "multi_thread")]
async fn rules_that_haproxy_refuses_hold_nobody_else() {
    let rig = rig(Way::Local, "3.2").await;
    let (api, blog, web) = tokio::join!(Server::start("api"), Server::start("blog"), Server::start("web"));
    // A HAProxy that was built without regular expressions.
    let picky = rig.haproxy.folder().join("picky-haproxy");
    let script = format!(
        "#!/bin/bash\nfor file; do :; done\nline=$(grep -n map_reg \"$file\" | head -n 1 | cut -d : -f 1)\n\
         [ -z \"$line\" ] && exec {binary} \"$@\"\n\
         echo \"[ALERT]    (1) : config : parsing [$file:$line] : error detected in frontend 'web'\" >&2\nexit 1\n",
        binary = rig.haproxy.binary.display(),
    );
    std::fs::write(&picky, script).unwrap();
    std::fs::set_permissions(&picky, std::fs::Permissions::from_mode(0o755)).unwrap();
    let refusing = rig.env_with(&[("HAPROXY_FRONTEND", "web"), ("HAPROXY_BINARY", picky.to_str().unwrap())]);
    converge(&rig, &refusing, &[service("api", &api, 1, &["domain=a.com"])]).await;
    let services = [
        service("api", &api, 1, &["domain=a.com"]),
        service("blog", &blog, 2, &["domain.type=regex", "domain=^blog[0-9]$"]),
        service("web", &web, 3, &["domain=w.com"]),
    ];
    write_catalog(&rig.catalog(), &services);
    let said = apply_failing(&refusing, &rig.catalog()).await;
    let note = "error: service blog: its routes in the frontend web stay as they are: HAProxy refuses the rules: ";
    assert!(said.contains(note), "{said}");
    for (host, answer) in [("a.com", "api"), ("w.com", "web"), ("blog7", "default")] {
        assert_eq!(ask(&rig, host, "/").await, answer, "{said}");
    }
    assert!(has_backend(&rig.haproxy.text(), "blog"), "{}", rig.haproxy.text());
    maps_agree(&rig).await;
    // It is the one that it was built to be.
    let said = converge(&rig, &env(&rig), &services).await;
    assert_eq!(ask(&rig, "blog7", "/").await, "blog", "{said}");
    is_done(&rig, &env(&rig)).await;
}
