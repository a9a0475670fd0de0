//! `explain` on each kind of trouble: its first sentence, and what that rests on.

use std::path::Path;

use crate::support::api::{Rig, WAYS, Way};
use crate::support::controller::{Env, registration, run, stderr, stdout, write_catalog};
use crate::support::nomad::{Nomad, job};
use crate::support::routes::{env, rig, service};
use crate::support::servers::Server;
use serde_json::{Value, json};

/// What is said of a service, as JSON; the text begins with the same answer.
async fn explain(env: &Env, service: &str, catalog: Option<&Path>) -> Value {
    let catalog = catalog.map(|path| path.to_str().unwrap());
    let from: Vec<&str> = catalog.into_iter().flat_map(|path| ["--catalog", path]).collect();
    let text = run(env, &[&["explain", service], &from[..]].concat()).await;
    let output = run(env, &[&["explain", service, "--output", "json"], &from[..]].concat()).await;
    let json: Value = serde_json::from_str(&stdout(&output)).unwrap_or_else(|e| panic!("{e}: {}", stderr(&output)));
    // An API may name a file of its own further back, another one each time.
    let beginning = |text: &str| text.chars().take(80).collect::<String>();
    let first = stdout(&text).lines().next().map(beginning);
    assert_eq!(first, json["answer"].as_str().map(beginning), "{}{}", stdout(&text), stderr(&text));
    assert!(!stdout(&text).contains('\x1b'), "no colour in a pipe: {}", stdout(&text));
    let is_routed = json["haproxys"].as_array().unwrap().iter().all(|one| one["routed"] == "fully");
    assert_eq!((text.status.code(), output.status.code()), (Some(i32::from(!is_routed)), Some(i32::from(!is_routed))));
    json
}

async fn in_file(rig: &Rig, env: &Env, services: &[Value], service: &str) -> Value {
    write_catalog(&rig.catalog(), services);
    explain(env, service, Some(&rig.catalog())).await
}

