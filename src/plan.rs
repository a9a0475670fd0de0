//! The plan: the pure difference between desired and observed state.
//!
//! It leaves no decision for when it is applied: both planes, both writers and the dry run act on the same edits.

mod adopt;
mod connector;
pub mod display;
mod edit;
pub mod guard;
mod live;
mod part;
mod planner;
mod process;
pub mod reason;
mod removal;
pub mod review;
mod routes;
pub mod servers;
pub mod slots;
pub mod text;
mod uninstall;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use thiserror::Error;

use crate::desired::build::Built;
use crate::desired::{BackendName, FrontendName, Note, Owner, Server, ServerName};
use crate::observed::{Observed, ObservedBackend, ProfileEdits};
use crate::plane::Capabilities;
pub use edit::{Action, Edit, Rewrite, ServerEdit};
pub use live::{Growth, NewServer};
pub use part::{LeftOut, Part};
use planner::{Planner, differences, only_servers};
pub use process::{Changes, Surplus, unresolved};
use removal::{is_held, removal, vacated, without_the_gone};
use routes::Router;
pub use routes::{Lines, MapEdit, RouteEdits, RuleEdit};
pub use uninstall::Kept;

/// What to do when a service's backend exists and is not ours (`haproxy.backend_strategy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Strategy {
    /// Add servers to it, if it is compatible; else a note.
    #[default]
    UseExisting,
    /// Make only new backends: a service whose name is taken is not routed, the others are.
    CreateNew,
    /// Stop the pass before any write.
    FailOnConflict,
}

/// The settings for planning.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `owner` in our marks.
    pub owner: Owner,
    /// What to do when a name is taken.
    pub strategy: Strategy,
    /// How long a backend without a service stays, without instances, before it is deleted.
    pub linger: Duration,
    /// The time of this pass, since 1970: for drains that end, and for the order in which slots are freed.
    pub now: Duration,
    /// Whether everything of ours is removed, whatever the desired state has.
    pub uninstall: bool,
    /// What HAProxy takes at run time. Each pass finds it out.
    pub capabilities: Capabilities,
    /// What the process has and the file does not: these names are not free before it is gone.
    pub taken: BTreeSet<Surplus>,
}

impl Options {
    /// An owner's, at 1970: nothing lingers, an existing backend of the same name is used, and nothing is known of what
    /// HAProxy takes at run time.
    pub fn new(owner: Owner) -> Self {
        Self {
            owner,
            strategy: Strategy::UseExisting,
            linger: Duration::ZERO,
            now: Duration::ZERO,
            uninstall: false,
            capabilities: Capabilities::default(),
            taken: BTreeSet::new(),
        }
    }
}

/// The difference, by backend.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// What changes.
    pub edits: BTreeMap<BackendName, Edit>,
    /// What changes with a reload that happens for another reason: from which sections backends are made at run time.
    pub profiles: ProfileEdits,
    /// Maps, and the rules that read them.
    pub routes: RouteEdits,
}

/// A plan with its notes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Planned {
    /// The difference.
    pub plan: Plan,
    /// Conflicts with what exists.
    pub notes: Vec<Note>,
    /// When the next pass is due although nothing changes, since 1970: a lingering backend is to be deleted.
    pub next: Option<Duration>,
    /// How many spare servers are no longer needed, and stay until a change of their backends takes a reload.
    pub surplus: usize,
    /// What `uninstall` does not remove.
    pub kept: Vec<Kept>,
}

/// Why there is no plan (`fail_on_conflict`).
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the pass stops before any write, as backend_strategy is fail_on_conflict: {0}")]
pub struct Conflict(pub Note);

