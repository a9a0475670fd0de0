//! Where a section begins and where it ends.
//!
//! HAProxy compares the first word of every line with the keywords of its sections, whatever the line's indentation. A
//! section that this list lacks (from a later release or an Enterprise one) would be read as more lines of the backend
//! above it, and be deleted with that backend. So in a proxy section a line also begins a section if it is not indented
//! more than the header and its first word is not a keyword of a proxy. That is a guess; [`Section::certain`] says how
//! good it is.

use std::ops::Range;

use super::text::{Directive, is_space};

/// The keywords that open a section: those that HAProxy 2.6 to 3.5-dev5 register for the configuration file
/// (`REGISTER_CONFIG_SECTION` in src/). `program` was removed in 3.3.
const SECTION_KEYWORDS: &[&str] = &[
    "acme",
    "backend",
    "cache",
    "crt-store",
    "defaults",
    "fcgi-app",
    "frontend",
    "global",
    "healthcheck",
    "http-errors",
    "listen",
    "log-forward",
    "log-profile",
    "mailers",
    "namespace_list",
    "peers",
    "program",
    "resolvers",
    "ring",
    "traces",
    "userlist",
];

/// The sections that take [`PROXY_KEYWORDS`].
const PROXIES: &[&str] = &["backend", "defaults", "frontend", "listen"];

/// The first words that a line of a proxy section may have: what `haproxy -dKcfg` prints for `listen`, and
/// `common_kw_list` in src/cfgparse-listen.c, of HAProxy 2.6 to 3.5-dev5. `no` and `default` precede another word.
pub const PROXY_KEYWORDS: &str = "\
    acl appsession backlog balance be-unpublished bind bind-process block capture cliexp clitcpka-cnt \
    clitcpka-idle clitcpka-intvl clitimeout compression contimeout cookie declare default default-server \
    default_backend description disabled dispatch dynamic-cookie-key email-alert enabled error-log-format \
    errorfile errorfiles errorloc errorloc302 errorloc303 external-check filter filter-sequence \
    force-be-switch force-persist fullconn grace guid hash-balance-factor hash-key hash-preserve-affinity \
    hash-type http-after-response http-check http-error http-request http-response http-reuse \
    http-send-name-header id ignore-persist load-server-state-from-file log log-balance log-format \
    log-format-sd log-steps log-tag max-keep-alive-queue max-session-srv-conns maxconn mode monitor \
    monitor-net monitor-uri no option persist quic-initial rate-limit redirect redisp redispatch reqadd \
    reqallow reqdel reqdeny reqiallow reqidel reqideny reqipass reqirep reqitarpit reqpass reqrep reqtarpit \
    retries retry-on rspadd rspdel rspdeny rspidel rspideny rspirep rsprep server server-state-file-name \
    server-template source srvexp srvtcpka-cnt srvtcpka-idle srvtcpka-intvl srvtimeout ssl-f-use stats stick \
    stick-table tcp-check tcp-request tcp-response tcp-resposne timeout transparent unique-id-format \
    unique-id-header use-fcgi-app use-server use_backend usesrc";

/// One section: its kind, its name and its lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// `backend`, `frontend`, `defaults`, …
    pub kind: String,
    /// The name; empty if there is none (`global`, an unnamed `defaults`).
    pub name: String,
    /// The defaults section that it names with `from`.
    pub from: Option<String>,
    /// The lines from the header to the last directive. What follows (blank lines and comments before the next header)
    /// belongs to no section.
    pub lines: Range<usize>,
    /// Whether the header is certainly one: by its keyword, or because the section above it has an indented body.
    /// Otherwise it may be a directive of the section above.
    pub certain: bool,
}

impl Section {
    /// Only `defaults` may lack a name (configuration manual, 4): `backend from` is a backend of that name, and `from`
    /// names a defaults section only after the name.
    fn new(words: &[String], at: usize, certain: bool) -> Self {
        let word = |at: usize| words.get(at).map(String::as_str);
        let kind = word(0).unwrap_or_default();
        let behind = if kind == "defaults" && word(1) == Some("from") { 1 } else { 2 };
        Self {
            kind: kind.to_owned(),
            name: word(1).filter(|_| behind == 2).unwrap_or_default().to_owned(),
            from: word(behind).filter(|word| *word == "from").and_then(|_| word(behind + 1)).map(str::to_owned),
            lines: at..at + 1,
            certain,
        }
    }

    /// Whether we know this kind of section.
    pub fn is_known(&self) -> bool {
        SECTION_KEYWORDS.contains(&self.kind.as_str())
    }
}

