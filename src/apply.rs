//! One pass, from top to bottom: look, plan, take out the instances that are gone, write, repair. It always ends with a
//! [`PassStatus`], whatever failed and whatever was done before that.
//!
//! A pass starts another round when its input has changed: another client wrote, HAProxy could not load the change
//! (what needs no reload continues without it), or the process took only part of a live change.

mod arrivals;
mod culprit;
mod draft;
mod guard;
mod leaving;
mod maps;
mod memory;
mod refusal;
mod repair;
mod status;
mod write;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use crate::catalog::shared::{Reading, SharedCatalog};
use crate::desired::build::{self, Built, TargetNames};
use crate::desired::{BackendName, InstanceId, Occupant, ServiceKey};
use crate::errors::chain;
use crate::fleet::Names;
use crate::leader::Lease;
use crate::observed::Observed;
use crate::plan::display::Summary;
use crate::plan::guard::Holding;
use crate::plan::review::{Permit, Review};
use crate::plan::{self, Action, Changes, Conflict, Growth, Kept, Part, Waiting};
use crate::plane::{AccessError, Capabilities, HaproxyInfo, Plane, Runtime, StateChange, Verdict, WriteError};
use arrivals::Arrivals;
pub use draft::Draft;
use leaving::Found;
use maps::When;
use memory::{Memory, Process};
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

/// What a pass would do.
#[derive(Debug)]
pub struct DryRun {
    /// For people and programs to read.
    pub summary: Summary,
    /// The configuration version that it was computed from.
    pub version: u64,
    /// For [`Controller::pass`], once it has been reviewed.
    pub review: Review,
    /// What `uninstall` does not remove.
    pub kept: Vec<Kept>,
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

/// The input of one round.
struct Seen {
    info: HaproxyInfo,
    moment: Moment,
    observed: Observed,
    /// Including what the guard holds.
    built: Built,
    /// What it holds.
    holding: Option<Holding>,
    process: Runtime,
    /// How servers come into it.
    growth: Growth,
    /// Whether the process was actually read.
    looked: bool,
    /// Why its maps could not be read.
    maps_error: Option<AccessError>,
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

    /// Whether an instance is gone that HAProxy still sends traffic to, as far as the catalog says now and HAProxy did
    /// in the last pass. Asks Nomad only.
    pub async fn has_leaver(&self, moment: Moment) -> bool {
        let seated: BTreeSet<_> = self.seated.seats.occupants().filter_map(Occupant::id).collect();
        if seated.is_empty() {
            return false;
        }
        let served = self.seated.seats.namespaces();
        let Ok(Reading { catalog, .. }) = self.source.read(&served, moment.catalog_since, None).await else {
            return false;
        };
        let registered: BTreeSet<_> = catalog.services.values().flatten().map(|one| InstanceId::new(&one.id)).collect();
        seated.into_iter().any(|id| !registered.contains(id))
    }

    /// Asks HAProxy which it is, and nothing else.
    pub async fn probe(&self) -> Result<(), AccessError> {
        self.plane.info().await.map(drop)
    }

