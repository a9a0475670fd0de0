//! When the catalog changes: by a blocking query on the list of services, and by event streams, whichever comes first.
//! Both are hints. The [`Ledger`] says what is to be read for them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use backon::ExponentialBackoff;
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::CancellationToken;

use crate::errors::{chain, kind, one_line};
use crate::nomad::NomadError;
use crate::reconcile::{RETRY_MAX, Wake, retries};
use crate::report::{Failure, Outage};
use crate::status::Board;

use super::Source;
use super::events::{Events, Said};
use super::ledger::{Ledger, Woken};
use super::nomad::NomadCatalog;

/// Between two polls of a catalog file.
const FILE_POLL: Duration = Duration::from_millis(200);
/// How long a wake of the blocking query waits for the event that explains it. Both come within 10 ms (seen); without
/// the event the whole catalog is read, which takes longer than this where there are a thousand services.
const EXPLAINED_WITHIN: Duration = Duration::from_millis(100);

/// The last change of the catalog that was noticed.
#[derive(Debug, Clone, Copy)]
pub struct Change {
    /// When it was noticed.
    pub at: Instant,
    /// By what.
    pub by: Wake,
}

impl Change {
    /// Noticed now.
    pub fn now(by: Wake) -> Self {
        Self { at: Instant::now(), by }
    }
}

/// Publishes when the catalog changes, until it is stopped. Its own failures are for the passes to report: they read
/// the catalog too.
///
/// `begun` is cancelled when it notices every change from then on: a pass that reads the catalog after that needs no
/// second read for the first answer.
pub async fn watch(source: Source, changed: watch::Sender<Change>, board: Arc<Board>, begun: CancellationToken) {
    match source {
        Source::Nomad(nomad) => Watch { nomad: *nomad, changed, board, begun }.run().await,
        Source::File(path) => watch_file(path, changed, &begun).await,
        Source::Nothing => begun.cancel(),
    }
}

/// The file is polled, as not every file system reports changes.
async fn watch_file(path: PathBuf, changed: watch::Sender<Change>, begun: &CancellationToken) {
    let look = async || tokio::fs::metadata(&path).await.ok().map(|file| (file.modified().ok(), file.len()));
    let mut known = look().await;
    begun.cancel();
    loop {
        sleep(FILE_POLL).await;
        let now = look().await;
        if now != known {
            changed.send_replace(Change::now(Wake::Catalog));
        }
        known = now;
    }
}

/// Where the blocking query stands.
#[derive(Debug, Clone, Copy, Default)]
struct Listed {
    /// The index of its last answer; 0 while there is none.
    index: u64,
    /// How often it had no answer.
    failures: u64,
}

/// Pauses between starts, which get longer unless they are rare.
struct Pause {
    backoff: ExponentialBackoff,
    last: Option<Instant>,
}

impl Pause {
    fn new() -> Self {
        Self { backoff: retries(), last: None }
    }

    /// The next one, from now.
    fn next(&mut self) -> Sleep {
        if self.last.is_some_and(|last| last.elapsed() > 2 * RETRY_MAX) {
            self.backoff = retries();
        }
        self.last = Some(Instant::now());
        sleep(self.backoff.next().unwrap_or(RETRY_MAX))
    }
}

/// The watch of one Nomad.
struct Watch {
    nomad: NomadCatalog,
    changed: watch::Sender<Change>,
    board: Arc<Board>,
    begun: CancellationToken,
}

impl Watch {
    async fn run(self) {
        let streams = self.nomad.streams();
        self.nomad.hints().change(|ledger| streams.iter().for_each(|stream| ledger.wants(stream)));
        // The streams begin at the index of the list's first answer, and wait for it.
        let (listed, start) = watch::channel(Listed::default());
        let streams = async {
            let first = join_all(streams.iter().map(|stream| self.follow(stream, start.clone())));
            first.await
        };
        tokio::join!(self.list(&listed), streams, self.retry(), self.publish());
    }

    fn wake(&self, by: Wake) {
        self.changed.send_replace(Change::now(by));
    }

    /// The blocking query, for ever.
    async fn list(&self, listed: &watch::Sender<Listed>) {
        let hints = self.nomad.hints();
        let (mut backoff, mut outage, mut pulse) = (retries(), Outage::default(), hints.pulse());
        let mut restarts = Pause::new();
        loop {
            let epoch = pulse.borrow_and_update().epoch;
            let before = listed.borrow().index;
            // The first answer comes at once: it gives the index to wait from.
            let answer = tokio::select! {
                answer = self.nomad.changed(before) => Some(answer),
                _ = pulse.wait_for(|pulse| pulse.epoch != epoch) => None,
            };
            let Some(answer) = answer else {
                // From an index that Nomad is yet to reach again, it would wait until the query's end.
                listed.send_modify(|listed| listed.index = 0);
                restarts.next().await;
                continue;
            };
            self.board.nomad_answered(answer.is_ok());
            match answer {
                Ok(now) => {
                    backoff = retries();
                    if let Some(extent) = outage.over(Instant::now()) {
                        tracing::info!(failed = extent.failures, outage_s = extent.seconds(), "watching Nomad again");
                    }
                    self.woke(before, now).await;
                    listed.send_modify(|listed| listed.index = now);
                    if now < before {
                        restarts.next().await;
                    }
                }
                Err(error) => {
                    listed.send_modify(|Listed { index, failures }| (*index, *failures) = (0, *failures + 1));
                    if cannot_watch(&mut outage, &error) {
                        self.wake(Wake::Catalog);
                    }
                    self.begun.cancel();
                    sleep(backoff.next().unwrap_or(RETRY_MAX)).await;
                }
            }
        }
    }

