//! Which HAProxys a command is about.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use tokio::sync::watch;

use crate::apply::Controller;
use crate::catalog::Source;
use crate::catalog::nomad::NomadCatalog;
use crate::catalog::shared::SharedCatalog;
use crate::config::{Config, ServiceConfig, TargetConfig, TargetOptions};
use crate::desired::build::TargetNames;
use crate::discovery::Discovery;
use crate::fleet::Names;
use crate::haproxy::version::Version;
use crate::leader::{self, Elector, Lease};
use crate::nomad::Nomad;
use crate::nomad::lock::VariableLock;
use crate::plane::Capabilities;
use crate::target;

/// What is missing where no HAProxy is set up.
pub(super) const NONE: &str = "no HAProxy is configured: set haproxy.address (HAPROXY_DATAPLANE_URL) for the Data Plane API, \
                    haproxy.config_file (HAPROXY_CONFIG_FILE) for a HAProxy on this machine, or haproxy.service \
                    (HAPROXY_SERVICE) for those that a Nomad service lists";

/// The controllers of a command, each with its HAProxy's name.
pub(super) struct Controllers {
    /// By name.
    pub(super) all: Vec<(String, Controller)>,
    /// Whether the output names them: it does not where there can be only one.
    pub(super) are_named: bool,
}

/// The catalog that all of them share.
pub(super) fn catalog(config: &Config, file: Option<PathBuf>) -> anyhow::Result<SharedCatalog> {
    Ok(SharedCatalog::new(match file {
        Some(path) => Source::File(path),
        None => {
            let (nomad, namespaces) = (Nomad::new(config.nomad.clone())?, config.namespaces.clone());
            let catalog = NomadCatalog::new(nomad, namespaces, config.prefix.clone());
            Source::Nomad(Box::new(catalog.with_max_stale(config.max_stale)))
        }
    }))
}

/// The lock that the settings name, if they name one; nothing is sent yet.
pub(super) fn lock(config: &Config) -> anyhow::Result<Option<VariableLock>> {
    let Some(lock) = &config.leader else { return Ok(None) };
    Ok(Some(VariableLock::new(Nomad::new(config.nomad.clone())?, lock.clone())))
}

/// Runs a command that writes: with the lock, if the settings name one. Another controller that has it is not disturbed,
/// unless the command is to do without.
pub(super) async fn with_lock(
    config: &Config,
    without: bool,
    work: impl AsyncFnOnce(&Lease) -> anyhow::Result<ExitCode>,
) -> anyhow::Result<ExitCode> {
    let Some(lock) = lock(config)?.filter(|_| !without) else { return work(&Lease::ALWAYS).await };
    let elector = Elector::take(lock, leader::me(None)).await?;
    let result = work(&elector.lease()).await;
    elector.release().await;
    result
}

/// What a pass says that has lost the lock before its end.
pub(super) const LOST: &str = "the lock of `leader.lock` was lost before all was done, and the rest is left to the controller \
                               that leads now";

/// Those that Nomad services list; nothing is read yet.
pub(super) fn discoveries(config: &Config) -> anyhow::Result<Vec<Discovery>> {
    if config.targets.services.is_empty() {
        return Ok(Vec::new());
    }
    let nomad = Nomad::new(config.nomad.clone())?;
    let discovery =
        |service: &ServiceConfig| Ok(Discovery::new(nomad.clone(), service.clone(), &config.targets.fixed)?);
    config.targets.services.iter().map(discovery).collect()
}

/// All HAProxys, or the one of this name.
pub(super) async fn controllers(
    config: &Config,
    only: Option<&str>,
    file: Option<PathBuf>,
    lease: &Lease,
) -> anyhow::Result<Controllers> {
    let targets = all(config).await?;
    let all: BTreeSet<String> = targets.iter().map(|target| target.name.clone()).collect();
    let chosen = select(targets, only)?;
    let (catalog, names) = (catalog(config, file)?, names(all));
    let one = |target: TargetConfig| {
        let controller = target::controller(config, &target, &catalog, names.clone(), lease)?;
        anyhow::Ok((target.name, controller))
    };
    Ok(Controllers {
        all: chosen.into_iter().map(one).collect::<anyhow::Result<_>>()?,
        are_named: !config.targets.is_single(),
    })
}

