//! Which instance is in which slot. Pure and sticky: the current occupants are read from what HAProxy has, an instance
//! keeps its slot as long as it lives, and a freed slot is reused as late as possible.
//!
//! A new instance takes a free slot: a change of address and state, which HAProxy takes without a reload. Only if none
//! is free does the backend grow, by doubling, so that a service that scales to n needs log n reloads.
//!
//! Where HAProxy adds and removes servers at run time there are no spares, and a new instance always gets a new server:
//! all instances of a service may be replaced in one pass, and then the old ones serve until the new ones are in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::desired::{
    Address, BackendName, Held, Instance, InstanceId, Occupant, Server, ServerOptions, SlotPolicy, State,
};

use super::LeftOut;

/// The port of a slot that has not been used yet.
const PLACEHOLDER_PORT: u16 = 1;

/// What a backend has, and what it should have.
#[allow(clippy::struct_excessive_bools, reason = "four facts about a backend that do not depend on each other")]
pub struct Seating<'a> {
    /// The backend.
    pub backend: &'a BackendName,
    /// Our servers as they are.
    pub servers: &'a [Server],
    /// Names that are taken, by servers which are not ours, or which the process still has.
    pub taken: &'a BTreeSet<String>,
    /// The instances.
    pub instances: &'a [Instance],
    /// The instances that stay although they are not among these.
    pub held: &'a Held,
    /// How many spares.
    pub policy: SlotPolicy,
    /// The weight of a server whose instance has no tag for it. It is always written: a line that does not state it
    /// inherits it, and the process cannot be set back to the inherited one.
    pub weight: u16,
    /// Whether a server line turns the check on itself.
    pub check: bool,
    /// Whether clients stay with a server by a cookie.
    pub cookie: bool,
    /// Whether free slots are [gated](Server::gated).
    pub gated: bool,
    /// The time, since 1970.
    pub now: Duration,
    /// What HAProxy refuses: such an instance stays as it is, or waits.
    pub left_out: &'a LeftOut,
    /// Whether the backend is rewritten in any case, so that spares may be removed without another reload.
    pub may_shrink: bool,
    /// Whether servers are added and removed at run time: then there are no spares, and a server that is not what an
    /// instance needs is removed, and another one added.
    pub at_run_time: bool,
}

/// Gives every instance a slot. The result is sorted by slot number and has each instance once.
pub fn seat(seating: &Seating<'_>) -> Vec<Server> {
    let mut slots = seating.existing();
    let mut waiting = seating.keep_and_free(&mut slots);
    waiting.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
    if seating.policy.min_free == 0 {
        slots.retain(|_, server| server.state() != State::Maint);
    } else if seating.may_shrink {
        seating.shrink(&mut slots, waiting.len());
    }
    seating.fill(&mut slots, waiting);
    seating.refit(&mut slots);
    // Of all servers, spare ones and those that are held too: the backend has the cookie, or has it not.
    slots.into_values().map(|server| Server { cookie: seating.cookie, ..server }).collect()
}

