//! What to change in the running process so that it agrees with a configuration.
//!
//! There is one computation for a planned change and for a repair: from the servers as the process has them, the
//! configuration before (which instance was in which slot), and the one after. If the last pass verified the process,
//! [`Runtime::of`] the old configuration stands for the process.

use std::collections::{BTreeMap, BTreeSet};

use crate::desired::{Address, BackendName, Server, ServerName, State};
use crate::observed::{Observed, ObservedBackend};
use crate::plane::{Runtime, RuntimeServer, StateChange};

use super::{Action, Growth, NewServer};

/// The changes of the process, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// First, before the file is written and whether or not that succeeds: instances that are gone get no more traffic.
    pub out: Vec<StateChange>,
    /// With the file: new servers, addresses, weights, and instances that come in.
    pub rest: Vec<Action>,
    /// Servers that the file before has and the process lacks, where it takes none at run time, or has without an
    /// address (their host name did not resolve, and then the process accepts no other address; seen on 3.0, 3.2 and
    /// 3.4): only a reload helps.
    pub lacks: Vec<(BackendName, ServerName)>,
    /// Last: servers that the process has and the file after does not, where it takes and loses servers at run time.
    /// They are out of service, and removed once nobody is connected to them.
    pub surplus: Vec<(BackendName, ServerName)>,
}

impl Changes {
    /// Computes them. Checks and health are ignored: those belong to HAProxy.
    pub fn new(process: &Runtime, before: &Observed, after: &Observed, growth: &Growth) -> Self {
        let mut changes = Self::default();
        for (name, section) in after.managed() {
            let old = servers(before.backend(&name));
            // A backend that the process does not have yet is loaded with its servers.
            let is_there = before.backend(&name).is_some();
            for server in &section.servers {
                let known = old.get(&server.name).copied();
                match process.server(&name, &server.name) {
                    Some(running) => Seat { backend: &name, section, server, known, running }.changes(&mut changes),
                    None if is_there && let Some(new) = growth.of(&name, section, server) => {
                        changes.add(&name, server, new);
                    }
                    None if known.is_some() => changes.lacks.push((name.clone(), server.name.clone())),
                    None => {}
                }
            }
        }
        for (name, section) in before.managed() {
            let left = servers(after.backend(&name));
            let ours = section.servers.iter().map(|server| &server.name).chain(&section.drifted);
            for server in ours.filter(|server| !left.contains_key(server)) {
                let running = process.server(&name, server).is_some_and(|running| running.state != State::Maint);
                if running && after.backend(&name).is_none_or(|after| !after.drifted.contains(server)) {
                    changes.out.push(StateChange {
                        backend: name.clone(),
                        server: server.clone(),
                        state: State::Maint,
                    });
                }
            }
        }
        if growth.removes() {
            changes.find_surplus(process, before, after);
        }
        changes
    }

    /// Servers are ours by their names. In a backend of a person, who may have added some without the file, only one that
    /// is in maintenance is: that is how we leave it.
    fn find_surplus(&mut self, process: &Runtime, before: &Observed, after: &Observed) {
        let managed: BTreeSet<BackendName> = before.managed().chain(after.managed()).map(|(name, _)| name).collect();
        for (name, server) in process.unknown_to(after) {
            let Some(section) = after.backend(&name).filter(|_| managed.contains(&name)) else { continue };
            let is_slot = name.slot_number(&server).is_some_and(|number| number > 0 && name.slot(number) == server);
            let is_known = before.backend(&name).is_some_and(|before| before.has_server(&server));
            let state = process.server(&name, &server).map(|running| running.state);
            if !is_slot || !(section.is_ours() || is_known || state == Some(State::Maint)) {
                continue;
            }
            if !is_known && state != Some(State::Maint) {
                let (backend, server) = (name.clone(), server.clone());
                self.out.push(StateChange { backend, server, state: State::Maint });
            }
            self.surplus.push((name, server));
        }
    }

    /// A new server in its order: in maintenance, with its check on, in service.
    fn add(&mut self, backend: &BackendName, server: &Server, new: NewServer) {
        let name = || (backend.clone(), server.name.clone());
        let (add, check, state) = (name(), new.checked.then(name), server.state());
        self.rest.push(Action::Add(add.0, add.1, new));
        self.rest.extend(check.map(|(backend, server)| Action::Check(backend, server)));
        if state != State::Maint {
            let (backend, server) = name();
            self.rest.push(Action::State(backend, server, state));
        }
    }

    /// Removes those from `out` whose place is taken in the same change, if no other instance is in service: they leave
    /// when the others are in, or when the write has failed. With `shutdown_delay` an instance that is gone answers
    /// until then; without it there is no instance to send the requests to either way.
    pub fn handed_over(&mut self, process: &Runtime, after: &Observed) -> Vec<StateChange> {
        let comes_in = |name: &BackendName, server: &ServerName| {
            self.rest
                .iter()
                .any(|action| matches!(action, Action::State(b, s, State::Ready) if (b, s) == (name, server)))
        };
        let is_handed_over = |change: &StateChange| {
            let Some(section) = after.backend(&change.backend).filter(|section| section.foreign.is_empty()) else {
                return false;
            };
            let is_new = |server: &&Server| comes_in(&change.backend, &server.name);
            let stays = |server: &&Server| {
                let running = process.server(&change.backend, &server.name);
                server.is_enabled() && !is_new(server) && running.is_some_and(|running| running.state == State::Ready)
            };
            !comes_in(&change.backend, &change.server)
                && section.servers.iter().any(|server| is_new(&server))
                && !section.servers.iter().any(|server| stays(&server))
        };
        let (late, out) = self.out.iter().cloned().partition(is_handed_over);
        self.out = out;
        late
    }

