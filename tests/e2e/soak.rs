//! The short form of `make soak`: services come, grow, roll and go on a real Nomad, under requests and with a database
//! connection open. No request fails, and what HAProxy does at run time takes no reload.

use std::time::Duration;

use crate::support::haproxy::matrix;
use crate::support::soak::{Memory, Plane, Report, Sample, Settings, Times, run};

/// How long the churn lasts, unless `SOAK_MINUTES` says it.
const CHURN: Duration = Duration::from_secs(30);
const SERVICES: usize = 30;
/// Longer than any pass takes beside other tests. `make soak` has none.
const GRACE: Duration = Duration::from_secs(60);

/// A soak of an hour in which all holds.
fn good() -> Report {
    Report {
        haproxy: "3.4".to_owned(),
        plane: "local plane",
        minutes: 60.0,
        created: 3,
        stopped: 2,
        grown: 1,
        requests: 1000,
        failed: 0,
        failures: Vec::new(),
        queries: 1000,
        is_connection_open: true,
        reloads: 0,
        reloads_of_growth: 0,
        is_same_worker: true,
        workers_at_start: 1,
        workers_at_most: 1,
        workers_at_end: 1,
        routed_ms: Times::of(&[Duration::from_millis(1)]),
        pass_ms: Times::of(&[Duration::from_millis(1)]),
        reloads_of_passes: 0,
        reloads_of_a_pass: 0,
        unrouted: Vec::new(),
        late: Vec::new(),
        validation_ms: Some(1.0),
        refusal: None,
        difference: None,
        haproxy_kb: Memory::of(&[100, 101]),
        controller_kb: Memory::of(&[100, 101]),
        broken: Vec::new(),
        samples: Vec::new(),
    }
}

fn judged(series: &str, plane: Plane, change: impl Fn(&mut Report)) -> usize {
    let hour = Duration::from_secs(3600);
    let settings =
        Settings { series: series.to_owned(), plane, services: 3, churn: hour, linger: hour, grace: Duration::ZERO };
    let mut report = good();
    change(&mut report);
    report.judge(&settings);
    report.broken.len()
}

#[test]
fn what_does_not_hold_is_said() {
    let breaks: [fn(&mut Report); 11] = [
        |report| report.failed = 1,
        |report| report.requests = 0,
        |report| report.is_connection_open = false,
        |report| report.unrouted.push("s1".to_owned()),
        |report| report.late.push("s1".to_owned()),
        |report| report.refusal = Some("unknown keyword".to_owned()),
        |report| report.difference = Some("s1/s1_1".to_owned()),
        |report| report.reloads_of_growth = 1,
        |report| report.haproxy_kb = Memory::of(&[100, 120]),
        |report| report.controller_kb = Memory::of(&[100, 120]),
        |report| report.controller_kb = None,
    ];
    for series in ["3.2", "3.4"] {
        assert_eq!(judged(series, Plane::Local, |_| {}), 0);
        for (at, change) in breaks.iter().enumerate() {
            assert_eq!(judged(series, Plane::Local, change), 1, "HAProxy {series}, {at}");
        }
    }
}

#[test]
fn reloads_are_judged_by_what_the_target_can_do() {
    let reloads = |report: &mut Report, of_passes, of_a_pass| {
        (report.reloads, report.workers_at_most, report.is_same_worker) = (2, 2, false);
        (report.reloads_of_passes, report.reloads_of_a_pass) = (of_passes, of_a_pass);
    };
    for (series, plane, of_passes, of_a_pass, broken) in [
        ("3.4", Plane::Local, 2, 1, 1),
        ("3.4", Plane::Api, 2, 1, 1),
        ("3.2", Plane::Local, 2, 1, 0),
        ("3.2", Plane::Local, 1, 1, 1),
        ("3.2", Plane::Local, 2, 2, 1),
        ("3.4", Plane::Slots, 2, 1, 0),
    ] {
        let found = judged(series, plane.clone(), |report| reloads(report, of_passes, of_a_pass));
        assert_eq!(found, broken, "HAProxy {series}, {plane:?}, {of_passes}, {of_a_pass}");
    }
}

#[test]
fn percentiles_and_growth() {
    let times: Vec<Duration> = (1..=200).rev().map(Duration::from_millis).collect();
    let Times { count, median, p99, slowest } = Times::of(&times);
    assert_eq!((count, [median, p99, slowest].map(f64::round)), (200, [100.0, 198.0, 200.0]));
    assert!(Times::of(&[]).median.is_nan());
    // One high value at an end is no growth.
    let mut samples = vec![100; 50];
    (samples[0], samples[49]) = (200, 200);
    let Memory { first, last, growth_percent } = Memory::of(&samples).unwrap();
    assert_eq!((first, last, growth_percent.round()), (100, 100, 0.0));
    assert!(Memory::of(&[]).is_none());
}

async fn holds(series: &str, plane: Plane) {
    let minutes = std::env::var("SOAK_MINUTES").ok().map(|minutes| minutes.parse::<f64>().expect("a number"));
    let churn = minutes.map_or(CHURN, |minutes| Duration::from_secs_f64(minutes * 60.0));
    let settings =
        Settings { series: series.to_owned(), plane, services: SERVICES, churn, linger: churn / 6, grace: GRACE };
    let report = run(&settings, |sample: &Sample| eprintln!("{sample:?}")).await;
    for (what, value) in report.rows() {
        eprintln!("{what}: {value}");
    }
    assert_eq!(report.broken, Vec::<String>::new(), "HAProxy {series}, {}", report.plane);
    assert!(report.grown > 0 && report.stopped > 0, "{} grown, {} stopped", report.grown, report.stopped);
}

/// The other planes and releases take `make soak` with `SOAK_PLANE` and `SOAK_HAPROXY`.
#[tokio::test(flavor = "multi_thread")]
async fn services_come_grow_and_go_on_the_local_plane() {
    holds(matrix().pop().expect("several"), Plane::Local).await;
}
