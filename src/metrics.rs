//! What Prometheus scrapes. Base units, `_total` on counters, and no label whose values are not an enum.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::apply::{Outcome, PassStatus};
use crate::desired::Severity;
use crate::plan::guard::Holding;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PassLabels {
    outcome: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SeverityLabel {
    severity: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabel {
    stage: &'static str,
}

/// Every metric, registered.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    passes: Family<PassLabels, Counter>,
    failures: Family<StageLabel, Counter>,
    duration: Histogram,
    reloads: Family<ResultLabel, Counter>,
    live_changes: Counter,
    backends: Gauge,
    slots: Family<StateLabel, Gauge>,
    notes: Family<SeverityLabel, Gauge>,
    guard_held: Gauge,
    index: Gauge,
    last_success: Gauge<f64, std::sync::atomic::AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("nomad_haproxy");
        let build: Vec<(&'static str, &'static str)> = vec![("version", env!("CARGO_PKG_VERSION"))];
        registry.register("build", "The controller's version", Info::new(build));
        let metrics = Self {
            registry,
            passes: Family::default(),
            failures: Family::default(),
            // 5 ms to 40 s: a pass with nothing to do, up to one that waits for a slow reload.
            duration: Histogram::new(exponential_buckets(0.005, 2.0, 14)),
            reloads: Family::default(),
            live_changes: Counter::default(),
            backends: Gauge::default(),
            slots: Family::default(),
            notes: Family::default(),
            guard_held: Gauge::default(),
            index: Gauge::default(),
            last_success: Gauge::default(),
        };
        metrics.registered()
    }
}

impl Metrics {
    fn registered(mut self) -> Self {
        let r = &mut self.registry;
        r.register("passes", "Passes by outcome and by what woke them", self.passes.clone());
        r.register("pass_failures", "Failed passes by the stage that failed", self.failures.clone());
        r.register_with_unit("pass_duration", "How long passes take", Unit::Seconds, self.duration.clone());
        r.register("reloads", "Reloads of HAProxy by result", self.reloads.clone());
        r.register("live_changes", "Changes that HAProxy took without a reload", self.live_changes.clone());
        r.register("backends", "Backends that are ours or hold servers of ours", self.backends.clone());
        r.register("slots", "Servers of ours by state", self.slots.clone());
        r.register("notes", "What there is to know about services, by severity", self.notes.clone());
        r.register(
            "guard_held_instances",
            "Instances that the catalog lacks and the guard keeps in service",
            self.guard_held.clone(),
        );
        r.register("catalog_index", "Nomad's index of the catalog that was read last", self.index.clone());
        r.register_with_unit(
            "last_success_timestamp",
            "When HAProxy was last seen in line with the catalog",
            Unit::Seconds,
            self.last_success.clone(),
        );
        // All values of the small enums are there from the start, so that a rate can be told from zero.
        for result in ["succeeded", "failed"] {
            drop(self.reloads.get_or_create(&ResultLabel { result }));
        }
        self
    }

    /// Counts one pass; `reason` is what woke it.
    pub fn pass(&self, status: &PassStatus, took: Duration, reason: &'static str) {
        let outcome = status.outcome();
        self.passes.get_or_create(&PassLabels { outcome: outcome.as_str(), reason }).inc();
        self.duration.observe(took.as_secs_f64());
        let reloads = |result, n| self.reloads.get_or_create(&ResultLabel { result }).inc_by(n);
        reloads("succeeded", status.reloads.into());
        reloads("failed", status.failed_reloads.into());
        let live = status.written.iter().filter(|summary| summary.live).count();
        self.live_changes.inc_by(u64::try_from(live).unwrap_or(u64::MAX));
        if outcome == Outcome::Failed {
            self.failures.get_or_create(&StageLabel { stage: status.stage.as_str() }).inc();
        } else {
            self.last_success.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        }
        // What a pass that failed did not come to read is as it was.
        if status.version > 0 {
            self.counts(status);
        }
    }

    fn counts(&self, status: &PassStatus) {
        let count = |gauge: &Gauge, n: usize| gauge.set(i64::try_from(n).unwrap_or(i64::MAX));
        count(&self.backends, status.counts.backends);
        count(&self.slots.get_or_create(&StateLabel { state: "seated" }), status.counts.seated);
        count(&self.slots.get_or_create(&StateLabel { state: "free" }), status.counts.free);
        for severity in [Severity::Warning, Severity::Error] {
            let n = status.notes.iter().filter(|note| note.severity == severity).count();
            count(&self.notes.get_or_create(&SeverityLabel { severity: severity.as_str() }), n);
        }
        if status.index > 0 || status.error.is_none() {
            count(&self.guard_held, status.guard.as_ref().map_or(0, Holding::instances));
        }
        if status.index > 0 {
            self.index.set(i64::try_from(status.index).unwrap_or(i64::MAX));
        }
    }

    /// The text of a scrape (OpenMetrics).
    pub fn render(&self) -> String {
        let mut text = String::new();
        if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &self.registry) {
            // A String takes everything; this only says so if that ever changes.
            let _ = write!(text, "# {error}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::{PassError, Stage};

    #[test]
    fn a_failed_pass_is_counted_with_its_stage() {
        let metrics = Metrics::default();
        let error = Some(PassError::Broken("as it stands".into()));
        let status = PassStatus { stage: Stage::Apply, error, failed_reloads: 1, ..PassStatus::default() };
        metrics.pass(&status, Duration::from_millis(20), "resync");
        let text = metrics.render();
        for line in [
            "nomad_haproxy_passes_total{outcome=\"failed\",reason=\"resync\"} 1",
            "nomad_haproxy_pass_failures_total{stage=\"apply\"} 1",
            "nomad_haproxy_reloads_total{result=\"failed\"} 1",
            "nomad_haproxy_build_info",
            "# EOF",
        ] {
            assert!(text.contains(line), "{line} in:\n{text}");
        }
    }
}
