//! A database connection lives through every change.

use std::time::Duration;

use crate::support::api::{Rig, WAYS};
use crate::support::haproxy::matrix;
use crate::support::mariadb::MariaDb;
use crate::support::playground::{Playground, haproxy};
use crate::support::wait_for;

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_lives_through_200_live_changes_and_5_reloads() {
    let database = MariaDb::start().await;
    for (series, way) in matrix().into_iter().flat_map(|series| WAYS.map(|way| (series, way))) {
        let (haproxy, frontend) = haproxy(series).await;
        let rig = Rig::with(way, series, haproxy).await;
        let mut playground = Playground::start(rig, frontend, &database).await;
        for change in 1..=200 {
            playground.change().await;
            if change % 40 == 0 {
                playground.reload().await;
            }
        }
        // The worker that holds the connection, and the current one: those between them end by themselves.
        wait_for("the workers without a connection to end", Duration::from_secs(30), async || {
            (playground.rig.haproxy.workers().await == 2).then_some(())
        })
        .await;
        let outcome = playground.outcome().await;
        eprintln!("HAProxy {series}, {way:?}: {outcome:?}");
        assert_eq!(
            (outcome.live, outcome.reloads),
            (200, 6),
            "one reload for the first pass, one for each new backend"
        );
        assert_eq!(outcome.workers, 2);
    }
}
