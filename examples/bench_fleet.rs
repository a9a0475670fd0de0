//! `make bench-e2e`: what several HAProxys with one controller cost. Times are only ratios within this one run.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "it measures; what fails may panic")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::api::{Rig, Way, which};
use support::controller::{Controller, registration, write_catalog};
use support::fleet::{Fleet, NAMES, memory, services_of_five};
use support::nomad::Nomad;
use support::wait_for;

/// HAProxys of the second part.
const MANY: usize = 20;
/// How long the second part measures each state: longer than the interval of resyncs.
const MEASURED: Duration = Duration::from_secs(35);
/// Between two changes: 5 in a second.
const CHANGE_EVERY: Duration = Duration::from_millis(200);
/// The kernel's unit of CPU time (`getconf CLK_TCK`, 100 on Linux).
const TICKS_PER_SECOND: f64 = 100.0;

/// CPU time that a process has taken, in seconds.
fn cpu(pid: i32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / TICKS_PER_SECOND
}

/// From the start of a controller to all its HAProxys in line.
async fn adoption(settings: PathBuf, nomad: &Nomad) -> (Duration, f64) {
    let env = Fleet::env(&[("NOMAD_ADDR", &nomad.address)]);
    let started = Instant::now();
    let mut controller = Controller::start(&env, &["--config", &settings.display().to_string()]);
    wait_for("all to be in line", Duration::from_secs(120), async || {
        (controller.http("/readyz").await.0 == 200).then_some(())
    })
    .await;
    let cost = (started.elapsed(), memory(controller.pid()));
    assert!(controller.stop().await.success());
    cost
}

async fn three() {
    let nomad = Nomad::start().await;
    nomad.submit(services_of_five(200)).await;
    nomad.wait_for_instances("wide-199", 5).await;
    let mut alone = Vec::new();
    for at in 0..NAMES.len() {
        let fleet = Fleet::start().await;
        alone.push(adoption(fleet.settings_of(at), &nomad).await);
    }
    let fleet = Fleet::start().await;
    let (took, kilobytes) = adoption(fleet.settings(), &nomad).await;
    fleet.agree().await;
    let slowest = alone.iter().map(|(took, _)| took.as_secs_f64()).fold(0.0, f64::max);
    let all: f64 = alone.iter().map(|(took, _)| took.as_secs_f64()).sum();
    let largest = alone.iter().map(|(_, kilobytes)| *kilobytes).fold(0.0, f64::max);
    println!("200 services of 5, adopted by 3 HAProxys together");
    println!("  time, over the slowest of the 3 alone  {:>6.2} x", took.as_secs_f64() / slowest);
    println!("  time, over the 3 one after the other   {:>6.2} x", took.as_secs_f64() / all);
    println!("  peak memory, over the largest alone    {:>6.2} x", kilobytes / largest);
}

/// CPU at rest and under changes, as a share of one core, and peak memory in kB.
struct Load {
    rest: f64,
    busy: f64,
    kilobytes: f64,
}

async fn load(haproxys: usize) -> Load {
    let mut rigs = Vec::new();
    for _ in 0..haproxys {
        rigs.push(Rig::start(Way::Local, "3.2").await);
    }
    let entries: Vec<Value> = rigs
        .iter()
        .map(|rig| {
            json!({"config_file": rig.haproxy.config(), "master_socket": rig.haproxy.master(), "binary": rig.haproxy.binary})
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let (settings, catalog) = (folder.path().join("settings.json"), folder.path().join("catalog.json"));
    std::fs::write(&settings, json!({"haproxy": entries}).to_string()).unwrap();
    let write = |instances: u16| {
        let one = |service: u16, instance: u16| {
            let id = format!("{service}-{instance}");
            registration(&format!("s-{service}"), &id, 1, 2000 + instance, &["enable=true", "check.disabled"])
        };
        let of =
            |service: u16| (0..if service == 0 { instances } else { 3 }).map(move |instance| one(service, instance));
        write_catalog(&catalog, &(0..50).flat_map(of).collect::<Vec<_>>());
    };
    write(3);
    let arguments = ["--config", settings.to_str().unwrap(), "--catalog", catalog.to_str().unwrap()];
    let controller = Controller::start(&Fleet::env(&[]), &arguments);
    wait_for("all to be in line", Duration::from_secs(120), async || {
        (controller.http("/readyz").await.0 == 200).then_some(())
    })
    .await;
    let pid = controller.pid();
    let share = |before: f64| (cpu(pid) - before) / MEASURED.as_secs_f64();
    let before = cpu(pid);
    tokio::time::sleep(MEASURED).await;
    let rest = share(before);
    let (before, started) = (cpu(pid), Instant::now());
    for change in 0_u16.. {
        if started.elapsed() >= MEASURED {
            break;
        }
        write(3 + change % 2);
        tokio::time::sleep(CHANGE_EVERY).await;
    }
    Load { rest, busy: share(before), kilobytes: memory(pid) }
}

async fn many() {
    let (one, many) = (load(1).await, load(MANY).await);
    println!("\n50 services of 3 on {MANY} HAProxys of this machine, over 1");
    println!("  CPU at rest                {:>6.2} % of a core, {:>6.2} % for 1", many.rest * 100.0, one.rest * 100.0);
    println!("  CPU at 5 changes a second  {:>6.1} % of a core, {:>6.1} % for 1", many.busy * 100.0, one.busy * 100.0);
    println!("  peak memory                {:>6.2} x", many.kilobytes / one.kilobytes);
}

#[tokio::main]
async fn main() {
    println!("HAProxy 3.0, 3.2 and 3.4, {}\n", which());
    three().await;
    many().await;
}
