//! All HAProxys of one controller: one catalog, and a loop for each.
//!
//! What they share is the catalog, the task that watches it, and what the log has said of services. Everything else is
//! each one's own: a HAProxy that hangs, refuses or is new delays no other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::apply::Controller;
use crate::catalog::shared::SharedCatalog;
use crate::catalog::watch::watch;
use crate::config::Timings;
use crate::health;
use crate::metrics::Metrics;
use crate::reconcile::{Loop, Outlets};
use crate::report::{Notes, Reporter};

/// The names of the HAProxys, for tags that choose between them. They change as HAProxys come and go.
pub type Names = watch::Receiver<Arc<BTreeSet<String>>>;

/// The loops that run, and what they have in common.
#[derive(Debug)]
pub struct Fleet {
    timings: Timings,
    /// Whether the log names HAProxys: where there can be only one, it does not.
    is_named: bool,
    changed: watch::Sender<Instant>,
    metrics: Arc<Metrics>,
    health: Arc<health::Fleet>,
    notes: Notes,
    names: watch::Sender<Arc<BTreeSet<String>>>,
    /// What ends each loop.
    running: BTreeMap<String, CancellationToken>,
    loops: TaskTracker,
    stop: CancellationToken,
}

impl Fleet {
    /// Starts to watch the catalog; no loop runs yet.
    pub fn start(
        catalog: &SharedCatalog,
        timings: Timings,
        is_named: bool,
        metrics: Arc<Metrics>,
        health: Arc<health::Fleet>,
        stop: CancellationToken,
    ) -> Self {
        let changed = watch::Sender::new(Instant::now());
        let watching = watch(catalog.source().clone(), changed.clone(), metrics.clone());
        let stopped = stop.clone();
        let loops = TaskTracker::new();
        loops.spawn(async move { stopped.run_until_cancelled(watching).await });
        let (notes, names, running) = (Notes::default(), watch::Sender::default(), BTreeMap::new());
        Self { timings, is_named, changed, metrics, health, notes, names, running, loops, stop }
    }

    /// The names, as they are at any time.
    pub fn names(&self) -> Names {
        self.names.subscribe()
    }

    /// When the catalog was last seen to change.
    pub fn changes(&self) -> watch::Receiver<Instant> {
        self.changed.subscribe()
    }

    /// Which ones there are.
    pub fn has(&self, name: &str) -> bool {
        self.running.contains_key(name)
    }

    /// Several HAProxys more. Each knows of all from its first pass on: tags choose between them.
    pub fn add_all(&mut self, targets: Vec<(String, Controller)>) {
        self.names.send_modify(|names| {
            Arc::make_mut(names).extend(targets.iter().map(|(name, _)| name.clone()));
        });
        for (name, controller) in targets {
            self.add(&name, controller);
        }
    }

    /// A HAProxy more: its loop starts with a pass.
    pub fn add(&mut self, name: &str, controller: Controller) {
        let stop = self.stop.child_token();
        self.running.insert(name.to_owned(), stop.clone());
        self.names.send_modify(|names| {
            Arc::make_mut(names).insert(name.to_owned());
        });
        self.metrics.add(name);
        let outlets = Outlets {
            name: name.to_owned(),
            is_named: self.is_named,
            metrics: self.metrics.clone(),
            health: self.health.add(name),
            reporter: Reporter::new(name, self.notes.clone()),
        };
        let one = Loop { controller, timings: self.timings, changed: self.changed.subscribe(), outlets };
        self.loops.spawn(one.run(stop));
    }

    /// One that has left: its loop ends at once, as there is nobody to write to.
    pub fn forget(&mut self, name: &str) {
        if let Some(stop) = self.running.remove(name) {
            stop.cancel();
        }
        self.names.send_modify(|names| {
            Arc::make_mut(names).remove(name);
        });
        self.metrics.forget(name);
        self.health.forget(name);
        self.notes.forget(name);
    }

    /// Waits for the signal to stop, and until all loops have ended.
    pub async fn join(self) {
        self.stop.cancelled().await;
        self.loops.close();
        self.loops.wait().await;
        tracing::info!("stopped; HAProxy keeps what it has");
    }
}
