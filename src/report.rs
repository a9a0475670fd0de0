//! What is logged about passes: a line for what changed, one for a problem when it appears and one when it is resolved,
//! and for an outage its beginning, its end, and reminders at growing intervals.
//!
//! Pure except for the log itself: the time comes from the caller, and nothing here waits.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::apply::{Outcome, PassError, PassStatus};
use crate::desired::{Code, Note, Severity};
use crate::errors::{chain, kind, one_line};
use crate::plan::display::Summary;
use crate::plan::servers::ServerAction;

/// From the first failure of an outage to the first reminder; each further one comes after twice the time.
const FIRST_REMINDER: Duration = Duration::from_secs(30);
/// The longest time between two reminders: an outage of a day is about a hundred lines.
const LAST_REMINDER: Duration = Duration::from_secs(15 * 60);
/// Causes of one outage that get their own line. The limit is for causes that differ each time.
const CAUSES: usize = 8;
/// Services that a line names.
const NAMED: usize = 5;
/// Problems that one pass logs one by one. The limit is for a first pass over a large catalog with one mistake in all
/// its jobs.
const PROBLEMS: usize = 50;
/// Lines of a diff that are logged.
const DIFF_LINES: usize = 40;
/// Characters of a name, and of a problem that was logged before: both come from outside.
const NAME: usize = 100;

/// Consecutive failures, of any cause.
#[derive(Debug, Default)]
pub struct Outage(Option<Ongoing>);

#[derive(Debug)]
struct Ongoing {
    since: Instant,
    failures: u64,
    causes: BTreeSet<String>,
    interval: Duration,
    reminder: Instant,
}

/// How to report a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It is the first of its kind in this outage.
    New,
    /// It is known, and was last reported long ago.
    Reminder(Extent),
    /// It is known.
    Known,
}

/// How large an outage is, or was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// How many failures it has.
    pub failures: u64,
    /// From the first of them to now.
    pub lasted: Duration,
}

impl Extent {
    /// Whole seconds, for a field of the log.
    pub fn seconds(self) -> u64 {
        self.lasted.as_secs()
    }
}

impl Outage {
    /// Records a failure of this kind.
    pub fn failed(&mut self, cause: &str, now: Instant) -> Failure {
        let ongoing = self.0.get_or_insert_with(|| Ongoing {
            since: now,
            failures: 0,
            causes: BTreeSet::new(),
            interval: FIRST_REMINDER,
            reminder: now + FIRST_REMINDER,
        });
        ongoing.failures += 1;
        if ongoing.causes.len() < CAUSES && ongoing.causes.insert(cause.to_owned()) {
            return Failure::New;
        }
        if now < ongoing.reminder {
            return Failure::Known;
        }
        ongoing.interval = (ongoing.interval * 2).min(LAST_REMINDER);
        ongoing.reminder = now + ongoing.interval;
        Failure::Reminder(ongoing.extent(now))
    }

    /// Records a success; `Some`: an outage is over.
    pub fn over(&mut self, now: Instant) -> Option<Extent> {
        self.0.take().map(|ongoing| ongoing.extent(now))
    }
}

impl Ongoing {
    fn extent(&self, now: Instant) -> Extent {
        Extent { failures: self.failures, lasted: now.saturating_duration_since(self.since) }
    }
}

/// The notes that were logged, and for which HAProxys: a bad tag is bad on each of them, and is logged once.
#[derive(Debug, Clone, Default)]
pub struct Notes(Arc<Mutex<BTreeMap<Note, BTreeSet<String>>>>);

impl Notes {
    /// Replaces the notes of one HAProxy; returns those that no other had before, and those that none has any more.
    fn replace(&self, name: &str, notes: &[Note]) -> (Vec<Note>, Vec<Note>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let notes: BTreeSet<&Note> = notes.iter().collect();
        let new = notes.iter().filter(|note| !known.contains_key(**note)).map(|note| (*note).clone()).collect();
        for note in &notes {
            known.entry((*note).clone()).or_default().insert(name.to_owned());
        }
        let mut gone = Vec::new();
        known.retain(|note, names| {
            if !notes.contains(note) && names.remove(name) && names.is_empty() {
                gone.push(note.clone());
            }
            !names.is_empty()
        });
        (new, gone)
    }

    /// Drops a HAProxy that is no longer registered. That resolves nothing.
    pub fn forget(&self, name: &str) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, names| !names.remove(name) || !names.is_empty());
    }
}

/// Logs the results of one HAProxy's passes. It remembers what it has logged.
#[derive(Debug, Default)]
pub struct Reporter {
    name: String,
    notes: Notes,
    outage: Outage,
}

