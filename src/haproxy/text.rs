//! The configuration file, lossless: every byte that is not edited stays as it was.
//!
//! The file is bytes; here it is text in which [`bytes`] represents what is not UTF-8. [`ConfigText::to_bytes`] is what
//! is written, `Display` is for people.
//!
//! The file is a list of lines, and sections are ranges of lines; nothing is rendered again. A directive is split into
//! words the way HAProxy splits it (configuration manual, 2.2 "Quoting and escaping").

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;

use super::{bytes, maps, section};

pub use super::section::Section;

/// The directives of conditional blocks (configuration manual, 2.4).
const CONDITIONALS: &[&str] = &[".if", ".elif", ".else", ".endif"];

/// One directive: its words, and the comment after them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    /// The words, unquoted.
    pub words: Vec<String>,
    /// What follows `#`, trimmed; `None` where there is no comment.
    pub comment: Option<String>,
}

impl Directive {
    /// Splits one line. An unclosed quote ends with the line, as HAProxy would refuse it anyway.
    pub fn parse(line: &str) -> Self {
        let (mut words, mut word, mut open) = (Vec::new(), String::new(), false);
        let mut chars = line.trim_end_matches(['\n', '\r']).char_indices();
        let mut quote: Option<char> = None;
        let mut comment = None;
        while let Some((at, c)) = chars.next() {
            match (quote, c) {
                (Some('\''), '\'') | (Some('"'), '"') => quote = None,
                (None, '\'' | '"') => (quote, open) = (Some(c), true),
                (None | Some('"'), '\\') => {
                    open = true;
                    word.extend(chars.next().map(|(_, escaped)| escaped));
                }
                (None, '#') => {
                    comment = Some(line[at + 1..].trim().to_owned());
                    break;
                }
                (None, c) if is_space(c) => {
                    if open {
                        words.push(std::mem::take(&mut word));
                        open = false;
                    }
                }
                (_, c) => {
                    word.push(c);
                    open = true;
                }
            }
        }
        if open {
            words.push(word);
        }
        Self { words, comment }
    }

    /// The keyword, or an empty string for a blank or comment line.
    pub fn keyword(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }
}

/// Tracks the conditional blocks of a section, directive by directive. A block may begin above the section, or end
/// below it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Blocks {
    depth: usize,
    /// Whether the block that the section begins in has ended, or has reached its `.else` branch.
    left: bool,
}

impl Blocks {
    /// Processes a directive.
    pub fn pass(&mut self, keyword: &str) {
        match keyword {
            ".if" => self.depth += 1,
            ".endif" if self.depth > 0 => self.depth -= 1,
            ".elif" | ".else" | ".endif" => self.left |= self.depth == 0,
            _ => {}
        }
    }

    /// Whether what follows is under another condition than the section's header.
    pub fn is_inside(&self) -> bool {
        self.depth > 0 || self.left
    }
}

/// A configuration text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigText {
    lines: Vec<String>,
}

/// For people, in diffs and logs: a byte that is not UTF-8 is shown as `\xE9`. What is written is
/// [`ConfigText::to_bytes`].
impl fmt::Display for ConfigText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| f.write_str(&bytes::shown(line)))
    }
}

impl ConfigText {
    /// Splits a text into lines, as [`ConfigText::from_bytes`] does.
    pub fn new(text: &str) -> Self {
        Self::from_bytes(text.as_bytes())
    }

