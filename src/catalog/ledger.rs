//! What is known of Nomad's catalog, and what is to be read next. Pure: the IO is in [`super::nomad`] and
//! [`super::watch`].
//!
//! The whole catalog is read at the start, at each resync, and where something may have been missed. Between these reads
//! only the services that events name are read, each in full, and what is read replaces what was known. So an event is
//! never taken for state: one that comes late, twice, or in another order than the answers costs a read at the most.
//!
//! An event explains a wake of the blocking query if it has just that index: the index of the list is that of the last
//! change of any service. A wake without such an event means that something was missed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::desired::ServiceKey;

use super::{Catalog, JobCheck, Registration, Unread};

/// Fewer services than this are always read one by one. From here on the whole catalog is read if more services changed
/// than it has: most of them are none of ours, and the list says so in one call.
const ALWAYS_SINGLE: usize = 32;

/// Why Nomad is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Events name services: just these are read.
    Event,
    /// Everything, as nothing is known yet.
    Start,
    /// Everything, as it is time for it.
    Resync,
    /// Everything, as no event stream says what has changed.
    NoStream,
    /// Everything, as the event stream begins: what was before it is not known.
    Stream,
    /// Everything, as the blocking query woke and no event says why.
    Unexplained,
    /// Everything, as Nomad's index went back.
    IndexWentBack,
    /// Everything, as an event does not name a service that can be read on its own.
    Unnamed,
    /// Everything, as too many services changed.
    Many,
    /// Everything, as a namespace could not be read the last time.
    Retry,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Event,
        Self::Start,
        Self::Resync,
        Self::NoStream,
        Self::Stream,
        Self::Unexplained,
        Self::IndexWentBack,
        Self::Unnamed,
        Self::Many,
        Self::Retry,
    ];

    /// For logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Start => "start",
            Self::Resync => "resync",
            Self::NoStream => "no-stream",
            Self::Stream => "stream",
            Self::Unexplained => "unexplained",
            Self::IndexWentBack => "index-went-back",
            Self::Unnamed => "unnamed",
            Self::Many => "many",
            Self::Retry => "retry",
        }
    }
}

/// One line of the event stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The Raft index.
    pub index: u64,
    /// The services that it names; `None` stands for an event that names none.
    pub services: Vec<Option<ServiceKey>>,
}

/// What is to be read next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Todo {
    /// Nothing: what is known is current, as far as the hints go.
    Nothing(Arc<Catalog>),
    /// These services.
    Services(BTreeSet<ServiceKey>),
    /// Everything.
    Everything(Cause),
}

/// What a wake of the blocking query means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// What it is about is known, or will be read.
    Explained,
    /// An event is to explain it; without one, soon, [`Ledger::gives_up_on`] it.
    Waits,
    /// There is more to read now.
    Reads,
}

/// Identifies the moment at which a read began.
#[derive(Debug, Clone, Copy)]
pub struct Ticket {
    /// Hints that came later outlive it.
    hints: u64,
    /// An answer with a lower index is from before this moment.
    index: u64,
    /// The highest index of any hint until then.
    highest: u64,
}

/// The answer about one service: its registrations at an index, or why there is none.
pub type Answer = (ServiceKey, Result<(u64, Vec<Registration>), String>);

/// An answer is from before what is known: Nomad's state was restored, or this is another cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WentBack;

/// A service that is to be read.
#[derive(Debug, Clone, Copy)]
struct Hint {
    /// Which hint it was, counted from the start.
    number: u64,
    /// The index that an answer must have reached.
    index: u64,
}

/// What the last reads gave.
#[derive(Debug)]
struct Known {
    catalog: Arc<Catalog>,
    /// The index of the last full read: what changed up to it is known, whether events said so or not.
    index: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Ledger {
    /// The watched namespaces; `*` is all.
    namespaces: Vec<String>,
    known: Option<Known>,
    /// Why the whole catalog is to be read, and since which hint.
    everything: Option<(Cause, u64)>,
    services: BTreeMap<ServiceKey, Hint>,
    /// The indexes of events since the last full read.
    explained: BTreeSet<u64>,
    /// The event streams that are wanted; of those that are open, the last index.
    streams: BTreeMap<String, Option<u64>>,
    /// Whether the last read left some of them.
    is_unfinished: bool,
    /// Whether the jobs that it needed could not all be read.
    lacks_jobs: bool,
    /// The highest index of any hint or read.
    highest: u64,
    /// The last index of the blocking query.
    listed: u64,
    /// How many hints there have been.
    hints: u64,
    /// How often the streams and the blocking query had to start over.
    epoch: u64,
}

impl Ledger {
    /// Nothing is known yet, and no stream is wanted.
    pub fn new(namespaces: Vec<String>) -> Self {
        Self {
            namespaces,
            known: None,
            everything: None,
            services: BTreeMap::new(),
            is_unfinished: false,
            lacks_jobs: false,
            explained: BTreeSet::new(),
            streams: BTreeMap::new(),
            highest: 0,
            listed: 0,
            hints: 0,
            epoch: 0,
        }
    }