impl Plan {
    #[allow(clippy::new_ret_no_self, reason = "a plan never comes without what there is to say about it")]
    /// Computes the difference. What is `left_out` stays as it is, except for instances that are gone.
    pub fn new(built: &Built, observed: &Observed, options: &Options, left_out: &LeftOut) -> Result<Planned, Conflict> {
        if options.uninstall {
            let (mut plan, kept) = Self::uninstall(observed, options.now, |name| left_out.has_backend(name));
            let router = Router { built, observed, options, left_out };
            plan.routes.rules = router.rules(&plan.edits, true);
            plan.routes.maps = router.maps(&plan.edits, &plan.routes.rules);
            return Ok(Planned { plan, kept, ..Planned::default() });
        }
        let mut planner = Planner { observed, held: &built.held, left_out, options, notes: Vec::new(), surplus: 0 };
        let mut plan = Plan::default();
        for (name, backend) in &built.desired.backends {
            let edit = if left_out.has_backend(name) {
                observed
                    .backend(name)
                    .and_then(|observed| without_the_gone(backend, observed, &built.held, options.now))
            } else {
                planner.taking_over(name, backend)?
            };
            plan.edits.extend(edit.map(|edit| (name.clone(), edit)));
        }
        let mut idle = Vec::new();
        for (name, backend) in observed.managed() {
            if built.desired.backends.contains_key(&name) {
                continue;
            }
            let stays = left_out.has_backend(&name) || is_held(backend, &built.held);
            let removal = removal(backend, &built.held, options, stays);
            plan.edits.extend(removal.now.map(|edit| (name.clone(), edit)));
            idle.extend(removal.lingers_until.map(|until| (name, until)));
        }
        // There is a reload anyway: it also removes the idle backends, except those whose name or route another service
        // would get before the time of their own service is over.
        let router = Router { built, observed, options, left_out };
        plan.routes.rules = router.rules(&plan.edits, false);
        if !plan.is_live() {
            let (stay, go): (Vec<_>, Vec<_>) = idle.into_iter().partition(|(name, _)| built.awaited.contains(name));
            plan.edits.extend(go.into_iter().map(|(name, _)| (name, Edit::Delete { is_live: false })));
            idle = stay;
            plan.profiles = live::profiles(&plan, built, observed, options);
            plan.routes.rules = router.rules(&plan.edits, true);
        }
        plan.routes.maps = router.maps(&plan.edits, &plan.routes.rules);
        let next = idle.into_iter().map(|(_, until)| until).min();
        plan.adopt(observed);
        planner.notes.extend(adopt::left_behind(&built.desired, observed));
        planner.notes.extend(connector::notes(&built.desired, observed, &plan));
        let Planner { notes, surplus, .. } = planner;
        Ok(Planned { plan, notes, next, surplus, kept: Vec::new() })
    }

    /// The slots of the instances that are gone are freed, and nothing else changes. It needs no reload, so it can be
    /// applied whatever happens to the rest.
    pub fn gone(built: &Built, observed: &Observed, now: Duration) -> Self {
        let edit = |name: &BackendName, section: &ObservedBackend| match built.desired.backends.get(name) {
            Some(desired) => without_the_gone(desired, section, &built.held, now),
            None => vacated(section, &slots::vacate(&section.servers, |occupant| built.held.keeps(occupant), now)),
        };
        let edits = observed.managed().filter_map(|(name, section)| Some((name.clone(), edit(&name, section)?)));
        Self { edits: edits.collect(), ..Self::default() }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        let Self { edits: _, profiles: _, routes } = self;
        !self.writes_text() && routes.is_empty()
    }

    /// Whether the configuration changes, and not only maps.
    pub fn writes_text(&self) -> bool {
        let Self { edits, profiles, routes } = self;
        !(edits.is_empty() && profiles.is_empty() && routes.rules.is_empty())
    }

