//! Asks Nomad for the lock, renews it, and hands it back.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::errors::{chain, kind, one_line};
use crate::nomad::lock::{Granted, Holder, LockError, VariableLock};
use crate::reconcile::{RETRY_MAX, retries};
use crate::report::{Failure, Outage};

use super::{Leadership, Lease, NotLeading, Stamp};

/// A lock is renewed when its lease is this part of a TTL old, so that one renewal may fail before writes ask for one.
const RENEWALS: u32 = 3;
/// From a renewal that failed to the next one.
const RETRY: Duration = Duration::from_secs(1);
/// For handing the lock back; without an answer Nomad frees it later, as after a kill.
const RELEASE: Duration = Duration::from_secs(1);

/// A lock that is held.
#[derive(Debug, Clone)]
struct Held {
    granted: Granted,
    /// When the last request was sent that Nomad granted or renewed it for.
    confirmed: Stamp,
}

/// What the elector and the leases share.
#[derive(Debug)]
pub(super) struct Shared {
    lock: VariableLock,
    me: Holder,
    held: Mutex<Option<Held>>,
    /// Held for each renewal, as several writes at once need one only; with the time at which the last one failed.
    renewing: tokio::sync::Mutex<Option<Instant>>,
    leadership: watch::Sender<Leadership>,
    outage: Mutex<Outage>,
    /// Cancelled when no lock is wanted any more.
    stop: CancellationToken,
}

impl Shared {
    pub(super) fn leadership(&self) -> Leadership {
        self.leadership.borrow().clone()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    /// Whether this controller may write now. The lock is renewed first if the lease is half over or more.
    pub(super) async fn check(&self) -> Result<(), NotLeading> {
        let ttl = self.lock.config().ttl;
        if self.age().is_some_and(|age| age >= ttl / 2) {
            self.renew(ttl / 2).await;
        }
        match self.age() {
            Some(age) if age < ttl => Ok(()),
            Some(_) => {
                if self.leadership().leads() {
                    self.does_not_know("Nomad has not confirmed the lock in time".to_owned());
                }
                Err(NotLeading::of(&self.leadership()).unwrap_or(NotLeading::Nameless))
            }
            None => Err(NotLeading::of(&self.leadership()).unwrap_or(NotLeading::Nameless)),
        }
    }

    /// Whether the lease is good, as far as this process knows without a question.
    pub(super) fn is_good(&self) -> bool {
        self.age().is_some_and(|age| age < self.lock.config().ttl)
    }

    fn held(&self) -> Option<Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn hold(&self, held: Option<Held>) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = held;
    }

    /// How old the lease is; `None`: there is none.
    fn age(&self) -> Option<Duration> {
        self.held().map(|held| held.confirmed.age(Stamp::now()))
    }

    /// Renews the lock, unless its lease is younger than this, or Nomad gave no answer a moment ago.
    async fn renew(&self, at_least: Duration) {
        let mut failed = self.renewing.lock().await;
        let Some(Held { granted, confirmed }) = self.held() else { return };
        if confirmed.age(Stamp::now()) < at_least || failed.is_some_and(|at| at.elapsed() < RETRY) {
            return;
        }
        let sent = Stamp::now();
        match self.lock.renew(&granted).await {
            Ok(()) => {
                *failed = None;
                self.hold(Some(Held { granted, confirmed: sent }));
                self.know(Leadership::Leads);
            }
            Err(LockError::Lost { path, message }) => {
                *failed = None;
                tracing::warn!(lock = path, nomad = message, "lost the lock");
                self.hold(None);
                self.know(Leadership::StandsBy { holder: None });
            }
            Err(error) => {
                *failed = Some(Instant::now());
                let why = self.failed(&error);
                // Nomad keeps the lock for longer; a later renewal may find it.
                if self.age().is_none_or(|age| age >= self.lock.config().ttl) {
                    self.does_not_know(why);
                }
            }
        }
    }

