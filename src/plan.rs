//! The plan: the pure difference between desired and observed state.
//!
//! It leaves no decision for when it is applied: both planes, both writers and the dry run act on the same edits.

mod adopt;
mod connector;
pub mod display;
pub mod guard;
mod live;
mod part;
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
use std::net::IpAddr;
use std::time::Duration;

use thiserror::Error;

use crate::desired::build::Built;
use crate::desired::{
    Backend, BackendKind, BackendName, BackendSettings, Check, Code, FrontendName, Held, Mode, Note, Owner, Server,
    ServerName, Severity, SlotPolicy, State,
};
use crate::observed::{Observed, ObservedBackend, ProfileEdits};
use crate::plane::Capabilities;
pub use live::{Growth, NewServer};
pub use part::{LeftOut, Part};
pub use process::{Changes, Surplus, unresolved};
use removal::{is_held, removal, vacated, without_the_gone};
use routes::Router;
pub use routes::{Lines, MapEdit, RouteEdits, RuleEdit};
use slots::Seating;
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

/// A change of one server line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerEdit {
    /// A new line.
    Add {
        /// As it should be.
        server: Server,
        /// Whether HAProxy takes it at run time.
        is_live: bool,
    },
    /// A new content. `before` is `None` if the line was changed by a person.
    Set {
        /// As it is.
        before: Option<Server>,
        /// As it should be.
        after: Server,
        /// Whether the backend's algorithm is static, so that the weight cannot change at run time.
        fixed_weight: bool,
    },
    /// The line is removed.
    Remove {
        /// The server.
        name: ServerName,
        /// Whether HAProxy removes it at run time.
        is_live: bool,
    },
    /// A line of haproxy-nomad-connector goes, as a server of ours has its address.
    Retire {
        /// The connector's server.
        name: ServerName,
    },
}

/// How much of the settings of a backend of ours is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rewrite {
    /// Nothing: they are as they should be.
    Nothing,
    /// The description, which the process does not need. Nothing else of the settings is written.
    Description,
    /// All of them.
    Settings,
}

/// A change of one backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// A backend of ours that does not exist yet.
    Create {
        /// Its settings.
        settings: BackendSettings,
        /// Its servers.
        servers: Vec<Server>,
        /// Whether HAProxy makes it at run time.
        is_live: bool,
    },
    /// A backend of ours: its settings where they change, and its servers.
    Change {
        /// The whole backend as it should be, for a plane that writes whole backends.
        settings: BackendSettings,
        /// Which of the settings differ from what is there.
        rewrite: Rewrite,
        /// All servers of ours that it should have.
        servers: Vec<Server>,
        /// Those that differ.
        edits: Vec<ServerEdit>,
    },
    /// Servers of ours in a backend that otherwise stays as it is.
    Servers(Vec<ServerEdit>),
    /// A backend of ours that no service needs any more.
    Delete {
        /// Whether HAProxy removes it at run time.
        is_live: bool,
    },
}

/// A change of the running process, which needs no reload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// `set server B/S addr IP port PORT`.
    Address(BackendName, ServerName, IpAddr, u16),
    /// `set server B/S state ready`, `drain` or `maint`.
    State(BackendName, ServerName, State),
    /// `set server B/S weight N`.
    Weight(BackendName, ServerName, u16),
    /// `add server B/S …`: it is in maintenance.
    Add(BackendName, ServerName, NewServer),
    /// `enable health B/S`: the check of a server that was added.
    Check(BackendName, ServerName),
    /// `add backend B from PROFILE mode MODE`: no request finds it yet.
    Make(BackendName, String, Mode),
    /// `publish backend B`: requests find it.
    Publish(BackendName),
}

impl Action {
    /// The backend that it changes, or in which it changes a server.
    pub fn backend(&self) -> &BackendName {
        let (Self::Address(backend, ..)
        | Self::State(backend, ..)
        | Self::Weight(backend, ..)
        | Self::Add(backend, ..)
        | Self::Check(backend, _)
        | Self::Make(backend, ..)
        | Self::Publish(backend)) = self;
        backend
    }

