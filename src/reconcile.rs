//! The loop of one HAProxy: what wakes it, when it acts, one pass at a time.
//!
//! A wake-up is a hint. What counts is that a pass runs soon after the last of several changes, not later than
//! `max_wait` after the first, and every `resync_interval` in any case.

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::apply::{Controller, Moment, Outcome, PassError, Stage};
use crate::breaker::{Breaker, Permit, State};
use crate::catalog::watch::Change;
use crate::command::{Command, NotRecovered};
use crate::config::Timings;
use crate::errors::{chain, one_line};
use crate::fleet::membership::Membership;
use crate::leader::Election;
use crate::metrics::Metrics;
use crate::plane::{AccessError, WriteError};
use crate::report::Reporter;
use crate::sample::Sampler;
use crate::shutdown;
use crate::status::{Board, SignOfLife};

/// After a failed pass: half a second, doubling to 30 s, with jitter, so that several controllers do not retry a
/// recovering HAProxy in step.
const RETRY_MIN: Duration = Duration::from_millis(500);
pub(crate) const RETRY_MAX: Duration = Duration::from_secs(30);

/// How long the first pass waits for the first answer to the watch of the catalog: an answer takes milliseconds, and a
/// Nomad that gives none keeps nothing else waiting.
const FIRST_ANSWER: Duration = Duration::from_millis(500);
/// A HAProxy that takes longer to say who it is does not answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a pass runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wake {
    /// The first one.
    Started,
    /// Nomad's index moved, or the catalog file changed.
    Catalog,
    /// An event names services that changed.
    Event,
    /// Nothing changed for a while.
    Resync,
    /// The last pass failed, or something of Nomad could not be read.
    Retry,
    /// A change had to wait for `reload.min_interval`.
    Deferred,
    /// HAProxy answered a probe of the circuit breaker.
    Probe,
    /// A person or a program asked for it.
    Asked,
    /// This controller leads now, or no longer.
    Leader,
}

impl Wake {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Started,
        Self::Catalog,
        Self::Event,
        Self::Resync,
        Self::Retry,
        Self::Deferred,
        Self::Probe,
        Self::Asked,
        Self::Leader,
    ];

    /// For logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Catalog => "catalog",
            Self::Event => "event",
            Self::Resync => "resync",
            Self::Retry => "retry",
            Self::Deferred => "deferred",
            Self::Probe => "probe",
            Self::Asked => "asked",
            Self::Leader => "leader",
        }
    }
}

/// When to act on wake-ups: on the first at once, on those that follow together, within limits.
#[derive(Debug)]
struct Debounce {
    quiet: Duration,
    most: Duration,
    /// The first and the last wake-up that are still pending.
    pending: Option<(Instant, Instant)>,
    last_pass: Option<Instant>,
}

impl Debounce {
    fn new(timings: Timings) -> Self {
        Self { quiet: timings.quiet_period, most: timings.max_wait, pending: None, last_pass: None }
    }

    fn wake(&mut self, now: Instant) {
        self.pending = Some(self.pending.map_or((now, now), |(first, _)| (first, now)));
    }

    /// When the pending wake-ups are due.
    fn due(&self) -> Option<Instant> {
        let (first, last) = self.pending?;
        match self.last_pass {
            // A change in the middle of others: more will follow.
            Some(pass) if first < pass + self.quiet => Some((last + self.quiet).min(first + self.most)),
            _ => Some(first),
        }
    }

    fn passed(&mut self, now: Instant) {
        (self.pending, self.last_pass) = (None, Some(now));
    }
}

/// When a pass runs without a change.
#[derive(Debug)]
struct Timer {
    interval: Duration,
    resync: Instant,
    /// What the last pass left to do or to retry.
    follow_up: Option<(Instant, Wake)>,
}

impl Timer {
    fn new(interval: Duration, now: Instant) -> Self {
        Self { interval, resync: now + interval, follow_up: None }
    }

    fn next(&self) -> (Instant, Wake) {
        self.follow_up.filter(|(at, _)| *at < self.resync).unwrap_or((self.resync, Wake::Resync))
    }

    /// Whether the pass that begins has to look at everything. Not only the timer's own: passes for other reasons may
    /// come so often that it never fires.
    fn takes_resync(&mut self, now: Instant) -> bool {
        let due = now >= self.resync;
        if due {
            self.resync = now + self.interval;
        }
        due
    }
}

