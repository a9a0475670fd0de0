//! What the loop says of itself, for whoever asks whether it is alive and ready.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::desired::Note;

/// A pass may take this long before the loop counts as stuck: its slowest step, a reload, has a minute,
/// and there are several.
const STUCK_AFTER: Duration = Duration::from_secs(300);

/// What the loop tells of itself.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    /// Milliseconds since the start.
    last_turn: AtomicU64,
    converged: AtomicBool,
    notes: Mutex<Vec<Note>>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            last_turn: AtomicU64::new(0),
            converged: AtomicBool::new(false),
            notes: Mutex::default(),
        }
    }
}

impl Health {
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The loop turns.
    pub fn turned(&self) {
        self.last_turn.store(self.now(), Ordering::Relaxed);
    }

    /// A pass ended with HAProxy in line with the catalog.
    pub fn converged(&self) {
        self.converged.store(true, Ordering::Relaxed);
    }

    /// Takes the notes of a pass; whether they differ from the ones before.
    pub fn notes_changed(&self, notes: &[Note]) -> bool {
        let mut known = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = *known != notes;
        *known = notes.to_vec();
        changed
    }

    /// Whether the loop turns.
    pub fn is_live(&self) -> bool {
        Duration::from_millis(self.now().saturating_sub(self.last_turn.load(Ordering::Relaxed))) < STUCK_AFTER
    }

    /// Whether one pass has converged.
    pub fn is_ready(&self) -> bool {
        self.converged.load(Ordering::Relaxed)
    }
}
