//! What the [`Status`] says at the time of the scrape: the gauges, and the counters of the circuit breaker. They come and
//! go with what they describe.

use std::fmt::Error;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Unit;
use tokio::time::Instant;

use crate::apply::{BackendSeats, Slots};
use crate::breaker;
use crate::desired::{Severity, State};
use crate::plan::guard::Holding;
use crate::status::{Board, Status, TargetStatus};

use super::family::{Labels, about};

/// Collects them.
#[derive(Debug)]
pub(super) struct View(pub(super) Arc<Board>);

impl Collector for View {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let status = self.0.read();
        once(&mut encoder, &status)?;
        haproxys(&mut encoder, &status)?;
        services(&mut encoder, &status)?;
        breakers(&mut encoder, &status)?;
        seats(&mut encoder, &status)
    }
}

/// What is there once. The metrics of a source that was not asked are absent.
fn once(encoder: &mut DescriptorEncoder<'_>, status: &Status) -> Result<(), Error> {
    let help = "Whether this controller is the one that acts.";
    about("leader", help).gauge(encoder, [([], i64::from(status.not_leading().is_none()))])?;
    let catalog = &status.catalog;
    let help = "Whether Nomad gave the last answer that it was asked for.";
    let up = catalog.nomad_up.map(|up| ([], i64::from(up)));
    about("nomad_up", help).gauge(encoder, up)?;
    let help = "Whether Nomad's event stream is open: without it, each change costs a read of all services.";
    let events = catalog.has_events.map(|has_events| ([], i64::from(has_events)));
    about("nomad_events_up", help).gauge(encoder, events)?;
    let help = "Reads of the catalog by cause; event: only the services that an event named, else all services.";
    let reads = catalog.reads.iter().map(|(cause, reads)| ([("cause", cause.as_str())], *reads));
    about("catalog_reads", help).counter(encoder, reads)?;
    let index = catalog.newest.as_ref().map_or(0, |newest| newest.index);
    let help = "Nomad's index of the catalog that was read last.";
    about("catalog_index", help).gauge(encoder, [([], index)])?;
    let help = "When the catalog was last brought up to date, in seconds since 1970.";
    let read = catalog.read.map_or(0.0, seconds);
    about("catalog_last_read_timestamp", help).in_unit(&Unit::Seconds).gauge(encoder, [([], read)])
}

/// One value for each HAProxy.
fn haproxys(encoder: &mut DescriptorEncoder<'_>, status: &Status) -> Result<(), Error> {
    let now = Instant::now();
    let help = "Whether HAProxy is in line with the catalog, as far as is known: what /readyz answers.";
    let ready = each(status).map(|(label, target)| (label, i64::from(target.health.readiness(now).is_ok())));
    about("ready", help).gauge(encoder, ready)?;
    let help = "Whether HAProxy, or its API, answered the last pass.";
    let up = each(status).filter_map(|(label, target)| Some((label, i64::from(target.answers?))));
    about("haproxy_up", help).gauge(encoder, up)?;
    let help = "When HAProxy was last seen in line with the catalog, in seconds since 1970.";
    let success = each(status).map(|(label, target)| (label, target.converged.map_or(0.0, seconds)));
    about("last_success_timestamp", help).in_unit(&Unit::Seconds).gauge(encoder, success)?;
    let help = "Instances that the catalog lacks and the guard keeps in service.";
    let kept = each(status).map(|(label, target)| (label, target.guard.as_ref().map_or(0, Holding::instances)));
    about("guard_held_instances", help).gauge(encoder, kept)
}

/// What is wrong with services and namespaces.
fn services(encoder: &mut DescriptorEncoder<'_>, status: &Status) -> Result<(), Error> {
    let notes = status.targets.iter().flat_map(|(haproxy, target)| {
        [Severity::Info, Severity::Warning, Severity::Error].map(|severity| {
            let notes = target.notes.iter().filter(|note| note.severity == severity).count();
            ([("haproxy", haproxy.as_str()), ("severity", severity.as_str())], notes)
        })
    });
    about("notes", "Problems with services by severity.").gauge(encoder, notes)?;
    let help = "Namespaces that are watched and cannot be read.";
    let unread = each(status).map(|(label, target)| (label, target.namespaces.len()));
    about("unread_namespaces", help).gauge(encoder, unread)
}

