//! The change of one backend: whether it is made, changed, filled with servers, or in the way.

use std::collections::{BTreeMap, BTreeSet};

use super::removal::without_the_gone;
use super::slots::{self, Seating};
use super::{Conflict, Edit, LeftOut, Options, Rewrite, ServerEdit, Strategy, Surplus, live};
use crate::desired::{
    Backend, BackendKind, BackendName, BackendSettings, Check, Code, Held, Note, Server, ServerName, Severity,
    SlotPolicy,
};
use crate::observed::{Observed, ObservedBackend};
use crate::plane::Capabilities;

/// Plans one backend after the other.
pub(super) struct Planner<'a> {
    pub(super) observed: &'a Observed,
    pub(super) held: &'a Held,
    pub(super) left_out: &'a LeftOut,
    pub(super) options: &'a Options,
    pub(super) notes: Vec<Note>,
    pub(super) surplus: usize,
}

impl Planner<'_> {
    pub(super) fn backend(
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

pub(super) fn only_servers(observed: &ObservedBackend, servers: &[Server], capabilities: Capabilities) -> Option<Edit> {
    let edits = differences(observed, servers, capabilities);
    (!edits.is_empty()).then_some(Edit::Servers(edits))
}

pub(super) fn differences(
    observed: &ObservedBackend,
    servers: &[Server],
    capabilities: Capabilities,
) -> Vec<ServerEdit> {
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
