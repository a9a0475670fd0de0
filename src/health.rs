//! Whether the loops are alive, and whether each HAProxy is in line with the catalog.
//!
//! A view of the [`Status`] and the time.

use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

use crate::apply::{PassStatus, Stage};
use crate::breaker;
use crate::errors::one_line;
use crate::leader::Leadership;
use crate::status::{Status, TargetStatus, UnknownName};

/// A pass may take this long before the loop counts as stuck: its slowest step, a reload, may take a minute, and there
/// are several. Between passes the loop waits for as long as nothing happens, and counts as alive.
pub const STUCK_AFTER: Duration = Duration::from_secs(300);
/// This many failed passes in a row are more than a transient failure.
pub const FAILURES: u64 = 3;
/// Without a good pass for this long, HAProxy may be out of line. It counts from the start of the first pass that
/// failed, or of the one that is running: a loop that has nothing to do for longer is healthy.
pub const UNREADY_AFTER: Duration = Duration::from_secs(30);

/// How a HAProxy is, or all that the controller does, in one word. The order is from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Condition {
    /// HAProxy answers, and the last pass found or brought it in line with the catalog.
    Healthy,
    /// HAProxy answers, and serves what it has, but a person should look: the last pass failed, the guard holds
    /// instances, or HAProxy refused its file as it is now. For the whole: a HAProxy is degraded, Nomad does not
    /// answer, or there is no HAProxy.
    Degraded,
    /// HAProxy or its API gave no answer to the last pass or probe, its circuit breaker is not closed, no pass has
    /// ended yet, or one does not end. For the whole: a HAProxy is unhealthy, or it is not known yet which there are.
    Unhealthy,
}

impl Condition {
    /// Of one HAProxy.
    pub fn of(target: &TargetStatus, now: Instant) -> Self {
        let has_answered = target.sign_of_life.is_some_and(|sign| sign.has_answered);
        let is_closed = target.breaker.is_none_or(|breaker| breaker.state == breaker::State::Closed);
        if !has_answered || !is_closed || target.last.is_none() || !target.health.is_live(now) {
            Self::Unhealthy
        } else if target.health.failing.is_some()
            || target.health.readiness(now).is_err()
            || target.guard.is_some()
            || target.is_valid() == Some(false)
        {
            Self::Degraded
        } else {
            Self::Healthy
        }
    }

    /// Of the whole.
    pub fn of_all(status: &Status, now: Instant) -> Self {
        if status.is_searching {
            return Self::Unhealthy;
        }
        let catalog = match (status.catalog.nomad_up, &status.catalog.error) {
            (Some(false), _) | (_, Some(_)) => Self::Degraded,
            _ => Self::Healthy,
        };
        let targets = status.targets.values().map(|target| Self::of(target, now));
        targets.max().unwrap_or(Self::Degraded).max(catalog)
    }
}

/// The passes that failed since the last good one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failing {
    /// When the first of them began.
    pub since: Instant,
    /// How many there are.
    pub passes: u64,
    /// The stage at which the last one failed.
    pub stage: Stage,
    /// Why, without HAProxy's own message.
    pub cause: String,
}

/// The state of the loop.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// When the pass that is running began.
    pub running: Option<Instant>,
    /// When the last good pass ended.
    pub converged: Option<Instant>,
    /// The failed passes since then.
    pub failing: Option<Failing>,
}

/// Why HAProxy may be out of line with the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotReady {
    /// No pass has ended yet.
    Starting,
    /// Passes fail.
    Failing {
        /// What is known about them.
        failing: Failing,
        /// For how long.
        lasted: Duration,
    },
    /// A pass takes too long.
    Slow(Duration),
}

impl fmt::Display for NotReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Starting => f.write_str("not ready: the first pass has not ended yet"),
            Self::Failing { failing: Failing { since: _, passes, stage, cause }, lasted } => {
                let (passes, lasted) = (count(*passes), lasted.as_secs());
                write!(f, "not ready: {passes} failed, the first {lasted} s ago; stage {stage}: {cause}")
            }
            Self::Slow(lasted) => write!(f, "not ready: a pass has been running for {} s", lasted.as_secs()),
        }
    }
}

fn count(passes: u64) -> String {
    if passes == 1 { "1 pass".to_owned() } else { format!("{passes} passes in a row") }
}

impl State {
    pub(crate) fn began(&mut self, now: Instant) {
        self.running = Some(now);
    }

    pub(crate) fn ended(&mut self, status: &PassStatus, now: Instant) {
        let since = self.running.take().unwrap_or(now);
        let Some(error) = &status.error else {
            (self.converged, self.failing) = (Some(now), None);
            return;
        };
        let before = self.failing.take();
        self.failing = Some(Failing {
            since: before.as_ref().map_or(since, |before| before.since),
            passes: before.map_or(0, |before| before.passes) + 1,
            stage: status.stage,
            cause: one_line(&error.outline()),
        });
    }

    /// Whether the loop is running.
    pub fn is_live(&self, now: Instant) -> bool {
        self.running.is_none_or(|since| now.saturating_duration_since(since) < STUCK_AFTER)
    }

    /// Whether HAProxy is in line with the catalog, as far as is known.
    pub fn readiness(&self, now: Instant) -> Result<(), NotReady> {
        if let Some(failing) = &self.failing {
            let lasted = now.saturating_duration_since(failing.since);
            if self.converged.is_none() || failing.passes >= FAILURES || lasted >= UNREADY_AFTER {
                return Err(NotReady::Failing { failing: failing.clone(), lasted });
            }
        }
        if self.converged.is_none() {
            return Err(NotReady::Starting);
        }
        let running = self.running.map(|since| now.saturating_duration_since(since));
        running.filter(|lasted| *lasted >= UNREADY_AFTER).map_or(Ok(()), |lasted| Err(NotReady::Slow(lasted)))
    }
}

