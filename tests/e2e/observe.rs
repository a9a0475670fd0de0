//! What is visible of a running controller: its log, the configuration that it prints, readiness, metrics, and how it
//! stops.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::api::{Rig, Way};
use crate::support::controller::{Controller, registration, run, stderr, stdout, write_catalog};
use crate::support::haproxy::{Haproxy, hand_written};
use crate::support::nomad::{Nomad, job};
use crate::support::{prometheus, wait_for};
use serde_json::Value;

/// Services `s0`, `s1`, … with these numbers of instances.
fn services(count: u16, each: u16) -> Vec<Value> {
    let one = |service: u16, n: u16| {
        let port = 2000 + service * 10 + n;
        registration(&format!("s{service}"), &port.to_string(), port.into(), port, &["enable=true", "check.disabled"])
    };
    (0..count).flat_map(|service| (0..each).map(move |n| one(service, n))).collect()
}

fn start(rig: &Rig, more: &[(&str, &str)]) -> Controller {
    let mut settings = vec![("NOMAD_HAPROXY_RESYNC_INTERVAL", "1s")];
    settings.extend(more);
    Controller::start(&rig.env_with(&settings), &["--catalog", &rig.catalog().display().to_string()])
}

fn named(controller: &Controller, message: &str) -> Vec<Value> {
    controller.events().into_iter().filter(|event| event["message"] == message).collect()
}

async fn wait_for_lines(controller: &Controller, message: &str, count: usize) -> Vec<Value> {
    wait_for(&format!("{count} lines {message:?}"), Duration::from_secs(20), async || {
        Some(named(controller, message)).filter(|lines| lines.len() >= count)
    })
    .await
}

