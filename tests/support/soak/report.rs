//! What a soak found.

use std::time::Duration;

use serde::Serialize;

use super::Settings;
use super::target::Without;

/// How much more memory at the end than at the beginning still counts as flat: heaps have holes.
const FLAT_PERCENT: f64 = 5.0;
/// Below this much churn memory says nothing: pools and caches still fill.
const FLAT_AFTER: Duration = Duration::from_secs(1800);

/// The state at one time.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    pub second: u64,
    pub phase: &'static str,
    /// Those that requests are sent to.
    pub services: usize,
    /// Those that Nomad has: also the ones that just come or go, and the database.
    pub registered: usize,
    pub created: usize,
    pub requests: usize,
    pub failed: usize,
    pub reloads: u64,
    pub workers: usize,
    pub haproxy_kb: u64,
    pub controller_kb: u64,
    /// Open, in all processes of HAProxy and of the controller.
    pub descriptors: usize,
    /// How often something was killed.
    pub killed: usize,
}

/// Times in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Times {
    pub count: usize,
    pub median: f64,
    pub p99: f64,
    pub slowest: f64,
}

impl Times {
    pub fn of(times: &[Duration]) -> Self {
        let mut milliseconds: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1000.0).collect();
        milliseconds.sort_by(f64::total_cmp);
        // The least time that this many percent of them do not exceed.
        let percentile = |percent: usize| {
            let rank = (milliseconds.len() * percent).div_ceil(100);
            milliseconds.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
        };
        Self { count: times.len(), median: percentile(50), p99: percentile(99), slowest: percentile(100) }
    }
}

/// What there is when as many backends go as come for the first time, and at the end of the churn.
#[derive(Debug, Clone, Serialize)]
pub struct Trend {
    pub first: u64,
    pub last: u64,
    pub growth_percent: f64,
}

impl Trend {
    /// From samples in their order. Each end is the median of a tenth of them, as it goes up and down with the load.
    pub fn of(samples: &[u64]) -> Option<Self> {
        let tenth = samples.len().div_ceil(10);
        let median = |samples: &[u64]| {
            let mut sorted = samples.to_vec();
            sorted.sort_unstable();
            sorted.get(sorted.len() / 2).copied()
        };
        let (first, last) = (median(samples.get(..tenth)?)?, median(&samples[samples.len() - tenth..])?);
        #[allow(clippy::cast_precision_loss, reason = "kB, or descriptors")]
        let growth_percent = (last as f64 / first as f64 - 1.0) * 100.0;
        Some(Self { first, last, growth_percent })
    }
}

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub haproxy: String,
    pub plane: &'static str,
    /// Of the churn alone.
    pub minutes: f64,
    pub created: usize,
    pub stopped: usize,
    /// How often a service was scaled to the peak, rolled there, and scaled back.
    pub grown: usize,
    /// What Nomad was asked to change in a second of churn.
    pub changes_per_second: f64,
    /// How often the controller, the APIs or Nomad's server was killed.
    pub killed: usize,
    pub requests: usize,
    pub failed: usize,
    /// The first failures.
    pub failures: Vec<String>,
    pub queries: u64,
    pub is_connection_open: bool,
    /// Since the first service of each mode was routed.
    pub reloads: u64,
    /// While no service came or went, only instances.
    pub reloads_of_growth: u64,
    pub is_same_worker: bool,
    pub workers_at_start: usize,
    pub workers_at_most: usize,
    pub workers_at_end: usize,
    /// From a service's registration in Nomad to the first request that is routed to it.
    pub routed_ms: Times,
    /// Passes of our controller that changed something, and their reloads, in all and at most.
    pub pass_ms: Times,
    pub reloads_of_passes: u64,
    pub reloads_of_a_pass: u64,
    /// How often Nomad had not done within two minutes what it was asked, and was asked again.
    pub stalled: usize,
    /// Services to which no request was routed within two minutes after Nomad had registered them.
    pub unrouted: Vec<String>,
    /// Growths, rolls and shrinkings that HAProxy did not have within two minutes after Nomad.
    pub late: Vec<String>,
    /// One validation of the last file.
    pub validation_ms: Option<f64>,
    pub refusal: Option<String>,
    /// The first difference between file and process at the end.
    pub difference: Option<String>,
    pub haproxy_kb: Option<Trend>,
    pub controller_kb: Option<Trend>,
    pub descriptors: Option<Trend>,
    /// What should have held and did not.
    pub broken: Vec<String>,
    pub samples: Vec<Sample>,
}

