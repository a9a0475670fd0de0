//! `make bench-e2e`: what changes cost on a real HAProxy, in reloads, API calls and time, beside a mode
//! that reloads for each change. Times only as ratios within this one run.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "it measures; what fails may panic")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use nomad_haproxy::apply::{Controller, Source};
use nomad_haproxy::config::SLOTS_MIN_FREE;
use nomad_haproxy::desired::build;
use nomad_haproxy::desired::{Mark, SlotPolicy};
use nomad_haproxy::plan;
use nomad_haproxy::plane::dataplane::{Dataplane, Settings, Write};
use serde_json::Value;
use support::api::{Rig, Way, which};
use support::controller::{registration, write_catalog};
use support::gate::Gate;
use support::haproxy::matrix;

/// Changes of one service in each mode.
const CHANGES: usize = 30;

/// One HAProxy and a controller in this process, so that what is measured is passes and not starts.
struct Bench {
    rig: Rig,
    gate: std::sync::Arc<Gate>,
    controller: Controller<Dataplane>,
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
        let mark: Mark = "nomad".parse().unwrap();
        let settings =
            Settings { url: url.parse().unwrap(), username: "admin".into(), password: "secret".to_owned().into() };
        let build = build::Options {
            prefix: "haproxy.".into(),
            mark: mark.clone(),
            slots: SlotPolicy { min_free, max: 256 },
            init_state: true,
        };
        let plan = plan::Options { mark: mark.clone(), strategy: plan::Strategy::UseExisting, now: 0 };
        let plane = Dataplane::new(settings, mark, write).unwrap();
        let controller = Controller::new(plane, Source::File(rig.catalog()), build, plan, Duration::ZERO);
        Self { rig, gate, controller }
    }

    async fn apply(&mut self, catalog: &[Value]) -> Cost {
        write_catalog(&self.rig.catalog(), catalog);
        let reloads = self.rig.haproxy.reloads().await;
        self.gate.hold(None);
        let start = Instant::now();
        self.controller.pass(None).await.unwrap();
        let time = start.elapsed();
        Cost { time, calls: self.gate.calls().len(), reloads: self.rig.haproxy.reloads().await - reloads }
    }

    /// The median pass of many, and what all of them cost together.
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

/// Services of five, the first of as many as it says.
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
    println!("{what:<44} {:>7} {:>7} {ratio:>9.2} x  {against}", ours.reloads, ours.calls);
}

#[tokio::main]
async fn main() {
    let series = matrix().into_iter().find(|series| *series == "3.2").unwrap();
    println!("HAProxy {series}, {}\n", which());
    println!("{:<44} {:>7} {:>7} {:>11}", "", "reloads", "calls", "time");
    for services in [200, 1000] {
        let (structured, text) = (
            Bench::start(series, Write::Transaction, SLOTS_MIN_FREE).await.apply(&catalog(services, 5)).await,
            Bench::start(series, Write::Text, SLOTS_MIN_FREE).await.apply(&catalog(services, 5)).await,
        );
        row(&format!("{services} services of 5 from nothing, transaction"), structured, structured, "itself");
        row(&format!("{services} services of 5 from nothing, text"), text, structured, "write = transaction");
    }
    for services in [20, 1000] {
        let mut live = Bench::start(series, Write::Text, SLOTS_MIN_FREE).await;
        let mut reloading = Bench::start(series, Write::Text, 0).await;
        live.apply(&catalog(services, 5)).await;
        reloading.apply(&catalog(services, 5)).await;
        let (live, reloading) = (live.churn(services).await, reloading.churn(services).await);
        row(&format!("{CHANGES} changes of one of {services} services, slots"), live, reloading, "slots = 0");
        row(&format!("{CHANGES} changes of one of {services} services, slots = 0"), reloading, reloading, "itself");
    }
}
