//! One of several controllers acts: the one that holds a lock on a Nomad variable. Off by default.
//!
//! The holder leads. The others stand by: they read and plan as it does, write nothing, and one of them takes over as soon
//! as Nomad frees the lock: at once when the leader ends, 2 × TTL + [`DELAY`](crate::nomad::lock::DELAY) after its last
//! renewal when it is killed.
//!
//! **No write without the lock.** A pass is given a [`Lease`], and whatever changes a HAProxy asks it right before: each
//! request to the Data Plane API but reads, each command of a socket but reads, the replacement of the file. The lease
//! lasts one TTL from the moment when the last renewal was *sent*, while Nomad keeps the lock for two TTLs and the delay:
//! a write that began in time has at least that long to end before another controller can write. From the middle of the
//! TTL on, a write renews the lock first, and does nothing if Nomad does not confirm it. So a controller that was stopped
//! (SIGSTOP) for longer asks Nomad before it goes on, and writes nothing if another one leads by then.
//!
//! What a lock cannot do: HAProxy does not know it, so a process that is stopped between the question and the system call
//! that follows it makes that one call when it wakes. A write of the file names the version that it was computed from, so
//! it is refused then; a state of a server in the process is asked for again until it is sent ([`Lease::run`], and the
//! body of its request), is set once, and the leader's next look sets it right.
//!
//! **Two clocks.** A lease is as old as the clock says that claims more. The monotonic one goes on while the process is
//! stopped, but not while the machine is suspended; the wall clock goes on in both, but may be set. A wall clock that
//! jumps causes one more renewal.
//!
//! **Without Nomad** nobody can confirm the lock, so after one TTL this controller writes nothing, and leads again when
//! Nomad answers, if the lock is still its own. That takes nothing away: instances are taken out of service for what a
//! fresh catalog says (invariant 7), and without Nomad there is none.

mod elector;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use thiserror::Error;
use tokio::sync::watch;

use crate::nomad::lock::Holder;

use elector::Shared;
#[cfg(test)]
pub(crate) use elector::tests::{Scripted, serve};
pub use elector::{Elector, me};

/// Whether this controller leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leadership {
    /// It does.
    Leads,
    /// Another one does, or none yet as the lock of the one before is not free.
    StandsBy {
        /// The one that last wrote its name into the variable; `None`: that is not known.
        holder: Option<Holder>,
    },
    /// Nomad does not say, or does not confirm it.
    Unknown {
        /// Since when.
        since: tokio::time::Instant,
        /// Why.
        why: String,
        /// Whether it was known before.
        was_known: bool,
    },
}

impl Leadership {
    /// Nomad has not been asked.
    fn unasked() -> Self {
        let since = tokio::time::Instant::now();
        Self::Unknown { since, why: "Nomad has not answered yet".to_owned(), was_known: false }
    }

    /// Whether this controller leads.
    pub fn leads(&self) -> bool {
        *self == Self::Leads
    }

    /// The leader, if it is another one that is known.
    pub fn holder(&self) -> Option<&Holder> {
        match self {
            Self::StandsBy { holder } => holder.as_ref(),
            Self::Leads | Self::Unknown { .. } => None,
        }
    }
}

/// This controller does not lead, so it does not write.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotLeading {
    /// Another one does.
    #[error("this controller stands by and writes nothing: the leader is {0}")]
    Other(Holder),
    /// Another one does, or did until a moment ago.
    #[error("this controller stands by and writes nothing: another one has the lock, or had it a moment ago")]
    Nameless,
    /// That is not known.
    #[error("this controller writes nothing, as it is not known whether it leads: {0}")]
    Unknown(String),
}

impl NotLeading {
    /// `None`: it leads.
    pub fn of(leadership: &Leadership) -> Option<Self> {
        match leadership {
            Leadership::Leads => None,
            Leadership::StandsBy { holder: Some(holder) } => Some(Self::Other(holder.clone())),
            Leadership::StandsBy { holder: None } => Some(Self::Nameless),
            Leadership::Unknown { since: _, why, was_known: _ } => Some(Self::Unknown(why.clone())),
        }
    }
}

/// The right to write. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Lease(Option<Arc<Shared>>);

impl Lease {
    /// Without an election, a controller always leads.
    pub const ALWAYS: Self = Self(None);

