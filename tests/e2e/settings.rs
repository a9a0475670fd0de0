//! Settings that change under a running installation, on real HAProxy: `plan` says what it costs, `apply` does just
//! that, and a second one does nothing.

use crate::support::api::{Rig, Way};
use crate::support::controller::{Env, apply, registration, run, stderr, stdout, write_catalog};
use crate::support::haproxy::{foreign_meaning, has_backend, matrix};
use serde_json::Value;

everywhere!(another_owner_takes_over_without_a_reload, owner::adopted);
everywhere!(what_another_owner_leaves_behind_has_one_note, owner::left_behind);
everywhere!(a_backend_that_nobody_needs_is_taken_over_too, owner::idle);
everywhere!(what_is_taken_over_beside_a_new_backend_is_one_write, owner::with_a_reload);

/// The API alone has spare servers.
#[tokio::test(flavor = "multi_thread")]
async fn fewer_slots_take_effect_with_the_next_reload() {
    for series in matrix() {
        slots::fewer(Rig::start(Way::Api, series).await).await;
    }
}
everywhere!(services_without_the_new_prefix_are_held_until_a_person_says_so, prefix::changed);

fn instance(service: &str, port: u16, tags: &[&str]) -> Value {
    let tags: Vec<&str> = ["enable=true"].iter().chain(tags).copied().collect();
    registration(service, &port.to_string(), u64::from(port), port, &tags)
}

fn catalog() -> Vec<Value> {
    vec![
        instance("api", 2001, &["balance=leastconn"]),
        instance("api", 2002, &["balance=leastconn"]),
        instance("pages", 2003, &["check.path=/health"]),
        instance("shop", 2004, &["backend=custom"]),
    ]
}

fn owned_by(rig: &Rig, owner: &str) -> Env {
    rig.env_with(&[("HAPROXY_OWNER", owner), ("NOMAD_HAPROXY_BACKEND_LINGER", "1h")])
}

/// A command that must succeed, with the catalog.
async fn succeeds(rig: &Rig, env: &Env, arguments: &[&str]) -> String {
    let catalog = rig.catalog().display().to_string();
    let output = run(env, &[arguments, &["--catalog", &catalog]].concat()).await;
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
    stdout(&output)
}

/// A converged system: no write, and `plan` says so.
async fn is_done(rig: &Rig, env: &Env) {
    let (text, reloads) = (rig.haproxy.text(), rig.haproxy.reloads().await);
    let said = succeeds(rig, env, &["plan"]).await;
    assert!(said.ends_with("No changes: HAProxy is in line with the catalog.\n"), "{said}");
    apply(env, &rig.catalog()).await;
    assert_eq!((rig.haproxy.text(), rig.haproxy.reloads().await), (text, reloads));
}

mod owner {
    use super::*;

    fn has_old_mark(rig: &Rig) -> bool {
        let text = rig.haproxy.text();
        text.contains("nomad-haproxy:nomad ") || text.contains("\"owner\":\"nomad\"")
    }

    pub async fn adopted(rig: Rig, way: Way) {
        write_catalog(&rig.catalog(), &catalog());
        apply(&owned_by(&rig, "nomad"), &rig.catalog()).await;
        let (before, reloads, worker) = (rig.haproxy.text(), rig.haproxy.reloads().await, rig.haproxy.worker().await);
        let running = |all: std::collections::BTreeMap<String, crate::support::haproxy::Running>| {
            all.into_iter().map(|(name, server)| (name, server.state(), server.address)).collect::<Vec<_>>()
        };
        let servers = running(rig.haproxy.running().await);
        let green = owned_by(&rig, "green");
        let plan = succeeds(&rig, &green, &["plan", "--adopt", "nomad"]).await;
        assert!(plan.contains("0 backends to create, 3 to change, 0 to delete; instances +0 -0"), "{plan}");
        assert!(plan.contains("no reload.") && plan.contains("+  description nomad-haproxy:green api"), "{plan}");
        assert!(!plan.contains("warning:") && !plan.contains("error:"), "{plan}");
        assert_eq!(rig.haproxy.text(), before);

        let said = succeeds(&rig, &green, &["apply", "--adopt", "nomad"]).await;
        assert!(said.contains("Applied: no reload"), "{said}");
        assert_eq!((rig.haproxy.reloads().await, rig.haproxy.worker().await), (reloads, worker));
        assert_eq!(running(rig.haproxy.running().await), servers);
        assert!(!has_old_mark(&rig), "{}", rig.haproxy.text());
        // Only the marks differ. The API also writes `enabled` or not, which is the same.
        let after = rig.haproxy.text().replace("green", "nomad");
        let body = |text: &str| text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
        match way {
            Way::Local => assert_eq!(body(&after), body(&before)),
            Way::Api => assert_eq!(foreign_meaning(&after), foreign_meaning(&before)),
        }
        is_done(&rig, &green).await;
        // A second `--adopt` finds nothing.
        let said = succeeds(&rig, &green, &["apply", "--adopt", "nomad"]).await;
        assert!(said.contains("Nothing to do"), "{said}");
        // It is ours from now on: what has no service goes.
        write_catalog(&rig.catalog(), &catalog()[3..]);
        apply(&rig.env_with(&[("HAPROXY_OWNER", "green")]), &rig.catalog()).await;
        assert!(!has_backend(&rig.haproxy.text(), "api"));
    }

