//! Which namespace may use which backend: the setting `namespaces`.
//!
//! The most specific entry decides what a namespace may do: an exact name before a glob, a longer glob before a shorter
//! one. A namespace without an entry may make any backend that is not another namespace's, shares backends only within
//! itself, and joins one that is not ours only under the name that is derived from the service.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use globset::{Glob, GlobMatcher};
use thiserror::Error;

use super::build::derived_name;
use super::{BackendName, HostPattern, ServiceKey};

/// The content of one entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grant {
    /// Globs of backends that its services may make or share, beside the one with the derived name.
    pub backends: Vec<String>,
    /// Whether they may join backends that are not ours.
    pub join: bool,
    /// Globs of hosts that they may claim. `None`: any host that no other entry lists.
    pub domains: Option<Vec<String>>,
}

/// A namespace or backend name that is not a valid glob.
#[derive(Debug, Error)]
#[error("invalid glob {glob:?}, use one such as `team-*`")]
pub struct BadGlob {
    glob: String,
    #[source]
    source: globset::Error,
}

/// Which namespace may use which backend.
#[derive(Debug, Clone, Default)]
pub struct Grants(Arc<[Rule]>);

#[derive(Debug, Clone)]
struct Rule {
    namespaces: GlobMatcher,
    backends: Vec<GlobMatcher>,
    join: bool,
    domains: Option<Vec<GlobMatcher>>,
}

impl Grants {
    /// Takes the entries by their names or globs.
    pub fn new(entries: &BTreeMap<String, Grant>) -> Result<Self, BadGlob> {
        let mut entries: Vec<_> = entries.iter().collect();
        let is_glob = |name: &str| name.contains(['*', '?', '[', '{', '\\']);
        entries.sort_by_key(|(name, _)| (is_glob(name), Reverse(name.len())));
        let rule = |(name, grant): (&String, &Grant)| {
            let Grant { backends, join, domains } = grant;
            let backends = backends.iter().map(|glob| matcher(glob)).collect::<Result<_, _>>()?;
            let lower = |globs: &Vec<String>| globs.iter().map(|glob| matcher(&glob.to_ascii_lowercase())).collect();
            let domains = domains.as_ref().map(lower).transpose()?;
            Ok(Rule { namespaces: matcher(name)?, backends, join: *join, domains })
        };
        Ok(Self(entries.into_iter().map(rule).collect::<Result<_, _>>()?))
    }

    fn rule(&self, service: &ServiceKey) -> Option<&Rule> {
        self.0.iter().find(|rule| rule.namespaces.is_match(&service.namespace))
    }

    /// Whether an entry lists a backend for the namespace of this service, so that the service may share it with
    /// services of other namespaces.
    pub fn lists(&self, service: &ServiceKey, name: &BackendName) -> bool {
        self.rule(service).is_some_and(|rule| rule.backends.iter().any(|glob| glob.is_match(name.as_str())))
    }

    /// Whether a service may make a backend of this name, or share it with others of its namespace.
    pub fn may_make(&self, service: &ServiceKey, name: &BackendName) -> bool {
        is_derived(service, name) || self.rule(service).is_none() || self.lists(service, name)
    }

    /// Whether a service may join a backend of this name that is not ours.
    pub fn may_join(&self, service: &ServiceKey, name: &BackendName) -> bool {
        self.rule(service).map_or_else(|| is_derived(service, name), |rule| rule.join)
    }

    /// Whether a service may claim a host, or why it may not. A pattern may be claimed if every host that it matches
    /// may.
    pub fn may_claim(&self, service: &ServiceKey, host: &HostPattern) -> Result<(), &'static str> {
        match self.rule(service).and_then(|rule| rule.domains.as_ref()) {
            Some(globs) if lists(globs, host) => Ok(()),
            Some(_) => Err("it is not among the hosts that its namespace may claim"),
            None if self.0.iter().filter_map(|rule| rule.domains.as_ref()).any(|globs| reserves(globs, host)) => {
                Err("it is, or may match, a host that the settings list for another namespace")
            }
            None => Ok(()),
        }
    }

    /// Whether an entry lists a host for the namespace of this service, so that it may claim routes of it beside other
    /// namespaces.
    pub fn lists_domain(&self, service: &ServiceKey, host: &HostPattern) -> bool {
        self.rule(service).and_then(|rule| rule.domains.as_ref()).is_some_and(|globs| lists(globs, host))
    }

    /// Whether an entry allows joining beyond the name that is derived from the service.
    pub(super) fn allows_join(&self, service: &ServiceKey) -> bool {
        self.rule(service).is_some_and(|rule| rule.join)
    }
}

