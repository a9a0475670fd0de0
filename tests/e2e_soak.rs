//! The short form of `make soak`: services come, grow, roll and go on a real Nomad, under requests and with a database
//! connection open. No request fails, and what HAProxy does at run time takes no reload.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, clippy::similar_names, unreachable_pub, reason = "tests")]

#[macro_use]
mod support;

use std::time::Duration;

use support::haproxy::matrix;
use support::soak::{Plane, Sample, Settings, run};

/// How long the churn lasts, unless `SOAK_MINUTES` says it.
const CHURN: Duration = Duration::from_secs(30);
const SERVICES: usize = 30;

async fn holds(series: &str, plane: Plane) {
    let minutes = std::env::var("SOAK_MINUTES").ok().map(|minutes| minutes.parse::<f64>().expect("a number"));
    let churn = minutes.map_or(CHURN, |minutes| Duration::from_secs_f64(minutes * 60.0));
    let settings = Settings { series: series.to_owned(), plane, services: SERVICES, churn, linger: churn / 6 };
    let report = run(&settings, |sample: &Sample| eprintln!("{sample:?}")).await;
    for (what, value) in report.rows() {
        eprintln!("{what}: {value}");
    }
    assert_eq!(report.broken, Vec::<String>::new(), "HAProxy {series}, {}", report.plane);
    assert!(report.grown > 0 && report.stopped > 0, "{} grown, {} stopped", report.grown, report.stopped);
}

fn newest() -> &'static str {
    matrix().pop().expect("several")
}

#[tokio::test(flavor = "multi_thread")]
async fn services_come_grow_and_go_on_the_local_plane() {
    holds(newest(), Plane::Local).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn services_come_grow_and_go_through_the_api_with_a_socket() {
    holds(newest(), Plane::Api).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_older_haproxys_only_new_services_take_reloads() {
    for series in matrix().into_iter().filter(|series| *series != newest()) {
        holds(series, Plane::Local).await;
    }
}
