//! One pass: observe, read the catalog, plan, apply. It ends with a report or with the stage that failed,
//! never with half a plan in HAProxy.

mod audit;
mod culprit;
mod memory;

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use thiserror::Error;

use crate::catalog::file::FileError;
use crate::catalog::nomad::NomadCatalog;
use crate::catalog::{self, Catalog};
use crate::desired::build::{self, Built};
use crate::desired::{BackendName, Note, ServiceKey};
use crate::nomad::NomadError;
use crate::observed::{Observed, Owner};
use crate::plan::display::Summary;
use crate::plan::{self, Conflict, Plan};
use crate::plane::{Committed, Plane, PlaneError, chain};
use memory::{Failed, Memory, Refusal};

/// How often one pass starts anew when somebody else wrote in the meantime, or a repair is due.
const ATTEMPTS: usize = 4;

/// Where the catalog comes from.
#[derive(Debug, Clone)]
pub enum Source {
    /// From Nomad.
    Nomad(NomadCatalog),
    /// From a file, read anew by each pass.
    File(PathBuf),
}

/// Why there is no catalog.
#[derive(Debug, Error)]
pub enum SourceError {
    /// Nomad did not give it.
    #[error(transparent)]
    Nomad(#[from] NomadError),
    /// The file did not.
    #[error(transparent)]
    File(#[from] FileError),
}

impl Source {
    /// Reads the whole catalog; `served` are the namespaces that HAProxy serves.
    pub async fn read(&self, served: &BTreeSet<String>) -> Result<Catalog, SourceError> {
        match self {
            Self::Nomad(nomad) => Ok(nomad.read(served).await?),
            Self::File(path) => Ok(catalog::file::read(path)?),
        }
    }
}

/// A stage of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Asking HAProxy which it is, clearing up, and reading its configuration.
    Observe,
    /// Reading the catalog.
    Catalog,
    /// Computing the difference.
    Plan,
    /// Writing it.
    Apply,
}

impl Stage {
    /// For logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Catalog => "catalog",
            Self::Plan => "plan",
            Self::Apply => "apply",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a pass changed nothing, or not all.
#[derive(Debug, Error)]
pub enum PassError {
    /// HAProxy, or the way to it.
    #[error("{stage} failed; HAProxy keeps what it has")]
    Plane {
        /// At which stage.
        stage: Stage,
        #[source]
        /// What went wrong.
        source: PlaneError,
    },
    /// The catalog.
    #[error("the catalog cannot be read; HAProxy keeps what it has")]
    Catalog(#[source] SourceError),
    /// A name is taken (`fail_on_conflict`).
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The configuration is refused as it is, without any change of ours.
    #[error("HAProxy refuses its own configuration file as it stands, so nothing can be changed: {0}")]
    Broken(String),
    /// The version moved since `plan` (`--expect-version`).
    #[error("the configuration is at version {found}, not {expected}: somebody changed it since the plan was made")]
    Moved {
        /// What was asked for.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// Others wrote each time.
    #[error("others wrote the configuration {ATTEMPTS} times while this pass ran; it starts again later")]
    Contended,
}

impl PassError {
    /// The stage that failed.
    pub fn stage(&self) -> Stage {
        match self {
            Self::Plane { stage, .. } => *stage,
            Self::Catalog(_) => Stage::Catalog,
            Self::Conflict(_) => Stage::Plan,
            Self::Broken(_) | Self::Contended => Stage::Apply,
            Self::Moved { .. } => Stage::Observe,
        }
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn at(stage: Stage) -> impl Fn(PlaneError) -> PassError {
    move |source| PassError::Plane { stage, source }
}

/// What a pass did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing had to be done.
    Unchanged,
    /// The plan was applied.
    Applied(Committed),
    /// The running process was made to agree with its file.
    Repaired(Committed),
}

/// A pass that ended well.
#[derive(Debug)]
pub struct Report {
    /// What it did.
    pub outcome: Outcome,
    /// What there is to know about services, refused ones included.
    pub notes: Vec<Note>,
    /// The plan in brief, where there was one.
    pub summary: Option<Summary>,
    /// The catalog's index.
    pub index: u64,
    /// The version of the configuration now.
    pub version: u64,
    /// What is managed, for the metrics.
    pub counts: Counts,
    /// When a change that waits for `reload.min_interval` can be made; it needs another pass.
    pub deferred: Option<Instant>,
}

/// What HAProxy has of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Backends that are ours or hold servers of ours.
    pub backends: usize,
    /// Slots with an instance.
    pub seated: usize,
    /// Slots without.
    pub free: usize,
}

impl Counts {
    fn new(observed: &Observed) -> Self {
        let mut counts = Self::default();
        for (_, backend) in observed.managed() {
            counts.backends += 1;
            let seated = backend.servers.iter().filter(|server| server.is_enabled()).count();
            counts.seated += seated;
            counts.free += backend.servers.len() - seated;
        }
        counts
    }
}

/// What a controller does, however often.
#[derive(Debug)]
pub struct Controller<P> {
    plane: P,
    source: Source,
    build: build::Options,
    plan: plan::Options,
    reload_min_interval: Duration,
    memory: Memory,
}

/// What making HAProxy fit the catalog came to.
struct Converged {
    outcome: Outcome,
    notes: Vec<Note>,
    summary: Option<Summary>,
    deferred: Option<Instant>,
}

impl Converged {
    fn unchanged(notes: Vec<Note>) -> Self {
        Self { outcome: Outcome::Unchanged, notes, summary: None, deferred: None }
    }
}

impl<P: Plane> Controller<P> {
    /// Puts one together; nothing is sent yet.
    pub fn new(
        plane: P,
        source: Source,
        build: build::Options,
        plan: plan::Options,
        reload_min_interval: Duration,
    ) -> Self {
        Self { plane, source, build, plan, reload_min_interval, memory: Memory::default() }
    }

    /// The next pass takes nothing for granted: it compares the running process with the file, and tries
    /// what HAProxy refused, as the cause may lie outside (a name that did not resolve).
    pub fn resync_next(&mut self) {
        self.memory.audited = None;
        self.memory.refused.clear();
    }

    /// Plans, has HAProxy validate the plan, and drops it again.
    pub async fn dry_run(&mut self) -> Result<(Summary, u64), PassError> {
        let info = self.plane.info().await.map_err(at(Stage::Observe))?;
        self.build.init_state = info.version.has_init_state();
        let observed = self.observe().await?;
        let catalog = self.source.read(&observed.namespaces()).await.map_err(PassError::Catalog)?;
        let built = build::build(&catalog, &self.build);
        let (plan, notes) = self.plan(&built, &observed)?;
        if plan.is_empty() {
            return Ok((Summary::new(&plan, &observed, &observed.text, notes), observed.version));
        }
        let staged = self.plane.stage(&observed, &plan).await.map_err(at(Stage::Apply))?;
        let valid = self.plane.validate(&staged.text).await;
        let summary = Summary::new(&plan, &observed, &staged.text, notes);
        self.plane.abort(staged).await.map_err(at(Stage::Apply))?;
        match valid {
            Ok(()) => Ok((summary, observed.version)),
            Err(PlaneError::Invalid { message }) => {
                self.leave_out(&built, &observed, &plan, message).await?;
                Box::pin(self.dry_run()).await
            }
            Err(error) => Err(at(Stage::Apply)(error)),
        }
    }

    async fn observe(&self) -> Result<Observed, PassError> {
        self.plane.observe().await.map_err(at(Stage::Observe))
    }

    /// One pass. With `expect`, only on that version of the configuration.
    pub async fn pass(&mut self, expect: Option<u64>) -> Result<Report, PassError> {
        let result = self.attempts(expect).await;
        self.memory.clean = result.is_ok();
        if result.is_err() {
            self.memory.audited = None;
        }
        result
    }

    async fn attempts(&mut self, expect: Option<u64>) -> Result<Report, PassError> {
        let info = self.plane.info().await.map_err(at(Stage::Observe))?;
        self.build.init_state = info.version.has_init_state();
        // Another process may load what this one could not.
        self.memory.failed.take_if(|failed| failed.pid != Some(info.pid));
        if !self.memory.clean {
            self.plane.recover().await.map_err(at(Stage::Observe))?;
        }
        for _ in 0..ATTEMPTS {
            match self.attempt(info.pid, expect).await {
                Err(PassError::Plane { stage: Stage::Apply, source: error @ PlaneError::Conflict(_) }) => {
                    tracing::info!(error = %error, "reading anew");
                }
                Err(PassError::Plane { stage: Stage::Apply, source: error @ PlaneError::HalfLive { .. } }) => {
                    tracing::warn!(error = %error, "repairing");
                    self.memory.audited = None;
                }
                other => return other,
            }
        }
        Err(PassError::Contended)
    }

    async fn attempt(&mut self, pid: u64, expect: Option<u64>) -> Result<Report, PassError> {
        let observed = self.observe().await?;
        if let Some(expected) = expect.filter(|expected| *expected != observed.version) {
            return Err(PassError::Moved { expected, found: observed.version });
        }
        let catalog = self.source.read(&observed.namespaces()).await.map_err(PassError::Catalog)?;
        let built = build::build(&catalog, &self.build);
        self.memory.keep_refusals(&built.desired, &observed);
        let audited = self.memory.audited == Some(pid) && self.memory.version == Some(observed.version);
        let repair = if audited { Ok(None) } else { self.audit(&observed).await };
        let (repaired, unrepaired) = match repair {
            // The file cannot be loaded: what needs no reload goes on all the same.
            Err(error @ PassError::Plane { source: PlaneError::ReloadFailed { .. }, .. }) => (None, Some(error)),
            other => (other?, None),
        };
        let observed = match (&repaired, &unrepaired) {
            (None, None) => observed,
            // The file is as it was, at a version of its own; the plan is made for that.
            _ => self.observe().await?,
        };
        let mut converged = self.converge(&built, &observed).await?;
        if let Some(error) = unrepaired {
            let diff = converged.summary.as_ref().map_or("", |summary| summary.diff.as_str());
            tracing::info!(diff, "what needs no reload is applied");
            return Err(error);
        }
        if let (Some(committed), Outcome::Unchanged) = (repaired, &converged.outcome) {
            converged.outcome = Outcome::Repaired(committed);
        }
        let Converged { outcome, notes, summary, mut deferred } = converged;
        let observed = match outcome {
            Outcome::Unchanged | Outcome::Repaired(_) => observed,
            Outcome::Applied(_) => self.observe().await?,
        };
        self.memory.version = Some(observed.version);
        // What was written is written: a process that does not answer right now is looked at next time.
        self.memory.audited = match outcome {
            Outcome::Unchanged => Some(pid),
            _ => self.plane.info().await.ok().map(|info| info.pid),
        };
        let counts = Counts::new(&observed);
        // A drain that ends is a change that nobody wakes us for.
        let drained = observed.next_drain().map(|end| Instant::now() + Duration::from_secs(end.saturating_sub(now())));
        deferred = deferred.into_iter().chain(drained).min();
        Ok(Report { outcome, notes, summary, index: catalog.index, version: observed.version, counts, deferred })
    }

    /// Makes the running process agree with its file. `None`: it does.
    async fn audit(&self, observed: &Observed) -> Result<Option<Committed>, PassError> {
        let runtime = self.plane.runtime(observed).await.map_err(at(Stage::Observe))?;
        let repaired = match audit::compare(observed, &runtime) {
            audit::Finding::Agree => return Ok(None),
            audit::Finding::Live(actions) => {
                tracing::warn!(
                    servers = actions.len(),
                    "the process differs from its file; setting it right at run time"
                );
                self.plane.commit_live(observed, &observed.text, &actions).await
            }
            audit::Finding::Reload(why) => {
                tracing::warn!(why, "the process differs from its file; reloading");
                self.plane.reload(observed).await
            }
        };
        match repaired {
            Err(error @ (PlaneError::HalfLive { .. } | PlaneError::NotLive(_))) => {
                tracing::warn!(%error, "a run-time repair failed; reloading");
                let observed = self.observe().await?;
                self.plane.reload(&observed).await.map(Some).map_err(at(Stage::Apply))
            }
            other => other.map(Some).map_err(at(Stage::Apply)),
        }
    }

    /// After a reload that failed. The process may have been started with an older text than the file's,
    /// and what needs no reload is not to wait for what does.
    async fn not_loaded(&mut self, built: &Built, observed: &Observed, plan: Plan, message: &str) {
        let (_, plan) = plan.split();
        let services = plan.edits.keys().flat_map(|name| concerned(built, observed, name)).collect();
        let (foreign, message) = (observed.foreign(), message.to_owned());
        self.memory.failed = Some(Failed { plan, foreign, pid: None, services, message });
        if let Err(error) = self.settle(built).await {
            // The failed reload is what counts; the next pass looks again.
            tracing::warn!(error = %chain(&error), "could not settle after a reload that failed");
        }
    }

    async fn settle(&mut self, built: &Built) -> Result<(), PassError> {
        let observed = self.observe().await?;
        let repaired = self.audit(&observed).await?;
        let pid = self.plane.info().await.map_err(at(Stage::Observe))?.pid;
        if let Some(failed) = &mut self.memory.failed {
            failed.pid = Some(pid);
        }
        let observed = if repaired.is_some() { self.observe().await? } else { observed };
        let (plan, notes) = self.plan(built, &observed)?;
        if !plan.is_empty() && plan.live().is_some() {
            let (done, summary) = self.apply(&observed, &plan, &notes).await.map_err(at(Stage::Apply))?;
            tracing::info!(version = done.version, diff = summary.diff, "what needs no reload is applied");
        }
        Ok(())
    }

    fn plan(&mut self, built: &Built, observed: &Observed) -> Result<(Plan, Vec<Note>), PassError> {
        let excluded: BTreeSet<BackendName> = self.memory.refused.keys().cloned().collect();
        let options = plan::Options { now: now(), ..self.plan.clone() };
        let plan::Planned { mut plan, notes } = Plan::new(built, observed, &options, &excluded)?;
        let mut notes: Vec<Note> = built.notes.iter().cloned().chain(notes).chain(self.memory.refusals()).collect();
        if self.memory.failed.is_some() {
            let (live, structural) = plan.clone().split();
            self.memory.failed.take_if(|failed| !failed.is_again(&structural, observed));
            if let Some(failed) = &self.memory.failed {
                plan = live;
                notes.extend(failed.notes());
            }
        }
        notes.sort();
        notes.dedup();
        Ok((plan, notes))
    }

    /// Plans and applies, leaving out what HAProxy refuses, until nothing is left to do or to leave out.
    async fn converge(&mut self, built: &Built, observed: &Observed) -> Result<Converged, PassError> {
        loop {
            let (plan, notes) = self.plan(built, observed)?;
            if plan.is_empty() {
                return Ok(Converged::unchanged(notes));
            }
            let (plan, waits) = self.due(plan);
            if plan.is_empty() {
                return Ok(Converged { deferred: waits, ..Converged::unchanged(notes) });
            }
            match self.apply(observed, &plan, &notes).await {
                Ok((committed, summary)) => {
                    if committed.reloaded {
                        self.memory.reloaded = Some(Instant::now());
                        self.memory.failed = None;
                    }
                    let outcome = Outcome::Applied(committed);
                    return Ok(Converged { outcome, notes, summary: Some(summary), deferred: waits });
                }
                Err(PlaneError::Invalid { message }) => self.leave_out(built, observed, &plan, message).await?,
                Err(error) => {
                    if let PlaneError::ReloadFailed { message } = &error {
                        self.not_loaded(built, observed, plan, message).await;
                    }
                    return Err(at(Stage::Apply)(error));
                }
            }
        }
    }

    /// The part of a plan that can be made now, and when the rest can: not so soon after a reload.
    fn due(&self, plan: Plan) -> (Plan, Option<Instant>) {
        let next = self.memory.reloaded.map(|last| last + self.reload_min_interval);
        match next.filter(|next| *next > Instant::now() && plan.live().is_none()) {
            Some(next) => (plan.split().0, Some(next)),
            None => (plan, None),
        }
    }

    /// One plan, one write: live where HAProxy takes it so, else a transaction.
    async fn apply(
        &self,
        observed: &Observed,
        plan: &Plan,
        notes: &[Note],
    ) -> Result<(Committed, Summary), PlaneError> {
        if let Some(actions) = plan.live() {
            let text = plan::text::apply(plan, observed, &self.plan.mark);
            match self.plane.commit_live(observed, &text, &actions).await {
                Err(PlaneError::NotLive(why)) => tracing::info!(why, "reloading instead of a live change"),
                other => return other.map(|done| (done, Summary::new(plan, observed, &text, notes.to_vec()))),
            }
        }
        let staged = self.plane.stage(observed, plan).await?;
        let summary = Summary::new(plan, observed, &staged.text, notes.to_vec());
        Ok((self.plane.commit(observed, staged).await?, summary))
    }

    /// Finds the backend that HAProxy refuses and leaves it out of this pass, and of later ones as long
    /// as it is asked for in the same way.
    async fn leave_out(
        &mut self,
        built: &Built,
        observed: &Observed,
        plan: &Plan,
        message: String,
    ) -> Result<(), PassError> {
        let found =
            culprit::find(&self.plane, observed, plan, &self.plan.mark, &message).await.map_err(at(Stage::Apply))?;
        let Some((name, message)) = found else { return Err(PassError::Broken(message)) };
        let wanted = built.desired.backends.get(&name).cloned();
        let services = concerned(built, observed, &name);
        tracing::debug!(backend = %name, message, "HAProxy refuses a backend; the others go on");
        let refusal = Refusal { wanted, foreign: observed.foreign(), services, message: message.clone() };
        if self.memory.refused.insert(name, refusal).is_some() {
            // It was left out already, and what is left of it is refused as well.
            return Err(PassError::Broken(message));
        }
        Ok(())
    }
}

/// The services that a backend is, or was, made for.
fn concerned(built: &Built, observed: &Observed, name: &BackendName) -> BTreeSet<ServiceKey> {
    match (built.desired.backends.get(name), observed.backend(name).map(|backend| &backend.owner)) {
        (Some(backend), _) => backend.services.clone(),
        (None, Some(Owner::Ours(services))) => services.clone(),
        (None, _) => BTreeSet::new(),
    }
}
