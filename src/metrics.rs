//! Metrics for Prometheus. Base units, `_total` on counters. Labels have values of a small enum, all of which exist
//! from the start, so that a missing sample is not mistaken for zero. The one exception is `backend`, which is bounded
//! by HAProxy's configuration; when a backend is removed, so are its samples.

mod exposition;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
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
use crate::desired::{BackendName, Severity};
use crate::plan::guard::Holding;
use crate::plane::WriteError;
use crate::reconcile::Wake;

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
struct StateLabel {
    haproxy: String,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BackendLabels {
    haproxy: String,
    backend: String,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SeverityLabel {
    haproxy: String,
    severity: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabel {
    haproxy: String,
    stage: &'static str,
}

const RESULTS: [&str; 2] = ["succeeded", "failed"];
const STATES: [&str; 2] = ["seated", "free"];
const SEVERITIES: [Severity; 2] = [Severity::Warning, Severity::Error];

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

/// Seconds since 1970.
type Timestamp = Gauge<f64, AtomicU64>;

/// Whether Nomad answers. The metric is absent before the first request: with a catalog from a file there is no Nomad.
#[derive(Debug, Clone, Default)]
struct NomadUp(watch::Sender<Option<bool>>);

impl Collector for NomadUp {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(answers) = *self.0.borrow() else { return Ok(()) };
        let gauge = ConstGauge::new(i64::from(answers));
        let help = "Whether Nomad gave the last answer that it was asked for.";
        gauge.encode(encoder.encode_descriptor("nomad_up", help, None, gauge.metric_type())?)
    }
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
    backends: PerHaproxy<Gauge>,
    slots: Family<StateLabel, Gauge>,
    backend_slots: Family<BackendLabels, Gauge>,
    notes: Family<SeverityLabel, Gauge>,
    guard_held: PerHaproxy<Gauge>,
    nomad_up: NomadUp,
    /// Without those that no pass has read yet.
    haproxy_up: PerHaproxy<Gauge>,
    index: Gauge,
    last_read: Timestamp,
    last_success: PerHaproxy<Timestamp>,
    ready: Histograms,
    /// The backends of each HAProxy, whose metrics are removed with them.
    known: Mutex<BTreeMap<String, BTreeSet<BackendName>>>,
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
            duration: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.005, 2.0, 14))),
            reloads: Family::default(),
            live_changes: Family::default(),
            backends: Family::default(),
            slots: Family::default(),
            backend_slots: Family::default(),
            notes: Family::default(),
            guard_held: Family::default(),
            nomad_up: NomadUp::default(),
            haproxy_up: Family::default(),
            index: Gauge::default(),
            last_read: Gauge::default(),
            last_success: Family::default(),
            // 10 ms to 160 s: a live change, up to one that waited for a reload.
            ready: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.01, 2.0, 15))),
            known: Mutex::default(),
        };
        metrics.registered()
    }
}

