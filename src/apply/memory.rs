//! What one pass leaves to the next. Losing it costs a look more, never correctness.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::desired::{Backend, BackendName, Code, Desired, Note, ServerName, ServiceKey, Severity};
use crate::observed::{Foreign, Observed};
use crate::plan::{Action, Waiting};

/// From a refusal, or a reload that failed, to the next attempt: the cause may lie outside of what is
/// seen here (a port that was taken, a name that did not resolve). Each further one waits twice as long.
const FIRST_RETRY: Duration = Duration::from_secs(30);
/// The longest wait.
const LAST_RETRY: Duration = Duration::from_secs(15 * 60);

/// What is known of the running process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Process {
    /// Nothing: it may differ from its file in anything, so it is looked at.
    #[default]
    Unknown,
    /// This process has just loaded the file, so it has all of it but the drains.
    Loaded {
        /// Its ID.
        pid: u64,
    },
    /// This process was seen to have what the file says at this version.
    Agrees {
        /// Its ID.
        pid: u64,
        /// The version.
        version: u64,
    },
}

/// When something is tried again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Retry {
    wait: Duration,
    at: Instant,
}

impl Retry {
    fn first(now: Instant) -> Self {
        Self { wait: FIRST_RETRY, at: now + FIRST_RETRY }
    }

    fn next(self, now: Instant) -> Self {
        let wait = (self.wait * 2).min(LAST_RETRY);
        Self { wait, at: now + wait }
    }

    fn is_due(self, now: Instant) -> bool {
        now >= self.at
    }
}

/// A change of one backend that HAProxy refuses.
#[derive(Debug)]
struct Refusal {
    /// What was asked for; `None`: that the backend goes.
    wanted: Option<Backend>,
    /// What was there that is not ours: the cause may be in it.
    foreign: Foreign,
    /// The services that it concerns.
    services: BTreeSet<ServiceKey>,
    /// HAProxy's words.
    message: String,
    retry: Retry,
}

/// A change that HAProxy could not load.
#[derive(Debug)]
struct Unloadable {
    /// What took the reload.
    waiting: Waiting,
    /// What was there that is not ours: the cause may be in it.
    foreign: Foreign,
    /// The services that it concerns.
    services: BTreeSet<ServiceKey>,
    /// HAProxy's words.
    message: String,
    retry: Retry,
}

/// What a process still lacked after a reload that was made for it: the next one would not help either.
#[derive(Debug)]
pub(super) struct Unhelped {
    /// Servers that it has not.
    pub(super) lacks: Vec<(BackendName, ServerName)>,
    /// What it does not take.
    pub(super) actions: Vec<Action>,
    /// Of the text that was loaded, without the servers of ours: a live change of those changes nothing.
    pub(super) digest: u64,
    /// The services that it concerns.
    pub(super) services: BTreeSet<ServiceKey>,
    /// In words.
    pub(super) finding: String,
}

/// What a controller remembers of one HAProxy.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// The last pass was seen to end well, so there is nothing to clear up.
    clean: bool,
    process: Process,
    /// When HAProxy was last reloaded by us.
    reloaded: Option<Instant>,
    refused: BTreeMap<BackendName, Refusal>,
    unloadable: Option<Unloadable>,
    unhelped: Option<Unhelped>,
}

impl Memory {
    /// Whether an earlier run may have left something behind.
    pub(super) fn is_clean(&self) -> bool {
        self.clean
    }

    /// Takes note of the process that answers. Another one may load what the last one could not, and has
    /// forgotten what the last one was told.
    pub(super) fn meet(&mut self, pid: u64, everything: bool) {
        let known = match self.process {
            Process::Unknown => None,
            Process::Loaded { pid } | Process::Agrees { pid, .. } => Some(pid),
        };
        if known.is_some_and(|known| known != pid) {
            self.unloadable = None;
            self.unhelped = None;
        }
        if everything || known != Some(pid) {
            self.process = Process::Unknown;
        }
    }

    /// What is known of the process, now that the file is at this version.
    pub(super) fn process(&self, version: u64) -> Process {
        match self.process {
            Process::Agrees { version: seen, .. } if seen != version => Process::Unknown,
            known => known,
        }
    }

    /// The process may differ from its file.
    pub(super) fn doubt(&mut self) {
        self.process = Process::Unknown;
    }

    /// HAProxy has loaded the file.
    pub(super) fn loaded(&mut self, pid: u64, now: Instant) {
        self.process = Process::Loaded { pid };
        self.reloaded = Some(now);
    }

    /// The process has what the file says.
    pub(super) fn agrees(&mut self, pid: u64, version: u64) {
        self.process = Process::Agrees { pid, version };
    }

    /// A pass is over.
    pub(super) fn ended(&mut self, well: bool) {
        self.clean = well;
        if !well {
            self.doubt();
        }
    }

    /// When the next reload may be made, if not now.
    pub(super) fn reload_waits(&self, min_interval: Duration, now: Instant) -> Option<Instant> {
        self.reloaded.map(|last| last + min_interval).filter(|next| *next > now)
    }

