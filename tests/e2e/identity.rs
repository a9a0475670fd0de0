//! Who the controller is to a real Nomad: a token, a workload identity by the Task API, a certificate; and what it takes
//! for Nomad.

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use crate::support::api::{Rig, Way};
use crate::support::controller::{Env, binary, run, stderr, stdout};
use crate::support::nomad::{Nomad, Tls, job};
use crate::support::process::Group;
use crate::support::{free_port, root, wait_for};
use serde_json::{Value, json};

const READS_ALL: &str = "namespace \"*\" {\n capabilities = [\"read-job\"]\n}";

/// Reads the catalog with these settings.
async fn catalog(settings: &[(&str, &str)]) -> Output {
    let env: Env = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    run(&env, &["catalog"]).await
}

/// With them the catalog is read, and has the service `web`.
async fn reads(settings: &[(&str, &str)]) -> String {
    let output = catalog(settings).await;
    assert!(output.status.success() && stdout(&output).contains("\"web\""), "{settings:?}: {}", stderr(&output));
    stderr(&output)
}

/// With them it is not, and the error says this.
async fn fails(settings: &[(&str, &str)], words: &[&str]) {
    let output = catalog(settings).await;
    let said = stderr(&output);
    assert!(!output.status.success(), "{settings:?} {}", stdout(&output));
    assert!(words.iter().all(|word| said.contains(word)), "{settings:?}: {said}");
}

fn path(folder: &Path, name: &str) -> String {
    folder.join(name).display().to_string()
}

/// Its registration counts, not what it does.
async fn submit_web(nomad: &Nomad) {
    nomad.submit(job("web", 1, &["enable=true"], None)).await;
    nomad.wait_for_instances("web", 1).await;
}

