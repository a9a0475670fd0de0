//! The summary of a plan, for people and programs.
//!
//! The configuration contains passwords and tokens, and what is printed ends up in logs, tickets and the output of
//! pipelines. No list of words can recognise a secret, so the diff shows the lines that a controller writes, and of
//! every other line only its first word.

mod routes;

use std::borrow::Cow;
use std::fmt;

use serde::Serialize;
use similar::TextDiff;

use crate::desired::{BackendName, FrontendName, NamespaceNote, Note};
use crate::haproxy::bytes;
use crate::haproxy::connector;
use crate::haproxy::maps;
use crate::haproxy::parse::is_a_controllers;
use crate::haproxy::text::{ConfigText, Directive, Section};
use crate::observed::{Observed, ObservedBackend};

pub use self::routes::{RouteAction, RouteSummary};

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

/// A summary of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Whether anything changes.
    pub changes: bool,
    /// Whether HAProxy takes it without a reload.
    pub live: bool,
    /// Why it takes a reload, if it does: a line for each reason.
    pub reload: Vec<String>,
    /// By name.
    pub backends: Vec<BackendSummary>,
    /// The routes that change.
    pub routes: Vec<RouteSummary>,
    /// The frontends whose rules change.
    pub frontends: Vec<FrontendName>,
    /// Notes about services.
    pub notes: Vec<Note>,
    /// Notes about whole namespaces.
    pub namespaces: Vec<NamespaceNote>,
    /// What the guard holds, if anything.
    pub guard: Option<Holding>,
    /// Spare servers that are no longer needed, and stay until a change of their backends takes a reload.
    pub surplus: usize,
    /// Foreign lines that the Data Plane API will render differently; their meaning stays.
    pub rerendered_lines: usize,
    /// Why it cannot be written.
    pub blocked: Option<String>,
    /// The unified diff of the text that is written.
    pub diff: String,
}

