//! A configuration as the Data Plane API keeps it in its memory, and the file that it renders from it.
//!
//! Every rule here was seen on the real API, 3.0, 3.2 and 3.4: in the recordings, and with files of most of HAProxy's
//! directives in mixed order.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::{Arc, LazyLock};

/// The section keywords that a series knows, in the order in which it writes the sections.
fn kinds(series: &str) -> impl Iterator<Item = &'static str> {
    let all = match series {
        "3.0" => {
            "global defaults userlist peers mailers resolvers cache ring log-forward http-errors crt-store frontend \
             backend listen program fcgi-app"
        }
        "3.2" => {
            "global defaults userlist peers mailers resolvers cache ring traces log-forward log-profile http-errors \
             acme crt-store frontend backend listen program fcgi-app"
        }
        _ => {
            "global defaults userlist peers mailers resolvers cache ring traces log-forward log-profile http-errors \
             healthcheck acme crt-store fcgi-app frontend backend listen"
        }
    };
    all.split(' ')
}

/// The directives of a section in the order in which they are written. Those that are not listed come after them, in
/// the order of the file: for example all of `listen`.
fn directives(kind: &str) -> &'static str {
    match kind {
        "global" => {
            "presetenv, setenv, daemon, default-path, localpeer, chroot, uid, user, gid, group, ca-base, crt-base, \
             master-worker, external-check, nbthread, cpu-map, maxconn, maxconnrate, pidfile, stats socket, \
             stats timeout, tune.bufsize, tune.maxaccept, tune.maxrewrite, tune.ssl.default-dh-param, \
             ssl-default-bind-options, ssl-default-bind-ciphers, ssl-default-bind-ciphersuites, \
             ssl-default-server-options, ssl-default-server-ciphers, ssl-server-verify, hard-stop-after, log, \
             log-send-hostname, lua-load, server-state-file, server-state-base, h1-case-adjust, noepoll, nosplice, \
             spread-checks, description, expose-experimental-directives, grace, insecure-fork-wanted, node, ulimit-n, \
             set-dumpable, strict-limits, unix-bind, thread-groups, stats maxconn, zero-warning, setcap, log-tag"
        }
        "defaults" => {
            "enabled, disabled, mode, monitor-uri, hash-type, balance, maxconn, backlog, acl, log, option httplog, \
             email-alert, stats, log-tag, log-format, cookie, dynamic-cookie-key, bind-process, option tcplog, \
             option httpclose, option redispatch, option dontlognull, option log-separate-errors, \
             option http-buffer-request, option http-server-close, option http-keep-alive, option http-no-delay, \
             option tcpka, option clitcpka, option srvtcpka, option contstats, option ssl-hello-chk, option smtpchk, \
             option ldap-check, option mysql-check, option abortonclose, option pgsql-check, option redis-check, \
             option splice-auto, option logasap, option log-health-checks, option allbackups, option external-check, \
             option forwardfor, option tcp-check, option checkcache, option http-use-proxy-header, \
             option independent-streams, option nolinger, option originalto, option persist, \
             option prefer-last-server, option socket-stats, option tcp-smart-accept, option dontlog-normal, \
             tcp-check, option httpchk, http-check, external-check path, external-check command, http-reuse, \
             timeout http-request, timeout check, timeout connect, timeout client, timeout client-fin, \
             timeout queue, timeout server, timeout server-fin, timeout tunnel, timeout http-keep-alive, \
             timeout tarpit, retries, clitcpka-cnt, clitcpka-idle, srvtcpka-idle, server-state-file-name, \
             compression, default-server, load-server-state-from-file, errorfile, errorfiles, errorloc302, \
             default_backend, unique-id-format, unique-id-header, fullconn, http-send-name-header, \
             max-keep-alive-queue, retry-on, http-error, source, persist, hash-balance-factor, http-request, \
             tcp-request, http-response, http-after-response"
        }
        "frontend" => {
            "id, description, enabled, disabled, mode, maxconn, backlog, bind, acl, monitor-uri, monitor fail, \
             bind-process, log-tag, log-format, log, email-alert, option httpclose, option http-buffer-request, \
             option http-server-close, option http-keep-alive, option http-no-delay, option forwardfor, \
             option tcplog, option dontlognull, option contstats, option log-separate-errors, option tcpka, \
             option clitcpka, option splice-auto, option logasap, option http-use-proxy-header, \
             option independent-streams, option nolinger, option originalto, option socket-stats, \
             option tcp-smart-accept, option dontlog-normal, option httplog, timeout http-request, timeout client, \
             timeout client-fin, timeout http-keep-alive, timeout tarpit, clitcpka-cnt, clitcpka-idle, filter, \
             compression, tcp-request, stats, http-request, redirect, unique-id-format, unique-id-header, errorfile, \
             errorfiles, errorloc302, use_backend, default_backend, stick-table, tcp-response, http-response, \
             http-after-response, http-error, declare capture, guid"
        }
        "backend" => {
            "id, description, enabled, disabled, mode, hash-type, balance, acl, force-persist, ignore-persist, \
             bind-process, option httpclose, option http-buffer-request, option http-server-close, \
             option http-keep-alive, option http-no-delay, option forwardfor, option ssl-hello-chk, option smtpchk, \
             option ldap-check, option mysql-check, option abortonclose, option pgsql-check, option redis-check, \
             option redispatch, option external-check, option splice-auto, option log-health-checks, log-tag, \
             option tcpka, option srvtcpka, option allbackups, option tcp-check, option checkcache, \
             option independent-streams, option nolinger, option originalto, option persist, \
             option prefer-last-server, tcp-check, option httpchk, http-check, external-check path, \
             external-check command, log, email-alert, timeout http-request, timeout queue, \
             timeout http-keep-alive, timeout check, timeout tunnel, timeout server, timeout server-fin, \
             timeout connect, timeout tarpit, srvtcpka-idle, default-server, stick, filter, compression, \
             tcp-request, stats, http-reuse, http-request, redirect, cookie, dynamic-cookie-key, use-server, \
             stick-table, errorfile, errorfiles, errorloc302, server, retries, tcp-response, http-response, \
             http-after-response, http-error, server-template, load-server-state-from-file, use-fcgi-app, \
             server-state-file-name, fullconn, max-keep-alive-queue, retry-on, http-send-name-header, source, \
             persist, hash-balance-factor"
        }
        "userlist" => "group, user",
        "peers" => "peer, default-bind, default-server, log, bind, shards",
        "mailers" => "timeout mail, mailer, log",
        "resolvers" => {
            "nameserver, hold, timeout resolve, timeout retry, accepted_payload_size, parse-resolv-conf, \
             resolve_retries"
        }
        "cache" => "total-max-size, max-object-size, max-age, process-vary",
        "ring" => "description, format, maxlen, size, timeout connect, server",
        "log-forward" => "dgram-bind, bind, log, maxconn",
        _ => "",
    }
}

