//! Metrics for Prometheus. Base units, `_total` on counters. Labels have values of a small enum, all of which exist
//! from the start, so that a missing sample is not mistaken for zero. The exceptions are `haproxy`, and `backend`, which
//! is bounded by HAProxy's configuration; when one of these is removed, so are its samples.
//!
//! Counters and histograms count here, pass by pass; gauges are a view of the [`Status`](crate::status::Status); what
//! the process uses is read at the scrape. docs/metrics.md has them all.

mod exposition;
mod family;
#[cfg(target_os = "linux")]
mod process;
mod view;

use std::fmt::Write as _;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::apply::{Outcome, PassStatus, Stage};
use crate::reconcile::Wake;
use crate::status::Board;
use view::View;

pub use exposition::Format;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HaproxyLabel {
    haproxy: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PassLabels {
    haproxy: String,
    outcome: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    haproxy: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabel {
    haproxy: String,
    stage: &'static str,
}

/// Of every name but those of the process.
const PREFIX: &str = "nomad_haproxy";
const RESULTS: [&str; 2] = ["succeeded", "failed"];

/// What happens to the series of a HAProxy.
#[derive(Debug, Clone, Copy)]
enum Change {
    /// It comes: each is there from the start, at zero.
    Add,
    /// It goes.
    Forget,
}

impl Change {
    fn one<L, M, C>(self, family: &Family<L, M, C>, labels: &L)
    where
        L: Clone + Eq + Hash,
        M: Clone,
        C: MetricConstructor<M>,
    {
        match self {
            Self::Add => drop(family.get_or_create(labels)),
            Self::Forget => drop(family.remove(labels)),
        }
    }
}

/// A metric with the label `haproxy` only.
type PerHaproxy<M> = Family<HaproxyLabel, M>;
/// A histogram for each set of labels.
type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// Every metric, registered.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    passes: Family<PassLabels, Counter>,
    failures: Family<StageLabel, Counter>,
    duration: Histograms<HaproxyLabel>,
    stages: Histograms<StageLabel>,
    reloads: Family<ResultLabel, Counter>,
    live_changes: PerHaproxy<Counter>,
    run_time_changes: PerHaproxy<Counter>,
    ready: Histograms<HaproxyLabel>,
}

impl Metrics {
    /// Of this state.
    pub fn new(board: Arc<Board>) -> Self {
        let mut registry = Registry::default();
        let build: Vec<(&'static str, &'static str)> = vec![("version", env!("CARGO_PKG_VERSION"))];
        let ours = registry.sub_registry_with_prefix(PREFIX);
        ours.register("build", "The controller's version", Info::new(build));
        ours.register_collector(Box::new(View(board)));
        #[cfg(target_os = "linux")]
        registry.sub_registry_with_prefix("process").register_collector(Box::new(process::Own));
        let mut metrics = Self {
            registry,
            passes: Family::default(),
            failures: Family::default(),
            // 5 ms to 40 s: a pass with nothing to do, up to one that waits for a slow reload.
            duration: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.005, 2.0, 14))),
            // 1 ms to 16 s.
            stages: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 4.0, 8))),
            reloads: Family::default(),
            live_changes: Family::default(),
            run_time_changes: Family::default(),
            ready: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.01, 2.0, 15))),
        };
        metrics.register();
        metrics
    }

    /// Adds a HAProxy, with all values of the small enums.
    pub fn add(&self, name: &str) {
        self.change(name, Change::Add);
    }

    /// Removes the metrics of a HAProxy that is no longer registered.
    pub fn forget(&self, name: &str) {
        self.change(name, Change::Forget);
    }

    /// Every series of a HAProxy.
    fn change(&self, name: &str, change: Change) {
        let Self { registry: _, passes, failures, duration, stages, reloads, live_changes, run_time_changes, ready } =
            self;
        let haproxy = || name.to_owned();
        for outcome in Outcome::ALL {
            for reason in Wake::ALL {
                let (outcome, reason) = (outcome.as_str(), reason.as_str());
                change.one(passes, &PassLabels { haproxy: haproxy(), outcome, reason });
            }
        }
        for stage in Stage::ALL {
            let label = StageLabel { haproxy: haproxy(), stage: stage.as_str() };
            change.one(failures, &label);
            change.one(stages, &label);
        }
        for result in RESULTS {
            change.one(reloads, &ResultLabel { haproxy: haproxy(), result });
        }
        let label = HaproxyLabel { haproxy: haproxy() };
        change.one(duration, &label);
        change.one(live_changes, &label);
        change.one(run_time_changes, &label);
        change.one(ready, &label);
    }

    fn register(&mut self) {
        let Self { registry, passes, failures, duration, stages, reloads, live_changes, run_time_changes, ready } =
            self;
        let r = registry.sub_registry_with_prefix(PREFIX);
        r.register("passes", "Passes by outcome and by what woke them", passes.clone());
        r.register("pass_failures", "Failed passes by the stage that failed", failures.clone());
        r.register_with_unit("pass_duration", "How long passes take", Unit::Seconds, duration.clone());
        r.register_with_unit(
            "pass_stage_duration",
            "How long each stage takes, of the passes that reach it",
            Unit::Seconds,
            stages.clone(),
        );
        r.register("reloads", "Reloads of HAProxy by result", reloads.clone());
        r.register("live_changes", "Writes that HAProxy took without a reload", live_changes.clone());
        r.register(
            "run_time_changes",
            "Changes of the running process apart from any write: instances that are gone, and repairs",
            run_time_changes.clone(),
        );
        r.register_with_unit(
            "registration_to_ready",
            "From the pass that first read a registration to its server being ready in HAProxy, its health checks apart",
            Unit::Seconds,
            ready.clone(),
        );
    }

    /// Counts a reload that a person asked for.
    pub fn reload(&self, name: &str, has_succeeded: bool) {
        let result = if has_succeeded { RESULTS[0] } else { RESULTS[1] };
        self.reloads.get_or_create(&ResultLabel { haproxy: name.to_owned(), result }).inc();
    }

    /// Counts one pass over the HAProxy of this name; `reason` is what woke it.
    pub fn pass(&self, name: &str, status: &PassStatus, took: Duration, reason: Wake) {
        let (haproxy, outcome) = (name.to_owned(), status.outcome());
        let label = HaproxyLabel { haproxy: haproxy.clone() };
        let pass = PassLabels { haproxy: haproxy.clone(), outcome: outcome.as_str(), reason: reason.as_str() };
        self.passes.get_or_create(&pass).inc();
        self.duration.get_or_create(&label).observe(took.as_secs_f64());
        let reloads = |result, n| {
            self.reloads.get_or_create(&ResultLabel { haproxy: haproxy.clone(), result }).inc_by(n);
        };
        reloads("succeeded", status.reloads.into());
        reloads("failed", status.failed_reloads.into());
        for (stage, took) in status.times.iter() {
            let label = StageLabel { haproxy: haproxy.clone(), stage: stage.as_str() };
            self.stages.get_or_create(&label).observe(took.as_secs_f64());
        }
        let changes = u64::try_from(status.run_time_changes).unwrap_or(u64::MAX);
        self.run_time_changes.get_or_create(&label).inc_by(changes);
        let live = status.written.iter().filter(|summary| summary.live).count();
        self.live_changes.get_or_create(&label).inc_by(u64::try_from(live).unwrap_or(u64::MAX));
        if outcome == Outcome::Failed {
            self.failures.get_or_create(&StageLabel { haproxy, stage: status.stage.as_str() }).inc();
        }
        let ready = self.ready.get_or_create(&label);
        status.became_ready.iter().for_each(|waited| ready.observe(waited.as_secs_f64()));
    }

    /// The text of a scrape.
    pub fn render(&self, format: Format) -> String {
        let mut text = String::new();
        if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            // A String takes everything; this only reports it if that ever changes.
            let _ = write!(text, "# {error}");
        }
        format.of(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::PassError;

    fn metrics() -> Metrics {
        let metrics = Metrics::new(Arc::default());
        metrics.add("edge");
        metrics
    }

    fn has(text: &str, lines: &[&str]) {
        for line in lines {
            assert!(text.lines().any(|found| found == *line), "{line} in:\n{text}");
        }
    }

    #[test]
    fn a_failed_pass_is_counted_with_its_stage() {
        let metrics = metrics();
        let error = Some(PassError::Broken("as it stands".into()));
        let status = PassStatus { stage: Stage::Apply, error, failed_reloads: 1, ..PassStatus::default() };
        metrics.pass("edge", &status, Duration::from_millis(20), Wake::Resync);
        has(
            &metrics.render(Format::OpenMetrics),
            &[
                "nomad_haproxy_passes_total{haproxy=\"edge\",outcome=\"failed\",reason=\"resync\"} 1",
                "nomad_haproxy_pass_failures_total{haproxy=\"edge\",stage=\"apply\"} 1",
                "nomad_haproxy_pass_failures_total{haproxy=\"edge\",stage=\"observe\"} 0",
                "nomad_haproxy_reloads_total{haproxy=\"edge\",result=\"failed\"} 1",
                concat!("nomad_haproxy_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
                "# EOF",
            ],
        );
    }

    #[test]
    fn a_removed_haproxy_is_removed_from_the_text() {
        let metrics = metrics();
        metrics.add("other");
        for name in ["edge", "other"] {
            metrics.pass(name, &PassStatus::default(), Duration::ZERO, Wake::Catalog);
        }
        metrics.forget("edge");
        let text = metrics.render(Format::Text);
        assert!(!text.contains("edge") && text.contains("pass_duration_seconds_count{haproxy=\"other\"} 1"), "{text}");
    }
}
