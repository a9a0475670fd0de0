//! The state of the whole controller, as one value. Each loop publishes its part when a pass begins and ends; readiness,
//! metrics, the HTTP API and the page are views of it. Looking at it causes no read of HAProxy or Nomad, so it is as
//! old as the last pass: at most `reconcile.resync_interval`, if nothing woke the loop before.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use thiserror::Error;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::apply::{Outcome, PassError, PassStatus, Seats, Stage};
use crate::breaker;
use crate::catalog::{Catalog, Reads, SourceError};
use crate::desired::{NamespaceNote, Note, Routes};
use crate::errors::one_line;
use crate::health;
use crate::leader::{Leadership, NotLeading};
use crate::plan::display::Summary;
use crate::plan::guard::Holding;
use crate::plane::{AccessError, HaproxyInfo};
use crate::reconcile::Wake;
use crate::sample::{Rate, Sample};

/// How many passes are remembered, of those that did something or failed.
pub const HISTORY: usize = 20;
/// How much of a diff is remembered, in bytes: the first pass over a large catalog writes megabytes.
pub const DIFF_LIMIT: usize = 64 * 1024;

/// The state of the controller.
#[derive(Debug, Clone)]
pub struct Status {
    /// It grows with each change.
    pub revision: u64,
    /// When the controller started.
    pub started: SystemTime,
    /// Whether it is unknown which HAProxys there are: the registrations of `haproxy.service` have not been read yet.
    pub is_searching: bool,
    /// Whether this controller leads; `None`: there is no election, and it does.
    pub leadership: Option<Leadership>,
    /// The catalog that all share.
    pub catalog: CatalogStatus,
    /// Each HAProxy, by name.
    pub targets: BTreeMap<String, Arc<TargetStatus>>,
}

/// What is known of the catalog.
#[derive(Debug, Clone, Default)]
pub struct CatalogStatus {
    /// Whether Nomad gave the last answer that it was asked for. `None`: it was not asked, as with a catalog file.
    pub nomad_up: Option<bool>,
    /// Whether Nomad's events are followed. `None`: there are none, as with a catalog file.
    pub has_events: Option<bool>,
    /// How often it was read, and why.
    pub reads: Reads,
    /// When it was last brought up to date.
    pub read: Option<SystemTime>,
    /// What was read then.
    pub newest: Option<Arc<Catalog>>,
    /// Why the last read failed, if it did.
    pub error: Option<String>,
}

/// The state of one HAProxy.
#[derive(Debug, Clone, Default)]
pub struct TargetStatus {
    /// Whether the loop is alive, and HAProxy in line.
    pub health: health::State,
    /// The HAProxy that answered the last pass that had an answer.
    pub haproxy: Option<HaproxyInfo>,
    /// Whether it answered the last pass; `None`: none asked it yet.
    pub answers: Option<bool>,
    /// The version of its configuration when it was last read.
    pub version: u64,
    /// Who sits where.
    pub seats: Arc<Seats>,
    /// The routes of ours.
    pub routes: Arc<Routes>,
    /// Notes about services.
    pub notes: Arc<Vec<Note>>,
    /// Notes about whole namespaces.
    pub namespaces: Arc<Vec<NamespaceNote>>,
    /// What the guard holds.
    pub guard: Option<Holding>,
    /// What the last pass left undone.
    pub pending: Option<Arc<Summary>>,
    /// The last pass.
    pub last: Option<Arc<PassRecord>>,
    /// The last passes that did something or failed, the newest first.
    pub history: VecDeque<Arc<PassRecord>>,
    /// Its circuit breaker; `None` before the loop runs.
    pub breaker: Option<breaker::Snapshot>,
    /// Recoveries that were asked for.
    pub recoveries: u64,
    /// When HAProxy was last seen in line with the catalog.
    pub converged: Option<SystemTime>,
    /// The last sample of its statistics.
    pub sample: Option<Arc<Sample>>,
    /// Its requests per second, by the totals of the passes.
    pub request_rate: Rate,
    /// Its errors per second, by the samples.
    pub error_rate: Rate,
    /// The last sign of life that it was asked for, by a pass or a probe.
    pub sign_of_life: Option<SignOfLife>,
    /// What HAProxy last said of its configuration when it validated the file as it was.
    pub verdict: Option<FileVerdict>,
    /// The file as it was last read: [`FileVerdict::file`].
    pub file: Option<u64>,
}

/// What came of asking HAProxy, by a pass or a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignOfLife {
    /// When that was.
    pub at: SystemTime,
    /// Whether HAProxy answered, and goes on answering.
    pub has_answered: bool,
    /// Whether the Data Plane API answered, or on the local plane HAProxy's master.
    pub is_connected: bool,
    /// Whether HAProxy runs; `None`: that is unknown, as the API did not answer.
    pub is_running: Option<bool>,
    /// How long the answer took; `None`: there was none.
    pub took: Option<Duration>,
}

