//! The plan: the pure difference between desired and observed state.
//!
//! It leaves nothing to decide when it is applied: both planes, both writers and the dry run act on the
//! same edits.

pub mod display;
pub mod slots;
pub mod text;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use thiserror::Error;

use crate::desired::build::Built;
use crate::desired::{
    Address, Backend, BackendName, Check, Kind, Mark, Note, Server, ServerName, ServerOptions, ServiceKey, Settings,
    Severity, SlotPolicy, State,
};
use crate::observed::{Observed, ObservedBackend, Owner};
use slots::Seating;

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

/// What the settings say about planning.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whose everything is.
    pub mark: Mark,
    /// What to do about names that are taken.
    pub strategy: Strategy,
    /// The time of this pass, in seconds since 1970, for drains that end.
    pub now: u64,
}

/// A change of one server line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerEdit {
    /// A new line.
    Add(Server),
    /// Another content. `before` is `None` where the line had been changed by somebody.
    Set {
        /// As it is.
        before: Option<Server>,
        /// As it shall be.
        after: Server,
    },
    /// The line goes.
    Remove(ServerName),
}

/// A change of one backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Edit {
    /// A backend of ours that is not there yet.
    Create {
        /// Its settings.
        settings: Settings,
        /// Its servers.
        servers: Vec<Server>,
    },
    /// A backend of ours: its settings where they change, and its servers.
    Change {
        /// What it shall be as a whole, for a plane that writes whole backends.
        settings: Settings,
        /// Whether the settings differ from what is there.
        rewrite: bool,
        /// All servers of ours that it shall have.
        servers: Vec<Server>,
        /// Those that differ.
        edits: Vec<ServerEdit>,
    },
    /// Servers of ours in a backend that stays as it is.
    Servers(Vec<ServerEdit>),
    /// A backend of ours that nobody wants any more.
    Delete,
}

/// What the running process is told of a change, so that it needs no reload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// `set server B/S addr IP port PORT`.
    Address(BackendName, ServerName, IpAddr, u16),
    /// `set server B/S state ready`, `drain` or `maint`.
    State(BackendName, ServerName, State),
    /// `set server B/S weight N`.
    Weight(BackendName, ServerName, u16),
}

/// The difference, by backend.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// What changes.
    pub edits: BTreeMap<BackendName, Edit>,
}

/// A plan with what there is to say about it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Planned {
    /// The difference.
    pub plan: Plan,
    /// Conflicts with what is there.
    pub notes: Vec<Note>,
}

/// Why there is no plan (`fail_on_conflict`).
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the pass stops before any write, as backend_strategy is fail_on_conflict: {0}")]
pub struct Conflict(pub Note);

impl Plan {
    #[allow(clippy::new_ret_no_self, reason = "a plan never comes without what there is to say about it")]
    /// Computes the difference. `excluded` backends are left as they are; of those that nobody wants any
    /// more, only the instances go.
    pub fn new(
        built: &Built,
        observed: &Observed,
        options: &Options,
        excluded: &BTreeSet<BackendName>,
    ) -> Result<Planned, Conflict> {
        let mut planner = Planner { observed, options, notes: Vec::new() };
        let mut plan = Plan::default();
        for (name, backend) in built.desired.backends.iter().filter(|(name, _)| !excluded.contains(*name)) {
            if let Some(edit) = planner.backend(name, backend)? {
                plan.edits.insert(name.clone(), edit);
            }
        }
        for (name, observed) in observed.managed() {
            if built.desired.backends.contains_key(&name) || is_held(observed, &built.held) {
                continue;
            }
            // HAProxy refuses to lose it (a frontend names it): then it stays, without its instances.
            let edit = if excluded.contains(&name) {
                emptied(&name, observed, options.now)
            } else {
                removal(&name, observed, options.now)
            };
            if let Some(edit) = edit {
                plan.edits.insert(name, edit);
            }
        }
        Ok(Planned { plan, notes: planner.notes })
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.edits.is_empty()
    }

    /// The part that HAProxy takes without a reload, and what does take one. Each server stands for itself,
    /// so that one that is gone is out at once also where its backend has to grow. The second part is not
    /// for applying: it lacks the servers that are in the first.
    #[must_use]
    pub fn split(self) -> (Self, Self) {
        let (mut live, mut rest) = (Self::default(), Self::default());
        for (name, edit) in self.edits {
            let part = |edits: Vec<ServerEdit>| -> (Vec<_>, Vec<_>) {
                edits.into_iter().partition(|edit| edit.actions(&name).is_some())
            };
            let (now, then) = match edit {
                Edit::Change { settings, rewrite, servers: _, edits } => {
                    let (now, edits) = part(edits);
                    let left = rewrite || !edits.is_empty();
                    (now, left.then_some(Edit::Change { settings, rewrite, servers: Vec::new(), edits }))
                }
                Edit::Servers(edits) => {
                    let (now, then) = part(edits);
                    (now, (!then.is_empty()).then_some(Edit::Servers(then)))
                }
                whole @ (Edit::Create { .. } | Edit::Delete) => (Vec::new(), Some(whole)),
            };
            if !now.is_empty() {
                live.edits.insert(name.clone(), Edit::Servers(now));
            }
            rest.edits.extend(then.map(|then| (name, then)));
        }
        (live, rest)
    }

