//! Instances that leave do not wait for a pass.
//!
//! A pass looks at all of HAProxy, which takes it many times as long as Nomad takes to say who is left of one service. So
//! who has left since the last pass is out before that, by what the last pass knew of HAProxy.
//!
//! A pass that validates a large file or waits for a reload takes seconds, and the catalog that it works from was read
//! when it began. So while it runs, the catalog is read after each change, and servers whose instances are gone are taken
//! out of the process. Everything else is left to the next pass, also removals for which the guard asks for proof, and
//! the last server of a backend: its requests have nowhere else to go.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::catalog::Catalog;
use crate::catalog::shared::{Reading, SharedCatalog};
use crate::catalog::watch::Change;
use crate::desired::build;
use crate::desired::{BackendName, InstanceId, Occupant, Present, Server, ServerName, State};
use crate::errors::chain;
use crate::leader::Lease;
use crate::plan::guard::{self, Missing, Past, Policy};
use crate::plane::{Plane, StateChange};

use super::write::set_each;
use super::{Controller, Moment, PassStatus, Seats};

/// Between two looks at the catalog.
const PAUSE: Duration = Duration::from_millis(100);

/// What a running pass has found, as far as leaving depends on it.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// Who sits where.
    pub(super) seats: Arc<Seats>,
    /// What HAProxy has.
    pub(super) present: Arc<Present>,
    /// For the desired state.
    pub(super) build: build::Options,
    /// The index of the catalog.
    pub(super) index: u64,
}

/// The servers that were taken out, and how.
type Out = BTreeMap<(BackendName, ServerName), State>;

/// Takes out of the process who leaves while a pass runs.
struct Leaving {
    plane: Arc<dyn Plane>,
    source: SharedCatalog,
    lease: Lease,
    guard: guard::Options,
    found: watch::Receiver<Option<Found>>,
    /// Recorded before they are asked for: the pass may end in between.
    out: Arc<Mutex<Out>>,
}

impl Controller {
    /// Runs one pass, and takes out of the process who leaves meanwhile; `changed` is when the catalog changes.
    pub async fn pass_while(&mut self, moment: Moment, changed: watch::Receiver<Change>) -> PassStatus {
        let known = self.found.send_replace(None).filter(|_| self.memory.is_clean() && self.lease.leads());
        let first = match known {
            Some(known) => self.take_out_first(known, moment).await,
            None => BTreeSet::new(),
        };
        let out = Arc::<Mutex<Out>>::default();
        let leaving = Leaving {
            plane: self.plane.clone(),
            source: self.source.clone(),
            lease: self.lease.clone(),
            guard: self.guard.options(),
            found: self.found.subscribe(),
            out: out.clone(),
        };
        let mut status = tokio::select! {
            status = self.pass(moment, None) => status,
            never = leaving.follow(changed) => match never {},
        };
        let stays = |occupant: &Occupant| occupant.id().is_some_and(|id| first.contains(id));
        if !first.is_empty() && status.seats.occupants().any(stays) {
            // The pass knew better, and has not looked at the process.
            self.memory.forget_process();
        }
        let out = std::mem::take(&mut *out.lock().unwrap_or_else(PoisonError::into_inner));
        if !out.is_empty() {
            tracing::info!(servers = out.len(), "instances left while the pass ran: their servers are out");
            // One that is registered again by now has to come back.
            self.memory.forget_process();
            let out: Vec<StateChange> = changes(out).collect();
            match status.reloads {
                0 => status.run_time_changes += out.len(),
                // The new process has what the file says.
                _ => drop(self.set_states(&out, &mut status).await),
            }
        }
        status
    }

    /// Takes out of the process who has left since the last pass, and returns them. The pass has the same catalog, so it
    /// does this once more, and writes it.
    async fn take_out_first(&self, known: Found, moment: Moment) -> BTreeSet<InstanceId> {
        // Those after the last write.
        let known = Found { seats: self.seated.seats.clone(), ..known };
        let Moment { catalog_since, catalog_full_since, .. } = moment;
        let read = self.source.read(&known.seats.namespaces(), catalog_since, catalog_full_since).await;
        // Why it cannot be read the pass says.
        let Ok(Reading { catalog, .. }) = read else { return BTreeSet::new() };
        let gone = gone_of_few(&known, &catalog, &self.guard.options());
        let out: Vec<StateChange> = changes(servers(&known.seats, &gone).collect()).collect();
        set(self.plane.as_ref(), &out).await;
        gone
    }
}

/// Sets states. One that is not set the next pass sets.
async fn set(plane: &dyn Plane, out: &[StateChange]) {
    let results = set_each(plane, out).await;
    for (StateChange { backend, server, .. }, answer) in out.iter().zip(results) {
        if let Err(error) = answer {
            // As while HAProxy reloads.
            tracing::debug!(%backend, %server, error = %chain(&error), "an instance that left is not out yet");
        }
    }
}