impl Summary {
    /// Summarises a plan. `staged` is the text that would be written.
    pub fn new(plan: &Plan, observed: &Observed, staged: &ConfigText, notes: Vec<Note>) -> Self {
        let (diff, rerendered_lines) = diff(observed, staged, plan);
        let backends = plan.edits.iter().map(|(name, edit)| backend(name, edit, observed)).collect();
        Self {
            changes: !plan.is_empty(),
            live: plan.is_live(),
            reload: Vec::new(),
            backends,
            routes: routes::summaries(&plan.routes),
            frontends: plan.routes.rules.keys().cloned().collect(),
            notes,
            namespaces: Vec::new(),
            guard: None,
            surplus: 0,
            rerendered_lines,
            blocked: None,
            diff: diff + &routes::diff(&plan.routes),
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
        Edit::Delete { .. } => {
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
        match (edit.movement(), edit) {
            (Some(true), _) => summary.instances_added += 1,
            (Some(false), _) => summary.instances_removed += 1,
            (None, ServerEdit::Remove { name, .. }) if seated.contains(name) => summary.instances_removed += 1,
            (None, ServerEdit::Set { .. } | ServerEdit::Retire { .. }) => summary.servers_changed += 1,
            (None, _) => {}
        }
    }
    // It was in before: the server that goes has its address.
    let renamed = edits.iter().filter(|edit| edit.is_retirement()).count();
    summary.instances_added = summary.instances_added.saturating_sub(renamed);
    summary
}

/// The diff of what is ours, and how many foreign lines are only rendered differently.
///
/// If the other sections are the same to the byte, it is the diff of the whole text. If the Data Plane API sorted and
/// spaced them differently, a diff of the whole would hide the change under a hundred lines that mean nothing, so only
/// the sections of the plan are compared.
fn diff(observed: &Observed, staged: &ConfigText, plan: &Plan) -> (String, usize) {
    if plan.is_empty() {
        return (String::new(), 0);
    }
    let current = &observed.text;
    let (before, after) = (shown(current, observed, plan), shown(staged, observed, plan));
    let foreign = |text: &ConfigText| foreign_lines(text, plan);
    let (foreign_before, foreign_after) = (foreign(current), foreign(staged));
    if foreign_before == foreign_after {
        return (unified(&before.concat(), &after.concat()), 0);
    }
    let changed = TextDiff::from_lines(&foreign_before, &foreign_after);
    let rerendered = changed.iter_all_changes().filter(|change| change.tag() == similar::ChangeTag::Insert).count();
    (unified(&sections_of(current, &before, plan), &sections_of(staged, &after, plan)), rerendered)
}

/// The lines of a text, for people to read.
fn shown(text: &ConfigText, observed: &Observed, plan: &Plan) -> Vec<String> {
    // Lines above the first section, and after the last directive of one, belong to no section.
    let mut shown: Vec<String> = text.lines().iter().map(|line| keyword_only(line)).collect();
    for section in text.sections() {
        let ours = is_planned(&section, plan).then(|| is_ours(&section, observed, plan));
        let Some(header) = section.lines.clone().next() else { continue };
        if section.is_known() {
            shown[header] = with_end(&header_of(&section), &text.lines()[header]);
        }
        let Some(ours) = ours else { continue };
        for (at, directive) in text.directives(&section).skip(1) {
            let is_line = is_a_controllers(&directive) && (ours || directive.keyword() == "server");
            let is_connectors = || {
                connector::is_rule_or_acl(&text.lines()[at]) || connector::server(&section.name, &directive).is_some()
            };
            let is_route = || directive.keyword() == "use_backend" && maps::owner_of(&directive.words).is_some();
            if is_line || is_route() || is_connectors() {
                shown[at].clone_from(&text.lines()[at]);
            }
        }
    }
    shown
}

/// Whether a section of the plan is ours; in any other only the servers are.
fn is_ours(section: &Section, observed: &Observed, plan: &Plan) -> bool {
    section.kind == "defaults"
        || plan.edits.iter().filter(|(name, _)| name.as_str() == section.name).any(|(name, edit)| match edit {
            Edit::Create { .. } | Edit::Change { .. } | Edit::Delete { .. } => true,
            Edit::Servers(_) => observed.backend(name).is_some_and(ObservedBackend::is_ours),
        })
}

fn header_of(section: &Section) -> String {
    let Section { kind, name, from, lines: _, certain: _ } = section;
    let name = if name.is_empty() { String::new() } else { format!(" {name}") };
    let from = from.as_ref().map(|from| format!(" from {from}")).unwrap_or_default();
    format!("{kind}{name}{from}")
}

/// A line without its content: only its indentation and its first word, if that looks like a keyword.
fn keyword_only(line: &str) -> String {
    let directive = Directive::parse(line);
    let indentation = &line[..line.len() - line.trim_start_matches([' ', '\t']).len()];
    let is_version = |line: &str| {
        line.strip_prefix("# _version=").is_some_and(|version| version.trim_end().bytes().all(|b| b.is_ascii_digit()))
    };
    // The hash at the top, which the Data Plane API changes with every write, is not shown.
    let is_hash = line.starts_with("# _md5hash=");
    let keyword = directive.keyword();
    let is_keyword = !keyword.is_empty() && keyword.bytes().all(|b| b.is_ascii_lowercase() || b"-_.".contains(&b));
    let rest = directive.words.len() > 1 || directive.comment.is_some();
    let shown: Cow<'_, str> = match directive.words.len() {
        _ if is_version(line) => return line.to_owned(),
        0 if directive.comment.is_none() => return line.to_owned(),
        0 if is_hash => "# _md5hash=…".into(),
        0 => "# …".into(),
        _ if is_keyword && rest => format!("{keyword} …").into(),
        _ if is_keyword => keyword.into(),
        _ => "…".into(),
    };
    with_end(&format!("{indentation}{shown}"), line)
}

fn with_end(shown: &str, line: &str) -> String {
    let end = if line.ends_with('\n') { "\n" } else { "" };
    format!("{shown}{end}")
}

fn unified(before: &str, after: &str) -> String {
    let diff = TextDiff::from_lines(before, after)
        .unified_diff()
        .context_radius(3)
        .header("haproxy.cfg", "haproxy.cfg (planned)")
        .to_string();
    bytes::shown(&diff).into_owned()
}

fn is_planned(section: &Section, plan: &Plan) -> bool {
    let Plan { edits, profiles, routes } = plan;
    let has_rules = || routes.rules.keys().any(|name| name.as_str() == section.name);
    match section.kind.as_str() {
        "backend" => edits.keys().any(|name| name.as_str() == section.name),
        "frontend" => has_rules(),
        "listen" => has_rules() || edits.keys().any(|name| name.as_str() == section.name),
        "defaults" => {
            profiles.remove.iter().any(|removed| removed.name == section.name)
                || profiles.add.iter().any(|(name, _)| *name == section.name)
        }
        _ => false,
    }
}

fn foreign_lines(text: &ConfigText, plan: &Plan) -> String {
    let mut skip: Vec<usize> = Vec::new();
    for section in text.sections().iter().filter(|section| is_planned(section, plan)) {
        skip.extend(section.lines.clone());
    }
    let ours = |at: &usize| skip.binary_search(at).is_ok();
    let lines = text.lines().iter().enumerate().filter(|(at, line)| !ours(at) && !line.trim().is_empty());
    // Comments and conditional lines at the end of a section belong to no section, and where that end is changes with
    // our own lines.
    let is_compared = |line: &str| !line.trim_start().starts_with(['#', '.']);
    lines.map(|(_, line)| line.as_str()).filter(|line| is_compared(line)).collect()
}

fn sections_of(text: &ConfigText, shown: &[String], plan: &Plan) -> String {
    let mut sections: Vec<_> = text.sections().into_iter().filter(|section| is_planned(section, plan)).collect();
    sections.sort_by(|a, b| a.name.cmp(&b.name));
    sections.iter().flat_map(|section| &shown[section.lines.clone()]).map(String::as_str).collect()
}

impl fmt::Display for Summary {
    /// The diff, then a line for each note, then a one-line summary.
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
        for line in &self.reload {
            writeln!(f, "{line}")?;
        }
        match self.surplus {
            0 => {}
            1 => writeln!(
                f,
                "One spare server is no longer needed; it is removed when a change of its backend takes a reload."
            )?,
            more => writeln!(
                f,
                "{more} spare servers are no longer needed; they are removed when changes of their backends take a \
                 reload."
            )?,
        }
        if self.rerendered_lines > 0 {
            writeln!(
                f,
                "The Data Plane API will also rewrite {} other lines (order and spacing; their meaning stays).",
                self.rerendered_lines
            )?;
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
            "Plan: {} backends to create, {} to change, {} to delete; instances +{} -{}, {} servers changed; {}{}.",
            count("create"),
            count("change") + count("servers"),
            count("delete"),
            sum(|backend| backend.instances_added),
            sum(|backend| backend.instances_removed),
            sum(|backend| backend.servers_changed),
            routes::count(&self.routes),
            if self.live { "no reload" } else { "one reload" },
        )?;
        self.blocked.iter().try_for_each(|blocked| writeln!(f, "error: {blocked}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELETE: Edit = Edit::Delete { is_live: false };

    fn plan(name: &str, edit: Edit) -> Plan {
        Plan { edits: [(name.parse().expect("a name"), edit)].into(), ..Plan::default() }
    }

    fn observed(text: &str) -> Observed {
        Observed::new(1, ConfigText::new(text), &"nomad".parse().expect("an owner"))
    }

    fn diff_of(before: &str, after: &str, name: &str, edit: Edit) -> (String, usize) {
        diff(&observed(before), &ConfigText::new(after), &plan(name, edit))
    }

    const OURS: &str = "  server a_1 127.0.0.1:1 weight 1 # {\"id\":\"x\",\"owner\":\"nomad\"}\n";

    #[test]
    fn of_lines_that_are_not_ours_only_the_keyword_is_printed() {
        let before = "userlist people # s3cr3t\n  user admin insecure-password s3cr3t\n# s3cr3t\n\
                      frontend web\n  bind :443 ssl crt /s3cr3t.pem\n  http-request set-header Authorization \"s3cr3t x\"\n  S3CR3T\n\n\
                      backend a\n  # s3cr3t\n  http-request set-header X-Key s3cr3t # s3cr3t\n  server old s3cr3t:1 cookie s3cr3t\n";
        let (diff, rerendered) = diff_of(before, &format!("{before}{OURS}"), "a", Edit::Servers(Vec::new()));
        assert!(!diff.to_lowercase().contains("s3cr3t"), "{diff}");
        let context = "   # …\n   http-request …\n   server …\n+  server a_1 127.0.0.1:1 weight 1 #";
        assert!(diff.contains(context), "{diff}");
        assert_eq!(rerendered, 0);
        // A header is shown without what follows it; a word that is not a keyword is not shown at all.
        let (diff, _) = diff_of(
            before,
            &before.replace("backend a\n", &format!("backend a\n{OURS}")),
            "a",
            Edit::Servers(Vec::new()),
        );
        assert!(diff.contains("   …\n \n backend a\n+  server a_1"), "{diff}");
    }

    #[test]
    fn in_a_backend_of_ours_a_line_of_a_person_is_not_printed() {
        let ours = format!("backend a\n  description nomad-haproxy:nomad default/a\n  mode http\n{OURS}");
        let foreign = "  http-request set-header X-Key s3cr3t\n  option httpchk GET / HTTP/1.1 s3cr3t\n  description s3cr3t\n  balance roundrobin # s3cr3t\n";
        let changed = "  server a_2 127.0.0.1:2 sni str(s3cr3t) # {\"id\":\"y\",\"owner\":\"nomad\"}\n";
        let (diff, _) = diff_of(&format!("{ours}{foreign}{changed}# s3cr3t\n"), "# s3cr3t\n", "a", DELETE);
        assert!(!diff.contains("s3cr3t"), "{diff}");
        for line in [
            "-backend a\n",
            "-  description nomad-haproxy:nomad default/a\n",
            "-  mode http\n",
            "-  server a_1 127.0.0.1:1 weight 1 # {",
            "-  http-request …\n",
            "-  balance …\n",
            "-  server …\n",
            " # …\n",
        ] {
            assert!(diff.contains(line), "{line} in:\n{diff}");
        }
    }

    #[test]
    fn in_a_foreign_backend_only_a_server_can_be_ours() {
        let before = "backend a\n  description nomad-haproxy:other s3cr3t\n  option httpchk GET /s3cr3t\n";
        let (diff, _) = diff_of(before, &format!("{before}{OURS}"), "a", Edit::Servers(Vec::new()));
        assert!(!diff.contains("s3cr3t") && diff.contains("   option …\n+  server a_1"), "{diff}");
    }

    #[test]
    fn lines_that_the_api_renders_in_another_way_are_counted_and_not_printed() {
        let before = "frontend web\n  bind   :1 # s3cr3t\nbackend a\n  http-request   set-header X s3cr3t\n";
        let after = format!("frontend web\n  bind :1 # s3cr3t\nbackend a\n  http-request set-header X s3cr3t\n{OURS}");
        let (diff, rerendered) = diff_of(before, &after, "a", Edit::Servers(Vec::new()));
        assert_eq!(rerendered, 1);
        assert!(!diff.contains("s3cr3t") && diff.contains(" backend a\n   http-request …\n+  server a_1"), "{diff}");
    }

    #[test]
    fn a_comment_above_a_server_of_ours_is_not_counted_as_rendered() {
        let before = format!("backend a\n  # words\n.if true\n{OURS}.endif\n");
        let after = "backend a\n  # words\n.if true\n.endif\n";
        let (diff, rerendered) = diff_of(&before, after, "a", Edit::Servers(Vec::new()));
        assert!(diff.contains("   # …\n") && diff.contains("-  server a_1"), "{diff}");
        assert_eq!(rerendered, 0);
    }

    #[test]
    fn the_hash_of_the_api_is_no_change() {
        let text = |hash: &str, rest: &str| format!("# _md5hash={hash}\n# _version=3\n\nglobal\n{rest}");
        let (before, after) = (text("a", "\nbackend api\n  mode http\n"), text("b", ""));
        let (diff, rerendered) = diff_of(&before, &after, "api", DELETE);
        assert!(diff.contains("@@ -2,6 +2,3 @@") && diff.contains("-backend api"), "{diff}");
        assert!(diff.contains(" # _version=3\n"), "{diff}");
        assert_eq!(rerendered, 0);
    }
}
