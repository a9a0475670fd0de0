//! The job files of deploy/: valid as Nomad sees them, and run as their first lines say, on a real agent with ACLs.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::api::{self, Rig, Way};
use crate::support::load::Load;
use crate::support::nomad::{self, Nomad, job};
use crate::support::{controller, haproxy, load, root, wait_for};

/// For Nomad to place, start and check what it was given, on a busy machine.
const SOON: Duration = Duration::from_secs(120);

/// Every job file of deploy/, by itself.
fn job_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(job_files(&path));
        } else if path.to_str().unwrap().ends_with(".nomad.hcl") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The variables that a file is tried with: one set for each driver that it can be run with.
fn variants(file: &Path) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(file).unwrap();
    if !text.contains("variable \"driver\"") {
        return vec![Vec::new()];
    }
    let with = |driver: &str, more: &[&str]| {
        let mut all = vec!["-var".to_owned(), format!("driver={driver}")];
        all.extend(more.iter().map(|word| (*word).to_owned()));
        all
    };
    let image = ["-var", "image=registry.example.com/image:1"];
    vec![with("raw_exec", &[]), with("exec", &[]), with("docker", &image), with("podman", &image)]
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs a command of Nomad to its end, against an agent or none.
async fn command(nomad: Option<&Nomad>, arguments: &[&str]) -> Output {
    let mut command = Command::new(nomad::binary().expect("run `make tools`"));
    command.args(arguments).env_remove("NOMAD_TOKEN").env("NOMAD_ADDR", nomad.map_or("", |nomad| &nomad.address));
    if let Some(token) = nomad.and_then(|nomad| nomad.token.as_ref()) {
        command.env("NOMAD_TOKEN", token);
    }
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

async fn validate(nomad: &Nomad, variables: &[String], file: &Path) {
    let mut arguments = vec!["job", "validate"];
    arguments.extend(variables.iter().map(String::as_str));
    arguments.push(file.to_str().unwrap());
    let output = command(Some(nomad), &arguments).await;
    let said = said(&output);
    assert!(output.status.success() && said.contains("validation successful"), "{arguments:?}: {said}");
    assert!(!said.contains("Warning"), "{arguments:?}: {said}");
}

/// As `nomad job validate` does with a server behind it.
#[tokio::test(flavor = "multi_thread")]
async fn the_jobs_are_valid() {
    let nomad = Nomad::start().await;
    let files = job_files(&root().join("deploy"));
    assert!(files.len() > 3, "{files:?}");
    for file in &files {
        for variables in variants(file) {
            validate(&nomad, &variables, file).await;
        }
    }
    let password = ["-var".to_owned(), "haproxy_password_file=/etc/haproxy/password".to_owned()];
    validate(&nomad, &password, &root().join("deploy/nomad-haproxy.nomad.hcl")).await;
}

/// The tasks of a job file, as Nomad reads it with these variables.
async fn tasks(variables: &[String], file: &Path) -> Vec<Value> {
    let mut arguments = vec!["job", "run", "-output"];
    arguments.extend(variables.iter().map(String::as_str));
    arguments.push(file.to_str().unwrap());
    let output = command(None, &arguments).await;
    assert!(output.status.success(), "{}", said(&output));
    let job: Value = serde_json::from_slice(&output.stdout).unwrap();
    let groups = job["Job"]["TaskGroups"].as_array().unwrap();
    groups.iter().flat_map(|group| group["Tasks"].as_array().unwrap().clone()).collect()
}

/// A driver refuses a task with a key that it does not know, when the task starts and not before: `raw_exec` and `exec`
/// have the first two of these, `docker` and `podman` all, and need `image`.
#[tokio::test]
async fn each_driver_gets_the_keys_that_it_knows() {
    let mut seen = BTreeSet::new();
    for file in job_files(&root().join("deploy")) {
        for variables in variants(&file) {
            let container = variables.iter().any(|word| word.starts_with("image="));
            for task in tasks(&variables, &file).await {
                let of = format!("{} of {} with {variables:?}", task["Name"], file.display());
                let mut keys: Vec<&str> = task["Config"].as_object().unwrap().keys().map(String::as_str).collect();
                seen.insert(task["Driver"].as_str().unwrap().to_owned());
                if container {
                    // The image of the controller alone has it as its entrypoint.
                    let alone = file.ends_with("nomad-haproxy.nomad.hcl");
                    keys.retain(|key| alone || *key != "command");
                    assert_eq!(keys, ["args", "image", "network_mode"], "{of}");
                    assert_eq!(task["Config"]["network_mode"], "host", "{of}");
                } else {
                    assert_eq!(keys, ["args", "command"], "{of}");
                }
            }
        }
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["docker", "exec", "podman", "raw_exec"]);
}

/// The commands in the first lines of a job file.
fn commands(file: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap();
    let lines = text.lines().take_while(|line| line.starts_with('#'));
    lines
        .filter_map(|line| line.strip_prefix("#   "))
        .filter(|line| line.starts_with("nomad "))
        .map(str::to_owned)
        .collect()
}

/// Runs them, in their order and as they are but for these words, with other values for some variables of the job.
async fn run(nomad: &Nomad, commands: &[String], words: &[(&str, &str)], variables: &[(&str, &str)]) {
    let found = nomad::binary().unwrap();
    let path = format!("{}:{}", found.parent().unwrap().display(), std::env::var("PATH").unwrap());
    for text in commands {
        let text = words.iter().fold(text.clone(), |text, (word, with)| text.replace(word, with));
        let text = text.replace("nomad job run ", "nomad job run -detach ");
        let mut shell = Command::new("sh");
        shell.args(["-c", &text]).current_dir(root()).env("PATH", &path).env("NOMAD_ADDR", &nomad.address);
        shell.env("NOMAD_TOKEN", nomad.token.as_ref().unwrap());
        shell.envs(variables.iter().map(|(name, value)| (format!("NOMAD_VAR_{name}"), *value)));
        let output = tokio::task::spawn_blocking(move || shell.output().unwrap()).await.unwrap();
        assert!(output.status.success(), "{text}: {}", said(&output));
    }
}

/// A controller that runs as a job.
#[derive(Debug)]
struct Instance {
    allocation: String,
    address: String,
    ready: (u16, String),
}

async fn instances(nomad: &Nomad, service: &str) -> Option<Vec<Instance>> {
    let mut all = Vec::new();
    for one in nomad.service(service).await {
        let address = format!("http://127.0.0.1:{}", one["Port"].as_u64()?);
        let answer = reqwest::get(format!("{address}/readyz")).await.ok()?;
        let ready = (answer.status().as_u16(), answer.text().await.ok()?.trim().to_owned());
        all.push(Instance { allocation: one["AllocID"].as_str()?.to_owned(), address, ready });
    }
    all.sort_by(|a, b| a.ready.cmp(&b.ready));
    Some(all)
}

/// Waits until one leads and one stands by: their allocations.
async fn pair(nomad: &Nomad) -> [String; 2] {
    wait_for("one that leads and one that stands by", SOON, async || {
        let all = instances(nomad, "nomad-haproxy").await?;
        let [leads, stands_by] = &all[..] else { return None };
        let as_wanted = leads.ready == (200, "ok".into()) && stands_by.ready == (200, "standby".into());
        as_wanted.then(|| [leads.allocation.clone(), stands_by.allocation.clone()])
    })
    .await
}

/// Waits until this version of the controllers' job is deployed.
async fn wait_until_deployed(nomad: &Nomad, version: u64) {
    wait_for(&format!("the deployment of version {version}"), SOON, async || {
        let all = nomad.try_call(Method::GET, "/v1/job/nomad-haproxy/deployments", None).await?;
        let mut all = all.as_array()?.clone().into_iter();
        let deployment = all.find(|one| one["JobVersion"] == version)?;
        assert_ne!(deployment["Status"], "failed", "{deployment}");
        (deployment["Status"] == "successful").then_some(())
    })
    .await;
}

/// Waits until a request is answered by an instance of the service.
async fn wait_until_answered(port: u16) {
    load::wait_for_answer(port, "web", SOON, |_| true).await;
}

/// With the password from a Nomad variable that the job's own identity may read, then from a file.
#[tokio::test(flavor = "multi_thread")]
async fn two_controllers_run_as_a_nomad_job_with_its_own_identity() {
    let nomad = Nomad::start_with_acl().await;
    let rig = Rig::start(Way::Api, "3.2").await;
    nomad.submit(job("web", 2, &["enable=true"], Some("1"))).await;

    let file = root().join("deploy/nomad-haproxy.nomad.hcl");
    let (commands, binary) = (commands(&file), controller::binary().display().to_string());
    assert_eq!(commands.len(), 3, "{commands:?}");
    let words = [("PASSWORD", "secret"), ("http://10.0.0.5:5555", &rig.api.as_ref().unwrap().url)];
    run(&nomad, &commands, &words, &[("binary", &binary)]).await;
    wait_until_deployed(&nomad, 0).await;
    rig.haproxy.wait_for_in_service("web", 2, SOON).await;
    wait_until_answered(rig.haproxy.port).await;

    // The one that stood by leads when the leader is restarted, and keeps that.
    let [leads, stands_by] = pair(&nomad).await;
    let output = command(Some(&nomad), &["alloc", "restart", &leads]).await;
    assert!(output.status.success(), "{}", said(&output));
    wait_for("the other one to lead", SOON, async || {
        let all = instances(&nomad, "nomad-haproxy").await?;
        all.iter().any(|one| one.allocation == stands_by && one.ready.1 == "ok").then_some(())
    })
    .await;
    assert_eq!(pair(&nomad).await, [stands_by, leads]);
    nomad.scale("web", 3).await;
    rig.haproxy.wait_for_in_service("web", 3, SOON).await;
    wait_until_answered(rig.haproxy.port).await;

    // The next version takes the password from a file on the node, and needs no Nomad variable.
    let output = command(Some(&nomad), &["var", "purge", "nomad/jobs/nomad-haproxy"]).await;
    assert!(output.status.success(), "{}", said(&output));
    let password = rig.haproxy.folder().join("password");
    std::fs::write(&password, "secret\n").unwrap();
    let password = password.display().to_string();
    run(&nomad, &commands[2..], &words, &[("binary", &binary), ("haproxy_password_file", &password)]).await;
    // One after the other is replaced; a standby is as healthy as a leader.
    wait_until_deployed(&nomad, 1).await;
    pair(&nomad).await;
    nomad.scale("web", 1).await;
    rig.haproxy.wait_for_in_service("web", 1, SOON).await;
    wait_until_answered(rig.haproxy.port).await;
    nomad.stop_job("nomad-haproxy").await;
}

/// An older executable, which `UPGRADE_FROM` names; else this one, at a path of its own.
fn upgraded_from(nomad: &Nomad) -> PathBuf {
    std::env::var_os("UPGRADE_FROM").map_or_else(
        || {
            let copy = nomad.folder().join("nomad-haproxy");
            std::fs::copy(controller::binary(), &copy).unwrap();
            copy
        },
        PathBuf::from,
    )
}

/// With services that scale all the while. An instance answers until there is a leader again.
#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_upgrade_and_the_way_back_lose_no_request() {
    let nomad = Nomad::start_with_acl().await;
    let rig = Rig::start(Way::Api, "3.2").await;
    let mut web = job("web", 5, &["enable=true"], Some("1"));
    web["TaskGroups"][0]["ShutdownDelay"] = json!(10_000_000_000_u64);
    nomad.submit(web).await;

    let commands = commands(&root().join("deploy/nomad-haproxy.nomad.hcl"));
    let words = [("PASSWORD", "secret"), ("http://10.0.0.5:5555", &rig.api.as_ref().unwrap().url)];
    let (old, new) = (upgraded_from(&nomad), controller::binary());
    run(&nomad, &commands, &words, &[("binary", old.to_str().unwrap())]).await;
    wait_until_deployed(&nomad, 0).await;
    pair(&nomad).await;
    rig.haproxy.wait_for_in_service("web", 5, SOON).await;
    wait_until_answered(rig.haproxy.port).await;

    let reloads = rig.haproxy.reloads().await;
    let load = Load::start(rig.haproxy.port, "web", 200);
    for (version, binary) in [(1, &new), (2, &old)] {
        run(&nomad, &commands[2..], &words, &[("binary", binary.to_str().unwrap())]).await;
        let scaled = async {
            for count in [3, 5, 2, 4] {
                nomad.scale("web", count).await;
                rig.haproxy.wait_for_in_service("web", count as usize, SOON).await;
            }
        };
        tokio::join!(scaled, wait_until_deployed(&nomad, version));
        pair(&nomad).await;
    }
    let tally = load.take();
    assert_eq!(tally.failed, Vec::<String>::new(), "of {}", tally.requests);
    assert!(tally.requests > 1000, "{}", tally.requests);
    assert_eq!(rig.haproxy.reloads().await, reloads);
}