    /// One attempt to acquire the lock. First a look at the variable: at once if `index` is 0, else when it has changed
    /// since that index. `true`: this controller leads.
    async fn try_to_acquire(&self, index: &mut u64) -> Result<bool, LockError> {
        let look = self.lock.look(*index, self.lock.config().ttl);
        // An attempt that has begun is waited for: a lock whose ID does not arrive is held by nobody until it falls.
        let Some(seen) = self.stop.run_until_cancelled(look).await else { return Ok(false) };
        let seen = seen?;
        *index = seen.index;
        let sent = Stamp::now();
        match self.lock.acquire(&self.me).await {
            Ok(granted) => {
                self.hold(Some(Held { granted, confirmed: sent }));
                self.know(Leadership::Leads);
                Ok(true)
            }
            Err(LockError::Held { .. }) => {
                self.know(Leadership::StandsBy { holder: seen.holder });
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Waits for the lock and acquires it. An attempt is made whenever the variable changes, and at least once in a TTL,
    /// as a token may be changed meanwhile.
    async fn acquire(&self) {
        let (mut index, mut backoff) = (0, retries());
        while !self.stop.is_cancelled() {
            let pause = match self.try_to_acquire(&mut index).await {
                Ok(true) => return,
                // The variable was deleted, or is not visible yet.
                Ok(false) if index == 0 => RETRY,
                Ok(false) => {
                    backoff = retries();
                    continue;
                }
                Err(error) => {
                    index = 0;
                    let why = self.failed(&error);
                    self.does_not_know(why);
                    backoff.next().unwrap_or(RETRY_MAX).min(self.lock.config().ttl)
                }
            };
            self.stop.run_until_cancelled(sleep(pause)).await;
        }
    }

    /// Holds the lock for as long as it can.
    async fn keep(&self) {
        let interval = self.lock.config().ttl / RENEWALS;
        let mut index = self.held().map_or(0, |held| held.granted.index);
        while let Some(age) = self.age() {
            let left = interval.saturating_sub(age);
            // After a failure the lease is older than that.
            let due = sleep(if left.is_zero() { RETRY } else { left });
            tokio::select! {
                () = due => self.renew(interval).await,
                now = self.changed(index) => {
                    index = now;
                    self.renew(Duration::ZERO).await;
                }
            }
        }
    }

    /// Returns when the variable has another index than this, which it then has: a renewal does not change it, so a person
    /// may have released the lock, or deleted the variable.
    async fn changed(&self, index: u64) -> u64 {
        match self.lock.look(index, self.lock.config().ttl).await {
            Ok(seen) if seen.index != index => seen.index,
            // What does not answer is asked again after the next renewal.
            Ok(_) | Err(_) => std::future::pending().await,
        }
    }

    /// Nomad answered.
    fn know(&self, now: Leadership) {
        if let Some(extent) = self.outage.lock().unwrap_or_else(PoisonError::into_inner).over(Instant::now()) {
            tracing::info!(failed = extent.failures, outage_s = extent.seconds(), "Nomad answers about the lock again");
        }
        let lock = &self.lock.config().path;
        self.leadership.send_if_modified(|known| {
            let is_new = *known != now;
            if is_new {
                match &now {
                    Leadership::Leads => tracing::info!(%lock, "leads: this controller writes"),
                    Leadership::StandsBy { holder } => {
                        let leader = holder.as_ref().map(ToString::to_string);
                        tracing::info!(%lock, leader, "stands by: this controller writes nothing");
                    }
                    Leadership::Unknown { .. } => {}
                }
                *known = now;
            }
            is_new
        });
    }

    /// Nomad did not answer.
    fn does_not_know(&self, why: String) {
        self.leadership.send_if_modified(|known| {
            let (since, was_known, is_new) = match known {
                Leadership::Unknown { since, why: before, was_known } => (*since, *was_known, *before != why),
                Leadership::Leads | Leadership::StandsBy { .. } => (Instant::now(), true, true),
            };
            *known = Leadership::Unknown { since, why, was_known };
            is_new
        });
    }

    /// Logs a failure when it is new, and now and then.
    fn failed(&self, error: &LockError) -> String {
        let (kind, error) = (kind(error), one_line(&chain(error)));
        match self.outage.lock().unwrap_or_else(PoisonError::into_inner).failed(&kind, Instant::now()) {
            Failure::New => tracing::error!(%error, "Nomad does not answer about the lock"),
            Failure::Reminder(extent) => {
                let (failed, outage_s) = (extent.failures, extent.seconds());
                tracing::error!(failed, outage_s, %error, "Nomad still does not answer about the lock");
            }
            Failure::Known => tracing::debug!(%error, "Nomad does not answer about the lock, as before"),
        }
        error
    }
}

/// The task that asks for the lock. It ends with this; only [`Elector::release`] hands the lock back.
#[derive(Debug)]
pub struct Elector {
    shared: Arc<Shared>,
    task: AbortOnDropHandle<()>,
}

impl Elector {
    /// Starts to ask for the lock, now and until it ends.
    pub fn start(lock: VariableLock, me: Holder) -> Self {
        Self::run(Arc::new(Shared::new(lock, me)))
    }

    /// Acquires the lock if it is free, and holds it.
    pub async fn take(lock: VariableLock, me: Holder) -> Result<Self, NotTaken> {
        let shared = Arc::new(Shared::new(lock, me));
        if shared.try_to_acquire(&mut 0).await? {
            return Ok(Self::run(shared));
        }
        Err(NotTaken::Held { holder: shared.leadership().holder().cloned() })
    }

    fn run(shared: Arc<Shared>) -> Self {
        let of_task = shared.clone();
        let task = tokio::spawn(async move {
            let stop = of_task.stop.clone();
            while stop.run_until_cancelled(of_task.keep()).await.is_some() {
                of_task.acquire().await;
            }
        });
        Self { shared, task: AbortOnDropHandle::new(task) }
    }

    /// For those who write.
    pub fn lease(&self) -> Lease {
        Lease(Some(self.shared.clone()))
    }

    /// Hands the lock back, so that another controller may lead at once. Nothing may be written after this is called.
    pub async fn release(self) {
        let Self { shared, task } = self;
        shared.stop.cancel();
        let lock = shared.lock.config().path.clone();
        let released = timeout(RELEASE, async {
            drop(task.await);
            let Some(Held { granted, .. }) = shared.held() else { return Ok(()) };
            shared.hold(None);
            shared.lock.release(&granted).await.inspect(|()| tracing::info!(%lock, "released the lock"))
        });
        let why = match released.await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => chain(&error),
            Err(_) => format!("Nomad did not answer within {RELEASE:?}"),
        };
        tracing::warn!(%lock, error = why, "the lock is not released; Nomad frees it later");
    }
}

/// Why a command does not have the lock.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// Another one has it.
    #[error(
        "nothing is written, as {} leads (`leader.lock`) and keeps HAProxy in line by itself; hint: end it first, or \
         write without the lock: `--no-lock`",
        .holder.as_ref().map_or_else(|| "another controller".to_owned(), |holder| format!("the controller {holder}"))
    )]
    Held {
        /// Who, if that is known.
        holder: Option<Holder>,
    },
    /// It could not be asked for.
    #[error("nothing is written, as the lock of `leader.lock` cannot be acquired; hint: write without it: `--no-lock`")]
    Failed(#[from] LockError),
}

