//! Metrics for Prometheus. Base units, `_total` on counters. Labels have values of a small enum, all of which exist
//! from the start, so that a missing sample is not mistaken for zero. The one exception is `backend`, which is bounded
//! by HAProxy's configuration; when a backend is removed, so are its samples.

mod exposition;

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::watch;

use crate::apply::{Counts, Outcome, PassError, PassStatus, Slots, Stage};
use crate::catalog::SourceError;
use crate::desired::Severity;
use crate::plan::guard::Holding;
use crate::plane::WriteError;
use crate::reconcile::Wake;

pub use exposition::Format;

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
struct BackendLabels {
    backend: String,
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

/// Seconds since 1970.
type Timestamp = Gauge<f64, AtomicU64>;

/// Whether a peer answers. The metric is absent before the first request: with a catalog from a file there is no Nomad.
#[derive(Debug)]
struct Up {
    name: &'static str,
    help: &'static str,
    answers: watch::Sender<Option<bool>>,
}

impl Up {
    fn new(name: &'static str, help: &'static str) -> Arc<Self> {
        Arc::new(Self { name, help, answers: watch::Sender::new(None) })
    }

    fn set(&self, answers: bool) {
        self.answers.send_replace(Some(answers));
    }
}

/// [`Up`] for the registry.
#[derive(Debug)]
struct UpCollector(Arc<Up>);

impl Collector for UpCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Up { name, help, answers } = &*self.0;
        let Some(answers) = *answers.borrow() else { return Ok(()) };
        let gauge = ConstGauge::new(i64::from(answers));
        gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
    }
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
    backend_slots: Family<BackendLabels, Gauge>,
    notes: Family<SeverityLabel, Gauge>,
    guard_held: Gauge,
    nomad_up: Arc<Up>,
    haproxy_up: Arc<Up>,
    index: Gauge,
    last_read: Timestamp,
    last_success: Timestamp,
    ready: Histogram,
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
            backend_slots: Family::default(),
            notes: Family::default(),
            guard_held: Gauge::default(),
            nomad_up: Up::new("nomad_up", "Whether Nomad gave the last answer that it was asked for."),
            haproxy_up: Up::new("haproxy_up", "Whether HAProxy, or its API, answered the last pass."),
            index: Gauge::default(),
            last_read: Gauge::default(),
            last_success: Gauge::default(),
            // 10 ms to 160 s: a live change, up to one that waited for a reload.
            ready: Histogram::new(exponential_buckets(0.01, 2.0, 15)),
        };
        metrics.initialised().registered()
    }
}

impl Metrics {
    /// All values of the small enums.
    fn initialised(self) -> Self {
        for outcome in Outcome::ALL {
            for reason in Wake::ALL {
                drop(self.passes.get_or_create(&PassLabels { outcome: outcome.as_str(), reason: reason.as_str() }));
            }
        }
        for stage in Stage::ALL {
            drop(self.failures.get_or_create(&StageLabel { stage: stage.as_str() }));
        }
        for result in ["succeeded", "failed"] {
            drop(self.reloads.get_or_create(&ResultLabel { result }));
        }
        for state in ["seated", "free"] {
            drop(self.slots.get_or_create(&StateLabel { state }));
        }
        for severity in [Severity::Warning, Severity::Error] {
            drop(self.notes.get_or_create(&SeverityLabel { severity: severity.as_str() }));
        }
        self
    }

