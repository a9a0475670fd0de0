//! Map files of ours, and the rules of a frontend that read them.
//!
//! A file is recognised by its name, a rule by the file that it names. The names consist of the characters that the Data
//! Plane API leaves as they are (`SanitizeFilename` in its client-native): letters, digits, `_` and `-`.

use std::fmt::Write as _;

use crate::desired::{Entry, FrontendName, HostPattern, MapKind, Mode, Owner};

/// What the name of each of our files starts with.
const PREFIX: &str = "nomad-haproxy__";
/// The variable that holds the path of a request: `concat` appends a variable only.
const PATH: &str = "txn.nomad_haproxy_path";

/// One map file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MapFile {
    /// Whose requests it is about.
    pub frontend: FrontendName,
    /// What is in it.
    pub kind: MapKind,
}

impl MapFile {
    /// Its name, in the folder of maps.
    pub fn file_name(&self, owner: &Owner) -> String {
        let (owner, frontend) = (encode(owner.name()), encode(self.frontend.as_str()));
        format!("{PREFIX}{owner}__{frontend}__{}.map", self.kind.as_str())
    }

    /// The file of this name, if it is ours, or of the owner that is taken over.
    pub fn from_file_name(name: &str, owner: &Owner) -> Option<Self> {
        let mut words = name.strip_prefix(PREFIX)?.strip_suffix(".map")?.split("__");
        let (of, frontend, kind) = (decode(words.next()?)?, decode(words.next()?)?, words.next()?);
        let kind = MapKind::ALL.into_iter().find(|known| known.as_str() == kind)?;
        let is_ours = owner.has(&of) && words.next().is_none();
        is_ours.then_some(Self { frontend: frontend.parse().ok()?, kind })
    }
}

/// Characters beside letters, digits and `-` as `_XX`, so that `__` can separate.
fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut word, byte| {
        if byte.is_ascii_alphanumeric() || byte == b'-' {
            word.push(byte.into());
        } else {
            let _ = write!(word, "_{byte:02X}");
        }
        word
    })
}

fn decode(word: &str) -> Option<String> {
    let mut parts = word.split('_');
    let mut text = parts.next()?.as_bytes().to_vec();
    for part in parts {
        text.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        text.extend(part.get(2..)?.bytes());
    }
    String::from_utf8(text).ok()
}

/// The content of a map file.
pub fn to_text(entries: &[Entry], frontend: &FrontendName) -> String {
    let head =
        format!("# Routes of the frontend {frontend}. nomad-haproxy writes this file: changes by hand are lost.\n");
    head + &to_lines(entries)
}

/// A line for each entry, as a map file and `add map` have them.
pub fn to_lines(entries: &[Entry]) -> String {
    entries.iter().fold(String::new(), |mut text, (key, value)| {
        let _ = writeln!(text, "{key} {value}");
        text
    })
}

/// The lines of a map file as HAProxy reads them (configuration manual, 7.3.1, `map`): a key, and the rest as its value.
pub fn from_text(text: &str) -> Vec<Entry> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(entry).collect()
}

/// The answer to `show map FILE` (management guide, 9.3): each line starts with the reference of its entry.
pub fn from_process(answer: &str) -> Vec<Entry> {
    let lines = answer.lines().filter_map(|line| line.split_once(' ').map(|(_, rest)| rest.trim()));
    lines.filter(|line| !line.is_empty()).map(entry).collect()
}

fn entry(line: &str) -> Entry {
    let (key, value) = line.split_once([' ', '\t']).unwrap_or((line, ""));
    (key.to_owned(), value.trim().to_owned())
}

/// The owner of the map file that a rule names, if that is one of ours, of any owner.
pub fn owner_of(words: &[String]) -> Option<String> {
    words.iter().find_map(|word| {
        let (_, name) = word.split_once(PREFIX)?;
        decode(name.split_once("__")?.0)
    })
}

/// The folder of the map file that a rule of ours names.
pub fn folder_of(words: &[String]) -> Option<String> {
    words.iter().find_map(|word| {
        let (before, _) = word.split_once(PREFIX)?;
        let (_, folder) = before.rsplit_once('(')?;
        Some(folder.trim_end_matches('/').to_owned())
    })
}

/// The kind of the map that a rule of ours asks first.
pub fn kind_of(words: &[String], owner: &Owner) -> Option<MapKind> {
    let names = words.iter().flat_map(|word| word.split(['(', ')', '/']));
    let mut kinds = names.filter_map(|name| MapFile::from_file_name(name, owner)).map(|file| file.kind);
    kinds.next()
}

