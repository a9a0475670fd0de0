//! The loop: what wakes it, when it acts, one pass at a time.
//!
//! A wake-up is a hint. What counts is that a pass runs soon after the last of several changes, not later than
//! `max_wait` after the first, and every `resync_interval` in any case.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::apply::{Controller, Moment};
use crate::catalog::Source;
use crate::catalog::nomad::NomadCatalog;
use crate::config::Timings;
use crate::errors::{chain, kind, one_line};
use crate::health::Health;
use crate::metrics::Metrics;
use crate::nomad::NomadError;
use crate::plane::Plane;
use crate::report::{Failure, Outage, Reporter};
use crate::shutdown;

/// After a failed pass: half a second, doubling to 30 s, with jitter, so that several controllers do not retry a
/// recovering HAProxy in step.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Between two polls of a catalog file.
const FILE_POLL: Duration = Duration::from_millis(200);

/// Why a pass runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wake {
    /// The first one.
    Started,
    /// Nomad's index moved, or the catalog file changed.
    Catalog,
    /// Nothing changed for a while.
    Resync,
    /// The last pass failed.
    Retry,
    /// A change had to wait for `reload.min_interval`.
    Deferred,
}

impl Wake {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Started, Self::Catalog, Self::Resync, Self::Retry, Self::Deferred];

    /// For logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Catalog => "catalog",
            Self::Resync => "resync",
            Self::Retry => "retry",
            Self::Deferred => "deferred",
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

/// Runs until it is stopped. A running pass has [`shutdown::PASS`] to end, so that no reload is interrupted without
/// need; then it is cancelled, like a kill at any moment: the next start repairs what it left.
pub async fn run<P: Plane>(
    mut controller: Controller<P>,
    source: Source,
    timings: Timings,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    stop: CancellationToken,
) {
    let (sender, mut wakes) = mpsc::channel(16);
    let watcher = tokio::spawn(watch(source, sender, metrics.clone(), stop.clone()));
    let mut debounce = Debounce::new(timings);
    let mut backoff: Option<ExponentialBackoff> = None;
    let (mut reason, mut reporter) = (Wake::Started, Reporter::default());
    debounce.wake(Instant::now());
    let mut timer = Timer::new(timings.resync_interval, Instant::now());
    loop {
        let due = debounce.due();
        let (at, timer_reason) = timer.next();
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(wake) = wakes.recv() => {
                if debounce.pending.is_none() {
                    reason = wake;
                }
                debounce.wake(Instant::now());
                continue;
            }
            () = sleep_until(due.unwrap_or(at).min(at)) => {
                if due.is_none_or(|due| due > Instant::now()) {
                    reason = timer_reason;
                }
            }
        }
        let moment = Moment::now(timer.takes_resync(Instant::now()));
        let pass = pass(&mut controller, moment, reason, &metrics, &health, &mut reporter);
        let next = tokio::select! {
            next = pass => next,
            () = shutdown::pass_is_due(&stop) => {
                tracing::warn!("the pass was cut short; the next start sets right what it left");
                break;
            }
        };
        debounce.passed(Instant::now());
        timer.follow_up = match next {
            Next::Resync => None,
            Next::Deferred(at) => Some((at, Wake::Deferred)),
            Next::Retry => {
                let delay = backoff.get_or_insert_with(retries).next().unwrap_or(RETRY_MAX);
                Some((Instant::now() + delay, Wake::Retry))
            }
        };
        if !matches!(next, Next::Retry) {
            backoff = None;
        }
    }
    watcher.abort();
    tracing::info!("stopped; HAProxy keeps what it has");
}

fn retries() -> ExponentialBackoff {
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
    Retry,
}

/// Runs one pass, and reports it to log, metrics and health.
#[tracing::instrument(name = "pass", skip_all, fields(reason = reason.as_str()))]
async fn pass<P: Plane>(
    controller: &mut Controller<P>,
    moment: Moment,
    reason: Wake,
    metrics: &Metrics,
    health: &Health,
    reporter: &mut Reporter,
) -> Next {
    let started = Instant::now();
    health.began();
    let status = controller.pass(moment, None).await;
    let took = started.elapsed();
    metrics.pass(&status, took, reason);
    reporter.pass(&status, took, Instant::now());
    health.ended(&status);
    if status.error.is_some() {
        return Next::Retry;
    }
    status.next.map_or(Next::Resync, |at| Next::Deferred(at.into()))
}

/// Watches the catalog and wakes the loop. The loop notices its failures by itself: the pass reads too.
async fn watch(source: Source, wakes: mpsc::Sender<Wake>, metrics: Arc<Metrics>, stop: CancellationToken) {
    match source {
        Source::Nomad(nomad) => watch_nomad(nomad, wakes, &metrics, stop).await,
        Source::File(path) => watch_file(path, wakes, stop).await,
    }
}

/// The file is polled, as not every file system reports changes.
async fn watch_file(path: PathBuf, wakes: mpsc::Sender<Wake>, stop: CancellationToken) {
    let look = async || tokio::fs::metadata(&path).await.ok().map(|file| (file.modified().ok(), file.len()));
    let mut known = look().await;
    while !stop.is_cancelled() {
        tokio::time::sleep(FILE_POLL).await;
        let now = look().await;
        if now != known && wakes.send(Wake::Catalog).await.is_err() {
            return;
        }
        known = now;
    }
}

async fn watch_nomad(nomad: NomadCatalog, wakes: mpsc::Sender<Wake>, metrics: &Metrics, stop: CancellationToken) {
    let mut index = 0;
    let (mut backoff, mut outage) = (retries(), Outage::default());
    while !stop.is_cancelled() {
        // The first answer comes at once: it gives the index to wait from.
        let changed = nomad.changed(index).await;
        metrics.nomad_answers(changed.is_ok());
        let wakes_loop = match changed {
            Ok(now) => {
                backoff = retries();
                if let Some(extent) = outage.over(Instant::now()) {
                    tracing::info!(failed = extent.failures, outage_s = extent.seconds(), "watching Nomad again");
                }
                // A lower index means a restore or another cluster: one more reason to run a pass.
                now != std::mem::replace(&mut index, now)
            }
            Err(error) => {
                index = 0;
                cannot_watch(&mut outage, &error)
            }
        };
        if wakes_loop && wakes.send(Wake::Catalog).await.is_err() {
            return;
        }
        if index == 0 {
            tokio::time::sleep(backoff.next().unwrap_or(RETRY_MAX)).await;
        }
    }
}

/// Whether to wake the loop: at the beginning of an outage a pass reports what it means for HAProxy, and whether the
/// catalog can still be read.
fn cannot_watch(outage: &mut Outage, error: &NomadError) -> bool {
    let (kind, error) = (kind(error), one_line(&chain(error)));
    match outage.failed(&kind, Instant::now()) {
        Failure::New => {
            tracing::warn!(%error, "cannot watch Nomad for changes; trying again");
            true
        }
        Failure::Reminder(extent) => {
            let (failed, outage_s) = (extent.failures, extent.seconds());
            tracing::warn!(failed, outage_s, %error, "still cannot watch Nomad for changes");
            false
        }
        Failure::Known => {
            tracing::debug!(%error, "cannot watch Nomad for changes, as before");
            false
        }
    }
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
