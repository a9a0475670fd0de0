//! With a socket of the process, servers come and go without a reload: on the local plane, and beside the Data Plane
//! API.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support::api::{Rig, WAYS, Way};
use crate::support::controller::{Controller, Env, apply, command, registration, run, stderr, stdout, write_catalog};
use crate::support::free_port;
use crate::support::gate::{Point, SocketGate};
use crate::support::haproxy::{Haproxy, hand_written, matrix};
use crate::support::process::Group;
use crate::support::servers::{Plain, Server};
use crate::support::wait_for;
use serde_json::Value;
use tokio::io::AsyncWriteExt;

const TAGS: [&str; 5] = ["enable=true", "check.path=/health", "check.interval=200ms", "check.rise=1", "check.fall=2"];

fn env(rig: &Rig) -> Env {
    rig.env_with_socket()
}

fn of(servers: &[Server]) -> Vec<Value> {
    servers.iter().zip(1..).map(|(server, n)| registration("api", &format!("{n}"), n, server.port(), &TAGS)).collect()
}

/// Each of them answers a request through HAProxy.
async fn all_answer(rig: &Rig, servers: &[Server]) {
    let client = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
    let url = format!("http://127.0.0.1:{}/", rig.haproxy.port);
    wait_for("a request to each of them", Duration::from_secs(20), async || {
        let answer = client.get(&url).header("Host", "api.test").send().await.unwrap();
        assert_eq!(answer.status(), 200);
        servers.iter().all(|server| server.requests.load(Ordering::Relaxed) > 0).then_some(())
    })
    .await;
}

/// The servers of a backend in the file, and in the process: the same, and as many as there are instances.
async fn has_only(rig: &Rig, instances: usize) {
    let text = rig.haproxy.text();
    let file: BTreeSet<String> = text
        .lines()
        .filter_map(|line| {
            Some(format!(
                "api/{}",
                line.trim_start()
                    .strip_prefix("server api_")
                    .map(|l| format!("api_{}", l.split(' ').next().unwrap()))?
            ))
        })
        .collect();
    let running = rig.haproxy.running().await;
    let process: BTreeSet<String> = running.into_keys().filter(|name| name.starts_with("api/")).collect();
    assert_eq!((&process, file.len()), (&file, instances), "{text}");
}

async fn a_service_grows_and_shrinks(rig: Rig, way: Way) {
    let env = env(&rig);
    let mut servers = vec![Server::start("1").await];
    write_catalog(&rig.catalog(), &of(&servers));
    apply(&env, &rig.catalog()).await;
    let (reloads, worker, workers) =
        (rig.haproxy.reloads().await, rig.haproxy.worker().await, rig.haproxy.workers().await);
    for size in [2, 3, 7, 20] {
        while servers.len() < size {
            servers.push(Server::start(&format!("{}", servers.len() + 1)).await);
        }
        write_catalog(&rig.catalog(), &of(&servers));
        let catalog = rig.catalog().display().to_string();
        let plan = stdout(&run(&env, &["plan", "--catalog", &catalog]).await);
        assert!(plan.contains("no reload"), "{plan}");
        let said = apply(&env, &rig.catalog()).await;
        assert!(said.contains("no reload"), "{said}");
        rig.agrees().await;
        has_only(&rig, size).await;
        rig.haproxy.is_valid();
        all_answer(&rig, &servers).await;
    }
    // Each is checked: one that fails its check is down, and one whose port is closed.
    for n in [1, 13, 20] {
        let server = format!("api/api_{n}");
        rig.haproxy.wait_for_status(&server, "UP").await;
        servers[n - 1].healthy.store(false, Ordering::Relaxed);
        rig.haproxy.wait_for_status(&server, "DOWN").await;
        servers[n - 1].healthy.store(true, Ordering::Relaxed);
        rig.haproxy.wait_for_status(&server, "UP").await;
    }
    for size in [19, 5, 1] {
        servers.truncate(size);
        write_catalog(&rig.catalog(), &of(&servers));
        apply(&env, &rig.catalog()).await;
        rig.agrees().await;
        has_only(&rig, size).await;
        rig.haproxy.is_valid();
        for server in &servers {
            server.requests.store(0, Ordering::Relaxed);
        }
        all_answer(&rig, &servers).await;
    }
    let said = apply(&env, &rig.catalog()).await;
    assert!(said.contains("Nothing to do"), "{said}");
    let now = (rig.haproxy.reloads().await, rig.haproxy.worker().await);
    assert_eq!(now, (reloads, worker), "HAProxy {}, {way:?}", rig.series);
    // One from before the first reload may still be there, as the real API keeps a connection open for a while.
    assert!(rig.haproxy.workers().await <= workers);
}