impl SignOfLife {
    /// Now, by its answer.
    pub fn new(error: Option<&AccessError>, took: Option<Duration>) -> Self {
        let (is_connected, is_running) = match error {
            // Nothing was sent: HAProxy answered before.
            None | Some(AccessError::Version(_) | AccessError::NotLeading(_)) => (true, Some(true)),
            Some(AccessError::NotRunning { is_connected, .. }) => (*is_connected, Some(false)),
            Some(AccessError::Unavailable { .. } | AccessError::Refused { .. }) => (false, None),
        };
        Self { at: SystemTime::now(), has_answered: error.is_none(), is_connected, is_running, took }
    }
}

/// What HAProxy said of one text of its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileVerdict {
    /// Which text ([`ConfigText::fingerprint`](crate::haproxy::text::ConfigText::fingerprint)).
    pub file: u64,
    /// Whether it accepted it.
    pub is_valid: bool,
}

/// One pass, as it is remembered.
#[derive(Debug, Clone)]
pub struct PassRecord {
    /// When it ended.
    pub ended: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// What woke it.
    pub reason: Wake,
    /// Its result.
    pub outcome: Outcome,
    /// The last stage that it reached.
    pub stage: Stage,
    /// Why it failed, without HAProxy's own message.
    pub error: Option<String>,
    /// What was written, each diff cut at [`DIFF_LIMIT`].
    pub written: Vec<Summary>,
    /// Run-time changes that were made without a write.
    pub run_time_changes: usize,
    /// Reloads that HAProxy made.
    pub reloads: u32,
    /// Reloads that failed.
    pub failed_reloads: u32,
    /// The version of the configuration at its end.
    pub version: u64,
    /// The catalog's index; 0 before it was read.
    pub index: u64,
}

/// A request names a HAProxy that does not exist.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("no HAProxy is called {asked:?}; there are: {}", .names.join(", "))]
pub struct UnknownName {
    /// The requested name.
    pub asked: String,
    /// The existing ones.
    pub names: Vec<String>,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            revision: 0,
            started: SystemTime::now(),
            is_searching: false,
            leadership: None,
            catalog: CatalogStatus::default(),
            targets: BTreeMap::new(),
        }
    }
}

impl Status {
    /// Whether this controller writes; `Some`: why not.
    pub fn not_leading(&self) -> Option<NotLeading> {
        self.leadership.as_ref().and_then(NotLeading::of)
    }

    /// The HAProxys, or the one of this name.
    pub fn chosen(&self, only: Option<&str>) -> Result<Vec<(&str, &TargetStatus)>, UnknownName> {
        if let Some(asked) = only.filter(|name| !self.targets.contains_key(*name)) {
            return Err(UnknownName { asked: asked.to_owned(), names: self.targets.keys().cloned().collect() });
        }
        let chosen = self.targets.iter().filter(|(name, _)| only.is_none_or(|only| only == *name));
        Ok(chosen.map(|(name, target)| (name.as_str(), target.as_ref())).collect())
    }

    /// Whether all loops are alive.
    pub fn is_live(&self, now: Instant) -> bool {
        self.targets.values().all(|target| target.health.is_live(now))
    }
}

impl CatalogStatus {
    fn passed(&mut self, status: &PassStatus) {
        if let Some(read) = status.catalog_read.filter(|read| self.read.is_none_or(|known| known <= *read)) {
            (self.read, self.newest, self.error) = (Some(read), status.catalog.clone(), None);
        }
        if let Some(error @ PassError::Catalog(cause)) = &status.error {
            self.error = Some(one_line(&error.outline()));
            if let SourceError::Nomad(_) = **cause {
                self.nomad_up = Some(false);
            }
        }
    }
}

impl TargetStatus {
    /// Whether HAProxy accepts its configuration file as it is now. `None`: it has not validated this text.
    pub fn is_valid(&self) -> Option<bool> {
        self.verdict.filter(|verdict| Some(verdict.file) == self.file).map(|verdict| verdict.is_valid)
    }

