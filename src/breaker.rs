//! The circuit breaker of one HAProxy. HAProxy keeps serving, whatever its state.
//!
//! - *Closed*: passes run. After [`Options::threshold`] passes in a row that HAProxy or its API gave no answer to, it
//!   opens. Only these count: Nomad's failures, a refused configuration or a failed reload are answers.
//! - *Open*: nothing is sent. After [`Options::reset_after`] a probe is due; a probe is due at once, but not more often
//!   than every [`PROBE_PAUSE`], if an instance is gone that HAProxy still sends traffic to: the process is changed even
//!   if nothing else works.
//! - *Half-open*: the probe was answered, and a pass runs. It closes the breaker, or opens it again.
//!
//! Pure: the time comes from the caller, and nothing here waits.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// The least time between two probes.
pub const PROBE_PAUSE: Duration = Duration::from_secs(1);

/// When it opens and closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Failed passes in a row that open it.
    pub threshold: u32,
    /// From there to the first probe, and from one failed probe to the next.
    pub reset_after: Duration,
    /// Probes in a row that must be answered before a pass runs.
    pub probes: u32,
}

/// The state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum State {
    /// Passes run.
    #[default]
    Closed,
    /// Nothing is sent but probes.
    Open,
    /// A probe was answered; what the pass says is awaited.
    HalfOpen,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Closed, Self::HalfOpen, Self::Open];

    /// For logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        }
    }
}

/// What is known of it from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// The state.
    pub state: State,
    /// Failures in a row up to now.
    pub failures: u32,
    /// How many of them open it.
    pub threshold: u32,
    /// When the state changed last; at first, when the controller started.
    pub changed: SystemTime,
    /// The last failure.
    pub last_failure: Option<SystemTime>,
    /// When the next probe is due, while it is open.
    pub next_probe: Option<SystemTime>,
    /// How often it has opened.
    pub opened: u64,
    /// Probes that were sent.
    pub probes: u64,
}

/// What may be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permit {
    /// A pass.
    Pass,
    /// A probe, and if it is answered, a pass.
    Probe,
    /// Nothing before this time, when a probe is due.
    Wait(Instant),
}

/// The breaker.
#[derive(Debug)]
pub struct Breaker {
    options: Options,
    snapshot: Snapshot,
    /// When the next probe is due, and the earliest time for one.
    due: Option<(Instant, Instant)>,
}

impl Breaker {
    /// A closed one.
    pub fn new(options: Options) -> Self {
        let snapshot = Snapshot {
            state: State::Closed,
            failures: 0,
            threshold: options.threshold,
            changed: SystemTime::now(),
            last_failure: None,
            next_probe: None,
            opened: 0,
            probes: 0,
        };
        Self { options, snapshot, due: None }
    }

    /// For people and programs.
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot
    }

    /// How many probes must be answered before a pass.
    pub fn probes(&self) -> u32 {
        self.options.probes
    }

    /// What may be done now; `has_leaver`: an instance is gone that HAProxy still sends traffic to.
    pub fn permit(&self, has_leaver: bool, now: Instant) -> Permit {
        match self.due {
            None => Permit::Pass,
            Some((due, earliest)) => match if has_leaver { earliest } else { due } {
                at if at <= now => Permit::Probe,
                at => Permit::Wait(at),
            },
        }
    }

    /// A probe was sent. Returns whether a pass may run.
    pub fn probed(&mut self, was_answered: bool, now: Instant) -> bool {
        self.snapshot.probes += 1;
        if was_answered {
            self.becomes(State::HalfOpen);
            (self.due, self.snapshot.next_probe) = (None, None);
        } else {
            self.failed(now);
        }
        was_answered
    }

    /// A pass has ended; `has_failed`: without an answer of HAProxy or its API.
    pub fn passed(&mut self, has_failed: bool, now: Instant) {
        if has_failed {
            self.failed(now);
        } else {
            self.snapshot.failures = 0;
            self.becomes(State::Closed);
        }
    }

    fn failed(&mut self, now: Instant) {
        self.snapshot.failures = self.snapshot.failures.saturating_add(1);
        self.snapshot.last_failure = Some(SystemTime::now());
        let opens = match self.snapshot.state {
            State::Closed => self.snapshot.failures >= self.options.threshold,
            State::Open | State::HalfOpen => true,
        };
        if opens {
            let wait = self.options.reset_after;
            self.due = Some((now + wait, now + wait.min(PROBE_PAUSE)));
            self.snapshot.next_probe = Some(SystemTime::now() + wait);
            self.becomes(State::Open);
        }
    }

    fn becomes(&mut self, state: State) {
        if self.snapshot.state != state {
            self.snapshot.opened += u64::from(state == State::Open);
            (self.snapshot.state, self.snapshot.changed) = (state, SystemTime::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: Options = Options { threshold: 3, reset_after: Duration::from_secs(10), probes: 1 };

    fn open(now: Instant) -> Breaker {
        let mut breaker = Breaker::new(OPTIONS);
        (0..OPTIONS.threshold).for_each(|_| breaker.passed(true, now));
        breaker
    }

    #[test]
    fn failures_in_a_row_open_it() {
        let (mut breaker, now) = (Breaker::new(OPTIONS), Instant::now());
        for has_failed in [true, true, false, true, true] {
            breaker.passed(has_failed, now);
        }
        assert_eq!((breaker.permit(true, now), breaker.snapshot().failures), (Permit::Pass, 2));
        breaker.passed(true, now);
        assert_eq!(breaker.snapshot().state, State::Open);
        assert_eq!(breaker.permit(false, now), Permit::Wait(now + OPTIONS.reset_after));
        assert_eq!(breaker.permit(false, now + OPTIONS.reset_after), Permit::Probe);
    }

    #[test]
    fn an_instance_that_is_gone_is_a_reason_to_probe_early_but_not_all_the_time() {
        let now = Instant::now();
        let mut breaker = open(now);
        assert_eq!(breaker.permit(true, now), Permit::Wait(now + PROBE_PAUSE));
        let then = now + PROBE_PAUSE;
        assert_eq!(breaker.permit(true, then), Permit::Probe);
        assert!(!breaker.probed(false, then));
        assert_eq!(breaker.permit(true, then), Permit::Wait(then + PROBE_PAUSE));
        assert_eq!(breaker.permit(false, then), Permit::Wait(then + OPTIONS.reset_after));
    }

    #[test]
    fn a_pass_after_an_answered_probe_closes_it_or_opens_it_again() {
        let now = Instant::now();
        for has_failed in [false, true] {
            let mut breaker = open(now);
            assert!(breaker.probed(true, now));
            assert_eq!((breaker.snapshot().state, breaker.permit(false, now)), (State::HalfOpen, Permit::Pass));
            breaker.passed(has_failed, now);
            let Snapshot { state, failures, opened, next_probe, .. } = breaker.snapshot();
            let expected = if has_failed { (State::Open, 4, 2, true) } else { (State::Closed, 0, 1, false) };
            assert_eq!((state, failures, opened, next_probe.is_some()), expected);
        }
    }
}
