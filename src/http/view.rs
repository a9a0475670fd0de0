//! The JSON of `/api/v1`: what is in the [`Status`], in the words of its types. Times are RFC 3339 in UTC.

use std::time::{Duration, SystemTime};

use serde::{Serialize, Serializer};
use tokio::time::Instant;

use crate::apply::{BackendSeats, Slots};
use crate::breaker;
use crate::desired::{NamespaceNote, Note, Occupant, Server};
use crate::health;
use crate::leader::Leadership;
use crate::nomad::lock::Holder;
use crate::plan::display::Summary;
use crate::plan::guard::Holding;
use crate::plane::{HaproxyInfo, Traffic};
use crate::sample::{Sample, ServerSample};
use crate::status::{CatalogStatus, PassRecord, Status, TargetStatus};

/// A time as the answers have it: `2026-11-26T01:02:03.004Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Time(pub(super) SystemTime);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_millis(self.0))
    }
}

/// `/api/v1/status`.
#[derive(Debug, Serialize)]
pub(super) struct StatusView<'a> {
    version: &'static str,
    started: Time,
    is_ready: bool,
    catalog: CatalogView<'a>,
    leader: LeaderView<'a>,
    haproxys: Vec<TargetView<'a>>,
}

#[derive(Debug, Serialize)]
struct CatalogView<'a> {
    /// `null`: Nomad was not asked, as with a catalog file.
    nomad_up: Option<bool>,
    index: Option<u64>,
    read: Option<Time>,
    services: Option<usize>,
    instances: Option<usize>,
    error: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct LeaderView<'a> {
    /// `false`: there is none, and this controller leads.
    election: bool,
    leads: bool,
    /// Another controller that leads, as far as is known.
    holder: Option<&'a Holder>,
    /// Why it is not known who leads.
    error: Option<&'a str>,
}

impl<'a> LeaderView<'a> {
    fn new(leadership: Option<&'a Leadership>) -> Self {
        let error = leadership.and_then(|leadership| match leadership {
            Leadership::Unknown { since: _, why, was_known: _ } => Some(why.as_str()),
            Leadership::Leads | Leadership::StandsBy { .. } => None,
        });
        Self {
            election: leadership.is_some(),
            leads: leadership.is_none_or(Leadership::leads),
            holder: leadership.and_then(Leadership::holder),
            error,
        }
    }
}

#[derive(Debug, Serialize)]
struct TargetView<'a> {
    name: &'a str,
    is_ready: bool,
    /// Why it is not.
    not_ready: Option<String>,
    converged: Option<Time>,
    answers: Option<bool>,
    haproxy: Option<ProcessView<'a>>,
    /// When the servers' `check` was taken, as HAProxy had it then.
    sampled: Option<Time>,
    configuration_version: u64,
    breaker: Option<BreakerView>,
    guard: Option<&'a Holding>,
    notes: &'a [Note],
    namespaces: &'a [NamespaceNote],
    slots: SlotsView,
    backends: Vec<BackendView<'a>>,
    /// Whether something is left to do: `/api/v1/plan` has it.
    is_pending: bool,
    last_pass: Option<PassView<'a>>,
}

#[derive(Debug, Serialize)]
struct ProcessView<'a> {
    version: &'a str,
    pid: u64,
    uptime_s: Option<u64>,
    connections: Option<u64>,
    connections_total: Option<u64>,
    connection_rate: Option<u64>,
    connection_limit: Option<u64>,
    requests_total: Option<u64>,
}

#[derive(Debug, Serialize)]
struct BreakerView {
    state: &'static str,
    failures: u32,
    failure_threshold: u32,
    changed: Time,
    last_failure: Option<Time>,
    next_probe: Option<Time>,
    opened: u64,
    probes: u64,
}

#[derive(Debug, Serialize)]
struct SlotsView {
    seated: usize,
    free: usize,
}

#[derive(Debug, Serialize)]
struct BackendView<'a> {
    name: &'a str,
    is_ours: bool,
    services: Vec<String>,
    mode: &'a str,
    slots: SlotsView,
    servers: Vec<ServerView<'a>>,
}

#[derive(Debug, Serialize)]
struct ServerView<'a> {
    name: &'a str,
    address: String,
    port: u16,
    /// `ready`, `drain` or `maint`.
    state: &'static str,
    weight: Option<u16>,
    /// Those of its instance; `null`: it is free.
    service: Option<String>,
    registration: Option<&'a str>,
    allocation: Option<&'a str>,
    /// What HAProxy said of it when it was `sampled`; `null`: nothing yet.
    check: Option<CheckView<'a>>,
}

#[derive(Debug, Serialize)]
struct CheckView<'a> {
    /// `UP`, `DOWN`, `MAINT`, `no check`, …
    status: &'a str,
    /// The last check: `L4CON`; as a sentence; and what it was answered with.
    result: Option<&'a str>,
    description: Option<&'a str>,
    answer: Option<&'a str>,
    connections: u64,
    errors: u64,
}

/// One pass of `/api/v1/passes`.
#[derive(Debug, Serialize)]
pub(super) struct PassView<'a> {
    ended: Time,
    took_ms: u64,
    reason: &'static str,
    outcome: &'static str,
    stage: &'static str,
    error: Option<&'a str>,
    run_time_changes: usize,
    reloads: u32,
    failed_reloads: u32,
    configuration_version: u64,
    index: u64,
    /// What was written; absent where only the pass itself is of interest.
    #[serde(skip_serializing_if = "Option::is_none")]
    written: Option<&'a [Summary]>,
}

