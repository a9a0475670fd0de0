//! What one pass remembers for the next. Losing it costs an extra check, never correctness.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::desired::{
    Backend, BackendName, Code, Desired, FrontendRoutes, Instance, Note, Server, ServerName, ServiceKey, Severity,
};
use crate::observed::{Foreign, Observed};
use crate::plan::{Action, LeftOut, Part, Surplus, Waiting};

use super::culprit::Culprit;

/// From a refusal, or a reload that failed, to the next attempt: the cause may be outside of what is visible here (a
/// port in use, a name that did not resolve). Each further attempt waits twice as long.
const FIRST_RETRY: Duration = Duration::from_secs(30);
/// From the attempt to remove a server that somebody is connected to, to the next one; each further attempt waits twice
/// as long.
const FIRST_LEAVING: Duration = Duration::from_secs(1);
/// The longest wait.
const LAST_RETRY: Duration = Duration::from_secs(15 * 60);

/// What is known about the running process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Process {
    /// Nothing: it may differ from its file in anything, so it has to be read.
    #[default]
    Unknown,
    /// This process has just loaded the file, so it has all of it except the drains.
    Loaded {
        /// Its ID.
        pid: u64,
    },
    /// This process was checked against the file at this version.
    Agrees {
        /// Its ID.
        pid: u64,
        /// The version.
        version: u64,
    },
}

/// When something is tried again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Retry {
    wait: Duration,
    at: Instant,
}

impl Retry {
    fn first(now: Instant) -> Self {
        Self { wait: FIRST_RETRY, at: now + FIRST_RETRY }
    }

    /// Of a server that somebody is connected to: most connections end soon.
    fn leaving(now: Instant) -> Self {
        Self { wait: FIRST_LEAVING, at: now + FIRST_LEAVING }
    }

    fn turn(turn: u32, now: Instant) -> Self {
        let wait = FIRST_RETRY.saturating_mul(turn.saturating_add(1)).min(LAST_RETRY);
        Self { wait, at: now + wait }
    }

    fn next(self, now: Instant) -> Self {
        let wait = (self.wait * 2).min(LAST_RETRY);
        Self { wait, at: now + wait }
    }

    fn is_due(self, now: Instant) -> bool {
        now >= self.at
    }
}

/// What was wanted of a part.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    /// `None`: that it is removed.
    Backend(Option<Box<Backend>>),
    Instance(Option<Instance>),
    /// The routes of a frontend.
    Rules(FrontendRoutes),
}

impl Wanted {
    fn new(part: &Part, desired: &Desired) -> Self {
        match part {
            Part::Backend(name) => Self::Backend(desired.backends.get(name).cloned().map(Box::new)),
            Part::Rules(frontend) => Self::Rules(desired.routes.get(frontend).cloned().unwrap_or_default()),
            Part::Instance(name, id) => {
                let mut instances = desired.backends.get(name).into_iter().flat_map(|backend| &backend.instances);
                Self::Instance(instances.find(|instance| instance.id == *id).cloned())
            }
        }
    }
}

/// A change of one part that HAProxy refuses, or could not load.
#[derive(Debug)]
struct Refusal {
    code: Code,
    wanted: Wanted,
    /// A digest of what was not ours at that time: the cause may be in it.
    foreign: Foreign,
    /// The services that it concerns.
    services: BTreeSet<ServiceKey>,
    /// HAProxy's message.
    message: String,
    retry: Retry,
}

/// A change that HAProxy could not load.
#[derive(Debug)]
struct Unloadable {
    /// What took the reload.
    waiting: Waiting,
    /// A digest of what was not ours at that time: the cause may be in it.
    foreign: Foreign,
    /// The services that it concerns.
    services: BTreeSet<ServiceKey>,
    /// HAProxy's message.
    message: String,
    retry: Retry,
}