impl Leaving {
    /// For ever.
    async fn follow(mut self, mut changed: watch::Receiver<Change>) -> Infallible {
        loop {
            if changed.changed().await.is_err() {
                return std::future::pending().await;
            }
            let since = changed.borrow_and_update().at;
            // Before that the pass reads the catalog itself.
            let found = self.found.wait_for(Option::is_some).await.ok().and_then(|found| found.clone());
            if let Some(found) = found.filter(|_| self.lease.leads()) {
                self.take_out(&found, since).await;
            }
            sleep(PAUSE).await;
        }
    }

    async fn take_out(&self, found: &Found, since: Instant) {
        // Why it cannot be read the next pass says.
        let Ok(reading) = self.source.read(&found.seats.namespaces(), since, None).await else { return };
        let gone = gone(found, &reading.catalog, &self.guard);
        let new: Out = {
            let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
            let new = servers(&found.seats, &gone).filter(|(server, _)| !out.contains_key(server)).collect::<Out>();
            out.extend(new.clone());
            new
        };
        let new: Vec<StateChange> = changes(new).collect();
        set(self.plane.as_ref(), &new).await;
    }
}

/// Who is gone, as far as that needs no proof.
fn gone(found: &Found, catalog: &Catalog, options: &guard::Options) -> BTreeSet<InstanceId> {
    if catalog.index < found.index {
        return BTreeSet::new();
    }
    let built = build::build(catalog, &found.present, &found.build);
    let past = Past { held: &BTreeMap::new(), index_went_back: false };
    let missing = Missing::of(&built, found.seats.occupants(), options, past);
    match missing.needs_proof() {
        [] => missing.vanished().iter().map(|one| one.id.clone()).collect(),
        _ => BTreeSet::new(),
    }
}

/// The same, of so few that they never need proof, without building the desired state of all services.
fn gone_of_few(known: &Found, catalog: &Catalog, options: &guard::Options) -> BTreeSet<InstanceId> {
    let Catalog { index, services, unreadable, namespaces, .. } = catalog;
    let is_whole = *index >= known.index && unreadable.is_empty() && namespaces.is_empty();
    if !is_whole || options.policy != Policy::Sync {
        return BTreeSet::new();
    }
    let registered: BTreeSet<InstanceId> = services.values().flatten().map(|one| InstanceId::new(&one.id)).collect();
    let seated = known.seats.occupants().filter(|occupant| occupant.id().is_some());
    let (stay, left): (Vec<&Occupant>, Vec<&Occupant>) =
        seated.partition(|occupant| occupant.id().is_some_and(|id| registered.contains(id)));
    // All of them need proof.
    if left.is_empty() || left.len() >= options.min || stay.is_empty() {
        return BTreeSet::new();
    }
    // Whether their services are held.
    let concerned = left.iter().filter_map(|occupant| occupant.service());
    let concerned = concerned.filter_map(|service| Some((service.clone(), services.get(service)?.clone()))).collect();
    let few = Catalog { index: *index, services: concerned, ..Catalog::default() };
    let held = build::build(&few, &known.present, &known.build).held;
    // A line of before 0.2 may not name its service.
    let is_free = |occupant: &&Occupant| occupant.service().is_some() && !held.keeps(occupant);
    left.into_iter().filter(is_free).filter_map(Occupant::id).cloned().collect()
}

/// The servers of those who are gone, and how they leave. In a backend of ours that has no one else they stay: requests
/// have nowhere else to go.
fn servers<'a>(
    seats: &'a Seats,
    gone: &'a BTreeSet<InstanceId>,
) -> impl Iterator<Item = ((BackendName, ServerName), State)> {
    let is_gone = |occupant: &Occupant| occupant.id().is_some_and(|id| gone.contains(id));
    let keeps_one =
        move |servers: &[Server]| servers.iter().any(|server| server.is_enabled() && !is_gone(&server.occupant));
    let left = seats.backends.iter().filter(move |(_, backend)| !backend.is_ours || keeps_one(&backend.servers));
    left.flat_map(move |(name, backend)| {
        backend.servers.iter().filter_map(move |server| match &server.occupant {
            Occupant::Instance { id, drain, .. } if gone.contains(id) => {
                let state = if drain.is_some() { State::Drain } else { State::Maint };
                Some(((name.clone(), server.name.clone()), state))
            }
            Occupant::Instance { .. } | Occupant::Free { .. } => None,
        })
    })
}

