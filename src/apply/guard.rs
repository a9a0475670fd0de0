//! The guard in a pass: between what was read and what is planned. It asks Nomad for proof, and remembers it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::catalog::Catalog;
use crate::catalog::fate::{Origin, Question};
use crate::catalog::shared::SharedCatalog;
use crate::desired::build::Built;
use crate::desired::{InstanceId, NamespaceNote};
use crate::observed::Observed;
use crate::plan::guard::{Fate, Holding, Missing, Options, Past, RELEASE, RELEASE_BY_API};

use super::Moment;

/// Between two queries for an allocation that runs: Nomad may remove a registration a moment before it reports that the
/// allocation has ended, as when a node is lost. Each further query waits twice as long.
const FIRST_RETRY: Duration = Duration::from_millis(250);
/// The longest wait; each resync queries in any case.
const LAST_RETRY: Duration = Duration::from_secs(30);

/// The guard of one HAProxy, with what it remembers. A controller that restarts has forgotten which instances were
/// held: then the share alone decides.
#[derive(Debug)]
pub(super) struct Guard {
    options: Options,
    /// The index of the last catalog; 0 before the first.
    index: u64,
    /// Whether the index went back, and some of the instances that vanished then are not accounted for yet.
    index_went_back: bool,
    /// The origins of the instances in the last catalog, and of those that have vanished since.
    origins: BTreeMap<InstanceId, Origin>,
    /// The instances that are held, and the last answer about each.
    held: BTreeMap<InstanceId, Fate>,
    /// When they are queried again, and the interval since the last query.
    retry: Option<(Instant, Duration)>,
    /// Those that a person let go, until they are out or registered again.
    released: BTreeSet<InstanceId>,
    /// What was last logged: whether something is held, and the notes about namespaces.
    announced: (bool, Vec<NamespaceNote>),
}

impl Guard {
    pub(super) fn new(options: Options) -> Self {
        Self {
            options,
            index: 0,
            index_went_back: false,
            origins: BTreeMap::new(),
            held: BTreeMap::new(),
            retry: None,
            released: BTreeSet::new(),
            announced: (false, Vec::new()),
        }
    }

    /// A person lets go of what is held now. Returns how many instances that is.
    pub(super) fn release(&mut self) -> usize {
        self.released.extend(self.held.keys().cloned());
        self.held.len()
    }

    /// The limits.
    pub(super) fn options(&self) -> Options {
        self.options
    }

    /// Whether it has nothing to remember: below its limits, removals need no proof.
    pub(super) fn is_calm(&self) -> bool {
        self.held.is_empty() && !self.index_went_back
    }

    /// Records a catalog that was read.
    pub(super) fn saw_catalog(&mut self, catalog: &Catalog) {
        if catalog.index < self.index {
            self.index_went_back = true;
            // Indexes from before and after a restore cannot be compared.
            self.origins.clear();
        }
        self.index = catalog.index;
        let registrations = catalog.services.values().flatten();
        self.origins.extend(registrations.map(|one| (InstanceId::new(&one.id), Origin::of(one))));
    }

    /// Decides which instances stay, and has the desired state hold them.
    pub(super) async fn review(
        &mut self,
        source: &SharedCatalog,
        built: &mut Built,
        observed: &Observed,
        moment: Moment,
    ) -> Option<Holding> {
        let past = Past { held: &self.held, index_went_back: self.index_went_back };
        let missing = Missing::new(built, observed, &self.options, past);
        self.forget(built, &missing);
        let due = moment.everything || self.retry.is_some_and(|(at, _)| moment.instant >= at);
        let is_known = |id| self.held.get(id).filter(|_| !due);
        let (known, unknown): (Vec<_>, Vec<_>) =
            missing.needs_proof().iter().partition(|one| is_known(&one.id).is_some());
        let mut fates: BTreeMap<InstanceId, Fate> =
            known.iter().filter_map(|one| Some((one.id.clone(), is_known(&one.id)?.clone()))).collect();
        let question = |instance: &_| Question {
            instance: Clone::clone(instance),
            origin: self.origins.get(&instance.id).cloned(),
        };
        let asked: Vec<Question> = unknown.into_iter().map(question).collect();
        let has_asked = !asked.is_empty();
        if has_asked {
            fates.extend(source.fates(asked).await);
        }
        self.released.retain(|id| missing.vanished().iter().any(|one| one.id == *id));
        fates.extend(self.released.iter().map(|id| (id.clone(), Fate::Gone)));
        let holding = missing.verdict(&fates);
        self.remember(holding.as_ref(), has_asked, moment.instant);
        if let Some(holding) = &holding {
            holding.hold(built);
        }
        holding
    }

    /// Only instances that are registered, or have just vanished, can be queried.
    fn forget(&mut self, built: &Built, missing: &Missing) {
        let backends = built.desired.backends.values();
        let present = backends.flat_map(|backend| &backend.instances).map(|instance| &instance.id);
        let known = present.chain(missing.vanished().iter().map(|one| &one.id));
        self.origins = known.filter_map(|id| self.origins.remove_entry(id)).collect();
    }

    fn remember(&mut self, holding: Option<&Holding>, has_asked: bool, now: Instant) {
        self.held =
            holding.iter().flat_map(|holding| holding.fates()).map(|(id, fate)| (id.clone(), fate.clone())).collect();
        self.index_went_back &= holding.is_some();
        let may_change = self.held.values().any(|fate| matches!(fate, Fate::Running | Fate::Unreadable(_)));
        self.retry = match self.retry {
            _ if !may_change => None,
            Some(retry) if !has_asked => Some(retry),
            earlier => {
                let wait = earlier.map_or(FIRST_RETRY, |(_, wait)| (wait * 2).min(LAST_RETRY));
                Some((now + wait, wait))
            }
        };
    }

