//! Whether a HAProxy that was found in Nomad is still registered. This is asked when a pass over it fails: Nomad
//! deregisters a service one millisecond before it stops its task (seen), so a HAProxy that leaves also fails.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

/// How long the report of a failed pass waits for Nomad.
const PATIENCE: Duration = Duration::from_secs(2);

/// Reads the registrations, and says when.
#[derive(Debug)]
pub struct Register {
    asked: Arc<Notify>,
    read: watch::Sender<Instant>,
}

/// One of the HAProxys that were found.
#[derive(Debug, Clone)]
pub struct Membership {
    asked: Arc<Notify>,
    read: watch::Receiver<Instant>,
}

impl Default for Register {
    fn default() -> Self {
        Self { asked: Arc::default(), read: watch::Sender::new(Instant::now()) }
    }
}

impl Register {
    /// For one more HAProxy.
    pub fn membership(&self) -> Membership {
        Membership { asked: self.asked.clone(), read: self.read.subscribe() }
    }

    /// Returns when a HAProxy asks.
    pub async fn asked(&self) {
        self.asked.notified().await;
    }

    /// The registrations were read by a read that began then; whoever is no longer registered is forgotten.
    pub fn was_read(&self, began: Instant) {
        self.read.send_replace(began);
    }
}

impl Membership {
    /// Has the registrations read, and waits for that, but no longer than two seconds. If the HAProxy is no longer
    /// registered, its loop is aborted in here.
    pub async fn confirm(&mut self) {
        let since = Instant::now();
        self.asked.notify_one();
        // Without an answer nothing is known: the failure is reported.
        drop(timeout(PATIENCE, self.read.wait_for(|read| *read >= since)).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_read_that_began_after_the_failure_is_an_answer() {
        let register = Register::default();
        let mut membership = register.membership();
        let before = Instant::now();
        let confirmed = tokio::spawn(async move { membership.confirm().await });
        register.asked().await;
        register.was_read(before);
        tokio::task::yield_now().await;
        assert!(!confirmed.is_finished());
        register.was_read(Instant::now());
        confirmed.await.expect("it ends");
    }
}
