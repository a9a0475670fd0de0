//! The gauges: what the [`Status`] says at the time of the scrape. They come and go with what they describe.

use std::fmt::Error;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use crate::apply::{BackendSeats, Slots};
use crate::desired::Severity;
use crate::plan::guard::Holding;
use crate::status::{Board, Status, TargetStatus};

/// The labels of a sample, in their order.
type Labels<'a, const N: usize> = [(&'static str, &'a str); N];

/// Collects the gauges.
#[derive(Debug)]
pub(super) struct View(pub(super) Arc<Board>);

impl Collector for View {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let status = self.0.read();
        catalog(&mut encoder, &status)?;
        haproxys(&mut encoder, &status)?;
        slots(&mut encoder, &status)
    }
}

/// What is there once. The metrics of a source that was not asked are absent.
fn catalog(encoder: &mut DescriptorEncoder<'_>, status: &Status) -> Result<(), Error> {
    let catalog = &status.catalog;
    let help = "Whether Nomad gave the last answer that it was asked for.";
    let up = catalog.nomad_up.map(|up| ([], i64::from(up)));
    gauge(encoder, "nomad_up", help, None, up)?;
    let index = catalog.newest.as_ref().map_or(0, |newest| i64::try_from(newest.index).unwrap_or(i64::MAX));
    let help = "Nomad's index of the catalog that was read last.";
    gauge(encoder, "catalog_index", help, None, [([], index)])?;
    let help = "When the catalog was last read in full, in seconds since 1970.";
    let read = catalog.read.map_or(0.0, seconds);
    gauge(encoder, "catalog_last_read_timestamp", help, Some(&Unit::Seconds), [([], read)])
}

/// One value for each HAProxy.
fn haproxys(encoder: &mut DescriptorEncoder<'_>, status: &Status) -> Result<(), Error> {
    let help = "Whether HAProxy, or its API, answered the last pass.";
    let up = each(status).filter_map(|(label, target)| Some((label, i64::from(target.answers?))));
    gauge(encoder, "haproxy_up", help, None, up)?;
    let help = "Backends that are ours or hold servers of ours.";
    let backends = each(status).map(|(label, target)| (label, count(target.seats.backends.len())));
    gauge(encoder, "backends", help, None, backends)?;
    let help = "Instances that the catalog lacks and the guard keeps in service.";
    let guarded =
        each(status).map(|(label, target)| (label, count(target.guard.as_ref().map_or(0, Holding::instances))));
    gauge(encoder, "guard_held_instances", help, None, guarded)?;
    let help = "When HAProxy was last seen in line with the catalog, in seconds since 1970.";
    let success = each(status).map(|(label, target)| (label, target.converged.map_or(0.0, seconds)));
    gauge(encoder, "last_success_timestamp", help, Some(&Unit::Seconds), success)?;
    let notes = status.targets.iter().flat_map(|(haproxy, target)| {
        [Severity::Warning, Severity::Error].map(|severity| {
            let notes = target.notes.iter().filter(|note| note.severity == severity).count();
            ([("haproxy", haproxy.as_str()), ("severity", severity.as_str())], count(notes))
        })
    });
    gauge(encoder, "notes", "Problems with services by severity.", None, notes)
}

/// Of each HAProxy, and of each of its backends.
fn slots(encoder: &mut DescriptorEncoder<'_>, status: &Status) -> Result<(), Error> {
    let help = "Servers of ours by state: seated (with an instance) or free.";
    let all = status.targets.iter().flat_map(|(haproxy, target)| {
        by_state(target.seats.slots()).map(|(state, n)| ([("haproxy", haproxy.as_str()), ("state", state)], n))
    });
    gauge(encoder, "slots", help, None, all)?;
    let help = "Servers of ours by backend and state: seated (with an instance) or free.";
    let backends = status.targets.iter().flat_map(|(haproxy, target)| {
        target.seats.backends.iter().flat_map(move |(backend, seats): (_, &BackendSeats)| {
            by_state(seats.slots())
                .map(|(state, n)| ([("haproxy", haproxy.as_str()), ("backend", backend.as_str()), ("state", state)], n))
        })
    });
    gauge(encoder, "backend_slots", help, None, backends)
}

fn by_state(Slots { seated, free }: Slots) -> [(&'static str, i64); 2] {
    [("seated", count(seated)), ("free", count(free))]
}

fn each(status: &Status) -> impl Iterator<Item = (Labels<'_, 1>, &TargetStatus)> {
    status.targets.iter().map(|(name, target)| ([("haproxy", name.as_str())], target.as_ref()))
}

/// One metric with its samples; without any, it is absent.
fn gauge<'a, const N: usize, V: EncodeGaugeValue>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    samples: impl IntoIterator<Item = (Labels<'a, N>, V)>,
) -> Result<(), Error> {
    let mut samples = samples.into_iter().peekable();
    if samples.peek().is_none() {
        return Ok(());
    }
    let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
    for (labels, value) in samples {
        if N == 0 {
            family.encode_gauge(&value)?;
        } else {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
    }
    Ok(())
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
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
            options: crate::desired::ServerOptions::default(),
            gated: false,
            occupant: Occupant::Free { freed: 0, drain_until: None },
        };
        let seats = |name: &&str| {
            let servers = vec![server(name, 1), server(name, 2)];
            let seats = BackendSeats { is_ours: true, services: Vec::new(), mode: "http".into(), servers };
            (name.parse().expect("a name"), seats)
        };
        let seats = Arc::new(Seats { backends: names.iter().map(seats).collect() });
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
