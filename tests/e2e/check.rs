//! `check` with each fault in turn: the sentence names the fault and the remedy.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::support::api::{Rig, WAYS, Way};
use crate::support::controller::{Env, registration, run, run_as, stderr, stdout, write_catalog};
use crate::support::haproxy::{Haproxy, binary, conditional, hand_written, matrix};
use crate::support::nomad::{Nomad, job};
use crate::support::{root, wait_for};
use reqwest::Method;
use serde_json::{Value, json};

const LOCK: &str = "nomad/jobs/nomad-haproxy/lock";
/// Where nobody listens: the kernel gives no port below 1024 to those who ask for any.
const NOBODY: &str = "http://127.0.0.1:1";

/// What `check` found: whether all is well, and its lines as text and as JSON, which agree.
struct Checked {
    is_ok: bool,
    text: String,
    checks: Vec<Value>,
}

impl Checked {
    /// The verdict, the text and the advice about this part. Of several lines it is the one with these words.
    fn is(&self, part: &str, verdict: &str, words: &[&str]) {
        let said =
            |one: &Value| format!("{} {}", one["text"].as_str().unwrap(), one["hint"].as_str().unwrap_or_default());
        let mut of_part = self.checks.iter().filter(|one| one["part"] == part && one["verdict"] == verdict);
        let found = of_part.any(|one| words.iter().all(|word| said(one).contains(word)));
        assert!(found, "no {part} that is {verdict} with {words:?} in:\n{}", self.text);
        assert_eq!(self.is_ok, self.checks.iter().all(|one| one["verdict"] != "failed"), "{}", self.text);
    }

    /// Nothing failed.
    fn is_well(&self) {
        assert!(self.is_ok, "{}", self.text);
    }
}

async fn check(env: &Env) -> Checked {
    let output = run(env, &["check"]).await;
    let text = stdout(&output);
    assert!(!text.contains('\x1b'), "no colour in a pipe: {text}");
    let is_ok = output.status.success();
    assert_eq!(output.status.code(), Some(i32::from(!is_ok)), "{}", stderr(&output));
    let output = run(env, &["check", "--output", "json"]).await;
    let json: Value = serde_json::from_str(&stdout(&output)).unwrap_or_else(|e| panic!("{e}: {}", stderr(&output)));
    assert_eq!((&json["ok"], output.status.success()), (&is_ok.into(), is_ok), "{text}");
    let checks = json["checks"].as_array().unwrap().clone();
    for one in &checks {
        // Times in it differ from one run to the next.
        let start: String = one["text"].as_str().unwrap().chars().take(30).collect();
        assert!(text.contains(&start), "{start} in: {text}");
    }
    Checked { is_ok, text, checks }
}

/// With Nomad and a lock.
fn env(rig: &Rig, nomad: &str, token: &str) -> Env {
    rig.env_with(&[("NOMAD_ADDR", nomad), ("NOMAD_TOKEN", token), ("NOMAD_HAPROXY_LEADER_LOCK", LOCK)])
}

