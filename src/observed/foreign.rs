//! The part of a configuration that is not ours, by meaning, and what a rendering of the file does to it.
//!
//! The Data Plane API renders the whole file with each write: sections and directives in its own order, spacing
//! normalised, `from` written out, times in other units, comments moved along. None of that matters. What matters: a
//! directive that is lost or moved to another section, the order of rules that are evaluated in order, and the
//! `defaults` that a section inherits from.

use std::collections::BTreeMap;

use crate::haproxy::parse;
use crate::haproxy::text::{Directive, Section};

use super::Observed;
use super::frontends::is_ours as is_our_rule;

/// Directives that HAProxy evaluates in their order (configuration manual, chapter 4).
const ORDERED: &[&str] = &[
    "filter",
    "http-after-response",
    "http-check",
    "http-request",
    "http-response",
    "redirect",
    "server",
    "stick",
    "tcp-check",
    "tcp-request",
    "tcp-response",
    "use-server",
    "use_backend",
];
/// The names that the API gives to `defaults` sections without one.
const UNNAMED: &str = "unnamed_defaults_";

/// The place of a directive: the section's kind and name, and its keyword.
type Place = (String, String, String);

/// The directives that are not ours, by place, without what a rendering may change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Foreign(BTreeMap<Place, Vec<String>>);

/// One directive that is not ours.
struct Entry {
    place: Place,
    meaning: String,
    /// Its line, from 1.
    line: usize,
}

impl Foreign {
    pub(super) fn new(observed: &Observed) -> Self {
        let mut places: BTreeMap<Place, Vec<String>> = BTreeMap::new();
        for Entry { place, meaning, line: _ } in entries(observed) {
            places.entry(place).or_default().push(meaning);
        }
        for ((_, _, keyword), meanings) in &mut places {
            without_order(keyword, meanings);
        }
        Self(places)
    }
}

/// The lines of what is not ours that `after` lacks or has elsewhere, each in a few words without its values, which may
/// be secret.
pub fn harm(before: &Observed, after: &Observed) -> Vec<String> {
    let (was, is) = (before.foreign(), after.foreign());
    if was == is {
        return Vec::new();
    }
    let mut left = is.0.clone();
    let mut harm = Vec::new();
    for Entry { place, meaning, line } in entries(before) {
        let kept = left.get_mut(&place).and_then(|meanings| {
            let at = meanings.iter().position(|other| *other == meaning)?;
            Some(meanings.remove(at))
        });
        if kept.is_none() {
            harm.push(format!("line {line}, {} would be lost or changed", named(&place)));
        }
    }
    if harm.is_empty() {
        let moved = was.0.iter().filter(|(place, meanings)| is.0.get(*place) != Some(*meanings));
        harm.extend(moved.map(|(place, _)| format!("the order of {} would change", named(place))));
        let added = left.into_iter().filter(|(_, meanings)| !meanings.is_empty());
        harm.extend(added.map(|(place, _)| format!("{} would be added", named(&place))));
    }
    harm
}

fn named((kind, name, keyword): &Place) -> String {
    let name = if name.is_empty() { String::new() } else { format!(" {name}") };
    match keyword.as_str() {
        "" => format!("the section `{kind}{name}`"),
        INHERITED => format!("what `{kind}{name}` inherits"),
        keyword => format!("`{keyword}` in `{kind}{name}`"),
    }
}

/// The lines of the comments outside of our sections that `after` lacks.
pub fn lost_comments(before: &Observed, after: &Observed) -> Vec<String> {
    let mut left: BTreeMap<String, usize> = BTreeMap::new();
    for (_, comment) in comments(after) {
        *left.entry(comment).or_default() += 1;
    }
    let lost = comments(before).into_iter().filter(|(_, comment)| match left.get_mut(comment) {
        Some(count) if *count > 0 => {
            *count -= 1;
            false
        }
        _ => true,
    });
    // Without its text: a password may have been commented out.
    lost.map(|(line, _)| format!("line {line}")).collect()
}