impl Seating<'_> {
    /// The slots as they are. Of two servers with one instance (a line that was copied by hand) the first keeps it.
    fn existing(&self) -> BTreeMap<u32, Server> {
        let mut slots: BTreeMap<u32, Server> = BTreeMap::new();
        for server in self.servers {
            if let Some(number) = self.backend.slot_number(&server.name).filter(|number| *number > 0) {
                slots.entry(number).or_insert_with(|| server.clone());
            }
        }
        let mut seen = BTreeSet::new();
        for server in slots.values_mut() {
            if let Occupant::Instance { id, .. } = &server.occupant
                && !seen.insert(id.clone())
            {
                server.occupant = Occupant::Free { freed: 0, drain_until: None };
            }
        }
        slots
    }

    /// Updates the instances that stay, frees the slots of those that left, and returns those without a slot.
    fn keep_and_free<'i>(&'i self, slots: &mut BTreeMap<u32, Server>) -> Vec<&'i Instance> {
        let (refused, taken): (Vec<_>, Vec<_>) =
            self.instances.iter().partition(|instance| self.left_out.has_instance(self.backend, &instance.id));
        let refused: BTreeSet<&InstanceId> = refused.into_iter().map(|instance| &instance.id).collect();
        let mut by_id: BTreeMap<&InstanceId, &Instance> = taken.into_iter().map(|i| (&i.id, i)).collect();
        let mut last = slots.values().filter_map(Server::freed).max().unwrap_or(0);
        for server in slots.values_mut() {
            let instance = server.occupant.id().and_then(|id| by_id.get(id).copied());
            if let Some(instance) = instance.filter(|instance| self.stays(server, instance)) {
                by_id.remove(&instance.id);
                self.assign(server, instance);
            } else if instance.is_some() {
                // It comes in again, on a server of its own.
                free(server, &mut last, self.now);
            } else if !self.held.keeps(&server.occupant)
                && !server.occupant.id().is_some_and(|id| refused.contains(id))
                && free(server, &mut last, self.now)
            {
                server.gated = self.gated;
            }
        }
        by_id.into_values().collect()
    }

    /// Whether an instance keeps its server: not if it needs another one for what does not change at run time, and gets
    /// it without a reload.
    fn stays(&self, server: &Server, instance: &Instance) -> bool {
        let is_named = matches!(instance.address, Address::Host(_));
        !self.at_run_time || self.may_shrink || is_named || self.fits(server, instance)
    }

    fn assign(&self, server: &mut Server, instance: &Instance) {
        server.address = instance.address.clone();
        server.port = instance.port;
        server.options =
            ServerOptions { weight: Some(instance.options.weight.unwrap_or(self.weight)), ..instance.options.clone() };
        server.check = self.check;
        server.gated = false;
        server.occupant = Occupant::Instance {
            id: instance.id.clone(),
            alloc: instance.alloc.clone(),
            service: Some(instance.service.clone()),
            drain: instance.drain,
        };
    }

    /// Where an instance that stays takes a reload for what it needs now, spare servers get the same, so that they can be
    /// filled without another one.
    fn refit(&self, slots: &mut BTreeMap<u32, Server>) {
        let is_changed = |server: &Server| {
            slots.get(&self.backend.slot_number(&server.name).unwrap_or(0)).is_some_and(|now| {
                server.is_enabled()
                    && now.occupant.id() == server.occupant.id()
                    && now.options.fixed() != server.options.fixed()
            })
        };
        if self.at_run_time || !(self.may_shrink || self.servers.iter().any(is_changed)) {
            return;
        }
        let options = self.newest_options();
        for server in slots.values_mut().filter(|server| server.state() == State::Maint) {
            server.options = ServerOptions { weight: server.options.weight, ..options.clone() };
        }
    }

    fn newest_options(&self) -> ServerOptions {
        let newest = self.instances.iter().max_by_key(|i| (i.created, &i.id));
        newest.map(|instance| instance.options.clone()).unwrap_or_default()
    }

    fn fill(&self, slots: &mut BTreeMap<u32, Server>, waiting: Vec<&Instance>) {
        let mut left = Vec::new();
        for instance in waiting {
            // A slot with the right fixed settings can be taken live; of those, the one that was freed first.
            let free = slots.iter_mut().filter_map(|(number, server)| match server.occupant {
                Occupant::Free { freed, drain_until } => {
                    Some(((!self.fits(server, instance), drain_until.is_some(), freed, *number), server))
                }
                Occupant::Instance { .. } => None,
            });
            match free.min_by_key(|(order, _)| *order) {
                Some((_, server)) => self.assign(server, instance),
                None => left.push(instance),
            }
        }
        if !left.is_empty() || (slots.is_empty() && self.policy.min_free > 0) {
            self.grow(slots, &left);
        }
    }

    fn fits(&self, server: &Server, instance: &Instance) -> bool {
        server.options.fixed() == instance.options.fixed() && server.check == self.check
    }

    fn grow(&self, slots: &mut BTreeMap<u32, Server>, left: &[&Instance]) {
        let size = size(slots.len() + left.len(), self.policy);
        let options = self.newest_options();
        let mut left = left.iter();
        let mut lowest = 1;
        while slots.len() < size {
            let instance = left.next();
            while !self.is_free(slots, lowest) {
                lowest += 1;
            }
            let suits = |number: &u32| self.is_free(slots, *number) && self.suits(*number, instance.copied());
            let Some(number) = (lowest..=u32::MAX).find(suits) else { return };
            let mut server = Server {
                name: self.backend.slot(number),
                address: Address::PLACEHOLDER,
                port: PLACEHOLDER_PORT,
                check: self.check,
                gated: self.gated,
                cookie: self.cookie,
                options: ServerOptions { weight: Some(self.weight), ..options.clone() },
                occupant: Occupant::Free { freed: 0, drain_until: None },
            };
            if let Some(instance) = instance {
                self.assign(&mut server, instance);
            }
            slots.insert(number, server);
        }
    }

    fn is_free(&self, slots: &BTreeMap<u32, Server>, number: u32) -> bool {
        !slots.contains_key(&number) && !self.taken.contains(self.backend.slot(number).as_str())
    }

    /// Whether an instance can have the server of this number. One that another instance just left is left to go at run
    /// time; unless the instance comes by a reload in any case, as its host name is resolved then.
    fn suits(&self, number: u32, instance: Option<&Instance>) -> bool {
        let is_added = |one: &Instance| self.at_run_time && matches!(one.address, Address::Ip(_));
        let name = self.backend.slot(number);
        !instance.is_some_and(is_added) || self.servers.iter().all(|server| server.name != name)
    }

    /// Removes the highest spares, down to as many as the backend would get today.
    fn shrink(&self, slots: &mut BTreeMap<u32, Server>, waiting: usize) {
        let seated = slots.values().filter(|server| server.is_enabled()).count() + waiting;
        let wanted = size(seated, self.policy);
        // One that drains still serves the clients that are bound to it.
        let idle = |server: &Server| server.state() == State::Maint;
        let spare: Vec<u32> =
            slots.iter().rev().filter(|(_, server)| idle(server)).map(|(number, _)| *number).collect();
        for number in spare.into_iter().take(slots.len().saturating_sub(wanted)) {
            slots.remove(&number);
        }
        for server in slots.values_mut().filter(|server| !server.is_enabled()) {
            server.gated = self.gated;
        }
    }
}