/// The search for what HAProxy cannot load of a valid change, when it can load the file without it: groups of backends
/// are loaded one after another, and a group that cannot be loaded is halved.
#[derive(Debug)]
struct Search {
    /// The last one is next. All others wait.
    groups: Vec<Vec<(BackendName, BTreeSet<ServiceKey>)>>,
    /// HAProxy's message.
    message: String,
}

/// What a process still lacked after a reload that was made for it: another reload would not help either.
#[derive(Debug)]
pub(super) struct Unhelped {
    /// Servers and backends that it lacks.
    pub(super) lacks: Vec<(BackendName, Option<ServerName>)>,
    /// Changes that it does not take.
    pub(super) actions: Vec<Action>,
    /// A digest of the text that was loaded, without the servers of ours: their live changes make no difference.
    pub(super) digest: u64,
    /// The services that it concerns.
    pub(super) services: BTreeSet<ServiceKey>,
    /// The same as text.
    pub(super) finding: String,
}

/// Servers in service whose host name did not resolve when the process started.
#[derive(Debug)]
struct Unresolved {
    servers: Vec<(BackendName, Server)>,
    retry: Retry,
}

/// A write that was to be loaded, and had no answer.
#[derive(Debug)]
struct Owed {
    /// The process before it. Another one has loaded the file since.
    pid: u64,
    /// The version of the file before it. If the file still has it, nothing was written.
    version: u64,
}

/// What a controller remembers about one HAProxy.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// The last pass ended well, so there is nothing to clean up.
    clean: bool,
    process: Process,
    /// A run-time change failed: of what the plane does not report, the process may have anything.
    doubts: bool,
    owed: Option<Owed>,
    /// When we last reloaded HAProxy.
    reloaded: Option<Instant>,
    refused: BTreeMap<Part, Refusal>,
    unloadable: Option<Unloadable>,
    search: Option<Search>,
    unhelped: Option<Unhelped>,
    unresolved: Option<Unresolved>,
    /// What the file has no more, and the process has until nobody is connected to it: when it is tried to be removed
    /// again.
    leaving: BTreeMap<Surplus, Retry>,
}

impl Memory {
    /// Whether an earlier run may have left something to clean up.
    pub(super) fn is_clean(&self) -> bool {
        self.clean
    }

    /// Records which process answers. Another process may be able to load what the last one could not, and it lacks the
    /// run-time changes of the last one.
    pub(super) fn saw_process(&mut self, pid: u64, everything: bool) {
        let known = match self.process {
            Process::Unknown => None,
            Process::Loaded { pid } | Process::Agrees { pid, .. } => Some(pid),
        };
        if known.is_some_and(|known| known != pid) {
            self.unloadable = None;
            self.search = None;
            self.unhelped = None;
            self.leaving.clear();
        }
        if everything || known != Some(pid) {
            self.process = Process::Unknown;
        }
        self.owed.take_if(|owed| owed.pid != pid);
    }

    /// Records which version the file has.
    pub(super) fn saw_file(&mut self, version: u64) {
        self.owed.take_if(|owed| owed.version == version);
    }

    /// The file is about to be written and loaded. Returns whether nothing was owed before.
    pub(super) fn owes(&mut self, pid: u64, version: u64) -> bool {
        let is_first = self.owed.is_none();
        self.owed.get_or_insert(Owed { pid, version });
        is_first
    }

    /// What was to be written last is not in the file.
    pub(super) fn owes_nothing(&mut self) {
        self.owed = None;
    }

    /// Whether the file has a change that this process has not loaded, as far as is known.
    pub(super) fn owes_reload(&self) -> bool {
        self.owed.is_some()
    }

    /// A run-time change failed.
    pub(super) fn has_doubts(&mut self) {
        self.doubts = true;
    }

    /// Whether the process may have anything of what the plane does not report.
    pub(super) fn doubts(&self) -> bool {
        self.doubts
    }