    /// This stream will be opened. Before that, every read is of everything.
    pub fn wants(&mut self, stream: &str) {
        self.streams.entry(stream.to_owned()).or_default();
    }

    /// A stream was opened. What changed before is unknown.
    pub fn opened(&mut self, stream: &str) {
        self.streams.insert(stream.to_owned(), Some(0));
        self.read_everything(Cause::Stream);
    }

    /// A stream has ended.
    pub fn closed(&mut self, stream: &str) {
        self.streams.insert(stream.to_owned(), None);
    }

    /// Whether every stream that is needed is open.
    pub fn has_streams(&self) -> bool {
        // A namespace that cannot be read has no stream, and is held anyway.
        let is_unread =
            |stream: &String| self.known.as_ref().is_some_and(|known| known.catalog.namespaces.contains_key(stream));
        let mut open = self.streams.values().filter(|last| last.is_some());
        open.next().is_some() && self.streams.iter().all(|(stream, last)| last.is_some() || is_unread(stream))
    }

    /// How often the streams and the blocking query had to start over: because the index went back, or because the
    /// streams do not have everything.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Takes a line of a stream. Returns whether there is more to read.
    pub fn heard(&mut self, stream: &str, line: Line) -> bool {
        let Line { index, services } = line;
        let last = self.streams.entry(stream.to_owned()).or_default().get_or_insert(0);
        if index < *last {
            self.starts_over();
            return true;
        }
        *last = index;
        self.highest = self.highest.max(index);
        self.explained.insert(index);
        let mut reads = false;
        for service in services {
            let Some(service) = service else {
                self.read_everything(Cause::Unnamed);
                reads = true;
                continue;
            };
            if !self.watches(&service.namespace) {
                continue;
            }
            reads = true;
            // Whether a service with such a name is ours is for the list to say; and a namespace that could not be
            // read may be there now.
            if is_readable(&service) && !self.is_unread(&service.namespace) {
                self.hints += 1;
                self.services.insert(service, Hint { number: self.hints, index });
            } else {
                self.read_everything(Cause::Unnamed);
            }
        }
        reads
    }

    /// The blocking query has an answer: the index was `before`, and is `now`. 0 is unknown.
    pub fn woke(&mut self, before: u64, now: u64) -> Woken {
        if now < before {
            self.starts_over();
            return Woken::Reads;
        }
        (self.highest, self.listed) = (self.highest.max(now), now);
        if now == before || self.is_explained(now) {
            return Woken::Explained;
        }
        if self.known.is_some() && self.streams.values().any(Option::is_some) {
            return Woken::Waits;
        }
        self.read_everything(Cause::Unexplained);
        Woken::Reads
    }

    /// No more events are awaited for a wake. Returns whether there is more to read.
    pub fn gives_up_on(&mut self, index: u64) -> bool {
        let is_explained = self.is_explained(index);
        if !is_explained {
            self.read_everything(Cause::Unexplained);
            // A stream of all namespaces lacks those that were made after it was opened, and one from before a restore
            // has nothing any more (seen).
            if self.streams.contains_key("*") {
                self.epoch += 1;
            }
        }
        !is_explained
    }

    fn is_explained(&mut self, index: u64) -> bool {
        // The next wake has a higher index.
        self.explained = self.explained.split_off(&index);
        self.explained.contains(&index) || self.known.as_ref().is_some_and(|known| index <= known.index)
    }

    /// What is to be read now; at a resync, everything.
    pub fn todo(&self, is_resync: bool) -> (Ticket, Todo) {
        let index = self.known.as_ref().map_or(0, |known| known.catalog.index).max(self.listed);
        let ticket = Ticket { hints: self.hints, index, highest: self.highest };
        let Some(known) = &self.known else { return (ticket, Todo::Everything(Cause::Start)) };
        let many = ALWAYS_SINGLE.max(known.catalog.services.len());
        let todo = match self.everything {
            Some((cause, _)) => Todo::Everything(cause),
            None if is_resync => Todo::Everything(Cause::Resync),
            None if !self.has_streams() => Todo::Everything(Cause::NoStream),
            None if self.services.is_empty() => Todo::Nothing(known.catalog.clone()),
            None if self.services.len() > many => Todo::Everything(Cause::Many),
            None => Todo::Services(self.services.keys().cloned().collect()),
        };
        (ticket, todo)
    }

    /// The index that an answer must have reached to be as new as every hint; `None` before the first read.
    pub fn floor(&self) -> Option<u64> {
        self.known.as_ref().map(|_| self.highest)
    }

    /// The last catalog.
    pub fn catalog(&self) -> Option<Arc<Catalog>> {
        self.known.as_ref().map(|known| known.catalog.clone())
    }

    /// Whether the last read left something that it should have read: it is to be tried again.
    pub fn is_unfinished(&self) -> bool {
        self.is_unfinished || self.lacks_jobs || self.lacks_namespace()
    }

    /// It is time to try again. Services that could not be read are in the next read in any case.
    pub fn retries(&mut self) {
        if self.lacks_namespace() {
            self.read_everything(Cause::Retry);
        }
    }