    /// When the next query is due.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        self.retry.map(|(at, _)| at)
    }

    /// Logs when it begins to hold something and when it stops; the same for each namespace.
    pub(super) fn announce(&mut self, holding: Option<&Holding>, namespaces: &[NamespaceNote]) {
        let (was_holding, earlier) = &self.announced;
        for NamespaceNote { namespace, text, code: _ } in namespaces.iter().filter(|note| !earlier.contains(note)) {
            tracing::error!(namespace = %namespace.escape_debug(), error = text, "nothing is read of a namespace");
        }
        let is_there = |note: &NamespaceNote| namespaces.iter().any(|other| other.namespace == note.namespace);
        for NamespaceNote { namespace, .. } in earlier.iter().filter(|note| !is_there(note)) {
            tracing::info!(namespace = %namespace.escape_debug(), "a namespace is read again");
        }
        match holding {
            Some(holding) if !was_holding => {
                let (reason, instances) = (holding.reason(), holding.instances());
                let release = format!("{RELEASE}, or {RELEASE_BY_API}");
                tracing::warn!(%reason, instances, release, "the guard holds instances that the catalog lacks");
            }
            None if *was_holding => tracing::info!("the guard holds nothing any more"),
            _ => {}
        }
        self.announced = (holding.is_some(), namespaces.to_vec());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A catalog at an index, with nothing in it.
    fn catalog(index: u64) -> Catalog {
        Catalog { index, ..Catalog::default() }
    }

    fn guard() -> Guard {
        use crate::plan::guard::{Policy, Share};
        Guard::new(Options { share: Share::DEFAULT, min: 5, policy: Policy::Sync })
    }

    fn served() -> Observed {
        let line =
            |n: u32| format!("  server a_{n} 10.0.0.1:1 # {{\"owner\":\"nomad\",\"id\":\"{n}\",\"alloc\":\"a\"}}\n");
        let text = format!("backend a\n  description nomad-haproxy:nomad default/a\n{}{}", line(1), line(2));
        Observed::new(1, crate::haproxy::text::ConfigText::new(&text), &"nomad".parse().expect("an owner"))
    }

    #[tokio::test]
    async fn a_catalog_file_proves_nothing_so_what_it_lacks_is_held() {
        let (mut guard, mut built) = (guard(), Built::default());
        guard.saw_catalog(&catalog(1));
        let source = SharedCatalog::new(crate::catalog::Source::File("unused".into()));
        let holding = guard.review(&source, &mut built, &served(), Moment::now(true)).await.expect("all are gone");
        assert_eq!((holding.instances(), built.held.instances.len(), built.notes.len()), (2, 2, 1));
        assert_eq!(guard.next_retry(), None, "a file never answers, so there is no further query");
    }

    #[tokio::test]
    async fn a_person_lets_go_of_what_is_held_and_of_nothing_else() {
        let (mut guard, mut built) = (guard(), Built::default());
        guard.saw_catalog(&catalog(1));
        let source = SharedCatalog::new(crate::catalog::Source::File("unused".into()));
        assert_eq!(guard.release(), 0);
        assert!(guard.review(&source, &mut built, &served(), Moment::now(true)).await.is_some());
        assert_eq!(guard.release(), 2);
        assert_eq!(guard.review(&source, &mut Built::default(), &served(), Moment::now(true)).await, None);
        let text = served().text.to_string().replace("\"id\":\"1\"", "\"id\":\"3\"");
        let others = Observed::new(2, crate::haproxy::text::ConfigText::new(&text), &served().owner);
        let holding = guard.review(&source, &mut Built::default(), &others, Moment::now(true)).await;
        assert_eq!(holding.map(|holding| holding.instances()), Some(1), "instance 3 was not held then");
    }

    #[test]
    fn the_index_counts_as_gone_back_until_all_are_accounted_for() {
        let mut guard = guard();
        for (index, went_back) in [(20, false), (20, false), (30, false), (29, true), (31, true)] {
            guard.saw_catalog(&catalog(index));
            assert_eq!(guard.index_went_back, went_back, "{index}");
        }
        guard.remember(None, false, Instant::now());
        assert!(!guard.index_went_back);
    }

    #[test]
    fn an_allocation_that_runs_is_asked_for_again_at_growing_intervals() {
        use crate::plan::guard::Past;
        let (mut guard, now) = (guard(), Instant::now());
        let held = |fate: Fate| {
            let past = Past { held: &BTreeMap::new(), index_went_back: false };
            let missing = Missing::new(&Built::default(), &served(), &guard_options(), past);
            missing.verdict(&BTreeMap::from([(InstanceId::new("1"), fate), (InstanceId::new("2"), Fate::Gone)]))
        };
        let mut waits = Vec::new();
        for _ in 0..9 {
            guard.remember(held(Fate::Running).as_ref(), true, now);
            waits.push(guard.next_retry().map(|at| at.duration_since(now).as_millis()).unwrap_or_default());
        }
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        guard.remember(held(Fate::Unknown).as_ref(), true, now);
        assert_eq!(guard.next_retry(), None, "what Nomad does not know it does not learn");
    }

    fn guard_options() -> Options {
        guard().options
    }
}
