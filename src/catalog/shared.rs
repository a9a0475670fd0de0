//! One catalog for all targets: the first one that needs it reads it, the others share the result.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::desired::{InstanceId, ServiceKey};
use crate::errors::chain;
use crate::plan::guard::Fate;

use super::fate::Question;
use super::{Catalog, Fetched, Source, SourceError};

/// An answer about an allocation is shared for this long. It is shorter than the guard's first retry (250 ms), which
/// asks because the answer may have changed.
const FATE_SHARED: Duration = Duration::from_millis(200);
/// That an allocation is gone is shared for longer, for targets whose passes take long.
const GONE_SHARED: Duration = Duration::from_secs(10);
/// A failed read is shared for this long: that is the shortest time from a failed pass to the next one.
const ERROR_SHARED: Duration = Duration::from_millis(500);

/// One read of the catalog.
#[derive(Debug, Clone)]
pub struct Reading {
    /// What was read.
    pub catalog: Arc<Catalog>,
    /// When the read began.
    pub at: SystemTime,
}

#[derive(Debug)]
struct Last {
    began: Instant,
    ended: Instant,
    /// When the last read of everything began, if it succeeded.
    full: Option<Instant>,
    /// The namespaces that it was asked to look at in any case.
    served: BTreeSet<String>,
    result: Result<Reading, Arc<SourceError>>,
}

impl Last {
    fn is_good_for(
        &self,
        served: &BTreeSet<String>,
        since: Instant,
        full_since: Option<Instant>,
        now: Instant,
    ) -> bool {
        let is_current = match self.result {
            Ok(_) => self.began >= since && !self.needs_full(full_since),
            // However long Nomad took for it: those that waited meanwhile would wait as long again, one by one.
            Err(_) => self.ended >= since && now < self.ended + ERROR_SHARED,
        };
        is_current && self.served.is_superset(served)
    }

    fn needs_full(&self, since: Option<Instant>) -> bool {
        since.is_some_and(|since| self.full.is_none_or(|full| full < since))
    }
}

/// [`Catalog::unwatched`], and when it was listed.
#[derive(Debug)]
struct Unwatched {
    listed: Instant,
    services: BTreeSet<ServiceKey>,
}

/// A [`Source`] that several targets read. Clones share one state.
///
/// Both locks are held while Nomad is asked, and never while a HAProxy is: a target that hangs keeps no other from
/// the catalog. A read that is given up (its target's pass was cut) lets the next target read.
#[derive(Debug, Clone)]
pub struct SharedCatalog {
    source: Source,
    last: Arc<Mutex<Option<Last>>>,
    unwatched: Arc<Mutex<Option<Unwatched>>>,
    fates: Arc<Mutex<BTreeMap<InstanceId, (Instant, Fate)>>>,
}

impl SharedCatalog {
    /// Nothing is read yet.
    pub fn new(source: Source) -> Self {
        Self { source, last: Arc::default(), unwatched: Arc::default(), fates: Arc::default() }
    }

    /// The source, to watch it.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The catalog by a read that began at `since` or later, in which everything was read at `full_since` or later, the
    /// services of unwatched namespaces included; `served` are the namespaces that the asking target serves (see
    /// [`Source::read`]). The error is that read's, shared like the catalog.
    pub async fn read(
        &self,
        served: &BTreeSet<String>,
        since: Instant,
        full_since: Option<Instant>,
    ) -> Result<Reading, Arc<SourceError>> {
        let mut last = self.last.lock().await;
        if let Some(last) = last.as_ref().filter(|last| last.is_good_for(served, since, full_since, Instant::now())) {
            return last.result.clone();
        }
        let full = last.as_ref().and_then(|last| last.full);
        let is_resync =
            last.as_ref().is_some_and(|last| last.needs_full(full_since) || !last.served.is_superset(served));
        let (began, at) = (Instant::now(), SystemTime::now());
        // Those of the other targets too, so that they can share it.
        let mut served: BTreeSet<String> = last.iter().flat_map(|last| &last.served).chain(served).cloned().collect();
        let (full, result) = match self.source.read(&served, is_resync).await {
            Ok(Fetched { mut catalog, is_full }) => {
                // What the list has was looked at, too.
                let namespaces: BTreeSet<&String> = catalog.services.keys().map(|service| &service.namespace).collect();
                served.extend(namespaces.into_iter().cloned());
                let unwatched = self.unwatched(full_since).await;
                if catalog.unwatched != unwatched {
                    Arc::make_mut(&mut catalog).unwatched = unwatched;
                }
                (if is_full { Some(began) } else { full }, Ok(Reading { catalog, at }))
            }
            Err(error) => (full, Err(Arc::new(error))),
        };
        last.insert(Last { began, ended: Instant::now(), full, served, result }).result.clone()
    }

