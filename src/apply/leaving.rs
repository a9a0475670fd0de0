//! Instances that leave while a pass runs do not wait for its end.
//!
//! A pass that validates a large file or waits for a reload takes seconds, and the catalog that it works from was read
//! when it began. So while it runs, the catalog is read after each change, and servers whose instances are gone are taken
//! out of the process. Everything else is left to the next pass, also removals for which the guard asks for proof, and
//! the last server of a backend: its requests have nowhere else to go.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::catalog::Catalog;
use crate::catalog::shared::SharedCatalog;
use crate::catalog::watch::Change;
use crate::desired::build;
use crate::desired::{BackendName, InstanceId, Occupant, Present, Server, ServerName, State};
use crate::errors::chain;
use crate::leader::Lease;
use crate::plan::guard::{self, Missing, Past};
use crate::plane::{Plane, StateChange};

use super::{CONCURRENCY, Controller, Moment, PassStatus, Seats};

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
        self.found.send_replace(None);
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
        let asked: Vec<_> = new.iter().map(|change| self.plane.set_state(change)).collect();
        let answers: Vec<_> = stream::iter(asked).buffered(CONCURRENCY).collect().await;
        for (StateChange { backend, server, .. }, answer) in new.iter().zip(answers) {
            if let Err(error) = answer {
                // As while HAProxy reloads; the next pass has it to do.
                tracing::debug!(%backend, %server, error = %chain(&error), "an instance that left is not out yet");
            }
        }
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
    use crate::plan::guard::{Policy, Share};

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
            format!("  server api_{slot} 10.0.0.1:1 weight 1 # {{\"id\":\"{id}\",\"owner\":\"nomad\"{drain}}}\n")
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