/// The value and the source of a setting, as it is said of the first HAProxy.
fn setting(said: &Value, tag: &str) -> (String, String) {
    let settings = said["haproxys"][0]["settings"].as_array().unwrap();
    let found = settings.iter().find(|setting| setting["tag"] == *tag).unwrap_or_else(|| panic!("{tag}: {said:#}"));
    (found["value"].as_str().unwrap().to_owned(), found["source"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_trouble_has_its_first_sentence() {
    for way in WAYS {
        let rig = rig(way, "3.2").await;
        let env = rig.env();
        let one = |tags: &[&str]| vec![registration("api", "a", 5, 2001, tags)];
        let at = |address: &str| {
            let mut services = one(&["enable=true"]);
            services[0]["Address"] = json!(address);
            services
        };
        for (services, service, sentence) in [
            (one(&[]), "api", "It is not routed: it has no tag `haproxy.enable=true`."),
            (one(&["enable=false"]), "api", "It is not routed: `haproxy.enable=false` turns it off."),
            (one(&["enable=tru"]), "api", "It is not routed: it is unclear whether haproxy.enable is on"),
            (one(&["enable=true", "backend=static"]), "api", "It is not routed: `haproxy.backend=static` says that"),
            (
                one(&["enable=true", "backend=custom"]),
                "api",
                "It is not routed: HAProxy has no backend api, and backend=custom makes none.",
            ),
            (
                one(&["enable=true", "backend.name=a b"]),
                "api",
                "It is not routed: invalid backend name \"a b\", use letters",
            ),
            (at("a b"), "api", "It is not routed: instance \"a\" is not routed: "),
            (
                at("no..name.invalid"),
                "api",
                "It is not routed: instance a is left as it was: HAProxy refuses its server",
            ),
            (one(&["enable=true"]), "web", "It is not routed: the catalog has no service of this name"),
            (one(&["enable=true"]), "team/api", "It is not routed: the catalog has no service of this name"),
            (one(&["enable=true"]), "api", "It is not routed: HAProxy does not have it yet, and the next pass"),
        ] {
            let said = in_file(&rig, &env, &services, service).await;
            let answer = said["answer"].as_str().unwrap();
            assert!(answer.starts_with(sentence), "{sentence:?} of {service}: {answer}");
        }
        // None of these has written anything.
        rig.has_none();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_routed_is_shown_with_its_servers_routes_and_settings() {
    for way in WAYS {
        let rig = rig(way, "3.2").await;
        let (env, server) = (env(&rig), Server::start("api").await);
        let tags = ["domain=app.example.com,www.example.com", "path=/api", "weight=7", "maxconn=x"];
        let mut older = service("api", &server, 1, &["weight=3", "balance=leastconn"]);
        older["ID"] = json!("older");
        older["AllocID"] = json!("alloc-older");
        let services = [service("api", &server, 2, &tags), older];
        write_catalog(&rig.catalog(), &services);
        let applied = run(&env, &["apply", "--catalog", rig.catalog().to_str().unwrap()]).await;
        assert!(applied.status.success(), "{}", stderr(&applied));

        let said = in_file(&rig, &env, &services, "api").await;
        assert_eq!(said["answer"], "It is routed: 2 instances in the backend `api`.");
        let on = &said["haproxys"][0];
        let servers = on["backends"][0]["servers"].as_array().unwrap();
        assert!(servers.iter().all(|one| one["state"] == "ready" && one["status"] == "no check"), "{said:#}");
        let routes: Vec<(&str, &str)> = on["routes"]
            .as_array()
            .unwrap()
            .iter()
            .map(|route| (route["frontend"].as_str().unwrap(), route["route"].as_str().unwrap()))
            .collect();
        assert_eq!(routes, [("web", "app.example.com/api"), ("web", "www.example.com/api")]);
        assert_eq!(on["by_hand"], Value::Null);
        let is = |tag: &str, value: &str, source: &str| {
            assert_eq!(setting(&said, tag), (value.to_owned(), source.to_owned()), "{tag}");
        };
        is("haproxy.domain", "app.example.com,www.example.com", "tag");
        // That of the newest counts, which states none.
        is("haproxy.balance", "`roundrobin`", "default");
        // A value that is ignored is not one, and there is a note.
        is("haproxy.maxconn", "that of `default-server`, else no limit", "default");
        assert!(on["notes"][0]["text"].as_str().unwrap().contains("haproxy.maxconn=x"), "{said:#}");
        let weights: Vec<(&Value, &Value)> = on["settings"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|setting| setting["tag"] == "haproxy.weight")
            .map(|setting| (&setting["value"], &setting["allocations"]))
            .collect();
        assert_eq!(weights, [(&json!("3"), &json!(["alloc-older"])), (&json!("7"), &json!(["alloc-api"]))]);
    }
}

/// No frontend is named: nothing is written into any, and it says how to do it by hand.
#[tokio::test(flavor = "multi_thread")]
async fn how_to_route_by_hand_is_said_until_a_frontend_does() {
    for way in WAYS {
        let rig = rig(way, "3.2").await;
        let (env, server) = (rig.env(), Server::start("api").await);
        let services = [service("api", &server, 1, &[])];
        write_catalog(&rig.catalog(), &services);
        let applied = run(&env, &["apply", "--catalog", rig.catalog().to_str().unwrap()]).await;
        assert!(applied.status.success(), "{}", stderr(&applied));
        let said = in_file(&rig, &env, &services, "api").await;
        let hint = said["haproxys"][0]["by_hand"].as_str().unwrap();
        let rule = "use_backend api if { req.hdr(host) -i app.example.com }";
        assert!(hint.contains(&format!("`{rule}`")), "{hint}");
        // A person does as it says.
        let default = "default_backend fallback";
        rig.edit(|text| text.replace(default, &format!("{rule}\n  {default}"))).await;
        let said = in_file(&rig, &env, &services, "api").await;
        let on = &said["haproxys"][0];
        assert_eq!((&on["by_hand"], &on["routes"][0]["route"]), (&Value::Null, &Value::Null), "{said:#}");
        assert_eq!(on["routes"][0]["frontend"], "web");
        rig.haproxy.is_valid();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_job_says_of_its_check_is_named_as_its_own() {
    let nomad = Nomad::start().await;
    let rig = Rig::start(Way::Local, "3.2").await;
    let env = rig.env_with(&[("NOMAD_ADDR", &nomad.address)]);
    let mut api = job("api", 1, &["enable=true", "check.interval=700ms"], None);
    api["TaskGroups"][0]["Services"][0]["Checks"] = json!([{
        "Type": "http", "Path": "/healthy", "Interval": 2_000_000_000_u64, "Timeout": 1_000_000_000, "Name": "up",
    }]);
    nomad.submit(api).await;
    nomad.wait_for_instances("api", 1).await;
    let applied = run(&env, &["apply"]).await;
    assert!(applied.status.success(), "{}", stderr(&applied));
    let said = explain(&env, "api", None).await;
    assert_eq!(setting(&said, "haproxy.check.path"), ("/healthy".to_owned(), "job".to_owned()));
    assert_eq!(setting(&said, "haproxy.check.timeout"), ("1s".to_owned(), "job".to_owned()));
    assert_eq!(setting(&said, "haproxy.check.interval"), ("700ms".to_owned(), "tag".to_owned()));
    assert_eq!(setting(&said, "haproxy.check.status").1, "default");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_answer_it_says_whose() {
    let rig = Rig::start(Way::Local, "3.2").await;
    let nowhere = rig.env_with(&[("NOMAD_ADDR", "http://127.0.0.1:1")]);
    let said = explain(&nowhere, "api", None).await;
    let answer = said["answer"].as_str().unwrap();
    assert!(answer.starts_with("It is not routed: the catalog has not been read yet: "), "{answer}");
    let mut rig = rig;
    rig.haproxy.kill();
    let said = in_file(&rig, &rig.env(), &[registration("api", "a", 1, 2001, &["enable=true"])], "api").await;
    let answer = said["answer"].as_str().unwrap();
    assert!(answer.starts_with("It is not routed: HAProxy gives no answer: "), "{answer}");
}