    async fn woke(&self, before: u64, now: u64) {
        let hints = self.nomad.hints();
        match hints.change(|ledger| ledger.woke(before, now)) {
            Woken::Explained => {}
            Woken::Reads => self.wake(Wake::Catalog),
            Woken::Waits => {
                sleep(EXPLAINED_WITHIN).await;
                if hints.change(|ledger| ledger.gives_up_on(now)) {
                    self.wake(Wake::Catalog);
                }
            }
        }
    }

    /// One stream, for ever.
    async fn follow(&self, namespace: &str, mut start: watch::Receiver<Listed>) {
        let hints = self.nomad.hints();
        let (mut restarts, mut outage, mut pulse) = (Pause::new(), Outage::default(), hints.pulse());
        loop {
            // Where the list cannot be read, a stream is of no use.
            let Ok(Listed { index, failures }) = start.wait_for(|listed| listed.index > 0).await.map(|listed| *listed)
            else {
                return;
            };
            let epoch = pulse.borrow_and_update().epoch;
            let ended = tokio::select! {
                ended = self.stream(namespace, index, &mut outage) => Some(ended),
                _ = pulse.wait_for(|pulse| pulse.epoch != epoch) => None,
            };
            hints.change(|ledger| ledger.closed(namespace));
            self.begun.cancel();
            let error = ended.map(|error| one_line(&chain(&error)));
            tracing::debug!(namespace, error, "an event stream of Nomad has ended");
            // Each stream costs a read of all services when it begins. Where Nomad was away, it is back with the list.
            tokio::select! {
                () = restarts.next() => {}
                _ = start.wait_for(|listed| listed.failures > failures) => {}
            }
        }
    }

    /// From its opening to its end.
    async fn stream(&self, namespace: &str, index: u64, outage: &mut Outage) -> NomadError {
        let hints = self.nomad.hints();
        let opened = async { Events::open(self.nomad.events(namespace, index).await?).await };
        let mut events = match opened.await {
            Ok(events) => events,
            Err(error) => {
                cannot_follow(outage, namespace, &error);
                return error;
            }
        };
        if let Some(extent) = outage.over(Instant::now()) {
            let (failed, outage_s) = (extent.failures, extent.seconds());
            tracing::info!(namespace, failed, outage_s, "following Nomad's events again");
        }
        hints.change(|ledger| ledger.opened(namespace));
        // What changed before is to be read, unless the first read is yet to come.
        if hints.ask(|ledger| ledger.floor().is_some()) {
            self.wake(Wake::Event);
        }
        if hints.ask(Ledger::has_streams) {
            self.begun.cancel();
        }
        loop {
            match events.next().await {
                Ok(Said { index, services, jobs }) => {
                    let reads = services.is_some_and(|line| hints.change(|ledger| ledger.heard(namespace, line)));
                    if self.nomad.jobs().changed(&jobs, index) || reads {
                        self.wake(Wake::Event);
                    }
                }
                Err(error) => return error,
            }
        }
    }

    /// Wakes the loops for what could not be read, at growing intervals.
    async fn retry(&self) {
        let hints = self.nomad.hints();
        let (mut pulse, mut backoff) = (hints.pulse(), retries());
        loop {
            if pulse.wait_for(|pulse| pulse.is_unfinished).await.is_err() {
                return;
            }
            sleep(backoff.next().unwrap_or(RETRY_MAX)).await;
            let reads = pulse.borrow().reads;
            if !pulse.borrow().is_unfinished {
                backoff = retries();
                continue;
            }
            self.nomad.jobs().retry();
            hints.change(Ledger::retries);
            self.wake(Wake::Retry);
            let Ok(finished) = pulse.wait_for(|pulse| pulse.reads != reads).await.map(|pulse| !pulse.is_unfinished)
            else {
                return;
            };
            if finished {
                backoff = retries();
            }
        }
    }

    /// Keeps the status up to date.
    async fn publish(&self) {
        let hints = self.nomad.hints();
        let mut pulse = hints.pulse();
        loop {
            let has_streams = pulse.borrow_and_update().has_streams;
            self.board.watches(has_streams, hints.reads());
            if pulse.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Reports that there is no stream: each change then costs a read of the whole catalog.
fn cannot_follow(outage: &mut Outage, namespace: &str, error: &NomadError) {
    let (kind, error) = (kind(error), one_line(&chain(error)));
    match outage.failed(&kind, Instant::now()) {
        Failure::New => {
            let hint = "a token needs the capability read-job in each of the namespaces";
            tracing::warn!(namespace, hint, %error, "no event stream of Nomad: each change costs a read of all services");
        }
        Failure::Reminder(extent) => {
            let (failed, outage_s) = (extent.failures, extent.seconds());
            tracing::warn!(namespace, failed, outage_s, %error, "still no event stream of Nomad");
        }
        Failure::Known => tracing::debug!(namespace, %error, "no event stream of Nomad, as before"),
    }
}

/// Whether to wake the loops: at the beginning of an outage a pass reports what it means for HAProxy, and whether the
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