fn breakers(encoder: &mut DescriptorEncoder<'_>, status: &Status) -> Result<(), Error> {
    let known = || status.targets.iter().filter_map(|(name, target)| Some((name.as_str(), target.breaker?)));
    let each_state = known().flat_map(|(haproxy, breaker)| {
        breaker::State::ALL
            .map(|state| ([("haproxy", haproxy), ("state", state.as_str())], i64::from(breaker.state == state)))
    });
    about("breaker_state", "1 for the state of the circuit breaker, 0 for the others.").gauge(encoder, each_state)?;
    let opened = known().map(|(haproxy, breaker)| ([("haproxy", haproxy)], breaker.opened));
    about("breaker_opened", "How often the circuit breaker has opened.").counter(encoder, opened)?;
    let probes = known().map(|(haproxy, breaker)| ([("haproxy", haproxy)], breaker.probes));
    about("breaker_probes", "Probes that were sent to HAProxy while the circuit breaker was open.")
        .counter(encoder, probes)
}

/// Of each HAProxy, and of each of its backends.
fn seats(encoder: &mut DescriptorEncoder<'_>, status: &Status) -> Result<(), Error> {
    let help = "Backends that are ours or hold servers of ours.";
    let backends = each(status).map(|(label, target)| (label, target.seats.backends.len()));
    about("backends", help).gauge(encoder, backends)?;
    let help = "Servers of ours by administrative state.";
    let servers = status.targets.iter().flat_map(|(haproxy, target)| {
        [State::Ready, State::Drain, State::Maint].map(|state| {
            let servers = target.seats.backends.values().flat_map(|backend| &backend.servers);
            let n = servers.filter(|server| server.state() == state).count();
            ([("haproxy", haproxy.as_str()), ("state", state.as_str())], n)
        })
    });
    about("servers", help).gauge(encoder, servers)?;
    let help = "Slots, which are servers of ours, by state: seated (with an instance) or free.";
    let all = status.targets.iter().flat_map(|(haproxy, target)| {
        by_state(target.seats.slots()).map(|(state, n)| ([("haproxy", haproxy.as_str()), ("state", state)], n))
    });
    about("slots", help).gauge(encoder, all)?;
    let help = "Slots by backend and state: seated (with an instance) or free.";
    let backends = status.targets.iter().flat_map(|(haproxy, target)| {
        target.seats.backends.iter().flat_map(move |(backend, seats): (_, &BackendSeats)| {
            by_state(seats.slots())
                .map(|(state, n)| ([("haproxy", haproxy.as_str()), ("backend", backend.as_str()), ("state", state)], n))
        })
    });
    about("backend_slots", help).gauge(encoder, backends)
}

