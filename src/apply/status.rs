//! The result of a pass. It is always complete: an error removes nothing from it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use thiserror::Error;

use crate::catalog::{Catalog, SourceError};
use crate::desired::{BackendName, NamespaceNote, Note, Occupant, Routes, Server, ServiceKey};
use crate::errors::chain;
use crate::observed::{Observed, ObservedBackend, Ownership};
use crate::plan::display::Summary;
use crate::plan::guard::Holding;
use crate::plan::review::Difference;
use crate::plan::{Conflict, Kept};
use crate::plane::{AccessError, HaproxyInfo, Harm, WriteError};

/// The stages of a pass, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Stage {
    /// Asking HAProxy for its version, cleaning up, and reading its configuration and process.
    #[default]
    Observe,
    /// Reading the catalog.
    Catalog,
    /// Computing the difference.
    Plan,
    /// Taking out the instances that are gone, and writing the plan.
    Apply,
    /// Making the process agree with its file.
    Repair,
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Observe, Self::Catalog, Self::Plan, Self::Apply, Self::Repair];

    /// For logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Catalog => "catalog",
            Self::Plan => "plan",
            Self::Apply => "apply",
            Self::Repair => "repair",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How long each stage of a pass took, all rounds together. A stage that the pass did not reach is not in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StageTimes {
    ended: BTreeMap<Stage, Duration>,
    running: Option<(Stage, Instant)>,
}

impl StageTimes {
    /// A stage begins, and the one before ends; `None`: the pass ends.
    fn turn(&mut self, next: Option<Stage>, now: Instant) {
        let before = std::mem::replace(&mut self.running, next.map(|stage| (stage, now)));
        if let Some((stage, since)) = before {
            *self.ended.entry(stage).or_default() += now.saturating_duration_since(since);
        }
    }

    /// The stages that have ended, in their order.
    pub fn iter(&self) -> impl Iterator<Item = (Stage, Duration)> + '_ {
        self.ended.iter().map(|(stage, took)| (*stage, *took))
    }
}

/// Why a pass did not do everything that it should.
#[derive(Debug, Error)]
pub enum PassError {
    /// HAProxy, or the connection to it, gave no answer.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// HAProxy did not take a write.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The catalog.
    #[error("the catalog cannot be read")]
    Catalog(#[from] Arc<SourceError>),
    /// A name is taken (`fail_on_conflict`).
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The configuration is refused even without any change of ours.
    #[error("HAProxy refuses its own configuration file as it stands, so it is not written: {0}")]
    Broken(String),
    /// A write would harm what is not ours.
    #[error(transparent)]
    Harm(#[from] Harm),
    /// It is not what was reviewed (`apply --plan`): nothing was written.
    #[error(transparent)]
    Reviewed(#[from] Difference),
    /// The configuration kept changing.
    #[error("HAProxy was not in line after {rounds} attempts")]
    Unsettled {
        /// How many rounds there were.
        rounds: usize,
        /// The result of the last one.
        #[source]
        last: Box<WriteError>,
    },
}

impl PassError {
    /// Whether a write was not made as this controller does not lead.
    pub fn is_not_leading(&self) -> bool {
        matches!(
            self,
            Self::Access(AccessError::NotLeading(_)) | Self::Write(WriteError::Access(AccessError::NotLeading(_)))
        )
    }

    /// The error for readers without credentials: without HAProxy's message, which may quote any line of its file.
    pub fn outline(&self) -> String {
        let write = |error: &WriteError| match error {
            WriteError::Access(_) | WriteError::NotLive(_) | WriteError::TooLong { .. } => chain(error),
            WriteError::Conflict(_) => "the configuration changed during the pass".to_owned(),
            WriteError::Invalid { .. } => "HAProxy refuses the configuration; its reason is in the log".to_owned(),
            WriteError::ReloadFailed { .. } => {
                "HAProxy could not load the configuration; its reason is in the log".to_owned()
            }
            WriteError::HalfLive { .. } => {
                "HAProxy did not take a run-time change; its reason is in the log".to_owned()
            }
            WriteError::Distorted(_) => {
                "the Data Plane API would not write what was planned; the log says what".to_owned()
            }
        };
        match self {
            Self::Broken(_) => {
                "HAProxy refuses its own configuration file as it stands; its reason is in the log".to_owned()
            }
            Self::Write(error) => write(error),
            Self::Unsettled { last, .. } => format!("{self}: {}", write(last)),
            other => chain(other),
        }
    }
}

/// How many slots of ours there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Slots {
    /// Those with an instance.
    pub seated: usize,
    /// Those without.
    pub free: usize,
}

/// One backend, as the configuration has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendSeats {
    /// Whether the backend is ours; in one that is not, only servers are.
    pub is_ours: bool,
    /// The services that it was made for, if it is ours.
    pub services: Vec<ServiceKey>,
    /// `http` or `tcp`.
    pub mode: String,
    /// The servers of ours: who sits where.
    pub servers: Vec<Server>,
}

impl BackendSeats {
    /// How many of its servers have an instance.
    pub fn slots(&self) -> Slots {
        let seated = self.servers.iter().filter(|server| server.is_enabled()).count();
        Slots { seated, free: self.servers.len() - seated }
    }
}

/// What HAProxy has of ours: the backends that are ours or hold servers of ours.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seats {
    /// By name.
    pub backends: BTreeMap<BackendName, BackendSeats>,
    /// The backends that rules of a person send requests to, each with the frontends; an expression stands for those
    /// that it may give.
    pub by_hand: BTreeMap<String, BTreeSet<String>>,
}

