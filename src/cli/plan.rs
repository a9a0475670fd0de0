//! `plan`: what a pass would do, over all HAProxys.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::apply::{self, DryRun, Moment, PassError};
use crate::catalog;
use crate::config::Config;
use crate::desired::build;
use crate::errors::chain;
use crate::haproxy::text::ConfigText;
use crate::haproxy::version::Version;
use crate::observed::{Frontend, Observed};
use crate::plan;
use crate::plan::display::Summary;
use crate::plan::review::{Review, Reviews};
use crate::plane::local;
use crate::target;

use super::Output;
use super::print::{self, coloured, heading, print};
use super::targets::{self, Controllers};

/// What a pass over each HAProxy would do.
pub(super) struct Plans {
    all: Vec<(String, Result<DryRun, PassError>)>,
    are_named: bool,
}

impl Plans {
    /// Plans for all of them at a time.
    pub(super) async fn of(controllers: Controllers) -> Self {
        let Controllers { all, are_named } = controllers;
        let moment = Moment::now(true);
        let plan = async |(name, mut controller): (String, apply::Controller)| (name, controller.dry_run(moment).await);
        Self { all: join_all(all.into_iter().map(plan)).await, are_named }
    }

    /// From two files: without Nomad and HAProxy.
    pub(super) fn offline(
        config: &Config,
        only: Option<&str>,
        catalog: &Path,
        file: &Path,
        version: Option<Version>,
    ) -> anyhow::Result<Self> {
        let catalog = catalog::file::read(catalog)?;
        let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let text = ConfigText::from_bytes(&text);
        let (target, capabilities, maps) = targets::offline(config, only, version)?;
        let observed = Observed::new(text.version().unwrap_or(0), text, &target.owner);
        let observed = with_maps(observed, maps, file)?;
        let apply::Options { mut build, mut plan, guard, .. } = target::options(config, target);
        plan.capabilities = capabilities;
        build.init_state = version.is_none_or(Version::has_init_state);
        build.targets = targets::names_offline(config, only);
        let mut built = build::build(&catalog, &observed.present(), &build);
        let holding = plan::guard::offline(&mut built, &observed, &guard);
        let mut draft = apply::Draft::new(&built, &observed, &plan, &plan::LeftOut::default())?;
        draft.guard = holding;
        let plan = DryRun {
            summary: draft.summary(&observed, &draft.after.text),
            version: observed.version,
            review: Review::new(&draft.plan, &observed, &target.owner, plan.now),
            kept: Vec::new(),
        };
        Ok(Self { all: vec![(build.targets.own, Ok(plan))], are_named: false })
    }

    /// Prints them, and keeps those that can be applied.
    pub(super) fn show(&self, output: Output, out: Option<&Path>) -> anyhow::Result<()> {
        match output {
            Output::Text => self.print_text()?,
            Output::Json => print(&(serde_json::to_string_pretty(&self.json()?)? + "\n"))?,
        }
        let reviews = self.reviews();
        let Some((path, reviews)) = out.zip(reviews) else { return Ok(()) };
        keep(&reviews, path)?;
        if output == Output::Text {
            let path = path.display();
            print(&format!("The plan is kept in {path}: `nomad-haproxy apply --plan {path}` applies just that.\n"))?;
        }
        Ok(())
    }

    fn print_text(&self) -> anyhow::Result<()> {
        for (name, plan) in &self.all {
            if self.are_named {
                print(&heading(name))?;
            }
            match plan {
                Ok(plan) => print(&coloured(&plan.summary.to_string()))?,
                // The error of a single one is that of the command.
                Err(error) if self.are_named => print(&format!("error: {}\n", chain(error)))?,
                Err(_) => {}
            }
        }
        Ok(())
    }

