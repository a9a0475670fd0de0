//! What HAProxy has: its configuration text at one version, read into the types of the desired state.
//!
//! Both planes read the text. It is the one form in which everything stands (foreign lines, defaults,
//! comments), it comes with its version in one answer, and what one plane has written the other reads.

use std::collections::{BTreeMap, BTreeSet};

use crate::desired::{BackendName, Mark, Server, ServerName, ServiceKey, Settings, Tenant};
use crate::haproxy::parse::{self, ServerLine};
use crate::haproxy::text::{ConfigText, Directive, Section};

/// Whose a backend is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// Ours, made for these services.
    Ours(BTreeSet<ServiceKey>),
    /// A person's, or another controller's.
    Theirs,
}

/// One backend of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedBackend {
    /// Where it stands. A `listen` section takes its name too, but can't be given servers.
    pub section: Section,
    /// Whose it is.
    pub owner: Owner,
    /// Its settings, where it is ours and says only what we would write.
    pub settings: Option<Settings>,
    /// Its mode, stated or inherited.
    pub mode: String,
    /// Its algorithm, stated or inherited.
    pub balance: String,
    /// The servers of ours.
    pub servers: Vec<Server>,
    /// Servers of ours whose line was changed by somebody.
    pub drifted: BTreeSet<ServerName>,
    /// The names of the others' servers.
    pub foreign: BTreeSet<String>,
}

/// The observed state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// The version that a write must name.
    pub version: u64,
    /// The whole text.
    pub text: ConfigText,
    /// Every backend and listen section.
    pub backends: BTreeMap<String, ObservedBackend>,
    /// The defaults section that a new backend names: the last one, where the other sections name
    /// theirs. HAProxy warns of each section in a file that mixes both.
    pub defaults: Option<String>,
}

#[derive(Clone, Default)]
struct Inherited {
    mode: Option<String>,
    balance: Option<String>,
}

impl Observed {
    /// Reads a text.
    pub fn new(version: u64, text: ConfigText, mark: &Mark) -> Self {
        let mut backends = BTreeMap::new();
        let mut named: BTreeMap<String, Inherited> = BTreeMap::new();
        let mut last = Inherited::default();
        let (mut defaults, mut explicit) = (None, false);
        for section in text.sections() {
            let directives: Vec<Directive> = text.directives(&section).map(|(_, directive)| directive).collect();
            explicit |= section.from.is_some() && section.kind != "defaults";
            let above = section.from.as_ref().and_then(|from| named.get(from).cloned());
            match section.kind.as_str() {
                "defaults" => {
                    // A defaults section starts from HAProxy's own defaults, or from the one it names.
                    last = inherit(above.unwrap_or_default(), &directives);
                    defaults = (!section.name.is_empty()).then(|| section.name.clone());
                    named.insert(section.name.clone(), last.clone());
                }
                "backend" | "listen" => {
                    let effective = inherit(above.unwrap_or_else(|| last.clone()), &directives);
                    let backend = observed_backend(section, &directives[1..], effective, mark);
                    backends.insert(backend.section.name.clone(), backend);
                }
                _ => {}
            }
        }
        Self { version, text, backends, defaults: defaults.filter(|_| explicit) }
    }

    /// The namespaces of the services that HAProxy serves by us: a list of Nomad's that leaves one out
    /// may have been shortened by missing rights.
    pub fn namespaces(&self) -> BTreeSet<String> {
        self.backends
            .values()
            .filter_map(|backend| match &backend.owner {
                Owner::Ours(services) => Some(services.iter().map(|service| service.namespace.clone())),
                Owner::Theirs => None,
            })
            .flatten()
            .collect()
    }

    /// When the first of the drains ends, in seconds since 1970.
    pub fn next_drain(&self) -> Option<u64> {
        let servers = self.backends.values().flat_map(|backend| &backend.servers);
        servers
            .filter_map(|server| match server.tenant {
                Tenant::Free { drain_until, .. } => drain_until,
                Tenant::Instance { .. } => None,
            })
            .min()
    }

    /// Everything that is not ours, without looks: by section, its directives as sorted words. The Data
    /// Plane API renders directives in an order of its own and writes `from` out; comments move along.
    pub fn foreign(&self) -> BTreeMap<(String, String), Vec<String>> {
        let text = &self.text;
        let mut sections: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
        for section in text.sections() {
            let backend = self.backends.get(&section.name).filter(|backend| backend.section == section);
            let ours = |name: &str| {
                backend.is_some_and(|backend| {
                    backend.servers.iter().any(|server| server.name.as_str() == name)
                        || backend.drifted.iter().any(|server| server.as_str() == name)
                })
            };
            let all_ours = backend.is_some_and(ObservedBackend::is_ours);
            let lines = text.directives(&section).skip(1).filter(|(_, directive)| match directive.keyword() {
                "server" => !ours(directive.words.get(1).map_or("", String::as_str)),
                _ => !all_ours,
            });
            let mut lines: Vec<String> = lines.filter_map(|(at, _)| meaning(&text.lines()[at])).collect();
            lines.sort_unstable();
            if !(all_ours && lines.is_empty()) {
                // The API gives a defaults section without a name one of its own.
                let name = if section.name.starts_with("unnamed_defaults_") { String::new() } else { section.name };
                sections.entry((section.kind, name)).or_default().extend(lines);
            }
        }
        sections
    }

    /// A backend by its name.
    pub fn backend(&self, name: &BackendName) -> Option<&ObservedBackend> {
        self.backends.get(name.as_str())
    }

