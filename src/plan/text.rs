//! A plan as an edit of the configuration text: our own lines change, every other byte stays.

use std::collections::BTreeSet;

use crate::desired::Owner;
use crate::haproxy::connector;
use crate::haproxy::parse::{self, ServerLine};
use crate::haproxy::render;
use crate::haproxy::text::{Blocks, ConfigText, Directive, Section};
use crate::observed::{Frontend, Observed};

use super::{Edit, Plan, Rewrite, RouteEdits, RuleEdit, ServerEdit};

/// Where a plan changes the text, and how.
enum Place<'a> {
    Backend(&'a Section, &'a Edit),
    Frontend(&'a Frontend, &'a RuleEdit),
    Profile(&'a Section),
    NewProfiles(&'a [(String, Vec<String>)]),
}

/// The text that the plan leads to, at the same version.
pub fn apply(plan: &Plan, observed: &Observed, owner: &Owner) -> ConfigText {
    // Map files are not part of this text.
    let Plan { edits, profiles, routes: RouteEdits { rules, maps: _ } } = plan;
    let mut text = observed.text.clone();
    // From the last section to the first, so that line numbers stay correct.
    let backends = edits.iter().filter_map(|(name, edit)| {
        let section = &observed.backend(name)?.section;
        Some((section.lines.start, Place::Backend(section, edit)))
    });
    let mut places: Vec<(usize, Place)> = backends.collect();
    places.extend(rules.iter().filter_map(|(name, edit)| {
        let frontend = observed.frontend(name)?;
        Some((frontend.section.lines.start, Place::Frontend(frontend, edit)))
    }));
    places.extend(profiles.remove.iter().map(|section| (section.lines.start, Place::Profile(section))));
    places.push((profiles.at, Place::NewProfiles(&profiles.add)));
    places.sort_by_key(|(line, _)| std::cmp::Reverse(*line));
    for (line, place) in places {
        let (section, edit) = match place {
            Place::Backend(section, edit) => (section, edit),
            Place::Frontend(frontend, edit) => {
                change_rules(&mut text, frontend, edit);
                continue;
            }
            Place::Profile(section) => {
                text.remove_profile(section);
                continue;
            }
            Place::NewProfiles(new) => {
                text.splice(line..line, new.iter().flat_map(|(_, lines)| lines.iter().cloned()));
                continue;
            }
        };
        match edit {
            Edit::Delete { .. } => text.remove_section(section),
            Edit::Change { settings, rewrite, edits, .. } => {
                let (description, fresh) = match rewrite {
                    Rewrite::Nothing => (None, None),
                    Rewrite::Description => (Some(settings.description.as_str()), None),
                    Rewrite::Settings => (None, Some(render::settings(settings))),
                };
                change(&mut text, section, description, fresh, edits, owner);
            }
            Edit::Servers(edits) => change(&mut text, section, None, None, edits, owner),
            Edit::Create { .. } => {}
        }
    }
    for (name, edit) in edits {
        if let Edit::Create { settings, servers, is_live: _ } = edit {
            let mut lines = vec![render::header(name, observed.defaults.as_deref())];
            lines.extend(render::settings(settings));
            lines.extend(servers.iter().map(|server| render::server(server, owner)));
            text.append(lines);
        }
    }
    text
}

/// Rewrites one section: its description, all its settings, or only servers. Comments and blank lines stay where they
/// are; rewritten settings follow the header, and every directive other than a server is removed.
fn change(
    text: &mut ConfigText,
    section: &Section,
    description: Option<&str>,
    settings: Option<Vec<String>>,
    edits: &[ServerEdit],
    owner: &Owner,
) {
    let mut lines = Vec::new();
    let mut body = text.lines()[section.lines.clone()].iter();
    lines.extend(body.next().map(ended));
    let rewrite = settings.is_some();
    lines.extend(settings.into_iter().flatten());
    let (mut written, mut blocks, mut before_block) = (BTreeSet::new(), Blocks::default(), lines.len());
    for line in body {
        let directive = Directive::parse(line);
        if !blocks.is_inside() {
            before_block = lines.len();
        }
        blocks.pass(directive.keyword());
        let edit = match directive.keyword() {
            // A person's server of the same name is not ours.
            "server" => match parse::server(&directive, owner) {
                ServerLine::Ours(name, _) => edits.iter().find(|edit| *edit.name() == name),
                ServerLine::Foreign(_) if is_retired(section, &directive, edits) => continue,
                ServerLine::Foreign(_) => None,
            },
            "description" if description.is_some() => {
                lines.extend(description.map(|text| described(text, directive.comment.as_deref())));
                continue;
            }
            // A line that has words, even if only an empty one (`""`).
            keyword if rewrite && !directive.words.is_empty() && !keyword.starts_with('.') => continue,
            _ => None,
        };
        match edit {
            // A line that was copied is written once, and outside of conditional blocks.
            Some(ServerEdit::Set { after, .. }) if !blocks.is_inside() && written.insert(&after.name) => {
                lines.push(render::server(after, owner));
            }
            Some(ServerEdit::Set { .. } | ServerEdit::Remove { .. }) => {}
            Some(ServerEdit::Add { .. } | ServerEdit::Retire { .. }) | None => lines.push(ended(line)),
        }
    }
    let new = edits.iter().filter_map(|edit| match edit {
        ServerEdit::Add { server, .. } => Some(render::server(server, owner)),
        ServerEdit::Set { after, .. } if !written.contains(&after.name) => Some(render::server(after, owner)),
        ServerEdit::Set { .. } | ServerEdit::Remove { .. } | ServerEdit::Retire { .. } => None,
    });
    let end = if blocks.is_inside() { before_block } else { lines.len() };
    lines.splice(end..end, new.collect::<Vec<_>>());
    text.splice(section.lines.clone(), lines);
}

/// Whether a line is a server of the connector that goes.
fn is_retired(section: &Section, directive: &Directive, edits: &[ServerEdit]) -> bool {
    let is_its =
        |edit: &ServerEdit, name: &str| matches!(edit, ServerEdit::Retire { name: gone } if gone.as_str() == name);
    connector::server(&section.name, directive).is_some_and(|its| edits.iter().any(|edit| is_its(edit, &its.name)))
}

/// Replaces the rules of ours in a frontend. They go behind its last directive, and outside of conditional blocks.
fn change_rules(text: &mut ConfigText, frontend: &Frontend, edit: &RuleEdit) {
    let (mut lines, mut blocks, mut before_block) = (Vec::new(), Blocks::default(), 0);
    let mut indentation = "  ".to_owned();
    let goes = |at: &usize| frontend.rules.contains_key(at) || edit.retired.contains(at);
    for at in frontend.section.lines.clone().filter(|at| !goes(at)) {
        let line = &text.lines()[at];
        let directive = Directive::parse(line);
        if !blocks.is_inside() {
            before_block = lines.len();
        }
        blocks.pass(directive.keyword());
        if at > frontend.section.lines.start && !directive.words.is_empty() && !blocks.is_inside() {
            indentation = line.chars().take_while(|c| [' ', '\t'].contains(c)).collect();
        }
        lines.push(ended(line));
    }
    let end = if blocks.is_inside() { before_block } else { lines.len() };
    let new: Vec<String> = edit.lines.iter().map(|rule| format!("{indentation}{rule}\n")).collect();
    lines.splice(end..end, new);
    text.splice(frontend.section.lines.clone(), lines);
}

/// A description, followed by a person's comment.
fn described(description: &str, comment: Option<&str>) -> String {
    let comment = comment.map(|comment| format!(" # {comment}")).unwrap_or_default();
    render::description(description) + &comment + "\n"
}

/// The last line of a file may lack its newline; what follows must not be joined to it.
fn ended(line: &String) -> String {
    if line.ends_with('\n') { line.clone() } else { format!("{line}\n") }
}