    /// The run-time actions that do the same as the plan; `None` where it takes a reload.
    pub fn live(&self) -> Option<Vec<Action>> {
        let mut actions = Vec::new();
        for (backend, edit) in &self.edits {
            let (Edit::Change { rewrite: false, edits, .. } | Edit::Servers(edits)) = edit else { return None };
            for edit in edits {
                actions.extend(edit.actions(backend)?);
            }
        }
        Some(actions)
    }
}

impl ServerEdit {
    /// What the process is told; `None` where it takes a reload.
    fn actions(&self, backend: &BackendName) -> Option<Vec<Action>> {
        let Self::Set { before: Some(before), after } = self else { return None };
        let ServerOptions { weight, maxconn, backup } = after.options;
        if (maxconn, backup, after.check) != (before.options.maxconn, before.options.backup, before.check) {
            return None;
        }
        let mut actions = Vec::new();
        let mut add = |action: &dyn Fn(BackendName, ServerName) -> Action| {
            actions.push(action(backend.clone(), after.name.clone()));
        };
        // Out before it changes, in after it has changed: no request goes to half an instance, and one
        // instance does not inherit the health of another.
        let changes = before.state() != after.state() || before.tenant.id() != after.tenant.id();
        if changes && before.state() != State::Maint {
            let state = if after.is_enabled() { State::Maint } else { after.state() };
            add(&|b, s| Action::State(b, s, state));
        }
        if (&before.address, before.port) != (&after.address, after.port) {
            let Address::Ip(ip) = after.address else { return None };
            add(&|b, s| Action::Address(b, s, ip, after.port));
        }
        if weight.unwrap_or(1) != before.options.weight.unwrap_or(1) {
            add(&|b, s| Action::Weight(b, s, weight.unwrap_or(1)));
        }
        if changes && after.is_enabled() {
            add(&|b, s| Action::State(b, s, State::Ready));
        }
        Some(actions)
    }
}

struct Planner<'a> {
    observed: &'a Observed,
    options: &'a Options,
    notes: Vec<Note>,
}

impl Planner<'_> {
    fn backend(&mut self, name: &BackendName, desired: &Backend) -> Result<Option<Edit>, Conflict> {
        match (self.observed.backend(name), desired.kind) {
            (None, Kind::Dynamic) => {
                let servers = seat(name, desired, None, self.options.now, false);
                Ok(Some(Edit::Create { settings: desired.settings.clone(), servers }))
            }
            (None, Kind::Custom) => {
                self.note(
                    Severity::Error,
                    desired,
                    &format!("not routed: HAProxy has no backend {name}, and backend=custom makes none"),
                );
                Ok(None)
            }
            (Some(observed), _) if observed.section.kind == "listen" => {
                self.taken(desired, &format!("not routed: {name} is a listen section, which cannot be given servers"))
            }
            (Some(observed), Kind::Dynamic) if observed.is_ours() => {
                Ok(change(name, desired, observed, self.options.now))
            }
            (Some(observed), Kind::Custom) => Ok(self.servers(name, desired, observed)),
            (Some(observed), Kind::Dynamic) => match self.options.strategy {
                Strategy::UseExisting => Ok(self.use_existing(name, desired, observed)),
                Strategy::CreateNew => self.taken(
                    desired,
                    &format!("not routed: the backend {name} exists and is not ours (backend_strategy is create_new)"),
                ),
                Strategy::FailOnConflict => self.taken(desired, &format!("the backend {name} exists and is not ours")),
            },
        }
    }

    fn note(&mut self, severity: Severity, desired: &Backend, text: &str) {
        self.notes.extend(desired.services.iter().map(|service| Note {
            severity,
            service: service.clone(),
            text: text.to_owned(),
        }));
    }

    fn taken(&mut self, desired: &Backend, text: &str) -> Result<Option<Edit>, Conflict> {
        self.note(Severity::Error, desired, text);
        match (self.options.strategy, self.notes.last()) {
            (Strategy::FailOnConflict, Some(note)) => Err(Conflict(note.clone())),
            _ => Ok(None),
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
            self.note(Severity::Error, desired, &text);
            return None;
        }
        self.servers(name, desired, observed)
    }

    /// A backend of somebody's: only servers of ours.
    fn servers(&mut self, name: &BackendName, desired: &Backend, observed: &ObservedBackend) -> Option<Edit> {
        if !desired.tags.is_empty() {
            let tags = desired.tags.join(", ");
            self.note(Severity::Warning, desired, &format!("ignored, as the backend {name} is not ours: {tags}"));
        }
        only_servers(observed, &seat(name, desired, Some(observed), self.options.now, false))
    }
}

