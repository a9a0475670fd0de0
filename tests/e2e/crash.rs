//! kill -9 between any two calls of a pass, then a restart: converged, no foreign line touched, nothing
//! left behind.

use std::cell::RefCell;
use std::time::Duration;

use crate::support::api::{Rig, Way};
use crate::support::controller::{Env, apply, command, registration, write_catalog};
use crate::support::gate::{Gate, Point};
use crate::support::haproxy::matrix;
use crate::support::process::Group;
use crate::support::wait_for;

fn catalog_of(step: u16) -> Vec<serde_json::Value> {
    // The settings change from pass to pass, so that each needs a transaction.
    let balance = if step.is_multiple_of(2) { "balance=leastconn" } else { "balance=first" };
    (0..3).map(|n| registration("api", &format!("{n}"), u64::from(n), 2000 + n, &["enable=true", balance])).collect()
}

async fn open_transactions(env: &Env) -> usize {
    let url = env.iter().find(|(key, _)| key == "HAPROXY_DATAPLANE_URL").unwrap().1.clone();
    let request = reqwest::Client::new()
        .get(format!("{url}/v3/services/haproxy/transactions"))
        .basic_auth("admin", Some("secret"));
    let list: serde_json::Value = request.send().await.unwrap().json().await.unwrap();
    list.as_array().map_or(0, Vec::len)
}

/// Each call of a pass is held up in turn, before it reaches the API and after the API has done it, and the controller
/// is killed there. The next pass converges and leaves nothing behind.
#[tokio::test(flavor = "multi_thread")]
async fn kills_at_every_call_of_the_api() {
    eprintln!("on {}", crate::support::api::which());
    for (series, write) in matrix().into_iter().flat_map(|series| [(series, "transaction"), (series, "text")]) {
        let rig = Rig::start(Way::Api, series).await;
        let foreign = rig.foreign();
        let (gate, mut env) = rig.gated().await;
        env.push(("HAPROXY_WRITE".into(), write.into()));
        let mut step = 0;
        write_catalog(&rig.catalog(), &catalog_of(step));
        apply(&env, &rig.catalog()).await;
        let (mut kills, mut call) = (0, 0);
        // As long as there is a call to hold up: a pass that ends without it ends the loop.
        loop {
            call += 1;
            let mut held = 0;
            for point in [Point::Before(call), Point::After(call)] {
                step += 1;
                write_catalog(&rig.catalog(), &catalog_of(step));
                gate.hold(Some(point));
                held += u32::from(killed_at(&gate, &env, &rig, point).await);
                gate.hold(None);
                converges(&rig, &env, step).await;
                assert_eq!(open_transactions(&rig.env()).await, 0, "HAProxy {series}, {write}, {point:?}");
            }
            kills += held;
            if held == 0 {
                break;
            }
        }
        assert_eq!(rig.foreign(), foreign);
        assert!(kills >= 12, "HAProxy {series}, {write}: {kills} kills");
        eprintln!("HAProxy {series}, write={write}: {kills} kills");
    }
}

/// Kills a pass that is held up. `false`: it ended before that.
async fn killed_at(gate: &Gate, env: &Env, rig: &Rig, point: Point) -> bool {
    let catalog = rig.catalog().display().to_string();
    let pass = RefCell::new(Group::spawn(&mut command(env, &["apply", "--catalog", &catalog])));
    let what = format!("{point:?} to be reached, or the end");
    let held = wait_for(&what, Duration::from_secs(30), async || {
        if gate.is_holding() { Some(true) } else { pass.borrow_mut().exited().map(|_| false) }
    })
    .await;
    pass.borrow_mut().kill();
    held
}

/// Three actions of the local plane are visible from outside: validate, reload, and run-time changes. Each is held up
/// in turn, and the controller is killed there.
#[tokio::test(flavor = "multi_thread")]
async fn kills_at_every_step_of_the_local_plane() {
    for series in matrix() {
        let rig = Rig::start(Way::Local, series).await;
        let foreign = rig.foreign();
        write_catalog(&rig.catalog(), &catalog_of(0));
        apply(&rig.env(), &rig.catalog()).await;

        // A validation that never ends: the new text is not in place yet.
        let hanging = rig.haproxy.folder().join("hanging");
        std::fs::write(&hanging, "#!/bin/sh\ntouch \"$0.reached\"\nexec sleep 600\n").unwrap();
        std::process::Command::new("chmod").arg("+x").arg(&hanging).status().unwrap();
        write_catalog(&rig.catalog(), &catalog_of(1));
        let reached = hanging.with_extension("reached");
        kill_when(&rig.env_with(&[("HAPROXY_BINARY", hanging.to_str().unwrap())]), &rig, || reached.exists()).await;
        assert!(rig.haproxy.text().contains("balance leastconn"));
        converges(&rig, &rig.env(), 1).await;

        // The new text is in place, but is never reloaded: the process has the old one.
        let silent = rig.haproxy.folder().join("silent.sock");
        let deaf = crate::support::haproxy::deaf_master(&silent, &rig.haproxy.master(), "reload");
        write_catalog(&rig.catalog(), &catalog_of(2));
        let text = || rig.haproxy.text().contains("balance leastconn");
        kill_when(&rig.env_with(&[("HAPROXY_MASTER_SOCKET", silent.to_str().unwrap())]), &rig, text).await;
        let worker = rig.haproxy.worker().await;
        converges(&rig, &rig.env(), 2).await;
        assert_ne!(rig.haproxy.worker().await, worker, "the new text is loaded");
        deaf.abort();

        // The file is in place, the process does not have it yet: a change of port, which is live.
        let silent = rig.haproxy.folder().join("silent2.sock");
        let deaf = crate::support::haproxy::deaf_master(&silent, &rig.haproxy.master(), "set server");
        let mut moved = catalog_of(2);
        moved[0]["Port"] = 2999.into();
        write_catalog(&rig.catalog(), &moved);
        let text = || rig.haproxy.text().contains("127.0.0.1:2999");
        kill_when(&rig.env_with(&[("HAPROXY_MASTER_SOCKET", silent.to_str().unwrap())]), &rig, text).await;
        let worker = rig.haproxy.worker().await;
        apply(&rig.env(), &rig.catalog()).await;
        rig.agrees().await;
        assert_eq!(rig.haproxy.worker().await, worker, "repaired without a reload");
        deaf.abort();
        assert_eq!(rig.foreign(), foreign);
        let left = std::fs::read_dir(rig.haproxy.folder()).unwrap().flatten().map(|e| e.file_name());
        let left: Vec<_> = left.filter(|name| name.to_string_lossy().contains("last-good")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

async fn kill_when(env: &Env, rig: &Rig, reached: impl Fn() -> bool) {
    let catalog = rig.catalog().display().to_string();
    let mut group = Group::spawn(&mut command(env, &["apply", "--catalog", &catalog]));
    wait_for("the step to be reached", Duration::from_secs(20), async || reached().then_some(())).await;
    group.kill();
}

async fn converges(rig: &Rig, env: &Env, step: u16) {
    apply(env, &rig.catalog()).await;
    assert_eq!(rig.haproxy.text().contains("balance first"), step % 2 == 1);
    rig.agrees().await;
    assert!(apply(env, &rig.catalog()).await.contains("Nothing to do"));
}
