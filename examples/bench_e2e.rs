//! `make bench-e2e`: what changes cost on a real HAProxy, in reloads, API calls and time, compared with a mode that
//! reloads for each change. Times are only ratios within this one run.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "it measures; what fails may panic")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use nomad_haproxy::apply::{Controller, Moment, Options};
use nomad_haproxy::catalog::Source;
use nomad_haproxy::catalog::shared::SharedCatalog;
use nomad_haproxy::config::SLOTS_MIN_FREE;
use nomad_haproxy::desired::build;
use nomad_haproxy::desired::{Owner, SlotPolicy};
use nomad_haproxy::haproxy::text::ConfigText;
use nomad_haproxy::plan;
use nomad_haproxy::plane::dataplane::{Dataplane, DataplaneConfig, Write};
use serde_json::Value;
use support::api::{Rig, Way, which};
use support::controller::{registration, write_catalog};
use support::gate::Gate;
use support::haproxy::matrix;

/// Changes of one service in each mode.
const CHANGES: usize = 30;
/// How many changes the latencies are the medians of.
const LATENCIES: usize = 15;
/// Between two polls of the process.
const POLL: Duration = Duration::from_millis(1);

/// One HAProxy and a controller in this process, so that passes are measured and not starts.
struct Bench {
    rig: Rig,
    gate: std::sync::Arc<Gate>,
    controller: Controller,
}

#[derive(Clone, Copy)]
struct Cost {
    time: Duration,
    calls: usize,
    reloads: u64,
}

impl Bench {
    async fn start(series: &str, write: Write, min_free: u32) -> Self {
        let rig = Rig::start(Way::Api, series).await;
        let (gate, url) = Gate::start(&rig.api.as_ref().unwrap().url).await;
        let owner: Owner = "nomad".parse().unwrap();
        let settings = DataplaneConfig::new(url, "admin", "secret".to_owned().into());
        let build = build::Options {
            prefix: "haproxy.".into(),
            owner: owner.clone(),
            slots: SlotPolicy { min_free, max: 256 },
            init_state: true,
            lingers: false,
            grants: nomad_haproxy::desired::Grants::default(),
            targets: nomad_haproxy::desired::build::TargetNames::default(),
            frontend: None,
        };
        let plan = plan::Options::new(owner.clone());
        let plane = Dataplane::new(settings, owner, write).unwrap();
        let controller = Controller::new(
            Arc::new(plane),
            SharedCatalog::new(Source::File(rig.catalog())),
            Options {
                build,
                plan,
                // The guard holds what a catalog file lacks, but removals are measured here.
                guard: plan::guard::Options::OFF,
                reload_min_interval: Duration::ZERO,
            },
        );
        Self { rig, gate, controller }
    }

    async fn apply(&mut self, catalog: &[Value]) -> Cost {
        write_catalog(&self.rig.catalog(), catalog);
        let reloads = self.rig.haproxy.reloads().await;
        self.gate.hold(None);
        let start = Instant::now();
        let status = self.controller.pass(Moment::now(false), None).await;
        assert!(status.error.is_none(), "{:?}", status.error);
        let time = start.elapsed();
        Cost { time, calls: self.gate.calls().len(), reloads: self.rig.haproxy.reloads().await - reloads }
    }

    /// The median pass of many, and their total cost.
    async fn churn(&mut self, services: usize) -> Cost {
        let (mut times, mut calls, mut reloads) = (Vec::new(), 0, 0);
        for change in 0..CHANGES {
            let cost = self.apply(&catalog(services, 5 - change % 3)).await;
            times.push(cost.time);
            calls += cost.calls;
            reloads += cost.reloads;
        }
        times.sort();
        Cost { time: times[CHANGES / 2], calls, reloads }
    }
}

/// Services of five, except the first, which has the given number.
fn catalog(services: usize, first: usize) -> Vec<Value> {
    let instances = |service: usize| if service == 0 { first } else { 5 };
    let one = |service: usize, instance: usize| {
        let port = u16::try_from(2000 + service % 30_000 + instance).unwrap();
        registration(
            &format!("svc-{service}"),
            &format!("{service}-{instance}"),
            instance as u64,
            port,
            &["enable=true", "check.disabled"],
        )
    };
    (0..services).flat_map(|service| (0..instances(service)).map(move |instance| one(service, instance))).collect()
}

fn row(what: &str, ours: Cost, base: Cost, against: &str) {
    let ratio = ours.time.as_secs_f64() / base.time.as_secs_f64();
    println!("{what:<52} {:>7} {:>7} {ratio:>9.2} x  {against}", ours.reloads, ours.calls);
}