    /// Whether this controller leads, as far as is known: a pass plans by it. A write asks [`Self::check`].
    pub fn leads(&self) -> bool {
        self.0.as_ref().is_none_or(|shared| shared.leadership().leads())
    }

    /// Whether a write that has begun may go on, as far as this process knows without a question.
    pub(crate) fn is_good(&self) -> bool {
        self.0.as_ref().is_none_or(|shared| shared.is_good())
    }

    /// Asked right before each write. Asks Nomad if the lease may be over before the write is.
    pub async fn check(&self) -> Result<(), NotLeading> {
        match &self.0 {
            Some(shared) => shared.check().await,
            None => Ok(()),
        }
    }

    /// Runs a write that nothing but the lease keeps from undoing what another leader did since: the lease is asked right
    /// before it, and again each time it goes on, as the process may have been stopped while it connected. Only for
    /// writes that may be cut short.
    pub async fn run<T>(&self, write: impl Future<Output = T>) -> Result<T, NotLeading> {
        self.check().await?;
        let mut write = pin!(write);
        poll_fn(|context| match self.is_good() {
            true => write.as_mut().poll(context).map(Ok),
            false => Poll::Ready(Err(NotLeading::Nameless)),
        })
        .await
    }

    /// Whether this controller leads, now and whenever that changes; `None`: there is no election.
    pub fn subscribe(&self) -> Option<watch::Receiver<Leadership>> {
        self.0.as_ref().map(|shared| shared.subscribe())
    }

    /// The same, to wait for.
    pub fn election(&self) -> Election {
        let leadership = self.subscribe();
        let led = self.leads();
        Election { leadership, led }
    }
}

/// When a controller begins, or ceases, to lead.
#[derive(Debug)]
pub struct Election {
    leadership: Option<watch::Receiver<Leadership>>,
    /// Whether it led when that was last asked.
    led: bool,
}

impl Election {
    /// Returns when Nomad has said who leads; at once, if there is no election.
    pub async fn first_answer(&mut self) {
        if let Some(leadership) = &mut self.leadership {
            let is_known = |now: &Leadership| !matches!(now, Leadership::Unknown { was_known: false, .. });
            if let Ok(now) = leadership.wait_for(is_known).await {
                self.led = now.leads();
            }
        }
    }

    /// Returns when this controller leads and did not before, or the other way round. Loses nothing if it is dropped.
    pub async fn turned(&mut self) {
        let led = self.led;
        if let Some(leadership) = &mut self.leadership
            && let Ok(now) = leadership.wait_for(|now| now.leads() != led).await
        {
            self.led = now.leads();
            return;
        }
        std::future::pending::<()>().await;
    }
}

/// A moment, by the clock that counts while the process is stopped, and by the one that counts also while the machine is
/// suspended.
#[derive(Debug, Clone, Copy)]
struct Stamp {
    monotonic: Instant,
    wall: SystemTime,
}

impl Stamp {
    fn now() -> Self {
        Self { monotonic: Instant::now(), wall: SystemTime::now() }
    }

    /// How long ago it was: the most that a clock says. A wall clock that was set back says nothing.
    fn age(self, now: Self) -> Duration {
        let wall = now.wall.duration_since(self.wall).unwrap_or_default();
        now.monotonic.saturating_duration_since(self.monotonic).max(wall)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_as_old_as_the_clock_says_that_claims_more() {
        let sent = Stamp::now();
        let later = |monotonic: u64, wall: i64| {
            let by = Duration::from_secs(wall.unsigned_abs());
            let wall = if wall < 0 { sent.wall - by } else { sent.wall + by };
            Stamp { monotonic: sent.monotonic + Duration::from_secs(monotonic), wall }
        };
        for (monotonic, wall, age) in [
            (3, 3, 3),
            (60, 60, 60),
            // The machine was suspended.
            (1, 3600, 3600),
            // The wall clock was set back.
            (7, -3600, 7),
        ] {
            assert_eq!(sent.age(later(monotonic, wall)), Duration::from_secs(age), "{monotonic} {wall}");
        }
    }

    #[tokio::test]
    async fn without_an_election_it_leads() {
        assert!(
            Lease::ALWAYS.leads() && Lease::ALWAYS.run(async {}).await.is_ok() && Lease::ALWAYS.subscribe().is_none()
        );
    }
}
