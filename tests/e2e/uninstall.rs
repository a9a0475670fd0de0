//! `uninstall` on real HAProxy: what is ours goes, in one write with one reload, and what is a person's is as it was
//! before the first write. Nomad is dead the whole time.

use std::process::Output;

use crate::support::api::{Rig, Way};
use crate::support::controller::{Env, apply, binary, registration, run, stderr, stdout, write_catalog};
use crate::support::free_port;
use crate::support::haproxy::{Haproxy, conditional, has_backend, matrix};
use serde_json::{Value, json};

everywhere!(what_is_ours_goes_and_nothing_else, cases::all);
everywhere!(what_a_person_edited_stays_and_is_named, cases::edited);
everywhere!(a_backend_that_a_frontend_names_stays_and_is_named, cases::referenced);
everywhere!(another_controllers_backends_stay, cases::another_owner);

/// An instance on a port, which is also its ID.
fn instance(service: &str, port: u16, tags: &[&str]) -> Value {
    let tags: Vec<&str> = ["enable=true"].iter().chain(tags).copied().collect();
    registration(service, &port.to_string(), u64::from(port), port, &tags)
}

fn catalog() -> Vec<Value> {
    vec![
        instance("api", 2001, &["drain=1h", "balance=leastconn"]),
        instance("api", 2002, &["drain=1h", "balance=leastconn"]),
        instance("pages", 2003, &["check.path=/health"]),
        instance("shop", 2004, &["backend=custom"]),
    ]
}

/// Where no Nomad is.
fn without_nomad(rig: &Rig) -> Env {
    rig.env_with(&[("NOMAD_ADDR", &format!("http://127.0.0.1:{}", free_port()))])
}

async fn uninstall(rig: &Rig) -> Output {
    run(&without_nomad(rig), &["uninstall", "--yes"]).await
}

fn has_marks(rig: &Rig) -> bool {
    let text = rig.haproxy.text();
    text.contains("nomad-haproxy:") || text.contains("\"owner\":")
}

mod cases {
    use super::*;

    pub async fn all(rig: Rig, way: Way) {
        let (before, foreign) = (rig.haproxy.bytes(), rig.foreign());
        write_catalog(&rig.catalog(), &catalog());
        apply(&rig.env(), &rig.catalog()).await;
        // One that left and drains for an hour keeps nothing.
        write_catalog(&rig.catalog(), &catalog()[1..]);
        apply(&rig.env(), &rig.catalog()).await;
        rig.haproxy.wait_for_state("api/api_1", "drain").await;
        let (installed, reloads) = (rig.haproxy.bytes(), rig.haproxy.reloads().await);

        let asked = run(&without_nomad(&rig), &["uninstall"]).await;
        assert_eq!(asked.status.code(), Some(1));
        assert!(stderr(&asked).contains("`--yes`"), "{}", stderr(&asked));
        assert!(
            stdout(&asked).contains("-backend api") && stdout(&asked).contains("2 to delete"),
            "{}",
            stdout(&asked)
        );
        assert_eq!((rig.haproxy.bytes(), rig.haproxy.reloads().await), (installed, reloads));

        let done = uninstall(&rig).await;
        assert_eq!(done.status.code(), Some(0), "{}{}", stdout(&done), stderr(&done));
        assert!(stdout(&done).ends_with("Removed: one reload.\n"), "{}", stdout(&done));
        assert!(!has_marks(&rig), "{}", rig.haproxy.text());
        assert_eq!(rig.foreign(), foreign);
        if way == Way::Local {
            assert_eq!(rig.haproxy.text(), String::from_utf8(before).unwrap());
        }
        assert_eq!(rig.haproxy.reloads().await, reloads + 1);
        assert_eq!(rig.haproxy.running().await.into_keys().collect::<Vec<_>>(), ["shop/old"]);

        let (removed, reloads) = (rig.haproxy.bytes(), rig.haproxy.reloads().await);
        let again = run(&without_nomad(&rig), &["uninstall"]).await;
        assert_eq!(again.status.code(), Some(0), "nothing to do, so nothing to confirm: {}", stderr(&again));
        assert!(stdout(&again).starts_with("Nothing to remove"), "{}", stdout(&again));
        assert_eq!((rig.haproxy.bytes(), rig.haproxy.reloads().await), (removed, reloads));
    }

