//! Map files: written before and after the configuration, so that no entry names a backend that is not there.

use std::sync::Arc;

use crate::errors::chain;
use crate::observed::{Maps, Observed};
use crate::plan::{Lines, MapEdit};
use crate::plane::WriteError;

use super::{Controller, Draft, PassError, PassStatus, Round, Seen};

/// When maps are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// Before the configuration: what leaves, and entries of backends that exist.
    First,
    /// After it: entries of new backends, and files that no rule reads any more.
    Last,
}

impl Controller {
    /// Reads what HAProxy has of maps. If that fails, the rest of the pass goes on, and changes no routes.
    pub(super) async fn look_at_maps(
        &mut self,
        observed: Observed,
        process: bool,
    ) -> (Observed, Option<crate::plane::AccessError>) {
        match self.plane.maps(&observed, process).await {
            Ok(maps) => (observed.with_maps(maps), None),
            Err(error) => (observed.with_maps(Maps::unknown()), Some(error)),
        }
    }

    /// Writes the maps of a plan, as far as it is time for them. All are tried; the first error counts.
    pub(super) async fn write_maps(
        &mut self,
        seen: &Seen,
        draft: &Draft,
        when: When,
        status: &mut PassStatus,
    ) -> Result<(), WriteError> {
        let edits = &draft.plan.routes;
        let folder = &seen.observed.maps.folder;
        let mut result = Ok(());
        for (file, edit) in &edits.maps {
            let done = match step(edit, when) {
                Step::Nothing => continue,
                Step::Write(lines) => self.plane.put_map(folder, file, lines).await,
                Step::Delete => self.plane.delete_map(file).await,
            };
            match done {
                Ok(()) => status.run_time_changes += 1,
                Err(error) => {
                    self.memory.forget_process();
                    result = result.and(Err(error));
                }
            }
        }
        if when == When::Last && result.is_ok() {
            status.routes = Arc::new(edits.after(&seen.observed.maps).routes());
        }
        result
    }

    /// A pass that changes maps only.
    pub(super) async fn write_only_maps(
        &mut self,
        seen: &Seen,
        draft: &Draft,
        status: &mut PassStatus,
    ) -> Result<Option<Round>, PassError> {
        if draft.plan.routes.is_empty() {
            return Ok(None);
        }
        let written = self.write_maps(seen, draft, When::Last, status).await;
        match written {
            Ok(()) => {
                status.written.push(draft.summary(&seen.observed, &seen.observed.text));
                Ok(None)
            }
            Err(WriteError::NotLive(why)) => self.reload_for(seen, why, status).await.map(Some),
            Err(error @ WriteError::Conflict(_)) => Ok(Some(Round::Again(error))),
            Err(error) => Err(error.into()),
        }
    }

    /// The end of a pass that wrote the configuration.
    pub(super) async fn write_last_maps(
        &mut self,
        seen: &Seen,
        draft: &Draft,
        status: &mut PassStatus,
    ) -> Result<Option<Round>, PassError> {
        match self.write_maps(seen, draft, When::Last, status).await {
            Ok(()) => Ok(None),
            Err(error @ (WriteError::NotLive(_) | WriteError::Conflict(_))) => {
                tracing::info!(error = %chain(&error), "the maps are looked at again");
                Ok(Some(Round::Again(error)))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// What is done to one map.
enum Step<'a> {
    Nothing,
    Write(&'a Lines),
    Delete,
}

fn step(edit: &MapEdit, when: When) -> Step<'_> {
    let MapEdit { before, first, last } = edit;
    match when {
        When::First => match first {
            Some(lines) if before.as_ref() != Some(lines) => Step::Write(lines),
            _ => Step::Nothing,
        },
        When::Last => match last {
            Some(lines) => Step::Write(lines),
            None => Step::Delete,
        },
    }
}