    pub async fn left_behind(rig: Rig, _way: Way) {
        write_catalog(&rig.catalog(), &catalog());
        apply(&owned_by(&rig, "nomad"), &rig.catalog()).await;
        let green = owned_by(&rig, "green");
        let plan = succeeds(&rig, &green, &["plan"]).await;
        assert_eq!(plan.matches("--adopt").count(), 1, "{plan}");
        let note = "warning: service api: 3 backends of the owner nomad have instances of ours, too";
        assert!(plan.contains(note) && plan.contains("`nomad-haproxy apply --adopt nomad`"), "{plan}");
        let json: Value = serde_json::from_str(&succeeds(&rig, &green, &["plan", "--output", "json"]).await).unwrap();
        let codes = || json["notes"].as_array().unwrap().iter().map(|note| note["code"].as_str().unwrap());
        assert_eq!(codes().filter(|code| *code == "left-behind").count(), 1, "{json}");

        // The new owner's servers join the backends that it can join; then the old owner's come over.
        let said = succeeds(&rig, &green, &["apply"]).await;
        assert!(said.contains("--adopt nomad"), "{said}");
        assert!(has_old_mark(&rig));
        let twice = rig.haproxy.running().await.values().filter(|one| one.address == "127.0.0.1:2003").count();
        assert_eq!(twice, 2, "pages has balance roundrobin");
        succeeds(&rig, &green, &["apply", "--adopt", "nomad"]).await;
        assert!(!has_old_mark(&rig), "{}", rig.haproxy.text());
        let running = rig.haproxy.running().await;
        for port in [2001, 2002, 2003, 2004] {
            let address = format!("127.0.0.1:{port}");
            let ready = running.values().filter(|one| one.address == address && one.state() == "ready").count();
            assert_eq!(ready, 1, "{address}: {running:?}");
        }
        is_done(&rig, &green).await;
        // Another cluster's controller has other instances, and is not mentioned.
        write_catalog(&rig.catalog(), &[instance("other", 3001, &[])]);
        let plan = succeeds(&rig, &owned_by(&rig, "blue"), &["plan"]).await;
        assert!(!plan.contains("--adopt"), "{plan}");
    }

    /// Through the API, in one transaction of structured edits.
    pub async fn with_a_reload(rig: Rig, _way: Way) {
        write_catalog(&rig.catalog(), &catalog());
        apply(&owned_by(&rig, "nomad"), &rig.catalog()).await;
        // With `transaction`, version 3.0 of the API loses the last comment of a section, with a warning; its lines stay.
        let lines = |text: &str| -> Vec<String> {
            foreign_meaning(text).into_iter().filter(|line| line != "the end").collect()
        };
        let foreign = lines(&rig.haproxy.text());
        write_catalog(&rig.catalog(), &[catalog(), vec![instance("new", 3001, &[])]].concat());
        let mut green = owned_by(&rig, "green");
        green.push(("HAPROXY_WRITE".to_owned(), "transaction".to_owned()));
        let reloads = rig.haproxy.reloads().await;
        let said = succeeds(&rig, &green, &["apply", "--adopt", "nomad"]).await;
        assert!(said.contains("1 backends to create, 3 to change") && said.contains("Applied: one reload"), "{said}");
        assert_eq!(rig.haproxy.reloads().await, reloads + 1);
        assert!(!has_old_mark(&rig), "{}", rig.haproxy.text());
        assert_eq!(lines(&rig.haproxy.text().replace("green", "nomad")), foreign);
        is_done(&rig, &green).await;
    }

