//! The page in a real browser: headless Chromium on a controller with a real HAProxy. `tests/page` has what is checked;
//! its screenshots are in `target/page`.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, clippy::similar_names, unreachable_pub, reason = "tests")]

mod support;

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use support::api::{Rig, Way};
use support::controller::{Controller, registration, write_catalog};
use support::process::Group;
use support::{root, wait_for};

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
    let ended = wait_for(&format!("{script} to end"), Duration::from_secs(120), async || node.borrow_mut().exited()).await;
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
