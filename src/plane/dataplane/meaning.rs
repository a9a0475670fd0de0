//! Compares what a transaction would write with what was planned and what was there: the API drops what it does not
//! know without an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::desired::{BackendName, BackendSettings, FrontendName, Server, ServerName};
use crate::haproxy::text::ConfigText;
use crate::observed::{Observed, ObservedBackend, harm, lost_comments};
use crate::plan::{self, Plan};

/// What would differ from what it should be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// A backend is not as planned.
    Planned(BackendName),
    /// It is, except for `init-state`, which an API that is older than its HAProxy does not know: its spares start up,
    /// as on HAProxy 3.0.
    Gate(BackendName),
    /// The rules of a frontend are not as planned.
    Rules(FrontendName),
    /// A foreign line.
    Foreign(String),
    /// A foreign comment.
    Comment(String),
}

impl Loss {
    /// Whether HAProxy would still behave as before, and as planned.
    pub(super) fn is_bearable(&self) -> bool {
        matches!(self, Self::Gate(_) | Self::Comment(_))
    }

    /// Whether the API drops what we send: then it will do so the next time as well.
    pub(super) fn is_of_ours(&self) -> bool {
        matches!(self, Self::Gate(_) | Self::Planned(_) | Self::Rules(_))
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Planned(name) => write!(f, "the backend {name}"),
            Self::Rules(name) => write!(f, "the rules of the frontend {name}"),
            Self::Gate(name) => write!(f, "init-state in the backend {name}"),
            Self::Foreign(line) | Self::Comment(line) => f.write_str(line),
        }
    }
}

/// What `staged` loses of the plan and of what was there.
pub(super) fn losses(observed: &Observed, plan: &Plan, staged: &ConfigText) -> Vec<Loss> {
    let wanted = observed.again(plan::text::apply(plan, observed, &observed.owner));
    let found = observed.again(staged.clone());
    let mut losses = Vec::new();
    for name in plan.edits.keys() {
        let same =
            |gates| wanted.backend(name).map(|one| ours(one, gates)) == found.backend(name).map(|one| ours(one, gates));
        if !same(true) {
            losses.push(if same(false) { Loss::Gate(name.clone()) } else { Loss::Planned(name.clone()) });
        }
    }
    let rules = |of: &Observed, name: &FrontendName| {
        of.frontend(name).map(|known| (known.rules.values().cloned().collect::<Vec<_>>(), known.is_in_order))
    };
    let is_lost = |name: &&FrontendName| rules(&wanted, name) != rules(&found, name);
    losses.extend(plan.routes.rules.keys().filter(is_lost).cloned().map(Loss::Rules));
    losses.extend(harm(observed, &found).into_iter().map(Loss::Foreign));
    losses.extend(lost_comments(observed, &found).into_iter().map(Loss::Comment));
    losses
}

/// The lines of a backend that are ours, in any order; with or without its gates.
fn ours(
    backend: &ObservedBackend,
    gates: bool,
) -> (Option<BackendSettings>, BTreeMap<ServerName, Server>, BTreeSet<ServerName>) {
    let seen = |server: &Server| Server { gated: server.gated && gates, ..server.clone() };
    let servers = backend.servers.iter().map(|server| (server.name.clone(), seen(server))).collect();
    (backend.settings.clone(), servers, backend.drifted.clone())
}

/// Everything that is ours.
pub(super) fn managed(observed: &Observed) -> Vec<(BackendName, impl PartialEq)> {
    observed.managed().map(|(name, backend)| (name, ours(backend, true))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::Owner;

    fn owner() -> Owner {
        "nomad".parse().expect("an owner")
    }

    #[test]
    fn a_comment_that_goes_with_the_section_above_it_is_missed() {
        let plan = Plan {
            edits: [("ours".parse().expect("a name"), plan::Edit::Delete { is_live: false })].into(),
            ..Plan::default()
        };
        let text = "# --- ---\nbackend ours # gone with it\n  description nomad-haproxy:nomad\n  # ours, too\n  mode http\n# theirs\nbackend theirs # a\n";
        let observed = Observed::new(1, ConfigText::new(text), &owner());
        let losses = |staged: &str| losses(&observed, &plan, &ConfigText::new(staged));
        assert_eq!(losses("# _version=1\n# Dataplaneapi managed File\nbackend theirs # a\n  # theirs\n"), []);
        assert_eq!(losses("backend theirs # a\n"), [Loss::Comment("line 6".into())]);
        let kept = "backend ours\n  description nomad-haproxy:nomad\n  mode http\nbackend theirs # a\n# theirs\n";
        assert_eq!(losses(kept), [Loss::Planned("ours".parse().expect("a name"))]);
    }
}
