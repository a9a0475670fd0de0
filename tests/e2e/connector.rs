//! The move from haproxy-nomad-connector, as docs/connector.md has it: from the file that it wrote, with requests and a
//! connection through it all the time. The file was recorded from the real one (d6c7495) on the real Data Plane API 3.2;
//! only its `_md5hash` line, the path of its socket and the port of its frontend differ.

use std::path::Path;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::api::{Rig, WAYS, Way};
use crate::support::controller::{Env, binary, registration, run, stderr, stdout, write_catalog};
use crate::support::docs::Page;
use crate::support::haproxy::{Haproxy, foreign_meaning, has_backend, matrix};
use crate::support::load::Load;
use crate::support::routes::maps_agree;
use crate::support::servers::{Recorder, Server};
use crate::support::wait_for;

const WRITTEN: &str = include_str!("../../fixtures/connector/connector.cfg");
const ADOPT: [&str; 2] = ["--adopt", "haproxy-nomad-connector"];
/// What a person added since, or has beside it.
const BY_HAND: &str = "\nbackend legacy from base\n  # not of Nomad\n  timeout server 7s\n  server legacy_1 127.0.0.1:9 weight 3 # mine\n";
/// The services of the recording, with the ports that their instances had, and their tags.
const SERVICES: [(&str, &[u16], &[&str]); 7] = [
    ("api-service", &[29909, 23693], &["backend=dynamic", "domain=api.example.com", "check.path=/health"]),
    ("pages", &[27850, 27192], &[]),
    ("plain", &[30652], &["check.disabled"]),
    ("prefix", &[30120], &["domain=pre", "domain.type=prefix"]),
    ("regex", &[22300], &["domain=^r[0-9]\\.example\\.com$", "domain.type=regex"]),
    ("shop", &[31509], &["backend=custom"]),
    ("tcp", &[24102], &["check.type=tcp"]),
];

/// A host for each kind of rule, and one for none, and the service that answers.
const HOSTS: [(&str, &str); 4] =
    [("api.example.com", "api-service"), ("r1.example.com", "regex"), ("pre", "prefix"), ("any.example.com", "shop")];

/// The instances, each on the port that it has here.
struct Instances {
    servers: Vec<(u16, Server)>,
    /// The one of `regex`, which can hold a connection open.
    recorder: Recorder,
}

impl Instances {
    async fn start() -> Self {
        let mut servers = Vec::new();
        for (service, ports, _) in SERVICES.iter().filter(|(service, ..)| *service != "regex") {
            for port in *ports {
                servers.push((*port, Server::start(service).await));
            }
        }
        Self { servers, recorder: Recorder::start("regex", "200 OK").await }
    }

    fn port(&self, recorded: u16) -> u16 {
        let server = self.servers.iter().find(|(port, _)| *port == recorded);
        server.map_or(self.recorder.port(), |(_, server)| server.port())
    }

    /// The recorded text with the ports of here: in the addresses, and in the names that are made of them.
    fn text(&self, folder: &Path, port: u16) -> String {
        let recorded: Vec<u16> = SERVICES.iter().flat_map(|(_, ports, _)| ports.iter().copied()).collect();
        let marked = recorded
            .iter()
            .fold(WRITTEN.to_owned(), |text, port| text.replace(&port.to_string(), &format!("<{port}>")));
        let text = recorded
            .iter()
            .fold(marked, |text, port| text.replace(&format!("<{port}>"), &self.port(*port).to_string()));
        let text = text.replace("/run/haproxy/stats.sock", &folder.join("stats.sock").display().to_string());
        text.replace("bind 127.0.0.1:8080", &format!("bind 127.0.0.1:{port}")) + BY_HAND
    }

    fn registrations(&self) -> Vec<Value> {
        let mut all = Vec::new();
        for (service, ports, tags) in SERVICES {
            let tags = [&["enable=true"], tags].concat();
            for recorded in ports {
                all.push(registration(
                    service,
                    &recorded.to_string(),
                    u64::from(*recorded),
                    self.port(*recorded),
                    &tags,
                ));
            }
        }
        all
    }
}

