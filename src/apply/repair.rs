//! The process is made to agree with its file: after a write, and where there is nothing to write.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};

use crate::desired::{BackendName, ServerName, State};
use crate::errors::chain;
use crate::observed::Observed;
use crate::plan::{self, Action, Changes, Surplus, Waiting};
use crate::plane::{Runtime, StateChange, Verdict, WriteError};

use super::memory::{Process, Unhelped};
use super::{CONCURRENCY, Controller, PassError, PassStatus, Round, Seen, Stage, culprit};

impl Controller {
    /// After a write: reads the file again, and sets in the process what the reload did not.
    pub(super) async fn settle(
        &mut self,
        seen: &Seen,
        all_set: bool,
        status: &mut PassStatus,
    ) -> Result<Round, PassError> {
        status.enter(Stage::Repair);
        let observed = self.plane.observe().await?;
        status.saw(&observed, &self.seated);
        status.became_ready.extend(self.arrivals.look(&seen.built.desired, &observed, Instant::now()));
        self.memory.keep_unresolved(&observed);
        if let Some(end) = observed.next_drain() {
            status.wake_at(seen.moment.instant_of(Duration::from_secs(end)));
        }
        let (pid, all_set) = match self.memory.process(observed.version) {
            Process::Loaded { pid } => {
                let mut process = Runtime::loaded(&observed);
                // A name that does not resolve is not a failed reload.
                if observed.text.loads_server_states() || !plan::unresolved(&process, &observed).is_empty() {
                    process = self.plane.runtime(&observed).await?;
                    self.memory.unresolved(plan::unresolved(&process, &observed), seen.moment.instant);
                }
                // A server that drains is in maintenance in a process that has just started.
                let changes = Changes::new(&process, &observed, &observed, &seen.growth);
                let all_set = self.set_states(&changes.out, status).await;
                if observed.text.loads_server_states() && !changes.rest.is_empty() {
                    return Ok(self.states_came_back());
                }
                (Some(pid), all_set)
            }
            Process::Agrees { .. } | Process::Unknown if status.reloads == 0 => (Some(seen.info.pid), all_set),
            Process::Agrees { .. } | Process::Unknown => (None, all_set),
        };
        match pid {
            Some(pid) if all_set => self.memory.agrees(pid, observed.version),
            _ => self.memory.forget_process(),
        }
        Ok(Round::Done)
    }

