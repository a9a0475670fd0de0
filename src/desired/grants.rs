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
use super::{BackendName, ServiceKey};

/// The content of one entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grant {
    /// Globs of backends that its services may make or share, beside the one with the derived name.
    pub backends: Vec<String>,
    /// Whether they may join backends that are not ours.
    pub join: bool,
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
}

impl Grants {
    /// Takes the entries by their names or globs.
    pub fn new(entries: &BTreeMap<String, Grant>) -> Result<Self, BadGlob> {
        let mut entries: Vec<_> = entries.iter().collect();
        let is_glob = |name: &str| name.contains(['*', '?', '[', '{', '\\']);
        entries.sort_by_key(|(name, _)| (is_glob(name), Reverse(name.len())));
        let rule = |(name, grant): (&String, &Grant)| {
            let Grant { backends, join } = grant;
            let backends = backends.iter().map(|glob| matcher(glob)).collect::<Result<_, _>>()?;
            Ok(Rule { namespaces: matcher(name)?, backends, join: *join })
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

    /// Whether an entry allows joining beyond the name that is derived from the service.
    pub(super) fn allows_join(&self, service: &ServiceKey) -> bool {
        self.rule(service).is_some_and(|rule| rule.join)
    }
}

fn is_derived(service: &ServiceKey, name: &BackendName) -> bool {
    derived_name(service) == name.as_str()
}

fn matcher(glob: &str) -> Result<GlobMatcher, BadGlob> {
    let parsed = Glob::new(glob).map_err(|source| BadGlob { glob: glob.to_owned(), source })?;
    Ok(parsed.compile_matcher())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(entries: &[(&str, &[&str], bool)]) -> Grants {
        let entry = |(name, backends, join): &(&str, &[&str], bool)| {
            let backends = backends.iter().map(|glob| (*glob).to_owned()).collect();
            ((*name).to_owned(), Grant { backends, join: *join })
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

    #[test]
    fn what_is_no_glob_is_named() {
        let entries = BTreeMap::from([("a[".to_owned(), Grant::default())]);
        assert!(Grants::new(&entries).expect_err("no glob").to_string().contains("a["));
    }
}
