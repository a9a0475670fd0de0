//! A plan as an edit of the configuration text: our own lines change, every other byte stays.

use crate::desired::Mark;
use crate::haproxy::render;
use crate::haproxy::text::{ConfigText, Directive, Section};
use crate::observed::Observed;

use super::{Edit, Plan, ServerEdit};

/// The text that the plan leads to, at the same version.
pub fn apply(plan: &Plan, observed: &Observed, mark: &Mark) -> ConfigText {
    let mut text = observed.text.clone();
    // From the last section to the first, so that line numbers stay true.
    let mut present: Vec<(&Section, &Edit)> =
        plan.edits.iter().filter_map(|(name, edit)| Some((&observed.backend(name)?.section, edit))).collect();
    present.sort_by_key(|(section, _)| std::cmp::Reverse(section.lines.start));
    for (section, edit) in present {
        match edit {
            Edit::Delete => text.remove_section(section),
            Edit::Change { settings, rewrite, edits, .. } => {
                let fresh = rewrite.then(|| render::settings(settings));
                change(&mut text, section, fresh, edits, mark);
            }
            Edit::Servers(edits) => change(&mut text, section, None, edits, mark),
            Edit::Create { .. } => {}
        }
    }
    for (name, edit) in &plan.edits {
        if let Edit::Create { settings, servers } = edit {
            let mut lines = vec![render::header(name, observed.defaults.as_deref())];
            lines.extend(render::settings(settings));
            lines.extend(servers.iter().map(|server| render::server(server, mark)));
            text.append(lines);
        }
    }
    text
}

/// Rewrites one section. Comments and blank lines stay where they are; where the settings are written
/// anew they stand behind the header, and every directive that is no server goes.
fn change(text: &mut ConfigText, section: &Section, settings: Option<Vec<String>>, edits: &[ServerEdit], mark: &Mark) {
    let mut lines = Vec::new();
    let mut body = text.lines()[section.lines.clone()].iter();
    lines.extend(body.next().map(ended));
    let rewrite = settings.is_some();
    lines.extend(settings.into_iter().flatten());
    for line in body {
        let directive = Directive::parse(line);
        let name = directive.words.get(1).map(String::as_str);
        let edit = match directive.keyword() {
            "server" => edits.iter().find(|edit| Some(edit.name().as_str()) == name),
            "" => None,
            keyword if rewrite && !keyword.starts_with('.') => continue,
            _ => None,
        };
        match edit {
            Some(ServerEdit::Set { after, .. }) => lines.push(render::server(after, mark)),
            Some(ServerEdit::Remove(_)) => {}
            Some(ServerEdit::Add(_)) | None => lines.push(ended(line)),
        }
    }
    lines.extend(edits.iter().filter_map(|edit| match edit {
        ServerEdit::Add(server) => Some(render::server(server, mark)),
        _ => None,
    }));
    text.splice(section.lines.clone(), lines);
}

/// The last line of a file may lack its end; what follows it must not run into it.
fn ended(line: &String) -> String {
    if line.ends_with('\n') { line.clone() } else { format!("{line}\n") }
}