/// The position of each directive in the sections of a kind; some files have thousands of lines.
static PLACES: LazyLock<HashMap<&'static str, HashMap<&'static str, usize>>> = LazyLock::new(|| {
    let kinds = ["3.0", "3.2", "3.4"].into_iter().flat_map(kinds);
    kinds.map(|kind| (kind, directives(kind).split(", ").zip(0..).collect())).collect()
});

/// The position of the directives that the API does not know.
const UNKNOWN: usize = usize::MAX;
/// The API's reader stops at a longer line, without an error: the rest of the file is lost.
const MAX_LINE: usize = 65535;
/// What the API puts at the top of a file that it reads.
const MANAGED: [&str; 2] =
    ["Dataplaneapi managed File", "changing file directly can cause a conflict if dataplaneapi is running"];

type Comment = Vec<u8>;

/// One directive, with the comment behind it.
#[derive(Clone)]
pub struct Line {
    /// The words as they are, quotes included; what is not UTF-8 in them is lost.
    pub words: Vec<String>,
    pub comment: Option<Comment>,
    text: Vec<u8>,
}

/// The directives of one kind, and the comments that stood above any of them.
#[derive(Clone, Default)]
struct Group {
    comments: Vec<Comment>,
    lines: Vec<Line>,
}

#[derive(Clone, Default)]
pub struct Section {
    pub kind: String,
    pub name: String,
    pub from: Option<String>,
    /// What follows the header.
    pub comment: Option<Comment>,
    above: Vec<Comment>,
    groups: BTreeMap<usize, Group>,
    below: Vec<Comment>,
}