    /// What is known about the process, given the file's current version.
    pub(super) fn process(&self, version: u64) -> Process {
        match self.process {
            Process::Agrees { version: seen, .. } if seen != version => Process::Unknown,
            known => known,
        }
    }

    /// Marks the process as unknown: it may differ from its file.
    pub(super) fn forget_process(&mut self) {
        self.process = Process::Unknown;
    }

    /// HAProxy has loaded the file.
    pub(super) fn loaded(&mut self, pid: u64, now: Instant) {
        self.process = Process::Loaded { pid };
        (self.owed, self.doubts) = (None, false);
        self.leaving.clear();
        self.reloaded = Some(now);
    }

    /// The process agrees with the file.
    pub(super) fn agrees(&mut self, pid: u64, version: u64) {
        self.process = Process::Agrees { pid, version };
        self.doubts = false;
    }

    /// A pass is over.
    pub(super) fn ended(&mut self, well: bool) {
        self.clean = well;
        if !well {
            self.forget_process();
        }
    }

    /// What the process has until nobody is connected to it.
    pub(super) fn leaving(&self) -> impl Iterator<Item = &Surplus> {
        self.leaving.keys()
    }

    /// Of what the process has too much, what is due to be removed. The others that are remembered are gone.
    pub(super) fn due_to_leave(&mut self, surplus: Vec<Surplus>, now: Instant) -> Vec<Surplus> {
        self.leaving.retain(|one, _| surplus.contains(one));
        surplus.into_iter().filter(|one| self.leaving.get(one).is_none_or(|retry| retry.is_due(now))).collect()
    }

    /// It was to be removed from the process.
    pub(super) fn left(&mut self, surplus: Surplus, is_gone: bool, now: Instant) {
        let earlier = self.leaving.remove(&surplus);
        if !is_gone {
            let retry = earlier.map_or_else(|| Retry::leaving(now), |earlier| earlier.next(now));
            self.leaving.insert(surplus, retry);
        }
    }

    /// When the next reload may be made, if not now.
    pub(super) fn reload_waits(&self, min_interval: Duration, now: Instant) -> Option<Instant> {
        self.reloaded.map(|last| last + min_interval).filter(|next| *next > now)
    }

    /// Whether a reload of exactly this text did not help against this.
    pub(super) fn is_unhelped(
        &self,
        lacks: &[(BackendName, Option<ServerName>)],
        actions: &[Action],
        digest: u64,
    ) -> bool {
        self.unhelped.as_ref().is_some_and(|known| {
            known.digest == digest
                && lacks.iter().all(|server| known.lacks.contains(server))
                && actions.iter().all(|action| known.actions.contains(action))
        })
    }

    /// What a reload that was made for a difference did not fix, if anything.
    pub(super) fn unhelped(&mut self, unhelped: Option<Unhelped>) {
        self.unhelped = unhelped;
    }

    /// The servers that the process has no address for.
    pub(super) fn unresolved(&mut self, servers: Vec<(BackendName, Server)>, now: Instant) {
        let earlier = self.unresolved.take().filter(|earlier| earlier.servers == servers);
        let retry = earlier.map_or_else(|| Retry::first(now), |earlier| earlier.retry);
        self.unresolved = (!servers.is_empty()).then_some(Unresolved { servers, retry });
    }

    /// Forgets those that the file no longer has.
    pub(super) fn keep_unresolved(&mut self, observed: &Observed) {
        let is_there = |(name, server): &(BackendName, Server)| {
            observed.backend(name).is_some_and(|backend| backend.servers.contains(server))
        };
        if let Some(unresolved) = &mut self.unresolved {
            unresolved.servers.retain(is_there);
        }
        self.unresolved.take_if(|unresolved| unresolved.servers.is_empty());
    }

    /// Takes those servers if it is time to check whether their names resolve now.
    pub(super) fn take_unresolved(&mut self, now: Instant) -> Vec<(BackendName, Server)> {
        let Some(due) = self.unresolved.as_mut().filter(|known| known.retry.is_due(now)) else { return Vec::new() };
        due.retry = due.retry.next(now);
        due.servers.clone()
    }

