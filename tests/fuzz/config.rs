//! Configuration files: sections of any kind in any order, most of them valid for HAProxy.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::lines::KINDS;

/// One section, as numbers that select from tables: so a failing case shrinks to the first entries.
#[derive(Debug, Clone)]
struct Section {
    kind: usize,
    name: usize,
    from: usize,
    style: usize,
    /// Lines: which, how it is indented, what follows it.
    body: Vec<(usize, usize, usize)>,
    gap: usize,
    wrap: usize,
    /// Whether the name may be there already.
    again: bool,
}

/// How lines are indented; most files have one way throughout.
const INDENTS: &[&str] = &["  ", "    ", "\t", " \t ", ""];
/// What follows a directive.
const TAILS: &[&str] =
    &["", "", "", " ", "\t", " # words", "   #", " # caf\u{e9}", " # {\"comment\":\"x\"}", " #\u{10ffe9}"];
/// What is between sections.
const GAPS: &[&str] =
    &["\n", "", "\n\n\n", "# words\n", "\n# words\n#more\n\n", "   # indented words\n", "#\n", " \t\n", "\n#\n\n"];
/// What a section is wrapped in, and its alternative.
const WRAPS: &[(&str, &str)] = &[
    (".if 1\n", ".endif\n"),
    (".if defined(NEVER)\n", ".endif\n"),
    ("  .if !defined(NEVER) # always\n", "  .else\n# never\n  .endif # end\n"),
    (".if 0\n.else\n", "\n.endif\n"),
];

fn section() -> impl Strategy<Value = Section> {
    let line = (0usize..1000, prop_oneof![9 => Just(0), 1 => 0..INDENTS.len()], 0..TAILS.len());
    let chosen = (0..KINDS.len(), 0usize..1000, prop_oneof![2 => Just(0), 1 => 0usize..9]);
    let looks = (0usize..9, 0..GAPS.len(), prop_oneof![8 => Just(WRAPS.len()), 1 => 0..WRAPS.len()]);
    let again = prop_oneof![15 => Just(false), 1 => Just(true)];
    (chosen, prop::collection::vec(line, 0..7), looks, again).prop_map(
        |((kind, name, from), body, (style, gap, wrap), again)| Section {
            kind,
            name,
            from,
            style,
            body,
            gap,
            wrap,
            again,
        },
    )
}

/// What a file as a whole looks like.
#[derive(Debug, Clone, Copy, Default)]
struct Looks {
    header: usize,
    indent: usize,
    crlf: bool,
    latin1: bool,
    unended: bool,
}

const HEADERS: &[&str] =
    &["", "", "# by hand, do not touch\n", "# _version=7\n", "# _md5hash=abc\n# _version=7\n\n", "\n\n"];

/// A file.
pub fn files() -> impl Strategy<Value = Vec<u8>> {
    let rarely = || prop_oneof![14 => Just(false), 1 => Just(true)];
    let looks = (0..HEADERS.len(), prop_oneof![6 => Just(0), 1 => 0..INDENTS.len()], rarely(), rarely(), rarely());
    let looks =
        looks.prop_map(|(header, indent, crlf, latin1, unended)| Looks { header, indent, crlf, latin1, unended });
    (looks, prop::collection::vec(section(), 0..9)).prop_map(|(looks, sections)| file(looks, &sections))
}

fn file(looks: Looks, sections: &[Section]) -> Vec<u8> {
    let mut writer = Writer { looks, text: HEADERS[looks.header].to_owned(), ..Writer::default() };
    for section in sections {
        writer.section(section);
    }
    let mut text = writer.text;
    if looks.unended {
        text.truncate(text.trim_end_matches('\n').len());
    }
    if looks.crlf {
        text = text.replace('\n', "\r\n");
    }
    if looks.latin1 {
        return text.chars().map(|c| u8::try_from(u32::from(c)).unwrap_or(0xff)).collect();
    }
    text.into_bytes()
}

#[derive(Default)]
struct Writer {
    looks: Looks,
    text: String,
    /// Names of proxies: frontends and backends may share one, listen sections are both.
    taken: BTreeSet<(&'static str, String)>,
    defaults: Vec<String>,
    /// The number of the last numbered line.
    number: usize,
}

impl Writer {
    fn section(&mut self, section: &Section) {
        let (kind, names, lines) = KINDS[section.kind];
        let Some(name) = self.name(kind, names[section.name % names.len()], section.again) else { return };
        let (open, close) = WRAPS.get(section.wrap).copied().unwrap_or_default();
        self.text.push_str(open);
        let from = self.from(kind, section.from);
        let (before, between) = [("", " "), ("", " "), ("  ", "\t"), ("", "   ")][section.style % 4];
        let name_and_from = [name.as_str(), from.as_str()].into_iter().filter(|word| !word.is_empty());
        let words: Vec<&str> = [kind].into_iter().chain(name_and_from).collect();
        self.text.push_str(&format!("{before}{}\n", words.join(between)));
        let mut there = BTreeSet::new();
        for (line, indent, tail) in &section.body {
            // A few of the unique lines may occur twice.
            if !there.insert(line % lines.len()) && !section.again && !lines[line % lines.len()].contains("{i}") {
                continue;
            }
            let indent = INDENTS[if *indent == 0 { self.looks.indent } else { *indent }];
            self.number += 1;
            let line = lines[line % lines.len()].replace("{i}", &(1000 + self.number).to_string());
            let tail = if line.contains('#') { "" } else { TAILS[*tail] };
            self.text.push_str(&format!("{indent}{line}{tail}\n"));
        }
        self.text.push_str(close);
        self.text.push_str(GAPS[section.gap]);
        if kind == "defaults" {
            self.defaults.push(name);
        }
    }

    /// A name that HAProxy accepts here; `None` if the section may occur only once.
    fn name(&mut self, kind: &'static str, name: &str, again: bool) -> Option<String> {
        let classes: &[&'static str] = match kind {
            "backend" => &["backend"],
            "frontend" => &["frontend"],
            "listen" => &["backend", "frontend"],
            _ => &[kind],
        };
        let is_taken = |name: &str| classes.iter().any(|class| self.taken.contains(&(*class, name.to_owned())));
        let mut free = name.to_owned();
        if is_taken(name) && !again && !name.is_empty() {
            free = format!("{name}{}", self.number + 1);
        }
        self.number += 1;
        self.taken.extend(classes.iter().map(|class| (*class, free.clone())));
        Some(free)
    }

    fn from(&self, kind: &str, number: usize) -> String {
        let named: Vec<&String> = self.defaults.iter().filter(|name| !name.is_empty()).collect();
        match (number, kind, named.len()) {
            (0, ..) | (_, _, 0) => String::new(),
            (_, "backend" | "frontend" | "listen" | "defaults", count) => format!("from {}", named[number % count]),
            _ => String::new(),
        }
    }
}
