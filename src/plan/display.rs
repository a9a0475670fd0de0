//! What a person or a program reads of a plan.

use std::fmt;

use serde::Serialize;
use similar::TextDiff;

use crate::desired::{BackendName, NamespaceNote, Note};
use crate::haproxy::bytes;
use crate::haproxy::text::{ConfigText, Directive};
use crate::observed::Observed;

use super::guard::Holding;
use super::servers::{self, ServerSummary};
use super::{Edit, Plan, ServerEdit};

/// What happens to one backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackendSummary {
    /// Its name.
    pub name: BackendName,
    /// `create`, `change`, `servers` or `delete`.
    pub action: &'static str,
    /// Instances that come in.
    pub instances_added: usize,
    /// Instances that go out.
    pub instances_removed: usize,
    /// Servers that stay, with something changed (an address, a weight).
    pub servers_changed: usize,
    /// Each server that changes.
    pub servers: Vec<ServerSummary>,
}

/// A plan in brief.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Whether anything changes.
    pub changes: bool,
    /// Whether HAProxy takes it without a reload.
    pub live: bool,
    /// By name.
    pub backends: Vec<BackendSummary>,
    /// What there is to know about services.
    pub notes: Vec<Note>,
    /// What there is to know about namespaces as a whole.
    pub namespaces: Vec<NamespaceNote>,
    /// What the guard holds, if anything.
    pub guard: Option<Holding>,
    /// Foreign lines that the Data Plane API will render anew; their meaning stays.
    pub rerendered_lines: usize,
    /// Why none of this can be written as it is.
    pub blocked: Option<String>,
    /// The unified diff of the text that is written.
    pub diff: String,
}

impl Summary {
    /// Sums up a plan. `staged` is the text that would be written.
    pub fn new(plan: &Plan, observed: &Observed, staged: &ConfigText, notes: Vec<Note>) -> Self {
        let (diff, rerendered_lines) = diff(&observed.text, staged, plan);
        let backends = plan.edits.iter().map(|(name, edit)| backend(name, edit, observed)).collect();
        Self {
            changes: !plan.is_empty(),
            live: plan.is_live(),
            backends,
            notes,
            namespaces: Vec::new(),
            guard: None,
            rerendered_lines,
            blocked: None,
            diff,
        }
    }
}

fn backend(name: &BackendName, edit: &Edit, observed: &Observed) -> BackendSummary {
    let mut summary = BackendSummary {
        name: name.clone(),
        action: "delete",
        instances_added: 0,
        instances_removed: 0,
        servers_changed: 0,
        servers: servers::servers(edit, observed.backend(name)),
    };
    let seated = || {
        let servers = observed.backend(name).map_or(&[][..], |backend| &backend.servers);
        servers.iter().filter(|server| server.is_enabled()).map(|server| server.name.clone()).collect::<Vec<_>>()
    };
    let edits = match edit {
        Edit::Create { servers, .. } => {
            summary.action = "create";
            summary.instances_added = servers.iter().filter(|server| server.is_enabled()).count();
            return summary;
        }
        Edit::Delete => {
            summary.instances_removed = seated().len();
            return summary;
        }
        Edit::Change { edits, .. } => {
            summary.action = "change";
            edits
        }
        Edit::Servers(edits) => {
            summary.action = "servers";
            edits
        }
    };
    let seated = seated();
    for edit in edits {
        match (edit.tenancy(), edit) {
            (Some(true), _) => summary.instances_added += 1,
            (Some(false), _) => summary.instances_removed += 1,
            (None, ServerEdit::Remove(name)) if seated.contains(name) => summary.instances_removed += 1,
            (None, ServerEdit::Set { .. }) => summary.servers_changed += 1,
            (None, _) => {}
        }
    }
    summary
}

/// The diff of what is ours, and how many foreign lines are merely rendered anew.
///
/// Where the other sections are the same to the byte it is the diff of the whole text. Where the Data
/// Plane API sorted and spaced them anew, a diff of the whole would hide the change under a hundred
/// lines that mean nothing, so only the sections of the plan are compared.
fn diff(current: &ConfigText, staged: &ConfigText, plan: &Plan) -> (String, usize) {
    if plan.is_empty() {
        return (String::new(), 0);
    }
    // The hash that the Data Plane API keeps on top changes with every write, and says nothing.
    let is_hash = |line: &&String| line.starts_with("# _md5hash=");
    let hash = current.lines().iter().find(is_hash);
    let after = staged.lines().iter().map(|line| hash.filter(|_| is_hash(&line)).unwrap_or(line).as_str());
    let (before, after) = (current.lines().concat(), after.collect::<String>());
    let theirs = |text: &ConfigText| foreign_lines(text, plan);
    let (theirs_before, theirs_after) = (theirs(current), theirs(staged));
    if theirs_before == theirs_after {
        return (unified(&before, &after), 0);
    }
    let changed = TextDiff::from_lines(&theirs_before, &theirs_after);
    let rerendered = changed.iter_all_changes().filter(|change| change.tag() == similar::ChangeTag::Insert).count();
    (unified(&sections_of(current, plan), &sections_of(staged, plan)), rerendered)
}

/// A line of the diff's context may be anybody's: what stands behind such a word is not printed.
const SECRETS: &[&str] = &[
    "password",
    "insecure-password",
    "auth",
    "secret",
    "token",
    "key",
    "setenv",
    "presetenv",
    // Of `http-request set-header`.
    "authorization",
    "proxy-authorization",
    "x-api-key",
    "x-auth-token",
];