    /// The backends that are ours or hold servers of ours, with their names.
    pub fn managed(&self) -> impl Iterator<Item = (BackendName, &ObservedBackend)> {
        self.backends.iter().filter(|(_, backend)| backend.is_managed()).filter_map(|(name, backend)| {
            // HAProxy takes names that our own rule does not; none of those is ours.
            Some((name.parse().ok()?, backend))
        })
    }
}

impl ObservedBackend {
    /// Whether the backend is ours.
    pub fn is_ours(&self) -> bool {
        matches!(self.owner, Owner::Ours(_))
    }

    /// Whether anything in it is ours.
    pub fn is_managed(&self) -> bool {
        self.is_ours() || !self.servers.is_empty() || !self.drifted.is_empty()
    }
}

/// A directive as what it means: the API writes options in an order of its own, and times in other units.
fn meaning(line: &str) -> Option<String> {
    let mut words = Directive::parse(line).words;
    for word in &mut words {
        if let Some(time) = parse::time(word) {
            *word = format!("{}us", time.as_micros());
        }
    }
    words.get_mut(1..).map(<[String]>::sort);
    (!words.is_empty()).then(|| words.join("\u{1f}"))
}

fn inherit(above: Inherited, directives: &[Directive]) -> Inherited {
    directives.iter().fold(above, |mut inherited, directive| {
        match directive.keyword() {
            "mode" => inherited.mode = directive.words.get(1).cloned(),
            "balance" => inherited.balance = Some(directive.words[1..].join(" ")),
            _ => {}
        }
        inherited
    })
}

fn observed_backend(section: Section, directives: &[Directive], effective: Inherited, mark: &Mark) -> ObservedBackend {
    let description = directives.iter().find(|d| d.keyword() == "description").map(|d| d.words[1..].join(" "));
    let owner = match description.and_then(|text| mark.services(&text)) {
        Some(services) if section.kind == "backend" => Owner::Ours(services),
        _ => Owner::Theirs,
    };
    let settings = match owner {
        Owner::Ours(_) => parse::settings(directives.iter().filter(|directive| directive.keyword() != "server")),
        Owner::Theirs => None,
    };
    let mut backend = ObservedBackend {
        section,
        owner,
        settings,
        mode: effective.mode.unwrap_or_else(|| "tcp".to_owned()),
        balance: effective.balance.unwrap_or_else(|| "roundrobin".to_owned()),
        servers: Vec::new(),
        drifted: BTreeSet::new(),
        foreign: BTreeSet::new(),
    };
    for directive in directives.iter().filter(|directive| directive.keyword() == "server") {
        match parse::server(directive, mark) {
            ServerLine::Ours(_, Some(server)) => backend.servers.push(server),
            ServerLine::Ours(name, None) => {
                backend.drifted.insert(name);
            }
            ServerLine::Theirs(name) => {
                backend.foreign.insert(name);
            }
        }
    }
    backend
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
defaults tcp
  mode tcp
defaults web from tcp
  balance leastconn
backend theirs
  server a 127.0.0.1:1
backend ours
  description nomad-haproxy:nomad team-a/api
  mode http
  balance roundrobin
  retries 3
  option redispatch 1
  server ours_1 127.0.0.1:1 # {"owner":"nomad","id":"x","alloc":"y"}
  server ours_2 127.0.0.1:1 disabled # {"owner":"nomad","id":"x","alloc":"y"}
  server hand 127.0.0.1:3
backend other from tcp
  description nomad-haproxy:another default/api
listen both
  description nomad-haproxy:nomad default/api
"#;

    #[test]
    fn ours_theirs_and_what_is_inherited() {
        let observed = Observed::new(1, ConfigText::new(TEXT), &"nomad".parse().expect("an owner"));
        let ours = &observed.backends["ours"];
        assert!(ours.is_ours() && ours.settings.is_some());
        assert_eq!((ours.servers.len(), ours.drifted.len(), ours.foreign.len()), (1, 1, 1));
        let theirs = &observed.backends["theirs"];
        assert_eq!((theirs.mode.as_str(), theirs.balance.as_str(), theirs.is_managed()), ("tcp", "leastconn", false));
        assert_eq!(observed.backends["other"].balance, "roundrobin");
        assert!(!observed.backends["other"].is_ours() && !observed.backends["both"].is_ours());
        assert_eq!(observed.defaults.as_deref(), Some("web"));
        assert_eq!(observed.namespaces(), BTreeSet::from(["team-a".to_owned()]));
    }

    fn foreign(text: &str) -> BTreeMap<(String, String), Vec<String>> {
        Observed::new(1, ConfigText::new(text), &"nomad".parse().expect("an owner")).foreign()
    }

    #[test]
    fn what_the_api_renders_anew_is_the_same_in_meaning() {
        let by_hand = "# shop\nglobal\n   maxconn 100\ndefaults\n mode http\n timeout   client 30000\nbackend theirs\n  server a 127.0.0.1:1 weight 3 check\n";
        let rendered = "global\n  maxconn 100\n\ndefaults unnamed_defaults_1\n  timeout client 30s\n  mode http\n\nbackend theirs\n  server a 127.0.0.1:1 check weight 3 # shop\n";
        assert_eq!(foreign(by_hand), foreign(rendered));
    }

    #[test]
    fn a_foreign_line_that_is_lost_is_seen_and_ours_do_not_count() {
        let base = "backend theirs\n  server a 127.0.0.1:1\n";
        let with_ours = format!(
            "{base}  server b 127.0.0.1:2 # {{\"owner\":\"nomad\",\"freed\":\"1\"}}\nbackend ours\n  description nomad-haproxy:nomad\n  mode http\n"
        );
        assert_eq!(foreign(base), foreign(&with_ours));
        assert_ne!(foreign(base), foreign("backend theirs\n"));
    }
}
