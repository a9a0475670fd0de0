//! Metrics for Prometheus. Base units, `_total` on counters. Labels have values of a small enum, all of which exist
//! from the start, so that a missing sample is not mistaken for zero. The exceptions are `haproxy`, and `backend`, which
//! is bounded by HAProxy's configuration; when one of these is removed, so are its samples.
//!
//! Counters and histograms count here, pass by pass; gauges are a view of the [`Status`](crate::status::Status).

mod exposition;
mod view;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
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

const RESULTS: [&str; 2] = ["succeeded", "failed"];

/// All labels that a pass can be counted with.
fn passes(name: &str) -> impl Iterator<Item = PassLabels> + '_ {
    Outcome::ALL.into_iter().flat_map(move |outcome| {
        Wake::ALL.into_iter().map(move |reason| PassLabels {
            haproxy: name.to_owned(),
            outcome: outcome.as_str(),
            reason: reason.as_str(),
        })
    })
}

/// A metric with the label `haproxy` only.
type PerHaproxy<M> = Family<HaproxyLabel, M>;
/// A histogram with that label.
type Histograms = Family<HaproxyLabel, Histogram, fn() -> Histogram>;

/// Every metric, registered.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    passes: Family<PassLabels, Counter>,
    failures: Family<StageLabel, Counter>,
    duration: Histograms,
    reloads: Family<ResultLabel, Counter>,
    live_changes: PerHaproxy<Counter>,
    ready: Histograms,
}

impl Metrics {
    /// Of this state.
    pub fn new(board: Arc<Board>) -> Self {
        let mut registry = Registry::with_prefix("nomad_haproxy");
        let build: Vec<(&'static str, &'static str)> = vec![("version", env!("CARGO_PKG_VERSION"))];
        registry.register("build", "The controller's version", Info::new(build));
        registry.register_collector(Box::new(View(board)));
        let metrics = Self {
            registry,
            passes: Family::default(),
            failures: Family::default(),
            // 5 ms to 40 s: a pass with nothing to do, up to one that waits for a slow reload.
            duration: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.005, 2.0, 14))),
            reloads: Family::default(),
            live_changes: Family::default(),
            ready: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.01, 2.0, 15))),
        };
        metrics.registered()
    }

    /// Adds a HAProxy, with all values of the small enums.
    pub fn add(&self, name: &str) {
        let of = |name: &str| name.to_owned();
        for labels in passes(name) {
            drop(self.passes.get_or_create(&labels));
        }
        for stage in Stage::ALL {
            drop(self.failures.get_or_create(&StageLabel { haproxy: of(name), stage: stage.as_str() }));
        }
        for result in RESULTS {
            drop(self.reloads.get_or_create(&ResultLabel { haproxy: of(name), result }));
        }
        let label = HaproxyLabel { haproxy: of(name) };
        drop(self.duration.get_or_create(&label));
        drop(self.live_changes.get_or_create(&label));
        drop(self.ready.get_or_create(&label));
    }

    /// Removes the metrics of a HAProxy that is no longer registered.
    pub fn forget(&self, name: &str) {
        let of = |name: &str| name.to_owned();
        for labels in passes(name) {
            self.passes.remove(&labels);
        }
        for stage in Stage::ALL {
            self.failures.remove(&StageLabel { haproxy: of(name), stage: stage.as_str() });
        }
        for result in RESULTS {
            self.reloads.remove(&ResultLabel { haproxy: of(name), result });
        }
        let label = HaproxyLabel { haproxy: of(name) };
        self.duration.remove(&label);
        self.live_changes.remove(&label);
        self.ready.remove(&label);
    }

    fn registered(mut self) -> Self {
        let r = &mut self.registry;
        r.register("passes", "Passes by outcome and by what woke them", self.passes.clone());
        r.register("pass_failures", "Failed passes by the stage that failed", self.failures.clone());
        r.register_with_unit("pass_duration", "How long passes take", Unit::Seconds, self.duration.clone());
        r.register("reloads", "Reloads of HAProxy by result", self.reloads.clone());
        r.register("live_changes", "Writes that HAProxy took without a reload", self.live_changes.clone());
        r.register_with_unit(
            "registration_to_ready",
            "From the pass that first read a registration to its server being ready in HAProxy, its health checks apart",
            Unit::Seconds,
            self.ready.clone(),
        );
        self
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