fn masked(text: &str) -> String {
    let is_secret = |word: &&String| SECRETS.iter().any(|secret| word.eq_ignore_ascii_case(secret));
    let mask = |line: &str| match Directive::parse(line).words.iter().find(is_secret) {
        Some(word) => match line.split_once(word.as_str()) {
            Some((before, _)) => format!("{before}{word} ***\n"),
            None => "***\n".to_owned(),
        },
        None => line.to_owned(),
    };
    text.split_inclusive('\n').map(mask).collect()
}

fn unified(before: &str, after: &str) -> String {
    let (before, after) = (&masked(before), &masked(after));
    let diff = TextDiff::from_lines(before, after)
        .unified_diff()
        .context_radius(3)
        .header("haproxy.cfg", "haproxy.cfg (planned)")
        .to_string();
    bytes::shown(&diff).into_owned()
}

fn is_planned(section: &crate::haproxy::text::Section, plan: &Plan) -> bool {
    matches!(section.kind.as_str(), "backend" | "listen") && plan.edits.keys().any(|name| name.as_str() == section.name)
}

fn foreign_lines(text: &ConfigText, plan: &Plan) -> String {
    let mut skip: Vec<usize> = Vec::new();
    for section in text.sections().iter().filter(|section| is_planned(section, plan)) {
        skip.extend(section.lines.clone());
    }
    let ours = |at: &usize| skip.binary_search(at).is_ok();
    let lines = text.lines().iter().enumerate().filter(|(at, line)| !ours(at) && !line.trim().is_empty());
    // Comments and conditional lines at the end of a section belong to nobody, and where that end is moves with
    // our own lines.
    let is_compared = |line: &str| !line.trim_start().starts_with(['#', '.']);
    lines.map(|(_, line)| line.as_str()).filter(|line| is_compared(line)).collect()
}

fn sections_of(text: &ConfigText, plan: &Plan) -> String {
    let mut sections: Vec<_> = text.sections().into_iter().filter(|section| is_planned(section, plan)).collect();
    sections.sort_by(|a, b| a.name.cmp(&b.name));
    sections.iter().flat_map(|section| &text.lines()[section.lines.clone()]).map(String::as_str).collect()
}

impl fmt::Display for Summary {
    /// The diff, then a line for each note, then one line that says what it comes to.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.diff)?;
        for note in &self.notes {
            writeln!(f, "{note}")?;
        }
        for note in &self.namespaces {
            writeln!(f, "{note}")?;
        }
        if let Some(guard) = &self.guard {
            writeln!(f, "{guard}")?;
        }
        if self.rerendered_lines > 0 {
            writeln!(
                f,
                "The Data Plane API will also render {} other lines anew (order and spacing; their meaning stays).",
                self.rerendered_lines
            )?;
        }
        if let Some(blocked) = &self.blocked {
            writeln!(f, "error: {blocked}")?;
        }
        if !self.changes && self.guard.is_some() {
            return writeln!(f, "No other changes.");
        }
        if !self.changes {
            return writeln!(f, "No changes: HAProxy is in line with the catalog.");
        }
        let count = |action| self.backends.iter().filter(|backend| backend.action == action).count();
        let sum = |of: fn(&BackendSummary) -> usize| self.backends.iter().map(of).sum::<usize>();
        writeln!(
            f,
            "Plan: {} backends to create, {} to change, {} to delete; instances +{} -{}, {} servers changed; {}.",
            count("create"),
            count("change") + count("servers"),
            count("delete"),
            sum(|backend| backend.instances_added),
            sum(|backend| backend.instances_removed),
            sum(|backend| backend.servers_changed),
            if self.live { "no reload" } else { "one reload" },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_beside_a_change_is_not_printed() {
        let before = "userlist api\n  http-request set-header Authorization 's3cret'\n  user admin insecure-password s3cret\n  stats auth admin:s3cret\n";
        let after = format!("{before}\nbackend api\n  mode http\n");
        let diff = unified(before, &after);
        assert!(!diff.contains("s3cret") && diff.contains("   user admin insecure-password ***"), "{diff}");
        assert!(diff.contains("+backend api"), "{diff}");
    }

    #[test]
    fn a_comment_above_a_server_of_ours_is_not_rendered_anew() {
        let before = "backend a\n  # words\n.if true\n  server a_1 127.0.0.1:1\n.endif\n";
        let after = "backend a\n  # words\n.if true\n.endif\n";
        let plan = Plan { edits: [("a".parse().expect("a name"), Edit::Servers(Vec::new()))].into() };
        let (diff, rerendered) = diff(&ConfigText::new(before), &ConfigText::new(after), &plan);
        assert!(diff.contains("   # words\n") && diff.contains("-  server a_1"), "{diff}");
        assert_eq!(rerendered, 0);
    }

    #[test]
    fn the_hash_of_the_api_is_no_change() {
        let text =
            |hash: &str, rest: &str| ConfigText::new(&format!("# _md5hash={hash}\n# _version=3\n\nglobal\n{rest}"));
        let (before, after) = (text("a", "\nbackend api\n  mode http\n"), text("b", ""));
        let plan = Plan { edits: [("api".parse().expect("a name"), Edit::Delete)].into() };
        let (diff, rerendered) = diff(&before, &after, &plan);
        assert!(diff.contains("@@ -2,6 +2,3 @@") && diff.contains("-backend api") && !diff.contains("md5"), "{diff}");
        assert_eq!(rerendered, 0);
    }
}