impl<'a> StatusView<'a> {
    /// As it is now: readiness depends on the time.
    pub(super) fn new(status: &'a Status, now: Instant) -> Self {
        let haproxys: Vec<_> = status.targets.iter().map(|(name, target)| TargetView::new(name, target, now)).collect();
        let is_elected =
            status.leadership.as_ref().is_none_or(|leadership| health::unelected(leadership, now).is_none());
        Self {
            version: env!("CARGO_PKG_VERSION"),
            started: Time(status.started),
            is_ready: !status.is_searching && is_elected && haproxys.iter().all(|target| target.is_ready),
            catalog: CatalogView::new(&status.catalog),
            leader: LeaderView::new(status.leadership.as_ref()),
            haproxys,
        }
    }
}

impl<'a> CatalogView<'a> {
    fn new(status: &'a CatalogStatus) -> Self {
        let CatalogStatus { nomad_up, has_events: _, reads: _, read, newest, error } = status;
        let newest = newest.as_deref();
        Self {
            nomad_up: *nomad_up,
            index: newest.map(|catalog| catalog.index),
            read: read.map(Time),
            services: newest.map(|catalog| catalog.services.len()),
            instances: newest.map(|catalog| catalog.services.values().map(Vec::len).sum()),
            error: error.as_deref(),
        }
    }
}

impl<'a> TargetView<'a> {
    fn new(name: &'a str, target: &'a TargetStatus, now: Instant) -> Self {
        let readiness = target.health.readiness(now);
        Self {
            name,
            is_ready: readiness.is_ok(),
            not_ready: readiness.err().map(|why| why.to_string()),
            converged: target.converged.map(Time),
            answers: target.answers,
            haproxy: target.haproxy.as_ref().map(ProcessView::new),
            sampled: target.sample.as_ref().map(|sample| Time(sample.taken)),
            configuration_version: target.version,
            breaker: target.breaker.map(BreakerView::from),
            guard: target.guard.as_ref(),
            notes: &target.notes,
            namespaces: &target.namespaces,
            slots: target.seats.slots().into(),
            backends: target
                .seats
                .backends
                .iter()
                .map(|(name, seats)| BackendView::new(name.as_str(), seats, target.sample.as_deref()))
                .collect(),
            is_pending: target.pending.is_some(),
            last_pass: target.last.as_deref().map(|pass| PassView { written: None, ..PassView::new(pass) }),
        }
    }
}

impl<'a> ProcessView<'a> {
    fn new(info: &'a HaproxyInfo) -> Self {
        let HaproxyInfo { version: _, release, pid, uptime, traffic } = info;
        let Traffic { connections, connections_total, connection_rate, connection_limit, requests_total } = *traffic;
        Self {
            version: release,
            pid: *pid,
            uptime_s: uptime.map(|uptime| uptime.as_secs()),
            connections,
            connections_total,
            connection_rate,
            connection_limit,
            requests_total,
        }
    }
}

impl From<breaker::Snapshot> for BreakerView {
    fn from(snapshot: breaker::Snapshot) -> Self {
        let breaker::Snapshot { state, failures, threshold, changed, last_failure, next_probe, opened, probes } =
            snapshot;
        Self {
            state: state.as_str(),
            failures,
            failure_threshold: threshold,
            changed: Time(changed),
            last_failure: last_failure.map(Time),
            next_probe: next_probe.map(Time),
            opened,
            probes,
        }
    }
}

impl From<Slots> for SlotsView {
    fn from(Slots { seated, free }: Slots) -> Self {
        Self { seated, free }
    }
}

impl<'a> BackendView<'a> {
    fn new(name: &'a str, seats: &'a BackendSeats, sample: Option<&'a Sample>) -> Self {
        let BackendSeats { is_ours, services, mode, servers } = seats;
        Self {
            name,
            is_ours: *is_ours,
            services: services.iter().map(ToString::to_string).collect(),
            mode,
            slots: seats.slots().into(),
            servers: servers
                .iter()
                .map(|server| {
                    ServerView::new(server, sample.and_then(|sample| sample.server(name, server.name.as_str())))
                })
                .collect(),
        }
    }
}

impl<'a> ServerView<'a> {
    fn new(server: &'a Server, check: Option<&'a ServerSample>) -> Self {
        let (registration, allocation) = match &server.occupant {
            Occupant::Instance { id, alloc, .. } => (Some(id.as_str()), Some(alloc.as_str())),
            Occupant::Free { .. } => (None, None),
        };
        Self {
            name: server.name.as_str(),
            address: server.address.to_string(),
            port: server.port,
            state: server.state().as_str(),
            weight: server.options.weight,
            service: server.occupant.service().map(ToString::to_string),
            registration,
            allocation,
            check: check.map(CheckView::new),
        }
    }
}

impl<'a> CheckView<'a> {
    fn new(sample: &'a ServerSample) -> Self {
        let ServerSample { status, check, description, answer, connections, errors } = sample;
        Self {
            status,
            result: check.as_deref(),
            description: description.as_deref(),
            answer: answer.as_deref(),
            connections: *connections,
            errors: *errors,
        }
    }
}

impl<'a> PassView<'a> {
    pub(super) fn new(pass: &'a PassRecord) -> Self {
        let PassRecord {
            ended,
            took,
            reason,
            outcome,
            stage,
            error,
            written,
            run_time_changes,
            reloads,
            failed_reloads,
            version,
            index,
        } = pass;
        Self {
            ended: Time(*ended),
            took_ms: millis(*took),
            reason: reason.as_str(),
            outcome: outcome.as_str(),
            stage: stage.as_str(),
            error: error.as_deref(),
            run_time_changes: *run_time_changes,
            reloads: *reloads,
            failed_reloads: *failed_reloads,
            configuration_version: *version,
            index: *index,
            written: Some(written),
        }
    }
}

pub(super) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