fn changes(out: Out) -> impl Iterator<Item = StateChange> {
    out.into_iter().map(|((backend, server), state)| StateChange { backend, server, state })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::file;
    use crate::desired::{Grants, Owner, SlotPolicy};
    use crate::haproxy::text::ConfigText;
    use crate::observed::Observed;
    use crate::plan::guard::Share;

    const GUARD: guard::Options = guard::Options { share: Share::DEFAULT, min: 5, policy: Policy::Sync };

    /// `api` with these instances.
    fn catalog(index: u64, ids: &[&str]) -> Catalog {
        let one = |id: &&str| {
            format!(
                r#"{{"ID": "{id}", "ServiceName": "api", "Namespace": "default", "Address": "10.0.0.1", "Port": 1,
                "Tags": ["haproxy.enable=true"]}}"#
            )
        };
        let all: Vec<String> = ids.iter().map(one).collect();
        file::parse(&format!(r#"{{"Index": {index}, "Services": [{}]}}"#, all.join(","))).expect("a catalog")
    }

    /// A pass over the same, at index 5; instance `d` drains.
    fn found(ids: &[&str]) -> Found {
        let owner: Owner = "nomad".parse().expect("an owner");
        let server = |(slot, id): (usize, &&str)| {
            let drain = if *id == "d" { r#","drain":"1s""# } else { "" };
            format!(
                "  server api_{slot} 10.0.0.1:1 weight 1 # {{\"id\":\"{id}\",\"owner\":\"nomad\",\"service\":\"default/api\"{drain}}}\n"
            )
        };
        let servers: String = (1..).zip(ids).map(server).collect();
        let text = format!("backend api\n  description nomad-haproxy:nomad api default/api\n{servers}");
        let observed = Observed::new(1, ConfigText::new(&text), &owner);
        let build = build::Options {
            prefix: "haproxy.".into(),
            owner,
            slots: SlotPolicy { min_free: 0, max: 9 },
            init_state: false,
            lingers: false,
            grants: Grants::default(),
            targets: build::TargetNames::default(),
            frontend: None,
        };
        Found { seats: Arc::new(Seats::new(&observed)), present: Arc::new(observed.present()), build, index: 5 }
    }

    fn out(found: &Found, catalog: &Catalog) -> Vec<String> {
        let gone = gone(found, catalog, &GUARD);
        servers(&found.seats, &gone).map(|((_, server), state)| format!("{server} {}", state.as_str())).collect()
    }

    #[test]
    fn who_is_gone_leaves_as_its_tags_say() {
        let found = found(&["a", "b", "c", "d"]);
        assert_eq!(out(&found, &catalog(6, &["b", "c"])), ["api_1 maint", "api_4 drain"]);
        assert_eq!(out(&found, &catalog(6, &["a", "b", "c", "d"])), Vec::<String>::new());
    }

    #[test]
    fn removals_that_need_proof_are_left_to_the_next_pass() {
        let many = found(&["1", "2", "3", "4", "5", "6", "7", "8"]);
        assert_eq!(out(&many, &catalog(6, &["1", "2", "3"])), Vec::<String>::new(), "5 of 8 are above the limits");
        assert_eq!(out(&many, &catalog(4, &["1", "2", "3", "4", "5", "6", "7"])), Vec::<String>::new(), "index 4");
        assert_eq!(out(&many, &catalog(6, &["1", "2", "3", "4", "5", "6", "7"])), ["api_8 maint"]);
    }

    #[test]
    fn few_of_many_are_out_before_the_pass() {
        let found = found(&["a", "b", "c", "d"]);
        let out = |catalog: &Catalog, options: &guard::Options| -> Vec<String> {
            let gone = gone_of_few(&found, catalog, options);
            servers(&found.seats, &gone).map(|((_, server), state)| format!("{server} {}", state.as_str())).collect()
        };
        let none = Vec::<String>::new();
        assert_eq!(out(&catalog(6, &["b", "c"]), &GUARD), ["api_1 maint", "api_4 drain"]);
        assert_eq!(out(&catalog(6, &["a", "b", "c", "d", "e"]), &GUARD), none);
        assert_eq!(out(&catalog(6, &["e"]), &GUARD), none, "all of them");
        assert_eq!(out(&catalog(4, &["b", "c"]), &GUARD), none, "an older index");
        assert_eq!(out(&catalog(6, &["b", "c"]), &guard::Options { min: 2, ..GUARD }), none, "as many as need proof");
        let upsert = guard::Options { policy: Policy::UpsertOnly, ..GUARD };
        assert_eq!(out(&catalog(6, &["b", "c"]), &upsert), none);
        let mut unread = catalog(6, &["b", "c"]);
        unread.namespaces.insert("default".into(), crate::catalog::Unread::Missing);
        assert_eq!(out(&unread, &GUARD), none, "something was not read");
        let mut unclear = catalog(6, &["b", "c"]);
        unclear.services.values_mut().flatten().for_each(|one| one.tags = vec!["haproxy.enable=perhaps".into()]);
        assert_eq!(out(&unclear, &GUARD), none, "its service is held");
    }

    #[test]
    fn what_is_held_stays() {
        let found = found(&["a", "b"]);
        let mut unread = catalog(6, &["b"]);
        let (service, _) = unread.services.pop_first().expect("api");
        unread.unreadable.insert(service, "500".into());
        assert_eq!(out(&found, &unread), Vec::<String>::new());
    }

    #[test]
    fn the_last_server_stays_until_its_successor_is_there() {
        let found = found(&["a", "b"]);
        let gone = ["a", "b"].map(InstanceId::new).into();
        assert_eq!(servers(&found.seats, &gone).count(), 0);
    }
}
