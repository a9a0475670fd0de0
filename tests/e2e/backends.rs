//! With a socket of the process, HAProxy 3.4 makes and removes whole backends without a reload: on the local plane, and
//! beside the Data Plane API. Older releases take one reload for each batch.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::api::{Rig, WAYS, Way};
use crate::support::controller::{Controller, Env, apply, command, registration, run, stdout, write_catalog};
use crate::support::gate::{Point, SocketGate};
use crate::support::process::Group;
use crate::support::servers::Server;
use crate::support::wait_for;
use serde_json::Value;
use tokio::io::AsyncWriteExt;

const TAGS: [&str; 5] = ["enable=true", "check.path=/health", "check.interval=200ms", "check.rise=1", "check.fall=2"];

/// Settings with the run-time socket, and no time for which a backend stays empty.
fn env(rig: &Rig) -> Env {
    let mut env = rig.env_with_socket();
    env.push(("NOMAD_HAPROXY_BACKEND_LINGER".to_owned(), "0s".to_owned()));
    env
}

/// Whether this HAProxy makes backends at run time.
fn makes_backends(rig: &Rig) -> bool {
    rig.series == "3.4"
}

/// One instance of a service.
fn one(service: &str, port: u16, tags: &[&str]) -> Value {
    registration(service, &format!("{service}-{port}"), u64::from(port), port, tags)
}

/// The answer to a request for a service: its status, and who answered.
async fn get(rig: &Rig, service: &str) -> (u16, String) {
    let client = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
    let url = format!("http://127.0.0.1:{}/", rig.haproxy.port);
    let answer = client.get(&url).header("Host", format!("{service}.test")).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

async fn answers(rig: &Rig, service: &str) {
    wait_for(&format!("an answer of {service}"), Duration::from_secs(10), async || {
        (get(rig, service).await.0 == 200).then_some(())
    })
    .await;
}

/// The backends of the process, each with its status.
async fn backends(rig: &Rig) -> BTreeMap<String, String> {
    let stat = rig.haproxy.command("@1 show stat -1 2 -1").await;
    let rows = stat.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(',').collect::<Vec<_>>());
    rows.filter(|row| row.len() > 17).map(|row| (row[0].to_owned(), row[17].to_owned())).collect()
}

/// The process has exactly the backends of the file, all of them published, and the file loads.
async fn is_complete(rig: &Rig) {
    rig.haproxy.is_valid();
    let text = rig.haproxy.text();
    let file: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("backend "))
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    let mut running = backends(rig).await;
    for name in file {
        let status = running.remove(name).unwrap_or_else(|| panic!("the process lacks {name}: {running:?}"));
        assert!(!status.contains("UNPUB"), "{name}: {status}");
    }
    assert_eq!(running, BTreeMap::new(), "the process has too much");
}

async fn services_come_and_go(rig: Rig, way: Way) {
    let (env, on) = (env(&rig), format!("HAProxy {}, {way:?}", rig.series));
    let catalog = rig.catalog().display().to_string();
    let server = Server::start("any").await;
    let (api, more): (Value, Vec<String>) =
        (one("api", server.port(), &TAGS), (0..20).map(|n| format!("s{n}")).collect());
    write_catalog(&rig.catalog(), std::slice::from_ref(&api));
    apply(&env, &rig.catalog()).await;
    answers(&rig, "api").await;
    let foreign = rig.foreign();
    let (mut reloads, worker) = (rig.haproxy.reloads().await, rig.haproxy.worker().await);
    let costs = u64::from(!makes_backends(&rig));
    // One after another, all the others at once, then away in the same way.
    let sizes = [1, 2, 3, 20, 19, 18, 0];
    for size in sizes {
        let services: Vec<Value> = more[..size].iter().map(|name| one(name, server.port(), &TAGS)).collect();
        write_catalog(&rig.catalog(), &[vec![api.clone()], services].concat());
        let plan = stdout(&run(&env, &["plan", "--catalog", &catalog]).await);
        assert_eq!(plan.contains("no reload"), makes_backends(&rig), "{on}: {plan}");
        let why = "reload: backends come and go without a reload from HAProxy 3.4";
        assert_eq!(plan.contains(why), !makes_backends(&rig), "{on}: {plan}");
        let said = apply(&env, &rig.catalog()).await;
        assert_eq!(said.contains("no reload"), makes_backends(&rig), "{on}: {said}");
        reloads += costs;
        assert_eq!(rig.haproxy.reloads().await, reloads, "{on}: {said}");
        rig.agrees().await;
        is_complete(&rig).await;
        for name in &more[..size] {
            answers(&rig, name).await;
        }
        if let Some(gone) = more.get(size) {
            assert_eq!(get(&rig, gone).await.0, 503, "{on}");
        }
        assert!(apply(&env, &rig.catalog()).await.contains("Nothing to do"), "{on}");
    }
    if makes_backends(&rig) {
        assert_eq!(rig.haproxy.worker().await, worker, "{on}");
    }
    assert_eq!(rig.foreign(), foreign);
}