/// What the loop of one HAProxy works with.
#[derive(Debug)]
pub struct Loop {
    /// Its passes.
    pub controller: Controller,
    /// When they run.
    pub timings: Timings,
    /// When HAProxy is left alone.
    pub breaker: Breaker,
    /// When the catalog was last seen to change.
    pub changed: watch::Receiver<Change>,
    /// Cancelled when that is complete.
    pub watching: CancellationToken,
    /// What a person asks for.
    pub commands: mpsc::Receiver<Command>,
    /// When this controller begins, or ceases, to lead.
    pub election: Election,
    /// Takes samples of HAProxy's statistics between the passes.
    pub sampler: Sampler,
    /// Where it reports.
    pub outlets: Outlets,
}

/// Where the loop of one HAProxy reports.
#[derive(Debug)]
pub struct Outlets {
    /// The HAProxy's name, as the label of its metrics.
    pub name: String,
    /// Whether the name is in the log: it is not where there is one HAProxy.
    pub is_named: bool,
    /// All metrics.
    pub metrics: Arc<Metrics>,
    /// The state of all.
    pub board: Arc<Board>,
    /// Its part of the log.
    pub reporter: Reporter,
    /// Of one that was found in Nomad: whether it still is there.
    pub membership: Option<Membership>,
}

/// Someone who waits for the end of a recovery.
type Answer = oneshot::Sender<Result<Outcome, NotRecovered>>;