/// The fields of an event, with those that the format adds.
fn has_no_field_twice(line: &str) {
    let event: Value = serde_json::from_str(line).unwrap();
    for field in event.as_object().unwrap().keys().chain(event["span"].as_object().into_iter().flat_map(|s| s.keys())) {
        assert_eq!(line.matches(&format!("\"{field}\":")).count(), 1, "{field} in {line}");
    }
    assert!(event.get("spans").is_none(), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_one_short_line() {
    let rig = Rig::start(Way::Local, "3.2").await;
    write_catalog(&rig.catalog(), &services(60, 2));
    let controller = start(&rig, &[]);
    controller.wait_until_ready().await;
    let adopted = wait_for_lines(&controller, "applied", 1).await.remove(0);
    assert_eq!(adopted["services"], "s0 +2, s1 +2, s10 +2, s11 +2, s12 +2 and 55 more");
    assert_eq!((&adopted["added"], &adopted["removed"], &adopted["reloads"]), (&120.into(), &0.into(), &1.into()));
    assert!(adopted["took_ms"].is_u64(), "{adopted}");
    let mut scaled = services(60, 2);
    scaled.pop();
    write_catalog(&rig.catalog(), &scaled);
    let scaled = wait_for_lines(&controller, "applied", 2).await.remove(1);
    assert_eq!((&scaled["services"], &scaled["reloads"]), (&"s59 -1".into(), &0.into()));
    controller.wait_for_resyncs(2).await;
    assert_eq!(named(&controller, "applied").len(), 2);
    for line in controller.log().lines() {
        assert!(line.len() < 600, "{} bytes: {line}", line.len());
        has_no_field_twice(line);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_diff_is_for_debugging_and_bounded() {
    let rig = Rig::start(Way::Local, "3.2").await;
    write_catalog(&rig.catalog(), &services(60, 2));
    let controller = start(&rig, &[("NOMAD_HAPROXY_LOG_LEVEL", "debug")]);
    controller.wait_until_ready().await;
    let written = wait_for_lines(&controller, "configuration written", 1).await.remove(0);
    let diff = written["diff"].as_str().unwrap();
    assert_eq!(diff.lines().count(), 41, "{diff}");
    assert!(diff.contains("+backend s0\n") && diff.ends_with(" more lines"), "{diff}");
    has_no_field_twice(&written.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_note_is_logged_when_it_comes_and_when_it_goes() {
    let rig = Rig::start(Way::Local, "3.2").await;
    let one = |service: &str, id: &str, port: u16, tags: &[&str]| {
        let tags: Vec<&str> = ["enable=true"].iter().chain(tags).copied().collect();
        registration(service, id, port.into(), port, &tags)
    };
    let good = one("good", "g", 2000, &[]);
    let bad_tag = one("a", "a", 2001, &["wieght=3"]);
    let no_backend = one("b", "b", 2002, &["backend=custom"]);
    write_catalog(&rig.catalog(), &[good.clone(), bad_tag.clone()]);
    let controller = start(&rig, &[]);
    wait_for_lines(&controller, "problem with a service", 1).await;
    write_catalog(&rig.catalog(), &[good.clone(), bad_tag, no_backend.clone()]);
    wait_for_lines(&controller, "problem with a service", 2).await;
    controller.wait_for_resyncs(2).await;
    let problems = named(&controller, "problem with a service");
    let seen: Vec<_> =
        problems.iter().map(|e| (e["level"].as_str(), e["service"].as_str(), e["code"].as_str())).collect();
    assert_eq!(
        seen,
        [(Some("WARN"), Some("a"), Some("bad-tag")), (Some("ERROR"), Some("b"), Some("missing-backend")),]
    );
    assert!(problems[0]["note"].as_str().unwrap().contains("wieght"), "{}", problems[0]);

    write_catalog(&rig.catalog(), &[good, no_backend]);
    let gone = wait_for_lines(&controller, "problem resolved", 1).await;
    controller.wait_for_resyncs(2).await;
    assert_eq!(
        (named(&controller, "problem resolved").len(), named(&controller, "problem with a service").len()),
        (1, 2)
    );
    assert_eq!((&gone[0]["level"], &gone[0]["service"]), (&"INFO".into(), &"a".into()));
    controller.log().lines().for_each(has_no_field_twice);
}

/// A secret in each possible place: in separate sections beside ours, and in the backend that servers of ours are added
/// to.
fn with_secrets(folder: &Path, port: u16) -> String {
    const S: &str = "s3cr3t";
    let text = hand_written(folder, port);
    let text = text.replacen("maxconn   500", &format!("maxconn   500\n    setenv TOKEN {S}\n    # old: {S}"), 1);
    let text = text.replacen(
        "    acl is_shop",
        &format!(
            "    http-request set-header X-Internal \"{S} a\"  # {S}\n    http-request deny if {{ req.hdr(x) -m str {S} }}\n    acl is_shop"
        ),
        1,
    );
    let shop = format!(
        "    # {S}\n    http-request set-header Authorization {S}\n    http-request replace-path /x /{S}\n    stick-table type string len {len} size 1k # {S}\n",
        len = 32
    );
    let text = text.replacen("    # one day there will be two\n", &shop, 1);
    let text =
        text.replacen("weight 0\n", &format!("weight 0 cookie {S}\n    http-response set-header X-Key {S}\n"), 1);
    format!("userlist people\n    user admin insecure-password {S}\n\n{text}")
}

everywhere!(lines_of_others_are_not_printed, secrets::case);

mod secrets {
    use super::*;

    pub async fn case(rig: Rig, way: Way) {
        let haproxy = Haproxy::start_with(&rig.series, with_secrets).await;
        let rig = Rig::with(way, &rig.series, haproxy).await;
        let tags = ["enable=true", "check.disabled"];
        let custom = |id: u16| registration("shop", &id.to_string(), id.into(), id, &["enable=true", "backend=custom"]);
        let api = |id: u16| registration("api", &id.to_string(), id.into(), id, &tags);
        write_catalog(&rig.catalog(), &[custom(2001), api(2002)]);
        let catalog = rig.catalog().display().to_string();
        let mut printed = String::new();
        for arguments in [
            &["plan", "--catalog", &catalog][..],
            &["plan", "--output", "json", "--catalog", &catalog],
            &["apply", "--catalog", &catalog],
        ] {
            let output = run(&rig.env(), arguments).await;
            let _ = write!(printed, "{}{}", stdout(&output), stderr(&output));
        }
        assert!(printed.contains("+  server api_1 ") || printed.contains("+  server api_1"), "{printed}");
        assert!(printed.contains("server shop_1"), "{printed}");

        // A person's line in a backend of ours: it is removed by the next write, and not printed.
        let description =
            rig.haproxy.text().lines().find(|line| line.contains("description nomad-haproxy")).unwrap().to_owned();
        rig.edit(|text| {
            text.replacen(&description, &format!("{description}\n  http-request set-header X-Mine s3cr3t # s3cr3t"), 1)
        })
        .await;
        let controller = start(&rig, &[("NOMAD_HAPROXY_LOG_LEVEL", "debug")]);
        controller.wait_until_ready().await;
        write_catalog(&rig.catalog(), &[custom(2001), custom(2003), api(2002), api(2004)]);
        wait_for_lines(&controller, "configuration written", 2).await;
        write_catalog(&rig.catalog(), &[]);
        wait_for("the backend to go", Duration::from_secs(20), async || {
            controller.log().contains("-backend api").then_some(())
        })
        .await;
        printed += &controller.log();
        printed += &controller.http("/metrics").await.1;
        let found: BTreeSet<&str> = printed.lines().filter(|line| line.contains("s3cr3t")).collect();
        assert!(found.is_empty(), "{found:#?}");
    }
}

async fn not_ready(controller: &Controller, stage: &str) -> String {
    let text = wait_for(&format!("not ready at stage {stage}"), Duration::from_secs(60), async || {
        let (status, text) = controller.http("/readyz").await;
        (status == 503).then_some(text)
    })
    .await;
    assert!(text.contains(&format!("stage {stage}")) && text.ends_with('\n'), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(!text.contains("secret"), "{text}");
    assert_eq!(controller.http("/healthz").await.0, 200, "the loop turns");
    text
}

everywhere!(readiness_follows_haproxy, ready::haproxy);

mod ready {
    use super::*;

    pub async fn haproxy(mut rig: Rig, _way: Way) {
        write_catalog(&rig.catalog(), &services(1, 1));
        let controller = start(&rig, &[]);
        controller.wait_until_ready().await;
        assert!((controller.metric("nomad_haproxy_haproxy_up").await - 1.0).abs() < 0.1);
        rig.haproxy.kill();
        let said = not_ready(&controller, "observe").await;
        assert!(said.contains("HAProxy") || said.contains("Data Plane API"), "{said}");
        assert!(controller.metric("nomad_haproxy_haproxy_up").await.abs() < 0.1);
        rig.haproxy.launch().await;
        controller.wait_until_ready().await;
        assert!((controller.metric("nomad_haproxy_haproxy_up").await - 1.0).abs() < 0.1);
        wait_for_lines(&controller, "passes succeed again", 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_follows_the_api() {
    let mut rig = Rig::start(Way::Api, "3.2").await;
    write_catalog(&rig.catalog(), &services(1, 1));
    let controller = start(&rig, &[]);
    controller.wait_until_ready().await;
    rig.api.as_mut().unwrap().kill();
    let said = not_ready(&controller, "observe").await;
    assert!(said.contains("the Data Plane API at http://127.0.0.1"), "{said}");
    rig.api.as_mut().unwrap().launch().await;
    controller.wait_until_ready().await;
    let failed = named(&controller, "the pass failed");
    assert_eq!(failed.len(), 1, "the same failure is one line: {failed:#?}");
    assert_eq!(wait_for_lines(&controller, "passes succeed again", 1).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_follows_nomad() {
    let nomad = Nomad::start().await;
    let rig = Rig::start(Way::Local, "3.2").await;
    nomad.submit(job("steady", 1, &["enable=true", "check.disabled"], None)).await;
    nomad.wait_for_instances("steady", 1).await;
    // Only the outage itself wakes the loop.
    let env = rig.env_with(&[("NOMAD_ADDR", &nomad.address), ("NOMAD_HAPROXY_RESYNC_INTERVAL", "1h")]);
    let controller = Controller::start(&env, &[]);
    controller.wait_until_ready().await;
    assert!((controller.metric("nomad_haproxy_nomad_up").await - 1.0).abs() < 0.1);
    let read = controller.metric("nomad_haproxy_catalog_last_read_timestamp_seconds").await;
    assert!(read > 1.0e9, "{read}");
    assert!((controller.metric("nomad_haproxy_registration_to_ready_seconds_count").await - 1.0).abs() < 0.1);
    assert!(
        (controller.metric("nomad_haproxy_backend_slots{backend=\"steady\",state=\"seated\"}").await - 1.0).abs() < 0.1
    );
    nomad.kill();
    let said = not_ready(&controller, "catalog").await;
    assert!(said.contains(&format!("Nomad at {} does not answer", nomad.address)), "{said}");
    assert!(controller.metric("nomad_haproxy_nomad_up").await.abs() < 0.1);
    assert!((controller.metric("nomad_haproxy_haproxy_up").await - 1.0).abs() < 0.1);
    nomad.launch().await;
    controller.wait_until_ready().await;
    wait_for_lines(&controller, "watching Nomad again", 1).await;
    assert_eq!(named(&controller, "cannot watch Nomad for changes; trying again").len(), 1);
    assert!((controller.metric("nomad_haproxy_nomad_up").await - 1.0).abs() < 0.1);
}

async fn scrape(controller: &Controller, accept: Option<&str>) -> (String, String) {
    let mut request = reqwest::Client::new().get(format!("http://{}/metrics", controller.listen().await));
    if let Some(accept) = accept {
        request = request.header("Accept", accept);
    }
    let response = request.send().await.unwrap();
    let kind = response.headers()["Content-Type"].to_str().unwrap().to_owned();
    (kind, response.text().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_come_in_the_format_that_is_asked_for() {
    let rig = Rig::start(Way::Local, "3.2").await;
    write_catalog(&rig.catalog(), &services(2, 2));
    let controller = start(&rig, &[]);
    controller.wait_until_ready().await;
    let (kind, text) = scrape(&controller, None).await;
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    assert!(!text.contains("# EOF") && !text.contains("# UNIT"), "{text}");
    let name = rig.haproxy.config().display().to_string();
    for stage in ["observe", "catalog", "plan", "apply", "repair"] {
        assert!(
            text.contains(&format!("nomad_haproxy_pass_failures_total{{haproxy=\"{name}\",stage=\"{stage}\"}} 0\n")),
            "{stage}: {text}"
        );
    }
    let slots = format!("nomad_haproxy_backend_slots{{haproxy=\"{name}\",backend=\"s1\",state=\"free\"}} 0\n");
    assert!(text.contains(&slots), "{text}");
    let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
    let (kind, open) = scrape(&controller, Some(prometheus)).await;
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(open.ends_with("# EOF\n"), "{open}");
    write_catalog(&rig.catalog(), &services(1, 2));
    wait_for("the backend to go from the metrics", Duration::from_secs(20), async || {
        (!scrape(&controller, None).await.1.contains("backend=\"s1\"")).then_some(())
    })
    .await;
    prometheus::check_text(&text);
    prometheus::check_open_metrics(&open);
}

/// From the signal to the end. The limit of five seconds is documented, so this is not a measurement.
async fn stops_in_time(controller: &mut Controller) {
    let begun = Instant::now();
    assert_eq!(controller.stop().await.code(), Some(0), "{}", controller.log());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_client_delays_the_shutdown() {
    let rig = Rig::start(Way::Local, "3.2").await;
    write_catalog(&rig.catalog(), &services(300, 1));
    let mut controller = start(&rig, &[]);
    controller.wait_until_ready().await;
    let connect = async || TcpStream::connect(controller.listen().await).unwrap();
    let silent = connect().await;
    let mut half = connect().await;
    half.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Half: ").unwrap();
    let mut idle = connect().await;
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert!(idle.read(&mut [0; 1024]).unwrap() > 0);
    // So many answers that they do not fit into the buffers, and the client reads none of them.
    let mut slow = connect().await;
    slow.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let requests = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2000);
    let _ = slow.write_all(&requests);
    stops_in_time(&mut controller).await;
    drop((silent, half, idle, slow));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_sent_request_is_dropped_after_a_while() {
    let rig = Rig::start(Way::Local, "3.2").await;
    write_catalog(&rig.catalog(), &[]);
    let controller = start(&rig, &[]);
    controller.wait_until_ready().await;
    let mut half = TcpStream::connect(controller.listen().await).unwrap();
    half.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    half.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Half: ").unwrap();
    let mut answer = String::new();
    tokio::task::spawn_blocking(move || half.read_to_string(&mut answer).unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_that_hangs_does_not_delay_the_shutdown() {
    let rig = Rig::start(Way::Local, "3.2").await;
    write_catalog(&rig.catalog(), &services(1, 1));
    let hanging = rig.haproxy.folder().join("hanging");
    std::fs::write(&hanging, "#!/bin/sh\ntouch \"$0.reached\"\nexec sleep 600\n").unwrap();
    Command::new("chmod").arg("+x").arg(&hanging).status().unwrap();
    let before = rig.haproxy.bytes();
    let mut controller = start(&rig, &[("HAPROXY_BINARY", hanging.to_str().unwrap())]);
    let reached = hanging.with_extension("reached");
    wait_for("the validation", Duration::from_secs(20), async || reached.exists().then_some(())).await;
    stops_in_time(&mut controller).await;
    assert_eq!(
        named(&controller, "the pass was cut short; the next start sets right what it left").len(),
        1,
        "{}",
        controller.log()
    );
    assert_eq!(rig.haproxy.bytes(), before);
}