impl Reporter {
    /// For the HAProxy of this name.
    pub fn new(name: &str, notes: Notes) -> Self {
        Self { name: name.to_owned(), notes, outage: Outage::default() }
    }

    /// Logs one pass.
    pub fn pass(&mut self, status: &PassStatus, took: Duration, now: Instant) {
        changes(status, took);
        if status.notes_are_complete() {
            self.notes(&status.notes);
        }
        match &status.error {
            Some(error) => self.failed(status, error, now),
            None => {
                if let Some(extent) = self.outage.over(now) {
                    let (failed, outage_s) = (extent.failures, extent.seconds());
                    tracing::info!(failed, outage_s, "passes succeed again");
                }
            }
        }
    }

    fn failed(&mut self, status: &PassStatus, error: &PassError, now: Instant) {
        let (stage, result) = (status.stage.as_str(), status.done());
        let (kind, error) = (format!("{stage} {}", kind(error)), one_line(&chain(error)));
        match self.outage.failed(&kind, now) {
            Failure::New => tracing::error!(stage, result, %error, "the pass failed"),
            Failure::Reminder(extent) => {
                let (failed, outage_s) = (extent.failures, extent.seconds());
                tracing::error!(stage, result, failed, outage_s, %error, "passes still fail");
            }
            Failure::Known => tracing::debug!(stage, result, %error, "the pass failed as before"),
        }
    }

    fn notes(&mut self, notes: &[Note]) {
        let (new, gone) = self.notes.replace(&self.name, notes);
        for Note { severity, service, code, text } in new.iter().take(PROBLEMS) {
            let (service, code, note) = (shortened(service), word(*code), one_line(text));
            match severity {
                Severity::Error => tracing::error!(%service, code, %note, "problem with a service"),
                Severity::Warning => tracing::warn!(%service, code, %note, "problem with a service"),
                Severity::Info => tracing::info!(%service, code, %note, "note about a service"),
            }
        }
        for Note { severity: _, service, code, text } in gone.iter().take(PROBLEMS) {
            let (service, code, note) = (shortened(service), word(*code), shortened(&one_line(text)));
            tracing::info!(%service, code, %note, "problem resolved");
        }
        for (notes, what) in [(new, "new"), (gone, "resolved")] {
            if let Some(more) = notes.len().checked_sub(PROBLEMS).filter(|more| *more > 0) {
                tracing::warn!(more, what, "more problems than are logged one by one; `nomad-haproxy plan` prints all");
            }
        }
    }
}

/// What a pass changed, whatever its result.
fn changes(status: &PassStatus, took: Duration) {
    let PassStatus { version, index, reloads, run_time_changes, written, .. } = status;
    let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    if !written.is_empty() {
        let Totals { services, added, removed, changed } = Totals::new(written);
        tracing::info!(services, added, removed, changed, reloads, took_ms, version, index, "applied");
        for summary in written {
            tracing::debug!(diff = %head(&summary.diff), "configuration written");
        }
    } else if *run_time_changes > 0 || *reloads > 0 {
        let message = match status.outcome() {
            Outcome::Failed => "servers set in the running process only",
            Outcome::Unchanged | Outcome::Applied | Outcome::Repaired | Outcome::Standby => {
                "running process brought in line with its file"
            }
        };
        tracing::info!(run_time_changes, reloads, took_ms, version, "{message}");
    } else if status.error.is_none() {
        tracing::debug!(took_ms, version, index, "nothing to do");
    }
}

/// The writes of one pass, summed up.
struct Totals {
    services: String,
    added: usize,
    removed: usize,
    changed: usize,
}

impl Totals {
    fn new(written: &[Summary]) -> Self {
        let mut by_name: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        let mut all = Self { services: String::new(), added: 0, removed: 0, changed: 0 };
        for backend in written.iter().flat_map(|summary| &summary.backends) {
            all.added += backend.instances_added;
            all.removed += backend.instances_removed;
            all.changed += backend.servers_changed;
            let instances = backend.servers.iter().filter_map(|server| Some((server.service.as_ref()?, server.action)));
            let mut named = false;
            for (service, action) in instances {
                let (added, removed) = by_name.entry(service.to_string()).or_default();
                *added += usize::from(action == ServerAction::In);
                *removed += usize::from(action == ServerAction::Out);
                named = true;
            }
            // No instance comes or goes: its settings change, or it is deleted.
            if !named {
                by_name.entry(backend.name.to_string()).or_default();
            }
        }
        let one = |(name, (added, removed)): (&String, &(usize, usize))| {
            let mut text = shortened(name);
            for (sign, count) in [('+', added), ('-', removed)] {
                if *count > 0 {
                    text += &format!(" {sign}{count}");
                }
            }
            text
        };
        all.services = by_name.iter().take(NAMED).map(one).collect::<Vec<_>>().join(", ");
        if let Some(more) = by_name.len().checked_sub(NAMED).filter(|more| *more > 0) {
            all.services += &format!(" and {more} more");
        }
        all
    }
}