impl Metrics {
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
        for state in STATES {
            drop(self.slots.get_or_create(&StateLabel { haproxy: of(name), state }));
        }
        for severity in SEVERITIES {
            drop(self.notes.get_or_create(&SeverityLabel { haproxy: of(name), severity: severity.as_str() }));
        }
        let label = HaproxyLabel { haproxy: of(name) };
        drop(self.duration.get_or_create(&label));
        drop(self.live_changes.get_or_create(&label));
        drop(self.backends.get_or_create(&label));
        drop(self.guard_held.get_or_create(&label));
        drop(self.last_success.get_or_create(&label));
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
        for state in STATES {
            self.slots.remove(&StateLabel { haproxy: of(name), state });
        }
        for severity in SEVERITIES {
            self.notes.remove(&SeverityLabel { haproxy: of(name), severity: severity.as_str() });
        }
        let label = HaproxyLabel { haproxy: of(name) };
        self.duration.remove(&label);
        self.live_changes.remove(&label);
        self.backends.remove(&label);
        self.guard_held.remove(&label);
        self.haproxy_up.remove(&label);
        self.last_success.remove(&label);
        self.ready.remove(&label);
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        self.forget_backends(name, known.iter().flatten());
    }

    fn forget_backends<'a>(&self, name: &str, backends: impl Iterator<Item = &'a BackendName>) {
        for backend in backends {
            for state in STATES {
                self.backend_slots.remove(&BackendLabels {
                    haproxy: name.to_owned(),
                    backend: backend.to_string(),
                    state,
                });
            }
        }
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
        r.register_collector(Box::new(self.nomad_up.clone()));
        r.register("haproxy_up", "Whether HAProxy, or its API, answered the last pass", self.haproxy_up.clone());
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
        self.nomad_up.0.send_replace(Some(answers));
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
        } else {
            self.last_success.get_or_create(&label).set(seconds(SystemTime::now()));
        }
        if status.index > 0 || status.error.is_none() {
            set(&self.guard_held.get_or_create(&label), status.guard.as_ref().map_or(0, Holding::instances));
        }
        self.record_answers(&label, status);
        let ready = self.ready.get_or_create(&label);
        status.became_ready.iter().for_each(|waited| ready.observe(waited.as_secs_f64()));
        drop(ready);
        if let Some(read) = status.catalog_read {
            self.last_read.set(seconds(read));
            self.index.set(i64::try_from(status.index).unwrap_or(i64::MAX));
        }
        // What a failed pass did not read keeps its value.
        if status.has_observed() {
            self.counts(name, &status.counts);
        }
        if status.notes_are_complete() {
            for severity in SEVERITIES {
                let n = status.notes.iter().filter(|note| note.severity == severity).count();
                let labels = SeverityLabel { haproxy: name.to_owned(), severity: severity.as_str() };
                set(&self.notes.get_or_create(&labels), n);
            }
        }
    }

    fn record_answers(&self, label: &HaproxyLabel, status: &PassStatus) {
        let answers = match &status.error {
            Some(PassError::Access(_) | PassError::Write(WriteError::Access(_))) => Some(false),
            _ => status.has_observed().then_some(true),
        };
        if let Some(answers) = answers {
            self.haproxy_up.get_or_create(label).set(answers.into());
        }
        if let Some(PassError::Catalog(error)) = &status.error
            && let SourceError::Nomad(_) = **error
        {
            self.nomad_answers(false);
        }
    }

    fn counts(&self, name: &str, counts: &Counts) {
        let Slots { seated, free } = counts.slots();
        let haproxy = || name.to_owned();
        set(&self.backends.get_or_create(&HaproxyLabel { haproxy: haproxy() }), counts.backends.len());
        for (state, n) in STATES.into_iter().zip([seated, free]) {
            set(&self.slots.get_or_create(&StateLabel { haproxy: haproxy(), state }), n);
        }
        for (backend, Slots { seated, free }) in &counts.backends {
            for (state, n) in STATES.into_iter().zip([seated, free]) {
                let labels = BackendLabels { haproxy: haproxy(), backend: backend.to_string(), state };
                set(&self.backend_slots.get_or_create(&labels), *n);
            }
        }
        let now: BTreeSet<BackendName> = counts.backends.keys().cloned().collect();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let before = known.insert(haproxy(), now).unwrap_or_default();
        self.forget_backends(name, before.iter().filter(|backend| !counts.backends.contains_key(backend)));
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

    fn metrics() -> Metrics {
        let metrics = Metrics::default();
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
    fn a_removed_backend_is_removed_from_the_text() {
        let metrics = metrics();
        let pass = |names: &[&str]| {
            let slots = Slots { seated: 2, free: 3 };
            let backends = names.iter().map(|name| (name.parse().expect("a name"), slots)).collect();
            let status = PassStatus { version: 1, counts: Counts { backends }, ..PassStatus::default() };
            metrics.pass("edge", &status, Duration::ZERO, Wake::Catalog);
            metrics.render(Format::Text)
        };
        let both = pass(&["api", "web"]);
        has(
            &both,
            &[
                "nomad_haproxy_backend_slots{haproxy=\"edge\",backend=\"api\",state=\"seated\"} 2",
                "nomad_haproxy_backend_slots{haproxy=\"edge\",backend=\"web\",state=\"free\"} 3",
                "nomad_haproxy_slots{haproxy=\"edge\",state=\"free\"} 6",
            ],
        );
        assert!(!pass(&["api"]).contains("web"));
    }

    #[test]
    fn a_peer_without_requests_is_neither_up_nor_down() {
        let metrics = metrics();
        let text = || metrics.render(Format::Text);
        assert!(
            !text().contains("nomad_haproxy_nomad_up ")
                && !text().contains("nomad_haproxy_haproxy_up{haproxy=\"edge\"} ")
        );
        let unreadable = crate::nomad::NomadError::NoLeader;
        let error = Some(PassError::Catalog(SourceError::Nomad(unreadable).into()));
        let status = PassStatus { stage: Stage::Catalog, version: 1, error, ..PassStatus::default() };
        metrics.pass("edge", &status, Duration::ZERO, Wake::Started);
        has(&text(), &["nomad_haproxy_nomad_up 0", "nomad_haproxy_haproxy_up{haproxy=\"edge\"} 1"]);
        metrics.nomad_answers(true);
        has(&text(), &["nomad_haproxy_nomad_up 1"]);
    }

    #[test]
    fn an_outage_of_nomad_forgets_no_note() {
        let metrics = metrics();
        let note = crate::desired::Note {
            severity: Severity::Error,
            service: crate::desired::ServiceKey { namespace: "default".into(), name: "api".into() },
            code: crate::desired::Code::BadName,
            text: "not routed".into(),
        };
        metrics.pass("edge", &PassStatus { notes: vec![note], ..PassStatus::default() }, Duration::ZERO, Wake::Started);
        let error = Some(PassError::Catalog(SourceError::Nomad(crate::nomad::NomadError::NoLeader).into()));
        let failed = PassStatus { stage: Stage::Catalog, error, ..PassStatus::default() };
        metrics.pass("edge", &failed, Duration::ZERO, Wake::Retry);
        has(&metrics.render(Format::Text), &["nomad_haproxy_notes{haproxy=\"edge\",severity=\"error\"} 1"]);
    }

    #[test]
    fn a_removed_haproxy_is_removed_from_the_text() {
        let metrics = metrics();
        let slots = Slots { seated: 2, free: 3 };
        let backends = std::iter::once(("api".parse().expect("a name"), slots)).collect();
        let status = PassStatus { version: 1, counts: Counts { backends }, ..PassStatus::default() };
        metrics.add("other");
        for name in ["edge", "other"] {
            metrics.pass(name, &status, Duration::ZERO, Wake::Catalog);
        }
        metrics.forget("edge");
        let text = metrics.render(Format::Text);
        assert!(!text.contains("edge") && text.contains("backend_slots{haproxy=\"other\""), "{text}");
    }
}