    /// There is nothing to write: make the process agree with its file.
    pub(super) async fn repair(
        &mut self,
        seen: &Seen,
        changes: Changes,
        all_set: bool,
        status: &mut PassStatus,
    ) -> Result<Round, PassError> {
        status.enter(Stage::Repair);
        let Seen { observed, info, .. } = seen;
        let Changes { out: _, hidden: _, rest, lacks, surplus: _ } = changes;
        let (alone, others) = states_alone(&rest);
        let all_set = self.set_states(&alone, status).await && all_set;
        if lacks.is_empty() && others.is_empty() && seen.looked {
            self.memory.unhelped(None);
        }
        if self.memory.owes_reload() {
            return self.reload_for(seen, "a change was written, and HAProxy has not loaded it", status).await;
        }
        let unhelped = |lacks, actions| self.memory.is_unhelped(lacks, actions, digest(observed));
        if !lacks.is_empty() && !unhelped(&lacks, &[]) {
            return self.reload_for(seen, &lacking(&lacks), status).await;
        }
        if others.is_empty() || unhelped(&[], &others) {
            if self.resolves_now(seen).await? {
                return self.reload_for(seen, "names of servers resolve now", status).await;
            }
            if all_set {
                self.memory.agrees(info.pid, observed.version);
            } else {
                self.memory.forget_process();
            }
            return Ok(Round::Done);
        }
        if let Some(moved) = self.survey(observed).await? {
            return Ok(Round::Again(moved));
        }
        match self.commit_live(observed, &observed.text, &others).await {
            Ok(()) => {
                status.run_time_changes += others.len();
                self.settle(seen, all_set, status).await
            }
            Err(error @ WriteError::Conflict(_)) => Ok(Round::Again(error)),
            Err(WriteError::HalfLive { message }) => self.reload_for(seen, &message, status).await,
            Err(WriteError::NotLive(why)) => self.reload_for(seen, why, status).await,
            Err(WriteError::Invalid { message }) => Err(PassError::Broken(message)),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes what the file has no more from the process: the servers, then their backends. What somebody is still
    /// connected to stays there, out of service, and is removed later.
    pub(super) async fn remove(&mut self, surplus: Vec<Surplus>, seen: &Seen, status: &mut PassStatus) {
        let due = self.memory.due_to_leave(surplus, seen.moment.instant);
        let (servers, backends): (Vec<_>, Vec<_>) = due.into_iter().partition(|one| matches!(one, Surplus::Server(..)));
        for due in [servers, backends] {
            let asked: Vec<_> = due.iter().map(|surplus| self.plane.remove(surplus)).collect();
            let results: Vec<_> = stream::iter(asked).buffered(CONCURRENCY).collect().await;
            for (surplus, result) in due.into_iter().zip(results) {
                if let Err(error) = &result {
                    tracing::warn!(%surplus, error = %chain(error), "this is not removed from the process");
                }
                let is_gone = result.is_ok_and(|is_gone| is_gone);
                status.run_time_changes += usize::from(is_gone);
                self.memory.left(surplus, is_gone, seen.moment.instant);
            }
        }
    }

    /// Whether a server's host name, which did not resolve when the process started, resolves now. HAProxy itself
    /// answers: when it must not start without the address of such a server, it refuses the lines that it has no
    /// address for.
    async fn resolves_now(&mut self, seen: &Seen) -> Result<bool, PassError> {
        let Seen { observed, moment, .. } = seen;
        let servers = self.memory.take_unresolved(moment.instant);
        if servers.is_empty() {
            return Ok(false);
        }
        let must_resolve = culprit::with_addresses(observed, &servers);
        Ok(match self.plane.validate(&must_resolve).await? {
            Verdict::Valid => true,
            Verdict::Refused(message) => {
                (1..servers.len()).contains(&culprit::named_servers(&message, observed, &servers))
            }
            Verdict::TooLong(_) => false,
        })
    }

    /// Loads the file as it is, since only a reload can fix how the process differs; then checks whether it did, so
    /// that a reload that does not help is not repeated.
    pub(super) async fn reload_for(
        &mut self,
        seen: &Seen,
        finding: &str,
        status: &mut PassStatus,
    ) -> Result<Round, PassError> {
        if let Some(at) = self.reload_waits(&Waiting::default(), seen) {
            status.wake_at(at);
            self.memory.forget_process();
            return Ok(Round::Done);
        }
        tracing::warn!(finding, "the process differs from its file; reloading");
        let has_doubts = self.memory.doubts();
        match self.load().await {
            Ok(()) => {
                self.reloaded(seen, status).await;
                self.check_after_reload(seen, finding, has_doubts, status).await
            }
            Err(PassError::Write(error @ WriteError::Conflict(_))) => Ok(Round::Again(error)),
            Err(PassError::Write(WriteError::Invalid { message })) => Err(PassError::Broken(message)),
            Err(PassError::Write(WriteError::ReloadFailed { message })) => {
                Ok(Round::Again(self.not_loaded(seen, Waiting::default(), message, status)))
            }
            Err(error) => Err(error),
        }
    }

    /// Loads the file as it is. The Data Plane API renders it for that, so it is surveyed first.
    pub(super) async fn load(&self) -> Result<(), PassError> {
        let observed = self.plane.observe().await?;
        if let Some(moved) = self.survey(&observed).await? {
            return Err(moved.into());
        }
        Ok(self.plane.reload(&observed).await?)
    }

    /// With `load-server-state-from-file` a process starts with states, weights and ports of servers that the one
    /// before had at some time (server_state.c of HAProxy): they are set again.
    fn states_came_back(&mut self) -> Round {
        self.memory.forget_process();
        let message = "`load-server-state-from-file` has brought older states of servers back".to_owned();
        Round::Again(WriteError::HalfLive { message })
    }

    /// After a reload: sets the drains again, and remembers what the reload did not fix.
    async fn check_after_reload(
        &mut self,
        seen: &Seen,
        finding: &str,
        has_doubts: bool,
        status: &mut PassStatus,
    ) -> Result<Round, PassError> {
        status.enter(Stage::Repair);
        let observed = self.plane.observe().await?;
        status.saw(&observed, &self.seated);
        let process = self.plane.runtime(&observed).await?;
        self.memory.unresolved(plan::unresolved(&process, &observed), seen.moment.instant);
        let Changes { out, hidden: _, rest, lacks, surplus: _ } =
            Changes::new(&process, &observed, &observed, &seen.growth);
        let (alone, actions) = states_alone(&rest);
        let all_set = self.set_states(&out, status).await & self.set_states(&alone, status).await;
        // Unless the reload was made because this process takes no such change.
        if observed.text.loads_server_states() && lacks.is_empty() && !actions.is_empty() && !has_doubts {
            return Ok(self.states_came_back());
        }
        let left = !lacks.is_empty() || !actions.is_empty();
        let unhelped = left.then(|| {
            let named = lacks.iter().map(|(backend, _)| backend).chain(actions.iter().map(Action::backend));
            Unhelped {
                services: named.flat_map(|name| seen.concerned(name)).collect(),
                finding: if lacks.is_empty() { finding.to_owned() } else { lacking(&lacks) },
                digest: digest(&observed),
                lacks,
                actions,
            }
        });
        self.memory.unhelped(unhelped);
        match self.memory.process(observed.version) {
            Process::Loaded { pid } if all_set => self.memory.agrees(pid, observed.version),
            _ => self.memory.forget_process(),
        }
        Ok(Round::Done)
    }
}

/// Splits changes into states that can be set on their own, and changes that have to be made with the file: backends,
/// addresses, weights and ends of drains, and the states of the same servers after them.
fn states_alone(actions: &[Action]) -> (Vec<StateChange>, Vec<Action>) {
    let alone = |action: &&Action| matches!(action, Action::State(_, _, State::Ready | State::Drain));
    let others: BTreeSet<_> = actions.iter().filter(|action| !alone(action)).filter_map(Action::server).collect();
    let (with_others, alone): (Vec<_>, Vec<_>) =
        actions.iter().cloned().partition(|action| action.server().is_none_or(|server| others.contains(&server)));
    let state = |action| match action {
        Action::State(backend, server, state) => Some(StateChange { backend, server, state }),
        Action::Address(..)
        | Action::Weight(..)
        | Action::Add(..)
        | Action::Check(..)
        | Action::Make(..)
        | Action::Publish(_) => None,
    };
    (alone.into_iter().filter_map(state).collect(), with_others)
}

/// What the process lacks, as text.
fn lacking(lacks: &[(BackendName, Option<ServerName>)]) -> String {
    let more = match lacks.len() {
        0 | 1 => String::new(),
        all => format!(", nor {} others", all - 1),
    };
    match lacks.first() {
        Some((backend, Some(server))) => {
            format!("the process has no server {backend}/{server}{more}, or no address for it")
        }
        Some((backend, None)) => format!("the process has no backend {backend}{more}"),
        None => String::new(),
    }
}

/// A digest of the text without what changes without a reload: lines of servers, and whole backends of ours as far as
/// they only repeat the settings of others. The API's header changes with each write, and is left out, too.
pub(super) fn digest(observed: &Observed) -> u64 {
    let live: BTreeSet<usize> = observed.live_lines().collect();
    let (mut hasher, mut settings) = (DefaultHasher::new(), BTreeSet::new());
    let ours: Vec<_> = observed.backends.values().filter(|backend| backend.is_ours()).collect();
    for (at, line) in observed.text.lines().iter().enumerate() {
        if line.starts_with("# _") || live.contains(&at) || line.trim().is_empty() {
            continue;
        }
        match ours.iter().find(|backend| backend.section.lines.contains(&at)) {
            Some(backend) if backend.section.lines.start == at => {}
            Some(_) => drop(settings.insert(line)),
            None => line.hash(&mut hasher),
        }
    }
    settings.hash(&mut hasher);
    hasher.finish()
}