fn by_state(Slots { seated, free }: Slots) -> [(&'static str, usize); 2] {
    [("seated", seated), ("free", free)]
}

fn each(status: &Status) -> impl Iterator<Item = (Labels<'_, 1>, &TargetStatus)> {
    status.targets.iter().map(|(name, target)| ([("haproxy", name.as_str())], target.as_ref()))
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::super::{Format, Metrics};
    use super::*;
    use crate::apply::{PassError, PassStatus, Seats, Stage};
    use crate::catalog::SourceError;
    use crate::desired::{Code, Note, Occupant, Server, ServiceKey};
    use crate::nomad::NomadError;
    use crate::reconcile::Wake;
    use std::time::Duration;

    struct Scraped(Arc<Board>, Metrics);

    impl Scraped {
        fn new(names: &[&str]) -> Self {
            let board = Arc::new(Board::default());
            for name in names {
                board.add(name);
            }
            Self(board.clone(), Metrics::new(board))
        }

        fn pass(&self, name: &str, status: &PassStatus) -> String {
            self.0.passed(name, status, Duration::ZERO, Wake::Catalog);
            self.text()
        }

        fn text(&self) -> String {
            self.1.render(Format::Text)
        }
    }

    fn has(text: &str, lines: &[&str]) {
        for line in lines {
            assert!(text.lines().any(|found| found == *line), "{line} in:\n{text}");
        }
    }

    fn unreadable(stage: Stage) -> PassStatus {
        let error = Some(PassError::Catalog(SourceError::Nomad(NomadError::NoLeader).into()));
        PassStatus { stage, version: 1, error, ..PassStatus::default() }
    }

    /// Backends with two free slots each.
    fn with_backends(names: &[&str]) -> PassStatus {
        let server = |backend: &str, n: u32| Server {
            name: format!("{backend}_{n}").parse().expect("a name"),
            address: "127.0.0.1".parse().expect("an address"),
            port: 1,
            check: false,
            cookie: false,
            options: crate::desired::ServerOptions::default(),
            gated: false,
            occupant: Occupant::Free { freed: 0, drain_until: None },
        };
        let seats = |name: &&str| {
            let servers = vec![server(name, 1), server(name, 2)];
            let seats = BackendSeats { is_ours: true, services: Vec::new(), mode: "http".into(), servers };
            (name.parse().expect("a name"), seats)
        };
        let seats = Arc::new(Seats { backends: names.iter().map(seats).collect(), ..Seats::default() });
        PassStatus { version: 1, seats, ..PassStatus::default() }
    }

    #[test]
    fn a_removed_backend_is_removed_from_the_text() {
        let scraped = Scraped::new(&["edge", "other"]);
        let both = scraped.pass("edge", &with_backends(&["api", "web"]));
        has(
            &both,
            &[
                "nomad_haproxy_backends{haproxy=\"edge\"} 2",
                "nomad_haproxy_backend_slots{haproxy=\"edge\",backend=\"api\",state=\"seated\"} 0",
                "nomad_haproxy_backend_slots{haproxy=\"edge\",backend=\"web\",state=\"free\"} 2",
                "nomad_haproxy_slots{haproxy=\"edge\",state=\"free\"} 4",
                "nomad_haproxy_slots{haproxy=\"other\",state=\"free\"} 0",
            ],
        );
        assert!(!scraped.pass("edge", &with_backends(&["api"])).contains("web"));
        scraped.0.forget("edge");
        assert!(!scraped.text().contains("edge"));
    }

    #[test]
    fn the_breaker_has_a_series_for_each_state_and_counts() {
        let scraped = Scraped::new(&["edge"]);
        assert!(!scraped.text().contains("breaker"), "it is unknown before the loop runs");
        let options = breaker::Options { threshold: 1, reset_after: Duration::from_secs(10), probes: 1 };
        let mut breaker = breaker::Breaker::new(options);
        breaker.passed(true, Instant::now());
        breaker.probed(false, Instant::now());
        scraped.0.update_target("edge", |target| target.breaker = Some(breaker.snapshot()));
        has(
            &scraped.text(),
            &[
                "nomad_haproxy_breaker_state{haproxy=\"edge\",state=\"closed\"} 0",
                "nomad_haproxy_breaker_state{haproxy=\"edge\",state=\"half-open\"} 0",
                "nomad_haproxy_breaker_state{haproxy=\"edge\",state=\"open\"} 1",
                "# TYPE nomad_haproxy_breaker_opened_total counter",
                "nomad_haproxy_breaker_opened_total{haproxy=\"edge\"} 1",
                "nomad_haproxy_breaker_probes_total{haproxy=\"edge\"} 1",
            ],
        );
    }

    #[test]
    fn readiness_is_that_of_readyz() {
        let scraped = Scraped::new(&["edge"]);
        has(&scraped.text(), &["nomad_haproxy_ready{haproxy=\"edge\"} 0", "nomad_haproxy_leader 1"]);
        let good = scraped.pass("edge", &with_backends(&["api"]));
        has(
            &good,
            &["nomad_haproxy_ready{haproxy=\"edge\"} 1", "nomad_haproxy_servers{haproxy=\"edge\",state=\"maint\"} 2"],
        );
    }

    #[test]
    fn a_peer_without_requests_is_neither_up_nor_down() {
        let scraped = Scraped::new(&["edge"]);
        let before = scraped.text();
        assert!(!before.contains("nomad_haproxy_nomad_up") && !before.contains("nomad_haproxy_haproxy_up"), "{before}");
        let down = scraped.pass("edge", &unreadable(Stage::Catalog));
        has(&down, &["nomad_haproxy_nomad_up 0", "nomad_haproxy_haproxy_up{haproxy=\"edge\"} 1"]);
        scraped.0.nomad_answered(true);
        has(&scraped.text(), &["nomad_haproxy_nomad_up 1"]);
    }

    #[test]
    fn an_outage_of_nomad_forgets_no_note() {
        let scraped = Scraped::new(&["edge"]);
        let service = ServiceKey { namespace: "default".into(), name: "api".into() };
        let note = Note { severity: Severity::Error, service, code: Code::BadName, text: "not routed".into() };
        scraped.pass("edge", &PassStatus { notes: vec![note], ..PassStatus::default() });
        let text = scraped.pass("edge", &unreadable(Stage::Catalog));
        has(&text, &["nomad_haproxy_notes{haproxy=\"edge\",severity=\"error\"} 1"]);
    }
}