/// The same, to remove what is ours. Nomad is only asked for HAProxys that the settings do not have themselves.
pub(super) async fn removers(config: &Config, only: Option<&str>, lease: &Lease) -> anyhow::Result<Controllers> {
    let is_asked_for = |target: &&TargetConfig| only == Some(target.name.as_str());
    let targets = match config.targets.fixed.iter().find(is_asked_for) {
        Some(target) => vec![target.clone()],
        None => select(all(config).await?, only)?,
    };
    let one = |target: TargetConfig| anyhow::Ok((target.name.clone(), target::remover(config, &target, lease)?));
    Ok(Controllers {
        all: targets.into_iter().map(one).collect::<anyhow::Result<_>>()?,
        are_named: !config.targets.is_single(),
    })
}

/// All HAProxys, by name.
async fn all(config: &Config) -> anyhow::Result<Vec<TargetConfig>> {
    ensure!(!config.targets.is_empty(), NONE);
    let mut targets = config.targets.fixed.clone();
    for mut discovery in discoveries(config)? {
        let taken: BTreeSet<String> = targets.iter().map(|target| target.name.clone()).collect();
        let found = discovery.list(&taken).await;
        targets
            .extend(found.with_context(|| format!("cannot read the HAProxys of the service {}", discovery.service()))?);
    }
    ensure!(!targets.is_empty(), "no HAProxy is registered under the service of haproxy.service (HAPROXY_SERVICE)");
    targets.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(targets)
}

/// The names for an offline plan; none, if the settings have no HAProxy.
pub(super) fn names_offline(config: &Config, only: Option<&str>) -> TargetNames {
    let names = config.targets.fixed.iter().map(|target| target.name.clone());
    let own = only.map(str::to_owned).or_else(|| names.clone().next()).unwrap_or_default();
    TargetNames { own, all: Arc::new(names.collect()) }
}

/// Names that stay as they are.
fn names(all: BTreeSet<String>) -> Names {
    watch::Sender::new(Arc::new(all)).subscribe()
}

fn select(targets: Vec<TargetConfig>, only: Option<&str>) -> anyhow::Result<Vec<TargetConfig>> {
    let Some(only) = only else { return Ok(targets) };
    let known: Vec<String> = targets.iter().map(|target| target.name.clone()).collect();
    let chosen: Vec<_> = targets.into_iter().filter(|target| target.name == only).collect();
    if chosen.is_empty() {
        bail!("no HAProxy is called {only:?} (--haproxy); there are: {}", known.join(", "));
    }
    Ok(chosen)
}

/// What an offline plan takes from the settings: those of the HAProxy of this name, or of the only one; and what it
/// takes at run time.
pub(super) fn offline<'a>(
    config: &'a Config,
    only: Option<&str>,
    version: Option<Version>,
) -> anyhow::Result<(&'a TargetOptions, Capabilities, Option<PathBuf>)> {
    let of = |target: &'a TargetConfig| {
        (&target.options, target.capabilities_offline(version), target.maps_folder_offline().map(PathBuf::from))
    };
    let targets = &config.targets;
    let known = || targets.fixed.iter().map(|target| target.name.as_str()).collect::<Vec<_>>().join(", ");
    match (only, targets.fixed.as_slice()) {
        (Some(only), fixed) => match fixed.iter().find(|target| target.name == only) {
            Some(target) => Ok(of(target)),
            None => bail!("no HAProxy is called {only:?} (--haproxy); there are: {}", known()),
        },
        (None, [target]) => Ok(of(target)),
        (None, []) => Ok((&targets.common, Capabilities::default(), None)),
        (None, _) => bail!("which HAProxy is this configuration of? Name it with --haproxy: {}", known()),
    }
}