everywhere! {
    a_service_that_grows_to_twenty_and_back_takes_no_reload, a_service_grows_and_shrinks
}

fn at(ports: &[u16], tags: &[&str]) -> Vec<Value> {
    ports.iter().map(|port| registration("api", &port.to_string(), u64::from(*port), *port, tags)).collect()
}

/// Whatever cut a pass short: what the process lacks of a server is added, and only that.
async fn a_server_is_completed(rig: Rig, way: Way) {
    let env = env(&rig);
    let on = format!("HAProxy {}, {way:?}", rig.series);
    let tags = ["enable=true", "slots=0", "check.interval=200ms", "check.rise=1", "check.fall=2", "maxconn=7"];
    let closed = [free_port(), free_port(), free_port()];
    write_catalog(&rig.catalog(), &at(&closed, &tags));
    apply(&env, &rig.catalog()).await;
    let (reloads, worker) = (rig.haproxy.reloads().await, rig.haproxy.worker().await);
    let command = async |command: &str| rig.haproxy.command(&format!("@1 {command}")).await;
    for steps in 0..3 {
        command("set server api/api_2 state maint").await;
        assert_eq!(command("wait 2s srv-removable api/api_2").await, "Done.");
        assert_eq!(command("del server api/api_2").await, "Server deleted.");
        let port =
            rig.haproxy.text().split("server api_2 127.0.0.1:").nth(1).unwrap().split(' ').next().unwrap().to_owned();
        if steps > 0 {
            let line =
                format!("add server api/api_2 127.0.0.1:{port} check inter 200ms rise 1 fall 2 maxconn 7 weight 1");
            assert_eq!(command(&line).await, "New server registered.");
        }
        if steps > 1 {
            rig.haproxy.try_command("@1 enable health api/api_2").await.unwrap();
        }
        let said = apply(&env, &rig.catalog()).await;
        rig.agrees().await;
        rig.haproxy.wait_for_status("api/api_2", "DOWN").await;
        let limit = command("show stat -1 4 -1").await;
        let limit =
            limit.lines().find(|line| line.starts_with("api,api_2,")).unwrap().split(',').nth(6).unwrap().to_owned();
        assert_eq!(limit, "7", "{on}: its limit of connections");
        assert!(said.contains("no reload"), "{said}");
    }
    assert_eq!((rig.haproxy.reloads().await, rig.haproxy.worker().await), (reloads, worker), "{on}");
    // A process that has another server of that name: the rest of the plan is done, and a reload sets it right.
    command("add server api/api_4 127.0.0.9:9").await;
    write_catalog(&rig.catalog(), &at(&[closed[0], closed[1], closed[2], free_port()], &tags));
    apply(&env, &rig.catalog()).await;
    rig.agrees().await;
}

everywhere! {
    a_server_that_is_not_complete_is_completed, a_server_is_completed
}

/// Backends of a person, and whether they take a server at run time.
const THEIRS: [(&str, &str, bool); 3] = [
    ("known", "    default-server inter 200ms fall 2 maxconn 9 weight 3\n", true),
    ("agents", "    default-server agent-check agent-port 1\n", false),
    ("static", "    balance source\n", false),
];

