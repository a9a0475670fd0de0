//! What HAProxy refuses or cannot load: it is found, remembered and left out, and the rest goes on.

use crate::plan::{self, Waiting};
use crate::plane::{Verdict, WriteError};

use super::culprit::{self, Culprit, Found};
use super::{Controller, Draft, PassError, PassStatus, Round, Seen};

impl Controller {
    /// HAProxy could not load a change that is valid. If it can load the file without the change, the backends are
    /// loaded in halves, down to those that are at fault: a reload that fails costs no traffic. If it cannot, the cause
    /// is not ours, and everything that needs a reload waits.
    pub(super) async fn search(
        &mut self,
        seen: &Seen,
        waiting: Waiting,
        message: String,
        status: &mut PassStatus,
    ) -> Result<Round, PassError> {
        // Rules are not halved: alone they wait as they are.
        if waiting.backends().next().is_none() {
            return Ok(Round::Again(self.not_loaded(seen, waiting, message, status)));
        }
        if self.memory.is_searching() {
            status.failed_reloads += 1;
            self.memory.forget_process();
        } else {
            let observed = self.plane.observe().await?;
            match self.plane.reload(&observed).await {
                Err(WriteError::ReloadFailed { message }) => {
                    return Ok(Round::Again(self.not_loaded(seen, waiting, message, status)));
                }
                Err(error @ WriteError::Conflict(_)) => return Ok(Round::Again(error)),
                Err(WriteError::Invalid { message }) => return Err(PassError::Broken(message)),
                Err(error) => return Err(error.into()),
                Ok(()) => {
                    status.failed_reloads += 1;
                    self.reloaded(seen, status).await;
                }
            }
        }
        tracing::warn!(error = message, "HAProxy could not load a change; finding out which part of it");
        let group = waiting.backends().map(|name| (name.clone(), seen.concerned(name))).collect();
        self.memory.halve(group, message, &seen.built.desired, &seen.observed, seen.moment.instant);
        Ok(Round::Search)
    }

    /// HAProxy could not load a change: it is remembered, and the pass continues without it.
    pub(super) fn not_loaded(
        &mut self,
        seen: &Seen,
        waiting: Waiting,
        message: String,
        status: &mut PassStatus,
    ) -> WriteError {
        status.failed_reloads += 1;
        let services = waiting.backends().flat_map(|name| seen.concerned(name)).collect();
        self.memory.not_loaded(waiting, &seen.observed, services, message.clone(), seen.moment.instant);
        self.memory.forget_process();
        status.error = Some(WriteError::ReloadFailed { message: message.clone() }.into());
        WriteError::ReloadFailed { message }
    }

    /// Finds what HAProxy refuses and leaves it out of this pass, and of later ones until its retry is due or the tags
    /// change.
    pub(super) async fn leave_out(&mut self, seen: &Seen, draft: &Draft, error: WriteError) -> Result<(), PassError> {
        let Seen { observed, built, moment, .. } = seen;
        let options = plan::Options { now: moment.clock, ..self.options.plan.clone() };
        let left_out = self.memory.left_out(moment.instant);
        let without = |parts| match Draft::new(built, observed, &options, &left_out.and(parts)) {
            Ok(less) if draft.waiting.is_empty() => less.after,
            Ok(less) => less.without_reload(built, observed, &options).after,
            // No part of the plan is at fault.
            Err(_) => observed.clone(),
        };
        let known = match error {
            WriteError::TooLong { limit } => Some(Verdict::TooLong(limit)),
            _ => None,
        };
        let culprits = match culprit::find(&*self.plane, &draft.plan.parts(), without, known).await? {
            // The file is refused without any change of ours.
            Found::Culprits(culprits) if culprits.is_empty() => return Err(error.into()),
            Found::Culprits(culprits) => culprits,
            Found::Unrelated(message) => return Err(PassError::Broken(message)),
        };
        for (turn, culprit) in (0..).zip(culprits) {
            let Culprit { part, message, .. } = &culprit;
            tracing::debug!(?part, message, "HAProxy refuses a part of the plan; the rest goes on");
            let (services, message) = (seen.concerned_by(part), message.clone());
            if !self.memory.refuse(culprit, turn, &built.desired, observed, services, moment.instant) {
                return Err(PassError::Broken(message));
            }
        }
        Ok(())
    }
}
