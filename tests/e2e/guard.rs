//! Real Nomad under 50 services: what it loses, or may not show, takes no instance out of service; an instance that is
//! known to be gone is out at once.

use std::time::{Duration, Instant};

use crate::support::api::{Rig, WAYS, Way};
use crate::support::controller::{Controller, Env, run, stderr, stdout};
use crate::support::nomad::Nomad;
use crate::support::wait_for;
use serde_json::{Value, json};

/// Jobs of the fleet, each one allocation.
const JOBS: usize = 10;
/// Services of each.
const SERVICES: usize = 5;
const ALL: usize = JOBS * SERVICES;
/// More than enough time for several passes: how long to check that something does not happen.
const A_WHILE: Duration = Duration::from_secs(3);
const HELD: &str = "nomad_haproxy_guard_held_instances";

/// A job of several group services; nothing listens (mock_driver), so nothing is checked.
fn job(name: &str, namespace: &str) -> Value {
    let label = |at: usize| format!("p{at}");
    let service = |at: usize| {
        json!({"Name": format!("{name}-{at}"), "Provider": "nomad", "PortLabel": label(at),
               "Tags": ["haproxy.enable=true", "haproxy.check.disabled"]})
    };
    json!({
        "ID": name, "Name": name, "Namespace": namespace, "Type": "service", "Datacenters": ["*"],
        "TaskGroups": [{
            "Name": "g", "Count": 1, "EphemeralDisk": {"SizeMB": 10},
            "Networks": [{"Mode": "host", "DynamicPorts": (0..SERVICES).map(|at| json!({"Label": label(at)})).collect::<Vec<_>>()}],
            "Services": (0..SERVICES).map(service).collect::<Vec<_>>(),
            "Tasks": [{"Name": "t", "Driver": "mock_driver", "Config": {"run_for": "10000h"},
                       "Resources": {"CPU": 1, "MemoryMB": 10}, "LogConfig": {"Disabled": true, "MaxFiles": 1, "MaxFileSizeMB": 1}}],
        }],
    })
}

async fn submit_fleet(nomad: &Nomad) {
    for number in 0..JOBS {
        nomad.submit(job(&format!("job-{number}"), "default")).await;
    }
}

fn env(rig: &Rig, nomad: &Nomad) -> Env {
    rig.env_with(&[("NOMAD_ADDR", &nomad.address), ("NOMAD_HAPROXY_RESYNC_INTERVAL", "1s")])
}

/// The lines of our servers that take traffic.
fn in_service(rig: &Rig) -> Vec<String> {
    let text = rig.haproxy.text();
    text.lines().filter(|line| line.contains("\"id\":") && !line.contains("disabled")).map(str::to_owned).collect()
}

fn seated(rig: &Rig) -> usize {
    in_service(rig).len()
}

/// Whether a backend has a server that takes traffic.
fn serves(rig: &Rig, backend: &str) -> bool {
    in_service(rig).iter().any(|line| line.trim_start().starts_with(&format!("server {backend}_")))
}

async fn wait_for_seated(rig: &Rig, count: usize) {
    let what = format!("{count} instances in service");
    wait_for(&what, Duration::from_secs(40), async || (seated(rig) == count).then_some(())).await;
}

async fn held(controller: &Controller) -> usize {
    format!("{:.0}", controller.metric(HELD).await).parse().unwrap()
}

async fn wait_for_held(controller: &Controller, count: usize) {
    let what = format!("{count} instances to be held");
    let is_it = async || (held(controller).await == count).then_some(());
    wait_for(&what, Duration::from_secs(40), is_it).await;
}

/// The output of `plan` for programs.
async fn plan_json(env: &Env) -> Value {
    let output = run(env, &["plan", "--output", "json"]).await;
    serde_json::from_str(&stdout(&output)).unwrap_or_else(|error| panic!("{error}: {}", stderr(&output)))
}