/// What `default-server` of a backend that is not ours gives, a server that is added at run time has, too; where that is
/// not known, and where HAProxy takes none, it is loaded.
#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_is_not_ours_grows_with_what_its_servers_inherit() {
    for (series, way) in matrix().into_iter().flat_map(|series| WAYS.map(|way| (series, way))) {
        let section = |(name, lines, _): &(&str, &str, bool)| {
            format!("\nbackend {name}\n{lines}    server old 127.0.0.1:9 weight 0\n")
        };
        let theirs: String = THEIRS.iter().map(section).collect();
        let haproxy = Haproxy::start_with(series, |folder, port| hand_written(folder, port) + &theirs).await;
        let rig = Rig::with(way, series, haproxy).await;
        let env = env(&rig);
        for (name, _, is_live) in THEIRS {
            let tags = ["enable=true", "backend=custom", "slots=0"];
            let reloads = rig.haproxy.reloads().await;
            let closed = registration(name, name, 1, free_port(), &tags);
            write_catalog(&rig.catalog(), &[closed]);
            let said = apply(&env, &rig.catalog()).await;
            rig.agrees().await;
            assert_eq!(rig.haproxy.reloads().await == reloads, is_live, "HAProxy {series}, {way:?}, {name}: {said}");
            if is_live {
                let stat = rig.haproxy.command("@1 show stat -1 4 -1").await;
                let ours = stat.lines().find(|line| line.starts_with("known,known_1,")).unwrap().to_owned();
                assert_eq!(ours.split(',').nth(6), Some("9"), "{ours}");
                assert_eq!(rig.haproxy.running().await["known/known_1"].weight, 3);
                rig.haproxy.wait_for_status("known/known_1", "DOWN").await;
            }
        }
    }
}

/// A socket that cannot be used is an error that names the setting, and keeps nobody in service who has left.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_time_socket_of_another_process_or_level_is_refused() {
    let other = Haproxy::start("3.2").await;
    let sockets = |folder: &Path, port| {
        let more = format!("global\n    stats socket {}/low.sock level operator", folder.display());
        hand_written(folder, port).replacen("global", &more, 1)
    };
    let rig = Rig::with(Way::Api, "3.2", Haproxy::start_with("3.2", sockets).await).await;
    let ports = [free_port(), free_port()];
    write_catalog(&rig.catalog(), &at(&ports, &["enable=true"]));
    apply(&rig.env(), &rig.catalog()).await;
    let catalog = rig.catalog().display().to_string();
    for (path, words) in [
        (other.folder().join("stats.sock"), "belongs to another HAProxy"),
        (rig.haproxy.master(), "is no stats socket"),
        (rig.haproxy.folder().join("low.sock"), "does not have the level admin"),
        (rig.haproxy.folder().join("none.sock"), "does not answer"),
    ] {
        let path = path.display().to_string();
        let env = rig.env_with(&[("HAPROXY_RUNTIME_SOCKET", &path)]);
        for command in ["plan", "apply"] {
            let output = run(&env, &[command, "--catalog", &catalog]).await;
            let said = stdout(&output) + &stderr(&output);
            assert!(!output.status.success(), "{path}: {said}");
            for word in [words, "haproxy.runtime_socket (HAPROXY_RUNTIME_SOCKET)", path.as_str()] {
                assert!(said.contains(word), "{word}: {said}");
            }
        }
    }
    write_catalog(&rig.catalog(), &at(&ports[..1], &["enable=true"]));
    let env = rig.env_with(&[("HAPROXY_RUNTIME_SOCKET", "/nowhere")]);
    let text = rig.haproxy.text();
    assert!(!run(&env, &["apply", "--catalog", &catalog]).await.status.success());
    let states = [rig.haproxy.state("api/api_1").await, rig.haproxy.state("api/api_2").await];
    assert!(states.contains(&"ready") && states.contains(&"maint"), "{states:?}");
    assert_eq!(rig.haproxy.text(), text, "nothing is written");
    apply(&rig.env(), &rig.catalog()).await;
    rig.agrees().await;
}

/// The servers of a backend whose health check is on, in the process.
async fn checked(rig: &Rig) -> usize {
    let state = rig.haproxy.command("@1 show servers state api").await;
    let rows = state.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    rows.filter(|row| row.len() > 18 && row[0] != "#" && row[13].parse::<u16>().unwrap() & 0x04 != 0).count()
}