/// One node of the system job: its allocation, its HAProxy's port, and the shared folder.
#[derive(Debug)]
struct Edge {
    node: String,
    allocation: String,
    port: u16,
    data: PathBuf,
}

/// Nomad registers a service before it says that the allocation runs.
async fn edges(nomad: &Nomad, job: &str, count: usize) -> Vec<Edge> {
    let what = format!("{count} allocations of {job} to run");
    let all = async || Some(running(nomad, job).await).filter(|edges| edges.len() == count);
    wait_for(&what, SOON, all).await
}

async fn running(nomad: &Nomad, job: &str) -> Vec<Edge> {
    let list = nomad.call(Method::GET, &format!("/v1/job/{job}/allocations"), None).await;
    let mut all = Vec::new();
    for one in list.as_array().unwrap().iter().filter(|one| one["ClientStatus"] == "running") {
        let allocation = one["ID"].as_str().unwrap().to_owned();
        let whole = nomad.call(Method::GET, &format!("/v1/allocation/{allocation}"), None).await;
        let ports = whole["AllocatedResources"]["Shared"]["Ports"].as_array().unwrap().clone();
        let port = ports.iter().find(|port| port["Label"] == "http").unwrap()["Value"].to_string().parse().unwrap();
        let node = one["NodeName"].as_str().unwrap().to_owned();
        let data = folder_of(nomad.folder(), &allocation).unwrap().join("alloc/data");
        all.push(Edge { node, allocation, port, data });
    }
    all
}

