//! What one pass leaves to the next. Losing it costs a look more, never correctness.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::desired::{Backend, BackendName, Desired, Note, ServiceKey, Severity};
use crate::observed::Observed;
use crate::plan::Plan;

/// What a controller remembers.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// The last pass was seen to end well, so there is nothing to clear up.
    pub(super) clean: bool,
    /// The process whose run-time state was compared with the file.
    pub(super) audited: Option<u64>,
    /// The version that our last write, or our last look, left.
    pub(super) version: Option<u64>,
    /// Backends that HAProxy refused.
    pub(super) refused: BTreeMap<BackendName, Refusal>,
    /// When HAProxy was last reloaded by us.
    pub(super) reloaded: Option<Instant>,
    /// The change whose reload failed last.
    pub(super) failed: Option<Failed>,
}

/// A change of one backend that HAProxy does not take.
#[derive(Debug)]
pub(super) struct Refusal {
    /// What was asked for; `None`: that the backend goes.
    pub(super) wanted: Option<Backend>,
    /// What was there that is not ours: the cause may be in it.
    pub(super) foreign: BTreeMap<(String, String), Vec<String>>,
    /// Whom it concerns.
    pub(super) services: BTreeSet<ServiceKey>,
    /// HAProxy's words.
    pub(super) message: String,
}

/// A change that could not be loaded.
#[derive(Debug)]
pub(super) struct Failed {
    /// What took the reload.
    pub(super) plan: Plan,
    /// What was there that is not ours: the cause may be in it.
    pub(super) foreign: BTreeMap<(String, String), Vec<String>>,
    /// The process that went on, as another may load what this one could not; `None`: none did.
    pub(super) pid: Option<u64>,
    /// Whom it concerns.
    pub(super) services: BTreeSet<ServiceKey>,
    /// HAProxy's words.
    pub(super) message: String,
}

impl Failed {
    /// Whether a change would be the same again. What happens live in the meantime does not matter.
    pub(super) fn is_again(&self, structural: &Plan, observed: &Observed) -> bool {
        self.plan == *structural && self.foreign == observed.foreign()
    }

    pub(super) fn notes(&self) -> impl Iterator<Item = Note> + '_ {
        let text = format!("left as it was, as HAProxy could not load the change: {}", self.message);
        errors(&self.services, text)
    }
}

impl Memory {
    /// Forgets the refusals that may have lost their cause.
    pub(super) fn keep_refusals(&mut self, desired: &Desired, observed: &Observed) {
        if !self.refused.is_empty() {
            let foreign = observed.foreign();
            self.refused.retain(|name, refusal| {
                desired.backends.get(name) == refusal.wanted.as_ref() && refusal.foreign == foreign
            });
        }
    }

    /// What there is to say about the refused backends.
    pub(super) fn refusals(&self) -> impl Iterator<Item = Note> + '_ {
        self.refused.iter().flat_map(|(name, refusal)| {
            let Refusal { wanted, foreign: _, services, message } = refusal;
            let text = match wanted {
                Some(_) => format!("left as it was, as HAProxy refuses the backend {name}: {message}"),
                None => {
                    format!("its backend {name} stays, without instances, as HAProxy refuses to lose it: {message}")
                }
            };
            errors(services, text)
        })
    }
}

fn errors(services: &BTreeSet<ServiceKey>, text: String) -> impl Iterator<Item = Note> + '_ {
    let note =
        move |service: &ServiceKey| Note { severity: Severity::Error, service: service.clone(), text: text.clone() };
    services.iter().map(note)
}