/// How many spares a backend would not get today. They stay until a change of the backend takes a reload.
pub fn surplus(servers: &[Server], policy: SlotPolicy) -> usize {
    let seated = servers.iter().filter(|server| server.is_enabled()).count();
    let idle = servers.iter().filter(|server| server.state() == State::Maint).count();
    servers.len().saturating_sub(size(seated, policy)).min(idle)
}

/// How many slots this many instances get: twice as many, and at least the minimum of spares, within the limit.
fn size(seated: usize, policy: SlotPolicy) -> usize {
    match policy.min_free {
        0 => seated,
        spare => (seated * 2).max(seated + spare as usize).min((policy.max as usize).max(seated)),
    }
}

/// The servers, with the slots of the instances freed that do not stay. No other instance moves.
pub fn vacate(servers: &[Server], stays: impl Fn(&Occupant) -> bool, now: Duration) -> Vec<Server> {
    let mut servers = servers.to_vec();
    let mut last = servers.iter().filter_map(Server::freed).max().unwrap_or(0);
    for server in servers.iter_mut().filter(|server| !stays(&server.occupant)) {
        free(server, &mut last, now);
    }
    servers
}

/// Frees a slot, or ends its drain if that is over. `last` is the mark of the slot that was freed last: the new mark is
/// the time, so that it shows how long a backend has been empty, but always greater than any before, in case the clock
/// was set back. Returns whether an instance left.
fn free(server: &mut Server, last: &mut u64, now: Duration) -> bool {
    let left = match &server.occupant {
        Occupant::Free { freed, drain_until: Some(until) } if Duration::from_secs(*until) <= now => {
            server.occupant = Occupant::Free { freed: *freed, drain_until: None };
            false
        }
        Occupant::Free { .. } => false,
        Occupant::Instance { drain, .. } => {
            *last = u64::try_from(now.as_millis()).unwrap_or(u64::MAX).max(last.saturating_add(1));
            let drain_until = drain.map(|drain| whole_seconds(now.saturating_add(drain)));
            server.occupant = Occupant::Free { freed: *last, drain_until };
            true
        }
    };
    // HAProxy would also resolve the host name of a slot without an instance.
    if matches!(server.address, Address::Host(_)) && server.state() == State::Maint {
        (server.address, server.port) = (Address::PLACEHOLDER, PLACEHOLDER_PORT);
    }
    left
}

