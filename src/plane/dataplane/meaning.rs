//! What a text says, whatever its looks. The API renders the whole file anew with each structured edit:
//! sections and directives in an order of its own, `from` written out, comments moved along. What it
//! would write is held against what was planned and what was there, as it drops what it does not know
//! without a word.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::desired::{BackendName, Mark, Server, ServerName, Settings};
use crate::haproxy::text::{ConfigText, Directive};
use crate::observed::{Observed, ObservedBackend};
use crate::plan::{self, Plan};

/// What would not be as it should.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Loss {
    /// A backend does not say what was planned.
    Planned(BackendName),
    /// It does, but for `init-state`, which an API that is older than its HAProxy does not know: its spares
    /// start up, as on HAProxy 3.0.
    Gate(BackendName),
    /// A directive of somebody's.
    Line,
    /// A comment of somebody's.
    Comment(String),
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Planned(name) => write!(f, "the backend {name}"),
            Self::Gate(name) => write!(f, "init-state in the backend {name}"),
            Self::Line => f.write_str("a line that is not ours"),
            Self::Comment(comment) => write!(f, "the comment {comment:?}"),
        }
    }
}

impl Loss {
    /// Whether HAProxy does what it did, and what was planned, all the same.
    pub(super) fn is_bearable(&self) -> bool {
        matches!(self, Self::Gate(_) | Self::Comment(_))
    }
}

/// What `staged` loses of the plan and of what was there.
pub(super) fn losses(observed: &Observed, plan: &Plan, staged: &ConfigText, mark: &Mark) -> Vec<Loss> {
    let wanted = Observed::new(observed.version, plan::text::apply(plan, observed, mark), mark);
    let found = Observed::new(observed.version, staged.clone(), mark);
    let mut losses = Vec::new();
    for name in plan.edits.keys() {
        let same =
            |gates| wanted.backend(name).map(|one| ours(one, gates)) == found.backend(name).map(|one| ours(one, gates));
        if !same(true) {
            losses.push(if same(false) { Loss::Gate(name.clone()) } else { Loss::Planned(name.clone()) });
        }
    }
    if observed.foreign() != found.foreign() {
        losses.push(Loss::Line);
    }
    let left = comments(&found);
    let lost = comments(observed).into_iter().filter(|(comment, n)| left.get(comment) < Some(n));
    losses.extend(lost.map(|(comment, _)| Loss::Comment(comment)));
    losses
}

/// The comments that stand in no section of ours, each as often as it is there. A renderer that keeps one
/// that precedes a section with the section above it drops it with that; no recording shows what the API does.
fn comments(observed: &Observed) -> BTreeMap<String, usize> {
    let ours: Vec<_> = observed.backends.values().filter(|backend| backend.is_ours()).collect();
    let mut comments = BTreeMap::new();
    for (at, line) in observed.text.lines().iter().enumerate() {
        // Metadata stays with its line, and a rule of dashes says nothing.
        let says = |comment: &String| comment.contains(char::is_alphanumeric) && !comment.starts_with(['_', '{']);
        let comment = Directive::parse(line).comment.filter(says);
        if let Some(comment) = comment
            && !ours.iter().any(|backend| backend.section.lines.contains(&at))
        {
            *comments.entry(comment).or_default() += 1;
        }
    }
    comments
}

/// What of a backend is ours, whatever the order of its lines; with or without its gates.
fn ours(
    backend: &ObservedBackend,
    gates: bool,
) -> (Option<Settings>, BTreeMap<ServerName, Server>, BTreeSet<ServerName>) {
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

    fn mark() -> Mark {
        "nomad".parse().expect("an owner")
    }

    #[test]
    fn a_comment_that_goes_with_the_section_above_it_is_missed() {
        let plan = Plan { edits: [("ours".parse().expect("a name"), plan::Edit::Delete)].into() };
        let text = "# --- ---\nbackend ours # gone with it\n  description nomad-haproxy:nomad\n  # ours, too\n  mode http\n# theirs\nbackend theirs # a\n";
        let observed = Observed::new(1, ConfigText::new(text), &mark());
        let losses = |staged: &str| losses(&observed, &plan, &ConfigText::new(staged), &mark());
        assert_eq!(losses("# _version=1\n# Dataplaneapi managed File\nbackend theirs # a\n  # theirs\n"), []);
        assert_eq!(losses("backend theirs # a\n"), [Loss::Comment("theirs".into())]);
        let kept = "backend ours\n  description nomad-haproxy:nomad\n  mode http\nbackend theirs # a\n# theirs\n";
        assert_eq!(losses(kept), [Loss::Planned("ours".parse().expect("a name"))]);
    }
}
