//! What the users of haproxy-nomad-connector rely on, each as a scenario: on every series of HAProxy, on both planes.

use std::time::Duration;

use crate::support::api::{Rig, WAYS};
use crate::support::haproxy::matrix;
use crate::support::routes::{ask, controller, maps_agree, notes, pass, rig, service};
use crate::support::servers::Server;
use crate::support::wait_for;
use nomad_haproxy::apply::Controller;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

/// A rig, a controller of it, and two servers that a service may have.
struct Scene {
    rig: Rig,
    controller: Controller,
    one: Server,
    two: Server,
}

impl Scene {
    /// A person makes the backend `legacy`.
    async fn writes_a_backend(&mut self) {
        // A Data Plane API has a version of the file from its first write on.
        self.pass(&[service("first", &self.two, 1, &[])]).await;
        let by_hand = format!("\nbackend legacy from base\n  server old 127.0.0.1:{}\n", self.one.port());
        self.rig.edit(|text| text.replace("\nbackend fallback", &format!("{by_hand}\nbackend fallback"))).await;
    }

    async fn pass(&mut self, services: &[Value]) -> String {
        notes(&pass(&self.rig, &mut self.controller, services).await)
    }

    /// Who answers, over some requests.
    async fn answers(&self, host: &str) -> Vec<String> {
        let mut answers = Vec::new();
        for _ in 0..6 {
            answers.push(ask(&self.rig, host, "/").await);
        }
        answers.sort();
        answers.dedup();
        answers
    }

    /// How many rules of ours there are, and what reads them agrees with its file.
    async fn rules(&self) -> usize {
        maps_agree(&self.rig).await;
        self.rig.haproxy.text().lines().filter(|line| line.contains("nomad-haproxy__nomad__web__")).count()
    }
}

/// A controller that may add to what a person made.
fn start(rig: &Rig) -> Controller {
    controller(rig, &json!({"namespaces": {"default": {"join": true}}}))
}

async fn on_each(scenario: impl AsyncFn(Scene)) {
    for series in matrix() {
        for way in WAYS {
            eprintln!("--- HAProxy {series}, {way:?}");
            let rig = rig(way, series).await;
            let controller = start(&rig);
            let (one, two) = tokio::join!(Server::start("one"), Server::start("two"));
            scenario(Scene { rig, controller, one, two }).await;
        }
    }
}

