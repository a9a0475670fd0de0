//! What a pass changes in HAProxy: states in the process on their own, and one write.

use futures_util::stream::{self, StreamExt};

use crate::desired::BackendName;
use crate::errors::chain;
use crate::haproxy::text::ConfigText;
use crate::observed::Observed;
use crate::plan::{Action, Changes};
use crate::plane::{AccessError, Plane, StateChange, Survey, WriteError};

use super::{CONCURRENCY, Controller, Draft, PassError, PassStatus, Seen, repair};

/// Sets states in the process, some at a time; the results are in the same order.
pub(super) async fn set_each(plane: &dyn Plane, changes: &[StateChange]) -> Vec<Result<(), AccessError>> {
    // Collected, as the compiler cannot prove that a lazy one may move between threads.
    let asked: Vec<_> = changes.iter().map(|change| plane.set_state(change)).collect();
    stream::iter(asked).buffered(CONCURRENCY).collect().await
}

impl Controller {
    /// Sets states in the process, independently of any write. Instances that are gone are taken out before the file is
    /// written: they get no more requests, even if the write fails. Returns whether all of it succeeded.
    pub(super) async fn set_states(&self, changes: &[StateChange], status: &mut PassStatus) -> bool {
        let results = set_each(self.plane.as_ref(), changes).await;
        let mut all = true;
        for (StateChange { backend, server, state }, result) in changes.iter().zip(results) {
            match result {
                Ok(()) => status.run_time_changes += 1,
                // The election has its own lines in the log.
                Err(AccessError::NotLeading(_)) => all = false,
                Err(error) => {
                    let state = state.as_str();
                    tracing::warn!(%backend, %server, state, error = %chain(&error), "the process does not take a state");
                    all = false;
                }
            }
        }
        all
    }

    /// After a write that was refused: the file still has these backends, so requests are to find them again.
    async fn publish_again(&mut self, observed: &Observed, backends: &[BackendName]) {
        let actions: Vec<_> = backends.iter().cloned().map(Action::Publish).collect();
        if !actions.is_empty()
            && let Err(error) = self.commit_live(observed, &observed.text, &actions).await
        {
            self.memory.forget_process();
            tracing::warn!(error = %chain(&error), "the process does not take backends back into service");
        }
    }

    /// Lets no more requests find backends that go. If nobody knows whether the file was written after that, the next
    /// look at the process publishes those that it still has.
    async fn unpublish(&mut self, backends: &[BackendName]) {
        for backend in backends {
            self.memory.forget_process();
            if let Err(error) = self.plane.unpublish(backend).await {
                tracing::warn!(%backend, error = %chain(&error), "the process does not let go of a backend");
            }
        }
    }

    /// Without a plan, the instances that are gone are taken out of the process all the same. The file is not written.
    pub(super) async fn take_out_gone(&self, seen: &Seen, status: &mut PassStatus) {
        let options = self.plan_options(seen.moment);
        let gone = Draft::gone(&seen.built, &seen.observed, &options);
        self.set_states(&Changes::new(&seen.process, &seen.observed, &gone, &seen.growth).out, status).await;
    }

    /// Checks whether the file may be written at all. `Some`: it has changed in the meantime.
    pub(super) async fn survey(&self, observed: &Observed) -> Result<Option<WriteError>, PassError> {
        let Survey { harm, comments } = match self.plane.survey(observed).await {
            Ok(survey) => survey,
            Err(error @ WriteError::Conflict(_)) => return Ok(Some(error)),
            Err(error) => return Err(error.into()),
        };
        for comment in comments {
            tracing::warn!(comment, "the Data Plane API loses a comment when it renders the file");
        }
        harm.map_or(Ok(None), |harm| Err(harm.into()))
    }

    /// One plan, one write: live if HAProxy can take it so, else with a reload.
    pub(super) async fn write(
        &mut self,
        seen: &Seen,
        draft: &Draft,
        changes: &Changes,
        status: &mut PassStatus,
    ) -> Result<(), WriteError> {
        let Seen { observed, .. } = seen;
        let Draft { plan, after, .. } = draft;
        let waits = self.reload_waits(&plan.waiting(), seen);
        // A server that the process lacks needs a reload in any case, so the plan is loaded with it.
        let complete = !self.memory.owes_reload()
            && (changes.lacks.is_empty() || self.memory.is_unhelped(&changes.lacks, &[], repair::digest(observed)));
        if plan.is_live() && (complete || waits.is_some()) {
            if let Some(at) = waits.filter(|_| self.memory.owes_reload()) {
                status.wake_at(at);
            }
            self.unpublish(&changes.hidden).await;
            let written = self.commit_live(observed, &after.text, &changes.rest).await;
            if let Err(WriteError::Invalid { .. } | WriteError::TooLong { .. } | WriteError::NotLive(_)) = written {
                self.publish_again(observed, &changes.hidden).await;
            }
            match written {
                Ok(()) => {
                    status.written.push(draft.summary(observed, &after.text));
                    return Ok(());
                }
                Err(WriteError::NotLive(why)) => tracing::info!(why, "reloading instead of a live change"),
                Err(error) => return Err(error),
            }
        }
        if let Some(at) = waits {
            status.wake_at(at);
            return Err(WriteError::NotLive("the reload that it takes has to wait"));
        }
        let staged = self.plane.stage(observed, plan).await?;
        let summary = draft.summary(observed, &staged.text);
        // A round before may have reloaded it.
        let process = status.haproxy.as_ref().unwrap_or(&seen.info).pid;
        let is_first = self.memory.owes(process, observed.version);
        self.plane.commit(observed, staged).await.inspect_err(|error| {
            if is_first && !matches!(error, WriteError::Access(_)) {
                self.memory.owes_nothing();
            }
        })?;
        status.written.push(summary);
        self.memory.group_is_done();
        self.reloaded(seen, status).await;
        Ok(())
    }

    /// Changes the process without a reload.
    pub(super) async fn commit_live(
        &mut self,
        observed: &Observed,
        text: &ConfigText,
        actions: &[Action],
    ) -> Result<(), WriteError> {
        let result = self.plane.commit_live(observed, text, actions).await;
        if let Err(WriteError::HalfLive { .. } | WriteError::NotLive(_) | WriteError::Access(_)) = result {
            self.memory.has_doubts();
        }
        result
    }

    /// HAProxy was reloaded: another process runs.
    pub(super) async fn reloaded(&mut self, seen: &Seen, status: &mut PassStatus) {
        status.reloads += 1;
        self.memory.could_load();
        match self.plane.info().await {
            Ok(info) => {
                self.memory.loaded(info.pid, seen.moment.instant);
                status.haproxy = Some(info);
            }
            // It is loaded; if the process does not answer right now, the next pass looks at it.
            Err(_) => {
                self.memory.loaded(seen.info.pid, seen.moment.instant);
                self.memory.forget_process();
            }
        }
    }
}
