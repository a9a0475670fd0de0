//! Two controllers on one HAProxy, with a real Nomad: the one that has the lock writes, the other one takes over.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use crate::support::api::{self, Rig, Way};
use crate::support::controller::{Controller, Env, registration, run, stderr, stdout, write_catalog};
use crate::support::gate::Gate;
use crate::support::nomad::{Nomad, job};
use crate::support::wait_for;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::Method;
use serde_json::{Value, json};

const LOCK: &str = "nomad/jobs/nomad-haproxy/lock";
/// Nomad frees the lock of a controller that was killed 2 × TTL + the delay after its last renewal, which is 25 s here.
/// The machine may be slow, so this is no more than a limit for the wait.
const TAKEN_OVER: Duration = Duration::from_secs(90);
/// For what takes moments.
const SOON: Duration = Duration::from_secs(30);

fn with(env: Env, more: &[(&str, &str)]) -> Env {
    env.into_iter().chain(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))).collect()
}

/// Settings for one of several.
fn elected(env: Env, nomad: &str) -> Env {
    let settings = [
        ("NOMAD_ADDR", nomad),
        ("NOMAD_HAPROXY_LEADER_LOCK", LOCK),
        ("NOMAD_HAPROXY_RESYNC_INTERVAL", "2s"),
        ("NOMAD_HAPROXY_HTTP_TOKEN", "t"),
        ("NOMAD_HAPROXY_HTTP_ADMIN_KEY", "k"),
    ];
    with(env, &settings)
}

async fn leads(controller: &Controller) -> bool {
    controller.metric("nomad_haproxy_leader").await > 0.0
}

async fn wait_until_it_leads(controller: &Controller, within: Duration) {
    wait_for("the controller to lead", within, async || leads(controller).await.then_some(())).await;
}

async fn wait_until_it_stands_by(controller: &Controller) {
    wait_for("the controller to stand by", SOON, async || {
        (controller.http("/readyz").await == (200, "standby\n".to_owned())).then_some(())
    })
    .await;
}

/// What the controller says of the election.
async fn election(controller: &Controller) -> Value {
    let status: Value = serde_json::from_str(&controller.http("/api/v1/status").await.1).unwrap();
    status["leader"].clone()
}

