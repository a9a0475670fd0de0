//! Counts what was covered: for the line of progress, and to notice a generator that misses something.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use nomad_haproxy::plan::{Conflict, Edit, Plan};

pub struct Tally {
    started: Instant,
    pub cases: AtomicU64,
    plans: AtomicU64,
    live: AtomicU64,
    edits: [AtomicU64; 4],
    conflicts: AtomicU64,
    asked: AtomicU64,
    taken: AtomicU64,
}

impl Default for Tally {
    fn default() -> Self {
        let zero = AtomicU64::default;
        Self {
            started: Instant::now(),
            cases: zero(),
            plans: zero(),
            live: zero(),
            edits: [zero(), zero(), zero(), zero()],
            conflicts: zero(),
            asked: zero(),
            taken: zero(),
        }
    }
}

impl Tally {
    pub fn plan(&self, plan: &Plan) {
        self.plans.fetch_add(1, Relaxed);
        self.live.fetch_add(u64::from(!plan.is_empty() && plan.is_live()), Relaxed);
        for edit in plan.edits.values() {
            let kind = match edit {
                Edit::Create { .. } => 0,
                Edit::Change { .. } => 1,
                Edit::Servers(_) => 2,
                Edit::Delete { .. } => 3,
            };
            self.edits[kind].fetch_add(1, Relaxed);
        }
    }

    pub fn conflict(&self, conflict: &Conflict) {
        let _ = conflict.to_string();
        self.conflicts.fetch_add(1, Relaxed);
    }

    pub fn asked(&self, asked: bool, taken: bool) {
        self.asked.fetch_add(asked.into(), Relaxed);
        self.taken.fetch_add(taken.into(), Relaxed);
    }

    /// The first kind of thing that did not occur.
    pub fn missing(&self, with_haproxy: bool) -> Option<&'static str> {
        let [create, change, servers, delete] = &self.edits;
        let counts = [
            ("a plan that is live", &self.live),
            ("a backend that is made", create),
            ("a backend that is changed", change),
            ("servers in a foreign backend", servers),
            ("a backend that is deleted", delete),
            ("a conflict", &self.conflicts),
        ];
        let haproxy = [("a file that HAProxy takes", &self.taken)];
        let haproxy = haproxy.into_iter().filter(|_| with_haproxy);
        counts.into_iter().chain(haproxy).find(|(_, count)| count.load(Relaxed) == 0).map(|(what, _)| what)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [create, change, servers, delete] = self.edits.each_ref().map(|count| count.load(Relaxed));
        let of = |count: &AtomicU64| count.load(Relaxed);
        let seconds = self.started.elapsed().as_secs().max(1);
        write!(f, "{} cases, {} per second; {} plans, ", of(&self.cases), of(&self.cases) / seconds, of(&self.plans))?;
        write!(f, "{} of them live; {create} backends made, {change} changed, {delete} deleted, ", of(&self.live))?;
        write!(f, "servers in {servers}; {} conflicts; HAProxy took {} of ", of(&self.conflicts), of(&self.taken))?;
        write!(f, "{} files", of(&self.asked))
    }
}
