//! The pure parts of a pass, each as a ratio to a baseline of the same run: `make bench`.
//!
//! The baselines are work that any controller has to do: decoding the catalog that Nomad sends, and splitting HAProxy's
//! configuration into words. Runs are interleaved and the medians compared, so that other load on the machine affects
//! both.

use std::hint::black_box;
use std::time::{Duration, Instant};

use nomad_haproxy::catalog::{Catalog, Registration};
use nomad_haproxy::desired::build::{self, build};
use nomad_haproxy::desired::{Owner, SlotPolicy, tags};
use nomad_haproxy::haproxy::text::{ConfigText, Directive};
use nomad_haproxy::observed::Observed;
use nomad_haproxy::plan::{self, Plan};

/// Runs of each side.
const RUNS: usize = 25;

fn registrations(services: usize, instances: usize) -> Vec<Registration> {
    let one = |service: usize, instance: usize| Registration {
        id: format!("_nomad-task-{service:08}-0000-4000-8000-{instance:012}-group-g-svc-{service}-http"),
        service_name: format!("svc-{service}"),
        namespace: "default".into(),
        node_id: "5e9667e0-65ac-b3da-fdc3-0f6a99e465fd".into(),
        datacenter: "dc1".into(),
        job_id: format!("svc-{service}"),
        alloc_id: format!("{service:08}-0000-4000-8000-{instance:012}"),
        tags: ["enable=true", "check.path=/health", "check.interval=2s", "balance=leastconn", "weight=10"]
            .iter()
            .map(|tag| format!("haproxy.{tag}"))
            .chain(["version=3".to_owned()])
            .collect(),
        address: format!("10.{}.{}.{instance}", service / 250, service % 250),
        port: 20_000,
        create_index: (service * 10 + instance) as u64,
        modify_index: 0,
    };
    (0..services).flat_map(|service| (0..instances).map(move |instance| one(service, instance))).collect()
}

fn catalog(registrations: &[Registration]) -> Catalog {
    let mut catalog = Catalog::default();
    for registration in registrations {
        catalog.services.entry(registration.service()).or_default().push(registration.clone());
    }
    catalog
}

fn time(work: &mut dyn FnMut()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn compare(name: &str, mut work: impl FnMut(), baseline: &str, mut base: impl FnMut()) {
    let (mut ours, mut baselines) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        ours.push(time(&mut work));
        baselines.push(time(&mut base));
    }
    let median = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() / 2].as_secs_f64()
    };
    println!("{name:<58} {:>6.2} x  {baseline}", median(ours) / median(baselines));
}

fn main() {
    let owner: Owner = "nomad".parse().expect("an owner");
    let options = build::Options {
        prefix: "haproxy.".into(),
        owner: owner.clone(),
        slots: SlotPolicy { min_free: 4, max: 256 },
        init_state: true,
        lingers: false,
        grants: nomad_haproxy::desired::Grants::default(),
        targets: nomad_haproxy::desired::build::TargetNames::default(),
        frontend: None,
    };
    let plan_options = plan::Options::new(owner.clone());
    let all = registrations(1000, 5);
    let catalog = catalog(&all);
    let json = serde_json::to_string(&all).expect("a list");
    let none = nomad_haproxy::plan::LeftOut::default();
    let empty = Observed::new(1, ConfigText::new("defaults base\n  mode http\n"), &owner);
    let built = build(&catalog, &empty.present(), &options);
    let from_nothing = Plan::new(&built, &empty, &plan_options, &none).expect("no conflict").plan;
    let text = plan::text::apply(&from_nothing, &empty, &owner).to_string();
    let converged = Observed::new(1, ConfigText::new(&text), &owner);
    assert!(Plan::new(&built, &converged, &plan_options, &none).expect("no conflict").plan.is_empty());

    let decode = || drop(black_box(serde_json::from_str::<Vec<Registration>>(&json).expect("a list")));
    let words = || text.lines().for_each(|line| drop(black_box(Directive::parse(line))));
    compare(
        "plan of 1000 services of 5, from nothing",
        || drop(black_box(Plan::new(&built, &empty, &plan_options, &none))),
        "decoding their registrations from JSON",
        decode,
    );
    compare(
        "plan of 1000 services of 5, nothing to do",
        || drop(black_box(Plan::new(&built, &converged, &plan_options, &none))),
        "decoding their registrations from JSON",
        decode,
    );
    let many = registrations(2000, 5);
    let many_json = serde_json::to_string(&many).expect("a list");
    compare(
        "tags of 10 000 registrations",
        || {
            for registration in &many {
                drop(black_box(tags::parse("haproxy.", registration.tags.iter().map(String::as_str))));
            }
        },
        "decoding them from JSON",
        || drop(black_box(serde_json::from_str::<Vec<Registration>>(&many_json).expect("a list"))),
    );
    compare(
        "reading a configuration of 1000 backends of 10 servers",
        || drop(black_box(Observed::new(1, ConfigText::new(&text), &owner))),
        "splitting its lines into words",
        words,
    );
    compare(
        "a pass of 1000 services of 5 with nothing to do, IO apart",
        || {
            let observed = Observed::new(1, ConfigText::new(&text), &owner);
            let built = build(&catalog, &observed.present(), &options);
            drop(black_box(Plan::new(&built, &observed, &plan_options, &none)));
        },
        "decoding JSON and splitting lines, once each",
        || {
            decode();
            words();
        },
    );
}