impl Seats {
    pub(super) fn new(observed: &Observed) -> Self {
        let seats = |backend: &ObservedBackend| BackendSeats {
            is_ours: backend.ownership != Ownership::Foreign,
            services: backend.ownership.services().to_vec(),
            mode: backend.mode.clone(),
            servers: backend.servers.clone(),
        };
        Self {
            backends: observed.managed().map(|(name, backend)| (name, seats(backend))).collect(),
            by_hand: observed.by_hand(),
        }
    }

    /// The occupants of all servers.
    pub fn occupants(&self) -> impl Iterator<Item = &Occupant> {
        self.backends.values().flat_map(|backend| &backend.servers).map(|server| &server.occupant)
    }

    /// The namespaces of the services.
    pub fn namespaces(&self) -> BTreeSet<String> {
        let seated = self.occupants().filter_map(Occupant::service);
        let services = self.backends.values().flat_map(|backend| &backend.services).chain(seated);
        services.map(|service| service.namespace.clone()).collect()
    }

    /// The slots of all backends.
    pub fn slots(&self) -> Slots {
        let sum = |sum: Slots, one: Slots| Slots { seated: sum.seated + one.seated, free: sum.free + one.free };
        self.backends.values().map(BackendSeats::slots).fold(Slots::default(), sum)
    }
}

/// The seats of one text.
#[derive(Debug, Clone, Default)]
pub(super) struct Seated {
    /// Its fingerprint; `None`: no text was read yet.
    pub(super) file: Option<u64>,
    pub(super) seats: Arc<Seats>,
}

/// The result of a pass, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// There was nothing to do.
    Unchanged,
    /// A plan was applied.
    Applied,
    /// Only the process was made to agree with its file.
    Repaired,
    /// Another controller leads, so it read, planned and wrote nothing.
    Standby,
    /// It ended with an error, whatever it did before.
    Failed,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Unchanged, Self::Applied, Self::Repaired, Self::Standby, Self::Failed];

    /// For metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unchanged => "unchanged",
            Self::Applied => "applied",
            Self::Repaired => "repaired",
            Self::Standby => "standby",
            Self::Failed => "failed",
        }
    }
}

/// The result of one pass.
#[derive(Debug, Default)]
pub struct PassStatus {
    /// The last stage that it reached; with an error, the one that failed.
    pub stage: Stage,
    /// How long each stage took.
    pub times: StageTimes,
    /// A summary of each plan that was written.
    pub written: Vec<Summary>,
    /// Run-time changes that were made without a write: instances that are gone, and repairs.
    pub run_time_changes: usize,
    /// Reloads that HAProxy made.
    pub reloads: u32,
    /// Reloads that failed.
    pub failed_reloads: u32,
    /// Notes about services, including what HAProxy refused. Sorted, without duplicates.
    pub notes: Vec<Note>,
    /// Notes about whole namespaces, by name.
    pub namespaces: Vec<NamespaceNote>,
    /// What `uninstall` does not remove.
    pub kept: Vec<Kept>,
    /// What the guard holds.
    pub guard: Option<Holding>,
    /// The catalog's index; 0 before it was read.
    pub index: u64,
    /// When the catalog was read; `None`: it was not.
    pub catalog_read: Option<SystemTime>,
    /// For each instance that this pass was the first to see ready in HAProxy: the time since the controller first read
    /// its registration.
    pub became_ready: Vec<Duration>,
    /// The version of the configuration when it was last read.
    pub version: u64,
    /// What HAProxy has of ours.
    pub seats: Arc<Seats>,
    /// The routes of ours.
    pub routes: Arc<Routes>,
    /// The text of the configuration when it was last read ([`fingerprint`](crate::haproxy::text::ConfigText::fingerprint)); `None`: it was not.
    pub file: Option<u64>,
    /// How long HAProxy took to say which it is; `None`: it did not.
    pub response_time: Option<Duration>,
    /// Which HAProxy answered; `None`: none did.
    pub haproxy: Option<HaproxyInfo>,
    /// The catalog that was read.
    pub catalog: Option<Arc<Catalog>>,
    /// What it would still have to do: a plan that was not written, or the part of it that waits.
    pub pending: Option<Summary>,
    /// When the next pass is due although nothing changes: a change that waits for `reload.min_interval`, a drain that
    /// ends, a retry of a refused change.
    pub next: Option<Instant>,
    /// This controller did not lead, or no longer: what is to do is not for it.
    pub is_standby: bool,
    /// Why it did not do everything that it should.
    pub error: Option<PassError>,
}

