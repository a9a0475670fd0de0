//! The short form of `make soak`: services come, grow, roll and go on a real Nomad, under requests and with database
//! connections open, while the controller, the API and Nomad are killed. No request fails, and what HAProxy does at run
//! time takes no reload. It takes minutes, so it has a name with which it starts early.

use std::time::Duration;

use crate::support::haproxy::matrix;
use crate::support::soak::{Plane, Report, Sample, Settings, Times, Trend, run};

/// How long the churn lasts, unless `SOAK_MINUTES` says it.
const CHURN: Duration = Duration::from_secs(300);
const KILL_EVERY: Duration = Duration::from_secs(60);
const SERVICES: usize = 60;
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
        changes_per_second: 5.0,
        killed: 0,
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
        stalled: 0,
        unrouted: Vec::new(),
        late: Vec::new(),
        validation_ms: Some(1.0),
        refusal: None,
        difference: None,
        haproxy_kb: Trend::of(&[100, 101]),
        controller_kb: Trend::of(&[100, 101]),
        descriptors: Trend::of(&[100, 101]),
        broken: Vec::new(),
        samples: Vec::new(),
    }
}

fn settings(series: &str, plane: Plane) -> Settings {
    let minutes = std::env::var("SOAK_MINUTES").ok().map(|minutes| minutes.parse::<f64>().expect("a number"));
    let churn = minutes.map_or(CHURN, |minutes| Duration::from_secs_f64(minutes * 60.0));
    Settings {
        series: series.to_owned(),
        plane,
        services: SERVICES,
        churn,
        peak: 8,
        growing: 4,
        linger: churn / 6,
        kill_every: Some(KILL_EVERY),
        grace: GRACE,
    }
}

fn judged(series: &str, plane: Plane, change: impl Fn(&mut Report)) -> usize {
    let settings = Settings { churn: Duration::from_secs(3600), ..settings(series, plane) };
    let mut report = good();
    change(&mut report);
    report.judge(&settings);
    report.broken.len()
}

#[test]
fn what_does_not_hold_is_said() {
    let breaks: [fn(&mut Report); 12] = [
        |report| report.failed = 1,
        |report| report.requests = 0,
        |report| report.is_connection_open = false,
        |report| report.unrouted.push("s1".to_owned()),
        |report| report.late.push("s1".to_owned()),
        |report| report.refusal = Some("unknown keyword".to_owned()),
        |report| report.difference = Some("s1/s1_1".to_owned()),
        |report| report.reloads_of_growth = 1,
        |report| report.haproxy_kb = Trend::of(&[100, 120]),
        |report| report.controller_kb = Trend::of(&[100, 120]),
        |report| report.controller_kb = None,
        |report| report.descriptors = Trend::of(&[100, 120]),
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
    let Trend { first, last, growth_percent } = Trend::of(&samples).unwrap();
    assert_eq!((first, last, growth_percent.round()), (100, 100, 0.0));
    assert!(Trend::of(&[]).is_none());
}

/// The other planes and releases take `make soak` with `SOAK_PLANE` and `SOAK_HAPROXY`.
#[tokio::test(flavor = "multi_thread")]
async fn services_come_grow_and_go_while_things_are_killed() {
    let settings = settings(matrix().pop().expect("several"), Plane::Both);
    let report = run(&settings, |sample: &Sample| eprintln!("{sample:?}")).await;
    for (what, value) in report.rows() {
        eprintln!("{what}: {value}");
    }
    assert_eq!(report.broken, Vec::<String>::new(), "HAProxy {}, {}", settings.series, report.plane);
    assert!(report.grown > 0 && report.stopped > 0, "{} grown, {} stopped", report.grown, report.stopped);
    assert!(report.killed >= 3, "each once: {}", report.killed);
}