    /// The server that it changes; `None`: a backend.
    pub fn server(&self) -> Option<(&BackendName, &ServerName)> {
        match self {
            Self::Address(backend, server, ..)
            | Self::State(backend, server, _)
            | Self::Weight(backend, server, _)
            | Self::Add(backend, server, _)
            | Self::Check(backend, server) => Some((backend, server)),
            Self::Make(..) | Self::Publish(_) => None,
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

impl Edit {
    /// The servers that it edits in a backend that exists.
    fn servers(&self) -> &[ServerEdit] {
        match self {
            Self::Change { edits, .. } | Self::Servers(edits) => edits,
            Self::Create { .. } | Self::Delete { .. } => &[],
        }
    }

    fn size(&self) -> usize {
        match self {
            Self::Create { servers, .. } => 1 + servers.len(),
            Self::Change { rewrite, edits, .. } => usize::from(*rewrite != Rewrite::Nothing) + edits.len(),
            Self::Servers(edits) => edits.len(),
            Self::Delete { .. } => 1,
        }
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

impl ServerEdit {
    /// While it waits: it is the same change if the slot has been freed in the meantime.
    fn waiting(self) -> Self {
        match self {
            Self::Set { before: _, after, fixed_weight } => Self::Set { before: None, after, fixed_weight },
            other => other,
        }
    }
}

struct Planner<'a> {
    observed: &'a Observed,
    held: &'a Held,
    left_out: &'a LeftOut,
    options: &'a Options,
    notes: Vec<Note>,
    surplus: usize,
}

impl Planner<'_> {
    fn backend(
        &mut self,
        name: &BackendName,
        desired: &Backend,
        observed: Option<&ObservedBackend>,
    ) -> Result<Option<Edit>, Conflict> {
        match (observed, desired.kind) {
            // There is no need for a backend of what is left out.
            (None, BackendKind::Dynamic)
                if !desired.instances.is_empty()
                    && desired.instances.iter().all(|one| self.left_out.has_instance(name, &one.id)) =>
            {
                Ok(None)
            }
            (None, BackendKind::Dynamic) => {
                self.note_agent_check(name, desired, None);
                let servers = self.seat(name, desired, None, false);
                let settings = desired.settings.clone();
                let is_live = live::makes(self.options, name, desired, &servers, self.observed);
                Ok(Some(Edit::Create { settings, servers, is_live }))
            }
            (None, BackendKind::Custom) => {
                let text = format!("not routed: HAProxy has no backend {name}, and backend=custom makes none");
                self.note(Severity::Error, Code::MissingBackend, desired, &text);
                Ok(None)
            }
            (Some(observed), _) if observed.section.kind == "listen" => {
                let text = format!("not routed: {name} is a listen section, which cannot be given servers");
                self.taken(desired, observed, &text)
            }
            (Some(observed), _) if observed.is_repeated => {
                let text = format!("not routed: there are several backends called {name}; only one can be served");
                self.taken(desired, observed, &text)
            }
            (Some(observed), BackendKind::Dynamic) if observed.is_ours() => Ok(self.change(name, desired, observed)),
            (Some(observed), BackendKind::Custom) => Ok(self.servers(name, desired, observed)),
            (Some(observed), BackendKind::Dynamic) => match self.options.strategy {
                Strategy::UseExisting => Ok(self.use_existing(name, desired, observed)),
                Strategy::CreateNew => {
                    let why = "exists and is not ours (backend_strategy is create_new)";
                    self.taken(desired, observed, &format!("not routed: the backend {name} {why}"))
                }
                Strategy::FailOnConflict => {
                    self.taken(desired, observed, &format!("the backend {name} exists and is not ours"))
                }
            },
        }
    }

    fn note(&mut self, severity: Severity, code: Code, desired: &Backend, text: &str) {
        self.notes.extend(desired.services.iter().map(|service| Note {
            severity,
            service: service.clone(),
            code,
            text: text.to_owned(),
        }));
    }

    /// The backend stays as it is, except for servers of ours whose instances are gone: it may have been ours until a
    /// person changed it.
    fn taken(&mut self, desired: &Backend, observed: &ObservedBackend, text: &str) -> Result<Option<Edit>, Conflict> {
        self.note(Severity::Error, Code::BackendInTheWay, desired, text);
        match (self.options.strategy, self.notes.last()) {
            (Strategy::FailOnConflict, Some(note)) => Err(Conflict(note.clone())),
            _ => Ok(without_the_gone(desired, observed, self.held, self.options.now)),
        }
    }

    fn use_existing(&mut self, name: &BackendName, desired: &Backend, observed: &ObservedBackend) -> Option<Edit> {
        let mode = desired.settings.mode.as_str();
        let obstacle = if observed.balance != "roundrobin" {
            Some(format!("balance {}", observed.balance))
        } else if observed.mode != mode {
            Some(format!("mode {} (the service is {mode})", observed.mode))
        } else {
            None
        };
        if let Some(directive) = obstacle {
            let text = format!(
                "not routed: the backend {name} exists, is not ours, and has {directive} in the way; \
                 with backend=custom its servers are added all the same"
            );
            self.note(Severity::Error, Code::BackendInTheWay, desired, &text);
            return without_the_gone(desired, observed, self.held, self.options.now);
        }
        self.servers(name, desired, observed)
    }

    /// A backend that is not ours: only servers of ours.
    fn servers(&mut self, name: &BackendName, desired: &Backend, observed: &ObservedBackend) -> Option<Edit> {
        for (service, tags) in desired.tags.iter().filter(|(_, tags)| !tags.is_empty()) {
            let text = format!("ignored, as the backend {name} is not ours: {}", tags.join(", "));
            let (severity, service) = (Severity::Warning, service.clone());
            self.notes.push(Note { severity, service, code: Code::IgnoredTag, text });
        }
        self.note_agent_check(name, desired, Some(observed));
        only_servers(observed, &self.seat(name, desired, Some(observed), false), self.options.capabilities)
    }

    /// A backend of ours: both its settings and its servers.
    fn change(&mut self, name: &BackendName, desired: &Backend, observed: &ObservedBackend) -> Option<Edit> {
        self.note_agent_check(name, desired, Some(observed));
        let rewrite = rewrite(observed.settings.as_ref(), &desired.settings);
        let mut servers = self.seat(name, desired, Some(observed), rewrite == Rewrite::Settings);
        let capabilities = self.options.capabilities;
        let mut edits = differences(observed, &servers, capabilities);
        let grows = |edit: &ServerEdit| !matches!(edit, ServerEdit::Set { before: Some(_), .. }) && !edit.is_live();
        if edits.iter().any(grows) && rewrite != Rewrite::Settings {
            // It needs a reload in any case, so superfluous spares are removed as well.
            servers = self.seat(name, desired, Some(observed), true);
            edits = differences(observed, &servers, capabilities);
        }
        self.surplus += slots::surplus(&servers, self.policy(desired, Some(observed)));
        let settings = desired.settings.clone();
        (rewrite != Rewrite::Nothing || !edits.is_empty()).then_some(Edit::Change { settings, rewrite, servers, edits })
    }

    fn seat(
        &self,
        name: &BackendName,
        desired: &Backend,
        observed: Option<&ObservedBackend>,
        may_shrink: bool,
    ) -> Vec<Server> {
        let mut taken = observed.map(|observed| observed.foreign.clone()).unwrap_or_default();
        taken.extend(self.options.taken.iter().filter_map(|surplus| match surplus {
            Surplus::Server(backend, server) if backend == name => Some(server.to_string()),
            Surplus::Server(..) | Surplus::Backend(_) => None,
        }));
        slots::seat(&Seating {
            backend: name,
            servers: observed.map_or(&[], |observed| &observed.servers),
            taken: &taken,
            instances: &desired.instances,
            held: self.held,
            left_out: self.left_out,
            policy: self.policy(desired, observed),
            weight: observed.map_or(self.observed.default_weight, |observed| observed.default_weight),
            check: !observed.is_none_or(ObservedBackend::is_ours) && desired.settings.check != Check::Disabled,
            cookie: observed.is_none_or(ObservedBackend::is_ours) && desired.settings.cookie.is_some(),
            gated: desired.gated,
            now: self.options.now,
            may_shrink,
            at_run_time: self.grows(desired, observed),
        })
    }

    fn policy(&self, desired: &Backend, observed: Option<&ObservedBackend>) -> SlotPolicy {
        match self.has_agents(observed) || self.grows(desired, observed) {
            true => SlotPolicy { min_free: 0, ..desired.slots },
            false => desired.slots,
        }
    }

    fn grows(&self, desired: &Backend, observed: Option<&ObservedBackend>) -> bool {
        live::grows(self.options.capabilities, desired, observed, self.observed)
    }

    /// Agents are also queried in maintenance, and their `up` and `ready` end it (seen on 3.0, 3.2 and 3.4). A spare
    /// server would be controlled by any agent at its address, so there must be none.
    fn has_agents(&self, observed: Option<&ObservedBackend>) -> bool {
        observed.map_or(self.observed.default_agent_check, |observed| observed.agent_check.once_written)
    }

    fn note_agent_check(&mut self, name: &BackendName, desired: &Backend, observed: Option<&ObservedBackend>) {
        if self.has_agents(observed) && desired.slots.min_free > 0 {
            let text = format!(
                "the backend {name} has no spare servers, so every change of its instances takes a reload: \
                 `agent-check` is on there, and an agent puts a spare server into service"
            );
            self.note(Severity::Warning, Code::AgentCheck, desired, &text);
        }
    }
}

/// Which of a backend's settings have to be written. A service that joins or leaves changes only the description.
fn rewrite(before: Option<&BackendSettings>, after: &BackendSettings) -> Rewrite {
    let BackendSettings { description: _, mode, balance, check, cookie, timeouts } = after;
    match before {
        Some(before) if before == after => Rewrite::Nothing,
        Some(before)
            if (&before.mode, &before.balance, &before.check) == (mode, balance, check)
                && (&before.cookie, &before.timeouts) == (cookie, timeouts) =>
        {
            Rewrite::Description
        }
        _ => Rewrite::Settings,
    }
}

fn only_servers(observed: &ObservedBackend, servers: &[Server], capabilities: Capabilities) -> Option<Edit> {
    let edits = differences(observed, servers, capabilities);
    (!edits.is_empty()).then_some(Edit::Servers(edits))
}

fn differences(observed: &ObservedBackend, servers: &[Server], capabilities: Capabilities) -> Vec<ServerEdit> {
    let fixed_weight = observed.has_static_algorithm();
    let before: BTreeMap<&ServerName, &Server> = observed.servers.iter().map(|server| (&server.name, server)).collect();
    let wanted: BTreeSet<&ServerName> = servers.iter().map(|server| &server.name).collect();
    let mut edits: Vec<ServerEdit> = servers
        .iter()
        .filter_map(|after| match before.get(&after.name) {
            Some(before) if *before == after && !observed.outdated.contains(&after.name) => None,
            Some(before) => {
                Some(ServerEdit::Set { before: Some((*before).clone()), after: after.clone(), fixed_weight })
            }
            None if observed.drifted.contains(&after.name) => {
                Some(ServerEdit::Set { before: None, after: after.clone(), fixed_weight })
            }
            None => Some(ServerEdit::add(after.clone(), observed, capabilities)),
        })
        .collect();
    let gone = before.keys().copied().chain(&observed.drifted).filter(|name| !wanted.contains(name));
    edits.extend(gone.map(|name| ServerEdit::remove(name.clone(), observed, capabilities)));
    edits
}

impl ServerEdit {
    /// The server's name.
    pub fn name(&self) -> &ServerName {
        match self {
            Self::Add { server, .. } | Self::Set { after: server, .. } => &server.name,
            Self::Remove { name, .. } | Self::Retire { name } => name,
        }
    }

    /// The server as it should be.
    fn after(&self) -> Option<&Server> {
        match self {
            Self::Add { server, .. } | Self::Set { after: server, .. } => Some(server),
            Self::Remove { .. } | Self::Retire { .. } => None,
        }
    }

    /// Whether a line of haproxy-nomad-connector goes.
    fn is_retirement(&self) -> bool {
        matches!(self, Self::Retire { .. })
    }

    /// Whether an instance comes in (`Some(true)`), goes out (`Some(false)`), or neither.
    fn movement(&self) -> Option<bool> {
        match self {
            Self::Add { server, .. } => server.is_enabled().then_some(true),
            Self::Set { before, after, fixed_weight: _ } => {
                match (before.as_ref().is_some_and(Server::is_enabled), after.is_enabled()) {
                    (false, true) => Some(true),
                    (true, false) => Some(false),
                    _ => None,
                }
            }
            Self::Remove { .. } | Self::Retire { .. } => None,
        }
    }
}