everywhere! {
    new_services_and_those_that_go_take_no_reload, services_come_and_go
}

/// Settings in which one value is replaced.
fn with(env: &Env, key: &str, value: &str) -> Env {
    let replaced =
        |(known, old): &(String, String)| (known.clone(), if known == key { value.to_owned() } else { old.clone() });
    env.iter().map(replaced).collect()
}

/// What happens to a pass that is held at a step.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    /// The controller is killed.
    Kill,
    /// Somebody else reloads HAProxy, and the pass goes on.
    Reload,
}

/// Cut short at each command, and beside the API at each call, of a pass that makes a service, and of one that removes
/// it; and HAProxy reloaded there by somebody else. The next pass completes it. After a kill that takes no reload.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_cuts_it_short_the_next_pass_completes_it() {
    for (way, fault) in WAYS.into_iter().flat_map(|way| [(way, Fault::Kill), (way, Fault::Reload)]) {
        let rig = Rig::start(way, "3.4").await;
        let foreign = rig.foreign();
        let (plain, server) = (env(&rig), Server::start("any").await);
        let socket = SocketGate::start(&match way {
            Way::Local => rig.haproxy.master(),
            Way::Api => rig.haproxy.folder().join("stats.sock"),
        });
        let services = |count: usize| -> Vec<Value> {
            let names = ["api", "store"].into_iter().take(count);
            names.flat_map(|name| [one(name, server.port(), &TAGS), one(name, 2000, &TAGS)]).collect()
        };
        write_catalog(&rig.catalog(), &services(1));
        apply(&plain, &rig.catalog()).await;
        let key = if way == Way::Local { "HAPROXY_MASTER_SOCKET" } else { "HAPROXY_RUNTIME_SOCKET" };
        let by_socket = with(&plain, key, &socket.path.display().to_string());
        let http = if way == Way::Api { Some(rig.gated().await) } else { None };
        let by_http = http.as_ref().map(|(_, env)| with(&plain, "HAPROXY_DATAPLANE_URL", &env[0].1));
        let (mut reloads, mut faults) = (rig.haproxy.reloads().await, 0);
        for (is_socket, env) in [(true, Some(&by_socket)), (false, by_http.as_ref())] {
            let Some(env) = env else { continue };
            let hold = |point| if is_socket { socket.hold(point) } else { http.as_ref().unwrap().0.hold(point) };
            let is_holding = || if is_socket { socket.is_holding() } else { http.as_ref().unwrap().0.is_holding() };
            for call in 1.. {
                let mut held = 0;
                // What is not done before the next call is not done after this one.
                for (point, count) in [(Point::After(call), 2), (Point::After(call), 1)] {
                    let on = format!("{way:?}, {fault:?}, {point:?}, {count} services");
                    write_catalog(&rig.catalog(), &services(count));
                    let catalog = rig.catalog().display().to_string();
                    hold(Some(point));
                    let pass = RefCell::new(Group::spawn(&mut command(env, &["apply", "--catalog", &catalog])));
                    let ended = async |is_reached: bool| {
                        wait_for(&format!("{on} to be reached, or the end"), Duration::from_secs(30), async || {
                            if is_reached && is_holding() { Some(1) } else { pass.borrow_mut().exited().map(|_| 0) }
                        })
                        .await
                    };
                    let reached = ended(true).await;
                    held += reached;
                    if fault == Fault::Reload && reached == 1 {
                        rig.haproxy.command("reload").await;
                        if is_socket {
                            socket.release();
                        } else {
                            http.as_ref().unwrap().0.release();
                        }
                        ended(false).await;
                        reloads = rig.haproxy.reloads().await;
                    }
                    pass.borrow_mut().kill();
                    hold(None);
                    let said = apply(&plain, &rig.catalog()).await;
                    rig.agrees().await;
                    is_complete(&rig).await;
                    answers(&rig, "api").await;
                    if count == 2 {
                        answers(&rig, "store").await;
                    }
                    assert!(apply(&plain, &rig.catalog()).await.contains("Nothing to do"), "{on}");
                    assert!(fault == Fault::Reload || rig.haproxy.reloads().await == reloads, "{on}: {said}");
                }
                faults += held;
                if held == 0 {
                    break;
                }
            }
        }
        assert_eq!(rig.foreign(), foreign);
        assert!(faults >= 20, "{way:?}, {fault:?}: {faults}");
        eprintln!("{way:?}, {fault:?}: {faults} faults");
    }
}