/// The comments that are in no section of ours, with their lines.
fn comments(observed: &Observed) -> Vec<(usize, String)> {
    let ours: Vec<_> = observed.backends.values().filter(|backend| backend.is_ours()).collect();
    // Metadata stays with its line, and a line of dashes has no content.
    let says = |comment: &String| comment.contains(char::is_alphanumeric) && !comment.starts_with(['_', '{']);
    let lines = observed.text.lines().iter().enumerate();
    let outside = lines.filter(|(at, _)| {
        !ours.iter().any(|backend| backend.section.lines.contains(at)) && !observed.profiles.has_line(*at)
    });
    let comment = |line: &str| Directive::parse(line).comment.map(unwrapped).filter(says);
    outside.filter_map(|(at, line)| Some((at + 1, comment(line)?))).collect()
}

/// API 3.4 keeps a comment after a directive as metadata: `# {"comment":"the old shop"}` (seen).
fn unwrapped(comment: String) -> String {
    let metadata: Option<serde_json::Value> = serde_json::from_str(&comment).ok();
    metadata.and_then(|data| Some(data.get("comment")?.as_str()?.to_owned())).unwrap_or(comment)
}

/// The keyword for what a section inherits from.
const INHERITED: &str = "from";

fn entries(observed: &Observed) -> Vec<Entry> {
    let text = &observed.text;
    let mut entries = Vec::new();
    let mut defaults: BTreeMap<String, String> = BTreeMap::new();
    let mut last = String::new();
    for section in text.sections().into_iter().filter(|section| !observed.profiles.has_line(section.lines.start)) {
        let backend = observed.backends.get(&section.name).filter(|backend| backend.section == section);
        let adopts = observed.owner.adopts_connector();
        let all_ours = backend.is_some_and(|backend| backend.is_ours() || adopts && backend.by_connector.is_whole);
        // What is taken over is as good as ours: it goes only where ours is in its place.
        let rules = observed.frontends.get(&section.name).map_or(&[][..], |frontend| &frontend.by_connector);
        let ours = |at: usize, directive: &Directive| match (directive.keyword(), backend) {
            _ if adopts && rules.iter().any(|rule| rule.lines.contains(&at)) => true,
            ("server", Some(backend)) => {
                backend.is_our_server(at) || adopts && backend.by_connector.servers.contains_key(&at)
            }
            ("use_backend", _) => all_ours || is_our_rule(directive, &observed.owner),
            _ => all_ours,
        };
        let place = |keyword: &str| {
            let name = if section.name.starts_with(UNNAMED) { "" } else { &section.name };
            (section.kind.clone(), name.to_owned(), keyword.to_owned())
        };
        let mut own = Vec::new();
        for (at, directive) in text.directives(&section).skip(1).filter(|(at, directive)| !ours(*at, directive)) {
            let place = place(directive.keyword());
            own.push(Entry { place, meaning: meaning(directive), line: at + 1 });
        }
        let inherits = section.from.as_ref().and_then(|from| defaults.get(from)).unwrap_or(&last).clone();
        if section.kind == "defaults" {
            last = content(&own, section.from.is_some().then_some(&inherits));
            defaults.insert(section.name.clone(), last.clone());
        }
        let line = section.lines.start + 1;
        if all_ours && own.is_empty() {
            continue;
        }
        entries.push(Entry { place: place(""), meaning: String::new(), line });
        if is_proxy(&section) || section.from.is_some() {
            entries.push(Entry { place: place(INHERITED), meaning: inherits, line });
        }
        entries.append(&mut own);
    }
    entries
}

fn is_proxy(section: &Section) -> bool {
    matches!(section.kind.as_str(), "frontend" | "backend" | "listen")
}

/// Sorts what the API may have written in another order.
fn without_order(keyword: &str, meanings: &mut [String]) {
    if !ORDERED.contains(&keyword) {
        meanings.sort_unstable();
    }
}

/// The meaning of a section's directives, for comparing it with a copy that the Data Plane API may have rendered.
pub(super) fn content_of(directives: &[Directive]) -> String {
    let mut by_keyword: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for directive in directives {
        by_keyword.entry(directive.keyword()).or_default().push(meaning(directive.clone()));
    }
    for (keyword, meanings) in &mut by_keyword {
        without_order(keyword, meanings);
    }
    by_keyword.into_values().flatten().collect::<Vec<_>>().join("\u{1e}")
}

