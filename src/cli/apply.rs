//! `apply`: one pass over each HAProxy.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, anyhow, ensure};
use futures_util::future::join_all;

use crate::apply::{Controller, Moment, Outcome, PassStatus};
use crate::desired::Severity;
use crate::errors::chain;
use crate::plan::review::{Review, Reviews};

use super::print::{self, coloured, heading, print};
use super::targets::{Controllers, LOST};

/// Runs a pass over each, or over `only` one of several; with a plan file, only over those that it has a plan for.
pub(super) async fn apply(
    controllers: Controllers,
    only: Option<&str>,
    plan: Option<&Path>,
    strict: bool,
) -> anyhow::Result<ExitCode> {
    let Controllers { all, are_named } = controllers;
    let work = match plan {
        Some(path) => reviewed(all, read(path)?, are_named, only.is_some())?,
        None => all.into_iter().map(|(name, controller)| (name, controller, None)).collect(),
    };
    let moment = Moment::now(true);
    let pass = async |(name, mut controller, review): (String, Controller, Option<Review>)| {
        (name, controller.pass(moment, review.as_ref()).await)
    };
    let done = join_all(work.into_iter().map(pass)).await;
    for (name, status) in &done {
        if are_named {
            print(&heading(name))?;
        }
        print(&said(status))?;
        if let Some(error) = status.error.as_ref().filter(|_| are_named) {
            print(&format!("error: {}\n", chain(error)))?;
        }
    }
    let has_notes = |status: &PassStatus| {
        status.notes.iter().any(|note| note.severity == Severity::Error) || !status.namespaces.is_empty()
    };
    let noted = done.iter().any(|(_, status)| has_notes(status));
    let total = done.len();
    let error = |status: PassStatus| match status.error {
        Some(error) => Some(error.into()),
        None => status.is_standby.then(|| anyhow!(LOST)),
    };
    let errors = done.into_iter().filter_map(|(name, status)| Some((name, error(status)?))).collect();
    match print::failure(errors, total, are_named, "not all was done on") {
        Some(error) => Err(error),
        None => Ok(if strict && noted { ExitCode::FAILURE } else { ExitCode::SUCCESS }),
    }
}

/// Reads a plan file.
fn read(path: &Path) -> anyhow::Result<Reviews> {
    let wrong = || format!("cannot read the plan {}", path.display());
    let text = std::fs::read_to_string(path).with_context(wrong)?;
    Reviews::read(&text).with_context(wrong)
}

/// Each HAProxy with what was reviewed of it.
fn reviewed(
    mut all: Vec<(String, Controller)>,
    reviews: Reviews,
    are_named: bool,
    is_one_of_them: bool,
) -> anyhow::Result<Vec<(String, Controller, Option<Review>)>> {
    let mut by_name: BTreeMap<String, Review> = match reviews {
        Reviews::One(review) => {
            ensure!(all.len() == 1, "this plan is of one HAProxy: say of which with --haproxy");
            all.iter().map(|(name, _)| (name.clone(), (*review).clone())).collect()
        }
        Reviews::Several(by_name) => by_name,
    };
    for (name, _) in &all {
        if are_named && !by_name.contains_key(name) {
            print(&format!("{}The plan has nothing about this HAProxy, so nothing is done.\n", heading(name)))?;
        }
    }
    let missing: Vec<&String> = by_name.keys().filter(|name| all.iter().all(|(other, _)| other != *name)).collect();
    if !is_one_of_them || !are_named {
        ensure!(missing.is_empty(), "the plan is of a HAProxy that is not there any more: {missing:?}");
    }
    all.retain(|(name, _)| by_name.contains_key(name));
    ensure!(!all.is_empty(), "the plan has nothing about this HAProxy");
    Ok(all
        .into_iter()
        .map(|(name, controller)| {
            let review = by_name.remove(&name);
            let controller = match &review {
                Some(review) => controller.lingering_since(review),
                None => controller,
            };
            (name, controller, review)
        })
        .collect())
}

/// What a pass did, for people.
fn said(status: &PassStatus) -> String {
    let PassStatus { written, notes, namespaces, guard, run_time_changes, reloads, version, next, .. } = status;
    let mut text = match written.as_slice() {
        [] => {
            let notes = notes.iter().map(ToString::to_string).chain(namespaces.iter().map(ToString::to_string));
            notes.chain(guard.iter().map(ToString::to_string)).fold(String::new(), |text, line| text + &line + "\n")
        }
        written => written.iter().map(|summary| coloured(&summary.to_string())).collect(),
    };
    let how = print::reloads(*reloads);
    text += &match status.outcome() {
        Outcome::Unchanged => format!("Nothing to do: HAProxy is in line with the catalog (version {version}).\n"),
        Outcome::Applied => format!("Applied: {how}, version {version}.\n"),
        Outcome::Repaired => format!(
            "Repaired: the process agrees with its file again, {run_time_changes} run-time changes, {how}, version \
             {version}.\n"
        ),
        Outcome::Standby => "Nothing was written.\n".to_owned(),
        Outcome::Failed => format!("Not all was done; {}.\n", status.done()),
    };
    if let Some(at) = next.filter(|_| status.error.is_none()) {
        let wait = std::time::Duration::from_secs(at.saturating_duration_since(std::time::Instant::now()).as_secs());
        text += &format!("More is due in {}: run this again then.\n", humantime::format_duration(wait));
    }
    text
}
