//! The command line without Nomad and HAProxy, and what it refuses: clear messages, no secrets.

use std::time::Duration;

use crate::support::api::{Rig, WAYS};
use crate::support::controller::{Controller, Env, apply, registration, run, stderr, write_catalog};
use crate::support::haproxy::{Haproxy, binary};
use crate::support::tls::{certificates, front};
use crate::support::wait_for;
use assert_cmd::Command;
use serde_json::{Value, json};

fn controller(arguments: &[&str], env: &[(&str, &str)]) -> assert_cmd::assert::Assert {
    let mut command = Command::cargo_bin("nomad-haproxy").unwrap();
    command.env_clear().args(arguments).envs(env.iter().copied()).assert()
}

fn says(assert: assert_cmd::assert::Assert, words: &[&str]) {
    let output = assert.failure().get_output().clone();
    let said = String::from_utf8(output.stderr).unwrap();
    for word in words {
        assert!(said.contains(word), "{word:?} in:\n{said}");
    }
    assert!(!said.contains("s3cret"), "{said}");
}

#[test]
fn the_version_is_printed() {
    controller(&["--version"], &[]).success().stdout(concat!("nomad-haproxy ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn a_wrong_usage_is_1_and_no_argument_is_answered_by_the_short_help() {
    for wrong in [&["plan", "--nope"][..], &["nope"], &["plan", "--output", "yaml"], &["apply", "--catalog"]] {
        controller(wrong, &[]).code(1);
    }
    for asked in ["--help", "-h", "help", "--version"] {
        controller(&[asked], &[]).code(0);
    }
    for env in [&[][..], &[("NOMAD_ADDR", "http://127.0.0.1:1")]] {
        let assert = controller(&[], env).code(1).stdout("");
        let said = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
        assert!(said.contains("Usage: nomad-haproxy") && said.contains("  apply "), "{said}");
        assert!(
            said.lines().count() < 20 && said.contains("--help"),
            "it is short, and says where the rest is:\n{said}"
        );
    }
}

/// The shell itself takes the completions, and `man` the pages.
#[test]
fn completions_and_man_pages_are_made_without_settings() {
    let made = controller(&["completions", "bash"], &[]).success().get_output().stdout.clone();
    let script = String::from_utf8(made).unwrap();
    let ask =
        "COMP_WORDS=(nomad-haproxy ex); COMP_CWORD=1; _nomad__haproxy nomad-haproxy ex nomad-haproxy; echo $COMPREPLY";
    let output = std::process::Command::new("bash").arg("-c").arg(format!("{script}\n{ask}")).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "explain\n", "{}", String::from_utf8_lossy(&output.stderr));
    for shell in ["zsh", "fish"] {
        controller(&["completions", shell], &[]).success();
    }
    let folder = tempfile::tempdir().unwrap();
    controller(&["man", folder.path().to_str().unwrap()], &[]).success();
    for (page, words) in [("nomad-haproxy.1", "NOMAD_ADDR"), ("nomad-haproxy-plan.1", "detailed\\-exitcode")] {
        let text = std::fs::read_to_string(folder.path().join(page)).unwrap();
        assert!(text.contains(".SH NAME") && text.contains(words), "{page}:\n{text}");
    }
    let file = folder.path().join("nomad-haproxy.1").display().to_string();
    says(controller(&["man", &file], &[]), &["cannot write the man pages to", &file]);
}

/// A catalog of one service with a check, and a configuration to plan on offline.
fn offline() -> (tempfile::TempDir, [String; 5]) {
    let folder = tempfile::tempdir().unwrap();
    let (catalog, config) = (folder.path().join("catalog.json"), folder.path().join("haproxy.cfg"));
    write_catalog(&catalog, &[registration("api", "1", 1, 80, &["enable=true", "check.path=/"])]);
    std::fs::write(&config, "global\n\ndefaults\n  mode http\n").unwrap();
    let (catalog, config) = (catalog.display().to_string(), config.display().to_string());
    (folder, ["plan".to_owned(), "--catalog".to_owned(), catalog, "--haproxy-config".to_owned(), config])
}

fn with<'a>(arguments: &'a [String; 5], more: &[&'a str]) -> Vec<&'a str> {
    arguments.iter().map(String::as_str).chain(more.iter().copied()).collect()
}

/// The names in it must not change, as programs read them.
#[test]
fn a_plan_as_json_names_every_server_and_what_happens_to_it() {
    let (folder, plan) = offline();
    let json = |registrations: &[Value]| -> Value {
        write_catalog(&folder.path().join("catalog.json"), registrations);
        let assert = controller(&with(&plan, &["--output", "json"]), &[("NOMAD_HAPROXY_SLOTS_MIN_FREE", "1")]);
        serde_json::from_slice(&assert.success().get_output().stdout).unwrap()
    };
    let one = |port: u16, tags: &[&str]| registration("api", &port.to_string(), port.into(), port, tags);
    let server = |name: &str, action: &str, port: u16, seated: bool| {
        let instance = seated.then(|| port.to_string());
        let service = seated.then(|| json!({"namespace": "default", "name": "api"}));
        let allocation = seated.then(|| format!("alloc-{port}"));
        json!({"name": name, "action": action, "address": "127.0.0.1", "port": port, "instance": instance,
            "allocation": allocation, "service": service})
    };
    let planned = json(&[one(2001, &["enable=true"]), one(2002, &["enable=true", "wieght=1"])]);
    assert_eq!((&planned["changes"], &planned["live"], &planned["version"]), (&json!(true), &json!(false), &json!(0)));
    let notes = planned["notes"].as_array().unwrap();
    assert_eq!((notes.len(), &notes[0]["code"], &notes[0]["severity"]), (1, &json!("bad-tag"), &json!("warning")));
    let backend = &planned["backends"][0];
    assert_eq!((&backend["name"], &backend["action"]), (&json!("api"), &json!("create")));
    let servers = backend["servers"].as_array().unwrap();
    assert_eq!(servers[..2], [server("api_1", "in", 2001, true), server("api_2", "in", 2002, true)]);
    assert_eq!(servers[2], server("api_3", "spare", 1, false));

    // The configuration after that plan: what its diff adds.
    let diff = planned["diff"].as_str().unwrap();
    let added = diff.lines().filter(|line| !line.starts_with("+++")).filter_map(|line| line.strip_prefix('+'));
    let config = folder.path().join("haproxy.cfg");
    let text = std::fs::read_to_string(&config).unwrap() + &added.collect::<Vec<_>>().join("\n") + "\n";
    std::fs::write(&config, text).unwrap();
    let planned = json(&[one(2002, &["enable=true", "weight=7"]), one(2003, &["enable=true"])]);
    assert_eq!((&planned["live"], &planned["backends"][0]["action"]), (&json!(true), &json!("change")));
    let wanted =
        [server("api_1", "out", 2001, true), server("api_2", "change", 2002, true), server("api_3", "in", 2003, true)];
    assert_eq!(planned["backends"][0]["servers"], json!(wanted));
    assert!(planned["backends"][0]["instances_added"] == 1 && planned["backends"][0]["instances_removed"] == 1);
}

#[test]
fn an_empty_variable_is_an_unset_one() {
    let help = String::from_utf8(controller(&["--help"], &[]).get_output().stdout.clone()).unwrap();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let names: Vec<&str> = help.split("[env: ").skip(1).map(|rest| rest.split(['=', ']']).next().unwrap()).collect();
    assert!(names.len() > 30 && names.contains(&"NOMAD_HAPROXY_CONFIG"), "{names:?}");
    let (_folder, plan) = offline();
    for name in names {
        let assert = controller(&with(&plan, &[]), &[(name, "")]);
        let output = assert.get_output();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_stronger_source_wins_also_between_a_secret_and_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let config = |json: &str| {
        let file = tempfile::Builder::new().tempfile_in(&folder).unwrap().into_temp_path().keep().unwrap();
        std::fs::write(&file, json).unwrap();
        file.display().to_string()
    };
    let (_folder, plan) = offline();
    let catalog = plan[2].as_str();
    let (inline, file) = ("s3cret", "/nowhere/secret");
    let api = config(r#"{"haproxy": {"address": "http://127.0.0.1:1", "password_file": "/nowhere/secret"}}"#);
    says(
        controller(&["plan", "-c", &api, "--catalog", catalog], &[("HAPROXY_PASSWORD", inline)]),
        &["does not answer", "refused"],
    );
    let api = config(r#"{"haproxy": {"address": "http://127.0.0.1:1", "password": "s3cret"}}"#);
    let by_file: &[_] = &[("HAPROXY_PASSWORD_FILE", file)];
    says(controller(&["plan", "-c", &api, "--catalog", catalog], by_file), &["/nowhere/secret"]);
    let flag = ["plan", "-c", &api, "--catalog", catalog, "--haproxy-password-file", file];
    says(controller(&flag, &[("HAPROXY_PASSWORD", inline)]), &["/nowhere/secret"]);
    let both = [("HAPROXY_PASSWORD", inline), ("HAPROXY_PASSWORD_FILE", file)];
    says(controller(&["plan", "-c", &api, "--catalog", catalog], &both), &["haproxy.password", "not both"]);

    let nomad = config(r#"{"nomad": {"address": "http://127.0.0.1:1", "token_file": "/nowhere/secret"}}"#);
    says(controller(&["catalog", "-c", &nomad], &[("NOMAD_TOKEN", inline)]), &["does not answer", "refused"]);
    let nomad = config(r#"{"nomad": {"address": "http://127.0.0.1:1", "token": "s3cret"}}"#);
    says(controller(&["catalog", "-c", &nomad], &[("NOMAD_TOKEN_FILE", file)]), &["/nowhere/secret"]);
    let flag = ["catalog", "-c", &nomad, "--nomad-token", inline];
    says(controller(&flag, &[("NOMAD_TOKEN_FILE", file)]), &["does not answer", "refused"]);
}

#[test]
fn an_offline_plan_is_for_the_version_that_is_named() {
    let (_folder, plan) = offline();
    let diff = |version: &str| {
        let assert = controller(&with(&plan, &["--haproxy-version", version]), &[]).success();
        String::from_utf8(assert.get_output().stdout.clone()).unwrap()
    };
    assert!(diff("3.2").contains("init-state down") && diff("3.4.7").contains("init-state down"));
    assert!(diff("3.0").contains("+backend api") && !diff("3.0").contains("init-state"));
    says(controller(&with(&plan, &["--haproxy-version", "2.6"]), &[]), &["2.6", "3.0 or newer"]);
    says(controller(&with(&plan, &["--haproxy-version", "new"]), &[]), &["not a HAProxy version"]);
    says(controller(&["plan", "--haproxy-version", "3.2"], &[]), &["--haproxy-config"]);
}

#[test]
fn wrong_settings_are_named_with_what_to_do() {
    says(controller(&["plan"], &[]), &["HAPROXY_DATAPLANE_URL", "HAPROXY_CONFIG_FILE"]);
    says(controller(&["run"], &[("HAPROXY_DATAPLANE_URL", "http://127.0.0.1:1")]), &["HAPROXY_PASSWORD"]);
    says(
        controller(&["run"], &[("HAPROXY_DATAPLANE_URL", "here:1"), ("HAPROXY_PASSWORD", "s3cret")]),
        &["http://HOST:PORT"],
    );
    says(controller(&["plan"], &[("HAPROXY_CONFIG_FILE", "/nowhere")]), &["HAPROXY_MASTER_SOCKET", "-W -S"]);
    says(controller(&["catalog"], &[("NOMAD_ADDR", "localhost:4646"), ("NOMAD_TOKEN", "s3cret")]), &["NOMAD_ADDR"]);
    says(controller(&["--config", "/nowhere.json", "run"], &[]), &["/nowhere.json", "No such file"]);
    says(controller(&["plan", "--resync-interval", "soon"], &[]), &["500ms"]);
    says(controller(&["plan", "--haproxy-config", "/x"], &[]), &["--catalog"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    std::fs::write(&file, r#"{"nomad": {"tokn": "s3cret"}}"#).unwrap();
    says(
        controller(&["--config", file.to_str().unwrap(), "run"], &[]),
        &["unknown field `tokn`", "line 1", "token_file"],
    );
}

#[test]
fn what_does_not_answer_is_named() {
    let env = [("HAPROXY_DATAPLANE_URL", "http://127.0.0.1:1"), ("HAPROXY_PASSWORD", "s3cret")];
    says(controller(&["apply"], &env), &["the Data Plane API at http://127.0.0.1:1 does not answer", "refused"]);
    says(
        controller(&["catalog"], &[("NOMAD_ADDR", "http://127.0.0.1:1"), ("NOMAD_TOKEN", "s3cret")]),
        &["Nomad at http://127.0.0.1:1", "refused"],
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn haproxy_2_6_is_refused_in_one_sentence() {
    if binary("2.6").is_none() {
        eprintln!("HAProxy 2.6 could not be had: NOT tested");
        return;
    }
    for way in WAYS {
        let rig = Rig::with(way, "2.6", Haproxy::start("2.6").await).await;
        write_catalog(&rig.catalog(), &[]);
        let catalog = rig.catalog().display().to_string();
        let text = rig.haproxy.text();
        for command in ["plan", "apply"] {
            let output = run(&rig.env(), &[command, "--catalog", &catalog]).await;
            let said = stderr(&output);
            assert!(!output.status.success());
            assert!(said.contains("2.6.12") && said.contains("404") && said.contains("3.0 or newer"), "{said}");
        }
        assert_eq!(rig.haproxy.text(), text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_of_version_2_is_refused_and_a_wrong_password_is_reported() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = axum::Router::new()
        .route("/v2/info", axum::routing::get(async || "{}"))
        .fallback(async || (axum::http::StatusCode::NOT_FOUND, "{\"code\":404,\"message\":\"path was not found\"}"));
    let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let env = |url: &str, password: &str| {
        [("HAPROXY_DATAPLANE_URL", url), ("HAPROXY_PASSWORD", password)]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .to_vec()
    };
    let said = stderr(&run(&env(&url, "x"), &["plan"]).await);
    assert!(said.contains("version 2 only") && said.contains("3.0 or newer"), "{said}");
    server.abort();

    // Version 3.0 repeats the password in its answer.
    for series in ["3.0", "3.2"] {
        let rig = Rig::start(crate::support::api::Way::Api, series).await;
        let said = stderr(&run(&env(&rig.api.as_ref().unwrap().url, "s3cret"), &["plan"]).await);
        assert!(said.contains("haproxy.password") && !said.contains("s3cret"), "API {series}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_is_reached_by_tls_by_client_certificate_and_by_a_unix_socket() {
    let rig = Rig::start(crate::support::api::Way::Api, "3.2").await;
    let folder = rig.haproxy.folder();
    certificates(folder);
    let (_front, [tls, mutual, unix]) = front(folder, &rig.api.as_ref().unwrap().url);
    wait_for("the second HAProxy", Duration::from_secs(20), async || {
        tokio::net::UnixStream::connect(folder.join("api.sock")).await.ok().map(drop)
    })
    .await;
    let file = |name: &str| folder.join(name).display().to_string();
    let env = |url: &str, files: &[(&str, &str)]| -> Env {
        let files = files.iter().map(|(key, name)| ((*key).to_owned(), file(name)));
        rig.env_with(&[("HAPROXY_DATAPLANE_URL", url)]).into_iter().chain(files).collect()
    };
    let (ca, certificate) = (("HAPROXY_CA_FILE", "ca.pem"), ("HAPROXY_CERT_FILE", "client.pem"));
    let ways =
        [(&tls, vec![ca]), (&mutual, vec![ca, certificate, ("HAPROXY_KEY_FILE", "client.key")]), (&unix, vec![])];
    for (port, (url, files)) in (2001..).zip(ways) {
        // A reload, then a live change.
        for address in [port, port + 100] {
            let tags: &[&str] = if address == port { &["enable=true"] } else { &["enable=true", "weight=2"] };
            write_catalog(&rig.catalog(), &[registration(&format!("s{port}"), "1", 1, address, tags)]);
            apply(&env(url, &files), &rig.catalog()).await;
            rig.agrees().await;
        }
    }
    let refused = async |url: &str, files: &[(&str, &str)], words: &[&str]| {
        let output = run(&env(url, files), &["plan", "--catalog", &file("catalog.json")]).await;
        let said = stderr(&output);
        assert!(!output.status.success() && words.iter().all(|word| said.contains(word)), "{words:?} in: {said}");
    };
    refused(&tls, &[], &["haproxy.ca_file", "not trusted", &tls]).await;
    refused(&tls, &[("HAPROXY_CA_FILE", "other.pem")], &["haproxy.ca_file", "not trusted"]).await;
    refused(&tls, &[("HAPROXY_CA_FILE", "none.pem")], &["none.pem", "No such file"]).await;
    refused(&mutual, &[ca], &["haproxy.cert_file"]).await;
    refused(&mutual, &[ca, certificate], &["haproxy.cert_file and haproxy.key_file"]).await;
    refused("unix://api.sock", &[], &["haproxy.address", "full path"]).await;
    refused(&format!("unix://{}", file("none.sock")), &[], &["none.sock does not answer", "No such file"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_file_is_read_again() {
    let rig = Rig::start(crate::support::api::Way::Api, "3.0").await;
    write_catalog(&rig.catalog(), &[]);
    let password = rig.haproxy.folder().join("password");
    let mut env = rig.env_with(&[("HAPROXY_PASSWORD_FILE", password.to_str().unwrap())]);
    env.retain(|(key, _)| key != "HAPROXY_PASSWORD");
    let mut controller = Controller::start(&env, &["--catalog", rig.catalog().to_str().unwrap()]);
    let said = async |words: &str| {
        wait_for(words, Duration::from_secs(20), async || controller.log().contains(words).then_some(())).await;
    };
    said("haproxy.password_file").await;
    std::fs::write(&password, "from before").unwrap();
    said("refuses the credentials").await;
    std::fs::write(&password, "secret\n").unwrap();
    controller.wait_until_ready().await;
    assert!(!controller.log().contains("from before"));
    controller.stop().await;
}

#[test]
fn to_take_over_ones_own_marks_is_refused() {
    let env = [("HAPROXY_DATAPLANE_URL", "http://127.0.0.1:1"), ("HAPROXY_PASSWORD", "secret")];
    let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_nomad-haproxy"));
    let output = command.args(["plan", "--adopt", "nomad"]).env_clear().envs(env).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("--adopt: nomad is the owner in the settings: set the new one first"), "{said}");
}
