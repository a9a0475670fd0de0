//! Routes: which requests of a frontend go to which backend.
//!
//! The host of a request decides, then the longest path. An exact host goes before a wildcard, a longer wildcard before
//! a shorter one, and both before prefixes (the longer one first) and regular expressions. A host whose paths do not
//! match a request leaves it to the next one in this order.

use std::collections::BTreeMap;
use std::fmt;

use super::name::valid;
use super::owner::{decode, encode};
use super::{BackendName, FrontendName, Invalid};

/// The longest pattern of a host, in bytes: the longest name of DNS.
const LONGEST_HOST: usize = 253;
/// The longest path, in bytes. Longer ones would not leave room for the path of a request in HAProxy's buffer.
const LONGEST_PATH: usize = 1000;
/// How many times a regular expression may repeat something: each multiplies the time that a host can cost.
const MAX_REPETITIONS: usize = 4;

/// How the domains of a service are compared with the host of a request (tag `domain.type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DomainType {
    /// As a whole, or as `*.example.com`.
    #[default]
    Exact,
    /// By its beginning.
    Prefix,
    /// By a regular expression.
    Regex,
}

/// The hosts of a route, in lower case and without a port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostPattern {
    /// One host.
    Exact(String),
    /// Every host below this domain: `example.com` of `*.example.com`.
    Suffix(String),
    /// Every host that begins so.
    Prefix(String),
    /// Every host in which this regular expression matches.
    Regex(String),
    /// Every connection of a frontend in TCP mode.
    Any,
}

impl HostPattern {
    /// The key of any host: of one that begins with nothing.
    pub const ANY: &str = "^";
    const HOST: &str = "a host name such as app.example.com or *.example.com, without a port; other alphabets as xn--";
    const PREFIX: &str = "the beginning of a host name, such as app.";
    const REGEX: &str = "lower-case letters, digits and . - _ \\. \\d \\w ^ $ | ( ) [ ] ? * + only, at most four * and +, \
                         none of them behind a group";

    /// From the value of a tag.
    pub fn parse(value: &str, by: DomainType) -> Result<Self, Invalid> {
        let lower = value.to_ascii_lowercase();
        match by {
            DomainType::Exact => {
                let host = lower.strip_suffix('.').unwrap_or(&lower);
                let (suffix, rest) = match host.strip_prefix("*.") {
                    Some(rest) => (true, rest),
                    None => (false, host),
                };
                let rest = valid("domain", Self::HOST, value, is_host(rest)).map(|_| rest.to_owned())?;
                Ok(if suffix { Self::Suffix(rest) } else { Self::Exact(rest) })
            }
            DomainType::Prefix => {
                let ok = is_plain(&lower) && !lower.starts_with('.');
                valid("domain", Self::PREFIX, value, ok).map(|_| Self::Prefix(lower))
            }
            DomainType::Regex => valid("domain", Self::REGEX, value, is_regex(value)).map(Self::Regex),
        }
    }

    /// The word that stands for it in the map of routes. No host can be such a word, except its own. The Data Plane API
    /// takes no `*`, `;`, `$`, `#`, `&` and braces in the key of an entry that it is to change (`id in path`, seen on
    /// 3.0, 3.2 and 3.4).
    pub fn key(&self) -> String {
        match self {
            Self::Exact(host) => host.clone(),
            Self::Suffix(domain) => format!(".{domain}"),
            Self::Prefix(beginning) => format!("^{beginning}"),
            Self::Regex(regex) => format!("~{}", encode(regex)),
            Self::Any => Self::ANY.to_owned(),
        }
    }

    fn from_key(key: &str) -> Self {
        match (key.strip_prefix('~'), key.strip_prefix('.'), key.strip_prefix('^')) {
            _ if key == Self::ANY => Self::Any,
            (Some(regex), _, _) => Self::Regex(decode(regex)),
            (_, Some(domain), _) => Self::Suffix(domain.to_owned()),
            (_, _, Some(beginning)) => Self::Prefix(beginning.to_owned()),
            _ => Self::Exact(key.to_owned()),
        }
    }