    /// They are only used for notes, so if they cannot be listed now, the last ones are used.
    async fn unwatched(&self, since: Option<Instant>) -> BTreeSet<ServiceKey> {
        let mut known = self.unwatched.lock().await;
        if known.as_ref().is_none_or(|known| since.is_some_and(|since| known.listed < since)) {
            let listed = Instant::now();
            match self.source.unwatched().await {
                Ok(services) => *known = Some(Unwatched { listed, services }),
                Err(error) => tracing::debug!(error = %chain(&error), "cannot list the services of other namespaces"),
            }
        }
        known.as_ref().map(|known| known.services.clone()).unwrap_or_default()
    }

    /// What became of instances that the catalog lacks.
    pub async fn fates(&self, asked: Vec<Question>) -> BTreeMap<InstanceId, Fate> {
        let mut known = self.fates.lock().await;
        let now = Instant::now();
        known.retain(|_, (at, fate)| {
            now.duration_since(*at) < if *fate == Fate::Gone { GONE_SHARED } else { FATE_SHARED }
        });
        let (shared, asked): (Vec<_>, Vec<_>) =
            asked.into_iter().partition(|question| known.contains_key(&question.instance.id));
        let mut fates: BTreeMap<InstanceId, Fate> = shared
            .iter()
            .filter_map(|Question { instance, .. }| Some((instance.id.clone(), known.get(&instance.id)?.1.clone())))
            .collect();
        if !asked.is_empty() {
            let answers = self.source.fates(asked).await;
            known.extend(answers.iter().map(|(id, fate)| (id.clone(), (Instant::now(), fate.clone()))));
            fates.extend(answers);
        }
        fates
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// A catalog file, whose index tells which read it was.
    struct File(tempfile::NamedTempFile);

    impl File {
        fn new() -> (Self, SharedCatalog) {
            let file = tempfile::NamedTempFile::new().expect("a file");
            let shared = SharedCatalog::new(Source::File(file.path().to_owned()));
            (Self(file), shared)
        }

        fn write(&self, text: &str) {
            std::fs::write(self.0.path(), text).expect("it is written");
        }
    }

    fn indexed(index: u64) -> String {
        crate::catalog::file::render(&Catalog { index, ..Catalog::default() })
    }

    #[tokio::test]
    async fn a_read_is_shared_by_those_whom_it_is_new_enough_for() {
        let (file, shared) = File::new();
        let index =
            async |since| shared.read(&names(&[]), since, Some(since)).await.map(|reading| reading.catalog.index).ok();
        let start = Instant::now();
        file.write(&indexed(1));
        assert_eq!(index(start).await, Some(1));
        file.write(&indexed(2));
        assert_eq!(index(start).await, Some(1), "shared");
        assert_eq!(index(Instant::now()).await, Some(2), "something has changed since");
    }

    #[tokio::test]
    async fn a_target_that_serves_another_namespace_has_it_looked_at() {
        let (file, shared) = File::new();
        let start = Instant::now();
        let index = async |served: &[&str]| {
            shared.read(&names(served), start, Some(start)).await.map(|reading| reading.catalog.index).ok()
        };
        file.write(&indexed(1));
        assert_eq!(index(&["a"]).await, Some(1));
        file.write(&indexed(2));
        assert_eq!(index(&["b"]).await, Some(2));
        file.write(&indexed(3));
        assert_eq!(index(&["a"]).await, Some(2), "the second read looked at both");
    }

    #[tokio::test]
    async fn a_namespace_that_the_list_has_was_looked_at() {
        let (file, shared) = File::new();
        let start = Instant::now();
        let (of_none, of_a, of_b) = (names(&[]), names(&["a"]), names(&["b"]));
        let one = r#"{"ID": "1", "ServiceName": "s", "Namespace": "a", "Address": "10.0.0.1", "Port": 1}"#;
        file.write(&format!("{{\"Index\": 1, \"Services\": [{one}]}}"));
        let index =
            async |served| shared.read(served, start, Some(start)).await.map(|reading| reading.catalog.index).ok();
        assert_eq!(index(&of_none).await, Some(1));
        file.write(&indexed(2));
        assert_eq!((index(&of_a).await, index(&of_b).await), (Some(1), Some(2)));
    }

    #[test]
    fn an_error_is_shared_only_for_a_moment() {
        let began = Instant::now();
        let ago = |time| began.checked_sub(time).expect("this machine is up for longer");
        let error = SourceError::Nomad(crate::nomad::NomadError::NoLeader);
        let mut last = Last { began, ended: began, full: None, served: names(&[]), result: Err(Arc::new(error)) };
        assert!(last.is_good_for(&names(&[]), ago(ERROR_SHARED * 4), None, began));
        last.began = ago(ERROR_SHARED * 6);
        assert!(
            last.is_good_for(&names(&[]), ago(ERROR_SHARED * 4), None, began),
            "asked for while Nomad did not answer"
        );
        last.ended = ago(ERROR_SHARED * 2);
        assert!(!last.is_good_for(&names(&[]), ago(ERROR_SHARED * 4), None, began));
        last.began = last.ended;
        last.result = Ok(Reading { catalog: Arc::default(), at: SystemTime::now() });
        assert!(last.is_good_for(&names(&[]), ago(ERROR_SHARED * 4), None, began));
    }
}