/// Why this controller can neither lead nor take over, if Nomad has not said for too long which it is.
pub fn unelected(leadership: &Leadership, now: Instant) -> Option<String> {
    match leadership {
        Leadership::Leads | Leadership::StandsBy { .. } => None,
        Leadership::Unknown { since, why, was_known } => {
            let is_long = now.saturating_duration_since(*since) >= UNREADY_AFTER;
            (is_long || !was_known).then(|| format!("not ready: it is not known whether this controller leads: {why}"))
        }
    }
}

/// The HAProxys, or the one of this name, that are not in line with the catalog as far as is known, and why.
pub fn not_ready(status: &Status, only: Option<&str>, now: Instant) -> Result<Vec<(String, NotReady)>, UnknownName> {
    let chosen = status.chosen(only)?;
    Ok(chosen
        .into_iter()
        .filter_map(|(name, target)| Some((name.to_owned(), target.health.readiness(now).err()?)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply::PassError;
    use crate::reconcile::Wake;
    use crate::status::Board;

    fn good() -> PassStatus {
        PassStatus::default()
    }

    fn failed() -> PassStatus {
        let error = Some(PassError::Broken("parsing [haproxy.cfg:3]: unknown word\n's3cr3t'".into()));
        PassStatus { stage: Stage::Apply, error, ..PassStatus::default() }
    }

    /// A state with a clock of its own.
    struct Clocked(State, Instant);

    impl Clocked {
        fn new() -> Self {
            Self(State::default(), Instant::now())
        }

        fn wait(&mut self, seconds: u64) {
            self.1 += Duration::from_secs(seconds);
        }

        fn began(&mut self) {
            self.0.began(self.1);
        }

        fn ended(&mut self, status: &PassStatus) {
            self.0.ended(status, self.1);
        }

        fn pass(&mut self, status: &PassStatus) {
            self.began();
            self.ended(status);
        }

        fn readiness(&self) -> Result<(), NotReady> {
            self.0.readiness(self.1)
        }

        fn is_live(&self) -> bool {
            self.0.is_live(self.1)
        }
    }

    #[test]
    fn it_is_ready_after_the_first_good_pass_and_not_before() {
        let mut health = Clocked::new();
        assert_eq!(health.readiness(), Err(NotReady::Starting));
        health.pass(&failed());
        let said = health.readiness().expect_err("it was never in line").to_string();
        let cause = "HAProxy refuses its own configuration file as it stands; its reason is in the log";
        assert_eq!(said, format!("not ready: 1 pass failed, the first 0 s ago; stage apply: {cause}"));
        health.pass(&good());
        assert_eq!(health.readiness(), Ok(()));
    }

    #[test]
    fn three_failed_passes_in_a_row_are_too_many() {
        let mut health = Clocked::new();
        health.pass(&good());
        for passes in 1..=4 {
            health.pass(&failed());
            health.wait(1);
            assert_eq!(health.readiness().is_ok(), passes < 3, "{passes}");
        }
        let said = health.readiness().expect_err("four have failed").to_string();
        assert!(said.starts_with("not ready: 4 passes in a row failed, the first 4 s ago; stage apply: "), "{said}");
        health.pass(&good());
        assert_eq!(health.readiness(), Ok(()));
        health.pass(&failed());
        assert_eq!(health.readiness(), Ok(()), "they are counted from one again");
    }

    #[test]
    fn half_a_minute_without_a_good_pass_is_too_long() {
        let mut health = Clocked::new();
        health.pass(&good());
        // Nothing happens for a long time, and that is fine.
        health.wait(3600);
        assert_eq!((health.readiness(), health.is_live()), (Ok(()), true));
        health.began();
        health.wait(10);
        health.ended(&failed());
        health.wait(19);
        assert_eq!(health.readiness(), Ok(()), "29 s");
        health.wait(1);
        assert!(matches!(health.readiness(), Err(NotReady::Failing { .. })), "30 s since the failed one began");
        health.pass(&good());
        assert_eq!(health.readiness(), Ok(()));
    }

    #[test]
    fn a_pass_that_hangs_is_seen_before_it_ends() {
        let mut health = Clocked::new();
        health.pass(&good());
        health.began();
        health.wait(29);
        assert_eq!(health.readiness(), Ok(()));
        health.wait(2);
        let said = health.readiness().expect_err("it takes too long").to_string();
        assert_eq!(said, "not ready: a pass has been running for 31 s");
        assert!(health.is_live());
        health.wait(STUCK_AFTER.as_secs());
        assert!(!health.is_live());
        health.ended(&good());
        assert_eq!((health.readiness(), health.is_live()), (Ok(()), true));
    }

    #[test]
    fn several_are_ready_when_each_is() {
        let board = Board::default();
        let not_ready = |only| not_ready(&board.read(), only, Instant::now());
        assert_eq!(not_ready(None), Ok(Vec::new()), "none is out of line");
        for name in ["a", "b"] {
            board.add(name);
        }
        board.passed("a", &good(), Duration::ZERO, Wake::Started);
        assert_eq!(not_ready(None), Ok(vec![("b".to_owned(), NotReady::Starting)]));
        assert_eq!(not_ready(Some("a")), Ok(Vec::new()));
        board.forget("b");
        assert_eq!(not_ready(None), Ok(Vec::new()));
    }
}