fn with(env: &Env, more: &[(&str, &str)]) -> Env {
    let mut env = env.clone();
    env.extend(more.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    env
}

/// The least policy, without what is between these words, both included.
fn policy_without(from: &str, to: &str, nth: usize) -> String {
    let policy = std::fs::read_to_string(root().join("deploy/policy.hcl")).unwrap();
    let start = policy.match_indices(from).nth(nth).unwrap_or_else(|| panic!("{from} in {policy}")).0;
    let end = start + policy[start..].find(to).unwrap() + to.len();
    format!("{}{}", &policy[..start], &policy[end..])
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_policy_suffices_and_each_line_of_it_is_missed() {
    let nomad = Nomad::start_with_acl().await;
    nomad.call(Method::POST, "/v1/namespace/team-a", Some(json!({"Name": "team-a"}))).await;
    let policy = std::fs::read_to_string(root().join("deploy/policy.hcl")).unwrap();
    let token = nomad.token_with(&policy).await;
    let rig = Rig::start(Way::Local, "3.2").await;
    let env = env(&rig, &nomad.address, &token);
    // An empty Nomad, then one with services and a lock that somebody holds.
    let checked = check(&env).await;
    checked.is_well();
    for part in ["nomad", "token", "services", "events", "allocations", "lock", "haproxy"] {
        checked.is(part, "ok", &[]);
    }
    let variable = format!("/v1/var/{LOCK}");
    assert!(nomad.try_call(Method::GET, &variable, None).await.is_none(), "it makes no lock");
    let lock = json!({"Lock": {"TTL": "10s", "LockDelay": "1s"}, "Items": {"holder": "another", "http": ""}});
    nomad.call(Method::PUT, &format!("{variable}?lock-acquire"), Some(lock)).await;
    let before = nomad.call(Method::GET, &variable, None).await;
    let checked = check(&env).await;
    checked.is_well();
    checked.is("lock", "ok", &["another"]);
    assert_eq!(nomad.call(Method::GET, &variable, None).await, before, "the lock is left alone");

    let read_job = ("capabilities = [\"read-job\"]", "]");
    let lock_right = "path \"nomad/jobs/nomad-haproxy/lock\" { capabilities = [\"read\", \"write\"] }";
    let all = "`namespace \"*\" { capabilities = [\"read-job\"] }`";
    let default = "`namespace \"default\" { capabilities = [\"read-job\"] }`";
    // What is missing in it, and the parts that miss it, each with the line.
    let cases: [(String, &[&str], &str); 5] = [
        (policy_without(read_job.0, read_job.1, 0), &["events"], all),
        (policy_without(read_job.0, read_job.1, 1), &["services", "allocations"], default),
        (policy_without("\"read\", ", " ", 0), &["lock"], lock_right),
        (policy_without(", \"write\"", "\"write\"", 0), &["lock"], lock_right),
        (policy_without("variables {", "    }\n  }\n", 0), &["lock"], lock_right),
    ];
    for (rules, parts, line) in cases {
        nomad.token_with(&rules).await;
        let checked = check(&env).await;
        for part in parts {
            checked.is(part, "failed", &[line]);
        }
    }
    nomad.token_with(&policy).await;
    check(&env).await.is_well();
    // Namespaces that are named one by one need no right in the others.
    nomad.token_with("namespace \"team-a\" {\n capabilities = [\"read-job\"]\n}").await;
    let named = |names: &str| {
        rig.env_with(&[("NOMAD_ADDR", &nomad.address), ("NOMAD_TOKEN", &token), ("NOMAD_NAMESPACE", names)])
    };
    check(&named("team-a")).await.is_well();
    let checked = check(&named("team-a,default")).await;
    for part in ["services", "events", "allocations"] {
        checked.is(part, "failed", &["\"default\"", default]);
    }
    assert!(!checked.text.contains(&token));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_nomad_is_named() {
    let nomad = Nomad::start_with_acl().await;
    let rig = Rig::start(Way::Local, "3.2").await;
    let (management, address) = (nomad.token.clone().unwrap(), nomad.address.as_str());
    let checked = check(&env(&rig, address, &management)).await;
    checked.is_well();
    checked.is("token", "warning", &["may do everything", "deploy/policy.hcl"]);
    let checked = check(&env(&rig, address, "3b7b2c0a-1111-2222-3333-444444444444")).await;
    checked.is("token", "failed", &["does not take it", "NOMAD_TOKEN"]);
    checked.is("services", "skipped", &[]);
    let checked = check(&env(&rig, address, "s3cret")).await;
    checked.is("token", "failed", &["does not take it"]);
    assert!(!checked.text.contains("s3cret"), "{}", checked.text);
    let checked = check(&rig.env_with(&[("NOMAD_ADDR", address)])).await;
    checked.is("token", "warning", &["anonymous"]);
    checked.is("services", "failed", &["may not read the services", "read-job"]);
    let missing =
        rig.env_with(&[("NOMAD_ADDR", address), ("NOMAD_TOKEN", &management), ("NOMAD_NAMESPACE", "defualt")]);
    check(&missing).await.is("namespaces", "failed", &["there is no namespace \"defualt\"", "NOMAD_NAMESPACE"]);
    // A variable with something else in it.
    let taken = json!({"Items": {"password": "s3cret"}});
    nomad.call(Method::PUT, &format!("/v1/var/{LOCK}"), Some(taken)).await;
    check(&env(&rig, address, &management)).await.is("lock", "failed", &["password", "leader.lock"]);

    let checked = check(&env(&rig, NOBODY, &management)).await;
    checked.is("nomad", "failed", &["does not answer", "refused", "NOMAD_ADDR"]);
    checked.is("token", "skipped", &[]);
    checked.is("haproxy", "ok", &["3.2"]);
    // Something else answers there.
    let other = Rig::start(Way::Api, "3.2").await;
    check(&env(&rig, &other.api.as_ref().unwrap().url, "")).await.is("nomad", "failed", &["NOMAD_ADDR"]);
    // Not encrypted, and not on this machine.
    let outside = env(&rig, "http://nomad.invalid:4646", "");
    check(&outside).await.is("nomad", "failed", &["nomad.invalid"]);
    let file = rig.haproxy.folder().join("no-such-token").display().to_string();
    let checked = check(&rig.env_with(&[("NOMAD_ADDR", address), ("NOMAD_TOKEN_FILE", &file)])).await;
    checked.is("nomad", "failed", &["cannot read the token file", "no-such-token"]);
    nomad.freeze();
    let silent = check(&env(&rig, address, &management)).await;
    nomad.thaw();
    silent.is("nomad", "failed", &["does not answer"]);
}

/// HAProxy is as it was.
async fn unchanged(rig: &Rig, env: &Env) -> Checked {
    let (text, reloads, worker) = (rig.haproxy.bytes(), rig.haproxy.reloads().await, rig.haproxy.worker().await);
    let checked = check(env).await;
    assert_eq!((rig.haproxy.bytes(), rig.haproxy.reloads().await, rig.haproxy.worker().await), (text, reloads, worker));
    if let Some(api) = &rig.api {
        let url = format!("{}/v3/services/haproxy/transactions", api.url);
        let request = reqwest::Client::new().get(url).basic_auth("admin", Some("secret"));
        let open: Value = request.send().await.unwrap().json().await.unwrap();
        assert_eq!(open.as_array().map_or(0, Vec::len), 0, "no transaction is left: {open}");
    }
    checked
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_haproxy_is_well_on_each_plane_and_left_alone() {
    let nomad = Nomad::start().await;
    nomad.submit(job("web", 1, &["enable=true"], None)).await;
    for series in matrix() {
        for way in WAYS {
            let rig = Rig::start(way, series).await;
            let env = rig.env_with(&[("NOMAD_ADDR", &nomad.address)]);
            // With something of ours in it.
            write_catalog(&rig.catalog(), &[registration("api", "1", 1, 2001, &["enable=true"])]);
            crate::support::controller::apply(&rig.env(), &rig.catalog()).await;
            let checked = unchanged(&rig, &env).await;
            checked.is_well();
            checked.is("token", "ok", &["ACLs are off"]);
            checked.is("haproxy", "ok", &[series]);
            checked.is("validation", "ok", &[]);
            checked.is("writing", "ok", &[]);
            let socket = with(&rig.env_with_socket(), &[("NOMAD_ADDR", &nomad.address)]);
            let checked = unchanged(&rig, &socket).await;
            checked.is_well();
            let what = if series == "3.4" { "servers and backends" } else { "servers come and go" };
            checked.is("run-time", "ok", &[what]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_haproxy_is_named_on_the_local_plane() {
    let mut rig = Rig::start(Way::Local, "3.2").await;
    let good = rig.env_with(&[("NOMAD_ADDR", NOBODY)]);
    let folder = rig.haproxy.folder().to_owned();
    let in_folder = |name: &str| folder.join(name).display().to_string();
    check(&with(&good, &[("HAPROXY_CONFIG_FILE", &in_folder("none.cfg"))])).await.is(
        "configuration",
        "failed",
        &["none.cfg", "No such file"],
    );
    check(&with(&good, &[("HAPROXY_BINARY", "/no/such/haproxy")])).await.is(
        "validation",
        "failed",
        &["/no/such/haproxy"],
    );
    // The process reads another file.
    std::fs::copy(rig.haproxy.config(), folder.join("copy.cfg")).unwrap();
    check(&with(&good, &[("HAPROXY_CONFIG_FILE", &in_folder("copy.cfg"))])).await.is(
        "socket",
        "warning",
        &["not visible here how HAProxy was started", "haproxy.files"],
    );
    let text = rig.haproxy.text();
    std::fs::write(rig.haproxy.config(), format!("{text}\nbackend broken\n  no-such-word\n")).unwrap();
    let checked = check(&good).await;
    checked.is("validation", "failed", &["no-such-word", "correct these lines"]);
    std::fs::write(rig.haproxy.config(), text).unwrap();
    // Conditionals are no trouble here.
    std::fs::write(rig.haproxy.config(), conditional(&folder, rig.haproxy.port)).unwrap();
    check(&good).await.is("writing", "ok", &[]);
    rig.haproxy.kill();
    let checked = check(&good).await;
    checked.is("haproxy", "failed", &["does not answer", "HAPROXY_MASTER_SOCKET"]);
    checked.is("configuration", "ok", &[]);
    checked.is("validation", "skipped", &[]);
    for level in ["operator", "user"] {
        rig.haproxy.kill();
        rig.haproxy.socket_options = format!("mode,600,level,{level}");
        rig.haproxy.launch().await;
        check(&good).await.is("socket", "failed", &["it takes admin", level, "-S"]);
    }
}

/// The user is nobody's: the folder is not theirs to write, and then the socket not theirs to open.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_user_may_not_do_is_named() {
    const USER: u32 = 61_003;
    let mut haproxy = Haproxy::prepare(binary("3.2").unwrap());
    haproxy.socket_options = format!("mode,660,gid,{USER}");
    std::fs::write(haproxy.config(), hand_written(haproxy.folder(), haproxy.port)).unwrap();
    std::fs::set_permissions(haproxy.folder(), std::fs::Permissions::from_mode(0o755)).unwrap();
    haproxy.launch().await;
    let rig = Rig::with(Way::Local, "3.2", haproxy).await;
    let env = rig.env_with(&[("NOMAD_ADDR", NOBODY)]);
    let Some(output) = run_as(USER, USER, &env, &["check"]) else { return };
    let said = stdout(&output);
    assert!(!output.status.success() && said.contains("cannot write a new file beside"), "{said}");
    assert!(said.contains("Permission denied"), "{said}");
    std::fs::set_permissions(rig.haproxy.master(), std::fs::Permissions::from_mode(0o600)).unwrap();
    let output = run_as(USER, USER, &env, &["check"]).unwrap();
    let said = stdout(&output);
    assert!(said.contains("may this user open the socket?") && said.contains("mode,660,group,GROUP"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_haproxy_is_named_beside_its_api() {
    let mut rig = Rig::start(Way::Api, "3.2").await;
    let good = rig.env_with(&[("NOMAD_ADDR", NOBODY)]);
    let socket = rig.haproxy.folder().join("stats.sock").display().to_string();
    let checked = check(&good).await;
    checked.is("haproxy", "ok", &["HAProxy 3.2", "the Data Plane API at"]);
    checked.is("run-time", "ok", &["spare servers", "HAPROXY_RUNTIME_SOCKET"]);
    let checked = check(&with(&good, &[("HAPROXY_PASSWORD", "s3cret")])).await;
    checked.is("haproxy", "failed", &["refuses the credentials", "haproxy.password"]);
    checked.is("configuration", "skipped", &[]);
    assert!(!checked.text.contains("s3cret"));
    check(&with(&good, &[("HAPROXY_DATAPLANE_URL", NOBODY)])).await.is(
        "haproxy",
        "failed",
        &["does not answer", "refused", "HAPROXY_DATAPLANE_URL"],
    );

    // The socket: of none, of another HAProxy, the master's, of another level.
    let with_socket = |socket: &str| with(&good, &[("HAPROXY_RUNTIME_SOCKET", socket)]);
    check(&with_socket(&socket)).await.is("run-time", "ok", &["servers come and go without a reload"]);
    check(&with_socket("/no/such.sock")).await.is("run-time", "failed", &["/no/such.sock does not answer"]);
    let other = Haproxy::start("3.2").await;
    let others = other.folder().join("stats.sock").display().to_string();
    check(&with_socket(&others)).await.is("run-time", "failed", &["belongs to another HAProxy"]);
    let master = rig.haproxy.master().display().to_string();
    check(&with_socket(&master)).await.is("run-time", "failed", &["is no stats socket"]);
    let low = Rig::with(
        Way::Api,
        "3.2",
        Haproxy::start_with("3.2", |folder, port| hand_written(folder, port).replace("level admin", "level operator"))
            .await,
    )
    .await;
    let low_socket = low.haproxy.folder().join("stats.sock").display().to_string();
    let low_env = low.env_with(&[("NOMAD_ADDR", NOBODY), ("HAPROXY_RUNTIME_SOCKET", &low_socket)]);
    check(&low_env).await.is("run-time", "failed", &["level admin", "operator"]);

    // A file that no write through the API leaves as it is.
    let torn = Rig::with(Way::Api, "3.2", Haproxy::start_with("3.2", conditional).await).await;
    let checked = check(&torn.env_with(&[("NOMAD_ADDR", NOBODY)])).await;
    checked.is("writing", "failed", &["`.if`", "haproxy.config_file"]);

    rig.haproxy.kill();
    let dead = wait_for("the API to miss its HAProxy", Duration::from_secs(20), async || {
        let checked = check(&good).await;
        (!checked.checks.iter().any(|one| one["part"] == "haproxy" && one["verdict"] == "ok")).then_some(checked)
    })
    .await;
    dead.is("haproxy", "failed", &["start HAProxy"]);
    rig.api.as_mut().unwrap().kill();
    check(&good).await.is("haproxy", "failed", &["does not answer"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_haproxy_is_named_and_so_is_a_service_without_any() {
    if binary("2.6").is_some() {
        for way in WAYS {
            let rig = Rig::with(way, "2.6", Haproxy::start("2.6").await).await;
            let checked = check(&rig.env_with(&[("NOMAD_ADDR", NOBODY)])).await;
            checked.is("haproxy", "failed", &["2.6.12", "3.0 or newer"]);
        }
    } else {
        eprintln!("HAProxy 2.6 could not be had: NOT tested");
    }
    let nothing: Env = vec![("NOMAD_ADDR".into(), NOBODY.into())];
    check(&nothing).await.is("haproxy", "failed", &["no HAProxy is configured", "HAPROXY_DATAPLANE_URL"]);
    let nomad = Nomad::start().await;
    let service = [("NOMAD_ADDR", nomad.address.as_str()), ("HAPROXY_SERVICE", "edge"), ("HAPROXY_PASSWORD", "secret")];
    check(&with(&vec![], &service)).await.is("haproxy", "failed", &["no HAProxy is registered", "edge"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_haproxys_each_line_names_its_own() {
    let (one, two) = (Rig::start(Way::Local, "3.2").await, Rig::start(Way::Local, "3.0").await);
    let entry = |name: &str, rig: &Rig| json!({"name": name, "config_file": rig.haproxy.config(), "master_socket": rig.haproxy.master(), "binary": rig.haproxy.binary});
    let mut three = entry("three", &one);
    three["config_file"] = json!("/no/such.cfg");
    let file = one.haproxy.folder().join("settings.json");
    let settings = json!({"nomad": {"address": NOBODY}, "haproxy": [entry("one", &one), entry("two", &two), three]});
    std::fs::write(&file, settings.to_string()).unwrap();
    let env: Env = vec![("NOMAD_HAPROXY_CONFIG".into(), file.display().to_string())];
    let checked = check(&env).await;
    let of = |name: &str| checked.checks.iter().filter(|one| one["haproxy"] == name).cloned().collect::<Vec<Value>>();
    assert!(of("one").iter().chain(&of("two")).all(|one| one["verdict"] == "ok"), "{}", checked.text);
    assert!(of("three").iter().any(|one| one["verdict"] == "failed"), "{}", checked.text);
    assert!(checked.text.contains("three configuration"), "{}", checked.text);
    let output = run(&env, &["check", "--haproxy", "two"]).await;
    assert!(!stdout(&output).contains("three"), "{}", stdout(&output));
    let output = run(&env, &["check", "--haproxy", "four"]).await;
    assert!(stderr(&output).contains("no HAProxy is called \"four\""), "{}", stderr(&output));
}
