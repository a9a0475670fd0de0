//! The configuration file, lossless: every byte that is not edited comes out as it went in.
//!
//! The file is a list of lines and sections are ranges over them; nothing is rendered anew. A directive
//! is split into words the way HAProxy splits it (configuration manual, 2.2 "Quoting and escaping").

use std::fmt;
use std::ops::Range;

/// The keywords that open a section (configuration manual 3.4, chapters 3, 4, 12 and after).
const SECTION_KEYWORDS: &[&str] = &[
    "global",
    "defaults",
    "frontend",
    "backend",
    "listen",
    "peers",
    "resolvers",
    "userlist",
    "mailers",
    "cache",
    "program",
    "ring",
    "log-forward",
    "log-profile",
    "http-errors",
    "fcgi-app",
    "crt-store",
    "traces",
    "acme",
    "healthcheck",
    "lua",
];

/// One directive: its words, and the comment behind them.
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
                (None, c) if c.is_ascii_whitespace() => {
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

/// One section: its kind, its name and the lines that it spans.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// `backend`, `frontend`, `defaults`, …
    pub kind: String,
    /// The name; empty where there is none (`global`, an unnamed `defaults`).
    pub name: String,
    /// The defaults section that it names by `from`.
    pub from: Option<String>,
    /// The lines from the header to the last directive. What follows (blank lines and comments before
    /// the next header) belongs to nobody.
    pub lines: Range<usize>,
}

/// A configuration text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigText {
    lines: Vec<String>,
}

impl fmt::Display for ConfigText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| f.write_str(line))
    }
}

impl ConfigText {
    /// Takes a text apart. Every text is taken: what HAProxy makes of it is for HAProxy to say.
    pub fn new(text: &str) -> Self {
        Self { lines: text.split_inclusive('\n').map(str::to_owned).collect() }
    }

    /// The lines, each with its end.
    pub fn lines(&self) -> &[String] {
        &self.lines
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
        let mut sections: Vec<Section> = Vec::new();
        for (at, line) in self.lines.iter().enumerate() {
            let Some(first) = line.split_ascii_whitespace().next().filter(|word| !word.starts_with('#')) else {
                continue;
            };
            // Nearly every line is told by its first word, as it stands; only the others are split.
            let may_open = SECTION_KEYWORDS.contains(&first) || first.contains(['"', '\'', '\\', '#']);
            let words = if may_open { Directive::parse(line).words } else { Vec::new() };
            let keyword = words.first().map_or(first, String::as_str);
            if SECTION_KEYWORDS.contains(&keyword) {
                sections.push(Section {
                    kind: keyword.to_owned(),
                    name: words.get(1).filter(|word| *word != "from").cloned().unwrap_or_default(),
                    from: words.iter().position(|word| word == "from").and_then(|at| words.get(at + 1)).cloned(),
                    lines: at..at + 1,
                });
            } else if !keyword.starts_with('.') {
                // A conditional directive (`.if`, `.endif`) at a section's end is not part of it: taking
                // the section away must not tear the block apart.
                if let Some(section) = sections.last_mut() {
                    section.lines.end = at + 1;
                }
            }
        }
        sections
    }

    /// The version that the Data Plane API and the local plane keep in the header (`# _version=3`).
    pub fn version(&self) -> Option<u64> {
        self.header_line("# _version=").and_then(|at| self.lines[at]["# _version=".len()..].trim().parse().ok())
    }

    /// The text with its version set: the header line is changed, or added on top. The API's hash line,
    /// which would no longer be true, goes.
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

    fn header_line(&self, prefix: &str) -> Option<usize> {
        let header = self.lines.iter().take_while(|line| line.starts_with('#') || line.trim().is_empty());
        header.zip(0..).find(|(line, _)| line.starts_with(prefix)).map(|(_, at)| at)
    }

    /// Whether the file has conditional blocks (`.if`), which the Data Plane API tears apart when it
    /// renders the file (seen on 3.0, 3.2 and 3.4).
    pub fn is_conditional(&self) -> bool {
        self.lines.iter().any(|line| Directive::parse(line).keyword() == ".if")
    }

    /// The section that a line (from 0) is in, for HAProxy's messages that name a line.
    pub fn section_at(&self, line: usize) -> Option<Section> {
        self.sections().into_iter().find(|section| section.lines.contains(&line))
    }

    /// Replaces a range of lines.
    pub fn splice(&mut self, range: Range<usize>, lines: impl IntoIterator<Item = String>) {
        self.lines.splice(range, lines);
    }

    /// Takes a section away, with the blank line that set it off from what comes before.
    pub fn remove_section(&mut self, section: &Section) {
        let Range { mut start, end } = section.lines;
        if start > 0 && self.lines[start - 1].trim().is_empty() {
            start -= 1;
        }
        self.lines.drain(start..end);
    }

    /// Adds lines behind the last one, set off by a blank line.
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
        assert!(text.is_conditional());
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
        // Only the header counts: a comment further down is somebody's words.
        assert_eq!(ConfigText::new("global\n# _version=9\n").version(), None);
    }

    #[test]
    fn what_is_appended_and_removed_leaves_the_rest_as_it_was() {
        let mut text = ConfigText::new(SAMPLE);
        text.append(["backend new\n".to_owned(), "  mode http\n".to_owned()]);
        let added = text.sections().pop().expect("the new section");
        assert_eq!(added.name, "new");
        text.remove_section(&added);
        assert_eq!(text.to_string(), SAMPLE);
    }

    proptest! {
        #[test]
        fn any_text_comes_out_as_it_went_in(text in "(?s).{0,400}") {
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
