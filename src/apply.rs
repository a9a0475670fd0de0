//! One pass, from top to bottom: look, plan, take out the instances that are gone, write, repair. It always ends with a
//! [`PassStatus`], whatever failed and whatever was done before that.
//!
//! A pass starts another round when its input has changed: another client wrote, HAProxy could not load the change
//! (what needs no reload continues without it), or the process took only part of a live change.

mod arrivals;
mod culprit;
mod draft;
mod dry_run;
mod guard;
mod leaving;
mod look;
mod maps;
mod memory;
mod refusal;
mod repair;
mod status;
mod write;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use crate::catalog::shared::SharedCatalog;
use crate::desired::build;
use crate::errors::chain;
use crate::fleet::Names;
use crate::leader::Lease;
use crate::plan::display::Summary;
use crate::plan::review::{Permit, Review};
use crate::plan::{self, Action, Changes, Conflict, Waiting};
use crate::plane::{Plane, StateChange, WriteError};
use arrivals::Arrivals;
pub use draft::Draft;
pub use dry_run::DryRun;
use leaving::Found;
use look::Seen;
use maps::When;
use memory::Memory;
use status::Seated;
pub use status::{BackendSeats, Outcome, PassError, PassStatus, Seats, Slots, Stage, StageTimes};

/// How many rounds one pass may take.
const ROUNDS: usize = 4;
/// Servers that are taken out in parallel.
const CONCURRENCY: usize = 8;

/// What a pass needs to know about the time at which it runs.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// The clock for retries and intervals.
    pub instant: Instant,
    /// Since 1970, for times that are written into the file: the ends of drains, and when slots were freed.
    pub clock: Duration,
    /// Whether to compare the running process with its file, whatever is remembered about it.
    pub everything: bool,
    /// The catalog must not have been read before this.
    pub catalog_since: tokio::time::Instant,
    /// Nor must it have been read in full before this; otherwise only what has changed is read.
    pub catalog_full_since: Option<tokio::time::Instant>,
}

impl Moment {
    /// Now, with a catalog of now.
    pub fn now(everything: bool) -> Self {
        Self::with_catalog_since(everything, tokio::time::Instant::now())
    }

    /// Now, with a catalog that was read then or later.
    pub fn with_catalog_since(everything: bool, catalog_since: tokio::time::Instant) -> Self {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { instant: Instant::now(), clock, everything, catalog_since, catalog_full_since: None }
    }

    /// Converts a time since 1970 into an instant that can be waited for.
    fn instant_of(&self, clock: Duration) -> Instant {
        self.instant + clock.saturating_sub(self.clock)
    }
}

/// How a controller plans and writes.
#[derive(Debug, Clone)]
pub struct Options {
    /// For the desired state. Whether HAProxy knows `init-state` is read from HAProxy.
    pub build: build::Options,
    /// For the plan. The time is the pass's own.
    pub plan: plan::Options,
    /// For the guard.
    pub guard: plan::guard::Options,
    /// The minimum time between two reloads.
    pub reload_min_interval: Duration,
}

/// Runs passes on one HAProxy.
#[derive(Debug)]
pub struct Controller {
    plane: Arc<dyn Plane>,
    source: SharedCatalog,
    options: Options,
    memory: Memory,
    guard: guard::Guard,
    arrivals: Arrivals,
    /// Who sat where at the end of the last pass.
    seated: Seated,
    /// What the running pass has found; `None`: nothing yet, or the guard has something to say about who leaves.
    found: watch::Sender<Option<Found>>,
    /// Its HAProxy's name, and those of all.
    name: String,
    names: Names,
    /// The right to write. Its plane asks it right before each write; here it says what a pass is for.
    lease: Lease,
    /// Whether the last pass was a leader's.
    led: bool,
}

/// How a round ended.
enum Round {
    Done,
    /// The input has changed: another round.
    Again(WriteError),
    /// The search for what HAProxy cannot load is running; it takes as many rounds as there are backends to halve.
    Search,
}

/// How one draft ended.
enum Attempt {
    /// The round ends with it.
    Ended(Round),
    /// HAProxy refuses a part of it, which is left out of the next one.
    Refused(WriteError),
}

