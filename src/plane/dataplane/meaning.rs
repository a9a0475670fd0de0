//! What a text says, whatever its looks. The API renders the whole file anew with each structured edit:
//! sections and directives in an order of its own, `from` written out, comments moved along. What it
//! would write is held against what was planned and what was there, as it drops what it does not know
//! without a word.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::desired::{BackendName, Mark, Server, ServerName, Settings};
use crate::haproxy::parse;
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
    if foreign(&observed.text, mark) != foreign(staged, mark) {
        losses.push(Loss::Line);
    }
    let left = comments(staged, mark);
    let lost = comments(&observed.text, mark).into_iter().filter(|(comment, n)| left.get(comment) < Some(n));
    losses.extend(lost.map(|(comment, _)| Loss::Comment(comment)));
    losses
}

/// Everything in a text that is not ours, without looks: by section, its directives as sorted words.
/// The API renders directives in an order of its own and writes `from` out; comments move along.
pub(super) fn foreign(text: &ConfigText, mark: &Mark) -> BTreeMap<(String, String), Vec<String>> {
    let observed = Observed::new(0, text.clone(), mark);
    let mut sections: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for section in text.sections() {
        let backend = observed.backends.get(&section.name).filter(|backend| backend.section == section);
        let ours = |name: &str| {
            backend.is_some_and(|backend| {
                backend.servers.iter().any(|server| server.name.as_str() == name)
                    || backend.drifted.iter().any(|server| server.as_str() == name)
            })
        };
        let all_ours = backend.is_some_and(ObservedBackend::is_ours);
        let lines = text.directives(&section).skip(1).filter(|(_, directive)| match directive.keyword() {
            "server" => !ours(directive.words.get(1).map_or("", String::as_str)),
            _ => !all_ours,
        });
        let mut lines: Vec<String> = lines.filter_map(|(at, _)| directive(&text.lines()[at])).collect();
        lines.sort_unstable();
        if !(all_ours && lines.is_empty()) {
            // The API gives a defaults section without a name one of its own.
            let name = if section.name.starts_with("unnamed_defaults_") { String::new() } else { section.name };
            sections.entry((section.kind, name)).or_default().extend(lines);
        }
    }
    sections
}

/// The comments that stand in no section of ours, each as often as it is there. The API keeps one that
/// precedes a section with the section above it, and drops it with that.
fn comments(text: &ConfigText, mark: &Mark) -> BTreeMap<String, usize> {
    let observed = Observed::new(0, text.clone(), mark);
    let ours: Vec<_> = observed.backends.values().filter(|backend| backend.is_ours()).collect();
    let mut comments = BTreeMap::new();
    for (at, line) in text.lines().iter().enumerate() {
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

/// A directive as what it means: the API writes options in an order of its own, and times in other units.
fn directive(line: &str) -> Option<String> {
    let mut words = Directive::parse(line).words;
    for word in &mut words {
        if let Some(time) = parse::time(word) {
            *word = format!("{}us", time.as_micros());
        }
    }
    words.get_mut(1..).map(<[String]>::sort);
    (!words.is_empty()).then(|| words.join("\u{1f}"))
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

/// Everything in a text that is ours.
pub(super) fn managed(text: &ConfigText, mark: &Mark) -> Vec<(BackendName, impl PartialEq)> {
    let observed = Observed::new(0, text.clone(), mark);
    observed.managed().map(|(name, backend)| (name, ours(backend, true))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark() -> Mark {
        "nomad".parse().expect("an owner")
    }

    #[test]
    fn what_the_api_renders_anew_is_the_same_in_meaning() {
        let by_hand = "# shop\nglobal\n   maxconn 100\ndefaults\n mode http\n timeout   client 30000\nbackend theirs\n  server a 127.0.0.1:1 weight 3 check\n";
        let rendered = "global\n  maxconn 100\n\ndefaults unnamed_defaults_1\n  timeout client 30s\n  mode http\n\nbackend theirs\n  server a 127.0.0.1:1 check weight 3 # shop\n";
        assert_eq!(foreign(&ConfigText::new(by_hand), &mark()), foreign(&ConfigText::new(rendered), &mark()));
    }

    #[test]
    fn a_foreign_line_that_is_lost_is_seen_and_ours_do_not_count() {
        let base = "backend theirs\n  server a 127.0.0.1:1\n";
        let with_ours = format!(
            "{base}  server b 127.0.0.1:2 # {{\"owner\":\"nomad\",\"freed\":\"1\"}}\nbackend ours\n  description nomad-haproxy:nomad\n  mode http\n"
        );
        assert_eq!(foreign(&ConfigText::new(base), &mark()), foreign(&ConfigText::new(&with_ours), &mark()));
        assert_ne!(foreign(&ConfigText::new(base), &mark()), foreign(&ConfigText::new("backend theirs\n"), &mark()));
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