    fn registered(mut self) -> Self {
        let r = &mut self.registry;
        r.register("passes", "Passes by outcome and by what woke them", self.passes.clone());
        r.register("pass_failures", "Failed passes by the stage that failed", self.failures.clone());
        r.register_with_unit("pass_duration", "How long passes take", Unit::Seconds, self.duration.clone());
        r.register("reloads", "Reloads of HAProxy by result", self.reloads.clone());
        r.register("live_changes", "Writes that HAProxy took without a reload", self.live_changes.clone());
        r.register("backends", "Backends that are ours or hold servers of ours", self.backends.clone());
        r.register("slots", "Servers of ours by state: seated (with an instance) or free", self.slots.clone());
        r.register(
            "backend_slots",
            "Servers of ours by backend and state: seated (with an instance) or free",
            self.backend_slots.clone(),
        );
        r.register("notes", "Problems with services by severity", self.notes.clone());
        r.register(
            "guard_held_instances",
            "Instances that the catalog lacks and the guard keeps in service",
            self.guard_held.clone(),
        );
        r.register_collector(Box::new(UpCollector(self.nomad_up.clone())));
        r.register_collector(Box::new(UpCollector(self.haproxy_up.clone())));
        r.register("catalog_index", "Nomad's index of the catalog that was read last", self.index.clone());
        r.register_with_unit(
            "catalog_last_read_timestamp",
            "When the catalog was last read in full, in seconds since 1970",
            Unit::Seconds,
            self.last_read.clone(),
        );
        r.register_with_unit(
            "last_success_timestamp",
            "When HAProxy was last seen in line with the catalog, in seconds since 1970",
            Unit::Seconds,
            self.last_success.clone(),
        );
        r.register_with_unit(
            "registration_to_ready",
            "From the pass that first read a registration to its server being ready in HAProxy, its health checks apart",
            Unit::Seconds,
            self.ready.clone(),
        );
        self
    }

    /// Records whether Nomad answered.
    pub fn nomad_answers(&self, answers: bool) {
        self.nomad_up.set(answers);
    }

    /// Counts one pass; `reason` is what woke it.
    pub fn pass(&self, status: &PassStatus, took: Duration, reason: Wake) {
        let outcome = status.outcome();
        self.passes.get_or_create(&PassLabels { outcome: outcome.as_str(), reason: reason.as_str() }).inc();
        self.duration.observe(took.as_secs_f64());
        let reloads = |result, n| self.reloads.get_or_create(&ResultLabel { result }).inc_by(n);
        reloads("succeeded", status.reloads.into());
        reloads("failed", status.failed_reloads.into());
        let live = status.written.iter().filter(|summary| summary.live).count();
        self.live_changes.inc_by(u64::try_from(live).unwrap_or(u64::MAX));
        if outcome == Outcome::Failed {
            self.failures.get_or_create(&StageLabel { stage: status.stage.as_str() }).inc();
        } else {
            self.last_success.set(seconds(SystemTime::now()));
        }
        if status.index > 0 || status.error.is_none() {
            set(&self.guard_held, status.guard.as_ref().map_or(0, Holding::instances));
        }
        self.record_answers(status);
        status.became_ready.iter().for_each(|waited| self.ready.observe(waited.as_secs_f64()));
        if let Some(read) = status.catalog_read {
            self.last_read.set(seconds(read));
            self.index.set(i64::try_from(status.index).unwrap_or(i64::MAX));
        }
        // What a failed pass did not read keeps its value.
        if status.has_observed() {
            self.counts(&status.counts);
        }
        if status.notes_are_complete() {
            for severity in [Severity::Warning, Severity::Error] {
                let n = status.notes.iter().filter(|note| note.severity == severity).count();
                set(&self.notes.get_or_create(&SeverityLabel { severity: severity.as_str() }), n);
            }
        }
    }

    fn record_answers(&self, status: &PassStatus) {
        match &status.error {
            Some(PassError::Access(_) | PassError::Write(WriteError::Access(_))) => {
                self.haproxy_up.set(false);
            }
            _ if status.has_observed() => self.haproxy_up.set(true),
            _ => {}
        }
        if let Some(PassError::Catalog(SourceError::Nomad(_))) = &status.error {
            self.nomad_answers(false);
        }
    }