    /// Has HAProxy load its configuration again.
    pub async fn reload(&mut self) -> Result<(), WriteError> {
        self.memory.forget_process();
        self.plane.recover().await?;
        let observed = self.plane.observe().await?;
        self.plane.reload(&observed).await
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

    /// A dry run as the pass of a standby: what there is, and what would be done.
    pub async fn look_on(&mut self, moment: Moment) -> PassStatus {
        let mut status = PassStatus { is_standby: true, ..PassStatus::default() };
        match self.plan_in(moment, &mut status).await {
            Ok(DryRun { summary, .. }) => {
                status.notes.clone_from(&summary.notes);
                status.pending = summary.changes.then_some(summary);
            }
            Err(error) => status.error = Some(error),
        }
        status.leave();
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
        let info = self.plane.info().await?;
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

    /// The pass of a standby: what the leader should have to do is known here, too, and left to it.
    async fn stand_by(&mut self, moment: Moment, status: &mut PassStatus) -> Result<(), PassError> {
        let asked = Instant::now();
        let info = self.plane.info().await?;
        (status.response_time, status.haproxy, status.is_standby) = (Some(asked.elapsed()), Some(info.clone()), true);
        self.find_capabilities(&info).await?;
        let seen = self.look(info, moment, &mut None, status).await?;
        status.enter(Stage::Plan);
        let draft = self.draft(&seen, status)?;
        status.pending = (!draft.plan.is_empty()).then(|| draft.summary(&seen.observed, &draft.after.text));
        (status.notes, status.kept) = (draft.notes, draft.kept);
        Ok(())
    }

    /// Finds out what HAProxy takes at run time, which the plan is sorted by.
    async fn find_capabilities(&mut self, info: &HaproxyInfo) -> Result<(), AccessError> {
        let known = std::mem::take(&mut self.options.plan.capabilities);
        let found = self.plane.capabilities(info).await?;
        if found != known {
            let Capabilities { servers, backends } = found;
            tracing::debug!(servers, backends, "found out what HAProxy adds without a reload");
        }
        self.options.plan.capabilities = found;
        Ok(())
    }

    /// Reads what HAProxy has; the catalog is read once per pass.
    async fn look(
        &mut self,
        info: HaproxyInfo,
        moment: Moment,
        reading: &mut Option<Reading>,
        status: &mut PassStatus,
    ) -> Result<Seen, PassError> {
        status.enter(Stage::Observe);
        let observed = self.plane.observe().await?;
        status.saw(&observed, &self.seated);
        let known = self.memory.process(observed.version);
        let (observed, maps_error) = self.look_at_maps(observed, known == Process::Unknown).await;
        let present = Arc::new(observed.present());
        status.routes = present.routes.clone();
        let process = match known {
            Process::Unknown => self.plane.runtime(&observed).await?,
            Process::Loaded { .. } => Runtime::loaded(&observed),
            Process::Agrees { .. } => Runtime::of(&observed).with_leaving(self.memory.leaving()),
        };
        status.enter(Stage::Catalog);
        let Reading { catalog, at } = match reading {
            Some(reading) => reading,
            None => {
                let (since, full_since) = (moment.catalog_since, moment.catalog_full_since);
                let read = self.source.read(&observed.namespaces(), since, full_since).await?;
                self.guard.saw_catalog(&read.catalog);
                reading.insert(read)
            }
        };
        status.index = catalog.index;
        (status.catalog_read, status.catalog) = (Some(*at), Some(catalog.clone()));
        let init_state = info.version.has_init_state();
        let targets = TargetNames { own: self.name.clone(), all: self.names.borrow().clone() };
        let options = build::Options { init_state, targets, ..self.options.build.clone() };
        let mut built = build::build(catalog, &present, &options);
        self.memory.keep_refusals(&built.desired, &observed);
        self.memory.keep_unresolved(&observed);
        let looked = known == Process::Unknown;
        if looked {
            self.memory.unresolved(plan::unresolved(&process, &observed), moment.instant);
        }
        status.became_ready.extend(self.arrivals.look(&built.desired, &observed, Instant::now()));
        let holding = self.guard.review(&self.source, &mut built, &observed, moment).await;
        let (seats, index) = (status.seats.clone(), status.index);
        self.found.send_replace(self.guard.is_calm().then_some(Found { seats, present, build: options, index }));
        status.guard.clone_from(&holding);
        status.namespaces.clone_from(&built.namespaces);
        self.options.plan.taken = process.surplus(&observed, self.options.plan.capabilities).collect();
        let growth = Growth::new(self.options.plan.capabilities, &built.desired);
        Ok(Seen { info, moment, observed, built, holding, process, growth, looked, maps_error })
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

    /// Plans, has HAProxy validate the plan, and discards it.
    pub async fn dry_run(&mut self, moment: Moment) -> Result<DryRun, PassError> {
        self.plan_in(moment, &mut PassStatus::default()).await
    }

    async fn plan_in(&mut self, moment: Moment, status: &mut PassStatus) -> Result<DryRun, PassError> {
        let info = self.plane.info().await?;
        self.find_capabilities(&info).await?;
        let seen = self.look(info, moment, &mut None, status).await?;
        let owner = self.options.plan.owner.clone();
        loop {
            let mut draft = self.draft(&seen, status)?;
            let review = Review::new(&draft.plan, &seen.observed, &owner, moment.clock);
            let kept = draft.kept.clone();
            let done = |summary| Ok(DryRun { summary, version: seen.observed.version, review, kept });
            draft.notes.extend(self.memory.notes());
            draft.notes.sort();
            let offline = draft.summary(&seen.observed, &draft.after.text);
            if !draft.plan.writes_text() {
                return done(offline);
            }
            match self.survey(&seen.observed).await {
                Err(PassError::Harm(harm)) => {
                    return done(Summary { blocked: Some(harm.to_string()), ..offline });
                }
                Ok(Some(moved)) => return Err(moved.into()),
                other => other.map(drop)?,
            }
            let staged = self.plane.stage(&seen.observed, &draft.plan).await?;
            let verdict = self.plane.validate(&staged.text).await;
            let summary = draft.summary(&seen.observed, &staged.text);
            self.plane.abort(staged).await?;
            match verdict? {
                Verdict::Valid => return done(summary),
                Verdict::Refused(message) => self.leave_out(&seen, &draft, WriteError::Invalid { message }).await?,
                Verdict::TooLong(limit) => self.leave_out(&seen, &draft, WriteError::TooLong { limit }).await?,
            }
        }
    }
}

impl Seen {
    /// The services that a part belongs to.
    fn concerned_by(&self, part: &Part) -> BTreeSet<ServiceKey> {
        let desired = &self.built.desired;
        match part {
            Part::Backend(name) => self.concerned(name),
            Part::Rules(frontend) => {
                let backends = desired.routes.get(frontend).into_iter().flat_map(|routes| routes.values());
                backends.flat_map(|name| self.concerned(name)).collect()
            }
            Part::Instance(name, id) => {
                let instances = desired.backends.get(name).into_iter().flat_map(|backend| &backend.instances);
                instances.filter(|instance| instance.id == *id).map(|instance| instance.service.clone()).collect()
            }
        }
    }

    /// The services that a backend is, or was, made for.
    fn concerned(&self, name: &BackendName) -> BTreeSet<ServiceKey> {
        let Self { built, observed, .. } = self;
        let services = match (built.desired.backends.get(name), observed.backend(name)) {
            (Some(backend), _) => backend.services.as_slice(),
            (None, Some(backend)) => backend.ownership.services(),
            (None, None) => &[],
        };
        services.iter().cloned().collect()
    }
}
