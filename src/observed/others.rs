//! What carries the mark of another owner: a controller of another cluster that shares this HAProxy, or this one before
//! its `haproxy.owner` was changed.

use std::collections::{BTreeMap, BTreeSet};

use crate::desired::{Described, InstanceId, Owner, ServiceKey};
use crate::haproxy::parse::{self, Mark};
use crate::haproxy::text::Directive;

/// What carries the mark of one other owner.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Other {
    /// The backends that it marked, or that have servers which it marked.
    pub backends: BTreeSet<String>,
    /// The services that they are for.
    pub services: BTreeSet<ServiceKey>,
    /// The instances in them.
    pub instances: BTreeSet<InstanceId>,
}

/// By owner.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Others(BTreeMap<String, Other>);

impl Others {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Other)> {
        self.0.iter().map(|(owner, other)| (owner.as_str(), other))
    }

    /// Reads a directive of a backend, if it carries a mark that is not one of `owner`.
    pub(super) fn read(&mut self, backend: &str, directive: &Directive, owner: &Owner) {
        match directive.keyword() {
            "description" => {
                let Some((name, Described { services, .. })) = Owner::read(&directive.words[1..].join(" ")) else {
                    return;
                };
                if !owner.has(&name) {
                    self.of(name, backend).services.extend(services);
                }
            }
            "server" => {
                let Some(Mark { owner: name, instance, service }) = parse::mark(directive) else { return };
                if !owner.has(&name) {
                    let other = self.of(name, backend);
                    other.services.extend(service);
                    other.instances.extend(instance);
                }
            }
            _ => {}
        }
    }

    fn of(&mut self, owner: String, backend: &str) -> &mut Other {
        let other = self.0.entry(owner).or_default();
        other.backends.insert(backend.to_owned());
        other
    }
}
