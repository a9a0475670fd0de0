//! Which services requests are sent to, and what became of them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::load::Tally;
use crate::support::wait_for;

/// Failures that are kept in full.
const FAILURES: usize = 10;

/// Hosts in turn.
#[derive(Clone, Default)]
pub struct Hosts(Arc<Mutex<VecDeque<Arc<str>>>>);

impl Hosts {
    pub fn next(&self) -> Option<Arc<str>> {
        let mut hosts = self.0.lock().unwrap();
        let host = hosts.pop_front()?;
        hosts.push_back(host.clone());
        Some(host)
    }

    pub fn add(&self, service: &str) {
        self.0.lock().unwrap().push_back(host(service).into());
    }

    pub fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Returns once no request is under way to it.
    pub async fn remove(&self, service: &str) {
        let host = host(service);
        let removed = {
            let mut hosts = self.0.lock().unwrap();
            let at = hosts.iter().position(|other| **other == *host).expect("a service that is routed");
            hosts.remove(at).expect("its position")
        };
        wait_for(&format!("the requests to {service}"), Duration::from_secs(20), async || {
            (Arc::strong_count(&removed) == 1).then_some(())
        })
        .await;
    }
}

pub fn host(service: &str) -> String {
    format!("{service}.test")
}

/// The requests so far.
#[derive(Default)]
pub struct Requests {
    pub sent: usize,
    pub failed: usize,
    pub failures: Vec<String>,
}

impl Requests {
    pub fn add(&mut self, second: u64, Tally { requests, failed, by_answer: _ }: Tally) {
        self.sent += requests;
        self.failed += failed.len();
        let room = FAILURES - self.failures.len();
        for failure in failed.into_iter().take(room).map(|failure| format!("by {second} s: {failure}")) {
            eprintln!("failed {failure}");
            self.failures.push(failure);
        }
    }
}
