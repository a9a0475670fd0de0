//! The whole file rendered anew, which is what the real API makes of it with each structured edit: the
//! recorded texts hold this to it to the byte. What no recording has (comments, directives that were not
//! in order) is put where it does the most harm to a reader that counts on an order.

use std::collections::BTreeMap;

use nomad_haproxy::haproxy::text::{ConfigText, Section};

/// Sections in the order in which they are written, each kind sorted by name; others follow.
const KINDS: &[&str] =
    &["global", "defaults", "userlist", "peers", "mailers", "resolvers", "cache", "frontend", "backend"];
/// Directives in the order in which they are written; others follow, by their first word.
const DIRECTIVES: &[&str] = &[
    "master-worker",
    "stats",
    "description",
    "mode",
    "bind",
    "acl",
    "balance",
    "option",
    "timeout",
    "http-check",
    "use_backend",
    "default_backend",
    "default-server",
    "server",
    "log",
];
/// What the API puts on top.
const MANAGED: &str =
    "# Dataplaneapi managed File\n# changing file directly can cause a conflict if dataplaneapi is running\n";

/// The header that every write of the API leaves: a hash (of no use here but to be there) and the version.
pub fn stamped(text: ConfigText, version: u64) -> ConfigText {
    let text = text.with_version(version).to_string();
    ConfigText::new(&format!("# _md5hash={:032x}\n{text}", text.len()))
}

/// The words of a line as they stand, one space between them, and the comment behind them.
fn squeezed(line: &str) -> (String, String) {
    let (mut words, mut quote, mut gap) = (String::new(), None, false);
    let mut chars = line.trim_end().char_indices();
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (None, '#') => return (words, format!(" # {}", line[at + 1..].trim())),
            (None, c) if c.is_whitespace() => gap = !words.is_empty(),
            _ => {
                words.push_str(if std::mem::take(&mut gap) { " " } else { "" });
                words.push(c);
                quote = match quote {
                    None if c == '"' || c == '\'' => Some(c),
                    Some(open) if open == c => None,
                    quote => quote,
                };
                if c == '\\' && quote != Some('\'') {
                    words.extend(chars.next().map(|(_, escaped)| escaped));
                }
            }
        }
    }
    (words, String::new())
}

fn rank(list: &[&str], word: &str) -> (usize, String) {
    let at = list.iter().position(|known| *known == word).unwrap_or(list.len());
    (at, if at == list.len() { word.to_owned() } else { String::new() })
}

/// One section: a comment goes to the head of its directive's kind, one before a header to the section above.
fn section(text: &ConfigText, section: &Section, end: usize, from: Option<&str>, name: &str) -> String {
    let (_, comment) = squeezed(&text.lines()[section.lines.start]);
    let mut out = [section.kind.as_str(), name].join(" ").trim_end().to_owned();
    out.extend(from.map(|from| format!(" from {from}")));
    out += &format!("{comment}\n");
    let (mut pending, mut groups) = (Vec::new(), BTreeMap::<_, (Vec<String>, Vec<String>)>::new());
    for line in &text.lines()[section.lines.start + 1..end] {
        let (words, comment) = squeezed(line);
        match words.split(' ').next() {
            None | Some("") => pending.extend((!comment.is_empty()).then(|| comment.trim().to_owned())),
            Some(keyword) => {
                let (comments, lines) = groups.entry(rank(DIRECTIVES, keyword)).or_default();
                comments.append(&mut pending);
                lines.push(words + &comment);
            }
        }
    }
    let lines = groups.into_values().flat_map(|(comments, lines)| comments.into_iter().chain(lines));
    for line in lines.chain(pending) {
        out += &format!("  {line}\n");
    }
    out
}

/// Renders a text anew, at the same version.
pub fn anew(text: &ConfigText) -> ConfigText {
    let sections = text.sections();
    let first = sections.first().map_or(text.lines().len(), |section| section.lines.start);
    let top: String = text.lines()[..first]
        .iter()
        .filter(|line| line.starts_with('#') && !line.starts_with("# _") && !MANAGED.contains(line.as_str()))
        .cloned()
        .collect();
    let (mut unnamed, mut above) = (0, None);
    let mut rendered = BTreeMap::new();
    for (at, one) in sections.iter().enumerate() {
        let end = sections.get(at + 1).map_or(text.lines().len(), |next| next.lines.start);
        let mut name = one.name.clone();
        let from = match one.kind.as_str() {
            "defaults" => {
                if name.is_empty() {
                    unnamed += 1;
                    name = format!("unnamed_defaults_{unnamed}");
                }
                above = Some(name.clone());
                one.from.clone()
            }
            "frontend" | "backend" | "listen" => one.from.clone().or(above.clone()),
            _ => None,
        };
        rendered.insert((rank(KINDS, &one.kind), name.clone()), section(text, one, end, from.as_deref(), &name));
    }
    let body: Vec<String> = rendered.into_values().collect();
    let rendered = ConfigText::new(&format!("{MANAGED}{top}\n{}", body.join("\n")));
    stamped(rendered, text.version().unwrap_or(1))
}
