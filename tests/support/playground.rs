//! A database connection during all kinds of changes: whether it survives live changes and reloads.

use std::path::Path;

use serde_json::Value;

use super::api::Rig;
use super::controller::{apply, registration, write_catalog};
use super::haproxy::{Haproxy, hand_written};
use super::mariadb::{Client, MariaDb};
use super::{free_port, wait_for};

/// The result.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    pub queries: u64,
    pub live: u64,
    pub reloads: u64,
    pub workers: usize,
}

pub struct Playground {
    pub rig: Rig,
    client: Client,
    database: u16,
    live: u64,
    structural: u16,
}

/// A HAProxy with a TCP frontend for the database; its port.
pub async fn haproxy(series: &str) -> (Haproxy, u16) {
    let port = free_port();
    let config = move |folder: &Path, web: u16| {
        let base = hand_written(folder, web);
        format!("{base}\nfrontend database\n    mode tcp\n    bind 127.0.0.1:{port}\n    use_backend %[str(db)]\n")
    };
    (Haproxy::start_with(series, config).await, port)
}

impl Playground {
    pub async fn start(rig: Rig, frontend: u16, database: &MariaDb) -> Self {
        let catalog = catalog(database.port, 0, 0);
        write_catalog(&rig.catalog(), &catalog);
        apply(&rig.env(), &rig.catalog()).await;
        let client = Client::start(frontend).await;
        Self { rig, client, database: database.port, live: 0, structural: 0 }
    }

    /// A change that needs no reload: of the database's own backend, or of another.
    pub async fn change(&mut self) {
        self.live += 1;
        self.apply().await;
    }

    /// A change that needs one on every HAProxy: a new backend with a static algorithm.
    pub async fn reload(&mut self) {
        self.structural += 1;
        self.apply().await;
    }

    async fn apply(&mut self) {
        write_catalog(&self.rig.catalog(), &catalog(self.database, self.live, self.structural));
        apply(&self.rig.env(), &self.rig.catalog()).await;
        self.client.still_there();
    }

    pub async fn outcome(&self) -> Outcome {
        // The connection is asked once more: it answers, or it has broken.
        let queries = || self.client.queries.load(std::sync::atomic::Ordering::Relaxed);
        let before = queries();
        wait_for("one more query", std::time::Duration::from_secs(5), async || {
            self.client.still_there();
            (queries() > before).then_some(())
        })
        .await;
        let haproxy = &self.rig.haproxy;
        Outcome {
            queries: queries(),
            live: self.live,
            reloads: haproxy.reloads().await,
            workers: haproxy.workers().await,
        }
    }
}

/// Each step of `live` changes something else: the weight of the database's server, a second server beside it, another
/// registration in its place, the size of another service.
fn catalog(database: u16, live: u64, structural: u16) -> Vec<Value> {
    let step = live % 8;
    let weight = format!("weight={}", 10 + step);
    let tags = ["enable=true", "mode=tcp", weight.as_str()];
    let id = if step >= 6 { "db-second" } else { "db-first" };
    let mut all = vec![registration("db", id, 1, database, &tags)];
    if step % 3 == 1 {
        all.push(registration("db", "db-beside", 2, database, &["enable=true", "mode=tcp"]));
    }
    all.extend((0..=(live % 3)).map(|n| registration("site", &format!("site-{n}"), n + 1, 3000, &["enable=true"])));
    let new = |n| registration(&format!("new-{n}"), &format!("new-{n}"), 1, 3001, &["enable=true", "balance=source"]);
    all.extend((0..structural).map(new));
    all
}
