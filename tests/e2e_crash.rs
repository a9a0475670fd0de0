//! kill -9 between any two calls of a pass, then a restart: converged, no foreign line touched, nothing
//! left behind.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, clippy::similar_names, unreachable_pub, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use support::api::{Rig, Way};
use support::controller::{Env, apply, command, registration, write_catalog};
use support::gate::Point;
use support::haproxy::matrix;
use support::process::Group;
use support::wait_for;

fn catalog_of(step: u16) -> Vec<serde_json::Value> {
    // From pass to pass the settings change, so that each takes a transaction.
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

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_kills_at_every_call_of_the_api() {
    eprintln!("on {}", support::api::which());
    for (series, write) in matrix().into_iter().flat_map(|series| [(series, "transaction"), (series, "text")]) {
        let rig = Rig::start(Way::Api, series).await;
        let foreign = rig.foreign();
        let (gate, mut env) = rig.gated().await;
        env.push(("HAPROXY_WRITE".into(), write.into()));
        let (mut step, mut kills) = (0, 0);
        while kills < 100 {
            write_catalog(&rig.catalog(), &catalog_of(step));
            gate.hold(None);
            apply(&env, &rig.catalog()).await;
            let calls = gate.calls().len();
            // Both sides of each call: not done yet, and done without an answer.
            for point in (1..=calls).flat_map(|call| [Point::Before(call), Point::After(call)]) {
                step += 1;
                write_catalog(&rig.catalog(), &catalog_of(step));
                gate.hold(Some(point));
                let catalog = rig.catalog().display().to_string();
                let mut killed = Group::spawn(&mut command(&env, &["apply", "--catalog", &catalog]));
                // A pass that finds less to clear up takes fewer calls, and ends before this one.
                let deadline = Instant::now() + Duration::from_secs(20);
                let held = async { gate.held.notified().await };
                tokio::pin!(held);
                while killed.exited().is_none() {
                    if tokio::time::timeout(Duration::from_millis(10), &mut held).await.is_ok() {
                        break;
                    }
                    assert!(Instant::now() < deadline, "{point:?} of {calls}: neither held up nor over");
                }
                killed.signal(Signal::SIGKILL);
                killed.wait();
                kills += 1;
                assert!(open_transactions(&rig.env()).await < 20, "{point:?}: the API's room for transactions is full");
            }
            gate.hold(None);
            apply(&env, &rig.catalog()).await;
            assert_eq!(rig.haproxy.text().matches("balance first").count(), usize::from(step % 2 == 1));
        }
        assert_eq!(rig.foreign(), foreign);
        assert!(open_transactions(&rig.env()).await < 20);
        rig.agrees().await;
        eprintln!("HAProxy {series}, write={write}: {kills} kills");
    }
}

/// The local plane has three things to do that can be seen from outside: validate, reload, and tell the
/// process. Each is held up in turn, and the controller killed there.
#[tokio::test(flavor = "multi_thread")]
async fn kills_at_every_step_of_the_local_plane() {
    for series in matrix() {
        let rig = Rig::start(Way::Local, series).await;
        let foreign = rig.foreign();
        write_catalog(&rig.catalog(), &catalog_of(0));
        apply(&rig.env(), &rig.catalog()).await;

        // A validation that never ends: the text is not in place yet.
        let hanging = rig.haproxy.folder().join("hanging");
        std::fs::write(&hanging, "#!/bin/sh\ntouch \"$0.reached\"\nexec sleep 600\n").unwrap();
        std::process::Command::new("chmod").arg("+x").arg(&hanging).status().unwrap();
        write_catalog(&rig.catalog(), &catalog_of(1));
        let reached = hanging.with_extension("reached");
        kill_when(&rig.env_with(&[("HAPROXY_BINARY", hanging.to_str().unwrap())]), &rig, || reached.exists()).await;
        assert!(rig.haproxy.text().contains("balance leastconn"));
        converges(&rig, 1).await;

        // The text is in place, the reload does not come: the process has the old one.
        let silent = rig.haproxy.folder().join("silent.sock");
        let deaf = support::haproxy::deaf_master(&silent, &rig.haproxy.master(), "reload");
        write_catalog(&rig.catalog(), &catalog_of(2));
        let text = || rig.haproxy.text().contains("balance leastconn");
        kill_when(&rig.env_with(&[("HAPROXY_MASTER_SOCKET", silent.to_str().unwrap())]), &rig, text).await;
        let worker = rig.haproxy.worker().await;
        converges(&rig, 2).await;
        assert_ne!(rig.haproxy.worker().await, worker, "the new text is loaded");
        deaf.abort();

        // The file is in place, the process was not told: a change of port, which is live.
        let silent = rig.haproxy.folder().join("silent2.sock");
        let deaf = support::haproxy::deaf_master(&silent, &rig.haproxy.master(), "set server");
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
        let left: Vec<_> = std::fs::read_dir(rig.haproxy.folder()).unwrap().flatten().map(|e| e.file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().contains("last-good")), "{left:?}");
    }
}

async fn kill_when(env: &Env, rig: &Rig, reached: impl Fn() -> bool) {
    let catalog = rig.catalog().display().to_string();
    let mut group = Group::spawn(&mut command(env, &["apply", "--catalog", &catalog]));
    wait_for("the step to be reached", Duration::from_secs(20), async || reached().then_some(())).await;
    group.kill();
}

async fn converges(rig: &Rig, step: u16) {
    apply(&rig.env(), &rig.catalog()).await;
    assert_eq!(rig.haproxy.text().contains("balance first"), step % 2 == 1);
    assert!(apply(&rig.env(), &rig.catalog()).await.contains("Nothing to do"));
    rig.agrees().await;
}