impl Section {
    pub fn lines(&self) -> impl Iterator<Item = &Line> {
        self.groups.values().flat_map(|group| &group.lines)
    }

    fn place(&self, words: &[String]) -> usize {
        let words = if words[0] == "no" { &words[1..] } else { words };
        let places = PLACES.get(self.kind.as_str());
        let place = |start: &str| places?.get(start).copied();
        let one = words.first().and_then(|word| place(word));
        one.or_else(|| place(&words.get(..2)?.join(" "))).unwrap_or(UNKNOWN)
    }

    /// Adds a line after those of its kind.
    pub fn push(&mut self, line: &[u8]) {
        self.push_below(&[], line.trim_ascii_end());
    }

    fn push_below(&mut self, comments: &[Comment], line: &[u8]) {
        let (words, comment) = split(line);
        let place = self.place(&words);
        let mut text = words.join(" ").into_bytes();
        if place == UNKNOWN {
            text = line.trim_ascii().to_vec();
        } else if let Some(comment) = comment.as_ref().filter(|_| words[0] != "filter") {
            text.extend([b" # ", comment.as_slice()].concat());
        }
        let group = self.groups.entry(place).or_default();
        group.comments.extend_from_slice(comments);
        group.lines.push(Line { words, comment, text });
    }

    /// Inserts a line among those of its keyword. `false`: there is no such place.
    pub fn insert_line(&mut self, keyword: &str, at: usize, line: &[u8]) -> bool {
        let place = self.place(&[keyword.to_owned()]);
        if at > self.groups.get(&place).map_or(0, |group| group.lines.len()) {
            return false;
        }
        self.push(line);
        let lines = &mut self.groups.get_mut(&place).expect("a line of it was pushed").lines;
        let last = lines.len() - 1;
        lines[at..=last].rotate_right(1);
        true
    }

    /// Removes a line among those of its keyword. `false`: there is no such line.
    pub fn remove_line(&mut self, keyword: &str, at: usize) -> bool {
        let place = self.place(&[keyword.to_owned()]);
        let lines = self.groups.get_mut(&place).map(|group| &mut group.lines).filter(|lines| at < lines.len());
        let is_there = lines.map(|lines| lines.remove(at)).is_some();
        self.groups.retain(|_, group| !group.lines.is_empty());
        is_there
    }

    fn servers(&mut self) -> &mut Vec<Line> {
        let place = self.place(&["server".to_owned()]);
        &mut self.groups.entry(place).or_default().lines
    }

    /// Replaces the server of this name.
    pub fn replace_server(&mut self, name: &str, line: &[u8]) {
        let at = self.servers().iter().position(|line| line.words[1] == name).expect("the caller looked it up");
        self.push(line);
        self.servers().swap_remove(at);
    }

    /// Removes a server. The comments of a group are removed with its last directive.
    pub fn remove_server(&mut self, name: &str) {
        self.servers().retain(|line| line.words[1] != name);
        self.groups.retain(|_, group| !group.lines.is_empty());
    }

    fn render(&self, out: &mut Vec<u8>) {
        let indent: &[u8] = if self.kind.is_empty() { b"" } else { b"  " };
        for group in self.groups.values() {
            for comment in &group.comments {
                out.extend([indent, b"# ", comment, b"\n"].concat());
            }
            for line in &group.lines {
                out.extend([indent, &line.text, b"\n"].concat());
            }
        }
        for comment in &self.below {
            out.extend([indent, b"# ", comment, b"\n"].concat());
        }
    }
}

#[derive(Clone)]
pub struct Config {
    pub version: u64,
    series: String,
    /// What is above the first section.
    top: Section,
    /// By the position of their kind, and by name.
    sections: BTreeMap<(usize, String), Arc<Section>>,
}

impl Config {
    /// What the API makes of its file when it starts, or when another writer has changed it: it adds its notice at the
    /// top, and writes out which defaults each section inherits.
    pub fn read(file: &[u8], series: &str) -> Self {
        let mut config = Self::parse(file, series, true);
        if config.top.above.first().is_none_or(|first| *first != MANAGED[0].as_bytes()) {
            config.top.above.splice(0..0, MANAGED.map(|line| line.as_bytes().to_vec()));
        }
        config
    }