    pub async fn edited(rig: Rig, _way: Way) {
        let mut services = catalog();
        services
            .extend([("plain", 2010), ("lines", 2011), ("guest", 2012)].map(|(name, port)| instance(name, port, &[])));
        write_catalog(&rig.catalog(), &services);
        apply(&rig.env(), &rig.catalog()).await;
        rig.edit(|text| {
            let in_backend = |text: String, name: &str, from: &str, to: &str| {
                let at = text.find(&format!("backend {name}")).unwrap();
                text[..at].to_owned() + &text[at..].replacen(from, to, 1)
            };
            let text = in_backend(text, "plain", "retries 3", "retries 3\n  http-request deny if FALSE");
            let text = in_backend(text, "guest", "server guest_1 ", "server by_hand 127.0.0.1:5\n  server guest_1 ");
            let text = in_backend(text, "lines", "127.0.0.1:2011", "127.0.0.1:2011 on-marked-down shutdown-sessions");
            in_backend(text, "shop", "127.0.0.1:2004", "127.0.0.1:2004 on-marked-down shutdown-sessions")
        })
        .await;
        let foreign = rig.foreign();
        let done = uninstall(&rig).await;
        let said = stdout(&done);
        assert_eq!(done.status.code(), Some(1), "{said}{}", stderr(&done));
        for (name, why) in [
            ("plain", "its settings were edited by hand"),
            ("guest", "it has servers that are not ours: by_hand"),
            ("lines", "these servers of ours were edited by hand: lines_1"),
            ("shop", "these servers of ours were edited by hand: shop_1"),
        ] {
            let line = format!("error: backend {name} is not removed completely: {why}");
            assert!(said.contains(&line), "{line} in:\n{said}");
        }
        assert!(said.ends_with("Removed, except for what stays in 4 backends: one reload.\n"), "{said}");
        let text = rig.haproxy.text();
        for line in ["http-request deny if FALSE", "server by_hand 127.0.0.1:5", "server lines_1 ", "server shop_1 "] {
            assert!(text.contains(line), "{line} in:\n{text}");
        }
        for name in ["api", "pages"] {
            assert!(!has_backend(&text, name), "{name}: {text}");
        }
        for server in ["plain_1", "guest_1", "lines_2", "shop_2"] {
            assert!(!text.contains(&format!("server {server} ")), "{server}: {text}");
        }
        assert_eq!(rig.foreign(), foreign);

        let again = uninstall(&rig).await;
        assert_eq!(again.status.code(), Some(1), "something of ours is left: {}", stdout(&again));
        assert_eq!(rig.haproxy.text(), text);
    }

    pub async fn referenced(rig: Rig, _way: Way) {
        write_catalog(&rig.catalog(), &catalog());
        apply(&rig.env(), &rig.catalog()).await;
        let rule = "use_backend api if { path_beg /api }\n    use_backend shop if";
        rig.edit(|text| text.replace("use_backend shop if", rule)).await;
        let done = uninstall(&rig).await;
        let said = stdout(&done);
        assert_eq!(done.status.code(), Some(1), "{said}{}", stderr(&done));
        let line = "error: backend api is not removed completely: HAProxy refuses the file without it: ";
        assert!(said.contains(line) && said.contains("'api'"), "{said}");
        assert!(said.ends_with("Removed, except for what stays in one backend: one reload.\n"), "{said}");
        let text = rig.haproxy.text();
        assert!(has_backend(&text, "api") && !has_backend(&text, "pages") && !text.contains("shop_1"), "{text}");
        for server in ["api/api_1", "api/api_2"] {
            assert_eq!(rig.haproxy.state(server).await, "maint");
        }
        let again = uninstall(&rig).await;
        assert!(stdout(&again).contains(line), "{}", stdout(&again));
        assert_eq!((again.status.code(), rig.haproxy.text()), (Some(1), text));
        // It goes once nothing refers to it.
        rig.edit(|text| {
            text.lines().filter(|line| !line.contains("/api")).map(|line| line.to_owned() + "\n").collect()
        })
        .await;
        let done = uninstall(&rig).await;
        assert_eq!(done.status.code(), Some(0), "{}{}", stdout(&done), stderr(&done));
        assert!(!has_marks(&rig), "{}", rig.haproxy.text());
    }

    pub async fn another_owner(rig: Rig, _way: Way) {
        write_catalog(&rig.catalog(), &[instance("theirs", 2001, &[])]);
        apply(&rig.env_with(&[("HAPROXY_OWNER", "blue")]), &rig.catalog()).await;
        write_catalog(&rig.catalog(), &[instance("ours", 2002, &[])]);
        apply(&rig.env(), &rig.catalog()).await;
        let done = uninstall(&rig).await;
        assert_eq!(done.status.code(), Some(0), "{}{}", stdout(&done), stderr(&done));
        let text = rig.haproxy.text();
        assert!(has_backend(&text, "theirs") && !has_backend(&text, "ours"), "{text}");
        assert_eq!(rig.haproxy.state("theirs/theirs_1").await, "ready");
    }
}