/// One instance of a service, whose others have other IDs.
fn instance(name: &str, id: &str, server: &Server, created: u64, tags: &[&str]) -> Value {
    let mut instance = service(name, server, created, tags);
    (instance["ID"], instance["AllocID"]) = (json!(id), json!(format!("alloc-{id}")));
    instance
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_was_made_by_hand_gets_the_service_and_a_rule() {
    on_each(async |mut scene: Scene| {
        scene.writes_a_backend().await;
        let tags = ["backend=custom", "backend.name=legacy", "domain=legacy.example.com"];
        let said = scene.pass(&[service("api", &scene.two, 1, &tags)]).await;
        let text = scene.rig.haproxy.text();
        wait_for(&format!("both to answer: {said}\n{text}"), SOON, async || {
            (scene.answers("legacy.example.com").await == ["one", "two"]).then_some(())
        })
        .await;
        assert_eq!(scene.rules().await, 1);
        // And it goes, without the server of the person.
        scene.pass(&[]).await;
        let text = scene.rig.haproxy.text();
        assert!(text.contains(&format!("server old 127.0.0.1:{}", scene.one.port())), "{text}");
        assert_eq!(scene.answers("legacy.example.com").await, ["default"], "{text}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rule_stays_through_a_registration_that_is_made_anew() {
    on_each(async |mut scene: Scene| {
        let tags = ["domain=app.example.com"];
        scene.pass(&[instance("api", "first", &scene.one, 1, &tags)]).await;
        let (rules, reloads) = (scene.rules().await, scene.rig.haproxy.reloads().await);
        scene.pass(&[instance("api", "second", &scene.two, 9, &tags)]).await;
        assert_eq!(scene.answers("app.example.com").await, ["two"]);
        assert_eq!((scene.rules().await, scene.rig.haproxy.reloads().await), (rules, reloads));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rule_stays_when_a_canary_leaves() {
    on_each(async |mut scene: Scene| {
        let stable = instance("api", "stable", &scene.one, 1, &["domain=app.example.com"]);
        let canary = instance("api", "canary", &scene.two, 5, &["domain=app.example.com", "domain=new.example.com"]);
        scene.pass(std::slice::from_ref(&stable)).await;
        scene.pass(&[stable.clone(), canary]).await;
        assert_eq!(scene.answers("new.example.com").await, ["one", "two"]);
        let reloads = scene.rig.haproxy.reloads().await;
        scene.pass(&[stable]).await;
        assert_eq!(scene.answers("app.example.com").await, ["one"]);
        assert_eq!(scene.answers("new.example.com").await, ["default"]);
        assert_eq!((scene.rules().await, scene.rig.haproxy.reloads().await), (1, reloads));
    })
    .await;
}

/// A controller starts over what another one left behind, and what a person wrote beside it.
#[tokio::test(flavor = "multi_thread")]
async fn of_servers_that_are_stale_at_start_only_ours_go() {
    on_each(async |mut scene: Scene| {
        scene.writes_a_backend().await;
        let tags = ["backend=custom", "backend.name=legacy", "domain=legacy.example.com"];
        scene.pass(&[service("gone", &scene.two, 1, &tags), service("api", &scene.two, 2, &[])]).await;
        scene.controller = start(&scene.rig);
        scene.pass(&[instance("api", "new", &scene.one, 9, &["domain=app.example.com"])]).await;
        let text = scene.rig.haproxy.text();
        let stale = format!("127.0.0.1:{}", scene.two.port());
        let is_served = |line: &str| line.contains(&stale) && !line.contains(" disabled");
        assert!(!text.lines().any(is_served) && text.contains("server old "), "{text}");
        assert_eq!(scene.answers("app.example.com").await, ["one"], "{text}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_backend_follows_the_checks_in_the_tags() {
    on_each(async |mut scene: Scene| {
        for (tags, wanted) in [
            (&["check.path=/health", "check.disabled=false"][..], &["option httpchk GET /health"][..]),
            (&["check.path=/", "check.method=HEAD", "check.disabled=false"], &["option httpchk HEAD /"]),
            (&["check.interval=700ms", "check.disabled=false"], &["option tcp-check", "inter 700"]),
            (&[], &[]),
        ] {
            let mut api = service("api", &scene.one, 1, &[]);
            let tags = ["enable=true", "domain=app.example.com"].iter().chain(tags);
            api["Tags"] = tags.map(|tag| json!(format!("haproxy.{tag}"))).collect();
            let said = scene.pass(&[api]).await;
            let text = scene.rig.haproxy.text();
            let backend = text.split("\nbackend api").nth(1).unwrap_or_default();
            assert!(wanted.iter().all(|words| backend.contains(words)), "{wanted:?}: {said}\n{text}");
            scene.rig.haproxy.is_valid();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_goes_to_tcp_and_back() {
    on_each(async |mut scene: Scene| {
        let host = "domain=app.example.com";
        let service = |mode: &str, scene: &Scene| [service("api", &scene.one, 1, &[host, &format!("mode={mode}")])];
        scene.pass(&service("http", &scene)).await;
        assert_eq!(scene.answers("app.example.com").await, ["one"]);
        let said = scene.pass(&service("tcp", &scene)).await;
        assert!(said.contains("the frontend web has `mode http`"), "{said}");
        let text = scene.rig.haproxy.text();
        assert!(text.split("\nbackend api").nth(1).unwrap().contains("mode tcp"), "{text}");
        assert_eq!(scene.answers("app.example.com").await, ["default"]);
        let said = scene.pass(&service("http", &scene)).await;
        assert_eq!(scene.answers("app.example.com").await, ["one"], "{said}");
        scene.rules().await;
    })
    .await;
}