impl Loop {
    /// Runs until it is stopped. A running pass has [`shutdown::PASS`] to end, so that no reload is interrupted without
    /// need; then it is cancelled, like a kill at any moment: the next start repairs what it left.
    pub async fn run(mut self, stop: CancellationToken) {
        // A catalog that is read after this is not read again for the first answer of the watch.
        let begun = async { tokio::join!(self.watching.cancelled(), self.election.first_answer()) };
        drop(timeout(FIRST_ANSWER, stop.run_until_cancelled(begun)).await);
        let mut debounce = Debounce::new(self.timings);
        let mut backoff: Option<ExponentialBackoff> = None;
        let mut reason = Wake::Started;
        debounce.wake(Instant::now());
        let mut timer = Timer::new(self.timings.resync_interval, Instant::now());
        let mut recovers: Option<Answer> = None;
        self.publish_breaker();
        loop {
            let due = debounce.due();
            let (at, timer_reason) = timer.next();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(command) = self.commands.recv() => {
                    reason = Wake::Asked;
                    match command {
                        Command::Reconcile => {}
                        Command::Release => drop(self.controller.release()),
                        Command::Recover(answer) => recovers = Some(answer),
                    }
                }
                Ok(()) = self.changed.changed() => {
                    // A standby has time until the resync: HAProxy is busy with what the leader makes of the change.
                    if !self.controller.lease().leads() {
                        continue;
                    }
                    if debounce.pending.is_none() {
                        reason = self.changed.borrow().by;
                    }
                    debounce.wake(Instant::now());
                    continue;
                }
                () = self.election.turned() => reason = Wake::Leader,
                () = sleep_until(due.unwrap_or(at).min(at)) => {
                    if due.is_none_or(|due| due > Instant::now()) {
                        reason = timer_reason;
                    }
                }
            }
            let now = Instant::now();
            let is_asked = matches!(reason, Wake::Asked | Wake::Leader);
            let moment = self.moment(is_asked || timer.takes_resync(now), now);
            let next = tokio::select! {
                next = self.turn(moment, reason, recovers.take()) => next,
                () = shutdown::pass_is_due(&stop) => {
                    tracing::warn!("the pass was cut short; the next start sets right what it left");
                    break;
                }
            };
            debounce.passed(Instant::now());
            timer.follow_up = match next {
                Next::Resync => None,
                Next::Deferred(at) => Some((at, Wake::Deferred)),
                Next::Probe(at) => Some((at, Wake::Probe)),
                Next::Retry => {
                    let delay = backoff.get_or_insert_with(retries).next().unwrap_or(RETRY_MAX);
                    Some((Instant::now() + delay, Wake::Retry))
                }
            };
            if !matches!(next, Next::Retry) {
                backoff = None;
            }
        }
    }

    /// A pass, as far as the breaker permits one. A wake-up that it does not permit is not lost: the next pass reads
    /// everything.
    async fn turn(&mut self, moment: Moment, reason: Wake, recovers: Option<Answer>) -> Next {
        let Outlets { name, is_named, .. } = &self.outlets;
        let span = tracing::info_span!("pass", reason = reason.as_str(), haproxy = tracing::field::Empty);
        if *is_named {
            span.record("haproxy", name.as_str());
        }
        let work = async {
            match recovers {
                Some(answer) => self.recover(moment, answer).await,
                None => self.permitted(moment, reason).await,
            }
        };
        work.instrument(span).await
    }

    async fn permitted(&mut self, moment: Moment, reason: Wake) -> Next {
        let now = Instant::now();
        let has_leaver = match self.breaker.permit(false, now) {
            Permit::Pass | Permit::Probe => false,
            Permit::Wait(_) => reason == Wake::Asked || self.controller.has_leaver(moment).await,
        };
        match self.breaker.permit(has_leaver, now) {
            Permit::Pass => self.pass(moment, reason).await.1,
            Permit::Wait(at) => Next::Probe(at),
            Permit::Probe => match self.probe().await {
                Ok(()) => self.pass(moment, Wake::Probe).await.1,
                Err(_) => self.after_failure(),
            },
        }
    }

    /// Asks HAProxy for a sign of life, as often as the settings say.
    async fn probe(&mut self) -> Result<(), AccessError> {
        for _ in 0..self.breaker.probes() {
            let asked = Instant::now();
            let answer = timeout(PROBE_TIMEOUT, self.controller.probe()).await.unwrap_or_else(|_| Err(no_answer()));
            let sign = SignOfLife::new(answer.as_ref().err(), answer.is_ok().then(|| asked.elapsed()));
            self.outlets.board.update_target(&self.outlets.name, |target| target.sign_of_life = Some(sign));
            self.breaker.probed(answer.is_ok(), Instant::now());
            self.publish_breaker();
            if let Err(error) = answer {
                tracing::debug!(error = %chain(&error), "HAProxy does not answer a probe");
                return Err(error);
            }
        }
        Ok(())
    }

    /// Has HAProxy load its configuration again, and brings it in line, whatever the breaker says.
    async fn recover(&mut self, moment: Moment, answer: Answer) -> Next {
        if let Err(error) = self.controller.lease().check().await {
            drop(answer.send(Err(NotRecovered::NotLeading(error))));
            return Next::Resync;
        }
        self.outlets.board.update_target(&self.outlets.name, |target| target.recoveries += 1);
        let (result, next) = self.reload_and_pass(moment).await;
        // Whoever asked may have gone.
        drop(answer.send(result));
        next
    }

    async fn reload_and_pass(&mut self, moment: Moment) -> (Result<Outcome, NotRecovered>, Next) {
        let unreachable = |error: &AccessError| NotRecovered::Unreachable(one_line(&chain(error)));
        if let Err(error) = self.probe().await {
            return (Err(unreachable(&error)), self.after_failure());
        }
        let reloaded = self.controller.reload().await;
        self.outlets.metrics.reload(&self.outlets.name, reloaded.is_ok());
        let (outcome, next) = self.pass(moment, Wake::Asked).await;
        let result = match reloaded {
            Ok(()) => Ok(outcome),
            Err(PassError::Access(error) | PassError::Write(WriteError::Access(error))) => Err(unreachable(&error)),
            Err(error) => Err(NotRecovered::NotLoaded(one_line(&error.outline()))),
        };
        (result, next)
    }

    /// Runs one pass, and reports it to log, metrics and status.
    async fn pass(&mut self, moment: Moment, reason: Wake) -> (Outcome, Next) {
        let Self { controller, breaker, outlets, sampler, changed, .. } = self;
        let Outlets { name, is_named: _, metrics, board, reporter, membership } = outlets;
        let started = Instant::now();
        board.began(name);
        let status = controller.pass_while(moment, changed.clone()).await;
        let took = started.elapsed();
        if let Some(membership) = membership
            && status.error.is_some()
            && status.stage != Stage::Catalog
        {
            membership.confirm().await;
        }
        breaker.passed(status.is_unanswered(), Instant::now());
        metrics.pass(name, &status, took, reason);
        reporter.pass(&status, took, Instant::now());
        board.passed(name, &status, took, reason);
        if breaker.snapshot().state == State::Closed && !status.is_unanswered() {
            sampler.after_pass(controller.plane(), board.clone(), name).await;
        }
        let next = match (&status.error, status.next) {
            (Some(_), _) => self.after_failure(),
            (None, Some(at)) => Next::Deferred(at.into()),
            (None, None) => Next::Resync,
        };
        self.publish_breaker();
        (status.outcome(), next)
    }

    /// A retry, or a probe if the breaker is open.
    fn after_failure(&self) -> Next {
        match self.breaker.permit(false, Instant::now()) {
            Permit::Wait(at) => Next::Probe(at),
            Permit::Pass | Permit::Probe => Next::Retry,
        }
    }

    fn publish_breaker(&self) {
        let snapshot = self.breaker.snapshot();
        self.outlets.board.update_target(&self.outlets.name, |target| target.breaker = Some(snapshot));
    }

    /// How new the catalog of a pass must be: read after its last change, and for each resync read again in full. What
    /// another HAProxy's pass has read since then will do, so that several take as many reads as one.
    fn moment(&mut self, everything: bool, now: Instant) -> Moment {
        let changed = self.changed.borrow_and_update().at;
        // A resync finds the read of the one before at least as old as the interval.
        let oldest = now.checked_sub(self.timings.resync_interval * 3 / 4).unwrap_or(changed);
        let catalog_full_since = everything.then_some(oldest);
        Moment { catalog_full_since, ..Moment::with_catalog_since(everything, changed.max(oldest)) }
    }
}

