//! The parts of a plan that can be left out on their own, when HAProxy refuses them.

use std::collections::BTreeSet;

use crate::desired::{BackendName, FrontendName, InstanceId};

/// A part of a plan.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// One instance in a backend. If left out, its server stays as it is, or is not made.
    Instance(BackendName, InstanceId),
    /// A whole backend. If left out, it stays as it is, except for the instances that are gone.
    Backend(BackendName),
    /// The rules of ours in a frontend. If left out, they stay as they are, and so do the maps that only new ones read.
    Rules(FrontendName),
}

/// The parts that are left out of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LeftOut(BTreeSet<Part>);

impl LeftOut {
    /// Whether the backend is left out as a whole.
    pub fn has_backend(&self, name: &BackendName) -> bool {
        self.has(|| Part::Backend(name.clone()))
    }

    /// Whether this single instance is left out.
    pub fn has_instance(&self, backend: &BackendName, id: &InstanceId) -> bool {
        self.has(|| Part::Instance(backend.clone(), id.clone()))
    }

    /// Whether the rules of this frontend are left out.
    pub fn has_rules(&self, frontend: &FrontendName) -> bool {
        self.has(|| Part::Rules(frontend.clone()))
    }

    fn has(&self, part: impl FnOnce() -> Part) -> bool {
        // In nearly every pass there is nothing to compare with.
        !self.0.is_empty() && self.0.contains(&part())
    }

    /// Adds these.
    #[must_use]
    pub fn and(&self, parts: impl IntoIterator<Item = Part>) -> Self {
        Self(self.0.iter().cloned().chain(parts).collect())
    }
}

impl FromIterator<Part> for LeftOut {
    fn from_iter<I: IntoIterator<Item = Part>>(parts: I) -> Self {
        Self(parts.into_iter().collect())
    }
}