    /// Splits a file into lines. It accepts any file: HAProxy decides whether it is valid.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self { lines: bytes::decode(bytes).split_inclusive('\n').map(str::to_owned).collect() }
    }

    /// The file; lines that were not edited are the same, byte by byte, as those given to [`ConfigText::from_bytes`].
    pub fn to_bytes(&self) -> Vec<u8> {
        bytes::encode(&self.lines.concat()).into_owned()
    }

    /// The first line (from 0) that has a byte in a word, outside of comments, which is not UTF-8.
    ///
    /// The Data Plane API replaces such bytes with U+FFFD when it renders the file (seen on 3.0, 3.2 and 3.4); it keeps
    /// those in comments.
    pub fn not_utf8(&self) -> Option<usize> {
        let is_utf8 =
            |line: &String| bytes::is_utf8(line) || Directive::parse(line).words.iter().all(|w| bytes::is_utf8(w));
        self.lines.iter().position(|line| !is_utf8(line))
    }

    /// The lines, each with its end; see [`bytes`] for bytes that are not UTF-8.
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    /// A number that another text does not have, as good as surely.
    pub fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.lines.hash(&mut hasher);
        hasher.finish()
    }

    /// The directives of a section with their line numbers, header first, blank and comment lines left out.
    pub fn directives(&self, section: &Section) -> impl Iterator<Item = (usize, Directive)> + '_ {
        section.lines.clone().filter_map(|at| {
            let directive = Directive::parse(&self.lines[at]);
            (!directive.words.is_empty()).then_some((at, directive))
        })
    }

    /// All sections, in the order of the file.
    pub fn sections(&self) -> Vec<Section> {
        section::sections(&self.lines)
    }

    /// Whether a section inherits from one of several `defaults` sections by its position, as it names none.
    pub fn inherits_by_position(&self) -> bool {
        let sections = self.sections();
        let several = sections.iter().filter(|section| section.kind == "defaults").count() > 1;
        let proxies = ["frontend", "backend", "listen"];
        several && sections.iter().any(|section| proxies.contains(&section.kind.as_str()) && section.from.is_none())
    }

    /// The version that the Data Plane API and the local plane keep in the header (`# _version=3`).
    pub fn version(&self) -> Option<u64> {
        self.header_line("# _version=").and_then(|at| self.lines[at]["# _version=".len()..].trim().parse().ok())
    }

    /// Sets the version: the header line is changed, or added at the top. The API's hash line, which would no longer be
    /// true, is removed.
    #[must_use]
    pub fn with_version(mut self, version: u64) -> Self {
        if let Some(at) = self.header_line("# _md5hash=") {
            self.lines.remove(at);
        }
        let line = format!("# _version={version}\n");
        match self.header_line("# _version=") {
            Some(at) => self.lines[at] = line,
            None => self.lines.insert(0, line),
        }
        self
    }

    /// Removes the version.
    #[must_use]
    pub fn without_version(mut self) -> Self {
        if let Some(at) = self.header_line("# _version=") {
            self.lines.remove(at);
        }
        self
    }

    /// With an empty file instead of each map of ours, so that it can be validated before they are written.
    #[must_use]
    pub fn without_maps(&self) -> Self {
        Self { lines: self.lines.iter().map(|line| maps::without_files(line)).collect() }
    }

    /// Whether the Data Plane API has written it: with the first write of 3.0, 3.2 and 3.4 it adds this comment.
    pub fn is_the_apis(&self) -> bool {
        self.header_line("# Dataplaneapi managed File").is_some()
    }

    /// The lines (from 0) of the header that the Data Plane API and the local plane keep: version and hash.
    pub fn api_header(&self) -> impl Iterator<Item = usize> + '_ {
        ["# _version=", "# _md5hash="].into_iter().filter_map(|prefix| self.header_line(prefix))
    }

    fn header_line(&self, prefix: &str) -> Option<usize> {
        let header = self.lines.iter().take_while(|line| line.starts_with('#') || is_blank(line));
        header.zip(0..).find(|(line, _)| line.starts_with(prefix)).map(|(_, at)| at)
    }

    /// The first line (from 0) of a conditional block, which the Data Plane API breaks when it renders the file (seen
    /// on 3.0, 3.2 and 3.4).
    pub fn conditional(&self) -> Option<usize> {
        let may_be = |line: &str| line.trim_start_matches(is_space).starts_with(['.', '"', '\'', '\\']);
        self.lines.iter().position(|line| may_be(line) && CONDITIONALS.contains(&Directive::parse(line).keyword()))
    }

    /// Whether HAProxy starts with states of servers from a file (`load-server-state-from-file`).
    pub fn loads_server_states(&self) -> bool {
        self.lines.iter().filter(|line| line.contains("load-server-state-from-file")).any(|line| {
            let directive = Directive::parse(line);
            let source = directive.words.get(1).map(String::as_str);
            directive.keyword() == "load-server-state-from-file" && source != Some("none")
        })
    }

    /// The section that a line (from 0) is in, for HAProxy's messages that name a line.
    pub fn section_at(&self, line: usize) -> Option<Section> {
        self.sections().into_iter().find(|section| section.lines.contains(&line))
    }

    /// Replaces a range of lines.
    pub fn splice(&mut self, range: Range<usize>, lines: impl IntoIterator<Item = String>) {
        self.lines.splice(range, lines);
    }

    /// Removes a section, with the blank line that separates it from what comes before.
    ///
    /// The lines of [conditional blocks](ConfigText::conditional) stay, like any that begins with a dot. A block may
    /// begin inside the section and end after it; without all of its lines HAProxy refuses the file.
    pub fn remove_section(&mut self, section: &Section) {
        let Range { mut start, end } = section.lines;
        if start > 0 && is_blank(&self.lines[start - 1]) {
            start -= 1;
        }
        self.remove_but_blocks(start..end);
    }

    fn remove_but_blocks(&mut self, range: Range<usize>) {
        let mut dotted = self.lines[range.clone()].to_vec();
        dotted.retain(|line| Directive::parse(line).keyword().starts_with('.'));
        self.lines.splice(range, dotted);
    }

    /// The same with a section that was inserted with a blank line behind it.
    pub fn remove_profile(&mut self, section: &Section) {
        let Range { start, mut end } = section.lines;
        if self.lines.get(end).is_some_and(|line| is_blank(line)) {
            end += 1;
        }
        self.remove_but_blocks(start..end);
    }

    /// Adds lines after the last one, separated by a blank line.
    pub fn append(&mut self, lines: impl IntoIterator<Item = String>) {
        if let Some(last) = self.lines.last_mut()
            && !last.ends_with('\n')
        {
            last.push('\n');
        }
        self.lines.push("\n".to_owned());
        self.lines.extend(lines);
    }
}

