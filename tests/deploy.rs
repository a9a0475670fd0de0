//! The files of deploy/ and the README, checked by what reads them.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, clippy::similar_names, unreachable_pub, reason = "tests")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use support::api::{Rig, Way};
use support::nomad::{self, Nomad, job};
use support::{root, wait_for};

fn validate(arguments: &[&str]) {
    let output = Command::new(nomad::binary().expect("run `make tools`"))
        .args(["job", "validate"])
        .args(arguments)
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.contains("validation successful"), "{said}");
}

const VARIABLES: [&str; 4] =
    ["-var", "haproxy_address=http://127.0.0.1:5555", "-var", "haproxy_password_file=/tmp/password"];

/// Validates the job as Nomad does when there is no agent to ask.
#[test]
fn the_jobs_are_valid() {
    let file = root().join("deploy/nomad-haproxy.nomad.hcl");
    validate(&[&VARIABLES[..], &[file.to_str().unwrap()]].concat());
    validate(&[root().join("deploy/compose/hello.nomad.hcl").to_str().unwrap()]);
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let jobs: Vec<&str> = readme
        .split("```hcl\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .filter(|b| b.starts_with("job "))
        .collect();
    assert!(!jobs.is_empty(), "the README shows a job");
    for text in jobs {
        let file = tempfile::Builder::new().suffix(".nomad.hcl").tempfile().unwrap();
        std::fs::write(file.path(), text).unwrap();
        validate(&[file.path().to_str().unwrap()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_controller_runs_as_a_nomad_job_with_its_own_identity() {
    let nomad = Nomad::start_with_acl().await;
    let rig = Rig::start(Way::Api, "3.2").await;
    let policy = std::fs::read_to_string(root().join("deploy/policy.hcl")).unwrap();
    let bound =
        json!({"Name": "nomad-haproxy", "Rules": policy, "JobACL": {"Namespace": "default", "JobID": "nomad-haproxy"}});
    nomad.call(reqwest::Method::POST, "/v1/acl/policy/nomad-haproxy", Some(bound)).await;
    nomad.submit(job("web", 2, &["enable=true"], None)).await;

    let password = rig.haproxy.folder().join("password");
    std::fs::write(&password, "secret\n").unwrap();
    let token = nomad.token.clone().unwrap();
    let mut run = Command::new(nomad::binary().unwrap());
    run.args(["job", "run", "-detach", "-var"]).arg(format!("binary={}", support::controller::binary().display()));
    run.arg("-var").arg(format!("haproxy_address={}", rig.api.as_ref().unwrap().url));
    run.arg("-var").arg(format!("haproxy_password_file={}", password.display()));
    run.arg(root().join("deploy/nomad-haproxy.nomad.hcl")).env("NOMAD_ADDR", &nomad.address).env("NOMAD_TOKEN", token);
    tokio::task::spawn_blocking(move || support::haproxy::output(&mut run)).await.unwrap();

    wait_for("two seats", Duration::from_secs(60), async || {
        (rig.haproxy.text().matches("\"id\":").count() == 2).then_some(())
    })
    .await;
    let health = nomad.service("nomad-haproxy").await;
    let port = health[0]["Port"].as_u64().unwrap();
    wait_for("a ready controller", Duration::from_secs(20), async || {
        let answer = reqwest::get(format!("http://127.0.0.1:{port}/readyz")).await.ok()?;
        (answer.status() == 200).then_some(())
    })
    .await;
    nomad.stop_job("nomad-haproxy").await;
}

/// Every key that the program knows is in the example, and no other.
#[test]
fn the_example_has_every_setting() {
    let text = std::fs::read_to_string(root().join("deploy/config.example.json")).unwrap();
    let example: Value = serde_json::from_str(&text).unwrap();
    let settings: nomad_haproxy::config::Settings = serde_json::from_str(&text).unwrap();
    // `namespaces` is by name, and has its own types.
    let sections: Vec<(&String, &Value)> =
        example.as_object().unwrap().iter().filter(|(section, _)| *section != "namespaces").collect();
    let entry: Vec<&String> = example["namespaces"]["team-*"].as_object().unwrap().keys().collect();
    assert_eq!(entry, ["backends", "join"]);
    // The names of the fields, as the program prints them of itself.
    let without = nomad_haproxy::config::Settings { namespaces: BTreeMap::new(), ..settings.clone() };
    let printed = format!("{without:#?}");
    let known: BTreeSet<&str> = printed
        .lines()
        .filter(|line| line.starts_with("        ") && !line.starts_with("            "))
        .filter_map(|line| line.trim().split_once(": "))
        .map(|(key, _)| key)
        .collect();
    let shown: BTreeSet<&str> =
        sections.iter().flat_map(|(_, section)| section.as_object().unwrap().keys()).map(String::as_str).collect();
    assert_eq!(known, shown);
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    assert!(readme.contains("`namespaces.NAME.backends`") && readme.contains("`namespaces.NAME.join`"));
    for (section, keys) in sections {
        for key in keys.as_object().unwrap().keys() {
            assert!(readme.contains(&format!("`{section}.{key}`")), "the README does not tell of {section}.{key}");
        }
    }
    // As it stands it is whole: only the files that it names are not here.
    let mut settings = settings;
    settings.haproxy.password_file = None;
    settings.haproxy.password = Some("x".to_owned().into());
    nomad_haproxy::config::Config::try_from(settings).unwrap();
}

#[test]
fn the_compose_file_is_in_form_and_names_files_that_exist() {
    let text = std::fs::read_to_string(root().join("docker-compose.yml")).unwrap();
    let compose = &yaml_rust2::YamlLoader::load_from_str(&text).unwrap()[0];
    let services = compose["services"].as_hash().unwrap();
    let names: Vec<&str> = services.keys().filter_map(yaml_rust2::Yaml::as_str).collect();
    assert_eq!(names, ["nomad", "haproxy", "nomad-haproxy", "job"]);
    for (name, service) in services {
        assert!(!service["image"].is_badvalue() || !service["build"].is_badvalue(), "{name:?}");
        for volume in service["volumes"].as_vec().into_iter().flatten() {
            let source = volume.as_str().unwrap().split(':').next().unwrap();
            assert!(!source.starts_with("./") || root().join(source).exists(), "{source}");
        }
        for needed in service["depends_on"].as_hash().into_iter().flat_map(|h| h.keys()) {
            let health = &compose["services"][needed.as_str().unwrap()]["healthcheck"];
            assert!(!health.is_badvalue(), "{needed:?} is waited for, and does not say when it is healthy");
        }
    }
    assert!(root().join(compose["services"]["nomad-haproxy"]["build"]["dockerfile"].as_str().unwrap()).exists());
    let config = root().join("deploy/compose/dataplaneapi.yml");
    yaml_rust2::YamlLoader::load_from_str(&std::fs::read_to_string(config).unwrap()).unwrap();
    // HAProxy itself reads the configuration, where it still knows the `program` section (until 3.3).
    let config = root().join("deploy/compose/haproxy.cfg");
    let output =
        Command::new(support::haproxy::binary("3.2").unwrap()).args(["-c", "-f"]).arg(config).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