fn is_derived(service: &ServiceKey, name: &BackendName) -> bool {
    derived_name(service) == name.as_str()
}

/// Whether one of the globs matches every host of the pattern.
fn lists(globs: &[GlobMatcher], host: &HostPattern) -> bool {
    globs.iter().any(|glob| {
        let text = glob.glob().glob();
        is_any(text)
            || match host {
                HostPattern::Exact(host) => glob.is_match(host),
                HostPattern::Suffix(domain) => {
                    let end = text.strip_prefix('*').filter(|end| is_literal(end));
                    end.is_some_and(|end| format!(".{domain}").ends_with(end))
                }
                HostPattern::Prefix(beginning) => {
                    let start = text.strip_suffix('*').filter(|start| is_literal(start));
                    start.is_some_and(|start| beginning.starts_with(start))
                }
                HostPattern::Regex(_) | HostPattern::Any => false,
            }
    })
}

/// Whether the pattern may match a host that one of the globs lists. One that lists every host reserves none.
fn reserves(globs: &[GlobMatcher], host: &HostPattern) -> bool {
    globs.iter().filter(|glob| !is_any(glob.glob().glob())).any(|glob| match host {
        HostPattern::Exact(host) => glob.is_match(host),
        HostPattern::Suffix(domain) => {
            let text = glob.glob().glob();
            let end = text.rfind(META).map_or(text, |at| &text[at + 1..]);
            let domain = format!(".{domain}");
            domain.ends_with(end) || end.ends_with(&domain)
        }
        HostPattern::Prefix(_) | HostPattern::Regex(_) => true,
        HostPattern::Any => false,
    })
}

/// The characters that mean something in a glob.
const META: [char; 7] = ['*', '?', '[', ']', '{', '}', '\\'];

fn is_literal(text: &str) -> bool {
    !text.contains(META)
}

fn is_any(glob: &str) -> bool {
    !glob.is_empty() && glob.bytes().all(|b| b == b'*')
}