/// What separates words, as `isspace` in C: with the vertical tab, without Unicode's other spaces.
pub(super) fn is_space(c: char) -> bool {
    c.is_ascii_whitespace() || c == '\u{b}'
}

fn is_blank(line: &str) -> bool {
    line.chars().all(is_space)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SAMPLE: &str = "\
# _version=7
# by hand
global
  stats socket /run/h.sock level admin

defaults base
  mode http

# the shop
frontend web from base
  bind :80   # edge
  default_backend 'my shop'

backend api # {\"owner\":\"nomad\"}
  server a 127.0.0.1:1 # {\"a\":\"#\"}

# trailing
.if defined(X)
backend extra
  server b 127.0.0.1:2
.endif
";

    #[test]
    fn words_are_split_as_haproxy_splits_them() {
        let words = |line| Directive::parse(line).words;
        assert_eq!(words("  a 'b c' \"d\\\"e\" f\\ g # rest"), ["a", "b c", "d\"e", "f g"]);
        assert_eq!(words("http-request set-header X ''"), ["http-request", "set-header", "X", ""]);
        assert_eq!(words("acl x path_reg '#no comment'"), ["acl", "x", "path_reg", "#no comment"]);
        assert_eq!(Directive::parse("server a b # {\"k\": \"v\"}").comment.as_deref(), Some("{\"k\": \"v\"}"));
        assert_eq!(Directive::parse("# only").keyword(), "");
    }

    #[test]
    fn a_vertical_tab_is_a_space_and_a_no_break_space_is_none() {
        let text = ConfigText::new("\u{b}backend\u{b}a\n\u{b}\n\u{a0}\nbackend b\n");
        let sections = text.sections();
        assert_eq!(sections.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["a", "", "b"]);
        let mut without = text.clone();
        without.remove_section(&sections[2]);
        assert_eq!(without.to_string(), "\u{b}backend\u{b}a\n\u{b}\n\u{a0}\n");
    }

    #[test]
    fn sections_end_at_their_last_directive() {
        let text = ConfigText::new(SAMPLE);
        let sections = text.sections();
        let summary: Vec<_> = sections.iter().map(|s| (s.kind.as_str(), s.name.as_str(), s.lines.clone())).collect();
        assert_eq!(
            summary,
            [
                ("global", "", 2..4),
                ("defaults", "base", 5..7),
                ("frontend", "web", 9..12),
                ("backend", "api", 13..15),
                ("backend", "extra", 18..20),
            ]
        );
        assert_eq!(sections[2].from.as_deref(), Some("base"));
        assert_eq!(text.conditional(), Some(17));
        assert_eq!(ConfigText::new("global\n# .if\n  .endif\n").conditional(), Some(2));
    }

    #[test]
    fn an_unnamed_defaults_section_may_inherit() {
        let sections = ConfigText::new("defaults from base\n  mode http\n").sections();
        assert_eq!((sections[0].name.as_str(), sections[0].from.as_deref()), ("", Some("base")));
    }

    #[test]
    fn the_version_is_read_set_and_added() {
        assert_eq!(ConfigText::new(SAMPLE).version(), Some(7));
        assert_eq!(ConfigText::new(SAMPLE).with_version(8).to_string(), SAMPLE.replace("=7", "=8"));
        assert_eq!(ConfigText::new("global\n").with_version(1).to_string(), "# _version=1\nglobal\n");
        let hashed = ConfigText::new("# _md5hash=abc\n# _version=4\nglobal\n");
        assert_eq!(hashed.with_version(5).to_string(), "# _version=5\nglobal\n");
        // Only the header counts: a comment further down is a person's.
        assert_eq!(ConfigText::new("global\n# _version=9\n").version(), None);
    }

    #[test]
    fn appending_and_removing_changes_nothing_else() {
        let mut text = ConfigText::new(SAMPLE);
        text.append(["backend new\n".to_owned(), "  mode http\n".to_owned()]);
        let added = text.sections().pop().expect("the new section");
        assert_eq!(added.name, "new");
        text.remove_section(&added);
        assert_eq!(text.to_string(), SAMPLE);
    }

    #[test]
    fn a_conditional_block_that_begins_in_a_section_stays_whole() {
        let mut text = ConfigText::new("global\n\nbackend a\n  mode http\n.if true # x\n  balance first\n.endif\n");
        let backend = text.sections().pop().expect("the backend");
        text.remove_section(&backend);
        assert_eq!(text.to_string(), "global\n.if true # x\n.endif\n");
    }

    #[test]
    fn blocks_that_begin_above_a_section_or_end_below_it_are_followed() {
        let inside = |keywords: &[&str]| {
            let mut blocks = Blocks::default();
            for keyword in keywords {
                blocks.pass(keyword);
            }
            blocks.is_inside()
        };
        assert!(!inside(&["mode", ".notice"]) && !inside(&[".if", ".if", ".else", ".endif", ".endif"]));
        assert!(inside(&[".if"]) && inside(&[".else"]) && inside(&[".endif"]) && inside(&[".endif", ".if", ".endif"]));
    }

    #[test]
    fn a_byte_that_is_not_utf_8_is_shown_kept_and_found_where_it_is_a_word() {
        let bytes = b"# caf\xe9\nglobal # \xe9\nfrontend \xc3\xa9\n  acl a hdr(x) \"caf\xe9\" # x\n";
        let text = ConfigText::from_bytes(bytes);
        assert_eq!(text.to_bytes(), bytes);
        assert_eq!(text.to_string(), "# caf\\xE9\nglobal # \\xE9\nfrontend é\n  acl a hdr(x) \"caf\\xE9\" # x\n");
        assert_eq!(text.not_utf8(), Some(3));
        assert_eq!(ConfigText::new("# \u{10ffe9}\nglobal \u{10ffe9}\n").not_utf8(), None);
    }

    proptest! {
        #[test]
        fn any_bytes_round_trip(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            prop_assert_eq!(ConfigText::from_bytes(&bytes).to_bytes(), bytes);
        }

        #[test]
        fn any_text_round_trips(text in "(?s).{0,400}") {
            prop_assert_eq!(ConfigText::new(&text).to_string(), text.clone());
            let _ = ConfigText::new(&text).sections();
        }

        #[test]
        fn sections_never_overlap(lines in prop::collection::vec("(backend|frontend|  server|#|\\.if|) ?[a-z]{0,3}", 0..40)) {
            let text = ConfigText::new(&lines.join("\n"));
            let sections = text.sections();
            for pair in sections.windows(2) {
                prop_assert!(pair[0].lines.end <= pair[1].lines.start);
            }
        }
    }
}