    /// What a pass that failed did not find out keeps its value.
    fn passed(&mut self, status: &PassStatus, record: PassRecord) {
        self.health.ended(status, Instant::now());
        if let Some(haproxy) = &status.haproxy {
            if let Some(requests) = haproxy.traffic.requests_total {
                self.request_rate.saw(Instant::now(), haproxy.pid, requests);
            }
            self.haproxy = Some(haproxy.clone());
        }
        self.sign_of_life = Some(SignOfLife::new(status.access_error(), status.response_time));
        self.answers = answers(status).or(self.answers);
        self.file = status.file.or(self.file);
        if let (Some(file), Some(is_valid)) = (self.file, status.verdict()) {
            self.verdict = Some(FileVerdict { file, is_valid });
        }
        if status.has_observed() {
            (self.version, self.seats, self.routes) = (status.version, status.seats.clone(), status.routes.clone());
        }
        if status.notes_are_complete() {
            self.notes = Arc::new(status.notes.clone());
        }
        if status.index > 0 || status.error.is_none() {
            (self.guard, self.namespaces) = (status.guard.clone(), Arc::new(status.namespaces.clone()));
        }
        if status.is_in_line() {
            self.converged = Some(record.ended);
        }
        self.pending = status.pending.clone().map(Arc::new);
        let record = Arc::new(record);
        if !matches!(record.outcome, Outcome::Unchanged | Outcome::Standby) {
            self.history.push_front(record.clone());
            self.history.truncate(HISTORY);
        }
        self.last = Some(record);
    }
}

/// Whether HAProxy, or its API, answered. `None`: it was not asked, or it is unknown.
fn answers(status: &PassStatus) -> Option<bool> {
    match status.access_error() {
        Some(_) => Some(false),
        None => status.has_observed().then_some(true),
    }
}

impl PassRecord {
    fn new(status: &PassStatus, took: Duration, reason: Wake) -> Self {
        let PassStatus { stage, written, run_time_changes, reloads, failed_reloads, version, index, error, .. } =
            status;
        let cut = |summary: &Summary| Summary { diff: cut(&summary.diff), notes: Vec::new(), ..summary.clone() };
        Self {
            ended: SystemTime::now(),
            took,
            reason,
            outcome: status.outcome(),
            stage: *stage,
            error: error.as_ref().map(|error| one_line(&error.outline())),
            written: written.iter().map(cut).collect(),
            run_time_changes: *run_time_changes,
            reloads: *reloads,
            failed_reloads: *failed_reloads,
            version: *version,
            index: *index,
        }
    }
}

/// The beginning of a diff, in whole lines.
fn cut(diff: &str) -> String {
    if diff.len() <= DIFF_LIMIT {
        return diff.to_owned();
    }
    let mut head = String::new();
    for line in diff.split_inclusive('\n') {
        if head.len() + line.len() > DIFF_LIMIT {
            break;
        }
        head += line;
    }
    let more = diff.lines().count() - head.lines().count();
    format!("{head}… {more} more lines\n")
}

/// Where the [`Status`] is published.
#[derive(Debug, Default)]
pub struct Board(watch::Sender<Status>);

impl Board {
    /// The state as it is now. Cheap: what is large in it is shared.
    pub fn read(&self) -> Status {
        self.0.borrow().clone()
    }

    /// The state, now and whenever it changes.
    pub fn subscribe(&self) -> watch::Receiver<Status> {
        self.0.subscribe()
    }

    /// Changes the state.
    fn update(&self, change: impl FnOnce(&mut Status)) {
        self.0.send_modify(|status| {
            status.revision += 1;
            change(status);
        });
    }

    /// Changes the state of one HAProxy. One that is no longer registered has none.
    pub fn update_target(&self, name: &str, change: impl FnOnce(&mut TargetStatus)) {
        self.update(|status| {
            if let Some(target) = status.targets.get_mut(name) {
                change(Arc::make_mut(target));
            }
        });
    }

    /// Adds a HAProxy, before its first pass.
    pub fn add(&self, name: &str) {
        self.update(|status| drop(status.targets.insert(name.to_owned(), Arc::default())));
    }

    /// Removes a HAProxy that is no longer registered.
    pub fn forget(&self, name: &str) {
        self.update(|status| drop(status.targets.remove(name)));
    }

    /// Whether it is unknown which HAProxys there are.
    pub fn set_searching(&self, is_searching: bool) {
        self.update(|status| status.is_searching = is_searching);
    }

    /// Follows an election, until it is stopped.
    pub async fn follow(self: Arc<Self>, mut election: watch::Receiver<Leadership>, stop: CancellationToken) {
        loop {
            let now = election.borrow_and_update().clone();
            self.update(|status| status.leadership = Some(now));
            if !matches!(stop.run_until_cancelled(election.changed()).await, Some(Ok(()))) {
                return;
            }
        }
    }

    /// Whether Nomad gave an answer.
    pub fn nomad_answered(&self, did: bool) {
        self.update(|status| status.catalog.nomad_up = Some(did));
    }