    pub async fn idle(rig: Rig, _way: Way) {
        write_catalog(&rig.catalog(), &catalog());
        apply(&owned_by(&rig, "nomad"), &rig.catalog()).await;
        // `api` lingers, and `pages` has a line of a person when its service goes.
        write_catalog(&rig.catalog(), &catalog()[2..]);
        apply(&owned_by(&rig, "nomad"), &rig.catalog()).await;
        rig.edit(|text| text.replace("option httpchk", "http-request deny if FALSE\n  option httpchk")).await;
        write_catalog(&rig.catalog(), &catalog()[3..]);
        let green = owned_by(&rig, "green");
        let reloads = rig.haproxy.reloads().await;
        let said = succeeds(&rig, &green, &["apply", "--adopt", "nomad"]).await;
        assert!(said.contains("Applied: no reload"), "{said}");
        assert_eq!(rig.haproxy.reloads().await, reloads);
        let text = rig.haproxy.text();
        assert!(!has_old_mark(&rig), "{text}");
        assert!(has_backend(&text, "api") && text.contains("http-request deny if FALSE"), "{text}");
        assert_eq!(rig.haproxy.state("pages/pages_1").await, "maint");
        is_done(&rig, &green).await;
        let now = rig.env_with(&[("HAPROXY_OWNER", "green"), ("NOMAD_HAPROXY_BACKEND_LINGER", "0s")]);
        apply(&now, &rig.catalog()).await;
        let text = rig.haproxy.text();
        assert!(!has_backend(&text, "api") && !has_backend(&text, "pages"), "{text}");
    }
}

mod slots {
    use super::*;

    fn servers(rig: &Rig, backend: &str) -> usize {
        rig.haproxy.text().matches(&format!("server {backend}_")).count()
    }

    fn slots(rig: &Rig, min_free: &str, max: &str) -> Env {
        rig.env_with(&[("NOMAD_HAPROXY_SLOTS_MIN_FREE", min_free), ("NOMAD_HAPROXY_SLOTS_MAX", max)])
    }

    pub async fn fewer(rig: Rig) {
        let api = |count: u16| (0..count).map(|n| instance("api", 2001 + n, &[])).collect::<Vec<_>>();
        write_catalog(&rig.catalog(), &[api(3), vec![instance("pages", 3001, &[])]].concat());
        apply(&rig.env(), &rig.catalog()).await;
        assert_eq!((servers(&rig, "api"), servers(&rig, "pages")), (7, 5));
        // `api` gets 6 for its 3 now, then 4 at the most; `pages` 2 for its 1.
        for (min_free, max, surplus) in [("4", "256", 0), ("1", "256", 4), ("1", "4", 6)] {
            let env = slots(&rig, min_free, max);
            let (text, reloads) = (rig.haproxy.text(), rig.haproxy.reloads().await);
            let said = succeeds(&rig, &env, &["plan"]).await;
            let line = format!("{surplus} spare servers are no longer needed; they are removed when changes of their");
            assert_eq!(said.contains(&line), surplus > 0, "{said}");
            assert!(said.ends_with("No changes: HAProxy is in line with the catalog.\n"), "{said}");
            is_done(&rig, &env).await;
            assert_eq!((rig.haproxy.text(), rig.haproxy.reloads().await), (text, reloads));
        }
        // Whatever reloads a backend next, here its algorithm, also removes its spares.
        let env = slots(&rig, "1", "4");
        let api = (0..3).map(|n| instance("api", 2001 + n, &["balance=leastconn"]));
        write_catalog(&rig.catalog(), &api.chain([instance("pages", 3001, &[])]).collect::<Vec<_>>());
        let said = succeeds(&rig, &env, &["plan"]).await;
        assert!(said.contains("3 spare servers are no longer needed") && said.contains("one reload."), "{said}");
        apply(&env, &rig.catalog()).await;
        assert_eq!((servers(&rig, "api"), servers(&rig, "pages")), (4, 5));
        is_done(&rig, &env).await;
        rig.agrees().await;
    }
}