/// Killed at each command, and beside the API at each call, of a pass that adds two servers, and of one that removes
/// two: the next pass completes it, without a reload.
#[tokio::test(flavor = "multi_thread")]
async fn kills_at_every_step_of_a_growth_and_of_a_removal() {
    for (series, way) in matrix().into_iter().flat_map(|series| WAYS.map(|way| (series, way))) {
        let rig = Rig::start(way, series).await;
        let foreign = rig.foreign();
        let plain = env(&rig);
        let socket = SocketGate::start(&match way {
            Way::Local => rig.haproxy.master(),
            Way::Api => rig.haproxy.folder().join("stats.sock"),
        });
        let gated = |key: &str, value: String| {
            let mut env = plain.clone();
            env.iter_mut().find(|(known, _)| known == key).unwrap().1 = value;
            env
        };
        let tags = ["enable=true", "slots=0", "check.interval=1h"];
        let ports: Vec<u16> = (0..3).map(|n| 2000 + n).collect();
        write_catalog(&rig.catalog(), &at(&ports[..1], &tags));
        apply(&plain, &rig.catalog()).await;
        let (reloads, mut kills) = (rig.haproxy.reloads().await, 0);
        let key = if way == Way::Local { "HAPROXY_MASTER_SOCKET" } else { "HAPROXY_RUNTIME_SOCKET" };
        let by_socket = gated(key, socket.path.display().to_string());
        let http = if way == Way::Api { Some(rig.gated().await) } else { None };
        let by_http = http.as_ref().map(|(_, env)| gated("HAPROXY_DATAPLANE_URL", env[0].1.clone()));
        for (is_socket, env) in [(true, Some(&by_socket)), (false, by_http.as_ref())] {
            let Some(env) = env else { continue };
            let mut call = 0;
            loop {
                call += 1;
                let mut held = 0;
                let points = [Point::Before(call), Point::After(call)];
                for (point, instances) in points.into_iter().flat_map(|point| [(point, 3), (point, 1)]) {
                    write_catalog(&rig.catalog(), &at(&ports[..instances], &tags));
                    let catalog = rig.catalog().display().to_string();
                    let gate = http.as_ref().map(|(gate, _)| gate);
                    let hold = |point| if is_socket { socket.hold(point) } else { gate.unwrap().hold(point) };
                    let is_holding = || if is_socket { socket.is_holding() } else { gate.unwrap().is_holding() };
                    hold(Some(point));
                    let pass = RefCell::new(Group::spawn(&mut command(env, &["apply", "--catalog", &catalog])));
                    let what = format!("{point:?} to be reached, or the end");
                    held += wait_for(&what, Duration::from_secs(30), async || {
                        if is_holding() { Some(1) } else { pass.borrow_mut().exited().map(|_| 0) }
                    })
                    .await;
                    pass.borrow_mut().kill();
                    hold(None);
                    let on = format!("HAProxy {series}, {way:?}, {point:?}");
                    apply(&plain, &rig.catalog()).await;
                    rig.agrees().await;
                    has_only(&rig, instances).await;
                    assert_eq!(checked(&rig).await, instances, "{on}");
                    assert!(apply(&plain, &rig.catalog()).await.contains("Nothing to do"), "{on}");
                    assert_eq!(rig.haproxy.reloads().await, reloads, "{on}");
                }
                kills += held;
                if held == 0 {
                    break;
                }
            }
        }
        assert_eq!(rig.foreign(), foreign);
        assert!(kills >= 30, "HAProxy {series}, {way:?}: {kills} kills");
        eprintln!("HAProxy {series}, {way:?}: {kills} kills");
    }
}

