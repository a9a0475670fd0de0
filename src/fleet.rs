//! All HAProxys of one controller: one catalog, and a loop for each.
//!
//! What they share is the catalog, the task that watches it, and what the log has said of services. Everything else is
//! each one's own: a HAProxy that hangs, refuses or is new delays no other.

pub mod membership;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::apply::Controller;
use crate::breaker::{self, Breaker};
use crate::catalog::shared::SharedCatalog;
use crate::catalog::watch::{Change, watch};
use crate::command::{Handle, Handles};
use crate::config::{Config, Timings};
use crate::metrics::Metrics;
use crate::reconcile::{Loop, Outlets, Wake};
use crate::report::{Notes, Reporter};
use crate::sample::Sampler;
use crate::status::Board;

use membership::Register;

/// The names of the HAProxys, for tags that choose between them. They change as HAProxys come and go.
pub type Names = watch::Receiver<Arc<BTreeSet<String>>>;

/// Where the loops are seen from outside, and reached.
#[derive(Debug, Clone)]
pub struct Faces {
    /// The state of all.
    pub board: Arc<Board>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The ways to the loops.
    pub handles: Handles,
}

impl Default for Faces {
    fn default() -> Self {
        let board = Arc::new(Board::default());
        Self { metrics: Arc::new(Metrics::new(board.clone())), board, handles: Handles::default() }
    }
}

/// The loops that run, and what they have in common.
#[derive(Debug)]
pub struct Fleet {
    timings: Timings,
    /// Whether the log names HAProxys: where there can be only one, it does not.
    is_named: bool,
    changed: watch::Sender<Change>,
    /// Cancelled when `changed` is complete.
    watching: CancellationToken,
    breaker: breaker::Options,
    faces: Faces,
    notes: Notes,
    names: watch::Sender<Arc<BTreeSet<String>>>,
    running: BTreeMap<String, JoinHandle<()>>,
    /// For those that were found in Nomad.
    register: Register,
    loops: TaskTracker,
    stop: CancellationToken,
}

impl Fleet {
    /// Starts to watch the catalog; no loop runs yet.
    pub fn start(catalog: &SharedCatalog, config: &Config, faces: Faces, stop: CancellationToken) -> Self {
        let (changed, watching) = (watch::Sender::new(Change::now(Wake::Started)), CancellationToken::new());
        let task = watch(catalog.source().clone(), changed.clone(), faces.board.clone(), watching.clone());
        let stopped = stop.clone();
        let loops = TaskTracker::new();
        loops.spawn(async move { stopped.run_until_cancelled(task).await });
        let Config { timings, breaker, targets, .. } = config;
        let (timings, breaker, is_named) = (*timings, *breaker, !targets.is_single());
        let (notes, names, running) = (Notes::default(), watch::Sender::default(), BTreeMap::new());
        let register = Register::default();
        Self { timings, is_named, changed, watching, breaker, faces, notes, names, running, register, loops, stop }
    }

    /// The names, as they are at any time.
    pub fn names(&self) -> Names {
        self.names.subscribe()
    }

    /// When the catalog was last seen to change.
    pub fn changes(&self) -> watch::Receiver<Change> {
        self.changed.subscribe()
    }

    /// Whether there is one of this name.
    pub fn has(&self, name: &str) -> bool {
        self.running.contains_key(name)
    }

    /// Adds HAProxys of the settings.
    pub fn add_fixed(&mut self, targets: Vec<(String, Controller)>) {
        self.add(targets, false);
    }

    /// Adds HAProxys that were found in Nomad; they stay until they are forgotten.
    pub fn add_found(&mut self, targets: Vec<(String, Controller)>) {
        self.add(targets, true);
    }

    /// Their loops start with a pass. Each knows the names of all from its first pass on: tags choose between them.
    fn add(&mut self, targets: Vec<(String, Controller)>, found: bool) {
        self.names.send_modify(|names| {
            Arc::make_mut(names).extend(targets.iter().map(|(name, _)| name.clone()));
        });
        for (name, controller) in targets {
            let ((handle, commands), election) = (Handle::new(controller.plane()), controller.lease().election());
            self.faces.handles.add(&name, handle);
            self.faces.metrics.add(&name);
            self.faces.board.add(&name);
            let outlets = Outlets {
                name: name.clone(),
                is_named: self.is_named,
                metrics: self.faces.metrics.clone(),
                board: self.faces.board.clone(),
                reporter: Reporter::new(&name, self.notes.clone()),
                membership: found.then(|| self.register.membership()),
            };
            let one = Loop {
                controller,
                timings: self.timings,
                breaker: Breaker::new(self.breaker),
                election,
                changed: self.changed.subscribe(),
                watching: self.watching.clone(),
                commands,
                sampler: Sampler::default(),
                outlets,
            };
            self.running.insert(name, self.loops.spawn(one.run(self.stop.clone())));
        }
    }