impl Controller {
    /// Sets one up; nothing is sent yet.
    pub fn new(plane: Arc<dyn Plane>, source: SharedCatalog, options: Options) -> Self {
        let guard = guard::Guard::new(options.guard);
        let (memory, arrivals) = (Memory::default(), Arrivals::default());
        let names = watch::Sender::default().subscribe();
        let (seated, name) = (Seated::default(), String::new());
        let (lease, led, found) = (Lease::ALWAYS, true, watch::Sender::default());
        Self { plane, source, options, memory, guard, arrivals, seated, found, name, names, lease, led }
    }

    /// Names the HAProxy among others, for services that choose between them.
    #[must_use]
    pub fn named(self, name: String, names: Names) -> Self {
        Self { name, names, ..self }
    }

    /// Has it write for as long as this is good; its plane must have the same.
    #[must_use]
    pub fn leased(self, lease: Lease) -> Self {
        Self { lease, ..self }
    }

    /// The right to write.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// For a plan that was reviewed: a backend that was to stay when the plan was made still stays.
    #[must_use]
    pub fn lingering_since(mut self, review: &Review) -> Self {
        let plan = &mut self.options.plan;
        if !plan.linger.is_zero() {
            plan.linger = plan.linger.saturating_add(review.age(plan.now));
        }
        self
    }

    /// The connection to its HAProxy.
    pub fn plane(&self) -> Arc<dyn Plane> {
        self.plane.clone()
    }

    /// Lets go of what the guard holds now. Returns how many instances that is.
    pub fn release(&mut self) -> usize {
        self.guard.release()
    }

    /// Has HAProxy load its configuration again.
    pub async fn reload(&mut self) -> Result<(), PassError> {
        self.memory.forget_process();
        self.plane.recover().await?;
        self.load().await
    }

    /// Runs one pass. With `review`, only if it does what was reviewed. A standby reads and plans, and writes nothing.
    pub async fn pass(&mut self, moment: Moment, review: Option<&Review>) -> PassStatus {
        let mut status = PassStatus::default();
        status.enter(Stage::Observe);
        let leads = self.lease.leads();
        if leads && !std::mem::replace(&mut self.led, leads) {
            // The leader before may have been interrupted in the middle of a write.
            self.memory.ended(false);
        }
        self.led = leads;
        let result = match leads {
            true => self.rounds(moment, review, &mut status).await,
            false => self.stand_by(moment, &mut status).await,
        };
        status.leave();
        match result {
            // The lock was lost in the middle; what is not done yet is the next leader's.
            Err(error) if error.is_not_leading() => status.is_standby = true,
            Err(error) => status.error = Some(error),
            // A reload failed, and the pass continued without the changes that need one.
            Ok(()) if status.error.is_some() => status.stage = Stage::Apply,
            Ok(()) => {}
        }
        status.notes.extend(self.memory.notes());
        status.notes.sort();
        status.notes.dedup();
        if let Some(summary) = status.written.last_mut() {
            summary.notes.clone_from(&status.notes);
        }
        for at in self.memory.next_retry().into_iter().chain(self.guard.next_retry()) {
            status.wake_at(at);
        }
        if status.is_standby {
            // A standby has nothing to do at a certain time, and makes nothing ready.
            (status.next, status.became_ready) = (None, Vec::new());
        }
        if status.index > 0 || status.error.is_none() {
            self.guard.announce(status.guard.as_ref(), &status.namespaces);
        }
        self.memory.ended(status.error.is_none() && !status.is_standby);
        if status.file.is_some() {
            self.seated = Seated { file: status.file, seats: status.seats.clone() };
        }
        status
    }

