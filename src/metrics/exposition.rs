//! The two text formats that Prometheus reads. prometheus-client writes OpenMetrics; a client that does not accept it
//! gets the older format, which differs slightly (Prometheus documentation, "Exposition formats"; OpenMetrics 1.0): the
//! family of a counter has the name of its samples, and there is no type `info`, no unit, and no end marker.

use std::collections::BTreeMap;

/// A format of a scrape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The Prometheus text format 0.0.4.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

const OPEN_METRICS: &str = "application/openmetrics-text";

impl Format {
    /// The format for these `Accept` headers: OpenMetrics only if it is named and not refused (`q=0`). Prometheus names
    /// it first.
    pub fn accepted<'a>(headers: impl IntoIterator<Item = &'a str>) -> Self {
        let mut ranges = headers.into_iter().flat_map(|header| header.split(','));
        let wanted = ranges.any(|range| {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            let refused = parts
                .filter_map(|part| part.strip_prefix("q="))
                .any(|weight| weight.parse::<f32>().is_ok_and(|weight| weight <= 0.0));
            kind.eq_ignore_ascii_case(OPEN_METRICS) && !refused
        });
        if wanted { Self::OpenMetrics } else { Self::Text }
    }

    /// The content type of the answer.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// Converts OpenMetrics text to this format.
    pub(super) fn of(self, open_metrics: String) -> String {
        match self {
            Self::Text => text(&open_metrics),
            Self::OpenMetrics => open_metrics,
        }
    }
}

fn text(open_metrics: &str) -> String {
    let types: BTreeMap<&str, &str> =
        open_metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let family = |name: &str| match types.get(name) {
        Some(&"counter") => format!("{name}_total"),
        Some(&"info") => format!("{name}_info"),
        _ => name.to_owned(),
    };
    let mut text = String::with_capacity(open_metrics.len());
    for line in open_metrics.lines() {
        let mut words = line.splitn(4, ' ');
        let line = match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("EOF" | "UNIT"), ..) => continue,
            (Some("#"), Some("HELP"), Some(name), Some(help)) => {
                // Quotes are escaped in OpenMetrics only.
                format!("# HELP {} {}", family(name), help.replace("\\\"", "\""))
            }
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let kind = match kind {
                    "info" => "gauge",
                    "unknown" => "untyped",
                    other => other,
                };
                format!("# TYPE {} {kind}", family(name))
            }
            _ => line.to_owned(),
        };
        text.push_str(&line);
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::{BackendSeats, PassStatus, Seats};
    use crate::breaker;
    use crate::metrics::Metrics;
    use crate::reconcile::Wake;
    use crate::status::Board;
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    #[test]
    fn open_metrics_is_sent_only_if_it_is_accepted() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, format) in [
            (&[][..], Format::Text),
            (&["*/*"], Format::Text),
            (&["text/html,text/plain;q=0.3"], Format::Text),
            (&["application/openmetrics-text;q=0, text/plain"], Format::Text),
            (&[prometheus], Format::OpenMetrics),
            (&["text/plain", "Application/OpenMetrics-Text"], Format::OpenMetrics),
        ] {
            assert_eq!(Format::accepted(accept.iter().copied()), format, "{accept:?}");
        }
    }

    /// All metrics, each with a value.
    fn full() -> Metrics {
        let backend = BackendSeats { is_ours: true, services: Vec::new(), mode: "http".into(), servers: Vec::new() };
        let seats = Seats { backends: [("api".parse().expect("a name"), backend)].into(), ..Seats::default() };
        let status = PassStatus {
            version: 1,
            index: 7,
            seats: Arc::new(seats),
            catalog_read: Some(SystemTime::now()),
            became_ready: vec![Duration::from_millis(30)],
            ..PassStatus::default()
        };
        let board = Arc::new(Board::default());
        let metrics = Metrics::new(board.clone());
        metrics.add("edge");
        board.add("edge");
        metrics.pass("edge", &status, Duration::from_millis(5), Wake::Started);
        board.passed("edge", &status, Duration::from_millis(5), Wake::Started);
        board.nomad_answered(true);
        board.watches(true, [(crate::catalog::ledger::Cause::Event, 1)].into());
        let options = breaker::Options { threshold: 1, reset_after: Duration::from_secs(1), probes: 1 };
        let breaker = breaker::Breaker::new(options).snapshot();
        board.update_target("edge", |target| target.breaker = Some(breaker));
        metrics
    }

    /// A cell of a table in Markdown.
    fn without_marks(cell: &str) -> &str {
        cell.trim().trim_matches('`')
    }

    /// docs/metrics.md has every family of a scrape with its type and its labels, and no other.
    #[test]
    fn the_documentation_has_every_metric() {
        let text = full().render(Format::Text);
        let kinds: BTreeMap<&str, &str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
        let mut scraped: BTreeMap<&str, (&str, BTreeSet<&str>)> =
            kinds.iter().map(|(name, kind)| (*name, (*kind, BTreeSet::new()))).collect();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (name, labels) = line.split_once('{').unwrap_or((line, ""));
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            let Some((_, known)) = scraped.get_mut(family) else { continue };
            let names = labels.split("\",").filter_map(|label| Some(label.split_once("=\"")?.0));
            known.extend(names.filter(|name| *name != "le"));
        }
        // Not `include_str!`: the Dockerfile builds without it.
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
        let document = std::fs::read_to_string(path).expect("it is in the repository");
        let rows = document.lines().filter_map(|line| {
            let cells: Vec<&str> = line.strip_prefix("| `")?.strip_suffix('|')?.split('|').map(without_marks).collect();
            let [name, kind, labels, meaning] = cells[..] else { return None };
            // The table of the alerts comes after.
            if name.starts_with("Nomad") {
                return None;
            }
            assert!(!meaning.is_empty(), "{line}");
            let labels = labels.split(", ").map(|label| label.trim_matches('`')).filter(|label| !label.is_empty());
            Some((name, (kind, labels.collect())))
        });
        let documented: BTreeMap<&str, (&str, BTreeSet<&str>)> = rows.collect();
        assert_eq!(documented, scraped);
    }

    /// The rules of the text format: each family has one HELP and one TYPE line, then its samples, all of them
    /// together, with the names that its type allows.
    #[test]
    fn the_text_is_what_prometheus_reads() {
        let text = full().render(Format::Text);
        let (mut families, mut family) = (BTreeSet::new(), (String::new(), String::new()));
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').expect("a help");
                assert!(!help.is_empty() && families.insert(name.to_owned()), "{line}");
                let kind = lines.next().and_then(|line| line.strip_prefix(&format!("# TYPE {name} "))).expect("a type");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}: {kind}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}: {kind}");
                assert!(lines.peek().is_some_and(|line| line.starts_with(name)), "{name} has no sample");
                family = (name.to_owned(), kind.to_owned());
                continue;
            }
            assert!(!line.starts_with('#'), "{line}");
            let end = line.find(['{', ' ']).expect("a name");
            let suffix = line[..end].strip_prefix(&family.0).unwrap_or_else(|| panic!("{line} is not of {family:?}"));
            let allowed: &[&str] = if family.1 == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(allowed.contains(&suffix), "{line} of {family:?}");
            let (_, value) = line.rsplit_once(' ').expect("a value");
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
        assert!(text.ends_with('\n') && text.contains("# TYPE nomad_haproxy_build_info gauge\n"), "{text}");
        assert!(text.contains("nomad_haproxy_registration_to_ready_seconds_count{haproxy=\"edge\"} 1\n"), "{text}");
    }
}