/// Local files with anything in them are the same, byte by byte.
#[tokio::test(flavor = "multi_thread")]
async fn a_local_file_of_any_form_is_the_same_byte_by_byte() {
    for series in matrix() {
        let with_version =
            |folder: &std::path::Path, port| format!("# _version=7\n# mine\n{}", conditional(folder, port));
        let plain = Rig::with(Way::Local, series, Haproxy::start_with(series, conditional).await).await;
        let versioned = Rig::with(Way::Local, series, Haproxy::start_with(series, with_version).await).await;
        for rig in [plain, versioned] {
            let before = rig.haproxy.text();
            for instances in [1, 7, 3] {
                let api = (0..instances).map(|n| instance("api", 2000 + n, &[]));
                write_catalog(&rig.catalog(), &api.chain(catalog()).collect::<Vec<_>>());
                apply(&rig.env(), &rig.catalog()).await;
            }
            let done = uninstall(&rig).await;
            assert_eq!(done.status.code(), Some(0), "{}{}", stdout(&done), stderr(&done));
            // The version is the controller's, whoever wrote the first one.
            let expected = before.strip_prefix("# _version=7\n").unwrap_or(&before);
            assert_eq!(rig.haproxy.text(), expected);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_a_terminal_it_asks() {
    for series in matrix() {
        let rig = Rig::start(Way::Local, series).await;
        let before = rig.haproxy.text();
        write_catalog(&rig.catalog(), &catalog());
        apply(&rig.env(), &rig.catalog()).await;
        let installed = rig.haproxy.text();
        let answer = |answer: &'static str| {
            let mut command = std::process::Command::new("script");
            command.args(["-qec", &format!("{} uninstall", binary().display()), "/dev/null"]);
            command.envs(rig.env()).env("NOMAD_HAPROXY_LOG_FORMAT", "json");
            tokio::task::spawn_blocking(move || {
                use std::io::Write;
                use std::process::Stdio;
                let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
                process.stdin.take().unwrap().write_all(answer.as_bytes()).unwrap();
                process.wait_with_output().unwrap()
            })
        };
        let refused = answer("n\n").await.unwrap();
        let said = stdout(&refused);
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(said.contains("Remove this from HAProxy? [y/N]") && said.contains("Nothing is removed."), "{said}");
        assert_eq!(rig.haproxy.text(), installed);
        let confirmed = answer("yes\n").await.unwrap();
        assert_eq!(confirmed.status.code(), Some(0), "{}", stdout(&confirmed));
        assert_eq!(rig.haproxy.text(), before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_each_has_its_section_and_a_failure_stops_no_other() {
    let (one, mut two) = (Rig::start(Way::Local, "3.0").await, Rig::start(Way::Local, "3.2").await);
    let entry = |name: &str, rig: &Rig| {
        json!({
            "name": name, "config_file": rig.haproxy.config(), "master_socket": rig.haproxy.master(),
            "binary": rig.haproxy.binary,
        })
    };
    let settings = one.haproxy.folder().join("settings.json");
    let nomad = json!({"address": format!("http://127.0.0.1:{}", free_port())});
    let config = json!({"nomad": nomad, "haproxy": [entry("one", &one), entry("two", &two)]});
    std::fs::write(&settings, config.to_string()).unwrap();
    let env = vec![("NOMAD_HAPROXY_CONFIG".to_owned(), settings.display().to_string())];
    let before = [&one, &two].map(|rig| rig.haproxy.text());
    write_catalog(&one.catalog(), &catalog());
    apply(&env, &one.catalog()).await;

    let master = two.haproxy.master();
    two.haproxy.kill();
    let done = run(&env, &["uninstall", "--yes"]).await;
    let (said, error) = (stdout(&done), stderr(&done));
    assert_eq!(done.status.code(), Some(1), "{said}{error}");
    assert!(said.contains("# HAProxy one\n") && said.contains("# HAProxy two\nerror: "), "{said}");
    assert!(error.contains("not all was removed from the HAProxy two of 2"), "{error}");
    assert_eq!(one.haproxy.text(), before[0]);
    assert!(has_marks(&two) && !master.exists());

    two.haproxy.launch().await;
    let done = run(&env, &["uninstall", "--yes", "--haproxy", "two"]).await;
    assert_eq!(done.status.code(), Some(0), "{}{}", stdout(&done), stderr(&done));
    assert_eq!(two.haproxy.text(), before[1]);
}
