//! `make bench-e2e`: on a real Nomad and a real HAProxy, how long an instance that Nomad deregisters stays in service, as a
//! multiple of what no controller can do without (one wake of a blocking query, and one run-time call), and what a full
//! read of the catalog takes, beside the same requests of a bare client. Times are only ratios within this one run.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "it measures; what fails may panic")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use nomad_haproxy::catalog::Source;
use nomad_haproxy::catalog::nomad::NomadCatalog;
use nomad_haproxy::config::{Config, Settings};
use nomad_haproxy::nomad::Nomad;
use reqwest::Method;
use serde_json::{Value, json};
use support::api::{Rig, Way};
use support::controller::Controller;
use support::gate::Gate;
use support::nomad::{self, job};
use support::wait_for;

/// Services, and instances of each.
const SIZES: [(usize, u32); 3] = [(20, 3), (200, 5), (1000, 5)];
/// Deregistrations that each figure is the median of.
const ROUNDS: usize = 15;
/// Those of both kinds, and two that stay.
const PROBES: u32 = 32;
/// Full reads that each figure is the median of.
const READS: usize = 7;
/// As many as the controller has open (`catalog::nomad::CONCURRENCY`).
const AT_A_TIME: usize = 16;
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
    nomad: nomad::Nomad,
    rig: Rig,
    client: reqwest::Client,
    controller: Controller,
    /// The registrations that are still there.
    probes: Vec<String>,
}

impl Bench {
    async fn start(services: usize, instances: u32) -> Self {
        let nomad = nomad::Nomad::start().await;
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

/// What a full read takes.
struct Read {
    times: Vec<Duration>,
    bare: Vec<Duration>,
    calls: usize,
    bytes: usize,
    /// What it adds to the memory of a process at the most.
    kb: u64,
}

impl Bench {
    fn source(address: &str) -> Source {
        let settings: Settings = serde_json::from_value(json!({"nomad": {"address": address}})).unwrap();
        let Config { nomad, namespaces, prefix, .. } = Config::try_from(settings).unwrap();
        Source::Nomad(Box::new(NomadCatalog::new(Nomad::new(nomad).unwrap(), namespaces, prefix)))
    }

    /// Reads all of the catalog.
    async fn read(&self) -> Read {
        let (gate, url) = Gate::start(&self.nomad.address).await;
        let all = async |source: &Source| source.read(&BTreeSet::new(), true).await.unwrap().catalog.len();
        let registrations = all(&Self::source(&url)).await;
        let (calls, bytes) = (gate.calls().len(), gate.bytes());
        let (mut times, mut bare, mut kb) = (Vec::new(), Vec::new(), 0);
        for _ in 0..READS {
            let source = Self::source(&self.nomad.address);
            // Without the connections: a controller has them.
            all(&source).await;
            std::fs::write("/proc/self/clear_refs", "5").unwrap();
            let (before, start) = (memory("VmRSS"), Instant::now());
            assert_eq!(all(&source).await, registrations);
            times.push(start.elapsed());
            kb = kb.max(memory("VmHWM").saturating_sub(before));
            bare.push(self.bare().await);
        }
        Read { times, bare, calls, bytes, kb }
    }

    /// The same requests by a client that drops the answers.
    async fn bare(&self) -> Duration {
        let get = async |path: String| {
            let url = format!("{}{path}", self.nomad.address);
            self.client.get(url).send().await.unwrap().bytes().await.unwrap()
        };
        let start = Instant::now();
        let list: Value = serde_json::from_slice(&get("/v1/services?namespace=default".to_owned()).await).unwrap();
        let names = list[0]["Services"].as_array().unwrap().iter().map(|one| one["ServiceName"].as_str().unwrap());
        let paths: Vec<String> = names.map(|name| format!("/v1/service/{name}?namespace=default")).collect();
        stream::iter(paths.into_iter().map(get)).buffer_unordered(AT_A_TIME).for_each(async |_| {}).await;
        start.elapsed()
    }
}

/// A line of this process's status, in kB.
fn memory(what: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64()
}

#[tokio::main]
async fn main() {
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
        println!("{services} services of {instances}");
        println!("  deregistered → out of service   {ratio:.1} x one wake of a blocking query and one run-time call");
        let Read { times, bare, calls, bytes, kb } = bench.read().await;
        println!(
            "  a full read                     {:.1} x the same requests of a bare client, {calls} calls, {} kB of answers, \
             {} kB of memory at the most",
            median(times) / median(bare),
            bytes / 1024,
            kb,
        );
    }
}
