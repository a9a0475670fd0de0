//! What happens to what nobody needs any more: instances that are gone, and backends without a service.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::desired::{Backend, Held, Occupant, Server, State};
use crate::observed::ObservedBackend;
use crate::plane::Capabilities;

use super::{Edit, Options, ServerEdit, differences, live, only_servers, slots};

/// What happens to a backend that no service needs any more.
pub(super) struct Removal {
    /// What is done now.
    pub(super) now: Option<Edit>,
    /// Until when it stays without instances, since 1970, unless there is a reload before.
    pub(super) lingers_until: Option<Duration>,
}

/// It is emptied at once, and deleted when it has been empty for a while or when there is a reload anyway: so rolling,
/// or stopping and starting, a service of one instance costs no reload. A server that a person put into our backend
/// keeps it, and one that drains keeps it until the drain is over. `stays`: HAProxy refuses to lose it, as a frontend
/// names it, or a service of it is held, so it stays without the instances that are gone.
pub(super) fn removal(observed: &ObservedBackend, held: &Held, options: &Options, stays: bool) -> Removal {
    let freed = slots::vacate(&observed.servers, |occupant| held.keeps(occupant), options.now);
    let emptied = vacated(observed, &freed);
    if stays || freed.iter().any(|server| server.state() != State::Maint) {
        return Removal { now: emptied, lingers_until: None };
    }
    if !observed.is_ours() || !observed.foreign.is_empty() {
        return Removal { now: only_servers(observed, &[], options.capabilities), lingers_until: None };
    }
    let since = Duration::from_millis(freed.iter().filter_map(Server::freed).max().unwrap_or_default());
    let until = since.saturating_add(options.linger);
    // A server without an instance may be put into service by its agent.
    if options.linger.is_zero() || until <= options.now || observed.agent_check.now {
        let is_live = live::deletes(options.capabilities, observed);
        return Removal { now: Some(Edit::Delete { is_live }), lingers_until: None };
    }
    Removal { now: emptied, lingers_until: Some(until) }
}

/// A backend that is left as it is, except for the instances that are gone: no instance stays in service because
/// HAProxy refuses something else.
pub(super) fn without_the_gone(
    desired: &Backend,
    observed: &ObservedBackend,
    held: &Held,
    now: Duration,
) -> Option<Edit> {
    let present: BTreeSet<_> = desired.instances.iter().map(|instance| &instance.id).collect();
    let stays = |occupant: &Occupant| occupant.id().is_some_and(|id| present.contains(id)) || held.keeps(occupant);
    vacated(observed, &slots::vacate(&observed.servers, stays, now))
}

/// Only the edits that free slots: a line that a person changed is left for later.
pub(super) fn vacated(observed: &ObservedBackend, servers: &[Server]) -> Option<Edit> {
    let mut edits = differences(observed, servers, Capabilities::default());
    edits.retain(|edit| matches!(edit, ServerEdit::Set { before: Some(_), .. }));
    (!edits.is_empty()).then_some(Edit::Servers(edits))
}

/// Whether it belongs to a service that is held, with or without an instance.
pub(super) fn is_held(observed: &ObservedBackend, held: &Held) -> bool {
    observed.ownership.services().iter().any(|service| held.holds(service))
}