/// The beginning of a diff.
fn head(diff: &str) -> String {
    let lines = diff.lines().count();
    if lines <= DIFF_LINES {
        return diff.trim_end().to_owned();
    }
    let head: String = diff.split_inclusive('\n').take(DIFF_LINES).collect();
    format!("{head}… {} more lines", lines - DIFF_LINES)
}

fn shortened(name: &impl fmt::Display) -> String {
    let name = name.to_string();
    match name.char_indices().nth(NAME) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name,
    }
}

/// The word for it in JSON.
fn word(code: Code) -> String {
    match serde_json::to_value(code) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::Stage;
    use crate::desired::ServiceKey;
    use crate::plan::display::BackendSummary;
    use crate::plan::servers::ServerSummary;
    use std::io;
    use tracing_subscriber::fmt::MakeWriter;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Sink {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    /// The lines that this logs, without the time.
    fn logged(level: tracing::Level, log: impl FnOnce()) -> Vec<String> {
        let sink = Sink::default();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(level)
            .with_writer(sink.clone())
            .with_ansi(false)
            .with_target(false)
            .without_time();
        tracing::subscriber::with_default(subscriber.finish(), log);
        let bytes = sink.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        String::from_utf8_lossy(&bytes).lines().map(|line| line.trim().to_owned()).collect()
    }

    fn key(name: &str) -> ServiceKey {
        ServiceKey { namespace: "default".into(), name: name.into() }
    }

    fn note(severity: Severity, service: &str, text: &str) -> Note {
        Note { severity, service: key(service), code: Code::BadTag, text: text.into() }
    }

    fn summary(backends: Vec<BackendSummary>, diff: String) -> Summary {
        Summary {
            routes: Vec::new(),
            frontends: Vec::new(),
            changes: true,
            live: true,
            backends,
            notes: Vec::new(),
            namespaces: Vec::new(),
            guard: None,
            rerendered_lines: 0,
            surplus: 0,
            reload: Vec::new(),
            blocked: None,
            diff,
        }
    }

    fn backend(service: &str, added: usize, removed: usize) -> BackendSummary {
        let server = |action| ServerSummary {
            name: "a_1".parse().expect("a name"),
            action,
            address: None,
            port: None,
            instance: None,
            allocation: None,
            service: Some(key(service)),
        };
        let servers = [(ServerAction::In, added), (ServerAction::Out, removed)];
        BackendSummary {
            name: service.parse().expect("a name"),
            action: "servers",
            instances_added: added,
            instances_removed: removed,
            servers_changed: 0,
            servers: servers.iter().flat_map(|(action, n)| vec![server(*action); *n]).collect(),
        }
    }

    fn broken(stage: Stage) -> PassStatus {
        PassStatus { stage, error: Some(PassError::Broken("line 3\nline 4".into())), ..PassStatus::default() }
    }

    #[test]
    fn a_pass_that_changed_something_is_one_line() {
        let backends = (1..=8).map(|n| backend(&format!("s{n}"), n % 3, n % 2)).collect();
        let status =
            PassStatus { written: vec![summary(backends, "-a\n+b\n".into())], version: 7, ..PassStatus::default() };
        let log =
            |level| logged(level, || Reporter::default().pass(&status, Duration::from_millis(42), Instant::now()));
        let line = "INFO applied services=\"s1 +1 -1, s2 +2, s3 -1, s4 +1, s5 +2 -1 and 3 more\" added=9 removed=4 changed=0 \
                    reloads=0 took_ms=42 version=7 index=0";
        assert_eq!(log(tracing::Level::INFO), [line]);
        assert_eq!(log(tracing::Level::DEBUG)[1..], ["DEBUG configuration written diff=-a", "+b"]);
    }

    #[test]
    fn several_writes_of_one_pass_are_added_up() {
        let written = vec![
            summary(vec![backend("api", 1, 2)], String::new()),
            summary(vec![backend("api", 2, 0), backend("web", 0, 0)], String::new()),
        ];
        let status = PassStatus { written, ..broken(Stage::Apply) };
        let lines = logged(tracing::Level::INFO, || Reporter::default().pass(&status, Duration::ZERO, Instant::now()));
        assert!(lines[0].starts_with("INFO applied services=\"api +3 -2, web\" added=3 removed=2 "), "{lines:#?}");
        assert!(
            lines[1].starts_with("ERROR the pass failed stage=\"apply\" result=\"done before that: 2 writes"),
            "{lines:#?}"
        );
        assert_eq!(lines.len(), 2, "an error is one line: {lines:#?}");
    }

    #[test]
    fn a_long_diff_is_cut() {
        let diff = (0..1000).map(|n| format!("+{n}")).collect::<Vec<_>>().join("\n");
        let head = head(&diff);
        assert_eq!(head.lines().count(), 41);
        assert!(head.ends_with("+39\n… 960 more lines"), "{head}");
    }

    #[test]
    fn notes_are_logged_when_they_come_and_when_they_go() {
        let (bad, worse) = (note(Severity::Warning, "a", "bad\ntag"), note(Severity::Error, "b", "not routed"));
        let mut reporter = Reporter::default();
        let mut pass = |status: PassStatus| {
            logged(tracing::Level::INFO, || reporter.pass(&status, Duration::ZERO, Instant::now()))
        };
        let with =
            |notes: &[&Note]| PassStatus { notes: notes.iter().copied().cloned().collect(), ..PassStatus::default() };
        let first = "WARN problem with a service service=a code=\"bad-tag\" note=bad tag";
        assert_eq!(pass(with(&[&bad])), [first]);
        assert_eq!(pass(with(&[&bad])), [""; 0]);
        let second = "ERROR problem with a service service=b code=\"bad-tag\" note=not routed";
        assert_eq!(pass(with(&[&bad, &worse])), [second]);
        // A pass that did not get that far knows nothing about them.
        assert_eq!(pass(broken(Stage::Catalog)).len(), 1);
        assert_eq!(
            pass(with(&[&worse])),
            [
                "INFO problem resolved service=a code=\"bad-tag\" note=bad tag",
                "INFO passes succeed again failed=1 outage_s=0",
            ]
        );
    }

    #[test]
    fn what_several_haproxys_have_in_common_is_logged_once() {
        let notes = Notes::default();
        let mut reporters = ["a", "b", "c"].map(|name| Reporter::new(name, notes.clone()));
        let bad = note(Severity::Warning, "s", "bad");
        let mut pass = |at: usize, notes: &[&Note]| {
            let status = PassStatus { notes: notes.iter().copied().cloned().collect(), ..PassStatus::default() };
            logged(tracing::Level::INFO, || reporters[at].pass(&status, Duration::ZERO, Instant::now())).len()
        };
        assert_eq!([pass(0, &[&bad]), pass(1, &[&bad]), pass(2, &[&bad])], [1, 0, 0]);
        notes.forget("c");
        assert_eq!([pass(0, &[]), pass(1, &[])], [0, 1], "resolved when the last one says so");
    }

    #[test]
    fn a_mistake_in_every_job_is_not_logged_for_each() {
        let notes = (0..300).map(|n| note(Severity::Warning, &format!("s{n}"), "bad")).collect();
        let status = PassStatus { notes, ..PassStatus::default() };
        let lines = logged(tracing::Level::INFO, || Reporter::default().pass(&status, Duration::ZERO, Instant::now()));
        assert_eq!(lines.len(), 51);
        assert!(lines[50].contains("more=250"), "{}", lines[50]);
    }

    #[test]
    fn an_outage_of_an_hour_is_a_handful_of_lines() {
        let mut reporter = Reporter::default();
        let lines = {
            let start = Instant::now();
            logged(tracing::Level::INFO, || {
                for second in (0..3600).step_by(5) {
                    // Its causes alternate, as they do while something starts.
                    let stage = if second % 2 == 0 { Stage::Observe } else { Stage::Catalog };
                    reporter.pass(&broken(stage), Duration::ZERO, start + Duration::from_secs(second));
                }
                reporter.pass(&PassStatus::default(), Duration::ZERO, start + Duration::from_secs(3600));
            })
        };
        let count = |message: &str| lines.iter().filter(|line| line.contains(message)).count();
        assert_eq!((count("the pass failed"), count("passes succeed again failed=720 outage_s=3600")), (2, 1));
        // After 30 s, 1, 2, 4 and 8 minutes more, then every 15.
        assert_eq!(count("passes still fail"), 7, "{lines:#?}");
    }

    #[test]
    fn causes_that_differ_each_time_are_bounded() {
        let (mut outage, start) = (Outage::default(), Instant::now());
        let new = (0..1000).filter(|n| outage.failed(&format!("cause {n}"), start) == Failure::New).count();
        assert_eq!(new, CAUSES);
        assert_eq!(outage.over(start).map(|extent| extent.failures), Some(1000));
        assert_eq!(outage.over(start), None);
        assert_eq!(outage.failed("cause 1", start), Failure::New, "the next one begins from the start");
    }
}