/// A HAProxy that the connector was in charge of, and what it sends requests to.
struct Scene {
    rig: Rig,
    instances: Instances,
    env: Env,
}

impl Scene {
    async fn start(series: &str, way: Way) -> Self {
        let instances = Instances::start().await;
        let haproxy = Haproxy::start_with(series, |folder, port| instances.text(folder, port)).await;
        let rig = Rig::with(way, series, haproxy).await;
        write_catalog(&rig.catalog(), &instances.registrations());
        let env = rig.env_with(&[("HAPROXY_FRONTEND", "web")]);
        Self { rig, instances, env }
    }

    /// A command that must succeed, with the catalog.
    async fn says(&self, arguments: &[&str]) -> String {
        let catalog = self.rig.catalog().display().to_string();
        let output = run(&self.env, &[arguments, &["--catalog", &catalog]].concat()).await;
        assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
        stdout(&output)
    }

    /// What a person types, in the folder of HAProxy.
    async fn types(&self, block: &str) -> String {
        let catalog = self.rig.catalog().display().to_string();
        let lines = block.lines().map(|line| match line.starts_with("nomad-haproxy ") {
            true => format!("{line} --catalog {catalog}\n"),
            false => format!("{line}\n"),
        });
        let folder = binary().parent().unwrap().display().to_string();
        let path = format!("{folder}:{}", std::env::var("PATH").unwrap());
        let mut command = tokio::process::Command::new("sh");
        command.args(["-ec", &lines.collect::<String>()]).envs(self.env.clone()).env("PATH", path);
        let output = command.current_dir(self.rig.haproxy.folder()).output().await.unwrap();
        assert!(output.status.success(), "{block}{}{}", stdout(&output), stderr(&output));
        stdout(&output)
    }

    /// Requests for a host that goes to each kind of rule, and to none.
    fn load(&self) -> Vec<Load> {
        HOSTS.iter().map(|(host, _)| Load::start(self.rig.haproxy.port, host, 20)).collect()
    }

    /// A second pass does nothing, whether or not it is asked to take over.
    async fn is_done(&self) {
        let (text, reloads) = (self.rig.haproxy.text(), self.rig.haproxy.reloads().await);
        for more in [&[][..], &ADOPT] {
            let plan = self.says(&[&["plan"], more].concat()).await;
            assert!(plan.ends_with("No changes: HAProxy is in line with the catalog.\n"), "{plan}");
            assert!(self.says(&[&["apply"], more].concat()).await.contains("Nothing to do"));
        }
        assert_eq!((self.rig.haproxy.text(), self.rig.haproxy.reloads().await), (text, reloads));
    }

    /// Every instance is in service, once, on a server of ours.
    async fn serves_all(&self) {
        let running = self.rig.haproxy.running().await;
        for (service, ports, _) in SERVICES {
            let backend = service.replace('-', "_");
            for recorded in ports {
                let address = format!("127.0.0.1:{}", self.instances.port(*recorded));
                let serving: Vec<_> =
                    running.iter().filter(|(_, one)| one.address == address && one.state() == "ready").collect();
                let [(name, _)] = serving.as_slice() else { panic!("{address} of {service}: {serving:?}") };
                assert!(
                    name.starts_with(&format!("{backend}/{backend}_")) && name.len() < backend.len() * 2 + 5,
                    "{name}"
                );
            }
        }
    }
}