/// The folder of an allocation, below the agents'.
fn folder_of(below: &Path, allocation: &str) -> Option<PathBuf> {
    let folders = || std::fs::read_dir(below).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir());
    let found = folders().find(|entry| entry.file_name() == allocation).map(|entry| entry.path());
    // Not into allocations.
    found.or_else(|| folders().filter(|e| e.file_name().len() != 36).find_map(|e| folder_of(&e.path(), allocation)))
}

/// The process ID of HAProxy's master, and how often it was reloaded.
async fn master(edge: &Edge) -> Option<(i32, u64)> {
    haproxy::master(&edge.data.join("master.sock")).await
}

/// The variables of a job that runs HAProxys on loopback, at ports that Nomad chooses.
fn on_edges<'a>(binary: &'a Path, haproxy: &'a Path, driver: &'a str) -> Vec<(&'static str, &'a str)> {
    vec![
        ("binary", binary.to_str().unwrap()),
        ("haproxy", haproxy.to_str().unwrap()),
        ("driver", driver),
        ("bind", "127.0.0.1"),
        ("http_port", "0"),
    ]
}

/// A HAProxy with its API on each node, and one controller for all, which is a job itself.
#[tokio::test(flavor = "multi_thread")]
async fn the_controllers_job_drives_the_haproxys_of_a_system_job() {
    let Some(dataplaneapi) = api::real() else {
        eprintln!("not looked at: the system job starts a real Data Plane API (DATAPLANEAPI_BIN)");
        return;
    };
    let nomad = Nomad::start_with_acl().await;
    let _second = nomad.join("edge-2").await;
    nomad.submit(job("web", 2, &["enable=true"], Some("1"))).await;

    let commands = commands(&root().join("deploy/haproxy.nomad.hcl"));
    assert_eq!(commands.len(), 5, "{commands:?}");
    let (binary, haproxy) = (controller::binary(), haproxy::binary("3.2").unwrap());
    let mut variables = on_edges(&binary, &haproxy, "raw_exec");
    variables.push(("dataplaneapi", dataplaneapi.to_str().unwrap()));
    run(&nomad, &commands, &[("PASSWORD", "s3cr:t")], &variables).await;
    pair(&nomad).await;
    let edges = edges(&nomad, "haproxy", 2).await;
    for edge in &edges {
        wait_until_answered(edge.port).await;
    }
    nomad.stop_job("nomad-haproxy").await;
    nomad.stop_job("haproxy").await;
}