/// A backend of ours: both its settings and its servers.
fn change(name: &BackendName, desired: &Backend, observed: &ObservedBackend, now: u64) -> Option<Edit> {
    let rewrite = observed.settings.as_ref() != Some(&desired.settings);
    let mut servers = seat(name, desired, Some(observed), now, rewrite);
    let mut edits = differences(observed, &servers);
    let grows = edits.iter().any(|edit| !matches!(edit, ServerEdit::Set { before: Some(_), .. }));
    if grows && !rewrite {
        // It takes a reload in any case, so the spares that are too many may go with it.
        servers = seat(name, desired, Some(observed), now, true);
        edits = differences(observed, &servers);
    }
    let settings = desired.settings.clone();
    (rewrite || !edits.is_empty()).then_some(Edit::Change { settings, rewrite, servers, edits })
}

fn seat(
    name: &BackendName,
    desired: &Backend,
    observed: Option<&ObservedBackend>,
    now: u64,
    may_shrink: bool,
) -> Vec<Server> {
    let none = BTreeSet::new();
    slots::seat(&Seating {
        backend: name,
        servers: observed.map_or(&[], |observed| &observed.servers),
        foreign: observed.map_or(&none, |observed| &observed.foreign),
        instances: &desired.instances,
        policy: desired.slots,
        check: !observed.is_none_or(ObservedBackend::is_ours) && desired.settings.check != Check::Disabled,
        gated: desired.gated,
        now,
        may_shrink,
    })
}

/// What goes when nobody asks for a backend any more. A server that somebody put into our backend keeps
/// it alive; one that drains keeps it for a while.
fn removal(name: &BackendName, observed: &ObservedBackend, now: u64) -> Option<Edit> {
    let freed = freed(name, observed, now);
    if freed.iter().any(|server| server.state() == State::Drain) {
        return only_servers(observed, &freed);
    }
    if observed.is_ours() && observed.foreign.is_empty() {
        return Some(Edit::Delete);
    }
    only_servers(observed, &[])
}

/// A backend that has to stay, with every slot freed.
fn emptied(name: &BackendName, observed: &ObservedBackend, now: u64) -> Option<Edit> {
    only_servers(observed, &freed(name, observed, now))
}

fn freed(name: &BackendName, observed: &ObservedBackend, now: u64) -> Vec<Server> {
    slots::seat(&Seating {
        backend: name,
        servers: &observed.servers,
        foreign: &observed.foreign,
        instances: &[],
        policy: SlotPolicy { min_free: 1, max: u32::MAX },
        check: false,
        gated: false,
        now,
        may_shrink: false,
    })
}

/// Whether it is, or may be, of a service that can't be read.
fn is_held(observed: &ObservedBackend, held: &BTreeSet<ServiceKey>) -> bool {
    match &observed.owner {
        Owner::Ours(services) => !services.is_disjoint(held),
        // A server in somebody's backend does not say which service it is of.
        Owner::Theirs => !held.is_empty(),
    }
}

fn only_servers(observed: &ObservedBackend, servers: &[Server]) -> Option<Edit> {
    let edits = differences(observed, servers);
    (!edits.is_empty()).then_some(Edit::Servers(edits))
}

fn differences(observed: &ObservedBackend, servers: &[Server]) -> Vec<ServerEdit> {
    let before: BTreeMap<&ServerName, &Server> = observed.servers.iter().map(|server| (&server.name, server)).collect();
    let wanted: BTreeSet<&ServerName> = servers.iter().map(|server| &server.name).collect();
    let mut edits: Vec<ServerEdit> = servers
        .iter()
        .filter_map(|after| match before.get(&after.name) {
            Some(before) if *before == after => None,
            Some(before) => Some(ServerEdit::Set { before: Some((*before).clone()), after: after.clone() }),
            None if observed.drifted.contains(&after.name) => {
                Some(ServerEdit::Set { before: None, after: after.clone() })
            }
            None => Some(ServerEdit::Add(after.clone())),
        })
        .collect();
    let gone = before.keys().copied().chain(&observed.drifted).filter(|name| !wanted.contains(name));
    edits.extend(gone.map(|name| ServerEdit::Remove(name.clone())));
    edits
}

impl ServerEdit {
    /// The server's name.
    pub fn name(&self) -> &ServerName {
        match self {
            Self::Add(server) | Self::Set { after: server, .. } => &server.name,
            Self::Remove(name) => name,
        }
    }

    /// Whether an instance comes in (`Some(true)`), goes out (`Some(false)`), or neither.
    fn tenancy(&self) -> Option<bool> {
        match self {
            Self::Add(server) => server.is_enabled().then_some(true),
            Self::Set { before, after } => {
                match (before.as_ref().is_some_and(Server::is_enabled), after.is_enabled()) {
                    (false, true) => Some(true),
                    (true, false) => Some(false),
                    _ => None,
                }
            }
            Self::Remove(_) => None,
        }
    }
}