/// A service with settings that no other one has takes a reload once; then HAProxy knows them. The same after a person
/// changed what all inherit, and an edit of the profile itself changes no backend.
async fn only_settings_that_are_new_take_a_reload(rig: Rig) {
    let (env, on) = (env(&rig), rig.haproxy.folder().display().to_string());
    let server = Server::start("any").await;
    let mut services = vec![one("api", server.port(), &TAGS)];
    write_catalog(&rig.catalog(), &services);
    apply(&env, &rig.catalog()).await;
    let mut add = async |name: &str, tags: &[&str]| {
        services.push(one(name, server.port(), tags));
        write_catalog(&rig.catalog(), &services);
        let before = rig.haproxy.reloads().await;
        let said = apply(&env, &rig.catalog()).await;
        answers(&rig, name).await;
        is_complete(&rig).await;
        let reloads = rig.haproxy.reloads().await - before;
        let why = format!("reload: no backend had these settings, and this `defaults`, at the last reload ({name})");
        assert_eq!(said.contains(&why), reloads == 1, "{said}");
        assert_eq!(said.contains("no reload"), reloads == 0, "{said}");
        reloads
    };
    let least = ["enable=true", "balance=leastconn", "check.interval=200ms"];
    assert_eq!(add("a", &least).await, 1, "{on}");
    assert_eq!(add("b", &least).await, 0, "{on}");
    // A person's timeout is in effect in a backend that was made without a reload, and so is a changed one.
    let edit = |at: &str, from: &str, to: &str| {
        let text = rig.haproxy.text();
        let (above, below) = text.split_once(at).unwrap();
        assert!(below.contains(from), "{text}");
        std::fs::write(rig.haproxy.config(), format!("{above}{at}{}", below.replacen(from, to, 1))).unwrap();
    };
    edit("\ndefaults base\n", "timeout connect 1s", "timeout connect 2s");
    assert_eq!(add("c", &least).await, 1, "{on}");
    assert_eq!(add("d", &least).await, 0, "{on}");
    let text = rig.haproxy.text();
    let (new, old) = (text.matches("timeout connect 2s").count(), text.matches("timeout connect 1s").count());
    assert_eq!((new, old), (2, 0), "a person's line and its copy: {text}");
    // An edit of the copy, and of a profile.
    for (number, (from, to)) in
        [("timeout connect 2s", "timeout connect 9s"), ("balance leastconn", "balance first")].into_iter().enumerate()
    {
        edit("\ndefaults nomad-haproxy-nomad-", from, to);
        assert_eq!(add(&format!("e{number}"), &least).await, 1, "{on}");
        assert_eq!(add(&format!("f{number}"), &least).await, 0, "{on}");
        assert!(!rig.haproxy.text().contains(to), "{}", rig.haproxy.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_settings_that_no_backend_had_before_take_a_reload() {
    only_settings_that_are_new_take_a_reload(Rig::start(Way::Local, "3.4").await).await;
}

/// After `uninstall` a person's file is as it was before the first write, to the byte.
#[tokio::test(flavor = "multi_thread")]
async fn profiles_leave_nothing_behind() {
    let rig = Rig::start(Way::Local, "3.4").await;
    let before = rig.haproxy.bytes();
    write_catalog(&rig.catalog(), &[one("api", 2000, &TAGS), one("store", 2001, &["enable=true", "mode=tcp"])]);
    apply(&env(&rig), &rig.catalog()).await;
    assert!(rig.haproxy.text().contains("\ndefaults nomad-haproxy-nomad-"), "{}", rig.haproxy.text());
    let output = run(&env(&rig), &["uninstall", "--yes"]).await;
    assert!(output.status.success(), "{}", stdout(&output));
    assert_eq!(String::from_utf8_lossy(&rig.haproxy.bytes()), String::from_utf8_lossy(&before));
}

/// A service is gone while somebody waits for an answer of it: nobody new finds it, the connection stays, and what is
/// left goes when it ends. Until then its name is loaded, not made, if it comes back.
async fn a_backend_with_a_connection(rig: Rig, way: Way) {
    let env = env(&rig);
    let catalog = rig.catalog().display().to_string();
    let api = Server::start("api").await;
    let tags = ["enable=true", "check.disabled"];
    let slow = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = one("api", api.port(), &tags);
    let store = one("store", slow.local_addr().unwrap().port(), &tags);
    write_catalog(&rig.catalog(), std::slice::from_ref(&api));
    let mut controller = Controller::start(&env, &["--catalog", &catalog]);
    controller.wait_until_ready().await;
    let (reloads, worker) = (rig.haproxy.reloads().await, rig.haproxy.worker().await);
    write_catalog(&rig.catalog(), &[api.clone(), store]);
    rig.haproxy.wait_for_state("store/store_1", "ready").await;
    let mut held = tokio::net::TcpStream::connect(("127.0.0.1", rig.haproxy.port)).await.unwrap();
    held.write_all(b"GET / HTTP/1.1\r\nHost: store.test\r\n\r\n").await.unwrap();
    let answering = slow.accept().await.unwrap();
    write_catalog(&rig.catalog(), std::slice::from_ref(&api));
    wait_for("the backend to be hidden", Duration::from_secs(10), async || {
        backends(&rig).await.get("store").filter(|status| status.contains("UNPUB")).map(drop)
    })
    .await;
    assert_eq!(get(&rig, "store").await.0, 503);
    // A controller that is started later does not forget it.
    controller.kill();
    let controller = Controller::start(&env, &["--catalog", &catalog]);
    controller.wait_until_ready().await;
    assert!(backends(&rig).await.contains_key("store"), "{way:?}");
    assert!(held.try_read(&mut [0; 8]).is_err(), "{way:?}: the connection is open");
    drop((answering, slow));
    wait_for("the backend to be gone", Duration::from_secs(20), async || {
        (!backends(&rig).await.contains_key("store")).then_some(())
    })
    .await;
    is_complete(&rig).await;
    assert_eq!((rig.haproxy.reloads().await, rig.haproxy.worker().await), (reloads, worker), "{way:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_somebody_is_connected_to_stays_until_it_is_free() {
    for way in WAYS {
        a_backend_with_a_connection(Rig::start(way, "3.4").await, way).await;
    }
}
