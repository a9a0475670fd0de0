//! What to change in the running process so that it agrees with a configuration.
//!
//! There is one computation for a planned change and for a repair: from the servers as the process has them, the
//! configuration before (which instance was in which slot), and the one after. If the last pass verified the process,
//! [`Runtime::of`] the old configuration stands for the process.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::desired::{Address, BackendName, Server, ServerName, State};
use crate::observed::{Observed, ObservedBackend};
use crate::plane::{Runtime, RuntimeServer, StateChange};

use super::{Action, Growth, NewServer};

/// Something that the process has and the file does not: it is out of service, and is removed when nobody is connected
/// to it any more. Servers come before their backends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Surplus {
    /// A server, in maintenance.
    Server(BackendName, ServerName),
    /// A backend, not published.
    Backend(BackendName),
}

impl fmt::Display for Surplus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(backend, server) => write!(f, "{backend}/{server}"),
            Self::Backend(backend) => write!(f, "{backend}"),
        }
    }
}

/// The changes of the process, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// First, before the file is written and whether or not that succeeds: instances that are gone get no more traffic.
    pub out: Vec<StateChange>,
    /// Then, before the file is written without a reload: backends that go.
    pub hidden: Vec<BackendName>,
    /// With the file: new backends and servers, addresses, weights, and instances that come in.
    pub rest: Vec<Action>,
    /// Servers, or whole backends, that the file before has and the process lacks, where it takes none at run time, or
    /// has without an address (their host name did not resolve, and then the process accepts no other address; seen on
    /// 3.0, 3.2 and 3.4): only a reload helps.
    pub lacks: Vec<(BackendName, Option<ServerName>)>,
    /// Last: what the process has and the file after does not, where it takes and loses servers at run time.
    pub surplus: Vec<Surplus>,
}

