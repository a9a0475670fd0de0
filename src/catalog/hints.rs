//! The [`Ledger`], shared by the task that watches Nomad and the passes that read it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

use super::ledger::{Cause, Ledger};

/// How many reads there were, by what they were for.
pub type Reads = BTreeMap<Cause, u64>;

/// What the watching task needs to know of the reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Pulse {
    /// [`Ledger::epoch`].
    pub(super) epoch: u64,
    /// How many reads there have been, of nothing included.
    pub(super) reads: u64,
    /// [`Ledger::is_unfinished`].
    pub(super) is_unfinished: bool,
    /// [`Ledger::has_streams`].
    pub(super) has_streams: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Hints {
    /// Never locked while Nomad is asked.
    state: Mutex<(Ledger, Reads)>,
    pulse: watch::Sender<Pulse>,
}

impl Hints {
    /// Of these namespaces.
    pub(super) fn new(namespaces: Vec<String>) -> Self {
        let reads = Cause::ALL.map(|cause| (cause, 0)).into();
        Self { state: Mutex::new((Ledger::new(namespaces), reads)), pulse: watch::Sender::default() }
    }

    pub(super) fn ask<T>(&self, question: impl FnOnce(&Ledger) -> T) -> T {
        question(&self.state.lock().unwrap_or_else(PoisonError::into_inner).0)
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Ledger) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut state.0);
        self.publish(&state.0, 0);
        result
    }

    /// Counts a read.
    pub(super) fn has_read(&self, cause: Cause) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state.1.entry(cause).or_default() += 1;
    }

    /// A read is over, whatever it was for; `are_current`: the jobs that it needed could be read.
    pub(super) fn has_tried(&self, are_current: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0.has_jobs(are_current);
        self.publish(&state.0, 1);
    }

    /// How many there were.
    pub(super) fn reads(&self) -> Reads {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    pub(super) fn pulse(&self) -> watch::Receiver<Pulse> {
        self.pulse.subscribe()
    }

    fn publish(&self, ledger: &Ledger, reads: u64) {
        self.pulse.send_if_modified(|pulse| {
            let now = Pulse {
                epoch: ledger.epoch(),
                reads: pulse.reads + reads,
                is_unfinished: ledger.is_unfinished(),
                has_streams: ledger.has_streams(),
            };
            now != std::mem::replace(pulse, now)
        });
    }
}
