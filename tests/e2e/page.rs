//! The page in a real browser: headless Chromium on a controller with a real HAProxy. `tests/page` has what is checked;
//! its screenshots are in `target/page`.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::support::api::{Rig, Way};
use crate::support::controller::{Controller, registration, write_catalog};
use crate::support::process::Group;
use crate::support::{root, wait_for};
use serde_json::{Value, json};

/// A program on the `PATH`.
fn program(name: &str) -> PathBuf {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is not here, and the page cannot be tested without it: run `make tools`"))
}

/// Runs a script of `tests/page` on a controller; it must find nothing wrong.
async fn browse(script: &str, controller: &Controller, more: Value) {
    let tools = root().join("target/tools/page");
    assert!(tools.join("installed.json").exists(), "the packages of tests/page are not here: run `make tools`");
    let shots = root().join("target/page");
    std::fs::create_dir_all(&shots).unwrap();
    let mut options = json!({
        "base": format!("http://{}", controller.listen().await), "pid": controller.pid(), "tools": tools,
        "shots": shots, "chromium": program("chromium"),
    });
    options.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let output = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new(program("node"));
    command.arg(root().join("tests/page").join(script)).arg(options.to_string());
    command.stdout(output.reopen().unwrap()).stderr(output.reopen().unwrap());
    let node = std::cell::RefCell::new(Group::spawn(&mut command));
    let ended =
        wait_for(&format!("{script} to end"), Duration::from_secs(120), async || node.borrow_mut().exited()).await;
    assert!(ended.success(), "{script}:\n{}", std::fs::read_to_string(output.path()).unwrap());
}

/// `web-NNN` of 5, without checks: nothing listens there.
fn services(count: u16) -> Vec<Value> {
    let one = |n: u16| {
        let service = format!("web-{:03}", n / 5);
        let (id, tags) = (format!("{service}-{}", n % 5), ["enable=true", "check.disabled"]);
        registration(&service, &id, u64::from(n), 20_000 + n, &tags)
    };
    (0..count * 5).map(one).collect()
}

fn run(rig: &Rig, registrations: &[Value]) -> Controller {
    write_catalog(&rig.catalog(), registrations);
    Controller::start(&rig.env(), &["--catalog", rig.catalog().to_str().unwrap()])
}

#[tokio::test(flavor = "multi_thread")]
async fn one_failing_service_of_200_is_seen_at_a_glance() {
    let rig = Rig::start(Way::Local, "3.2").await;
    let controller = run(&rig, &services(200));
    controller.wait_until_ready().await;
    browse("glance.mjs", &controller, json!({"catalog": rig.catalog()})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_follows_the_controller_and_says_when_nobody_answers() {
    let rig = Rig::start(Way::Local, "3.2").await;
    let mut controller = run(&rig, &services(200));
    controller.wait_until_ready().await;
    browse("refresh.mjs", &controller, json!({"catalog": rig.catalog()})).await;
    assert!(controller.exited().is_some_and(|status| status.success()), "an open page does not keep it from ending");
}

/// What a tenant might write to have it run, or to take the page apart.
const HOSTILE: [&str; 8] = [
    "<script>globalThis.pwned=1</script>",
    "<img src=x onerror=globalThis.pwned=2>",
    "\"'><svg onload=globalThis.pwned=3>",
    "javascript:globalThis.pwned=4",
    "</textarea></style></title><iframe src=//example.com>",
    "\u{202e}drawkcab\u{2066}\u{200b}",
    "line\nbreak\r\ttab\0nul",
    "${globalThis.pwned=5}{{constructor}}__proto__",
];

/// 200 services that have such texts wherever a tenant can write.
fn hostile_services() -> Vec<Value> {
    let long = "\u{30c4}<b>".repeat(2_500);
    let one = |n: u16| {
        let text = HOSTILE[usize::from(n) % HOSTILE.len()];
        let text = if n == 60 { long.as_str() } else { text };
        let (tag, known) = (format!("{text}={text}"), format!("balance={text}"));
        let backend = format!("backend.name={text}{n}");
        let tags =
            ["enable=true", "check.disabled", &tag, &known, if n.is_multiple_of(3) { &backend } else { "mode=http" }];
        // Half of them have a name that a backend can have, and are routed.
        let service = if n.is_multiple_of(2) { format!("web-{n:03}") } else { format!("{text}{n}") };
        let mut one = registration(&service, &format!("{text}{n}"), u64::from(n), 20_000 + n, &tags);
        one["AllocID"] = json!(format!("{text}{n}"));
        if n.is_multiple_of(7) {
            one["Address"] = json!(text);
        }
        if n.is_multiple_of(11) {
            one["Namespace"] = json!(text);
        }
        one
    };
    (0..200).map(one).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_names_are_text() {
    let rig = Rig::start(Way::Local, "3.2").await;
    let controller = run(&rig, &hostile_services());
    controller.wait_until_ready().await;
    let status: Value = serde_json::from_str(&controller.http("/api/v1/status").await.1).unwrap();
    let backends = status["haproxys"][0]["backends"].as_array().unwrap().len();
    assert!(backends >= 20, "{backends} of 200 are routed");
    let more = json!({
        "catalog": rig.catalog(), "backends": backends, "raw": HOSTILE.concat(),
        "shown": [HOSTILE[0], HOSTILE[1], HOSTILE[3], "\\u202edrawkcab"],
    });
    browse("hostile.mjs", &controller, more).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_haproxys_the_worst_is_first() {
    let mut rigs = [Rig::start(Way::Local, "3.0").await, Rig::start(Way::Local, "3.2").await];
    let entries = rigs.iter().zip(["edge-a", "edge-b"]).map(|(rig, name)| {
        let haproxy = &rig.haproxy;
        let (config, master, binary) = (haproxy.config(), haproxy.master(), &haproxy.binary);
        json!({"name": name, "config_file": config, "master_socket": master, "binary": binary})
    });
    let settings =
        json!({"haproxy": entries.collect::<Vec<_>>(), "breaker": {"failure_threshold": 3, "reset_timeout": "5m"}});
    let (file, catalog) = (rigs[0].haproxy.folder().join("settings.json"), rigs[0].catalog());
    std::fs::write(&file, settings.to_string()).unwrap();
    write_catalog(&catalog, &services(2));
    let env = vec![("NOMAD_HAPROXY_RESYNC_INTERVAL".to_owned(), "1s".to_owned())];
    let arguments = ["--config", file.to_str().unwrap(), "--catalog", catalog.to_str().unwrap()];
    let controller = Controller::start(&env, &arguments);
    controller.wait_until_ready().await;
    rigs[0].haproxy.kill();
    wait_for("its breaker to open", Duration::from_secs(60), async || {
        let status: Value = serde_json::from_str(&controller.http("/api/v1/status").await.1).unwrap();
        (status["haproxys"][0]["breaker"]["state"] == "open").then_some(())
    })
    .await;
    browse("fleet.mjs", &controller, json!({})).await;
}
