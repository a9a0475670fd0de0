//! What haproxy-nomad-connector made: servers in backends, whole backends, and rules of frontends.

use std::collections::{BTreeMap, BTreeSet};

use crate::desired::{BackendName, DomainType, HostPattern, Owner, Server};
use crate::haproxy::connector::{self, ConnectorCheck, ConnectorServer};
use crate::haproxy::parse;
use crate::haproxy::text::{ConfigText, Directive, Section};

/// Its part of a backend.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ByConnector {
    /// Its servers, by their lines, from 0.
    pub servers: BTreeMap<usize, ConnectorServer>,
    /// Whether there is nothing else in the backend, but for servers of ours.
    pub is_whole: bool,
    /// The request of its health check; without one it only connects, or does not check.
    pub check: Option<ConnectorCheck>,
}

impl ByConnector {
    /// Reads the directives of a backend.
    pub(super) fn new(
        text: &ConfigText,
        section: &Section,
        lines: &[usize],
        directives: &[Directive],
        owner: &Owner,
    ) -> Self {
        if section.kind != "backend" || directives.iter().any(|directive| directive.keyword().starts_with('.')) {
            return Self::default();
        }
        let (mut servers, mut only_its, mut rest) = (BTreeMap::new(), true, Vec::new());
        for (line, directive) in lines.iter().zip(directives) {
            match connector::server(&section.name, directive) {
                Some(server) => drop(servers.insert(*line, server)),
                None if directive.keyword() == "server" => {
                    only_its &= parse::mark(directive).is_some_and(|mark| owner.has(&mark.owner));
                }
                None => rest.push(directive),
            }
        }
        if servers.is_empty() {
            return Self::default();
        }
        let is_whole = only_its && connector::is_backend(rest);
        let check = lines.iter().find_map(|line| connector::check(&text.lines()[*line]));
        Self { servers, is_whole, check }
    }

    /// Its servers that send requests to the same place as one of these.
    pub fn same_as<'a>(&'a self, servers: &'a [Server]) -> impl Iterator<Item = &'a ConnectorServer> {
        let is_same = |theirs: &ConnectorServer, ours: &Server| {
            ours.is_enabled() && (&ours.address, ours.port) == (&theirs.address, theirs.port)
        };
        self.servers.values().filter(move |theirs| servers.iter().any(|ours| is_same(theirs, ours)))
    }
}

/// One of its rules: what a host is routed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectorRule {
    /// The lines of the ACL and of the rule, from 0.
    pub lines: [usize; 2],
    /// The host, or the regular expression.
    pub host: String,
    /// Whether it is a regular expression.
    pub is_regex: bool,
    /// Where its requests go.
    pub backend: BackendName,
}

impl ConnectorRule {
    /// Its rules of a frontend. Not those whose ACL is used elsewhere, too, or that come before a rule of a person, as
    /// ours would come behind that one.
    pub(super) fn all(text: &ConfigText, lines: &[usize], directives: &[Directive], owner: &Owner) -> Vec<Self> {
        let is_its = |line: usize| connector::acl(&text.lines()[line]);
        let mut rules = Vec::new();
        if directives.iter().any(|directive| directive.keyword().starts_with('.')) {
            return rules;
        }
        let acls: Vec<_> = lines.iter().filter_map(|line| Some((*line, is_its(*line)?))).collect();
        for (line, directive) in lines.iter().zip(directives) {
            let of_acl = acls.iter().find_map(|(at, acl)| Some((*at, acl, connector::rule(directive, &acl.name)?)));
            match of_acl {
                Some((at, acl, backend)) if is_used_once(&acl.name, directives) => {
                    let Ok(backend) = backend.parse() else { continue };
                    let (host, is_regex) = (acl.host.clone(), acl.is_regex);
                    rules.push(Self { lines: [at, *line], host, is_regex, backend });
                }
                _ if directive.keyword() == "use_backend" && !super::frontends::is_ours(directive, owner) => {
                    rules.clear();
                }
                _ => {}
            }
        }
        rules
    }

    /// The hosts of a route of ours that takes its place. What the connector calls a prefix it compares as a whole.
    pub fn patterns(&self) -> BTreeSet<HostPattern> {
        let kinds = match self.is_regex {
            true => &[DomainType::Regex][..],
            false => &[DomainType::Exact, DomainType::Prefix],
        };
        kinds.iter().filter_map(|kind| HostPattern::parse(&self.host, *kind).ok()).collect()
    }
}

/// Whether an ACL is declared once, and used by one directive.
fn is_used_once(acl: &str, directives: &[Directive]) -> bool {
    let has = |directive: &&Directive| directive.words.iter().any(|word| word.trim_start_matches('!') == acl);
    directives.iter().filter(has).count() == 2
}

#[cfg(test)]
mod tests {
    use super::super::Observed;
    use super::*;

    /// What the connector wrote through the Data Plane API 3.2. Read when it runs: an image is built without fixtures.
    fn written() -> String {
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/connector/connector.cfg"))
            .expect("a file")
    }

    fn read(text: &str) -> Observed {
        Observed::new(1, ConfigText::new(text), &"nomad".parse().expect("an owner"))
    }

    #[test]
    fn all_that_the_connector_wrote_is_recognised_and_nothing_of_a_person() {
        let observed = read(&written());
        let found = |name: &str| {
            let by = &observed.backends[name].by_connector;
            (by.servers.len(), by.is_whole)
        };
        for (name, servers) in [("api_service", 2), ("pages", 2), ("plain", 1), ("prefix", 1), ("regex", 1), ("tcp", 1)]
        {
            assert_eq!(found(name), (servers, true), "{name}");
        }
        assert_eq!(found("shop"), (1, false), "a person's backend");
        let check = observed.backends["regex"].by_connector.check.clone().expect("a check");
        assert_eq!((check.path.as_str(), check.host.as_deref()), ("/", Some("^r[0-9]\\.example\\.com$")));
        assert_eq!(observed.backends["tcp"].by_connector.check, None);
        let rules = &observed.frontends["web"].by_connector;
        let backends: Vec<_> = rules.iter().map(|rule| (rule.backend.as_str(), rule.is_regex)).collect();
        assert_eq!(backends, [("prefix", false), ("regex", true), ("api_service", false)]);
    }

    #[test]
    fn a_rule_that_a_person_relies_on_is_a_persons() {
        let rules = |text: &str| read(text).frontends["web"].by_connector.len();
        let first = "  use_backend prefix if is_prefix_695252f6\n";
        let deny = "  http-request deny if !is_prefix_695252f6\n";
        assert_eq!(rules(&written().replace(first, &format!("{deny}{first}"))), 2);
        assert_eq!(rules(&written().replace(first, &format!("  use_backend shop if TRUE\n{first}"))), 3);
        assert_eq!(rules(&written().replace(first, &format!("{first}  use_backend shop if TRUE\n"))), 2);
    }
}