    /// Splits the plan into what HAProxy takes without a reload, and what needs one. Each server is handled on its own,
    /// so that a change that needs no reload does not wait for a backend that has to grow. An instance in `gone` is out
    /// at once, even if its line has to be removed or is waiting for an instance with other settings.
    #[must_use]
    pub fn split(self, gone: Self) -> (Self, Waiting) {
        let (mut live, mut rest) = (Self::default(), BTreeMap::new());
        for (name, edit) in self.edits {
            let (now, then) = match edit {
                whole @ (Edit::Change { .. } | Edit::Create { .. } | Edit::Delete { .. }) if whole.is_live() => {
                    live.edits.insert(name, whole);
                    continue;
                }
                Edit::Change { settings, rewrite, servers: _, edits } => {
                    let (now, edits) = split_servers(edits);
                    let left = rewrite != Rewrite::Nothing || !edits.is_empty();
                    (now, left.then_some(Edit::Change { settings, rewrite, servers: Vec::new(), edits }))
                }
                Edit::Servers(edits) => {
                    let (now, then) = split_servers(edits);
                    (now, (!then.is_empty()).then_some(Edit::Servers(then)))
                }
                whole @ (Edit::Create { .. } | Edit::Delete { .. }) => (Vec::new(), Some(whole)),
            };
            if !now.is_empty() {
                live.edits.insert(name.clone(), Edit::Servers(now));
            }
            rest.extend(then.map(|then| (name, then)));
        }
        for (name, edit) in gone.edits {
            match (live.edits.get_mut(&name), edit) {
                (Some(Edit::Servers(now)), Edit::Servers(gone)) => {
                    let known: BTreeSet<ServerName> = now.iter().map(|edit| edit.name().clone()).collect();
                    now.extend(gone.into_iter().filter(|edit| !known.contains(edit.name())));
                }
                (Some(_), _) => {}
                (None, edit) => {
                    live.edits.insert(name, edit);
                }
            }
        }
        let (routes, rules) = self.routes.split(&rest);
        live.routes = routes;
        (live, Waiting { backends: rest, rules })
    }

    /// The part that needs a reload.
    pub fn waiting(&self) -> Waiting {
        self.clone().split(Self::default()).1
    }

    /// The parts that can be left out on their own: the instances first, then the backends, then rules.
    pub fn parts(&self) -> Vec<Part> {
        let (mut instances, mut backends) = (Vec::new(), Vec::new());
        for (name, edit) in &self.edits {
            let (servers, is_whole): (Vec<&Server>, bool) = match edit {
                Edit::Create { servers, .. } => (servers.iter().collect(), true),
                Edit::Change { rewrite, edits, .. } => {
                    (edits.iter().filter_map(ServerEdit::after).collect(), *rewrite != Rewrite::Nothing)
                }
                Edit::Servers(edits) => (edits.iter().filter_map(ServerEdit::after).collect(), false),
                Edit::Delete { .. } => (Vec::new(), true),
            };
            let before = instances.len();
            let ids = servers.iter().filter_map(|server| server.occupant.id());
            instances.extend(ids.map(|id| Part::Instance(name.clone(), id.clone())));
            if is_whole || instances.len() - before < edit.size() {
                backends.push(Part::Backend(name.clone()));
            }
        }
        instances.append(&mut backends);
        instances.extend(self.routes.rules.keys().cloned().map(Part::Rules));
        instances
    }

    /// Whether lines of haproxy-nomad-connector go.
    pub fn retires(&self) -> bool {
        let Self { edits, profiles: _, routes } = self;
        let of_servers = edits.values().flat_map(Edit::servers).any(ServerEdit::is_retirement);
        of_servers || routes.rules.values().any(|edit| !edit.retired.is_empty())
    }

    /// How many sections and servers it writes.
    pub fn size(&self) -> usize {
        self.edits.values().map(Edit::size).sum::<usize>() + self.routes.rules.len()
    }
}

/// The servers of a backend that come, change and go now, and those that wait for a reload. A spare server waits with an
/// instance that comes: alone, it would be taken by that instance at the next look.
fn split_servers(edits: Vec<ServerEdit>) -> (Vec<ServerEdit>, Vec<ServerEdit>) {
    let adds = |edit: &ServerEdit, instance: bool| matches!(edit, ServerEdit::Add { server, is_live: _ } if server.is_enabled() == instance);
    let an_instance_waits = edits.iter().any(|edit| adds(edit, true) && !edit.is_live());
    let comes_now = |edit: &ServerEdit| edit.is_live() && !(an_instance_waits && adds(edit, false));
    let (now, then): (Vec<_>, Vec<_>) = edits.into_iter().partition(comes_now);
    (now, then.into_iter().map(ServerEdit::waiting).collect())
}

/// The part of a plan that needs a reload, when none may be made now. It lacks the servers of its backends that change
/// without one, so it is for comparing, not for applying.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Waiting {
    backends: BTreeMap<BackendName, Edit>,
    rules: BTreeMap<FrontendName, RuleEdit>,
}

impl Waiting {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        let Self { backends, rules } = self;
        backends.is_empty() && rules.is_empty()
    }

    /// The backends that wait.
    pub fn backends(&self) -> impl Iterator<Item = &BackendName> {
        self.backends.keys()
    }
}