    /// HAProxy refuses a part. Parts that are slow are retried one after another, each one `turn` intervals later:
    /// alone each may be fast enough. `false`: it was left out already, and what is left of the change is refused as
    /// well.
    pub(super) fn refuse(
        &mut self,
        culprit: Culprit,
        turn: u32,
        desired: &Desired,
        observed: &Observed,
        services: BTreeSet<ServiceKey>,
        now: Instant,
    ) -> bool {
        let Culprit { part, message, is_slow } = culprit;
        let earlier = self.refused.get(&part).map(|refusal| refusal.retry);
        let retry = match earlier {
            None if is_slow => Retry::turn(turn, now),
            None => Retry::first(now),
            Some(retry) if retry.is_due(now) => retry.next(now),
            Some(_) => return false,
        };
        let (wanted, foreign) = (Wanted::new(&part, desired), observed.foreign());
        self.refused.insert(part, Refusal { code: Code::Refused, wanted, foreign, services, message, retry });
        true
    }

    /// HAProxy's message about a backend that it refuses to lose.
    pub(super) fn refusal(&self, backend: &BackendName) -> Option<&str> {
        self.refused.get(&Part::Backend(backend.clone())).map(|refusal| refusal.message.as_str())
    }

    /// Whether a search for what cannot be loaded is running.
    pub(super) fn is_searching(&self) -> bool {
        self.search.is_some()
    }

    /// HAProxy could not load this group, but can load the file without it: a single backend is left out, several are
    /// halved.
    pub(super) fn halve(
        &mut self,
        mut group: Vec<(BackendName, BTreeSet<ServiceKey>)>,
        message: String,
        desired: &Desired,
        observed: &Observed,
        now: Instant,
    ) {
        self.group_is_done();
        if group.len() > 1 {
            let second = group.split_off(group.len() / 2);
            let search = self.search.get_or_insert_with(|| Search { groups: Vec::new(), message: String::new() });
            search.message = message;
            search.groups.extend([second, group]);
        } else if let Some((name, services)) = group.pop() {
            let part = Part::Backend(name);
            let retry = self.refused.get(&part).map_or_else(|| Retry::first(now), |earlier| earlier.retry.next(now));
            let (wanted, foreign) = (Wanted::new(&part, desired), observed.foreign());
            self.refused.insert(part, Refusal { code: Code::NotLoaded, wanted, foreign, services, message, retry });
        }
    }

    /// The next group is loaded, or no longer needs to be.
    pub(super) fn group_is_done(&mut self) {
        if let Some(search) = &mut self.search {
            search.groups.pop();
        }
        self.search.take_if(|search| search.groups.is_empty());
    }

    /// Forgets the refusals of changes that are no longer wanted, or whose cause may be gone.
    pub(super) fn keep_refusals(&mut self, desired: &Desired, observed: &Observed) {
        if !self.refused.is_empty() {
            let foreign = observed.foreign();
            self.refused
                .retain(|part, refusal| Wanted::new(part, desired) == refusal.wanted && refusal.foreign == foreign);
        }
    }

    /// What is left out now, without the refused changes that are due for a retry.
    pub(super) fn left_out(&self, now: Instant) -> LeftOut {
        let waits = self.refused.iter().filter(|(_, refusal)| !refusal.retry.is_due(now));
        let others = self.search.iter().filter_map(|search| search.groups.split_last()).flat_map(|(_, others)| others);
        let others = others.flatten().map(|(name, _)| Part::Backend(name.clone()));
        waits.map(|(part, _)| part.clone()).chain(others).collect()
    }

    /// A plan was written: what was due for a retry was accepted.
    pub(super) fn taken(&mut self, now: Instant) {
        self.refused.retain(|_, refusal| !refusal.retry.is_due(now));
    }