    /// The patterns of the same kind that match all its hosts, the one that matches the fewest first.
    fn wider(&self) -> Vec<Self> {
        match self {
            Self::Suffix(domain) => {
                let above = domain.match_indices('.').map(|(at, _)| &domain[at + 1..]);
                above.map(|domain| Self::Suffix(domain.to_owned())).collect()
            }
            Self::Prefix(beginning) => {
                (1..beginning.len()).rev().map(|end| Self::Prefix(beginning[..end].to_owned())).collect()
            }
            Self::Exact(_) | Self::Regex(_) | Self::Any => Vec::new(),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Suffix(domain) => write!(f, "*.{domain}"),
            Self::Prefix(beginning) => write!(f, "{beginning}*"),
            Self::Regex(regex) => write!(f, "~{regex}"),
            Self::Any => f.write_str("*"),
        }
    }
}

fn is_plain(text: &str) -> bool {
    let is_ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
    !text.is_empty() && text.len() <= LONGEST_HOST && text.bytes().all(is_ok)
}

fn is_host(text: &str) -> bool {
    is_plain(text) && text.split('.').all(|label| !label.is_empty() && label.len() <= 63)
}

/// Whether every regular expression library that HAProxy is built with (PCRE2, PCRE, POSIX) takes it, and none needs
/// long for a host: a file with one that HAProxy refuses would stop every reload. So nothing is repeated that holds a
/// repetition, and there are few of them.
fn is_regex(text: &str) -> bool {
    let is_repetition = |b: u8| b"?*+".contains(&b);
    let (mut depth, mut repetitions, mut before, mut bytes) = (0_usize, 0, b'|', text.bytes());
    if text.is_empty() || text.len() > LONGEST_HOST {
        return false;
    }
    while let Some(byte) = bytes.next() {
        let can_be_repeated = !is_repetition(before) && !b"(|^$".contains(&before);
        let ok = match byte {
            b'\\' => bytes.next().is_some_and(|b| b".dw-".contains(&b)),
            b'[' => is_class(&mut bytes),
            b'(' => {
                depth += 1;
                true
            }
            b')' if depth > 0 => {
                depth -= 1;
                !b"(|".contains(&before)
            }
            b'?' => can_be_repeated,
            b'*' | b'+' => {
                repetitions += 1;
                can_be_repeated && before != b')'
            }
            b'|' => !b"(|".contains(&before),
            b'^' | b'$' => true,
            _ => byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte),
        };
        if !ok {
            return false;
        }
        before = byte;
    }
    depth == 0 && before != b'|' && repetitions <= MAX_REPETITIONS
}

/// Reads a bracket expression to its end: letters, digits, `.`, `_`, `-` at its end, ranges.
fn is_class(bytes: &mut std::str::Bytes<'_>) -> bool {
    let mut content: Vec<u8> = Vec::new();
    loop {
        match bytes.next() {
            Some(b']') => break,
            Some(b'^') if content.is_empty() => content.push(b'^'),
            Some(b) if b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b) => content.push(b),
            _ => return false,
        }
    }
    let content = content.strip_prefix(b"^").unwrap_or(&content);
    let content = content.strip_suffix(b"-").unwrap_or(content);
    let is_range = |(at, _): (usize, &u8)| {
        let (from, to) = (at.checked_sub(1).and_then(|at| content.get(at)), content.get(at + 1));
        let both = |is: fn(&u8) -> bool| from.is_some_and(is) && to.is_some_and(is);
        let is_kind = both(u8::is_ascii_lowercase) || both(u8::is_ascii_digit);
        is_kind && from <= to && content.get(at + 2) != Some(&b'-')
    };
    !content.is_empty() && content.iter().enumerate().filter(|(_, b)| **b == b'-').all(is_range)
}

/// The beginning of a path: `/api` is the beginning of `/api` and of `/api/x`, and not of `/apix`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct RoutePath(String);

impl RoutePath {
    const RULE: &str = "a path that starts with / and has letters, digits and - _ . ~ / % : @ ! + ( ) = only";