    /// Whether Nomad's events are followed, and how often the catalog was read.
    pub fn watches(&self, has_events: bool, reads: Reads) {
        self.update(|status| (status.catalog.has_events, status.catalog.reads) = (Some(has_events), reads));
    }

    /// A pass begins.
    pub fn began(&self, name: &str) {
        self.update_target(name, |target| target.health.began(Instant::now()));
    }

    /// A pass has ended; `reason` is what woke it.
    pub fn passed(&self, name: &str, pass: &PassStatus, took: Duration, reason: Wake) {
        let record = PassRecord::new(pass, took, reason);
        self.update(|status| {
            status.catalog.passed(pass);
            if let Some(target) = status.targets.get_mut(name) {
                Arc::make_mut(target).passed(pass, record);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::{Code, ServiceKey, Severity};

    fn failed(stage: Stage) -> PassStatus {
        let error = Some(PassError::Broken("parsing [haproxy.cfg:3]: 's3cr3t'".into()));
        PassStatus { stage, error, ..PassStatus::default() }
    }

    fn note() -> Note {
        let service = ServiceKey { namespace: "default".into(), name: "api".into() };
        Note { severity: Severity::Error, service, code: Code::BadName, text: "not routed".into() }
    }

    fn target(board: &Board) -> TargetStatus {
        board.read().chosen(Some("edge")).expect("it is there")[0].1.clone()
    }

    #[test]
    fn a_pass_that_failed_forgets_nothing() {
        let board = Board::default();
        board.add("edge");
        let good = PassStatus { notes: vec![note()], version: 7, index: 3, ..PassStatus::default() };
        board.passed("edge", &good, Duration::ZERO, Wake::Started);
        board.passed("edge", &failed(Stage::Observe), Duration::ZERO, Wake::Retry);
        let now = target(&board);
        assert_eq!((now.notes.len(), now.version), (1, 7));
        assert_eq!(now.last.as_ref().map(|pass| pass.outcome), Some(Outcome::Failed));
        let error = now.last.and_then(|pass| pass.error.clone()).expect("it failed");
        assert!(!error.contains("s3cr3t"), "{error}");
    }

    #[test]
    fn passes_without_anything_to_do_push_no_other_out() {
        let board = Board::default();
        board.add("edge");
        board.passed("edge", &failed(Stage::Observe), Duration::ZERO, Wake::Started);
        for _ in 0..2 * HISTORY {
            board.passed("edge", &PassStatus::default(), Duration::ZERO, Wake::Resync);
        }
        assert_eq!(target(&board).history.len(), 1);
        for _ in 0..2 * HISTORY {
            board.passed("edge", &failed(Stage::Plan), Duration::ZERO, Wake::Retry);
        }
        let now = target(&board);
        assert_eq!((now.history.len(), now.history[0].stage), (HISTORY, Stage::Plan));
    }

    #[test]
    fn a_long_diff_is_cut_at_a_line() {
        let line = format!("+{}\n", "ü".repeat(49));
        let diff = line.repeat(2 * DIFF_LIMIT / line.len());
        let head = cut(&diff);
        assert!(head.len() < DIFF_LIMIT + 40, "{}", head.len());
        let (body, last) = head.trim_end().rsplit_once('\n').expect("lines");
        assert!(body.lines().all(|one| one == line.trim_end()));
        assert_eq!(last, format!("… {} more lines", diff.lines().count() - body.lines().count()));
        assert_eq!(cut("+a\n"), "+a\n");
    }

    #[test]
    fn an_older_read_of_a_slower_pass_replaces_no_newer_one() {
        let board = Board::default();
        for name in ["edge", "slow"] {
            board.add(name);
        }
        let start = SystemTime::now();
        let read = |index, seconds| PassStatus {
            index,
            catalog_read: Some(start + Duration::from_secs(seconds)),
            catalog: Some(Arc::new(Catalog { index, ..Catalog::default() })),
            ..PassStatus::default()
        };
        board.passed("edge", &read(9, 9), Duration::ZERO, Wake::Catalog);
        board.passed("slow", &read(5, 5), Duration::ZERO, Wake::Catalog);
        assert_eq!(board.read().catalog.newest.map(|catalog| catalog.index), Some(9));
    }

    #[test]
    fn a_name_that_does_not_exist_is_an_error_that_lists_those_that_do() {
        let board = Board::default();
        for name in ["a", "b"] {
            board.add(name);
        }
        let status = board.read();
        assert_eq!(status.chosen(None).map(|all| all.len()), Ok(2));
        let error = status.chosen(Some("c")).expect_err("there is none").to_string();
        assert_eq!(error, "no HAProxy is called \"c\"; there are: a, b");
    }
}
