//! The tags of routes: which requests of a frontend go to the service.

use std::collections::BTreeSet;

use crate::desired::{DomainType, FrontendName, HostPattern, Route, RoutePath};

use super::value::needed;

/// How many routes a service may ask for. Two tags of the longest kind would make 200 000 otherwise, for each instance.
const MAX_ROUTES: usize = 5000;

/// Which requests are to be routed to the service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Routing {
    /// `frontend`.
    pub frontend: Option<FrontendName>,
    /// Each of the hosts with each of the paths; without a path all of them.
    pub routes: BTreeSet<Route>,
    /// `domain`, as given: what it means depends on `domain.type`.
    domains: BTreeSet<String>,
    /// `domain.type`.
    pub(super) by: DomainType,
    /// `path`.
    paths: BTreeSet<RoutePath>,
    /// A path or the type of the domains was ignored: without it the routes would match more than is asked for.
    is_incomplete: bool,
}

impl Routing {
    /// Whether there are paths of hosts, and no hosts.
    pub fn lacks_domain(&self) -> bool {
        !self.paths.is_empty() && self.domains.is_empty()
    }

    /// Whether there is no tag for hosts, a bad one included.
    pub fn has_no_domain(&self) -> bool {
        self.domains.is_empty() && !self.is_incomplete
    }

    /// Takes `domain`.
    pub(super) fn add_domains(&mut self, value: Option<&str>) -> Result<(), String> {
        let domains = list(value).inspect_err(|_| self.is_incomplete = true)?;
        self.domains.extend(domains);
        Ok(())
    }

    /// Takes `domain.type`.
    pub(super) fn set_type(&mut self, value: Option<&str>) -> Result<(), String> {
        self.by = match value {
            Some("exact") => DomainType::Exact,
            Some("prefix") => DomainType::Prefix,
            Some("regex") => DomainType::Regex,
            _ => {
                self.is_incomplete = true;
                return Err("exact, prefix or regex; no domain is routed".to_owned());
            }
        };
        Ok(())
    }

    /// Takes `path`.
    pub(super) fn add_paths(&mut self, value: Option<&str>) -> Result<(), String> {
        let parse = |path: String| RoutePath::parse(&path).map_err(|error| error.to_string());
        match list(value).and_then(|paths| paths.into_iter().map(parse).collect::<Result<BTreeSet<_>, _>>()) {
            Ok(paths) => {
                self.paths.extend(paths);
                Ok(())
            }
            Err(why) => {
                self.is_incomplete = true;
                Err(format!("{why}; no domain is routed"))
            }
        }
    }

    /// Combines hosts and paths, once all tags are read, and returns why hosts are ignored.
    pub(super) fn combine(&mut self) -> Vec<String> {
        let mut ignored = Vec::new();
        if self.is_incomplete {
            return ignored;
        }
        let root = BTreeSet::from([RoutePath::default()]);
        let paths = if self.paths.is_empty() { &root } else { &self.paths };
        if self.domains.len() * paths.len() > MAX_ROUTES {
            let (domains, paths) = (self.domains.len(), paths.len());
            ignored.push(format!(
                "{domains} of them with {paths} paths make more than {MAX_ROUTES} routes; none is routed"
            ));
            return ignored;
        }
        for domain in &self.domains {
            match HostPattern::parse(domain, self.by) {
                Ok(host) => {
                    self.routes.extend(paths.iter().map(|path| Route { host: host.clone(), path: path.clone() }));
                }
                Err(error) => ignored.push(error.to_string()),
            }
        }
        ignored
    }
}

/// `a,b`: values, of which there is one at least.
fn list(value: Option<&str>) -> Result<Vec<String>, String> {
    Ok(needed(value)?.split(',').map(|part| part.trim().to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use crate::desired::tags;

    fn read(tags: &[&str]) -> (Vec<String>, usize) {
        let tags: Vec<String> = tags.iter().map(|tag| format!("haproxy.{tag}")).collect();
        let (intent, complaints) = tags::parse("haproxy.", tags.iter().map(String::as_str));
        (intent.routing.routes.iter().map(ToString::to_string).collect(), complaints.len())
    }

    fn routes(all: &[&str]) -> Vec<String> {
        all.iter().map(|route| (*route).to_owned()).collect()
    }

    #[test]
    fn each_domain_is_routed_with_each_path() {
        let tags = ["domain=A.com, *.b.com", "domain=c.com", "path=/x/,/y"];
        let expected = ["a.com/x", "a.com/y", "c.com/x", "c.com/y", "*.b.com/x", "*.b.com/y"];
        assert_eq!(read(&tags), (routes(&expected), 0));
        assert_eq!(read(&["domain=a.com"]), (routes(&["a.com"]), 0));
        let (intent, _) = tags::parse("haproxy.", ["haproxy.path=/x"]);
        assert!(intent.routing.lacks_domain());
    }

    #[test]
    fn the_type_of_domains_may_come_before_or_behind_them() {
        let is = |tag: &str| read(&["domain=^a[0-9]", tag]);
        assert_eq!(is("domain.type=regex"), (routes(&["~^a[0-9]"]), 0));
        assert_eq!(is("domain.type=exact"), (vec![], 1));
        assert_eq!(read(&["domain.type=prefix", "domain=app."]), (routes(&["app.*"]), 0));
    }

    #[test]
    fn a_bad_domain_leaves_the_others() {
        assert_eq!(read(&["domain=a b,ok.com,,x:80", "frontend=a b"]), (routes(&["ok.com"]), 4));
    }

    #[test]
    fn two_tags_do_not_make_more_routes_than_fit() {
        let list = |one: fn(usize) -> String, count| (0..count).map(one).collect::<Vec<_>>().join(",");
        let hosts = format!("domain={}", list(|n| format!("h{n}"), 100));
        let paths = |count| format!("path={}", list(|n| format!("/{n}"), count));
        let count = |paths: &str| read(&[&hosts, paths]).0.len();
        assert_eq!((count(&paths(50)), count(&paths(51))), (5000, 0));
        assert_eq!(read(&[&hosts, &paths(51)]).1, 1);
    }

    #[test]
    fn without_a_path_that_was_asked_for_a_domain_would_match_too_much() {
        assert_eq!(read(&["domain=a.com", "path=/ok,bad"]), (vec![], 1));
        assert_eq!(read(&["domain=a.com", "path=/ok", "path"]), (vec![], 1));
        assert_eq!(read(&["domain=a.com", "domain.type=glob"]), (vec![], 1));
    }
}
