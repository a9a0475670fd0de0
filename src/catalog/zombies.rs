//! Registrations whose allocation has ended. A client deregisters what it stops, so while a client hangs, or has lost its
//! state, a registration stays although its job was stopped.
//!
//! The catalog does not show it, and to ask for each allocation at each read would cost more than the read. So with each
//! full read a bounded number is asked for, in turn; where one has ended, the others of its node are asked for at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use crate::desired::InstanceId;
use crate::nomad::Nomad;
use crate::plan::guard::{Fate, Vanished};

use super::fate::{self, Question};
use super::{Catalog, Registration};

/// Allocations that one full read asks for, 1 ms each and 16 at a time. With a read every 30 s, each of 5000 is asked for
/// every 20 minutes.
const BATCH: usize = 128;
/// The same of nodes where one has ended.
const OF_NODES: usize = 1024;

/// What is known of them. Shared by the clones of a catalog's source.
#[derive(Debug, Default)]
pub(super) struct Zombies(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Those whose allocation has ended, each with its index: one that is registered again has another.
    known: BTreeMap<InstanceId, u64>,
    /// The last one that was asked for in its turn.
    last: Option<InstanceId>,
}

impl State {
    fn is_known(&self, registration: &Registration) -> bool {
        self.known.get(&InstanceId::new(&registration.id)) == Some(&registration.create_index)
    }

    /// The next ones in turn that are not known.
    fn next<'a>(&mut self, catalog: &'a Catalog, count: usize) -> Vec<&'a Registration> {
        let mut all: BTreeMap<InstanceId, &Registration> = BTreeMap::new();
        for registration in catalog.services.values().flatten().filter(|one| !self.is_known(one)) {
            all.insert(InstanceId::new(&registration.id), registration);
        }
        let (before, after): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(id, _)| self.last.as_ref().is_some_and(|last| id <= last));
        let next: Vec<_> = after.into_iter().chain(before).take(count).collect();
        self.last = next.last().map(|(id, _)| id.clone());
        next.into_iter().map(|(_, registration)| registration).collect()
    }
}

impl Zombies {
    /// Asks for some allocations of a catalog that was just read.
    pub(super) async fn look(&self, nomad: &Nomad, catalog: &Catalog) {
        let next = self.with(|state| {
            let registered: BTreeMap<InstanceId, u64> =
                catalog.services.values().flatten().map(|one| (InstanceId::new(&one.id), one.create_index)).collect();
            state.known.retain(|id, index| registered.get(id) == Some(index));
            state.next(catalog, BATCH)
        });
        let asked: BTreeSet<&str> = next.iter().map(|one| one.id.as_str()).collect();
        let nodes = self.ask(nomad, &next).await;
        let of_nodes: Vec<&Registration> = catalog
            .services
            .values()
            .flatten()
            .filter(|one| nodes.contains(one.node_id.as_str()) && !asked.contains(one.id.as_str()))
            .take(OF_NODES)
            .collect();
        self.ask(nomad, &of_nodes).await;
    }

    /// Asks for these, and returns the nodes of those that have ended.
    async fn ask<'a>(&self, nomad: &Nomad, asked: &[&'a Registration]) -> BTreeSet<&'a str> {
        // Without the service: only that the allocation has ended counts, as the registration is there.
        let question = |one: &&Registration| Question {
            instance: Vanished { id: InstanceId::new(&one.id), alloc: one.alloc_id.clone(), service: None },
            origin: None,
        };
        let fates = fate::ask(nomad, asked.iter().map(question).collect()).await;
        let ended: Vec<&&Registration> =
            asked.iter().filter(|one| fates.get(&InstanceId::new(&one.id)) == Some(&Fate::Gone)).collect();
        self.with(|state| state.known.extend(ended.iter().map(|one| (InstanceId::new(&one.id), one.create_index))));
        ended.into_iter().map(|one| one.node_id.as_str()).collect()
    }

    /// The catalog without them. Usually there are none, and it is the same.
    pub(super) fn without(&self, mut catalog: Arc<Catalog>) -> Arc<Catalog> {
        self.with(|state| {
            if !state.known.is_empty() && catalog.services.values().flatten().any(|one| state.is_known(one)) {
                let Catalog { services, zombies, .. } = Arc::make_mut(&mut catalog);
                for (service, registrations) in services {
                    let before = registrations.len();
                    registrations.retain(|one| !state.is_known(one));
                    if registrations.len() < before {
                        zombies.insert(service.clone(), before - registrations.len());
                    }
                }
            }
            catalog
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::ServiceKey;

    fn catalog(ids: &[(&str, u64)]) -> Catalog {
        let one = |(id, index): &(&str, u64)| -> Registration {
            let json = format!(
                r#"{{"ID": "{id}", "ServiceName": "api", "Namespace": "default", "Address": "10.0.0.1", "Port": 1,
                     "CreateIndex": {index}}}"#
            );
            serde_json::from_str(&json).expect("a registration")
        };
        let api = ServiceKey { namespace: "default".to_owned(), name: "api".to_owned() };
        Catalog { services: [(api, ids.iter().map(one).collect())].into(), ..Catalog::default() }
    }

    #[test]
    fn each_is_asked_for_in_turn() {
        let mut state = State::default();
        let ids = |state: &mut State, all: &[(&str, u64)]| -> Vec<String> {
            let catalog = catalog(all);
            state.next(&catalog, 2).into_iter().map(|one| one.id.clone()).collect()
        };
        let five = [("a", 1), ("b", 1), ("c", 1), ("d", 1), ("e", 1)];
        assert_eq!(ids(&mut state, &five), ["a", "b"]);
        assert_eq!(ids(&mut state, &five), ["c", "d"]);
        assert_eq!(ids(&mut state, &five), ["e", "a"]);
        assert_eq!(ids(&mut state, &[("c", 1)]), ["c"], "whatever is there");
        assert!(ids(&mut state, &[]).is_empty());
        assert_eq!(ids(&mut state, &five), ["a", "b"]);
        state.known.insert(InstanceId::new("c"), 1);
        assert_eq!(ids(&mut state, &five), ["d", "e"], "what is known is not asked for again");
        assert_eq!(ids(&mut state, &[("c", 7)]), ["c"], "it is registered again");
    }

    #[test]
    fn what_has_ended_is_not_in_the_catalog_until_it_is_registered_again() {
        let zombies = Zombies::default();
        let all = Arc::new(catalog(&[("a", 1), ("b", 1)]));
        assert!(Arc::ptr_eq(&zombies.without(all.clone()), &all));
        zombies.with(|state| state.known.insert(InstanceId::new("a"), 1));
        let left = zombies.without(all);
        let (service, registrations) = left.services.first_key_value().expect("the service");
        assert_eq!(registrations.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), ["b"]);
        assert_eq!(left.zombies.get(service), Some(&1));
        assert_eq!(zombies.without(Arc::new(catalog(&[("a", 2)]))).len(), 1);
    }
}
