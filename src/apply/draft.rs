//! A plan and its result, computed in the same way for a pass, for a dry run, and offline. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::desired::build::Built;
use crate::desired::{BackendName, NamespaceNote, Note};
use crate::haproxy::text::ConfigText;
use crate::observed::Observed;
use crate::plan::display::Summary;
use crate::plan::guard::Holding;
use crate::plan::reason::{self, Reason, reasons};
use crate::plan::{self, Conflict, Kept, LeftOut, Options, Plan, Waiting};

/// A plan, and the configuration that results from it.
#[derive(Debug)]
pub struct Draft {
    /// The plan.
    pub plan: Plan,
    /// The part that was split off because it needs a reload that may not be made yet.
    pub waiting: Waiting,
    /// The configuration after the plan.
    pub after: Observed,
    /// Notes about services.
    pub notes: Vec<Note>,
    /// Notes about whole namespaces.
    pub namespaces: Vec<NamespaceNote>,
    /// The instances that stay although the catalog lacks them.
    pub guard: Option<Holding>,
    /// When the next pass is due although nothing changes, since 1970.
    pub next: Option<Duration>,
    /// How many spare servers are no longer needed.
    pub surplus: usize,
    /// Why it takes a reload, by backend.
    pub reasons: BTreeMap<BackendName, Reason>,
    /// What `uninstall` does not remove.
    pub kept: Vec<Kept>,
}

impl Draft {
    /// Computes it; `left_out` is what HAProxy refuses.
    pub fn new(built: &Built, observed: &Observed, options: &Options, left_out: &LeftOut) -> Result<Self, Conflict> {
        let plan::Planned { plan, notes, next, surplus, kept } = Plan::new(built, observed, options, left_out)?;
        let after = after(&plan, observed, options);
        let mut notes: Vec<Note> = built.notes.iter().cloned().chain(notes).collect();
        notes.sort();
        let (namespaces, waiting) = (built.namespaces.clone(), Waiting::default());
        let reasons = reasons(&plan, observed, options);
        Ok(Self { plan, waiting, after, notes, namespaces, guard: None, next, surplus, reasons, kept })
    }

    /// The part that needs no reload; the rest waits.
    #[must_use]
    pub fn without_reload(self, built: &Built, observed: &Observed, options: &Options) -> Self {
        let (plan, waiting) = self.plan.split(Plan::gone(built, observed, options.now));
        Self { after: after(&plan, observed, options), reasons: BTreeMap::new(), plan, waiting, ..self }
    }

    /// The configuration without the instances that are gone, and nothing else changed.
    pub fn gone(built: &Built, observed: &Observed, options: &Options) -> Observed {
        after(&Plan::gone(built, observed, options.now), observed, options)
    }

    /// The summary for people and programs; `text` is what would be written.
    pub fn summary(&self, observed: &Observed, text: &ConfigText) -> Summary {
        let (namespaces, guard, surplus) = (self.namespaces.clone(), self.guard.clone(), self.surplus);
        let mut reload = reason::lines(&self.reasons);
        reload.extend(reason::of_rules(self.plan.routes.rules.keys()));
        Summary { reload, namespaces, guard, surplus, ..Summary::new(&self.plan, observed, text, self.notes.clone()) }
    }
}

fn after(plan: &Plan, observed: &Observed, options: &Options) -> Observed {
    if plan.is_empty() {
        return observed.clone();
    }
    let text = plan::text::apply(plan, observed, &options.owner);
    observed.again(text).with_maps(plan.routes.after(&observed.maps))
}