    /// HAProxy could not load a change.
    pub(super) fn not_loaded(
        &mut self,
        waiting: Waiting,
        observed: &Observed,
        services: BTreeSet<ServiceKey>,
        message: String,
        now: Instant,
    ) {
        let earlier = self.unloadable.take().filter(|earlier| earlier.waiting == waiting);
        let retry = earlier.map_or_else(|| Retry::first(now), |earlier| earlier.retry.next(now));
        let foreign = observed.foreign();
        self.unloadable = Some(Unloadable { waiting, foreign, services, message, retry });
    }

    /// HAProxy could load a change.
    pub(super) fn could_load(&mut self) {
        self.unloadable = None;
    }

    /// Whether a reload for this change, or one without any change, would repeat the one that failed before its retry
    /// is due. Forgets the failure when the change is another one, or when what is not ours has changed.
    pub(super) fn is_unloadable(&mut self, waiting: &Waiting, observed: &Observed, now: Instant) -> bool {
        let is_other = |known: &mut Unloadable| !waiting.is_empty() && known.waiting != *waiting;
        self.unloadable.take_if(|known| is_other(known) || known.foreign != observed.foreign());
        self.unloadable.as_ref().is_some_and(|known| !known.retry.is_due(now))
    }

    /// When the next retry of a refused or unloadable change is due.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        let refused = self.refused.values().map(|refusal| refusal.retry.at);
        let unresolved = self.unresolved.as_ref().map(|known| known.retry.at);
        let leaving = self.leaving.values().map(|retry| retry.at);
        refused.chain(self.unloadable.as_ref().map(|known| known.retry.at)).chain(unresolved).chain(leaving).min()
    }

    /// Notes about what is left out.
    pub(super) fn notes(&self) -> Vec<Note> {
        let refused = self.refused.iter().flat_map(|(part, refusal)| {
            let Refusal { code, wanted, foreign: _, services, message, retry: _ } = refusal;
            let text = match (part, wanted) {
                (Part::Rules(frontend), _) => {
                    format!(
                        "its routes in the frontend {frontend} stay as they are: HAProxy refuses the rules: {message}"
                    )
                }
                (Part::Backend(name), _) if *code == Code::NotLoaded => {
                    format!("left as it was: HAProxy could not load the backend {name}: {message}")
                }
                (Part::Instance(name, id), _) => {
                    let id = id.as_str();
                    format!(
                        "instance {id} is left as it was: HAProxy refuses its server in the backend {name}: {message}"
                    )
                }
                (Part::Backend(name), Wanted::Backend(None)) => {
                    format!("its backend {name} stays, without instances: HAProxy refuses to lose it: {message}")
                }
                (Part::Backend(name), _) => format!("left as it was: HAProxy refuses the backend {name}: {message}"),
            };
            errors(services, *code, text)
        });
        let searched = self.search.iter().flat_map(|search| {
            let text = format!(
                "left as it was: HAProxy could not load a change that it is part of; which part is at fault is being \
                 found out: {}",
                search.message
            );
            let services = search.groups.iter().flatten().flat_map(|(_, services)| services).cloned().collect();
            errors(&services, Code::NotLoaded, text).collect::<Vec<_>>()
        });
        let unloadable = self.unloadable.iter().flat_map(|known| {
            let text = format!("left as it was: HAProxy could not load the change: {}", known.message);
            errors(&known.services, Code::NotLoaded, text)
        });
        let unhelped = self.unhelped.iter().flat_map(|known| {
            let text = format!("the process differs from its file, and a reload does not help: {}", known.finding);
            errors(&known.services, Code::ProcessDiffers, text)
        });
        let servers = self.unresolved.iter().flat_map(|known| &known.servers);
        let unresolved = servers.filter_map(|(name, server)| {
            let text = format!(
                "{name}/{} takes no traffic: HAProxy could not resolve {} when it started; it is reloaded when it can",
                server.name, server.address
            );
            let service = server.occupant.service()?.clone();
            Some(Note { severity: Severity::Error, service, code: Code::Unresolved, text })
        });
        refused.chain(searched).chain(unloadable).chain(unhelped).chain(unresolved).collect()
    }
}

