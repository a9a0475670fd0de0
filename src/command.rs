//! What a person or a program asks of a loop that runs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use tokio::sync::{OwnedMutexGuard, mpsc, oneshot};

use crate::apply::Outcome;
use crate::leader::NotLeading;
use crate::plane::Plane;

/// Commands that may wait for a loop: one that is in the middle of a pass takes them at its end.
const WAITING: usize = 8;

/// A command.
#[derive(Debug)]
pub enum Command {
    /// A pass now.
    Reconcile,
    /// The guard lets go of what it holds, and a pass runs.
    Release,
    /// HAProxy loads its configuration again, and a pass runs.
    Recover(oneshot::Sender<Result<Outcome, NotRecovered>>),
}

/// Why HAProxy was not recovered.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NotRecovered {
    /// It, or its API, gave no answer.
    #[error("HAProxy, or its Data Plane API, gives no answer: {0}")]
    Unreachable(String),
    /// It gave an answer, and could not load its configuration. The old process goes on.
    #[error("HAProxy could not load its configuration: {0}")]
    NotLoaded(String),
    /// Another controller writes.
    #[error(transparent)]
    NotLeading(#[from] NotLeading),
}

/// Why a command was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotTaken {
    /// Others wait already.
    #[error("too many requests wait for this HAProxy; try again")]
    Busy,
    /// Its loop has ended.
    #[error("this HAProxy is no longer registered, or the controller stops")]
    Ended,
}

/// The way to one loop, and to its HAProxy.
#[derive(Debug, Clone)]
pub struct Handle {
    /// The connection, for what is only read.
    pub plane: Arc<dyn Plane>,
    turn: Arc<tokio::sync::Mutex<()>>,
    commands: mpsc::Sender<Command>,
}

impl Handle {
    /// With the end that the loop reads.
    pub fn new(plane: Arc<dyn Plane>) -> (Self, mpsc::Receiver<Command>) {
        let (commands, taken) = mpsc::channel(WAITING);
        (Self { plane, turn: Arc::default(), commands }, taken)
    }

    /// The turn of one request among those that make HAProxy work: the next one waits until this is dropped.
    pub async fn turn(&self) -> OwnedMutexGuard<()> {
        self.turn.clone().lock_owned().await
    }

    /// Leaves a command for the loop.
    pub fn send(&self, command: Command) -> Result<(), NotTaken> {
        self.commands.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NotTaken::Busy,
            mpsc::error::TrySendError::Closed(_) => NotTaken::Ended,
        })
    }
}

/// The ways to all loops, by the names of their HAProxys.
#[derive(Debug, Clone, Default)]
pub struct Handles(Arc<Mutex<BTreeMap<String, Handle>>>);

impl Handles {
    /// Adds one.
    pub fn add(&self, name: &str, handle: Handle) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), handle);
    }

    /// Removes one.
    pub fn forget(&self, name: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// One of them.
    pub fn get(&self, name: &str) -> Option<Handle> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }
}
