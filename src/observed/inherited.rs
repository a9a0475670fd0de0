//! What sections inherit from `defaults`, those of the other files that HAProxy was started with included.

use std::collections::{BTreeMap, BTreeSet};

use crate::haproxy::default_server::ServerDefaults;
use crate::haproxy::text::{ConfigText, Directive, Section};

/// What a section inherits. The default is that of a section whose `defaults` are not known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Inherited {
    pub(super) mode: Option<String>,
    pub(super) balance: Option<String>,
    pub(super) default_backend: Option<String>,
    pub(super) weight: Option<u16>,
    pub(super) agent_check: bool,
    pub(super) servers: Option<ServerDefaults>,
}

/// The `defaults` sections above some line. A section inherits from the one that it names, else from the last one, also
/// if that is in another file (seen on 3.0, 3.2 and 3.4). The default is that nothing is known of those files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Above {
    last: Inherited,
    named: BTreeMap<String, Inherited>,
}

impl Above {
    /// Above the first section of the first file.
    fn nothing() -> Self {
        Self { last: Inherited::of_haproxy(), named: BTreeMap::new() }
    }

    /// Goes past a `defaults` section, and returns what it gives.
    pub(super) fn pass(&mut self, section: &Section, directives: &[Directive]) -> &Inherited {
        let above = if section.from.is_some() { self.of(section) } else { Inherited::of_haproxy() };
        self.last = inherit(above, directives);
        self.named.insert(section.name.clone(), self.last.clone());
        &self.last
    }

    /// What the last one gives.
    pub(super) fn last(&self) -> &Inherited {
        &self.last
    }

    /// What another section inherits.
    pub(super) fn of(&self, section: &Section) -> Inherited {
        match &section.from {
            // HAProxy refuses a name that is not above, so it is in a file that is not known.
            Some(from) => self.named.get(from).cloned().unwrap_or_default(),
            None => self.last.clone(),
        }
    }
}

impl Inherited {
    /// HAProxy's own defaults.
    fn of_haproxy() -> Self {
        Self { servers: Some(ServerDefaults::default()), ..Self::default() }
    }
}

/// What the other files that HAProxy was started with say, as far as our file depends on it. The default is that nothing
/// is known of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Beside {
    pub(super) above: Above,
    pub(super) has_client_tls: bool,
}

impl Beside {
    /// Reads all other files; HAProxy reads `before` before ours.
    pub fn new(before: &[ConfigText], after: &[ConfigText]) -> Self {
        let (mut above, mut client_tls) = (Above::nothing(), false);
        for text in before {
            let sections = text.sections();
            client_tls |= has_client_tls(text, &sections);
            for section in sections.iter().filter(|section| section.kind == "defaults") {
                let directives: Vec<Directive> = text.directives(section).map(|(_, directive)| directive).collect();
                above.pass(section, &directives);
            }
        }
        client_tls |= after.iter().any(|text| has_client_tls(text, &text.sections()));
        Self { above, has_client_tls: client_tls }
    }

    /// Whether a file may depend on others: it has no `global`, or not all that its sections inherit.
    pub(super) fn matters_to(sections: &[Section]) -> bool {
        let first = |kinds: &[&str]| sections.iter().position(|section| kinds.contains(&section.kind.as_str()));
        let defaults = sections.iter().filter(|section| section.kind == "defaults");
        let names: BTreeSet<&str> = defaults.map(|section| section.name.as_str()).collect();
        let proxy = first(&["frontend", "listen", "backend"]);
        let inherits = first(&["defaults"]).is_some_and(|defaults| proxy.is_none_or(|proxy| defaults < proxy));
        let mut from = sections.iter().filter_map(|section| section.from.as_deref());
        first(&["global"]).is_none() || !inherits || !from.all(|from| names.contains(from))
    }
}

/// Whether a `global` section says something of the TLS of HAProxy's own HTTP client.
pub(super) fn has_client_tls(text: &ConfigText, sections: &[Section]) -> bool {
    let of_client = |directive: &Directive| directive.keyword().starts_with("httpclient.ssl.");
    let mut global = sections.iter().filter(|section| section.kind == "global");
    global.any(|section| text.directives(section).any(|(_, directive)| of_client(&directive)))
}

pub(super) fn inherit(above: Inherited, directives: &[Directive]) -> Inherited {
    directives.iter().fold(above, |mut inherited, directive| {
        match directive.keyword() {
            "mode" => inherited.mode = directive.words.get(1).cloned(),
            "default_backend" => inherited.default_backend = directive.words.get(1).cloned(),
            "balance" => inherited.balance = Some(directive.words[1..].join(" ")),
            // What is in a conditional block may or may not be in effect.
            keyword if keyword.starts_with('.') => inherited.servers = None,
            "default-server" => {
                inherited.servers = inherited.servers.and_then(|servers| servers.with(&directive.words[1..]));
                let mut words = directive.words.iter().map(String::as_str);
                while let Some(word) = words.next() {
                    match word {
                        "agent-check" => inherited.agent_check = true,
                        "no-agent-check" => inherited.agent_check = false,
                        "weight" => inherited.weight = words.next().and_then(|weight| weight.parse().ok()),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        inherited
    })
}