    /// From the value of a tag.
    pub fn parse(value: &str) -> Result<Self, Invalid> {
        let ok = value.starts_with('/')
            && value.len() <= LONGEST_PATH
            && value.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.~/%:@!+()=".contains(&b));
        valid("path", Self::RULE, value, ok).map(|path| Self(path.trim_end_matches('/').to_owned()))
    }

    /// Whether every path below the other one is below this one.
    fn covers(&self, other: &Self) -> bool {
        other.0.strip_prefix(&self.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Whether it is all paths.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for RoutePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_root() { "/" } else { &self.0 })
    }
}

/// What a route matches.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// The hosts.
    pub host: HostPattern,
    /// The paths.
    pub path: RoutePath,
}

impl Route {
    /// The key in the map of routes. It ends with a slash, and so does what HAProxy looks up, so that a path ends where
    /// one of its segments does.
    pub fn key(&self) -> String {
        format!("{}{}/", self.host.key(), self.path.0)
    }

    /// From such a key; `None`: it is not one.
    pub fn from_key(key: &str) -> Option<Self> {
        let (host, path) = key.split_once('/')?;
        let path = path.strip_suffix('/').map(|path| format!("/{path}"));
        (!host.is_empty())
            .then(|| Self { host: HostPattern::from_key(host), path: RoutePath(path.unwrap_or_default()) })
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.is_root() {
            true => self.host.fmt(f),
            false => write!(f, "{}{}", self.host, self.path),
        }
    }
}

/// The routes of one frontend.
pub type FrontendRoutes = BTreeMap<Route, BackendName>;
/// The routes of all frontends.
pub type Routes = BTreeMap<FrontendName, FrontendRoutes>;

/// One line of a map: a key and its value.
pub type Entry = (String, String);

/// The maps of a frontend, in the order in which HAProxy asks them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MapKind {
    /// Host and path → backend: a tree, in which the longest key wins. All routes are in it, those of patterns under
    /// the pattern's own key.
    Routes,
    /// The end of a host → the pattern's key: a list, in which the first match wins.
    Suffix,
    /// The beginning of a host → the pattern's key: a tree, in which the longest key wins.
    Prefix,
    /// A regular expression → its key: a list, in which the first match wins.
    Regex,
}

impl MapKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Routes, Self::Suffix, Self::Prefix, Self::Regex];

    /// The word in the names of files.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Routes => "routes",
            Self::Suffix => "suffix",
            Self::Prefix => "prefix",
            Self::Regex => "regex",
        }
    }

    /// Whether the order of its lines counts.
    pub fn is_ordered(self) -> bool {
        matches!(self, Self::Suffix | Self::Regex)
    }

    /// Whether two maps of this kind are the same to HAProxy.
    pub fn is_same(self, a: &[Entry], b: &[Entry]) -> bool {
        if self.is_ordered() || a == b {
            return a == b;
        }
        let sorted = |entries: &[Entry]| {
            let mut entries = entries.to_vec();
            entries.sort();
            entries
        };
        a.len() == b.len() && sorted(a) == sorted(b)
    }
}

