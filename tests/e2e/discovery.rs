//! HAProxys that register in Nomad: they are found, followed while services change, and forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::support::api::{self, Rig, Way};
use crate::support::controller::{Controller, Env, run, stderr, stdout};
use crate::support::gate::{Gate, Point};
use crate::support::haproxy::{has_backend, matrix};
use crate::support::load;
use crate::support::nomad::{Nomad, job};
use crate::support::servers::Server;
use crate::support::{tls, wait_for};
use reqwest::Method;
use serde_json::{Value, json};

/// The service that the edges register.
const EDGES: &str = "edge-api";

/// A job that registers an API which the test runs; its task does nothing.
fn registers(name: &str, address: &str, port: &str) -> Value {
    let mut job = job(name, 1, &[], None);
    let service = json!({"Name": EDGES, "Provider": "nomad", "Address": address, "PortLabel": port});
    job["TaskGroups"][0]["Services"] = json!([service]);
    job["TaskGroups"][0]["Networks"] = json!([]);
    job
}

/// The port of a rig's API.
fn port(rig: &Rig) -> &str {
    rig.api.as_ref().unwrap().url.rsplit_once(':').unwrap().1
}

async fn register(nomad: &Nomad, name: &str, rig: &Rig) {
    nomad.submit(registers(name, "127.0.0.1", port(rig))).await;
}