/// The time until the process agrees with the catalog, as multiples of one validated write of the same file.
struct Latency {
    out: f64,
    ready: f64,
}

impl Bench {
    /// An instance leaves and another comes, repeatedly: the time from the new catalog to maintenance, and to ready.
    async fn latency(&mut self, services: usize) -> Latency {
        let (mut out, mut ready, mut write) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..LATENCIES {
            out.push(self.until(&catalog(services, 4), 4).await);
            ready.push(self.until(&catalog(services, 5), 5).await);
        }
        // Not in between: after a write by another client a pass reads the whole process.
        for _ in 0..LATENCIES {
            write.push(self.validated_write().await);
        }
        let median = |times: &mut Vec<Duration>| {
            times.sort();
            times[times.len() / 2].as_secs_f64()
        };
        let write = median(&mut write);
        Latency { out: median(&mut out) / write, ready: median(&mut ready) / write }
    }

    /// The time until this many servers of the first service are ready in the process.
    async fn until(&mut self, catalog: &[Value], count: usize) -> Duration {
        write_catalog(&self.rig.catalog(), catalog);
        let start = Instant::now();
        let seen = async {
            loop {
                let state = self.rig.haproxy.command("@1 show servers state svc_0").await;
                let rows = state.lines().map(|line| line.split(' ').collect::<Vec<_>>());
                let ready = rows.filter(|f| f.len() > 18 && f[6].parse::<u16>().is_ok_and(|admin| admin & 1 == 0));
                if ready.count() == count {
                    return start.elapsed();
                }
                // Polling slows down what is measured.
                tokio::time::sleep(POLL).await;
            }
        };
        let (time, status) = tokio::join!(seen, self.controller.pass(Moment::now(false), None));
        assert!(status.error.is_none(), "{:?}", status.error);
        time
    }

    /// The same file written once more, validated and not loaded: the least that any change of the file costs.
    async fn validated_write(&self) -> Duration {
        let text = self.rig.haproxy.text();
        let version = ConfigText::new(&text).version().unwrap();
        let url = &self.rig.api.as_ref().unwrap().url;
        let url = format!("{url}/v3/services/haproxy/configuration/raw?skip_reload=true&version={version}");
        let request = reqwest::Client::new().post(url).basic_auth("admin", Some("secret"));
        let start = Instant::now();
        let answer = request.header("Content-Type", "text/plain").body(text).send().await.unwrap();
        assert_eq!(answer.status(), 201, "{}", answer.text().await.unwrap());
        start.elapsed()
    }
}

#[tokio::main]
async fn main() {
    let series = matrix().into_iter().find(|series| *series == "3.2").unwrap();
    println!("HAProxy {series}, {}\n", which());
    println!("{:<52} {:>7} {:>7} {:>11}", "", "reloads", "calls", "time");
    for services in [200, 1000] {
        let mut costs = Vec::new();
        for write in [Write::Transaction, Write::Text, Write::Auto] {
            costs.push(Bench::start(series, write, SLOTS_MIN_FREE).await.apply(&catalog(services, 5)).await);
        }
        for (write, cost) in ["transaction", "text", "auto"].iter().zip(&costs) {
            row(
                &format!("{services} services of 5 from nothing, write = {write}"),
                *cost,
                costs[0],
                "write = transaction",
            );
        }
    }
    for services in [20, 1000] {
        let mut live = Bench::start(series, Write::Auto, SLOTS_MIN_FREE).await;
        let mut reloading = Bench::start(series, Write::Auto, 0).await;
        live.apply(&catalog(services, 5)).await;
        reloading.apply(&catalog(services, 5)).await;
        let (live, reloading) = (live.churn(services).await, reloading.churn(services).await);
        row(&format!("{CHANGES} changes of one of {services} services"), live, reloading, "slots = 0");
    }
    println!("\n{:<52} {:>19} {:>19}", "", "gone → maintenance", "new → ready");
    for services in [20, 200, 1000] {
        let mut bench = Bench::start(series, Write::Auto, SLOTS_MIN_FREE).await;
        bench.apply(&catalog(services, 5)).await;
        // The first live change surveys the file through the API.
        bench.apply(&catalog(services, 4)).await;
        bench.apply(&catalog(services, 5)).await;
        let Latency { out, ready } = bench.latency(services).await;
        println!(
            "{:<52} {out:>17.2} x {ready:>17.2} x  one validated write",
            format!("one of {services} services of 5")
        );
    }
}