/// A connection that is upgraded, and answered by nothing more: it is open as long as nobody closes it.
async fn tunnel(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = "GET /tunnel HTTP/1.1\r\nHost: r1.example.com\r\nUpgrade: raw\r\nConnection: Upgrade\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 1024];
    let read = stream.read(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    stream
}

async fn is_open(stream: &mut TcpStream, recorder: &Recorder) {
    stream.write_all(b"still here").await.unwrap();
    wait_for("what is sent on the open connection to arrive", std::time::Duration::from_secs(10), async || {
        recorder.seen().iter().any(|seen| seen.ends_with("still here")).then_some(())
    })
    .await;
}

/// How many requests there were; each one that failed, and each answer of a service that has another host.
fn sum(loads: &[Load]) -> (usize, Vec<String>) {
    let tallies = loads.iter().zip(HOSTS).map(|(load, (host, service))| {
        let mut tally = load.tally();
        let astray = tally.by_answer.keys().filter(|answer| *answer != service);
        tally.failed.extend(astray.map(|answer| format!("{host}: answered by {answer}")));
        tally
    });
    tallies
        .fold((0, Vec::new()), |(requests, failed), tally| (requests + tally.requests, [failed, tally.failed].concat()))
}

/// Waits until this many more requests were answered.
async fn some_more(loads: &[Load]) {
    let before = sum(loads).0;
    wait_for("requests", std::time::Duration::from_secs(30), async || (sum(loads).0 >= before + 40).then_some(()))
        .await;
}

/// What a person wrote is there, word for word; the connector's lines are not.
fn is_ours_and_theirs(text: &str) {
    for line in BY_HAND.lines().chain([
        "  default_backend shop",
        "  # one day there will be two",
        "# shop frontends, kept by hand",
    ]) {
        let words = line.split_whitespace().collect::<Vec<_>>().join(" ");
        // API 3.4 keeps a comment after a directive as metadata.
        let words = words.split(" # mine").next().unwrap();
        let is_there = text.lines().any(|line| line.split_whitespace().collect::<Vec<_>>().join(" ").contains(words));
        assert!(is_there, "{words}: {text}");
    }
    for gone in ["_127_0_0_1_", "acl is_", "if is_", "default-server check\n  server shop"] {
        assert!(!text.contains(gone), "{gone}: {text}");
    }
    for (service, ..) in SERVICES.iter().filter(|(service, ..)| *service != "shop") {
        let backend = service.replace('-', "_");
        assert!(text.contains(&format!("description nomad-haproxy:nomad {backend} default/{service}")), "{text}");
    }
    assert!(!text.contains("nomad-haproxy:nomad shop"), "a person's backend stays a person's: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_connector_is_followed_without_a_failure_and_with_one_reload() {
    for series in matrix() {
        for way in WAYS {
            eprintln!("--- HAProxy {series}, {way:?}");
            moved(&Scene::start(series, way).await).await;
        }
    }
}

async fn moved(scene: &Scene) {
    let Scene { rig, instances, .. } = scene;
    let loads = scene.load();
    let mut open = tunnel(rig.haproxy.port).await;
    let (before, reloads) = (rig.haproxy.text(), rig.haproxy.reloads().await);
    let unasked = scene.says(&["plan"]).await;
    assert_eq!(unasked.matches("apply --adopt haproxy-nomad-connector").count(), 1, "{unasked}");
    let plan = scene.says(&[&["plan"], &ADOPT[..]].concat()).await;
    assert!(
        plan.contains("0 backends to create, 7 to change, 0 to delete; instances +0 -0, 9 servers changed"),
        "{plan}"
    );
    assert!(
        plan.contains("one reload.") && plan.matches("taken over from haproxy-nomad-connector").count() == 7,
        "{plan}"
    );
    assert!(plan.contains("\n-  acl is_api_service_d0c43d38 hdr(host) api.example.com\n"), "{plan}");
    assert!(plan.contains("\n-  server shop_127_0_0_1_"), "{plan}");
    assert_eq!(rig.haproxy.text(), before, "a plan writes nothing");
    some_more(&loads).await;

    let said = scene.says(&[&["apply"], &ADOPT[..]].concat()).await;
    assert!(said.contains("Applied: one reload"), "{said}");
    assert_eq!(rig.haproxy.reloads().await, reloads + 1);
    some_more(&loads).await;
    is_open(&mut open, &instances.recorder).await;
    is_ours_and_theirs(&rig.haproxy.text());
    scene.serves_all().await;
    maps_agree(rig).await;
    scene.is_done().await;
    let (requests, failed) = sum(&loads);
    assert_eq!(failed, Vec::<String>::new(), "of {requests}");
    eprintln!("{requests} requests, none failed");

    // It is ours from now on: what has no service goes, and no rule is left that names it.
    let rest: Vec<Value> = instances.registrations().into_iter().filter(|one| one["ServiceName"] != "regex").collect();
    write_catalog(&rig.catalog(), &rest);
    let env = [scene.env.clone(), vec![("NOMAD_HAPROXY_BACKEND_LINGER".to_owned(), "0s".to_owned())]].concat();
    let output = run(&env, &["apply", "--catalog", rig.catalog().to_str().unwrap()]).await;
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
    assert!(!has_backend(&rig.haproxy.text(), "regex"), "{}", rig.haproxy.text());
    rig.haproxy.is_valid();
}

/// Ours serve beside the connector's first: then its lines go, and nothing comes.
#[tokio::test(flavor = "multi_thread")]
async fn who_forgot_to_take_over_can_do_it_later() {
    for way in WAYS {
        let scene = Scene::start("3.2", way).await;
        let loads = scene.load();
        some_more(&loads).await;
        scene.says(&["apply"]).await;
        let reloads = scene.rig.haproxy.reloads().await;
        assert!(scene.rig.haproxy.text().contains("acl is_api_service_d0c43d38"));
        scene.says(&[&["apply"], &ADOPT[..]].concat()).await;
        assert_eq!(scene.rig.haproxy.reloads().await, reloads + 1);
        some_more(&loads).await;
        is_ours_and_theirs(&scene.rig.haproxy.text());
        scene.serves_all().await;
        scene.is_done().await;
        assert_eq!(sum(&loads).1, Vec::<String>::new());
    }
}

/// A server of the connector whose instance is unknown, a line of a person in a backend of it, and a rule of a person.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_connector_did_not_make_for_an_instance_stays() {
    for way in WAYS {
        let scene = Scene::start("3.2", way).await;
        let dead = "  server tcp_127_0_0_1_9 127.0.0.1:9 check\n";
        scene
            .rig
            .edit(|text| {
                let text = text.replace("backend tcp\n", &format!("backend tcp\n{dead}"));
                let text = text.replace("backend pages\n", "backend pages\n  timeout queue 3s\n");
                text.replace(
                    "  default_backend shop\n",
                    "  use_backend legacy if { path /legacy }\n  default_backend shop\n",
                )
            })
            .await;
        let said = scene.says(&[&["apply"], &ADOPT[..]].concat()).await;
        assert!(said.contains("no instance is registered at their addresses: tcp_127_0_0_1_9;"), "{said}");
        assert!(said.contains("2 servers in the backend pages, which stays as it is"), "{said}");
        let text = scene.rig.haproxy.text();
        for line in [dead.trim(), "timeout queue 3s", "option httpchk GET /alive HTTP/1.1", "use_backend legacy if"] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(text.contains("use_backend api_service if is_api_service_d0c43d38"), "{text}");
        scene.serves_all().await;
        assert!(!text.contains("pages_127_0_0_1_") && !text.contains("nomad-haproxy:nomad pages"), "{text}");
    }
}

/// The commands of docs/connector.md, in their order, with the catalog from a file: to there, and back.
#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_page_lead_there_and_back() {
    let scene = Scene::start("3.2", Way::Api).await;
    let blocks = Page::read("docs/connector.md").blocks().into_iter().filter(|block| block.language == "sh");
    let blocks: Vec<String> = blocks.map(|block| block.text).collect();
    let [plan, copy, take_over, check, back] = blocks.as_slice() else { panic!("{blocks:?}") };
    let loads = scene.load();
    let reloads = scene.rig.haproxy.reloads().await;
    some_more(&loads).await;
    assert!(scene.types(plan).await.contains("instances +0 -0"));
    scene.types(copy).await;
    let before = scene.rig.haproxy.text();
    assert!(scene.types(take_over).await.contains("Applied: one reload"));
    is_ours_and_theirs(&scene.rig.haproxy.text());
    let said = scene.types(check).await;
    assert!(said.contains("No changes") && said.contains("api_service_1"), "{said}");
    some_more(&loads).await;
    scene.types(back).await;
    assert_eq!(scene.rig.haproxy.reloads().await, reloads + 2);
    assert_eq!(foreign_meaning(&scene.rig.haproxy.text()), foreign_meaning(&before));
    some_more(&loads).await;
    assert_eq!(sum(&loads).1, Vec::<String>::new());
}