/// Rounded up: a drain is never cut short.
fn whole_seconds(time: Duration) -> u64 {
    time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::ServiceKey;
    use proptest::prelude::*;

    const POLICY: SlotPolicy = SlotPolicy { min_free: 2, max: 8 };

    fn instance(id: u32) -> Instance {
        Instance {
            id: InstanceId::new(&format!("i{id}")),
            alloc: "a".into(),
            service: ServiceKey { namespace: "default".into(), name: "api".into() },
            address: Address::PLACEHOLDER,
            port: u16::try_from(1000 + id).expect("a small number"),
            options: ServerOptions::default(),
            drain: None,
            created: u64::from(id),
        }
    }

    fn seated(servers: &[Server], ids: &[u32], policy: SlotPolicy) -> Vec<Server> {
        let backend: BackendName = "api".parse().expect("a name");
        let instances: Vec<_> = ids.iter().map(|id| instance(*id)).collect();
        let taken = BTreeSet::new();
        let seating = Seating {
            backend: &backend,
            servers,
            taken: &taken,
            instances: &instances,
            held: &Held::default(),
            left_out: &LeftOut::default(),
            policy,
            weight: 1,
            check: false,
            cookie: false,
            gated: false,
            now: Duration::ZERO,
            may_shrink: false,
            at_run_time: false,
        };
        seat(&seating)
    }

    /// `api_1=i7` for an occupied slot, `api_1~3` for a slot that was freed third.
    fn show(servers: &[Server]) -> Vec<String> {
        let one = |server: &Server| match &server.occupant {
            Occupant::Instance { id, .. } => format!("{}={}", server.name, id.as_str()),
            Occupant::Free { freed, .. } => format!("{}~{freed}", server.name),
        };
        servers.iter().map(one).collect()
    }

    #[test]
    fn a_new_backend_has_its_instances_and_spares() {
        assert_eq!(show(&seated(&[], &[5, 3], POLICY)), ["api_1=i3", "api_2=i5", "api_3~0", "api_4~0"]);
    }

    #[test]
    fn an_instance_keeps_its_slot_and_a_freed_slot_is_reused_last() {
        let first = seated(&[], &[1, 2], POLICY);
        let second = seated(&first, &[2, 3], POLICY);
        assert_eq!(show(&second), ["api_1~1", "api_2=i2", "api_3=i3", "api_4~0"]);
        let third = seated(&second, &[3, 4, 5], POLICY);
        assert_eq!(show(&third), ["api_1=i5", "api_2~2", "api_3=i3", "api_4=i4"]);
    }

    #[test]
    fn a_slot_drains_for_as_long_as_was_asked_and_is_taken_last() {
        let backend: BackendName = "api".parse().expect("a name");
        let taken = BTreeSet::new();
        let at = |now: u64, servers: &[Server], instances: &[Instance]| {
            let policy = SlotPolicy { min_free: 1, max: 8 };
            let (weight, check, gated, may_shrink) = (1, false, false, false);
            let backend = &backend;
            seat(&Seating {
                backend,
                servers,
                taken: &taken,
                instances,
                held: &Held::default(),
                left_out: &LeftOut::default(),
                policy,
                weight,
                check,
                cookie: false,
                gated,
                now: Duration::from_secs(now),
                may_shrink,
                at_run_time: false,
            })
        };
        let mut draining = instance(1);
        draining.drain = Some(std::time::Duration::from_millis(1500));
        let first = at(100, &[], &[draining]);
        let gone = at(110, &first, &[]);
        assert_eq!(gone[0].state(), State::Drain);
        assert_eq!(at(111, &gone, &[]), gone, "it still drains");
        assert_eq!(at(112, &gone, &[])[0].state(), State::Maint);
        let taken = at(111, &gone, &[instance(2)]);
        assert_eq!((taken[0].state(), taken[1].state()), (State::Drain, State::Ready));
    }

    #[test]
    fn a_backend_doubles_within_its_bounds() {
        let four = seated(&[], &[1, 2], POLICY);
        let eight = seated(&four, &[1, 2, 3, 4, 5], POLICY);
        assert_eq!(eight.len(), 8);
        let beyond = seated(&eight, &(1..=10).collect::<Vec<_>>(), POLICY);
        assert_eq!((beyond.len(), beyond.iter().filter(|s| s.is_enabled()).count()), (10, 10));
    }

    #[test]
    fn without_slots_there_are_only_instances() {
        let off = SlotPolicy { min_free: 0, max: 8 };
        assert_eq!(show(&seated(&[], &[1, 2], off)), ["api_1=i1", "api_2=i2"]);
        assert_eq!(show(&seated(&seated(&[], &[1, 2, 3], POLICY), &[2], off)), ["api_2=i2"]);
        assert_eq!(show(&seated(&[], &[], off)), Vec::<String>::new());
    }

    #[test]
    fn the_name_of_a_foreign_server_is_skipped() {
        let backend: BackendName = "api".parse().expect("a name");
        let taken = BTreeSet::from(["api_1".to_owned()]);
        let instances = [instance(1)];
        let seating = Seating {
            backend: &backend,
            servers: &[],
            taken: &taken,
            instances: &instances,
            held: &Held::default(),
            left_out: &LeftOut::default(),
            policy: POLICY,
            weight: 1,
            check: true,
            cookie: false,
            gated: false,
            now: Duration::ZERO,
            may_shrink: false,
            at_run_time: false,
        };
        assert_eq!(show(&seat(&seating)), ["api_2=i1", "api_3~0", "api_4~0"]);
    }

    #[test]
    fn a_line_copied_by_hand_gives_no_instance_two_slots() {
        let mut servers = seated(&[], &[1], POLICY);
        servers[1].occupant = servers[0].occupant.clone();
        assert_eq!(show(&seated(&servers, &[1], POLICY)), ["api_1=i1", "api_2~0", "api_3~0"]);
    }

    #[test]
    fn spares_go_when_a_reload_happens_anyway() {
        let eight = seated(&seated(&[], &[1, 2], POLICY), &[1, 2, 3, 4, 5], POLICY);
        let drained = seated(&eight, &[5], POLICY);
        assert_eq!(drained.len(), 8);
        let backend: BackendName = "api".parse().expect("a name");
        let (taken, instances) = (BTreeSet::new(), [instance(5)]);
        let seating = Seating {
            backend: &backend,
            servers: &drained,
            taken: &taken,
            instances: &instances,
            held: &Held::default(),
            left_out: &LeftOut::default(),
            policy: POLICY,
            weight: 1,
            check: false,
            cookie: false,
            gated: false,
            now: Duration::ZERO,
            may_shrink: true,
            at_run_time: false,
        };
        let shrunk = seat(&seating);
        assert_eq!(shrunk.len(), 3);
        assert!(show(&shrunk).contains(&"api_5=i5".to_owned()), "{:?}", show(&shrunk));
    }

    proptest! {
        #[test]
        fn every_instance_keeps_a_slot_of_its_own(steps in prop::collection::vec(prop::collection::btree_set(0u32..12, 0..12), 1..30)) {
            let mut servers = Vec::new();
            for ids in steps {
                let ids: Vec<u32> = ids.into_iter().collect();
                let next = seated(&servers, &ids, POLICY);
                let seats = |servers: &[Server]| -> BTreeMap<InstanceId, String> {
                    servers.iter().filter_map(|s| match &s.occupant {
                        Occupant::Instance { id, .. } => Some((id.clone(), s.name.to_string())),
                        Occupant::Free { .. } => None,
                    }).collect()
                };
                let (before, after) = (seats(&servers), seats(&next));
                prop_assert_eq!(after.len(), ids.len());
                prop_assert_eq!(next.iter().filter(|s| s.is_enabled()).count(), ids.len());
                for (id, slot) in &before {
                    if let Some(now) = after.get(id) {
                        prop_assert_eq!(now, slot);
                    }
                }
                prop_assert!(next.len() >= servers.len());
                prop_assert_eq!(&seated(&next, &ids, POLICY), &next, "a second pass changes nothing");
                servers = next;
            }
        }

        #[test]
        fn fill_and_drain_in_any_order_ends_with_every_slot_free(order in Just((0u32..9).collect::<Vec<_>>()).prop_shuffle()) {
            let mut servers = seated(&[], &[], POLICY);
            let mut present = Vec::new();
            for id in &order {
                present.push(*id);
                servers = seated(&servers, &present, POLICY);
            }
            let full = servers.len();
            for _ in &order {
                present.pop();
                servers = seated(&servers, &present, POLICY);
            }
            prop_assert_eq!(servers.len(), full);
            prop_assert!(servers.iter().all(|server| !server.is_enabled()));
        }
    }
}