/// The local plane as a system job: each node's controller writes the file of that node's HAProxy, and no other.
#[tokio::test(flavor = "multi_thread")]
async fn each_node_of_the_local_job_has_a_haproxy_and_its_controller() {
    let nomad = Nomad::start_with_acl().await;
    let _second = nomad.join("edge-2").await;
    let edges = local_edges(&nomad, "raw_exec", 2).await;
    restarts(&nomad, &edges[0]).await;
    nomad.stop_job("haproxy-local").await;
}

/// The same, where the tasks see neither each other's processes nor the folders of the node, and are not root.
#[tokio::test(flavor = "multi_thread")]
async fn the_local_job_runs_isolated() {
    let (binary, haproxy) = (controller::binary(), haproxy::binary("3.2").unwrap());
    let haproxy = haproxy.ancestors().nth(2).unwrap();
    // Where its libraries are, too.
    let real = haproxy.canonicalize().unwrap();
    let is_open = |folder: &Path| std::fs::metadata(folder).unwrap().permissions().mode() & 0o001 != 0;
    if !binary.ancestors().chain(real.ancestors()).all(is_open) {
        eprintln!("skipped: {} is in a folder that other users may not enter", binary.display());
        return;
    }
    let nomad = Nomad::start_isolating(&[&binary, haproxy, &real]).await;
    let node = nomad.call(Method::GET, "/v1/nodes", None).await[0].clone();
    let driver = &node["Drivers"]["exec"];
    if driver["Healthy"] != true {
        eprintln!("skipped: Nomad cannot isolate tasks here: {}", driver["HealthDescription"]);
        return;
    }
    local_edges(&nomad, "exec", 1).await;
    nomad.stop_job("haproxy-local").await;
}