/// Settings that name no HAProxy, only the service. A resync is far away: what happens is by events.
fn env(nomad: &Nomad, more: &[(&str, &str)]) -> Env {
    let settings = [
        ("NOMAD_ADDR", nomad.address.as_str()),
        ("HAPROXY_SERVICE", EDGES),
        ("HAPROXY_PASSWORD", "secret"),
        ("NOMAD_HAPROXY_RESYNC_INTERVAL", "1h"),
    ];
    settings.iter().chain(more).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// The name under which the controller has found the HAProxy with this API.
async fn name_of(controller: &Controller, port: &str) -> String {
    let wanted: u64 = port.parse().unwrap();
    wait_for(&format!("the HAProxy with the API on port {port}"), Duration::from_secs(30), async || {
        let events = controller.events();
        let mut found = events.iter().filter(|event| event["message"] == "a HAProxy is registered");
        let event = found.find(|event| event["port"] == wanted)?;
        event["haproxy"].as_str().map(str::to_owned)
    })
    .await
}

/// Servers of ours that take traffic.
fn seated(rig: &Rig) -> usize {
    rig.haproxy.text().lines().filter(|line| line.contains("\"id\":") && !line.contains("disabled")).count()
}

async fn wait_for_seats(rig: &Rig, seats: usize) {
    wait_for(&format!("{seats} servers in service"), Duration::from_secs(30), async || {
        (seated(rig) == seats).then_some(())
    })
    .await;
}

/// Waits until file and process have as many instances of these services in service, and checks that they agree.
async fn wait_until_in_line(rig: &Rig, services: &[&str], seats: usize) {
    wait_for_seats(rig, seats).await;
    wait_for(&format!("{seats} servers in the process"), Duration::from_secs(30), async || {
        let running = rig.haproxy.running().await;
        let ready = running.iter().filter(|(name, server)| {
            server.state() == "ready" && services.iter().any(|service| name.starts_with(&format!("{service}/")))
        });
        (ready.count() == seats).then_some(())
    })
    .await;
    rig.agrees().await;
}

/// The lines of the log that are errors.
fn errors(controller: &Controller) -> Vec<String> {
    let errors = controller.events().into_iter().filter(|event| event["level"] == "ERROR");
    errors.map(|event| event.to_string()).collect()
}

/// It is in no answer of the controller.
async fn wait_until_forgotten(controller: &Controller, name: &str) {
    wait_for(&format!("{name} to be forgotten"), Duration::from_secs(30), async || {
        let is_unknown = controller.http(&format!("/readyz?haproxy={name}")).await.0 == 404;
        let metrics = controller.http("/metrics").await.1;
        (is_unknown && !metrics.contains(&format!("haproxy=\"{name}\""))).then_some(())
    })
    .await;
}

/// A listener that nobody should connect to, and how many did.
async fn trap() -> (String, Arc<AtomicU32>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let connections = Arc::new(AtomicU32::new(0));
    let counted = connections.clone();
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    (port, connections)
}

#[tokio::test(flavor = "multi_thread")]
async fn edges_come_and_go_while_services_churn() {
    eprintln!("on {}", api::which());
    let nomad = Nomad::start().await;
    let series: Vec<&str> = matrix().into_iter().cycle().take(3).collect();
    let first = Rig::start(Way::Api, series[0]).await;
    let mut leaving = Rig::start(Way::Api, series[1]).await;
    let late = Rig::start(Way::Api, series[2]).await;
    register(&nomad, "first", &first).await;
    register(&nomad, "leaving", &leaving).await;
    // Of the same name, but in another namespace; and some that are no API.
    let (port_elsewhere, connections) = trap().await;
    nomad.call(Method::POST, "/v1/namespace/team-a", Some(json!({"Name": "team-a"}))).await;
    let mut elsewhere = registers("elsewhere", "127.0.0.1", &port_elsewhere);
    elsewhere["Namespace"] = "team-a".into();
    nomad.submit(elsewhere).await;
    nomad.submit(registers("twin", "127.0.0.1", port(&first))).await;
    nomad.submit(registers("bad-port", "127.0.0.1", "99999")).await;
    nomad.submit(registers("bad-address", "no address", "5555")).await;
    nomad.submit(job("app", 2, &["enable=true", "check.disabled"], None)).await;
    nomad.wait_for_instances("app", 2).await;
    nomad.wait_for_instances(EDGES, 5).await;

    let mut controller = Controller::start(&env(&nomad, &[]), &[]);
    controller.wait_until_ready().await;
    for rig in [&first, &leaving] {
        assert_eq!(seated(rig), 2);
        let name = name_of(&controller, port(rig)).await;
        assert_eq!(controller.http(&format!("/readyz?haproxy={name}")).await.0, 200);
    }
    let known = controller.events().iter().filter(|event| event["message"] == "a HAProxy is registered").count();
    assert_eq!(known, 2);

    register(&nomad, "late", &late).await;
    for count in [3, 1, 4] {
        nomad.scale("app", count).await;
        nomad.wait_for_instances("app", count as usize).await;
    }
    wait_for_seats(&late, 4).await;
    let left = name_of(&controller, port(&leaving)).await;
    nomad.scale("leaving", 0).await;
    wait_for("its registration to be gone", Duration::from_secs(30), async || {
        (nomad.service(EDGES).await.len() == 5).then_some(())
    })
    .await;
    leaving.api.as_mut().unwrap().kill();
    for count in [2, 5, 3] {
        nomad.scale("app", count).await;
        nomad.wait_for_instances("app", count as usize).await;
    }
    wait_until_forgotten(&controller, &left).await;
    let as_it_was = leaving.haproxy.bytes();
    nomad.submit(job("new", 1, &["enable=true", "check.disabled"], None)).await;
    for rig in [&first, &late] {
        wait_for("the new service", Duration::from_secs(30), async || {
            has_backend(&rig.haproxy.text(), "new").then_some(())
        })
        .await;
        wait_until_in_line(rig, &["app", "new"], 4).await;
    }
    assert_eq!(leaving.haproxy.bytes(), as_it_was);
    assert_eq!(controller.http("/readyz").await, (200, "ok\n".to_owned()));

    let errors = errors(&controller);
    assert_eq!(errors.len(), 3, "one for each that cannot be used: {errors:#?}");
    for bad in ["99999", "5555", "another one has its address and port"] {
        let about = errors.iter().filter(|error| error.contains(bad) && error.contains("cannot be used"));
        assert_eq!(about.count(), 1, "{bad} in {errors:#?}");
    }
    assert_eq!(controller.stop().await.code(), Some(0));
    assert!(!controller.log().contains("WARN"), "{}", controller.log());
    assert_eq!(connections.load(Ordering::SeqCst), 0, "a service of another namespace got a connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_over_an_edge_that_leaves_is_dropped_without_an_error() {
    let nomad = Nomad::start().await;
    let (stays, leaves) = (Rig::start(Way::Api, "3.2").await, Rig::start(Way::Api, "3.0").await);
    let (gate, url) = Gate::start(&leaves.api.as_ref().unwrap().url).await;
    let gated = url.rsplit_once(':').unwrap().1;
    register(&nomad, "stays", &stays).await;
    nomad.submit(registers("leaves", "127.0.0.1", gated)).await;
    nomad.wait_for_instances(EDGES, 2).await;
    let mut controller = Controller::start(&env(&nomad, &[]), &[]);
    controller.wait_until_ready().await;
    let name = name_of(&controller, gated).await;
    // A pass that hangs in the middle.
    gate.hold(Some(Point::Before(1)));
    nomad.submit(job("app", 1, &["enable=true", "check.disabled"], None)).await;
    wait_for_seats(&stays, 1).await;
    wait_for("the pass to hang", Duration::from_secs(20), async || gate.is_holding().then_some(())).await;
    nomad.stop_job("leaves").await;
    wait_until_forgotten(&controller, &name).await;
    nomad.scale("app", 2).await;
    wait_for_seats(&stays, 2).await;
    assert!(!leaves.haproxy.text().contains("app_1"));
    // A pass that still hung would be cut short now, with a warning.
    assert_eq!(controller.stop().await.code(), Some(0));
    let logged = controller.log();
    assert!(!logged.contains("ERROR") && !logged.contains("WARN"), "{logged}");
}

#[tokio::test(flavor = "multi_thread")]
async fn plan_and_apply_are_about_all_edges_or_one() {
    let nomad = Nomad::start().await;
    let nothing = run(&env(&nomad, &[]), &["plan"]).await;
    assert!(!nothing.status.success());
    assert!(stderr(&nothing).contains("no HAProxy is registered"), "{}", stderr(&nothing));

    let rigs = [Rig::start(Way::Api, "3.2").await, Rig::start(Way::Api, "3.0").await];
    for (at, rig) in rigs.iter().enumerate() {
        register(&nomad, &format!("edge-{at}"), rig).await;
    }
    nomad.submit(job("app", 1, &["enable=true", "check.disabled"], None)).await;
    nomad.wait_for_instances("app", 1).await;
    nomad.wait_for_instances(EDGES, 2).await;
    let planned = run(&env(&nomad, &[]), &["plan", "--detailed-exitcode"]).await;
    assert_eq!(planned.status.code(), Some(2), "{}", stderr(&planned));
    let planned = stdout(&planned);
    let names: BTreeSet<&str> = planned.lines().filter_map(|line| line.strip_prefix("# HAProxy ")).collect();
    assert_eq!((names.len(), planned.matches("+backend app").count()), (2, 2), "{planned}");

    // The first is named by its node, the second by its port, too.
    let node = nomad.call(Method::GET, "/v1/nodes", None).await[0]["Name"].as_str().unwrap().to_owned();
    assert!(names.contains(node.as_str()) && names.iter().all(|name| name.starts_with(&node)), "{names:?}");
    let wrong = stderr(&run(&env(&nomad, &[]), &["plan", "--haproxy", "nobody"]).await);
    assert!(wrong.contains("no HAProxy is called") && wrong.contains(&node), "{wrong}");
    let one = run(&env(&nomad, &[]), &["apply", "--haproxy", &node]).await;
    assert!(one.status.success(), "{}", stderr(&one));
    assert_eq!(rigs.iter().map(seated).sum::<usize>(), 1);
    let all = run(&env(&nomad, &[]), &["apply"]).await;
    assert!(all.status.success(), "{}", stderr(&all));
    assert_eq!(rigs.each_ref().map(seated), [1, 1]);
    for rig in &rigs {
        rig.agrees().await;
    }

    // One of them is in the settings, too: it is one HAProxy, of that name.
    let fixed = json!({"name": "fixed", "address": format!("{}/", rigs[0].api.as_ref().unwrap().url)});
    let settings = json!({"haproxy": [fixed, {"service": EDGES}]}).to_string();
    let file = rigs[0].haproxy.folder().join("settings.json");
    std::fs::write(&file, settings).unwrap();
    let mut env = env(&nomad, &[]);
    env.retain(|(key, _)| key != "HAPROXY_SERVICE");
    let both = run(&env, &["plan", "--config", file.to_str().unwrap(), "--detailed-exitcode"]).await;
    assert_eq!(both.status.code(), Some(0), "{}", stderr(&both));
    let headings = stdout(&both).lines().filter(|line| line.starts_with("# HAProxy ")).map(str::to_owned).collect();
    let expected: BTreeSet<String> = ["fixed".to_owned(), node].map(|name| format!("# HAProxy {name}")).into();
    assert_eq!((headings, stderr(&both).matches("the settings name its HAProxy").count()), (expected, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn edges_behind_tls_are_checked_against_the_ca() {
    let nomad = Nomad::start().await;
    let rig = Rig::start(Way::Api, "3.2").await;
    let folder = rig.haproxy.folder();
    tls::certificates(folder);
    let (_front, [https, ..]) = tls::front(folder, &rig.api.as_ref().unwrap().url);
    wait_for("the second HAProxy", Duration::from_secs(20), async || {
        tokio::net::UnixStream::connect(folder.join("api.sock")).await.ok().map(drop)
    })
    .await;
    nomad.submit(registers("edge", "127.0.0.1", https.rsplit_once(':').unwrap().1)).await;
    nomad.submit(job("app", 1, &["enable=true", "check.disabled"], None)).await;
    nomad.wait_for_instances("app", 1).await;
    nomad.wait_for_instances(EDGES, 1).await;
    let file = |name: &str| folder.join(name).display().to_string();
    for (ca, words) in [
        (None, ["not trusted", "haproxy.ca_file"]),
        (Some("other.pem"), ["not trusted", "haproxy.ca_file"]),
        (Some("none.pem"), ["none.pem", "No such file"]),
    ] {
        let ca = ca.map(&file).unwrap_or_default();
        let env = env(&nomad, &[("HAPROXY_TLS", "true"), ("HAPROXY_CA_FILE", &ca)]);
        let refused = run(&env, &["apply"]).await;
        let said = stdout(&refused) + &stderr(&refused);
        assert!(!refused.status.success() && words.iter().all(|word| said.contains(word)), "{words:?} in: {said}");
    }
    assert_eq!(seated(&rig), 0);

    let other = Controller::start(&env(&nomad, &[("HAPROXY_CA_FILE", &file("other.pem"))]), &[]);
    wait_for("a line about the CA", Duration::from_secs(20), async || {
        errors(&other).iter().any(|error| error.contains("haproxy.ca_file")).then_some(())
    })
    .await;
    assert_eq!(other.http("/readyz").await.0, 503);
    let controller = Controller::start(&env(&nomad, &[("HAPROXY_CA_FILE", &file("ca.pem"))]), &[]);
    controller.wait_until_ready().await;
    wait_for_seats(&rig, 1).await;
    assert_eq!(errors(&controller), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_nomad_forgets_no_edge() {
    let nomad = Nomad::start_server().await;
    let _client = nomad.join("edge").await;
    let rigs = [Rig::start(Way::Api, "3.2").await, Rig::start(Way::Api, "3.0").await];
    for (at, rig) in rigs.iter().enumerate() {
        register(&nomad, &format!("edge-{at}"), rig).await;
    }
    nomad.submit(job("app", 2, &["enable=true", "check.disabled"], None)).await;
    nomad.wait_for_instances("app", 2).await;
    nomad.wait_for_instances(EDGES, 2).await;
    let (gate, url) = Gate::start(&nomad.address).await;
    let env = env(&nomad, &[("NOMAD_ADDR", &url), ("NOMAD_HAPROXY_RESYNC_INTERVAL", "1s")]);
    let controller = Controller::start(&env, &[]);
    controller.wait_until_ready().await;
    let mut names = Vec::new();
    for rig in &rigs {
        names.push(name_of(&controller, port(rig)).await);
    }
    // Only the registrations of the edges cannot be read: both go on with all services.
    for (seats, (status, answer)) in (3..).zip([(500, "rpc error"), (403, "Permission denied"), (200, "[]")]) {
        gate.interfere(Some(Box::new(move |_, uri| uri.path().ends_with(EDGES).then(|| (status, answer.to_owned())))));
        let reads = || gate.calls().iter().filter(|call| call.contains(EDGES)).count();
        let known = reads();
        nomad.scale("app", seats).await;
        for rig in &rigs {
            wait_for_seats(rig, seats as usize).await;
        }
        wait_for("a read of the edges", Duration::from_secs(60), async || (reads() > known).then_some(())).await;
    }
    gate.interfere(None);
    wait_for("the edges to be read", Duration::from_secs(60), async || {
        controller.log().contains("reading the HAProxys of a service again").then_some(())
    })
    .await;
    controller.wait_until_ready().await;
    let before = rigs.each_ref().map(|rig| rig.haproxy.bytes());

    nomad.crash();
    let second = Controller::start(&env, &[]);
    let (status, said) = second.http("/readyz").await;
    assert!(status == 503 && said.contains("haproxy.service"), "{said}");
    wait_for("failing passes over both", Duration::from_secs(60), async || {
        let (status, said) = controller.http("/readyz").await;
        let both = names.iter().all(|name| said.lines().any(|line| line.starts_with(&format!("{name}: not ready"))));
        (status == 503 && both && said.lines().all(|line| line.contains("stage catalog"))).then_some(())
    })
    .await;
    assert_eq!(rigs.each_ref().map(|rig| rig.haproxy.bytes()), before);
    assert_eq!(controller.http("/healthz").await.0, 200);
    nomad.launch().await;
    for one in [&controller, &second] {
        wait_for("both to be in line again", Duration::from_secs(60), async || {
            (one.http("/readyz").await.0 == 200).then_some(())
        })
        .await;
    }
    drop(second);
    nomad.scale("app", 2).await;
    for rig in &rigs {
        wait_for_seats(rig, 2).await;
    }
    let again = || controller.log().matches("reading the HAProxys of a service again").count();
    wait_for("the end of the second outage", Duration::from_secs(60), async || (again() > 1).then_some(())).await;
    let logged = controller.log();
    assert!(!logged.contains("no longer registered"), "{logged}");
    assert_eq!(again(), 2, "once for each outage: {logged}");
    // 500, denied, no Nomad (an answer without an index), and no answer; maybe no leader at the restart.
    assert!((4..=6).contains(&logged.matches("those known stay").count()), "{logged}");
}

/// Each allocation of a job that runs: its node's name, and its ports by label.
async fn allocations(nomad: &Nomad, job: &str) -> BTreeMap<String, BTreeMap<String, u16>> {
    let list = nomad.call(Method::GET, &format!("/v1/job/{job}/allocations"), None).await;
    let mut all = BTreeMap::new();
    for one in list.as_array().unwrap().iter().filter(|one| one["ClientStatus"] == "running") {
        let path = format!("/v1/allocation/{}", one["ID"].as_str().unwrap());
        let ports = nomad.call(Method::GET, &path, None).await["AllocatedResources"]["Shared"]["Ports"].clone();
        let port =
            |port: &Value| (port["Label"].as_str().unwrap().to_owned(), port["Value"].to_string().parse().unwrap());
        let ports = ports.as_array().unwrap().iter().map(port).collect();
        all.insert(one["NodeName"].as_str().unwrap().to_owned(), ports);
    }
    all
}

/// Waits until the HAProxy on this node routes a host to its service.
async fn wait_for_route(nomad: &Nomad, node: &str, host: &str) {
    let client = reqwest::Client::new();
    wait_for(&format!("{node} to route {host}"), Duration::from_secs(60), async || {
        let port = *allocations(nomad, "haproxy").await.get(node)?.get("http")?;
        load::get(&client, port, host).await.ok().filter(|(status, body)| *status == 200 && body == host).map(drop)
    })
    .await;
}

/// The system job of deploy/, as it is: HAProxy and its API on each node.
#[tokio::test(flavor = "multi_thread")]
async fn the_edges_of_a_system_job_follow_the_nodes() {
    let Some(dataplaneapi) = api::real() else {
        eprintln!("not looked at: the system job starts a real Data Plane API (DATAPLANEAPI_BIN)");
        return;
    };
    let nomad = Nomad::start_server().await;
    let _stays = nomad.join("edge-1").await;
    let _leaves = nomad.join("edge-2").await;
    let credentials = json!({"Path": "nomad/jobs/haproxy", "Items": {"username": "admin", "password": "s3cr: \"et"}});
    nomad.call(Method::PUT, "/v1/var/nomad/jobs/haproxy", Some(credentials)).await;
    let mut submit = Command::new(crate::support::nomad::binary().unwrap());
    submit.args(["job", "run", "-detach", "-var", "driver=raw_exec", "-var", "bind=127.0.0.1", "-var", "http_port=0"]);
    submit.arg("-var").arg(format!("haproxy={}", crate::support::haproxy::binary("3.2").unwrap().display()));
    submit.arg("-var").arg(format!("dataplaneapi={}", dataplaneapi.display()));
    submit.arg(crate::support::root().join("deploy/haproxy.nomad.hcl")).env("NOMAD_ADDR", &nomad.address);
    tokio::task::spawn_blocking(move || crate::support::haproxy::output(&mut submit)).await.unwrap();
    wait_for("the APIs of both to listen", Duration::from_secs(60), async || {
        let registered = nomad.service("haproxy-api").await;
        for one in &registered {
            let port = u16::try_from(one["Port"].as_u64()?).ok()?;
            drop(tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?);
        }
        (registered.len() == 2).then_some(())
    })
    .await;

    let hello = Server::start("hello").await;
    let routed = |name: &str, port: u16| {
        let mut job = on_first_node(job(name, 1, &["enable=true", "check.disabled"], None));
        let service = &mut job["TaskGroups"][0]["Services"][0];
        (service["Address"], service["PortLabel"]) = ("127.0.0.1".into(), port.to_string().into());
        job
    };
    nomad.submit(routed("hello", hello.port())).await;
    nomad.submit(on_first_node(job("churn", 2, &["enable=true", "check.disabled"], None))).await;
    let settings = [("HAPROXY_SERVICE", "haproxy-api"), ("HAPROXY_PASSWORD", "s3cr: \"et")];
    let mut controller = Controller::start(&env(&nomad, &settings), &[]);
    wait_for_route(&nomad, "edge-1", "hello").await;
    wait_for_route(&nomad, "edge-2", "hello").await;
    controller.wait_until_ready().await;
    assert_eq!(errors(&controller), Vec::<String>::new());

    let _comes = nomad.join("edge-3").await;
    for count in [4, 1, 3] {
        nomad.scale("churn", count).await;
        nomad.wait_for_instances("churn", count as usize).await;
    }
    wait_for_route(&nomad, "edge-3", "hello").await;
    let nodes = nomad.call(Method::GET, "/v1/nodes", None).await;
    let node = nodes.as_array().unwrap().iter().find(|node| node["Name"] == "edge-2").unwrap()["ID"].clone();
    let drain = json!({"DrainSpec": {"Deadline": -1, "IgnoreSystemJobs": false}});
    nomad.call(Method::POST, &format!("/v1/node/{}/drain", node.as_str().unwrap()), Some(drain)).await;
    for count in [2, 5, 4] {
        nomad.scale("churn", count).await;
        nomad.wait_for_instances("churn", count as usize).await;
    }
    wait_until_forgotten(&controller, "edge-2").await;
    let new = Server::start("new").await;
    nomad.submit(routed("new", new.port())).await;
    for node in ["edge-1", "edge-3"] {
        wait_for_route(&nomad, node, "new").await;
        let seated = format!("nomad_haproxy_slots{{haproxy=\"{node}\",state=\"seated\"}}");
        wait_for(&format!("six instances on {node}"), Duration::from_secs(20), async || {
            (format!("{:.0}", controller.metric(&seated).await) == "6").then_some(())
        })
        .await;
    }
    controller.wait_until_ready().await;
    // The API of a new edge may not listen yet when it is registered.
    let errors = errors(&controller);
    let others = errors.iter().filter(|error| !(error.contains("edge-3") && error.contains("does not answer")));
    assert_eq!(others.count(), 0, "{errors:#?}");
    assert_eq!(controller.stop().await.code(), Some(0));
    assert!(!controller.log().contains("s3cr"));
}

/// A node that leaves takes none of these with it.
fn on_first_node(mut job: Value) -> Value {
    job["Constraints"] = json!([{"LTarget": "${node.unique.name}", "RTarget": "edge-1", "Operand": "="}]);
    job
}