impl Shared {
    fn new(lock: VariableLock, me: Holder) -> Self {
        Self {
            lock,
            me,
            held: Mutex::default(),
            renewing: tokio::sync::Mutex::default(),
            leadership: watch::Sender::new(Leadership::unasked()),
            outage: Mutex::default(),
            stop: CancellationToken::new(),
        }
    }
}

/// This process, as others read it: its allocation in Nomad, else its host and process ID. `listen` is where it serves
/// its API; an address that is no use elsewhere is left out.
pub fn me(listen: Option<SocketAddr>) -> Holder {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let name = match (set("NOMAD_ALLOC_NAME"), set("NOMAD_ALLOC_ID")) {
        (Some(name), Some(id)) => format!("{name}, allocation {}", id.chars().take(8).collect::<String>()),
        _ => {
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| set("HOSTNAME"));
            let host = host.map_or_else(|| "an unknown host".to_owned(), |host| host.trim().to_owned());
            format!("{host}, process {}", std::process::id())
        }
    };
    let http = listen.filter(|address| !address.ip().is_unspecified()).map(|address| format!("http://{address}"));
    Holder { name, http }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

    use axum::http::StatusCode;

    use super::*;
    use crate::nomad::lock::{LockConfig, TTL_MIN};
    use crate::nomad::{Nomad, NomadConfig};

    /// A Nomad that grants the lock, and answers renewals with this status.
    pub(crate) struct Scripted {
        status: Arc<AtomicU16>,
        renewals: Arc<AtomicUsize>,
        shared: Arc<Shared>,
        _server: AbortOnDropHandle<()>,
    }

    /// Serves on a port that the kernel chooses, until this is dropped: its URL.
    pub(crate) async fn serve(router: axum::Router) -> (String, AbortOnDropHandle<()>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("it has one"));
        let server = tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
        (url, AbortOnDropHandle::new(server))
    }

    impl Scripted {
        pub(crate) async fn new() -> Self {
            let (status, renewals) = (Arc::new(AtomicU16::new(200)), Arc::new(AtomicUsize::new(0)));
            let (answers, counted) = (status.clone(), renewals.clone());
            let router = axum::Router::new().fallback(async move |uri: axum::http::Uri| {
                if uri.query().is_some_and(|query| query.contains("lock-renew")) {
                    counted.fetch_add(1, Ordering::SeqCst);
                    return (StatusCode::from_u16(answers.load(Ordering::SeqCst)).expect("a status"), String::new());
                }
                let granted = r#"{"ModifyIndex": 7, "Lock": {"ID": "x"}}"#;
                (StatusCode::OK, granted.to_owned())
            });
            let (address, server) = serve(router).await;
            let config = NomadConfig::new(address);
            let nomad = Nomad::new(config).expect("good settings");
            let path = "locks/test".parse().expect("a path");
            let lock = VariableLock::new(nomad, LockConfig { path, namespace: "default".to_owned(), ttl: TTL_MIN });
            let me = Holder { name: "me".to_owned(), http: None };
            let granted = lock.acquire(&me).await.expect("it is granted");
            let shared = Arc::new(Shared::new(lock, me));
            shared.hold(Some(Held { granted, confirmed: Stamp::now() }));
            shared.know(Leadership::Leads);
            Self { status, renewals, shared, _server: server }
        }

        pub(crate) fn lease(&self) -> Lease {
            Lease(Some(self.shared.clone()))
        }

        /// The last confirmation was this long ago.
        pub(crate) fn ago(&self, seconds: u64) {
            let mut held = self.shared.held().expect("it is held");
            held.confirmed.wall -= Duration::from_secs(seconds);
            self.shared.hold(Some(held));
        }

        /// Whether a write is allowed, and how often Nomad was asked for that.
        async fn check(&self) -> (Result<(), NotLeading>, usize) {
            let before = self.renewals.load(Ordering::SeqCst);
            let result = self.shared.check().await;
            (result, self.renewals.load(Ordering::SeqCst) - before)
        }
    }

    #[tokio::test]
    async fn a_young_lease_asks_nobody_and_an_older_one_is_renewed_once() {
        let scripted = Scripted::new().await;
        assert_eq!(scripted.check().await, (Ok(()), 0));
        for seconds in [6, 60] {
            scripted.ago(seconds);
            assert_eq!(scripted.check().await, (Ok(()), 1), "{seconds} s");
            assert_eq!(scripted.check().await, (Ok(()), 0), "{seconds} s: it is young again");
        }
        scripted.ago(6);
        let asked = (0..8).map(|_| scripted.shared.check());
        assert!(futures_util::future::join_all(asked).await.iter().all(Result::is_ok));
        assert_eq!(scripted.renewals.load(Ordering::SeqCst), 3, "several writes at once take one renewal");
    }

    #[tokio::test]
    async fn without_an_answer_a_lease_lasts_one_ttl_and_no_longer() {
        let scripted = Scripted::new().await;
        scripted.status.store(500, Ordering::SeqCst);
        scripted.ago(6);
        assert_eq!(scripted.check().await, (Ok(()), 1));
        scripted.ago(5);
        let (refused, asked) = scripted.check().await;
        assert!(matches!(&refused, Err(NotLeading::Unknown(why)) if why.contains("in time")), "{refused:?}");
        assert_eq!(asked, 0, "it failed a moment ago");
        assert!(scripted.shared.held().is_some(), "Nomad may still have it");

        let scripted = Scripted::new().await;
        scripted.status.store(500, Ordering::SeqCst);
        scripted.ago(11);
        let (refused, asked) = scripted.check().await;
        assert!(matches!(&refused, Err(NotLeading::Unknown(why)) if why.contains("500")), "{refused:?}");
        assert_eq!((asked, scripted.shared.leadership().leads()), (1, false));
    }

    #[tokio::test]
    async fn a_lock_that_is_lost_is_not_asked_for_again_by_a_write() {
        let scripted = Scripted::new().await;
        scripted.status.store(409, Ordering::SeqCst);
        scripted.ago(6);
        let refused = Err(NotLeading::Nameless);
        assert_eq!(scripted.check().await, (refused.clone(), 1));
        scripted.status.store(200, Ordering::SeqCst);
        assert_eq!(scripted.check().await, (refused, 0));
        assert_eq!(scripted.shared.leadership(), Leadership::StandsBy { holder: None });
    }
}
