//! The check of a job is the one that HAProxy runs: on real Nomad and real HAProxy.

use std::time::Duration;

use crate::support::api::{Rig, Way};
use crate::support::controller::{Controller, run, stdout};
use crate::support::gate::Gate;
use crate::support::haproxy::matrix;
use crate::support::nomad::{Nomad, job};
use crate::support::servers::Recorder;
use crate::support::wait_for;
use serde_json::{Value, json};

/// A job whose service is checked at another port, which is the recorder's.
fn checked(name: &str, tags: &[&str], port: u16, check: Value) -> Value {
    let mut job = job(name, 1, tags, None);
    let group = &mut job["TaskGroups"][0];
    group["Networks"][0]["ReservedPorts"] = json!([{"Label": "admin", "Value": port}]);
    group["Services"][0]["Checks"] = check;
    job
}

fn request(path: &str) -> Value {
    json!([{
        "Name": "alive", "Type": "http", "Path": path, "Method": "HEAD", "PortLabel": "admin",
        "Header": {"Host": ["app.test"], "X-Foo": ["bar", "baz"]},
        "Interval": 1_500_000_000_u64, "Timeout": 1_000_000_000_u64,
    }])
}

async fn wait_for_text(rig: &Rig, wanted: &[&str]) {
    wait_for(&format!("{wanted:?} in the configuration"), Duration::from_secs(30), async || {
        let text = rig.haproxy.text();
        wanted.iter().all(|line| text.contains(line)).then_some(())
    })
    .await;
}

/// HAProxy writes the names of headers in lower case, and Nomad, which checks too, does not.
async fn wait_for_check(recorder: &Recorder, wanted: &[&str]) {
    wait_for(&format!("a check with {wanted:?}"), Duration::from_secs(30), async || {
        let seen = recorder.seen();
        seen.iter().any(|request| wanted.iter().all(|part| request.contains(part))).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_check_of_a_job_is_the_one_that_haproxy_runs() {
    let nomad = Nomad::start().await;
    for (number, series) in matrix().into_iter().enumerate() {
        for way in crate::support::api::WAYS {
            eprintln!("--- HAProxy {series}, {way:?}");
            let rig = Rig::start(way, series).await;
            let recorder = Recorder::start("app", "200 OK").await;
            // What it takes is events: the next resync is far away.
            let env = rig.env_with(&[("NOMAD_ADDR", &nomad.address), ("NOMAD_HAPROXY_RESYNC_INTERVAL", "1h")]);
            let controller = Controller::start(&env, &[]);
            controller.wait_until_ready().await;
            let name = format!("app-{number}-{way:?}").to_lowercase();
            let submit = async |tags: &[&str], check| nomad.submit(checked(&name, tags, recorder.port(), check)).await;
            submit(&["enable=true"], request("/health?x=1")).await;
            let port = format!("port {}", recorder.port());
            wait_for_text(&rig, &["option httpchk HEAD /health?x=1 HTTP/1.1", "inter 1500ms", &port]).await;
            wait_for_text(&rig, &["timeout check 1s"]).await;
            let headers = ["host: app.test\r\n", "x-foo: bar\r\n", "x-foo: baz\r\n"];
            wait_for_check(&recorder, &[&["HEAD /health?x=1 HTTP/1.1\r\n"], &headers[..]].concat()).await;
            // Nothing but the job changes.
            submit(&["enable=true"], request("/ready")).await;
            wait_for_check(&recorder, &["HEAD /ready HTTP/1.1\r\n", "host: app.test\r\n"]).await;
            // A tag goes first, and what it leaves open is the job's.
            submit(&["enable=true", "check.path=/tag"], request("/ready")).await;
            wait_for_check(&recorder, &["HEAD /tag HTTP/1.1\r\n", "host: app.test\r\n"]).await;
            submit(&["enable=true"], json!([])).await;
            wait_for_text(&rig, &["option tcp-check"]).await;
            assert!(!rig.haproxy.text().contains("httpchk"), "{}", rig.haproxy.text());
            rig.haproxy.is_valid();
            nomad.stop_job(&name).await;
            nomad.wait_for_instances(&name, 0).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_did_not_change_is_not_read_and_one_that_cannot_be_read_keeps_its_check() {
    let nomad = Nomad::start().await;
    let (gate, url) = Gate::start(&nomad.address).await;
    let rig = Rig::start(Way::Local, "3.2").await;
    let recorder = Recorder::start("app", "200 OK").await;
    let settings = |resync| [("NOMAD_ADDR", url.as_str()), ("NOMAD_HAPROXY_RESYNC_INTERVAL", resync)];
    nomad.submit(checked("app", &["enable=true"], recorder.port(), request("/health"))).await;
    nomad.submit(job("other", 1, &["enable=true"], None)).await;
    nomad.wait_for_instances("app", 1).await;
    nomad.wait_for_instances("other", 1).await;
    let controller = Controller::start(&rig.env_with(&settings("1h")), &[]);
    wait_for_text(&rig, &["option httpchk HEAD /health HTTP/1.1"]).await;
    let jobs_read = || gate.calls().into_iter().filter(|call| call.contains("/v1/job/app")).count();
    wait_for("the event stream", Duration::from_secs(20), async || {
        (controller.metric("nomad_haproxy_nomad_events_up").await > 0.0).then_some(())
    })
    .await;
    controller.wait_until_ready().await;
    let before = jobs_read();
    for count in [2, 3, 1] {
        nomad.scale("other", count).await;
        wait_for("the instances", Duration::from_secs(20), async || {
            (rig.haproxy.text().matches("\"service\":\"default/other\"").count() == count as usize).then_some(())
        })
        .await;
    }
    assert_eq!(jobs_read(), before, "{:?}", gate.calls());
    drop(controller);
    // The catalog as a file has the check, too.
    let printed = stdout(&run(&rig.env_with(&settings("1h")), &["catalog"]).await);
    assert!(printed.contains("\"Checks\"") && printed.contains("/health"), "{printed}");

    for (status, body) in [(403, "Permission denied"), (404, "job not found")] {
        gate.interfere(Some(Box::new(move |_, uri| {
            uri.path().starts_with("/v1/job/app").then(|| (status, body.to_owned()))
        })));
        let text = rig.haproxy.text();
        let env = rig.env_with(&settings("1h"));
        let output = run(&env, &["apply", "--strict"]).await;
        assert!(output.status.success(), "{status} is no error of the pass: {}", stdout(&output));
        let (answer, noted) = (stdout(&output), "info: service app: the check of its job cannot be read");
        assert!(answer.contains(noted), "{answer}");
        assert_eq!(rig.haproxy.text(), text);
    }
    // What passes: a controller that runs comes back to it, and goes on from what it knew.
    let fails = || {
        gate.interfere(Some(Box::new(|_, uri| {
            uri.path().starts_with("/v1/job/app").then(|| (500, "rpc error".to_owned()))
        })));
    };
    gate.interfere(None);
    let controller = Controller::start(&rig.env_with(&settings("1h")), &[]);
    controller.wait_until_ready().await;
    fails();
    nomad.submit(checked("app", &["enable=true"], recorder.port(), request("/ready"))).await;
    let known = jobs_read();
    wait_for("attempts", Duration::from_secs(30), async || (jobs_read() > known + 2).then_some(())).await;
    assert!(rig.haproxy.text().contains("option httpchk HEAD /health HTTP/1.1"), "{}", rig.haproxy.text());
    gate.interfere(None);
    wait_for_text(&rig, &["option httpchk HEAD /ready HTTP/1.1"]).await;
}