    /// Removes one that has left. Its loop ends at once, in the middle of a pass, as nobody is there to be written to;
    /// it reports nothing after this.
    pub async fn forget(&mut self, name: &str) {
        if let Some(running) = self.running.remove(name) {
            running.abort();
            // It is cancelled, which is no error here.
            drop(running.await);
        }
        self.names.send_modify(|names| {
            Arc::make_mut(names).remove(name);
        });
        self.faces.metrics.forget(name);
        self.faces.board.forget(name);
        self.faces.handles.forget(name);
        self.notes.forget(name);
    }

    /// Returns when a HAProxy that was found in Nomad asks for the registrations to be read.
    pub async fn asked(&self) {
        self.register.asked().await;
    }

    /// A read of all registrations, or an attempt at it, began then and has ended.
    pub fn was_read(&self, began: Instant, is_complete: bool) {
        if is_complete {
            self.faces.board.set_searching(false);
        }
        self.register.was_read(began);
    }

    /// Waits for the signal to stop, and until all loops have ended.
    pub async fn join(self) {
        self.stop.cancelled().await;
        self.loops.close();
        self.loops.wait().await;
        tracing::info!("stopped; HAProxy keeps what it has");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Source;
    use crate::config::Settings;
    use crate::health;
    use crate::leader::Lease;
    use crate::metrics::Format;
    use crate::target;

    /// A HAProxy that was found, and whose API does not listen.
    fn found(fleet: &Fleet, catalog: &SharedCatalog, name: &str) -> (String, Controller) {
        let settings = r#"{"haproxy": {"service": "edges", "password": "p"}}"#;
        let settings: Settings = serde_json::from_str(settings).expect("settings");
        let config = Config::try_from(settings).expect("good settings");
        let target = config.targets.services[0].target(name.to_owned(), "127.0.0.1", 1);
        (
            name.to_owned(),
            target::controller(&config, &target, catalog, fleet.names(), &Lease::ALWAYS).expect("nothing is sent"),
        )
    }

    #[tokio::test]
    async fn a_failure_is_reported_if_the_haproxy_is_still_registered() {
        let catalog = SharedCatalog::new(Source::File("/none".into()));
        let settings = r#"{"reconcile": {"resync_interval": "1h"}, "haproxy": {"service": "edges", "password": "p"}}"#;
        let settings: Settings = serde_json::from_str(settings).expect("settings");
        let config = Config::try_from(settings).expect("good settings");
        let faces = Faces::default();
        let mut fleet = Fleet::start(&catalog, &config, faces.clone(), CancellationToken::new());
        let failures = |name: &str| {
            let text = faces.metrics.render(Format::Text);
            let wanted = format!("nomad_haproxy_pass_failures_total{{haproxy=\"{name}\",stage=\"observe\"}} ");
            text.lines().find_map(|line| line.strip_prefix(&wanted).map(str::to_owned))
        };

        fleet.add_found(vec![found(&fleet, &catalog, "leaves")]);
        fleet.asked().await;
        fleet.forget("leaves").await;
        assert_eq!(
            (failures("leaves"), faces.board.read().targets.is_empty(), fleet.names().borrow().len()),
            (None, true, 0)
        );

        fleet.add_found(vec![found(&fleet, &catalog, "stays")]);
        fleet.asked().await;
        assert_eq!(failures("stays").as_deref(), Some("0"), "not before the registrations are read");
        fleet.was_read(Instant::now(), true);
        let reported = async {
            while failures("stays").as_deref() != Some("1") {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), reported).await.expect("it is reported");
        let not_ready = health::not_ready(&faces.board.read(), None, Instant::now());
        assert_eq!(not_ready.map(|all| all.len()), Ok(1));
    }
}
