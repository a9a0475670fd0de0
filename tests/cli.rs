//! The command line without anything behind it, and what it refuses: clear words, no secrets.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, clippy::similar_names, unreachable_pub, reason = "tests")]

mod support;

use assert_cmd::Command;
use support::api::{Rig, WAYS};
use support::controller::{run, stderr, write_catalog};
use support::haproxy::{Haproxy, binary};

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
async fn an_api_of_version_2_is_refused_and_a_wrong_password_is_said() {
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

    let rig = Rig::start(support::api::Way::Api, "3.2").await;
    let said = stderr(&run(&env(&rig.api.as_ref().unwrap().url, "s3cret"), &["plan"]).await);
    assert!(said.contains("haproxy.password") && !said.contains("s3cret"), "{said}");
}