    /// The jobs of the last read could, or could not, all be read.
    pub fn has_jobs(&mut self, has_all: bool) {
        self.lacks_jobs = !has_all;
    }

    fn lacks_namespace(&self) -> bool {
        let mut unread = self.known.iter().flat_map(|known| known.catalog.namespaces.values());
        unread.any(|unread| matches!(unread, Unread::Failed(_)))
    }

    /// Everything was read.
    pub fn read_all(&mut self, ticket: Ticket, catalog: Arc<Catalog>) {
        let is_later = |number: u64| number > ticket.hints;
        let is_noticed =
            self.everything.is_some_and(|(cause, number)| cause == Cause::IndexWentBack && !is_later(number));
        if !is_noticed && catalog.index < ticket.index {
            self.forgets_indexes();
        }
        // The events are of a state from before a restore: one of their indexes may come again.
        if catalog.index < ticket.highest {
            self.explained.clear();
        }
        self.highest = self.highest.max(catalog.index);
        self.everything = self.everything.filter(|(_, number)| is_later(*number));
        self.services.retain(|_, hint| is_later(hint.number) && hint.index > catalog.index);
        self.explained = self.explained.split_off(&(catalog.index + 1));
        let failed = catalog.unreadable.keys().filter(|service| is_readable(service));
        let failed: Vec<_> =
            failed.map(|service| (service.clone(), Hint { number: ticket.hints, index: catalog.index })).collect();
        self.is_unfinished = !failed.is_empty();
        self.services.extend(failed);
        self.known = Some(Known { index: catalog.index, catalog });
    }

    /// Services were read, one by one; `is_ours` says whether the list would have counted a service as ours. Without
    /// any answer from after the last read, nothing is taken over.
    pub fn read_some(
        &mut self,
        answers: Vec<Answer>,
        is_ours: impl Fn(&[Registration]) -> bool,
    ) -> Result<Arc<Catalog>, WentBack> {
        let Some(known) = &mut self.known else { return Err(WentBack) };
        let went_back = |(_, answer): &Answer| answer.as_ref().is_ok_and(|(index, _)| *index < known.catalog.index);
        if answers.iter().any(went_back) {
            self.starts_over();
            return Err(WentBack);
        }
        let catalog = Arc::make_mut(&mut known.catalog);
        self.is_unfinished = answers.iter().any(|(_, answer)| answer.is_err());
        for (service, answer) in answers {
            let was_known = catalog.services.contains_key(&service) || catalog.unreadable.contains_key(&service);
            match answer {
                Ok((index, registrations)) => {
                    catalog.index = catalog.index.max(index);
                    catalog.unreadable.remove(&service);
                    // The server that answers may be behind the one that sent the event.
                    if self.services.get(&service).is_some_and(|hint| hint.index <= index) {
                        self.services.remove(&service);
                    } else {
                        self.is_unfinished = true;
                    }
                    if is_ours(&registrations) || (registrations.is_empty() && was_known) {
                        catalog.services.insert(service, registrations);
                    } else {
                        catalog.services.remove(&service);
                    }
                }
                // Of a service that was not known there is nothing to hold.
                Err(why) if was_known => {
                    catalog.services.remove(&service);
                    catalog.unreadable.insert(service, why);
                }
                Err(_) => {}
            }
        }
        self.highest = self.highest.max(catalog.index);
        Ok(known.catalog.clone())
    }

    /// What jobs say of the checks of the services that are known; the catalog with it.
    pub fn has_checks(&mut self, checks: BTreeMap<ServiceKey, Result<JobCheck, String>>) -> Arc<Catalog> {
        match &mut self.known {
            Some(known) => {
                Arc::make_mut(&mut known.catalog).checks = checks;
                known.catalog.clone()
            }
            None => Arc::new(Catalog { checks, ..Catalog::default() }),
        }
    }

    fn starts_over(&mut self) {
        self.forgets_indexes();
        self.read_everything(Cause::IndexWentBack);
    }

    /// Those from before and after a restore cannot be compared.
    fn forgets_indexes(&mut self) {
        self.epoch += 1;
        (self.highest, self.listed) = (0, 0);
        self.explained.clear();
    }

    fn read_everything(&mut self, cause: Cause) {
        self.hints += 1;
        self.everything = Some((cause, self.hints));
    }

    fn watches(&self, namespace: &str) -> bool {
        watches(&self.namespaces, namespace)
    }

    fn is_unread(&self, namespace: &str) -> bool {
        self.known.as_ref().is_some_and(|known| known.catalog.namespaces.contains_key(namespace))
    }
}

/// Whether a namespace is among the watched ones; `*` is all.
pub(super) fn watches(namespaces: &[String], namespace: &str) -> bool {
    namespaces.iter().any(|watched| watched == "*" || watched == namespace)
}

/// Whether a service can be requested by its name: `a/b` is answered with 405 (recorded), and `.` and `..` do not
/// survive in a URL.
pub(super) fn is_readable(service: &ServiceKey) -> bool {
    !service.name.contains('/') && !matches!(service.name.as_str(), "" | "." | "..")
}

#[cfg(test)]
mod tests;
