//! `make playground`: one connection to a real MariaDB through HAProxy, a query every 100 ms, while backends scale,
//! move and are added; prints after each round how many HAProxy workers are alive.
//!
//! Every reload leaves an old worker running for as long as its connections last. Live changes do not.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "it shows; what fails may panic")]

#[path = "../tests/support/mod.rs"]
mod support;

use support::api::{Rig, Way};
use support::haproxy::matrix;
use support::mariadb::MariaDb;
use support::playground::{Playground, haproxy};

#[tokio::main]
async fn main() {
    let series = matrix().into_iter().find(|series| *series == "3.2").unwrap();
    let database = MariaDb::start().await;
    let (haproxy, frontend) = haproxy(series).await;
    println!("MariaDB on port {}, HAProxy {series} in front of it on port {frontend}", database.port);
    let rig = Rig::with(Way::Local, series, haproxy).await;
    let mut playground = Playground::start(rig, frontend, &database).await;
    println!("{:<34} {:>8} {:>8} {:>8}", "", "queries", "reloads", "workers");
    print("connected", &playground).await;
    for round in 1..=4 {
        for _ in 0..50 {
            playground.change().await;
        }
        print(&format!("{} live changes", round * 50), &playground).await;
    }
    for round in 1..=5 {
        playground.reload().await;
        print(&format!("a new backend, the {round}. reload since"), &playground).await;
    }
    println!("The connection was never broken.");
}

async fn print(what: &str, playground: &Playground) {
    let outcome = playground.outcome().await;
    println!("{what:<34} {:>8} {:>8} {:>8}", outcome.queries, outcome.reloads, outcome.workers);
}