/// All sections of these lines, in the order of the file.
pub(super) fn sections(lines: &[String]) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    // The indentation of the last header, and of the least indented directive below it.
    let (mut header, mut body) = (0, None);
    for (at, line) in lines.iter().enumerate() {
        let Some(first) = line.split(is_space).find(|word| !word.is_empty()).filter(|word| !word.starts_with('#'))
        else {
            continue;
        };
        // Nearly every line is recognised by its first word as it stands; only the others are split.
        let may_open = SECTION_KEYWORDS.contains(&first) || first.contains(['"', '\'', '\\', '#']);
        let words = if may_open { Directive::parse(line).words } else { Vec::new() };
        let keyword = words.first().map_or(first, String::as_str);
        let indent = line.len() - line.trim_start_matches(is_space).len();
        let last = sections.last_mut();
        if SECTION_KEYWORDS.contains(&keyword) {
            sections.push(Section::new(&words, at, true));
            (header, body) = (indent, None);
        } else if keyword.starts_with('.') {
            // A conditional directive (`.if`, `.endif`) at a section's end is not part of it: removing the section must
            // not break the block.
        } else if last.as_ref().is_some_and(|last| opens(last, keyword, indent <= header)) {
            let certain = body.is_some_and(|body| body > header);
            sections.push(Section::new(&Directive::parse(line).words, at, certain));
            (header, body) = (indent, None);
        } else if let Some(section) = last {
            section.lines.end = at + 1;
            body = Some(body.map_or(indent, |body: usize| body.min(indent)));
        }
    }
    sections
}

/// Whether a line below this section opens another one, of an unknown kind. `[` begins a scope, which is followed by
/// sections of other names (configuration manual, 9.3).
fn opens(section: &Section, keyword: &str, as_far_left: bool) -> bool {
    let is_proxy = PROXIES.contains(&section.kind.as_str());
    is_proxy && (keyword.starts_with('[') || as_far_left && !PROXY_KEYWORDS.split(' ').any(|word| word == keyword))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(text: &str) -> Vec<(String, Range<usize>, bool)> {
        let lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
        sections(&lines).into_iter().map(|s| (format!("{} {}", s.kind, s.name), s.lines, s.certain)).collect()
    }

    fn section(what: &str, lines: Range<usize>, certain: bool) -> (String, Range<usize>, bool) {
        (what.to_owned(), lines, certain)
    }

    #[test]
    fn a_section_of_an_unknown_kind_ends_the_proxy_above_it() {
        let text = "backend a\n  mode http\nfuture_section foo\n  server b 127.0.0.1:1\n  mode x\n\nbackend c\n";
        let expected = [
            section("backend a", 0..2, true),
            section("future_section foo", 2..5, true),
            section("backend c", 6..7, true),
        ];
        assert_eq!(summary(text), expected);
        // The same with more indentation, as after an indented `.if`.
        let indented = format!("\t{}", text.trim_end().replace('\n', "\n\t"));
        assert_eq!(summary(&indented), expected);
        assert_eq!(summary("backend a\n  mode http\n  [scope]\n").len(), 2);
    }

    #[test]
    fn a_section_may_be_called_from() {
        let header = |line: &str| {
            let section = sections(&[line.to_owned()]).remove(0);
            (section.name, section.from.unwrap_or_default())
        };
        let is = |name: &str, from: &str| (name.to_owned(), from.to_owned());
        assert_eq!(header("backend from"), is("from", ""));
        assert_eq!(header("frontend from from base"), is("from", "base"));
        assert_eq!(header("defaults from base"), is("", "base"));
        assert_eq!(header("defaults from"), is("", ""));
        assert_eq!(header("defaults web from from"), is("web", "from"));
        assert_eq!(header("backend api from"), is("api", ""));
    }

    #[test]
    fn a_directive_is_no_section() {
        let text = "backend a\n  future-directive x\nno option httplog\ndefault option httplog\nserver b 127.0.0.1:1\n";
        assert_eq!(summary(text), [section("backend a", 0..5, true)]);
        // We do not know the keywords of a section that is not a proxy.
        assert_eq!(summary("global\nexpose-new-things\nmaxconn 3\n"), [section("global ", 0..3, true)]);
    }

    #[test]
    fn where_the_body_is_not_indented_a_guess_is_not_certain() {
        let flat = "backend a\nmode http\nfuture x\nserver b 127.0.0.1:1\n";
        assert_eq!(summary(flat), [section("backend a", 0..2, true), section("future x", 2..4, false)]);
    }
}
