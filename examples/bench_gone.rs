//! `make bench-e2e`: how long an instance that Nomad deregisters stays in service, on a real Nomad and a real HAProxy, as
//! a multiple of what no controller can do without: one wake of a blocking query, and one run-time call. Times are only
//! ratios within this one run.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "it measures; what fails may panic")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use support::api::{Rig, Way};
use support::controller::Controller;
use support::nomad::{Nomad, job};
use support::wait_for;

/// Services, and instances of each.
const SIZES: [(usize, u32); 3] = [(20, 3), (200, 5), (1000, 5)];
/// Deregistrations that each figure is the median of.
const ROUNDS: usize = 15;
/// Those of both kinds, and two that stay.
const PROBES: u32 = 32;
/// Longer than a change waits for others after a pass (`reconcile.quiet_period`).
const QUIET: Duration = Duration::from_millis(300);
/// Between two polls of the process.
const POLL: Duration = Duration::from_millis(1);

/// All services are those of one group, so that they are registered within seconds.
fn wide(services: usize, instances: u32) -> Value {
    let tags = ["haproxy.enable=true", "haproxy.check.disabled"];
    let mut job = job("wide", instances, &[], None);
    let group = &mut job["TaskGroups"][0];
    let label = |at: usize| format!("p{at}");
    group["Networks"][0]["DynamicPorts"] = (0..services).map(|at| json!({"Label": label(at)})).collect();
    group["Services"] = (0..services)
        .map(|at| json!({"Name": format!("svc-{at}"), "Provider": "nomad", "PortLabel": label(at), "Tags": tags}))
        .collect();
    job
}

struct Bench {
    nomad: Nomad,
    rig: Rig,
    client: reqwest::Client,
    controller: Controller,
    /// The registrations that are still there.
    probes: Vec<String>,
}

impl Bench {
    async fn start(services: usize, instances: u32) -> Self {
        let nomad = Nomad::start().await;
        let rig = Rig::start(Way::Local, "3.2").await;
        nomad.submit(wide(services, instances)).await;
        nomad.submit(job("probe", PROBES, &["enable=true", "check.disabled"], None)).await;
        let controller = Controller::start(&rig.env_with(&[("NOMAD_ADDR", &nomad.address)]), &[]);
        let all = services * instances as usize + PROBES as usize;
        wait_for("all to be routed", Duration::from_secs(300), async || {
            (rig.haproxy.text().matches("\"id\":").count() == all).then_some(())
        })
        .await;
        controller.wait_until_ready().await;
        let probes = nomad.service("probe").await.iter().map(|one| one["ID"].as_str().unwrap().to_owned()).collect();
        let bench = Self { nomad, rig, client: reqwest::Client::new(), controller, probes };
        bench.until_ready(PROBES as usize).await;
        bench
    }

    /// Waits until so many are in service, and returns when that was.
    async fn until_ready(&self, count: usize) -> Instant {
        loop {
            let running = self.rig.haproxy.running_in("probe").await;
            if running.values().filter(|server| server.state() == "ready").count() == count {
                return Instant::now();
            }
            // Polling slows down what is measured.
            tokio::time::sleep(POLL).await;
        }
    }

    /// Nomad deregisters one.
    async fn deregister(&mut self) -> Instant {
        let url = format!("{}/v1/service/probe/{}", self.nomad.address, self.probes.pop().unwrap());
        let start = Instant::now();
        self.client.request(Method::DELETE, url).send().await.unwrap().error_for_status().unwrap();
        start
    }

    /// From there until it is out of service in the process.
    async fn gone(&mut self) -> Duration {
        let left = self.probes.len() - 1;
        let start = self.deregister().await;
        self.until_ready(left).await - start
    }

    /// From there until a blocking query of the list returns.
    async fn wake(&mut self) -> Duration {
        let url = format!("{}/v1/services?namespace=*", self.nomad.address);
        let list = self.client.get(&url).send().await.unwrap();
        let index = list.headers()["X-Nomad-Index"].to_str().unwrap().to_owned();
        let waiting = self.client.get(format!("{url}&wait=60s&index={index}"));
        let waiting = tokio::spawn(async move {
            waiting.send().await.unwrap().bytes().await.unwrap();
            Instant::now()
        });
        // It has to be there before the change.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let left = self.probes.len() - 1;
        let start = self.deregister().await;
        let woken = waiting.await.unwrap() - start;
        self.until_ready(left).await;
        woken
    }

    /// Waits until the pass is over, and some more: a change right behind another one is gathered with it.
    async fn until_quiet(&self) {
        let is_registered = |line: &&str| line.contains("server probe_") && line.contains("\"id\":");
        wait_for("the pass to write it", Duration::from_secs(60), async || {
            (self.rig.haproxy.text().lines().filter(is_registered).count() == self.probes.len()).then_some(())
        })
        .await;
        self.controller.wait_until_ready().await;
        tokio::time::sleep(QUIET).await;
    }

    /// One run-time call.
    async fn call(&self) -> Duration {
        let start = Instant::now();
        self.rig.haproxy.command("@1 set server shop/old state maint").await;
        start.elapsed()
    }
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64()
}

#[tokio::main]
async fn main() {
    println!("{:<30} deregistered → out of service", "");
    for (services, instances) in SIZES {
        let mut bench = Bench::start(services, instances).await;
        let (mut gone, mut wakes, mut calls) = (Vec::new(), Vec::new(), Vec::new());
        // Interleaved, and each once the one before is done.
        for _ in 0..ROUNDS {
            gone.push(bench.gone().await);
            calls.push(bench.call().await);
            bench.until_quiet().await;
            wakes.push(bench.wake().await);
            bench.until_quiet().await;
        }
        let ratio = median(gone) / (median(wakes) + median(calls));
        println!(
            "{:<30} {ratio:>5.1} x  one wake of a blocking query and one run-time call",
            format!("one of {services} services of {instances}")
        );
    }
}