/// The content of a `defaults` section, including the one that it names.
fn content(own: &[Entry], inherited: Option<&String>) -> String {
    let mut lines: Vec<&str> = own.iter().map(|entry| entry.meaning.as_str()).collect();
    lines.sort_unstable();
    [inherited.map_or("", String::as_str), &lines.join("\u{1e}")].join("\u{1d}")
}

/// The meaning of a directive: the API writes options in its own order, and times in other units.
fn meaning(directive: Directive) -> String {
    let mut words = directive.words;
    for word in &mut words {
        if let Some(time) = parse::time(word) {
            *word = format!("{}us", time.as_micros());
        }
    }
    if let Some(options) = words.get_mut(1..) {
        options.sort_unstable();
    }
    words.join("\u{1f}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::haproxy::text::ConfigText;

    fn observed(text: &str) -> Observed {
        Observed::new(1, ConfigText::new(text), &"nomad".parse().expect("an owner"))
    }

    #[test]
    fn a_rendering_of_the_api_is_the_same_in_meaning() {
        let by_hand = "# shop\nglobal\n   maxconn 100\ndefaults\n mode http\n timeout   client 30000\nbackend theirs\n  server a 127.0.0.1:1 weight 3 check\n";
        let rendered = "global\n  maxconn 100\n\ndefaults unnamed_defaults_1\n  timeout client 30s\n  mode http\n\nbackend theirs from unnamed_defaults_1\n  server a 127.0.0.1:1 check weight 3 # shop\n";
        assert_eq!(harm(&observed(by_hand), &observed(rendered)), Vec::<String>::new());
        assert_eq!(lost_comments(&observed(by_hand), &observed(rendered)), Vec::<String>::new());
    }

    #[test]
    fn a_line_that_is_lost_is_named_without_its_values_and_ours_do_not_count() {
        let base = "backend theirs\n  server a 127.0.0.1:1\n";
        let with_ours = format!(
            "{base}  server theirs_1 127.0.0.1:2 # {{\"owner\":\"nomad\",\"freed\":\"1\"}}\nbackend ours\n  description nomad-haproxy:nomad\n  mode http\n"
        );
        assert_eq!(observed(base).foreign(), observed(&with_ours).foreign());
        let lost = harm(&observed(base), &observed("backend theirs\n"));
        assert_eq!(lost, ["line 2, `server` in `backend theirs` would be lost or changed"]);
        let lost = harm(&observed(base), &observed(""));
        assert_eq!(lost[0], "line 1, the section `backend theirs` would be lost or changed");
    }

    #[test]
    fn rules_keep_their_order_and_sections_their_defaults() {
        let rules = |one: &str, two: &str| {
            observed(&format!("frontend f\n http-request {one}\n bind :1\n http-request {two}\n"))
        };
        let moved = harm(&rules("deny", "allow"), &rules("allow", "deny"));
        assert_eq!(moved, ["the order of `http-request` in `frontend f` would change"]);
        let before = "defaults\n mode tcp\nbackend a\n server a 127.0.0.1:1\ndefaults\n mode http\nbackend b\n server b 127.0.0.1:1\n";
        let after = "defaults unnamed_defaults_1\n mode tcp\ndefaults unnamed_defaults_2\n mode http\nbackend a\n server a 127.0.0.1:1\nbackend b\n server b 127.0.0.1:1\n";
        assert_eq!(
            harm(&observed(before), &observed(after)),
            ["line 3, what `backend a` inherits would be lost or changed"]
        );
    }

    #[test]
    fn a_conditional_that_sinks_into_another_section_is_seen() {
        let before = "userlist u\n user a\n.if defined(X)\nbackend a\n server a 127.0.0.1:1\n.endif\n";
        let after = "userlist u\n user a\n .if defined(X)\n frontend f\nbackend a\n server a 127.0.0.1:1\n .endif\n";
        assert!(!harm(&observed(before), &observed(after)).is_empty());
    }
}