    /// Whether the process already agrees.
    pub fn is_empty(&self) -> bool {
        let Self { out, rest, lacks, surplus } = self;
        out.is_empty() && rest.is_empty() && lacks.is_empty() && surplus.is_empty()
    }

    /// All of it as actions, for a change that is made in one step.
    pub fn actions(&self) -> Vec<Action> {
        let out = self
            .out
            .iter()
            .map(|StateChange { backend, server, state }| Action::State(backend.clone(), server.clone(), *state));
        out.chain(self.rest.iter().cloned()).collect()
    }
}

/// The servers in service whose host name did not resolve when this process started; it does not retry.
pub fn unresolved(process: &Runtime, observed: &Observed) -> Vec<(BackendName, Server)> {
    let lacks_address = |name: &BackendName, server: &Server| {
        let running = process.server(name, &server.name);
        matches!(server.address, Address::Host(_))
            && server.is_enabled()
            && running.is_some_and(|running| running.address.is_none())
    };
    let of = |(name, section): (BackendName, &ObservedBackend)| {
        let lacking = section.servers.iter().filter(|server| lacks_address(&name, server)).cloned();
        lacking.map(|server| (name.clone(), server)).collect::<Vec<_>>()
    };
    observed.managed().flat_map(of).collect()
}

fn servers(backend: Option<&ObservedBackend>) -> BTreeMap<&ServerName, &Server> {
    backend.into_iter().flat_map(|backend| &backend.servers).map(|server| (&server.name, server)).collect()
}

/// One server: as it should be, as it was, and as the process has it.
struct Seat<'a> {
    backend: &'a BackendName,
    section: &'a ObservedBackend,
    server: &'a Server,
    known: Option<&'a Server>,
    running: &'a RuntimeServer,
}

impl Seat<'_> {
    fn changes(&self, changes: &mut Changes) {
        let Self { backend, section, server, known, running } = *self;
        let wanted = server.state();
        // Another instance must not inherit the health of the one before: out, and in when everything is set.
        let moved_in = known.is_none_or(|known| known.occupant.id() != server.occupant.id());
        let own_business = !moved_in && wanted == State::Ready && self.belongs_to_process();
        let leaves = if wanted == State::Ready { State::Maint } else { wanted };
        let is_out = running.state == leaves || running.state == State::Maint;
        let name = || (backend.clone(), server.name.clone());
        let is_drained_by_agent = section.agent_check.now && running.state == State::Drain;
        let stays = wanted != State::Ready && running.state != wanted && !is_drained_by_agent;
        if (wanted == State::Ready && moved_in && !is_out) || stays {
            let (backend, server) = name();
            // The end of a drain takes no instance out, and the API drops it as a single state: it reads 12 (drain,
            // disabled in the file) as maintenance already (seen on 3.0, 3.2 and 3.4).
            if running.state == State::Drain && wanted == State::Maint {
                changes.rest.push(Action::State(backend, server, State::Maint));
            } else {
                changes.out.push(StateChange { backend, server, state: leaves });
            }
        }
        // It was added at run time, and that was cut short.
        if running.unchecked && running.state == State::Maint {
            let (backend, server) = name();
            changes.rest.push(Action::Check(backend, server));
        }
        match (&server.address, running.address) {
            // A server in maintenance gets no requests.
            _ if wanted == State::Maint => {}
            // Its slot had a host name before; one that has a name now is reloaded in any case.
            (Address::Ip(_), None) if known.is_some_and(|known| matches!(known.address, Address::Ip(_))) => {
                changes.lacks.push(name());
            }
            (Address::Ip(ip), Some(now)) if (now, running.port) != (*ip, server.port) => {
                let (backend, server_name) = name();
                changes.rest.push(Action::Address(backend, server_name, *ip, server.port));
            }
            (Address::Ip(_) | Address::Host(_), _) => {}
        }
        if let Some(weight) = server.options.weight.filter(|weight| self.has_other_weight(*weight))
            && (!section.agent_check.now || moved_in)
        {
            let (backend, server) = name();
            changes.rest.push(Action::Weight(backend, server, weight));
        }
        if wanted == State::Ready && (moved_in || running.state != State::Ready) && !own_business {
            let (backend, server) = name();
            changes.rest.push(Action::State(backend, server, State::Ready));
        }
    }

    /// The process may be right if it differs: an agent check sets states, and a host name that does not resolve puts
    /// its server in maintenance, which the Data Plane API reports like any other.
    fn belongs_to_process(&self) -> bool {
        self.section.agent_check.now || matches!(self.server.address, Address::Host(_))
    }

    fn has_other_weight(&self, weight: u16) -> bool {
        match (self.running.weight, self.known) {
            (Some(running), _) => running != weight,
            // This plane does not report it.
            (None, Some(known)) => known.options.weight != Some(weight),
            (None, None) => true,
        }
    }
}