async fn post(controller: &Controller, path: &str) -> (u16, String) {
    let request = reqwest::Client::new().post(format!("http://{}{path}", controller.listen().await));
    let response = request.bearer_auth("t").header("X-Admin-Key", "k").send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

/// Calls that change something.
fn writes(gate: &Gate) -> Vec<String> {
    gate.calls().into_iter().filter(|call| !call.starts_with("GET ")).collect()
}

fn seated(rig: &Rig) -> usize {
    rig.haproxy.text().lines().filter(|line| line.contains("\"id\":") && !line.contains("disabled")).count()
}

async fn wait_for_seats(rig: &Rig, seats: usize, within: Duration) {
    wait_for(&format!("{seats} servers in service"), within, async || (seated(rig) == seats).then_some(())).await;
}

/// The file is written first, and then the process: waits until each server of the file is in the process as it should.
async fn wait_for_agreement(rig: &Rig) {
    wait_for("the process to have what the file has", SOON, async || {
        let running = rig.haproxy.running_in("web").await;
        (running.values().filter(|server| server.state() == "ready").count() == seated(rig)).then_some(())
    })
    .await;
    rig.agrees().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_writes_and_the_other_one_takes_over_when_it_ends() {
    eprintln!("on {}", api::which());
    let nomad = Nomad::start().await;
    let rig = Rig::start(Way::Api, "3.2").await;
    let ((first_gate, first_env), (second_gate, second_env)) = (rig.gated().await, rig.gated().await);
    let mut first = Controller::start(&elected(first_env, &nomad.address), &[]);
    wait_until_it_leads(&first, SOON).await;
    let second = Controller::start(&elected(second_env, &nomad.address), &[]);
    wait_until_it_stands_by(&second).await;

    nomad.submit(job("web", 2, &["enable=true"], None)).await;
    wait_for_seats(&rig, 2, SOON).await;
    wait_for("the standby to have seen it", SOON, async || {
        second.http("/api/v1/status").await.1.contains("\"service\":\"web\"").then_some(())
    })
    .await;
    assert!(!writes(&first_gate).is_empty());
    assert_eq!(writes(&second_gate), Vec::<String>::new());
    assert!(second.passes("outcome=\"standby\"").await >= 2.0);
    assert!(leads(&first).await && !leads(&second).await);
    assert_eq!(first.http("/readyz").await, (200, "ok\n".to_owned()));

    // It says who leads, and sends a person there.
    let address = format!("http://{}", first.listen().await);
    let said = election(&second).await;
    assert_eq!((&said["election"], &said["leads"], &said["error"]), (&json!(true), &json!(false), &Value::Null));
    assert_eq!(said["holder"]["http"], json!(address));
    assert_eq!(election(&first).await, json!({"election": true, "leads": true, "holder": null, "error": null}));
    for path in ["/api/v1/reconcile", "/api/v1/guard/release", "/api/health/haproxy/recover"] {
        let (status, body) = post(&second, path).await;
        assert_eq!(status, 409, "{path}: {body}");
        assert!(body.contains("stands by") && body.contains(&address), "{path}: {body}");
        let (status, body) = post(&first, path).await;
        assert!([200, 202].contains(&status), "{path}: {status} {body}");
    }
    assert_eq!(writes(&second_gate), Vec::<String>::new());

    let ended = Instant::now();
    assert_eq!(first.stop().await.code(), Some(0));
    wait_until_it_leads(&second, SOON).await;
    eprintln!("took over {:?} after the signal", ended.elapsed());
    assert!(first.log().contains("released the lock"), "{}", first.log());
    assert!(second.passes("reason=\"leader\"").await >= 1.0, "it wakes for that");
    nomad.scale("web", 3).await;
    wait_for_seats(&rig, 3, SOON).await;
    wait_for_agreement(&rig).await;
    assert!(!writes(&second_gate).is_empty());
    assert_eq!(election(&second).await["leads"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_is_replaced() {
    let nomad = Nomad::start().await;
    let rig = Rig::start(Way::Local, "3.0").await;
    let mut first = Controller::start(&elected(rig.env(), &nomad.address), &[]);
    wait_until_it_leads(&first, SOON).await;
    let second = Controller::start(&elected(rig.env(), &nomad.address), &[]);
    wait_until_it_stands_by(&second).await;
    nomad.submit(job("web", 1, &["enable=true"], None)).await;
    wait_for_seats(&rig, 1, SOON).await;

    first.kill();
    let killed = Instant::now();
    nomad.scale("web", 2).await;
    nomad.wait_for_instances("web", 2).await;
    wait_for_seats(&rig, 2, TAKEN_OVER).await;
    eprintln!("wrote {:?} after the kill", killed.elapsed());
    assert!(leads(&second).await);
    wait_for_agreement(&rig).await;
}

/// It is stopped in the middle of a pass: some of its servers are out, the others would follow.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_paused_past_its_lock_writes_nothing_when_it_wakes() {
    let nomad = Nomad::start().await;
    let rig = Rig::start(Way::Api, "3.2").await;
    let ((first_gate, first_env), (_, second_env)) = (rig.gated().await, rig.gated().await);
    let first = Controller::start(&elected(first_env, &nomad.address), &[]);
    wait_until_it_leads(&first, SOON).await;
    nomad.submit(job("web", 20, &["enable=true"], None)).await;
    wait_for_seats(&rig, 20, SOON).await;
    first.wait_for_passes(1).await;
    let second = Controller::start(&elected(second_env, &nomad.address), &[]);
    wait_until_it_stands_by(&second).await;

    // The first of its writes do not reach HAProxy, and are not answered.
    first_gate.hold(None);
    first_gate.interfere(Some(Box::new(|method, _| (*method != Method::GET).then(|| (503, String::new())))));
    first_gate.freeze_writes(true);
    nomad.stop_job("web").await;
    wait_for("the leader to write", SOON, async || (!writes(&first_gate).is_empty()).then_some(())).await;
    kill(Pid::from_raw(first.pid()), Signal::SIGSTOP).unwrap();

    // The other one takes over, and gives the same servers to other instances.
    wait_until_it_leads(&second, TAKEN_OVER).await;
    wait_for_seats(&rig, 0, SOON).await;
    nomad.submit(job("web", 20, &["enable=true"], None)).await;
    wait_for_seats(&rig, 20, SOON).await;
    wait_for_agreement(&rig).await;
    let before = (rig.haproxy.text(), rig.haproxy.reloads().await);

    first_gate.hold(None);
    kill(Pid::from_raw(first.pid()), Signal::SIGCONT).unwrap();
    first_gate.freeze_writes(false);
    wait_until_it_stands_by(&first).await;
    wait_for("a pass of the one that woke", SOON, async || {
        (first.passes("outcome=\"standby\"").await >= 2.0).then_some(())
    })
    .await;
    assert_eq!(writes(&first_gate), Vec::<String>::new(), "{}", first.log());
    assert_eq!((rig.haproxy.text(), rig.haproxy.reloads().await), before);
    rig.agrees().await;
    assert!(leads(&second).await);
}

/// It is stopped between the validation and the write, and meanwhile nobody changes the file: only the lock is in its way.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_paused_before_it_replaces_the_file_leaves_it() {
    let nomad = Nomad::start_server().await;
    let rig = Rig::start(Way::Local, "3.2").await;
    let folder = rig.haproxy.folder();
    let (hold, held, slow) = (folder.join("hold"), folder.join("held"), folder.join("slow-haproxy"));
    let script = format!(
        "#!/bin/sh\n[ -e {hold} ] && touch {held}\nwhile [ -e {hold} ]; do sleep 0.05; done\nexec {binary} \"$@\"\n",
        hold = hold.display(),
        held = held.display(),
        binary = rig.haproxy.binary.display(),
    );
    std::fs::write(&slow, script).unwrap();
    std::fs::set_permissions(&slow, std::fs::Permissions::from_mode(0o755)).unwrap();
    let instance = |port| [registration("web", "1", 1, port, &["enable=true", "check.disabled"])];
    let (of_first, of_second) = (folder.join("first.json"), folder.join("second.json"));
    write_catalog(&of_first, &instance(2001));
    write_catalog(&of_second, &instance(2001));
    let env = with(elected(rig.env(), &nomad.address), &[("HAPROXY_BINARY", slow.to_str().unwrap())]);
    let first = Controller::start(&env, &["--catalog", of_first.to_str().unwrap()]);
    wait_for_seats(&rig, 1, SOON).await;
    let second = Controller::start(&elected(rig.env(), &nomad.address), &["--catalog", of_second.to_str().unwrap()]);
    wait_until_it_stands_by(&second).await;

    std::fs::write(&hold, "").unwrap();
    write_catalog(&of_first, &instance(2002));
    wait_for("the validation", SOON, async || held.exists().then_some(())).await;
    kill(Pid::from_raw(first.pid()), Signal::SIGSTOP).unwrap();
    wait_until_it_leads(&second, TAKEN_OVER).await;
    second.wait_for_passes(1).await;
    let before = rig.haproxy.text();
    std::fs::remove_file(&hold).unwrap();
    kill(Pid::from_raw(first.pid()), Signal::SIGCONT).unwrap();
    wait_until_it_stands_by(&first).await;
    first.wait_for_passes(1).await;
    assert_eq!(rig.haproxy.text(), before);
    assert!(rig.haproxy.text().contains("127.0.0.1:2001 "), "{}", rig.haproxy.text());
    rig.agrees().await;
}

/// A server with its state on disk, and a catalog file: what is written does not depend on Nomad's clients.
#[tokio::test(flavor = "multi_thread")]
async fn without_nomad_nothing_is_written_and_the_lock_is_kept() {
    let nomad = Nomad::start_server().await;
    let rig = Rig::start(Way::Local, "3.2").await;
    let instances = |count: u16| -> Vec<Value> {
        (0..count).map(|n| registration("web", &n.to_string(), 1, 2000 + n, &["enable=true"])).collect()
    };
    write_catalog(&rig.catalog(), &instances(1));
    let catalog = rig.catalog().display().to_string();
    let start = || Controller::start(&elected(rig.env(), &nomad.address), &["--catalog", &catalog]);
    let first = start();
    wait_for_seats(&rig, 1, SOON).await;
    let second = start();
    wait_until_it_stands_by(&second).await;

    // A short outage: the lease outlives it.
    nomad.crash();
    nomad.launch().await;
    write_catalog(&rig.catalog(), &instances(2));
    wait_for_seats(&rig, 2, SOON).await;
    assert!(leads(&first).await && !leads(&second).await);

    // A longer one.
    nomad.crash();
    wait_for("the leader to give up", SOON, async || (!leads(&first).await).then_some(())).await;
    let before = rig.haproxy.text();
    write_catalog(&rig.catalog(), &instances(3));
    first.wait_for_passes(2).await;
    second.wait_for_passes(2).await;
    assert_eq!(rig.haproxy.text(), before);
    assert!(!leads(&second).await);
    let said = election(&first).await;
    assert_eq!((&said["leads"], &said["holder"]), (&json!(false), &Value::Null));
    assert!(said["error"].as_str().unwrap().contains("does not answer"), "{said}");
    let (status, body) = post(&first, "/api/v1/reconcile").await;
    assert!(status == 503 && body.contains("does not answer"), "{status} {body}");

    nomad.launch().await;
    wait_for_seats(&rig, 3, TAKEN_OVER).await;
    wait_for("one to lead, and one to stand by", SOON, async || {
        let leaders = [leads(&first).await, leads(&second).await];
        let standby = if leaders[0] { &second } else { &first };
        (leaders[0] != leaders[1] && standby.http("/readyz").await.1 == "standby\n").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_a_person_takes_away_is_noticed() {
    let nomad = Nomad::start().await;
    let rig = Rig::start(Way::Local, "3.2").await;
    write_catalog(&rig.catalog(), &[registration("web", "1", 1, 2001, &["enable=true"])]);
    let catalog = rig.catalog().display().to_string();
    let (gate, url) = Gate::start(&nomad.address).await;
    let first = Controller::start(&elected(rig.env(), &url), &["--catalog", &catalog]);
    wait_until_it_leads(&first, SOON).await;
    let calls = || gate.calls().into_iter().filter(|call| call.contains("/v1/var/")).collect::<Vec<_>>();
    let renewals = || calls().iter().filter(|call| call.contains("lock-renew")).count();
    wait_for("two renewals", SOON, async || (renewals() >= 2).then_some(())).await;
    assert!(calls().len() < 15, "it waits, and does not poll: {:?}", calls());
    let second = Controller::start(&elected(rig.env(), &nomad.address), &["--catalog", &catalog]);
    wait_until_it_stands_by(&second).await;

    let variable = format!("/v1/var/{LOCK}");
    let id = nomad.call(Method::GET, &variable, None).await["Lock"]["ID"].clone();
    nomad.call(Method::PUT, &format!("{variable}?lock-release"), Some(json!({"Lock": {"ID": id}}))).await;
    wait_until_it_leads(&second, SOON).await;
    wait_until_it_stands_by(&first).await;
    assert!(first.log().contains("lost the lock"), "{}", first.log());
    assert_eq!(election(&first).await["holder"]["http"], json!(format!("http://{}", second.listen().await)));
    write_catalog(&rig.catalog(), &[registration("web", "2", 1, 2002, &["enable=true"])]);
    wait_for("the other instance", SOON, async || rig.haproxy.text().contains("127.0.0.1:2002").then_some(())).await;
    assert!(first.metric("nomad_haproxy_live_changes_total").await < 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_the_token_may_not_have_is_named() {
    const READS: &str = "namespace \"*\" {\n capabilities = [\"read-job\"]\n}\n";
    let nomad = Nomad::start_with_acl().await;
    let token = nomad.token_with(READS).await;
    let rig = Rig::start(Way::Local, "3.2").await;
    write_catalog(&rig.catalog(), &[registration("web", "1", 1, 2001, &["enable=true"])]);
    let (catalog, before) = (rig.catalog().display().to_string(), rig.haproxy.text());
    let env = with(elected(rig.env(), &nomad.address), &[("NOMAD_TOKEN", &token)]);
    let mut controller = Controller::start(&env, &["--catalog", &catalog]);
    let denied = format!("Nomad does not let this token lock the variable {LOCK} in the namespace default");
    wait_for("the answer", SOON, async || controller.http("/readyz").await.1.contains(&denied).then_some(())).await;
    let (status, said) = controller.http("/readyz").await;
    assert!(status == 503 && said.contains("capabilities = [\"read\", \"write\"]"), "{said}");
    assert!(controller.log().contains(&denied) && !controller.log().contains(&token), "{}", controller.log());
    controller.wait_for_passes(1).await;
    let applied = run(&env, &["apply", "--catalog", &catalog]).await;
    assert!(!applied.status.success() && stderr(&applied).contains(&denied), "{}", stderr(&applied));
    assert_eq!(rig.haproxy.text(), before);

    let lock = format!("variables {{\n path \"{LOCK}\" {{\n capabilities = [\"read\", \"write\"]\n}}\n}}\n");
    let block = format!("namespace \"default\" {{\n capabilities = [\"read-job\"]\n {lock} }}\n");
    nomad.token_with(&format!("{READS}{block}")).await;
    wait_for_seats(&rig, 1, SOON).await;
    assert_eq!(controller.http("/readyz").await, (200, "ok\n".to_owned()));
    controller.stop().await;

    // A variable that is something else is left as it is.
    let other = "nomad/jobs/nomad-haproxy/lock";
    let password = json!({"Path": other, "Items": {"password": "s3cret"}});
    nomad.call(Method::PUT, &format!("/v1/var/{other}"), Some(password)).await;
    let controller = Controller::start(&env, &["--catalog", &catalog]);
    wait_for("the answer", SOON, async || {
        controller.http("/readyz").await.1.contains("holds something else, which would be lost: password").then_some(())
    })
    .await;
    let kept = nomad.call(Method::GET, &format!("/v1/var/{other}"), None).await;
    assert_eq!(kept["Items"], json!({"password": "s3cret"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_does_not_write_beside_a_leader() {
    let nomad = Nomad::start().await;
    let rig = Rig::start(Way::Local, "3.4").await;
    let write = |port| write_catalog(&rig.catalog(), &[registration("api", "1", 1, port, &["enable=true"])]);
    write(2001);
    let (catalog, env) = (rig.catalog().display().to_string(), elected(rig.env(), &nomad.address));
    let apply = ["apply", "--catalog", &catalog];
    // The lock is free, and is handed back.
    for port in [2001, 2002] {
        write(port);
        let done = run(&env, &apply).await;
        assert!(done.status.success(), "{}", stderr(&done));
        assert!(
            rig.haproxy.text().contains(&format!("127.0.0.1:{port} ")),
            "{}{}{}",
            stdout(&done),
            stderr(&done),
            rig.haproxy.text()
        );
    }
    let mut controller = Controller::start(&env, &["--catalog", &catalog]);
    wait_until_it_leads(&controller, SOON).await;
    let leader = format!("http://{}", controller.listen().await);
    let before = rig.haproxy.text();
    for command in [&apply[..], &["uninstall", "--yes"]] {
        let refused = run(&env, command).await;
        let said = stderr(&refused);
        assert!(!refused.status.success() && said.contains(&leader) && said.contains("`--no-lock`"), "{said}");
        assert_eq!(stdout(&refused), "");
    }
    // A plan writes nothing, so it takes no lock.
    let planned = run(&env, &["plan", "--catalog", &catalog]).await;
    assert!(planned.status.success(), "{}", stderr(&planned));
    assert_eq!(rig.haproxy.text(), before);
    let removed = run(&env, &["uninstall", "--yes", "--no-lock"]).await;
    assert!(removed.status.success(), "{}", stderr(&removed));
    controller.stop().await;
    let removed = run(&env, &["uninstall", "--yes"]).await;
    assert!(removed.status.success(), "{}", stderr(&removed));
    rig.has_none();
}