    /// What the API makes of a text that is sent to it. It does not add `from`: a section without one inherits from the
    /// last of the defaults, which all come first in the rendered file.
    pub fn sent(text: &[u8], version: u64, series: &str) -> Self {
        let lines = text.split_inclusive(|byte| *byte == b'\n').take_while(|line| line.len() <= MAX_LINE + 1);
        let lines = lines.filter(|line| !line.starts_with(b"# _version="));
        Self { version, ..Self::parse(&lines.collect::<Vec<_>>().concat(), series, false) }
    }

    fn parse(text: &[u8], series: &str, inherits: bool) -> Self {
        let mut config =
            Self { version: 1, series: series.to_owned(), top: Section::default(), sections: BTreeMap::new() };
        let (mut current, mut defaults) = (None, None);
        let (mut inner, mut outer) = (Vec::new(), Vec::new());
        let mut begun = false;
        for line in text.split(|byte| *byte == b'\n').take_while(|line| line.len() <= MAX_LINE) {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let (words, comment) = split(line);
            begun |= line.is_empty();
            let section = current.as_ref().and_then(|key| config.sections.get_mut(key)).map(Arc::make_mut);
            let stamp = line.starts_with(b"# _version") || line.starts_with(b"# _md5hash");
            match (words.first(), comment, section) {
                (None, Some(_), None) if stamp => {
                    let version = String::from_utf8_lossy(line);
                    let version = version.strip_prefix("# _version=").and_then(|version| version.trim().parse().ok());
                    config.version = version.unwrap_or(config.version);
                }
                (None, Some(comment), None) if !begun => config.top.above.push(comment),
                // A comment without indentation belongs to the next section, any other to the next directive.
                (None, Some(comment), _) if line[0] == b' ' => inner.push(comment),
                (None, Some(comment), _) => outer.push(comment),
                (None, None, _) => {}
                (Some(kind), comment, section) => {
                    let section = section.unwrap_or(&mut config.top);
                    let Some(place) = kinds(series).position(|known| known == kind) else {
                        section.push_below(&std::mem::take(&mut inner), line);
                        continue;
                    };
                    if !inner.is_empty() {
                        section.below = std::mem::take(&mut inner);
                    }
                    begun = true;
                    let mut section = header(&words, comment.filter(|_| config.has_header_comments()));
                    section.above = std::mem::take(&mut outer);
                    match kind.as_str() {
                        "defaults" => {
                            if section.name.is_empty() {
                                let mut names = (1..).map(|number| format!("unnamed_defaults_{number}"));
                                let free = |name: &String| !config.sections.contains_key(&(place, name.clone()));
                                section.name = names.find(free).expect("there is always one more number");
                            }
                            defaults = Some(section.name.clone());
                        }
                        "frontend" | "backend" | "listen" if inherits => {
                            section.from = section.from.or(defaults.clone());
                        }
                        _ => {}
                    }
                    let key = (place, section.name.clone());
                    current = Some(key.clone());
                    // There is one `global`; of other sections with the same name the last counts.
                    if kind != "global" || !config.sections.contains_key(&key) {
                        config.sections.insert(key, section.into());
                    }
                }
            }
        }
        let section = current.and_then(|key| config.sections.get_mut(&key)).map(Arc::make_mut);
        let section = section.unwrap_or(&mut config.top);
        if !inner.is_empty() {
            section.below = inner;
        }
        section.below.append(&mut outer);
        config
    }

    /// Whether a comment after a section's header is kept: 3.0 drops it.
    pub fn has_header_comments(&self) -> bool {
        self.series != "3.0"
    }

    /// The sections of a kind, in the order of their names.
    pub fn sections(&self, kind: &str) -> impl Iterator<Item = &Section> {
        self.sections.values().map(AsRef::as_ref).filter(move |section: &&Section| section.kind == kind)
    }

    pub fn section(&self, kind: &str, name: &str) -> Option<&Section> {
        self.sections(kind).find(|section| section.name == name)
    }

