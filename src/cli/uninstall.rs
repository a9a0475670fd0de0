//! `uninstall`: removes everything of ours from each HAProxy.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{anyhow, ensure};
use futures_util::future::join_all;

use crate::apply::{Controller, DryRun, Moment, PassError, PassStatus};
use crate::errors::chain;
use crate::plan::Kept;
use crate::plan::display::Summary;
use crate::plan::review::Review;

use super::print::{self, coloured, heading, print};
use super::targets::{Controllers, LOST};

/// One HAProxy, after what would be removed was shown.
struct Target {
    name: String,
    controller: Controller,
    /// What to remove, if there is anything.
    review: Option<Review>,
    /// Whether it is not possible to remove everything.
    is_incomplete: bool,
    error: Option<anyhow::Error>,
}

/// Shows what it removes, asks, and removes it. With `yes` it does not ask.
pub(super) async fn uninstall(controllers: Controllers, yes: bool) -> anyhow::Result<ExitCode> {
    let Controllers { all, are_named } = controllers;
    let moment = Moment::now(true);
    let look = async |(name, mut controller): (String, Controller)| {
        let plan = controller.dry_run(moment).await;
        (name, controller, plan)
    };
    let mut targets = Vec::new();
    for (name, controller, plan) in join_all(all.into_iter().map(look)).await {
        targets.push(show(name, controller, plan, are_named)?);
    }
    if targets.iter().any(|target| target.review.is_some()) && !yes {
        ensure!(
            std::io::stdin().is_terminal(),
            "nothing is removed, as there is no terminal to ask at: run it again with `--yes`"
        );
        if !is_confirmed()? {
            print("Nothing is removed.\n")?;
            return Ok(ExitCode::FAILURE);
        }
    }
    let moment = Moment::now(true);
    let remove = async |mut target: Target| {
        let status = match &target.review {
            Some(review) => Some(target.controller.pass(moment, (!yes).then_some(review)).await),
            None => None,
        };
        (target, status)
    };
    let mut done = Vec::new();
    for (mut target, status) in join_all(targets.into_iter().map(remove)).await {
        if let Some(status) = status {
            if are_named {
                print(&heading(&target.name))?;
            }
            print(&said(&status))?;
            target.is_incomplete = !status.kept.is_empty();
            let is_lost = status.is_standby;
            target.error = status.error.map(because).or_else(|| is_lost.then(|| anyhow!(LOST)));
            if let Some(error) = target.error.as_ref().filter(|_| are_named) {
                print(&failed(error))?;
            }
        }
        done.push(target);
    }
    outcome(done, are_named)
}

/// Prints what would be removed from one.
fn show(
    name: String,
    controller: Controller,
    plan: Result<DryRun, PassError>,
    are_named: bool,
) -> anyhow::Result<Target> {
    if are_named {
        print(&heading(&name))?;
    }
    let (review, is_incomplete, error) = match plan {
        Ok(DryRun { summary, version: _, review, kept }) => {
            print(&shown(&summary, &kept))?;
            let is_possible = summary.changes && summary.blocked.is_none();
            (is_possible.then_some(review), summary.blocked.is_some() || !kept.is_empty(), None)
        }
        Err(error) => {
            let error = error.into();
            if are_named {
                print(&failed(&error))?;
            }
            (None, true, Some(error))
        }
    };
    Ok(Target { name, controller, review, is_incomplete, error })
}

fn shown(summary: &Summary, kept: &[Kept]) -> String {
    let mut text = if summary.changes { coloured(&summary.to_string()) } else { String::new() };
    text.extend(kept.iter().map(|kept| format!("{kept}\n")));
    if !summary.changes {
        text += if kept.is_empty() {
            "Nothing to remove: HAProxy has nothing of ours.\n"
        } else {
            "Nothing else to remove.\n"
        };
    }
    text
}

fn failed(error: &anyhow::Error) -> String {
    format!("error: {}\n", chain(error.as_ref()))
}

fn because(error: PassError) -> anyhow::Error {
    match error {
        PassError::Reviewed(_) => anyhow!(
            "nothing is removed, as HAProxy's configuration changed after it was shown; end the controller, then run \
             this again"
        ),
        other => other.into(),
    }
}

/// What was done to one.
fn said(status: &PassStatus) -> String {
    let PassStatus { kept, reloads, is_standby, error, .. } = status;
    let how = print::reloads(*reloads);
    match (error.is_some() || *is_standby, kept.len()) {
        (true, _) => format!("Not all was removed; {}.\n", status.done()),
        (false, 0) => format!("Removed: {how}.\n"),
        (false, 1) => format!("Removed, except for what stays in one backend: {how}.\n"),
        (false, more) => format!("Removed, except for what stays in {more} backends: {how}.\n"),
    }
}

/// 1 if anything of ours is left anywhere.
fn outcome(done: Vec<Target>, are_named: bool) -> anyhow::Result<ExitCode> {
    let total = done.len();
    let is_incomplete = done.iter().any(|target| target.is_incomplete);
    let errors = done.into_iter().filter_map(|target| Some((target.name, target.error?))).collect();
    match print::failure(errors, total, are_named, "not all was removed from") {
        Some(error) => Err(error),
        None => Ok(if is_incomplete { ExitCode::FAILURE } else { ExitCode::SUCCESS }),
    }
}

/// Asks at the terminal.
fn is_confirmed() -> anyhow::Result<bool> {
    let mut terminal = std::io::stderr().lock();
    write!(terminal, "Remove this from HAProxy? [y/N] ")?;
    terminal.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(is_yes(&answer))
}

fn is_yes(answer: &str) -> bool {
    ["y", "yes"].iter().any(|yes| answer.trim().eq_ignore_ascii_case(yes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_yes_is_one() {
        for (answer, is) in [("y\n", true), ("YES\r\n", true), ("", false), ("\n", false), ("yep\n", false)] {
            assert_eq!(is_yes(answer), is, "{answer:?}");
        }
    }
}