    /// Of a single HAProxy its plan; of several each by name, and whether anything changes on any.
    fn json(&self) -> anyhow::Result<Value> {
        let one = |plan: &Result<DryRun, PassError>| {
            anyhow::Ok(match plan {
                Ok(DryRun { summary, version, review: _, kept: _ }) => {
                    let mut json = serde_json::to_value(summary)?;
                    json["version"] = (*version).into();
                    json
                }
                Err(error) => json!({ "error": chain(error) }),
            })
        };
        if let ([(_, plan)], false) = (self.all.as_slice(), self.are_named) {
            return one(plan);
        }
        let targets: BTreeMap<&String, Value> =
            self.all.iter().map(|(name, plan)| Ok((name, one(plan)?))).collect::<anyhow::Result<_>>()?;
        let any = |is: fn(&Summary) -> bool| self.summaries().any(is);
        Ok(json!({
            "changes": any(|summary| summary.changes),
            "held": any(|summary| summary.guard.is_some()),
            "errors": self.all.iter().any(|(_, plan)| plan.is_err()) || any(|summary| summary.blocked.is_some()),
            "haproxys": targets,
        }))
    }

    fn summaries(&self) -> impl Iterator<Item = &Summary> {
        self.all.iter().filter_map(|(_, plan)| plan.as_ref().ok()).map(|plan| &plan.summary)
    }

    /// What can be applied; nothing, if there is nothing of it.
    fn reviews(&self) -> Option<Reviews> {
        let usable = self.all.iter().filter_map(|(name, plan)| Some((name.clone(), plan.as_ref().ok()?)));
        let usable = usable.filter(|(_, plan)| plan.summary.blocked.is_none());
        let mut usable = usable.map(|(name, plan)| (name, plan.review.clone()));
        if self.are_named {
            let all: BTreeMap<_, _> = usable.collect();
            return (!all.is_empty()).then_some(Reviews::Several(all));
        }
        usable.next().map(|(_, review)| Reviews::One(Box::new(review)))
    }

    /// 1 for an error, 3 where the guard would hold, 2 for changes: the first of these that is so anywhere.
    pub(super) fn exit_code(self, detailed: bool) -> anyhow::Result<ExitCode> {
        let any = |is: fn(&Summary) -> bool| self.summaries().any(is);
        let code = if any(|summary| summary.blocked.is_some()) {
            ExitCode::FAILURE
        } else if detailed && any(|summary| summary.guard.is_some()) {
            ExitCode::from(3)
        } else if detailed && any(|summary| summary.changes) {
            ExitCode::from(2)
        } else {
            ExitCode::SUCCESS
        };
        let total = self.all.len();
        let errors = self.all.into_iter().filter_map(|(name, plan)| Some((name, plan.err()?.into()))).collect();
        print::failure(errors, total, self.are_named, "there is no plan for").map_or(Ok(code), Err)
    }
}

/// Adds the map files that are on this machine: where the rules of the file name them, else where the settings have
/// them, else beside the file.
fn with_maps(observed: Observed, folder: Option<PathBuf>, file: &Path) -> anyhow::Result<Observed> {
    let named = observed.frontends.values().flat_map(Frontend::folders).next().map(PathBuf::from);
    let beside = || file.canonicalize().ok()?.parent().map(Path::to_owned);
    let folder = named.or(folder).or_else(beside).unwrap_or_default();
    let maps = local::maps_in(&folder, &observed.owner)?;
    Ok(observed.with_maps(maps))
}

/// Writes a plan file, in one step. Only its owner may read it: a digest may be guessed.
fn keep(reviews: &Reviews, path: &Path) -> anyhow::Result<()> {
    let wrong = || format!("cannot write the plan {}", path.display());
    if std::fs::metadata(path).is_ok_and(|known| !known.is_file()) {
        return Err(anyhow::anyhow!("it is not a regular file").context(wrong()));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Its mode is 0600 (tempfile, "Security").
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(wrong)?;
    file.write_all(reviews.to_json()?.as_bytes()).with_context(wrong)?;
    file.persist(path).with_context(wrong)?;
    Ok(())
}