fn errors(services: &BTreeSet<ServiceKey>, code: Code, text: String) -> impl Iterator<Item = Note> + '_ {
    let note = move |service: &ServiceKey| Note {
        severity: Severity::Error,
        service: service.clone(),
        code,
        text: text.clone(),
    };
    services.iter().map(note)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::InstanceId;
    use crate::haproxy::text::ConfigText;

    fn observed() -> Observed {
        Observed::new(1, ConfigText::new("global\n"), &"nomad".parse().expect("an owner"))
    }

    fn name(name: &str) -> BackendName {
        name.parse().expect("a name")
    }

    #[test]
    fn a_reload_is_owed_until_there_is_another_process_or_nothing_was_written() {
        let owing = || {
            let mut memory = Memory::default();
            assert!(memory.owes(7, 1) && memory.owes_reload());
            memory
        };
        let after = |change: fn(&mut Memory)| {
            let mut memory = owing();
            change(&mut memory);
            memory.owes_reload()
        };
        assert!(!after(|memory| memory.saw_file(1)) && after(|memory| memory.saw_file(2)));
        assert!(!after(|memory| memory.saw_process(8, false)) && after(|memory| memory.saw_process(7, true)));
        assert!(after(|memory| {
            assert!(!memory.owes(7, 2), "it owes already");
            memory.saw_file(2);
        }));
    }

    fn left_out(memory: &Memory, now: Instant) -> Vec<String> {
        let is_out = |one: &str| memory.left_out(now).has_backend(&name(one));
        ["a", "b", "c", "d"].into_iter().filter(|one| is_out(one)).map(str::to_owned).collect()
    }

    #[test]
    fn a_change_that_cannot_be_loaded_is_halved_down_to_the_backend() {
        let (mut memory, now, observed) = (Memory::default(), Instant::now(), observed());
        let fail = |memory: &mut Memory, names: &[&str]| {
            let group = names.iter().map(|one| (name(one), BTreeSet::new())).collect();
            memory.halve(group, "no".to_owned(), &Desired::default(), &observed, now);
        };
        fail(&mut memory, &["a", "b", "c", "d"]);
        assert_eq!(left_out(&memory, now), ["c", "d"]);
        memory.group_is_done();
        assert_eq!((left_out(&memory, now), memory.is_searching()), (Vec::new(), true));
        fail(&mut memory, &["c", "d"]);
        assert_eq!(left_out(&memory, now), ["d"]);
        fail(&mut memory, &["c"]);
        assert_eq!((left_out(&memory, now), memory.is_searching()), (vec!["c".to_owned()], true));
        memory.group_is_done();
        assert_eq!((left_out(&memory, now), memory.is_searching()), (vec!["c".to_owned()], false));
        assert_eq!(left_out(&memory, now + FIRST_RETRY), Vec::<String>::new());
    }

    #[test]
    fn what_is_slow_is_tried_again_one_after_another() {
        let (mut memory, now, observed) = (Memory::default(), Instant::now(), observed());
        for turn in 0..3 {
            let part = Part::Instance(name("a"), InstanceId::new(&turn.to_string()));
            let culprit = Culprit { part, message: String::new(), is_slow: true };
            assert!(memory.refuse(culprit, turn, &Desired::default(), &observed, BTreeSet::new(), now));
        }
        let waiting = |turns: u32| {
            let left_out = memory.left_out(now + FIRST_RETRY * turns);
            (0..3).filter(|turn| left_out.has_instance(&name("a"), &InstanceId::new(&turn.to_string()))).count()
        };
        assert_eq!([0, 1, 2, 3].map(waiting), [3, 2, 1, 0]);
    }
}