fn matcher(glob: &str) -> Result<GlobMatcher, BadGlob> {
    let parsed = Glob::new(glob).map_err(|source| BadGlob { glob: glob.to_owned(), source })?;
    Ok(parsed.compile_matcher())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::DomainType;

    fn grants(entries: &[(&str, &[&str], bool)]) -> Grants {
        let entry = |(name, backends, join): &(&str, &[&str], bool)| {
            let backends = backends.iter().map(|glob| (*glob).to_owned()).collect();
            ((*name).to_owned(), Grant { backends, join: *join, domains: None })
        };
        Grants::new(&entries.iter().map(entry).collect()).expect("globs")
    }

    fn may(grants: &Grants, namespace: &str, backend: &str) -> (bool, bool) {
        let service = ServiceKey { namespace: namespace.into(), name: "api".into() };
        let name = backend.parse().expect("a name");
        (grants.may_make(&service, &name), grants.may_join(&service, &name))
    }

    #[test]
    fn without_an_entry_any_backend_may_be_made_and_only_the_derived_one_joined() {
        let none = grants(&[]);
        assert_eq!(may(&none, "default", "shop"), (true, false));
        assert_eq!(may(&none, "default", "api"), (true, true));
        assert_eq!(may(&none, "team-a", "team_a.api"), (true, true));
        assert_eq!(may(&none, "team-a", "api"), (true, false));
    }

    #[test]
    fn an_entry_says_all_that_its_namespace_may() {
        let one = grants(&[("team-*", &["shop", "b-*"], false), ("ops", &[], true)]);
        assert_eq!(may(&one, "team-a", "shop"), (true, false));
        assert_eq!(may(&one, "team-a", "b-1"), (true, false));
        assert_eq!(may(&one, "team-a", "other"), (false, false));
        assert_eq!(may(&one, "team-a", "team_a.api"), (true, false), "the derived one may always be made");
        assert_eq!(may(&one, "ops", "fallback"), (false, true));
        assert_eq!(may(&one, "default", "other"), (true, false), "it has no entry");
    }

    #[test]
    fn the_most_specific_entry_counts() {
        let some = grants(&[
            ("*", &["any"], false),
            ("team-*", &["glob"], false),
            ("team-b*", &["longer"], false),
            ("team-b", &["name"], false),
        ]);
        let listed = |namespace| {
            let names = ["any", "glob", "longer", "name"].into_iter();
            names.filter(|name| may(&some, namespace, name).0).collect::<Vec<_>>()
        };
        assert_eq!(listed("other"), ["any"]);
        assert_eq!(listed("team-a"), ["glob"]);
        assert_eq!(listed("team-bb"), ["longer"]);
        assert_eq!(listed("team-b"), ["name"]);
    }

    fn claims(entries: &[(&str, &[&str])], namespace: &str, host: &str) -> bool {
        let entry = |(name, globs): &(&str, &[&str])| {
            let domains = (!globs.is_empty()).then(|| globs.iter().map(|glob| (*glob).to_owned()).collect());
            ((*name).to_owned(), Grant { domains, ..Grant::default() })
        };
        let grants = Grants::new(&entries.iter().map(entry).collect()).expect("globs");
        let (host, by) = match (host.strip_suffix('*'), host.strip_prefix('~')) {
            (Some(beginning), _) => (beginning, DomainType::Prefix),
            (_, Some(regex)) => (regex, DomainType::Regex),
            _ => (host, DomainType::Exact),
        };
        let host = HostPattern::parse(host, by).expect("a host");
        grants.may_claim(&ServiceKey { namespace: namespace.into(), name: "api".into() }, &host).is_ok()
    }

    #[test]
    fn a_namespace_claims_only_the_hosts_that_its_entry_lists() {
        let entries: &[(&str, &[&str])] =
            &[("team-*", &["*.Example.com", "one.org", "app-*"]), ("ops", &["*"]), ("b", &[])];
        for host in
            ["a.example.com", "a.b.example.com", "*.example.com", "*.b.example.com", "one.org", "app-1*", "app-x.net"]
        {
            assert!(claims(entries, "team-a", host), "{host}");
        }
        for host in
            ["example.com", "badexample.com", "*.com", "*.one.org", "two.org", "app*", "a*", "~^a\\.example\\.com$"]
        {
            assert!(!claims(entries, "team-a", host), "{host}");
            assert!(claims(entries, "ops", host), "{host}");
        }
        assert!(!claims(&[("team-*", &["?.example.com"])], "team-a", "*.example.com"), "it matches one character only");
    }

    #[test]
    fn a_host_that_is_listed_for_a_namespace_is_left_to_it() {
        let entries: &[(&str, &[&str])] = &[("team-a", &["*.a.com", "one.org"]), ("ops", &["*"]), ("b", &[])];
        for namespace in ["default", "b"] {
            for host in ["x.a.com", "*.a.com", "*.x.a.com", "*.com", "one.org", "*.org", "app*", "~a"] {
                assert!(!claims(entries, namespace, host), "{namespace} {host}");
            }
            for host in ["a.com", "b.com", "*.b.com", "x.one.org"] {
                assert!(claims(entries, namespace, host), "{namespace} {host}");
            }
        }
        assert!(claims(&[("ops", &["*"])], "default", "app*"), "what is listed for all is left to nobody");
    }

    #[test]
    fn what_is_no_glob_is_named() {
        let entries = BTreeMap::from([("a[".to_owned(), Grant::default())]);
        assert!(Grants::new(&entries).expect_err("no glob").to_string().contains("a["));
    }
}