/// For a while nothing of ours in HAProxy changes, neither in the file nor in the process.
async fn stays(rig: &Rig) {
    let (text, reloads) = (rig.haproxy.text(), rig.haproxy.reloads().await);
    let until = Instant::now() + A_WHILE;
    while Instant::now() < until {
        assert_eq!((rig.haproxy.text(), rig.haproxy.reloads().await), (text.clone(), reloads));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    rig.agrees().await;
}

/// A fleet that HAProxy serves.
async fn serving(nomad: &Nomad, rig: &Rig, env: &Env) -> Controller {
    submit_fleet(nomad).await;
    let controller = Controller::start(env, &[]);
    wait_for_seated(rig, ALL).await;
    assert_eq!(held(&controller).await, 0);
    controller
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_nomad_takes_no_instance_out_until_a_person_allows_it() {
    for way in WAYS {
        wiped(way).await;
    }
}

async fn wiped(way: Way) {
    let nomad = Nomad::start().await;
    let rig = Rig::start(way, "3.2").await;
    let env = env(&rig, &nomad);
    let controller = serving(&nomad, &rig, &env).await;

    nomad.kill();
    nomad.launch().await;
    wait_for_held(&controller, ALL).await;
    assert_eq!(seated(&rig), ALL);
    stays(&rig).await;
    assert!(controller.log().contains("the guard holds instances that the catalog lacks"), "{}", controller.log());

    let plan = run(&env, &["plan", "--detailed-exitcode"]).await;
    let said = stdout(&plan);
    assert_eq!(plan.status.code(), Some(3), "{said}{}", stderr(&plan));
    assert!(said.contains("The guard holds 50 instances of 50 services") && said.contains("does not know"), "{said}");
    let json = plan_json(&env).await;
    assert_eq!((&json["guard"]["instances"], &json["changes"]), (&ALL.into(), &false.into()), "{json}");
    assert!(json["notes"].as_array().unwrap().iter().all(|note| note["code"] == "guard-held"), "{json}");

    // The jobs come back as other allocations: they are added, and the old ones stay beside them.
    submit_fleet(&nomad).await;
    wait_for_seated(&rig, 2 * ALL).await;
    wait_for_held(&controller, ALL).await;
    stays(&rig).await;
    let released = run(&env, &["apply", "--allow-removals"]).await;
    assert!(released.status.success(), "{}{}", stdout(&released), stderr(&released));
    wait_for_held(&controller, 0).await;
    assert_eq!(seated(&rig), ALL);
    assert!(controller.log().contains("the guard holds nothing any more"), "{}", controller.log());
    rig.agrees().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_haproxy_holds_its_own_until_a_person_lets_go_of_it_there() {
    let nomad = Nomad::start().await;
    let rigs = [Rig::start(Way::Local, "3.2").await, Rig::start(Way::Local, "3.2").await];
    let entry = |name: &str, rig: &Rig| json!({"name": name, "config_file": rig.haproxy.config(), "master_socket": rig.haproxy.master(), "binary": rig.haproxy.binary});
    let settings = json!({"haproxy": [entry("one", &rigs[0]), entry("two", &rigs[1])], "http": {"token": "t"}});
    let file = rigs[0].haproxy.folder().join("settings.json");
    std::fs::write(&file, settings.to_string()).unwrap();
    let env: Env = [
        ("NOMAD_HAPROXY_CONFIG", file.to_str().unwrap()),
        ("NOMAD_ADDR", &nomad.address),
        ("NOMAD_HAPROXY_RESYNC_INTERVAL", "1s"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .to_vec();
    // A job of the second one alone.
    submit_fleet(&nomad).await;
    let mut alone = job("alone", "default");
    for service in alone["TaskGroups"][0]["Services"].as_array_mut().unwrap() {
        service["Tags"].as_array_mut().unwrap().push("haproxy.target=two".into());
    }
    nomad.submit(alone).await;
    let controller = Controller::start(&env, &[]);
    wait_for_seated(&rigs[0], ALL).await;
    wait_for_seated(&rigs[1], ALL + SERVICES).await;
    let held = async |name: &str| format!("{:.0}", controller.metric(&format!("{HELD}{{haproxy=\"{name}\"}}")).await);
    let wait_for_held = async |one: usize, two: usize| {
        let what = format!("{one} and {two} instances to be held");
        wait_for(&what, Duration::from_secs(40), async || {
            (held("one").await == one.to_string() && held("two").await == two.to_string()).then_some(())
        })
        .await;
    };
    nomad.kill();
    nomad.launch().await;
    wait_for_held(ALL, ALL + SERVICES).await;
    let plan = plan_json(&env).await;
    let of = |name: &str| plan["haproxys"][name]["guard"]["instances"].clone();
    assert_eq!((&plan["held"], of("one"), of("two")), (&true.into(), ALL.into(), (ALL + SERVICES).into()), "{plan}");

    // By the API for one, by the command line for the other: each lets go of its own.
    let url = format!("http://{}/api/v1/guard/release?haproxy=one", controller.listen().await);
    let answer = reqwest::Client::new().post(url).bearer_auth("t").send().await.unwrap();
    assert_eq!(answer.status(), 202);
    let answer: Value = answer.json().await.unwrap();
    assert_eq!(answer["haproxys"], json!([{"name": "one", "accepted": true, "error": null, "held": ALL}]));
    wait_for_held(0, ALL + SERVICES).await;
    assert_eq!((seated(&rigs[0]), seated(&rigs[1])), (0, ALL + SERVICES));
    let released = run(&env, &["apply", "--haproxy", "two", "--allow-removals"]).await;
    assert!(released.status.success(), "{}{}", stdout(&released), stderr(&released));
    wait_for_held(0, 0).await;
    assert_eq!((seated(&rigs[0]), seated(&rigs[1])), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_jobs_stopped_are_out_at_once_purged_or_not() {
    let nomad = Nomad::start().await;
    let rig = Rig::start(Way::Local, "3.2").await;
    let controller = serving(&nomad, &rig, &env(&rig, &nomad)).await;
    for purge in [false, true] {
        for number in 0..JOBS {
            let path = format!("/v1/job/job-{number}?purge={purge}");
            nomad.call(reqwest::Method::DELETE, &path, None).await;
        }
        // All are out of service in the process as soon as the last job is stopped.
        let stopped = Instant::now();
        wait_for_seated(&rig, 0).await;
        eprintln!("purged: {purge}; all out {} ms after the last job was stopped", stopped.elapsed().as_millis());
        wait_for_held(&controller, 0).await;
        assert!(!controller.log().contains("the guard holds"), "{}", controller.log());
        submit_fleet(&nomad).await;
        wait_for_seated(&rig, ALL).await;
    }
}

/// A job that only this client runs.
fn job_on(node: &str, name: &str) -> Value {
    let mut job = job(name, "default");
    job["Constraints"] = json!([{"LTarget": "${node.unique.name}", "RTarget": node, "Operand": "="}]);
    job
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_state_takes_no_instance_out_however_few_it_lacks() {
    let nomad = Nomad::start_server().await;
    let _client = nomad.join("a").await;
    let rig = Rig::start(Way::Local, "3.2").await;
    let env = env(&rig, &nomad);
    for number in 1..JOBS {
        nomad.submit(job(&format!("job-{number}"), "default")).await;
    }
    let controller = Controller::start(&env, &[]);
    wait_for_seated(&rig, ALL - SERVICES).await;
    let snapshot = nomad.snapshot().await;
    nomad.submit(job("job-0", "default")).await;
    wait_for_seated(&rig, ALL).await;

    // A tenth is missing: far below the share.
    nomad.restore(snapshot).await;
    wait_for_held(&controller, SERVICES).await;
    assert!(controller.log().contains("Nomad's index went back"), "{}", controller.log());
    stays(&rig).await;
    assert_eq!((seated(&rig), held(&controller).await), (ALL, SERVICES));
    // An instance that is stopped from here on is out at once; the others are still held.
    nomad.call(reqwest::Method::DELETE, "/v1/job/job-1", None).await;
    wait_for_seated(&rig, ALL - SERVICES).await;
    wait_for_held(&controller, SERVICES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_node_takes_out_only_its_own_instances() {
    let nomad = Nomad::start_server().await;
    let _stays = nomad.join("a").await;
    let mut lost = nomad.join("b").await;
    let rig = Rig::start(Way::Local, "3.2").await;
    for number in 0..JOBS {
        let node = if number.is_multiple_of(2) { "a" } else { "b" };
        nomad.submit(job_on(node, &format!("job-{number}"))).await;
    }
    let controller = Controller::start(&env(&rig, &nomad), &[]);
    wait_for_seated(&rig, ALL).await;
    lost.kill();
    wait_for_seated(&rig, ALL / 2).await;
    wait_for_held(&controller, 0).await;
    let is_right = |number: usize| serves(&rig, &format!("job_{number}_0")) == number.is_multiple_of(2);
    assert!((0..JOBS).all(is_right), "{}", rig.haproxy.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mistyped_namespace_takes_no_instance_out() {
    let nomad = Nomad::start().await;
    let rig = Rig::start(Way::Local, "3.2").await;
    let mut env = env(&rig, &nomad);
    let mut controller = serving(&nomad, &rig, &env).await;
    assert_eq!(controller.stop().await.code(), Some(0));
    env.push(("NOMAD_NAMESPACE".to_owned(), "defualt".to_owned()));
    let json = plan_json(&env).await;
    assert_eq!(json["namespaces"][0]["code"], "missing-namespace", "{json}");
    assert_eq!((&json["guard"]["instances"], &json["changes"]), (&ALL.into(), &false.into()), "{json}");
    let catalog = run(&env, &["catalog"]).await;
    assert!(!catalog.status.success() && stderr(&catalog).contains("defualt does not exist"), "{}", stderr(&catalog));
    let controller = Controller::start(&env, &[]);
    wait_for_held(&controller, ALL).await;
    stays(&rig).await;
    assert!(controller.log().contains("it does not exist"), "{}", controller.log());
    // An instance that is stopped is still out at once.
    nomad.call(reqwest::Method::DELETE, "/v1/job/job-1", None).await;
    wait_for_seated(&rig, ALL - SERVICES).await;
    drop(controller);
    // One of two is mistyped: the other continues.
    env.push(("NOMAD_NAMESPACE".to_owned(), "default,defualt".to_owned()));
    let controller = Controller::start(&env, &[]);
    wait_for_held(&controller, 0).await;
    nomad.submit(job("job-1", "default")).await;
    wait_for_seated(&rig, ALL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_loses_its_rights_one_by_one_keeps_what_it_cannot_read() {
    const NAMESPACES: usize = 5;
    let nomad = Nomad::start_with_acl().await;
    let name = |number: usize| format!("team-{number}");
    for number in 0..JOBS {
        let namespace = name(number % NAMESPACES);
        let path = format!("/v1/namespace/{namespace}");
        nomad.call(reqwest::Method::POST, &path, Some(json!({"Name": namespace}))).await;
        nomad.submit(job(&format!("job-{number}"), &namespace)).await;
    }
    let rule = |at: usize| format!("namespace \"{}\" {{\n capabilities = [\"read-job\"]\n}}\n", name(at));
    let rules = |from: usize| (from..NAMESPACES).map(rule).collect::<Vec<_>>().concat();
    let token = nomad.token_with(&rules(0)).await;
    let rig = Rig::start(Way::Local, "3.2").await;
    let mut env = env(&rig, &nomad);
    env.push(("NOMAD_TOKEN".to_owned(), token));
    let controller = Controller::start(&env, &[]);
    wait_for_seated(&rig, ALL).await;
    let denied = |number: usize| format!("services in the namespace {}", name(number));
    for lost in 0..NAMESPACES - 1 {
        nomad.token_with(&rules(lost + 1)).await;
        let what = format!("the token to lose {}", name(lost));
        wait_for(&what, Duration::from_secs(20), async || controller.log().contains(&denied(lost)).then_some(())).await;
        assert_eq!((seated(&rig), held(&controller).await), (ALL, 0));
    }
    stays(&rig).await;
    // What can still be read continues; the same with namespaces that are named one by one.
    let path = format!("/v1/job/job-4?namespace={}", name(4));
    nomad.call(reqwest::Method::DELETE, &path, None).await;
    wait_for_seated(&rig, ALL - SERVICES).await;
    // While HAProxy reloads, its master does not answer.
    controller.wait_for_passes(1).await;
    let names = (0..NAMESPACES).map(name).collect::<Vec<_>>().join(",");
    env.push(("NOMAD_NAMESPACE".to_owned(), names));
    let json = plan_json(&env).await;
    assert_eq!((json["namespaces"].as_array().unwrap().len(), &json["changes"]), (4, &false.into()), "{json}");
    // Nothing is left: an error, and no instance is taken out.
    nomad.token_with("node {\n policy = \"read\"\n}").await;
    wait_for("a pass that is denied", Duration::from_secs(20), async || {
        controller.log().contains("services in any namespace").then_some(())
    })
    .await;
    stays(&rig).await;
    assert_eq!(seated(&rig), ALL - SERVICES);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_upsert_only_every_removal_needs_proof() {
    let nomad = Nomad::start().await;
    let rig = Rig::start(Way::Local, "3.2").await;
    let mut env = env(&rig, &nomad);
    env.push(("NOMAD_HAPROXY_POLICY".to_owned(), "upsert-only".to_owned()));
    let controller = serving(&nomad, &rig, &env).await;
    // In each of these cases the allocation keeps running.
    let mut changed = job("job-0", "default");
    let services = changed["TaskGroups"][0]["Services"].as_array_mut().unwrap();
    // Its tags turn it off; its tags are removed; the service is removed from its job.
    services[0]["Tags"] = json!(["haproxy.enable=false"]);
    services[1]["Tags"] = json!([]);
    services.remove(4);
    nomad.submit(changed).await;
    wait_for_seated(&rig, ALL - 2).await;
    wait_for_held(&controller, 1).await;
    assert!(controller.log().contains("the policy is upsert-only"), "{}", controller.log());
    let has = ["job_0_0", "job_0_1", "job_0_4"].map(|name| serves(&rig, name));
    assert_eq!(has, [false, true, false], "{}", rig.haproxy.text());
    nomad.call(reqwest::Method::DELETE, "/v1/job/job-0", None).await;
    wait_for_seated(&rig, ALL - SERVICES).await;
    wait_for_held(&controller, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_makes_no_request_holds_only_itself() {
    let nomad = Nomad::start().await;
    let rig = Rig::start(Way::Local, "3.2").await;
    let controller = serving(&nomad, &rig, &env(&rig, &nomad)).await;
    let mut long = job("long", "default");
    long["Meta"] = json!({"name": "x".repeat(66_000)});
    for service in long["TaskGroups"][0]["Services"].as_array_mut().unwrap() {
        service["Name"] = "${NOMAD_META_name}".into();
    }
    nomad.submit(long).await;
    let listed = async || {
        let lists = nomad.call(reqwest::Method::GET, "/v1/services", None).await;
        let services = lists[0]["Services"].as_array().unwrap();
        services.iter().any(|service| service["ServiceName"].as_str().unwrap().len() == 66_000).then_some(())
    };
    wait_for("the long name to be listed", Duration::from_secs(20), listed).await;
    nomad.submit(job("good", "default")).await;
    wait_for_seated(&rig, ALL + SERVICES).await;
    nomad.call(reqwest::Method::DELETE, "/v1/job/good", None).await;
    wait_for_seated(&rig, ALL).await;
    assert!(controller.passes("outcome=\"failed\"").await < 1.0, "{}", controller.log());
    assert!(controller.log().contains("what HAProxy has of it stays"), "{}", controller.log());
}