    /// Whether a reload did not help against this, with just this text.
    pub(super) fn is_unhelped(&self, lacks: &[(BackendName, ServerName)], actions: &[Action], digest: u64) -> bool {
        self.unhelped.as_ref().is_some_and(|known| {
            known.digest == digest
                && lacks.iter().all(|server| known.lacks.contains(server))
                && actions.iter().all(|action| known.actions.contains(action))
        })
    }

    /// What a reload that was made for a finding did not help against, if anything.
    pub(super) fn unhelped(&mut self, unhelped: Option<Unhelped>) {
        self.unhelped = unhelped;
    }

    /// HAProxy refuses a change of this backend. `false`: it was left out already, and what is left of the
    /// change is refused as well.
    pub(super) fn refuse(
        &mut self,
        name: BackendName,
        wanted: Option<Backend>,
        observed: &Observed,
        services: BTreeSet<ServiceKey>,
        message: String,
        now: Instant,
    ) -> bool {
        let earlier = self.refused.get(&name).map(|refusal| refusal.retry);
        let retry = match earlier {
            None => Retry::first(now),
            Some(retry) if retry.is_due(now) => retry.next(now),
            Some(_) => return false,
        };
        self.refused.insert(name, Refusal { wanted, foreign: observed.foreign(), services, message, retry });
        true
    }

    /// Forgets the refusals of what is no longer asked for, or may have lost its cause.
    pub(super) fn keep_refusals(&mut self, desired: &Desired, observed: &Observed) {
        if !self.refused.is_empty() {
            let foreign = observed.foreign();
            self.refused.retain(|name, refusal| {
                desired.backends.get(name) == refusal.wanted.as_ref() && refusal.foreign == foreign
            });
        }
    }

    /// The backends to leave out now; a refused one that is due again is not among them.
    pub(super) fn left_out(&self, now: Instant) -> BTreeSet<BackendName> {
        let waits = self.refused.iter().filter(|(_, refusal)| !refusal.retry.is_due(now));
        waits.map(|(name, _)| name.clone()).collect()
    }

    /// A plan was written: what was due again was taken.
    pub(super) fn taken(&mut self, now: Instant) {
        self.refused.retain(|_, refusal| !refusal.retry.is_due(now));
    }

    /// HAProxy could not load a change.
    pub(super) fn not_loaded(
        &mut self,
        waiting: Waiting,
        observed: &Observed,
        services: BTreeSet<ServiceKey>,
        message: String,
        now: Instant,
    ) {
        let earlier = self.unloadable.take().filter(|earlier| earlier.waiting == waiting);
        let retry = earlier.map_or_else(|| Retry::first(now), |earlier| earlier.retry.next(now));
        let foreign = observed.foreign();
        self.unloadable = Some(Unloadable { waiting, foreign, services, message, retry });
    }

    /// HAProxy could load a change.
    pub(super) fn could_load(&mut self) {
        self.unloadable = None;
    }

    /// Whether a reload for this change, or one with no change at all, would be the one that failed, and is
    /// not due yet. Forgets it when the change is another, or when what is not ours is.
    pub(super) fn is_unloadable(&mut self, waiting: &Waiting, observed: &Observed, now: Instant) -> bool {
        let is_other = |known: &mut Unloadable| !waiting.is_empty() && known.waiting != *waiting;
        self.unloadable.take_if(|known| is_other(known) || known.foreign != observed.foreign());
        self.unloadable.as_ref().is_some_and(|known| !known.retry.is_due(now))
    }

    /// When the next refused or unloadable change is due.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        let refused = self.refused.values().map(|refusal| refusal.retry.at);
        refused.chain(self.unloadable.as_ref().map(|known| known.retry.at)).min()
    }

    /// What there is to say about what is left out.
    pub(super) fn notes(&self) -> Vec<Note> {
        let refused = self.refused.iter().flat_map(|(name, refusal)| {
            let Refusal { wanted, foreign: _, services, message, retry: _ } = refusal;
            let text = match wanted {
                Some(_) => format!("left as it was: HAProxy refuses the backend {name}: {message}"),
                None => format!("its backend {name} stays, without instances: HAProxy refuses to lose it: {message}"),
            };
            errors(services, Code::Refused, text)
        });
        let unloadable = self.unloadable.iter().flat_map(|known| {
            let text = format!("left as it was: HAProxy could not load the change: {}", known.message);
            errors(&known.services, Code::NotLoaded, text)
        });
        let unhelped = self.unhelped.iter().flat_map(|known| {
            let text = format!("the process differs from its file, and a reload does not help: {}", known.finding);
            errors(&known.services, Code::ProcessDiffers, text)
        });
        refused.chain(unloadable).chain(unhelped).collect()
    }
}

fn errors(services: &BTreeSet<ServiceKey>, code: Code, text: String) -> impl Iterator<Item = Note> + '_ {
    let note = move |service: &ServiceKey| Note {
        severity: Severity::Error,
        service: service.clone(),
        code,
        text: text.clone(),
    };
    services.iter().map(note)
}