    async fn rounds(
        &mut self,
        moment: Moment,
        review: Option<&Review>,
        status: &mut PassStatus,
    ) -> Result<(), PassError> {
        if review.is_some() {
            // Find out what HAProxy refuses before anything is done: the review left it out, too.
            self.dry_run(moment).await?;
        }
        let owner = self.options.plan.owner.clone();
        let mut permit = review.map(|review| Permit::new(review, &owner));
        let asked = Instant::now();
        let mut info = self.plane.info().await?;
        (status.response_time, status.haproxy) = (Some(asked.elapsed()), Some(info.clone()));
        self.memory.saw_process(info.pid, moment.everything);
        let mut reading = None;
        if let Err(error) = self.find_capabilities(&info).await {
            let seen = self.look(info, moment, &mut reading, status).await?;
            self.take_out_gone(&seen, status).await;
            status.stage = Stage::Observe;
            return Err(error.into());
        }
        if !self.memory.is_clean() {
            self.plane.recover().await?;
            if self.memory.owes_reload() {
                // It may have paid.
                info = self.plane.info().await?;
                self.memory.saw_process(info.pid, moment.everything);
            }
        }
        let mut rounds = 0;
        loop {
            let seen = self.look(info.clone(), moment, &mut reading, status).await?;
            match self.round(seen, permit.as_mut(), status).await? {
                Round::Done => return Ok(()),
                Round::Search => {}
                // The next round would do something else.
                Round::Again(why @ WriteError::ReloadFailed { .. }) if permit.is_some() => return Err(why.into()),
                Round::Again(last) if rounds + 1 == ROUNDS => {
                    return Err(PassError::Unsettled { rounds: ROUNDS, last: Box::new(last) });
                }
                Round::Again(why) => {
                    rounds += 1;
                    if let WriteError::HalfLive { .. } = why {
                        // What was reviewed is in the file: the rest is repair.
                        permit = None;
                    }
                    tracing::warn!(error = %chain(&why), "the pass starts over");
                }
            }
        }
    }

    async fn round(
        &mut self,
        mut seen: Seen,
        mut permit: Option<&mut Permit<'_>>,
        status: &mut PassStatus,
    ) -> Result<Round, PassError> {
        loop {
            status.enter(Stage::Plan);
            let draft = match self.draft(&seen, status) {
                Ok(draft) => draft,
                Err(conflict) => {
                    self.take_out_gone(&seen, status).await;
                    return Err(conflict.into());
                }
            };
            if let Some(permit) = &mut permit {
                permit.check(&draft.plan, &seen.observed)?;
            }
            status.enter(Stage::Apply);
            status.notes.clone_from(&draft.notes);
            status.kept.clone_from(&draft.kept);
            let attempt = self.attempt(&seen, &draft, permit.is_some(), status).await;
            status.pending = match &attempt {
                Ok(Attempt::Ended(_)) => self.waiting(&seen, &draft),
                Ok(Attempt::Refused(_)) => None,
                Err(_) if draft.plan.is_empty() => None,
                Err(_) => Some(draft.summary(&seen.observed, &draft.after.text)),
            };
            match attempt? {
                Attempt::Ended(Round::Done) if let Some(error) = seen.maps_error => return Err(error.into()),
                Attempt::Ended(round) => return Ok(round),
                Attempt::Refused(error) => self.leave_out(&seen, &draft, error).await?,
            }
            if !draft.plan.routes.maps.is_empty() {
                // Some were written before the refusal.
                let (observed, maps_error) = self.look_at_maps(seen.observed, false).await;
                seen = Seen { observed, maps_error, ..seen };
            }
        }
    }

    /// Carries out one draft: who is gone first, then the write, then what the process needs besides.
    async fn attempt(
        &mut self,
        seen: &Seen,
        draft: &Draft,
        is_reviewed: bool,
        status: &mut PassStatus,
    ) -> Result<Attempt, PassError> {
        let mut changes = Changes::new(&seen.process, &seen.observed, &draft.after, &seen.growth);
        let late = changes.handed_over(&seen.process, &draft.after);
        let (surplus, reloads) = (std::mem::take(&mut changes.surplus), status.reloads);
        let all_out = self.set_states(&changes.out, status).await;
        if !draft.plan.writes_text() {
            let all_out = self.set_states(&late, status).await && all_out;
            let maps = self.write_only_maps(seen, draft, status).await;
            let ended = self.repair(seen, changes, all_out, status).await.map(Attempt::Ended)?;
            if status.reloads == reloads {
                self.remove(surplus, seen, status).await;
            }
            return Ok(maps?.map_or(ended, Attempt::Ended));
        }
        match self.survey(&seen.observed).await {
            Ok(None) => {}
            Ok(Some(moved)) => return Ok(Attempt::Ended(Round::Again(moved))),
            Err(error) => {
                self.set_states(&late, status).await;
                return Err(error);
            }
        }
        let leave = late
            .iter()
            .map(|StateChange { backend, server, state }| Action::State(backend.clone(), server.clone(), *state));
        changes.rest.extend(leave);
        let first = self.write_maps(seen, draft, When::First, status).await;
        if !draft.plan.routes.rules.is_empty()
            && let Err(error) = first
            && !matches!(error, WriteError::NotLive(_))
        {
            self.set_states(&late, status).await;
            return self.not_written(seen, draft, error, is_reviewed, status).await;
        }
        if let Err(error) = self.write(seen, draft, &changes, status).await {
            self.set_states(&late, status).await;
            return self.not_written(seen, draft, error, is_reviewed, status).await;
        }
        // What was due for a retry is now in effect, unless it still waits for its reload.
        if draft.waiting.is_empty() {
            self.memory.taken(seen.moment.instant);
        }
        let settled = self.settle(seen, all_out, status).await?;
        let maps = self.write_last_maps(seen, draft, status).await;
        // A process that was started by a reload has only what the file has.
        if status.reloads == reloads {
            self.remove(surplus, seen, status).await;
        }
        let settled = maps?.unwrap_or(settled);
        Ok(Attempt::Ended(if self.memory.is_searching() { Round::Search } else { settled }))
    }

