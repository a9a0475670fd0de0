//! How long it takes from a registration to a server that is ready.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::desired::{Desired, InstanceId};
use crate::observed::Observed;

/// The instances in the catalog that have no server yet, each with the time when it was first read.
#[derive(Debug, Default)]
pub(super) struct Arrivals(BTreeMap<InstanceId, Instant>);

impl Arrivals {
    /// Compares the desired state with what HAProxy has, and returns how long the instances waited that have a server
    /// now. An instance that has its server at the first look has not arrived: it was there before.
    pub(super) fn look(&mut self, desired: &Desired, observed: &Observed, now: Instant) -> Vec<Duration> {
        let servers = observed.backends.values().flat_map(|backend| &backend.servers);
        let seated: BTreeSet<&InstanceId> = servers.filter_map(|server| server.occupant.id()).collect();
        let instances = desired.backends.values().flat_map(|backend| &backend.instances);
        let (mut before, mut ready) = (std::mem::take(&mut self.0), Vec::new());
        for instance in instances {
            let since = before.remove(&instance.id);
            match (seated.contains(&instance.id), since) {
                (true, Some(since)) => ready.push(now.saturating_duration_since(since)),
                (true, None) => {}
                (false, since) => drop(self.0.insert(instance.id.clone(), since.unwrap_or(now))),
            }
        }
        ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Catalog, Registration};
    use crate::desired::build::{self, Options};
    use crate::desired::{Grants, Owner, Present, SlotPolicy};
    use crate::haproxy::text::ConfigText;

    fn desired(ids: &[&str]) -> Desired {
        let registration = |id: &&str| Registration {
            id: (*id).to_owned(),
            service_name: "api".into(),
            namespace: "default".into(),
            node_id: String::new(),
            datacenter: String::new(),
            job_id: String::new(),
            alloc_id: String::new(),
            tags: vec!["haproxy.enable=true".into()],
            address: "127.0.0.1".into(),
            port: 1,
            create_index: 1,
            modify_index: 1,
        };
        let registrations: Vec<_> = ids.iter().map(registration).collect();
        let mut catalog = Catalog { index: 1, ..Catalog::default() };
        if let Some(first) = registrations.first() {
            catalog.services.insert(first.service(), registrations);
        }
        let slots = SlotPolicy { min_free: 0, max: 9 };
        let options = Options {
            prefix: "haproxy.".into(),
            owner: owner(),
            slots,
            init_state: false,
            lingers: false,
            grants: Grants::default(),
            targets: build::TargetNames::default(),
            frontend: None,
        };
        build::build(&catalog, &Present::default(), &options).desired
    }

    fn owner() -> Owner {
        "nomad".parse().expect("an owner")
    }

    fn observed(ids: &[&str]) -> Observed {
        let server = |(slot, id): (usize, &&str)| {
            format!("  server api_{slot} 127.0.0.1:1 weight 1 # {{\"id\":\"{id}\",\"owner\":\"nomad\"}}\n")
        };
        let servers: String = (1..).zip(ids).map(server).collect();
        let text = format!("backend api\n  description nomad-haproxy:nomad default/api\n{servers}");
        Observed::new(1, ConfigText::new(&text), &owner())
    }

    #[test]
    fn the_wait_begins_with_the_first_read_and_ends_with_the_server() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut arrivals = Arrivals::default();
        assert!(arrivals.look(&desired(&["a"]), &observed(&["a"]), at(0)).is_empty(), "it was there before");
        assert!(arrivals.look(&desired(&["a", "b", "c"]), &observed(&["a"]), at(1)).is_empty());
        assert!(arrivals.look(&desired(&["a", "b", "c"]), &observed(&["a"]), at(3)).is_empty(), "a write that failed");
        let waited = arrivals.look(&desired(&["a", "b", "c"]), &observed(&["a", "b"]), at(4));
        assert_eq!(waited, [Duration::from_secs(3)]);
        assert!(arrivals.look(&desired(&["a", "b"]), &observed(&["a", "b"]), at(5)).is_empty(), "c gave up");
        assert!(arrivals.look(&desired(&["a", "b", "c"]), &observed(&["a", "b"]), at(6)).is_empty());
        let waited = arrivals.look(&desired(&["a", "b", "c"]), &observed(&["a", "b", "c"]), at(8));
        assert_eq!(waited, [Duration::from_secs(2)], "it counts from when it came back");
    }
}