impl Changes {
    /// Computes them. Checks and health are ignored: those belong to HAProxy.
    pub fn new(process: &Runtime, before: &Observed, after: &Observed, growth: &Growth) -> Self {
        let mut changes = Self::default();
        for (name, section) in after.managed() {
            let old = servers(before.backend(&name));
            // A backend that the process does not have yet is loaded with its servers.
            let is_there = before.backend(&name).is_some();
            if growth.makes_backends() && process.lacks(&name) {
                match Self::make(&name, section, after, growth) {
                    Some(new) => changes.rest.extend(new),
                    None if is_there => changes.lacks.push((name.clone(), None)),
                    None => {}
                }
                continue;
            }
            for server in &section.servers {
                let known = old.get(&server.name).copied();
                match process.server(&name, &server.name) {
                    Some(running) => {
                        let seat = Seat { backend: &name, section, server, known, running, doubts: process.doubts };
                        seat.changes(&mut changes);
                    }
                    None if is_there && let Some(new) = growth.of(&name, section, server) => {
                        changes.rest.extend(added(&name, server, new));
                    }
                    None if known.is_some() => changes.lacks.push((name.clone(), Some(server.name.clone()))),
                    None => {}
                }
            }
            // It was made, or was to be removed, and that was cut short.
            if growth.makes_backends() && section.is_ours() && process.has(&name, false) {
                changes.rest.push(Action::Publish(name));
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
        changes.find_surplus(process, before, after, growth);
        if growth.makes_backends() {
            changes.find_surplus_backends(process, before, after);
        }
        changes.surplus.sort();
        changes
    }

    /// Backends are ours by the file before, or because they are not published: that is the first thing that happens to
    /// one of ours that goes, before the file is written without it.
    fn find_surplus_backends(&mut self, process: &Runtime, before: &Observed, after: &Observed) {
        let ours = before.managed().filter(|(name, section)| section.is_ours() && after.backend(name).is_none());
        let gone: Vec<BackendName> = ours.map(|(name, _)| name).filter(|name| !process.lacks(name)).collect();
        self.hidden = gone.iter().filter(|name| process.has(name, true)).cloned().collect();
        for name in gone.into_iter().chain(process.unknown_backends(before)) {
            for (server, running) in process.servers_of(&name) {
                let Ok(server) = server.parse::<ServerName>() else { continue };
                let is_left = before.backend(&name).is_none() && running.state != State::Maint;
                let (backend, state) = (name.clone(), State::Maint);
                self.out.extend(is_left.then(|| StateChange { backend, server: server.clone(), state }));
                self.surplus.push(Surplus::Server(name.clone(), server));
            }
            self.surplus.push(Surplus::Backend(name));
        }
    }

    /// A new backend with its servers, and published last: no request finds it without them. `None`: only a reload
    /// brings it in.
    fn make(name: &BackendName, section: &ObservedBackend, after: &Observed, growth: &Growth) -> Option<Vec<Action>> {
        let settings = section.settings.as_ref().filter(|_| section.is_ours())?;
        let mut actions = vec![Action::Make(name.clone(), after.profile(settings)?, settings.mode)];
        for server in &section.servers {
            // There is nobody else to send the requests to before its first check.
            let new = NewServer { gated: false, ..growth.of(name, section, server)? };
            actions.extend(added(name, server, new));
        }
        actions.push(Action::Publish(name.clone()));
        Some(actions)
    }

    /// Servers are ours by their names. In a backend of a person, who may have added some without the file, only one that
    /// is in maintenance is: that is how we leave it. Where none can be removed, they leave the service all the same.
    fn find_surplus(&mut self, process: &Runtime, before: &Observed, after: &Observed, growth: &Growth) {
        let managed: BTreeSet<BackendName> = before.managed().chain(after.managed()).map(|(name, _)| name).collect();
        for (name, server) in process.unknown_to(after) {
            let Some(section) = after.backend(&name).filter(|_| managed.contains(&name)) else { continue };
            let is_slot = name.is_slot(&server);
            let is_known = before.backend(&name).is_some_and(|before| before.has_server(&server));
            let state = process.server(&name, &server).map(|running| running.state);
            if !is_slot || !(section.is_ours() || is_known || state == Some(State::Maint)) {
                continue;
            }
            let is_left = !is_known && state != Some(State::Maint);
            if !growth.removes() {
                // Last, as its instance may be about to get another server.
                self.rest.extend(is_left.then_some(Action::State(name, server, State::Maint)));
                continue;
            }
            if is_left {
                let (backend, server) = (name.clone(), server.clone());
                self.out.push(StateChange { backend, server, state: State::Maint });
            }
            self.surplus.push(Surplus::Server(name, server));
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
        let (late, out): (Vec<_>, Vec<_>) = self.out.iter().cloned().partition(is_handed_over);
        self.out = out;
        for action in &mut self.rest {
            // There is nobody else to send the requests to before its first check.
            if let Action::Add(backend, _, new) = action
                && late.iter().any(|change| change.backend == *backend)
            {
                new.gated = false;
            }
        }
        late
    }

    /// Whether the process already agrees.
    pub fn is_empty(&self) -> bool {
        let Self { out, hidden, rest, lacks, surplus } = self;
        out.is_empty() && hidden.is_empty() && rest.is_empty() && lacks.is_empty() && surplus.is_empty()
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

/// A new server in its order: in maintenance, with its check on, in service.
fn added(backend: &BackendName, server: &Server, new: NewServer) -> Vec<Action> {
    let name = || (backend.clone(), server.name.clone());
    let (checked, state) = (new.checked, server.state());
    let mut actions = vec![Action::Add(name().0, name().1, new)];
    if checked {
        actions.push(Action::Check(name().0, name().1));
    }
    if state != State::Maint {
        actions.push(Action::State(name().0, name().1, state));
    }
    actions
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
    /// [`Runtime::doubts`].
    doubts: bool,
}

impl Seat<'_> {
    fn changes(&self, changes: &mut Changes) {
        let Self { backend, section, server, known, running, doubts: _ } = *self;
        let wanted = server.state();
        // Another instance must not inherit the health of the one before: out, and in when everything is set.
        let moved_in = known.is_none_or(|known| known.occupant.id() != server.occupant.id());
        let own_business = !moved_in && wanted == State::Ready && self.belongs_to_process();
        let leaves = if wanted == State::Ready { State::Maint } else { wanted };
        let is_out = running.state == leaves || running.state == State::Maint;
        let name = || (backend.clone(), server.name.clone());
        let is_drained_by_agent = section.agent_check.now && running.state == State::Drain;
        let stays = wanted != State::Ready && running.state != wanted && !is_drained_by_agent;
        // It takes no instance out, and the API drops it as a single state: it reads 12 (drain, disabled in the file) as
        // maintenance already (seen on 3.0, 3.2 and 3.4).
        let ends_drain = wanted == State::Maint
            && match running.state {
                State::Drain => true,
                State::Maint => known.is_some_and(|known| known.state() == State::Drain),
                State::Ready => false,
            };
        if ends_drain {
            let (backend, server) = name();
            changes.rest.push(Action::State(backend, server, State::Maint));
        } else if (wanted == State::Ready && moved_in && !is_out) || stays {
            let (backend, server) = name();
            changes.out.push(StateChange { backend, server, state: leaves });
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
                changes.lacks.push((backend.clone(), Some(server.name.clone())));
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
            (None, Some(known)) => self.doubts || known.options.weight != Some(weight),
            (None, None) => true,
        }
    }
}