fn no_answer() -> AccessError {
    AccessError::Unavailable {
        what: format!("HAProxy gave no answer within {PROBE_TIMEOUT:?}"),
        source: "time-out".into(),
    }
}

/// The pauses between attempts.
pub(crate) fn retries() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_jitter()
        .with_min_delay(RETRY_MIN)
        .with_max_delay(RETRY_MAX)
        .without_max_times()
        .build()
}

/// When the next pass runs, if nothing wakes the loop before.
#[derive(Debug, Clone, Copy)]
enum Next {
    Resync,
    Deferred(Instant),
    Probe(Instant),
    Retry,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn debounce() -> Debounce {
        let (quiet_period, max_wait) = (Duration::from_millis(100), Duration::from_millis(350));
        Debounce::new(Timings { resync_interval: Duration::from_secs(30), quiet_period, max_wait })
    }

    #[test]
    fn the_first_change_acts_at_once() {
        let (mut debounce, now) = (debounce(), Instant::now());
        assert_eq!(debounce.due(), None);
        debounce.wake(now);
        assert_eq!(debounce.due(), Some(now));
    }

    #[test]
    fn later_changes_are_gathered() {
        let (mut debounce, start) = (debounce(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        debounce.passed(start);
        debounce.wake(at(10));
        debounce.wake(at(60));
        assert_eq!(debounce.due(), Some(at(160)));
        debounce.passed(at(160));
        assert_eq!(debounce.due(), None);
        debounce.wake(at(1000));
        assert_eq!(debounce.due(), Some(at(1000)), "a change after a quiet time acts at once again");
    }

    #[test]
    fn a_stream_of_passes_cannot_put_a_resync_off() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut timer = Timer::new(Duration::from_secs(30), start);
        timer.follow_up = Some((at(5), Wake::Retry));
        assert_eq!(timer.next(), (at(5), Wake::Retry));
        timer.follow_up = Some((at(40), Wake::Deferred));
        assert_eq!(timer.next(), (at(30), Wake::Resync));
        let full: Vec<u64> = (1..100).filter(|second| timer.takes_resync(at(*second))).collect();
        assert_eq!(full, [30, 60, 90]);
    }

    #[test]
    fn a_stream_of_changes_cannot_starve_a_pass() {
        let (mut debounce, start) = (debounce(), Instant::now());
        debounce.passed(start);
        for ms in (10..2000).step_by(50) {
            debounce.wake(start + Duration::from_millis(ms));
        }
        assert_eq!(debounce.due(), Some(start + Duration::from_millis(360)));
    }
}
