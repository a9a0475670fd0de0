//! The JSON of `GET /api/health/system` and `GET /api/health/haproxy`.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Serialize, Serializer};
use tokio::time::Instant;

use crate::apply::BackendSeats;
use crate::breaker;
use crate::health::Condition;
use crate::plane::Traffic;
use crate::sample::{BackendSample, Sample};
use crate::status::TargetStatus;

use super::super::view::{Time, millis};

/// `HEALTHY`, `DEGRADED`, `UNHEALTHY`.
#[derive(Debug)]
struct Word(Condition);

impl Serialize for Word {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self.0 {
            Condition::Healthy => "HEALTHY",
            Condition::Degraded => "DEGRADED",
            Condition::Unhealthy => "UNHEALTHY",
        })
    }
}

/// The answer about the whole.
#[derive(Debug, Serialize)]
pub(super) struct SystemView {
    /// `healthy`, `degraded`, `unhealthy`.
    status: &'static str,
    timestamp: Time,
    services: ServicesView,
}

#[derive(Debug, Serialize)]
struct ServicesView {
    /// `null`: there is none.
    haproxy: Option<ServiceView>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceView {
    status: Word,
    circuit_state: Option<&'static str>,
    last_check: Option<Time>,
    metrics: ServiceMetrics,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceMetrics {
    route_count: usize,
    connections: ServiceConnections,
}

#[derive(Debug, Serialize)]
struct ServiceConnections {
    current: Option<u64>,
    total: Option<u64>,
    limit: Option<u64>,
}

/// The answer about one HAProxy.
#[derive(Debug, Serialize)]
pub(super) struct HaproxyView<'a> {
    success: bool,
    health: HealthView<'a>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct HealthView<'a> {
    timestamp: Time,
    status: Word,
    circuit_state: Option<&'static str>,
    metrics: MetricsView<'a>,
    last_check: Option<CheckView>,
    route_count: usize,
    /// Passes and probes without an answer, in a row.
    failure_count: Option<u32>,
    /// Recoveries that were asked for, and probes of the breaker.
    recovery_attempts: u64,
    circuit_details: CircuitView,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct MetricsView<'a> {
    connections: ConnectionsView,
    requests: CountView,
    errors: CountView,
    server_states: BTreeMap<&'a str, StateView>,
    /// Seconds.
    uptime: Option<u64>,
    version: Option<&'a str>,
}

#[derive(Debug, Serialize)]
struct ConnectionsView {
    current: Option<u64>,
    total: Option<u64>,
    rate: Option<u64>,
    limit: Option<u64>,
}

#[derive(Debug, Serialize)]
struct CountView {
    total: Option<u64>,
    rate: Option<PerSecond>,
}

/// A mean, to a thousandth; without decimals where it has none.
#[derive(Debug)]
struct PerSecond(f64);

impl Serialize for PerSecond {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let rounded = (self.0 * 1000.0).round() / 1000.0;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked, and a count of events")]
        if rounded.fract() == 0.0 && (0.0..1e15).contains(&rounded) {
            serializer.serialize_u64(rounded as u64)
        } else {
            serializer.serialize_f64(rounded)
        }
    }
}

/// The servers of ours in one backend.
#[derive(Debug, Serialize)]
struct StateView {
    /// `UP`, `DOWN`, `MAINT`.
    status: Option<&'static str>,
    errors: Option<u64>,
    connections: Option<u64>,
}

#[derive(Debug, Serialize)]
struct CheckView {
    timestamp: Time,
    status: Word,
    details: DetailsView,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DetailsView {
    /// Always `null`: the controller knows of no container.
    container_running: Option<bool>,
    process_running: Option<bool>,
    api_connected: bool,
    config_valid: Option<bool>,
    /// Milliseconds.
    response_time: Option<u64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct CircuitView {
    failure_count: Option<u32>,
    failure_threshold: Option<u32>,
    last_state_change: Option<Time>,
    last_failure: Option<Time>,
}

impl SystemView {
    pub(super) fn new(condition: Condition, worst: Option<&TargetStatus>, now: Instant) -> Self {
        let status = match condition {
            Condition::Healthy => "healthy",
            Condition::Degraded => "degraded",
            Condition::Unhealthy => "unhealthy",
        };
        let haproxy = worst.map(|target| ServiceView::new(target, now));
        Self { status, timestamp: Time(SystemTime::now()), services: ServicesView { haproxy } }
    }
}

impl ServiceView {
    fn new(target: &TargetStatus, now: Instant) -> Self {
        let Traffic { connections: current, connections_total: total, connection_limit: limit, .. } = traffic(target);
        let connections = ServiceConnections { current, total, limit };
        Self {
            status: Word(Condition::of(target, now)),
            circuit_state: target.breaker.map(circuit),
            last_check: target.sign_of_life.map(|sign| Time(sign.at)),
            metrics: ServiceMetrics { route_count: routes(target), connections },
        }
    }
}

impl<'a> HaproxyView<'a> {
    pub(super) fn new(target: &'a TargetStatus, now: Instant) -> Self {
        let failure_count = target.breaker.map(|breaker| breaker.failures);
        let probes = target.breaker.map_or(0, |breaker| breaker.probes);
        let health = HealthView {
            timestamp: Time(SystemTime::now()),
            status: Word(Condition::of(target, now)),
            circuit_state: target.breaker.map(circuit),
            metrics: MetricsView::new(target),
            last_check: CheckView::new(target),
            route_count: routes(target),
            failure_count,
            recovery_attempts: target.recoveries + probes,
            circuit_details: CircuitView {
                failure_count,
                failure_threshold: target.breaker.map(|breaker| breaker.threshold),
                last_state_change: target.breaker.map(|breaker| Time(breaker.changed)),
                last_failure: target.breaker.and_then(|breaker| breaker.last_failure).map(Time),
            },
        };
        Self { success: true, health }
    }
}

impl<'a> MetricsView<'a> {
    fn new(target: &'a TargetStatus) -> Self {
        let Traffic { connections, connections_total, connection_rate, connection_limit, requests_total } =
            traffic(target);
        let answers = answers(target);
        let sample = target.sample.as_deref().filter(|_| answers);
        let haproxy = target.haproxy.as_ref().filter(|_| answers);
        let per_second = |rate: Option<f64>| rate.filter(|_| answers).map(PerSecond);
        Self {
            connections: ConnectionsView {
                current: connections,
                total: connections_total,
                rate: connection_rate,
                limit: connection_limit,
            },
            requests: CountView { total: requests_total, rate: per_second(target.request_rate.per_second) },
            errors: CountView {
                total: sample.map(|sample| sample.errors),
                rate: per_second(target.error_rate.per_second),
            },
            server_states: target
                .seats
                .backends
                .iter()
                .map(|(name, seats)| (name.as_str(), StateView::new(sample, name.as_str(), seats)))
                .collect(),
            uptime: haproxy.and_then(|haproxy| haproxy.uptime).map(|uptime| uptime.as_secs()),
            version: haproxy.map(|haproxy| haproxy.release.as_str()),
        }
    }
}

impl StateView {
    fn new(sample: Option<&Sample>, backend: &str, seats: &BackendSeats) -> Self {
        let names = seats.servers.iter().map(|server| server.name.as_str());
        match sample.and_then(|sample| sample.backend(backend, names)) {
            Some(BackendSample { status, errors, connections }) => {
                Self { status: Some(status), errors: Some(errors), connections: Some(connections) }
            }
            None => Self { status: None, errors: None, connections: None },
        }
    }
}

impl CheckView {
    fn new(target: &TargetStatus) -> Option<Self> {
        let sign = target.sign_of_life?;
        let condition = match (sign.has_answered, &target.health.failing) {
            (true, None) => Condition::Healthy,
            (true, Some(_)) => Condition::Degraded,
            (false, _) => Condition::Unhealthy,
        };
        let details = DetailsView {
            container_running: None,
            process_running: sign.is_running,
            api_connected: sign.is_connected,
            config_valid: target.is_valid(),
            response_time: sign.took.map(millis),
        };
        Some(Self { timestamp: Time(sign.at), status: Word(condition), details })
    }
}

/// What we route: backends with an instance of ours.
fn routes(target: &TargetStatus) -> usize {
    target.seats.backends.values().filter(|seats| seats.slots().seated > 0).count()
}

/// Whether what is known of the process is still so: not of one that does not answer.
fn answers(target: &TargetStatus) -> bool {
    target.sign_of_life.is_some_and(|sign| sign.has_answered)
}

fn traffic(target: &TargetStatus) -> Traffic {
    let haproxy = target.haproxy.as_ref().filter(|_| answers(target));
    haproxy.map(|haproxy| haproxy.traffic).unwrap_or_default()
}

fn circuit(breaker: breaker::Snapshot) -> &'static str {
    match breaker.state {
        breaker::State::Closed => "CLOSED",
        breaker::State::Open => "OPEN",
        breaker::State::HalfOpen => "HALF_OPEN",
    }
}