/// A service whose servers speak TCP, and somebody who is connected to its second one for long.
async fn a_server_with_a_connection(rig: Rig, way: Way) {
    let mut env = env(&rig);
    env.push(("NOMAD_HAPROXY_RESYNC_INTERVAL".into(), "1h".into()));
    let on = format!("HAProxy {}, {way:?}", rig.series);
    let catalog = rig.catalog().display().to_string();
    let tags = ["enable=true", "check.disabled"];
    let (first, third) = (Plain::start().await, Plain::start().await);
    let second = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ports = [first.port(), second.local_addr().unwrap().port(), third.port()];
    write_catalog(&rig.catalog(), &at(&ports[..1], &tags));
    let mut controller = Controller::start(&env, &["--catalog", &catalog]);
    controller.wait_until_ready().await;
    let (reloads, worker) = (rig.haproxy.reloads().await, rig.haproxy.worker().await);
    write_catalog(&rig.catalog(), &at(&ports[..2], &tags));
    rig.haproxy.wait_for_state("api/api_2", "ready").await;
    // A request that is never answered, to each of the two.
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", rig.haproxy.port)).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n").await.unwrap();
        held.push(stream);
    }
    let answering = second.accept().await.unwrap();
    // The instance is gone: its line is, too, and the server stays in maintenance.
    write_catalog(&rig.catalog(), &at(&ports[..1], &tags));
    rig.haproxy.wait_for_state("api/api_2", "maint").await;
    wait_for("the line to be gone", Duration::from_secs(10), async || {
        (!rig.haproxy.text().contains("server api_2")).then_some(())
    })
    .await;
    // The controller does not forget it, and neither does one that is started later. Its name is not given away.
    controller.kill();
    let controller = Controller::start(&env, &["--catalog", &catalog]);
    controller.wait_until_ready().await;
    write_catalog(&rig.catalog(), &at(&[ports[0], ports[2]], &tags));
    rig.haproxy.wait_for_state("api/api_3", "ready").await;
    assert_eq!(rig.haproxy.state("api/api_2").await, "maint", "{on}");
    let address = &rig.haproxy.running().await["api/api_2"].address;
    assert_eq!(*address, format!("127.0.0.1:{}", ports[1]), "{on}: the connection stays where it is");
    for stream in &held {
        assert!(stream.try_read(&mut [0; 8]).is_err(), "{on}: the connection is open");
    }
    rig.agrees().await;
    drop((answering, second));
    wait_for("the server to be gone", Duration::from_secs(20), async || {
        (rig.haproxy.state("api/api_2").await == "missing").then_some(())
    })
    .await;
    has_only(&rig, 2).await;
    assert_eq!((rig.haproxy.reloads().await, rig.haproxy.worker().await), (reloads, worker), "{on}");
}

everywhere! {
    a_server_that_somebody_is_connected_to_stays_in_maintenance_until_it_is_free, a_server_with_a_connection
}

/// What was written with spare servers, before there was a socket, loses them without a reload; each instance keeps its
/// name.
#[tokio::test(flavor = "multi_thread")]
async fn spare_servers_go_without_a_reload_once_there_is_a_socket() {
    for series in matrix() {
        let rig = Rig::start(Way::Api, series).await;
        let tags = ["enable=true", "check.interval=1h"];
        write_catalog(&rig.catalog(), &at(&[2001, 2002, 2003], &tags));
        apply(&rig.env(), &rig.catalog()).await;
        write_catalog(&rig.catalog(), &at(&[2003], &tags));
        apply(&rig.env(), &rig.catalog()).await;
        let lines = |text: &str| text.lines().filter(|line| line.contains("server api_")).count();
        assert!(lines(&rig.haproxy.text()) > 3, "{}", rig.haproxy.text());
        let (reloads, worker) = (rig.haproxy.reloads().await, rig.haproxy.worker().await);
        let said = apply(&env(&rig), &rig.catalog()).await;
        assert!(said.contains("no reload"), "{said}");
        has_only(&rig, 1).await;
        assert!(rig.haproxy.text().contains("server api_3 127.0.0.1:2003"), "{}", rig.haproxy.text());
        rig.agrees().await;
        // Without the socket they come back with the next change that takes a reload.
        assert!(apply(&env(&rig), &rig.catalog()).await.contains("Nothing to do"));
        assert_eq!((rig.haproxy.reloads().await, rig.haproxy.worker().await), (reloads, worker), "HAProxy {series}");
    }
}
