//! Passes that write nothing: dry runs, and those of a standby.

use std::time::Instant;

use super::{Controller, Moment, PassError, PassStatus, Stage};
use crate::plan::Kept;
use crate::plan::display::Summary;
use crate::plan::review::Review;
use crate::plane::{Verdict, WriteError};

/// What a pass would do.
#[derive(Debug)]
pub struct DryRun {
    /// For people and programs to read.
    pub summary: Summary,
    /// The configuration version that it was computed from.
    pub version: u64,
    /// For [`Controller::pass`], once it has been reviewed.
    pub review: Review,
    /// What `uninstall` does not remove.
    pub kept: Vec<Kept>,
}

impl Controller {
    /// A dry run as the pass of a standby: what there is, and what would be done.
    pub async fn look_on(&mut self, moment: Moment) -> PassStatus {
        let mut status = PassStatus { is_standby: true, ..PassStatus::default() };
        match self.plan_in(moment, &mut status).await {
            Ok(DryRun { summary, .. }) => {
                status.notes.clone_from(&summary.notes);
                status.pending = summary.changes.then_some(summary);
            }
            Err(error) => status.error = Some(error),
        }
        status.leave();
        status
    }

    /// The pass of a standby: what the leader should have to do is known here, too, and left to it.
    pub(super) async fn stand_by(&mut self, moment: Moment, status: &mut PassStatus) -> Result<(), PassError> {
        let asked = Instant::now();
        let info = self.plane.info().await?;
        (status.response_time, status.haproxy, status.is_standby) = (Some(asked.elapsed()), Some(info.clone()), true);
        self.find_capabilities(&info).await?;
        let seen = self.look(info, moment, &mut None, status).await?;
        status.enter(Stage::Plan);
        let draft = self.draft(&seen, status)?;
        status.pending = (!draft.plan.is_empty()).then(|| draft.summary(&seen.observed, &draft.after.text));
        (status.notes, status.kept) = (draft.notes, draft.kept);
        Ok(())
    }

    /// Plans, has HAProxy validate the plan, and discards it.
    pub async fn dry_run(&mut self, moment: Moment) -> Result<DryRun, PassError> {
        self.plan_in(moment, &mut PassStatus::default()).await
    }

    async fn plan_in(&mut self, moment: Moment, status: &mut PassStatus) -> Result<DryRun, PassError> {
        let info = self.plane.info().await?;
        self.find_capabilities(&info).await?;
        let seen = self.look(info, moment, &mut None, status).await?;
        status.enter(Stage::Plan);
        let owner = self.options.plan.owner.clone();
        loop {
            let mut draft = self.draft(&seen, status)?;
            let review = Review::new(&draft.plan, &seen.observed, &owner, moment.clock);
            let kept = draft.kept.clone();
            let done = |summary| Ok(DryRun { summary, version: seen.observed.version, review, kept });
            draft.notes.extend(self.memory.notes());
            draft.notes.sort();
            let offline = draft.summary(&seen.observed, &draft.after.text);
            if !draft.plan.writes_text() {
                return done(offline);
            }
            match self.survey(&seen.observed).await {
                Err(PassError::Harm(harm)) => {
                    return done(Summary { blocked: Some(harm.to_string()), ..offline });
                }
                Ok(Some(moved)) => return Err(moved.into()),
                other => other.map(drop)?,
            }
            let staged = self.plane.stage(&seen.observed, &draft.plan).await?;
            let verdict = self.plane.validate(&staged.text).await;
            let summary = draft.summary(&seen.observed, &staged.text);
            self.plane.abort(staged).await?;
            match verdict? {
                Verdict::Valid => return done(summary),
                Verdict::Refused(message) => self.leave_out(&seen, &draft, WriteError::Invalid { message }).await?,
                Verdict::TooLong(limit) => self.leave_out(&seen, &draft, WriteError::TooLong { limit }).await?,
            }
        }
    }
}
