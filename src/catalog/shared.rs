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
use super::{Catalog, Source, SourceError};

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
    /// The namespaces that it was asked to look at in any case.
    served: BTreeSet<String>,
    result: Result<Reading, Arc<SourceError>>,
}

impl Last {
    fn is_good_for(&self, served: &BTreeSet<String>, since: Instant) -> bool {
        let since = match self.result {
            Ok(_) => since,
            Err(_) => since.max(Instant::now().checked_sub(ERROR_SHARED).unwrap_or(since)),
        };
        self.began >= since && self.served.is_superset(served)
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

    /// The catalog by a read that began at `since` or later; `served` are the namespaces that the asking target
    /// serves (see [`Source::read`]). With `everything`, the services of unwatched namespaces are listed again, too. The
    /// error is that read's, shared like the catalog.
    pub async fn read(
        &self,
        served: &BTreeSet<String>,
        since: Instant,
        everything: bool,
    ) -> Result<Reading, Arc<SourceError>> {
        let mut last = self.last.lock().await;
        if let Some(last) = last.as_ref().filter(|last| last.is_good_for(served, since)) {
            return last.result.clone();
        }
        let (began, at) = (Instant::now(), SystemTime::now());
        // Those of the other targets too, so that they can share it.
        let mut served: BTreeSet<String> = last.iter().flat_map(|last| &last.served).chain(served).cloned().collect();
        let result = match self.source.read(&served).await {
            Ok(mut catalog) => {
                // What the list has was looked at, too.
                served.extend(catalog.services.keys().map(|service| service.namespace.clone()));
                catalog.unwatched = self.unwatched(since, everything).await;
                Ok(Reading { catalog: Arc::new(catalog), at })
            }
            Err(error) => Err(Arc::new(error)),
        };
        last.insert(Last { began, served, result }).result.clone()
    }

    /// They are only used for notes, so if they cannot be listed now, the last ones are used.
    async fn unwatched(&self, since: Instant, everything: bool) -> BTreeSet<ServiceKey> {
        let mut known = self.unwatched.lock().await;
        if known.as_ref().is_none_or(|known| everything && known.listed < since) {
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
        let index = async |since| shared.read(&names(&[]), since, true).await.map(|reading| reading.catalog.index).ok();
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
            shared.read(&names(served), start, true).await.map(|reading| reading.catalog.index).ok()
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
        let index = async |served| shared.read(served, start, true).await.map(|reading| reading.catalog.index).ok();
        assert_eq!(index(&of_none).await, Some(1));
        file.write(&indexed(2));
        assert_eq!((index(&of_a).await, index(&of_b).await), (Some(1), Some(2)));
    }

    #[test]
    fn an_error_is_shared_only_for_a_moment() {
        let began = Instant::now();
        let ago = |time| began.checked_sub(time).expect("this machine is up for longer");
        let error = SourceError::Nomad(crate::nomad::NomadError::NoLeader);
        let mut last = Last { began, served: names(&[]), result: Err(Arc::new(error)) };
        assert!(last.is_good_for(&names(&[]), ago(ERROR_SHARED * 4)));
        last.began = ago(ERROR_SHARED * 2);
        assert!(!last.is_good_for(&names(&[]), ago(ERROR_SHARED * 4)));
        last.result = Ok(Reading { catalog: Arc::default(), at: SystemTime::now() });
        assert!(last.is_good_for(&names(&[]), ago(ERROR_SHARED * 4)));
    }
}