/// Runs the job: each of so many nodes answers requests, and its controller is about it alone.
async fn local_edges(nomad: &Nomad, driver: &str, count: usize) -> Vec<Edge> {
    nomad.submit(job("web", 2, &["enable=true"], Some("1"))).await;
    let commands = commands(&root().join("deploy/haproxy-local.nomad.hcl"));
    assert_eq!(commands.len(), 2, "{commands:?}");
    let (binary, haproxy) = (controller::binary(), haproxy::binary("3.2").unwrap());
    run(nomad, &commands, &[], &on_edges(&binary, &haproxy, driver)).await;
    wait_for("each controller to be ready", SOON, async || {
        let all = instances(nomad, "nomad-haproxy-local").await?;
        // Nobody stands by: there is no leader.
        (all.len() == count && all.iter().all(|one| one.ready == (200, "ok".into()))).then_some(())
    })
    .await;
    let edges = edges(nomad, "haproxy-local", count).await;
    for edge in &edges {
        wait_until_answered(edge.port).await;
    }
    for one in instances(nomad, "nomad-haproxy-local").await.unwrap() {
        let edge = edges.iter().find(|edge| edge.allocation == one.allocation).unwrap();
        let metrics = reqwest::get(format!("{}/metrics", one.address)).await.unwrap().text().await.unwrap();
        let named = format!("nomad_haproxy_haproxy_up{{haproxy=\"{}\"}} 1", edge.node);
        assert!(metrics.contains(&named), "no {named} in {metrics}");
    }
    edges
}

/// A restart of the controller leaves HAProxy as it is; one of both finds the file as it was.
async fn restarts(nomad: &Nomad, edge: &Edge) {
    let before = master(edge).await.unwrap();
    let restart = async |arguments: &[&str]| {
        let output = command(Some(nomad), &[&["alloc", "restart"], arguments].concat()).await;
        assert!(output.status.success(), "{}", said(&output));
    };
    let ready = async || {
        wait_for("the controller to be ready again", SOON, async || {
            let all = instances(nomad, "nomad-haproxy-local").await?;
            all.iter().any(|one| one.allocation == edge.allocation && one.ready.0 == 200).then_some(())
        })
        .await;
    };
    restart(&["-task", "controller", &edge.allocation]).await;
    ready().await;
    wait_until_answered(edge.port).await;
    assert_eq!(master(edge).await.unwrap(), before, "HAProxy was neither restarted nor reloaded");

    restart(&[&edge.allocation]).await;
    wait_for("another HAProxy", SOON, async || Some(master(edge).await?.0).filter(|pid| *pid != before.0)).await;
    wait_until_answered(edge.port).await;
    ready().await;
}