    fn counts(&self, counts: &Counts) {
        let Slots { seated, free } = counts.slots();
        set(&self.backends, counts.backends.len());
        set(&self.slots.get_or_create(&StateLabel { state: "seated" }), seated);
        set(&self.slots.get_or_create(&StateLabel { state: "free" }), free);
        self.backend_slots.clear();
        for (backend, Slots { seated, free }) in &counts.backends {
            for (state, n) in [("seated", seated), ("free", free)] {
                set(&self.backend_slots.get_or_create(&BackendLabels { backend: backend.to_string(), state }), *n);
            }
        }
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

fn set(gauge: &Gauge, n: usize) {
    gauge.set(i64::try_from(n).unwrap_or(i64::MAX));
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(text: &str, lines: &[&str]) {
        for line in lines {
            assert!(text.lines().any(|found| found == *line), "{line} in:\n{text}");
        }
    }

    #[test]
    fn a_failed_pass_is_counted_with_its_stage() {
        let metrics = Metrics::default();
        let error = Some(PassError::Broken("as it stands".into()));
        let status = PassStatus { stage: Stage::Apply, error, failed_reloads: 1, ..PassStatus::default() };
        metrics.pass(&status, Duration::from_millis(20), Wake::Resync);
        has(
            &metrics.render(Format::OpenMetrics),
            &[
                "nomad_haproxy_passes_total{outcome=\"failed\",reason=\"resync\"} 1",
                "nomad_haproxy_pass_failures_total{stage=\"apply\"} 1",
                "nomad_haproxy_pass_failures_total{stage=\"observe\"} 0",
                "nomad_haproxy_reloads_total{result=\"failed\"} 1",
                concat!("nomad_haproxy_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
                "# EOF",
            ],
        );
    }

    #[test]
    fn a_removed_backend_is_removed_from_the_text() {
        let metrics = Metrics::default();
        let pass = |names: &[&str]| {
            let slots = Slots { seated: 2, free: 3 };
            let backends = names.iter().map(|name| (name.parse().expect("a name"), slots)).collect();
            let status = PassStatus { version: 1, counts: Counts { backends }, ..PassStatus::default() };
            metrics.pass(&status, Duration::ZERO, Wake::Catalog);
            metrics.render(Format::Text)
        };
        let both = pass(&["api", "web"]);
        has(
            &both,
            &[
                "nomad_haproxy_backend_slots{backend=\"api\",state=\"seated\"} 2",
                "nomad_haproxy_backend_slots{backend=\"web\",state=\"free\"} 3",
                "nomad_haproxy_slots{state=\"free\"} 6",
            ],
        );
        assert!(!pass(&["api"]).contains("web"));
    }

    #[test]
    fn a_peer_without_requests_is_neither_up_nor_down() {
        let metrics = Metrics::default();
        let text = || metrics.render(Format::Text);
        assert!(!text().contains("nomad_haproxy_nomad_up ") && !text().contains("nomad_haproxy_haproxy_up "));
        let unreadable = crate::nomad::NomadError::NoLeader;
        let error = Some(PassError::Catalog(SourceError::Nomad(unreadable)));
        let status = PassStatus { stage: Stage::Catalog, version: 1, error, ..PassStatus::default() };
        metrics.pass(&status, Duration::ZERO, Wake::Started);
        has(&text(), &["nomad_haproxy_nomad_up 0", "nomad_haproxy_haproxy_up 1"]);
        metrics.nomad_answers(true);
        has(&text(), &["nomad_haproxy_nomad_up 1"]);
    }

    #[test]
    fn an_outage_of_nomad_forgets_no_note() {
        let metrics = Metrics::default();
        let note = crate::desired::Note {
            severity: Severity::Error,
            service: crate::desired::ServiceKey { namespace: "default".into(), name: "api".into() },
            code: crate::desired::Code::BadName,
            text: "not routed".into(),
        };
        metrics.pass(&PassStatus { notes: vec![note], ..PassStatus::default() }, Duration::ZERO, Wake::Started);
        let error = Some(PassError::Catalog(SourceError::Nomad(crate::nomad::NomadError::NoLeader)));
        let failed = PassStatus { stage: Stage::Catalog, error, ..PassStatus::default() };
        metrics.pass(&failed, Duration::ZERO, Wake::Retry);
        has(&metrics.render(Format::Text), &["nomad_haproxy_notes{severity=\"error\"} 1"]);
    }
}