    /// What follows from a write that was not done as planned.
    async fn not_written(
        &mut self,
        seen: &Seen,
        draft: &Draft,
        error: WriteError,
        is_reviewed: bool,
        status: &mut PassStatus,
    ) -> Result<Attempt, PassError> {
        Ok(Attempt::Ended(match error {
            WriteError::Invalid { .. } | WriteError::TooLong { .. } => return Ok(Attempt::Refused(error)),
            // Parts of the plan differ from what was reviewed.
            WriteError::ReloadFailed { message } if is_reviewed => {
                Round::Again(self.not_loaded(seen, draft.plan.waiting(), message, status))
            }
            WriteError::ReloadFailed { message } => self.search(seen, draft.plan.waiting(), message, status).await?,
            WriteError::Conflict(_) | WriteError::HalfLive { .. } => {
                self.memory.forget_process();
                Round::Again(error)
            }
            // The time that it takes is recorded in the status.
            WriteError::NotLive(_) => Round::Done,
            WriteError::Access(_) | WriteError::Distorted(_) => return Err(error.into()),
        }))
    }

    /// The plan for now: without what HAProxy refuses, and without what needs a reload if none may be made.
    fn draft(&mut self, seen: &Seen, status: &mut PassStatus) -> Result<Draft, Conflict> {
        let Seen { moment, observed, built, holding, .. } = seen;
        let options = self.plan_options(*moment);
        let mut draft = Draft::new(built, observed, &options, &self.memory.left_out(moment.instant))?;
        while self.memory.is_searching() && draft.plan.is_live() {
            // What could not be loaded is no longer wanted.
            self.memory.group_is_done();
            draft = Draft::new(built, observed, &options, &self.memory.left_out(moment.instant))?;
        }
        draft.guard.clone_from(holding);
        for kept in &mut draft.kept {
            if let Some(message) = self.memory.refusal(&kept.backend) {
                kept.refused(message);
            }
        }
        let waiting = draft.plan.waiting();
        let waits = if waiting.is_empty() { None } else { self.reload_waits(&waiting, seen) };
        if waits.is_some() {
            draft = draft.without_reload(built, observed, &options);
        }
        let drains = observed.next_drain().map(Duration::from_secs);
        for at in draft.next.into_iter().chain(drains).map(|clock| moment.instant_of(clock)).chain(waits) {
            status.wake_at(at);
        }
        Ok(draft)
    }

    /// For the plans of a pass.
    fn plan_options(&self, moment: Moment) -> plan::Options {
        plan::Options { now: moment.clock, ..self.options.plan.clone() }
    }

    /// What a draft leaves for a later pass.
    fn waiting(&self, seen: &Seen, draft: &Draft) -> Option<Summary> {
        if draft.waiting.is_empty() {
            return None;
        }
        let Seen { moment, built, .. } = seen;
        let options = self.plan_options(*moment);
        let rest = Draft::new(built, &draft.after, &options, &self.memory.left_out(moment.instant)).ok()?;
        Some(rest.summary(&draft.after, &rest.after.text))
    }

    /// Until when changes that need a reload wait, if they do.
    fn reload_waits(&mut self, waiting: &Waiting, seen: &Seen) -> Option<Instant> {
        let now = seen.moment.instant;
        if self.memory.is_unloadable(waiting, &seen.observed, now) {
            return self.memory.next_retry();
        }
        self.memory.reload_waits(self.options.reload_min_interval, now)
    }
}
