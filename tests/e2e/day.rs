//! Every line that a day writes to the log, for an operator to read: `tests/expected/day.log`. After a change of a
//! message, `UPDATE_EXPECT=1 cargo test --test e2e day` updates it.
//!
//! Nomad is replaced by a fake: a real one registers the instances of a job one by one, in any number of passes.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use crate::support::api::{Rig, Way};
use crate::support::controller::{Controller, registration};
use crate::support::{free_port, wait_for};
use axum::Router;
use axum::extract::{Path, Query, State};
use axum::response::IntoResponse;
use axum::routing::get;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// The index, and what is registered.
type Catalog = (u64, Vec<Value>);

/// A fake Nomad: the list of services, with blocking queries, each service, and the event stream. It has its own runtime, so that ending
/// it ends every connection.
struct Nomad {
    address: String,
    catalog: Arc<watch::Sender<Catalog>>,
    runtime: Option<Runtime>,
}

#[derive(serde::Deserialize)]
struct Wait {
    index: Option<u64>,
}

async fn list(State(catalog): State<Arc<watch::Sender<Catalog>>>, Query(wait): Query<Wait>) -> impl IntoResponse {
    let mut known = catalog.subscribe();
    let seen = wait.index.unwrap_or(0);
    let (index, registrations) = known.wait_for(|(index, _)| *index > seen).await.unwrap().clone();
    let mut names: Vec<&Value> = registrations.iter().map(|registration| &registration["ServiceName"]).collect();
    names.dedup();
    let services: Vec<Value> =
        names.iter().map(|name| json!({"ServiceName": name, "Tags": ["haproxy.enable=true"]})).collect();
    ([("X-Nomad-Index", index.to_string())], json!([{"Namespace": "default", "Services": services}]).to_string())
}

async fn service(State(catalog): State<Arc<watch::Sender<Catalog>>>, Path(name): Path<String>) -> impl IntoResponse {
    let (index, mut registrations) = catalog.borrow().clone();
    registrations.retain(|registration| registration["ServiceName"] == *name);
    ([("X-Nomad-Index", index.to_string())], Value::from(registrations).to_string())
}

/// The names of all services so far, at each change.
async fn events(State(catalog): State<Arc<watch::Sender<Catalog>>>) -> impl IntoResponse {
    let (known, names) = (catalog.subscribe(), BTreeSet::<String>::new());
    let lines = stream::unfold((known, names, false), async |(mut known, mut names, is_open)| {
        if is_open {
            known.changed().await.ok()?;
        }
        let (index, registrations) = known.borrow_and_update().clone();
        names.extend(registrations.iter().filter_map(|one| one["ServiceName"].as_str().map(str::to_owned)));
        let event = |name: &String| json!({"Topic": "Service", "Payload": {"Service": {"ServiceName": name, "Namespace": "default"}}});
        let line = match is_open {
            true => json!({"Index": index, "Events": names.iter().map(event).collect::<Vec<_>>()}),
            false => json!({}),
        };
        Some((Ok::<_, std::convert::Infallible>(format!("{line}\n")), (known, names, true)))
    });
    axum::body::Body::from_stream(lines)
}

impl Nomad {
    fn new(registrations: &[Value]) -> Self {
        let address = format!("127.0.0.1:{}", free_port());
        let mut nomad =
            Self { address, catalog: Arc::new(watch::Sender::new((1, registrations.to_vec()))), runtime: None };
        nomad.launch();
        nomad
    }

    fn launch(&mut self) {
        let router = Router::new().route("/v1/services", get(list)).route("/v1/service/{name}", get(service));
        let router = router.route("/v1/event/stream", get(events));
        let (router, address) = (router.with_state(self.catalog.clone()), self.address.clone());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move {
            axum::serve(tokio::net::TcpListener::bind(address).await.unwrap(), router).await.unwrap();
        });
        self.runtime = Some(runtime);
    }

    fn kill(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }

    fn register(&self, registrations: &[Value]) {
        self.catalog.send_modify(|(index, known)| (*index, *known) = (*index + 1, registrations.to_vec()));
    }
}

impl Drop for Nomad {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Replaces the word after each of these prefixes.
fn replaced(text: &str, prefix: &str, end: impl Fn(char) -> bool, by: &str) -> String {
    let mut parts = text.split(prefix);
    let mut replaced = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let at = part.find(&end).unwrap_or(part.len());
        let (word, rest) = part.split_at(at);
        let word = if word.is_empty() { "" } else { by };
        replaced += &format!("{prefix}{word}{rest}");
    }
    replaced
}

/// A line without what differs from run to run.
fn normalised(line: &str, rig: &Rig) -> String {
    let no_digit = |c: char| !c.is_ascii_digit();
    let (_time, line) = line.split_once(' ').unwrap();
    let mut line = line.replace(&rig.haproxy.folder().display().to_string(), "DIR");
    line = line.replace(env!("CARGO_PKG_VERSION"), "VERSION");
    for (prefix, by) in [("127.0.0.1:", "PORT"), ("took_ms=", "MS"), ("outage_s=", "S"), ("failed=", "N"), ("(", "PID")]
    {
        line = replaced(&line, prefix, no_digit, by);
    }
    // A connection may end by being closed, reset or refused.
    let cause = replaced(&line, "client error", |_| false, ": CAUSE");
    cause.trim().to_owned()
}