/// As in a small container.
#[tokio::test(flavor = "multi_thread")]
async fn without_any_ca_of_the_system_http_works_and_a_named_ca_is_enough() {
    let (plain, tls) = (Nomad::start().await, Nomad::start_with_tls(false, Tls::Server).await);
    submit_web(&plain).await;
    submit_web(&tls).await;
    let (none, ca) = (path(plain.folder(), "none"), path(tls.folder(), "ca.pem"));
    std::fs::create_dir(&none).unwrap();
    let none = ("SSL_CERT_DIR", none.as_str());
    reads(&[none, ("NOMAD_ADDR", &plain.address)]).await;
    reads(&[none, ("NOMAD_ADDR", &tls.address), ("NOMAD_CACERT", &ca)]).await;
    fails(&[none, ("NOMAD_ADDR", &tls.address)], &["install the package ca-certificates"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_ca_is_trusted_where_the_settings_name_it() {
    let nomad = Nomad::start_with_tls(true, Tls::Server).await;
    submit_web(&nomad).await;
    let token = nomad.token_with(READS_ALL).await;
    let (ca, other) = (path(nomad.folder(), "ca.pem"), path(nomad.folder(), "other.pem"));
    let (address, token) = (("NOMAD_ADDR", nomad.address.as_str()), ("NOMAD_TOKEN", token.as_str()));
    let said = reads(&[address, token, ("NOMAD_CACERT", &ca)]).await;
    assert_eq!(said, "", "nothing to say");
    reads(&[address, token, ("NOMAD_CACERT", &ca), ("NOMAD_REGION", "global")]).await;
    fails(&[address, token, ("NOMAD_CACERT", &ca), ("NOMAD_REGION", "elsewhere")], &["No path to region"]).await;
    fails(&[address, token], &["certificate that is not trusted", "NOMAD_CACERT"]).await;
    fails(&[address, token, ("NOMAD_CACERT", &other)], &["certificate that is not trusted", "NOMAD_CACERT"]).await;
    fails(&[address, ("NOMAD_CACERT", &ca)], &["NOMAD_TOKEN", "read-job"]).await;
    let plain = nomad.address.replace("https://", "http://");
    fails(&[("NOMAD_ADDR", &plain), token], &["HTTPS server"]).await;
    // Loud: a warning at each start.
    for yes in ["true", "1"] {
        let said = reads(&[address, token, ("NOMAD_SKIP_VERIFY", yes)]).await;
        assert!(said.contains("WARN") && said.contains("certificate is not checked"), "{said}");
    }
    fails(&[address, token, ("NOMAD_SKIP_VERIFY", "false")], &["certificate that is not trusted"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nomad_is_shown_a_certificate_and_may_have_another_name_than_its_address() {
    let nomad = Nomad::start_with_tls(false, Tls::MutualNamed).await;
    submit_web(&nomad).await;
    let file = |name| path(nomad.folder(), name);
    let (ca, certificate, key) = (file("ca.pem"), file("client.pem"), file("client.key"));
    let (address, ca) = (("NOMAD_ADDR", nomad.address.as_str()), ("NOMAD_CACERT", ca.as_str()));
    let identity = [("NOMAD_CLIENT_CERT", certificate.as_str()), ("NOMAD_CLIENT_KEY", key.as_str())];
    let name = ("NOMAD_TLS_SERVER_NAME", "server.global.nomad");
    reads(&[&[address, ca, name], &identity[..]].concat()).await;
    // By a host name, too.
    let by_name = nomad.address.replace("127.0.0.1", "localhost");
    reads(&[&[("NOMAD_ADDR", by_name.as_str()), ca, name], &identity[..]].concat()).await;
    fails(&[&[address, ca], &identity[..]].concat(), &["certificate that is not trusted", "NOMAD_TLS_SERVER_NAME"])
        .await;
    let wrong = ("NOMAD_TLS_SERVER_NAME", "client.global.nomad");
    fails(&[&[address, ca, wrong], &identity[..]].concat(), &["certificate that is not trusted"]).await;
    fails(&[address, ca, name], &["refuses the TLS connection", "NOMAD_CLIENT_CERT"]).await;
}

/// A HAProxy in front of Nomad that lets one user through.
fn guarded(folder: &Path, nomad: &str) -> (Group, String) {
    let (port, nomad) = (free_port(), nomad.strip_prefix("http://").unwrap());
    let config = format!(
        "userlist people\n  user edge insecure-password pass:word\n\
         defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
         frontend nomad\n  bind 127.0.0.1:{port}\n  http-request auth unless {{ http_auth(people) }}\n  default_backend nomad\n\
         backend nomad\n  server nomad {nomad}\n"
    );
    std::fs::write(folder.join("guarded.cfg"), config).unwrap();
    let log = std::fs::File::create(folder.join("guarded.log")).unwrap();
    let mut command = std::process::Command::new(crate::support::haproxy::binary("3.2").unwrap());
    command.arg("-db").arg("-f").arg(folder.join("guarded.cfg")).stdout(log.try_clone().unwrap()).stderr(log);
    (Group::spawn(&mut command), format!("http://127.0.0.1:{port}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_in_front_of_nomad_is_given_user_and_password() {
    let nomad = Nomad::start_with_acl().await;
    submit_web(&nomad).await;
    let token = nomad.token_with(READS_ALL).await;
    let (_proxy, url) = guarded(nomad.folder(), &nomad.address);
    wait_for("the proxy", Duration::from_secs(10), async || reqwest::get(&url).await.ok().map(drop)).await;
    let (address, token) = (("NOMAD_ADDR", url.as_str()), ("NOMAD_TOKEN", token.as_str()));
    reads(&[address, token, ("NOMAD_HTTP_AUTH", "edge:pass:word")]).await;
    for settings in [vec![address, token], vec![address, token, ("NOMAD_HTTP_AUTH", "edge:s3cret")]] {
        fails(&settings, &["NOMAD_HTTP_AUTH"]).await;
        assert!(!stderr(&catalog(&settings).await).contains("s3cret"));
    }
}

/// The controller as a task, which finds Nomad by what Nomad gives it.
fn controller_job(rig: &Rig, port: u16) -> Value {
    let env: serde_json::Map<String, Value> = rig.env().into_iter().map(|(key, value)| (key, value.into())).collect();
    json!({
        "ID": "nomad-haproxy", "Name": "nomad-haproxy", "Type": "service", "Datacenters": ["*"],
        "TaskGroups": [{
            "Name": "g", "Count": 1, "EphemeralDisk": {"SizeMB": 10},
            "Tasks": [{
                "Name": "controller", "Driver": "raw_exec", "Env": env,
                "Config": {"command": binary(),
                           "args": ["run", "--nomad-namespace=*", format!("--http-listen=127.0.0.1:{port}")]},
                "Identity": {"Env": true, "File": true},
                "Resources": {"CPU": 20, "MemoryMB": 64}, "LogConfig": {"MaxFiles": 1, "MaxFileSizeMB": 1},
            }],
        }],
    })
}

/// The line about a part of `check`.
fn line<'a>(said: &'a str, part: &str) -> &'a str {
    said.lines()
        .find(|line| line.split_whitespace().nth(1) == Some(part))
        .unwrap_or_else(|| panic!("no {part}: {said}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_reaches_nomad_by_the_task_api_with_its_own_identity() {
    let nomad = Nomad::start_with_acl().await;
    let rig = Rig::start(Way::Local, "3.2").await;
    let rules = std::fs::read_to_string(root().join("deploy/policy.hcl")).unwrap();
    let job_acl = json!({"Namespace": "default", "JobID": "nomad-haproxy"});
    let policy = json!({"Name": "nomad-haproxy", "Rules": rules, "JobACL": job_acl});
    nomad.call(reqwest::Method::POST, "/v1/acl/policy/nomad-haproxy", Some(policy)).await;
    nomad.call(reqwest::Method::POST, "/v1/namespace/team-a", Some(json!({"Name": "team-a"}))).await;
    let mut there = job("there", 1, &["enable=true"], None);
    there["Namespace"] = "team-a".into();
    nomad.submit(there).await;
    submit_web(&nomad).await;
    nomad.submit(controller_job(&rig, free_port())).await;
    let seated = || rig.haproxy.text().matches("\"id\":").count();
    wait_for("both services", Duration::from_secs(60), async || (seated() == 2).then_some(())).await;

    // The same identity, from outside of the task.
    let allocations = nomad.call(reqwest::Method::GET, "/v1/job/nomad-haproxy/allocations", None).await;
    let id = allocations[0]["ID"].as_str().unwrap().to_owned();
    let mut find = std::process::Command::new("find");
    find.arg(nomad.folder()).args(["-path", &format!("*{id}/controller/secrets")]);
    let secrets = crate::support::haproxy::output(&mut find).trim().to_owned();
    let (socket, token) = (format!("unix://{secrets}/api.sock"), format!("{secrets}/nomad_token"));
    let with = |more: &[(&str, &str)]| rig.env_with(&[&[("NOMAD_UNIX_ADDR", socket.as_str())], more].concat());
    let checked = run(&with(&[("NOMAD_TOKEN_FILE", &token)]), &["check"]).await;
    let said = stdout(&checked);
    assert!(checked.status.success(), "{said}{}", stderr(&checked));
    assert!(line(&said, "nomad").contains(&socket), "{said}");
    assert!(line(&said, "token").contains("workload identity"), "{said}");
    // The Task API wants a token, so it is not used without one; and it says so if it is named.
    let named = run(&rig.env_with(&[("NOMAD_ADDR", &socket)]), &["check"]).await;
    let said = stdout(&named);
    assert!(line(&said, "nomad").starts_with("FAILED") && said.contains("the Task API needs a token"), "{said}");

    // Without its policy it may read nothing, and what is routed stays.
    nomad.call(reqwest::Method::DELETE, "/v1/acl/policy/nomad-haproxy", None).await;
    let checked = run(&with(&[("NOMAD_TOKEN_FILE", &token)]), &["check"]).await;
    let said = stdout(&checked);
    assert!(!checked.status.success() && said.contains("capabilities = [\"read-job\"]"), "{said}");
    assert_eq!(seated(), 2);
}