impl PassStatus {
    /// What it did.
    pub fn outcome(&self) -> Outcome {
        let Self { written, run_time_changes, reloads, is_standby, error, .. } = self;
        match (error, written.is_empty()) {
            (Some(_), _) => Outcome::Failed,
            (None, false) => Outcome::Applied,
            (None, true) if *run_time_changes > 0 || *reloads > 0 => Outcome::Repaired,
            (None, true) if *is_standby => Outcome::Standby,
            (None, true) => Outcome::Unchanged,
        }
    }

    /// What was done despite the error, for the log line that reports it.
    pub fn done(&self) -> String {
        let Self { written, run_time_changes, reloads, .. } = self;
        if written.is_empty() && *run_time_changes == 0 && *reloads == 0 {
            return "HAProxy keeps what it has".to_owned();
        }
        let count = |n: usize, what: &str| if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") };
        let (writes, changes) = (count(written.len(), "write"), count(*run_time_changes, "run-time change"));
        let reloads = count(usize::try_from(*reloads).unwrap_or(usize::MAX), "reload");
        format!("done before that: {writes}, {changes}, {reloads}")
    }

    /// Whether HAProxy was found, or brought, in line with the catalog.
    pub fn is_in_line(&self) -> bool {
        let is_left_to_another = self.is_standby && self.pending.is_some();
        self.error.is_none() && !is_left_to_another
    }

    /// Why it failed, if HAProxy or its API gave no answer, or the HAProxy is too old.
    pub fn access_error(&self) -> Option<&AccessError> {
        match &self.error {
            Some(PassError::Access(error) | PassError::Write(WriteError::Access(error))) => Some(error),
            _ => None,
        }
    }

    /// Whether it failed without an answer of HAProxy, or of its API.
    pub fn is_unanswered(&self) -> bool {
        self.access_error().is_some_and(|error| !matches!(error, AccessError::Version(_)))
    }

    /// Whether HAProxy's configuration was read.
    pub fn has_observed(&self) -> bool {
        self.error.is_none() || self.stage > Stage::Observe || self.version > 0
    }

    /// Whether the notes are complete. A pass that failed before its plan was made has only those that are remembered.
    pub fn notes_are_complete(&self) -> bool {
        self.error.is_none() || self.stage >= Stage::Apply
    }

    /// A stage begins.
    pub(super) fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.times.turn(Some(stage), Instant::now());
    }

    /// The pass ends, in whatever stage it is.
    pub(super) fn leave(&mut self) {
        self.times.turn(None, Instant::now());
    }

    /// The configuration was read.
    ///
    /// `known` are the seats of a text that was read before: those of thousands of servers are not copied again while
    /// nothing changes.
    pub(super) fn saw(&mut self, observed: &Observed, known: &Seated) {
        let file = Some(observed.text.fingerprint());
        if file == known.file {
            self.seats = known.seats.clone();
        } else if file != self.file {
            self.seats = Arc::new(Seats::new(observed));
        }
        (self.version, self.file) = (observed.version, file);
    }

    /// What HAProxy said of the file as it is now: it has validated what was written last, or refused the file as it
    /// stands. `None`: it was not asked.
    pub fn verdict(&self) -> Option<bool> {
        match &self.error {
            Some(PassError::Broken(_)) => Some(false),
            Some(_) => None,
            None => (!self.written.is_empty()).then_some(true),
        }
    }

    pub(super) fn wake_at(&mut self, at: Instant) {
        self.next = self.next.into_iter().chain([at]).min();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_that_comes_again_adds_up() {
        let (mut times, start) = (StageTimes::default(), Instant::now());
        let turns = [(0, Some(Stage::Observe)), (10, Some(Stage::Apply)), (13, Some(Stage::Observe)), (20, None)];
        for (ms, next) in turns {
            times.turn(next, start + Duration::from_millis(ms));
        }
        let expected = [(Stage::Observe, Duration::from_millis(17)), (Stage::Apply, Duration::from_millis(3))];
        assert_eq!(times.iter().collect::<Vec<_>>(), expected, "and the stages that were not reached are not there");
    }
}