struct Day {
    rig: Rig,
    controller: Controller,
    read: usize,
    text: String,
}

impl Day {
    /// Waits for lines that contain these parts, and records everything since the last step.
    async fn step(&mut self, title: &str, parts: &[&str]) {
        wait_for(&format!("{parts:?} in the log"), Duration::from_secs(30), async || {
            let log = self.controller.log();
            let new = &log[self.read..];
            (new.ends_with('\n') && parts.iter().all(|part| new.contains(part))).then_some(())
        })
        .await;
        let log = self.controller.log();
        let mut lines: Vec<String> = log[self.read..].lines().map(|line| normalised(line, &self.rig)).collect();
        // The watch and the passes run independently: which one is first after an outage is not determined.
        if title.contains("returns") {
            lines = lines.iter().map(|line| replaced(line, "reason=\"", |c| c == '"', "REASON")).collect();
            lines.sort();
        }
        self.read = log.len();
        let _ = write!(self.text, "# {title}\n{}\n\n", lines.join("\n"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_in_the_log_is_plain_english() {
    let one = |service: &str, port: u16, tags: &[&str]| {
        let tags: Vec<&str> = ["enable=true", "check.disabled"].iter().chain(tags).copied().collect();
        registration(service, &format!("{service}-{port}"), port.into(), port, &tags)
    };
    let api = one("api", 2001, &[]);
    let www = |ports: &[u16]| ports.iter().map(|port| one("www", *port, &[])).collect::<Vec<_>>();
    let with = |first: &[&Value], then: Vec<Value>| first.iter().copied().cloned().chain(then).collect::<Vec<_>>();

    let mut nomad = Nomad::new(&with(&[&api], www(&[2011, 2012])));
    let rig = Rig::start(Way::Local, "3.2").await;
    let env = rig.env_with(&[
        ("NOMAD_ADDR", &format!("http://{}", nomad.address)),
        ("NOMAD_HAPROXY_RESYNC_INTERVAL", "1h"),
        ("NOMAD_HAPROXY_RELOAD_MIN_INTERVAL", "0s"),
    ]);
    let controller = Controller::start(&env, &["--log-format", "text"]);
    let mut day = Day { rig, controller, read: 0, text: String::new() };
    day.step("The controller starts, and adopts what Nomad has.", &[" applied "]).await;

    nomad.register(&with(&[&api], www(&[2011, 2012, 2013])));
    day.step("A service is scaled up.", &[" applied "]).await;
    nomad.register(&with(&[&api], www(&[2013])));
    day.step("And down.", &[" applied "]).await;

    let (bad, cart) = (one("api", 2001, &["wieght=3"]), one("cart", 2021, &["backend=custom"]));
    nomad.register(&with(&[&bad, &cart], www(&[2013])));
    day.step("A job has a tag with a mistake in it, another one a backend that does not exist.", &["cart", "wieght"])
        .await;
    nomad.register(&with(&[&api], www(&[2013])));
    day.step("Both are repaired.", &["cart", "wieght"]).await;

    nomad.kill();
    day.step("Nomad does not answer any more.", &["cannot watch", "the pass failed"]).await;
    nomad.launch();
    day.step("It returns.", &["watching Nomad again", "passes succeed again"]).await;
    // The blocking query, and the event stream.
    wait_for("Nomad to be watched", Duration::from_secs(30), async || {
        (nomad.catalog.receiver_count() == 2).then_some(())
    })
    .await;

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let bind = format!("bind 127.0.0.1:{}\n    acl is_shop", taken.local_addr().unwrap().port());
    day.rig.edit(|text| text.replacen("acl is_shop", &bind, 1)).await;
    let new = one("new", 2031, &[]);
    nomad.register(&with(&[&api, &new], www(&[2013, 2014])));
    day.step(
        "A person has added a listener on a port that is in use; a job is added, another one is scaled.",
        &["the pass failed", "service=new"],
    )
    .await;
    drop(taken);
    day.rig.edit(|text| text.replacen(&bind, "acl is_shop", 1)).await;
    nomad.register(&with(&[&api, &new], www(&[2013, 2014, 2015])));
    day.step("The listener is gone again.", &["new +1", "problem resolved"]).await;

    day.rig.haproxy.kill();
    nomad.register(&with(&[&api, &new], www(&[2013])));
    day.step("HAProxy is stopped.", &["the pass failed"]).await;
    day.rig.haproxy.launch().await;
    day.step("It is started, and returns.", &[" applied ", "passes succeed again"]).await;

    assert_eq!(day.controller.stop().await.code(), Some(0));
    day.step("The controller is stopped.", &["stopped"]).await;
    expect_test::expect_file!["../expected/day.log"].assert_eq(day.text.trim_end());
}