impl Report {
    /// What should have held and did not, with what this target can do without a reload.
    pub fn judge(&mut self, settings: &Settings) {
        let mut broken = Vec::new();
        let mut hold = |holds: bool, what: String| {
            if !holds {
                broken.push(what);
            }
        };
        let (created, stopped) = (self.created as u64, self.stopped as u64);
        hold(self.failed == 0, format!("{} of {} requests failed: {:?}", self.failed, self.requests, self.failures));
        hold(self.requests > 0, "no request was sent".to_owned());
        hold(self.is_connection_open, format!("the database connection broke after {} queries", self.queries));
        hold(self.unrouted.is_empty(), format!("not routed: {:?}", self.unrouted));
        hold(self.late.is_empty(), format!("late: {:?}", self.late));
        if let Some(refusal) = &self.refusal {
            hold(false, format!("HAProxy refuses the file: {refusal}"));
        }
        if let Some(difference) = &self.difference {
            hold(false, format!("file and process differ: {difference}"));
        }
        let Self { workers_at_start, workers_at_most, .. } = self;
        let reloads = format!("{} reloads, {workers_at_most} workers at most, {workers_at_start} before", self.reloads);
        match settings.plane.without_reload(&settings.series) {
            Without::Everything => {
                hold(self.reloads == 0 && self.is_same_worker && workers_at_most <= workers_at_start, reloads);
            }
            // One for each batch of services, which a pass handles.
            Without::Servers => {
                hold(self.reloads_of_a_pass <= 1, format!("{} reloads in one pass", self.reloads_of_a_pass));
                hold(self.reloads <= self.reloads_of_passes.min(created + stopped), reloads);
            }
            Without::Nothing => {}
        }
        if settings.plane.without_reload(&settings.series) != Without::Nothing {
            hold(self.reloads_of_growth == 0, format!("{} reloads while services grew", self.reloads_of_growth));
        }
        if settings.churn >= FLAT_AFTER {
            for (what, trend) in [
                ("memory of HAProxy", &self.haproxy_kb),
                ("memory of the controller", &self.controller_kb),
                ("number of open descriptors", &self.descriptors),
            ] {
                let growth = trend.as_ref().map_or(f64::NAN, |trend| trend.growth_percent);
                hold(growth <= FLAT_PERCENT, format!("the {what} grew by {growth:.1} %"));
            }
        }
        self.broken = broken;
    }

    /// What of it a person reads, as name and value.
    pub fn rows(&self) -> Vec<(&'static str, String)> {
        let memory = |memory: &Option<Trend>| {
            memory.as_ref().map_or("-".to_owned(), |memory| {
                let Trend { first, last, growth_percent } = memory;
                format!("{} → {} MB ({growth_percent:+.1} %)", first / 1024, last / 1024)
            })
        };
        let descriptors = self.descriptors.as_ref().map_or("-".to_owned(), |trend| {
            let Trend { first, last, growth_percent } = trend;
            format!("{first} → {last} ({growth_percent:+.1} %)")
        });
        let connection = if self.is_connection_open { "open" } else { "broken" };
        let milliseconds = |ms: f64| if ms.is_nan() { "-".to_owned() } else { format!("{ms:.0} ms") };
        let yes = |yes| if yes { "yes" } else { "no" }.to_owned();
        vec![
            ("HAProxy", self.haproxy.clone()),
            ("churn", format!("{:.1} min", self.minutes)),
            ("services created, stopped", format!("{}, {}", self.created, self.stopped)),
            ("scaled up, rolled, scaled back", self.grown.to_string()),
            ("changes a second", format!("{:.1}", self.changes_per_second)),
            ("killed", self.killed.to_string()),
            ("requests failed", format!("{} of {}", self.failed, self.requests)),
            ("database connection", format!("{connection}, {} queries", self.queries)),
            ("reloads", self.reloads.to_string()),
            ("reloads while services only grew", self.reloads_of_growth.to_string()),
            ("workers at most, at the end", format!("{}, {}", self.workers_at_most, self.workers_at_end)),
            ("registered → routed, median", milliseconds(self.routed_ms.median)),
            ("registered → routed, p99", milliseconds(self.routed_ms.p99)),
            ("registered → routed, slowest", milliseconds(self.routed_ms.slowest)),
            ("a pass, median", milliseconds(self.pass_ms.median)),
            ("a pass, slowest", milliseconds(self.pass_ms.slowest)),
            ("Nomad asked again", self.stalled.to_string()),
            ("not routed within two minutes", self.unrouted.len().to_string()),
            ("late in growth", self.late.len().to_string()),
            ("one validation of the file", self.validation_ms.map_or("refused".to_owned(), milliseconds)),
            ("memory of HAProxy", memory(&self.haproxy_kb)),
            ("memory of the controller", memory(&self.controller_kb)),
            ("open descriptors", descriptors),
            ("file = process", yes(self.difference.is_none())),
        ]
    }
}