/// The lines of a frontend's maps; a kind without lines is left out.
pub fn maps(routes: &FrontendRoutes) -> BTreeMap<MapKind, Vec<Entry>> {
    let mut maps: BTreeMap<MapKind, Vec<Entry>> = BTreeMap::new();
    let mut of_host: BTreeMap<&HostPattern, Vec<(&RoutePath, &BackendName)>> = BTreeMap::new();
    for (Route { host, path }, backend) in routes {
        of_host.entry(host).or_default().push((path, backend));
    }
    for (host, own) in &of_host {
        let mut paths = own.clone();
        // HAProxy finds one pattern and then its paths; what a wider pattern has beside them is repeated there.
        for wider in host.wider() {
            let wider = of_host.get(&wider).into_iter().flatten();
            let more: Vec<_> =
                wider.filter(|(path, _)| !paths.iter().any(|(known, _)| known.covers(path))).copied().collect();
            paths.extend(more);
        }
        let route = |(path, backend): (&RoutePath, &BackendName)| {
            let route = Route { host: (*host).clone(), path: path.clone() };
            (route.key(), backend.to_string())
        };
        maps.entry(MapKind::Routes).or_default().extend(paths.into_iter().map(route));
        let (kind, found_by) = match host {
            HostPattern::Exact(_) | HostPattern::Any => continue,
            HostPattern::Suffix(domain) => (MapKind::Suffix, format!(".{domain}")),
            HostPattern::Prefix(beginning) => (MapKind::Prefix, beginning.clone()),
            HostPattern::Regex(regex) => (MapKind::Regex, regex.clone()),
        };
        maps.entry(kind).or_default().push((found_by, host.key()));
    }
    for (kind, entries) in &mut maps {
        // Of several that match, the longest goes first.
        entries.sort_by(|(a, _), (b, _)| {
            let length = |key: &String| if kind.is_ordered() { usize::MAX - key.len() } else { 0 };
            (length(a), a).cmp(&(length(b), b))
        });
    }
    maps
}

