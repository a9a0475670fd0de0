//! Another owner's marks: what its backends are to our services, and how they become ours.

use std::collections::{BTreeMap, BTreeSet};

use crate::desired::{
    BackendName, BackendSettings, Balance, Check, Code, Desired, Mode, Note, Server, ServerName, Severity, Timeouts,
};
use crate::observed::{Observed, ObservedBackend, Other};
use crate::plane::Capabilities;

use super::{Edit, Plan, Rewrite, ServerEdit, differences};

/// A note for each other owner whose backends have instances of our services: `haproxy.owner` was changed, and they are
/// left behind. Another cluster's controller has other instances.
pub(super) fn left_behind(desired: &Desired, observed: &Observed) -> Vec<Note> {
    let instances = || desired.backends.values().flat_map(|backend| &backend.instances);
    let note = |(owner, other): (&str, &Other)| {
        let Other { backends, services, instances: theirs } = other;
        // Where all of its backends are empty, only the services can be compared.
        let is_theirs = |service| theirs.is_empty() && services.contains(service);
        let both = instances().filter(|one| theirs.contains(&one.id) || is_theirs(&one.service));
        let service = both.map(|one| &one.service).min()?.clone();
        let what = match backends.iter().next() {
            Some(first) if backends.len() == 1 => format!("the backend {first} of the owner {owner} has"),
            _ => format!("{} backends of the owner {owner} have", backends.len()),
        };
        let text = format!(
            "{what} instances of ours, too, and nobody updates them if no controller has `haproxy.owner` = `{owner}` any \
             more; to take them over, run `nomad-haproxy apply --adopt {owner}`"
        );
        Some(Note { severity: Severity::Warning, service, code: Code::LeftBehind, text })
    };
    observed.others.iter().filter_map(note).collect()
}

impl Plan {
    /// Backends of ours that still carry the mark that is taken over get ours, whatever else happens to them: with a
    /// backend that is not needed any more, or cannot be changed now, only the mark changes.
    pub(super) fn adopt(&mut self, observed: &Observed) {
        for (name, section) in observed.managed().filter(|(_, section)| section.is_adopted) {
            let edits = match self.edits.remove(&name) {
                None => differences(section, &section.servers, Capabilities::default()),
                Some(Edit::Servers(edits)) => with_marks(section, edits),
                Some(whole) => {
                    self.edits.insert(name, whole);
                    continue;
                }
            };
            let (rewrite, servers) = (Rewrite::Description, after(section, &edits));
            let settings = described(&name, section, observed);
            self.edits.insert(name, Edit::Change { settings, rewrite, servers, edits });
        }
    }
}

/// The edits, and new marks for the servers that they leave.
fn with_marks(section: &ObservedBackend, mut edits: Vec<ServerEdit>) -> Vec<ServerEdit> {
    let known: BTreeSet<ServerName> = edits.iter().map(|edit| edit.name().clone()).collect();
    let marks = differences(section, &section.servers, Capabilities::default()).into_iter();
    edits.extend(
        marks.filter(|edit| matches!(edit, ServerEdit::Set { before: Some(_), .. }) && !known.contains(edit.name())),
    );
    edits
}

/// The servers of ours after the edits.
pub(super) fn after(section: &ObservedBackend, edits: &[ServerEdit]) -> Vec<Server> {
    let mut servers: BTreeMap<&ServerName, &Server> =
        section.servers.iter().map(|server| (&server.name, server)).collect();
    for edit in edits {
        match edit {
            ServerEdit::Add { server, .. } | ServerEdit::Set { after: server, .. } => {
                servers.insert(&server.name, server)
            }
            ServerEdit::Remove { name, .. } => servers.remove(name),
            ServerEdit::Retire { .. } => None,
        };
    }
    servers.into_values().cloned().collect()
}

/// Its settings with our mark. With [`Rewrite::Description`] nothing else of them is written; if they are not known, as
/// a person edited them, a plane that writes whole backends notices the difference and writes the text.
fn described(name: &BackendName, section: &ObservedBackend, observed: &Observed) -> BackendSettings {
    let description = observed.owner.describe(name, section.ownership.services());
    let unknown = || BackendSettings {
        description: String::new(),
        mode: section.mode.parse().unwrap_or(Mode::Http),
        balance: section.balance.parse().unwrap_or_else(|_| Balance::roundrobin()),
        check: Check::Disabled,
        cookie: None,
        timeouts: Timeouts::default(),
    };
    BackendSettings { description, ..section.settings.clone().unwrap_or_else(unknown) }
}