/// A rule of the frontend, without indentation. `folder` is where HAProxy finds the maps.
///
/// The condition repeats the lookup: a dynamic name that resolves to nothing would end the evaluation at the default
/// backend. The path of a request is put into a variable by the condition, which is evaluated before the name.
pub fn rule(kind: MapKind, frontend: &FrontendName, mode: Mode, folder: &str, owner: &Owner) -> String {
    let file = |kind| {
        let name = MapFile { frontend: frontend.clone(), kind }.file_name(owner);
        format!("{}/{name}", folder.trim_end_matches('/'))
    };
    let (host, end, before) = match mode {
        Mode::Http => (
            "req.hdr(host),host_only,lower",
            format!("concat(,{PATH},/)"),
            format!("{{ path,set-var({PATH}) -m found }} "),
        ),
        Mode::Tcp => ("req.ssl_sni,lower", "concat(/)".to_owned(), String::new()),
    };
    let first = match kind {
        MapKind::Routes => String::new(),
        MapKind::Suffix => format!("map_end({}),", file(kind)),
        MapKind::Prefix => format!("map_beg({}),", file(kind)),
        MapKind::Regex => format!("map_reg({}),", file(kind)),
    };
    let lookup = format!("{host},{first}{end},map_beg({})", file(MapKind::Routes));
    format!("use_backend %[{lookup}] if {before}{{ {lookup} -m found }}")
}

/// The rule for connections of a frontend in TCP mode that no other rule matches.
pub fn rule_for_any(frontend: &FrontendName, folder: &str, owner: &Owner) -> String {
    let name = MapFile { frontend: frontend.clone(), kind: MapKind::Routes }.file_name(owner);
    let lookup = format!("str({}/),map_beg({}/{name})", HostPattern::ANY, folder.trim_end_matches('/'));
    format!("use_backend %[{lookup}] if {{ {lookup} -m found }}")
}

/// The text with an empty file instead of each map file of ours, so that it can be validated before they exist.
pub fn without_files(line: &str) -> String {
    let mut rest = line;
    let mut text = String::new();
    while let Some(at) = rest.find(PREFIX) {
        let (before, name) = rest.split_at(at);
        let folder = before.rfind(['(', ' ']).map_or(0, |at| at + 1);
        let end = name.find(".map").map_or(name.len(), |at| at + 4);
        text.push_str(&before[..folder]);
        text.push_str("/dev/null");
        rest = &name[end..];
    }
    text + rest
}

/// Whether HAProxy reads a folder in the argument of `map()` as it is.
pub fn is_plain_folder(folder: &str) -> bool {
    folder.starts_with('/') && folder.bytes().all(|b| b.is_ascii_alphanumeric() || b"/-_.+@".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::haproxy::text::Directive;

    fn owner(name: &str) -> Owner {
        name.parse().expect("an owner")
    }

    #[test]
    fn a_file_of_ours_is_known_by_its_name() {
        for (of, frontend) in [("nomad", "web"), ("a_b", "my_front"), ("a.b", "x:80"), ("a__", "_web__")] {
            for kind in MapKind::ALL {
                let file = MapFile { frontend: frontend.parse().expect("a name"), kind };
                let name = file.file_name(&owner(of));
                assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b)), "{name}");
                assert_eq!(name.matches('.').count(), 1, "{name}");
                assert_eq!(MapFile::from_file_name(&name, &owner(of)), Some(file));
                assert_eq!(MapFile::from_file_name(&name, &owner("other")), None);
            }
        }
        for other in ["hosts.map", "nomad-haproxy__nomad__web__x.map", "nomad-haproxy__nomad__web.map", ""] {
            assert_eq!(MapFile::from_file_name(other, &owner("nomad")), None, "{other}");
        }
    }

    #[test]
    fn a_rule_of_ours_is_known_by_the_file_that_it_names() {
        let frontend: FrontendName = "web".parse().expect("a name");
        for kind in MapKind::ALL {
            for mode in [Mode::Http, Mode::Tcp] {
                let words = Directive::parse(&rule(kind, &frontend, mode, "/etc/maps/", &owner("a.b"))).words;
                assert_eq!(owner_of(&words).as_deref(), Some("a.b"));
                assert_eq!(folder_of(&words).as_deref(), Some("/etc/maps"));
                assert_eq!(kind_of(&words, &owner("a.b")), Some(kind));
            }
        }
        let words = Directive::parse("use_backend %[req.hdr(host),map(/etc/hosts.map)]").words;
        assert_eq!((owner_of(&words), folder_of(&words)), (None, None));
    }

    #[test]
    fn a_rule_is_validated_without_its_files() {
        let frontend: FrontendName = "web".parse().expect("a name");
        let line = rule(MapKind::Suffix, &frontend, Mode::Tcp, "/etc/haproxy", &owner("nomad"));
        let lookup = "req.ssl_sni,lower,map_end(/dev/null),concat(/),map_beg(/dev/null)";
        assert_eq!(without_files(&line), format!("use_backend %[{lookup}] if {{ {lookup} -m found }}"));
        assert_eq!(without_files("  bind :80 # x\n"), "  bind :80 # x\n");
    }

    #[test]
    fn a_map_is_read_as_haproxy_reads_it() {
        let frontend = "web".parse().expect("a name");
        let entry = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let entries = [entry("a.com/", "shop"), entry("~%5Ea", "x")];
        assert_eq!(from_text(&to_text(&entries, &frontend)), entries);
        assert_eq!(from_text("  # x\n\n  a   b c  \nd\n"), [entry("a", "b c"), entry("d", "")]);
        assert_eq!(from_process("0x55d1 a.com/ shop\n0x55d2 ~%5Ea x\n\n"), entries);
    }
}