mod prefix {
    use super::*;

    /// The guard as it is by default, which other tests turn off.
    fn prefixed(rig: &Rig, prefix: &str) -> Env {
        rig.env_with(&[("NOMAD_HAPROXY_TAGS_PREFIX", prefix), ("NOMAD_HAPROXY_GUARD_SHARE", "30%")])
    }

    pub async fn changed(rig: Rig, _way: Way) {
        let old: Vec<_> = (0..6).map(|n| instance(&format!("old-{n}"), 2001 + n, &["weight=3"])).collect();
        let mut both = instance("both", 3001, &["weight=5"]);
        both["Tags"].as_array_mut().unwrap().extend(["edge.enable=true".into(), "edge.weight=5".into()]);
        write_catalog(&rig.catalog(), &[old, vec![both]].concat());
        apply(&prefixed(&rig, "haproxy."), &rig.catalog()).await;
        let (text, reloads) = (rig.haproxy.text(), rig.haproxy.reloads().await);

        // A service with both prefixes stays as it is. The others may have a mistyped prefix, so they are held.
        let edge = prefixed(&rig, "edge.");
        let catalog = rig.catalog().display().to_string();
        let plan = ["plan", "--detailed-exitcode", "--catalog", &catalog];
        let planned = run(&edge, &plan).await;
        assert_eq!(planned.status.code(), Some(3), "{}{}", stdout(&planned), stderr(&planned));
        let said = stdout(&planned);
        assert!(said.contains("6 of 7 instances") && said.contains("--allow-removals"), "{said}");
        succeeds(&rig, &edge, &["apply"]).await;
        assert_eq!((rig.haproxy.text(), rig.haproxy.reloads().await), (text, reloads));

        let said = succeeds(&rig, &edge, &["plan", "--allow-removals"]).await;
        let is_live = rig.makes_backends();
        let cost = if is_live { "no reload" } else { "one reload" };
        assert!(said.contains(&format!("6 to delete; instances +0 -6, 0 servers changed; {cost}.")), "{said}");
        succeeds(&rig, &edge, &["apply", "--allow-removals"]).await;
        let text = rig.haproxy.text();
        assert!(has_backend(&text, "both") && !text.contains("old_"), "{text}");
        assert_eq!(rig.haproxy.reloads().await, reloads + u64::from(!is_live));
        is_done(&rig, &edge).await;
    }
}

/// The same marks on both planes: from the Data Plane API to the local plane and back. The API is down in between, as
/// two writers of one file need not know of each other.
#[tokio::test(flavor = "multi_thread")]
async fn a_haproxy_changes_its_plane_and_back_without_a_reload() {
    for series in matrix() {
        let mut rig = Rig::start(Way::Api, series).await;
        write_catalog(&rig.catalog(), &catalog());
        apply(&rig.env(), &rig.catalog()).await;
        let foreign = foreign_meaning(&rig.haproxy.text());
        let (reloads, mut instances) = (rig.haproxy.reloads().await, 2);

        let mut api = rig.api.take().unwrap();
        api.kill();
        let local = rig.env();
        // The spare servers are not needed there.
        let said = apply(&local, &rig.catalog()).await;
        assert!(said.contains("no reload"), "{said}");
        is_done(&rig, &local).await;
        let mut scaled = async |env: &Env, rig: &Rig| {
            instances += 1;
            let api = (0..instances).map(|n| instance("api", 2001 + n, &["balance=leastconn"]));
            write_catalog(&rig.catalog(), &api.chain(catalog().into_iter().skip(2)).collect::<Vec<_>>());
            let said = succeeds(rig, env, &["plan"]).await;
            assert!(said.contains("instances +1 -0") && said.contains("no reload."), "{said}");
            apply(env, &rig.catalog()).await;
            rig.agrees().await;
            is_done(rig, env).await;
        };
        scaled(&local, &rig).await;

        api.launch().await;
        rig.api = Some(api);
        let through_api = rig.env_with_socket();
        is_done(&rig, &through_api).await;
        scaled(&through_api, &rig).await;
        assert_eq!(rig.haproxy.reloads().await, reloads);
        assert_eq!(foreign_meaning(&rig.haproxy.text()), foreign);
    }
}