/// The routes in a map of routes: those that a narrower pattern only repeats are left out.
pub fn read(entries: &[Entry]) -> FrontendRoutes {
    let all: FrontendRoutes =
        entries.iter().filter_map(|(key, backend)| Some((Route::from_key(key)?, backend.parse().ok()?))).collect();
    let is_repeated = |(route, backend): (&Route, &BackendName)| {
        let wider = route.host.wider().into_iter().map(|host| Route { host, path: route.path.clone() });
        wider.into_iter().any(|wider| all.get(&wider) == Some(backend))
    };
    all.iter().filter(|entry| !is_repeated(*entry)).map(|(route, backend)| (route.clone(), backend.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn host(value: &str, by: DomainType) -> Option<String> {
        HostPattern::parse(value, by).ok().map(|host| host.to_string())
    }

    fn routes(all: &[(&str, &str, &str)]) -> FrontendRoutes {
        let route = |(host, path, backend): &(&str, &str, &str)| {
            let by = if host.ends_with('*') { DomainType::Prefix } else { DomainType::Exact };
            let host = HostPattern::parse(host.strip_suffix('*').unwrap_or(host), by).expect("a host");
            (Route { host, path: RoutePath::parse(path).expect("a path") }, backend.parse().expect("a name"))
        };
        all.iter().map(route).collect()
    }

    fn keys(routes: &FrontendRoutes, kind: MapKind) -> Vec<String> {
        let entries = maps(routes).remove(&kind).unwrap_or_default();
        entries.into_iter().map(|(key, value)| format!("{key} {value}")).collect()
    }

    #[test]
    fn a_domain_is_a_host_name_or_one_with_a_star_in_front() {
        use DomainType::{Exact, Prefix, Regex};
        assert_eq!(host("App.Example.COM.", Exact).as_deref(), Some("app.example.com"));
        assert_eq!(host("*.Example.com", Exact).as_deref(), Some("*.example.com"));
        assert_eq!(host("App.", Prefix).as_deref(), Some("app.*"));
        assert_eq!(host("^app[0-9]+\\.", Regex).as_deref(), Some("~^app[0-9]+\\."));
        for bad in ["", "*", "*.", "a..b", ".a", "a.*.b", "a b", "a/b", "app:80", "é.com", "a\nb", "~a", "*.*.com"] {
            assert_eq!(host(bad, Exact), None, "{bad:?}");
        }
        for bad in ["", ".", "*", "a*", "a/", "~"] {
            assert_eq!(host(bad, Prefix), None, "{bad:?}");
        }
    }

    #[test]
    fn only_a_regular_expression_that_every_library_takes_gets_through() {
        for good in ["^app[0-9]+\\.example\\.com$", "(a|b)?\\.com", "x[a-z0-9-]*", "[^a]", "a\\d+\\w*", "^$", "xn--a"] {
            assert!(host(good, DomainType::Regex).is_some(), "{good}");
        }
        let bad = [
            "",
            "(",
            ")",
            "a)",
            "[",
            "[]",
            "[z-a]",
            "[a-]b[",
            "a**",
            "*a",
            "(a+)+",
            "(a)*",
            "a{2}",
            "(?i)a",
            "\\",
            "\\x",
            "[a--z]",
            "[a-z-9]",
            "a b",
            "A",
            "a||b",
            "|a",
            "a|",
            "()",
            "(|a)",
            "[[:alpha:]]",
            "a+a+a+a+a+",
            "\\b",
            "a#b",
            "^*",
            "a/b",
        ];
        for bad in bad {
            assert_eq!(host(bad, DomainType::Regex), None, "{bad:?}");
        }
    }

    #[test]
    fn a_path_ends_with_one_of_its_segments() {
        let path = |value| RoutePath::parse(value).expect("a path");
        assert_eq!((path("/api/"), path("/")), (path("/api"), RoutePath::default()));
        assert!(
            path("/api").covers(&path("/api/x")) && path("/").covers(&path("/api")) && path("/a").covers(&path("/a"))
        );
        assert!(!path("/api").covers(&path("/apix")) && !path("/api/x").covers(&path("/api")));
        for bad in ["", "api", "/a b", "/a\n", "/a\"", "/a#", "/a,b", "/a?b", "/a*", "/a;b", "/a&b", "/\u{e9}"] {
            assert!(RoutePath::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_longest_end_and_the_longest_beginning_go_first() {
        let all =
            routes(&[("*.a.com", "/", "x"), ("*.b.a.com", "/", "y"), ("app*", "/", "z"), ("application*", "/", "w")]);
        assert_eq!(keys(&all, MapKind::Suffix), [".b.a.com .b.a.com", ".a.com .a.com"]);
        assert_eq!(keys(&all, MapKind::Prefix), ["app ^app", "application ^application"]);
        assert_eq!(keys(&all, MapKind::Routes), [".a.com/ x", ".b.a.com/ y", "^app/ z", "^application/ w"]);
    }

    #[test]
    fn a_narrow_pattern_leaves_to_a_wider_one_what_none_of_its_paths_matches() {
        let all = routes(&[("*.a.com", "/", "wide"), ("*.a.com", "/api/x", "wide2"), ("*.b.a.com", "/api", "narrow")]);
        let expected = [".a.com/ wide", ".a.com/api/x/ wide2", ".b.a.com/ wide", ".b.a.com/api/ narrow"];
        assert_eq!(keys(&all, MapKind::Routes), expected);
        // What is only repeated belongs to nobody.
        assert_eq!(read(&maps(&all)[&MapKind::Routes]), all);
    }

    #[test]
    fn maps_that_haproxy_reads_alike_are_the_same() {
        let entry = |key: &str| (key.to_owned(), "b".to_owned());
        let (one, other) = ([entry("a"), entry("b")], [entry("b"), entry("a")]);
        assert!(MapKind::Routes.is_same(&one, &other) && !MapKind::Suffix.is_same(&one, &other));
        assert!(!MapKind::Routes.is_same(&one, &one[..1]));
    }

    proptest! {
        #[test]
        fn every_route_is_read_back_from_its_key(host in "(\\*\\.)?[a-z0-9]{1,9}(\\.[a-z]{1,3}){0,2}", path in "(/[a-z.~]{1,4}){0,3}/?") {
            let route = Route {
                host: HostPattern::parse(&host, DomainType::Exact).expect("a host"),
                path: RoutePath::parse(&format!("/{}", path.trim_start_matches('/'))).expect("a path"),
            };
            prop_assert_eq!(Route::from_key(&route.key()), Some(route));
        }

        #[test]
        fn no_key_has_a_space(value in ".{0,40}") {
            for by in [DomainType::Exact, DomainType::Prefix, DomainType::Regex] {
                let key = HostPattern::parse(&value, by).map(|host| host.key()).unwrap_or_default();
                prop_assert!(key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.~^%".contains(&b)), "{key}");
                let host = HostPattern::parse(&value, by);
                prop_assert!(host.is_err() || host == Ok(HostPattern::from_key(&key)));
            }
        }
    }
}