    pub fn section_mut(&mut self, kind: &str, name: &str) -> Option<&mut Section> {
        let mut sections = self.sections.values_mut();
        sections.find(|section| section.kind == kind && section.name == name).map(Arc::make_mut)
    }

    /// Adds a section, or replaces the one of this name, including its comments.
    pub fn insert(&mut self, text: &str) {
        self.sections.append(&mut Self::parse(text.as_bytes(), &self.series, false).sections);
    }

    pub fn remove(&mut self, kind: &str, name: &str) {
        self.sections.retain(|_, section| section.kind != kind || section.name != name);
    }

    /// The file, after a line with its hash.
    pub fn render(&self) -> Vec<u8> {
        let mut out = format!("# _version={}\n", self.version).into_bytes();
        for comment in &self.top.above {
            out.extend([b"# ", comment.as_slice(), b"\n"].concat());
        }
        self.top.render(&mut out);
        let mut written = Vec::new();
        let mut waiting: Vec<&Section> = self.sections.values().map(AsRef::as_ref).collect();
        while !waiting.is_empty() {
            // Defaults come after those that they inherit from.
            let waits = |section: &&Section| section.kind == "defaults" && section.from.is_some();
            let may = |section: &&Section| !waits(section) || written.contains(&section.from);
            let section = waiting.remove(waiting.iter().position(may).unwrap_or(0));
            written.push(Some(section.name.clone()));
            out.push(b'\n');
            for comment in &section.above {
                out.extend([b"# ", comment.as_slice(), b"\n"].concat());
            }
            let name = [section.kind.as_str(), section.name.as_str()].join(" ");
            out.extend(name.trim_end().as_bytes());
            out.extend(section.from.iter().flat_map(|from| format!(" from {from}").into_bytes()));
            out.extend(section.comment.iter().flat_map(|comment| [b" # ", comment.as_slice()].concat()));
            out.push(b'\n');
            section.render(&mut out);
        }
        [format!("# _md5hash={}\n", hash(&out)).into_bytes(), out].concat()
    }
}

/// Whether a file is as the API wrote it: its first line has the hash of the others.
pub fn is_own(file: &[u8]) -> bool {
    let first = file.split_inclusive(|byte| *byte == b'\n').next().unwrap_or_default();
    first == format!("# _md5hash={}\n", hash(&file[first.len()..])).as_bytes()
}

/// The real one's is an MD5, which only the API itself uses.
fn hash(text: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("{:032x}", hasher.finish())
}

fn header(words: &[String], comment: Option<Comment>) -> Section {
    let kind = words[0].clone();
    let unnamed = kind == "defaults" && words.get(1).is_some_and(|word| word == "from");
    let (name, rest) = if unnamed { (None, &words[1..]) } else { (words.get(1), words.get(2..).unwrap_or_default()) };
    let from = rest.get(1).filter(|_| rest[0] == "from").cloned();
    Section { kind, name: name.cloned().unwrap_or_default(), from, comment, ..Section::default() }
}

/// The words of a line as they are, and what follows the `#`.
fn split(line: &[u8]) -> (Vec<String>, Option<Comment>) {
    let (mut words, mut word, mut quote) = (Vec::new(), Vec::new(), None);
    let mut comment = None;
    for (at, byte) in line.iter().copied().enumerate() {
        let escaped = at > 0 && line[at - 1] == b'\\';
        match (quote, byte) {
            (None, b'#') if !escaped => {
                let text = line[at + 1..].iter().skip_while(|byte| **byte == b' ').copied().collect::<Vec<_>>();
                comment = (!text.is_empty()).then_some(text);
                break;
            }
            (None, b' ' | b'\t') if !escaped || byte == b'\t' => words.extend(whole(&mut word)),
            (None, b'"' | b'\'') if !escaped => {
                quote = Some(byte);
                word.push(byte);
            }
            (Some(open), _) => {
                quote = Some(open).filter(|open| *open != byte || (byte == b'"' && escaped));
                word.push(byte);
            }
            (None, _) => word.push(byte),
        }
    }
    words.extend(whole(&mut word));
    (words, comment)
}

fn whole(word: &mut Vec<u8>) -> Option<String> {
    let word = std::mem::take(word);
    (!word.is_empty()).then(|| String::from_utf8_lossy(&word).into_owned())
}
